"""A small Debian with a clock of its own: its mirror, our pipeline on it, and servers with apt.

Everything in a round is real, except for what takes minutes: debootstrap, the compiler,
debhelper, the VM tests, and the gate's boots.  Their stand-ins make small packages, and give the
verdict that the source deserves.  Every program sees the simulated time by libfaketime, so the
process must have been started with :func:`environment`.
"""

from __future__ import annotations

import dataclasses
import email.utils
import gzip
import html
import json
import multiprocessing
import multiprocessing.connection
import os
import re
import select
import shutil
import signal
import sys
import tarfile
import tempfile
import time
import traceback
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tasks
from kbuild import cli, testing
from kbuild.archive import operations, verify
from kbuild.archive.release import Record, View
from kbuild.archive.required import NEED_OLDER, NOTHING_OLDER, REQUIRED
from kbuild.core import fs, places, suites
from kbuild.core import run as running
from kbuild.core.model import BuiltKernel, Package, Settings, Target
from kbuild.fetch import download, mirror, roots, source
from kbuild.gate import candidate, judging
from kbuild.gate.report import FAILED, PASSED, CaseResult, Report
from kbuild.pipeline import stages
from kbuild.ship import dkms, keyring_package, shared, signing, versions
from kbuild.ship.shared import SharedPackage
from kbuild.testing import FailedTestsError
from tests.unit import own_apt, papers, signed_archive, toy
from tests.unit.signed_archive import Fault, Server, SignedArchive, Waits
from tests.unit.works import COMPILER, PROJECT, Works

SUITE, FLAVOUR = "bookworm", "cloud-amd64"
DISTS = (SUITE, f"{SUITE}-security")
META = versions.image_meta(FLAVOUR)
TARGET = Target(SUITE, FLAVOUR)
_LIBRARY = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")
_FAKETIME = {
    "LD_PRELOAD": str(_LIBRARY),
    "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    "NO_FAKE_STAT": "1",
}

# The kernel of the first day.  The stand-ins find what its sources say.
MAIN_C = "void start_kernel(void)\n{\n}\nEXPORT_SYMBOL(start_kernel);\n"
OPTIONS = (*toy.CONFIG.splitlines(), "CONFIG_PROC_FS=y")
PANIC, MODULE_NEEDS = "\tpanic(", "CONFIG_PROC_FS=y"

# Everything that our side writes lies below this directory of the world's.
DISK = "disk"
# A release is promoted so long after it was staged.
HOURS = 24
_NOTIFY = """\
[ ! -e "$home/mute" ] || { echo 'the mail server is down' >&2; exit 7; }
cat >>"$home/notices"
printf '\\0' >>"$home/notices"
"""
_HEALTH = """\
[ ! -e "$home/sick" ] || { echo 'server 7 has an oops' >&2; exit 1; }
"""

# The offer of a suite before its first promotion.
NOTHING = "nothing"

# Works puts toys in their places.
_REAL = {name: getattr(source, name) for name in ("resolve", "base", "fetch")}


# Time.


class Clock:
    """The time that every program of the simulation sees."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ahead = timedelta()
        self.set(self._ahead)

    @property
    def env(self) -> dict[str, str]:
        """Return the variables by which a program that starts now sees this time."""
        return {**_FAKETIME, "FAKETIME": f"{self._ahead.total_seconds():+.0f}"}

    def set(self, ahead: timedelta) -> None:
        """Put the clock so far ahead of the machine's."""
        self._ahead = ahead
        scratch = self.path.with_name(f".{self.path.name}")
        scratch.write_text(f"{ahead.total_seconds():+.0f}\n")
        scratch.replace(self.path)

    def wrong(self, by: timedelta) -> None:
        """Put this process apart: its clock is wrong by so much from now on."""
        self.path = self.path.with_name(f"clock.{os.getpid()}")
        self.set(self._ahead + by)
        os.environ["FAKETIME_TIMESTAMP_FILE"] = str(self.path)

    def pass_(self, time: timedelta) -> None:
        """Let time pass, or step back."""
        self.set(self._ahead + time)


def lacking() -> str:
    """Say what this machine lacks for a clock of its own; nothing if it has all."""
    return "" if _LIBRARY.exists() else f"{_LIBRARY} of the package libfaketime"


