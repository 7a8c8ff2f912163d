// SPDX-License-Identifier: GPL-2.0
/*
 * Test what mremap() does to populated hugetlb mappings.
 *
 * All of it runs with every huge page size that is smaller than what a PUD
 * maps and of which enough pages can be had. What might hang runs in a child
 * process, so that the test can report a hang and end.
 */

#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/mempolicy.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "../../../../mm/gup_test.h"
#include "hugetlb_mremap.h"

#define HANG_SECONDS	40

#ifndef MADV_SOFT_OFFLINE
#define MADV_SOFT_OFFLINE	101
#endif

/* Children report here: stdout would be kept open by one that hangs. */
struct report {
	char msg[512];
	unsigned int step;
	bool stop;
	/* Pages whose memory was said to have failed */
	unsigned int nr_bad;
	unsigned long bad[64];
};

static unsigned long table_span(unsigned long size)
{
	return size < pmd_span() ? pmd_span() : pud_span();
}

static struct report *new_report(void)
{
	return mmap(NULL, sizeof(struct report), PROT_READ | PROT_WRITE,
		    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}

/* For children, which must not exit like the main process does. */
static void __printf(3, 4) __noreturn
finish(struct report *report, int code, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(report->msg, sizeof(report->msg), fmt, ap);
	va_end(ap);
	__atomic_store_n(&report->stop, true, __ATOMIC_RELEASE);
	_exit(code);
}

#define give_up(report, ...)	finish(report, KSFT_FAIL, __VA_ARGS__)

/* Returns the start of @len bytes of unused address space. */
static char *reserve_arena(struct report *report, unsigned long long len,
			   unsigned long align)
{
	char *p = MAP_FAILED;

	len += align;
	if (len <= SIZE_MAX)
		p = mmap(NULL, len, PROT_NONE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED)
		finish(report, KSFT_SKIP, "skipped, no %llu MB of address space",
		       len >> 20);
	return (char *)(((unsigned long)p + align - 1) & -align);
}

static void map_file(struct report *report, char *addr, size_t len, int prot,
		     int fd)
{
	if (mmap(addr, len, prot, MAP_SHARED | MAP_NORESERVE | MAP_FIXED, fd,
		 0) != addr)
		give_up(report, "mmap() of a file: %s", strerror(errno));
}

/* A child is not to outlive its parent, whatever becomes of that. */
static void die_with_parent(pid_t parent)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(KSFT_FAIL);
}

/* Fork a child that does not keep the files open that others wait for. */
static pid_t fork_child(struct report *report)
{
	pid_t pid, parent = getpid();

	memset(report, 0, sizeof(*report));
	pid = fork();
	if (pid)
		return pid;

	die_with_parent(parent);
	if (!freopen("/dev/null", "r", stdin) ||
	    !freopen("/dev/null", "w", stdout) ||
	    !freopen("/dev/null", "w", stderr))
		give_up(report, "/dev/null: %s", strerror(errno));
	return 0;
}

/* Returns false if the child is still there after HANG_SECONDS. */
static bool wait_child(pid_t pid, int *status)
{
	int i;

	for (i = 0; i < HANG_SECONDS * 20; i++) {
		if (waitpid(pid, status, WNOHANG) == pid)
			return true;
		usleep(50 * 1000);
	}
	return false;
}

/* Wait for the children of children that are gone, but not for ever. */
static void reap_orphans(void)
{
	int i;

	for (i = 0; i < HANG_SECONDS * 20; i++) {
		pid_t pid = waitpid(-1, NULL, WNOHANG);

		if (pid < 0)
			break;
		if (!pid)
			usleep(50 * 1000);
	}
}

/*
 * Wait for a child that runs a test with pages of @size, and check and log what
 * became of it. Returns false if it was skipped. @what is what might hang: then
 * the test ends here.
 */
static bool child_has_run(struct __test_metadata *_metadata,
			  struct report *report, pid_t pid, unsigned long size,
			  const char *what)
{
	bool gone;
	int status;

	gone = wait_child(pid, &status);
	/* There may be another process, which waits for this one. */
	__atomic_store_n(&report->stop, true, __ATOMIC_RELEASE);
	if (!gone)
		kill(pid, SIGKILL);
	ASSERT_TRUE(gone) {
		TH_LOG("%s of %lu kB pages hung", what, size >> 10);
	}
	if (report->msg[0])
		TH_LOG("%lu kB pages: %s", size >> 10, report->msg);
	EXPECT_TRUE(WIFEXITED(status)) {
		TH_LOG("%lu kB pages: killed by signal %d", size >> 10,
		       WTERMSIG(status));
	}
	if (!WIFEXITED(status))
		return true;
	if (WEXITSTATUS(status) == KSFT_SKIP)
		return false;
	EXPECT_EQ(WEXITSTATUS(status), KSFT_PASS);
	return true;
}

FIXTURE(populated)
{
	unsigned long sizes[MAX_SIZES];
	struct report *report;
	int nr_sizes;
};

FIXTURE_VARIANT(populated)
{
	/* In huge pages; the length is this much less than a page table maps */
	unsigned int less;
	unsigned int src_offset;
	unsigned int dst_offset;
	bool helper;
};

FIXTURE_VARIANT_ADD(populated, aligned)
{
};

FIXTURE_VARIANT_ADD(populated, src_offset)
{
	.src_offset = 1,
};

FIXTURE_VARIANT_ADD(populated, dst_offset)
{
	.dst_offset = 1,
};

FIXTURE_VARIANT_ADD(populated, both_offset)
{
	.src_offset = 1,
	.dst_offset = 2,
};

FIXTURE_VARIANT_ADD(populated, short)
{
	.less = 1,
};

/*
 * Another process has the table already, where it can be shared. What mremap()
 * does then is to move, or to drop, the shared table: nothing is allocated.
 */
FIXTURE_VARIANT_ADD(populated, aligned_table_shared)
{
	.helper = true,
};

/* The same on the way there; on the way back entries go to where it could be */
FIXTURE_VARIANT_ADD(populated, dst_offset_table_shared)
{
	.dst_offset = 1,
	.helper = true,
};

FIXTURE_SETUP(populated)
{
	self->nr_sizes = usable_sizes(self->sizes, 8, 512UL << 20);
	if (!self->nr_sizes)
		SKIP(return, "Less than 8 huge pages available of every size");
	self->report = new_report();
	ASSERT_NE(self->report, MAP_FAILED);
}

FIXTURE_TEARDOWN(populated)
{
}

/* Enough entries to have some in every table, and neighbours at their ends. */
static int pages_to_use(unsigned long *pages, unsigned long nr)
{
	const unsigned long want[] = { 0, 1, nr / 2, nr / 2 + 1, nr - 3,
				       nr - 2, nr - 1 };
	unsigned int i, count = 0;

	for (i = 0; i < ARRAY_SIZE(want); i++)
		if (want[i] < nr && (!count || want[i] > pages[count - 1]))
			pages[count++] = want[i];
	return count;
}

static void set_words(char *p, unsigned long size, unsigned long nr,
		      unsigned long salt)
{
	unsigned long pages[8];
	int i, count = pages_to_use(pages, nr);

	for (i = 0; i < count; i++)
		*word(p, size, pages[i]) = pages[i] + salt;
}

static void check_words(struct report *report, const char *when, char *p,
			unsigned long size, unsigned long nr,
			unsigned long salt)
{
	unsigned long pages[8];
	int i, count = pages_to_use(pages, nr);

	for (i = 0; i < count; i++) {
		unsigned long val = *word(p, size, pages[i]);

		if (val != pages[i] + salt)
			give_up(report, "%lu kB page %lu %s: read %#lx, expected %#lx",
				size >> 10, pages[i], when, val,
				pages[i] + salt);
	}
}

static void wait_step(struct report *report, unsigned int step, pid_t peer)
{
	int status;

	while (__atomic_load_n(&report->step, __ATOMIC_ACQUIRE) != step) {
		/* The other process has given up, or hangs. */
		if (__atomic_load_n(&report->stop, __ATOMIC_ACQUIRE))
			_exit(KSFT_FAIL);
		if (peer && waitpid(peer, &status, WNOHANG) == peer &&
		    WIFSIGNALED(status))
			give_up(report, "the other process was killed by signal %d",
				WTERMSIG(status));
		usleep(1000);
	}
}

static void set_step(struct report *report, unsigned int step)
{
	__atomic_store_n(&report->step, step, __ATOMIC_RELEASE);
}

static void helper(struct report *report, char *p, unsigned long size,
		   unsigned long nr, int fd)
{
	map_file(report, p, nr * size, PROT_READ | PROT_WRITE, fd);
	check_words(report, "in the other process", p, size, nr, 1000);
	set_step(report, 1);
	wait_step(report, 2, 0);
	check_words(report, "in the other process after the move", p, size,
		    nr, 2000);
	set_words(p, size, nr, 3000);
	set_step(report, 3);
	wait_step(report, 4, 0);
	_exit(KSFT_PASS);
}

static void move_and_return(const FIXTURE_VARIANT(populated) * v,
			    struct report *report, unsigned long size)
{
	unsigned long span = table_span(size);
	unsigned long nr = span / size - v->less;
	int status, fd = hugetlb_memfd(size);
	char *arena, *src, *dst, *p;
	pid_t pid = 0;

	if (fd < 0)
		give_up(report, "memfd_create(): %s", strerror(errno));

	arena = reserve_arena(report, 7ULL * span, span);
	src = arena + v->src_offset * size;
	dst = arena + 3 * span + v->dst_offset * size;

	map_file(report, src, nr * size, PROT_READ | PROT_WRITE, fd);
	set_words(src, size, nr, 1000);

	if (v->helper) {
		pid_t parent = getpid();

		pid = fork();
		if (pid < 0)
			give_up(report, "fork(): %s", strerror(errno));
		if (!pid) {
			die_with_parent(parent);
			helper(report, arena + 6 * span, size, nr, fd);
		}
		wait_step(report, 1, pid);
	}

	p = sys_mremap(src, nr * size, nr * size, MREMAP_MAYMOVE | MREMAP_FIXED,
		       dst);
	if (p != dst)
		give_up(report, "mremap(): %s", strerror(errno));
	check_words(report, "after the move", dst, size, nr, 1000);
	set_words(dst, size, nr, 2000);

	if (v->helper) {
		set_step(report, 2);
		wait_step(report, 3, pid);
		check_words(report, "written by the other process", dst, size,
			    nr, 3000);
	} else {
		set_words(dst, size, nr, 3000);
	}

	p = sys_mremap(dst, nr * size, nr * size, MREMAP_MAYMOVE | MREMAP_FIXED,
		       src);
	if (p != src)
		give_up(report, "mremap() back: %s", strerror(errno));
	check_words(report, "after the move back", src, size, nr, 3000);
	set_words(src, size, nr, 4000);

	/* What was written has to be in the file. */
	map_file(report, dst, nr * size, PROT_READ, fd);
	check_words(report, "in the file", dst, size, nr, 4000);
	set_step(report, 4);
	if (pid && (waitpid(pid, &status, 0) != pid || !WIFEXITED(status) ||
		    WEXITSTATUS(status)))
		give_up(report, "the other process failed at last");
	_exit(KSFT_PASS);
}

