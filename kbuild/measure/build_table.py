"""Render the results of bench.build as a table: each case with its target and comparisons."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kbuild.core import progress, table
from kbuild.core.model import Target
from kbuild.measure.build_cases import CASES, Case, Measurement, obstacle
from kbuild.measure.stats import number


def extrapolate(
    found: Mapping[str, Measurement], other: Mapping[str, Measurement]
) -> Measurement | None:
    """Extrapolate a flavour's full build from another flavour's, by the number of objects.

    Returns None unless this flavour's objects were counted, and the other's counted and built.
    """
    if "full" in found or not {"count", "full"} <= other.keys() or "count" not in found:
        return None
    mine, theirs = found["count"].objects, other["count"].objects
    if not mine or not theirs:
        return None
    factor = mine / theirs
    full = other["full"]
    return Measurement(
        case="full",
        version=full.version,
        wall_s=full.wall_s * factor,
        cpu_s=full.cpu_s * factor,
        objects=mine,
        note=f"extrapolated: cloud-amd64's × {factor:.1f}, by the count of objects",
    )


def render(
    target: Target,
    found: Mapping[str, Measurement],
    other: Mapping[str, Measurement] | None = None,
    *,
    absent: Mapping[str, str] | None = None,
    width: int | None = None,
) -> str:
    """Return the table of a target: each case with its latest run, or why it has none.

    ``absent`` gives the reasons of cases without figures in this run; their earlier figures are
    not shown.
    """
    absent = absent or {}
    shown = {name: one for name, one in found.items() if name not in absent}
    if extra := extrapolate(shown, other or {}):
        shown["full"] = extra
    rows = []
    for case in CASES.values():
        one = shown.get(case.name)
        if one is None:
            why = absent.get(case.name) or obstacle(case, target, "") or "not measured"
            rows.append((case.name, *("–",) * 6, f"{case.title}: {why}"))
            continue
        hits = "" if one.hits is None else f"{one.hits} of {one.hits + (one.misses or 0)}"
        rows.append(
            (
                case.name,
                progress.duration(one.wall_s),
                progress.duration(one.cpu_s),
                str(one.objects or ""),
                hits,
                _ratio(one, shown.get("full")),
                judge(case, target, shown),
                _remark(case, one),
            )
        )
    text = table.text(
        ("case", "wall", "CPU", "objects", "ccache", "÷ full", "target", "remarks"),
        rows,
        title=f"{target.suite} {target.name}",
        width=width,
        usual_width=160,
    )
    return "\n".join([*text.splitlines(), *_misses(shown.values())])


def _ratio(one: Measurement, full: Measurement | None) -> str:
    return "" if full is None or one.case in ("full", "count") else number(one.cpu_s / full.cpu_s)


def judge(case: Case, target: Target, found: Mapping[str, Measurement]) -> str:
    """Say whether a case met its target; "" for a case without a target."""
    one = found[case.name]
    if case.seconds:
        limit = progress.duration(case.seconds)
        return f"{'met' if one.wall_s <= case.seconds else 'missed'}: {limit} wall"
    share, other = case.share.get(target.flavour), found.get(case.of)
    if share is None or other is None:
        return ""
    verdict = "met" if one.cpu_s <= share * other.cpu_s else "missed"
    # The other case may be extrapolated, or may have been measured with another version.
    but = ", extrapolated" if not other.began else ""
    but += f", of {other.version}" if other.version != one.version else ""
    return f"{verdict}: 1/{round(1 / share)} of {case.of}'s CPU{but}"


def _remark(case: Case, one: Measurement) -> str:
    when = f"{one.began[:16]}, load {one.load[0]:g}–{one.load[1]:g}" if one.began else ""
    packing = f"{progress.duration(one.packages_cpu_s)} of the CPU for packages"
    cached = ""
    if one.versions is not None:
        cached = f"symbol versions of {one.versions[0]} of {sum(one.versions)} files from ccache"
    parts = (case.title, one.note, packing if one.packages_cpu_s else "", cached, one.version, when)
    return "; ".join(part for part in parts if part)


def _misses(found: Iterable[Measurement]) -> list[str]:
    """Name the files that were not in a warm cache, and ccache's own counters."""
    lines = []
    for one in found:
        if one.case not in ("full-ccache", "fast-ccache", "point-release") or not one.misses:
            continue
        lines.append(f"{one.case}: {one.misses} misses: {', '.join(one.missed)}")
        if one.reasons:
            why = "; ".join(f"{count} {reason}" for reason, count in one.reasons.items())
            lines.append(f"  reasons, by number of files: {why}")
        counted = {k: v for k, v in sorted(one.counters.items()) if "hit" not in k}
        lines.append("  ccache counted " + ", ".join(f"{k} {v}" for k, v in counted.items()))
    return lines
