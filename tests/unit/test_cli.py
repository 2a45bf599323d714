"""The command decorator: places, exit statuses, output and signals around the body of a task."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kbuild.cli import Command, command
from kbuild.core import fs, places
from kbuild.core.errors import BuildError, InfrastructureError
from kbuild.core.model import Settings, Target
from kbuild.options import MODULES, SUITE, Option
from tests.unit.command_line import PROJECT, Here, environment, here, invoke

__all__ = ["here"]


def task(body: Callable[[Settings], object]) -> Command:
    """Return a task without options."""

    @command(name="probe")
    def probe(settings: Settings, target: Target) -> None:
        """Do what the test wants."""
        body(settings)

    return probe


def test_a_body_gets_its_options_by_name(here: Here) -> None:
    seen: list[object] = []
    number = Option("window-us", "number", kind=int, default=300)
    several = Option("load", "load", kind=list, choices=("few", "many"))

    @command(number, several, SUITE, MODULES, name="probe")
    def probe(settings: Settings, target: Target, **own: object) -> int:
        """Note the options."""
        seen.append((target.suite, own))
        return 7

    words = ("--load", "few", "--window-us=0x", "--suite=trixie")
    assert here(*words, of=probe)[0] == 2
    assert here(*words[:2], "--load=many", "--window-us=5", words[-1], of=probe)[0] == 7
    own = {"window_us": 5, "load": ("few", "many"), "modules": "auto"}
    assert seen == [("trixie", own)]


def test_what_a_task_makes_has_the_same_modes_under_every_umask(
    here: Here, tmp_path: Path, umask: int
) -> None:
    def make(settings: Settings) -> None:
        for path in (settings.build, settings.cache):
            assert path.stat().st_mode & 0o777 == 0o755
        (settings.build / "file").touch()

    assert here(of=task(make)) == (0, "", "")
    assert (tmp_path / "build").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "build/file").stat().st_mode & 0o777 == 0o644


def test_a_task_that_reads_makes_no_results(here: Here, tmp_path: Path) -> None:
    @command(name="probe", reads=True)
    def probe(settings: Settings, target: Target) -> None:
        """Do nothing."""

    assert here(of=probe)[0] == 0
    assert not (tmp_path / "build").exists()


def test_a_task_keeps_clean_away(here: Here) -> None:
    def try_to_lock(settings: Settings) -> None:
        for place in places.both(settings):
            with pytest.raises(InfrastructureError), fs.lock(place.mark, timeout_s=-1):
                pytest.fail("clean would not wait")
        raise BuildError("stop")

    status, _, err = here(of=task(try_to_lock))
    assert (status, err.splitlines()[-1]) == (3, "build error: stop")


def failing(error: Exception) -> Command:
    def fail(settings: Settings) -> None:
        raise error

    return task(fail)


def test_a_full_disk_is_the_machines_failure_with_the_place(here: Here, tmp_path: Path) -> None:
    (tmp_path / "build").mkdir()
    status, _, err = here(of=failing(OSError(errno.ENOSPC, "No space left on device")))
    assert status == 69
    assert f"full disk error: {tmp_path}/build: No space left on device" in err
    assert "Traceback" not in err


def test_an_unexpected_exception_is_a_defect_with_its_traceback_and_without_passwords(
    here: Here,
) -> None:
    status, _, err = here(of=failing(ValueError("from http://user:pw@mirror.example")))
    assert status == 70
    assert "internal error: ValueError: from http://***@mirror.example" in err
    assert "Traceback" in err
    assert "pw" not in err


@pytest.mark.parametrize("arguments", ["doctor", "--list", "--help doctor"])
@pytest.mark.parametrize("program", [["-m", "kbuild.cli"], ["-m", "invoke"]])
def test_a_reader_that_has_gone_ends_it_quietly(
    arguments: str, program: list[str], tmp_path: Path
) -> None:
    command = [sys.executable, *program]
    if program[1] == "invoke":
        command = [str(Path(sys.executable).with_name("invoke"))]
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing) as closed:
        done = subprocess.run(
            [*command, *arguments.split()],
            cwd=PROJECT,
            env=environment(tmp_path, PYTHONPATH=str(PROJECT)),
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            timeout=100,
        )
    assert done.returncode in (141, -signal.SIGPIPE)
    assert done.stderr == ""


def test_an_output_that_is_full_is_said(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "invoke", "doctor"],
            cwd=PROJECT,
            env=environment(tmp_path),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=100,
        )
    assert done.returncode == 69
    assert done.stderr.startswith("full disk error: standard output: No space left on device\n")
    assert "Traceback" not in done.stderr


def test_a_locale_without_utf_8_is_refused(tmp_path: Path) -> None:
    strange = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = invoke("explain", home=tmp_path, **strange)
    assert done.returncode == 2
    assert "PYTHONUTF8=1" in done.stderr
    assert "Traceback" not in done.stderr
    told = invoke("explain", home=tmp_path, **(strange | {"PYTHONUTF8": "1"}))
    assert told.returncode == 0


def test_a_name_of_any_bytes_can_be_printed(tmp_path: Path) -> None:
    done = invoke(
        "--dry", "test", "--tier", "unit", "-k", "\udcff", home=tmp_path, LC_ALL="C.UTF-8"
    )
    assert done.returncode == 0
    assert "-k '\\udcff'" in done.stdout
    assert invoke("explain", "--suite", "\udcff", home=tmp_path).returncode == 2


# A run at work: it has a child and scratch.
AT_WORK = """
from invoke.collection import Collection
from kbuild.cli import command, program
from kbuild.core import fs
from kbuild.core.run import run
from kbuild.options import DEFAULTS
@command()
def work(settings, target):
    with fs.fresh_directory(settings.cache / "tree"):
        run(["sh", "-c", "echo $$ > {0}; trap 'exit 0' TERM; while :; do sleep 0.1; done"],
            timeout_s=60)