/*
 * Both moves may end up in page tables that another process could share: where
 * destination and file offset are aligned to what a page table maps.
 */
TEST_F_TIMEOUT(populated, shared, 400)
{
	int i, tested = 0;

	/* Reap the other process, too, if the first one fails. */
	prctl(PR_SET_CHILD_SUBREAPER, 1);

	for (i = 0; i < self->nr_sizes; i++) {
		unsigned long size = self->sizes[i];
		pid_t pid = fork_child(self->report);

		ASSERT_GE(pid, 0);
		if (!pid)
			move_and_return(variant, self->report, size);
		tested += child_has_run(_metadata, self->report, pid, size,
					"mremap of a populated shared mapping");
		reap_orphans();
	}
	if (!tested)
		SKIP(return, "Not enough address space");
}

#define NR_PRIVATE	8

/* How each test of reservations ends; all of them move a part first. */
enum after_move {
	TOUCH_ALL,
	UNMAP_PIECES,
	MOVE_BACK_AND_ON,
	CHARGE,
};

FIXTURE(partial)
{
	unsigned long sizes[MAX_SIZES];
	struct report *report;
	int nr_sizes;
	struct test_cgroup cgroup;
};

FIXTURE_VARIANT(partial)
{
	unsigned int first;
	unsigned int count;
	/* What is touched before the move, one bit for each page */
	unsigned int touched;
	/* Map a file instead of anonymous memory */
	bool file;
};

FIXTURE_VARIANT_ADD(partial, head)
{
	.count = 3,
};

FIXTURE_VARIANT_ADD(partial, middle)
{
	.first = 3,
	.count = 1,
};

FIXTURE_VARIANT_ADD(partial, tail)
{
	.first = 6,
	.count = 2,
};

FIXTURE_VARIANT_ADD(partial, whole)
{
	.count = NR_PRIVATE,
	.touched = 0x5a,
};

FIXTURE_VARIANT_ADD(partial, head_touched)
{
	.count = 2,
	.touched = 0x55,
};

FIXTURE_VARIANT_ADD(partial, middle_touched)
{
	.first = 2,
	.count = 4,
	.touched = 0xaa,
};

FIXTURE_VARIANT_ADD(partial, tail_touched)
{
	.first = 5,
	.count = 3,
	.touched = 0x3c,
};

FIXTURE_VARIANT_ADD(partial, middle_of_file)
{
	.first = 2,
	.count = 3,
	.touched = 0x66,
	.file = true,
};

FIXTURE_SETUP(partial)
{
	self->nr_sizes = usable_sizes(self->sizes, NR_PRIVATE, 512UL << 20);
	if (!self->nr_sizes)
		SKIP(return, "Less than %d huge pages available of every size",
		     NR_PRIVATE);
	self->report = new_report();
	ASSERT_NE(self->report, MAP_FAILED);
}

FIXTURE_TEARDOWN(partial)
{
	remove_cgroup(&self->cgroup);
}

static long reserved_pages(unsigned long size)
{
	return pool_number(size, "resv_hugepages");
}

struct partial_state {
	const char *cgroup;
	struct report *report;
	unsigned long size;
	long rsvd;		/* before the test */
	char *page[NR_PRIVATE];	/* where each of the pages is */
	unsigned int touched;
};

static void expect_reserved(struct partial_state *st, const char *when,
			    unsigned int pages)
{
	long rsvd = reserved_pages(st->size) - st->rsvd;

	if (rsvd != pages)
		give_up(st->report, "HugePages_Rsvd is %ld %s, expected %u",
			rsvd, when, pages);
}

/* Charged is what is mapped, touched or not. */
static void expect_charged(struct partial_state *st, const char *when,
			   unsigned int pages)
{
	char path[PATH_MAX];
	long val, expected = pages * (st->size >> 10);

	if (!st->cgroup)
		return;
	rsvd_path(path, sizeof(path), st->cgroup, st->size);
	val = number_in(path) >> 10;
	if (val != expected)
		give_up(st->report, "hugetlb rsvd.current is %ld kB %s, expected %ld",
			val, when, expected);
}

static unsigned int untouched(struct partial_state *st, unsigned int first,
			      unsigned int count)
{
	unsigned int range = ((1U << count) - 1) << first;

	return count - __builtin_popcount(st->touched & range);
}

static void move_pages_to(struct partial_state *st, unsigned int first,
			  unsigned int count, char *dst)
{
	char *src = st->page[first];
	unsigned int i;

	if (sys_mremap(src, count * st->size, count * st->size,
		       MREMAP_MAYMOVE | MREMAP_FIXED, dst) != dst)
		give_up(st->report, "mremap() of %u pages: %s", count,
			strerror(errno));
	for (i = 0; i < count; i++)
		st->page[first + i] = dst + i * st->size;
}

/* Every access to a page may raise SIGBUS, if its reservation is lost. */
static unsigned long read_page(struct partial_state *st, unsigned int i)
{
	if (sigsetjmp(sigbus_env, 1))
		give_up(st->report, "page %u of a reserved mapping: SIGBUS", i);
	return FORCE_READ(*(unsigned long *)st->page[i]);
}

static void write_page(struct partial_state *st, unsigned int i,
		       unsigned long val)
{
	if (sigsetjmp(sigbus_env, 1))
		give_up(st->report, "page %u of a reserved mapping: SIGBUS", i);
	__atomic_store_n((unsigned long *)st->page[i], val, __ATOMIC_RELAXED);
}

/* Look at what has been written, and write to all the rest. */
static void touch_page(struct partial_state *st, unsigned int i)
{
	unsigned long expected = st->touched & (1U << i) ? i + 1 : 0;

	if (read_page(st, i) != expected)
		give_up(st->report, "page %u has lost its contents", i);
	write_page(st, i, i + 100);
}

static void unmap_pages(struct partial_state *st, unsigned int first,
			unsigned int count)
{
	if (count && munmap(st->page[first], count * st->size))
		give_up(st->report, "munmap(): %s", strerror(errno));
}

static void move_part(const FIXTURE_VARIANT(partial) * v,
		      struct partial_state *st, enum after_move after)
{
	const unsigned int end = v->first + v->count;
	const unsigned long len = NR_PRIVATE * st->size;
	char *src, *dst, *third;
	unsigned int i, left;
	int fd = -1;

	signal(SIGBUS, sigbus_handler);
	if (st->cgroup && !cgroup_write(st->cgroup, "cgroup.procs", "0"))
		give_up(st->report, "cannot join %s", st->cgroup);

	src = reserve_arena(st->report, 3ULL * len, st->size);
	dst = src + len;
	third = dst + len;

	if (v->file) {
		fd = hugetlb_memfd(st->size);
		if (fd < 0)
			give_up(st->report, "memfd_create(): %s",
				strerror(errno));
	}
	if (mmap(src, len, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_FIXED | (v->file ? 0 :
		 MAP_ANONYMOUS | MAP_HUGETLB |
		 __builtin_ctzl(st->size) << MAP_HUGE_SHIFT), fd, 0) != src)
		give_up(st->report, "mmap(): %s", strerror(errno));
	expect_reserved(st, "after mmap()", NR_PRIVATE);
	expect_charged(st, "after mmap()", NR_PRIVATE);

	for (i = 0; i < NR_PRIVATE; i++) {
		st->page[i] = src + i * st->size;
		if (v->touched >> i & 1)
			write_page(st, i, i + 1);
	}
	st->touched = v->touched;
	left = untouched(st, 0, NR_PRIVATE);
	expect_reserved(st, "before mremap()", left);

	move_pages_to(st, v->first, v->count, dst + v->first * st->size);
	expect_reserved(st, "after mremap()", left);
	expect_charged(st, "after mremap()", NR_PRIVATE);

	if (after == UNMAP_PIECES || after == CHARGE) {
		unmap_pages(st, v->first, v->count);
		left -= untouched(st, v->first, v->count);
		expect_reserved(st, "after munmap() of what was moved", left);
		expect_charged(st, "after munmap() of what was moved",
			       NR_PRIVATE - v->count);
		unmap_pages(st, 0, v->first);
		left -= untouched(st, 0, v->first);
		expect_reserved(st, "after munmap() of the head", left);
		expect_charged(st, "after munmap() of the head",
			       NR_PRIVATE - end);
		unmap_pages(st, end, NR_PRIVATE - end);
		expect_reserved(st, "after munmap() of the tail", 0);
		expect_charged(st, "after munmap() of the tail", 0);
		_exit(KSFT_PASS);
	}

	if (after == MOVE_BACK_AND_ON) {
		move_pages_to(st, v->first, v->count, src + v->first * st->size);
		expect_reserved(st, "after mremap() back", left);
		/* Across what may be several VMAs, without the first and last */
		move_pages_to(st, 1, NR_PRIVATE - 2, third + st->size);
		expect_reserved(st, "after mremap() of several VMAs", left);
	}
	for (i = 0; i < NR_PRIVATE; i++)
		touch_page(st, i);
	expect_reserved(st, "after all pages were touched", 0);
	_exit(KSFT_PASS);
}

static void partial_test(struct __test_metadata *_metadata,
			 FIXTURE_DATA(partial) * self,
			 const FIXTURE_VARIANT(partial) * variant,
			 enum after_move after)
{
	int i, tested = 0;

	for (i = 0; i < self->nr_sizes; i++) {
		struct partial_state st = {
			.report = self->report,
			.size = self->sizes[i],
			.cgroup = after == CHARGE ? self->cgroup.path : NULL,
		};
		const char *what = "mremap of part of a private mapping";
		unsigned long in_use, nr;
		char path[PATH_MAX];
		long rsvd;
		pid_t pid;

		/* Needs exactly these pages: skip if others change the pool. */
		in_use = hugetlb_nr_pages(st.size) - available_pages(st.size);
		if (!resize_pool(st.size, in_use + NR_PRIVATE) ||
		    available_pages(st.size) != NR_PRIVATE) {
			TH_LOG("%lu kB pages skipped: no pool with just %d pages available",
			       st.size >> 10, NR_PRIVATE);
			continue;
		}
		st.rsvd = reserved_pages(st.size);

		pid = fork_child(self->report);
		ASSERT_GE(pid, 0);
		if (!pid)
			move_part(variant, &st, after);
		if (!child_has_run(_metadata, self->report, pid, st.size, what))
			continue;
		tested++;

		rsvd = reserved_pages(st.size);
		EXPECT_EQ(rsvd, st.rsvd) {
			TH_LOG("%lu kB pages: %ld reservations leaked",
			       st.size >> 10, rsvd - st.rsvd);
		}
		if (st.cgroup) {
			rsvd_path(path, sizeof(path), st.cgroup, st.size);
			EXPECT_EQ(number_in(path), 0) {
				TH_LOG("%lu kB pages: rsvd.current is still charged",
				       st.size >> 10);
			}
		}
		resize_pool(st.size, 0);
		nr = hugetlb_nr_pages(st.size);
		EXPECT_EQ(nr, in_use) {
			TH_LOG("%lu kB pages: the pool does not shrink below %lu",
			       st.size >> 10, nr);
		}
	}
	if (!tested)
		SKIP(return, "No pool can be made to fit");
}

