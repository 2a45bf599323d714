// SPDX-License-Identifier: GPL-2.0-only
/*
 * Load and unload the module while its file is in use.
 *
 *	unload orders <file> <module.ko> <count> <seed> [parameters]
 *		two readers open, read and close, and the module is unloaded and loaded in
 *		between: in <count> of all orders (0: in all of them), one after the other
 *	unload race <file> <module.ko> <cycles> <seed> [parameters]
 *		readers do so all the time, while the module is loaded and unloaded
 *	unload again <file> <module.ko> <seconds> <pause in ms> [parameters]
 *		reload it while another program reads; it is loaded before and after
 *
 * For orders and race the module must be unloaded, and is so afterwards.  They print
 * "<unloadings> <reads> <EIO> <ENOENT>"; again prints "<unloadings>".  Every other result
 * than data or EIO from an open file, or ENOENT from open, is an error.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "listing.h"
#include "random.h"

#define READERS 4
#define HELD 40
/* Time for a reader to notice, on a kernel of any speed. */
#define NOTICE_S 120
/* Time for a module to give back what holds it, under load. */
#define HELD_S 60

static const char *path, *parameters = "";
static int module = -1;		/* the file that it is loaded from */
static unsigned long unloadings;

static time_t now_s(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec;
}

static void load_module(void)
{
	if (syscall(SYS_finit_module, module, parameters, 0))
		err(1, "finit_module");
}

static void unload_module(void)
{
	if (syscall(SYS_delete_module, "cplayground", O_NONBLOCK))
		err(1, "delete_module");
	unloadings++;
}

/* A container with files that stays, so that there is something to read. */
static pid_t hold_container(void)
{
	int ready[2];
	pid_t pid;
	char byte;

	if (pipe(ready) || unshare(CLONE_NEWPID))
		err(1, "a container");
	pid = fork();
	if (pid < 0)
		err(1, "fork");
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (int i = 0; i < HELD; i++)
			if (open("/dev/null", O_RDONLY) < 0)
				err(1, "/dev/null");
		if (write(ready[1], "", 1) != 1)
			err(1, "ready");
		for (;;)
			pause();
	}
	close(ready[1]);
	if (read(ready[0], &byte, 1) != 1)
		errx(1, "there is no container");
	close(ready[0]);
	return pid;
}

/* ---- one after the other ---- */

enum step { OPEN, READ, CLOSE };

struct side {
	enum step next;
	int fd;
	unsigned int generation;	/* of the module that fd belongs to */
};

static unsigned long reads, gone, absent;

static void take_step(struct side *side, bool loaded, unsigned int generation, const char *order)
{
	static struct listing listing;
	char piece[512];
	bool alive;
	ssize_t got;

	switch (side->next++) {
	case OPEN:
		side->fd = open(path, O_RDONLY | O_CLOEXEC);
		side->generation = generation;
		if (side->fd >= 0 ? !loaded : loaded || errno != ENOENT)
			errx(1, "%s: open while %s: %s", order, loaded ? "loaded" : "unloaded",
			     side->fd < 0 ? strerror(errno) : "succeeded");
		absent += side->fd < 0;
		break;
	case READ:
		if (side->fd < 0)
			break;
		alive = loaded && side->generation == generation;
		got = read(side->fd, piece, sizeof(piece));
		if (alive ? got <= 0 : got >= 0 || errno != EIO)
			errx(1, "%s: read of a file that is %s: %zd, %s", order,
			     alive ? "alive" : "gone", got, strerror(errno));
		listing_begin(&listing);
		if (alive && !listing_feed(&listing, piece, got))
			errx(1, "%s: %s", order, listing.why);
		reads += alive;
		gone += !alive;
		break;
	case CLOSE:
		if (side->fd >= 0 && close(side->fd))
			err(1, "%s: close", order);
		break;
	}
}

/* a, b: a reader takes its next step; u, l: the module is unloaded, loaded. */
static void run_order(const char *order)
{
	struct side a = { .fd = -1 }, b = { .fd = -1 };
	unsigned int generation = 0;
	bool loaded = true;

	load_module();
	for (const char *p = order; *p; p++) {
		if (*p == 'u') {
			unload_module();
			loaded = false;
		} else if (*p == 'l') {
			load_module();
			loaded = true;
			generation++;
		} else {
			take_step(*p == 'a' ? &a : &b, loaded, generation, order);
		}
	}
	unload_module();
}

#define ORDER 8		/* three steps of each reader, an unloading and a loading */

static char orders[1024][ORDER + 1];
static unsigned int order_count;

static unsigned int count_steps(const char *order, unsigned int length, char step)
{
	unsigned int count = 0;

	for (unsigned int i = 0; i < length; i++)
		count += order[i] == step;
	return count;
}

static bool may_follow(const char *order, unsigned int length, char step)
{
	unsigned int count = count_steps(order, length, step);

	switch (step) {
	case 'a':
		return count < 3;
	case 'b':	/* the readers are alike: a is the first one to take a step */
		return count < 3 && count_steps(order, length, 'a');
	case 'l':
		return !count && count_steps(order, length, 'u');
	default:
		return !count;
	}
}

static void list_orders(char *order, unsigned int length)
{
	if (length == ORDER) {
		memcpy(orders[order_count++], order, ORDER);
		return;
	}
	for (const char *step = "abul"; *step; step++) {
		if (may_follow(order, length, *step)) {
			order[length] = *step;
			list_orders(order, length + 1);
		}
	}
}

