// SPDX-License-Identifier: GPL-2.0
/*
 * /proc/cplayground: the processes of every container and their open files.
 *
 * One record for each process outside the initial PID namespace:
 *
 *	<namespace id>\t<global pid>\t<pid>\t<ppid>\t<pgid>\t<command>\n
 *	<fd>\t<close-on-exec>\t<open file id>\t<position>\t<flags>\t<path>\n
 *	...
 *	\n
 *
 * pid, ppid and pgid are those of the process's own (innermost) namespace; ppid
 * and pgid are 0 for a parent or a group that lives outside of it.  Flags are
 * octal with a leading 0.  Control bytes and backslashes of a command or a path
 * are written as \ooo, so that no name can look like a record.  An id is 64 hex
 * digits, equal for equal objects while the module stays loaded.  With
 * fields=extended there are three more fields between pgid and command: the state
 * of the process's leader as in /proc/PID/stat, and the masks of its blocked and
 * of its pending signals, bit n for signal n, up to 31.
 *
 * The reader's place is two numbers, a process and a slot of its table, and a
 * reference on the struct pid.  Each step copies a bounded batch of descriptors
 * under the locks that the kernel itself takes for /proc/PID/fdinfo, and formats
 * it when they have been dropped.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/ctype.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/idr.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/pid.h>
#include <linux/pid_namespace.h>
#include <linux/proc_fs.h>
#include <linux/radix-tree.h>
#include <linux/random.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/seq_file.h>
#include <linux/siphash.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/string.h>
#include <linux/uidgid.h>
#include <linux/user_namespace.h>

#include "compat.h"
#include "window.h"

#define CPG_NAME "cplayground"

/* Descriptors copied under one hold of a table's lock. */
#define CPG_BATCH 32
/* Slots looked at under one hold of a table's lock: 8 KiB of its bitmap. */
#define CPG_SLOTS 65536U
/* Threads without a table, and numbers of pids, passed over in one RCU section. */
#define CPG_THREADS 512
#define CPG_PIDS 512
/* The longest line: a path with each byte of it escaped, and some 150 bytes. */
#define CPG_LONGEST (4 * PATH_MAX + 256)
/*
 * Being larger than the longest line, the buffer is never grown: a container
 * cannot choose how much memory a reader takes.
 */
#define CPG_BUFFER SZ_64K

/* A position: the pid in the upper half, what of it in the lower. */
#define CPG_HEADER 0U
#define CPG_FIRST_FD 1U		/* descriptor n is CPG_FIRST_FD + n */
#define CPG_TRAILER U32_MAX
#define CPG_EOF INT_MAX		/* above every pid */

/*
 * How a file table is reached: "stock" uses it under task_lock() and never touches
 * its count; "export" takes a reference, where the kernel exports what it takes.
 */
static char *backend = CPG_DEFAULT;
module_param(backend, charp, 0444);
MODULE_PARM_DESC(backend, "How file tables are reached, one of: " CPG_BACKENDS " (default: "
		 CPG_DEFAULT ")");

static unsigned int file_uid;
module_param(file_uid, uint, 0444);
MODULE_PARM_DESC(file_uid, "User that owns /proc/" CPG_NAME " (default: 0)");

static unsigned int file_gid;
module_param(file_gid, uint, 0444);
MODULE_PARM_DESC(file_gid, "Group that owns /proc/" CPG_NAME " (default: 0)");

static ushort file_mode = 0400;
module_param(file_mode, ushort, 0444);
MODULE_PARM_DESC(file_mode, "Permissions of /proc/" CPG_NAME ", read bits only (default: 0400)");

static char *fields = "basic";
module_param(fields, charp, 0444);
MODULE_PARM_DESC(fields, "Fields of a process, one of: basic extended (default: basic)");

static bool cpg_export __ro_after_init;
static bool cpg_extended __ro_after_init;
static siphash_key_t cpg_keys[4] __ro_after_init;
static struct proc_dir_entry *cpg_entry;
static bool cpg_leaving;	/* set once, before the entry is removed */

