// SPDX-License-Identifier: GPL-2.0
/*
 * Huge pages that a child shares, and that its parent is about to pin or to
 * populate: they are copied as a whole, and the parent keeps huge pages. Check
 * that, and that the child keeps what it has.
 */

#include <linux/mman.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/ioctl.h>

#include "folio_witness.h"

#define NR_FOLIOS	3

FIXTURE(folio_unshare)
{
	struct folio_env env;
	struct region r;
	long pages;		/* of all folios */
	unsigned long *pfns;	/* before the pages are unshared */
	int gup_fd;
	int fds[2];
	pid_t child;
	int delay;		/* until another thread drops the pages, in us */
};

FIXTURE_VARIANT(folio_unshare)
{
	bool populate;		/* or pin */
	int flags;		/* of the pin */
};

FIXTURE_VARIANT_ADD(folio_unshare, pin_for_writing)
{
	.flags = PIN_LONGTERM_TEST_FLAG_USE_WRITE,
};

FIXTURE_VARIANT_ADD(folio_unshare, pin_fast_for_writing)
{
	.flags = PIN_LONGTERM_TEST_FLAG_USE_WRITE | PIN_LONGTERM_TEST_FLAG_USE_FAST,
};

FIXTURE_VARIANT_ADD(folio_unshare, pin_for_reading)
{
	.flags = 0,
};

FIXTURE_VARIANT_ADD(folio_unshare, populate)
{
	.populate = true,
};

/* Returns 0, or the error. */
static int unshare_pages(FIXTURE_DATA(folio_unshare) * self,
			 const FIXTURE_VARIANT(folio_unshare) * variant,
			 char *mem, size_t len)
{
	struct pin_longterm_test args = {
		.addr = (uintptr_t)mem,
		.size = len,
		.flags = variant->flags,
	};

	if (variant->populate)
		return madvise(mem, len, MADV_POPULATE_WRITE) ? errno : 0;
	return ioctl(self->gup_fd, PIN_LONGTERM_TEST_START, &args) ? errno : 0;
}

static void unpin_pages(FIXTURE_DATA(folio_unshare) * self)
{
	if (self->gup_fd >= 0)
		ioctl(self->gup_fd, PIN_LONGTERM_TEST_STOP);
}

FIXTURE_SETUP(folio_unshare)
{
	const char *why;

	self->gup_fd = -1;
	self->r.map = MAP_FAILED;
	why = folio_env_init(&self->env);
	if (why)
		SKIP(return, "%s", why);
	if (!self->env.pmd_size)
		SKIP(return, "size of a PMD not known");
	if (!variant->populate) {
		self->gup_fd = open(GUP_TEST, O_RDWR);
		if (self->gup_fd < 0)
			SKIP(return, "no gup_test");
	}
	if (!region_alloc(&self->env, &self->r, self->env.pmd_size, NR_FOLIOS)) {
		self->r.map = MAP_FAILED;
		SKIP(return, "no huge pages");
	}
	self->pages = self->r.nr * self->r.size / psize();
	self->pfns = calloc(self->pages, sizeof(*self->pfns));
	ASSERT_NE(self->pfns, NULL);

	/* khugepaged scans once, which is too early to be of help */
	khugepaged_asleep(self->r.size);
	/* Away from where memory that is pinned must not be */
	ASSERT_EQ(unshare_pages(self, variant, self->r.mem,
				self->r.nr * self->r.size), 0);
	unpin_pages(self);
}

FIXTURE_TEARDOWN(folio_unshare)
{
	unpin_pages(self);
	if (self->gup_fd >= 0)
		close(self->gup_fd);
	if (self->r.map != MAP_FAILED)
		region_free(&self->r);
	thp_restore_settings();
}

static long nr_copied(FIXTURE_DATA(folio_unshare) * self)
{
	return pages_moved(&self->env, &self->r, self->pfns);
}

/* The child compares what it has when it ends. */
static void share(struct __test_metadata *_metadata,
		  FIXTURE_DATA(folio_unshare) * self)
{
	self->child = fork_witness(&self->r, self->fds);
	ASSERT_GT(self->child, 0);
	ASSERT_EQ(huge_pages(&self->env, &self->r), NR_FOLIOS);
	note_pfns(&self->env, &self->r, self->pfns);
}

TEST_F(folio_unshare, whole)
{
	const size_t len = self->r.nr * self->r.size;
	long faults;

	share(_metadata, self);
	EXPECT_EQ(unshare_pages(self, variant, self->r.mem, len), 0);
	EXPECT_EQ(huge_pages(&self->env, &self->r), NR_FOLIOS) {
		TH_LOG("%d of %d huge pages are left",
		       huge_pages(&self->env, &self->r), NR_FOLIOS);
	}
	EXPECT_EQ(nr_copied(self), self->pages);
	expect_contents(_metadata, &self->r);

	faults = minor_faults();
	memset(self->r.mem, 7, len);
	faults = minor_faults() - faults;
	EXPECT_LE(faults, NR_FOLIOS + OTHER_FAULTS) {
		TH_LOG("%ld faults after that", faults);
	}
	EXPECT_EQ(nr_copied(self), self->pages);
	if (!variant->populate)
		expect_pinned(_metadata, self->gup_fd, self->r.mem, len);
	EXPECT_TRUE(end_child(self->child, self->fds));
}

