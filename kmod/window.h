/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Race windows, widened on purpose: a build for the lab (make CPG_LAB=1) waits where a
 * mistake of ours would meet a change by someone else, so that it is met within seconds.
 * Any other build contains nothing of this.
 */
#ifndef CPG_WINDOW_H
#define CPG_WINDOW_H

#ifdef CPG_LAB

#include <linux/delay.h>
#include <linux/moduleparam.h>

static unsigned int window_us;
module_param(window_us, uint, 0644);
MODULE_PARM_DESC(window_us, "Microseconds to wait in each race window, up to 2000 (default: 0)");

/* Waits busily, so it is right under any lock. */
static inline void cpg_race_window(void)
{
	unsigned int us = min(READ_ONCE(window_us), 2000U);

	if (us)
		udelay(us);
}

/*
 * Sleeps fifty times as long, so that a process ends meanwhile, and a grace period fits
 * in: for mutants, whose mistake is to hold nothing.
 */
static inline void cpg_grace_window(void)
{
	unsigned int us = min(READ_ONCE(window_us), 2000U);

	if (us)
		usleep_range(50 * us, 51 * us);
}

#else

static inline void cpg_race_window(void)
{
}

static inline void cpg_grace_window(void)
{
}

#endif

#endif
