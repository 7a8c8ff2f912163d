// SPDX-License-Identifier: GPL-2.0
/*
 * A large folio is mapped by so many page table entries at most: see "Limit of
 * mappings" in Documentation/mm/transhuge.rst. Lower the limit, which kernels
 * with CONFIG_DEBUG_VM have in debugfs, to what two mappings of one folio need,
 * and see what comes of the third one.
 *
 * The limit applies to the whole system. While it is low, other processes that
 * map the same large folio of a file, or share anonymous ones, may get SIGBUS.
 * fork() may fail with ENOMEM if more processes than that have read the clock,
 * as the limit also covers pages that a driver has inserted, and those in vvar.
 */

#include <errno.h>
#include <linux/io_uring.h>
#include <linux/mman.h>
#include <linux/tcp.h>
#include <linux/userfaultfd.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include "folio_region.h"

#define LIMIT_FILE	"/sys/kernel/debug/folio_map_limit"
#define LIMIT_MAX_FILE	"/sys/kernel/debug/folio_map_limit_max"
#define TIMEOUT		300
#define NOBODY		65534
#define CODE_OFFSET	64
#define CODE_LEN	64	/* at least */

/* Written to the file, to be executed from there: must not need anything else. */
static int answer(void)
{
	return 42;
}

static unsigned long saved_limit, saved_limit_max;

/* @max: the limit of MMs that have few VMAs of the page */
static void set_limits(unsigned long pages, unsigned long max)
{
	write_num(LIMIT_FILE, pages);
	if (saved_limit_max)
		write_num(LIMIT_MAX_FILE, max);
}

static void restore_limit(void)
{
	set_limits(saved_limit, saved_limit_max);
}

/* Restored when the harness exits, however its children ended. */
static void __attribute__((constructor)) save_limit(void)
{
	if (access(LIMIT_FILE, W_OK))
		return;
	saved_limit = read_num(LIMIT_FILE);
	if (!access(LIMIT_MAX_FILE, W_OK))
		saved_limit_max = read_num(LIMIT_MAX_FILE);
	atexit(restore_limit);
}

/* One limit, whatever maps the folio */
static void set_limit(long pages)
{
	set_limits(pages, pages);
}

/* Returns why tests have to be skipped, or NULL. */
static const char *limit_init(struct folio_env *env)
{
	const char *why = folio_env_init(env);

	if (!why && !saved_limit)
		why = "needs debugfs, and a kernel with CONFIG_DEBUG_VM";
	return why;
}

FIXTURE(map_limit)
{
	struct folio_env env;
	size_t size;
	long pages;
	int fd;
	/* Two mappings of all of the folio */
	char *mem[2];
};

