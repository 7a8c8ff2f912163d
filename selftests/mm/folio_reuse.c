// SPDX-License-Identifier: GPL-2.0
/*
 * A process that is left alone with large folios after fork() writes to them
 * without copies, and with few faults: one lets the pages around it be written,
 * too. Check that this is so, and that each page that must not be writable for
 * another reason, or still belongs to another process, is not.
 */

#include <stdbool.h>
#include <stdio.h>
#include <sys/ioctl.h>

#include "folio_witness.h"

/* Pages that one fault lets be written, aligned */
#define WINDOW		16
/* Of this many pages one is copied while there is a child */
#define COPIED		8

FIXTURE(folio_reuse)
{
	struct folio_env env;
	struct region r;
	long pages;		/* of each folio */
};

FIXTURE_VARIANT(folio_reuse)
{
	int pages;		/* of a folio; 0: what a PMD maps */
};

FIXTURE_VARIANT_ADD(folio_reuse, of_16_pages)
{
	.pages = 16,
};

FIXTURE_VARIANT_ADD(folio_reuse, of_a_pmd)
{
	.pages = 0,
};

FIXTURE_SETUP(folio_reuse)
{
	size_t size = variant->pages * psize();
	const char *why;

	self->r.map = MAP_FAILED;
	why = folio_env_init(&self->env);
	if (why)
		SKIP(return, "%s", why);
	if (!size)
		size = self->env.pmd_size;
	if (!size)
		SKIP(return, "size of a PMD not known");
	if (!region_alloc(&self->env, &self->r, size, 2)) {
		self->r.map = MAP_FAILED;
		SKIP(return, "no folios of %zukB", size >> 10);
	}
	self->pages = size / psize();
}

FIXTURE_TEARDOWN(folio_reuse)
{
	if (self->r.map != MAP_FAILED)
		region_free(&self->r);
	thp_restore_settings();
}

/* Leave this process alone with what it has not copied, mapped by PTEs. */
static void share_and_copy(struct __test_metadata *_metadata,
			   FIXTURE_DATA(folio_reuse) * self)
{
	int fds[2];
	pid_t pid;
	long i;

	pid = fork_child(fds);
	ASSERT_GT(pid, 0);
	for (i = 0; i < self->r.nr * self->pages; i += COPIED)
		write_page(&self->r, i);
	ASSERT_TRUE(end_child(pid, fds));
}

static void expect_few_faults(struct __test_metadata *_metadata,
			      FIXTURE_DATA(folio_reuse) * self, long faults,
			      long limit)
{
	limit += OTHER_FAULTS;
	EXPECT_LE(faults, limit) {
		TH_LOG("%ld faults for %ld pages, expected %ld at most", faults,
		       self->r.nr * self->pages, limit);
	}
}

TEST_F(folio_reuse, faults)
{
	long i, faults;

	share_and_copy(_metadata, self);
	faults = minor_faults();
	for (i = 0; i < self->r.nr * self->pages; i++)
		write_page(&self->r, i);
	expect_few_faults(_metadata, self, minor_faults() - faults,
			  self->r.nr * self->pages / WINDOW);
	expect_contents(_metadata, &self->r);
}

/*
 * Pins take few faults, and copy nothing, also of folios that were @written to
 * before.
 */
static void pin(struct __test_metadata *_metadata,
		FIXTURE_DATA(folio_reuse) * self, bool write, bool written,
		long limit)
{
	const long nr = self->r.nr * self->pages;
	struct pin_longterm_test args = {
		.addr = (unsigned long)self->r.mem,
		.size = self->r.nr * self->r.size,
		.flags = write ? PIN_LONGTERM_TEST_FLAG_USE_WRITE : 0,
	};
	unsigned long *pfns;
	long i, faults, copied;
	int fd;

	fd = open(GUP_TEST, O_RDWR);
	if (fd < 0)
		SKIP(return, "no gup_test");
	/* Away from where memory that is pinned must not be */
	ASSERT_EQ(ioctl(fd, PIN_LONGTERM_TEST_START, &args), 0);
	ASSERT_EQ(ioctl(fd, PIN_LONGTERM_TEST_STOP), 0);
	share_and_copy(_metadata, self);
	for (i = 5; written && i < nr; i += self->pages)
		write_page(&self->r, i);
	pfns = calloc(nr, sizeof(*pfns));
	ASSERT_NE(pfns, NULL);
	note_pfns(&self->env, &self->r, pfns);

	faults = minor_faults();
	ASSERT_EQ(ioctl(fd, PIN_LONGTERM_TEST_START, &args), 0);
	expect_few_faults(_metadata, self, minor_faults() - faults, limit);
	copied = pages_moved(&self->env, &self->r, pfns);
	EXPECT_EQ(copied, 0) {
		TH_LOG("%ld of %ld pages were copied", copied, nr);
	}
	ASSERT_EQ(ioctl(fd, PIN_LONGTERM_TEST_STOP), 0);
	close(fd);
	free(pfns);
}

