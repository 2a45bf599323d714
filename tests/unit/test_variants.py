"""The table of variants: each fragment has detectors, and each detector is tripped somehow."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kbuild.core.errors import UserError
from kbuild.core.variants import CHECKERS, DETECTORS, FAULTS, VARIANTS, named_in, variant
from kbuild.guest import triage

PROJECT = Path(__file__).parents[2]
MISBEHAVE = (PROJECT / "kbuild" / "guest" / "modules" / "misbehave" / "misbehave.c").read_text()


def test_every_fragment_is_there_and_brings_detectors() -> None:
    used = {name for one in VARIANTS.values() for name in one.fragments}
    assert used | {"lab.config"} == DETECTORS.keys()
    assert FAULTS.keys() | CHECKERS.keys() <= used
    assert {path.name for path in (PROJECT / "fragments").iterdir()} == DETECTORS.keys()


def test_every_detector_is_tripped_by_a_function_of_its_own() -> None:
    deeds = [one.deed for row in DETECTORS.values() for one in row]
    deeds += [deed for row in FAULTS.values() for deed in row]
    assert len(set(deeds)) == len(deeds)
    for deed in deeds:
        assert f"DEED({deed})," in MISBEHAVE
        assert re.search(rf"^static noinline int misbehave_{deed}\(void\)$", MISBEHAVE, re.M)


def test_triage_knows_what_is_expected_of_each() -> None:
    names = {pattern.name for pattern in triage.PATTERNS}
    for one in (one for row in DETECTORS.values() for one in row):
        for kind in filter(None, (one.kind, one.newer)):
            assert any(kind == name or kind.startswith(f"{name} ") for name in names), one


@pytest.mark.parametrize(
    ("word", "function", "made"),
    [
        ("use-after-free", "misbehave_use_after_free", True),  # mm/kasan of 5.10 and 6.1
        ("slab-use-after-free", "misbehave_use_after_free", True),  # of 6.12 and 7.3
        ("slab-use-after-free", "misbehave_double_free", False),
        ("slab-out-of-bounds", "misbehave_use_after_free", False),
    ],
)
def test_a_report_is_known_by_the_words_of_each_kernel(
    word: str, function: str, made: bool
) -> None:
    (detector,) = (one for one in DETECTORS["kasan.config"] if one.deed == "use_after_free")
    (report,) = triage.scan(f"BUG: KASAN: {word} in {function}+0x5c/0x90 [misbehave]\n")
    assert detector.made(triage.fingerprint(report)) is made


def test_a_variant_has_the_detectors_of_all_of_its_fragments() -> None:
    for name in ("kasan", "lockdep", "kmemleak"):
        assert set(variant(name).detectors) <= set(variant("debug").detectors)
        assert variant(name).checkers <= variant("debug").checkers
    assert variant("debug").checkers == {"lockdep", "kmemleak"}
    assert variant("kcsan").checkers == {"kcsan"}
    assert variant("release").checkers == frozenset()
    assert [one.deed for one in variant("release").detectors] == [
        one.deed for one in DETECTORS["lab.config"]
    ]


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(UserError, match="nosan"):
        variant("nosan")


@pytest.mark.parametrize(
    ("flavour", "name"),
    [
        ("lab", "release"),
        ("cloud-amd64", "release"),
        ("lab-debug", "debug"),
        ("lab-kcsan", "kcsan"),
    ],
)
def test_a_variant_is_in_the_name_of_its_flavour(flavour: str, name: str) -> None:
    assert named_in(flavour) == name
