# Reads what test programs have printed (KTAP) and prints a row for each test and
# one for each of its parts, separated by tabs:
#
#	TEST	PART	RESULT	WHY	SECONDS
#
# A test is a program that was run. Its parts are the lines 'ok N PART' and 'not ok N
# PART' that it printed, in their order; its own row comes last and has '-' for a PART.
# There are two kinds of input, which may not be mixed:
#
# run_vmtests.sh	the lines of a program begin with '# ', and 'ok N TEST', 'ok N TEST
#			# SKIP' or 'not ok N TEST # exit=STATUS' comes after them and is
#			the RESULT
# the job of expect	they are between '@@ begin TEST' and '@@ end STATUS SECONDS TEST'
#
# RESULT of a part	pass, skip or fail. 'not ok' that is marked XFAIL is no part.
# RESULT of a test	As run_vmtests.sh says. For expect: pass is status 0 and a part that
#			passed; skip is status 4, or 0 where no part passed; all else is fail,
#			such as a test without an end.
# WHY			Of a skipped part, what stands behind SKIP; of a failed part or of a
#			skipped test, what was printed last before it; of a failed test,
#			its status, or for expect the first part that failed.
# SECONDS		as the job of expect counted them, else '-'; of tests only
#
# What differs from run to run (addresses, names of temporary folders) is no part of a
# name. Colours are ignored.
#
# With -v show=TEST: no rows, but what that test has printed between its marks, as it is.
BEGIN {
	OFS = "\t"
}

function row(part, result, why) {
	gsub(/\t/, " ", why)
	rows[++n] = part OFS result OFS why
}

function end_of(test, result, why, seconds,   i) {
	gsub(/\t/, " ", why)
	for (i = 1; i <= n; i++)
		print test, rows[i], "-"
	print test, "-", result, why, seconds
	n = 0
}

# the name in a line of a part, or of a test
function clean(line) {
	sub(/^# *(not )?ok [0-9]+ */, "", line)
	sub(/ *# *(SKIP|skip|exit=|XFAIL|error).*/, "", line)
	gsub(/0x[0-9a-f]+/, "ADDR", line)
	return line
}

function marked_end(status, seconds) {
	if (status == 0 && passed)
		end_of(marked, "pass", "", seconds)
	else if (status == 4 || status == 0)
		end_of(marked, "skip", last, seconds)
	else if (status == 124 || status == 137)
		end_of(marked, "fail", "time-out", seconds)
	else
		end_of(marked, "fail", failed ? failed : "exit=" status ": " last, seconds)
	marked = ""
}

show != "" {
	if ($0 == "@@ begin " show)
		shown = 1
	if (shown)
		print
	if ($1 == "@@" && $2 == "end" && $0 ~ /^@@ end [0-9]+ [0-9]+ / && shown) {
		sub(/^@@ end [0-9]+ [0-9]+ /, "")
		if ($0 == show)
			exit
	}
	next
}

{
	gsub(/\033\[[0-9;]*m/, "")
	gsub(/xfs_dir_[A-Za-z0-9]+/, "xfs_dir")
}

/^@@ begin / && marked == "" {
	marked = substr($0, 10)
	n = passed = 0
	failed = last = ""
	next
}
marked != "" && $1 == "@@" && $2 == "end" {
	status = $3
	seconds = $4
	sub(/^@@ end [0-9]+ [0-9]+ /, "")
	if ($0 == marked)
		marked_end(status, seconds)
	next
}
marked != "" { $0 = "# " $0 }

/^# *not ok [0-9]+/ && !/# *XFAIL/ {
	row(clean($0), "fail", last)
	if (failed == "")
		failed = clean($0) ": " last
	next
}
/^# *ok [0-9]+.*# *(SKIP|skip)/ {
	why = $0
	sub(/.*# *(SKIP|skip) */, "", why)
	row(clean($0), "skip", why)
	next
}
/^# *ok [0-9]+/ {
	row(clean($0), "pass", "")
	passed++
	next
}
/^ok [0-9]+/ {
	test = $0
	sub(/^ok [0-9]+ /, "", test)
	if (sub(/ # SKIP.*/, "", test))
		end_of(test, "skip", last, "-")
	else
		end_of(test, "pass", "", "-")
	next
}
/^not ok [0-9]+/ {
	test = $0
	sub(/^not ok [0-9]+ /, "", test)
	why = test
	sub(/ # exit=.*/, "", test)
	sub(/.* # /, "", why)
	end_of(test, "fail", why, "-")
	next
}
/^# \[(PASS|FAIL|SKIP)\]/ || /^# *# Totals/ { next }
/^# / { last = substr($0, 3, 120) }

END {
	if (marked != "" && show == "")
		end_of(marked, "fail", "did not end", "-")
}
