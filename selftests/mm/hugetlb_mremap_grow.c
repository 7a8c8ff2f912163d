// SPDX-License-Identifier: GPL-2.0
/*
 * Test hugetlb mappings that mremap() makes larger, duplicates or leaves empty.
 *
 * All of it runs with every huge page size that is smaller than what a PUD
 * maps and of which enough pages can be had.
 */

#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include "hugetlb_mremap.h"

/* How a mapping grows, and which pages of the file it maps before and after. */
#define FIRST_PGOFF	1
#define NR_OLD		2
#define NR_NEW		6

FIXTURE(grow)
{
	unsigned long sizes[MAX_SIZES];
	int nr_sizes;
	int fd;
	char *p;
	char *dst;
	char *dst_arena;
	const char *file;
	char mountpoint[64];
	struct test_cgroup cgroup;
};

FIXTURE_VARIANT(grow)
{
	int flags;
};

FIXTURE_VARIANT_ADD(grow, in_place)
{
};

FIXTURE_VARIANT_ADD(grow, may_move)
{
	.flags = MREMAP_MAYMOVE,
};

FIXTURE_VARIANT_ADD(grow, fixed)
{
	.flags = MREMAP_MAYMOVE | MREMAP_FIXED,
};

/* Pages that somebody else has. */
struct taken {
	char *p;
	unsigned long len;
	int fd;
};

/* Take all pages but @left; false where the pool would get more to replace them. */
static bool take_pages(struct taken *taken, unsigned long size, long left)
{
	long nr = available_pages(size) - left;

	taken->len = nr * size;
	taken->fd = hugetlb_memfd(size);
	taken->p = MAP_FAILED;
	if (nr > 0 && !pool_number(size, "nr_overcommit_hugepages"))
		taken->p = mmap(NULL, taken->len, PROT_READ | PROT_WRITE,
				MAP_SHARED, taken->fd, 0);
	if (taken->p != MAP_FAILED)
		return true;
	ksft_print_msg("Not tested: not enough %lu kB pages, as all cannot be taken\n",
		       size >> 10);
	close(taken->fd);
	return false;
}

static void give_back(struct taken *taken)
{
	munmap(taken->p, taken->len);
	close(taken->fd);
}

static bool set_up(FIXTURE_DATA(grow) * self)
{
	self->fd = -1;
	self->nr_sizes = usable_sizes(self->sizes, NR_NEW + 2, 512UL << 20);
	return self->nr_sizes;
}

FIXTURE_SETUP(grow)
{
	if (!set_up(self))
		SKIP(return, "Less than %d huge pages available of every size",
		     NR_NEW + 2);
}

static void clean_up(FIXTURE_DATA(grow) * self)
{
	end_injection();
	if (self->cgroup.path[0])
		cgroup_write(self->cgroup.root, "cgroup.procs", "0");
	remove_cgroup(&self->cgroup);
	if (self->mountpoint[0]) {
		umount2(self->mountpoint, MNT_DETACH);
		rmdir(self->mountpoint);
	}
}

FIXTURE_TEARDOWN(grow)
{
	clean_up(self);
}

/* All that a mapping that does not grow must leave as it is. */
struct grow_state {
	long total, free, rsvd, surplus;
	long long file_size;
	long vm_kb;
};

static long vm_size_kb(void)
{
	char buf[64];

	return read_file("/proc/self/statm", buf, sizeof(buf)) ?
		atol(buf) * (long)(psize() >> 10) : -1;
}

static struct grow_state grow_state(int fd, unsigned long size)
{
	struct grow_state state = {
		.total = pool_number(size, "nr_hugepages"),
		.free = pool_number(size, "free_hugepages"),
		.rsvd = pool_number(size, "resv_hugepages"),
		.surplus = pool_number(size, "surplus_hugepages"),
		.vm_kb = vm_size_kb(),
	};
	struct stat st;

	if (fd >= 0 && !fstat(fd, &st))
		state.file_size = st.st_size;
	return state;
}

static void expect_state(struct __test_metadata *_metadata,
			 const struct grow_state *before, int fd,
			 unsigned long size, const char *when)
{
	struct grow_state now = grow_state(fd, size);

	EXPECT_EQ(now.total, before->total);
	EXPECT_EQ(now.surplus, before->surplus);
	EXPECT_EQ(now.free, before->free) {
		TH_LOG("%lu kB pages: %ld free pages more %s", size >> 10,
		       now.free - before->free, when);
	}
	EXPECT_EQ(now.rsvd, before->rsvd) {
		TH_LOG("%lu kB pages: %ld reserved pages more %s", size >> 10,
		       now.rsvd - before->rsvd, when);
	}
	EXPECT_EQ(now.file_size, before->file_size) {
		TH_LOG("%lu kB pages: the file has %lld bytes more %s",
		       size >> 10, now.file_size - before->file_size, when);
	}
	EXPECT_EQ(now.vm_kb, before->vm_kb) {
		TH_LOG("%lu kB pages: %ld kB more are mapped %s", size >> 10,
		       now.vm_kb - before->vm_kb, when);
	}
}

/*
 * Map @nr pages of a new file, or of anonymous memory if @map_flags say so, and
 * touch them unless the mapping is read-only. Something comes after it, unless
 * it is to grow in place: then there is exactly enough room, and many small VMAs
 * after that, so that the tree of VMAs has something to do.
 */
