// SPDX-License-Identifier: GPL-2.0
/*
 * Folios that a PMD mapped, until something split the PMD, and that are still
 * there: a collapse maps them by a PMD again, where they are. Check that nothing
 * is allocated or moved, what the PMD keeps of the PTEs, and which folios must not
 * be mapped by a PMD.
 */

#include <linux/mman.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/auxv.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>

#include "folio_cgroup.h"
#include "folio_witness.h"

#define THP_SIZE	"/sys/kernel/mm/transparent_hugepage/hugepages-%zukB/"
#define NR_FOLIOS	2

FIXTURE(folio_collapse)
{
	struct folio_env env;
	struct region r;
	long pages;		/* of all folios */
	unsigned long *pfns;	/* before the collapse */
	long allocated;		/* huge pages for collapses, until then */
	long in_place;		/* collapses in place, until then; or -1 */
	unsigned long failed;	/* memory that has failed, or 0 */
	struct folio_cgroup first, second;
};

/* Copies have the inverse of what a page had before. */
static void fill_page(FIXTURE_DATA(folio_collapse) * self, long nr, bool copy)
{
	char c = pattern(&self->r, page(&self->r, nr));

	memset(page(&self->r, nr), copy ? ~c : c, psize());
}

static void fill_pages(FIXTURE_DATA(folio_collapse) * self)
{
	long i;

	for (i = 0; i < self->pages; i++)
		fill_page(self, i, false);
}

FIXTURE_SETUP(folio_collapse)
{
	const char *why;

	self->r.map = MAP_FAILED;
	why = folio_env_init(&self->env);
	if (why)
		SKIP(return, "%s", why);
	if (!self->env.pmd_size)
		SKIP(return, "size of a PMD not known");
	if (!region_alloc(&self->env, &self->r, self->env.pmd_size, NR_FOLIOS)) {
		self->r.map = MAP_FAILED;
		SKIP(return, "no huge pages");
	}
	self->pages = self->r.nr * self->r.size / psize();
	self->pfns = calloc(self->pages, sizeof(*self->pfns));
	ASSERT_NE(self->pfns, NULL);
	fill_pages(self);
}

FIXTURE_TEARDOWN(folio_collapse)
{
	int tries;

	if (self->r.map != MAP_FAILED)
		region_free(&self->r);
	for (tries = 0; self->failed && tries < 100; tries++) {
		if (!unpoison_memory(self->failed))
			self->failed = 0;
		usleep(10000);
	}
	EXPECT_EQ(self->failed, 0);
	folio_cgroup_leave(&self->second);
	folio_cgroup_leave(&self->first);
	thp_restore_settings();
}

static bool mapped_by_pmds(FIXTURE_DATA(folio_collapse) * self)
{
	return huge_pages(&self->env, &self->r) == self->r.nr;
}

/* Another protection of one page splits the PMD, for a moment. */
static void map_by_ptes(struct __test_metadata *_metadata,
			FIXTURE_DATA(folio_collapse) * self, int prot)
{
	long i;

	for (i = 0; i < self->r.nr; i++) {
		ASSERT_EQ(mprotect(self->r.mem + i * self->r.size, psize(),
				   PROT_NONE), 0);
		ASSERT_EQ(mprotect(self->r.mem + i * self->r.size, psize(),
				   prot), 0);
	}
	ASSERT_EQ(mprotect(self->r.mem, self->r.nr * self->r.size, prot), 0);
	ASSERT_FALSE(mapped_by_pmds(self));
}

/* Returns -1 if they are not counted. */
static long collapses_in_place(FIXTURE_DATA(folio_collapse) * self)
{
	char path[128];

	snprintf(path, sizeof(path), THP_SIZE "stats/collapse_in_place",
		 self->r.size >> 10);
	return access(path, R_OK) ? -1 : (long)read_num(path);
}

static void note_before(FIXTURE_DATA(folio_collapse) * self)
{
	note_pfns(&self->env, &self->r, self->pfns);
	self->allocated = read_stat(self->r.size, "collapse_alloc");
	self->in_place = collapses_in_place(self);
}

static int collapse(FIXTURE_DATA(folio_collapse) * self)
{
	note_before(self);
	return madvise(self->r.mem, self->r.nr * self->r.size, MADV_COLLAPSE) ?
	       errno : 0;
}

static long nr_moved(FIXTURE_DATA(folio_collapse) * self)
{
	return pages_moved(&self->env, &self->r, self->pfns);
}

static void expect_in_place(struct __test_metadata *_metadata,
			    FIXTURE_DATA(folio_collapse) * self)
{
	const long moved = nr_moved(self);

	EXPECT_TRUE(mapped_by_pmds(self));
	EXPECT_EQ(moved, 0) {
		TH_LOG("%ld of %ld pages were copied", moved, self->pages);
	}
	EXPECT_EQ(read_stat(self->r.size, "collapse_alloc"), self->allocated);
	EXPECT_EQ(collapses_in_place(self), self->in_place + self->r.nr);
	expect_contents(_metadata, &self->r);
}

