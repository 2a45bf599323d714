"""The stages in their order: what is skipped, what is run again, and what is published."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from kbuild import cleaning, pipeline
from kbuild.core import fs, places, stamp
from kbuild.core.errors import GuardError, UserError
from kbuild.core.model import Base, BuiltKernel, Package, Root, Settings, Target, Tree
from kbuild.fetch import roots, source, unpack
from kbuild.kernel import compilation, module, planning
from kbuild.kernel.kconfig import Fragment
from kbuild.kernel.module import BuiltModule
from kbuild.ship import deb as deb_tools
from kbuild.ship import dkms, manifest, repo
from kbuild.ship.manifest import Manifest, Output
from tests.unit import damage, toy

PROJECT = Path(__file__).resolve().parents[2]


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
    monkeypatch.setattr(unpack, "unpack", lambda *_: distro.pristine)
    planned = SimpleNamespace(plan=SimpleNamespace(method=method))
    monkeypatch.setattr(pipeline, "_plan", lambda *_: planned)
    settings = dataclasses.replace(settings, project=tmp_path / "distro")
    for place in places.both(settings):
        places.mark(place)
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


class Line:
    """The pipeline on a toy distro, its slow stages replaced by ones that note that they ran."""

    def __init__(self, where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.distro = toy.make(where)
        self.settings = Settings(project=where, build=where / "build", cache=where / "cache")
        self.target = Target("bookworm", "cloud-amd64")
        self.ran: list[str] = []
        self.unpacked = False
        self.root: Root | None = None
        self.compiler = "gcc-12 (Toy) 12.2.0"
        for file in self.distro.base.files:
            toy.write(file.path, "deb")
        for name in ("kmod", "dkms", "debian"):
            shutil.copytree(PROJECT / name, where / name)
        for owner, name, fake in (
            (source, "resolve", lambda *_: None),
            (source, "base", lambda *_: self.distro.base),
            (source, "fetch", self.fetch),
            (unpack, "unpack", self.unpack),
            (unpack, "not_unpacked", lambda *_: () if self.unpacked else self.distro.base.files),
            (unpack, "unpack_image", lambda *_: self.distro.image),
            (unpack, "unpack_deb", lambda *_: self.distro.headers),
            (unpack, "extract", lambda _, into: into.mkdir(exist_ok=True)),
            (deb_tools, "changelog_epoch", lambda *_: 0),
            (roots, "why_make", lambda *_: None if self.root else "it has not been done yet"),
            (roots, "compile_root", self.make_root),
            (compilation, "compiler_version", lambda _: self.compiler),
            (compilation, "kernel", self.build),
            (deb_tools, "build_kernel_packages", self.packages("kernel packages", "headers")),
            (module, "build", self.build_module),
            (deb_tools, "build_prebuilt", self.packages("module packages", "modules")),
            (dkms, "build_package", self.packages("DKMS packages", "dkms")),
            (repo, "publish", self.publish),
        ):
            monkeypatch.setattr(owner, name, fake)

    def fetch(self, *_: object) -> Base:
        self.ran.append("fetch")
        return self.distro.base

    def unpack(self, *_: object) -> Path:
        self.ran += ["unpack"] * (not self.unpacked)
        self.unpacked = True
        return self.distro.pristine

    def make_root(self, settings: Settings, suite: str, *, refresh: str | None = None) -> Root:
        if refresh or self.root is None:
            self.ran.append("root")
            self.root = Root(suite, settings.cache, "digest")
            self.compiler = "gcc-12 (Toy) 12.2.0"
        return self.root

    def build(
        self, settings: Settings, root: Root, plan: planning.Plan, tree: Tree, **where: Path
    ) -> SimpleNamespace:
        inputs = planning.plan_inputs(plan, tree.digest, root.digest)
        mark = where["home"] / "kernel.json"
        if stamp.reason(mark, inputs):
            self.ran.append("kernel")
            toy.write(mark.with_name("config"), plan.config)
            stamp.write(mark, inputs, [], 1.0)
        place, digest = where["home"], stamp.digest(inputs)
        built = BuiltKernel(
            self.target,
            plan.base,
            tree.series,
            plan.release,
            plan.method,
            tree.path,
            place,
            None,
            place,
            mark.with_name("config"),
            self.compiler,
            digest,
            1.0,
        )
        return SimpleNamespace(ensure=lambda: built)

    def packages(self, stage: str, what: str) -> Callable[..., tuple[Package, ...]]:
        def make(*_: object, out: Path, **__: object) -> tuple[Package, ...]:
            self.ran.append(stage)
            return (deb(out, f"linux-{what}-6.1.0-56-cplayground-cloud-amd64"),)

        return make

    def build_module(self, *_: object, out: Path, **__: object) -> BuiltModule:
        self.ran.append("module")
        toy.write(out / "cplayground.ko", "module")
        return BuiltModule(out / "cplayground.ko", "6.1.0-56", ("stock",), "6.1.0-56", 1.0)

    def publish(self, settings: Settings, _: object) -> Path:
        self.ran.append("repository")
        (settings.build / "repo").mkdir(exist_ok=True)
        return settings.build / "repo"

    def package(self) -> list[str]:
        """Run the pipeline, and return the stages that had something to do."""
        self.ran.clear()
        pipeline.package(self.settings, self.target)
        return list(self.ran)

    def explain(self) -> dict[str, str | None]:
        steps = pipeline.explain(self.settings, self.target)
        return {step.name: step.reason for step in steps}


def test_explain_knows_every_stage_that_package_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = Line(tmp_path, monkeypatch)
    assert line.explain().keys() == set(line.package()) == set(pipeline.STAGES)
    assert list(dict.fromkeys(line.ran)) == list(pipeline.STAGES)
    assert set(line.explain().values()) == {None}
    # fetch looks into the archive each time
    assert line.package() == ["fetch"]


def gone(line: Line) -> None:
    (line.settings.build / "repo").rmdir()


def changed(path: str) -> Callable[[Line], None]:
    return lambda line: toy.write(line.settings.project / path, "changed")


def other_target(line: Line) -> None:
    build = line.settings.build
    package = deb(build / "bookworm/lab/p", "image-lab")
    output = Output(package.name, "1", "amd64", "bookworm/lab/p/image-lab.deb", package.sha256, 3)
    made = Manifest(manifest.FORMAT, None, "0.1.0", (), (output,), {})
    manifest.write(build / "bookworm/lab" / manifest.RECORD, made)


@pytest.mark.parametrize(
    ("change", "stage", "reason"),
    [
        (
            lambda line: setattr(line, "compiler", "gcc-12 (Toy) 12.1.0"),
            "root",
            "(gcc-12 (Toy) 12.2",
        ),
        (changed("debian/kernel/new.j2"), "kernel packages", "templates changed"),
        (changed("kmod/new.c"), "module", "module changed"),
        (changed("debian/modules/new.j2"), "module packages", "templates changed"),
        (changed("dkms/new.conf"), "DKMS packages", "dkms changed"),
        (gone, "repository", "its output repo is gone"),
        (other_target, "repository", "bookworm/lab/p/image-lab.deb changed from nothing"),
    ],
)
def test_explain_names_the_first_stage_that_package_then_runs(
    change: Callable[[Line], None],
    stage: str,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = Line(tmp_path, monkeypatch)
    line.package()
    change(line)
    said = line.explain()
    before = list(pipeline.STAGES).index(stage)
    assert list(said.values())[:before] == [None] * before
    assert reason in (said[stage] or "")
    assert line.explain() == said
    assert line.package()[1] == stage
    assert set(line.explain().values()) == {None}


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

    def compile_root(settings: Settings, suite: str, *, refresh: str | None = None) -> Root:
        asked.append(refresh is not None)
        return Root(suite, settings.cache, "digest")

    monkeypatch.setattr(roots, "compile_root", compile_root)
    monkeypatch.setattr(compilation, "compiler_version", lambda root: found)
    plan = planning.Plan(
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
