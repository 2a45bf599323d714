// SPDX-License-Identifier: GPL-2.0-only
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
 * The last three numbers are those in the process's own (innermost) namespace.  ppid and
 * pgid are 0 for a parent or a group outside of it.  Flags are octal with a leading
 * 0.  An id is 64 hex digits.  In commands and paths, control bytes, backslashes and
 * Unicode's line separators are written as \ooo.  So no name can look like a record.
 *
 * With fields=extended there are three more fields between pgid and command.  They are the
 * state of the process's leader as in /proc/PID/stat, and the masks of its blocked and
 * of its pending signals.  Bit n of a mask stands for signal n, up to 31.
 *
 * A reader leaves no trace.  It takes no reference on an open file or a path, and with
 * backend=stock none on a file table.  Dropping the last reference would run the close
 * in the reader, and too late for the program that closed the file.  Each step copies a
 * bounded batch of descriptors with their paths, under the locks that the kernel itself
 * takes for /proc/PID/fdinfo.  Between two steps the reader holds only its own copies of
 * numbers and text.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/dcache.h>
#include <linux/fs.h>
#include <linux/kernel.h>
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
#include <linux/workqueue.h>

#include "compat.h"
#include "format.h"
#include "window.h"

#define CPG_NAME "cplayground"

/* Descriptors copied under one hold of a table's lock. */
#define CPG_BATCH 32
/*
 * Room for the paths of a batch.  A batch ends when another path might not fit.  So a
 * container with long paths cannot make us hold a table's lock for long.
 */
#define CPG_NAMES (4 * PATH_MAX)
/* cpg_write_name() may read this many bytes behind the end of a name or a path. */
#define CPG_BEHIND (sizeof(u64) - 1)
/* Slots searched under one hold of a table's lock: 8 KiB of its bitmap. */
#define CPG_SLOTS 65536U
/* Threads without a table, and pids, that are skipped in one RCU section. */
#define CPG_THREADS 512
#define CPG_PIDS 512
/* The longest line: a path with every byte escaped, and about 150 other bytes. */
#define CPG_LONGEST (4 * PATH_MAX + 256)
/*
 * Larger than the longest line, so the buffer never grows.  A container cannot choose
 * how much memory a reader takes.
 */
#define CPG_BUFFER SZ_64K

/* A position: the pid in the upper half, the line of its record in the lower. */
#define CPG_HEADER 0U
#define CPG_FIRST_FD 1U		/* descriptor n is CPG_FIRST_FD + n */
#define CPG_TRAILER U32_MAX
#define CPG_EOF INT_MAX		/* above every pid */

/*
 * How a file table is reached.  "stock" uses it under task_lock() and never touches its
 * count.  "export" takes a reference, if the kernel exports the functions for that.
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
static siphash_key_t cpg_keys[4] __ro_after_init;	/* for the four words of an id */
static struct proc_dir_entry *cpg_entry;
static struct workqueue_struct *cpg_puts;	/* drops references; export only */
static bool cpg_leaving;	/* set once, before the entry is removed */

/* A work item that drops a reference on a file table. */
struct cpg_put {
	struct work_struct work;
	struct files_struct *files;
	bool counted;		/* it holds a reference on the module */
};

/* Printed for a path of PATH_MAX bytes or more, for which readlink(2) fails. */
static const char cpg_too_long[] = "(path too long)";

enum cpg_line { CPG_LINE_HEADER, CPG_LINE_FILE, CPG_LINE_TRAILER };

/* One descriptor as it was while the table's lock was held. */
struct cpg_fd {
	unsigned int fd;
	bool cloexec;
	unsigned int flags;
	loff_t pos;
	/* For the id; never dereferenced. */
	const struct file *file;
	const struct inode *inode;
	u64 inode_serial;
	const char *path;	/* in the reader's names */
};

/* One reader; protected by the seq_file's own mutex. */
struct cpg_reader {
	enum cpg_line line;	/* the one that cpg_show() prints */