/* Map the folio at an address that a PMD can map. */
static char *map_file_aligned(FIXTURE_DATA(map_limit) * self, int fd, int prot,
			      int flags)
{
	const size_t size = self->size;
	char *arena, *mem;

	arena = mmap(NULL, 3 * size, PROT_NONE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (arena == MAP_FAILED)
		return arena;
	/* No VMA that it could be merged with is next to it. */
	mem = align_up(arena + 1, size);
	return mmap(mem, size, prot, flags | MAP_FIXED, fd, 0);
}

/* Map the folio where it is mapped by PTEs. */
static char *map_file(FIXTURE_DATA(map_limit) * self, int prot, int flags)
{
	char *mem = map_file_aligned(self, self->fd, prot, flags);

	if (mem != MAP_FAILED && madvise(mem, self->size, MADV_NOHUGEPAGE))
		return MAP_FAILED;
	return mem;
}

static char file_byte(long page)
{
	return page % 255 + 1;
}

/* A large folio of a file, mapped twice, which is the limit */
FIXTURE_SETUP(map_limit)
{
	const char *why = limit_init(&self->env);
	int n, folios = 1;
	char *p;
	long i;

	self->fd = -1;
	if (why)
		SKIP(return, "%s", why);

	self->size = self->env.pmd_size;
	self->pages = self->size / psize();
	self->fd = shmem_folios(&self->env, &folios);
	if (self->fd < 0)
		SKIP(return, "no file of a large folio");
	for (n = 0; n < 2; n++) {
		self->mem[n] = map_file(self, PROT_READ | PROT_WRITE, MAP_SHARED);
		ASSERT_NE(self->mem[n], MAP_FAILED);
		for (i = 0; i < self->pages; i++) {
			p = self->mem[n] + i * psize();
			*p = file_byte(i);
		}
	}
	memcpy(self->mem[0] + CODE_OFFSET, answer, CODE_LEN);
	set_limit(2 * self->pages);
}

FIXTURE_TEARDOWN(map_limit)
{
	if (saved_limit)
		restore_limit();
	thp_restore_settings();
	if (self->fd >= 0)
		close(self->fd);
}

/* How many pages do not have what was written to the file? */
static long wrong_pages(FIXTURE_DATA(map_limit) * self, char *mem)
{
	long i, wrong = 0;

	for (i = 0; i < self->pages; i++)
		wrong += mem[i * psize()] != file_byte(i);
	return wrong;
}

/* How many of the mapped pages do not belong to the file? */
static long copied_pages(FIXTURE_DATA(map_limit) * self, int pagemap, char *mem)
{
	long i, copied = 0;
	uint64_t entry;

	for (i = 0; i < self->pages; i++) {
		entry = pagemap_get_entry(pagemap, mem + i * psize());
		copied += (entry & PM_PRESENT) && !(entry & PM_FILE);
	}
	return copied;
}

static long present_pages(FIXTURE_DATA(map_limit) * self, int pagemap, char *mem)
{
	long i, present = 0;

	for (i = 0; i < self->pages; i++)
		if (pagemap_get_entry(pagemap, mem + i * psize()) & PM_PRESENT)
			present++;
	return present;
}

/* Wait for a child that exits with the number of what is wrong, and log it. */
static int child_failed(pid_t pid, const char *const *what)
{
	int status;

	if (pid < 0 || waitpid(pid, &status, 0) != pid || !WIFEXITED(status))
		return -1;
	status = WEXITSTATUS(status);
	if (status)
		ksft_print_msg("the child: %s\n", what[status - 1]);
	return status;
}

/* Returns what fork() fails with, or 0 if a child was there and has exited. */
static int fork_error(void)
{
	pid_t pid = fork();

	if (!pid)
		_exit(0);
	return pid < 0 ? errno : child_failed(pid, NULL);
}

static void check_shared(struct __test_metadata *_metadata,
			 FIXTURE_DATA(map_limit) * self, char *mem)
{
	ASSERT_NE(mem, MAP_FAILED);
	EXPECT_TRUE(bus_error(mem, false));
	EXPECT_TRUE(bus_error(mem + self->size - psize(), false));
	/* Existing mappings are kept. */
	EXPECT_FALSE(bus_error(self->mem[0], true));
	EXPECT_EQ(wrong_pages(self, self->mem[1]), 0);

	/* Nothing around it is mapped, either. */
	EXPECT_EQ(present_pages(self, self->env.pagemap_fd, mem), 0);

	/* One page less is mapped: that one may be mapped. */
	ASSERT_EQ(munmap(self->mem[1], psize()), 0);
	EXPECT_FALSE(bus_error(mem, false));

	ASSERT_EQ(munmap(self->mem[1] + psize(), self->size - psize()), 0);
	EXPECT_EQ(wrong_pages(self, mem), 0);
}

TEST_F_TIMEOUT(map_limit, shared, TIMEOUT)
{
	check_shared(_metadata, self,
		     map_file(self, PROT_READ | PROT_WRITE, MAP_SHARED));
}

/* By a PMD, if it were not for the limit */
TEST_F_TIMEOUT(map_limit, shared_pmd, TIMEOUT)
{
	check_shared(_metadata, self,
		     map_file_aligned(self, self->fd, PROT_READ | PROT_WRITE,
				      MAP_SHARED));
}

/* Nothing is mapped in advance, either. */
TEST_F_TIMEOUT(map_limit, collapse, TIMEOUT)
{
	char *mem = map_file_aligned(self, self->fd, PROT_READ | PROT_WRITE,
				     MAP_SHARED);

	ASSERT_NE(mem, MAP_FAILED);
	EXPECT_NE(madvise(mem, self->size, MADV_COLLAPSE), 0);
	EXPECT_EQ(present_pages(self, self->env.pagemap_fd, mem), 0);

	ASSERT_EQ(munmap(self->mem[1], self->size), 0);
	EXPECT_EQ(madvise(mem, self->size, MADV_COLLAPSE), 0);
	EXPECT_EQ(present_pages(self, self->env.pagemap_fd, mem), self->pages);
	EXPECT_EQ(wrong_pages(self, mem), 0);
}

TEST_F_TIMEOUT(map_limit, shared_write, TIMEOUT)
{
	char *mem = map_file(self, PROT_READ | PROT_WRITE, MAP_SHARED);

	ASSERT_NE(mem, MAP_FAILED);
	EXPECT_TRUE(bus_error(mem, true));
	ASSERT_EQ(munmap(self->mem[1], self->size), 0);
	EXPECT_FALSE(bus_error(mem, true));
}

TEST_F_TIMEOUT(map_limit, shared_read_only, TIMEOUT)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", self->fd);
	fd = open(path, O_RDONLY);
	ASSERT_GE(fd, 0);
	check_shared(_metadata, self,
		     map_file_aligned(self, fd, PROT_READ, MAP_SHARED));
	close(fd);
}

/* Another user reads, executes and writes what is in the file. */
TEST_F_TIMEOUT(map_limit, private, TIMEOUT)
{
	static const char *const what[] = {
		"no mapping", "cannot become another user",
		"a wrong answer", "wrong contents", "mapped what is in the file",
		"not all pages are there", "cannot write",
	};
	int pagemap;
	char *mem;
	pid_t pid;

	pid = fork();
	if (!pid) {
		pagemap = open("/proc/self/pagemap", O_RDONLY);
		mem = map_file(self, PROT_READ | PROT_WRITE | PROT_EXEC,
			       MAP_PRIVATE);
		if (pagemap < 0 || mem == MAP_FAILED)
			_exit(1);
		if (setgid(NOBODY) || setuid(NOBODY))
			_exit(2);
		if (((int (*)(void))(mem + CODE_OFFSET))() != answer())
			_exit(3);
		if (wrong_pages(self, mem))
			_exit(4);
		if (copied_pages(self, pagemap, mem) != self->pages)
			_exit(5);
		if (present_pages(self, pagemap, mem) != self->pages)
			_exit(6);
		mem[0]++;
		mem[self->size - psize()]++;
		if (wrong_pages(self, mem) != 2)
			_exit(7);
		_exit(0);
	}
	ASSERT_EQ(child_failed(pid, what), 0);
	EXPECT_EQ(wrong_pages(self, self->mem[0]), 0);
}

