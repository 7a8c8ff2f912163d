// SPDX-License-Identifier: GPL-2.0
/*
 * Test that huge pages which are reserved for a mapping or a mount are there
 * when they are needed: the pool must never promise more pages than it has.
 */

#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/memfd.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "hugepage_settings.h"
#include "vm_util.h"

/* Pages of the pool, of the mapping under test, and of it in a pipe. */
#define NR_POOL		8
#define NR_PAGES	4

/* More pages than the kernel unmaps between two TLB flushes. */
#define NR_MANY		40

#define MAX_POOL_MB	1024UL
#define RACE_SECS	2

/* The main process restores the pools when it exits. */
static void __attribute__((constructor)) save_settings(void)
{
	hugetlb_save_settings();
}

static void attr_path(char *path, size_t len, unsigned long size,
		      const char *name)
{
	snprintf(path, len, "/sys/kernel/mm/hugepages/hugepages-%lukB/%s",
		 size >> 10, name);
}

/* Signed, as resv_hugepages was seen to wrap around. */
static long attr(unsigned long size, const char *name)
{
	char path[128], buf[32];

	attr_path(path, sizeof(path), size, name);
	if (!read_file(path, buf, sizeof(buf)))
		return -1;
	return strtoull(buf, NULL, 10);
}

static void set_attr(unsigned long size, const char *name, long val)
{
	char path[128];

	attr_path(path, sizeof(path), size, name);
	write_num(path, val);
}

static long free_pages(unsigned long size)
{
	return attr(size, "free_hugepages");
}

static long resv_pages(unsigned long size)
{
	return attr(size, "resv_hugepages");
}

static char *map_pages(unsigned long size, unsigned long nr, int flags)
{
	return mmap(NULL, nr * size, PROT_READ | PROT_WRITE, MAP_PRIVATE |
		    MAP_ANONYMOUS | MAP_HUGETLB | flags |
		    (__builtin_ctzl(size) << MAP_HUGE_SHIFT), -1, 0);
}

FIXTURE(reserve)
{
	unsigned long size;
	long overcommit;
	long nr;
	long resv;
	int zero;
	int pipe[2];
	char *taken;
	unsigned long taken_len;
	char dir[64];
	char file[80];
};

FIXTURE_VARIANT(reserve)
{
	unsigned long size;
};

FIXTURE_VARIANT_ADD(reserve, 64kB)
{
	.size = 64UL << 10,
};

FIXTURE_VARIANT_ADD(reserve, 2MB)
{
	.size = 2UL << 20,
};

FIXTURE_VARIANT_ADD(reserve, 32MB)
{
	.size = 32UL << 20,
};

FIXTURE_VARIANT_ADD(reserve, 1GB)
{
	.size = 1UL << 30,
};

/* Make the pool have @nr pages that are neither used nor reserved. */
static bool set_pool(unsigned long size, long nr)
{
	set_attr(size, "nr_hugepages", attr(size, "nr_hugepages") + nr -
		 (free_pages(size) - resv_pages(size)));
	return free_pages(size) - resv_pages(size) == nr;
}

FIXTURE_SETUP(reserve)
{
	self->size = 0;
	self->zero = -1;
	self->pipe[0] = -1;
	self->pipe[1] = -1;
	self->taken = MAP_FAILED;
	self->dir[0] = '\0';

	if (attr(variant->size, "nr_hugepages") < 0)
		SKIP(return, "no huge pages of this size");
	if (getuid())
		SKIP(return, "not root");
	if (attr(variant->size, "surplus_hugepages"))
		SKIP(return, "there are surplus huge pages");

	self->size = variant->size;
	self->overcommit = attr(self->size, "nr_overcommit_hugepages");
	self->nr = attr(self->size, "nr_hugepages");
	self->resv = resv_pages(self->size);
	set_attr(self->size, "nr_overcommit_hugepages", 0);
	if (!set_pool(self->size, NR_POOL))
		SKIP(return, "the pool cannot have %d pages", NR_POOL);

	self->zero = open("/dev/zero", O_RDONLY);
	ASSERT_GE(self->zero, 0);
	ASSERT_EQ(pipe(self->pipe), 0);
}

