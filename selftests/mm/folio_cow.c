// SPDX-License-Identifier: GPL-2.0
/*
 * No process must see what another one writes to private memory after a fork(),
 * however large the folios are that both of them map, and how they came to do so.
 *
 * Up to eight processes run random actions on memory that consists of large
 * folios: they write to pages, discard, swap out, migrate, split, collapse, move,
 * protect, populate or pin them, fork, and exit, while KSM may merge pages, and
 * khugepaged collapse what a PMD can map. Each write stores a unique number, and
 * each process keeps the last one for each page to detect data of another. The
 * actions soon leave few large folios, so rounds are short, and each starts with
 * new ones. The last process of a round writes to pages of the large folios that
 * it still maps: as it is alone, they must not be copied.
 *
 * It goes on for FOLIO_COW_SECONDS, for folios of all sizes or of FOLIO_COW_KB, and
 * with the same FOLIO_COW_SEED each process takes much the same decisions, if not at
 * the same time. These are environment variables.
 */

#include <errno.h>
#include <linux/mman.h>
#include <sched.h>
#include <stdarg.h>
#include <stdbool.h>
#include <sys/ioctl.h>
#include <time.h>

#include "../../../../mm/gup_test.h"
#include "folio_cgroup.h"

#define MAX_PROCESSES	8
#define NR_FOLIOS	2
#define SECONDS		20
#define MAX_ACTIONS	256	/* of a round; some have less */
#define GUP_TEST	"/sys/kernel/debug/gup_test"
#define SPLIT_HUGE_PAGES	"/sys/kernel/debug/split_huge_pages"

/* Shared by all of them. */
struct cow_state {
	unsigned long ticket;	/* of the last write */
	unsigned long forks;
	unsigned long actions;
	unsigned long large;	/* of those, with a page of a large folio */
	unsigned long alone;	/* pages of large folios that the last one had */
	unsigned long max_actions;
	int processes;
	time_t end;
	bool stop;
	bool failed;
	char msg[256];
};

/* Of each process its own, copied by fork(). */
struct cow_process {
	struct cow_state *state;
	struct folio_env *env;
	struct folio_cgroup *cgroup;
	int alive[2];		/* a pipe: it ends when all others have exited */
	struct region region;
	char *spare;		/* where parts of the region are moved to, and back */
	int pages;
	unsigned long *expected;
	unsigned int random;
};

static unsigned int next_random(struct cow_process *p, unsigned int limit)
{
	return rand_r(&p->random) % limit;
}

static void __printf(2, 3) __noreturn give_up(struct cow_process *p,
					      const char *fmt, ...)
{
	va_list args;

	if (!__atomic_exchange_n(&p->state->failed, true, __ATOMIC_SEQ_CST)) {
		va_start(args, fmt);
		vsnprintf(p->state->msg, sizeof(p->state->msg), fmt, args);
		va_end(args);
	}
	__atomic_store_n(&p->state->stop, true, __ATOMIC_SEQ_CST);
	_exit(KSFT_FAIL);
}

static unsigned long *first_word(struct cow_process *p, int page)
{
	return (unsigned long *)(p->region.mem + (size_t)page * psize());
}

static unsigned long *last_word(struct cow_process *p, int page)
{
	return first_word(p, page + 1) - 1;
}

static unsigned long new_ticket(struct cow_process *p)
{
	return __atomic_add_fetch(&p->state->ticket, 1, __ATOMIC_SEQ_CST);
}

/* Report a process that failed, unless give_up() has stored a message. */
static void check_status(struct cow_state *state, int status)
{
	if (WIFEXITED(status) && (WEXITSTATUS(status) == KSFT_PASS ||
				  WEXITSTATUS(status) == KSFT_SKIP))
		return;
	if (!__atomic_exchange_n(&state->failed, true, __ATOMIC_SEQ_CST))
		snprintf(state->msg, sizeof(state->msg),
			 "a process ended with status %#x", status);
	__atomic_store_n(&state->stop, true, __ATOMIC_SEQ_CST);
}

