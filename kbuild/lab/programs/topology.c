// SPDX-License-Identifier: GPL-2.0
/*
 * Build processes and descriptors in new PID namespaces, and hold them still.
 *
 *	topology [scenario...]          without arguments, all of the table below
 *	topology many-files <n>         one process with n descriptors
 *	topology full-table <n>         one with descriptors 0 to n-1, all of one file
 *	topology sparse-table <n>       one with descriptors 0 and n-1
 *	topology many-processes <n>     n processes in one namespace
 *	topology zombie-threads <n>     n dead threads before the one with the file table
 *	topology frozen-survivor        a namespace outlived by a process that cannot be killed:
 *	                                the file system of / is frozen meanwhile
 *
 * Prints "container <scenario> <global pid of its init>" for each, then "ready".  Ends all
 * processes when its standard input ends or gives a byte, and then prints "gone".
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <unistd.h>

/* After sys/mount.h: Debian 11's does not compile after this header. */
#include <linux/fs.h>
#include <linux/fanotify.h>

#define CHECK(call) check((long)(call), #call, __LINE__)
#define SLOTS 65536
#define WAIT_MS 120000

/* Shared by all our processes, which report here that they hold still. */
static struct shared {
	atomic_uint next;
	atomic_int frozen;	/* whether / must be thawed */
	atomic_int host_pid[2];	/* a process's pid outside of its namespace */
	atomic_int tids[SLOTS];
	atomic_char still[SLOTS];
} *shared;
static unsigned int my_slot;
static char place[64];

static long check(long result, const char *call, int line)
{
	if (result < 0)
		err(1, "line %d: %s", line, call);
	return result;
}

static void still(void)
{
	atomic_store(&shared->still[my_slot], 1);
}

static _Noreturn void sleep_for_ever(void)
{
	for (;;)
		pause();
}

static _Noreturn void hold(void)
{
	still();
	sleep_for_ever();
}

static unsigned int new_slot(void)
{
	unsigned int slot = atomic_fetch_add(&shared->next, 1);

	if (slot >= SLOTS)
		errx(1, "more than %d processes", SLOTS);
	return slot;
}

static void wait_still(unsigned int slot)
{
	for (int i = 0; i < WAIT_MS && !atomic_load(&shared->still[slot]); i++)
		usleep(1000);
	if (!atomic_load(&shared->still[slot]))
		errx(1, "process %u did not come to a halt", slot);
}

/* Fork with flags of clone(2), run fn in the child, and return when the child holds still. */
static pid_t spawn(int flags, void (*fn)(void))
{
	unsigned int slot = new_slot();
	pid_t pid;

	/* Prefer the library's fork(), which keeps its own data about threads correct. */
	pid = CHECK(flags ? syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0) : fork());
	if (!pid) {
		my_slot = slot;
		fn();
		hold();
	}
	wait_still(slot);
	return pid;
}

static int make_file(const char *name, int flags)
{
	return CHECK(open(name, flags | O_CREAT, 0600));
}

static void nothing(void)
{
}

/* Parents, groups, sessions. */

static void grandchild(void)
{
	CHECK(setsid());
	spawn(0, nothing);
}

static void child(void)
{
	CHECK(setpgid(0, 0));
	spawn(0, nothing);
	spawn(0, grandchild);
}

static void tree(void)
{
	CHECK(setsid());
	spawn(0, nothing);
	spawn(0, child);
}

/* The orphan belongs to the namespace's init; its group stays. */
static void orphan_maker(void)
{
	CHECK(setpgid(0, 0));
	spawn(0, nothing);
	still();
	_exit(0);
}

static void orphan(void)
{
	pid_t pid = spawn(0, orphan_maker);

	CHECK(waitpid(pid, NULL, 0));
}

static void zombie_end(void)
{
	still();
	_exit(3);
}

static void zombie(void)
{
	siginfo_t info;

	CHECK(waitid(P_PID, spawn(0, zombie_end), &info, WEXITED | WNOWAIT));
}

static void nested_inner(void)
{
	make_file("inner", O_RDWR);
	spawn(CLONE_NEWPID, tree);
}

