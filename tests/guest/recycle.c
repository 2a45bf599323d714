// SPDX-License-Identifier: GPL-2.0-only
/*
 * Give the pid of a process that is being shown to another one.
 *
 *	recycle <file> <where>
 *
 * A process with files called "old" is read byte by byte up to <where>: "header" or "files",
 * the end of its header or of its first file's line (the kernel then has the next line ready).
 * Then it ends, a process with files called "new" gets its pid, in another namespace, and the
 * rest is read.  Prints what was read, and a line "pid <pid>" first.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define FILES 100
#define TRIES 2000

/* An init of a new namespace with FILES files; @pid is what it is to be called here, or 0. */
static pid_t container(const char *name, pid_t pid)
{
	pid_t wanted[2] = { 1, pid };
	struct clone_args args = {
		.flags = CLONE_NEWPID,
		.exit_signal = SIGCHLD,
		.set_tid = pid ? (uint64_t)(uintptr_t)wanted : 0,
		.set_tid_size = pid ? 2 : 0,
	};
	int ready[2];
	char byte;
	pid_t got;

	if (pipe2(ready, O_CLOEXEC))
		err(1, "pipe2");
	got = syscall(SYS_clone3, &args, sizeof(args));
	if (got < 0)
		return -errno;
	if (!got) {
		close(0);
		close(1);
		for (int i = 0; i < FILES; i++)
			if (open(name, O_RDWR | O_CREAT, 0600) < 0)
				err(1, "%s", name);
		if (write(ready[1], "", 1) != 1)
			err(1, "write");
		for (;;)
			pause();
	}
	close(ready[1]);
	if (read(ready[0], &byte, 1) != 1)
		errx(1, "the process with files called %s did not begin", name);
	close(ready[0]);
	return got;
}

static void end(pid_t pid)
{
	if (kill(pid, SIGKILL) || waitpid(pid, NULL, 0) != pid)
		err(1, "ending process %d", pid);
}

static void copy(int from, size_t n, int lines)
{
	static char piece[65536];
	ssize_t got;

	while ((got = read(from, piece, n)) > 0) {
		fwrite(piece, 1, got, stdout);
		if (lines && piece[0] == '\n' && !--lines)
			return;
	}
	if (got < 0)
		err(1, "read");
	if (lines)
		errx(1, "the listing ended too early");
}

int main(int argc, char **argv)
{
	pid_t old, new;
	int fd;

	if (argc != 3)
		errx(2, "usage: recycle <file> header|files");
	old = container("/tmp/old", 0);
	if (old < 0)
		errx(1, "clone3: %s", strerror(-old));
	fd = open(argv[1], O_RDONLY);
	if (fd < 0)
		err(1, "%s", argv[1]);
	printf("pid %d\n", old);
	copy(fd, 1, strcmp(argv[2], "header") ? 2 : 1);

	end(old);
	/* The number is free when the last user of the old one has let it go. */
	for (int i = 0; (new = container("/tmp/new", old)) == -EEXIST && i < TRIES; i++)
		usleep(1000);
	if (new != old)
		errx(1, "process %d was to be called %d: %s", new, old,
		     new < 0 ? strerror(-new) : "another number");
	copy(fd, 65536, 0);
	end(new);
	return 0;
}
