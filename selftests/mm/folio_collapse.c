// SPDX-License-Identifier: GPL-2.0
/*
 * Folios that a PMD mapped, until something split the PMD, and that are still
 * there: a collapse maps them by a PMD again, where they are. Check that nothing
 * is allocated or moved, what the PMD keeps of the PTEs, and which folios must not
 * be mapped by a PMD.
 */

#include <linux/mman.h>
#include <linux/userfaultfd.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/ioctl.h>

#include "../../../../mm/gup_test.h"
#include "folio_region.h"

#define GUP_TEST	"/sys/kernel/debug/gup_test"
#define NR_FOLIOS	2

FIXTURE(folio_collapse)
{
	struct folio_env env;
	struct region r;
	long pages;		/* of all folios */
	unsigned long *pfns;	/* before the collapse */
	long allocated;		/* huge pages for collapses, until then */
};

FIXTURE_SETUP(folio_collapse)
{
	const char *why;

	self->r.map = MAP_FAILED;
	why = folio_env_init(&self->env);
	if (why)
		SKIP(return, "%s", why);
	if (!self->env.pmd_size)
		SKIP(return, "size of a PMD not known");
	if (!region_alloc(&self->env, &self->r, self->env.pmd_size, NR_FOLIOS)) {
		self->r.map = MAP_FAILED;
		SKIP(return, "no huge pages");
	}
	self->pages = self->r.nr * self->r.size / psize();
	self->pfns = calloc(self->pages, sizeof(*self->pfns));
	ASSERT_NE(self->pfns, NULL);
}

FIXTURE_TEARDOWN(folio_collapse)
{
	if (self->r.map != MAP_FAILED)
		region_free(&self->r);
	thp_restore_settings();
}

static char *page(FIXTURE_DATA(folio_collapse) * self, long nr)
{
	return self->r.mem + nr * psize();
}

static bool mapped_by_pmds(FIXTURE_DATA(folio_collapse) * self)
{
	return check_huge_anon(self->r.mem, self->r.nr * self->r.size,
			       self->r.nr, self->r.size);
}

/* Another protection of one page splits the PMD, for a moment. */
static void map_by_ptes(struct __test_metadata *_metadata,
			FIXTURE_DATA(folio_collapse) * self, int prot)
{
	long i;

	for (i = 0; i < self->r.nr; i++) {
		ASSERT_EQ(mprotect(self->r.mem + i * self->r.size, psize(),
				   PROT_NONE), 0);
		ASSERT_EQ(mprotect(self->r.mem + i * self->r.size, psize(),
				   prot), 0);
	}
	ASSERT_EQ(mprotect(self->r.mem, self->r.nr * self->r.size, prot), 0);
	ASSERT_FALSE(mapped_by_pmds(self));
}

static void note_pfns(FIXTURE_DATA(folio_collapse) * self)
{
	long i;

	for (i = 0; i < self->pages; i++)
		self->pfns[i] = pagemap_get_pfn(self->env.pagemap_fd,
						page(self, i));
	self->allocated = read_stat(self->r.size, "collapse_alloc");
}

static int collapse(FIXTURE_DATA(folio_collapse) * self)
{
	note_pfns(self);
	return madvise(self->r.mem, self->r.nr * self->r.size, MADV_COLLAPSE) ?
	       errno : 0;
}

static long nr_moved(FIXTURE_DATA(folio_collapse) * self)
{
	long i, moved = 0;

	for (i = 0; i < self->pages; i++)
		moved += pagemap_get_pfn(self->env.pagemap_fd,
					 page(self, i)) != self->pfns[i];
	return moved;
}

static void expect_in_place(struct __test_metadata *_metadata,
			    FIXTURE_DATA(folio_collapse) * self)
{
	const long moved = nr_moved(self);

	EXPECT_TRUE(mapped_by_pmds(self));
	EXPECT_EQ(moved, 0) {
		TH_LOG("%ld of %ld pages were copied", moved, self->pages);
	}
	EXPECT_EQ(read_stat(self->r.size, "collapse_alloc"), self->allocated);
	expect_contents(_metadata, &self->r);
}

