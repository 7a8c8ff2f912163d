// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of files of huge pages that are mapped by base pages: MAP_BASE_PAGES.
 *
 * A test fills the file through an ordinary mapping of huge pages, and looks at it
 * through one by base pages. At its end the pool has what it had before.
 */

#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/memfd.h>
#include <linux/mman.h>
#include <linux/userfaultfd.h>
#include <numaif.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/auxv.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include "../../../../mm/gup_test.h"
#include "hugetlb_pool.h"

#ifndef MAP_BASE_PAGES
#define MAP_BASE_PAGES	0x200000
#endif

/* Huge pages of the file, and of the pool: a fault may hold an old one for a while */
#define NR_PAGES	2
#define POOL_PAGES	(NR_PAGES + 4)
/* The largest huge pages of which there is a new pool for each test */
#define MAX_RESIZED	(64ul << 20)
/* Zeroing 1 GiB takes a while. */
#define EVENT_SECS	60
#define LIMIT_FILE	"/sys/kernel/debug/folio_map_limit"
#define LIMIT_MAX_FILE	"/sys/kernel/debug/folio_map_limit_max"
#define CORE_PATTERN	"/proc/sys/kernel/core_pattern"
#define CORE_FILE	"/tmp/hugetlb_base_pages.core"

FIXTURE(base_pages)
{
	unsigned long size;	/* of a huge page */
	unsigned long len;	/* of the file */
	unsigned long nr_pages, nr_free, nr_resv, hvo;
	int pagemap_fd;
	int fd;
	int uffd;
	unsigned long limit, limit_max;
	char *huge;		/* the file, by huge pages */
	char *base;		/* the file, by base pages */
};

FIXTURE_VARIANT(base_pages)
{
	unsigned long size;
	bool hvo;		/* the struct pages of tails are read-only */
};

FIXTURE_VARIANT_ADD(base_pages, 2MB)
{
	.size = 2ul << 20,
};

FIXTURE_VARIANT_ADD(base_pages, 2MB_hvo)
{
	.size = 2ul << 20,
	.hvo = true,
};

FIXTURE_VARIANT_ADD(base_pages, 1GB)
{
	.size = 1ul << 30,
};

FIXTURE_VARIANT_ADD(base_pages, 1GB_hvo)
{
	.size = 1ul << 30,
	.hvo = true,
};

static char *map_base(FIXTURE_DATA(base_pages) * self)
{
	return mmap(NULL, self->len, PROT_READ | PROT_WRITE,
		    MAP_SHARED_VALIDATE | MAP_BASE_PAGES, self->fd, 0);
}

/* How often may a folio be mapped? */
static void set_limits(unsigned long limit, unsigned long max)
{
	write_num(LIMIT_FILE, limit);
	write_num(LIMIT_MAX_FILE, max);
}

FIXTURE_SETUP(base_pages)
{
	self->size = variant->size;
	self->len = NR_PAGES * self->size;
	self->fd = -1;
	self->uffd = -1;
	self->pagemap_fd = -1;
	self->limit = 0;
	self->huge = MAP_FAILED;
	self->base = MAP_FAILED;
#if !defined(__x86_64__) && !defined(__aarch64__)
	SKIP(return, "only x86-64 and arm64 have MAP_BASE_PAGES");
#endif
	if (!pool_has(self->size, "nr_hugepages"))
		SKIP(return, "no huge pages of this size");
	if (variant->hvo && !hvo_possible())
		SKIP(return, "no HugeTLB vmemmap optimization");
	self->hvo = hvo_get();
	self->nr_pages = pool_get(self->size, "nr_hugepages");
	if (self->size > MAX_RESIZED) {
		/* They are from boot: later, memory is in pieces. */
		if (self->hvo != variant->hvo)
			SKIP(return, "another boot has the optimization %s",
			     variant->hvo ? "on" : "off");
	} else {
		hvo_set(variant->hvo);
		/* Pages that were there may not be optimized, or may be. */
		pool_set(self->size, "nr_hugepages", 0);
		pool_set(self->size, "nr_hugepages", POOL_PAGES);
	}
	self->nr_free = pool_get(self->size, "free_hugepages");
	self->nr_resv = pool_get(self->size, "resv_hugepages");
	if (self->nr_free < NR_PAGES + self->nr_resv)
		SKIP(return, "%d huge pages cannot be had", NR_PAGES);

	self->pagemap_fd = open("/proc/self/pagemap", O_RDONLY);
	ASSERT_GE(self->pagemap_fd, 0);
	self->fd = memfd_create("base_pages", MFD_ALLOW_SEALING | MFD_HUGETLB |
				__builtin_ctzl(self->size) << MFD_HUGE_SHIFT);
	ASSERT_GE(self->fd, 0);
	ASSERT_EQ(ftruncate(self->fd, self->len), 0);
	self->huge = mmap(NULL, self->len, PROT_READ | PROT_WRITE, MAP_SHARED,
			  self->fd, 0);
	ASSERT_NE(self->huge, MAP_FAILED);
	self->base = map_base(self);
	ASSERT_NE(self->base, MAP_FAILED) {
		TH_LOG("MAP_BASE_PAGES: %s", strerror(errno));
	}
}

FIXTURE_TEARDOWN(base_pages)
{
	if (self->limit)
		set_limits(self->limit, self->limit_max);
	if (self->uffd >= 0)
		close(self->uffd);
	if (self->base != MAP_FAILED)
		EXPECT_EQ(munmap(self->base, self->len), 0);
	if (self->huge != MAP_FAILED)
		EXPECT_EQ(munmap(self->huge, self->len), 0);
	if (self->fd >= 0) {
		close(self->fd);
		EXPECT_EQ(pool_get(self->size, "free_hugepages"), self->nr_free);
		EXPECT_EQ(pool_get(self->size, "resv_hugepages"), self->nr_resv);
	}
	if (self->pagemap_fd >= 0)
		close(self->pagemap_fd);
	if (self->size <= MAX_RESIZED && self->nr_free) {
		pool_set(self->size, "nr_hugepages", self->nr_pages);
		hvo_set(self->hvo);
	}
}

static long value_at(unsigned long offset)
{
	return 0x5a5a000000000000 ^ offset;
}

/*
 * The offset of the sample after the one at @offset. Samples are the first and the
 * last base page of each huge page, and one in each page table.
 */
static unsigned long next_sample(FIXTURE_DATA(base_pages) * self,
				 unsigned long offset)
{
	const unsigned long first = offset - offset % self->size;
	const unsigned long last = first + self->size - psize();

	if (offset == last)
		return offset + psize();
	offset += 509 * psize();
	return offset < last ? offset : last;
}

static long get(char *map, unsigned long offset)
{
	return *(long *)(map + offset);
}