enum cpg_line { CPG_LINE_HEADER, CPG_LINE_BATCH, CPG_LINE_TRAILER };

/* One descriptor as it was while the table's lock was held. */
struct cpg_fd {
	struct file *file;	/* a reference */
	unsigned int fd;
	bool cloexec;
};

/* One reader; protected by the seq_file's own mutex. */
struct cpg_reader {
	enum cpg_line line;	/* what show() prints */
	struct pid *pid;	/* a reference, from header to trailer; NULL outside */

	/* The header, copied when the process was found. */
	pid_t nr_ns;
	pid_t ppid_ns;
	pid_t pgid_ns;
	char comm[TASK_COMM_LEN];
	char state;
	u32 blocked;
	u32 pending;

	/* The batch: entries at..filled-1 are still to be shown, all hold their file. */
	struct cpg_fd batch[CPG_BATCH];
	unsigned int at;
	unsigned int filled;
	unsigned int slot;	/* where the next batch begins */
	pid_t thread;		/* no earlier one has a table; 0 for the leader */
	bool more;		/* the table had slots from there on */

	/* For file_path(), and what cpg_write_name() reads behind its end. */
	char path[PATH_MAX + sizeof(u64)];
};

/*
 * Output.  These write where the caller has seen room for the longest line, and
 * return the end of what they wrote.
 */

/* Eight bytes at once, as one number. */
#define CPG_EACH(byte) (~0ULL / 0xff * (byte))

/* Write the eight hexadecimal digits of a word. */
static char *cpg_write_hex(char *p, u32 word)
{
	u64 digits = word, letters;
	__be64 text;

	/* From 32 bits to eight bytes of four bits each, in halves. */
	digits = (digits & 0xffff0000ULL) << 16 | (digits & 0xffffULL);
	digits = (digits & 0x0000ff000000ff00ULL) << 8 | (digits & 0x000000ff000000ffULL);
	digits = (digits & 0x00f000f000f000f0ULL) << 4 | (digits & 0x000f000f000f000fULL);
	letters = (digits + CPG_EACH(6)) >> 4 & CPG_EACH(1);
	text = cpu_to_be64(digits + CPG_EACH('0') + letters * ('a' - '0' - 10));
	memcpy(p, &text, sizeof(text));
	return p + sizeof(text);
}

/* Write an id: a keyed hash, so that it tells nothing about either number. */
static char *cpg_write_id(char *p, u64 object, u64 salt)
{
	u64 word;
	int i;

	for (i = 0; i < 4; i++) {
		word = siphash_2u64(object, salt, &cpg_keys[i]);
		p = cpg_write_hex(p, upper_32_bits(word));
		p = cpg_write_hex(p, lower_32_bits(word));
	}
	return p;
}

static char *cpg_write_decimal(char *p, s64 number)
{
	u64 value = number, rest;
	char *end;

	if (number < 0) {
		*p++ = '-';
		value = -value;
	}
	end = p;
	for (rest = value; rest > 9; rest /= 10)
		end++;
	p = end + 1;
	for (; value > 9; value /= 10)
		*end-- = '0' + value % 10;
	*end = '0' + value;
	return p;
}

/* Write a number as C writes it in octal. */
static char *cpg_write_octal(char *p, u32 value)
{
	int shift = (fls(value | 1) - 1) / 3 * 3;

	for (*p++ = '0'; shift >= 0; shift -= 3)
		*p++ = '0' + (value >> shift & 7);
	return p;
}

/* Whether one of eight bytes is a control byte (NUL too) or a backslash. */
static bool cpg_any_special(u64 bytes)
{
	u64 low = bytes & CPG_EACH(0x7f), plain;

	/* No sum passes 0xff, so each says in its byte's highest bit what holds there. */
	plain = (low + CPG_EACH(0x60)) & ~(low + CPG_EACH(1)) &
		((low ^ CPG_EACH('\\')) + CPG_EACH(0x7f));
	return ~(plain | bytes) & CPG_EACH(0x80);
}

