// SPDX-License-Identifier: GPL-2.0-only
/*
 * Change all descriptors of a process between two reads of its record.
 *
 *	moment <file> <size>|header
 *
 * A process in a container has the descriptors 1 to FILES, all "old".  The reader reads
 * pieces of <size> bytes until the line of the first descriptor has ended, or with "header"
 * only the header.  Then the process has the descriptors 0 to FILES - 1, all "new", and the
 * rest is read.  Prints a line "pid <pid>", and the text that was read.  Two more
 * descriptors are the process's pipes.
 *
 * Nothing changes during a read(2), so the text depends only on where the kernel pauses.
 * Lines are so long that a buffer of 64 KiB has room for one and a half batches of 32.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define FILES 64
/* Each byte is shown as four: a line has some 1,050 bytes. */
#define LONG 240

static void check(long result, const char *what)
{
	if (result < 0)
		err(1, "%s", what);
}

static void tell(int to)
{
	if (write(to, "", 1) != 1)
		err(1, "write");
}

static void hear(int from)
{
	char byte;

	if (read(from, &byte, 1) != 1)
		errx(1, "the other process has ended");
}

/* Put one open file on FILES descriptors. */
static void fill(const char *name, int first)
{
	char path[LONG + 16] = "/tmp/";
	int file;

	memset(path + strlen(path), '\n', LONG);
	strcat(path, name);
	file = open(path, O_RDWR | O_CREAT, 0600);
	check(file, name);
	for (int fd = first; fd < first + FILES; fd++)
		check(dup2(file, fd), "dup2");
	if (file < first || file >= first + FILES)
		close(file);
}

static _Noreturn void observed(int in, int out)
{
	/* Keep the pipes away from the descriptors under test. */
	check(dup2(in, FILES + 1), "dup2");
	check(dup2(out, FILES + 2), "dup2");
	close(0);
	fill("old", 1);
	tell(FILES + 2);
	hear(FILES + 1);
	fill("new", 0);
	close(FILES);
	tell(FILES + 2);
	/* Stay until we are killed, or until no process is left that could. */
	hear(FILES + 1);
	_exit(1);
}

/* Read pieces until so many lines have ended; with 0, to the end of the file. */
static void copy(int from, size_t size, int lines)
{
	static char piece[65536];
	ssize_t got;

	while ((got = read(from, piece, size)) > 0) {
		if (fwrite(piece, 1, got, stdout) != (size_t)got)
			err(1, "standard output");
		if (!lines)
			continue;
		for (char *p = piece; p < piece + got; p++)
			lines -= *p == '\n';
		if (lines <= 0)
			return;
	}
	check(got, "read");
	if (lines)
		errx(1, "the listing ended too early");
}

static int open_file(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	check(fd, path);
	return fd;
}

/* Return the length of the first line. */
static size_t header_size(const char *path)
{
	static char text[65536];
	int fd = open_file(path);
	ssize_t got = read(fd, text, sizeof(text));
	char *end;

	check(got, path);
	end = memchr(text, '\n', got);
	if (!end)
		errx(1, "there is no header");
	close(fd);
	return end + 1 - text;
}

int main(int argc, char **argv)
{
	int to[2], from[2], fd;
	bool header;
	size_t size;
	pid_t pid;

	header = argc == 3 && !strcmp(argv[2], "header");
	size = argc == 3 ? strtoul(argv[2], NULL, 10) : 0;
	if (!header && (!size || size > 65536))
		errx(2, "usage: moment <file> <size up to 65536>|header");
	check(pipe2(to, O_CLOEXEC), "pipe2");
	check(pipe2(from, O_CLOEXEC), "pipe2");
	pid = syscall(SYS_clone, SIGCHLD | CLONE_NEWPID, 0, 0, 0, 0);
	check(pid, "clone");
	if (!pid)
		observed(to[0], from[1]);
	close(from[1]);
	printf("pid %d\n", pid);

	hear(from[0]);
	if (header)
		size = header_size(argv[1]);
	fd = open_file(argv[1]);
	copy(fd, size, header ? 1 : 2);
	tell(to[1]);
	hear(from[0]);
	copy(fd, 65536, 0);

	if (kill(pid, SIGKILL) || waitpid(pid, NULL, 0) != pid)
		err(1, "ending process %d", pid);
	return 0;
}
