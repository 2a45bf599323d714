// SPDX-License-Identifier: GPL-2.0-only
/*
 * Make rare failures happen on the load and read paths of the module.
 *
 *	faults load <module.ko> <step> [parameters]
 *		every <step>th allocation or copy of init_module(2) fails, each in a call of its
 *		own; at the end those of the module itself (EBUSY) until one has failed
 *	faults read|pread <file> <bytes> <passes>
 *		each allocation or copy of open(2) and of the reads to the end fails; several
 *		passes, because the allocator itself sometimes needs a page, which moves the
 *		numbers of the calls after it
 *	faults copy <file>
 *		reads into memory that is missing, not writable, or ends too soon
 *	faults kill <file> <times>
 *		a reader is killed at each stage, and as often anywhere
 *
 * The kernel must count failures in fail-nth, and the file must not change meanwhile.
 * load and read print "<n> <errno> <place>" for each failure that happened, with errno 0 if
 * the caller did not see it.  Each mode ends with "end <failures> <failures seen>".
 * A failure may only be seen as an errno, and afterwards reading goes on where it was.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "random.h"

#define PIECE 65536
/* the next number may be this far beyond the last number that a load has met */
#define BEYOND 32
/* how often to repeat the last BEYOND numbers, at most, until the module's own call fails */
#define PASSES 16

static const char *path;
static char *expected;
static size_t length;
static int fail_nth = -1;
static unsigned long failures, noticed;

/* ---- failures by count: Documentation/fault-injection/fault-injection.rst ---- */

static void set_fail_nth(unsigned int n)
{
	char text[16];
	int size = snprintf(text, sizeof(text), "%u", n);

	/* the copy of this number may itself fail */
	while (pwrite(fail_nth, text, size, 0) != size)
		if (errno != EFAULT)
			err(2, "fail-nth");
}

/* End the counting, and return whether the failure has happened. */
static bool happened(void)
{
	char text[16] = "";
	ssize_t got = pread(fail_nth, text, sizeof(text) - 1, 0);

	/* the one that fails here has not happened before */
	if (got < 0 && errno != EFAULT)
		err(2, "fail-nth");
	set_fail_nth(0);
	return got > 0 && text[0] == '0';
}

static void open_fail_nth(void)
{
	fail_nth = open("/proc/thread-self/fail-nth", O_RDWR | O_CLOEXEC);
	if (fail_nth < 0)
		err(2, "/proc/thread-self/fail-nth");
}

static void tell(unsigned int n, int error, const char *place)
{
	failures++;
	noticed += error != 0;
	printf("%u %d %s\n", n, error, place);
	fflush(stdout);
}

/* ---- loading ---- */

static char *read_file(const char *from, size_t *size)
{
	int fd = open(from, O_RDONLY | O_CLOEXEC);
	size_t room = 0;
	char *text = NULL;
	ssize_t got;

	if (fd < 0)
		err(2, "%s", from);
	*size = 0;
	do {
		if (room - *size < PIECE) {
			room += 16 * PIECE;
			text = realloc(text, room);
			if (!text)
				err(2, "realloc");
		}
		got = read(fd, text + *size, PIECE);
		if (got < 0)
			err(2, "%s", from);
		*size += got;
	} while (got);
	close(fd);
	return text;
}

/* Load with the nth call failing, and unload; return the errno, or -1 if none failed. */
static int load_failing(unsigned int n, const char *image, size_t size, const char *parameters)
{
	struct stat entry;
	int error = 0;
	bool met;

	set_fail_nth(n);
	if (syscall(SYS_init_module, image, size, parameters))
		error = errno;
	met = happened();
	if (met)
		tell(n, error, "init_module");
	else if (error)
		errx(1, "init_module without a failure: %s", strerror(error));
	/* proc_create() does not tell why it failed: the module assumes that the name is in use */
	if (error && error != ENOMEM && error != EFAULT && error != EBUSY)
		errx(1, "failure %u: init_module: %s", n, strerror(error));
	if ((stat(path, &entry) == 0) != !error)
		errx(1, "failure %u: init_module: %s, and %s is %s", n, strerror(error), path,
		     error ? "there" : "not there");
	if (!error && syscall(SYS_delete_module, "cplayground", O_NONBLOCK))
		err(1, "failure %u: delete_module", n);
	return met ? error : -1;
}