/* The child of one that has written to a page of a private mapping */
TEST_F_TIMEOUT(map_limit, fork_private, TIMEOUT)
{
	static const char *const what[] = {
		"more is mapped than could be", "wrong contents",
		"mapped what is in the file",
	};
	int pagemap;
	char *mem;
	pid_t pid;

	ASSERT_EQ(munmap(self->mem[1], self->size), 0);
	mem = map_file(self, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	ASSERT_NE(mem, MAP_FAILED);
	mem[0] = file_byte(0);
	ASSERT_EQ(wrong_pages(self, mem), 0);
	ASSERT_EQ(copied_pages(self, self->env.pagemap_fd, mem), 1);
	/* One of them is another page. */
	set_limit(2 * self->pages - 1);

	pid = fork();
	if (!pid) {
		pagemap = open("/proc/self/pagemap", O_RDONLY);
		if (present_pages(self, pagemap, mem) != 1)
			_exit(1);
		if (wrong_pages(self, mem))
			_exit(2);
		if (copied_pages(self, pagemap, mem) != self->pages)
			_exit(3);
		_exit(0);
	}
	EXPECT_EQ(child_failed(pid, what), 0);
	EXPECT_EQ(present_pages(self, self->env.pagemap_fd, mem), self->pages);
	EXPECT_EQ(wrong_pages(self, mem), 0);
}

#define MIGRATING_FORKS	50

static void __noreturn migrate_page(pid_t pid, void *page, const int *nodes)
{
	int i, status;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (i = 0;; i++)
		move_pages(pid, 1, &page, &nodes[i % 2], &status,
			   MPOL_MF_MOVE_ALL);
}

/* How often are pages of the folio mapped, on average? */
static long average_mapped(int kpagecount, unsigned long pfn)
{
	uint64_t count;

	if (pread(kpagecount, &count, sizeof(count), pfn * sizeof(count)) !=
	    sizeof(count))
		return -1;
	return count;
}

/*
 * What migration finds mapped it maps again, whatever the limit is. That is no more
 * than there was, as children that are forked meanwhile do not get it; but while it
 * is not mapped others can be, so there can be twice as much.
 */
TEST_F_TIMEOUT(map_limit, fork_migrating, TIMEOUT)
{
	const int nodes[] = { self->env.node1, self->env.node2 };
	const int kpagecount = open("/proc/kpagecount", O_RDONLY);
	pid_t mover, pids[MIGRATING_FORKS];
	unsigned long pfn, last = 0;
	int i, moved = 0;
	char *mem;

	if (self->env.node2 < 0)
		SKIP(return, "needs two NUMA nodes with memory to use");
	if (kpagecount < 0)
		SKIP(return, "no kpagecount");
	restore_limit();
	mem = map_file(self, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	ASSERT_NE(mem, MAP_FAILED);
	/* fork() copies what is mapped of a VMA only if it has a page of its own. */
	mem[0] = file_byte(0);
	ASSERT_EQ(wrong_pages(self, mem), 0);
	set_limit(3 * self->pages - 1);

	mover = fork();
	ASSERT_GE(mover, 0);
	if (!mover)
		migrate_page(getppid(), self->mem[0], nodes);
	for (i = 0; i < MIGRATING_FORKS; i++) {
		pids[i] = fork();
		ASSERT_GE(pids[i], 0);
		if (!pids[i]) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			for (;;)
				pause();
		}
		pfn = pagemap_get_pfn(self->env.pagemap_fd, self->mem[0]);
		moved += pfn != last;
		last = pfn;
	}
	ASSERT_EQ(kill(mover, SIGKILL), 0);
	ASSERT_EQ(waitpid(mover, NULL, 0), mover);
	EXPECT_GT(moved, 2);
	EXPECT_EQ(wrong_pages(self, mem), 0);
	EXPECT_EQ(wrong_pages(self, self->mem[1]), 0);
	pfn = pagemap_get_pfn(self->env.pagemap_fd, self->mem[0]);
	EXPECT_LE(average_mapped(kpagecount, pfn), 6);

	/* All of it can be given back. */
	for (i = 0; i < MIGRATING_FORKS; i++) {
		ASSERT_EQ(kill(pids[i], SIGKILL), 0);
		ASSERT_EQ(waitpid(pids[i], NULL, 0), pids[i]);
	}
	EXPECT_EQ(average_mapped(kpagecount, pfn), 3);
	ASSERT_EQ(munmap(mem, self->size), 0);
	ASSERT_EQ(munmap(self->mem[0], self->size), 0);
	ASSERT_EQ(munmap(self->mem[1], self->size), 0);
	EXPECT_EQ(average_mapped(kpagecount, pfn), 0);
	close(kpagecount);
}

/* A userfaultfd of the mapping, or -1 */
static int open_userfaultfd(FIXTURE_DATA(map_limit) * self, char *mem,
			    __u64 features, __u64 mode)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	struct uffdio_register reg = {
		.range = { .start = (unsigned long)mem, .len = self->size },
		.mode = mode,
	};
	int fd = syscall(__NR_userfaultfd, O_CLOEXEC);

	if (fd < 0 || ioctl(fd, UFFDIO_API, &api) ||
	    ioctl(fd, UFFDIO_REGISTER, &reg)) {
		close(fd);
		return -1;
	}
	return fd;
}

static void *read_fork_event(void *arg)
{
	struct uffd_msg msg;
	int fd = *(int *)arg;

	if (read(fd, &msg, sizeof(msg)) != sizeof(msg) ||
	    msg.event != UFFD_EVENT_FORK)
		return NULL;
	return (void *)(long)msg.arg.fork.ufd;
}

