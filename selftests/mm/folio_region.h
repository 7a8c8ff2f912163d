/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What tests of large folios share: memory that consists of anonymous folios of
 * one size, what the kernel counts of them, and children that map them, too.
 */

#ifndef __FOLIO_REGION_H__
#define __FOLIO_REGION_H__

#include <fcntl.h>
#include <numa.h>
#include <numaif.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>
#include "kselftest_harness.h"
#include "hugepage_settings.h"
#include "vm_util.h"

#define THP_ENABLED	"/sys/kernel/mm/transparent_hugepage/enabled"
#define MAX_FOLIOS	16
#define MAX_BYTES	(16ul << 20)

struct folio_stats {
	long nr_anon;
	long partially_mapped;
	long split_deferred;
};

/* A number of folios of one size, wholly mapped and on the first node, if any. */
struct region {
	size_t size;
	int nr;
	char *mem;
	char *map;
	size_t map_len;
	struct folio_stats empty;	/* before the folios were allocated */
	struct folio_stats full;	/* when they were all mapped */
};

struct folio_env {
	size_t pmd_size;
	size_t sizes[NR_ORDERS];
	int nr_sizes;
	int node1;	/* or -1, if the kernel has no NUMA */
	int node2;	/* or -1, if there is only one */
	int pagemap_fd;
	int kpageflags_fd;
};

/*
 * Restored when the harness exits, however its children ended. Without root
 * nothing is changed, and nothing could be restored.
 */
static void __attribute__((constructor)) save_settings(void)
{
	if (!access(THP_ENABLED, W_OK))
		thp_save_settings();
}

/* Run the deferred split shrinker, among others. */
static inline void shrink(void)
{
	write_num("/proc/sys/vm/drop_caches", 2);
}

/* Returns why tests have to be skipped, or NULL. */
static inline const char *folio_env_init(struct folio_env *env)
{
	struct thp_settings settings;
	unsigned long orders;
	int i, n;

	if (geteuid())
		return "needs root";
	if (!thp_available())
		return "no transparent huge pages";
	if (access(THP_ENABLED, W_OK))
		return "cannot change the settings of THP";

	env->node1 = -1;
	env->node2 = -1;
	for (n = 0; numa_available() >= 0 && n <= numa_max_node(); n++) {
		/* A node with memory that this task may use. */
		if (!numa_bitmask_isbitset(numa_all_nodes_ptr, n) ||
		    numa_node_size64(n, NULL) <= 0)
			continue;
		if (env->node1 < 0)
			env->node1 = n;
		else if (env->node2 < 0)
			env->node2 = n;
	}
	if (env->node1 < 0 && numa_available() >= 0)
		return "no NUMA node with memory to use";

	env->pagemap_fd = open("/proc/self/pagemap", O_RDONLY);
	env->kpageflags_fd = open("/proc/kpageflags", O_RDONLY);
	if (env->pagemap_fd < 0 || env->kpageflags_fd < 0)
		return "no pagemap or kpageflags";
	if (!pagemap_get_pfn(env->pagemap_fd, (char *)env))
		return "cannot see PFNs";

	env->pmd_size = read_pmd_pagesize();
	orders = thp_supported_orders();
	for (i = 0; i < NR_ORDERS; i++) {
		if (orders & (1ul << i))
			env->sizes[env->nr_sizes++] = (size_t)psize() << i;
	}
	if (!env->nr_sizes)
		return "no sizes of transparent huge pages";

	/*
	 * With all sizes disabled, only tests get large folios, and khugepaged
	 * runs only while they allocate them. Compact memory on these faults.
	 */
	thp_read_settings(&settings);
	settings.thp_enabled = THP_MADVISE;
	settings.thp_defrag = THP_DEFRAG_ALWAYS;
	for (i = 0; i < NR_ORDERS; i++)
		settings.hugepages[i].enabled = THP_NEVER;
	thp_write_settings(&settings);

	/* Nothing that was queued before is to be split during a test. */
	shrink();
	return NULL;
}

static inline char *align_up(char *addr, size_t align)
{
	return (char *)(((unsigned long)addr + align - 1) & ~(align - 1));
}

static inline long read_stat(size_t size, const char *name)
{
	char path[128];

	snprintf(path, sizeof(path), "hugepages-%zukB/stats/%s", size >> 10,
		 name);
	return thp_read_num(path);
}

static inline struct folio_stats read_stats(size_t size)
{
	struct folio_stats stats = {
		.nr_anon = read_stat(size, "nr_anon"),
		.partially_mapped = read_stat(size, "nr_anon_partially_mapped"),
		.split_deferred = read_stat(size, "split_deferred"),
	};

	return stats;
}

/* A counter of the system, brought up to date; or -1 */
static inline long read_vmstat(const char *name)
{
	long value = -1, found;
	char line[128], key[64];
	FILE *file;

	write_num("/proc/sys/vm/stat_refresh", 1);
	file = fopen("/proc/vmstat", "r");
	if (!file)
		return -1;
	while (value < 0 && fgets(line, sizeof(line), file))
		if (sscanf(line, "%63s %ld", key, &found) == 2 &&
		    !strcmp(key, name))
			value = found;
	fclose(file);
	return value;
}

