"""Runs write only to directories that they made, marked, and closed to other users."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kbuild import cleaning
from kbuild.core import fs, places
from kbuild.core.errors import UserError
from kbuild.core.model import Settings

PROJECT = Path(__file__).parents[2]
NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture
def given(tmp_path: Path) -> Settings:
    """A checkout with some source, a build directory below it and a cache outside."""
    project = tmp_path / "project"
    for name in ("kmod/Kbuild", ".git/HEAD", ".git/refs/tags/v1"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("precious\n")
    (project / ".git/objects").mkdir()
    return Settings(project=project, build=project / "build", cache=tmp_path / "home/cache")


def content(path: Path) -> list[str]:
    return sorted(str(one.relative_to(path)) for one in path.rglob("*"))


def refusal(given: Settings, words: str) -> str:
    """Return what a run, a dry run and the doctor say alike; nothing may have changed."""
    home = given.project.parent
    before = content(home)
    said = set()
    for one in (given, dataclasses.replace(given, dry=True)):
        for run in (places.check, hold):
            with pytest.raises(UserError, match=words) as caught:
                run(one)
            said.add(str(caught.value))
    assert content(home) == before
    assert "rm " not in "".join(said)
    (text,) = said
    return text


def hold(given: Settings) -> None:
    with places.held(given, build=not given.dry):
        pytest.fail("a run began")


def use(given: Settings, *names: str) -> None:
    """Let a run leave something in each directory."""
    with places.held(given):
        for path in (given.build, given.cache):
            for name in names or ("result",):
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                (path / name).write_text("x")


def test_a_run_makes_its_directories_and_marks_them(given: Settings) -> None:
    use(given)
    for place in places.both(given):
        assert place.look().marked
        assert place.look().made
        tag = (place.path / "CACHEDIR.TAG").read_text()
        assert tag.startswith("Signature: 8a477f597d28d172789f06886806bc55\n")
        assert place.path.stat().st_mode & 0o777 == 0o755
    use(given, "more")


def test_directories_that_a_run_did_not_use_are_gone_with_it(given: Settings) -> None:
    with places.held(given):
        assert given.build.is_dir()
    assert not given.build.exists()
    assert not given.cache.exists()


def test_a_dry_run_makes_no_directory_for_results(given: Settings) -> None:
    with places.held(given, build=False):
        (given.cache / "dists").mkdir()
        assert not given.build.exists()
    assert places.both(given)[1].look().marked


def fill_foreign(path: Path) -> None:
    (path / "thesis").mkdir()


def fill_tagged(path: Path) -> None:
    # Another program's cache.
    tag = "Signature: 8a477f597d28d172789f06886806bc55\n# by another program\n"
    (path / "CACHEDIR.TAG").write_text(tag)


def fill_links(path: Path) -> None:
    place = places.Place(f"{path.name}_dir", path, path.parents[1] / "project")
    places.mark(place)
    for file in place.files:
        elsewhere = file.rename(path.parent / f"of-another-{file.name}")
        file.symlink_to(elsewhere)
    (path / "thesis").mkdir()


def fill_alike(path: Path) -> None:
    # Names that we give too, and nothing that only we give: chroots, a website.
    names = {"build": "bookworm/bin trixie/etc logs/x.log repo", "cache": "files/x images locks/x"}
    for name in names[path.name].split():
        (path / name).mkdir(parents=True)


def fill_mixed(path: Path) -> None:
    ours = {"build": "logs/inv-pip.log", "cache": "locks/dist-bookworm.lock"}
    (path / ours[path.name]).mkdir(parents=True)
    (path / "thesis").mkdir()


@pytest.mark.parametrize("key", ["build", "cache"])
@pytest.mark.parametrize("fill", [fill_foreign, fill_tagged, fill_links, fill_alike, fill_mixed])
def test_a_directory_with_other_things_is_refused(
    given: Settings, key: str, fill: Callable[[Path], None]
) -> None:
    path = getattr(given, key)
    path.mkdir(parents=True)
    fill(path)
    text = refusal(given, f"{key}_dir is {path}, which contains files that we did not make")
    assert f"INVOKE_{key.upper()}_DIR" in text


def test_the_mark_of_results_is_none_of_caches(given: Settings, tmp_path: Path) -> None:
    use(given)
    given = dataclasses.replace(given, build=given.cache, cache=tmp_path / "other")
    refusal(given, "build_dir is .* which contains files that we did not make")


@pytest.mark.parametrize("key", ["build", "cache"])
@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("kmod", "which contains files that we did not make"),
        (".git", "which contains files that we did not make"),
        ("kmod/build", "which lies in a part of the checkout"),
        (".git/objects", "which lies in a part of the checkout"),
        (".git/refs/heads/x", "which lies in a part of the checkout"),
        (".", "which 'clean' would remove"),
        ("..", "which 'clean' would remove"),
        ("kmod/Kbuild", "which cannot be a directory"),
        ("kmod/Kbuild/x", "which cannot be a directory"),
    ],
)
def test_no_part_of_the_checkout_is_used(given: Settings, key: str, place: str, words: str) -> None:
    path = Path(os.path.normpath(given.project / place))
    if key == "build":
        given = dataclasses.replace(given, build=path)
    else:
        given = dataclasses.replace(given, cache=path)
    refusal(given, f"{key}_dir is {path}, {words}")


def test_no_home_is_used(given: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(given.cache / "of/someone"))
    refusal(given, "cache_dir is .* which 'clean' would remove")


def test_sibling_directories_below_the_checkout_are_used(given: Settings) -> None:
    for name in ("out/one", "out/two", "build/nested/deep"):
        use(dataclasses.replace(given, build=given.project / name))
        use(given)


@pytest.mark.parametrize(("build", "cache"), [("a", "a"), ("a/b", "a"), ("a", "a/b")])
def test_one_directory_is_not_in_the_other(
    given: Settings, tmp_path: Path, build: str, cache: str
) -> None:
    given = dataclasses.replace(given, build=tmp_path / build, cache=tmp_path / cache)
    refusal(given, "build_dir and cache_dir overlap")


EARLIER = {
    "build": [
        [".publish.lock", "bookworm/lab/6.1.1-1", "logs/x.log", "manifest.json", "repo/dists"],
        ["logs/inv-pip.log"],
        ["trixie-backports/.source-7.3.4-1.lock", "bench/x", "test/unit.xml"],
        ["logs/root-bookworm-compile.log"],
    ],
    "cache": [["locks/dist-bookworm-updates.lock", "files/x", "roots/y", "ccache/0"]],
}


@pytest.mark.parametrize(
    ("key", "names"), [(key, names) for key, all in EARLIER.items() for names in all]
)
def test_a_directory_of_an_earlier_version_is_marked_by_the_next_run(
    given: Settings, key: str, names: list[str]
) -> None:
    path: Path = getattr(given, key)
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).touch()
    (place,) = (one for one in places.both(given) if one.path == path)
    with pytest.raises(UserError, match="does not carry our mark"):
        cleaning.clean(given, cache=True)
    places.check(dataclasses.replace(given, dry=True))
    assert not place.look().marked
    use(given)
    assert place.look().marked
    assert all((path / name).exists() for name in names)
    cleaning.clean(given, cache=True)
    assert not path.exists()


@pytest.mark.parametrize("there", [[], ["lost+found"]])
def test_an_empty_directory_is_used_and_stays(given: Settings, there: list[str]) -> None:
    given.cache.mkdir(parents=True)
    for name in there:
        (given.cache / name).mkdir()
    use(given)
    assert cleaning.clean(given, cache=True) == (given.build, given.cache / "result")
    assert given.cache.is_dir()
    assert content(given.cache) == there
    use(given)


def test_a_mark_cut_short_is_completed(given: Settings) -> None:
    use(given)
    (given.build / "CACHEDIR.TAG").unlink()
    with pytest.raises(UserError, match="does not carry our mark"):
        cleaning.clean(given)
    (given.cache / "result").unlink()
    places.both(given)[1].mark.unlink()
    (given.cache / ".CACHEDIR.TAG.x1").touch()
    use(given)
    # Nothing tells any more who made the first.
    assert cleaning.clean(given, cache=True) == (given.cache, given.build / "result")
    assert content(given.build) == []
    assert not given.cache.exists()


# Who else may write to what root makes.


def give(path: Path, uid: int = NOBODY) -> None:
    os.chown(path, uid, -1, follow_symlinks=False)


@as_root
@pytest.mark.parametrize("name", ["", "..", "shelf", "shelf/entry", "CACHEDIR.TAG"])
def test_files_of_another_user_are_refused(given: Settings, name: str) -> None:
    use(given, "shelf/entry")
    give(given.cache / name)
    refusal(given, "which other users may change|may be changed by other users")
    give(given.cache / name, 0)
    use(given)


@pytest.mark.parametrize("name", ["", "..", "shelf", "shelf/entry", "CACHEDIR.TAG"])
@pytest.mark.parametrize("mode", [0o777, 0o722])
def test_files_that_others_may_write_are_refused(given: Settings, name: str, mode: int) -> None:
    use(given, "shelf/entry")
    path = given.cache / name
    path.chmod(mode)
    text = refusal(given, "which other users may change|may be changed by other users")
    assert f"has mode {mode:04o}" in text
    path.chmod(mode | 0o1000)
    if name == "..":
        use(given)  # as /tmp
    else:
        refusal(given, "which other users may change|may be changed by other users")


@as_root
@pytest.mark.parametrize(("group", "private"), [("root", True), ("nogroup", False)])
def test_a_group_with_no_other_member_may_write(given: Settings, group: str, private: bool) -> None:
    use(given, "shelf/entry")
    for name in ("", "shelf", "shelf/entry"):
        subprocess.run(["chgrp", group, given.cache / name], check=True)
        (given.cache / name).chmod(0o775)
    if private:
        use(given)
    else:
        assert "mode 0775 and the group" in refusal(given, "which other users may change")


@as_root
def test_an_access_control_list_is_seen(given: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    use(given)
    given.cache.chmod(0o775)
    use(given)
    monkeypatch.setattr(os, "listxattr", lambda _: ["system.posix_acl_access"])
    assert "access control list" in refusal(given, "which other users may change")


@as_root
def test_the_checkouts_owner_is_trusted_with_both(given: Settings) -> None:
    # "sudo ./inv" in a user's clone.
    give(given.project)
    given.build.mkdir()
    given.cache.mkdir(parents=True)
    for path in (given.build, given.cache, given.cache.parent):
        give(path)
    use(given)


def test_the_checkout_itself_may_be_writable_for_others(given: Settings) -> None:
    # Who may write to the code needs no way through its results.
    given.project.chmod(0o777)
    use(given)


@as_root
def test_the_compiler_cache_may_belong_to_an_id_that_no_user_has(given: Settings) -> None:
    use(given, "ccache/0")
    give(given.cache / "ccache", 3_000_000_001)
    give(given.cache / "ccache/0", 3_000_000_001)
    use(given)
    give(given.cache / "ccache/0", NOBODY)
    refusal(given, "ccache/0 may be changed by other users")


@as_root
@pytest.mark.parametrize(
    "name", ["partial/x.part", "files/x", "locks/x.lock", "extracts/x", "debs"]
)
def test_a_link_that_another_user_left_is_refused(given: Settings, name: str) -> None:
    use(given)
    secret = given.project.parent / "secret"
    secret.mkdir()
    path = given.cache / name
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(secret)
    give(path)
    refusal(given, f"{path} may be changed by other users")
    with pytest.raises(UserError, match="may be changed by other users"):
        cleaning.clean_unused(given, days=1)
    # It is ours to remove, and where it leads to is not.
    cleaning.clean(given, cache=True)
    assert not given.cache.exists()
    assert secret.is_dir()


@pytest.mark.parametrize("mode", [0o755, 0o777])
def test_a_shelf_may_lie_on_another_disk(given: Settings, mode: int) -> None:
    use(given)
    disk = given.project.parent / "disk"
    disk.mkdir()
    disk.chmod(mode)
    (given.cache / "roots").symlink_to(disk)
    if mode == 0o755:
        use(given)
    else:
        refusal(given, "roots may be changed by other users")


@as_root
@pytest.mark.parametrize("name", ["CACHEDIR.TAG", ".cplayground-kernel-cache"])
def test_a_mark_that_another_user_left_is_none(given: Settings, name: str) -> None:
    use(given)
    give(given.cache / name)
    for dry in (False, True):
        with pytest.raises(UserError, match=f"{name} may be changed by other users"):
            cleaning.clean(dataclasses.replace(given, dry=dry), cache=True)
    assert (given.cache / "result").exists()
    assert (given.build / "result").exists()


# A run and clean at once.

_RUN = """
import logging, sys
from pathlib import Path
from kbuild.core import places
from kbuild.core.model import Settings
logging.basicConfig(level="INFO", format="%(message)s")
project, build, cache = map(Path, sys.argv[1:])
with places.held(Settings(project=project, build=build, cache=cache)):
    (build / "repo.lock").touch()
    print("mine", flush=True)
    sys.stdin.readline()
    assert (build / "repo.lock").exists() and (cache / "result").exists()
    (build / "late").touch()
