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

#endif /* BENCH_H */