	/* The process, from header to trailer.  No later process has both numbers. */
	pid_t nr;
	u64 started;

	/* The header, copied when the process was found. */
	const struct pid_namespace *ns;	/* for the id; never dereferenced */
	u64 ns_started;
	pid_t nr_ns;
	pid_t ppid_ns;
	pid_t pgid_ns;
	char comm[TASK_COMM_LEN + CPG_BEHIND];
	char state;
	u32 blocked;
	u32 pending;

	/* The batch: entries at..filled-1 are still to be shown. */
	struct cpg_fd batch[CPG_BATCH];
	unsigned int at;
	unsigned int filled;
	char *names;		/* CPG_NAMES bytes, for the paths of the batch */
	unsigned int slot;	/* the next batch begins here */
	pid_t thread;		/* no earlier thread has a table; 0 for the leader */
	bool more;		/* the table may have descriptors from slot on */

	struct cpg_put *put;	/* for the next cpg_put_table(); export only */
};

/*
 * Output.
 */

/* Write an id: a keyed hash, so that it reveals nothing about the numbers in it. */
static char *cpg_write_id(char *p, const void *object, u64 one, u64 two)
{
	u64 word;
	int i;

	for (i = 0; i < ARRAY_SIZE(cpg_keys); i++) {
		word = siphash_3u64((unsigned long)object, one, two, &cpg_keys[i]);
		p = cpg_write_hex(p, upper_32_bits(word));
		p = cpg_write_hex(p, lower_32_bits(word));
	}
	return p;
}

