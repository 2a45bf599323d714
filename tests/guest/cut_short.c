// SPDX-License-Identifier: GPL-2.0-only
/*
 * Interrupt a long read(2) from outside, and print how much of it was still done.
 *
 *	cut_short <file> <offset>
 *
 * A read at an offset far into a listing is one system call that generates the listing up to
 * there.  One runs to its end.  One gets SIGKILL when it has used a tenth of the first one's
 * processor time, and for one the module is unloaded at that moment.  Prints
 * "<case> <ms of its processor time> <when it was cut short> <errno, or -signal>" for each.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MODULE "cplayground"

static int *result;	/* the child's errno */

static double now(clockid_t clock)
{
	struct timespec t;

	if (clock_gettime(clock, &t))
		err(1, "clock_gettime");
	return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

static pid_t start(const char *path, off_t offset)
{
	pid_t pid;

	*result = -1;
	pid = fork();
	if (pid < 0)
		err(1, "fork");
	if (!pid) {
		char byte;
		int fd = open(path, O_RDONLY);

		if (fd < 0)
			err(1, "%s", path);
		*result = pread(fd, &byte, 1, offset) < 0 ? errno : 0;
		_exit(0);
	}
	return pid;
}

/* Wait until a child has used so much processor time. */
static double reach(pid_t pid, double ms)
{
	clockid_t clock;
	double used;

	if (clock_getcpuclockid(pid, &clock))
		errx(1, "no clock of process %d", pid);
	while ((used = now(clock)) < ms)
		usleep(1000);
	return used;
}

static double finish(const char *what, pid_t pid, double cut)
{
	struct rusage usage;
	double used;
	int status;

	if (wait4(pid, &status, 0, &usage) != pid)
		err(1, "wait4");
	used = (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1e3 +
	       (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e3;
	printf("%s %.0f %.0f %d\n", what, used, cut,
	       WIFSIGNALED(status) ? -WTERMSIG(status) : *result);
	return used;
}

int main(int argc, char **argv)
{
	double whole, cut;
	off_t offset;
	pid_t pid;

	if (argc != 3)
		errx(2, "usage: cut_short <file> <offset>");
	offset = strtoll(argv[2], NULL, 10);
	result = mmap(NULL, sizeof(*result), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
		      -1, 0);
	if (result == MAP_FAILED)
		err(1, "mmap");
	setlinebuf(stdout);

	pid = start(argv[1], offset);
	whole = finish("whole", pid, 0);

	pid = start(argv[1], offset);
	cut = reach(pid, whole / 10);
	if (kill(pid, SIGKILL))
		err(1, "kill");
	finish("killed", pid, cut);

	pid = start(argv[1], offset);
	cut = reach(pid, whole / 10);
	if (syscall(SYS_delete_module, MODULE, O_NONBLOCK))
		err(1, "delete_module");
	finish("unloaded", pid, cut);
	return 0;
}
