// SPDX-License-Identifier: GPL-2.0-only
/*
 * Run a command with a file system mounted, or bound, that only the command can see.
 *
 *	mounted <type> <directory> <options or -> <command...>
 *	mounted bind <directory> <from> <command...>
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <sched.h>
#include <stddef.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	int bind, failed;

	if (argc < 5)
		errx(2, "usage: mounted <type> <directory> <options> <command...>");
	if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
		err(1, "a mount namespace");
	if (mkdir(argv[2], 0755) && errno != EEXIST)
		err(1, "%s", argv[2]);
	bind = !strcmp(argv[1], "bind");
	if (bind)
		failed = mount(argv[3], argv[2], NULL, MS_BIND | MS_REC, NULL);
	else
		failed = mount(argv[1], argv[2], argv[1], 0,
			       strcmp(argv[3], "-") ? argv[3] : NULL);
	if (failed)
		err(1, "mount %s at %s", argv[1], argv[2]);
	execvp(argv[4], argv + 4);
	err(1, "%s", argv[4]);
}