static void put(char *map, unsigned long offset, long value)
{
	*(long *)(map + offset) = value;
}

static void fill(FIXTURE_DATA(base_pages) * self)
{
	unsigned long offset;

	for (offset = 0; offset < self->len; offset = next_sample(self, offset))
		put(self->huge, offset, value_at(offset));
}

static bool populated(FIXTURE_DATA(base_pages) * self, unsigned long offset)
{
	return pagemap_is_populated(self->pagemap_fd, self->base + offset);
}

static unsigned long mapped_bytes(FIXTURE_DATA(base_pages) * self)
{
	unsigned long first = (uintptr_t)self->base / psize(), i, mapped = 0;
	uint64_t entries[512];

	for (i = 0; i < self->len / psize(); i++) {
		if (!(i % 512) &&
		    pread(self->pagemap_fd, entries, sizeof(entries),
			  (first + i) * sizeof(*entries)) != sizeof(entries))
			return 0;
		/* Bit 63: present */
		mapped += entries[i % 512] >> 63 ? psize() : 0;
	}
	return mapped;
}

/*
 * Find the line of /proc/self/smaps that begins with @name, of the VMA that starts
 * at @addr. Returns what follows, or NULL.
 */
static char *smaps_entry(char *addr, const char *name, char *line, size_t len)
{
	char *entry = NULL;
	char start[32];
	FILE *f;

	f = fopen("/proc/self/smaps", "r");
	if (!f)
		return NULL;
	snprintf(start, sizeof(start), "%08lx-", (unsigned long)addr);
	if (check_for_pattern(f, start, line, len) &&
	    check_for_pattern(f, name, line, len))
		entry = line + strlen(name);
	fclose(f);
	return entry;
}

/* A number of kB */
static long smaps_kb(char *addr, const char *name)
{
	char line[512];
	char *entry = smaps_entry(addr, name, line, sizeof(line));

	return entry ? atol(entry) : -1;
}

static bool has_vm_flag(char *addr, const char *flag)
{
	char line[512];
	char *entry = smaps_entry(addr, "VmFlags:", line, sizeof(line));

	return entry && strstr(entry, flag);
}

static long status_kb(const char *name)
{
	char line[512];
	long kb = -1;
	FILE *f;

	f = fopen("/proc/self/status", "r");
	if (!f)
		return -1;
	if (check_for_pattern(f, name, line, sizeof(line)))
		kb = atol(line + strlen(name));
	fclose(f);
	return kb;
}

static sigjmp_buf bus_env;
static int bus_code, bus_lsb;

static void on_bus(int sig, siginfo_t *info, void *context)
{
	bus_code = info->si_code;
	bus_lsb = info->si_addr_lsb;
	siglongjmp(bus_env, 1);
}

/* Does an access to @addr raise SIGBUS? Then bus_code and bus_lsb say how. */
static bool raises_bus(char *addr)
{
	struct sigaction act = {
		.sa_sigaction = on_bus,
		.sa_flags = SA_SIGINFO,
	};

	bus_code = 0;
	sigaction(SIGBUS, &act, NULL);
	if (sigsetjmp(bus_env, 1)) {
		signal(SIGBUS, SIG_DFL);
		return true;
	}
	FORCE_READ(*addr);
	signal(SIGBUS, SIG_DFL);
	return false;
}

/* Both mappings show what is written through either. */
TEST_F(base_pages, contents)
{
	unsigned long offset;

	EXPECT_TRUE(has_vm_flag(self->base, " bp"));
	EXPECT_FALSE(has_vm_flag(self->base, " ht"));
	fill(self);
	for (offset = 0; offset < self->len; offset = next_sample(self, offset))
		ASSERT_EQ(get(self->base, offset), value_at(offset));
	for (offset = 0; offset < self->len; offset = next_sample(self, offset))
		put(self->base, offset, ~value_at(offset));
	for (offset = 0; offset < self->len; offset = next_sample(self, offset))
		ASSERT_EQ(get(self->huge, offset), ~value_at(offset));
}

/* The first access to a hole makes a huge page of zeroes. */
TEST_F(base_pages, hole)
{
	unsigned long offset;

	for (offset = 0; offset < self->len; offset = next_sample(self, offset))
		ASSERT_EQ(get(self->base, offset), 0);
	EXPECT_EQ(pool_get(self->size, "free_hugepages"),
		  self->nr_free - NR_PAGES);
	fill(self);
	for (offset = 0; offset < self->len; offset = next_sample(self, offset))
		ASSERT_EQ(get(self->base, offset), value_at(offset));
}

/*
 * Without a userfaultfd, one fault may map all that one page table can. That is
 * done by PTEs, even if a PMD could map the huge page.
 */
TEST_F(base_pages, no_pmd)
{
	struct page_region found;
	struct pm_scan_arg arg = {
		.size = sizeof(arg),
		.start = (uintptr_t)self->base,
		.end = (uintptr_t)self->base + self->len,
		.vec = (uintptr_t)&found,
		.vec_len = 1,
		.category_mask = PAGE_IS_HUGE,
		.return_mask = PAGE_IS_HUGE,
	};
	unsigned long offset;

	fill(self);
	for (offset = 0; offset < self->len; offset = next_sample(self, offset))
		FORCE_READ(self->base[offset]);
	EXPECT_EQ(ioctl(self->pagemap_fd, PAGEMAP_SCAN, &arg), 0);
	/* It is possible to see it. */
	arg.start = (uintptr_t)self->huge;
	arg.end = arg.start + self->len;
	EXPECT_EQ(ioctl(self->pagemap_fd, PAGEMAP_SCAN, &arg), 1);
}

/* Seals against writing are the same for all mappings. */
TEST_F(base_pages, seals)
{
	const int flags = MAP_SHARED_VALIDATE | MAP_BASE_PAGES;
	char *p;

	fill(self);
	EXPECT_EQ(fcntl(self->fd, F_ADD_SEALS, F_SEAL_WRITE), -1);
	EXPECT_EQ(errno, EBUSY);
	ASSERT_EQ(munmap(self->huge, self->len), 0);
	self->huge = MAP_FAILED;
	EXPECT_EQ(fcntl(self->fd, F_ADD_SEALS, F_SEAL_WRITE), -1);
	EXPECT_EQ(errno, EBUSY);
	ASSERT_EQ(munmap(self->base, self->len), 0);
	self->base = MAP_FAILED;
	ASSERT_EQ(fcntl(self->fd, F_ADD_SEALS, F_SEAL_WRITE), 0);

	EXPECT_EQ(mmap(NULL, self->len, PROT_READ | PROT_WRITE, flags, self->fd,
		       0), MAP_FAILED);
	EXPECT_EQ(errno, EPERM);
	p = mmap(NULL, self->len, PROT_READ, flags, self->fd, 0);
	ASSERT_NE(p, MAP_FAILED);
	EXPECT_EQ(get(p, 0), value_at(0));
	EXPECT_EQ(mprotect(p, self->len, PROT_READ | PROT_WRITE), -1);
	EXPECT_EQ(errno, EACCES);
	munmap(p, self->len);
}

