// SPDX-License-Identifier: GPL-2.0
/*
 * How large folios are mapped: how many of their pages count as mapped, and
 * whether a process that is left alone with a folio may write to it in place.
 */

#include <stdbool.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <time.h>

#include "folio_cgroup.h"

#define TIMEOUT		900

/* What the processes of a test need besides, and what their children do */
#define SLACK		8
#define CHILD_SLACK	64

FIXTURE(statistics)
{
	struct folio_env env;
	struct folio_cgroup cgroup;
};

FIXTURE_SETUP(statistics)
{
	const char *why = folio_env_init(&self->env);

	if (why)
		SKIP(return, "%s", why);
	if (!folio_cgroup_enter(&self->cgroup, "folio_mapcount"))
		SKIP(return, "no control groups of memory");
}

FIXTURE_TEARDOWN(statistics)
{
	folio_cgroup_leave(&self->cgroup);
	thp_restore_settings();
}

static long read_pages(FIXTURE_DATA(statistics) * self, const char *key)
{
	return folio_cgroup_pages(&self->cgroup, key);
}

static bool counts(FIXTURE_DATA(statistics) * self, const char *key,
		   long before, long pages, long slack, size_t size,
		   const char *when)
{
	return folio_cgroup_counts(&self->cgroup, key, before, pages, slack,
				   size, when);
}

static int region_pages(struct region *r)
{
	return r->nr * r->size / psize();
}

/* Pages of anonymous folios count as long as they are mapped, and no longer. */
TEST_F_TIMEOUT(statistics, anon, TIMEOUT)
{
	const char *key = "anon ";
	int i, tested = 0;
	struct region r;

	for (i = 0; i < self->env.nr_sizes; i++) {
		const size_t size = self->env.sizes[i];
		long before = read_pages(self, key), pages;

		/* One page of each folio must make a difference. */
		if (size < 16 * psize())
			continue;
		if (!region_alloc(&self->env, &r, size, 0))
			continue;
		pages = region_pages(&r);
		EXPECT_TRUE(counts(self, key, before, pages, SLACK, size,
				   "when all are mapped"));

		/* The second half of each of them, then all but the first page. */
		ASSERT_EQ(region_drop(&r, size / 2), 0);
		EXPECT_TRUE(counts(self, key, before, pages / 2, SLACK, size,
				   "when a half is mapped"));
		ASSERT_EQ(region_drop(&r, size - psize()), 0);
		EXPECT_TRUE(counts(self, key, before, r.nr, r.nr / 2, size,
				   "when one of each folio is mapped"));
		region_free(&r);
		EXPECT_TRUE(counts(self, key, before, 0, SLACK, size,
				   "when none is mapped"));
		tested++;
	}
	if (!tested)
		SKIP(return, "no folios of any size");
}

/* What two processes map does not count twice, and counts until the last one. */
TEST_F_TIMEOUT(statistics, anon_shared, TIMEOUT)
{
	const char *key = "anon ";
	int i, fds[2], tested = 0;
	struct region r;
	pid_t pid;

	for (i = 0; i < self->env.nr_sizes; i++) {
		const size_t size = self->env.sizes[i];
		long before = read_pages(self, key), pages;

		if (size < 64 * psize())
			continue;
		if (!region_alloc(&self->env, &r, size, 0))
			continue;
		pages = region_pages(&r);
		/* The child does not get the second half of the folios. */
		ASSERT_EQ(madvise(r.mem + r.nr / 2 * size, r.nr / 2 * size,
				  MADV_DONTFORK), 0);
		pid = fork_child(fds);
		ASSERT_GT(pid, 0);
		EXPECT_TRUE(counts(self, key, before, pages, CHILD_SLACK, size,
				   "when a child maps them, too"));
		region_free(&r);
		EXPECT_TRUE(counts(self, key, before, pages / 2, CHILD_SLACK,
				   size, "when only the child maps them"));
		ASSERT_TRUE(end_child(pid, fds));
		EXPECT_TRUE(counts(self, key, before, 0, SLACK, size,
				   "when the child is gone"));
		tested++;
	}
	if (!tested)
		SKIP(return, "no folios of any size");
}

/* fork() of folios of which a half is mapped, and exit, change nothing. */
TEST_F_TIMEOUT(statistics, anon_half_shared, TIMEOUT)
{
	const char *key = "anon ";
	int i, j, fds[2], tested = 0;
	struct region r;
	pid_t pid;

	for (i = 0; i < self->env.nr_sizes; i++) {
		const size_t size = self->env.sizes[i];
		long before = read_pages(self, key);

		if (size < 16 * psize())
			continue;
		if (!region_alloc(&self->env, &r, size, 0))
			continue;
		ASSERT_EQ(region_drop(&r, size / 2), 0);
		for (j = 0; j < 4; j++) {
			pid = fork_child(fds);
			ASSERT_GT(pid, 0);
			/* A half mapped twice may count as all, not as more. */
			EXPECT_TRUE(counts(self, key, before,
					   region_pages(&r) * 3 / 4,
					   region_pages(&r) / 4 + CHILD_SLACK,
					   size, "when two map the same half"));
			ASSERT_TRUE(end_child(pid, fds));
		}
		EXPECT_TRUE(counts(self, key, before, region_pages(&r) / 2,
				   SLACK, size, "when children have mapped a half"));
		region_free(&r);
		EXPECT_TRUE(counts(self, key, before, 0, SLACK, size,
				   "when none is mapped"));
		tested++;
	}
	if (!tested)
		SKIP(return, "no folios of any size");
}

/*
 * Half of each folio is moved elsewhere, where it goes on to count, and is given
 * back there: not before that is the folio partially mapped.
 */