/* The child has to know which pages a userfaultfd protects. */
TEST_F_TIMEOUT(map_limit, fork_protected, TIMEOUT)
{
	static const char *const what[] = {
		"a page is mapped", "a page is not protected any more",
	};
	struct uffdio_writeprotect wp = {
		.range = { .start = (unsigned long)self->mem[0],
			   .len = self->size / 2 },
		.mode = UFFDIO_WRITEPROTECT_MODE_WP,
	};
	int uffd, pagemap;
	pthread_t thread;
	void *child_uffd;
	uint64_t entry;
	pid_t pid;
	long i;

	uffd = open_userfaultfd(self, self->mem[0], UFFD_FEATURE_EVENT_FORK |
				UFFD_FEATURE_PAGEFAULT_FLAG_WP |
				UFFD_FEATURE_WP_HUGETLBFS_SHMEM,
				UFFDIO_REGISTER_MODE_WP);
	if (uffd < 0)
		SKIP(return, "no userfaultfd that protects files");
	ASSERT_EQ(ioctl(uffd, UFFDIO_WRITEPROTECT, &wp), 0);
	ASSERT_EQ(pthread_create(&thread, NULL, read_fork_event, &uffd), 0);

	pid = fork();
	if (!pid) {
		pagemap = open("/proc/self/pagemap", O_RDONLY);
		for (i = 0; i < self->pages; i++) {
			entry = pagemap_get_entry(pagemap, self->mem[0] +
						  i * psize());
			if (entry & PM_PRESENT)
				_exit(1);
			if (!!(entry & PM_UFFD_WP) != (i < self->pages / 2))
				_exit(2);
		}
		_exit(0);
	}
	ASSERT_GT(pid, 0);
	pthread_join(thread, &child_uffd);
	EXPECT_NE(child_uffd, NULL);
	EXPECT_EQ(child_failed(pid, what), 0);
	close((long)child_uffd);
	close(uffd);
}

/* Nor can a page be left out of the child that must not be accessed there. */
TEST_F_TIMEOUT(map_limit, fork_rw_protected, TIMEOUT)
{
	struct uffdio_rwprotect rwp = {
		.range = { .start = (unsigned long)self->mem[0],
			   .len = self->size / 2 },
		.mode = UFFDIO_RWPROTECT_MODE_RWP,
	};
	pthread_t thread;
	void *child_uffd;
	int uffd;

	uffd = open_userfaultfd(self, self->mem[0], UFFD_FEATURE_EVENT_FORK |
				UFFD_FEATURE_RWP, UFFDIO_REGISTER_MODE_RWP);
	if (uffd < 0)
		SKIP(return, "no userfaultfd that protects from reading");
	ASSERT_EQ(ioctl(uffd, UFFDIO_RWPROTECT, &rwp), 0);
	EXPECT_EQ(fork_error(), ENOMEM);

	restore_limit();
	ASSERT_EQ(pthread_create(&thread, NULL, read_fork_event, &uffd), 0);
	EXPECT_EQ(fork_error(), 0);
	pthread_join(thread, &child_uffd);
	EXPECT_NE(child_uffd, NULL);
	close((long)child_uffd);
	close(uffd);
}

/* A monitor of minor faults is told that it cannot map the page. */
TEST_F_TIMEOUT(map_limit, uffdio_continue, TIMEOUT)
{
	struct uffdio_continue cont = {};
	char *mem;
	int uffd;

	mem = map_file(self, PROT_READ | PROT_WRITE, MAP_SHARED);
	ASSERT_NE(mem, MAP_FAILED);
	uffd = open_userfaultfd(self, mem, UFFD_FEATURE_MINOR_SHMEM,
				UFFDIO_REGISTER_MODE_MINOR);
	if (uffd < 0)
		SKIP(return, "no userfaultfd that has minor faults");
	cont.range.start = (unsigned long)mem;
	cont.range.len = 2 * psize();
	EXPECT_EQ(ioctl(uffd, UFFDIO_CONTINUE, &cont), -1);
	EXPECT_EQ(errno, EOVERFLOW);
	EXPECT_EQ(cont.mapped, -EOVERFLOW);
	EXPECT_EQ(present_pages(self, self->env.pagemap_fd, mem), 0);

	/* One page can be mapped, but two cannot. */
	ASSERT_EQ(munmap(self->mem[1], psize()), 0);
	EXPECT_EQ(ioctl(uffd, UFFDIO_CONTINUE, &cont), -1);
	EXPECT_EQ(errno, EAGAIN);
	EXPECT_EQ(cont.mapped, psize());
	EXPECT_EQ(present_pages(self, self->env.pagemap_fd, mem), 1);
	close(uffd);
}

/* An MM has few VMAs of a page if it has so many, and not too many VMAs in all. */
#define FEW_MAPPINGS	4
#define FEW_VMAS	4096
/* The limit of other MMs, in mappings of the whole folio */
#define MANY_MAPPINGS	16

/* The mappings of the test, until it has other ones */
static void start_without_mappings(struct __test_metadata *_metadata,
				   FIXTURE_DATA(map_limit) * self)
{
	ASSERT_EQ(munmap(self->mem[0], self->size), 0);
	ASSERT_EQ(munmap(self->mem[1], self->size), 0);
	set_limits(MANY_MAPPINGS * self->pages, 4 * MANY_MAPPINGS * self->pages);
}

/*
 * Another user, with read access only, maps the folio until that is refused,
 * and keeps the mappings until end_child(). The test has @others mappings of it.
 */