def environment(home: Path) -> dict[str, str]:
    """Return the environment of a simulation below ``home``, which its :class:`World` continues."""
    clock = Clock(home / "clock")
    here = {"FAKETIME_NO_CACHE": "1", "FAKETIME_TIMESTAMP_FILE": str(clock.path)}
    keep = ("PATH", "HOME", "TMPDIR", "PYTEST_DEBUG_TEMPROOT")
    kept = {name: os.environ[name] for name in keep if name in os.environ}
    python = {"PYTHONPATH": str(PROJECT), "PYTHONUTF8": "1"}
    return {**kept, **python, "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", **_FAKETIME, **here}


# Servers of files.


class Served:
    """A directory served over http by a process of its own.

    A process that forks must have no threads: a lock of libfaketime would stay locked.
    """

    def __init__(self, root: Path) -> None:
        fork = multiprocessing.get_context("fork")
        self._line, line = fork.Pipe()
        self._process = fork.Process(target=_serve, args=(root, line), daemon=True)
        self._process.start()
        self.url = str(self._line.recv())

    def fail(self, end: str, *faults: Fault) -> None:
        """Let the next requests for a path that ends so get these faults, the last one for ever."""
        self._ask("fail", end, faults)

    def heal(self) -> None:
        """Let all be well again."""
        self._ask("heal")

    def asked(self) -> int:
        """Return how many requests there were so far."""
        return int(self._ask("asked"))

    def close(self) -> None:
        """Stop serving."""
        self._process.kill()
        self._process.join()

    def _ask(self, *words: object) -> Any:  # noqa: ANN401
        self._line.send(words)
        return self._line.recv()


def _serve(root: Path, line: multiprocessing.connection.Connection[Any, Any]) -> None:
    server = Server(root)
    line.send(server.url)
    while True:
        match line.recv():
            case ("fail", end, faults):
                server.fail(end, *faults)
                line.send(None)
            case ("heal",):
                server.faults.clear()
                line.send(None)
            case ("asked",):
                line.send(len(server.requests))


# The distro.


@dataclass(frozen=True)
class Upload:
    """A kernel of the distro, as its maintainers upload it."""

    version: str
    abi: str
    news: str = "A toy."
    file_c: str = toy.FILE_C
    main_c: str = MAIN_C
    options: tuple[str, ...] = OPTIONS
    refused: str = ""  # an option that its source does not have, though the distro's kernel does

    @property
    def release(self) -> str:
        return f"{self.abi}-{FLAVOUR}"


