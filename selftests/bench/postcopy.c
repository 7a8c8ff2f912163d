// SPDX-License-Identifier: GPL-2.0
/*
 * Post-copy migration of memory between two processes: for each kind of memory, how
 * long a thread waits for a page that is not there yet.
 *
 *   postcopy [-b] [-m MiB] [-r MB/s] [-t threads] [-s seed] [kind]...
 *
 *   -b  print lines for scripts/bench: a name and a number
 *
 * The source is a child process at the other end of a socket. It sends all of the
 * memory, 4 KiB after 4 KiB, at a limited rate, and what a fault needs before all
 * else. The destination has threads that touch pages at random. Where one of them
 * touches a page that has not arrived, a fault waits for it, and for all of the unit
 * that one fault needs: a huge page, or 4 KiB. Each page is checked when a thread has
 * it. In the end, the memory is mapped by huge pages again, if it has some.
 *
 * Kinds: shmem, hugetlb-2m, hugetlb-1g (faults that need a whole huge page), base-2m
 * and base-1g (huge pages mapped by base pages: MAP_BASE_PAGES).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/memfd.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include "bench.h"

#ifndef MAP_BASE_PAGES
#define MAP_BASE_PAGES	0x200000
#endif

#define CHUNK		4096ul		/* what the source sends at once */
#define MAX_THREADS	16
#define MAX_WAITS	(1 << 20)

struct kind {
	const char *name;
	unsigned long huge;	/* size of a page of the file */
	unsigned long unit;	/* what a fault needs */
};

static const struct kind kinds[] = {
	{ "shmem", CHUNK, CHUNK },
	{ "hugetlb-2m", 2ul << 20, 2ul << 20 },
	{ "hugetlb-1g", 1ul << 30, 1ul << 30 },
	{ "base-2m", 2ul << 20, CHUNK },
	{ "base-1g", 1ul << 30, CHUNK },
};

struct packet {
	uint64_t chunk;
	uint64_t data[CHUNK / 8];
};

static unsigned long size = 1ul << 30, rate = 100000000;
static int nr_threads = 2;
static unsigned int seed = 1;
static bool for_bench;

static const struct kind *kind;
static unsigned long nr_chunks, nr_units;
static char *fill;		/* where data is written to */
static char *guest;		/* where threads look at it: faults */
static bool *arrived;		/* of each chunk */
static bool *mapped;		/* of each unit */
static unsigned int *missing;	/* chunks of each unit */
static double start, *waits;
static unsigned long nr_waits, nr_touched, nr_early, nr_received;
static bool stop;

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static uint64_t word_of(uint64_t chunk, unsigned int i)
{
	return (chunk * (CHUNK / 8) + i) * 0x9e3779b97f4a7c15;
}

static bool right(const uint64_t *data, uint64_t chunk)
{
	return data[0] == word_of(chunk, 0) && data[100] == word_of(chunk, 100) &&
	       data[CHUNK / 8 - 1] == word_of(chunk, CHUNK / 8 - 1);
}

static void all(ssize_t (*io)(int, void *, size_t), int fd, void *buf, size_t len)
{
	while (len) {
		ssize_t n = io(fd, buf, len);

		if (n <= 0)
			err(1, "the other process is gone");
		buf = (char *)buf + n;
		len -= n;
	}
}

/* Units that were asked for come first, in their order; then what is left. */
static void source(int sock)
{
	const unsigned long per_unit = kind->unit / CHUNK;
	bool *sent = calloc(nr_chunks, sizeof(*sent));
	unsigned long next = 0, urgent = 0, urgent_end = 0, nr;
	double due = now();
	struct packet packet;
	unsigned int i;

	for (nr = 0; nr < nr_chunks; ) {
		uint64_t unit, chunk;
		struct timespec pause;
		double early;

		while (urgent < urgent_end && sent[urgent])
			urgent++;
		while (urgent == urgent_end &&
		       recv(sock, &unit, sizeof(unit), MSG_DONTWAIT) == sizeof(unit)) {
			urgent = unit * per_unit;
			urgent_end = urgent + per_unit;
			while (urgent < urgent_end && sent[urgent])
				urgent++;
		}
		if (urgent < urgent_end) {
			chunk = urgent;
		} else {
			while (sent[next])
				next++;
			chunk = next;
		}
		sent[chunk] = true;
		nr++;
		packet.chunk = chunk;
		for (i = 0; i < CHUNK / 8; i++)
			packet.data[i] = word_of(chunk, i);
		all((void *)write, sock, &packet, sizeof(packet));

		due += (double)CHUNK / rate;
		early = due - now();
		if (early > 0.0005) {
			pause.tv_sec = early;
			pause.tv_nsec = (early - pause.tv_sec) * 1e9;
			nanosleep(&pause, NULL);
		}
	}
	/* Wait until the destination has it all */
	read(sock, &packet, 1);
	exit(0);
}

