// SPDX-License-Identifier: GPL-2.0
/*
 * mremap() of device-dax mappings that are mapped by PUD leaves.
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
 * What the test writes to the device it restores at its end.
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
#include <sys/resource.h>
#include <unistd.h>

#include "vm_util.h"

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP	4
#endif

#define DAX_SYSFS	"/sys/bus/dax/devices/"
#define NR_SLOTS	9
#define MAX_LEAVES	2
#define PATTERN		0x5ca1ab1e0ddba11ULL

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

static long nr_faults(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return usage.ru_minflt + usage.ru_majflt;
}

/* Reads a value of a mapping; returns how many faults this has taken. */
static long read_counting_faults(char *addr, uint64_t *value)
{
	long before = nr_faults();

	*value = FORCE_READ(*(uint64_t *)addr);
	return nr_faults() - before;
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
	unsigned long leaf;		/* size of a leaf: its alignment */
	unsigned long nr_leaves;	/* of the device, at most MAX_LEAVES */
	char *reserved;
	char *slots;			/* aligned to the size of a leaf */
	char *mapped;
	uint64_t saved[MAX_LEAVES];
	bool is_saved;
	long rss_before;
};

static unsigned long dax_attr(const char *name, const char *attr)
{
	char path[300];
	char buf[64];

	snprintf(path, sizeof(path), DAX_SYSFS "%s/%s", name, attr);
	if (!read_file(path, buf, sizeof(buf)))
		return 0;
	return strtoul(buf, NULL, 0);
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
		unsigned long align = dax_attr(entry->d_name, "align");
		unsigned long size = dax_attr(entry->d_name, "size");

		if (align <= pmd_size || size < align)
			continue;
		snprintf(self->path, sizeof(self->path), "/dev/%s",
			 entry->d_name);
		self->fd = open(self->path, O_RDWR | O_CLOEXEC);
		self->leaf = align;
		self->nr_leaves = size / align;
	}
	closedir(dir);

	if (self->nr_leaves > MAX_LEAVES)
		self->nr_leaves = MAX_LEAVES;
	return self->fd >= 0;
}

/* Maps @nr leaves of the device at @addr and faults them in by writing. */
static bool map_leaves(FIXTURE_DATA(device_dax_mremap) * self, char *addr,
		       unsigned long nr)
{
	unsigned long i;

	addr = mmap(addr, nr * self->leaf, PROT_READ | PROT_WRITE,
		    MAP_SHARED | MAP_FIXED, self->fd, 0);
	if (addr == MAP_FAILED)
		return false;

	for (i = 0; i < nr; i++)
		*(uint64_t *)(addr + i * self->leaf) = PATTERN + i;
	return true;
}

