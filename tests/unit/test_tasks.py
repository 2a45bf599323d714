"""The tasks as a user types them: names, options, help, and what they refuse."""

from __future__ import annotations

import inspect
import json
import os
import shlex
from pathlib import Path

import pytest

from kbuild import cli, dry_run, testing
from kbuild.answer import Answer
from kbuild.core import places
from kbuild.core.errors import BuildError
from kbuild.core.model import Settings, Target
from tests import commands_page
from tests.unit.command_line import PROJECT, Here, here, invoke

__all__ = ["here"]

TASKS = dict(commands_page.commands())


def test_the_verbs_are_flat_and_the_rest_is_in_collections(here: Here) -> None:
    listed = json.loads(here("--list", "--list-format=json")[1])
    assert {task["name"] for task in listed["tasks"]} == {
        "demo",
        *("fetch", "build-kernel", "build-module", "package", "sbom", "reproduce", "test", "vm"),
        "gate",
        *("release", "promote", "rollback", "releases", "verify-archive", "sign-archive"),
        *("check-updates", "watch", "report", "explain", "verify", "doctor", "clean"),
    }
    names = {one["name"]: {task["name"] for task in one["tasks"]} for one in listed["collections"]}
    assert names == {
        "keys": {"make", "export", "rotate", "list"},
        "lab": {"try", "stress", "mutants"},
        "bench": {"build", "draw", "parse", "procfile"},
    }


def test_each_task_has_one_line_in_the_list(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = here("--list")[1].splitlines()
    assert [line.split()[0] for line in lines if line.startswith("  ")] == [
        *sorted(name for name in TASKS if "." not in name),
        *sorted(name for name in TASKS if "." in name),
    ]


def test_the_page_of_the_commands_is_current() -> None:
    assert commands_page.PAGE.read_text() == commands_page.page(), (
        "write docs/reference/commands.md again: .venv/bin/python -m tests.commands_page"
    )


@pytest.mark.parametrize("name", sorted(set(TASKS) - {"check-updates", "fetch", "report", "watch"}))
def test_the_example_of_a_task_works(name: str, here: Here) -> None:
    """Those that are left out ask the archive, even in a dry run."""
    _, *words = shlex.split(inspect.cleandoc(TASKS[name].__doc__ or "").splitlines()[-1])
    assert words[0] == name
    assert here("--dry", *words)[0] in ((0, 69) if name == "doctor" else (0,))


@pytest.mark.parametrize("words", [["--help", "vm"], ["vm", "--help"]])
def test_help_has_choices_and_defaults(words: list[str], here: Here) -> None:
    text = " ".join(here(*words)[1].split())
    assert "{bullseye,bookworm,trixie,trixie-backports}" in text
    assert "{auto,keep,rebuild}; default: auto" in text


def test_a_list_may_be_nested(here: Here) -> None:
    out = here("--list", "--list-format=nested")[1]
    assert {"lab", ".try", ".stress", ".mutants"} <= set(out.split())


@pytest.mark.parametrize("words", [["--help", "lab"], ["--list", "lab"]])
def test_the_help_of_a_collection_is_its_list(words: list[str], here: Here) -> None:
    status, out, _ = here(*words)
    assert status == 0
    assert {".try", ".stress", ".mutants"} <= set(out.split())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("try --variant kasan", "lab.try --variant kasan"),
        ("stress --seconds 60 --seed 7", "lab.stress --seconds 60 --seed 7"),
        ("mutants", "lab.mutants"),
        ("bench build --flavour amd64", "bench.build --flavour amd64"),
        ("bench --rounds 3 procfile", "bench.procfile --rounds 3"),
    ],
)
def test_an_old_name_works_and_tells_the_new_one(old: str, new: str, here: Here) -> None:
    said = f"'{old.split()[0]}' is now '{new.split()[0]}': "
    status, out, err = here("--dry", *old.split())
    assert (status, out, "") == here("--dry", *new.split())
    assert err.startswith(said)
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("bench build --rounds 9", "bench.build has no option --rounds"),
        ("bench all", "there is no task bench.all"),
    ],
)
def test_an_old_name_takes_no_more_than_the_new_one(words: str, said: str, here: Here) -> None:
    status, out, err = here("--dry", *words.split())
    assert (status, out) == (2, "")
    assert said in err


