// SPDX-License-Identifier: GPL-2.0-only
/*
 * Read /proc/cplayground repeatedly while processes start and end, and check that each
 * listing shows what is true at every moment:
 *
 *	- It follows the grammar.
 *	- A process that existed at the beginning, when nothing changed, has the same record.
 *	- A descriptor whose path ends with "+cloexec" is closed on exec, and one with "+kept"
 *	  is not.  One has O_APPEND if its path has "+append", and only then (turmoil.c names
 *	  its files so).  Processes that turmoil.c lets exec are an exception: execve(2) clears
 *	  close-on-exec of 64 descriptors at once, and then closes them one by one without the
 *	  table's lock (do_close_on_exec() in fs/file.c).
 *	- No process called "host" is shown: turmoil.c gives this name outside of containers.
 *	- Only the first process of a namespace that turmoil.c makes has no parent
 *	  in it.
 *
 *	witness <file> <milliseconds> <seed> [readers]
 *
 * Ends after the time, and at least one whole listing.  If it has not seen a descriptor of
 * turmoil.c by then, it ends after ten times the time.
 *
 * Prints "anchored <records>" when it has read the beginning; at its end, the numbers of
 * whole listings, of records, and of descriptors of turmoil.c in them.  Its exit status is 3
 * for a violation of the grammar, 4 for wrong contents, 5 for a read that fails.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "listing.h"
#include "random.h"

#define PIECE 65536
#define RECORD (4 << 20)
#define ANCHORS 1024
#define READERS 16

enum { GRAMMAR = 3, INVARIANT = 4, READING = 5 };

static struct {
	atomic_ulong listings, records, named;
	atomic_bool stop;
} *shared;

static const char *path;
static struct listing listing;

/* The whole record that is being read. */
static char record[RECORD];
static size_t record_length;

/* Those of the beginning, in the order of their pids. */
static struct anchor {
	long pid;
	char *text;
	size_t length;
} anchors[ANCHORS];
static unsigned int anchored, met;
static bool first = true;
static bool execs;	/* whether the process that is being read may be in execve(2) */

__attribute__((noreturn, format(printf, 2, 3)))
static void wrong(int status, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	exit(status);
}

static long long now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

/* Return column n of the line, its length in *length. */
static const char *column(const char *line, int n, size_t *length)
{
	while (n--)
		line = strchr(line, '\t') + 1;
	*length = strcspn(line, "\t");
	return line;
}

static bool is_anchored(long pid)
{
	for (unsigned int i = 0; i < anchored; i++)
		if (anchors[i].pid == pid)
			return true;
	return false;
}

static void check_header(const char *line)
{
	const char *command = strrchr(line, '\t') + 1;
	size_t length;

	/* turmoil.c's names, and the kernel's when /proc/self/exe is run. */
	execs = !strcmp(command, "exec") || !strcmp(command, "exe");
	if (!strcmp(command, "host"))
		wrong(INVARIANT, "a process of the host is shown: %s", line);
	if (!first && !is_anchored(listing.pid) && atol(column(line, 2, &length)) != 1 &&
	    atol(column(line, 3, &length)) == 0)
		wrong(INVARIANT, "a process with a parent is shown without: %s", line);
}

static void check_file(const char *line)
{
	const char *name = strrchr(line, '\t') + 1, *cloexec, *flags;
	size_t length, flags_length;
	bool append;

	if (!strstr(name, "/turmoil/"))
		return;
	cloexec = column(line, 1, &length);
	flags = column(line, 4, &flags_length);
	append = strtoul(flags, NULL, 8) & O_APPEND;
	if (strstr(name, "+cloexec") && *cloexec != '1' && !execs)
		wrong(INVARIANT, "close-on-exec is not shown: %s", line);
	if (strstr(name, "+kept") && *cloexec != '0')
		wrong(INVARIANT, "close-on-exec is shown and was never set: %s", line);
	if (append != !!strstr(name, "+append"))
		wrong(INVARIANT, "the flags are of another open file: %s", line);
	atomic_fetch_add(&shared->named, 1);
}

/* Print the line in which two records differ. */
static void compare(const struct anchor *anchor)
{
	size_t at = 0, line = 0;

	if (anchor->length == record_length && !memcmp(anchor->text, record, record_length))
		return;
	while (at < anchor->length && at < record_length && anchor->text[at] == record[at])
		if (record[at++] == '\n')
			line = at;
	wrong(INVARIANT, "process %ld holds still, and its record has changed, from\n%.*s\nto\n%.*s",
	      anchor->pid, (int)strcspn(anchor->text + line, "\n"), anchor->text + line,
	      (int)strcspn(record + line, "\n"), record + line);
}

