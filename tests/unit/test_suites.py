"""The table of suites: what an entry has to say for everything else to follow."""

from __future__ import annotations

import pytest

from kbuild import mirror, roots, suites
from kbuild.mirror import Mirrors

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
