"""Progress: its lines in a log file, and how amounts are written."""

from __future__ import annotations

import io
import logging
import sys
import time

import pytest

from kbuild.core import progress


class Clock:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    moved = Clock()
    monkeypatch.setattr(time, "monotonic", moved)
    return moved


def test_a_log_gets_a_line_every_half_minute(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with progress.bar("vmlinux", 3000, unit="objects") as advance:
        for second in range(1, 91):
            clock.now_s = 1000.0 + second
            advance(second * 10)
    assert [record.getMessage() for record in caplog.records] == [
        "vmlinux: 300 of 3000 objects, about 4 min 30 s left",
        "vmlinux: 600 of 3000 objects, about 4 min 00 s left",
        "vmlinux: 900 of 3000 objects, about 3 min 30 s left",
    ]


def test_a_log_gets_a_status_now_and_then(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with progress.status() as show:
        for second in range(31):
            clock.now_s = 1000.0 + second
            show(f"second {second}")
    assert caplog.messages == ["second 0", "second 15", "second 30"]


def test_a_resumed_transfer_counts_only_what_it_gained(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with progress.bar("linux-source", 200e6, unit="bytes", initial=100e6) as advance:
        clock.now_s += 50
        advance(150e6)
    assert caplog.messages == ["linux-source: 150 of 200 MB, 1.0 MB/s, about 50 s left"]


def test_an_unknown_total_is_not_invented(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with progress.bar("index", None, unit="bytes") as advance:
        clock.now_s += 40
        advance(8e6)
    assert caplog.messages == ["index: 8 MB, 0.2 MB/s"]


def test_more_than_the_estimate_says_nothing_of_time_left(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with progress.bar("vmlinux", 100, unit="objects") as advance:
        clock.now_s += 31
        advance(120)
    assert caplog.messages == ["vmlinux: 120 of 100 objects"]


@pytest.mark.parametrize("total", [None, 10.0])
@pytest.mark.parametrize("unit", ["bytes", "objects"])
def test_a_terminal_gets_a_bar(
    monkeypatch: pytest.MonkeyPatch, total: float | None, unit: str
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with progress.bar("working", total, unit=unit) as advance:
        advance(5)
    assert "working" in terminal.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (0.44, "0.4 s"),
        (9.94, "9.9 s"),
        (9.97, "10 s"),
        (12.3, "12 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.7, "1 h 00 min"),
        (3720, "1 h 02 min"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (167_000_000, "167.0 MB"),
        (999_999_999, "1.0 GB"),
        (3e12, "3.0 TB"),
    ],
)
def test_size(amount: float, text: str) -> None:
    assert progress.size(amount) == text
