"""The table of suites: every entry is complete and consistent."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from kbuild.core import suites
from kbuild.fetch import mirror, roots
from kbuild.fetch.mirror import Mirrors

FOUND = Mirrors(main=("http://main",), security=("http://security",))


@pytest.mark.parametrize("name", suites.SUITES)
def test_an_entry_is_whole(name: str) -> None:
    row = suites.suite(name)
    dists = dict(mirror.dists(row, FOUND))
    assert row.codename in dists
    assert dists[row.security] == FOUND.security
    assert all(urls == FOUND.main for dist, urls in dists.items() if dist != row.security)
    kernel = [dist for dist, _ in mirror.kernel_dists(row, FOUND)]
    assert set(kernel) == (set(row.kernel_dists) or set(dists))
    assert row.compiler.endswith(row.compiler_package)
    assert row.compiler_package.startswith("gcc-")


@pytest.mark.parametrize("name", suites.SUITES)
def test_names_of_packages_are_replaced_and_no_other(name: str) -> None:
    row = suites.suite(name)
    asked = {*roots.COMPILE_PACKAGES, *roots.GUEST_PACKAGES}
    assert set(row.names) <= asked, "a name that no root asks for"
    for wanted, here in (
        (roots.COMPILE_PACKAGES, roots.compile_packages(name)),
        (roots.GUEST_PACKAGES, roots.guest_packages(name)),
    ):
        assert "" not in here
        assert not (set(row.names) - set(row.names.values())) & set(here)
        assert {one for one in wanted if one not in row.names} <= set(here)


def test_only_backports_take_their_kernel_from_one_dist() -> None:
    row = suites.suite("trixie-backports")
    assert [dist for dist, _ in mirror.kernel_dists(row, FOUND)] == ["trixie-backports"]
    assert row.codename == "trixie"
    assert suites.suite("trixie").compiler == row.compiler


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ID=debian\nVERSION_CODENAME=trixie\n", "trixie"),
        ('ID="debian"\nVERSION_CODENAME="bullseye"\n', "bullseye"),
        ("ID=debian\nVERSION_CODENAME=buster\n", "bookworm"),
        ("ID=debian\n", "bookworm"),
        ("ID=other\nVERSION_CODENAME=trixie\n", "bookworm"),
        ("", "bookworm"),
    ],
)
def test_the_suite_is_the_machines_own_where_it_can_be(
    tmp_path: Path, text: str, expected: str
) -> None:
    (tmp_path / "os-release").write_text(text)
    assert suites.own_suite(tmp_path / "os-release") == expected
    assert suites.own_suite(tmp_path / "none") == "bookworm"


@pytest.mark.parametrize(
    ("release", "expected"),
    [
        ("6.1.0-56-cloud-amd64", "cloud-amd64"),
        ("6.1.0-56-amd64", "amd64"),
        ("6.1.0-56-cplayground-amd64", "amd64"),
        ("6.1.0-56-cplayground.10-amd64", "amd64"),
        ("7.3.4+deb13-cplayground.2-cloud-amd64", "cloud-amd64"),
        ("6.12.117+deb13-amd64", "amd64"),
        ("7.3.4+deb13-cloud-amd64", "cloud-amd64"),
        ("6.1.0-56-rt-amd64", "cloud-amd64"),
        ("6.1.0-56-cplayground-lab-debug", "cloud-amd64"),
        ("6.18.44-other", "cloud-amd64"),
        ("6.18.44", "cloud-amd64"),
    ],
)
def test_the_flavour_is_that_of_the_running_kernel_where_it_is_debians(
    release: str, expected: str
) -> None:
    assert suites.own_flavour(release) == expected


def test_objects_that_were_never_counted_are_taken_from_another_suite(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = suites.SUITES
    for name, counted in (("bullseye", 10), ("bookworm", 30), ("trixie", 20)):
        row = dataclasses.replace(rows[name], objects={("fast", "amd64"): counted})
        monkeypatch.setitem(suites.SUITES, name, row)
    assert suites.usual_objects("trixie", "fast", "amd64") == 20
    assert suites.usual_objects("trixie-backports", "fast", "amd64") == 30
    assert suites.usual_objects("trixie", "rebuild", "nobody's") is None
