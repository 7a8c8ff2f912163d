// SPDX-License-Identifier: GPL-2.0
/*
 * UFFDIO_MOVE of pages that are in several page tables.
 *
 * Whoever goes on behind the last entry of a page table finds what happens to be
 * next in memory: with some luck, another page table. So here are several of
 * them, allocated one after the other, upwards or downwards, which lets every
 * page be followed by another one than that which memory order suggests.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <linux/userfaultfd.h>
#include "kselftest_harness.h"
#include "vm_util.h"

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif

#define NR_TABLES	16
#define ROUNDS		8

/*
 * What a page table maps, or twice that: where there is PAE, entries are larger
 * than a pointer, and on arm half of a page is what the hardware uses.
 */
static size_t table_span(void)
{
	return psize() / sizeof(void *) * psize();
}

static void unmap_tables(char *start)
{
	munmap(start, (NR_TABLES + 1) * table_span());
}

/* In each half of a span a page away from both ends, so that its table exists. */
static int populate(char *start, bool down)
{
	const int halves = 2 * (NR_TABLES + 1);
	const size_t size = table_span() / 2;
	int i;

	for (i = 0; i < halves; i++) {
		const int half = down ? halves - 1 - i : i;

		if (madvise(start + half * size + size / 2, psize(),
			    MADV_POPULATE_WRITE))
			return -errno;
	}
	return 0;
}

/* An area of NR_TABLES spans, and one more, from a multiple of the span. */
static char *map_tables(bool down)
{
	const size_t span = table_span(), size = (NR_TABLES + 1) * span;
	char *map, *start;

	if (!span || size / span != NR_TABLES + 1 || size + span < size)
		return NULL;
	map = mmap(NULL, size + span, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (map == MAP_FAILED)
		return NULL;
	start = (char *)(((unsigned long)map + span - 1) & -span);
	if (start > map)
		munmap(map, start - map);
	if (start < map + span)
		munmap(start + size, map + span - start);
	madvise(start, size, MADV_NOHUGEPAGE);
	if (populate(start, down)) {
		unmap_tables(start);
		return NULL;
	}
	return start;
}

FIXTURE(uffd_move_tables)
{
	int uffd;
};

FIXTURE_VARIANT(uffd_move_tables)
{
	/* The order in which the page tables are allocated. */
	bool src_down;
	bool dst_down;
};

FIXTURE_VARIANT_ADD(uffd_move_tables, up_to_up)
{
};

FIXTURE_VARIANT_ADD(uffd_move_tables, up_to_down)
{
	.dst_down = true,
};

FIXTURE_VARIANT_ADD(uffd_move_tables, down_to_up)
{
	.src_down = true,
};

FIXTURE_VARIANT_ADD(uffd_move_tables, down_to_down)
{
	.src_down = true,
	.dst_down = true,
};

FIXTURE_SETUP(uffd_move_tables)
{
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = UFFD_FEATURE_MOVE,
	};

	self->uffd = syscall(__NR_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
	if (self->uffd < 0)
		SKIP(return, "no userfaultfd: %s", strerror(errno));
	if (ioctl(self->uffd, UFFDIO_API, &api))
		SKIP(return, "no UFFD_FEATURE_MOVE: %s", strerror(errno));
}

FIXTURE_TEARDOWN(uffd_move_tables)
{
	if (self->uffd >= 0)
		close(self->uffd);
}

/* Where page table @i ends and the next one begins. */
static size_t end_of_table(int i)
{
	return (i + 1) * table_span();
}

/* The number that is in the last page of table @i; the next one is in that after it. */
static long last_number(int i)
{
	return 1000 + 2 * i;
}

static void write_numbers(char *start)
{
	int i;

	for (i = 0; i < NR_TABLES; i++) {
		char *end = start + end_of_table(i);

		*(long *)(end - psize()) = last_number(i);
		*(long *)end = last_number(i) + 1;
	}
}

/* Whoever has one of the pages locked for a moment makes it move less. */
static int uffd_move(int uffd, char *dst, char *src, size_t len)
{
	struct uffdio_move move;
	size_t done = 0;
	int tries;

	for (tries = 0; tries < 1000 && done < len; tries++) {
		move = (struct uffdio_move) {
			.dst = (unsigned long)dst + done,
			.src = (unsigned long)src + done,
			.len = len - done,
		};
		if (ioctl(uffd, UFFDIO_MOVE, &move) && errno != EAGAIN)
			return -errno;
		if (move.move > 0)
			done += move.move;
	}
	return done == len ? 0 : -EAGAIN;
}

/* Two pages across the end of each table move to the like place. */
TEST_F(uffd_move_tables, across_the_end)
{
	int i, round;

	for (round = 0; round < ROUNDS; round++) {
		char *src = map_tables(variant->src_down);
		char *dst = map_tables(variant->dst_down);
		struct uffdio_register reg = {
			.range.start = (unsigned long)dst,
			.range.len = (NR_TABLES + 1) * table_span(),
			.mode = UFFDIO_REGISTER_MODE_MISSING,
		};

		if (!src || !dst)
			break;
		write_numbers(src);
		ASSERT_EQ(ioctl(self->uffd, UFFDIO_REGISTER, &reg), 0);
		for (i = 0; i < NR_TABLES; i++) {
			const size_t offset = end_of_table(i) - psize();

			EXPECT_EQ(uffd_move(self->uffd, dst + offset,
					    src + offset, 2 * psize()), 0) {
				TH_LOG("the pages at the end of table %d cannot be moved", i);
			}
		}

		/* What is missing now is read as zeroes. */
		ASSERT_EQ(ioctl(self->uffd, UFFDIO_UNREGISTER, &reg.range), 0);
		for (i = 0; i < NR_TABLES; i++) {
			char *from = src + end_of_table(i);
			char *to = dst + end_of_table(i);

			EXPECT_EQ(*(long *)(to - psize()), last_number(i)) {
				TH_LOG("the last page of table %d was not moved", i);
			}
			EXPECT_EQ(*(long *)to, last_number(i) + 1) {
				TH_LOG("the page after table %d was not moved", i);
			}
			EXPECT_EQ(*(long *)(from - psize()), 0) {
				TH_LOG("the last page of table %d was left behind", i);
			}
			EXPECT_EQ(*(long *)from, 0) {
				TH_LOG("the page after table %d was left behind", i);
			}
		}
		unmap_tables(dst);
		unmap_tables(src);
	}
	if (!round && __test_passed(_metadata))
		SKIP(return, "not enough address space");
}

TEST_HARNESS_MAIN
