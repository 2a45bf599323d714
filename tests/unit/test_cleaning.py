"""What nobody has used for long goes; what somebody uses, or the repository needs, stays."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from kbuild import cleaning, fs, manifest
from kbuild.model import Settings
from tests.unit import fake_kernel

DAYS = 30


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(project=tmp_path, build=tmp_path / "build", cache=tmp_path / "cache")


def entry(path: Path, *, age_days: float = DAYS + 1) -> Path:
    """Make a directory with a file in it, last used so long ago."""
    path.mkdir(parents=True)
    (path / "content").write_text("x")
    return aged(path, age_days)


def aged(path: Path, age_days: float = DAYS + 1) -> Path:
    then = time.time() - age_days * 86400
    os.utime(path, (then, then))
    return path


@pytest.mark.parametrize("shelf", cleaning.SHELVES)
def test_what_was_not_used_for_so_long_goes(settings: Settings, shelf: str) -> None:
    home = settings.cache / shelf
    old = entry(home / "old")
    left = entry(home / ".scratch-of-a-killed-run")
    file = home / "old.part"
    file.write_text("x")
    aged(file)
    young = entry(home / "young", age_days=DAYS - 1)
    used = entry(home / "used")
    fs.mark_used(used)
    lock = home / "old.lock"
    lock.touch()
    aged(lock)
    removed = cleaning.clean_unused(settings, days=DAYS)
    assert sorted(removed) == sorted([left, old, file])
    assert sorted(home.iterdir()) == sorted([lock, used, young])


def test_what_has_a_limit_of_its_own_stays(settings: Settings) -> None:
    for name in ("ccache", "dists", "locks", "accelerator"):
        entry(settings.cache / name / "entry")
    assert cleaning.clean_unused(settings, days=DAYS) == ()


def test_a_dry_run_removes_nothing(tmp_path: Path) -> None:
    given = Settings(project=tmp_path, build=tmp_path / "b", cache=tmp_path / "c", dry=True)
    old = entry(given.cache / "trees" / "old")
    assert cleaning.clean_unused(given, days=DAYS) == (old,)
    assert old.exists()


def test_versions_that_no_record_names_go(settings: Settings) -> None:
    suite = settings.build / "bookworm"
    flavour = suite / "cloud-amd64"
    source, version = entry(suite / "source-6.1.187-1"), entry(flavour / "6.1.187-1")
    current, guest = entry(flavour / "6.1.192-2"), entry(flavour / "guest")
    used = entry(flavour / "6.1.190-1", age_days=1)
    elsewhere = entry(settings.build / "repo")
    kernel = fake_kernel.kernel(settings.project)
    assert kernel.base.version == "6.1.192-2"
    manifest.write(
        flavour / manifest.RECORD,
        manifest.describe(fake_kernel.settings(settings.project), [kernel], [], {}),
    )
    assert set(cleaning.clean_unused(settings, days=DAYS)) == {source, version}
    assert all(path.exists() for path in (current, guest, used, elsewhere))


def test_a_record_that_cannot_be_read_protects_all_of_its_flavour(settings: Settings) -> None:
    flavour = settings.build / "bookworm" / "cloud-amd64"
    kept, gone = entry(flavour / "6.1.187-1"), entry(flavour.with_name("lab") / "6.1.187-1")
    (flavour / manifest.RECORD).write_text("{")
    assert cleaning.clean_unused(settings, days=DAYS) == (gone,)
    assert kept.exists()