/* A pool of as many pages as the mapping has must do for all of them. */
TEST_F_TIMEOUT(partial, touch_all, 400)
{
	partial_test(_metadata, self, variant, TOUCH_ALL);
}

TEST_F_TIMEOUT(partial, unmap_pieces, 400)
{
	partial_test(_metadata, self, variant, UNMAP_PIECES);
}

TEST_F_TIMEOUT(partial, move_back_and_on, 400)
{
	partial_test(_metadata, self, variant, MOVE_BACK_AND_ON);
}

TEST_F_TIMEOUT(partial, cgroup_charge, 400)
{
	const char *reason = make_cgroup(&self->cgroup, self->sizes[0]);

	if (reason)
		SKIP(return, "%s", reason);
	partial_test(_metadata, self, variant, CHARGE);
}

FIXTURE(large)
{
	unsigned long sizes[MAX_SIZES];
	struct report *report;
	int nr_sizes;
};

FIXTURE_VARIANT(large)
{
	int flags;
};

FIXTURE_VARIANT_ADD(large, private)
{
	.flags = MAP_PRIVATE,
};

FIXTURE_VARIANT_ADD(large, shared)
{
	.flags = MAP_SHARED,
};

FIXTURE_SETUP(large)
{
	if (sizeof(long) < 8)
		SKIP(return, "Addresses have 32 bits");
	self->nr_sizes = usable_sizes(self->sizes, 8, 512UL << 20);
	if (!self->nr_sizes)
		SKIP(return, "Less than 8 huge pages available of every size");
	self->report = new_report();
	ASSERT_NE(self->report, MAP_FAILED);
}

FIXTURE_TEARDOWN(large)
{
}

/* Move @len bytes, of which some pages in the first @used bytes are present. */
static void move_large(struct report *report, int flags, unsigned long size,
		       unsigned long long len, unsigned long long used,
		       const char *what)
{
	const unsigned long span = table_span(size);
	unsigned long pages[8], nr = used / size;
	unsigned long long room;
	char *src, *dst, *p;
	int i, count, err;

	flags |= MAP_ANONYMOUS | MAP_NORESERVE;
	/* Both begin where a page table does, and have none in common. */
	room = (len + span - 1) / span * span;
	src = reserve_arena(report, 2 * room, span);
	dst = src + room;

	p = mmap(src, len, PROT_READ | PROT_WRITE,
		 flags | MAP_FIXED | MAP_HUGETLB |
		 __builtin_ctzl(size) << MAP_HUGE_SHIFT, -1, 0);
	if (p != src)
		give_up(report, "mmap() of %s: %s", what, strerror(errno));
	set_words(src, size, nr, 1000);

	p = sys_mremap(src, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, dst);
	if (p == dst) {
		check_words(report, "after the move", dst, size, nr, 1000);
		_exit(KSFT_PASS);
	}

	err = errno;
	count = pages_to_use(pages, nr);
	for (i = 0; i < count; i++)
		if (*word(src, size, pages[i]) != pages[i] + 1000)
			give_up(report, "mremap() of %s: %s, and page %lu of %lu is lost",
				what, strerror(err), pages[i],
				(unsigned long)(len / size));
	give_up(report, "mremap() of %s: %s", what, strerror(err));
}

TEST_F_TIMEOUT(large, move, 400)
{
	static const unsigned int gigabytes[] = { 2, 4, 5, 6 };
	int i, tested = 0;
	unsigned int j;

	for (i = 0; i < self->nr_sizes; i++) {
		for (j = 0; j < ARRAY_SIZE(gigabytes); j++) {
			unsigned long long len = (unsigned long long)gigabytes[j] << 30;
			unsigned long size = self->sizes[i];
			char what[64];
			pid_t pid;

			if (len < 16 * size)
				continue;
			snprintf(what, sizeof(what), "%u GB", gigabytes[j]);
			pid = fork_child(self->report);
			ASSERT_GE(pid, 0);
			if (!pid)
				move_large(self->report, variant->flags, size,
					   len, len, what);
			tested += child_has_run(_metadata, self->report, pid,
						size, "mremap of a mapping");
		}
	}
	if (!tested)
		SKIP(return, "Not enough address space");
}

/*
 * Where no page table is, mremap() goes on with what the next one maps, and may
 * count more than the length: 4G in this case.
 */
TEST_F_TIMEOUT(large, move_untouched_tail, 400)
{
	int i, tested = 0;

	for (i = 0; i < self->nr_sizes; i++) {
		unsigned long size = self->sizes[i];
		unsigned long long span = table_span(size);
		unsigned long long len, end = 4ULL << 30;
		char what[64];
		pid_t pid;

		if (end < 2 * span)
			end = 2 * span;
		/* One page of the last table belongs to it. */
		len = end - span + size;
		snprintf(what, sizeof(what), "%llu MB with an untouched tail",
			 len >> 20);
		pid = fork_child(self->report);
		ASSERT_GE(pid, 0);
		if (!pid)
			move_large(self->report, variant->flags, size, len,
				   len - size, what);
		tested += child_has_run(_metadata, self->report, pid, size,
					"mremap of a mapping");
	}
	if (!tested)
		SKIP(return, "Not enough address space");
}

#define NR_RACE		8
#define NR_WRITTEN	2
#define RACE_MOVES	400
#define RACE_SECONDS	20
#define MAX_NODES	1024
#define BITS_PER_LONG	(8 * (int)sizeof(long))

FIXTURE(race)
{
	unsigned long sizes[MAX_SIZES];
	struct report *report;
	int nr_sizes;
	int nodes[2];
};

static bool node_has_memory(int node)
{
	unsigned long kb = 0;
	char path[64], line[256];
	FILE *f;

	snprintf(path, sizeof(path), "/sys/devices/system/node/node%d/meminfo",
		 node);
	f = fopen(path, "r");
	if (!f)
		return false;
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "Node %*d MemTotal: %lu", &kb) == 1)
			break;
	fclose(f);
	return kb;
}

FIXTURE_SETUP(race)
{
	int node, count = 0;

	for (node = 0; node < MAX_NODES && count < 2; node++)
		if (node_has_memory(node))
			self->nodes[count++] = node;
	if (count < 2)
		SKIP(return, "Less than two NUMA nodes with memory");

	/* Pages to migrate to are needed as well, on each of the nodes. */
	self->nr_sizes = usable_sizes(self->sizes, 3 * NR_RACE, 1UL << 30);
	if (!self->nr_sizes)
		SKIP(return, "Less than %d huge pages available of every size",
		     3 * NR_RACE);
	self->report = new_report();
	ASSERT_NE(self->report, MAP_FAILED);
}

FIXTURE_TEARDOWN(race)
{
}

static struct race {
	unsigned long size;
	char *addr[2];
	int nodes[2];
	bool stop;
	/* Written by the threads */
	unsigned long lost;
	unsigned long writes;
	unsigned long migrated;
} race;

static sigjmp_buf race_env;

static void race_segv(int sig)
{
	siglongjmp(race_env, 1);
}

static bool race_stopped(void)
{
	return __atomic_load_n(&race.stop, __ATOMIC_RELAXED);
}

/*
 * Count up in the last pages, at the address where they were seen last, and when
 * they are not there any more see whether they have, at the other address,
 * what was written last. Leave the first pages alone: they keep migration busy
 * until the others are moved, and would have to be waited for.
 */
static void *race_write(void *arg)
{
	/* A signal may come between any two of the accesses to these. */
	static unsigned long last[NR_RACE];
	static unsigned int where;
	static bool moved;
	unsigned int i;

	if (sigsetjmp(race_env, 1)) {
		__atomic_xor_fetch(&where, 1, __ATOMIC_SEQ_CST);
		__atomic_store_n(&moved, true, __ATOMIC_SEQ_CST);
	}
	while (!race_stopped()) {
		for (i = NR_RACE - NR_WRITTEN; i < NR_RACE; i++) {
			unsigned int now = __atomic_load_n(&where,
							   __ATOMIC_SEQ_CST);
			unsigned long val, *p =
				(void *)(race.addr[now] + i * race.size);

			val = __atomic_load_n(&last[i], __ATOMIC_SEQ_CST);
			if (__atomic_load_n(&moved, __ATOMIC_SEQ_CST)) {
				unsigned long seen =
					__atomic_load_n(p, __ATOMIC_SEQ_CST);

				if (seen != val)
					race.lost++;
				val = seen;
				__atomic_store_n(&last[i], val,
						 __ATOMIC_SEQ_CST);
			}
			val++;
			__atomic_store_n(p, val, __ATOMIC_SEQ_CST);
			__atomic_store_n(&last[i], val, __ATOMIC_SEQ_CST);
			race.writes++;
		}
		__atomic_store_n(&moved, false, __ATOMIC_SEQ_CST);
	}
	return NULL;
}

static void *race_migrate(void *arg)
{
	unsigned long mask[2][MAX_NODES / BITS_PER_LONG] = {};
	void *pages[2 * NR_RACE];
	int status[2 * NR_RACE], node[NR_RACE];
	unsigned int i, to = 0;

	for (i = 0; i < NR_RACE; i++)
		node[i] = -1;
	for (i = 0; i < 2 * NR_RACE; i++)
		pages[i] = race.addr[i / NR_RACE] + i % NR_RACE * race.size;
	for (i = 0; i < 2; i++)
		mask[i][race.nodes[i] / BITS_PER_LONG] |=
			1UL << race.nodes[i] % BITS_PER_LONG;

	while (!race_stopped()) {
		to = !to;
		if (syscall(__NR_migrate_pages, 0, MAX_NODES, mask[!to],
			    mask[to]) < 0)
			continue;
		/* Where are they? */
		if (syscall(__NR_move_pages, 0, 2 * NR_RACE, pages, NULL,
			    status, 0))
			continue;
		for (i = 0; i < 2 * NR_RACE; i++) {
			if (status[i] < 0)	/* at the other address */
				continue;
			if (node[i % NR_RACE] >= 0 &&
			    node[i % NR_RACE] != status[i])
				race.migrated++;
			node[i % NR_RACE] = status[i];
		}
	}
	return NULL;
}

/*
 * Map @nr private pages at the first address. The other one is in another page
 * table, and far away: no hole may be there when the threads get their stacks.
 */
static void race_map(struct report *report, unsigned long size,
		     unsigned int nr, const int *nodes)
{
	const unsigned long long span = 2ULL * table_span(size);
	const unsigned long len = nr * size;

	race.addr[0] = reserve_arena(report, span + len, size);
	race.addr[1] = race.addr[0] + span;
	race.size = size;
	memcpy(race.nodes, nodes, sizeof(race.nodes));

	if (mmap(race.addr[0], len, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS | MAP_HUGETLB |
		 __builtin_ctzl(size) << MAP_HUGE_SHIFT, -1, 0) != race.addr[0])
		give_up(report, "mmap(): %s", strerror(errno));
}