class Distro:
    """The distro's archive, served over http on the loopback interface."""

    def __init__(self, home: Path) -> None:
        self.archive = SignedArchive(home, signed_archive.key("distro"))
        self.uploads: list[Upload] = []
        self.changelog: list[str] = []
        for dist in DISTS:
            self.archive.stanzas[dist] = []
        self.publish()
        self.server = Served(home)

    def publish(self, *, valid_for: timedelta = timedelta(days=7)) -> None:
        """Sign the indexes of today."""
        for dist in DISTS:
            self.archive.publish(dist, by_hash=True, valid_for=valid_for)

    def indexes(self) -> dict[Path, bytes]:
        """Return all indexes as they are now."""
        files = (self.archive.root / "dists").rglob("*")
        return {path: path.read_bytes() for path in files if path.is_file()}

    def replay(self, old: Mapping[Path, bytes]) -> None:
        """Serve earlier indexes again."""
        for path, content in old.items():
            path.write_bytes(content)

    def index_names(self) -> list[str]:
        """Return the names under which apt asks for today's index of the security pocket."""
        index = self.archive.packages(DISTS[1])
        return [fs.sha256_file(index), index.name, index.stem]

    def upload(self, one: Upload, dist: str = DISTS[1]) -> dict[str, Path]:
        """Put a kernel into a dist, and publish; return its files in the pool."""
        self.uploads.append(one)
        now = email.utils.format_datetime(datetime.now(UTC))
        self.changelog.insert(
            0,
            f"linux ({one.version}) {SUITE}; urgency=medium\n\n  * {one.news}\n\n"
            f" -- Nobody <nobody@example.org>  {now}\n\n",
        )
        needed = {
            f"linux-source-{one.version[:3]}": "",
            f"linux-image-{one.release}": "",
            f"linux-headers-{one.release}": "",
            f"linux-image-{FLAVOUR}": f"linux-image-{one.release} (= {one.version})",
        }
        made = {}
        with tempfile.TemporaryDirectory() as scratch:
            trees = self._trees(one, Path(scratch))
            for name, depends in needed.items():
                tree = trees.get(name, Path(scratch, "empty"))
                tree.mkdir(parents=True, exist_ok=True)
                made[name] = self.archive.add_tree(dist, name, one.version, tree, depends=depends)
        self.publish()
        return made

    def _trees(self, one: Upload, scratch: Path) -> dict[str, Path]:
        """Write what the packages of a kernel contain."""
        written = toy.make(scratch / "toy")
        toy.write(written.pristine / "fs/file.c", one.file_c)
        toy.write(written.pristine / "init/main.c", one.main_c)
        if one.refused:
            toy.write(written.pristine / "refused", one.refused)
        trees = {
            name: scratch / name
            for name in (
                f"linux-source-{one.version[:3]}",
                f"linux-image-{one.release}",
                f"linux-headers-{one.release}",
            )
        }
        source_tree, image, headers = trees.values()
        (source_tree / "usr/src").mkdir(parents=True)
        name = source_tree.name
        with tarfile.open(source_tree / f"usr/src/{name}.tar.xz", "w:xz", preset=0) as tarball:
            tarball.add(written.pristine, name)
        vmlinux = toy.bz_image(toy.elf(toy.BTF, _certificate()))
        toy.write(image / f"boot/vmlinuz-{one.release}", vmlinux)
        module = written.image / f"lib/modules/{toy.RELEASE}/kernel/fs/toy.ko"
        toy.write(image / f"lib/modules/{one.release}/kernel/fs/toy.ko", module.read_bytes())
        changelog = gzip.compress("".join(self.changelog).encode(), mtime=0)
        for tree in (image, headers):
            toy.write(tree / "usr/share/doc" / tree.name / "changelog.Debian.gz", changelog)
        built = headers / "usr/src" / headers.name
        toy.write(built / ".config", "\n".join(one.options) + "\n")
        crcs = {
            name: zlib.crc32(name.encode() + toy.FDTABLE_H.encode())
            for name in ("exit_files", "module_layout", "open", "start_kernel")
        }
        lines = [f"0x{crc:08x}\t{n}\tvmlinux\tEXPORT_SYMBOL\t\n" for n, crc in crcs.items()]
        toy.write(built / "Module.symvers", "".join(lines))
        return trees


_CERTIFICATES: list[bytes] = []


def _certificate() -> bytes:
    """Return one certificate for all kernels; their keys do not matter here."""
    if not _CERTIFICATES:
        _CERTIFICATES.append(toy.certificate(toy.SERIAL))
    return _CERTIFICATES[0]


# Our side.


