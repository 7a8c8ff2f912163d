/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What tests of private memory after fork() share: which pages were copied, a
 * child that notices what others write, and writes that must fail.
 */

#ifndef __FOLIO_WITNESS_H__
#define __FOLIO_WITNESS_H__

#include <linux/fs.h>
#include <linux/userfaultfd.h>
#include <stdbool.h>
#include <sys/ioctl.h>
#include <sys/resource.h>

#include "../../../../mm/gup_test.h"
#include "folio_region.h"

#define GUP_TEST	"/sys/kernel/debug/gup_test"
/* Faults on the code, the data and the stack of the test itself, at most */
#define OTHER_FAULTS	4

static inline char *page(struct region *r, long nr)
{
	return r->mem + nr * psize();
}

/* The page has its first contents after that. */
static inline void write_page(struct region *r, long nr)
{
	*page(r, nr) = pattern(r, page(r, nr));
}

/* Note where all pages of @r are, for pages_moved() to compare. */
static inline void note_pfns(struct folio_env *env, struct region *r,
			     unsigned long *pfns)
{
	const long nr = r->nr * r->size / psize();
	long i;

	for (i = 0; i < nr; i++)
		pfns[i] = pagemap_get_pfn(env->pagemap_fd, page(r, i));
}

static inline long pages_moved(struct folio_env *env, struct region *r,
			       const unsigned long *pfns)
{
	const long nr = r->nr * r->size / psize();
	long i, moved = 0;

	for (i = 0; i < nr; i++)
		moved += pagemap_get_pfn(env->pagemap_fd,
					 page(r, i)) != pfns[i];
	return moved;
}

static inline long minor_faults(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return usage.ru_minflt;
}

/*
 * Register memory for missing pages, or for write protection, with a userfaultfd
 * whose events are SIGBUS. Returns -1 if that is not supported.
 */
static inline int uffd_sigbus(char *mem, size_t len, bool missing)
{
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = UFFD_FEATURE_SIGBUS,
	};
	int fd;

	if (!missing)
		api.features |= UFFD_FEATURE_PAGEFAULT_FLAG_WP;
	fd = syscall(__NR_userfaultfd, O_CLOEXEC);
	if (fd >= 0 && (ioctl(fd, UFFDIO_API, &api) ||
			uffd_register(fd, mem, len, missing, !missing, false))) {
		close(fd);
		fd = -1;
	}
	return fd;
}

/*
 * Fork a child that compares, on end_child(), what it has with what there was
 * before the parent wrote.
 */
static inline pid_t fork_witness(struct region *r, int fds[2])
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
	for (addr = r->mem; addr < r->mem + r->nr * r->size; addr += psize())
		if (*addr != pattern(r, addr))
			_exit(2);
	_exit(0);
}

/* Returns how many of the huge pages of @r PMDs map, or -1. */
static inline int huge_pages(struct folio_env *env, struct region *r)
{
	struct page_region found[16];
	struct pm_scan_arg arg = {
		.size = sizeof(arg),
		.start = (uintptr_t)r->mem,
		.end = (uintptr_t)r->mem + r->nr * r->size,
		.vec = (uintptr_t)found,
		.vec_len = ARRAY_SIZE(found),
		.category_mask = PAGE_IS_HUGE,
		.return_mask = PAGE_IS_HUGE,
	};
	size_t len = 0;
	int i, nr;

	nr = ioctl(env->pagemap_fd, PAGEMAP_SCAN, &arg);
	for (i = 0; i < nr; i++)
		len += found[i].end - found[i].start;
	return nr < 0 ? nr : (int)(len / r->size);
}

/* Forget which pages were accessed, and what is in the TLB. */
static inline void clear_accessed(struct region *r)
{
	const size_t len = r->nr * r->size;

	write_file("/proc/self/clear_refs", "1", 2);
	mprotect(r->mem, len, PROT_NONE);
	mprotect(r->mem, len, PROT_READ | PROT_WRITE);
}

/* Let folios of @size be allocated ("madvise"), or not ("never"). */
static inline void set_thp(size_t size, const char *enabled)
{
	char path[64];

	snprintf(path, sizeof(path), "hugepages-%zukB/enabled", size >> 10);
	thp_write_string(path, enabled);
}

/*
 * Let khugepaged scan all memory for folios of @size, three times at least. False if
 * it does not.
 */
static inline bool khugepaged_scan(size_t size)
{
	unsigned long scans = thp_read_num("khugepaged/full_scans");
	int tries;

	thp_write_num("khugepaged/scan_sleep_millisecs", 10);
	thp_write_num("khugepaged/pages_to_scan", 1 << 16);
	set_thp(size, "madvise");
	/* One scan may have begun before */
	for (tries = 0; tries < 300; tries++) {
		usleep(100000);
		if (thp_read_num("khugepaged/full_scans") >= scans + 4)
			break;
	}
	set_thp(size, "never");
	return tries < 300;
}

/*
 * Let khugepaged run, but for one scan only, which is over on return. What
 * happens later does so without it.
 */
static inline void khugepaged_asleep(size_t size)
{
	unsigned long scans = thp_read_num("khugepaged/full_scans");
	int tries;

	thp_write_num("khugepaged/scan_sleep_millisecs", 3600 * 1000);
	set_thp(size, "madvise");
	for (tries = 0; tries < 30; tries++) {
		usleep(100000);
		if (thp_read_num("khugepaged/full_scans") > scans)
			break;
	}
	usleep(100000);
}

/* What a device would read of the pinned memory is what the process has. */
static inline void expect_pinned(struct __test_metadata *_metadata, int gup_fd,
				 char *mem, size_t len)
{
	__u64 dest;
	char *copy;

	copy = mmap(NULL, len, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(copy, MAP_FAILED);
	dest = (uintptr_t)copy;
	ASSERT_EQ(ioctl(gup_fd, PIN_LONGTERM_TEST_READ, &dest), 0);
	EXPECT_EQ(memcmp(copy, mem, len), 0);
	munmap(copy, len);
}

static sigjmp_buf segv_env;

static inline void on_segv(int sig)
{
	siglongjmp(segv_env, 1);
}

/* Can the page be written? It gets what it has already. */
static inline bool writable(char *addr)
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

#endif /* __FOLIO_WITNESS_H__ */