FIXTURE_SETUP(device_dax_mremap)
{
	uint64_t value;
	unsigned long i;
	char *addr;

	self->fd = -1;
	self->kmsg = -1;
	self->reserved = MAP_FAILED;

	if (!find_device(self))
		SKIP(return, "no accessible /dev/dax* device with an alignment above the PMD size");

	self->reserved = mmap(NULL, (NR_SLOTS + 1) * self->leaf, PROT_NONE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	ASSERT_NE(self->reserved, MAP_FAILED);
	self->slots = (char *)(((unsigned long)self->reserved + self->leaf - 1) &
			       ~(self->leaf - 1));

	/* Keep what is to be overwritten. */
	addr = mmap(self->slots, self->nr_leaves * self->leaf, PROT_READ,
		    MAP_SHARED | MAP_FIXED, self->fd, 0);
	ASSERT_NE(addr, MAP_FAILED) {
		TH_LOG("mmap() of %s: %s", self->path, strerror(errno));
	}
	for (i = 0; i < self->nr_leaves; i++) {
		if (try_read(addr + i * self->leaf, &self->saved[i])) {
			munmap(addr, self->nr_leaves * self->leaf);
			SKIP(return, "%s cannot be mapped by PUD", self->path);
		}
	}
	self->is_saved = true;
	ASSERT_EQ(munmap(addr, self->nr_leaves * self->leaf), 0);

	/* Optional: without it the test does not look for complaints. */
	self->kmsg = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (self->kmsg >= 0)
		lseek(self->kmsg, 0, SEEK_END);

	self->rss_before = rss_file_kb();
	ASSERT_GE(self->rss_before, 0);
	/* No faults of its own when it counts. */
	read_counting_faults((char *)&self->leaf, &value);
}

FIXTURE_TEARDOWN(device_dax_mremap)
{
	unsigned long i;
	char *addr;

	if (self->is_saved) {
		addr = mmap(self->slots, self->nr_leaves * self->leaf,
			    PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
			    self->fd, 0);
		if (addr != MAP_FAILED)
			for (i = 0; i < self->nr_leaves; i++)
				*(uint64_t *)(addr + i * self->leaf) =
					self->saved[i];
	}
	if (self->reserved != MAP_FAILED)
		munmap(self->reserved, (NR_SLOTS + 1) * self->leaf);
	if (self->kmsg >= 0)
		close(self->kmsg);
	if (self->fd >= 0)
		close(self->fd);
}

static char *slot(FIXTURE_DATA(device_dax_mremap) * self, unsigned long nr)
{
	return self->slots + nr * self->leaf;
}

/* RssFile, in leaves, compared with what it was before the test began. */
static long leaves_mapped(FIXTURE_DATA(device_dax_mremap) * self)
{
	long leaf_kb = self->leaf / 1024;

	/* A few pages more or less may be mapped by now. */
	return (rss_file_kb() - self->rss_before + leaf_kb / 2) / leaf_kb;
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
		if (ret < 0 && errno == EPIPE)	/* overwritten: go on */
			continue;
		if (ret <= 0)
			break;
		line[ret] = '\0';
		end = strchr(line, '\n');
		if (end)
			*end = '\0';
		found = strstr(line, "bad pud") || strstr(line, "bad pmd") ||
			strstr(line, "Bad page");
	}
	return found;
}

#define EXPECT_NO_COMPLAINT()						\
do {									\
	char line_[1024];						\
									\
	EXPECT_FALSE(bad_entry_logged(self, line_, sizeof(line_))) {	\
		TH_LOG("mremap() made the kernel log: %s", line_);	\
	}								\
} while (0)

#define EXPECT_LEAVES(nr)						\
do {									\
	long want_ = (nr), leaves_ = leaves_mapped(self);		\
									\
	EXPECT_EQ(leaves_, want_) {					\
		TH_LOG("RssFile counts %ld leaves where %ld are mapped",\
		       leaves_, want_);					\
	}								\
} while (0)

/* Move whole leaves to where they can be leaves: they must not get lost. */
static void move_aligned(struct __test_metadata *_metadata,
			 FIXTURE_DATA(device_dax_mremap) * self, int nr,
			 int to)
{
	char *src = slot(self, 0), *dst = slot(self, to);
	uint64_t value;
	long faults;
	int i;

	ASSERT_TRUE(map_leaves(self, src, nr));
	EXPECT_LEAVES(nr);

	ASSERT_EQ(mremap(src, nr * self->leaf, nr * self->leaf,
			 MREMAP_MAYMOVE | MREMAP_FIXED, dst), dst);

	for (i = 0; i < nr; i++) {
		/* Nothing is mapped here now, TLBs included. */
		EXPECT_EQ(try_read(src + i * self->leaf, &value), SIGSEGV) {
			TH_LOG("leaf %d is still accessible at the old address", i);
		}
		faults = read_counting_faults(dst + i * self->leaf, &value);
		EXPECT_EQ(value, PATTERN + i);
		EXPECT_EQ(faults, 0) {
			TH_LOG("mremap() lost leaf %d: it had to be faulted in again", i);
		}
	}
	EXPECT_NO_COMPLAINT();
	EXPECT_LEAVES(nr);

	ASSERT_EQ(munmap(dst, nr * self->leaf), 0);
	EXPECT_LEAVES(0);
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
	uint64_t value;

	if (self->nr_leaves < 2)
		SKIP(return, "the device is too small");

	ASSERT_TRUE(map_leaves(self, src, 2));
	ASSERT_EQ(mremap(src, self->leaf, self->leaf,
			 MREMAP_MAYMOVE | MREMAP_FIXED, dst), dst);

	EXPECT_EQ(read_counting_faults(src + self->leaf, &value), 0) {
		TH_LOG("mremap() lost the leaf that was to stay");
	}
	EXPECT_EQ(value, PATTERN + 1);
	EXPECT_EQ(read_counting_faults(dst, &value), 0) {
		TH_LOG("mremap() lost leaf 0: it had to be faulted in again");
	}
	EXPECT_EQ(value, PATTERN);
	EXPECT_NO_COMPLAINT();
	EXPECT_LEAVES(2);

	ASSERT_EQ(munmap(src + self->leaf, self->leaf), 0);
	EXPECT_LEAVES(1);
	ASSERT_EQ(munmap(dst, self->leaf), 0);
	EXPECT_LEAVES(0);
}

