// SPDX-License-Identifier: GPL-2.0
/*
 * Read a file to its end, 64 KiB at a time.
 *
 *	bench_read passes <n> <file>
 *	bench_read loop <cpu> <file>
 */
#define _GNU_SOURCE
#include <fcntl.h>

#include "bench.h"

static char buffer[64 * 1024];
static const char *name;

static unsigned long long count_lines(const char *text, size_t length)
{
	const char *end = text + length;
	unsigned long long lines = 0;

	while ((text = memchr(text, '\n', end - text))) {
		text++;
		lines++;
	}
	return lines;
}

static void read_file(struct reading *reading, int count)
{
	int fd = open(name, O_RDONLY);
	ssize_t got;

	if (fd < 0)
		err(1, "%s", name);
	while ((got = read(fd, buffer, sizeof(buffer))) > 0) {
		reading->bytes += got;
		if (count)
			reading->lines += count_lines(buffer, got);
	}
	if (got < 0)
		err(1, "%s", name);
	close(fd);
}

int main(int argc, char **argv)
{
	if (argc != 4)
		errx(2, "usage: bench_read passes|loop <n> <file>");
	name = argv[3];
	bench_main(argv, read_file);
	return 0;
}
