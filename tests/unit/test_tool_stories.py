"""The tool's commands print what is kept for each recorded story, and JSON that is the text's.

``python -m tests.unit.test_tool_stories`` writes the kept output again.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest

from cplayground import cli, parse

PROJECT = Path(__file__).resolve().parents[2]
STORIES = sorted((PROJECT / "tests/stories").glob("*.procfile"))
CONFORMANCE = sorted((PROJECT / "tests/conformance").glob("*.procfile"))
SCHEMA = json.loads((PROJECT / "cplayground/cplayground-1.schema.json").read_text("ascii"))
_OCTAL = re.compile(rb"\\([0-7]{3})")


def run(*words: str) -> str:
    """Run a command that succeeds, and return its output."""
    with redirect_stdout(io.StringIO()) as output:
        assert cli.main(words) == 0
    return output.getvalue()


def commands(story: Path) -> Iterator[tuple[str, ...]]:
    """Yield the commands whose output is kept: all tables, and the tree of each pipe."""
    yield from (("ls",), ("ls", "-l"), ("ps",), ("shared",), ("shared", "--across"))
    for pipe in parse(story.read_bytes()).pipes():
        yield ("pipe", pipe.path.text)


def tables(story: Path) -> str:
    """Return the output of the commands, each after its command line."""
    return "\n".join(
        f"$ cplayground {' '.join(words)}\n{run(*words, '--from', str(story))}"
        for words in commands(story)
    )


def as_json(story: Path) -> str:
    return run("json", "--from", str(story))


@pytest.mark.parametrize("story", STORIES, ids=lambda path: path.stem)
def test_the_tables_are_those_that_are_kept(story: Path) -> None:
    assert tables(story) == story.with_suffix(".txt").read_text("utf-8")


@pytest.mark.parametrize("story", STORIES, ids=lambda path: path.stem)
def test_the_json_is_the_one_that_is_kept(story: Path) -> None:
    assert as_json(story) == story.with_suffix(".json").read_text("ascii")


@pytest.mark.parametrize("story", [*STORIES, *CONFORMANCE], ids=lambda path: path.stem)
def test_lines_are_the_parts_of_the_document_and_both_fit_the_schema(story: Path) -> None:
    text = as_json(story)
    whole = json.loads(text)
    lines = [json.loads(line) for line in run("json", "--lines", "--from", str(story)).splitlines()]
    assert text.isascii()
    validator = jsonschema.Draft202012Validator(SCHEMA)
    for one in (whole, *lines):
        validator.validate(one)
    parts = {"container": "containers", "shared": "shared", "process": "processes"}
    joined: dict[str, Any] = {name: [] for name in parts.values()}
    first, *others = lines
    assert first.pop("type") == "snapshot"
    for line in others:
        joined[parts[line.pop("type")]].append(line)
    assert whole == {**first, **joined}


def in_ascii(name: str) -> str:
    """Return a name of the tool's JSON in the form of the conformance set."""
    found = _OCTAL.sub(lambda match: bytes([int(match[1], 8)]), name.encode("utf-8"))
    return "".join(
        chr(byte) if 0x20 <= byte < 0x7F and byte != 0x5C else f"\\{byte:03o}" for byte in found
    )


def conforming(process: dict[str, Any], ids: dict[int, str]) -> dict[str, Any]:
    """Return a process of the tool's JSON in the form of the conformance set."""
    kept = ("namespace_id", "global_pid", "pid", "ppid", "pgid", "state", "blocked", "pending")
    return {
        **{key: process[key] for key in kept if key in process},
        "command": in_ascii(process["command"]),
        "files": [
            {
                "fd": one["fd"],
                "close_on_exec": one["close_on_exec"],
                "open_file_id": ids[one["file"]],
                "position": str(one["position"]),
                "flags": one["flags"],
                "path": in_ascii(one["path"]),
            }
            for one in process["descriptors"]
        ],
    }


@pytest.mark.parametrize("procfile", CONFORMANCE, ids=lambda path: path.stem)
def test_the_json_has_what_the_conformance_set_expects(procfile: Path) -> None:
    expected = json.loads(procfile.with_suffix(".json").read_text("ascii"))
    found = json.loads(as_json(procfile))
    ids: dict[int, str] = {}
    for there, here in zip(expected["processes"], found["processes"], strict=True):
        for file, descriptor in zip(there["files"], here["descriptors"], strict=True):
            assert ids.setdefault(descriptor["file"], file["open_file_id"]) == file["open_file_id"]
    assert len(set(ids.values())) == len(ids)
    assert [conforming(one, ids) for one in found["processes"]] == expected["processes"]


def test_the_schema_keeps_what_version_1_promised() -> None:
    """A key that was promised stays; more may come."""
    promised = {
        "snapshot": {"schema", "source", "fields"},
        "container": {"container", "name", "id", "runtime", "pod"},
        "shared": {"file", "shown_as", "mode", "kind", "path"}
        | {"descriptors", "processes", "containers"},
        "process": {"container", "namespace_id", "global_pid", "pid", "ppid", "pgid", "command"}
        | {"descriptors"},
        "descriptor": {"fd", "close_on_exec", "file", "position", "flags", "mode", "kind", "path"},
        "document": {"containers", "shared", "processes"},
        "watch": {"schema", "seconds"},
        "reading": {"time", "elapsed", "took", "processes", "descriptors", "changes"},
        "change": {"time", "change", "container", "global_pid", "pid", "command"}
        | {"before", "after"},
    }
    required = {name: set(SCHEMA["$defs"][name]["required"]) for name in promised}
    assert not [name for name, keys in promised.items() if keys - required[name]]
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    closed = [key for key in json.dumps(SCHEMA).split('"') if key.endswith("Properties")]
    assert not closed, "a key that is added must fit the schema"


if __name__ == "__main__":
    for one in STORIES:
        one.with_suffix(".txt").write_text(tables(one), encoding="utf-8")
        one.with_suffix(".json").write_text(as_json(one), encoding="ascii")
