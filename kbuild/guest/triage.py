"""Find the reports in a kernel's log, group them by bug, decode them and show them.

A table of patterns matches the lines that start a report.  A list matches lines that only look
like one.  A report's stacks give its fingerprint, which is the same for all reports of one bug: it
does not depend on their number, CPU or addresses.  Functions of our modules are decoded to source
lines.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kbuild.guest import decoding
from kbuild.guest.console import MARK
from kbuild.guest.decoding import Location
from kbuild.guest.outcome import Outcome


@dataclass(frozen=True)
class Pattern:
    """One kind of line that starts a report."""

    outcome: Outcome
    name: str
    regex: re.Pattern[str]  # an optional group "detail" is part of the bug's kind
    end: re.Pattern[str]  # matches the last line of such a report


@dataclass(frozen=True)
class Frame:
    """One function on a stack."""

    function: str  # in the kernel's form: func.cold, func.isra.0
    offset: int
    module: str | None  # None for a function of the kernel itself
    exact: bool  # the offset is that of the instruction itself, not a return address
    line: int  # in the report's excerpt, from 0

    @property
    def name(self) -> str:
        """The function's name in the source, without suffixes from the compiler."""
        return re.sub(r"\.(isra|constprop|part|cold)(\.\d+)?", "", self.function)


@dataclass(frozen=True)
class Stack:
    """Frames under one heading, the innermost first."""

    label: str  # "" for the place of the fault; otherwise one of _HEADINGS, or "held"
    frames: tuple[Frame, ...]


@dataclass(frozen=True)
class Report:
    """One complaint of the kernel, with its lines."""

    outcome: Outcome
    name: str
    title: str  # the line that matched, without its timestamp
    line: int  # in the text, from 1
    excerpt: str
    whole: bool  # the last line of such a report was found
    # In a decoded report: line of the excerpt -> source lines, the innermost inlined one first.
    locations: Mapping[int, tuple[Location, ...]] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Bug:
    """The reports with one fingerprint."""

    fingerprint: str
    count: int
    first: Report


_RULE = re.compile(r"^={20,}$")
_TRACE_END = re.compile(r"^\s*</TASK>|---\[ end ")
_WARN_END = re.compile(r"---\[ end ")
_PANIC_END = re.compile(r"---\[ end Kernel panic|^Kernel Offset: ")
_LEAK_END = re.compile(r"^unreferenced object ")


# The line of a WARN: "CPU: 1 PID: 5 at file:line func+...", and in Linux 7
# "file:line at func+..., CPU#1: comm/5".
_WARN_LINE = r"WARNING: (CPU: \d+ PID: \d+|.*\bat .+, CPU#\d+: )"


def _table(
    outcome: Outcome, end: re.Pattern[str], rows: Iterable[tuple[str, str]]
) -> tuple[Pattern, ...]:
    return tuple(Pattern(outcome, name, re.compile(regex), end) for name, regex in rows)


