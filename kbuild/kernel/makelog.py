"""Read the output of the kernel's make: progress, and the first error."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator

from kbuild.core import progress

# make's line for one object, whatever made it (archives and programs are not objects), and its
# lines about errors.
_OBJECT = re.compile(r"^  [A-Z]+(?: \[M\])?\s+\S+\.o$")
_QUIET_LINE = re.compile(r"^  [A-Z0-9_]+(?: \[M\])?\s")
_ERROR = re.compile(
    r"(?:\b(?:fatal )?error: |^ERROR: |undefined reference to|\*\*\* |: No such file or directory)"
)
# make's own exit statuses; any other means that something else ended it.
_MAKE_ENDS = (0, 1, 2)
_MAKE_ERROR = re.compile(r"^make(?:\[\d+\])?: \*\*\* ")


@contextlib.contextmanager
def compiling(what: str, expected: int, *, there: int = 0) -> Iterator[Callable[[str], None]]:
    """Show make's progress by the objects that it names; the yielded function takes its lines.

    ``expected`` is the number of objects in the end, ``there`` the number before make starts.
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

    make finishes the work that it has begun, so a log's last lines are rarely the cause.
    """
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if _ERROR.search(line) and not _MAKE_ERROR.match(line):
            start = number
            # A compiler names the function before the error.
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
