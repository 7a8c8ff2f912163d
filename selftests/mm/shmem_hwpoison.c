// SPDX-License-Identifier: GPL-2.0
/*
 * Memory of a large folio of shmem fails while the folio is pinned, so that it cannot
 * be split: what has failed stays in the file, and must not be mapped again.
 */

#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <unistd.h>
#include "hugepage_settings.h"
#include "vm_util.h"

#define NR_PAGES	16
#define FAILED		7

FIXTURE(shmem_hwpoison)
{
	unsigned long len;
	unsigned long pfn;	/* of the failed page, or 0 */
	int pagemap_fd;
	int pipefd[2];
	int fd;
	char *reserved;
	char *mem;
};

/* Returns 0 or an error. */
static int hwpoison_write(const char *name, unsigned long pfn)
{
	char path[64], number[32];
	int fd, len, err = 0;

	snprintf(path, sizeof(path), "/sys/kernel/debug/hwpoison/%s", name);
	len = snprintf(number, sizeof(number), "%lu", pfn);
	fd = open(path, O_WRONLY);
	if (fd < 0)
		return -errno;
	if (write(fd, number, len) != len)
		err = -errno;
	close(fd);
	return err;
}

FIXTURE_SETUP(shmem_hwpoison)
{
	struct thp_settings settings;
	int order = sz2ord(NR_PAGES * psize(), psize());

	self->pfn = 0;
	self->reserved = MAP_FAILED;
	self->len = NR_PAGES * psize();
	if (access("/sys/kernel/debug/hwpoison/corrupt-pfn", W_OK))
		SKIP(return, "no hwpoison-inject");
	if (!(thp_shmem_supported_orders() & 1ul << order))
		SKIP(return, "no large folios of shmem");
	thp_save_settings();
	thp_read_settings(&settings);
	settings.shmem_hugepages[order].enabled = SHMEM_ALWAYS;
	thp_push_settings(&settings);

	self->pagemap_fd = open("/proc/self/pagemap", O_RDONLY);
	ASSERT_GE(self->pagemap_fd, 0);
	ASSERT_EQ(pipe(self->pipefd), 0);
	self->fd = memfd_create("shmem_hwpoison", 0);
	ASSERT_GE(self->fd, 0);
	ASSERT_EQ(ftruncate(self->fd, self->len), 0);
	self->reserved = mmap(NULL, 2 * self->len, PROT_NONE,
			      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(self->reserved, MAP_FAILED);
	self->mem = (char *)(((uintptr_t)self->reserved + self->len - 1) &
			     -self->len);
	ASSERT_EQ(mmap(self->mem, self->len, PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_FIXED, self->fd, 0), self->mem);
	memset(self->mem, 1, self->len);
}

FIXTURE_TEARDOWN(shmem_hwpoison)
{
	if (self->reserved == MAP_FAILED)
		return;
	munmap(self->reserved, 2 * self->len);
	close(self->fd);
	close(self->pipefd[0]);
	close(self->pipefd[1]);
	close(self->pagemap_fd);
	if (self->pfn)
		hwpoison_write("unpoison-pfn", self->pfn);
	thp_restore_settings();
}

static sigjmp_buf bus_env;

static void on_bus(int sig)
{
	siglongjmp(bus_env, 1);
}

static bool raises_bus(char *addr)
{
	bool raised = true;

	signal(SIGBUS, on_bus);
	if (!sigsetjmp(bus_env, 1)) {
		FORCE_READ(*addr);
		raised = false;
	}
	signal(SIGBUS, SIG_DFL);
	return raised;
}

static bool is_mapped(FIXTURE_DATA(shmem_hwpoison) * self, int page)
{
	return pagemap_is_populated(self->pagemap_fd, self->mem + page * psize());
}

TEST_F(shmem_hwpoison, neighbours)
{
	struct iovec iov = { .iov_base = self->mem, .iov_len = 1 };

	/* Without a failure, one write maps all of it. */
	ASSERT_EQ(madvise(self->mem, self->len, MADV_DONTNEED), 0);
	self->mem[0] = 2;
	if (!is_mapped(self, FAILED))
		SKIP(return, "no large folio");
	ASSERT_EQ(vmsplice(self->pipefd[1], &iov, 1, 0), 1);
	self->pfn = pagemap_get_pfn(self->pagemap_fd, self->mem + FAILED * psize());
	prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_LATE, 0, 0);
	/* It was not possible to split the folio, and to take out the page. */
	ASSERT_EQ(hwpoison_write("corrupt-pfn", self->pfn), -EHWPOISON);

	ASSERT_EQ(madvise(self->mem, self->len, MADV_DONTNEED), 0);
	self->mem[0] = 3;
	EXPECT_EQ(self->mem[(FAILED + 1) * psize()], 1);
	EXPECT_FALSE(is_mapped(self, FAILED));
	EXPECT_TRUE(raises_bus(self->mem + FAILED * psize()));
}

TEST_HARNESS_MAIN
