// SPDX-License-Identifier: GPL-2.0
/*
 * Splitting, mremap() and fork() of device-dax mappings that are mapped by PUD
 * leaves.
 *
 * This needs a device-dax device with an alignment above the PMD size (1 GiB
 * on x86-64) and is skipped without one. Such a device can be made of RAM on
 * x86-64 (CONFIG_X86_PMEM_LEGACY, CONFIG_NVDIMM_DAX, CONFIG_DEV_DAX_PMEM),
 * where the first GiB holds metadata. Boot with memmap=3G!4G (or 2G!4G for a
 * device of one leaf) and do:
 *
 *   cd /sys/bus/nd
 *   echo namespace0.0 > drivers/nd_pmem/unbind
 *   echo ram > devices/dax0.0/mode
 *   echo $((1 << 30)) > devices/dax0.0/align
 *   cat /proc/sys/kernel/random/uuid > devices/dax0.0/uuid
 *   echo namespace0.0 > devices/dax0.0/namespace
 *   echo dax0.0 > drivers/dax_pmem/bind
 *
 * or: ndctl create-namespace -f -e namespace0.0 -m devdax -a 1G -M mem
 *
 * The test only reads the device, which may hold somebody's data, even be in
 * use. Where both leaves read the same, as on a new device, it cannot notice
 * if they were mixed up, but all the rest. To have them differ write to them
 * first, while this still is /dev/pmem0: they are its second and third GiB.
 *
 *   for i in 1 2; do echo $i | dd of=/dev/pmem0 bs=1M seek=$((i << 10)); done
 *
 * A kernel that loses leaves also leaks references on the memory: to unbind
 * the device may then hang until the next boot.
 */
#define _GNU_SOURCE
#include "kselftest_harness.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "vm_util.h"

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP	4
#endif

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL	102
#endif

#define DAX_SYSFS	"/sys/bus/dax/devices/"
#define NR_SLOTS	9	/* the last ones for the control mapping */
#define MAX_LEAVES	2

static sigjmp_buf fault_env;

static void fault_handler(int sig)
{
	siglongjmp(fault_env, sig);
}

/* Returns 0 and the value, or the signal that the read has caused. */
static int try_read(char *addr, uint64_t *value)
{
	const struct sigaction sa = { .sa_handler = fault_handler };
	struct sigaction old_segv, old_bus;
	int sig;

	sigaction(SIGSEGV, &sa, &old_segv);
	sigaction(SIGBUS, &sa, &old_bus);
	sig = sigsetjmp(fault_env, 1);
	if (!sig)
		*value = FORCE_READ(*(uint64_t *)addr);
	sigaction(SIGSEGV, &old_segv, NULL);
	sigaction(SIGBUS, &old_bus, NULL);

	return sig;
}

static long rss_file_kb(void)
{
	char line[256];
	long kb = -1;
	FILE *fp;

	fp = fopen("/proc/self/status", "r");
	if (!fp)
		return -1;
	if (check_for_pattern(fp, "RssFile:", line, sizeof(line)))
		sscanf(line, "RssFile: %ld", &kb);
	fclose(fp);
	return kb;
}

FIXTURE(device_dax_mremap)
{
	char path[300];
	int fd;
	int kmsg;
	size_t leaf;			/* size of a leaf: the alignment */
	unsigned long nr_leaves;	/* of the device, at most MAX_LEAVES */
	char *reserved;
	size_t reserved_size;
	char *slots;			/* aligned to the size of a leaf */
	char *control;			/* the leaves, never moved */
	size_t probe;			/* where in the leaves to look */
	long rss_before;
};

static unsigned long long dax_attr(const char *name, const char *attr)
{
	char path[300];
	char buf[64];

	snprintf(path, sizeof(path), DAX_SYSFS "%s/%s", name, attr);
	if (!read_file(path, buf, sizeof(buf)))
		return 0;
	return strtoull(buf, NULL, 0);
}

