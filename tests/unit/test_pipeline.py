"""The stages as a whole: order, skipping, killed runs, and the words of explain."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kbuild import cleaning
from kbuild.core import beside, fs, stamp
from kbuild.core.errors import GuardError, SigningError
from kbuild.core.model import Root, Settings, Target
from kbuild.fetch import roots
from kbuild.guest import image
from kbuild.kernel import module
from kbuild.pipeline import images, lint, stages
from kbuild.pipeline.stage import Made
from kbuild.ship import deb, manifest, mok, versions
from kbuild.ship.manifest import Manifest, Output
from tests.unit import damage, secure_boot, toy
from tests.unit.works import COMPILER, NAMES, PROJECT, Works

EARLIER = "an earlier stage runs first"


@dataclass(frozen=True)
class Finished:
    """A checkout in which everything was made; to be copied, not changed."""

    home: Path
    result: Mapping[str, str]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    home = tmp_path_factory.mktemp("finished") / "works"
    with pytest.MonkeyPatch.context() as monkeypatch:
        made = Works.new(home, monkeypatch)
        assert made.package() == list(NAMES)
        return Finished(home, made.result())


@pytest.fixture
def works(finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Works:
    shutil.copytree(finished.home, tmp_path / "works", symlinks=True)
    return Works(tmp_path / "works", monkeypatch)


@pytest.fixture
def empty(works: Works) -> Works:
    """A checkout in which nothing was done yet."""
    for path in (works.settings.build, works.settings.cache):
        fs.remove_tree(path)
    return works


def test_every_stage_runs_in_its_order_and_then_none(empty: Works) -> None:
    said = empty.explain()
    assert list(said) == list(NAMES)
    assert said.pop("fetch") == (
        "not in the cache: linux-source-6.1.deb, linux-image-6.1.0-56-cloud-amd64.deb, "
        "linux-headers-6.1.0-56-cloud-amd64.deb"
    )
    assert set(said.values()) == {EARLIER}
    assert not empty.settings.build.exists()
    assert empty.package() == list(NAMES)
    assert set(empty.explain().values()) == {None}
    assert empty.package() == []


def test_a_stage_alone_runs_no_later_one(empty: Works) -> None:
    stages.package_kernel(empty.settings, empty.target)
    assert list(dict.fromkeys(empty.ran)) == list(NAMES[:5])
    empty.ran.clear()
    stages.build_kernel(empty.settings, empty.target)
    assert empty.ran == []
    stages.build_module(empty.settings, empty.target)
    assert empty.ran == ["module", "module"]  # its headers first
    assert empty.package() == list(NAMES[6:])


# Results to remove, below the checkout, and the places where the next run is killed.
KILLS = {
    ("cache", "build"): ["fetch", "unpack", "patch", "root", "stamp of root"],
    ("build",): ["kernel"],
    ("build/*/packages*", "build/*/*/*/[mp]*", "build/*/*/record.json", "build/[mr]*"): [
        *NAMES[4:],
        "manifest",
        "stamp of kernel packages",
    ],
}


@pytest.mark.parametrize(
    ("removed", "stage"), [(one, stage) for one, some in KILLS.items() for stage in some]
)
def test_a_run_that_is_killed_and_resumed_gives_the_same_result(
    works: Works, finished: Finished, removed: Sequence[str], stage: str
) -> None:
    for path in [path for one in removed for path in works.home.glob(one)]:
        fs.remove_tree(path) if path.is_dir() else path.unlink()
    works.killed(stage)
    first = next(name for name, why in works.explain().items() if why is not None)
    made = works.package()
    assert made[:1] == [first]
    assert works.result() == finished.result
    assert set(works.explain().values()) == {None}
    assert works.package() == []


def edited(path: str, *, old: str = "", new: str = "changed\n") -> Callable[[Works], None]:
    def edit(works: Works) -> None:
        file = works.settings.project / path
        text = file.read_text() if file.exists() else ""
        assert old in text
        toy.write(file, text.replace(old, new, 1) if old else text + new)

    return edit


def revision(works: Works) -> None:
    works.settings = dataclasses.replace(works.settings, revision=2)


def fragment(works: Works) -> None:
    path = works.settings.project / "own.config"
    toy.write(path, "CONFIG_SWAP=y\n")
    works.target = dataclasses.replace(works.target, fragments=(path,))


def older_compiler(works: Works) -> None:
    works.compiler = "gcc-12 (Toy) 12.1.0"


def lost_root(works: Works) -> None:
    fs.remove_tree(works.settings.cache / "roots")


def lost_repository(works: Works) -> None:
    fs.remove_tree(works.settings.build / "repo")


def lost_package(works: Works) -> None:
    damage.lost(next(works.settings.build.glob("bookworm/cloud-amd64/*/packages-kernel/*.deb")))


def lost_download(works: Works) -> None:
    damage.lost(works.base().headers.path)


def lost_source(works: Works) -> None:
    fs.remove_tree(works.settings.cache / "trees")


def other_target(works: Works) -> None:
    build = works.settings.build
    path = build / "bookworm/lab/p/image-lab.deb"
    toy.write(path, "deb")
    name = path.relative_to(build).as_posix()
    output = Output("image-lab", "1", "amd64", name, fs.sha256_file(path), 3)
    made = Manifest(manifest.FORMAT, None, "0.1.0", (), (output,), {})
    manifest.write(build / "bookworm/lab" / manifest.RECORD, made)


MODULE = versions.module_version(PROJECT)
SHARED = ["DKMS packages", "guard package", "tool package"]
PACKED = ["kernel packages", "repository"]
# Name: the edit, the first stage that then runs, its reason, and all that run.
EDITS: Mapping[str, tuple[Callable[[Works], None], str, str, list[str]]] = {
    "nothing": (lambda _: None, "", "", []),
    "a page": (edited("README.md"), "", "", []),
    "patch": (
        edited("patches/5.11/export.patch", old="+EXPORT_SYMBOL_GPL(", new="+EXPORT_SYMBOL("),
        "kernel",
        "patched source changed from ",
        ["kernel", "kernel packages", "module", "module packages", "repository"],
    ),
    "fragment": (
        fragment,
        "kernel",
        "configuration changed from ",
        ["kernel", "kernel packages", "module", "module packages", "repository"],
    ),
    "revision": (
        revision,
        "kernel",
        "it has not been done yet",
        ["kernel", "kernel packages", "module", "module packages", "repository"],
    ),
    "kmod": (
        edited("kmod/cplayground.c", new="/* more */\n"),
        "module",
        "module changed from ",
        ["module", "module packages", "DKMS packages", "repository"],
    ),
    "dkms": (
        edited("dkms/gate.bash"),
        "DKMS packages",
        "dkms changed from ",
        ["DKMS packages", "repository"],
    ),
    "guard": (
        edited("guard/root/usr/sbin/cplayground-guard"),
        "guard package",
        "guard changed from ",
        ["guard package", "repository"],
    ),
    "template of the guard": (
        edited("debian/guard/new.j2"),
        "guard package",
        "templates changed from ",
        ["guard package", "repository"],
    ),
    "tool": (
        edited("cplayground/names.py"),
        "tool package",
        "tool changed from ",
        ["tool package", "repository"],
    ),
    "template of the tool": (
        edited("debian/cplayground/new.j2"),
        "tool package",
        "templates changed from ",
        ["tool package", "repository"],
    ),
    "date of the module": (
        edited("CHANGELOG.md", old=f"## [{MODULE}] - 20", new=f"## [{MODULE}] - 30"),
        "DKMS packages",
        "epoch changed from ",
        ["DKMS packages"],
    ),
    # Without the DKMS packages, which have no part of the base.
    "another build of the base": (
        Works.rebased,
        "fetch",
        "not in the cache: linux-image-",
        ["fetch", "unpack", "kernel", "kernel packages", "module packages", "repository"],
    ),
    "template of the kernel": (
        edited("debian/kernel/new.j2"),
        "kernel packages",
        "templates changed from ",
        PACKED,
    ),
    "template of the module": (
        edited("debian/modules/new.j2"),
        "module packages",
        "templates changed from ",
        ["module packages", "repository"],
    ),
    "template of DKMS": (
        edited("debian/dkms/new.j2"),
        "DKMS packages",
        "templates changed from ",
        ["DKMS packages", "repository"],
    ),
    "compiler": (
        older_compiler,
        "root",
        f"its compiler is not the distro's ({COMPILER})",
        ["root"],
    ),
    "root": (lost_root, "root", "it has not been done yet", ["root"]),
    "download": (lost_download, "fetch", "not in the cache: linux-headers-", ["fetch"]),
    "source": (lost_source, "unpack", "not unpacked: linux-source-6.1.deb", ["unpack"]),
    "package": (
        lost_package,
        "kernel packages",
        "its output packages-kernel/linux-",
        ["kernel packages"],
    ),
    "repository": (lost_repository, "repository", "its output repo is gone", ["repository"]),
    "another target": (
        other_target,
        "repository",
        "bookworm/lab/p/image-lab.deb changed from nothing to ",
        ["repository"],
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_explain_says_before_an_edit_is_built_what_then_runs(works: Works, name: str) -> None:
    edit, first, reason, made = EDITS[name]
    assert set(works.explain().values()) == {None}
    edit(works)
    said = works.explain()
    assert works.explain() == said
    if first:
        at = NAMES.index(first)
        assert list(said.values())[:at] == [None] * at
        assert (said[first] or "").startswith(reason)
        assert set(list(said.values())[at + 1 :]) <= {EARLIER}
    assert works.package() == made
    assert set(works.explain().values()) == {None}
    assert works.package() == []


def test_two_revisions_have_results_of_their_own(works: Works) -> None:
    """Also kernels of their own, so that a server can have both."""
    other_target(works)
    works.package()
    first, result = works.last, works.result()
    revision(works)
    works.package()
    assert first.kernel.release == "6.1.0-56-cplayground-cloud-amd64"
    assert works.last.kernel.release == "6.1.0-56-cplayground.2-cloud-amd64"
    listed = {one.name for one in manifest.read(works.settings.build / "manifest.json").outputs}
    # Only the newest of this target, and the other target's packages.
    assert listed == {one.name for one in works.last.packages} | {"image-lab"}
    works.settings = dataclasses.replace(works.settings, revision=1)
    assert works.package() == ["repository"]
    assert works.result() == result


@pytest.mark.parametrize(
    ("file", "appended", "made"),
    [
        ("ship/deb.py", '"""Prose."""\n# More of it.\n', []),
        (
            "ship/deb.py",
            "COMPRESSION = 2\n",
            [*PACKED[:1], "module packages", *SHARED],
        ),
        ("ship/shared.py", "MORE = 1\n", SHARED),
        ("ship/headers.py", "MORE = 1\n", PACKED[:1]),
        ("kernel/module.py", '"""Prose."""\n', []),
        ("kernel/module.py", "MORE = 1\n", ["module"]),
        ("pipeline/stages.py", "MORE = 1\n", []),
    ],
)
def test_an_edit_of_kbuild_repeats_what_its_code_decides(
    works: Works,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    file: str,
    appended: str,
    made: list[str],
) -> None:
    code = tmp_path / "kbuild"
    shutil.copytree(stages._KBUILD, code)
    monkeypatch.setattr(stages, "_KBUILD", code)
    with (code / file).open("a") as stream:
        stream.write(appended)
    said = works.explain()
    assert [name for name, why in said.items() if why not in (None, EARLIER)] == made[:1]
    assert works.package() == made


def test_explain_changes_nothing(works: Works) -> None:
    def seen() -> dict[str, tuple[int, str]]:
        files = (path for path in works.home.rglob("*") if path.is_file())
        return {str(one): (one.stat().st_mtime_ns, fs.sha256_file(one)) for one in files}

    works.package()
    EDITS["kmod"][0](works)
    before = seen()
    works.explain()
    assert seen() == before


def test_a_damaged_record_of_packages_is_a_reason(works: Works) -> None:
    listing = next(works.settings.build.glob("*/*/*/packages-kernel.list"))
    mark = listing.with_suffix(".json")
    last = stamp.read(mark)
    assert last is not None
    # An earlier version recorded names only.
    earlier = {"format": 1, "outputs": list(last.outputs), "seconds": 1.0}
    fs.write_json(mark, earlier | {"inputs": dict(last.inputs)})
    for text in ("[]", "{", '[{"name": 1}]'):
        listing.write_text(text)
        assert works.explain()["kernel packages"] == "the record of what it holds is damaged"
    assert works.package()[:1] == ["kernel packages"]


def test_results_of_an_earlier_version_are_kept(works: Works) -> None:
    for mark in works.settings.build.rglob("*.json"):
        last = stamp.read(mark)
        if last is not None:
            raw = {"format": 1, "inputs": dict(last.inputs), "seconds": last.seconds}
            fs.write_json(mark, raw | {"outputs": list(last.outputs)})
    assert set(works.explain().values()) == {None}
    assert works.package() == []


def test_the_manifest_holds_how_long_each_stage_took(works: Works) -> None:
    works.package()
    whole = manifest.read(works.settings.build / "manifest.json")
    packed = ("cplayground", "dkms", "guard", "kernel", "module")
    assert tuple(whole.seconds) == ("kernel", "module", *(f"packages-{name}" for name in packed))


def test_offline_an_older_compiler_stays(works: Works) -> None:
    older_compiler(works)
    works.settings = dataclasses.replace(works.settings, offline=True)
    assert works.explain()["root"] is None
    assert works.package() == []


def test_a_full_build_takes_any_compiler(works: Works) -> None:
    fragment(works)
    works.package()
    older_compiler(works)
    assert works.explain()["root"] is None
    assert works.package() == []


CHANGED_TYPE = """\
--- a/include/linux/fdtable.h
+++ b/include/linux/fdtable.h
@@ -1,2 +1,3 @@
 struct files_struct;