static void fail_load(const char *module, unsigned int step, const char *parameters)
{
	unsigned int last = 1;
	size_t size;
	char *image = read_file(module, &size);
	bool own = false;

	/* loads differ in some calls: a number that was not met is not the end yet */
	for (unsigned int n = 1; n <= last + BEYOND; n += step) {
		int error = load_failing(n, image, size, parameters);

		own |= error == EBUSY;
		if (error >= 0)
			last = n;
	}
	/* the module's own call is among the last ones, and its number differs each time */
	for (unsigned int pass = 0; !own && pass < PASSES; pass++)
		for (unsigned int n = last > BEYOND ? last - BEYOND : 1; !own && n <= last; n++)
			own = load_failing(n, image, size, parameters) == EBUSY;
	/* a failed load has left nothing that prevents the next one */
	if (syscall(SYS_init_module, image, size, parameters))
		err(1, "init_module at last");
	if (syscall(SYS_delete_module, "cplayground", O_NONBLOCK))
		err(1, "delete_module at last");
	free(image);
}

/* ---- reading ---- */

static void compare(const char *got, size_t size, size_t at, const char *when)
{
	if (at + size > length || memcmp(got, expected + at, size))
		errx(1, "%s: the %zu bytes at %zu are not those of the file", when, size, at);
}

/* One failure may come of a call, and then the same call must succeed. */
static size_t read_again(int fd, char *to, size_t size, off_t offset, int *error, const char *when)
{
	ssize_t got;

	for (;;) {
		got = offset < 0 ? read(fd, to, size) : pread(fd, to, size, offset);
		if (got >= 0)
			return got;
		if (*error || (errno != EFAULT && errno != ENOMEM))
			errx(1, "%s: read: %s", when, strerror(errno));
		*error = errno;
	}
}

/* Read the file to its end, or from there to its beginning; return an errno seen, or 0. */
static int read_whole(int fd, size_t piece, bool backwards, const char *when)
{
	static char buffer[PIECE];
	size_t at = 0, got;
	int error = 0;

	if (!backwards) {
		while ((got = read_again(fd, buffer, piece, -1, &error, when))) {
			compare(buffer, got, at, when);
			at += got;
		}
		if (at != length)
			errx(1, "%s: %zu bytes in all, not %zu", when, at, length);
		return error;
	}
	for (size_t i = (length + piece - 1) / piece; i-- > 0;) {
		size_t end = (i + 1) * piece < length ? (i + 1) * piece : length;

		for (at = i * piece; at < end; at += got) {
			got = read_again(fd, buffer, end - at, at, &error, when);
			if (!got)
				errx(1, "%s: the file ends at %zu", when, at);
			compare(buffer, got, at, when);
		}
	}
	return error;
}

static void fail_read(size_t piece, bool backwards)
{
	for (unsigned int n = 1;; n++) {
		int fd, opening = 0, reading = 0;
		char when[32];

		snprintf(when, sizeof(when), "failure %u", n);
		set_fail_nth(n);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			opening = errno;
		else
			reading = read_whole(fd, piece, backwards, when);
		if (!happened()) {
			if (opening || reading)
				errx(1, "%s without a failure", strerror(opening + reading));
			close(fd);
			return;
		}
		if (opening && opening != ENOMEM && opening != EFAULT)
			errx(1, "%s: open: %s", when, strerror(opening));
		tell(n, opening + reading, opening ? "open" : reading ? "read" : "nowhere");
		if (fd >= 0)
			close(fd);
	}
}

/* ---- missing memory ---- */

static void fault_copies(void)
{
	const size_t tails[] = { 0, 1, 7, 63, 4095, 4096 };
	const int protections[] = { PROT_NONE, PROT_READ };
	char *area = mmap(NULL, 4 * PIECE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			  -1, 0);
	char *wall = area + 2 * PIECE;
	static char rest[PIECE];

	if (area == MAP_FAILED)
		err(2, "mmap");
	for (size_t way = 0; way < 3; way++) {
		if (way == 2 ? munmap(wall, 2 * PIECE)
			     : mprotect(wall, 2 * PIECE, protections[way]))
			err(2, "the wall");
		for (size_t i = 0; i < sizeof(tails) / sizeof(tails[0]); i++) {
			int fd = open(path, O_RDONLY | O_CLOEXEC);
			size_t at = 0;
			ssize_t got;
			char when[64];

			snprintf(when, sizeof(when), "wall %zu after %zu bytes", way, tails[i]);
			if (fd < 0)
				err(1, "%s: open", when);
			/* the first read fails at once; good reads follow, to the end */
			for (;;) {
				got = read(fd, wall - tails[i], PIECE);
				if (got < 0) {
					if (errno != EFAULT)
						err(1, "%s: read", when);
					tell(i, errno, "copy");
				} else {
					if ((size_t)got > tails[i])
						errx(1, "%s: read %zd bytes", when, got);
					compare(wall - tails[i], got, at, when);
					at += got;
				}
				got = read(fd, rest, 1000);
				if (got < 0)
					err(1, "%s: a good read", when);
				compare(rest, got, at, when);
				at += got;
				if (!got)
					break;
			}
			if (at != length)
				errx(1, "%s: %zu bytes in all, not %zu", when, at, length);
			close(fd);
		}
	}
	/* at an address that no process can map */
	for (int i = 0; i < 2; i++) {
		int fd = open(path, O_RDONLY | O_CLOEXEC);

		if (read(fd, i ? (char *)-4096L : NULL, PIECE) >= 0 || errno != EFAULT)
			err(1, "a read to nowhere");
		tell(i, errno, "nowhere");
		if (read(fd, rest, 1000) != 1000)
			err(1, "a good read after one to nowhere");
		compare(rest, 1000, 0, "nowhere");
		close(fd);
	}
}