# The first pattern that matches a line names it, so special ones come before general ones.  The
# last rows of WARNED match every other BUG: and WARNING:.
PATTERNS: tuple[Pattern, ...] = (
    *_table(
        Outcome.HUNG,
        _TRACE_END,
        (
            ("soft lockup", r"BUG: soft lockup|panic - not syncing: softlockup"),
            ("hard lockup", r"Watchdog detected hard LOCKUP|panic - not syncing: Hard LOCKUP"),
            ("RCU stall", r"rcu: INFO: rcu_\w+ .*stall|panic - not syncing: RCU Stall"),
            ("hung task", r"INFO: task .* blocked .*for more than|not syncing: hung_task"),
            ("workqueue lockup", r"BUG: workqueue lockup"),
        ),
    ),
    *_table(
        Outcome.REPORTED,
        _RULE,
        (
            ("KASAN", r"BUG: KASAN: (?P<detail>[\w-]+)"),
            ("KFENCE", r"BUG: KFENCE: (?P<detail>[\w -]+?) in "),
            ("KCSAN", r"BUG: KCSAN: (?P<detail>[\w-]+)"),
            ("KMSAN", r"BUG: KMSAN: (?P<detail>[\w-]+)"),
            ("UBSAN", r"UBSAN: (?P<detail>[\w-]+) in "),
        ),
    ),
    *_table(
        Outcome.BLIND,
        _TRACE_END,
        (
            ("lockdep exhausted", r"BUG: MAX_(LOCK|STACK_TRACE)\w+ too low"),
            ("kmemleak off", r"kmemleak: (Kernel memory leak detector disabled|Memory pool empty)"),
        ),
    ),
    *_table(
        Outcome.REPORTED,
        _TRACE_END,
        (
            ("sleeping in atomic", r"BUG: sleeping function called from invalid context"),
            ("scheduling while atomic", r"BUG: scheduling while atomic"),
            ("RCU usage", r"WARNING: suspicious RCU usage"),
            ("lockdep", r"WARNING: (?P<detail>possible (circular|recursive|irq) lock[\w ]*?) d"),
            ("lockdep", r"WARNING: .*(?P<detail>unsafe lock order|inconsistent lock state)"),
            ("lockdep", r"WARNING: (?P<detail>bad unlock balance|bad contention|held lock freed)"),
            ("lockdep", r"WARNING: (?P<detail>lock held when returning|Nested lock was not taken)"),
            ("lockdep", r"WARNING: .*(?P<detail>still has locks held|chain_key collision)"),
            ("lockdep", r"\[ BUG: (?P<detail>Invalid wait context)"),
            ("lockdep", r"INFO: (?P<detail>trying to register non-static key)"),
            ("spinlock", r"BUG: (spinlock|rwlock) (?P<detail>[a-z -]+)"),
            ("slab", r"BUG \S+ \(.*\): (?P<detail>.+?)(?: \d+/0x|$)|(?P<corrupt>Slab corruption)"),
            ("slab", r"(?P<detail>Objects remaining) in \S+ on"),
            ("bad page", r"BUG: Bad (?P<detail>page|rss-counter|pagetable)"),
            ("page poisoning", r"pagealloc: (memory corruption|single bit error)"),
        ),
    ),
    *_table(
        Outcome.REPORTED,
        _WARN_END,
        (
            ("context switch under RCU", r"oluntary context switch within RCU"),
            ("context switch under RCU", r"Illegal context switch in RCU"),
            # 5.10 has only this line; newer kernels print the ones above before it.
            ("context switch under RCU", r"WARNING: .*\brcu_note_context_switch\+0x"),
            ("locking", r"DEBUG_LOCKS_WARN_ON\((?P<detail>.+)\)"),
            ("debug objects", r"ODEBUG: (?P<detail>\w+ \w+) .*?object type: \w+"),
            ("list corruption", r"(?P<detail>list_(add|del)) (double add|corruption)"),
        ),
    ),
    *_table(
        Outcome.LEAKED,
        _LEAK_END,
        (
            ("kmemleak", r"kmemleak: \d+ new suspected memory leaks"),
            ("kmemleak", r"^unreferenced object( \(\w+\))? 0x[0-9a-f]+ \(size \d+\)"),
        ),
    ),
    *_table(
        Outcome.CRASHED,
        _WARN_END,
        (
            ("NULL dereference", r"BUG: kernel NULL pointer dereference"),
            ("page fault", r"BUG: unable to handle "),
            ("BUG()", r"kernel BUG at "),
            ("general protection", r"general protection fault"),
            ("stack overflow", r"BUG: stack guard page|stack-protector: Kernel stack"),
            ("oops", r"^Oops: |invalid opcode: 0000|divide error: 0000|double fault: 0000"),
        ),
    ),
    *_table(
        Outcome.CRASHED,
        _PANIC_END,
        (("panic", r"Kernel panic - not syncing: (?P<detail>.*)"),),
    ),
    *_table(
        Outcome.WARNED,
        _WARN_END,
        (
            ("refcount", r"refcount_t: (?P<detail>[\w -]+)"),
            # The count of struct file has other messages: in 6.12, and in 7.3.
            ("refcount", r"struct file::f_count (?P<detail>[\w -]+)"),
            ("refcount", r"(?P<detail>(file_ref_inc\(\)|imbalanced put) on .*file reference)"),
            ("WARN", _WARN_LINE),
            ("unknown BUG", r"\bBUG: "),
            ("unknown warning", r"\bWARNING: "),
        ),
    ),
)

