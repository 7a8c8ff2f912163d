// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of memfds made of huge pages: removing pages of the file while it is
 * mapped, and file seals against mmap(), which may extend the file.
 */

#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "hugepage_settings.h"
#include "vm_util.h"

/* Two pages of each of two mappings, and some that are being freed. */
#define NR_PAGES	8

/*
 * Rounds of the race, fewer where pages take long to clear, and how long one
 * of them may take at most.
 */
#define RACE_ROUNDS	100
#define RACE_MIN_ROUNDS	10
#define RACE_SECS	60
#define STALL_SECS	60

/* No larger pool is made: then the tests use what is there. */
#define MAX_POOL_SIZE	(512UL << 20)

static void __attribute__((constructor)) setup_pool(void)
{
	if (default_huge_page_size() <= MAX_POOL_SIZE / NR_PAGES)
		hugetlb_setup_default(NR_PAGES);
}

static unsigned long hugetlb_attr(unsigned long size, const char *name)
{
	char path[128];

	snprintf(path, sizeof(path),
		 "/sys/kernel/mm/hugepages/hugepages-%lukB/%s", size / 1024,
		 name);
	return read_num(path);
}

static unsigned long hugetlb_resv_pages(unsigned long size)
{
	return hugetlb_attr(size, "resv_hugepages");
}

/* Shared by the test and the child that may hang. */
struct race {
	int round;
	bool done;
	bool racing;
	bool stop;
	char *map;
	unsigned long hps;
	char error[128];
};

FIXTURE(memfd_remove)
{
	unsigned long hps;
	unsigned long nr_free;
	unsigned long nr_resv;
	struct race *race;
};

FIXTURE_VARIANT(memfd_remove)
{
	int mmap_flags;
	bool truncate;
};

FIXTURE_VARIANT_ADD(memfd_remove, private_punch)
{
	.mmap_flags = MAP_PRIVATE,
	.truncate = false,
};

FIXTURE_VARIANT_ADD(memfd_remove, private_truncate)
{
	.mmap_flags = MAP_PRIVATE,
	.truncate = true,
};

FIXTURE_VARIANT_ADD(memfd_remove, noreserve_punch)
{
	.mmap_flags = MAP_PRIVATE | MAP_NORESERVE,
	.truncate = false,
};

FIXTURE_VARIANT_ADD(memfd_remove, shared_punch)
{
	.mmap_flags = MAP_SHARED,
	.truncate = false,
};

