"""The metrics, read by Prometheus' own parser of the text format."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kbuild.watch import metrics
from kbuild.watch.state import Status
from tests.unit import statuses

Labels = frozenset[tuple[str, str]]
Samples = Mapping[str, Mapping[Labels, float]]
PREFIX = "cplayground_kernel_"
BOOLEANS = ("_failed", "_refused", "_reachable", "_passed", "_info", "condition")


def read(status: Status) -> Samples:
    """Parse the metrics of a status; a family or a sample that comes twice is an error."""
    found: dict[str, dict[Labels, float]] = {}
    for family in text_string_to_metric_families(metrics.render(status).decode()):
        assert family.name not in found, family.name
        assert family.type == "gauge" and family.documentation.endswith(".")
        samples: dict[Labels, float] = {}
        for sample in family.samples:
            labels = frozenset(sample.labels.items())
            assert sample.name == family.name and labels not in samples
            samples[labels] = sample.value
        found[family.name.removeprefix(PREFIX)] = samples
        assert family.name.startswith(PREFIX)
    return found


def of(samples: Mapping[Labels, float], **labels: str) -> float | None:
    """Return the only sample that has these labels; None without one."""
    found = [value for each, value in samples.items() if set(labels.items()) <= each]
    assert len(found) < 2
    return found[0] if found else None


@pytest.mark.parametrize("name", statuses.DAYS)
def test_each_family_keeps_the_rules_of_names(name: str, tmp_path: Path) -> None:
    found = read(statuses.DAYS[name](tmp_path / "a.log"))
    assert len(found) > 15
    for family, samples in found.items():
        boolean = family.endswith(BOOLEANS)
        assert boolean or re.search(r"(_seconds|_ratio|_cves|_versions|^problems)$", family)
        assert not boolean or set(samples.values()) <= {0.0, 1.0}
        # All samples of a family have the same labels.
        assert len({frozenset(name for name, _ in labels) for labels in samples}) <= 1


def test_a_kernel_that_is_behind() -> None:
    found = read(statuses.status(statuses.behind(), statuses.current("trixie")))
    late = {"suite": "bookworm", "flavour": "cloud-amd64", "variant": "release"}
    assert of(found["lag_seconds"], **late) == 31 * 3600
    assert of(found["open_cves"], **late) == 15
    assert of(found["missed_versions"], **late) == 1
    assert of(found["condition"], **late, condition="update due") == 1
    assert of(found["condition"], **late, condition="current") == 0
    assert of(found["lag_seconds"], suite="trixie") == 0
    assert of(found["version_info"], **late, newest=statuses.NEW, promoted=statuses.OLD) == 1
    # The time of the round tells an alert that the rounds have stopped.
    assert of(found["round_ended_timestamp_seconds"]) == statuses.NOW.timestamp()


def test_what_is_not_known_has_no_sample(tmp_path: Path) -> None:
    found = read(statuses.unreachable(tmp_path / "a.log"))
    for family in ("lag_seconds", "open_cves", "missed_versions"):
        assert of(found[family], suite="bookworm") is None
        assert of(found[family], suite="trixie") is not None
    assert of(found["distro_reachable"], suite="bookworm") == 0
    assert of(found["problems"], person="no") == 1
    assert of(found["last_attempt_failed"], step="check", suite="bookworm") == 1
    assert of(found["last_attempt_refused"], step="check", suite="bookworm") == 0


def test_a_running_round_has_no_end(tmp_path: Path) -> None:
    found = read(statuses.working(tmp_path / "a.log"))
    assert not found["round_ended_timestamp_seconds"]
    assert of(found["round_began_timestamp_seconds"]) is not None


def test_text_of_strangers_stays_one_label() -> None:
    hostile = 'a"} 1\nother_metric{x="\\'
    found = read(statuses.status(statuses.current(hostile)))
    assert of(found["lag_seconds"], suite=hostile) == 0


def test_the_attempts_of_a_step_are_one_series(tmp_path: Path) -> None:
    """The subject of a promotion is a release, and each release would be a new series."""
    found = read(statuses.failed(tmp_path / "a.log"))
    assert of(found["last_attempt_refused"], step="release", suite="bookworm") == 1
    names = {name for labels in found["last_attempt_failed"] for name, _ in labels}
    assert names == {"step", "suite", "flavour", "variant"}


@pytest.mark.parametrize("key", ["key", "mok"])
def test_the_end_of_a_key(key: str) -> None:
    made = statuses.status(statuses.current("trixie"))
    assert not read(made)[f"{key}_end_timestamp_seconds"]
    end: dict[str, Any] = {f"{key}_expires": "2026-11-30T12:00:00+00:00"}
    known = dataclasses.replace(made, **end)
    assert of(read(known)[f"{key}_end_timestamp_seconds"]) == 1796040000