static void nested(void)
{
	spawn(CLONE_NEWPID, nested_inner);
	spawn(CLONE_NEWPID, nothing);
}

/* A process that joins a namespace from outside has neither parent nor group in it. */
static void joined(void)
{
	pid_t pid = spawn(CLONE_NEWPID, nothing);
	int fd = CHECK(syscall(SYS_pidfd_open, pid, 0));

	CHECK(setns(fd, CLONE_NEWPID));
	CHECK(close(fd));
	spawn(0, nothing);
}

/*
 * The init of a namespace ends last: it kills the other processes and waits for their end.  A
 * zombie whose parent outside does not wait for it delays the init.
 */
static void dying_init(void)
{
	pid_t init = spawn(CLONE_NEWPID, nothing), pid;
	int fd = CHECK(syscall(SYS_pidfd_open, init, 0));
	siginfo_t info;

	CHECK(setns(fd, CLONE_NEWPID));
	CHECK(close(fd));
	pid = spawn(0, nothing);
	CHECK(kill(init, SIGKILL));
	/* Killed by that init, which has closed its own files by then. */
	CHECK(waitid(P_PID, pid, &info, WEXITED | WNOWAIT));
}

/* Our pid in this procfs, which is the host's. */
static int host_pid(void)
{
	char text[16] = "";

	CHECK(readlink("/proc/self", text, sizeof(text) - 1));
	return atoi(text);
}

/* Tell whether /proc/PID/stat shows a process in a state, with flags (PF_*) set. */
static int has_state(int pid, char state, unsigned int flags)
{
	char path[32], text[1024], *end;
	unsigned int seen;
	char letter;
	ssize_t length;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	fd = CHECK(open(path, O_RDONLY));
	length = CHECK(read(fd, text, sizeof(text) - 1));
	close(fd);
	text[length] = '\0';
	end = strrchr(text, ')');
	if (!end || sscanf(end + 2, "%c %*d %*d %*d %*d %*d %u", &letter, &seen) != 2)
		errx(1, "%s: %s", path, text);
	return letter == state && (seen & flags) == flags;
}

static void wait_state(int pid, char state, unsigned int flags)
{
	for (int i = 0; i < WAIT_MS && !has_state(pid, state, flags); i++)
		usleep(1000);
	if (!has_state(pid, state, flags))
		errx(1, "process %d does not come to state %c, flags %x", pid, state, flags);
}

#define PF_EXITING 0x4

/* Writes to the frozen file system, which no signal interrupts. */
static void survivor(void)
{
	int fd = CHECK(open("/var/tmp/frozen", O_RDWR | O_CREAT, 0600));

	atomic_store(&shared->host_pid[1], host_pid());
	still();
	while (!atomic_load(&shared->frozen))
		usleep(1000);
	CHECK(write(fd, "x", 1));
}

static void survived_init(void)
{
	atomic_store(&shared->host_pid[0], host_pid());
	spawn(0, survivor);
}

static void frozen_survivor(void)
{
	pid_t init = spawn(CLONE_NEWPID, survived_init);
	int fd = CHECK(open("/", O_RDONLY | O_DIRECTORY));

	CHECK(ioctl(fd, FIFREEZE, 0));
	atomic_store(&shared->frozen, 1);
	wait_state(atomic_load(&shared->host_pid[1]), 'D', 0);
	CHECK(kill(init, SIGKILL));
	wait_state(atomic_load(&shared->host_pid[0]), 'S', PF_EXITING);
}

/* Also after a failure, because a system with a frozen root stops. */
static void thaw(void)
{
	int fd;

	if (!atomic_exchange(&shared->frozen, 0))
		return;
	fd = CHECK(open("/", O_RDONLY | O_DIRECTORY));
	CHECK(ioctl(fd, FITHAW, 0));
	close(fd);
	CHECK(unlink("/var/tmp/frozen"));
}

/* Descriptors. */

