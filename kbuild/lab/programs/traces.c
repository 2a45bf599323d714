// SPDX-License-Identifier: GPL-2.0-only
/*
 * Test whether a program in a container notices that it is read, and whether the reader
 * waits for that program.
 *
 *	traces <file or -> <case> <rounds> <readers> [first]
 *
 * With "first" a case may end after its first late round.
 * So many readers read the file repeatedly.  For "-" there are none.  For "/proc" they read
 * /proc/PID/fdinfo of the observed process, as any program on the host may.
 *
 * Each observed process has a PID namespace of its own.  It has some hundred descriptors of
 * the object that the case is about, so a reader is often in the middle of them.
 * Prints one line:
 *
 *	rounds=N late=N worst_us=N listings=N longest_read_us=N slept=N ...
 *
 * late: rounds in which the observed program noticed, or a reader did work for it.
 * worst_us: the longest time until the state was as without a reader.  longest_read_us: the
 * longest read(2) of the file, including one that still runs.  slept: how often a reader
 * waited in read(2) for anything.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "fuse_server.h"
#include "random.h"

#define LOCKED "/tmp/traces.lock"
#define PROGRAM "/tmp/traces.program"
#define PLACE "/tmp/traces.mount"

#define READERS 16
/* Descriptors of the observed object, and the first of them; lower ones are the program's. */
#define MORE 200
#define FIRST 64
#define INOTIFY 100
#define SOCKETS 32
#define LINGER_S 10
/* FLUSH requests that only a reader, or a worker of the kernel, may send. */
#define STUCK_MS 8000
#define KILL_MS 5000
/* Limits for a late event, and for a whole run. */
#define PATIENCE_US 20000000
#define DEADLINE_S 120

struct reader {
	pid_t pid;
	atomic_ulong listings;
	atomic_llong since;	/* beginning of the read that still runs, in us; 0 for none */
};

static struct shared {
	struct reader readers[READERS];
	atomic_llong listing_us;	/* duration of the last listing */
	atomic_llong longest_us;
	atomic_ulong slept;
	atomic_ulong begun;		/* calls of sendfile(2) */
	atomic_int observed;
	atomic_ulong end_at;		/* the call with which a process must end */
	atomic_ulong late;
	atomic_llong worst_us;
	atomic_ulong by_readers, by_others;
	atomic_uint undone;		/* rounds that a case left out, because it had seen enough */
	atomic_bool resting;		/* readers begin no listing */
} *shared;

static const char *file, *running;
static unsigned int readers, more_descriptors = MORE;
static bool first_only;		/* the first late round is enough */

static void check(int failed, const char *what)
{
	if (failed)
		err(1, "%s: %s", running ? running : "traces", what);
}

static long long now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000LL + t.tv_nsec / 1000;
}

static pid_t fork_in(int flags)
{
	pid_t pid = syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0);

	check(pid < 0, "clone");
	if (!pid)
		check(prctl(PR_SET_PDEATHSIG, SIGKILL), "prctl");
	return pid;
}

/* The deadline of every wait of this process; the others end with it. */
static void give_up(int signal)
{
	static const char text[] = "traces: a wait has not come to its end: ";

	(void)signal;
	if (write(2, text, sizeof(text) - 1) < 0 || write(2, running, strlen(running)) < 0)
		_exit(4);
	_exit(3);
}

/*
 * Readers.
 */

/* Called around each read(2): a voluntary switch is a sleep, which a read has no reason for. */
static long sleeps(void)
{
	struct rusage usage;

	check(getrusage(RUSAGE_THREAD, &usage), "getrusage");
	return usage.ru_nvcsw;
}

static void raise_to(atomic_llong *value, long long to)
{
	long long old = atomic_load(value);

	while (old < to && !atomic_compare_exchange_weak(value, &old, to))
		;
}

static ssize_t timed_read(struct reader *self, int fd, void *piece, size_t size)
{
	long slept = sleeps();
	ssize_t got;

	atomic_store(&self->since, now_us());
	got = read(fd, piece, size);
	raise_to(&shared->longest_us, now_us() - atomic_exchange(&self->since, 0));
	atomic_fetch_add(&shared->slept, sleeps() - slept);
	return got;
}

static void read_listing(struct reader *self)
{
	static char piece[65536];
	int fd = open(file, O_RDONLY | O_CLOEXEC);
	ssize_t got;

	check(fd < 0, file);
	while ((got = timed_read(self, fd, piece, sizeof(piece))) > 0)
		;
	check(got < 0, "read");
	close(fd);
}

