"""A full and a read-only disk under the archive: what servers see stays, and nothing is lost.

The disk is a tmpfs in a mount namespace of this test's own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit import releases
from tests.unit.mounts import UNSHARE

PROJECT = Path(__file__).parents[2]

# Runs in the namespace, with the disk as its working directory.
SCRIPT = """
import dataclasses, json, os, sys
from pathlib import Path
from kbuild.archive import operations, snapshots, verify
from kbuild.core.errors import DefectError, KbuildError
from kbuild.core.run import run
from tests.unit import releases

disk, work = Path.cwd(), Path(os.environ["WORK"])
given = dataclasses.replace(
    releases.settings(work, Path(os.environ["KEYS"])), archive=disk / "archive"
)
first, second = (releases.release(number, small=True) for number in (1, 2))
operations.stage(given, first, releases.files(work, first))
operations.promote(given, first.id, 100)
files = releases.files(work, second)


def seen():
    late = "as the records say"
    found = [str(one) for one in verify.check(given).findings if not one.what.endswith(late)]
    plans = {
        name: [entry.output.path for entry in snapshots.read(given.archive, one).plan[name]]
        for name, one in snapshots.linked(given.archive).items()
    }
    return found, plans


def attempt():
    try:
        operations.stage(given, second, files)
        return ["", 0, ""]
    except Exception as error:
        known = error if isinstance(error, KbuildError) else DefectError.of(error, [disk])
        return [type(known).__name__, known.exit_status, str(known)]


def left():
    status = os.statvfs(disk)
    return status.f_bavail * status.f_frsize


before, results = seen(), []
for room in [int(one) for one in sys.argv[1:]]:
    with (disk / "filler").open("wb") as stream:
        stream.write(bytes(max(0, left() - room)))
    results.append([room, *attempt(), seen() == before])
    (disk / "filler").unlink()
run(["mount", "-o", "remount,ro", disk], timeout_s=20)
results.append(["read-only", *attempt(), seen() == before, len(operations.releases(given))])
run(["mount", "-o", "remount,rw", disk], timeout_s=20)
results.append(["free", *attempt(), seen()[0] == [] and seen() != before])
print(json.dumps(results))
"""
ROOMS = (0, 4096, 12288, 20480, 28672, 32768, 40960, 49152, 57344)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[list[Any]]:
    if subprocess.run([*UNSHARE, "true"], capture_output=True).returncode != 0:
        pytest.skip("this machine gives no mount namespace")
    disk, work = tmp_path_factory.mktemp("disk"), tmp_path_factory.mktemp("work")
    mounted = 'mount -t tmpfs -o size=2M tmpfs "$1" && cd "$1" && shift && exec "$@"'
    command = [sys.executable, "-c", SCRIPT, *map(str, ROOMS)]
    own = {"WORK": str(work), "KEYS": str(releases.keys()), "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(
        [*UNSHARE, "sh", "-c", mounted, "sh", disk, *command],
        env={**os.environ, **own, "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert not any(disk.iterdir())
    found: list[list[Any]] = json.loads(done.stdout)
    return found


def test_a_full_disk_leaves_what_servers_see(results: list[list[Any]]) -> None:
    said = ""
    for room, kind, status, text, unchanged in results[: len(ROOMS)]:
        assert (kind, status) == ("FullDiskError", 69), (room, text)
        assert unchanged, room
        said += text
    # The evidence, the packages and the indexes found no room in turn.
    assert all(name in said for name in ("gate.json", "cp found no room", "for an index"))


def test_a_read_only_disk_can_be_read_and_verified(results: list[list[Any]]) -> None:
    _, kind, status, text, unchanged, known = results[len(ROOMS)]
    assert (kind, status) == ("InfrastructureError", 69), text
    assert "Read-only file system" in text
    assert "archive.json" in text
    assert unchanged
    # The attempts on the full disk may have recorded that the gate passed the second release.
    assert known in (1, 2)


def test_with_room_the_same_command_finishes(results: list[list[Any]]) -> None:
    assert results[-1][1:] == ["", 0, "", True]