static void race_move(struct report *report, unsigned long size,
		      const int *nodes)
{
	const unsigned long len = NR_RACE * size;
	pthread_t writer, migrator;
	struct timespec start, now;
	unsigned int i;

	race_map(report, size, NR_RACE, nodes);
	for (i = 0; i < NR_RACE; i++)
		*(unsigned long *)(race.addr[0] + i * size) = 0;

	signal(SIGSEGV, race_segv);
	if (pthread_create(&writer, NULL, race_write, NULL) ||
	    pthread_create(&migrator, NULL, race_migrate, NULL))
		give_up(report, "pthread_create() failed");

	clock_gettime(CLOCK_MONOTONIC, &start);
	for (i = 0; i < RACE_MOVES; i++) {
		char *src = race.addr[i % 2], *dst = race.addr[(i + 1) % 2];

		if (sys_mremap(src, len, len, MREMAP_MAYMOVE | MREMAP_FIXED,
			       dst) != dst)
			give_up(report, "mremap(): %s", strerror(errno));
		usleep(1000 * (i % 7));
		clock_gettime(CLOCK_MONOTONIC, &now);
		if (now.tv_sec - start.tv_sec > RACE_SECONDS)
			break;
	}

	__atomic_store_n(&race.stop, true, __ATOMIC_RELAXED);
	pthread_join(writer, NULL);
	pthread_join(migrator, NULL);
	snprintf(report->msg, sizeof(report->msg),
		 "%u moves, %lu writes, %lu pages migrated, lost %lu writes",
		 i, race.writes, race.migrated, race.lost);
	if (race.lost)
		_exit(KSFT_FAIL);
	_exit(race.migrated ? KSFT_PASS : KSFT_SKIP);
}

static void race_test(struct __test_metadata *_metadata,
		      FIXTURE_DATA(race) * self,
		      void (*run)(struct report *report, unsigned long size,
				  const int *nodes), const char *what)
{
	int i, tested = 0;

	for (i = 0; i < self->nr_sizes; i++) {
		unsigned long size = self->sizes[i];
		pid_t pid = fork_child(self->report);

		ASSERT_GE(pid, 0);
		if (!pid)
			run(self->report, size, self->nodes);
		tested += child_has_run(_metadata, self->report, pid, size,
					what);
	}
	if (!tested)
		SKIP(return, "Nothing was migrated, or not enough address space");
}

/* Private memory is written by one thread, moved by one, migrated by another */
TEST_F_TIMEOUT(race, migration, 400)
{
	race_test(_metadata, self, race_move,
		  "mremap in a race against migration");
}

/* Migrate the only page, wherever it is, to the one node and to the other. */
static void *race_migrate_one(void *arg)
{
	void *pages[2] = { race.addr[0], race.addr[1] };
	int nodes[2], status[2], to = 0;

	while (!race_stopped()) {
		to = !to;
		nodes[0] = race.nodes[to];
		nodes[1] = race.nodes[to];
		if (!syscall(__NR_move_pages, 0, 2, pages, nodes, status,
			     MPOL_MF_MOVE))
			race.migrated += status[0] == nodes[to] ||
					 status[1] == nodes[to];
	}
	return NULL;
}

/* Move one page, which only this thread uses. */
static void race_move_one(struct report *report, unsigned long size,
			  const int *nodes)
{
	struct timespec start, now;
	unsigned long moves = 0;
	pthread_t migrator;

	race_map(report, size, 1, nodes);
	*(unsigned long *)race.addr[0] = moves;
	if (pthread_create(&migrator, NULL, race_migrate_one, NULL))
		give_up(report, "pthread_create() failed");

	clock_gettime(CLOCK_MONOTONIC, &start);
	do {
		char *src = race.addr[moves % 2];
		char *dst = race.addr[(moves + 1) % 2];
		unsigned long val;

		if (sys_mremap(src, size, size, MREMAP_MAYMOVE | MREMAP_FIXED,
			       dst) != dst)
			give_up(report, "mremap(): %s", strerror(errno));
		val = __atomic_load_n((unsigned long *)dst, __ATOMIC_SEQ_CST);
		if (val != moves)
			give_up(report, "lost the page: read %lu after move %lu",
				val, moves + 1);
		*(unsigned long *)dst = ++moves;
		clock_gettime(CLOCK_MONOTONIC, &now);
	} while (now.tv_sec - start.tv_sec <= RACE_SECONDS / 4);

	__atomic_store_n(&race.stop, true, __ATOMIC_RELAXED);
	pthread_join(migrator, NULL);
	finish(report, race.migrated ? KSFT_PASS : KSFT_SKIP,
	       "%lu moves, %lu migrations", moves, race.migrated);
}

TEST_F_TIMEOUT(race, migration_of_one, 400)
{
	race_test(_metadata, self, race_move_one,
		  "mremap of a page that migrates");
}

FIXTURE(shrink)
{
	unsigned long sizes[MAX_SIZES];
	int nr_sizes;
	/* For each of the sizes */
	unsigned long size;
	char *p;
	char *elsewhere;
};

FIXTURE_SETUP(shrink)
{
	self->nr_sizes = usable_sizes(self->sizes, 4, 128UL << 20);
	if (!self->nr_sizes)
		SKIP(return, "Less than 4 huge pages available of every size");
}

FIXTURE_TEARDOWN(shrink)
{
}

static char *map_huge(struct __test_metadata *_metadata, char *addr,
		      unsigned long len, unsigned long size)
{
	return map_memory(_metadata, addr, len, MAP_HUGETLB |
			  __builtin_ctzl(size) << MAP_HUGE_SHIFT);
}