/* Do the same through procfs; the process may end, or close a file, at any moment. */
static void read_fdinfo(void)
{
	struct dirent *entry;
	char text[512];
	DIR *files;

	snprintf(text, sizeof(text), "/proc/%d/fdinfo", atomic_load(&shared->observed));
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

static void read_for_ever(struct reader *self)
{
	for (;;) {
		long long began;

		while (atomic_load(&shared->resting))
			usleep(200);
		began = now_us();
		if (strcmp(file, "/proc"))
			read_listing(self);
		else
			read_fdinfo();
		atomic_store(&shared->listing_us, now_us() - began);
		atomic_fetch_add(&self->listings, 1);
	}
}

static void send_for_ever(struct reader *self, int socket)
{
	for (;;) {
		int fd = open(file, O_RDONLY | O_CLOEXEC);

		check(fd < 0, file);
		atomic_fetch_add(&shared->begun, 1);
		while (sendfile(socket, fd, NULL, 1 << 20) > 0)
			;
		close(fd);
		atomic_fetch_add(&self->listings, 1);
	}
}

/* With a socket, readers of the file send it there. */
static void start_readers(int socket)
{
	for (unsigned int i = 0; i < readers; i++) {
		struct reader *self = &shared->readers[i];
		pid_t pid = fork_in(0);

		if (!pid && socket >= 0 && strcmp(file, "/proc"))
			send_for_ever(self, socket);
		if (!pid)
			read_for_ever(self);
		self->pid = pid;
	}
}

/* Return false if a reader is left: it is in a sleep that no signal ends. */
static bool kill_readers(void)
{
	long long until = now_us() + KILL_MS * 1000;

	for (unsigned int i = 0; i < readers; i++) {
		long long since = atomic_load(&shared->readers[i].since);

		/* A read that has not ended is the one that the test looks for. */
		if (since)
			raise_to(&shared->longest_us, now_us() - since);
	}
	for (unsigned int i = 0; i < readers; i++)
		check(kill(shared->readers[i].pid, SIGKILL), "kill");
	for (unsigned int i = 0; i < readers; i++) {
		while (waitpid(shared->readers[i].pid, NULL, WNOHANG) == 0) {
			if (now_us() > until)
				return false;
			usleep(1000);
		}
	}
	readers = 0;
	return true;
}

/* Wait until each reader has read so many listings; return false if that takes too long. */
static bool come_round(unsigned int times, long long most_us)
{
	long long until = now_us() + most_us;
	unsigned long then[READERS];

	for (unsigned int i = 0; i < readers; i++)
		then[i] = atomic_load(&shared->readers[i].listings) + times;
	for (unsigned int i = 0; i < readers; i++) {
		while (atomic_load(&shared->readers[i].listings) < then[i]) {
			if (now_us() > until)
				return false;
			usleep(50);
		}
	}
	return true;
}

static void wait_within(long long most_us)
{
	long long until = now_us();

	until += most_us > 0 ? random_below(most_us) : 0;
	while (now_us() < until)
		;
}

/* Leave the processors to the observed processes until the next meeting. */
static void rest(void)
{
	atomic_store(&shared->resting, true);
}

/* Return at a moment at which a reader may be anywhere in the caller's descriptors. */
static void meet(void)
{
	static bool measured;

	if (!readers)
		return;
	atomic_store(&shared->resting, false);
	/*
	 * The next listing of each reader begins now, and shows all descriptors.  At first wait
	 * for a second one, whose duration is that of a full listing.
	 */
	if (!come_round(measured ? 1 : 2, PATIENCE_US))
		errx(1, "%s: a reader does not come round", running);
	measured = true;
	wait_within(atomic_load(&shared->listing_us));
}

/* Count a round as late if `done` is not true at once, and wait until it is. */
static void judge(bool (*done)(void *), void *what)
{
	long long began = now_us();

	if (!done(what)) {
		atomic_fetch_add(&shared->late, 1);
		while (!done(what)) {
			if (now_us() - began > PATIENCE_US)
				errx(1, "%s: it is not so after %d s", running,
				     PATIENCE_US / 1000000);
			usleep(50);
		}
		raise_to(&shared->worst_us, now_us() - began);
	}
	rest();
}

/* Tell whether a case can end, with so many rounds left, because it has been late. */
static bool enough(unsigned int left)
{
	if (!first_only || !atomic_load(&shared->late))
		return false;
	atomic_store(&shared->undone, left);
	return true;
}

/*
 * Observed processes.
 */

static void allow_descriptors(void)
{
	struct rlimit limit = { 1024, 1024 };

	check(setrlimit(RLIMIT_NOFILE, &limit), "setrlimit");
}

/* Have descriptors of an open file from FIRST on, and of no other file. */
static void spread(int fd)
{
	for (unsigned int i = 0; i < more_descriptors; i++)
		check(fcntl(fd, F_DUPFD, FIRST) < 0, "F_DUPFD");
	close(fd);
}

static void close_from(int first)
{
	check(syscall(__NR_close_range, first, ~0U, 0), "close_range");
}

/* Run all rounds in one process of a container. */
static void run_inside(void (*run)(unsigned int), unsigned int rounds)
{
	pid_t pid = fork_in(CLONE_NEWPID);
	int status;

	if (!pid) {
		run(rounds);
		exit(0);
	}
	atomic_store(&shared->observed, pid);
	check(waitpid(pid, &status, 0) != pid, "waitpid");
	if (status)
		errx(1, "%s: status 0x%x of the observed process", running, status);
}

/* A process of a container that gets ready, and ends when it is told to. */
struct ending {
	pid_t pid;
	int talk;
};

static struct ending begin(void (*prepare)(int), int fd)
{
	struct ending one;
	int pair[2];
	char byte;

	check(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), "socketpair");
	one.pid = fork_in(CLONE_NEWPID);
	if (!one.pid) {
		close(pair[0]);
		prepare(fd);
		check(write(pair[1], "", 1) != 1, "write");
		if (read(pair[1], &byte, 1) != 1)
			_exit(1);
		if (atomic_load(&shared->end_at)) {
			while (atomic_load(&shared->begun) < atomic_load(&shared->end_at))
				;
			random_begin(now_us());
			wait_within(atomic_load(&shared->listing_us));
		}
		_exit(0);
	}
	atomic_store(&shared->observed, one.pid);
	close(pair[1]);
	one.talk = pair[0];
	if (read(one.talk, &byte, 1) != 1)
		errx(1, "%s: the observed process did not begin", running);
	return one;
}

