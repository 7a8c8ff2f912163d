// SPDX-License-Identifier: GPL-2.0
/*
 * The HugeTLB vmemmap optimization (HVO) frees most struct pages of a huge page
 * while that is in the pool, and brings them back before it leaves the pool.
 * Check how many are freed, that all come back, and that the huge pages work as
 * others do, with and without readers and writers of struct pages that hold no
 * reference.
 */
#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <pthread.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include "hugetlb_pool.h"

#define SIZE_2M		(2UL << 20)
#define SIZE_32M	(32UL << 20)
#define SIZE_512M	(512UL << 20)
#define SIZE_1G		(2 * SIZE_512M)

/* Unless debug options make it larger; then it is no power of two: no HVO */
#define STRUCT_PAGE_SIZE	64

/* How much memory the pool may take, and how often it grows and shrinks */
#define POOL_SIZE	SIZE_1G
#define ROUNDS		3

#define MAX_FAILURES	2000

#define FAIL_PAGE_ALLOC	"/sys/kernel/debug/fail_page_alloc/"

#define OVERCOMMIT_PATH(kb) \
	"/sys/kernel/mm/hugepages/hugepages-" #kb "kB/nr_overcommit_hugepages"

/* Files that the tests write to, and what they contained before */
static struct setting {
	const char *path;
	char value[32];
} settings[] = {
	{ HVO_PATH },
	{ FAIL_PAGE_ALLOC "min-order" },
	{ FAIL_PAGE_ALLOC "ignore-gfp-wait" },
	{ FAIL_PAGE_ALLOC "times" },
	{ OVERCOMMIT_PATH(2048) },
	{ OVERCOMMIT_PATH(32768) },
	{ OVERCOMMIT_PATH(524288) },
	{ OVERCOMMIT_PATH(1048576) },
};

static void __attribute__((constructor)) save_hvo_settings(void)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(settings); i++)
		if (!access(settings[i].path, W_OK))
			read_file(settings[i].path, settings[i].value,
				  sizeof(settings[i].value));
}

/* In the process that runs the tests, also after one of them was killed */
static void __attribute__((destructor)) restore_hvo_settings(void)
{
	unsigned int i;
	int fd;

	for (i = 0; i < ARRAY_SIZE(settings); i++) {
		if (!settings[i].value[0])
			continue;
		fd = open(settings[i].path, O_WRONLY);
		if (fd < 0 || write(fd, settings[i].value,
				    strlen(settings[i].value)) < 0)
			ksft_print_msg("%s: %m\n", settings[i].path);
		if (fd >= 0)
			close(fd);
	}
}

FIXTURE(hvo)
{
	unsigned long nr;		/* huge pages to use, 2 at least */
	unsigned long freed;		/* pages of struct pages for each */
	unsigned long memmap;		/* before the test */
};

FIXTURE_VARIANT(hvo)
{
	unsigned long size;
};

FIXTURE_VARIANT_ADD(hvo, 2MB)
{
	.size = SIZE_2M,
};

FIXTURE_VARIANT_ADD(hvo, 32MB)
{
	.size = SIZE_32M,
};

FIXTURE_VARIANT_ADD(hvo, 512MB)
{
	.size = SIZE_512M,
};

FIXTURE_VARIANT_ADD(hvo, 1GB)
{
	.size = SIZE_1G,
};

/* Pages of struct pages in the system */
static unsigned long memmap_pages(void)
{
	unsigned long pages = 0, num;
	char key[64];
	FILE *file;

	file = fopen("/proc/vmstat", "r");
	if (!file)
		return 0;
	while (fscanf(file, "%63s %lu", key, &num) == 2) {
		if (!strcmp(key, "nr_memmap_pages") ||
		    !strcmp(key, "nr_memmap_boot_pages"))
			pages += num;
	}
	fclose(file);
	return pages;
}

static void empty_pools(void)
{
	const unsigned long sizes[] = { SIZE_1G, SIZE_512M, SIZE_32M, SIZE_2M };
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(sizes); i++)
		if (pool_has(sizes[i], "nr_hugepages"))
			pool_set(sizes[i], "nr_hugepages", 0);
}

