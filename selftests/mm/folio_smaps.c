// SPDX-License-Identifier: GPL-2.0
/*
 * smaps, pagemap and numa_maps of processes that map large folios unevenly: after
 * fork() some have written to a part, or given a part back. What each page is
 * mapped by follows from what the processes did.
 */

#include <stdbool.h>
#include <stdio.h>
#include <time.h>

#include "folio_region.h"

#define TIMEOUT		300
/* A lock that is busy can make a number less exact. */
#define TRIES		5
/* Of larger folios the mappings of each page are not counted: see transhuge.rst. */
#define MAX_COUNTED	2048
/* Nor if more VMAs may map the folio, unless it has as many pages. */
#define MAX_VMAS	512

FIXTURE(folio_smaps)
{
	struct folio_env env;
	struct region r;
	long kb;		/* the size of all folios */
};

FIXTURE_VARIANT(folio_smaps)
{
	int pages;		/* of a folio; 0: what a PMD maps */
};

/* Control: pages that have counts of their own */
FIXTURE_VARIANT_ADD(folio_smaps, small)
{
	.pages = 1,
};

FIXTURE_VARIANT_ADD(folio_smaps, of_16_pages)
{
	.pages = 16,
};

FIXTURE_VARIANT_ADD(folio_smaps, of_128_pages)
{
	.pages = 128,
};

FIXTURE_VARIANT_ADD(folio_smaps, of_a_pmd)
{
	.pages = 0,
};

/* 16 small pages are treated like one folio. */
static bool small_alloc(struct region *r)
{
	r->size = 16 * psize();
	r->nr = MAX_FOLIOS;
	r->map_len = (r->nr + 2) * r->size;
	r->map = mmap(NULL, r->map_len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS,
		      -1, 0);
	if (r->map == MAP_FAILED)
		return false;
	r->mem = align_up(r->map + 1, r->size);
	if (mprotect(r->mem, r->nr * r->size, PROT_READ | PROT_WRITE) ||
	    madvise(r->mem, r->nr * r->size, MADV_NOHUGEPAGE))
		return false;
	memset(r->mem, 1, r->nr * r->size);
	return true;
}

FIXTURE_SETUP(folio_smaps)
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
	if (variant->pages == 1) {
		ASSERT_TRUE(small_alloc(&self->r));
	} else if (!region_alloc(&self->env, &self->r, size, 0)) {
		self->r.map = MAP_FAILED;
		SKIP(return, "no folios of %zukB", size >> 10);
	}
	self->kb = self->r.nr * self->r.size / 1024;
}

FIXTURE_TEARDOWN(folio_smaps)
{
	if (self->r.map != MAP_FAILED)
		region_free(&self->r);
	thp_restore_settings();
}

static void expect_kb(struct __test_metadata *_metadata,
		      FIXTURE_DATA(folio_smaps) * self, const char *process,
		      pid_t pid, const char *field, long expected)
{
	long kb;
	int i;

	for (i = 0; i < TRIES; i++) {
		kb = smaps_sum(pid, &self->r, field);
		/* A page that is shared by three may be rounded. */
		if (kb == expected || kb == expected - 1)
			return;
		usleep(1000);
	}
	EXPECT_EQ(kb, expected) {
		TH_LOG("%s of %s is %ld kB, not %ld kB", field, process, kb,
		       expected);
	}
}

/* What is mapped was written. @exact is what only this process maps. */
static void expect_process(struct __test_metadata *_metadata,
			   FIXTURE_DATA(folio_smaps) * self,
			   const char *process, pid_t pid, long rss, long exact,
			   long pss)
{
	expect_kb(_metadata, self, process, pid, "Rss", rss);
	expect_kb(_metadata, self, process, pid, "Private_Dirty", exact);
	expect_kb(_metadata, self, process, pid, "Shared_Dirty", rss - exact);
	expect_kb(_metadata, self, process, pid, "Pss", pss);
}

/* One page of eight */
static void write_some(struct region *r)
{
	size_t i;

	for (i = 0; i < r->nr * r->size; i += 8 * psize())
		r->mem[i] = 2;
}

/*
 * The parent writes: what it copies is private to its child, too, until that exits.
 * Databases that have a child write a snapshot show by that what it costs.
 */