static void tell(struct ending one)
{
	check(write(one.talk, "", 1) != 1, "write");
}

/* Wait for its end as its parent would. */
static void wait_for(struct ending one)
{
	int status;

	check(waitpid(one.pid, &status, 0) != one.pid, "waitpid");
	if (status)
		errx(1, "%s: status 0x%x of the observed process", running, status);
	close(one.talk);
}

static void end(struct ending one)
{
	tell(one);
	wait_for(one);
}

/*
 * text: a program is written, closed and executed.
 */

static bool can_execute(void *unused)
{
	char *arguments[] = { "program", NULL };

	(void)unused;
	execve(PROGRAM, arguments, NULL);
	/*
	 * The kernel returns ETXTBSY before it reads the file.  The file is no program, so
	 * it cannot be executed afterwards either, which saves a process for each round.
	 */
	check(errno != ETXTBSY && errno != ENOEXEC, "execve");
	return errno == ENOEXEC;
}

static void text(unsigned int rounds)
{
	while (!enough(rounds) && rounds--) {
		int fd = open(PROGRAM, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0700);

		check(fd < 0, PROGRAM);
		check(write(fd, "not a program\n", 14) != 14, "write");
		spread(fd);
		meet();
		close_from(FIRST);
		judge(can_execute, NULL);
	}
	unlink(PROGRAM);
}

/*
 * port: a listener is closed, and another one binds to its port.
 */

static struct sockaddr_in listener_at = { .sin_family = AF_INET };
static int listener = -1;

static void bring_up_lo(void)
{
	struct ifreq request = { .ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING };
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	check(fd < 0, "socket");
	check(ioctl(fd, SIOCSIFFLAGS, &request), "SIOCSIFFLAGS");
	close(fd);
}

/* Any port at first, and from then on the same one. */
static bool can_listen(void *unused)
{
	socklen_t size = sizeof(listener_at);

	(void)unused;
	listener_at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	check(listener < 0, "socket");
	if (bind(listener, (void *)&listener_at, size) || listen(listener, 4096)) {
		check(errno != EADDRINUSE, "bind or listen");
		close(listener);
		return false;
	}
	check(getsockname(listener, (void *)&listener_at, &size), "getsockname");
	return true;
}

