"""The ``demo`` command: a first look at what the module and the tool show.

A guest with Debian's own kernel runs a student's program in a container.  The program forgets to
close a pipe's write end, so it never ends.  The tool finds that, and draws it.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable

from kbuild.answer import Answer
from kbuild.core import fs, progress
from kbuild.core.errors import KbuildError
from kbuild.core.model import MODULE, PROCFILE, Settings, Target
from kbuild.guest import session
from kbuild.guest.guest import Background, Guest, GuestResult
from kbuild.guest.outcome import Outcome
from kbuild.pipeline import images
from kbuild.ship.tool_package import PACKAGE

logger = logging.getLogger(__name__)

# The student's program, as the package has it, and where it runs in the guest.
_SOURCE = f"/usr/share/doc/{PACKAGE}/examples/words.c"
_HOME = "/srv"
_WORDS = "pear\napple\nfig\nbanana\n"
_SORTED = "apple\nbanana\nfig\npear\n"
# A PID namespace makes the container, and pid 1 in it is the program.
_CONTAINER = (
    *("unshare", "--pid", "--fork", "--kill-child", "--mount-proc"),
    *("sh", "-c"),
)
_FROM_FILE = 'exec "./$0" <fruit.txt >sorted.txt 2>&1'
# It reads from us, so we say when its input ends.
_FROM_US = 'exec "./$0" >sorted.txt 2>&1'
_TOOL_S = 20.0
_STUCK_S = 15.0
_BLOCKED, _ERROR = 1, "error: "  # the status and the first word of "cplayground check"
_ID = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")


class DemoError(KbuildError):
    """The guest did not show what the demo promises."""

    kind = "demo"
    exit_status = Outcome.FAILED.exit_status


def run(
    settings: Settings, target: Target, *, accel: str | None, say: Callable[[str], None]
) -> Answer:
    """Run the story in a guest, show what the tool says, and leave its pictures in build/demo/.

    Raises DemoError if the tool does not find the mistake, or finds one in the corrected
    program, and what :func:`images.stock_image` and :func:`session.judged` raise.
    """
    pictures = [settings.build / "demo" / name for name in ("story.svg", "story.html")]
    if settings.dry:
        say(f"would boot Debian's own kernel of {target.suite}, and draw {pictures[0]}")
        return Answer()
    began = time.monotonic()
    logger.info("the first run makes two small Debian systems and a disk, which later runs find")
    made = images.stock_image(settings, target)
    with session.judged(settings, made, variant=target.variant, stock=True, accel=accel) as guest:
        logger.info("compiling a student's program in the guest, with its mistake and without")
        for program, options in (("words", ()), ("words-closed", ("-DCLOSED",))):
            argv = ["gcc", *options, "-o", f"{_HOME}/{program}", _SOURCE]
            guest.run(argv, timeout_s=_TOOL_S, check=True)
        guest.put(_WORDS.encode(), f"{_HOME}/fruit.txt", mode=0o644)
        guest.run(["modprobe", MODULE], timeout_s=_TOOL_S, check=True)
        say(_with_mistake(guest))
        for picture in pictures:
            remote = f"/tmp/{picture.name}"
            guest.run([PACKAGE, "draw", "-o", remote], timeout_s=_TOOL_S, check=True)
            fs.write_atomic(picture, guest.read(remote))
        # With the first process of its PID namespace, the whole container ends.
        guest.run(["pkill", "-KILL", "unshare"], timeout_s=_TOOL_S, check=True)
        say(_corrected(guest))
    took = progress.duration(time.monotonic() - began)
    names = " and ".join(map(str, pictures))
    return Answer(data={"pictures": pictures}, summary=f"drew {names} in {took}")


def _with_mistake(guest: Guest) -> str:
    """Run the program until the tool finds that it waits for itself, and return what is seen."""
    _start(guest, _FROM_FILE, "words")
    deadline = time.monotonic() + _STUCK_S * guest.spec.scale
    # A Python that fails ends with the same status.
    while not ((found := _tool(guest, "check")).status == _BLOCKED and _ERROR in found.text):
        if time.monotonic() > deadline:
            raise DemoError(
                "the tool does not find the pipe that was not closed",
                expected=f"cplayground check to end with {_BLOCKED}",
                found=f"status {found.status}: {found.text}{found.stderr.decode()}".strip(),
            )
    file = _ID.sub(r"\1", guest.read(PROCFILE).decode(errors="replace"))
    source = guest.read(_SOURCE).decode()
    return "\n".join(
        (
            _part("the student's program"),
            source[source.index("int main") :],
            _part(f"{PROCFILE}, with 12 of the 64 digits of each id"),
            file,
            _part("cplayground ls"),
            _tool(guest, "ls", check=True).text,
            _part("cplayground check"),
            found.text,
        )
    )


def _corrected(guest: Guest) -> str:
    """Look for mistakes in the corrected program while it runs, and return its work.

    It runs until its input ends.
    """
    program = _start(guest, _FROM_US, "words-closed")
    program.write(_WORDS.encode())
    deadline = time.monotonic() + _STUCK_S * guest.spec.scale
    while b"\tsort\n" not in guest.read(PROCFILE):
        if time.monotonic() > deadline:
            raise DemoError(
                "the corrected program does not start", expected=f"sort(1) in {PROCFILE}"
            )
    found = _tool(guest, "check")
    program.close_stdin()
    program.wait(_TOOL_S, check=True)
    output = guest.read(f"{_HOME}/sorted.txt").decode()
    if found.status or output != _SORTED:
        raise DemoError(
            "the corrected program does not do its work",
            expected=_SORTED,
            found=f"{output}{found.text}",
        )
    title = "cplayground check, while the program with the close() runs"
    return "\n".join(
        (_part(title), found.text or "(nothing)\n", _part("its output, as it ends"), output)
    )


def _start(guest: Guest, script: str, program: str) -> Background:
    return guest.start([*_CONTAINER, script, program], cwd=_HOME)


def _tool(guest: Guest, *argv: str, check: bool = False) -> GuestResult:
    return guest.run([PACKAGE, *argv], timeout_s=_TOOL_S, check=check)


def _part(title: str) -> str:
    return f"--- {title} ---"
