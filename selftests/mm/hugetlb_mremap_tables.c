// SPDX-License-Identifier: GPL-2.0
/*
 * Test hugetlb mappings whose page tables mremap() moves as a whole.
 *
 * All of it runs with every huge page size that is smaller than what a PUD
 * maps and of which enough pages can be had. What might hang runs in a child
 * process, so that the test can report a hang and end.
 */

#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "../../../../mm/gup_test.h"
#include "hugetlb_mremap.h"

#ifndef MADV_SOFT_OFFLINE
#define MADV_SOFT_OFFLINE	101
#endif

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
 * Give back memory that has failed: what could not be unmapped, because the
 * lock of the file was busy, would be missing from the pool of huge pages. It
 * is another page than the one that was seen if that was replaced just then.
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

/*
 * Without an address, the kernel has to find one to which the table can move.
 */
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
/* A page that comes and goes */
#define STRESS_VICTIM	(FIRST_PROBE + NR_PROBES)

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

/*
 * Another process maps, touches and unmaps the file, and punches holes into it.
 */
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
