"""Find functions in the kernel's C sources, and explain why a patch's hunk has no place there."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from unidiff.patch import Hunk

EXPORT = re.compile(r"^EXPORT_SYMBOL(?:_GPL)?\((\w+)\);", re.MULTILINE)
# A function's head in the kernel's style begins in the first column.
_HEAD = re.compile(r"^(?!\s|EXPORT_SYMBOL|#|/|\*)[^;={}]*?\b(\w+)\(")
_CALL = re.compile(r"\b(\w+)\s*\(")
_HEAD_LINES = 12  # maximum length of a head
_CONTEXT = 3  # lines of a diff
_DIFFERENCES_SAID = 3


def function_span(lines: Sequence[str], name: str) -> tuple[int, int] | None:
    """Return the first and the last line (from 0) of a function in the kernel's style."""
    for start, line in enumerate(lines):
        match = _HEAD.match(line)
        if match is None or match[1] != name:
            continue
        # The head may take several lines; a declaration ends before any body begins.
        for at in range(start, min(start + _HEAD_LINES, len(lines))):
            if lines[at].rstrip().endswith(";"):
                break
            if lines[at].rstrip() == "{" or lines[at].rstrip().endswith(") {"):
                ends = (k for k in range(at, len(lines)) if lines[k].startswith("}"))
                return start, next(ends, len(lines) - 1)
    return None


def exported_function(text: str, symbol: str) -> str | None:
    """Return the name of the function directly before the export of ``symbol``.

    Return None if the text before it is not the end of a function.
    """
    match = re.search(rf"^EXPORT_SYMBOL(?:_GPL)?\({symbol}\);", text, re.MULTILINE)
    before = text[: match.start()] if match else ""
    if not before.endswith("\n}\n") or "\n{\n" not in before:
        return None
    head = before[: before.rindex("\n{\n")].splitlines()
    names = [found[1] for line in head if (found := _HEAD.match(line))]
    return names[-1] if names else None


def expected_lines(hunk: Hunk) -> list[str]:
    """Return the lines that a hunk expects in the source."""
    return [str(line.value).rstrip("\n") for line in hunk if not line.is_added]


def functions_of(hunk: Hunk, file: str) -> tuple[str, ...]:
    """Return the functions that a hunk shows, and the one that its header names."""
    names = [match[1] for line in expected_lines(hunk) if (match := _HEAD.match(line))]
    # In a header file, the hunk names only the last declaration above it.
    if file.endswith(".c") and (inside := _CALL.search(hunk.section_header)):
        names.append(inside[1])
    return tuple(dict.fromkeys(names))


def function_of(hunk: Hunk, file: str) -> str:
    """Return the function whose export a hunk adds, or in which it lies; "" for none."""
    fresh = "".join(str(line.value) for line in hunk if line.is_added)
    exported = [name for name in EXPORT.findall(fresh) if not _defines(fresh.splitlines(), name)]
    shown = [match[1] for line in expected_lines(hunk) if (match := _HEAD.match(line))]
    named = functions_of(hunk, file)
    return next(iter((*exported, *shown[-1:], *named[-1:])), "")


def _defines(lines: Sequence[str], name: str) -> bool:
    return function_span(lines, name) is not None


def whereabouts(lines: Sequence[str], name: str) -> str:
    """Describe where a source has a function now."""
    if span := function_span(lines, name):
        return f"is at line {span[0] + 1}"
    declared = re.compile(rf"^[A-Za-z].*\b{name}\(")
    at = next((k for k, line in enumerate(lines, 1) if declared.match(line)), None)
    return f"is declared at line {at}" if at else "is gone from it"


def _closest(old: Sequence[str], lines: Sequence[str]) -> int:
    """Return the line (from 0) at which a source is most similar to a hunk's lines."""
    matcher = difflib.SequenceMatcher(autojunk=False)
    matcher.set_seq2(list(old))
    wanted = set(old)

    def score(at: int) -> float:
        window = lines[at : at + len(old)]
        # The ratio is slow, and without a common line it is 0.
        if not any(line in wanted and line.strip() for line in window):
            return 0.0
        matcher.set_seq1(list(window))
        return matcher.ratio()

    return max(range(max(1, len(lines) - len(old) + 1)), key=score)


def refusal_reason(text: str | None, hunk: Hunk, function: str) -> str:
    """Describe in one line what a source has instead of the lines that a hunk expects."""
    if text is None:
        return "this kernel has no such file"
    lines = text.split("\n")
    if function and not _defines(lines, function):
        return f"this kernel has no {function}() there"
    wanted = expected_lines(hunk)
    best = _closest(wanted, lines)
    differing = [
        f"it expects {a.strip()!r}, but line {number} is {b.strip()!r}"
        for number, (a, b) in enumerate(zip(wanted, lines[best:], strict=False), best + 1)
        if a != b
    ]
    return "; ".join(differing[:_DIFFERENCES_SAID]) or "its place is already taken"


def change(
    hunk: Hunk, file: str, lines: Sequence[str], older: Sequence[str] | None
) -> tuple[list[str], bool]:
    """Return a diff to this source, and whether it starts from the older source.

    It starts from the older source if the hunk fits there and one of the hunk's functions has
    changed since.  Otherwise it starts from the lines that the hunk expects.
    """
    old = expected_lines(hunk)
    if older is not None and "\n".join(["", *old, ""]) in "\n".join(["", *older, ""]):
        changed = [
            line
            for name in functions_of(hunk, file)
            for line in _diff(_function(older, name), _function(lines, name))
        ]
        if changed:
            return changed, True
    return _like(old, lines), False


def _function(lines: Sequence[str], name: str) -> list[str]:
    span = function_span(lines, name)
    return list(lines[span[0] : span[1] + 1]) if span else []


def _like(old: Sequence[str], lines: Sequence[str]) -> list[str]:
    """Diff a hunk's lines against the most similar lines of the source."""
    if not lines:
        return []
    best = _closest(old, lines)
    diff = _diff(old, lines[max(0, best - _CONTEXT) : best + len(old) + _CONTEXT])
    # Lines of the source before and after the hunk's lines are context, not additions.
    first = next((k for k, line in enumerate(diff) if line[0] != "+"), 0)
    last = next((k for k in reversed(range(len(diff))) if diff[k][0] != "+"), len(diff))
    return [" " + line[1:] if not first <= k <= last else line for k, line in enumerate(diff)]


def _diff(old: Sequence[str], new: Sequence[str]) -> list[str]:
    text = difflib.unified_diff(list(old), list(new), lineterm="", n=_CONTEXT)
    return [line for line in text if not line.startswith(("---", "+++", "@@"))]
