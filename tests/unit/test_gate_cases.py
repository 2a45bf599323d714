"""The conclusions of the gate's cases from servers, without one."""

from __future__ import annotations

import errno
import json
import os
import re
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from kbuild import gating
from kbuild.archive import evidence, operations
from kbuild.archive.release import Release
from kbuild.archive.required import NEED_OLDER, NOTHING_OLDER, REQUIRED
from kbuild.core.errors import (
    BuildError,
    FullDiskError,
    InfrastructureError,
    KilledError,
    SigningError,
    UserError,
)
from kbuild.core.model import Package, Settings, Target
from kbuild.core.run import Completed, run
from kbuild.gate import (
    candidate,
    cases,
    installed,
    judging,
    listing,
    machine,
    report,
    steps,
)
from kbuild.gate.cases import CASES, Case
from kbuild.gate.machine import Boot
from kbuild.gate.report import FAILED, NOT_RUN, PASSED, BootSeen, CaseResult, Report
from kbuild.gate.round import (
    BUILT,
    PREBUILT,
    TOOLS,
    Round,
    Trial,
    _judge_module,
    around_the_error,
    names,
    tool_faults,
)
from kbuild.gate.server import Server
from kbuild.lab import oracle, procfile
from kbuild.ship import tool_package
from tests import grub
from tests.unit.test_versions import (
    BOOTED,
    BOOTED_SINCE_TRIXIE,
    NEW_GRUB,
    OLD_GRUB,
    grub_library,
)
from tests.unit.works import Works

PROJECT = Path(__file__).parents[2]
OLD, NEW = "6.1.0-57-cplayground-lab", "6.1.0-57-cplayground.2-lab"


def release(kernel: str, version: str, *, module: str = "") -> Release:
    made = tuple(
        Package(
            name,
            f"{module if 'modules' in name else ''}{version}",
            "amd64",
            Path(f"/pool/{name}_{version}_amd64.deb"),
            "ab" * 32,
        )
        for name in (
            f"linux-image-{kernel}",
            f"cplayground-modules-{kernel}",
            "linux-image-cplayground-lab",
            "linux-headers-cplayground-lab",
            "cplayground-modules-lab",
        )
    )
    return Release(Target("bookworm", "lab"), kernel, version, made)


OLDER, NEWER = release(OLD, "6.1-1+cplayground1"), release(NEW, "6.1-1+cplayground2")


def round_of(
    *, promoted: tuple[Release, ...] = (), run: object = None, end: object = None
) -> Round:
    view = SimpleNamespace(candidate=NEWER, promoted=promoted)
    return cast(Round, SimpleNamespace(view=view, candidate=NEWER, run=run, end=end))


# The tool.

SHOWN = PROJECT / "tests/conformance/basic.procfile"


def told(*words: str) -> bytes:
    """Return what the tool says about the file."""
    argv = [sys.executable, "-m", "cplayground", "--from", str(SHOWN), *words]
    return run(argv, timeout_s=60, cwd=PROJECT).stdout.encode()


def faults(document: bytes, table: bytes) -> list[str]:
    return [*tool_faults(procfile.parse(SHOWN.read_bytes()), document, table.decode())]


def test_the_tool_must_show_what_the_file_has() -> None:
    document, table = told("json"), told("ls")
    assert faults(document, table) == []
    differs = ["cplayground json differs from /proc/cplayground"]
    for one, other in ((b'"pid":7', b'"pid":8'), (b'"fd":3', b'"fd":4'), (b"true", b"false")):
        assert one in document
        assert faults(document.replace(one, other, 1), table) == differs
    # As if a filter had left out one process.
    assert faults(told("-p", "100", "json"), told("-p", "100", "ls")) == [
        *differs,
        "cplayground ls does not show the process 2345",
    ]


