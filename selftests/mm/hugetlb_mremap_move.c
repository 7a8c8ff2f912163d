// SPDX-License-Identifier: GPL-2.0
/*
 * Test what mremap() does to populated hugetlb mappings.
 *
 * All of it runs with every huge page size that is smaller than what a PUD
 * maps and of which enough pages can be had. A child process does what might
 * hang, because nobody can wait for it then.
 */

#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/memfd.h>
#include <linux/mempolicy.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "vm_util.h"
#include "hugepage_settings.h"

#define MAX_SIZES	8
#define HANG_SECONDS	40

/* Children report here: stdout would be kept open by one that hangs. */
struct report {
	char msg[512];
	unsigned int step;
	bool stop;
};

/* The main process restores the pools when it exits, whatever happens. */
static void __attribute__((constructor)) save_settings(void)
{
	hugetlb_save_settings();
}

static void *xmmap(void *addr, size_t len, int prot, int flags, int fd)
{
	void *p = mmap(addr, len, prot, flags, fd, 0);

	if (p == MAP_FAILED)
		ksft_exit_fail_msg("mmap() failed: %s\n", strerror(errno));
	return p;
}

/* What one entry of a PMD table and one entry of a PUD table can map. */
static unsigned long pmd_span(void)
{
	return psize() * (psize() / sizeof(uint64_t));
}

static unsigned long pud_span(void)
{
	return pmd_span() * (psize() / sizeof(uint64_t));
}

static unsigned long table_span(unsigned long size)
{
	return size < pmd_span() ? pmd_span() : pud_span();
}

/* The sizes of which @nr free pages can be had in at most @max bytes. */
static int usable_sizes(unsigned long *sizes, unsigned long nr,
			unsigned long max)
{
	unsigned long all[MAX_SIZES];
	int i, count = 0, nr_all = detect_hugetlb_page_sizes(all, MAX_SIZES);

	for (i = 0; i < nr_all; i++) {
		unsigned long free, total;

		if (all[i] >= pud_span() || all[i] > max / nr)
			continue;
		free = hugetlb_free_pages(all[i]);
		total = hugetlb_nr_pages(all[i]);
		if (free < nr)
			hugetlb_set_nr_pages(all[i], total + nr - free);
		if (hugetlb_free_pages(all[i]) >= nr)
			sizes[count++] = all[i];
	}
	return count;
}

static int hugetlb_memfd(unsigned long size)
{
	unsigned int shift = __builtin_ctzl(size);

	return memfd_create("hugetlb_mremap_move",
			    MFD_HUGETLB | (shift << MFD_HUGE_SHIFT));
}

static void __printf(2, 3)
give_up(struct report *report, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(report->msg, sizeof(report->msg), fmt, ap);
	va_end(ap);
	report->stop = true;
	_exit(KSFT_FAIL);
}