/* Writes need neither copies nor PTEs. */
static void expect_no_copies(struct __test_metadata *_metadata,
			     FIXTURE_DATA(folio_collapse) * self)
{
	memset(self->r.mem, 7, self->r.nr * self->r.size);
	EXPECT_EQ(nr_moved(self), 0);
	EXPECT_TRUE(mapped_by_pmds(self));
}

/* All pages are exclusive. */
TEST_F(folio_collapse, exclusive)
{
	map_by_ptes(_metadata, self, PROT_READ | PROT_WRITE);
	EXPECT_EQ(collapse(self), 0);
	expect_in_place(_metadata, self);
	expect_no_copies(_metadata, self);
}

/* No page is marked exclusive, but only this process maps them. */
TEST_F(folio_collapse, after_child)
{
	int fds[2];
	pid_t pid;

	pid = fork_child(fds);
	ASSERT_GT(pid, 0);
	map_by_ptes(_metadata, self, PROT_READ | PROT_WRITE);
	ASSERT_TRUE(end_child(pid, fds));
	EXPECT_EQ(collapse(self), 0);
	expect_in_place(_metadata, self);
	expect_no_copies(_metadata, self);
}

/* fork() splits PMDs of pinned pages: the child gets copies of these. */
TEST_F(folio_collapse, pinned)
{
	struct pin_longterm_test pin = {
		.addr = (unsigned long)self->r.mem,
		.size = self->r.nr * self->r.size,
		.flags = PIN_LONGTERM_TEST_FLAG_USE_WRITE,
	};
	int fds[2], fd;
	pid_t pid;

	fd = open(GUP_TEST, O_RDWR);
	if (fd < 0)
		SKIP(return, "no gup_test");
	/* Away from where memory that is pinned must not be */
	ASSERT_EQ(ioctl(fd, PIN_LONGTERM_TEST_START, &pin), 0);
	ASSERT_EQ(ioctl(fd, PIN_LONGTERM_TEST_STOP), 0);
	if (!mapped_by_pmds(self))
		SKIP(return, "no huge pages that can be pinned");
	ASSERT_EQ(ioctl(fd, PIN_LONGTERM_TEST_START, &pin), 0);
	pid = fork_child(fds);
	ASSERT_GT(pid, 0);
	ASSERT_TRUE(end_child(pid, fds));
	ASSERT_FALSE(mapped_by_pmds(self));
	EXPECT_EQ(collapse(self), 0);
	expect_in_place(_metadata, self);

	/* A device would still see what is written. */
	memset(self->r.mem, 7, pin.size);
	expect_pinned(_metadata, fd, self->r.mem, pin.size);

	/* Also while there is another child */
	pid = fork_child(fds);
	ASSERT_GT(pid, 0);
	memset(self->r.mem, 8, pin.size);
	expect_pinned(_metadata, fd, self->r.mem, pin.size);
	ASSERT_TRUE(end_child(pid, fds));
	ASSERT_EQ(ioctl(fd, PIN_LONGTERM_TEST_STOP), 0);
	close(fd);
}

/* Marks of single pages must not survive: fork() does not see those of tails. */
TEST_F(folio_collapse, fork_and_split)
{
	int fds[2];
	pid_t pid;

	map_by_ptes(_metadata, self, PROT_READ | PROT_WRITE);
	EXPECT_EQ(collapse(self), 0);
	EXPECT_TRUE(mapped_by_pmds(self));
	pid = fork_witness(&self->r, fds);
	ASSERT_GT(pid, 0);
	map_by_ptes(_metadata, self, PROT_READ | PROT_WRITE);
	memset(self->r.mem, 0, self->r.nr * self->r.size);
	EXPECT_TRUE(end_child(pid, fds));
}

/* A child still has the folios: the parent gets its own. */
TEST_F(folio_collapse, shared)
{
	int fds[2];
	pid_t pid;

	pid = fork_witness(&self->r, fds);
	ASSERT_GT(pid, 0);
	map_by_ptes(_metadata, self, PROT_READ | PROT_WRITE);
	collapse(self);
	expect_contents(_metadata, &self->r);
	memset(self->r.mem, 0, self->r.nr * self->r.size);
	EXPECT_EQ(nr_moved(self), self->pages);
	EXPECT_TRUE(end_child(pid, fds));
}

/* A child has all but the first page, which alone is exclusive. */
TEST_F(folio_collapse, shared_but_first)
{
	int fds[2];
	pid_t pid;
	long i;

	for (i = 0; i < self->pages; i += self->pages / self->r.nr)
		ASSERT_EQ(madvise(page(&self->r, i), psize(),
				  MADV_WIPEONFORK), 0);
	pid = fork_child(fds);
	ASSERT_GT(pid, 0);
	for (i = 0; i < self->pages; i += self->pages / self->r.nr)
		ASSERT_EQ(madvise(page(&self->r, i), psize(),
				  MADV_KEEPONFORK), 0);
	collapse(self);
	expect_contents(_metadata, &self->r);
	memset(self->r.mem, 0, self->r.nr * self->r.size);
	EXPECT_GE(nr_moved(self), self->pages - self->r.nr);
	EXPECT_TRUE(end_child(pid, fds));
}

