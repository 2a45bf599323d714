// SPDX-License-Identifier: GPL-2.0-only
/*
 * Read about processes, containers and open files while they end and others begin, and count
 * the lines that are wrong.
 *
 *	lives <file> <case> <rounds> [first]
 *
 * With "first" the cases exec, reaped and series end after the first wrong line.
 * Prints one line of "<key>=<number>" for its case:
 *
 *	exec	A thread that is not the leader calls execve(2) repeatedly.  Each reading must
 *		show the process once, with its own pid, ppid and group, and with a descriptor:
 *		"execs headers wrong missing bare"
 *	reaped	Children are read about while their parents end.  A ppid of 0 means a parent
 *		outside, and a pgid other than 1 means another group; they had neither:
 *		"families headers wrong group"
 *	series	Containers follow each other.  Each is read by a file that stays open and by one
 *		that is opened anew.  No id may repeat, and both readers must see the same:
 *		"containers repeated differ"
 *	between	Within one reading, a container that was shown ends, and another one begins that
 *		the reader has not reached: "rounds shown repeated"
 *	files	A file is closed, and one of the same kind is opened.  Counts the ids that were
 *		used before, and all ids: "<kind>=<repeated>/<opened>"
 *	leader	The leader ends.  The first remaining thread has a private table, the second one
 *		has that of the process: "before after shown", with the name of a table for each
 *
 * Fails if it is not done within DEADLINE_S.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/membarrier.h>
#include <linux/sched.h>
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
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(call) check((long)(call), #call, __LINE__)
/* A debug kernel that shares the host with other guests needs a minute instead of seconds. */
#define DEADLINE_S 300
#define LISTING (8 << 20)
#define ID 64
#define ROUNDS_MAX 10000
#define NUMBERS 200	/* pids to try for a higher one */
/* As in recycle.c: grace periods for a task, its pid and the namespace, in turn. */
#define GRACE_PERIODS 3
#define CALLBACKS_US 10000

/* Case "reaped": parents, children of each at a time, and the lifetime of a parent. */
#define DRIVERS 2
#define CHILDREN 3
#define LIVES 8
#define LIFE_US 300

static const char *file;
static unsigned long rounds;
static bool first_only;
static char text[LISTING];

static long check(long result, const char *call, int line)
{
	if (result < 0)
		err(1, "line %d: %s", line, call);
	return result;
}

static void too_late(int signal)
{
	static const char said[] = "lives: not done in its time\n";

	(void)signal;
	(void)!write(2, said, sizeof(said) - 1);
	_exit(1);
}

/* ---- processes ---- */

/* Do as fork(2), but let the child end with its parent. */
static pid_t spawn(int flags)
{
	pid_t pid = CHECK(syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0));

	if (!pid)
		CHECK(prctl(PR_SET_PDEATHSIG, SIGKILL));
	return pid;
}

__attribute__((noreturn))
static void hold(void)
{
	for (;;)
		pause();
}

/* Be the first process of a container, and do nothing. */
static pid_t container(void)
{
	pid_t pid = spawn(CLONE_NEWPID);

	if (!pid)
		hold();
	return pid;
}

static void end(pid_t pid)
{
	CHECK(kill(pid, SIGKILL));
	CHECK(waitpid(pid, NULL, 0));
}

static void must_live(pid_t pid)
{
	int status;

	if (CHECK(waitpid(pid, &status, WNOHANG)))
		errx(1, "the container has ended: wait status %#x", status);
}

/* Wait for grace periods; what still waits for RCU readers then ends soon. */
static void let_go(void)
{
	for (int i = 0; i < GRACE_PERIODS; i++) {
		CHECK(syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0));
		usleep(CALLBACKS_US);
	}
}

static void *shared_memory(size_t size)
{
	void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		err(1, "mmap");
	return memory;
}

static void put_byte(int fd, char byte)
{
	if (write(fd, &byte, 1) != 1)
		err(1, "write");
}

static char get_byte(int fd)
{
	char byte;

	if (read(fd, &byte, 1) != 1)
		errx(1, "the other side has ended");
	return byte;
}

/* ---- the listing ---- */

struct record {
	char id[ID + 1];
	long pid, nr, ppid, pgid;
	const char *files;	/* one line for each process, up to an empty line */
};

static int open_file(void)
{
	return CHECK(open(file, O_RDONLY | O_CLOEXEC));
}

