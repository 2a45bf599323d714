// SPDX-License-Identifier: GPL-2.0
/*
 * Build topologies of processes and descriptors one after the other, and hold each of them
 * still.  Print the views that a file (the module's) and the kernel itself give of it.
 *
 *	build_topology <directory> <file>
 *
 * It runs in the initial PID namespace, as root.  It mounts a tmpfs on the directory and
 * unmounts it at its end, which fails if anything still holds a file of a topology.
 * It prints "ready <have io_uring>".  Requests come on standard input, in the form that
 * tests/topology/planning.py writes (struct request below).  Each is answered with one of
 *
 *	built <the file> <the view: see kernel_view.h> <global pid of each slot>...
 *	failed <why>
 *
 * Both texts are in hexadecimal, and "-" if empty.  By then, all processes of the topology
 * are gone.
 *
 * A process runs its own operations.  It makes a child for those of the child, and waits for
 * them before it goes on, so all pids and descriptors are known in advance.  There are no
 * waits by sleeping: a process reports on a futex that it has done its part, and the state in
 * /proc/PID/stat tells when it rests.
 */
#define _GNU_SOURCE
#include <linux/close_range.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>

#include "kernel_view.h"

#ifndef CLOSE_RANGE_CLOEXEC
#define CLOSE_RANGE_CLOEXEC (1U << 2)
#endif

#define SLOTS 1024
#define NAMES 256
#define STACK 65536
#define FILES 200000
#define DEADLINE_S 60
#define MAX_REQUEST (1 << 22)

/* The values are those of tests/topology/planning.py. */
enum code {
	END = 0,		/* a: enum end */
	SPAWN = 1,		/* a: slot, b: operations of the child, c: flags of clone(2) */
	THREAD = 2,		/* a: slot, b: operations of the thread */
	OPEN = 3,		/* a: name, c: flags */
	CLOSE = 4,		/* a: fd */
	DUP = 5,		/* a: fd, b: how often */
	DUP_FROM = 6,		/* a: fd, b: lowest, c: flags, O_CLOEXEC or none */
	DUP_ONTO = 7,		/* a: fd, b: the other, c: flags */
	SET_CLOEXEC = 8,	/* a: fd, b: 1 or 0 */
	SET_FLAGS = 9,		/* a: fd, c: flags */
	SEEK = 10,		/* a: fd, c: position */
	WRITE = 11,		/* a: fd, b: bytes */
	PIPE = 12,		/* c: flags */
	SOCKETPAIR = 13,	/* a: type, c: flags */
	SOCKET = 14,		/* a: type, c: flags */
	MEMFD = 15,		/* a: name, c: flags of memfd_create(2) */
	EVENTFD = 16,		/* c: flags; also for the next ones */
	EPOLL = 17,
	TIMERFD = 18,
	SIGNALFD = 19,
	INOTIFY = 20,
	PIDFD = 21,		/* a: pid */
	IO_URING = 22,
	UNLINK = 23,		/* a: name */
	RENAME = 24,		/* a: name, b: new name */
	LINK = 25,		/* a: name, b: new name */
	MKDIR = 26,		/* a: name */
	CHDIR = 27,		/* a: name */
	RMDIR = 28,		/* a: name */
	UNSHARE_FILES = 29,
	CLOSE_RANGE = 30,	/* a: first, b: last, c: flags */
	TAKE = 31,		/* a: pid, b: fd of it: pidfd_getfd(2) */
	SETPGID = 32,		/* a: pgid, 0 for a group of its own */
	SETSID = 33,
	SET_NAME = 34,		/* a: name */
	BLOCK = 35,		/* c: signals, as the kernel numbers bits */
	SUBREAPER = 36,
	EXEC = 37,		/* a: the process's slot, which a thread becomes */
	REST_FOR = 38,		/* a: slot of a process that waits for us in vfork(2) */
	/* For this program itself, when all processes exist. */
	SETTLE = 64,		/* a: slot, b: letter of the state */
	STOP = 65,		/* a: slot */
	TRACE = 66,		/* a: slot */
	SIGNAL = 67,		/* a: slot, b: signal, c: 1 for the thread, 0 for the process */
};

