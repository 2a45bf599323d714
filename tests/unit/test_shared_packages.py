"""Packages that the targets of a suite share: their versions, and the content of each version."""

from __future__ import annotations

from pathlib import Path

import pytest

from kbuild.core.errors import BuildError
from kbuild.ship import shared, tool_package
from tests import package_versions
from tests.package_versions import PROJECT, Noted
from tests.unit import toy

DATED = (shared.GUARD, shared.TOOL)


@pytest.mark.parametrize("name", package_versions.ALL)
def test_the_content_is_that_of_its_version(name: str) -> None:
    one: Noted = package_versions.ALL[name]
    version, _ = shared.dated_version(PROJECT, one.package)
    known = one.noted()
    assert known.get(version) == one.digest(), (
        f"{one.package.content} has changed: raise {one.package.version_file}, "
        f"and run python -m tests.package_versions {name}"
    )
    # Each version has content of its own, and the newest is the last.
    assert len({*known.values()}) == len(known) and [*known][-1] == version


@pytest.mark.parametrize("package", DATED, ids=lambda one: one.role)
@pytest.mark.parametrize("text", ["", "0.1", "0.1.0 yesterday", "v1 2026-11-30", "1.0 2026-13-01"])
def test_a_version_has_a_number_and_a_day(
    tmp_path: Path, package: shared.SharedPackage, text: str
) -> None:
    path = tmp_path / package.version_file
    toy.write(path, text)
    with pytest.raises(BuildError, match="no version"):
        shared.dated_version(tmp_path, package)
    path.write_text("0.2.0 1970-01-02\n")
    assert shared.dated_version(tmp_path, package) == ("0.2.0", 86400)


def test_the_tool_is_packed_without_what_a_run_leaves(tmp_path: Path) -> None:
    for name in ("__init__.py", "cli.py", "__pycache__/cli.cpython-39.pyc", "VERSION", "notes.txt"):
        toy.write(tmp_path / "cplayground" / name, "")
    places = {str(path): str(place) for path, place in tool_package.files(tmp_path).items()}
    top = "usr/lib/python3/dist-packages/cplayground"
    assert places == {
        f"cplayground/{name}": f"{top}/{name}" for name in ("VERSION", "__init__.py", "cli.py")
    }


def test_each_kind_of_file_has_its_place(tmp_path: Path) -> None:
    for name in ("__init__.py", "man/cplayground.5", "completion/_cplayground", "examples/a.sh"):
        toy.write(tmp_path / "cplayground" / name, "")
    found = {str(place) for place in tool_package.files(tmp_path).values()}
    assert found >= {
        "usr/share/man/man5/cplayground.5",
        "usr/share/zsh/vendor-completions/_cplayground",
        "usr/share/doc/cplayground/examples/a.sh",
    }


def test_a_checkout_without_the_tool_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="the tool is missing"):
        tool_package.files(tmp_path)
