// SPDX-License-Identifier: GPL-2.0
/*
 * Show the open files of every process outside the initial PID namespace with a BPF iterator.
 *
 * This is an alternative to the module, and its output differs.  Ids are raw addresses, flags
 * are hexadecimal (bpf_seq_printf() has no %o), and names are not escaped.  A process without
 * descriptors has no record, since the iterator does not visit it.
 */
#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#define PATH_SIZE 4096

char LICENSE[] SEC("license") = "GPL";

/* Too large for the stack of a BPF program. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, char[PATH_SIZE]);
} path_buffer SEC(".maps");

/* The task whose header was printed last, and the sequence number at that time. */
static int shown;
static __u64 shown_at;

/* Return the number of a pid at a level of PID namespaces; 0 if it is not in ns. */
static int number_at(struct pid *pid, unsigned int level, struct pid_namespace *ns)
{
	struct upid upid;

	if (pid->level < level)
		return 0;
	bpf_probe_read_kernel(&upid, sizeof(upid), &pid->numbers[level]);
	return upid.ns == ns ? upid.nr : 0;
}

SEC("iter/task_file")
int show(struct bpf_iter__task_file *ctx)
{
	struct seq_file *seq = ctx->meta->seq;
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	unsigned long *bits, word = 0;
	struct pid *pid;
	unsigned int fd = ctx->fd;
	__u32 key = 0;
	char *path;
	__u64 length;

	if (!task || !file)
		return 0;
	/* A reading starts: its descriptors are numbered from 0. */
	if (!ctx->meta->seq_num)
		shown = 0;
	pid = task->thread_pid;
	if (!pid->level)
		return 0;

	/* A line that did not fit is shown again, together with the header before it. */
	if (shown != task->pid || shown_at == ctx->meta->seq_num) {
		unsigned int level = pid->level;
		struct pid_namespace *ns;
		struct upid upid;

		bpf_probe_read_kernel(&upid, sizeof(upid), &pid->numbers[level]);
		ns = upid.ns;
		if (shown)
			bpf_seq_write(seq, "\n", 1);
		BPF_SEQ_PRINTF(seq, "%llx\t%d\t%d\t%d\t%d\t%s\n", (unsigned long)ns, task->tgid,
			       upid.nr,
			       number_at(task->real_parent->signal->pids[PIDTYPE_TGID], level, ns),
			       number_at(task->signal->pids[PIDTYPE_PGID], level, ns),
			       task->comm);
		shown = task->pid;
		shown_at = ctx->meta->seq_num;
	}

	path = bpf_map_lookup_elem(&path_buffer, &key);
	if (!path)
		return 0;
	bits = task->files->fdt->close_on_exec;
	bpf_probe_read_kernel(&word, sizeof(word), bits + fd / 64);
	BPF_SEQ_PRINTF(seq, "%u\t%u\t%llx\t%lld\t%x\t", fd, (__u32)(word >> (fd % 64)) & 1,
		       (unsigned long)file, file->f_pos, file->f_flags);
	/* The length includes the terminating zero, which becomes the newline.  An error is huge. */
	length = bpf_d_path(&file->f_path, path, PATH_SIZE);
	if (length <= PATH_SIZE) {
		path[(length - 1) & (PATH_SIZE - 1)] = '\n';
		bpf_seq_write(seq, path, length);
	} else {
		BPF_SEQ_PRINTF(seq, "(path too long)\n");
	}
	return 0;
}