enum end { HOLD = 0, ZOMBIE = 1, REAPED = 2, DEAD_LEADER = 3 };

struct op {
	uint32_t code, a, b;
	uint32_t join;		/* of SPAWN: the slot whose namespace is joined, and 1; or 0 */
	uint64_t c;
};

/* Followed by the operations, and by the names: two bytes of length, and the bytes. */
struct request {
	uint32_t size;		/* of the whole request */
	uint32_t ops, names, slots;
};

enum phase { BUILDING = 0, RESTING = 1, FAILED = 2 };

struct slot {
	_Atomic uint32_t phase;	/* a futex */
	pid_t pid;		/* in the initial namespace */
	enum end end;
};

/* Seen by all processes, before and after execve(2): a mapped file. */
struct shared {
	char program[256], path[256];
	atomic_flag complained;
	char complaint[512];
	struct slot slots[SLOTS];
	_Alignas(8) char request[MAX_REQUEST];
};

static struct shared *shared;
static const struct op *ops;
static const char *names[NAMES];

/* A thread's data about itself; variables of the library belong to the whole process. */
struct self {
	uint32_t slot;
	uint32_t next;		/* its next operation */
};

static void run(struct self *self);

static int futex(_Atomic uint32_t *word, int what, uint32_t value, const struct timespec *limit)
{
	return syscall(SYS_futex, word, what, value, limit, NULL, 0);
}

static time_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec;
}

static void come_to(uint32_t slot, enum phase phase)
{
	atomic_store(&shared->slots[slot].phase, phase);
	futex(&shared->slots[slot].phase, FUTEX_WAKE, INT32_MAX, NULL);
}

__attribute__((format(printf, 1, 2)))
static void complain(const char *format, ...)
{
	va_list list;

	if (atomic_flag_test_and_set(&shared->complained))
		return;
	va_start(list, format);
	vsnprintf(shared->complaint, sizeof(shared->complaint), format, list);
	va_end(list);
}

/* An error reaches the host through all processes that wait for this one. */
static _Noreturn void give_up(const struct self *self)
{
	come_to(self->slot, FAILED);
	_exit(1);
}

static long check(const struct self *self, long result, const char *call)
{
	if (result >= 0)
		return result;
	complain("slot %u, operation %u: %s: %s", self->slot, self->next - 1, call,
		 strerror(errno));
	give_up(self);
}

#define CHECK(call) check(self, (long)(call), #call)

/* Wait until a child or a thread has done its part, and tell whether it has. */
static bool wait_for(uint32_t slot, pid_t child)
{
	struct timespec second = { .tv_sec = 1 };
	time_t end = now() + DEADLINE_S;
	uint32_t phase;
	siginfo_t info;

	while ((phase = atomic_load(&shared->slots[slot].phase)) == BUILDING) {
		futex(&shared->slots[slot].phase, FUTEX_WAIT, BUILDING, &second);
		info.si_pid = 0;
		if (child && !waitid(P_PID, child, &info, WEXITED | WNOWAIT | WNOHANG) &&
		    info.si_pid && atomic_load(&shared->slots[slot].phase) == BUILDING) {
			complain("slot %u ended by itself, with %d of kind %d", slot,
				 info.si_status, info.si_code);
			return false;
		}
		if (now() > end) {
			complain("slot %u did not do its part in %d s", slot, DEADLINE_S);
			return false;
		}
	}
	return phase == RESTING;
}

static void rest(const struct self *self)
{
	come_to(self->slot, RESTING);
	for (;;)
		pause();
}

/* The name of the link is the pid in the namespace of this procfs, the host's. */
static pid_t global_pid(const struct self *self)
{
	char link[32];
	ssize_t length = CHECK(readlink("/proc/self", link, sizeof(link) - 1));

	link[length] = '\0';
	return atoi(link);
}

