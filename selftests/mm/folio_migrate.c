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

#include "kselftest_harness.h"

#include <numa.h>
#include <numaif.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <signal.h>
#include <unistd.h>

#include "../../../../mm/gup_test.h"
#include "hugepage_settings.h"
#include "vm_util.h"

#define THP_ENABLED	"/sys/kernel/mm/transparent_hugepage/enabled"
#define MAX_FOLIOS	16
#define MAX_BYTES	(16ul << 20)
#define TIMEOUT		900
#define ROUNDS		5
#define MAX_ROUNDS	25
#define SPLIT_TRIES	10

struct stats {
	long nr_anon;
	long partially_mapped;
	long split_deferred;
};

/* A number of folios of one size, wholly mapped and on the first node. */
struct region {
	size_t size;
	int nr;
	char *mem;
	char *map;
	size_t map_len;
	struct stats empty;	/* before the folios were allocated */
	struct stats full;	/* when they were all mapped */
};

FIXTURE(folio_migrate)
{
	size_t pmd_size;
	size_t sizes[NR_ORDERS];
	int nr_sizes;
	int node1;
	int node2;
	int pagemap_fd;
	int kpageflags_fd;
};

/*
 * Restored when the harness exits, however its children ended. Without root
 * nothing is changed, and nothing could be restored.
 */
static void __attribute__((constructor)) save_settings(void)
{
	if (!access(THP_ENABLED, W_OK))
		thp_save_settings();
}

/* Run the deferred split shrinker, among others. */
static void shrink(void)
{
	write_num("/proc/sys/vm/drop_caches", 2);
}

FIXTURE_SETUP(folio_migrate)
{
	struct thp_settings settings;
	unsigned long orders;
	int i, n;

	if (geteuid())
		SKIP(return, "needs root");
	if (!thp_available())
		SKIP(return, "no transparent huge pages");
	if (access(THP_ENABLED, W_OK))
		SKIP(return, "cannot change the settings of THP");

	self->node1 = -1;
	self->node2 = -1;
	for (n = 0; numa_available() >= 0 && n <= numa_max_node(); n++) {
		/* A node with memory that this task may use. */
		if (!numa_bitmask_isbitset(numa_all_nodes_ptr, n) ||
		    numa_node_size64(n, NULL) <= 0)
			continue;
		if (self->node1 < 0)
			self->node1 = n;
		else if (self->node2 < 0)
			self->node2 = n;
	}
	if (self->node2 < 0)
		SKIP(return, "needs two NUMA nodes with memory to use");

	self->pagemap_fd = open("/proc/self/pagemap", O_RDONLY);
	self->kpageflags_fd = open("/proc/kpageflags", O_RDONLY);
	if (self->pagemap_fd < 0 || self->kpageflags_fd < 0)
		SKIP(return, "no pagemap or kpageflags");
	if (!pagemap_get_pfn(self->pagemap_fd, (char *)self))
		SKIP(return, "cannot see PFNs");

	self->pmd_size = read_pmd_pagesize();
	orders = thp_supported_orders();
	for (i = 0; i < NR_ORDERS; i++) {
		if (orders & (1ul << i))
			self->sizes[self->nr_sizes++] = (size_t)psize() << i;
	}
	ASSERT_GT(self->nr_sizes, 0);

	/*
	 * No other folios than those that a test asks for, and no khugepaged
	 * except while they are allocated. Compact memory for those.
	 */
	thp_read_settings(&settings);
	settings.thp_enabled = THP_MADVISE;
	settings.thp_defrag = THP_DEFRAG_ALWAYS;
	for (i = 0; i < NR_ORDERS; i++)
		settings.hugepages[i].enabled = THP_NEVER;
	thp_write_settings(&settings);

	/* Nothing that was queued before is to be split during a test. */
	shrink();
}

FIXTURE_TEARDOWN(folio_migrate)
{
	thp_restore_settings();
}

static char *align_up(char *addr, size_t align)
{
	return (char *)(((unsigned long)addr + align - 1) & ~(align - 1));
}

static long read_stat(size_t size, const char *name)
{
	char path[128];

	snprintf(path, sizeof(path), "hugepages-%zukB/stats/%s", size >> 10,
		 name);
	return thp_read_num(path);
}

static struct stats read_stats(size_t size)
{
	struct stats stats = {
		.nr_anon = read_stat(size, "nr_anon"),
		.partially_mapped = read_stat(size, "nr_anon_partially_mapped"),
		.split_deferred = read_stat(size, "split_deferred"),
	};

	return stats;
}