static void descriptors(void)
{
	int fds[2], fd;
	sigset_t set;
	struct epoll_event event = { .events = EPOLLIN };

	fd = make_file("plain", O_RDWR | O_APPEND);
	CHECK(write(fd, "0123456789", 10));
	CHECK(lseek(fd, 4, SEEK_SET));
	CHECK(dup(fd));
	CHECK(dup2(fd, 700));
	CHECK(dup3(fd, 701, O_CLOEXEC));
	fd = make_file("plain", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	CHECK(lseek(fd, 1LL << 40, SEEK_SET));
	fd = make_file("plain", O_WRONLY | O_SYNC | O_NOATIME);
	CHECK(fcntl(fd, F_SETFD, FD_CLOEXEC));
	make_file("unlinked", O_RDWR);
	CHECK(unlink("unlinked"));
	make_file("looks (deleted)", O_RDWR);
	CHECK(open(".", O_RDONLY | O_DIRECTORY));
	CHECK(open("plain", O_PATH));
	CHECK(symlink("plain", "link"));
	CHECK(open("link", O_PATH | O_NOFOLLOW | O_CLOEXEC));
	CHECK(open(".", O_TMPFILE | O_RDWR, 0600));
	CHECK(open("/dev/null", O_RDWR));
	CHECK(open("/proc/self/status", O_RDONLY));
	CHECK(open("/proc/self/ns/mnt", O_RDONLY));
	CHECK(pipe2(fds, O_CLOEXEC));
	CHECK(pipe2(fds, O_NONBLOCK));
	CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, fds));
	CHECK(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
	CHECK(socket(AF_INET, SOCK_STREAM, 0));
	CHECK(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, 0));
	CHECK(mkfifo("fifo", 0600));
	CHECK(open("fifo", O_RDWR | O_NONBLOCK));
	CHECK(memfd_create("a memory\tfile", MFD_CLOEXEC));
	CHECK(eventfd(1, EFD_NONBLOCK));
	fd = CHECK(epoll_create1(EPOLL_CLOEXEC));
	CHECK(epoll_ctl(fd, EPOLL_CTL_ADD, fds[0], &event));
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	CHECK(signalfd(-1, &set, SFD_CLOEXEC));
	CHECK(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK));
	CHECK(inotify_init1(IN_CLOEXEC));
	CHECK(syscall(SYS_pidfd_open, getpid(), 0));
	/* Not every kernel has it, and it may be disabled: then there is one descriptor less. */
	unsigned int params[30] = { 0 };

	syscall(SYS_io_uring_setup, 4, params);
	spawn(0, nothing);
}