TEST_F_TIMEOUT(folio_smaps, copied_by_parent, TIMEOUT)
{
	const long kb = self->kb, copied = kb / 8;
	int fds[2];
	pid_t pid;

	expect_process(_metadata, self, "the parent", getpid(), kb, kb, kb);
	pid = fork_child(fds);
	ASSERT_GT(pid, 0);
	expect_process(_metadata, self, "the parent", getpid(), kb, 0, kb / 2);
	expect_process(_metadata, self, "the child", pid, kb, 0, kb / 2);
	write_some(&self->r);
	expect_process(_metadata, self, "the parent", getpid(), kb, copied,
		       copied + (kb - copied) / 2);
	expect_process(_metadata, self, "the child", pid, kb, copied,
		       copied + (kb - copied) / 2);
	ASSERT_TRUE(end_child(pid, fds));
	expect_process(_metadata, self, "the parent", getpid(), kb, kb, kb);
}

/* Whatever is mapped how often, all Pss together are what all folios take. */
TEST_F_TIMEOUT(folio_smaps, pss_adds_up, TIMEOUT)
{
	enum { NR = 7 };
	pid_t pids[NR];
	int i, n, tries, fds[NR][2];
	long pss, sum;

	for (n = 0; n < NR; n++) {
		/* Any number of pages, and never all of them */
		const size_t drop = self->r.size / psize() * (n + 1) / (NR + 1);

		pids[n] = fork_child_drop(fds[n], &self->r, drop * psize());
		ASSERT_GT(pids[n], 0);
		for (tries = 0; tries < TRIES; tries++) {
			sum = smaps_sum(getpid(), &self->r, "Pss");
			for (i = 0; i <= n; i++) {
				pss = smaps_sum(pids[i], &self->r, "Pss");
				ASSERT_GE(pss, 0);
				sum += pss;
			}
			if (sum <= self->kb && sum >= self->kb - (n + 2))
				break;
		}
		/* Each is rounded down. */
		EXPECT_LE(sum, self->kb);
		EXPECT_GE(sum, self->kb - (n + 2)) {
			TH_LOG("All Pss of %d processes are %ld kB, not %ld kB",
			       n + 2, sum, self->kb);
		}
	}
	while (n--)
		ASSERT_TRUE(end_child(pids[n], fds[n]));
}

/* The same with a child that gives half of each folio back. */
TEST_F_TIMEOUT(folio_smaps, half_given_back, TIMEOUT)
{
	const long kb = self->kb, half = kb / 2, copied = half / 8;
	int fds[2];
	pid_t pid;

	if (self->r.size / psize() > MAX_COUNTED)
		SKIP(return, "folios of %zu pages", self->r.size / psize());
	pid = fork_child_drop(fds, &self->r, self->r.size / 2);
	ASSERT_GT(pid, 0);
	expect_process(_metadata, self, "the parent", getpid(), kb, half,
		       half + half / 2);
	expect_process(_metadata, self, "the child", pid, half, 0, half / 2);
	write_some(&self->r);
	expect_process(_metadata, self, "the parent", getpid(), kb,
		       half + copied, half + copied + (half - copied) / 2);
	expect_process(_metadata, self, "the child", pid, half, copied,
		       copied + (half - copied) / 2);
	ASSERT_TRUE(end_child(pid, fds));
}

/*
 * How many pages of the region does pagemap show wrongly? With @each, read them one
 * by one, too.
 */
static int wrong_bits(FIXTURE_DATA(folio_smaps) * self, pid_t pid, int mapped,
		      int exclusive, bool each)
{
	const int pages = self->r.size / psize();
	const int nr = self->r.nr * pages;
	uint64_t *entries, want;
	int i, n, fd, wrong = 0;
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/pagemap", pid);
	fd = open(path, O_RDONLY);
	entries = calloc(nr, sizeof(*entries));
	if (fd < 0 || !entries ||
	    pread(fd, entries, nr * sizeof(*entries), (unsigned long)self->r.mem /
		  psize() * sizeof(*entries)) != nr * sizeof(*entries)) {
		wrong = -1;
		goto out;
	}
	for (i = 0; i < nr; i++) {
		n = i % pages;
		want = n < mapped ? PM_PRESENT : 0;
		if (n < mapped && n >= exclusive)
			want |= PM_MMAP_EXCLUSIVE;
		wrong += (entries[i] & (PM_PRESENT | PM_MMAP_EXCLUSIVE)) != want;
		/* By a walk that begins here. */
		wrong += each && pagemap_get_entry(fd, self->r.mem + i * psize()) !=
				 entries[i];
	}
out:
	free(entries);
	if (fd >= 0)
		close(fd);
	return wrong;
}

