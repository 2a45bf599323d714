"""dkms.conf and its gate, read by bash the way DKMS reads them."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from kbuild import dkms, roots, versions
from kbuild.errors import BuildError
from kbuild.model import Root
from tests.unit import fake_kernel
from tests.unit.fake_kernel import EPOCH
from tests.unit.test_deb import FakeBuilder

PROJECT = Path(__file__).parents[2]
TARGET = "6.1.0-56-cloud-amd64"
OPTIONS = "CONFIG_MODULES=y\nCONFIG_PROC_FS=y\nCONFIG_PID_NS=y\n"

# DKMS's read_conf() shadows the kernel that it is called for; safe_source() sources the
# configuration in a subshell one function further down.
READER = """
eval "$SAYS"
kernelver=$2
shadow=$3
read_conf() {
    local kernelver=$1
    local kernel_source_dir=$TREE
    safe_source
}
safe_source() {
    (
        . "$CONF"
        echo "kernel=$BUILD_EXCLUSIVE_KERNEL"
        echo "auto=$AUTOINSTALL"
        echo "make=${MAKE[0]}"
        echo "clean=$CLEAN"
    )
}
read_conf "$shadow"
"""
# How each DKMS says what it is about to do: 3.0 of Debian 12 and 3.2 of 13 take one action; 2.8
# of Debian 11 collects those that it was given, with a blank before each, and does them in turn.
SAYS = {"3": "action=$1", "2.8": 'action=" add $1" action_to_run=$1'}


@dataclass(frozen=True)
class Answer:
    values: dict[str, str]
    complaint: str
    tried: list[str]  # the arguments that make was called with

    @property
    def skipped(self) -> bool:
        return bool(self.values["kernel"]) and not self.values["auto"]


@dataclass
class Machine:
    top: Path
    dkms: str = "3"

    def __post_init__(self) -> None:
        source = self.top / "source"
        source.mkdir()
        shutil.copy(PROJECT / "dkms/dkms.conf", source)
        gate = (PROJECT / "dkms/gate.bash").read_text()
        # The places that a test cannot write to.
        gate = gate.replace("/var/log/", f"{self.top}/log/")
        gate = gate.replace("/lib/modules/", f"{self.top}/modules/")
        fake_kernel.write(source / "gate.bash", gate)
        fake_kernel.write(source / "cplayground.c", "source\n")
        (self.top / "log").mkdir()
        (self.top / "tmp").mkdir()
        self.tree = self.top / "modules" / TARGET / "build"
        fake_kernel.write(self.tree / "include/x.h")
        fake_kernel.write(self.tree / ".config", OPTIONS)
        self.tool("make", f'echo "$@" >> {self.top}/tried\n: > "$2/cplayground.ko"')
        self.tool("modinfo", f"echo '{TARGET} SMP preempt mod_unload modversions '")

    def tool(self, name: str, body: str) -> None:
        fake_kernel.write(self.top / "bin" / name, f"#!/bin/sh\n{body}\n", mode=0o755)

    def read(self, action: str, *, kernel: str = TARGET, shadow: str | None = None) -> Answer:
        tried = self.top / "tried"
        tried.unlink(missing_ok=True)
        done = subprocess.run(
            ["bash", "-c", READER, "dkms", action, kernel, kernel if shadow is None else shadow],
            env={
                "PATH": f"{self.top}/bin:{os.environ['PATH']}",
                "TMPDIR": str(self.top / "tmp"),
                "CONF": str(self.top / "source/dkms.conf"),
                "TREE": str(self.tree),
                "SAYS": SAYS[self.dkms],
            },
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        values = dict(line.split("=", 1) for line in done.stdout.splitlines())
        assert not list((self.top / "tmp").iterdir()), "the trial build was left behind"
        return Answer(values, done.stderr, tried.read_text().splitlines() if tried.exists() else [])


@pytest.fixture(params=SAYS)
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Machine:
    return Machine(tmp_path, request.param)


def test_good_kernel_is_built_for(machine: Machine) -> None:
    answer = machine.read("build")
    assert not answer.skipped
    assert answer.values["auto"] == "yes"
    assert not answer.complaint
    assert answer.values["make"] == f"make KDIR={machine.tree} KERNELRELEASE={TARGET}"
    assert answer.values["clean"].endswith("clean")
    # Tried where it does not touch DKMS's own directory, for the target.
    (tried,) = answer.tried
    assert f"KDIR={machine.tree} KERNELRELEASE={TARGET}" in tried
    assert str(machine.top / "source") not in tried
    assert not list((machine.top / "log").iterdir())


@pytest.mark.parametrize("action", ["status", "add", "remove", "uninstall", ""])
def test_nothing_is_tried_unless_dkms_is_to_build(machine: Machine, action: str) -> None:
    machine.tool("make", "exit 2")
    answer = machine.read(action)
    assert not answer.skipped
    assert not answer.tried


@pytest.mark.parametrize("option", ["CONFIG_MODULES", "CONFIG_PROC_FS", "CONFIG_PID_NS"])
def test_kernel_without_an_option_is_skipped(machine: Machine, option: str) -> None:
    (machine.tree / ".config").write_text(OPTIONS.replace(f"{option}=y", f"# {option} is not set"))
    answer = machine.read("build")
    assert answer.skipped
    assert f"without {option}" in answer.complaint
    assert not answer.tried


def test_kernel_whose_build_fails_is_skipped_and_says_why(machine: Machine) -> None:
    machine.tool("make", "echo fine\necho 'x.c:1: error: no such thing'\nexit 2")
    answer = machine.read("install")
    assert answer.skipped
    assert "error: no such thing" in answer.complaint
    (log,) = (machine.top / "log").iterdir()
    assert log.name == f"cplayground-dkms-{TARGET}.log"
    assert str(log) in answer.complaint
    assert "fine" in log.read_text()


def test_the_modules_own_verdict_comes_first(machine: Machine) -> None:
    machine.tool("make", "echo 'error: x'\necho 'cplayground: this kernel is too old'\nexit 2")
    answer = machine.read("build")
    assert f"cplayground: skipped for {TARGET}: this kernel is too old (" in answer.complaint


def test_module_for_another_kernel_is_skipped(machine: Machine) -> None:
    machine.tool("modinfo", "echo '6.1.0-9-running SMP preempt '")
    answer = machine.read("build")
    assert answer.skipped
    assert "its headers build modules for 6.1.0-9-running" in answer.complaint


def test_kernel_without_headers_is_left_to_dkms(machine: Machine) -> None:
    shutil.rmtree(machine.tree)
    answer = machine.read("build")
    assert not answer.skipped
    assert not answer.complaint


@pytest.mark.parametrize("shadow", ["", "6.1.0-1-earlier"])
def test_autoinstall_judges_the_kernel_that_is_installed(machine: Machine, shadow: str) -> None:
    """DKMS 3.0.10 reads the file for an earlier kernel, or for none, when it chooses."""
    machine.tool("make", f'echo "$@" >> {machine.top}/tried\nexit 2')
    answer = machine.read("autoinstall", shadow=shadow)
    assert answer.skipped
    assert f"KDIR={machine.tree} KERNELRELEASE={TARGET}" in answer.tried[0]


def test_package_holds_the_sources_and_nothing_that_was_built(tmp_path: Path) -> None:
    kmod = tmp_path / "kmod"
    for name in (
        "Kbuild",
        "VERSION",
        "cplayground.c",
        "compat.h",
        "probe.sh",
        "probes/sanity.c",
        "cplayground.mod.c",
        "cplayground.ko",
        "cplayground.o",
        "features.h",
        ".cplayground.o.cmd",
        ".tmp/x.c",
    ):
        fake_kernel.write(kmod / name)
    assert [path.as_posix() for path in dkms.module_sources(tmp_path)] == [
        "Kbuild",
        "VERSION",
        "compat.h",
        "cplayground.c",
        "probe.sh",
        "probes/sanity.c",
    ]


def test_package_without_sources_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="not there"):
        dkms.module_sources(tmp_path)


@pytest.mark.parametrize(
    ("suite", "mark", "distribution"),
    [
        ("bullseye", "deb11", "bullseye"),
        ("bookworm", "deb12", "bookworm"),
        ("trixie", "deb13", "trixie"),
        ("trixie-backports", "deb13bpo", "trixie"),
    ],
)
def test_build_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suite: str, mark: str, distribution: str
) -> None:
    builder = FakeBuilder()
    monkeypatch.setattr(roots, "enter", builder)
    (package,) = dkms.build_package(
        fake_kernel.settings(tmp_path),
        Root(suite, Path("/nowhere"), "digest"),
        epoch=EPOCH,
        log=tmp_path / "log",
        out=tmp_path / "debs",
    )
    version = versions.module_version(PROJECT)
    assert (package.name, package.version) == ("cplayground-dkms", f"{version}+{mark}")
    assert f"cplayground-dkms ({version}+{mark}) {distribution};" in builder.debian["changelog"]
    assert f"dh_dkms -V {version}" in builder.debian["rules"]
    assert builder.debian["cplayground-dkms.dkms"] == "stage/dkms.conf\n"


def test_version_stands_in_one_place() -> None:
    assert 'PACKAGE_VERSION="#MODULE_VERSION#"' in (PROJECT / "dkms/dkms.conf").read_text()
    version = versions.module_version(PROJECT)
    for path in (*(PROJECT / "dkms").iterdir(), *(PROJECT / "debian").rglob("*")):
        if path.is_file():
            assert version not in path.read_text(), path


@pytest.mark.parametrize("text", ["", "1.0 beta", "v1"])
def test_module_version_has_to_be_one(tmp_path: Path, text: str) -> None:
    fake_kernel.write(tmp_path / "kmod/VERSION", text)
    with pytest.raises(BuildError, match="no version"):
        versions.module_version(tmp_path)
