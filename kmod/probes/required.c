// SPDX-License-Identifier: GPL-2.0
/* What the module cannot do without: proc_read_iter came with Linux 5.10. */
#include <linux/module.h>
#include <linux/pid_namespace.h>
#include <linux/proc_fs.h>
#include <linux/radix-tree.h>
#include <linux/seq_file.h>
#include <linux/siphash.h>

bool cpg_probe(struct inode *inode);

bool cpg_probe(struct inode *inode)
{
	static const struct proc_ops ops = {
		.proc_read_iter = seq_read_iter,
	};
	struct radix_tree_iter iter;

	radix_tree_iter_init(&iter, 1);
	return ops.proc_read_iter && proc_pid_ns(inode->i_sb) == &init_pid_ns &&
	       radix_tree_next_chunk(&init_pid_ns.idr.idr_rt, &iter, 0);
}
