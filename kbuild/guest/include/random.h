/* SPDX-License-Identifier: GPL-2.0-only */
/* Random numbers that a seed decides (xorshift64*), so that a run can be repeated. */
#ifndef RANDOM_H
#define RANDOM_H

#include <stdint.h>

static uint64_t random_state = 1;

static inline void random_begin(uint64_t seed)
{
	/* spread, so that neighbouring seeds differ from the first number on; never 0 */
	random_state = (seed + 1) * 0x9e3779b97f4a7c15ULL | 1;
}

static inline uint64_t random_next(void)
{
	random_state ^= random_state >> 12;
	random_state ^= random_state << 25;
	random_state ^= random_state >> 27;
	return random_state * 0x2545f4914f6cdd1dULL;
}

/* From 0 to limit - 1; limit is not 0. */
static inline uint64_t random_below(uint64_t limit)
{
	return (random_next() >> 11) % limit;
}

#endif
