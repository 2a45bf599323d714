"""Write docs/reference/commands.md from the options of the tasks.

.venv/bin/python -m tests.commands_page
"""

from __future__ import annotations

import inspect
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import tasks
from kbuild.cli import Command
from kbuild.options import Option

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "commands.md"
# An option of so many tasks is described once.
_COMMON = 3

_HEAD = """\
# Commands

<!-- Written by `.venv/bin/python -m tests.commands_page`; edit tasks.py and kbuild/options.py. -->

`./inv --list` lists the tasks, and `./inv --help TASK` shows the options of one.

These options of `./inv` come before the task:

| option | meaning |
| --- | --- |
| `--dry` | the task only says what it would do |
| `--echo` | each command that the task runs is shown |
| `--config=FILE` | configuration file for this run |
| `--print-completion-script=SHELL` | completion for `bash`, `zsh` or `fish`; needs `inv` in PATH |

A task refuses an option that would have no effect next to another one.
The [configuration](configuration.md) sets defaults for many options; the command line has
precedence.
Each [exit status](exit-status.md) tells whose failure it is.
With `--json`, a task writes [one JSON document](json.md) to standard output.
"""


def commands() -> Iterator[tuple[str, Command]]:
    """Yield each task as it is typed, in the order of tasks.py."""
    yield from ((one.name.replace("_", "-"), one) for one in tasks.VERBS)
    yield from (*tasks.KEYS.items(), *tasks.TRIALS.items(), *tasks.BENCHES.items())


def table(options: Iterable[Option]) -> list[str]:
    """Return a Markdown table of options."""
    rows = [
        f"| `{one.typed}` | {one.help}{' (repeatable)' if one.kind is list else ''}"
        f" | {', '.join(f'`{choice}`' for choice in one.choices)} | {one.shown_default} |"
        for one in options
    ]
    return ["| option | meaning | choices | default |", "| --- | --- | --- | --- |", *rows, ""]


def page() -> str:
    """Return the text of the page."""
    used = Counter(option for _, one in commands() for option in one.options)
    common = [option for option, number in used.items() if number >= _COMMON]
    lines = [_HEAD, "## Common options", "", *table(common)]
    for name, one in commands():
        summary, *more = inspect.cleandoc(one.__doc__ or "").split("\n\n")
        *text, example = more
        own = [option for option in one.options if option not in common]
        shared = [option.typed for option in one.options if option in common]
        lines += [f"## {name}", "", *(line for part in (summary, *text) for line in (part, ""))]
        options = "".join(f" [{option.name.upper()}]" for option in one.options if option.first)
        options += " [options]" if one.options else ""
        lines += ["```", *dict.fromkeys((f"./inv {name}{options}", example)), "```", ""]
        lines += table(own) if own else []
        if shared:
            words = f"Common options: {', '.join(f'`{typed}`' for typed in shared)}."
            lines += [textwrap.fill(words, 100, break_on_hyphens=False), ""]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
