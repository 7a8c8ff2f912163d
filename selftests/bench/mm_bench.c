// SPDX-License-Identifier: GPL-2.0
/*
 * Benchmarks of how large pages are mapped, moved, migrated and unmapped.
 *
 * Meant for a guest whose clock counts instructions (qemu -icount shift=0):
 * then a nanosecond of CLOCK_MONOTONIC is one instruction. Each benchmark runs
 * once to warm up, then prints a line for each repeat: name, nanoseconds.
 *
 *	mm_bench NAME REPEATS
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/memfd.h>
#include <linux/mempolicy.h>
#include <linux/mman.h>
#include <linux/userfaultfd.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "bench.h"

#define KB	1024UL
#define MB	(1024 * KB)
#define GB	(1024 * MB)

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	mark(1);
	return t.tv_sec * 1000000000ULL + t.tv_nsec;
}

static int warming_up = 1;

static uint64_t report(const char *name, uint64_t start)
{
	uint64_t end = now();

	if (warming_up)
		return end - start;
	mark(2);
	printf("%s %llu\n", name, (unsigned long long)(end - start));
	fflush(stdout);
	return end - start;
}

static unsigned long get(const char *path)
{
	unsigned long value;
	FILE *f = fopen(path, "r");

	if (!f || fscanf(f, "%lu", &value) != 1)
		err(1, "%s", path);
	fclose(f);
	return value;
}

/* Only folios of this size for anonymous memory; 4: none but single pages */
static void thp_size(unsigned int kb)
{
	static const unsigned int sizes[] = { 16, 32, 64, 128, 256, 512, 1024, 2048 };
	char path[128];
	size_t i;

	for (i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		snprintf(path, sizeof(path),
			 "/sys/kernel/mm/transparent_hugepage/hugepages-%ukB/enabled", sizes[i]);
		put(path, sizes[i] == kb ? "always" : "never");
	}
}

static unsigned long nr_anon(unsigned int kb)
{
	char path[128];

	snprintf(path, sizeof(path),
		 "/sys/kernel/mm/transparent_hugepage/hugepages-%ukB/stats/nr_anon", kb);
	return get(path);
}

/* @size bytes of anonymous memory in folios of @kb KiB, mapped by PTEs */
static char *anon(size_t size, unsigned int kb)
{
	unsigned long before = 0;
	size_t i;
	char *p;

	thp_size(kb);
	if (kb > 4)
		before = nr_anon(kb);
	p = mmap(NULL, size + 2 * MB, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED)
		err(1, "mmap");
	p = (char *)(((uintptr_t)p + 2 * MB - 1) & ~(2 * MB - 1));
	for (i = 0; i < size; i += 4 * KB)
		p[i] = 1;
	if (kb > 4 && nr_anon(kb) - before < size / (kb * KB))
		errx(1, "only %lu folios of %u KiB", nr_anon(kb) - before, kb);
	/* changing one page's protection splits the PMD, not the folio */
	for (i = 0; kb == 2048 && i < size; i += 2 * MB)
		if (mprotect(p + i, 4 * KB, PROT_READ) ||
		    mprotect(p + i, 4 * KB, PROT_READ | PROT_WRITE))
			err(1, "mprotect");
	return p;
}

static void policy(int node)
{
	unsigned long nodes = 1UL << node;

	if (syscall(SYS_set_mempolicy, MPOL_BIND, &nodes, 8 * sizeof(nodes)))
		err(1, "set_mempolicy");
}

static void move_to(char *p, size_t size, int node)
{
	unsigned long nodes = 1UL << node;

	if (syscall(SYS_mbind, p, size, MPOL_BIND, &nodes, 8 * sizeof(nodes),
		    MPOL_MF_MOVE | MPOL_MF_STRICT))
		err(1, "mbind");
}

/*
 * 1024 fully mapped folios of 64 KiB to the other node, and back. They are new
 * ones for each repeat: what a migration does to them the next one would find.
 */
