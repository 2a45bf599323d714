/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The view that /proc and kcmp(2) give of every process outside the initial PID namespace.
 *
 * For programs that run in the initial namespace, as root, while those processes hold
 * still.  take_view() appends to a text:
 *
 *	P <pid> <pid in its namespace> <ppid there> <pgid there> <state> <blocked> <pending>
 *	  <namespace inode> <comm>						(one line)
 *	F <fd> <close-on-exec> <group> <position> <flags> <path>
 *	end <lines before this one>
 *
 * Names are in hexadecimal, "-" for none; a path too long to be read is "!".  Signals are
 * the kernel's 64 bits in hexadecimal; pending ones are those of the process and of its first
 * thread.  Descriptors of one open file, and only those, have the same group number.
 *
 * Flags are octal, and always without O_CLOEXEC.  /proc/PID/fdinfo adds the O_CLOEXEC of the
 * descriptor.  Some kernels also show that of the open file, where a few system calls leave
 * it.  If the open file has it, fdinfo does not tell the descriptor's close-on-exec, and the
 * column is "?".
 */
#ifndef KERNEL_VIEW_H
#define KERNEL_VIEW_H

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

/* Bytes that grow; the caller keeps them from one use to the next. */
struct text {
	char *data;
	size_t length, room;
};

struct view_file {
	pid_t task;	/* with which kcmp() finds the table */
	unsigned int fd;
	unsigned long group;
	char cloexec;	/* '0', '1' or '?' */
	unsigned long flags;
	long long position;
	size_t path;	/* offset in the names */
};

struct view_process {
	pid_t pid, ns_pid, ns_ppid, ns_pgid;
	char state;
	unsigned long long blocked, pending;
	unsigned long ns;
	size_t comm;	/* offset in the names */
	size_t first, files;
};

static struct view_process *view_processes;
static size_t view_process_count, view_process_room;
static struct view_file *view_files;
static size_t view_file_count, view_file_room;
static struct text view_names;	/* in hexadecimal, each terminated */

static void reserve(struct text *text, size_t more)
{
	if (text->length + more <= text->room)
		return;
	text->room = 2 * (text->length + more);
	text->data = realloc(text->data, text->room);
	if (!text->data)
		err(1, "realloc");
}

__attribute__((format(printf, 2, 3)))
static void append(struct text *text, const char *format, ...)
{
	va_list list;
	int length;

	va_start(list, format);
	length = vsnprintf(NULL, 0, format, list);
	va_end(list);
	reserve(text, length + 1);
	va_start(list, format);
	vsnprintf(text->data + text->length, length + 1, format, list);
	va_end(list);
	text->length += length;
}

static void *view_grow(void *items, size_t count, size_t *room, size_t size)
{
	if (count < *room)
		return items;
	*room = *room ? 2 * *room : 1024;
	items = realloc(items, *room * size);
	if (!items)
		err(1, "realloc");
	return items;
}

/* Keep a name; NULL stands for one that is too long to be known. */
static size_t keep_name(const char *name)
{
	size_t offset = view_names.length;

	reserve(&view_names, 2 * (name ? strlen(name) : 0) + 2);
	if (!name || !*name)
		view_names.data[view_names.length++] = name ? '-' : '!';
	else
		for (; *name; name++) {
			unsigned char c = *name;

			view_names.data[view_names.length++] = "0123456789abcdef"[c >> 4];
			view_names.data[view_names.length++] = "0123456789abcdef"[c & 15];
		}
	view_names.data[view_names.length++] = '\0';
	return offset;
}

/* Read a whole small file below a directory; the result is valid until the next call. */
static char *slurp_at(int dir, const char *name)
{
	static char text[16384];
	size_t length = 0;
	ssize_t got;
	int fd;

	fd = openat(dir, name, O_RDONLY);
	if (fd < 0)
		err(1, "%s", name);
	while ((got = read(fd, text + length, sizeof(text) - 1 - length)) > 0)
		length += got;
	if (got < 0)
		err(1, "%s", name);
	if (length == sizeof(text) - 1)
		errx(1, "%s is longer than %zu bytes", name, length);
	close(fd);
	text[length] = '\0';
	return text;
}

/* Return the text after a label at the beginning of a line. */
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

/* Return a parent's pid in the namespace that is `level` deep, or 0 if it is not in it. */
static pid_t parent_at(pid_t parent, int level)
{
	pid_t values[LEVELS];
	char name[64];

	if (!parent)
		return 0;
	snprintf(name, sizeof(name), "/proc/%d/status", parent);
	return numbers(field(slurp_at(AT_FDCWD, name), "NSpid:"), values) > level ?
		       values[level] : 0;
}