/* A place in the file system where no mount outlives us. */
static void own_mounts(void)
{
	CHECK(unshare(CLONE_NEWNS));
	CHECK(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
}

static void open_through_fanotify(void)
{
	struct fanotify_event_metadata event;
	/* The flags of descriptors that come with events, close-on-exec among them. */
	int group = syscall(SYS_fanotify_init, FAN_CLASS_NOTIF, O_RDWR | O_CLOEXEC), fd;

	if (group < 0 && errno == ENOSYS) {
		warnx("cloexec-kept: not with fanotify, which this kernel lacks");
		return;
	}
	CHECK(group);
	fd = make_file("noticed", O_RDONLY);
	CHECK(syscall(SYS_fanotify_mark, group, FAN_MARK_ADD, (uint64_t)FAN_OPEN, AT_FDCWD,
		      "noticed"));
	close(fd);
	fd = CHECK(open("noticed", O_RDONLY));
	if (CHECK(read(group, &event, sizeof(event))) != sizeof(event) || event.fd < 0)
		errx(1, "fanotify: no descriptor");
	close(fd);
	CHECK(fcntl(event.fd, F_SETFD, 0));
}

static void open_queue(void)
{
	int fd = syscall(SYS_mq_open, "cloexec-kept", O_RDWR | O_CREAT | O_CLOEXEC, 0600, NULL);

	if (fd < 0 && errno == ENOSYS) {
		warnx("cloexec-kept: not with mq_open, which this kernel lacks");
		return;
	}
	CHECK(fd);
	CHECK(syscall(SYS_mq_unlink, "cloexec-kept"));
	CHECK(fcntl(fd, F_SETFD, 0));
}

/*
 * System calls that leave O_CLOEXEC in the open file, where it tells nothing about the
 * descriptors: execve(2) closes the first of two, and not the second.
 */
static void cloexec_kept(void)
{
	int ptmx, peer, unlock = 0;

	own_mounts();
	CHECK(mkdir("pts", 0700));
	CHECK(mount("devpts", "pts", "devpts", 0, "ptmxmode=0600"));
	ptmx = CHECK(open("pts/ptmx", O_RDWR | O_NOCTTY));
	CHECK(ioctl(ptmx, TIOCSPTLCK, &unlock));
	CHECK(ioctl(ptmx, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC));
	peer = CHECK(ioctl(ptmx, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC));
	CHECK(fcntl(peer, F_SETFD, 0));
	open_queue();
	open_through_fanotify();
}

/* The kernel's part of a ring is a thread of the process, and no process of its own. */
static void polled_ring(void)
{
	unsigned int params[30] = { [2] = 1 << 1 /* IORING_SETUP_SQPOLL */ };

	syscall(SYS_io_uring_setup, 4, params);
}

static void close_all(void)
{
	CHECK(syscall(__NR_close_range, 0, ~0U, 0));
}

static void hole_in_the_table(void)
{
	CHECK(dup2(0, 500));
	CHECK(dup2(0, 64));
	CHECK(dup2(0, 63));
	CHECK(syscall(__NR_close_range, 0, 62, 0));
}

static void tables(void)
{
	spawn(0, close_all);
	spawn(0, hole_in_the_table);
}

static void sharer(void)
{
	make_file("from the sharer", O_RDWR | O_CLOEXEC);
}

static void shared_table(void)
{
	make_file("before", O_RDWR);
	spawn(CLONE_FILES, sharer);
	spawn(0, nothing);
}

/* Threads. */

static unsigned int thread_slot;

static void *private_table(void *unused)
{
	(void)unused;
	CHECK(unshare(CLONE_FILES));
	make_file("of the thread alone", O_RDWR);
	atomic_store(&shared->still[thread_slot], 1);
	sleep_for_ever();
}

static void with_thread(void)
{
	pthread_t id;

	thread_slot = new_slot();
	if (pthread_create(&id, NULL, private_table, NULL))
		errx(1, "pthread_create");
	wait_still(thread_slot);
	make_file("of the process", O_RDWR);
}

static void thread(void)
{
	spawn(0, with_thread);
}

static void *outlive_leader(void *unused)
{
	char text[4096], *state;
	ssize_t length;
	int fd;

	(void)unused;
	for (int i = 0; i < WAIT_MS; i++) {
		fd = CHECK(open("/proc/self/stat", O_RDONLY));
		length = CHECK(read(fd, text, sizeof(text) - 1));
		close(fd);
		text[length] = '\0';
		state = strrchr(text, ')');
		if (state && state[2] == 'Z')
			hold();
		usleep(1000);
	}
	errx(1, "the leader did not end");
}

/* Only the first thread exits; its files stay open in the others. */
static void dead_leader(void)
{
	pthread_t id;

	make_file("held by a thread", O_RDWR | O_CLOEXEC);
	if (pthread_create(&id, NULL, outlive_leader, NULL))
		errx(1, "pthread_create");
	syscall(SYS_exit, 0);
}

static void dead_leaders(void)
{
	spawn(0, dead_leader);
}

static unsigned int amount;
static atomic_uint threads_begun;
static pthread_mutex_t threads_end = PTHREAD_MUTEX_INITIALIZER;

static void *end_when_told(void *number)
{
	atomic_store(&shared->tids[(size_t)number], syscall(SYS_gettid));
	atomic_fetch_add(&threads_begun, 1);
	pthread_mutex_lock(&threads_end);
	pthread_mutex_unlock(&threads_end);
	return NULL;
}

/* A tracer that does not wait keeps its dead threads in the list of the process. */
static void many_threads(void)
{
	pthread_attr_t attributes;
	pthread_t id;

	make_file("held by the last thread", O_RDWR);
	pthread_mutex_lock(&threads_end);
	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, 16384);
	for (size_t i = 0; i < amount; i++)
		if (pthread_create(&id, &attributes, end_when_told, (void *)i))
			errx(1, "pthread_create");
	if (pthread_create(&id, &attributes, outlive_leader, NULL))
		errx(1, "pthread_create");
	while (atomic_load(&threads_begun) < amount)
		usleep(1000);
	/* The parent resets it when it has traced them all. */
	atomic_store(&shared->tids[amount], 1);
	while (atomic_load(&shared->tids[amount]))
		usleep(1000);
	pthread_mutex_unlock(&threads_end);
	syscall(SYS_exit, 0);
}

