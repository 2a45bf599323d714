// SPDX-License-Identifier: GPL-2.0
/*
 * Make a load for a benchmark to read, and keep it unchanged: processes with open files, in
 * containers.
 *
 *	bench_load [containers=1] [processes=1] [files=1] [stride=1] [path=32] [host=0] [apart=0]
 *
 * A container is a PID namespace with its own procfs.  Each has this many processes,
 * including its init.  Each process has exactly this many descriptors: 0, stride,
 * 2 * stride and so on.  Every fourth one is a dup(2) of the one before it; the others are
 * separate files at paths of `path` bytes.  `host` is the number of idle processes outside
 * the containers.  With `apart`, the pids of these and of the inits are that many numbers
 * apart; without it, the kernel chooses them.
 *
 * Prints "container <global pid of its init>" for each, then "ready <processes> <files>" with
 * the sums over all containers.  Ends everything at the end of its standard input.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(call) check((long)(call), #call, __LINE__)
#define COMPONENT 200	/* bytes of one directory's name, at most */
#define ENDING 12	/* "/" and the name of a file */

static struct option {
	const char *name;
	unsigned long value;
} options[] = {
	{ "containers", 1 }, { "processes", 1 }, { "files", 1 },
	{ "stride", 1 }, { "path", 32 }, { "host", 0 }, { "apart", 0 },
};

enum { CONTAINERS, PROCESSES, FILES, STRIDE, PATH, HOST, APART };

/* The number of processes that are set up and paused; shared by all. */
static atomic_ulong *still;
static pid_t *inits;

static long check(long result, const char *call, int line)
{
	if (result < 0)
		err(1, "line %d: %s", line, call);
	return result;
}

static _Noreturn void hold(void)
{
	atomic_fetch_add(still, 1);
	for (;;)
		pause();
}

static void parse(const char *argument)
{
	for (size_t i = 0; i < sizeof(options) / sizeof(options[0]); i++) {
		size_t length = strlen(options[i].name);
		char *end;

		if (strncmp(argument, options[i].name, length) || argument[length] != '=')
			continue;
		options[i].value = strtoul(argument + length + 1, &end, 10);
		if (*end || end == argument + length + 1)
			break;
		return;
	}
	errx(2, "not an option: %s", argument);
}

/* Make and enter directories in which files have paths of the wanted length. */
static void enter_place(void)
{
	char name[COMPONENT + 1], place[64];
	size_t length;

	snprintf(place, sizeof(place), "/tmp/bench.%d.XXXXXX", getpid());
	if (!mkdtemp(place) || chdir(place))
		err(1, "%s", place);
	length = strlen(place) + ENDING;
	if (options[PATH].value > 4095)
		errx(2, "no path of %lu bytes can be read", options[PATH].value);
	while (length + 1 < options[PATH].value) {
		size_t more = options[PATH].value - length - 1;

		/* Leave room for a slash and a name, or for nothing. */
		if (more > COMPONENT)
			more = more < COMPONENT + 2 ? COMPONENT - 2 : COMPONENT;
		memset(name, 'd', more);
		name[more] = '\0';
		CHECK(mkdir(name, 0700));
		CHECK(chdir(name));
		length += more + 1;
	}
}

static void open_files(unsigned long process)
{
	unsigned long stride = options[STRIDE].value;
	struct rlimit limit;
	char name[ENDING];

	limit.rlim_cur = options[FILES].value * stride + 64;
	limit.rlim_max = limit.rlim_cur;
	CHECK(setrlimit(RLIMIT_NOFILE, &limit));
	CHECK(syscall(__NR_close_range, 0, ~0U, 0));
	snprintf(name, sizeof(name), "file-%06lu", process % 1000000);
	for (unsigned long i = 0; i < options[FILES].value; i++) {
		int flags = O_RDWR | O_CREAT | (i % 2 ? O_CLOEXEC : 0);
		int fd = CHECK(i % 4 == 3 ? dup((i - 1) * stride) : open(name, flags, 0600));

		if (fd != (int)(i * stride)) {
			CHECK(dup3(fd, i * stride, i % 2 ? O_CLOEXEC : 0));
			CHECK(close(fd));
		}
	}
}