static void migrate_64k(int repeats)
{
	uint64_t start;
	char *p;

	for (; repeats >= 0; repeats--) {
		policy(0);
		p = anon(64 * MB, 64);
		start = now();
		move_to(p, 64 * MB, 1);
		report("migrate-64k-there", start);
		start = now();
		move_to(p, 64 * MB, 0);
		report("migrate-64k-back", start);
		if (munmap(p, 64 * MB))
			err(1, "munmap");
		warming_up = 0;
	}
}

static char *gigabyte_hole(void)
{
	char *p = mmap(NULL, 2 * GB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		err(1, "mmap");
	return (char *)(((uintptr_t)p + GB - 1) & ~(GB - 1));
}

/*
 * 1 GiB of hugetlb pages to another aligned gigabyte. Shared: the page table is
 * shared with a second process before, as in a database; touching the pages
 * again where they moved to is part of the price.
 */
static void hugetlb_mremap(int shared, int touch, int repeats)
{
	int go[2];
	char *p = gigabyte_hole(), *q, c = 0;
	uint64_t start;
	size_t i;
	pid_t child = 0;

	put("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "512");
	p = mmap(p, GB, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_ANONYMOUS | MAP_HUGETLB |
		 (shared ? MAP_SHARED : MAP_PRIVATE), -1, 0);
	if (p == MAP_FAILED)
		err(1, "hugetlb mmap");
	if (shared) {
		if (pipe(go))
			err(1, "pipe");
		child = fork();
		for (i = 0; i < GB; i += 2 * MB)
			p[i] = 1;
		if (!child) {
			close(go[1]);
			_exit(read(go[0], &c, 1));
		}
	}
	for (i = 0; touch && i < GB; i += 2 * MB)
		p[i] = 1;
	/* so short that it takes many for a median without a timer tick */
	for (repeats *= 5; repeats >= 0; repeats--) {
		q = gigabyte_hole();
		start = now();
		if (mremap(p, GB, GB, MREMAP_MAYMOVE | MREMAP_FIXED, q) != q)
			err(1, "mremap");
		for (i = 0; shared && i < GB; i += 2 * MB)
			((volatile char *)q)[i];
		report(shared ? "hugetlb-move-shared" :
		       touch ? "hugetlb-move-private" : "hugetlb-move-untouched", start);
		p = q;
		warming_up = 0;
	}
	if (child) {
		close(go[1]);
		waitpid(child, NULL, 0);
	}
	munmap(p, GB);
	put("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "0");
}

/* fork with 64 MiB mapped, the child's exit, and munmap */
static void map_unmap(const char *size, unsigned int kb, int repeats)
{
	char name[64], c = 0;
	uint64_t start;
	pid_t child;
	int go[2];
	char *p;

	for (; repeats >= 0; repeats--) {
		p = anon(64 * MB, kb);
		if (pipe(go))
			err(1, "pipe");
		start = now();
		child = fork();
		if (child < 0)
			err(1, "fork");
		if (!child) {
			close(go[1]);
			_exit(read(go[0], &c, 1));
		}
		snprintf(name, sizeof(name), "fork-%s", size);
		report(name, start);
		/* let the child run until it waits: only its exit is counted */
		usleep(10000);
		close(go[0]);
		start = now();
		close(go[1]);
		if (waitpid(child, NULL, 0) != child)
			err(1, "waitpid");
		snprintf(name, sizeof(name), "exit-%s", size);
		report(name, start);
		start = now();
		if (munmap(p, 64 * MB))
			err(1, "munmap");
		snprintf(name, sizeof(name), "munmap-%s", size);
		report(name, start);
		warming_up = 0;
	}
}

/*
 * Fork a child that maps @p, 64 MiB, until @go is closed. It first drops one page of
 * each @drop bytes, unless that is 0.
 */
static pid_t fork_mapping(char *p, size_t drop, int *go)
{
	int ready[2], end[2];
	pid_t child;
	char c = 0;
	size_t i;

	if (pipe(ready) || pipe(end))
		err(1, "pipe");
	child = fork();
	if (child < 0)
		err(1, "fork");
	if (!child) {
		close(end[1]);
		for (i = 0; drop && i < 64 * MB; i += drop)
			if (madvise(p + i, 4 * KB, MADV_DONTNEED))
				err(1, "madvise");
		if (write(ready[1], &c, 1) != 1)
			_exit(1);
		_exit(read(end[0], &c, 1));
	}
	close(ready[1]);
	if (read(ready[0], &c, 1) != 1)
		errx(1, "the child has failed");
	close(ready[0]);
	close(end[0]);
	*go = end[1];
	/* let the child run until it waits: none of it is counted */
	usleep(10000);
	return child;
}

static void end_mapping(pid_t child, int go)
{
	close(go);
	if (waitpid(child, NULL, 0) != child)
		err(1, "waitpid");
}

/* each from offset 0: a second write behind the first one is ignored */
static void drop_slab(int fd)
{
	if (pwrite(fd, "2", 1, 0) != 1)
		err(1, "drop_caches");
}

/*
 * The deferred split shrinker, which a write to drop_caches runs for the whole
 * queue, with all other shrinkers. These have had all that they can drop, by three
 * writes before. The same write again finds the queue empty, unless folios were
 * put back, so the difference is what the shrinker did with the queue. A timer tick
 * in the second write would hide a part of it: that one is the least of three.
 */
static void shrink(int fd, unsigned long folios)
{
	uint64_t start, first, spent, again = UINT64_MAX;
	int i;

	start = now();
	drop_slab(fd);
	first = report("snapshot-drop-caches", start);
	for (i = 0; i < 3; i++) {
		start = now();
		drop_slab(fd);
		spent = report("snapshot-drop-again", start);
		if (spent < again)
			again = spent;
	}
	/* not between two marks: locked operations are counted for those above */
	if (!warming_up)
		printf("snapshot-shrink %llu for %lu folios\n",
		       (unsigned long long)(first > again ? first - again : 0), folios);
	fflush(stdout);
}

/*
 * A snapshot, as of a database: the parent writes to one page of each of 1024
 * folios of 64 KiB while a child that has written nothing maps all of them. Counts
 * the writes, or what the shrinker does afterwards.
 */
static void snapshot(int shrinker, int repeats)
{
	int i, go, fd = -1;
	uint64_t start;
	size_t offset;
	pid_t child;
	char *p;

	if (shrinker) {
		/* no message for each write */
		put("/proc/sys/vm/drop_caches", "4");
		fd = open("/proc/sys/vm/drop_caches", O_WRONLY);
		if (fd < 0)
			err(1, "drop_caches");
	}
	for (; repeats >= 0; repeats--) {
		p = anon(64 * MB, 64);
		child = fork_mapping(p, 0, &go);
		for (i = 0; shrinker && i < 3; i++)
			drop_slab(fd);
		start = now();
		for (offset = 0; offset < 64 * MB; offset += 64 * KB)
			p[offset] = 2;
		if (shrinker)
			shrink(fd, 64 * MB / (64 * KB));
		else
			report("snapshot-cow", start);
		end_mapping(child, go);
		if (munmap(p, 64 * MB))
			err(1, "munmap");
		warming_up = 0;
	}
}

static void write_pages(char *p, size_t first, size_t step, const char *what, const char *size)
{
	char name[64];
	uint64_t start;
	size_t offset;

	start = now();
	for (offset = first; offset < 64 * MB; offset += step)
		p[offset] = 2;
	snprintf(name, sizeof(name), "%s-%s", what, size);
	report(name, start);
}

/*
 * A snapshot, seen from its end: the parent writes to 2048 pages of 64 MiB while a
 * child maps them; after the child's exit to one page of each 64 KiB, then to all.
 */
static void reuse(const char *size, unsigned int kb, int repeats)
{
	pid_t child;
	char *p;
	int go;

	for (; repeats >= 0; repeats--) {
		p = anon(64 * MB, kb);
		child = fork_mapping(p, 0, &go);
		write_pages(p, 0, 32 * KB, "copy", size);
		end_mapping(child, go);
		write_pages(p, 4 * KB, 64 * KB, "reuse-first", size);
		write_pages(p, 0, 4 * KB, "reuse-rest", size);
		if (munmap(p, 64 * MB))
			err(1, "munmap");
		warming_up = 0;
	}
}

#ifndef MAP_BASE_PAGES
#define MAP_BASE_PAGES	0x200000
#endif

/* UFFDIO_CONTINUE of 64 MiB, by so many bytes at once, and unmapping it */
static void uffd_continue(int uffd, char *p, size_t step, const char *what,
			  const char *kind)
{
	struct uffdio_continue cont = { .range = { .len = step } };
	char name[64];
	uint64_t start;
	size_t offset;

	start = now();
	for (offset = 0; offset < 64 * MB; offset += step) {
		cont.range.start = (uintptr_t)p + offset;
		if (ioctl(uffd, UFFDIO_CONTINUE, &cont))
			err(1, "UFFDIO_CONTINUE");
	}
	snprintf(name, sizeof(name), "%s-%s", what, kind);
	report(name, start);
	start = now();
	if (madvise(p, 64 * MB, MADV_DONTNEED))
		err(1, "MADV_DONTNEED");
	snprintf(name, sizeof(name), "%s-%s-unmap", what, kind);
	report(name, start);
}

/*
 * 64 MiB of a file that is in the page cache, mapped by 4 KiB: of shmem, or of a huge
 * page of 1 GiB. By 4 KiB, and by 2 MiB at once.
 */
static void continue_file(const char *kind, int base_pages, int repeats)
{
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = UFFD_FEATURE_MINOR_HUGETLBFS | UFFD_FEATURE_MINOR_SHMEM,
	};
	struct uffdio_register reg = {
		.range = { .len = 64 * MB },
		.mode = UFFDIO_REGISTER_MODE_MINOR,
	};
	const size_t size = base_pages ? GB : 64 * MB;
	unsigned int flags = 0;
	int fd, uffd;
	char *p;

	if (base_pages) {
		put("/sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages", "1");
		flags = MFD_HUGETLB | 30 << MFD_HUGE_SHIFT;
	}
	fd = memfd_create("continue", flags);
	if (fd < 0 || ftruncate(fd, size) || fallocate(fd, 0, 0, size))
		err(1, "memfd");
	p = mmap(NULL, size, PROT_READ | PROT_WRITE,
		 base_pages ? MAP_SHARED_VALIDATE | MAP_BASE_PAGES : MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		err(1, "mmap");
	uffd = syscall(__NR_userfaultfd, O_CLOEXEC);
	reg.range.start = (uintptr_t)p;
	reg.range.len = size;
	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) ||
	    ioctl(uffd, UFFDIO_REGISTER, &reg))
		err(1, "userfaultfd");
	for (; repeats >= 0; repeats--) {
		uffd_continue(uffd, p, 4 * KB, "continue-4k", kind);
		uffd_continue(uffd, p, 2 * MB, "continue-2m", kind);
		warming_up = 0;
	}
	close(uffd);
	munmap(p, size);
	close(fd);
	if (base_pages)
		put("/sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages", "0");
}

/* The same with huge pages, which MADV_COLLAPSE maps by PMDs again, 32 of them */
static void collapse(int repeats)
{
	uint64_t start;
	pid_t child;
	char *p;
	int go;

	for (; repeats >= 0; repeats--) {
		p = anon(64 * MB, 2048);
		child = fork_mapping(p, 0, &go);
		write_pages(p, 0, 32 * KB, "collapse-copy", "2m");
		end_mapping(child, go);
		start = now();
		if (madvise(p, 64 * MB, MADV_COLLAPSE))
			err(1, "MADV_COLLAPSE");
		report("collapse-2m", start);
		if (munmap(p, 64 * MB))
			err(1, "munmap");
		warming_up = 0;
	}
}

/* so that no collapse succeeds, and each scan gets to the end of the table */
static void protect_last_page(char *p, size_t size)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = {
		.range = { (uintptr_t)p, size },
		.mode = UFFDIO_REGISTER_MODE_WP,
	};
	struct uffdio_writeprotect wp = {
		.range = { 0, 4 * KB },
		.mode = UFFDIO_WRITEPROTECT_MODE_WP,
	};
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC);
	size_t i;

	if (fd < 0 || ioctl(fd, UFFDIO_API, &api) || ioctl(fd, UFFDIO_REGISTER, &reg))
		err(1, "userfaultfd");
	for (i = 2 * MB - 4 * KB; i < size; i += 2 * MB) {
		wp.range.start = (uintptr_t)p + i;
		if (ioctl(fd, UFFDIO_WRITEPROTECT, &wp))
			err(1, "UFFDIO_WRITEPROTECT");
	}
}

