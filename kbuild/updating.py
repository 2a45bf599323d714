"""The ``check-updates`` command: each kernel that is kept current against the distro's newest."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from kbuild.answer import Answer, plain
from kbuild.archive import operations
from kbuild.core import suites, table
from kbuild.core.errors import UPDATE_STATUS, UserError
from kbuild.core.model import Settings, Target
from kbuild.watch import asking
from kbuild.watch.state import Against, Told
from kbuild.watch.state import Answer as Said

_HEADS = ("target", "distro", "promoted", "staged", "lag", "CVEs", "patch", "fast path")
_SHOWN_CVES = 8


def targets(
    settings: Settings, target: Target, *, suite: str | None = None, flavour: str | None = None
) -> tuple[Target, ...]:
    """Return the kernels of ``watch_targets``, or the configured one without that.

    ``suite`` and ``flavour``, names or "all", choose others.  Raises UserError if the
    configuration names one version, because only one kernel can have it.
    """
    if target.version is not None:
        raise UserError(
            f"kernel_version is {target.version}, but this task is about the newest version",
            hint="remove kernel_version from invoke.yaml and the environment",
        )
    known = settings.policy.targets or ((target.suite, target.flavour, target.variant),)
    if suite or flavour:
        chosen = _names(suite, (one[0] for one in known), suites.SUITES)
        flavours = _names(flavour, (one[1] for one in known), suites.DEBIAN_FLAVOURS)
        known = tuple((*pair, target.variant) for pair in itertools.product(chosen, flavours))
    return tuple(
        dataclasses.replace(target, suite=one[0], flavour=one[1], variant=one[2])
        for one in dict.fromkeys(known)
    )


def _names(given: str | None, usual: Iterable[str], every: Iterable[str]) -> list[str]:
    return [*every] if given == suites.ALL else [given] if given else [*dict.fromkeys(usual)]


def check(
    settings: Settings,
    target: Target,
    *,
    suite: str | None,
    flavour: str | None,
    source: bool,
    modules: str,
) -> Answer:
    """Compare each kernel with the distro; the status is UPDATE_STATUS if one is behind.

    If a mirror could not be asked, the status is that of its error.
    """
    records = operations.releases(settings)
    now = datetime.now(UTC).replace(microsecond=0)
    found = [
        asking.ask(settings, one, records, now, modules=modules, with_source=source)
        for one in targets(settings, target, suite=suite, flavour=flavour)
    ]
    behind = [name(one) for one in found if one.behind]
    failed = [one for one in found if one.error]
    said = [f"an update for {', '.join(behind)}"] if behind else []
    said += [f"not known for {', '.join(map(name, failed))}"] if failed else []
    status = next((one.error.status for one in found if one.error), UPDATE_STATUS if behind else 0)
    return Answer(
        data={"targets": [describe(one) for one in found]},
        text=render(found),
        summary="; ".join(said) or "no update",
        status=status,
    )


def name(one: Against) -> str:
    """Return the name of a target, as releases' IDs begin."""
    return f"{one.suite}-{one.target.name}"


def describe(one: Against) -> dict[str, object]:
    """Return a target as docs/reference/json.md describes it."""
    fields = {field.name: plain(getattr(one, field.name)) for field in dataclasses.fields(one)}
    return fields | {"due": one.due, "behind": one.behind}


def render(found: Sequence[Against]) -> str:
    """Return the table for people, followed by the details of each target."""
    text = table.text(_HEADS, map(_row, found), unbroken=4, usual_width=120)
    for one in found:
        if lines := _details(one):
            text += "\n".join(["", name(one), *(f"  {line}" for line in lines)]) + "\n"
    return text


def _row(one: Against) -> tuple[str, ...]:
    known = one.changelog.told is Told.YES
    return (
        name(one),
        one.newest or "not known",
        one.promoted.base if one.promoted else "none",
        one.staged.base if one.staged else "none",
        lag(one),
        str(len(one.cves)) if known else "not known",
        one.applies.told.value,
        one.fast.told.value,
    )


def lag(one: Against) -> str:
    """Say for how long servers have lacked a version of the distro."""
    if one.lag_s is None:
        return "not known" if one.promoted else "none promoted"
    days, hours = divmod(round(one.lag_s / 3600), 24)
    return f"{days} d {hours} h" if one.lag_s else "none"


def _details(one: Against) -> list[str]:
    if one.error is not None:
        found = [f"found: {line}" for line in (one.error.found or "").splitlines()]
        return [f"{one.error.kind} error: {one.error.what}", *found]
    lines = []
    if one.behind:
        since = f" since {one.missed_since}" if one.missed_since else ""
        lines.append(f"servers lack {', '.join(one.missed) or one.newest}{since}")
    if one.cves and one.behind:
        more = f" and {len(one.cves) - _SHOWN_CVES} more" if len(one.cves) > _SHOWN_CVES else ""
        lines.append(f"fixed: {', '.join(one.cves[:_SHOWN_CVES])}{more}")
    for what, said in (
        ("changelog", one.changelog),
        ("patch", one.applies),
        ("fast path", one.fast),
    ):
        if said.told is not Told.YES:
            lines += _lines(what, said)
    return lines


def _lines(what: str, said: Said) -> list[str]:
    head, *rest = said.why.splitlines() or [""]
    return [f"{what}: {said.told.value}, {head}", *(f"  {line}" for line in rest)]
