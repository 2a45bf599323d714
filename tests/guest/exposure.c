// SPDX-License-Identifier: GPL-2.0-only
/*
 * What being read does to a program in a container: a count of what it loses.
 *
 *	exposure <file or -> locks <times> <descriptors> <readers>
 *	exposure <file or -> ends <times> <descriptors> <readers>
 *
 * locks: a program holds a POSIX write lock and calls execve(2); this process looks whether
 * the lock is still there.  Prints "<execs> <locks lost> <listings>".
 *
 * ends: a process with the write end of a pipe ends, and is waited for; this process looks
 * whether the other end has its end of file by then.  Prints "<processes> <late> <listings>
 * <median us> <worst us>", the times being how long it took from the wait to that end.
 *
 * The file is read by as many readers, again and again; "-" for none, and for "/proc" they
 * read what /proc/PID/fdinfo has of that process.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define LOCKED "/tmp/exposure.lock"
/* Of the program that execs itself: it says that it is there, and is told to go on. */
enum { SAY = 3, HEAR = 4, LOCK_FD = 5 };

static atomic_ulong *listings;
static atomic_int *observed;	/* the process, for readers that need to know */

static void check(int failed, const char *what)
{
	if (failed)
		err(1, "%s", what);
}

static pid_t fork_in(int flags)
{
	pid_t pid = syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0);

	check(pid < 0, "clone");
	if (!pid)
		check(prctl(PR_SET_PDEATHSIG, SIGKILL), "prctl");
	return pid;
}

static void read_listing(const char *path)
{
	static char piece[65536];
	int fd = open(path, O_RDONLY);
	ssize_t got;

	check(fd < 0, path);
	while ((got = read(fd, piece, sizeof(piece))) > 0)
		;
	check(got < 0, "read");
	close(fd);
}

/* The same by way of procfs; the process may end, or close a file, at any moment. */
static void read_fdinfo(void)
{
	struct dirent *entry;
	char text[512];
	DIR *files;

	snprintf(text, sizeof(text), "/proc/%d/fdinfo", atomic_load(observed));
	files = opendir(text);
	if (!files)
		return;
	while ((entry = readdir(files))) {
		int fd = openat(dirfd(files), entry->d_name, O_RDONLY);
		ssize_t got;

		if (fd < 0)
			continue;
		do
			got = read(fd, text, sizeof(text));
		while (got > 0);
		close(fd);
	}
	closedir(files);
}

static void read_for_ever(const char *path)
{
	for (;;) {
		if (strcmp(path, "/proc"))
			read_listing(path);
		else
			read_fdinfo();
		atomic_fetch_add(listings, 1);
	}
}

static void open_more(int fd, unsigned int descriptors)
{
	struct rlimit limit = { descriptors + 64, descriptors + 64 };

	check(setrlimit(RLIMIT_NOFILE, &limit), "setrlimit");
	for (unsigned int i = 0; i < descriptors; i++)
		check(dup(fd) < 0, "dup");
}

static struct flock whole_file(short type)
{
	return (struct flock){ .l_type = type, .l_whence = SEEK_SET };
}

/* The program under observation: say so after each exec, lock again when told that it is lost. */
static void exec_again(const char *times, unsigned int descriptors)
{
	struct flock lock = whole_file(F_WRLCK);
	char left[16], answer;

	if (descriptors)
		open_more(LOCK_FD, descriptors);
	check(write(SAY, "", 1) != 1, "write");
	check(read(HEAR, &answer, 1) != 1, "read");
	if (answer == 'l')
		check(fcntl(LOCK_FD, F_SETLK, &lock), "lock");
	if (!strcmp(times, "0"))
		exit(0);
	snprintf(left, sizeof(left), "%d", atoi(times) - 1);
	execl("/proc/self/exe", "exposure", "again", left, NULL);
	err(1, "exec");
}

static int is_locked(int fd)
{
	struct flock lock = whole_file(F_WRLCK);

	check(fcntl(fd, F_GETLK, &lock), "F_GETLK");
	return lock.l_type != F_UNLCK;
}

/* Wait until the readers have come round once more, so that each has met the process. */
static void wait_listing(unsigned int readers)
{
	unsigned long then = atomic_load(listings) + readers + 1;

	while (readers && atomic_load(listings) < then)
		sched_yield();
}