static pid_t fork_attacker(struct __test_metadata *_metadata,
			   FIXTURE_DATA(map_limit) * self, int fds[2], int others)
{
	int i, ready[2], mapped = -1;
	char path[64], *mem, c;
	pid_t pid;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", self->fd);
	ASSERT_EQ(pipe(fds), 0);
	ASSERT_EQ(pipe(ready), 0);
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		close(fds[1]);
		self->fd = open(path, O_RDONLY);
		if (self->fd < 0 || setgid(NOBODY) || setuid(NOBODY))
			_exit(1);
		for (i = 0; i < 2 * MANY_MAPPINGS; i++) {
			mem = map_file(self, PROT_READ, MAP_SHARED);
			if (mem == MAP_FAILED)
				_exit(1);
			if (madvise(mem, self->size, MADV_POPULATE_READ))
				break;
		}
		if (write(ready[1], &i, sizeof(i)) != sizeof(i))
			_exit(1);
		/* End of file. */
		_exit(read(fds[0], &c, 1) != 0);
	}
	close(fds[0]);
	close(ready[1]);
	EXPECT_EQ(read(ready[0], &mapped, sizeof(mapped)), sizeof(mapped));
	close(ready[0]);
	EXPECT_EQ(mapped, MANY_MAPPINGS - others);
	return pid;
}

/* How many pages get SIGBUS? */
static long bus_errors(FIXTURE_DATA(map_limit) * self, char *mem, bool write)
{
	long i, errors = 0;

	for (i = 0; i < self->pages; i++)
		errors += bus_error(mem + i * psize(), write);
	return errors;
}

/* Processes that map the folio a few times can do so when another one cannot. */
TEST_F_TIMEOUT(map_limit, other_user, TIMEOUT)
{
	char *mem[FEW_MAPPINGS];
	int i, fds[2];
	pid_t pid;

	start_without_mappings(_metadata, self);
	pid = fork_attacker(_metadata, self, fds, 0);
	for (i = 0; i < FEW_MAPPINGS; i++) {
		mem[i] = map_file(self, PROT_READ | PROT_WRITE, MAP_SHARED);
		ASSERT_NE(mem[i], MAP_FAILED);
		EXPECT_EQ(bus_errors(self, mem[i], i % 2), 0);
	}
	for (i = 0; i < FEW_MAPPINGS; i++)
		ASSERT_EQ(munmap(mem[i], self->size), 0);

	/* Where a PMD could map it, too */
	mem[0] = map_file_aligned(self, self->fd, PROT_READ | PROT_WRITE,
				  MAP_SHARED);
	ASSERT_NE(mem[0], MAP_FAILED);
	EXPECT_EQ(bus_errors(self, mem[0], true), 0);
	EXPECT_TRUE(end_child(pid, fds));
}

/* Locked memory is unmapped by MADV_COLLAPSE of another process, for one. */
TEST_F_TIMEOUT(map_limit, other_user_mlock, TIMEOUT)
{
	int fds[2];
	char *mem;
	pid_t pid;

	start_without_mappings(_metadata, self);
	mem = map_file(self, PROT_READ | PROT_WRITE, MAP_SHARED);
	ASSERT_NE(mem, MAP_FAILED);
	if (mlock(mem, self->size))
		SKIP(return, "cannot lock %zu bytes", self->size);
	/* Unmap it here, where another process would have that done. */
	if (madvise(mem, self->size, MADV_DONTNEED_LOCKED))
		SKIP(return, "no MADV_DONTNEED_LOCKED");
	pid = fork_attacker(_metadata, self, fds, 0);
	EXPECT_EQ(bus_errors(self, mem, true), 0);
	EXPECT_TRUE(end_child(pid, fds));
}

