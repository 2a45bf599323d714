/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A FUSE server without a library: a directory with some files of zeros, called "0", "1"
 * and so on.  It reports each FLUSH to its caller, which returns the milliseconds by which
 * to delay the answer.
 */
#ifndef FUSE_SERVER_H
#define FUSE_SERVER_H

#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define FUSE_SERVER_FILES 8	/* at most 10: a name is one digit */
#define FUSE_SERVER_FILE 2	/* the node of the first file; the directory is FUSE_ROOT_ID */
#define FUSE_SERVER_BYTES 4096	/* in each file */
#define FUSE_SERVER_KEPT 64	/* answers that are delayed at one time */

/* pid: the sender, in the PID namespace of the process that has opened /dev/fuse. */
typedef unsigned int (*fuse_server_flush)(uint32_t pid);

/* Mount @device, a descriptor of /dev/fuse, on a directory without serving it; return it. */
static inline int fuse_server_mount(const char *device, const char *directory)
{
	char options[80];
	int fd = open(device, O_RDWR | O_CLOEXEC);

	if (fd < 0)
		err(1, "%s", device);
	snprintf(options, sizeof(options), "fd=%d,rootmode=40000,user_id=0,group_id=0", fd);
	if (mount("tests", directory, "fuse", MS_NOSUID | MS_NODEV, options))
		err(1, "mount of fuse");
	return fd;
}

/* A request that was interrupted or aborted no longer exists: ENOENT is no fault. */
static inline void fuse_server_answer(int fd, uint64_t unique, int error, void *out, size_t size)
{
	struct fuse_out_header header = {
		.len = sizeof(header) + (error ? 0 : size), .error = -error, .unique = unique,
	};
	struct iovec parts[] = { { &header, sizeof(header) }, { out, error ? 0 : size } };

	if (writev(fd, parts, 2) < 0 && errno != ENOENT)
		err(1, "an answer to the kernel");
}

static inline struct fuse_attr fuse_server_attr(uint64_t node)
{
	bool root = node == FUSE_ROOT_ID;

	return (struct fuse_attr){
		.ino = node, .nlink = 1, .blksize = 4096,
		.size = root ? 0 : FUSE_SERVER_BYTES,
		.mode = root ? S_IFDIR | 0755 : S_IFREG | 0644,
	};
}

static inline void fuse_server_lookup(int fd, uint64_t unique, const char *name)
{
	struct fuse_entry_out out = { .nodeid = FUSE_SERVER_FILE + (name[0] - '0') };

	if (name[0] < '0' || name[0] >= '0' + FUSE_SERVER_FILES || name[1])
		return fuse_server_answer(fd, unique, ENOENT, NULL, 0);
	out.attr = fuse_server_attr(out.nodeid);
	fuse_server_answer(fd, unique, 0, &out, sizeof(out));
}

static inline void fuse_server_read(int fd, uint64_t unique, const struct fuse_read_in *asked)
{
	static char zeros[FUSE_SERVER_BYTES];
	size_t size = asked->size < sizeof(zeros) ? asked->size : sizeof(zeros);

	fuse_server_answer(fd, unique, 0, zeros, asked->offset ? 0 : size);
}

static inline long long fuse_server_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

/* Answer everything but FLUSH, which the caller decides. */
static inline void fuse_server_serve(int fd, const struct fuse_in_header *in)
{
	const void *argument = in + 1;

	switch (in->opcode) {
	case FUSE_INIT: {
		const struct fuse_init_in *asked = argument;
		struct fuse_init_out out = {
			.major = FUSE_KERNEL_VERSION, .max_write = 4096,
			.minor = asked->minor < FUSE_KERNEL_MINOR_VERSION ?
				 asked->minor : FUSE_KERNEL_MINOR_VERSION,
		};

		return fuse_server_answer(fd, in->unique, 0, &out, sizeof(out));
	}
	case FUSE_LOOKUP:
		return fuse_server_lookup(fd, in->unique, argument);
	case FUSE_GETATTR: {
		struct fuse_attr_out out = { .attr = fuse_server_attr(in->nodeid) };

		return fuse_server_answer(fd, in->unique, 0, &out, sizeof(out));
	}
	case FUSE_OPEN: {
		struct fuse_open_out out = { 0 };

		return fuse_server_answer(fd, in->unique, 0, &out, sizeof(out));
	}
	case FUSE_READ:
		return fuse_server_read(fd, in->unique, argument);
	case FUSE_RELEASE:
		return fuse_server_answer(fd, in->unique, 0, NULL, 0);
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET:
	case FUSE_INTERRUPT:
		return;		/* these have no answer */
	default:
		return fuse_server_answer(fd, in->unique, ENOSYS, NULL, 0);
	}
}

/* Serve until the file system is unmounted or this process is killed. */
static inline void fuse_server_run(int fd, fuse_server_flush flush)
{
	/* As much as the kernel may send, and aligned as its structures are. */
	static uint64_t request[(1 << 16) / sizeof(uint64_t) + 1024];
	struct { uint64_t unique; long long due; } kept[FUSE_SERVER_KEPT];
	unsigned int count = 0;

	for (;;) {
		struct pollfd input = { .fd = fd, .events = POLLIN };
		const struct fuse_in_header *in = (void *)request;
		unsigned int wait_ms;
		ssize_t got;

		for (unsigned int i = 0; i < count; i++) {
			if (kept[i].due > fuse_server_ms())
				continue;
			fuse_server_answer(fd, kept[i].unique, 0, NULL, 0);
			kept[i--] = kept[--count];
		}
		if (!poll(&input, 1, count ? 10 : 1000))
			continue;
		got = read(fd, request, sizeof(request));
		if (got < 0 && (errno == ENOENT || errno == EINTR || errno == EAGAIN))
			continue;	/* the request was interrupted before it was read */
		if (got < (ssize_t)sizeof(*in))
			return;		/* ENODEV: unmounted */
		if (in->opcode != FUSE_FLUSH) {
			fuse_server_serve(fd, in);
			continue;
		}
		wait_ms = flush(in->pid);
		if (wait_ms && count < FUSE_SERVER_KEPT) {
			kept[count].unique = in->unique;
			kept[count++].due = fuse_server_ms() + wait_ms;
		} else {
			fuse_server_answer(fd, in->unique, 0, NULL, 0);
		}
	}
}

#endif
