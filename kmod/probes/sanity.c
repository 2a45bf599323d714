// SPDX-License-Identifier: GPL-2.0-only
/* Compiles against any usable kernel headers; if not, no other probe says anything. */
#include <linux/module.h>
#include <linux/sched.h>
#include <linux/fs.h>

int cpg_probe(struct task_struct *task);

int cpg_probe(struct task_struct *task)
{
	return task->pid;
}
