/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Differences between kernels, decided by probes (features.h), never by versions.
 *
 * The export backend needs get_files_struct() and put_files_struct().  No kernel exports
 * them without our patch.  Linux 5.11 removed the first one (fa67bf885e52, "file: Remove
 * get_files_struct").
 */
#ifndef CPG_COMPAT_H
#define CPG_COMPAT_H

#include <linux/fdtable.h>

#include "features.h"

#define CPG_DEFAULT "stock"

#ifdef CPG_HAVE_FILES_STRUCT

#define CPG_BACKENDS "stock export"
#define CPG_HAS_EXPORT true

/* Returns a reference on the task's table, or NULL.  Takes task_lock. */
static inline struct files_struct *cpg_get_files(struct task_struct *task)
{
	return get_files_struct(task);
}

/* Drops a reference.  Dropping the last one closes the files and waits for their ->flush. */
static inline void cpg_put_files(struct files_struct *files)
{
	put_files_struct(files);
}

#else

#define CPG_BACKENDS "stock"
#define CPG_HAS_EXPORT false

static inline struct files_struct *cpg_get_files(struct task_struct *task)
{
	return NULL;
}

static inline void cpg_put_files(struct files_struct *files)
{
}

#endif

#endif
