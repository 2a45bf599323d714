"""The case ``secure-boot``: a server with UEFI and Secure Boot, on which our key is enrolled.

Debian's shim and GRUB start our kernel, which is locked down, and Debian's own kernel.  Before, in
a boot of GRUB only, shim must refuse our kernel without a signature, and with one of another key.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from kbuild.core import fs
from kbuild.core.errors import SigningError
from kbuild.core.model import MODULE, Settings
from kbuild.core.run import run
from kbuild.gate import efi, machine, server
from kbuild.gate.machine import Boot, Command
from kbuild.gate.round import PREBUILT, Round, Trial, names
from kbuild.gate.steps import boot_next
from kbuild.guest.guest import GuestResult
from kbuild.guest.spec import Firmware
from kbuild.ship import keyring_package, mok

_TIMEOUT_S = 60
_ASKED_S = 20.0
# Kernels that GRUB tries to load, and a module that nothing signed.
_CONTROLS, _UNSIGNED_MODULE = Path("boot/controls"), Path("root/unsigned.ko")
_SIGNED, _UNSIGNED, _FOREIGN = "signed", "unsigned", "foreign"
# The end of a signed module: the length of its signature, then the magic (sign-file.c).
_TRAILER = re.compile(rb"([\0-\xff]{4})~Module signature appended~\n\Z")
_TRAILER_BYTES = 12 + 28

_LOCKDOWN = Command(("cat", "/sys/kernel/security/lockdown"), _ASKED_S)
_STATE = Command(("mokutil", "--sb-state"), _ASKED_S, status=None)
_ENROLLED = Command(("mokutil", "--test-key", f"/{keyring_package.MOK}"), _ASKED_S, status=None)
_WANTED = {
    _LOCKDOWN: "[integrity]",
    _STATE: "SecureBoot enabled",
    _ENROLLED: "is already enrolled",
}
_LOADED = Command(("cat", "/proc/modules"), _ASKED_S)
_INSERT = Command(("insmod", f"/{_UNSIGNED_MODULE}"), _ASKED_S, status=None)
_TAINT = Command(("cat", "/proc/sys/kernel/tainted"), _ASKED_S)
_OUT_OF_TREE = 1 << 12
# The kernel's words: of a lockdown; or of IMA's policy, with which Debian's kernels since 6.1 ask
# for signatures under Secure Boot.  insmod then says "Operation not permitted", or "Key was
# rejected by service".
_REFUSED = re.compile(
    r"Lockdown: \S+: unsigned module loading is restricted"
    r"|Loading of unsigned module is rejected"
)


def secure_boot(round: Round, trials: Mapping[str, Trial]) -> None:
    """Boot the candidate and Debian's kernel under Secure Boot, and see the others refused."""
    (trial,) = trials.values()
    candidate = round.candidate
    (certificate, *_) = mok.certificates(round.settings)
    tree = server.stock(round.settings, round.base, efi=True)
    with round.server(trial.name, tree=tree) as made:
        round.follow(made, round.view.staging)
        round.apt(made, "install", *names(candidate).prebuilt)
        image = made.root.path / f"boot/vmlinuz-{candidate.kernel}"
        enrolled = made.root.path / keyring_package.MOK
        held = enrolled.exists() and enrolled.read_bytes() == certificate.der
        trial.require(held, f"/{keyring_package.MOK} is not the certificate that signs")
        pem = round.home / "secure-boot.pem"
        pem.write_bytes(certificate.pem)
        done = run(["sbverify", "--cert", pem, image], timeout_s=_TIMEOUT_S, check=False)
        if done.returncode != 0:
            trial.reasons.append(f"the kernel {candidate.kernel} is not signed by {certificate}")
            return
        _write_controls(round.settings, made.root.path, image, round.home / "other-key")
        _write_unsigned_module(made.root.path, candidate.kernel)
        boot_next(round, made, round.base.release)
        firmware = efi.firmware(round.home / "secure-boot.variables", [pem])
        with round.disk(made, write=efi.write) as disk:
            efi.write_menu(disk, instead=_controls(), log=made.log)
            with round.running(trial, disk, "GRUB only", firmware=firmware, settled=False):
                # It ends by itself, without a kernel.
                pass
            judge_controls(trial, Path(trial.boots[-1].console))
            efi.write_menu(disk, log=made.log)
            changes = machine.keep_changes(disk, disk.with_suffix(".qcow2"))
            try:
                _boot(round, trial, disk, changes, firmware)
            finally:
                changes.unlink(missing_ok=True)


def _boot(round: Round, trial: Trial, disk: Path, changes: Path, firmware: Firmware) -> None:
    stock = round.boot(
        trial,
        disk,
        "the server with Debian's kernel",
        release=round.base.release,
        module=None,
        commands=(_LOCKDOWN, _STATE, _ENROLLED),
        changes=changes,
        firmware=firmware,
    )
    judge_lockdown(trial, stock, (_LOCKDOWN, _STATE, _ENROLLED))
    ours = round.boot(
        trial,
        disk,
        "the server with our kernel",
        release=round.candidate.kernel,
        module=PREBUILT,
        commands=(_LOCKDOWN, _LOADED, _INSERT, _TAINT),
        changes=changes,
        firmware=firmware,
    )
    judge_lockdown(trial, ours, (_LOCKDOWN,))
    judge_modules(trial, ours)


