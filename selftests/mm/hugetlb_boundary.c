// SPDX-License-Identifier: GPL-2.0
/*
 * Test private hugetlb mappings that cross the boundary between two page
 * tables, of which the lower one does not exist: no page below the boundary was
 * ever touched. The boundary is one between tables of all levels but the top.
 */

#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include "vm_util.h"
#include "hugepage_settings.h"

/* Nothing else is mapped near these, with 47 bits of address space or more. */
#define BOUNDARY	BIT_ULL(44)
#define OTHER_BOUNDARY	BIT_ULL(45)

/* Emulators take their time to clear a page of 1G. */
#define TIMEOUT		600

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE	0x100000
#endif

/* The main process restores the pools when it exits, whatever happens. */
static void __attribute__((constructor)) save_settings(void)
{
	hugetlb_save_settings();
}

FIXTURE(hugetlb_boundary)
{
	unsigned long size;
	unsigned long nr_free;	/* pages of the pool before one was touched */
	char *mem;		/* two pages: the boundary is between them */
	char *page;		/* the upper one, which was touched */
};

FIXTURE_VARIANT(hugetlb_boundary)
{
	unsigned long size;
};

FIXTURE_VARIANT_ADD(hugetlb_boundary, 64kB) { .size = 64UL << 10 };
FIXTURE_VARIANT_ADD(hugetlb_boundary, 2MB) { .size = 2UL << 20 };
FIXTURE_VARIANT_ADD(hugetlb_boundary, 32MB) { .size = 32UL << 20 };
FIXTURE_VARIANT_ADD(hugetlb_boundary, 512MB) { .size = 512UL << 20 };
FIXTURE_VARIANT_ADD(hugetlb_boundary, 1GB) { .size = 1UL << 30 };

static char *map_across(unsigned long long boundary, unsigned long size)
{
	char *addr = (char *)(uintptr_t)(boundary - size);
	char *p = mmap(addr, 2 * size, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE |
		       MAP_FIXED_NOREPLACE | MAP_HUGETLB |
		       __builtin_ctzl(size) << MAP_HUGE_SHIFT, -1, 0);

	if (p != MAP_FAILED && p != addr) {
		munmap(p, 2 * size);
		return MAP_FAILED;
	}
	return p;
}

static bool size_supported(unsigned long size)
{
	unsigned long sizes[16];
	int i, nr = detect_hugetlb_page_sizes(sizes, ARRAY_SIZE(sizes));

	for (i = 0; i < nr; i++)
		if (sizes[i] == size)
			return true;
	return false;
}

FIXTURE_SETUP(hugetlb_boundary)
{
	self->size = variant->size;
	self->mem = MAP_FAILED;
	if (sizeof(long) < 8)
		SKIP(return, "not enough address space");
	if (!size_supported(self->size))
		SKIP(return, "no huge pages of this size");
	if (!hugetlb_free_pages(self->size) && !geteuid())
		hugetlb_set_nr_pages(self->size,
				     hugetlb_nr_pages(self->size) + 1);
	self->nr_free = hugetlb_free_pages(self->size);
	if (!self->nr_free)
		SKIP(return, "no free huge page of this size");

	self->mem = map_across(BOUNDARY, self->size);
	if (self->mem == MAP_FAILED)
		SKIP(return, "cannot map at %llx: %s", BOUNDARY,
		     strerror(errno));
	self->page = self->mem + self->size;
	*self->page = 'a';
	ASSERT_EQ(hugetlb_free_pages(self->size), self->nr_free - 1);
}

FIXTURE_TEARDOWN(hugetlb_boundary)
{
	if (self->mem != MAP_FAILED)
		munmap(self->mem, 2 * self->size);
}

/* Can the kernel write there on our behalf, or read? */
static bool writable(char *p)
{
	int fd = open("/dev/zero", O_RDONLY);
	bool ret = read(fd, p, 1) == 1;

	close(fd);
	return ret;
}

static bool readable(char *p)
{
	int fds[2];
	bool ret;

	if (pipe(fds))
		return false;
	ret = write(fds[1], p, 1) == 1;
	close(fds[0]);
	close(fds[1]);
	return ret;
}

