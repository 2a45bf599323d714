// SPDX-License-Identifier: GPL-2.0-only
/*
 * Start and end processes, tables and namespaces, within limits that a guest survives.
 *
 *	turmoil [way...]		without arguments, all of the table below
 *
 * Prints "ready" when each way has been taken once.  Ends everything when its standard input
 * ends, and prints "<way> <rounds>" for each.
 *
 * The names of files tell what is true of their descriptors as long as they exist: "+cloexec"
 * or "+kept", and "+append" if they were opened so.  Processes outside of containers are
 * called "host".  witness.c checks listings against both.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "random.h"

#define CHECK(call) check((long)(call), #call, __LINE__)
#define PLACE "/tmp/turmoil"
#define WAYS_MAX 16
#define TABLE 3000	/* descriptors that a table may grow to */
#define WAIT_MS 300000

static struct {
	atomic_ulong rounds[WAYS_MAX];
	atomic_bool failed;
} *shared;

static long check(long result, const char *call, int line)
{
	if (result < 0) {
		atomic_store(&shared->failed, true);
		err(1, "line %d: %s", line, call);
	}
	return result;
}

static pid_t spawn(int flags)
{
	return CHECK(flags ? syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0) : fork());
}

static void wait_for(pid_t pid)
{
	int status;

	CHECK(waitpid(pid, &status, 0));
}

/* Open a file whose name tells what is true of its descriptor. */
static int open_named(void)
{
	static const struct {
		const char *name;
		int flags;
	} kinds[] = {
		{ PLACE "/+kept", 0 },
		{ PLACE "/+cloexec", O_CLOEXEC },
		{ PLACE "/+append+kept", O_APPEND },
		{ PLACE "/+append+cloexec", O_APPEND | O_CLOEXEC },
	};
	unsigned int kind = random_below(4);

	return CHECK(open(kinds[kind].name, O_RDWR | kinds[kind].flags));
}

static void open_some(unsigned int count)
{
	while (count--)
		open_named();
}

/* Processes outside of containers live only as long as a fork and an exit take. */
static void host(void)
{
	pid_t pid = spawn(0);

	if (!pid)
		_exit(0);
	wait_for(pid);
}

static void short_lived(void)
{
	pid_t pids[4];
	int fds[2];

	for (int i = 0; i < 4; i++) {
		pids[i] = spawn(0);
		if (pids[i])
			continue;
		random_begin(getpid());
		CHECK(pipe(fds));
		open_some(random_below(4));
		_exit(0);
	}
	for (int i = 0; i < 4; i++)
		wait_for(pids[i]);
}

/* The fork-pipe bomb, with an end: each process inherits all pipes of its ancestors. */
static void pipes_below(unsigned int depth)
{
	int fds[2];

	for (int i = 0; i < 6; i++)
		CHECK(pipe2(fds, i % 2 ? O_CLOEXEC : 0));
	for (int i = 0; depth && i < 2; i++) {
		pid_t pid = spawn(0);

		if (!pid) {
			pipes_below(depth - 1);
			_exit(0);
		}
	}
	while (wait(NULL) > 0)
		;
}

static void fork_pipe(void)
{
	pid_t pid = spawn(0);

	if (!pid) {
		pipes_below(2);
		_exit(0);
	}
	wait_for(pid);
}

/* Each of the programs of one process does anew what leaf() does. */
static void exec_chain(void)
{
	char left[] = "4", program[] = "turmoil", leaf[] = "leaf";
	char *argv[] = { program, leaf, left, NULL };
	pid_t pid = spawn(0);

	if (!pid)
		CHECK(execv("/proc/self/exe", argv));
	wait_for(pid);
}

static int leaf(char **argv)
{
	char *left = argv[2];

	random_begin(getpid() + *left);
	open_named();
	open_named();
	if (*left == '0')
		return 0;
	--*left;
	execv("/proc/self/exe", argv);
	return 1;
}

static void *own_table(void *seed)
{
	(void)seed;
	CHECK(unshare(CLONE_FILES));
	for (int i = 0; i < 8; i++)
		close(open(PLACE "/+kept", O_RDWR));
	return NULL;
}

static void *shared_table(void *unused)
{
	(void)unused;
	for (int i = 0; i < 16; i++)
		close(open(PLACE "/+cloexec", O_RDWR | O_CLOEXEC));
	return NULL;
}

/* Threads leave their process's table, threads use it, and a leader ends first. */
static void threads(void)
{
	pid_t pid = spawn(0);
	pthread_t ids[3];

	if (pid) {
		wait_for(pid);
		return;
	}
	random_begin(getpid());
	open_some(3);
	for (int i = 0; i < 3; i++)
		if (pthread_create(&ids[i], NULL, i % 2 ? shared_table : own_table, NULL))
			errx(1, "pthread_create");
	if (random_below(2))
		pthread_exit(NULL);
	for (int i = 0; i < 3; i++)
		pthread_join(ids[i], NULL);
	_exit(0);
}

/* A table grows, gets holes, and is filled again with other kinds of files. */
static void tables(void)
{
	pid_t pid = spawn(0);

	if (pid) {
		wait_for(pid);
		return;
	}
	random_begin(getpid());
	for (int size = 64; size <= TABLE; size = size * 4 + 3) {
		int fd = open_named(), low = random_below(size);
		bool cloexec = fcntl(fd, F_GETFD) & FD_CLOEXEC;

		CHECK(fcntl(fd, cloexec ? F_DUPFD_CLOEXEC : F_DUPFD, size - 1));
		open_some(24);
		CHECK(syscall(__NR_close_range, 3 + low % 24, 3 + low % 24 + 8, 0));
		open_some(8);
	}
	_exit(0);
}

