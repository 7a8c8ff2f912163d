// SPDX-License-Identifier: GPL-2.0
/*
 * What mremap() moves or adds is soft-dirty: a tool that saves only soft-dirty
 * pages has no copy of it for its new address.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/mman.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "kselftest_harness.h"
#include "hugepage_settings.h"
#include "vm_util.h"

/* Pages that are touched at the beginning and at the end of a mapping. */
#define NR_TOUCHED	4
/* Pages of a hugetlb mapping, before and after it grows. */
#define NR_OLD		2
#define NR_NEW		4
/* No larger pool is made: then the tests use what is there. */
#define MAX_POOL_SIZE	(512UL << 20)

static void __attribute__((constructor)) setup_pool(void)
{
	if (default_huge_page_size() <= MAX_POOL_SIZE / NR_NEW)
		hugetlb_setup_default(NR_NEW);
}

/* What one page table of PTEs maps, and one of PMDs. */
static unsigned long pmd_span(void)
{
	return psize() * (psize() / sizeof(uint64_t));
}

static unsigned long pud_span(void)
{
	return pmd_span() * (psize() / sizeof(uint64_t));
}

static bool soft_dirty(int fd, char *p)
{
	return pagemap_get_entry(fd, p) & PM_SOFT_DIRTY;
}

static void read_page(char *p)
{
	FORCE_READ(*p);
}