/* What is mapped counts as memory of hugetlb, and not as the RSS. */
TEST_F(base_pages, statistics)
{
	const long rss = status_kb("RssFile:") + status_kb("RssShmem:");
	const long before = status_kb("HugetlbPages:");
	unsigned long mapped;

	fill(self);
	EXPECT_EQ(status_kb("HugetlbPages:") - before, self->len >> 10);
	FORCE_READ(*self->base);
	mapped = mapped_bytes(self);
	EXPECT_GE(mapped, psize());
	EXPECT_EQ(status_kb("HugetlbPages:") - before,
		  (self->len + mapped) >> 10);
	EXPECT_LT(labs(status_kb("RssFile:") + status_kb("RssShmem:") - rss), 256);
	EXPECT_EQ(smaps_kb(self->base, "Rss:"), 0);
	EXPECT_EQ(smaps_kb(self->base, "Pss:"), 0);
	EXPECT_EQ(smaps_kb(self->base, "KernelPageSize:"), psize() >> 10);
	/* It is mapped by huge pages, too. */
	EXPECT_EQ(smaps_kb(self->base, "Shared_Hugetlb:"), mapped >> 10);
	EXPECT_EQ(smaps_kb(self->base, "Private_Hugetlb:"), 0);
	ASSERT_EQ(munmap(self->huge, self->len), 0);
	self->huge = MAP_FAILED;
	EXPECT_EQ(smaps_kb(self->base, "Shared_Hugetlb:"), 0);
	EXPECT_EQ(smaps_kb(self->base, "Private_Hugetlb:"), mapped >> 10);
	ASSERT_EQ(madvise(self->base, self->len, MADV_DONTNEED), 0);
	EXPECT_EQ(status_kb("HugetlbPages:"), before);
	EXPECT_EQ(smaps_kb(self->base, "Private_Hugetlb:"), 0);
}

/* Whatever would take a part of a huge page, or map it otherwise */
TEST_F(base_pages, refused)
{
	char *middle = self->base + self->size / 2, *p, *to;
	const int flags = MAP_SHARED_VALIDATE | MAP_BASE_PAGES;
	unsigned long nodes = 1;
	int fd;

	fill(self);
	FORCE_READ(*middle);

	EXPECT_EQ(munmap(self->base, self->size / 2), -1);
	EXPECT_EQ(errno, EINVAL);
	EXPECT_EQ(mprotect(middle, psize(), PROT_READ), -1);
	EXPECT_EQ(errno, EINVAL);
	EXPECT_EQ(mbind(middle, psize(), MPOL_BIND, &nodes, 64, 0), -1);
	EXPECT_EQ(errno, EINVAL);
	p = mmap(NULL, 2 * self->size, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(p, MAP_FAILED);
	EXPECT_EQ(mremap(self->base, psize(), psize(), MREMAP_MAYMOVE |
			 MREMAP_FIXED, p), MAP_FAILED);
	EXPECT_EQ(errno, EINVAL);
	to = (char *)(((uintptr_t)p + self->size - 1) & -self->size) + psize();
	EXPECT_EQ(mremap(self->base, self->size, self->size, MREMAP_MAYMOVE |
			 MREMAP_FIXED, to), MAP_FAILED);
	EXPECT_EQ(errno, EINVAL);
	/* What was there is still mapped. */
	EXPECT_EQ(madvise(p, 2 * self->size, MADV_NORMAL), 0);
	munmap(p, 2 * self->size);
	EXPECT_EQ(mremap(self->base, self->len, 2 * self->len, MREMAP_MAYMOVE),
		  MAP_FAILED);
	EXPECT_EQ(errno, EFAULT);
	EXPECT_EQ(madvise(self->base, self->len, MADV_COLD), -1);
	EXPECT_EQ(errno, EINVAL);
	EXPECT_EQ(madvise(self->base, self->len, MADV_PAGEOUT), -1);
	EXPECT_EQ(errno, EINVAL);
	EXPECT_EQ(madvise(self->base, self->len, MADV_FREE), -1);
	EXPECT_EQ(errno, EINVAL);
	EXPECT_EQ(madvise(self->base, self->len, MADV_COLLAPSE), -1);
	EXPECT_EQ(errno, EINVAL);
	EXPECT_EQ(madvise(middle, psize(), MADV_GUARD_INSTALL), -1);
	EXPECT_EQ(errno, EINVAL);
	EXPECT_EQ(syscall(__NR_remap_file_pages, self->base, self->size, 0,
			  self->size / psize(), 0), -1);
	EXPECT_EQ(errno, EINVAL);

	EXPECT_EQ(mmap(NULL, self->size, PROT_READ, flags, self->fd, psize()),
		  MAP_FAILED);
	EXPECT_EQ(errno, EINVAL);
	fd = memfd_create("small", 0);
	ASSERT_EQ(ftruncate(fd, self->size), 0);
	EXPECT_EQ(mmap(NULL, self->size, PROT_READ, flags, fd, 0), MAP_FAILED);
	EXPECT_EQ(errno, EOPNOTSUPP);
	close(fd);

	/* MAP_SHARED has always ignored flags that it does not know. */
	p = mmap(NULL, self->size, PROT_READ, MAP_SHARED | MAP_BASE_PAGES,
		 self->fd, 0);
	ASSERT_NE(p, MAP_FAILED);
	EXPECT_FALSE(has_vm_flag(p, " bp"));
	EXPECT_TRUE(has_vm_flag(p, " ht"));
	munmap(p, self->size);

	/* Nothing has changed. */
	EXPECT_EQ(get(self->base, 0), value_at(0));
	EXPECT_TRUE(kpageflags_of(pfn_of(self->base)) & KPF_HUGE);
}

/* mmap() does not grow the file, and there is nothing beyond its end. */
TEST_F(base_pages, end_of_file)
{
	char *p;

	fill(self);
	p = mmap(NULL, 2 * self->len, PROT_READ | PROT_WRITE,
		 MAP_SHARED_VALIDATE | MAP_BASE_PAGES, self->fd, 0);
	ASSERT_NE(p, MAP_FAILED);
	EXPECT_EQ(lseek(self->fd, 0, SEEK_END), self->len);
	EXPECT_FALSE(raises_bus(p + self->len - 1));
	EXPECT_TRUE(raises_bus(p + self->len));
	EXPECT_EQ(bus_code, BUS_ADRERR);
	munmap(p, 2 * self->len);

	/* All page tables lose what is cut off. */
	FORCE_READ(self->base[self->size]);
	ASSERT_EQ(ftruncate(self->fd, self->size), 0);
	EXPECT_FALSE(populated(self, self->size));
	EXPECT_TRUE(raises_bus(self->base + self->size));
	EXPECT_EQ(get(self->base, 0), value_at(0));
	ASSERT_EQ(ftruncate(self->fd, self->len), 0);
	EXPECT_EQ(self->base[self->size], 0);
}

TEST_F(base_pages, punch)
{
	fill(self);
	FORCE_READ(*self->base);
	FORCE_READ(self->base[psize()]);
	FORCE_READ(self->base[self->size]);

	/* A part: zeroes, and another fault */
	ASSERT_EQ(fallocate(self->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			    0, psize()), 0);
	EXPECT_FALSE(populated(self, 0));
	EXPECT_TRUE(populated(self, psize()));
	EXPECT_EQ(get(self->base, 0), 0);

	ASSERT_EQ(fallocate(self->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			    0, self->size), 0);
	EXPECT_FALSE(populated(self, psize()));
	EXPECT_TRUE(populated(self, self->size));
	EXPECT_EQ(get(self->base, self->size), value_at(self->size));
	EXPECT_EQ(pool_get(self->size, "free_hugepages"),
		  self->nr_free - NR_PAGES + 1);
	EXPECT_EQ(self->base[509 * psize()], 0);
}

/* A child has the mapping, and finds what is in the file. */
TEST_F(base_pages, fork)
{
	unsigned long offset;
	int status;
	pid_t pid;

	fill(self);
	FORCE_READ(*self->base);
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		for (offset = 0; offset < self->len; offset = next_sample(self, offset))
			if (get(self->base, offset) != value_at(offset))
				_exit(1);
		put(self->base, 0, 0);
		_exit(!has_vm_flag(self->base, " bp"));
	}
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	EXPECT_EQ(status, 0);
	EXPECT_EQ(get(self->base, 0), 0);
}

