// SPDX-License-Identifier: GPL-2.0
/*
 * Run a command to its end, with its output in a file in memory.
 *
 *	bench_run passes <n> <command> [argument...]
 *
 * Every run must end with status 0.  The output may differ between runs, since a tool shows
 * its own process, so its bytes are not compared.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "bench.h"

static char buffer[64 * 1024];
static char **command;

static void count_output(int fd, struct reading *reading)
{
	off_t at = 0;
	ssize_t got;

	while ((got = pread(fd, buffer, sizeof(buffer), at)) > 0) {
		for (ssize_t i = 0; i < got; i++)
			reading->lines += buffer[i] == '\n';
		at += got;
	}
	if (got < 0)
		err(1, "pread");
}

static void run_command(struct reading *reading, int count)
{
	int out = memfd_create("output", MFD_CLOEXEC), status;
	pid_t pid;

	if (out < 0)
		err(1, "memfd_create");
	pid = fork();
	if (pid < 0)
		err(1, "fork");
	if (!pid) {
		if (dup2(out, 1) < 0)
			err(1, "dup2");
		execvp(command[0], command);
		err(127, "%s", command[0]);
	}
	if (waitpid(pid, &status, 0) < 0)
		err(1, "waitpid");
	if (!WIFEXITED(status) || WEXITSTATUS(status))
		errx(1, "%s ended with wait status %#x", command[0], status);
	if (count)
		count_output(out, reading);
	close(out);
}

int main(int argc, char **argv)
{
	if (argc < 4 || strcmp(argv[1], "passes"))
		errx(2, "usage: bench_run passes <n> <command> [argument...]");
	command = argv + 3;
	bench_main(argv, run_command);
	return 0;
}