static inline int count_folios(struct folio_env *env, struct region *r)
{
	int orders[NR_ORDERS] = {};

	if (gather_folio_orders(r->mem, r->nr * r->size, env->pagemap_fd,
				env->kpageflags_fd, orders, NR_ORDERS))
		return -1;
	return orders[sz2ord(r->size, psize())];
}

static inline void region_free(struct region *r)
{
	munmap(r->map, r->map_len);
}

static inline char pattern(struct region *r, char *addr)
{
	/* Never that of an empty page. */
	return (addr - r->mem) / psize() % 255 + 1;
}

static inline bool region_populate(struct folio_env *env, struct region *r,
				   size_t size, int nr, int node)
{
	unsigned long node_mask[16] = {};
	size_t bits = 8 * sizeof(long);
	char path[128], *addr;

	r->size = size;
	r->nr = nr;
	r->empty = read_stats(size);
	r->map_len = (nr + 2) * size;
	r->map = mmap(NULL, r->map_len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS,
		      -1, 0);
	if (r->map == MAP_FAILED)
		return false;
	/* Leave something between this and another mapping. */
	r->mem = align_up(r->map + 1, size);

	if (node >= 0)
		node_mask[node / bits] |= 1ul << (node % bits);
	if (mprotect(r->mem, nr * size, PROT_READ | PROT_WRITE) ||
	    (node >= 0 && mbind(r->mem, nr * size, MPOL_BIND, node_mask,
				8 * sizeof(node_mask), 0)) ||
	    madvise(r->mem, nr * size, MADV_HUGEPAGE)) {
		region_free(r);
		return false;
	}

	snprintf(path, sizeof(path), "hugepages-%zukB/enabled", size >> 10);
	thp_write_string(path, "madvise");
	for (addr = r->mem; addr < r->mem + nr * size; addr += psize())
		*addr = pattern(r, addr);
	thp_write_string(path, "never");
	r->full = read_stats(size);

	if (count_folios(env, r) == nr &&
	    r->full.nr_anon - r->empty.nr_anon == nr)
		return true;

	region_free(r);
	return false;
}

/* Of @node, or of all of the machine if that is -1. */
static inline long long free_memory(int node)
{
	struct sysinfo info;
	long long left;

	if (node >= 0)
		return numa_node_size64(node, &left) < 0 ? -1 : left;
	return sysinfo(&info) ? -1 : (long long)info.freeram * info.mem_unit;
}

/*
 * Get @nr folios of @size, or a default number, on the first node. False if
 * there are none, or not as many on the second node, if there is one, for
 * migration to get: no fault of what is tested here, but of fragmented memory.
 */
static inline bool region_alloc(struct folio_env *env, struct region *r,
				size_t size, int nr)
{
	long long need;
	int tries;

	if (!nr)
		nr = MAX_BYTES / size;
	if (nr > MAX_FOLIOS)
		nr = MAX_FOLIOS;
	if (nr < 2)
		nr = 2;

	/* PMDs can be large: don't get killed for lack of memory on a node. */
	need = (long long)nr * size;
	if (need > MAX_BYTES &&
	    (free_memory(env->node1) < 2 * need ||
	     (env->node2 >= 0 && free_memory(env->node2) < 2 * need))) {
		ksft_print_msg("%zukB: not enough free memory: not tested\n",
			       size >> 10);
		return false;
	}

	for (tries = 0; tries < 5; tries++) {
		if (env->node2 >= 0) {
			if (!region_populate(env, r, size, nr, env->node2))
				goto compact;
			region_free(r);
		}
		if (region_populate(env, r, size, nr, env->node1))
			return true;
compact:
		write_num("/proc/sys/vm/compact_memory", 1);
	}
	ksft_print_msg("%zukB: no %d folios on each of two nodes: not tested\n",
		       size >> 10, nr);
	return false;
}

/* Drop the end of each folio. */
static inline int region_drop(struct region *r, size_t len)
{
	int i;

	for (i = 0; i < r->nr; i++) {
		if (madvise(r->mem + (i + 1) * r->size - len, len,
			    MADV_DONTNEED))
			return -1;
	}
	return 0;
}

/* Take a reference to the first page of each folio, until both are closed. */
static inline int hold_folios(struct region *r, int fds[2])
{
	struct iovec iov = { .iov_len = psize() };
	int i;

	if (pipe(fds))
		return -1;
	for (i = 0; i < r->nr; i++) {
		iov.iov_base = r->mem + i * r->size;
		if (vmsplice(fds[1], &iov, 1, SPLICE_F_NONBLOCK) != psize())
			return -1;
	}
	return 0;
}

static inline void release_folios(int fds[2])
{
	close(fds[0]);
	close(fds[1]);
}

/*
 * Fork a child that drops the last @len bytes of each folio of @r, if any, and then
 * shares the memory until end_child(). Returns when it has done so, or -1.
 */