/* Pages of each folio that are mapped by @pid, and from which on by it alone */
static void expect_bits(struct __test_metadata *_metadata,
			FIXTURE_DATA(folio_smaps) * self, const char *process,
			pid_t pid, int mapped, int exclusive)
{
	int i, wrong;

	for (i = 0; i < TRIES; i++) {
		wrong = wrong_bits(self, pid, mapped, exclusive, true);
		if (!wrong)
			return;
	}
	EXPECT_EQ(wrong, 0) {
		TH_LOG("pagemap of %s has %d wrong entries", process, wrong);
	}
}

static void expect_mapmax(struct __test_metadata *_metadata,
			  FIXTURE_DATA(folio_smaps) * self, const char *process,
			  pid_t pid, long expected)
{
	unsigned long start = 0;
	char line[4096], *value;
	long mapmax = 0;
	FILE *file;
	int i;

	for (i = 0; i < TRIES && mapmax != expected; i++) {
		snprintf(line, sizeof(line), "/proc/%d/numa_maps", pid);
		file = fopen(line, "r");
		if (!file)
			return;
		while (fgets(line, sizeof(line), file)) {
			if (sscanf(line, "%lx ", &start) != 1 ||
			    start != (unsigned long)self->r.mem)
				continue;
			value = strstr(line, " mapmax=");
			mapmax = value ? atol(value + strlen(" mapmax=")) : 1;
		}
		fclose(file);
	}
	EXPECT_EQ(mapmax, expected) {
		TH_LOG("mapmax of %s is %ld, not %ld", process, mapmax, expected);
	}
}

/* Three processes map all, the first half and the first quarter of each folio. */
TEST_F_TIMEOUT(folio_smaps, three_processes, TIMEOUT)
{
	const int pages = self->r.size / psize();
	const long kb = self->kb;
	int fds[2][2];
	pid_t pids[2];

	if (self->r.size / psize() > MAX_COUNTED)
		SKIP(return, "folios of %zu pages", self->r.size / psize());

	pids[0] = fork_child_drop(fds[0], &self->r, self->r.size / 2);
	ASSERT_GT(pids[0], 0);
	pids[1] = fork_child_drop(fds[1], &self->r, self->r.size / 4 * 3);
	ASSERT_GT(pids[1], 0);

	expect_process(_metadata, self, "the parent", getpid(), kb, kb / 2,
		       kb * 17 / 24);
	expect_process(_metadata, self, "the first child", pids[0], kb / 2, 0,
		       kb * 5 / 24);
	expect_process(_metadata, self, "the second child", pids[1], kb / 4, 0,
		       kb / 12);
	expect_bits(_metadata, self, "the parent", getpid(), pages, pages / 2);
	expect_bits(_metadata, self, "the first child", pids[0], pages / 2,
		    pages / 2);
	expect_bits(_metadata, self, "the second child", pids[1], pages / 4,
		    pages / 4);
	expect_mapmax(_metadata, self, "the parent", getpid(), 3);
	expect_mapmax(_metadata, self, "the first child", pids[0], 3);
	expect_mapmax(_metadata, self, "the second child", pids[1], 3);

	ASSERT_TRUE(end_child(pids[1], fds[1]));
	expect_process(_metadata, self, "the parent", getpid(), kb, kb / 2,
		       kb * 3 / 4);
	expect_bits(_metadata, self, "the parent", getpid(), pages, pages / 2);
	expect_mapmax(_metadata, self, "the parent", getpid(), 2);
	ASSERT_TRUE(end_child(pids[0], fds[0]));
	expect_bits(_metadata, self, "the parent", getpid(), pages, 0);
}

