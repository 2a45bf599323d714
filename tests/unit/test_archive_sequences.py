"""Sequences of operations on an archive: servers always have a way on, and nothing is damaged."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from debian.debian_support import Version

from kbuild.archive import operations, snapshots, verify
from kbuild.archive.release import SERVED, Record, State
from kbuild.core.errors import EvidenceError, UserError
from kbuild.core.model import Settings
from tests.unit import releases
from tests.unit.releases import release

META = "linux-image-cplayground-cloud-amd64"
STEPS = 20


def step(given: Settings, chance: random.Random) -> str:
    """Do one operation, mostly to one of the newest releases; returns what it was."""
    known = len(operations.releases(given)) if given.archive.exists() else 0
    events = ("stage", "again", "promote", "rollback", "refresh")
    (what,) = chance.choices(events, (4, 1, 4, 4, 1)) if known else ("stage",)
    number = known + 1 if what == "stage" else max(1, known - int(chance.expovariate(1.5)))
    one = release(number, small=True)
    percent = chance.choice((10, 50, 100, 100))
    said = f"{what} {number} {percent}"
    try:
        if what in ("stage", "again"):
            operations.stage(given, one, releases.files(given.build, one))
        elif what == "promote":
            operations.promote(given, one.id, percent)
        elif what == "rollback":
            operations.rollback(given, one.id, "")
        else:
            operations.refresh(given)
    except (UserError, EvidenceError) as refused:
        # A withdrawal is never refused.
        assert what in ("again", "promote"), (said, refused)
        said += f": {refused}"
    return said


def ways(given: Settings) -> list[Version]:
    """Return the versions of the kernel's metapackage that can be installed from the suite."""
    text = (given.archive / "dists/bookworm" / snapshots.INDEX).read_text()
    stanzas = [dict(re.findall(r"^(\S+): (.*)$", one, re.M)) for one in text.split("\n\n")]
    there = {f"{one['Package']} (= {one['Version']})" for one in stanzas if one}
    metas = [one for one in stanzas if one.get("Package") == META]
    return [Version(one["Version"]) for one in metas if one["Depends"] in there]


def unanswered(given: Settings, known: tuple[Record, ...]) -> list[str]:
    """Return the withdrawn releases that servers may have, and that apt cannot leave."""
    if not any(one.state in SERVED and not one.pruned for one in known):
        return []
    concerned = [one for one in known if one.state is State.WITHDRAWN and one.percent]
    found = ways(given)
    return [one.id for one in concerned if not any(way > one.order for way in found)]


@pytest.mark.parametrize("seed", range(3))
def test_servers_have_a_way_on_after_every_step(seed: int, tmp_path: Path) -> None:
    given = releases.settings(tmp_path)
    chance = random.Random(seed)
    done = []
    for _ in range(STEPS):
        done.append(step(given, chance))
        if not (given.archive / "dists").exists():
            continue
        assert verify.check(given).findings == (), done
        known = operations.releases(given)
        assert unanswered(given, known) == [], done
