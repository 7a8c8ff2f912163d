// SPDX-License-Identifier: GPL-2.0
/*
 * Test private hugetlb mappings and fork(), with huge pages of every size that
 * one page can be had of.
 */

#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include "vm_util.h"
#include "hugepage_settings.h"

#define MAX_SIZES	8
#define NR_EVENTS	30000

/* The main process restores the pools when it exits, whatever happens. */
static void __attribute__((constructor)) save_settings(void)
{
	hugetlb_save_settings();
}

FIXTURE(hugetlb_fork)
{
	unsigned long sizes[MAX_SIZES];
	int nr_sizes;
};

FIXTURE_SETUP(hugetlb_fork)
{
	unsigned long sizes[MAX_SIZES];
	int i, nr = detect_hugetlb_page_sizes(sizes, MAX_SIZES);

	for (i = 0; i < nr; i++) {
		if (!hugetlb_free_pages(sizes[i]))
			hugetlb_set_nr_pages(sizes[i],
					     hugetlb_nr_pages(sizes[i]) + 1);
		if (hugetlb_free_pages(sizes[i]))
			self->sizes[self->nr_sizes++] = sizes[i];
		else
			ksft_print_msg("Skip %lu kB pages: none available\n",
				       sizes[i] >> 10);
	}
	if (!self->nr_sizes)
		SKIP(return, "No huge page available of any size");
}

FIXTURE_TEARDOWN(hugetlb_fork)
{
}

/*
 * Have pages freed that were in the page cache, at offsets that are not zero, and
 * cannot be moved: those are what page tables are made of next. It does no harm
 * if there are none.
 */
static void recycle_pages(void)
{
	aio_context_t ctx = 0;

	if (!syscall(__NR_io_setup, NR_EVENTS, &ctx))
		syscall(__NR_io_destroy, ctx);
}

/* It takes time to clear the largest pages. */
static int nr_rounds(unsigned long size)
{
	return size >= 1UL << 30 ? 3 : 20;
}

static char *map_page(unsigned long size)
{
	return mmap(NULL, size, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB |
		    __builtin_ctzl(size) << MAP_HUGE_SHIFT, -1, 0);
}

static bool child_reads(char *p, char expected)
{
	pid_t pid = fork();
	int status;

	if (!pid)
		_exit(*p != expected);
	return pid > 0 && waitpid(pid, &status, 0) == pid &&
		WIFEXITED(status) && !WEXITSTATUS(status);
}

/* A child has what its parent has. */
TEST_F_TIMEOUT(hugetlb_fork, contents, 200)
{
	int i, n;

	for (n = 0; n < self->nr_sizes; n++) {
		const unsigned long size = self->sizes[n];
		char *p = map_page(size);

		ASSERT_NE(p, MAP_FAILED);
		for (i = 1; i <= nr_rounds(size); i++) {
			bool same;

			*p = i;
			recycle_pages();
			same = child_reads(p, i);
			EXPECT_TRUE(same) {
				TH_LOG("%lu kB pages: a child does not have what its parent has",
				       size >> 10);
			}
			if (!same)
				break;
		}
		munmap(p, size);
	}
}

/* A page that is mapped by one process, once, is not shared. */
TEST_F_TIMEOUT(hugetlb_fork, exclusive, 200)
{
	int fd = open("/proc/self/pagemap", O_RDONLY);
	int i, n;

	ASSERT_GE(fd, 0);
	for (n = 0; n < self->nr_sizes; n++) {
		const unsigned long size = self->sizes[n];

		for (i = 0; i < nr_rounds(size); i++) {
			uint64_t entry;
			char *p;

			recycle_pages();
			p = map_page(size);
			ASSERT_NE(p, MAP_FAILED);
			*p = 1;
			entry = pagemap_get_entry(fd, p);
			EXPECT_NE(entry & PM_MMAP_EXCLUSIVE, 0) {
				TH_LOG("%lu kB pages: one that is mapped once counts as shared",
				       size >> 10);
			}
			munmap(p, size);
			if (!(entry & PM_MMAP_EXCLUSIVE))
				break;
		}
	}
	close(fd);
}

TEST_HARNESS_MAIN
