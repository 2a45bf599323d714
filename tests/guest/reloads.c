// SPDX-License-Identifier: GPL-2.0-only
/*
 * Load and unload the module under readers that begin, go on and end at any moment.
 *
 *	reloads <file> <module's file> <cycles> <readers>
 *
 * Each cycle has a namespace of its own, with one process that holds a file on a file
 * system of ours.  A reader pauses inside that record and the process ends.  Then the module
 * is unloaded, in every other cycle after that reader has closed the file.
 * Prints "<cycles> <whole listings> <opens refused> <reads refused>": refused with ENOENT
 * and with EIO, as only an unloading may do.  Every other error is a failure.
 *
 * A leaked reference is noticed: one on a struct pid keeps its namespace, and only a few
 * namespaces may exist; one on an open file keeps the file system busy.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define MODULE "cplayground"
#define PLACE "/tmp/reloads"
#define LIMIT "/proc/sys/user/max_pid_namespaces"
#define NAMESPACES "24"	/* far fewer than cycles; one is freed some time after its end */
#define TRIES 2000
#define READERS 16

static struct counts {
	atomic_ulong whole, absent, cut_off;
} *counts;	/* one for each reader */

static void check(int failed, const char *what)
{
	if (failed)
		err(1, "%s", what);
}

static pid_t fork_in(int flags)
{
	pid_t pid = syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0);

	if (!pid)
		check(prctl(PR_SET_PDEATHSIG, SIGKILL), "prctl");
	return pid;
}

static void end(pid_t pid)
{
	check(kill(pid, SIGKILL) || waitpid(pid, NULL, 0) != pid, "ending a process");
}

static void set_limit(const char *text)
{
	int fd = open(LIMIT, O_WRONLY);

	check(fd < 0 || write(fd, text, strlen(text)) < 0, LIMIT);
	close(fd);
}

static void read_for_ever(const char *path, struct counts *mine)
{
	static char piece[65536];

	for (;;) {
		int fd = open(path, O_RDONLY);
		ssize_t got;

		if (fd < 0) {
			check(errno != ENOENT, "open");
			atomic_fetch_add(&mine->absent, 1);
			continue;
		}
		while ((got = read(fd, piece, sizeof(piece))) > 0)
			;
		check(got < 0 && errno != EIO, "read");
		atomic_fetch_add(got < 0 ? &mine->cut_off : &mine->whole, 1);
		close(fd);
	}
}

/* Wait until each reader has seen another whole listing, or that there is no file. */
static void wait_for(unsigned int readers, int whole)
{
	for (unsigned int i = 0; i < readers; i++) {
		atomic_ulong *count = whole ? &counts[i].whole : &counts[i].absent;
		unsigned long then = atomic_load(count);

		while (atomic_load(count) == then) {
			if (waitpid(-1, NULL, WNOHANG))
				errx(1, "a reader has ended");
			sched_yield();
		}
	}
}

static pid_t container(void)
{
	int ready[2];
	char byte;
	pid_t pid;

	check(pipe2(ready, O_CLOEXEC), "pipe2");
	for (int i = 0; (pid = fork_in(CLONE_NEWPID)) < 0; i++) {
		if (errno != ENOSPC || i == TRIES)
			err(1, "a new namespace, with " NAMESPACES " at most");
		usleep(1000);
	}
	if (!pid) {
		check(open(PLACE "/held", O_RDWR | O_CREAT, 0600) < 0, "held");
		check(write(ready[1], "", 1) != 1, "write");
		for (;;)
			pause();
	}
	close(ready[1]);
	if (read(ready[0], &byte, 1) != 1)
		errx(1, "a container did not begin");
	close(ready[0]);
	return pid;
}

/* Open the file, and read up to the middle of the header of a namespace's first process. */
static int stop_inside(const char *file, pid_t pid)
{
	static char text[1 << 20];
	int fd = open(file, O_RDONLY);
	char numbers[64], *found;
	size_t length = 0;
	ssize_t got;

	check(fd < 0, file);
	while ((got = read(fd, text + length, sizeof(text) - 1 - length)) > 0)
		length += got;
	check(got < 0, "read");
	text[length] = '\0';
	snprintf(numbers, sizeof(numbers), "\t%d\t1\t0\t", pid);
	found = strstr(text, numbers);
	if (!found)
		errx(1, "process %d is not shown", pid);
	check(pread(fd, text, 1, found - text) != 1, "pread");
	return fd;
}

static void cycle(const char *file, int module, unsigned int readers, int open_at_unload)
{
	pid_t pid = container();
	char text[70];
	int fd;

	check(syscall(SYS_finit_module, module, "", 0), "finit_module");
	fd = stop_inside(file, pid);
	end(pid);
	wait_for(readers, 1);
	if (!open_at_unload)
		close(fd);
	check(syscall(SYS_delete_module, MODULE, O_NONBLOCK), "delete_module");
	if (open_at_unload) {
		if (read(fd, text, sizeof(text)) >= 0 || errno != EIO)
			errx(1, "a read after the unloading did not give EIO");
		close(fd);
	}
	wait_for(readers, 0);
}

int main(int argc, char **argv)
{
	unsigned long whole = 0, absent = 0, cut_off = 0;
	unsigned int cycles, readers;
	char before[32] = "";
	pid_t pids[READERS];
	int module, fd;

	if (argc != 5)
		errx(2, "usage: reloads <file> <module's file> <cycles> <readers>");
	cycles = strtoul(argv[3], NULL, 10);
	readers = strtoul(argv[4], NULL, 10);
	if (!cycles || !readers || readers > READERS)
		errx(2, "%s cycles, %s readers", argv[3], argv[4]);
	counts = mmap(NULL, READERS * sizeof(*counts), PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	check(counts == MAP_FAILED, "mmap");
	module = open(argv[2], O_RDONLY | O_CLOEXEC);
	check(module < 0, argv[2]);
	fd = open(LIMIT, O_RDONLY);
	check(fd < 0 || read(fd, before, sizeof(before) - 1) <= 0, LIMIT);
	close(fd);
	check(mkdir(PLACE, 0700) || mount("tmpfs", PLACE, "tmpfs", 0, NULL), PLACE);

	for (unsigned int i = 0; i < readers; i++) {
		pids[i] = fork_in(0);
		check(pids[i] < 0, "clone");
		if (!pids[i])
			read_for_ever(argv[1], &counts[i]);
	}
	set_limit(NAMESPACES);
	for (unsigned int i = 0; i < cycles; i++)
		cycle(argv[1], module, readers, i % 2);
	set_limit(before);
	for (unsigned int i = 0; i < readers; i++) {
		end(pids[i]);
		whole += atomic_load(&counts[i].whole);
		absent += atomic_load(&counts[i].absent);
		cut_off += atomic_load(&counts[i].cut_off);
	}
	check(umount(PLACE) || rmdir(PLACE), "umount " PLACE);
	printf("%u %lu %lu %lu\n", cycles, whole, absent, cut_off);
	return 0;
}
