// SPDX-License-Identifier: GPL-2.0
/*
 * Read a file in unusual ways, and write what was read to standard output.
 *
 *	observe_reads <file> size <n>		read(2) of n bytes each
 *	observe_reads <file> pread <n>		pread(2) of n bytes each, from the end backwards
 *	observe_reads <file> lseek <n>		lseek(2) and read(2), every other piece first
 *	observe_reads <file> together <n>	n readers at once, each in pieces of another size
 *	observe_reads <file> count <n>		read(2) of n bytes each, and keep nothing
 *	observe_reads <file> hold <n>		open it n times, read a piece of each, and hold them
 *	observe_reads <file> storm <seconds>	repeatedly, while processes start and end
 *
 * together fails if two of them read different bytes.  storm prints "<reads of the whole
 * file> <bytes> <processes>" and then the bytes.  count prints only
 *	<bytes> <records> <descriptors> <highest descriptor> <slab kB> <vmalloc kB>
 * The last two are the maximum that /proc/meminfo showed during the reads, minus the value
 * before.  count fails if the descriptors of a record do not ascend.  hold prints "closed",
 * takes a byte, prints "open", and ends with its standard input.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define WORKERS 4
#define SHOWN (1 << 20)

static char *text;
static size_t length, room;

static void append(const char *piece, size_t size)
{
	while (length + size > room) {
		room = room ? 2 * room : 1 << 16;
		text = realloc(text, room);
		if (!text)
			err(1, "realloc");
	}
	memcpy(text + length, piece, size);
	length += size;
}

static int open_file(const char *path)
{
	int fd = open(path, O_RDONLY);

	if (fd < 0)
		err(1, "%s", path);
	return fd;
}

/* Read to the end in steps of n bytes. */
static void read_all(const char *path, size_t n)
{
	char *piece = malloc(n);
	int fd = open_file(path);
	ssize_t got;

	if (!piece)
		err(1, "malloc");
	while ((got = read(fd, piece, n)) > 0)
		append(piece, got);
	if (got < 0)
		err(1, "read");
	free(piece);
	close(fd);
}

/* A read may give less than was asked for, but only the end of the file gives nothing. */
static void fill(int fd, char *to, size_t size, off_t offset, int seek)
{
	ssize_t got;

	if (seek && lseek(fd, offset, SEEK_SET) != offset)
		err(1, "lseek to %jd", (intmax_t)offset);
	while (size) {
		got = seek ? read(fd, to, size) : pread(fd, to, size, offset);
		if (got < 0)
			err(1, "read at %jd", (intmax_t)offset);
		if (!got)
			errx(1, "the file ends at %jd", (intmax_t)offset);
		to += got;
		size -= got;
		offset += got;
	}
}

static size_t piece_size(size_t offset, size_t n)
{
	return offset + n > length ? length - offset : n;
}

static void read_backwards(const char *path, size_t n)
{
	int fd = open_file(path);

	for (size_t i = (length + n - 1) / n; i-- > 0;)
		fill(fd, text + i * n, piece_size(i * n, n), i * n, 0);
	close(fd);
}

static void read_interleaved(const char *path, size_t n)
{
	int fd = open_file(path);

	for (size_t first = 0; first < 2; first++)
		for (size_t offset = first * n; offset < length; offset += 2 * n)
			fill(fd, text + offset, piece_size(offset, n), offset, 1);
	close(fd);
}

/* Return the kB that /proc/meminfo shows for a kind of memory. */
static long memory(const char *info, const char *kind)
{
	const char *found = strstr(info, kind);

	if (!found)
		errx(1, "/proc/meminfo has no %s", kind);
	return strtol(found + strlen(kind), NULL, 10);
}

static void meminfo(long *slab, long *vmalloc)
{
	static char info[8192];
	int fd = open_file("/proc/meminfo");
	ssize_t got = read(fd, info, sizeof(info) - 1);

	if (got <= 0)
		err(1, "/proc/meminfo");
	info[got] = '\0';
	close(fd);
	*slab = memory(info, "\nSlab:");
	*vmalloc = memory(info, "\nVmallocUsed:");
}