FIXTURE_TEARDOWN(reserve)
{
	if (!self->size)
		return;
	close(self->pipe[0]);
	close(self->pipe[1]);
	close(self->zero);
	if (self->taken != MAP_FAILED)
		munmap(self->taken, self->taken_len);
	if (self->dir[0]) {
		umount2(self->dir, MNT_DETACH);
		rmdir(self->dir);
	}
	set_attr(self->size, "nr_hugepages", self->nr);
	set_attr(self->size, "nr_overcommit_hugepages", self->overcommit);

	/* Otherwise the next test would be skipped. */
	EXPECT_EQ(attr(self->size, "surplus_hugepages"), 0);
}

/* Fault a page in for writing; false instead of SIGBUS. */
static bool touch(FIXTURE_DATA(reserve) * self, char *p)
{
	return read(self->zero, p, 1) == 1;
}

/* Have the pipe hold references on @nr pages from @p on. */
static bool reference(FIXTURE_DATA(reserve) * self, char *p, int nr)
{
	struct iovec iov[NR_POOL];
	int i;

	for (i = 0; i < nr; i++) {
		iov[i].iov_base = p + i * self->size;
		iov[i].iov_len = 1;
	}
	return vmsplice(self->pipe[1], iov, nr, 0) == nr;
}

static void drop_references(FIXTURE_DATA(reserve) * self)
{
	close(self->pipe[0]);
	close(self->pipe[1]);
	self->pipe[0] = -1;
	self->pipe[1] = -1;
}

/* Have somebody else reserve all pages of the pool that can be reserved. */
static bool take_pages(FIXTURE_DATA(reserve) * self)
{
	long nr = free_pages(self->size) - resv_pages(self->size);

	if (nr <= 0)
		return !nr;
	self->taken_len = nr * self->size;
	self->taken = map_pages(self->size, nr, 0);
	return self->taken != MAP_FAILED;
}

/*
 * Mount hugetlbfs with @options, in a mount namespace that goes away with the
 * test. After umount(), it can be mounted there again.
 */
