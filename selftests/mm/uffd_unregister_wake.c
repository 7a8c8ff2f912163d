// SPDX-License-Identifier: GPL-2.0
/*
 * A thread waits for a page fault to be resolved by userfaultfd, and the memory is
 * unregistered. Check that the thread goes on, whatever it has waited for.
 */

#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "kselftest_harness.h"
#include "vm_util.h"

#define NR_PAGES	4

FIXTURE(unregister_wake)
{
	size_t len;
	char *mem;
	int uffd;
	int fd;		/* of the file that is mapped, or -1 */
};

FIXTURE_VARIANT(unregister_wake)
{
	__u64 feature;
	bool shared;
	bool missing, wp, minor;
};

FIXTURE_VARIANT_ADD(unregister_wake, missing)
{
	.missing = true,
};

FIXTURE_VARIANT_ADD(unregister_wake, write_protected)
{
	.feature = UFFD_FEATURE_PAGEFAULT_FLAG_WP,
	.wp = true,
};

FIXTURE_VARIANT_ADD(unregister_wake, minor)
{
	.feature = UFFD_FEATURE_MINOR_SHMEM,
	.shared = true,
	.minor = true,
};

FIXTURE_SETUP(unregister_wake)
{
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = variant->feature,
	};

	self->fd = -1;
	self->len = NR_PAGES * psize();
	self->uffd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (self->uffd < 0 || ioctl(self->uffd, UFFDIO_API, &api))
		SKIP(return, "no userfaultfd of this kind");
	if (variant->shared) {
		self->fd = memfd_create("uffd_unregister_wake", MFD_CLOEXEC);
		ASSERT_GE(self->fd, 0);
		ASSERT_EQ(ftruncate(self->fd, self->len), 0);
	}
	self->mem = mmap(NULL, self->len, PROT_READ | PROT_WRITE,
			 variant->shared ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS,
			 self->fd, 0);
	ASSERT_NE(self->mem, MAP_FAILED);
	if (!variant->missing)
		memset(self->mem, 1, self->len);
	/* The pages stay in the file. */
	if (variant->minor)
		ASSERT_EQ(madvise(self->mem, self->len, MADV_DONTNEED), 0);
	ASSERT_EQ(uffd_register(self->uffd, self->mem, self->len, variant->missing,
				variant->wp, variant->minor), 0);
	if (variant->wp) {
		struct uffdio_writeprotect wp = {
			.range = { (uintptr_t)self->mem, self->len },
			.mode = UFFDIO_WRITEPROTECT_MODE_WP,
		};

		ASSERT_EQ(ioctl(self->uffd, UFFDIO_WRITEPROTECT, &wp), 0);
	}
}

FIXTURE_TEARDOWN(unregister_wake)
{
	if (self->uffd >= 0)
		close(self->uffd);
	if (self->fd >= 0)
		close(self->fd);
}

static void *write_to(void *mem)
{
	__atomic_store_n((char *)mem, 2, __ATOMIC_RELAXED);
	return NULL;
}

TEST_F(unregister_wake, unregister)
{
	char *page = self->mem + psize();
	struct timespec end;
	struct uffd_msg msg;
	pthread_t thread;
	int error;

	ASSERT_EQ(pthread_create(&thread, NULL, write_to, page), 0);
	ASSERT_EQ(poll(&(struct pollfd) { self->uffd, POLLIN }, 1, 10000), 1);
	ASSERT_EQ(read(self->uffd, &msg, sizeof(msg)), (ssize_t)sizeof(msg));
	ASSERT_EQ(msg.event, UFFD_EVENT_PAGEFAULT);

	ASSERT_EQ(uffd_unregister(self->uffd, self->mem, self->len), 0);
	clock_gettime(CLOCK_REALTIME, &end);
	end.tv_sec += 5;
	error = pthread_timedjoin_np(thread, NULL, &end);
	EXPECT_EQ(error, 0) {
		TH_LOG("a thread waits for memory that is not registered any more");
		/* Wakes all */
		close(self->uffd);
		self->uffd = -1;
		pthread_join(thread, NULL);
	}
	EXPECT_EQ(*page, 2);
	EXPECT_EQ(self->mem[0], variant->missing ? 0 : 1);
}

TEST_HARNESS_MAIN