static void map_unit(int uffd, unsigned long unit)
{
	struct uffdio_continue cont = {
		.range = {
			.start = (uintptr_t)guest + unit * kind->unit,
			.len = kind->unit,
		},
	};

	while (ioctl(uffd, UFFDIO_CONTINUE, &cont)) {
		if (errno != EAGAIN)
			err(1, "UFFDIO_CONTINUE");
	}
	mapped[unit] = true;
}

static void receive(int uffd, int sock)
{
	const unsigned long per_unit = kind->unit / CHUNK;
	struct packet packet;
	unsigned long unit;

	all((void *)read, sock, &packet, sizeof(packet));
	if (arrived[packet.chunk])
		errx(1, "%s: chunk %lu arrived twice", kind->name, packet.chunk);
	memcpy(fill + packet.chunk * CHUNK, packet.data, CHUNK);
	arrived[packet.chunk] = true;
	nr_received++;
	unit = packet.chunk / per_unit;
	if (!--missing[unit])
		map_unit(uffd, unit);
}

/* Ask the source for what faults need, and map what arrives. */
static void destination(int uffd, int sock)
{
	struct pollfd fds[2] = {
		{ .fd = uffd, .events = POLLIN },
		{ .fd = sock, .events = POLLIN },
	};
	bool *wanted = calloc(nr_units, sizeof(*wanted));
	struct uffd_msg msg;
	uint64_t unit;

	while (nr_received < nr_chunks) {
		if (poll(fds, 2, -1) < 0)
			err(1, "poll");
		while (read(uffd, &msg, sizeof(msg)) == sizeof(msg)) {
			unit = (msg.arg.pagefault.address - (uintptr_t)guest) / kind->unit;
			if (mapped[unit] || wanted[unit])
				continue;
			wanted[unit] = true;
			all((void *)write, sock, &unit, sizeof(unit));
		}
		if (fds[1].revents & POLLIN)
			receive(uffd, sock);
	}
	free(wanted);
}

static void *touch(void *arg)
{
	unsigned int state = seed + (uintptr_t)arg;
	struct timespec pause = { .tv_nsec = 100000 };

	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
		unsigned long chunk = ((unsigned long)rand_r(&state) << 16 ^
				       rand_r(&state)) % nr_chunks;
		const bool there = mapped[chunk * CHUNK / kind->unit];
		double before = now(), waited;
		unsigned long i;

		if (!right((uint64_t *)(guest + chunk * CHUNK), chunk))
			errx(1, "%s: chunk %lu is wrong", kind->name, chunk);
		waited = now() - before;
		__atomic_fetch_add(&nr_touched, 1, __ATOMIC_RELAXED);
		if (before + waited < start + 1)
			__atomic_fetch_add(&nr_early, 1, __ATOMIC_RELAXED);
		if (!there) {
			i = __atomic_fetch_add(&nr_waits, 1, __ATOMIC_RELAXED);
			if (i < MAX_WAITS)
				waits[i] = waited;
		}
		nanosleep(&pause, NULL);
	}
	return NULL;
}

static int by_time(const void *a, const void *b)
{
	const double *x = a, *y = b;

	return (*x > *y) - (*x < *y);
}

static int open_uffd(void)
{
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = UFFD_FEATURE_MINOR_HUGETLBFS | UFFD_FEATURE_MINOR_SHMEM,
	};
	struct uffdio_register reg = {
		.range = { .start = (uintptr_t)guest, .len = size },
		.mode = UFFDIO_REGISTER_MODE_MINOR,
	};
	int uffd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api))
		err(1, "userfaultfd");
	if (ioctl(uffd, UFFDIO_REGISTER, &reg))
		err(1, "%s: UFFDIO_REGISTER", kind->name);
	return uffd;
}