#define KPF_SWAPCACHE	BIT_ULL(13)

/* A child has nothing but swap entries, which lead to the same folios. */
TEST_F(folio_collapse, swapped_child)
{
	const size_t len = self->r.nr * self->r.size;
	uint64_t flags = 0;
	int fds[2];
	pid_t pid;
	long i;

	ASSERT_EQ(madvise(self->r.mem, len, MADV_PAGEOUT), 0);
	if (!pagemap_is_swapped(self->env.pagemap_fd, self->r.mem))
		SKIP(return, "no swap");
	pid = fork_witness(&self->r, fds);
	ASSERT_GT(pid, 0);
	for (i = 0; i < self->pages; i++)
		FORCE_READ(*page(&self->r, i));
	if (count_folios(&self->env, &self->r) != self->r.nr ||
	    pageflags_get(pagemap_get_pfn(self->env.pagemap_fd, self->r.mem),
			  self->env.kpageflags_fd, &flags) ||
	    !(flags & KPF_SWAPCACHE)) {
		end_child(pid, fds);
		SKIP(return, "the folios are not in the swap cache any more");
	}
	collapse(self);
	expect_contents(_metadata, &self->r);
	memset(self->r.mem, 0, len);
	EXPECT_TRUE(end_child(pid, fds));
}

/* Of this many pages one is copied while there is a child */
#define COPIED		8

static void write_some(FIXTURE_DATA(folio_collapse) * self)
{
	long i;

	for (i = 0; i < self->pages; i += COPIED)
		fill_page(self, i, true);
}

/* Returns how many bytes of the page are not @c. Then it has as before. */
static long restore_page(FIXTURE_DATA(folio_collapse) * self, long nr, char c)
{
	long i, wrong = 0;

	for (i = 0; i < psize(); i++)
		wrong += page(&self->r, nr)[i] != c;
	fill_page(self, nr, false);
	return wrong;
}

/* All of the copies are there. Then, all pages have as before. */
static void check_some(struct __test_metadata *_metadata,
		       FIXTURE_DATA(folio_collapse) * self)
{
	long i, wrong = 0;

	for (i = 0; i < self->pages; i += COPIED)
		wrong += restore_page(self, i,
				      ~pattern(&self->r, page(&self->r, i)));
	EXPECT_EQ(wrong, 0) {
		TH_LOG("%ld bytes of the copies are lost", wrong);
	}
}

/* Pages are copied while there is a child. */
static void snapshot(struct __test_metadata *_metadata,
		     FIXTURE_DATA(folio_collapse) * self)
{
	int fds[2];
	pid_t pid;

	note_before(self);
	pid = fork_child(fds);
	ASSERT_GT(pid, 0);
	write_some(self);
	ASSERT_TRUE(end_child(pid, fds));
}

/* Fill the folios again that copies on write have left with holes. */
static void refill(struct __test_metadata *_metadata,
		   FIXTURE_DATA(folio_collapse) * self)
{
	unsigned long *pfns;
	long i;

	snapshot(_metadata, self);
	pfns = self->pfns;
	ASSERT_EQ(nr_moved(self), self->pages / COPIED);

	self->pfns = calloc(self->pages, sizeof(*self->pfns));
	ASSERT_NE(self->pfns, NULL);
	EXPECT_EQ(collapse(self), 0);
	/* The copies have moved back. */
	for (i = 0; i < self->pages; i++)
		self->pfns[i] = pfns[i];
	free(pfns);
	check_some(_metadata, self);
	expect_in_place(_metadata, self);
}

TEST_F(folio_collapse, copied)
{
	struct folio_stats before = read_stats(self->r.size);

	refill(_metadata, self);
	EXPECT_EQ(read_stats(self->r.size).partially_mapped,
		  before.partially_mapped);
	/* Nothing is left to split. */
	shrink();
	EXPECT_TRUE(mapped_by_pmds(self));
	memset(self->r.mem, 7, self->r.nr * self->r.size);
	EXPECT_EQ(nr_moved(self), 0);
}

/* khugepaged does the same, however long ago the pages were accessed. */
TEST_F_TIMEOUT(folio_collapse, copied_khugepaged, 60)
{
	int tries;

	snapshot(_metadata, self);
	/* Forget that pages were accessed; MADV_COLD would split the folios */
	write_file("/proc/self/clear_refs", "1", 2);
	thp_write_num("khugepaged/scan_sleep_millisecs", 10);
	set_thp(self->r.size, "madvise");
	for (tries = 0; tries < 300 && !mapped_by_pmds(self); tries++)
		usleep(100000);
	set_thp(self->r.size, "never");
	check_some(_metadata, self);
	expect_in_place(_metadata, self);
}

