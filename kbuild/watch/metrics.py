"""Describe a round in node_exporter's textfile format, for graphs and alerts.

The alert rules of contrib/prometheus use these families.  A fact that is not known has no sample,
so an alert on it needs the family ``cplayground_kernel_distro_reachable`` too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily

from kbuild.core.model import Target
from kbuild.core.secrets import redact
from kbuild.watch import summary
from kbuild.watch.state import Attempt, Outcome, Status, Told
from kbuild.watch.summary import Condition

_PREFIX = "cplayground_kernel_"
_TARGET = ("suite", "flavour", "variant")
_SERVERS = 100  # percent


def render(status: Status) -> bytes:
    """Return the samples of a status as text."""
    registry = CollectorRegistry()
    registry.register(_Families(status))
    return generate_latest(registry)


class _Families:
    """Collect one family of metrics for each fact, for prometheus_client."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Return the families."""
        return [*_of_the_round(self._status), *_of_the_kernels(self._status)]


def _family(
    name: str,
    help: str,
    labels: Sequence[str] = (),
    samples: Iterable[tuple[Sequence[str], float | None]] = (),
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(_PREFIX + name, help, labels=labels)
    for values, value in samples:
        if value is not None:
            family.add_metric([redact(one) for one in values], value)
    return family


def _seconds(text: str) -> float | None:
    return summary.moment(text).timestamp() if text else None


def _of_the_round(status: Status) -> Iterable[GaugeMetricFamily]:
    answers = summary.summarize(status)
    version = [((status.version, status.commit), 1.0)]
    yield _family("watch_info", "The pipeline that ran the round.", ("version", "commit"), version)
    yield _family(
        "round_began_timestamp_seconds",
        "Begin of the last round.",
        samples=[((), _seconds(status.began))],
    )
    yield _family(
        "round_ended_timestamp_seconds",
        "End of the last round; no sample while the first one runs.",
        samples=[((), _seconds(status.ended))],
    )
    yield _family(
        "round_failed",
        "1 if the last round itself could not go on.",
        samples=[((), float(status.error is not None))],
    )
    yield _family(
        "problems",
        "Things that went wrong and are not over, by whether a person must help.",
        ("person",),
        [
            (("yes",), float(len(answers.persons))),
            (("no",), float(len(answers.retried))),
        ],
    )
    yield _family(
        "signature_end_timestamp_seconds",
        "Time at which servers begin to refuse the signed indexes of a suite of the archive.",
        ("dist",),
        [((name,), _seconds(until)) for name, until in sorted(status.valid_until.items())],
    )
    yield _family(
        "key_end_timestamp_seconds",
        "Time at which the key of the archive expires; no sample if it is not known.",
        samples=[((), _seconds(status.key_expires))],
    )
    yield _family(
        "mok_end_timestamp_seconds",
        "Time at which the certificate for Secure Boot expires; no sample without one.",
        samples=[((), _seconds(status.mok_expires))],
    )


def _of_the_kernels(status: Status) -> Iterable[GaugeMetricFamily]:
    answers = summary.summarize(status)
    of = [(_labels(one.target), one) for one in status.targets]
    yield _family(
        "distro_reachable",
        "1 if the last round learned the distro's newest version.",
        _TARGET,
        [(labels, float(one.error is None and bool(one.newest))) for labels, one in of],
    )
    yield _family(
        "version_info",
        "Versions of the distro's kernel: the newest, and those ours were built from.",
        (*_TARGET, "newest", "promoted", "staged"),
        [
            (
                (
                    *labels,
                    one.newest,
                    one.promoted.base if one.promoted else "",
                    one.staged.base if one.staged else "",
                ),
                1.0,
            )
            for labels, one in of
        ],
    )
    yield _family(
        "condition",
        "1 for the condition that a kernel is in.",
        (*_TARGET, "condition"),
        [
            ((*_labels(one.against.target), word.value), float(one.condition is word))
            for one in answers.kernels
            for word in Condition
        ],
    )
    yield _family(
        "lag_seconds",
        "Time since the distro uploaded the oldest version that servers of ours lack.",
        _TARGET,
        [(labels, one.lag_s) for labels, one in of],
    )
    known = [(labels, one) for labels, one in of if one.changelog.told is Told.YES]
    yield _family(
        "missed_versions",
        "Versions of the distro above the one that servers of ours have.",
        _TARGET,
        [(labels, float(len(one.missed))) for labels, one in known],
    )
    yield _family(
        "open_cves",
        "CVEs that the distro has fixed and servers of ours have not.",
        _TARGET,
        [(labels, float(len(one.cves))) for labels, one in known],
    )
    yield _family(
        "promoted_ratio",
        "Part of the servers, from 0 to 1, that get the newest promoted release.",
        _TARGET,
        [(labels, one.promoted.percent / _SERVERS if one.promoted else 0.0) for labels, one in of],
    )
    yield from _of_the_attempts(status)
    judged = [(_labels(Target(o.suite, o.flavour, o.variant)), o) for o in summary.judged(status)]
    yield _family(
        "gate_passed",
        "1 if the gate passed the newest release that it has judged.",
        _TARGET,
        [(labels, float(one.passed)) for labels, one in judged],
    )
    yield _family(
        "gate_case_seconds",
        "Time that a case of that verdict took.",
        (*_TARGET, "case", "outcome"),
        [
            ((*labels, case.name, case.outcome), case.seconds)
            for labels, one in judged
            for case in one.cases
        ],
    )


def _of_the_attempts(status: Status) -> Iterable[GaugeMetricFamily]:
    of = summary.targets(status)
    last: dict[tuple[str, ...], Attempt] = {}
    for one in sorted(status.attempts, key=lambda one: one.began):
        # A step of a release counts for its target: the next release must not be a new series.
        target = of.get(one.subject)
        last[(one.step.value, *(_labels(target) if target else ("", "", "")))] = one
    labels = ("step", *_TARGET)
    yield _family(
        "last_attempt_failed",
        "1 if the last attempt of a step did not end well.",
        labels,
        [(key, float(one.failed)) for key, one in last.items()],
    )
    yield _family(
        "last_attempt_refused",
        "1 if it ended with a verdict on its inputs, so it is not tried again before they change.",
        labels,
        [(key, float(one.outcome is Outcome.REFUSED)) for key, one in last.items()],
    )
    yield _family(
        "last_attempt_timestamp_seconds",
        "Begin of the last attempt of a step.",
        labels,
        [(key, _seconds(one.began)) for key, one in last.items()],
    )
    yield _family(
        "last_attempt_duration_seconds",
        "Time that the last attempt of a step took.",
        labels,
        [(key, one.seconds if one.ended else None) for key, one in last.items()],
    )


def _labels(target: Target) -> tuple[str, str, str]:
    return target.suite, target.flavour, target.variant
