"""One guest for a person: a shell in it, or one command and its status."""

from __future__ import annotations

import logging
import signal
from pathlib import Path

from kbuild.core.errors import (
    BuildError,
    DefectError,
    InfrastructureError,
    KbuildError,
    TrustError,
    UserError,
)
from kbuild.core.model import Settings
from kbuild.core.run import describe_status
from kbuild.guest import image, qemu, shell
from kbuild.guest.guest import Guest, GuestResult, check_command
from kbuild.guest.image import GuestImage
from kbuild.guest.outcome import MODULE_TAINT, Outcome
from kbuild.guest.spec import GuestSpec, suited
from kbuild.guest.verdict import Verdict

logger = logging.getLogger(__name__)

_COMMAND_TIMEOUT_S = 3600.0
_BY_SIGNAL = 128
# The statuses that ./inv itself ends with: docs/reference/exit-status.md.
_TAKEN = frozenset(
    {
        *(outcome.exit_status for outcome in Outcome if outcome is not Outcome.PASSED),
        *(
            kind.exit_status
            for kind in (
                KbuildError,
                UserError,
                BuildError,
                TrustError,
                InfrastructureError,
                DefectError,
            )
        ),
        # 141, of SIGPIPE, means the same of a command as of ./inv.
        *(_BY_SIGNAL + one for one in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)),
    }
)


class GuestJudgedError(KbuildError):
    """The command ran, but the guest that it ran in did not pass."""

    kind = "guest"

    def __init__(self, verdict: Verdict, console: str) -> None:
        self.exit_status = verdict.outcome.exit_status
        super().__init__(f"the guest: {verdict}", hint=f"read its console: {console}")


class CommandFailedError(KbuildError):
    """The command failed, with a status that means something else here."""

    kind = "guest command"
    exit_status = Outcome.FAILED.exit_status


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

    ``variant`` is that of our kernel in the image.  Returns :func:`own_status` of the command, 0
    after a shell.  Raises GuestJudgedError, with the outcome's own status, when the guest did
    not pass.
    """
    kernel = next(one for one in made.kernels if image.is_ours(one) is not stock)
    choice = qemu.choose_accelerator(settings.cache, kernel, accel)
    spec = GuestSpec(kernel=kernel, disk=made.disk, accelerator=choice.accelerator)
    if not stock:
        spec = suited(spec, variant)
    guest = boot(spec, settings.build / "logs" / "vm")
    done = None
    try:
        if command is None:
            logger.info("a shell in %s; leave it with 'exit'", guest.release)
            shell.interactive(guest)
        else:
            done = shell.stream(guest, _argv(command), timeout_s=_COMMAND_TIMEOUT_S)
    finally:
        verdict = guest.shutdown(status=0)
    if done is not None and done.oom:
        logger.warning("the guest ran out of memory: %s", done.oom)
    if not verdict.passed:
        raise GuestJudgedError(verdict, str(guest.machine.console.path))
    return 0 if done is None else own_status(done)


def check(command: str) -> None:
    """Raise UserError for a command that no guest could be sent, before there is a guest."""
    check_command(_argv(command))


def _argv(command: str) -> list[str]:
    return ["sh", "-c", command]


def own_status(done: GuestResult) -> int:
    """Return the status of a command that has ended, 128 and the number for a signal.

    Raises CommandFailedError for one that ``./inv`` itself may end with: it would have two
    meanings.
    """
    status = done.status if done.status >= 0 else _BY_SIGNAL - done.status
    if status in _TAKEN:
        raise CommandFailedError(
            f"the command in the guest failed: {describe_status(done.status)}",
            hint=f"have it print what you need: where ./inv ends with {status}, that means"
            " something else",
        )
    return status


def boot(spec: GuestSpec, logs: Path) -> Guest:
    """Boot a guest whose console has a directory below ``logs`` to itself.

    Somebody may have several shells open.
    """
    name, number = "session", 1
    while True:
        try:
            return Guest.boot(spec, workdir=logs / name, expected_taint=MODULE_TAINT)
        except qemu.WorkdirInUseError:
            number += 1
            name = f"session-{number}"