# Lines that look like reports but are none.
IGNORED: tuple[re.Pattern[str], ...] = tuple(
    re.compile(regex)
    for regex in (
        # Advice about the CPU's vulnerabilities, on every machine that has them.
        r"^Spectre V\d : WARNING: Unprivileged eBPF",
        r"^(MDS|MMIO|TAA|RETBleed|Spectre V\d) ?:? .*WARNING:",
        r"\[Firmware (Bug|Warn)\]",
        r"^(ODEBUG|KFENCE|kfence): (selftest|initialized|Out of memory)",
        r"^UBSAN: .* enabled",
        # The kernel itself has many known and intended races.  In a race of ours, one of the two
        # functions is in a module, whose name follows in brackets.
        r"BUG: KCSAN: [^\[]+$",
        # Messages of KCSAN at boot, and the end of its reports.
        r"^kcsan: (enabled|selftest|strict)",
        r"^Reported by Kernel Concurrency Sanitizer",
    )
)

# Lines that belong to the report that they are in, or that they follow: an oops prints "BUG:",
# "Oops:" and "Kernel panic"; a WARN prints its own message and then "WARNING:".
_CONSEQUENCE_OF_ANY = re.compile(
    r"^Oops: |^invalid opcode: 0000"
    r"|Kernel panic - not syncing: (Fatal exception|.*panic_on_warn|softlockup|hung_task"
    r"|RCU Stall|Hard LOCKUP|stack-protector|corrupted stack)"
)
_CONSEQUENCE_OF_WARN = re.compile(_WARN_LINE)
_SAID_BEFORE_WARN = {
    "refcount",
    "list corruption",
    "debug objects",
    "context switch under RCU",
    "locking",
}

# The kernel's own lines have at most 1,024 bytes; programs and firmware write longer ones.  Those
# are matched in pieces, because the patterns' time grows at least with the square of the length.
# The pieces overlap by more than the start of a report needs.
_LINE_MOST = 1024
_OVERLAP = 256

_STAMP = re.compile(r"^(?:<\d+>)?\[ *\d+\.\d+\](?:\[ *[TC]\d+\])? ?")
_EXCERPT_LINES = 400

