"""Fragments: read, merged, and found again in the result."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbuild.core.errors import UserError
from kbuild.kernel import kconfig
from kbuild.kernel.kconfig import Fragment

OPTIONS = st.dictionaries(
    st.builds("".join, st.tuples(st.sampled_from("AZ"), st.text("AZ09_", max_size=8))),
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


HERE = """\
CONFIG_KASAN=y
# Why it is wanted
# [where it exists, else CONFIG_SYSCTL]
CONFIG_PROC_SYSCTL=y
# [where it exists]
CONFIG_BASE_FULL=y
"""


def kernel_with(tmp_path: Path, *options: str) -> Path:
    blocks = [f"config {option}\n\tbool\n\tdepends on A_{option}\n\n" for option in options]
    for name, text in (
        ("Kconfig", 'source "init/Kconfig"\nsource "lib/Kconfig.debug"\n'),
        ("lib/Kconfig.debug", "".join(blocks)),
        # a test of Kconfig's own, and a help text
        ("scripts/kconfig/tests/x/Kconfig", "config BASE_FULL\n\tbool\n"),
        ("init/Kconfig", "config OTHER\n\tbool\n\thelp\n\t  config BASE_FULL is gone\n"),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        (("PROC_SYSCTL", "BASE_FULL"), {"PROC_SYSCTL": "y", "BASE_FULL": "y"}),
        (("PROC_SYSCTL",), {"PROC_SYSCTL": "y"}),
        (("SYSCTL",), {"SYSCTL": "y"}),
    ],
)
def test_an_option_that_need_not_exist_is_left_out_or_replaced(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    there: tuple[str, ...],
    expected: dict[str, str],
) -> None:
    caplog.set_level("INFO")
    fragment = kconfig.parse(HERE, name="lab.config", strict=True)
    settled = kconfig.settle(fragment, kernel_with(tmp_path, *there))
    # KASAN is in no Kconfig file either, but the fragment requires it
    assert settled.options == {"KASAN": "y", **expected}
    gone = {"PROC_SYSCTL", "BASE_FULL"} - set(there)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == len(gone)
    assert all(any(f"no CONFIG_{name} (lab.config)" in line for line in said) for name in gone)


def test_a_substitute_does_not_override_an_option_that_is_given(tmp_path: Path) -> None:
    text = "# [where it exists, else CONFIG_B]\nCONFIG_A=y\nCONFIG_B=m\n"
    settled = kconfig.settle(kconfig.parse(text, name="f"), kernel_with(tmp_path, "B"))
    assert settled.options == {"B": "m"}


@pytest.mark.parametrize("after", ["", "\nCONFIG_A=y\n", "# a comment\nCONFIG_A=y\n"])
def test_a_mark_without_its_option_is_refused(after: str) -> None:
    with pytest.raises(UserError, match="without an option"):
        kconfig.parse(f"# [where it exists]\n{after}", name="f", strict=True)


def test_definitions_are_found_with_what_they_depend_on(tmp_path: Path) -> None:
    tree = kernel_with(tmp_path, "KCSAN", "KCSAN")
    assert kconfig.definitions(tree)["KCSAN"] == "depends on A_KCSAN"


@pytest.mark.parametrize(
    ("final", "expected"),
    [
        ({"A": "y", "KEY": "ours"}, {}),
        ({"A": "y", "KEY": "ours", "NEW": "n"}, {}),
        ({"KEY": "ours"}, {"A": "y -> n"}),
        ({"A": "y", "KEY": "ours", "NEW": "y"}, {"NEW": "n -> y"}),
    ],
)
def test_differences_from_the_distro_are_named(
    final: dict[str, str], expected: dict[str, str]
) -> None:
    distro = Fragment("distro", {"A": "y", "KEY": "theirs", "OFF": "n"})
    fragments = [Fragment("keys", {"KEY": "ours"})]
    assert kconfig.strayed(distro, Fragment("final", final), fragments) == expected


def test_a_file_that_is_no_text_is_the_users_error(tmp_path: Path) -> None:
    path = tmp_path / "mine.config"
    path.write_bytes(b"\x7fELF\xff")
    with pytest.raises(UserError, match=r"mine\.config cannot be read: it is not a text"):
        kconfig.read(path)