/* An arena for pages of the next size, until there is none. */
static bool next_size(struct __test_metadata *_metadata,
		      FIXTURE_DATA(shrink) * self)
{
	unsigned long size;
	char *arena;

	if (!self->nr_sizes)
		return false;
	size = self->sizes[--self->nr_sizes];
	arena = mmap(NULL, 9 * size, PROT_NONE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	ASSERT_NE(arena, MAP_FAILED);
	self->size = size;
	self->p = (char *)(((unsigned long)arena + size - 1) & -size);
	self->elsewhere = self->p + 5 * size;
	munmap(self->p, 8 * size);
	return true;
}

/* What comes after the mapping loses as much as the caller said, not more. */
static void neighbour_test(struct __test_metadata *_metadata,
			   FIXTURE_DATA(shrink) * self, bool move)
{
	const unsigned long size = self->size;
	char *p = map_huge(_metadata, self->p, size, size), *next = p + size;
	char *dst = move ? self->elsewhere : p;

	map_memory(_metadata, next, size, 0);
	*p = 1;
	next[psize()] = 2;
	next[size - 1] = 3;

	ASSERT_EQ(sys_mremap(p, size + psize(), size,
			     move ? MREMAP_MAYMOVE | MREMAP_FIXED : 0, dst),
		  dst);
	ASSERT_TRUE(is_mapped(next + psize(), size - psize())) {
		TH_LOG("mremap() of a mapping of %lu kB pages unmapped the next mapping",
		       size >> 10);
	}
	EXPECT_EQ(next[psize()], 2);
	EXPECT_EQ(next[size - 1], 3);
	EXPECT_TRUE(is_unmapped(next, psize()));
	EXPECT_TRUE(is_mapped(dst, size));
	EXPECT_EQ(*dst, 1);
	munmap(dst, size);
	munmap(next, size);
}

TEST_F(shrink, neighbour)
{
	while (next_size(_metadata, self))
		neighbour_test(_metadata, self, false);
}

TEST_F(shrink, neighbour_and_move)
{
	while (next_size(_metadata, self))
		neighbour_test(_metadata, self, true);
}

/* No part of a huge page can be unmapped: munmap() does not do it either. */
TEST_F(shrink, neighbour_is_hugetlb)
{
	while (next_size(_metadata, self)) {
		const unsigned long size = self->size;
		char *p, *next;

		p = map_huge(_metadata, self->p, size, size);
		next = map_huge(_metadata, p + size, size, size);
		*next = 2;
		EXPECT_EQ(sys_mremap(p, size + psize(), size, 0, NULL),
			  MAP_FAILED) {
			TH_LOG("mremap() of %lu kB pages unmapped part of the next mapping",
			       size >> 10);
		}
		EXPECT_EQ(errno, EINVAL);
		ASSERT_TRUE(is_mapped(next, size));
		EXPECT_EQ(*next, 2);
		EXPECT_TRUE(is_mapped(p, size));

		/* Nor is anything unmapped where it was to move to. */
		map_memory(_metadata, self->elsewhere, size, 0);
		*self->elsewhere = 3;
		EXPECT_EQ(sys_mremap(p, size + psize(), size,
				     MREMAP_MAYMOVE | MREMAP_FIXED,
				     self->elsewhere), MAP_FAILED);
		EXPECT_EQ(errno, EINVAL);
		ASSERT_TRUE(is_mapped(self->elsewhere, size)) {
			TH_LOG("mremap() of %lu kB pages failed, but unmapped its destination",
			       size >> 10);
		}
		EXPECT_EQ(*self->elsewhere, 3);
		ASSERT_TRUE(is_mapped(next, size));
		EXPECT_EQ(*next, 2);
		munmap(self->elsewhere, size);

		/* This does name all of it. */
		EXPECT_EQ(sys_mremap(p, 2 * size, size, 0, NULL), p);
		EXPECT_TRUE(is_unmapped(next, size));
		munmap(p, size);
	}
}

/* A mapping of the same file, but of another part: a ring buffer, mirrored. */
TEST_F(shrink, neighbour_is_mirror)
{
	while (next_size(_metadata, self)) {
		const unsigned long size = self->size;
		char *p, *mirror;
		int fd;

		fd = memfd_create("mirror", MFD_CLOEXEC | MFD_HUGETLB |
				  __builtin_ctzl(size) << MFD_HUGE_SHIFT);
		ASSERT_GE(fd, 0);
		ASSERT_EQ(ftruncate(fd, size), 0);
		p = mmap(self->p, size, PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_FIXED, fd, 0);
		ASSERT_EQ(p, self->p);
		mirror = mmap(p + size, size, PROT_READ | PROT_WRITE,
			      MAP_SHARED | MAP_FIXED, fd, 0);
		ASSERT_EQ(mirror, p + size);
		*p = 1;

		EXPECT_EQ(sys_mremap(p, size + psize(), size, 0, NULL),
			  MAP_FAILED) {
			TH_LOG("mremap() of %lu kB pages unmapped the mirror",
			       size >> 10);
		}
		EXPECT_EQ(errno, EINVAL);
		ASSERT_TRUE(is_mapped(mirror, size));
		EXPECT_EQ(*mirror, 1);
		munmap(p, 2 * size);
		close(fd);
	}
}

/* mmap() has rounded up the length, so the same has to go away. */
static void own_page_test(struct __test_metadata *_metadata,
			  FIXTURE_DATA(shrink) * self, bool split)
{
	const unsigned long size = self->size;
	char *p = map_huge(_metadata, self->p, size + psize(), size);

	ASSERT_TRUE(is_mapped(p, 2 * size));
	memset(p, 1, 2 * size);
	/* Makes two VMAs of it. */
	if (split)
		ASSERT_EQ(mprotect(p + size, size, PROT_READ), 0);
	EXPECT_EQ(sys_mremap(p, size + psize(), size, 0, NULL), p);
	EXPECT_TRUE(is_unmapped(p + size, size));
	EXPECT_TRUE(is_mapped(p, size));
	munmap(p, size);
}

TEST_F(shrink, own_page)
{
	while (next_size(_metadata, self))
		own_page_test(_metadata, self, false);
}

TEST_F(shrink, own_page_split)
{
	while (next_size(_metadata, self))
		own_page_test(_metadata, self, true);
}

/* Only MREMAP_FIXED and MREMAP_DONTUNMAP have a fifth argument. */
static void four_arguments_test(struct __test_metadata *_metadata,
				FIXTURE_DATA(shrink) * self, int flags)
{
	const unsigned long size = self->size;
	char *p = map_huge(_metadata, self->p, 2 * size, size);
	/* What a register may contain; no address of any page. */
	char *garbage = (char *)0x5a5a5a5bUL;

	*p = 1;
	EXPECT_EQ(sys_mremap(p, 2 * size, 2 * size, flags, garbage), p);
	EXPECT_EQ(sys_mremap(p, 2 * size, size, flags, garbage), p) {
		TH_LOG("mremap() of %lu kB pages to shrink, with four arguments: %s",
		       size >> 10, strerror(errno));
	}
	EXPECT_TRUE(is_unmapped(p + size, size));
	EXPECT_EQ(*p, 1);
	munmap(p, 2 * size);
}

TEST_F(shrink, four_arguments)
{
	while (next_size(_metadata, self))
		four_arguments_test(_metadata, self, 0);
}

TEST_F(shrink, four_arguments_may_move)
{
	while (next_size(_metadata, self))
		four_arguments_test(_metadata, self, MREMAP_MAYMOVE);
}

/* Lengths that are the same when rounded up change nothing. */
TEST_F(shrink, same_length)
{
	while (next_size(_metadata, self)) {
		const unsigned long size = self->size;
		char *p;

		p = map_huge(_metadata, self->p, size, size);
		map_memory(_metadata, p + size, size, 0);
		EXPECT_EQ(sys_mremap(p, size, psize(), 0, NULL), p);
		EXPECT_EQ(sys_mremap(p, size + 2 * psize(), size + psize(), 0,
				     NULL), p);
		EXPECT_TRUE(is_mapped(p, 2 * size));
		munmap(p, 2 * size);
	}
}

FIXTURE(failure)
{
	unsigned long sizes[MAX_SIZES];
	struct report *report;
	int nr_sizes;
};

FIXTURE_VARIANT(failure)
{
	unsigned int first;
	unsigned int count;
};

FIXTURE_VARIANT_ADD(failure, whole)
{
	.count = NR_PRIVATE,
};

FIXTURE_VARIANT_ADD(failure, middle)
{
	.first = 1,
	.count = 6,
};

FIXTURE_SETUP(failure)
{
	const char *reason;

	self->nr_sizes = usable_sizes(self->sizes, NR_PRIVATE, 512UL << 20);
	if (!self->nr_sizes)
		SKIP(return, "Less than %d huge pages available of every size",
		     NR_PRIVATE);
	self->report = new_report();
	ASSERT_NE(self->report, MAP_FAILED);
	reason = allow_injection();
	if (reason)
		SKIP(return, "%s", reason);
}

FIXTURE_TEARDOWN(failure)
{
	end_injection();
}

/* Map pages and touch some. Returns an address that the pages of @v can move to. */
static char *map_to_fail(const FIXTURE_VARIANT(failure) * v,
			 struct partial_state *st)
{
	const unsigned long size = st->size, span = table_span(size);
	unsigned int i;
	char *src, *dst;

	signal(SIGBUS, sigbus_handler);
	/* Half of the pages go to one page table, half of them to another. */
	src = reserve_arena(st->report, 4ULL * span, span);
	dst = src + 3 * span - NR_PRIVATE / 2 * size + v->first * size;

	src = mmap(src, NR_PRIVATE * size, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS | MAP_HUGETLB |
		   __builtin_ctzl(size) << MAP_HUGE_SHIFT, -1, 0);
	if (src == MAP_FAILED)
		give_up(st->report, "mmap(): %s", strerror(errno));
	st->touched = 0x6d;
	for (i = 0; i < NR_PRIVATE; i++) {
		st->page[i] = src + i * size;
		if (st->touched & (1U << i))
			write_page(st, i, i + 1);
	}
	return dst;
}

/* Have each of the allocations fail in turn. */
static void move_with_failures(const FIXTURE_VARIANT(failure) * v,
			       struct partial_state *st)
{
	const unsigned long size = st->size, len = v->count * size;
	char *dst = map_to_fail(v, st);
	unsigned int nth, i, left = untouched(st, 0, NR_PRIVATE);
	bool moved = false;

	for (nth = 1; !moved; nth++) {
		char *p, *from = st->page[v->first];
		bool injected;

		p = mremap_failing(nth, from, len, len,
				   MREMAP_MAYMOVE | MREMAP_FIXED, dst,
				   &injected);
		if (p == dst && !injected) {
			for (i = 0; i < v->count; i++)
				st->page[v->first + i] = dst + i * size;
			moved = true;
		} else if (p == dst) {
			/* Not all allocations have to succeed. Go back. */
			p = sys_mremap(dst, len, len,
				       MREMAP_MAYMOVE | MREMAP_FIXED, from);
			if (p != from)
				give_up(st->report, "mremap() back: %s",
					strerror(errno));
		} else if (!injected) {
			give_up(st->report, "mremap(): %s", strerror(errno));
		}
		expect_reserved(st, "after failure of an allocation", left);
		for (i = 0; i < NR_PRIVATE; i++)
			if (st->touched & (1U << i) &&
			    read_page(st, i) != i + 1)
				give_up(st->report, "page %u lost by failure %u",
					i, nth);
	}
	for (i = 0; i < NR_PRIVATE; i++)
		touch_page(st, i);
	expect_reserved(st, "after all pages were touched", 0);
	snprintf(st->report->msg, sizeof(st->report->msg),
		 "%u allocations", nth - 2);
	_exit(KSFT_PASS);
}

/* A userfaultfd without events, with write protection of huge pages. */
static int open_protecting_uffd(struct report *report)
{
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = UFFD_FEATURE_PAGEFAULT_FLAG_WP |
			    UFFD_FEATURE_WP_HUGETLBFS_SHMEM,
	};
	int uffd = syscall(__NR_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);

	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api))
		finish(report, KSFT_SKIP, "skipped, no such userfaultfd: %s",
		       strerror(errno));
	return uffd;
}

static void protect(struct report *report, int uffd, char *p, unsigned long len)
{
	struct uffdio_register reg = {
		.range = { (unsigned long)p, len },
		.mode = UFFDIO_REGISTER_MODE_WP,
	};
	struct uffdio_writeprotect wp = {
		.range = { (unsigned long)p, len },
		.mode = UFFDIO_WRITEPROTECT_MODE_WP,
	};

	if (ioctl(uffd, UFFDIO_REGISTER, &reg) ||
	    ioctl(uffd, UFFDIO_WRITEPROTECT, &wp))
		give_up(report, "userfaultfd: %s", strerror(errno));
}

/*
 * All pages that move are protected, those without memory by markers. They stay
 * so if the move fails; otherwise they leave the userfaultfd.
 */
static void move_protected_with_failures(const FIXTURE_VARIANT(failure) * v,
					 struct partial_state *st)
{
	const unsigned long size = st->size, len = v->count * size;
	char *p, *dst = map_to_fail(v, st), *src = st->page[v->first];
	int uffd = open_protecting_uffd(st->report);
	int pagemap = open("/proc/self/pagemap", O_RDONLY);
	unsigned int nth, i, failures = 0;
	bool injected = true, want;

	for (nth = 1; injected; nth++) {
		protect(st->report, uffd, src, len);
		p = mremap_failing(nth, src, len, len,
				   MREMAP_MAYMOVE | MREMAP_FIXED, dst,
				   &injected);
		if (p != dst && !injected)
			give_up(st->report, "mremap(): %s", strerror(errno));
		want = p != dst;
		p = want ? src : dst;
		failures += want;
		for (i = 0; i < v->count; i++)
			if (!!(pagemap_get_entry(pagemap, p + i * size) &
			       PM_UFFD_WP) != want)
				give_up(st->report, "page %u %s protected by mremap() %u",
					v->first + i,
					want ? "does not stay" : "stays", nth);
		if (want)
			continue;
		for (i = v->first; i < v->first + v->count; i++) {
			st->page[i] = dst + (i - v->first) * size;
			if (st->touched & (1U << i)) {
				touch_page(st, i);
				write_page(st, i, i + 1);
			}
		}
		if (sys_mremap(dst, len, len, MREMAP_MAYMOVE | MREMAP_FIXED,
			       src) != src)
			give_up(st->report, "mremap() back: %s",
				strerror(errno));
		for (i = 0; i < v->count; i++)
			st->page[v->first + i] = src + i * size;
	}
	if (!failures)
		give_up(st->report, "no allocation failed");
	finish(st->report, KSFT_PASS, "%u of %u allocations had to succeed",
	       failures, nth - 2);
}

static void failure_test(struct __test_metadata *_metadata,
			 FIXTURE_DATA(failure) * self,
			 const FIXTURE_VARIANT(failure) * variant,
			 void (*run)(const FIXTURE_VARIANT(failure) * v,
				     struct partial_state *st))
{
	int i, tested = 0;

	for (i = 0; i < self->nr_sizes; i++) {
		struct partial_state st = {
			.report = self->report,
			.size = self->sizes[i],
			.rsvd = reserved_pages(self->sizes[i]),
		};
		pid_t pid = fork_child(self->report);

		ASSERT_GE(pid, 0);
		if (!pid)
			run(variant, &st);
		tested += child_has_run(_metadata, self->report, pid, st.size,
					"mremap with allocation failures");
		EXPECT_EQ(reserved_pages(st.size), st.rsvd) {
			TH_LOG("%lu kB pages: reservations leaked",
			       st.size >> 10);
		}
	}
	if (!tested)
		SKIP(return, "Not enough address space, or no userfaultfd");
}

/* A move that fails must leave everything where it was. */
TEST_F_TIMEOUT(failure, nth_allocation, 400)
{
	failure_test(_metadata, self, variant, move_with_failures);
}

TEST_F_TIMEOUT(failure, write_protected, 400)
{
	failure_test(_metadata, self, variant, move_protected_with_failures);
}

#define UNPOISON	"/sys/kernel/debug/hwpoison/unpoison-pfn"

/* unpoison_all() would also restore pages that were bad before the test. */
static bool can_restore_bad_pages(void)
{
	unsigned long bad;

	return !access(UNPOISON, W_OK) && !get_hardware_corrupted_size(&bad) &&
	       !bad;
}