_FRAME = re.compile(
    r"^\s*(?:\[<[^>]*>\] )?(?P<doubt>\? )?(?P<rip>RIP: [0-9a-f]+:)?"
    r"(?P<function>[\w.]+)\+0x(?P<offset>[0-9a-f]+)/0x[0-9a-f]+(?: \[(?P<module>[\w-]+)\])?\s*$"
)
_HELD_AT = re.compile(
    r", at: (?P<function>[\w.]+)\+0x(?P<offset>[0-9a-f]+)/0x[0-9a-f]+(?: \[(?P<module>[\w-]+)\])?"
)
_HEADINGS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(regex), label)
    for regex, label in (
        (r"^Allocated (by task|in )", "allocated"),
        (r"^Freed (by task|in )", "freed"),
        (r"^(Last|Second to last) potentially related work", "queued"),
        (r"^-> #\d+ \(|state was registered at:$", "order"),
        (r"^Preemption disabled at:", "disabled"),
        (r"^(stack backtrace:|Call Trace:|\s+backtrace\b.*:$)", ""),
        (r"(read|write|assert).* to 0x[0-9a-f]+ of \d+ bytes by .*:$", "access"),
    )
)
# Functions on a stack that are never at fault: those that report, and those that only serve
# their caller.  syzkaller keeps such a list for the same reason.
_GENERIC = re.compile(
    r"^(dump_stack\w*|show_stack|print_\w+|__warn\w*|__WARN_trap|warn_slowpath\w*|report_bug|handle_bug"
    r"|_*kasan_\w+|_*asan_\w+|q(uarantine|list)_\w+|check_(memory_region|region\w*|object|slab\w*|bytes\w*)"
    r"|_*kcsan_\w+|_*tsan_\w+|slab_\w+|object_err|free_debug_processing|check_poison\w*"
    r"|__might_\w+|__schedule\w*|schedule(_timeout\w*)?|preempt_schedule\w*|rcu_note_context_switch"
    r"|check_(noncircular|prev\w*|deadlock\w*)|validate_chain|_*lock_acquire\w*|lock_release"
    r"|lockdep_\w+|mark_(lock|usage|held_locks)|debug_\w+|do_raw_\w+|_*raw_(spin|read|write)_\w+|_*mutex_\w+|msleep\w*"
    r"|refcount_\w+|__list_(add|del)_\w+|memcpy|memset|memmove|_*kmalloc\w*|_*kmem_cache_\w+"
    r"|k?free|kfree_\w+|_*kfree|___?slab_\w+|_*get_free_pages|_*alloc_pages\w*|get_page_from_\w+"
    r"|post_alloc_hook|_*kernel_(un)?poison_pages|asm_\w+|exc_\w+|page_fault_oops|do_user_addr_\w+"
    r"|_copy_(to|from)_\w+|_*sysvec_\w+|panic|oops_\w+|die\w*|ret_from_fork\w*)$"
)
_FRAMES_OF_A_FINGERPRINT = 3
_FRAMES_SHOWN = 8
# Lines of a report that a reader does not need.
_NOISE = re.compile(
    r"^(Code: |RIP: 0033|(?!RIP)[RE][A-Z0-9]{2}: |(CS|FS|CR2|PKRU|DR\d): )"
    r"|^(Hardware name:|Modules linked in:)"
    r"|^(irq event stamp|(hard|soft)irqs last)|^\s*\? |^\s*$"
)
_NUMBERS = re.compile(r"\b(0x)?[0-9a-f]*\d[0-9a-f]*\b|#\d+")


def strip_stamp(line: str) -> str:
    """Return a kernel log line without its timestamp."""
    return _STAMP.sub("", line)


def classify(line: str) -> Pattern | None:
    """Return the pattern of a line without its timestamp, or None for a harmless line."""
    if len(line) > _LINE_MOST:
        return classify(_capped(line))
    if MARK in line or any(ignored.search(line) for ignored in IGNORED):
        return None
    return next((p for p in PATTERNS if p.regex.search(line)), None)


def _capped(line: str) -> str:
    """Return a line; of a long one, the piece that starts a report, or else the first."""
    if len(line) <= _LINE_MOST:
        return line
    starts = range(0, len(line) - _OVERLAP, _LINE_MOST - _OVERLAP)
    pieces = [line[start : start + _LINE_MOST] for start in starts]
    found = [(PATTERNS.index(kind), piece) for piece in pieces if (kind := classify(piece))]
    # A piece that ends within a report's first words may match only a general pattern.
    return min(found)[1] if found else pieces[0]


def scan(text: str) -> tuple[Report, ...]:
    """Return all reports in a console's text, or in that of kmemleak's file, in order.

    The consequences of a report belong to it and start no other one: an oops's panic, or the
    WARNING line of a WARN with a message of its own.
    """
    lines = [_capped(strip_stamp(line).rstrip()) for line in text.splitlines()]
    reports: list[Report] = []
    inside_until, names = 0, set[str]()
    for number, line in enumerate(lines):
        pattern = classify(line)
        if pattern is None:
            continue
        if number >= inside_until:
            names.clear()
        if pattern.name in names or _follows(line, reports, names):
            continue
        last, whole = _end_of_report(lines, number, pattern)
        inside_until = max(inside_until, last)
        names.add(pattern.name)
        reports.append(
            Report(
                outcome=pattern.outcome,
                name=pattern.name,
                title=line.strip(),
                line=number + 1,
                excerpt="\n".join(lines[number:last]),
                whole=whole,
            )
        )
    return tuple(reports)