/* Raise the priority: the processes that are read about would use all processor time. */
static void come_first(void)
{
	CHECK(setpriority(PRIO_PROCESS, 0, -10));
}

/* Read to the end, in pieces of a size that the kernel has a buffer for. */
static void read_all(int fd)
{
	size_t length = 0;
	ssize_t got;

	while ((got = CHECK(read(fd, text + length, LISTING - 1 - length))) > 0)
		length += got;
	if (length == LISTING - 1)
		errx(1, "a listing of more than %d bytes", LISTING);
	text[length] = '\0';
}

static void read_anew(void)
{
	int fd = open_file();

	read_all(fd);
	close(fd);
}

static bool parse_header(const char *line, struct record *r)
{
	return sscanf(line, "%64[0-9a-f]\t%ld\t%ld\t%ld\t%ld\t", r->id, &r->pid, &r->nr, &r->ppid,
		      &r->pgid) == 5 && strlen(r->id) == ID;
}

/* Read the record at @at; return the position of the next one, or NULL at the end. */
static const char *next_record(const char *at, struct record *r)
{
	const char *end;

	if (!*at)
		return NULL;
	end = strchr(at, '\n');
	if (!end || !parse_header(at, r))
		errx(3, "no header: %.200s", at);
	r->files = end + 1;
	end = strstr(end, "\n\n");
	if (!end)
		errx(3, "a record without its end: %.200s", at);
	return end + 2;
}

/* Find the record of process @pid. */
static bool find(long pid, struct record *r)
{
	for (const char *at = text; (at = next_record(at, r));)
		if (r->pid == pid)
			return true;
	return false;
}

static void must_find(long pid, struct record *r)
{
	if (!find(pid, r))
		errx(4, "process %ld is not shown", pid);
}

/* Find the line of descriptor @fd, or return NULL. */
static const char *find_file(const struct record *r, int fd)
{
	for (const char *line = r->files; *line != '\n'; line = strchr(line, '\n') + 1)
		if (strtol(line, NULL, 10) == fd)
			return line;
	return NULL;
}

static bool has_path(const struct record *r, const char *path)
{
	const char *found = strstr(r->files, path);

	return found && found < strstr(r->files - 1, "\n\n");
}

/* The ids that were seen so far. */
struct seen {
	char (*ids)[ID];
	unsigned long count;
};

static void seen_begin(struct seen *s)
{
	s->count = 0;
	s->ids = calloc(rounds, ID);
	if (!s->ids)
		err(1, "calloc");
}

/* Remember an id, and tell whether it was known. */
static bool seen_before(struct seen *s, const char *id)
{
	bool found = false;

	for (unsigned long i = 0; i < s->count && !found; i++)
		found = !memcmp(s->ids[i], id, ID);
	memcpy(s->ids[s->count++], id, ID);
	return found;
}

/* ---- exec ---- */

static char **again;

static void *exec_self(void *unused)
{
	(void)unused;
	execv("/proc/self/exe", again);
	err(1, "execv");
}

/* A program whose second thread counts, and then executes the same program. */
static int exec_again(char **argv)
{
	uint64_t one = 1;
	pthread_t id;

	again = argv;
	if (write(atoi(argv[2]), &one, sizeof(one)) != sizeof(one))
		err(1, "write");
	errno = pthread_create(&id, NULL, exec_self, NULL);
	if (errno)
		err(1, "pthread_create");
	hold();
}

static void case_exec(void)
{
	unsigned long execs = 0, headers = 0, wrong = 0, missing = 0, bare = 0, found;
	char program[] = "lives", word[] = "again", number[16];
	char *argv[] = { program, word, number, NULL };
	int counter = CHECK(eventfd(0, EFD_NONBLOCK));
	struct record init, r;
	long pid = 0;
	uint64_t more;
	pid_t ns;

	snprintf(number, sizeof(number), "%d", counter);
	ns = spawn(CLONE_NEWPID);
	if (!ns) {
		CHECK(setsid());
		if (!spawn(0))
			CHECK(execv("/proc/self/exe", argv));
		CHECK(waitpid(-1, NULL, 0));
		errx(1, "the program that execs has ended");
	}
	come_first();
	while (execs < rounds || headers < rounds) {
		must_live(ns);
		if (read(counter, &more, sizeof(more)) == sizeof(more))
			execs += more;
		/* Before the first execve(2) there may be no process yet. */
		if (!execs) {
			usleep(1000);
			continue;
		}
		read_anew();
		must_find(ns, &init);
		found = 0;
		for (const char *at = text; (at = next_record(at, &r));) {
			if (r.nr == 1 || memcmp(r.id, init.id, ID))
				continue;
			found++;
			if (!pid)
				pid = r.pid;
			wrong += r.pid != pid || r.nr != 2 || r.ppid != 1 || r.pgid != 1;
			bare += !find_file(&r, counter);
		}
		headers += found;
		missing += found != 1;
		if (first_only && (wrong || missing || bare))
			break;
	}
	end(ns);
	printf("execs=%lu headers=%lu wrong=%lu missing=%lu bare=%lu\n", execs, headers, wrong,
	       missing, bare);
}

