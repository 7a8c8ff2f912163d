// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of memfds made of huge pages: removing pages of the file while it is
 * mapped, holes and private copies, holes and bad memory, and file seals against
 * mmap(), which may extend the file.
 */

#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "hugepage_settings.h"
#include "vm_util.h"

/* Two pages of each of two mappings, and some that are being freed. */
#define NR_PAGES	8

/* Pages of a file with holes, of a mapping, and of copies. */
#define POOL_PAGES	12

/*
 * Rounds of the race, fewer where pages take long to clear, and how long one
 * of them may take at most.
 */
#define RACE_ROUNDS	100
#define RACE_MIN_ROUNDS	10
#define RACE_SECS	60
#define STALL_SECS	60

/* How long it may take to handle a memory error. */
#define POISON_SECS	20

/* No larger pool is made: then the tests use what is there. */
#define MAX_POOL_SIZE	(512UL << 20)

static void __attribute__((constructor)) setup_pool(void)
{
	if (default_huge_page_size() <= MAX_POOL_SIZE / POOL_PAGES)
		hugetlb_setup_default(POOL_PAGES);
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
	bool poisoned;
	char *map;
	unsigned long hps;
	unsigned long pfn;
	int fd;
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

/*
 * Holes in a file of which another process has private copies. hugetlbfs has to
 * do what tmpfs does, with one exception: the process that punches the hole has
 * always lost its own private copies of huge pages, and QEMU depends on that.
 */
#define HOLE_PAGES	4

FIXTURE(memfd_hole)
{
	unsigned long size;
	unsigned long nr_free;
	unsigned long nr_resv;
	int fd;
	int to_child[2];
	int to_parent[2];
	char *file;
	char *map;
};

FIXTURE_VARIANT(memfd_hole)
{
	bool hugetlb;
	bool madv_remove;
	int mmap_flags;
};

FIXTURE_VARIANT_ADD(memfd_hole, tmpfs)
{
	.hugetlb = false,
	.madv_remove = false,
	.mmap_flags = MAP_PRIVATE,
};

FIXTURE_VARIANT_ADD(memfd_hole, hugetlb)
{
	.hugetlb = true,
	.madv_remove = false,
	.mmap_flags = MAP_PRIVATE,
};

FIXTURE_VARIANT_ADD(memfd_hole, hugetlb_madv_remove)
{
	.hugetlb = true,
	.madv_remove = true,
	.mmap_flags = MAP_PRIVATE,
};

FIXTURE_VARIANT_ADD(memfd_hole, hugetlb_noreserve)
{
	.hugetlb = true,
	.madv_remove = false,
	.mmap_flags = MAP_PRIVATE | MAP_NORESERVE,
};

FIXTURE_SETUP(memfd_hole)
{
	const unsigned long hps = default_huge_page_size();

	self->fd = -1;
	if (variant->hugetlb) {
		if (!hps)
			SKIP(return, "no huge pages");
		self->nr_free = hugetlb_free_pages(hps);
		self->nr_resv = hugetlb_resv_pages(hps);
		/* The file, the reservation, and the copies of the child. */
		if (self->nr_free < self->nr_resv + 3 * HOLE_PAGES)
			SKIP(return, "fewer than %d huge pages",
			     3 * HOLE_PAGES);
	}
	self->size = variant->hugetlb ? hps : (unsigned long)getpagesize();

	self->fd = memfd_create("hugetlb_memfd", MFD_CLOEXEC |
				(variant->hugetlb ? MFD_HUGETLB : 0));
	ASSERT_GE(self->fd, 0);
	ASSERT_EQ(ftruncate(self->fd, HOLE_PAGES * self->size), 0);
	self->file = mmap(NULL, HOLE_PAGES * self->size, PROT_READ | PROT_WRITE,
			  MAP_SHARED, self->fd, 0);
	ASSERT_NE(self->file, MAP_FAILED);
	for (int i = 0; i < HOLE_PAGES; i++)
		self->file[i * self->size] = 'A' + i;
	self->map = mmap(NULL, HOLE_PAGES * self->size, PROT_READ | PROT_WRITE,
			 variant->mmap_flags, self->fd, 0);
	ASSERT_NE(self->map, MAP_FAILED);
	ASSERT_EQ(pipe(self->to_child), 0);
	ASSERT_EQ(pipe(self->to_parent), 0);
}

FIXTURE_TEARDOWN(memfd_hole)
{
	if (self->fd < 0)
		return;

	munmap(self->map, HOLE_PAGES * self->size);
	munmap(self->file, HOLE_PAGES * self->size);
	close(self->fd);
	if (!variant->hugetlb)
		return;

	EXPECT_EQ(hugetlb_resv_pages(self->size), self->nr_resv);
	EXPECT_EQ(hugetlb_free_pages(self->size), self->nr_free);
}

static bool send_byte(int fd)
{
	return write(fd, "", 1) == 1;
}

static bool recv_byte(int fd)
{
	char c;

	return read(fd, &c, 1) == 1;
}

/* Remove the second page and all that follow from the file. */
static int remove_tail(const FIXTURE_DATA(memfd_hole) * self, bool madv_remove)
{
	const unsigned long len = (HOLE_PAGES - 1) * self->size;

	if (madv_remove)
		return madvise(self->file + self->size, len, MADV_REMOVE);
	return fallocate(self->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			 self->size, len);
}

/*
 * In a child: write to private copies of the pages what @own has for them, read
 * those for which it has a space, and report when that is done. Once the parent
 * has changed the file, return what the pages have then.
 */
static void child_copies(const FIXTURE_DATA(memfd_hole) * self, const char *own,
			 char *result)
{
	int i;

	alarm(60);
	close(self->to_child[1]);
	close(self->to_parent[0]);
	for (i = 0; i < HOLE_PAGES; i++) {
		if (own[i] == ' ')
			FORCE_READ(self->map[i * self->size]);
		else
			self->map[i * self->size] = own[i];
	}
	if (!send_byte(self->to_parent[1]) || !recv_byte(self->to_child[0]))
		_exit(1);
	for (i = 0; i < HOLE_PAGES; i++)
		result[i] = self->map[i * self->size];
	if (write(self->to_parent[1], result, HOLE_PAGES) != HOLE_PAGES)
		_exit(1);
	_exit(0);
}

/* In the parent: let the child look at its pages, and get what it saw. */
static bool child_result(const FIXTURE_DATA(memfd_hole) * self, pid_t pid,
			 char *result)
{
	int status;

	if (!send_byte(self->to_child[1]) ||
	    read(self->to_parent[0], result, HOLE_PAGES) != HOLE_PAGES)
		memset(result, '?', HOLE_PAGES);
	return waitpid(pid, &status, 0) == pid && !status;
}

TEST_F(memfd_hole, others_keep_copies)
{
	char result[HOLE_PAGES];
	pid_t pid;
	int i;

	pid = fork();
	ASSERT_NE(pid, -1);
	if (!pid)
		child_copies(self, " bc ", result);
	close(self->to_parent[1]);
	ASSERT_TRUE(recv_byte(self->to_parent[0]));
	ASSERT_EQ(remove_tail(self, variant->madv_remove), 0);
	ASSERT_TRUE(child_result(self, pid, result));

	/* Private copies stay, what was mapped of the file does not. */
	ASSERT_EQ(result[0], 'A');
	for (i = 1; i < 3; i++) {
		ASSERT_EQ(result[i], 'a' + i) {
			TH_LOG("page %d: the hole took the private copy of another process",
			       i);
		}
	}
	ASSERT_EQ(result[3], 0) {
		TH_LOG("page 3: removed from the file and still mapped");
	}
	for (i = 0; i < HOLE_PAGES; i++)
		ASSERT_EQ(FORCE_READ(self->file[i * self->size]), i ? 0 : 'A');
}

/* A copy that parent and child have in common: the child keeps it. */
TEST_F(memfd_hole, child_keeps_copies)
{
	char result[HOLE_PAGES];
	pid_t pid;
	int i;

	for (i = 0; i < HOLE_PAGES; i++)
		self->map[i * self->size] = 'a' + i;
	pid = fork();
	ASSERT_NE(pid, -1);
	if (!pid)
		child_copies(self, "   d", result);
	close(self->to_parent[1]);
	ASSERT_TRUE(recv_byte(self->to_parent[0]));
	ASSERT_EQ(remove_tail(self, variant->madv_remove), 0);
	ASSERT_TRUE(child_result(self, pid, result));

	for (i = 0; i < HOLE_PAGES; i++) {
		ASSERT_EQ(result[i], 'a' + i) {
			TH_LOG("page %d: the hole took the private copy of the child",
			       i);
		}
	}

	/* The process that punches the hole loses its copies of huge pages. */
	for (i = 1; i < HOLE_PAGES; i++) {
		ASSERT_EQ(FORCE_READ(self->map[i * self->size]),
			  variant->hugetlb ? 0 : 'a' + i) {
			TH_LOG("page %d of the process that punched the hole",
			       i);
		}
	}
	ASSERT_EQ(FORCE_READ(self->map[0]), 'a');
}

/* Truncation removes private copies, too: they lie beyond the end of the file. */
TEST_F(memfd_hole, truncate_takes_copies)
{
	char result[HOLE_PAGES];
	pid_t pid;
	int i;

	pid = fork();
	ASSERT_NE(pid, -1);
	if (!pid)
		child_copies(self, "abc ", result);
	close(self->to_parent[1]);
	ASSERT_TRUE(recv_byte(self->to_parent[0]));
	ASSERT_EQ(ftruncate(self->fd, self->size), 0);
	ASSERT_EQ(ftruncate(self->fd, HOLE_PAGES * self->size), 0);
	ASSERT_TRUE(child_result(self, pid, result));

	ASSERT_EQ(result[0], 'a');
	for (i = 1; i < HOLE_PAGES; i++) {
		ASSERT_EQ(result[i], 0) {
			TH_LOG("page %d: private copy left behind the end of the file",
			       i);
		}
	}
}

/* Replace a page by a poison marker, as if its contents were lost. */
static int uffd_poison(char *page, unsigned long size)
{
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = UFFD_FEATURE_POISON,
	};
	struct uffdio_register reg = {
		.range = { (unsigned long)page, size },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	struct uffdio_poison poison = {
		.range = { (unsigned long)page, size },
	};
	int uffd = syscall(__NR_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
	int ret;

	if (uffd < 0)
		return -1;
	ret = ioctl(uffd, UFFDIO_API, &api) ||
	      ioctl(uffd, UFFDIO_REGISTER, &reg) ||
	      ioctl(uffd, UFFDIO_POISON, &poison) ||
	      ioctl(uffd, UFFDIO_UNREGISTER, &reg.range);
	close(uffd);
	return ret ? -1 : 0;
}

static void exit_on_sigbus(int sig)
{
	_exit(10);
}

/* Poison in a private mapping must not turn into zeroes. */
TEST_F(memfd_hole, others_keep_poison)
{
	int status;
	pid_t pid;

	pid = fork();
	ASSERT_NE(pid, -1);
	if (!pid) {
		char *page = self->map + self->size;

		alarm(60);
		close(self->to_child[1]);
		if (uffd_poison(page, self->size))
			_exit(KSFT_SKIP);
		signal(SIGBUS, exit_on_sigbus);
		if (!send_byte(self->to_parent[1]) ||
		    !recv_byte(self->to_child[0]))
			_exit(1);
		_exit(FORCE_READ(*page) ? 2 : 0);
	}
	close(self->to_parent[1]);
	if (recv_byte(self->to_parent[0])) {
		ASSERT_EQ(remove_tail(self, variant->madv_remove), 0);
		ASSERT_TRUE(send_byte(self->to_child[1]));
	}
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	ASSERT_TRUE(WIFEXITED(status));
	if (WEXITSTATUS(status) == KSFT_SKIP)
		SKIP(return, "no UFFDIO_POISON");
	ASSERT_EQ(WEXITSTATUS(status), 10) {
		TH_LOG("the hole took the poison of another process: its page reads as zeroes");
	}
}

/* Partial pages of a hole are zeroed. Memory may fail at the same time. */
FIXTURE(punch_partial)
{
	unsigned long hps;
	struct race *race;
};

FIXTURE_SETUP(punch_partial)
{
	self->race = MAP_FAILED;
	self->hps = default_huge_page_size();
	if (!self->hps || hugetlb_free_pages(self->hps) <=
			  hugetlb_resv_pages(self->hps))
		SKIP(return, "no free huge page");
	if (access("/sys/kernel/debug/hwpoison/unpoison-pfn", W_OK))
		SKIP(return, "bad memory cannot be made good again");

	self->race = mmap(NULL, sizeof(*self->race), PROT_READ | PROT_WRITE,
			  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(self->race, MAP_FAILED);
	self->race->hps = self->hps;
}

FIXTURE_TEARDOWN(punch_partial)
{
	if (self->race != MAP_FAILED)
		munmap(self->race, sizeof(*self->race));
}

static void *punch_partially(void *arg)
{
	struct race *race = arg;

	while (!__atomic_load_n(&race->stop, __ATOMIC_RELAXED)) {
		if (fallocate(race->fd,
			      FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			      getpagesize(), race->hps / 2)) {
			snprintf(race->error, sizeof(race->error),
				 "fallocate: %m");
			break;
		}
		__atomic_store_n(&race->racing, true, __ATOMIC_RELAXED);
	}
	return NULL;
}

static void ignore_signal(int sig)
{
}

static void poison_child(struct race *race)
{
	pthread_t thread;
	int pagemap;

	/* Do not keep a reader of our output waiting should we hang. */
	fclose(stdout);
	fclose(stderr);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGBUS, ignore_signal);

	race->fd = memfd_create("hugetlb_memfd", MFD_HUGETLB | MFD_CLOEXEC);
	pagemap = open("/proc/self/pagemap", O_RDONLY);
	if (race->fd < 0 || pagemap < 0 || ftruncate(race->fd, race->hps)) {
		snprintf(race->error, sizeof(race->error), "memfd: %m");
		return;
	}
	race->map = mmap(NULL, race->hps, PROT_READ | PROT_WRITE, MAP_SHARED,
			 race->fd, 0);
	if (race->map == MAP_FAILED) {
		snprintf(race->error, sizeof(race->error), "mmap: %m");
		return;
	}
	memset(race->map, 1, race->hps);
	race->pfn = pagemap_get_pfn(pagemap, race->map);
	if (pthread_create(&thread, NULL, punch_partially, race)) {
		snprintf(race->error, sizeof(race->error), "no thread");
		return;
	}
	while (!__atomic_load_n(&race->racing, __ATOMIC_RELAXED) &&
	       !race->error[0])
		usleep(1000);

	/* EBUSY: the page is bad, but hole punching has a reference as well. */
	if (!madvise(race->map, getpagesize(), MADV_HWPOISON) || errno == EBUSY)
		race->poisoned = true;
	else
		snprintf(race->error, sizeof(race->error), "MADV_HWPOISON: %m");

	__atomic_store_n(&race->stop, true, __ATOMIC_RELAXED);
	pthread_join(thread, NULL);
	race->done = true;
}

/* The error handler must not wait for the hole while that waits for it. */
TEST_F_TIMEOUT(punch_partial, against_poison, 120)
{
	struct race *race = self->race;
	int tries = 0, status;
	pid_t pid, child;

	child = fork();
	ASSERT_NE(child, -1);
	if (!child) {
		poison_child(race);
		_exit(0);
	}

	while (!(pid = waitpid(child, &status, WNOHANG))) {
		if (++tries == POISON_SECS * 10) {
			/* It is unkillable: do not wait for it. */
			kill(child, SIGKILL);
			ASSERT_LT(tries, POISON_SECS * 10) {
				TH_LOG("hole punching and memory_failure() hang");
			}
		}
		usleep(100000);
	}
	ASSERT_EQ(pid, child);
	for (tries = 0; race->poisoned && tries < 100; tries++) {
		if (!unpoison_memory(race->pfn))
			break;
		usleep(10000);
	}
	EXPECT_LT(tries, 100) {
		TH_LOG("bad memory cannot be made good again");
	}
	ASSERT_STREQ(race->error, "");
	ASSERT_TRUE(race->done);
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

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL	0x0008U
#endif
#ifndef F_SEAL_EXEC
#define F_SEAL_EXEC	0x0020
#endif

/* A file that was created as not executable stays like that. */
TEST(memfd_exec_seal)
{
	int fd;

	fd = memfd_create("hugetlb_memfd", MFD_HUGETLB | MFD_CLOEXEC |
			  MFD_NOEXEC_SEAL);
	if (fd < 0)
		SKIP(return, "no MFD_NOEXEC_SEAL");
	ASSERT_TRUE(fcntl(fd, F_GET_SEALS) & F_SEAL_EXEC);
	EXPECT_EQ(fchmod(fd, 0777), -1) {
		TH_LOG("a memfd with F_SEAL_EXEC became executable");
	}
	EXPECT_EQ(fchmod(fd, 0600), 0);
	close(fd);
}

TEST_HARNESS_MAIN
