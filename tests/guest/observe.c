// SPDX-License-Identifier: GPL-2.0
/*
 * Say what /proc and kcmp(2) say of every process outside the initial PID namespace.
 *
 * It must run in the initial namespace, as root, while those processes hold still.
 *
 *	P <pid> <pid in its namespace> <ppid there> <pgid there> <namespace inode> <comm>
 *	F <fd> <close-on-exec> <group> <position> <flags> <path>
 *
 * Names are in hexadecimal, "-" for none; a path too long to be read is "!".  Flags are
 * octal, without O_CLOEXEC, which /proc/PID/fdinfo mixes in.  Descriptors of one open
 * file, and only those, have the same group number.  A last line is "end <lines>".
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LEVELS 33	/* MAX_PID_NS_LEVEL, and the initial one */

struct file {
	pid_t task;	/* kcmp() finds the table through it */
	unsigned int fd;
	unsigned long group;
	int cloexec;
	unsigned long flags;
	unsigned long long position;
	char *path;	/* NULL: too long */
};

struct process {
	pid_t pid, ns_pid, ns_ppid, ns_pgid;
	unsigned long ns;
	char *comm;
	size_t first, files;
};

static struct process *processes;
static size_t process_count, process_room;
static struct file *files;
static size_t file_count, file_room;

static void *grow(void *items, size_t count, size_t *room, size_t size)
{
	if (count < *room)
		return items;
	*room = *room ? 2 * *room : 1024;
	items = realloc(items, *room * size);
	if (!items)
		err(1, "realloc");
	return items;
}

/* Read a small file of /proc whole; the result is terminated, and valid until the next. */
static char *slurp(const char *format, ...)
{
	static char text[16384];
	char path[128];
	size_t length = 0;
	ssize_t got;
	va_list list;
	int fd;

	va_start(list, format);
	vsnprintf(path, sizeof(path), format, list);
	va_end(list);
	fd = open(path, O_RDONLY);
	if (fd < 0)
		err(1, "%s", path);
	while ((got = read(fd, text + length, sizeof(text) - 1 - length)) > 0)
		length += got;
	if (got < 0)
		err(1, "%s", path);
	if (length == sizeof(text) - 1)
		errx(1, "%s is longer than %zu bytes", path, length);
	close(fd);
	text[length] = '\0';
	return text;
}

/* Return what follows a label at the beginning of a line. */
static const char *field(const char *text, const char *label)
{
	const char *line = text;
	size_t length = strlen(label);

	while (line) {
		if (!strncmp(line, label, length))
			return line + length;
		line = strchr(line, '\n');
		if (line)
			line++;
	}
	errx(1, "no %s in: %s", label, text);
}

/* Read the numbers of a line of /proc/PID/status, from our namespace inwards. */
static int numbers(const char *text, pid_t *values)
{
	char *end;
	int count = 0;

	while (*text != '\n' && count < LEVELS) {
		values[count] = strtol(text, &end, 10);
		if (end == text)
			break;
		count++;
		text = end;
	}
	return count;
}

/* What a parent is called in the namespace that is `level` deep: 0 if it is not in it. */
static pid_t parent_at(pid_t parent, int level)
{
	pid_t values[LEVELS];

	if (!parent)
		return 0;
	return numbers(field(slurp("/proc/%d/status", parent), "NSpid:"), values) > level ?
		       values[level] : 0;
}

static void add_file(pid_t pid, pid_t task, unsigned int fd)
{
	char name[64], path[8192];
	struct file *file;
	const char *text;
	ssize_t length;

	files = grow(files, file_count, &file_room, sizeof(*files));
	file = &files[file_count++];
	*file = (struct file){ .task = task, .fd = fd };

	text = slurp("/proc/%d/task/%d/fdinfo/%u", pid, task, fd);
	file->position = strtoull(field(text, "pos:"), NULL, 10);
	file->flags = strtoul(field(text, "flags:"), NULL, 8);
	file->cloexec = !!(file->flags & O_CLOEXEC);
	file->flags &= ~(unsigned long)O_CLOEXEC;

	snprintf(name, sizeof(name), "/proc/%d/task/%d/fd/%u", pid, task, fd);
	length = readlink(name, path, sizeof(path) - 1);
	if (length < 0 && errno != ENAMETOOLONG)
		err(1, "%s", name);
	if (length >= 0) {
		path[length] = '\0';
		file->path = strdup(path);
		if (!file->path)
			err(1, "strdup");
	}
}

static int by_fd(const void *a, const void *b)
{
	const struct file *one = a, *two = b;

	return one->fd < two->fd ? -1 : one->fd > two->fd;
}

/* List the descriptors of a thread; returns how many. */
static size_t add_files(pid_t pid, pid_t task)
{
	size_t before = file_count;
	struct dirent *entry;
	char name[64];
	DIR *dir;

	snprintf(name, sizeof(name), "/proc/%d/task/%d/fd", pid, task);
	dir = opendir(name);
	if (!dir)
		err(1, "%s", name);
	while ((entry = readdir(dir)))
		if (isdigit((unsigned char)entry->d_name[0]))
			add_file(pid, task, strtoul(entry->d_name, NULL, 10));
	closedir(dir);
	qsort(files + before, file_count - before, sizeof(*files), by_fd);
	return file_count - before;
}

