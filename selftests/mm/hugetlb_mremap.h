/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What tests of mremap() with hugetlb mappings share: sizes and pools of huge
 * pages, children that may hang, a control group, and allocations that fail.
 */

#ifndef __HUGETLB_MREMAP_H__
#define __HUGETLB_MREMAP_H__

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/memfd.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include "kselftest_harness.h"
#include "vm_util.h"
#include "hugepage_settings.h"

#define MAX_SIZES	8
#define HANG_SECONDS	40
#define MAX_NODES	1024
#define BITS_PER_LONG	(8 * (int)sizeof(long))

/* The main process restores the pools when it exits, whatever happens. */
static void __attribute__((constructor)) save_settings(void)
{
	hugetlb_save_settings();
}

/* What one entry of a PMD table and one entry of a PUD table can map. */
static inline unsigned long pmd_span(void)
{
	return psize() * (psize() / sizeof(uint64_t));
}

static inline unsigned long pud_span(void)
{
	return pmd_span() * (psize() / sizeof(uint64_t));
}

static inline void pool_path(char *path, size_t len, unsigned long size,
			     const char *name)
{
	snprintf(path, len, "/sys/kernel/mm/hugepages/hugepages-%lukB/%s",
		 size >> 10, name);
}

/* Children must not exit as read_num() does: that would restore the pools. */
static inline long number_in(const char *path)
{
	char buf[32];

	return read_file(path, buf, sizeof(buf)) ? atol(buf) : -1;
}

static inline long pool_number(unsigned long size, const char *name)
{
	char path[PATH_MAX];

	pool_path(path, sizeof(path), size, name);
	return number_in(path);
}

static inline long available_pages(unsigned long size)
{
	return pool_number(size, "free_hugepages") -
		pool_number(size, "resv_hugepages");
}

static inline bool resize_pool(unsigned long size, unsigned long nr)
{
	char path[PATH_MAX];

	pool_path(path, sizeof(path), size, "nr_hugepages");
	if (access(path, W_OK))
		return false;
	hugetlb_set_nr_pages(size, nr);
	return true;
}

/*
 * The sizes of which @nr pages can be had in at most @max bytes, neither in use
 * nor reserved by others.
 */
static inline int usable_sizes(unsigned long *sizes, unsigned long nr,
			       unsigned long max)
{
	unsigned long all[MAX_SIZES];
	int i, count = 0, nr_all = detect_hugetlb_page_sizes(all, MAX_SIZES);

	for (i = 0; i < nr_all; i++) {
		long available;

		if (all[i] >= pud_span()) {
			ksft_print_msg("Skip %lu kB pages: no smaller than what a PUD maps\n",
				       all[i] >> 10);
			continue;
		}
		if (all[i] > max / nr) {
			ksft_print_msg("Skip %lu kB pages: %lu of them are more than %lu MB\n",
				       all[i] >> 10, nr, max >> 20);
			continue;
		}
		available = available_pages(all[i]);
		if (available < (long)nr) {
			resize_pool(all[i], hugetlb_nr_pages(all[i]) + nr -
				    available);
			available = available_pages(all[i]);
		}
		if (available < (long)nr) {
			ksft_print_msg("Skip %lu kB pages: %ld available of %lu\n",
				       all[i] >> 10, available, nr);
			continue;
		}
		sizes[count++] = all[i];
	}
	return count;
}

static inline int hugetlb_memfd(unsigned long size)
{
	unsigned int shift = __builtin_ctzl(size);

	return memfd_create("hugetlb_mremap", MFD_ALLOW_SEALING |
			    MFD_HUGETLB | (shift << MFD_HUGE_SHIFT));
}

static inline unsigned long *word(char *p, unsigned long size,
				  unsigned long page)
{
	return (unsigned long *)(p + page * size + size / 2);
}

static inline char *map_memory(struct __test_metadata *_metadata, char *addr,
			       unsigned long len, int flags)
{
	char *p = mmap(addr, len, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | flags, -1, 0);

	ASSERT_NE(p, MAP_FAILED);
	return p;
}

static inline bool is_mapped(char *addr, unsigned long len)
{
	return !msync(addr, len, MS_ASYNC);
}

