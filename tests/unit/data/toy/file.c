#include <linux/fdtable.h>

static struct fdtable *close_files(struct files_struct * files)
{
	return files->fdt;
}

void put_files_struct(struct files_struct *files)
{
	if (files)
		close_files(files);
}

void exit_files(struct task_struct *tsk)
{
}
EXPORT_SYMBOL(exit_files);