static bool mount_hugetlbfs(FIXTURE_DATA(reserve) * self, const char *options)
{
	char buf[128];

	if (!self->dir[0]) {
		if (unshare(CLONE_NEWNS) ||
		    mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
			return false;
		snprintf(self->dir, sizeof(self->dir),
			 "/tmp/hugetlb_reserve_XXXXXX");
		if (!mkdtemp(self->dir)) {
			self->dir[0] = '\0';
			return false;
		}
		snprintf(self->file, sizeof(self->file), "%s/file", self->dir);
	}
	snprintf(buf, sizeof(buf), "pagesize=%luK,%s", self->size >> 10,
		 options);
	return !mount("none", self->dir, "hugetlbfs", 0, buf);
}

static void __expect_pool(struct __test_metadata *_metadata,
			  FIXTURE_DATA(reserve) * self, const char *when,
			  long nr_free, long nr_resv)
{
	const long resv = resv_pages(self->size) - self->resv;
	const long free = free_pages(self->size) - self->resv;

	EXPECT_EQ(resv, nr_resv)
		TH_LOG("%s: %ld pages are reserved, expected %ld", when, resv,
		       nr_resv);
	EXPECT_EQ(free, nr_free)
		TH_LOG("%s: %ld pages are free, expected %ld", when, free,
		       nr_free);
}

/* Expect the pool to have so many free and reserved pages. */
#define expect_pool(...)	__expect_pool(_metadata, self, __VA_ARGS__)

/* What is reserved, page by page, must be there. */
TEST_F(reserve, munmap_referenced)
{
	char *p, *others[2 * NR_POOL];
	int i, nr;

	p = map_pages(self->size, NR_PAGES, 0);
	ASSERT_NE(p, MAP_FAILED);
	for (i = 0; i < NR_PAGES; i++)
		ASSERT_TRUE(touch(self, p + i * self->size));
	ASSERT_TRUE(reference(self, p, NR_PAGES));
	expect_pool("touched", NR_POOL - NR_PAGES, 0);

	ASSERT_EQ(munmap(p, NR_PAGES * self->size), 0);
	expect_pool("unmapped", NR_POOL - NR_PAGES, 0);

	for (nr = 0; nr < 2 * NR_POOL; nr++) {
		others[nr] = map_pages(self->size, 1, 0);
		if (others[nr] == MAP_FAILED)
			break;
	}
	EXPECT_EQ(nr, NR_POOL - NR_PAGES)
		TH_LOG("%d pages could be reserved of %d that are free", nr,
		       NR_POOL - NR_PAGES);
	for (i = 0; i < nr; i++) {
		EXPECT_TRUE(touch(self, others[i]))
			TH_LOG("reserved page %d: SIGBUS", i);
	}
	for (i = 0; i < nr; i++)
		munmap(others[i], self->size);

	drop_references(self);
	expect_pool("pipe closed", NR_POOL, 0);
}

/* A page that is discarded while referenced must not be replaced by another's. */
TEST_F(reserve, dontneed_referenced)
{
	char *p, *victim;

	victim = map_pages(self->size, 1, 0);
	ASSERT_NE(victim, MAP_FAILED);
	p = map_pages(self->size, 1, 0);
	ASSERT_NE(p, MAP_FAILED);
	ASSERT_TRUE(take_pages(self));
	ASSERT_TRUE(touch(self, p));
	ASSERT_TRUE(reference(self, p, 1));

	ASSERT_EQ(madvise(p, self->size, MADV_DONTNEED), 0);
	expect_pool("discarded", NR_POOL - 1, NR_POOL - 1);
	EXPECT_FALSE(touch(self, p))
		TH_LOG("got a page that another mapping has reserved");
	EXPECT_TRUE(touch(self, victim))
		TH_LOG("reserved page of another mapping: SIGBUS");
	expect_pool("touched again", NR_POOL - 2, NR_POOL - 2);

	/* Now the page is free, and has not been reserved by anyone. */
	drop_references(self);
	expect_pool("pipe closed", NR_POOL - 1, NR_POOL - 2);
	EXPECT_TRUE(touch(self, p))
		TH_LOG("a page is free, but not found");

	munmap(p, self->size);
	munmap(victim, self->size);
	expect_pool("unmapped", NR_POOL, NR_POOL - 2);
}

/* Discarded pages stay reserved, unless there are other references to them. */
TEST_F(reserve, dontneed_some_referenced)
{
	unsigned long nr = NR_MANY, i, nr_freed = 0, nr_untouched = 0, nr_refd = 0;
	char *p;

	if (nr > (MAX_POOL_MB << 20) / self->size)
		nr = NR_POOL;
	if (!set_pool(self->size, nr))
		SKIP(return, "the pool cannot have %lu pages", nr);

	p = map_pages(self->size, nr, 0);
	ASSERT_NE(p, MAP_FAILED);
	for (i = 0; i < nr; i++) {
		if (i % 5 == 2) {
			nr_untouched++;
			continue;
		}
		ASSERT_TRUE(touch(self, p + i * self->size));
		if (i % 7 == 3) {
			ASSERT_TRUE(reference(self, p + i * self->size, 1));
			nr_refd++;
		} else {
			nr_freed++;
		}
	}
	expect_pool("touched", nr_untouched, nr_untouched);

	ASSERT_EQ(madvise(p, nr * self->size, MADV_DONTNEED), 0);
	expect_pool("discarded", nr_untouched + nr_freed, nr_untouched + nr_freed);

	/* Not of the pages that were referenced, for which there is none. */
	for (i = 0; i < nr; i++) {
		const bool refd = i % 5 != 2 && i % 7 == 3;

		EXPECT_EQ(touch(self, p + i * self->size), !refd)
			TH_LOG("page %lu: %s", i, refd ?
			       "got a page that is reserved" : "SIGBUS");
	}
	expect_pool("touched again", 0, 0);

	ASSERT_EQ(munmap(p, nr * self->size), 0);
	expect_pool("unmapped", nr - nr_refd, 0);
	drop_references(self);
	expect_pool("pipe closed", nr, 0);
}

/* The forked child has the page, while the parent discards and faults it. */
TEST_F(reserve, dontneed_mapped_by_child)
{
	int status, ready[2], done[2];
	char *p, c;
	pid_t pid;

	ASSERT_EQ(pipe(ready), 0);
	ASSERT_EQ(pipe(done), 0);
	p = map_pages(self->size, 1, 0);
	ASSERT_NE(p, MAP_FAILED);
	ASSERT_TRUE(touch(self, p));
	*p = 17;

	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		alarm(60);
		close(done[1]);
		if (write(ready[1], "", 1) != 1 || read(done[0], &c, 1))
			_exit(2);
		_exit(FORCE_READ(*p) != 17);
	}
	close(done[0]);
	ASSERT_EQ(read(ready[0], &c, 1), 1);

	ASSERT_EQ(madvise(p, self->size, MADV_DONTNEED), 0);
	expect_pool("shared and discarded", NR_POOL - 1, 0);
	EXPECT_TRUE(touch(self, p));
	expect_pool("touched again", NR_POOL - 2, 0);

	/* The parent's page is its own now, and stays reserved. */
	ASSERT_EQ(madvise(p, self->size, MADV_DONTNEED), 0);
	expect_pool("discarded", NR_POOL - 1, 1);
	EXPECT_TRUE(touch(self, p));
	expect_pool("touched", NR_POOL - 2, 0);

	close(done[1]);
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	EXPECT_TRUE(WIFEXITED(status) && !WEXITSTATUS(status))
		TH_LOG("the child lost its page: status %#x", status);
	expect_pool("child gone", NR_POOL - 1, 0);

	munmap(p, self->size);
	expect_pool("unmapped", NR_POOL, 0);
	close(ready[0]);
	close(ready[1]);
}

