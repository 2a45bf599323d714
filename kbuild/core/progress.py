"""Show progress: a bar at a terminal, an occasional line in a log file."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

logger = logging.getLogger(__name__)

_LOG_EVERY_S = 30.0

_STATUS_EVERY_S = 15.0

Advance = Callable[[float], None]


@contextlib.contextmanager
def bar(what: str, total: float | None, *, unit: str = "", initial: float = 0) -> Iterator[Advance]:
    """Show how far a piece of work is; the yielded function takes the amount done so far.

    ``unit`` is "bytes" for transfers (rate in bytes per second) or a plural noun ("objects").
    ``total`` None means unknown.  A terminal shows a bar with the time left; elsewhere, a line
    is logged every half a minute.
    """
    if sys.stderr.isatty():
        with _terminal_bar(what, total, unit, initial) as advance:
            yield advance
        return
    began = last = time.monotonic()

    def advance_log(done: float) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < _LOG_EVERY_S:
            return
        last = now
        logger.info("%s: %s", what, _describe(done, total, unit, now - began, initial))

    yield advance_log


@contextlib.contextmanager
def _terminal_bar(what: str, total: float | None, unit: str, initial: float) -> Iterator[Advance]:
    columns: list[ProgressColumn] = [TextColumn("{task.description}"), BarColumn()]
    if unit == "bytes":
        columns += [DownloadColumn(), TransferSpeedColumn()]
    else:
        columns += [TaskProgressColumn(), TextColumn(f"{{task.completed:.0f}} {unit}")]
    columns += [TimeElapsedColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total)
        progress.update(task, completed=initial)
        yield lambda done: progress.update(task, completed=done)


@contextlib.contextmanager
def status() -> Iterator[Callable[[str], None]]:
    """Keep one line up to date at a terminal; elsewhere, log it now and then."""
    if sys.stderr.isatty():
        with Console(stderr=True).status("") as shown:
            yield lambda text: shown.update(escape(text))
        return
    last = float("-inf")

    def log(text: str) -> None:
        nonlocal last
        if time.monotonic() - last >= _STATUS_EVERY_S:
            last = time.monotonic()
            logger.info("%s", text)

    yield log


def _describe(done: float, total: float | None, unit: str, elapsed_s: float, initial: float) -> str:
    scale, name = (1e6, "MB") if unit == "bytes" else (1.0, unit)
    amount = f"{done / scale:.0f}"
    if total:
        amount += f" of {total / scale:.0f}"
    text = f"{amount} {name}".strip()
    gained = done - initial
    if gained > 0 and elapsed_s > 0:
        if unit == "bytes":
            text += f", {gained / scale / elapsed_s:.1f} MB/s"
        if total and total > done:
            text += f", about {duration((total - done) * elapsed_s / gained)} left"
    return text


def duration(seconds: float) -> str:
    """Format a length of time for people: 0.4 s, 12 s, 3 min 05 s, 1 h 02 min."""
    if round(seconds, 1) < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(amount: float) -> str:
    """Format a number of bytes in decimal units, as disks and downloads are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if round(amount, 1) < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"
