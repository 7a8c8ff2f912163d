// SPDX-License-Identifier: GPL-2.0
/*
 * Test MADV_DONTNEED of whole page tables of a shared file mapping while the
 * file is truncated or a hole is punched into it: when the kernel removes a page
 * from the file, it must not be mapped any more.
 */

#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "vm_util.h"

#define ROUNDS		200
#define NR_PAGES	64	/* that are written in each round */
#define MAX_DELAY	8	/* milliseconds */
#define MAX_SECONDS	10
#define TAINT_BAD_PAGE	5

FIXTURE(shmem_zap_race)
{
	unsigned long len;	/* of what one page table maps */
	char *reserved;
	char *mem;
	int fd;
};

FIXTURE_VARIANT(shmem_zap_race)
{
	bool truncate;
};

FIXTURE_VARIANT_ADD(shmem_zap_race, punch_hole) { .truncate = false };
FIXTURE_VARIANT_ADD(shmem_zap_race, truncate) { .truncate = true };

FIXTURE_SETUP(shmem_zap_race)
{
	self->len = psize() * (psize() / sizeof(uint64_t));
	self->fd = memfd_create("shmem_zap_race", 0);
	ASSERT_GE(self->fd, 0);
	ASSERT_EQ(ftruncate(self->fd, self->len), 0);

	self->reserved = mmap(NULL, 2 * self->len, PROT_NONE, MAP_PRIVATE |
			      MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	ASSERT_NE(self->reserved, MAP_FAILED);
	self->mem = (char *)(((unsigned long)self->reserved + self->len - 1) &
			     ~(self->len - 1));
	ASSERT_EQ(mmap(self->mem, self->len, PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_FIXED, self->fd, 0), self->mem);
	/* No huge pages: they are mapped without a page table. */
	madvise(self->mem, self->len, MADV_NOHUGEPAGE);
}

FIXTURE_TEARDOWN(shmem_zap_race)
{
	munmap(self->reserved, 2 * self->len);
	close(self->fd);
}

struct removal {
	pthread_barrier_t barrier;
	unsigned long len;
	bool truncate;
	int delay;
	int fd;
	int err;
};

static void *remove_pages(void *arg)
{
	struct removal *r = arg;

	pthread_barrier_wait(&r->barrier);
	usleep(r->delay);
	if (r->truncate)
		r->err = ftruncate(r->fd, 0);
	else
		r->err = fallocate(r->fd, FALLOC_FL_PUNCH_HOLE |
				   FALLOC_FL_KEEP_SIZE, 0, r->len);
	return NULL;
}

static bool bad_page_seen(void)
{
	return read_num("/proc/sys/kernel/tainted") >> TAINT_BAD_PAGE & 1;
}

TEST_F_TIMEOUT(shmem_zap_race, dontneed, 600)
{
	const bool tainted = bad_page_seen();
	const time_t end = time(NULL) + MAX_SECONDS;
	struct removal r = {
		.len = self->len,
		.truncate = variant->truncate,
		.fd = self->fd,
	};
	pthread_t thread;
	char page[8];
	int i, round;

	ASSERT_EQ(pthread_barrier_init(&r.barrier, NULL, 2), 0);
	for (round = 1; round <= ROUNDS && time(NULL) < end; round++) {
		for (i = 0; i < NR_PAGES; i++)
			self->mem[i * psize()] = round;

		/* In two of three rounds at once, in others some time later */
		r.delay = round % 3 ? 0 : 1000 * (round / 3 % MAX_DELAY);
		ASSERT_EQ(pthread_create(&thread, NULL, remove_pages, &r), 0);
		pthread_barrier_wait(&r.barrier);
		ASSERT_EQ(madvise(self->mem, self->len, MADV_DONTNEED), 0);
		ASSERT_EQ(pthread_join(thread, NULL), 0);
		ASSERT_EQ(r.err, 0);

		if (variant->truncate)
			ASSERT_EQ(ftruncate(self->fd, self->len), 0);
		for (i = 0; i < NR_PAGES; i++) {
			ASSERT_EQ(pread(self->fd, page, sizeof(page),
					i * psize()), sizeof(page));
			ASSERT_EQ(page[0], 0) {
				TH_LOG("page %d is still in the file", i);
			}
		}
	}
	EXPECT_EQ(bad_page_seen(), tainted) {
		TH_LOG("a page was removed from the file while it was mapped");
	}
	pthread_barrier_destroy(&r.barrier);
}

TEST_HARNESS_MAIN