static int count_folios(FIXTURE_DATA(folio_migrate) * self, struct region *r)
{
	int orders[NR_ORDERS] = {};

	if (gather_folio_orders(r->mem, r->nr * r->size, self->pagemap_fd,
				self->kpageflags_fd, orders, NR_ORDERS))
		return -1;
	return orders[sz2ord(r->size, psize())];
}

static void region_free(struct region *r)
{
	munmap(r->map, r->map_len);
}

static char pattern(struct region *r, char *addr)
{
	/* Never that of an empty page. */
	return (addr - r->mem) / psize() % 255 + 1;
}

static bool region_populate(FIXTURE_DATA(folio_migrate) * self,
			    struct region *r, size_t size, int nr, int node)
{
	unsigned long node_mask[16] = {};
	size_t bits = 8 * sizeof(long);
	char path[128], *addr;

	r->size = size;
	r->nr = nr;
	r->empty = read_stats(size);
	r->map_len = (nr + 2) * size;
	r->map = mmap(NULL, r->map_len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS,
		      -1, 0);
	if (r->map == MAP_FAILED)
		return false;
	/* Leave something between this and another mapping. */
	r->mem = align_up(r->map + 1, size);

	node_mask[node / bits] |= 1ul << (node % bits);
	if (mprotect(r->mem, nr * size, PROT_READ | PROT_WRITE) ||
	    mbind(r->mem, nr * size, MPOL_BIND, node_mask,
		  8 * sizeof(node_mask), 0) ||
	    madvise(r->mem, nr * size, MADV_HUGEPAGE)) {
		region_free(r);
		return false;
	}

	snprintf(path, sizeof(path), "hugepages-%zukB/enabled", size >> 10);
	thp_write_string(path, "madvise");
	for (addr = r->mem; addr < r->mem + nr * size; addr += psize())
		*addr = pattern(r, addr);
	thp_write_string(path, "never");
	r->full = read_stats(size);

	if (count_folios(self, r) == nr &&
	    r->full.nr_anon - r->empty.nr_anon == nr)
		return true;

	region_free(r);
	return false;
}

/*
 * Get @nr folios of @size, or a default number, on the first node. False if
 * there are none, or not as many on the second node for migration to get: no
 * fault of what is tested here, but of fragmented memory.
 */
static bool region_alloc(FIXTURE_DATA(folio_migrate) * self, struct region *r,
			 size_t size, int nr)
{
	long long free1, free2, need;
	int tries;

	if (!nr)
		nr = MAX_BYTES / size;
	if (nr > MAX_FOLIOS)
		nr = MAX_FOLIOS;
	if (nr < 2)
		nr = 2;

	/* PMDs can be large: don't get killed for lack of memory on a node. */
	need = (long long)nr * size;
	if (need > MAX_BYTES &&
	    (numa_node_size64(self->node1, &free1) < 0 || free1 < 2 * need ||
	     numa_node_size64(self->node2, &free2) < 0 || free2 < 2 * need)) {
		ksft_print_msg("%zukB: not enough free memory: not tested\n",
			       size >> 10);
		return false;
	}

	for (tries = 0; tries < 5; tries++) {
		if (region_populate(self, r, size, nr, self->node2)) {
			region_free(r);
			if (region_populate(self, r, size, nr, self->node1))
				return true;
		}
		write_num("/proc/sys/vm/compact_memory", 1);
	}
	ksft_print_msg("%zukB: no %d folios on each of two nodes: not tested\n",
		       size >> 10, nr);
	return false;
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

/* Drop the second half of each folio, or only the last page. */
static int region_drop(struct region *r, bool half)
{
	size_t len = half ? r->size / 2 : psize();
	int i;

	for (i = 0; i < r->nr; i++) {
		if (madvise(r->mem + (i + 1) * r->size - len, len,
			    MADV_DONTNEED))
			return -1;
	}
	return 0;
}

/* Take a reference to the first page of each folio, until both are closed. */
static int hold_folios(struct region *r, int fds[2])
{
	struct iovec iov = { .iov_len = psize() };
	int i;

	if (pipe(fds))
		return -1;
	for (i = 0; i < r->nr; i++) {
		iov.iov_base = r->mem + i * r->size;
		if (vmsplice(fds[1], &iov, 1, SPLICE_F_NONBLOCK) != psize())
			return -1;
	}
	return 0;
}

static void release_folios(int fds[2])
{
	close(fds[0]);
	close(fds[1]);
}

/*
 * Fork a child that drops half of each folio of @r, if any, and then shares
 * the memory until end_child(). Returns when it has done so, or -1.
 */
static pid_t fork_child_drop(int fds[2], struct region *r)
{
	int ready[2];
	pid_t pid;
	char c;

	if (pipe(fds) || pipe(ready))
		return -1;
	pid = fork();
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(fds[1]);
		if ((r && region_drop(r, true)) || write(ready[1], "", 1) != 1)
			_exit(1);
		/* End of file. */
		_exit(read(fds[0], &c, 1) != 0);
	}
	close(fds[0]);
	close(ready[1]);
	if (pid > 0 && read(ready[0], &c, 1) != 1)
		pid = -1;
	close(ready[0]);
	return pid;
}

