"""The command line as a user types it: options, configuration, exit statuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from invoke.parser import Parser

from kbuild.testing import FailedTestsError, TierResult, _judge, read_junit
from tasks import _strings, ns

PROJECT = Path(__file__).parents[2]


def invoke(*arguments: str, home: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "invoke", *arguments],
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


@pytest.mark.parametrize("jobs", ["many", "-1"])
def test_a_senseless_number_of_jobs_is_refused(jobs: str, tmp_path: Path) -> None:
    done = invoke("explain", f"--jobs={jobs}", home=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_dry_clean_removes_nothing(tmp_path: Path) -> None:
    (tmp_path / "build").mkdir()
    done = invoke("--dry", "clean", home=tmp_path)
    assert done.returncode == 0
    assert f"would remove {tmp_path / 'build'}" in done.stdout
    assert (tmp_path / "build").is_dir()
    done = invoke("clean", home=tmp_path)
    assert done.returncode == 0
    assert not (tmp_path / "build").exists()


def test_dry_test_names_both_commands_and_runs_neither(tmp_path: Path) -> None:
    mirror = "http://127.0.0.1:9/debian"
    done = invoke("--dry", "test", "-k", "nothing", home=tmp_path, INVOKE_MIRRORS=mirror)
    assert done.returncode == 0
    assert "pytest tests/unit" in done.stdout
    assert "pytest tests/vm" in done.stdout
    assert not (tmp_path / "build/test").exists()


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
