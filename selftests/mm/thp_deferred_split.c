// SPDX-License-Identifier: GPL-2.0
/*
 * A page of a huge page is unmapped while the deferred split shrinker takes the
 * huge page off its list, where it was because it may be underused. Whoever comes
 * first: it is on the list after that, and is split when the shrinker runs again.
 */

#include <errno.h>
#include <pthread.h>
#include <time.h>

#include "folio_region.h"

#define ROUNDS		20
#define SPLIT_TRIES	100
#define TIMEOUT		600

FIXTURE(thp_deferred_split)
{
	size_t size;	/* of a huge page */
	int nr;
	char *map;
	char *mem;	/* where @nr huge pages fit */
	int kmsg;	/* what the kernel says from now on, or -1 */
};

static unsigned long shrink_underused;

static void restore_shrink_underused(void)
{
	thp_write_num("shrink_underused", shrink_underused);
}

/* Restored when the harness exits, however its children ended. */
static void __attribute__((constructor)) save_shrink_underused(void)
{
	if (access(THP_ENABLED, W_OK))
		return;
	shrink_underused = thp_read_num("shrink_underused");
	atexit(restore_shrink_underused);
}

FIXTURE_SETUP(thp_deferred_split)
{
	struct thp_settings settings;
	int i;

	if (geteuid())
		SKIP(return, "needs root");
	if (!thp_available() || access(THP_ENABLED, W_OK))
		SKIP(return, "no transparent huge pages that can be set up");

	self->size = read_pmd_pagesize();
	ASSERT_GT(self->size, 0);
	self->nr = MAX_BYTES / self->size;
	if (self->nr < 2)
		self->nr = 2;
	/* PMD-sized folios can be very large: avoid the OOM killer. */
	if (free_memory(-1) / 4 < (long long)(self->nr * self->size))
		SKIP(return, "not enough free memory");
	self->map = mmap(NULL, (self->nr + 1) * self->size, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	ASSERT_NE(self->map, MAP_FAILED);
	self->mem = align_up(self->map, self->size);

	/* Where the kernel has no log, it is not looked at. */
	self->kmsg = open("/dev/kmsg", O_RDONLY | O_NONBLOCK);
	if (self->kmsg >= 0)
		lseek(self->kmsg, 0, SEEK_END);

	thp_read_settings(&settings);
	settings.thp_enabled = THP_MADVISE;
	settings.thp_defrag = THP_DEFRAG_ALWAYS;
	for (i = 0; i < NR_ORDERS; i++)
		settings.hugepages[i].enabled = THP_NEVER;
	settings.hugepages[sz2ord(self->size, psize())].enabled = THP_INHERIT;
	/* Huge pages are queued from the beginning, but none is underused. */
	settings.khugepaged.max_ptes_none = self->size / psize() - 1;
	thp_write_settings(&settings);
	thp_write_num("shrink_underused", 1);

	/* Nothing that was queued before is to be split during the test. */
	shrink();
}

FIXTURE_TEARDOWN(thp_deferred_split)
{
	munmap(self->map, (self->nr + 1) * self->size);
	if (self->kmsg >= 0)
		close(self->kmsg);
	restore_shrink_underused();
	thp_restore_settings();
}

/* Gets huge pages, and keeps khugepaged away from what becomes of them. */
static bool get_thps(FIXTURE_DATA(thp_deferred_split) * self)
{
	const size_t len = self->nr * self->size;
	int i;

	if (mmap(self->mem, len, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1,
		 0) != self->mem || madvise(self->mem, len, MADV_HUGEPAGE))
		return false;
	for (i = 0; i < self->nr; i++)
		self->mem[i * self->size] = 1;
	if (madvise(self->mem, len, MADV_NOHUGEPAGE))
		return false;
	return check_huge_anon(self->mem, len, self->nr, self->size);
}

/* Returns how long it took, in microseconds. */
static void *shrink_once(void *arg)
{
	struct timespec start, end;
	long micros;

	clock_gettime(CLOCK_MONOTONIC, &start);
	shrink();
	clock_gettime(CLOCK_MONOTONIC, &end);
	micros = (end.tv_sec - start.tv_sec) * 1000000 +
		 (end.tv_nsec - start.tv_nsec) / 1000;
	return (void *)micros;
}

/* Has the kernel found a list that is not linked as it should be? Logs if so. */
static bool list_corrupted(int kmsg)
{
	char record[8192];
	bool found = false;
	ssize_t len;

	/* EPIPE: some records were lost, those after them can be read. */
	while ((len = read(kmsg, record, sizeof(record) - 1)) > 0 ||
	       (len < 0 && errno == EPIPE)) {
		if (len < 0)
			continue;
		record[len] = '\0';
		if (!strstr(record, "list_del corruption") &&
		    !strstr(record, "list_add corruption"))
			continue;
		ksft_print_msg("%s", record);
		found = true;
	}
	return found;
}

/*
 * Have at least @splits huge pages been split, and are there no more than
 * @partially_mapped that have yet to be? Others can split theirs meanwhile.
 */
static bool all_split(FIXTURE_DATA(thp_deferred_split) * self, long splits,
		      long partially_mapped)
{
	return read_stat(self->size, "split") >= splits &&
	       read_stat(self->size, "nr_anon_partially_mapped") <=
	       partially_mapped;
}

TEST_F_TIMEOUT(thp_deferred_split, unmapped_while_shrunk, TIMEOUT)
{
	int i, round, tries, tested = 0;
	long splits, partially_mapped;
	void *micros = NULL;
	pthread_t thread;

	srand(1);
	for (round = 0; round < ROUNDS; round++) {
		splits = read_stat(self->size, "split") + self->nr;
		partially_mapped = read_stat(self->size,
					     "nr_anon_partially_mapped");
		if (!get_thps(self))
			continue;

		ASSERT_EQ(pthread_create(&thread, NULL, shrink_once, NULL), 0);
		for (i = 0; i < self->nr; i++) {
			/* At any moment of what the last one took */
			usleep(rand() % ((long)micros / self->nr + 1));
			ASSERT_EQ(madvise(self->mem + i * self->size, psize(),
					  MADV_DONTNEED), 0);
		}
		ASSERT_EQ(pthread_join(thread, &micros), 0);

		for (tries = 0; tries < SPLIT_TRIES; tries++) {
			if (all_split(self, splits, partially_mapped))
				break;
			shrink();
		}
		EXPECT_LT(tries, SPLIT_TRIES) {
			TH_LOG("huge pages were not found on the list");
		}
		ASSERT_EQ(madvise(self->mem, self->nr * self->size,
				  MADV_DONTNEED), 0);
		ASSERT_FALSE(list_corrupted(self->kmsg));
		tested++;
	}
	if (!tested)
		SKIP(return, "no huge pages");
}

TEST_HARNESS_MAIN
