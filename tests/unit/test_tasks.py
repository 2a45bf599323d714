"""The command line as a user types it: options, configuration, exit statuses."""

from __future__ import annotations

import errno
import json
import logging
import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from invoke.parser import Parser

import tasks
from kbuild import cli, pipeline, testing
from kbuild.core import fs, places
from kbuild.core.errors import BuildError, InfrastructureError
from kbuild.core.model import Settings, Target
from kbuild.fetch import source
from kbuild.testing import FailedTestsError, TierResult, _judge, read_junit
from tasks import DEFAULTS, _settings, _strings, ns

PROJECT = Path(__file__).parents[2]


def invoke(*arguments: str, home: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kbuild.cli", *arguments],
        cwd=PROJECT,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "INVOKE_BUILD_DIR": str(home / "build"),
            "INVOKE_CACHE_DIR": str(home / "cache"),
            **env,
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


Here = Callable[..., tuple[int, str, str]]


@pytest.fixture
def here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Here]:
    """Invoke in this process, where a second of starting Python for each case would add up."""
    for name in [name for name in os.environ if name.startswith("INVOKE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("INVOKE_BUILD_DIR", str(tmp_path / "build"))
    monkeypatch.setenv("INVOKE_CACHE_DIR", str(tmp_path / "cache"))
    log = logging.getLogger("kbuild")
    before = (log.handlers[:], log.level, log.propagate)
    mask = os.umask(0o022)
    os.umask(mask)

    def run(*arguments: str) -> tuple[int, str, str]:
        status = 0
        try:
            cli.program(ns).run(["invoke", *arguments])
        except SystemExit as end:
            status = int(end.code or 0)
        return status, *capfd.readouterr()

    with Path(os.devnull).open() as nobody:
        monkeypatch.setattr(sys, "stdin", nobody)
        yield run
    os.umask(mask)
    log.handlers[:], log.level, log.propagate = before


def settings_in(home: Path) -> Settings:
    return Settings(project=PROJECT, build=home / "build", cache=home / "cache")


def test_the_tasks_are_those_that_the_issue_names(tmp_path: Path) -> None:
    listed = json.loads(invoke("--list", "--list-format=json", home=tmp_path).stdout)
    names = {task["name"] for task in listed["tasks"]}
    assert names >= {"fetch", "build-kernel", "build-module", "package", "test", "vm"}
    assert names >= {"clean", "doctor", "explain"}
    assert all(task["help"] for task in listed["tasks"])


@pytest.mark.parametrize("task", ["fetch", "build-kernel", "package", "test", "vm", "explain"])
def test_every_builder_has_the_common_options(task: str, tmp_path: Path) -> None:
    text = invoke(task, "--help", home=tmp_path).stdout
    for option in ("--suite", "--flavour", "--variant", "--version", "--mirror", "--jobs"):
        assert option in text
    assert "--offline" in text


def test_a_task_runs_under_its_own_umask(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, umask: int
) -> None:
    def explain(settings: Settings, target: Target, *, modules: str) -> tuple[()]:
        settings.build.mkdir()
        (settings.build / "file").touch()
        return ()

    monkeypatch.setattr(pipeline, "explain", explain)
    assert here("explain")[0] == 0
    assert (tmp_path / "build").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "build/file").stat().st_mode & 0o777 == 0o644


def test_an_unknown_suite_is_the_users_error(tmp_path: Path) -> None:
    done = invoke("explain", "--suite", "sid", home=tmp_path)
    assert done.returncode == 2
    assert "the suite 'sid' is not supported" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("option", ["--cache=ftp://x", "--scheduler=tcp://x"])
def test_a_senseless_helper_is_refused_even_with_nothing_to_compile(
    option: str, tmp_path: Path
) -> None:
    done = invoke("explain", option, home=tmp_path)
    assert done.returncode == 2
    assert option.partition("=")[2] in done.stderr


def test_the_environment_sets_a_default_and_an_option_overrides_it(tmp_path: Path) -> None:
    done = invoke("explain", home=tmp_path, INVOKE_SUITE="sid")
    assert (done.returncode, "'sid'" in done.stderr) == (2, True)
    done = invoke("explain", "--suite", "buzz", home=tmp_path, INVOKE_SUITE="sid")
    assert (done.returncode, "'buzz'" in done.stderr) == (2, True)


def test_the_users_invoke_yaml_is_read(tmp_path: Path) -> None:
    (tmp_path / ".invoke.yaml").write_text("suite: hamm\n")
    done = invoke("explain", home=tmp_path)
    assert (done.returncode, "'hamm'" in done.stderr) == (2, True)


def test_a_repeatable_option_keeps_each_of_its_values() -> None:
    words = "package --mirror http://a/debian --fragment one --mirror http://b/debian --offline"
    (parsed,) = Parser(contexts=ns.to_contexts()).parse_argv(words.split())
    assert parsed.as_kwargs["mirror"] == ["http://a/debian", "http://b/debian"]
    assert parsed.as_kwargs["fragment"] == ["one"]
    assert parsed.as_kwargs["offline"] is True
    (parsed,) = Parser(contexts=ns.to_contexts()).parse_argv(["package"])
    assert _strings(parsed.as_kwargs["mirror"]) == []


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("test --suite sid", "the suite 'sid' is not supported"),
        ("test --tier foo", "--tier foo is not known"),
        ("test --accel foo", "--accel foo is not known"),
        ("test --stock --all", "--stock compiles no kernel"),
        ("test --suite all --version 6.1.192-2", "no two suites have linux 6.1.192-2"),
        ("package --suite all", "--suite all is not for this task"),
        ("package --modules foo", "--modules foo is not known"),
        ("package --variant foo", "the variant 'foo' is not known"),
        ("package --fragment /nowhere", "/nowhere cannot be read"),
        ("package --fragment /bin/true", "/bin/true cannot be read: it is no text"),
        ("vm --stock --flavour foo", "the flavour 'foo' is not supported"),
        ("vm", "an interactive shell needs a terminal"),
        (f"vm --command {'x' * 40_000}", "the command for the guest is too long"),
        ("try --backend foo", "--backend foo is not known"),
        ("try --window-us=-1", "window-us is no number that makes sense"),
        ("stress --minutes foo", "minutes is no number that makes sense"),
        ("bench procfile --kernel foo", "--kernel foo is not known"),
        ("bench procfile --load foo", "no such load: foo"),
        ("bench procfile --rounds 0", "at least one round is needed"),
        ("mutants --suite sid", "the suite 'sid' is not supported"),
    ],
)
def test_a_senseless_request_is_refused_before_anything_is_done(
    command: str, words: str, tmp_path: Path, here: Here
) -> None:
    status, out, err = here(*command.split())
    assert (status, out) == (2, "")
    assert words in err
    assert not list(tmp_path.iterdir())
    # A dry run does not promise what a real one refuses; it alone needs no terminal.
    if command != "vm":
        assert here("--dry", *command.split()) == (2, "", err)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (
            "bench build --rounds 30 --load sparse",
            "--rounds and --load would be ignored with build",
        ),
        ("bench build --rounds 9", "--rounds would be ignored with build"),
        ("bench build --case full --before 6.1.1-1", "--before would be ignored with --case full"),
        ("bench build --kernel ours", "--kernel would be ignored with build"),
        ("bench procfile --case plain", "--case would be ignored with procfile"),
        ("bench procfile --before 6.1.1-1", "--before would be ignored with procfile"),
        ("test --stock --modules rebuild", "--modules would be ignored with --stock"),
        ("test --tier unit --accel tcg", "--accel would be ignored with --tier unit"),
        ("test --tier vm --all", "--all would be ignored with --tier vm"),
        ("test --tier lab --modules keep", "--modules would be ignored with --tier lab"),
        ("mutants --refresh -k one", "-k would be ignored with --refresh"),
        ("vm --stock --fragment /bin/true", "--fragment would be ignored with --stock"),
        ("stress --minutes 5 --seconds 60", "--minutes would be ignored with --seconds"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(command: str, words: str, here: Here) -> None:
    for dry in ([], ["--dry"]):
        status, out, err = here(*dry, *command.split())
        assert (status, out) == (2, "")
        assert words in err


@pytest.mark.parametrize(
    "command",
    [
        "bench build --case full --flavour amd64",
        "bench procfile --rounds 3 --load sparse --kernel stock --accel tcg",
        "test --tier unit -k one",
        "test --tier lab --all --stock",
        "stress --seconds 60 --seed 7",
    ],
)
def test_options_that_go_together_are_not_called_ignored(command: str, here: Here) -> None:
    assert "would be ignored" not in here("--dry", *command.split())[2]


def test_a_number_keeps_its_default(here: Here) -> None:
    plan = ["--dry", "stress", "--seed=7"]
    assert here(*plan) == here(*plan, "--minutes=5") != here(*plan, "--seconds=60")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("JOBS", "many", "jobs is no number"),
        ("REVISION", "0", "revision is no number"),
        ("REVISION", "", "revision is no number"),
        ("OFFLINE", "perhaps", "offline is neither yes nor no"),
        ("BUILD_DIR", "", "which 'clean' would remove"),
        ("BUILD_DIR", "..", "which 'clean' would remove"),
        ("CACHE_DIR", "/", "which 'clean' would remove"),
        ("CACHE_DIR", "~", "which 'clean' would remove"),
        ("CACHE_DIR", "README.md/cache", "cannot be a directory"),
    ],
)
def test_a_senseless_configuration_is_refused(
    key: str, value: str, words: str, monkeypatch: pytest.MonkeyPatch, here: Here
) -> None:
    monkeypatch.setenv(f"INVOKE_{key}", value)
    status, _, err = here("--dry", "clean")
    assert status == 2
    assert words in err