/* @nr VMAs that never map anything of a file, but may map its first page */
static char *map_unused(int fd, int nr)
{
	char *map, *page;
	int i;

	map = mmap(NULL, nr * psize(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS,
		   -1, 0);
	if (map == MAP_FAILED)
		return NULL;
	for (i = 0; i < nr; i++) {
		page = map + i * psize();
		if (mmap(page, psize(), PROT_NONE, MAP_SHARED | MAP_FIXED, fd,
			 0) != page)
			return NULL;
	}
	return madvise(map, nr * psize(), MADV_DONTFORK) ? NULL : map;
}

/* A child that touches the first half of @r, and has unmapped the rest. */
static pid_t fork_half(struct region *r, int fds[2])
{
	const size_t half = r->size / 2;
	size_t i;
	pid_t pid;
	char c;

	if (pipe(fds))
		return -1;
	pid = fork();
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (munmap(r->mem + half, half))
			_exit(1);
		for (i = 0; i < half; i += psize())
			FORCE_READ(r->mem[i]);
		if (write(fds[1], "", 1) != 1)
			_exit(1);
		for (;;)
			pause();
	}
	close(fds[1]);
	if (pid > 0 && read(fds[0], &c, 1) != 1)
		pid = -1;
	close(fds[0]);
	return pid;
}