/* All pages are exclusive. */
TEST_F(folio_collapse, exclusive)
{
	map_by_ptes(_metadata, self, PROT_READ | PROT_WRITE);
	EXPECT_EQ(collapse(self), 0);
	expect_in_place(_metadata, self);
	memset(self->r.mem, 7, self->r.nr * self->r.size);
	EXPECT_EQ(nr_moved(self), 0);
	EXPECT_TRUE(mapped_by_pmds(self));
}

/* No page is marked exclusive, but only this process maps them. */
TEST_F(folio_collapse, after_child)
{
	int fds[2];
	pid_t pid;

	pid = fork_child(fds);
	ASSERT_GT(pid, 0);
	map_by_ptes(_metadata, self, PROT_READ | PROT_WRITE);
	ASSERT_TRUE(end_child(pid, fds));
	EXPECT_EQ(collapse(self), 0);
	expect_in_place(_metadata, self);
	memset(self->r.mem, 7, self->r.nr * self->r.size);
	EXPECT_EQ(nr_moved(self), 0);
	EXPECT_TRUE(mapped_by_pmds(self));
}

/* fork() splits PMDs of pinned pages: the child gets copies of these. */
TEST_F(folio_collapse, pinned)
{
	struct pin_longterm_test pin = {
		.addr = (unsigned long)self->r.mem,
		.size = self->r.nr * self->r.size,
		.flags = PIN_LONGTERM_TEST_FLAG_USE_WRITE,
	};
	__u64 dest;
	int fds[2], fd;
	char *copy;
	pid_t pid;

	fd = open(GUP_TEST, O_RDWR);
	if (fd < 0)
		SKIP(return, "no gup_test");
	ASSERT_EQ(ioctl(fd, PIN_LONGTERM_TEST_START, &pin), 0);
	pid = fork_child(fds);
	ASSERT_GT(pid, 0);
	ASSERT_TRUE(end_child(pid, fds));
	ASSERT_FALSE(mapped_by_pmds(self));
	EXPECT_EQ(collapse(self), 0);
	expect_in_place(_metadata, self);

	/* A device would still see what is written. */
	copy = mmap(NULL, pin.size, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(copy, MAP_FAILED);
	memset(self->r.mem, 7, pin.size);
	dest = (uintptr_t)copy;
	ASSERT_EQ(ioctl(fd, PIN_LONGTERM_TEST_READ, &dest), 0);
	EXPECT_EQ(memcmp(copy, self->r.mem, pin.size), 0);

	/* Nor does it see what a child writes, or the child what it writes. */
	pid = fork_child(fds);
	ASSERT_GT(pid, 0);
	memset(self->r.mem, 8, pin.size);
	ASSERT_EQ(ioctl(fd, PIN_LONGTERM_TEST_READ, &dest), 0);
	EXPECT_EQ(memcmp(copy, self->r.mem, pin.size), 0);
	ASSERT_TRUE(end_child(pid, fds));
	ASSERT_EQ(ioctl(fd, PIN_LONGTERM_TEST_STOP), 0);
	munmap(copy, pin.size);
	close(fd);
}

/* Compare what a child has with what there was before the parent wrote. */
static pid_t fork_witness(FIXTURE_DATA(folio_collapse) * self, int fds[2])
{
	char *addr, c;
	pid_t pid;

	if (pipe(fds))
		return -1;
	pid = fork();
	if (pid) {
		close(fds[0]);
		return pid;
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	close(fds[1]);
	if (read(fds[0], &c, 1))
		_exit(1);
	for (addr = self->r.mem; addr < self->r.mem + self->r.nr * self->r.size;
	     addr += psize())
		if (*addr != pattern(&self->r, addr))
			_exit(2);
	_exit(0);
}

/* Marks of single pages must not survive: fork() does not see those of tails. */
TEST_F(folio_collapse, fork_and_split)
{
	int fds[2];
	pid_t pid;

	map_by_ptes(_metadata, self, PROT_READ | PROT_WRITE);
	EXPECT_EQ(collapse(self), 0);
	EXPECT_TRUE(mapped_by_pmds(self));
	pid = fork_witness(self, fds);
	ASSERT_GT(pid, 0);
	map_by_ptes(_metadata, self, PROT_READ | PROT_WRITE);
	memset(self->r.mem, 0, self->r.nr * self->r.size);
	EXPECT_TRUE(end_child(pid, fds));
}

/* A child still has the folios: the parent gets its own. */
TEST_F(folio_collapse, shared)
{
	int fds[2];
	pid_t pid;

	pid = fork_witness(self, fds);
	ASSERT_GT(pid, 0);
	map_by_ptes(_metadata, self, PROT_READ | PROT_WRITE);
	EXPECT_EQ(collapse(self), 0);
	expect_contents(_metadata, &self->r);
	memset(self->r.mem, 0, self->r.nr * self->r.size);
	EXPECT_EQ(nr_moved(self), self->pages);
	EXPECT_TRUE(end_child(pid, fds));
}

static sigjmp_buf segv_env;

static void on_segv(int sig)
{
	siglongjmp(segv_env, 1);
}

static bool writable(char *addr)
{
	bool written = false;

	signal(SIGSEGV, on_segv);
	if (!sigsetjmp(segv_env, 1)) {
		__atomic_fetch_add(addr, 0, __ATOMIC_SEQ_CST);
		written = true;
	}
	signal(SIGSEGV, SIG_DFL);
	return written;
}

TEST_F(folio_collapse, read_only)
{
	map_by_ptes(_metadata, self, PROT_READ);
	EXPECT_EQ(collapse(self), 0);
	expect_in_place(_metadata, self);
	EXPECT_FALSE(writable(page(self, 3)));
	ASSERT_EQ(mprotect(self->r.mem, self->r.nr * self->r.size,
			   PROT_READ | PROT_WRITE), 0);
	EXPECT_TRUE(writable(page(self, 3)));
	EXPECT_EQ(nr_moved(self), 0);
}

TEST_F(folio_collapse, soft_dirty)
{
	int fd = self->env.pagemap_fd;

	if (!softdirty_supported())
		SKIP(return, "no soft-dirty");
	map_by_ptes(_metadata, self, PROT_READ | PROT_WRITE);
	clear_softdirty();
	*page(self, self->pages - 1) = pattern(&self->r,
					       page(self, self->pages - 1));
	EXPECT_EQ(collapse(self), 0);
	expect_in_place(_metadata, self);
	/* Those of the first folio were not written. */
	EXPECT_FALSE(pagemap_is_softdirty(fd, page(self, 1)));
	EXPECT_TRUE(pagemap_is_softdirty(fd, page(self, self->pages - 1)));
	EXPECT_TRUE(writable(page(self, 1)));
	EXPECT_TRUE(pagemap_is_softdirty(fd, page(self, 1)));
}

TEST_F(folio_collapse, userfaultfd)
{
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = UFFD_FEATURE_SIGBUS | UFFD_FEATURE_PAGEFAULT_FLAG_WP,
	};
	struct uffdio_writeprotect wp = {
		.range = { (unsigned long)page(self, 6), psize() },
		.mode = UFFDIO_WRITEPROTECT_MODE_WP,
	};
	int fd;

	fd = syscall(__NR_userfaultfd, O_CLOEXEC);
	if (fd < 0 || ioctl(fd, UFFDIO_API, &api) ||
	    uffd_register(fd, self->r.mem, self->r.size, false, true, false))
		SKIP(return, "no write protection by userfaultfd");
	ASSERT_EQ(ioctl(fd, UFFDIO_WRITEPROTECT, &wp), 0);
	EXPECT_NE(madvise(self->r.mem, self->r.size, MADV_COLLAPSE), 0);
	EXPECT_TRUE(bus_error(page(self, 6), true));
	EXPECT_FALSE(bus_error(page(self, 7), true));
	close(fd);
	expect_contents(_metadata, &self->r);
}

TEST_F(folio_collapse, mlocked)
{
	const size_t len = self->r.nr * self->r.size;
	long before, locked;

	if (mlock(self->r.mem, len))
		SKIP(return, "cannot lock that much memory");
	/* What is queued on CPUs is counted, too */
	write_num("/proc/sys/vm/compact_memory", 1);
	map_by_ptes(_metadata, self, PROT_READ | PROT_WRITE);
	before = read_vmstat("nr_mlock");
	EXPECT_EQ(collapse(self), 0);
	expect_in_place(_metadata, self);
	locked = read_vmstat("nr_mlock");
	EXPECT_EQ(locked, before) {
		TH_LOG("%ld pages are locked, before %ld", locked, before);
	}
	munlock(self->r.mem, len);
}

TEST_HARNESS_MAIN
