// SPDX-License-Identifier: GPL-2.0
/*
 * Migration of anonymous large folios must not change what the kernel knows
 * about how they are mapped: a fully mapped folio is not queued for deferred
 * split and not counted as partially mapped, a partially mapped one is.
 *
 * Nor must it forget that the folio was accessed.
 *
 * Each test loops over all sizes of anonymous THP that the kernel offers.
 */

#include <pthread.h>
#include <stdatomic.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include "../../../../mm/gup_test.h"
#include "folio_region.h"

#define TIMEOUT		900
#define ROUNDS		5
#define MAX_ROUNDS	25
#define SPLIT_TRIES	10

FIXTURE(folio_migrate)
{
	struct folio_env env;
};

FIXTURE_SETUP(folio_migrate)
{
	const char *why = folio_env_init(&self->env);

	if (why)
		SKIP(return, "%s", why);
	if (self->env.node2 < 0)
		SKIP(return, "needs two NUMA nodes with memory to use");
}

FIXTURE_TEARDOWN(folio_migrate)
{
	thp_restore_settings();
}

/* Move all folios to @node. Returns how many are not there. */
static int region_move(struct region *r, int node, int flags, int tries)
{
	void *pages[MAX_FOLIOS];
	int nodes[MAX_FOLIOS];
	int status[MAX_FOLIOS];
	int i, left = r->nr;

	for (i = 0; i < r->nr; i++) {
		pages[i] = r->mem + i * r->size;
		nodes[i] = node;
	}
	/* Migration is best effort: try again, unless it is meant to fail. */
	while (left && tries--) {
		if (move_pages(0, r->nr, pages, nodes, status, flags) < 0)
			return -1;
		if (move_pages(0, r->nr, pages, NULL, status, 0) < 0)
			return -1;
		for (left = 0, i = 0; i < r->nr; i++)
			left += status[i] != node;
	}
	return left;
}

/* The folios are as they were when they were allocated. */
static void expect_unchanged(struct __test_metadata *_metadata,
			     struct region *r, const char *after)
{
	struct folio_stats now = read_stats(r->size);

	EXPECT_EQ(now.partially_mapped, r->full.partially_mapped) {
		TH_LOG("%zukB: %ld of %d fully mapped folios count as partially mapped after %s",
		       r->size >> 10,
		       now.partially_mapped - r->full.partially_mapped, r->nr,
		       after);
	}
	EXPECT_EQ(now.split_deferred, r->full.split_deferred) {
		TH_LOG("%zukB: %d fully mapped folios were queued for split %ld times by %s",
		       r->size >> 10, r->nr,
		       now.split_deferred - r->full.split_deferred, after);
	}
	EXPECT_EQ(now.nr_anon, r->full.nr_anon) {
		TH_LOG("%zukB: %ld of %d fully mapped folios were split by %s",
		       r->size >> 10, r->full.nr_anon - now.nr_anon, r->nr,
		       after);
	}
}

/* The shrinker leaves the folios alone. */
static void expect_kept(struct __test_metadata *_metadata,
			FIXTURE_DATA(folio_migrate) * self, struct region *r)
{
	int left;

	shrink();
	shrink();
	left = count_folios(&self->env, r);
	EXPECT_EQ(left, r->nr) {
		TH_LOG("%zukB: the shrinker split %d of %d fully mapped folios",
		       r->size >> 10, r->nr - left, r->nr);
	}
}

/* The folios are all partially mapped, and have not been split. */
static void expect_partially_mapped(struct __test_metadata *_metadata,
				    struct region *r, const char *after)
{
	long nr = read_stat(r->size, "nr_anon_partially_mapped") -
		  r->full.partially_mapped;

	EXPECT_EQ(nr, r->nr) {
		TH_LOG("%zukB: %ld of %d partially mapped folios are counted after %s",
		       r->size >> 10, nr, r->nr, after);
	}
}

/* The folios are all partially mapped: the shrinker splits what is not yet. */
static void expect_split(struct __test_metadata *_metadata, struct region *r,
			 const char *after)
{
	struct folio_stats now;
	int tries;

	for (tries = 0; tries < 10; tries++) {
		shrink();
		now = read_stats(r->size);
		if (now.nr_anon == r->empty.nr_anon)
			break;
	}
	EXPECT_EQ(now.nr_anon, r->empty.nr_anon) {
		TH_LOG("%zukB: %ld of %d partially mapped folios are never split after %s",
		       r->size >> 10, now.nr_anon - r->empty.nr_anon, r->nr,
		       after);
	}
	EXPECT_EQ(now.partially_mapped, r->empty.partially_mapped) {
		TH_LOG("%zukB: %ld partially mapped folios are counted, none is left",
		       r->size >> 10,
		       now.partially_mapped - r->empty.partially_mapped);
	}
}