/* ---- reaped ---- */

/*
 * Parents end a moment after they have children, and a child ends when the next one exists.
 * Most processes in a reading are therefore about to lose their parent, or just have.
 */
__attribute__((noreturn))
static void make_orphans(atomic_ulong *families)
{
	for (unsigned int n = 0;; n++) {
		pid_t parent = spawn(0);

		if (!parent) {
			for (int i = 0; i < CHILDREN; i++) {
				/* no PR_SET_PDEATHSIG, because they must outlive their parent */
				if (CHECK(fork()))
					continue;
				while (getppid() != 1)
					usleep(200);
				_exit(0);
			}
			usleep(n % LIVES * LIFE_US);
			_exit(0);
		}
		CHECK(waitpid(parent, NULL, 0));
		atomic_fetch_add(families, 1);
	}
}

static void case_reaped(void)
{
	atomic_ulong *families = shared_memory(sizeof(*families));
	unsigned long headers = 0, wrong = 0, group = 0;
	struct record init, r;
	pid_t ns;

	ns = spawn(CLONE_NEWPID);
	if (!ns) {
		CHECK(setsid());
		for (int i = 0; i < DRIVERS; i++)
			if (!spawn(0))
				make_orphans(families);
		while (wait(NULL) > 0)
			;
		errx(1, "the processes that make orphans have ended");
	}
	come_first();
	while (*families < rounds || headers < rounds) {
		must_live(ns);
		read_anew();
		must_find(ns, &init);
		for (const char *at = text; (at = next_record(at, &r));) {
			if (r.nr == 1 || memcmp(r.id, init.id, ID))
				continue;
			headers++;
			wrong += !r.ppid;
			group += r.pgid != 1;
		}
		if (first_only && (wrong || group))
			break;
	}
	end(ns);
	printf("families=%lu headers=%lu wrong=%lu group=%lu\n", *families, headers, wrong, group);
}

/* ---- series ---- */

static void case_series(void)
{
	unsigned long repeated = 0, differ = 0;
	struct record by_kept, by_new;
	int kept = open_file();
	struct seen seen;

	seen_begin(&seen);
	for (unsigned long i = 0; i < rounds; i++) {
		pid_t pid = container();

		CHECK(lseek(kept, 0, SEEK_SET));
		read_all(kept);
		must_find(pid, &by_kept);
		read_anew();
		must_find(pid, &by_new);
		differ += !!strcmp(by_kept.id, by_new.id);
		repeated += seen_before(&seen, by_new.id);
		end(pid);
		let_go();
		if (first_only && (repeated || differ))
			break;
	}
	printf("containers=%lu repeated=%lu differ=%lu\n", rounds, repeated, differ);
}

/* ---- between ---- */

/* Start a container with a pid above @pid; return 0 if none is free. */
static pid_t container_above(pid_t pid)
{
	for (pid_t nr = pid + 1; nr <= pid + NUMBERS; nr++) {
		pid_t wanted[2] = { 1, nr };
		struct clone_args args = {
			.flags = CLONE_NEWPID,
			.exit_signal = SIGCHLD,
			.set_tid = (uintptr_t)wanted,
			.set_tid_size = 2,
		};
		pid_t got = syscall(SYS_clone3, &args, sizeof(args));

		if (!got) {
			CHECK(prctl(PR_SET_PDEATHSIG, SIGKILL));
			hold();
		}
		if (got > 0)
			return got;
		/* EINVAL means a number above the highest. */
		if (errno != EEXIST && errno != EINVAL)
			err(1, "clone3");
	}
	return 0;
}