/* The file is truncated below a private page, which is gone, but not free. */
TEST_F(reserve, truncate_referenced)
{
	char *p;
	int fd;

	fd = memfd_create("hugetlb_reserve", MFD_HUGETLB |
			  (__builtin_ctzl(self->size) << MFD_HUGE_SHIFT));
	ASSERT_GE(fd, 0);
	ASSERT_EQ(ftruncate(fd, 2 * self->size), 0);
	p = mmap(NULL, 2 * self->size, PROT_READ | PROT_WRITE, MAP_PRIVATE,
		 fd, 0);
	ASSERT_NE(p, MAP_FAILED);
	ASSERT_TRUE(touch(self, p));
	ASSERT_TRUE(touch(self, p + self->size));
	ASSERT_TRUE(reference(self, p + self->size, 1));
	expect_pool("touched", NR_POOL - 2, 0);

	ASSERT_EQ(ftruncate(fd, 0), 0);
	expect_pool("truncated", NR_POOL - 1, 1);

	ASSERT_EQ(munmap(p, 2 * self->size), 0);
	close(fd);
	expect_pool("unmapped", NR_POOL - 1, 0);
	drop_references(self);
	expect_pool("pipe closed", NR_POOL, 0);
}

/* Shared by the threads that discard and fault the same page. */
struct race {
	int zero;
	unsigned long size;
	char *p;
	bool stop;
	unsigned long faults;
	unsigned long sigbus;
};

static void *fault_page(void *arg)
{
	struct race *race = arg;

	while (!__atomic_load_n(&race->stop, __ATOMIC_RELAXED)) {
		if (read(race->zero, race->p, 1) == 1)
			race->faults++;
		else
			race->sigbus++;
	}
	return NULL;
}

static void *discard_page(void *arg)
{
	struct race *race = arg;

	while (!__atomic_load_n(&race->stop, __ATOMIC_RELAXED))
		madvise(race->p, race->size, MADV_DONTNEED);
	return NULL;
}

/* Two threads have one page, and must not get that of the other mapping. */
TEST_F(reserve, dontneed_against_fault)
{
	struct race race = { .zero = self->zero, .size = self->size };
	unsigned long i, round = 0, lost = 0;
	pthread_t faults, discards;
	time_t end;
	char *victim;

	race.p = map_pages(self->size, 1, 0);
	ASSERT_NE(race.p, MAP_FAILED);
	victim = map_pages(self->size, 1, 0);
	ASSERT_NE(victim, MAP_FAILED);
	ASSERT_TRUE(take_pages(self));
	for (i = 0; i < self->taken_len; i += self->size)
		ASSERT_TRUE(touch(self, self->taken + i));

	ASSERT_EQ(pthread_create(&faults, NULL, fault_page, &race), 0);
	ASSERT_EQ(pthread_create(&discards, NULL, discard_page, &race), 0);
	end = time(NULL) + RACE_SECS;
	while (time(NULL) < end) {
		if (!touch(self, victim))
			lost++;
		madvise(victim, self->size, MADV_DONTNEED);
		round++;
	}
	__atomic_store_n(&race.stop, true, __ATOMIC_RELAXED);
	pthread_join(faults, NULL);
	pthread_join(discards, NULL);

	EXPECT_EQ(lost, 0)
		TH_LOG("reserved page of another mapping: SIGBUS in %lu of %lu rounds",
		       lost, round);
	EXPECT_EQ(race.sigbus, 0)
		TH_LOG("discarded page: SIGBUS in %lu of %lu faults",
		       race.sigbus, race.sigbus + race.faults);
	munmap(victim, self->size);
	munmap(race.p, self->size);
	expect_pool("unmapped", 2, 0);
}