/* The state and the parent in /proc/PID/stat, whose second field may hold anything. */
static char stat_state(const char *text, pid_t *parent)
{
	const char *end = strrchr(text, ')');
	char state;

	if (!end || sscanf(end, ") %c %d", &state, parent) != 2)
		errx(1, "stat: %s", text);
	return state;
}

/* Tell whether an open file itself has O_CLOEXEC; false too if a zombie prevents the check. */
static int file_keeps_cloexec(pid_t pid, unsigned int fd)
{
	int pidfd = syscall(__NR_pidfd_open, pid, 0), copy, flags;

	if (pidfd < 0)
		err(1, "pidfd_open of %d", pid);
	copy = syscall(__NR_pidfd_getfd, pidfd, fd, 0);
	if (copy < 0 && errno != EBADF && errno != ESRCH)
		err(1, "pidfd_getfd of %d:%u", pid, fd);
	close(pidfd);
	if (copy < 0)
		return 0;
	flags = fcntl(copy, F_GETFL);
	if (flags < 0)
		err(1, "flags of %d:%u", pid, fd);
	close(copy);
	return !!(flags & O_CLOEXEC);
}

static void view_add_file(pid_t pid, int info, int links, pid_t task, unsigned int fd)
{
	char name[16], path[8192];
	struct view_file *file;
	const char *text;
	ssize_t length;

	view_files = view_grow(view_files, view_file_count, &view_file_room, sizeof(*view_files));
	file = &view_files[view_file_count++];
	*file = (struct view_file){ .task = task, .fd = fd };

	snprintf(name, sizeof(name), "%u", fd);
	text = slurp_at(info, name);
	file->position = strtoll(field(text, "pos:"), NULL, 10);
	file->flags = strtoul(field(text, "flags:"), NULL, 8);
	file->cloexec = '0';
	if (file->flags & O_CLOEXEC)
		file->cloexec = file_keeps_cloexec(pid, fd) ? '?' : '1';
	file->flags &= ~(unsigned long)O_CLOEXEC;

	length = readlinkat(links, name, path, sizeof(path) - 1);
	if (length < 0 && errno != ENAMETOOLONG)
		err(1, "descriptor %u of %d", fd, task);
	if (length >= 0)
		path[length] = '\0';
	file->path = keep_name(length < 0 ? NULL : path);
}

static int by_fd(const void *a, const void *b)
{
	const struct view_file *one = a, *two = b;

	return one->fd < two->fd ? -1 : one->fd > two->fd;
}

/* List the descriptors of a thread; return their number. */
static size_t view_add_files(pid_t pid, pid_t task)
{
	size_t before = view_file_count;
	struct dirent *entry;
	char name[64];
	DIR *dir;
	int info;

	snprintf(name, sizeof(name), "/proc/%d/task/%d/fdinfo", pid, task);
	info = open(name, O_RDONLY | O_DIRECTORY);
	if (info < 0)
		err(1, "%s", name);
	snprintf(name, sizeof(name), "/proc/%d/task/%d/fd", pid, task);
	dir = opendir(name);
	if (!dir)
		err(1, "%s", name);
	while ((entry = readdir(dir)))
		if (isdigit((unsigned char)entry->d_name[0]))
			view_add_file(pid, info, dirfd(dir), task, strtoul(entry->d_name, NULL, 10));
	closedir(dir);
	close(info);
	qsort(view_files + before, view_file_count - before, sizeof(*view_files), by_fd);
	return view_file_count - before;
}

/* The table of a process is its leader's, or its first thread's if the leader has ended. */
static size_t view_add_process_files(pid_t pid, int dead)
{
	struct dirent *entry;
	size_t count = 0;
	char name[64];
	DIR *dir;

	if (!dead)
		return view_add_files(pid, pid);
	snprintf(name, sizeof(name), "/proc/%d/task", pid);
	dir = opendir(name);
	if (!dir)
		err(1, "%s", name);
	while (!count && (entry = readdir(dir)))
		if (isdigit((unsigned char)entry->d_name[0]) && atoi(entry->d_name) != pid)
			count = view_add_files(pid, atoi(entry->d_name));
	closedir(dir);
	return count;
}

/* Read the namespace's inode; return 0 if the process is gone. */
static unsigned long pid_namespace(pid_t pid)
{
	char name[64], link[64];
	unsigned long inode;
	ssize_t length;

	snprintf(name, sizeof(name), "/proc/%d/ns/pid", pid);
	length = readlink(name, link, sizeof(link) - 1);
	if (length < 0 && errno == ENOENT)
		return 0;
	if (length < 0)
		err(1, "%s", name);
	link[length] = '\0';
	if (sscanf(link, "pid:[%lu]", &inode) != 1)
		errx(1, "%s: %s", name, link);
	return inode;
}