/* Fork a child that does not keep the files open that others wait for. */
static pid_t fork_child(void)
{
	pid_t pid = fork();

	if (!pid && (!freopen("/dev/null", "r", stdin) ||
		     !freopen("/dev/null", "w", stdout) ||
		     !freopen("/dev/null", "w", stderr)))
		_exit(KSFT_FAIL);
	return pid;
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
	kill(pid, SIGKILL);
	return false;
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

/* Another process has the table already, where it can be shared */
FIXTURE_VARIANT_ADD(populated, aligned_table_shared)
{
	.helper = true,
};

FIXTURE_VARIANT_ADD(populated, dst_offset_table_shared)
{
	.dst_offset = 1,
	.helper = true,
};

FIXTURE_SETUP(populated)
{
	self->nr_sizes = usable_sizes(self->sizes, 8, 512UL << 20);
	if (!self->nr_sizes)
		SKIP(return, "Less than 8 free huge pages of every size\n");
	self->report = xmmap(NULL, sizeof(*self->report),
			     PROT_READ | PROT_WRITE,
			     MAP_SHARED | MAP_ANONYMOUS, -1);
}

FIXTURE_TEARDOWN(populated)
{
}

static unsigned long *word(char *p, unsigned long size, unsigned long page)
{
	return (unsigned long *)(p + page * size + size / 2);
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

static void wait_step(struct report *report, unsigned int step)
{
	while (__atomic_load_n(&report->step, __ATOMIC_ACQUIRE) != step) {
		/* The other process has given up, or hangs. */
		if (__atomic_load_n(&report->stop, __ATOMIC_ACQUIRE))
			_exit(KSFT_FAIL);
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
	xmmap(p, nr * size, PROT_READ | PROT_WRITE,
	      MAP_SHARED | MAP_NORESERVE | MAP_FIXED, fd);
	check_words(report, "in the other process", p, size, nr, 1000);
	set_step(report, 1);
	wait_step(report, 2);
	check_words(report, "in the other process after the move", p, size,
		    nr, 2000);
	set_words(p, size, nr, 3000);
	set_step(report, 3);
	wait_step(report, 4);
	_exit(KSFT_PASS);
}

static void move_and_return(const FIXTURE_VARIANT(populated) * v,
			    struct report *report, unsigned long size)
{
	unsigned long span = table_span(size);
	unsigned long nr = span / size - v->less;
	int fd = hugetlb_memfd(size);
	char *arena, *src, *dst, *p;

	if (fd < 0)
		give_up(report, "memfd_create(): %s", strerror(errno));

	arena = xmmap(NULL, 10 * span, PROT_NONE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
	arena = (char *)(((unsigned long)arena + span - 1) & -span);
	src = arena + v->src_offset * size;
	dst = arena + 3 * span + v->dst_offset * size;

	xmmap(src, nr * size, PROT_READ | PROT_WRITE,
	      MAP_SHARED | MAP_NORESERVE | MAP_FIXED, fd);
	set_words(src, size, nr, 1000);

	if (v->helper) {
		pid_t pid = fork();

		if (pid < 0)
			give_up(report, "fork(): %s", strerror(errno));
		if (!pid)
			helper(report, arena + 6 * span, size, nr, fd);
		wait_step(report, 1);
	}

	p = sys_mremap(src, nr * size, nr * size, MREMAP_MAYMOVE | MREMAP_FIXED,
		       dst);
	if (p != dst)
		give_up(report, "mremap(): %s", strerror(errno));
	check_words(report, "after the move", dst, size, nr, 1000);
	set_words(dst, size, nr, 2000);

	if (v->helper) {
		set_step(report, 2);
		wait_step(report, 3);
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
	xmmap(dst, nr * size, PROT_READ, MAP_SHARED | MAP_NORESERVE | MAP_FIXED,
	      fd);
	check_words(report, "in the file", dst, size, nr, 4000);
	set_step(report, 4);
	_exit(KSFT_PASS);
}

/*
 * Both moves may end up in page tables that another process could share: where
 * destination and file offset are aligned to what a page table maps.
 */
TEST_F_TIMEOUT(populated, shared, 400)
{
	int i;

	for (i = 0; i < self->nr_sizes; i++) {
		unsigned long size = self->sizes[i];
		int status;
		pid_t pid;

		memset(self->report, 0, sizeof(*self->report));
		pid = fork_child();
		ASSERT_GE(pid, 0);
		if (!pid)
			move_and_return(variant, self->report, size);

		if (!wait_child(pid, &status)) {
			self->report->stop = true;
			TH_LOG("mremap of a populated shared mapping of %lu kB pages hung",
			       size >> 10);
			_metadata->exit_code = KSFT_FAIL;
			return;
		}
		if (!WIFEXITED(status) || WEXITSTATUS(status))
			TH_LOG("%lu kB pages: %s", size >> 10,
			       self->report->msg);
		ASSERT_TRUE(WIFEXITED(status));
		ASSERT_EQ(WEXITSTATUS(status), KSFT_PASS);
	}
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
	char cgroup_root[64];
	char cgroup[128];
	bool cgroup_mounted;
	bool cgroup_enabled;
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
		SKIP(return, "Less than %d free huge pages of every size\n",
		     NR_PRIVATE);
	self->report = xmmap(NULL, sizeof(*self->report),
			     PROT_READ | PROT_WRITE,
			     MAP_SHARED | MAP_ANONYMOUS, -1);
}

static void cgroup_write(const char *dir, const char *file, const char *val)
{
	char path[PATH_MAX];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", dir, file);
	fd = open(path, O_WRONLY);
	if (fd < 0)
		return;
	if (write(fd, val, strlen(val)) < 0)
		ksft_print_msg("Cannot write %s to %s: %s\n", val, path,
			       strerror(errno));
	close(fd);
}

static bool cgroup_lists(const char *dir, const char *file, const char *what)
{
	char path[PATH_MAX], buf[512];

	snprintf(path, sizeof(path), "%s/%s", dir, file);
	return read_file(path, buf, sizeof(buf)) && strstr(buf, what);
}

static void rsvd_path(char *path, size_t len, const char *cgroup,
		      unsigned long size)
{
	const char *unit = "KB";
	unsigned long n = size >> 10;

	if (size >= 1UL << 30) {
		unit = "GB";
		n >>= 20;
	} else if (size >= 1UL << 20) {
		unit = "MB";
		n >>= 10;
	}
	snprintf(path, len, "%s/hugetlb.%lu%s.rsvd.current", cgroup, n, unit);
}

/* Returns why there is no cgroup to be had, or NULL. */
static const char *make_cgroup(FIXTURE_DATA(partial) * self)
{
	char line[512], dir[64], type[32], path[PATH_MAX];
	FILE *f = fopen("/proc/mounts", "r");

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "%*s %63s %31s", dir, type) == 2 &&
		    !strcmp(type, "cgroup2")) {
			strcpy(self->cgroup_root, dir);
			break;
		}
	if (f)
		fclose(f);

	if (!self->cgroup_root[0]) {
		strcpy(dir, "/tmp/hugetlb_mremap_XXXXXX");
		if (!mkdtemp(dir))
			return "no directory to mount cgroup2 at";
		strcpy(self->cgroup_root, dir);
		if (mount("none", dir, "cgroup2", 0, NULL)) {
			rmdir(dir);
			self->cgroup_root[0] = '\0';
			return "cgroup2 cannot be mounted";
		}
		self->cgroup_mounted = true;
	}
	if (!cgroup_lists(self->cgroup_root, "cgroup.controllers", "hugetlb"))
		return "cgroup2 has no hugetlb controller";
	if (!cgroup_lists(self->cgroup_root, "cgroup.subtree_control",
			  "hugetlb")) {
		cgroup_write(self->cgroup_root, "cgroup.subtree_control",
			     "+hugetlb");
		self->cgroup_enabled = true;
	}
	snprintf(self->cgroup, sizeof(self->cgroup), "%s/hugetlb_mremap_%d",
		 self->cgroup_root, getpid());
	if (mkdir(self->cgroup, 0755)) {
		self->cgroup[0] = '\0';
		return "a cgroup cannot be made";
	}
	rsvd_path(path, sizeof(path), self->cgroup, self->sizes[0]);
	if (access(path, R_OK))
		return "the hugetlb controller does not count reservations";
	return NULL;
}

FIXTURE_TEARDOWN(partial)
{
	if (self->cgroup[0])
		rmdir(self->cgroup);
	if (self->cgroup_enabled)
		cgroup_write(self->cgroup_root, "cgroup.subtree_control",
			     "-hugetlb");
	if (self->cgroup_mounted) {
		umount(self->cgroup_root);
		rmdir(self->cgroup_root);
	}
}

static unsigned long reserved_pages(unsigned long size)
{
	char path[PATH_MAX];

	snprintf(path, sizeof(path),
		 "/sys/kernel/mm/hugepages/hugepages-%lukB/resv_hugepages",
		 size >> 10);
	return read_num(path);
}

static sigjmp_buf sigbus_env;

static void sigbus_handler(int sig)
{
	siglongjmp(sigbus_env, 1);
}

struct partial_state {
	const char *cgroup;
	struct report *report;
	unsigned long size;
	unsigned long rsvd;	/* before the test */
	char *page[NR_PRIVATE];	/* where each of the pages is */
	unsigned int touched;
};

static void expect_reserved(struct partial_state *st, const char *when,
			    unsigned int pages)
{
	unsigned long rsvd = reserved_pages(st->size) - st->rsvd;

	if (rsvd != pages)
		give_up(st->report, "HugePages_Rsvd is %lu %s, expected %u",
			rsvd, when, pages);
}

/* Charged is what is mapped, touched or not. */
static void expect_charged(struct partial_state *st, const char *when,
			   unsigned int pages)
{
	char path[PATH_MAX];
	unsigned long val;

	if (!st->cgroup)
		return;
	rsvd_path(path, sizeof(path), st->cgroup, st->size);
	val = read_num(path);
	if (val != pages * st->size)
		give_up(st->report, "hugetlb rsvd.current is %lu kB %s, expected %lu",
			val >> 10, when, pages * st->size >> 10);
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

/* Look at what has been written, and write to all the rest. */
static void touch_page(struct partial_state *st, unsigned int i)
{
	unsigned long expected = st->touched & (1U << i) ? i + 1 : 0;
	unsigned long *p = (unsigned long *)st->page[i];

	if (sigsetjmp(sigbus_env, 1))
		give_up(st->report, "page %u of a reserved mapping: SIGBUS", i);
	if (*p != expected)
		give_up(st->report, "page %u has lost its contents", i);
	*p = i + 100;
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
	char *arena, *src, *dst, *third;
	unsigned int i, left;
	int fd = -1;

	signal(SIGBUS, sigbus_handler);
	if (st->cgroup)
		cgroup_write(st->cgroup, "cgroup.procs", "0");

	arena = xmmap(NULL, 4 * len, PROT_NONE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
	src = (char *)(((unsigned long)arena + st->size - 1) & -st->size);
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
			*(unsigned long *)st->page[i] = i + 1;
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
	unsigned long in_use, nr, rsvd;
	char path[PATH_MAX];
	int i, status;
	pid_t pid;

	for (i = 0; i < self->nr_sizes; i++) {
		struct partial_state st = {
			.report = self->report,
			.size = self->sizes[i],
			.cgroup = after == CHARGE ? self->cgroup : NULL,
		};

		/* Not one more page than is needed, if nobody else interferes */
		st.rsvd = reserved_pages(st.size);
		in_use = hugetlb_nr_pages(st.size) -
			 hugetlb_free_pages(st.size) + st.rsvd;
		hugetlb_set_nr_pages(st.size, in_use + NR_PRIVATE);

		memset(self->report, 0, sizeof(*self->report));
		pid = fork_child();
		ASSERT_GE(pid, 0);
		if (!pid)
			move_part(variant, &st, after);
		ASSERT_TRUE(wait_child(pid, &status)) {
			TH_LOG("%lu kB pages: hung", st.size >> 10);
		}

		EXPECT_TRUE(WIFEXITED(status) && !WEXITSTATUS(status)) {
			TH_LOG("%lu kB pages: %s", st.size >> 10,
			       self->report->msg);
		}

		rsvd = reserved_pages(st.size);
		EXPECT_EQ(rsvd, st.rsvd) {
			TH_LOG("%lu kB pages: %ld reservations leaked",
			       st.size >> 10, (long)(rsvd - st.rsvd));
		}
		if (st.cgroup) {
			rsvd_path(path, sizeof(path), st.cgroup, st.size);
			EXPECT_EQ(read_num(path), 0) {
				TH_LOG("%lu kB pages: rsvd.current is still charged",
				       st.size >> 10);
			}
		}
		hugetlb_set_nr_pages(st.size, 0);
		nr = hugetlb_nr_pages(st.size);
		EXPECT_EQ(nr, in_use) {
			TH_LOG("%lu kB pages: the pool does not shrink below %lu",
			       st.size >> 10, nr);
		}
	}
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
	const char *reason = make_cgroup(self);

	if (reason)
		SKIP(return, "%s\n", reason);
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
		SKIP(return, "Addresses have 32 bits\n");
	self->nr_sizes = usable_sizes(self->sizes, 8, 512UL << 20);
	if (!self->nr_sizes)
		SKIP(return, "Less than 8 free huge pages of every size\n");
	self->report = xmmap(NULL, sizeof(*self->report),
			     PROT_READ | PROT_WRITE,
			     MAP_SHARED | MAP_ANONYMOUS, -1);
}

FIXTURE_TEARDOWN(large)
{
}

static void move_large(struct report *report, int flags, unsigned long size,
		       unsigned long gigabytes)
{
	unsigned long len = gigabytes << 30, nr = len / size;
	char *arena, *src, *dst, *p;
	unsigned long pages[8];
	int i, count, err;

	flags |= MAP_ANONYMOUS | MAP_NORESERVE;
	arena = xmmap(NULL, 2 * len + size, PROT_NONE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
	src = (char *)(((unsigned long)arena + size - 1) & -size);
	dst = src + len;

	p = mmap(src, len, PROT_READ | PROT_WRITE,
		 flags | MAP_FIXED | MAP_HUGETLB |
		 __builtin_ctzl(size) << MAP_HUGE_SHIFT, -1, 0);
	if (p != src)
		give_up(report, "mmap() of %lu GB: %s", gigabytes,
			strerror(errno));
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
			give_up(report, "mremap() of %lu GB: %s, and page %lu of %lu is lost",
				gigabytes, strerror(err), pages[i], nr);
	give_up(report, "mremap() of %lu GB: %s", gigabytes, strerror(err));
}

TEST_F_TIMEOUT(large, move, 400)
{
	static const unsigned int gigabytes[] = { 2, 4, 5, 6 };
	unsigned int i, j;

	for (i = 0; i < self->nr_sizes; i++) {
		for (j = 0; j < ARRAY_SIZE(gigabytes); j++) {
			unsigned long size = self->sizes[i];
			int status;
			pid_t pid;

			if (gigabytes[j] << (30 - 20) < 16 * (size >> 20))
				continue;
			memset(self->report, 0, sizeof(*self->report));
			pid = fork_child();
			ASSERT_GE(pid, 0);
			if (!pid)
				move_large(self->report, variant->flags, size,
					   gigabytes[j]);
			ASSERT_TRUE(wait_child(pid, &status)) {
				TH_LOG("%lu kB pages: hung", size >> 10);
			}
			EXPECT_TRUE(WIFEXITED(status) && !WEXITSTATUS(status)) {
				TH_LOG("%lu kB pages: %s", size >> 10,
				       self->report->msg);
			}
		}
	}
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
		SKIP(return, "Less than two NUMA nodes with memory\n");

	/* Pages to migrate to are needed as well, on each of the nodes. */
	self->nr_sizes = usable_sizes(self->sizes, 3 * NR_RACE, 1UL << 30);
	if (!self->nr_sizes)
		SKIP(return, "Less than %d free huge pages of every size\n",
		     3 * NR_RACE);
	self->report = xmmap(NULL, sizeof(*self->report),
			     PROT_READ | PROT_WRITE,
			     MAP_SHARED | MAP_ANONYMOUS, -1);
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
	int status[2 * NR_RACE];
	unsigned int i, to = 0;

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
		for (i = 0; i < 2 * NR_RACE; i++)
			if (status[i] == race.nodes[to])
				race.migrated++;
	}
	return NULL;
}

static void race_move(struct report *report, unsigned long size,
		      const int *nodes)
{
	const unsigned long len = NR_RACE * size;
	unsigned long span = 2 * table_span(size);
	pthread_t writer, migrator;
	struct timespec start, now;
	unsigned int i;
	char *arena;

	/*
	 * In different page tables, and far apart. No hole may be there when
	 * the threads get their stacks.
	 */
	arena = xmmap(NULL, 2 * span + len, PROT_NONE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
	race.addr[0] = (char *)(((unsigned long)arena + size - 1) & -size);
	race.addr[1] = race.addr[0] + span;
	race.size = size;
	memcpy(race.nodes, nodes, sizeof(race.nodes));

	if (mmap(race.addr[0], len, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS | MAP_HUGETLB |
		 __builtin_ctzl(size) << MAP_HUGE_SHIFT, -1, 0) != race.addr[0])
		give_up(report, "mmap(): %s", strerror(errno));
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
	_exit(race.lost ? KSFT_FAIL : KSFT_PASS);
}

/* Private memory is written by one thread, moved by one, migrated by another */
TEST_F_TIMEOUT(race, migration, 400)
{
	int i;

	for (i = 0; i < self->nr_sizes; i++) {
		int status;
		pid_t pid;

		memset(self->report, 0, sizeof(*self->report));
		pid = fork_child();
		ASSERT_GE(pid, 0);
		if (!pid)
			race_move(self->report, self->sizes[i], self->nodes);
		ASSERT_TRUE(wait_child(pid, &status)) {
			TH_LOG("%lu kB pages: hung", self->sizes[i] >> 10);
		}
		TH_LOG("%lu kB pages: %s", self->sizes[i] >> 10,
		       self->report->msg);
		EXPECT_FALSE(WIFSIGNALED(status)) {
			TH_LOG("killed by signal %d", WTERMSIG(status));
		}
		EXPECT_EQ(WEXITSTATUS(status), KSFT_PASS);
	}
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
	self->nr_sizes = usable_sizes(self->sizes, 4, 512UL << 20);
	if (!self->nr_sizes)
		SKIP(return, "Less than 4 free huge pages of every size\n");
}

FIXTURE_TEARDOWN(shrink)
{
}

static char *map_huge(char *addr, unsigned long len, unsigned long size)
{
	return xmmap(addr, len, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_HUGETLB |
		     __builtin_ctzl(size) << MAP_HUGE_SHIFT, -1);
}

static bool is_mapped(char *addr, unsigned long len)
{
	return !msync(addr, len, MS_ASYNC);
}

/* None of the pages is mapped: not the same as not all of them are. */
static bool is_unmapped(char *addr, unsigned long len)
{
	unsigned long i;

	for (i = 0; i < len; i += psize())
		if (is_mapped(addr + i, psize()))
			return false;
	return true;
}

static void shrink_arena(FIXTURE_DATA(shrink) * self, unsigned long size)
{
	char *arena = xmmap(NULL, 9 * size, PROT_NONE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);

	self->size = size;
	self->p = (char *)(((unsigned long)arena + size - 1) & -size);
	self->elsewhere = self->p + 5 * size;
	munmap(self->p, 8 * size);
}

/* What comes after the mapping loses as much as the caller said, not more. */
static void neighbour_test(struct __test_metadata *_metadata,
			   FIXTURE_DATA(shrink) * self, bool move)
{
	const unsigned long size = self->size;
	char *p = map_huge(self->p, size, size), *next = p + size;
	char *dst = move ? self->elsewhere : p;

	xmmap(next, size, PROT_READ | PROT_WRITE,
	      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1);
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
	int i;

	for (i = 0; i < self->nr_sizes; i++) {
		shrink_arena(self, self->sizes[i]);
		neighbour_test(_metadata, self, false);
	}
}

TEST_F(shrink, neighbour_and_move)
{
	int i;

	for (i = 0; i < self->nr_sizes; i++) {
		shrink_arena(self, self->sizes[i]);
		neighbour_test(_metadata, self, true);
	}
}

/* No part of a huge page can be unmapped: munmap() does not do it either. */
TEST_F(shrink, neighbour_is_hugetlb)
{
	int i;

	for (i = 0; i < self->nr_sizes; i++) {
		unsigned long size = self->sizes[i];
		char *p, *next;

		shrink_arena(self, size);
		p = map_huge(self->p, size, size);
		next = map_huge(p + size, size, size);
		*next = 2;
		EXPECT_EQ(sys_mremap(p, size + psize(), size, 0, NULL),
			  MAP_FAILED) {
			TH_LOG("mremap() of %lu kB pages unmapped part of the next mapping",
			       size >> 10);
		}
		ASSERT_TRUE(is_mapped(next, size));
		EXPECT_EQ(*next, 2);
		EXPECT_TRUE(is_mapped(p, size));

		/* This does name all of it. */
		EXPECT_EQ(sys_mremap(p, 2 * size, size, 0, NULL), p);
		EXPECT_TRUE(is_unmapped(next, size));
		munmap(p, size);
	}
}

/* mmap() has rounded up the length, so the same has to go away. */
TEST_F(shrink, own_page)
{
	int i;

	for (i = 0; i < self->nr_sizes; i++) {
		unsigned long size = self->sizes[i];
		char *p;

		shrink_arena(self, size);
		p = map_huge(self->p, size + psize(), size);
		ASSERT_TRUE(is_mapped(p, 2 * size));
		memset(p, 1, 2 * size);
		EXPECT_EQ(sys_mremap(p, size + psize(), size, 0, NULL), p);
		EXPECT_TRUE(is_unmapped(p + size, size));
		EXPECT_TRUE(is_mapped(p, size));
		munmap(p, size);
	}
}

/* As above, but mprotect() has made two VMAs of it. */
TEST_F(shrink, own_page_split)
{
	int i;

	for (i = 0; i < self->nr_sizes; i++) {
		unsigned long size = self->sizes[i];
		char *p;

		shrink_arena(self, size);
		p = map_huge(self->p, size + psize(), size);
		ASSERT_EQ(mprotect(p + size, size, PROT_READ), 0);
		EXPECT_EQ(sys_mremap(p, size + psize(), size, 0, NULL), p);
		EXPECT_TRUE(is_unmapped(p + size, size));
		EXPECT_TRUE(is_mapped(p, size));
		munmap(p, size);
	}
}

/* Lengths that are the same when rounded up change nothing. */
TEST_F(shrink, same_length)
{
	int i;

	for (i = 0; i < self->nr_sizes; i++) {
		unsigned long size = self->sizes[i];
		char *p;

		shrink_arena(self, size);
		p = map_huge(self->p, size, size);
		xmmap(p + size, size, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1);
		EXPECT_EQ(sys_mremap(p, size, psize(), 0, NULL), p);
		EXPECT_EQ(sys_mremap(p, size + 2 * psize(), size + psize(), 0,
				     NULL), p);
		EXPECT_TRUE(is_mapped(p, 2 * size));
		munmap(p, 2 * size);
	}
}

static const struct {
	const char *path;
	const char *val;
} fault_attrs[] = {
	{ "/sys/kernel/debug/failslab/ignore-gfp-wait", "N" },
	{ "/sys/kernel/debug/failslab/verbose", "0" },
	{ "/sys/kernel/debug/fail_page_alloc/ignore-gfp-wait", "N" },
	{ "/sys/kernel/debug/fail_page_alloc/ignore-gfp-highmem", "N" },
	{ "/sys/kernel/debug/fail_page_alloc/min-order", "0" },
	{ "/sys/kernel/debug/fail_page_alloc/verbose", "0" },
};

FIXTURE(failure)
{
	unsigned long sizes[MAX_SIZES];
	struct report *report;
	int nr_sizes;
	bool changed;
	char saved[ARRAY_SIZE(fault_attrs)][32];
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
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(fault_attrs); i++)
		if (!read_file(fault_attrs[i].path, self->saved[i],
			       sizeof(self->saved[i])))
			SKIP(return, "Allocation failures cannot be injected\n");
	if (access("/proc/thread-self/fail-nth", W_OK))
		SKIP(return, "No fail-nth\n");
	self->nr_sizes = usable_sizes(self->sizes, NR_PRIVATE, 512UL << 20);
	if (!self->nr_sizes)
		SKIP(return, "Less than %d free huge pages of every size\n",
		     NR_PRIVATE);
	self->report = xmmap(NULL, sizeof(*self->report),
			     PROT_READ | PROT_WRITE,
			     MAP_SHARED | MAP_ANONYMOUS, -1);
	self->changed = true;
	for (i = 0; i < ARRAY_SIZE(fault_attrs); i++)
		write_file(fault_attrs[i].path, fault_attrs[i].val,
			   strlen(fault_attrs[i].val) + 1);
}

FIXTURE_TEARDOWN(failure)
{
	unsigned int i;

	for (i = 0; self->changed && i < ARRAY_SIZE(fault_attrs); i++)
		write_file(fault_attrs[i].path, self->saved[i],
			   strlen(self->saved[i]) + 1);
}

/* Have each of the allocations fail in turn. */
static void move_with_failures(const FIXTURE_VARIANT(failure) * v,
			       struct partial_state *st)
{
	const unsigned long size = st->size, span = table_span(size);
	const unsigned long len = v->count * size;
	unsigned int nth, i, left;
	char *arena, *src, *dst;
	bool moved = false;

	signal(SIGBUS, sigbus_handler);
	arena = xmmap(NULL, 5 * span, PROT_NONE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
	/* Half of the pages go to one page table, half of them to another. */
	src = (char *)(((unsigned long)arena + span - 1) & -span);
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
			*(unsigned long *)st->page[i] = i + 1;
	}
	left = untouched(st, 0, NR_PRIVATE);

	for (nth = 1; !moved; nth++) {
		char buf[16], *p, *from = st->page[v->first];
		int fd, n, err, unused;

		fd = open("/proc/thread-self/fail-nth", O_RDWR);
		if (fd < 0)
			give_up(st->report, "fail-nth: %s", strerror(errno));
		n = snprintf(buf, sizeof(buf), "%u", nth);
		if (write(fd, buf, n) != n)
			give_up(st->report, "fail-nth: %s", strerror(errno));
		p = sys_mremap(from, len, len, MREMAP_MAYMOVE | MREMAP_FIXED,
			       dst);
		err = errno;
		n = pread(fd, buf, sizeof(buf) - 1, 0);
		buf[n > 0 ? n : 0] = '\0';
		unused = atoi(buf);
		if (unused && write(fd, "0", 1) != 1)
			give_up(st->report, "fail-nth: %s", strerror(errno));
		close(fd);

		if (p == dst && unused) {
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
		} else if (unused) {
			give_up(st->report, "mremap(): %s", strerror(err));
		}
		expect_reserved(st, "after failure of an allocation", left);
		for (i = 0; i < NR_PRIVATE; i++)
			if (st->touched & (1U << i) &&
			    *(unsigned long *)st->page[i] != i + 1)
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

/* A move that fails must leave everything where it was. */
TEST_F_TIMEOUT(failure, nth_allocation, 400)
{
	int i, status;
	pid_t pid;

	for (i = 0; i < self->nr_sizes; i++) {
		struct partial_state st = {
			.report = self->report,
			.size = self->sizes[i],
			.rsvd = reserved_pages(self->sizes[i]),
		};

		memset(self->report, 0, sizeof(*self->report));
		pid = fork_child();
		ASSERT_GE(pid, 0);
		if (!pid)
			move_with_failures(variant, &st);
		ASSERT_TRUE(wait_child(pid, &status)) {
			TH_LOG("%lu kB pages: hung", st.size >> 10);
		}
		TH_LOG("%lu kB pages: %s", st.size >> 10, self->report->msg);
		EXPECT_TRUE(WIFEXITED(status) && !WEXITSTATUS(status));
		EXPECT_EQ(reserved_pages(st.size), st.rsvd) {
			TH_LOG("%lu kB pages: reservations leaked",
			       st.size >> 10);
		}
	}
}

TEST_HARNESS_MAIN
