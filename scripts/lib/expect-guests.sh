# shellcheck shell=bash disable=SC2154
# The guests of scripts/expect, which sources this: what is run in each, and where its
# output is. They leave beside their output FILE: FILE.tests, FILE.kernel (its
# configuration and command line), FILE.status and FILE.boot of scripts/boot,
# FILE.console, and FILE.rows as ktap.awk reads it.

base_limit=300 series_limit=1200	# seconds for a test

# row_options CONFIG: the options of boot and build for a row
row_options() {
	local fragment
	for fragment in ${1//+/ }; do
		echo "--config $fragment"
	done | xargs
}

# The guest's script. A harness test is named 'binary test' and is
# run by that name alone; one that never ends is killed and counts as failed.
job() { # job LIMIT TEST...
	echo "limit=$1"
	shift
	cat <<-'EOF'
	run() {
		local start=$SECONDS
		echo "@@ begin $*"
		timeout -k 10 $limit "./$1" ${2:+-r "$2"}
		echo "@@ end $? $((SECONDS - start)) $*"
	}
	EOF
	printf 'run %s\n' "$@"
	echo true
}

ktap() {
	awk -f "$top/scripts/lib/ktap.awk" "$@"
}

# boot_tests TREE FILE CONFIG APPEND TEST...: the output goes to FILE, what is
# known of it beside it
boot_tests() {
	local tree=$1 file=$2 config=$3 append=$4 status=0 limit=$base_limit options=(--after-splat 60)
	shift 4
	printf '%s\n' "$@" >"$file.tests"
	printf '%s\n' "$config" "$append" >"$file.kernel"
	[ "$tree" = base ] || limit=$series_limit options=()
	[ "$append" != - ] || append=''
	# shellcheck disable=SC2046 # options are words
	"$top/scripts/boot" "$arch" "$tree" $(row_options "$config") --append "$append" "${options[@]}" \
		--timeout $((limit * $# + 60)) --output "$file" -- "$(job $limit "$@")" 2>"$file.boot" || status=$?
	echo $status >"$file.status"
	ktap "$file" >"$file.rows"
}

prepare() { # prepare TREE CONFIG
	# shellcheck disable=SC2046
	"$top/scripts/build" "$arch" "$1" $(row_options "$2") >/dev/null
	# shellcheck disable=SC2046
	"$top/scripts/lib/image" "$arch" "$1" $(row_options "$2") >/dev/null
}

# sources PROGRAM: its files in the folder of the mm tests, with what they include of it
sources() {
	local mm=tools/testing/selftests/mm linux files="$1.c vm_util.c hugepage_settings.c" more=''
	linux=$(tree_dir series)
	while [ "$files" != "$more" ]; do
		more=$files
		# shellcheck disable=SC2086 # names
		files=$({
			printf '%s\n' $more
			for file in $more; do git -C "$linux" show "HEAD:$mm/$file" 2>/dev/null; done |
				sed -n 's/^#include "\([a-z_]*\.h\)".*/\1/p'
		} | sort -u | xargs)
	done
	echo "$files"
}

# What a row shows on the base does not change while it, its test and its kernel do
# not: base_id ROW names these.
declare -A program_ids=()
base_id() {
	local test config mm=tools/testing/selftests/mm linux program names
	linux=$(tree_dir series)
	IFS=$'\t' read -r _ test _ config _ <<<"$1"
	program=${test%% *}
	if [ -z "${program_ids[$program]:-}" ]; then
		names=$(sources "$program")
		program_ids[$program]=$(git -C "$linux" ls-tree -r HEAD $mm tools/testing/selftests/kselftest_harness.h |
			grep -E "	.*/(${names// /|}|kselftest_harness\.h)\$" |
			awk '{ print ":", 0, 0, $3, "M\t" $4 }' | compiled | git hash-object --stdin)
	fi
	{
		echo "${program_ids[$program]}"
		cut -f 2-7 <<<"$1"
		for config in common "$arch" ${config//+/ }; do grep -v '^#' "$top/configs/$config.config"; done
	} | sha256sum | cut -c1-16
}

is_recorded() { # is_recorded ROW
	grep -qsF "	$(base_id "$1")" "$base_record"
}

put_base_record() { # put_base_record ROW
	local test config
	IFS=$'\t' read -r _ test _ config _ <<<"$1"
	[ -f "$base_record" ] ||
		printf '# rows of expect.tsv that the base was seen to confirm\n# arch\tkernel\ttest\tid\n' >"$base_record"
	awk -F'\t' -v arch="$arch" -v config="$config" -v test="$test" \
		'!($1 == arch && $2 == config && $3 == test)' "$base_record" >"$base_record.tmp"
	printf '%s\t%s\t%s\t%s\n' "$arch" "$config" "$test" "$(base_id "$1")" >>"$base_record.tmp"
	{ grep '^#' "$base_record.tmp"; grep -v '^#' "$base_record.tmp" | sort; } >"$base_record"
	rm "$base_record.tmp"
}

# rows_to_run TREE: on the base with --new, those that are not recorded
rows_to_run() {
	local row
	if [ "$1" = base ] && [ -n "$new" ]; then
		rows | while IFS= read -r row; do is_recorded "$row" || printf '%s\n' "$row"; done
	else
		rows
	fi
}

# guests_of TREE: one line for each guest that the rows need, those that may
# hang first: CONFIG, APPEND, and the tests. On the series there are two for each
# kernel; on the base one for each program, as what one leaks the next one lacks.
guests_of() {
	rows_to_run "$1" | awk -F'\t' -v tree="$1" '
		tree == "base" && ($6 == "-" || $6 == "widened") { next }
		tree == "base" && $6 == "crash" { print $4 FS $5 FS $2; next }
		{ row[++n] = $2; kernel[n] = $4 FS $5; has[kernel[n], $2] = 1 }
		END {
			for (i = 1; i <= n; i++) {
				split(row[i], word, " ")
				if (tree == "series" && word[1] != row[i] && (kernel[i], word[1]) in has) continue
				guest = tree == "series" ? count[kernel[i]]++ % 2 : word[1]
				tests[kernel[i], guest] = tests[kernel[i], guest] FS row[i]
			}
			for (key in tests) {
				split(key, part, SUBSEP)
				print part[1] tests[key]
			}
		}'
}

# Two guests at a time: each waits for its disk and its clock as well.
run_guests() { # run_guests TREE EXTRA-CONFIG
	local config append tests count=0
	while IFS=$'\t' read -r config append tests; do
		IFS=$'\t' read -ra tests <<<"$tests"
		say "$1 on $config$2: ${tests[*]}"
		count=$((count + 1))
		boot_tests "$1" "$results/$1/guest-$count" "$config$2" "$append" "${tests[@]}" &
		[ $count -lt 2 ] || wait -n
	done < <(guests_of "$1")
	wait
}

# guest_of TREE TEST: the output of the guest that ran it, by itself or with its program
guest_of() {
	local file
	file=$(cd "$results/$1" && { grep -lxF -- "$2" ./*.tests || grep -lxF -- "${2%% *}" ./*.tests; }) || true
	[ -n "$file" ] || die "$2 was not run on $1" "scripts/expect $arch --kernel $kernel"
	echo "$results/$1/$(basename "$file" .tests)"
}