/* Wait until PMDs map @nr huge pages. */
static bool wait_for_pmds(FIXTURE_DATA(folio_collapse) * self, int nr)
{
	int tries;

	for (tries = 0; tries < 200; tries++) {
		if (huge_pages(&self->env, &self->r) == nr)
			return true;
		usleep(100000);
	}
	return false;
}

/* One write shows that the child is gone: that is enough for all folios. */
TEST_F_TIMEOUT(folio_collapse, expedited, 60)
{
	int i;

	khugepaged_asleep(self->r.size);
	/* The second time at once: the last copies are not on the LRU yet. */
	for (i = 0; i < 2; i++) {
		snapshot(_metadata, self);
		if (!i) {
			sleep(1);
			/* khugepaged is asleep, or PMDs would map them. */
			ASSERT_EQ(huge_pages(&self->env, &self->r), 0);
		}
		EXPECT_TRUE(writable(page(&self->r, 1)));
		EXPECT_TRUE(wait_for_pmds(self, self->r.nr)) {
			TH_LOG("still mapped by PTEs after 20 seconds");
		}
		check_some(_metadata, self);
		expect_in_place(_metadata, self);
	}
}

/* Of two folios another child still has the first. Later it has none. */
TEST_F_TIMEOUT(folio_collapse, expedited_and_shared, 60)
{
	struct region first = self->r;
	int witness_fds[2];
	pid_t witness;
	char *second;

	first.nr = 1;
	second = first.mem + first.size;
	khugepaged_asleep(self->r.size);
	ASSERT_EQ(madvise(second, first.size, MADV_DONTFORK), 0);
	witness = fork_witness(&first, witness_fds);
	ASSERT_GT(witness, 0);
	ASSERT_EQ(madvise(second, first.size, MADV_DOFORK), 0);
	/* It does not have the end of this one's pipe */
	snapshot(_metadata, self);

	EXPECT_TRUE(writable(second + psize()));
	EXPECT_TRUE(wait_for_pmds(self, 1));
	sleep(1);
	EXPECT_EQ(huge_pages(&self->env, &self->r), 1);
	EXPECT_TRUE(end_child(witness, witness_fds));

	EXPECT_TRUE(writable(first.mem + psize()));
	EXPECT_TRUE(wait_for_pmds(self, self->r.nr));
	check_some(_metadata, self);
	expect_in_place(_metadata, self);
}

/* Processes that exit, or execute another program, while that goes on */
TEST_F_TIMEOUT(folio_collapse, expedited_and_exit, 120)
{
	int fds[2], i, status;
	pid_t pid, child;

	khugepaged_asleep(self->r.size);
	for (i = 0; i < 20; i++) {
		child = fork();
		ASSERT_GE(child, 0);
		if (!child) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			pid = fork_child(fds);
			if (pid < 0)
				_exit(1);
			memset(self->r.mem, i, self->r.nr * self->r.size);
			if (!end_child(pid, fds))
				_exit(1);
			/* Has copies; huge pages again by a child of its own */
			madvise(self->r.mem, self->r.nr * self->r.size,
				MADV_COLLAPSE);
			pid = fork_child(fds);
			if (pid < 0)
				_exit(1);
			write_some(self);
			if (!end_child(pid, fds) ||
			    !writable(page(&self->r, 1)))
				_exit(1);
			usleep(i % 10 * 20000);
			if (i % 2)
				execlp("true", "true", NULL);
			_exit(0);
		}
		ASSERT_EQ(waitpid(child, &status, 0), child);
		EXPECT_EQ(status, 0);
	}
	expect_contents(_metadata, &self->r);
}

/* The same, again and again, as a database that writes snapshots */
TEST_F(folio_collapse, copied_often)
{
	int i;

	for (i = 0; i < 5; i++)
		refill(_metadata, self);
}

TEST_F(folio_collapse, copied_fork_and_split)
{
	int fds[2];
	pid_t pid;

	refill(_metadata, self);
	pid = fork_witness(&self->r, fds);
	ASSERT_GT(pid, 0);
	map_by_ptes(_metadata, self, PROT_READ | PROT_WRITE);
	memset(self->r.mem, 0, self->r.nr * self->r.size);
	EXPECT_TRUE(end_child(pid, fds));
}