TEST_F(folio_reuse, pin_for_reading)
{
	pin(_metadata, self, false, false, self->r.nr);
}

TEST_F(folio_reuse, pin_for_writing)
{
	pin(_metadata, self, true, false, self->r.nr * self->pages / WINDOW);
}

TEST_F(folio_reuse, pin_after_write)
{
	pin(_metadata, self, true, true, self->r.nr * self->pages / WINDOW);
}

/* VMAs that end within the window */
TEST_F(folio_reuse, read_only_neighbours)
{
	share_and_copy(_metadata, self);
	ASSERT_EQ(mprotect(page(&self->r, 3), psize(), PROT_READ), 0);
	ASSERT_EQ(mprotect(page(&self->r, 6), psize(), PROT_READ), 0);
	write_page(&self->r, 5);
	EXPECT_FALSE(writable(page(&self->r, 3)));
	EXPECT_TRUE(writable(page(&self->r, 4)));
	EXPECT_FALSE(writable(page(&self->r, 6)));
	expect_contents(_metadata, &self->r);
}

/* A debugger writes to memory that the process itself must not write. */
TEST_F(folio_reuse, forced_write)
{
	char c = pattern(&self->r, page(&self->r, 5));
	int fd, i;

	share_and_copy(_metadata, self);
	ASSERT_EQ(mprotect(self->r.mem, self->r.size, PROT_READ), 0);
	fd = open("/proc/self/mem", O_RDWR);
	ASSERT_GE(fd, 0);
	if (pwrite(fd, &c, 1, (off_t)page(&self->r, 5)) != 1)
		SKIP(return, "no forced writes");
	close(fd);
	for (i = 0; i < WINDOW; i++)
		EXPECT_FALSE(writable(page(&self->r, i)));
	expect_contents(_metadata, &self->r);
}

TEST_F(folio_reuse, soft_dirty)
{
	int i;

	if (!softdirty_supported())
		SKIP(return, "no soft-dirty");
	share_and_copy(_metadata, self);
	clear_softdirty();
	for (i = 1; i < COPIED; i++) {
		write_page(&self->r, i);
		EXPECT_TRUE(pagemap_is_softdirty(self->env.pagemap_fd,
						 page(&self->r, i)));
		EXPECT_FALSE(pagemap_is_softdirty(self->env.pagemap_fd,
						  page(&self->r, i + 1)));
	}
}

TEST_F(folio_reuse, userfaultfd)
{
	struct uffdio_writeprotect wp = {
		.range = { (unsigned long)page(&self->r, 6), psize() },
		.mode = UFFDIO_WRITEPROTECT_MODE_WP,
	};
	int fd;

	fd = uffd_sigbus(self->r.mem, self->r.size, false);
	if (fd < 0)
		SKIP(return, "no write protection by userfaultfd");
	share_and_copy(_metadata, self);
	ASSERT_EQ(ioctl(fd, UFFDIO_WRITEPROTECT, &wp), 0);
	write_page(&self->r, 5);
	EXPECT_TRUE(bus_error(page(&self->r, 6), true));
	EXPECT_FALSE(bus_error(page(&self->r, 7), true));
	close(fd);
	expect_contents(_metadata, &self->r);
}

/* Pages that were given back, and not written since, are still free. */
TEST_F(folio_reuse, lazily_freed)
{
	int fds[2];
	pid_t pid;
	long kb;

	pid = fork_child(fds);
	ASSERT_GT(pid, 0);
	ASSERT_TRUE(end_child(pid, fds));
	/* Map them by PTEs */
	ASSERT_EQ(mprotect(page(&self->r, 1), psize(), PROT_READ), 0);
	ASSERT_EQ(mprotect(page(&self->r, 1), psize(),
			   PROT_READ | PROT_WRITE), 0);
	ASSERT_EQ(madvise(self->r.mem, self->r.nr * self->r.size, MADV_FREE), 0);
	write_page(&self->r, 5);
	kb = smaps_sum(getpid(), &self->r, "Private_Dirty");
	EXPECT_EQ(kb, psize() / 1024) {
		TH_LOG("%ld kB are dirty, expected %u kB", kb, psize() / 1024);
	}
}

