// SPDX-License-Identifier: GPL-2.0
/*
 * Collect what /proc/cplayground shows from /proc/PID/{status,stat,fd,fdinfo}.
 *
 *	bench_walk passes|loop <n> plain|kcmp <proc> [pid]
 *
 * It is written to be fast.  It reads without stdio and opens everything relative to an open
 * directory.  It reads only the link ns/pid of a host process.  "kcmp" also
 * finds the descriptors that share an open file, by kcmp(2)'s order; "plain" leaves that
 * column 0.  <proc> is the procfs to read.  With a pid, only processes in its PID namespace
 * are shown.
 *
 * Unlike the oracle (kernel_view.h), it continues when a process ends meanwhile.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <sys/syscall.h>

#include "bench.h"

struct file {
	pid_t pid;
	unsigned int fd;
	unsigned long flags;
	unsigned long long position;
	size_t path, process;	/* offset in the text, and index of the owner */
	unsigned long group;
};

struct process {
	size_t header;	/* offset in the text */
	size_t first, count;
};

static int procfs, with_kcmp;
static pid_t only;

/* The state of one pass. */
static struct file *files;
static struct process *processes;
static struct file **sorted;
static char *text, *output;
static size_t file_count, file_room, process_count, process_room, text_length, text_room;
static size_t output_room;

static void *grow(void *items, size_t needed, size_t *room, size_t size)
{
	if (needed <= *room)
		return items;
	while (*room < needed)
		*room = *room ? 2 * *room : 4096;
	items = realloc(items, *room * size);
	if (!items)
		err(1, "realloc");
	return items;
}

/* Keep a text with its terminating zero; returns its offset. */
static size_t keep(const char *from, size_t length)
{
	size_t at = text_length;

	text = grow(text, at + length + 1, &text_room, 1);
	memcpy(text + at, from, length);
	text[at + length] = '\0';
	text_length = at + length + 1;
	return at;
}

/* Read a file of procfs; returns its length, or -1 if it is gone. */
static ssize_t slurp(int dir, const char *name, char *buffer, size_t size)
{
	int fd = openat(dir, name, O_RDONLY);
	ssize_t length;

	if (fd < 0)
		return -1;
	length = read(fd, buffer, size - 1);
	close(fd);
	if (length < 0)
		return -1;
	buffer[length] = '\0';
	return length;
}

/* Return the last number in the line of /proc/PID/status that begins with the label. */
static long innermost(const char *status, const char *label)
{
	const char *at = strstr(status, label);
	long value = 0;

	if (!at)
		return 0;
	for (at += strlen(label); *at && *at != '\n'; at++) {
		if (*at >= '0' && *at <= '9')
			value = 10 * value + *at - '0';
		else if (*at == '\t' && at[1] != '\n')
			value = 0;
	}
	return value;
}

static void add_file(pid_t pid, int fds, int infos, const char *name)
{
	char info[512], path[4096], *at;
	struct file *file;
	ssize_t length;

	if (slurp(infos, name, info, sizeof(info)) < 0)
		return;
	length = readlinkat(fds, name, path, sizeof(path));
	if (length < 0 && errno != ENAMETOOLONG)
		return;
	files = grow(files, file_count + 1, &file_room, sizeof(*files));
	file = &files[file_count++];
	file->pid = pid;
	file->fd = strtoul(name, NULL, 10);
	file->process = process_count - 1;
	file->group = 0;
	/* "pos:\t0\nflags:\t02\n" */
	file->position = strtoull(info + 5, &at, 10);
	file->flags = strtoul(at + 8, NULL, 8);
	file->path = keep(length < 0 ? "(path too long)" : path, length < 0 ? 15 : length);
}

static int open_directory(int dir, const char *name)
{
	return openat(dir, name, O_RDONLY | O_DIRECTORY);
}

static void add_files(pid_t pid, int dir)
{
	int fds = open_directory(dir, "fd"), infos = open_directory(dir, "fdinfo");
	struct dirent *entry;
	DIR *list;

	list = fds < 0 ? NULL : fdopendir(fds);
	if (list && infos >= 0)
		while ((entry = readdir(list)))
			if (entry->d_name[0] != '.')
				add_file(pid, fds, infos, entry->d_name);
	if (list)
		closedir(list);
	if (infos >= 0)
		close(infos);
}