/* Finds a device that maps by PUD: of nothing else is it this large. */
static bool find_device(FIXTURE_DATA(device_dax_mremap) * self)
{
	unsigned long pmd_size = read_pmd_pagesize();
	struct dirent *entry;
	DIR *dir;

	dir = opendir(DAX_SYSFS);
	if (!dir)
		return false;

	while (pmd_size && self->fd < 0 && (entry = readdir(dir))) {
		unsigned long long align = dax_attr(entry->d_name, "align");
		unsigned long long size = dax_attr(entry->d_name, "size");

		if (align <= pmd_size || size < align)
			continue;
		snprintf(self->path, sizeof(self->path), "/dev/%s",
			 entry->d_name);
		self->fd = open(self->path, O_RDONLY | O_CLOEXEC);
		self->leaf = align;
		self->nr_leaves = size / align < MAX_LEAVES ?
				  size / align : MAX_LEAVES;
	}
	closedir(dir);

	return self->fd >= 0;
}

static char *slot(FIXTURE_DATA(device_dax_mremap) * self, unsigned long nr)
{
	return self->slots + nr * self->leaf;
}

/* RssFile, in leaves, compared with what it was before the test began. */
static long leaves_mapped(FIXTURE_DATA(device_dax_mremap) * self)
{
	long leaf_kb = self->leaf / 1024;
	long kb = rss_file_kb() - self->rss_before;

	/* A few pages more or less may be mapped by now. */
	return (kb + (kb < 0 ? -leaf_kb / 2 : leaf_kb / 2)) / leaf_kb;
}

/*
 * Reads from the leaf at @addr. Returns how many leaves this has faulted in.
 *
 * That is RssFile, as it cannot be mistaken for other faults, and as anything
 * that looks at page tables, such as /proc/self/pagemap, splits a leaf first.
 */
static long read_leaf(FIXTURE_DATA(device_dax_mremap) * self, char *addr)
{
	long before = leaves_mapped(self);

	FORCE_READ(*(uint64_t *)(addr + self->probe));
	return leaves_mapped(self) - before;
}

static char *map_leaves(FIXTURE_DATA(device_dax_mremap) * self, char *addr,
			unsigned long nr)
{
	return mmap(addr, nr * self->leaf, PROT_READ, MAP_SHARED | MAP_FIXED,
		    self->fd, 0);
}

/*
 * Does @addr read the same as the leaf @nr? Whoever uses the device may write
 * to it between the two reads, but not every time.
 */
static bool is_leaf(FIXTURE_DATA(device_dax_mremap) * self, char *addr,
		    unsigned long nr)
{
	char *control = self->control + nr * self->leaf + self->probe;
	int tries;

	addr += self->probe;
	for (tries = 0; tries < 1000; tries++)
		if (FORCE_READ(*(uint64_t *)addr) ==
		    FORCE_READ(*(uint64_t *)control))
			return true;
	return false;
}

/* Finds a place where the two leaves read different values. */
static bool find_probe(FIXTURE_DATA(device_dax_mremap) * self)
{
	const size_t step = read_pmd_pagesize();
	uint64_t values[MAX_LEAVES];
	size_t offset;

	for (offset = 0; offset < self->leaf; offset += step) {
		char *addr = self->control + offset;

		if (try_read(addr, &values[0]) ||
		    try_read(addr + self->leaf, &values[1]))
			continue;	/* poisoned? */
		if (values[0] != values[1]) {
			self->probe = offset;
			return true;
		}
	}
	return false;
}