static void locks(unsigned int times, unsigned int descriptors, unsigned int readers)
{
	int say[2], hear[2], fd = open(LOCKED, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	unsigned int lost = 0;
	char byte;
	pid_t pid;

	check(fd < 0, LOCKED);
	check(pipe2(say, O_CLOEXEC) || pipe2(hear, O_CLOEXEC), "pipe2");
	pid = fork_in(CLONE_NEWPID);
	if (!pid) {
		char left[16];
		int own = open(LOCKED, O_RDWR);

		/* First above what they become: none is written over before it is copied. */
		own = fcntl(own, F_DUPFD, 20);
		say[1] = fcntl(say[1], F_DUPFD, 20);
		hear[0] = fcntl(hear[0], F_DUPFD, 20);
		check(own < 0 || say[1] < 0 || hear[0] < 0, "F_DUPFD");
		check(dup2(say[1], SAY) < 0 || dup2(hear[0], HEAR) < 0 ||
		      dup2(own, LOCK_FD) < 0, "dup2");
		check(syscall(__NR_close_range, LOCK_FD + 1, ~0U, 0), "close_range");
		snprintf(left, sizeof(left), "%u", times);
		exec_again(left, descriptors);
	}
	atomic_store(observed, pid);
	close(say[1]);
	close(hear[0]);

	/* Before the first exec there is no lock: that it is noticed is seen here each time. */
	for (unsigned int i = 0; i <= times; i++) {
		int there;

		if (read(say[0], &byte, 1) != 1)
			errx(1, "the program ended after %u of %u execs", i, times);
		there = is_locked(fd);
		if (!i && there)
			errx(1, "a lock that nobody has taken");
		lost += i && !there;
		wait_listing(readers);
		check(write(hear[1], there ? "k" : "l", 1) != 1, "write");
	}
	printf("%u %u %lu\n", times, lost, atomic_load(listings));
}

static double now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static int by_size(const void *one, const void *two)
{
	double a = *(const double *)one, b = *(const double *)two;

	return (a > b) - (a < b);
}

static void ends(unsigned int times, unsigned int descriptors, unsigned int readers)
{
	double *took = calloc(times, sizeof(*took));
	unsigned int late = 0;

	check(!took, "calloc");
	for (unsigned int i = 0; i < times; i++) {
		int fds[2], tell[2], there[2];
		struct pollfd end;
		double began;
		char byte;
		pid_t pid;

		check(pipe2(fds, O_CLOEXEC) || pipe2(tell, O_CLOEXEC) || pipe2(there, O_CLOEXEC),
		      "pipe2");
		pid = fork_in(CLONE_NEWPID);
		if (!pid) {
			close(fds[0]);
			close(tell[1]);
			open_more(fds[1], descriptors);
			check(write(there[1], "", 1) != 1, "write");
			_exit(read(tell[0], &byte, 1) != 1);
		}
		atomic_store(observed, pid);
		close(fds[1]);
		close(tell[0]);
		close(there[1]);
		if (read(there[0], &byte, 1) != 1)
			errx(1, "process %u did not begin", i);
		wait_listing(readers);
		check(write(tell[1], "", 1) != 1, "write");
		check(waitpid(pid, NULL, 0) != pid, "waitpid");

		began = now_us();
		end = (struct pollfd){ .fd = fds[0], .events = POLLIN };
		check(poll(&end, 1, 0) < 0, "poll");
		late += !(end.revents & POLLHUP);
		check(poll(&end, 1, -1) < 0, "poll");
		if (!(end.revents & POLLHUP))
			errx(1, "the pipe has no end of file");
		took[i] = now_us() - began;
		close(fds[0]);
		close(tell[1]);
		close(there[0]);
	}
	qsort(took, times, sizeof(*took), by_size);
	printf("%u %u %lu %.0f %.0f\n", times, late, atomic_load(listings), took[times / 2],
	       took[times - 1]);
}

int main(int argc, char **argv)
{
	unsigned int times, descriptors, readers;
	pid_t pids[16];

	if (argc == 3 && !strcmp(argv[1], "again"))
		exec_again(argv[2], 0);
	if (argc != 6)
		errx(2, "usage: exposure <file or -> locks|ends <times> <descriptors> <readers>");
	times = strtoul(argv[3], NULL, 10);
	descriptors = strtoul(argv[4], NULL, 10);
	readers = strcmp(argv[1], "-") ? strtoul(argv[5], NULL, 10) : 0;
	if (!times || readers > 16)
		errx(2, "%s times, %s readers", argv[3], argv[5]);
	listings = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (listings == MAP_FAILED)
		err(1, "mmap");
	observed = (atomic_int *)(listings + 1);
	for (unsigned int i = 0; i < readers; i++) {
		pids[i] = fork_in(0);
		if (!pids[i])
			read_for_ever(argv[1]);
	}
	if (!strcmp(argv[2], "locks"))
		locks(times, descriptors, readers);
	else if (!strcmp(argv[2], "ends"))
		ends(times, descriptors, readers);
	else
		errx(2, "%s is neither locks nor ends", argv[2]);
	for (unsigned int i = 0; i < readers; i++) {
		kill(pids[i], SIGKILL);
		waitpid(pids[i], NULL, 0);
	}
	return 0;
}