static void add_process(const char *name, const char *wanted, const char *host)
{
	char namespace[64], status[4096], stat[1024], header[256], *comm, *end;
	int dir = open_directory(procfs, name);
	struct process *process;
	ssize_t length;

	if (dir < 0)
		return;
	length = readlinkat(dir, "ns/pid", namespace, sizeof(namespace) - 1);
	if (length < 0)
		goto out;
	namespace[length] = '\0';
	if (wanted ? strcmp(namespace, wanted) : !strcmp(namespace, host))
		goto out;
	if (slurp(dir, "status", status, sizeof(status)) < 0)
		goto out;
	if (slurp(dir, "stat", stat, sizeof(stat)) < 0)
		goto out;
	comm = strchr(stat, '(');
	end = strrchr(stat, ')');
	if (!comm || !end)
		goto out;
	*end = '\0';

	processes = grow(processes, process_count + 1, &process_room, sizeof(*processes));
	process = &processes[process_count++];
	/* The parent's global pid; its pid in the namespace would take another file to read. */
	length = snprintf(header, sizeof(header), "%s\t%s\t%ld\t%ld\t%ld\t%s\n", namespace, name,
			  innermost(status, "NSpid:"), innermost(status, "PPid:"),
			  innermost(status, "NSpgid:"), comm + 1);
	process->header = keep(header, length);
	process->first = file_count;
	add_files(strtoul(name, NULL, 10), dir);
	process->count = file_count - process->first;
out:
	close(dir);
}

/* Compare as kcmp(2) orders open files. */
static int by_open_file(const void *a, const void *b)
{
	const struct file *one = *(const struct file *const *)a;
	const struct file *two = *(const struct file *const *)b;
	long order = syscall(SYS_kcmp, one->pid, two->pid, KCMP_FILE, one->fd, two->fd);

	if (order < 0 && errno != ESRCH && errno != EBADF)
		err(1, "kcmp");
	return order == 1 ? -1 : order == 2;
}

static void number_groups(void)
{
	unsigned long group = 0;

	sorted = realloc(sorted, (file_count + 1) * sizeof(*sorted));
	if (!sorted)
		err(1, "realloc");
	for (size_t i = 0; i < file_count; i++)
		sorted[i] = &files[i];
	qsort(sorted, file_count, sizeof(*sorted), by_open_file);
	for (size_t i = 0; i < file_count; i++) {
		if (i && by_open_file(&sorted[i - 1], &sorted[i]))
			group++;
		sorted[i]->group = group;
	}
}

/* Write the module's lines to memory; names are not escaped, which saves time. */
static void print(struct reading *reading)
{
	size_t at = 0;

	for (size_t i = 0; i < process_count; i++) {
		struct process *process = &processes[i];

		output = grow(output, at + 512, &output_room, 1);
		at += sprintf(output + at, "%s", text + process->header);
		for (size_t k = process->first; k < process->first + process->count; k++) {
			struct file *file = &files[k];

			output = grow(output, at + 4096 + 256, &output_room, 1);
			at += sprintf(output + at, "%u\t%d\t%lx\t%llu\t0%lo\t%s\n", file->fd,
				      !!(file->flags & O_CLOEXEC), file->group, file->position,
				      file->flags & ~(unsigned long)O_CLOEXEC, text + file->path);
		}
		output[at++] = '\n';
		reading->lines += process->count + 2;
	}
	reading->bytes = at;
}

static void walk(struct reading *reading, int count)
{
	char host[64] = "", wanted[64] = "", name[64];
	struct dirent *entry;
	ssize_t length;
	DIR *list;

	(void)count;	/* lines are always counted, at no cost */
	file_count = process_count = text_length = 0;
	length = readlink("/proc/self/ns/pid", host, sizeof(host) - 1);
	if (length < 0)
		err(1, "/proc/self/ns/pid");
	if (only) {
		snprintf(name, sizeof(name), "/proc/%d/ns/pid", only);
		if (readlink(name, wanted, sizeof(wanted) - 1) < 0)
			err(1, "%s", name);
	}
	list = fdopendir(open_directory(procfs, "."));
	if (!list)
		err(1, "fdopendir");
	while ((entry = readdir(list)))
		if (entry->d_name[0] >= '1' && entry->d_name[0] <= '9')
			add_process(entry->d_name, only ? wanted : NULL, host);
	closedir(list);
	if (with_kcmp)
		number_groups();
	print(reading);
}

int main(int argc, char **argv)
{
	if (argc < 5 || argc > 6)
		errx(2, "usage: bench_walk passes|loop <n> plain|kcmp <proc> [pid]");
	with_kcmp = !strcmp(argv[3], "kcmp");
	if (!with_kcmp && strcmp(argv[3], "plain"))
		errx(2, "expected plain or kcmp, not %s", argv[3]);
	procfs = open(argv[4], O_RDONLY | O_DIRECTORY);
	if (procfs < 0)
		err(1, "%s", argv[4]);
	if (argc == 6)
		only = number(argv[5]);
	bench_main(argv, walk);
	return 0;
}
