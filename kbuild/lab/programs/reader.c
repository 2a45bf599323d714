// SPDX-License-Identifier: GPL-2.0-only
/*
 * Run readers of every kind at once; each checks what it reads.
 *
 *	reader check <file>				check that the file is one whole listing
 *	reader storm <file> <seconds> <seed> still	the module stays loaded
 *	reader storm <file> <seconds> <seed> reloaded	it is unloaded and loaded meanwhile
 *	reader storm ... told				end also when standard input ends
 *
 * storm prints a line when each kind has read, then one a second, and one at its end.  A
 * line has sums since the beginning; the seconds count from the first line:
 *
 *	<whole listings> <records> <bytes> <cut off> <absent> <killed> <worst read in ns> <reads>
 *
 * "cut off" counts reads that ended with EIO and "absent" opens that ended with ENOENT,
 * which only an unloading may cause; "killed" counts readers ended by a signal.  storm fails
 * when a reader saw something wrong, or when a kind of reader has done nothing.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
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
#define TICK_US 50000
#define TICKS 20	/* in a second */
/* Extra time of a storm for each kind of reader to read. */
#define TURN_NS 60000000000ULL

struct figures {
	atomic_ulong listings, records, bytes, cut, absent, killed, worst_ns;
	atomic_ulong progress[16];	/* reads by kind */
	atomic_bool wrong;
	char why[320];			/* the first error */
};

static struct figures *figures;
static const char *path;
static bool reloaded;
static unsigned int kind;		/* of this process */

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ULL + t.tv_nsec;
}

__attribute__((noreturn, format(printf, 1, 2)))
static void wrong(const char *format, ...)
{
	va_list args;

	if (!atomic_exchange(&figures->wrong, true)) {
		va_start(args, format);
		vsnprintf(figures->why, sizeof(figures->why), format, args);
		va_end(args);
	}
	_exit(1);
}

/* Return -1 while the module is unloaded, which is no error if it is reloaded. */
static int open_file(void)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0) {
		if (!reloaded || errno != ENOENT)
			wrong("open: %s", strerror(errno));
		atomic_fetch_add(&figures->absent, 1);
		/* nothing to read: leave the processor to the process that loads it */
		usleep(1000);
	}
	return fd;
}

/* Return -1 if the module was unloaded during the read. */
static ssize_t read_piece(int fd, char *to, size_t size, off_t offset)
{
	uint64_t began = now_ns(), took;
	ssize_t got = offset < 0 ? read(fd, to, size) : pread(fd, to, size, offset);
	unsigned long worst = atomic_load(&figures->worst_ns);

	if (got < 0) {
		if (!reloaded || errno != EIO)
			wrong("read: %s", strerror(errno));
		atomic_fetch_add(&figures->cut, 1);
		return -1;
	}
	if ((size_t)got > size)
		wrong("read of %zu bytes gave %zd", size, got);
	took = now_ns() - began;
	while (took > worst && !atomic_compare_exchange_weak(&figures->worst_ns, &worst, took))
		;
	atomic_fetch_add(&figures->bytes, got);
	atomic_fetch_add(&figures->progress[kind], 1);
	return got;
}

static void pause_up_to(unsigned int us)
{
	usleep(1 + random_below(us));
}

/* Read in at most @pieces pieces of @least to @most bytes; if @pieces is 0, to the end. */
static void read_listing(size_t least, size_t most, unsigned int pieces, unsigned int pause_us)
{
	static struct listing listing;
	static char piece[PIECE];
	unsigned int count = 0;
	int fd = open_file();
	ssize_t got;

	if (fd < 0)
		return;
	listing_begin(&listing);
	do {
		got = read_piece(fd, piece, least + random_below(most - least + 1), -1);
		if (got > 0 && !listing_feed(&listing, piece, got))
			wrong("%s", listing.why);
		if (pause_us)
			pause_up_to(pause_us);
	} while (got > 0 && ++count != pieces);
	close(fd);
	if (got)
		return;
	if (!listing_end(&listing))
		wrong("%s", listing.why);
	atomic_fetch_add(&figures->listings, 1);
	atomic_fetch_add(&figures->records, listing.records);
}

static void whole(void)
{
	read_listing(PIECE, PIECE, 0, 0);
}

static void small(void)
{
	read_listing(1, 300, 0, 0);
}

static void slow(void)
{
	read_listing(512, 4096, 0, 2000);
}

static void halfway(void)
{
	read_listing(1, 2048, 1 + random_below(20), 0);
}

/* The text at another position depends on the moment, so only errors are checked. */
static void jumping(void)
{
	static char piece[PIECE];
	int fd = open_file();
	off_t last = 0;
	ssize_t got;

	if (fd < 0)
		return;
	for (int i = 0; i < 8; i++) {
		if (random_below(2)) {
			got = read_piece(fd, piece, PIECE, random_below(last + 1));
		} else {
			last = random_below(last + PIECE);
			/* an unloading ended the walk, or the entry has been removed */
			if (lseek(fd, last, SEEK_SET) != last) {
				if (!reloaded || (errno != EIO && errno != EINVAL))
					wrong("lseek: %s", strerror(errno));
				break;
			}
			got = read_piece(fd, piece, PIECE, -1);
		}
		if (got < 0)
			break;
		last += got;
	}
	close(fd);
}

static void *read_to_the_end(void *fd)
{
	char piece[4096];

	while (read_piece(*(int *)fd, piece, sizeof(piece), -1) > 0)
		;
	return NULL;
}

