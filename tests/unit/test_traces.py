"""Figures of traces.c are parsed, and those that show a fault of a reader are found."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kbuild.core.errors import UserError
from kbuild.lab import traces
from kbuild.lab.findings import DETECTORS

SOURCE = (Path(__file__).parents[2] / "kbuild" / "lab" / "programs" / "traces.c").read_text()
CLEAN = "rounds=30 late=0 worst_us=0 listings=99 longest_read_us=900 slept=0"


def faults(case: str, backend: str, text: str) -> list[str]:
    return traces.faults(case, backend, traces.parse(text))


def test_reads_what_the_program_prints() -> None:
    found = traces.parse(f"{CLEAN} by_others=3\n")
    assert (found.rounds, found.late, found.worst_us, found.listings) == (30, 0, 0, 99)
    assert (found.longest_read_us, found.slept) == (900, 0)
    assert found.words == {**traces.figures(CLEAN), "by_others": "3"}
    (printed,) = re.findall(r'printf\("(rounds=.*?)\\n"', SOURCE)
    assert list(traces.figures(printed)) == list(traces.figures(CLEAN))


def test_figures_are_the_words_with_a_value() -> None:
    text = "exec: rounds=10 wrong=0\nsaid=a=b\n"
    assert traces.figures(text) == {"rounds": "10", "wrong": "0", "said": "a=b"}


def test_each_case_is_one_of_the_program_and_a_detector() -> None:
    names = set(re.findall(r'!strcmp\(name, "([\w-]+)"\)', SOURCE))
    assert names == set(traces.ROUNDS)
    assert {f"trace {case}" for case in names} <= set(DETECTORS)
    assert names >= traces.OF_THE_TABLE


def test_the_linger_time_is_that_of_the_program() -> None:
    assert re.findall(r"^#define LINGER_S (\d+)", SOURCE, re.M) == [str(traces.LINGER_S)]


def test_the_command_of_a_case() -> None:
    argv = traces.argv("/place", "-", "text", rounds=7, readers=2)
    assert argv == ["/place/traces", "-", "text", "7", "2"]
    argv = traces.argv("/place", "-", "text", rounds=7, readers=2, first=True)
    assert argv[-1] == "first"


def test_a_reader_without_a_trace_has_no_fault() -> None:
    assert all(faults(case, "stock", CLEAN) == [] for case in traces.ROUNDS if case != "fuse-stuck")


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("late=0", "late=2", "late in 2 of 30 rounds"),
        ("listings=99", "listings=30", "only 30 listings"),
        ("slept=0", "slept=31", "slept 31 times"),
        ("longest_read_us=900", "longest_read_us=5000000", "took 5.0 s"),
        ("slept=0", "slept=0 by_others=1", "1 flushes by another"),
    ],
)
def test_each_fault_is_found(old: str, new: str, fault: str) -> None:
    assert old in CLEAN
    (found,) = faults("text", "stock", CLEAN.replace(old, new))
    assert fault in found


@pytest.mark.parametrize(
    "name", ["rounds", "late", "worst_us", "listings", "longest_read_us", "slept"]
)
def test_each_figure_has_to_be_there(name: str) -> None:
    with pytest.raises(UserError, match="not complete"):
        traces.parse(CLEAN.replace(f"{name}=", "other="))


def test_what_is_still_good() -> None:
    assert faults("text", "stock", CLEAN.replace("listings=99", "listings=31")) == []
    assert faults("text", "stock", CLEAN.replace("slept=0", "slept=30")) == []
    assert faults("text", "stock", CLEAN.replace("read_us=900", "read_us=4999999")) == []
    # A run that is late ends early, but has some listings.
    late = CLEAN.replace("late=0", "late=2")
    assert faults("text", "stock", late.replace("listings=99", "listings=1")) == [
        "late in 2 of 30 rounds"
    ]
    assert faults("locks", "export", late.replace("listings=99", "listings=0")) == [
        "the readers took only 0 listings"
    ]
    # A run that stops at the first stuck request has few listings and few rounds.
    stopped = "rounds=2 late=0 worst_us=0 listings=25 longest_read_us=9 slept=0 by_others=1"
    assert faults("fuse-stuck", "export", f"{stopped} killed=yes unload=EWOULDBLOCK") == []
    # With export, a work item flushes files that a process has left to it.
    assert faults("fuse", "export", f"{CLEAN} by_others=2") == []


def test_export_is_excused_for_what_a_reference_on_a_table_does() -> None:
    late = CLEAN.replace("late=0", "late=2")
    assert faults("locks", "export", late) == []
    assert faults("locks", "stock", late)
    assert faults("text", "export", late)


@pytest.mark.parametrize(
    ("words", "good"),
    [
        ("by_others=0 killed=not-tried unload=not-tried", True),
        ("by_others=1 killed=yes unload=EWOULDBLOCK", True),
        ("by_others=1 killed=no unload=EWOULDBLOCK", False),
        ("by_others=1 killed=yes unload=ok", False),
        ("by_others=1 killed=not-tried unload=not-tried", False),
        ("by_others=0 killed=yes unload=EWOULDBLOCK", False),
        ("by_others=0", False),
    ],
)
def test_beside_a_server_that_does_not_answer(words: str, good: bool) -> None:
    assert (faults("fuse-stuck", "export", f"{CLEAN} {words}") == []) == good


@pytest.mark.parametrize("text", ["", "rounds=30 late=0", CLEAN.replace("late=0", "late=x")])
def test_figures_that_are_not_complete_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="not complete"):
        traces.parse(text)


@pytest.mark.parametrize(
    ("late", "worst", "good"), [(0, 0, True), (3, 0, True), (16, 0, False), (1, 5_000_000, False)]
)
def test_a_round_in_which_a_reader_slept_is_no_verdict(late: int, worst: int, good: bool) -> None:
    text = CLEAN.replace("late=0", f"late={late}").replace("worst_us=0", f"worst_us={worst}")
    assert (faults("inotify", "stock", text) == []) == good