class Line(Works):
    """Our pipeline on that distro: real stages, and toys in place of the slow programs."""

    def __init__(
        self, home: Path, settings: Settings, row: suites.Suite, patch: pytest.MonkeyPatch
    ) -> None:
        super().__init__(home, patch)
        self.settings = settings
        self.notes = home / "ran"
        for owner, name, value in (
            *((source, name, real) for name, real in _REAL.items()),
            (stages, "package", self.noted("package", stages.package)),
            (testing, "run_tests", self.noted("test", self.run_tests)),
            (judging, "run", self.noted("judge", self.judge)),
            # Only the simulated mirror is asked, and nobody waits for it.
            (mirror, "_targets", lambda _: iter(())),
            (download, "machine", lambda *_: Waits().network),
            (roots, "check_privileges", lambda: None),
        ):
            patch.setattr(owner, name, value)
        patch.setitem(suites.SUITES, row.name, row)

    @classmethod
    def laid_out(
        cls, home: Path, settings: Settings, row: suites.Suite, patch: pytest.MonkeyPatch
    ) -> Line:
        """Return the pipeline with a checkout that has the toy's series of patches."""
        project = settings.project
        for name in ("cplayground", "kmod", "dkms", "guard", "debian", "fragments"):
            (project / name).parent.mkdir(parents=True, exist_ok=True)
            (project / name).symlink_to(PROJECT / name)
        for name in ("CHANGELOG.md", "pyproject.toml"):
            (project / name).symlink_to(PROJECT / name)
        with tempfile.TemporaryDirectory() as scratch:
            patches = toy.make(Path(scratch)).patches
            for path in patches.rglob("*"):
                if path.is_file():
                    toy.write(project / "patches" / path.relative_to(patches), path.read_bytes())
        for place in places.both(settings):
            places.mark(place)
        return cls(home, settings, row, patch)

    def noted(self, what: str, function: Callable[..., object]) -> Callable[..., object]:
        """Return a function whose calls are noted, also in the process of another round."""

        def call(*arguments: object, **options: object) -> object:
            with self.notes.open("a") as stream:
                stream.write(f"{what}\n")
            return function(*arguments, **options)

        return call

    # Stand-ins for slow programs.

    def debootstrap(
        self, settings: Settings, suite: str, kind: str, packages: object, into: Path, log: Path
    ) -> None:
        stanza = "Package: {}\nVersion: {}\nArchitecture: amd64\nStatus: install ok installed\n"
        stanza += "Maintainer: x\nDescription: x\n"
        text = "\n".join(stanza.format(name, version) for name, version in papers.ROOT.items())
        toy.write(into / "var/lib/dpkg/status", text)
        toy.write(into / "usr/bin/gcc-12", "gcc")
        self.compiler = COMPILER

    def made(
        self, out: Path, origin: str, contents: Mapping[tuple[str, str, str], str]
    ) -> tuple[Package, ...]:
        """Make packages by name, version and dependencies, and the record of their build."""
        made = []
        with fs.fresh_directory(out) as fresh:
            for (name, version, depends), content in contents.items():
                with tempfile.TemporaryDirectory() as tree:
                    toy.write(Path(tree, "usr/src", name, "content"), content)
                    path = _pack(fresh, Path(tree), name, version, origin, depends)
                    made.append(Package(name, version, "amd64", path, fs.sha256_file(path)))
            date = email.utils.format_datetime(datetime.now(UTC))
            papers.record(fresh, origin, made, date=date)
        return tuple(dataclasses.replace(one, path=out / one.path.name) for one in made)

    def kernel_packages(
        self, settings: Settings, root: object, kernel: BuiltKernel, *, out: Path, **_: object
    ) -> tuple[Package, ...]:
        objects = "".join(path.read_text() for path in sorted(kernel.output.rglob("*.o")))
        content = f"{kernel.digest}\n{kernel.config.read_text()}\n{objects}"
        version = versions.package_version(kernel.base.version, settings.revision)
        flavour, variant = kernel.target.flavour, kernel.target.variant
        image, headers = (
            name(kernel.release) for name in (versions.image_package, versions.headers_package)
        )
        contents = {
            (image, version, ""): content,
            (headers, version, ""): kernel.symvers.read_text() + kernel.config.read_text(),
            (versions.image_meta(flavour, variant), version, f"{image} (= {version})"): "",
            (versions.headers_meta(flavour, variant), version, f"{headers} (= {version})"): "",
        }
        return self.made(out, versions.source_package(flavour, variant), contents)

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
        version = versions.prebuilt_version(
            versions.module_version(settings.project),
            versions.package_version(kernel.base.version, settings.revision),
        )
        name = versions.modules_package(kernel.release)
        meta = versions.modules_meta(kernel.target.flavour, kernel.target.variant)
        image = versions.image_package(kernel.release)
        contents = {
            (name, version, image): ko.read_text(),
            (meta, version, f"{name} (= {version})"): "",
        }
        return self.made(out, meta, contents)

    def dkms_packages(
        self, settings: Settings, root: object, *, out: Path, **_: object
    ) -> tuple[Package, ...]:
        version = versions.suite_version(
            versions.module_version(settings.project), suites.suite(SUITE).mark
        )
        return self.made(out, dkms.PACKAGE, {(dkms.PACKAGE, version, ""): "source"})

    def guard_packages(
        self, settings: Settings, root: object, *, out: Path, **_: object
    ) -> tuple[Package, ...]:
        return self.shared_package(settings, out, shared.GUARD)

    def tool_packages(
        self, settings: Settings, root: object, *, out: Path, **_: object
    ) -> tuple[Package, ...]:
        return self.shared_package(settings, out, shared.TOOL)

    def shared_package(
        self, settings: Settings, out: Path, package: SharedPackage
    ) -> tuple[Package, ...]:
        """Make a package whose version has a file of its own."""
        number, _ = shared.dated_version(settings.project, package)
        version = versions.suite_version(number, suites.suite(SUITE).mark)
        return self.made(out, package.name, {(package.name, version, ""): package.content})

    def run_tests(self, settings: Settings, target: Target, *_: object) -> tuple[object, ...]:
        """Stand in for the VM tests: they fail on a kernel without what the module needs."""
        path = settings.build / "test/vm.xml"
        toy.write(path, "<testsuites/>\n")
        if MODULE_NEEDS not in _content(candidate.last(settings, target).packages):
            raise FailedTestsError(
                "1 of 2 vm tests failed",
                found=f"the module cannot make its file: no {MODULE_NEEDS[:-2]}",
                log=path,
            )
        return (SimpleNamespace(junit=path),)

    def judge(self, settings: Settings, view: View, **_: object) -> Report:
        """Stand in for the gate: a server panics with an image whose source does."""
        release = view.candidate
        panics = PANIC in _content(release.packages)
        said = ("the console has a finding: Kernel panic - not syncing: a toy",)
        cases = []
        for name in REQUIRED:
            if name in NEED_OLDER and not view.promoted:
                cases.append(CaseResult(name, NOTHING_OLDER))
            else:
                cases.append(CaseResult(name, FAILED if panics else PASSED, 1.0, said * panics))
        return Report(
            id=release.id,
            packages={one.path.name: one.sha256 for one in release.packages},
            cases=tuple(cases),
            older=tuple(one.id for one in view.promoted),
            commit="0" * 40,
            when=datetime.now(UTC).isoformat(timespec="seconds"),
            accelerator="none",
            seconds=1.0,
        )