# --- controls -----------------------------------------------------------------------------------


def _write_controls(settings: Settings, tree: Path, image: Path, scratch: Path) -> None:
    """Write our kernel as it is, without its signature, and with that of another key."""
    home = tree / _CONTROLS
    home.mkdir()
    shutil.copyfile(image, home / _SIGNED)
    unsigned = home / _UNSIGNED
    shutil.copyfile(image, unsigned)
    run(["sbattach", "--remove", unsigned], timeout_s=_TIMEOUT_S, error=SigningError)
    fs.remove_tree(scratch)
    scratch.mkdir()
    other = dataclasses.replace(
        settings,
        mok_key=scratch / "key",
        mok_certificate=scratch / "certificate",
        mok_sign_command=(),
    )
    mok.make(other)
    shutil.copyfile(mok.sign_kernel(other, unsigned, (), scratch), home / _FOREIGN)


def _controls() -> str:
    """Return lines for GRUB that load each kernel, say whether shim let it, and power off.

    Nothing is started then: GRUB 2.06 crashed when it had loaded one kernel before another.
    """
    lines = (
        f"if linux ($root)/{_CONTROLS}/{name}; then echo control {name}: accepted;"
        f" else echo control {name}: refused; fi\n"
        for name in (_UNSIGNED, _FOREIGN, _SIGNED)
    )
    return "".join((*lines, "halt\n"))


def judge_controls(trial: Trial, console: Path) -> None:
    """Judge by the console which kernels shim accepted."""
    text = console.read_text(errors="replace") if console.exists() else ""
    for name, wanted in ((_UNSIGNED, "refused"), (_FOREIGN, "refused"), (_SIGNED, "accepted")):
        found = re.findall(rf"control {name}: (refused|accepted)", text)
        trial.require(
            found == [wanted],
            f"our kernel, {name}, was {', '.join(found) or 'not tried'}, not {wanted}",
        )
    refused = text.count("bad shim signature")
    trial.require(refused == 2, f"GRUB said {refused} times, not 2, that shim refused a kernel")


# --- modules ------------------------------------------------------------------------------------


def _write_unsigned_module(tree: Path, release: str) -> None:
    """Write our module without its signature to the server."""
    module = tree / f"lib/modules/{release}/{PREBUILT}/{MODULE}.ko"
    (tree / _UNSIGNED_MODULE).write_bytes(without_signature(module.read_bytes()))


def without_signature(module: bytes) -> bytes:
    """Return a module without the signature at its end; one that has none stays as it is."""
    found = _TRAILER.search(module)
    if found is None:
        return module
    return module[: -_TRAILER_BYTES - int.from_bytes(found[1], "big")]


def judge_lockdown(trial: Trial, seen: Boot, asked: Sequence[Command]) -> None:
    """Judge whether a kernel was locked down, by the answer to each command that was ``asked``."""
    by_command = {one.argv: one for one in seen.results}
    for command in asked:
        said, wanted = _said(by_command.get(command.argv)), _WANTED[command]
        trial.require(wanted in said, f"{' '.join(command.argv)} says {said!r}, not {wanted!r}")


def judge_modules(trial: Trial, seen: Boot) -> None:
    """Judge which modules our kernel verified, and that it refuses an unsigned one."""
    by_command = {one.argv: one for one in seen.results}
    loaded = by_command.get(_LOADED.argv)
    flags = {
        words[0]: words[6:]
        for words in (line.split() for line in (loaded.text if loaded else "").splitlines())
        if words
    }
    trial.require(flags.get(MODULE) == ["(O)"], f"{MODULE} is loaded as {flags.get(MODULE)}")
    for name, letters in sorted(flags.items()):
        if name != MODULE and letters:
            trial.reasons.append(f"the module {name} taints the kernel: {' '.join(letters)}")
    others = len(flags.keys() - {MODULE})
    trial.require(others > 0, "no module besides ours was loaded, so Debian's were not verified")
    trial.notes.append(f"{others} modules besides ours were loaded and verified")
    inserted = by_command.get(_INSERT.argv)
    text = seen.console.read_text(errors="replace") if seen.console.exists() else ""
    trial.require(
        inserted is not None and inserted.status != 0 and _REFUSED.search(text) is not None,
        f"the kernel did not refuse an unsigned module: {_said(inserted) or 'insmod said nothing'}",
    )
    taint = by_command.get(_TAINT.argv)
    trial.require(
        _said(taint) == str(_OUT_OF_TREE), f"the kernel's taint is {_said(taint)!r}, not 4096"
    )


def _said(done: GuestResult | None) -> str:
    return "" if done is None else (done.stdout + done.stderr).decode(errors="replace").strip()
