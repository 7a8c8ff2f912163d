// SPDX-License-Identifier: GPL-2.0
/*
 * What /proc/PID/pagemap, /proc/kpagecount and /proc/PID/smaps say about how
 * often a page is mapped: bit 56 of a pagemap entry (PM_MMAP_EXCLUSIVE) for every
 * page of a PMD-mapped THP of which another process maps only a part, the count
 * of pages that cannot be mapped, and the Pss of a PMD-mapped THP.
 */
#define _GNU_SOURCE
#include "kselftest_harness.h"

#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "hugepage_settings.h"
#include "vm_util.h"

#define THP_ENABLED	"/sys/kernel/mm/transparent_hugepage/enabled"
#define MAX_SMALL	512UL	/* no more small folios than needed */
#define MAX_COUNTED	2048UL	/* see Documentation/admin-guide/mm/transhuge.rst */
#define TIMEOUT		300	/* PMDs can be large, and emulation slow */
#define TRIES		5	/* a lock that is busy can clear the bit */

/* Which pages of the area does the child keep mapped? */
typedef bool (*keep_fn)(unsigned long idx, unsigned long nr);

static bool keep_first(unsigned long idx, unsigned long nr)
{
	return !idx;
}

static bool keep_all_but_first(unsigned long idx, unsigned long nr)
{
	return idx;
}

static bool keep_last(unsigned long idx, unsigned long nr)
{
	return idx == nr - 1;
}

static bool keep_second_half(unsigned long idx, unsigned long nr)
{
	return idx >= nr / 2;
}

static bool keep_every_other(unsigned long idx, unsigned long nr)
{
	return idx % 2;
}

static bool keep_all(unsigned long idx, unsigned long nr)
{
	return true;
}

static bool keep_none(unsigned long idx, unsigned long nr)
{
	return false;
}

/* Reads the values of @nr pages, or of fewer; returns how many, or -1. */
static ssize_t kpage_read(int fd, uint64_t *values, unsigned long pfn,
			  unsigned long nr)
{
	ssize_t ret;

	ret = pread(fd, values, nr * sizeof(*values), pfn * sizeof(*values));
	return ret < 0 ? ret : ret / sizeof(*values);
}

/* Only with CAP_SYS_ADMIN; PFNs read as 0 without. */
static bool shows_pfns(int pagemap)
{
	char c = 0;
	unsigned long pfn;

	/* The stack may be migrated right now. */
	FORCE_READ(c);
	pfn = pagemap_get_pfn(pagemap, &c);
	return pfn && pfn != -1ul;
}

/* In the parent of all tests: its exit() restores what is changed here. */
static void __attribute__((constructor)) setup_thp(void)
{
	unsigned long pmd_size = read_pmd_pagesize();
	struct thp_settings settings;
	int order;

	if (!pmd_size || access(THP_ENABLED, W_OK))
		return;

	thp_save_settings();
	thp_read_settings(&settings);
	order = sz2ord(pmd_size, getpagesize());
	settings.thp_enabled = THP_MADVISE;
	settings.thp_defrag = THP_DEFRAG_MADVISE;
	settings.hugepages[order].enabled = THP_INHERIT;
	settings.shmem_enabled = SHMEM_ADVISE;
	settings.shmem_hugepages[order].enabled = SHMEM_INHERIT;
	thp_push_settings(&settings);
}

FIXTURE(pagemap_exclusive)
{
	unsigned long page_size;
	unsigned long pmd_size;
	unsigned long nr;		/* pages to look at: one PMD */
	char *reserved;
	char *area;
	uint64_t *entries;
	int memfd;
	int pagemap;
	int kpagecount;
	int child_pagemap;
	pid_t child;
	int ready[2];
};

FIXTURE_VARIANT(pagemap_exclusive)
{
	bool shmem;
};

FIXTURE_VARIANT_ADD(pagemap_exclusive, anon)
{
	.shmem = false,
};

FIXTURE_VARIANT_ADD(pagemap_exclusive, shmem)
{
	.shmem = true,
};