static void end_record(void)
{
	record[record_length] = '\0';
	if (first) {
		if (anchored == ANCHORS)
			errx(2, "more than %d processes hold still", ANCHORS);
		anchors[anchored++] = (struct anchor){
			.pid = listing.pid,
			.text = memcpy(malloc(record_length + 1), record, record_length + 1),
			.length = record_length,
		};
		return;
	}
	if (met < anchored && anchors[met].pid < listing.pid)
		wrong(INVARIANT, "process %ld holds still, and is not shown", anchors[met].pid);
	if (met < anchored && anchors[met].pid == listing.pid)
		compare(&anchors[met++]);
}

/* Process a piece, which ends at the end of a line if it has one. */
static void feed(const char *piece, size_t size)
{
	bool was_inside = listing.inside;

	if (record_length + size >= RECORD)
		errx(2, "a record of more than %d bytes", RECORD);
	memcpy(record + record_length, piece, size);
	record_length += size;
	if (!listing_feed(&listing, piece, size))
		wrong(GRAMMAR, "%s", listing.why);
	if (piece[size - 1] != '\n')
		return;
	if (!was_inside) {
		check_header(listing.line);
	} else if (listing.inside) {
		check_file(listing.line);
	} else {
		end_record();
		record_length = 0;
	}
}

/* Return whether the file was read to its end. */
static bool read_once(void)
{
	static char piece[PIECE];
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	/* From a few lines at a time to everything at once. */
	size_t most = 1UL << (9 + random_below(8));
	/* Every third time, stop after a part. */
	size_t left = first || random_below(3) ? SIZE_MAX : random_below(PIECE);
	ssize_t got;

	if (fd < 0)
		wrong(READING, "open: %s", strerror(errno));
	listing_begin(&listing);
	record_length = 0;
	met = 0;
	while ((got = read(fd, piece, most)) > 0) {
		for (char *at = piece, *next; at < piece + got; at = next) {
			next = memchr(at, '\n', piece + got - at);
			next = next ? next + 1 : piece + got;
			feed(at, next - at);
		}
		if ((size_t)got >= left)
			break;
		left -= got;
	}
	if (got < 0)
		wrong(READING, "read: %s", strerror(errno));
	if (got) {
		close(fd);
		return false;
	}
	if (!listing_end(&listing))
		wrong(GRAMMAR, "%s", listing.why);
	if (!first && met < anchored)
		wrong(INVARIANT, "process %ld holds still, and is not shown", anchors[met].pid);
	close(fd);
	atomic_fetch_add(&shared->listings, 1);
	atomic_fetch_add(&shared->records, listing.records);
	return true;
}

/* Tell whether time is left, or no churn was seen yet, because it may begin late. */
static bool more(long long end, long long last)
{
	long long now = now_ms();

	return now < end || (!shared->named && now < last);
}

int main(int argc, char **argv)
{
	unsigned int readers = argc > 4 ? strtoul(argv[4], NULL, 10) : 1, alive;
	int status, worst = 0;
	unsigned long seed;
	long long end, last;

	if (argc < 4 || !readers || readers > READERS)
		errx(2, "usage: witness <file> <milliseconds> <seed> [readers]");
	path = argv[1];
	seed = strtoul(argv[3], NULL, 10);
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
		      -1, 0);
	if (shared == MAP_FAILED)
		err(2, "mmap");
	random_begin(seed);
	read_once();
	first = false;
	printf("anchored %u\n", anchored);
	fflush(stdout);

	/* Raise the priority: the churn would use all processor time. */
	if (setpriority(PRIO_PROCESS, 0, -5))
		err(2, "setpriority");
	end = now_ms() + strtol(argv[2], NULL, 10);
	last = end + 9 * strtol(argv[2], NULL, 10);
	for (unsigned int i = 0; i < readers; i++) {
		pid_t pid = fork();

		if (pid < 0)
			err(2, "fork");
		if (pid)
			continue;
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		random_begin(seed + 1 + i);
		for (bool whole = false; !whole || more(end, last); whole |= read_once())
			if (atomic_load(&shared->stop))
				break;
		exit(0);
	}
	/* The first reader that has seen enough ends the others. */
	for (alive = readers; alive; alive--) {
		if (wait(&status) < 0)
			err(2, "wait");
		if (WIFEXITED(status) && !WEXITSTATUS(status))
			continue;
		atomic_store(&shared->stop, true);
		if (!worst)
			worst = WIFEXITED(status) ? WEXITSTATUS(status) : READING;
		if (WIFSIGNALED(status))
			warnx("a reader was ended by signal %d", WTERMSIG(status));
	}
	printf("%lu %lu %lu\n", shared->listings, shared->records, shared->named);
	return worst;
}