static void grow_map(struct __test_metadata *_metadata,
		     FIXTURE_DATA(grow) * self, unsigned long size, int nr,
		     int prot, int map_flags, bool in_place)
{
	const unsigned long len = 32 * size;
	char *arena = mmap(NULL, len + size, PROT_NONE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	int i;

	ASSERT_NE(arena, MAP_FAILED);
	arena = (char *)(((unsigned long)arena + size - 1) & -size);
	self->p = arena;
	self->dst = arena + 16 * size;
	/* Where there are no page tables yet, if there is so much room. */
	self->dst_arena = mmap(NULL, 2 * pud_span(), PROT_NONE,
			       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
			       0);
	if (self->dst_arena != MAP_FAILED)
		self->dst = (char *)(((unsigned long)self->dst_arena +
				      pud_span() - 1) & -pud_span());
	if (in_place) {
		ASSERT_EQ(munmap(arena, NR_NEW * size), 0);
		for (i = 0; i < 200; i++)
			ASSERT_EQ(mprotect(arena + NR_NEW * size +
					   2 * i * psize(), psize(), PROT_READ),
				  0);
	}

	if (map_flags & MAP_ANONYMOUS) {
		self->fd = -1;
		map_flags |= MAP_HUGETLB |
			     __builtin_ctzl(size) << MAP_HUGE_SHIFT;
	} else {
		self->fd = self->file ? open(self->file, O_RDWR | O_CREAT, 0600) :
					hugetlb_memfd(size);
		ASSERT_GE(self->fd, 0);
	}
	ASSERT_EQ(mmap(arena, nr * size, prot, map_flags | MAP_FIXED, self->fd,
		       self->fd < 0 ? 0 : FIRST_PGOFF * size), arena);
	for (i = 0; prot & PROT_WRITE && i < nr; i++)
		*word(arena, size, i) = i + 1;
}

static void grow_unmap(FIXTURE_DATA(grow) * self, unsigned long size)
{
	munmap(self->p, 32 * size);
	if (self->dst_arena != MAP_FAILED)
		munmap(self->dst_arena, 2 * pud_span());
	if (self->fd >= 0)
		close(self->fd);
}

static char *new_addr(FIXTURE_DATA(grow) * self, int flags)
{
	return flags & MREMAP_FIXED ? self->dst : NO_NEW_ADDR;
}

static char *grow_to(FIXTURE_DATA(grow) * self, unsigned long size,
		     unsigned long from, unsigned long to, int flags)
{
	return sys_mremap(self->p, from * size, to * size, flags,
			  new_addr(self, flags));
}

/* Where it should have gone; elsewhere is anywhere. */
static void expect_place(struct __test_metadata *_metadata,
			 FIXTURE_DATA(grow) * self, unsigned long size,
			 int flags, char *p)
{
	ASSERT_NE(p, MAP_FAILED) {
		TH_LOG("mremap() of %lu kB pages to grow: %s", size >> 10,
		       strerror(errno));
	}
	EXPECT_EQ(p == self->p, !flags);
	EXPECT_TRUE(!(flags & MREMAP_FIXED) || p == self->dst);
	if (p != self->p)
		EXPECT_TRUE(is_unmapped(self->p, NR_OLD * size));
}

/* What others see of the file is what was written to a shared mapping. */
static void expect_in_file(struct __test_metadata *_metadata,
			   FIXTURE_DATA(grow) * self, unsigned long size)
{
	char *again = mmap(NULL, NR_NEW * size, PROT_READ, MAP_SHARED, self->fd,
			   FIRST_PGOFF * size);
	int i;

	ASSERT_NE(again, MAP_FAILED);
	for (i = 0; i < NR_NEW; i++)
		EXPECT_EQ(*word(again, size, i), i + 1);
	munmap(again, NR_NEW * size);
}

/* It grows, and so does the file; all of it is reserved, and none after that. */
static void grow_test(struct __test_metadata *_metadata,
		      FIXTURE_DATA(grow) * self, unsigned long size, int flags,
		      int map_flags)
{
	const bool shared = map_flags & MAP_SHARED;
	struct grow_state before, mapped, now;
	char *p;
	int i;

	before = grow_state(-1, size);
	grow_map(_metadata, self, size, NR_OLD, PROT_READ | PROT_WRITE,
		 map_flags, !flags);
	mapped = grow_state(self->fd, size);

	p = grow_to(self, size, NR_OLD, NR_NEW, flags);
	expect_place(_metadata, self, size, flags, p);
	now = grow_state(self->fd, size);
	EXPECT_EQ(now.rsvd, mapped.rsvd + NR_NEW - NR_OLD);
	if (self->fd >= 0)
		EXPECT_EQ(now.file_size, (FIRST_PGOFF + NR_NEW) * size);

	for (i = 0; i < NR_OLD; i++)
		EXPECT_EQ(*word(p, size, i), i + 1);
	for (i = NR_OLD; i < NR_NEW; i++) {
		EXPECT_EQ(*word(p, size, i), 0);
		*word(p, size, i) = i + 1;
	}
	now = grow_state(self->fd, size);
	EXPECT_EQ(now.rsvd, mapped.rsvd);
	EXPECT_EQ(now.free, mapped.free - (NR_NEW - NR_OLD));
	if (shared)
		expect_in_file(_metadata, self, size);

	/* It can shrink, and grow again; what it lost is in the file, if at all. */
	EXPECT_EQ(sys_mremap(p, NR_NEW * size, size, 0, NO_NEW_ADDR), p);
	EXPECT_TRUE(is_unmapped(p + size, (NR_NEW - 1) * size));
	p = sys_mremap(p, size, NR_NEW * size, MREMAP_MAYMOVE, NO_NEW_ADDR);
	ASSERT_NE(p, MAP_FAILED);
	now = grow_state(self->fd, size);
	EXPECT_EQ(now.rsvd, mapped.rsvd + (shared ? 0 : NR_NEW - 1)) {
		TH_LOG("%lu kB pages: %ld are reserved when it has grown again",
		       size >> 10, now.rsvd - mapped.rsvd);
	}
	for (i = 0; i < NR_NEW; i++) {
		EXPECT_EQ(*word(p, size, i), shared || !i ? i + 1 : 0);
		*word(p, size, i) = i + 1;
	}
	EXPECT_EQ(grow_state(self->fd, size).rsvd, mapped.rsvd);

	munmap(p, NR_NEW * size);
	grow_unmap(self, size);
	before.vm_kb = vm_size_kb();
	expect_state(_metadata, &before, -1, size, "at last");
}

TEST_F(grow, shared)
{
	int n;

	for (n = 0; n < self->nr_sizes; n++)
		grow_test(_metadata, self, self->sizes[n], variant->flags,
			  MAP_SHARED);
}

TEST_F(grow, private)
{
	int n;

	for (n = 0; n < self->nr_sizes; n++)
		grow_test(_metadata, self, self->sizes[n], variant->flags,
			  MAP_PRIVATE | MAP_ANONYMOUS);
}

TEST_F(grow, private_file)
{
	int n;

	for (n = 0; n < self->nr_sizes; n++)
		grow_test(_metadata, self, self->sizes[n], variant->flags,
			  MAP_PRIVATE);
}

/* Memory without a file of its own, which was mapped without reserve. */
static void noreserve_test(struct __test_metadata *_metadata,
			   FIXTURE_DATA(grow) * self, int flags, int map_flags)
{
	int i, n;

	for (n = 0; n < self->nr_sizes; n++) {
		const unsigned long size = self->sizes[n];
		struct grow_state mapped;
		char *p;

		grow_map(_metadata, self, size, NR_OLD, PROT_READ | PROT_WRITE,
			 map_flags | MAP_ANONYMOUS | MAP_NORESERVE, !flags);
		mapped = grow_state(-1, size);
		p = grow_to(self, size, NR_OLD, NR_NEW, flags);
		expect_place(_metadata, self, size, flags, p);
		EXPECT_EQ(grow_state(-1, size).rsvd, mapped.rsvd);
		for (i = 0; i < NR_OLD; i++)
			EXPECT_EQ(*word(p, size, i), i + 1);
		for (i = NR_OLD; i < NR_NEW; i++)
			*word(p, size, i) = i + 1;
		munmap(p, NR_NEW * size);
		grow_unmap(self, size);
	}
}

TEST_F(grow, shared_anonymous_noreserve)
{
	noreserve_test(_metadata, self, variant->flags, MAP_SHARED);
}

TEST_F(grow, private_noreserve)
{
	noreserve_test(_metadata, self, variant->flags, MAP_PRIVATE);
}

static bool is_readable(unsigned long *p)
{
	signal(SIGBUS, sigbus_handler);
	if (sigsetjmp(sigbus_env, 1)) {
		signal(SIGBUS, SIG_DFL);
		return false;
	}
	FORCE_READ(*p);
	signal(SIGBUS, SIG_DFL);
	return true;
}

/* As with mmap(): one that cannot be written does not extend the file. */
TEST_F(grow, read_only)
{
	int n;

	for (n = 0; n < self->nr_sizes; n++) {
		const unsigned long size = self->sizes[n];
		struct stat st;
		char *p;

		grow_map(_metadata, self, size, NR_OLD, PROT_READ, MAP_SHARED,
			 !variant->flags);
		ASSERT_EQ(ftruncate(self->fd, (FIRST_PGOFF + 3) * size), 0);
		p = grow_to(self, size, NR_OLD, NR_NEW, variant->flags);
		expect_place(_metadata, self, size, variant->flags, p);
		ASSERT_EQ(fstat(self->fd, &st), 0);
		EXPECT_EQ(st.st_size, (FIRST_PGOFF + 3) * size);
		EXPECT_EQ(*word(p, size, 2), 0);
		EXPECT_FALSE(is_readable(word(p, size, 3)));
		munmap(p, NR_NEW * size);
		grow_unmap(self, size);
	}
}

/* But anonymous memory has no other length than what is mapped of it. */
static void read_only_anonymous_test(struct __test_metadata *_metadata,
				     FIXTURE_DATA(grow) * self, int flags,
				     int map_flags)
{
	int n;

	for (n = 0; n < self->nr_sizes; n++) {
		const unsigned long size = self->sizes[n];
		char *p;

		grow_map(_metadata, self, size, NR_OLD, PROT_READ,
			 map_flags | MAP_ANONYMOUS, !flags);
		p = grow_to(self, size, NR_OLD, NR_NEW, flags);
		expect_place(_metadata, self, size, flags, p);
		EXPECT_TRUE(is_readable(word(p, size, NR_NEW - 1)));
		ASSERT_EQ(mprotect(p, NR_NEW * size, PROT_READ | PROT_WRITE),
			  0);
		*word(p, size, NR_NEW - 2) = 1;
		munmap(p, NR_NEW * size);
		grow_unmap(self, size);
	}
}

TEST_F(grow, shared_anonymous_read_only)
{
	read_only_anonymous_test(_metadata, self, variant->flags, MAP_SHARED);
}

TEST_F(grow, private_read_only)
{
	read_only_anonymous_test(_metadata, self, variant->flags, MAP_PRIVATE);
}

/* What was truncated is accessible again, and reserved like the rest. */
TEST_F(grow, truncated)
{
	int i, n;

	for (n = 0; n < self->nr_sizes; n++) {
		const unsigned long size = self->sizes[n];
		long rsvd = pool_number(size, "resv_hugepages");
		char *p;

		grow_map(_metadata, self, size, NR_OLD, PROT_READ | PROT_WRITE,
			 MAP_SHARED, !variant->flags);
		ASSERT_EQ(ftruncate(self->fd, 0), 0);
		EXPECT_EQ(pool_number(size, "resv_hugepages"), rsvd);
		p = grow_to(self, size, NR_OLD, NR_NEW, variant->flags);
		expect_place(_metadata, self, size, variant->flags, p);
		EXPECT_EQ(pool_number(size, "resv_hugepages"), rsvd + NR_NEW);
		for (i = 0; i < NR_NEW; i++)
			EXPECT_EQ(*word(p, size, i), 0);
		EXPECT_EQ(pool_number(size, "resv_hugepages"), rsvd);
		munmap(p, NR_NEW * size);
		grow_unmap(self, size);
	}
}

/*
 * The page in which the file ends is not accessible, and has no reservation. This
 * is a size that only fallocate() gives to a file.
 */
TEST_F(grow, file_ends_within_page)
{
	int i, n;

	for (n = 0; n < self->nr_sizes; n++) {
		const unsigned long size = self->sizes[n];
		long rsvd = pool_number(size, "resv_hugepages");
		char *p;

		grow_map(_metadata, self, size, NR_OLD, PROT_READ | PROT_WRITE,
			 MAP_SHARED, !variant->flags);
		ASSERT_EQ(ftruncate(self->fd, (FIRST_PGOFF + 1) * size), 0);
		ASSERT_EQ(fallocate(self->fd, 0, (FIRST_PGOFF + 1) * size,
				    size / 2), 0);
		ASSERT_EQ(fallocate(self->fd, FALLOC_FL_PUNCH_HOLE |
				    FALLOC_FL_KEEP_SIZE,
				    (FIRST_PGOFF + 1) * size, size), 0);
		EXPECT_EQ(pool_number(size, "resv_hugepages"), rsvd);
		EXPECT_FALSE(is_readable(word(self->p, size, 1)));

		p = grow_to(self, size, NR_OLD, NR_NEW, variant->flags);
		expect_place(_metadata, self, size, variant->flags, p);
		EXPECT_EQ(pool_number(size, "resv_hugepages"),
			  rsvd + NR_NEW - 1) {
			TH_LOG("%lu kB pages: %ld pages reserved of %d that are accessible",
			       size >> 10,
			       pool_number(size, "resv_hugepages") - rsvd,
			       NR_NEW - 1);
		}
		EXPECT_EQ(*word(p, size, 0), 1);
		for (i = 1; i < NR_NEW; i++)
			EXPECT_EQ(*word(p, size, i), 0);
		EXPECT_EQ(pool_number(size, "resv_hugepages"), rsvd);
		munmap(p, NR_NEW * size);
		grow_unmap(self, size);
	}
}

/* A part of the mapping grows: it leaves the rest behind, unless it is the end. */
TEST_F(grow, part)
{
	int i, n;

	for (n = 0; n < self->nr_sizes; n++) {
		const unsigned long size = self->sizes[n];
		const bool in_place = !variant->flags;
		unsigned long from = in_place ? 2 : 1;
		char *p;

		grow_map(_metadata, self, size, 3, PROT_READ | PROT_WRITE,
			 MAP_SHARED, in_place);
		p = sys_mremap(self->p + from * size, size, 4 * size,
			       variant->flags, self->dst);
		ASSERT_NE(p, MAP_FAILED);
		EXPECT_EQ(*word(p, size, 0), from + 1);
		for (i = 0; i < 3; i++)
			if (i != from)
				EXPECT_EQ(*word(self->p, size, i), i + 1);
		/* The next pages of the file, whoever maps them. */
		EXPECT_EQ(*word(p, size, 1), in_place ? 0 : 3);
		*word(p, size, 3) = 1;
		EXPECT_EQ(in_place, p == self->p + from * size);
		munmap(p, 4 * size);
		grow_unmap(self, size);
	}
}

/*
 * What follows in the same page table, and is not part of the mapping, stays
 * where it is if the move is undone; also if nothing of the mapping is there.
 */
TEST(undone_growth_leaves_neighbour)
{
	const unsigned long span = pud_span();
	unsigned long sizes[MAX_SIZES];
	int n, nr_sizes = usable_sizes(sizes, 1, 512UL << 20), tested = 0;

	if (!nr_sizes)
		SKIP(return, "No huge page available of any size");
	for (n = 0; n < nr_sizes; n++) {
		const unsigned long size = sizes[n];
		const unsigned long len = (available_pages(size) + 2) * size;
		const unsigned long arena_len = (len / span + 4) * span;
		char *arena, *src, *dst, *next;
		int fd;

		if (pool_number(size, "nr_overcommit_hugepages")) {
			ksft_print_msg("Not tested: %lu kB pages, of which there may be more\n",
				       size >> 10);
			continue;
		}
		fd = hugetlb_memfd(size);
		ASSERT_GE(fd, 0);
		arena = mmap(NULL, arena_len, PROT_NONE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
			     0);
		if (arena == MAP_FAILED) {
			close(fd);
			continue;
		}
		src = (char *)(((unsigned long)arena + span - 1) & -span);
		dst = src + span;
		next = dst + len;
		ASSERT_EQ(mmap(src, size, PROT_READ | PROT_WRITE,
			       MAP_SHARED | MAP_FIXED, fd, 0), src);
		map_memory(_metadata, next, psize(), 0);
		*next = 1;

		EXPECT_EQ(sys_mremap(src, size, len, MREMAP_MAYMOVE |
				     MREMAP_FIXED, dst), MAP_FAILED);
		EXPECT_EQ(errno, ENOMEM);
		EXPECT_EQ(*next, 1) {
			TH_LOG("%lu kB pages: an undone mremap() took away its neighbour",
			       size >> 10);
		}
		EXPECT_EQ(*src, 0);
		munmap(arena, arena_len);
		close(fd);
		tested++;
	}
	if (!tested && __test_passed(_metadata))
		SKIP(return, "Not enough address space, or there may be more pages");
}

static void expect_refused(struct __test_metadata *_metadata,
			   FIXTURE_DATA(grow) * self, unsigned long size,
			   unsigned long old_len, unsigned long new_len,
			   int flags, int expected, const char *what)
{
	struct grow_state before = grow_state(self->fd, size);
	char *p;
	int i;

	errno = 0;
	p = sys_mremap(self->p, old_len, new_len, flags, new_addr(self, flags));
	EXPECT_EQ(p, MAP_FAILED) {
		TH_LOG("%lu kB pages: it grows %s", size >> 10, what);
	}
	EXPECT_EQ(errno, expected) {
		TH_LOG("%lu kB pages: %s: %s", size >> 10, what,
		       strerror(errno));
	}
	expect_state(_metadata, &before, self->fd, size, what);
	for (i = 0; i < NR_OLD; i++)
		EXPECT_EQ(*word(self->p, size, i), i + 1);
}

static const struct grow_kind {
	const char *name;
	int map_flags;
} kinds[] = {
	{ "a shared file mapping", MAP_SHARED },
	{ "a private file mapping", MAP_PRIVATE },
	{ "private memory", MAP_PRIVATE | MAP_ANONYMOUS },
};

/* What no mapping may do. */
static void refused_test(struct __test_metadata *_metadata,
			 FIXTURE_DATA(grow) * self, unsigned long size,
			 int flags, const struct grow_kind *kind)
{
	const unsigned long old_len = NR_OLD * size;
	struct rlimit unlimited, limit;
	struct taken taken;

	grow_map(_metadata, self, size, NR_OLD, PROT_READ | PROT_WRITE,
		 kind->map_flags, !flags);
	expect_refused(_metadata, self, size, old_len, old_len + psize(),
		       flags & ~MREMAP_FIXED, EINVAL,
		       "to a length that is no multiple of the page size");
	if (kind->map_flags & MAP_PRIVATE)
		expect_refused(_metadata, self, size, 0, old_len, flags, EINVAL,
			       "from nothing");
	if (take_pages(&taken, size, 1)) {
		expect_refused(_metadata, self, size, old_len, NR_NEW * size,
			       flags & ~MREMAP_FIXED, ENOMEM,
			       "with not enough pages");
		give_back(&taken);
	}

	getrlimit(RLIMIT_AS, &unlimited);
	limit = unlimited;
	limit.rlim_cur = (vm_size_kb() << 10) + size;
	setrlimit(RLIMIT_AS, &limit);
	expect_refused(_metadata, self, size, old_len, NR_NEW * size,
		       flags & ~MREMAP_FIXED, ENOMEM, "beyond RLIMIT_AS");
	setrlimit(RLIMIT_AS, &unlimited);

	if (self->fd >= 0) {
		ASSERT_EQ(fcntl(self->fd, F_ADD_SEALS, F_SEAL_GROW), 0);
		expect_refused(_metadata, self, size, old_len, NR_NEW * size,
			       flags, EPERM, "a sealed file");
	}
	grow_unmap(self, size);

	grow_map(_metadata, self, size, NR_OLD, PROT_READ | PROT_WRITE,
		 kind->map_flags, false);
	expect_refused(_metadata, self, size, old_len, NR_NEW * size, 0,
		       ENOMEM, "with something in its place");
	grow_unmap(self, size);
}

TEST_F(grow, refused)
{
	int k, n;

	for (n = 0; n < self->nr_sizes; n++) {
		for (k = 0; k < ARRAY_SIZE(kinds); k++) {
			TH_LOG("%s", kinds[k].name);
			refused_test(_metadata, self, self->sizes[n],
				     variant->flags, &kinds[k]);
		}
	}
}

/* What mmap() does not map any more is still written by what is mapped. */
static void seal_writing(struct __test_metadata *_metadata,
			 FIXTURE_DATA(grow) * self, unsigned long size)
{
	ASSERT_EQ(fcntl(self->fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE), 0);
	EXPECT_EQ(mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, self->fd,
		       FIRST_PGOFF * size), MAP_FAILED);
	EXPECT_EQ(errno, EPERM);
}