static bool open_uffd(FIXTURE_DATA(base_pages) * self, bool wp, bool minor)
{
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = minor ? UFFD_FEATURE_MINOR_HUGETLBFS : 0,
	};

	self->uffd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (self->uffd < 0 || ioctl(self->uffd, UFFDIO_API, &api))
		return false;
	return !uffd_register(self->uffd, self->base, self->len, false, wp, minor);
}

static int uffd_continue(FIXTURE_DATA(base_pages) * self, unsigned long offset,
			 unsigned long len)
{
	struct uffdio_continue cont = {
		.range = {
			.start = (uintptr_t)self->base + offset,
			.len = len,
		},
	};

	return ioctl(self->uffd, UFFDIO_CONTINUE, &cont) ? -errno : 0;
}

/* Returns the address of the next fault, or 0 if there is none in @secs. */
static unsigned long next_event(FIXTURE_DATA(base_pages) * self, __u64 flag,
				int secs)
{
	struct pollfd pollfd = { .fd = self->uffd, .events = POLLIN };
	struct uffd_msg msg;

	if (poll(&pollfd, 1, secs * 1000) != 1 ||
	    read(self->uffd, &msg, sizeof(msg)) != sizeof(msg) ||
	    msg.event != UFFD_EVENT_PAGEFAULT ||
	    !(msg.arg.pagefault.flags & flag))
		return 0;
	return msg.arg.pagefault.address;
}

struct access {
	long *addr;
	bool write;
	long value;
	bool done;
};

static void *access_memory(void *arg)
{
	struct access *access = arg;

	if (access->write)
		__atomic_store_n(access->addr, access->value, __ATOMIC_RELAXED);
	else
		access->value = __atomic_load_n(access->addr, __ATOMIC_RELAXED);
	__atomic_store_n(&access->done, true, __ATOMIC_RELEASE);
	return NULL;
}

/* Each base page has an event of its own, a hole as well. */
TEST_F(base_pages, minor)
{
	struct access access = {};
	pthread_t thread;
	unsigned long offset;

	if (!open_uffd(self, false, true))
		SKIP(return, "no userfaultfd");
	/* The second huge page is a hole. */
	for (offset = 0; offset < self->size; offset += psize())
		self->huge[offset] = 1;
	EXPECT_EQ(uffd_continue(self, self->size, psize()), -EFAULT);

	for (offset = 0; offset < self->len; offset += self->size / 2) {
		access = (struct access) { .addr = (long *)(self->base + offset) };
		ASSERT_EQ(pthread_create(&thread, NULL, access_memory, &access), 0);
		ASSERT_EQ(next_event(self, UFFD_PAGEFAULT_FLAG_MINOR, EVENT_SECS),
			  (uintptr_t)self->base + offset);
		EXPECT_FALSE(__atomic_load_n(&access.done, __ATOMIC_ACQUIRE));
		put(self->huge, offset, value_at(offset));
		EXPECT_EQ(uffd_continue(self, offset, psize()), 0);
		ASSERT_EQ(pthread_join(thread, NULL), 0);
		EXPECT_EQ(access.value, value_at(offset));
		EXPECT_TRUE(populated(self, offset));
		EXPECT_FALSE(populated(self, offset + psize()));
		EXPECT_EQ(uffd_continue(self, offset, psize()), -EEXIST);
	}
	EXPECT_EQ(uffd_continue(self, self->len, psize()), -ENOENT);

	/* Several at once, and what was punched again */
	EXPECT_EQ(uffd_continue(self, psize(), 8 * psize()), 0);
	EXPECT_TRUE(populated(self, 8 * psize()));
	ASSERT_EQ(fallocate(self->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			    8 * psize(), psize()), 0);
	access = (struct access) { .addr = (long *)(self->base + 8 * psize()) };
	ASSERT_EQ(pthread_create(&thread, NULL, access_memory, &access), 0);
	ASSERT_EQ(next_event(self, UFFD_PAGEFAULT_FLAG_MINOR, EVENT_SECS),
		  (uintptr_t)self->base + 8 * psize());
	EXPECT_EQ(uffd_continue(self, 8 * psize(), psize()), 0);
	ASSERT_EQ(pthread_join(thread, NULL), 0);
	EXPECT_EQ(access.value, 0);
}