/* the clock of the time that khugepaged has run */
static clockid_t khugepaged_clock(void)
{
	char comm[32], path[288];
	struct dirent *entry;
	DIR *dir = opendir("/proc");
	clockid_t clock;
	int found = 0;
	FILE *f;

	while (dir && !found && (entry = readdir(dir))) {
		snprintf(path, sizeof(path), "/proc/%s/comm", entry->d_name);
		f = fopen(path, "r");
		if (!f)
			continue;
		found = fscanf(f, "%31s", comm) == 1 && !strcmp(comm, "khugepaged");
		fclose(f);
	}
	if (!found || clock_getcpuclockid(atoi(entry->d_name), &clock))
		errx(1, "no khugepaged");
	closedir(dir);
	return clock;
}

static uint64_t spent(clockid_t clock)
{
	struct timespec t;

	if (clock_gettime(clock, &t))
		err(1, "time of khugepaged");
	return t.tv_sec * 1000000000ULL + t.tv_nsec;
}

#define KHUGEPAGED(file) "/sys/kernel/mm/transparent_hugepage/khugepaged/" file

/*
 * What khugepaged executes in ten scans of 64 MiB where it has nothing to collapse:
 * folios of 64 KiB with only these enabled; or single pages and huge pages enabled.
 */
static void khugepaged(unsigned int kb, int repeats)
{
	const unsigned long sleep = get(KHUGEPAGED("scan_sleep_millisecs"));
	const unsigned long pages = get(KHUGEPAGED("pages_to_scan"));
	clockid_t clock = khugepaged_clock();
	unsigned long scans;
	char text[32];
	uint64_t before;
	char *p;

	put(KHUGEPAGED("scan_sleep_millisecs"), "10");
	put(KHUGEPAGED("pages_to_scan"), "65536");
	p = anon(64 * MB, kb);
	if (kb == 4) {
		protect_last_page(p, 64 * MB);
		thp_size(2048);
	}
	/* the base does not scan this process otherwise, as no page fault has added it */
	if (madvise(p, 64 * MB, MADV_HUGEPAGE))
		err(1, "madvise");
	for (; repeats >= 0; repeats--) {
		scans = get(KHUGEPAGED("full_scans"));
		while (get(KHUGEPAGED("full_scans")) == scans)
			usleep(1000);
		before = spent(clock);
		while (get(KHUGEPAGED("full_scans")) < scans + 11)
			usleep(1000);
		before = spent(clock) - before;
		/* not between two marks, as in shrink() */
		if (!warming_up)
			printf("khugepaged-%uk %llu for 10 scans\n", kb, (unsigned long long)before);
		fflush(stdout);
		warming_up = 0;
	}
	thp_size(4);
	munmap(p, 64 * MB);
	snprintf(text, sizeof(text), "%lu", sleep);
	put(KHUGEPAGED("scan_sleep_millisecs"), text);
	snprintf(text, sizeof(text), "%lu", pages);
	put(KHUGEPAGED("pages_to_scan"), text);
}

