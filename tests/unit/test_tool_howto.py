"""The examples of docs/howto/see-what-is-open.md print what the page says.

``python -m tests.unit.test_tool_howto`` writes their output into the page again.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
PAGE = PROJECT / "docs/howto/see-what-is-open.md"
EXAMPLE = re.compile(r"(?ms)^<!-- story: ([\w-]+) -->\n```\n\$ ([^\n]*)\n(.*?)```$")
EXAMPLES = EXAMPLE.findall(PAGE.read_text("utf-8"))


def output(story: str, command: str) -> str:
    """Return what an example prints if the module shows a recorded story."""
    assert shutil.which("jq"), "jq is not on this machine: run ./inv, which installs it"
    tool = (
        f'cplayground() {{ "$PYTHON" -m cplayground "$@" --from tests/stories/{story}.procfile; }}'
    )
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", f"{tool}\n{command}"],
        env={**os.environ, "PYTHON": sys.executable, "PYTHONUTF8": "1"},
        cwd=PROJECT,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout.decode()


@pytest.mark.parametrize(("story", "command", "expected"), EXAMPLES)
def test_an_example_prints_what_the_page_says(story: str, command: str, expected: str) -> None:
    assert expected
    assert output(story, command) == expected


def test_the_page_has_examples_with_jq() -> None:
    assert len([command for _story, command, _expected in EXAMPLES if "| jq " in command]) >= 4


if __name__ == "__main__":
    PAGE.write_text(
        EXAMPLE.sub(
            lambda one: f"<!-- story: {one[1]} -->\n```\n$ {one[2]}\n{output(one[1], one[2])}```",
            PAGE.read_text("utf-8"),
        ),
        encoding="utf-8",
    )
