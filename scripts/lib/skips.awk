# Compares the SKIPs of the series' own tests with those that are expected:
#
#	awk -v arch=ARCH -v config=CONFIG -v append=ARGS [-v list=1] -f skips.awk selftests/baseline/skips.tsv ROWS...
#
# ROWS come from ktap.awk; ARCH, CONFIG and ARGS say where the tests ran. Prints what was
# skipped and is not listed, or is without a cause (the last column); then the status is 1.
# Prints what is listed for a program that ran, and was not skipped. With list=1: only what
# is not listed, as lines for skips.tsv that lack the cause. Where the file has no line for
# ARCH and CONFIG at all, nothing can be compared: that is said, as skipped.
BEGIN {
	FS = OFS = "\t"
}

# matches TEXT EXPRESSION: all of the text
function matches(text, re) {
	return text ~ "^(" re ")$"
}

function literal(text) {
	gsub(/[][\\.^$*+?(){}|]/, "\\\\&", text)
	return text
}

FILENAME == ARGV[1] {
	if (/^#/ || !NF)
		next
	if (NF != 6) {
		print FILENAME ": line " FNR " has " NF " columns, not 6"
		bad = 1
	} else if (matches(arch, $1) && matches(config, $2)) {
		recorded = 1
		if (!matches(append, $3))
			next
		known[++n] = $4
		reason[n] = $5
		cause[n] = $6
		split($4, word, " ")
		program[n] = word[1]
	}
	next
}

{
	split($1, word, " ")
	# one case alone says nothing about the others
	if (append == "run_vmtests.sh" || word[1] == $1)
		whole[word[1]] = 1
}
$3 != "skip" { next }
$2 != "-" { part_skipped[$1] = 1 }
$2 == "-" && $1 in part_skipped { next }
{
	name = $2 == "-" ? word[1] : word[1] " " $2
	for (i = 1; i <= n; i++)
		if (matches(name, known[i]) && $4 ~ reason[i] && cause[i] != "")
			break
	if (i <= n) {
		used[i] = 1
		next
	}
	bad = 1
	if (list)
		print arch, literal(config), literal(append), literal(name), literal($4), ""
	else if (recorded)
		print "SKIP is not listed: " name ": " $4
	else
		unknown++
}

END {
	for (i = 1; i <= n && !list; i++)
		for (p in whole)
			if (matches(p, program[i]) && !used[i]) {
				print "listed as skipped, but was not: " known[i] ": " reason[i]
				break
			}
	if (unknown)
		printf "skipped: comparing %d SKIPs of %s on %s, of which none is recorded\n", unknown, arch, config
	exit bad && !list && recorded
}