/* Returns whether the page is not bad any more. */
static bool unpoison(int kpageflags, unsigned long pfn)
{
	unsigned int tries;
	uint64_t flags;

	for (tries = 0; tries < 100; tries++) {
		if (pageflags_get(pfn, kpageflags, &flags) ||
		    !(flags & KPF_HWPOISON) || !unpoison_memory(pfn))
			return true;
		usleep(1000 * 10);
	}
	return false;
}

/*
 * All of memory, as it is not known what to look for: nothing was bad before.
 * Returns what stays bad.
 */
static unsigned int unpoison_all(int kpageflags)
{
	uint64_t flags[4096];
	unsigned long pfn = 0;
	unsigned int left = 0;
	ssize_t i, nr;

	while ((nr = pread(kpageflags, flags, sizeof(flags),
			   pfn * sizeof(*flags)) / (ssize_t)sizeof(*flags)) > 0) {
		for (i = 0; i < nr; i++) {
			if (flags[i] & KPF_HWPOISON)
				left += !unpoison(kpageflags, pfn + i);
		}
		pfn += nr;
	}
	return left;
}

/*
 * Give back memory that has failed: what could not be unmapped, because the lock
 * of the file was busy, would be missing from the pool of huge pages. It is another
 * page than the one that was seen if that was replaced just then.
 */
static void restore_bad_pages(struct __test_metadata *_metadata,
			      struct report *report)
{
	int kpageflags = open("/proc/kpageflags", O_RDONLY);
	unsigned int i, left = 0;
	unsigned long bad;

	for (i = 0; i < report->nr_bad; i++)
		left += !unpoison(kpageflags, report->bad[i]);
	if (report->nr_bad && !get_hardware_corrupted_size(&bad) && bad)
		left = unpoison_all(kpageflags);
	close(kpageflags);
	report->nr_bad = 0;
	EXPECT_EQ(left, 0) {
		TH_LOG("%u pages stay poisoned", left);
	}
}

/*
 * What a page table of PMDs maps, and a little more, most of it never touched.
 * The table can move as a whole, the rest cannot.
 */
FIXTURE(tables)
{
	unsigned long sizes[MAX_SIZES];
	struct report *report;
	int nr_sizes;
};

FIXTURE_VARIANT(tables)
{
	bool shared;
	/* Another process maps the same, or was forked when all was touched */
	bool other;
};

FIXTURE_VARIANT_ADD(tables, private)
{
};

FIXTURE_VARIANT_ADD(tables, private_forked)
{
	.other = true,
};

FIXTURE_VARIANT_ADD(tables, shared)
{
	.shared = true,
};

FIXTURE_VARIANT_ADD(tables, shared_by_two)
{
	.shared = true,
	.other = true,
};

#define NR_BEYOND	4	/* pages in the next table */
#define NR_PROBES	3	/* pages that only the other process touches */
#define FIRST_PROBE	4
#define NR_BAD_PAGES	4	/* pages that memory failure takes away */

FIXTURE_SETUP(tables)
{
	/* Twice what pages_to_use() says, for copy on write. */
	const unsigned long nr = 2 * 8 + NR_PROBES + NR_BAD_PAGES;

	self->nr_sizes = usable_sizes(self->sizes, nr, 768UL << 20);
	if (!self->nr_sizes)
		SKIP(return, "Less than %lu huge pages available of every size",
		     nr);
	self->report = new_report();
	ASSERT_NE(self->report, MAP_FAILED);
}

FIXTURE_TEARDOWN(tables)
{
	end_injection();
	/* Of a child that hung. */
	restore_bad_pages(_metadata, self->report);
}

struct tables_state {
	const FIXTURE_VARIANT(tables) * variant;
	struct report *report;
	unsigned long size;
	unsigned long nr;
	char *src, *dst, *elsewhere;
	int fd;
	int pagemap;
	pid_t other;
	unsigned int probes;
	bool table_shared;
};

/* Unlike an access, a look at the pagemap does not fault in anything. */
static bool is_present(struct tables_state *st, char *p, unsigned long page)
{
	const unsigned long addr = (unsigned long)p + page * st->size;
	uint64_t entry;

	if (pread(st->pagemap, &entry, sizeof(entry),
		  addr / psize() * sizeof(entry)) != sizeof(entry))
		give_up(st->report, "reading pagemap: %s", strerror(errno));
	return entry & PM_PRESENT;
}

static void expect_present(struct tables_state *st, const char *when, char *p)
{
	unsigned long pages[8];
	int i, count = pages_to_use(pages, st->nr);

	for (i = 0; i < count; i++)
		if (!is_present(st, p, pages[i]))
			give_up(st->report, "page %lu has to be faulted in again %s",
				pages[i], when);
}

/* Step 2n: touch the probe n, and say so by step 2n + 1. */
static void other_process(struct tables_state *st)
{
	unsigned int i;

	if (st->variant->shared)
		map_file(st->report, st->elsewhere, st->nr * st->size,
			 PROT_READ | PROT_WRITE, st->fd);
	else
		st->elsewhere = st->src;
	check_words(st->report, "in the other process", st->elsewhere,
		    st->size, st->nr, 1000);
	for (i = 0; i < NR_PROBES; i++) {
		set_step(st->report, 2 * i + 1);
		wait_step(st->report, 2 * i + 2, 0);
		*word(st->elsewhere, st->size, FIRST_PROBE + i) = i;
	}
	set_step(st->report, 2 * i + 1);
	wait_step(st->report, 2 * i + 2, 0);
	check_words(st->report, "in the other process at last", st->elsewhere,
		    st->size, st->nr, st->variant->shared ? 3000 : 1000);
	_exit(KSFT_PASS);
}

/* Is what the other process has faulted in present for this one, too? */
static bool is_table_shared(struct tables_state *st, char *p)
{
	const unsigned int probe = st->probes++;

	if (!st->other)
		return false;
	set_step(st->report, 2 * probe + 2);
	wait_step(st->report, 2 * probe + 3, st->other);
	return is_present(st, p, FIRST_PROBE + probe);
}

static void tables_map(struct tables_state *st)
{
	const unsigned long span = pud_span();
	unsigned long len;

	st->nr = span / st->size + NR_BEYOND;
	len = st->nr * st->size;
	st->src = reserve_arena(st->report, 9ULL * span, span);
	st->dst = st->src + 3 * span;
	st->elsewhere = st->src + 6 * span;
	st->pagemap = open("/proc/self/pagemap", O_RDONLY);
	if (st->pagemap < 0)
		give_up(st->report, "pagemap: %s", strerror(errno));

	if (st->variant->shared) {
		st->fd = hugetlb_memfd(st->size);
		if (st->fd < 0)
			give_up(st->report, "memfd_create(): %s",
				strerror(errno));
		map_file(st->report, st->src, len, PROT_READ | PROT_WRITE,
			 st->fd);
	} else if (mmap(st->src, len, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE |
			MAP_ANONYMOUS | MAP_HUGETLB |
			__builtin_ctzl(st->size) << MAP_HUGE_SHIFT, -1, 0) !=
		   st->src) {
		give_up(st->report, "mmap(): %s", strerror(errno));
	}
	set_words(st->src, st->size, st->nr, 1000);
}

static void tables_start(struct tables_state *st)
{
	const pid_t parent = getpid();

	tables_map(st);
	if (st->variant->other) {
		st->other = fork();
		if (st->other < 0)
			give_up(st->report, "fork(): %s", strerror(errno));
		if (!st->other) {
			die_with_parent(parent);
			other_process(st);
		}
		wait_step(st->report, 1, st->other);
	}
	expect_present(st, "before it has moved", st->src);
	st->table_shared = is_table_shared(st, st->src);
}

static void tables_end(struct tables_state *st)
{
	int status;

	if (st->other) {
		while (st->probes < NR_PROBES)
			is_table_shared(st, st->src);
		set_step(st->report, 2 * NR_PROBES + 2);
		if (waitpid(st->other, &status, 0) != st->other ||
		    !WIFEXITED(status) || WEXITSTATUS(status))
			give_up(st->report, "the other process failed: %s",
				st->report->msg);
	}
	finish(st->report, KSFT_PASS, "the page table was %sshared",
	       st->table_shared ? "" : "not ");
}

static void expect_still_shared(struct tables_state *st, char *p)
{
	if (is_table_shared(st, p) != st->table_shared)
		give_up(st->report, "the page table is %sshared any more",
			st->table_shared ? "not " : "");
}

static void move_tables(struct tables_state *st)
{
	unsigned long len;

	tables_start(st);
	len = st->nr * st->size;
	if (sys_mremap(st->src, len, len, MREMAP_MAYMOVE | MREMAP_FIXED,
		       st->dst) != st->dst)
		give_up(st->report, "mremap(): %s", strerror(errno));
	expect_present(st, "after a move", st->dst);
	expect_still_shared(st, st->dst);
	check_words(st->report, "after a move", st->dst, st->size, st->nr,
		    1000);
	set_words(st->dst, st->size, st->nr, 2000);

	if (sys_mremap(st->dst, len, len, MREMAP_MAYMOVE | MREMAP_FIXED,
		       st->src) != st->src)
		give_up(st->report, "mremap() back: %s", strerror(errno));
	expect_present(st, "after a move back", st->src);
	expect_still_shared(st, st->src);
	check_words(st->report, "after a move back", st->src, st->size, st->nr,
		    2000);
	set_words(st->src, st->size, st->nr, 3000);
	tables_end(st);
}

/* A failed move is undone, and all of it stays present where it has been. */
static void move_tables_with_failures(struct tables_state *st)
{
	unsigned int nth, failures = 0;
	unsigned long len;
	bool injected;

	tables_start(st);
	len = st->nr * st->size;
	for (nth = 1; ; nth++) {
		char *p = mremap_failing(nth, st->src, len, len,
					 MREMAP_MAYMOVE | MREMAP_FIXED,
					 st->dst, &injected);

		if (p == st->dst && !injected)
			break;
		if (!injected)
			give_up(st->report, "mremap(): %s", strerror(errno));
		if (p != st->dst) {
			failures++;
			expect_present(st, "after a failed move", st->src);
		} else if (sys_mremap(st->dst, len, len,
				      MREMAP_MAYMOVE | MREMAP_FIXED,
				      st->src) != st->src) {
			give_up(st->report, "mremap() back: %s",
				strerror(errno));
		}
		/* Faults in what had to be unshared for lack of a lock. */
		check_words(st->report, "after failure of an allocation",
			    st->src, st->size, st->nr, 1000);
	}
	expect_present(st, "after a move", st->dst);
	check_words(st->report, "after a move", st->dst, st->size, st->nr,
		    1000);
	set_words(st->dst, st->size, st->nr, 3000);
	if (!failures)
		give_up(st->report, "no allocation failed");
	st->src = st->dst;
	tables_end(st);
}