static inline pid_t fork_child_drop(int fds[2], struct region *r, size_t len)
{
	int ready[2];
	pid_t pid;
	char c;

	if (pipe(fds) || pipe(ready))
		return -1;
	pid = fork();
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(fds[1]);
		if ((r && region_drop(r, len)) || write(ready[1], "", 1) != 1)
			_exit(1);
		/* End of file. */
		_exit(read(fds[0], &c, 1) != 0);
	}
	close(fds[0]);
	close(ready[1]);
	if (pid > 0 && read(ready[0], &c, 1) != 1)
		pid = -1;
	close(ready[0]);
	return pid;
}

static inline pid_t fork_child(int fds[2])
{
	return fork_child_drop(fds, NULL, 0);
}

static inline bool end_child(pid_t pid, int fds[2])
{
	int status;

	close(fds[1]);
	return waitpid(pid, &status, 0) == pid && !status;
}

static sigjmp_buf bus_env;

static inline void on_bus_error(int sig)
{
	siglongjmp(bus_env, 1);
}

/* Does the access get SIGBUS? */
static inline bool bus_error(char *p, bool write)
{
	bool error = true;

	signal(SIGBUS, on_bus_error);
	if (!sigsetjmp(bus_env, 1)) {
		if (write)
			__atomic_fetch_add(p, 0, __ATOMIC_SEQ_CST);
		else
			FORCE_READ(*p);
		error = false;
	}
	signal(SIGBUS, SIG_DFL);
	return error;
}

static inline bool maps_large_folio(struct folio_env *env, char *page)
{
	uint64_t flags;

	return !pageflags_get(pagemap_get_pfn(env->pagemap_fd, page),
			      env->kpageflags_fd, &flags) && flags & KPF_THP;
}

/*
 * A file of shmem that consists of folios of @size: @nr of them, or as many as fit
 * into half of the free memory. Returns -1 if there are none.
 */
static inline int shmem_folios_of(struct folio_env *env, size_t size, int *nr)
{
	const long long fit = size ? free_memory(-1) / 2 / (long long)size : 0;
	char *map, *mem, path[128];
	bool large;
	int i, fd;

	if (*nr > fit)
		*nr = fit;
	if (*nr < 1 ||
	    !(thp_shmem_supported_orders() & (1ul << sz2ord(size, psize()))))
		return -1;
	fd = syscall(__NR_memfd_create, "folios", 0);
	if (fd < 0)
		return -1;
	map = mmap(NULL, (*nr + 1) * size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS,
		   -1, 0);
	if (map == MAP_FAILED) {
		close(fd);
		return -1;
	}
	mem = align_up(map, size);

	/* fallocate() would only get folios that a PMD can map. */
	snprintf(path, sizeof(path), "hugepages-%zukB/shmem_enabled", size >> 10);
	thp_write_string(path, "always");
	large = !ftruncate(fd, *nr * size) &&
		mmap(mem, *nr * size, PROT_READ | PROT_WRITE,
		     MAP_SHARED | MAP_FIXED | MAP_POPULATE, fd, 0) == mem;
	thp_write_string(path, "never");
	for (i = 0; large && i < *nr; i++)
		large = maps_large_folio(env, mem + i * size);
	munmap(map, (*nr + 1) * size);
	if (large)
		return fd;
	close(fd);
	return -1;
}

/* The same with folios that a PMD can map */
static inline int shmem_folios(struct folio_env *env, int *nr)
{
	return shmem_folios_of(env, env->pmd_size, nr);
}

static inline void expect_contents(struct __test_metadata *_metadata,
				   struct region *r)
{
	size_t wrong = 0;
	char *addr;

	for (addr = r->mem; addr < r->mem + r->nr * r->size; addr += psize())
		wrong += *addr != pattern(r, addr);
	EXPECT_EQ(wrong, 0) {
		TH_LOG("%zukB: %zu pages have wrong contents", r->size >> 10,
		       wrong);
	}
}

/* The sum of a field of smaps of a process, in kB, of what is mapped of @r; or -1 */
static inline long smaps_sum(pid_t pid, struct region *r, const char *field)
{
	const unsigned long first = (unsigned long)r->mem;
	const unsigned long end = first + r->nr * r->size;
	unsigned long vm_start, vm_end;
	char line[256], name[64];
	bool inside = false;
	long kb, sum = 0;
	FILE *file;

	snprintf(line, sizeof(line), "/proc/%d/smaps", pid);
	file = fopen(line, "r");
	if (!file)
		return -1;
	while (fgets(line, sizeof(line), file)) {
		if (sscanf(line, "%lx-%lx ", &vm_start, &vm_end) == 2) {
			inside = vm_start >= first && vm_end <= end;
			continue;
		}
		if (inside && sscanf(line, "%63[^:]: %ld kB", name, &kb) == 2 &&
		    !strcmp(name, field))
			sum += kb;
	}
	fclose(file);
	return sum;
}

#endif /* __FOLIO_REGION_H__ */
