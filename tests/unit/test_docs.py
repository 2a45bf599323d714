"""The documentation names what exists, and everything that exists is documented."""

from __future__ import annotations

import ast
import importlib
import re
import signal
from pathlib import Path

import pytest
from invoke.collection import Collection
from invoke.context import Context
from invoke.tasks import task

from kbuild.core import errors, suites, variants
from kbuild.core.errors import KbuildError
from kbuild.guest import outcome

PROJECT = Path(__file__).resolve().parents[2]
DOCUMENTS = [
    PROJECT / "README.md",
    PROJECT / "SECURITY.md",
    *sorted((PROJECT / "docs").glob("*.md")),
]


def documentation() -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)


def namespace() -> Collection:
    # Loaded anew, because Invoke gives a task's help texts out only once.
    tasks = importlib.reload(importlib.import_module("tasks"))
    assert isinstance(tasks.ns, Collection)
    return tasks.ns


def undocumented_tasks(collection: Collection, text: str) -> list[str]:
    """List the tasks, and their options, that ``text`` does not mention as a user types them."""
    missing = []
    for name in sorted(collection.task_names):
        task = collection[name]
        if not re.search(rf"`[^`]*\b{re.escape(name)}\b", text):
            missing.append(name)
        if not task.__doc__:
            missing.append(f"{name}: no docstring")
        for argument in task.get_arguments():
            name_typed = str(argument.name).replace("_", "-")
            option = f"--{name_typed}" if len(name_typed) > 1 else f"-{name_typed}"
            if f"`{option}" not in text and f"{name} {option}" not in text:
                missing.append(f"{name} {option}")
            if not argument.help:
                missing.append(f"{name} {option}: no help text")
    return missing


def broken_links(path: Path) -> list[str]:
    """List the relative links of a Markdown file whose file or heading is not there."""
    text = path.read_text(encoding="utf-8")
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    return broken


def anchors(path: Path) -> set[str]:
    """Return what a Markdown renderer calls the headings of a file."""
    headings = re.findall(r"(?m)^#+ +(.+?) *$", path.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_task_and_option_is_documented() -> None:
    assert not undocumented_tasks(namespace(), documentation())


def test_an_undocumented_task_is_found() -> None:
    def collection(help_texts: dict[str, str]) -> Collection:
        @task(help=help_texts)
        def fly(c: Context, speed: str = "fast") -> None:
            """Take off."""

        return Collection(fly)

    helped = {"speed": "how fast"}
    assert undocumented_tasks(collection(helped), "nothing") == ["fly", "fly --speed"]
    assert not undocumented_tasks(collection(helped), "`invoke fly --speed slow`")
    found = undocumented_tasks(collection({}), "`invoke fly --speed slow`")
    assert found == ["fly --speed: no help text"]


def test_every_configuration_key_is_documented() -> None:
    text = documentation()
    defaults = importlib.import_module("tasks").DEFAULTS
    assert defaults
    assert not [key for key in defaults if f"`{key}`" not in text]


def test_every_flavour_suite_and_variant_is_documented() -> None:
    text = documentation()
    names = [*suites.DEBIAN_FLAVOURS, *suites.OWN_FLAVOURS, *suites.SUITES, *variants.VARIANTS]
    assert not [name for name in names if f"`{name}`" not in text]


def test_every_exit_status_is_documented() -> None:
    rows = re.findall(r"(?m)^\| (\d+) \|", (PROJECT / "README.md").read_text(encoding="utf-8"))
    assert [int(row) for row in rows] == sorted({int(row) for row in rows})
    statuses = {each.exit_status for each in outcome.Outcome} | {
        value.exit_status
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, KbuildError)
    }
    ended = {128 + one for one in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE, signal.SIGTERM)}
    assert {int(row) for row in rows} == statuses | ended


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    assert not broken_links(path)


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A heading\n[a](other.md) [b](#a-heading) [c](#gone) [d](https://x.example/)\n"
    )
    assert broken_links(page) == ["other.md", "#gone"]


def modules_without_docstring(directory: Path) -> list[Path]:
    return [
        path
        for path in sorted(directory.rglob("*.py"))
        if path.stat().st_size and not ast.get_docstring(ast.parse(path.read_text("utf-8")))
    ]


def test_every_module_says_what_it_is() -> None:
    assert not modules_without_docstring(PROJECT / "kbuild")


def test_a_module_without_docstring_is_found(tmp_path: Path) -> None:
    (tmp_path / "silent.py").write_text("x = 1\n")
    (tmp_path / "empty.py").touch()
    assert modules_without_docstring(tmp_path) == [tmp_path / "silent.py"]