/*
 * Read on to the header of process @pid, byte by byte, so that the kernel prepares nothing
 * beyond it; return false at the end.  @inside tells whether the last line was in a record.
 */
static bool read_to(int fd, long pid, struct record *r, bool *inside)
{
	size_t length = 0;
	char byte;

	while (CHECK(read(fd, &byte, 1)) == 1) {
		bool header;

		if (byte != '\n') {
			if (length < LISTING - 1)
				text[length++] = byte;
			continue;
		}
		text[length] = '\0';
		header = !*inside;
		*inside = length;
		length = 0;
		if (!header)
			continue;
		if (!parse_header(text, r))
			errx(3, "no header: %.200s", text);
		if (r->pid == pid)
			return true;
	}
	return false;
}

/* Return whether both containers were shown. */
static bool one_between(unsigned long *repeated)
{
	struct record before, next, after;
	pid_t first, second, third;
	bool inside = false, both;
	int fd;

	first = container();
	/* When the first container ends, the reader is at the header of this one. */
	second = container_above(first);
	if (!second)
		errx(1, "no pid is free above %d", first);
	fd = open_file();
	if (!read_to(fd, first, &before, &inside) || !read_to(fd, second, &next, &inside))
		errx(4, "a container is not shown");
	end(first);
	let_go();
	third = container_above(second);
	if (!third)
		errx(1, "no pid is free above %d", second);
	both = read_to(fd, third, &after, &inside);
	close(fd);
	if (both && (!strcmp(before.id, after.id) || !strcmp(next.id, after.id)))
		++*repeated;
	end(second);
	end(third);
	return both;
}

static void case_between(void)
{
	unsigned long shown = 0, repeated = 0;

	for (unsigned long i = 0; i < rounds; i++) {
		shown += one_between(&repeated);
		let_go();
	}
	printf("rounds=%lu shown=%lu repeated=%lu\n", rounds, shown, repeated);
}

/* ---- files ---- */

#define SAME_FILE "/tmp/lives-same"

static int open_same(void)
{
	return open(SAME_FILE, O_RDWR | O_CREAT, 0600);
}

static int open_pipe(void)
{
	int ends[2];

	CHECK(pipe(ends));
	close(ends[1]);
	return ends[0];
}

static int open_socket(void)
{
	return socket(AF_UNIX, SOCK_STREAM, 0);
}

static int open_eventfd(void)
{
	return eventfd(0, 0);
}

static int open_memfd(void)
{
	return syscall(SYS_memfd_create, "lives", 0);
}

/* Each "same_file" has the same inode, and so has each eventfd of the system. */
static const struct {
	const char *name;
	int (*open)(void);
} kinds[] = {
	{ "same_file", open_same },
	{ "pipe", open_pipe },
	{ "socket", open_socket },
	{ "eventfd", open_eventfd },
	{ "memfd", open_memfd },
};

#define KINDS (sizeof(kinds) / sizeof(kinds[0]))

/* Open a file on request, report its descriptor, and close it on request. */
__attribute__((noreturn))
static void open_when_told(int told, int said)
{
	for (;;) {
		int fd = CHECK(kinds[(int)get_byte(told)].open());

		put_byte(said, fd);
		get_byte(told);
		close(fd);
		put_byte(said, 0);
	}
}

static void case_files(void)
{
	int commands[2], answers[2];
	pid_t pid;

	CHECK(pipe(commands));
	CHECK(pipe(answers));
	pid = spawn(CLONE_NEWPID);
	if (!pid) {
		close(commands[1]);
		close(answers[0]);
		open_when_told(commands[0], answers[1]);
	}
	close(commands[0]);
	close(answers[1]);
	for (size_t kind = 0; kind < KINDS; kind++) {
		unsigned long repeated = 0;
		struct seen seen;

		seen_begin(&seen);
		for (unsigned long i = 0; i < rounds; i++) {
			const char *line;
			struct record r;
			char id[ID + 1];
			int fd;

			put_byte(commands[1], kind);
			fd = get_byte(answers[0]);
			read_anew();
			must_find(pid, &r);
			line = find_file(&r, fd);
			if (!line || sscanf(line, "%*d\t%*d\t%64[0-9a-f]\t", id) != 1)
				errx(4, "descriptor %d is not shown", fd);
			repeated += seen_before(&seen, id);
			put_byte(commands[1], 0);
			get_byte(answers[0]);
			let_go();
		}
		printf("%s%s=%lu/%lu", kind ? " " : "", kinds[kind].name, repeated, rounds);
		free(seen.ids);
	}
	putchar('\n');
	end(pid);
	unlink(SAME_FILE);
}