static void port(unsigned int rounds)
{
	bring_up_lo();
	for (unsigned int i = 0; i <= rounds && !enough(rounds - i); i++) {
		judge(can_listen, NULL);
		spread(listener);
		meet();
		close_from(FIRST);
	}
}

/*
 * flock, ofd: a process with a lock ends.
 */

static void take_flock(int unused)
{
	int fd = open(LOCKED, O_RDWR | O_CLOEXEC);

	(void)unused;
	check(fd < 0 || flock(fd, LOCK_EX | LOCK_NB), "flock");
	spread(fd);
}

static struct flock whole_file(short type)
{
	return (struct flock){ .l_type = type, .l_whence = SEEK_SET };
}

static void take_ofd(int unused)
{
	struct flock lock = whole_file(F_WRLCK);
	int fd = open(LOCKED, O_RDWR | O_CLOEXEC);

	(void)unused;
	check(fd < 0 || fcntl(fd, F_OFD_SETLK, &lock), "F_OFD_SETLK");
	spread(fd);
}

static bool can_flock(void *fd)
{
	if (flock(*(int *)fd, LOCK_EX | LOCK_NB)) {
		check(errno != EWOULDBLOCK, "flock");
		return false;
	}
	check(flock(*(int *)fd, LOCK_UN), "flock");
	return true;
}

static bool can_ofd(void *fd)
{
	struct flock lock = whole_file(F_WRLCK), unlock = whole_file(F_UNLCK);

	if (fcntl(*(int *)fd, F_OFD_SETLK, &lock)) {
		check(errno != EAGAIN, "F_OFD_SETLK");
		return false;
	}
	check(fcntl(*(int *)fd, F_OFD_SETLK, &unlock), "F_OFD_SETLK");
	return true;
}

static void locked(unsigned int rounds, void (*take)(int), bool (*can_take)(void *))
{
	int fd = open(LOCKED, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

	check(fd < 0, LOCKED);
	while (!enough(rounds) && rounds--) {
		struct ending one = begin(take, -1);

		/* This shows that the lock would be noticed. */
		if (can_take(&fd))
			errx(1, "%s: no process has the lock", running);
		meet();
		end(one);
		judge(can_take, &fd);
	}
	close(fd);
	unlink(LOCKED);
}

/*
 * eof: a process with the write end of a pipe ends.
 */

static bool has_ended(void *fd)
{
	struct pollfd pipe = { .fd = *(int *)fd, .events = POLLIN };

	check(poll(&pipe, 1, 0) < 0, "poll");
	return pipe.revents & POLLHUP;
}

static void eof(unsigned int rounds)
{
	while (!enough(rounds) && rounds--) {
		struct ending one;
		int fds[2];

		check(pipe2(fds, O_CLOEXEC), "pipe2");
		one = begin(spread, fds[1]);
		close(fds[1]);
		if (has_ended(&fds[0]))
			errx(1, "an end of file before there was a reason");
		meet();
		end(one);
		judge(has_ended, &fds[0]);
		close(fds[0]);
	}
}

/*
 * sendfile: as eof, while a reader sends the file to a socket whose other side does not read.
 * The round is late only if the pipe has no end of file while the reader is in sendfile(2).
 */

static void drain(int socket)
{
	char piece[4096];

	while (recv(socket, piece, sizeof(piece), MSG_DONTWAIT) > 0)
		;
}

/* So many descriptors that reading them takes longer than ending does. */
#define SENT 800

static void time_listing(void)
{
	long long began = now_us();
	static char piece[65536];
	int fd = open(file, O_RDONLY | O_CLOEXEC);

	check(fd < 0 || read(fd, piece, sizeof(piece)) < 0, file);
	close(fd);
	atomic_store(&shared->listing_us, now_us() - began);
}

/*
 * Let a reader begin a listing, and let the process end during it.  The process itself waits
 * for that moment: being told by a write would take longer than the listing does.
 */
static void end_in_listing(struct ending one, int socket)
{
	long long until = now_us() + PATIENCE_US;
	unsigned long then;

	time_listing();
	then = atomic_load(&shared->begun) + 2;
	atomic_store(&shared->end_at, then);
	tell(one);
	while (atomic_load(&shared->begun) < then) {
		drain(socket);
		if (now_us() > until)
			errx(1, "sendfile: a reader does not come round");
	}
}

static void send_it(unsigned int rounds)
{
	int pair[2], small = 4096;
	bool is_file = readers && strcmp(file, "/proc");

	more_descriptors = SENT;
	check(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), "socketpair");
	/* Far less than a listing, so that the reader stays in its first part. */
	check(setsockopt(pair[1], SOL_SOCKET, SO_SNDBUF, &small, sizeof(small)), "SO_SNDBUF");
	start_readers(pair[1]);
	/* A late round takes a second, and two are enough for a verdict. */
	while (rounds-- && atomic_load(&shared->late) < 2) {
		struct ending one;
		struct pollfd pipe;
		long long began;
		int fds[2];

		check(pipe2(fds, O_CLOEXEC), "pipe2");
		one = begin(spread, fds[1]);
		close(fds[1]);
		if (is_file) {
			end_in_listing(one, pair[0]);
		} else {
			meet();
			tell(one);
		}
		wait_for(one);
		began = now_us();
		pipe = (struct pollfd){ .fd = fds[0], .events = POLLIN };
		/* A second is enough for a work item that has just closed the pipe. */
		check(poll(&pipe, 1, 1000) < 0, "poll");
		if (!(pipe.revents & POLLHUP)) {
			atomic_fetch_add(&shared->late, 1);
			while (!has_ended(&fds[0])) {
				if (now_us() - began > PATIENCE_US)
					errx(1, "sendfile: the pipe has no end of file");
				drain(pair[0]);
			}
			raise_to(&shared->worst_us, now_us() - began);
		}
		close(fds[0]);
	}
}