static void write_page(struct cow_process *p, int page)
{
	p->expected[page] = new_ticket(p);
	*first_word(p, page) = p->expected[page];
	*last_word(p, page) = p->expected[page];
}

static void check_page(struct cow_process *p, int page, const char *after)
{
	unsigned long first = *first_word(p, page), last = *last_word(p, page);

	if (first != p->expected[page] || last != p->expected[page])
		give_up(p, "%zukB: process %d, page %d after %s: %lu and %lu, not %lu",
			p->region.size >> 10, getpid(), page, after, first, last,
			p->expected[page]);
}

/* What actions are about: some pages, in one folio or in several. */
struct cow_range {
	int first, nr;
	char *mem;
	size_t len;
};

static struct cow_range random_range(struct cow_process *p)
{
	const int per_folio = p->pages / p->region.nr;
	struct cow_range range;

	range.first = next_random(p, p->pages);
	range.nr = 1 + next_random(p, next_random(p, 2) ? per_folio : 4);
	if (!next_random(p, 4)) {	/* a whole folio */
		range.first -= range.first % per_folio;
		range.nr = per_folio;
	}
	if (range.nr > p->pages - range.first)
		range.nr = p->pages - range.first;
	range.mem = (char *)first_word(p, range.first);
	range.len = (size_t)range.nr * psize();
	return range;
}

static void act_write(struct cow_process *p, struct cow_range *r)
{
	int i;

	for (i = 0; i < r->nr; i++)
		write_page(p, r->first + i);
}

/* The same to several pages, which KSM may merge then. */
static void act_same(struct cow_process *p, struct cow_range *r)
{
	unsigned long ticket = new_ticket(p);
	int i;

	for (i = r->first; i < r->first + r->nr; i++) {
		p->expected[i] = ticket;
		*first_word(p, i) = ticket;
		*last_word(p, i) = ticket;
	}
}

static void act_read(struct cow_process *p, struct cow_range *r)
{
	int i;

	for (i = 0; i < r->nr; i++)
		check_page(p, r->first + i, "a while");
}

static void act_drop(struct cow_process *p, struct cow_range *r)
{
	int i;

	if (madvise(r->mem, r->len, MADV_DONTNEED))
		give_up(p, "MADV_DONTNEED: %s", strerror(errno));
	for (i = 0; i < r->nr; i++)
		p->expected[r->first + i] = 0;
}

static void act_pageout(struct cow_process *p, struct cow_range *r)
{
	madvise(r->mem, r->len, MADV_PAGEOUT);
}

/* Of all of them, and whatever is found first */
static void act_reclaim(struct cow_process *p, struct cow_range *r)
{
	char how_much[64];

	if (!p->cgroup->path)
		return;
	snprintf(how_much, sizeof(how_much), "%zuK swappiness=max", r->len >> 10);
	cg_write(p->cgroup->path, "memory.reclaim", how_much);
}

static void act_migrate(struct cow_process *p, struct cow_range *r)
{
	int node = next_random(p, 2) ? p->env->node2 : p->env->node1;
	void *page = r->mem;
	int status;

	if (node >= 0)
		move_pages(0, 1, &page, &node, &status,
			   next_random(p, 2) ? MPOL_MF_MOVE : MPOL_MF_MOVE_ALL);
}

/* In long rounds, and late, as few folios become large again */
static void act_split(struct cow_process *p, struct cow_range *r)
{
	int fd;

	if (__atomic_load_n(&p->state->actions, __ATOMIC_SEQ_CST) <
	    MAX_ACTIONS / 4)
		return;
	fd = open(SPLIT_HUGE_PAGES, O_WRONLY);
	if (fd < 0)
		return;
	dprintf(fd, "%d,0x%lx,0x%lx,0", getpid(), (unsigned long)r->mem,
		(unsigned long)r->mem + r->len);
	close(fd);
}