static pid_t fork_child(int fds[2])
{
	return fork_child_drop(fds, NULL);
}

static bool end_child(pid_t pid, int fds[2])
{
	int status;

	close(fds[1]);
	return waitpid(pid, &status, 0) == pid && !status;
}

/* The folios are as they were when they were allocated. */
static void expect_unchanged(struct __test_metadata *_metadata,
			     struct region *r, const char *after)
{
	struct stats now = read_stats(r->size);

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

static void expect_contents(struct __test_metadata *_metadata,
			    struct region *r)
{
	size_t wrong = 0;
	char *addr;

	for (addr = r->mem; addr < r->mem + r->nr * r->size; addr += psize())
		wrong += *addr != pattern(r, addr);
	EXPECT_EQ(wrong, 0) {
		TH_LOG("%zukB: %zu pages have wrong contents", r->size >> 10,
		       wrong);
	}
}

/* The shrinker leaves the folios alone. */
static void expect_kept(struct __test_metadata *_metadata,
			FIXTURE_DATA(folio_migrate) * self, struct region *r)
{
	int left;

	shrink();
	shrink();
	left = count_folios(self, r);
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
	struct stats now;
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
	EXPECT_EQ(region_move(r, self->node2, flags, 5), 0);
	expect_unchanged(_metadata, r, "migration");
	expect_kept(_metadata, self, r);
	EXPECT_EQ(region_move(r, self->node1, flags, 5), 0);
	expect_unchanged(_metadata, r, "a second migration");
	expect_kept(_metadata, self, r);
	expect_contents(_metadata, r);
}

/* All sizes; that of a PMD is mapped by one. */
TEST_F_TIMEOUT(folio_migrate, fully_mapped, TIMEOUT)
{
	struct region r;
	int i, tested = 0;

	for (i = 0; i < self->nr_sizes; i++) {
		if (!region_alloc(self, &r, self->sizes[i], 0))
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

	if (!self->pmd_size ||
	    self->sizes[self->nr_sizes - 1] != self->pmd_size)
		SKIP(return, "no folios of PMD size");
	if (!region_alloc(self, &r, self->pmd_size, 0))
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
	size_t len, pmd_size = self->pmd_size;
	struct region r, to;
	int i, tested = 0;

	if (!pmd_size)
		SKIP(return, "size of a PMD not known");

	for (i = 0; i < self->nr_sizes; i++) {
		if (!region_alloc(self, &r, self->sizes[i], 0))
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

	for (i = 0; i < self->nr_sizes; i++) {
		if (!region_alloc(self, &r, self->sizes[i], 0))
			continue;

		ASSERT_EQ(hold_folios(&r, fds), 0);
		EXPECT_EQ(region_move(&r, self->node2, MPOL_MF_MOVE, 1), r.nr) {
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

	for (i = 0; i < self->nr_sizes; i++) {
		if (!region_alloc(self, &r, self->sizes[i], 0))
			continue;

		half = r.mem + r.size / 2;
		ASSERT_EQ(madvise(half, r.size / 2, MADV_DONTFORK), 0);
		pid = fork_child(fds);
		ASSERT_GE(pid, 0);

		args.addr = (unsigned long)half;
		args.size = psize();
		args.flags = PIN_LONGTERM_TEST_FLAG_USE_WRITE;
		ASSERT_EQ(ioctl(gup_fd, PIN_LONGTERM_TEST_START, &args), 0);
		EXPECT_GE(region_move(&r, self->node2, MPOL_MF_MOVE_ALL, 1), 1) {
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

	for (i = 0; i < self->nr_sizes; i++) {
		if (!region_alloc(self, &r, self->sizes[i], 0))
			continue;

		pid = fork_child(fds);
		ASSERT_GE(pid, 0);
		check_fully_mapped(_metadata, self, &r, MPOL_MF_MOVE_ALL);
		ASSERT_TRUE(end_child(pid, fds));

		pid = fork_child_drop(fds, &r);
		ASSERT_GE(pid, 0);
		expect_unchanged(_metadata, &r, "partial unmap by one of two");
		check_fully_mapped(_metadata, self, &r, MPOL_MF_MOVE_ALL);
		ASSERT_TRUE(end_child(pid, fds));

		check_fully_mapped(_metadata, self, &r, MPOL_MF_MOVE);
		ASSERT_EQ(region_drop(&r, true), 0);
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

	for (i = 0; i < self->nr_sizes; i++) {
		if (!region_alloc(self, &r, self->sizes[i], 0))
			continue;
		ASSERT_EQ(region_drop(&r, false), 0);
		expect_partially_mapped(_metadata, &r, "partial unmap");
		EXPECT_EQ(region_move(&r, self->node2, MPOL_MF_MOVE, 5), 0);
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

	for (i = 0; i < self->nr_sizes; i++) {
		if (!region_alloc(self, &r, self->sizes[i], 0))
			continue;

		ASSERT_EQ(hold_folios(&r, fds), 0);
		ASSERT_EQ(region_drop(&r, false), 0);
		EXPECT_EQ(region_move(&r, self->node2, MPOL_MF_MOVE, 1), r.nr);
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

	for (i = 0; i < self->nr_sizes; i++) {
		if (!region_alloc(self, &r, self->sizes[i], 0))
			continue;
		EXPECT_EQ(region_move(&r, self->node2, MPOL_MF_MOVE, 5), 0);
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
	if (!file || self->sizes[0] != size)
		SKIP(return, "cannot split to folios of %zukB", size >> 10);
	setlinebuf(file);

	for (i = 1; i < self->nr_sizes; i++) {
		nr_anon = read_stat(size, "nr_anon");
		partially_mapped = read_stat(size, "nr_anon_partially_mapped");
		if (!region_alloc(self, &r, self->sizes[i], 0))
			continue;
		/* The last of the small ones is partially mapped. */
		ASSERT_EQ(region_drop(&r, false), 0);
		nr_anon += r.nr * (r.size / size);
		/* Anybody who has a reference for a moment prevents a split. */
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
 * Not all architectures have room for accessed bits in migration entries. If a
 * PMD-mapped THP stays accessed there is, and all others have to stay so, too.
 */
TEST_F_TIMEOUT(folio_migrate, accessed, TIMEOUT)
{
	int i, tested = 0;
	struct region r;
	bool supported;
	long len;

	if (!self->pmd_size ||
	    self->sizes[self->nr_sizes - 1] != self->pmd_size ||
	    !region_alloc(self, &r, self->pmd_size, 0))
		SKIP(return, "no folios of PMD size");
	len = r.nr * r.size;
	ASSERT_GE(region_referenced(&r), len / 2) {
		TH_LOG("%ld of %ld bytes count as accessed before migration",
		       region_referenced(&r), len);
	}
	EXPECT_EQ(region_move(&r, self->node2, MPOL_MF_MOVE, 5), 0);
	/* Of a PMD that was split, nothing can be learned about PMDs. */
	ASSERT_EQ(read_stats(r.size).nr_anon, r.full.nr_anon);
	/* Somebody may have a look at a few: reclaim, DAMON. */
	supported = region_referenced(&r) >= len / 2;
	region_free(&r);
	if (!supported)
		SKIP(return, "no accessed bits in migration entries");

	for (i = 0; self->sizes[i] != self->pmd_size; i++) {
		if (!region_alloc(self, &r, self->sizes[i], 0))
			continue;
		len = r.nr * r.size;
		EXPECT_EQ(region_move(&r, self->node2, MPOL_MF_MOVE, 5), 0);
		EXPECT_GE(region_referenced(&r), len / 2) {
			TH_LOG("%zukB: only %ld of %ld bytes count as accessed after migration",
			       r.size >> 10, region_referenced(&r), len);
		}
		region_free(&r);
		tested++;
	}
	if (!tested)
		SKIP(return, "no folios below the size of a PMD");
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
	return pagemap_get_entry(self->pagemap_fd, page) & PM_SWAP;
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

	for (i = 0; i < self->nr_sizes; i++) {
		met = 0;
		for (round = 0; round < MAX_ROUNDS; round++) {
			struct mover m = { .r = &r, .node = self->node2 };

			if (met && round >= ROUNDS)
				break;
			if (!region_alloc(self, &r, self->sizes[i], 0))
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
				       self->sizes[i] >> 10, met);
			tested++;
		} else if (round) {
			ksft_print_msg("%zukB: met no folio in migration: not tested\n",
				       self->sizes[i] >> 10);
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