/*
 * Write a name with control bytes and backslashes as \ooo; every other byte passes.
 * Up to seven bytes behind its end are read.
 */
static char *cpg_write_name(char *p, const char *name)
{
	const char *end;
	u64 bytes;

	for (;;) {
		memcpy(&bytes, name, sizeof(bytes));
		if (!cpg_any_special(bytes)) {
			memcpy(p, &bytes, sizeof(bytes));
			p += sizeof(bytes);
			name += sizeof(bytes);
			continue;
		}
		for (end = name + sizeof(bytes); name < end; name++) {
			unsigned char c = *name;

			if (!c)
				return p;
			if (iscntrl(c) || c == '\\') {
				*p++ = '\\';
				*p++ = '0' + (c >> 6);
				*p++ = '0' + ((c >> 3) & 7);
				c = '0' + (c & 7);
			}
			*p++ = c;
		}
	}
}

static char *cpg_write_header(char *p, struct cpg_reader *r)
{
	/* A struct pid keeps its namespace, and neither it nor its numbers change. */
	struct pid_namespace *ns = ns_of_pid(r->pid);

	p = cpg_write_id(p, (unsigned long)ns, ns->ns.inum);
	*p++ = '\t';
	p = cpg_write_decimal(p, pid_nr(r->pid));
	*p++ = '\t';
	p = cpg_write_decimal(p, r->nr_ns);
	*p++ = '\t';
	p = cpg_write_decimal(p, r->ppid_ns);
	*p++ = '\t';
	p = cpg_write_decimal(p, r->pgid_ns);
	*p++ = '\t';
	if (cpg_extended) {
		*p++ = r->state;
		*p++ = '\t';
		p = cpg_write_decimal(p, r->blocked);
		*p++ = '\t';
		p = cpg_write_decimal(p, r->pending);
		*p++ = '\t';
	}
	return cpg_write_name(p, r->comm);
}

static char *cpg_write_file(char *p, struct cpg_reader *r)
{
	struct cpg_fd *entry = &r->batch[r->at];
	struct file *file = entry->file;
	char *path;

	cpg_race_window();
	path = file_path(file, r->path, PATH_MAX);
	p = cpg_write_decimal(p, entry->fd);
	*p++ = '\t';
	*p++ = '0' + entry->cloexec;
	*p++ = '\t';
	/*
	 * A freed struct file is soon used again for another one.  The inode stays
	 * the same as long as the open file exists, and tells most of these apart.
	 */
	p = cpg_write_id(p, (unsigned long)file, (unsigned long)file_inode(file));
	*p++ = '\t';
	/* Both change under locks of the writer's own; fs/proc/fd.c takes neither. */
	p = cpg_write_decimal(p, READ_ONCE(file->f_pos));
	*p++ = '\t';
	p = cpg_write_octal(p, READ_ONCE(file->f_flags));
	*p++ = '\t';
	/* The only failure is a path of PATH_MAX bytes or more, as with readlink(2). */
	return cpg_write_name(p, IS_ERR(path) ? "(path too long)" : path);
}

/*
 * Write the lines of the batch, and drop the reference on each file with its line: kept
 * for the rest of the batch it would delay the file's closing.  May drop the last one,
 * so: no lock, no RCU.  Where the room ends, returns NULL if the batch is to be @whole,
 * else the end of what was written.
 */
static char *cpg_write_batch(char *p, const char *end, struct cpg_reader *r, bool whole)
{
	while (r->at < r->filled) {
		if (end - p < CPG_LONGEST)
			return whole ? NULL : p;
		p = cpg_write_file(p, r);
		*p++ = '\n';
		fput(r->batch[r->at++].file);
	}
	return p;
}

/*
 * A batch is one item, so that its descriptors are of one moment for the reader too: the
 * core keeps what it has of an item as text, and what has no room behind other items it
 * forgets and lets cpg_start() look up again.  Only a batch too long for an empty buffer
 * is cut, since the buffer is not to grow.
 */
