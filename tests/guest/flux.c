// SPDX-License-Identifier: GPL-2.0
/*
 * Read a file repeatedly while processes in containers, and of the host, start and end and
 * change their open files; print everything that was read.
 *
 *	flux <directory> <file> <reads> <seed>
 *
 * Prints "container <k> <pid>" for the first process of each; "read <bytes>" and the bytes
 * for each reading; and at the end "made <workers> <processes of the host>".
 *
 * tests/flux.py checks what a reader may see at any moment: container k (from 1) has the
 * descriptors from FDS * k on, and the files in <directory>/k.
 *
 *	FDS * k		"a" and
 *	FDS * k + 1	"b", open in each process and never closed on exec
 *	FDS * k + 2	"b" on one of these two at any moment, or on both
 *	FDS * k + 3
 *	the next ones	"a" with close-on-exec, or "b" without; never anything else, except
 *			"a" without in a worker that is in execve(2)
 *
 * Each of the two is one open file in a container, with its own position and flags.  The
 * first process is called "init", its workers "init", "one" or "two", and "flux" after
 * execve(2).
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "random.h"

#define CONTAINERS 3
#define WORKERS 2
#define HOSTED 100	/* processes of the host that start and end during all reads */
#define FDS 100
#define USED 70		/* more than two batches of the module */

static char *program;
static unsigned int container;

/* Seen by all processes up to their execve(2). */
static struct shared {
	atomic_ulong workers, hosted, failed;
} *shared;

static int number(unsigned int n)
{
	return FDS * container + n;
}

static void check(long result, const char *what)
{
	if (result < 0)
		err(1, "%s", what);
}

/* Put one of the two files onto a number: file and close-on-exec change in one step. */
static void place(void)
{
	unsigned int n = 4 + random_below(USED - 4), which = random_below(2);

	check(dup3(number(which), number(n), which ? 0 : O_CLOEXEC), "dup3");
}

static void remove_one(void)
{
	close(number(4 + random_below(USED - 4)));
}

/* Move "b" from one of two numbers to the other, without a moment at which it is on neither. */
static void move(void)
{
	unsigned int from = fcntl(number(2), F_GETFD) < 0 ? 3 : 2;

	check(dup3(number(1), number(5 - from), 0), "dup3");
	close(number(from));
}

static void rearrange(unsigned int steps)
{
	while (steps--)
		random_below(3) ? place() : remove_one();
}

static void rename_self(void)
{
	check(prctl(PR_SET_NAME, random_below(2) ? "one" : "two"), "prctl");
}

static _Noreturn void run_again(void)
{
	char which[16], state[32];
	char *argv[] = { program, which, state, NULL };

	snprintf(which, sizeof(which), "%u", container);
	snprintf(state, sizeof(state), "%llu", (unsigned long long)random_next());
	execve(program, argv, argv + 3);
	err(1, "%s", program);
}

static void child(void)
{
	uint32_t kind = random_below(4);
	pid_t pid;

	if (!kind)
		check(setsid(), "setsid");
	if (kind == 1)
		rename_self();
	rearrange(random_below(30));
	/* An orphan for the container's first process. */
	if (kind == 2) {
		pid = fork();
		check(pid, "fork");
		if (!pid)
			rearrange(random_below(30));
	}
}

/* A child, with a table of its own or with its parent's. */
static void make_child(void)
{
	bool sharing = !random_below(4);
	pid_t pid = syscall(SYS_clone, SIGCHLD | (sharing ? CLONE_FILES : 0), 0, 0, 0, 0);
	int status = 0;

	check(pid, "clone");
	if (!pid) {
		random_begin(random_next() + getpid());
		child();
		_exit(0);
	}
	/* The rest stay zombies until we end ourselves, or wait for them by chance. */
	if (sharing)
		check(waitpid(pid, &status, 0), "waitpid");
	else if (random_below(3))
		waitpid(-1, &status, 0);
	if (status)
		_exit(1);
}

static _Noreturn void work(void)
{
	for (unsigned int left = 1 + random_below(60); left; left--) {
		switch (random_below(8)) {
		case 0:
		case 1:
			make_child();
			break;
		case 2:
			rename_self();
			break;
		case 3:
			if (!random_below(8))
				run_again();
			break;
		case 4:
			move();
			break;
		default:
			rearrange(10);
		}
	}
	_exit(0);
}

static void open_at(const char *name, int flags, off_t position, int fd)
{
	int file = open(name, flags | O_CREAT, 0600);

	check(file, name);
	check(lseek(file, position, SEEK_SET), "lseek");
	check(dup2(file, fd), "dup2");
	close(file);
}

static pid_t start_worker(void)
{
	pid_t pid;

	random_next();
	pid = fork();
	if (pid < 0) {
		atomic_fetch_add(&shared->failed, 1);
		return 0;
	}
	if (!pid) {
		rename_self();
		work();
	}
	atomic_fetch_add(&shared->workers, 1);
	return pid;
}