static void container(void)
{
	CHECK(prctl(PR_SET_PDEATHSIG, SIGKILL));
	CHECK(unshare(CLONE_NEWNS));
	CHECK(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
	enter_place();
	/* The container's own procfs; a reader finds it below /proc/PID/root. */
	CHECK(mkdir("/tmp/bench-proc", 0700) < 0 && errno != EEXIST ? -1 : 0);
	CHECK(mount("proc", "/tmp/bench-proc", "proc", 0, NULL));
	for (unsigned long i = 1; i < options[PROCESSES].value; i++) {
		if (!CHECK(fork())) {
			open_files(i);
			hold();
		}
	}
	open_files(0);
	hold();
}

/* Like clone(2), but the pid is `apart` numbers after the last one, or the next free one. */
static pid_t clone_apart(unsigned long flags)
{
	static pid_t last;
	pid_t numbers[2] = { 1 };	/* in the new namespace, if any, and in ours */
	struct clone_args arguments = { .flags = flags, .exit_signal = SIGCHLD };
	pid_t pid;

	if (options[APART].value) {
		arguments.set_tid = (uintptr_t)(flags & CLONE_NEWPID ? numbers : numbers + 1);
		arguments.set_tid_size = flags & CLONE_NEWPID ? 2 : 1;
		last = (last ? last : getpid()) + options[APART].value - 1;
	}
	do {
		numbers[1] = ++last;
		pid = syscall(SYS_clone3, &arguments, sizeof(arguments));
	} while (pid < 0 && errno == EEXIST);
	return pid;
}

static void idle(void)
{
	CHECK(prctl(PR_SET_PDEATHSIG, SIGKILL));
	CHECK(syscall(__NR_close_range, 3, ~0U, 0));
	hold();
}

int main(int argc, char **argv)
{
	unsigned long expected, count;
	pid_t group;
	char byte;

	for (int i = 1; i < argc; i++)
		parse(argv[i]);
	if (!options[PROCESSES].value || !options[STRIDE].value)
		errx(2, "processes and stride must be at least 1");
	still = mmap(NULL, sizeof(*still), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
		     -1, 0);
	if (still == MAP_FAILED)
		err(1, "mmap");
	inits = calloc(options[CONTAINERS].value + 1, sizeof(*inits));
	if (!inits)
		err(1, "calloc");
	setlinebuf(stdout);

	/* One process group for all host processes, so that one signal ends them. */
	group = 0;
	for (unsigned long i = 0; i < options[HOST].value; i++) {
		pid_t pid = CHECK(clone_apart(0));

		if (!pid)
			idle();
		CHECK(setpgid(pid, group ? group : pid));
		if (!group)
			group = pid;
	}
	for (count = 0; count < options[CONTAINERS].value; count++) {
		inits[count] = CHECK(clone_apart(CLONE_NEWPID));
		if (!inits[count])
			container();
		printf("container %d\n", inits[count]);
	}
	expected = options[HOST].value + count * options[PROCESSES].value;
	while (atomic_load(still) < expected) {
		if (waitpid(-1, NULL, WNOHANG) > 0)
			errx(1, "a process ended before all stood still");
		usleep(1000);
	}
	printf("ready %lu %lu\n", count * options[PROCESSES].value,
	       count * options[PROCESSES].value * options[FILES].value);

	while (read(0, &byte, 1) < 0 && errno == EINTR)
		;
	/* When its init ends, the kernel kills all processes of a PID namespace. */
	for (unsigned long i = 0; i < count; i++)
		CHECK(kill(inits[i], SIGKILL));
	if (group)
		CHECK(kill(-group, SIGKILL));
	while (wait(NULL) > 0)
		;
	printf("gone\n");
	return 0;
}
