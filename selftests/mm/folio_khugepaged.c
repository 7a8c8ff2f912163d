// SPDX-License-Identifier: GPL-2.0
/*
 * What khugepaged collapses to folios smaller than a PMD maps (mTHPs), and what
 * it leaves alone: allocations are counted, as each costs the locks and the TLB
 * flush of a collapse, even if it is for nothing.
 */

#include <linux/mman.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/ioctl.h>

#include "folio_witness.h"

FIXTURE(folio_khugepaged)
{
	struct folio_env env;
	struct region r;	/* all that one page table maps */
	long pages;		/* of the region */
	long nr;		/* of each folio */
};

FIXTURE_VARIANT(folio_khugepaged)
{
	int order;
};

FIXTURE_VARIANT_ADD(folio_khugepaged, of_4_pages)
{
	.order = 2,
};

FIXTURE_VARIANT_ADD(folio_khugepaged, of_16_pages)
{
	.order = 4,
};

FIXTURE_SETUP(folio_khugepaged)
{
	const char *why;
	size_t size;
	int i;

	self->r.map = MAP_FAILED;
	why = folio_env_init(&self->env);
	if (why)
		SKIP(return, "%s", why);
	if (!self->env.pmd_size)
		SKIP(return, "size of a PMD not known");
	size = (size_t)psize() << variant->order;
	for (i = 0; i < self->env.nr_sizes; i++)
		if (self->env.sizes[i] == size)
			break;
	if (i == self->env.nr_sizes || size >= self->env.pmd_size)
		SKIP(return, "no folios of %zukB", size >> 10);

	self->r.size = size;
	self->r.nr = self->env.pmd_size / size;
	self->nr = 1 << variant->order;
	self->pages = self->env.pmd_size / psize();
	/* Leave something between this and another mapping. */
	self->r.map_len = 3 * self->env.pmd_size;
	self->r.map = mmap(NULL, self->r.map_len, PROT_NONE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(self->r.map, MAP_FAILED);
	self->r.mem = align_up(self->r.map + 1, self->env.pmd_size);
	ASSERT_EQ(mprotect(self->r.mem, self->env.pmd_size,
			   PROT_READ | PROT_WRITE), 0);
	ASSERT_EQ(madvise(self->r.mem, self->env.pmd_size, MADV_HUGEPAGE), 0);
}

FIXTURE_TEARDOWN(folio_khugepaged)
{
	if (self->r.map != MAP_FAILED)
		region_free(&self->r);
	thp_restore_settings();
}

/* Write to all pages, which are small ones, or those of folios. */
static void populate(FIXTURE_DATA(folio_khugepaged) * self, bool folios)
{
	long i;

	if (folios)
		set_thp(self->r.size, "madvise");
	for (i = 0; i < self->pages; i++)
		write_page(&self->r, i);
	set_thp(self->r.size, "never");
}

static long allocated(FIXTURE_DATA(folio_khugepaged) * self)
{
	return read_stat(self->r.size, "collapse_alloc");
}

static void expect_allocated(struct __test_metadata *_metadata,
			     FIXTURE_DATA(folio_khugepaged) * self, long before,
			     long expected)
{
	const long nr = allocated(self) - before;

	EXPECT_EQ(nr, expected) {
		TH_LOG("%ld folios were allocated, expected %ld", nr, expected);
	}
}

/* How many folios are mapped completely? */
static int whole_folios(FIXTURE_DATA(folio_khugepaged) * self)
{
	const int fd = self->env.pagemap_fd;
	int whole = 0;
	long i, j;

	for (i = 0; i < self->pages; i += self->nr) {
		const unsigned long pfn = pagemap_get_pfn(fd, page(&self->r, i));

		if (pfn == -1ul || pfn % self->nr ||
		    !maps_large_folio(&self->env, page(&self->r, i)))
			continue;
		for (j = 1; j < self->nr; j++)
			if (pagemap_get_pfn(fd, page(&self->r, i + j)) != pfn + j)
				break;
		whole += j == self->nr;
	}
	return whole;
}

static void expect_folios(struct __test_metadata *_metadata,
			  FIXTURE_DATA(folio_khugepaged) * self, int expected)
{
	const int nr = whole_folios(self);

	EXPECT_EQ(nr, expected) {
		TH_LOG("%d of %d folios, expected %d", nr, self->r.nr, expected);
	}
	expect_contents(_metadata, &self->r);
}

/*
 * khugepaged takes notice of memory that has pages already, while a size is enabled.
 * Without this, the tests below would depend on the first one.
 */
static bool scan(FIXTURE_DATA(folio_khugepaged) * self)
{
	set_thp(self->r.size, "madvise");
	return !madvise(self->r.mem, self->env.pmd_size, MADV_NOHUGEPAGE) &&
	       !madvise(self->r.mem, self->env.pmd_size, MADV_HUGEPAGE) &&
	       khugepaged_scan(self->r.size);
}

/* It does so by page faults that allocate folios, too. */
TEST_F_TIMEOUT(folio_khugepaged, noticed, 120)
{
	populate(self, true);
	EXPECT_TRUE(khugepaged_scan(self->r.size)) {
		TH_LOG("khugepaged does not scan");
	}
}

/* Small pages become folios, and then there is nothing to do. */
TEST_F_TIMEOUT(folio_khugepaged, small, 120)
{
	long before = allocated(self);

	populate(self, false);
	ASSERT_TRUE(scan(self));
	expect_folios(_metadata, self, self->r.nr);
	expect_allocated(_metadata, self, before, self->r.nr);
}

/* Nothing is wrong with these. */
TEST_F_TIMEOUT(folio_khugepaged, whole, 120)
{
	long before = allocated(self);

	populate(self, true);
	if (whole_folios(self) != self->r.nr)
		SKIP(return, "not enough folios");
	ASSERT_TRUE(scan(self));
	expect_folios(_metadata, self, self->r.nr);
	expect_allocated(_metadata, self, before, 0);
}

/* One page of each folio was copied while there was a child. */
TEST_F_TIMEOUT(folio_khugepaged, copied, 120)
{
	struct folio_stats stats;
	int fds[2];
	long before, i;
	pid_t pid;

	populate(self, true);
	if (whole_folios(self) != self->r.nr)
		SKIP(return, "not enough folios");
	pid = fork_child(fds);
	ASSERT_GT(pid, 0);
	for (i = 1; i < self->pages; i += self->nr)
		write_page(&self->r, i);
	ASSERT_TRUE(end_child(pid, fds));
	ASSERT_EQ(whole_folios(self), 0);

	before = allocated(self);
	stats = read_stats(self->r.size);
	ASSERT_TRUE(scan(self));
	expect_folios(_metadata, self, self->r.nr);
	expect_allocated(_metadata, self, before, self->r.nr);
	/* The former ones were freed. */
	EXPECT_EQ(read_stats(self->r.size).nr_anon, stats.nr_anon);
}

/* A child still maps the folios, and sees what it had. */
TEST_F_TIMEOUT(folio_khugepaged, copied_and_shared, 120)
{
	long before = allocated(self), exceeded, i;
	int fds[2];
	pid_t pid;

	populate(self, true);
	if (whole_folios(self) != self->r.nr)
		SKIP(return, "not enough folios");
	pid = fork_witness(&self->r, fds);
	ASSERT_GT(pid, 0);
	for (i = 1; i < self->pages; i += self->nr)
		*page(&self->r, i) = 0;
	exceeded = read_stat(self->r.size, "collapse_exceed_shared_pte");
	ASSERT_TRUE(scan(self));
	expect_allocated(_metadata, self, before, 0);
	EXPECT_GE(read_stat(self->r.size, "collapse_exceed_shared_pte"),
		  exceeded + self->r.nr);
	for (i = 1; i < self->pages; i += self->nr)
		EXPECT_EQ(*page(&self->r, i), 0);
	EXPECT_TRUE(end_child(pid, fds));
}

/* A page that cannot be collapsed spoils one folio, wherever it is. */
TEST_F_TIMEOUT(folio_khugepaged, one_pinned, 120)
{
	struct iovec iov = {
		.iov_base = page(&self->r, self->nr + 1),
		.iov_len = 1,
	};
	long before = allocated(self);
	int fds[2];
	char c;

	populate(self, false);
	ASSERT_EQ(pipe(fds), 0);
	ASSERT_EQ(vmsplice(fds[1], &iov, 1, 0), 1);
	ASSERT_TRUE(scan(self));
	expect_folios(_metadata, self, self->r.nr - 1);
	expect_allocated(_metadata, self, before, self->r.nr - 1);
	ASSERT_EQ(read(fds[0], &c, 1), 1);
	EXPECT_EQ(c, pattern(&self->r, iov.iov_base));
	ASSERT_TRUE(scan(self));
	expect_folios(_metadata, self, self->r.nr);
	close(fds[0]);
	close(fds[1]);
}

TEST_F_TIMEOUT(folio_khugepaged, one_write_protected, 120)
{
	struct uffdio_writeprotect wp = {
		.range = {
			(uintptr_t)page(&self->r, self->pages - 1), psize()
		},
		.mode = UFFDIO_WRITEPROTECT_MODE_WP,
	};
	int fd;

	fd = uffd_sigbus(self->r.mem, self->env.pmd_size, false);
	if (fd < 0)
		SKIP(return, "no write protection by userfaultfd");
	populate(self, false);
	ASSERT_EQ(ioctl(fd, UFFDIO_WRITEPROTECT, &wp), 0);
	ASSERT_TRUE(scan(self));
	expect_folios(_metadata, self, self->r.nr - 1);
	EXPECT_TRUE(bus_error(page(&self->r, self->pages - 1), true));
	close(fd);
}

/* Only what was accessed is worth a folio. */
TEST_F_TIMEOUT(folio_khugepaged, one_accessed, 120)
{
	long before = allocated(self);

	populate(self, false);
	clear_accessed(&self->r);
	FORCE_READ(*page(&self->r, 2 * self->nr + 1));
	ASSERT_TRUE(scan(self));
	EXPECT_EQ(whole_folios(self), 1);
	expect_allocated(_metadata, self, before, 1);
	expect_folios(_metadata, self, 1);
}

/* What was discarded stays so, and the folio stays for the shrinker to split. */
TEST_F_TIMEOUT(folio_khugepaged, discarded, 120)
{
	long before = allocated(self), i, found = 0;

	populate(self, true);
	if (whole_folios(self) != self->r.nr)
		SKIP(return, "not enough folios");
	ASSERT_EQ(region_drop(&self->r, psize()), 0);
	ASSERT_TRUE(scan(self));
	expect_allocated(_metadata, self, before, 0);
	for (i = self->nr - 1; i < self->pages; i += self->nr)
		found += pagemap_is_populated(self->env.pagemap_fd,
					      page(&self->r, i));
	EXPECT_EQ(found, 0) {
		TH_LOG("%ld of %d discarded pages are back", found, self->r.nr);
	}
}

/* A swapped page spoils one folio, and is not read back. */
TEST_F_TIMEOUT(folio_khugepaged, one_swapped, 120)
{
	char *swapped = page(&self->r, 3 * self->nr);
	long exceeded;

	populate(self, false);
	ASSERT_EQ(madvise(swapped, psize(), MADV_PAGEOUT), 0);
	if (!pagemap_is_swapped(self->env.pagemap_fd, swapped))
		SKIP(return, "no swap");
	exceeded = read_stat(self->r.size, "collapse_exceed_swap_pte");
	ASSERT_TRUE(scan(self));
	EXPECT_TRUE(pagemap_is_swapped(self->env.pagemap_fd, swapped));
	EXPECT_GT(read_stat(self->r.size, "collapse_exceed_swap_pte"), exceeded);
	EXPECT_EQ(whole_folios(self), self->r.nr - 1);
	expect_contents(_metadata, &self->r);
}

/* The same with a guard page */
TEST_F_TIMEOUT(folio_khugepaged, one_guarded, 120)
{
	char *guard = page(&self->r, self->nr - 1);

	populate(self, false);
	if (madvise(guard, psize(), MADV_GUARD_INSTALL))
		SKIP(return, "no guard pages");
	ASSERT_TRUE(scan(self));
	EXPECT_EQ(whole_folios(self), self->r.nr - 1);
	EXPECT_FALSE(writable(guard));
	ASSERT_EQ(madvise(guard, psize(), MADV_GUARD_REMOVE), 0);
	write_page(&self->r, self->nr - 1);
	expect_contents(_metadata, &self->r);
}

/* Pages that are missing are for userfaultfd to provide. */
TEST_F_TIMEOUT(folio_khugepaged, one_missing, 120)
{
	char *missing = page(&self->r, 1);
	long before = allocated(self);
	int fd;

	populate(self, false);
	fd = uffd_sigbus(self->r.mem, self->env.pmd_size, true);
	if (fd < 0)
		SKIP(return, "no userfaultfd");
	ASSERT_EQ(madvise(missing, psize(), MADV_DONTNEED), 0);
	ASSERT_TRUE(scan(self));
	EXPECT_TRUE(bus_error(missing, false));
	expect_allocated(_metadata, self, before, self->r.nr - 1);
	close(fd);
	write_page(&self->r, 1);
	expect_contents(_metadata, &self->r);
}

TEST_HARNESS_MAIN