FIXTURE_SETUP(hvo)
{
	const unsigned long size = variant->size;

	if (getuid())
		SKIP(return, "no root");
	if (!pool_has(size, "nr_hugepages"))
		SKIP(return, "no huge pages of this size");
	if (!hvo_possible()) {
		ASSERT_FALSE(hvo_on_command_line()) {
			TH_LOG("switched on at boot, but the kernel does not have it");
		}
		SKIP(return, "no HugeTLB vmemmap optimization");
	}
	if (size / psize() * STRUCT_PAGE_SIZE <= psize())
		SKIP(return, "one page of struct pages only");

	self->freed = size / psize() * STRUCT_PAGE_SIZE / psize() - 1;
	self->nr = POOL_SIZE / size > 2 ? POOL_SIZE / size : 2;
	ASSERT_EQ(hvo_set(1), 0);
	empty_pools();
	if (pool_get(size, "nr_hugepages"))
		SKIP(return, "the pool is in use");
	self->memmap = memmap_pages();
}

FIXTURE_TEARDOWN(hvo)
{
	if (pool_has(variant->size, "nr_overcommit_hugepages"))
		pool_set(variant->size, "nr_overcommit_hugepages", 0);
	empty_pools();
}

/* Let the pool of the file at @path have @nr pages. Returns how many it got. */
static unsigned long resize_file(const char *path, unsigned long nr)
{
	int tries;

	/* Pages that are just being freed may be in the way */
	for (tries = 0; tries < 10; tries++) {
		pool_write(path, nr);
		if (read_num(path) == nr)
			break;
		pool_write("/proc/sys/vm/compact_memory", 1);
		usleep(100000);
	}
	return read_num(path);
}

/* Let the pool have @nr pages. Returns how many it got. */
static unsigned long resize(unsigned long size, unsigned long nr)
{
	char path[128];

	pool_path(path, sizeof(path), size, "nr_hugepages");
	return resize_file(path, nr);
}

static void expect_memmap(struct __test_metadata *_metadata,
			  unsigned long expected, const char *when)
{
	const unsigned long nr = memmap_pages();

	EXPECT_EQ(nr, expected) {
		TH_LOG("%s: %lu pages of struct pages, expected %lu", when, nr,
		       expected);
	}
}

static void grow_and_shrink(struct __test_metadata *_metadata,
			    FIXTURE_DATA(hvo) * self, unsigned long size)
{
	unsigned long nr;
	int round;

	for (round = 0; round < ROUNDS; round++) {
		nr = resize(size, self->nr);
		if (!nr && round)
			return;
		if (!nr)
			SKIP(return, "no huge page");
		expect_memmap(_metadata, self->memmap - nr * self->freed, "pool has grown");
		ASSERT_EQ(resize(size, nr / 2), nr / 2);
		expect_memmap(_metadata, self->memmap - nr / 2 * self->freed,
			      "pool has shrunk to one half");
		ASSERT_EQ(resize(size, 0), 0);
		expect_memmap(_metadata, self->memmap, "pool is empty");
	}
}

TEST_F_TIMEOUT(hvo, pool, 120)
{
	grow_and_shrink(_metadata, self, variant->size);
}

/* Pages that were optimized are restored after HVO has been switched off */
TEST_F_TIMEOUT(hvo, switched_off, 120)
{
	unsigned long nr;

	nr = resize(variant->size, self->nr / 2);
	if (!nr)
		SKIP(return, "no huge page");
	expect_memmap(_metadata, self->memmap - nr * self->freed, "switched on");
	ASSERT_EQ(hvo_set(0), 0);
	resize(variant->size, self->nr);
	expect_memmap(_metadata, self->memmap - nr * self->freed, "switched off");
	ASSERT_EQ(resize(variant->size, 0), 0);
	expect_memmap(_metadata, self->memmap, "pool is empty");
}

static char *map_pages(unsigned long size, unsigned long nr)
{
	return mmap(NULL, nr * size, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB |
		    __builtin_ctzl(size) << MAP_HUGE_SHIFT, -1, 0);
}

static void fill(char *map, unsigned long size, unsigned long seed)
{
	unsigned long i;

	for (i = 0; i < size; i += psize())
		*(unsigned long *)(map + i) = seed + i;
}

/* Returns the number of pages with other contents than fill() wrote */
static unsigned long nr_lost(char *map, unsigned long size, unsigned long seed)
{
	unsigned long i, lost = 0;

	for (i = 0; i < size; i += psize())
		lost += *(unsigned long *)(map + i) != seed + i;
	return lost;
}

