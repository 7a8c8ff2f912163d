// SPDX-License-Identifier: GPL-2.0
/*
 * Test hugetlb mappings that mremap() moves.
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
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "hugetlb_mremap.h"

static unsigned long table_span(unsigned long size)
{
	return size < pmd_span() ? pmd_span() : pud_span();
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

FIXTURE(race)
{
	unsigned long sizes[MAX_SIZES];
	struct report *report;
	int nr_sizes;
	int nodes[2];
};

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

TEST_HARNESS_MAIN
