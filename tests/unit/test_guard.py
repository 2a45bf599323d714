"""The guard of the fast path: CRCs, types and the compiler are those of Debian's kernel."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from pathlib import Path

import pytest

from kbuild.core.errors import GuardError
from kbuild.core.model import Series
from kbuild.kernel import guard, quilt, symvers
from kbuild.kernel.kconfig import Fragment
from kbuild.kernel.symvers import ExportedSymbol
from tests.unit import toy


@pytest.fixture
def series(tmp_path: Path) -> Series:
    return quilt.choose(toy.make(tmp_path).patches, "6.1.192")


DISTRO = {
    symbol.name: symbol
    for symbol in (
        ExportedSymbol(0x11111111, "module_layout", "vmlinux", "EXPORT_SYMBOL", ""),
        ExportedSymbol(0x22222222, "fput", "vmlinux", "EXPORT_SYMBOL", ""),
        ExportedSymbol(0x33333333, "ext4_thing", "fs/ext4/ext4", "EXPORT_SYMBOL_GPL", ""),
    )
}
NEW = {
    name: ExportedSymbol(0x44444444, name, "vmlinux", "EXPORT_SYMBOL_GPL", "")
    for name in ("get_files_struct", "put_files_struct")
}
OURS = {name: s for name, s in DISTRO.items() if s.owner == "vmlinux"} | NEW


def test_guard_passes_and_returns_the_new_exports(series: Series) -> None:
    assert guard.guard(DISTRO, OURS, series) == NEW


@pytest.mark.parametrize(
    ("ours", "words"),
    [
        (
            OURS | {"module_layout": dataclasses.replace(OURS["module_layout"], crc=1)},
            "CRC, kind or namespace changed: module_layout",
        ),
        (
            OURS | {"fput": dataclasses.replace(OURS["fput"], kind="EXPORT_SYMBOL_GPL")},
            "CRC, kind or namespace changed: fput",
        ),
        (
            OURS | {"fput": dataclasses.replace(OURS["fput"], namespace="DMA_BUF")},
            "CRC, kind or namespace changed: fput",
        ),
        ({n: s for n, s in OURS.items() if n != "fput"}, "gone: fput"),
        (OURS | {"extra": dataclasses.replace(OURS["fput"], name="extra")}, "not declared: extra"),
        (
            {n: s for n, s in OURS.items() if n != "get_files_struct"},
            "declared, but not exported: get_files_struct",
        ),
    ],
)
def test_guard_names_what_differs_and_offers_the_other_way(
    ours: dict[str, ExportedSymbol], words: str, series: Series
) -> None:
    with pytest.raises(GuardError) as caught:
        guard.guard(DISTRO, ours, series)
    assert words in (caught.value.found or "")
    assert "--modules rebuild" in (caught.value.hint or "")


HEADER = """\
/* SPDX-License-Identifier: GPL-2.0 */
#ifndef FDTABLE_H
#define FDTABLE_H
#define NR_OPEN_DEFAULT BITS_PER_LONG
struct fdtable {
	unsigned int max_fds;
	struct file __rcu **fd;      /* current fd array */
};
static inline bool close_on_exec(unsigned int fd, const struct fdtable *fdt)
{
	return test_bit(fd, fdt->close_on_exec);
}
struct task_struct;
void put_files_struct(struct files_struct *fs);
int iterate_fd(struct files_struct *, unsigned,
		int (*)(const void *, struct file *, unsigned),
		const void *);
extern int sysctl_nr_open;
#endif
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("struct task_struct;\n", "struct task_struct;\nstruct files_struct;\n"),
        (
            "void put_files",
            "struct files_struct *get_files_struct(struct task_struct *);\nvoid put_files",
        ),
        ("void put_files", "extern int __must_check f(int a) __cold;\nvoid put_files"),
        ("/* current fd array */", "/* the array\n\t * of files */"),
        ("\tunsigned int max_fds;", "\tunsigned  int\n\t\tmax_fds;"),
        ("int iterate_fd(struct files_struct *, unsigned,", "int iterate_fd(struct file *,"),
    ],
)
def test_a_header_may_gain_declarations(old: str, new: str, tmp_path: Path) -> None:
    assert old in HEADER
    toy.write(tmp_path / "a/x.h", HEADER)
    toy.write(tmp_path / "b/x.h", HEADER.replace(old, new, 1))
    toy.write(tmp_path / "b/new.h", "struct fresh { int a; };\n")
    toy.write(tmp_path / "a/x.c", "int a;\n")
    toy.write(tmp_path / "b/x.c", "struct local { int a; };\n")
    guard.check_types(tmp_path / "a", tmp_path / "b", ["x.h", "new.h", "x.c"])


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("\tunsigned int max_fds;", "\tunsigned long max_fds;", "unsigned long max_fds;"),
        ("**fd;      /*", "**fd; int more; /*", "int more;"),
        ("BITS_PER_LONG", "64", "+ #define NR_OPEN_DEFAULT 64"),
        ("return test_bit", "return !test_bit", "return !test_bit"),
        ("extern int sysctl_nr_open;", "extern long sysctl_nr_open;", "+ extern long sysctl_nr"),
        ("struct task_struct;\n", "extern int (*hook)(int);\n", "+ extern int (*hook)(int);"),
        ("struct task_struct;\n", "typedef int fn(int);\n", "+ typedef int fn(int);"),
        ("struct task_struct;\n", "#pragma pack(1)\n", "+ #pragma pack(1)"),
        ("struct task_struct;\n", "struct more { int a; };\n", "+ struct more { int a; }"),
        (HEADER, "", "- #ifndef FDTABLE_H"),
    ],
)
def test_a_header_that_says_something_else_is_refused(
    old: str, new: str, found: str, tmp_path: Path
) -> None:
    assert old in HEADER
    toy.write(tmp_path / "a/x.h", HEADER)
    toy.write(tmp_path / "b/x.h", HEADER.replace(old, new, 1))
    with pytest.raises(GuardError, match="what they were compiled with") as caught:
        guard.check_types(tmp_path / "a", tmp_path / "b", ["x.h"])
    assert found in (caught.value.found or "")
    assert "--modules rebuild" in (caught.value.hint or "")
    (tmp_path / "b/x.h").unlink()
    with pytest.raises(GuardError):
        guard.check_types(tmp_path / "a", tmp_path / "b", ["x.h"])