/*
 * locks: a program with a POSIX lock calls execve(2).  It executes itself, reports that it
 * runs, and is told whether the lock still exists.
 */

enum { SAY = 3, HEAR = 4, LOCK_FD = 5 };

static void exec_again(const char *times, bool first)
{
	struct flock lock = whole_file(F_WRLCK);
	char left[16], answer;

	for (unsigned int i = 0; first && i < MORE; i++)
		check(dup(LOCK_FD) < 0, "dup");
	check(write(SAY, "", 1) != 1, "write");
	check(read(HEAR, &answer, 1) != 1, "read");
	if (answer == 'l')
		check(fcntl(LOCK_FD, F_SETLK, &lock), "lock");
	if (!strcmp(times, "0"))
		exit(0);
	snprintf(left, sizeof(left), "%d", atoi(times) - 1);
	execl("/proc/self/exe", "traces", "again", left, NULL);
	err(1, "exec");
}

static void locks(unsigned int rounds)
{
	int say[2], hear[2], fd = open(LOCKED, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	char byte;
	pid_t pid;

	check(fd < 0, LOCKED);
	check(pipe2(say, O_CLOEXEC) || pipe2(hear, O_CLOEXEC), "pipe2");
	pid = fork_in(CLONE_NEWPID);
	if (!pid) {
		char left[16];
		int own = open(LOCKED, O_RDWR);

		/* From high to low, so that none is overwritten before it is copied. */
		own = fcntl(own, F_DUPFD, 20);
		say[1] = fcntl(say[1], F_DUPFD, 20);
		hear[0] = fcntl(hear[0], F_DUPFD, 20);
		check(own < 0 || say[1] < 0 || hear[0] < 0, "F_DUPFD");
		check(dup2(say[1], SAY) < 0 || dup2(hear[0], HEAR) < 0 ||
		      dup2(own, LOCK_FD) < 0, "dup2");
		close_from(LOCK_FD + 1);
		snprintf(left, sizeof(left), "%u", rounds);
		exec_again(left, true);
	}
	atomic_store(&shared->observed, pid);
	close(say[1]);
	close(hear[0]);

	/* Before the first execve(2) there is no lock, and this shows that it is noticed. */
	for (unsigned int i = 0; i <= rounds; i++) {
		struct flock lock = whole_file(F_WRLCK);

		if (read(say[0], &byte, 1) != 1)
			errx(1, "the program ended after %u of %u execs", i, rounds);
		check(fcntl(fd, F_GETLK, &lock), "F_GETLK");
		if (!i && lock.l_type != F_UNLCK)
			errx(1, "a lock that was never taken");
		if (i && lock.l_type == F_UNLCK)
			atomic_fetch_add(&shared->late, 1);
		meet();
		byte = lock.l_type == F_UNLCK ? 'l' : 'k';
		check(write(hear[1], &byte, 1) != 1, "write");
	}
	check(waitpid(pid, NULL, 0) != pid, "waitpid");
}

/*
 * epoll: a registered file is closed, and becomes ready afterwards.
 */

static bool is_silent(void *fd)
{
	struct epoll_event event;
	int got = epoll_wait(*(int *)fd, &event, 1, 0);

	check(got < 0, "epoll_wait");
	return !got;
}

static void epoll(unsigned int rounds)
{
	int fds[2], set = epoll_create1(EPOLL_CLOEXEC);
	char path[40], byte;

	check(set < 0 || pipe2(fds, O_CLOEXEC), "pipe2");
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fds[0]);
	while (!enough(rounds) && rounds--) {
		struct epoll_event event = { .events = EPOLLIN };
		int first = -1;

		/* Each is an open file with one descriptor, and all are of one pipe. */
		for (unsigned int i = 0; i < MORE / 2; i++) {
			int fd = open(path, O_RDONLY | O_CLOEXEC);

			check(fd < 0 || epoll_ctl(set, EPOLL_CTL_ADD, fd, &event), "EPOLL_CTL_ADD");
			first = i ? first : fd;
		}
		meet();
		close_from(first);
		check(write(fds[1], "", 1) != 1, "write");
		judge(is_silent, &set);
		check(read(fds[0], &byte, 1) != 1, "read");
	}
}