/* All of it: what a PMD cannot map stays as it is. */
static void act_collapse(struct cow_process *p, struct cow_range *r)
{
	madvise(p->region.mem, p->region.nr * p->region.size, MADV_COLLAPSE);
}

static void act_populate(struct cow_process *p, struct cow_range *r)
{
	if (madvise(r->mem, r->len, MADV_POPULATE_WRITE) && errno != ENOMEM)
		give_up(p, "MADV_POPULATE_WRITE: %s", strerror(errno));
}

static void act_protect(struct cow_process *p, struct cow_range *r)
{
	if (mprotect(r->mem, r->len, PROT_READ))
		give_up(p, "mprotect(): %s", strerror(errno));
	act_read(p, r);
	if (mprotect(r->mem, r->len, PROT_READ | PROT_WRITE))
		give_up(p, "mprotect() back: %s", strerror(errno));
}

static void act_move(struct cow_process *p, struct cow_range *r)
{
	if (mremap(r->mem, r->len, r->len, MREMAP_MAYMOVE | MREMAP_FIXED,
		   p->spare) != p->spare)
		give_up(p, "mremap(): %s", strerror(errno));
	/* Other pages than those around can be mapped by the same page table. */
	FORCE_READ(*p->spare);
	if (mremap(p->spare, r->len, r->len, MREMAP_MAYMOVE | MREMAP_FIXED,
		   r->mem) != r->mem)
		give_up(p, "mremap() back: %s", strerror(errno));
}

/* A page in a pipe has the old data or our write, never another process's. */
static void act_splice(struct cow_process *p, struct cow_range *r)
{
	struct iovec iov = {
		.iov_base = r->mem,
		.iov_len = sizeof(unsigned long),
	};
	unsigned long old = p->expected[r->first], val;
	int fds[2];

	if (pipe(fds))
		give_up(p, "pipe(): %s", strerror(errno));
	if (vmsplice(fds[1], &iov, 1, 0) != sizeof(val))
		give_up(p, "vmsplice(): %s", strerror(errno));
	sched_yield();
	if (next_random(p, 2))
		write_page(p, r->first);
	sched_yield();
	if (read(fds[0], &val, sizeof(val)) != sizeof(val))
		give_up(p, "read(): %s", strerror(errno));
	if (val != old && val != p->expected[r->first])
		give_up(p, "%zukB: process %d, page %d in a pipe: %lu, not %lu or %lu",
			p->region.size >> 10, getpid(), r->first, val, old,
			p->expected[r->first]);
	close(fds[0]);
	close(fds[1]);
}

/* Returns true in the child, which goes on like its parent, with other actions. */
static bool fork_process(struct cow_process *p)
{
	unsigned int random = rand_r(&p->random);
	struct cow_state *state = p->state;
	pid_t pid;

	if (__atomic_add_fetch(&state->processes, 1, __ATOMIC_SEQ_CST) >
	    MAX_PROCESSES) {
		__atomic_sub_fetch(&state->processes, 1, __ATOMIC_SEQ_CST);
		return false;
	}
	__atomic_add_fetch(&state->forks, 1, __ATOMIC_SEQ_CST);
	pid = fork();
	if (!pid) {
		p->random = random;
		/* Its own, not that of its parent */
		close(p->env->pagemap_fd);
		p->env->pagemap_fd = open("/proc/self/pagemap", O_RDONLY);
		return true;
	}
	if (pid < 0) {
		__atomic_sub_fetch(&state->processes, 1, __ATOMIC_SEQ_CST);
		__atomic_sub_fetch(&state->forks, 1, __ATOMIC_SEQ_CST);
		if (errno != EAGAIN && errno != ENOMEM)
			give_up(p, "fork(): %s", strerror(errno));
	}
	return false;
}

static void act_fork(struct cow_process *p, struct cow_range *r)
{
	fork_process(p);
}

/* The first and the last word of page @i of @r, in a copy of it */
static bool has_expected(struct cow_process *p, struct cow_range *r, int i,
			 unsigned long *copy)
{
	const size_t words = psize() / sizeof(*copy);

	return copy[i * words] == p->expected[r->first + i] &&
	       copy[(i + 1) * words - 1] == p->expected[r->first + i];
}