SOURCE = """\
#include <linux/fdtable.h>
/* struct of_a_comment { int a; }; */
struct table {
	struct { int a; } inner;
	unsigned int size;
};
#define SLOTS 4
struct small { int a; };
#ifdef CONFIG_SLOTS
struct slots { char each[SLOTS]; };
#endif
typedef struct { long quad; } seqno_t;
static DEFINE_MUTEX(lock);
static const struct small defaults = {
	.a = 1,
};

static int sane(struct table *table,
		unsigned int size)
{
#ifdef CONFIG_SANE
	if (size > table->size)
		return 0;
#endif
again: if (size)
		goto again;
	return 1;
}
EXPORT_SYMBOL(sane);
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("return 1;", "return 2;"),
        (".a = 1,", ".a = 2,"),
        ("again: if (size)", "again: if (!size)"),
        ("struct of_a_comment { int a; }", "struct of_a_comment { long a; }"),
        ("static int sane(struct table *table,\n\t\t", "static int sane(struct table *table, "),
        ("EXPORT_SYMBOL(sane);", "EXPORT_SYMBOL(sane);\n\nint more(void)\n{\n\treturn 0;\n}"),
        ("struct small {", "struct more {\n\tint b;\n};\nstruct small {"),
        ("#ifdef CONFIG_SANE", "#ifdef CONFIG_OTHER"),
        ("struct small {", "#include <linux/mm.h>\n#define FRESH \\\n\t1\nstruct small {"),
        ("#define SLOTS 4", "#define  SLOTS\t\\\n\t4  /* each */"),
    ],
)
def test_a_source_may_change_what_a_function_does(old: str, new: str, tmp_path: Path) -> None:
    assert old in SOURCE
    toy.write(tmp_path / "a/x.c", SOURCE)
    toy.write(tmp_path / "b/x.c", SOURCE.replace(old, new, 1))
    guard.check_types(tmp_path / "a", tmp_path / "b", ["x.c", "new.c", "Makefile"])


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("unsigned int size;\n}", "unsigned int size;\n\tint more;\n}", "- struct table { struct"),
        ("{ int a; } inner", "{ long a; } inner", "- struct table { struct { int a; } inner;"),
        ("struct small { int a; };\n", "", "- struct small { int a; };"),
        ("long quad;", "int quad;", "- typedef struct { long quad; } seqno_t;"),
        ("\t\tunsigned int size)", "\t\tlong size)", "- static int sane(struct table *table, unsi"),
        ("#define SLOTS 4", "#define SLOTS 8", "- #define SLOTS 4\nx.c: + #define SLOTS 8"),
        ("#ifdef CONFIG_SLOTS", "#ifndef CONFIG_SLOTS", "- #ifdef CONFIG_SLOTS"),
        ("struct small {", "#undef SLOTS\n#define SLOTS 8\nstruct small {", "+ #undef SLOTS"),
        ("#define SLOTS 4\n", "#define int long\n#define SLOTS 4\n", "+ #define int long"),
        ("struct small {", "#if 0\n#endif\nstruct small {", "+ #if 0"),
        (SOURCE, "", "- static int sane("),
    ],
)
def test_a_source_that_defines_another_type_is_refused(
    old: str, new: str, found: str, tmp_path: Path
) -> None:
    assert old in SOURCE
    toy.write(tmp_path / "a/x.c", SOURCE)
    toy.write(tmp_path / "b/x.c", SOURCE.replace(old, new, 1))
    with pytest.raises(GuardError, match="what the distro's BTF describes") as caught:
        guard.check_types(tmp_path / "a", tmp_path / "b", ["x.c"])
    assert f"x.c: {found}" in (caught.value.found or "")
    (tmp_path / "b/x.c").unlink()
    with pytest.raises(GuardError):
        guard.check_types(tmp_path / "a", tmp_path / "b", ["x.c"])


def test_guard_needs_crcs(series: Series) -> None:
    bare = {n: dataclasses.replace(s, crc=None) for n, s in DISTRO.items()}
    with pytest.raises(GuardError, match="no CRCs"):
        guard.guard(bare, OURS, series)
    with pytest.raises(GuardError, match="no CRCs"):
        guard.guard({}, OURS, series)


def test_guard_needs_the_symbol_that_stands_for_struct_module(series: Series) -> None:
    distro, ours = ({n: s for n, s in m.items() if n != "module_layout"} for m in (DISTRO, OURS))
    with pytest.raises(GuardError, match="does not cover struct module") as caught:
        guard.guard(distro, ours, series)
    assert "--modules rebuild" in (caught.value.hint or "")


def test_one_symbol_without_a_crc_is_enough_to_prove_nothing(series: Series) -> None:
    one = DISTRO | {"fput": dataclasses.replace(DISTRO["fput"], crc=None)}
    with pytest.raises(GuardError, match="no CRCs"):
        guard.guard(one, OURS, series)


def test_written_symvers_hold_both(tmp_path: Path) -> None:
    distro = tmp_path / "distro"
    distro.write_text("0x11111111\tfput\tvmlinux\tEXPORT_SYMBOL\t\n")
    guard.write_symvers(distro, NEW, tmp_path / "ours")
    assert set(symvers.read(tmp_path / "ours")) == {"fput", *NEW}


def test_another_compiler_is_refused() -> None:
    config = Fragment("distro", {"CC_VERSION_TEXT": '"gcc-12 (Debian 12.2.0-14) 12.2.0"'})
    guard.check_compiler(config, "gcc-12 (Debian 12.2.0-14) 12.2.0")
    with pytest.raises(GuardError, match="not the one that built"):
        guard.check_compiler(config, "gcc-12 (Debian 12.2.0-15) 12.2.0")


def test_the_pahole_stand_in_tells_the_distros_version(tmp_path: Path) -> None:
    guard.write_pahole(tmp_path / "pahole", 124)
    said = subprocess.run([tmp_path / "pahole", "--version"], capture_output=True, check=True)
    assert said.stdout == b"v1.24\n"


def test_the_pahole_stand_in_puts_the_distros_btf_into_the_file_named_last(tmp_path: Path) -> None:
    guard.write_pahole(tmp_path / "pahole", 130)
    (tmp_path / "objcopy").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "objcopy").chmod(0o755)
    said = subprocess.run(
        # as scripts/link-vmlinux.sh of 6.12 calls it
        [tmp_path / "pahole", "-J", "--btf_features=encode_force", "-j4", ".tmp_vmlinux1"],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.splitlines() == [
        "--remove-section=.BTF",
        "--add-section",
        ".BTF=/mnt/input/distro.btf",
        ".tmp_vmlinux1",
    ]


def test_an_image_is_proved_by_its_vermagic_and_its_btf(tmp_path: Path) -> None:
    vmlinux, btf = tmp_path / "vmlinux", tmp_path / "distro.btf"
    vmlinux.write_bytes(toy.elf(toy.BTF, b"\x006.1.0-9 SMP modversions \0more"))
    btf.write_bytes(toy.BTF)
    guard.check_image(vmlinux, release="6.1.0-9", flags="SMP modversions ", btf=btf)
    for flags, found in (
        ("SMP ", "6.1.0-9 SMP modversions "),  # the whole is compared, not a beginning of it
        ("SMP preempt modversions ", "6.1.0-9 SMP modversions "),
    ):
        with pytest.raises(GuardError, match="vermagic differs") as caught:
            guard.check_image(vmlinux, release="6.1.0-9", flags=flags, btf=btf)
        assert caught.value.found == found
    with pytest.raises(GuardError, match="vermagic differs") as caught:
        guard.check_image(vmlinux, release="6.1.0-10", flags="SMP modversions ", btf=btf)
    assert caught.value.found == "no vermagic"
    btf.write_bytes(toy.BTF + b"x")
    with pytest.raises(GuardError, match="BTF is not the distro's"):
        guard.check_image(vmlinux, release="6.1.0-9", flags="SMP modversions ", btf=btf)


def test_a_kernel_that_knows_no_pahole_version_is_given_one_it_takes(tmp_path: Path) -> None:
    # scripts/link-vmlinux.sh of Linux 5.10 reads the version itself, and wants 116 at least
    guard.write_pahole(tmp_path / "pahole", 0)
    done = subprocess.run([tmp_path / "pahole", "--version"], capture_output=True, text=True)
    assert done.stdout == "v1.16\n"