def _follows(line: str, reports: Sequence[Report], inside: set[str]) -> bool:
    if _CONSEQUENCE_OF_ANY.search(line):
        return bool(inside) or any(
            report.outcome in (Outcome.CRASHED, Outcome.HUNG) for report in reports[-1:]
        )
    return bool(_CONSEQUENCE_OF_WARN.search(line) and inside & _SAID_BEFORE_WARN)


def _end_of_report(lines: list[str], start: int, pattern: Pattern) -> tuple[int, bool]:
    """Return the number of the line after a report, and whether the report's end was found."""
    limit = min(len(lines), start + _EXCERPT_LINES)
    for number in range(start + 1, limit):
        line = lines[number]
        if MARK in line or (pattern.end is _LEAK_END and pattern.end.search(line)):
            return number, True
        if pattern.end.search(line):
            return number + 1, True
        if _RULE.match(line):
            return number, True
    return limit, False


def stacks(report: Report) -> tuple[Stack, ...]:
    """Return a report's stacks in order, without the frames that the kernel marks as doubtful."""
    found: list[tuple[str, list[Frame]]] = [("", [])]
    held: list[Frame] = []
    for number, line in enumerate(report.excerpt.splitlines()):
        label = next((label for regex, label in _HEADINGS if regex.search(line)), None)
        # The RIP of an oops is the top of the trace that follows below the registers.
        if label is not None and not (label == found[-1][0] == ""):
            found.append((label, []))
        frame = _FRAME.match(line)
        if frame is not None and not frame["doubt"]:
            found[-1][1].append(_frame(frame, number))
        elif (taken := _HELD_AT.search(line)) is not None:
            held.append(_frame(taken, number))
    listed = [Stack(label, tuple(frames)) for label, frames in found if frames]
    return (*listed, *([Stack("held", tuple(held))] if held else ()))


def _frame(match: re.Match[str], line: int) -> Frame:
    exact = bool(match.groupdict().get("rip"))
    return Frame(match["function"], int(match["offset"], 16), match["module"], exact, line)


def fingerprint(report: Report) -> str:
    """Return the bug's identity: its kind, and the functions that lead to the fault.

    The first function is the innermost one that is not generic.  If modules are on the stack, the
    others are functions of modules.  Addresses, offsets, sizes and process ids are left out.
    """
    kind = _kind(report)
    listed = stacks(report)
    races = [stack for stack in listed if stack.label == "access"]
    if races:
        return f"{kind}: {' / '.join(sorted(_path(stack)[0] for stack in races))}"
    primary = _primary(listed)
    if primary is None:
        return f"{kind}: {_NUMBERS.sub('#', report.title)}"
    return f"{kind}: {' < '.join(_path(primary))}"


def _kind(report: Report) -> str:
    for pattern in PATTERNS:
        found = pattern.regex.search(report.title) if pattern.name == report.name else None
        if found is not None:
            detail = found.groupdict().get("detail")
            return f"{report.name} {detail}" if detail else report.name
    return report.name


def _primary(listed: Sequence[Stack]) -> Stack | None:
    for label in ("", "access", "held"):
        for stack in listed:
            if stack.label == label:
                return stack
    return listed[0] if listed else None


def _path(stack: Stack) -> list[str]:
    """Return the names of a stack's relevant functions, the innermost first."""
    telling = [f for f in stack.frames if f.module or not _GENERIC.match(f.name)] or stack.frames
    if any(frame.module for frame in telling):
        telling = [telling[0], *(frame for frame in telling[1:] if frame.module)]
    names = [frame.name for frame in telling]
    unlike = [name for i, name in enumerate(names) if name != names[i - 1] or i == 0]
    return unlike[:_FRAMES_OF_A_FINGERPRINT]


def group(reports: Iterable[Report]) -> tuple[Bug, ...]:
    """Group reports by fingerprint, in the order of their first appearance."""
    found: dict[str, list[Report]] = {}
    for report in reports:
        found.setdefault(fingerprint(report), []).append(report)
    return tuple(Bug(mark, len(same), same[0]) for mark, same in found.items())