def test_a_shell_completes_options(tmp_path: Path) -> None:
    done = invoke("--print-completion-script", "bash", home=tmp_path)
    assert "complete -F _complete_inv " in done.stdout
    done = invoke("--complete", "--", "./inv", "vm", "--", home=tmp_path)
    assert {"--stock", "--command", "--suite"} <= set(done.stdout.split())


@pytest.mark.parametrize("option", ["--cache=ftp://x", "--scheduler=tcp://x"])
def test_a_bad_helper_is_refused_even_with_nothing_to_compile(option: str, here: Here) -> None:
    status, _, err = here("explain", option)
    assert status == 2
    assert option.partition("=")[2] in err


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("explain --suite sid", "--suite must be one of bullseye, bookworm, trixie"),
        ("explain --jobs=many", "--jobs must be a whole number, 0 or more"),
        ("explain --jobs=-1", "--jobs must be a whole number, 0 or more"),
        ("test --tier foo", "--tier must be one of unit, vm, gate, mutants, lab"),
        ("test --accel foo", "--accel must be one of kvm, tcg"),
        ("test --stock --all", "--stock compiles no kernel"),
        ("test --suite all --version 6.1.192-2", "only one suite has linux 6.1.192-2"),
        ("package --suite all", "--suite must be one of"),
        ("package --modules foo", "--modules must be one of auto, keep, rebuild"),
        ("package --variant foo", "--variant must be one of release, kasan"),
        ("package --fragment /nowhere", "/nowhere cannot be read"),
        ("package --fragment /bin/true", "/bin/true cannot be read: it is not a text"),
        ("vm --stock --flavour foo", "--flavour must be one of cloud-amd64, amd64, lab"),
        ("vm", "an interactive shell needs a terminal"),
        (f"vm --command {'x' * 40_000}", "the command for the guest is too long"),
        ("lab.try --backend foo", "--backend must be one of stock, export"),
        ("lab.try --window-us=-1", "--window-us must be a whole number, 0 or more"),
        ("lab.stress --minutes foo", "--minutes must be a whole number, 1 or more"),
        ("lab.stress --workload foo", "--workload must be one of"),
        ("lab.mutants --suite sid", "--suite must be one of"),
        ("bench.procfile --kernel foo", "--kernel must be one of ours, stock, all"),
        ("bench.procfile --load foo", "--load must be one of ids"),
        ("bench.procfile --rounds 0", "--rounds must be a whole number, 1 or more"),
    ],
)
def test_a_bad_request_is_refused_before_anything_is_done(
    command: str, words: str, tmp_path: Path, here: Here
) -> None:
    status, out, err = here(*command.split())
    assert (status, out) == (2, "")
    assert words in err
    assert not list(tmp_path.iterdir())
    # A dry run does not promise what a real one refuses; only the latter needs a terminal.
    if command != "vm":
        assert here("--dry", *command.split()) == (2, "", err)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (
            "bench.build --case full --before 6.1.1-1",
            "--before would be ignored with --case full",
        ),
        ("test --stock --modules rebuild", "--modules would be ignored with --stock"),
        ("test --tier unit --accel tcg", "--accel would be ignored with --tier unit"),
        ("test --tier vm --all", "--all would be ignored with --tier vm"),
        ("test --tier lab --modules keep", "--modules would be ignored with --tier lab"),
        ("lab.mutants --refresh -k one", "-k would be ignored with --refresh"),
        ("vm --stock --fragment /bin/true", "--fragment would be ignored with --stock"),
        ("lab.stress --minutes 5 --seconds 60", "--minutes would be ignored with --seconds"),
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
        "bench.build --case full --flavour amd64",
        "bench.procfile --rounds 3 --load sparse --kernel stock --accel tcg",
        "test --tier unit -k one",
        "test --tier lab --all --stock",
        "lab.stress --seconds 60 --seed 7",
    ],
)
def test_options_that_go_together_are_not_called_ignored(command: str, here: Here) -> None:
    assert "would be ignored" not in here("--dry", *command.split())[2]


def test_a_number_keeps_its_default(here: Here) -> None:
    plan = ["--dry", "lab.stress", "--seed=7"]
    assert here(*plan) == here(*plan, "--minutes=5") != here(*plan, "--seconds=60")