static void zombie_threads(void)
{
	unsigned int slot = new_slot();
	siginfo_t info;
	pid_t pid;

	if (amount >= SLOTS)
		errx(2, "more than %d threads", SLOTS - 1);
	pid = CHECK(fork());
	if (!pid) {
		my_slot = slot;
		many_threads();
	}
	while (!atomic_load(&shared->tids[amount]))
		usleep(1000);
	for (unsigned int i = 0; i < amount; i++)
		CHECK(ptrace(PTRACE_SEIZE, atomic_load(&shared->tids[i]), 0, 0));
	atomic_store(&shared->tids[amount], 0);
	for (unsigned int i = 0; i < amount; i++)
		CHECK(waitid(P_PID, shared->tids[i], &info, WEXITED | WNOWAIT | __WALL));
	wait_still(slot);
}

/*
 * Names.  tests/vm/test_procfile.py has the same lists.
 */

static const char *const hostile_files[] = {
	"tab\there",
	"line\nhere\n\n",
	"back\\slash\\011",
	"\x01\x02\x1b[31m\x7f",
	"\xff\xfe\x80 not utf-8",
	"\xc3\xa9t\xc3\xa9",
	"\n\n0000000000000000000000000000000000000000000000000000000000000000\t1\t1\t0\t0\tforged\n",
	/* U+0085, U+2028 and U+2029 end a line for some readers. */
	"\xc2\x85",
	"\xe2\x80\xa8",
	"\xe2\x80\xa9",
	"ends\xc2\x85",
	"ends\xe2\x80\xa8",
	"ends\xe2\x80\xa9",
	"con\xc2\x85tains",
	"con\xe2\x80\xa8tains",
	"con\xe2\x80\xa9tains",
	"\xc2\x85\xe2\x80\xa8\xe2\x80\xa9\xc2\x85",
	/* Their parts do not, nor do other characters that begin alike. */
	"\xc2",
	"\x85",
	"\x85\xc2",
	"\xc2\xc2\x85\x85",
	"\xe2\x80",
	"\xe2\x80\xe2\x80\xa8\xa8",
	"\x80\xa8",
	"ends \xc2",
	"ends \xe2",
	"ends \xe2\x80",
	"\xc2\x84\xc2\x86\xe2\x80\xa7\xe2\x80\xaa\xe2\x81\xa8",
	"\\\xe2\x80\xa8",
	"\\342\\200\\250",
	"\xe2\\200\\250",
};

static const char *const hostile_commands[] = {
	"a\tb\nc\\d\x7f\x01\xff\xc3\xa9",
	"\xc2\x85\xe2\x80\xa8\xe2\x80\xa9",
	/* 15 bytes are kept: a whole separator, two bytes of three, one of three, one of two. */
	"whole sequen\xe2\x80\xa9",
	"cut after two\xe2\x80\xa8",
	"cut after a by\xe2\x80\xa8",
	"cut after one.\xc2\x85",
};

static const char *command;

static void hostile_name(void)
{
	CHECK(prctl(PR_SET_NAME, command));
}