@pytest.mark.parametrize("document", [b"", b"{", b"[]", b'{"processes":[{}]}', b"\xff"])
def test_an_answer_of_the_tool_that_is_no_document_is_a_fault(document: bytes) -> None:
    (fault,) = faults(document, told("ls"))
    assert fault.startswith("cplayground json cannot be read")


class Booted:
    """Stands in for a booted server: notes the commands, and answers as it would."""

    def __init__(self, **said: bytes) -> None:
        self.ran: list[str] = []
        self.said = {
            "cat": SHOWN.read_bytes(),
            "modinfo": f"/lib/{BUILT}/cplayground.ko".encode(),
        } | said

    def run(self, command: machine.Command) -> SimpleNamespace:
        self.ran.append(" ".join(command.argv))
        said = self.said.get(command.argv[0].rpartition("/")[2], b"")
        return SimpleNamespace(status=0, text=said.decode(), stdout=said)


def test_the_tool_is_asked_while_containers_run_where_it_is_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The kernel's view is not at stake here.
    monkeypatch.setattr(oracle, "parse", lambda _: ())
    monkeypatch.setattr(oracle, "differences", lambda *_: [])
    assert tool_package.PACKAGE in names(NEWER).dkms
    assert tool_package.PACKAGE not in names(NEWER).prebuilt
    asked = ["cplayground json", "cplayground ls"]
    for place, expected in ((BUILT, asked), (PREBUILT, [])):
        booted = Booted(cplayground=b"")
        found = [*_judge_module(cast(machine.Running, booted), place)]
        begin, end = (booted.ran.index(f"{TOOLS}/hold {word}") for word in ("begin", "end"))
        assert [one for one in booted.ran[begin:end] if one.startswith("cplayground")] == expected
        assert any("cplayground json" in one for one in found) is bool(expected)


# Files of a tree.


