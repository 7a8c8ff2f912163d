// SPDX-License-Identifier: GPL-2.0
/*
 * Memory that fails while its huge page changes: while a page of 1 GiB is
 * demoted, while a page joins the pool, and while it leaves the pool. The failed
 * page must not be handed out, and the kernel must survive. Each with and
 * without the HugeTLB vmemmap optimization (HVO).
 */
#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <pthread.h>
#include <stdlib.h>
#include "hugetlb_pool.h"

#define SIZE_2M		(2UL << 20)
#define SIZE_1G		(512 * SIZE_2M)
#define DEMOTE_SIZE_PATH \
	"/sys/kernel/mm/hugepages/hugepages-1048576kB/demote_size"

#define PAGES_2M	(SIZE_2M / psize())
#define PAGES_1G	(SIZE_1G / psize())

/* How often memory fails, and how often a demotion may be over before it does */
#define ROUNDS		3
#define MAX_TRIES	10

/* A memory failure, by another thread */
struct failure {
	pthread_t thread;
	unsigned long pfn;
	unsigned long head;	/* wait until this page is the head of a folio */
	bool stop;		/* do not wait any longer */
	bool failed;		/* it did not wait in vain */
	int result;
};

static bool wait_for_head(struct failure *failure)
{
	uint64_t flags = 0;
	int fd;

	fd = open("/proc/kpageflags", O_RDONLY);
	if (fd < 0)
		return false;
	while (!(flags & KPF_COMPOUND_HEAD) &&
	       !__atomic_load_n(&failure->stop, __ATOMIC_RELAXED))
		if (pageflags_get(failure->head, fd, &flags))
			break;
	close(fd);
	return flags & KPF_COMPOUND_HEAD;
}

static void *failure_thread(void *arg)
{
	struct failure *failure = arg;

	if (failure->head && !wait_for_head(failure))
		return NULL;
	failure->failed = true;
	failure->result = fail_memory(failure->pfn);
	return NULL;
}

/*
 * Map all free huge pages of @size bytes. Returns how many there are, and in
 * @failed whether one of them contains @pfn.
 */
static long hand_out_all(unsigned long size, unsigned long pfn, bool *failed)
{
	const unsigned long nr = pool_get(size, "free_hugepages");
	unsigned long i, first;
	long handed_out = 0;
	char *map;

	*failed = false;
	if (!nr)
		return 0;
	map = mmap(NULL, nr * size, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_HUGETLB |
		   __builtin_ctzl(size) << MAP_HUGE_SHIFT, -1, 0);
	if (map == MAP_FAILED)
		return -1;
	for (i = 0; i < nr; i++) {
		/* No SIGBUS if there is none */
		if (madvise(map + i * size, size, MADV_POPULATE_WRITE))
			continue;
		handed_out++;
		first = pfn_of(map + i * size);
		if (pfn >= first && pfn < first + size / psize())
			*failed = true;
	}
	munmap(map, nr * size);
	return handed_out;
}

FIXTURE(hwpoison)
{
	unsigned long old_hvo;
	unsigned long pfn;		/* that has failed, or 0 */
	char demote_size[32];		/* as it was, or empty */
};

FIXTURE_VARIANT(hwpoison)
{
	bool hvo;
};

FIXTURE_VARIANT_ADD(hwpoison, plain)
{
	.hvo = false,
};

FIXTURE_VARIANT_ADD(hwpoison, optimized)
{
	.hvo = true,
};

/* Pages of 1 GiB are demoted to what @size says. Returns 0 or an error. */
static int set_demote_size(const char *size)
{
	int fd, ret;

	fd = open(DEMOTE_SIZE_PATH, O_WRONLY);
	if (fd < 0)
		return -errno;
	ret = write(fd, size, strlen(size)) < 0 ? -errno : 0;
	close(fd);
	return ret;
}

static void empty_pools(void)
{
	if (pool_has(SIZE_1G, "nr_hugepages"))
		pool_set(SIZE_1G, "nr_hugepages", 0);
	pool_set(SIZE_2M, "nr_hugepages", 0);
}

