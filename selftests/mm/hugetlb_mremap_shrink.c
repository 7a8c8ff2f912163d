// SPDX-License-Identifier: GPL-2.0
/*
 * Test hugetlb mappings that mremap() makes smaller.
 *
 * All of it runs with every huge page size that is smaller than what a PUD
 * maps and of which enough pages can be had.
 */

#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <errno.h>
#include <linux/memfd.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "hugetlb_mremap.h"

FIXTURE(shrink)
{
	unsigned long sizes[MAX_SIZES];
	int nr_sizes;
	/* For each of the sizes */
	unsigned long size;
	char *p;
	char *elsewhere;
};

FIXTURE_SETUP(shrink)
{
	self->nr_sizes = usable_sizes(self->sizes, 4, 128UL << 20);
	if (!self->nr_sizes)
		SKIP(return, "Less than 4 huge pages available of every size");
}

FIXTURE_TEARDOWN(shrink)
{
}

static char *map_huge(struct __test_metadata *_metadata, char *addr,
		      unsigned long len, unsigned long size)
{
	return map_memory(_metadata, addr, len, MAP_HUGETLB |
			  __builtin_ctzl(size) << MAP_HUGE_SHIFT);
}

/* An arena for pages of the next size, until there is none. */
static bool next_size(struct __test_metadata *_metadata,
		      FIXTURE_DATA(shrink) * self)
{
	unsigned long size;
	char *arena;

	if (!self->nr_sizes)
		return false;
	size = self->sizes[--self->nr_sizes];
	arena = mmap(NULL, 9 * size, PROT_NONE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	ASSERT_NE(arena, MAP_FAILED);
	self->size = size;
	self->p = (char *)(((unsigned long)arena + size - 1) & -size);
	self->elsewhere = self->p + 5 * size;
	munmap(self->p, 8 * size);
	return true;
}

/* What comes after the mapping loses as much as the caller said, not more. */
static void neighbour_test(struct __test_metadata *_metadata,
			   FIXTURE_DATA(shrink) * self, bool move)
{
	const unsigned long size = self->size;
	char *p = map_huge(_metadata, self->p, size, size), *next = p + size;
	char *dst = move ? self->elsewhere : p;

	map_memory(_metadata, next, size, 0);
	*p = 1;
	next[psize()] = 2;
	next[size - 1] = 3;

	ASSERT_EQ(sys_mremap(p, size + psize(), size,
			     move ? MREMAP_MAYMOVE | MREMAP_FIXED : 0, dst),
		  dst);
	ASSERT_TRUE(is_mapped(next + psize(), size - psize())) {
		TH_LOG("mremap() of a mapping of %lu kB pages unmapped the next mapping",
		       size >> 10);
	}
	EXPECT_EQ(next[psize()], 2);
	EXPECT_EQ(next[size - 1], 3);
	EXPECT_TRUE(is_unmapped(next, psize()));
	EXPECT_TRUE(is_mapped(dst, size));
	EXPECT_EQ(*dst, 1);
	munmap(dst, size);
	munmap(next, size);
}

TEST_F(shrink, neighbour)
{
	while (next_size(_metadata, self))
		neighbour_test(_metadata, self, false);
}

TEST_F(shrink, neighbour_and_move)
{
	while (next_size(_metadata, self))
		neighbour_test(_metadata, self, true);
}

/* No part of a huge page can be unmapped: munmap() does not do it either. */
TEST_F(shrink, neighbour_is_hugetlb)
{
	while (next_size(_metadata, self)) {
		const unsigned long size = self->size;
		char *p, *next;

		p = map_huge(_metadata, self->p, size, size);
		next = map_huge(_metadata, p + size, size, size);
		*next = 2;
		EXPECT_EQ(sys_mremap(p, size + psize(), size, 0, NULL),
			  MAP_FAILED) {
			TH_LOG("mremap() of %lu kB pages unmapped part of the next mapping",
			       size >> 10);
		}
		EXPECT_EQ(errno, EINVAL);
		ASSERT_TRUE(is_mapped(next, size));
		EXPECT_EQ(*next, 2);
		EXPECT_TRUE(is_mapped(p, size));

		/* Nor is anything unmapped where it was to move to. */
		map_memory(_metadata, self->elsewhere, size, 0);
		*self->elsewhere = 3;
		EXPECT_EQ(sys_mremap(p, size + psize(), size,
				     MREMAP_MAYMOVE | MREMAP_FIXED,
				     self->elsewhere), MAP_FAILED);
		EXPECT_EQ(errno, EINVAL);
		ASSERT_TRUE(is_mapped(self->elsewhere, size)) {
			TH_LOG("mremap() of %lu kB pages failed, but unmapped its destination",
			       size >> 10);
		}
		EXPECT_EQ(*self->elsewhere, 3);
		ASSERT_TRUE(is_mapped(next, size));
		EXPECT_EQ(*next, 2);
		munmap(self->elsewhere, size);

		/* This does name all of it. */
		EXPECT_EQ(sys_mremap(p, 2 * size, size, 0, NULL), p);
		EXPECT_TRUE(is_unmapped(next, size));
		munmap(p, size);
	}
}

/* A mapping of the same file, but of another part: a ring buffer, mirrored. */
TEST_F(shrink, neighbour_is_mirror)
{
	while (next_size(_metadata, self)) {
		const unsigned long size = self->size;
		char *p, *mirror;
		int fd;

		fd = memfd_create("mirror", MFD_CLOEXEC | MFD_HUGETLB |
				  __builtin_ctzl(size) << MFD_HUGE_SHIFT);
		ASSERT_GE(fd, 0);
		ASSERT_EQ(ftruncate(fd, size), 0);
		p = mmap(self->p, size, PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_FIXED, fd, 0);
		ASSERT_EQ(p, self->p);
		mirror = mmap(p + size, size, PROT_READ | PROT_WRITE,
			      MAP_SHARED | MAP_FIXED, fd, 0);
		ASSERT_EQ(mirror, p + size);
		*p = 1;

		EXPECT_EQ(sys_mremap(p, size + psize(), size, 0, NULL),
			  MAP_FAILED) {
			TH_LOG("mremap() of %lu kB pages unmapped the mirror",
			       size >> 10);
		}
		EXPECT_EQ(errno, EINVAL);
		ASSERT_TRUE(is_mapped(mirror, size));
		EXPECT_EQ(*mirror, 1);
		munmap(p, 2 * size);
		close(fd);
	}
}

/* mmap() has rounded up the length, so the same has to go away. */
static void own_page_test(struct __test_metadata *_metadata,
			  FIXTURE_DATA(shrink) * self, bool split)
{
	const unsigned long size = self->size;
	char *p = map_huge(_metadata, self->p, size + psize(), size);

	ASSERT_TRUE(is_mapped(p, 2 * size));
	memset(p, 1, 2 * size);
	/* Makes two VMAs of it. */
	if (split)
		ASSERT_EQ(mprotect(p + size, size, PROT_READ), 0);
	EXPECT_EQ(sys_mremap(p, size + psize(), size, 0, NULL), p);
	EXPECT_TRUE(is_unmapped(p + size, size));
	EXPECT_TRUE(is_mapped(p, size));
	munmap(p, size);
}

TEST_F(shrink, own_page)
{
	while (next_size(_metadata, self))
		own_page_test(_metadata, self, false);
}

TEST_F(shrink, own_page_split)
{
	while (next_size(_metadata, self))
		own_page_test(_metadata, self, true);
}

/* Only MREMAP_FIXED and MREMAP_DONTUNMAP have a fifth argument. */
static void four_arguments_test(struct __test_metadata *_metadata,
				FIXTURE_DATA(shrink) * self, int flags)
{
	const unsigned long size = self->size;
	char *p = map_huge(_metadata, self->p, 2 * size, size);
	/* What a register may contain; no address of any page. */
	char *garbage = (char *)0x5a5a5a5bUL;

	*p = 1;
	EXPECT_EQ(sys_mremap(p, 2 * size, 2 * size, flags, garbage), p);
	EXPECT_EQ(sys_mremap(p, 2 * size, size, flags, garbage), p) {
		TH_LOG("mremap() of %lu kB pages to shrink, with four arguments: %s",
		       size >> 10, strerror(errno));
	}
	EXPECT_TRUE(is_unmapped(p + size, size));
	EXPECT_EQ(*p, 1);
	munmap(p, 2 * size);
}

TEST_F(shrink, four_arguments)
{
	while (next_size(_metadata, self))
		four_arguments_test(_metadata, self, 0);
}

TEST_F(shrink, four_arguments_may_move)
{
	while (next_size(_metadata, self))
		four_arguments_test(_metadata, self, MREMAP_MAYMOVE);
}

/* Lengths that are the same when rounded up change nothing. */
TEST_F(shrink, same_length)
{
	while (next_size(_metadata, self)) {
		const unsigned long size = self->size;
		char *p;

		p = map_huge(_metadata, self->p, size, size);
		map_memory(_metadata, p + size, size, 0);
		EXPECT_EQ(sys_mremap(p, size, psize(), 0, NULL), p);
		EXPECT_EQ(sys_mremap(p, size + 2 * psize(), size + psize(), 0,
				     NULL), p);
		EXPECT_TRUE(is_mapped(p, 2 * size));
		munmap(p, 2 * size);
	}
}

TEST_HARNESS_MAIN