/* A device writes to a page of the folio, and to a copy: both stay. */
TEST_F(folio_collapse, copied_and_pinned)
{
	struct pin_longterm_test pin = {
		.size = psize(),
		.flags = PIN_LONGTERM_TEST_FLAG_USE_WRITE,
	};
	int fd, i;

	fd = open(GUP_TEST, O_RDWR);
	if (fd < 0)
		SKIP(return, "no gup_test");
	snapshot(_metadata, self);
	for (i = 0; i <= 1; i++) {
		pin.addr = (uintptr_t)page(&self->r, i);
		ASSERT_EQ(ioctl(fd, PIN_LONGTERM_TEST_START, &pin), 0);
		EXPECT_NE(madvise(self->r.mem, self->r.size, MADV_COLLAPSE), 0);
		memset(page(&self->r, i), i, psize());
		expect_pinned(_metadata, fd, page(&self->r, i), psize());
		ASSERT_EQ(ioctl(fd, PIN_LONGTERM_TEST_STOP), 0);
	}
	fill_page(self, 0, true);
	fill_page(self, 1, false);
	check_some(_metadata, self);
	expect_contents(_metadata, &self->r);
	close(fd);
}

/* A child still maps the folios. */
TEST_F(folio_collapse, copied_and_shared)
{
	int fds[2];
	pid_t pid;

	pid = fork_witness(&self->r, fds);
	ASSERT_GT(pid, 0);
	write_some(self);
	madvise(self->r.mem, self->r.nr * self->r.size, MADV_COLLAPSE);
	check_some(_metadata, self);
	expect_contents(_metadata, &self->r);
	memset(self->r.mem, 0, self->r.nr * self->r.size);
	EXPECT_TRUE(end_child(pid, fds));
}

/* Each copy unlocks the whole folio: it must not be refilled like that. */
TEST_F(folio_collapse, copied_and_mlocked)
{
	const size_t len = self->r.nr * self->r.size;
	const long before = read_vmstat("nr_mlock");
	long locked;

	if (mlock(self->r.mem, len))
		SKIP(return, "cannot lock that much memory");
	snapshot(_metadata, self);
	EXPECT_EQ(collapse(self), 0);
	check_some(_metadata, self);
	/* What is queued on CPUs is counted, too */
	write_num("/proc/sys/vm/compact_memory", 1);
	locked = read_vmstat("nr_mlock") - before;
	EXPECT_EQ(locked, self->pages) {
		TH_LOG("%ld pages are locked, expected %ld", locked, self->pages);
	}
	munlock(self->r.mem, len);
	write_num("/proc/sys/vm/compact_memory", 1);
	EXPECT_EQ(read_vmstat("nr_mlock"), before);
}

/* A folio of another memory cgroup stays the property of that. */
TEST_F(folio_collapse, copied_in_other_cgroup)
{
	const size_t len = self->r.nr * self->r.size;

	if (!folio_cgroup_enter(&self->first, "folio_collapse_first"))
		SKIP(return, "no memory cgroups");
	region_free(&self->r);
	if (!region_alloc(&self->env, &self->r, self->env.pmd_size, NR_FOLIOS)) {
		self->r.map = MAP_FAILED;
		SKIP(return, "no huge pages");
	}
	fill_pages(self);
	ASSERT_TRUE(folio_cgroup_enter(&self->second, "folio_collapse_second"));
	snapshot(_metadata, self);
	EXPECT_EQ(madvise(self->r.mem, len, MADV_COLLAPSE), 0);
	EXPECT_TRUE(mapped_by_pmds(self));
	EXPECT_EQ(read_stat(self->r.size, "collapse_alloc"),
		  self->allocated + self->r.nr);
	EXPECT_EQ(nr_moved(self), self->pages);
	check_some(_metadata, self);
	expect_contents(_metadata, &self->r);
	EXPECT_TRUE(folio_cgroup_counts(&self->first, "anon", 0, 0, 64,
					self->r.size, "after the collapse"));
}

/* Memory tags: those of the first and of the last bytes of each page */
#ifdef __aarch64__
static bool allow_tags(FIXTURE_DATA(folio_collapse) * self)
{
	return getauxval(AT_HWCAP2) & HWCAP2_MTE &&
	       !mprotect(self->r.mem, self->r.nr * self->r.size,
			 PROT_READ | PROT_WRITE | PROT_MTE);
}

static void set_tag(char *addr, uintptr_t tag)
{
	asm volatile(".arch armv8.5-a+memtag\n\tstg %0, [%0]"
		     : : "r" ((uintptr_t)addr | tag << 56) : "memory");
}

static int get_tag(char *addr)
{
	uintptr_t tagged = (uintptr_t)addr;

	asm volatile(".arch armv8.5-a+memtag\n\tldg %0, [%0]"
		     : "+r" (tagged) : : "memory");
	return tagged >> 56 & 15;
}
#else
static bool allow_tags(FIXTURE_DATA(folio_collapse) * self)
{
	return false;
}

static void set_tag(char *addr, uintptr_t tag)
{
}

static int get_tag(char *addr)
{
	return 0;
}
#endif

static void tag_page(FIXTURE_DATA(folio_collapse) * self, long nr, int tag)
{
	set_tag(page(&self->r, nr), tag);
	set_tag(page(&self->r, nr + 1) - 16, tag);
}