/* The table of a process is its leader's, or its first thread's when that has ended. */
static size_t add_process_files(pid_t pid, int dead)
{
	struct dirent *entry;
	size_t count = 0;
	char name[64];
	DIR *dir;

	if (!dead)
		return add_files(pid, pid);
	snprintf(name, sizeof(name), "/proc/%d/task", pid);
	dir = opendir(name);
	if (!dir)
		err(1, "%s", name);
	while (!count && (entry = readdir(dir)))
		if (isdigit((unsigned char)entry->d_name[0]) && atoi(entry->d_name) != pid)
			count = add_files(pid, atoi(entry->d_name));
	closedir(dir);
	return count;
}

static void add_process(pid_t pid)
{
	pid_t values[LEVELS], groups[LEVELS], parent;
	char name[64], link[64], *text;
	struct process *process;
	int levels, dead;
	ssize_t length;

	text = slurp("/proc/%d/status", pid);
	levels = numbers(field(text, "NSpid:"), values);
	if (levels < 2)
		return;
	if (numbers(field(text, "NSpgid:"), groups) != levels)
		errx(1, "%d: NSpid and NSpgid differ in length", pid);
	parent = atoi(field(text, "PPid:"));
	dead = *(field(text, "State:") + 1) == 'Z';

	processes = grow(processes, process_count, &process_room, sizeof(*processes));
	process = &processes[process_count++];
	*process = (struct process){
		.pid = pid,
		.ns_pid = values[levels - 1],
		.ns_pgid = groups[levels - 1],
		.ns_ppid = parent_at(parent, levels - 1),
		.first = file_count,
	};

	snprintf(name, sizeof(name), "/proc/%d/ns/pid", pid);
	length = readlink(name, link, sizeof(link) - 1);
	if (length < 0)
		err(1, "%s", name);
	link[length] = '\0';
	if (sscanf(link, "pid:[%lu]", &process->ns) != 1)
		errx(1, "%s: %s", name, link);

	text = slurp("/proc/%d/comm", pid);
	text[strlen(text) - 1] = '\0';	/* its newline */
	process->comm = strdup(text);
	if (!process->comm)
		err(1, "strdup");
	process->files = add_process_files(pid, dead);
}

/* The kernel's own order of open files, which kcmp(2) gives without their addresses. */
static int by_open_file(const void *a, const void *b)
{
	const struct file *one = *(const struct file *const *)a;
	const struct file *two = *(const struct file *const *)b;
	long result = syscall(SYS_kcmp, one->task, two->task, KCMP_FILE, one->fd, two->fd);

	if (result < 0)
		err(1, "kcmp of %d:%u and %d:%u", one->task, one->fd, two->task, two->fd);
	if (result > 2)
		errx(1, "kcmp gives no order: %ld", result);
	return result == 1 ? -1 : result == 2;
}

static void number_groups(void)
{
	struct file **sorted = calloc(file_count + 1, sizeof(struct file *));
	unsigned long group = 0;

	if (!sorted)
		err(1, "calloc");
	for (size_t i = 0; i < file_count; i++)
		sorted[i] = &files[i];
	qsort(sorted, file_count, sizeof(*sorted), by_open_file);
	for (size_t i = 0; i < file_count; i++) {
		if (i && by_open_file(&sorted[i - 1], &sorted[i]))
			group++;
		sorted[i]->group = group;
	}
	free(sorted);
}

static void print_name(const char *name)
{
	if (!name)
		putchar('!');
	else if (!*name)
		putchar('-');
	else
		for (; *name; name++)
			printf("%02x", (unsigned char)*name);
	putchar('\n');
}

static int by_pid(const void *a, const void *b)
{
	const struct process *one = a, *two = b;

	return one->pid < two->pid ? -1 : one->pid > two->pid;
}

int main(void)
{
	struct dirent *entry;
	DIR *dir = opendir("/proc");

	if (!dir)
		err(1, "/proc");
	while ((entry = readdir(dir)))
		if (isdigit((unsigned char)entry->d_name[0]))
			add_process(atoi(entry->d_name));
	closedir(dir);
	qsort(processes, process_count, sizeof(*processes), by_pid);
	number_groups();

	for (size_t i = 0; i < process_count; i++) {
		const struct process *process = &processes[i];

		printf("P %d %d %d %d %lu ", process->pid, process->ns_pid, process->ns_ppid,
		       process->ns_pgid, process->ns);
		print_name(process->comm);
		for (size_t k = process->first; k < process->first + process->files; k++) {
			printf("F %u %d %lu %llu %lo ", files[k].fd, files[k].cloexec,
			       files[k].group, files[k].position, files[k].flags);
			print_name(files[k].path);
		}
	}
	printf("end %zu\n", process_count + file_count);
	return 0;
}