/* Returns the number of base pages that are not said to be of a huge page */
static unsigned long nr_not_huge(char *map, unsigned long size)
{
	const unsigned long nr = size / psize();
	unsigned long i, pfn, wrong = 0;
	uint64_t *flags, want;
	int fd;

	pfn = pfn_of(map);
	flags = malloc(nr * sizeof(*flags));
	fd = open("/proc/kpageflags", O_RDONLY);
	if (!flags || fd < 0 || pread(fd, flags, nr * sizeof(*flags),
				      pfn * sizeof(*flags)) !=
				(ssize_t)(nr * sizeof(*flags))) {
		wrong = nr;
	} else {
		for (i = 0; i < nr; i++) {
			want = KPF_HUGE |
			       (i ? KPF_COMPOUND_TAIL : KPF_COMPOUND_HEAD);
			wrong += (flags[i] & want) != want;
		}
	}
	if (fd >= 0)
		close(fd);
	free(flags);
	return wrong;
}

/* A private page is copied on write after fork() */
TEST_F_TIMEOUT(hvo, copy_on_write, 120)
{
	const unsigned long size = variant->size;
	int status;
	pid_t pid;
	char *map;

	if (resize(size, 2) < 2)
		SKIP(return, "no two huge pages");
	map = map_pages(size, 1);
	ASSERT_NE(map, MAP_FAILED);
	fill(map, size, 1);
	EXPECT_EQ(nr_not_huge(map, size), 0);

	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		fill(map, size, 2);
		_exit(nr_lost(map, size, 2) ? 1 : 0);
	}
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	EXPECT_TRUE(WIFEXITED(status) && !WEXITSTATUS(status));
	EXPECT_EQ(nr_lost(map, size, 1), 0);
	EXPECT_EQ(nr_not_huge(map, size), 0);
	expect_memmap(_metadata, self->memmap - 2 * self->freed, "in use");
	munmap(map, size);
}

/* Pages are allocated by a fault and freed with the mapping */
TEST_F_TIMEOUT(hvo, surplus, 120)
{
	const unsigned long size = variant->size;
	const unsigned long nr = size < POOL_SIZE / 8 ? 8 : POOL_SIZE / size;
	int round;
	char *map;

	if (pool_set(size, "nr_overcommit_hugepages", nr))
		SKIP(return, "no surplus pages of this size");
	for (round = 0; round < ROUNDS; round++) {
		map = map_pages(size, nr);
		if (map == MAP_FAILED && round)
			return;
		if (map == MAP_FAILED)
			SKIP(return, "no surplus pages");
		fill(map, nr * size, round);
		expect_memmap(_metadata, self->memmap - nr * self->freed, "in use");
		EXPECT_EQ(nr_lost(map, nr * size, round), 0);
		munmap(map, nr * size);
		/* Wait for work that frees them */
		ASSERT_EQ(resize(size, 0), 0);
		expect_memmap(_metadata, self->memmap, "unmapped");
	}
}

/* Move the page at @addr. Returns 0 or an error. */
static int move_to_node(char *addr, int node)
{
	void *pages[1] = { addr };
	int status = -1;
	long ret;

	ret = syscall(__NR_move_pages, 0, 1UL, pages, &node, &status, 1 << 1);
	if (ret)
		return ret < 0 ? -errno : ret;
	return status == node ? 0 : -EBUSY;
}

/* Let the pool of @node have one page. Returns false if it has not got it. */
static bool get_page_on_node(unsigned long size, int node)
{
	char path[128];

	snprintf(path, sizeof(path),
		 "/sys/devices/system/node/node%d/hugepages/hugepages-%lukB/nr_hugepages",
		 node, size >> 10);
	return !access(path, F_OK) && resize_file(path, 1) == 1;
}

TEST_F_TIMEOUT(hvo, migrate, 120)
{
	const unsigned long size = variant->size;
	char *map;
	int node;

	if (!get_page_on_node(size, 0) || !get_page_on_node(size, 1))
		SKIP(return, "no huge page on each of two nodes");
	map = map_pages(size, 1);
	ASSERT_NE(map, MAP_FAILED);
	fill(map, size, 1);
	for (node = 1; node >= 0; node--) {
		EXPECT_EQ(move_to_node(map, node), 0);
		EXPECT_EQ(nr_lost(map, size, 1), 0);
		EXPECT_EQ(nr_not_huge(map, size), 0);
	}
	munmap(map, size);
	/* The page that it was moved from may have been freed meanwhile */
	ASSERT_EQ(resize(size, 0), 0);
	expect_memmap(_metadata, self->memmap, "pool is empty");
}

#define MEMORY_BLOCKS	"/sys/devices/system/memory/"

static bool block_is(unsigned long block, const char *state)
{
	char path[128], buf[32] = "";

	snprintf(path, sizeof(path), MEMORY_BLOCKS "memory%lu/state", block);
	return read_file(path, buf, sizeof(buf)) > 0 &&
	       !strncmp(buf, state, strlen(state));
}