@pytest.mark.parametrize("place", ["kmod", ".git", "kmod/build"])
@pytest.mark.parametrize("task", TASKS)
def test_no_task_touches_a_directory_that_is_not_ours(
    task: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: Here
) -> None:
    # Another checkout: a task that does touch it must not destroy this one.
    project = tmp_path / "project"
    for name in ("kmod/Kbuild", ".git/HEAD"):
        (project / name).parent.mkdir(parents=True)
        (project / name).write_text("precious\n")
    monkeypatch.setattr(cli, "PROJECT", project)
    monkeypatch.setenv("INVOKE_BUILD_DIR", place)
    before = sorted(tmp_path.rglob("*"))
    for command in ([task], ["--dry", task]):
        status, out, err = here(*command)
        if task == "doctor":
            assert "places: Give build_dir a directory of its own" in out
        else:
            assert (status, out) == (2, "")
            assert str(project / place) in err
    assert sorted(tmp_path.rglob("*")) == before


def mark_places(home: Path) -> None:
    settings = Settings(project=PROJECT, build=home / "build", cache=home / "cache")
    for place in places.both(settings):
        places.mark(place)


def test_dry_clean_removes_nothing(tmp_path: Path, here: Here) -> None:
    mark_places(tmp_path)
    status, out, _ = here("--dry", "clean")
    assert (status, f"would remove {tmp_path / 'build'}" in out) == (0, True)
    assert (tmp_path / "build").is_dir()
    assert here("clean")[0] == 0
    assert not (tmp_path / "build").exists()


def test_clean_removes_only_what_is_unused(tmp_path: Path, here: Here) -> None:
    mark_places(tmp_path)
    tree, build = tmp_path / "cache/trees/old", tmp_path / "build"
    tree.mkdir(parents=True)
    os.utime(tree, (0, 0))
    for options, said in (
        (["--unused", "0"], "a whole number, 1 or more"),
        (["--unused", "many"], "a whole number, 1 or more"),
        (["--unused", "30", "--cache"], "--cache would be ignored with --unused"),
        (["--unused", "30", "--roots"], "--roots would be ignored with --unused"),
    ):
        status, _, err = here("clean", *options)
        assert status == 2
        assert said in err
    assert here("clean", "--unused", "30") == (0, f"removed {tree}\n", "")
    assert build.is_dir()
    assert not tree.exists()


def test_dry_test_names_both_commands_and_runs_neither(tmp_path: Path, here: Here) -> None:
    status, out, _ = here("--dry", "test", "-k", "nothing")
    assert status == 0
    assert "pytest tests/unit" in out
    assert "pytest tests/vm" in out
    assert not (tmp_path / "build/test").exists()


def test_a_dry_run_of_all_suites_says_what_is_wrong_with_each(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explain(settings: Settings, target: Target, modules: str) -> Answer:
        if target.suite != "bookworm":
            raise BuildError(f"no series applies to {target.suite}")
        return Answer(text="kernel is current")

    monkeypatch.setattr(dry_run, "explain", explain)
    status, out, _ = here("--dry", "build-kernel", "--suite", "all")
    assert status == 3
    assert out.count("build error: no series applies") == 3
    assert "kernel is current" in out


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
        ["vm", "--command", "true"],
        ["lab.try"],
        ["lab.stress"],
        ["lab.mutants"],
        ["bench.build"],
        ["bench.procfile"],
    ],
    ids=" ".join,
)
def test_without_root_nothing_is_fetched_in_vain(
    arguments: list[str], here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With nothing in the cache, a task that goes on ends with another status.
    monkeypatch.setenv("INVOKE_OFFLINE", "true")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    status, out, err = here(*arguments)
    assert (status, out) == (2, "")
    assert "needs root privileges" in err
    assert "sudo" in err


def test_root_is_asked_for_where_it_is_needed(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    passed = testing.TierResult("unit", 0, 1, 0, 1.0, Path("unit.xml"))
    monkeypatch.setattr(testing, "_run_tier", lambda *_, **__: passed)
    assert here("test", "--tier", "unit")[0] == 0
    assert here("--dry", "bench.procfile")[0] == 0
    assert here("--dry", "lab.mutants")[0] == 0