/*
 * pty: the master is closed.
 */

static void pty(unsigned int rounds)
{
	while (!enough(rounds) && rounds--) {
		int unlock = 0, slave, master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC);

		check(master < 0 || ioctl(master, TIOCSPTLCK, &unlock), "/dev/ptmx");
		slave = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
		check(slave < 0, "TIOCGPTPEER");
		if (has_ended(&slave))
			errx(1, "a hangup before there was a reason");
		spread(master);
		meet();
		close_from(FIRST);
		judge(has_ended, &slave);
		close(slave);
	}
}

/*
 * umount: a process with a file on a file system ends.
 */

static void open_mounted(int unused)
{
	int fd = open(PLACE "/f", O_RDWR | O_CREAT | O_CLOEXEC, 0600);

	(void)unused;
	check(fd < 0, PLACE "/f");
	spread(fd);
}

static bool can_unmount(void *unused)
{
	(void)unused;
	if (!umount2(PLACE, 0))
		return true;
	check(errno != EBUSY, "umount");
	return false;
}

static void unmount(unsigned int rounds)
{
	mkdir(PLACE, 0700);
	while (!enough(rounds) && rounds--) {
		struct ending one;

		check(mount("traces", PLACE, "tmpfs", 0, NULL), "mount");
		one = begin(open_mounted, -1);
		if (can_unmount(NULL))
			errx(1, "a file system in use was unmounted");
		meet();
		end(one);
		judge(can_unmount, NULL);
	}
	rmdir(PLACE);
}

/*
 * linger: a process with unsent data ends.  close(2) of a socket lingers.  The kernel excuses
 * a process that ends, but not one that merely drops the last reference.  No process accepts,
 * so none reads; the connections are made in the listener's queue.
 */

static void open_lingering(int end)
{
	struct linger linger = { 1, LINGER_S };
	static char piece[4096];
	int small = 8192;

	/* If the listener were kept with the sockets, its end could not reset them. */
	close(listener);
	for (unsigned int i = 0; i < SOCKETS; i++) {
		int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

		check(fd < 0, "socket");
		check(setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &small, sizeof(small)), "SO_SNDBUF");
		check(setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger)), "SO_LINGER");
		check(connect(fd, (void *)&listener_at, sizeof(listener_at)), "connect");
		while (send(fd, piece, sizeof(piece), MSG_DONTWAIT) > 0)
			;
		check(errno != EAGAIN, "send");
		/* More descriptors of it, because only its last reference lingers. */
		for (unsigned int more = 0; more < MORE / SOCKETS; more++)
			check(dup(fd) < 0, "dup");
	}
	/* Closed after the sockets. */
	check(fcntl(end, F_DUPFD, FIRST) < 0, "F_DUPFD");
	close(end);
}

/*
 * Run rounds of a process that ends.  The readers must neither do its work nor wait for it,
 * and its pipe must have an end of file, though not necessarily at once.  Return at the first
 * round that takes long: it decides, and each further one would take as long.
 */