TEST_F(base_pages, userfaultfd_refused)
{
	struct uffdio_copy copy = {
		.dst = (uintptr_t)self->base,
		.len = psize(),
	};
	struct uffdio_zeropage zero = {
		.range = { .start = (uintptr_t)self->base, .len = psize() },
	};
	uint64_t ioctls;
	char *page;

	if (!open_uffd(self, false, true))
		SKIP(return, "no userfaultfd");
	page = mmap(NULL, psize(), PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(page, MAP_FAILED);
	copy.src = (uintptr_t)page;
	EXPECT_EQ(ioctl(self->uffd, UFFDIO_COPY, &copy), -1);
	EXPECT_EQ(errno, EINVAL);
	EXPECT_EQ(ioctl(self->uffd, UFFDIO_ZEROPAGE, &zero), -1);
	EXPECT_EQ(errno, EINVAL);
	EXPECT_EQ(uffd_unregister(self->uffd, self->base + psize(), psize()),
		  -EINVAL);
	EXPECT_EQ(uffd_unregister(self->uffd, self->base, psize()), -EINVAL);
	EXPECT_EQ(uffd_unregister(self->uffd, self->base, self->len), 0);
	EXPECT_EQ(uffd_register(self->uffd, self->base, self->len, true, false,
				false), -EINVAL);
	EXPECT_EQ(uffd_register(self->uffd, self->base + psize(), psize(), false,
				false, true), -EINVAL);
	EXPECT_EQ(uffd_register_with_ioctls(self->uffd, self->base, self->len,
					    false, false, true, &ioctls), 0);
	EXPECT_FALSE(ioctls & BIT_ULL(_UFFDIO_COPY));
	EXPECT_FALSE(ioctls & BIT_ULL(_UFFDIO_ZEROPAGE));
	EXPECT_TRUE(ioctls & BIT_ULL(_UFFDIO_CONTINUE));
}

/* One base page is protected: only writes to it have events. */
TEST_F(base_pages, write_protected)
{
	struct uffdio_writeprotect wp = {
		.range = { .len = psize() },
		.mode = UFFDIO_WRITEPROTECT_MODE_WP,
	};
	struct access access = { .write = true, .value = 1 };
	pthread_t thread;

	if (!open_uffd(self, true, false))
		SKIP(return, "no userfaultfd");
	fill(self);
	FORCE_READ(*self->base);
	FORCE_READ(self->base[psize()]);
	wp.range.start = (uintptr_t)self->base + psize();
	ASSERT_EQ(ioctl(self->uffd, UFFDIO_WRITEPROTECT, &wp), 0);
	put(self->base, 0, 1);
	access.addr = (long *)(self->base + psize());
	ASSERT_EQ(pthread_create(&thread, NULL, access_memory, &access), 0);
	ASSERT_EQ(next_event(self, UFFD_PAGEFAULT_FLAG_WP, EVENT_SECS),
		  (uintptr_t)self->base + psize());
	EXPECT_NE(get(self->huge, psize()), 1);
	wp.mode = 0;
	ASSERT_EQ(ioctl(self->uffd, UFFDIO_WRITEPROTECT, &wp), 0);
	ASSERT_EQ(pthread_join(thread, NULL), 0);
	EXPECT_EQ(get(self->huge, psize()), 1);

	/* What is protected goes away with the data that it protects. */
	wp.mode = UFFDIO_WRITEPROTECT_MODE_WP;
	ASSERT_EQ(ioctl(self->uffd, UFFDIO_WRITEPROTECT, &wp), 0);
	ASSERT_EQ(ftruncate(self->fd, 0), 0);
	ASSERT_EQ(ftruncate(self->fd, self->len), 0);
	access.done = false;
	ASSERT_EQ(pthread_create(&thread, NULL, access_memory, &access), 0);
	EXPECT_EQ(next_event(self, UFFD_PAGEFAULT_FLAG_WP, 1), 0);
	if (!__atomic_load_n(&access.done, __ATOMIC_ACQUIRE)) {
		wp.mode = 0;
		ioctl(self->uffd, UFFDIO_WRITEPROTECT, &wp);
	}
	ASSERT_EQ(pthread_join(thread, NULL), 0);
}

/* One base page is not accessible: a read of it has an event. */
TEST_F(base_pages, read_write_protected)
{
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = UFFD_FEATURE_RWP,
	};
	struct uffdio_register reg = {
		.range = { .start = (uintptr_t)self->base, .len = self->len },
		.mode = UFFDIO_REGISTER_MODE_RWP,
	};
	struct uffdio_rwprotect rwp = {
		.range = { .len = psize() },
		.mode = UFFDIO_RWPROTECT_MODE_RWP,
	};
	struct access access = {};
	pthread_t thread;

	self->uffd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (self->uffd < 0 || ioctl(self->uffd, UFFDIO_API, &api))
		SKIP(return, "no userfaultfd that protects from reads");
	ASSERT_EQ(ioctl(self->uffd, UFFDIO_REGISTER, &reg), 0);
	fill(self);
	FORCE_READ(*self->base);
	FORCE_READ(self->base[psize()]);
	put(self->huge, psize(), value_at(psize()));
	rwp.range.start = (uintptr_t)self->base + psize();
	ASSERT_EQ(ioctl(self->uffd, UFFDIO_RWPROTECT, &rwp), 0);
	EXPECT_EQ(get(self->base, 0), value_at(0));
	access.addr = (long *)(self->base + psize());
	ASSERT_EQ(pthread_create(&thread, NULL, access_memory, &access), 0);
	EXPECT_EQ(next_event(self, UFFD_PAGEFAULT_FLAG_RWP, EVENT_SECS),
		  (uintptr_t)self->base + psize());
	EXPECT_FALSE(__atomic_load_n(&access.done, __ATOMIC_ACQUIRE));
	rwp.mode = 0;
	ASSERT_EQ(ioctl(self->uffd, UFFDIO_RWPROTECT, &rwp), 0);
	ASSERT_EQ(pthread_join(thread, NULL), 0);
	EXPECT_EQ(access.value, value_at(psize()));
}

/* Each PTE counts for the limit of mappings of a folio. */
TEST_F(base_pages, limit)
{
	const unsigned long nr = self->size / psize();
	char *other;

	if (access(LIMIT_FILE, W_OK))
		SKIP(return, "needs debugfs, and a kernel with CONFIG_DEBUG_VM");
	self->limit = read_num(LIMIT_FILE);
	self->limit_max = read_num(LIMIT_MAX_FILE);
	fill(self);
	ASSERT_EQ(munmap(self->huge, self->len), 0);
	self->huge = MAP_FAILED;
	if (!open_uffd(self, false, true))
		SKIP(return, "no userfaultfd");
	other = map_base(self);
	ASSERT_NE(other, MAP_FAILED);
	ASSERT_EQ(uffd_continue(self, 0, self->size), 0);
	set_limits(nr, nr);
	EXPECT_TRUE(raises_bus(other));
	EXPECT_EQ(bus_code, BUS_ADRERR);
	EXPECT_EQ(uffd_register(self->uffd, other, self->len, false, false, true),
		  0);
	EXPECT_EQ(uffd_continue(self, other - self->base, psize()), -EOVERFLOW);
	EXPECT_EQ(uffd_continue(self, self->size, psize()), 0);
	set_limits(self->limit, self->limit_max);
	EXPECT_EQ(uffd_continue(self, other - self->base, psize()), 0);
	EXPECT_EQ(get(other, 0), value_at(0));
	EXPECT_EQ(munmap(other, self->len), 0);
}

