"""The pipelines of contrib/ci/: they are YAML, and call tasks and options that exist.

Their form is that of the schemas in check-jsonschema, which is not among our requirements:

    check-jsonschema --builtin-schema vendor.gitlab-ci contrib/ci/gitlab-ci.yml
    check-jsonschema --builtin-schema vendor.github-workflows contrib/ci/github.yml
    check-jsonschema --builtin-schema vendor.woodpecker-ci contrib/ci/woodpecker.yml
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from invoke.exceptions import ParseError
from invoke.parser import Parser
from invoke.util import yaml  # type: ignore[attr-defined]

import tasks
from kbuild.cli import _named, program
from kbuild.core.places import TAG, Place
from kbuild.options import DEFAULTS
from tests.unit.command_line import PROJECT

CI = PROJECT / "contrib/ci"
PIPELINES = sorted(CI.glob("*.yml"))
# Values that a person gives to a run.
GIVEN = {"$RELEASE": "bookworm-lab-6.1.192-3+cplayground1", "$PERCENT": "10"}


def document(path: Path) -> object:
    return yaml.safe_load(path.read_text())  # type: ignore[no-untyped-call]


def texts(value: object) -> Iterator[str]:
    """Yield each text of a document that is not a key."""
    if isinstance(value, dict):
        for one in value.values():
            yield from texts(one)
    elif isinstance(value, list):
        for one in value:
            yield from texts(one)
    elif isinstance(value, str):
        yield value


def calls(path: Path) -> list[list[str]]:
    """Return the words of each command line that calls ./inv, without the redirection."""
    lines = [line for text in texts(document(path)) for line in text.split("\n")]
    found = []
    for line in lines:
        if line.startswith("./inv "):
            words = shlex.split(line.partition(" > ")[0])[1:]
            found.append([GIVEN.get(word, word) for word in words])
    return found


def parse(words: list[str]) -> list[str]:
    """Return the tasks that a command line calls; raises ParseError for one it does not know."""
    known = Parser(contexts=tasks.ns.to_contexts(), initial=program(tasks.ns).initial_context)
    return [str(one.name) for one in known.parse_argv(list(_named(words, tasks.ns)))[1:]]


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.name)
def test_a_pipeline_calls_tasks_that_exist(path: Path) -> None:
    assert [parse(words) for words in calls(path)] == [
        *(["package"], ["test"], ["release"], ["promote"], ["rollback"])
    ]


@pytest.mark.parametrize(
    "words", [["packages"], ["package", "--jsno"], ["test", "--tier"], ["releases", "ID"]]
)
def test_a_call_that_would_fail_is_found(words: list[str]) -> None:
    with pytest.raises(ParseError):
        parse(words)


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.name)
def test_a_pipeline_sets_keys_of_the_configuration(path: Path) -> None:
    keys = set(re.findall(r"\bINVOKE_([A-Z_]+)", path.read_text()))
    assert keys
    assert {key.lower() for key in keys} <= set(DEFAULTS)


def test_a_kept_cache_has_its_mark() -> None:
    """A run refuses a directory of caches with content but without the mark."""
    mark = Place("cache_dir", Path("cplayground-kernel"), PROJECT).mark
    for name in ("gitlab-ci.yml", "github.yml"):
        kept = " ".join(texts(document(CI / name))).split()
        assert {f".cache/cplayground-kernel/{one}" for one in (mark.name, TAG)} <= set(kept)


@pytest.mark.parametrize("container", [False, True])
def test_only_a_container_is_prepared(container: bool, tmp_path: Path) -> None:
    root = tmp_path / "root"
    checkout, configuration = root / "builds/kernel", root / "etc/apt/apt.conf.d"
    script = checkout / "contrib/ci/prepare"
    for path in (script.parent, configuration, root / "var/cache/apt/archives/partial"):
        path.mkdir(parents=True)
    script.write_bytes((CI / "prepare").read_bytes())
    cache = checkout / ".cache"
    cache.mkdir()
    cache.chmod(0o777)
    (configuration / "other").touch()
    if container:
        (configuration / "docker-clean").touch()
    before = sorted(root.rglob("*"))
    subprocess.run(["sh", str(script), str(root)], check=True, timeout=60)
    mode = cache.stat().st_mode & 0o777
    archives = root / "var/cache/apt/archives"
    if container:
        assert (mode, archives.resolve()) == (0o755, cache / "apt")
        assert (archives / "partial").is_dir()
        assert list(configuration.iterdir()) == [configuration / "other"]
    else:
        assert (mode, sorted(root.rglob("*"))) == (0o777, before)
