"""The stages in their order: what is skipped, what is run again, and what is published."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from kbuild import cleaning, fs, kernel, manifest, pipeline, repo, roots, source
from kbuild.errors import GuardError, UserError
from kbuild.kconfig import Fragment
from kbuild.manifest import Manifest, Output
from kbuild.model import Package, Root, Settings, Target
from kbuild.pipeline import Places
from tests.unit import toy


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


def record(settings: Settings, flavour: str, names: tuple[str, ...]) -> tuple[Places, Manifest]:
    home = settings.build / "bookworm" / flavour
    outputs = []
    for name in names:
        shared = name == "cplayground-dkms"
        made = deb(settings.build / "bookworm/packages-dkms" if shared else home / "p", name)
        relative = made.path.relative_to(settings.build).as_posix()
        outputs.append(Output(name, "1", "amd64", relative, made.sha256, 3))
    where = Places(home, home / "6.1.192-2", settings.build / "logs", flavour)
    return where, Manifest(manifest.FORMAT, None, "0.1.0", (), tuple(outputs), {})


def test_the_repository_holds_every_target_and_leaves_out_what_is_gone(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    published: list[list[str]] = []

    def publish(settings: Settings, suites: dict[str, list[Package]]) -> Path:
        published.append(sorted(p.path.name for packages in suites.values() for p in packages))
        (settings.build / "repo").mkdir(exist_ok=True)
        return settings.build / "repo"

    monkeypatch.setattr(repo, "publish", publish)
    lab = record(settings, "lab", ("image-lab", "cplayground-dkms"))
    pipeline._publish(settings, *lab)
    pipeline._publish(settings, *lab)
    assert published == [["cplayground-dkms.deb", "image-lab.deb"]]
    cloud = record(settings, "cloud", ("image-cloud", "cplayground-dkms"))
    pipeline._publish(settings, *cloud)
    assert published[-1] == ["cplayground-dkms.deb", "image-cloud.deb", "image-lab.deb"]
    (settings.build / lab[1].outputs[0].path).write_text("changed")
    pipeline._publish(settings, *cloud)
    assert published[-1] == ["cplayground-dkms.deb", "image-cloud.deb"]
    whole = manifest.read(settings.build / "manifest.json")
    assert sorted(one.name for one in whole.outputs) == ["cplayground-dkms", "image-cloud"]


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