static char *cpg_write_header(char *p, const struct cpg_reader *r)
{
	p = cpg_write_id(p, r->ns, r->ns_started, 0);
	*p++ = '\t';
	p = cpg_write_decimal(p, r->nr);
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

static char *cpg_write_file(char *p, const struct cpg_fd *entry)
{
	p = cpg_write_decimal(p, entry->fd);
	*p++ = '\t';
	*p++ = '0' + entry->cloexec;
	*p++ = '\t';
	p = cpg_write_id(p, entry->file, (unsigned long)entry->inode, entry->inode_serial);
	*p++ = '\t';
	p = cpg_write_decimal(p, entry->pos);
	*p++ = '\t';
	p = cpg_write_octal(p, entry->flags);
	*p++ = '\t';
	return cpg_write_name(p, entry->path);
}

/*
 * Print the current line.  seq_file calls this again for the same line if it did not fit
 * behind earlier ones.  That is safe because this function changes nothing in the reader;
 * only cpg_next() goes on to the next line.
 */
static int cpg_show(struct seq_file *m, void *v)
{
	const struct cpg_reader *r = v;
	char *start, *p;

	if (seq_get_buf(m, &start) < CPG_LONGEST) {
		seq_commit(m, -1);
		return 0;
	}
	p = start;
	if (r->line == CPG_LINE_HEADER)
		p = cpg_write_header(p, r);
	else if (r->line == CPG_LINE_FILE)
		p = cpg_write_file(p, &r->batch[r->at]);
	*p++ = '\n';
	seq_commit(m, p - start);
	return 0;
}

/*
 * File tables.
 */

/*
 * Copy one open file into the next entry of the batch.  Its path goes to the end of the
 * room r->names[0..*left).  Called under the table's file_lock.
 *
 * d_path() may be called under a spinlock: it takes RCU, d_lock, rename_lock and
 * mount_lock.  It calls no file system except through d_dname, which only formats a number
 * for pipes, sockets and the like.  BPF programs that must not sleep call it too.
 */
static void cpg_copy_file(struct cpg_reader *r, const struct file *file, size_t *left)
{
	struct cpg_fd *entry = &r->batch[r->filled++];
	const struct inode *inode = file_inode(file);
	char *path;

	entry->file = file;
	entry->inode = inode;
	/* Freed files and inodes are soon reused; these numbers tell most of them apart. */
	entry->inode_serial = inode->i_ino ^ (u64)inode->i_generation << 32;
	/* Writers change both under locks of the file; fs/proc/fd.c takes none of these. */
	entry->pos = READ_ONCE(file->f_pos);
	/* O_CLOEXEC belongs to the descriptor, but a few system calls leave it in f_flags. */
	entry->flags = READ_ONCE(file->f_flags) & ~O_CLOEXEC;

	path = d_path(&file->f_path, r->names + *left - PATH_MAX, PATH_MAX);
	if (IS_ERR(path)) {
		path = r->names + *left - sizeof(cpg_too_long);
		memcpy(path, cpg_too_long, sizeof(cpg_too_long));
	}
	entry->path = path;
	*left = path - r->names;
}

/*
 * Copy a batch, from r->slot on.  The caller keeps the table: by a reference, or by
 * task_lock() of a task that uses it.
 *
 * file_lock protects the table's bitmaps and its array of slots.  No slot is emptied or
 * gets another file without it.  So each file found here stays open while the lock is
 * held.  It needs no reference, even on kernels that free files without a grace period.
 * Only fd_install() stores without the lock, into a slot that is reserved and empty;
 * rcu_dereference_check_fdtable() pairs with its store.
 */
static void cpg_scan(struct cpg_reader *r, struct files_struct *files)
{
	size_t left = CPG_NAMES - CPG_BEHIND;
	struct fdtable *fdt;
	unsigned int end, fd;
	struct file *file;

	cpg_race_window();
	spin_lock(&files->file_lock);
	cpg_hold_begins();
	fdt = files_fdtable(files);
	end = min(fdt->max_fds, r->slot + CPG_SLOTS);
	for (fd = r->slot; r->filled < CPG_BATCH && left >= PATH_MAX; fd++) {
		fd = find_next_bit(fdt->open_fds, end, fd);
		if (fd >= end)
			break;
		file = rcu_dereference_check_fdtable(files, fdt->fd[fd]);
		if (!file)	/* reserved by an open() that has not finished */
			continue;
		r->batch[r->filled].fd = fd;
		r->batch[r->filled].cloexec = test_bit(fd, fdt->close_on_exec);
		cpg_copy_file(r, file, &left);
	}
	r->slot = fd;
	r->more = fd < fdt->max_fds;
	cpg_hold_ends();
	spin_unlock(&files->file_lock);
}

static void cpg_put_later(struct work_struct *work)
{
	struct cpg_put *put = container_of(work, struct cpg_put, work);

	cpg_put_files(put->files);
	if (put->counted)
		module_put(THIS_MODULE);	/* cpg_exit() waits for the rest of this */
	kfree(put);
}

/*
 * Drop the reference on @files, the table of @task.  The reader never closes a file.  While
 * the task still has the table, ours is not the last reference.  Otherwise a work item drops
 * it, since ->flush may wait for a server in a container for ever.  Until then, rmmod fails
 * with EWOULDBLOCK.  If rmmod has already begun, try_module_get() fails and rmmod waits.
 */
static void cpg_put_table(struct cpg_reader *r, struct task_struct *task,
			  struct files_struct *files)
{
	bool same;

	task_lock(task);
	same = task->files == files;
	if (same)
		cpg_put_files(files);
	task_unlock(task);
	if (!same) {
		r->put->files = files;
		r->put->counted = try_module_get(THIS_MODULE);
		queue_work(cpg_puts, &r->put->work);
		r->put = NULL;
	}
}

/* Allocate the memory of the next cpg_put_table(); returns 0 or -ENOMEM. */
static int cpg_prepare_put(struct cpg_reader *r)
{
	if (!cpg_export || r->put)
		return 0;
	r->put = kzalloc(sizeof(*r->put), GFP_KERNEL_ACCOUNT);
	if (!r->put)
		return -ENOMEM;
	INIT_WORK(&r->put->work, cpg_put_later);
	return 0;
}

/*
 * Copy a batch of a task's table; returns false if the task has none.  Called under RCU,
 * which keeps the task.
 *
 * task_lock protects task->files: the task clears or replaces it only with this lock
 * held.  So the task's own reference keeps the table while we hold the lock.  As in
 * fs/proc/fd.c, task_lock is taken before file_lock.
 */
static bool cpg_scan_task(struct cpg_reader *r, struct task_struct *task)
{
	struct files_struct *files;

	if (cpg_export) {
		files = cpg_get_files(task);
		if (files) {
			cpg_scan(r, files);
			cpg_put_table(r, task, files);
		}
		return files;
	}
	task_lock(task);
	files = task->files;
	if (files)
		cpg_scan(r, files);
	task_unlock(task);
	return files;
}

/*
 * Return the thread to go on with: the one that r->thread names, or else the leader.
 * Called under RCU, which keeps both.
 *
 * If the thread is gone, the walk starts again from the leader.  That cannot go on for
 * ever: a thread without a table never gets one again and makes no threads.
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
 * Copy the next batch, from r->slot on, of the first thread that has a table.  A leader
 * that exited before its threads has none.  An empty batch with r->more set means that
 * the limit of one step was reached.
 *
 * RCU keeps the tasks: none is freed before rcu_read_unlock().
 */
static void cpg_step(struct cpg_reader *r)
{
	struct task_struct *leader, *task;
	int left = CPG_THREADS;

	r->at = 0;
	r->filled = 0;
	r->more = false;
	rcu_read_lock();
	leader = pid_task(find_pid_ns(r->nr, &init_pid_ns), PIDTYPE_TGID);
	if (!leader || leader->start_boottime != r->started)
		goto out;	/* it has ended, and another process may have its pid */
	cpg_race_window();
	task = cpg_thread(r, leader);
	list_for_each_entry_from_rcu(task, &leader->signal->thread_head, thread_node) {
		if (task != leader)
			r->thread = task_pid_nr(task);
		if (!left--) {
			r->more = true;
			break;
		}
		if (cpg_scan_task(r, task))
			break;
	}
out:
	rcu_read_unlock();
}

/*
 * The iteration.
 */

static loff_t cpg_position(pid_t nr, u32 part)
{
	return (loff_t)nr << 32 | part;
}

/* Return an error if the reader must stop now: it was killed, or the module is unloaded. */
static int cpg_interrupted(void)
{
	if (READ_ONCE(cpg_leaving))
		return -EIO;
	return fatal_signal_pending(current) ? -EINTR : 0;
}

/* Go to the next descriptor to show, or to the trailer if there is none. */
static void *cpg_find_file(struct cpg_reader *r, loff_t *pos)
{
	int error;

	while (r->at == r->filled && r->more) {
		error = cpg_interrupted();
		if (!error)
			error = cpg_prepare_put(r);
		if (error) {
			*pos = cpg_position(r->nr, CPG_FIRST_FD + r->slot);
			return ERR_PTR(error);
		}
		cond_resched();
		cpg_step(r);
	}
	if (r->at < r->filled) {
		r->line = CPG_LINE_FILE;
		*pos = cpg_position(r->nr, CPG_FIRST_FD + r->batch[r->at].fd);
	} else {
		r->line = CPG_LINE_TRAILER;
		*pos = cpg_position(r->nr, CPG_TRAILER);
	}
	return r;
}

/* Return a mask with bit n for signal n; a sigset_t has bit n - 1. */
static u32 cpg_mask(const sigset_t *set)
{
	/* Needs no lock: a single word is read whole. */
	return READ_ONCE(set->sig[0]) << 1;
}

/*
 * Copy the state and the signals.  Called under RCU, which keeps the task.  Its last
 * reference frees task->signal, so that stays as long as the task.
 */
static void cpg_take_signals(struct cpg_reader *r, struct task_struct *task)
{
	/* Reads exit_state without a lock, as /proc/PID/stat does. */
	r->state = data_race(task_state_to_char(task));
	r->blocked = cpg_mask(&task->blocked);
	r->pending = cpg_mask(&task->pending.signal) |
		     cpg_mask(&task->signal->shared_pending.signal);
}

/*
 * Return the struct pid of a task's process or process group; NULL if all threads of the
 * process have been released.  Called under RCU, which keeps the task and the pid.
 */
static struct pid *cpg_pid_of(struct task_struct *task, enum pid_type type)
{
	/* Changed under tasklist_lock, which is not exported; as in task_tgid(). */
	return READ_ONCE(task->signal->pids[type]);
}

/*
 * Copy the header of the process of @pid; returns false if it is not in a container or has
 * been released.  Called under RCU, which keeps @pid, its namespace and every task.
 *
 * A process is in a container if its pid is in a namespace below the initial one.  That
 * never changes for a pid, whereas a dying task no longer knows its namespace.
 */
static bool cpg_take_process(struct cpg_reader *r, struct pid *pid)
{
	struct pid_namespace *ns = ns_of_pid(pid);
	struct task_struct *task, *init;
	struct pid *parent, *group;
	char comm[TASK_COMM_LEN];

	if (!pid->level)
		return false;
	/*
	 * The first process of a namespace is released after all others, and execve()
	 * keeps its start time.  A later namespace at the same address has a later start
	 * time, so no two namespaces have the same id.
	 */
	init = pid_task(find_pid_ns(1, ns), PIDTYPE_TGID);
	if (!init)
		return false;
	/*
	 * The parent may be released before its pid is read.  Its children have another
	 * parent by then, so a second look finds that one.  It also looks the task up
	 * again, because execve() by a thread other than the leader replaces the task.
	 */
	do {
		task = pid_task(pid, PIDTYPE_TGID);
		if (!task)
			return false;
		cpg_race_window();
		parent = cpg_pid_of(rcu_dereference(task->real_parent), PIDTYPE_TGID);
	} while (!parent);
	group = cpg_pid_of(task, PIDTYPE_PGID);
	if (!group)
		return false;
	r->nr = pid_nr(pid);
	r->started = task->start_boottime;
	r->ns = ns;
	r->ns_started = init->start_boottime;
	r->nr_ns = pid->numbers[pid->level].nr;
	r->ppid_ns = pid_nr_ns(parent, ns);
	r->pgid_ns = pid_nr_ns(group, ns);
	/* Takes task_lock on some kernels, so we must not hold it here. */
	get_task_comm(comm, task);
	memcpy(r->comm, comm, sizeof(comm));
	if (cpg_extended)
		cpg_take_signals(r, task);
	return true;
}

/*
 * Search the next CPG_PIDS pids, from @nr on, for a process in a container.  Returns its
 * pid, or the pid to go on with; CPG_EOF after the last one.  The search reads whole
 * leaves of the table of pids, because a host has many processes outside of containers,
 * and idr_get_next() would look up each pid from the root.
 *
 * RCU protects the table; writers change it under their own lock.  A leaf that is removed
 * meanwhile stays readable, and is empty.  An IDR never contains retry entries; if there
 * were one, the caller would look at this pid again.
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
			if (!pid)	/* free, or a fork() has not finished */
				continue;
			if (radix_tree_deref_retry(pid) || cpg_take_process(r, pid))
				return iter.index + i;
		}
	}
	return iter.next_index;
}

