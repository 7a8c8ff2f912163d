// SPDX-License-Identifier: GPL-2.0
/*
 * Test that move_pages() moves huge pages which other processes map with
 * MPOL_MF_MOVE_ALL only, also where the processes share a page table.
 */

#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <errno.h>
#include <linux/mempolicy.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include "vm_util.h"
#include "hugepage_settings.h"

#define NODE_FREE	\
	"/sys/devices/system/node/node%d/hugepages/hugepages-%lukB/free_hugepages"
#define MAX_NODES	64
#define NR_PAGES	8	/* of the pool, so that each node has free ones */

/* The main process restores the pools when it exits, whatever happens. */
static void __attribute__((constructor)) save_settings(void)
{
	hugetlb_save_settings();
}

FIXTURE(hugetlb_move_pages)
{
	unsigned long size;	/* of a huge page */
	unsigned long span;	/* of what a table of huge pages maps */
	char *reserved;
	char *mem;
	int fd;
	int node;		/* where the page is */
	int other_node;
	pid_t child;
	int to_child;
	int to_parent;
};

FIXTURE_VARIANT(hugetlb_move_pages)
{
	/*
	 * Processes share page tables of shared mappings that are aligned to,
	 * and as large as, what a table maps.
	 */
	bool aligned;
};

FIXTURE_VARIANT_ADD(hugetlb_move_pages, shared_table) { .aligned = true };
FIXTURE_VARIANT_ADD(hugetlb_move_pages, own_tables) { .aligned = false };

/* Returns the node where the page is then, or the error as a negative number. */
static int move_page(char *page, int node, int flags)
{
	void *pages[1] = { page };
	int status[1] = { -EINVAL };

	if (syscall(SYS_move_pages, 0, 1UL, pages, &node, status, flags) < 0)
		return -errno;
	return status[0];
}

static int node_of(char *page)
{
	void *pages[1] = { page };
	int status[1] = { -EINVAL };

	if (syscall(SYS_move_pages, 0, 1UL, pages, NULL, status, 0) < 0)
		return -errno;
	return status[0];
}

/* Moves the page, which is not mapped elsewhere, to any other node. */
static int move_anywhere(char *page)
{
	int node, from = node_of(page);

	for (node = 0; node < MAX_NODES; node++)
		if (node != from && move_page(page, node, MPOL_MF_MOVE) == node)
			return node;
	return -1;
}

/* Has another node than @from a free huge page? */
static bool other_node_has_page(unsigned long size, int from)
{
	unsigned long nr;
	char path[128];
	int node;
	FILE *f;

	for (node = 0; node < MAX_NODES; node++) {
		snprintf(path, sizeof(path), NODE_FREE, node, size >> 10);
		f = node == from ? NULL : fopen(path, "r");
		if (!f)
			continue;
		if (fscanf(f, "%lu", &nr) != 1)
			nr = 0;
		fclose(f);
		if (nr)
			return true;
	}
	return false;
}

