"""The manual pages name every command, option, status, parameter and column, and are valid."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from cplayground import errors, options
from cplayground.kinds import KINDS
from tests.unit.test_docs import first_column

PROJECT = Path(__file__).resolve().parents[2]
MAN = PROJECT / "cplayground/man"
PAGES = sorted(MAN.glob("cplayground.*"))
# The macros of man(7) that these pages may use; a misspelled one would drop its line.
MACROS = {"TH", "SH", "SS", "TP", "PP", "RS", "RE", "nf", "fi", "br"}
FONTS = {"B", "I", "R", "BR", "RB", "BI", "IB", "IR", "RI"}


def text(section: int) -> str:
    """Return a page's text without requests and fonts."""
    source = (MAN / f"cplayground.{section}").read_text("ascii")
    lines = [re.sub(r"^\.[A-Z]{1,2} ?", "", line) for line in source.splitlines()]
    plain = re.sub(r"\\f[BIR]", "", "\n".join(lines))
    return plain.replace("\\-", "-").replace('"', "").replace("\\(aq", "'")


def tagged(section: int) -> list[str]:
    """Return the terms of a page's lists."""
    source = (MAN / f"cplayground.{section}").read_text("ascii")
    terms = []
    for line in re.findall(r"(?m)^\.TP\n(.*)$", source):
        words = re.sub(r"^\.[A-Z]{1,2} ", "", line)
        terms.append(re.sub(r'\\f[BIR]|"', "", words).replace("\\-", "-"))
    return terms


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_a_page_uses_macros_of_man(page: Path) -> None:
    lines = page.read_text("ascii").splitlines()
    used = {line[1:].split()[0] for line in lines if line.startswith(".") and line[1:2] != "\\"}
    assert used <= MACROS | FONTS
    assert lines[1].startswith(f".TH CPLAYGROUND {page.suffix[1:]} ")
    assert not [line for line in lines if line.endswith(" ") or len(line) > 100]
    # A hyphen that is typed in a shell must be a minus sign, also after copying.
    assert not [line for line in lines if re.search(r"(?<![\\\w])-[\w-]", line)]


def test_each_command_option_kind_and_status_is_in_the_manual() -> None:
    page = text(1)
    terms = " ".join(tagged(1)).replace(" ,", ",")
    for command in options.COMMANDS:
        assert re.search(rf"(?m)^{command.name}\b", "\n".join(tagged(1)))
        for option in options.options_of(command):
            assert not [name for name in option.names if name not in terms]
    assert not [kind for kind in KINDS if not re.search(rf"\b{kind}\b", page)]
    statuses = {
        one.status
        for _name, one in inspect.getmembers(errors, inspect.isclass)
        if issubclass(one, errors.Error)
    }
    listed = re.search(r"(?s)EXIT STATUS\n(.*?)\nFILES", page)
    assert listed is not None
    assert set(re.findall(r"(?m)^(\d+)$", listed[1])) == {"0", "1", *map(str, statuses)}


def test_the_format_and_the_parameters_are_those_of_the_reference() -> None:
    heading = {"column", "parameter", "---"}
    columns = set(first_column("procfile.md", "Columns")) - heading
    assert columns <= set(tagged(5))
    parameters = set(first_column("procfile.md", "Parameters")) - heading
    assert parameters <= set(tagged(4))
    source = (PROJECT / "kmod/cplayground.c").read_text()
    assert set(re.findall(r"module_param\((\w+),", source)) == parameters
    codes = set(re.findall(r"\| (?:open|read) \| (E[A-Z]+)", reference()))
    assert len(codes) > 3
    assert codes <= set(tagged(5))


def reference() -> str:
    return (PROJECT / "docs/reference/procfile.md").read_text("utf-8")