/* Go to the header of the first process in a container whose pid is @nr or above. */
static void *cpg_find_process(struct cpg_reader *r, loff_t *pos, pid_t nr)
{
	int error;

	r->nr = 0;
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

		*pos = cpg_position(nr, CPG_HEADER);
		if (r->nr)
			break;
		if (nr == CPG_EOF)
			return NULL;
	}
	r->line = CPG_LINE_HEADER;
	r->thread = 0;
	r->slot = 0;
	r->more = true;
	r->at = 0;
	r->filled = 0;
	return r;
}

/*
 * Go to the first line at or after *pos.  Inside a record, the reader is there already:
 * seq_file only continues where it stopped, or begins again at 0.
 */
static void *cpg_start(struct seq_file *m, loff_t *pos)
{
	struct cpg_reader *r = m->private;

	if (lower_32_bits(*pos) == CPG_HEADER)
		return cpg_find_process(r, pos, upper_32_bits(*pos));
	return cpg_find_file(r, pos);
}

static void *cpg_next(struct seq_file *m, void *v, loff_t *pos)
{
	struct cpg_reader *r = v;

	switch (r->line) {
	case CPG_LINE_FILE:
		r->at++;
		fallthrough;
	case CPG_LINE_HEADER:
		return cpg_find_file(r, pos);
	case CPG_LINE_TRAILER:
		break;
	}
	return cpg_find_process(r, pos, r->nr + 1);
}