static long surplus_pages(unsigned long size)
{
	return attr(size, "surplus_hugepages");
}

/* Another task uses a surplus page when pages are discarded. */
TEST_F(reserve, dontneed_others_surplus)
{
	const unsigned long nr_others = NR_POOL - NR_PAGES + 1;
	char *p, *others;
	unsigned long i;

	p = map_pages(self->size, NR_PAGES, 0);
	ASSERT_NE(p, MAP_FAILED);
	for (i = 0; i < NR_PAGES; i++)
		ASSERT_TRUE(touch(self, p + i * self->size));

	set_attr(self->size, "nr_overcommit_hugepages", 1);
	others = map_pages(self->size, nr_others, 0);
	if (others == MAP_FAILED) {
		munmap(p, NR_PAGES * self->size);
		SKIP(return, "no surplus page can be allocated");
	}
	for (i = 0; i < nr_others; i++)
		ASSERT_TRUE(touch(self, others + i * self->size));
	EXPECT_EQ(surplus_pages(self->size), 1);
	expect_pool("touched", 0, 0);

	ASSERT_EQ(madvise(p + self->size, 2 * self->size, MADV_DONTNEED), 0);
	expect_pool("discarded", 2, 2);
	set_attr(self->size, "nr_overcommit_hugepages", 0);
	ASSERT_TRUE(take_pages(self));
	for (i = 0; i < NR_PAGES; i++) {
		EXPECT_TRUE(touch(self, p + i * self->size))
			TH_LOG("reserved page %lu: SIGBUS", i);
	}

	ASSERT_EQ(munmap(others, nr_others * self->size), 0);
	EXPECT_EQ(surplus_pages(self->size), 0);
	ASSERT_EQ(munmap(p, NR_PAGES * self->size), 0);
	expect_pool("unmapped", NR_POOL, self->taken == MAP_FAILED ? 0 :
		    self->taken_len / self->size);
}

/* All pages of the mapping are surplus pages, and leave the pool with it. */
TEST_F(reserve, dontneed_surplus)
{
	unsigned long i;
	char *p;

	ASSERT_TRUE(set_pool(self->size, 0));
	set_attr(self->size, "nr_overcommit_hugepages", NR_PAGES);
	p = map_pages(self->size, NR_PAGES, 0);
	if (p == MAP_FAILED)
		SKIP(return, "no surplus pages can be allocated");
	for (i = 0; i < NR_PAGES; i++)
		ASSERT_TRUE(touch(self, p + i * self->size));
	EXPECT_EQ(surplus_pages(self->size), NR_PAGES);
	expect_pool("touched", 0, 0);

	ASSERT_EQ(madvise(p + self->size, 2 * self->size, MADV_DONTNEED), 0);
	expect_pool("discarded", 2, 2);
	set_attr(self->size, "nr_overcommit_hugepages", 0);
	for (i = 0; i < NR_PAGES; i++) {
		EXPECT_TRUE(touch(self, p + i * self->size))
			TH_LOG("reserved page %lu: SIGBUS", i);
	}

	/* Some pages used, some reserved. */
	ASSERT_EQ(madvise(p, 2 * self->size, MADV_DONTNEED), 0);
	ASSERT_EQ(munmap(p, NR_PAGES * self->size), 0);
	EXPECT_EQ(surplus_pages(self->size), 0);
	expect_pool("unmapped", 0, 0);
}