FIXTURE_SETUP(hugetlb_move_pages)
{
	unsigned long nr;

	self->fd = -1;
	self->size = default_huge_page_size();
	if (!self->size)
		SKIP(return, "no huge pages");
	if (geteuid())
		SKIP(return, "needs root");
	nr = hugetlb_free_pages(self->size);
	if (nr < NR_PAGES)
		hugetlb_set_nr_pages(self->size, hugetlb_nr_pages(self->size) +
				     NR_PAGES - nr);
	if (hugetlb_free_pages(self->size) < NR_PAGES)
		SKIP(return, "not enough huge pages");

	self->span = self->size * (psize() / sizeof(uint64_t));
	self->reserved = mmap(NULL, 3 * self->span, PROT_NONE, MAP_PRIVATE |
			      MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	ASSERT_NE(self->reserved, MAP_FAILED);
	self->mem = (char *)(((unsigned long)self->reserved + self->span - 1) &
			     ~(self->span - 1));
	if (!variant->aligned)
		self->mem += self->size;

	self->fd = memfd_create("hugetlb_move_pages", MFD_HUGETLB);
	ASSERT_GE(self->fd, 0);
	ASSERT_EQ(ftruncate(self->fd, self->span), 0);
	ASSERT_EQ(mmap(self->mem, self->span, PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_NORESERVE | MAP_FIXED, self->fd, 0),
		  self->mem);
	*self->mem = 'a';

	self->other_node = node_of(self->mem);
	if (!other_node_has_page(self->size, self->other_node))
		SKIP(return, "no huge page on another node");
	self->node = move_anywhere(self->mem);
	ASSERT_GE(self->node, 0) {
		TH_LOG("A huge page that is not shared does not move");
	}
}

FIXTURE_TEARDOWN(hugetlb_move_pages)
{
	if (self->child > 0) {
		kill(self->child, SIGKILL);
		waitpid(self->child, NULL, 0);
	}
	if (self->fd >= 0) {
		munmap(self->reserved, 3 * self->span);
		close(self->fd);
	}
}

/* Start a child that maps the page, and looks at it again when told to. */
static void start_child(struct __test_metadata *_metadata,
			FIXTURE_DATA(hugetlb_move_pages) * self)
{
	int to_child[2], to_parent[2];
	char c;

	ASSERT_EQ(pipe(to_child), 0);
	ASSERT_EQ(pipe(to_parent), 0);
	self->child = fork();
	ASSERT_GE(self->child, 0);
	if (!self->child) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		alarm(60);
		close(to_child[1]);
		close(to_parent[0]);
		do {
			c = FORCE_READ(*self->mem);
			if (write(to_parent[1], &c, 1) != 1)
				_exit(1);
		} while (read(to_child[0], &c, 1) == 1);
		_exit(0);
	}
	close(to_child[0]);
	close(to_parent[1]);
	self->to_child = to_child[1];
	self->to_parent = to_parent[0];
	ASSERT_EQ(read(self->to_parent, &c, 1), 1);
	ASSERT_EQ(c, 'a');
}

static void expect_child_reads(struct __test_metadata *_metadata,
			       FIXTURE_DATA(hugetlb_move_pages) * self, char val)
{
	char c = 0;

	*self->mem = val;
	ASSERT_EQ(write(self->to_child, &c, 1), 1);
	ASSERT_EQ(read(self->to_parent, &c, 1), 1);
	EXPECT_EQ(c, val) {
		TH_LOG("the child does not read what was written");
	}
}

TEST_F(hugetlb_move_pages, mapped_by_child)
{
	int status;

	start_child(_metadata, self);
	status = move_page(self->mem, self->other_node, MPOL_MF_MOVE);
	EXPECT_EQ(status, -EACCES) {
		TH_LOG("MPOL_MF_MOVE of a page that another process maps: status %d, not -EACCES",
		       status);
	}
	/* Migration may have left the page unmapped. */
	FORCE_READ(*self->mem);
	EXPECT_EQ(node_of(self->mem), self->node) {
		TH_LOG("MPOL_MF_MOVE moved a page that another process maps");
	}
	expect_child_reads(_metadata, self, 'b');
}

TEST_F(hugetlb_move_pages, mapped_by_child_move_all)
{
	start_child(_metadata, self);
	EXPECT_EQ(move_page(self->mem, self->other_node, MPOL_MF_MOVE_ALL),
		  self->other_node) {
		TH_LOG("MPOL_MF_MOVE_ALL did not move the page");
	}
	expect_child_reads(_metadata, self, 'b');
}

TEST_F(hugetlb_move_pages, child_is_gone)
{
	start_child(_metadata, self);
	kill(self->child, SIGKILL);
	ASSERT_EQ(waitpid(self->child, NULL, 0), self->child);
	self->child = 0;
	EXPECT_EQ(move_page(self->mem, self->other_node, MPOL_MF_MOVE),
		  self->other_node) {
		TH_LOG("MPOL_MF_MOVE did not move a page that no other process maps");
	}
	EXPECT_EQ(*self->mem, 'a');
}

TEST_HARNESS_MAIN