static int cpg_show(struct seq_file *m, void *v)
{
	struct cpg_reader *r = v;
	char *start, *p = NULL;
	size_t room = seq_get_buf(m, &start);

	if (room >= CPG_LONGEST) {
		switch (r->line) {
		case CPG_LINE_HEADER:
			p = cpg_write_header(start, r);
			*p++ = '\n';
			break;
		case CPG_LINE_BATCH:
			p = cpg_write_batch(start, start + room, r, m->count > 0);
			break;
		case CPG_LINE_TRAILER:
			p = start;
			*p++ = '\n';
			break;
		}
	}
	seq_commit(m, p ? p - start : -1);
	return 0;
}

/*
 * File tables.
 */

/* Drop the references of the batch.  May be the last ones, so: no lock, no RCU. */
static void cpg_drop_batch(struct cpg_reader *r)
{
	while (r->at < r->filled)
		fput(r->batch[r->at++].file);
	r->at = 0;
	r->filled = 0;
}

/*
 * Copy a batch, from r->slot on; takes a reference on each file.  The caller
 * guarantees that the table stays: by a reference, or by task_lock() of a task
 * that uses it.
 *
 * file_lock protects the table's bitmaps, its slots, and the reference that
 * each slot holds on its file.  get_file() is therefore right here, also where
 * files are freed without a grace period.
 */
static void cpg_scan(struct cpg_reader *r, struct files_struct *files)
{
	struct fdtable *fdt;
	unsigned int end, fd;
	struct file *file;

	cpg_race_window();
	spin_lock(&files->file_lock);
	fdt = files_fdtable(files);
	end = min(fdt->max_fds, r->slot + CPG_SLOTS);
	for (fd = r->slot; r->filled < CPG_BATCH; fd++) {
		fd = find_next_bit(fdt->open_fds, end, fd);
		if (fd >= end)
			break;
		file = rcu_dereference_check_fdtable(files, fdt->fd[fd]);
		if (!file)	/* reserved by an open() that has not finished */
			continue;
		r->batch[r->filled++] = (struct cpg_fd){
			.file = get_file(file),
			.fd = fd,
			.cloexec = test_bit(fd, fdt->close_on_exec),
		};
	}
	r->slot = fd;
	r->more = fd < fdt->max_fds;
	spin_unlock(&files->file_lock);
}

/*
 * task_lock protects task->files: the task clears or replaces it only with this
 * lock held, so its own reference keeps the table while we hold it.  The order
 * task_lock, file_lock is that of fs/proc/fd.c.  Returns false for no table.
 */
static bool cpg_scan_task(struct cpg_reader *r, struct task_struct *task)
{
	struct files_struct *files;

	task_lock(task);
	files = task->files;
	if (files)
		cpg_scan(r, files);
	task_unlock(task);
	return files;
}

/*
 * Return the thread to go on with: the one that r->thread names, or the leader.
 * Called under RCU, which keeps both.
 *
 * A thread that has no table gets none again, and makes no threads.  So a thread
 * that is gone meanwhile costs a walk from the leader on, and no walk is the last
 * one's equal.
 */
static struct task_struct *cpg_thread(struct cpg_reader *r, struct task_struct *leader)
{
	struct task_struct *task;

	if (!r->thread)
		return leader;
	task = pid_task(find_pid_ns(r->thread, &init_pid_ns), PIDTYPE_PID);
	return task && same_thread_group(task, leader) ? task : leader;
}

/*
 * Copy the batch from r->slot on.  The table is the leader's; a leader that has
 * exited before its threads has none, then it is that of the first one with a
 * table.  An empty batch with r->more set only means that the step was used up.
 *
 * RCU keeps the tasks: none is freed before rcu_read_unlock().
 */