/* A mount has a page reserved, which is a surplus page. */
TEST_F(reserve, min_size_surplus)
{
	char options[64];
	int fd, round;

	ASSERT_TRUE(set_pool(self->size, 0));
	set_attr(self->size, "nr_overcommit_hugepages", 1);
	snprintf(options, sizeof(options), "min_size=%luK", self->size >> 10);
	if (!mount_hugetlbfs(self, options)) {
		ASSERT_EQ(errno, ENOMEM);
		SKIP(return, "no surplus page can be allocated");
	}
	EXPECT_EQ(surplus_pages(self->size), 1);
	expect_pool("mounted", 1, 1);
	set_attr(self->size, "nr_overcommit_hugepages", 0);

	for (round = 0; round < 2; round++) {
		fd = open(self->file, O_CREAT | O_RDWR, 0600);
		ASSERT_GE(fd, 0);
		EXPECT_EQ(fallocate(fd, 0, 0, self->size), 0)
			TH_LOG("reserved page of the mount, round %d: %m", round);
		expect_pool("file written", 0, 0);
		close(fd);
		ASSERT_EQ(unlink(self->file), 0);
		expect_pool("file gone", 1, 1);
	}

	ASSERT_EQ(umount(self->dir), 0);
	EXPECT_EQ(surplus_pages(self->size), 0);
	expect_pool("unmounted", 0, 0);
}

/* How many pages the size= of the mount leaves to be used. */
static long mount_free(FIXTURE_DATA(reserve) * self)
{
	struct statfs st;

	return statfs(self->dir, &st) ? -1 : st.f_bfree;
}

static void __expect_mount_free(struct __test_metadata *_metadata,
				FIXTURE_DATA(reserve) * self, const char *when,
				long nr)
{
	const long free = mount_free(self);

	EXPECT_EQ(free, nr)
		TH_LOG("%s: the mount has %ld pages left of %d, expected %ld",
		       when, free, NR_PAGES, nr);
}

#define expect_mount_free(...)	__expect_mount_free(_metadata, self, __VA_ARGS__)

/*
 * Faults that find no page in a mapping without reservation, of a file of a
 * mount that may have NR_PAGES pages, and has @min of them reserved.
 */
static void faults_without_pages(struct __test_metadata *_metadata,
				 FIXTURE_DATA(reserve) * self, int flags,
				 int min)
{
	char options[64], *p;
	long taken;
	int fd, i;

	snprintf(options, sizeof(options), "size=%luK,min_size=%luK",
		 NR_PAGES * self->size >> 10, min * self->size >> 10);
	if (!min)
		*strchr(options, ',') = '\0';
	ASSERT_TRUE(mount_hugetlbfs(self, options));
	fd = open(self->file, O_CREAT | O_RDWR, 0600);
	ASSERT_GE(fd, 0);
	p = mmap(NULL, NR_PAGES * self->size, PROT_READ | PROT_WRITE,
		 MAP_NORESERVE | flags, fd, 0);
	ASSERT_NE(p, MAP_FAILED);
	ASSERT_TRUE(take_pages(self));
	taken = self->taken_len / self->size;
	expect_mount_free("before", NR_PAGES);
	expect_pool("before", taken + min, taken + min);

	for (i = 0; i < min; i++) {
		EXPECT_TRUE(touch(self, p + i * self->size))
			TH_LOG("reserved page %d of the mount: SIGBUS", i);
	}
	for (i = 0; i < 2 * NR_PAGES; i++)
		EXPECT_FALSE(touch(self, p + min * self->size));
	expect_mount_free("after faults without a page", NR_PAGES - min);
	expect_pool("after faults", taken, taken);

	munmap(p, NR_PAGES * self->size);
	close(fd);
	ASSERT_EQ(unlink(self->file), 0);
	expect_mount_free("without a file", NR_PAGES);
	expect_pool("without a file", taken + min, taken + min);

	/* All that the mount may have can be had when the pool has it. */
	munmap(self->taken, self->taken_len);
	self->taken = MAP_FAILED;
	fd = open(self->file, O_CREAT | O_RDWR, 0600);
	ASSERT_GE(fd, 0);
	p = mmap(NULL, NR_PAGES * self->size, PROT_READ | PROT_WRITE, flags,
		 fd, 0);
	EXPECT_NE(p, MAP_FAILED)
		TH_LOG("%d pages of a mount of %d: %m", NR_PAGES, NR_PAGES);
	if (p != MAP_FAILED) {
		for (i = 0; i < NR_PAGES; i++)
			EXPECT_TRUE(touch(self, p + i * self->size));
		munmap(p, NR_PAGES * self->size);
	}
	close(fd);
	ASSERT_EQ(unlink(self->file), 0);
	expect_mount_free("in the end", NR_PAGES);
	ASSERT_EQ(umount(self->dir), 0);
	expect_pool("unmounted", NR_POOL, 0);
}