/* Take a block of memory "offline", or back "online". Returns whether it is. */
static bool block_set(unsigned long block, const char *state)
{
	char path[128];
	int fd;

	snprintf(path, sizeof(path), MEMORY_BLOCKS "memory%lu/state", block);
	fd = open(path, O_WRONLY);
	if (fd < 0)
		return false;
	if (write(fd, state, strlen(state)) < 0)
		ksft_print_msg("block %lu, %s: %m\n", block, state);
	close(fd);
	return block_is(block, state);
}

/* Memory that goes offline gets back the struct pages of huge pages in the pool */
TEST_F_TIMEOUT(hvo, offline, 240)
{
	const unsigned long size = variant->size;
	unsigned long *blocks, block_size, nr, left, i;
	char buf[32] = "";
	bool offline = false;
	char *map;

	if (read_file(MEMORY_BLOCKS "block_size_bytes", buf, sizeof(buf)) <= 0)
		SKIP(return, "memory cannot be taken offline");
	block_size = strtoul(buf, NULL, 16);
	ASSERT_NE(block_size, 0);
	/* Many, as what was there at boot may have to stay */
	nr = resize(size, 2 * self->nr);
	if (!nr)
		SKIP(return, "no huge page");

	/* Where the pages are, which then are free in the pool again */
	blocks = calloc(nr, sizeof(*blocks));
	ASSERT_NE(blocks, NULL);
	map = map_pages(size, nr);
	ASSERT_NE(map, MAP_FAILED);
	fill(map, nr * size, 1);
	for (i = 0; i < nr; i++)
		blocks[i] = pfn_of(map + i * size) * psize() / block_size;
	munmap(map, nr * size);

	for (i = 0; i < nr && !offline; i++)
		if (!i || blocks[i] != blocks[i - 1])
			offline = block_set(blocks[i], "offline");
	if (!offline)
		SKIP(return, "no block with a huge page could be taken offline");

	left = pool_get(size, "nr_hugepages");
	EXPECT_LT(left, nr);
	/* Other data of the offline pages may be among what is counted */
	ASSERT_TRUE(block_set(blocks[i - 1], "online"));
	expect_memmap(_metadata, self->memmap - left * self->freed, "online again");
	ASSERT_EQ(resize(size, 0), 0);
	expect_memmap(_metadata, self->memmap, "pool is empty");
}

/* Returns the size that pages of @size bytes can be demoted to, or 0 */
static unsigned long demoted_size(unsigned long size)
{
	unsigned long kb = 0;
	char path[128], buf[32] = "";

	pool_path(path, sizeof(path), size, "demote_size");
	if (access(path, F_OK) || read_file(path, buf, sizeof(buf)) <= 0)
		return 0;
	if (sscanf(buf, "%lukB", &kb) != 1)
		return 0;
	return kb << 10;
}

TEST_F_TIMEOUT(hvo, demote, 120)
{
	const unsigned long size = variant->size;
	const unsigned long small = demoted_size(size);
	unsigned long nr = size / (small ?: size), freed, had;

	if (!small)
		SKIP(return, "cannot be demoted");
	/* Too few struct pages to free any: none */
	freed = small / psize() * STRUCT_PAGE_SIZE / psize();
	freed = freed > 1 ? freed - 1 : 0;
	had = pool_get(small, "nr_hugepages");
	if (!resize(size, 1))
		SKIP(return, "no huge page");
	expect_memmap(_metadata, self->memmap - self->freed, "before");
	ASSERT_EQ(pool_set(size, "demote", 1), 0);
	EXPECT_EQ(pool_get(small, "nr_hugepages"), had + nr);
	expect_memmap(_metadata, self->memmap - nr * freed, "demoted");
	ASSERT_EQ(resize(small, had), had);
	expect_memmap(_metadata, self->memmap, "pool is empty");
}

/*
 * Readers and writers of struct pages by their PFN, without a reference. They
 * visit all of the memory, and so all the huge pages of the pool.
 */
struct visitor {
	pthread_t thread;
	const char *path;
	const char *write;	/* a text to write, or NULL to read */
	bool bitmap;		/* write ones for all pages */
	int error;
};

static bool visitors_stop;

