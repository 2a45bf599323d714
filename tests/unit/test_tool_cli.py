"""The tool's command line: commands, filters, sources, exit statuses, terminals, hostile names."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import unicodedata
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cplayground import cli, document, errors, options, parse, pipelines, select, tables, walking
from cplayground.findings import Finding
from cplayground.names import unescaped
from cplayground.selecting import Filter
from cplayground.snapshot import Container, Descriptor, Name, OpenFile, Process, Snapshot

PROJECT = Path(__file__).resolve().parents[2]
STORY = PROJECT / "tests/stories/story.procfile"
TWO = PROJECT / "tests/stories/two-containers.procfile"
PIPELINE = PROJECT / "tests/stories/pipeline-of-five.procfile"
JOBSERVER = PROJECT / "tests/stories/jobserver.procfile"
HOSTILE = PROJECT / "tests/stories/hostile.procfile"


def run(*words: str | Path) -> tuple[int, str]:
    """Run a command in this process; return its status and output."""
    with redirect_stdout(io.StringIO()) as output:
        status = cli.main([str(word) for word in words])
    return status, output.getvalue()


def program(*words: str | Path, **more: Any) -> subprocess.CompletedProcess[bytes]:  # noqa: ANN401
    """Run the tool as a program, with none of this machine's settings of a terminal."""
    kept = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR", "TERM")}
    environment = {**kept, "PYTHONUTF8": "1", "TERM": "xterm", **more.pop("env", {})}
    argv = [sys.executable, "-m", "cplayground", *map(str, words)]
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
    return subprocess.run(argv, cwd=PROJECT, env=environment, timeout=60, check=False, **settings)


# Commands and options


def test_no_command_is_ls_and_options_may_come_first() -> None:
    expected = run("ls", "--long", "--pid", "166", "--from", STORY)
    assert expected[0] == 0
    assert run("-l", "-p", "166", "--from", STORY) == expected
    assert run("--from", STORY, "-p166", "ls", "-l") == expected
    assert run(f"--from={STORY}", "ls", "--long", "--pid=166") == expected


@pytest.mark.parametrize(
    ("words", "commands"),
    [
        ([], {"bash", "words", "sort"}),
        (["-c", "2db9c8eb"], {"bash", "words", "sort"}),
        (["-p", "165", "-p", "166"], {"words", "sort"}),
        (["--ns-pid", "1"], {"bash"}),
        (["--command", "wor*"], {"words"}),
        (["--path", "pipe:*"], {"sort"}),
        (["--kind", "pipe,socket"], {"sort"}),
        (["--kind", "terminal", "--command", "bash"], {"bash"}),
    ],
)
def test_filters_leave_what_they_name(words: list[str], commands: set[str]) -> None:
    status, output = run("ls", *words, "--from", STORY)
    assert status == 0
    assert set(re.findall(r"(?m)^ *\d+ +\d+  (\w+)", output)) == commands


def test_a_filter_keeps_what_the_hidden_others_hold() -> None:
    """Peers of a pipe and numbers of shared files are those of the whole reading."""
    _status, all_of_it = run("--from", PIPELINE)
    _status, part = run("-p", "384", "--from", PIPELINE)
    rows = [" ".join(row.split()) for row in part.splitlines()[2:]]
    assert len(rows) == 3
    assert set(rows) <= {" ".join(row.split()) for row in all_of_it.splitlines()}
    assert "pipe:[11675] ← cat:2/1" in part


def test_a_text_from_standard_input_is_the_one_from_a_file() -> None:
    given = program("json", "--from", "-", input=STORY.read_bytes())
    assert given.stdout == program("json", "--from", STORY).stdout


def test_each_command_has_help_that_names_its_options() -> None:
    for command in options.COMMANDS:
        status, text = run(command.name, "--help")
        names = [name for option in options.options_of(command) for name in option.names]
        assert status == 0
        assert not [name for name in names if name not in text]
    assert not [
        command.name for command in options.COMMANDS if command.name not in run("--help")[1]
    ]


def test_the_version_is_the_packages() -> None:
    version, _day = (PROJECT / "cplayground/VERSION").read_text().split()
    assert run("--version") == (0, f"cplayground {version}\n")


# Exit statuses