/* The old VMA stays: empty, but it can be faulted in again. */
TEST_F(device_dax_mremap, dontunmap)
{
	char *src = slot(self, 0), *dst = slot(self, 2);
	uint64_t value;

	ASSERT_TRUE(map_leaves(self, src, 1));
	ASSERT_EQ(mremap(src, self->leaf, self->leaf,
			 MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, dst),
		  dst);

	EXPECT_EQ(read_counting_faults(src, &value), 1) {
		TH_LOG("the leaf is still accessible at the old address");
	}
	EXPECT_EQ(value, PATTERN);
	EXPECT_EQ(read_counting_faults(dst, &value), 0) {
		TH_LOG("mremap() lost leaf 0: it had to be faulted in again");
	}
	EXPECT_EQ(value, PATTERN);
	EXPECT_NO_COMPLAINT();
	EXPECT_LEAVES(2);

	ASSERT_EQ(munmap(src, self->leaf), 0);
	ASSERT_EQ(munmap(dst, self->leaf), 0);
	EXPECT_LEAVES(0);
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

	ASSERT_TRUE(map_leaves(self, src, 1));
	ASSERT_EQ(mremap(src, self->leaf, self->leaf,
			 MREMAP_MAYMOVE | MREMAP_FIXED, dst), dst);
	EXPECT_NO_COMPLAINT();
	EXPECT_LEAVES(0);
	EXPECT_EQ(try_read(src, &value), SIGSEGV) {
		TH_LOG("the leaf is still accessible at the old address");
	}
	EXPECT_EQ(try_read(dst, &value), SIGBUS);

	ASSERT_EQ(mremap(dst, self->leaf, self->leaf,
			 MREMAP_MAYMOVE | MREMAP_FIXED, src), src);
	EXPECT_EQ(try_read(src, &value), 0);
	EXPECT_EQ(value, PATTERN);
	EXPECT_NO_COMPLAINT();
	EXPECT_LEAVES(1);

	ASSERT_EQ(munmap(src, self->leaf), 0);
	EXPECT_LEAVES(0);
}

/* Control: device-dax refuses to split its VMA within a leaf. */
TEST_F(device_dax_mremap, move_part_of_leaf)
{
	unsigned long pmd_size = read_pmd_pagesize();
	char *src = slot(self, 0), *dst = slot(self, 2);
	uint64_t value;

	ASSERT_TRUE(map_leaves(self, src, 1));
	EXPECT_EQ(mremap(src, pmd_size, pmd_size,
			 MREMAP_MAYMOVE | MREMAP_FIXED, dst), MAP_FAILED);
	EXPECT_EQ(errno, EINVAL);
	EXPECT_EQ(mremap(src + pmd_size, pmd_size, pmd_size,
			 MREMAP_MAYMOVE | MREMAP_FIXED, dst), MAP_FAILED);
	EXPECT_EQ(errno, EINVAL);

	EXPECT_EQ(read_counting_faults(src, &value), 0);
	EXPECT_EQ(value, PATTERN);
	EXPECT_NO_COMPLAINT();
	EXPECT_LEAVES(1);

	ASSERT_EQ(munmap(src, self->leaf), 0);
	EXPECT_LEAVES(0);
}

TEST_HARNESS_MAIN
