# Compares what upstream's tests showed with the recorded baseline:
#
#	awk -v categories=" CATEGORY... " -v own=EXPRESSION -f baseline.awk flaky.tsv baseline=BASELINE BASELINE SEEN
#
# The rows of BASELINE and SEEN are category, test, part, result, why. Prints what differs; the
# status is 1 where that is worse, but not for what flaky.tsv lists. Tests whose name
# matches 'own' are the series' own, have no baseline, and must not fail.
BEGIN {
	FS = "\t"
}
function key() { return $1 "\t" $2 "\t" $3 }
function is_flaky(name,   i) {
	for (i = 1; i <= flaky; i++)
		if (name[1] == f_category[i] && name[2] ~ f_test[i] && name[3] ~ f_part[i])
			return 1
	return 0
}
FILENAME ~ /flaky.tsv$/ {
	if (/^#/) next
	f_category[++flaky] = $1; f_test[flaky] = $2; f_part[flaky] = $3
	next
}
/^#/ || !index(categories, " " $1 " ") { next }
FILENAME == baseline { was[key()] = $4; next }
{ now[key()] = $4; why[key()] = $5 }
END {
	for (k in now) {
		split(k, name, "\t")
		if (name[2] ~ own && now[k] != "fail") continue
		before = k in was ? was[k] : (k ~ /\t-$/ ? "absent" : "pass")
		if (before == now[k]) continue
		if (now[k] == "fail" && is_flaky(name)) {
			print "# flaky on the base too: " k " (" why[k] ")"
			continue
		}
		bad += now[k] != "pass" && before != "fail"
		print "# differs: " k ": was " before ", is " now[k] " (" why[k] ")"
	}
	for (k in was) if (!(k in now) && k ~ /\t-$/ && k !~ /\(guest\)/) {
		split(k, name, "\t")
		if (is_flaky(name)) {
			print "# flaky on the base too: " k " (absent)"
			continue
		}
		print "# differs: " k ": was " was[k] ", is absent"
		bad++
	}
	exit bad > 0
}