TEST_F(grow, sealed_against_writing)
{
	int n, i;

	for (n = 0; n < self->nr_sizes; n++) {
		const unsigned long size = self->sizes[n];
		char *p;

		grow_map(_metadata, self, size, NR_OLD, PROT_READ | PROT_WRITE,
			 MAP_SHARED, !variant->flags);
		seal_writing(_metadata, self, size);
		p = grow_to(self, size, NR_OLD, NR_NEW, variant->flags);
		expect_place(_metadata, self, size, variant->flags, p);
		for (i = 0; i < NR_NEW; i++)
			*word(p, size, i) = i + 1;
		expect_in_file(_metadata, self, size);
		munmap(p, NR_NEW * size);
		grow_unmap(self, size);
	}
}

/*
 * VMAs that were split from one have one map of what was used of their
 * reservation, by offset: none grows into the offsets of another.
 */
TEST_F(grow, private_split)
{
	int n;

	for (n = 0; n < self->nr_sizes; n++) {
		const unsigned long size = self->sizes[n];
		long rsvd = pool_number(size, "resv_hugepages");
		char *p;

		grow_map(_metadata, self, size, NR_OLD, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS, !variant->flags);
		if (variant->flags)
			expect_refused(_metadata, self, size, size,
				       NR_NEW * size, variant->flags, EINVAL,
				       "a part with the rest behind it");

		/* The rest is still there, but in another place. */
		ASSERT_EQ(sys_mremap(self->p + size, size, size,
				     MREMAP_MAYMOVE | MREMAP_FIXED,
				     self->p + 28 * size), self->p + 28 * size);
		p = sys_mremap(self->p, size, 2 * size, variant->flags,
			       self->dst);
		EXPECT_EQ(p, MAP_FAILED);
		EXPECT_EQ(errno, EINVAL);
		EXPECT_EQ(*word(self->p, size, 0), 1);

		/* And now it is gone. */
		munmap(self->p + 28 * size, size);
		p = grow_to(self, size, 1, NR_NEW, variant->flags);
		ASSERT_NE(p, MAP_FAILED);
		EXPECT_EQ(pool_number(size, "resv_hugepages"),
			  rsvd + NR_NEW - 1);
		EXPECT_EQ(*word(p, size, 0), 1);
		EXPECT_EQ(*word(p, size, 1), 0);
		munmap(p, NR_NEW * size);
		grow_unmap(self, size);
		EXPECT_EQ(pool_number(size, "resv_hugepages"), rsvd);
	}
}

/* The end of a mapping grows, and leaves the rest behind if it has to move. */
TEST_F(grow, private_part)
{
	int i, n;

	for (n = 0; n < self->nr_sizes; n++) {
		const unsigned long size = self->sizes[n];
		const struct grow_state before = grow_state(-1, size);
		struct taken taken;
		char *p;

		grow_map(_metadata, self, size, 3, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS, !variant->flags);

		/* If there are not enough pages, it is not split either. */
		if (take_pages(&taken, size, 1)) {
			p = sys_mremap(self->p + 2 * size, size, 3 * size,
				       variant->flags & ~MREMAP_FIXED,
				       NO_NEW_ADDR);
			EXPECT_EQ(p, MAP_FAILED);
			EXPECT_EQ(errno, ENOMEM);
			give_back(&taken);
		}
		p = sys_mremap(self->p, 3 * size, 4 * size, variant->flags,
			       self->dst);
		ASSERT_NE(p, MAP_FAILED) {
			TH_LOG("%lu kB pages: a mapping that failed to grow was split",
			       size >> 10);
		}
		EXPECT_EQ(sys_mremap(p, 4 * size, 3 * size, 0, NO_NEW_ADDR), p);
		if (p != self->p)
			ASSERT_EQ(sys_mremap(p, 3 * size, 3 * size,
					     MREMAP_MAYMOVE | MREMAP_FIXED,
					     self->p), self->p);
		EXPECT_EQ(pool_number(size, "resv_hugepages"), before.rsvd);

		p = sys_mremap(self->p + 2 * size, size, 3 * size,
			       variant->flags, self->dst);
		ASSERT_NE(p, MAP_FAILED);
		EXPECT_EQ(p == self->p + 2 * size, !variant->flags);
		EXPECT_EQ(pool_number(size, "resv_hugepages"), before.rsvd + 2);
		for (i = 0; i < 2; i++)
			EXPECT_EQ(*word(self->p, size, i), i + 1);
		for (i = 0; i < 3; i++) {
			EXPECT_EQ(*word(p, size, i), i ? 0 : 3);
			*word(p, size, i) = 1;
		}
		EXPECT_EQ(pool_number(size, "resv_hugepages"), before.rsvd);
		EXPECT_EQ(pool_number(size, "free_hugepages"), before.free - 5);
		munmap(p, 3 * size);
		grow_unmap(self, size);
		EXPECT_EQ(pool_number(size, "resv_hugepages"), before.rsvd);
		EXPECT_EQ(pool_number(size, "free_hugepages"), before.free);
	}
}

/* What a child does: returns 0 if it finds what it expects. */
typedef int (*child_fn)(FIXTURE_DATA(grow) * self, unsigned long size,
			int flags);

struct child {
	pid_t pid;
	int fd;
};

/* Fork a child that runs @fn as soon as end_child() is called. */
static struct child start_child(struct __test_metadata *_metadata,
				FIXTURE_DATA(grow) * self, unsigned long size,
				int flags, child_fn fn)
{
	struct child child;
	int fds[2];
	char c;

	ASSERT_EQ(pipe(fds), 0);
	child.pid = fork();
	ASSERT_GE(child.pid, 0);
	if (!child.pid) {
		close(fds[1]);
		_exit(read(fds[0], &c, 1) == 1 ? fn(self, size, flags) : 100);
	}
	close(fds[0]);
	child.fd = fds[1];
	return child;
}

