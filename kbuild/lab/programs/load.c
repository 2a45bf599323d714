// SPDX-License-Identifier: GPL-2.0-only
/*
 * Make load for the module to read: one workload in a PID namespace of its own.  A cgroup
 * limits the workload, and it is ended in time, so that the guest survives.
 *
 *	load list
 *	load <workload> <seconds> <seed> <pids> <MiB>
 *	load run <seconds> <seed> <pids> <MiB> <command...>	run another program as the load
 *
 * At its end it prints "<operations> <forks refused> <OOM kills>": operations as counted by
 * the workload, the others as counted by the cgroup.  It fails if the workload has done
 * nothing, or if a part of it is left.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "fuse_server.h"
#include "random.h"

#define CGROUPS "/sys/fs/cgroup"
/* Time for killed processes to be gone, on a kernel of any speed. */
#define GONE_MS 120000
/* Extra time for a workload to do something. */
#define TURN_S 60

static atomic_ulong *operations;
static char cgroup[128];

static void done(void)
{
	atomic_fetch_add(operations, 1);
}

/* ---- small things ---- */

/* Give children random numbers of their own. */
static pid_t fork_random(void)
{
	uint64_t seed = random_next();
	pid_t pid = fork();

	if (!pid)
		random_begin(seed);
	return pid;
}

static void reap_all(void)
{
	while (waitpid(-1, NULL, WNOHANG) > 0)
		;
}

/* At the limit of pids: wait for a child, if there is one, because only an exit makes room. */
static void make_room(void)
{
	if (waitpid(-1, NULL, 0) < 0)
		usleep(1000);
}

static void allow_files(rlim_t most)
{
	struct rlimit limit = { most, most };

	if (setrlimit(RLIMIT_NOFILE, &limit))
		err(1, "setrlimit %ju", (uintmax_t)most);
}

static void close_from(unsigned int first)
{
	syscall(__NR_close_range, first, ~0u, 0);
}

/* Open a file to hold: of every kind that makes its path in its own way. */
static int open_something(void)
{
	int pair[2];

	switch (random_below(7)) {
	case 0:
		return open("/dev/null", O_RDWR | (random_below(2) ? O_CLOEXEC : 0));
	case 1:
		return open("/proc/self/status", O_RDONLY);
	case 2:
		return eventfd(0, 0);
	case 3:
		return syscall(SYS_memfd_create, "a\tname\n", 0);
	case 4:
		return open("/tmp", O_TMPFILE | O_RDWR, 0600);
	case 5:
		return open("/", O_PATH);
	default:
		if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair))
			return -1;
		close(pair[1]);
		return pair[0];
	}
}

/* ---- workloads: each is pid 1 of its namespace and runs until it is killed ---- */

/* Every process makes a pipe and two children, as long as there is room. */
static void fork_pipe_bomb(void)
{
	int ends[2];

	allow_files(64);
	for (;;) {
		bool pipes = !pipe(ends);
		pid_t pid = fork_random();

		if (pid > 0)
			done();
		if (pid < 0 || !pipes) {
			/* full: some end, so that it can fill again */
			if (getpid() != 1 && random_below(2))
				_exit(0);
			close_from(3);
			make_room();
		}
		reap_all();
	}
}

/* Open as many pipes as a process may have, then close them in random order. */
static void pipe_bomb(void)
{
	int fds[1024], count, ends[2];

	allow_files(sizeof(fds) / sizeof(fds[0]));
	for (int i = 0; i < 3; i++)
		if (!fork_random())
			break;
	for (;;) {
		for (count = 0; count < 1000 && !pipe(ends); count += 2) {
			fds[count] = ends[0];
			fds[count + 1] = ends[1];
			done();
		}
		while (count > 0) {
			int which = random_below(count);

			close(fds[which]);
			fds[which] = fds[--count];
		}
	}
}

/* Processes end as soon as they exist; sometimes one becomes a zombie or an orphan. */
static void churn(void)
{
	for (;;) {
		pid_t pid = fork_random();

		if (!pid) {
			if (!random_below(4))
				open_something();
			if (!random_below(4))
				fork();
			_exit(0);
		}
		if (pid < 0)
			make_room();
		else
			done();
		if (random_below(8))
			reap_all();
	}
}

