"""Cleaning removes entries unused for long, and keeps those in use or in the repository."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kbuild import cleaning
from kbuild.core import fs, places
from kbuild.core.errors import UserError
from kbuild.core.model import Settings
from kbuild.ship import manifest, versions
from tests.unit import fake_kernel
from tests.unit.mounts import UNSHARE

DAYS = 30


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    given = Settings(project=tmp_path, build=tmp_path / "build", cache=tmp_path / "cache")
    for place in places.both(given):
        places.mark(place)
    return given


def content(path: Path) -> list[str]:
    return sorted(str(one.relative_to(path)) for one in path.rglob("*"))


def entry(path: Path, *, age_days: float = DAYS + 1) -> Path:
    """Make a directory with a file in it, last used so long ago."""
    path.mkdir(parents=True)
    (path / "content").write_text("x")
    return aged(path, age_days)


def aged(path: Path, age_days: float = DAYS + 1) -> Path:
    then = time.time() - age_days * 86400
    os.utime(path, (then, then))
    return path


@pytest.mark.parametrize("shelf", places.SHELVES)
def test_entries_unused_for_so_long_are_removed(settings: Settings, shelf: str) -> None:
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


def test_entries_with_a_limit_of_their_own_stay(settings: Settings) -> None:
    for name in ("ccache", "dists", "locks", "accelerator"):
        entry(settings.cache / name / "entry")
    assert cleaning.clean_unused(settings, days=DAYS) == ()


@pytest.mark.parametrize("home", ["reproduce", "gate", "logs/gate"])
def test_remains_of_a_release_that_is_not_made_again_are_removed(
    settings: Settings, home: str
) -> None:
    old = entry(settings.build / home / "bookworm-lab-6.1.192-3+cplayground1")
    young = entry(settings.build / home / "young", age_days=DAYS - 1)
    assert cleaning.clean_unused(settings, days=DAYS) == (old,)
    assert young.exists()


def test_a_dry_run_removes_nothing(settings: Settings) -> None:
    old = entry(settings.cache / "trees" / "old")
    before = content(settings.project)
    given = dataclasses.replace(settings, dry=True)
    assert cleaning.clean_unused(given, days=DAYS) == (old,)
    assert cleaning.clean(given, cache=True) == (settings.build, settings.cache)
    assert cleaning.clean(given, roots=True) == (settings.build,)
    assert content(settings.project) == before


def test_results_go_and_caches_on_request(settings: Settings) -> None:
    entry(settings.build / "bookworm")
    root, tree = entry(settings.cache / "roots/one"), entry(settings.cache / "trees/one")
    outside = entry(settings.project / "outside")
    (settings.cache / "link").symlink_to(outside)
    assert cleaning.clean(settings) == (settings.build,)
    assert root.exists()
    assert cleaning.clean(settings, roots=True) == (settings.cache / "roots",)
    assert not root.exists()
    assert tree.exists()
    assert cleaning.clean(settings, cache=True) == (settings.cache,)
    assert cleaning.clean(settings, cache=True) == ()
    assert content(settings.project) == ["outside", "outside/content"]


WAYS: dict[str, Callable[[Settings], object]] = {
    "clean --cache": lambda given: cleaning.clean(given, cache=True),
    "clean --roots": lambda given: cleaning.clean(given, roots=True),
    "clean --unused": lambda given: cleaning.clean_unused(given, days=DAYS),
}


@pytest.mark.parametrize("dry", [False, True])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("foreign", ["build", "cache"])
def test_a_directory_without_our_mark_is_left_alone(
    settings: Settings, foreign: str, way: str, dry: bool
) -> None:
    path = settings.project / "foreign"
    entry(path / "trees/old")
    entry(path / "roots/old")
    entry(path / "bookworm/source-6.1.1-1")
    entry(settings.build / "bookworm/source-6.1.1-1")
    before = content(settings.project)
    given = dataclasses.replace(settings, dry=dry)
    if foreign == "build":
        given = dataclasses.replace(given, build=path)
    else:
        given = dataclasses.replace(given, cache=path)
    with pytest.raises(UserError, match=f"{path}, which contains files that we") as caught:
        WAYS[way](given)
    assert "rm " not in str(caught.value)
    assert content(settings.project) == before


# In a mount namespace of its own; a user namespace lets a test without root make it.
_CLEAN_UNDER_A_MOUNT = """
import dataclasses, os, pathlib, subprocess, sys
from kbuild import cleaning
from kbuild.core.errors import UserError
from kbuild.core.model import Settings
home, name = pathlib.Path(sys.argv[1]), sys.argv[2]
given = Settings(project=home, build=home / "build", cache=home / "cache")
subprocess.run(["mount", "--bind", home / "host", home / name], check=True)
for one in (given, dataclasses.replace(given, dry=True)):
    for clean in (
        lambda: cleaning.clean(one, cache=True),
        lambda: cleaning.clean(one, roots=True),
        lambda: cleaning.clean_unused(one, days=1),
    ):
        try:
            print(*clean())
        except UserError as error:
            assert str(home / name) in str(error), error
            print("refused")
