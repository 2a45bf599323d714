"""The ``watch`` command: one unattended round by the configured policy."""

from __future__ import annotations

import functools
import sys
import typing
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from kbuild import cleaning, gating, releasing, updating
from kbuild.answer import Answer
from kbuild.archive import operations
from kbuild.archive.release import Record
from kbuild.core import errors, fs, places
from kbuild.core.errors import InfrastructureError
from kbuild.core.model import Settings, Target
from kbuild.core.run import run as run_program
from kbuild.ship import signing
from kbuild.watch import asking, clock, page, rounds, telling
from kbuild.watch.rounds import HealthError, Work
from kbuild.watch.state import Against, Attempt, Outcome, Status

_HEALTH_S = 600.0
_SAID_LINES = 5


def run(settings: Settings, target: Target, *, modules: str, accel: str | None) -> Answer:
    """Do one round, or say what it would do; the status is that of the round's first failure."""
    places.check(settings)
    targets = updating.targets(settings, target)
    work = real_work(settings, targets, modules=modules, accel=accel)
    if settings.dry:
        would = rounds.foresee(settings, targets, work, modules=modules)
        return Answer(data={"would": would}, text="\n".join(would))
    return answer(rounds.run(settings, targets, work, modules=modules))


def real_work(
    settings: Settings, targets: Sequence[Target], *, modules: str, accel: str | None
) -> Work:
    """Return the actions of a real round."""

    def ask(target: Target, records: Sequence[Record], with_source: bool) -> Against:
        with places.held(settings, build=False):
            return asking.ask(
                settings, target, records, now(), modules=modules, with_source=with_source
            )

    def release(target: Target) -> str:
        with places.held(settings):
            # A person's release is not waited for; the next round finds it done.
            with fs.lock(settings.build / ".release.lock", timeout_s=0):
                pass
            made = releasing.run(settings, target, modules=modules, accel=accel)
        return str(typing.cast(dict[str, Any], made.data["release"])["id"])

    def judge(id: str) -> None:
        # A release of the archive has a target of its own.
        with places.held(settings):
            made = gating.run(settings, Target("", ""), release=id, k=None, accel=accel)
        if made.error is not None:
            raise made.error

    policy = settings.policy
    return Work(
        now=now,
        clocks=functools.partial(clock.of_mirrors, settings, targets),
        ask=ask,
        release=release,
        judge=judge,
        promote=functools.partial(operations.promote, settings),
        key_expires=functools.partial(signing.expiry, settings),
        refresh=functools.partial(operations.refresh, settings),
        healthy=functools.partial(check_health, policy.health_command)
        if policy.health_command
        else None,
        free=functools.partial(free, settings),
        clean=functools.partial(
            cleaning.clean_unused, settings, days=policy.unused_days, timeout_s=0
        ),
        channels=telling.channels(settings),
        write=page.write,
    )


def now() -> datetime:
    """Return the time, in UTC and whole seconds."""
    return datetime.now(UTC).replace(microsecond=0)


def check_health(command: Sequence[str], id: str) -> None:
    """Ask the health command about a release.

    Raises HealthError for a bad report, and InfrastructureError if the command cannot be run or
    does not end in time.
    """
    done = run_program(
        [*command, id], timeout_s=_HEALTH_S, check=False, error=InfrastructureError, secret=True
    )
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()[-_SAID_LINES:]
        raise HealthError(
            f"there is a bad report about {id}",
            expected="exit status 0 of watch_health_command",
            found="\n".join([f"exit status {done.returncode}", *said]),
            hint=f"to take it back: './inv rollback {id}'",
        )


def free(settings: Settings) -> int:
    """Return the free bytes of the fullest one of the directories that a release is written to."""
    there = [
        next(path for path in (one, *one.parents) if path.exists())
        for one in (settings.build, settings.cache, settings.archive)
    ]
    return min((left for left, _ in errors.room(there)), default=sys.maxsize)


def answer(status: Status) -> Answer:
    """Return the answer about a round."""
    failed = [one for one in status.attempts if one.failed and one.began >= status.began]
    failed.sort(key=lambda one: one.began)
    said = [*status.done]
    said += [f"failed: {', '.join(one.key for one in failed)}"] if failed else []
    said += [f"{status.error.kind} error: {status.error.what}"] if status.error else []
    known = [one for one in status.causes if not one.over]
    if known and not failed:
        said.append(f"still failed: {', '.join(one.subject for one in known)}")
    lines = [line for one in status.attempts if (line := _line(one))]
    code = failed[0].status if failed else status.error.status if status.error else 0
    return Answer(
        data={"round": status},
        text=updating.render(status.targets) + "".join(f"{line}\n" for line in ("", *lines)),
        summary="; ".join(said) or "nothing to do",
        status=code,
    )


def _line(one: Attempt) -> str:
    """Return a line about an attempt that did not succeed; "" about another."""
    if one.outcome is Outcome.DONE:
        return ""
    why = f": {one.error.kind} error: {one.error.what}" if one.error else ""
    later = f"; not before {one.not_before}" if one.not_before else ""
    return f"{one.key}: {one.outcome.value}{why}{later}"