tasks = Collection(work)
tasks.configure(DEFAULTS)
program(tasks).run(["inv", "work"])
"""


def at_work(home: Path, **options: object) -> tuple[subprocess.Popen[bytes], int]:
    """Start a run, and return it with the number of its child once there is one."""
    process = subprocess.Popen(
        [sys.executable, "-c", AT_WORK.replace("{0}", str(home / "pid"))],
        cwd=PROJECT,
        env=environment(home),
        start_new_session=True,
        **options,  # type: ignore[call-overload]
    )
    deadline = time.monotonic() + 60
    while not ((home / "pid").exists() and (home / "pid").read_text().strip()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    return process, int((home / "pid").read_text())


def is_over(home: Path, child: int) -> bool:
    """Tell whether a run's child has ended, and whether its scratch is gone."""
    deadline = time.monotonic() + 30
    # The kernel kills a child that had only started when the signal came, as its parent ends.
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return not Path(f"/proc/{child}").exists() and not list((home / "cache").glob(".tree.*"))


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_run_its_children_and_its_scratch(
    signum: signal.Signals, tmp_path: Path
) -> None:
    process, child = at_work(tmp_path, stderr=subprocess.PIPE)
    assert list((tmp_path / "cache").glob(".tree.*"))
    process.send_signal(signum)
    said = process.communicate(timeout=30)[1].decode()
    assert process.returncode == 128 + signum
    assert is_over(tmp_path, child)
    assert said.splitlines()[-1:] == ["interrupted; the same command continues"]
    assert "Traceback" not in said


def test_a_run_whose_terminal_is_gone_ends_the_same(tmp_path: Path) -> None:
    ours, its = os.openpty()
    process, child = at_work(tmp_path, stdin=its, stdout=its, stderr=its)
    os.close(its)
    os.close(ours)
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=30) == 128 + signal.SIGHUP
    assert is_over(tmp_path, child)


def test_a_run_that_ignores_sighup_goes_on(tmp_path: Path) -> None:
    process, child = at_work(
        tmp_path, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)
    )
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 128 + signal.SIGTERM
    assert is_over(tmp_path, child)


ID = Option("release", "ID of a release", first=True)
PERCENT = Option("percent", "percentage", kind=int, default=10, least=1)


@pytest.mark.parametrize(
    "words",
    [
        ["one-1+x1", "--percent", "50"],
        ["--percent", "50", "--release", "one-1+x1"],
        ["--release=one-1+x1", "--percent=50"],
    ],
)
def test_an_id_may_follow_its_task(here: Here, words: list[str]) -> None:
    asked: list[dict[str, object]] = []

    @command(ID, PERCENT)
    def promote(settings: Settings, target: Target, **own: object) -> None:
        """Promote a release."""
        asked.append(own)

    assert here(*words, of=promote)[0] == 0
    assert asked == [{"release": "one-1+x1", "percent": 50}]


def test_an_id_may_be_left_out(here: Here) -> None:
    asked: list[dict[str, object]] = []

    @command(ID, PERCENT)
    def reproduce(settings: Settings, target: Target, **own: object) -> None:
        """Reproduce a release."""
        asked.append(own)

    assert here(of=reproduce)[0] == here("--percent=20", of=reproduce)[0] == 0
    assert [one["release"] for one in asked] == [None, None]
    # A second word is neither an option's value nor a task.
    assert here("one", "two", of=reproduce)[0] == 1


def test_a_word_after_a_task_without_an_id_is_refused(here: Here) -> None:
    assert here("--dry", "doctor", "one")[0] == 1