static bool has_tag(FIXTURE_DATA(folio_collapse) * self, long nr, int tag)
{
	return get_tag(page(&self->r, nr)) == tag &&
	       get_tag(page(&self->r, nr + 1) - 16) == tag;
}

/* Allow tags, and give 1 to all pages. False if there are no tags. */
static bool tag_pages(FIXTURE_DATA(folio_collapse) * self)
{
	long i;

	if (!allow_tags(self))
		return false;
	for (i = 0; i < self->pages; i++)
		tag_page(self, i, 1);
	return true;
}

/* Tags are copied with the pages: pages of the folio have 1, copies 2. */
TEST_F(folio_collapse, copied_tagged)
{
	long i, wrong = 0;

	if (!tag_pages(self))
		SKIP(return, "no memory tags");
	snapshot(_metadata, self);
	for (i = 0; i < self->pages; i += COPIED)
		tag_page(self, i, 2);
	EXPECT_EQ(madvise(self->r.mem, self->r.nr * self->r.size, MADV_COLLAPSE),
		  0);
	for (i = 0; i < self->pages; i++)
		wrong += !has_tag(self, i, i % COPIED ? 1 : 2);
	EXPECT_EQ(wrong, 0) {
		TH_LOG("%ld pages have another tag", wrong);
	}
	check_some(_metadata, self);
	expect_in_place(_metadata, self);
}

#define CORRUPT_PFN	"/sys/kernel/debug/hwpoison/corrupt-pfn"

static void *fail_soon(void *arg)
{
	char pfn[32];
	int fd, len;

	usleep(500000);
	len = snprintf(pfn, sizeof(pfn), "%lu", *(unsigned long *)arg);
	fd = open(CORRUPT_PFN, O_WRONLY);
	/* The flag of the page shows whether it has failed */
	if (write(fd, pfn, len) < 0)
		ksft_print_msg("memory_failure(): %s\n", strerror(errno));
	close(fd);
	return NULL;
}

/*
 * The memory fails to which a copy is to move back. If that is known by the end of
 * the collapse, nothing is lost; on a kernel in which a collapse takes longer than
 * this waits, that is so. Otherwise the page is lost, after the collapse.
 */
TEST_F(folio_collapse, copied_and_failed)
{
	char *first = page(&self->r, 0);
	uint64_t flags = 0;
	pthread_t thread;
	int error;

	if (access(CORRUPT_PFN, W_OK))
		SKIP(return, "no hwpoison-inject, or no root");
	prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_LATE, 0, 0);
	snapshot(_metadata, self);
	self->failed = self->pfns[0];
	ASSERT_EQ(pthread_create(&thread, NULL, fail_soon, &self->failed), 0);
	error = madvise(self->r.mem, self->r.size, MADV_COLLAPSE);
	pageflags_get(self->failed, self->env.kpageflags_fd, &flags);
	pthread_join(thread, NULL);
	if (flags & KPF_HWPOISON) {
		EXPECT_FALSE(bus_error(first, false)) {
			TH_LOG("a copy has moved to memory that has failed");
		}
	} else {
		EXPECT_EQ(error, 0);
	}
	if (bus_error(first, false)) {
		ASSERT_EQ(madvise(first, psize(), MADV_DONTNEED), 0);
		fill_page(self, 0, true);
	}
	EXPECT_NE(pagemap_get_pfn(self->env.pagemap_fd, first), self->failed);
	check_some(_metadata, self);
	expect_contents(_metadata, &self->r);
}

/*
 * Page 5 is mapped elsewhere, and there is another one in its place: which is not to
 * be copied to where it has been.
 */