static void *visitor_thread(void *arg)
{
	static uint64_t ones[512];
	struct visitor *visitor = arg;
	char buf[sizeof(ones)];
	ssize_t len;
	off_t pos;
	int fd;

	memset(ones, 0xff, sizeof(ones));
	do {
		fd = open(visitor->path,
			  visitor->write || visitor->bitmap ? O_WRONLY : O_RDONLY);
		if (fd < 0) {
			visitor->error = errno;
			break;
		}
		pos = 0;
		do {
			if (visitor->write)
				len = !write(fd, visitor->write, 1);
			else if (visitor->bitmap)
				len = pwrite(fd, ones, sizeof(ones), pos);
			else
				len = pread(fd, buf, sizeof(buf), pos);
			pos += len;
		} while (len > 0 &&
			 !__atomic_load_n(&visitors_stop, __ATOMIC_RELAXED));
		close(fd);
	} while (!__atomic_load_n(&visitors_stop, __ATOMIC_RELAXED));
	return NULL;
}

TEST_F_TIMEOUT(hvo, visited, 240)
{
	struct visitor visitors[] = {
		{ .path = "/proc/kpageflags" },
		{ .path = "/proc/kpagecount" },
		{ .path = "/sys/kernel/mm/page_idle/bitmap" },
		{ .path = "/sys/kernel/mm/page_idle/bitmap", .bitmap = true },
		{ .path = "/proc/sys/vm/compact_memory", .write = "1" },
	};
	unsigned int i;

	visitors_stop = false;
	for (i = 0; i < ARRAY_SIZE(visitors); i++)
		ASSERT_EQ(pthread_create(&visitors[i].thread, NULL,
					 visitor_thread, &visitors[i]), 0);
	grow_and_shrink(_metadata, self, variant->size);
	__atomic_store_n(&visitors_stop, true, __ATOMIC_RELAXED);
	for (i = 0; i < ARRAY_SIZE(visitors); i++) {
		ASSERT_EQ(pthread_join(visitors[i].thread, NULL), 0);
		if (visitors[i].error == ENOENT)
			TH_LOG("there is no %s", visitors[i].path);
		else
			EXPECT_EQ(visitors[i].error, 0) {
				TH_LOG("%s was not visited", visitors[i].path);
			}
	}
}

/* Let the @nth allocation of this task fail, from now on. Returns 0 or an error. */
static int fail_nth(unsigned long nth)
{
	return pool_write("/proc/thread-self/fail-nth", nth);
}

static unsigned long fail_nth_left(void)
{
	char buf[32] = "";

	if (read_file("/proc/thread-self/fail-nth", buf, sizeof(buf)) <= 0)
		return 0;
	return strtoul(buf, NULL, 10);
}

/* Each allocation that a change of the pool makes fails once */
static void resize_and_fail(struct __test_metadata *_metadata,
			    FIXTURE_DATA(hvo) * self, unsigned long size,
			    unsigned long from, unsigned long to)
{
	unsigned long nth, nr, memmap;
	bool failed;

	for (nth = 1; nth <= MAX_FAILURES; nth++) {
		/* Fragmented meanwhile: no failure of what is tested */
		if (resize(size, from) != from)
			return;
		ASSERT_EQ(fail_nth(nth), 0);
		pool_set(size, "nr_hugepages", to);
		failed = !fail_nth_left();
		fail_nth(0);

		/* Fewer may be optimized, but none be lost */
		nr = pool_get(size, "nr_hugepages");
		memmap = memmap_pages();
		EXPECT_GE(memmap, self->memmap - nr * self->freed) {
			TH_LOG("allocation %lu failed: %lu pages, at least %lu expected",
			       nth, memmap, self->memmap - nr * self->freed);
		}
		ASSERT_EQ(resize(size, 0), 0);
		expect_memmap(_metadata, self->memmap, "pool is empty");
		if (!failed)
			return;
	}
	TH_LOG("more than %d allocations", MAX_FAILURES);
}

TEST_F_TIMEOUT(hvo, failed_allocation, 600)
{
	const unsigned long nr = variant->size > SIZE_2M ? 1 : 3;

	if (access("/proc/thread-self/fail-nth", W_OK) ||
	    access(FAIL_PAGE_ALLOC, F_OK))
		SKIP(return, "no fault injection");
	if (variant->size > SIZE_32M)
		SKIP(return, "too many allocations");
	if (resize(variant->size, nr) != nr)
		SKIP(return, "no huge page");
	ASSERT_EQ(pool_write(FAIL_PAGE_ALLOC "min-order", 0), 0);
	ASSERT_EQ(pool_write(FAIL_PAGE_ALLOC "ignore-gfp-wait", 0), 0);

	resize_and_fail(_metadata, self, variant->size, 0, nr);
	resize_and_fail(_metadata, self, variant->size, nr, 0);
}

TEST_HARNESS_MAIN
