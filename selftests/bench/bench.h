/* SPDX-License-Identifier: GPL-2.0 */
/* What the benchmarks share */
#ifndef BENCH_H
#define BENCH_H

#include <err.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

static inline void put(const char *path, const char *value)
{
	int fd = open(path, O_WRONLY);

	if (fd < 0 || write(fd, value, strlen(value)) != (ssize_t)strlen(value))
		err(1, "%s", path);
	close(fd);
}

/*
 * NOPs that nothing else has, by which locked_plugin.c knows when a time was taken
 * (1), and when the difference of the last two times was reported (2).
 */
#if defined(__x86_64__)
#define mark(n)	asm volatile(".byte 0x0f, 0x1f, 0x80, 'L', 'P', 'B', %c0" : : "i" (n) : "memory")
#elif defined(__aarch64__)
#define mark(n)	asm volatile("hint #%c0" : : "i" (95 + (n)) : "memory")
#else
#define mark(n)	do { } while (0)
#endif

#endif /* BENCH_H */
