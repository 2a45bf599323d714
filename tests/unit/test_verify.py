"""Verify reads every kept file and names damage, which the next run sees too."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from kbuild import verify
from kbuild.core import fs, places, stamp
from kbuild.core.model import Settings
from kbuild.ship import manifest
from kbuild.ship.manifest import Manifest
from tests.unit import damage
from tests.unit.command_line import Here, here

__all__ = ["here"]

INPUTS = {"input": "1"}
# Stamps by where they lie, and an output of each: a file too large to read at each run, or a
# file in a directory.
STAMPS = {
    "cache/trees/0123/stamp.json": "content/fs/open.c",
    "cache/debs/4567/stamp.json": "content/boot/vmlinuz",
    "cache/images/89ab/stamp.json": "content/boot/vmlinuz",
    "cache/roots/bookworm-compile-1/stamp.json": "root/usr/bin/gcc",
    "cache/snapshots/cdef/snapshot.json": "memory",
    "cache/icecream/0123/stamp.json": "0123.tar.gz",
    "build/repo.json": "repo/pool/a.deb",
    "build/bookworm/packages-dkms.json": "packages-dkms/b.deb",
    "build/bookworm/headers-6.1_6.1.192-2.json": "headers-6.1_6.1.192-2/usr/src/Makefile",
    "build/bookworm/guest-programs/reader.json": "reader",
    "build/trixie/lab-debug/6.12.1-1/kernel.json": "out/vmlinux",
    "build/trixie/lab-debug/6.12.1-1/packages-kernel.json": "packages-kernel/c.deb",
    "build/trixie/lab-debug/guest/stamp.json": "disk.img",
}
DOWNLOAD = "a download"
FILE = f"cache/files/{hashlib.sha256(DOWNLOAD.encode()).hexdigest()}/x.deb"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Return places with one of everything, as the stages leave it."""
    one = Settings(project=tmp_path, build=tmp_path / "build", cache=tmp_path / "cache")
    for place in places.both(one):
        places.mark(place)
    for mark, output in STAMPS.items():
        made = (tmp_path / mark).parent / output
        fs.write_atomic(made, f"{output} " * (1 << 17 if "/" not in output else 10))
        top, _, inside = output.partition("/")
        whole = top in ("content", "root", "repo") or "headers" in top
        stamp.write(
            tmp_path / mark,
            INPUTS,
            [(tmp_path / mark).parent / top if whole and inside else made],
            1,
        )
    fs.write_atomic(tmp_path / FILE, DOWNLOAD)
    empty = Manifest(manifest.FORMAT, None, "0.1.0", (), (), {})
    manifest.write(tmp_path / "build/manifest.json", empty)
    manifest.write(tmp_path / "build/trixie/lab-debug" / manifest.RECORD, empty)
    # Files that are no stamps, and a run's own.
    fs.write_json(tmp_path / "build/trixie/lab-debug/guest/image.json", {"disk": "disk.img"})
    fs.write_json(tmp_path / "build/bookworm/source-6.1.192-2/tools/x.json", ["not ours"])
    fs.write_atomic(tmp_path / "cache/partial/0123.part", "half")
    return one


def damaged(settings: Settings) -> list[str]:
    return [line for place in verify.check(settings) for line in place.damaged]


def test_all_is_read_and_nothing_is_damaged(settings: Settings) -> None:
    found = list(verify.check(settings))
    assert verify.error(found) is None
    assert sum(place.checked for place in found) == len(STAMPS) + len([FILE]) + 2
    assert tuple(place.path for place in found) == verify.places(settings)