TEST_F(folio_collapse, copied_and_moved_away)
{
	unsigned long nodes = self->env.node1 < 0 ? 0 : 1ul << self->env.node1;
	char *gap = page(&self->r, 5), *away;

	away = mmap(NULL, psize(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(away, MAP_FAILED);
	ASSERT_EQ(mremap(gap, psize(), psize(), MREMAP_MAYMOVE | MREMAP_FIXED,
			 away), away);
	/* As region_alloc() does: it is one VMA again */
	ASSERT_EQ(mmap(gap, psize(), PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), gap);
	if (nodes)
		ASSERT_EQ(mbind(gap, psize(), MPOL_BIND, &nodes, 8 * sizeof(nodes),
				0), 0);
	ASSERT_EQ(madvise(gap, psize(), MADV_HUGEPAGE), 0);
	memset(gap, 0, psize());

	note_before(self);
	EXPECT_EQ(madvise(self->r.mem, self->r.size, MADV_COLLAPSE), 0);
	EXPECT_EQ(read_stat(self->r.size, "collapse_alloc"), self->allocated + 1);
	EXPECT_EQ(*away, pattern(&self->r, gap));
	EXPECT_EQ(*gap, 0);
	write_page(&self->r, 5);
	expect_contents(_metadata, &self->r);
}

/* The first page of each COPIED pages is copied, the second one is discarded. */
static void copy_and_discard(struct __test_metadata *_metadata,
			     FIXTURE_DATA(folio_collapse) * self)
{
	long i;

	snapshot(_metadata, self);
	for (i = 1; i < self->pages; i += COPIED)
		ASSERT_EQ(madvise(page(&self->r, i), psize(), MADV_DONTNEED), 0);
}

static void check_discarded(struct __test_metadata *_metadata,
			    FIXTURE_DATA(folio_collapse) * self)
{
	long i, wrong = 0;

	for (i = 1; i < self->pages; i += COPIED)
		wrong += restore_page(self, i, 0);
	EXPECT_EQ(wrong, 0) {
		TH_LOG("%ld bytes that were discarded are back", wrong);
	}
	check_some(_metadata, self);
}

/* Some of the pages that were discarded have been read: there is the zero page. */
TEST_F(folio_collapse, discarded)
{
	const size_t len = self->r.nr * self->r.size;
	long i;

	copy_and_discard(_metadata, self);
	for (i = 1; i < self->pages; i += 2 * COPIED)
		FORCE_READ(*page(&self->r, i));
	EXPECT_EQ(madvise(self->r.mem, len, MADV_COLLAPSE), 0);
	EXPECT_EQ(smaps_sum(getpid(), &self->r, "Rss"), (long)(len >> 10));
	check_discarded(_metadata, self);
	expect_in_place(_metadata, self);
}

/* khugepaged has a limit. */
TEST_F_TIMEOUT(folio_collapse, discarded_khugepaged, 120)
{
	const long per_folio = self->pages / self->r.nr / COPIED;

	copy_and_discard(_metadata, self);
	thp_write_num("khugepaged/max_ptes_none", per_folio - 1);
	ASSERT_TRUE(khugepaged_scan(self->r.size));
	EXPECT_EQ(huge_pages(&self->env, &self->r), 0);
	EXPECT_FALSE(pagemap_is_populated(self->env.pagemap_fd, page(&self->r, 1)));

	thp_write_num("khugepaged/max_ptes_none", per_folio);
	ASSERT_TRUE(khugepaged_scan(self->r.size));
	check_discarded(_metadata, self);
	expect_in_place(_metadata, self);
}

/* Memory that is not in use is not worth pages that were discarded. */
TEST_F_TIMEOUT(folio_collapse, discarded_and_cold, 120)
{
	copy_and_discard(_metadata, self);
	clear_accessed(&self->r);
	ASSERT_TRUE(khugepaged_scan(self->r.size));
	EXPECT_EQ(huge_pages(&self->env, &self->r), 0);
	FORCE_READ(*page(&self->r, 2));
	ASSERT_TRUE(khugepaged_scan(self->r.size));
	EXPECT_EQ(huge_pages(&self->env, &self->r), 1);
	check_discarded(_metadata, self);
	expect_contents(_metadata, &self->r);
}

/* What a write after a child's exit sets off does not bring them back. */
TEST_F_TIMEOUT(folio_collapse, expedited_and_discarded, 60)
{
	const long second = self->pages / self->r.nr;
	long i;

	khugepaged_asleep(self->r.size);
	snapshot(_metadata, self);
	for (i = second + 1; i < self->pages; i += COPIED)
		ASSERT_EQ(madvise(page(&self->r, i), psize(), MADV_DONTNEED), 0);

	EXPECT_TRUE(writable(page(&self->r, 1)));
	EXPECT_TRUE(wait_for_pmds(self, 1));
	sleep(1);
	EXPECT_EQ(huge_pages(&self->env, &self->r), 1);
	EXPECT_FALSE(pagemap_is_populated(self->env.pagemap_fd,
					  page(&self->r, second + 1)));
}

/* A checkpoint has to store that these pages are empty now. */
TEST_F(folio_collapse, discarded_soft_dirty)
{
	if (!softdirty_supported())
		SKIP(return, "no soft-dirty");
	copy_and_discard(_metadata, self);
	clear_softdirty();
	EXPECT_EQ(madvise(self->r.mem, self->r.nr * self->r.size, MADV_COLLAPSE), 0);
	EXPECT_TRUE(pagemap_is_softdirty(self->env.pagemap_fd, page(&self->r, 1)));
	check_discarded(_metadata, self);
	expect_in_place(_metadata, self);
}

/* A page that was discarded is for userfaultfd to provide. */
TEST_F(folio_collapse, discarded_userfaultfd)
{
	int fd;

	fd = uffd_sigbus(self->r.mem, self->r.nr * self->r.size, true);
	if (fd < 0)
		SKIP(return, "no userfaultfd");
	copy_and_discard(_metadata, self);
	EXPECT_NE(madvise(self->r.mem, self->r.size, MADV_COLLAPSE), 0);
	EXPECT_TRUE(bus_error(page(&self->r, 1), false));
	close(fd);
	check_discarded(_metadata, self);
	expect_contents(_metadata, &self->r);
}

/* A page that was discarded has lost its memory tags, too. */
TEST_F(folio_collapse, discarded_tagged)
{
	long i, wrong = 0;

	if (!tag_pages(self))
		SKIP(return, "no memory tags");
	copy_and_discard(_metadata, self);
	EXPECT_EQ(madvise(self->r.mem, self->r.nr * self->r.size, MADV_COLLAPSE),
		  0);
	EXPECT_TRUE(mapped_by_pmds(self));
	for (i = 1; i < self->pages; i += COPIED)
		wrong += !has_tag(self, i, 0);
	EXPECT_EQ(wrong, 0) {
		TH_LOG("%ld pages have their old tags", wrong);
	}
	check_discarded(_metadata, self);
	expect_contents(_metadata, &self->r);
}

/* Copies that were swapped out: they are read, and move back. */
TEST_F(folio_collapse, copied_and_swapped)
{
	const size_t len = self->r.nr * self->r.size;
	const long last = self->pages - COPIED;

	snapshot(_metadata, self);
	ASSERT_EQ(madvise(page(&self->r, 0), psize(), MADV_PAGEOUT), 0);
	ASSERT_EQ(madvise(page(&self->r, last), psize(), MADV_PAGEOUT), 0);
	if (!pagemap_is_swapped(self->env.pagemap_fd, page(&self->r, 0)) ||
	    !pagemap_is_swapped(self->env.pagemap_fd, page(&self->r, last)))
		SKIP(return, "no swap");
	EXPECT_EQ(madvise(self->r.mem, len, MADV_COLLAPSE), 0);
	check_some(_metadata, self);
	expect_in_place(_metadata, self);
}

TEST_F(folio_collapse, read_only)
{
	map_by_ptes(_metadata, self, PROT_READ);
	EXPECT_EQ(collapse(self), 0);
	expect_in_place(_metadata, self);
	EXPECT_FALSE(writable(page(&self->r, 3)));
	ASSERT_EQ(mprotect(self->r.mem, self->r.nr * self->r.size,
			   PROT_READ | PROT_WRITE), 0);
	EXPECT_TRUE(writable(page(&self->r, 3)));
	EXPECT_EQ(nr_moved(self), 0);
}

TEST_F(folio_collapse, soft_dirty)
{
	int fd = self->env.pagemap_fd;

	if (!softdirty_supported())
		SKIP(return, "no soft-dirty");
	map_by_ptes(_metadata, self, PROT_READ | PROT_WRITE);
	clear_softdirty();
	write_page(&self->r, self->pages - 1);
	EXPECT_EQ(collapse(self), 0);
	expect_in_place(_metadata, self);
	/* Those of the first folio were not written. */
	EXPECT_FALSE(pagemap_is_softdirty(fd, page(&self->r, 1)));
	EXPECT_TRUE(pagemap_is_softdirty(fd, page(&self->r, self->pages - 1)));
	EXPECT_TRUE(writable(page(&self->r, 1)));
	EXPECT_TRUE(pagemap_is_softdirty(fd, page(&self->r, 1)));
}

TEST_F(folio_collapse, userfaultfd)
{
	struct uffdio_writeprotect wp = {
		.range = { (unsigned long)self->r.mem, self->r.size },
		.mode = UFFDIO_WRITEPROTECT_MODE_WP,
	};
	int fd;

	fd = uffd_sigbus(self->r.mem, self->r.size, false);
	if (fd < 0)
		SKIP(return, "no write protection by userfaultfd");
	map_by_ptes(_metadata, self, PROT_READ | PROT_WRITE);
	ASSERT_EQ(ioctl(fd, UFFDIO_WRITEPROTECT, &wp), 0);
	EXPECT_NE(madvise(self->r.mem, self->r.size, MADV_COLLAPSE), 0);
	EXPECT_TRUE(bus_error(page(&self->r, 6), true));
	wp.mode = 0;
	ASSERT_EQ(ioctl(fd, UFFDIO_WRITEPROTECT, &wp), 0);
	EXPECT_FALSE(bus_error(page(&self->r, 6), true));
	close(fd);
	expect_contents(_metadata, &self->r);
}

TEST_F(folio_collapse, mlocked)
{
	const size_t len = self->r.nr * self->r.size;
	long before, locked;

	if (mlock(self->r.mem, len))
		SKIP(return, "cannot lock that much memory");
	/* What is queued on CPUs is counted, too */
	write_num("/proc/sys/vm/compact_memory", 1);
	map_by_ptes(_metadata, self, PROT_READ | PROT_WRITE);
	before = read_vmstat("nr_mlock");
	EXPECT_EQ(collapse(self), 0);
	expect_in_place(_metadata, self);
	locked = read_vmstat("nr_mlock");
	EXPECT_EQ(locked, before) {
		TH_LOG("%ld pages are locked, before %ld", locked, before);
	}
	munlock(self->r.mem, len);
}

TEST_HARNESS_MAIN