static void view_add_process(pid_t pid, unsigned long ns)
{
	pid_t values[LEVELS], groups[LEVELS], parent, stat_parent;
	struct view_process *process;
	int levels, dead, dir;
	char name[64], *text;

	snprintf(name, sizeof(name), "/proc/%d", pid);
	dir = open(name, O_RDONLY | O_DIRECTORY);
	if (dir < 0)
		err(1, "%s", name);
	view_processes = view_grow(view_processes, view_process_count, &view_process_room,
				   sizeof(*view_processes));
	process = &view_processes[view_process_count++];

	text = slurp_at(dir, "status");
	levels = numbers(field(text, "NSpid:"), values);
	if (numbers(field(text, "NSpgid:"), groups) != levels)
		errx(1, "%d: NSpid and NSpgid differ in length", pid);
	parent = atoi(field(text, "PPid:"));
	*process = (struct view_process){
		.pid = pid,
		.ns_pid = values[levels - 1],
		.ns_pgid = groups[levels - 1],
		.state = field(text, "State:")[1],
		.blocked = strtoull(field(text, "SigBlk:"), NULL, 16),
		.pending = strtoull(field(text, "SigPnd:"), NULL, 16) |
			   strtoull(field(text, "ShdPnd:"), NULL, 16),
		.ns = ns,
		.first = view_file_count,
	};
	dead = process->state == 'Z';
	if (stat_state(slurp_at(dir, "stat"), &stat_parent) != process->state ||
	    stat_parent != parent)
		errx(1, "%d does not hold still: stat and status differ", pid);
	text = slurp_at(dir, "comm");
	text[strlen(text) - 1] = '\0';	/* its newline */
	process->comm = keep_name(text);
	close(dir);

	process->ns_ppid = parent_at(parent, levels - 1);
	process->files = view_add_process_files(pid, dead);
}

/* Order open files as the kernel does; kcmp(2) tells the order without the addresses. */
static int by_open_file(const void *a, const void *b)
{
	const struct view_file *one = *(const struct view_file *const *)a;
	const struct view_file *two = *(const struct view_file *const *)b;
	long result = syscall(SYS_kcmp, one->task, two->task, KCMP_FILE, one->fd, two->fd);

	if (result < 0)
		err(1, "kcmp of %d:%u and %d:%u", one->task, one->fd, two->task, two->fd);
	if (result > 2)
		errx(1, "kcmp gives no order: %ld", result);
	return result == 1 ? -1 : result == 2;
}

static void number_groups(void)
{
	struct view_file **sorted = calloc(view_file_count + 1, sizeof(*sorted));
	unsigned long group = 0;

	if (!sorted)
		err(1, "calloc");
	for (size_t i = 0; i < view_file_count; i++)
		sorted[i] = &view_files[i];
	qsort(sorted, view_file_count, sizeof(*sorted), by_open_file);
	for (size_t i = 0; i < view_file_count; i++) {
		if (i && by_open_file(&sorted[i - 1], &sorted[i]))
			group++;
		sorted[i]->group = group;
	}
	free(sorted);
}

static int by_pid(const void *a, const void *b)
{
	const struct view_process *one = a, *two = b;

	return one->pid < two->pid ? -1 : one->pid > two->pid;
}

/* Append the kernel's view to a text, its last line included. */
static void take_view(struct text *text)
{
	unsigned long own = pid_namespace(getpid()), ns;
	struct dirent *entry;
	DIR *dir = opendir("/proc");

	if (!dir)
		err(1, "/proc");
	view_process_count = 0;
	view_file_count = 0;
	view_names.length = 0;
	while ((entry = readdir(dir))) {
		if (!isdigit((unsigned char)entry->d_name[0]))
			continue;
		ns = pid_namespace(atoi(entry->d_name));
		if (ns && ns != own)
			view_add_process(atoi(entry->d_name), ns);
	}
	closedir(dir);
	qsort(view_processes, view_process_count, sizeof(*view_processes), by_pid);
	number_groups();

	for (size_t i = 0; i < view_process_count; i++) {
		const struct view_process *p = &view_processes[i];

		append(text, "P %d %d %d %d %c %llx %llx %lu %s\n", p->pid, p->ns_pid, p->ns_ppid,
		       p->ns_pgid, p->state, p->blocked, p->pending, p->ns,
		       view_names.data + p->comm);
		for (size_t k = p->first; k < p->first + p->files; k++) {
			const struct view_file *f = &view_files[k];

			append(text, "F %u %c %lu %lld %lo %s\n", f->fd, f->cloexec, f->group,
			       f->position, f->flags, view_names.data + f->path);
		}
	}
	append(text, "end %zu\n", view_process_count + view_file_count);
}

#endif
