# shellcheck shell=bash disable=SC2154
# Builds each patch by itself, and each series on what it depends on; part of
# scripts/check, which sets linux, work, minutes and full. Sourced, never run.

patch_build_dir() { # patch_build_dir ARCH
	build_dir "$1" check debug ${full:+compile-only}
}

# What of the kernel may include the files that change between two commits. Make
# works out which objects to compile again; these are only where it looks.
targets() { # targets FROM TO
	git -C "$work" diff-tree -r --name-only "$1" "$2" | awk '
		/^(mm|fs|ipc|kernel|io_uring|virt|lib)\// { split($0, p, "/"); t[p[1] "/"] = 1 }
		/^arch\// { split($0, p, "/"); t["arch/" p[2] "/"] = 1; t["mm/"] = 1 }
		/^(include|arch\/[^\/]*\/include)\// { t["./"] = 1 }
		END { if ("./" in t) print "./"; else for (d in t) print d }' | xargs
}

# warnings COMMIT ARCH FILE...: what W=1, sparse and kernel-doc say of the files,
# without line numbers, which move
warnings() {
	local commit=$1 arch=$2 out file
	out=$(patch_build_dir "$2")
	shift 2
	git -C "$work" checkout -q -f --detach "$commit" || return 1
	for file; do
		[ -e "$work/$file" ] || continue
		rm -f "$out/${file%.c}.o"
		kmake "$arch" "$work" "$out" W=1 C=1 "${file%.c}.o" 2>&1 || echo "$file does not build"
	done | grep -E 'warning|error|does not build' | sed -E 's/:[0-9]+(:[0-9]+)?:/:/' | sort
}

adds_no_warning() { # adds_no_warning FROM TO ARCH
	local files old new
	mapfile -t files < <(git -C "$work" diff-tree -r --name-only "$1" "$2" -- 'mm/*.c' 'fs/*.c' 'kernel/*.c' "arch/${3%_64}/*.c")
	[ ${#files[@]} -gt 0 ] || return 0
	old=$(warnings "$1" "$3" "${files[@]}")
	new=$(warnings "$2" "$3" "${files[@]}")
	new=$(comm -13 <(echo "$old") <(echo "$new"))
	[ -z "$new" ] || {
		echo "new warnings:"
		echo "$new"
		return 1
	}
}

build_selftests() {
	make -s -C "$work" O="$work/build-kselftest" ARCH=x86 headers_install &&
		make -s -C "$work/tools/testing/selftests" O="$work/build-kselftest" TARGETS=mm \
			EXTRA_CFLAGS=-Werror
}

# build_change FROM TO ARCH: TO, where it differs from FROM
build_change() {
	local out status=0 what
	out=$(patch_build_dir "$3")
	what=$(targets "$1" "$2")
	git -C "$work" checkout -q -f --detach "$2"
	if [ -n "$what" ]; then
		# shellcheck disable=SC2086 # a list of targets
		kmake "$3" "$work" "$out" $what || status=125
		[ -z "$full" ] || adds_no_warning "$1" "$2" "$3" || status=1
	fi
	if [ $status = 0 ] && [ "$3" = x86_64 ] &&
		! git -C "$work" diff-tree --quiet "$1" "$2" -- tools/testing/selftests/mm; then
		build_selftests || status=125
	fi
	return $status
}

# build_id FROM TO: names all that the build of TO depends on; the selftests are
# built where they differ
build_id() {
	if git -C "$linux" diff-tree --quiet "$1" "$2" -- tools/testing; then
		{ git -C "$linux" ls-tree "$2" && git -C "$linux" ls-tree "$2:tools"; } |
			awk -F'\t' '$2 != "tools" && $2 != "testing"' | git hash-object --stdin
	else
		git -C "$linux" rev-parse "$2^{tree}"
	fi
}

archs_of() { # archs_of FROM TO: those that it is built for
	echo x86_64
	! git -C "$linux" diff-tree -r --name-only "$1" "$2" |
		grep -qE '^arch/arm64/|^mm/hugetlb_vmemmap' || echo arm64
}

# The first build of a run finds the kernel of COMMIT built: the one of the guests,
# mostly from the compiler cache, or with --full, which has to build all that includes
# a header more often, one without what configs/compile-only.config leaves out.
prepare_build() { # prepare_build ARCH COMMIT
	local out files
	out=$(patch_build_dir "$1")
	[ ! -e "$out/config.id" ] || return 0
	git -C "$work" checkout -q -f --detach "$2"
	if [ -z "$full" ]; then
		"$top/scripts/build" "$1" check --config debug >/dev/null
		return
	fi
	mapfile -t files < <(fragment_files "$1" debug compile-only)
	(logged "patches-$1-config" configure "$1" "$work" "$out" "${files[@]}") &&
		(logged "patches-$1" kmake "$1" "$work" "$out" vmlinux modules) &&
		touch "$out/config.id"
}

# build_once FROM TO WHAT: builds TO, unless it was built before or time is up
build_once() {
	local arch id
	for arch in $(archs_of "$1" "$2"); do
		id=$(build_id "$1" "$2")-$arch
		if [ -e "$cache/passed/$id-full" ] || { [ -z "$full" ] && [ -e "$cache/passed/$id" ]; }; then
			passed "builds ($arch): $3"
		elif [ $SECONDS -ge "$deadline" ]; then
			skipped "builds ($arch), out of time: $3"
		elif prepare_build "$arch" "$2" && (logged "build-patch-$arch" build_change "$1" "$2" "$arch"); then
			touch "$cache/passed/$id${full:+-full}"
			passed "builds ($arch): $3"
		else
			failed "builds ($arch): $3"
		fi
	done
}

# From the last patch, which is what the guests boot and so is in the compiler
# cache, to the first, where the series that stand on the base alone begin.
build_patches() {
	local commit name dependencies deadline=$((SECONDS + minutes * 60))
	for commit in $(git -C "$linux" rev-list base..HEAD); do
		build_once "$commit^" "$commit" "$(git -C "$linux" log -1 --format=%s "$commit")"
	done
	for name in $(series_names); do
		mapfile -t dependencies < <(depends_on "$name")
		if apply "${dependencies[@]}" "$name"; then
			build_once base "$(git -C "$work" rev-parse HEAD)" "$name, on what it depends on"
		else
			failed "builds: $name does not apply to what it depends on"
		fi
	done
}
