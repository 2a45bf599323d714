// SPDX-License-Identifier: GPL-2.0
/*
 * Count the kernel's objects in use: objects of slab caches, open files, tasks.
 *
 *	counts				count once
 *	counts <ms> <name>=<limit>...	repeat until no count is above its limit, or until none of
 *					those above has fallen for this time
 *	counts kmalloc ...		count the objects of kmalloc() too
 *
 * Prints "<name> <number>" for each count, then "end <lines>".  Slab objects are counted only
 * if the allocator checks itself, because the numbers are exact only then.  Tasks and pids are
 * counted without those of living threads, so that kernel threads may start and end.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define SLAB "/sys/kernel/slab"
#define PAUSE_NS 100000000L
#define LOOKS 6

static const struct kind {
	const char *name;
	const char *caches[2];	/* patterns */
	int per_thread;
	bool asked;		/* counted only on request */
} kinds[] = {
	{ "struct file", { "filp" }, 0, false },
	{ "struct files_struct", { "files_cache" }, 0, false },
	{ "struct task_struct", { "task_struct" }, 1, false },
	/* One cache for each depth of namespaces. */
	{ "struct pid", { "pid", "pid_[0-9]" }, 1, false },
	{ "struct pid_namespace", { "pid_namespace" }, 0, false },
	{ "struct seq_file", { "seq_file" }, 0, false },
	/* Accounted to a cgroup, and not accounted. */
	{ "kmalloc-cg", { "kmalloc-cg-*" }, 0, true },
	{ "kmalloc", { "kmalloc-[0-9]*" }, 0, true },
};

#define KINDS (sizeof(kinds) / sizeof(kinds[0]))

static long values[KINDS + 1];
static int exact;
static bool asked;

/* Return the first number of a small file after `skip`, or -1 if there is none. */
static long number_in(const char *path, const char *skip)
{
	char text[256], *at = text;
	ssize_t got;
	int fd = open(path, O_RDONLY);

	if (fd < 0)
		return -1;
	got = read(fd, text, sizeof(text) - 1);
	close(fd);
	if (got <= 0)
		return -1;
	text[got] = '\0';
	if (skip)
		at = strstr(text, skip);
	return at ? strtol(at + (skip ? strlen(skip) : 0), NULL, 10) : -1;
}

/*
 * KASAN keeps freed objects from being used again.  A shrink frees them, directly before they
 * are counted: opening these files allocates and frees some objects too.
 */
static void shrink(const char *cache)
{
	char path[128];
	int fd;

	snprintf(path, sizeof(path), "%s/shrink", cache);
	fd = open(path, O_WRONLY);
	if (fd < 0)
		return;	/* the cache is gone */
	if (write(fd, "1", 1) != 1)
		err(1, "%s", path);
	close(fd);
}

static long objects(const char *cache)
{
	char path[128];
	long count;

	shrink(cache);
	snprintf(path, sizeof(path), "%s/objects", cache);
	count = number_in(path, NULL);
	return count < 0 ? 0 : count;
}

static long objects_of(const char *pattern)
{
	char path[128];
	long sum = 0;
	glob_t found;

	snprintf(path, sizeof(path), SLAB "/%s", pattern);
	if (glob(path, 0, NULL, &found))
		return 0;
	for (size_t i = 0; i < found.gl_pathc; i++)
		sum += objects(found.gl_pathv[i]);
	globfree(&found);
	return sum;
}

static bool counted(size_t i)
{
	return i == KINDS || (exact && (asked || !kinds[i].asked));
}

static void measure(void)
{
	long threads;

	values[KINDS] = number_in("/proc/sys/fs/file-nr", NULL);
	if (values[KINDS] < 0)
		err(1, "file-nr");
	if (!exact)
		return;
	threads = number_in("/proc/loadavg", "/");
	if (threads < 0)
		err(1, "loadavg");
	for (size_t i = 0; i < KINDS; i++) {
		values[i] = kinds[i].per_thread ? -threads : 0;
		for (size_t k = 0; counted(i) && k < 2 && kinds[i].caches[k]; k++)
			values[i] += objects_of(kinds[i].caches[k]);
	}
}

static const char *name_of(size_t i)
{
	return i < KINDS ? kinds[i].name : "open files";
}

static bool above(size_t i, char **limits)
{
	size_t length = strlen(name_of(i));

	for (char **limit = limits; counted(i) && *limit; limit++)
		if (!strncmp(*limit, name_of(i), length) && (*limit)[length] == '=')
			return values[i] > strtol(*limit + length + 1, NULL, 10);
	return false;
}

static bool any_above(char **limits)
{
	for (size_t i = 0; i <= KINDS; i++)
		if (above(i, limits))
			return true;
	return false;
}

/* Tell whether one of the counts above their limits has reached a new minimum. */
static bool any_falls(char **limits, long *lowest)
{
	bool falls = false;

	for (size_t i = 0; i <= KINDS; i++) {
		if (!above(i, limits) || values[i] >= lowest[i])
			continue;
		lowest[i] = values[i];
		falls = true;
	}
	return falls;
}

static long now_ms(void)
{
	struct timespec now;

	if (clock_gettime(CLOCK_MONOTONIC, &now))
		err(1, "clock_gettime");
	return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/*
 * Objects that are about to be freed disappear one after another; leaked ones stay.  A guest
 * that gets little processor time has a number of attempts, in addition to the time.
 */
static void settle(long patience_ms, char **limits)
{
	const struct timespec pause = { 0, PAUSE_NS };
	long lowest[KINDS + 1], since = now_ms();
	int looks = 0;

	memcpy(lowest, values, sizeof(lowest));
	while (any_above(limits) && (looks < LOOKS || now_ms() - since < patience_ms)) {
		nanosleep(&pause, NULL);
		measure();
		looks++;
		if (any_falls(limits, lowest)) {
			looks = 0;
			since = now_ms();
		}
	}
}

int main(int argc, char **argv)
{
	size_t lines = 0;

	asked = argc > 1 && !strcmp(argv[1], "kmalloc");
	argc -= asked;
	argv += asked;
	exact = number_in(SLAB "/filp/sanity_checks", NULL) == 1;
	measure();
	if (argc > 1)
		settle(strtol(argv[1], NULL, 10), argv + 2);
	for (size_t i = 0; i <= KINDS; i++)
		if (counted(i) && ++lines)
			printf("%s %ld\n", name_of(i), values[i]);
	printf("end %zu\n", lines);
	return 0;
}