TEST_F_TIMEOUT(statistics, anon_moved, TIMEOUT)
{
	const char *key = "anon ";
	int i, j, tested = 0;
	struct region r;
	char *spare, *to;

	for (i = 0; i < self->env.nr_sizes; i++) {
		const size_t size = self->env.sizes[i], half = size / 2;
		long before = read_pages(self, key), pages;

		if (size < 16 * psize())
			continue;
		if (!region_alloc(&self->env, &r, size, 0))
			continue;
		pages = region_pages(&r);
		spare = mmap(NULL, r.nr * size, PROT_NONE,
			     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		ASSERT_NE(spare, MAP_FAILED);
		/* Nothing can be merged with anything. */
		for (j = 0; j < r.nr; j++) {
			to = spare + j * size;
			ASSERT_EQ(mremap(r.mem + j * size + half, half, half,
					 MREMAP_MAYMOVE | MREMAP_FIXED, to), to);
		}
		EXPECT_TRUE(counts(self, key, before, pages, SLACK, size,
				   "when a half has been moved"));
		EXPECT_EQ(read_stat(size, "nr_anon_partially_mapped"),
			  r.full.partially_mapped);
		for (j = 0; j < r.nr; j++)
			ASSERT_EQ(munmap(spare + j * size, half), 0);
		EXPECT_TRUE(counts(self, key, before, pages / 2, SLACK, size,
				   "when a half has been moved and unmapped"));
		EXPECT_EQ(read_stat(size, "nr_anon_partially_mapped"),
			  r.full.partially_mapped + r.nr);
		region_free(&r);
		munmap(spare, r.nr * size);
		EXPECT_TRUE(counts(self, key, before, 0, SLACK, size,
				   "when none is mapped"));
		EXPECT_EQ(read_stat(size, "nr_anon_partially_mapped"),
			  r.empty.partially_mapped);
		tested++;
	}
	if (!tested)
		SKIP(return, "no folios of any size");
}

/* A folio counts as mapped by PMDs as long as the last one maps it. */
TEST_F_TIMEOUT(statistics, anon_huge, TIMEOUT)
{
	const size_t size = self->env.pmd_size;
	const char *key = "anon_thp ";
	long before = read_pages(self, key);
	int i, fds[2];
	struct region r;
	pid_t pid;

	if (self->env.sizes[self->env.nr_sizes - 1] != size ||
	    !region_alloc(&self->env, &r, size, 0))
		SKIP(return, "no folios of PMD size");
	EXPECT_TRUE(counts(self, key, before, region_pages(&r), 0, size,
			   "when PMDs map all"));
	pid = fork_child(fds);
	ASSERT_GT(pid, 0);
	EXPECT_TRUE(counts(self, key, before, region_pages(&r), 0, size,
			   "when a child maps them, too"));
	/* PTEs map the first half of them, of which this process has a page less. */
	for (i = 0; i < r.nr / 2; i++)
		ASSERT_EQ(madvise(r.mem + i * size, psize(), MADV_DONTNEED), 0);
	EXPECT_TRUE(counts(self, key, before, region_pages(&r), 0, size,
			   "when only the child maps half of them by PMDs"));
	ASSERT_TRUE(end_child(pid, fds));
	EXPECT_TRUE(counts(self, key, before, (r.nr - r.nr / 2) * size / psize(),
			   0, size, "when PTEs map half of them"));
	region_free(&r);
	EXPECT_TRUE(counts(self, key, before, 0, 0, size, "when none is mapped"));
}

#define UNPOISON	"/sys/kernel/debug/hwpoison/unpoison-pfn"

static void ignore(int sig)
{
}

/* MADV_HWPOISON sends SIGBUS to this process. A later read raises it again. */
static bool poison(char *page)
{
	bool poisoned;

	signal(SIGBUS, ignore);
	poisoned = !madvise(page, psize(), MADV_HWPOISON);
	signal(SIGBUS, SIG_DFL);
	return poisoned;
}

static bool unpoison(unsigned long pfn)
{
	int tries;

	for (tries = 0; tries < 100; tries++) {
		if (!unpoison_memory(pfn))
			return true;
		usleep(1000 * 10);
	}
	return false;
}

#define NR_FORKERS	2

/* Children that fork others, which exit at once, until they are stopped */
struct forkers {
	pid_t pids[NR_FORKERS];
	int stop[2];
};

static void __noreturn fork_until_stopped(int stop)
{
	int status;
	pid_t pid;
	char c;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	fcntl(stop, F_SETFL, O_NONBLOCK);
	while (read(stop, &c, 1) < 0) {
		pid = fork();
		if (!pid)
			_exit(0);
		if (pid < 0 || waitpid(pid, &status, 0) != pid || status)
			_exit(1);
	}
	_exit(0);
}

static bool start_forkers(struct forkers *forkers)
{
	int i;

	if (pipe(forkers->stop))
		return false;
	for (i = 0; i < NR_FORKERS; i++) {
		forkers->pids[i] = fork();
		if (!forkers->pids[i]) {
			close(forkers->stop[1]);
			fork_until_stopped(forkers->stop[0]);
		}
		if (forkers->pids[i] < 0)
			return false;
	}
	return true;
}

/* Returns whether all forkers exited without an error. */
static bool stop_forkers(struct forkers *forkers)
{
	bool good = true;
	int i, status;

	close(forkers->stop[0]);
	close(forkers->stop[1]);
	for (i = 0; i < NR_FORKERS; i++)
		if (waitpid(forkers->pids[i], &status, 0) != forkers->pids[i] ||
		    status)
			good = false;
	return good;
}

/* One page of each folio, not always the same */
static char *bad_page(struct region *r, int nth)
{
	const int pages = r->size / psize();

	return r->mem + nth * r->size + (pages / 3 + nth) % pages * psize();
}

/*
 * A page of each folio fails while other processes come that map it, and go. All
 * other pages stay what they are. The kernel may have to leave the failed one,
 * too, if it cannot split the folio because of these.
 */
TEST_F_TIMEOUT(statistics, memory_failure, TIMEOUT)
{
	const char *key = "anon ";
	unsigned long pfns[MAX_FOLIOS];
	bool poisoned[MAX_FOLIOS];
	int i, j, nr, wrong, tested = 0;
	struct forkers forkers;
	struct region r;
	char *p;

	if (access(UNPOISON, W_OK))
		SKIP(return, "memory that failed could not be restored");
	for (i = 0; i < self->env.nr_sizes; i++) {
		const size_t size = self->env.sizes[i];
		long before = read_pages(self, key);

		if (!region_alloc(&self->env, &r, size, 0))
			continue;
		ASSERT_TRUE(start_forkers(&forkers));
		for (nr = 0, j = 0; j < r.nr; j++) {
			p = bad_page(&r, j);
			pfns[j] = pagemap_get_pfn(self->env.pagemap_fd, p);
			poisoned[j] = poison(p);
			nr += poisoned[j];
		}
		EXPECT_TRUE(stop_forkers(&forkers));
		for (wrong = 0, p = r.mem; p < r.mem + r.nr * size; p += psize()) {
			j = (p - r.mem) / size;
			if (p != bad_page(&r, j))
				wrong += *p != pattern(&r, p);
			else if (poisoned[j])
				EXPECT_TRUE(bus_error(p, false));
		}
		EXPECT_EQ(wrong, 0) {
			TH_LOG("%zukB: %d pages changed when others failed",
			       size >> 10, wrong);
		}
		region_free(&r);
		EXPECT_TRUE(counts(self, key, before, 0, SLACK, size,
				   "when none is mapped"));
		EXPECT_EQ(read_stat(size, "nr_anon_partially_mapped"),
			  r.empty.partially_mapped);
		for (j = 0; j < r.nr; j++)
			EXPECT_TRUE(unpoison(pfns[j]));
		ksft_print_msg("%zukB: %d of %d pages failed\n", size >> 10, nr,
			       r.nr);
		tested += nr;
	}
	if (!tested && __test_passed(_metadata))
		SKIP(return, "no memory that can fail");
}

/* Is there enough free swap for what a test allocates? */
static bool has_swap(void)
{
	long kb = 0;
	char line[128];
	FILE *f;

	f = fopen("/proc/meminfo", "r");
	if (!f)
		return false;
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "SwapFree: %ld kB", &kb) == 1)
			break;
	fclose(f);
	return kb > (long)(4 * MAX_BYTES >> 10);
}

/* Larger folios are not looked at. */
#define MAX_LOOKED_AT	2048

/* Does a third process map the whole folios while the others drop a half? */
enum third {
	NOBODY,
	ANOTHER_CHILD,
};

