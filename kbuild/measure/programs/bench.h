/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The common part of the benchmark's programs: repeat a reading.
 *
 *	<program> passes <n> ...	read once, then n times: "pass <ns> <lines> <bytes>"
 *	<program> loop <cpu> ...	read on that CPU until standard input ends
 *
 * A loop prints "reading" after the first pass, and "looped <passes>" at its end.
 */
#ifndef BENCH_H
#define BENCH_H

#include <err.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

struct reading {
	unsigned long long lines, bytes;
};

/* Read everything once; count lines only if `count` is set. */
typedef void (*read_all)(struct reading *reading, int count);

static inline unsigned long long now_of(clockid_t clock)
{
	struct timespec time;

	if (clock_gettime(clock, &time))
		err(1, "clock_gettime");
	return time.tv_sec * 1000000000ULL + time.tv_nsec;
}

static inline unsigned long long now(void)
{
	return now_of(CLOCK_MONOTONIC);
}

static inline void pin(unsigned int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		err(1, "CPU %u", cpu);
}

static inline unsigned long number(const char *text)
{
	char *end;
	unsigned long value = strtoul(text, &end, 10);

	if (end == text || *end)
		errx(2, "not a number: %s", text);
	return value;
}

/* The first pass is not timed: it warms up the caches and counts the lines. */
static inline void time_passes(unsigned long passes, read_all fn)
{
	struct reading first = { 0 };

	fn(&first, 1);
	for (unsigned long i = 0; i < passes; i++) {
		struct reading again = { 0 };
		unsigned long long began = now(), ns;

		fn(&again, 0);
		ns = now() - began;
		/* The load does not change, so another length is a fault. */
		if (again.bytes != first.bytes)
			errx(1, "%llu bytes, then %llu", first.bytes, again.bytes);
		printf("pass %llu %llu %llu\n", ns, first.lines, first.bytes);
	}
}

static inline void loop_passes(unsigned int cpu, read_all fn)
{
	struct pollfd input = { .fd = 0, .events = POLLIN };
	unsigned long passes = 0;

	pin(cpu);
	do {
		struct reading reading = { 0 };

		fn(&reading, 0);
		if (!passes++) {
			printf("reading\n");
			fflush(stdout);
		}
	} while (!poll(&input, 1, 0));
	printf("looped %lu\n", passes);
}

/* Run the mode that the first two arguments select. */
static inline void bench_main(char **argv, read_all fn)
{
	if (!strcmp(argv[1], "passes"))
		time_passes(number(argv[2]), fn);
	else if (!strcmp(argv[1], "loop"))
		loop_passes(number(argv[2]), fn);
	else
		errx(2, "neither passes nor loop: %s", argv[1]);
}

#endif