/* ---- leader ---- */

#define PRIVATE "/tmp/lives-private"
#define SHARED "/tmp/lives-shared"

static atomic_int opened;

static void *with_private_table(void *unused)
{
	(void)unused;
	CHECK(unshare(CLONE_FILES));
	CHECK(open(PRIVATE, O_RDWR | O_CREAT, 0600));
	atomic_fetch_add(&opened, 1);
	hold();
}

static void *with_shared_table(void *unused)
{
	(void)unused;
	CHECK(open(SHARED, O_RDWR | O_CREAT, 0600));
	atomic_fetch_add(&opened, 1);
	hold();
}

/* The second one is younger, and opens a file that the first one's table does not have. */
__attribute__((noreturn))
static void leave_threads(int told, int said)
{
	void *(*const threads[])(void *) = { with_private_table, with_shared_table };
	pthread_t id;

	for (int i = 0; i < 2; i++) {
		errno = pthread_create(&id, NULL, threads[i], NULL);
		if (errno)
			err(1, "pthread_create");
		while (opened <= i)
			usleep(1000);
	}
	put_byte(said, 0);
	get_byte(told);
	syscall(SYS_exit, 0);	/* a table of this thread only */
	__builtin_unreachable();
}

static const char *table_shown(pid_t pid)
{
	struct record r;
	bool private, shared;

	read_anew();
	must_find(pid, &r);
	private = has_path(&r, PRIVATE);
	shared = has_path(&r, SHARED);
	return private && shared ? "both" : private ? "private" : shared ? "shared" : "none";
}

/* Tell whether the leader has ended, and with it its use of a table. */
static bool is_zombie(pid_t pid)
{
	char path[64], line[512];
	FILE *stream;
	char *state;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	stream = fopen(path, "re");
	if (!stream || !fgets(line, sizeof(line), stream))
		err(1, "%s", path);
	fclose(stream);
	state = strrchr(line, ')');
	return state && state[2] == 'Z';
}

static void case_leader(void)
{
	const char *before = NULL, *shown = NULL;

	for (unsigned long i = 0; i < rounds; i++) {
		int commands[2], answers[2];
		const char *now;
		pid_t pid;

		CHECK(pipe(commands));
		CHECK(pipe(answers));
		pid = spawn(CLONE_NEWPID);
		if (!pid)
			leave_threads(commands[0], answers[1]);
		get_byte(answers[0]);
		now = table_shown(pid);
		before = before && strcmp(before, now) ? "mixed" : now;
		put_byte(commands[1], 0);
		while (!is_zombie(pid))
			usleep(1000);
		now = table_shown(pid);
		shown = shown && strcmp(shown, now) ? "mixed" : now;
		end(pid);
		for (int n = 0; n < 2; n++) {
			close(commands[n]);
			close(answers[n]);
		}
	}
	printf("rounds=%lu before=%s shown=%s\n", rounds, before, shown);
	unlink(PRIVATE);
	unlink(SHARED);
}

static const struct {
	const char *name;
	void (*run)(void);
} cases[] = {
	{ "exec", case_exec },
	{ "reaped", case_reaped },
	{ "series", case_series },
	{ "between", case_between },
	{ "files", case_files },
	{ "leader", case_leader },
};

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "again"))
		return exec_again(argv);
	if (argc == 4 || argc == 5) {
		file = argv[1];
		first_only = argc == 5;
		rounds = strtoul(argv[3], NULL, 10);
		if (!rounds || rounds > ROUNDS_MAX)
			errx(2, "rounds: 1 to %d", ROUNDS_MAX);
		if (signal(SIGALRM, too_late) == SIG_ERR)
			err(1, "signal");
		alarm(DEADLINE_S);
		for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
			if (strcmp(argv[2], cases[i].name))
				continue;
			cases[i].run();
			return 0;
		}
	}
	errx(2, "usage: lives <file> exec|reaped|series|between|files|leader <rounds> [first]");
}
