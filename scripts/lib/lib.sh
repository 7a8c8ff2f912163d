# shellcheck shell=bash disable=SC2034,SC2119,SC2120
# Shared by the scripts here and in the folder above: paths, messages, logs, the lock. Sourced, never run.

set -euo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/linux-large-pages
jobs=$(nproc)
base_version=7.3.4
export LP_START=${LP_START:-$(date +%s)}

# The one author identity of the series; whoever posts it signs it off.
author_name="Linux Large Pages"
author_email="linux-large-pages@project.invalid"

# What only a kernel that is broken, or about to be, prints. KTAP lines of
# in-kernel tests and the boot's own "BUG" free banner do not match.
splat_re='WARNING:|BUG:|Oops:|Kernel panic|general protection fault|INFO: (task .* blocked|rcu|possible)'
splat_re+='|possible (recursive|circular|irq lock)|suspicious RCU|held lock freed|refcount_t:|soft lockup|rcu: .*stall'
splat_re+='|trying to register non-static key|bad p[g4um]d |kmemleak: [0-9]+ new suspected'

say() {
	local t=$(($(date +%s) - LP_START))
	printf '[%02d:%02d] %s\n' $((t / 60)) $((t % 60)) "$*" >&2
}

# die MESSAGE [WHAT TO DO NEXT]: status 1, or $DIE_STATUS
die() {
	printf '%s: %s\n' "$(basename "$0")" "$1" >&2
	[ $# -lt 2 ] || printf '  next: %s\n' "$2" >&2
	exit "${DIE_STATUS:-1}"
}

# usage: prints the comment block below the #! line of the calling script
usage() {
	sed -n '2,/^[^#]/{/^# shellcheck /d;s/^# \{0,1\}//p}' "$0"
	exit 0
}

bad_option() {
	die "unknown argument '$1'" "$(basename "$0") --help"
}

need_value() { # need_value OPTION [VALUE...]
	[ $# -ge 2 ] || die "$1 needs a value" "$(basename "$0") --help"
}

check_arch() {
	case $1 in
	x86_64 | arm64 | i386) ;;
	*) die "unknown architecture '$1'" "use x86_64, arm64 or i386" ;;
	esac
}

check_tree() {
	case $1 in
	base | series | check) ;;
	*) die "unknown tree '$1'" "use base or series" ;;
	esac
}

check_fragment() {
	[ -f "$top/configs/$1.config" ] || die "no config fragment '$1'" \
		"one of: $(cd "$top/configs" && echo *.config | sed 's/\.config//g')"
}

# What i386 has no part in: it is there for the tests that need 32 bits
check_arch_64() {
	[ "$1" != i386 ] || die "not for i386" \
		"use x86_64 or arm64, or scripts/expect i386 --kernel debug+no-page-table-check"
	check_arch "$1"
}

# What most scripts take: ARCH TREE [--config FRAGMENT]... kernel_arg reads one
# argument (and its value) and sets shifted; kernel_args_done checks the whole
# and leaves arch, tree, and fragments: none that is for the base only if it is
# the series. config_options are what was given, to hand on.
fragments=() config_options=() positional=()
kernel_arg() {
	shifted=1
	case $1 in
	--help | -h) usage ;;
	--config)
		need_value "$@"
		check_fragment "$2"
		fragments+=("$2")
		config_options+=(--config "$2")
		shifted=2
		;;
	-*) bad_option "$1" ;;
	*) positional+=("$1") ;;
	esac
}