+struct fdtable { int more; };
 void put_files_struct(struct files_struct *fs);
"""


def test_a_changed_struct_is_refused_before_anything_is_compiled_on_the_fast_path(
    works: Works,
) -> None:
    with (works.settings.project / "patches/5.11/export.patch").open("a") as stream:
        stream.write(CHANGED_TYPE)
    with pytest.raises(GuardError, match="what they were compiled with") as caught:
        works.package()
    assert "struct fdtable { int more; }" in (caught.value.found or "")
    assert works.ran == []
    stages.build_kernel(works.settings, works.target, modules="rebuild")
    assert works.ran == ["kernel"]


def test_what_is_prepared_counts_as_used(works: Works) -> None:
    version = Made(works.settings, works.target, base=works.base()).where.version
    for path in (version, works.settings.build / "bookworm" / f"source-{version.name}"):
        os.utime(path, (0, 0))
    stages.prepare(works.settings, works.target, works.base())
    assert cleaning.clean_unused(works.settings, days=1) == ()


def test_with_an_empty_cache_the_first_stage_has_the_reason(tmp_path: Path) -> None:
    settings = Settings(project=tmp_path, build=tmp_path / "b", cache=tmp_path / "c")
    steps = stages.explain(settings, Target("bookworm", "lab"))
    assert [step.name for step in steps] == list(NAMES)
    assert steps[0].reason is not None
    assert all(step.reason == EARLIER for step in steps[1:])
    assert not settings.build.exists()


@pytest.fixture
def disks(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Return what guests' disks are asked to hold."""
    asked: list[dict[str, Any]] = []

    def make(root: Root, **given: object) -> None:
        kind = root.path.parent.name.removeprefix("bookworm-").rpartition("-")[0]
        asked.append({"root": kind, **given})

    monkeypatch.setattr(image, "make", make)
    return asked