FIXTURE_SETUP(hwpoison)
{
	self->pfn = 0;
	self->demote_size[0] = 0;
	if (!can_fail_memory())
		SKIP(return, "no hwpoison-inject, or no root");
	if (!pool_has(SIZE_2M, "nr_hugepages"))
		SKIP(return, "no huge pages of 2 MiB");
	if (variant->hvo && !hvo_possible())
		SKIP(return, "no HugeTLB vmemmap optimization");
	self->old_hvo = hvo_get();
	ASSERT_EQ(hvo_set(variant->hvo), 0);
	empty_pools();
	if (pool_get(SIZE_2M, "nr_hugepages"))
		SKIP(return, "the pool is in use");
}

FIXTURE_TEARDOWN(hwpoison)
{
	empty_pools();
	if (self->pfn)
		unpoison_memory(self->pfn);
	if (self->demote_size[0])
		set_demote_size(self->demote_size);
	hvo_set(self->old_hvo);
}

/* Can pages of 1 GiB be demoted to pages of 2 MiB? */
static bool can_demote(FIXTURE_DATA(hwpoison) * self)
{
	if (read_file(DEMOTE_SIZE_PATH, self->demote_size,
		      sizeof(self->demote_size)) <= 0)
		return false;
	return !set_demote_size("2M");
}

/* Make a huge page of 1 GiB. Returns its first PFN, or 0. */
static unsigned long make_1g_page(void)
{
	unsigned long pfn;
	int tries;
	char *map;

	/* Pages that are just being freed may be in the way */
	for (tries = 0; tries < 10; tries++) {
		pool_set(SIZE_1G, "nr_hugepages", 1);
		if (pool_get(SIZE_1G, "free_hugepages"))
			break;
		pool_write("/proc/sys/vm/compact_memory", 1);
		usleep(100000);
	}
	if (tries == 10)
		return 0;
	map = mmap(NULL, SIZE_1G, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB |
		   30 << MAP_HUGE_SHIFT, -1, 0);
	if (map == MAP_FAILED)
		return 0;
	pfn = madvise(map, psize(), MADV_POPULATE_WRITE) ? 0 : pfn_of(map);
	munmap(map, SIZE_1G);
	return pfn;
}

/*
 * Demote a page of 1 GiB. The page fails that is @page pages from its beginning,
 * when the second of the new pages is there: most of the others are not.
 */
static void demote_and_fail_once(struct __test_metadata *_metadata,
				 FIXTURE_DATA(hwpoison) * self,
				 unsigned long page)
{
	const long nr_new = SIZE_1G / SIZE_2M;
	struct failure failure;
	unsigned long first;
	bool handed_out;
	int tries, ret;
	long nr;

	for (tries = 0; tries < MAX_TRIES; tries++) {
		first = make_1g_page();
		if (!first)
			SKIP(return, "no huge page of 1 GiB");

		failure = (struct failure){
			.pfn = first + page,
			.head = first + PAGES_2M,
		};
		ASSERT_EQ(pthread_create(&failure.thread, NULL, failure_thread,
					 &failure), 0);
		usleep(10000);
		ret = pool_set(SIZE_1G, "demote", 1);
		__atomic_store_n(&failure.stop, true, __ATOMIC_RELAXED);
		ASSERT_EQ(pthread_join(failure.thread, NULL), 0);
		ASSERT_EQ(ret, 0);
		if (failure.failed)
			break;
		empty_pools();
	}
	if (tries == MAX_TRIES)
		SKIP(return, "demotion was too fast");
	self->pfn = failure.pfn;

	nr = hand_out_all(SIZE_2M, failure.pfn, &handed_out);
	EXPECT_GE(nr, nr_new - 1) {
		TH_LOG("%ld pages were handed out, expected %ld", nr,
		       nr_new - 1);
	}
	EXPECT_FALSE(handed_out) {
		TH_LOG("page %lu of 1 GiB failed and was handed out (memory_failure(): %d)",
		       page, failure.result);
	}

	empty_pools();
	EXPECT_EQ(unpoison_memory(self->pfn), 0);
	self->pfn = 0;
}

