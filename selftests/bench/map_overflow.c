// SPDX-License-Identifier: GPL-2.0
/*
 * Maps one 2 MiB folio of a file by PTEs, all of its pages each time, until that
 * is refused or the kernel has lost count: a map count is an int. Needs a kernel
 * without debug options, a guest of 20 GiB, most of which becomes page tables,
 * and patience. Prints how often it is mapped, what the kernel says of that, and
 * whether it counts as mapped at all; then unmaps half, and maps some again.
 *
 *	map_overflow [MAPPINGS]
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "bench.h"

#define MB		(1024 * 1024UL)
#define SIZE		(2 * MB)
/* 2^32 mappings of pages of 4 KiB, and some */
#define MAX_MAPPINGS	(8 * MB + 1024)
#define KPF_MMAP	11

static sigjmp_buf bus_env;

static void on_bus_error(int sig)
{
	(void)sig;
	siglongjmp(bus_env, 1);
}

static unsigned long long read_u64(const char *path, unsigned long index)
{
	unsigned long long val;
	int fd = open(path, O_RDONLY);

	if (fd < 0 || pread(fd, &val, 8, index * 8) != 8)
		err(1, "%s", path);
	close(fd);
	return val;
}

/* What the kernel says of the folio, which is mapped whenever this asks */
static void report(const char *what, unsigned long mappings, char *p)
{
	unsigned long pfn = read_u64("/proc/self/pagemap", (unsigned long)p / 4096) &
			    ((1ULL << 55) - 1);

	printf("%s, %lu mappings: kpagecount %lld, %s\n", what, mappings,
	       read_u64("/proc/kpagecount", pfn),
	       read_u64("/proc/kpageflags", pfn) & (1 << KPF_MMAP) ?
	       "mapped" : "counts as NOT mapped");
	fflush(stdout);
}

/* Map all pages of the folio at @p. False if that gets SIGBUS. */
static int map(int fd, char *p)
{
	if (mmap(p, SIZE, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0) != p ||
	    madvise(p, SIZE, MADV_NOHUGEPAGE))
		err(1, "mapping at %p", (void *)p);
	if (sigsetjmp(bus_env, 1))
		return 0;
	*(volatile char *)p;
	return 1;
}

int main(int argc, char **argv)
{
	unsigned long i, n, max = MAX_MAPPINGS;
	char *arena, *p;
	int fd;

	if (argc > 1)
		max = strtoul(argv[1], NULL, 0);
	signal(SIGBUS, on_bus_error);
	put("/proc/sys/vm/max_map_count", "16777216");
	put("/proc/sys/vm/overcommit_memory", "1");
	put("/sys/kernel/mm/transparent_hugepage/shmem_enabled", "force");
	put("/sys/kernel/debug/fault_around_bytes", "2097152");
	fd = syscall(__NR_memfd_create, "map_overflow", 0);
	if (fd < 0 || fallocate(fd, 0, 0, SIZE))
		err(1, "memfd");

	arena = mmap(NULL, (max + 1) * SIZE, PROT_NONE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (arena == MAP_FAILED)
		err(1, "address space");
	p = (char *)(((unsigned long)arena + SIZE - 1) & ~(SIZE - 1));

	for (i = 0; i < max; i++) {
		if (!map(fd, p + i * SIZE))
			break;
		if (!(i & (i + 1)) || i % (256 * 1024) == 0)
			report("mapped", i + 1, p);
	}
	report(i == max ? "not refused" : "refused", i, p);
	if (munmap(p + i / 2 * SIZE, (i - i / 2) * SIZE))
		err(1, "munmap");
	report("unmapped half", i / 2, p);
	for (n = i / 2; n < i / 2 + 16 && n < max; n++)
		if (!map(fd, p + n * SIZE))
			errx(1, "cannot be mapped again");
	report("mapped again", n, p);
	return 0;
}