/* A process executes itself repeatedly, and thereby closes files. */
static void exec_self(const char *way, unsigned int left, uint64_t seed)
{
	char count[16], number[32];

	snprintf(count, sizeof(count), "%u", left);
	snprintf(number, sizeof(number), "%ju", (uintmax_t)seed);
	execl("/proc/self/exe", "exec\t\n\\", way, count, number, NULL);
	_exit(1);
}

static unsigned int execs_left;

static void *exec_in_thread(void *unused)
{
	(void)unused;
	exec_self("exec-thread", execs_left - 1, random_next());
	return NULL;
}

static void *open_in_thread(void *unused)
{
	(void)unused;
	for (;;) {
		close(open("/dev/null", O_RDONLY));
		usleep(100);
	}
	return NULL;
}

/*
 * Threads of all ages are ended by the execve() of a thread that is not the leader, and that
 * takes the leader's place and pid.  Sometimes the leader has ended before.
 */
static void exec_by_thread(void)
{
	pthread_t id;

	for (int i = random_below(3); i > 0; i--)
		if (!pthread_create(&id, NULL, open_in_thread, NULL))
			pthread_detach(id);
	/* At the limit of pids there is no thread to do it. */
	if (pthread_create(&id, NULL, exec_in_thread, NULL))
		_exit(0);
	if (random_below(4) == 0)
		syscall(SYS_exit, 0);
	for (;;)
		open_in_thread(NULL);
}

static int exec_again(const char *way, unsigned int left, uint64_t seed)
{
	random_begin(seed);
	for (int i = random_below(8); i > 0; i--) {
		int fd = open_something();

		if (fd >= 0 && random_below(2))
			fcntl(fd, F_SETFD, FD_CLOEXEC);
	}
	execs_left = left;
	if (left && !strcmp(way, "exec-thread"))
		exec_by_thread();
	if (left)
		exec_self(way, left - 1, random_next());
	return 0;
}

static void exec_repeatedly(const char *way)
{
	for (;;) {
		uint64_t seed = random_next();
		pid_t pid = fork();

		if (!pid)
			exec_self(way, random_below(5), seed);
		if (pid < 0)
			make_room();
		else
			done();
		if (pid > 0 && random_below(2))
			make_room();
		reap_all();
	}
}

static void execs(void)
{
	exec_repeatedly("exec");
}

static void exec_threads(void)
{
	exec_repeatedly("exec-thread");
}

/* Threads have tables of their own, and some outlive their leader. */
static void *thread(void *argument)
{
	if ((uintptr_t)argument & 1)
		unshare(CLONE_FILES);
	for (int i = 0; i < 4; i++)
		open("/dev/null", O_RDONLY);
	if ((uintptr_t)argument & 2)
		usleep(2000);
	return NULL;
}

static void threads(void)
{
	for (;;) {
		pid_t pid = fork_random();

		if (!pid) {
			for (int i = 0; i < 6; i++) {
				pthread_t id;

				if (!pthread_create(&id, NULL, thread,
						    (void *)(uintptr_t)random_below(4)))
					pthread_detach(id);
			}
			if (random_below(2))
				syscall(SYS_exit, 0);	/* ends only the leader */
			_exit(0);
		}
		if (pid < 0)
			make_room();
		else
			done();
		if (random_below(2))
			make_room();
		reap_all();
	}
}

/* A table grows to every size, and becomes small again as a copy of its rest. */
static void tables(void)
{
	allow_files(1 << 17);
	for (int i = 0; i < 2; i++)
		if (!fork_random())
			break;
	for (;;) {
		unsigned int top = 1u << (4 + random_below(14));
		int fd = open_something();

		for (unsigned int at = 64; fd >= 0 && at < top; at *= 2) {
			dup2(fd, at + random_below(at));
			done();
		}
		if (random_below(2)) {
			fcntl(fd, F_SETFL, random_below(2) ? O_NONBLOCK : O_APPEND);
			lseek(fd, random_below(1000), SEEK_SET);
		}
		if (random_below(2)) {
			/* copies only the part below: the way to a small table */
			syscall(__NR_close_range, 3 + random_below(64), ~0u, CLOSE_RANGE_UNSHARE);
		} else {
			pid_t pid = fork_random();

			if (!pid) {
				close_from(3 + random_below(64));
				_exit(0);
			}
			if (pid > 0)
				waitpid(pid, NULL, 0);
		}
		close_from(3);
	}
}