static void cpg_step(struct cpg_reader *r)
{
	struct task_struct *leader, *task;
	struct files_struct *files = NULL;
	int left = CPG_THREADS;

	r->more = false;
	rcu_read_lock();
	leader = pid_task(r->pid, PIDTYPE_TGID);
	if (!leader)
		goto out;
	cpg_race_window();
	task = cpg_thread(r, leader);
	list_for_each_entry_from_rcu(task, &leader->signal->thread_head, thread_node) {
		if (task != leader)
			r->thread = task_pid_nr(task);
		if (!left--) {
			r->more = true;
			break;
		}
		if (cpg_export) {
			files = cpg_get_table(task);
			if (files)
				break;
		} else if (cpg_scan_task(r, task)) {
			break;
		}
	}
out:
	rcu_read_unlock();
	if (files) {
		/* A program that execs meanwhile loses its locks: nothing but the scan. */
		cpg_scan(r, files);
		cpg_put_table(files);
	}
}

/*
 * The iteration.
 */

static loff_t cpg_position(pid_t nr, u32 part)
{
	return (loff_t)nr << 32 | part;
}

/* Why the reader is to stop at once: it is killed, or the module is unloaded. */
static int cpg_interrupted(void)
{
	if (READ_ONCE(cpg_leaving))
		return -EIO;
	return fatal_signal_pending(current) ? -EINTR : 0;
}

/* Go to the first descriptor from @slot on, or to the trailer when there is none. */
static void *cpg_find_file(struct cpg_reader *r, loff_t *pos, unsigned int slot)
{
	pid_t nr = pid_nr(r->pid);
	unsigned int from;
	int error;

	cpg_drop_batch(r);
	r->slot = slot;
	do {
		error = cpg_interrupted();
		if (error) {
			*pos = cpg_position(nr, CPG_FIRST_FD + r->slot);
			return ERR_PTR(error);
		}
		cond_resched();
		from = r->slot;
		cpg_step(r);
	} while (!r->filled && r->more);

	if (r->filled) {
		r->line = CPG_LINE_BATCH;
		/* Not its first descriptor: a lower one may be open when it is looked up again. */
		*pos = cpg_position(nr, CPG_FIRST_FD + from);
	} else {
		r->line = CPG_LINE_TRAILER;
		*pos = cpg_position(nr, CPG_TRAILER);
	}
	return r;
}

/* Signal n as bit n; the set has it one lower. */
static u32 cpg_mask(const sigset_t *set)
{
	/* One word, so it needs no lock to be one that was there. */
	return READ_ONCE(set->sig[0]) << 1;
}

/*
 * Copy the state and the signals.  Called under RCU: task->signal, which the last
 * reference of the task frees, stays as long as the task itself.
 */
static void cpg_take_signals(struct cpg_reader *r, struct task_struct *task)
{
	/* Reads exit_state without a lock, as for /proc/PID/stat. */
	r->state = data_race(task_state_to_char(task));
	r->blocked = cpg_mask(&task->blocked);
	r->pending = cpg_mask(&task->pending.signal) |
		     cpg_mask(&task->signal->shared_pending.signal);
}

/*
 * Copy the header of the process of @pid, and take a reference on @pid; returns
 * false if it is none of ours.  Called under RCU, which keeps @pid and its task.
 *
 * A process is ours if its pid has a number below the initial namespace's.  That
 * never changes, while a dying task's namespace is no longer known.
 */
static bool cpg_take_process(struct cpg_reader *r, struct pid *pid)
{
	struct pid_namespace *ns;
	struct task_struct *task;

	if (!pid->level)
		return false;
	task = pid_task(pid, PIDTYPE_TGID);
	if (!task)
		return false;
	cpg_race_window();
	ns = ns_of_pid(pid);
	r->nr_ns = pid->numbers[pid->level].nr;
	r->ppid_ns = task_ppid_nr_ns(task, ns);
	r->pgid_ns = task_pgrp_nr_ns(task, ns);
	/* Takes task_lock on some kernels, so it must not be held here. */
	get_task_comm(r->comm, task);
	if (cpg_extended)
		cpg_take_signals(r, task);
	/*
	 * A task that is being released has no parent and no group any more, which is
	 * not to be taken for one outside.  detach_pid() empties this list first.
	 */
	if (!pid_task(pid, PIDTYPE_PID))
		return false;
	/* The table of pids is emptied before the pid's own reference is dropped. */
	r->pid = get_pid(pid);
	return true;
}