/* what /proc says of 64 MiB at @p: all of pagemap, or the sums of smaps */
static void read_proc(int fd, int pagemap, char *p)
{
	static char buf[64 * MB / (4 * KB) * 8];
	off_t offset = pagemap ? (uintptr_t)p / (4 * KB) * 8 : 0;
	ssize_t n = pread(fd, buf, sizeof(buf), offset);

	if (n < 0)
		err(1, "%s", pagemap ? "pagemap" : "smaps_rollup");
	if (!n || (pagemap && n != (ssize_t)sizeof(buf)))
		errx(1, "read only %zd bytes", n);
}

/*
 * 1024 folios of 64 KiB that no other process maps, then with a child that has
 * dropped one page of every second folio: so of these, not all pages are mapped
 * equally often. smaps_rollup rather than smaps: no text for each VMA.
 */
static void map_files(const char *file, int pagemap, int repeats)
{
	char name[64];
	uint64_t start;
	pid_t child;
	int go, fd;
	char *p;

	fd = open(pagemap ? "/proc/self/pagemap" : "/proc/self/smaps_rollup", O_RDONLY);
	if (fd < 0)
		err(1, "%s", file);
	for (; repeats >= 0; repeats--) {
		p = anon(64 * MB, 64);
		/* once before: the buffer is there, and after fork() no longer shared */
		read_proc(fd, pagemap, p);
		start = now();
		read_proc(fd, pagemap, p);
		snprintf(name, sizeof(name), "%s-exclusive", file);
		report(name, start);
		child = fork_mapping(p, 128 * KB, &go);
		read_proc(fd, pagemap, p);
		start = now();
		read_proc(fd, pagemap, p);
		snprintf(name, sizeof(name), "%s-uneven", file);
		report(name, start);
		end_mapping(child, go);
		if (munmap(p, 64 * MB))
			err(1, "munmap");
		warming_up = 0;
	}
}

