"""The shells complete the tool's commands, options, kinds, and names of containers."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import shlex
import shutil
import struct
import subprocess
import sys
import termios
from collections.abc import Iterable
from pathlib import Path

import pytest

from cplayground import completing, options
from cplayground.kinds import KINDS
from cplayground.snapshot import Container, Descriptor, Name, OpenFile, Process, Snapshot

PROJECT = Path(__file__).resolve().parents[2]
COMPLETION = PROJECT / "cplayground/completion"
_PIPE = OpenFile(1, "a" * 64, 0, 1, Name(b"pipe:[7]"))
_END = Descriptor(1, False, _PIPE, 0, 1, _PIPE.path)
SEEN = Snapshot(
    (
        Process("a" * 64, 41, 1, 0, 1, Name(b"nginx"), (_END,)),
        Process("b" * 64, 42, 1, 0, 1, Name(b"$(reboot)"), ()),
    ),
    (_PIPE,),
    containers=(
        Container("web-1", "1" * 64, "docker", "", (41,)),
        Container("$(touch /tmp/x)\033[31m", "2" * 64, "docker", "", (42,)),
    ),
)


@pytest.fixture(autouse=True)
def seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completing, "_snapshot", lambda: SEEN)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ([], list(options.BY_NAME)),
        (["p"], ["ps", "pipe"]),
        (["shared", "--ac"], ["--across"]),
        (["--co"], ["--container", "--command", "--color"]),
        (["json", "--l"], ["--lines"]),
        (["ps", "-c", ""], ["web-1"]),
        (["-c", "w"], ["web-1"]),
        (["-c", "web-1", "sh"], ["shared"]),
        (["ls", "--container=w"], ["--container=web-1"]),
        (["ls", "-p", "4"], ["41", "42"]),
        (["ls", "--command", ""], ["nginx"]),
        (["ls", "--ns-pid", ""], ["1"]),
        (["pipe", ""], ["41"]),
        (["ls", "--kind", "pip"], ["pipe"]),
        (["ls", "--kind", "pipe,so"], ["pipe,socket"]),
        (["--color", ""], ["auto", "never"]),
        (["ls", "--from", "x"], [":files"]),
        (["draw", "-o", ""], [":files"]),
        (["ls", ""], []),
    ],
)
def test_words_are_completed(words: list[str], found: list[str]) -> None:
    assert completing.complete(words) == found


def test_every_option_of_every_command_is_completed() -> None:
    for command in options.COMMANDS:
        names = {option.names[-1] for option in options.options_of(command)}
        assert names <= set(completing.complete([command.name, "-"]))


def test_every_kind_is_completed() -> None:
    assert completing.complete(["--kind", ""]) == list(KINDS)


# In the shells, a program stands for the tool: it is the tool with the snapshot above.


@pytest.fixture
def path(tmp_path: Path) -> str:
    tool = tmp_path / "cplayground"
    tool.write_text(
        f"#!{sys.executable}\n"
        "import sys\n"
        f"sys.path.insert(0, {str(PROJECT)!r})\n"
        "from cplayground import cli, completing\n"
        "from tests.unit.test_tool_completion import SEEN\n"
        "completing._snapshot = lambda: SEEN\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    tool.chmod(0o755)
    return f"{tmp_path}:{os.environ['PATH']}"


def in_shell(argv: list[str], script: str, path: str, cwd: Path) -> list[str]:
    done = subprocess.run(
        [*argv, script],
        env={"PATH": path, "HOME": str(cwd), "LC_ALL": "C.UTF-8"},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def bash(words: Iterable[str], path: str, cwd: Path) -> list[str]:
    """Return what bash puts into COMPREPLY; ``words`` as its reader parts them."""
    line = shlex.join(["cplayground", *words])
    script = (
        f"source {shlex.quote(str(COMPLETION / 'cplayground.bash'))}\n"
        f"COMP_WORDS=({line}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))\n"
        "complete -p cplayground >/dev/null && _cplayground\n"
        'for word in "${COMPREPLY[@]}"; do echo "$word"; done'
    )
    return in_shell(["bash", "--norc", "-u", "-c"], script, path, cwd)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["dr"], ["draw"]),
        (["shared", "--ac"], ["--across"]),
        (["-c", ""], ["web-1"]),
        (["ls", "--container", "=", "w"], ["web-1"]),
        (["ls", "--container", "="], ["web-1"]),
        (["ls", "--kind", "pipe,so"], ["pipe,socket"]),
        (["--from", "a f"], ["a file"]),
        (["--from", "=", "a f"], ["a file"]),
        (["ls", ""], []),
    ],
)
def test_bash_completes(words: list[str], found: list[str], path: str, tmp_path: Path) -> None:
    (tmp_path / "a file").touch()
    assert bash(words, path, tmp_path) == found


# zsh completes only in its line editor, which needs a terminal.
_KEY = "\x18"  # shows the line, and empties it


def zsh(typed: Iterable[str], path: str, cwd: Path) -> list[str]:
    """Return the lines that zsh's editor makes of what is typed, each before a Tab."""
    program = shutil.which("zsh")
    assert program is not None, "zsh is not on this machine: run ./inv, which installs it"
    (cwd / ".zshrc").write_text(
        f"fpath=({shlex.quote(str(COMPLETION))} $fpath)\n"
        "autoload -Uz compinit && compinit -u -D\n"
        'show() { print -r -- "<$BUFFER>"; BUFFER=; zle reset-prompt }\n'
        f"zle -N show && bindkey '^X' show\n"
        "PS1=ready; unsetopt beep\n"
    )
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 200, 0, 0))
    running = subprocess.Popen(
        [program, "-d", "-i"],
        env={"PATH": path, "HOME": str(cwd), "TERM": "dumb", "LC_ALL": "C.UTF-8"},
        cwd=cwd,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    try:
        until(master, "ready")
        lines = []
        for text in typed:
            os.write(master, f"{text}\t{_KEY}".encode())
            lines.append(until(master, r"<([^<>]*)>"))
        return lines
    finally:
        running.kill()
        running.wait()
        os.close(master)


def until(terminal: int, pattern: str) -> str:
    """Read from a terminal until it shows a pattern; return its last group."""
    shown = ""
    while (found := re.search(pattern, shown)) is None:
        assert select.select([terminal], [], [], 30)[0], f"zsh shows nothing more after {shown!r}"
        shown += os.read(terminal, 65536).decode(errors="replace")
    return found[found.lastindex or 0]


def test_zsh_completes(path: str, tmp_path: Path) -> None:
    (tmp_path / "one-file").touch()
    lines = {
        "cplayground dr": "cplayground draw ",
        "cplayground shared --ac": "cplayground shared --across ",
        "cplayground -c ": "cplayground -c web-1 ",
        "cplayground -c web-1 ps --container=w": "cplayground -c web-1 ps --container=web-1 ",
        "cplayground ls --kind pipe,so": "cplayground ls --kind pipe,socket ",
        "cplayground --from one-f": "cplayground --from one-file ",
        "cplayground --from=one-f": "cplayground --from=one-file ",
        "cplayground ls ": "cplayground ls ",
    }
    assert zsh(lines, path, tmp_path) == list(lines.values())
