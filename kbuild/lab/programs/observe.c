// SPDX-License-Identifier: GPL-2.0
/*
 * Print the kernel's view of every process outside the initial PID namespace.  kernel_view.h
 * describes the form of the lines.
 */
#define _GNU_SOURCE
#include "kernel_view.h"

int main(void)
{
	struct text text = { 0 };

	take_view(&text);
	if (fwrite(text.data, 1, text.length, stdout) != text.length || fflush(stdout))
		err(1, "standard output");
	return 0;
}