def test_a_flag_of_the_environment_can_say_no(tmp_path: Path) -> None:
    for value, offline in (("false", False), ("true", True)):
        assert _settings({**DEFAULTS, "offline": value}, {}, dry=False).offline is offline


@pytest.mark.parametrize("key", DEFAULTS)
def test_a_null_is_the_default(key: str, tmp_path: Path, here: Here) -> None:
    """So is a key without a value, of which a file may have any number."""
    for name in ("BUILD_DIR", "CACHE_DIR"):
        os.environ.pop(f"INVOKE_{name}")
    plain = here("--dry", "test", "--tier", "unit")
    (tmp_path / ".invoke.yaml").write_text(f"{key}:\n")
    assert plain[0] == 0
    assert here("--dry", "test", "--tier", "unit") == plain


@pytest.mark.parametrize(
    ("text", "words", "more"),
    [
        ("flavor: lab", "the configuration has no key flavor", "flavour"),
        ("run: {dri: true}", "the configuration has no key run.dri", "correct it in"),
        ("suite: 12", "suite has the wrong type", "12, of type int"),
        ("flavour: [lab]", "flavour has the wrong type", "of type list"),
        ("kernel_version: 6.1", "kernel_version has the wrong type", "stands in quotes"),
        ("scheduler: false", "scheduler has the wrong type", "expected: a text"),
        ("jobs: 1.5", "jobs has the wrong type", "expected: a whole number"),
        ("jobs: true", "jobs is no number", "True"),
        ("jobs: [1]", "jobs has the wrong type", "of type list"),
        ("offline: [true]", "offline has the wrong type", "expected: true or false"),
        ("offline: 3", "offline is neither yes nor no", "3"),
        ("mirrors: 3", "mirrors has the wrong type", "a list of texts"),
        ("fragments: [1, 2]", "fragments has the wrong type", "a list of texts"),
    ],
)
def test_a_wrong_key_or_type_in_a_file_is_named(
    text: str, words: str, more: str, tmp_path: Path, here: Here
) -> None:
    (tmp_path / ".invoke.yaml").write_text(f"{text}\n")
    status, out, err = here("--dry", "clean")
    assert (status, out) == (2, "")
    assert words in err
    assert more in err


