"""Fragments: read, merged, and found again in the result."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbuild import kconfig
from kbuild.errors import UserError
from kbuild.kconfig import Fragment

OPTIONS = st.dictionaries(
    st.from_regex(r"[A-Z][A-Z0-9_]{0,20}", fullmatch=True),
    st.sampled_from(["y", "m", "n", "42", '"text with = and #"']),
)


@given(OPTIONS)
def test_a_fragment_survives_writing_and_reading(options: dict[str, str]) -> None:
    assert kconfig.parse(Fragment("f", options).text(), name="f", strict=True).options == options


@given(OPTIONS, OPTIONS)
def test_the_later_fragment_wins(first: dict[str, str], second: dict[str, str]) -> None:
    merged = kconfig.merge(Fragment("a", first), [Fragment("b", second)])
    assert kconfig.parse(merged, name="m").options == first | second


@pytest.mark.parametrize(
    ("final", "missing"),
    [
        ({"KASAN": "y", "SWAP": "n"}, []),
        ({"KASAN": "y"}, []),  # not in the result at all is the same as not set
        ({"KASAN": "m"}, ["KASAN"]),
        ({}, ["KASAN"]),
        ({"KASAN": "y", "SWAP": "y"}, ["SWAP"]),
    ],
)
def test_dropped(final: dict[str, str], missing: list[str]) -> None:
    fragment = Fragment("f", {"KASAN": "y", "SWAP": "n"})
    assert list(kconfig.dropped(Fragment("final", final), [fragment])) == missing


def test_only_the_last_word_on_an_option_counts() -> None:
    fragments = [Fragment("a", {"X": "y"}), Fragment("b", {"X": "n"})]
    assert kconfig.dropped(Fragment("final", {}), fragments) == {}
    assert kconfig.dropped(Fragment("final", {"X": "y"}), fragments) == {"X": ("n", "y", "b")}


@pytest.mark.parametrize("line", ["KASAN=y", "CONFIG_KASAN y", "CONFIG_=y"])
def test_a_line_that_is_no_configuration_is_refused(line: str) -> None:
    with pytest.raises(UserError, match=r"f:2 is not configuration"):
        kconfig.parse(f"CONFIG_A=y\n{line}\n", name="f", strict=True)


def test_a_missing_fragment_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        kconfig.read(tmp_path / "none")


def test_our_own_fragments_are_well_formed() -> None:
    paths = sorted((Path(__file__).parents[2] / "fragments").glob("*.config"))
    assert paths
    for path in paths:
        assert kconfig.read(path).options