FIXTURE_SETUP(memfd_remove)
{
	self->race = MAP_FAILED;
	self->hps = default_huge_page_size();
	if (!self->hps)
		SKIP(return, "no huge pages");

	self->nr_free = hugetlb_free_pages(self->hps);
	self->nr_resv = hugetlb_resv_pages(self->hps);
	if (self->nr_free < self->nr_resv + NR_PAGES)
		SKIP(return, "fewer than %d huge pages", NR_PAGES);
	/* Those leave the pool when they are freed: it could not be compared. */
	if (hugetlb_attr(self->hps, "surplus_hugepages"))
		SKIP(return, "there are surplus huge pages");

	self->race = mmap(NULL, sizeof(*self->race), PROT_READ | PROT_WRITE,
			  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(self->race, MAP_FAILED);
	self->race->hps = self->hps;
}

FIXTURE_TEARDOWN(memfd_remove)
{
	if (self->race != MAP_FAILED)
		munmap(self->race, sizeof(*self->race));
}

/*
 * Fault in the first page again and again. Of a private mapping it has to be
 * allocated and zeroed each time, under the lock of the mapping.
 */
static void *fault_first_page(void *arg)
{
	struct race *race = arg;

	while (!__atomic_load_n(&race->stop, __ATOMIC_RELAXED)) {
		__atomic_store_n(race->map, 1, __ATOMIC_RELAXED);
		if (madvise(race->map, race->hps, MADV_DONTNEED)) {
			snprintf(race->error, sizeof(race->error),
				 "MADV_DONTNEED of the first page: %m");
			break;
		}
		__atomic_store_n(&race->racing, true, __ATOMIC_RELAXED);
	}
	return NULL;
}

/* One round: map the file's second page, remove it, and look what is left. */
static bool remove_second_page(struct race *race, int fd, char *file,
			       bool truncate, char val)
{
	const unsigned long hps = race->hps;
	char *second = race->map + hps;
	char c;
	int ret;

	/* Have a page in the file that is mapped by its mapping. */
	if (fallocate(fd, 0, hps, hps)) {
		snprintf(race->error, sizeof(race->error), "fallocate: %m");
		return false;
	}
	file[hps] = val;
	c = FORCE_READ(*second);
	if (c != val) {
		snprintf(race->error, sizeof(race->error),
			 "mapping has %d where the file has %d", c, val);
		return false;
	}

	if (truncate)
		ret = ftruncate(fd, hps) || ftruncate(fd, 2 * hps);
	else
		ret = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				hps, hps);
	if (ret) {
		snprintf(race->error, sizeof(race->error), "removal: %m");
		return false;
	}

	if (pread(fd, &c, 1, hps) != 1 || c) {
		snprintf(race->error, sizeof(race->error),
			 "removed page still in the file");
		return false;
	}
	c = FORCE_READ(*second);
	if (c) {
		snprintf(race->error, sizeof(race->error),
			 "removed page still mapped");
		return false;
	}

	/* A private mapping got a page of its own: drop it. */
	if (madvise(second, hps, MADV_DONTNEED)) {
		snprintf(race->error, sizeof(race->error),
			 "MADV_DONTNEED of the second page: %m");
		return false;
	}
	return true;
}

