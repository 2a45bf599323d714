"""Read what programs in a guest measured, and make statistics and tables of it.

Every comparison is a ratio of two values of the same round.  Changes from round to round, above
all the machine's other work, then affect both values.
"""

from __future__ import annotations

import datetime
import math
import os
import platform
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kbuild.core import table
from kbuild.core.errors import KbuildError

_PASS = re.compile(r"^pass (\d+) (\d+) (\d+)$")


class BenchError(KbuildError):
    """A measurement failed, or did not measure what it should."""

    kind = "bench"


def conditions(rounds: int) -> dict[str, str]:
    """Return what a reader of a measurement on this machine has to know."""
    return {
        "python": platform.python_version(),
        "host": f"{platform.machine()}, {len(os.sched_getaffinity(0))} CPUs,"
        f" load {os.getloadavg()[0]:.1f}",
        "rounds": str(rounds),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


@dataclass(frozen=True)
class Pass:
    """One complete reading."""

    ns: int
    lines: int
    bytes: int


@dataclass(frozen=True)
class Spread:
    """Quartiles and extremes of the values of several rounds, in their unit."""

    least: float
    q1: float
    median: float
    q3: float
    most: float
    count: int


@dataclass(frozen=True)
class Series:
    """The values of one method by round, or the reason ``why`` there are none."""

    name: str
    values: Mapping[int, float] = field(default_factory=dict)  # by round
    why: str | None = None

    def __post_init__(self) -> None:
        if bool(self.values) == (self.why is not None):
            raise ValueError(f"{self.name}: either values or a reason, not {self}")


@dataclass(frozen=True)
class Aim:
    """An aim: the series takes at least ``times`` as long as the reference."""

    series: str
    times: float


@dataclass(frozen=True)
class Comparison:
    """Several series, measured in the same rounds under the same load."""

    name: str
    title: str
    unit: str  # of the values
    reference: str  # name of the series that the others are compared with
    series: tuple[Series, ...]

    def __post_init__(self) -> None:
        if self.reference not in [one.name for one in self.series]:
            raise ValueError(f"{self.name}: no series is called {self.reference}")

    def get(self, name: str) -> Series:
        """Return the series of that name; raises KeyError."""
        for one in self.series:
            if one.name == name:
                return one
        raise KeyError(name)

    def ratio(self, name: str) -> Spread | None:
        """Return the ratio of a series to the reference; None if either was not measured."""
        return ratio(self.get(name), self.get(self.reference))


def parse_passes(text: str) -> tuple[Pass, ...]:
    """Read the lines "pass <ns> <lines> <bytes>"; raises BenchError for another line or none."""
    passes = []
    for line in text.splitlines():
        match = _PASS.match(line)
        if match is None:
            raise BenchError(
                "a program of the benchmark printed an unknown line",
                expected="pass <ns> <lines> <bytes>",
                found=line,
            )
        passes.append(Pass(*map(int, match.groups())))
    if not passes or any(one.ns == 0 for one in passes):
        raise BenchError("a program of the benchmark measured nothing", found=text or "no line")
    return tuple(passes)


def spread(values: Sequence[float]) -> Spread:
    """Return quartiles and extremes; raises ValueError without a value."""
    if not values:
        raise ValueError("no value")
    if len(values) == 1:
        return Spread(*(values[0],) * 5, count=1)
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(min(values), q1, median, q3, max(values), len(values))


def ratio(one: Series, other: Series) -> Spread | None:
    """Return ``one`` over ``other``, for the rounds that have both; None if there are none."""
    common = sorted(set(one.values) & set(other.values))
    return spread([one.values[k] / other.values[k] for k in common]) if common else None


def median_interval(
    values: Sequence[float], confidence: float = 0.95
) -> tuple[float, float] | None:
    """Return the confidence interval of the median; None for too few values.

    It is the interval of the sign test.  That uses only the order of the values, and so holds
    for every distribution.  The median lies below the k-th smallest value with the probability
    that fewer than k of n coins show heads.
    """
    ordered, n = sorted(values), len(values)
    k, heads = 0, 1  # 2^n times the probability of at most k heads
    while 2 * heads <= (1 - confidence) * 2**n:
        k += 1
        heads += math.comb(n, k)
    return (ordered[k - 1], ordered[n - k]) if k else None


def number(value: float) -> str:
    """Write a number with three significant digits: 0.0123, 4.56, 78.9, 1,230."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    rounded = float(f"{value:.3g}")
    digits = max(0, 2 - math.floor(math.log10(abs(rounded))))
    return f"{rounded:,.{digits}f}"


def show_spread(values: Spread) -> str:
    """Write median, quartiles and extremes in one cell."""
    if values.count == 1:
        return f"{number(values.median)} (once)"
    return (
        f"{number(values.median)}  [{number(values.q1)}–{number(values.q3)}]"
        f"  {number(values.least)}–{number(values.most)}"
    )


def render(comparison: Comparison, *, width: int | None = None) -> str:
    """Return a comparison as a table; the row of a series without values gives the reason."""
    spreads = f"{comparison.unit}: median  [quartiles]  extremes"
    rows = []
    for one in comparison.series:
        if one.why is not None:
            rows.append((one.name, f"not measurable here: {one.why}", ""))
            continue
        times = comparison.ratio(one.name)
        same = one.name == comparison.reference
        rows.append(
            (
                one.name,
                show_spread(spread(list(one.values.values()))),
                "" if same or times is None else show_spread(times),
            )
        )
    return table.text(
        ("", spreads, f"÷ {comparison.reference}"),
        rows,
        title=comparison.title,
        unbroken=1,
        width=width,
        usual_width=120,
    )


def judge(aim: Aim, comparisons: Sequence[Comparison]) -> str:
    """Say in one line in how many comparisons the median ratio meets the aim.

    Comparisons without values of the series or of the reference are not counted.
    """
    ratios = {
        one.name: times.median
        for one in comparisons
        if aim.series in [each.name for each in one.series]
        and (times := one.ratio(aim.series)) is not None
    }
    wanted = f"{aim.series} ÷ {comparisons[0].reference} at least {aim.times:g}"
    if not ratios:
        return f"{wanted}: not measurable here"
    missed = {name: value for name, value in ratios.items() if value < aim.times}
    met = f"{wanted}: {len(ratios) - len(missed)} of {len(ratios)}"
    if not missed:
        return f"{met}, the least {number(min(ratios.values()))}"
    return f"{met}; not {', '.join(f'{name} ({number(missed[name])})' for name in missed)}"


def loss(comparison: Comparison, name: str) -> str:
    """Say in one line how much less a series is than the reference, with its confidence."""
    one, reference = comparison.get(name), comparison.get(comparison.reference)
    common = sorted(set(one.values) & set(reference.values))
    ratios = [one.values[k] / reference.values[k] for k in common]
    said = f"{name} ÷ {comparison.reference}"
    between = median_interval(ratios)
    if between is None:
        return f"{said}: {len(ratios)} rounds are too few to tell"
    least, most = between
    said += f": {number(statistics.median(ratios))}, at 95 % {number(least)}–{number(most)}"
    if most < 1:
        return f"{said}: a loss of {100 * (1 - most):.1f} % at least"
    return f"{said}: no loss seen, one of more than {max(0.0, 100 * (1 - least)):.1f} % is excluded"


def to_json(comparison: Comparison) -> dict[str, object]:
    """Return all values and ratios as plain data."""
    return {
        "name": comparison.name,
        "title": comparison.title,
        "unit": comparison.unit,
        "reference": comparison.reference,
        "series": {
            one.name: {"not measurable here": one.why}
            if one.why is not None
            else {
                "rounds": {str(k): value for k, value in sorted(one.values.items())},
                "spread": vars(spread(list(one.values.values()))),
                "ratio": None if (r := comparison.ratio(one.name)) is None else vars(r),
            }
            for one in comparison.series
        },
    }