#define HVO_PATH "/proc/sys/vm/hugetlb_optimize_vmemmap"

static unsigned long nr_memmap(void)
{
	unsigned long sum = 0, value;
	FILE *f = fopen("/proc/vmstat", "r");
	char name[64];

	if (!f)
		err(1, "/proc/vmstat");
	while (fscanf(f, "%63s %lu", name, &value) == 2)
		if (!strcmp(name, "nr_memmap_pages") || !strcmp(name, "nr_memmap_boot_pages"))
			sum += value;
	fclose(f);
	return sum;
}

/* Switch the HugeTLB vmemmap optimization. Returns 0 if the kernel has none. */
static int hvo(const char *on)
{
	if (access(HVO_PATH, F_OK))
		return 0;
	put(HVO_PATH, on);
	/* or a grace period would be counted, which is time that the CPU is idle */
	put("/sys/kernel/rcu_expedited", "1");
	return 1;
}

static void report_hvo(const char *name, int on, uint64_t start)
{
	char text[64];

	snprintf(text, sizeof(text), "%s%s", name, on ? "-hvo" : "");
	report(text, start);
}

#define POOL(kb, file) "/sys/kernel/mm/hugepages/hugepages-" #kb "kB/" file

/* 256 huge pages of 2 MiB into the pool and out again */
static void pool(int on)
{
	unsigned long before = nr_memmap();
	uint64_t start = now();

	put(POOL(2048, "nr_hugepages"), "256");
	report_hvo("pool-grow", on, start);
	if (get(POOL(2048, "nr_hugepages")) != 256)
		errx(1, "no huge pages");
	if (on && nr_memmap() >= before)
		errx(1, "HVO does not free anything");
	start = now();
	put(POOL(2048, "nr_hugepages"), "0");
	report_hvo("pool-shrink", on, start);
}

