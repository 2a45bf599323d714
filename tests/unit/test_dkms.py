"""dkms.conf and its gate, read by bash the way DKMS reads them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from kbuild.core import sandbox
from kbuild.core.errors import BuildError
from kbuild.core.model import Package, Root
from kbuild.ship import dkms, versions
from tests.unit import fake_kernel
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

    @property
    def unjudged(self) -> bool:
        """Return whether DKMS goes on to build, and so to fail if it cannot."""
        return self.values["auto"] == "yes" and not self.values["kernel"]


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
        gate = gate.replace("/var/cache/", f"{self.top}/cache/")
        gate = gate.replace("/lib/modules/", f"{self.top}/modules/")
        fake_kernel.write(source / "gate.bash", gate)
        fake_kernel.write(source / "cplayground.c", "source\n")
        (self.top / "log").mkdir()
        self.tree = self.top / "modules" / TARGET / "build"
        fake_kernel.write(self.tree / "include/x.h")
        fake_kernel.write(self.tree / ".config", OPTIONS)
        fake_kernel.write(self.tree / "Module.symvers", "0x1\tfput\tvmlinux\tEXPORT_SYMBOL\t\n")
        self.tool("make", f'echo "$@" >> {self.top}/tried\n: > "$2/cplayground.ko"')
        self.tool("modinfo", f"echo '{TARGET} SMP preempt mod_unload modversions '")

    def tool(self, name: str, body: str) -> None:
        fake_kernel.write(self.top / "bin" / name, f"#!/bin/sh\n{body}\n", mode=0o755)

    def make_fails(self, said: str, status: int = 2) -> None:
        words = fake_kernel.write(self.top / "words", said)
        self.tool("make", f"cat {words}\nexit {status}")

    @property
    def trial(self) -> Path:
        return self.top / "cache/cplayground-dkms/trial"

    def run(
        self, *arguments: str, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", READER, "dkms", *arguments],
            env={
                "PATH": f"{self.top}/bin:{os.environ['PATH']}",
                "CONF": str(self.top / "source/dkms.conf"),
                "TREE": str(self.tree),
                "SAYS": SAYS[self.dkms],
                **(env or {}),
            },
            capture_output=True,
            text=True,
            start_new_session=True,
        )

    def read(
        self,
        action: str,
        *,
        kernel: str = TARGET,
        shadow: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Answer:
        tried = self.top / "tried"
        tried.unlink(missing_ok=True)
        done = self.run(action, kernel, kernel if shadow is None else shadow, env=env)
        assert done.returncode == 0, done.stderr
        values = dict(line.split("=", 1) for line in done.stdout.splitlines())
        assert not self.trial.exists(), "the trial build was left behind"
        return Answer(values, done.stderr, tried.read_text().splitlines() if tried.exists() else [])


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


each_dkms = pytest.mark.parametrize("version", SAYS)


@each_dkms
def test_good_kernel_is_built_for(machine: Machine, version: str) -> None:
    machine.dkms = version
    answer = machine.read("build")
    assert not answer.skipped
    assert answer.values["auto"] == "yes"
    assert not answer.complaint
    goals = f"make KDIR={machine.tree} KERNELRELEASE={TARGET}"
    assert answer.values["make"].endswith(f" {goals}")
    assert answer.values["clean"].endswith(f" {goals} clean")
    # Tried where it does not touch DKMS's own directory, for the target.
    (tried,) = answer.tried
    assert f"KDIR={machine.tree} KERNELRELEASE={TARGET}" in tried
    assert str(machine.top / "source") not in tried
    assert not list((machine.top / "log").iterdir())


@each_dkms
@pytest.mark.parametrize("action", ["status", "add", "remove", "uninstall", ""])
def test_nothing_is_tried_unless_dkms_is_to_build(
    machine: Machine, action: str, version: str
) -> None:
    machine.dkms = version
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


# From builds of the module against kernels that it is not for.
COMPILER = "/mnt/trial/cplayground.c:412:9: error: implicit declaration of function 'files_x'"
MODPOST = 'ERROR: modpost: "find_ge_pid" [/mnt/trial/cplayground.ko] undefined!'
PROBE = (
    "probes/required.c:23:19: error: 'struct proc_ops' has no member named 'proc_read_iter'\n"
    "cplayground: error: this kernel lacks an interface that the module uses, shown above"
)
ENTERING = "make[1]: Entering directory '/usr/src/linux-headers-x'"
MAKE = "make[2]: *** [scripts/Makefile.build:250: /mnt/trial/cplayground.o] Error 1"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (f"  CC [M]  cplayground.o\n{COMPILER}\n{MAKE}", COMPILER),
        (f"  MODPOST\n{MODPOST}\n{MAKE}", MODPOST),
        (f"{PROBE}\n{MAKE}", "this kernel lacks an interface that the module uses"),
    ],
    ids=["compiler", "modpost", "probe"],
)
def test_verdict_on_a_kernel_skips_it_and_says_why(
    machine: Machine, said: str, reason: str
) -> None:
    machine.make_fails(said)
    answer = machine.read("install")
    assert answer.skipped
    assert f"cplayground: skipped for {TARGET}: {reason}" in answer.complaint
    (log,) = (machine.top / "log").iterdir()
    assert log.name == f"cplayground-dkms-{TARGET}.log"
    assert f"{log})" in answer.complaint
    assert log.read_text() == f"{said}\n"


@pytest.mark.parametrize(
    "fault",
    [
        # The compiler, the assembler and make on a full disk.
        "cplayground.c:1187:1: fatal error: error writing to /t/ccx.s: No space left on device",
        "/t/ccx.s: Fatal error: can't write 123 bytes to section .text of cplayground.o",
        "make: write error: stdout: No space left on device",
        # Out of memory.
        "gcc-12: fatal error: Killed signal terminated program cc1",
        "cplayground.c:77:1: internal compiler error: Segmentation fault",
        "virtual memory exhausted: Cannot allocate memory",
        # No compiler, another one, or another machine's.
        "/bin/sh: 1: gcc-12: not found",
        "gcc-11: error: unrecognized command-line option '-ftrivial-auto-var-init=zero'",
        "/bin/sh: 1: riscv64-linux-gnu-gcc: not found",
        # Headers that are damaged.
        "ERROR: Kernel configuration is invalid.",
        "include/linux/sched.h:1:2: error: #error\n"
        "cplayground: error: the kernel headers are not usable: nothing compiles against them",
        "cplayground: error: the compiler failed on probes/required.c and names no fault in it",
        "",
    ],
)
def test_fault_of_the_machine_is_no_verdict(machine: Machine, fault: str) -> None:
    """DKMS builds, and its failure is what apt reports; the line says what was seen."""
    machine.make_fails(f"{ENTERING}\n{fault}\n{MAKE}\n")
    answer = machine.read("build")
    assert answer.unjudged
    assert (
        f"cplayground: no verdict on {TARGET}: {(fault or ENTERING).splitlines()[0]}\n"
        in answer.complaint
    )
    assert not list((machine.top / "log").iterdir())


def test_symbols_are_not_missed_without_their_list(machine: Machine) -> None:
    (machine.tree / "Module.symvers").write_text("")
    machine.make_fails(MODPOST)
    assert machine.read("build").unjudged


@pytest.mark.parametrize("program", ["make", "modinfo", "flock", "cp"])
def test_program_that_is_missing_is_no_verdict(machine: Machine, program: str) -> None:
    machine.tool(program, "exit 127")
    answer = machine.read("build")
    assert answer.unjudged
    assert f"no verdict on {TARGET}: " in answer.complaint


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("env: 'make': No such file or directory\n", "env: 'make': No such file or directory"),
        ("", "make failed without a message"),
    ],
)
def test_last_words_are_the_reason_where_no_other_is_given(
    machine: Machine, said: str, reason: str
) -> None:
    machine.make_fails(said, 127)
    assert f"no verdict on {TARGET}: {reason}\n" in machine.read("build").complaint


@pytest.mark.parametrize("content", [None, ""])
def test_headers_without_a_configuration_are_no_verdict(
    machine: Machine, content: str | None
) -> None:
    config = machine.tree / ".config"
    config.unlink()
    if content is not None:
        config.write_text(content)
        fake_kernel.write(machine.tree / "include/config/auto.conf", content)
    answer = machine.read("build")
    assert answer.unjudged
    assert "its headers have no configuration" in answer.complaint


def test_cache_that_cannot_be_written_is_no_verdict(machine: Machine) -> None:
    fake_kernel.write(machine.top / "cache", "a file where a directory should be")
    answer = machine.read("build")
    assert answer.unjudged
    assert "cplayground-dkms cannot be written to" in answer.complaint


def test_log_that_cannot_be_written_changes_no_verdict(machine: Machine) -> None:
    (machine.top / "log").rmdir()
    assert machine.read("build").unjudged
    machine.make_fails(MODPOST)
    answer = machine.read("build")
    assert answer.skipped
    assert f"skipped for {TARGET}: {MODPOST}\n" in answer.complaint


HOSTILE = {
    "ARCH": "riscv",
    "CROSS_COMPILE": "riscv64-linux-gnu-",
    "KBUILD_OUTPUT": "/nowhere",
    "LANGUAGE": "de",
    "LLVM": "1",
    "MAKEFLAGS": "n",
    "KCFLAGS": "-Dx",
}


def test_environment_of_the_caller_reaches_no_make(machine: Machine) -> None:
    """Neither the trial's nor that of DKMS's own build."""
    machine.tool("make", f'env > {machine.top}/seen\n: > "$2/cplayground.ko"')
    answer = machine.read("build", env=HOSTILE)
    assert answer.unjudged and not answer.complaint
    seen = [(machine.top / "seen").read_text()]
    for command in (answer.values["make"], answer.values["clean"]):
        machine.tool("make", f"env > {machine.top}/seen")
        subprocess.run(["bash", "-c", command], env={"PATH": os.environ["PATH"], **HOSTILE})
        seen.append((machine.top / "seen").read_text())
    for text in seen:
        names = {line.partition("=")[0] for line in text.splitlines()}
        assert not names & set(HOSTILE)
        assert "LC_ALL=C" in text.splitlines()


def test_trial_that_was_killed_is_cleaned_by_the_next(machine: Machine) -> None:
    machine.tool("make", ': > "$2/left.o"\nkill -9 0')
    killed = machine.run("build", TARGET, TARGET)
    assert killed.returncode == -signal.SIGKILL
    assert (machine.trial / "left.o").exists()
    machine.tool("make", f'ls "$2" > {machine.top}/there\n: > "$2/cplayground.ko"')
    assert not machine.read("build").complaint
    assert "left.o" not in (machine.top / "there").read_text().split()
    assert [path.name for path in machine.trial.parent.iterdir()] == ["lock"]


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


@each_dkms
@pytest.mark.parametrize("shadow", ["", "6.1.0-1-earlier"])
def test_autoinstall_judges_the_kernel_that_is_installed(
    machine: Machine, shadow: str, version: str
) -> None:
    """DKMS 3.0.10 reads the file for an earlier kernel, or for none, when it chooses."""
    machine.dkms = version
    machine.tool("make", f'echo "$@" >> {machine.top}/tried\necho "{COMPILER}"\nexit 2')
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
    with pytest.raises(BuildError, match="is missing"):
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
    made, builder = package(tmp_path, monkeypatch, suite)
    version = versions.module_version(PROJECT)
    assert (made.name, made.version) == ("cplayground-dkms", f"{version}+{mark}")
    assert f"cplayground-dkms ({version}+{mark}) {distribution};" in builder.debian["changelog"]
    assert f"dh_dkms -V {version}" in builder.debian["rules"]
    assert builder.debian["cplayground-dkms.dkms"] == "stage/dkms.conf\n"
    assert "dkms/usr/lib/modules-load.d/cplayground-dkms.conf" in builder.files
    assert f"dkms/usr/src/cplayground-{version}/cplayground.c" in builder.files


@dataclass
class Administered:
    """A machine with cplayground-dkms, where a package with a prebuilt module comes or goes."""

    top: Path
    script: str

    def kernel(self, release: str, *, lacks: str = "", prebuilt: bool = False) -> None:
        modules = self.top / "modules" / release
        for name in {"modules.order", "build/include/x.h"} - {lacks}:
            fake_kernel.write(modules / name)
        if prebuilt:
            fake_kernel.write(modules / "extra/cplayground.ko")

    def triggered(self, statuses: Mapping[str, int], action: str = "triggered") -> tuple[int, str]:
        """Run the postinst with a dkms that ends with ``statuses`` by release."""
        cases = "".join(f"{release}) exit {status};;" for release, status in statuses.items())
        fake_kernel.write(
            self.top / "bin/dkms",
            f'#!/bin/sh\nif [ "$1" = status ]; then cat {self.top}/built 2>/dev/null; exit 0; fi\n'
            f'echo "$@" >> {self.top}/called\nfor release; do :; done\n'
            f'case "$release" in {cases} esac\n',
            mode=0o755,
        )
        done = subprocess.run(
            ["sh", "-c", self.script, "postinst", action, "cplayground-modules"],
            env={"PATH": f"{self.top}/bin:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stderr

    @property
    def asked(self) -> list[str]:
        """Return what DKMS was asked to do, one line each."""
        called = self.top / "called"
        return called.read_text().splitlines() if called.exists() else []


@pytest.fixture
def administered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Administered:
    debian = package(tmp_path, monkeypatch, "bookworm")[1].debian
    script = debian["cplayground-dkms.postinst"].replace("/lib/modules/", f"{tmp_path}/modules/")
    assert "interest-noawait cplayground-modules" in debian["cplayground-dkms.triggers"]
    return Administered(tmp_path, script)


def test_dkms_takes_over_where_the_prebuilt_module_went(administered: Administered) -> None:
    administered.kernel("6.1-lost")
    administered.kernel("6.1-prebuilt", prebuilt=True)
    administered.kernel("6.1-without-headers", lacks="build/include/x.h")
    administered.kernel("6.1-that-was-removed", lacks="modules.order")
    assert administered.triggered({"6.1-lost": 0}) == (0, "")
    version = versions.module_version(PROJECT)
    assert administered.asked == [f"install -m cplayground -v {version} -k 6.1-lost"]


def test_dkms_does_not_build_again_what_it_built(administered: Administered) -> None:
    administered.kernel("6.1-built")
    fake_kernel.write(administered.top / "built", "cplayground/1, 6.1-built, x86_64: installed\n")
    assert administered.triggered({}) == (0, "")
    assert not administered.asked


@pytest.mark.parametrize("status", [9, 77])
def test_a_kernel_that_is_skipped_is_no_failure(administered: Administered, status: int) -> None:
    administered.kernel("6.1-old")
    assert administered.triggered({"6.1-old": status}) == (0, "")


def test_a_build_that_fails_says_what_to_run_and_keeps_no_other_kernel_from_its_module(
    administered: Administered,
) -> None:
    administered.kernel("6.1-a")
    administered.kernel("6.1-b")
    status, said = administered.triggered({"6.1-a": 10})
    assert status != 0
    assert f"dkms install -m cplayground -v {versions.module_version(PROJECT)} -k 6.1-a\n" in said
    assert "-k 6.1-b" not in said
    assert [line.rpartition(" ")[2] for line in administered.asked] == ["6.1-a", "6.1-b"]


def test_nothing_but_the_trigger_takes_over(administered: Administered) -> None:
    administered.kernel("6.1-lost")
    assert administered.triggered({}, "configure") == (0, "")
    assert not administered.asked


def package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suite: str
) -> tuple[Package, FakeBuilder]:
    """Build cplayground-dkms; return it with the stand-in for dpkg-buildpackage."""
    builder = FakeBuilder()
    monkeypatch.setattr(sandbox, "enter", builder)
    (made,) = dkms.build_package(
        fake_kernel.settings(tmp_path),
        Root(suite, Path("/nowhere"), "digest"),
        log=tmp_path / "log",
        out=tmp_path / "debs",
    )
    return made, builder


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
