/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Race windows, widened on purpose.  A build for the lab (make CPG_LAB=1) waits at the places
 * where a mistake in the module would be a race.  The race then occurs within seconds.
 * Other builds contain none of this.
 */
#ifndef CPG_WINDOW_H
#define CPG_WINDOW_H

#ifdef CPG_LAB

#include <linux/atomic.h>
#include <linux/delay.h>
#include <linux/ktime.h>
#include <linux/moduleparam.h>

static unsigned int window_us;
module_param(window_us, uint, 0644);
MODULE_PARM_DESC(window_us, "Microseconds to wait in each race window, up to 2000 (default: 0)");

/* Busy-waits, so it may be called under any lock. */
static inline void cpg_race_window(void)
{
	unsigned int us = min(READ_ONCE(window_us), 2000U);

	if (us)
		udelay(us);
}

/*
 * Sleeps fifty times as long: time for a process to end, and for a grace period.  It is for
 * mutants that hold neither a lock nor a reference.
 */
static inline void cpg_grace_window(void)
{
	unsigned int us = min(READ_ONCE(window_us), 2000U);

	if (us)
		usleep_range(50 * us, 51 * us);
}

/*
 * How long a table's lock is held: the longest hold, and the sum of all.  The numbers are
 * right for one reader at a time.  Writing 0 to the parameters starts a new measurement.
 */
static u64 hold_longest_ns, hold_sum_ns, holds, hold_began_ns;
module_param(hold_longest_ns, ullong, 0644);
MODULE_PARM_DESC(hold_longest_ns, "Longest hold of a table's lock, in nanoseconds");
module_param(hold_sum_ns, ullong, 0644);
MODULE_PARM_DESC(hold_sum_ns, "Sum of all holds, in nanoseconds");
module_param(holds, ullong, 0644);
MODULE_PARM_DESC(holds, "Number of holds");

static inline void cpg_hold_begins(void)
{
	WRITE_ONCE(hold_began_ns, ktime_get_mono_fast_ns());
}

static inline void cpg_hold_ends(void)
{
	u64 took = ktime_get_mono_fast_ns() - READ_ONCE(hold_began_ns);

	WRITE_ONCE(hold_longest_ns, max(READ_ONCE(hold_longest_ns), took));
	WRITE_ONCE(hold_sum_ns, READ_ONCE(hold_sum_ns) + took);
	WRITE_ONCE(holds, READ_ONCE(holds) + 1);
}

#else

static inline void cpg_race_window(void)
{
}

static inline void cpg_hold_begins(void)
{
}

static inline void cpg_hold_ends(void)
{
}

static inline void cpg_grace_window(void)
{
}

#endif

#endif