def _content(packages: Sequence[Package]) -> str:
    """Return what the stand-ins have put into packages."""
    with tempfile.TemporaryDirectory() as name:
        for one in packages:
            running.run(["dpkg-deb", "--extract", one.path, name], timeout_s=60)
        return "".join(path.read_text() for path in Path(name).rglob("content"))


def _pack(out: Path, tree: Path, name: str, version: str, origin: str, depends: str) -> Path:
    """Make a real package; the same content gives the same bytes."""
    fields = {
        "Package": name,
        "Source": origin,
        "Version": version,
        "Architecture": "amd64",
        "Maintainer": "Nobody <nobody@example.org>",
        "Depends": depends,
        "Section": "kernel",
        "Priority": "optional",
        "Description": "made by a test",
    }
    text = "".join(f"{label}: {value}\n" for label, value in fields.items() if value)
    toy.write(tree / "DEBIAN/control", text)
    path = out / f"{name}_{version}_amd64.deb"
    running.run(
        ["dpkg-deb", "--root-owner-group", "-Znone", "--build", tree, path],
        env={"SOURCE_DATE_EPOCH": "0"},
        timeout_s=60,
    )
    return path


# Servers.


class Machine(own_apt.Apt):
    """A server that follows our archive, or its staging, with an apt of its own."""

    def __init__(self, home: Path, url: str, suite: str, clock: Clock, keyring: Path) -> None:
        self.keyring = home / "keyring.gpg"
        self.clock = clock
        super().__init__(
            home,
            f"Types: deb\nURIs: {url}\nSuites: {suite}\nComponents: main\n"
            f"Signed-By: {self.keyring}\n",
        )
        self.keyring.write_bytes(keyring.read_bytes())

    def __call__(self, *arguments: str, check: bool = True) -> str:
        self.env = self.clock.env
        return super().__call__(*arguments, check=check)

    def offered(self) -> str:
        """Return the version of the kernel that an upgrade would install, or apt's refusal."""
        said = self("apt-get", "update", "--error-on=any", check=False)
        wrong = [line for line in said.splitlines() if line.startswith(("E:", "W:"))]
        if wrong:
            return f"refused: {min(wrong)}"
        wanted = (META, versions.modules_meta(FLAVOUR), versions.headers_meta(FLAVOUR))
        said = self("apt-get", "install", "--simulate", *wanted, check=False)
        found = re.search(rf"^Inst {re.escape(META)} \((\S+) ", said, re.MULTILINE)
        if found is None and said.count("Unable to locate package") == len(wanted):
            return NOTHING
        return found[1] if found else f"not installable: {said}"

    def upgrade_keyring(self) -> None:
        """Install the keyring that the archive has now, as unattended upgrades do."""
        for old in (self.top / "download").glob("*.deb"):
            old.unlink()
        self("apt-get", "download", keyring_package.NAME)
        (package,) = (self.top / "download").glob("*.deb")
        with tempfile.TemporaryDirectory() as name:
            running.run(["dpkg-deb", "--extract", package, name], timeout_s=60)
            self.keyring.write_bytes(Path(name, keyring_package.KEYRING).read_bytes())


