"""The module's probes with each suite's own compiler, and headers that lack something."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kbuild.core import sandbox, suites
from kbuild.core.model import Settings
from kbuild.core.sandbox import Bind
from kbuild.fetch import roots

PROJECT = Path(__file__).parents[2]
_GET = "struct files_struct *get_files_struct(struct task_struct *);"
# The smallest kernel headers for the probes, with a cause for a warning of W=1 as in 5.10's.
_HEADERS = {
    "module.h": """
static inline int nodes(void) { int nid; nid = 1; return 0; }
typedef _Bool bool;
struct super_block;
struct inode { struct super_block *i_sb; };
#define NULL ((void *)0)
enum pid_type { PIDTYPE_TGID };
struct signal_struct { struct pid *pids[1]; };
struct task_struct { int pid; unsigned long start_boottime; struct signal_struct *signal; };
struct path { int dentry; };
struct file { struct path f_path; };
""",
    "sched.h": "",
    "sched/signal.h": "",
    "fs.h": "",
    "dcache.h": "struct path;\nchar *d_path(const struct path *, char *, int);\n",
    "siphash.h": "",
    "radix-tree.h": """
struct radix_tree_iter { int index; };
void **radix_tree_iter_init(struct radix_tree_iter *, unsigned long);
void **radix_tree_next_chunk(const struct root *, struct radix_tree_iter *, unsigned);
""",
    "pid_namespace.h": """
struct root { int height; };
struct idr { struct root idr_rt; };
struct pid_namespace { struct idr idr; };
extern struct pid_namespace init_pid_ns;
""",
    "proc_fs.h": """
struct proc_ops { long (*proc_read_iter)(void *, void *); };
struct pid_namespace *proc_pid_ns(struct super_block *);
""",
    "seq_file.h": "long seq_read_iter(void *, void *);",
    "fdtable.h": f"struct files_struct;\n{_GET}\nvoid put_files_struct(struct files_struct *);\n",
}
# The flags from W=1 and KCFLAGS=-Werror, and the C standard of 5.10, where an undeclared function
# returns int.
_FLAGS = ("-std=gnu89", "-Wall", "-Wunused-but-set-variable", "-Werror")
_SYMVERS = "0x1\tget_files_struct\tvmlinux\tE\t\n0x2\tput_files_struct\tvmlinux\tE\t\n"


@pytest.mark.parametrize(
    ("header", "there", "instead", "message"),
    [
        ("fs.h", "", "", None),
        ("fdtable.h", _GET, "", "its headers lack it"),
        ("fdtable.h", "(struct files_struct *);", "(int);", "its headers lack it"),
        ("fdtable.h", "struct files_struct *get", "int get", "its headers lack it"),
        ("seq_file.h", "long seq_read_iter", "void seq_read_iter", "newer than version 1.2.3"),
        ("proc_fs.h", "proc_read_iter", "proc_read", "newer than version 1.2.3"),
        ("dcache.h", "const struct path *", "struct inode *", "newer than version 1.2.3"),
        ("module.h", "start_boottime", "start_time", "newer than version 1.2.3"),
        ("sched.h", "", "#error", "the kernel headers are not usable"),
    ],
    ids=["all", "no function", "argument", "result", "pointer", "member", "path", "time", "header"],
)
def test_a_probe_minds_what_is_used_and_no_warning_of_a_header(
    settings: Settings,
    suite: str,
    tmp_path: Path,
    header: str,
    there: str,
    instead: str,
    message: str | None,
) -> None:
    shutil.copytree(PROJECT / "kmod", tmp_path / "kmod")
    include = tmp_path / "include" / "linux"
    (include / "sched").mkdir(parents=True)
    for name, text in _HEADERS.items():
        assert name != header or there in text
        changed = text.replace(there, instead) if there else instead or text
        (include / name).write_text(changed if name == header else text)
    (tmp_path / "Module.symvers").write_text(_SYMVERS)
    done = sandbox.enter(
        roots.compile_root(settings, suite),
        [
            *("sh", "kmod/probe.sh", "features.h", "Module.symvers", "1.2.3"),
            *(suites.suite(suite).compiler, *_FLAGS, "-I", "include"),
        ],
        timeout_s=60,
        binds=[Bind(tmp_path, "/mnt/probe", writable=True)],
        cwd="/mnt/probe",
        log=tmp_path / "log",
        check=False,
    )
    features = tmp_path / "features.h"
    if message is None:
        assert done.returncode == 0, done.stdout
        assert "#define CPG_HAVE_FILES_STRUCT 1" in features.read_text()
        assert "-Wunused-but-set-variable" in (tmp_path / "features.log").read_text()
    else:
        assert done.returncode == 1
        assert message in done.stdout
        assert not features.exists()
