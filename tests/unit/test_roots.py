"""Roots are made once, by a tool that may fail, and a half-made one is never used."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kbuild import cleaning, verify
from kbuild.core import fs, places, sandbox
from kbuild.core.errors import InfrastructureError, LostDependencyError, TrustError, UserError
from kbuild.core.model import Root, Settings
from kbuild.core.sandbox import Bind
from kbuild.fetch import index, mirror, roots
from tests.unit import damage, toy

# The last two arguments of mmdebstrap are the directory and "-", the sources on its input.
MMDEBSTRAP = """#!/bin/sh
cat >> "$FAKE_LOG"
while [ $# -gt 2 ]; do shift; done
mkdir -p "$1/var/lib/dpkg"
for package in "gcc-12 12.2.0-14" "make 4.3"; do
    printf 'Package: %s\nVersion: %s\nArchitecture: amd64\n' $package
    printf 'Status: install ok installed\nMaintainer: x\nDescription: x\n\n'
done > "$1/var/lib/dpkg/status"
mkdir -p "$1/usr/bin"
echo gcc > "$1/usr/bin/gcc"
echo "E: no such mirror"
exit "$(cat "$FAKE_STATUS")"
"""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    tools = tmp_path / "bin"
    log, status = tmp_path / "sources", tmp_path / "status"
    script = MMDEBSTRAP.replace("$FAKE_LOG", str(log)).replace("$FAKE_STATUS", str(status))
    toy.write(tools / "mmdebstrap", script)
    (tools / "mmdebstrap").chmod(0o755)
    status.write_text("0")
    monkeypatch.setenv("PATH", f"{tools}:{toy.FAKE_TOOLS}:{os.environ['PATH']}")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(index, "sources_list", lambda settings, suite: f"deb {suite}\n")
    private = contextlib.nullcontext(mirror.Private((), ()))
    monkeypatch.setattr(mirror, "private", lambda settings: private)
    return Settings(project=tmp_path, build=tmp_path / "build", cache=tmp_path / "cache")


def bootstraps(settings: Settings) -> int:
    log = settings.project / "sources"
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_a_root_is_made_once_and_says_what_it_holds(settings: Settings) -> None:
    for place in places.both(settings):
        places.mark(place)
    first = roots.make_root(settings, "bookworm", "compile", ["make"])
    os.utime(first.path.parent, (0, 0))
    assert roots.make_root(settings, "bookworm", "compile", ["make"]) == first
    assert bootstraps(settings) == 1
    assert cleaning.clean_unused(settings, days=1) == ()
    assert first.versions == {"gcc-12": "12.2.0-14", "make": "4.3"}
    other = roots.make_root(settings, "bookworm", "compile", ["make", "gcc"])
    assert (other.path, other.digest) != (first.path, first.digest)


def test_a_root_keeps_no_password(settings: Settings) -> None:
    program = settings.project / "bin/mmdebstrap"
    keep = """
mkdir -p "$1/usr/bin"
mkdir -p "$1/etc/apt/apt.conf.d" "$1/etc/apt/sources.list.d"
echo "deb http://user:pw@m.example/debian bookworm main" > "$1/etc/apt/sources.list"
echo "URIs: http://user:p/w@m.example/debian" > "$1/etc/apt/sources.list.d/0000m.sources"
echo 'Acquire::http::Proxy "http://user:pw@proxy.example:3128";' > "$1/etc/apt/apt.conf.d/99m"
"""
    program.write_text(program.read_text().replace('mkdir -p "$1/usr/bin"\n', keep))
    apt = roots.make_root(settings, "bookworm", "compile", ["make"]).path / "etc/apt"
    assert (apt / "sources.list").read_text() == "deb http://***@m.example/debian bookworm main\n"
    texts = [path.read_text() for path in apt.rglob("*") if path.is_file()]
    assert [text.count("***@") for text in texts] == [1, 1, 1]
    assert "user" not in "".join(texts)


@pytest.mark.parametrize("victim", ["packages.json", "root/usr/bin/gcc", "stamp.json"])
@pytest.mark.parametrize("harm", damage.VISIBLE.values(), ids=damage.VISIBLE)
def test_a_damaged_root_is_made_again(
    settings: Settings, victim: str, harm: Callable[[Path], None]
) -> None:
    first = roots.make_root(settings, "bookworm", "compile", ["make"])
    harm(first.path.parent / victim)
    if victim == "stamp.json" and harm is damage.edited:
        (first.path.parent / victim).write_text("{")
    damaged = [line for place in verify.check(settings) for line in place.damaged]
    assert len(damaged) == (harm is not damage.lost or victim != "stamp.json")
    offline = dataclasses.replace(settings, offline=True)
    with pytest.raises(InfrastructureError, match="damaged, and this run is offline"):
        roots.make_root(offline, "bookworm", "compile", ["make"])
    assert roots.make_root(settings, "bookworm", "compile", ["make"]) == first
    assert bootstraps(settings) == 2
    assert roots.make_root(offline, "bookworm", "compile", ["make"]) == first


def test_a_root_of_an_earlier_version_is_kept(settings: Settings) -> None:
    first = roots.make_root(settings, "bookworm", "compile", ["make"])
    mark = first.path.parent / "stamp.json"
    raw = json.loads(mark.read_text())
    fs.write_json(mark, raw | {"outputs": sorted(raw["outputs"])})
    assert roots.make_root(settings, "bookworm", "compile", ["make"]) == first
    assert bootstraps(settings) == 1
    damage.emptied(first.path / "usr/bin/gcc")
    roots.make_root(settings, "bookworm", "compile", ["make"])
    assert bootstraps(settings) == 2


@pytest.mark.parametrize(
    ("said", "again"),
    [
        ("??5?????? c /etc/issue", False),
        ("??5??????   /usr/bin/gcc", True),
        ("missing     /usr/bin/gcc", True),
    ],
)
def test_dpkg_reads_a_root_of_an_earlier_version(
    settings: Settings, caplog: pytest.LogCaptureFixture, said: str, again: bool
) -> None:
    caplog.set_level(logging.INFO)
    first = roots.make_root(settings, "bookworm", "compile", ["make"])
    mark = first.path.parent / "stamp.json"
    raw = json.loads(mark.read_text())
    fs.write_json(mark, raw | {"outputs": sorted(raw["outputs"])})
    script = f"#!/bin/sh\ntest $1 = --root={first.path} -a $2 = --verify && echo '{said}'\nexit 1\n"
    dpkg = settings.project / "bin/dpkg"
    toy.write(dpkg, script)
    dpkg.chmod(0o755)
    for _ in range(2):
        roots.make_root(settings, "bookworm", "compile", ["make"])
    assert bootstraps(settings) == 1 + again
    assert ("dpkg finds 1 damaged files: /usr/bin/gcc" in caplog.text) == again


def test_a_damaged_list_of_packages_of_an_earlier_version_has_the_root_made_again(
    settings: Settings,
) -> None:
    first = roots.make_root(settings, "bookworm", "compile", ["make"])
    mark = first.path.parent / "stamp.json"
    raw = json.loads(mark.read_text())
    fs.write_json(mark, raw | {"outputs": sorted(raw["outputs"])})
    damage.cut(first.path.parent / "packages.json")
    assert roots.make_root(settings, "bookworm", "compile", ["make"]) == first
    assert bootstraps(settings) == 2


def test_a_root_is_made_again_on_request(settings: Settings) -> None:
    roots.make_root(settings, "bookworm", "compile", ["make"])
    roots.make_root(settings, "bookworm", "compile", ["make"], refresh="a newer compiler")
    assert bootstraps(settings) == 2


def test_a_failed_bootstrap_is_no_root(settings: Settings) -> None:
    (settings.project / "status").write_text("25")
    with pytest.raises(InfrastructureError, match="exit status 25") as caught:
        roots.make_root(settings, "bookworm", "compile", ["make"])
    assert "no such mirror" in (caught.value.found or "")
    assert "--mirror" in (caught.value.hint or "")
    assert roots.why_make(settings, "bookworm", "compile", ["make"]) is not None
    (settings.project / "status").write_text("0")
    roots.make_root(settings, "bookworm", "compile", ["make"])
    assert roots.why_make(settings, "bookworm", "compile", ["make"]) is None


def test_a_root_stays_until_the_next_is_whole(settings: Settings) -> None:
    first = roots.make_root(settings, "bookworm", "compile", ["make"])
    (settings.project / "status").write_text("25")
    toy.write(first.path.parent.parent / f".{first.path.parent.name}.killed/root/x", "")
    with pytest.raises(InfrastructureError):
        roots.make_root(settings, "bookworm", "compile", ["make"], refresh="a newer compiler")
    assert roots.make_root(settings, "bookworm", "compile", ["make"]) == first
    assert first.path.is_dir()
    assert sorted(path.name for path in first.path.parent.parent.iterdir()) == [
        first.path.parent.name,
        f"{first.path.parent.name}.lock",
    ]


def test_an_expired_index_is_told_from_a_mirror_that_is_away(settings: Settings) -> None:
    program = settings.project / "bin/mmdebstrap"
    said = (
        "E: Release file for http://m/dists/trixie-updates/InRelease is expired (invalid since 3d)."
    )
    program.write_text(program.read_text().replace("E: no such mirror", said))
    (settings.project / "status").write_text("25")
    with pytest.raises(TrustError, match="has expired") as caught:
        roots.make_root(settings, "trixie-backports", "compile", ["make"])
    assert "trixie-updates/InRelease is expired (invalid since 3d)" in (caught.value.found or "")
    assert "--accept-expired" in (caught.value.hint or "")


def test_offline_a_missing_root_is_an_error(settings: Settings) -> None:
    away = dataclasses.replace(settings, offline=True)
    with pytest.raises(InfrastructureError, match="this run is offline"):
        roots.make_root(away, "bookworm", "compile", ["make"])
    assert bootstraps(settings) == 0


def test_without_privileges_nothing_is_begun(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(UserError, match="needs root privileges") as caught:
        roots.make_root(settings, "bookworm", "compile", ["make"])
    assert "sudo" in (caught.value.hint or "")
    assert bootstraps(settings) == 0


def test_a_command_sees_what_is_bound_and_the_environment_that_is_given(
    settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "given").mkdir()
    (tmp_path / "given/file").write_text("content")
    root = Root("bookworm", tmp_path / "root", "digest")
    done = sandbox.enter(
        root,
        ["sh", "-c", 'cat /mnt/given/file; echo " $ANSWER $TZ"'],
        binds=[Bind(tmp_path / "given", "/mnt/given")],
        env={"ANSWER": "42"},
        timeout_s=20,
    )
    assert done.stdout == "content 42 UTC\n"


# Mounts as mmdebstrap does, the host's own files among them, and then is long at work.
# It ends when it is told to, as mmdebstrap does; the first process of a namespace would not.
MOUNTS = """#!/bin/sh
trap 'exit 1' TERM
cat > /dev/null
while [ $# -gt 2 ]; do shift; done
mkdir -p "$1/dev/shm" "$1/sys"
mount --rbind {precious} "$1/dev/shm" && mount -t tmpfs tmpfs "$1/sys" || exit 1
touch {begun}
while :; do date > "$1/alive" && sleep 0.02; done
"""
MAKES_A_ROOT = """
import sys
from pathlib import Path
from kbuild.fetch import index, roots
from kbuild.core.model import Settings
from kbuild.core.run import interruptible
index.sources_list = lambda settings, suite: ""
here = Path(sys.argv[1])
settings = Settings(project=here, build=here / "build", cache=here / "cache")
with interruptible():
    roots.make_root(settings, "bookworm", "compile", ["make"])
"""


def processes_of(program: Path) -> list[int]:
    """List the processes that run a script."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if path.read_bytes().split(b"\0")[1:2] == [os.fsencode(program)]:
                found.append(int(path.parent.name))
    return found


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root privileges")
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_ends_while_it_makes_a_root_leaves_nothing_mounted(
    signum: signal.Signals, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, precious = settings.project, settings.project / "precious"
    toy.write(precious / "shared memory", "of the host")
    tool = here / "bin/mmdebstrap"
    usual = tool.read_text()
    tool.write_text(MOUNTS.format(precious=precious, begun=here / "begun"))
    path = os.environ["PATH"]
    process = subprocess.Popen(
        [sys.executable, "-c", MAKES_A_ROOT, str(here)],
        cwd=Path(__file__).parents[2],
        env={"PATH": path.replace(str(toy.FAKE_TOOLS), "/usr/bin"), "HOME": str(here)},
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: (here / "begun").exists() or process.poll() is not None)
        mounted = fs.mounts_below(here)
        process.send_signal(signum)
        process.wait(timeout=30)
        wait_for(lambda: not processes_of(tool))
    finally:
        process.kill()
        process.wait()
        for pid in processes_of(tool):
            os.kill(pid, signal.SIGKILL)
        for point in reversed(fs.mounts_below(here)):
            subprocess.run(["umount", "--lazy", point], check=True)
    assert mounted == []
    roots_there = settings.cache / "roots"
    if signum is not signal.SIGKILL:
        assert [one.name for one in roots_there.iterdir() if one.suffix != ".lock"] == []
    # The next run takes up what is left of a killed one.
    tool.write_text(usual)
    made = roots.make_root(settings, "bookworm", "compile", ["make"])
    assert sorted(one.name for one in roots_there.iterdir()) == [
        made.path.parent.name,
        f"{made.path.parent.name}.lock",
    ]
    assert (precious / "shared memory").read_text() == "of the host"
    assert fs.mounts_below(here) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root privileges")
def test_a_leftover_with_something_mounted_is_named_and_stays(settings: Settings) -> None:
    precious = settings.project / "precious"
    toy.write(precious / "file", "of the host")
    home = roots.root_path(settings, "bookworm", "compile", ["make"])
    point = home.with_name(f".{home.name}.old") / "root/dev/shm"
    point.mkdir(parents=True)
    subprocess.run(["mount", "--bind", precious, point], check=True)
    try:
        with pytest.raises(InfrastructureError, match="was not removed") as caught:
            roots.make_root(settings, "bookworm", "compile", ["make"])
    finally:
        subprocess.run(["umount", point], check=True)
    assert str(point) in (caught.value.found or "")
    assert (precious / "file").read_text() == "of the host"
    assert bootstraps(settings) == 0


def test_a_tool_that_is_not_there_is_named_before_anything_is_made(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(LostDependencyError, match="mmdebstrap"):
        roots.make_root(settings, "bookworm", "compile", ["make"])
    with pytest.raises(LostDependencyError, match="bwrap"):
        sandbox.enter(Root("bookworm", settings.project, "digest"), ["true"], timeout_s=20)
