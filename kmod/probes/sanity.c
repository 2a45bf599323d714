// SPDX-License-Identifier: GPL-2.0-only
/* Compiles against all usable kernel headers; if it fails, no other probe is tried. */
#include <linux/module.h>
#include <linux/sched.h>
#include <linux/fs.h>

int cpg_probe(struct task_struct *task);

int cpg_probe(struct task_struct *task)
{
	return task->pid;
}