def test_lists_and_numbers_of_a_file_are_taken(tmp_path: Path, here: Here) -> None:
    text = "jobs: 3\nrevision: 2\noffline: true\nmirrors: [http://a.example/, http://b.example/]\n"
    (tmp_path / ".invoke.yaml").write_text(text + "run: {echo: false, env: {ANY: x}}\n")
    assert here("--dry", "clean")[0] == 0


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("INVOKE_FLAVOR", "INVOKE_FLAVOUR"),
        ("INVOKE_flavour", "sets nothing"),
        ("INVOKE_CACHE", "sets nothing"),
        ("INVOKE_RUN_DRI", "INVOKE_RUN_DRY"),
    ],
)
def test_a_variable_that_sets_nothing_is_named(
    name: str, more: str, monkeypatch: pytest.MonkeyPatch, here: Here
) -> None:
    monkeypatch.setenv(name, "redis://:s3cret@host")
    status, out, err = here("--dry", "clean")
    assert (status, out) == (2, "")
    assert f"the variable {name} sets nothing" in err
    assert more in err
    assert "s3cret" not in err


def test_a_variable_is_read_as_text_whatever_the_file_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: Here
) -> None:
    """Invoke takes "false" for true where the file has a flag."""
    (tmp_path / ".invoke.yaml").write_text("offline: true\nsuite:\n")
    monkeypatch.setenv("INVOKE_OFFLINE", "perhaps")
    status, _, err = here("--dry", "clean")
    assert (status, "offline is neither yes nor no" in err) == (2, True)
    monkeypatch.setenv("INVOKE_OFFLINE", "false")
    monkeypatch.setenv("INVOKE_SUITE", "sid")
    status, _, err = here("explain")
    assert (status, "'sid'" in err) == (2, True)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"suite: [", "cannot be read"),
        (b"- suite", "of type list"),
        (b"5: x", "cannot be read"),
        (b"caf\xe9: x", "cannot be read"),
        (b"suite: {a: b}", "wrong type"),
        (b"run: 5", "wrong type"),
        (b"suite: !!python/object:os.system {}", "cannot be read"),
    ],
)
def test_a_damaged_file_is_no_traceback(
    content: bytes, words: str, tmp_path: Path, here: Here
) -> None:
    (tmp_path / ".invoke.yaml").write_bytes(content)
    status, out, err = here("--dry", "clean")
    assert (status, out) == (2, "")
    assert err.startswith("usage error: the configuration ")
    assert words in err


