"""Steps of an administrator that several cases have: an older release, boots, the next boot."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from kbuild.archive.release import Release
from kbuild.gate import machine
from kbuild.gate.machine import Boot, Command
from kbuild.gate.round import PREBUILT, Round, Trial, names
from kbuild.gate.server import Server
from kbuild.guest.spec import Firmware
from kbuild.ship import versions


def of_kernel(release: Release) -> tuple[str, str]:
    """Return the kernel and its module, on which the metapackages depend.

    apt takes another version of them than its candidate only if they are named.  So they are named
    where two releases have the same kernel, because Debian kept its ABI.
    """
    return versions.image_package(release.kernel), versions.modules_package(release.kernel)


def install_older(round: Round, made: Server, older: Release) -> None:
    """Install a promoted release from the stable suite, then follow staging."""
    wanted = names(older)
    kernel = of_kernel(older)
    shared = [one.kernel for one in round.view.promoted].count(older.kernel) > 1
    round.follow(made, round.view.stable)
    round.apt(made, "install", *wanted.pinned((*wanted.prebuilt, *(kernel if shared else ()))))
    if shared:
        # As if only the metapackages had been named.
        round.run(made, ["apt-mark", "auto", *kernel])
    round.follow(made, round.view.staging)


def boot_next(round: Round, made: Server, release: str) -> None:
    """Choose a kernel for the next boot, as an administrator does in the boot menu."""
    menu = (made.root.path / "boot/grub/grub.cfg").read_text()
    ids = re.findall(r"\$menuentry_id_option '([^']+)'", menu)
    (submenu,) = (one for one in ids if one.startswith("gnulinux-advanced-"))
    (entry,) = (one for one in ids if one.startswith(f"gnulinux-{release}-advanced-"))
    round.run(made, ["grub-reboot", f"{submenu}>{entry}"])


def boot_both(
    round: Round,
    trial: Trial,
    disk: Path,
    what: str,
    *,
    first: Sequence[Command],
    judge: Callable[[Boot], bool],
    then: Sequence[Command] = (),
    firmware: Firmware | None = None,
) -> Boot | None:
    """Boot Debian's kernel and then the candidate's on one disk, and return the second boot.

    ``first`` and ``then`` are the commands in each, and ``what`` names the server of the second.
    There is none if ``judge`` is not content with the first one.
    """
    with machine.keeping(disk) as changes:
        seen = round.boot(
            trial,
            disk,
            "the server with Debian's kernel",
            release=round.base.release,
            module=None,
            commands=first,
            changes=changes,
            firmware=firmware,
        )
        if not judge(seen):
            return None
        return round.boot(
            trial,
            disk,
            what,
            release=round.candidate.kernel,
            module=PREBUILT,
            commands=then,
            changes=changes,
            firmware=firmware,
        )