static void begin(struct self *self, int inherited)
{
	struct slot *slot = &shared->slots[self->slot];

	slot->pid = global_pid(self);
	if (inherited < 0)
		return;
	/* In the first process of a container only one of our files stays open. */
	CHECK(sigaction(SIGHUP, &(struct sigaction){ .sa_handler = SIG_DFL }, NULL));
	CHECK(prctl(PR_SET_PDEATHSIG, SIGKILL));
	if (inherited)
		CHECK(dup2(inherited, 0));
	CHECK(syscall(__NR_close_range, 1, ~0U, 0));
}

/* close_range(2); Linux 5.10 has it without CLOSE_RANGE_CLOEXEC, which fcntl(2) replaces. */
static long close_range_of(uint32_t first, uint32_t last, uint32_t flags)
{
	long done = syscall(__NR_close_range, first, last, flags);
	int options;

	if (!done || errno != EINVAL || !(flags & CLOSE_RANGE_CLOEXEC) || first > last)
		return done;
	if (flags & CLOSE_RANGE_UNSHARE && unshare(CLONE_FILES))
		return -1;
	for (long fd = first; fd <= last && fd < FILES; fd++) {
		options = fcntl(fd, F_GETFD);
		if (options >= 0 && fcntl(fd, F_SETFD, options | FD_CLOEXEC))
			return -1;
	}
	return 0;
}

static bool reaped(uint32_t slot, pid_t pid)
{
	siginfo_t info;

	if (shared->slots[slot].end == ZOMBIE)
		return !waitid(P_PID, pid, &info, WEXITED | WNOWAIT);
	if (shared->slots[slot].end == REAPED)
		return waitpid(pid, NULL, 0) == pid;
	return true;
}

/* Make a child, and return when it has done its part. */
static pid_t spawn(const struct self *self, const struct op *op, int inherited)
{
	struct self child = { .slot = op->a, .next = self->next };
	pid_t pid = syscall(SYS_clone, op->c | SIGCHLD, 0, 0, 0, 0);

	if (!pid) {
		begin(&child, inherited);
		run(&child);
	}
	return pid;
}

static int thread_main(void *self)
{
	struct self own = *(struct self *)self;

	run(&own);
	return 0;
}

/* Execute this program anew, from the next operation on; a thread becomes its process. */
static void exec_again(const struct self *self, const struct op *op)
{
	char slot[16], next[16];
	char *argv[] = { "build_topology", shared->path, slot, next, NULL };

	snprintf(slot, sizeof(slot), "%u", op->a);
	snprintf(next, sizeof(next), "%u", self->next);
	CHECK(execve(shared->program, argv, argv + 4));
}

static void make_thread(const struct self *self, const struct op *op)
{
	struct self thread = { .slot = op->a, .next = self->next };
	char *stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (stack == MAP_FAILED)
		check(self, -1, "mmap");
	CHECK(clone(thread_main, stack + STACK,
		    CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM,
		    &thread));
	if (!wait_for(op->a, 0))
		give_up(self);
}

static void end(const struct self *self, enum end kind)
{
	shared->slots[self->slot].end = kind;
	switch (kind) {
	case HOLD:
		rest(self);
		break;
	case ZOMBIE:
	case REAPED:
		come_to(self->slot, RESTING);
		_exit(0);
	case DEAD_LEADER:
		come_to(self->slot, RESTING);
		syscall(SYS_exit, 0);
	}
	complain("slot %u: no such end: %d", self->slot, kind);
	give_up(self);
}

static void seek(const struct self *self, int fd, off_t position)
{
	/* A position may be negative, so its sign does not tell it from an error. */
	errno = 0;
	if (lseek(fd, position, SEEK_SET) != position)
		check(self, -1, "lseek");
}

static void take(const struct self *self, pid_t pid, int fd)
{
	int pidfd = CHECK(syscall(SYS_pidfd_open, pid, 0));

	CHECK(syscall(__NR_pidfd_getfd, pidfd, fd, 0));
	CHECK(close(pidfd));
}

static int socket_type(uint32_t type)
{
	return type == 0 ? SOCK_STREAM : type == 1 ? SOCK_DGRAM : SOCK_SEQPACKET;
}