/* Without an address, the kernel has to find one to which the table can move. */
static void expect_congruent(struct tables_state *st, const char *when, char *p)
{
	const unsigned long mask = pud_span() - 1;

	if (((unsigned long)p ^ (unsigned long)st->src) & mask)
		give_up(st->report, "moved from %p to %p %s, where its page table does not fit",
			st->src, p, when);
	expect_present(st, when, p);
	expect_still_shared(st, p);
	check_words(st->report, when, p, st->size, st->nr, 1000);
}

/* Something comes after the mapping, so that it has to move. */
static void grow_tables(struct tables_state *st)
{
	unsigned long len;
	char *p;

	tables_start(st);
	len = st->nr * st->size;
	p = sys_mremap(st->src, len, len + st->size, MREMAP_MAYMOVE,
		       NO_NEW_ADDR);
	if (p == MAP_FAILED)
		give_up(st->report, "mremap() to grow: %s", strerror(errno));
	expect_congruent(st, "to grow", p);
	*word(p, st->size, st->nr) = 1;
	set_words(p, st->size, st->nr, 3000);
	st->src = p;
	tables_end(st);
}

static void leave_tables(struct tables_state *st)
{
	unsigned long len;
	char *p, *hint;

	tables_start(st);
	len = st->nr * st->size;
	p = sys_mremap(st->src, len, len, MREMAP_MAYMOVE | MREMAP_DONTUNMAP,
		       NULL);
	if (p == MAP_FAILED)
		give_up(st->report, "MREMAP_DONTUNMAP: %s", strerror(errno));
	expect_congruent(st, "by MREMAP_DONTUNMAP", p);

	/* The caller's wish comes first. */
	hint = st->dst + st->size;
	munmap(hint, len);
	st->src = sys_mremap(p, len, len, MREMAP_MAYMOVE | MREMAP_DONTUNMAP,
			     hint);
	if (st->src != hint)
		give_up(st->report, "moved to %p instead of %p", st->src, hint);
	check_words(st->report, "at the address of the hint", hint, st->size,
		    st->nr, 1000);
	set_words(hint, st->size, st->nr, 3000);
	tables_end(st);
}

static void fill_address_space(unsigned long min)
{
	unsigned long len;

	for (len = 1UL << (BITS_PER_LONG - 2); len >= min; len /= 2)
		while (mmap(NULL, len, PROT_NONE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
			    0) != MAP_FAILED)
			;
}

/*
 * The only hole is as long as the search for an aligned address requires, and
 * nowhere in it the table fits.
 */
static void grow_tables_into_hole(struct tables_state *st)
{
	unsigned long len;
	char *p, *hole;

	tables_start(st);
	len = st->nr * st->size;
	hole = st->dst + st->size;
	fill_address_space(st->size);
	munmap(hole, len + 2 * st->size);
	p = sys_mremap(st->src, len, len + st->size, MREMAP_MAYMOVE,
		       NO_NEW_ADDR);
	if (p != hole && p != hole + st->size)
		give_up(st->report, "mremap() to the only hole: %s",
			p == MAP_FAILED ? strerror(errno) : "elsewhere");
	check_words(st->report, "in the only hole", p, st->size, st->nr, 1000);
	set_words(p, st->size, st->nr, 3000);
	st->src = p;
	tables_end(st);
}

/* What runs while tables move there and back. Pages of words do not change. */
#define STRESS_SECONDS	4
#define STRESS_VICTIM	(FIRST_PROBE + NR_PROBES)	/* a page that comes and goes */

static struct stress {
	struct tables_state *st;
	unsigned long mask[2][MAX_NODES / BITS_PER_LONG];
	int nodes;
	bool bad_memory;
	bool stop;
	unsigned long gups;	/* pages seen by GUP */
	unsigned long pins;	/* pages that were pinned for long */
	unsigned long wrong;	/* of which had another's contents */
	unsigned long forks;
	unsigned long offline;	/* pages that were taken offline softly */
	unsigned long poisoned;	/* pages whose memory was said to have failed */
	unsigned long moves;
} stress;

static bool stress_stopped(void)
{
	return __atomic_load_n(&stress.stop, __ATOMIC_RELAXED);
}

/* vmsplice() takes references by GUP-fast; what it got can be read later. */
static void *stress_gup(void *arg)
{
	struct tables_state *st = stress.st;
	unsigned long pages[8], val;
	int i, fds[2], count = pages_to_use(pages, st->nr);

	if (pipe(fds))
		return NULL;
	for (i = 0; !stress_stopped(); i++) {
		const unsigned long page = pages[i / 2 % count];
		char *p = i % 2 ? st->src : st->dst;
		struct iovec iov = {
			.iov_base = word(p, st->size, page),
			.iov_len = sizeof(val),
		};

		if (vmsplice(fds[1], &iov, 1, SPLICE_F_NONBLOCK) !=
		    sizeof(val))
			continue;	/* It is at the other address. */
		if (read(fds[0], &val, sizeof(val)) != sizeof(val))
			break;
		stress.gups++;
		stress.wrong += val != page + 1000;
	}
	close(fds[0]);
	close(fds[1]);
	return NULL;
}

/* To the one node and to the other, if there are two. */
static void *stress_migrate(void *arg)
{
	int to = 0;

	while (stress.nodes == 2 && !stress_stopped()) {
		to = !to;
		syscall(__NR_migrate_pages, 0, MAX_NODES, stress.mask[!to],
			stress.mask[to]);
	}
	return NULL;
}

/* Fault in and zap a page, where it is now. */
static void *stress_zap(void *arg)
{
	struct tables_state *st = stress.st;
	unsigned int i;

	for (i = 0; !stress_stopped(); i++) {
		char *p = (i % 2 ? st->src : st->dst) + STRESS_VICTIM * st->size;

		madvise(p, st->size, MADV_POPULATE_WRITE);
		madvise(p, st->size, MADV_DONTNEED);
	}
	return NULL;
}

/* A page that is pinned, as for DMA, stays what it is wherever it is mapped. */
static void *stress_pin(void *arg)
{
	struct tables_state *st = stress.st;
	static unsigned long copy[(1 << 16) / sizeof(long)];
	__u64 buf = (unsigned long)copy;
	unsigned long pages[8];
	int i, count = pages_to_use(pages, st->nr);
	int fd = open("/sys/kernel/debug/gup_test", O_RDWR);

	for (i = 0; fd >= 0 && !stress_stopped(); i++) {
		const unsigned long page = pages[i / 4 % count];
		char *p = i % 2 ? st->src : st->dst;
		struct pin_longterm_test pin = {
			.addr = (unsigned long)word(p, st->size, page),
			.size = psize(),
			.flags = i % 4 / 2 * PIN_LONGTERM_TEST_FLAG_USE_FAST,
		};

		if (ioctl(fd, PIN_LONGTERM_TEST_START, &pin))
			continue;	/* It is at the other address. */
		sched_yield();
		if (!ioctl(fd, PIN_LONGTERM_TEST_READ, &buf)) {
			stress.pins++;
			stress.wrong += copy[0] != page + 1000;
		}
		ioctl(fd, PIN_LONGTERM_TEST_STOP);
	}
	if (fd >= 0)
		close(fd);
	return NULL;
}

/* A child has the page tables as they are now; it reads, and goes away. */
static void *stress_fork(void *arg)
{
	struct tables_state *st = stress.st;
	int status;

	while (!stress_stopped()) {
		const pid_t parent = getpid();
		pid_t pid = fork();

		if (!pid) {
			unsigned long *from = word(st->src, st->size, 1);
			unsigned long *to = word(st->dst, st->size, 1);

			die_with_parent(parent);
			_exit(!(is_mapped((char *)from, 1) ? *from == 1001 :
							     *to == 1001));
		}
		if (pid < 0)
			break;
		if (waitpid(pid, &status, 0) != pid || status)
			stress.wrong++;
		stress.forks++;
	}
	return NULL;
}

static void ignore(int sig)
{
}

/*
 * Take STRESS_VICTIM offline while it is mapped, by MADV_SOFT_OFFLINE or by
 * MADV_HWPOISON. The latter sends SIGBUS to this thread.
 */
static void *stress_bad_memory(void *arg)
{
	struct tables_state *st = stress.st;
	struct report *report = st->report;
	unsigned int i;

	signal(SIGBUS, ignore);
	for (i = 0; !stress_stopped() &&
	     stress.offline + stress.poisoned < NR_BAD_PAGES &&
	     report->nr_bad < ARRAY_SIZE(report->bad); i++) {
		char *src = st->src + STRESS_VICTIM * st->size;
		char *dst = st->dst + STRESS_VICTIM * st->size;
		char *p = i % 2 ? src : dst;
		unsigned long pfn;

		madvise(p, st->size, MADV_POPULATE_WRITE);
		pfn = pagemap_get_pfn(st->pagemap, p);
		if (pfn == -1UL)
			continue;	/* It is at the other address. */
		report->bad[report->nr_bad++] = pfn;
		if (stress.poisoned < NR_BAD_PAGES / 2)
			stress.poisoned += !madvise(p, psize(), MADV_HWPOISON);
		else
			stress.offline += !madvise(p, psize(),
						   MADV_SOFT_OFFLINE);
		/* Neither the entry nor the file is to keep the bad page. */
		madvise(src, st->size, MADV_DONTNEED);
		madvise(dst, st->size, MADV_DONTNEED);
		if (st->variant->shared)
			fallocate(st->fd,
				  FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				  STRESS_VICTIM * st->size, st->size);
		usleep(1000 * 50);
	}
	return NULL;
}

/* Another process maps, touches and unmaps the file, and punches holes into it. */
static void stress_other(struct tables_state *st)
{
	const size_t len = st->nr * st->size;

	while (!__atomic_load_n(&st->report->stop, __ATOMIC_ACQUIRE)) {
		if (!st->variant->shared) {
			check_words(st->report, "in the other process",
				    st->src, st->size, st->nr, 1000);
			usleep(1000);
			continue;
		}
		map_file(st->report, st->elsewhere, len, PROT_READ | PROT_WRITE,
			 st->fd);
		check_words(st->report, "in the other process", st->elsewhere,
			    st->size, st->nr, 1000);
		fallocate(st->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			  STRESS_VICTIM * st->size, st->size);
		munmap(st->elsewhere, len);
	}
	_exit(KSFT_PASS);
}