TEST_F_TIMEOUT(hugetlb_boundary, munmap, TIMEOUT)
{
	unsigned long nr_free;

	ASSERT_EQ(munmap(self->mem, 2 * self->size), 0);
	nr_free = hugetlb_free_pages(self->size);
	EXPECT_EQ(nr_free, self->nr_free) {
		TH_LOG("munmap() leaked %ld pages",
		       (long)(self->nr_free - nr_free));
	}
	/* What is mapped there next must not have the page. */
	self->mem = map_across(BOUNDARY, self->size);
	ASSERT_NE(self->mem, MAP_FAILED);
	EXPECT_EQ(*self->page, 0) {
		TH_LOG("the next mapping has the page of the last one");
	}
}

TEST_F_TIMEOUT(hugetlb_boundary, mprotect, TIMEOUT)
{
	ASSERT_TRUE(readable(self->page));
	ASSERT_EQ(mprotect(self->mem, 2 * self->size, PROT_READ), 0);
	EXPECT_FALSE(writable(self->page)) {
		TH_LOG("the page is writable after mprotect(PROT_READ)");
	}
	ASSERT_EQ(mprotect(self->mem, 2 * self->size, PROT_NONE), 0);
	EXPECT_FALSE(readable(self->page)) {
		TH_LOG("the page is readable after mprotect(PROT_NONE)");
	}
	ASSERT_EQ(mprotect(self->mem, 2 * self->size, PROT_READ | PROT_WRITE), 0);
	EXPECT_TRUE(writable(self->page));
}

TEST_F_TIMEOUT(hugetlb_boundary, madvise_dontneed, TIMEOUT)
{
	unsigned long nr_free;

	ASSERT_EQ(madvise(self->mem, 2 * self->size, MADV_DONTNEED), 0);
	nr_free = hugetlb_free_pages(self->size);
	EXPECT_EQ(nr_free, self->nr_free) {
		TH_LOG("MADV_DONTNEED did not free the page");
	}
	EXPECT_EQ(*self->page, 0) {
		TH_LOG("the page has old contents after MADV_DONTNEED");
	}
}

TEST_F_TIMEOUT(hugetlb_boundary, fork, TIMEOUT)
{
	int status;
	pid_t pid;

	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		/* Where the page is lost and there is no other: SIGBUS */
		alarm(TIMEOUT / 2);
		_exit(*self->page);
	}
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 'a') {
		TH_LOG("a child does not have the page: status %x", status);
	}
}

TEST_F_TIMEOUT(hugetlb_boundary, mremap, TIMEOUT)
{
	char *to = (char *)(uintptr_t)(OTHER_BOUNDARY - self->size);
	unsigned long nr_free;
	char *p;

	p = mmap(to, 2 * self->size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS |
		 MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
	if (p != to)
		SKIP(return, "cannot map at %llx", OTHER_BOUNDARY);

	p = sys_mremap(self->mem, 2 * self->size, 2 * self->size,
		       MREMAP_MAYMOVE | MREMAP_FIXED, to);
	ASSERT_EQ(p, to);
	self->mem = p;
	self->page = p + self->size;

	nr_free = hugetlb_free_pages(self->size);
	EXPECT_EQ(nr_free, self->nr_free - 1) {
		TH_LOG("%ld pages of the pool are in use after the move, not 1",
		       (long)(self->nr_free - nr_free));
	}
	/* Do not touch what was lost: there may be no other page. */
	if (nr_free)
		EXPECT_EQ(*self->page, 'a') {
			TH_LOG("the page was lost by the move");
		}
	ASSERT_EQ(munmap(self->mem, 2 * self->size), 0);
	self->mem = MAP_FAILED;
	nr_free = hugetlb_free_pages(self->size);
	EXPECT_EQ(nr_free, self->nr_free) {
		TH_LOG("moving and unmapping leaked %ld pages",
		       (long)(self->nr_free - nr_free));
	}
}

TEST_HARNESS_MAIN