static void demote_and_fail(struct __test_metadata *_metadata,
			    FIXTURE_DATA(hwpoison) * self, unsigned long page)
{
	int round;

	if (!can_demote(self))
		SKIP(return, "pages of 1 GiB cannot be demoted to 2 MiB");
	for (round = 0; round < ROUNDS; round++)
		demote_and_fail_once(_metadata, self, page);
}

/* Of the first of the new pages */
TEST_F_TIMEOUT(hwpoison, demote_first, 120)
{
	demote_and_fail(_metadata, self, 300);
}

/* The head of a page that the failed page's struct page leads to last */
TEST_F_TIMEOUT(hwpoison, demote_head, 120)
{
	demote_and_fail(_metadata, self, PAGES_1G - PAGES_2M);
}

TEST_F_TIMEOUT(hwpoison, demote_last, 120)
{
	demote_and_fail(_metadata, self, PAGES_1G - 1);
}

/*
 * A page of a THP fails. The THP is freed and becomes a huge page, before
 * memory_failure() sets PG_hwpoison.
 */
TEST_F_TIMEOUT(hwpoison, joins_pool, 60)
{
	struct failure failure = {};
	struct thp_settings settings;
	unsigned long first;
	char *map, *thp;
	bool failed;

	if (!thp_available() || read_pmd_pagesize() != SIZE_2M)
		SKIP(return, "no THP of 2 MiB");
	thp_read_settings(&settings);
	settings.thp_enabled = THP_MADVISE;
	thp_push_settings(&settings);
	map = mmap(NULL, 2 * SIZE_2M, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(map, MAP_FAILED);
	thp = (char *)(((unsigned long)map + SIZE_2M - 1) & ~(SIZE_2M - 1));
	ASSERT_EQ(madvise(thp, SIZE_2M, MADV_HUGEPAGE), 0);
	memset(thp, 1, SIZE_2M);
	first = pfn_of(thp);
	thp_pop_settings();
	if (!first || first % PAGES_2M || !check_huge_anon(thp, SIZE_2M, 1, SIZE_2M))
		SKIP(return, "no THP");

	/* Beyond the struct pages that HVO keeps */
	failure.pfn = first + PAGES_2M - 1;
	self->pfn = failure.pfn;
	ASSERT_EQ(pthread_create(&failure.thread, NULL, failure_thread,
				 &failure), 0);
	usleep(100000);
	munmap(map, 2 * SIZE_2M);
	/* Without a delay in the kernel it has been taken out before */
	pool_grow_until(SIZE_2M, failure.pfn);
	ASSERT_EQ(pthread_join(failure.thread, NULL), 0);

	ASSERT_GE(hand_out_all(SIZE_2M, failure.pfn, &failed), 0);
	EXPECT_FALSE(failed) {
		TH_LOG("the failed page was handed out (memory_failure(): %d)",
		       failure.result);
	}
}

/*
 * A page of a free huge page fails. That leaves the pool and becomes a part of
 * a page of 1 GiB, before memory_failure() goes on with it.
 */
TEST_F_TIMEOUT(hwpoison, leaves_pool, 120)
{
	struct failure failure = {};
	unsigned long first;
	bool failed;

	if (!can_demote(self))
		SKIP(return, "pages of 1 GiB cannot be demoted to 2 MiB");
	first = make_1g_page();
	if (!first)
		SKIP(return, "no huge page of 1 GiB");
	if (pool_set(SIZE_1G, "demote", 1))
		SKIP(return, "a huge page of 1 GiB was not demoted");

	/* Of the last part, so that its head will be a tail */
	failure.pfn = first + PAGES_1G - 1;
	self->pfn = failure.pfn;
	ASSERT_EQ(pthread_create(&failure.thread, NULL, failure_thread,
				 &failure), 0);
	usleep(100000);
	pool_set(SIZE_2M, "nr_hugepages", 0);
	pool_set(SIZE_1G, "nr_hugepages", 1);
	ASSERT_EQ(pthread_join(failure.thread, NULL), 0);

	ASSERT_GE(hand_out_all(SIZE_1G, failure.pfn, &failed), 0);
	EXPECT_FALSE(failed) {
		TH_LOG("the failed page was handed out (memory_failure(): %d)",
		       failure.result);
	}
}

TEST_HARNESS_MAIN