static void dump_core(FIXTURE_DATA(base_pages) * self, const char *filter)
{
	const struct rlimit all = { RLIM_INFINITY, RLIM_INFINITY };
	int fd = open("/proc/self/coredump_filter", O_WRONLY);

	if (fd >= 0 && write(fd, filter, strlen(filter)) > 0 &&
	    !setrlimit(RLIMIT_CORE, &all) && !prctl(PR_SET_DUMPABLE, 1)) {
		signal(SIGQUIT, SIG_DFL);
		raise(SIGQUIT);
	}
	_exit(1);
}

/* A program header of a 64-bit ELF file */
struct core_part {
	uint32_t type, flags;
	uint64_t offset, vaddr, paddr, filesz, memsz, align;
};

/* Find what a core has of the VMA at @addr. */
static bool find_in_core(int fd, char *addr, struct core_part *part)
{
	uint64_t at;
	uint16_t nr;

	/* e_phoff and e_phnum */
	if (pread(fd, &at, sizeof(at), 32) != sizeof(at) ||
	    pread(fd, &nr, sizeof(nr), 56) != sizeof(nr))
		return false;
	for (; nr; nr--, at += sizeof(*part)) {
		if (pread(fd, part, sizeof(*part), at) != sizeof(*part))
			return false;
		/* PT_LOAD */
		if (part->type == 1 && part->vaddr == (uintptr_t)addr)
			return true;
	}
	return false;
}

/* Is the mapping in the core, whole or not at all? Its contents, if it is. */
static bool core_has(FIXTURE_DATA(base_pages) * self, bool whole)
{
	int fd = open(CORE_FILE, O_RDONLY);
	struct core_part part;
	unsigned long offset;
	bool right;
	long value;

	right = find_in_core(fd, self->base, &part) &&
		part.filesz == (whole ? self->len : 0);
	for (offset = 0; right && whole && offset < self->len;
	     offset = next_sample(self, offset))
		right = pread(fd, &value, sizeof(value), part.offset + offset) ==
			sizeof(value) && value == value_at(offset);
	close(fd);
	unlink(CORE_FILE);
	return right;
}

/* Bit 6 of the filter: shared memory of hugetlb */
TEST_F(base_pages, core_dump)
{
	static const char * const filters[] = { "0x33", "0x73" };
	char pattern[256] = {};
	int i, status, fd;
	pid_t pid;

	if (self->size > MAX_RESIZED)
		SKIP(return, "the core would be large");
	fd = open(CORE_PATTERN, O_RDWR);
	ASSERT_GE(fd, 0);
	ASSERT_GT(read(fd, pattern, sizeof(pattern) - 1), 0);
	fill(self);
	for (i = 0; i < 2; i++) {
		ASSERT_GT(pwrite(fd, CORE_FILE, strlen(CORE_FILE), 0), 0);
		pid = fork();
		if (!pid)
			dump_core(self, filters[i]);
		EXPECT_EQ(waitpid(pid, &status, 0), pid);
		EXPECT_GT(pwrite(fd, pattern, strlen(pattern), 0), 0);
		EXPECT_TRUE(WIFSIGNALED(status) && WCOREDUMP(status));
		EXPECT_TRUE(core_has(self, i));
	}
	close(fd);
}

/*
 * Post-copy is over: map the file by huge pages again, where it was. Nothing is
 * copied or allocated, and what is pinned stays.
 */
TEST_F(base_pages, collapse)
{
	unsigned long offset, pfn;
	char *p;

	fill(self);
	for (offset = 0; offset < self->len; offset = next_sample(self, offset))
		FORCE_READ(self->base[offset]);
	pfn = pfn_of(self->base);
	p = mmap(self->base, self->len, PROT_READ | PROT_WRITE,
		 MAP_SHARED | MAP_FIXED, self->fd, 0);
	ASSERT_EQ(p, self->base);
	EXPECT_TRUE(has_vm_flag(self->base, " ht"));
	for (offset = 0; offset < self->len; offset = next_sample(self, offset))
		ASSERT_EQ(get(self->base, offset), value_at(offset));
	EXPECT_EQ(pfn_of(self->base), pfn);
}

static unsigned long free_on_node(FIXTURE_DATA(base_pages) * self, int node)
{
	char path[128];

	snprintf(path, sizeof(path),
		 "/sys/devices/system/node/node%d/hugepages/hugepages-%lukB/free_hugepages",
		 node, self->size >> 10);
	return access(path, R_OK) ? 0 : read_num(path);
}

/* Pages that were not mapped as a whole move between nodes as a whole. */
TEST_F_TIMEOUT(base_pages, migrate, 180)
{
	unsigned long offset, pfn, nodes = 2;
	int node, target = 1, status = -1;
	void *addr = self->base;

	fill(self);
	for (offset = 0; offset < self->len; offset = next_sample(self, offset))
		FORCE_READ(self->base[offset]);
	pfn = pfn_of(self->base);
	if (move_pages(0, 1, &addr, NULL, &node, 0) || node < 0)
		SKIP(return, "no node");
	target = !node;
	nodes = 1ul << target;
	if (!free_on_node(self, target))
		SKIP(return, "no huge page on another node");
	ASSERT_EQ(move_pages(0, 1, &addr, &target, &status, MPOL_MF_MOVE), 0);
	/* Others might map it: two base pages are enough to look like that. */
	EXPECT_EQ(status, -EACCES);
	ASSERT_EQ(move_pages(0, 1, &addr, &target, &status, MPOL_MF_MOVE_ALL), 0);
	EXPECT_EQ(status, target);
	EXPECT_NE(pfn_of(self->base), pfn);
	for (offset = 0; offset < self->len; offset = next_sample(self, offset)) {
		ASSERT_EQ(get(self->base, offset), value_at(offset));
		ASSERT_EQ(get(self->huge, offset), value_at(offset));
	}
	if (free_on_node(self, target))
		ASSERT_EQ(mbind(self->base, self->len, MPOL_BIND, &nodes, 64,
				MPOL_MF_MOVE_ALL), 0);
}

