"""Write what people and monitoring see of the rounds: index.html, status.json and metrics.prom.

The page is one file without scripts, so it needs nothing but a web server or a file manager.  The
logs of failures are copied next to it.  Texts of logs, changelogs and servers are hostile: each
value is escaped, and control characters and passwords are taken out.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import jinja2
from markupsafe import Markup

from kbuild.core import fs, progress
from kbuild.core.errors import UserError
from kbuild.core.secrets import redact
from kbuild.watch import metrics, state, summary
from kbuild.watch.state import Status, Told
from kbuild.watch.summary import Problem, Tone

PAGE = "index.html"
METRICS = "metrics.prom"
LOGS = "logs"

# A copy of the end of a log lies next to the page, and its last lines are in the page.
_COPIED = 256 * 1024  # bytes
_SHOWN_LINES, _SHOWN_COLUMNS = 40, 400
# Characters that would change how the text around them is shown: controls, and overrides of the
# direction of writing (UAX #9).
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
# A terminal's colours and movements (ECMA-48).
_ESCAPE = re.compile("\x1b\\[[0-?]*[ -/]*[@-~]|\x1b[@-Z\\\\-_]")
_UNSAFE = re.compile(r"[^A-Za-z0-9.+~-]+")
_COLOURS = {Tone.GOOD: "#1a7f42", Tone.BUSY: "#2563b0", Tone.UNSURE: "#8a6100", Tone.BAD: "#b3261e"}


@dataclass(frozen=True)
class Log:
    """The end of a failure's log; without lines, ``note`` says why."""

    path: str  # where the whole of it lies on the releaser
    copy: str = ""  # relative to the page
    lines: tuple[str, ...] = ()  # the last ones
    note: str = ""


def write(status: Status, into: Path) -> None:
    """Write the files of a status below ``into``/status, each by rename.

    ``into`` is the archive's directory.  Copies of logs that the page does not name are removed.
    """
    home = into / state.HOME
    home.mkdir(exist_ok=True)
    answers = summary.summarize(status)
    logs = {one.key: _copy(one, home) for one in answers.problems if one.error and one.error.log}
    fs.write_atomic(home / PAGE, render(status, logs))
    fs.write_atomic(home / METRICS, metrics.render(status))
    state.write_status(into, status)
    named = {one.copy for one in logs.values()}
    for path in (home / LOGS).glob("*.txt"):
        if f"{LOGS}/{path.name}" not in named:
            path.unlink()


def render(status: Status, logs: dict[str, Log]) -> str:
    """Return the page; ``logs`` are by the key of their problem."""
    here = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(here),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    style = (here / "page.css").read_text(encoding="utf-8")
    answers = summary.summarize(status)
    now = summary.moment(summary.written(status))
    icon = (
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'>"
        f"<circle cx='8' cy='8' r='7' fill='{_COLOURS[answers.tone]}'/></svg>"
    )
    return environment.get_template("page.html.j2").render(
        status=status,
        answers=answers,
        logs=logs,
        judged=summary.judged(status),
        style=Markup(style),
        # Only this style is applied, whatever the page contains.
        digest=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        icon=base64.b64encode(icon.encode()).decode(),
        now=now,
        anchor=_anchor,
        left=lambda text: summary.moment(text) - now,
        nothing=timedelta(),
        moment=summary.moment,
        signed=summary.SIGNED,
        when=summary.when,
        span=summary.span,
        duration=progress.duration,
        yes=Told.YES,
    )


def _shown(value: object) -> object:
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return clean(redact(value))


def _anchor(key: str) -> str:
    """Return the key of a problem as the name of a file, and of a place in the page."""
    return _UNSAFE.sub("-", key).strip("-.")


def clean(text: str) -> str:
    """Return a text without a terminal's commands and without invisible characters."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", _ESCAPE.sub("", text))


def _copy(problem: Problem, home: Path) -> Log:
    """Copy the end of a failure's log next to the page, without passwords."""
    assert problem.error is not None and problem.error.log is not None
    path = problem.error.log
    try:
        with fs.open_own(Path(path), "rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - _COPIED))
            raw = stream.read(_COPIED)
    except (OSError, UserError, ValueError) as error:
        return Log(path, note=f"it cannot be read: {error}")
    text = clean(raw.decode(errors="replace").replace("\r\n", "\n"))
    if size > _COPIED:
        # The first line may begin in the middle of an address, where no password is recognised.
        text = text.partition("\n")[2]
    text = redact(text)
    name = f"{_anchor(problem.key)}.txt"
    cut = f"(the last {len(text.splitlines())} lines of {path})\n" if size > _COPIED else ""
    fs.write_atomic(home / LOGS / name, redact(cut) + text)
    shown = text.rstrip().splitlines()[-_SHOWN_LINES:]
    lines = tuple(one[:_SHOWN_COLUMNS] + ("…" if one[_SHOWN_COLUMNS:] else "") for one in shown)
    return Log(path, f"{LOGS}/{name}", lines, "" if lines else "it is empty")
