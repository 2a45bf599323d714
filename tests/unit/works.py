"""The whole pipeline on the toy distro: real stages, and toys in place of the slow programs.

Unpacking, patching, planning, compiling (with a make of twenty lines), stamps, records and the
manifest are real.  The archive, mmdebstrap, debhelper, the module's compiler and apt-ftparchive are
functions here, which make small files out of what the real ones depend on.
"""

from __future__ import annotations

import dataclasses
import gzip
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from kbuild.core import fs, places, stamp
from kbuild.core.model import Base, BuiltKernel, Package, Settings, Target, VerifiedFile
from kbuild.fetch import roots, source, unpack
from kbuild.kernel import compilation, module, patches
from kbuild.kernel.module import BuiltModule
from kbuild.pipeline import stages
from kbuild.pipeline.stage import Made
from kbuild.ship import deb, dkms, guard_package, manifest, repo, tool_package, versions
from tests.unit import toy

PROJECT = Path(__file__).resolve().parents[2]
NAMES = tuple(one.name for one in stages.STAGES)
COMPILER = "gcc-12 (Toy) 12.2.0"
# Stages by the names of their stamps, or of the shelves on which these lie.
_MADE = {
    "trees": "unpack",
    "debs": "unpack",
    "roots": "root",
    "kernel.json": "kernel",
    "packages-kernel.json": "kernel packages",
    "headers.json": "module",
    "module.json": "module",
    "packages-module.json": "module packages",
    "packages-dkms.json": "DKMS packages",
    "packages-guard.json": "guard package",
    "packages-cplayground.json": "tool package",
    "repo.json": "repository",
}
_CHANGELOG = """\
linux (6.1.192-2) bookworm; urgency=medium

  * A toy.

 -- Nobody <nobody@example.org>  Mon, 16 Nov 2026 10:17:40 +0000
"""


def _pack(out: Path, name: str, tree: Path) -> Path:
    """Make a real package of what lies below ``tree``; the same content gives the same bytes."""
    control = f"Package: {name}\nVersion: 1\nArchitecture: amd64\nMaintainer: x\nDescription: x\n"
    toy.write(tree / "DEBIAN/control", control)
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.deb"
    subprocess.run(
        ["dpkg-deb", "-Znone", "--root-owner-group", "-b", tree, path],
        check=True,
        capture_output=True,
        env=os.environ | {"SOURCE_DATE_EPOCH": "0"},
    )
    return path


