// SPDX-License-Identifier: GPL-2.0-only
/* The interfaces that the module requires; the newest of them came with Linux 5.10. */
#include <linux/dcache.h>
#include <linux/fs.h>
#include <linux/module.h>
#include <linux/pid_namespace.h>
#include <linux/proc_fs.h>
#include <linux/radix-tree.h>
#include <linux/sched/signal.h>
#include <linux/seq_file.h>
#include <linux/siphash.h>

bool cpg_probe(struct inode *inode, struct file *file, struct task_struct *task);

bool cpg_probe(struct inode *inode, struct file *file, struct task_struct *task)
{
	static const struct proc_ops ops = {
		.proc_read_iter = seq_read_iter,
	};
	struct radix_tree_iter iter;

	radix_tree_iter_init(&iter, 1);
	return ops.proc_read_iter && proc_pid_ns(inode->i_sb) == &init_pid_ns &&
	       radix_tree_next_chunk(&init_pid_ns.idr.idr_rt, &iter, 0) &&
	       d_path(&file->f_path, NULL, 0) && task->start_boottime &&
	       task->signal->pids[PIDTYPE_TGID];
}