/* The reader holds nothing between two reads, and no lock between two steps. */
static void cpg_stop(struct seq_file *m, void *v)
{
}

static const struct seq_operations cpg_seq_ops = {
	.start = cpg_start,
	.next = cpg_next,
	.stop = cpg_stop,
	.show = cpg_show,
};

/* proc_remove() calls this too, for files that are still open. */
static int cpg_release(struct inode *inode, struct file *file)
{
	struct seq_file *m = file->private_data;
	struct cpg_reader *r = m->private;

	kfree(r->put);
	kvfree(r->names);
	return seq_release_private(inode, file);	/* frees the reader and m->buf */
}

static int cpg_open(struct inode *inode, struct file *file)
{
	struct cpg_reader *r;
	struct seq_file *m;

	/*
	 * The entry is in every procfs, including that of a container, whose root
	 * passes any mode.  Only the host may see its content.
	 */
	if (proc_pid_ns(inode->i_sb) != &init_pid_ns)
		return -EACCES;

	r = __seq_open_private(file, &cpg_seq_ops, sizeof(*r));
	if (!r)
		return -ENOMEM;
	m = file->private_data;
	r->names = kvmalloc(CPG_NAMES, GFP_KERNEL_ACCOUNT);
	m->buf = kvmalloc(CPG_BUFFER, GFP_KERNEL_ACCOUNT);
	if (!r->names || !m->buf || cpg_prepare_put(r)) {
		cpg_release(inode, file);
		return -ENOMEM;
	}
	m->size = CPG_BUFFER;
	return 0;
}