/*
 * For system calls of mremap() with neither MREMAP_FIXED nor MREMAP_DONTUNMAP:
 * they have four arguments, and whatever the register of the fifth contains.
 */
#define NO_NEW_ADDR	((char *)0x5a5a5a5bUL)

/* None of the pages is mapped: not the same as not all of them are. */
static inline bool is_unmapped(char *addr, unsigned long len)
{
	unsigned long i;

	for (i = 0; i < len; i += psize())
		if (is_mapped(addr + i, psize()))
			return false;
	return true;
}

/* Children report here: stdout would be kept open by one that hangs. */
struct report {
	char msg[512];
	unsigned int step;
	bool stop;
	/* Pages whose memory was said to have failed */
	unsigned int nr_bad;
	unsigned long bad[64];
};

static inline struct report *new_report(void)
{
	return mmap(NULL, sizeof(struct report), PROT_READ | PROT_WRITE,
		    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}

/* For children, which must not exit like the main process does. */
static inline void __printf(3, 4) __noreturn
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
static inline char *reserve_arena(struct report *report, unsigned long long len,
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

static inline void map_file(struct report *report, char *addr, size_t len,
			    int prot, int fd)
{
	if (mmap(addr, len, prot, MAP_SHARED | MAP_NORESERVE | MAP_FIXED, fd,
		 0) != addr)
		give_up(report, "mmap() of a file: %s", strerror(errno));
}

/* A child is not to outlive its parent, whatever becomes of that. */
static inline void die_with_parent(pid_t parent)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(KSFT_FAIL);
}

/* Fork a child that does not keep the files open that others wait for. */
static inline pid_t fork_child(struct report *report)
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
static inline bool wait_child(pid_t pid, int *status)
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
static inline void reap_orphans(void)
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
static inline bool child_has_run(struct __test_metadata *_metadata,
				 struct report *report, pid_t pid,
				 unsigned long size, const char *what)
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

/* Enough entries to have some in every table, and neighbours at their ends. */
static inline int pages_to_use(unsigned long *pages, unsigned long nr)
{
	const unsigned long want[] = { 0, 1, nr / 2, nr / 2 + 1, nr - 3,
				       nr - 2, nr - 1 };
	unsigned int i, count = 0;

	for (i = 0; i < ARRAY_SIZE(want); i++)
		if (want[i] < nr && (!count || want[i] > pages[count - 1]))
			pages[count++] = want[i];
	return count;
}

static inline void set_words(char *p, unsigned long size, unsigned long nr,
			     unsigned long salt)
{
	unsigned long pages[8];
	int i, count = pages_to_use(pages, nr);

	for (i = 0; i < count; i++)
		*word(p, size, pages[i]) = pages[i] + salt;
}

static inline void check_words(struct report *report, const char *when, char *p,
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

static inline void wait_step(struct report *report, unsigned int step,
			     pid_t peer)
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

static inline void set_step(struct report *report, unsigned int step)
{
	__atomic_store_n(&report->step, step, __ATOMIC_RELEASE);
}

static inline bool node_has_memory(int node)
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

/* A control group of its own for a test, for the limits of the hugetlb one. */
struct test_cgroup {
	char root[64];
	char path[128];
	bool enabled;
};

static inline bool cgroup_write(const char *dir, const char *file,
				const char *val)
{
	char path[PATH_MAX];
	bool written;
	int fd;

	snprintf(path, sizeof(path), "%s/%s", dir, file);
	fd = open(path, O_WRONLY);
	if (fd < 0)
		return false;
	written = write(fd, val, strlen(val)) > 0;
	close(fd);
	return written;
}

static inline bool cgroup_lists(const char *dir, const char *file,
				const char *what)
{
	char path[PATH_MAX], buf[512];

	snprintf(path, sizeof(path), "%s/%s", dir, file);
	return read_file(path, buf, sizeof(buf)) && strstr(buf, what);
}

static inline void rsvd_path(char *path, size_t len, const char *cgroup,
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
static inline const char *make_cgroup(struct test_cgroup *cgroup,
				      unsigned long size)
{
	char line[512], dir[64], type[32], path[PATH_MAX];
	FILE *f = fopen("/proc/mounts", "r");

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "%*s %63s %31s", dir, type) == 2 &&
		    !strcmp(type, "cgroup2")) {
			snprintf(cgroup->root, sizeof(cgroup->root), "%s", dir);
			break;
		}
	if (f)
		fclose(f);

	if (!cgroup->root[0]) {
		/* A private mount, which goes away when this process exits. */
		if (unshare(CLONE_NEWNS) ||
		    mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
		    mount("none", "/sys/fs/cgroup", "cgroup2", 0, NULL))
			return "cgroup2 is not mounted and cannot be";
		snprintf(cgroup->root, sizeof(cgroup->root), "/sys/fs/cgroup");
	}
	if (!cgroup_lists(cgroup->root, "cgroup.controllers", "hugetlb"))
		return "cgroup2 has no hugetlb controller";
	if (!cgroup_lists(cgroup->root, "cgroup.subtree_control", "hugetlb")) {
		if (!cgroup_write(cgroup->root, "cgroup.subtree_control",
				  "+hugetlb"))
			return "the hugetlb controller cannot be enabled";
		cgroup->enabled = true;
	}
	snprintf(cgroup->path, sizeof(cgroup->path), "%s/hugetlb_mremap_%d",
		 cgroup->root, getpid());
	if (mkdir(cgroup->path, 0755)) {
		cgroup->path[0] = '\0';
		return "a cgroup cannot be made";
	}
	rsvd_path(path, sizeof(path), cgroup->path, size);
	if (access(path, R_OK))
		return "the hugetlb controller does not count reservations";
	return NULL;
}

static inline void remove_cgroup(struct test_cgroup *cgroup)
{
	if (cgroup->path[0])
		rmdir(cgroup->path);
	if (cgroup->enabled)
		cgroup_write(cgroup->root, "cgroup.subtree_control",
			     "-hugetlb");
}

static sigjmp_buf sigbus_env;

static inline void sigbus_handler(int sig)
{
	siglongjmp(sigbus_env, 1);
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

static struct {
	bool changed;
	char saved[ARRAY_SIZE(fault_attrs)][32];
} injection;

/* Returns why failures cannot be injected, or NULL. */
static inline const char *allow_injection(void)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(fault_attrs); i++)
		if (!read_file(fault_attrs[i].path, injection.saved[i],
			       sizeof(injection.saved[i])))
			return "Allocation failures cannot be injected";
	if (access("/proc/thread-self/fail-nth", W_OK))
		return "No fail-nth";
	injection.changed = true;
	for (i = 0; i < ARRAY_SIZE(fault_attrs); i++)
		write_file(fault_attrs[i].path, fault_attrs[i].val,
			   strlen(fault_attrs[i].val) + 1);
	return NULL;
}