static void run_orders(unsigned int count, uint64_t seed)
{
	char order[ORDER + 1] = "";

	list_orders(order, 0);
	random_begin(seed);
	for (unsigned int i = order_count - 1; i > 0; i--) {
		unsigned int other = random_below(i + 1);

		memcpy(order, orders[i], ORDER);
		memcpy(orders[i], orders[other], ORDER);
		memcpy(orders[other], order, ORDER);
	}
	if (!count || count > order_count)
		count = order_count;
	for (unsigned int i = 0; i < count; i++)
		run_order(orders[i]);
}

/* ---- at once ---- */

struct seen {
	atomic_ulong reads, gone, absent;
	atomic_bool wrong;
	char why[320];
};

static struct seen *seen;	/* by each reader */

__attribute__((noreturn))
static void race_reader(struct seen *mine, uint64_t seed)
{
	static struct listing listing;
	static char piece[4096];

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	random_begin(seed);
	for (;;) {
		int fd = open(path, O_RDONLY | O_CLOEXEC);
		ssize_t got = 0;

		if (fd < 0) {
			if (errno != ENOENT) {
				snprintf(mine->why, sizeof(mine->why), "open: %s", strerror(errno));
				break;
			}
			mine->absent++;
			sched_yield();
			continue;
		}
		listing_begin(&listing);
		for (unsigned int left = 1 + random_below(20); left > 0; left--) {
			got = read(fd, piece, 1 + random_below(sizeof(piece)));
			if (got <= 0 || !listing_feed(&listing, piece, got))
				break;
			mine->reads++;
		}
		if (got < 0 && errno != EIO) {
			snprintf(mine->why, sizeof(mine->why), "read: %s", strerror(errno));
			break;
		}
		mine->gone += got < 0;
		if (!got)
			listing_end(&listing);
		if (listing.why[0]) {
			memcpy(mine->why, listing.why, sizeof(mine->why));
			break;
		}
		close(fd);
	}
	mine->wrong = true;
	_exit(1);
}

/* Wait until each reader has made progress: one of the two sums has grown. */
static void wait_for_readers(bool loaded)
{
	unsigned long before[READERS];
	time_t end = now_s() + NOTICE_S;

	for (int i = 0; i < READERS; i++)
		before[i] = loaded ? seen[i].reads : seen[i].gone + seen[i].absent;
	for (int i = 0; i < READERS; i++) {
		while ((loaded ? seen[i].reads : seen[i].gone + seen[i].absent) == before[i]) {
			if (seen[i].wrong)
				errx(1, "a reader: %s", seen[i].why);
			if (now_s() > end)
				errx(1, "a reader has not noticed that the module is %s",
				     loaded ? "there" : "gone");
			sched_yield();
		}
	}
}

static void run_race(unsigned int cycles, uint64_t seed)
{
	pid_t readers[READERS];

	seen = mmap(NULL, READERS * sizeof(*seen), PROT_READ | PROT_WRITE,
		    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (seen == MAP_FAILED)
		err(1, "mmap");
	for (int i = 0; i < READERS; i++) {
		readers[i] = fork();
		if (readers[i] < 0)
			err(1, "fork");
		if (!readers[i])
			race_reader(&seen[i], seed + i);
	}
	/* before its readers, which outnumber the processors */
	if (setpriority(PRIO_PROCESS, 0, -10))
		err(1, "setpriority");
	for (unsigned int i = 0; i < cycles; i++) {
		load_module();
		wait_for_readers(true);
		unload_module();
		wait_for_readers(false);
	}
	for (int i = 0; i < READERS; i++) {
		kill(readers[i], SIGKILL);
		waitpid(readers[i], NULL, 0);
		if (seen[i].wrong)
			errx(1, "a reader: %s", seen[i].why);
		reads += seen[i].reads;
		gone += seen[i].gone;
		absent += seen[i].absent;
	}
}

/* ---- for other programs ---- */

/*
 * Unload as soon as the module can be unloaded.  With backend=export it may have a table to
 * give back, which waits for a slow close of a file: a FUSE server's, or a socket's.
 */
static void unload_when_free(void)
{
	time_t last = now_s() + HELD_S;

	while (syscall(SYS_delete_module, "cplayground", O_NONBLOCK)) {
		if (errno != EWOULDBLOCK || now_s() > last)
			err(1, "delete_module");
		usleep(1000);
	}
	unloadings++;
}

static void run_again(unsigned int seconds, unsigned int pause_ms)
{
	time_t end = now_s() + seconds;

	while (now_s() < end) {
		unload_when_free();
		load_module();
		usleep(1000 * pause_ms);
	}
}

int main(int argc, char **argv)
{
	unsigned long number;
	uint64_t second;
	pid_t container;

	if (argc != 6 && argc != 7)
		errx(2, "usage: unload orders|race|again <file> <module.ko> <n> <n> [parameters]");
	path = argv[2];
	module = open(argv[3], O_RDONLY | O_CLOEXEC);
	if (module < 0)
		err(1, "%s", argv[3]);
	number = strtoul(argv[4], NULL, 10);
	second = strtoull(argv[5], NULL, 10);
	if (argc == 7)
		parameters = argv[6];

	if (!strcmp(argv[1], "again")) {
		run_again(number, second);
		printf("%lu\n", unloadings);
		return 0;
	}
	container = hold_container();
	if (!strcmp(argv[1], "orders"))
		run_orders(number, second);
	else if (!strcmp(argv[1], "race"))
		run_race(number, second);
	else
		errx(2, "%s is none of orders, race, again", argv[1]);
	kill(container, SIGKILL);
	waitpid(container, NULL, 0);
	printf("%lu %lu %lu %lu\n", unloadings, reads, gone, absent);
	return 0;
}