/* ---- killed ---- */

struct victim {
	atomic_bool inside;	/* of a read */
	atomic_ulong reads;
};

enum stage { OPENED, BEGUN, HALF, ENDED, STAGES };

static void die_at(enum stage stage, int ready)
{
	static char buffer[PIECE];
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	size_t want = stage == OPENED ? 0 : stage == BEGUN ? 1 : stage == HALF ? length / 2
									       : length + 1;

	if (fd < 0)
		_exit(1);
	for (size_t at = 0; at < want;) {
		ssize_t got = read(fd, buffer, want - at < PIECE ? want - at : PIECE);

		if (got < 0)
			_exit(1);
		if (!got)
			break;
		at += got;
	}
	if (write(ready, "", 1) != 1)
		_exit(1);
	for (;;)
		pause();
}

static void read_until_killed(struct victim *victim)
{
	static char buffer[PIECE];

	for (;;) {
		int fd = open(path, O_RDONLY | O_CLOEXEC);
		ssize_t got;

		if (fd < 0)
			_exit(1);
		do {
			atomic_store(&victim->inside, true);
			got = read(fd, buffer, sizeof(buffer));
			atomic_store(&victim->inside, false);
			atomic_fetch_add(&victim->reads, 1);
		} while (got > 0);
		if (got < 0)
			_exit(1);
		close(fd);
	}
}

static void must_be_killed(pid_t pid, const char *what)
{
	int status;

	kill(pid, SIGKILL);
	if (waitpid(pid, &status, 0) != pid)
		err(1, "waitpid");
	if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
		errx(1, "%s: wait status %#x", what, status);
	failures++;
}

static void kill_readers(unsigned int times)
{
	struct victim *victim = mmap(NULL, sizeof(*victim), PROT_READ | PROT_WRITE,
				     MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (victim == MAP_FAILED)
		err(2, "mmap");
	for (unsigned int i = 0; i < times; i++) {
		for (enum stage stage = 0; stage < STAGES; stage++) {
			int ready[2];
			pid_t pid;
			char byte;

			if (pipe2(ready, O_CLOEXEC))
				err(2, "pipe");
			pid = fork();
			if (pid < 0)
				err(2, "fork");
			if (!pid) {
				prctl(PR_SET_PDEATHSIG, SIGKILL);
				close(ready[0]);
				die_at(stage, ready[1]);
			}
			close(ready[1]);
			if (read(ready[0], &byte, 1) != 1)
				errx(1, "a reader failed before its end, at stage %d", stage);
			must_be_killed(pid, "a reader that waits");
			close(ready[0]);
		}
	}
	for (unsigned int i = 0; i < times; i++) {
		unsigned long before = victim->reads;
		pid_t pid = fork();

		if (pid < 0)
			err(2, "fork");
		if (!pid) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			read_until_killed(victim);
		}
		/* wait for the reader to begin, then kill it anywhere in the next reads */
		while (victim->reads == before && !waitpid(pid, NULL, WNOHANG))
			;
		for (unsigned long spin = random_below(200000); spin; spin--)
			atomic_load(&victim->reads);
		must_be_killed(pid, "a reader that reads");
		noticed += victim->inside;
		victim->inside = false;
	}
}

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "";

	if ((argc == 4 || argc == 5) && !strcmp(mode, "load")) {
		path = "/proc/cplayground";
		open_fail_nth();
		fail_load(argv[2], strtoul(argv[3], NULL, 10), argc == 5 ? argv[4] : "");
	} else if (argc == 5 && (!strcmp(mode, "read") || !strcmp(mode, "pread"))) {
		path = argv[2];
		expected = read_file(path, &length);
		open_fail_nth();
		for (unsigned long pass = strtoul(argv[4], NULL, 10); pass > 0; pass--)
			fail_read(strtoul(argv[3], NULL, 10), mode[0] == 'p');
	} else if (argc == 3 && !strcmp(mode, "copy")) {
		path = argv[2];
		expected = read_file(path, &length);
		fault_copies();
	} else if (argc == 4 && !strcmp(mode, "kill")) {
		path = argv[2];
		expected = read_file(path, &length);
		kill_readers(strtoul(argv[3], NULL, 10));
	} else {
		errx(2, "usage: faults load|read|pread|copy|kill <file> ...");
	}
	printf("end %lu %lu\n", failures, noticed);
	return 0;
}