static void ends_of(unsigned int rounds, void (*prepare)(int))
{
	const long long most_us = LINGER_S * 1000000LL / 2;

	while (rounds--) {
		unsigned long before;
		struct pollfd pipe;
		struct ending one;
		long long began;
		int fds[2];

		rest();
		check(pipe2(fds, O_CLOEXEC), "pipe2");
		one = begin(prepare, fds[1]);
		close(fds[1]);
		meet();
		before = atomic_load(&shared->slept);
		end(one);
		began = now_us();
		if (!come_round(2, most_us)) {
			atomic_fetch_add(&shared->late, 1);
			return;
		}
		if (atomic_load(&shared->slept) != before)
			atomic_fetch_add(&shared->late, 1);
		pipe = (struct pollfd){ .fd = fds[0], .events = POLLIN };
		check(poll(&pipe, 1, most_us / 1000) < 0, "poll");
		if (!(pipe.revents & POLLHUP)) {
			atomic_fetch_add(&shared->late, 1);
			raise_to(&shared->worst_us, now_us() - began);
			return;
		}
		close(fds[0]);
	}
}

static void linger(unsigned int rounds)
{
	int small = 4096;

	bring_up_lo();
	if (!can_listen(NULL))
		errx(1, "no port is free");
	check(setsockopt(listener, SOL_SOCKET, SO_RCVBUF, &small, sizeof(small)), "SO_RCVBUF");
	ends_of(rounds, open_lingering);
}

/*
 * inotify: a process ends whose files take long to be closed.
 */

static void open_inotify(int end)
{
	check(fcntl(end, F_DUPFD, FIRST + INOTIFY) < 0, "F_DUPFD");
	close(end);
	for (unsigned int i = 0; i < INOTIFY; i++) {
		int fd = inotify_init1(IN_CLOEXEC);

		check(fd < 0 || inotify_add_watch(fd, "/", IN_CREATE) < 0, "inotify");
	}
}

/* Room for descriptors that a work item of a backend has not closed yet. */
static void inotify(unsigned int rounds)
{
	int fd = open("/proc/sys/fs/inotify/max_user_instances", O_WRONLY | O_CLOEXEC);

	check(fd < 0 || write(fd, "8192", 4) != 4, "max_user_instances");
	close(fd);
	ends_of(rounds, open_inotify);
}

/*
 * fuse: a process ends whose file is flushed by a server in a container.
 */

static bool keep_back;

/* Called in the server, with the sender; returns how long to delay the answer. */
static unsigned int flushed(uint32_t pid)
{
	bool ours = (int)pid == atomic_load(&shared->observed);

	for (unsigned int i = 0; !ours && i < READERS; i++) {
		if ((uint32_t)shared->readers[i].pid != pid)
			continue;
		atomic_fetch_add(&shared->by_readers, 1);
		return keep_back ? STUCK_MS : 0;
	}
	if (ours)
		return 0;
	atomic_fetch_add(&shared->by_others, 1);
	return keep_back ? STUCK_MS : 0;
}

static void open_served(int unused)
{
	int fd = open(PLACE "/0", O_RDONLY | O_CLOEXEC), other;

	(void)unused;
	check(fd < 0, PLACE "/0");
	/* Each descriptor causes a request, so the others are of something else. */
	other = open("/dev/null", O_RDONLY | O_CLOEXEC);
	check(other < 0, "/dev/null");
	spread(other);
}

static unsigned long strange_flushes(void)
{
	return atomic_load(&shared->by_readers) + atomic_load(&shared->by_others);
}

static const char *unload(void)
{
	if (!syscall(__NR_delete_module, "cplayground", O_NONBLOCK))
		return "ok";
	switch (errno) {
	case EWOULDBLOCK:
		return "EWOULDBLOCK";
	case EBUSY:
		return "EBUSY";
	case ENOENT:
		return "ENOENT";
	}
	return strerror(errno);
}

