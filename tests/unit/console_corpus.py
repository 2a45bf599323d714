"""Recorded consoles: write, refresh and check their expected results.

python -m tests.unit.console_corpus                         write every expectation anew
python -m tests.unit.console_corpus NAME CONSOLE [MARK]     record a console, or MARK's part

Read the difference that it makes before it is committed: what is written is what triage
says now, right or wrong.
"""

from __future__ import annotations

import sys
from pathlib import Path

from kbuild.guest import triage
from kbuild.guest.console import banner
from kbuild.guest.verdict import Evidence, judge
from tests.guests import between_marks

DIRECTORY = Path(__file__).parent / "data" / "console"

_AROUND = 3  # lines of a recorded console that are kept before and after each report


def split(path: Path) -> tuple[list[str], str]:
    """Return the expectations at the head of a recorded console, and the console."""
    lines = path.read_text().splitlines(keepends=True)
    length = next((i for i, line in enumerate(lines) if not line.startswith("# ")), len(lines))
    return [line.removeprefix("# ").rstrip() for line in lines[:length]], "".join(lines[length:])


def expectations(text: str) -> list[str]:
    """Return triage's results for a console: the verdict and each bug."""
    ended = text.rstrip().endswith("reboot: Power down")
    spoke = banner(text) is not None
    verdict = judge(
        Evidence(
            hello=spoke,
            banner=spoke,
            answered=ended,
            reports=triage.scan(text),
            farewell=0 if ended else None,
            power_off_event=ended,
            qemu_status=0,
            taint=0,
            status=0 if ended else None,
        )
    )
    bugs = [
        f"bug: {bug.fingerprint}" + (f" (seen {bug.count} times)" if bug.count > 1 else "")
        for bug in triage.group(triage.scan(text))
    ]
    return [f"verdict: {verdict.outcome.label}", *bugs]


def trim(text: str) -> str:
    """Return a console's beginning, its end, and the lines near its reports."""
    lines = text.splitlines()
    kept = {*range(2), *range(len(lines) - _AROUND, len(lines))}
    for report in triage.scan(text):
        first = report.line - 1
        last = first + report.excerpt.count("\n") + 1
        kept |= set(range(first - _AROUND, last + _AROUND))
    return "".join(f"{line}\n" for number, line in enumerate(lines) if number in kept)


def write(path: Path, text: str) -> None:
    """Write a recorded console with the current results as the expected ones."""
    path.write_text("".join(f"# {line}\n" for line in expectations(text)) + text)


def main(arguments: list[str]) -> None:
    """Do what the head of this file says."""
    if arguments:
        name, console, *mark = arguments
        text = Path(console).read_text(errors="replace").replace("\r\n", "\n")
        if mark:
            first = next(line for line in text.splitlines() if banner(line))
            text = f"{first}\n{between_marks(text, mark[0])}\n"
        write(DIRECTORY / f"{name}.log", trim(text))
    for path in sorted(DIRECTORY.glob("*.log")):
        write(path, split(path)[1])


if __name__ == "__main__":
    main(sys.argv[1:])