static void write_bytes(const struct self *self, int fd, uint32_t count)
{
	static const char bytes[4096];

	if (count > sizeof(bytes) || write(fd, bytes, count) != (ssize_t)count)
		check(self, -1, "write");
}

/* Do one operation that makes no process. */
static void perform(const struct self *self, const struct op *op)
{
	unsigned int params[30] = { 0 };
	uint64_t set = op->c;
	sigset_t none;
	int fds[2];

	switch (op->code) {
	case OPEN:
		CHECK(open(names[op->a], op->c, 0600));
		break;
	case CLOSE:
		CHECK(close(op->a));
		break;
	case DUP:
		for (uint32_t i = 0; i < op->b; i++)
			CHECK(dup(op->a));
		break;
	case DUP_FROM:
		CHECK(fcntl(op->a, op->c ? F_DUPFD_CLOEXEC : F_DUPFD, op->b));
		break;
	case DUP_ONTO:
		CHECK(dup3(op->a, op->b, op->c));
		break;
	case SET_CLOEXEC:
		CHECK(fcntl(op->a, F_SETFD, op->b ? FD_CLOEXEC : 0));
		break;
	case SET_FLAGS:
		CHECK(fcntl(op->a, F_SETFL, op->c));
		break;
	case SEEK:
		seek(self, op->a, op->c);
		break;
	case WRITE:
		write_bytes(self, op->a, op->b);
		break;
	case PIPE:
		CHECK(pipe2(fds, op->c));
		break;
	case SOCKETPAIR:
		CHECK(socketpair(AF_UNIX, socket_type(op->a) | op->c, 0, fds));
		break;
	case SOCKET:
		CHECK(socket(AF_UNIX, socket_type(op->a) | op->c, 0));
		break;
	case MEMFD:
		CHECK(memfd_create(names[op->a], op->c));
		break;
	case EVENTFD:
		CHECK(eventfd(0, op->c));
		break;
	case EPOLL:
		CHECK(epoll_create1(op->c));
		break;
	case TIMERFD:
		CHECK(timerfd_create(CLOCK_MONOTONIC, op->c));
		break;
	case SIGNALFD:
		sigemptyset(&none);
		CHECK(signalfd(-1, &none, op->c));
		break;
	case INOTIFY:
		CHECK(inotify_init1(op->c));
		break;
	case PIDFD:
		CHECK(syscall(SYS_pidfd_open, op->a, 0));
		break;
	case IO_URING:
		CHECK(syscall(SYS_io_uring_setup, 4, params));
		break;
	case UNLINK:
		CHECK(unlink(names[op->a]));
		break;
	case RENAME:
		CHECK(rename(names[op->a], names[op->b]));
		break;
	case LINK:
		CHECK(link(names[op->a], names[op->b]));
		break;
	case MKDIR:
		CHECK(mkdir(names[op->a], 0700));
		break;
	case CHDIR:
		CHECK(chdir(names[op->a]));
		break;
	case RMDIR:
		CHECK(rmdir(names[op->a]));
		break;
	case UNSHARE_FILES:
		CHECK(unshare(CLONE_FILES));
		break;
	case CLOSE_RANGE:
		CHECK(close_range_of(op->a, op->b, op->c));
		break;
	case TAKE:
		take(self, op->a, op->b);
		break;
	case SETPGID:
		CHECK(setpgid(0, op->a));
		break;
	case SETSID:
		CHECK(setsid());
		break;
	case SET_NAME:
		CHECK(prctl(PR_SET_NAME, names[op->a]));
		break;
	case BLOCK:
		/* The library's own function reserves two signals. */
		CHECK(syscall(SYS_rt_sigprocmask, SIG_SETMASK, &set, NULL, sizeof(set)));
		break;
	case REST_FOR:
		come_to(op->a, RESTING);
		break;
	case SUBREAPER:
		CHECK(prctl(PR_SET_CHILD_SUBREAPER, 1));
		break;
	default:
		complain("slot %u: no such operation: %u", self->slot, op->code);
		give_up(self);
	}
}

