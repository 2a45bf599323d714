// SPDX-License-Identifier: GPL-2.0-only
/*
 * Facts from inside the kernel, for tests of the module.
 *
 *	insmod peek.ko fd=7		prints the addresses of the objects behind a file
 *					descriptor of insmod, and refuses the load
 *	insmod peek.ko name=cplayground	takes that name in /proc
 *	insmod peek.ko watch=cat text=1,2
 *					watches the spin locks of a command with that name,
 *					and the searches in bitmaps by callers between these
 *					addresses; at its removal it prints how many holds of
 *					a lock had a search, and the most under one hold:
 *					searches, and bits from the first search's start to
 *					the bitmap's end
 */
#include <linux/errno.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/pid_namespace.h>
#include <linux/proc_fs.h>
#include <linux/ptrace.h>
#include <linux/sched.h>
#include <linux/string.h>

static int fd = -1;
module_param(fd, int, 0);
MODULE_PARM_DESC(fd, "descriptor whose objects are printed");

static char *name;
module_param(name, charp, 0);
MODULE_PARM_DESC(name, "name in /proc to take");

static struct proc_dir_entry *entry;
static const struct proc_ops nothing;

static char *watch;
module_param(watch, charp, 0);
MODULE_PARM_DESC(watch, "command to watch");

/* The timer wheel, sets of processors and per-CPU memory also search bitmaps. */
static unsigned long text[2];
module_param_array(text, ulong, NULL, 0);
MODULE_PARM_DESC(text, "begin and end of the code whose searches count");

#define DEPTH 16

/* The locks that the command holds; those of an interrupt come and go on top. */
static struct hold {
	unsigned long lock, searches, slots;
} held[DEPTH];
static unsigned int depth;
static unsigned long holds, most_searches, most_slots;

static bool is_watched(void)
{
	return !strcmp(current->comm, watch);
}

static int on_lock(struct kprobe *probe, struct pt_regs *regs)
{
	if (!is_watched())
		return 0;
	/* A lock that another task released after a switch stays here: forget the oldest. */
	if (depth == DEPTH)
		memmove(held, held + 1, --depth * sizeof(held[0]));
	held[depth++] = (struct hold){ .lock = regs_get_kernel_argument(regs, 0) };
	return 0;
}

static int on_unlock(struct kprobe *probe, struct pt_regs *regs)
{
	unsigned long lock = regs_get_kernel_argument(regs, 0);
	unsigned int at;

	if (!is_watched())
		return 0;
	for (at = depth; at > 0 && held[at - 1].lock != lock; at--)
		;
	if (!at)
		return 0;
	depth = at - 1;
	if (held[depth].searches)
		holds++;
	most_searches = max(most_searches, held[depth].searches);
	most_slots = max(most_slots, held[depth].slots);
	return 0;
}

static int on_search(struct kprobe *probe, struct pt_regs *regs)
{
	unsigned long end = regs_get_kernel_argument(regs, 1);
	unsigned long from = regs_get_kernel_argument(regs, 2);
	unsigned long caller = regs_get_kernel_stack_nth(regs, 0);

	if (is_watched() && depth && caller >= text[0] && caller < text[1] && from < end) {
		if (!held[depth - 1].searches++)
			held[depth - 1].slots = end - from;
	}
	return 0;
}

static struct kprobe probes[] = {
	{ .symbol_name = "_raw_spin_lock", .pre_handler = on_lock },
	{ .symbol_name = "_raw_spin_unlock", .pre_handler = on_unlock },
	{ .symbol_name = "_find_next_bit", .pre_handler = on_search },
};
static struct kprobe *all_probes[] = { &probes[0], &probes[1], &probes[2] };

static int __init peek_init(void)
{
	struct pid_namespace *ns = task_active_pid_ns(current);
	struct file *file;

	if (watch)
		return register_kprobes(all_probes, ARRAY_SIZE(all_probes));
	if (name) {
		entry = proc_create(name, 0400, NULL, &nothing);
		return entry ? 0 : -EBUSY;
	}
	file = fget(fd);
	if (!file)
		return -EBADF;
	/* An id must not reveal these numbers, so the test needs them. */
	pr_info("peek: file %px inode %px number %llu namespace %px start %llu\n", file,
		file_inode(file),
		(u64)file_inode(file)->i_ino ^ (u64)file_inode(file)->i_generation << 32, ns,
		ns->child_reaper->start_boottime);
	fput(file);
	return -ECANCELED;
}
module_init(peek_init);

static void __exit peek_exit(void)
{
	if (watch) {
		unregister_kprobes(all_probes, ARRAY_SIZE(all_probes));
		pr_info("peek: holds %lu searches %lu slots %lu\n", holds, most_searches,
			most_slots);
	}
	proc_remove(entry);
}
module_exit(peek_exit);

MODULE_DESCRIPTION("Prints facts from inside the kernel, for the tests of cplayground");
MODULE_LICENSE("GPL");
