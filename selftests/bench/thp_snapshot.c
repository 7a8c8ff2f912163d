// SPDX-License-Identifier: GPL-2.0
/*
 * A database that forks a child to write a snapshot, and what that costs: its memory
 * consists of folios of one size; while the child is there it writes to some pages of
 * each of them; after the child's exit it writes to one page of each, now and then to
 * another, and gets its huge pages back, or not.
 *
 * Meant for a guest whose clock counts instructions (qemu -icount shift=0): then a
 * nanosecond of CLOCK_MONOTONIC is one instruction, and a second that of a CPU which
 * executes 10^9 of them. Prints lines 'snapshot-CASE-WHAT NUMBER UNIT'.
 *
 *	thp_snapshot [--size KB] [--pages N] [--sequential] [--discard] [--memory MB]
 *		     [--seconds S]
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "bench.h"

#define PAGE	4096UL
#define MB	(1024 * 1024UL)
#define HUGE	(2 * MB)
#define CGROUP	"/sys/fs/cgroup/thp_snapshot/"

static size_t size = HUGE;	/* of a folio */
static size_t bytes = 1024 * MB;
static int copied = 64;		/* pages of 2 MiB that are written to meanwhile */
static int sequential, discard;
static int seconds = 60;

static char *mem;
static uint64_t *pfns;
static char name[64];		/* of the case */

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ULL + t.tv_nsec;
}

static void report(const char *what, uint64_t value, const char *unit)
{
	printf("%s-%s %llu %s\n", name, what, (unsigned long long)value, unit);
	fflush(stdout);
}

static long faults(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return usage.ru_minflt;
}

/* Of this process, in KiB; nothing without memory cgroups */
static void report_memory(const char *what)
{
	unsigned long long value;
	char text[64];
	FILE *f;

	f = fopen(CGROUP "memory.current", "r");
	if (!f)
		return;
	if (fscanf(f, "%llu", &value) == 1) {
		snprintf(text, sizeof(text), "kb-%s", what);
		report(text, value / 1024, "KiB");
	}
	fclose(f);
}

static void enter_cgroup(void)
{
	mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0, NULL);
	if (access("/sys/fs/cgroup/cgroup.subtree_control", W_OK))
		return;
	put("/sys/fs/cgroup/cgroup.subtree_control", "+memory");
	/* It may be there from a run before. */
	if (mkdir(CGROUP, 0755) && errno != EEXIST)
		err(1, CGROUP);
	put(CGROUP "cgroup.procs", "0");
}

static void read_pfns(uint64_t *to)
{
	int fd = open("/proc/self/pagemap", O_RDONLY);
	const size_t len = bytes / PAGE * 8;

	if (fd < 0 || pread(fd, to, len, (uintptr_t)mem / PAGE * 8) != (ssize_t)len)
		err(1, "pagemap");
	close(fd);
}

static uint64_t pfns_kept(void)
{
	uint64_t *after = malloc(bytes / PAGE * 8), kept = 0;
	size_t i;

	if (!after)
		err(1, "malloc");
	read_pfns(after);
	for (i = 0; i < bytes / PAGE; i++)
		kept += (after[i] ^ pfns[i]) << 9 == 0;
	free(after);
	return kept;
}

/* How many huge pages are mapped by PMDs */
static uint64_t huge_pages(void)
{
	unsigned long long kb = 0;
	char line[128];
	FILE *f = fopen("/proc/self/smaps_rollup", "r");

	if (!f)
		err(1, "smaps_rollup");
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "AnonHugePages: %llu kB", &kb) == 1)
			break;
	fclose(f);
	return kb * 1024 / HUGE;
}