static void fuse(unsigned int rounds, char *more, size_t size)
{
	const char *unloaded = "not-tried", *killed = "not-tried";
	int fd;
	pid_t server;

	mkdir(PLACE, 0700);
	fd = fuse_server_mount("/dev/fuse", PLACE);
	server = fork_in(0);
	if (!server) {
		fuse_server_run(fd, flushed);
		exit(0);
	}
	close(fd);
	while (rounds--) {
		struct ending one;

		rest();
		one = begin(open_served, -1);
		meet();
		end(one);
		/* A worker that has been handed the table may need a moment. */
		usleep(2000);
		if (keep_back && strange_flushes()) {
			atomic_store(&shared->undone, rounds);
			break;
		}
		if (first_only && atomic_load(&shared->by_readers)) {
			atomic_store(&shared->undone, rounds);
			break;
		}
	}
	if (keep_back && strange_flushes()) {
		long long until = now_us() + 2 * STUCK_MS * 1000LL;

		killed = kill_readers() ? "yes" : "no";
		unloaded = unload();
		/* Until the answers have come: the module must be as it was. */
		for (char text[16] = ""; text[0] != '0'; usleep(10000)) {
			int count = open("/sys/module/cplayground/refcnt", O_RDONLY | O_CLOEXEC);

			if (count < 0 || read(count, text, sizeof(text)) < 1)
				text[0] = '0';
			close(count);
			if (now_us() > until)
				errx(1, "the module is still in use");
		}
		if (!kill_readers())
			errx(1, "a reader is still there after the server has answered");
	}
	atomic_fetch_add(&shared->late, atomic_load(&shared->by_readers));
	snprintf(more, size, " by_others=%lu", atomic_load(&shared->by_others));
	if (keep_back)
		snprintf(more + strlen(more), size - strlen(more), " killed=%s unload=%s", killed,
			 unloaded);
	kill(server, SIGKILL);
	check(waitpid(server, NULL, 0) != server, "waitpid");
	check(umount2(PLACE, MNT_DETACH), "umount");
	rmdir(PLACE);
}

/*
 * The program.
 */

static void run_case(const char *name, unsigned int rounds, char *more, size_t size)
{
	if (!strcmp(name, "sendfile"))
		return send_it(rounds);
	start_readers(-1);
	if (!strcmp(name, "text"))
		run_inside(text, rounds);
	else if (!strcmp(name, "port"))
		run_inside(port, rounds);
	else if (!strcmp(name, "flock"))
		locked(rounds, take_flock, can_flock);
	else if (!strcmp(name, "ofd"))
		locked(rounds, take_ofd, can_ofd);
	else if (!strcmp(name, "eof"))
		eof(rounds);
	else if (!strcmp(name, "locks"))
		locks(rounds);
	else if (!strcmp(name, "epoll"))
		run_inside(epoll, rounds);
	else if (!strcmp(name, "pty"))
		run_inside(pty, rounds);
	else if (!strcmp(name, "umount"))
		unmount(rounds);
	else if (!strcmp(name, "linger"))
		linger(rounds);
	else if (!strcmp(name, "inotify"))
		inotify(rounds);
	else if (!strcmp(name, "fuse") || !strcmp(name, "fuse-stuck"))
		fuse(rounds, more, size);
	else
		errx(2, "there is no case %s", name);
}

/* Freeing a network namespace takes the kernel seconds, which disturbs counting of objects. */
static bool needs_network(void)
{
	return !strcmp(running, "port") || !strcmp(running, "linger") ||
	       !strcmp(running, "sendfile");
}

int main(int argc, char **argv)
{
	unsigned long listings = 0;
	unsigned int rounds;
	char more[128] = "";

	if (argc == 3 && !strcmp(argv[1], "again"))
		exec_again(argv[2], false);
	if (argc != 5 && argc != 6)
		errx(2, "usage: traces <file or -> <case> <rounds> <readers> [first]");
	file = argv[1];
	running = argv[2];
	rounds = strtoul(argv[3], NULL, 10);
	readers = strcmp(file, "-") ? strtoul(argv[4], NULL, 10) : 0;
	if (!rounds || readers > READERS)
		errx(2, "%s rounds, %s readers", argv[3], argv[4]);
	keep_back = !strcmp(running, "fuse-stuck");
	first_only = argc == 6;
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
		      -1, 0);
	check(shared == MAP_FAILED, "mmap");
	signal(SIGALRM, give_up);
	signal(SIGPIPE, SIG_IGN);
	alarm(DEADLINE_S);
	random_begin(now_us());
	allow_descriptors();
	/* Our mounts and sockets must end with us. */
	check(unshare(CLONE_NEWNS | (needs_network() ? CLONE_NEWNET : 0)), "unshare");
	check(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), "mount");

	run_case(running, rounds, more, sizeof(more));

	if (!kill_readers())
		errx(1, "%s: a reader does not die within %d ms of SIGKILL", running, KILL_MS);
	for (unsigned int i = 0; i < READERS; i++)
		listings += atomic_load(&shared->readers[i].listings);
	printf("rounds=%u late=%lu worst_us=%lld listings=%lu longest_read_us=%lld slept=%lu%s\n",
	       rounds - atomic_load(&shared->undone), atomic_load(&shared->late),
	       atomic_load(&shared->worst_us), listings, atomic_load(&shared->longest_us),
	       atomic_load(&shared->slept), more);
	return 0;
}