/* Move there, and back, and see that nothing but the place changed. */
static void check_fully_mapped(struct __test_metadata *_metadata,
			       FIXTURE_DATA(folio_migrate) * self,
			       struct region *r, int flags)
{
	EXPECT_EQ(region_move(r, self->env.node2, flags, 5), 0);
	expect_unchanged(_metadata, r, "migration");
	expect_kept(_metadata, self, r);
	EXPECT_EQ(region_move(r, self->env.node1, flags, 5), 0);
	expect_unchanged(_metadata, r, "a second migration");
	expect_kept(_metadata, self, r);
	expect_contents(_metadata, r);
}

/* All sizes; that of a PMD is mapped by one. */
TEST_F_TIMEOUT(folio_migrate, fully_mapped, TIMEOUT)
{
	struct region r;
	int i, tested = 0;

	for (i = 0; i < self->env.nr_sizes; i++) {
		if (!region_alloc(&self->env, &r, self->env.sizes[i], 0))
			continue;
		check_fully_mapped(_metadata, self, &r, MPOL_MF_MOVE);
		region_free(&r);
		tested++;
	}
	if (!tested)
		SKIP(return, "no folios of any size");
}

/* The size of a PMD, but mapped by PTEs. */
TEST_F_TIMEOUT(folio_migrate, fully_mapped_by_ptes, TIMEOUT)
{
	struct region r;
	char *page;
	int i;

	if (!self->env.pmd_size ||
	    self->env.sizes[self->env.nr_sizes - 1] != self->env.pmd_size)
		SKIP(return, "no folios of PMD size");
	if (!region_alloc(&self->env, &r, self->env.pmd_size, 0))
		SKIP(return, "no folios of PMD size");

	for (i = 0; i < r.nr; i++) {
		page = r.mem + i * r.size;
		ASSERT_EQ(mprotect(page, psize(), PROT_READ), 0);
		ASSERT_EQ(mprotect(page, psize(), PROT_READ | PROT_WRITE), 0);
	}
	expect_unchanged(_metadata, &r, "mprotect");
	check_fully_mapped(_metadata, self, &r, MPOL_MF_MOVE);
	region_free(&r);
}

/* A folio that is mapped by two page tables. */
TEST_F_TIMEOUT(folio_migrate, fully_mapped_by_two_tables, TIMEOUT)
{
	size_t len, pmd_size = self->env.pmd_size;
	struct region r, to;
	int i, tested = 0;

	if (!pmd_size)
		SKIP(return, "size of a PMD not known");

	for (i = 0; i < self->env.nr_sizes; i++) {
		if (!region_alloc(&self->env, &r, self->env.sizes[i], 0))
			continue;

		len = r.nr * r.size;
		to = r;
		to.map_len = len + 3 * pmd_size;
		to.map = mmap(NULL, to.map_len, PROT_NONE,
			      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		ASSERT_NE(to.map, MAP_FAILED);
		to.mem = align_up(to.map + pmd_size, pmd_size) - r.size / 2;
		ASSERT_EQ(mremap(r.mem, len, len, MREMAP_MAYMOVE | MREMAP_FIXED,
				 to.mem), to.mem);

		expect_unchanged(_metadata, &to, "mremap");
		check_fully_mapped(_metadata, self, &to, MPOL_MF_MOVE);
		region_free(&to);
		region_free(&r);
		tested++;
	}
	if (!tested)
		SKIP(return, "no folios of any size");
}

/*
 * A reference to one page lets migration fail, after all of the folio was
 * unmapped.
 */
TEST_F_TIMEOUT(folio_migrate, failed_by_reference, TIMEOUT)
{
	int fds[2], i, tested = 0;
	struct region r;

	for (i = 0; i < self->env.nr_sizes; i++) {
		if (!region_alloc(&self->env, &r, self->env.sizes[i], 0))
			continue;

		ASSERT_EQ(hold_folios(&r, fds), 0);
		EXPECT_EQ(region_move(&r, self->env.node2, MPOL_MF_MOVE, 1), r.nr) {
			TH_LOG("%zukB: folios with references were moved",
			       r.size >> 10);
		}
		expect_unchanged(_metadata, &r, "a failed migration");
		release_folios(fds);

		expect_kept(_metadata, self, &r);
		check_fully_mapped(_metadata, self, &r, MPOL_MF_MOVE);
		region_free(&r);
		tested++;
	}
	if (!tested)
		SKIP(return, "no folios of any size");
}

/*
 * What differs from page to page, in runs of RUN pages and one of a single page:
 * whether it can be written without a fault, is soft-dirty, or is protected by a
 * userfaultfd.
 */
#define RUN		4
#define ODD_ONE_OUT	1
#define PAGE_STATE	(PM_SOFT_DIRTY | PM_UFFD_WP | PM_MMAP_EXCLUSIVE | \
			 PM_SWAP | PM_PRESENT)

