"""The ``vm`` command: one guest for a person, with the packages installed."""

from __future__ import annotations

from collections.abc import Callable

from kbuild import dry_run
from kbuild.core.model import Settings, Target
from kbuild.guest import session
from kbuild.pipeline import images, stages


def run(
    settings: Settings,
    target: Target,
    *,
    modules: str,
    command: str | None,
    stock: bool,
    accel: str | None,
    say: Callable[[str], None],
) -> int:
    """Build what is missing, boot a guest, and return the status of ``command`` in it.

    Without ``command`` the guest gives a shell.  ``stock`` boots Debian's own kernel, and none
    is compiled.  A dry run only says what it would do.  Raises UserError for a command that no
    guest can run and for a shell without a terminal, and what :func:`session.run` raises.
    """
    if command is not None:
        session.check(command)
    if settings.dry:
        if not stock:
            return dry_run.say_stages(settings, target, modules, say=say)
        say(f"would boot Debian's own kernel of {target.suite}, {target.flavour}")
        return 0
    if command is None:
        session.check_terminal()
    if stock:
        made = images.stock_image(settings, target)
    else:
        done = stages.package(settings, target, modules=modules)
        made = images.guest_image(done)
    return session.run(
        settings, made, variant=target.variant, command=command, stock=stock, accel=accel
    )
