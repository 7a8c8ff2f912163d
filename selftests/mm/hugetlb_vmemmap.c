// SPDX-License-Identifier: GPL-2.0
/*
 * Writers of struct pages that hold no reference, against the HugeTLB vmemmap
 * optimization (HVO), which makes the struct pages of tails read-only. The page
 * that they write to becomes a tail of a huge page meanwhile. The kernel must
 * survive, with and without HVO.
 */
#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <pthread.h>
#include <stdlib.h>
#include "hugetlb_pool.h"

#define SIZE_2M		(2UL << 20)
#define SIZE_1M		(SIZE_2M / 2)
#define PAGES_1M	(SIZE_1M / psize())
#define NR_FOLIOS	64

FIXTURE(vmemmap)
{
	unsigned long old_hvo;
	char *map;
};

FIXTURE_VARIANT(vmemmap)
{
	bool hvo;
};

FIXTURE_VARIANT_ADD(vmemmap, plain)
{
	.hvo = false,
};

FIXTURE_VARIANT_ADD(vmemmap, optimized)
{
	.hvo = true,
};

FIXTURE_SETUP(vmemmap)
{
	self->map = MAP_FAILED;
	if (getuid())
		SKIP(return, "no root");
	if (psize() != 4096 || !pool_has(SIZE_2M, "nr_hugepages"))
		SKIP(return, "no huge pages of 2 MiB");
	if (variant->hvo && !hvo_possible())
		SKIP(return, "no HugeTLB vmemmap optimization");
	self->old_hvo = hvo_get();
	ASSERT_EQ(hvo_set(variant->hvo), 0);
	pool_set(SIZE_2M, "nr_hugepages", 0);
	if (pool_get(SIZE_2M, "nr_hugepages"))
		SKIP(return, "the pool is in use");
}

FIXTURE_TEARDOWN(vmemmap)
{
	if (self->map != MAP_FAILED)
		munmap(self->map, NR_FOLIOS * SIZE_1M);
	pool_set(SIZE_2M, "nr_hugepages", 0);
	hvo_set(self->old_hvo);
}

/*
 * Find two folios of 1 MiB that are one block of 2 MiB when they are freed: the
 * struct page of the second one's head is one that HVO makes read-only.
 */
static char *get_two_folios(FIXTURE_DATA(vmemmap) * self)
{
	struct thp_settings settings;
	unsigned long pfn;
	char *p = NULL;
	int i;

	thp_read_settings(&settings);
	for (i = 0; i < NR_ORDERS; i++)
		settings.hugepages[i].enabled = i == 8 ? THP_ALWAYS : THP_NEVER;
	thp_push_settings(&settings);

	self->map = mmap((void *)(1UL << 40), NR_FOLIOS * SIZE_1M,
			 PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1,
			 0);
	if (self->map != MAP_FAILED) {
		for (i = 0; i < NR_FOLIOS; i++)
			self->map[i * SIZE_1M] = 1;
		for (i = 0; i < NR_FOLIOS - 1 && !p; i++) {
			pfn = pfn_of(self->map + i * SIZE_1M);
			if (!pfn || pfn % (2 * PAGES_1M) ||
			    pfn_of(self->map + (i + 1) * SIZE_1M) !=
			    pfn + PAGES_1M)
				continue;
			if (kpageflags_of(pfn) & KPF_COMPOUND_HEAD &&
			    kpageflags_of(pfn + PAGES_1M) & KPF_COMPOUND_HEAD)
				p = self->map + i * SIZE_1M;
		}
	}
	thp_pop_settings();
	return p;
}

/* Take a reference to the folio at a PFN, as far as there is one */
static void *mark_idle(void *arg)
{
	const unsigned long pfn = *(unsigned long *)arg;
	uint64_t bits = 1ULL << (pfn % 64);
	int fd;

	fd = open("/sys/kernel/mm/page_idle/bitmap", O_WRONLY);
	if (fd < 0)
		return NULL;
	if (pwrite(fd, &bits, sizeof(bits), pfn / 64 * sizeof(bits)) !=
	    sizeof(bits))
		ksft_print_msg("page_idle: %m\n");
	close(fd);
	return NULL;
}

/* page_idle reads the count of a folio, and adds one when that is a tail */
TEST_F_TIMEOUT(vmemmap, speculative_reference, 60)
{
	unsigned long pfn;
	pthread_t thread;
	char *folios;
	bool grown;

	if (access("/sys/kernel/mm/page_idle/bitmap", W_OK))
		SKIP(return, "no idle page tracking");
	folios = get_two_folios(self);
	if (!folios)
		SKIP(return, "no two folios of 1 MiB");
	pfn = pfn_of(folios) + PAGES_1M;

	ASSERT_EQ(pthread_create(&thread, NULL, mark_idle, &pfn), 0);
	usleep(100000);
	ASSERT_EQ(madvise(folios, 2 * SIZE_1M, MADV_DONTNEED), 0);
	grown = pool_grow_until(SIZE_2M, pfn);
	ASSERT_EQ(pthread_join(thread, NULL), 0);
	if (!grown)
		SKIP(return, "the pool did not get the page");
}

TEST_HARNESS_MAIN