/* Do all operations of a process or a thread; does not return. */
static void run(struct self *self)
{
	for (;;) {
		const struct op *op = &ops[self->next++];
		pid_t pid;

		switch (op->code) {
		case END:
			end(self, op->a);
			break;
		case SPAWN:
			pid = CHECK(spawn(self, op, -1));
			if (!wait_for(op->a, pid) || !reaped(op->a, pid))
				give_up(self);
			self->next += op->b;
			break;
		case THREAD:
			make_thread(self, op);
			self->next += op->b;
			break;
		case EXEC:
			exec_again(self, op);
			break;
		default:
			perform(self, op);
		}
	}
}

/* The rest is this program's own part. */

static const char *place;
static int own_namespace;
static pid_t roots[SLOTS];
static size_t root_count;

static bool failed(const char *what, uint32_t slot)
{
	complain("slot %u: %s: %s", slot, what, strerror(errno));
	return false;
}

/* Wait until a process, which is about to change its state, is in that state. */
static bool settle(uint32_t slot, char state)
{
	time_t limit = now() + DEADLINE_S;
	pid_t parent;
	char name[64], is;

	snprintf(name, sizeof(name), "/proc/%d/stat", shared->slots[slot].pid);
	while ((is = stat_state(slurp_at(AT_FDCWD, name), &parent)) != state) {
		if (now() > limit) {
			complain("slot %u is in the state %c, not in %c", slot, is, state);
			return false;
		}
		sched_yield();
	}
	return true;
}

/* Tell whether a thread is off its CPU and has not been woken. */
static bool is_quiet(pid_t pid, pid_t task)
{
	char name[64], state;
	pid_t parent;

	snprintf(name, sizeof(name), "/proc/%d/task/%d/stat", pid, task);
	state = stat_state(slurp_at(AT_FDCWD, name), &parent);
	snprintf(name, sizeof(name), "/proc/%d/task/%d/syscall", pid, task);
	return state == 'Z' ||
	       (state != 'R' && strncmp(slurp_at(AT_FDCWD, name), "running", 7));
}

static bool are_quiet(uint32_t slots)
{
	struct dirent *entry;
	bool good = true;
	char name[64];
	DIR *dir;

	for (uint32_t i = 0; good && i < slots; i++) {
		snprintf(name, sizeof(name), "/proc/%d/task", shared->slots[i].pid);
		/* None: a thread's slot, or a process that has been waited for. */
		dir = shared->slots[i].pid ? opendir(name) : NULL;
		while (good && dir && (entry = readdir(dir)))
			if (isdigit((unsigned char)entry->d_name[0]))
				good = is_quiet(shared->slots[i].pid, atoi(entry->d_name));
		if (dir)
			closedir(dir);
	}
	return good;
}

/*
 * Wait until everything is over.  The thread that completes a stop sends SIGCHLD when it is
 * already shown as stopped, and a thread that is woken by the signal takes it.  One of them
 * may have been checked before the other, so check all of them once more.
 */
static bool come_to_rest(uint32_t slots)
{
	time_t limit = now() + DEADLINE_S;

	for (int passes = 0; passes < 2;) {
		passes = are_quiet(slots) ? passes + 1 : 0;
		if (now() > limit) {
			complain("a thread does not come to rest");
			return false;
		}
		if (!passes)
			sched_yield();
	}
	return true;
}

static bool trace(uint32_t slot)
{
	pid_t pid = shared->slots[slot].pid;

	return (!ptrace(PTRACE_SEIZE, pid, NULL, NULL) &&
		!ptrace(PTRACE_INTERRUPT, pid, NULL, NULL)) || failed("ptrace", slot);
}

static bool send_signal(const struct op *op)
{
	pid_t pid = shared->slots[op->a].pid;

	if (op->c)
		return !syscall(SYS_tgkill, pid, pid, op->b) || failed("tgkill", op->a);
	return !syscall(SYS_kill, pid, op->b) || failed("kill", op->a);
}