TEST_F(reserve, limited_mount_shared)
{
	faults_without_pages(_metadata, self, MAP_SHARED, 0);
}

TEST_F(reserve, limited_mount_private)
{
	faults_without_pages(_metadata, self, MAP_PRIVATE, 0);
}

TEST_F(reserve, limited_mount_min_size)
{
	faults_without_pages(_metadata, self, MAP_SHARED, 1);
}

/* The same without a mapping. */
TEST_F(reserve, limited_mount_fallocate)
{
	char options[64];
	int fd, i;

	snprintf(options, sizeof(options), "size=%luK",
		 NR_PAGES * self->size >> 10);
	ASSERT_TRUE(mount_hugetlbfs(self, options));
	fd = open(self->file, O_CREAT | O_RDWR, 0600);
	ASSERT_GE(fd, 0);
	ASSERT_TRUE(take_pages(self));

	for (i = 0; i < 2 * NR_PAGES; i++)
		EXPECT_NE(fallocate(fd, 0, 0, self->size), 0);
	expect_mount_free("after fallocate() without a page", NR_PAGES);

	munmap(self->taken, self->taken_len);
	self->taken = MAP_FAILED;
	EXPECT_EQ(fallocate(fd, 0, 0, NR_PAGES * self->size), 0)
		TH_LOG("%d pages of a mount of %d: %m", NR_PAGES, NR_PAGES);
	close(fd);
	ASSERT_EQ(unlink(self->file), 0);
	expect_mount_free("in the end", NR_PAGES);
	ASSERT_EQ(umount(self->dir), 0);
	expect_pool("unmounted", NR_POOL, 0);
}

/* A thread that needs a page of a file, of which there is none. */
struct getter {
	pthread_barrier_t start;
	unsigned long size;
	bool reserve;
	int fd;
};

static void *get_page(void *arg)
{
	struct getter *getter = arg;
	char *p;

	pthread_barrier_wait(&getter->start);
	if (getter->reserve) {
		p = mmap(NULL, getter->size, PROT_READ | PROT_WRITE, MAP_SHARED,
			 getter->fd, 0);
		if (p != MAP_FAILED)
			munmap(p, getter->size);
	} else {
		fallocate(getter->fd, 0, 0, getter->size);
	}
	return NULL;
}

/*
 * One file gives the reserved page of the mount back, while another one fails
 * to get a page. All must be as before when the mount is gone.
 */
static void free_against_failure(struct __test_metadata *_metadata,
				 FIXTURE_DATA(reserve) * self, bool reserve)
{
	struct getter getter = { .size = self->size, .reserve = reserve };
	unsigned long round = 0;
	char options[64];
	pthread_t thread;
	long taken, resv;
	time_t end;
	int fd;

	snprintf(options, sizeof(options), "size=%luK,min_size=%luK",
		 NR_PAGES * self->size >> 10, self->size >> 10);
	ASSERT_EQ(pthread_barrier_init(&getter.start, NULL, 2), 0);
	ASSERT_TRUE(mount_hugetlbfs(self, options));
	ASSERT_TRUE(take_pages(self));
	taken = self->taken_len / self->size;
	expect_pool("mounted", NR_POOL, taken + 1);
	ASSERT_EQ(umount(self->dir), 0);

	end = time(NULL) + RACE_SECS;
	do {
		round++;
		ASSERT_TRUE(mount_hugetlbfs(self, options));
		fd = open(self->file, O_CREAT | O_RDWR, 0600);
		ASSERT_GE(fd, 0);
		ASSERT_EQ(unlink(self->file), 0);
		ASSERT_EQ(fallocate(fd, 0, 0, self->size), 0);
		getter.fd = open(self->file, O_CREAT | O_RDWR, 0600);
		ASSERT_GE(getter.fd, 0);
		ASSERT_EQ(unlink(self->file), 0);

		ASSERT_EQ(pthread_create(&thread, NULL, get_page, &getter), 0);
		pthread_barrier_wait(&getter.start);
		ASSERT_EQ(ftruncate(fd, 0), 0);
		pthread_join(thread, NULL);

		close(getter.fd);
		close(fd);
		ASSERT_EQ(umount(self->dir), 0);
		resv = resv_pages(self->size) - self->resv;
	} while (resv == taken && time(NULL) < end);

	EXPECT_EQ(resv, taken)
		TH_LOG("unmounted in round %lu: %ld pages are reserved, expected %ld",
		       round, resv, taken);
	expect_pool("unmounted", NR_POOL, taken);
	pthread_barrier_destroy(&getter.start);
}