/* One number is always in use, by one kind of file or by the other. */
static void replaced(void)
{
	pid_t pid = spawn(0);

	if (pid) {
		wait_for(pid);
		return;
	}
	random_begin(getpid());
	for (int i = 0; i < 200; i++) {
		int fd = open_named();

		CHECK(dup3(fd, 40 + i % 20, fcntl(fd, F_GETFD) & FD_CLOEXEC ? O_CLOEXEC : 0));
		close(fd);
	}
	_exit(0);
}

/* Processes share a table, leave it, and drop it in turn. */
static void sharing(void)
{
	pid_t pid = spawn(0), sharers[3];

	if (pid) {
		wait_for(pid);
		return;
	}
	random_begin(getpid());
	open_some(4);
	for (int i = 0; i < 3; i++) {
		sharers[i] = spawn(CLONE_FILES);
		if (sharers[i])
			continue;
		if (i == 0)
			CHECK(unshare(CLONE_FILES));
		if (i == 1)
			CHECK(syscall(__NR_close_range, 4, 6, CLOSE_RANGE_UNSHARE));
		open_some(2);
		_exit(0);
	}
	/* Sometimes the others outlive the first one. */
	for (int i = 0; i < 3 && random_below(4); i++)
		wait_for(sharers[i]);
	_exit(0);
}

/* A namespace in a namespace, whose first process ends before the others. */
static void namespaces(void)
{
	pid_t pid = spawn(CLONE_NEWPID);

	if (pid) {
		wait_for(pid);
		return;
	}
	random_begin(getpid() + (unsigned long)shared->rounds[0]);
	open_some(2);
	for (int i = 0; i < 2; i++) {
		if (spawn(i ? CLONE_NEWPID : 0))
			continue;
		open_some(1);
		usleep(random_below(5000));
		_exit(0);
	}
	_exit(0);
}

static const struct way {
	const char *name;
	void (*round)(void);
	bool in_container;
} ways[] = {
	{ "host", host, false },
	{ "short-lived", short_lived, true },
	{ "fork-pipe", fork_pipe, true },
	{ "exec", exec_chain, true },
	{ "threads", threads, true },
	{ "tables", tables, true },
	{ "replaced", replaced, true },
	{ "sharing", sharing, true },
	{ "namespaces", namespaces, true },
};

#define WAYS (sizeof(ways) / sizeof(ways[0]))

static pid_t drivers[WAYS];

static void start(size_t way)
{
	drivers[way] = spawn(ways[way].in_container ? CLONE_NEWPID : 0);
	if (drivers[way])
		return;
	CHECK(prctl(PR_SET_PDEATHSIG, SIGKILL));
	CHECK(prctl(PR_SET_NAME, ways[way].in_container ? ways[way].name : "host"));
	random_begin(way + 1);
	for (;;) {
		ways[way].round();
		/* The init of a namespace is the parent of every orphan in it. */
		while (waitpid(-1, NULL, WNOHANG) > 0)
			;
		atomic_fetch_add(&shared->rounds[way], 1);
		/* Leave some processor time to the readers. */
		usleep(random_below(10000));
	}
}

static void wait_ready(size_t way)
{
	for (int i = 0; i < WAIT_MS && !shared->rounds[way] && !shared->failed; i++)
		usleep(1000);
	if (shared->failed || !shared->rounds[way])
		errx(1, "%s has not come round once", ways[way].name);
}

static bool wanted(size_t way, char **names)
{
	if (!*names)
		return true;
	for (; *names; names++)
		if (!strcmp(*names, ways[way].name))
			return true;
	return false;
}

int main(int argc, char **argv)
{
	struct rlimit limit = { TABLE + 64, TABLE + 64 };
	char byte;

	if (argc == 3 && !strcmp(argv[1], "leaf"))
		return leaf(argv);
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
		      -1, 0);
	if (shared == MAP_FAILED)
		err(1, "mmap");
	CHECK(setrlimit(RLIMIT_NOFILE, &limit));
	if (mkdir(PLACE, 0700) && errno != EEXIST)
		err(1, PLACE);
	for (const char *const *name = (const char *const[]){ "/+kept", "/+cloexec", "/+append+kept",
							       "/+append+cloexec", NULL };
	     *name; name++) {
		char path[64];

		snprintf(path, sizeof(path), PLACE "%s", *name);
		CHECK(close(CHECK(open(path, O_RDWR | O_CREAT, 0600))));
	}

	for (size_t i = 0; i < WAYS; i++)
		if (wanted(i, argv + 1))
			start(i);
	for (size_t i = 0; i < WAYS; i++)
		if (drivers[i])
			wait_ready(i);
	printf("ready\n");
	fflush(stdout);

	while (read(0, &byte, 1) < 0 && errno == EINTR)
		;
	/* The inits of namespaces, so everything inside ends too. */
	for (size_t i = 0; i < WAYS; i++)
		if (drivers[i])
			CHECK(kill(drivers[i], SIGKILL));
	for (size_t i = 0; i < WAYS; i++) {
		if (!drivers[i])
			continue;
		wait_for(drivers[i]);
		printf("%s %lu\n", ways[i].name, shared->rounds[i]);
	}
	return shared->failed;
}
