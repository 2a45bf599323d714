"""What the kernel's own log says went wrong: a table of patterns, and what to ignore."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from kbuild.vm.console import MARK
from kbuild.vm.outcome import Outcome


@dataclass(frozen=True)
class Pattern:
    """One kind of line that starts a report."""

    outcome: Outcome
    name: str
    regex: re.Pattern[str]


@dataclass(frozen=True)
class Report:
    """One thing that the kernel complained about, with its lines."""

    outcome: Outcome
    name: str
    title: str  # the line that gave it away, without its timestamp
    line: int  # in the text, from 1
    excerpt: str


def _table(outcome: Outcome, rows: Iterable[tuple[str, str]]) -> tuple[Pattern, ...]:
    return tuple(Pattern(outcome, name, re.compile(regex)) for name, regex in rows)


# The first pattern that matches a line names it: special before general.  The last rows of
# WARNED catch every BUG: and WARNING: that nobody has thought of.
PATTERNS: tuple[Pattern, ...] = (
    *_table(
        Outcome.HUNG,
        (
            ("soft lockup", r"BUG: soft lockup|panic - not syncing: softlockup"),
            ("hard lockup", r"Watchdog detected hard LOCKUP|panic - not syncing: Hard LOCKUP"),
            ("RCU stall", r"rcu: INFO: rcu_\w+ .*stall|panic - not syncing: RCU Stall"),
            ("hung task", r"INFO: task .* blocked for more than|not syncing: hung_task"),
            ("workqueue lockup", r"BUG: workqueue lockup"),
        ),
    ),
    *_table(
        Outcome.REPORTED,
        (
            ("KASAN", r"BUG: KASAN: "),
            ("KFENCE", r"BUG: KFENCE: "),
            ("KCSAN", r"BUG: KCSAN: "),
            ("KMSAN", r"BUG: KMSAN: "),
            ("UBSAN", r"UBSAN: "),
            ("sleeping in atomic", r"BUG: sleeping function called from invalid context"),
            ("scheduling while atomic", r"BUG: scheduling while atomic"),
            ("context switch under RCU", r"oluntary context switch within RCU"),
            ("context switch under RCU", r"Illegal context switch in RCU"),
            ("RCU usage", r"WARNING: suspicious RCU usage"),
            ("lockdep", r"WARNING: possible (circular|recursive|irq lock inversion)"),
            ("lockdep", r"WARNING: .*(unsafe lock order|inconsistent lock state)"),
            ("lockdep", r"WARNING: (bad unlock balance|held lock freed|lock held when)"),
            ("lockdep", r"WARNING: Nested lock was not taken|\[ BUG: Invalid wait context"),
            ("lockdep", r"DEBUG_LOCKS_WARN_ON|INFO: trying to register non-static key"),
            ("spinlock", r"BUG: spinlock |BUG: rwlock "),
            ("debug objects", r"ODEBUG: "),
            ("slab", r"BUG \S+ \(.*\): |Slab corruption|Objects remaining in \S+ on"),
            ("bad page", r"BUG: Bad (page|rss-counter|pagetable)"),
            ("list corruption", r"list_(add|del) corruption"),
        ),
    ),
    *_table(
        Outcome.LEAKED,
        (("kmemleak", r"kmemleak: \d+ new suspected memory leaks"),),
    ),
    *_table(
        Outcome.CRASHED,
        (
            ("NULL dereference", r"BUG: kernel NULL pointer dereference"),
            ("page fault", r"BUG: unable to handle "),
            ("BUG()", r"kernel BUG at "),
            ("general protection", r"general protection fault"),
            ("stack overflow", r"BUG: stack guard page|stack-protector: Kernel stack"),
            ("oops", r"^Oops: |invalid opcode: 0000|divide error: 0000|double fault: 0000"),
            ("panic", r"Kernel panic - not syncing"),
        ),
    ),
    *_table(
        Outcome.WARNED,
        (
            ("refcount", r"refcount_t: "),
            ("WARN", r"WARNING: CPU: \d+ PID: \d+"),
            ("unknown BUG", r"\bBUG: "),
            ("unknown warning", r"\bWARNING: "),
        ),
    ),
)

# Lines that look like reports and are none.
IGNORED: tuple[re.Pattern[str], ...] = tuple(
    re.compile(regex)
    for regex in (
        # Advice of the mitigations code about the CPU, on every machine that has it
        r"^Spectre V\d : WARNING: Unprivileged eBPF",
        r"^(MDS|MMIO|TAA|RETBleed|Spectre V\d) ?:? .*WARNING:",
        r"\[Firmware (Bug|Warn)\]",
        r"^(ODEBUG|KFENCE|kfence): (selftest|initialized|Out of memory)",
        r"^UBSAN: .* enabled",
    )
)

_STAMP = re.compile(r"^(?:<\d+>)?\[ *\d+\.\d+\](?:\[ *[TC]\d+\])? ?")
_END = re.compile(r"---\[ end (trace|Kernel panic)|^={20,}$")
_EXCERPT_LINES = 60


def strip_stamp(line: str) -> str:
    """Return a kernel log line without its timestamp."""
    return _STAMP.sub("", line)


def classify(line: str) -> Pattern | None:
    """Return the pattern that a line (without timestamp) matches, or None for a harmless one."""
    if MARK in line or any(ignored.search(line) for ignored in IGNORED):
        return None
    return next((p for p in PATTERNS if p.regex.search(line)), None)


def scan(text: str) -> tuple[Report, ...]:
    """Find every report in a console's text, in order.

    Lines inside a report's own trace do not start another one of the same name: an oops
    says "BUG:", "Oops:" and "Kernel panic", each once.
    """
    lines = [strip_stamp(line) for line in text.splitlines()]
    reports: list[Report] = []
    inside_until, inside_names = 0, set[str]()
    for number, line in enumerate(lines):
        pattern = classify(line)
        if pattern is None:
            continue
        if number >= inside_until:
            inside_names.clear()
        if pattern.name in inside_names:
            continue
        last = _end_of_report(lines, number)
        inside_until = max(inside_until, last)
        inside_names.add(pattern.name)
        reports.append(
            Report(
                outcome=pattern.outcome,
                name=pattern.name,
                title=line.strip(),
                line=number + 1,
                excerpt="\n".join(lines[number:last]),
            )
        )
    return tuple(reports)


def _end_of_report(lines: list[str], start: int) -> int:
    limit = min(len(lines), start + _EXCERPT_LINES)
    for number in range(start + 1, limit):
        # A rule of equals signs opens a report as well as it closes one.
        if _END.search(lines[number]) and number > start + 2:
            return number + 1
    return limit
