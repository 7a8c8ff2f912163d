// SPDX-License-Identifier: GPL-2.0
/*
 * A vector in private huge pages of 2 MiB that grows, as an allocator or a
 * container library would have it: by mremap() where the kernel can, else by
 * mapping another one, copying, and unmapping the first.
 *
 * Meant for a guest whose clock counts instructions (qemu -icount shift=0):
 * then a nanosecond of CLOCK_MONOTONIC is one instruction. Prints, after one run
 * to warm up, for each repeat a line: name, nanoseconds. And once, how many
 * pages were taken from the pool when it was most.
 *
 *	hugetlb_vector double|step|move|move-aligned REPEATS
 *
 * double: from 2 MiB to 256 MiB, twice the size each time; step: to 64 MiB by
 * 2 MiB. Only the growing counts, not that elements are filled in.
 * move: 4 GiB, all of it filled, grow by 2 MiB with something behind them, so
 * that they have to move; move-aligned: the same, mapped at a multiple of 1 GiB
 * first. They take 2049 huge pages, and 4097 where the vector has to be copied.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define MB	((size_t)1 << 20)
#define PAGE	(2 * MB)
#define POOL	"/sys/kernel/mm/hugepages/hugepages-2048kB/"

struct vector {
	uint64_t *data;
	size_t bytes;
	uint64_t spent;		/* nanoseconds of growing */
	unsigned long copies;
	long peak;		/* huge pages taken, or reserved */
};

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ULL + t.tv_nsec;
}

static long pool(const char *name)
{
	char path[128];
	long value;
	FILE *f;

	snprintf(path, sizeof(path), POOL "%s", name);
	f = fopen(path, "r");
	if (!f || fscanf(f, "%ld", &value) != 1)
		err(1, "%s", path);
	fclose(f);
	return value;
}

static void resize_pool(long nr)
{
	FILE *f = fopen(POOL "nr_hugepages", "w");

	if (!f || fprintf(f, "%ld", nr) < 0 || fclose(f))
		err(1, POOL "nr_hugepages");
}

/* @addr: where, replacing what is mapped there, or NULL */
static void *map(void *addr, size_t bytes)
{
	void *p = mmap(addr, bytes, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | (21 << MAP_HUGE_SHIFT) |
		       (addr ? MAP_FIXED : 0), -1, 0);

	if (p == MAP_FAILED)
		err(1, "mmap of %zu MiB", bytes / MB);
	return p;
}

static void note_peak(struct vector *v)
{
	long taken = pool("nr_hugepages") - pool("free_hugepages") + pool("resv_hugepages");

	if (taken > v->peak)
		v->peak = taken;
}

/* What an allocator does without mremap(): for a while there are both. */
static void *copy(struct vector *v, size_t bytes)
{
	void *p = map(NULL, bytes);
	uint64_t start;

	memcpy(p, v->data, v->bytes);
	start = now();
	note_peak(v);
	v->spent -= now() - start;
	munmap(v->data, v->bytes);
	v->copies++;
	return p;
}

static void grow(struct vector *v, size_t bytes)
{
	uint64_t start = now();
	void *p = mremap(v->data, v->bytes, bytes, MREMAP_MAYMOVE);

	if (p == MAP_FAILED && errno != EINVAL)
		err(1, "mremap to %zu MiB", bytes / MB);
	v->data = p == MAP_FAILED ? copy(v, bytes) : p;
	v->bytes = bytes;
	v->spent += now() - start;
	note_peak(v);
}

/* Element i is i, on each 4 KiB. */
static void fill(struct vector *v, size_t from)
{
	size_t i;

	for (i = from / 8; i < v->bytes / 8; i += 512)
		v->data[i] = i;
}

static void check(struct vector *v)
{
	size_t i;

	for (i = 0; i < v->bytes / 8; i += 512)
		if (v->data[i] != i)
			errx(1, "element %zu is %llu", i, (unsigned long long)v->data[i]);
}

static struct vector run(int doubling)
{
	const size_t end = doubling ? 256 * MB : 64 * MB;
	struct vector v = { .data = map(NULL, PAGE), .bytes = PAGE };

	fill(&v, 0);
	while (v.bytes < end) {
		size_t bytes = v.bytes;

		grow(&v, doubling ? 2 * bytes : bytes + PAGE);
		fill(&v, bytes);
	}
	check(&v);
	munmap(v.data, v.bytes);
	return v;
}

/* Something is behind the vector, so it has to move. It shrinks again for the next time. */
static uint64_t grow_by_moving(struct vector *v)
{
	const size_t bytes = v->bytes;
	void *behind = (char *)v->data + bytes;
	void *p = mmap(behind, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE,
		       -1, 0);

	if (p == MAP_FAILED && errno != EEXIST)
		err(1, "mmap behind the vector");
	v->spent = 0;
	grow(v, bytes + PAGE);
	if ((char *)v->data + bytes == behind)
		errx(1, "the vector has not moved");
	if (p != MAP_FAILED)
		munmap(behind, PAGE);
	fill(v, bytes);
	if (munmap((char *)v->data + bytes, PAGE))
		err(1, "munmap");
	v->bytes = bytes;
	return v->spent;
}

static int move(const char *name, int aligned, int repeats)
{
	const size_t bytes = 4096 * MB, span = 1024 * MB;
	struct vector v = { .bytes = bytes };
	char *p = NULL;

	resize_pool(4097);	/* or what there is memory for */
	if (aligned) {
		p = mmap(NULL, bytes + span, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
			 -1, 0);
		if (p == MAP_FAILED)
			err(1, "mmap of %zu MiB", (bytes + span) / MB);
		p = (char *)(((uintptr_t)p + span - 1) & -span);
	}
	v.data = map(p, bytes);
	fill(&v, 0);
	grow_by_moving(&v);
	printf("vector-%s-peak-pages %ld\n", name, v.peak);
	for (; repeats > 0; repeats--) {
		printf("vector-%s %llu\n", name, (unsigned long long)grow_by_moving(&v));
		fflush(stdout);
	}
	check(&v);
	fprintf(stderr, "%lu copies\n", v.copies);
	resize_pool(0);
	return 0;
}

int main(int argc, char **argv)
{
	int repeats = argc == 3 ? atoi(argv[2]) : 0;
	const char *name = argc == 3 ? argv[1] : "";
	int doubling = !strcmp(name, "double");
	struct vector v;

	if (repeats > 0 && (!strcmp(name, "move") || !strcmp(name, "move-aligned")))
		return move(name, !strcmp(name, "move-aligned"), repeats);
	if (repeats < 1 || (!doubling && strcmp(name, "step")))
		errx(2, "usage: hugetlb_vector double|step|move|move-aligned REPEATS");
	resize_pool(256);
	v = run(doubling);
	fprintf(stderr, "%lu copies\n", v.copies);
	printf("vector-%s-peak-pages %ld\n", name, v.peak);
	for (; repeats > 0; repeats--) {
		v = run(doubling);
		printf("vector-%s %llu\n", name, (unsigned long long)v.spent);
		fflush(stdout);
	}
	resize_pool(0);
	return 0;
}