/* How long it takes to map all of it by huge pages, and to touch each of them */
static double collapse(int fd)
{
	double before = now();
	unsigned long offset;

	if (kind->unit == kind->huge)
		return 0;
	if (mmap(guest, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd,
		 0) == MAP_FAILED)
		err(1, "mmap() of huge pages");
	for (offset = 0; offset < size; offset += kind->huge)
		*(volatile char *)(guest + offset);
	return now() - before;
}

static void set_pool(unsigned long huge, unsigned long nr)
{
	char path[128], value[32];

	if (huge == CHUNK)
		return;
	snprintf(path, sizeof(path), "/sys/kernel/mm/hugepages/hugepages-%lukB/nr_hugepages",
		 huge >> 10);
	snprintf(value, sizeof(value), "%lu", nr);
	put(path, value);
}

struct result {
	double p50, p99, max, total, collapse;
	unsigned long waits, early;
	bool done;
};

static struct result results[sizeof(kinds) / sizeof(*kinds)];

static void print_result(const struct result *r)
{
	if (!for_bench) {
		printf("%-11s %11lu %7lu %10.2f %10.2f %10.2f %10lu %8.1f %9.1f\n",
		       kind->name, kind->unit, r->waits, r->p50 * 1e3, r->p99 * 1e3,
		       r->max * 1e3, r->early, r->total, r->collapse * 1e3);
		return;
	}
	printf("postcopy-%s-bytes %lu\n", kind->name, kind->unit);
	printf("postcopy-%s-p50-us %.0f\n", kind->name, r->p50 * 1e6);
	printf("postcopy-%s-p99-us %.0f\n", kind->name, r->p99 * 1e6);
	printf("postcopy-%s-touched-in-1-s %lu\n", kind->name, r->early);
	if (kind->unit != kind->huge)
		printf("postcopy-%s-collapse-us %.0f\n", kind->name, r->collapse * 1e6);
}

/* One character for each doubling, from 10 us on */
static void print_chart(void)
{
	unsigned int i;

	printf("\nhalf of the waits are shorter than this; each # doubles it, from 10 us\n");
	for (i = 0; i < sizeof(kinds) / sizeof(*kinds); i++) {
		double t;

		if (!results[i].done)
			continue;
		printf("%-11s ", kinds[i].name);
		for (t = 10e-6; t < results[i].p50; t *= 2)
			putchar('#');
		printf(" %.2f ms\n", results[i].p50 * 1e3);
	}
}