/* Namespaces are nested, and the first process of each ends before the others. */
static void namespaces(void)
{
	for (;;) {
		pid_t pid = fork_random();

		if (!pid) {
			for (int depth = random_below(4); depth >= 0; depth--) {
				if (unshare(CLONE_NEWPID | (random_below(4) ? 0 : CLONE_NEWNS)))
					_exit(0);
				open_something();
				pid = fork_random();
				if (pid < 0)
					_exit(0);
				if (pid) {
					if (random_below(2))
						waitpid(pid, NULL, 0);
					_exit(0);
				}
				if (!random_below(3))
					fork();
			}
			_exit(0);
		}
		if (pid < 0)
			make_room();
		else
			done();
		if (random_below(2))
			make_room();
		reap_all();
	}
}

/* Processes that hold files use more memory than there is, and the kernel kills them. */
static void out_of_memory(void)
{
	const size_t step = 1 << 20;

	/* the first process must survive, because everything else would end with it */
	if (getpid() == 1) {
		int fd = open("/proc/self/oom_score_adj", O_WRONLY);

		if (fd < 0 || write(fd, "-1000", 5) != 5)
			err(1, "oom_score_adj");
		close(fd);
	}
	for (;;) {
		pid_t pid = fork_random();

		if (!pid) {
			int fd = open("/proc/self/oom_score_adj", O_WRONLY);

			if (fd < 0 || write(fd, "1000", 4) != 4)
				_exit(1);
			for (int i = 0; i < 20; i++)
				open_something();
			for (;;) {
				char *block = mmap(NULL, step, PROT_READ | PROT_WRITE,
						   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

				if (block == MAP_FAILED)
					_exit(1);
				memset(block, 1, step);
			}
		}
		if (pid > 0) {
			int status;

			waitpid(pid, &status, 0);
			if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)
				done();
		}
	}
}

/* Files and processes change their names to texts that could mislead a reader. */
static void names(void)
{
	static const char *const parts[] = {
		"\n\n", "\t", "\\", "\\012", "\x7f\x1b[2J", "\xff\xfe", " (deleted)",
		"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\t7\t1\t0\t1\tx\n",
	};
	char directory[64], from[512], to[512];

	for (int i = 0; i < 2; i++)
		if (!fork_random())
			break;
	snprintf(directory, sizeof(directory), "/tmp/names-%jx", (uintmax_t)random_next());
	if (mkdir(directory, 0700) || chdir(directory))
		err(1, "%s", directory);
	strcpy(from, "first");
	for (unsigned int round = 0;; round++) {
		int fd = open(from, O_RDWR | O_CREAT, 0600);
		size_t length = 0;

		if (fd >= 0 && random_below(64))
			dup2(fd, 3 + random_below(40));
		for (int i = 1 + random_below(6); i > 0; i--) {
			const char *part = parts[random_below(8)];

			if (length + strlen(part) >= 250)
				break;
			strcpy(to + length, part);
			length += strlen(part);
		}
		prctl(PR_SET_NAME, to);
		/* a number that makes each name unique, in bytes that are no control bytes */
		snprintf(to + length, sizeof(to) - length, "%u", round);
		if (!rename(from, to))
			done();
		strcpy(from, to);
		if (!random_below(4)) {
			unlink(from);
			close_from(3);
		}
	}
}

/*
 * A file system whose server delays its answer when a file is closed.  Every process that has
 * the file open waits for the answer, also at its end, and so would the one that drops the
 * last reference.
 */
#define SERVED "/tmp/served"

/* Called in the server, which answers no other request meanwhile. */
static unsigned int flush_late(uint32_t pid)
{
	(void)pid;
	usleep(random_below(3000));
	return 0;
}

static void use_served(void)
{
	char path[32], byte;
	int last = -1;

	for (int i = 1 + random_below(4); i > 0; i--) {
		int fd;

		snprintf(path, sizeof(path), SERVED "/%d", (int)random_below(FUSE_SERVER_FILES));
		fd = open(path, O_RDWR);
		if (fd < 0)
			continue;
		done();
		last = fd;
		if (random_below(2) && read(fd, &byte, 1) == 1 && random_below(2))
			dup(fd);
	}
	if (!random_below(4))
		close(last);
	if (!random_below(4))
		fork();
	/* Exiting closes the rest, an orphan's files too. */
}