enum page_kind {
	WRITTEN,	/* exclusive, and writable */
	SHARED,		/* with a child: neither */
	PROTECTED,	/* the same, and protected by a userfaultfd */
	NR_KINDS,
};

static enum page_kind page_kind(int page)
{
	return page == ODD_ONE_OUT ? SHARED : page / RUN % NR_KINDS;
}

static int nr_pages(struct region *r)
{
	return r->nr * r->size / psize();
}

static long minor_faults(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return usage.ru_minflt;
}

static int protect_range(int uffd, struct region *r)
{
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = UFFD_FEATURE_PAGEFAULT_FLAG_WP,
	};
	struct uffdio_register reg = {
		.range = { (unsigned long)r->mem, r->nr * r->size },
		.mode = UFFDIO_REGISTER_MODE_WP,
	};

	if (ioctl(uffd, UFFDIO_API, &api) || ioctl(uffd, UFFDIO_REGISTER, &reg))
		return -1;
	return 0;
}

static int protect_page(int uffd, char *page)
{
	struct uffdio_writeprotect wp = {
		.range = { (unsigned long)page, psize() },
		.mode = UFFDIO_WRITEPROTECT_MODE_WP,
	};

	return ioctl(uffd, UFFDIO_WRITEPROTECT, &wp);
}

/* Write to the pages of a kind. Returns how many faults it took. */
static long write_pages(struct region *r, enum page_kind kind)
{
	long before = minor_faults();
	int i;

	for (i = 0; i < nr_pages(r); i++) {
		char *page = r->mem + (size_t)i * psize();

		if (page_kind(i) == kind)
			*page = pattern(r, page);
	}
	return minor_faults() - before;
}

static int count_kind(struct region *r, enum page_kind kind)
{
	int i, count = 0;

	for (i = 0; i < nr_pages(r); i++)
		count += page_kind(i) == kind;
	return count;
}

static uint64_t page_state(FIXTURE_DATA(folio_migrate) * self,
			   struct region *r, int page)
{
	return pagemap_get_entry(self->env.pagemap_fd,
				 r->mem + (size_t)page * psize()) & PAGE_STATE;
}

static int advise_pages(struct region *r, enum page_kind kind, int advice)
{
	int i;

	for (i = 0; i < nr_pages(r); i++) {
		if (page_kind(i) == kind &&
		    madvise(r->mem + (size_t)i * psize(), psize(), advice))
			return -1;
	}
	return 0;
}

/*
 * Make the pages different, and remember what pagemap says of them. @uffd may
 * be -1. Where the region is to be read only, the PTEs are the same, but some of
 * the pages are exclusive. A child has the others until end_child(@fds). Returns
 * its PID, or -1.
 */
static pid_t mix_pages(FIXTURE_DATA(folio_migrate) * self, struct region *r,
		       int uffd, bool read_only, uint64_t *states, int fds[2])
{
	pid_t pid;
	int i;

	if (advise_pages(r, WRITTEN, MADV_DONTFORK))
		return -1;
	pid = fork_child(fds);
	if (pid < 0 || advise_pages(r, WRITTEN, MADV_DOFORK))
		return -1;
	if (!read_only)
		clear_softdirty();
	write_pages(r, WRITTEN);
	for (i = 0; i < nr_pages(r) && uffd >= 0; i++) {
		if (page_kind(i) == PROTECTED &&
		    protect_page(uffd, r->mem + (size_t)i * psize()))
			return -1;
	}
	if (read_only && mprotect(r->mem, r->nr * r->size, PROT_READ))
		return -1;
	for (i = 0; i < nr_pages(r); i++)
		states[i] = page_state(self, r, i);
	return pid;
}