static inline void end_injection(void)
{
	unsigned int i;

	for (i = 0; injection.changed && i < ARRAY_SIZE(fault_attrs); i++)
		write_file(fault_attrs[i].path, injection.saved[i],
			   strlen(injection.saved[i]) + 1);
}

/* The settings do not outlive the process that changed them. */
static inline void fail_nth_failed(void)
{
	end_injection();
	_exit(KSFT_FAIL);
}

/*
 * mremap() while the allocation @nth fails. Sets @injected to whether there
 * were so many. Returns what mremap() does, with errno as it is then.
 */
static inline char *mremap_failing(unsigned int nth, char *from,
				   unsigned long old_len, unsigned long new_len,
				   int flags, char *to, bool *injected)
{
	char buf[16], *p;
	int fd, n, err;

	fd = open("/proc/thread-self/fail-nth", O_RDWR);
	n = snprintf(buf, sizeof(buf), "%u", nth);
	if (fd < 0 || write(fd, buf, n) != n)
		fail_nth_failed();
	p = sys_mremap(from, old_len, new_len, flags, to);
	err = errno;
	n = pread(fd, buf, sizeof(buf) - 1, 0);
	buf[n > 0 ? n : 0] = '\0';
	*injected = !atoi(buf);
	/* The write itself may be what fails, once. */
	if (!*injected && write(fd, "0", 1) != 1 && write(fd, "0", 1) != 1)
		fail_nth_failed();
	close(fd);
	errno = err;
	return p;
}

#endif /* __HUGETLB_MREMAP_H__ */