def test_a_guests_disk_has_the_targets_packages(works: Works, disks: list[dict[str, Any]]) -> None:
    works.package()
    images.guest_image(works.last)
    (disk,) = disks
    assert (disk["root"], disk["home"].name, disk["repo"]) == ("guest", "guest", works.last.repo)
    assert disk["packages"][-2:] == ["cplayground-dkms", "cplayground"]
    assert {path.name for path in disk["debs"]} == {
        file.path.name for file in works.base().packages
    }
    assert disk["inputs"] == {f"package {one.name}": one.sha256 for one in works.last.packages}
    assert images.prebuilt_module(works.last).name.startswith("cplayground-modules-6.1")


@pytest.mark.parametrize(
    ("tools", "root", "home"), [((), "guest", "lab"), (("bpftrace",), "guest-tools", "lab-tools")]
)
def test_the_labs_disk_has_no_module(
    works: Works, disks: list[dict[str, Any]], tools: tuple[str, ...], root: str, home: str
) -> None:
    images.lab_image(stages.package_kernel(works.settings, works.target), tools=tools)
    (disk,) = disks
    assert (disk["root"], disk["home"].name, disk["packages"]) == (root, home, ())
    names = sorted(path.name.partition("6.1")[0] for path in disk["debs"])
    assert names == [*["linux-headers-"] * 2, *["linux-image-"] * 2]