/*
 * Pages that are pinned for DMA are the ones that are mapped for as long as they
 * are, and no child gets them.
 */
static void act_pin(struct cow_process *p, struct cow_range *r)
{
	struct pin_longterm_test pin = {
		.addr = (unsigned long)r->mem,
		.size = r->len,
		.flags = next_random(p, 2) * PIN_LONGTERM_TEST_FLAG_USE_WRITE |
			 next_random(p, 2) * PIN_LONGTERM_TEST_FLAG_USE_FAST,
	};
	int i, fd = open(GUP_TEST, O_RDWR);
	unsigned long *copy;
	bool child = false;
	__u64 buf;

	if (fd < 0)
		return;
	copy = malloc(r->len);
	if (!copy)
		give_up(p, "no memory");
	buf = (unsigned long)copy;
	if (!ioctl(fd, PIN_LONGTERM_TEST_START, &pin)) {
		if (!next_random(p, 3))
			child = fork_process(p);
		sched_yield();
		for (i = 0; i < r->nr; i++)
			if (!i || !next_random(p, 4))
				write_page(p, r->first + i);
		sched_yield();
		if (!next_random(p, 4))
			act_collapse(p, r);
		if (!child && ioctl(fd, PIN_LONGTERM_TEST_READ, &buf))
			give_up(p, "reading pinned pages: %s", strerror(errno));
		for (i = 0; !child && i < r->nr; i++)
			if (!has_expected(p, r, i, copy))
				give_up(p, "%zukB: process %d, page %d is not the one pinned",
					p->region.size >> 10, getpid(), r->first + i);
		if (!child)
			ioctl(fd, PIN_LONGTERM_TEST_STOP);
	}
	free(copy);
	close(fd);
}

/* Have it collapse what it finds, once a PMD can map the folios. */
static void set_khugepaged(struct cow_process *p, bool run)
{
	char path[64];

	if (p->region.size != p->env->pmd_size)
		return;
	snprintf(path, sizeof(path), "hugepages-%zukB/enabled",
		 p->region.size >> 10);
	thp_write_string(path, run ? "madvise" : "never");
}

static void __noreturn leave(struct cow_process *p)
{
	int i;

	for (i = 0; i < p->pages; i++)
		check_page(p, i, "all");
	_exit(KSFT_PASS);
}

#define KSM_RUN		"/sys/kernel/mm/ksm/run"
#define KPF_SWAPCACHE	BIT_ULL(13)
#define KPF_KSM		BIT_ULL(21)

/*
 * Is the page one of a large folio of which the next page is mapped as well, and
 * which is nothing but that? A last page that is mapped may always be copied.
 */
static bool is_in_large_folio(struct cow_process *p, int page,
			      unsigned long pfn)
{
	const uint64_t other = KPF_KSM | KPF_SWAPCACHE;
	uint64_t flags, next;

	return page + 1 < p->pages &&
	       pagemap_get_pfn(p->env->pagemap_fd,
			       (char *)first_word(p, page + 1)) == pfn + 1 &&
	       !pageflags_get(pfn, p->env->kpageflags_fd, &flags) &&
	       !pageflags_get(pfn + 1, p->env->kpageflags_fd, &next) &&
	       (flags & KPF_THP) && (next & KPF_COMPOUND_TAIL) &&
	       !(flags & other);
}

/* A folio in two mappings, which can happen, is not known to be ours alone. */
static bool in_one_vma(struct region *r)
{
	const size_t end = (size_t)r->mem + r->nr * r->size;
	struct procmap_fd maps;
	bool found;

	if (open_self_procmap(&maps))
		return false;
	found = find_vma_procmap(&maps, r->mem) && maps.query.vma_end >= end;
	close_procmap(&maps);
	return found;
}

