// SPDX-License-Identifier: GPL-2.0-only
/*
 * Give the pid of a process to another process while it is being read.
 *
 *	recycle <file> <where>
 *
 * A process with files called "old" is read up to <where>.  With "header" or "files" it is read
 * byte by byte, to the end of its header or of the lines of its first BATCH files; the kernel
 * then has as many more prepared.  With "end" the whole listing is read.  Then the process
 * ends, and the kernel frees its data.  A process with files called "new" gets its pid, in
 * another namespace, and the rest is read; after "end" the whole file is read again, by the
 * same descriptor.
 * Prints a line "pid <pid>", and the text that was read, without what is read again later.
 *
 * With "files" another reader pauses at the same place and closes the file there.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/membarrier.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define FILES 100
#define BATCH 32	/* the module's: lines that it makes at once */
#define TRIES 2000
#define GRACE_PERIODS 3	/* for a task, its pid, and the namespace, in turn */
#define CALLBACKS_US 50000

/* Start an init of a new namespace with FILES files; @pid is its pid here, or 0 for any. */
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

/* Wait for grace periods; what still waits for RCU readers then ends soon. */
static void let_go(void)
{
	for (int i = 0; i < GRACE_PERIODS; i++) {
		if (syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0))
			err(1, "membarrier");
		usleep(CALLBACKS_US);
	}
}

static int open_file(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		err(1, "%s", path);
	return fd;
}

/* Read @n bytes at a time until so many lines have ended; with 0, to the end. */
static void copy(int from, FILE *to, size_t n, int lines)
{
	static char piece[65536];
	ssize_t got;

	while ((got = read(from, piece, n)) > 0) {
		if (to)
			fwrite(piece, 1, got, to);
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
	bool to_the_end;
	int fd, left;

	if (argc != 3)
		errx(2, "usage: recycle <file> header|files|end");
	to_the_end = !strcmp(argv[2], "end");
	old = container("/tmp/old", 0);
	if (old < 0)
		errx(1, "clone3: %s", strerror(-old));
	fd = open_file(argv[1]);
	printf("pid %d\n", old);
	if (to_the_end) {
		copy(fd, NULL, 65536, 0);
	} else if (!strcmp(argv[2], "header")) {
		copy(fd, stdout, 1, 1);
	} else {
		left = open_file(argv[1]);
		copy(left, NULL, 1, 1 + BATCH);
		close(left);
		copy(fd, stdout, 1, 1 + BATCH);
	}

	end(old);
	let_go();
	/* The number becomes free when the last user of the old pid drops it. */
	for (int i = 0; (new = container("/tmp/new", old)) == -EEXIST && i < TRIES; i++)
		usleep(1000);
	if (new != old)
		errx(1, "process %d was to be called %d: %s", new, old,
		     new < 0 ? strerror(-new) : "another number");
	if (to_the_end && lseek(fd, 0, SEEK_SET))
		err(1, "lseek");
	copy(fd, stdout, 65536, 0);
	end(new);
	return 0;
}
