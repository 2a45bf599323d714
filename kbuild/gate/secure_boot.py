"""The cases of Secure Boot: a server with UEFI, on which our key is enrolled.

Debian's shim and GRUB start our kernel, which is locked down, and Debian's own kernel.  Before, in
a boot of GRUB only, shim must refuse our kernel without a signature, and with one of another key.
Then DKMS builds and signs the module on that server, with a key of the server's own.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
import ssl
from collections.abc import Mapping
from pathlib import Path

from kbuild.archive import operations, records
from kbuild.archive.release import Release
from kbuild.core import fs
from kbuild.core.errors import BuildError, SigningError
from kbuild.core.model import MODULE, Settings
from kbuild.core.run import run
from kbuild.gate import efi, server
from kbuild.gate.machine import Boot, Command
from kbuild.gate.round import BUILT, PREBUILT, Round, Trial, names
from kbuild.gate.server import Server
from kbuild.gate.steps import boot_both, boot_next, of_kernel
from kbuild.guest.guest import GuestResult
from kbuild.guest.spec import Firmware
from kbuild.ship import keyring_package, mok
from kbuild.ship.mok import Certificate

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
# The answers of a kernel that is locked down.
_LOCKED = {_LOCKDOWN: "[integrity]"}
# The only module of lab besides ours.  It loads without its device, which these servers lack; a
# kernel without it has loaded others.
_ANOTHER = Command(("modprobe", "i6300esb"), _ASKED_S, status=None)
_LOADED = Command(("cat", "/proc/modules"), _ASKED_S)
_INSERT = Command(("insmod", f"/{_UNSIGNED_MODULE}"), _ASKED_S, status=None)
_TAINT = Command(("cat", "/proc/sys/kernel/tainted"), _ASKED_S)
_ASKED = (_LOCKDOWN, _ANOTHER, _LOADED, _INSERT, _TAINT)
_OUT_OF_TREE = 1 << 12
# The commands by which DKMS of Debian 11 signs; the files' places are those of its sign_helper.sh.
OLD_DKMS = (
    (
        *("openssl", "req", "-new", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "36500"),
        *("-subj", "/CN=DKMS module signing key/", "-keyout", "/root/mok.priv"),
        *("-outform", "DER", "-out", "/root/mok.der"),
    ),
    ("sed", "-i", "s|^# sign_tool=|sign_tool=|", "/etc/dkms/framework.conf"),
)
# The kernel's words: of a lockdown; or of IMA's policy, with which Debian's kernels since 6.1 ask
# for signatures under Secure Boot.  insmod then says "Operation not permitted", or "Key was
# rejected by service".
_REFUSED = re.compile(
    r"Lockdown: \S+: unsigned module loading is restricted"
    r"|Loading of unsigned module is rejected"
)


def secure_boot(round: Round, trials: Mapping[str, Trial]) -> None:
    """Boot the candidate and Debian's kernel under Secure Boot, and see the others refused.

    The candidate boots again with the module that DKMS built and signed on the server.
    """
    trial, built = trials["secure-boot"], trials["secure-boot-dkms"]
    candidate = round.candidate
    signer = certificate(round.settings, candidate)
    assert signer is not None  # else the cases are not judged
    tree = server.stock(round.settings, round.base, dkms=True, efi=True)
    with round.server(trial.name, tree=tree) as made:
        round.follow(made, round.view.staging)
        round.apt(made, "install", *names(candidate).prebuilt)
        image = made.root.path / f"boot/vmlinuz-{candidate.kernel}"
        enrolled = keyring_package.place_of(signer, made.root.path)
        if enrolled is None:
            raise BuildError(f"the archive's package has not the certificate {signer}")
        pem = round.home / "secure-boot.pem"
        pem.write_bytes(signer.pem)
        done = run(["sbverify", "--cert", pem, image], timeout_s=_TIMEOUT_S, check=False)
        if done.returncode != 0:
            raise BuildError(f"the kernel {candidate.kernel} is not signed by {signer}")
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
            _boot(round, trial, disk, firmware, enrolled)
        _boot_with_dkms(round, built, made, pem)


def certificate(settings: Settings, release: Release) -> Certificate | None:
    """Return the certificate of the key that signed a release, or signs it now; None without one.

    A release that the archive has published was signed by the key of its time, or by none.
    """
    packages = {one.sha256 for one in release.packages}
    for one in operations.releases(settings):
        same = one.id == release.id and packages == {known.sha256 for known in one.packages}
        if same and one.published:
            path = records.home(settings.archive, one.id) / mok.CERTIFICATE
            return mok.read(path)[0] if mok.CERTIFICATE in one.evidence else None
    return next(iter(mok.certificates(settings)), None)


def _asked_of_debian(enrolled: Path) -> dict[Command, str]:
    """Return what Debian's kernel is asked, and what each answer must have.

    ``enrolled`` is the certificate's file in the server.
    """
    tested = Command(("mokutil", "--test-key", f"/{enrolled}"), _ASKED_S, status=None)
    return {**_LOCKED, _STATE: "SecureBoot enabled", tested: "is already enrolled"}


def _boot(round: Round, trial: Trial, disk: Path, firmware: Firmware, enrolled: Path) -> None:
    asked = _asked_of_debian(enrolled)

    def judge(seen: Boot) -> bool:
        judge_lockdown(trial, seen, asked)
        return True

    ours = boot_both(
        round,
        trial,
        disk,
        "the server with our kernel",
        first=tuple(asked),
        judge=judge,
        then=_ASKED,
        firmware=firmware,
    )
    assert ours is not None
    judge_lockdown(trial, ours, _LOCKED)
    judge_modules(trial, ours)


def _boot_with_dkms(round: Round, trial: Trial, made: Server, pem: Path) -> None:
    """Boot our kernel with the module of DKMS, whose certificate is enrolled next to ours."""
    wanted = names(round.candidate)
    own = _certificate_of_dkms(round, made)
    # DKMS leaves a module of the same version where it is.
    round.apt(made, "remove", of_kernel(round.candidate)[1])
    round.apt(made, "install", *wanted.dkms)
    der = made.root.path / own
    if not der.exists():
        raise BuildError("DKMS made no certificate for its modules", expected=f"/{own}")
    other = round.home / "dkms.pem"
    other.write_text(ssl.DER_cert_to_PEM_cert(der.read_bytes()))
    firmware = efi.firmware(round.home / "secure-boot-dkms.variables", [pem, other])
    # GRUB's choice is our kernel again.
    round.run(made, ["grub-editenv", "/boot/grub/grubenv", "unset", "next_entry"])
    with round.disk(made, write=efi.write) as disk:
        seen = round.boot(
            trial,
            disk,
            "the server with the module by DKMS",
            release=round.candidate.kernel,
            module=BUILT,
            commands=_ASKED,
            firmware=firmware,
        )
    judge_lockdown(trial, seen, _LOCKED)
    judge_modules(trial, seen)


def _certificate_of_dkms(round: Round, made: Server) -> Path:
    """Return where DKMS has its certificate, or will have it with the first module.

    DKMS of Debian 11 signs nothing by itself, so a key is made as docs/howto/secure-boot.md says.
    """
    if "mok_signing_key" in (made.root.path / "usr/sbin/dkms").read_text():
        return Path("var/lib/dkms/mok.pub")
    for argv in OLD_DKMS:
        round.run(made, argv)
    return Path("root/mok.der")


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


def judge_lockdown(trial: Trial, seen: Boot, asked: Mapping[Command, str]) -> None:
    """Judge whether a kernel was locked down, by what each answer must have that was ``asked``."""
    by_command = {one.argv: one for one in seen.results}
    for command, wanted in asked.items():
        said = _said(by_command.get(command.argv))
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
    trial.require(
        others > 0, "no module besides ours was loaded, so the kernel's were not verified"
    )
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