class Works:
    """A checkout with its build directory, cache and archive, all below ``home``."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home = home
        self.settings = Settings(
            project=home / "project", build=home / "build", cache=home / "cache", jobs=2
        )
        self.target = Target("bookworm", "cloud-amd64")
        self.ran: list[str] = []  # the stages that made something, in order
        self.halt = ""  # the stage in whose middle this process is killed
        self.compiler = COMPILER
        for owner, name, fake in (
            (os, "geteuid", lambda: 0),
            (source, "resolve", lambda *_: None),
            (source, "base", lambda *_: self.base()),
            (source, "fetch", self.fetch),
            (unpack, "extract", self.watched("unpack", unpack.extract)),
            (patches, "_install", self.watched("patch", patches._install)),
            (roots, "_debootstrap", self.debootstrap),
            (compilation, "compiler_version", lambda _: self.compiler),
            (compilation, "_make", self.watched("kernel", compilation._make)),
            (deb, "build_kernel_packages", self.kernel_packages),
            (module, "build", self.build_module),
            (deb, "build_prebuilt", self.module_packages),
            (dkms, "build_package", self.dkms_packages),
            (guard_package, "build_package", self.guard_packages),
            (tool_package, "build_package", self.tool_packages),
            (repo, "publish", self.publish),
            (manifest, "write", self.watched("manifest", manifest.write)),
            (stamp, "write", self.note(stamp.write)),
        ):
            monkeypatch.setattr(owner, name, fake)
        monkeypatch.setenv("PATH", f"{toy.FAKE_TOOLS}:{os.environ['PATH']}")

    @classmethod
    def new(cls, home: Path, monkeypatch: pytest.MonkeyPatch) -> Works:
        """Return a checkout in which nothing was done yet."""
        distro = toy.make(home / "project")
        for name in ("cplayground", "kmod", "dkms", "guard", "debian", "fragments"):
            shutil.copytree(PROJECT / name, home / "project" / name)
        shutil.copy(PROJECT / "CHANGELOG.md", home / "project")
        tree = home / "scratch"
        (tree / "usr/src").mkdir(parents=True)
        with tarfile.open(tree / "usr/src/linux-source-6.1.tar.xz", "w:xz") as archive:
            archive.add(distro.pristine, "linux-source-6.1")
        shares = distro.image / "usr/share/doc" / distro.base.image.name
        toy.write(shares / "changelog.Debian.gz", gzip.compress(_CHANGELOG.encode(), mtime=0))
        for name, content in (
            (distro.base.source.name, tree),
            (distro.base.image.name, distro.image),
            (distro.base.headers.name, distro.headers),
        ):
            _pack(home / "archive", name, content)
        fs.remove_tree(tree)
        works = cls(home, monkeypatch)
        for place in places.both(works.settings):
            places.mark(place)
        return works

    def base(self) -> Base:
        toy_base = toy.base(self.home)

        def file(one: VerifiedFile) -> VerifiedFile:
            known = self.home / "archive" / f"{one.name}.deb"
            path = self.settings.cache / "files" / known.name
            return dataclasses.replace(one, path=path, sha256=fs.sha256_file(known))

        files = {name: file(getattr(toy_base, name)) for name in ("source", "image", "headers")}
        return dataclasses.replace(toy_base, **files)  # type: ignore[arg-type]

    def rebased(self) -> None:
        """Let the archive have another build of the base, of a later day."""
        name = self.base().image.name
        with tempfile.TemporaryDirectory() as tree:
            subprocess.run(
                ["dpkg-deb", "-R", self.home / "archive" / f"{name}.deb", tree], check=True
            )
            log = Path(tree, "usr/share/doc", name, "changelog.Debian.gz")
            later = _CHANGELOG.replace("Mon, 16 Nov", "Tue, 17 Nov")
            log.write_bytes(gzip.compress(later.encode(), mtime=0))
            _pack(self.home / "archive", name, Path(tree))
        for path in self.settings.cache.glob(f"files/{name}.deb"):
            path.unlink()

    # Stand-ins for slow programs.

    def half(self, stage: str) -> None:
        """Be killed here, if it is this stage's turn."""
        if stage == self.halt:
            os.kill(os.getpid(), signal.SIGKILL)

    def watched(self, stage: str, function: Callable[..., object]) -> Callable[..., object]:
        """Return a function whose end is the middle of a stage."""

        def call(*arguments: object, **options: object) -> object:
            result = function(*arguments, **options)
            self.half(stage)
            return result

        return call

    def note(self, write: Callable[..., None]) -> Callable[..., None]:
        """Return :func:`stamp.write` as it is, but that it notes whose stamp is written."""

        def call(path: Path, *arguments: object, **options: object) -> None:
            shelf = path.parent.parent.name
            stage = _MADE.get(path.name) or _MADE.get(shelf) or path.stem
            self.half(f"stamp of {stage}")
            # A stamp of an earlier version is written anew over what is there.
            if not path.exists():
                self.ran.append(stage)
            write(path, *arguments, **options)

        return call

    def fetch(self, *_: object, **__: object) -> Base:
        base = self.base()
        for file in base.files:
            if not file.path.exists():
                self.ran.append("fetch")
                toy.write(file.path, (self.home / "archive" / file.path.name).read_bytes())
                self.half("fetch")
        return base

    def debootstrap(
        self, settings: Settings, suite: str, kind: str, packages: object, into: Path, log: Path
    ) -> None:
        said = "Package: gcc-12\nVersion: 12.2.0\nArchitecture: amd64\n"
        said += "Status: install ok installed\nMaintainer: x\nDescription: x\n"
        toy.write(into / "var/lib/dpkg/status", said)
        self.half("root")
        toy.write(into / "usr/bin/gcc-12", "gcc")
        self.compiler = COMPILER

    def packed(self, stage: str, out: Path, inputs: Mapping[str, str]) -> tuple[Package, ...]:
        """Make packages by name, each with the content of what it depends on."""
        made = []
        with fs.fresh_directory(out) as fresh:
            for name, content in inputs.items():
                with tempfile.TemporaryDirectory() as tree:
                    toy.write(Path(tree, "usr/src", name, "content"), content)
                    path = _pack(fresh, name, Path(tree))
                made.append(Package(name, "1", "amd64", out / path.name, fs.sha256_file(path)))
                self.half(stage)
        return tuple(made)

    def kernel_packages(
        self,
        settings: Settings,
        root: object,
        kernel: BuiltKernel,
        *,
        out: Path,
        signed: Path | None,
        **_: object,
    ) -> tuple[Package, ...]:
        templates = fs.sha256_tree(settings.project / "debian/kernel")
        image = fs.sha256_file(signed / "vmlinuz") if signed else ""
        inputs = {
            versions.image_package(kernel.release): kernel.digest + templates + image,
            versions.headers_package(kernel.release): kernel.symvers.read_text(),
        }
        return self.packed("kernel packages", out, inputs)

    def build_module(
        self, settings: Settings, *_: object, headers: Path, out: Path, **__: object
    ) -> BuiltModule:
        toy.write(out / "cplayground.ko", "half")
        self.half("module")
        content = (headers / "content").read_text() + fs.sha256_tree(settings.project / "kmod")
        toy.write(out / "cplayground.ko", content)
        return BuiltModule(out / "cplayground.ko", toy.RELEASE, ("stock",), "6.1 SMP", 1.0)

    def module_packages(
        self,
        settings: Settings,
        root: object,
        kernel: BuiltKernel,
        ko: Path,
        *,
        out: Path,
        **_: object,
    ) -> tuple[Package, ...]:
        templates = fs.sha256_tree(settings.project / "debian/modules")
        name = versions.modules_package(kernel.release)
        return self.packed("module packages", out, {name: fs.sha256_file(ko) + templates})

    def dkms_packages(
        self, settings: Settings, root: object, *, out: Path, **_: object
    ) -> tuple[Package, ...]:
        trees = [settings.project / name for name in ("kmod", "dkms", "debian/dkms")]
        content = "".join(map(fs.sha256_tree, trees))
        return self.packed("DKMS packages", out, {dkms.PACKAGE: content})

    def guard_packages(
        self, settings: Settings, root: object, *, out: Path, **_: object
    ) -> tuple[Package, ...]:
        trees = [settings.project / name for name in ("guard", "debian/guard")]
        content = "".join(map(fs.sha256_tree, trees))
        return self.packed("guard package", out, {guard_package.PACKAGE: content})

    def tool_packages(
        self, settings: Settings, root: object, *, out: Path, **_: object
    ) -> tuple[Package, ...]:
        content = tool_package.digest(settings.project)
        content += fs.sha256_tree(settings.project / "debian/cplayground")
        return self.packed("tool package", out, {tool_package.PACKAGE: content})

    def publish(self, settings: Settings, by_suite: Mapping[str, list[Package]]) -> Path:
        target = settings.build / "repo"
        with fs.fresh_directory(target) as fresh:
            for suite, packages in by_suite.items():
                for one in packages:
                    toy.write(fresh / suite / one.path.name, one.path.read_bytes())
                    self.half("repository")
        return target

    # Actions of a test, and what it sees.

    def package(self) -> list[str]:
        """Run the pipeline; returns the stages that made something, each once, in order."""
        self.ran.clear()
        self.last = stages.package(self.settings, self.target)
        return list(dict.fromkeys(self.ran))

    def killed(self, stage: str) -> None:
        """Run the pipeline in a process of its own, which is killed in the middle of a stage."""
        child = os.fork()
        if child == 0:
            self.halt = stage
            try:
                self.package()
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL

    def explain(self) -> dict[str, str | None]:
        """Return the reason for which each stage would run."""
        steps = stages.explain(self.settings, self.target)
        return {step.name: step.reason for step in steps}

    def result(self) -> dict[str, str]:
        """Return what a user gets: packages, repository and manifest, by digest."""
        build = self.settings.build
        whole = manifest.verify(build / "manifest.json")
        made: Made = self.last
        return {
            "repository": fs.sha256_tree(build / "repo"),
            "kernel": made.kernel.digest,
            "module": fs.sha256_file(made.module.path),
            **{one.name: one.sha256 for one in made.packages},
            **{f"{one.name} in the manifest": one.sha256 for one in whole.outputs},
        }