FIXTURE_SETUP(pagemap_exclusive)
{
	unsigned long start;

	self->memfd = -1;
	self->pagemap = -1;
	self->kpagecount = -1;
	self->child_pagemap = -1;
	self->ready[0] = -1;
	self->ready[1] = -1;
	self->reserved = MAP_FAILED;

	self->pagemap = open("/proc/self/pagemap", O_RDONLY);
	if (self->pagemap < 0)
		SKIP(return, "no /proc/self/pagemap");
	self->kpagecount = open("/proc/kpagecount", O_RDONLY);
	if (self->kpagecount < 0 || !shows_pfns(self->pagemap))
		SKIP(return, "root is needed to see PFNs and their counts");

	self->page_size = getpagesize();
	self->pmd_size = read_pmd_pagesize();
	if (!self->pmd_size)
		SKIP(return, "the kernel has no PMD-sized THP");
	self->nr = self->pmd_size / self->page_size;

	self->entries = calloc(self->nr, sizeof(*self->entries));
	ASSERT_NE(self->entries, NULL);
	ASSERT_EQ(pipe(self->ready), 0);

	/* A PMD of its own: what is left of the reservation is PROT_NONE. */
	self->reserved = mmap(NULL, 3 * self->pmd_size, PROT_NONE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	ASSERT_NE(self->reserved, MAP_FAILED);
	start = (unsigned long)self->reserved + self->pmd_size;
	start &= ~(self->pmd_size - 1);
	self->area = (char *)start;

	if (variant->shmem) {
		self->memfd = memfd_create("pagemap_exclusive", MFD_CLOEXEC);
		ASSERT_GE(self->memfd, 0);
		ASSERT_EQ(ftruncate(self->memfd, self->pmd_size), 0);
	}
	ASSERT_EQ(mmap(self->area, self->pmd_size, PROT_READ | PROT_WRITE,
		       MAP_FIXED | (variant->shmem ? MAP_SHARED :
				    MAP_PRIVATE | MAP_ANONYMOUS),
		       self->memfd, 0), self->area);
}

static void kill_child(FIXTURE_DATA(pagemap_exclusive) * self)
{
	if (self->child_pagemap >= 0)
		close(self->child_pagemap);
	self->child_pagemap = -1;
	if (self->child > 0) {
		kill(self->child, SIGKILL);
		waitpid(self->child, NULL, 0);
	}
	self->child = 0;
}

FIXTURE_TEARDOWN(pagemap_exclusive)
{
	kill_child(self);
	if (self->reserved != MAP_FAILED)
		munmap(self->reserved, 3 * self->pmd_size);
	if (self->memfd >= 0)
		close(self->memfd);
	if (self->pagemap >= 0)
		close(self->pagemap);
	if (self->kpagecount >= 0)
		close(self->kpagecount);
	if (self->ready[0] >= 0) {
		close(self->ready[0]);
		close(self->ready[1]);
	}
	free(self->entries);
}

static bool is_pmd_mapped(FIXTURE_DATA(pagemap_exclusive) * self, bool shmem)
{
	if (shmem)
		return check_huge_shmem(self->area, self->pmd_size, 1,
					self->pmd_size);
	return check_huge_anon(self->area, self->pmd_size, 1, self->pmd_size);
}

/* Populate the area by one PMD-mapped THP. */
static bool populate_thp(FIXTURE_DATA(pagemap_exclusive) * self, bool shmem)
{
	if (madvise(self->area, self->pmd_size, MADV_HUGEPAGE))
		return false;
	/* If the first page does not get it, don't waste memory on the rest. */
	*self->area = 1;
	if (!is_pmd_mapped(self, shmem))
		return false;
	memset(self->area, 1, self->pmd_size);
	return is_pmd_mapped(self, shmem);
}

static void child_main(FIXTURE_DATA(pagemap_exclusive) * self, keep_fn keep)
{
	unsigned long i, next;
	char c = 0;

	prctl(PR_SET_PDEATHSIG, SIGKILL);

	for (i = 0; i < self->nr; i = next) {
		char *addr = self->area + i * self->page_size;

		for (next = i + 1; next < self->nr; next++)
			if (keep(next, self->nr) != keep(i, self->nr))
				break;
		if (!keep(i, self->nr) &&
		    munmap(addr, (next - i) * self->page_size))
			_exit(1);
	}

	/* Shared memory is not mapped before it is touched; do not write. */
	for (i = 0; i < self->nr; i++)
		if (keep(i, self->nr))
			FORCE_READ(self->area[i * self->page_size]);

	if (write(self->ready[1], &c, 1) != 1)
		_exit(1);
	for (;;)
		pause();
}

/* Returns with a child that waits and maps just what is to be kept. */
static bool start_child(FIXTURE_DATA(pagemap_exclusive) * self, keep_fn keep)
{
	char path[64];
	char c;

	self->child = fork();
	if (!self->child)
		child_main(self, keep);
	if (self->child < 0)
		return false;

	/* Only the child can write to the pipe: EOF if it failed. */
	close(self->ready[1]);
	self->ready[1] = -1;
	if (read(self->ready[0], &c, 1) != 1)
		return false;

	snprintf(path, sizeof(path), "/proc/%d/pagemap", self->child);
	self->child_pagemap = open(path, O_RDONLY);
	return self->child_pagemap >= 0;
}

/* Must the bit be set? What the child maps the parent maps, too. */
static bool wanted(FIXTURE_DATA(pagemap_exclusive) * self, bool is_child,
		   keep_fn keep, unsigned long i)
{
	return !is_child && !keep(i, self->nr);
}

/* Read all entries by one read(), and again as long as a bit is clear by mistake. */
static bool read_entries(FIXTURE_DATA(pagemap_exclusive) * self, int fd,
			 bool is_child, keep_fn keep)
{
	const ssize_t size = self->nr * sizeof(*self->entries);
	const off_t offset = (unsigned long)self->area / self->page_size *
			     sizeof(*self->entries);
	unsigned long i;
	int tries;

	for (tries = 0; tries < TRIES; tries++) {
		if (pread(fd, self->entries, size, offset) != size)
			return false;
		for (i = 0; i < self->nr; i++) {
			if (wanted(self, is_child, keep, i) &&
			    !(self->entries[i] & PM_MMAP_EXCLUSIVE))
				break;
		}
		if (i == self->nr)
			break;
	}
	return true;
}

/* Does a walk that begins at page @i find the same? */
static bool same_entry(FIXTURE_DATA(pagemap_exclusive) * self, int fd,
		       unsigned long i)
{
	int tries;

	for (tries = 0; tries < TRIES; tries++) {
		if (pagemap_get_entry(fd, self->area + i * self->page_size) ==
		    self->entries[i])
			return true;
	}
	return false;
}

/*
 * Compare all pages of the area with what they must be in one process. Read
 * them by one read(), and one by one: the latter walk begins amid the PMD.
 */
static void check_process(struct __test_metadata *_metadata,
			  FIXTURE_DATA(pagemap_exclusive) * self,
			  bool is_child, keep_fn keep)
{
	const char *who = is_child ? "child" : "parent";
	int fd = is_child ? self->child_pagemap : self->pagemap;
	unsigned long not_present = 0, false_set = 0, false_clear = 0;
	unsigned long expected = 0, reported = 0, differ = 0;
	unsigned long first_wrong = self->nr;
	unsigned long i;

	ASSERT_TRUE(read_entries(self, fd, is_child, keep));

	for (i = 0; i < self->nr; i++) {
		uint64_t entry = self->entries[i];
		bool exclusive = entry & PM_MMAP_EXCLUSIVE;
		bool want = wanted(self, is_child, keep, i);

		if (!same_entry(self, fd, i))
			differ++;

		if (is_child && !keep(i, self->nr)) {
			/* Unmapped, nothing must be reported. */
			if (entry & (PM_PRESENT | PM_MMAP_EXCLUSIVE))
				false_set++;
			continue;
		}
		if (!(entry & PM_PRESENT)) {
			not_present++;
			continue;
		}
		expected += want;
		reported += exclusive;
		if (exclusive == want)
			continue;
		if (exclusive)
			false_set++;
		else
			false_clear++;
		if (first_wrong == self->nr)
			first_wrong = i;
	}

	EXPECT_EQ(not_present, 0) {
		TH_LOG("%s: %lu of %lu pages are not mapped", who, not_present,
		       self->nr);
	}
	EXPECT_EQ(false_set + false_clear, 0) {
		TH_LOG("%s: reported exclusive %lu of %lu pages where %lu are",
		       who, reported, self->nr, expected);
		TH_LOG("%s: %lu wrongly set, %lu wrongly clear, first: page %lu",
		       who, false_set, false_clear, first_wrong);
	}
	EXPECT_EQ(differ, 0) {
		TH_LOG("%s: %lu of %lu entries differ when read one by one",
		       who, differ, self->nr);
	}
}

static void check_both(struct __test_metadata *_metadata,
		       FIXTURE_DATA(pagemap_exclusive) * self, keep_fn keep)
{
	/* No other process has ever mapped it. */
	check_process(_metadata, self, /* is_child = */ false, keep_none);

	ASSERT_TRUE(start_child(self, keep)) {
		TH_LOG("The child could not set up its mappings");
	}

	check_process(_metadata, self, /* is_child = */ true, keep);
	check_process(_metadata, self, /* is_child = */ false, keep);
}

/* Does the child keep all pages, or none? */
static bool all_alike(keep_fn keep)
{
	return keep == keep_all || keep == keep_none;
}

static void check_thp(struct __test_metadata *_metadata,
		      FIXTURE_DATA(pagemap_exclusive) * self,
		      bool shmem, keep_fn keep)
{
	if (self->nr > MAX_COUNTED && !all_alike(keep))
		SKIP(return, "the mappings of %lu pages are not counted one by one",
		     self->nr);
	if (!populate_thp(self, shmem))
		SKIP(return, "no PMD-mapped THP could be allocated");

	check_both(_metadata, self, keep);
	/* Was this about a PMD to the end? */
	ASSERT_TRUE(is_pmd_mapped(self, shmem)) {
		TH_LOG("The parent's PMD mapping got lost");
	}
}

/* The child keeps one page: in the parent all pages but that one are exclusive. */
TEST_F_TIMEOUT(pagemap_exclusive, first_page_shared, TIMEOUT)
{
	check_thp(_metadata, self, variant->shmem, keep_first);
}

TEST_F_TIMEOUT(pagemap_exclusive, last_page_shared, TIMEOUT)
{
	check_thp(_metadata, self, variant->shmem, keep_last);
}

/* The child keeps all pages but one: in the parent that one is exclusive. */
TEST_F_TIMEOUT(pagemap_exclusive, all_but_first_page_shared, TIMEOUT)
{
	check_thp(_metadata, self, variant->shmem, keep_all_but_first);
}

TEST_F_TIMEOUT(pagemap_exclusive, second_half_shared, TIMEOUT)
{
	check_thp(_metadata, self, variant->shmem, keep_second_half);
}

TEST_F_TIMEOUT(pagemap_exclusive, every_other_page_shared, TIMEOUT)
{
	check_thp(_metadata, self, variant->shmem, keep_every_other);
}

/* Controls: all or nothing, where every page is as the first one. */
TEST_F_TIMEOUT(pagemap_exclusive, fully_shared, TIMEOUT)
{
	check_thp(_metadata, self, variant->shmem, keep_all);
}

TEST_F_TIMEOUT(pagemap_exclusive, fully_exclusive, TIMEOUT)
{
	check_thp(_metadata, self, variant->shmem, keep_none);
}

/* A field of /proc/self/smaps, in kB, for the mapping at @addr, or -1 */
static long smaps_kb(char *addr, const char *field)
{
	unsigned long start = 0, end;
	char line[256], name[64];
	long kb, found = -1;
	FILE *file;

	file = fopen("/proc/self/smaps", "r");
	if (!file)
		return -1;
	while (found < 0 && fgets(line, sizeof(line), file)) {
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			continue;
		if (start == (unsigned long)addr &&
		    sscanf(line, "%63[^:]: %ld kB", name, &kb) == 2 &&
		    !strcmp(name, field))
			found = kb;
	}
	fclose(file);
	return found;
}

/* No other process has ever mapped the THP, so its Pss equals its Rss. */
TEST_F_TIMEOUT(pagemap_exclusive, pss, TIMEOUT)
{
	const long kb = self->pmd_size >> 10;

	if (!populate_thp(self, variant->shmem))
		SKIP(return, "no PMD-mapped THP could be allocated");
	EXPECT_EQ(smaps_kb(self->area, "Rss"), kb);
	EXPECT_EQ(smaps_kb(self->area, "Pss"), kb) {
		TH_LOG("Pss of %ld kB is %ld kB", kb,
		       smaps_kb(self->area, "Pss"));
	}
}

/* Control: the parent maps the THP by PTEs. */
TEST_F_TIMEOUT(pagemap_exclusive, pte_mapped, TIMEOUT)
{
	unsigned long i;

	if (self->nr > MAX_COUNTED)
		SKIP(return, "the mappings of %lu pages are not counted one by one",
		     self->nr);
	if (!populate_thp(self, variant->shmem))
		SKIP(return, "no PMD-mapped THP could be allocated");

	ASSERT_EQ(mprotect(self->area, self->page_size, PROT_READ), 0);
	for (i = 0; i < self->nr; i++)
		FORCE_READ(self->area[i * self->page_size]);
	check_both(_metadata, self, keep_every_other);
}

/* Control: small folios, of which each has a count of its own. */
TEST_F_TIMEOUT(pagemap_exclusive, small_folios, TIMEOUT)
{
	if (self->nr > MAX_SMALL)
		self->nr = MAX_SMALL;
	ASSERT_EQ(madvise(self->area, self->pmd_size, MADV_NOHUGEPAGE), 0);
	memset(self->area, 1, self->nr * self->page_size);
	check_both(_metadata, self, keep_every_other);
}

/* Pages of these types share the place of their mapcount with the type. */
#define KPF_SLAB	BIT_ULL(7)
#define KPF_BUDDY	BIT_ULL(10)
#define KPF_OFFLINE	BIT_ULL(23)
#define KPF_PGTABLE	BIT_ULL(26)
#define KPF_TYPES	(KPF_SLAB | KPF_BUDDY | KPF_OFFLINE | KPF_PGTABLE)

/* How many PFNs to read at once. */
#define CHUNK		4096UL
/*
 * How many to look at on each side of our own; more if there is a type which
 * is not among them, but not for ever.
 */
#define WINDOW		(32 * CHUNK)
#define MAX_WINDOW	(16 * WINDOW)

FIXTURE(kpagecount)
{
	int flags;
	int count;
	int pagemap;
};

FIXTURE_SETUP(kpagecount)
{
	self->flags = -1;
	self->count = -1;
	self->pagemap = -1;

	self->pagemap = open("/proc/self/pagemap", O_RDONLY);
	if (self->pagemap < 0)
		SKIP(return, "no /proc/self/pagemap");
	self->count = open("/proc/kpagecount", O_RDONLY);
	self->flags = open("/proc/kpageflags", O_RDONLY);
	if (self->count < 0 || self->flags < 0 || !shows_pfns(self->pagemap))
		SKIP(return, "root is needed to see PFNs and their counts");
}

FIXTURE_TEARDOWN(kpagecount)
{
	if (self->count >= 0)
		close(self->count);
	if (self->flags >= 0)
		close(self->flags);
	if (self->pagemap >= 0)
		close(self->pagemap);
}

/*
 * A page may get and lose its type at any time: believe in a count only if it
 * is there with the same type before and after, time and again.
 */
static bool typed_page_has_count(FIXTURE_DATA(kpagecount) * self,
				 unsigned long pfn, uint64_t *flags,
				 uint64_t *count)
{
	uint64_t after;
	int i;

	for (i = 0; i < 5; i++) {
		if (kpage_read(self->flags, flags, pfn, 1) != 1 ||
		    kpage_read(self->count, count, pfn, 1) != 1 ||
		    kpage_read(self->flags, &after, pfn, 1) != 1)
			return false;
		if (!*count || !(*flags & KPF_TYPES) ||
		    (*flags & KPF_TYPES) != (after & KPF_TYPES))
			return false;
	}
	return true;
}

struct scan {
	unsigned long pages;
	unsigned long buddy;
	unsigned long slab;
	unsigned long pgtable;
	unsigned long offline;
	unsigned long wrong;
	/* The first one that is wrong */
	unsigned long pfn;
	uint64_t flags;
	uint64_t count;
};

/* Returns false behind the last page. */
static bool scan_chunk(struct __test_metadata *_metadata,
		       FIXTURE_DATA(kpagecount) * self, unsigned long pfn,
		       struct scan *scan)
{
	static uint64_t flags[CHUNK], counts[CHUNK];
	ssize_t nr, i;

	nr = kpage_read(self->flags, flags, pfn, CHUNK);
	ASSERT_GE(nr, 0);
	ASSERT_EQ(kpage_read(self->count, counts, pfn, nr), nr);

	for (i = 0; i < nr; i++) {
		scan->pages += !!flags[i];
		scan->buddy += !!(flags[i] & KPF_BUDDY);
		scan->slab += !!(flags[i] & KPF_SLAB);
		scan->pgtable += !!(flags[i] & KPF_PGTABLE);
		scan->offline += !!(flags[i] & KPF_OFFLINE);

		if (!(flags[i] & KPF_TYPES) || !counts[i])
			continue;
		if (!typed_page_has_count(self, pfn + i, &flags[i], &counts[i]))
			continue;
		if (scan->wrong++)
			continue;
		scan->pfn = pfn + i;
		scan->flags = flags[i];
		scan->count = counts[i];
	}
	return nr == CHUNK;
}

/* Free pages, slab pages and page tables are never mapped to user space. */
TEST_F_TIMEOUT(kpagecount, unmapped_types, TIMEOUT)
{
	unsigned long start, distance, pfn;
	size_t size = getpagesize();
	struct scan scan = {};
	bool more = true;
	char *page;

	/* There is memory where this page is, and not everything is used. */
	page = mmap(NULL, size, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(page, MAP_FAILED);
	*page = 1;
	pfn = pagemap_get_pfn(self->pagemap, page);
	ASSERT_NE(pfn, -1ul);

	start = pfn / CHUNK * CHUNK;
	for (distance = 0; distance < MAX_WINDOW; distance += CHUNK) {
		if (distance >= WINDOW && scan.buddy && scan.slab &&
		    scan.pgtable)
			break;
		if (more)
			more = scan_chunk(_metadata, self, start + distance,
					  &scan);
		if (distance < start)
			scan_chunk(_metadata, self, start - distance - CHUNK,
				   &scan);
		else if (!more)
			break;
	}
	munmap(page, size);

	TH_LOG("%lu pages with flags: %lu buddy, %lu slab, %lu page table, %lu offline",
	       scan.pages, scan.buddy, scan.slab, scan.pgtable, scan.offline);
	EXPECT_EQ(scan.wrong, 0) {
		TH_LOG("/proc/kpagecount of %lu unmapped pages is not 0",
		       scan.wrong);
		TH_LOG("first: PFN %#lx, flags %#llx, count %#llx", scan.pfn,
		       (unsigned long long)scan.flags,
		       (unsigned long long)scan.count);
	}
	if (!(scan.buddy + scan.slab + scan.pgtable + scan.offline))
		SKIP(return, "no pages of these types around PFN %#lx", pfn);
}

/* Control: a small page is counted once for each process that maps it. */
TEST_F(kpagecount, small_page)
{
	size_t size = getpagesize();
	uint64_t count;
	int ready[2];
	pid_t child;
	char *page;
	char c = 0;

	page = mmap(NULL, size, PROT_READ | PROT_WRITE,
		    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(page, MAP_FAILED);
	/* Not with a kernel without THP. */
	madvise(page, size, MADV_NOHUGEPAGE);
	memset(page, 1, size);
	ASSERT_EQ(pipe(ready), 0);

	ASSERT_EQ(kpage_read(self->count, &count,
			     pagemap_get_pfn(self->pagemap, page), 1), 1);
	EXPECT_EQ(count, 1);

	child = fork();
	ASSERT_GE(child, 0);
	if (!child) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		FORCE_READ(*page);
		if (write(ready[1], &c, 1) != 1)
			_exit(1);
		for (;;)
			pause();
	}
	close(ready[1]);
	EXPECT_EQ(read(ready[0], &c, 1), 1);
	EXPECT_EQ(kpage_read(self->count, &count,
			     pagemap_get_pfn(self->pagemap, page), 1), 1);
	EXPECT_EQ(count, 2);

	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	EXPECT_EQ(kpage_read(self->count, &count,
			     pagemap_get_pfn(self->pagemap, page), 1), 1);
	EXPECT_EQ(count, 1);

	close(ready[0]);
	munmap(page, size);
}

TEST_HARNESS_MAIN