/* fork() leaves what is mapped of a file to faults of the child. */
TEST_F_TIMEOUT(map_limit, other_user_fork, TIMEOUT)
{
	static const char *const what[] = { "SIGBUS", "wrong contents" };
	char *shared, *private;
	int fds[2];
	pid_t pid, child;

	start_without_mappings(_metadata, self);
	shared = map_file(self, PROT_READ | PROT_WRITE, MAP_SHARED);
	ASSERT_NE(shared, MAP_FAILED);
	ASSERT_EQ(bus_errors(self, shared, true), 0);
	private = map_file(self, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	ASSERT_NE(private, MAP_FAILED);
	/* One page is copied, so that fork() copies the page table. */
	private[psize()] = file_byte(1);
	pid = fork_attacker(_metadata, self, fds, 1);
	child = fork();
	if (!child) {
		if (bus_errors(self, shared, true) ||
		    bus_errors(self, private, false))
			_exit(1);
		if (wrong_pages(self, private) || shared[psize()] != file_byte(1))
			_exit(2);
		_exit(0);
	}
	EXPECT_EQ(child_failed(child, what), 0);
	EXPECT_EQ(bus_errors(self, shared, true), 0);
	EXPECT_TRUE(end_child(pid, fds));
}

/* A monitor of minor faults can go on, too. */
TEST_F_TIMEOUT(map_limit, other_user_continue, TIMEOUT)
{
	struct uffdio_continue cont = {};
	int fds[2], uffd;
	char *mem;
	pid_t pid;

	start_without_mappings(_metadata, self);
	mem = map_file(self, PROT_READ | PROT_WRITE, MAP_SHARED);
	ASSERT_NE(mem, MAP_FAILED);
	uffd = open_userfaultfd(self, mem, UFFD_FEATURE_MINOR_SHMEM,
				UFFDIO_REGISTER_MODE_MINOR);
	if (uffd < 0)
		SKIP(return, "no userfaultfd that has minor faults");
	pid = fork_attacker(_metadata, self, fds, 0);
	cont.range.start = (unsigned long)mem;
	cont.range.len = self->size;
	EXPECT_EQ(ioctl(uffd, UFFDIO_CONTINUE, &cont), 0);
	EXPECT_EQ(present_pages(self, self->env.pagemap_fd, mem), self->pages);
	close(uffd);
	EXPECT_TRUE(end_child(pid, fds));
}

/* Only VMAs that can map the page count, and they do if they map nothing yet. */
TEST_F_TIMEOUT(map_limit, few_mappings, TIMEOUT)
{
	char *mem[FEW_MAPPINGS], *more, *other[2 * FEW_MAPPINGS];
	const long last = self->size - psize();
	int i, fds[2];
	pid_t pid;

	start_without_mappings(_metadata, self);
	pid = fork_attacker(_metadata, self, fds, 0);
	for (i = 0; i < FEW_MAPPINGS; i++) {
		mem[i] = map_file(self, PROT_READ | PROT_WRITE, MAP_SHARED);
		ASSERT_NE(mem[i], MAP_FAILED);
	}
	for (i = 0; i < 2 * FEW_MAPPINGS; i++) {
		other[i] = mmap(NULL, psize(), PROT_READ, MAP_SHARED, self->fd,
				last);
		ASSERT_NE(other[i], MAP_FAILED);
	}
	EXPECT_FALSE(bus_error(mem[0], true));
	EXPECT_TRUE(bus_error(mem[0] + last, true));
	EXPECT_TRUE(bus_error(other[0], false));
	for (i = 0; i < 2 * FEW_MAPPINGS; i++)
		ASSERT_EQ(munmap(other[i], psize()), 0);
	EXPECT_FALSE(bus_error(mem[0] + last, true));

	more = map_file(self, PROT_READ | PROT_WRITE, MAP_SHARED);
	ASSERT_NE(more, MAP_FAILED);
	EXPECT_TRUE(bus_error(more, true));
	EXPECT_TRUE(bus_error(mem[1], true));
	EXPECT_FALSE(bus_error(mem[0], true));
	ASSERT_EQ(munmap(more, self->size), 0);
	EXPECT_FALSE(bus_error(mem[1], true));
	EXPECT_TRUE(end_child(pid, fds));
}

/* A process with very many VMAs has the limit of the other user. */
TEST_F_TIMEOUT(map_limit, many_vmas, TIMEOUT)
{
	const size_t len = 2 * FEW_VMAS * psize();
	char *arena, *mem;
	int i, fds[2];
	pid_t pid;

	start_without_mappings(_metadata, self);
	mem = map_file(self, PROT_READ | PROT_WRITE, MAP_SHARED);
	ASSERT_NE(mem, MAP_FAILED);
	pid = fork_attacker(_metadata, self, fds, 0);
	EXPECT_FALSE(bus_error(mem, true));
	arena = mmap(NULL, len, PROT_NONE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	ASSERT_NE(arena, MAP_FAILED);
	for (i = 0; i < FEW_VMAS; i++)
		ASSERT_EQ(mprotect(arena + 2 * i * psize(), psize(), PROT_READ), 0);
	EXPECT_TRUE(bus_error(mem + psize(), true));
	EXPECT_FALSE(bus_error(mem, true));
	ASSERT_EQ(munmap(arena, len), 0);
	EXPECT_FALSE(bus_error(mem + psize(), true));
	EXPECT_TRUE(end_child(pid, fds));
}

/* There is a limit for processes with few mappings, too, of which no page is lost. */
TEST_F_TIMEOUT(map_limit, max, TIMEOUT)
{
	const long more = self->pages / 2;
	int fds[2];
	char *mem;
	pid_t pid;

	start_without_mappings(_metadata, self);
	mem = map_file(self, PROT_READ | PROT_WRITE, MAP_SHARED);
	ASSERT_NE(mem, MAP_FAILED);
	pid = fork_attacker(_metadata, self, fds, 0);
	set_limits(MANY_MAPPINGS * self->pages,
		   MANY_MAPPINGS * self->pages + more);
	EXPECT_EQ(bus_errors(self, mem, true), self->pages - more);
	EXPECT_EQ(present_pages(self, self->env.pagemap_fd, mem), more);
	EXPECT_TRUE(end_child(pid, fds));
	EXPECT_EQ(bus_errors(self, mem, true), 0);
}

/* Anonymous folios, and what else needs no file */
FIXTURE(map_limit_other)
{
	struct folio_env env;
};

FIXTURE_SETUP(map_limit_other)
{
	const char *why = limit_init(&self->env);

	if (why)
		SKIP(return, "%s", why);
}

FIXTURE_TEARDOWN(map_limit_other)
{
	if (saved_limit)
		restore_limit();
	thp_restore_settings();
}

/* The child gets pages of its own, of folios of all sizes. */
TEST_F_TIMEOUT(map_limit_other, fork_anon, TIMEOUT)
{
	static const char *const what[] = {
		"wrong contents", "shares pages with its parent",
	};
	int i, n, pagemap, tested = 0;
	unsigned long *pfns;
	struct region r;
	pid_t pid;
	char *p;

	for (i = 0; i < self->env.nr_sizes; i++) {
		if (!region_alloc(&self->env, &r, self->env.sizes[i], 0))
			continue;
		pfns = calloc(r.nr * r.size / psize(), sizeof(*pfns));
		ASSERT_NE(pfns, NULL);
		for (n = 0; n < r.nr * r.size / psize(); n++)
			pfns[n] = pagemap_get_pfn(self->env.pagemap_fd,
						  r.mem + n * psize());
		set_limit(r.size / psize());
		pid = fork();
		if (!pid) {
			pagemap = open("/proc/self/pagemap", O_RDONLY);
			for (n = 0; n < r.nr * r.size / psize(); n++) {
				p = r.mem + n * psize();
				if (*p != pattern(&r, p))
					_exit(1);
				if (pagemap_get_pfn(pagemap, p) == pfns[n])
					_exit(2);
				*p = 0;
			}
			_exit(0);
		}
		EXPECT_EQ(child_failed(pid, what), 0);
		expect_contents(_metadata, &r);
		restore_limit();
		region_free(&r);
		free(pfns);
		tested++;
	}
	if (!tested)
		SKIP(return, "no folios of any size");
}

/* A PMD counts for all of its pages: it can be split. */
TEST_F_TIMEOUT(map_limit_other, split_anon, TIMEOUT)
{
	struct folio_env *env = &self->env;
	int i, fds[2];
	struct region r;
	pid_t pid;

	if (env->sizes[env->nr_sizes - 1] != env->pmd_size ||
	    !region_alloc(env, &r, env->pmd_size, 0))
		SKIP(return, "no folios of PMD size");
	pid = fork_child(fds);
	ASSERT_GT(pid, 0);
	set_limit(r.size / psize());
	for (i = 0; i < r.nr; i++)
		ASSERT_EQ(mprotect(r.mem + i * r.size, psize(), PROT_READ), 0);
	expect_contents(_metadata, &r);
	for (i = 0; i < r.nr; i++)
		ASSERT_EQ(munmap(r.mem + i * r.size, r.size / 2), 0);
	restore_limit();
	ASSERT_TRUE(end_child(pid, fds));
	EXPECT_EQ(read_stats(r.size).partially_mapped,
		  r.full.partially_mapped + r.nr);
	region_free(&r);
	EXPECT_EQ(read_stats(r.size).partially_mapped, r.empty.partially_mapped);
}

/* What comes back from the swap cache while another process maps it */
TEST_F_TIMEOUT(map_limit_other, swap_in, TIMEOUT)
{
	static const char *const what[] = {
		"no SIGBUS, but the page is mapped", "wrong contents",
	};
	int i, n, status, tested = 0;
	struct region r;
	bool swapped;
	pid_t pid;

	for (i = 0; i < self->env.nr_sizes; i++) {
		if (!region_alloc(&self->env, &r, self->env.sizes[i], 2))
			continue;
		/* They are in the swap cache while they are written, and then. */
		ASSERT_EQ(madvise(r.mem, r.nr * r.size, MADV_PAGEOUT), 0);
		set_limit(r.size / psize());
		pid = fork();
		if (!pid) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			/* Until the parent has mapped them */
			raise(SIGSTOP);
			for (n = 0; n < r.nr; n++)
				if (!bus_error(r.mem + n * r.size, false))
					_exit(1);
			/* Until the parent has discarded them */
			raise(SIGSTOP);
			for (n = 0; n < r.nr; n++)
				if (r.mem[n * r.size] !=
				    pattern(&r, r.mem + n * r.size))
					_exit(2);
			_exit(0);
		}
		ASSERT_GT(pid, 0);
		ASSERT_EQ(waitpid(pid, &status, WUNTRACED), pid);
		swapped = pagemap_is_swapped(self->env.pagemap_fd, r.mem);
		expect_contents(_metadata, &r);
		if (!swapped || count_folios(&self->env, &r) != r.nr) {
			ksft_print_msg("%zukB: %s: not tested\n", r.size >> 10,
				       swapped ? "not in the swap cache" :
				       "not swapped out");
			kill(pid, SIGKILL);
			waitpid(pid, &status, 0);
			goto next;
		}
		ASSERT_EQ(kill(pid, SIGCONT), 0);
		ASSERT_EQ(waitpid(pid, &status, WUNTRACED), pid);
		ASSERT_TRUE(WIFSTOPPED(status)) {
			TH_LOG("%zukB: no SIGBUS", r.size >> 10);
		}
		ASSERT_EQ(madvise(r.mem, r.nr * r.size, MADV_DONTNEED), 0);
		ASSERT_EQ(kill(pid, SIGCONT), 0);
		EXPECT_EQ(child_failed(pid, what), 0) {
			TH_LOG("%zukB", r.size >> 10);
		}
		tested++;
next:
		restore_limit();
		region_free(&r);
	}
	if (!tested && __test_passed(_metadata))
		SKIP(return, "nothing came from the swap cache: no swap?");
}

/* More mappings than other pages that drivers insert have, vvar included */
#define DRIVER_MAPPINGS	4096

/* A driver's memory, which no fault brings back: the ring of an io_uring */
static void test_driver(struct __test_metadata *_metadata,
			struct folio_env *env, unsigned int entries, bool large)
{
	struct io_uring_params params = {};
	char *mem, *more;
	uint64_t flags;
	size_t len;
	int fd, i;

	fd = syscall(__NR_io_uring_setup, entries, &params);
	if (fd < 0)
		SKIP(return, "no io_uring");
	len = params.sq_entries * sizeof(struct io_uring_sqe);
	len = (len + psize() - 1) & ~(psize() - 1);
	mem = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
		   fd, IORING_OFF_SQES);
	ASSERT_NE(mem, MAP_FAILED);
	if (pageflags_get(pagemap_get_pfn(env->pagemap_fd, mem),
			  env->kpageflags_fd, &flags) ||
	    !(flags & KPF_COMPOUND_HEAD) == large)
		SKIP(return, "the ring is not in one %s folio",
		     large ? "large" : "small");

	for (i = 1; i < DRIVER_MAPPINGS / (len / psize()); i++) {
		more = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
			    IORING_OFF_SQES);
		ASSERT_NE(more, MAP_FAILED);
	}
	set_limit(i * (len / psize()));
	more = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
		    IORING_OFF_SQES);
	EXPECT_EQ(more, MAP_FAILED);
	EXPECT_EQ(errno, EOVERFLOW);
	EXPECT_EQ(fork_error(), ENOMEM);

	restore_limit();
	more = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
		    IORING_OFF_SQES);
	EXPECT_NE(more, MAP_FAILED);
	EXPECT_EQ(fork_error(), 0);
	close(fd);
}