/*
 * A process and its child drop the same half of each folio. As many pages as
 * there are in the folio are mapped: twice the other half. Whoever needs memory
 * has to see that, and split the folios: reclaim, instead of writing all of them
 * to swap, and the deferred split shrinker, which needs none. Not before another
 * child is gone, if there is one, that maps all of it.
 */
static void drop_same_half(struct __test_metadata *_metadata,
			   FIXTURE_DATA(statistics) * self, bool reclaim,
			   enum third third)
{
	int i, j, fds[2], third_fds[2], tested = 0;
	long before, split = 0, fallback;
	pid_t pid, third_pid = 0;
	struct region r;
	char *p;

	for (i = 0; i < self->env.nr_sizes; i++) {
		const size_t size = self->env.sizes[i];

		/* Two pages are never split for this. */
		if (size < 4 * psize() || size > MAX_LOOKED_AT * psize())
			continue;
		if (!region_alloc(&self->env, &r, size, 0))
			continue;
		/* New PMD-sized folios are queued already: empty the queue. */
		shrink();
		before = read_stat(size, "split");
		fallback = read_stat(size, "swpout_fallback");
		pid = fork_child_drop(fds, &r, size / 2);
		ASSERT_GT(pid, 0);
		/* It keeps the pipe to the other child open, so it ends first. */
		if (third == ANOTHER_CHILD) {
			third_pid = fork_child(third_fds);
			ASSERT_GT(third_pid, 0);
		}
		ASSERT_EQ(region_drop(&r, size / 2), 0);
		if (third == ANOTHER_CHILD) {
			shrink();
			EXPECT_EQ(read_stat(size, "split"), before) {
				TH_LOG("%zukB: split while all is mapped",
				       size >> 10);
			}
			ASSERT_TRUE(end_child(third_pid, third_fds));
		}
		for (j = 0; j < 100; j++) {
			/* It fails if there is not as much, which is fine. */
			if (reclaim)
				cg_write(self->cgroup.path, "memory.reclaim",
					 "64M swappiness=max");
			else
				shrink();
			split = read_stat(size, "split") - before;
			if (split >= r.nr)
				break;
			usleep(1000 * 50);
		}
		fallback = read_stat(size, "swpout_fallback") - fallback;
		if (fallback) {
			ksft_print_msg("%zukB: not tested, %ld folios did not fit into swap\n",
				       size >> 10, fallback);
			goto end;
		}
		EXPECT_GE(split, r.nr) {
			TH_LOG("%zukB: %ld of %d folios were split", size >> 10,
			       split, r.nr);
		}
		for (p = r.mem; p < r.mem + r.nr * size; p += psize())
			if ((p - r.mem) % size < size / 2)
				ASSERT_EQ(*p, pattern(&r, p));
		tested++;
end:
		ASSERT_TRUE(end_child(pid, fds));
		region_free(&r);
	}
	if (!tested && __test_passed(_metadata))
		SKIP(return, "no folios of any size");
}

TEST_F_TIMEOUT(statistics, same_half_dropped, TIMEOUT)
{
	if (!has_swap())
		SKIP(return, "no swap");
	drop_same_half(_metadata, self, true, NOBODY);
}

TEST_F_TIMEOUT(statistics, same_half_dropped_and_shrunk, TIMEOUT)
{
	drop_same_half(_metadata, self, false, NOBODY);
}

TEST_F_TIMEOUT(statistics, same_half_dropped_by_two_of_three, TIMEOUT)
{
	drop_same_half(_metadata, self, false, ANOTHER_CHILD);
}

/*
 * Run the deferred split shrinker, up to 100 times, until @nr more folios of @size
 * than @before were split. Returns how many were.
 */
static long shrink_until_split(size_t size, long before, long nr)
{
	long split = 0;
	int i;

	for (i = 0; i < 100; i++) {
		shrink();
		split = read_stat(size, "split") - before;
		if (split >= nr)
			break;
		usleep(1000 * 20);
	}
	return split;
}

/* Processes that drop a half of each folio: together they map it twice or more. */
#define DROPPERS	4

/*
 * Children drop the same half of each folio while their parent maps all of it.
 * Nothing is split before the parent drops its mappings, all of a folio at once.
 * The children have two mappings for each page of the folio then, so only the
 * mark of the folio shows that it has to be checked.
 */
TEST_F_TIMEOUT(statistics, half_dropped_before_parent_drops_all, TIMEOUT)
{
	int i, j, fds[DROPPERS][2], tested = 0;
	long before, split;
	pid_t pids[DROPPERS];
	struct region r;

	for (i = 0; i < self->env.nr_sizes; i++) {
		const size_t size = self->env.sizes[i];

		if (size < 4 * psize() || size > MAX_LOOKED_AT * psize())
			continue;
		if (!region_alloc(&self->env, &r, size, 0))
			continue;
		/* Folios of PMD size are queued from the beginning. */
		shrink();
		before = read_stat(size, "split");
		for (j = 0; j < DROPPERS; j++) {
			pids[j] = fork_child_drop(fds[j], &r, size / 2);
			ASSERT_GT(pids[j], 0);
		}
		shrink();
		EXPECT_EQ(read_stat(size, "split"), before) {
			TH_LOG("%zukB: split while the parent maps all pages",
			       size >> 10);
		}
		ASSERT_EQ(madvise(r.mem, r.nr * size, MADV_DONTNEED), 0);
		split = shrink_until_split(size, before, r.nr);
		EXPECT_GE(split, r.nr) {
			TH_LOG("%zukB: %ld of %d folios were split", size >> 10,
			       split, r.nr);
		}
		/* The children keep the pipes of older ones open. */
		for (j = DROPPERS - 1; j >= 0; j--)
			ASSERT_TRUE(end_child(pids[j], fds[j]));
		region_free(&r);
		tested++;
	}
	if (!tested)
		SKIP(return, "no folios of any size");
}

FIXTURE(cover)
{
	struct folio_env env;
	struct region r;
	long split;	/* before any of the folios was */
	pid_t droppers[DROPPERS - 1];	/* this process is another one */
	int dropper_fds[DROPPERS - 1][2];
	pid_t cover;
	int cover_fds[2];
};

FIXTURE_VARIANT(cover)
{
	size_t size;	/* 0: mapped by PMDs */
};

FIXTURE_VARIANT_ADD(cover, 16kB)
{
	.size = 16 << 10,
};

FIXTURE_VARIANT_ADD(cover, 64kB)
{
	.size = 64 << 10,
};

FIXTURE_VARIANT_ADD(cover, 512kB)
{
	.size = 512 << 10,
};

FIXTURE_VARIANT_ADD(cover, PMD)
{
	.size = 0,
};

FIXTURE_SETUP(cover)
{
	const char *why = folio_env_init(&self->env);
	size_t size = variant->size;
	bool offered = false;
	int i;

	if (why)
		SKIP(return, "%s", why);
	if (!size)
		size = self->env.pmd_size;
	for (i = 0; i < self->env.nr_sizes; i++)
		offered |= self->env.sizes[i] == size;
	if (!offered || size / psize() > MAX_LOOKED_AT ||
	    !region_alloc(&self->env, &self->r, size, 0))
		SKIP(return, "no folios of %zukB", size >> 10);

	self->split = read_stat(size, "split");

	/* The children keep the pipes of older ones open, so the last ends first. */
	for (i = 0; i < DROPPERS - 1; i++) {
		self->droppers[i] = fork_child_drop(self->dropper_fds[i],
						    &self->r, size / 2);
		ASSERT_GT(self->droppers[i], 0);
	}
	self->cover = fork_child(self->cover_fds);
	ASSERT_GT(self->cover, 0);
	ASSERT_EQ(region_drop(&self->r, size / 2), 0);
}