static void count(const char *path, size_t n)
{
	unsigned long long bytes = 0, records = 0, descriptors = 0, pieces = 0;
	long slab, vmalloc, slab_before, vmalloc_before, slab_most = 0, vmalloc_most = 0;
	long number = 0, last = -1, highest = -1;
	enum { BEGIN, NUMBER, REST } in = BEGIN;
	char *piece = malloc(n);
	int fd, header = 1;
	ssize_t got;

	if (!piece)
		err(1, "malloc");
	memset(piece, 0, n);
	meminfo(&slab_before, &vmalloc_before);
	fd = open_file(path);
	while ((got = read(fd, piece, n)) > 0) {
		bytes += got;
		for (char *p = piece; p < piece + got; p++) {
			if (in == BEGIN && *p == '\n') {
				header = 1;
				continue;
			}
			if (in == BEGIN) {
				in = header ? REST : NUMBER;
				records += header;
				last = header ? -1 : last;
				header = 0;
				number = 0;
			}
			if (in == NUMBER && *p == '\t') {
				if (number <= last)
					errx(1, "descriptor %ld after %ld", number, last);
				last = number;
				highest = number > highest ? number : highest;
				descriptors++;
				in = REST;
			} else if (in == NUMBER) {
				number = 10 * number + *p - '0';
			}
			if (*p == '\n')
				in = BEGIN;
		}
		if (pieces++ % 16 == 0) {
			meminfo(&slab, &vmalloc);
			slab_most = slab > slab_most ? slab : slab_most;
			vmalloc_most = vmalloc > vmalloc_most ? vmalloc : vmalloc_most;
		}
	}
	if (got < 0)
		err(1, "read");
	printf("%llu %llu %llu %ld %ld %ld\n", bytes, records, descriptors, highest,
	       slab_most - slab_before, vmalloc_most - vmalloc_before);
}

static void hold(const char *path, unsigned int readers)
{
	static char piece[65536];

	memset(piece, 0, sizeof(piece));
	printf("closed\n");
	fflush(stdout);
	if (read(0, piece, 1) != 1)
		errx(1, "no byte told us to go on");
	for (unsigned int i = 0; i < readers; i++)
		if (read(open_file(path), piece, sizeof(piece)) <= 0)
			err(1, "read");
	printf("open\n");
	fflush(stdout);
	while (read(0, piece, 1) > 0)
		;
}

/* The first reader's bytes are printed; the others compare theirs with these. */
static void together(const char *path, unsigned int readers)
{
	atomic_uint *ready = mmap(NULL, sizeof(*ready), PROT_READ | PROT_WRITE,
				  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int status, failed = 0;
	char *expected;
	size_t expected_length;

	if (ready == MAP_FAILED)
		err(1, "mmap");
	read_all(path, 65536);
	expected = text;
	expected_length = length;
	for (unsigned int i = 0; i < readers; i++) {
		pid_t pid = fork();

		if (pid < 0)
			err(1, "fork");
		if (pid)
			continue;
		text = NULL;
		length = room = 0;
		atomic_fetch_add(ready, 1);
		while (atomic_load(ready) < readers)
			;
		read_all(path, 1 << (4 + 2 * i % 14));
		_exit(length != expected_length || memcmp(text, expected, length));
	}
	while (wait(&status) > 0)
		failed += status != 0;
	if (failed)
		errx(1, "%d of %u readers saw other bytes", failed, readers);
}

static void come_and_go(atomic_ulong *count)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (;;) {
		pid_t pid = fork();

		if (!pid)
			_exit(0);
		if (pid > 0 && waitpid(pid, NULL, 0) == pid)
			atomic_fetch_add(count, 1);
	}
}

static void storm(const char *path, unsigned int seconds)
{
	atomic_ulong *count = mmap(NULL, sizeof(*count), PROT_READ | PROT_WRITE,
				   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pid_t workers[WORKERS];
	unsigned long reads = 0;
	time_t end = time(NULL) + seconds;

	if (count == MAP_FAILED)
		err(1, "mmap");
	for (int i = 0; i < WORKERS; i++) {
		workers[i] = fork();
		if (workers[i] < 0)
			err(1, "fork");
		if (!workers[i])
			come_and_go(count);
	}
	while (time(NULL) < end && length < SHOWN) {
		read_all(path, 65536);
		reads++;
	}
	for (int i = 0; i < WORKERS; i++) {
		kill(workers[i], SIGKILL);
		waitpid(workers[i], NULL, 0);
	}
	printf("%lu %zu %lu\n", reads, length, atomic_load(count));
}

int main(int argc, char **argv)
{
	unsigned long number;

	if (argc != 4)
		errx(2, "usage: observe_reads <file> <way> <number>");
	number = strtoul(argv[3], NULL, 10);
	if (!number)
		errx(2, "%s is not a number above 0", argv[3]);

	if (!strcmp(argv[2], "storm")) {
		storm(argv[1], number);
	} else if (!strcmp(argv[2], "count")) {
		count(argv[1], number);
	} else if (!strcmp(argv[2], "hold")) {
		hold(argv[1], number);
	} else if (!strcmp(argv[2], "together")) {
		together(argv[1], number);
	} else if (!strcmp(argv[2], "size")) {
		read_all(argv[1], number);
	} else {
		/* Only its length is used; the printed text comes from the other way. */
		read_all(argv[1], 65536);
		memset(text, 0, length);
		if (!strcmp(argv[2], "pread"))
			read_backwards(argv[1], number);
		else if (!strcmp(argv[2], "lseek"))
			read_interleaved(argv[1], number);
		else
			errx(2, "%s is no way of reading", argv[2]);
	}
	if (fwrite(text, 1, length, stdout) != length || fflush(stdout))
		err(1, "standard output");
	return 0;
}
