/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Sort the lines of standard input with sort(1), to which they go through a pipe.
 *
 * A student's program.  Compiled with -DCLOSED it is correct.  Without, the child keeps the pipe's
 * write end, so sort(1) waits for ever for the end of its own input.
 */
#include <err.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

int main(void)
{
	char line[256];
	int ends[2];

	if (pipe(ends))
		err(1, "pipe");
	switch (fork()) {
	case -1:
		err(1, "fork");
	case 0:
		if (dup2(ends[0], STDIN_FILENO) < 0)
			err(1, "dup2");
		close(ends[0]);
#ifdef CLOSED
		close(ends[1]);
#endif
		execlp("sort", "sort", NULL);
		err(1, "sort");
	}
	close(ends[0]);
	while (fgets(line, sizeof(line), stdin))
		if (write(ends[1], line, strlen(line)) < 0)
			err(1, "write");
	close(ends[1]);
	return wait(NULL) < 0;
}