/* The first process of a container keeps the number of workers constant. */
static _Noreturn void contain(uint64_t seed, int ready)
{
	pid_t workers[WORKERS];
	char name[16];
	int status;

	random_begin(seed);
	check(prctl(PR_SET_PDEATHSIG, SIGKILL), "prctl");
	check(prctl(PR_SET_NAME, "init"), "prctl");
	snprintf(name, sizeof(name), "%u", container);
	check(mkdir(name, 0700), name);
	check(chdir(name), name);
	open_at("a", O_RDWR | O_APPEND, 11, number(0));
	open_at("b", O_RDONLY | O_NONBLOCK, 22, number(1));
	check(dup2(number(1), number(2)), "dup2");
	check(write(ready, "", 1), "write");
	/* The end of that pipe tells that nothing else is open any more. */
	for (int fd = 0; fd < FDS * (CONTAINERS + 2); fd++)
		if (fd < number(0) || fd > number(2))
			close(fd);
	for (unsigned int i = 0; i < WORKERS; i++)
		workers[i] = start_worker();
	for (;;) {
		/* A worker of ours, or an orphan. */
		pid_t pid = wait(&status);

		if (pid < 0 || status)
			atomic_fetch_add(&shared->failed, 1);
		for (unsigned int i = 0; i < WORKERS; i++)
			if (workers[i] == pid)
				workers[i] = start_worker();
	}
}

/* Processes of the host: they use up pids, and none of them may ever be shown. */
static _Noreturn void change_host(void)
{
	check(prctl(PR_SET_PDEATHSIG, SIGKILL), "prctl");
	check(prctl(PR_SET_NAME, "host"), "prctl");
	for (;;) {
		pid_t pid = fork();

		if (!pid)
			_exit(0);
		if (pid < 0 || waitpid(pid, NULL, 0) != pid)
			atomic_fetch_add(&shared->failed, 1);
		atomic_fetch_add(&shared->hosted, 1);
	}
}

static void read_once(const char *path)
{
	static char *text;
	static size_t room;
	size_t length = 0;
	ssize_t got;
	int fd = open(path, O_RDONLY);

	check(fd, path);
	do {
		if (room < length + 65536) {
			room = 2 * (length + 65536);
			text = realloc(text, room);
			if (!text)
				err(1, "realloc");
		}
		got = read(fd, text + length, 65536);
		check(got, path);
		length += got;
	} while (got);
	close(fd);
	printf("read %zu\n", length);
	if (fwrite(text, 1, length, stdout) != length)
		err(1, "standard output");
}

static pid_t start_container(uint64_t seed)
{
	int ready[2];
	pid_t pid;
	char byte;

	check(pipe(ready), "pipe");
	pid = syscall(SYS_clone, SIGCHLD | CLONE_NEWPID, 0, 0, 0, 0);
	check(pid, "clone");
	if (!pid) {
		close(ready[0]);
		contain(seed, ready[1]);
	}
	close(ready[1]);
	if (read(ready[0], &byte, 1) != 1 || read(ready[0], &byte, 1) != 0)
		errx(1, "container %u did not come up", container);
	close(ready[0]);
	printf("container %u %d\n", container, pid);
	return pid;
}

int main(int argc, char **argv)
{
	pid_t children[CONTAINERS + 1];
	unsigned long reads;
	uint64_t seed;

	program = argv[0];
	if (argc == 3) {
		/* execve(2) has left a descriptor table and two numbers. */
		container = atoi(argv[1]);
		random_begin(strtoull(argv[2], NULL, 10));
		work();
	}
	if (argc != 5 || *program != '/')
		errx(2, "usage: /absolute/path/of/flux <directory> <file> <reads> <seed>");
	check(mkdir(argv[1], 0700), argv[1]);
	check(chdir(argv[1]), argv[1]);
	seed = strtoull(argv[4], NULL, 10);
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
		      -1, 0);
	if (shared == MAP_FAILED)
		err(1, "mmap");
	for (container = 1; container <= CONTAINERS; container++)
		children[container] = start_container(seed + container);
	fflush(stdout);
	children[0] = fork();
	check(children[0], "fork");
	if (!children[0])
		change_host();

	reads = strtoul(argv[3], NULL, 10);
	for (unsigned long done = 0; done < reads; done++) {
		read_once(argv[2]);
		/* On a busy host our processes may get less time than the one that reads. */
		while (atomic_load(&shared->hosted) * reads < HOSTED * done)
			usleep(1000);
	}

	for (unsigned int i = 0; i <= CONTAINERS; i++)
		kill(children[i], SIGKILL);
	while (wait(NULL) > 0)
		;
	if (atomic_load(&shared->failed))
		errx(1, "%lu processes failed", atomic_load(&shared->failed));
	printf("made %lu %lu\n", atomic_load(&shared->workers), atomic_load(&shared->hosted));
	return 0;
}