/* A memory error costs a mapping by base pages one of them. */
TEST_F(base_pages, poison)
{
	char *failed = self->base + 7 * psize();
	unsigned long pfn, offset;
	char byte;

	if (!can_fail_memory())
		SKIP(return, "no hwpoison-inject");
	prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_LATE, 0, 0);
	fill(self);
	for (offset = 0; offset < self->len; offset = next_sample(self, offset))
		FORCE_READ(self->base[offset]);
	FORCE_READ(*failed);
	pfn = pfn_of(self->base);
	ASSERT_EQ(fail_memory(pfn + 7), 0);
	EXPECT_TRUE(raises_bus(failed));
	EXPECT_EQ(bus_code, BUS_MCEERR_AR);
	EXPECT_EQ(bus_lsb, __builtin_ctzl(psize()));
	/* A leaf cannot map a part of it. */
	EXPECT_TRUE(raises_bus(self->huge + self->size / 2));
	EXPECT_EQ(pread(self->fd, &byte, 1, 7 * psize()), -1);
	EXPECT_EQ(errno, EIO);
	for (offset = 0; offset < self->len; offset = next_sample(self, offset)) {
		ASSERT_TRUE(populated(self, offset));
		ASSERT_EQ(get(self->base, offset), value_at(offset));
	}

	/* Faults map what is left, the first page as well. */
	ASSERT_EQ(madvise(self->base, self->len, MADV_DONTNEED), 0);
	for (offset = 0; offset < self->len; offset = next_sample(self, offset))
		ASSERT_EQ(get(self->base, offset), value_at(offset));
	EXPECT_FALSE(populated(self, 7 * psize()));
	EXPECT_TRUE(raises_bus(failed));
	EXPECT_EQ(bus_code, BUS_MCEERR_AR);
	EXPECT_EQ(bus_lsb, __builtin_ctzl(psize()));

	/* A second one, whose struct page has the flags of the folio */
	ASSERT_EQ(fail_memory(pfn), 0);
	EXPECT_TRUE(raises_bus(self->base));
	EXPECT_EQ(bus_code, BUS_MCEERR_AR);
	EXPECT_TRUE(raises_bus(failed));
	for (offset = next_sample(self, 0); offset < self->len;
	     offset = next_sample(self, offset))
		ASSERT_EQ(get(self->base, offset), value_at(offset));

	/* The memory is good again: what is still in a file cannot be. */
	ASSERT_EQ(ftruncate(self->fd, 0), 0);
	EXPECT_EQ(pool_write("/sys/kernel/debug/hwpoison/unpoison-pfn", pfn), 0);
}

/* A page that has failed cannot be mapped, and an access to it is no event. */
TEST_F(base_pages, poison_minor)
{
	unsigned long pfn, offset;

	if (!can_fail_memory())
		SKIP(return, "no hwpoison-inject");
	prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_LATE, 0, 0);
	fill(self);
	for (offset = 0; offset < 16 * psize(); offset += psize())
		put(self->huge, offset, value_at(offset));
	FORCE_READ(*self->base);
	pfn = pfn_of(self->base);
	ASSERT_EQ(madvise(self->base, self->len, MADV_DONTNEED), 0);
	if (!open_uffd(self, false, true))
		SKIP(return, "no userfaultfd");
	ASSERT_EQ(fail_memory(pfn + 7), 0);

	/* The pages before it are mapped. */
	EXPECT_EQ(uffd_continue(self, 6 * psize(), 4 * psize()), -EAGAIN);
	EXPECT_EQ(uffd_continue(self, 6 * psize(), psize()), -EEXIST);
	EXPECT_EQ(uffd_continue(self, 7 * psize(), psize()), -EIO);
	EXPECT_EQ(uffd_continue(self, 8 * psize(), 8 * psize()), 0);
	for (offset = 6 * psize(); offset < 16 * psize(); offset += psize())
		if (offset != 7 * psize())
			EXPECT_EQ(get(self->base, offset), value_at(offset));
	EXPECT_FALSE(populated(self, 7 * psize()));
	EXPECT_TRUE(raises_bus(self->base + 7 * psize()));
	EXPECT_EQ(bus_code, BUS_MCEERR_AR);
	EXPECT_EQ(next_event(self, UFFD_PAGEFAULT_FLAG_MINOR, 0), 0);

	ASSERT_EQ(ftruncate(self->fd, 0), 0);
	EXPECT_EQ(pool_write("/sys/kernel/debug/hwpoison/unpoison-pfn", pfn), 0);
}

static void *populate_page(void *addr)
{
	madvise(addr, psize(), MADV_POPULATE_READ);
	return NULL;
}

/* No fault maps a page while it fails, if another one has failed before. */
TEST_F_TIMEOUT(base_pages, poison_against_fault, 120)
{
	const int rounds = 20;
	unsigned long pfn;
	pthread_t thread;
	int i, ret;

	if (!can_fail_memory())
		SKIP(return, "no hwpoison-inject");
	prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_LATE, 0, 0);
	fill(self);
	FORCE_READ(*self->base);
	pfn = pfn_of(self->base);
	ASSERT_EQ(fail_memory(pfn), 0);
	for (i = 1; i <= rounds; i++) {
		char *addr = self->base + i * psize();

		ASSERT_EQ(madvise(self->base, self->len, MADV_DONTNEED), 0);
		ASSERT_EQ(pthread_create(&thread, NULL, populate_page, addr), 0);
		usleep(i * 50);
		ret = fail_memory(pfn + i);
		/* If no page of the folio was mapped */
		if (ret != -EHWPOISON)
			EXPECT_EQ(ret, 0);
		ASSERT_EQ(pthread_join(thread, NULL), 0);
		ASSERT_TRUE(raises_bus(addr))
			TH_LOG("page %d is mapped after it has failed", i);
		EXPECT_EQ(bus_code, BUS_MCEERR_AR);
	}
	for (; i < 2 * rounds; i++)
		EXPECT_FALSE(raises_bus(self->base + i * psize()));

	ASSERT_EQ(ftruncate(self->fd, 0), 0);
	EXPECT_EQ(pool_write("/sys/kernel/debug/hwpoison/unpoison-pfn", pfn), 0);
}

/* That good base pages stay mapped does not hide that the folio is pinned. */
TEST_F(base_pages, poison_pinned)
{
	struct pin_longterm_test args = {
		.addr = (unsigned long)self->base,
		.size = psize(),
	};
	unsigned long pfn;
	int fd;

	if (!can_fail_memory())
		SKIP(return, "no hwpoison-inject");
	fd = open("/sys/kernel/debug/gup_test", O_RDWR);
	if (fd < 0)
		SKIP(return, "no gup_test");
	prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_LATE, 0, 0);
	fill(self);
	ASSERT_EQ(ioctl(fd, PIN_LONGTERM_TEST_START, &args), 0);
	pfn = pfn_of(self->base);
	FORCE_READ(self->base[psize()]);
	FORCE_READ(self->base[2 * psize()]);
	EXPECT_EQ(fail_memory(pfn), -EBUSY);
	EXPECT_EQ(fail_memory(pfn + 1), -EBUSY);
	EXPECT_EQ(ioctl(fd, PIN_LONGTERM_TEST_STOP), 0);
	EXPECT_EQ(fail_memory(pfn + 2), 0);
	EXPECT_TRUE(raises_bus(self->base));
	EXPECT_TRUE(raises_bus(self->base + psize()));
	EXPECT_TRUE(raises_bus(self->base + 2 * psize()));
	close(fd);

	ASSERT_EQ(ftruncate(self->fd, 0), 0);
	EXPECT_EQ(pool_write("/sys/kernel/debug/hwpoison/unpoison-pfn", pfn), 0);
}