/* @nr VMAs may map a file of one folio: this one, a child's of half of it, others. */
static void check_vmas(struct __test_metadata *_metadata,
		       FIXTURE_DATA(folio_smaps) * self, int fd, int nr,
		       bool counted)
{
	const int pages = self->r.size / psize();

	FIXTURE_DATA(folio_smaps) file = *self;
	int i, fds[2], wrong = 1, none = 1;
	char *unused, *map;
	pid_t pid;

	/* The rmap finds VMAs that map the same offset in this order. */
	unused = map_unused(fd, nr - 2);
	ASSERT_NE(unused, NULL);
	map = mmap(NULL, 2 * self->r.size, PROT_NONE,
		   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(map, MAP_FAILED);
	file.r.nr = 1;
	file.r.mem = align_up(map, self->r.size);
	ASSERT_EQ(mmap(file.r.mem, self->r.size, PROT_READ,
		       MAP_SHARED | MAP_FIXED | MAP_POPULATE, fd, 0),
		  file.r.mem);
	pid = fork_half(&file.r, fds);
	ASSERT_GT(pid, 0);

	for (i = 0; i < TRIES && wrong; i++) {
		wrong = wrong_bits(&file, getpid(), pages, pages / 2, false);
		/* Is no page shown as exclusive? */
		none = wrong_bits(&file, getpid(), pages, pages, false);
	}
	EXPECT_FALSE(wrong && (counted || none)) {
		TH_LOG("With %d VMAs, %d of %d entries are wrong", nr, wrong,
		       pages);
	}

	kill(pid, SIGKILL);
	ASSERT_EQ(waitpid(pid, NULL, 0), pid);
	ASSERT_EQ(munmap(map, 2 * self->r.size), 0);
	ASSERT_EQ(munmap(unused, (nr - 2) * psize()), 0);
}

/*
 * A file that many VMAs may map, most of which do not: all of them have to be looked
 * at. If there are too many, no page may be shown as exclusive that is not.
 */
TEST_F_TIMEOUT(folio_smaps, many_vmas, TIMEOUT)
{
	const int pages = self->r.size / psize();
	const int limit = pages > MAX_VMAS ? pages : MAX_VMAS;
	int fd, nr = 1;

	if (pages > MAX_COUNTED)
		SKIP(return, "folios of %d pages", pages);
	if (variant->pages == 1) {
		fd = syscall(__NR_memfd_create, "pages", 0);
		ASSERT_GE(fd, 0);
		ASSERT_EQ(ftruncate(fd, self->r.size), 0);
	} else {
		fd = shmem_folios_of(&self->env, self->r.size, &nr);
		if (fd < 0)
			SKIP(return, "no folio of %zukB of a file",
			     self->r.size >> 10);
	}
	check_vmas(_metadata, self, fd, limit - 1, true);
	check_vmas(_metadata, self, fd, limit, true);
	check_vmas(_metadata, self, fd, limit + 1, false);
	close(fd);
}

#define NR_CHANGING	3
#define CHANGE_SECONDS	3

/* Write to pages, drop some, move some away, and fork() them all. */
static void __noreturn change(struct region *r, unsigned int seed)
{
	const time_t end = time(NULL) + CHANGE_SECONDS;
	const int pages = r->nr * r->size / psize();
	char *spare, *p;
	pid_t pid;
	int i;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	spare = mmap(NULL, psize(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (spare == MAP_FAILED)
		_exit(1);
	while (time(NULL) < end) {
		for (i = 0; i < 16; i++) {
			p = r->mem + rand_r(&seed) % pages * psize();
			*p = 3;
			p = r->mem + rand_r(&seed) % pages * psize();
			if (madvise(p, psize(), MADV_DONTNEED))
				_exit(2);
		}
		p = r->mem + rand_r(&seed) % pages * psize();
		if (mremap(p, psize(), psize(), MREMAP_MAYMOVE | MREMAP_FIXED |
			   MREMAP_DONTUNMAP, spare) != spare)
			_exit(3);
		pid = fork();
		if (!pid) {
			r->mem[rand_r(&seed) % pages * psize()] = 4;
			_exit(0);
		}
		if (pid < 0 || waitpid(pid, NULL, 0) != pid)
			_exit(4);
	}
	_exit(0);
}

/* A field of smaps_rollup, in kB */
static long rollup_kb(const char *text, const char *field)
{
	const char *line = strstr(text, field);

	return line ? atol(line + strlen(field)) : 0;
}

/* Whatever moment is shown, no more is private than is mapped. */
static void expect_consistent(struct __test_metadata *_metadata, pid_t pid)
{
	long private, shared, rss, pss;
	char path[64], text[4096] = "";
	ssize_t len = -1;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/smaps_rollup", pid);
	fd = open(path, O_RDONLY);
	if (fd >= 0) {
		len = read(fd, text, sizeof(text) - 1);
		close(fd);
	}
	/* It has exited. */
	if (len <= 0)
		return;
	rss = rollup_kb(text, "\nRss:");
	pss = rollup_kb(text, "\nPss:");
	private = rollup_kb(text, "\nPrivate_Clean:") +
		  rollup_kb(text, "\nPrivate_Dirty:");
	shared = rollup_kb(text, "\nShared_Clean:") +
		 rollup_kb(text, "\nShared_Dirty:");
	EXPECT_LE(pss, rss);
	/* All are rounded down. */
	EXPECT_GE(pss + 1, private);
	EXPECT_LE(private + shared, rss);
	EXPECT_GE(private + shared + 3, rss);
}

TEST_F_TIMEOUT(folio_smaps, read_while_changed, TIMEOUT)
{
	const int nr = self->r.nr * self->r.size / psize();
	int i, n, fd, status, running = NR_CHANGING;
	pid_t pids[NR_CHANGING], pid;
	uint64_t *entries;
	char path[64];

	entries = calloc(nr, sizeof(*entries));
	ASSERT_NE(entries, NULL);
	for (i = 0; i < NR_CHANGING; i++) {
		pids[i] = fork();
		ASSERT_GE(pids[i], 0);
		if (!pids[i])
			change(&self->r, i + 1);
	}
	for (n = 0; running; n++) {
		pid = n % (NR_CHANGING + 1) ? pids[n % (NR_CHANGING + 1) - 1] :
					      getpid();
		expect_consistent(_metadata, pid);
		snprintf(path, sizeof(path), "/proc/%d/pagemap", pid);
		fd = open(path, O_RDONLY);
		if (fd >= 0) {
			ssize_t len = pread(fd, entries, nr * sizeof(*entries),
					    (unsigned long)self->r.mem / psize() *
					    sizeof(*entries));

			/* Nothing if it has exited. */
			EXPECT_TRUE(!len || len == nr * sizeof(*entries));
			close(fd);
		}
		for (i = 0; i < NR_CHANGING; i++) {
			if (pids[i] > 0 && waitpid(pids[i], &status, WNOHANG) > 0) {
				EXPECT_EQ(status, 0);
				pids[i] = getpid();
				running--;
			}
		}
	}
	free(entries);
}

TEST_HARNESS_MAIN