static const struct proc_ops cpg_proc_ops = {
	.proc_open = cpg_open,
	.proc_read_iter = seq_read_iter,
	.proc_lseek = seq_lseek,
	.proc_release = cpg_release,
};

static void cpg_free_puts(void)
{
	if (cpg_puts)
		destroy_workqueue(cpg_puts);
}

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

	/* Waits for the random number generator, since ids must not be guessable. */
	error = get_random_bytes_wait(cpg_keys, sizeof(cpg_keys));
	if (error)
		return error;
	if (cpg_export) {
		cpg_puts = alloc_workqueue(CPG_NAME, WQ_UNBOUND, 0);
		if (!cpg_puts)
			return -ENOMEM;
	}

	cpg_entry = proc_create(CPG_NAME, file_mode, NULL, &cpg_proc_ops);
	if (!cpg_entry) {
		cpg_free_puts();
		pr_err("/proc/" CPG_NAME " cannot be made: is the name taken, or no memory?\n");
		return -EBUSY;
	}
	proc_set_user(cpg_entry, uid, gid);
	pr_info("version " CPG_VERSION ", /proc/" CPG_NAME ", backend %s\n", backend);
	return 0;
}

/* Waits for running calls and ends open files, so nothing uses the module afterwards. */
static void __exit cpg_exit(void)
{
	WRITE_ONCE(cpg_leaving, true);
	proc_remove(cpg_entry);
	cpg_free_puts();
}

module_init(cpg_init);
module_exit(cpg_exit);

MODULE_LICENSE("GPL");
MODULE_AUTHOR("cplayground-kernel maintainers <maintainers@cplayground-kernel.invalid>");
MODULE_DESCRIPTION("Processes of containers and their open files in /proc/" CPG_NAME);
MODULE_VERSION(CPG_VERSION);
MODULE_INFO(backends, CPG_BACKENDS);
