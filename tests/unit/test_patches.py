"""A series is chosen by range, applied with no fuzz, and proved by its effect."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kbuild.core import fs
from kbuild.core.errors import BuildError, UserError
from kbuild.core.model import Series
from kbuild.core.run import run
from kbuild.kernel import hunks, patches, quilt
from tests.unit import damage, toy

DATA = Path(__file__).parent / "data"

MISPLACED = """\
 void exit_files(struct task_struct *tsk)
 {
 }
+EXPORT_SYMBOL_GPL(put_files_struct);
 EXPORT_SYMBOL(exit_files);
"""


@pytest.fixture
def distro(tmp_path: Path) -> toy.ToyDistro:
    return toy.make(tmp_path)


def rewrite(distro: toy.ToyDistro, old: str, new: str) -> None:
    path = distro.patches / "5.11/export.patch"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def apply(distro: toy.ToyDistro, tree: Path) -> Path:
    series = quilt.choose(distro.patches, "6.1.192")
    return patches.apply(distro.pristine, series, tree, base_version="6.1.192-2").path


def content(tree: Path) -> dict[str, bytes]:
    return {p.relative_to(tree).as_posix(): p.read_bytes() for p in tree.rglob("*") if p.is_file()}


def test_apply_changes_the_patched_file_and_never_the_pristine_one(
    distro: toy.ToyDistro, tmp_path: Path
) -> None:
    before = content(distro.pristine)
    tree = apply(distro, tmp_path / "tree")
    assert "EXPORT_SYMBOL_GPL(get_files_struct);" in (tree / "fs/file.c").read_text()
    assert content(distro.pristine) == before
    assert (tree / "fs/open.c").samefile(distro.pristine / "fs/open.c")


def test_apply_twice_touches_nothing(distro: toy.ToyDistro, tmp_path: Path) -> None:
    tree = apply(distro, tmp_path / "tree")
    times = {p: p.stat().st_mtime_ns for p in tree.rglob("*")}
    apply(distro, tree)
    assert {p: p.stat().st_mtime_ns for p in tree.rglob("*")} == times


def test_an_edited_patch_rewrites_only_what_it_changes(
    distro: toy.ToyDistro, tmp_path: Path
) -> None:
    tree = apply(distro, tmp_path / "tree")
    times = {p: p.stat().st_mtime_ns for p in tree.rglob("*") if p.is_file()}
    rewrite(distro, "return task->files;", "return READ_ONCE(task->files);")
    apply(distro, tree)
    changed = [p.name for p in times if p.stat().st_mtime_ns != times[p]]
    assert changed == ["file.c"]


def mend(distro: toy.ToyDistro, tree: Path) -> tuple[str, ...]:
    series = quilt.choose(distro.patches, "6.1.192")
    made = patches.apply(distro.pristine, series, tree, base_version="6.1.192-2")
    return patches.mend(distro.pristine, made)


@pytest.mark.parametrize("harm", damage.EVERY.values(), ids=damage.EVERY)
def test_a_damaged_tree_is_mended_and_what_came_from_it_compiled_again(
    distro: toy.ToyDistro, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    os.utime(distro.pristine / "fs/open.c", (1_000_000_000, 1_000_000_000))
    tree = apply(distro, tmp_path / "tree")
    assert mend(distro, tree) == ()
    before, victim = content(tree), tree / "fs/open.c"
    # The source was unpacked anew: until then, its file was the same one.
    shutil.copy2(victim, tmp_path / "whole")
    (tmp_path / "whole").replace(distro.pristine / "fs/open.c")
    harm(victim)
    began = time.time_ns()
    assert mend(distro, tree) == ("fs/open.c",)
    assert content(tree) == before
    assert victim.stat().st_mtime_ns >= began - 10**9
    assert mend(distro, tree) == ()
    assert content(distro.pristine)["fs/open.c"] == before["fs/open.c"]


def test_a_tree_gets_back_what_it_lost_and_loses_what_it_gained(
    distro: toy.ToyDistro, tmp_path: Path
) -> None:
    (distro.pristine / "link").symlink_to("fs/open.c")
    tree = apply(distro, tmp_path / "tree")
    before = content(tree)
    shutil.rmtree(tree / "include")
    (tree / "link").unlink()
    (tree / "link").symlink_to("kernel/module.c")
    (tree / "fs/open.c").unlink()
    (tree / "fs/open.c").mkdir()
    toy.write(tree / "new/deep/file.c", "int x;\n")
    mended = mend(distro, tree)
    assert mended == ("fs/open.c", "include/linux/fdtable.h", "link", "new/deep/file.c")
    assert content(tree) == before
    assert (tree / "link").readlink() == Path("fs/open.c")
    assert not (tree / "new").exists()


@pytest.mark.parametrize("links", [True, False])
def test_a_source_that_was_unpacked_again_is_the_same_source(
    distro: toy.ToyDistro, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    tree = apply(distro, tmp_path / "tree")
    times = {p: p.stat().st_mtime_ns for p in tree.rglob("*") if p.is_file()}
    shutil.copytree(distro.pristine, tmp_path / "again")
    fs.replace_directory(tmp_path / "again", distro.pristine)

    def no_links(*_: object, **__: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    assert mend(distro, tree) == ()
    assert {p: p.stat().st_mtime_ns for p in times} == times
    assert (tree / "fs/open.c").samefile(distro.pristine / "fs/open.c") == links


@pytest.mark.parametrize("harm", damage.VISIBLE.values(), ids=damage.VISIBLE)
def test_a_tree_whose_record_is_damaged_is_made_again(
    distro: toy.ToyDistro, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    tree = apply(distro, tmp_path / "tree")
    before = content(tree)
    harm(tmp_path / ".tree.json")
    assert content(apply(distro, tree)) == before
    assert content(apply(distro, tree)) == before


def test_a_file_that_left_the_series_is_pristine_again(
    distro: toy.ToyDistro, tmp_path: Path
) -> None:
    second = (
        "Description: d\nForwarded: no\nLast-Update: 2026-01-01\nX-Exports:\n---\n"
        "--- a/fs/open.c\n+++ b/fs/open.c\n@@ -1,4 +1,4 @@\n-int open(void)\n+long open(void)\n"
        " {\n }\n EXPORT_SYMBOL(open);\n"
    )
    toy.write(distro.patches / "5.11/second.patch", second)
    toy.write(distro.patches / "5.11/series", "export.patch\nsecond.patch\n")
    tree = apply(distro, tmp_path / "tree")
    assert "long open" in (tree / "fs/open.c").read_text()
    toy.write(distro.patches / "5.11/series", "export.patch\n")
    apply(distro, tree)
    assert content(tree)["fs/open.c"] == content(distro.pristine)["fs/open.c"]


def test_fuzz_is_refused_and_the_tree_stays(distro: toy.ToyDistro, tmp_path: Path) -> None:
    tree = apply(distro, tmp_path / "tree")
    before = content(tree)
    rewrite(distro, " 	return files->fdt;\n", " 	return other->fdt;\n")
    with pytest.raises(BuildError, match=r"the series 5\.11 does not apply") as caught:
        apply(distro, tree)
    assert caught.value.found == (
        "export.patch: hunk 1 of fs/file.c at put_files_struct(): "
        "it expects 'return other->fdt;', but line 5 is 'return files->fdt;'"
    )
    assert content(tree) == before


def test_an_export_behind_another_function_is_refused(
    distro: toy.ToyDistro, tmp_path: Path
) -> None:
    # Fuzz does this to the 2020 patch: the export lands after another function's closing brace.
    rewrite(distro, "+EXPORT_SYMBOL_GPL(put_files_struct);\n", "")
    rewrite(distro, " void exit_files(struct task_struct *tsk)\n {\n", MISPLACED)
    rewrite(distro, "@@ -5,11 +5,18 @@", "@@ -5,13 +5,20 @@")
    with pytest.raises(BuildError, match=r"put_files_struct .* does not follow") as caught:
        apply(distro, tmp_path / "tree")
    assert caught.value.found == "it follows exit_files()"
    assert not (tmp_path / "tree").exists()


@pytest.mark.parametrize(
    ("declared", "found"),
    [
        ("", "put_files_struct"),
        ("get_files_struct", "put_files_struct"),
        ("get_files_struct, put_files_struct, open2", "get"),
    ],
)
def test_exports_that_are_not_the_declared_ones_are_refused(
    distro: toy.ToyDistro, tmp_path: Path, declared: str, found: str
) -> None:
    rewrite(distro, "X-Exports: get_files_struct, put_files_struct", f"X-Exports: {declared}")
    with pytest.raises(BuildError, match="does not export what its patches declare") as caught:
        apply(distro, tmp_path / "tree")
    assert found in (caught.value.found or "")


# fs/file.c as it was in 2020, and what became of it: the parts that the patches of then look at.
OF_2020 = """\
struct files_struct *get_files_struct(struct task_struct *task)
{
	return files;
}

