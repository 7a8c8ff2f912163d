// SPDX-License-Identifier: GPL-2.0
/*
 * Test mprotect() of a large anonymous folio that is mapped by PTEs, where it
 * changes which PTEs are alike. arm64 combines those in its TLB: without a flush
 * in between, the hardware may report conflicting TLB entries, which kills the
 * process.
 */

#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include "vm_util.h"
#include "hugepage_settings.h"

#define MAX_LEN		(64UL << 20)

FIXTURE(mprotect_large_folio)
{
	unsigned long len;
	int nr;			/* pages of it */
	char *reserved;
	char *mem;
	int zero;		/* /dev/zero */
};

FIXTURE_SETUP(mprotect_large_folio)
{
	self->reserved = MAP_FAILED;
	self->zero = -1;
	if (!thp_available())
		SKIP(return, "no transparent huge pages");
	self->len = read_pmd_pagesize();
	if (!self->len || self->len > MAX_LEN)
		SKIP(return, "no huge pages of up to %lu MB", MAX_LEN >> 20);
	self->nr = self->len / psize();
	self->zero = open("/dev/zero", O_RDONLY);
	ASSERT_GE(self->zero, 0);

	self->reserved = mmap(NULL, 4 * self->len, PROT_NONE, MAP_PRIVATE |
			      MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	ASSERT_NE(self->reserved, MAP_FAILED);
	self->mem = (char *)(((unsigned long)self->reserved + self->len - 1) &
			     ~(self->len - 1));
	ASSERT_EQ(mprotect(self->mem, self->len, PROT_READ | PROT_WRITE), 0);
	if (madvise(self->mem, self->len, MADV_HUGEPAGE))
		SKIP(return, "no huge pages here");
	*self->mem = 1;
	if (!check_huge_anon(self->mem, self->len, 1, self->len))
		SKIP(return, "got no huge page");
	memset(self->mem, 1, self->len);

	/* Map it by PTEs, all alike again after this. */
	ASSERT_EQ(mprotect(self->mem, psize(), PROT_READ), 0);
	ASSERT_EQ(mprotect(self->mem, psize(), PROT_READ | PROT_WRITE), 0);
}

FIXTURE_TEARDOWN(mprotect_large_folio)
{
	if (self->reserved != MAP_FAILED)
		munmap(self->reserved, 4 * self->len);
	if (self->zero >= 0)
		close(self->zero);
}

/* Returns the first page that is not as expected, or -1. */
static int find_wrong(FIXTURE_DATA(mprotect_large_folio) * self, bool writable,
		      char val)
{
	int i;

	for (i = 0; i < self->nr; i++) {
		char *p = self->mem + i * psize();

		if (FORCE_READ(*p) != val)
			return i;
		if ((read(self->zero, p + 1, 1) == 1) != writable)
			return i;
	}
	return -1;
}

/* Make all pages read-only, inaccessible and writable again, several times. */
static void change_and_restore(struct __test_metadata *_metadata,
			       FIXTURE_DATA(mprotect_large_folio) * self)
{
	int i, wrong;

	for (i = 0; i < 3; i++) {
		ASSERT_EQ(mprotect(self->mem, self->len, PROT_READ), 0);
		wrong = find_wrong(self, false, 1 + i);
		ASSERT_EQ(wrong, -1) {
			TH_LOG("page %d is not as expected, read-only", wrong);
		}
		ASSERT_EQ(mprotect(self->mem, self->len, PROT_NONE), 0);
		ASSERT_EQ(mprotect(self->mem, self->len, PROT_READ | PROT_WRITE), 0);
		wrong = find_wrong(self, true, 1 + i);
		ASSERT_EQ(wrong, -1) {
			TH_LOG("page %d is not as expected, writable", wrong);
		}
		memset(self->mem, 2 + i, self->len);
	}
}

/* The first PTEs were changed one by one, the others all at once. */
TEST_F(mprotect_large_folio, restored)
{
	change_and_restore(_metadata, self);
}

/* The PFNs are not congruent with the addresses: PTEs cannot be combined. */
TEST_F(mprotect_large_folio, not_congruent)
{
	char *to = self->mem + self->len + psize();

	ASSERT_EQ(sys_mremap(self->mem, self->len, self->len,
			     MREMAP_MAYMOVE | MREMAP_FIXED, to), to);
	self->mem = to;
	change_and_restore(_metadata, self);
}

/* The range begins and ends in the middle of combined PTEs. */
TEST_F(mprotect_large_folio, middle)
{
	const int from = 3, to = self->nr - 5;
	char *mem = self->mem + from * psize();
	const unsigned long len = (to - from) * psize();
	int i;

	for (i = 0; i < 3; i++) {
		ASSERT_EQ(mprotect(mem, len, PROT_READ), 0);
		EXPECT_EQ(find_wrong(self, true, 1), from) {
			TH_LOG("page %d is not the first read-only page", from);
		}
		ASSERT_EQ(mprotect(mem, len, PROT_READ | PROT_WRITE), 0);
		EXPECT_EQ(find_wrong(self, true, 1), -1);
		ASSERT_EQ(mprotect(self->mem, self->len, PROT_READ), 0);
		EXPECT_EQ(find_wrong(self, false, 1), -1);
		ASSERT_EQ(mprotect(self->mem, self->len, PROT_READ | PROT_WRITE), 0);
		EXPECT_EQ(find_wrong(self, true, 1), -1);
	}
}

/* All PTEs are alike, but after fork() only some pages are exclusive again. */
TEST_F(mprotect_large_folio, partly_exclusive)
{
	int i, wrong, status;
	pid_t pid;

	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid)
		_exit(0);
	ASSERT_EQ(waitpid(pid, &status, 0), pid);

	for (i = 3; i < self->nr; i += 37)
		self->mem[i * psize()] = 1;
	ASSERT_EQ(mprotect(self->mem, self->len, PROT_READ), 0);
	wrong = find_wrong(self, false, 1);
	EXPECT_EQ(wrong, -1) {
		TH_LOG("page %d is not as expected, read-only", wrong);
	}
	ASSERT_EQ(mprotect(self->mem, self->len, PROT_READ | PROT_EXEC), 0);
	wrong = find_wrong(self, false, 1);
	EXPECT_EQ(wrong, -1) {
		TH_LOG("page %d is not as expected, executable", wrong);
	}
	ASSERT_EQ(mprotect(self->mem, self->len, PROT_READ | PROT_WRITE), 0);
	wrong = find_wrong(self, true, 1);
	EXPECT_EQ(wrong, -1) {
		TH_LOG("page %d is not as expected, writable", wrong);
	}
}

TEST_HARNESS_MAIN