kernel_args_done() {
	[ ${#positional[@]} -ge 2 ] || die "ARCH and TREE are needed" "$(basename "$0") --help"
	arch=${positional[0]} tree=${positional[1]}
	check_arch "$arch"
	check_tree "$tree"
	[ "$tree" != series ] || drop_base_only
}

drop_base_only() {
	local fragment all=("${fragments[@]}")
	fragments=()
	for fragment in "${all[@]}"; do
		if ! grep -q '^# base only' "$top/configs/$fragment.config"; then
			fragments+=("$fragment")
		elif [ -z "${LP_LOCKED:-}" ]; then	# who was started by another script said it there
			say "notice: $fragment is for the base only, the series is built without it"
		fi
	done
}

no_more_args() {
	[ ${#positional[@]} -le 2 ] || bad_option "${positional[2]}"
}

# compiled: of 'git diff-tree -r' lines, each path with what a compiler sees of the
# file: no comments and no layout. Other files count as they are, Documentation
# not at all.
compiled() {
	local blob path dir=$cache/compiled linux
	linux=$(tree_dir series)
	mkdir -p "$dir"
	while read -r _ _ _ blob _ path; do
		case $path in
		Documentation/* | MAINTAINERS) continue ;;
		*.[ch])
			[ -s "$dir/$blob" ] || [[ $blob =~ ^0+$ ]] || {
				git -C "$linux" cat-file blob "$blob" |
					gcc -fpreprocessed -dD -E -P -w -x c - | git hash-object --stdin >"$dir/$blob.$$"
				mv "$dir/$blob.$$" "$dir/$blob"
			}
			blob=$(cat "$dir/$blob" 2>/dev/null || echo gone)
			;;
		esac
		echo "$path $blob"
	done
}

# source_id REF [without-own-tests]: names what is compiled and run of REF; without
# the tests that the series adds, for what runs none of them
source_id() {
	local linux added='no such path'
	linux=$(tree_dir series)
	[ $# -lt 2 ] || added=$(git -C "$linux" diff --name-only --diff-filter=A base "$1" -- tools/testing/selftests)
	{
		git -C "$linux" rev-parse 'base^{tree}'
		git -C "$linux" diff-tree -r base "$1" | compiled | grep -vFf <(echo "$added")
	} | git hash-object --stdin
}

# plain_name TEXT: TEXT as a file may be called
plain_name() {
	tr -c 'A-Za-z0-9_.\n-' _ <<<"$1"
}

tree_dir() {
	case $1 in
	series) echo "$cache/linux" ;;
	*) echo "$cache/$1" ;;
	esac
}

# build_dir ARCH TREE [FRAGMENT...]: a direct child of the tree, so that every
# compiler command line is the same in all trees and ccache shares objects
build_dir() {
	local arch=$1 tree=$2
	shift 2
	local IFS=-
	echo "$(tree_dir "$tree")/build-$arch${*:+-$*}"
}

kernel_image() { # kernel_image ARCH BUILD-DIR
	case $1 in
	x86_64 | i386) echo "$2/arch/x86/boot/bzImage" ;;
	arm64) echo "$2/arch/arm64/boot/Image" ;;
	esac
}

# cross_prefix ARCH: of the compiler, where it is not that of this machine
cross_prefix() {
	case $1-$(uname -m) in
	x86_64-x86_64 | arm64-aarch64) ;;
	x86_64-*) echo x86_64-linux-gnu- ;;
	arm64-*) echo aarch64-linux-gnu- ;;
	i386-*) echo i686-linux-gnu- ;;
	esac
}

# check_with COMMIT PATCH...: the worktree 'check' is COMMIT with the patches on top
check_with() {
	local commit=$1 tree
	shift
	tree=$(tree_dir check)
	git -C "$tree" checkout -q -f --detach "$commit" || return
	[ $# -eq 0 ] || git -C "$tree" apply "$@"
}

# kmake ARCH TREE O-DIR-NAME TARGET...: make with what every build here shares
kmake() {
	local arch=$1 dir=$2 out=$3 cross
	shift 3
	cross=$(cross_prefix "$arch")
	CCACHE_DIR=$cache/ccache CCACHE_NOHASHDIR=1 CCACHE_DEPEND=1 CCACHE_MAXSIZE=10G \
		LOCALVERSION="" KBUILD_BUILD_TIMESTAMP=0 \
		KBUILD_BUILD_USER=user KBUILD_BUILD_HOST=host \
		make -C "$dir" O="$out" ARCH="$arch" CROSS_COMPILE="$cross" \
		CC="ccache ${cross}gcc" -j"$jobs" "$@"
}

# fragment_files ARCH [FRAGMENT...]: the files of a kernel's options; the later one counts
fragment_files() {
	local fragment
	for fragment in common "$@"; do
		echo "$top/configs/$fragment.config"
	done
}

# configure ARCH TREE O-DIR FILE...: tinyconfig and the options of the files
configure() {
	local arch=$1 dir=$2 out=$3
	shift 3
	mkdir -p "$out"
	kmake "$arch" "$dir" "$out" tinyconfig &&
		(cd "$dir" && scripts/kconfig/merge_config.sh -m -O "$out" "$out/.config" "$@") &&
		kmake "$arch" "$dir" "$out" olddefconfig
}

# logged NAME COMMAND...: runs it with its output in a log file; says where it
# stands every half minute, and shows the end of the log when it fails
logged() {
	local name=$1 log=$cache/log/$1.log status=0 ticker
	shift
	mkdir -p "$cache/log"
	say "$name ..."
	(
		trap 'kill $!; exit' TERM
		while sleep 30 & wait $!; do
			say "$name: $(wc -l <"$log") lines, last: $(tail -n 1 "$log" | cut -c1-70)"
		done
	) 9>&- &
	ticker=$!
	# shellcheck disable=SC2064
	trap "kill $ticker 2>/dev/null" EXIT
	"$@" >"$log" 2>&1 || status=$?
	kill $ticker 2>/dev/null || true
	wait $ticker 2>/dev/null || true
	trap - EXIT
	if [ $status -ne 0 ]; then
		tail -n 25 "$log" >&2
		DIE_STATUS=${FAIL_STATUS:-1} die "$name failed (status $status)" "read $log"
	fi
	say "$name done"
}

# One run at a time works in the cache; scripts started by the holder share it.
take_lock() {
	[ -z "${LP_LOCKED:-}" ] || return 0
	mkdir -p "$cache"
	exec 9<>"$cache/lock"
	flock -n 9 || die "another run (process $(cat "$cache/lock")) is using $cache" \
		"wait for it, or give this one a cache of its own: XDG_CACHE_HOME=DIR $(basename "$0")"
	: >"$cache/lock"
	echo $$ >&9
	export LP_LOCKED=$$
}

# A series is what one person posts as one thread: patches/TOPIC/SERIES, a heading
# TOPIC/SERIES in the file 'series', and a branch of that name in the tree.

# series_patches [NAME]: the patch files in order, relative to the top
series_patches() {
	grep -v '^#' "$top/series" | grep "^patches/${1:-[^/]*/[^/]*}/" || true
}

# id of what the series would apply
series_id() {
	{ cat "$top/series"; series_patches | (cd "$top" && xargs -r cat); } | sha256sum
}

series_names() {
	sed -n 's/^# //p' "$top/series"
}

check_series() { # check_series NAME
	series_names | grep -qxF -- "$1" || die "there is no series '$1'" "one of: $(series_names | xargs)"
}

# series_before NAME: the branch or tag that the branch of NAME stands on
series_before() {
	local name previous=base
	for name in $(series_names); do
		[ "$name" != "$1" ] || break
		previous=$name
	done
	echo "$previous"
}

# cover_text NAME: what people wrote of its cover letter; scripts/export adds the rest
generated_part='Shortlog and diffstat:'
cover_text() {
	sed "/^$generated_part\$/,\$d" "$top/patches/$1/0000-cover-letter.txt"
}

# depends_on NAME: what its cover letter says after 'Depends on:', and what that
# depends on, in the order of 'series'
depends_on() {
	local name all
	all=" $(direct_dependencies "$1") "
	for name in $(series_names | tac); do
		[[ $all != *" $name "* ]] || all+="$(direct_dependencies "$name") "
	done
	for name in $(series_names); do
		[[ $all != *" $name "* ]] || echo "$name"
	done
}

direct_dependencies() {
	awk '/^Depends on:/ { on = 1; sub(/^Depends on:/, "") } on && /^$/ { exit } on' \
		"$top/patches/$1/0000-cover-letter.txt" | { grep -oE '[a-z0-9-]+/[a-z0-9-]+' || true; } | xargs
}

# id of what a tree holds: the same content, the same id
tree_id() {
	git -C "$(tree_dir "$1")" rev-parse 'HEAD^{tree}'
}

# What a check found, one line each; scripts/test counts these lines.
passed() { printf 'ok: %s\n' "$*"; }
failed() { printf 'FAILED: %s\n' "$*"; }
skipped() { printf 'skipped: %s\n' "$*"; }

# verdict NAME COMMAND...: passed or failed by the command's status; a failing
# command's output is shown
verdict() {
	local name=$1 output status=0
	shift
	output=$("$@" 2>&1) || status=$?
	if [ $status -eq 0 ]; then
		passed "$name"
	else
		printf '%s\n' "$output" | tail -n 40
		failed "$name"
	fi
}