TEST_F(reserve, limited_mount_free_against_mmap)
{
	free_against_failure(_metadata, self, true);
}

TEST_F(reserve, limited_mount_free_against_fallocate)
{
	free_against_failure(_metadata, self, false);
}

static bool uffd_copy(int uffd, char *dst, char *src, unsigned long len)
{
	struct uffdio_register reg = {
		.range = { (unsigned long)dst, len },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	struct uffdio_copy copy = {
		.dst = (unsigned long)dst,
		.src = (unsigned long)src,
		.len = len,
	};

	return !ioctl(uffd, UFFDIO_REGISTER, &reg) &&
	       !ioctl(uffd, UFFDIO_COPY, &copy);
}

/*
 * UFFDIO_COPY frees the first page that it has allocated, as the source is not
 * present. The mapping has no reserve map, but the mount has a reserved page.
 */
TEST_F(reserve, min_size_uffd_copy)
{
	struct uffdio_api api = { .api = UFFD_API };
	char options[64], *p, *src;
	int uffd, fd, round;

	uffd = syscall(__NR_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
	if (uffd < 0)
		SKIP(return, "no userfaultfd");
	ASSERT_EQ(ioctl(uffd, UFFDIO_API, &api), 0);

	snprintf(options, sizeof(options), "min_size=%luK", self->size >> 10);
	ASSERT_TRUE(mount_hugetlbfs(self, options));
	fd = open(self->file, O_CREAT | O_RDWR, 0600);
	ASSERT_GE(fd, 0);
	expect_pool("mounted", NR_POOL, 1);

	for (round = 0; round < 2; round++) {
		src = mmap(NULL, self->size, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		ASSERT_NE(src, MAP_FAILED);
		p = mmap(NULL, self->size, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_NORESERVE, fd, 0);
		ASSERT_NE(p, MAP_FAILED);

		ASSERT_TRUE(uffd_copy(uffd, p, src, self->size));
		expect_pool("copied", NR_POOL - 1, 0);
		ASSERT_EQ(munmap(p, self->size), 0);
		expect_pool("unmapped", NR_POOL, 1);
		ASSERT_EQ(munmap(src, self->size), 0);
	}

	close(uffd);
	close(fd);
	ASSERT_EQ(unlink(self->file), 0);
	ASSERT_EQ(umount(self->dir), 0);
	expect_pool("unmounted", NR_POOL, 0);
}

/*
 * A pipe holds one of two pages when their mount goes away. The other page has
 * filled up the reserve of the mount, which is given up only once.
 */
TEST_F(reserve, min_size_pinned_umount)
{
	char options[64], *p;
	int fd, i;

	snprintf(options, sizeof(options), "min_size=%luK", self->size >> 10);
	ASSERT_TRUE(mount_hugetlbfs(self, options));
	fd = open(self->file, O_CREAT | O_RDWR, 0600);
	ASSERT_GE(fd, 0);
	p = mmap(NULL, 2 * self->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
		 0);
	ASSERT_NE(p, MAP_FAILED);
	for (i = 0; i < 2; i++)
		ASSERT_TRUE(touch(self, p + i * self->size));
	expect_pool("touched", NR_POOL - 2, 0);
	ASSERT_TRUE(reference(self, p, 1));

	ASSERT_EQ(munmap(p, 2 * self->size), 0);
	close(fd);
	ASSERT_EQ(unlink(self->file), 0);
	ASSERT_EQ(umount(self->dir), 0);
	expect_pool("unmounted", NR_POOL - 1, 0);
	drop_references(self);
	expect_pool("no page used", NR_POOL, 0);
}

TEST_HARNESS_MAIN