static void end_child(struct __test_metadata *_metadata, struct child *child)
{
	int status;

	EXPECT_EQ(write(child->fd, "", 1), 1);
	ASSERT_EQ(waitpid(child->pid, &status, 0), child->pid);
	EXPECT_TRUE(WIFEXITED(status));
	EXPECT_EQ(WEXITSTATUS(status), 0);
	close(child->fd);
}

static int refuse_in_child(FIXTURE_DATA(grow) * self, unsigned long size,
			   int flags)
{
	int i;

	if (grow_to(self, size, NR_OLD, NR_NEW, flags) != MAP_FAILED ||
	    errno != EINVAL)
		return 1;
	for (i = 0; i < NR_OLD; i++)
		if (*word(self->p, size, i) != i + 1)
			return 2;
	return 0;
}

/* A child has no reservation; its parent keeps one, and both keep what they see. */
TEST_F(grow, private_forked)
{
	int i, n;

	for (n = 0; n < self->nr_sizes; n++) {
		const unsigned long size = self->sizes[n];
		struct child child;
		char *p;

		grow_map(_metadata, self, size, NR_OLD, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS, !variant->flags);
		child = start_child(_metadata, self, size, variant->flags,
				    refuse_in_child);
		end_child(_metadata, &child);

		child = start_child(_metadata, self, size, variant->flags,
				    refuse_in_child);
		p = grow_to(self, size, NR_OLD, NR_NEW, variant->flags);
		expect_place(_metadata, self, size, variant->flags, p);
		for (i = NR_OLD; i < NR_NEW; i++)
			*word(p, size, i) = i + 1;
		end_child(_metadata, &child);
		for (i = 0; i < NR_NEW; i++) {
			EXPECT_EQ(*word(p, size, i), i + 1);
			*word(p, size, i) = 0;
		}
		munmap(p, NR_NEW * size);
		grow_unmap(self, size);
	}
}

static int read_in_child(FIXTURE_DATA(grow) * self, unsigned long size,
			 int flags)
{
	return *word(self->p, size, 2) != 3;
}

/*
 * Pages that a child still has stay in the map of its parent's reservation when
 * the parent gives them up. What the parent maps there next is reserved anew.
 */
TEST_F(grow, private_used_before)
{
	int i, n;

	for (n = 0; n < self->nr_sizes; n++) {
		const unsigned long size = self->sizes[n];
		const struct grow_state before = grow_state(-1, size);
		struct child child;
		char *p;

		grow_map(_metadata, self, size, 3, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS, !variant->flags);
		child = start_child(_metadata, self, size, variant->flags,
				    read_in_child);
		ASSERT_EQ(sys_mremap(self->p, 3 * size, size, 0, NULL),
			  self->p);
		p = grow_to(self, size, 1, 3, variant->flags);
		ASSERT_NE(p, MAP_FAILED);
		EXPECT_EQ(pool_number(size, "resv_hugepages"),
			  before.rsvd + 2);
		for (i = 1; i < 3; i++) {
			EXPECT_EQ(*word(p, size, i), 0);
			*word(p, size, i) = 10;
		}
		EXPECT_EQ(pool_number(size, "resv_hugepages"), before.rsvd) {
			TH_LOG("%lu kB pages: reserved pages are not used",
			       size >> 10);
		}
		end_child(_metadata, &child);
		munmap(p, 3 * size);
		grow_unmap(self, size);
		EXPECT_EQ(pool_number(size, "resv_hugepages"), before.rsvd) {
			TH_LOG("%lu kB pages: reservations leaked",
			       size >> 10);
		}
		EXPECT_EQ(pool_number(size, "free_hugepages"), before.free);
	}
}

static long charged_pages(struct test_cgroup *cgroup, unsigned long size)
{
	char path[PATH_MAX];

	rsvd_path(path, sizeof(path), cgroup->path, size);
	return number_in(path) / (long)size;
}

static void limit_pages(struct __test_metadata *_metadata,
			struct test_cgroup *cgroup, unsigned long size, long nr)
{
	char path[PATH_MAX], val[32];

	rsvd_path(path, sizeof(path), cgroup->path, size);
	snprintf(val, sizeof(val), "%ld", nr * (long)size);
	strcpy(path + strlen(path) - strlen("current"), "max");
	ASSERT_TRUE(cgroup_write("", path, val));
}

static void join(struct __test_metadata *_metadata, const char *dir)
{
	ASSERT_TRUE(cgroup_write(dir, "cgroup.procs", "0"));
}

/*
 * What is private is charged to the group that it was mapped in, and grows in no
 * other; what is shared is charged to the group of the task that makes it grow.
 */
TEST_F(grow, cgroup)
{
	const char *reason = make_cgroup(&self->cgroup, self->sizes[0]);
	int k, n;

	if (reason)
		SKIP(return, "%s", reason);

	for (n = 0; n < self->nr_sizes; n++) {
		const unsigned long size = self->sizes[n];

		for (k = 0; k < ARRAY_SIZE(kinds); k++) {
			const bool shared = kinds[k].map_flags & MAP_SHARED;
			char *p;

			TH_LOG("%s", kinds[k].name);
			limit_pages(_metadata, &self->cgroup, size, NR_NEW - 1);
			join(_metadata, self->cgroup.path);
			grow_map(_metadata, self, size, NR_OLD,
				 PROT_READ | PROT_WRITE, kinds[k].map_flags,
				 !variant->flags);
			expect_refused(_metadata, self, size, NR_OLD * size,
				       NR_NEW * size,
				       variant->flags & ~MREMAP_FIXED, ENOMEM,
				       "beyond the limit of its cgroup");
			EXPECT_EQ(charged_pages(&self->cgroup, size), NR_OLD);

			limit_pages(_metadata, &self->cgroup, size, NR_NEW);
			join(_metadata, self->cgroup.root);
			if (!shared) {
				expect_refused(_metadata, self, size,
					       NR_OLD * size, NR_NEW * size,
					       variant->flags, EINVAL,
					       "in another cgroup");
				EXPECT_EQ(charged_pages(&self->cgroup, size),
					  NR_OLD);
				join(_metadata, self->cgroup.path);
			}
			p = grow_to(self, size, NR_OLD, NR_NEW, variant->flags);
			ASSERT_NE(p, MAP_FAILED);
			EXPECT_EQ(charged_pages(&self->cgroup, size),
				  shared ? NR_OLD : NR_NEW);
			munmap(p, size);
			EXPECT_EQ(charged_pages(&self->cgroup, size),
				  shared ? NR_OLD : NR_NEW - 1);
			munmap(p, NR_NEW * size);
			grow_unmap(self, size);
			EXPECT_EQ(charged_pages(&self->cgroup, size), 0);
			join(_metadata, self->cgroup.root);
		}
	}
}

/* A task that was moved to a group reserves nothing beyond the limit of that. */
TEST_F(grow, moved_to_cgroup)
{
	const char *reason = make_cgroup(&self->cgroup, self->sizes[0]);
	int k, n;

	if (reason)
		SKIP(return, "%s", reason);

	for (n = 0; n < self->nr_sizes; n++) {
		const unsigned long size = self->sizes[n];

		limit_pages(_metadata, &self->cgroup, size, NR_NEW - NR_OLD - 1);
		for (k = 0; k < ARRAY_SIZE(kinds); k++) {
			const bool shared = kinds[k].map_flags & MAP_SHARED;

			TH_LOG("%s", kinds[k].name);
			grow_map(_metadata, self, size, NR_OLD,
				 PROT_READ | PROT_WRITE, kinds[k].map_flags,
				 !variant->flags);
			join(_metadata, self->cgroup.path);
			expect_refused(_metadata, self, size, NR_OLD * size,
				       NR_NEW * size,
				       variant->flags & ~MREMAP_FIXED,
				       shared ? ENOMEM : EINVAL,
				       "in a cgroup with a limit");
			EXPECT_EQ(charged_pages(&self->cgroup, size), 0);
			join(_metadata, self->cgroup.root);
			grow_unmap(self, size);
		}
	}
}