static void fuse(void)
{
	pid_t server;
	int fd;

	if (mknod("/tmp/fuse", S_IFCHR | 0600, makedev(10, 229)) || mkdir(SERVED, 0755))
		err(1, "/tmp/fuse");
	fd = fuse_server_mount("/tmp/fuse", SERVED);
	server = fork_random();
	if (server < 0)
		err(1, "fork");
	if (!server) {
		fuse_server_run(fd, flush_late);
		err(1, "the server of " SERVED);
	}
	/* No other process may keep it, or it would wait forever for a server that is gone. */
	close(fd);
	for (;;) {
		pid_t pid = fork_random();

		if (!pid) {
			use_served();
			_exit(0);
		}
		/* A server that ends is not the module's fault, and must be noticed. */
		for (pid_t ended; (ended = waitpid(-1, NULL, pid < 0 ? 0 : WNOHANG)) > 0; pid = 0)
			if (ended == server)
				errx(1, "the server has ended");
		usleep(random_below(1000));
	}
}

/*
 * Connections wait at their end for data that the other side does not read: for LINGER_S at
 * most, or until the other side closes.  They are in a network of their own, which ends too.
 */
#define LINGER_S 2
#define LINGER_BYTES 16384

static void bring_lo_up(void)
{
	struct ifreq request = { .ifr_name = "lo", .ifr_flags = IFF_UP };
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	if (fd < 0 || ioctl(fd, SIOCSIFFLAGS, &request))
		err(1, "lo");
	close(fd);
}

/* Keep a connection for a moment, then read from it or not, and close it. */
__attribute__((noreturn))
static void accept_late(int listener)
{
	char bytes[LINGER_BYTES];

	for (;;) {
		int fd = accept(listener, NULL, NULL);

		if (fd < 0)
			continue;
		usleep(random_below(20000));
		if (random_below(2))
			while (recv(fd, bytes, sizeof(bytes), MSG_DONTWAIT) > 0)
				;
		close(fd);	/* a reset, if data was not read */
	}
}

static void leave_unsent(const struct sockaddr_in *address)
{
	struct linger linger = { .l_onoff = 1, .l_linger = LINGER_S };
	static const char bytes[LINGER_BYTES];
	int size = LINGER_BYTES, fd = socket(AF_INET, SOCK_STREAM, 0);

	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size)) ||
	    setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger)) ||
	    connect(fd, (const struct sockaddr *)address, sizeof(*address)))
		_exit(1);
	while (send(fd, bytes, sizeof(bytes), MSG_DONTWAIT | MSG_NOSIGNAL) > 0)
		;
	done();
	/* An exiting process does not linger; close(2), and a last reference elsewhere, do. */
	if (random_below(2))
		close(fd);
}

static void linger(void)
{
	struct sockaddr_in address = { .sin_family = AF_INET,
				       .sin_addr = { htonl(INADDR_LOOPBACK) } };
	socklen_t length = sizeof(address);
	int size = LINGER_BYTES, listener;

	if (unshare(CLONE_NEWNET))
		err(1, "a network of its own");
	bring_lo_up();
	listener = socket(AF_INET, SOCK_STREAM, 0);
	if (listener < 0 ||
	    setsockopt(listener, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size)) ||
	    bind(listener, (struct sockaddr *)&address, sizeof(address)) ||
	    getsockname(listener, (struct sockaddr *)&address, &length) || listen(listener, 16))
		err(1, "a server");
	for (int i = 0; i < 4; i++) {
		pid_t pid = fork_random();

		if (pid < 0)
			err(1, "fork");
		if (!pid)
			accept_late(listener);
	}
	close(listener);
	for (;;) {
		pid_t pid = fork_random();

		if (!pid) {
			leave_unsent(&address);
			_exit(0);
		}
		if (pid < 0)
			make_room();
		reap_all();
		usleep(random_below(1000));
	}
}

/*
 * Processes end with descriptors whose closing waits for a grace period each.  By default a
 * user may have 128 of them, so some processes get fewer.
 */
#define WATCHERS 50

static void watch(void)
{
	int watching = 0;

	for (int i = 0; i < WATCHERS; i++) {
		int fd = inotify_init1(random_below(2) ? IN_CLOEXEC : 0);

		if (fd < 0)
			break;
		if (inotify_add_watch(fd, random_below(2) ? "/tmp" : "/dev", IN_ALL_EVENTS) >= 0)
			watching++;
	}
	close(open("/tmp", O_TMPFILE | O_RDWR, 0600));
	if (watching)
		done();
	if (!random_below(4))
		fork();
}

