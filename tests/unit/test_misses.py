"""Reasons for misses of the compiler cache, from the files that two builds left."""

from __future__ import annotations

from pathlib import Path

from kbuild.measure import misses
from kbuild.measure.misses import Build
from tests.unit import toy

COMMAND = "ccache gcc-12 -c -o fs/file.o /mnt/source/fs/file.c"


def build(where: Path, *, lower: bool = False) -> Build:
    """Lay a build of fs/file.o out; ``lower`` as Linux 5.10 names the options."""
    one = Build(where / "source", where / "out")
    toy.write(one.source / "fs/file.c", "int f;\n")
    toy.write(one.source / "include/linux/fs.h", "struct file;\n")
    toy.write(one.output / "include/generated/bounds.h", "#define NR 3\n")
    toy.write(
        one.output / "include/generated/autoconf.h",
        "#define CONFIG_DEBUG_FS 1\n#define CONFIG_EXT4_FS_MODULE 1\n",
    )
    option = "debug/fs.h" if lower else "DEBUG_FS"
    verb = "cmd" if lower else "savedcmd"
    toy.write(
        one.output / "fs/.file.o.cmd",
        f"{verb}_fs/file.o := {COMMAND}\n\nsource_fs/file.o := /mnt/source/fs/file.c\n\n"
        "deps_fs/file.o := \\\n"
        f"    $(wildcard include/config/{option}) \\\n"
        "    $(wildcard include/config/EXT4_FS) \\\n"
        "  /mnt/source/include/linux/fs.h \\\n"
        "  include/generated/bounds.h \\\n"
        "  /usr/lib/gcc/include/stddef.h \\\n"
        "\nfs/file.o: $(deps_fs/file.o)\n\n$(deps_fs/file.o):\n",
    )
    toy.write(one.output / "fs/.built-in.a.cmd", "savedcmd_fs/built-in.a := ar fs/file.o\n")
    return one


def why(before: Build, after: Build) -> list[str]:
    found = misses.why(["/mnt/source/fs/file.c"], before, after)
    assert list(found.values()) == [1]
    return list(found)


def test_each_reason_is_told(tmp_path: Path) -> None:
    before, after = build(tmp_path / "1"), build(tmp_path / "2")
    assert why(before, after) == [misses.SAME]
    command = after.output / "fs/.file.o.cmd"
    command.write_text(command.read_text().replace("-c -o", "-g -c -o"))
    assert why(before, after) == [misses.COMMAND]
    # The later reasons come first: a file that includes a changed header is compiled again anyway.
    autoconf = after.output / "include/generated/autoconf.h"
    autoconf.write_text("#define CONFIG_DEBUG_FS 1\n#define CONFIG_EXT4_FS 1\n")
    assert why(before, after) == ["an option changed (EXT4_FS 1)"]
    autoconf.write_text("#define CONFIG_EXT4_FS_MODULE 1\n")
    assert why(before, after) == ["an option changed (DEBUG_FS 1)"]
    (after.output / "include/generated/bounds.h").write_text("#define NR 4\n")
    assert why(before, after) == ["a header changed (include/generated/bounds.h 1)"]
    (after.source / "include/linux/fs.h").write_text("struct file {};\n")
    assert why(before, after) == [
        "a header changed (include/linux/fs.h 1, include/generated/bounds.h 1)"
    ]
    (after.source / "fs/file.c").write_text("int g;\n")
    assert why(before, after) == [misses.ITSELF]
    (before.output / "fs/.file.o.cmd").unlink()
    assert why(before, after) == [misses.NEW]


def test_options_are_found_in_the_names_of_5_10(tmp_path: Path) -> None:
    before, after = build(tmp_path / "1", lower=True), build(tmp_path / "2", lower=True)
    (after.output / "include/generated/autoconf.h").write_text(
        "#define CONFIG_EXT4_FS_MODULE 1\n#define CONFIG_OTHER 1\n"
    )
    assert why(before, after) == ["an option changed (DEBUG_FS 1)"]


def test_other_files_are_counted_apart_and_the_most_frequent_come_first(
    tmp_path: Path,
) -> None:
    before, after = build(tmp_path / "1"), build(tmp_path / "2")
    (after.source / "fs/file.c").write_text("int g;\n")
    missed = ["conftest.c", "/mnt/source/fs/file.c", "/dev/null"]
    assert list(misses.why(missed, before, after).items()) == [
        (misses.NO_OBJECT, 2),
        (misses.ITSELF, 1),
    ]