FIXTURE_TEARDOWN(cover)
{
	thp_restore_settings();
}

/*
 * The shrinker finds nothing to split while one process maps all of each folio.
 * When that process exits, half of each folio is not mapped any more.
 */
static void end_cover(struct __test_metadata *_metadata,
		      FIXTURE_DATA(cover) * self, bool migrate)
{
	struct region *r = &self->r;
	const size_t size = r->size;
	int nodes[MAX_FOLIOS], status[MAX_FOLIOS], i;
	void *pages[MAX_FOLIOS];
	long split;
	char *p;

	for (i = 0; i < 3; i++)
		shrink();
	ASSERT_EQ(read_stat(size, "split"), self->split) {
		TH_LOG("%zukB: split while a process maps all pages",
		       size >> 10);
	}
	for (i = 0; migrate && i < r->nr; i++) {
		pages[i] = r->mem + i * size;
		nodes[i] = self->env.node2;
	}
	if (migrate) {
		ASSERT_EQ(move_pages(0, r->nr, pages, nodes, status,
				     MPOL_MF_MOVE_ALL), 0);
		for (i = 0; i < r->nr; i++)
			ASSERT_EQ(status[i], self->env.node2);
	}
	ASSERT_TRUE(end_child(self->cover, self->cover_fds));
	split = shrink_until_split(size, self->split, r->nr);
	EXPECT_EQ(split, r->nr) {
		TH_LOG("%zukB: %ld of %d folios were split, expected all",
		       size >> 10, split, r->nr);
	}
	for (p = r->mem; p < r->mem + r->nr * size; p += psize())
		if ((p - r->mem) % size < size / 2)
			ASSERT_EQ(*p, pattern(r, p));
	for (i = DROPPERS - 2; i >= 0; i--)
		ASSERT_TRUE(end_child(self->droppers[i], self->dropper_fds[i]));
	region_free(r);
}

TEST_F_TIMEOUT(cover, exits, TIMEOUT)
{
	end_cover(_metadata, self, false);
}

TEST_F_TIMEOUT(cover, migrated_and_exits, TIMEOUT)
{
	if (self->env.node2 < 0)
		SKIP(return, "needs two NUMA nodes with memory to use");
	end_cover(_metadata, self, true);
}

#define MAX_CHILDREN	63

/*
 * As many processes as a folio has pages have each dropped all but the first page:
 * in total as many are mapped as there are, but all of them are that one page.
 */
TEST_F_TIMEOUT(statistics, one_page_left, TIMEOUT)
{
	int i, j, n, fds[MAX_CHILDREN][2], tested = 0;
	pid_t pids[MAX_CHILDREN];
	struct region r;
	long before;

	for (i = 0; i < self->env.nr_sizes; i++) {
		const size_t size = self->env.sizes[i];
		const int children = size / psize() - 1;

		if (size < 4 * psize() || children > MAX_CHILDREN)
			continue;
		if (!region_alloc(&self->env, &r, size, 0))
			continue;
		before = read_stat(size, "split");
		/* Each keeps the pipes to those before it open. */
		for (n = 0; n < children; n++) {
			pids[n] = fork_child_drop(fds[n], &r, size - psize());
			ASSERT_GT(pids[n], 0);
		}
		ASSERT_EQ(region_drop(&r, size - psize()), 0);
		for (j = 0; j < 100; j++) {
			shrink();
			if (read_stat(size, "split") - before >= r.nr)
				break;
			usleep(1000 * 50);
		}
		EXPECT_GE(read_stat(size, "split") - before, r.nr) {
			TH_LOG("%zukB: %ld of %d folios were split", size >> 10,
			       read_stat(size, "split") - before, r.nr);
		}
		for (j = 0; j < r.nr; j++)
			ASSERT_EQ(r.mem[j * size], pattern(&r, r.mem + j * size));
		for (n = children - 1; n >= 0; n--)
			ASSERT_TRUE(end_child(pids[n], fds[n]));
		region_free(&r);
		tested++;
	}
	if (!tested && __test_passed(_metadata))
		SKIP(return, "no folios of any size");
}

#define NR_SHMEM	8

