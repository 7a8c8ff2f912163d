/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Pools of huge pages, the HugeTLB vmemmap optimization (HVO), and memory
 * failures, for tests that change the pools and so need root.
 */
#ifndef HUGETLB_POOL_H
#define HUGETLB_POOL_H

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "vm_util.h"

#define KPF_HUGE	BIT_ULL(17)

#define HVO_PATH	"/proc/sys/vm/hugetlb_optimize_vmemmap"

/* Write a number. Returns 0 or a negative error, which a file may decide on. */
static inline int pool_write(const char *path, unsigned long num)
{
	char buf[32];
	int fd, len, ret;

	fd = open(path, O_WRONLY);
	if (fd < 0)
		return -errno;
	len = snprintf(buf, sizeof(buf), "%lu\n", num);
	ret = write(fd, buf, len) == len ? 0 : -errno;
	close(fd);
	return ret;
}

/* Set a file of the pool of pages of @size bytes */
static inline int pool_set(unsigned long size, const char *name,
			   unsigned long num)
{
	char path[128];

	snprintf(path, sizeof(path),
		 "/sys/kernel/mm/hugepages/hugepages-%lukB/%s", size >> 10, name);
	return pool_write(path, num);
}

static inline unsigned long pool_get(unsigned long size, const char *name)
{
	char path[128];

	snprintf(path, sizeof(path),
		 "/sys/kernel/mm/hugepages/hugepages-%lukB/%s", size >> 10, name);
	return read_num(path);
}

static inline bool pool_has(unsigned long size, const char *name)
{
	char path[128];

	snprintf(path, sizeof(path),
		 "/sys/kernel/mm/hugepages/hugepages-%lukB/%s", size >> 10, name);
	return !access(path, F_OK);
}

/* Let the memory at @pfn fail. Returns 0 or what memory_failure() returned. */
static inline int fail_memory(unsigned long pfn)
{
	return pool_write("/sys/kernel/debug/hwpoison/corrupt-pfn", pfn);
}

static inline bool can_fail_memory(void)
{
	return !access("/sys/kernel/debug/hwpoison/corrupt-pfn", W_OK) &&
	       !access("/sys/kernel/debug/hwpoison/unpoison-pfn", W_OK);
}

/* The first PFN of the memory at @addr, which is touched; 0 if it is unknown */
static inline unsigned long pfn_of(void *addr)
{
	unsigned long pfn;
	int fd;

	fd = open("/proc/self/pagemap", O_RDONLY);
	if (fd < 0)
		return 0;
	pfn = pagemap_get_pfn(fd, addr);
	close(fd);
	return pfn == -1UL ? 0 : pfn;
}

static inline uint64_t kpageflags_of(unsigned long pfn)
{
	uint64_t flags = 0;
	int fd;

	fd = open("/proc/kpageflags", O_RDONLY);
	if (fd < 0)
		return 0;
	if (pageflags_get(pfn, fd, &flags))
		flags = 0;
	close(fd);
	return flags;
}

#endif
