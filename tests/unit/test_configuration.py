"""The configuration: files, variables, and what is refused in them."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from kbuild.options import DEFAULTS
from tests.unit.command_line import Here, here, invoke

__all__ = ["here"]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("JOBS", "many", "jobs must be a whole number"),
        ("REVISION", "0", "revision must be a whole number"),
        ("REVISION", "", "revision must be a whole number"),
        ("OFFLINE", "perhaps", "offline must be true or false"),
        ("BUILD_DIR", "", "which 'clean' would remove"),
        ("BUILD_DIR", "..", "which 'clean' would remove"),
        ("CACHE_DIR", "/", "which 'clean' would remove"),
        ("CACHE_DIR", "~", "which 'clean' would remove"),
        ("CACHE_DIR", "README.md/cache", "cannot be a directory"),
    ],
)
def test_a_bad_configuration_is_refused(
    key: str, value: str, words: str, monkeypatch: pytest.MonkeyPatch, here: Here
) -> None:
    monkeypatch.setenv(f"INVOKE_{key}", value)
    status, _, err = here("--dry", "clean")
    assert status == 2
    assert words in err


def test_a_message_about_the_signing_command_has_none_of_its_words(
    monkeypatch: pytest.MonkeyPatch, here: Here
) -> None:
    monkeypatch.setenv("INVOKE_SIGN_COMMAND", "sign --pin 's3cret")
    status, _, err = here("--dry", "clean")
    assert status == 2
    assert "sign_command is not a command" in err
    assert "s3cret" not in err


@pytest.mark.parametrize("key", DEFAULTS)
def test_a_null_is_the_default(key: str, tmp_path: Path, here: Here) -> None:
    """So is a key without a value."""
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
        ("kernel_version: 6.1", "kernel_version has the wrong type", "in quotes"),
        ("scheduler: false", "scheduler has the wrong type", "expected: a text"),
        ("jobs: 1.5", "jobs has the wrong type", "expected: a whole number"),
        ("jobs: true", "jobs must be a whole number", "True"),
        ("jobs: [1]", "jobs has the wrong type", "of type list"),
        ("offline: [true]", "offline has the wrong type", "expected: true or false"),
        ("offline: 3", "offline must be true or false", "3"),
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


def test_a_file_may_have_lists_and_numbers(tmp_path: Path, here: Here) -> None:
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
    assert (status, "offline must be true or false" in err) == (2, True)
    monkeypatch.setenv("INVOKE_OFFLINE", "false")
    monkeypatch.setenv("INVOKE_SUITE", "sid")
    status, _, err = here("explain")
    assert (status, "sid" in err) == (2, True)


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
        ("jobs: 4", "many", "jobs must be a whole number"),
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
    assert (status, "hamm" in err) == (2, True)


def test_the_environment_sets_a_default_and_an_option_overrides_it(tmp_path: Path) -> None:
    done = invoke("explain", home=tmp_path, INVOKE_SUITE="sid")
    assert (done.returncode, "sid" in done.stderr) == (2, True)
    done = invoke("explain", "--suite", "buzz", home=tmp_path, INVOKE_SUITE="sid")
    assert (done.returncode, "buzz" in done.stderr) == (2, True)


@pytest.mark.parametrize("key", ["flavour", "variant"])
def test_a_task_without_the_option_refuses_a_bad_value_too(
    key: str, monkeypatch: pytest.MonkeyPatch, here: Here
) -> None:
    monkeypatch.setenv(f"INVOKE_{key.upper()}", "foo")
    status, _, err = here("--dry", "lab.mutants")
    assert (status, f"{key} must be one of" in err) == (2, True)


def test_the_users_invoke_yaml_is_read(tmp_path: Path) -> None:
    (tmp_path / ".invoke.yaml").write_text("suite: hamm\n")
    done = invoke("explain", home=tmp_path)
    assert (done.returncode, "hamm" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    "name",
    ["~nouser/x", "/tmp/\udcff", "x" * 300, "/" + "x/" * 2000, "loop/x"],
    ids=["the home of no user", "not UTF-8", "a long name", "a long path", "a loop"],
)
@pytest.mark.parametrize("key", ["build_dir", "cache_dir", "fragment"])
def test_an_impossible_path_is_the_users_error(
    key: str, name: str, here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    name = name.replace("loop", f"{tmp_path}/loop")
    if key != "fragment":
        monkeypatch.setenv(f"INVOKE_{key.upper()}", name)
    status, out, err = here("explain", *(["--fragment", name] if key == "fragment" else []))
    assert (status, out) == (2, "")
    assert f"{key} is not a usable path" in err
    assert "Traceback" not in err


def test_a_user_without_a_home_is_told(
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