/* No other process is left: write faults must reuse pages of large folios. */
static void __noreturn be_last(struct cow_process *p)
{
	unsigned long pfn;
	char c;
	int i;

	close(p->alive[1]);
	if (read(p->alive[0], &c, 1) || !in_one_vma(&p->region))
		leave(p);
	/*
	 * Nor does KSM look at them, or khugepaged, which may have the mmap_lock
	 * already, or are they on their way to the LRU.
	 */
	if (!access(KSM_RUN, W_OK))
		write_num(KSM_RUN, 0);
	set_khugepaged(p, false);
	mprotect(p->spare, psize(), PROT_READ);
	write_num("/proc/sys/vm/drop_caches", 1);

	for (i = 0; i < p->pages; i++) {
		check_page(p, i, "being left alone");
		pfn = pagemap_get_pfn(p->env->pagemap_fd,
				      (char *)first_word(p, i));
		if (!is_in_large_folio(p, i, pfn))
			continue;
		write_page(p, i);
		if (pagemap_get_pfn(p->env->pagemap_fd,
				    (char *)first_word(p, i)) != pfn)
			give_up(p, "%zukB: process %d is alone, and page %d was copied",
				p->region.size >> 10, getpid(), i);
		p->state->alone++;
	}
	leave(p);
}

/* Exit, except as the last process: that one has to get to be_last(). */
static void act_exit(struct cow_process *p, struct cow_range *r)
{
	int *processes = &p->state->processes;
	int now = __atomic_load_n(processes, __ATOMIC_SEQ_CST);

	while (now > 1)
		if (__atomic_compare_exchange_n(processes, &now, now - 1, false,
						__ATOMIC_SEQ_CST,
						__ATOMIC_SEQ_CST))
			leave(p);
}

static const struct {
	void (*act)(struct cow_process *p, struct cow_range *r);
	int weight;
} actions[] = {
	{ act_write, 12 },
	{ act_same, 2 },
	{ act_read, 8 },
	{ act_drop, 2 },
	{ act_pageout, 2 },
	{ act_reclaim, 1 },
	{ act_migrate, 2 },
	{ act_split, 2 },
	{ act_collapse, 1 },
	{ act_populate, 1 },
	{ act_protect, 1 },
	{ act_move, 1 },
	{ act_splice, 3 },
	{ act_pin, 2 },
	{ act_fork, 3 },
	{ act_exit, 2 },
};

static void __noreturn be_process(struct cow_process *p)
{
	unsigned int i, which, sum = 0;
	int status;

	for (i = 0; i < ARRAY_SIZE(actions); i++)
		sum += actions[i].weight;
	/* Do not go on for ever if the test was killed. */
	while (!__atomic_load_n(&p->state->stop, __ATOMIC_SEQ_CST) &&
	       time(NULL) < p->state->end + 10) {
		struct cow_range range = random_range(p);

		which = next_random(p, sum);
		for (i = 0; which >= actions[i].weight; i++)
			which -= actions[i].weight;
		if (maps_large_folio(p->env, range.mem))
			__atomic_add_fetch(&p->state->large, 1, __ATOMIC_SEQ_CST);
		if (__atomic_add_fetch(&p->state->actions, 1, __ATOMIC_SEQ_CST) >=
		    p->state->max_actions)
			__atomic_store_n(&p->state->stop, true, __ATOMIC_SEQ_CST);
		actions[i].act(p, &range);
		while (waitpid(-1, &status, WNOHANG) > 0)
			check_status(p->state, status);
		if (!next_random(p, 16))
			for (i = 0; i < p->pages; i++)
				check_page(p, i, "some actions");
	}
	if (!__atomic_sub_fetch(&p->state->processes, 1, __ATOMIC_SEQ_CST))
		be_last(p);
	leave(p);
}