/* A mount has a size that its files do not exceed, or pages of its own. */
TEST_F(grow, mount)
{
	char dir[] = "/tmp/hugetlb_mremap_XXXXXX";
	int k, n, tested = 0;

	/* Private mounts, which go away when this process exits. */
	if (unshare(CLONE_NEWNS) ||
	    mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
		SKIP(return, "No mount namespace: %s", strerror(errno));
	ASSERT_NE(mkdtemp(dir), NULL);
	strcpy(self->mountpoint, dir);
	for (n = 0; n < self->nr_sizes; n++) {
		const unsigned long size = self->sizes[n];

		for (k = 0; k < ARRAY_SIZE(kinds); k++) {
			char options[96], name[64];
			struct grow_state mounted;
			char *p;

			if (kinds[k].map_flags & MAP_ANONYMOUS)
				continue;
			snprintf(options, sizeof(options),
				 "pagesize=%luK,size=%lu,min_size=%lu",
				 size >> 10, (NR_NEW - 1) * size, 3 * size);
			if (mount("none", dir, "hugetlbfs", 0, options))
				continue;
			mounted = grow_state(-1, size);

			snprintf(name, sizeof(name), "%s/file", dir);
			self->file = name;
			grow_map(_metadata, self, size, NR_OLD,
				 PROT_READ | PROT_WRITE, kinds[k].map_flags,
				 !variant->flags);
			expect_refused(_metadata, self, size, NR_OLD * size,
				       NR_NEW * size,
				       variant->flags & ~MREMAP_FIXED, ENOMEM,
				       "beyond the size of the mount");
			/* Of the three that are more, one is reserved already. */
			p = grow_to(self, size, NR_OLD, NR_NEW - 1,
				    variant->flags);
			ASSERT_NE(p, MAP_FAILED);
			EXPECT_EQ(grow_state(-1, size).rsvd,
				  mounted.rsvd - 3 + NR_NEW - 1 - NR_OLD);
			munmap(p, (NR_NEW - 1) * size);
			grow_unmap(self, size);
			self->file = NULL;
			unlink(name);
			mounted.vm_kb = vm_size_kb();
			expect_state(_metadata, &mounted, -1, size,
				     "when the file is gone");
			ASSERT_EQ(umount(dir), 0);
			tested++;
		}
	}
	if (!tested && __test_passed(_metadata))
		SKIP(return, "hugetlbfs cannot be mounted: %s",
		     strerror(errno));
}

/* mremap() wants room for what it may have to split, of all mappings. */
TEST_F_TIMEOUT(grow, map_count, 400)
{
	const long max = number_in("/proc/sys/vm/max_map_count");
	char *many;
	long i = 1;
	int k, n;

	if (max < 0 || max > 1 << 17)
		SKIP(return, "The limit of VMAs is unknown, or too high");
	many = mmap(NULL, 4 * max * psize(), PROT_NONE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	ASSERT_NE(many, MAP_FAILED);
	for (n = 0; n < self->nr_sizes; n++) {
		const unsigned long size = self->sizes[n];

		for (k = 0; k < ARRAY_SIZE(kinds); k++) {
			grow_map(_metadata, self, size, NR_OLD,
				 PROT_READ | PROT_WRITE, kinds[k].map_flags,
				 !variant->flags);
			/* As many as there can be; unmapping made room. */
			for (; i < 2 * max; i++)
				if (mprotect(many + 2 * i * psize(), psize(),
					     PROT_READ))
					break;
			ASSERT_LT(i, 2 * max);
			expect_refused(_metadata, self, size, NR_OLD * size,
				       NR_NEW * size,
				       variant->flags & ~MREMAP_FIXED, ENOMEM,
				       "with too many VMAs");
			/* Or what is around it could not be split off. */
			munmap(many + 2 * (i - 10) * psize(), 20 * psize());
			grow_unmap(self, size);
		}
	}
	munmap(many, 4 * max * psize());
}

static int open_userfaultfd(int flags, __u64 features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	int uffd = syscall(__NR_userfaultfd,
			   O_CLOEXEC | UFFD_USER_MODE_ONLY | flags);

	if (uffd >= 0 && ioctl(uffd, UFFDIO_API, &api)) {
		close(uffd);
		return -1;
	}
	return uffd;
}

static int register_missing(int uffd, char *p, unsigned long len)
{
	struct uffdio_register reg = {
		.range = { (unsigned long)p, len },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};

	return ioctl(uffd, UFFDIO_REGISTER, &reg);
}

/* Which of the pages does a userfaultfd protect? One bit for each. */
static unsigned int protected_pages(char *p, unsigned long size, int nr)
{
	int i, pagemap = open("/proc/self/pagemap", O_RDONLY);
	unsigned int mask = 0;

	for (i = 0; i < nr; i++)
		if (pagemap_get_entry(pagemap, p + i * size) & PM_UFFD_WP)
			mask |= 1U << i;
	close(pagemap);
	return mask;
}

static int register_and_protect(int uffd, char *p, unsigned long len,
				unsigned long protected_len)
{
	struct uffdio_register reg = {
		.range = { (unsigned long)p, len },
		.mode = UFFDIO_REGISTER_MODE_WP,
	};
	struct uffdio_writeprotect wp = {
		.range = { (unsigned long)p, protected_len },
		.mode = UFFDIO_WRITEPROTECT_MODE_WP,
	};

	return ioctl(uffd, UFFDIO_REGISTER, &reg) ? :
		ioctl(uffd, UFFDIO_WRITEPROTECT, &wp);
}

/*
 * A mapping that moves leaves a userfaultfd that is not told. One that cannot
 * grow, because there are not enough pages, stays and keeps its protection; the
 * pages of a shared mapping are counted when it has moved already.
 */
static void userfaultfd_test(struct __test_metadata *_metadata,
			     FIXTURE_DATA(grow) * self, unsigned long size,
			     int flags, int uffd, const struct grow_kind *kind)
{
	struct taken taken;
	char *p;
	int i;

	grow_map(_metadata, self, size, NR_OLD, PROT_READ | PROT_WRITE,
		 kind->map_flags, !flags);
	ASSERT_EQ(register_and_protect(uffd, self->p, NR_OLD * size, size), 0);
	EXPECT_EQ(protected_pages(self->p, size, NR_OLD), 1);
	if (take_pages(&taken, size, 1)) {
		expect_refused(_metadata, self, size, NR_OLD * size,
			       NR_NEW * size, flags & ~MREMAP_FIXED, ENOMEM,
			       "with not enough pages and a userfaultfd");
		EXPECT_EQ(protected_pages(self->p, size, NR_OLD), 1) {
			TH_LOG("%lu kB pages: protection lost", size >> 10);
		}
		give_back(&taken);
	}

	p = grow_to(self, size, NR_OLD, NR_NEW, flags);
	expect_place(_metadata, self, size, flags, p);
	EXPECT_EQ(protected_pages(p, size, NR_NEW), !flags) {
		TH_LOG("%lu kB pages: protected are %#x", size >> 10,
		       protected_pages(p, size, NR_NEW));
	}
	for (i = 0; i < NR_NEW; i++) {
		EXPECT_EQ(*word(p, size, i), i < NR_OLD ? i + 1 : 0);
		/* Nothing answers the fault of a protected page here. */
		if (flags || i)
			*word(p, size, i) = i + 10;
	}
	munmap(p, NR_NEW * size);
	grow_unmap(self, size);
}

TEST_F(grow, userfaultfd)
{
	int uffd = open_userfaultfd(0, UFFD_FEATURE_PAGEFAULT_FLAG_WP |
				    UFFD_FEATURE_WP_HUGETLBFS_SHMEM);
	int k, n;

	if (uffd < 0)
		SKIP(return, "No userfaultfd: %s", strerror(errno));
	for (n = 0; n < self->nr_sizes; n++) {
		for (k = 0; k < ARRAY_SIZE(kinds); k++) {
			TH_LOG("%s", kinds[k].name);
			userfaultfd_test(_metadata, self, self->sizes[n],
					 variant->flags, uffd, &kinds[k]);
		}
	}
	close(uffd);
}

struct events {
	int uffd;
	bool stop;
	unsigned long nr;
};

/* A task that causes an event waits until the event has been read. */
static void *count_events(void *arg)
{
	struct events *ev = arg;
	struct pollfd pfd = { .fd = ev->uffd, .events = POLLIN };
	struct uffd_msg msg;

	while (!__atomic_load_n(&ev->stop, __ATOMIC_ACQUIRE))
		if (poll(&pfd, 1, 20) > 0 &&
		    read(ev->uffd, &msg, sizeof(msg)) == sizeof(msg))
			ev->nr++;
	return NULL;
}

/* A userfaultfd that is told of moves is not told of one that failed. */
TEST_F(grow, userfaultfd_events)
{
	int n, tested = 0;

	for (n = 0; n < self->nr_sizes; n++) {
		const unsigned long size = self->sizes[n];
		struct events ev = {};
		struct taken taken;
		pthread_t thread;

		ev.uffd = open_userfaultfd(O_NONBLOCK,
					   UFFD_FEATURE_EVENT_REMAP |
					   UFFD_FEATURE_EVENT_UNMAP);
		if (ev.uffd < 0)
			break;
		if (!take_pages(&taken, size, NR_OLD + 1)) {
			close(ev.uffd);
			continue;
		}
		/* Its stack must not get where the mapping is to grow. */
		ASSERT_EQ(pthread_create(&thread, NULL, count_events, &ev), 0);

		grow_map(_metadata, self, size, NR_OLD, PROT_READ | PROT_WRITE,
			 MAP_SHARED, !variant->flags);
		ASSERT_EQ(register_missing(ev.uffd, self->p, NR_OLD * size), 0);
		expect_refused(_metadata, self, size, NR_OLD * size,
			       NR_NEW * size, variant->flags & ~MREMAP_FIXED,
			       ENOMEM, "with not enough pages");
		__atomic_store_n(&ev.stop, true, __ATOMIC_RELEASE);
		pthread_join(thread, NULL);
		EXPECT_EQ(ev.nr, 0) {
			TH_LOG("%lu kB pages: %lu events of a mapping that has not moved",
			       size >> 10, ev.nr);
		}
		close(ev.uffd);
		give_back(&taken);
		grow_unmap(self, size);
		tested++;
	}
	if (!tested && __test_passed(_metadata))
		SKIP(return, "No userfaultfd with events, or not all pages can be taken");
}

/* The end of what a file can have, where nothing but mapping is possible. */
TEST_F(grow, beyond_file)
{
	int n, tested = 0;

	if (sizeof(long) < sizeof(loff_t))
		SKIP(return, "Files are larger than the address space");
	for (n = 0; n < self->nr_sizes; n++) {
		const unsigned long size = self->sizes[n];
		const off_t offset = (LONG_MAX & -size) - 4 * size;
		char *p;

		grow_map(_metadata, self, size, NR_OLD, PROT_READ, MAP_SHARED,
			 !variant->flags);
		if (mmap(self->p, 2 * size, PROT_READ,
			 MAP_SHARED | MAP_FIXED | MAP_NORESERVE, self->fd,
			 offset) != self->p) {
			grow_unmap(self, size);
			continue;
		}
		p = grow_to(self, size, 2, 8, variant->flags);
		EXPECT_EQ(p, MAP_FAILED);
		EXPECT_EQ(errno, EINVAL);
		p = grow_to(self, size, 2, 4, variant->flags);
		ASSERT_NE(p, MAP_FAILED);
		munmap(p, 4 * size);
		grow_unmap(self, size);
		tested++;
	}
	if (!tested && __test_passed(_metadata))
		SKIP(return, "No such offset: %s", strerror(errno));
}

/* Whatever allocation fails, all is as before, or it has grown, or moved. */
static void failing_test(struct __test_metadata *_metadata,
			 FIXTURE_DATA(grow) * self, unsigned long size,
			 int nr_new, int flags, const char *name, int map_flags)
{
	unsigned int nth, failures = 0;
	bool injected = true;
	int i;

	for (nth = 1; injected; nth++) {
		struct grow_state before;
		char *p;

		grow_map(_metadata, self, size, NR_OLD, PROT_READ | PROT_WRITE,
			 map_flags, !flags);
		before = grow_state(self->fd, size);
		p = mremap_failing(nth, self->p, NR_OLD * size, nr_new * size,
				   flags, flags & MREMAP_FIXED ? self->dst : NULL,
				   &injected);
		if (p == MAP_FAILED) {
			ASSERT_TRUE(injected);
			EXPECT_EQ(errno, ENOMEM);
			failures++;
			/* What was there is not mapped any more. */
			if (flags & MREMAP_FIXED)
				before.vm_kb = vm_size_kb();
			expect_state(_metadata, &before, self->fd, size,
				     "after a failure");
			p = self->p;
		} else if (nr_new > NR_OLD) {
			*word(p, size, nr_new - 1) = 0;
		}
		for (i = 0; i < NR_OLD; i++)
			EXPECT_EQ(*word(p, size, i), i + 1);
		if (p != self->p)
			munmap(p, nr_new * size);
		grow_unmap(self, size);
	}
	/* To grow in place may take none. */
	if (flags)
		EXPECT_GT(failures, 0);
	TH_LOG("%s, %lu kB pages: %u of %u allocations had to succeed", name,
	       size >> 10, failures, nth - 2);
}

TEST_F_TIMEOUT(grow, nth_allocation, 400)
{
	const char *reason = allow_injection();
	int k, n;

	if (reason)
		SKIP(return, "%s", reason);
	for (n = 0; n < self->nr_sizes; n++)
		for (k = 0; k < ARRAY_SIZE(kinds); k++)
			failing_test(_metadata, self, self->sizes[n], NR_NEW,
				     variant->flags, kinds[k].name,
				     kinds[k].map_flags);
}

static int attach_segment(struct __test_metadata *_metadata,
			  FIXTURE_DATA(grow) * self, unsigned long size)
{
	int i, id = shmget(IPC_PRIVATE, NR_OLD * size,
			   IPC_CREAT | 0600 | SHM_HUGETLB |
			   __builtin_ctzl(size) << MAP_HUGE_SHIFT);

	if (id < 0)
		return id;
	self->p = shmat(id, NULL, 0);
	ASSERT_NE(self->p, (void *)-1) {
		shmctl(id, IPC_RMID, NULL);
	}
	self->fd = -1;
	for (i = 0; i < NR_OLD; i++)
		*word(self->p, size, i) = i + 1;
	return id;
}

/* A segment has its size for life, but what is lost of a mapping can come back. */
TEST_F(grow, system_v)
{
	int i, n, tested = 0;

	for (n = 0; n < self->nr_sizes; n++) {
		const unsigned long size = self->sizes[n];
		const long rsvd = pool_number(size, "resv_hugepages");
		int id = attach_segment(_metadata, self, size);
		char *p;

		if (id < 0)
			continue;
		shmctl(id, IPC_RMID, NULL);
		expect_refused(_metadata, self, size, NR_OLD * size,
			       NR_NEW * size, variant->flags & ~MREMAP_FIXED,
			       EINVAL, "a System V segment");
		if (!(variant->flags & MREMAP_FIXED)) {
			ASSERT_EQ(sys_mremap(self->p, NR_OLD * size, size, 0,
					     NULL), self->p);
			p = sys_mremap(self->p, size, NR_OLD * size,
				       variant->flags, NULL);
			ASSERT_NE(p, MAP_FAILED);
			self->p = p;
		}
		for (i = 0; i < NR_OLD; i++)
			EXPECT_EQ(*word(self->p, size, i), i + 1);
		munmap(self->p, NR_OLD * size);
		EXPECT_EQ(pool_number(size, "resv_hugepages"), rsvd);
		tested++;
	}
	if (!tested)
		SKIP(return, "No System V segments: %s", strerror(errno));
}

FIXTURE(duplicate)
{
	FIXTURE_DATA(grow) grow;
};

FIXTURE_VARIANT(duplicate)
{
	int flags;
};

FIXTURE_VARIANT_ADD(duplicate, anywhere)
{
	.flags = MREMAP_MAYMOVE,
};

FIXTURE_VARIANT_ADD(duplicate, fixed)
{
	.flags = MREMAP_MAYMOVE | MREMAP_FIXED,
};

FIXTURE_SETUP(duplicate)
{
	if (!set_up(&self->grow))
		SKIP(return, "Less than %d huge pages available of every size",
		     NR_NEW + 2);
}

FIXTURE_TEARDOWN(duplicate)
{
	clean_up(&self->grow);
}

/* An old length of nothing makes another mapping, as mmap() of the file would. */
static void duplicate_test(struct __test_metadata *_metadata,
			   FIXTURE_DATA(grow) * self, unsigned long size,
			   int flags, int map_flags)
{
	struct grow_state before, mapped, now;
	int i, reserve = map_flags & MAP_NORESERVE ? 0 : 1;
	char *p;

	before = grow_state(-1, size);
	grow_map(_metadata, self, size, NR_OLD, PROT_READ | PROT_WRITE,
		 map_flags, false);
	mapped = grow_state(self->fd, size);

	/* As much as is mapped, and from the middle. */
	p = sys_mremap(self->p + size, 0, size, flags, new_addr(self, flags));
	ASSERT_NE(p, MAP_FAILED) {
		TH_LOG("mremap() of %lu kB pages to duplicate: %s", size >> 10,
		       strerror(errno));
	}
	EXPECT_EQ(*word(p, size, 0), 2);
	*word(p, size, 0) = 3;
	EXPECT_EQ(*word(self->p, size, 1), 3);
	*word(self->p, size, 1) = 2;
	now = grow_state(self->fd, size);
	EXPECT_EQ(now.rsvd, mapped.rsvd);
	EXPECT_EQ(now.free, mapped.free);
	EXPECT_EQ(now.file_size, mapped.file_size);
	munmap(p, size);

	/* And more. */
	p = sys_mremap(self->p, 0, NR_NEW * size, flags, new_addr(self, flags));
	ASSERT_NE(p, MAP_FAILED);
	now = grow_state(self->fd, size);
	EXPECT_EQ(now.rsvd, mapped.rsvd + reserve * (NR_NEW - NR_OLD));
	if (self->fd >= 0)
		EXPECT_EQ(now.file_size, (FIRST_PGOFF + NR_NEW) * size);
	for (i = 0; i < NR_NEW; i++) {
		EXPECT_EQ(*word(p, size, i), i < NR_OLD ? i + 1 : 0);
		*word(p, size, i) = i + 1;
	}
	EXPECT_EQ(pool_number(size, "resv_hugepages"), mapped.rsvd);
	for (i = 0; i < NR_OLD; i++)
		EXPECT_EQ(*word(self->p, size, i), i + 1);

	/* Each goes away by itself. */
	munmap(self->p, NR_OLD * size);
	for (i = 0; i < NR_NEW; i++)
		EXPECT_EQ(*word(p, size, i), i + 1);
	munmap(p, NR_NEW * size);
	grow_unmap(self, size);
	before.vm_kb = vm_size_kb();
	expect_state(_metadata, &before, -1, size, "at last");
}

TEST_F(duplicate, shared)
{
	int n;

	for (n = 0; n < self->grow.nr_sizes; n++)
		duplicate_test(_metadata, &self->grow, self->grow.sizes[n],
			       variant->flags, MAP_SHARED);
}

TEST_F(duplicate, shared_anonymous_noreserve)
{
	int n;

	for (n = 0; n < self->grow.nr_sizes; n++)
		duplicate_test(_metadata, &self->grow, self->grow.sizes[n],
			       variant->flags,
			       MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE);
}

/* As growth: see seal_writing(). */
TEST_F(duplicate, sealed_against_writing)
{
	FIXTURE_DATA(grow) * grow = &self->grow;
	int n, i;

	for (n = 0; n < grow->nr_sizes; n++) {
		const unsigned long size = grow->sizes[n];
		char *p;

		grow_map(_metadata, grow, size, NR_OLD, PROT_READ | PROT_WRITE,
			 MAP_SHARED, false);
		seal_writing(_metadata, grow, size);
		p = grow_to(grow, size, 0, NR_NEW, variant->flags);
		ASSERT_NE(p, MAP_FAILED) {
			TH_LOG("%lu kB pages: no duplicate of a file sealed against writing: %s",
			       size >> 10, strerror(errno));
		}
		for (i = 0; i < NR_NEW; i++)
			*word(p, size, i) = i + 1;
		expect_in_file(_metadata, grow, size);
		munmap(p, NR_NEW * size);
		grow_unmap(grow, size);
	}
}

TEST_F(duplicate, system_v)
{
	FIXTURE_DATA(grow) * grow = &self->grow;
	int n, tested = 0;

	for (n = 0; n < grow->nr_sizes; n++) {
		const unsigned long size = grow->sizes[n];
		int id = attach_segment(_metadata, grow, size);
		struct shmid_ds ds;
		char *arena, *p;

		if (id < 0)
			continue;
		arena = mmap(NULL, (NR_OLD + 1) * size, PROT_NONE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
			     0);
		ASSERT_NE(arena, MAP_FAILED);
		grow->dst = (char *)(((unsigned long)arena + size - 1) & -size);

		expect_refused(_metadata, grow, size, 0, (NR_OLD + 1) * size,
			       MREMAP_MAYMOVE, EINVAL, "beyond its segment");
		p = sys_mremap(grow->p + size, 0, NR_OLD * size, MREMAP_MAYMOVE,
			       NULL);
		EXPECT_EQ(p, MAP_FAILED);
		EXPECT_EQ(errno, EINVAL);
		p = sys_mremap(grow->p, 0, NR_OLD * size,
			       variant->flags, grow->dst);
		ASSERT_NE(p, MAP_FAILED) {
			shmctl(id, IPC_RMID, NULL);
		}
		EXPECT_EQ(*word(p, size, 1), 2);
		*word(p, size, 0) = 3;
		EXPECT_EQ(*word(grow->p, size, 0), 3);
		EXPECT_EQ(shmctl(id, IPC_STAT, &ds), 0);
		EXPECT_EQ(ds.shm_nattch, 2);
		EXPECT_EQ(shmdt(p), 0);
		EXPECT_EQ(shmctl(id, IPC_STAT, &ds), 0);
		EXPECT_EQ(ds.shm_nattch, 1);
		shmctl(id, IPC_RMID, NULL);
		EXPECT_EQ(shmdt(grow->p), 0);
		munmap(arena, (NR_OLD + 1) * size);
		tested++;
	}
	if (!tested)
		SKIP(return, "No System V segments: %s", strerror(errno));
}

/* Nothing moves, and nothing that a userfaultfd has protected is lost. */
TEST_F(duplicate, userfaultfd)
{
	FIXTURE_DATA(grow) * grow = &self->grow;
	int n, uffd = open_userfaultfd(0, 0);

	if (uffd < 0)
		SKIP(return, "No userfaultfd: %s", strerror(errno));
	for (n = 0; n < grow->nr_sizes; n++) {
		const unsigned long size = grow->sizes[n];
		char *p;

		grow_map(_metadata, grow, size, NR_OLD, PROT_READ | PROT_WRITE,
			 MAP_SHARED, false);
		ASSERT_EQ(register_missing(uffd, grow->p, NR_OLD * size), 0);
		p = grow_to(grow, size, 0, NR_NEW,
			    variant->flags);
		ASSERT_NE(p, MAP_FAILED);
		EXPECT_EQ(*word(p, size, 1), 2);
		/* Without an event the copy is not registered: this is no fault to answer. */
		*word(p, size, NR_NEW - 1) = 1;
		munmap(p, NR_NEW * size);
		grow_unmap(grow, size);
	}
	close(uffd);
}

/* The pages move, and the mapping stays: MREMAP_DONTUNMAP. */
FIXTURE(dontunmap)
{
	FIXTURE_DATA(grow) grow;
};

FIXTURE_VARIANT(dontunmap)
{
	int flags;
	int map_flags;
};

FIXTURE_VARIANT_ADD(dontunmap, shared)
{
	.map_flags = MAP_SHARED,
};

FIXTURE_VARIANT_ADD(dontunmap, shared_fixed)
{
	.flags = MREMAP_FIXED,
	.map_flags = MAP_SHARED,
};

FIXTURE_VARIANT_ADD(dontunmap, private)
{
	.map_flags = MAP_PRIVATE | MAP_ANONYMOUS,
};

FIXTURE_VARIANT_ADD(dontunmap, private_fixed)
{
	.flags = MREMAP_FIXED,
	.map_flags = MAP_PRIVATE | MAP_ANONYMOUS,
};

FIXTURE_VARIANT_ADD(dontunmap, private_noreserve)
{
	.map_flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
};

FIXTURE_VARIANT_ADD(dontunmap, private_file)
{
	.map_flags = MAP_PRIVATE,
};

FIXTURE_SETUP(dontunmap)
{
	if (!set_up(&self->grow))
		SKIP(return, "Less than %d huge pages available of every size",
		     NR_NEW + 2);
}

FIXTURE_TEARDOWN(dontunmap)
{
	clean_up(&self->grow);
}

static char *dontunmap(FIXTURE_DATA(grow) * self, unsigned long size,
		       int first, int nr, int flags)
{
	return sys_mremap(self->p + first * size, nr * size, nr * size,
			  MREMAP_MAYMOVE | MREMAP_DONTUNMAP | flags,
			  flags & MREMAP_FIXED ? self->dst : NULL);
}

/* How many pages are reserved for each that has moved away. */
static int reserved_again(int map_flags)
{
	return map_flags & MAP_PRIVATE && !(map_flags & MAP_NORESERVE);
}

/*
 * What stays of a private mapping is empty, and has as many pages reserved as
 * when it was new; a shared one finds its pages in the file.
 */
static void dontunmap_test(struct __test_metadata *_metadata,
			   FIXTURE_DATA(grow) * self,
			   const FIXTURE_VARIANT(dontunmap) * variant,
			   unsigned long size, int first, int nr)
{
	const int again = nr * reserved_again(variant->map_flags);
	const bool shared = variant->map_flags & MAP_SHARED;
	struct grow_state before, mapped, now;
	char *p;
	int i;

	before = grow_state(-1, size);
	grow_map(_metadata, self, size, 3, PROT_READ | PROT_WRITE,
		 variant->map_flags, false);
	mapped = grow_state(self->fd, size);

	p = dontunmap(self, size, first, nr, variant->flags);
	ASSERT_NE(p, MAP_FAILED) {
		TH_LOG("MREMAP_DONTUNMAP of %lu kB pages: %s", size >> 10,
		       strerror(errno));
	}
	if (variant->flags & MREMAP_FIXED)
		EXPECT_EQ(p, self->dst);
	now = grow_state(self->fd, size);
	EXPECT_EQ(now.rsvd, mapped.rsvd + again);
	EXPECT_EQ(now.free, mapped.free);
	EXPECT_EQ(now.file_size, mapped.file_size);
	EXPECT_TRUE(is_mapped(self->p, 3 * size));

	/* The pages, and what is where they have been. */
	for (i = first; i < first + nr; i++) {
		EXPECT_EQ(*word(p, size, i - first), i + 1);
		EXPECT_EQ(*word(self->p, size, i), shared ? i + 1 : 0);
		*word(self->p, size, i) = i + 11;
		EXPECT_EQ(*word(p, size, i - first), shared ? i + 11 : i + 1);
	}
	for (i = 0; i < 3; i++)
		if (i < first || i >= first + nr)
			EXPECT_EQ(*word(self->p, size, i), i + 1);
	now = grow_state(self->fd, size);
	EXPECT_EQ(now.rsvd, mapped.rsvd);
	EXPECT_EQ(now.free, mapped.free - (shared ? 0 : nr));

	/* Each goes away by itself, and the pages can come back. */
	p = sys_mremap(p, nr * size, nr * size, MREMAP_MAYMOVE | MREMAP_FIXED,
		       self->p + first * size);
	ASSERT_EQ(p, self->p + first * size);
	for (i = 0; i < 3; i++) {
		const bool moved = i >= first && i < first + nr;

		EXPECT_EQ(*word(self->p, size, i),
			  shared && moved ? i + 11 : i + 1);
	}
	now = grow_state(self->fd, size);
	EXPECT_EQ(now.rsvd, mapped.rsvd);
	EXPECT_EQ(now.free, mapped.free);
	grow_unmap(self, size);
	before.vm_kb = vm_size_kb();
	expect_state(_metadata, &before, -1, size, "at last");
}

TEST_F(dontunmap, whole)
{
	int n;

	for (n = 0; n < self->grow.nr_sizes; n++)
		dontunmap_test(_metadata, &self->grow, variant,
			       self->grow.sizes[n], 0, 3);
}

TEST_F(dontunmap, part)
{
	int n;

	for (n = 0; n < self->grow.nr_sizes; n++) {
		dontunmap_test(_metadata, &self->grow, variant,
			       self->grow.sizes[n], 0, 1);
		dontunmap_test(_metadata, &self->grow, variant,
			       self->grow.sizes[n], 1, 1);
		dontunmap_test(_metadata, &self->grow, variant,
			       self->grow.sizes[n], 1, 2);
	}
}

/* As growth: see seal_writing(). The seal does not matter to private mappings. */
TEST_F(dontunmap, sealed_against_writing)
{
	FIXTURE_DATA(grow) * grow = &self->grow;
	const int map_flags = variant->map_flags & ~MAP_ANONYMOUS;
	int n, i;

	for (n = 0; n < grow->nr_sizes; n++) {
		const unsigned long size = grow->sizes[n];
		char *p;

		grow_map(_metadata, grow, size, NR_OLD, PROT_READ | PROT_WRITE,
			 map_flags, false);
		seal_writing(_metadata, grow, size);
		p = dontunmap(grow, size, 0, NR_OLD, variant->flags);
		ASSERT_NE(p, MAP_FAILED) {
			TH_LOG("%lu kB pages: MREMAP_DONTUNMAP of a write-sealed file: %s",
			       size >> 10, strerror(errno));
		}
		for (i = 0; i < NR_OLD; i++) {
			*word(p, size, i) = i + 11;
			*word(grow->p, size, i) = i + 21;
			EXPECT_EQ(*word(p, size, i),
				  map_flags & MAP_SHARED ? i + 21 : i + 11);
		}
		munmap(p, NR_OLD * size);
		grow_unmap(grow, size);
	}
}

/* What was not touched moves as a reservation, and there is another. */
TEST_F(dontunmap, untouched)
{
	FIXTURE_DATA(grow) * grow = &self->grow;
	const int again = reserved_again(variant->map_flags);
	int n;

	for (n = 0; n < grow->nr_sizes; n++) {
		const unsigned long size = grow->sizes[n];
		const long rsvd = pool_number(size, "resv_hugepages");
		struct grow_state mapped;
		char *p;

		grow_map(_metadata, grow, size, NR_OLD, PROT_READ | PROT_WRITE,
			 variant->map_flags, false);
		ASSERT_EQ(madvise(grow->p, NR_OLD * size, MADV_DONTNEED), 0);
		mapped = grow_state(-1, size);
		p = dontunmap(grow, size, 0, NR_OLD, variant->flags);
		ASSERT_NE(p, MAP_FAILED);
		EXPECT_EQ(pool_number(size, "resv_hugepages"),
			  mapped.rsvd + again * NR_OLD);
		/* The first goes away, and the second has what it needs. */
		munmap(grow->p, NR_OLD * size);
		EXPECT_EQ(pool_number(size, "resv_hugepages"), mapped.rsvd);
		*word(p, size, 1) = 1;
		munmap(p, NR_OLD * size);
		grow_unmap(grow, size);
		EXPECT_EQ(pool_number(size, "resv_hugepages"), rsvd);
	}
}

TEST_F(dontunmap, cgroup)
{
	FIXTURE_DATA(grow) * grow = &self->grow;
	const int again = reserved_again(variant->map_flags);
	const char *reason = make_cgroup(&grow->cgroup, grow->sizes[0]);
	int n;

	if (reason)
		SKIP(return, "%s", reason);
	for (n = 0; n < grow->nr_sizes; n++) {
		const unsigned long size = grow->sizes[n];
		struct grow_state before;
		char *p;

		limit_pages(_metadata, &grow->cgroup, size, 2 * NR_OLD - 1);
		ASSERT_TRUE(cgroup_write(grow->cgroup.path, "cgroup.procs",
					 "0"));
		grow_map(_metadata, grow, size, NR_OLD, PROT_READ | PROT_WRITE,
			 variant->map_flags, false);
		before = grow_state(grow->fd, size);
		if (again) {
			p = dontunmap(grow, size, 0, NR_OLD, 0);
			EXPECT_EQ(p, MAP_FAILED);
			EXPECT_EQ(errno, ENOMEM);
			expect_state(_metadata, &before, grow->fd, size,
				     "beyond the limit of the cgroup");
			EXPECT_EQ(charged_pages(&grow->cgroup, size), NR_OLD);
			limit_pages(_metadata, &grow->cgroup, size, 2 * NR_OLD);
		}
		p = dontunmap(grow, size, 0, NR_OLD, variant->flags);
		ASSERT_NE(p, MAP_FAILED);
		EXPECT_EQ(charged_pages(&grow->cgroup, size),
			  (1 + again) * NR_OLD);
		munmap(grow->p, NR_OLD * size);
		EXPECT_EQ(charged_pages(&grow->cgroup, size), NR_OLD);
		munmap(p, NR_OLD * size);
		grow_unmap(grow, size);
		EXPECT_EQ(charged_pages(&grow->cgroup, size), 0);
		ASSERT_TRUE(cgroup_write(grow->cgroup.root, "cgroup.procs",
					 "0"));
	}
}

/*
 * There must be as many pages again as a private mapping has reserved. If there
 * are not, it is not split either: all of it can still grow. Returns false if
 * that cannot be tested.
 */
static bool not_enough_pages_test(struct __test_metadata *_metadata,
				  FIXTURE_DATA(grow) * self,
				  unsigned long size, int map_flags, int nr)
{
	struct grow_state before;
	struct taken taken;
	char *p;
	int i;

	grow_map(_metadata, self, size, NR_OLD, PROT_READ | PROT_WRITE,
		 map_flags, false);
	if (!take_pages(&taken, size, nr - 1)) {
		grow_unmap(self, size);
		return false;
	}

	before = grow_state(self->fd, size);
	p = dontunmap(self, size, 0, nr, 0);
	if (reserved_again(map_flags)) {
		EXPECT_EQ(p, MAP_FAILED);
		EXPECT_EQ(errno, ENOMEM);
		expect_state(_metadata, &before, self->fd, size,
			     "with not enough pages");
	}
	give_back(&taken);
	if (reserved_again(map_flags)) {
		p = grow_to(self, size, NR_OLD, NR_NEW, MREMAP_MAYMOVE);
		ASSERT_NE(p, MAP_FAILED) {
			TH_LOG("%lu kB pages: a mapping that did not lose its pages was split",
			       size >> 10);
		}
		nr = NR_OLD;
	}
	ASSERT_NE(p, MAP_FAILED);
	for (i = 0; i < nr; i++)
		EXPECT_EQ(*word(p, size, i), i + 1);
	munmap(p, (reserved_again(map_flags) ? NR_NEW : nr) * size);
	grow_unmap(self, size);
	return true;
}

TEST_F(dontunmap, not_enough_pages)
{
	int n, tested = 0;

	for (n = 0; n < self->grow.nr_sizes; n++) {
		tested += not_enough_pages_test(_metadata, &self->grow,
						self->grow.sizes[n],
						variant->map_flags, NR_OLD);
		tested += not_enough_pages_test(_metadata, &self->grow,
						self->grow.sizes[n],
						variant->map_flags, 1);
	}
	if (!tested && __test_passed(_metadata))
		SKIP(return, "Not all pages can be taken");
}

static int dontunmap_in_child(FIXTURE_DATA(grow) * self, unsigned long size,
			      int map_flags)
{
	const long rsvd = pool_number(size, "resv_hugepages");
	char *p = dontunmap(self, size, 0, NR_OLD, 0);
	int i;

	if (p == MAP_FAILED)
		return 1;
	for (i = 0; i < NR_OLD; i++)
		if (*word(p, size, i) != i + 1)
			return 2;
	return pool_number(size, "resv_hugepages") == rsvd ? 0 : 3;
}

/* A child has no reservation, and needs none for what stays. */
TEST_F(dontunmap, forked)
{
	FIXTURE_DATA(grow) * grow = &self->grow;
	int i, n;

	for (n = 0; n < grow->nr_sizes; n++) {
		const unsigned long size = grow->sizes[n];
		struct child child;

		grow_map(_metadata, grow, size, NR_OLD, PROT_READ | PROT_WRITE,
			 variant->map_flags, false);
		child = start_child(_metadata, grow, size, variant->map_flags,
				    dontunmap_in_child);
		end_child(_metadata, &child);
		for (i = 0; i < NR_OLD; i++)
			EXPECT_EQ(*word(grow->p, size, i), i + 1);
		grow_unmap(grow, size);
	}
}

/* Other memory has nothing reserved that could be given back. */
TEST(failed_move_of_other_memory)
{
	const unsigned long span = pud_span(), len = 4 * psize();
	const char *reason = allow_injection();
	unsigned int nth, failures = 0;
	bool injected = true;
	char *arena, *p;
	int i;

	if (reason)
		SKIP(return, "%s", reason);
	for (nth = 1; injected; nth++) {
		arena = mmap(NULL, 2 * span, PROT_NONE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
			     0);
		if (arena == MAP_FAILED)
			SKIP(goto out, "Not enough address space");
		map_memory(_metadata, arena, len, 0);
		memset(arena, 1, len);
		p = mremap_failing(nth, arena, len, len,
				   MREMAP_MAYMOVE | MREMAP_FIXED, arena + span,
				   &injected);
		if (p == MAP_FAILED) {
			EXPECT_EQ(errno, ENOMEM);
			failures++;
			p = arena;
		}
		for (i = 0; i < 4; i++)
			EXPECT_EQ(p[i * psize()], 1);
		munmap(arena, 2 * span);
	}
	EXPECT_GT(failures, 0);
out:
	end_injection();
}

TEST_F_TIMEOUT(dontunmap, nth_allocation, 400)
{
	const char *reason = allow_injection();
	int n;

	if (reason)
		SKIP(return, "%s", reason);
	for (n = 0; n < self->grow.nr_sizes; n++)
		failing_test(_metadata, &self->grow, self->grow.sizes[n],
			     NR_OLD, MREMAP_MAYMOVE | MREMAP_DONTUNMAP |
			     variant->flags, "MREMAP_DONTUNMAP",
			     variant->map_flags);
}

struct missing {
	int uffd;
	unsigned long size;
	unsigned long faults;
};

static void *answer_missing(void *arg)
{
	struct missing *m = arg;
	struct uffd_msg msg;
	char *page = mmap(NULL, m->size, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	*word(page, m->size, 0) = 42;
	while (read(m->uffd, &msg, sizeof(msg)) == sizeof(msg)) {
		struct uffdio_copy copy = {
			.dst = msg.arg.pagefault.address & -m->size,
			.src = (unsigned long)page,
			.len = m->size,
		};

		if (msg.event != UFFD_EVENT_PAGEFAULT)
			break;
		m->faults++;
		if (ioctl(m->uffd, UFFDIO_COPY, &copy))
			break;
	}
	munmap(page, m->size);
	return NULL;
}

/* As a garbage collector: move the pages away, and handle later faults. */
TEST_F(dontunmap, userfaultfd)
{
	FIXTURE_DATA(grow) * grow = &self->grow;
	int i, n, tested = 0;

	if (variant->map_flags & MAP_SHARED)
		SKIP(return, "What is missing is found in the file");
	for (n = 0; n < grow->nr_sizes; n++) {
		struct missing m = { .size = grow->sizes[n] };
		pthread_t thread;
		char *p;

		m.uffd = open_userfaultfd(0, 0);
		if (m.uffd < 0)
			break;
		grow_map(_metadata, grow, m.size, NR_OLD,
			 PROT_READ | PROT_WRITE, variant->map_flags, false);
		ASSERT_EQ(register_missing(m.uffd, grow->p, NR_OLD * m.size), 0);
		p = dontunmap(grow, m.size, 0, NR_OLD, variant->flags);
		ASSERT_NE(p, MAP_FAILED);
		ASSERT_EQ(pthread_create(&thread, NULL, answer_missing, &m), 0);
		for (i = 0; i < NR_OLD; i++) {
			EXPECT_EQ(*word(grow->p, m.size, i), 42);
			EXPECT_EQ(*word(p, m.size, i), i + 1);
		}
		EXPECT_EQ(m.faults, NR_OLD);
		pthread_cancel(thread);
		pthread_join(thread, NULL);
		close(m.uffd);
		munmap(p, NR_OLD * m.size);
		grow_unmap(grow, m.size);
		tested++;
	}
	if (!tested && __test_passed(_metadata))
		SKIP(return, "No userfaultfd: %s", strerror(errno));
}

/*
 * Pages that PUDs map, or several of those, and that are so large that few can
 * be had: as many as were reserved when the system was booted.
 */
#define NR_GIGANTIC	2

FIXTURE(gigantic)
{
	unsigned long size;
	char *p;
};

FIXTURE_VARIANT(gigantic)
{
	int map_flags;
};

FIXTURE_VARIANT_ADD(gigantic, shared)
{
	.map_flags = MAP_SHARED | MAP_ANONYMOUS,
};

FIXTURE_VARIANT_ADD(gigantic, private)
{
	.map_flags = MAP_PRIVATE | MAP_ANONYMOUS,
};

FIXTURE_SETUP(gigantic)
{
	unsigned long sizes[MAX_SIZES];
	int i, nr_sizes = detect_hugetlb_page_sizes(sizes, MAX_SIZES);

	for (i = 0; i < nr_sizes; i++)
		if (sizes[i] >= pud_span() &&
		    available_pages(sizes[i]) >= NR_GIGANTIC)
			self->size = sizes[i];
	if (!self->size)
		SKIP(return, "No %d pages as large as what a PUD maps",
		     NR_GIGANTIC);
	self->p = mmap(NULL, 8 * self->size, PROT_NONE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (self->p == MAP_FAILED)
		SKIP(return, "Not enough address space");
	self->p = (char *)(((unsigned long)self->p + self->size - 1) &
			   -self->size);
}

FIXTURE_TEARDOWN(gigantic)
{
	if (self->size)
		munmap(self->p, 7 * self->size);
}

/* One page, and a second one that comes and goes. */
TEST_F_TIMEOUT(gigantic, grow_and_move, 400)
{
	const unsigned long size = self->size;
	const bool shared = variant->map_flags & MAP_SHARED;
	struct grow_state before = grow_state(-1, size), now;
	char *p = self->p, *q;

	ASSERT_EQ(mmap(p, size, PROT_READ | PROT_WRITE,
		       variant->map_flags | MAP_FIXED | MAP_HUGETLB |
		       __builtin_ctzl(size) << MAP_HUGE_SHIFT, -1, 0), p);
	*p = 1;

	munmap(p + size, size);
	ASSERT_EQ(sys_mremap(p, size, 2 * size, 0, NO_NEW_ADDR), p) {
		TH_LOG("mremap() of %lu kB pages to grow: %s", size >> 10,
		       strerror(errno));
	}
	EXPECT_EQ(pool_number(size, "resv_hugepages"), before.rsvd + 1);
	*(p + size) = 2;
	EXPECT_EQ(pool_number(size, "resv_hugepages"), before.rsvd);
	EXPECT_EQ(sys_mremap(p, 2 * size, size, 0, NO_NEW_ADDR), p);
	EXPECT_EQ(pool_number(size, "free_hugepages"),
		  before.free - (shared ? 2 : 1));

	q = sys_mremap(p, size, 2 * size, MREMAP_MAYMOVE | MREMAP_FIXED,
		       p + 4 * size);
	ASSERT_EQ(q, p + 4 * size);
	EXPECT_TRUE(is_unmapped(p, psize()));
	EXPECT_EQ(*q, 1);
	if (shared)
		EXPECT_EQ(*(q + size), 2);
	EXPECT_EQ(pool_number(size, "resv_hugepages"),
		  before.rsvd + (shared ? 0 : 1));
	EXPECT_EQ(sys_mremap(q, 2 * size, size, 0, NO_NEW_ADDR), q);

	p = sys_mremap(q, 0, size, MREMAP_MAYMOVE, NO_NEW_ADDR);
	if (shared) {
		ASSERT_NE(p, MAP_FAILED);
		EXPECT_EQ(*p, 1);
		munmap(p, size);
	} else {
		EXPECT_EQ(p, MAP_FAILED);
		EXPECT_EQ(errno, EINVAL);
	}

	p = sys_mremap(q, size, size, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
	ASSERT_NE(p, MAP_FAILED);
	EXPECT_EQ(*p, 1);
	EXPECT_EQ(pool_number(size, "resv_hugepages"),
		  before.rsvd + (shared ? 0 : 1));
	if (shared)
		EXPECT_EQ(*q, 1);
	munmap(q, size);
	EXPECT_EQ(*p, 1);
	munmap(p, size);

	now = grow_state(-1, size);
	EXPECT_EQ(now.free, before.free);
	EXPECT_EQ(now.rsvd, before.rsvd);
}

TEST_HARNESS_MAIN