FIXTURE_SETUP(device_dax_mremap)
{
	unsigned long i;
	uint64_t value;
	char *addr;

	self->fd = -1;
	self->kmsg = -1;
	self->reserved = MAP_FAILED;

	if (!find_device(self))
		SKIP(return, "no accessible /dev/dax* device with an alignment above the PMD size");

	if (self->leaf > SIZE_MAX / 2 / (NR_SLOTS + 1))
		SKIP(return, "%d leaves do not fit the address space",
		     NR_SLOTS);
	self->reserved_size = (NR_SLOTS + 1) * self->leaf;
	self->reserved = mmap(NULL, self->reserved_size, PROT_NONE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (self->reserved == MAP_FAILED && errno == ENOMEM)
		SKIP(return, "%d leaves do not fit the address space",
		     NR_SLOTS);
	ASSERT_NE(self->reserved, MAP_FAILED);
	self->slots = (char *)(((unsigned long)self->reserved + self->leaf - 1) &
			       ~(self->leaf - 1));

	addr = slot(self, NR_SLOTS - MAX_LEAVES);
	self->control = map_leaves(self, addr, self->nr_leaves);
	ASSERT_EQ(self->control, addr) {
		TH_LOG("mmap() of %s: %s", self->path, strerror(errno));
	}
	for (i = 0; i < self->nr_leaves; i++)
		if (try_read(addr + i * self->leaf, &value))
			SKIP(return, "%s cannot be read through PUD leaves",
			     self->path);
	if (self->nr_leaves > 1 && !find_probe(self))
		TH_LOG("the leaves of %s read the same: cannot tell them apart",
		       self->path);

	/* Optional: without it the test does not look for complaints. */
	self->kmsg = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (self->kmsg >= 0)
		lseek(self->kmsg, 0, SEEK_END);

	self->rss_before = rss_file_kb();
	ASSERT_GE(self->rss_before, 0);
}

FIXTURE_TEARDOWN(device_dax_mremap)
{
	if (self->reserved != MAP_FAILED)
		munmap(self->reserved, self->reserved_size);
	if (self->kmsg >= 0)
		close(self->kmsg);
	if (self->fd >= 0)
		close(self->fd);
}

/* Has some mm ended with whole leaves too many or too few in RssFile? */
static bool leaves_miscounted(FIXTURE_DATA(device_dax_mremap) * self,
			      const char *line)
{
	const char *state = strstr(line, "type:MM_FILEPAGES val:");
	long val;

	return state && sscanf(state, "type:MM_FILEPAGES val:%ld", &val) == 1 &&
	       !(val % (long)(self->leaf / getpagesize()));
}

/* Did the kernel find page table entries it calls bad? */
static bool bad_entry_logged(FIXTURE_DATA(device_dax_mremap) * self, char *line,
			     size_t len)
{
	bool found = false;
	ssize_t ret;
	char *end;

	line[0] = '\0';
	if (self->kmsg < 0)
		return false;

	while (!found) {
		ret = read(self->kmsg, line, len - 1);
		/* Overwritten, or longer than the buffer: go on with the next. */
		if (ret < 0 && (errno == EPIPE || errno == EINVAL ||
				errno == EINTR))
			continue;
		if (ret <= 0)
			break;
		line[ret] = '\0';
		end = strchr(line, '\n');
		if (end)
			*end = '\0';
		found = strstr(line, "bad pud") || strstr(line, "bad pmd") ||
			leaves_miscounted(self, line);
	}
	return found;
}

static void expect_no_complaint(struct __test_metadata *_metadata,
				FIXTURE_DATA(device_dax_mremap) * self)
{
	char line[4096];

	EXPECT_FALSE(bad_entry_logged(self, line, sizeof(line))) {
		TH_LOG("the kernel has logged: %s", line);
	}
}

static void expect_leaves(struct __test_metadata *_metadata,
			  FIXTURE_DATA(device_dax_mremap) * self, long nr)
{
	long leaves = leaves_mapped(self);

	EXPECT_EQ(leaves, nr) {
		TH_LOG("RssFile counts %ld leaves where %ld are mapped",
		       leaves, nr);
	}
}

/* The leaf @nr has to be at @addr, and not because it is faulted in. */
static void expect_leaf(struct __test_metadata *_metadata,
			FIXTURE_DATA(device_dax_mremap) * self, char *addr,
			int nr)
{
	EXPECT_EQ(read_leaf(self, addr), 0) {
		TH_LOG("leaf %d was lost: it had to be faulted in again", nr);
	}
	EXPECT_TRUE(is_leaf(self, addr, nr)) {
		TH_LOG("something else is mapped where leaf %d should be", nr);
	}
}

/* Maps and faults in the first @nr leaves of the device at @addr. */
static void assert_maps(struct __test_metadata *_metadata,
			FIXTURE_DATA(device_dax_mremap) * self, char *addr,
			int nr)
{
	int i;

	ASSERT_EQ(map_leaves(self, addr, nr), addr);
	for (i = 0; i < nr; i++)
		ASSERT_EQ(read_leaf(self, addr + i * self->leaf), 1);
	expect_leaves(_metadata, self, nr);
}

/*
 * device-dax refuses to split a VMA within a leaf, but merges that move the
 * boundary of a VMA do not call ->may_split(). A kernel may refuse them, too.
 * The boundary stays PMD aligned, and the test does not access a leaf that
 * extends beyond its VMA, as either can crash a kernel that leaves it mapped.
 */
TEST_F(device_dax_mremap, merge_part_of_leaf)
{
	unsigned long pmd_size = read_pmd_pagesize();
	char *addr = slot(self, 0);
	bool split;

	if (self->nr_leaves < 2)
		SKIP(return, "the device is too small");

	assert_maps(_metadata, self, addr, 2);
	ASSERT_EQ(madvise(addr, self->leaf, MADV_DONTDUMP), 0);
	expect_leaves(_metadata, self, 2);

	/* Moves the boundary between the two VMAs by one PMD. */
	split = !madvise(addr + self->leaf, pmd_size, MADV_DONTDUMP);
	if (split) {
		EXPECT_EQ(leaves_mapped(self), 1) {
			TH_LOG("a leaf reaches beyond its VMA");
		}
	} else {
		EXPECT_EQ(errno, EINVAL);
		expect_leaves(_metadata, self, 2);
	}

	/* Makes one VMA of them, whatever it was before. */
	ASSERT_EQ(madvise(addr, self->leaf + (split ? pmd_size : 0),
			  MADV_DODUMP), 0);
	expect_leaf(_metadata, self, addr, 0);
	FORCE_READ(*(addr + self->leaf));
	expect_leaf(_metadata, self, addr + self->leaf, 1);
	expect_no_complaint(_metadata, self);
	expect_leaves(_metadata, self, 2);

	ASSERT_EQ(munmap(addr, 2 * self->leaf), 0);
	expect_leaves(_metadata, self, 0);
}

/* Move whole leaves to where they can be leaves: they must not get lost. */
static void move_aligned(struct __test_metadata *_metadata,
			 FIXTURE_DATA(device_dax_mremap) * self, int nr,
			 int to)
{
	char *src = slot(self, 0), *dst = slot(self, to);
	uint64_t value;
	int i;

	assert_maps(_metadata, self, src, nr);
	ASSERT_EQ(mremap(src, nr * self->leaf, nr * self->leaf,
			 MREMAP_MAYMOVE | MREMAP_FIXED, dst), dst);

	/* Nothing is mapped there now, TLBs included. */
	for (i = 0; i < nr; i++) {
		EXPECT_EQ(try_read(src + i * self->leaf, &value), SIGSEGV) {
			TH_LOG("leaf %d is still accessible at the old address", i);
		}
	}
	expect_leaves(_metadata, self, nr);
	for (i = 0; i < nr; i++)
		expect_leaf(_metadata, self, dst + i * self->leaf, i);
	expect_no_complaint(_metadata, self);
	expect_leaves(_metadata, self, nr);

	ASSERT_EQ(munmap(dst, nr * self->leaf), 0);
	expect_leaves(_metadata, self, 0);
}

TEST_F(device_dax_mremap, move_one_leaf)
{
	move_aligned(_metadata, self, 1, 2);
}

TEST_F(device_dax_mremap, move_two_leaves)
{
	if (self->nr_leaves < 2)
		SKIP(return, "the device is too small");
	move_aligned(_metadata, self, 2, 4);
}

/* The second leaf stays, the first one goes: a split of the VMA. */
TEST_F(device_dax_mremap, move_first_of_two_leaves)
{
	char *src = slot(self, 0), *dst = slot(self, 4);

	if (self->nr_leaves < 2)
		SKIP(return, "the device is too small");

	assert_maps(_metadata, self, src, 2);
	ASSERT_EQ(mremap(src, self->leaf, self->leaf,
			 MREMAP_MAYMOVE | MREMAP_FIXED, dst), dst);
	expect_leaves(_metadata, self, 2);

	/* The one that was to stay, and the one that moved. */
	expect_leaf(_metadata, self, src + self->leaf, 1);
	expect_leaf(_metadata, self, dst, 0);
	expect_no_complaint(_metadata, self);
	expect_leaves(_metadata, self, 2);

	ASSERT_EQ(munmap(src + self->leaf, self->leaf), 0);
	expect_leaves(_metadata, self, 1);
	ASSERT_EQ(munmap(dst, self->leaf), 0);
	expect_leaves(_metadata, self, 0);
}

/* The old VMA stays: empty, but it can be faulted in again. */
TEST_F(device_dax_mremap, dontunmap)
{
	char *src = slot(self, 0), *dst = slot(self, 2);

	assert_maps(_metadata, self, src, 1);
	ASSERT_EQ(mremap(src, self->leaf, self->leaf,
			 MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, dst),
		  dst);

	/* A read through a TLB entry that was not flushed faults in nothing. */
	EXPECT_EQ(read_leaf(self, src), 1) {
		TH_LOG("the leaf is still accessible at the old address");
	}
	EXPECT_TRUE(is_leaf(self, src, 0));
	expect_leaf(_metadata, self, dst, 0);
	expect_no_complaint(_metadata, self);
	expect_leaves(_metadata, self, 2);

	ASSERT_EQ(munmap(src, self->leaf), 0);
	ASSERT_EQ(munmap(dst, self->leaf), 0);
	expect_leaves(_metadata, self, 0);
}

/*
 * Where no leaf is possible the mapping becomes empty. device-dax does not
 * serve faults of such a mapping, until it is moved to where they are possible.
 */
TEST_F(device_dax_mremap, move_misaligned_and_back)
{
	char *src = slot(self, 0);
	char *dst = slot(self, 2) + read_pmd_pagesize();
	uint64_t value;

	assert_maps(_metadata, self, src, 1);
	ASSERT_EQ(mremap(src, self->leaf, self->leaf,
			 MREMAP_MAYMOVE | MREMAP_FIXED, dst), dst);
	EXPECT_EQ(try_read(src, &value), SIGSEGV) {
		TH_LOG("the leaf is still accessible at the old address");
	}
	expect_no_complaint(_metadata, self);
	expect_leaves(_metadata, self, 0);
	EXPECT_EQ(try_read(dst, &value), SIGBUS);

	ASSERT_EQ(mremap(dst, self->leaf, self->leaf,
			 MREMAP_MAYMOVE | MREMAP_FIXED, src), src);
	EXPECT_EQ(read_leaf(self, src), 1);
	EXPECT_TRUE(is_leaf(self, src, 0));
	expect_no_complaint(_metadata, self);
	expect_leaves(_metadata, self, 1);

	ASSERT_EQ(munmap(src, self->leaf), 0);
	expect_leaves(_metadata, self, 0);
}

/* Control: device-dax refuses to split its VMA within a leaf. */
TEST_F(device_dax_mremap, move_part_of_leaf)
{
	unsigned long pmd_size = read_pmd_pagesize();
	char *src = slot(self, 0), *dst = slot(self, 2);

	assert_maps(_metadata, self, src, 1);
	EXPECT_EQ(mremap(src, pmd_size, pmd_size,
			 MREMAP_MAYMOVE | MREMAP_FIXED, dst), MAP_FAILED);
	EXPECT_EQ(errno, EINVAL);
	EXPECT_EQ(mremap(src + pmd_size, pmd_size, pmd_size,
			 MREMAP_MAYMOVE | MREMAP_FIXED, dst), MAP_FAILED);
	EXPECT_EQ(errno, EINVAL);

	expect_leaf(_metadata, self, src, 0);
	expect_no_complaint(_metadata, self);
	expect_leaves(_metadata, self, 1);

	ASSERT_EQ(munmap(src, self->leaf), 0);
	expect_leaves(_metadata, self, 0);
}

/* A guard region makes fork() copy page tables of the mapping. */
TEST_F(device_dax_mremap, fork_with_guard)
{
	char *addr = slot(self, 0);
	int status;
	pid_t pid;

	if (self->nr_leaves < 2)
		SKIP(return, "the device is too small");

	ASSERT_EQ(map_leaves(self, addr, 2), addr);
	if (madvise(addr, getpagesize(), MADV_GUARD_INSTALL)) {
		ASSERT_EQ(errno, EINVAL);
		SKIP(return, "no guard regions in device-dax mappings");
	}
	ASSERT_EQ(read_leaf(self, addr + self->leaf), 1);

	pid = fork();
	ASSERT_NE(pid, -1);
	if (!pid) {
		/* Nothing else of the device is mapped here. */
		self->rss_before = 0;
		if (rss_file_kb() < 0)
			_exit(3);
		if (!is_leaf(self, addr + self->leaf, 1))
			_exit(2);
		munmap(self->control, self->nr_leaves * self->leaf);
		_exit(leaves_mapped(self) != 1);
	}
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	ASSERT_TRUE(WIFEXITED(status));
	EXPECT_NE(WEXITSTATUS(status), 3) {
		TH_LOG("RssFile of the child cannot be read");
	}
	EXPECT_NE(WEXITSTATUS(status), 2) {
		TH_LOG("something else is mapped in the child");
	}
	EXPECT_NE(WEXITSTATUS(status), 1) {
		TH_LOG("RssFile of the child does not count the leaf it has mapped");
	}

	expect_leaf(_metadata, self, addr + self->leaf, 1);
	ASSERT_EQ(munmap(addr, 2 * self->leaf), 0);
	expect_leaves(_metadata, self, 0);
	expect_no_complaint(_metadata, self);
}

#define LIMIT_FILE	"/sys/kernel/debug/folio_map_limit"
#define MAPPINGS	64	/* more than others have of any large folio */

/* A leaf counts once. One more than the limit gets SIGBUS, like that of a page. */
TEST_F(device_dax_mremap, map_limit)
{
	const size_t len = (MAPPINGS + 2) * self->leaf;
	unsigned long limit;
	char *arena, *addr;
	uint64_t value;
	int i, error;

	if (access(LIMIT_FILE, W_OK))
		SKIP(return, "needs debugfs, and a kernel with CONFIG_DEBUG_VM");
	limit = read_num(LIMIT_FILE);
	arena = mmap(NULL, len, PROT_NONE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (arena == MAP_FAILED)
		SKIP(return, "%d leaves do not fit the address space", MAPPINGS);
	addr = (char *)(((unsigned long)arena + self->leaf - 1) &
			~(self->leaf - 1));
	/* The control is one of them. */
	for (i = 1; i < MAPPINGS; i++, addr += self->leaf) {
		ASSERT_EQ(map_leaves(self, addr, 1), addr);
		ASSERT_EQ(read_leaf(self, addr), 1);
	}
	ASSERT_EQ(map_leaves(self, addr, 1), addr);
	write_num(LIMIT_FILE, MAPPINGS);
	error = try_read(addr + self->probe, &value);
	write_num(LIMIT_FILE, limit);
	EXPECT_NE(error, 0) {
		TH_LOG("a leaf was mapped more often than the limit is");
	}
	if (error)
		EXPECT_EQ(read_leaf(self, addr), 1);
	expect_leaf(_metadata, self, addr, 0);
	ASSERT_EQ(munmap(arena, len), 0);
	expect_leaves(_metadata, self, 0);
	expect_no_complaint(_metadata, self);
}

TEST_HARNESS_MAIN
