"""A module that does not fit its kernel is refused, also after a build without errors."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from kbuild.core import sandbox
from kbuild.core.errors import BuildError
from kbuild.core.model import Root, Settings
from kbuild.core.run import Completed, run
from kbuild.core.sandbox import Bind
from kbuild.kernel import module
from kbuild.kernel.module import ModuleFacts
from kbuild.kernel.symvers import ExportedSymbol
from tests.unit import toy_elf

RELEASE = "6.1.0-56-cplayground-cloud-amd64"
INFO = {"vermagic": f"{RELEASE} SMP preempt mod_unload modversions ", "backends": "export stock"}
CRCS = {"module_layout": 0x11111111, "get_files_struct": 0xDDF3D0C7, "fput": 0x22222222}
SYMVERS = "".join(f"{crc:#010x}\t{name}\tvmlinux\tEXPORT_SYMBOL\t\n" for name, crc in CRCS.items())
EXPORTED = {
    name: ExportedSymbol(crc, name, "vmlinux", "EXPORT_SYMBOL", "") for name, crc in CRCS.items()
}
PROJECT = Path(__file__).parents[2]


def make_module(
    info: Mapping[str, str] = INFO,
    undefined: Sequence[str] = ("get_files_struct", "fput"),
    crcs: Mapping[str, int] | None = CRCS,
) -> bytes:
    return toy_elf.module(info, undefined, crcs)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    kmod = tmp_path / "project" / "kmod"
    kmod.mkdir(parents=True)
    (kmod / "cplayground.c").write_text("int x;\n")
    (kmod / "cplayground.ko").write_text("left over")
    (kmod / "features.h").write_text("left over")
    return Settings(
        project=tmp_path / "project", build=tmp_path / "build", cache=tmp_path / "cache"
    )


@pytest.fixture
def headers(tmp_path: Path) -> Path:
    tree = tmp_path / "headers"
    tree.mkdir()
    (tree / "Module.symvers").write_text(SYMVERS)
    return tree


class FakeRoot:
    """Stands in for sandbox.enter: make leaves the given module, checkpatch says its piece."""

    def __init__(self, made: bytes, said: str = "", status: int = 0, checkpatch: str = "") -> None:
        self.made = made
        self.said = said
        self.status = status
        self.checkpatch = checkpatch
        self.commands: list[list[str]] = []
        self.found: list[str] = []  # what lay in the module's directory before make

    def __call__(
        self,
        root: Root,
        argv: Sequence[str],
        *,
        timeout_s: float,
        binds: Sequence[Bind],
        cwd: str = "/",
        log: Path,
        check: bool,
    ) -> Completed:
        self.commands.append(list(argv))
        if argv[0] != "make":
            return Completed(tuple(argv), 1 if self.checkpatch else 0, self.checkpatch, "", 0.0)
        (place,) = (bind.source for bind in binds if bind.target == "/mnt/module")
        self.found = sorted(path.name for path in place.iterdir())
        (place / "cplayground.ko").write_bytes(self.made)
        return Completed(tuple(argv), self.status, self.said, "", 0.0)


def enter(monkeypatch: pytest.MonkeyPatch, fake: FakeRoot) -> FakeRoot:
    monkeypatch.setattr(sandbox, "enter", fake)
    return fake


def build(settings: Settings, headers: Path) -> module.BuiltModule:
    return module.build(
        settings,
        Root("bookworm", Path("/nowhere"), "digest"),
        headers=headers,
        release=RELEASE,
        out=settings.build / "module",
        log=settings.build / "module.log",
    )


def test_builds_a_copy_and_reads_the_result(
    settings: Settings, headers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = enter(monkeypatch, FakeRoot(make_module()))
    built = build(settings, headers)
    assert built.path == settings.build / "module" / "cplayground.ko"
    assert built.path.read_bytes() == make_module()
    assert built.backends == ("export", "stock")
    assert built.release == RELEASE
    assert built.vermagic == INFO["vermagic"]
    assert fake.found == ["cplayground.c"]
    (command,) = fake.commands
    assert command[:3] == ["make", "-C", "/mnt/headers"]
    assert "M=/mnt/module" in command
    assert (settings.project / "kmod" / "cplayground.ko").read_text() == "left over"


def test_a_changed_copy_is_built_with_makes_variables(
    settings: Settings, headers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = enter(monkeypatch, FakeRoot(make_module()))
    mutant = tmp_path / "mutant"
    mutant.mkdir()
    (mutant / "mutated.c").touch()
    module.build(
        settings,
        Root("bookworm", Path("/nowhere"), "digest"),
        headers=headers,
        release=RELEASE,
        out=tmp_path / "out",
        log=tmp_path / "log",
        source=mutant,
        variables={"CPG_LAB": "1"},
    )
    assert fake.found == ["mutated.c"]
    (command,) = fake.commands
    assert command[-2:] == ["CPG_LAB=1", "modules"]


def test_a_failed_build_shows_the_first_error_and_keeps_the_last_result(
    settings: Settings, headers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(monkeypatch, FakeRoot(make_module()))
    build(settings, headers)
    said = (
        "  CC [M]  /mnt/module/cplayground.o\n"
        "/mnt/module/cplayground.c:7:1: error: unknown type name 'foo'\n"
        "make[1]: *** [cplayground.o] Error 1\n"
    )
    enter(monkeypatch, FakeRoot(b"half", said, status=2))
    with pytest.raises(BuildError, match="does not build") as caught:
        build(settings, headers)
    assert "kmod/cplayground.c:7:1: error: unknown type name" in str(caught.value)
    assert (settings.build / "module" / "cplayground.ko").read_bytes() == make_module()


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (make_module({**INFO, "vermagic": "6.1.0-56-amd64 SMP "}), "for another kernel"),
        (make_module({"backends": "stock"}), "for another kernel"),
        (make_module({"vermagic": INFO["vermagic"]}), "backends"),
        (make_module(undefined=["find_ge_pid"]), "does not export"),
        (make_module(crcs={**CRCS, "fput": 0x33333333}), "symbol versions"),
        (make_module(crcs={"fput": 0x22222222}), "get_files_struct: none"),
        (make_module(crcs={**CRCS, "module_layout": 1}), "module_layout: 0x00000001"),
        (make_module(crcs=None), "no symbol versions, but 6.1.0"),
        (b"\x7fELF and then nothing", "cannot read the module"),
        (b"", "cannot read the module"),
    ],
)
def test_a_module_that_does_not_fit_is_refused(
    settings: Settings,
    headers: Path,
    monkeypatch: pytest.MonkeyPatch,
    made: bytes,
    message: str,
) -> None:
    enter(monkeypatch, FakeRoot(made))
    with pytest.raises(BuildError) as caught:
        build(settings, headers)
    assert message in str(caught.value)
    assert not (settings.build / "module").exists()


def test_without_symbol_versions_names_are_enough() -> None:
    plain = {n: ExportedSymbol(None, n, "vmlinux", "EXPORT_SYMBOL", "") for n in CRCS}
    facts = ModuleFacts(INFO, frozenset({"fput"}), {})
    module.check(facts, release=RELEASE, exported=plain)
    with pytest.raises(BuildError, match="does not export"):
        module.check(ModuleFacts(INFO, frozenset({"d_path"}), {}), release=RELEASE, exported=plain)


def test_versions_of_another_shape_are_refused() -> None:
    with pytest.raises(BuildError, match="unknown form"):
        module.parse_versions(bytes(63))


def test_debian_headers_need_the_common_part(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="incomplete"):
        module.debian(tmp_path, "6.1.0-56-cloud-amd64")
    (tmp_path / "usr/src/linux-headers-6.1.0-56-common").mkdir(parents=True)
    headers = module.debian(tmp_path, "6.1.0-56-cloud-amd64")
    assert headers.source == "/mnt/headers/usr/src/linux-headers-6.1.0-56-common"
    assert headers.directory == "/mnt/headers/usr/src/linux-headers-6.1.0-56-cloud-amd64"


UNUSED = "warning: variable 'nid' set but not used [-Wunused-but-set-variable]"
CHECKED = "  CC [M]  /mnt/module/cplayground.o\n  CHECK   /mnt/module/cplayground.c\n"


@pytest.mark.parametrize(
    ("said", "checkpatch", "finding"),
    [
        (CHECKED, "", None),
        # As from Linux 7 on, where make works in the module's own directory.
        ("  CHECK   cplayground.c\n", "", None),
        (
            f"{CHECKED}/mnt/module/cplayground.c:9:5: warning: symbol 'x' was not declared.\n",
            "",
            "cplayground.c:9:5: warning: symbol 'x'",
        ),
        # W=1 warns of this in a header of 5.10 without NUMA; in ours it is a finding.
        (f"{CHECKED}./include/linux/mmzone.h:1136:6: {UNUSED}\n", "", None),
        (f"{CHECKED}cplayground.c:9:6: {UNUSED}\n", "", "cplayground.c:9:6: warning: variable"),
        (
            f"{CHECKED}/mnt/module/cplayground.c:9:6: {UNUSED}\n",
            "",
            "cplayground.c:9:6: warning: variable",
        ),
        (
            f"{CHECKED}./include/linux/mm.h:9:6: warning: 'x' is too small [-Wstringop-overflow]\n",
            "",
            "mm.h:9:6: warning: 'x' is too small",
        ),
        (CHECKED, "cplayground.c:9: CHECK: spaces\n", "cplayground.c:9: CHECK: spaces"),
        (CHECKED, "checkpatch is broken\n", "checkpatch is broken"),
    ],
)
def test_findings_of_the_linters_are_errors(
    settings: Settings,
    headers: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: str,
    checkpatch: str,
    finding: str | None,
) -> None:
    fake = enter(monkeypatch, FakeRoot(make_module(), said, checkpatch=checkpatch))
    if finding is None:
        lint(settings, headers)
    else:
        with pytest.raises(BuildError, match="have findings") as caught:
            lint(settings, headers)
        assert finding in str(caught.value)
    assert {"W=1", "C=2"} <= set(fake.commands[0])
    assert "--strict" in fake.commands[1]


@pytest.mark.parametrize(
    "said",
    [
        "  CC [M]  cplayground.o\nMakefile:1311: C=2 specified, but sparse is not available\n",
        "  CHECK   other.c\n",
    ],
)
def test_a_build_without_sparse_is_no_clean_one(
    settings: Settings, headers: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    """Linux 7 goes on without sparse, and says so in one line of its output."""
    enter(monkeypatch, FakeRoot(make_module(), said))
    with pytest.raises(BuildError, match=r"sparse did not read") as caught:
        lint(settings, headers)
    assert caught.value.found == "\n".join(x for x in said.splitlines() if "sparse" in x)


def lint(settings: Settings, headers: Path) -> None:
    module.lint(
        settings,
        Root("bookworm", Path("/nowhere"), "digest"),
        headers=headers,
        tree=headers,
        scratch=settings.build / "lint",
        log=settings.build / "lint.log",
    )


BOTH = "0x1\tget_files_struct\tvmlinux\tE\t\n0x2\tput_files_struct\tvmlinux\tE\t\n"


@pytest.mark.parametrize(
    ("symvers", "backend"),
    [
        (BOTH, True),
        (BOTH.splitlines()[0], False),
        (BOTH.replace("get_files_struct", "x_get_files_struct"), False),
        ("", False),
        (None, False),
    ],
)
def test_the_export_backend_needs_both_symbols(
    tmp_path: Path, symvers: str | None, backend: bool
) -> None:
    status, header, _ = probe(tmp_path, "exit 0", symvers)
    assert status == 0
    assert ("CPG_HAVE_FILES_STRUCT 1" in header) == backend
    assert '#define CPG_VERSION "1.2.3"' in header


@pytest.mark.parametrize(
    ("failing", "message"),
    [
        ("sanity", "the kernel headers are not usable"),
        ("required", "this kernel lacks an interface that the module uses"),
        ("files_struct", "this kernel exports get_files_struct, its headers lack it"),
    ],
)
def test_a_probe_that_fails_is_not_taken_for_a_missing_feature(
    tmp_path: Path, failing: str, message: str
) -> None:
    error = f"probes/{failing}.c:9:1: error: no such thing"
    compiler = f'case "$*" in *probes/{failing}.c*) echo "{error}"; exit 1;; esac'
    status, header, said = probe(tmp_path, compiler, BOTH)
    assert status != 0
    assert header == ""
    assert f"cplayground: error: {message}" in said
    assert error in said


MISSING = "probes/x.c:3:10: fatal error: linux/siphash.h: No such file or directory"


@pytest.mark.parametrize("failing", ["required", "files_struct"])
@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ("gcc: fatal error: Killed signal terminated program cc1", False),
        ("probes/x.c:9:1: internal compiler error: Segmentation fault", False),
        ("probes/x.c:9:1: fatal error: error writing to /tmp/ccx.s: No space left", False),
        ("", False),
        (MISSING, True),
    ],
)
def test_a_compiler_that_breaks_down_gives_no_verdict(
    tmp_path: Path, failing: str, said: str, verdict: bool
) -> None:
    """The gate of DKMS skips a kernel for what begins "cplayground: error: this kernel"."""
    compiler = f'case "$*" in *probes/{failing}.c*) echo "{said}"; exit 1;; esac'
    status, header, words = probe(tmp_path, compiler, BOTH)
    assert status != 0 and header == ""
    assert said in words
    assert ("cplayground: error: this kernel " in words) == verdict
    assert (f"error: the compiler failed on probes/{failing}.c" in words) != verdict


def test_a_full_disk_is_not_taken_for_a_missing_feature(tmp_path: Path) -> None:
    (tmp_path / "features.log").symlink_to("/dev/full")
    status, header, said = probe(tmp_path, "echo warning", BOTH)
    assert status == 0, said
    assert "CPG_HAVE_FILES_STRUCT 1" in header


def probe(tmp_path: Path, compiler: str, symvers: str | None) -> tuple[int, str, str]:
    """Run kmod/probe.sh with a stand-in for the compiler: its status, header and messages."""
    kmod = tmp_path / "kmod"
    shutil.copytree(PROJECT / "kmod", kmod)
    fake = tmp_path / "cc"
    fake.write_text(f"#!/bin/sh\n{compiler}\n")
    fake.chmod(0o755)
    listing = tmp_path / "Module.symvers"
    if symvers is not None:
        listing.write_text(symvers)
    header = tmp_path / "features.h"
    done = run(
        [
            *("sh", kmod / "probe.sh", header, "" if symvers is None else listing, "1.2.3"),
            *(fake, "-Iinclude"),
        ],
        timeout_s=20,
        check=False,
    )
    return done.returncode, header.read_text() if header.exists() else "", done.stderr