/* Without the first and the last page: a huge page is left in between. */
TEST_F(folio_unshare, unaligned)
{
	const size_t len = self->r.nr * self->r.size;

	share(_metadata, self);
	EXPECT_EQ(unshare_pages(self, variant, page(&self->r, 1),
				len - 2 * psize()), 0);
	EXPECT_EQ(huge_pages(&self->env, &self->r), NR_FOLIOS - 2);
	EXPECT_EQ(nr_copied(self), self->pages - 2);
	expect_contents(_metadata, &self->r);
	memset(self->r.mem, 7, len);
	EXPECT_TRUE(end_child(self->child, self->fds));
}

/* The child exits before: nothing is copied. */
TEST_F(folio_unshare, alone)
{
	const size_t len = self->r.nr * self->r.size;

	share(_metadata, self);
	EXPECT_TRUE(end_child(self->child, self->fds));
	EXPECT_EQ(unshare_pages(self, variant, self->r.mem, len), 0);
	EXPECT_EQ(huge_pages(&self->env, &self->r), NR_FOLIOS);
	EXPECT_EQ(nr_copied(self), 0);
	expect_contents(_metadata, &self->r);
}

/* Huge pages are not to be allocated: single pages are copied. */
TEST_F(folio_unshare, switched_off)
{
	const size_t len = self->r.nr * self->r.size;

	share(_metadata, self);
	set_thp(self->r.size, "never");
	EXPECT_EQ(unshare_pages(self, variant, self->r.mem, len), 0);
	EXPECT_EQ(huge_pages(&self->env, &self->r), 0);
	EXPECT_EQ(nr_copied(self), self->pages);
	expect_contents(_metadata, &self->r);
	memset(self->r.mem, 7, len);
	if (!variant->populate)
		expect_pinned(_metadata, self->gup_fd, self->r.mem, len);
	EXPECT_TRUE(end_child(self->child, self->fds));
}

/* A pin for reading makes nothing soft-dirty, and nothing writable. */
TEST_F(folio_unshare, soft_dirty)
{
	const bool reading = !variant->populate && !variant->flags;
	const size_t len = self->r.nr * self->r.size;
	const int fd = self->env.pagemap_fd;

	if (!softdirty_supported())
		SKIP(return, "no soft-dirty");
	share(_metadata, self);
	clear_softdirty();
	EXPECT_EQ(unshare_pages(self, variant, self->r.mem, len), 0);
	EXPECT_EQ(huge_pages(&self->env, &self->r), NR_FOLIOS);
	EXPECT_EQ(pagemap_is_softdirty(fd, page(&self->r, 1)), !reading);
	write_page(&self->r, 1);
	EXPECT_TRUE(pagemap_is_softdirty(fd, page(&self->r, 1)));
	EXPECT_EQ(nr_copied(self), self->pages);
	EXPECT_TRUE(end_child(self->child, self->fds));
}

TEST_F(folio_unshare, read_only)
{
	const bool reading = !variant->populate && !variant->flags;
	const size_t len = self->r.nr * self->r.size;

	share(_metadata, self);
	ASSERT_EQ(mprotect(self->r.mem, len, PROT_READ), 0);
	EXPECT_EQ(unshare_pages(self, variant, self->r.mem, len) == 0, reading);
	EXPECT_EQ(nr_copied(self), reading ? self->pages : 0);
	EXPECT_EQ(huge_pages(&self->env, &self->r), NR_FOLIOS);
	EXPECT_FALSE(writable(page(&self->r, 3)));
	expect_contents(_metadata, &self->r);
	EXPECT_TRUE(end_child(self->child, self->fds));
}

/* The memory of a third process, forked while the pages are pinned */
TEST_F(folio_unshare, fork_again)
{
	const size_t len = self->r.nr * self->r.size;
	int fds[2];
	pid_t pid;

	share(_metadata, self);
	EXPECT_EQ(unshare_pages(self, variant, self->r.mem, len), 0);
	pid = fork_witness(&self->r, fds);
	ASSERT_GT(pid, 0);
	memset(self->r.mem, 7, len);
	if (!variant->populate)
		expect_pinned(_metadata, self->gup_fd, self->r.mem, len);
	EXPECT_TRUE(end_child(pid, fds));
	EXPECT_TRUE(end_child(self->child, self->fds));
}

static void *drop_pages(void *arg)
{
	FIXTURE_DATA(folio_unshare) * self = arg;
	const size_t len = self->r.nr * self->r.size;
	long err;

	usleep(self->delay);
	err = madvise(self->r.mem, len, MADV_DONTNEED) ? errno : 0;
	return (void *)err;
}

/* Another thread drops the pages meanwhile: what they contained is gone. */
TEST_F_TIMEOUT(folio_unshare, dropped_meanwhile, 120)
{
	const size_t len = self->r.nr * self->r.size;
	const long rounds = variant->populate ? 50 : 10;
	long i, j, old = 0;
	pthread_t thread;
	void *err;

	for (i = 0; i < rounds && !old; i++) {
		memset(self->r.mem, 7, len);
		self->child = fork_child(self->fds);
		ASSERT_GT(self->child, 0);
		self->delay = i * 10000 / rounds;
		ASSERT_EQ(pthread_create(&thread, NULL, drop_pages, self), 0);
		EXPECT_EQ(unshare_pages(self, variant, self->r.mem, len), 0);
		ASSERT_EQ(pthread_join(thread, &err), 0);
		EXPECT_EQ(err, NULL);
		for (j = 0; j < self->pages; j++)
			old += *page(&self->r, j) != 0;
		unpin_pages(self);
		EXPECT_TRUE(end_child(self->child, self->fds));
	}
	EXPECT_EQ(old, 0) {
		TH_LOG("%ld pages are back in round %ld", old, i);
	}
}

TEST_HARNESS_MAIN