static void inotify(void)
{
	for (;;) {
		pid_t pid = fork_random();

		if (!pid) {
			watch();
			_exit(0);
		}
		/* Two processes at a time take all that there are, and two more find none left. */
		if (pid < 0 || random_below(4))
			make_room();
		reap_all();
	}
}

static const struct {
	const char *name;
	void (*run)(void);
} workloads[] = {
	{ "fork-pipe-bomb", fork_pipe_bomb },
	{ "pipe-bomb", pipe_bomb },
	{ "churn", churn },
	{ "exec", execs },
	{ "threads", threads },
	{ "tables", tables },
	{ "namespaces", namespaces },
	{ "oom", out_of_memory },
	{ "names", names },
	{ "fuse", fuse },
	{ "linger", linger },
	{ "inotify", inotify },
	{ "exec-threads", exec_threads },
};

#define WORKLOADS (sizeof(workloads) / sizeof(workloads[0]))

/* ---- limits ---- */

static void write_file(const char *directory, const char *name, const char *text)
{
	char path[256];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", directory, name);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text))
		err(1, "%s <- %s", path, text);
	close(fd);
}

/* Return the number after @key in one of the cgroup's files. */
static unsigned long read_key(const char *name, const char *key)
{
	char path[256], word[64];
	unsigned long value;
	FILE *stream;

	snprintf(path, sizeof(path), "%s/%s", cgroup, name);
	stream = fopen(path, "re");
	if (!stream)
		err(1, "%s", path);
	while (fscanf(stream, "%63s %lu", word, &value) == 2) {
		if (!strcmp(word, key)) {
			fclose(stream);
			return value;
		}
	}
	errx(1, "%s has no %s", path, key);
}

static void make_cgroup(const char *name, const char *pids, const char *mib)
{
	char limit[32];

	write_file(CGROUPS, "cgroup.subtree_control", "+pids +memory");
	snprintf(cgroup, sizeof(cgroup), CGROUPS "/load-%s-%d", name, getpid());
	if (mkdir(cgroup, 0755))
		err(1, "%s", cgroup);
	write_file(cgroup, "pids.max", pids);
	snprintf(limit, sizeof(limit), "%sM", mib);
	write_file(cgroup, "memory.max", limit);
}

static void wait_until_empty(void)
{
	struct pollfd events;
	char path[256], text[256];
	ssize_t size;

	snprintf(path, sizeof(path), "%s/cgroup.events", cgroup);
	events = (struct pollfd){ .fd = open(path, O_RDONLY | O_CLOEXEC), .events = POLLPRI };
	if (events.fd < 0)
		err(1, "%s", path);
	for (;;) {
		size = pread(events.fd, text, sizeof(text) - 1, 0);
		text[size > 0 ? size : 0] = '\0';
		if (strstr(text, "populated 0"))
			break;
		if (poll(&events, 1, GONE_MS) <= 0)
			errx(1, "%s is not empty %d s after its end", cgroup, GONE_MS / 1000);
	}
	close(events.fd);
}

/*
 * Give the load its own mounts, as a container has.  Its files in /tmp disappear with
 * it, and a load that opens every device does not find the ports between host and guest.
 * /proc stays the host's, so a load that reads all of it reads our file too.
 */
static void private_mounts(void)
{
	static const struct {
		const char *path;
		unsigned int major, minor;
	} nodes[] = {
		{ "/dev/null", 1, 3 }, { "/dev/zero", 1, 5 }, { "/dev/full", 1, 7 },
		{ "/dev/random", 1, 8 }, { "/dev/urandom", 1, 9 }, { "/dev/tty", 5, 0 },
	};

	if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
	    mount("tmpfs", "/tmp", "tmpfs", 0, "mode=1777") || chdir("/tmp"))
		err(1, "a private /tmp");
	if (mount("tmpfs", "/dev", "tmpfs", 0, "mode=0755"))
		err(1, "a private /dev");
	for (size_t i = 0; i < sizeof(nodes) / sizeof(nodes[0]); i++)
		if (mknod(nodes[i].path, S_IFCHR | 0666, makedev(nodes[i].major, nodes[i].minor)))
			err(1, "%s", nodes[i].path);
	if (mkdir("/dev/pts", 0755) || mkdir("/dev/shm", 01777) ||
	    mount("devpts", "/dev/pts", "devpts", 0, "newinstance,ptmxmode=0666") ||
	    symlink("pts/ptmx", "/dev/ptmx"))
		err(1, "/dev/pts");
}

