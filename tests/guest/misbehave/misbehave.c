// SPDX-License-Identifier: GPL-2.0-only
/*
 * Does on purpose what the harness must notice: insmod misbehave.ko what=warn.
 * The load is refused afterwards, so that nothing has to be unloaded.
 */
#include <linux/bug.h>
#include <linux/errno.h>
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/preempt.h>
#include <linux/string.h>

static char *what = "";
module_param(what, charp, 0);
MODULE_PARM_DESC(what, "warn, oops, bug or lockup");

static int __init misbehave_init(void)
{
	if (!strcmp(what, "warn")) {
		WARN(1, "misbehave: as asked for\n");
	} else if (!strcmp(what, "oops")) {
		*(volatile int *)8 = 0;
	} else if (!strcmp(what, "bug")) {
		BUG();
	} else if (!strcmp(what, "lockup")) {
		preempt_disable();
		for (;;)
			cpu_relax();
	} else {
		return -EINVAL;
	}
	return -ECANCELED;
}
module_init(misbehave_init);

MODULE_DESCRIPTION("Misbehaves so that the test harness can be tested");
MODULE_LICENSE("GPL");