static void stress_with(struct tables_state *st,
			void *(*const functions[])(void *), int nr_functions)
{
	pthread_t threads[3];
	struct timespec start, now;
	const pid_t parent = getpid();
	size_t len;
	int i, node;

	tables_map(st);
	len = st->nr * st->size;
	if (st->variant->other) {
		st->other = fork();
		if (st->other < 0)
			give_up(st->report, "fork(): %s", strerror(errno));
		if (!st->other) {
			die_with_parent(parent);
			stress_other(st);
		}
	}
	stress.st = st;
	for (node = 0; node < MAX_NODES && stress.nodes < 2; node++)
		if (node_has_memory(node))
			stress.mask[stress.nodes++][node / BITS_PER_LONG] |=
				1UL << node % BITS_PER_LONG;
	/*
	 * No hole may be there when the threads get their stacks, nor may they
	 * allocate memory once there is.
	 */
	for (i = 0; i < nr_functions; i++)
		if (pthread_create(&threads[i], NULL, functions[i], NULL))
			give_up(st->report, "pthread_create() failed");

	clock_gettime(CLOCK_MONOTONIC, &start);
	do {
		char *from = stress.moves % 2 ? st->dst : st->src;
		char *to = stress.moves % 2 ? st->src : st->dst;

		if (sys_mremap(from, len, len, MREMAP_MAYMOVE | MREMAP_FIXED,
			       to) != to)
			give_up(st->report, "mremap(): %s", strerror(errno));
		check_words(st->report, "after a move", to, st->size, st->nr,
			    1000);
		stress.moves++;
		clock_gettime(CLOCK_MONOTONIC, &now);
	} while (now.tv_sec - start.tv_sec <= STRESS_SECONDS);

	__atomic_store_n(&stress.stop, true, __ATOMIC_RELAXED);
	for (i = 0; i < nr_functions; i++)
		pthread_join(threads[i], NULL);
	if (stress.wrong)
		give_up(st->report, "%lu wrong, of %lu by GUP, %lu pinned and %lu forks",
			stress.wrong, stress.gups, stress.pins, stress.forks);
}

static void stress_tables(struct tables_state *st)
{
	void *(*const functions[])(void *) = {
		stress_gup, stress_migrate, stress_zap,
	};

	stress_with(st, functions, ARRAY_SIZE(functions));
	if (!stress.gups)
		give_up(st->report, "GUP found no page");
	finish(st->report, KSFT_PASS, "%lu moves, %lu pages found by GUP",
	       stress.moves, stress.gups);
}

static void stress_more(struct tables_state *st)
{
	void *(*const functions[])(void *) = {
		stress_pin, stress_fork, stress_bad_memory,
	};

	/* The last of them only where what it makes bad can be restored. */
	stress_with(st, functions, ARRAY_SIZE(functions) - !stress.bad_memory);
	if (!stress.forks)
		give_up(st->report, "there was no fork()");
	if (!stress.pins && !access("/sys/kernel/debug/gup_test", W_OK))
		give_up(st->report, "no page was pinned");
	finish(st->report, KSFT_PASS, "%lu moves, %lu pins, %lu forks, %lu offline, %lu failed",
	       stress.moves, stress.pins, stress.forks, stress.offline,
	       stress.poisoned);
}

static struct monitor {
	struct tables_state *st;
	int uffd;
	char *page;	/* what is missing */
	bool stop;
	unsigned long missing, minor, wp, remaps, failed;
} monitor;

static void answer_fault(struct uffd_msg *msg)
{
	const unsigned long size = monitor.st->size;
	const unsigned long addr = msg->arg.pagefault.address & -size;
	const __u64 flags = msg->arg.pagefault.flags;

	if (flags & UFFD_PAGEFAULT_FLAG_WP) {
		struct uffdio_writeprotect wp = {
			.range = { addr, size },
		};

		monitor.wp++;
		monitor.failed += !!ioctl(monitor.uffd, UFFDIO_WRITEPROTECT,
					  &wp);
	} else if (flags & UFFD_PAGEFAULT_FLAG_MINOR) {
		struct uffdio_continue cont = {
			.range = { addr, size },
		};

		monitor.minor++;
		monitor.failed += !!ioctl(monitor.uffd, UFFDIO_CONTINUE, &cont);
	} else {
		struct uffdio_copy copy = {
			.dst = addr,
			.src = (unsigned long)monitor.page,
			.len = size,
		};

		monitor.missing++;
		monitor.failed += !!ioctl(monitor.uffd, UFFDIO_COPY, &copy);
	}
}

static void *run_monitor(void *arg)
{
	struct pollfd pfd = { .fd = monitor.uffd, .events = POLLIN };
	struct uffd_msg msg;

	while (!__atomic_load_n(&monitor.stop, __ATOMIC_ACQUIRE)) {
		if (poll(&pfd, 1, 20) <= 0 ||
		    read(monitor.uffd, &msg, sizeof(msg)) != sizeof(msg))
			continue;
		if (msg.event == UFFD_EVENT_REMAP)
			monitor.remaps++;
		else if (msg.event == UFFD_EVENT_PAGEFAULT)
			answer_fault(&msg);
	}
	return NULL;
}

/* What causes a fault, and then how many there have been: in this order. */
static unsigned long touch(unsigned long *p)
{
	return __atomic_load_n(p, __ATOMIC_SEQ_CST);
}

static unsigned long faults(unsigned long *counter)
{
	return __atomic_load_n(counter, __ATOMIC_SEQ_CST);
}

static bool is_protected(struct tables_state *st, char *p, unsigned long page)
{
	return pagemap_get_entry(st->pagemap, p + page * st->size) & PM_UFFD_WP;
}

/* Register all, have a page protected, and start to listen. */
static void start_monitor(struct tables_state *st, pthread_t *thread)
{
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = UFFD_FEATURE_EVENT_REMAP |
			    UFFD_FEATURE_PAGEFAULT_FLAG_WP |
			    UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
			    UFFD_FEATURE_MINOR_HUGETLBFS,
	};
	struct uffdio_register reg = {
		.range = { (unsigned long)st->src, st->nr * st->size },
		.mode = UFFDIO_REGISTER_MODE_MISSING |
			UFFDIO_REGISTER_MODE_WP |
			(st->variant->shared ? UFFDIO_REGISTER_MODE_MINOR : 0),
	};
	struct uffdio_writeprotect wp = {
		.range = { (unsigned long)st->src + st->size, st->size },
		.mode = UFFDIO_WRITEPROTECT_MODE_WP,
	};

	monitor.st = st;
	monitor.page = mmap(NULL, st->size, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (monitor.page == MAP_FAILED)
		give_up(st->report, "mmap(): %s", strerror(errno));
	*word(monitor.page, st->size, 0) = 42;
	monitor.uffd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK |
			       UFFD_USER_MODE_ONLY);
	if (monitor.uffd < 0 || ioctl(monitor.uffd, UFFDIO_API, &api))
		finish(st->report, KSFT_SKIP, "skipped, no such userfaultfd: %s",
		       strerror(errno));
	if (ioctl(monitor.uffd, UFFDIO_REGISTER, &reg) ||
	    ioctl(monitor.uffd, UFFDIO_WRITEPROTECT, &wp))
		give_up(st->report, "userfaultfd: %s", strerror(errno));
	if (pthread_create(thread, NULL, run_monitor, NULL))
		give_up(st->report, "pthread_create() failed");
}

/* What a userfaultfd is there for goes on at the other address. */
static void monitored_tables(struct tables_state *st)
{
	pthread_t thread;
	size_t len;
	char *p;

	tables_map(st);
	len = st->nr * st->size;
	start_monitor(st, &thread);
	p = sys_mremap(st->src, len, len, MREMAP_MAYMOVE | MREMAP_FIXED,
		       st->dst);
	if (p != st->dst)
		give_up(st->report, "mremap(): %s", strerror(errno));
	expect_present(st, "after a move with a userfaultfd", p);
	check_words(st->report, "after the move", p, st->size, st->nr, 1000);

	if (!is_protected(st, p, 1) || is_protected(st, p, 0))
		give_up(st->report, "the protection of a page has not moved with it");
	*word(p, st->size, 0) = 1000;
	*word(p, st->size, 1) = 1001;
	if (faults(&monitor.wp) != 1 || is_protected(st, p, 1))
		give_up(st->report, "%lu faults of the protected page",
			monitor.wp);

	if (touch(word(p, st->size, FIRST_PROBE)) != 42 ||
	    faults(&monitor.missing) != 1)
		give_up(st->report, "%lu faults of the missing page",
			monitor.missing);

	if (st->variant->shared) {
		madvise(p, st->size, MADV_DONTNEED);
		if (touch(word(p, st->size, 0)) != 1000 ||
		    faults(&monitor.minor) != 1)
			give_up(st->report, "%lu faults of a page that is in the file",
				monitor.minor);
	}

	p = sys_mremap(st->dst, len, len, MREMAP_MAYMOVE | MREMAP_FIXED,
		       st->src);
	if (p != st->src)
		give_up(st->report, "mremap() back: %s", strerror(errno));
	check_words(st->report, "after the move back", p, st->size, st->nr,
		    1000);
	__atomic_store_n(&monitor.stop, true, __ATOMIC_RELEASE);
	pthread_join(thread, NULL);
	if (monitor.remaps != 2 || monitor.failed)
		give_up(st->report, "%lu events of moves, %lu faults that could not be answered",
			monitor.remaps, monitor.failed);
	finish(st->report, KSFT_PASS, "%lu faults answered",
	       monitor.wp + monitor.missing + monitor.minor);
}

static void tables_test(struct __test_metadata *_metadata,
			FIXTURE_DATA(tables) * self,
			const FIXTURE_VARIANT(tables) * variant,
			void (*run)(struct tables_state *st))
{
	int i, tested = 0;

	/* Reap the other process, too, if the first one fails. */
	prctl(PR_SET_CHILD_SUBREAPER, 1);

	for (i = 0; i < self->nr_sizes; i++) {
		struct tables_state st = {
			.variant = variant,
			.report = self->report,
			.size = self->sizes[i],
		};
		pid_t pid = fork_child(self->report);

		ASSERT_GE(pid, 0);
		if (!pid)
			run(&st);
		tested += child_has_run(_metadata, self->report, pid, st.size,
					"mremap of a page table");
		reap_orphans();
		restore_bad_pages(_metadata, self->report);
	}
	if (!tested)
		SKIP(return, "Not enough address space");
}

TEST_F_TIMEOUT(tables, move, 400)
{
	tables_test(_metadata, self, variant, move_tables);
}

TEST_F_TIMEOUT(tables, grow, 400)
{
	tables_test(_metadata, self, variant, grow_tables);
}

TEST_F_TIMEOUT(tables, grow_into_hole, 400)
{
	tables_test(_metadata, self, variant, grow_tables_into_hole);
}

TEST_F_TIMEOUT(tables, dontunmap, 400)
{
	tables_test(_metadata, self, variant, leave_tables);
}

TEST_F_TIMEOUT(tables, stress, 400)
{
	tables_test(_metadata, self, variant, stress_tables);
}

TEST_F_TIMEOUT(tables, stress_more, 400)
{
	stress.bad_memory = can_restore_bad_pages();
	if (!stress.bad_memory)
		ksft_print_msg("Not tested: bad memory, as it could not be restored\n");
	tables_test(_metadata, self, variant, stress_more);
}

TEST_F_TIMEOUT(tables, userfaultfd, 400)
{
	/* It keeps page tables from being shared. */
	if (variant->other)
		SKIP(return, "No other process needed");
	tables_test(_metadata, self, variant, monitored_tables);
}

TEST_F_TIMEOUT(tables, nth_allocation, 400)
{
	const char *reason = allow_injection();

	if (reason)
		SKIP(return, "%s", reason);
	tables_test(_metadata, self, variant, move_tables_with_failures);
}

TEST_HARNESS_MAIN