def test_only_what_the_tools_write_may_differ(tmp_path: Path) -> None:
    for name in ("var/log/apt/history.log", "etc/keep", "etc/changed", "etc/gone", "etc/mode"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("before")
    (tmp_path / "link").symlink_to("etc/keep")
    before = listing.record(tmp_path)
    assert listing.differences(before, listing.record(tmp_path)) == []

    (tmp_path / "var/log/apt/history.log").write_text("after")
    (tmp_path / "etc/changed").write_text("after")
    (tmp_path / "etc/gone").unlink()
    (tmp_path / "etc/mode").chmod(0o600)
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to("etc/mode")
    (tmp_path / "lib/modules/6.1-cplayground").mkdir(parents=True)
    after = listing.record(tmp_path)
    assert listing.differences(before, after, allowed=[r"lib(/.*)?"]) == [
        "/etc/changed has another content",
        "/etc/gone is gone",
        "/etc/mode has another mode",
        "/link has another content",
    ]
    changing = [r"etc/(changed|gone|mode)"]
    assert "/etc/changed has another content" not in listing.differences(
        before, after, changing=changing
    )
    assert {"/etc/gone is gone", "/etc/mode has another mode"} <= {
        *listing.differences(before, after, changing=changing)
    }
    # An allowed expression must match the whole name.
    assert "/lib/modules/6.1-cplayground is left over" in listing.differences(
        before, after, allowed=[r"lib", r"modules/.*"]
    )


def test_a_time_is_no_difference(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("same")
    before = listing.record(tmp_path)
    os.utime(tmp_path / "file", (1, 1))
    assert listing.differences(before, listing.record(tmp_path)) == []


# The boot menu.

MENU = """
menuentry 'Debian' $menuentry_id_option 'gnulinux-simple-x' {
	linux	/boot/vmlinuz-6.1-new root=UUID=x ro
	initrd	/boot/initrd.img-6.1-new
}
submenu 'Advanced' $menuentry_id_option 'gnulinux-advanced-x' {
	menuentry 'old' $menuentry_id_option 'gnulinux-6.1-old-advanced-x' {
		linux	/boot/vmlinuz-6.1-old root=UUID=x ro
		initrd	/boot/initrd.img-6.1-old
	}
}
"""


def menu(tmp_path: Path, text: str, *files: str) -> Path:
    (tmp_path / "boot/grub").mkdir(parents=True)
    (tmp_path / "boot/grub/grub.cfg").write_text(text)
    for name in files:
        (tmp_path / "boot" / name).touch()
    return tmp_path


def test_a_menu_with_all_its_files_has_no_fault(tmp_path: Path) -> None:
    files = [f"{kind}-6.1-{age}" for kind in ("vmlinuz", "initrd.img") for age in ("old", "new")]
    assert installed.menu_faults(menu(tmp_path, MENU, *files)) == []


def test_a_kernel_without_its_initrd_is_a_fault(tmp_path: Path) -> None:
    text = MENU.replace("\tinitrd\t/boot/initrd.img-6.1-new\n", "")
    files = ["vmlinuz-6.1-old", "initrd.img-6.1-old", "vmlinuz-6.1-new"]
    assert installed.menu_faults(menu(tmp_path, text, *files)) == [
        "the boot menu starts 6.1-new without an initrd"
    ]


def test_a_missing_kernel_is_a_fault(tmp_path: Path) -> None:
    files = ["initrd.img-6.1-old", "vmlinuz-6.1-new", "initrd.img-6.1-new"]
    assert installed.menu_faults(menu(tmp_path, MENU, *files)) == [
        "the boot menu names /boot/vmlinuz-6.1-old, which is missing"
    ]


def test_a_menu_without_any_kernel_is_a_fault(tmp_path: Path) -> None:
    assert installed.menu_faults(menu(tmp_path, "set default=0\n")) == [
        "the boot menu starts no kernel"
    ]


def test_the_next_boot_is_an_entry_with_its_submenu(tmp_path: Path) -> None:
    ran: list[list[str]] = []
    tree = menu(tmp_path, MENU)
    made = cast(Server, SimpleNamespace(root=SimpleNamespace(path=tree)))
    steps.boot_next(round_of(run=lambda _, argv: ran.append(argv)), made, "6.1-old")
    assert ran == [["grub-reboot", "gnulinux-advanced-x>gnulinux-6.1-old-advanced-x"]]


@pytest.mark.parametrize("content", [True, False])
def test_a_second_boot_keeps_the_changes_of_the_first_and_needs_its_verdict(
    content: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keep(disk: Path, changes: Path) -> Path:
        changes.touch()
        return changes

    booted: list[tuple[str, str | None, Path]] = []

    def boot(
        *_: object, release: str, module: str | None, changes: Path, **other: object
    ) -> SimpleNamespace:
        assert changes.exists()
        booted.append((release, module, changes))
        return SimpleNamespace(release=release)

    monkeypatch.setattr(machine, "keep_changes", keep)
    base = SimpleNamespace(release="debian")
    made = cast(Round, SimpleNamespace(boot=boot, base=base, candidate=NEWER))
    seen = steps.boot_both(
        *(made, Trial("install"), tmp_path / "disk", "the server"),
        first=(),
        judge=lambda first: content and first.release == "debian",
    )
    changes = tmp_path / "disk.qcow2"
    assert not changes.exists()
    wanted = [("debian", None, changes), (NEWER.kernel, "extra", changes)]
    assert booted == wanted[: 1 + content]
    assert (seen.release if seen else None) == (NEWER.kernel if content else None)


# apt's choice of servers.


def simulated(answer: Callable[[str], list[str]]) -> Round:
    """A round in which apt would upgrade the packages that ``answer`` gives for a machine id."""

    def run(made: object, argv: list[str]) -> object:
        text = ""
        for machine_id in argv[4:]:
            text += f"id {machine_id}\n"
            text += "".join(f"Inst {name} [1] (2 x [amd64])\n" for name in answer(machine_id))
        return SimpleNamespace(stdout=text)

    return round_of(run=run)


WANTED = names(NEWER).prebuilt
SERVER = cast(Server, None)


def test_a_server_of_each_kind_is_found() -> None:
    trial = Trial("rollback")
    first = simulated(lambda machine_id: [*WANTED] if machine_id.startswith("c") else [])
    inside, outside = cases.phases(trial, first, SERVER, WANTED)
    assert inside is not None
    assert outside is not None
    assert inside.startswith("c")
    assert not outside.startswith("c")
    assert trial.reasons == []


def test_a_server_that_gets_the_kernel_without_its_module_is_a_fault() -> None:
    trial = Trial("rollback")
    half = simulated(lambda machine_id: [WANTED[0]] if machine_id.startswith("c") else [])
    assert cases.phases(trial, half, SERVER, WANTED) == (None, None)
    (reason,) = trial.reasons
    assert reason.endswith("gets the release without cplayground-modules-lab")


@pytest.mark.parametrize(
    ("got", "reason"), [([], "no server of 200 is upgraded"), ([*WANTED], "each server is")]
)
def test_phases_that_do_nothing_are_a_fault(got: list[str], reason: str) -> None:
    trial = Trial("rollback")
    cases.phases(trial, simulated(lambda _: got), SERVER, WANTED)
    assert reason in "\n".join(trial.reasons)


# autoremove.


def seen(listed: dict[str, str]) -> Boot:
    text = "".join(f"{name} {state}\n" for name, state in listed.items())
    done = SimpleNamespace(argv=cases.AUTOREMOVE[-1].argv, text=text)
    return cast(Boot, SimpleNamespace(results=[done]))


GOOD = {
    f"linux-image-{OLD}": "installed",
    f"cplayground-modules-{OLD}": "installed",
    f"linux-image-{NEW}": "installed",
    f"cplayground-modules-{NEW}": "installed",
    **dict.fromkeys(WANTED, "installed"),
}


def test_both_kernels_with_their_modules_stay() -> None:
    trial = Trial("autoremove")
    cases.judge_autoremove(trial, seen(GOOD), (OLDER, NEWER))
    assert trial.reasons == []


@pytest.mark.parametrize("lost", GOOD)
def test_a_lost_package_is_a_fault(lost: str) -> None:
    trial = Trial("autoremove")
    cases.judge_autoremove(trial, seen(GOOD | {lost: "config-files"}), (OLDER, NEWER))
    assert trial.reasons == [f"apt-get autoremove removed {lost}"]


def test_a_kernel_that_nothing_needs_must_go() -> None:
    trial = Trial("autoremove")
    left = dict.fromkeys(cases.unwanted(), "installed")
    cases.judge_autoremove(trial, seen(GOOD | left), (OLDER, NEWER))
    assert len(trial.reasons) == 2


def test_an_autoremove_that_did_not_run_is_a_fault() -> None:
    trial = Trial("autoremove")
    cases.judge_autoremove(trial, cast(Boot, SimpleNamespace(results=[])), (NEWER,))
    assert trial.reasons == ["apt-get autoremove did not run in the server"]


# Going back.


def test_the_downgrade_is_the_documented_one() -> None:
    page = (PROJECT / "docs/howto/install-and-upgrade.md").read_text()
    section = page.partition("\n### You take this server back\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"```\n(.*?)```", section, re.DOTALL)
    text = "".join(blocks).replace("\\\n", " ")
    documented = [" ".join(line.split()).replace("apt ", "apt-get ") for line in text.splitlines()]
    older = release(OLD, "6.1.192-3+cplayground1", module="0.2.0+")
    ours = [
        " ".join(argv).replace(NEW, "<release that fails>").replace("-lab", "-cloud-amd64")
        for argv in cases.going_back(older, NEWER)
    ]
    assert [argv for argv in documented if argv in ours] == ours


def test_the_kernel_that_both_releases_have_is_replaced_and_not_removed() -> None:
    """Debian's security updates keep the ABI, so the kernel of both has one name."""
    newer = release(OLD, "6.1-2+cplayground1")
    install, hold, *more = cases.going_back(OLDER, newer)
    assert {
        f"linux-image-{OLD}=6.1-1+cplayground1",
        f"cplayground-modules-{OLD}=6.1-1+cplayground1",
    } <= {*install}
    assert hold[-2:] == names(OLDER).prebuilt
    assert more == []


def test_an_older_version_of_a_kernel_is_named_when_a_newer_one_has_its_name() -> None:
    """apt takes the newest version of what the metapackages depend on, and then refuses them."""
    ran: list[tuple[str, ...]] = []
    first, second = release(OLD, "6.1-1+cplayground1"), release(OLD, "6.1-2+cplayground1")
    kernel = (f"linux-image-{OLD}", f"cplayground-modules-{OLD}")
    for promoted in ((second, first), (first,)):
        round = SimpleNamespace(
            view=SimpleNamespace(promoted=promoted, stable="stable", staging="staging"),
            follow=lambda made, suite: ran.append((suite,)),
            apt=lambda made, *arguments: ran.append(arguments),
            run=lambda made, argv: ran.append(tuple(argv)),
        )
        steps.install_older(cast(Round, round), SERVER, first)
    pinned = [f"{name}=6.1-1+cplayground1" for name in (*WANTED, *kernel)]
    assert ran == [
        ("stable",),
        ("install", *pinned),
        ("apt-mark", "auto", *kernel),
        ("staging",),
        ("stable",),
        ("install", *pinned[:2]),
        ("staging",),
    ]


@pytest.mark.parametrize("library", [OLD_GRUB, NEW_GRUB], ids=["grub-2.06", "grub-2.12"])
@pytest.mark.parametrize("booted", [BOOTED, BOOTED_SINCE_TRIXIE])
def test_debians_kernel_comes_first_as_grub_has_it(
    tmp_path: Path, booted: tuple[str, ...], library: str
) -> None:
    root = grub_library(tmp_path, library)
    theirs = [one for one in booted if "cplayground" not in one]
    ours = [one for one in booted if "cplayground" in one]
    first = {
        (stock, own): grub.boot_order((own, stock), root)[0] for stock in theirs for own in ours
    }
    assert {*first.values()} == {*booted} - {booted[0]}
    for (stock, own), chosen in first.items():
        assert cases.comes_before(stock, own) == (chosen == stock), (stock, own)


def with_stock(tree: Path, ran: list[tuple[str, ...]], *, stays: bool = False) -> Round:
    """A round whose servers have Debian's kernel 6.1.0-57, in the two packages of newer suites."""
    kernel = tree / "boot/vmlinuz-6.1.0-57-cloud-amd64"
    kernel.parent.mkdir()
    kernel.touch()

    def apt(made: object, *arguments: str) -> None:
        ran.append(arguments)
        if not stays:
            kernel.unlink()

    image, *parts = (
        SimpleNamespace(path=Path(f"/debs/{name}_6.1.192-3_amd64.deb"))
        for name in (
            "linux-image-6.1.0-57-cloud-amd64",
            "linux-binary-6.1.0-57-cloud-amd64",
            "linux-other",
        )
    )
    base = SimpleNamespace(release="6.1.0-57-cloud-amd64", image=image, parts=parts)
    return cast(Round, SimpleNamespace(base=base, apt=apt))


def of_56() -> Release:
    return release("6.1.0-56-cplayground-lab", "6.1.191-1+cplayground1")


def test_a_newer_kernel_of_debian_is_removed_before_a_way_back(tmp_path: Path) -> None:
    ran: list[tuple[str, ...]] = []
    round, trial = with_stock(tmp_path, ran), Trial("rollback")
    made = cast(Server, SimpleNamespace(root=SimpleNamespace(path=tmp_path), log=None))
    cases.remove_newer_stock(round, trial, made, OLDER)
    assert (ran, trial.notes) == ([], [])
    cases.remove_newer_stock(round, trial, made, of_56())
    assert ran == [
        ("purge", "linux-image-6.1.0-57-cloud-amd64", "linux-binary-6.1.0-57-cloud-amd64")
    ]
    (note,) = trial.notes
    assert "6.1.0-57-cloud-amd64 was removed" in note
    assert trial.reasons == []


def test_a_kernel_of_debian_that_stays_fails_the_case(tmp_path: Path) -> None:
    round = with_stock(tmp_path, [], stays=True)
    made = cast(Server, SimpleNamespace(root=SimpleNamespace(path=tmp_path), log=None))
    with pytest.raises(BuildError, match="cannot be removed"):
        cases.remove_newer_stock(round, Trial("rollback"), made, of_56())


# Reasons.


def test_a_reason_has_the_first_error_and_the_words_before_it() -> None:
    output = "\n".join(
        [
            *(f"Unpacking package-{number} ..." for number in range(40)),
            "Setting up linux-image ...",
            "the disk of this server is full",
            "dpkg: error processing package linux-image (--configure):",
            *(f"dpkg: dependency problems of package-{number}" for number in range(40)),
            "E: Sub-process /usr/bin/dpkg returned an error code (1)",
        ]
    )
    text = around_the_error(output)
    assert "the disk of this server is full" in text
    assert "dpkg: error processing package linux-image" in text
    assert len(text.splitlines()) < 20


def test_a_reason_without_a_known_error_has_the_last_lines() -> None:
    lines = [f"line {number}" for number in range(40)]
    assert around_the_error("\n".join(lines)).splitlines() == lines[-6:]


def test_an_apt_that_was_killed_is_no_verdict(tmp_path: Path) -> None:
    said = "E: Sub-process /usr/bin/dpkg received signal 9."
    done = Completed(("apt-get",), 100, said, "", 0.1)
    made = cast(Server, SimpleNamespace(log=tmp_path / "log", run=lambda *_, **__: done))
    one = cast(Round, SimpleNamespace(network=tmp_path))
    with pytest.raises(KilledError, match="more memory"):
        Round.run(one, made, ["apt-get", "install", "x"])
    assert Round.run(one, made, ["apt-get", "install", "x"], check=False) is done


# Verdicts.


def judged(run: Callable[..., None], *, promoted: tuple[Release, ...] = (OLDER,)) -> CaseResult:
    (result,) = judging.judge(round_of(promoted=promoted), Case(("upgrade",), run))
    return result


def test_a_case_without_a_reason_passes() -> None:
    assert judged(lambda *_: None).outcome == PASSED


def test_a_case_with_a_reason_fails() -> None:
    def run(_: object, trials: Mapping[str, Trial]) -> None:
        trials["upgrade"].require(False, "the module was not loaded")

    result = judged(run)
    assert (result.outcome, result.reasons) == (FAILED, ("the module was not loaded",))


def test_an_error_of_a_step_fails_the_case_after_its_reasons() -> None:
    def run(_: object, trials: Mapping[str, Trial]) -> None:
        trials["upgrade"].reasons.append("first")
        raise BuildError("apt-get failed", found="E: Unable to locate package")

    result = judged(run)
    assert result.outcome == FAILED
    assert result.reasons[0] == "first"
    assert "E: Unable to locate package" in result.reasons[1]


@pytest.mark.parametrize(
    ("raised", "seen"),
    [
        (InfrastructureError("QEMU did not start"), InfrastructureError),
        (SigningError("the key has expired"), SigningError),
        (OSError(errno.ENOSPC, "No space left on device"), FullDiskError),
    ],
)
def test_a_failure_of_the_machine_is_no_verdict(raised: Exception, seen: type[Exception]) -> None:
    def run(*_: object) -> None:
        raise raised

    with pytest.raises(seen):
        judged(run)


def test_an_unexpected_exception_fails_the_case() -> None:
    def run(*_: object) -> None:
        raise KeyError("no such package")

    assert "KeyError" in judged(run).reasons[0]


def test_without_an_older_release_only_the_cases_about_one_are_not_run() -> None:
    ran: list[str] = []

    def run(_: object, trials: Mapping[str, Trial]) -> None:
        ran.extend(trials)

    result = judged(run, promoted=())
    assert (result.outcome, ran) == (NOTHING_OLDER, [])
    both = judging.judge(round_of(), Case(("upgrade", "autoremove"), run))
    assert [one.outcome for one in both] == [NOTHING_OLDER, PASSED]
    assert ran == ["upgrade", "autoremove"]


def test_every_case_is_judged_once() -> None:
    assert sorted(name for one in CASES for name in one.names) == sorted(REQUIRED)
    assert set(REQUIRED) >= NEED_OLDER


def test_words_select_cases() -> None:
    def chosen(k: str | None) -> set[str]:
        return {name for one in judging.choose(k) for name in one.names}

    assert chosen(None) == {*REQUIRED}
    assert chosen("remove") == {"remove"}
    assert chosen("install-dkms") == {"install-dkms", "foreign-dkms"}
    assert chosen("foreign downgrade") == {"install-dkms", "foreign-dkms", "downgrade"}
    assert chosen("downgrade roll") == {"downgrade", "rollback"}
    with pytest.raises(UserError, match="no case matches 'nothing'"):
        judging.choose("nothing")


# gate.json.


def made(*results: CaseResult) -> Report:
    known = {one.name: one for one in results}
    every = tuple(known.get(name) or CaseResult(name, PASSED, 1.0) for name in REQUIRED)
    packages = {one.path.name: one.sha256 for one in NEWER.packages}
    return Report(
        id=NEWER.id,
        packages=packages,
        cases=every,
        older=(OLDER.id,),
        commit="c0ffee",
        when="2026-11-30T12:00:00+00:00",
        accelerator="tcg",
        seconds=200.0,
    )


def complaints(
    report_: Report, tmp_path: Path, *, older: tuple[str, ...] = (OLDER.id,)
) -> tuple[str, ...]:
    """The archive's opinion of a report that was written."""
    report.write(tmp_path / report.FILE, report_)
    gate = evidence.read(tmp_path / report.FILE)
    packages = {one.path.name: one.sha256 for one in NEWER.packages}
    return evidence.complaints(gate, NEWER.id, packages, older=older)


def test_the_archive_accepts_a_round_that_passed(tmp_path: Path) -> None:
    assert made().passed
    assert report.error(made()) is None
    assert complaints(made(), tmp_path) == ()


def test_the_archive_refuses_a_failed_case(tmp_path: Path) -> None:
    bad = made(CaseResult("install", FAILED, 3.0, ("the kernel panicked",)))
    assert not bad.passed
    assert "the kernel panicked" in "\n".join(complaints(bad, tmp_path))
    assert "the kernel panicked" in str(report.error(bad))


def test_the_archive_refuses_a_selection(tmp_path: Path) -> None:
    part = made(CaseResult("rollback", NOT_RUN))
    assert not part.passed
    # Nothing has failed, so the task does not.
    assert report.error(part) is None
    assert complaints(part, tmp_path) != ()


def test_nothing_older_counts_only_while_that_is_so(tmp_path: Path) -> None:
    first = made(*(CaseResult(name, NOTHING_OLDER, 0.0, ("none",)) for name in NEED_OLDER))
    assert first.passed
    assert complaints(first, tmp_path, older=()) == ()
    assert len(complaints(first, tmp_path)) >= len(NEED_OLDER)


def test_a_round_in_which_nothing_ran_is_an_error() -> None:
    assert report.error(made(*(CaseResult(name, NOT_RUN) for name in REQUIRED))) is not None


def test_boots_are_in_gate_json(tmp_path: Path) -> None:
    boot = BootSeen("the server", NEW, "passed", 31.0, "/logs/console.log")
    report.write(tmp_path / report.FILE, made(CaseResult("install", PASSED, 90.0, boots=(boot,))))
    raw = json.loads((tmp_path / report.FILE).read_text())
    (install,) = (one for one in raw["cases"] if one["name"] == "install")
    assert install["boots"] == [
        {
            "what": "the server",
            "release": NEW,
            "outcome": "passed",
            "seconds": 31.0,
            "console": "/logs/console.log",
        }
    ]


def test_the_table_shows_every_case_and_why_one_failed() -> None:
    text = report.render(made(CaseResult("install", FAILED, 3.0, ("no module",))))
    assert all(name in text for name in REQUIRED)
    assert "no module" in text


def test_an_interrupted_round_ends_its_servers_and_begins_no_other_case() -> None:
    began, ended = threading.Event(), threading.Event()
    ran: list[str] = []

    def first(*_: object) -> None:
        ran.append("first")
        began.set()
        assert ended.wait(10)

    def never(*_: object) -> None:
        ran.append("never")

    made = round_of(promoted=(OLDER,), end=ended.set)
    waiting = [Case((name,), never) for name in ("reinstall", "remove")]
    busy = [Case(("install",), first), Case(("downgrade",), first)]
    with pytest.raises(KeyboardInterrupt), judging.started(made, [*busy, *waiting]) as futures:
        assert began.wait(10)
        raise KeyboardInterrupt
    assert set(ran) == {"first"}
    assert futures["remove"].cancelled()


# The task.


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(operations, "preview", lambda *_: None)
    return Settings(project=tmp_path, build=tmp_path / "build", cache=tmp_path / "cache")


def test_the_verdict_is_next_to_the_packages(
    project: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "run", lambda *_, **__: made())
    with gating.judged(project, NEWER) as (found, path):
        assert found.passed
        assert evidence.read(path).id == NEWER.id


def test_an_interrupted_round_leaves_no_earlier_verdict(
    project: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> Report:
        raise KeyboardInterrupt

    monkeypatch.setattr(judging, "run", lambda *_, **__: made())
    with gating.judged(project, NEWER) as (_, path):
        pass
    monkeypatch.setattr(judging, "run", interrupted)
    with pytest.raises(KeyboardInterrupt), gating.judged(project, NEWER):
        pass
    assert not path.exists()


@pytest.mark.parametrize(
    ("outcome", "summary", "status"),
    [(PASSED, "passed: ", None), (FAILED, "refused: ", 1), (NOT_RUN, "incomplete: ", None)],
)
def test_the_answer_names_the_verdict(
    project: Settings,
    monkeypatch: pytest.MonkeyPatch,
    outcome: str,
    summary: str,
    status: int | None,
) -> None:
    result = CaseResult("install", outcome, 3.0, ("no module",) if outcome == FAILED else ())
    monkeypatch.setattr(judging, "run", lambda *_, **__: made(result))
    monkeypatch.setattr(candidate, "last", lambda *_: NEWER)
    answer = gating.run(project, NEWER.target, release=None, k=None, accel=None)
    assert answer.summary.startswith(summary)
    assert (None if answer.error is None else answer.error.exit_status) == status


def test_the_last_packages_are_those_of_the_targets_record(project: Settings) -> None:
    with pytest.raises(UserError, match="lab of bookworm has no packages"):
        candidate.last(project, NEWER.target)


def test_the_last_packages_are_those_that_the_stages_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    works = Works.new(tmp_path, monkeypatch)
    works.package()
    last = candidate.last(works.settings, works.target)
    made = candidate.of(works.last)
    assert (made.target, made.kernel) == (last.target, last.kernel)
    assert made.version == "6.1.192-2+cplayground1"
    assert {one.sha256 for one in last.packages} == {one.sha256 for one in made.packages}
    candidate.write(tmp_path / "release.json", last)
    assert candidate.read(tmp_path / "release.json") == last