static void run(void)
{
	struct result *r = &results[kind - kinds];
	const bool base = kind->unit != kind->huge;
	unsigned int flags = 0;
	pthread_t threads[MAX_THREADS];
	double end;
	unsigned long i;
	int fd, uffd, socks[2], n;
	pid_t pid;

	nr_chunks = size / CHUNK;
	nr_units = size / kind->unit;
	set_pool(kind->huge, size / kind->huge);
	if (kind->huge > CHUNK)
		flags = MFD_HUGETLB | __builtin_ctzl(kind->huge) << MFD_HUGE_SHIFT;
	fd = memfd_create("postcopy", flags);
	if (fd < 0 || ftruncate(fd, size))
		err(1, "%s: memfd", kind->name);
	fill = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	guest = mmap(NULL, size, PROT_READ | PROT_WRITE,
		     base ? MAP_SHARED_VALIDATE | MAP_BASE_PAGES : MAP_SHARED, fd, 0);
	if (guest == MAP_FAILED && errno == EOPNOTSUPP && base) {
		if (for_bench)
			printf("postcopy-%s-p50-us cannot\n", kind->name);
		else
			printf("%-11s this kernel has no MAP_BASE_PAGES\n", kind->name);
		munmap(fill, size);
		close(fd);
		set_pool(kind->huge, 0);
		return;
	}
	if (fill == MAP_FAILED || guest == MAP_FAILED)
		err(1, "%s: mmap()", kind->name);
	/* All is allocated before: faults are for data only. */
	if (fallocate(fd, 0, 0, size))
		err(1, "%s: fallocate()", kind->name);

	arrived = calloc(nr_chunks, sizeof(*arrived));
	mapped = calloc(nr_units, sizeof(*mapped));
	missing = calloc(nr_units, sizeof(*missing));
	waits = calloc(MAX_WAITS, sizeof(*waits));
	nr_waits = nr_touched = nr_early = nr_received = 0;
	stop = false;
	for (i = 0; i < nr_units; i++)
		missing[i] = kind->unit / CHUNK;

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, socks))
		err(1, "socketpair");
	fflush(stdout);
	pid = fork();
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(socks[1]);
		source(socks[0]);
	}
	close(socks[0]);
	uffd = open_uffd();
	start = now();
	for (n = 0; n < nr_threads; n++)
		pthread_create(&threads[n], NULL, touch, (void *)(uintptr_t)n);
	destination(uffd, socks[1]);
	end = now();
	stop = true;
	for (n = 0; n < nr_threads; n++)
		pthread_join(threads[n], NULL);
	close(socks[1]);
	waitpid(pid, NULL, 0);
	for (i = 0; i < nr_chunks; i++)
		if (!right((uint64_t *)(guest + i * CHUNK), i))
			errx(1, "%s: chunk %lu is wrong", kind->name, i);
	close(uffd);
	r->collapse = collapse(fd);
	for (i = 0; i < nr_chunks; i++)
		if (!right((uint64_t *)(guest + i * CHUNK), i))
			errx(1, "%s: chunk %lu is wrong after the collapse", kind->name, i);

	if (nr_waits > MAX_WAITS)
		nr_waits = MAX_WAITS;
	qsort(waits, nr_waits, sizeof(*waits), by_time);
	r->waits = nr_waits;
	if (nr_waits) {
		r->p50 = waits[nr_waits / 2];
		r->p99 = waits[nr_waits * 99 / 100];
		r->max = waits[nr_waits - 1];
	}
	r->early = nr_early;
	r->total = end - start;
	r->done = true;
	print_result(r);

	munmap(fill, size);
	munmap(guest, size);
	close(fd);
	free(arrived);
	free(mapped);
	free(missing);
	free(waits);
	set_pool(kind->huge, 0);
}

static unsigned long number(const char *arg, unsigned long max)
{
	char *end;
	unsigned long n = strtoul(arg, &end, 10);

	if (!n || *end || n > max)
		errx(1, "'%s' is not a number from 1 to %lu", arg, max);
	return n;
}

int main(int argc, char **argv)
{
	const int nr_kinds = sizeof(kinds) / sizeof(*kinds);
	int opt, i;

	while ((opt = getopt(argc, argv, "bm:r:t:s:h")) != -1) {
		switch (opt) {
		case 'b':
			for_bench = true;
			break;
		case 'm':
			size = number(optarg, 1 << 20) << 20;
			break;
		case 'r':
			rate = number(optarg, 100000) * 1000000;
			break;
		case 't':
			nr_threads = number(optarg, MAX_THREADS);
			break;
		case 's':
			seed = number(optarg, 1 << 30);
			break;
		default:
			errx(opt != 'h', "postcopy [-b] [-m MiB] [-r MB/s] [-t threads] [-s seed] [shmem|hugetlb-2m|hugetlb-1g|base-2m|base-1g]...");
		}
	}
	for (i = optind; i < argc; i++) {
		for (kind = kinds; kind < kinds + nr_kinds; kind++)
			if (!strcmp(argv[i], kind->name))
				break;
		if (kind == kinds + nr_kinds)
			errx(1, "no kind of memory '%s'", argv[i]);
		if (size % kind->huge)
			errx(1, "%s: %lu MiB are not a number of its pages", argv[i], size >> 20);
	}

	if (!for_bench) {
		printf("%lu MiB at %lu MB/s, %d threads, seed %u; times of a wait in ms\n", size >> 20,
		       rate / 1000000, nr_threads, seed);
		printf("%-11s %11s %7s %10s %10s %10s %10s %8s %9s\n", "memory", "bytes/fault",
		       "waits", "p50", "p99", "max", "first s", "total s", "collapse");
	}
	for (kind = kinds; kind < kinds + nr_kinds; kind++) {
		bool named = optind == argc && size % kind->huge == 0;

		for (i = optind; i < argc; i++)
			named |= !strcmp(argv[i], kind->name);
		if (named)
			run();
	}
	if (!for_bench)
		print_chart();
	return 0;
}