@pytest.mark.parametrize(
    "words",
    [
        ["list"],
        ["--bogus"],
        ["ls", "extra"],
        ["ls", "--lo"],
        ["-p", "x"],
        ["-p", "99", "--from", str(STORY)],
        ["-c", "web", "--from", str(STORY)],
        ["--kind", "pipes", "--from", str(STORY)],
        ["--from", "/nonexistent"],
        ["--from", "/"],
        ["--from", str(STORY), "--walk"],
        ["pipe"],
        ["pipe", "99", "--from", str(STORY)],
        ["pipe", "pipe:[1]", "--from", str(STORY)],
        ["pipe", "x", "--from", str(STORY)],
        ["watch", "--from", str(STORY)],
        ["watch", "0"],
        ["watch", "nan"],
        ["watch", "soon"],
        ["--color", "always"],
        ["draw", "-o", "x.png", "--from", str(STORY)],
        ["draw", "--fold", "0", "--from", str(STORY)],
    ],
    ids=" ".join,
)
def test_bad_usage_is_2_with_a_sentence(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("cplayground: ")


def test_a_walk_that_may_not_look_into_all_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A user sees his own containers, or is refused if there is none of them."""
    snapshot = parse(STORY.read_bytes())
    monkeypatch.setattr(walking, "survey", lambda: walking.Walk(snapshot, (7, 8)))
    assert run("json", "--walk")[0] == 0
    assert "2 processes that you may not look into are left out" in capsys.readouterr().err
    nothing = walking.Walk(Snapshot((), ()), (7, 8))
    monkeypatch.setattr(walking, "survey", lambda root="/proc": nothing)
    assert run("json", "--walk") == (errors.NotPermittedError.status, "")
    assert "process 7 and 1 others" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.NoModuleError("it is not loaded", hint="load it"), 3),
        (errors.NotPermittedError("not for you"), 4),
        (errors.Error("a bad disk"), 74),
    ],
)
def test_each_error_of_reading_has_its_status(
    error: errors.Error,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(path: str) -> Snapshot:
        raise error

    monkeypatch.setattr(cli, "read", fail)
    assert cli.main(["ps"]) == status
    said = f"cplayground: {error}\n" + (f"  {error.hint}\n" if error.hint else "")
    assert capsys.readouterr().err == said


def test_a_refused_text_is_5_with_line_and_column(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad"
    bad.write_bytes(STORY.read_bytes().replace(b"\t02\t", b"\t2\t", 1))
    assert cli.main(["--from", str(bad)]) == 5
    assert re.search(r"line 2, column \d+: ", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("levels", "words", "status"),
    [
        ([], [], 0),
        (["note"], ["--strict"], 0),
        (["warning", "note"], [], 0),
        (["warning", "note"], ["--strict"], 1),
        (["error"], [], 1),
    ],
)
def test_check_is_1_if_it_found_an_error(
    levels: list[str], words: list[str], status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = tuple(
        Finding(level, f"p:3 is in the way ({level}).", None, (), (), ("a fact",))
        for level in levels
    )
    monkeypatch.setattr("cplayground.findings.check", lambda snapshot, host: found)
    expected = [f"{level}: p:3 is in the way ({level}).\n    a fact\n" for level in levels]
    assert run("check", *words, "--from", STORY) == (status, "\n".join(expected))


# The end of a program


def test_a_reader_that_goes_away_ends_it_without_a_word(tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(
        b"a" * 64
        + b"\t7\t1\t0\t1\tmany\n"
        + b"".join(b"%d\t0\t%064x\t0\t00\t/x\n" % (fd, fd) for fd in range(20_000))
        + b"\n"
    )
    reading, writing = os.pipe()
    os.close(reading)
    done = program("--from", large, stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (-signal.SIGPIPE, b"")


@pytest.mark.parametrize(("ignored", "status"), [(False, -signal.SIGINT), (True, 0)])
def test_ctrl_c_ends_it_without_a_word_unless_it_is_ignored(ignored: bool, status: int) -> None:
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if ignored else None
    try:
        running = subprocess.Popen(
            [sys.executable, "-m", "cplayground", "--from", "-"],
            cwd=PROJECT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    finally:
        if ignored:
            signal.signal(signal.SIGINT, handler)
    assert running.stdin is not None
    waits_in_read(running.pid)
    running.send_signal(signal.SIGINT)
    output, complaint = running.communicate(STORY.read_bytes() if ignored else None, timeout=60)
    assert (running.returncode, complaint) == (status, b"")
    assert bool(output) == ignored


def waits_in_read(pid: int) -> None:
    """Wait until a program reads its standard input, a pipe that nobody writes to."""
    while b"pipe" not in Path(f"/proc/{pid}/wchan").read_bytes():
        assert os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def test_a_full_disk_is_told_in_a_line_and_is_74() -> None:
    with Path("/dev/full").open("wb") as full:
        done = program("--from", STORY, stdout=full)
    assert done.returncode == 74
    assert done.stderr == b"cplayground: reading or writing failed: No space left on device\n"


def test_a_closed_output_is_74() -> None:
    done = program("--from", STORY, stdout=None, preexec_fn=lambda: os.close(1))
    assert (done.returncode, done.stderr) == (74, b"")


def test_a_picture_that_cannot_be_written_is_told_with_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "none/x.svg"
    assert cli.main(["draw", "-o", str(target), "--from", str(STORY)]) == 74
    assert capsys.readouterr().err == f"cplayground: {target}: No such file or directory\n"


@pytest.mark.parametrize("ending", ["svg", "html", "dot"])
def test_a_picture_is_the_one_that_its_name_ends_with(tmp_path: Path, ending: str) -> None:
    target = tmp_path / f"x.{ending}"
    assert run("draw", "-o", target, "--from", STORY) == (0, "")
    text = target.read_text("utf-8")
    assert {"svg": "<svg", "html": "<!doctype html", "dot": "digraph"}[ending] in text.lower()
    assert "pipe:[11098]" in text


def test_a_picture_on_standard_output_is_svg_in_any_encoding() -> None:
    picture = run("draw", "--from", HOSTILE)[1]
    done = program("draw", "--from", HOSTILE, env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    texts = [list(ElementTree.fromstring(one).itertext()) for one in (picture, done.stdout)]
    assert texts[0] == texts[1]
    assert run("draw", "-o", "-", "--from", HOSTILE)[1] == picture


def test_without_a_container_doctor_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["--from", "/dev/null"]) == 0
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(cli, "read", lambda path: Snapshot((), ()))
    assert cli.main([]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "cplayground doctor" in captured.err


def test_doctor_has_the_status_of_a_reading(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = errors.NoModuleError("it is not loaded")
    monkeypatch.setattr(cli, "read", raising(missing))
    finding = Finding("error", "It is not there.", None, (), (), ("modprobe cplayground",))
    monkeypatch.setattr("cplayground.doctor.diagnose", lambda: (finding,))
    assert run("doctor") == (3, "error: It is not there.\n    modprobe cplayground\n")
    monkeypatch.setattr("cplayground.doctor.diagnose", lambda: ())
    assert cli.main(["doctor"]) == 3
    assert capsys.readouterr().err == "cplayground: it is not loaded\n"
    monkeypatch.setattr(cli, "read", lambda path: Snapshot((), ()))
    assert run("doctor") == (0, "Nothing is amiss: /proc/cplayground shows 0 processes.\n")


def test_watch_prints_changes_until_the_module_is_gone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = parse(STORY.read_bytes()), parse(PIPELINE.read_bytes())

    def run_watch(*words: str) -> tuple[str, str]:
        todo = iter([before, before, after])

        def read(path: str) -> Snapshot:
            try:
                return next(todo)
            except StopIteration:
                raise errors.NoModuleError("the module was unloaded") from None

        monkeypatch.setattr(cli, "read", read)
        assert cli.main(["watch", "0.001", *words]) == 3
        return capsys.readouterr()

    output, told = run_watch()
    assert len(output.splitlines()) == 3 + 6
    assert re.search(r"(?m)  closed    sort:3/0,1,2,4 .*  the process has ended$", output)
    assert re.search(r"(?m)  opened    tr:3/0,1,2 .*  0 r pipe:\[11675\], 1 w ", output)
    assert told.startswith("cplayground: A reading of 10 descriptors of 3 processes takes ")
    assert told.endswith("cplayground: the module was unloaded\n")
    output, _told = run_watch("--json", "-p", "166")
    types = [json.loads(line)["type"] for line in output.splitlines()]
    assert types == ["watch", *["reading"] * 3, *["change"] * 4]


# Terminals


def on_terminal(*words: str | Path, width: int = 200, **environment: str) -> str:
    """Run the tool with a terminal as its output, and return what it is sent."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    try:
        done = program(*words, stdout=slave, env=environment)
        assert (done.returncode, done.stderr) == (0, b"")
        os.close(slave)
        slave = -1
        sent = b""
        try:
            while part := os.read(master, 65536):
                sent += part
        except OSError:  # EIO: the other end is closed
            pass
    finally:
        os.close(master)
        if slave >= 0:
            os.close(slave)
    return sent.decode().replace("\r\n", "\n")


def test_colours_are_for_terminals_that_want_them() -> None:
    plain = run("--from", STORY)[1]
    coloured = on_terminal("--from", STORY)
    assert "\033[" in coloured
    assert re.sub(r"\033\[\d+m", "", coloured) == plain
    assert on_terminal("--from", STORY, "--color", "never") == plain
    assert on_terminal("--from", STORY, NO_COLOR="1") == plain
    assert on_terminal("--from", STORY, TERM="dumb") == plain
    assert "\033[" in on_terminal("--from", STORY, NO_COLOR="")
    assert program("--from", STORY).stdout.decode() == plain


def columns(line: str) -> int:
    return sum(1 + (unicodedata.east_asian_width(one) in "WF") for one in line)


@pytest.mark.parametrize("width", [60, 80, 110])
@pytest.mark.parametrize("command", ["ls", "ps"])
@pytest.mark.parametrize("story", [JOBSERVER, HOSTILE], ids=lambda path: path.stem)
def test_a_table_fits_the_terminal(story: Path, command: str, width: int) -> None:
    text = on_terminal(command, "--from", story, "--color", "never", width=width)
    assert max(map(columns, text.splitlines())) <= width
    assert len(text.splitlines()) == len(run(command, "--from", story)[1].splitlines())


def test_a_long_path_keeps_its_ends() -> None:
    path = b"/var/lib/containers/" + b"x" * 90 + b"/access.log"
    file = OpenFile(1, "a" * 64, 0, 0, Name(path))
    one = Descriptor(3, False, file, 0, 0, Name(path))
    process = Process("b" * 64, 7, 1, 0, 1, Name(b"sh"), (one,))
    snapshot = Snapshot((process,), (file,))
    style = tables.Style(width=60)
    *_head, row = tables.ls(snapshot, snapshot, style)
    assert columns(row) == 60
    assert re.search(r"  /var/lib/\S*…\S*/access\.log$", row)
    *_head, row = tables.ls(snapshot, snapshot, style, long=True)
    assert row.endswith(path.decode())


def test_an_output_without_unicode_has_octal_digits() -> None:
    done = program("--from", HOSTILE, env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert done.returncode == 0
    assert rb"/tmp/\346\227\245\346\234\254\350\252\236/caf\303\251" in done.stdout
    assert rb"pipe:[9] -> \346" in done.stdout


# Hostile names

BYTES = st.one_of(
    st.binary(max_size=15).map(lambda name: name.replace(b"\0", b"\1")),
    st.sampled_from(
        [
            b"\x1b]0;x\x07",
            "\u202egpj".encode(),
            "\u2066\u200f\u00ad".encode(),
            b"\xc2\x9b31m",
            b"\r\n\t\\",
            "\u2028\u0085".encode(),
            b"\xed\xa0\x80",
        ]
    ),
)
TEXTS = st.text(st.characters(), min_size=1, max_size=12)  # halves of pairs, too


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    """Draw a snapshot with names of any bytes, in containers with names of any characters."""
    pipe = OpenFile(1, "a" * 64, 0, 0, Name(b"pipe:[1]"))
    end = OpenFile(2, "b" * 64, 0, 1, Name(b"pipe:[1]"))
    processes, files = [], [pipe, end]
    for pid in range(1, draw(st.integers(2, 4))):
        path = Name(b"/" + draw(BYTES))
        file = OpenFile(2 + pid, f"{pid:064x}", 0, 2, path)
        files.append(file)
        held = [(0, pipe), (1, end), (2, file), (3, file)]
        descriptors = tuple(Descriptor(fd, False, one, 0, one.flags, one.path) for fd, one in held)
        processes.append(
            Process(
                "c" * 64, pid, pid, 0, 1, Name(draw(BYTES)), descriptors[: draw(st.integers(0, 4))]
            )
        )
    containers = (Container(draw(TEXTS), draw(TEXTS), draw(TEXTS), draw(TEXTS), (1,)),)
    held_numbers = {one.file.number for process in processes for one in process.descriptors}
    kept = tuple(file for file in files if file.number in held_numbers)
    return Snapshot(tuple(processes), kept, containers=containers)


def hidden(text: str) -> set[str]:
    """Return characters that a terminal may obey, or a person cannot see."""
    categories = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
    return {one for one in text if unicodedata.category(one) in categories}


@given(snapshots(), st.sampled_from([0, 40]))
def test_no_character_of_a_name_commands_a_terminal(snapshot: Snapshot, width: int) -> None:
    style = tables.Style(width=width)
    evidence = "".join(process.command.text for process in snapshot.processes)
    lines = [
        *tables.ls(snapshot, snapshot, style, long=True),
        *tables.ls(snapshot, snapshot, style),
        *tables.ps(snapshot, style),
        *tables.shared(snapshot, snapshot, style),
        *tables.findings([Finding("note", evidence, None, (), (), (evidence,))], style),
        *(line for one in snapshot.pipes() for line in pipelines.pipe(snapshot, one.path.text)),
        *("".join(document.lines("file", snapshot, snapshot)).splitlines()),
        *("".join(document.whole("file", snapshot, snapshot)).splitlines()),
    ]
    assert not hidden("".join(lines))


@given(TEXTS)
def test_no_character_of_an_argument_comes_back_as_it_is(text: str) -> None:
    """Error messages name arguments, as scripts may take them from names of files."""
    for error in (
        errors.UsageError(f"there is no {text}", hint=text),
        errors.RefusedTextError("bad", line=1, column=1),
    ):
        with pytest.MonkeyPatch.context() as patch:
            told = io.StringIO()
            patch.setattr(sys, "stderr", told)
            patch.setattr("cplayground.options.parse_arguments", raising(error))
            cli.main([text])
        assert not hidden(told.getvalue().replace("\n", ""))


def raising(error: Exception) -> Any:  # noqa: ANN401
    def call(_argument: object) -> None:
        raise error

    return call


@pytest.mark.parametrize(
    "words",
    [
        ["--from", "/tmp/\033[31m\n\udcff"],
        ["-c", "\033]0;x\007", "--from", str(STORY)],
        ["--kind", "\033[2J", "--from", str(STORY)],
        ["\033[2J"],
        ["--\033[2J"],
        ["pipe", "\033[2J", "--from", str(STORY)],
        ["watch", "\033[2J"],
        ["-p", "\033[2J"],
    ],
)
def test_an_error_shows_a_hostile_argument_escaped(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    told = capsys.readouterr().err
    assert not hidden(told.replace("\n", ""))
    assert len(told.splitlines()) <= 2


def test_a_name_can_be_read_back_from_a_table() -> None:
    snapshot = parse(HOSTILE.read_bytes())
    for process in snapshot.processes:
        part = select(snapshot, Filter(pids=(process.global_pid,)))
        rows = list(tables.ls(part, part, long=True))[2:]
        for row, one in zip(rows, process.descriptors, strict=False):
            assert one.path.startswith(b"pipe") or unescaped(row.encode()).endswith(one.path)


# Pipelines


def pipeline(*processes: tuple[dict[int, str], dict[int, str]]) -> Snapshot:
    """Return processes by what they read and write; pid 1 is the first one."""
    files: dict[tuple[str, int], OpenFile] = {}
    made = []
    for pid, (reads, writes) in enumerate(processes, 1):
        descriptors = []
        for ends, flags in ((reads, 0), (writes, 1)):
            for fd, name in ends.items():
                path = Name(f"pipe:[{name}]".encode())
                number = len(files) + 1
                file = files.setdefault(
                    (name, flags), OpenFile(number, f"{number:064x}", 0, flags, path)
                )
                descriptors.append(Descriptor(fd, False, file, 0, flags, path))
        command = Name(b"p%d" % pid)
        ordered = tuple(sorted(descriptors, key=lambda one: one.fd))
        made.append(Process("a" * 64, pid, pid, 0, 1, command, ordered))
    return Snapshot(tuple(made), tuple(files.values()))


def tree(snapshot: Snapshot, target: str) -> list[str]:
    return [re.sub(r" \(host \d+\)", "", line) for line in pipelines.pipe(snapshot, target)]


def test_a_pipeline_is_followed_from_its_source_whichever_part_is_named() -> None:
    snapshot = parse(PIPELINE.read_bytes())
    trees = {tuple(pipelines.pipe(snapshot, str(pid))) for pid in (383, 384, 385, 386, 387)}
    assert len(trees) == 1
    (lines,) = trees
    assert [re.findall(r"(\w+):\d+ ", line) for line in lines[::2]] == [
        ["cat"],
        ["tr"],
        ["sort"],
        ["uniq"],
        ["sort"],
    ]
    _both_ends, below = "\n".join(pipelines.pipe(snapshot, "pipe:[11677]")).split("\n\n")
    assert below == "\n".join(lines)


def test_a_pipe_branches_and_joins() -> None:
    snapshot = pipeline(({}, {1: "1"}), ({0: "1"}, {1: "2"}), ({0: "1"}, {1: "2"}), ({0: "2"}, {}))
    assert tree(snapshot, "4") == [
        "p1:1",
        "└─1→ pipe:[1]",
        "   ├─→0 p2:2",
        "   │  └─1→ pipe:[2]",
        "   │     └─→0 p4:4",
        "   └─→0 p3:3",
        "      └─1→ pipe:[2] (above)",
    ]


def test_a_circle_is_drawn_once() -> None:
    snapshot = pipeline(({0: "2"}, {1: "1"}), ({0: "1"}, {1: "2", 3: "3"}), ({0: "3"}, {}))
    assert tree(snapshot, "3") == [
        "p1:1",
        "└─1→ pipe:[1]",
        "   └─→0 p2:2",
        "      ├─1→ pipe:[2]",
        "      │  └─→0 p1:1 (above)",
        "      └─3→ pipe:[3]",
        "         └─→0 p3:3",
    ]


def test_an_end_that_is_not_shown_is_said() -> None:
    snapshot = pipeline(({0: "1"}, {1: "2"}), ({}, {}))
    assert tree(snapshot, "1") == [
        "pipe:[1] of no shown writer",
        "└─→0 p1:1",
        "   └─1→ pipe:[2] → none shown",
    ]
    assert tree(snapshot, "2") == ["p2:2 has no pipe."]
    assert tree(snapshot, "pipe:[2]")[:3] == [
        "pipe:[2]",
        "  write end: p1:1/1",
        "  read end: none shown",
    ]


def test_a_long_pipeline_needs_no_stack() -> None:
    links = [({0: str(n)} if n else {}, {1: str(n + 1)}) for n in range(3000)]
    lines = tree(pipeline(*links), "2000")
    assert len(lines) == 6000
    assert lines[-1].endswith("1→ pipe:[3000] → none shown")


def test_every_process_of_a_jobserver_is_drawn() -> None:
    snapshot = parse(JOBSERVER.read_bytes())
    lines = list(pipelines.pipe(snapshot, "500"))
    followed = [line for line in lines if "host" in line and "above" not in line]
    assert sorted(re.findall(r"host (\d+)", " ".join(followed))) == [
        str(pid) for pid in range(500, 506)
    ]


def test_several_processes_of_one_kind_are_one_row() -> None:
    snapshot = parse(JOBSERVER.read_bytes())
    rows = [line.split()[:3] for line in tables.ps(snapshot)]
    assert ["4", "2-5", "cc1"] in rows
    zombie = replace(
        snapshot,
        extended=True,
        processes=tuple(
            p._replace(state="Z" if not p.descriptors else "S") for p in snapshot.processes
        ),
    )
    assert list(tables.ps(zombie))[-1].endswith("ended, not waited for")


def test_what_is_shared_across_containers_has_its_containers() -> None:
    status, text = run("shared", "--across", "--from", TWO)
    assert status == 0
    assert re.findall(r"(?m)^#\d+  (\S+)", text) == ["/dev/pts/0", "/tmp/common.log"]
    assert text.count("2 containers") == 2
    assert run("shared", "--across", "--from", PIPELINE) == (0, "")