def test_the_stock_disk_needs_no_kernel_of_ours(empty: Works, disks: list[dict[str, Any]]) -> None:
    images.stock_image(empty.settings, empty.target)
    (disk,) = disks
    made = [path.name for path in disk["debs"][:2]]
    assert made == ["cplayground-dkms.deb", "cplayground.deb"]
    assert list(dict.fromkeys(empty.ran)) == ["fetch", "root", "DKMS packages", "tool package"]


@pytest.mark.parametrize(("jobs", "missing"), [(2, True), (2, False), (1, True)])
def test_a_missing_root_of_the_guest_is_made_meanwhile(
    empty: Works,
    disks: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    jobs: int,
    missing: bool,
) -> None:
    began: list[list[str]] = []

    @contextlib.contextmanager
    def started(_: object) -> Iterator[None]:
        began.append(list(dict.fromkeys(empty.ran)))
        yield

    monkeypatch.setattr(beside, "started", started)
    monkeypatch.setattr(roots, "why_make_guest", lambda *_: "missing" if missing else None)
    images.stock_image(dataclasses.replace(empty.settings, jobs=jobs), empty.target)
    # Both roots need the indexes that fetch brings.
    assert began == ([["fetch"]] if jobs > 1 and missing else [])
    assert disks


def test_module_and_packages_are_checked_again_after_a_change(
    works: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    monkeypatch.setattr(module, "whole", lambda path: path)
    monkeypatch.setattr(module, "debian", lambda path, _: path)
    monkeypatch.setattr(module, "lint", lambda *_, scratch, **__: read.append(scratch.name))
    monkeypatch.setattr(deb, "lint", lambda _, changes, log: read.append(log.name))

    def check() -> list[str]:
        read.clear()
        works.package()
        lint.check_module(works.last)
        lint.check_packages(works.last)
        lint.check_stock_module(works.settings, works.target)
        return [name.removesuffix("-bookworm-cloud-amd64.log") for name in read]

    packed = ("kernel", "module", "dkms", "guard", "cplayground")
    sets = [f"lintian-packages-{name}" for name in packed]
    assert sorted(check()) == sorted(["lint", *sets, "lint-stock"])
    assert check() == []
    EDITS["dkms"][0](works)
    assert check() == ["lintian-packages-dkms"]
    EDITS["kmod"][0](works)
    assert sorted(check()) == ["lint", "lint-stock", *sorted(sets[1:3])]


# Secure Boot.


@pytest.fixture
def signing(works: Works, monkeypatch: pytest.MonkeyPatch) -> Works:
    """A checkout in which everything was made unsigned, and which now has a key."""
    # The toy's kernel is no program for EFI.
    program = secure_boot.efi(works.home / "project/program")
    monkeypatch.setattr(deb, "image", lambda _: program)
    secure_boot.fake_sign_file(monkeypatch)
    works.settings = dataclasses.replace(works.settings, archive=works.home / "published")
    works.settings = secure_boot.with_key(works.settings, works.home / "mok")
    return works


SIGNED = ["kernel packages", "module packages", "repository"]


def test_with_a_key_the_packages_are_made_again_and_nothing_is_compiled(signing: Works) -> None:
    said = signing.explain()
    assert said["kernel"] is None
    assert str(said["kernel packages"]).startswith("certificate ")
    assert [name for name in signing.package() if name != "module"] == SIGNED
    made = signing.last
    home = made.where.signatures
    assert signing.settings.mok_certificate is not None
    for kind, file, name in (
        (mok.Kind.KERNEL, deb.image(made.kernel), mok.KERNEL),
        (mok.Kind.MODULE, made.module.path, "cplayground.ko.sig"),
    ):
        assert mok.fits(kind, file, home / name, signing.settings.mok_certificate)
    record = manifest.read(made.where.home / manifest.RECORD)
    _, build = manifest.single(record)
    assert build.certificate == mok.read(home / mok.CERTIFICATE)[0].digest
    assert signing.package() == []


def test_packages_are_the_same_with_the_signature_of_the_build_or_of_the_release(
    signing: Works,
) -> None:
    signing.package()
    result, home = signing.result(), signing.last.where.signatures
    damage.lost(next(signing.settings.build.glob("bookworm/cloud-amd64/*/packages-kernel/*.deb")))
    time.sleep(1.1)  # a new signature would have another time in it
    assert signing.package() == ["kernel packages"]
    assert signing.result() == result
    release = signing.settings.archive / "releases/one"
    release.mkdir(parents=True)
    for name in (mok.KERNEL, "cplayground.ko.sig"):
        (home / name).rename(release / name)
    assert signing.package() == ["kernel packages", "module packages"]
    assert signing.result() == result


def test_with_another_key_or_without_one_the_packages_are_made_again(
    signing: Works, finished: Finished
) -> None:
    signing.package()
    first = signing.last.packages
    signing.settings = secure_boot.with_key(signing.settings, signing.home / "other")
    assert signing.package() == SIGNED
    assert signing.last.packages != first
    signing.settings = dataclasses.replace(signing.settings, mok_key=None, mok_certificate=None)
    assert signing.package() == SIGNED
    assert signing.result() == finished.result


def test_a_key_that_cannot_sign_is_told_before_anything_is_made(
    empty: Works, tmp_path: Path
) -> None:
    empty.settings = dataclasses.replace(empty.settings, mok_certificate=tmp_path / "none")
    for run in (stages.package, stages.package_kernel):
        with pytest.raises(SigningError):
            run(empty.settings, empty.target)
    assert not empty.settings.build.exists()