/* One of two children is left: nothing is exclusive. */
TEST_F(folio_reuse, other_child)
{
	int fds[2];
	pid_t pid;
	long i;

	pid = fork_witness(&self->r, fds);
	ASSERT_GT(pid, 0);
	share_and_copy(_metadata, self);
	for (i = 1; i < self->r.nr * self->pages; i += COPIED)
		*page(&self->r, i) = 0;
	for (i = 0; i < self->r.nr * self->pages; i++)
		*page(&self->r, i) = 0;
	EXPECT_TRUE(end_child(pid, fds));
}

/* Some pages are exclusive, and their neighbours are shared. */
TEST_F(folio_reuse, shared_neighbours)
{
	struct pin_longterm_test args = {
		.addr = (unsigned long)page(&self->r, 5),
		.size = psize(),
	};
	const size_t len = self->r.nr * self->r.size - 6 * psize();
	int fds[2], fd;
	pid_t pid;
	long i;

	fd = open(GUP_TEST, O_RDWR);
	if (fd < 0)
		SKIP(return, "no gup_test");
	share_and_copy(_metadata, self);
	/* In another VMA: the pin makes none of them exclusive */
	ASSERT_EQ(mprotect(page(&self->r, 6), len, PROT_READ), 0);
	ASSERT_EQ(ioctl(fd, PIN_LONGTERM_TEST_START, &args), 0);
	ASSERT_EQ(mprotect(page(&self->r, 6), len, PROT_READ | PROT_WRITE), 0);
	/* A child gets a copy of the page, and shares those from page 6 */
	pid = fork_witness(&self->r, fds);
	ASSERT_GT(pid, 0);
	for (i = 5; i < self->r.nr * self->pages; i++)
		*page(&self->r, i) = 0;
	EXPECT_TRUE(end_child(pid, fds));
	ASSERT_EQ(ioctl(fd, PIN_LONGTERM_TEST_STOP), 0);
	close(fd);
}

/* Returns -1 if that is not counted. */
static long cow_stat(FIXTURE_DATA(folio_reuse) * self, const char *name)
{
	char path[128];

	snprintf(path, sizeof(path),
		 "/sys/kernel/mm/transparent_hugepage/hugepages-%zukB/stats/%s",
		 self->r.size >> 10, name);
	return access(path, R_OK) ? -1 : read_stat(self->r.size, name);
}

/* Counters of the folio size say what the child has cost. */
TEST_F(folio_reuse, counted)
{
	const long nr = self->r.nr * self->pages;
	const long copies = cow_stat(self, "cow_copy");
	const long splits = cow_stat(self, "cow_split");
	const long reuses = cow_stat(self, "cow_reuse");
	long i, faults, reused;

	share_and_copy(_metadata, self);
	EXPECT_EQ(cow_stat(self, "cow_copy"), copies + nr / COPIED);
	EXPECT_EQ(cow_stat(self, "cow_split"),
		  splits + (variant->pages ? 0 : self->r.nr));
	faults = minor_faults();
	for (i = 0; i < nr; i++)
		write_page(&self->r, i);
	faults = minor_faults() - faults;
	reused = cow_stat(self, "cow_reuse") - reuses;
	EXPECT_LE(reused, faults);
	EXPECT_GE(reused, faults - OTHER_FAULTS);
	EXPECT_EQ(cow_stat(self, "cow_copy"), copies + nr / COPIED);
}

/* What has become exclusive around a fault is shared again by fork(). */
TEST_F(folio_reuse, next_child)
{
	int fds[2];
	pid_t pid;
	long i;

	share_and_copy(_metadata, self);
	for (i = 1; i < self->r.nr * self->pages; i += WINDOW)
		write_page(&self->r, i);
	pid = fork_witness(&self->r, fds);
	ASSERT_GT(pid, 0);
	for (i = 0; i < self->r.nr * self->pages; i++)
		*page(&self->r, i) = 0;
	EXPECT_TRUE(end_child(pid, fds));
}

TEST_HARNESS_MAIN