# Everything together.


@dataclass(frozen=True)
class Round:
    """The results of one run of a task, as its caller and as others see them."""

    status: int  # negative for a signal
    log: str  # both streams
    steps: tuple[str, ...]  # of the pipeline that began: package, test, judge
    notices: tuple[dict[str, Any], ...]  # that reached a person
    states: Mapping[str, str]  # release -> state, in words
    stable: str  # the version that a server of the suite would install, or apt's refusal
    staging: str
    findings: tuple[str, ...]  # of verify-archive
    page: str  # text of the status page
    when: datetime


class World:
    """A distro, our pipeline, its archive, and two servers, all below ``home``."""

    def __init__(self, home: Path, patch: pytest.MonkeyPatch, *, lifetime: str = "2y") -> None:
        self.home = home
        self.clock = Clock(home / "clock")
        inherited = running.environment
        patch.setattr(
            running, "environment", lambda extra=None: {**inherited(extra), **self.clock.env}
        )
        # libfaketime refuses the call that sleep() makes.
        patch.setattr(time, "sleep", lambda seconds: select.select([], [], [], seconds) and None)
        self.distro = Distro(home / "mirror")
        self.disk = home / DISK
        self.disk.mkdir(exist_ok=True)
        self.settings = Settings(
            project=home / "project",
            build=self.disk / "build",
            cache=self.disk / "cache",
            jobs=2,
            mirrors=(self.distro.server.url,),
            archive=self.disk / "archive",
            keys=home / "keys",
        )
        row = dataclasses.replace(signed_archive.suite(self.distro.archive.key), pockets=())
        self.line = Line.laid_out(home, self.settings, row, patch)
        patch.setattr(cli, "PROJECT", self.settings.project)
        signing.make_key(self.settings, lifetime=lifetime)
        self.server = Served(self.settings.archive)
        self.machines: dict[str, Machine] = {}
        self.variables = {
            "INVOKE_BUILD_DIR": str(self.settings.build),
            "INVOKE_CACHE_DIR": str(self.settings.cache),
            "INVOKE_ARCHIVE_DIR": str(self.settings.archive),
            "INVOKE_KEYS_DIR": str(self.settings.keys),
            "INVOKE_MIRRORS": self.distro.server.url,
            "INVOKE_JOBS": "2",
            "INVOKE_SUITE": SUITE,
            "INVOKE_FLAVOUR": FLAVOUR,
            "INVOKE_WATCH_PROMOTE": f"100:{HOURS}",
            "INVOKE_WATCH_FREE_GB": "0",
            "INVOKE_WATCH_NOTIFY_COMMAND": str(self._program("notify", _NOTIFY)),
            "INVOKE_WATCH_HEALTH_COMMAND": str(self._program("health", _HEALTH)),
        }

    def close(self) -> None:
        """Stop serving."""
        self.server.close()
        self.distro.server.close()

    def _program(self, name: str, text: str) -> Path:
        path = self.home / name
        path.write_text(f"#!/bin/sh\nset -eu\nhome='{self.home}'\n{text}")
        path.chmod(0o755)
        return path

    # Events.

    def flag(self, name: str, on: bool) -> None:
        """Let the command for health say "sick", or that for notifications be "mute"."""
        if on:
            (self.home / name).touch()
        else:
            (self.home / name).unlink(missing_ok=True)

    def begin(self, *task: str, before: Callable[[], object] = lambda: None) -> Running:
        """Start a task as a process of its own; ``before`` is called in it."""
        log = self.home / f"log.{time.monotonic_ns()}"
        noted = len(self.noted()), len(self._notices())
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.setsid()
                descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
                for number in (1, 2):
                    os.dup2(descriptor, number)
                sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
                sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
                os.environ.update(self.variables)
                before()
                try:
                    cli.program(tasks.ns).run(["inv", *(task or ("watch",))])
                    status = 0
                except SystemExit as end:
                    status = int(end.code or 0)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        return Running(child, log, *noted)

    def end(self, one: Running) -> Round:
        """Wait for a task, and look at everything."""
        _, ended = os.waitpid(one.child, 0)
        return self.look(os.waitstatus_to_exitcode(ended), one)

    def round(self, *task: str, before: Callable[[], object] = lambda: None) -> Round:
        """Run a task, usually ``watch``, to its end."""
        return self.end(self.begin(*task, before=before))

    def restore(self, kept: Path) -> None:
        """Bring our side back to a copy of its files, with servers that know of nothing later."""
        for path in self.disk.iterdir():
            shutil.rmtree(path)
        shutil.copytree(kept, self.disk, symlinks=True, dirs_exist_ok=True)
        for machine in self.machines.values():
            shutil.rmtree(machine.top)
        self.machines.clear()

    # Observations.

    def look(self, status: int, one: Running) -> Round:
        archive = self.settings.archive
        there = (archive / "dists").is_dir()
        page = archive / "status/index.html"
        return Round(
            status=status,
            log=one.log.read_text(errors="replace"),
            steps=tuple(self.noted(one.noted)),
            notices=tuple(self._notices()[one.told :]),
            states={each.version: operations.describe(each) for each in self.releases()},
            stable=self.offered(SUITE) if there else NOTHING,
            staging=self.offered(f"{SUITE}-staging") if there else NOTHING,
            findings=tuple(map(str, verify.check(self.settings).findings)) if there else (),
            page=_text(page.read_text()) if page.exists() else "",
            when=datetime.now(UTC),
        )

    def releases(self) -> tuple[Record, ...]:
        return operations.releases(self.settings)

    def offered(self, suite: str) -> str:
        """Return what a server of a suite would install; it keeps its keyring current."""
        if suite not in self.machines:
            *_, package = sorted(self.settings.archive.rglob(f"{keyring_package.NAME}_*.deb"))
            with tempfile.TemporaryDirectory() as name:
                running.run(["dpkg-deb", "--extract", package, name], timeout_s=60)
                keyring = Path(name, keyring_package.KEYRING)
                self.machines[suite] = Machine(
                    self.home / f"server-{suite}-{time.monotonic_ns()}",
                    self.server.url,
                    suite,
                    self.clock,
                    keyring,
                )
        machine = self.machines[suite]
        offered = machine.offered()
        if not offered.startswith("refused"):
            machine.upgrade_keyring()
        return offered

    def noted(self, since: int = 0) -> list[str]:
        """Return the steps of the pipeline that began, without so many of the first."""
        notes = self.line.notes
        return notes.read_text().splitlines()[since:] if notes.exists() else []

    def _notices(self) -> list[dict[str, Any]]:
        notices = self.home / "notices"
        text = notices.read_text() if notices.exists() else ""
        return [json.loads(one) for one in text.split("\0") if one.strip()]