def test_a_null_for_a_section_of_invoke_s_is_the_default(tmp_path: Path, here: Here) -> None:
    (tmp_path / ".invoke.yaml").write_text("run:\ntasks: {dedupe: }\n")
    assert here("--dry", "clean")[0] == 0


def test_a_directory_is_no_file_of_a_configuration(tmp_path: Path, here: Here) -> None:
    (tmp_path / ".invoke.yaml").mkdir()
    status, _, err = here("--dry", "clean")
    assert (status, "Is a directory" in err) == (2, True)


@pytest.mark.parametrize("name", ["nowhere.yaml", "file.ini"])
def test_a_file_for_one_run_that_cannot_be_read_is_named(
    name: str, tmp_path: Path, here: Here
) -> None:
    (tmp_path / "file.ini").write_text("suite = sid\n")
    status, _, err = here("--config", str(tmp_path / name), "--dry", "clean")
    assert (status, name in err) == (2, True)


@pytest.mark.parametrize(
    ("file", "value", "words"),
    [
        ("jobs: 4", "many", "jobs is no number"),
        ("jobs: 4", "3", ""),
    ],
)
def test_a_variable_stands_in_for_a_number_of_a_file(
    file: str, value: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: Here
) -> None:
    (tmp_path / ".invoke.yaml").write_text(file)
    monkeypatch.setenv("INVOKE_JOBS", value)
    status, _, err = here("--dry", "clean")
    assert (status, words in err) == (2 if words else 0, True)


def test_a_variable_stands_in_for_a_list_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: Here
) -> None:
    (tmp_path / ".invoke.yaml").write_text("fragments: [/nowhere/a]\n")
    monkeypatch.setenv("INVOKE_FRAGMENTS", "/nowhere/b")
    status, _, err = here("explain")
    assert (status, "/nowhere/b cannot be read" in err) == (2, True)