static void hostile(void)
{
	char every_byte[256] = "", *end = every_byte;

	for (size_t i = 0; i < sizeof(hostile_files) / sizeof(hostile_files[0]); i++)
		make_file(hostile_files[i], O_RDWR);
	for (int byte = 1; byte < 256; byte++)
		if (byte != '/')
			*end++ = byte;
	make_file(every_byte, O_RDWR);
	CHECK(mkdir("dir\nectory", 0700));
	make_file("dir\nectory/file", O_RDWR);
	CHECK(mkdir("dir\xe2\x80\xa8" "ectory\xe2\x80", 0700));
	make_file("dir\xe2\x80\xa8" "ectory\xe2\x80/\xa8", O_RDWR);
	for (size_t i = 0; i < sizeof(hostile_commands) / sizeof(hostile_commands[0]); i++) {
		command = hostile_commands[i];
		spawn(0, hostile_name);
	}
	CHECK(prctl(PR_SET_NAME, ""));
}

/* Signals that are blocked and pending: the process's, the thread's, and one above 31. */
static void with_signals(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGHUP);
	sigaddset(&set, SIGSYS);
	sigaddset(&set, 64);
	CHECK(sigprocmask(SIG_BLOCK, &set, NULL));
	CHECK(prctl(PR_SET_NAME, "signals"));
	CHECK(kill(getpid(), SIGHUP));
	CHECK(syscall(SYS_tkill, getpid(), SIGSYS));
	CHECK(kill(getpid(), 64));
}

static void signals(void)
{
	int status;
	pid_t pid;

	spawn(0, with_signals);
	pid = spawn(0, nothing);
	CHECK(kill(pid, SIGSTOP));
	CHECK(waitpid(pid, &status, WUNTRACED));
}

/* Directories so deep that no path of PATH_MAX bytes reaches the last ones. */
static void long_paths(void)
{
	char name[256];

	for (int depth = 0; depth < 34; depth++) {
		memset(name, depth % 2 ? '\n' : 'x', 250);
		name[250] = '\0';
		CHECK(mkdir(name, 0700));
		CHECK(chdir(name));
		make_file("f", O_RDWR);
	}
}

/*
 * Lines four times as long as the names in them.  They fill 64 KiB and then begin anew, with
 * a rest that is longer than a path and shorter than a line.
 */
static void long_lines(void)
{
	char name[256];
	int fd;

	memset(name, '\n', 250);
	name[250] = '\0';
	for (int depth = 0; depth < 11; depth++) {
		CHECK(mkdir(name, 0700));
		CHECK(chdir(name));
	}
	fd = make_file("f", O_RDWR);
	for (int i = 1; i < 12; i++)
		CHECK(dup(fd));
}

static void other_root(void)
{
	CHECK(mkdir("root", 0700));
	make_file("root/inside", O_RDWR);
	CHECK(chroot("root"));
	CHECK(open("/inside", O_RDONLY));
}

/* A file that has a name, but to which no path leads. */
static void detached(void)
{
	own_mounts();
	CHECK(mkdir("gone", 0700));
	CHECK(mount("tmpfs", "gone", "tmpfs", 0, NULL));
	CHECK(mkdir("gone/dir", 0700));
	make_file("gone/dir/unreachable", O_RDWR);
	CHECK(umount2("gone", MNT_DETACH));
}

/* Sizes. */

static void allow_files(rlim_t number)
{
	struct rlimit limit = { number, number };

	CHECK(setrlimit(RLIMIT_NOFILE, &limit));
}

static void many_files(void)
{
	int fd = make_file("many", O_RDWR);

	allow_files(amount + 64);
	for (unsigned int i = 0; i < amount; i++)
		CHECK(i % 7 ? dup(fd) : open("many", O_RDONLY | (i % 2 ? O_CLOEXEC : 0)));
}

static void full_table(void)
{
	int fd;

	CHECK(syscall(__NR_close_range, 0, ~0U, 0));
	make_file("one for all", O_RDWR);
	allow_files(amount);
	do
		fd = CHECK(dup(0));
	while ((unsigned int)fd < amount - 1);
}

static void sparse_table(void)
{
	CHECK(syscall(__NR_close_range, 0, ~0U, 0));
	make_file("one for both", O_RDWR);
	allow_files(amount);
	CHECK(dup2(0, amount - 1));
}

static int wait_for_ever(void *unused)
{
	(void)unused;
	sleep_for_ever();
}

