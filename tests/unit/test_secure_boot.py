"""The gate's case for Secure Boot: its disk, its machine, and what it concludes from the boots."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from kbuild.archive import evidence, operations
from kbuild.archive.required import NO_KEY, NOTHING_OLDER, REQUIRED
from kbuild.core.errors import BuildError
from kbuild.core.model import Settings
from kbuild.gate import efi, judging, report, secure_boot
from kbuild.gate.cases import CASES
from kbuild.gate.machine import Boot, Command
from kbuild.gate.report import PASSED, CaseResult
from kbuild.gate.round import Round, Trial
from kbuild.guest import qemu
from kbuild.guest.guest import GuestResult
from kbuild.guest.outcome import Outcome
from kbuild.guest.spec import Firmware, ServerSpec
from kbuild.guest.verdict import Verdict
from kbuild.ship import keyring_package, mok
from tests.unit import fake_kernel, releases
from tests.unit import secure_boot as keys
from tests.unit.server import PROJECT

MIB = 1 << 20
MENU = "menuentry 'Debian' {\n\tlinux\t/boot/vmlinuz-6.1.0-57-amd64 ro\n}\n"

# The disk.


def tree(tmp_path: Path) -> Path:
    top = tmp_path / "tree"
    fake_kernel.write(top / "boot/grub/grub.cfg", MENU)
    for name in efi._FILES.values():
        fake_kernel.write(top / name, name)
    return top


def test_the_firmware_finds_shim_and_grub_finds_the_server(tmp_path: Path) -> None:
    made = efi.write(tree(tmp_path), tmp_path / "disk", log=tmp_path / "log")
    table = subprocess.run(["sfdisk", "--dump", made], capture_output=True, text=True, check=True)
    assert "label: gpt" in table.stdout
    parts = [line.split(":")[1] for line in table.stdout.splitlines() if line.startswith(str(made))]
    # The types of an EFI system partition and of Linux.
    assert "C12A7328-F81F-11D2-BA4B-00A0C93EC93B" in parts[0]
    assert "0FC63DAF-8483-4772-8E79-3D69D8477DE4" in parts[1]
    esp = f"{made}@@{MIB}"

    def shown(name: str) -> str:
        said = subprocess.run(["mtype", "-i", esp, f"::{name}"], capture_output=True, check=True)
        return said.stdout.decode()

    assert shown("/EFI/BOOT/BOOTX64.EFI") == "usr/lib/shim/shimx64.efi.signed"
    assert shown("/EFI/BOOT/grubx64.efi") == "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed"
    first, *_, last = shown("/EFI/debian/grub.cfg").splitlines()
    assert first.startswith("search.fs_uuid ") and last == "configfile $prefix/grub.cfg"
    efi.write_menu(made, instead="halt\n", log=tmp_path / "log")
    assert shown("/EFI/debian/grub.cfg").splitlines()[-1] == "halt"
    efi.write_menu(made, log=tmp_path / "log")
    assert shown("/EFI/debian/grub.cfg").splitlines()[-1] == last
    start = int(parts[1].split("start=")[1].split(",")[0]) * 512
    partition = tmp_path / "partition"
    partition.write_bytes(made.read_bytes()[start:])
    said = subprocess.run(
        ["debugfs", "-R", "cat /boot/grub/grub.cfg", partition], capture_output=True, text=True
    )
    assert said.stdout == MENU


@pytest.mark.parametrize("lost", ["boot/grub/grub.cfg", *efi._FILES.values()])
def test_a_tree_without_a_loader_for_uefi_becomes_no_disk(tmp_path: Path, lost: str) -> None:
    top = tree(tmp_path)
    (top / lost).unlink()
    with pytest.raises(BuildError, match="no boot loader"):
        efi.write(top, tmp_path / "disk", log=tmp_path / "log")
    assert not (tmp_path / "disk").exists()


def test_a_machine_with_a_firmware_keeps_its_variables_as_they_are(tmp_path: Path) -> None:
    firmware = Firmware(tmp_path / "program", tmp_path / "variables")
    spec = ServerSpec(disk=tmp_path / "disk", firmware=firmware)
    words = qemu.command(spec, qemu.Wires(3, 4, 5, 6))
    assert words[words.index("-machine") + 1] == "q35,smm=on"
    program, variables = (word for word in words if "if=pflash" in word)
    assert "readonly=on" in program and str(firmware.program) in program
    assert "snapshot=on" in variables and str(firmware.variables) in variables
    assert "driver=cfi.pflash01,property=secure,value=on" in words
    plain = qemu.command(ServerSpec(disk=tmp_path / "disk"), qemu.Wires(3, 4, 5, 6))
    assert plain[plain.index("-machine") + 1] == "pc"


def test_the_firmware_has_the_keys_that_were_enrolled(tmp_path: Path) -> None:
    own = keys.with_key(fake_kernel.settings(tmp_path), tmp_path / "mok")
    assert own.mok_certificate is not None
    made = efi.firmware(tmp_path / "variables", [own.mok_certificate])
    plain = efi.firmware(tmp_path / "plain", [])
    text = b"cplayground-kernel Secure Boot key"
    assert text in made.variables.read_bytes() and text not in plain.variables.read_bytes()
    assert made.program.stat().st_mode & 0o444 == 0o444


# The consoles of the boots.


def result(command: Command, text: str, status: int = 0) -> GuestResult:
    return GuestResult(command.argv, status, text.encode(), b"", 0.1)


ASKED = secure_boot._asked_of_debian(keyring_package.MOK)
ENROLLED = [*ASKED][-1]
OURS = "cplayground 53248 0 - Live 0xffffffffc0000000 (O)\next4 1 0 - Live 0x0\n"
GOOD = (
    result(secure_boot._LOCKDOWN, "none [integrity] confidentiality\n"),
    result(secure_boot._STATE, "SecureBoot enabled\n"),
    result(ENROLLED, "/usr/share/cplayground/mok.der is already enrolled\n", 1),
    result(secure_boot._LOADED, OURS),
    result(secure_boot._INSERT, "insmod: ERROR: Key was rejected by service\n", 1),
    result(secure_boot._TAINT, "4096\n"),
)
REFUSED = "[    9.0] Lockdown: insmod: unsigned module loading is restricted; see man\n"
CONTROLS = (
    "error: bad shim signature.\ncontrol unsigned: refused\n"
    "error: bad shim signature.\ncontrol foreign: refused\ncontrol signed: accepted\n"
)


def judged(
    console: Path, results: Sequence[GuestResult], text: str = CONTROLS, refused: str = REFUSED
) -> list[str]:
    console.write_text(text + refused)
    seen = Boot(Verdict(Outcome.PASSED), console, results=tuple(results))
    trial = Trial("secure-boot")
    secure_boot.judge_controls(trial, console)
    secure_boot.judge_lockdown(trial, seen, ASKED)
    secure_boot.judge_modules(trial, seen)
    return trial.reasons


def test_a_sound_server_gives_no_reason(tmp_path: Path) -> None:
    assert judged(tmp_path / "console", GOOD) == []
    rejected = "[    9.0] Loading of unsigned module is rejected\n"
    assert judged(tmp_path / "console", GOOD, refused=rejected) == []


def test_a_module_that_only_insmod_refused_is_a_reason(tmp_path: Path) -> None:
    (reason,) = judged(tmp_path / "console", GOOD, refused="")
    assert "did not refuse an unsigned module" in reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (CONTROLS.replace("unsigned: refused", "unsigned: accepted"), "unsigned, was accepted"),
        (CONTROLS.replace("foreign: refused", "foreign: accepted"), "foreign, was accepted"),
        (CONTROLS.replace("control signed: accepted\n", ""), "signed, was not tried"),
        (CONTROLS.replace("signed: accepted", "signed: refused"), "signed, was refused"),
        # A file that GRUB does not find is refused, too.
        (CONTROLS.replace("bad shim signature", "file not found", 1), "1 times, not 2"),
        ("", "was not tried"),
    ],
)
def test_a_control_that_does_not_hold_is_a_reason(tmp_path: Path, text: str, reason: str) -> None:
    assert reason in "\n".join(judged(tmp_path / "console", GOOD, text))


@pytest.mark.parametrize(
    ("at", "text", "status", "reason"),
    [
        (0, "[none] integrity confidentiality", 0, "not '[integrity]'"),
        (1, "SecureBoot disabled", 0, "SecureBoot disabled"),
        (2, "mok.der is not enrolled", 0, "is not enrolled"),
        (3, OURS.replace("(O)", "(OE)"), 0, "loaded as ['(OE)']"),
        (3, "ext4 1 0 - Live 0x0\n", 0, "loaded as None"),
        (3, OURS.splitlines()[0], 0, "no module besides ours"),
        (3, OURS + "virtio_net 1 0 - Live 0x0 (E)\n", 0, "virtio_net taints the kernel: (E)"),
        (4, "", 0, "did not refuse an unsigned module"),
        (5, "12288", 0, "taint is '12288'"),
    ],
)
def test_each_thing_that_is_not_as_it_should_be_is_a_reason(
    tmp_path: Path, at: int, text: str, status: int, reason: str
) -> None:
    results = list(GOOD)
    results[at] = GuestResult(results[at].argv, status, text.encode(), b"", 0.1)
    assert reason in "\n".join(judged(tmp_path / "console", results))


@pytest.mark.parametrize("at", [0, 1, 2, 3, 4, 5])
def test_silence_is_a_reason(tmp_path: Path, at: int) -> None:
    assert judged(tmp_path / "console", [*GOOD[:at], *GOOD[at + 1 :]]) != []


def test_the_signature_of_a_module_is_cut_off() -> None:
    module, signature = b"\x7fELF a module", b"a signature"
    trailer = bytes(8) + len(signature).to_bytes(4, "big") + b"~Module signature appended~\n"
    assert secure_boot.without_signature(module + signature + trailer) == module
    assert secure_boot.without_signature(module) == module


def test_dkms_of_debian_11_signs_as_documented() -> None:
    page = (PROJECT / "docs/howto/secure-boot.md").read_text().partition("\n## DKMS\n")[2]
    documented = [
        shlex.split(line)
        for line in page.replace("\\\n", " ").splitlines()
        if line[:4] in ("open", "sed ")
    ]
    assert documented == [list(argv) for argv in secure_boot.OLD_DKMS]


# Without a key.


def round_of(settings: Settings) -> Round:
    view = SimpleNamespace(promoted=())
    candidate = releases.release(1, small=True)
    return cast(Round, SimpleNamespace(view=view, settings=settings, candidate=candidate))


def test_a_published_release_is_judged_by_the_key_of_its_time(tmp_path: Path) -> None:
    plain = releases.settings(tmp_path)
    old, new = (keys.with_key(plain, tmp_path / name) for name in ("old", "new"))
    unsigned, signed, coming = (releases.release(number, small=True) for number in (1, 2, 3))
    operations.stage(plain, unsigned, releases.files(plain.build, unsigned))
    files = releases.files(plain.build, signed)
    for name, content in (
        ("kernel.sig", b"a signature"),
        ("mok.pem", mok.certificates(old)[0].pem),
    ):
        files.append(files[0].with_name(name))
        files[-1].write_bytes(content)
    operations.stage(old, signed, files)
    for settings in (plain, old, new):
        assert secure_boot.certificate(settings, unsigned) is None
        found = secure_boot.certificate(settings, signed)
        assert found is not None and found.der == mok.certificates(old)[0].der
    assert secure_boot.certificate(plain, coming) is None
    assert secure_boot.certificate(new, coming) == mok.certificates(new)[0]
    # Its server finds the certificate under whatever name the package has it.
    with_both = operations.preview(new, signed, tmp_path / "view").keyring
    subprocess.run(["dpkg-deb", "-x", with_both, tmp_path / "server"], check=True)
    places = [
        keyring_package.place_of(mok.certificates(one)[0], tmp_path / "server")
        for one in (new, old)
    ]
    assert places == [keyring_package.MOK, Path("usr/share/cplayground/mok-2.der")]


def test_without_a_key_the_cases_are_not_judged_and_say_so(tmp_path: Path) -> None:
    (case,) = (one for one in CASES if "secure-boot" in one.names)
    results = judging.judge(round_of(releases.settings(tmp_path)), case)
    assert {one.outcome for one in results} == {NO_KEY} and NO_KEY == "not judged: no MOK key"
    assert NO_KEY != PASSED and all(one.reasons for one in results)
    others = tuple(CaseResult(name, PASSED) for name in REQUIRED if name not in case.names)
    made = report.Report("id", {}, (*others, *results), (), "", "", "tcg", 1.0)
    assert made.passed
    assert report.render(made).count("not judged: no MOK key") == len(case.names)


@pytest.mark.parametrize(
    ("name", "outcome", "signed", "good"),
    [
        ("secure-boot", NO_KEY, False, True),
        ("secure-boot-dkms", NO_KEY, False, True),
        ("secure-boot", NO_KEY, True, False),
        ("secure-boot", NOTHING_OLDER, False, False),
        ("install", NO_KEY, False, False),
    ],
)
def test_only_an_unsigned_release_needs_no_verdict_under_secure_boot(
    name: str, outcome: str, signed: bool, good: bool
) -> None:
    cases = tuple(
        evidence.Case(one, outcome if one == name else PASSED, 1.0, ("why",)) for one in REQUIRED
    )
    gate = evidence.Gate("id", True, {"one.deb": "1"}, cases, (), "", "")
    found = evidence.complaints(gate, "id", {"one.deb": "1"}, older=(), signed=signed)
    assert (found == ()) is good, found