/* One page of each folio of a file is mapped, then all of it by PMDs. */
TEST_F_TIMEOUT(statistics, shmem, TIMEOUT)
{
	const size_t size = self->env.pmd_size;
	const char *key = "file_mapped ";
	int i, fd, nr = NR_SHMEM;
	char *arena, *mem, *pages[NR_SHMEM];
	long before;

	fd = shmem_folios(&self->env, &nr);
	if (fd < 0)
		SKIP(return, "no file of large folios");
	before = read_pages(self, key);
	for (i = 0; i < nr; i++) {
		pages[i] = mmap(NULL, psize(), PROT_READ | PROT_WRITE,
				MAP_SHARED | MAP_POPULATE, fd, i * size);
		ASSERT_NE(pages[i], MAP_FAILED);
	}
	EXPECT_TRUE(counts(self, key, before, nr, 0, size,
			   "when one of each folio is mapped"));

	arena = mmap(NULL, (nr + 1) * size, PROT_NONE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	ASSERT_NE(arena, MAP_FAILED);
	mem = align_up(arena, size);
	ASSERT_EQ(mmap(mem, nr * size, PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_FIXED, fd, 0), mem);
	for (i = 0; i < nr; i++)
		mem[i * size] = 1;
	EXPECT_TRUE(counts(self, key, before, nr * size / psize(), 0,
			   size, "when all are mapped"));
	munmap(mem, nr * size);
	EXPECT_TRUE(counts(self, key, before, nr, 0, size,
			   "when one of each folio is mapped again"));
	for (i = 0; i < nr; i++)
		munmap(pages[i], psize());
	EXPECT_TRUE(counts(self, key, before, 0, 0, size,
			   "when none is mapped"));
	munmap(arena, (nr + 1) * size);
	close(fd);
}

/*
 * Map one page of each folio of a file, for all sizes, then map it once more,
 * which counts as another page. No folio may count more pages than it has.
 */
TEST_F_TIMEOUT(statistics, shmem_sizes, TIMEOUT)
{
	const unsigned long orders = thp_shmem_supported_orders();
	const char *key = "file_mapped ";
	char *pages[2][NR_SHMEM], *all;
	int i, n, order, fd, nr, tested = 0;
	long before;

	for (order = 1; order < NR_ORDERS; order++) {
		const size_t size = psize() << order;

		nr = NR_SHMEM;
		if (!(orders & (1ul << order)) || size > self->env.pmd_size)
			continue;
		fd = shmem_folios_of(&self->env, size, &nr);
		if (fd < 0)
			continue;
		before = read_pages(self, key);
		for (n = 0; n < 2; n++) {
			for (i = 0; i < nr; i++) {
				pages[n][i] = mmap(NULL, psize(), PROT_READ,
						   MAP_SHARED | MAP_POPULATE, fd,
						   i * size);
				ASSERT_NE(pages[n][i], MAP_FAILED);
			}
			EXPECT_TRUE(counts(self, key, before, (n + 1) * nr, 0,
					   size, "when one page of each folio is mapped"));
		}
		all = mmap(NULL, nr * size, PROT_READ, MAP_SHARED | MAP_POPULATE,
			   fd, 0);
		ASSERT_NE(all, MAP_FAILED);
		EXPECT_TRUE(counts(self, key, before, nr * size / psize(), 0,
				   size, "when all are mapped"));
		for (n = 0; n < 2; n++)
			for (i = 0; i < nr; i++)
				munmap(pages[n][i], psize());
		EXPECT_TRUE(counts(self, key, before, nr * size / psize(), 0,
				   size, "when all are mapped once"));
		munmap(all, nr * size);
		EXPECT_TRUE(counts(self, key, before, 0, 0, size,
				   "when none is mapped"));
		close(fd);
		tested++;
	}
	if (!tested)
		SKIP(return, "no files of large folios");
}

/* So do folios of a file, but this is counted for the system alone. */
TEST_F_TIMEOUT(statistics, shmem_huge, TIMEOUT)
{
	const size_t size = self->env.pmd_size;
	const char *key = "nr_shmem_pmdmapped";
	int i, n, fd, nr = NR_SHMEM;
	char *arena[2], *mem[2];
	long before;

	fd = shmem_folios(&self->env, &nr);
	if (fd < 0)
		SKIP(return, "no file of large folios");
	before = read_vmstat(key);
	ASSERT_GE(before, 0);
	for (n = 0; n < 2; n++) {
		arena[n] = mmap(NULL, (nr + 1) * size, PROT_NONE,
				MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		ASSERT_NE(arena[n], MAP_FAILED);
		mem[n] = align_up(arena[n], size);
		ASSERT_EQ(mmap(mem[n], nr * size, PROT_READ | PROT_WRITE,
			       MAP_SHARED | MAP_FIXED, fd, 0), mem[n]);
		for (i = 0; i < nr; i++)
			mem[n][i * size] = 1;
		/* In units of such folios */
		EXPECT_EQ(read_vmstat(key), before + nr);
	}
	munmap(mem[0], nr * size);
	EXPECT_EQ(read_vmstat(key), before + nr);
	/* The PMD is zapped: pages of a file can be faulted in again. */
	ASSERT_EQ(munmap(mem[1] + psize(), psize()), 0);
	EXPECT_EQ(read_vmstat(key), before + nr - 1);
	munmap(mem[1], nr * size);
	EXPECT_EQ(read_vmstat(key), before);
	for (n = 0; n < 2; n++)
		munmap(arena[n], (nr + 1) * size);
	close(fd);
}

/* Some pages of each folio of a file are in a mapping that fork() copies. */
TEST_F_TIMEOUT(statistics, shmem_forked, TIMEOUT)
{
	const size_t size = self->env.pmd_size;
	const char *key = "file_mapped ";
	const int len = 8;
	int i, j, fd, fds[2], nr = NR_SHMEM;
	char *pages[NR_SHMEM];
	long before;
	pid_t pid;

	fd = shmem_folios(&self->env, &nr);
	if (fd < 0)
		SKIP(return, "no file of large folios");
	before = read_pages(self, key);
	for (i = 0; i < nr; i++) {
		pages[i] = mmap(NULL, len * psize(), PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_POPULATE, fd, i * size);
		ASSERT_NE(pages[i], MAP_FAILED);
		/* All are copies, now give all but the first page back. */
		ASSERT_EQ(madvise(pages[i] + psize(), (len - 1) * psize(),
				  MADV_DONTNEED), 0);
		for (j = 1; j < len; j++)
			FORCE_READ(pages[i][j * psize()]);
	}
	for (i = 0; i < 4; i++) {
		pid = fork_child(fds);
		ASSERT_GT(pid, 0);
		ASSERT_TRUE(end_child(pid, fds));
	}
	EXPECT_TRUE(counts(self, key, before, nr * (len - 1), 0, size,
			   "when children have mapped them, too"));
	for (i = 0; i < nr; i++)
		munmap(pages[i], len * psize());
	EXPECT_TRUE(counts(self, key, before, 0, 0, size,
			   "when none is mapped"));
	close(fd);
}

#define NR_RANDOM	4
#define RANDOM_SECONDS	10

/* Map, unmap and move parts of a file of large folios for some seconds. */
static void __noreturn map_at_random(int fd, size_t size, int folios,
				     unsigned int seed)
{
	const size_t area = (folios + 1) * size;
	const int pages = folios * size / psize();
	const time_t end = time(NULL) + RANDOM_SECONDS;
	char *arena, *mem, *p;
	int i, first, nr;
	size_t len;
	pid_t pid;

	arena = mmap(NULL, 2 * area + size, PROT_NONE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (arena == MAP_FAILED)
		_exit(1);
	mem = align_up(arena, size);
	/* Where no PMD can map it, and it crosses page tables */
	if (seed % 2)
		mem += psize();

	while (time(NULL) < end) {
		first = rand_r(&seed) % pages;
		nr = 1 + rand_r(&seed) % (pages / 4);
		if (nr > pages - first)
			nr = pages - first;
		p = mem + first * psize();
		len = nr * psize();
		if (mmap(p, len, PROT_READ | PROT_WRITE, MAP_FIXED |
			 (rand_r(&seed) % 2 ? MAP_SHARED : MAP_PRIVATE), fd,
			 first * psize()) != p)
			_exit(2);
		for (i = 0; i < nr; i += 1 + rand_r(&seed) % 16) {
			if (rand_r(&seed) % 16)
				FORCE_READ(p[i * psize()]);
			else
				p[i * psize()] = 1;
		}
		switch (rand_r(&seed) % 4) {
		case 0:
			if (mmap(p, len, PROT_NONE, MAP_FIXED | MAP_PRIVATE |
				 MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) != p)
				_exit(3);
			break;
		case 1:
			i = nr / 2 * psize();
			if (i && madvise(p, i, MADV_DONTNEED))
				_exit(4);
			break;
		case 2:
			pid = fork();
			if (!pid)
				_exit(0);
			if (pid < 0 || waitpid(pid, NULL, 0) != pid)
				_exit(5);
			break;
		case 3:
			if (mremap(p, len, len, MREMAP_MAYMOVE | MREMAP_FIXED,
				   p + area) != p + area)
				_exit(6);
			break;
		}
	}
	_exit(0);
}

/*
 * Processes do that all at once, and what they map is migrated meanwhile, if there
 * are two nodes.
 */
TEST_F_TIMEOUT(statistics, shmem_at_random, TIMEOUT)
{
	const size_t size = self->env.pmd_size;
	int i, n, fd, status, running = NR_RANDOM, folios = NR_SHMEM;
	struct bitmask *nodes[2];
	long mapped, anon;
	pid_t pids[NR_RANDOM];

	fd = shmem_folios(&self->env, &folios);
	if (fd < 0)
		SKIP(return, "no file of large folios");
	mapped = read_pages(self, "file_mapped ");
	anon = read_pages(self, "anon ");
	for (i = 0; i < NR_RANDOM; i++) {
		pids[i] = fork();
		ASSERT_GE(pids[i], 0);
		if (!pids[i])
			map_at_random(fd, size, folios, i);
	}

	for (i = 0; i < 2; i++) {
		nodes[i] = numa_allocate_nodemask();
		ASSERT_NE(nodes[i], NULL);
	}
	if (self->env.node2 >= 0) {
		numa_bitmask_setbit(nodes[0], self->env.node1);
		numa_bitmask_setbit(nodes[1], self->env.node2);
	}
	for (n = 0; running; n++) {
		if (self->env.node2 >= 0)
			for (i = 0; i < NR_RANDOM; i++)
				numa_migrate_pages(pids[i], nodes[n % 2],
						   nodes[!(n % 2)]);
		usleep(1000);
		while (running && waitpid(-1, &status, WNOHANG) > 0) {
			EXPECT_EQ(status, 0);
			running--;
		}
	}
	for (i = 0; i < 2; i++)
		numa_bitmask_free(nodes[i]);
	EXPECT_TRUE(counts(self, "file_mapped ", mapped, 0, 0, size,
			   "when none is mapped"));
	/* This process has meanwhile copied pages that it shared with its parent. */
	EXPECT_TRUE(counts(self, "anon ", anon, 0, 4 * SLACK, size,
			   "when none is mapped"));
	close(fd);
}

/*
 * A child gets half of each folio. The other half is private to its parent, and
 * known to be.
 */
TEST_F_TIMEOUT(statistics, private, TIMEOUT)
{
	int i, n, fds[2], tested = 0;
	struct region r;
	pid_t pid;

	for (i = 0; i < self->env.nr_sizes; i++) {
		const size_t size = self->env.sizes[i];
		const int pages = size / psize();
		long set = 0, clear = 0, kb;

		if (!region_alloc(&self->env, &r, size, 0))
			continue;
		kb = r.nr * size / 1024;
		for (n = 0; n < r.nr; n++)
			ASSERT_EQ(madvise(r.mem + n * size + size / 2, size / 2,
					  MADV_DONTFORK), 0);
		EXPECT_EQ(smaps_sum(getpid(), &r, "Private_Dirty"), kb);
		EXPECT_EQ(smaps_sum(getpid(), &r, "Pss"), kb);

		pid = fork_child(fds);
		ASSERT_GT(pid, 0);
		for (n = 0; n < r.nr * pages; n++) {
			bool exclusive = pagemap_get_entry(self->env.pagemap_fd,
					r.mem + n * psize()) & PM_MMAP_EXCLUSIVE;

			if (n % pages < pages / 2)
				set += exclusive;
			else
				clear += !exclusive;
		}
		EXPECT_EQ(set + clear, 0) {
			TH_LOG("%zukB: %ld shared pages are said to be exclusive",
			       size >> 10, set);
			TH_LOG("%zukB: %ld exclusive pages are said to be shared",
			       size >> 10, clear);
		}
		EXPECT_EQ(smaps_sum(getpid(), &r, "Private_Dirty"), kb / 2);
		EXPECT_EQ(smaps_sum(getpid(), &r, "Shared_Dirty"), kb / 2);
		/* Half of it is mapped by two. */
		EXPECT_EQ(smaps_sum(getpid(), &r, "Pss"), kb / 2 + kb / 4);
		ASSERT_TRUE(end_child(pid, fds));
		EXPECT_EQ(smaps_sum(getpid(), &r, "Private_Dirty"), kb);
		EXPECT_EQ(smaps_sum(getpid(), &r, "Pss"), kb);
		region_free(&r);
		tested++;
	}
	if (!tested)
		SKIP(return, "no folios of any size");
}

/* What /proc/self/numa_maps says of the mapping at @mem, or 0 */
static long numa_maps_mapmax(char *mem)
{
	unsigned long start = 0;
	char line[4096], *value;
	long mapmax = 0;
	FILE *file;

	file = fopen("/proc/self/numa_maps", "r");
	if (!file)
		return 0;
	while (fgets(line, sizeof(line), file)) {
		if (sscanf(line, "%lx ", &start) != 1 ||
		    start != (unsigned long)mem)
			continue;
		value = strstr(line, " mapmax=");
		mapmax = value ? atol(value + strlen(" mapmax=")) : 1;
		break;
	}
	fclose(file);
	return mapmax;
}

/* Pss of the mapping at @mem, in kB */
static long smaps_pss(char *mem, size_t size)
{
	struct region r = { .mem = mem, .size = size, .nr = 1 };

	return smaps_sum(getpid(), &r, "Pss");
}

/*
 * Pages of a folio that one process maps by different numbers of page table entries
 * have the average of all of its pages, and at least 1: that is how wrong what is
 * shown of them can be. It is rounded, but not for Pss. Map one page of 32 of a
 * file as often as that, and twice all of them, which is exact.
 */
TEST_F_TIMEOUT(statistics, averages, TIMEOUT)
{
	static const int times[] = { 1, 2, 15, 16, 47, 48, 1000 };
	const size_t size = self->env.pmd_size, part = size / 32;
	const long pages = size / psize();
	int i, fd, kpagecount, nr = 1, mapped = 0;
	unsigned long first;
	char *mem[1000], *whole[2];
	long average;
	uint64_t count;

	fd = shmem_folios(&self->env, &nr);
	if (fd < 0)
		SKIP(return, "no file of large folios");
	kpagecount = open("/proc/kpagecount", O_RDONLY);
	if (kpagecount < 0)
		SKIP(return, "no kpagecount");

	for (i = 0; i < ARRAY_SIZE(times); i++) {
		for (; mapped < times[i]; mapped++) {
			mem[mapped] = mmap(NULL, part, PROT_READ,
					   MAP_SHARED | MAP_POPULATE, fd, 0);
			ASSERT_NE(mem[mapped], MAP_FAILED);
		}
		average = (times[i] + 16) / 32 ?: 1;
		first = pagemap_get_pfn(self->env.pagemap_fd, mem[0]);
		ASSERT_EQ(pread(kpagecount, &count, sizeof(count),
				first * sizeof(count)), sizeof(count));
		EXPECT_EQ(count, average);
		/* This one is not mapped at all. */
		ASSERT_EQ(pread(kpagecount, &count, sizeof(count),
				(first + pages - 1) * sizeof(count)),
			  sizeof(count));
		EXPECT_EQ(count, average);
		/* Both are too small by less than 1.5 times the number of pages. */
		EXPECT_LT(times[i], count * 48);
		EXPECT_EQ(smaps_pss(mem[0], part), times[i] > 32 ?
			  part / 1024 * 32 / times[i] : part / 1024);
		if (numa_available() >= 0)
			EXPECT_EQ(numa_maps_mapmax(mem[0]), average);
	}
	for (i = 0; i < mapped; i++)
		munmap(mem[i], part);

	for (i = 0; i < 2; i++) {
		whole[i] = mmap(NULL, size, PROT_READ, MAP_SHARED | MAP_POPULATE,
				fd, 0);
		ASSERT_NE(whole[i], MAP_FAILED);
	}
	first = pagemap_get_pfn(self->env.pagemap_fd, whole[0]);
	ASSERT_EQ(pread(kpagecount, &count, sizeof(count),
			first * sizeof(count)), sizeof(count));
	EXPECT_EQ(count, 2);
	EXPECT_EQ(smaps_pss(whole[0], size), size / 1024 / 2);
	if (numa_available() >= 0)
		EXPECT_EQ(numa_maps_mapmax(whole[0]), 2);
	for (i = 0; i < 2; i++)
		munmap(whole[i], size);
	close(kpagecount);
	close(fd);
}

/*
 * A process has a child, and that has one, and so on, and each of them maps the
 * memory. All but one of them exit, and the one that is left writes to all of it,
 * or does something else that it can only do alone.
 */
FIXTURE(owner)
{
	struct folio_env env;
	bool splice;	/* the first page of each folio into a pipe */
};

FIXTURE_VARIANT(owner)
{
	int owners;
	int left;	/* 0 is the first process; a random one if it is negative */
};

FIXTURE_VARIANT_ADD(owner, parent)
{
	.owners = 3,
	.left = 0,
};

FIXTURE_VARIANT_ADD(owner, child)
{
	.owners = 3,
	.left = 1,
};

FIXTURE_VARIANT_ADD(owner, grandchild)
{
	.owners = 3,
	.left = 2,
};

FIXTURE_VARIANT_ADD(owner, any_of_eight)
{
	.owners = 8,
	.left = -1,
};

#define MAX_OWNERS	8

FIXTURE_SETUP(owner)
{
	const char *why = folio_env_init(&self->env);
	const char *given = getenv("FOLIO_MAPCOUNT_SEED");
	const unsigned int seed = given ? atol(given) : time(NULL);

	if (why)
		SKIP(return, "%s", why);
	/* Grandchildren are waited for as well. */
	ASSERT_EQ(prctl(PR_SET_CHILD_SUBREAPER, 1), 0);
	if (variant->left < 0) {
		TH_LOG("FOLIO_MAPCOUNT_SEED=%u", seed);
		srand(seed);
	}
}

FIXTURE_TEARDOWN(owner)
{
	thp_restore_settings();
}

/* Where all of them can write, and the test reads. */
struct owner_report {
	bool allocated;
	int owners;
	int exited;
	bool done;
	int all;
	int left;	/* of these, still as if others mapped them, too */
	int wrong;
};

/* What the one that is left does to find out whether it is taken to be alone */
typedef void (*owner_act_t)(struct folio_env *env, struct region *r,
			    struct owner_report *report);

struct owner_plan {
	int owners;
	int left;
	int turn[MAX_OWNERS];	/* of each of them to exit */
	owner_act_t act;
};

/* Write to each page, and see whether it is another one then. */
static void write_all(struct folio_env *env, struct region *r,
		      struct owner_report *report)
{
	const size_t len = r->nr * r->size;
	unsigned long pfn;
	char *p;

	for (p = r->mem; p < r->mem + len; p += psize()) {
		pfn = pagemap_get_pfn(env->pagemap_fd, p);
		report->wrong += *p != pattern(r, p);
		*p = pattern(r, p);
		report->left += pagemap_get_pfn(env->pagemap_fd, p) != pfn;
		report->all++;
	}
}

/*
 * Fork the others, and exit when all of them map the memory, or wait for them to
 * do so. They keep the pipe open for writing: it ends when their memory is gone.
 */
static void be_owners(struct folio_env *env, struct region *r, int fds[2],
		      struct owner_report *report, struct owner_plan *plan)
{
	pid_t pid = 0;
	int nth;
	char c;

	for (nth = 0; nth + 1 < plan->owners; nth++) {
		pid = fork();
		if (pid)
			break;
	}
	/* If fork() fails, count the missing processes to end all waits. */
	__atomic_add_fetch(&report->owners, pid < 0 ? plan->owners : 1,
			   __ATOMIC_SEQ_CST);
	while (__atomic_load_n(&report->owners, __ATOMIC_SEQ_CST) < plan->owners)
		usleep(1000);
	if (pid < 0)
		_exit(1);
	if (nth != plan->left) {
		while (__atomic_load_n(&report->exited, __ATOMIC_SEQ_CST) <
		       plan->turn[nth])
			usleep(100);
		__atomic_add_fetch(&report->exited, 1, __ATOMIC_SEQ_CST);
		_exit(0);
	}

	close(fds[1]);
	/* Its own, not that of the one that has forked it */
	env->pagemap_fd = open("/proc/self/pagemap", O_RDONLY);
	if (!read(fds[0], &c, 1)) {
		plan->act(env, r, report);
		report->done = true;
	}
	_exit(0);
}

/* What the first process has put into a pipe */
static int spliced[2];

/* Returns whether there were folios to do that to. */
static bool be_left(struct __test_metadata *_metadata,
		    FIXTURE_DATA(owner) * self, size_t size,
		    struct owner_report *report, struct owner_plan *plan)
{
	int fds[2], status;
	struct region r;
	pid_t pid;

	memset(report, 0, sizeof(*report));
	ASSERT_EQ(pipe(fds), 0);
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		/* Its own, not that of the test */
		self->env.pagemap_fd = open("/proc/self/pagemap", O_RDONLY);
		report->allocated = region_alloc(&self->env, &r, size, 4);
		if (!report->allocated)
			_exit(0);
		if (self->splice && hold_folios(&r, spliced))
			_exit(1);
		be_owners(&self->env, &r, fds, report, plan);
	}
	close(fds[0]);
	close(fds[1]);
	while (waitpid(-1, &status, 0) > 0)
		ASSERT_EQ(status, 0);
	if (!report->allocated)
		return false;
	EXPECT_TRUE(report->done);
	EXPECT_EQ(report->wrong, 0);
	return true;
}

/*
 * Memory can be looked at by others for a moment, as by compaction, and then is
 * left alone with good reason. That does not happen again and again.
 */
#define OWNER_TRIES	3

/* All but one exit as they like, or one after the other in any order. */
static void make_plan(struct owner_plan *plan, int left)
{
	int i, j, turn;

	plan->left = left;
	if (left >= 0)
		return;
	plan->left = rand() % plan->owners;
	for (i = 0; i < plan->owners; i++)
		plan->turn[i] = i;
	for (i = plan->owners - 1; i > 0; i--) {
		j = rand() % (i + 1);
		turn = plan->turn[i];
		plan->turn[i] = plan->turn[j];
		plan->turn[j] = turn;
	}
	/* The process that stays has no turn: close the gap. */
	for (i = 0; i < plan->owners; i++)
		if (plan->turn[i] > plan->turn[plan->left])
			plan->turn[i]--;
}

/* @size: or 0 for all sizes */
static void test_owner(struct __test_metadata *_metadata,
		       FIXTURE_DATA(owner) * self,
		       const FIXTURE_VARIANT(owner) * variant, size_t size,
		       owner_act_t act, const char *what)
{
	struct owner_plan plan = { .owners = variant->owners, .act = act };
	struct owner_report *report;
	int i, tries, tested = 0;

	report = mmap(NULL, psize(), PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(report, MAP_FAILED);

	for (i = 0; i < self->env.nr_sizes; i++) {
		if (size && self->env.sizes[i] != size)
			continue;
		for (tries = 0; tries < OWNER_TRIES; tries++) {
			make_plan(&plan, variant->left);
			if (!be_left(_metadata, self, self->env.sizes[i], report,
				     &plan))
				break;
			tested++;
			if (!report->left)
				break;
		}
		EXPECT_EQ(report->left, 0) {
			TH_LOG("%zukB: who is left alone %s: %d of %d",
			       self->env.sizes[i] >> 10, what, report->left,
			       report->all);
		}
	}
	munmap(report, psize());
	if (!tested && __test_passed(_metadata))
		SKIP(return, "no folios of any size");
}

TEST_F_TIMEOUT(owner, reuses_pages, TIMEOUT)
{
	test_owner(_metadata, self, variant, 0, write_all,
		   "copies pages");
}

/* Advice for a part of a folio splits it, if no other process maps it. */
static void advise(struct folio_env *env, struct region *r,
		   struct owner_report *report, int advice)
{
	int i;

	for (i = 0; i < r->nr; i++)
		report->wrong += !!madvise(r->mem + i * r->size, r->size / 2,
					   advice);
	report->left = count_folios(env, r);
	report->all = r->nr;
}

static void advise_cold(struct folio_env *env, struct region *r,
			struct owner_report *report)
{
	advise(env, r, report, MADV_COLD);
}

static void advise_pageout(struct folio_env *env, struct region *r,
			   struct owner_report *report)
{
	advise(env, r, report, MADV_PAGEOUT);
}

static void advise_free(struct folio_env *env, struct region *r,
			struct owner_report *report)
{
	advise(env, r, report, MADV_FREE);
}

TEST_F_TIMEOUT(owner, cold, TIMEOUT)
{
	test_owner(_metadata, self, variant, 0, advise_cold,
		   "cannot say that half of a folio is cold");
}

TEST_F_TIMEOUT(owner, paged_out, TIMEOUT)
{
	test_owner(_metadata, self, variant, 0, advise_pageout,
		   "cannot have half of a folio paged out");
}

TEST_F_TIMEOUT(owner, freed, TIMEOUT)
{
	test_owner(_metadata, self, variant, 0, advise_free,
		   "cannot have half of a folio freed");
}

static int not_on_node2(struct folio_env *env, struct region *r)
{
	int status[MAX_FOLIOS], i, left = 0;
	void *pages[MAX_FOLIOS];

	for (i = 0; i < r->nr; i++)
		pages[i] = r->mem + i * r->size;
	if (move_pages(0, r->nr, pages, NULL, status, 0))
		return r->nr;
	for (i = 0; i < r->nr; i++)
		left += status[i] != env->node2;
	return left;
}

static void move_all(struct folio_env *env, struct region *r,
		     struct owner_report *report)
{
	int nodes[MAX_FOLIOS], status[MAX_FOLIOS], i;
	void *pages[MAX_FOLIOS];

	for (i = 0; i < r->nr; i++) {
		pages[i] = r->mem + i * r->size;
		nodes[i] = env->node2;
	}
	report->wrong = move_pages(0, r->nr, pages, nodes, status,
				   MPOL_MF_MOVE) < 0;
	report->left = not_on_node2(env, r);
	report->all = r->nr;
}

static void bind_all(struct folio_env *env, struct region *r,
		     struct owner_report *report)
{
	struct bitmask *nodes = numa_allocate_nodemask();

	numa_bitmask_setbit(nodes, env->node2);
	mbind(r->mem, r->nr * r->size, MPOL_BIND, nodes->maskp,
	      nodes->size + 1, MPOL_MF_MOVE);
	numa_bitmask_free(nodes);
	report->left = not_on_node2(env, r);
	report->all = r->nr;
}

TEST_F_TIMEOUT(owner, moved, TIMEOUT)
{
	if (self->env.node2 < 0)
		SKIP(return, "needs two NUMA nodes with memory to use");
	test_owner(_metadata, self, variant, 0, move_all,
		   "cannot move folios");
}

TEST_F_TIMEOUT(owner, bound, TIMEOUT)
{
	if (self->env.node2 < 0)
		SKIP(return, "needs two NUMA nodes with memory to use");
	test_owner(_metadata, self, variant, 0, bind_all,
		   "cannot bind folios");
}

/* khugepaged collapses four folios into one, if no other process maps them. */
static void collapse(struct folio_env *env, struct region *r,
		     struct owner_report *report)
{
	const size_t len = r->nr * r->size;
	char *arena, *mem, *p, path[128];
	int tries;

	snprintf(path, sizeof(path), "hugepages-%zukB/enabled", len >> 10);
	thp_write_string(path, "madvise");
	arena = mmap(NULL, 3 * len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS |
		     MAP_NORESERVE, -1, 0);
	mem = align_up(arena + 1, len);
	report->wrong = arena == MAP_FAILED ||
			mremap(r->mem, len, len, MREMAP_MAYMOVE | MREMAP_FIXED,
			       mem) != mem ||
			madvise(mem, len, MADV_NOHUGEPAGE) ||
			madvise(mem, len, MADV_HUGEPAGE);
	/* Memory that is not accessed is not worth it. */
	for (p = mem; p < mem + len && !report->wrong; p += psize())
		FORCE_READ(*p);
	for (tries = 0; tries < 200 && !report->wrong; tries++) {
		if (check_huge_anon(mem, len, 1, len))
			break;
		usleep(1000 * 50);
	}
	thp_write_string(path, "never");
	report->left = tries == 200 ? r->nr : 0;
	report->all = r->nr;
}

TEST_F_TIMEOUT(owner, collapsed, TIMEOUT)
{
	const size_t pmd_size = self->env.pmd_size;
	struct thp_settings settings;

	if (!pmd_size || pmd_size > MAX_BYTES)
		SKIP(return, "no PMD, or too large ones");
	thp_read_settings(&settings);
	settings.khugepaged.defrag = true;
	settings.khugepaged.alloc_sleep_millisecs = 10;
	settings.khugepaged.scan_sleep_millisecs = 10;
	settings.khugepaged.pages_to_scan = 64 * pmd_size / psize();
	settings.khugepaged.max_ptes_none = 0;
	settings.khugepaged.max_ptes_shared = 0;
	thp_write_settings(&settings);
	test_owner(_metadata, self, variant, pmd_size / 4, collapse,
		   "does not get a huge page");
}

/* Pages that are in a pipe are not written to, whoever put them there. */
static void write_spliced(struct folio_env *env, struct region *r,
			  struct owner_report *report)
{
	char *page = malloc(psize()), *p;
	int i;

	for (i = 0; i < r->nr; i++) {
		p = r->mem + i * r->size;
		*p = pattern(r, p) + 1;
	}
	for (i = 0; i < r->nr; i++) {
		p = r->mem + i * r->size;
		report->wrong += read(spliced[0], page, psize()) != psize() ||
				 *page != pattern(r, p);
	}
	free(page);
}

TEST_F_TIMEOUT(owner, spliced, TIMEOUT)
{
	self->splice = true;
	test_owner(_metadata, self, variant, 0, write_spliced, "");
}

TEST_HARNESS_MAIN