static void expect_states(struct __test_metadata *_metadata,
			  FIXTURE_DATA(folio_migrate) * self, struct region *r,
			  uint64_t *states)
{
	int i, wrong = 0;

	for (i = 0; i < nr_pages(r); i++) {
		uint64_t now = page_state(self, r, i);

		if (now != states[i] && !wrong++)
			TH_LOG("%zukB: page %d was %#llx, is %#llx",
			       r->size >> 10, i, (unsigned long long)states[i],
			       (unsigned long long)now);
	}
	EXPECT_EQ(wrong, 0) {
		TH_LOG("%zukB: %d of %d pages are not what they were",
		       r->size >> 10, wrong, nr_pages(r));
	}
}

/* Page by page, migration changes nothing but the place. */
static void check_pages(struct __test_metadata *_metadata,
			FIXTURE_DATA(folio_migrate) * self, struct region *r,
			bool read_only)
{
	const int nodes[] = { self->env.node2, self->env.node1 };
	uint64_t *states = calloc(nr_pages(r), sizeof(*states));
	int fds[2], i, uffd = -1;
	pid_t pid;

	ASSERT_NE(states, NULL);
	/* No faults of NUMA balancing while they are counted. */
	ASSERT_EQ(set_mempolicy(MPOL_LOCAL, NULL, 0), 0);
	if (!read_only)
		uffd = syscall(__NR_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
	if (uffd >= 0 && protect_range(uffd, r)) {
		close(uffd);
		uffd = -1;
	}
	if (!read_only && uffd < 0)
		ksft_print_msg("no userfaultfd: protected pages are not tested\n");

	pid = mix_pages(self, r, uffd, read_only, states, fds);
	ASSERT_GT(pid, 0);
	for (i = 0; i < 2; i++) {
		EXPECT_EQ(region_move(r, nodes[i], MPOL_MF_MOVE_ALL, 5), 0);
		EXPECT_EQ(count_folios(&self->env, r), r->nr);
		expect_states(_metadata, self, r, states);
	}
	expect_contents(_metadata, r);

	/* What could be written still can, and nothing else. */
	if (read_only)
		ASSERT_EQ(mprotect(r->mem, r->nr * r->size,
				   PROT_READ | PROT_WRITE), 0);
	EXPECT_EQ(write_pages(r, WRITTEN), 0) {
		TH_LOG("%zukB: pages are not exclusive any more",
		       r->size >> 10);
	}
	EXPECT_EQ(write_pages(r, SHARED), count_kind(r, SHARED)) {
		TH_LOG("%zukB: shared pages can be written",
		       r->size >> 10);
	}
	EXPECT_TRUE(end_child(pid, fds));
	if (uffd >= 0)
		close(uffd);
	free(states);
}

static void pages_test(struct __test_metadata *_metadata,
		       FIXTURE_DATA(folio_migrate) * self, bool read_only)
{
	struct region r;
	int i, tested = 0;

	for (i = 0; i < self->env.nr_sizes; i++) {
		/* Not mapped by PMDs. */
		if (self->env.sizes[i] == self->env.pmd_size ||
		    self->env.sizes[i] < 2 * RUN * psize())
			continue;
		if (!region_alloc(&self->env, &r, self->env.sizes[i], 4))
			continue;
		check_pages(_metadata, self, &r, read_only);
		region_free(&r);
		tested++;
	}
	if (!tested)
		SKIP(return, "no folios of any size");
}

TEST_F_TIMEOUT(folio_migrate, pages_keep_their_state, TIMEOUT)
{
	pages_test(_metadata, self, false);
}

TEST_F_TIMEOUT(folio_migrate, read_only_pages_keep_their_state, TIMEOUT)
{
	pages_test(_metadata, self, true);
}

/* What CPUs have not put on the LRU yet is counted before, so nothing is missing. */
static long mlocked_bytes(FIXTURE_DATA(folio_migrate) * self)
{
	static char page = 1;
	void *pages[] = { &page };
	int nodes[] = { self->env.node1 }, status;

	/* move_pages() has all CPUs put folios where they belong. */
	move_pages(0, 1, pages, nodes, &status, MPOL_MF_MOVE);
	return read_vmstat("nr_mlock") * (long)psize();
}

/* Folios of which all pages are in memory that is locked stay out of reclaim. */
TEST_F_TIMEOUT(folio_migrate, mlocked, TIMEOUT)
{
	int i, tested = 0;
	struct region r;
	long before;

	for (i = 0; i < self->env.nr_sizes; i++) {
		before = mlocked_bytes(self);
		if (!region_alloc(&self->env, &r, self->env.sizes[i], 0))
			continue;
		ASSERT_EQ(mlock(r.mem, r.nr * r.size), 0);
		EXPECT_EQ(mlocked_bytes(self) - before, r.nr * r.size);
		EXPECT_EQ(region_move(&r, self->env.node2, MPOL_MF_MOVE, 5), 0);
		EXPECT_EQ(mlocked_bytes(self) - before, r.nr * r.size) {
			TH_LOG("%zukB: folios are not mlocked after migration",
			       r.size >> 10);
		}
		region_free(&r);
		EXPECT_EQ(mlocked_bytes(self), before);
		tested++;
	}
	if (!tested)
		SKIP(return, "no folios of any size");
}

/*
 * A pinned page lets it fail when part of the folio was unmapped already: only
 * a page that is exclusive to one process needs to be checked for pins, and
 * the first half is shared with a child.
 */
TEST_F_TIMEOUT(folio_migrate, failed_by_pin, TIMEOUT)
{
	struct pin_longterm_test args = {};
	int gup_fd, fds[2], i, tested = 0;
	struct region r;
	char *half;
	pid_t pid;

	gup_fd = open("/sys/kernel/debug/gup_test", O_RDWR);
	if (gup_fd < 0)
		SKIP(return, "no gup_test");

	for (i = 0; i < self->env.nr_sizes; i++) {
		if (!region_alloc(&self->env, &r, self->env.sizes[i], 0))
			continue;

		half = r.mem + r.size / 2;
		ASSERT_EQ(madvise(half, r.size / 2, MADV_DONTFORK), 0);
		pid = fork_child(fds);
		ASSERT_GE(pid, 0);

		args.addr = (unsigned long)half;
		args.size = psize();
		args.flags = PIN_LONGTERM_TEST_FLAG_USE_WRITE;
		ASSERT_EQ(ioctl(gup_fd, PIN_LONGTERM_TEST_START, &args), 0);
		EXPECT_GE(region_move(&r, self->env.node2, MPOL_MF_MOVE_ALL, 1), 1) {
			TH_LOG("%zukB: a folio with a pinned page was moved",
			       r.size >> 10);
		}
		expect_unchanged(_metadata, &r, "a failed migration");
		ASSERT_EQ(ioctl(gup_fd, PIN_LONGTERM_TEST_STOP), 0);

		expect_kept(_metadata, self, &r);
		ASSERT_TRUE(end_child(pid, fds));
		check_fully_mapped(_metadata, self, &r, MPOL_MF_MOVE);
		region_free(&r);
		tested++;
	}
	close(gup_fd);
	if (!tested)
		SKIP(return, "no folios of any size");
}

/*
 * Two processes map the folios; then one of them drops half, and the folios
 * are still fully mapped; then it exits and the other one drops half.
 */
TEST_F_TIMEOUT(folio_migrate, shared, TIMEOUT)
{
	int fds[2], i, tested = 0;
	struct region r;
	pid_t pid;

	for (i = 0; i < self->env.nr_sizes; i++) {
		if (!region_alloc(&self->env, &r, self->env.sizes[i], 0))
			continue;

		pid = fork_child(fds);
		ASSERT_GE(pid, 0);
		check_fully_mapped(_metadata, self, &r, MPOL_MF_MOVE_ALL);
		ASSERT_TRUE(end_child(pid, fds));

		pid = fork_child_drop(fds, &r, r.size / 2);
		ASSERT_GE(pid, 0);
		expect_unchanged(_metadata, &r, "partial unmap by one of two");
		check_fully_mapped(_metadata, self, &r, MPOL_MF_MOVE_ALL);
		ASSERT_TRUE(end_child(pid, fds));

		check_fully_mapped(_metadata, self, &r, MPOL_MF_MOVE);
		ASSERT_EQ(region_drop(&r, r.size / 2), 0);
		expect_partially_mapped(_metadata, &r, "partial unmap");
		expect_split(_metadata, &r, "partial unmap");
		region_free(&r);
		tested++;
	}
	if (!tested)
		SKIP(return, "no folios of any size");
}

/* What is partially mapped is split, by migration or by the shrinker. */
TEST_F_TIMEOUT(folio_migrate, partially_mapped_before, TIMEOUT)
{
	struct region r;
	int i, tested = 0;

	for (i = 0; i < self->env.nr_sizes; i++) {
		if (!region_alloc(&self->env, &r, self->env.sizes[i], 0))
			continue;
		ASSERT_EQ(region_drop(&r, psize()), 0);
		expect_partially_mapped(_metadata, &r, "partial unmap");
		EXPECT_EQ(region_move(&r, self->env.node2, MPOL_MF_MOVE, 5), 0);
		expect_split(_metadata, &r, "migration");
		region_free(&r);
		tested++;
	}
	if (!tested)
		SKIP(return, "no folios of any size");
}

/* It stays known as partially mapped where migration fails. */
TEST_F_TIMEOUT(folio_migrate, partially_mapped_failed, TIMEOUT)
{
	int fds[2], i, tested = 0;
	struct region r;

	for (i = 0; i < self->env.nr_sizes; i++) {
		if (!region_alloc(&self->env, &r, self->env.sizes[i], 0))
			continue;

		ASSERT_EQ(hold_folios(&r, fds), 0);
		ASSERT_EQ(region_drop(&r, psize()), 0);
		EXPECT_EQ(region_move(&r, self->env.node2, MPOL_MF_MOVE, 1), r.nr);
		expect_partially_mapped(_metadata, &r, "a failed migration");
		release_folios(fds);
		expect_split(_metadata, &r, "a failed migration");
		region_free(&r);
		tested++;
	}
	if (!tested)
		SKIP(return, "no folios of any size");
}

/* A folio that was migrated is seen to be partially mapped as any other. */
TEST_F_TIMEOUT(folio_migrate, partially_mapped_after, TIMEOUT)
{
	struct region r;
	int i, j, tested = 0;

	for (i = 0; i < self->env.nr_sizes; i++) {
		if (!region_alloc(&self->env, &r, self->env.sizes[i], 0))
			continue;
		EXPECT_EQ(region_move(&r, self->env.node2, MPOL_MF_MOVE, 5), 0);
		for (j = 0; j < r.nr; j++)
			ASSERT_EQ(munmap(r.mem + j * r.size, r.size / 2), 0);
		expect_partially_mapped(_metadata, &r, "partial unmap");
		expect_split(_metadata, &r, "partial unmap");
		region_free(&r);
		tested++;
	}
	if (!tested)
		SKIP(return, "no folios of any size");
}

/*
 * A folio is unmapped as for migration also where it is split. What is still
 * large after that, and partially mapped, must not be lost to the shrinker.
 */
TEST_F_TIMEOUT(folio_migrate, partially_mapped_split, TIMEOUT)
{
	const size_t size = 4 * psize();
	long nr_anon, partially_mapped, now;
	struct region r;
	FILE *file;
	int i, tries, tested = 0;

	file = fopen("/sys/kernel/debug/split_huge_pages", "w");
	if (!file || self->env.sizes[0] != size)
		SKIP(return, "cannot split to folios of %zukB", size >> 10);
	setlinebuf(file);

	for (i = 1; i < self->env.nr_sizes; i++) {
		nr_anon = read_stat(size, "nr_anon");
		partially_mapped = read_stat(size, "nr_anon_partially_mapped");
		if (!region_alloc(&self->env, &r, self->env.sizes[i], 0))
			continue;
		/* The last of the small ones is partially mapped. */
		ASSERT_EQ(region_drop(&r, psize()), 0);
		nr_anon += r.nr * (r.size / size);
		/* A temporary reference makes a split fail: try again. */
		for (tries = 0; tries < SPLIT_TRIES; tries++) {
			ASSERT_GT(fprintf(file, "%d,%p,%p,%d\n", getpid(),
					  r.mem, r.mem + r.nr * r.size,
					  sz2ord(size, psize())), 0);
			now = read_stat(size, "nr_anon");
			if (now == nr_anon)
				break;
		}
		ASSERT_EQ(now, nr_anon) {
			TH_LOG("%zukB: %ld folios of %zukB after split, should be %ld",
			       r.size >> 10, now, size >> 10, nr_anon);
		}

		now = read_stat(size, "nr_anon_partially_mapped");
		EXPECT_EQ(now, partially_mapped + r.nr) {
			TH_LOG("%zukB: %ld of %d partially mapped folios are counted after split",
			       r.size >> 10, now - partially_mapped, r.nr);
		}
		shrink();
		shrink();
		now = read_stat(size, "nr_anon");
		EXPECT_EQ(now, nr_anon - r.nr) {
			TH_LOG("%zukB: %ld folios of %zukB are left, should be %ld",
			       r.size >> 10, now, size >> 10, nr_anon - r.nr);
		}
		region_free(&r);
		tested++;
	}
	fclose(file);
	if (!tested)
		SKIP(return, "no folios of any size");
}

/* How much of the region is marked as accessed, or -1. */
static long region_referenced(struct region *r)
{
	char start[32], line[512];
	long kb = -1;
	FILE *file;

	snprintf(start, sizeof(start), "%08lx-", (unsigned long)r->mem);
	file = fopen("/proc/self/smaps", "r");
	if (!file)
		return -1;
	if (!check_for_pattern(file, start, line, sizeof(line)) ||
	    !check_for_pattern(file, "Referenced:", line, sizeof(line)) ||
	    sscanf(line, "Referenced: %ld kB", &kb) != 1)
		kb = -1;
	fclose(file);
	return kb < 0 ? kb : kb << 10;
}

/*
 * Must migration entries keep accessed bits? On x86-64 there is no room for them
 * where PTEs are inverted because of L1TF.
 */
static bool keeps_accessed(void)
{
#if defined(__x86_64__)
	char text[64] = "";
	FILE *file = fopen("/sys/devices/system/cpu/vulnerabilities/l1tf", "r");

	if (!file)
		return false;
	if (!fgets(text, sizeof(text), file))
		text[0] = 0;
	fclose(file);
	if (strcmp(text, "Not affected\n"))
		return false;
#elif !defined(__aarch64__)
	return false;
#endif
	/* The room for them is found out together with that for swap entries. */
	return !access("/proc/swaps", F_OK);
}

/*
 * Not all architectures have room for accessed bits in migration entries: those
 * of PMD-mapped THPs and of all others are kept, or none.
 */
TEST_F_TIMEOUT(folio_migrate, accessed, TIMEOUT)
{
	int i, tested = 0;
	struct region r;
	bool supported;
	long len;

	if (!self->env.pmd_size ||
	    self->env.sizes[self->env.nr_sizes - 1] != self->env.pmd_size ||
	    !region_alloc(&self->env, &r, self->env.pmd_size, 0))
		SKIP(return, "no folios of PMD size");
	len = r.nr * r.size;
	ASSERT_GE(region_referenced(&r), len / 2) {
		TH_LOG("%ld of %ld bytes count as accessed before migration",
		       region_referenced(&r), len);
	}
	EXPECT_EQ(region_move(&r, self->env.node2, MPOL_MF_MOVE, 5), 0);
	/* Of a PMD that was split, nothing can be learned about PMDs. */
	ASSERT_EQ(read_stats(r.size).nr_anon, r.full.nr_anon);
	/* Somebody may have a look at a few: reclaim, DAMON. */
	supported = region_referenced(&r) >= len / 2;
	region_free(&r);
	EXPECT_TRUE(supported || !keeps_accessed()) {
		TH_LOG("PMDs do not count as accessed after migration");
	}
	if (!supported && __test_passed(_metadata))
		SKIP(return, "no accessed bits in migration entries");

	for (i = 0; self->env.sizes[i] != self->env.pmd_size; i++) {
		if (!region_alloc(&self->env, &r, self->env.sizes[i], 0))
			continue;
		len = r.nr * r.size;
		EXPECT_EQ(region_move(&r, self->env.node2, MPOL_MF_MOVE, 5), 0);
		EXPECT_GE(region_referenced(&r), len / 2) {
			TH_LOG("%zukB: only %ld of %ld bytes count as accessed after migration",
			       r.size >> 10, region_referenced(&r), len);
		}
		region_free(&r);
		tested++;
	}
	if (!tested && __test_passed(_metadata))
		SKIP(return, "no folios below the size of a PMD");
}

/*
 * Runs of pages, and single ones; but none of each second 128 pages, as up to so
 * many may have one accessed bit.
 */
static bool is_touched(int page)
{
	return page / 128 % 2 == 0 && (page % 8 < 3 || page % 8 == 5);
}

/* Pages of a folio are accessed, or not, one by one. */
TEST_F_TIMEOUT(folio_migrate, accessed_in_part, TIMEOUT)
{
	const int clear_refs = open("/proc/self/clear_refs", O_WRONLY);
	const int nodes[] = { self->env.node2, self->env.node1 };
	long before, after;
	struct region r;
	int i, n, tested = 0;

	ASSERT_GE(clear_refs, 0);
	for (i = 0; i < self->env.nr_sizes; i++) {
		const size_t size = self->env.sizes[i];

		if (size == self->env.pmd_size)
			continue;
		if (!region_alloc(&self->env, &r, size, 0))
			continue;
		ASSERT_EQ(write(clear_refs, "1", 1), 1);
		/* The TLB is to forget them, too. */
		ASSERT_EQ(mprotect(r.mem, r.nr * size, PROT_READ), 0);
		ASSERT_EQ(mprotect(r.mem, r.nr * size, PROT_READ | PROT_WRITE), 0);
		for (n = 0; n < nr_pages(&r); n++)
			if (is_touched(n))
				FORCE_READ(r.mem[(size_t)n * psize()]);
		before = region_referenced(&r);
		ASSERT_GT(before, 0);
		ASSERT_LT(before, r.nr * size);
		for (n = 0; n < ARRAY_SIZE(nodes); n++) {
			EXPECT_EQ(region_move(&r, nodes[n], MPOL_MF_MOVE, 5), 0);
			after = region_referenced(&r);
			EXPECT_TRUE(after || !keeps_accessed()) {
				TH_LOG("%zukB: none of %ld accessed bytes is left",
				       size >> 10, before);
			}
			if (!after && __test_passed(_metadata))
				SKIP(goto end, "no accessed bits in migration entries");
			/* Somebody may have a look at a few: reclaim, DAMON. */
			EXPECT_LE(after, before);
			EXPECT_GT(after, before / 4 * 3) {
				TH_LOG("%zukB: %ld of %ld accessed bytes are left",
				       size >> 10, after, before);
			}
		}
		region_free(&r);
		tested++;
	}
	if (!tested && __test_passed(_metadata))
		SKIP(goto end, "no folios below the size of a PMD");
end:
	close(clear_refs);
}

struct mover {
	struct region *r;
	int node;
	atomic_bool go;
	atomic_bool done;
};

static void *move_thread(void *arg)
{
	struct mover *m = arg;

	while (!m->go)
		;
	region_move(m->r, m->node, MPOL_MF_MOVE, 1);
	m->done = true;
	return NULL;
}

static bool not_mapped(FIXTURE_DATA(folio_migrate) * self, char *page)
{
	return pagemap_get_entry(self->env.pagemap_fd, page) & PM_SWAP;
}

/*
 * Drop half of each folio as soon as there are migration entries in its place.
 * No rmap is touched by that, so migration has to see it. Whenever it happens,
 * such a folio must not be lost to the shrinker.
 *
 * Migration entries are removed in the order of addresses: if there still is
 * one before that half, it was dropped in time; unless migration fails and is
 * tried again and it was mapped in between, but then dropping it queues the
 * folio. A size for which none was dropped in time is not tested.
 */
static void drop_during(struct __test_metadata *_metadata,
			FIXTURE_DATA(folio_migrate) * self, bool fail)
{
	int fds[2], i, j, round, met, tested = 0;
	long deferred, old_deferred;
	struct region r;
	pthread_t thread;
	bool entries;
	char *half;

	for (i = 0; i < self->env.nr_sizes; i++) {
		met = 0;
		for (round = 0; round < MAX_ROUNDS; round++) {
			struct mover m = { .r = &r, .node = self->env.node2 };

			if (met && round >= ROUNDS)
				break;
			if (!region_alloc(&self->env, &r, self->env.sizes[i], 0))
				break;
			if (fail)
				ASSERT_EQ(hold_folios(&r, fds), 0);
			ASSERT_EQ(pthread_create(&thread, NULL, move_thread,
						 &m), 0);
			deferred = r.full.split_deferred;
			m.go = true;
			/* The last is the longest without a mapping. */
			for (j = r.nr - 1; j >= 0; j--) {
				half = r.mem + j * r.size + r.size / 2;
				while (!m.done && !not_mapped(self, half))
					;
				ASSERT_EQ(madvise(half, r.size / 2,
						  MADV_DONTNEED), 0);
				entries = not_mapped(self, half - psize());
				old_deferred = deferred;
				deferred = read_stat(r.size, "split_deferred");
				met += entries && deferred == old_deferred;
			}
			ASSERT_EQ(pthread_join(thread, NULL), 0);
			if (fail)
				release_folios(fds);

			expect_split(_metadata, &r, fail ? "a failed migration" :
							   "migration");
			region_free(&r);
		}
		if (met) {
			ksft_print_msg("%zukB: dropped half of %d folios in migration\n",
				       self->env.sizes[i] >> 10, met);
			tested++;
		} else if (round) {
			ksft_print_msg("%zukB: met no folio in migration: not tested\n",
				       self->env.sizes[i] >> 10);
		}
	}
	/* A failure stays a failure. */
	if (!tested && __test_passed(_metadata))
		SKIP(return, "met no folio of any size in migration");
}

TEST_F_TIMEOUT(folio_migrate, partially_mapped_during, TIMEOUT)
{
	drop_during(_metadata, self, false);
}

TEST_F_TIMEOUT(folio_migrate, partially_mapped_during_failed, TIMEOUT)
{
	drop_during(_metadata, self, true);
}

TEST_HARNESS_MAIN