static bool enter_namespace(uint32_t slot)
{
	int pidfd = syscall(SYS_pidfd_open, shared->slots[slot].pid, 0);
	bool done = pidfd >= 0 && !setns(pidfd, CLONE_NEWPID);

	if (pidfd >= 0)
		close(pidfd);
	return done || failed("setns", slot);
}

static bool make_container(const struct self *self, const struct op *op, int inherited)
{
	pid_t pid;

	if (op->join && !enter_namespace(op->join - 1))
		return false;
	pid = spawn(self, op, inherited);
	if (op->join && setns(own_namespace, CLONE_NEWPID))
		return failed("setns back", op->a);
	if (pid < 0)
		return failed("clone", op->a);
	roots[root_count++] = pid;
	return wait_for(op->a, pid) && reaped(op->a, pid);
}

static bool build(const struct request *request, int inherited)
{
	struct self self = { .slot = SLOTS - 1, .next = 0 };
	bool good = true;

	while (good && self.next < request->ops) {
		const struct op *op = &ops[self.next++];

		switch (op->code) {
		case SPAWN:
			good = make_container(&self, op, inherited);
			self.next += op->b;
			break;
		case SETTLE:
			good = settle(op->a, op->b);
			break;
		case STOP:
			good = !kill(shared->slots[op->a].pid, SIGSTOP) || failed("kill", op->a);
			break;
		case TRACE:
			good = trace(op->a);
			break;
		case SIGNAL:
			good = send_signal(op);
			break;
		default:
			complain("no such operation outside of a process: %u", op->code);
			good = false;
		}
	}
	return good;
}

static void end_containers(void)
{
	/* With the first process of a namespace, everything inside ends. */
	while (root_count)
		kill(roots[--root_count], SIGKILL);
	/* We must wait for traced processes too. */
	while (waitpid(-1, NULL, __WALL) > 0)
		;
	if (errno != ECHILD)
		err(1, "waitpid");
}

/* Remove the contents of a directory, and close its descriptor. */
static void empty(int fd)
{
	DIR *dir = fdopendir(fd);
	struct dirent *entry;

	if (!dir)
		err(1, "fdopendir");
	while ((entry = readdir(dir))) {
		if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
			continue;
		if (entry->d_type == DT_DIR) {
			int inner = openat(dirfd(dir), entry->d_name, O_RDONLY | O_DIRECTORY);

			if (inner < 0)
				err(1, "%s", entry->d_name);
			empty(inner);
		}
		if (unlinkat(dirfd(dir), entry->d_name, entry->d_type == DT_DIR ? AT_REMOVEDIR : 0))
			err(1, "unlinkat %s", entry->d_name);
	}
	closedir(dir);
}

static void take_file(struct text *text, const char *path)
{
	int fd = open(path, O_RDONLY);
	ssize_t got;

	if (fd < 0)
		err(1, "%s", path);
	do {
		reserve(text, 65536);
		got = read(fd, text->data + text->length, 65536);
		if (got < 0)
			err(1, "%s", path);
		text->length += got;
	} while (got);
	close(fd);
}

/* Point into the request, which is whole; its names are terminated in place. */
static void unpack(struct request *request)
{
	char *at = (char *)(request + 1) + request->ops * sizeof(struct op);
	char *limit = (char *)request + request->size;

	ops = (const struct op *)(request + 1);
	if (request->slots >= SLOTS || request->names > NAMES || at > limit)
		errx(1, "a request is too large, or not one");
	for (uint32_t i = 0; i < request->names; i++) {
		uint16_t length;

		memcpy(&length, at, sizeof(length));
		names[i] = at + sizeof(length);
		at += sizeof(length) + length;
		if (at > limit || at[-1])
			errx(1, "name %u of a request is not one", i);
	}
}

static bool read_exactly(char *to, size_t count)
{
	while (count) {
		ssize_t got = read(0, to, count);

		if (got < 0)
			err(1, "standard input");
		if (!got)
			return false;
		to += got;
		count -= got;
	}
	return true;
}