/* A huge page of 1 GiB into 512 of 2 MiB */
static void demote(int on)
{
	uint64_t start;

	put(POOL(1048576, "nr_hugepages"), "1");
	if (get(POOL(1048576, "nr_hugepages")) != 1)
		errx(1, "no huge page");
	put(POOL(1048576, "demote_size"), "2048kB");
	start = now();
	put(POOL(1048576, "demote"), "1");
	report_hvo("demote", on, start);
	if (get(POOL(2048, "nr_hugepages")) != 512)
		errx(1, "not demoted");
	put(POOL(2048, "nr_hugepages"), "0");
}

/* Without and with HVO */
static void without_and_with_hvo(void (*run)(int on), int repeats)
{
	int on;

	for (; repeats >= 0; repeats--) {
		for (on = 0; on <= 1; on++) {
			if (!hvo(on ? "1" : "0") && on)
				errx(1, "no HVO");
			run(on);
		}
		warming_up = 0;
	}
}

int main(int argc, char **argv)
{
	int repeats = argc > 2 ? atoi(argv[2]) : 0;
	const char *name = argc > 1 ? argv[1] : "";

	if (repeats < 1)
		errx(2, "usage: mm_bench NAME REPEATS");
	put("/sys/kernel/mm/transparent_hugepage/enabled", "always");
	if (!strcmp(name, "migrate-64k"))
		migrate_64k(repeats);
	else if (!strcmp(name, "hugetlb-move-private"))
		hugetlb_mremap(0, 1, repeats);
	else if (!strcmp(name, "hugetlb-move-untouched"))
		hugetlb_mremap(0, 0, repeats);
	else if (!strcmp(name, "hugetlb-move-shared"))
		hugetlb_mremap(1, 1, repeats);
	else if (!strcmp(name, "map-4k"))
		map_unmap("4k", 4, repeats);
	else if (!strcmp(name, "map-64k"))
		map_unmap("64k", 64, repeats);
	else if (!strcmp(name, "map-2m-by-pte"))
		map_unmap("2m-by-pte", 2048, repeats);
	else if (!strcmp(name, "snapshot-cow"))
		snapshot(0, repeats);
	else if (!strcmp(name, "snapshot-shrink"))
		snapshot(1, repeats);
	else if (!strcmp(name, "reuse-4k"))
		reuse("4k", 4, repeats);
	else if (!strcmp(name, "reuse-64k"))
		reuse("64k", 64, repeats);
	else if (!strcmp(name, "reuse-2m"))
		reuse("2m", 2048, repeats);
	else if (!strcmp(name, "continue-shmem"))
		continue_file("shmem", 0, repeats);
	else if (!strcmp(name, "continue-base-pages"))
		continue_file("base-pages", 1, repeats);
	else if (!strcmp(name, "collapse-2m"))
		collapse(repeats);
	else if (!strcmp(name, "khugepaged-4k"))
		khugepaged(4, repeats);
	else if (!strcmp(name, "khugepaged-64k"))
		khugepaged(64, repeats);
	else if (!strcmp(name, "smaps-read"))
		map_files("smaps-read", 0, repeats);
	else if (!strcmp(name, "pagemap-read"))
		map_files("pagemap-read", 1, repeats);
	else if (!strcmp(name, "hvo-pool"))
		without_and_with_hvo(pool, repeats);
	else if (!strcmp(name, "hvo-demote"))
		without_and_with_hvo(demote, repeats);
	else
		errx(2, "no benchmark '%s'", name);
	return 0;
}
