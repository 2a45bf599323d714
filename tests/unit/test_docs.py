"""Links in the documentation lead somewhere, and the reference's tables are the code's."""

from __future__ import annotations

import ast
import hashlib
import importlib
import re
import signal
from dataclasses import fields
from pathlib import Path

import pytest

from kbuild.core import errors, suites, variants
from kbuild.core.errors import KbuildError
from kbuild.guest import outcome
from kbuild.ship import manifest
from kbuild.watch import metrics
from kbuild.watch.summary import Condition
from tests.unit import statuses

PROJECT = Path(__file__).resolve().parents[2]
REFERENCE = PROJECT / "docs/reference"
DIAGRAMS = PROJECT / "docs/explain/diagrams"
DOCUMENTS = [
    *sorted(PROJECT.glob("*.md")),
    *sorted((PROJECT / "docs").rglob("*.md")),
    PROJECT / "tests/conformance/README.md",
]


def prose(path: Path) -> str:
    """Return a Markdown file without its blocks of code."""
    return re.sub(r"(?ms)^( *)```.*?^ *```", "", path.read_text(encoding="utf-8"))


def broken_links(path: Path) -> list[str]:
    """List the relative links of a Markdown file whose file or heading is not there."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    return broken


def anchors(path: Path) -> set[str]:
    """Return the names that a Markdown renderer gives to the headings of a file."""
    headings = re.findall(r"(?m)^#+ +(.+?) *$", prose(path))
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def first_column(page: str, *headings: str) -> list[str]:
    """Return the names in the first column of the tables below headings of a reference page."""
    parts = re.split(r"(?m)^#+ +(.+?) *$", prose(REFERENCE / page))
    found = dict(zip(parts[1::2], parts[2::2], strict=True))
    names = []
    for heading in headings:
        _title, _line, *cells = re.findall(r"(?m)^\| ([^|]+) \|", found[heading])
        names += [name for cell in cells for name in cell.strip("`").split("`, `")]
    return names


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(PROJECT)))
def test_links_lead_somewhere(path: Path) -> None:
    assert not broken_links(path)


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A heading\n[a](other.md) [b](#a-heading) [c](#gone) [d](https://x.example/)\n"
        "```\n# comment\n[e](code.md)\n```\n[f](#comment)\n"
    )
    assert broken_links(page) == ["other.md", "#gone", "#comment"]


def test_the_tables_of_suites_variants_and_keys_are_complete() -> None:
    assert first_column("suites.md", "Supported suites") == list(suites.SUITES)
    assert first_column("variants.md", "Variants") == list(variants.VARIANTS)
    defaults = importlib.import_module("tasks").DEFAULTS
    assert sorted(first_column("configuration.md", "Keys")) == sorted(defaults)


def test_every_exit_status_is_documented() -> None:
    cells = first_column("exit-status.md", "Statuses", "Outcomes of a guest")
    statuses = {each.exit_status for each in outcome.Outcome} | {
        value.exit_status
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, KbuildError)
    }
    statuses.add(errors.UPDATE_STATUS)
    ended = {128 + one for one in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE, signal.SIGTERM)}
    assert sorted(int(cell) for cell in cells if cell.isdigit()) == sorted(statuses | ended)


@pytest.mark.parametrize(
    ("heading", "record"),
    [
        ("Top level", manifest.Manifest),
        ("A kernel", manifest.KernelRecord),
        ("A build", manifest.BuildRecord),
        ("An output", manifest.Output),
    ],
)
def test_every_field_of_the_manifest_is_documented(heading: str, record: type) -> None:
    assert sorted(first_column("manifest.md", heading)) == sorted(
        field.name for field in fields(record)
    )


@pytest.mark.parametrize("text", sorted(DIAGRAMS.glob("*.dot")), ids=lambda path: path.name)
def test_a_picture_is_drawn_from_its_text_and_is_shown(text: Path) -> None:
    digest = hashlib.sha256(text.read_bytes()).hexdigest()
    picture = text.with_suffix(".svg")
    assert digest in picture.read_text(encoding="utf-8"), "run docs/explain/diagrams/draw.sh"
    shown = re.compile(rf"!\[[^\]]+\]\([^)]*{re.escape(picture.name)}\)")
    assert any(shown.search(prose(path)) for path in DOCUMENTS)


def test_every_module_says_what_it_is() -> None:
    modules = [path for path in (PROJECT / "kbuild").rglob("*.py") if path.stat().st_size]
    assert modules
    assert not [path for path in modules if not ast.get_docstring(ast.parse(path.read_bytes()))]


def test_every_metric_and_condition_is_documented(tmp_path: Path) -> None:
    found = metrics.render(statuses.good(tmp_path / "a.log")).decode()
    names = re.findall(r"(?m)^# TYPE cplayground_kernel_(\w+) ", found)
    assert first_column("status.md", "Metrics") == names
    conditions = first_column("status.md", "Conditions of a kernel")
    assert conditions == [one.value for one in Condition]
