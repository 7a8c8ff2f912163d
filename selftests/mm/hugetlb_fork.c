// SPDX-License-Identifier: GPL-2.0
/*
 * Test private hugetlb mappings and fork(), with huge pages of every size that
 * one page can be had of.
 */

#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>
#include "vm_util.h"
#include "hugepage_settings.h"

#define MAX_SIZES	8
#define NR_RECYCLED	1024
#define NR_ROUNDS	20

/* The main process restores the pools when it exits, whatever happens. */
static void __attribute__((constructor)) save_settings(void)
{
	hugetlb_save_settings();
}

FIXTURE(hugetlb_fork)
{
	unsigned long sizes[MAX_SIZES];
	int nr_sizes;
	char dir[32];
	int fd;
};

/*
 * A file in ramfs: its pages cannot be moved, like page tables, and are freed
 * to where page tables are taken from next, on the same CPU. Without it the
 * tests may not find out what they could.
 */
static int open_ramfs(char *dir)
{
	char path[64];
	cpu_set_t cpus;

	CPU_ZERO(&cpus);
	CPU_SET(sched_getcpu(), &cpus);
	sched_setaffinity(0, sizeof(cpus), &cpus);

	strcpy(dir, "/tmp/hugetlb_fork_XXXXXX");
	if (unshare(CLONE_NEWNS) ||
	    mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
	    !mkdtemp(dir)) {
		dir[0] = '\0';
		return -1;
	}
	if (mount("none", dir, "ramfs", 0, NULL))
		return -1;
	snprintf(path, sizeof(path), "%s/file", dir);
	return open(path, O_RDWR | O_CREAT, 0600);
}

/* Is there a page that is not reserved by others? */
static bool available(unsigned long size)
{
	char path[128];
	unsigned long rsvd;

	snprintf(path, sizeof(path),
		 "/sys/kernel/mm/hugepages/hugepages-%lukB/resv_hugepages",
		 size >> 10);
	rsvd = read_num(path);
	return hugetlb_free_pages(size) > rsvd;
}

FIXTURE_SETUP(hugetlb_fork)
{
	unsigned long sizes[MAX_SIZES];
	int i, nr = detect_hugetlb_page_sizes(sizes, MAX_SIZES);

	for (i = 0; i < nr; i++) {
		if (!available(sizes[i]) && !geteuid())
			hugetlb_set_nr_pages(sizes[i],
					     hugetlb_nr_pages(sizes[i]) + 1);
		if (available(sizes[i]))
			self->sizes[self->nr_sizes++] = sizes[i];
		else
			ksft_print_msg("Skip %lu kB pages: none available\n",
				       sizes[i] >> 10);
	}
	self->fd = -1;
	if (!self->nr_sizes)
		SKIP(return, "No huge page available of any size");
	self->fd = open_ramfs(self->dir);
	if (self->fd < 0)
		TH_LOG("no ramfs to recycle pages of: %s", strerror(errno));
}

FIXTURE_TEARDOWN(hugetlb_fork)
{
	if (self->fd >= 0)
		close(self->fd);
	if (self->dir[0]) {
		umount2(self->dir, MNT_DETACH);
		rmdir(self->dir);
	}
}

/* Have pages freed that were in the page cache, at offsets that are not zero. */
static void recycle_pages(int fd)
{
	char buf[64] = {};
	int i;

	for (i = 1; i < NR_RECYCLED; i++)
		if (pwrite(fd, buf, sizeof(buf), (off_t)i * psize()) < 0)
			return;
	if (ftruncate(fd, 0))
		return;
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
		for (i = 1; i <= NR_ROUNDS; i++) {
			bool same;

			*p = i;
			recycle_pages(self->fd);
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

/* For a child, which has page tables of its own. */
static int is_shared(unsigned long size)
{
	int fd = open("/proc/self/pagemap", O_RDONLY);
	char *p = map_page(size);

	if (fd < 0 || p == MAP_FAILED)
		return 2;
	*p = 1;
	return !(pagemap_get_entry(fd, p) & PM_MMAP_EXCLUSIVE);
}

/* A page that is mapped by one process, once, is not shared. */
TEST_F_TIMEOUT(hugetlb_fork, exclusive, 200)
{
	int i, n;

	for (n = 0; n < self->nr_sizes; n++) {
		const unsigned long size = self->sizes[n];
		/* It takes time to clear the largest pages. */
		const int rounds = size > 64UL << 20 ? 3 : NR_ROUNDS;

		for (i = 0; i < rounds; i++) {
			int status = -1;
			pid_t pid;

			recycle_pages(self->fd);
			pid = fork();
			ASSERT_GE(pid, 0);
			if (!pid)
				_exit(is_shared(size));
			ASSERT_EQ(waitpid(pid, &status, 0), pid);
			EXPECT_EQ(status, 0) {
				TH_LOG("%lu kB pages: one that is mapped once counts as shared",
				       size >> 10);
			}
			if (status)
				break;
		}
	}
}

TEST_HARNESS_MAIN