TEST_F_TIMEOUT(map_limit_other, driver, TIMEOUT)
{
	test_driver(_metadata, &self->env, 4096, true);
}

TEST_F_TIMEOUT(map_limit_other, driver_small, TIMEOUT)
{
	test_driver(_metadata, &self->env, 1, false);
}

/* Pages of one send: less than loopback puts into one segment */
#define TCP_PAGES	8

/* A page of a pipe that is sent and mapped again and again */
struct tcp_page {
	int from, to;		/* the connection */
	int page[2];		/* the pipe with the page */
	int copies[2];		/* a pipe that refers to it often */
	char content[65536];	/* of one page, the largest that there is */
};

static bool tcp_connect(struct tcp_page *t)
{
	struct sockaddr_in addr = { .sin_family = AF_INET };
	socklen_t len = sizeof(addr);
	bool done = false;
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	t->from = socket(AF_INET, SOCK_STREAM, 0);
	if (fd >= 0 && t->from >= 0 &&
	    !bind(fd, (struct sockaddr *)&addr, sizeof(addr)) && !listen(fd, 1) &&
	    !getsockname(fd, (struct sockaddr *)&addr, &len) &&
	    !connect(t->from, (struct sockaddr *)&addr, sizeof(addr))) {
		t->to = accept(fd, NULL, NULL);
		done = t->to >= 0;
	}
	close(fd);
	return done;
}

