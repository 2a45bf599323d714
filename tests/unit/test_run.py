"""The subprocess funnel: deadlines, environment, logs and errors."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kbuild.core.errors import BuildError, InfrastructureError, KilledError, LostDependencyError
from kbuild.core.run import (
    Interrupted,
    describe_status,
    environment,
    interruptible,
    run,
    start,
    stop,
    which,
)

SH = ("sh", "-c")


def alive(pid: int) -> bool:
    """Say whether a process runs; a zombie does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 10
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(pid)


def test_output_is_kept_apart() -> None:
    done = run([*SH, "echo out; echo err >&2"], timeout_s=20)
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 0)
    assert done.argv == (*SH, "echo out; echo err >&2")


def test_over_its_deadline_it_is_ended_with_its_children(tmp_path: Path) -> None:
    script = "sleep 300 & echo $! > pid; echo before the end; wait"
    with pytest.raises(InfrastructureError) as caught:
        run([*SH, script], timeout_s=0.7, cwd=tmp_path, error=InfrastructureError)
    assert "did not finish in 0.7 s" in caught.value.what
    assert caught.value.found == "before the end"
    wait_until_gone(int((tmp_path / "pid").read_text()))


def test_children_that_ignore_the_polite_signal_end_too(tmp_path: Path) -> None:
    # The leader obeys SIGTERM at once; its child does not, and must not outlive it.
    script = "(trap '' TERM; echo $$ > ready; sleep 300 & echo $! > pid; wait; wait) & wait"
    process = start([*SH, script], cwd=tmp_path)
    deadline = time.monotonic() + 10
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert stop(process, grace_s=5) == -signal.SIGTERM
    wait_until_gone(int((tmp_path / "pid").read_text()))