static void put_hex(const struct text *text)
{
	putchar(' ');
	if (!text->length)
		putchar('-');
	for (size_t i = 0; i < text->length; i++) {
		unsigned char c = text->data[i];

		putchar_unlocked("0123456789abcdef"[c >> 4]);
		putchar_unlocked("0123456789abcdef"[c & 15]);
	}
}

static void answer(const struct request *request, const char *path)
{
	static struct text file, view;
	int inherited;

	memset(shared->slots, 0, sizeof(shared->slots));
	shared->complaint[0] = '\0';
	atomic_flag_clear(&shared->complained);
	file.length = view.length = 0;

	inherited = open("inherited", O_RDWR | O_CREAT, 0600);
	if (inherited < 0)
		err(1, "inherited");
	if (build(request, inherited) && come_to_rest(request->slots)) {
		take_file(&file, path);
		take_view(&view);
		fputs("built", stdout);
		put_hex(&file);
		put_hex(&view);
		for (uint32_t i = 0; i < request->slots; i++)
			printf(" %d", shared->slots[i].pid);
		putchar('\n');
	} else {
		printf("failed %s\n", shared->complaint);
	}
	close(inherited);
	end_containers();
	empty(open(place, O_RDONLY | O_DIRECTORY));
	if (fflush(stdout))
		err(1, "standard output");
}

static bool have_io_uring(void)
{
	unsigned int params[30] = { 0 };
	int fd = syscall(SYS_io_uring_setup, 4, params);

	if (fd >= 0)
		close(fd);
	return fd >= 0;
}

static void map_shared(const char *path, int flags)
{
	int fd = open(path, O_RDWR | flags, 0600);

	if (fd < 0 || ((flags & O_CREAT) && ftruncate(fd, sizeof(*shared))))
		err(1, "%s", path);
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (shared == MAP_FAILED)
		err(1, "mmap");
	close(fd);
}

/* execve(2) has left a descriptor table and two numbers. */
static _Noreturn void resume(char **argv)
{
	struct self self = { .slot = atoi(argv[2]), .next = atoi(argv[3]) };

	map_shared(argv[1], 0);
	unpack((struct request *)shared->request);
	run(&self);
	abort();
}

int main(int argc, char **argv)
{
	struct rlimit limit = { FILES, FILES };
	struct request *request;
	char path[sizeof(shared->path)];

	if (argc == 4)
		resume(argv);
	if (argc != 3 || *argv[0] != '/')
		errx(2, "usage: /absolute/path/of/build_topology <directory> <file>");
	place = argv[1];
	snprintf(path, sizeof(path), "%s.shared", place);
	map_shared(path, O_CREAT | O_EXCL);
	snprintf(shared->program, sizeof(shared->program), "%s", argv[0]);
	snprintf(shared->path, sizeof(shared->path), "%s", path);
	request = (struct request *)shared->request;
	/* An orphaned group with stopped processes gets SIGHUP; the group may be ours. */
	signal(SIGHUP, SIG_IGN);
	if (setrlimit(RLIMIT_NOFILE, &limit))
		err(1, "setrlimit");
	own_namespace = open("/proc/self/ns/pid", O_RDONLY | O_CLOEXEC);
	if (own_namespace < 0)
		err(1, "/proc/self/ns/pid");
	if (mkdir(place, 0700) && errno != EEXIST)
		err(1, "%s", place);
	if (mount("topologies", place, "tmpfs", 0, NULL) || chdir(place))
		err(1, "%s", place);
	printf("ready %d\n", have_io_uring());
	fflush(stdout);

	while (read_exactly(shared->request, sizeof(request->size))) {
		if (request->size < sizeof(*request) || request->size > MAX_REQUEST)
			errx(1, "a request of %u bytes", request->size);
		if (!read_exactly(shared->request + sizeof(request->size),
				  request->size - sizeof(request->size)))
			errx(1, "half a request");
		unpack(request);
		answer(request, argv[2]);
	}
	if (chdir("/") || umount(place) || rmdir(place) || unlink(path))
		err(1, "%s: does a process hold a file in it?", place);
	return 0;
}