/* Runs in the cgroup; its child is the first process of the workload's namespace. */
__attribute__((noreturn))
static void contain(void (*run)(void), uint64_t seed, char **command)
{
	int status;
	pid_t pid;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	write_file(cgroup, "cgroup.procs", "0");
	/* the process that watches has priority */
	if (setpriority(PRIO_PROCESS, 0, 5))
		err(1, "setpriority");
	private_mounts();
	if (unshare(CLONE_NEWPID))
		err(1, "unshare");
	pid = fork();
	if (pid < 0)
		err(1, "fork");
	if (!pid) {
		random_begin(seed);
		if (run)
			run();
		execvp(command[0], command);
		err(1, "%s", command[0]);
	}
	if (waitpid(pid, &status, 0) != pid)
		err(1, "waitpid");
	if (WIFSIGNALED(status))
		errx(1, "the workload's first process was killed by signal %d", WTERMSIG(status));
	_exit(WEXITSTATUS(status));
}

static int load(const char *name, unsigned int seconds, uint64_t seed, const char *pids,
		const char *mib, void (*run)(void), char **command)
{
	struct timespec limit = { .tv_sec = seconds };
	unsigned long refused, kills;
	bool ended_itself;
	sigset_t child;
	int status = 0;
	pid_t pid;

	operations = mmap(NULL, sizeof(*operations), PROT_READ | PROT_WRITE,
			  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (operations == MAP_FAILED)
		err(1, "mmap");
	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	sigprocmask(SIG_BLOCK, &child, NULL);
	make_cgroup(name, pids, mib);
	pid = fork();
	if (pid < 0)
		err(1, "fork");
	if (!pid) {
		sigprocmask(SIG_UNBLOCK, &child, NULL);
		contain(run, seed, command);
	}
	ended_itself = sigtimedwait(&child, NULL, &limit) == SIGCHLD;
	limit.tv_sec = 1;
	for (int left = TURN_S; !command && !*operations && !ended_itself && left; left--)
		ended_itself = sigtimedwait(&child, NULL, &limit) == SIGCHLD;
	write_file(cgroup, "cgroup.kill", "1");
	if (waitpid(pid, &status, 0) != pid)
		err(1, "waitpid");
	wait_until_empty();
	refused = read_key("pids.events", "max");
	kills = read_key("memory.events", "oom_kill");
	if (rmdir(cgroup))
		err(1, "rmdir %s", cgroup);
	if (command && ended_itself && WIFEXITED(status) && !WEXITSTATUS(status))
		done();
	printf("%lu %lu %lu\n", *operations, refused, kills);
	if (ended_itself && (!command || !WIFEXITED(status) || WEXITSTATUS(status)))
		errx(1, "%s ended before its time: wait status %#x", name, status);
	if (command ? !ended_itself : !*operations)
		errx(1, "%s has done nothing, or was not done in its time", name);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 2 && !strcmp(argv[1], "list")) {
		for (size_t i = 0; i < WORKLOADS; i++)
			puts(workloads[i].name);
		return 0;
	}
	/* the workloads exec and exec-threads run this program themselves */
	if (argc == 4 && (!strcmp(argv[1], "exec") || !strcmp(argv[1], "exec-thread")))
		return exec_again(argv[1], strtoul(argv[2], NULL, 10),
				  strtoull(argv[3], NULL, 10));
	if (argc >= 6) {
		unsigned int seconds = strtoul(argv[2], NULL, 10);
		uint64_t seed = strtoull(argv[3], NULL, 10);

		if (!strcmp(argv[1], "run") && argc > 6)
			return load("run", seconds, seed, argv[4], argv[5], NULL, argv + 6);
		for (size_t i = 0; i < WORKLOADS && argc == 6; i++)
			if (!strcmp(argv[1], workloads[i].name))
				return load(argv[1], seconds, seed, argv[4], argv[5],
					    workloads[i].run, NULL);
	}
	errx(2, "usage: load list | load <workload>|run <seconds> <seed> <pids> <MiB> [command]");
}