/* Address space that is aligned to @align. The caller unmaps all of it. */
static char *reserve(unsigned long len, unsigned long align, char **arena)
{
	*arena = mmap(NULL, len + align, PROT_NONE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (*arena == MAP_FAILED)
		return NULL;
	return (char *)(((unsigned long)*arena + align - 1) & -align);
}

enum extent {
	SOME_PAGES,	/* entries move */
	PMD_TABLES,	/* tables of PTEs move */
	PUD_TABLES,	/* tables of PMDs move */
};

FIXTURE(soft_dirty)
{
	int pagemap;
	unsigned long len;
	unsigned long arena_len;
	char *arena;
	char *p;
	char *dst;
};

FIXTURE_VARIANT(soft_dirty)
{
	int map_flags;
	enum extent extent;
};

FIXTURE_VARIANT_ADD(soft_dirty, private_entries)
{
	.map_flags = MAP_PRIVATE,
	.extent = SOME_PAGES,
};

FIXTURE_VARIANT_ADD(soft_dirty, private_pmd_tables)
{
	.map_flags = MAP_PRIVATE,
	.extent = PMD_TABLES,
};

FIXTURE_VARIANT_ADD(soft_dirty, private_pud_tables)
{
	.map_flags = MAP_PRIVATE,
	.extent = PUD_TABLES,
};

FIXTURE_VARIANT_ADD(soft_dirty, shared_entries)
{
	.map_flags = MAP_SHARED,
	.extent = SOME_PAGES,
};

FIXTURE_VARIANT_ADD(soft_dirty, shared_pmd_tables)
{
	.map_flags = MAP_SHARED,
	.extent = PMD_TABLES,
};

FIXTURE_SETUP(soft_dirty)
{
	unsigned long align = variant->extent == PUD_TABLES ? pud_span() :
							      pmd_span();

	self->arena = MAP_FAILED;
	self->pagemap = open("/proc/self/pagemap", O_RDONLY);
	ASSERT_GE(self->pagemap, 0);
	if (!softdirty_supported())
		SKIP(return, "No soft-dirty bits");

	self->len = variant->extent == PUD_TABLES ? pud_span() : 2 * pmd_span();
	self->arena_len = 4 * self->len + align;
	self->p = reserve(4 * self->len, align, &self->arena);
	ASSERT_NE(self->p, NULL);
	self->dst = self->p + 2 * self->len;
	if (variant->extent == SOME_PAGES)
		self->dst += psize();
}

FIXTURE_TEARDOWN(soft_dirty)
{
	if (self->arena != MAP_FAILED)
		munmap(self->arena, self->arena_len);
	if (self->pagemap >= 0)
		close(self->pagemap);
}

/* Offset of the touched page @i: half of these pages are at the end. */
static unsigned long touched(unsigned long len, int i)
{
	return i < NR_TOUCHED / 2 ? i * psize() :
				    len - (NR_TOUCHED - i) * psize();
}

/* Map and touch pages, with nothing behind them, and have all of them clean. */
static void map_clean(struct __test_metadata *_metadata,
		      FIXTURE_DATA(soft_dirty) * self, int map_flags)
{
	int i;

	ASSERT_EQ(munmap(self->p, 2 * self->len), 0);
	ASSERT_EQ(mmap(self->p, self->len, PROT_READ | PROT_WRITE,
		       map_flags | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED,
		       -1, 0), self->p);
	/* Huge pages have no page table to move. */
	if (madvise(self->p, self->len, MADV_NOHUGEPAGE))
		ASSERT_EQ(errno, EINVAL);
	for (i = 0; i < NR_TOUCHED; i++)
		self->p[touched(self->len, i)] = 1;
	clear_softdirty();
	for (i = 0; i < NR_TOUCHED; i++)
		ASSERT_FALSE(soft_dirty(self->pagemap,
					self->p + touched(self->len, i)));
	ASSERT_FALSE(soft_dirty(self->pagemap, self->p + self->len / 2));
}

/* The control: a test of what is dirty means nothing if all pages always are. */
TEST_F(soft_dirty, only_what_is_written)
{
	int i;

	map_clean(_metadata, self, variant->map_flags);
	self->p[0] = 2;
	for (i = 0; i < NR_TOUCHED; i++) {
		char *page = self->p + touched(self->len, i);

		EXPECT_EQ(soft_dirty(self->pagemap, page), !i) {
			TH_LOG("page %d is%s soft-dirty", i, i ? "" : " not");
		}
	}
}

static void expect_dirty(struct __test_metadata *_metadata,
			 FIXTURE_DATA(soft_dirty) * self, char *p)
{
	char *hole = p + self->len / 2;
	int i;

	for (i = 0; i < NR_TOUCHED; i++) {
		char *page = p + touched(self->len, i);

		EXPECT_TRUE(soft_dirty(self->pagemap, page)) {
			TH_LOG("page %d is not soft-dirty after move", i);
		}
		EXPECT_EQ(*page, 1);
	}
	EXPECT_TRUE(soft_dirty(self->pagemap, hole)) {
		TH_LOG("a hole is not soft-dirty after move");
	}
	read_page(hole);
	EXPECT_TRUE(soft_dirty(self->pagemap, hole)) {
		TH_LOG("a page read after move is not soft-dirty");
	}
}

TEST_F(soft_dirty, moved)
{
	char *p;

	map_clean(_metadata, self, variant->map_flags);
	p = sys_mremap(self->p, self->len, self->len,
		       MREMAP_MAYMOVE | MREMAP_FIXED, self->dst);
	ASSERT_EQ(p, self->dst);
	expect_dirty(_metadata, self, p);
}

/* Only the pages move. What is mapped in their place is as new as after mmap(). */
TEST_F(soft_dirty, left_empty)
{
	int i;

	map_clean(_metadata, self, variant->map_flags);
	ASSERT_EQ(sys_mremap(self->p, self->len, self->len,
			     MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP,
			     self->dst), self->dst);
	for (i = 0; i < NR_TOUCHED; i++) {
		char *page = self->p + touched(self->len, i);

		EXPECT_TRUE(soft_dirty(self->pagemap, page)) {
			TH_LOG("page %d is not soft-dirty where it was", i);
		}
		EXPECT_EQ(*page, variant->map_flags & MAP_SHARED ? 1 : 0);
		EXPECT_TRUE(soft_dirty(self->pagemap, page)) {
			TH_LOG("page %d is not soft-dirty when read where it was",
			       i);
		}
	}
	expect_dirty(_metadata, self, self->dst);
}

/* The file of shared memory does not grow: there is nothing to read. */
static void expect_new_dirty(struct __test_metadata *_metadata,
			     FIXTURE_DATA(soft_dirty) * self, char *p,
			     bool shared)
{
	EXPECT_TRUE(soft_dirty(self->pagemap, p + self->len)) {
		TH_LOG("what was added is not soft-dirty");
	}
	if (!shared)
		read_page(p + self->len + psize());
	EXPECT_TRUE(soft_dirty(self->pagemap, p + self->len + psize())) {
		TH_LOG("another page of what was added is not soft-dirty");
	}
}

TEST_F(soft_dirty, grown_in_place)
{
	map_clean(_metadata, self, variant->map_flags);
	ASSERT_EQ(sys_mremap(self->p, self->len, self->len + 2 * psize(), 0,
			     NULL), self->p);
	expect_new_dirty(_metadata, self, self->p,
			 variant->map_flags & MAP_SHARED);
}

TEST_F(soft_dirty, grown_by_moving)
{
	char *p;

	map_clean(_metadata, self, variant->map_flags);
	p = sys_mremap(self->p, self->len, self->len + 2 * psize(),
		       MREMAP_MAYMOVE | MREMAP_FIXED, self->dst);
	ASSERT_EQ(p, self->dst);
	expect_dirty(_metadata, self, p);
	expect_new_dirty(_metadata, self, p, variant->map_flags & MAP_SHARED);
}

/* What is there is clean again if it is not moved any more. */
TEST_F(soft_dirty, cleared_after_move)
{
	int i;

	map_clean(_metadata, self, variant->map_flags);
	ASSERT_EQ(sys_mremap(self->p, self->len, self->len,
			     MREMAP_MAYMOVE | MREMAP_FIXED, self->dst),
		  self->dst);
	clear_softdirty();
	self->dst[0] = 2;
	for (i = 0; i < NR_TOUCHED; i++) {
		char *page = self->dst + touched(self->len, i);

		EXPECT_EQ(soft_dirty(self->pagemap, page), !i) {
			TH_LOG("page %d is%s soft-dirty when cleared after move",
			       i, i ? "" : " not");
		}
	}
}

FIXTURE(huge)
{
	int pagemap;
	unsigned long size;
	unsigned long arena_len;
	char *arena;
	char *p;
	char *dst;
};

FIXTURE_VARIANT(huge)
{
	int map_flags;
};

FIXTURE_VARIANT_ADD(huge, private)
{
	.map_flags = MAP_PRIVATE,
};

FIXTURE_VARIANT_ADD(huge, shared)
{
	.map_flags = MAP_SHARED,
};

FIXTURE_SETUP(huge)
{
	int i;

	self->arena = MAP_FAILED;
	self->pagemap = open("/proc/self/pagemap", O_RDONLY);
	ASSERT_GE(self->pagemap, 0);
	if (!softdirty_supported())
		SKIP(return, "No soft-dirty bits");
	self->size = default_huge_page_size();
	if (!self->size || hugetlb_free_default_pages() < NR_NEW)
		SKIP(return, "Less than %d huge pages", NR_NEW);

	self->arena_len = (2 * NR_NEW + 1) * self->size;
	self->p = reserve(2 * NR_NEW * self->size, self->size, &self->arena);
	ASSERT_NE(self->p, NULL);
	self->dst = self->p + NR_NEW * self->size;
	ASSERT_EQ(munmap(self->p, NR_NEW * self->size), 0);
	ASSERT_EQ(mmap(self->p, NR_OLD * self->size, PROT_READ | PROT_WRITE,
		       variant->map_flags | MAP_ANONYMOUS | MAP_HUGETLB |
		       MAP_FIXED, -1, 0), self->p);
	for (i = 0; i < NR_OLD; i++)
		self->p[i * self->size] = 1;
	clear_softdirty();
}

FIXTURE_TEARDOWN(huge)
{
	if (self->arena != MAP_FAILED)
		munmap(self->arena, self->arena_len);
	if (self->pagemap >= 0)
		close(self->pagemap);
}

static void expect_hugetlb_dirty(struct __test_metadata *_metadata,
				 FIXTURE_DATA(huge) * self, char *p, int nr,
				 const char *when)
{
	int i;

	for (i = 0; i < nr; i++) {
		EXPECT_TRUE(soft_dirty(self->pagemap, p + i * self->size)) {
			TH_LOG("huge page %d is not soft-dirty when %s", i,
			       when);
		}
	}
}

TEST_F(huge, written)
{
	int i;

	for (i = 0; i < NR_OLD; i++)
		self->p[i * self->size] = 2;
	expect_hugetlb_dirty(_metadata, self, self->p, NR_OLD, "written");
	/* read() and PAGEMAP_SCAN agree: this exits where they do not. */
	EXPECT_TRUE(pagemap_is_softdirty(self->pagemap, self->p));
}

/* As a page that was mapped read-only may become writable without a fault. */
TEST_F(huge, read_then_written)
{
	ASSERT_EQ(madvise(self->p, NR_OLD * self->size, MADV_DONTNEED), 0);
	ASSERT_EQ(mprotect(self->p, NR_OLD * self->size, PROT_READ), 0);
	clear_softdirty();
	read_page(self->p);
	ASSERT_EQ(mprotect(self->p, NR_OLD * self->size,
			   PROT_READ | PROT_WRITE), 0);
	self->p[0] = 2;
	expect_hugetlb_dirty(_metadata, self, self->p, 1,
			     "read, made writable, and written");
}

TEST_F(huge, moved)
{
	char *p = sys_mremap(self->p, NR_OLD * self->size, NR_OLD * self->size,
			     MREMAP_MAYMOVE | MREMAP_FIXED, self->dst);

	ASSERT_EQ(p, self->dst);
	expect_hugetlb_dirty(_metadata, self, p, NR_OLD, "moved");
}

static void grow(struct __test_metadata *_metadata,
		 FIXTURE_DATA(huge) * self, int flags)
{
	char *p = sys_mremap(self->p, NR_OLD * self->size, NR_NEW * self->size,
			     flags, self->dst);
	int i;

	ASSERT_NE(p, MAP_FAILED) {
		TH_LOG("mremap() of huge pages that are to be more: %s", strerror(errno));
	}
	for (i = NR_OLD; i < NR_NEW - 1; i++)
		p[i * self->size] = 1;
	read_page(p + i * self->size);
	expect_hugetlb_dirty(_metadata, self, p, NR_NEW, "grown");
}

TEST_F(huge, grown_in_place)
{
	grow(_metadata, self, 0);
}

TEST_F(huge, grown_by_moving)
{
	grow(_metadata, self, MREMAP_MAYMOVE | MREMAP_FIXED);
}

TEST_HARNESS_MAIN