static bool tcp_send(struct tcp_page *t, int pages)
{
	int i;

	for (i = 0; i < pages; i++)
		if (tee(t->page[0], t->copies[1], psize(), 0) != psize())
			return false;
	return splice(t->copies[0], NULL, t->from, NULL, pages * psize(), 0) ==
	       pages * psize();
}

/*
 * Receive @pages, mapped at @mem as far as the kernel maps them, the rest by
 * recv(). Returns how many were mapped, or -1 if that fails or finds other data.
 */
static int tcp_receive(struct tcp_page *t, char *mem, int pages)
{
	size_t received = 0, mapped = 0, len = pages * psize();
	char buf[sizeof(t->content)];

	while (received < len) {
		struct tcp_zerocopy_receive zc = {
			.address = (uintptr_t)mem + mapped,
			.length = len - received,
		};
		struct pollfd data = { .fd = t->to, .events = POLLIN };
		socklen_t zc_len = sizeof(zc);
		ssize_t n, i;

		if (poll(&data, 1, 10000) != 1)
			return -1;
		if (getsockopt(t->to, IPPROTO_TCP, TCP_ZEROCOPY_RECEIVE, &zc, &zc_len)) {
			ksft_print_msg("TCP_ZEROCOPY_RECEIVE: %s\n", strerror(errno));
			return -1;
		}
		for (i = 0; i < zc.length; i += psize())
			if (memcmp(mem + mapped + i, t->content, psize()))
				return -1;
		received += zc.length;
		mapped += zc.length;
		while (zc.recv_skip_hint) {
			n = zc.recv_skip_hint;
			if (n > psize() - received % psize())
				n = psize() - received % psize();
			n = recv(t->to, buf, n, 0);
			if (n <= 0 || memcmp(buf, t->content + received % psize(), n))
				return -1;
			received += n;
			zc.recv_skip_hint -= n;
		}
	}
	return mapped / psize();
}

/* What a receiver may not map any more, it can read. */
TEST_F_TIMEOUT(map_limit_other, tcp, TIMEOUT)
{
	struct tcp_page *t = calloc(1, sizeof(*t));
	int i, n, mapped = 0;
	char *mem;

	ASSERT_NE(t, NULL);
	for (i = 0; i < psize(); i++)
		t->content[i] = i % 251;
	ASSERT_EQ(pipe(t->page), 0);
	ASSERT_EQ(pipe(t->copies), 0);
	ASSERT_EQ(write(t->page[1], t->content, psize()), psize());
	if (!tcp_connect(t))
		SKIP(return, "no connection by loopback");
	mem = mmap(NULL, (DRIVER_MAPPINGS + 2 * TCP_PAGES) * psize(), PROT_READ,
		   MAP_SHARED, t->to, 0);
	if (mem == MAP_FAILED)
		SKIP(return, "no mapping of a socket");

	while (mapped < DRIVER_MAPPINGS) {
		ASSERT_TRUE(tcp_send(t, TCP_PAGES));
		n = tcp_receive(t, mem + mapped * psize(), TCP_PAGES);
		ASSERT_GE(n, 0);
		if (!n)
			break;
		mapped += n;
	}
	if (mapped < DRIVER_MAPPINGS)
		SKIP(return, "TCP does not map pages of this size");

	set_limit(mapped);
	ASSERT_TRUE(tcp_send(t, TCP_PAGES));
	EXPECT_EQ(tcp_receive(t, mem + mapped * psize(), TCP_PAGES), 0);

	/* Where two can be mapped, two are. */
	ASSERT_EQ(munmap(mem, 2 * psize()), 0);
	ASSERT_TRUE(tcp_send(t, TCP_PAGES));
	EXPECT_EQ(tcp_receive(t, mem + mapped * psize(), TCP_PAGES), 2);

	restore_limit();
	close(t->from);
	close(t->to);
	free(t);
}

TEST_HARNESS_MAIN
