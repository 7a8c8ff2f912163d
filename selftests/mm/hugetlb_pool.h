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
#include "hugepage_settings.h"
#include "vm_util.h"

#define KPF_HUGE	BIT_ULL(17)

#define HVO_PATH	"/proc/sys/vm/hugetlb_optimize_vmemmap"

static void __attribute__((constructor)) save_settings(void)
{
	struct thp_settings settings;

	hugepage_save_settings(/* thp = */ true, /* hugetlb = */ true);
	if (thp_available()) {
		/* What thp_pop_settings() goes back to */
		thp_read_settings(&settings);
		thp_push_settings(&settings);
	}
}

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

/* The path of a file of the pool of pages of @size bytes */
static inline void pool_path(char *path, size_t len, unsigned long size,
			     const char *name)
{
	snprintf(path, len, "/sys/kernel/mm/hugepages/hugepages-%lukB/%s",
		 size >> 10, name);
}

static inline int pool_set(unsigned long size, const char *name,
			   unsigned long num)
{
	char path[128];

	pool_path(path, sizeof(path), size, name);
	return pool_write(path, num);
}

static inline unsigned long pool_get(unsigned long size, const char *name)
{
	char path[128];

	pool_path(path, sizeof(path), size, name);
	return read_num(path);
}

static inline bool pool_has(unsigned long size, const char *name)
{
	char path[128];

	pool_path(path, sizeof(path), size, name);
	return !access(path, F_OK);
}

static inline bool hvo_exists(void)
{
	return !access(HVO_PATH, F_OK);
}

static inline unsigned long hvo_get(void)
{
	return hvo_exists() ? read_num(HVO_PATH) : 0;
}

/* Is HVO switched on by the kernel's command line? */
static inline bool hvo_on_command_line(void)
{
	const char *param = "hugetlb_free_vmemmap=";
	char cmdline[4096] = "", *next, *value = NULL;

	read_file("/proc/cmdline", cmdline, sizeof(cmdline));
	/* The last one counts */
	for (next = cmdline; (next = strstr(next, param)); next = value)
		value = next + strlen(param);
	return value && *value &&
	       (strchr("1tTyY", *value) || !strncmp(value, "on", 2));
}

/*
 * Can HVO free struct pages? With base pages of 4 KiB, arm64 maps them by blocks
 * of 2 MiB unless HVO is on at boot.
 */
static inline bool hvo_possible(void)
{
#ifdef __aarch64__
	if (psize() == 4096 && !hvo_on_command_line())
		return false;
#endif
	return hvo_exists();
}

/* Switch HVO, if it exists. Returns 0 or an error. */
static inline int hvo_set(unsigned long on)
{
	return hvo_exists() ? pool_write(HVO_PATH, on) : 0;
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

/* Add pages of @size bytes to their pool until it has the one with @pfn */
static inline bool pool_grow_until(unsigned long size, unsigned long pfn)
{
	int nr;

	for (nr = 1; nr <= 100; nr++) {
		pool_set(size, "nr_hugepages", nr);
		if (kpageflags_of(pfn) & KPF_HUGE)
			return true;
	}
	return false;
}

#endif
