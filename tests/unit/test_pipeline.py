"""The stages in their order: what is skipped, what is run again, and what is published."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from kbuild import cleaning, fs, kernel, pipeline, roots, source
from kbuild.errors import GuardError, UserError
from kbuild.kconfig import Fragment
from kbuild.model import Package, Root, Settings, Target
from tests.unit import damage, toy


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(project=tmp_path / "project", build=tmp_path / "build", cache=tmp_path / "c")


def deb(out: Path, name: str, content: str = "deb") -> Package:
    path = out / f"{name}.deb"
    fs.write_atomic(path, content)
    return Package(name, "1", "amd64", path, fs.sha256_file(path))


class Maker:
    """Makes one package, and counts how often."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, out: Path) -> tuple[Package, ...]:
        self.runs += 1
        fs.write_atomic(out / "a.changes", "a.deb is what it is")
        return (deb(out, "a"),)


def test_packages_are_made_once_and_again_when_an_input_changed(tmp_path: Path) -> None:
    make, out = Maker(), tmp_path / "packages"
    first = pipeline._packages(out, "it", {"kernel": "1"}, make)
    assert pipeline._packages(out, "it", {"kernel": "1"}, make) == first
    assert make.runs == 1
    pipeline._packages(out, "it", {"kernel": "2"}, make)
    assert make.runs == 2


@pytest.mark.parametrize(("method", "refused"), [("fast", True), ("rebuild", False)])
def test_a_changed_struct_is_refused_before_anything_is_compiled_on_the_fast_path(
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    refused: bool,
) -> None:
    distro = toy.make(tmp_path / "distro")
    patch = distro.patches / "5.11/export.patch"
    patch.write_text(
        patch.read_text()
        + "--- a/include/linux/fdtable.h\n+++ b/include/linux/fdtable.h\n"
        + "@@ -1,2 +1,3 @@\n struct files_struct;\n+struct fdtable { int more; };\n"
        + " void put_files_struct(struct files_struct *fs);\n"
    )
    monkeypatch.setattr(source, "unpack", lambda *_: distro.pristine)
    planned = SimpleNamespace(plan=SimpleNamespace(method=method))
    monkeypatch.setattr(pipeline, "_plan", lambda *_: planned)
    settings = dataclasses.replace(settings, project=tmp_path / "distro")
    target = Target("bookworm", "cloud-amd64")
    if refused:
        with pytest.raises(GuardError, match="what they were compiled with") as caught:
            pipeline.prepare(settings, target, distro.base)
        assert "struct fdtable { int more; }" in (caught.value.found or "")
    else:
        pipeline.prepare(settings, target, distro.base)
        version = pipeline.places(settings, target, distro.base).version
        version.mkdir(parents=True)
        for path in (version, settings.build / "bookworm" / f"source-{distro.base.version}"):
            os.utime(path, (0, 0))
        assert pipeline.prepare(settings, target, distro.base).plan.method == "rebuild"
        assert cleaning.clean_unused(settings, days=1) == ()


def test_packages_are_those_of_their_kernel(settings: Settings) -> None:
    toy.write(settings.project / "debian/kernel/control.j2", "x")
    root = Root("bookworm", settings.cache, "digest")
    one, two = (pipeline._kernel_package_inputs(settings, kernel, root, 0) for kernel in "12")
    assert one != two
    assert one == pipeline._kernel_package_inputs(settings, "1", root, 0)


def test_a_package_that_is_gone_is_made_again(tmp_path: Path) -> None:
    make, out = Maker(), tmp_path / "packages"
    (made,) = pipeline._packages(out, "it", {}, make)
    made.path.unlink()
    pipeline._packages(out, "it", {}, make)
    assert make.runs == 2


def test_a_failed_packaging_is_not_taken_for_done(tmp_path: Path) -> None:
    make, out = Maker(), tmp_path / "packages"
    pipeline._packages(out, "it", {"kernel": "1"}, make)

    def fail(_: Path) -> tuple[Package, ...]:
        raise UserError("no")

    with pytest.raises(UserError):
        pipeline._packages(out, "it", {"kernel": "2"}, fail)
    pipeline._packages(out, "it", {"kernel": "1"}, make)
    assert make.runs == 2


