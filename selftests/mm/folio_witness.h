/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What tests of private memory after fork() share: a child that notices what
 * others write, and writes that must fail.
 */

#ifndef __FOLIO_WITNESS_H__
#define __FOLIO_WITNESS_H__

#include <linux/fs.h>
#include <stdbool.h>
#include <sys/ioctl.h>

#include "../../../../mm/gup_test.h"
#include "folio_region.h"

#define GUP_TEST	"/sys/kernel/debug/gup_test"

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