static void race_child(struct race *race, int mmap_flags, bool truncate)
{
	const unsigned long hps = race->hps;
	time_t start = time(NULL);
	pthread_t thread;
	char *file;
	int fd, i;

	/* Do not keep a reader of our output waiting should we hang. */
	fclose(stdout);
	fclose(stderr);

	/* None of this needs any privilege. A user namespace may lack the ids. */
	if (!geteuid() && (setregid(65534, 65534) || setreuid(65534, 65534)) &&
	    errno != EINVAL) {
		snprintf(race->error, sizeof(race->error), "setreuid: %m");
		return;
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);

	fd = memfd_create("hugetlb_memfd", MFD_HUGETLB | MFD_CLOEXEC);
	if (fd < 0 || ftruncate(fd, 2 * hps)) {
		snprintf(race->error, sizeof(race->error), "memfd: %m");
		return;
	}
	file = mmap(NULL, 2 * hps, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	race->map = mmap(NULL, 2 * hps, PROT_READ | PROT_WRITE, mmap_flags,
			 fd, 0);
	if (file == MAP_FAILED || race->map == MAP_FAILED) {
		snprintf(race->error, sizeof(race->error), "mmap: %m");
		return;
	}
	if (pthread_create(&thread, NULL, fault_first_page, race)) {
		snprintf(race->error, sizeof(race->error), "no thread");
		return;
	}

	while (!__atomic_load_n(&race->racing, __ATOMIC_RELAXED) &&
	       !race->error[0])
		usleep(1000);
	for (i = 0; i < RACE_ROUNDS && !race->error[0]; i++) {
		if (i >= RACE_MIN_ROUNDS && time(NULL) - start > RACE_SECS)
			break;
		if (!remove_second_page(race, fd, file, truncate, i % 100 + 1))
			break;
		__atomic_store_n(&race->round, i + 1, __ATOMIC_RELAXED);
	}

	__atomic_store_n(&race->stop, true, __ATOMIC_RELAXED);
	pthread_join(thread, NULL);
	race->done = true;
}

/*
 * Remove a page of the file that a mapping maps while a thread keeps the lock
 * of that mapping busy by faults in another page, so that the page can not be
 * unmapped at once.
 */
TEST_F_TIMEOUT(memfd_remove, against_faults, 600)
{
	struct race *race = self->race;
	int round = 0, idle = 0, status;
	pid_t pid, child;

	child = fork();
	ASSERT_NE(child, -1);
	if (!child) {
		race_child(race, variant->mmap_flags, variant->truncate);
		_exit(0);
	}

	while (!(pid = waitpid(child, &status, WNOHANG))) {
		int now = __atomic_load_n(&race->round, __ATOMIC_RELAXED);

		idle = now == round ? idle + 1 : 0;
		round = now;
		if (idle == STALL_SECS * 10) {
			/* It may be unkillable: do not wait for it. */
			kill(child, SIGKILL);
			ASSERT_LT(idle, STALL_SECS * 10) {
				TH_LOG("removal of a mapped page hangs in round %d",
				       round);
			}
		}
		usleep(100000);
	}
	ASSERT_EQ(pid, child);
	ASSERT_TRUE(WIFEXITED(status)) {
		TH_LOG("killed by signal %d in round %d", WTERMSIG(status),
		       race->round);
	}
	ASSERT_STREQ(race->error, "") {
		TH_LOG("round %d: %s", race->round, race->error);
	}
	ASSERT_TRUE(race->done);

	ASSERT_EQ(hugetlb_resv_pages(self->hps), self->nr_resv) {
		TH_LOG("reserved huge pages leaked");
	}
	ASSERT_EQ(hugetlb_free_pages(self->hps), self->nr_free) {
		TH_LOG("huge pages leaked");
	}
}

FIXTURE(memfd_seal)
{
	unsigned long hps;
	int fd;
};

FIXTURE_VARIANT(memfd_seal)
{
	unsigned int seals;
	int mmap_flags;
};

FIXTURE_VARIANT_ADD(memfd_seal, unsealed_shared)
{
	.seals = 0,
	.mmap_flags = MAP_SHARED,
};

FIXTURE_VARIANT_ADD(memfd_seal, unsealed_private)
{
	.seals = 0,
	.mmap_flags = MAP_PRIVATE,
};

FIXTURE_VARIANT_ADD(memfd_seal, sealed_shared)
{
	.seals = F_SEAL_GROW,
	.mmap_flags = MAP_SHARED,
};

FIXTURE_VARIANT_ADD(memfd_seal, sealed_private)
{
	.seals = F_SEAL_GROW,
	.mmap_flags = MAP_PRIVATE,
};

/* F_SEAL_SHRINK is no obstacle to growth. */
FIXTURE_VARIANT_ADD(memfd_seal, shrink_sealed_shared)
{
	.seals = F_SEAL_SHRINK,
	.mmap_flags = MAP_SHARED,
};

/* A file of one huge page, allocated, and the seals of the variant. */
FIXTURE_SETUP(memfd_seal)
{
	self->fd = -1;
	self->hps = default_huge_page_size();
	if (!self->hps)
		SKIP(return, "no huge pages");
	if (hugetlb_free_pages(self->hps) <
	    hugetlb_resv_pages(self->hps) + NR_PAGES)
		SKIP(return, "fewer than %d huge pages", NR_PAGES);

	self->fd = memfd_create("hugetlb_memfd", MFD_HUGETLB | MFD_CLOEXEC |
				MFD_ALLOW_SEALING);
	ASSERT_GE(self->fd, 0);
	ASSERT_EQ(fallocate(self->fd, 0, 0, self->hps), 0);
	ASSERT_EQ(fcntl(self->fd, F_ADD_SEALS, variant->seals), 0);
}

FIXTURE_TEARDOWN(memfd_seal)
{
	if (self->fd >= 0)
		close(self->fd);
}

static off_t file_size(int fd)
{
	struct stat st;

	return fstat(fd, &st) ? -1 : st.st_size;
}

/* A writable mapping extends the file, unless that is sealed. */
TEST_F(memfd_seal, map_beyond_eof)
{
	const unsigned long hps = self->hps;
	const unsigned long nr_resv = hugetlb_resv_pages(hps);
	char *map;
	int err;

	for (unsigned long offset = 0; offset <= hps; offset += hps) {
		errno = 0;
		map = mmap(NULL, 2 * hps - offset, PROT_READ | PROT_WRITE,
			   variant->mmap_flags, self->fd, offset);
		err = errno;

		if (!(variant->seals & F_SEAL_GROW)) {
			ASSERT_NE(map, MAP_FAILED);
			ASSERT_EQ(file_size(self->fd), (off_t)(2 * hps));
			map[2 * hps - offset - 1] = 1;
			ASSERT_EQ(munmap(map, 2 * hps - offset), 0);
			if (!(variant->seals & F_SEAL_SHRINK))
				ASSERT_EQ(ftruncate(self->fd, hps), 0);
			continue;
		}

		ASSERT_EQ(file_size(self->fd), (off_t)hps) {
			TH_LOG("mmap() grew a file with F_SEAL_GROW from %lu to %lld bytes",
			       hps, (long long)file_size(self->fd));
		}
		ASSERT_EQ(map, MAP_FAILED) {
			TH_LOG("mapped beyond the end of a file with F_SEAL_GROW");
		}
		ASSERT_EQ(err, EPERM);
		ASSERT_EQ(hugetlb_resv_pages(hps), nr_resv) {
			TH_LOG("refused mmap() left a reservation");
		}
	}
}

/* A mapping that is not writable does not extend the file. */
TEST_F(memfd_seal, map_beyond_eof_readonly)
{
	const unsigned long hps = self->hps;
	char *map;

	map = mmap(NULL, 2 * hps, PROT_READ, variant->mmap_flags, self->fd, 0);
	ASSERT_NE(map, MAP_FAILED);
	ASSERT_EQ(file_size(self->fd), (off_t)hps);
	ASSERT_EQ(FORCE_READ(*map), 0);

	/* Neither does making it writable later. */
	ASSERT_EQ(mprotect(map, 2 * hps, PROT_READ | PROT_WRITE), 0);
	*map = 1;
	ASSERT_EQ(file_size(self->fd), (off_t)hps);
	ASSERT_EQ(munmap(map, 2 * hps), 0);
}

/* What does not extend the file is allowed. */
TEST_F(memfd_seal, map_within_eof)
{
	const unsigned long hps = self->hps;
	char *map, c;

	map = mmap(NULL, hps, PROT_READ | PROT_WRITE, variant->mmap_flags,
		   self->fd, 0);
	ASSERT_NE(map, MAP_FAILED);
	map[hps - 1] = 1;
	ASSERT_EQ(pread(self->fd, &c, 1, hps - 1), 1);
	ASSERT_EQ(c, variant->mmap_flags == MAP_SHARED);
	ASSERT_EQ(munmap(map, hps), 0);
	ASSERT_EQ(file_size(self->fd), (off_t)hps);
}

/* fallocate() can make a file that ends within a huge page: map all of it. */
TEST_F(memfd_seal, map_tail)
{
	const unsigned long hps = self->hps;
	const off_t size = hps / 2;
	char *map;
	int fd;

	fd = memfd_create("hugetlb_memfd", MFD_HUGETLB | MFD_CLOEXEC |
			  MFD_ALLOW_SEALING);
	ASSERT_GE(fd, 0);
	ASSERT_EQ(fallocate(fd, 0, 0, size), 0);
	ASSERT_EQ(file_size(fd), size);
	ASSERT_EQ(fcntl(fd, F_ADD_SEALS, variant->seals), 0);

	map = mmap(NULL, size, PROT_READ | PROT_WRITE, variant->mmap_flags,
		   fd, 0);
	ASSERT_NE(map, MAP_FAILED) {
		TH_LOG("cannot map a file of %lld bytes, its own size",
		       (long long)size);
	}
	*map = 1;
	map[hps - 1] = 1;
	if (variant->seals & F_SEAL_GROW)
		ASSERT_EQ(file_size(fd), size);
	ASSERT_EQ(munmap(map, hps), 0);
	close(fd);
}

TEST_HARNESS_MAIN