/*
 * Look for one of ours among the next CPG_PIDS numbers, from @nr on, in whole leaves of
 * the table of pids.  Returns the number at which it found one, or goes on; CPG_EOF when
 * there is no more.  Leaf by leaf, because idr_get_next() looks each number up from the
 * root, and a host has many processes that are not ours.
 *
 * RCU protects the table, which its writers change under a lock of their own: a leaf
 * that is taken out meanwhile stays readable, and is empty by then.  Were an entry ever
 * not a pid but a mark to look again, as others than an IDR leave it, so do we.
 */
static pid_t cpg_scan_pids(struct cpg_reader *r, pid_t nr)
{
	struct radix_tree_iter iter;
	int left, count, i;
	void __rcu **slots;
	struct pid *pid;

	radix_tree_iter_init(&iter, nr);
	for (left = CPG_PIDS; left > 0; left -= count) {
		slots = radix_tree_next_chunk(&init_pid_ns.idr.idr_rt, &iter, 0);
		if (!slots)
			return CPG_EOF;
		count = radix_tree_chunk_size(&iter);
		for (i = 0; i < count; i++) {
			pid = radix_tree_deref_slot(slots + i);
			if (!pid)	/* free, or of a fork() that has not finished */
				continue;
			if (radix_tree_deref_retry(pid) || cpg_take_process(r, pid))
				return iter.index + i;
		}
	}
	return iter.next_index;
}

/* Go to the header of the first of our processes whose pid is @nr or above. */
static void *cpg_find_process(struct cpg_reader *r, loff_t *pos, pid_t nr)
{
	int error;

	put_pid(r->pid);
	r->pid = NULL;
	r->thread = 0;
	for (;;) {
		error = cpg_interrupted();
		if (error) {
			*pos = cpg_position(nr, CPG_HEADER);
			return ERR_PTR(error);
		}
		cond_resched();

		rcu_read_lock();
		nr = cpg_scan_pids(r, nr);
		rcu_read_unlock();

		if (r->pid) {
			r->line = CPG_LINE_HEADER;
			*pos = cpg_position(nr, CPG_HEADER);
			return r;
		}
		if (nr == CPG_EOF) {
			*pos = cpg_position(CPG_EOF, CPG_HEADER);
			return NULL;
		}
	}
}

/*
 * Go to the first line at or after *pos.  Inside a record r->pid is its process,
 * since the core only ever continues where it stopped, or begins again at 0: a
 * pid that was given to another process meanwhile cannot be mistaken for it.
 */
static void *cpg_start(struct seq_file *m, loff_t *pos)
{
	struct cpg_reader *r = m->private;
	u32 part = lower_32_bits(*pos);

	if (part == CPG_HEADER)
		return cpg_find_process(r, pos, upper_32_bits(*pos));
	if (part == CPG_TRAILER) {
		r->line = CPG_LINE_TRAILER;
		return r;
	}
	return cpg_find_file(r, pos, part - CPG_FIRST_FD);
}

static void *cpg_next(struct seq_file *m, void *v, loff_t *pos)
{
	struct cpg_reader *r = v;
	pid_t nr = pid_nr(r->pid);

	switch (r->line) {
	case CPG_LINE_HEADER:
		return cpg_find_file(r, pos, 0);
	case CPG_LINE_BATCH:
		if (r->at == r->filled)
			return cpg_find_file(r, pos, r->slot);
		/* It was cut, and this is the rest. */
		*pos = cpg_position(nr, CPG_FIRST_FD + r->batch[r->at].fd);
		return r;
	case CPG_LINE_TRAILER:
		break;
	}
	return cpg_find_process(r, pos, nr + 1);
}