"""


@pytest.mark.parametrize(
    ("name", "refused"),
    [
        ("build/bookworm/source-6.1.1-1/lib", 6),
        ("cache/roots/one/root/proc", 6),
        ("cache/locks/here", 2),
        # A foreign directory in place of ours, whose mark it hides.
        ("build", 6),
    ],
)
def test_nothing_is_removed_under_a_mount(settings: Settings, name: str, refused: int) -> None:
    host = entry(settings.project / "host")
    old = [
        entry(settings.build / "bookworm/source-6.1.1-1"),
        entry(settings.cache / "roots/one"),
    ]
    (settings.project / name).mkdir(parents=True, exist_ok=True)
    for path in old:
        aged(path)
    done = subprocess.run(
        [
            *UNSHARE,
            *(sys.executable, "-c", _CLEAN_UNDER_A_MOUNT, settings.project, name),
        ],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines().count("refused") == refused
    assert content(host) == ["content"]
    # In the third case roots and what is old may go, which holds no mount.
    assert all(path.exists() for path in old) == (refused == 6)


@pytest.mark.parametrize("revision", [1, 2])
def test_versions_that_no_record_names_go(settings: Settings, revision: int) -> None:
    suite = settings.build / "bookworm"
    flavour = suite / "cloud-amd64"
    source, version = entry(suite / "source-6.1.187-1"), entry(flavour / "6.1.187-1")
    one, two = entry(flavour / "6.1.192-2"), entry(flavour / "6.1.192-2+cplayground2")
    current, other = (one, two) if revision == 1 else (two, one)
    guest = entry(flavour / "guest")
    used = entry(flavour / "6.1.190-1", age_days=1)
    elsewhere = entry(settings.build / "repo")
    kernel = fake_kernel.kernel(settings.project)
    assert kernel.base.version == "6.1.192-2"
    release = versions.release(kernel.base.abi, "cloud-amd64", revision=revision)
    kernel = dataclasses.replace(kernel, release=release)
    manifest.write(
        flavour / manifest.RECORD,
        manifest.describe(fake_kernel.settings(settings.project), [kernel], [], {}),
    )
    assert set(cleaning.clean_unused(settings, days=DAYS)) == {source, version, other}
    assert all(path.exists() for path in (current, guest, used, elsewhere))


def test_a_record_that_cannot_be_read_protects_all_of_its_flavour(settings: Settings) -> None:
    flavour = settings.build / "bookworm" / "cloud-amd64"
    kept, gone = entry(flavour / "6.1.187-1"), entry(flavour.with_name("lab") / "6.1.187-1")
    (flavour / manifest.RECORD).write_text("{")
    assert cleaning.clean_unused(settings, days=DAYS) == (gone,)
    assert kept.exists()