/* A process that wants to know of errors early is told which base page it was. */
TEST_F(base_pages, poison_early)
{
	struct sigaction act = {
		.sa_sigaction = on_bus,
		.sa_flags = SA_SIGINFO,
	};
	unsigned long pfn;

	if (!can_fail_memory())
		SKIP(return, "no hwpoison-inject");
	prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0);
	fill(self);
	ASSERT_EQ(munmap(self->huge, self->len), 0);
	self->huge = MAP_FAILED;
	FORCE_READ(*self->base);
	pfn = pfn_of(self->base);
	bus_code = 0;
	sigaction(SIGBUS, &act, NULL);
	if (!sigsetjmp(bus_env, 1))
		fail_memory(pfn);
	signal(SIGBUS, SIG_DFL);
	EXPECT_EQ(bus_code, BUS_MCEERR_AO);
	EXPECT_EQ(bus_lsb, __builtin_ctzl(psize()));

	ASSERT_EQ(ftruncate(self->fd, 0), 0);
	EXPECT_EQ(pool_write("/sys/kernel/debug/hwpoison/unpoison-pfn", pfn), 0);
}

#ifdef __aarch64__
static bool allow_tags(char *map, unsigned long len)
{
	return getauxval(AT_HWCAP2) & HWCAP2_MTE &&
	       !mprotect(map, len, PROT_READ | PROT_WRITE | PROT_MTE);
}

static void set_tag(char *addr, uintptr_t tag)
{
	asm volatile(".arch armv8.5-a+memtag\n\tstg %0, [%0]"
		     : : "r" ((uintptr_t)addr | tag << 56) : "memory");
}

static int get_tag(char *addr)
{
	uintptr_t tagged = (uintptr_t)addr;

	asm volatile(".arch armv8.5-a+memtag\n\tldg %0, [%0]"
		     : "+r" (tagged) : : "memory");
	return tagged >> 56 & 15;
}
#else
static bool allow_tags(char *map, unsigned long len)
{
	return false;
}

static void set_tag(char *addr, uintptr_t tag)
{
}

static int get_tag(char *addr)
{
	return 0;
}
#endif

/*
 * The first access to a huge page gives new memory tags to all of it, and to
 * nothing else, whichever base page is accessed.
 */
TEST_F(base_pages, tagged)
{
	unsigned long offset;

	if (!allow_tags(self->huge, self->len) || !allow_tags(self->base, self->len))
		SKIP(return, "no memory tags");
	for (offset = 0; offset < self->len; offset += psize())
		set_tag(self->huge + offset, 3);
	ASSERT_EQ(fallocate(self->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			    0, self->size), 0);
	FORCE_READ(self->base[self->size - psize()]);
	for (offset = 0; offset < self->size; offset += psize())
		ASSERT_EQ(get_tag(self->base + offset), 0);
	for (; offset < self->len; offset += psize())
		ASSERT_EQ(get_tag(self->base + offset), 3);
	set_tag(self->base + psize(), 5);
	EXPECT_EQ(get_tag(self->huge + psize()), 5);
}

static void *read_page(void *arg)
{
	raises_bus(arg);
	return NULL;
}

/* A fault in a hole does not fill it behind the end of the file. */
TEST_F_TIMEOUT(base_pages, fill_against_truncate, 120)
{
	const int rounds = self->size > MAX_RESIZED ? 2 : 100;
	pthread_t thread;
	int i;

	for (i = 0; i < rounds; i++) {
		ASSERT_EQ(ftruncate(self->fd, self->size), 0);
		ASSERT_EQ(ftruncate(self->fd, self->len), 0);
		ASSERT_EQ(pthread_create(&thread, NULL, read_page,
					 self->base + self->size), 0);
		usleep(i * 50);
		ASSERT_EQ(ftruncate(self->fd, self->size), 0);
		ASSERT_EQ(pthread_join(thread, NULL), 0);
		ASSERT_EQ(pool_get(self->size, "free_hugepages"), self->nr_free);
	}
}

struct race {
	char *base;
	unsigned long len;
	bool stop;
	unsigned long rounds;
};

static void *fault_again(void *arg)
{
	struct race *race = arg;
	unsigned long i = 0;

	while (!__atomic_load_n(&race->stop, __ATOMIC_RELAXED)) {
		char *addr = race->base + i++ * 61 * psize() % race->len;

		(void)__atomic_load_n(addr, __ATOMIC_RELAXED);
		__atomic_store_n(addr, 1, __ATOMIC_RELAXED);
		if (!(i % 64))
			madvise(race->base + i * psize() % race->len, psize(),
				MADV_DONTNEED);
		__atomic_fetch_add(&race->rounds, 1, __ATOMIC_RELAXED);
	}
	return NULL;
}

/* Faults against holes, through both kinds of mappings */
TEST_F_TIMEOUT(base_pages, races, 120)
{
	struct race race = { .base = self->base, .len = self->len };
	pthread_t threads[3];
	int i, rounds = self->size > MAX_RESIZED ? 8 : 400;
	const char *soak = getenv("BASE_PAGES_ROUNDS");

	if (soak)
		rounds = atoi(soak);
	if (self->nr_free < POOL_PAGES)
		SKIP(return, "%d huge pages cannot be had", POOL_PAGES);

	for (i = 0; i < 3; i++)
		ASSERT_EQ(pthread_create(&threads[i], NULL, fault_again, &race), 0);
	for (i = 0; i < rounds; i++) {
		const bool part = i % 4 == 3;

		EXPECT_EQ(fallocate(self->fd, FALLOC_FL_PUNCH_HOLE |
				    FALLOC_FL_KEEP_SIZE, 0,
				    part ? 3 * psize() : self->size), 0);
		if (i % 2)
			self->huge[self->size / 2] = 1;
		if (i % 8 == 1) {
			pid_t pid = fork();

			if (!pid) {
				FORCE_READ(*self->base);
				_exit(0);
			}
			waitpid(pid, NULL, 0);
		}
	}
	race.stop = true;
	for (i = 0; i < 3; i++)
		pthread_join(threads[i], NULL);
	EXPECT_GT(race.rounds, 0);
}

TEST_HARNESS_MAIN