/* Between two reads nothing is held but the struct pid. */
static void cpg_stop(struct seq_file *m, void *v)
{
	cpg_drop_batch(m->private);
}

static const struct seq_operations cpg_seq_ops = {
	.start = cpg_start,
	.next = cpg_next,
	.stop = cpg_stop,
	.show = cpg_show,
};

static int cpg_open(struct inode *inode, struct file *file)
{
	struct cpg_reader *r;
	struct seq_file *m;

	/*
	 * The entry is in every procfs, a container's own included, whose root
	 * passes any mode.  What it shows is the host's business alone.
	 */
	if (proc_pid_ns(inode->i_sb) != &init_pid_ns)
		return -EACCES;

	r = __seq_open_private(file, &cpg_seq_ops, sizeof(*r));
	if (!r)
		return -ENOMEM;
	m = file->private_data;
	m->buf = kvmalloc(CPG_BUFFER, GFP_KERNEL_ACCOUNT);
	if (!m->buf) {
		seq_release_private(inode, file);	/* frees m->buf */
		return -ENOMEM;
	}
	m->size = CPG_BUFFER;
	return 0;
}

/* Also called by proc_remove(), for files that are still open then. */
static int cpg_release(struct inode *inode, struct file *file)
{
	struct seq_file *m = file->private_data;
	struct cpg_reader *r = m->private;

	put_pid(r->pid);
	return seq_release_private(inode, file);
}

static const struct proc_ops cpg_proc_ops = {
	.proc_open = cpg_open,
	.proc_read_iter = seq_read_iter,
	.proc_lseek = seq_lseek,
	.proc_release = cpg_release,
};

static int __init cpg_init(void)
{
	kuid_t uid = make_kuid(&init_user_ns, file_uid);
	kgid_t gid = make_kgid(&init_user_ns, file_gid);
	int error;

	if (!strcmp(backend, "export")) {
		if (!CPG_HAS_EXPORT) {
			pr_err("backend=export is not built in: this kernel does not export get_files_struct and put_files_struct\n");
			return -EINVAL;
		}
		cpg_export = true;
	} else if (strcmp(backend, "stock")) {
		pr_err("backend=%s is unknown; built in: " CPG_BACKENDS "\n", backend);
		return -EINVAL;
	}
	if (!uid_valid(uid) || !gid_valid(gid)) {
		pr_err("file_uid=%u file_gid=%u: not a user and a group\n", file_uid, file_gid);
		return -EINVAL;
	}
	if (!strcmp(fields, "extended")) {
		cpg_extended = true;
	} else if (strcmp(fields, "basic")) {
		pr_err("fields=%s is unknown; there are: basic, extended\n", fields);
		return -EINVAL;
	}
	if (!file_mode || file_mode & ~0444) {
		pr_err("file_mode=0%o: must be read bits only, such as 0400 or 0440\n", file_mode);
		return -EINVAL;
	}

	/* Waits for the random number generator: ids must not be guessable. */
	error = get_random_bytes_wait(cpg_keys, sizeof(cpg_keys));
	if (error)
		return error;

	cpg_entry = proc_create(CPG_NAME, file_mode, NULL, &cpg_proc_ops);
	if (!cpg_entry) {
		pr_err("/proc/" CPG_NAME " cannot be made: is the name taken, or no memory?\n");
		return -EBUSY;
	}
	proc_set_user(cpg_entry, uid, gid);
	pr_info("version " CPG_VERSION ", /proc/" CPG_NAME ", backend %s\n", backend);
	return 0;
}

/* Waits for running calls, then ends open files: nothing is left that uses us. */
static void __exit cpg_exit(void)
{
	WRITE_ONCE(cpg_leaving, true);
	proc_remove(cpg_entry);
}

module_init(cpg_init);
module_exit(cpg_exit);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Processes of containers and their open files in /proc/" CPG_NAME);
MODULE_VERSION(CPG_VERSION);
MODULE_INFO(backends, CPG_BACKENDS);