void put_files_struct(struct files_struct *files)
{
	if (last(files)) {
		kmem_cache_free(files_cachep, files);
	}
}

void reset_files_struct(struct files_struct *files)
{
}
"""
WITHOUT_GET = OF_2020.replace("*get_files_struct", "*close_files").replace("urn files", "urn fdt")
WITHOUT_RESET = OF_2020.replace("reset_files_struct", "exit_files")
WANTED = "'void reset_files_struct(struct files_struct *files)'"


def of_2020(tmp_path: Path, text: str) -> tuple[Path, Series]:
    spaced = text.replace("\treturn", "\n\treturn")
    toy.write(tmp_path / "tree/fs/file.c", f"int nothing;\n\n{spaced}")
    return tmp_path / "tree", quilt.read_series(DATA / "series-2020")


def test_context_diffs_are_read_as_patch_reads_them(tmp_path: Path) -> None:
    pristine, series = of_2020(tmp_path, OF_2020)
    assert quilt.touched(series) == ("fs/file.c",)
    assert patches.refusals(pristine, series) == ()
    tree = patches.apply(pristine, series, tmp_path / "patched", base_version="5.3-1").path
    text = (tree / "fs/file.c").read_text()
    assert hunks.exported_function(text, "get_files_struct") == "get_files_struct"
    assert hunks.exported_function(text, "put_files_struct") == "put_files_struct"


@pytest.mark.parametrize(
    ("text", "reasons"),
    [
        (WITHOUT_GET, ["get_files_struct(): this kernel has no get_files_struct() there"]),
        (WITHOUT_RESET, [f"put_files_struct(): it expects {WANTED}, but line 17 is"]),
        (
            WITHOUT_GET.replace("reset_files_struct", "exit_files"),
            ["this kernel has no get_files_struct()", f"it expects {WANTED}"],
        ),
    ],
)
def test_the_patches_of_2020_are_refused_with_what_changed(
    tmp_path: Path, text: str, reasons: list[str]
) -> None:
    pristine, series = of_2020(tmp_path, text)
    found = [str(one) for one in patches.refusals(pristine, series)]
    assert len(found) == len(reasons)
    assert all(reason in line for line, reason in zip(found, reasons, strict=True))
    with pytest.raises(BuildError, match="series-2020 does not apply") as caught:
        patches.apply(pristine, series, tmp_path / "patched", base_version="6.1-1")
    assert caught.value.found == "\n".join(found)


def test_a_patch_of_2020_whose_context_is_another_function_s_is_refused_by_its_effect(
    tmp_path: Path,
) -> None:
    pristine, series = of_2020(tmp_path, OF_2020.replace("*get_files_struct", "*dup_fd"))
    assert patches.refusals(pristine, series) == ()
    with pytest.raises(BuildError, match=r"get_files_struct .* does not follow") as caught:
        patches.apply(pristine, series, tmp_path / "patched", base_version="6.1-1")
    assert caught.value.found == "it follows dup_fd()"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    series = quilt.read_series(DATA / "series-2020")
    with pytest.raises(BuildError, match="does not apply") as caught:
        patches.apply(tmp_path / "tree", series, tmp_path / "patched", base_version="6.1-1")
    assert "can't find file to patch" in (caught.value.found or "")


@pytest.mark.parametrize("upstream", ["5.11", "6.1.192", "7.3.4"])
def test_range_holds(upstream: str, distro: toy.ToyDistro) -> None:
    assert quilt.choose(distro.patches, upstream).name == "5.11"


@pytest.mark.parametrize("upstream", ["5.10.262", "8.0"])
def test_out_of_range_is_refused(upstream: str, distro: toy.ToyDistro) -> None:
    with pytest.raises(UserError, match="0 series are for Linux"):
        quilt.choose(distro.patches, upstream)


def test_overlapping_ranges_are_refused(distro: toy.ToyDistro) -> None:
    toy.write(distro.patches / "6/series", "export.patch\n")
    toy.write(distro.patches / "6/range", ">=6\n")
    toy.write(distro.patches / "6/export.patch", toy.PATCH)
    with pytest.raises(UserError, match="2 series are for Linux"):
        quilt.choose(distro.patches, "6.1.192")


@pytest.mark.parametrize("field", ["Description", "Forwarded", "Last-Update", "X-Exports"])
def test_incomplete_dep3_header_is_refused(distro: toy.ToyDistro, field: str) -> None:
    rewrite(distro, f"{field}:", f"Not-{field}:")
    with pytest.raises(UserError, match="DEP-3") as caught:
        quilt.choose(distro.patches, "6.1.192")
    assert field in (caught.value.found or "")


@pytest.mark.parametrize(
    ("upstream", "name", "files"),
    [
        ("5.10.262", "5.10", ("fs/file.c",)),
        ("6.1.192", "5.11", ("fs/file.c", "include/linux/fdtable.h")),
        ("6.12.117", "5.11", ("fs/file.c", "include/linux/fdtable.h")),
        ("7.3.4", "5.11", ("fs/file.c", "include/linux/fdtable.h")),
    ],
)
def test_our_own_series_declare_their_exports(
    upstream: str, name: str, files: tuple[str, ...]
) -> None:
    series = quilt.choose(Path(__file__).parents[2] / "patches", upstream)
    assert series.name == name
    assert series.exports == ("get_files_struct", "put_files_struct")
    assert quilt.touched(series) == files


@pytest.mark.parametrize("name", ["5.10", "5.11"])
def test_our_own_patches_are_mails_that_git_am_takes(name: str, tmp_path: Path) -> None:
    """git refuses a mail without an author, a subject or a diff."""
    series = quilt.read_series(Path(__file__).parents[2] / "patches" / name)
    repository = tmp_path / "tree"
    for patch in series.patches:
        for file, change in quilt.changes(patch).items():
            lines = {
                line.source_line_no or 0: line.value for h in change for line in h.source_lines()
            }
            text = "".join(lines.get(n, "\n") for n in range(1, max(lines) + 1))
            toy.write(repository / file, text)
    author = ("-c", "user.name=a", "-c", "user.email=a@a.invalid")
    for argv in (
        ("init", "--quiet"),
        ("add", "--all"),
        ("commit", "--quiet", "--message=base"),
        ("am", "--quiet", *(patch.path.as_posix() for patch in series.patches)),
    ):
        run(["git", *author, *argv], cwd=repository, timeout_s=20)
    said = run(["git", "log", "-1", "--format=%an%n%s"], cwd=repository, timeout_s=20).stdout
    assert said.splitlines() == ["cplayground-kernel maintainers", series.patches[-1].description]


@pytest.mark.parametrize(
    ("text", "owner"),
    [
        ("int a(void)\n{\n}\nEXPORT_SYMBOL(a);\n", "a"),
        ("static int b(int x,\n\t     int y)\n{\n}\nEXPORT_SYMBOL(a);\n", "b"),
        ("int a(void)\n{\n}\n\nEXPORT_SYMBOL(a);\n", None),
        ("struct s {\n};\nEXPORT_SYMBOL(a);\n", None),
        (
            "int b(void)\n{\n}\nEXPORT_SYMBOL(b);\nint a(void)\n{\n\tf();\n}\nEXPORT_SYMBOL(a);\n",
            "a",
        ),
    ],
)
def test_exported_function(text: str, owner: str | None) -> None:
    assert hunks.exported_function(text, "a") == owner