static void populate(void)
{
	char path[128];
	size_t i;

	snprintf(path, sizeof(path),
		 "/sys/kernel/mm/transparent_hugepage/hugepages-%zukB/enabled", size / 1024);
	if (size > PAGE)
		put(path, "always");
	if (size < HUGE)
		put("/sys/kernel/mm/transparent_hugepage/hugepages-2048kB/enabled", "never");
	mem = mmap(NULL, bytes + HUGE, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (mem == MAP_FAILED)
		err(1, "mmap");
	mem = (char *)(((uintptr_t)mem + HUGE - 1) & ~(HUGE - 1));
	for (i = 0; i < bytes; i += PAGE)
		mem[i] = 1;
	if (size == HUGE && huge_pages() != bytes / HUGE)
		errx(1, "only %llu huge pages", (unsigned long long)huge_pages());
	for (i = 0; discard && i < bytes; i += HUGE)
		if (madvise(mem + i + 511 * PAGE, PAGE, MADV_DONTNEED))
			err(1, "madvise");
	pfns = malloc(bytes / PAGE * 8);
	if (!pfns)
		err(1, "malloc");
	read_pfns(pfns);
}

/* Returns the time that fork() took. The child exits when @go is closed. */
static uint64_t fork_snapshot(pid_t *child, int *go)
{
	uint64_t start;
	int fds[2];
	char c;

	if (pipe(fds))
		err(1, "pipe");
	start = now();
	*child = fork();
	if (*child < 0)
		err(1, "fork");
	if (!*child) {
		close(fds[1]);
		_exit(read(fds[0], &c, 1));
	}
	start = now() - start;
	close(fds[0]);
	*go = fds[1];
	return start;
}

static void end_snapshot(pid_t child, int go)
{
	close(go);
	if (waitpid(child, NULL, 0) != child)
		err(1, "waitpid");
}

/* Page 0 of each 2 MiB is written to after the child's exit, the last may be discarded. */
static void write_meanwhile(void)
{
	const int step = 510 / copied;
	unsigned int random = 1;
	size_t i;
	int j;

	for (i = 0; i < bytes; i += HUGE) {
		for (j = 0; j < copied; j++) {
			int page = sequential ? j : j * step + rand_r(&random) % step;

			mem[i + (1 + page) * PAGE] = 2;
		}
	}
}

/* Now and then a write, as a database that has little to do; returns the longest. */
static uint64_t wait_and_write(uint64_t until)
{
	static unsigned int random = 1;
	uint64_t start, longest = 0;

	while (now() < until) {
		start = now();
		mem[(size_t)rand_r(&random) % (bytes / PAGE) * PAGE] = 3;
		start = now() - start;
		if (start > longest)
			longest = start;
		usleep(10000);
	}
	return longest;
}

static void watch(void)
{
	static const int at[] = { 1, 2, 5, 10, 20, 30, 40, 60, 90, 120, 180, 300, 600 };
	uint64_t start = now(), longest = 0, spent;
	char text[64];
	size_t i;

	for (i = 0; i < sizeof(at) / sizeof(at[0]) && at[i] <= seconds; i++) {
		spent = wait_and_write(start + at[i] * 1000000000ULL);
		if (spent > longest)
			longest = spent;
		snprintf(text, sizeof(text), "huge-after-%d-s", at[i]);
		report(text, huge_pages(), "huge pages");
	}
	report("longest-write", longest, "ns");
}

static void options(int argc, char **argv)
{
	static const struct option longopts[] = {
		{ "size", required_argument, NULL, 's' },
		{ "pages", required_argument, NULL, 'p' },
		{ "sequential", no_argument, NULL, 'q' },
		{ "discard", no_argument, NULL, 'd' },
		{ "memory", required_argument, NULL, 'm' },
		{ "seconds", required_argument, NULL, 't' },
		{ }
	};
	int c;

	while ((c = getopt_long(argc, argv, "", longopts, NULL)) >= 0) {
		switch (c) {
		case 's': size = strtoul(optarg, NULL, 10) * 1024; break;
		case 'p': copied = atoi(optarg); break;
		case 'q': sequential = 1; break;
		case 'd': discard = 1; break;
		case 'm': bytes = strtoul(optarg, NULL, 10) * MB; break;
		case 't': seconds = atoi(optarg); break;
		default: errx(2, "options: see the head of thp_snapshot.c");
		}
	}
	if (size < PAGE || size > HUGE || (size & (size - 1)) || bytes < HUGE ||
	    bytes % HUGE || copied < 1 || copied > 256)
		errx(2, "--size 4 to 2048, a power of two; --pages 1 to 256; --memory a multiple of 2");
	snprintf(name, sizeof(name), "snapshot-%zuk-%d%s%s", size / 1024, copied,
		 sequential ? "-sequential" : "", discard ? "-discard" : "");
}

int main(int argc, char **argv)
{
	uint64_t start, first, nr;
	pid_t child;
	size_t i;
	int go;

	options(argc, argv);
	nr = bytes / HUGE;
	put("/sys/kernel/mm/transparent_hugepage/enabled", "always");
	enter_cgroup();
	populate();
	report_memory("before");

	first = fork_snapshot(&child, &go);
	report("fork", first, "ns");
	start = now();
	write_meanwhile();
	report("copy", now() - start, "ns");
	report_memory("copied");
	end_snapshot(child, go);
	report_memory("after-exit");

	for (i = 0; i < bytes; i += HUGE)
		mem[i] = 2;
	watch();
	report_memory("later");
	report("pages-in-place", pfns_kept(), "pages");

	report("next-fork", fork_snapshot(&child, &go), "ns");
	end_snapshot(child, go);
	start = faults();
	for (i = 0; i < bytes; i += PAGE)
		mem[i] = 4;
	report("faults", (faults() - start) / nr, "for 2 MiB");
	return 0;
}