@dataclass(frozen=True)
class Running:
    """A task that was begun."""

    child: int
    log: Path
    noted: int  # steps that were noted before
    told: int  # notifications before


# Each step that changes a name, and how few of those in a scratch directory count.
_STEPS = ("rename", "replace", "link", "symlink", "unlink", "rmdir")
_SAMPLED = 30


def kill_before(step: int, place: Path) -> None:
    """Let this process be killed before its so manieth change of a name below ``place``."""
    visible = hidden = 0

    def watched(name: str) -> Callable[..., object]:
        function = getattr(os, name)

        def call(*names: str | Path, **options: object) -> object:
            nonlocal visible, hidden
            paths = [Path(one) for one in names if isinstance(one, str | Path)]
            inside = [one.relative_to(place) for one in paths if one.is_relative_to(place)]
            if inside:
                scratch = any(part.startswith(".") for part in inside[-1].parts)
                visible, hidden = visible + (not scratch), hidden + scratch
                due = not scratch or hidden % _SAMPLED == 0
                if due and visible + hidden // _SAMPLED == step:
                    os.kill(os.getpid(), signal.SIGKILL)
            return function(*names, **options)

        return call

    for name in _STEPS:
        setattr(os, name, watched(name))


def _text(page: str) -> str:
    """Return the words of a page."""
    bare = re.sub(r"<(style|script)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", bare)).split())