/* They share our memory and use one page of stack each: thousands fit a small guest. */
static void many_processes(void)
{
	const size_t page = 4096;
	char *stacks = mmap(NULL, amount * page, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (stacks == MAP_FAILED)
		err(1, "mmap");
	for (unsigned int i = 0; i < amount; i++)
		CHECK(clone(wait_for_ever, stacks + (i + 1) * page, CLONE_VM | SIGCHLD, NULL));
}

static const struct scenario {
	const char *name;
	void (*fn)(void);
	enum { PLAIN, SIZED, ALONE } kind;
} scenarios[] = {
	{ "tree", tree, PLAIN },
	{ "orphan", orphan, PLAIN },
	{ "zombie", zombie, PLAIN },
	{ "nested", nested, PLAIN },
	{ "joined", joined, PLAIN },
	{ "dying-init", dying_init, PLAIN },
	{ "descriptors", descriptors, PLAIN },
	{ "cloexec-kept", cloexec_kept, PLAIN },
	{ "polled-ring", polled_ring, PLAIN },
	{ "tables", tables, PLAIN },
	{ "shared-table", shared_table, PLAIN },
	{ "thread", thread, PLAIN },
	{ "dead-leader", dead_leaders, PLAIN },
	{ "hostile", hostile, PLAIN },
	{ "signals", signals, PLAIN },
	{ "long-paths", long_paths, PLAIN },
	{ "long-lines", long_lines, PLAIN },
	{ "other-root", other_root, PLAIN },
	{ "detached", detached, PLAIN },
	{ "many-files", many_files, SIZED },
	{ "many-processes", many_processes, SIZED },
	{ "full-table", full_table, SIZED },
	{ "sparse-table", sparse_table, SIZED },
	{ "zombie-threads", zombie_threads, SIZED },
	{ "frozen-survivor", frozen_survivor, ALONE },
};

static const struct scenario *current;

static pid_t containers[64];
static size_t started;

static void container(void)
{
	CHECK(prctl(PR_SET_PDEATHSIG, SIGKILL));
	CHECK(mkdir(current->name, 0700));
	CHECK(chdir(current->name));
	current->fn();
}

static void start(const struct scenario *scenario)
{
	if (started == sizeof(containers) / sizeof(containers[0]))
		errx(2, "too many scenarios");
	current = scenario;
	containers[started] = spawn(CLONE_NEWPID, container);
	printf("container %s %d\n", scenario->name, containers[started++]);
}

static const struct scenario *find(const char *name)
{
	for (size_t i = 0; i < sizeof(scenarios) / sizeof(scenarios[0]); i++)
		if (!strcmp(scenarios[i].name, name))
			return &scenarios[i];
	errx(2, "no scenario is called %s", name);
}

int main(int argc, char **argv)
{
	char byte;

	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
		      -1, 0);
	if (shared == MAP_FAILED)
		err(1, "mmap");
	atexit(thaw);
	setlinebuf(stdout);
	snprintf(place, sizeof(place), "/tmp/topology.XXXXXX");
	if (!mkdtemp(place) || chdir(place))
		err(1, "%s", place);

	if (argc == 1)
		for (size_t i = 0; i < sizeof(scenarios) / sizeof(scenarios[0]); i++)
			if (scenarios[i].kind == PLAIN)
				start(&scenarios[i]);
	for (int i = 1; i < argc; i++) {
		const struct scenario *scenario = find(argv[i]);

		if (scenario->kind == SIZED) {
			if (++i == argc)
				errx(2, "%s needs a number", scenario->name);
			amount = strtoul(argv[i], NULL, 10);
		}
		start(scenario);
	}
	printf("ready\n");

	while (read(0, &byte, 1) < 0 && errno == EINTR)
		;
	thaw();
	/* They are the inits of their namespaces, so everything inside ends with them. */
	for (size_t i = 0; i < started; i++)
		CHECK(kill(containers[i], SIGKILL));
	for (size_t i = 0; i < started; i++)
		CHECK(waitpid(containers[i], NULL, 0));
	printf("gone\n");
	return 0;
}
