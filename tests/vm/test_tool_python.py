"""The tool with the oldest Python that it supports: that of Debian 11."""

from __future__ import annotations

from pathlib import Path

import pytest

from kbuild.core import sandbox
from kbuild.core.model import Root, Settings
from kbuild.core.run import Completed
from kbuild.core.sandbox import Bind
from kbuild.fetch import roots

PROJECT = Path(__file__).resolve().parents[2]
STORY = "pipes-and-sockets.procfile"
# Each command of the tool that shows a file.
COMMANDS = (
    ("ls", "-l"),
    ("ps",),
    ("shared", "--across"),
    ("check", "--strict"),
    ("json",),
    ("json", "--lines"),
    ("draw", "-o", "/tmp/x.svg"),
    ("draw", "--all", "-o", "/tmp/x.html"),
    ("draw", "-o", "/tmp/x.dot"),
)


@pytest.fixture(scope="module")
def bullseye(settings: Settings) -> Root:
    """Debian 11 with its Python and nothing else."""
    return roots.make_root(settings, "bullseye", "python", ("python3",))


def python(root: Root, *argv: str, log: Path) -> Completed:
    binds = [
        Bind(PROJECT / "cplayground", "/mnt/tool/cplayground"),
        Bind(PROJECT / "tests/conformance", "/mnt/conformance"),
    ]
    env = {"PYTHONPATH": "/mnt/tool", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONWARNINGS": "error"}
    return sandbox.enter(
        root, ["python3", *argv], timeout_s=60, binds=binds, env=env, log=log, check=False
    )


def test_it_is_python_3_9(bullseye: Root, tmp_path: Path) -> None:
    assert python(bullseye, "--version", log=tmp_path / "log").stdout.startswith("Python 3.9.")


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_each_command_works(bullseye: Root, tmp_path: Path, command: tuple[str, ...]) -> None:
    source = ("--from", f"/mnt/conformance/{STORY}")
    done = python(bullseye, "-m", "cplayground", *source, *command, log=tmp_path / "log")
    assert done.returncode == 0, done.stdout


def test_all_modules_can_be_imported(bullseye: Root, tmp_path: Path) -> None:
    places = (PROJECT / "cplayground").rglob("*.py")
    names = [
        ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__")
        for path in places
    ]
    done = python(bullseye, "-c", f"import {', '.join(sorted(names))}", log=tmp_path / "log")
    assert done.returncode == 0, done.stdout
