"""One guest for a person: a shell in it, or one command and its status."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from kbuild import variants
from kbuild.errors import KbuildError
from kbuild.model import Settings
from kbuild.vm import image, qemu, shell
from kbuild.vm.guest import Guest
from kbuild.vm.image import GuestImage
from kbuild.vm.outcome import Verdict
from kbuild.vm.spec import GuestSpec

logger = logging.getLogger(__name__)

# The module is out of tree (O), and DKMS signs it with a key that nobody trusts (E).
_MODULE_TAINT = 1 << 12 | 1 << 13
_COMMAND_TIMEOUT_S = 3600.0


class GuestJudgedError(KbuildError):
    """The command ran, but the guest that it ran in did not pass."""

    kind = "guest"

    def __init__(self, verdict: Verdict, console: str) -> None:
        self.exit_status = verdict.outcome.exit_status
        super().__init__(f"the guest: {verdict}", hint=f"read its console: {console}")


def run(
    settings: Settings,
    made: GuestImage,
    *,
    variant: str,
    command: str | None,
    stock: bool,
    accel: str | None,
) -> int:
    """Boot a guest, give a shell in it or run ``command`` there, and judge the guest.

    ``variant`` is that of our kernel in the image.  Returns the status of the command, 128
    and the signal's number for one that was killed.  Raises GuestJudgedError, with the
    outcome's own status, when the guest did not pass.
    """
    kernel = next(one for one in made.kernels if image.is_ours(one) is not stock)
    choice = qemu.choose_accelerator(settings.cache, kernel, accel)
    spec = GuestSpec(kernel=kernel, disk=made.disk, accelerator=choice.accelerator)
    if not stock:
        spec = variants.suited(spec, variant)
    guest = boot(spec, settings.build / "logs" / "vm")
    try:
        if command is None:
            logger.info("a shell in %s; leave it with 'exit'", guest.release)
            status = shell.interactive(guest)
        else:
            done = guest.run(["sh", "-c", command], timeout_s=_COMMAND_TIMEOUT_S)
            sys.stdout.buffer.write(done.stdout)
            sys.stderr.buffer.write(done.stderr)
            sys.stdout.buffer.flush()
            status = done.status
    finally:
        verdict = guest.shutdown(status=0)
    if not verdict.passed:
        raise GuestJudgedError(verdict, str(guest.machine.console.path))
    return status if status >= 0 else 128 - status


def boot(spec: GuestSpec, logs: Path) -> Guest:
    """Boot a guest whose console has a directory below ``logs`` to itself.

    Somebody may have several shells open.
    """
    name, number = "session", 1
    while True:
        try:
            return Guest.boot(spec, workdir=logs / name, expected_taint=_MODULE_TAINT)
        except qemu.WorkdirInUseError:
            number += 1
            name = f"session-{number}"