@pytest.mark.parametrize("victim", ["a.deb", "a.changes", "../packages.list"])
@pytest.mark.parametrize("harm", damage.EVERY.values(), ids=damage.EVERY)
def test_damaged_packages_are_made_again(
    tmp_path: Path, victim: str, harm: Callable[[Path], None]
) -> None:
    make, out = Maker(), tmp_path / "packages"
    first = pipeline._packages(out, "it", {}, make)
    harm(out / victim)
    assert pipeline._packages(out, "it", {}, make) == first
    assert make.runs == 2
    assert fs.sha256_file(out / "a.deb") == first[0].sha256
    pipeline._packages(out, "it", {}, make)
    assert make.runs == 2


@pytest.mark.parametrize("harm", damage.EVERY.values(), ids=damage.EVERY)
@pytest.mark.parametrize("victim", ["packages/a.deb", "packages.list"])
def test_what_an_earlier_version_packaged_is_kept_unless_it_is_damaged(
    tmp_path: Path, victim: str, harm: Callable[[Path], None]
) -> None:
    make, out = Maker(), tmp_path / "packages"
    first = pipeline._packages(out, "it", {}, make)
    mark = tmp_path / "packages.json"
    outputs = ["packages.list", "packages/a.deb"]
    earlier = {"format": 1, "inputs": {}, "outputs": outputs, "seconds": 1.0}
    fs.write_json(mark, earlier)
    assert pipeline._packages(out, "it", {}, make) == first
    assert make.runs == 1
    fs.write_json(mark, earlier)
    harm(tmp_path / victim)
    assert pipeline._packages(out, "it", {}, make) == first
    # One changed bit of a record that says nothing of itself may leave it right.
    assert make.runs == 2 or victim == "packages.list"


def test_packages_are_found_after_the_checkout_was_moved(tmp_path: Path) -> None:
    make, old, new = Maker(), tmp_path / "old", tmp_path / "new"
    pipeline._packages(old / "packages", "it", {}, make)
    old.rename(new)
    (moved,) = pipeline._packages(new / "packages", "it", {}, make)
    assert (moved.path, make.runs) == (new / "packages/a.deb", 1)


def test_explain_with_an_empty_cache_says_what_comes_first(settings: Settings) -> None:
    before = sorted(settings.cache.rglob("*")) if settings.cache.exists() else []
    offered = dataclasses.replace(settings, mirrors=("http://127.0.0.1:9/debian",))
    steps = pipeline.explain(offered, Target("bookworm", "lab"))
    assert [step.name for step in steps] == list(pipeline.STAGES)
    assert steps[0].reason is not None
    assert all(step.reason == "an earlier stage runs first" for step in steps[1:])
    assert not (settings.build / "bookworm").exists()
    assert before == []


@pytest.mark.parametrize(
    ("method", "found", "offline", "refreshed"),
    [
        ("fast", "gcc-12 (Debian 12.2.0-14) 12.2.0", False, False),
        ("fast", "gcc-12 (Debian 12.2.0-13) 12.2.0", False, True),
        ("fast", "gcc-12 (Debian 12.2.0-13) 12.2.0", True, False),
        ("rebuild", "gcc-12 (Debian 12.2.0-13) 12.2.0", False, False),
    ],
)
def test_a_root_with_an_older_compiler_is_made_again(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    found: str,
    offline: bool,
    refreshed: bool,
) -> None:
    asked: list[bool] = []

    def compile_root(settings: Settings, suite: str, *, refresh: bool = False) -> Root:
        asked.append(refresh)
        return Root(suite, settings.cache, "digest")

    monkeypatch.setattr(roots, "compile_root", compile_root)
    monkeypatch.setattr(kernel, "compiler_version", lambda root: found)
    plan = kernel.Plan(
        target=Target("bookworm", "cloud-amd64"),
        base=toy.make(settings.cache).base,
        release="6.1.0-56-cplayground-cloud-amd64",
        package_version="6.1.192-2+cplayground1",
        method=method,
        reason="",
        fragments=(),
        distro_options=True,
        config='CONFIG_CC_VERSION_TEXT="gcc-12 (Debian 12.2.0-14) 12.2.0"\n',
        distro=Fragment("distro", {}),
        timestamp="0",
    )
    pipeline._compile_root(dataclasses.replace(settings, offline=offline), plan)
    assert asked == ([False, True] if refreshed else [False])
