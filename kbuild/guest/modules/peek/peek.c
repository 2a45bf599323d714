// SPDX-License-Identifier: GPL-2.0-only
/*
 * What tests of the module need from inside the kernel.
 *
 *	insmod peek.ko fd=7		says where the objects behind a descriptor of insmod's are,
 *					and refuses to stay
 *	insmod peek.ko name=cplayground	takes that name in /proc
 *	insmod peek.ko watch=cat text=1,2
 *					watches the spin locks of a command called so, and
 *					the searches in bitmaps that are called from between
 *					these addresses, and says at its removal how many
 *					holds of a lock had a search, and what was the most
 *					under one: searches, and bits from the first one's
 *					start to the bitmap's end
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
MODULE_PARM_DESC(fd, "descriptor to look behind");

static char *name;
module_param(name, charp, 0);
MODULE_PARM_DESC(name, "name in /proc to take");

static struct proc_dir_entry *entry;
static const struct proc_ops nothing;

static char *watch;
module_param(watch, charp, 0);
MODULE_PARM_DESC(watch, "command to watch");

/* Others search bitmaps too: the timer's wheel, sets of processors, memory of each processor. */
static unsigned long text[2];
module_param_array(text, ulong, NULL, 0);
MODULE_PARM_DESC(text, "where the code of the module lies whose searches count");

#define DEPTH 16

/* The locks that the command holds; an interrupt's come and go above its own. */
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
	/* One that was released by another task after a switch stays: forget the oldest. */
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
	/* The very numbers that an id must not tell: they are what the test begins with. */
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

MODULE_DESCRIPTION("Looks behind a descriptor, or takes a name, for the tests of cplayground");
MODULE_LICENSE("GPL");