def test_a_program_that_ignores_sigterm_is_killed() -> None:
    process = start(
        [*SH, "trap '' TERM; echo; while :; do sleep 0.1; done"], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    assert stop(process, grace_s=0.3) == -signal.SIGKILL
    process.stdout.close()


def test_stop_of_an_ended_program_returns_its_status() -> None:
    process = start([*SH, "exit 7"])
    process.wait(timeout=20)
    assert stop(process) == 7


def test_a_silent_grandchild_that_holds_the_output_open_is_not_waited_for_for_ever() -> None:
    with pytest.raises(BuildError, match="did not finish"):
        run([*SH, "sleep 300 & exit 0"], timeout_s=0.5)


def test_a_killed_parent_takes_its_child_along(tmp_path: Path) -> None:
    code = (
        "import sys; from kbuild.core.run import run;"
        "run(['sh', '-c', 'echo $$ > pid; exec sleep 300'], timeout_s=300)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    deadline = time.monotonic() + 30
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    parent.kill()
    parent.wait(timeout=20)
    wait_until_gone(int((tmp_path / "pid").read_text()))


def test_the_environment_is_an_allow_list(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MAKEFLAGS", "CFLAGS", "KBUILD_OUTPUT", "DEB_BUILD_OPTIONS", "LC_TIME"):
        monkeypatch.setenv(name, "from the user")
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    seen = run(["env"], timeout_s=20, env={"ARCH": "x86"}).stdout
    assert "from the user" not in seen
    variables = dict(line.split("=", 1) for line in seen.splitlines())
    assert variables["https_proxy"] == "http://proxy.example:3128"
    assert variables["ARCH"] == "x86"
    assert variables["LC_ALL"] == variables["LANG"] == "C.UTF-8"


def test_the_caller_has_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment({"LC_ALL": "C"})["LC_ALL"] == "C"
    monkeypatch.delenv("PATH")
    assert "/usr/bin" in environment()["PATH"].split(":")


def test_the_administrators_programs_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert environment()["PATH"].endswith("/usr/local/sbin:/usr/sbin:/sbin")
    assert which("no-such-program-anywhere") is None


def test_standard_input_is_closed_unless_given() -> None:
    assert run(["cat"], timeout_s=20).stdout == ""


def test_more_input_than_a_pipe_holds_while_the_output_fills_too() -> None:
    data = bytes(range(256)) * 16384  # 4 MiB
    done = run(["od", "-An", "-v", "-tx1", "-w1"], timeout_s=60, data=data)
    assert done.stdout.count("\n") == len(data)


def test_a_reader_that_stops_early_is_no_error() -> None:
    assert run(["head", "-c", "3"], timeout_s=20, data=b"abc" * 1000000).stdout == "abc"


def test_empty_input_is_an_end_of_file() -> None:
    assert run(["wc", "-c"], timeout_s=20, data=b"").stdout.strip() == "0"


def test_a_failure_shows_the_tail_and_the_log(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "make.log"
    with pytest.raises(BuildError) as caught:
        run(
            [*SH, "seq 1000; echo the reason >&2; exit 3"],
            timeout_s=20,
            log=log,
            hint="read the log",
        )
    error = caught.value
    assert "exit status 3" in error.what
    assert error.found is not None
    assert error.found.splitlines()[-2:] == ["1000", "the reason"]
    assert len(error.found.splitlines()) == 20
    assert (error.log, error.hint) == (log, "read the log")


def test_a_killed_program_is_the_machines_failure(tmp_path: Path) -> None:
    makefile = tmp_path / "Makefile"
    # The recipe's shell, a child of it, the shell of a shell, and the compiler that gcc starts.
    makefile.write_text(
        "shell:\n\tkill -9 $$$$\n"
        "child:\n\tsh -c 'kill -9 $$$$'; true; false\n"
        "bash:\n\tbash -c 'sh -c \"kill -9 \\$$\\$$\"; exit 1'\n"
        "cc:\n\tgcc -wrapper sh,-c,'kill -9 $$$$' -xc -c /dev/null -o x\n"
    )
    for argv in (
        [*SH, "kill -9 $$"],
        [*SH, "sh -c 'kill -9 $$'"],
        *(["make", goal] for goal in ("shell", "child", "bash", "cc")),
    ):
        for log in (None, tmp_path / "log"):
            with pytest.raises(KilledError, match=r"(?s)failed.*more memory"):
                run(argv, timeout_s=60, cwd=tmp_path, log=log, hint="correct the source")
    with pytest.raises(BuildError):
        run([*SH, "kill -15 $$"], timeout_s=20)


@pytest.mark.parametrize(
    ("said", "killed"),
    [
        ("collect2: fatal error: ld terminated with signal 9 [Killed]", True),
        ("make[3]: *** [scripts/Makefile.build:250: a.o] Error 137", True),
        ("scripts/link-vmlinux.sh: line 62:  4242 Killed    pahole -J", True),
        (
            "installed x package subprocess was killed by signal (Killed)",
            True,
        ),
        ("E: Sub-process /usr/bin/dpkg received signal 9.", True),
        ("E: Sub-process /usr/bin/dpkg received signal 19.", False),
        ("collect2: fatal error: ld terminated with signal 11 [Segmentation fault]", False),
        ("make: *** [Makefile:1: all] Error 1", False),
        ("a.c:9: error: 'Killed' undeclared", False),
    ],
)
def test_a_killed_child_is_known_by_what_is_said_of_it(said: str, killed: bool) -> None:
    error = KilledError if killed else BuildError
    with pytest.raises(error) as caught:
        run([*SH, 'printf "a\n%s\nb\n" "$1"; exit 2', "sh", said], timeout_s=20)
    assert type(caught.value) is error


def test_the_log_is_complete_and_appended_to(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    for last in (20000, 3):
        run(["seq", str(last)], timeout_s=20, log=log)
    lines = log.read_text().splitlines()
    assert lines[0] == "$ seq 20000"
    assert lines[1:20001] == [str(n) for n in range(1, 20001)]
    assert lines[20001:] == ["$ seq 3", "1", "2", "3"]


def test_the_log_is_written_while_the_program_runs(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    seen: list[bool] = []
    run(
        [*SH, "echo first; echo second"],
        timeout_s=20,
        log=log,
        on_line=lambda line: seen.append(line in log.read_text()),
    )
    assert seen == [True, True]


def test_lines_come_whole_and_the_last_needs_no_newline() -> None:
    lines: list[str] = []
    script = "printf 'one\\ntw'; sleep 0.1; printf 'o\\n\\377\\nthree'"
    run([*SH, script], timeout_s=20, on_line=lines.append)
    assert lines == ["one", "two", "\ufffd", "three"]


def test_an_exception_from_the_listener_ends_the_program(tmp_path: Path) -> None:
    def refuse(line: str) -> None:
        raise ValueError(line)

    with pytest.raises(ValueError, match="hello"):
        run(
            [*SH, "echo $$ > pid; echo hello; sleep 300"],
            timeout_s=60,
            cwd=tmp_path,
            on_line=refuse,
        )
    wait_until_gone(int((tmp_path / "pid").read_text()))


def test_a_signal_is_named() -> None:
    with pytest.raises(BuildError, match="killed by SIGSEGV"):
        run([*SH, "kill -SEGV $$"], timeout_s=20)


def test_no_file_grows_beyond_its_limit(tmp_path: Path) -> None:
    script = "head -c 100000 /dev/zero >large"
    process = start([*SH, script], cwd=tmp_path, largest_file=1000)
    assert process.wait(20) != 0
    assert (tmp_path / "large").stat().st_size == 1000
    assert start([*SH, script], cwd=tmp_path).wait(20) == 0
    assert (tmp_path / "large").stat().st_size == 100_000


def test_statuses_in_words() -> None:
    assert describe_status(0) == "exit status 0"
    assert describe_status(-9) == "killed by SIGKILL"
    assert describe_status(-99) == "killed by signal 99"


def test_an_unchecked_failure_is_returned() -> None:
    assert run(["false"], timeout_s=20, check=False).returncode == 1


@pytest.mark.parametrize("program", ["no-such-program", "/no/such/program", "./missing"])
def test_a_missing_program_is_named(program: str) -> None:
    with pytest.raises(LostDependencyError, match=r"no-such|/no/such|missing") as caught:
        run([program, "--version"], timeout_s=20)
    assert caught.value.hint is not None
    assert "inv doctor" in caught.value.hint


def test_a_relative_program_is_found_in_the_working_directory(tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    tool.write_text("#!/bin/sh\necho mine\n")
    tool.chmod(0o755)
    assert run(["./tool"], timeout_s=20, cwd=tmp_path).stdout == "mine\n"


def test_arguments_are_not_a_shell_string() -> None:
    assert run(["echo", "$HOME; `id` *"], timeout_s=20).stdout == "$HOME; `id` *\n"


def test_a_signal_interrupts_once_and_the_former_handler_comes_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    cleaned = False
    with pytest.raises(Interrupted) as caught, interruptible():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            # An impatient second one does not disturb the cleaning up.
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGHUP)
            cleaned = True
    assert cleaned
    assert caught.value.signum == signal.SIGTERM
    assert isinstance(caught.value, KeyboardInterrupt)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_child_hears_signals_that_its_parent_has_caught(tmp_path: Path) -> None:
    with interruptible():
        assert run([*SH, "kill -TERM $$"], timeout_s=20, check=False).returncode == -15


def test_a_namespace_has_ended_when_stop_returns(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("a PID namespace needs root privileges")
    # Giving back its memory takes the last process longer than its parent needs to end.
    program = "x = b'x' * (1 << 29); open('ready', 'w').close(); import time; time.sleep(60)"
    command = ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-c", program]
    process = start(command, cwd=tmp_path)
    deadline = time.monotonic() + 30
    while not (tmp_path / "ready").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    (child,) = map(
        int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    )
    stop(process, grace_s=0.1)
    assert not alive(child)