/* The first process: it allocates the memory, with its own eyes on it. */
static void __noreturn be_first(struct cow_process *p, size_t size, int seconds)
{
	size_t len;
	int i;

	p->env->pagemap_fd = open("/proc/self/pagemap", O_RDONLY);
	/* Each of the processes may have a copy of its own, besides. */
	if (free_memory(p->env->node1) <
	    (MAX_PROCESSES + 2LL) * NR_FOLIOS * size ||
	    !region_alloc(p->env, &p->region, size, NR_FOLIOS)) {
		ksft_print_msg("%zukB: not tested\n", size >> 10);
		__atomic_store_n(&p->state->stop, true, __ATOMIC_SEQ_CST);
		_exit(KSFT_SKIP);
	}
	__atomic_store_n(&p->state->end, time(NULL) + seconds, __ATOMIC_SEQ_CST);
	len = p->region.nr * size;
	p->pages = len / psize();
	p->expected = calloc(p->pages, sizeof(*p->expected));
	p->spare = mmap(NULL, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (!p->expected || p->spare == MAP_FAILED)
		give_up(p, "no memory");
	if (next_random(p, 2))
		madvise(p->region.mem, len, MADV_MERGEABLE);
	set_khugepaged(p, next_random(p, 2));
	for (i = 0; i < p->pages; i++)
		write_page(p, i);
	/* Both go on alike. */
	fork_process(p);
	be_process(p);
}

#define KSM_SLEEP	"/sys/kernel/mm/ksm/sleep_millisecs"

static unsigned long ksm_run, ksm_sleep;
static pid_t main_process;

/* Restored by the process that saved them, however its children end. */
static void restore_ksm(void)
{
	if (getpid() != main_process)
		return;
	write_num(KSM_RUN, ksm_run);
	write_num(KSM_SLEEP, ksm_sleep);
}

static void __attribute__((constructor)) save_ksm(void)
{
	if (access(KSM_RUN, W_OK))
		return;
	main_process = getpid();
	ksm_run = read_num(KSM_RUN);
	ksm_sleep = read_num(KSM_SLEEP);
	atexit(restore_ksm);
}

FIXTURE(folio_cow)
{
	struct folio_env env;
	struct folio_cgroup cgroup;
	bool ksm;
};

FIXTURE_SETUP(folio_cow)
{
	const char *why = folio_env_init(&self->env);

	if (why)
		SKIP(return, "%s", why);
	/* Those whose parents are gone are waited for as well. */
	ASSERT_EQ(prctl(PR_SET_CHILD_SUBREAPER, 1), 0);
	self->ksm = !access(KSM_RUN, W_OK);
	if (self->ksm)
		write_num(KSM_SLEEP, 5);
	else
		ksft_print_msg("no KSM: pages are not merged\n");
	if (access(GUP_TEST, W_OK))
		ksft_print_msg("no gup_test: pages are not pinned\n");
	thp_write_num("khugepaged/scan_sleep_millisecs", 5);
	if (!folio_cgroup_enter(&self->cgroup, "folio_cow"))
		ksft_print_msg("no memory cgroup: no reclaim, nothing is counted\n");
}

FIXTURE_TEARDOWN(folio_cow)
{
	folio_cgroup_leave(&self->cgroup);
	thp_restore_settings();
}

static long env_number(const char *name, long otherwise)
{
	const char *val = getenv(name);

	return val ? atol(val) : otherwise;
}

/* Returns whether there was memory to do anything with. */
static bool run_round(struct cow_process *process, size_t size, int seconds)
{
	struct cow_state *state = process->state;
	int status;
	pid_t pid;

	memset(state, 0, sizeof(*state));
	state->processes = 1;
	state->max_actions = MAX_ACTIONS >> next_random(process, 5);
	if (!access(KSM_RUN, W_OK))
		write_num(KSM_RUN, 1);
	if (pipe(process->alive))
		return false;
	/* Until it knows better, which takes no more than some seconds. */
	state->end = time(NULL) + 600;
	pid = fork();
	if (!pid)
		be_first(process, size, seconds);
	close(process->alive[0]);
	close(process->alive[1]);
	if (pid < 0)
		return false;

	while (time(NULL) < __atomic_load_n(&state->end, __ATOMIC_SEQ_CST) &&
	       !__atomic_load_n(&state->stop, __ATOMIC_SEQ_CST)) {
		while (waitpid(-1, &status, WNOHANG) > 0)
			check_status(state, status);
		usleep(1000 * 2);
	}
	__atomic_store_n(&state->stop, true, __ATOMIC_SEQ_CST);
	while (waitpid(-1, &status, 0) > 0)
		check_status(state, status);
	return state->ticket > 0;
}

/* What a process may have allocated for itself, in pages */
#define SLACK		32

/* Nothing is left of the folios, and nothing that counts them. Logs if so. */
static bool is_cleaned_up(FIXTURE_DATA(folio_cow) * self, size_t size,
			  struct folio_stats *before, long anon)
{
	struct folio_stats now = {};
	int tries;

	for (tries = 0; tries < 100; tries++) {
		/* What was swapped out when the last process exited may be left. */
		if (self->cgroup.path)
			cg_write(self->cgroup.path, "memory.reclaim",
				 "64M swappiness=max");
		now = read_stats(size);
		if (now.nr_anon == before->nr_anon &&
		    now.partially_mapped == before->partially_mapped)
			break;
		usleep(1000 * 50);
	}
	if (tries == 100) {
		ksft_print_msg("%zukB: %ld folios are left, %ld partially mapped\n",
			       size >> 10, now.nr_anon - before->nr_anon,
			       now.partially_mapped - before->partially_mapped);
		return false;
	}
	return !self->cgroup.path ||
	       folio_cgroup_counts(&self->cgroup, "anon ", anon, 0, SLACK, size,
				   "when all processes have ended");
}

TEST_F_TIMEOUT(folio_cow, random, 3600)
{
	const long seconds = env_number("FOLIO_COW_SECONDS", SECONDS);
	const long seed = env_number("FOLIO_COW_SEED", time(NULL));
	const size_t only = env_number("FOLIO_COW_KB", 0) << 10;
	struct cow_process process = {
		.env = &self->env,
		.cgroup = &self->cgroup,
	};
	struct cow_state *state;
	int i, tested = 0;

	TH_LOG("FOLIO_COW_SEED=%ld", seed);
	state = mmap(NULL, psize(), PROT_READ | PROT_WRITE,
		     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(state, MAP_FAILED);
	process.state = state;

	for (i = 0; i < self->env.nr_sizes && !state->failed; i++) {
		const time_t end = time(NULL) + 1 +
				   (only ? seconds : seconds / self->env.nr_sizes);
		const size_t size = self->env.sizes[i];
		struct folio_stats before = read_stats(size);
		struct cow_state sum = {};
		int rounds = 0;
		long anon = 0;
		time_t now;

		if (only && size != only)
			continue;
		if (self->cgroup.path)
			anon = folio_cgroup_pages(&self->cgroup, "anon ");

		for (now = time(NULL); now < end && !state->failed; now = time(NULL)) {
			process.random = seed + i + 104729 * rounds;
			if (!run_round(&process, size, end - now))
				break;
			sum.ticket += state->ticket;
			sum.actions += state->actions;
			sum.large += state->large;
			sum.alone += state->alone;
			sum.forks += state->forks;
			rounds++;
		}
		EXPECT_FALSE(state->failed) {
			TH_LOG("round %d: %s", rounds, state->msg);
		}
		if (!rounds)
			continue;
		TH_LOG("%zukB: %d rounds, %lu writes, %lu actions (%lu on large folios), %lu forks",
		       size >> 10, rounds, sum.ticket, sum.actions, sum.large,
		       sum.forks);
		TH_LOG("%zukB: the last ones had %lu pages of large folios",
		       size >> 10, sum.alone);
		EXPECT_GT(sum.forks, 0);
		EXPECT_GT(sum.large, 0);
		EXPECT_TRUE(is_cleaned_up(self, size, &before, anon));
		tested++;
	}
	munmap(state, psize());
	if (!tested && __test_passed(_metadata))
		SKIP(return, "no folios of any size");
}

TEST_HARNESS_MAIN