def decode(report: Report, modules: Mapping[str, Path]) -> Report:
    """Add the source lines of the frames in ``modules`` (name -> .ko with DWARF).

    A module that is missing or has no debugging information adds nothing.
    """
    wanted: dict[str, dict[Frame, decoding.Place]] = {}
    for frame in (frame for stack in stacks(report) for frame in stack.frames):
        if frame.module in modules:
            # A return address is after the call, and may belong to the next line.
            offset = frame.offset if frame.exact else frame.offset - 1
            place = decoding.Place(frame.function, offset)
            wanted.setdefault(frame.module or "", {})[frame] = place
    locations: dict[int, tuple[Location, ...]] = {}
    for name, frames in wanted.items():
        known = decoding.locate(modules[name], frames.values())
        for frame, place in frames.items():
            if place in known:
                locations[frame.line] = known[place]
    return dataclasses.replace(report, locations=locations)


def render(
    reports: Iterable[Report],
    *,
    modules: Mapping[str, Path] | None = None,
    again: str | None = None,
    console: Path | None = None,
    excerpt_lines: int = 40,
) -> str:
    """Return a text for readers with each bug once, its source lines first; "" for no reports.

    ``again`` is the command that shows the bugs again, and ``console`` the file with the rest.
    The text has ``excerpt_lines`` lines of the first report itself.
    """
    bugs = group(reports)
    if not bugs:
        return ""
    decoded = [decode(bug.first, modules or {}) for bug in bugs]
    total = sum(bug.count for bug in bugs)
    parts = [
        f"{_counted(total, 'report')}, {_counted(len(bugs), 'bug')}",
        *(_show(bug, report) for bug, report in zip(bugs, decoded, strict=True)),
        f"the kernel's first report:\n{_indented(_excerpt(decoded[0], excerpt_lines))}",
    ]
    tail = [f"again:    {again}"] if again else []
    tail += [f"console:  {console}"] if console else []
    return "\n\n".join([*parts, *(["\n".join(tail)] if tail else [])])


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _show(bug: Bug, report: Report) -> str:
    seen = f"seen {bug.count} times, first " if bug.count > 1 else ""
    lines = [bug.fingerprint, f"  {report.title}", f"  {seen}on line {report.line} of the console"]
    listed = stacks(report)
    primary = _primary(listed)
    for stack in listed:
        if stack is primary or stack.label in ("access", "order"):
            lines += [f"  {stack.label or 'at'}:", *_places(stack, report)]
        elif stack.label in ("allocated", "freed"):
            lines.append(f"  {stack.label} by {' < '.join(_path(stack))}")
    return "\n".join(lines)


def _places(stack: Stack, report: Report) -> list[str]:
    """Return one line for each function of a stack, with its source line if that is known."""
    telling = [f for f in stack.frames if f.module or not _GENERIC.match(f.name)] or stack.frames
    last = max((i for i, frame in enumerate(telling) if frame.module), default=_FRAMES_SHOWN)
    lines = []
    # The frames after a module's last function show its caller.
    for frame in telling[: last + 3]:
        where = report.locations.get(frame.line, ())
        for place in where:
            inlined = " (inlined)" if place is not where[-1] else ""
            lines.append(f"    {place.function}  {place.file}:{place.line}{inlined}")
        if not where:
            lines.append(f"    {frame.name}" + (f" [{frame.module}]" if frame.module else ""))
    return lines


def _excerpt(report: Report, limit: int) -> str:
    """Return a report's text with source lines, and without registers and code bytes."""
    shown = []
    for number, line in enumerate(report.excerpt.splitlines()):
        if _NOISE.match(line):
            continue
        where = report.locations.get(number, ())
        place = " <- ".join(f"{one.file}:{one.line}" for one in where)
        shown.append(f"{line}  ({place})" if place else line)
    rest = len(shown) - limit
    return "\n".join([*shown[:limit], *([f"... and {rest} more lines"] if rest > 0 else [])])


def _indented(text: str) -> str:
    return "\n".join(f"  {line}".rstrip() for line in text.splitlines())