def test_a_file_that_is_given_for_one_run_has_more_weight_than_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: Here
) -> None:
    monkeypatch.setenv("INVOKE_SUITE", "sid")
    (tmp_path / "run.yaml").write_text("suite: hamm\n")
    status, _, err = here("--config", str(tmp_path / "run.yaml"), "explain")
    assert (status, "'hamm'" in err) == (2, True)


@pytest.mark.parametrize("jobs", ["many", "-1"])
def test_a_senseless_number_of_jobs_is_refused(jobs: str, tmp_path: Path) -> None:
    done = invoke("explain", f"--jobs={jobs}", home=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("place", ["kmod", ".git", "kmod/build"])
@pytest.mark.parametrize("task", sorted(ns.task_names))
def test_no_task_touches_a_directory_that_is_not_ours(
    task: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: Here
) -> None:
    # Another checkout: this one is not to be lost if a task does touch it.
    project = tmp_path / "project"
    for name in ("kmod/Kbuild", ".git/HEAD"):
        (project / name).parent.mkdir(parents=True)
        (project / name).write_text("precious\n")
    monkeypatch.setattr(tasks, "PROJECT", project)
    monkeypatch.setenv("INVOKE_BUILD_DIR", place)
    before = sorted(tmp_path.rglob("*"))
    words = [task, *(["procfile"] if task == "bench" else [])]
    for command in (words, ["--dry", *words]):
        status, out, err = here(*command)
        if task == "doctor":
            assert "places: Give build_dir a directory of its own" in out
        else:
            assert (status, out) == (2, "")
            assert str(project / place) in err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_task_keeps_clean_away(monkeypatch: pytest.MonkeyPatch, here: Here) -> None:
    def fetch(settings: Settings, target: Target) -> None:
        for place in places.both(settings):
            with pytest.raises(InfrastructureError), fs.lock(place.mark, timeout_s=-1):
                pytest.fail("clean would not wait")
        raise BuildError("stop")

    monkeypatch.setattr(source, "fetch", fetch)
    status, _, err = here("fetch")
    assert (status, "stop" in err) == (3, True)


@pytest.mark.parametrize("mask", [0o000, 0o077])
def test_only_its_user_may_write_what_a_task_makes(
    mask: int, monkeypatch: pytest.MonkeyPatch, here: Here
) -> None:
    modes: list[int] = []

    def fetch(settings: Settings, target: Target) -> None:
        modes.extend(path.stat().st_mode & 0o777 for path in (settings.build, settings.cache))
        raise BuildError("stop")

    monkeypatch.setattr(source, "fetch", fetch)
    before = os.umask(mask)
    try:
        here("fetch")
    finally:
        os.umask(before)
    assert modes == [0o755, 0o755]


def test_dry_clean_removes_nothing(tmp_path: Path) -> None:
    for place in places.both(settings_in(tmp_path)):
        places.mark(place)
    done = invoke("--dry", "clean", home=tmp_path)
    assert done.returncode == 0
    assert f"would remove {tmp_path / 'build'}" in done.stdout
    assert (tmp_path / "build").is_dir()
    done = invoke("clean", home=tmp_path)
    assert done.returncode == 0
    assert not (tmp_path / "build").exists()


def test_clean_takes_what_is_unused_alone(tmp_path: Path, here: Here) -> None:
    tree, build = tmp_path / "cache/trees/old", tmp_path / "build"
    for place in places.both(settings_in(tmp_path)):
        places.mark(place)
    tree.mkdir(parents=True)
    os.utime(tree, (0, 0))
    for options, said in (
        (["--unused", "0"], "a whole number, 1 or more"),
        (["--unused", "many"], "a whole number, 1 or more"),
        (["--unused", "30", "--cache"], "--unused is for itself"),
        (["--unused", "30", "--roots"], "--unused is for itself"),
    ):
        status, _, err = here("clean", *options)
        assert status == 2
        assert said in err
    assert here("clean", "--unused", "30") == (0, f"removed {tree}\n", "")
    assert build.is_dir()
    assert not tree.exists()


def test_dry_test_names_both_commands_and_runs_neither(tmp_path: Path) -> None:
    mirror = "http://127.0.0.1:9/debian"
    done = invoke("--dry", "test", "-k", "nothing", home=tmp_path, INVOKE_MIRRORS=mirror)
    assert done.returncode == 0
    assert "pytest tests/unit" in done.stdout
    assert "pytest tests/vm" in done.stdout
    assert not (tmp_path / "build/test").exists()


def test_a_dry_run_of_all_suites_says_what_is_wrong_with_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def print_steps(settings: Settings, target: Target, modules: str) -> None:
        if target.suite != "bookworm":
            raise BuildError(f"no series applies to {target.suite}")
        print("kernel is current")

    monkeypatch.setattr(tasks, "_print_steps", print_steps)
    settings = Settings(project=tmp_path, build=tmp_path, cache=tmp_path, dry=True)
    assert tasks._every(settings, Target("all", "lab"), "auto", lambda *_, **__: ()) == 3
    said = capsys.readouterr().out
    assert said.count("build error: no series applies") == 3
    assert "kernel is current" in said


def result(status: int, tests: int, failed: int) -> TierResult:
    return TierResult("unit", status, tests, failed, 1.0, Path("unit.xml"))


@pytest.mark.parametrize(
    ("results", "words"),
    [
        ([result(1, 9, 2), result(0, 3, 0)], "2 of 9 unit tests failed"),
        ([result(0, 9, 0), result(3, 0, 0)], "ended with status 3"),
        ([result(5, 0, 0), result(5, 0, 0)], "no test was run"),
        ([result(0, 0, 0)], "no test was run"),
        ([], "no test was run"),
    ],
)
def test_a_bad_tier_is_a_failure(results: list[TierResult], words: str) -> None:
    with pytest.raises(FailedTestsError, match=words):
        _judge(results)


def test_a_tier_that_had_nothing_to_run_is_none() -> None:
    _judge([result(0, 9, 0), result(5, 0, 0)])


def test_the_counts_come_from_the_junit_file(tmp_path: Path) -> None:
    path = tmp_path / "unit.xml"
    path.write_text(
        '<testsuites><testsuite tests="9" failures="1" errors="2"/></testsuites>',
    )
    assert read_junit(path) == (9, 3)
    path.write_text("<testsuites><tests")
    assert read_junit(path) == (0, 0)
    assert read_junit(tmp_path / "none") == (0, 0)


@pytest.mark.parametrize(
    "name",
    ["~nouser/x", "/tmp/\udcff", "x" * 300, "/" + "x/" * 2000, "loop/x"],
    ids=["a home of nobody's", "not UTF-8", "a long name", "a long path", "a loop"],
)
@pytest.mark.parametrize("key", ["build_dir", "cache_dir", "fragment"])
def test_a_path_that_cannot_be_is_the_users_error(
    key: str, name: str, here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    name = name.replace("loop", f"{tmp_path}/loop")
    if key != "fragment":
        monkeypatch.setenv(f"INVOKE_{key.upper()}", name)
    status, out, err = here("explain", *(["--fragment", name] if key == "fragment" else []))
    assert (status, out) == (2, "")
    assert f"{key} is " in err
    assert "which is no usable path" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("kind", ["fifo", "device", "directory", "large", "latin-1"])
def test_a_fragment_that_is_no_text_file_is_the_users_error(
    kind: str, here: Here, tmp_path: Path
) -> None:
    path = tmp_path / "own.config"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "large":
        path.write_text("# CONFIG_X is not set\n" * 100000)
    elif kind == "latin-1":
        path.write_bytes(b"# caf\xe9\n")
    else:
        path = Path("/dev/zero")
    status, _, err = here("explain", "--fragment", str(path))
    assert status == 2
    assert f"the configuration {path} cannot be read" in err


def test_a_user_without_a_home_hears_of_it(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.delenv("HOME")
    assert here("fetch", "--offline")[0] == 69  # the places are given, and no home is needed
    monkeypatch.delenv("INVOKE_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    status, _, err = here("explain")
    assert status == 2
    assert "home directory" in err
    assert "XDG_CACHE_HOME" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["build-kernel"],
        ["build-kernel", "--suite", "all"],
        ["build-module"],
        ["package"],
        ["test"],
        ["test", "--tier", "vm", "--stock"],
        ["test", "--suite", "all"],
        ["mutants"],
        ["vm", "--command", "true"],
        ["stress"],
        ["bench", "procfile"],
        ["bench", "build"],
        ["try"],
    ],
    ids=" ".join,
)
def test_without_root_nothing_is_fetched_in_vain(
    arguments: list[str], here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*_: object, **__: object) -> None:
        raise AssertionError("the archive was asked")

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for name in ("fetch", "resolve"):
        monkeypatch.setattr(source, name, asked)
    status, out, err = here(*arguments)
    assert (status, out) == (2, "")
    assert "needs root privileges" in err
    assert "sudo" in err


def test_root_is_asked_for_where_it_is_needed(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(testing, "run_tests", lambda *_, **__: ())
    assert here("test", "--tier", "unit")[0] == 0
    assert here("--dry", "bench", "procfile")[0] == 0
    assert here("--dry", "mutants")[0] == 0


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception], None]:
    """Let ``explain`` end with an exception of the library's."""

    def fail(error: Exception) -> None:
        def explain(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(pipeline, "explain", explain)

    return fail


def test_a_full_disk_is_the_machines_failure_with_the_place(
    here: Here, failing: Callable[[Exception], None], tmp_path: Path
) -> None:
    failing(OSError(errno.ENOSPC, "No space left on device"))
    (tmp_path / "build").mkdir()
    status, _, err = here("explain")
    assert status == 69
    assert f"full disk error: {tmp_path}/build: No space left on device" in err
    assert "Traceback" not in err


def test_what_nobody_foresaw_is_a_defect_with_its_traceback_and_without_passwords(
    here: Here, failing: Callable[[Exception], None]
) -> None:
    failing(ValueError("from http://user:pw@mirror.example"))
    status, _, err = here("explain")
    assert status == 70
    assert "internal error: ValueError: from http://***@mirror.example" in err
    assert "Traceback" in err
    assert "pw" not in err


@pytest.mark.parametrize("arguments", ["doctor", "--list", "--help doctor"])
def test_a_reader_that_has_gone_ends_it_quietly(arguments: str, tmp_path: Path) -> None:
    invoke = Path(sys.executable).with_name("invoke")
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing) as closed:
        done = subprocess.run(
            [invoke, *arguments.split()],
            cwd=PROJECT,
            env={**os.environ, "HOME": str(tmp_path), "INVOKE_CACHE_DIR": str(tmp_path / "cache")},
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
            env={**os.environ, "HOME": str(tmp_path), "INVOKE_CACHE_DIR": str(tmp_path / "cache")},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=100,
        )
    assert done.returncode == 69
    assert done.stderr.startswith("full disk error: standard output: No space left on device\n")
    assert "Traceback" not in done.stderr


def test_a_locale_without_utf_8_is_refused_and_not_stumbled_over(tmp_path: Path) -> None:
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


# Fetches as a run does that is at work: a child runs, and there is scratch.
AT_WORK = """
import logging
from invoke.program import Program
import tasks
from kbuild.core import fs
from kbuild.core.run import run
def fetch(settings, target):
    with fs.fresh_directory(settings.cache / "tree"):
        run(["sh", "-c", "echo $$ > {0}; trap 'exit 0' TERM; while :; do sleep 0.1; done"],
            timeout_s=60)
tasks.source.fetch = fetch
Program(namespace=tasks.ns).run(["invoke", "fetch"])
"""


def at_work(home: Path, **options: object) -> tuple[subprocess.Popen[bytes], int]:
    """Start a run, and return it with the number of its child once there is one."""
    process = subprocess.Popen(
        [sys.executable, "-c", AT_WORK.replace("{0}", str(home / "pid"))],
        cwd=PROJECT,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "INVOKE_BUILD_DIR": str(home / "build"),
            "INVOKE_CACHE_DIR": str(home / "cache"),
        },
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
    # A child that has just been started when the signal comes is killed by the kernel, as its
    # parent ends.
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
    assert said.splitlines()[-1:] == ["interrupted; the same command takes it up again"]
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