/* Two threads share one position, so each gets a part. */
static void shared(void)
{
	int fd = open_file();
	pthread_t other;

	if (fd < 0)
		return;
	if (pthread_create(&other, NULL, read_to_the_end, &fd))
		wrong("pthread_create: %s", strerror(errno));
	read_to_the_end(&fd);
	pthread_join(other, NULL);
	close(fd);
}

static void ignore_signal(int number)
{
	(void)number;
}

/* A reader must not notice signals that have a handler; then a signal ends it anywhere. */
static void signalled(void)
{
	struct sigaction action = { .sa_handler = ignore_signal };	/* no SA_RESTART */
	unsigned long done = figures->progress[kind];
	sigset_t user, before;
	pid_t pid;

	/* blocked until the handler is set, because the first signal would end the reader */
	sigemptyset(&user);
	sigaddset(&user, SIGUSR1);
	sigprocmask(SIG_BLOCK, &user, &before);
	pid = fork();
	if (pid < 0)
		wrong("fork: %s", strerror(errno));
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		sigaction(SIGUSR1, &action, NULL);
		sigprocmask(SIG_SETMASK, &before, NULL);
		for (;;)
			read_listing(1, PIECE, 0, 0);
	}
	sigprocmask(SIG_SETMASK, &before, NULL);
	/* on a slow kernel it would be killed before it has begun */
	while (figures->progress[kind] == done && !waitpid(pid, NULL, WNOHANG))
		usleep(1000);
	for (unsigned int i = random_below(10); i > 0; i--) {
		pause_up_to(3000);
		kill(pid, SIGUSR1);
	}
	pause_up_to(30000);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	atomic_fetch_add(&figures->killed, 1);
}

static const struct {
	const char *name;
	void (*round)(void);
	unsigned int count;
} kinds[] = {
	{ "whole", whole, 4 },
	{ "small", small, 1 },
	{ "slow", slow, 1 },
	{ "half-way", halfway, 2 },
	{ "jumping", jumping, 1 },
	{ "shared", shared, 1 },
	{ "signalled", signalled, 2 },
};

#define KINDS (sizeof(kinds) / sizeof(kinds[0]))

static void print_figures(void)
{
	unsigned long reads = 0;

	for (size_t i = 0; i < KINDS; i++)
		reads += figures->progress[i];
	printf("%lu %lu %lu %lu %lu %lu %lu %lu\n", figures->listings, figures->records,
	       figures->bytes, figures->cut, figures->absent, figures->killed,
	       figures->worst_ns, reads);
	fflush(stdout);
}

static bool all_have_read(void)
{
	for (size_t i = 0; i < KINDS; i++)
		if (!figures->progress[i])
			return false;
	return true;
}

static bool input_ended(void)
{
	struct pollfd input = { .fd = STDIN_FILENO };

	return poll(&input, 1, 0) == 1;
}

static int storm(unsigned int seconds, uint64_t seed, bool told)
{
	uint64_t length = seconds * 1000000000ULL, end = now_ns() + length + TURN_NS;
	bool begun = false;

	figures = mmap(NULL, sizeof(*figures), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
		       -1, 0);
	if (figures == MAP_FAILED)
		err(1, "mmap");
	/* a group of its own, so that the final kill reaches the readers' children too */
	if (getpgrp() != getpid() && setpgid(0, 0))
		err(1, "setpgid");
	/* a lower priority than the load, which must go on while it is read */
	if (setpriority(PRIO_PROCESS, 0, 10))
		err(1, "setpriority");
	for (kind = 0; kind < KINDS; kind++) {
		for (unsigned int i = 0; i < kinds[kind].count; i++) {
			pid_t pid = fork();

			if (pid < 0)
				err(1, "fork");
			if (pid)
				continue;
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			random_begin(seed + kind * 100 + i);
			for (;;)
				kinds[kind].round();
		}
	}
	/* each kind has a turn, even if the time is too short */
	for (unsigned int tick = 1; !figures->wrong && now_ns() < end; tick++) {
		if (told && begun && input_ended())
			break;
		usleep(TICK_US);
		if (!begun && all_have_read()) {
			begun = true;
			end = now_ns() + length;
			print_figures();
		} else if (!(tick % TICKS)) {
			print_figures();
		}
	}
	signal(SIGTERM, SIG_IGN);
	kill(0, SIGTERM);
	while (wait(NULL) > 0)
		;
	print_figures();
	if (figures->wrong)
		errx(1, "a reader saw what it must not see: %s", figures->why);
	for (kind = 0; kind < KINDS; kind++)
		if (!figures->progress[kind])
			errx(1, "no %s reader has read anything", kinds[kind].name);
	return 0;
}

static int check(void)
{
	static struct listing listing;
	static char piece[PIECE];
	int fd = open(path, O_RDONLY);
	ssize_t got;

	if (fd < 0)
		err(2, "%s", path);
	listing_begin(&listing);
	while ((got = read(fd, piece, sizeof(piece))) > 0)
		listing_feed(&listing, piece, got);
	if (got < 0)
		err(2, "read");
	if (!listing_end(&listing))
		errx(1, "%s", listing.why);
	printf("%lu\n", listing.records);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "check")) {
		path = argv[2];
		return check();
	}
	if ((argc == 6 || (argc == 7 && !strcmp(argv[6], "told"))) && !strcmp(argv[1], "storm")) {
		path = argv[2];
		reloaded = !strcmp(argv[5], "reloaded");
		if (reloaded || !strcmp(argv[5], "still"))
			return storm(strtoul(argv[3], NULL, 10), strtoull(argv[4], NULL, 10),
				     argc == 7);
	}
	errx(2, "usage: reader check <file> | storm <file> <seconds> <seed> still|reloaded [told]");
}
