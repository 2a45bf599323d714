"""Read what the kernel's make prints: progress, and the first error."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator

from kbuild.core import progress

# What make prints for one object, by whatever makes it (an archive or a program is none), and
# what it prints when something went wrong.
_OBJECT = re.compile(r"^  [A-Z]+(?: \[M\])?\s+\S+\.o$")
_QUIET_LINE = re.compile(r"^  [A-Z0-9_]+(?: \[M\])?\s")
_ERROR = re.compile(
    r"(?:\b(?:fatal )?error: |^ERROR: |undefined reference to|\*\*\* |: No such file or directory)"
)
# make's own statuses; with any other it was ended by something else.
_MAKE_ENDS = (0, 1, 2)
_MAKE_ERROR = re.compile(r"^make(?:\[\d+\])?: \*\*\* ")


@contextlib.contextmanager
def compiling(what: str, expected: int, *, there: int = 0) -> Iterator[Callable[[str], None]]:
    """Show how far make is by the objects that it names; the function given takes its lines.

    ``expected`` is how many there will be, ``there`` how many there are before it starts.
    """
    done, total = there, max(expected, there + 1)
    with progress.bar(what, total, unit="objects", initial=there) as advance:

        def on_line(line: str) -> None:
            nonlocal done
            if _OBJECT.match(line):
                done += 1
                advance(min(done, total))

        yield on_line


def first_error(text: str, *, context: int = 12) -> str:
    """Return the first error of a build log with the lines that belong to it.

    make goes on with what it had begun, so the last lines of a log are rarely the cause.
    """
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if _ERROR.search(line) and not _MAKE_ERROR.match(line):
            start = number
            # A compiler says which function it is in before it says what is wrong.
            while start > 0 and number - start < 4 and not _QUIET_LINE.match(lines[start - 1]):
                start -= 1
            end = number + 1
            while end < len(lines) and end - number < context and not _QUIET_LINE.match(lines[end]):
                end += 1
            return "\n".join(lines[start:end])
    for number, line in enumerate(lines):
        if _MAKE_ERROR.match(line):
            return "\n".join(lines[max(0, number - context) : number + 1])
    return "\n".join(lines[-context:])