"""


def other_run(given: Settings) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _RUN, given.project, given.build, given.cache],
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("unused", [False, True])
def test_clean_waits_for_a_run(
    given: Settings, unused: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    use(given)
    runner = other_run(given)
    assert runner.stdout is not None
    assert runner.stdout.readline() == "mine\n"
    waits = []

    def sleep(_: float) -> None:
        waits.append((given.build / "repo.lock").exists())
        if len(waits) == 3:
            runner.communicate("go\n", timeout=20)

    monkeypatch.setattr(time, "sleep", sleep)
    if unused:
        cleaning.clean_unused(given, days=1)
    else:
        assert cleaning.clean(given, cache=True) == (given.build, given.cache)
    assert runner.returncode == 0
    assert waits == [True] * len(waits)
    assert len(waits) >= 3
    assert "waiting for another run" in caplog.text
    assert given.build.exists() == unused


def test_a_dry_clean_waits_for_no_run(given: Settings) -> None:
    use(given)
    with places.held(given):
        dry = dataclasses.replace(given, dry=True)
        assert cleaning.clean(dry, cache=True) == (given.build, given.cache)


def test_a_mark_that_lost_its_tag_to_a_clean_is_whole_when_the_run_begins(
    given: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = fs.lock

    @contextlib.contextmanager
    def late(path: Path, **options: bool) -> Iterator[None]:
        with lock(path, **options):
            path.with_name("CACHEDIR.TAG").unlink()
            yield

    monkeypatch.setattr(fs, "lock", late)
    with places.held(given):
        assert all(place.look().marked for place in places.both(given))
        (given.build / "result").touch()
        (given.cache / "result").touch()


def test_a_run_that_waited_for_clean_has_new_directories(given: Settings) -> None:
    use(given)
    with places.taken(given, places.both(given)) as there:
        runner = other_run(given)
        assert runner.stderr is not None
        assert "waiting for another run" in runner.stderr.readline()
        for place in there:
            (place.path / "result").unlink()
            places.unmark(place)
    assert runner.stdout is not None
    assert runner.stdout.readline() == "mine\n"
    (given.cache / "result").touch()
    assert all(place.look().marked for place in places.both(given))
    runner.communicate("go\n", timeout=20)
    assert runner.returncode == 0


def test_runs_do_not_wait_for_one_another(given: Settings) -> None:
    use(given)
    runner = other_run(given)
    assert runner.stdout is not None
    assert runner.stdout.readline() == "mine\n"
    use(given, "more")
    runner.communicate("go\n", timeout=20)
    assert runner.returncode == 0


_AT_ONCE = """
import random, sys, time
from pathlib import Path
from kbuild import cleaning
from kbuild.core import places
from kbuild.core.model import Settings
role, seed, *paths = sys.argv[1:]
project, build, cache = map(Path, paths)
given = Settings(project=project, build=build, cache=cache)
choose, sleep = random.Random(seed), time.sleep
# The lock asks again after 0.2 s, which would leave few encounters.
time.sleep = lambda _: sleep(0.002)
print("ready", flush=True)
sys.stdin.readline()
for _ in range(25):
    if role == "clean":
        cleaning.clean(given, cache=True)
    else:
        with places.held(given):
            for place in places.both(given) if choose.random() < 0.7 else ():
                (place.path / role).write_text("x")
                sleep(choose.random() * 0.004)
                assert place.look().marked and (place.path / role).exists()
    sleep(choose.random() * 0.004)
"""


@pytest.mark.parametrize("there", [False, True])
def test_many_at_once_never_meet(given: Settings, there: bool) -> None:
    seed = str(random.randrange(1 << 32))
    print(f"seed {seed}")
    for path in (given.build, given.cache) if there else ():
        path.mkdir(parents=True)
    paths = [str(path) for path in (given.project, given.build, given.cache)]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", _AT_ONCE, role, seed + role + str(number), *paths],
            env=os.environ | {"PYTHONPATH": str(PROJECT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, role in enumerate(("one", "two", "clean", "clean"))
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in started:
        _, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, "")
    assert not [path for path in content(given.project) if path.startswith(".build")]
    cleaning.clean(given, cache=True)
    assert given.build.exists() == given.cache.exists() == there
