"""The command line for tests: as a process of its own, or faster in this one."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from invoke.collection import Collection

import tasks
from kbuild import cli
from kbuild.options import DEFAULTS

PROJECT = Path(__file__).resolve().parents[2]

Here = Callable[..., tuple[int, str, str]]


def environment(home: Path, **env: str) -> dict[str, str]:
    """Return an environment in which everything is kept below ``home``."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "XDG_DATA_HOME": str(home / "data"),
        "INVOKE_BUILD_DIR": str(home / "build"),
        "INVOKE_CACHE_DIR": str(home / "cache"),
        **env,
    }


def invoke(*arguments: str, home: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run ``./inv`` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "kbuild.cli", *arguments],
        cwd=PROJECT,
        env=environment(home, **env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.fixture
def here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Here]:
    """Run ``./inv`` in this process, which saves the second that a new Python takes.

    ``of`` is a task to run instead of those of tasks.py.
    """
    for name in [name for name in os.environ if name.startswith("INVOKE_")]:
        monkeypatch.delenv(name)
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    log = logging.getLogger("kbuild")
    before = (log.handlers[:], log.level, log.propagate)
    mask = os.umask(0o022)
    os.umask(mask)

    def run(*arguments: str, of: cli.Command | None = None) -> tuple[int, str, str]:
        namespace = tasks.ns
        if of is not None:
            namespace = Collection(of)
            namespace.configure(DEFAULTS)
            arguments = (of.name, *arguments)
        status = 0
        try:
            cli.program(namespace).run(["inv", *arguments])
        except SystemExit as end:
            status = int(end.code or 0)
        return status, *capfd.readouterr()

    with Path(os.devnull).open() as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        yield run
    os.umask(mask)
    log.handlers[:], log.level, log.propagate = before
