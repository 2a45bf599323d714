// SPDX-License-Identifier: GPL-2.0
/*
 * Open, duplicate and close descriptors while a reader observes this program.  It works on
 * one CPU, in its own PID namespace, with the given number of other descriptors open.
 *
 *	bench_work <cpu> <descriptors>
 *
 * Prints "container <global pid>" when they are open.  For each line "<milliseconds>" on its
 * standard input it works until it has used that CPU time, and prints
 * "work <operations> <ns of CPU>".
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "bench.h"

#define ROUND 64	/* repetitions between two looks at the clock */

/* Set when the descriptors are open.  A pipe for the message would be two more of them. */
static _Atomic int *open_now;

static void must(long result, const char *what)
{
	if (result < 0)
		err(1, "%s", what);
}

/* Returns the number of operations on the file table. */
static unsigned long work(void)
{
	unsigned long operations = 0;
	struct stat status;
	int fd, other, ends[2];

	for (int i = 0; i < ROUND; i++) {
		fd = open("/dev/null", O_RDWR | O_CLOEXEC);
		must(fd, "open");
		other = dup(fd);
		must(other, "dup");
		must(fstat(other, &status), "fstat");
		must(close(fd), "close");
		must(close(other), "close");
		must(pipe2(ends, O_CLOEXEC), "pipe2");
		must(close(ends[0]), "close");
		must(close(ends[1]), "close");
		operations += 8;
	}
	return operations;
}

static void serve(unsigned long descriptors)
{
	struct rlimit limit = { descriptors + 64, descriptors + 64 };
	char line[64];

	must(prctl(PR_SET_PDEATHSIG, SIGKILL), "prctl");
	must(setrlimit(RLIMIT_NOFILE, &limit), "setrlimit");
	for (unsigned long i = 0; i < descriptors; i++)
		must(open("/dev/zero", O_RDONLY), "open");
	*open_now = 1;
	while (fgets(line, sizeof(line), stdin)) {
		unsigned long long began, used, limit_ns = strtoull(line, NULL, 10) * 1000000ULL;
		unsigned long operations = 0;

		work();
		began = now_of(CLOCK_THREAD_CPUTIME_ID);
		do {
			operations += work();
			used = now_of(CLOCK_THREAD_CPUTIME_ID) - began;
		} while (used < limit_ns);
		printf("work %lu %llu\n", operations, used);
	}
}

int main(int argc, char **argv)
{
	unsigned long descriptors;
	pid_t pid;

	if (argc != 3)
		errx(2, "usage: bench_work <cpu> <descriptors>");
	setlinebuf(stdout);
	pin(number(argv[1]));
	descriptors = number(argv[2]);
	open_now = mmap(NULL, sizeof(*open_now), PROT_READ | PROT_WRITE,
			MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (open_now == MAP_FAILED)
		err(1, "mmap");
	pid = syscall(SYS_clone, CLONE_NEWPID | SIGCHLD, 0, 0, 0, 0);
	must(pid, "clone");
	if (!pid) {
		serve(descriptors);
		return 0;
	}
	while (!*open_now) {
		if (waitpid(pid, NULL, WNOHANG))
			errx(1, "the container did not come up");
		usleep(1000);
	}
	printf("container %d\n", pid);
	must(waitpid(pid, NULL, 0), "waitpid");
	return 0;
}