@pytest.mark.parametrize("harm", [damage.emptied, damage.rotten, damage.lost])
def test_damage_is_named_and_the_next_run_sees_it(
    settings: Settings, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    for mark, output in STAMPS.items():
        harm((tmp_path / mark).parent / output)
    lines = damaged(settings)
    assert len(lines) == len(STAMPS)
    for mark, output in STAMPS.items():
        place, name = f"{(tmp_path / mark).parent}: ", Path(output).name
        assert len([line for line in lines if place in line and name in line]) == 1
        assert stamp.reason(tmp_path / mark, INPUTS) is not None
    assert damaged(settings) == lines


def test_a_damaged_stamp_is_named(settings: Settings, tmp_path: Path) -> None:
    for mark in STAMPS:
        damage.cut(tmp_path / mark)
    lines = damaged(settings)
    assert len(lines) == len(STAMPS)
    for mark in STAMPS:
        name = f"{(tmp_path / mark).parent}: {Path(mark).name} is damaged"
        assert any(name in line for line in lines)


@pytest.mark.parametrize(
    "name", [FILE, "build/manifest.json", "build/trixie/lab-debug/record.json"]
)
@pytest.mark.parametrize("harm", [damage.emptied, damage.cut])
def test_damage_to_files_without_a_stamp_is_named(
    settings: Settings, tmp_path: Path, name: str, harm: Callable[[Path], None]
) -> None:
    harm(tmp_path / name)
    (line,) = damaged(settings)
    assert str(tmp_path / name) in line


def test_a_lost_record_of_files_has_the_directory_made_again(
    settings: Settings, tmp_path: Path
) -> None:
    mark = tmp_path / "cache/trees/0123/stamp.json"
    (mark.parent / "stamp.content.files").unlink()
    assert len(damaged(settings)) == 1
    assert "the record of its files is gone" in (stamp.reason(mark, INPUTS) or "")


def test_a_tree_of_an_earlier_version_is_reported_as_unknown(
    settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    (tmp_path / "cache/trees/0123/stamp.json").unlink()
    assert damaged(settings) == []
    assert f"{tmp_path}/cache/trees/0123 has no stamp" in caplog.text


def test_an_output_made_anew_meanwhile_is_read_again(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "cache/trees/0123/stamp.json"
    victim = mark.parent / "content/fs/open.c"
    real = stamp.damage
    calls: list[tuple[stamp.Damage, ...]] = []

    def meanwhile(path: Path, *, thorough: bool = False) -> tuple[stamp.Damage, ...]:
        found = real(path, thorough=thorough)
        if path == mark and not calls:
            calls.append(found)
            fs.write_atomic(victim, "made anew")
            stamp.write(mark, INPUTS, [mark.parent / "content"], 1)
        return found

    damage.emptied(victim)
    monkeypatch.setattr(stamp, "damage", meanwhile)
    assert damaged(settings) == []
    assert calls[0] != ()
    assert stamp.reason(mark, INPUTS) is None


def test_the_task_names_what_is_damaged_and_ends_as_others_do(
    settings: Settings, tmp_path: Path, here: Here
) -> None:
    status, said, _ = here("verify")
    assert (status, "trees: 1 checked, 0 damaged" in said) == (0, True)
    mark = tmp_path / "cache/trees/0123/stamp.json"
    damage.rotten(mark.parent / "content/fs/open.c")
    damage.emptied(tmp_path / FILE)
    status, said, error = here("--dry", "verify")
    assert (status, f"would read {tmp_path}/cache/trees" in said) == (0, True)
    assert stamp.reason(mark, INPUTS) is None
    status, said, error = here("verify")
    assert status == 69
    assert "trees: 1 checked, 1 damaged" in said
    assert f"infrastructure error: 2 of {len(STAMPS) + 3} things are damaged" in error
    assert "content is damaged: 1 of 2 files: fs/open.c (other content)" in error
    assert str(tmp_path / FILE) in error
    assert "Traceback" not in error


def test_an_empty_machine_has_nothing_damaged(tmp_path: Path) -> None:
    assert not list(tmp_path.iterdir())
    settings = Settings(project=tmp_path, build=tmp_path / "build", cache=tmp_path / "cache")
    assert list(verify.check(settings)) == []
    assert not list(tmp_path.iterdir())
