"""Snapshots with a fake QEMU: their content, their key, their removal, and refused ones."""

from __future__ import annotations

import dataclasses
import os
import threading
from pathlib import Path

import pytest

from kbuild.core import stamp
from kbuild.core.errors import InfrastructureError
from kbuild.guest import qemu, snapshot
from kbuild.guest.guest import Guest, GuestCommandError, GuestLost
from kbuild.guest.outcome import Outcome
from kbuild.guest.snapshot import Provision
from kbuild.guest.spec import KVM, GuestSpec, Snapshot
from tests.unit import damage
from tests.unit.test_vm_guest import spec_at

RELEASE = "6.1.0-fake"


@pytest.fixture
def spec(tmp_path: Path, behave: Path) -> GuestSpec:
    tool = behave.with_name("qemu-img")
    tool.write_text('#!/bin/sh\nfor last; do :; done\necho overlay >"$last"\n')
    tool.chmod(0o755)
    spec = spec_at(tmp_path, slowness=20.0)
    (tmp_path / "boot" / f"vmlinuz-{RELEASE}").write_bytes(b"kernel")
    (tmp_path / "disk.img").write_bytes(bytes(4096))
    return spec


def ensure(spec: GuestSpec, tmp_path: Path, **options: Provision) -> Snapshot:
    return snapshot.ensure(tmp_path / "cache", spec, workdir=tmp_path / "boot-log", **options)


def boots(tmp_path: Path) -> int:
    """Return the number of boots for snapshots, at most 2: only the previous log is kept."""
    return len(list((tmp_path / "boot-log").glob("qemu*.log")))


def test_a_restored_guest_passes_and_its_console_is_whole(spec: GuestSpec, tmp_path: Path) -> None:
    kept = ensure(spec, tmp_path)
    with Guest.restore(kept, workdir=tmp_path / "w") as guest:
        assert (guest.release, guest.boot_id) == (RELEASE, "boot-id")
        assert guest.run(["work"], timeout_s=5, check=True).text == "done\n"
        verdict = guest.shutdown()
    assert verdict.passed, verdict
    text = (tmp_path / "w" / "console.log").read_text()
    assert text.index("Linux version") < text.index("cplayground-mark: restored ")
    # The snapshot itself did not change.
    assert "restored" not in kept.console.read_text()


def test_a_boot_is_saved_once_and_again_when_something_inside_changed(
    spec: GuestSpec, tmp_path: Path
) -> None:
    first = ensure(spec, tmp_path)
    assert ensure(spec, tmp_path) == first
    assert boots(tmp_path) == 1
    (tmp_path / "boot" / f"vmlinuz-{RELEASE}").write_bytes(b"another kernel")
    second = ensure(spec, tmp_path)
    assert (second.home != first.home, boots(tmp_path)) == (True, 2)


@pytest.mark.parametrize(
    "changes",
    [
        {"memory_mib": 2048},
        {"cpus": 4},
        {"append": ("acpi=off",)},
        {"console": ""},
        {"init": "/bin/sh"},
        {"accelerator": KVM},
    ],
    ids=lambda changes: ",".join(changes),
)
def test_each_part_of_the_machine_decides_the_key(
    spec: GuestSpec, changes: dict[str, object]
) -> None:
    other = dataclasses.replace(spec, **changes)  # type: ignore[arg-type]
    assert stamp.digest(snapshot.describe(other)) != stamp.digest(snapshot.describe(spec))


def test_what_the_guest_is_made_of_decides_the_key(
    spec: GuestSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {stamp.digest(snapshot.describe(spec))}

    def changed() -> bool:
        seen.add(stamp.digest(snapshot.describe(spec)))
        return len(seen) == count

    count = 2
    (tmp_path / "boot" / f"initrd.img-{RELEASE}").write_bytes(b"initrd")
    assert changed()
    count += 1
    disk = bytearray(spec.disk.read_bytes())
    disk[1024 + 0x68] ^= 1  # the file system's UUID
    status = spec.disk.stat()
    spec.disk.write_bytes(disk)
    os.utime(spec.disk, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert changed()
    count += 1
    os.utime(spec.disk, ns=(0, 0))
    assert changed()
    count += 1
    monkeypatch.setattr(snapshot, "PROTOCOL", 99)
    assert changed()


def test_how_slow_a_guest_is_said_to_be_is_not_in_the_key(spec: GuestSpec) -> None:
    patient = dataclasses.replace(spec, slowness=99.0)
    assert snapshot.describe(patient) == snapshot.describe(spec)


def test_a_provision_is_done_once_before_the_save(spec: GuestSpec, tmp_path: Path) -> None:
    done: list[str] = []
    one = Provision({"programs": "1"}, lambda guest: done.append(guest.release))
    first = ensure(spec, tmp_path, provision=one)
    ensure(spec, tmp_path, provision=one)
    assert done == [RELEASE]
    other = Provision({"programs": "2"}, lambda guest: done.append(guest.release))
    assert ensure(spec, tmp_path, provision=other) != first
    assert done == [RELEASE, RELEASE]


def test_two_runs_at_once_make_one_snapshot(spec: GuestSpec, tmp_path: Path) -> None:
    made: list[Snapshot] = []
    threads = [threading.Thread(target=lambda: made.append(ensure(spec, tmp_path))) for _ in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 2
    assert made[0] == made[1]
    assert boots(tmp_path) == 1


@pytest.mark.parametrize(
    ("behaviour", "outcome"),
    [("tainted", Outcome.TAINTED), ("silent console", Outcome.NO_OUTPUT)],
)
def test_a_guest_that_is_not_clean_is_not_saved(
    behave: Path, spec: GuestSpec, tmp_path: Path, behaviour: str, outcome: Outcome
) -> None:
    behave.write_text(behaviour)
    with pytest.raises(GuestLost, match="not fit to be saved") as lost:
        ensure(spec, tmp_path)
    assert lost.value.outcome is outcome
    assert not [path for path in (tmp_path / "cache" / "snapshots").iterdir() if path.is_dir()]


@pytest.mark.parametrize(
    ("behaviour", "says"),
    [
        ("no room", "could not be saved"),
        ("old QEMU", "refuses migrate-set-capabilities"),
        ("dies at quit", "did not end with status 0"),
    ],
)
def test_a_save_that_fails_leaves_nothing(
    behave: Path, spec: GuestSpec, tmp_path: Path, behaviour: str, says: str
) -> None:
    behave.write_text(behaviour)
    with pytest.raises(InfrastructureError, match=says):
        ensure(spec, tmp_path)
    assert not [path for path in (tmp_path / "cache" / "snapshots").iterdir() if path.is_dir()]


def test_a_damaged_snapshot_is_nobodys_verdict(spec: GuestSpec, tmp_path: Path) -> None:
    kept = ensure(spec, tmp_path)
    kept.state.write_bytes(b"rubbish")
    with pytest.raises(InfrastructureError, match="Not a migration stream"):
        Guest.restore(kept, workdir=tmp_path / "w")


def test_a_restore_that_never_runs_is_ended(
    behave: Path, spec: GuestSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = ensure(spec, tmp_path)
    behave.write_text("sleeps on")
    monkeypatch.setattr(qemu, "_QMP_TIMEOUT_S", 0.5)
    with pytest.raises(InfrastructureError, match="QEMU ended at migrate-incoming"):
        Guest.restore(kept, workdir=tmp_path / "w")


@pytest.mark.parametrize("victim", ["memory", "disk", "state"])
def test_a_damaged_snapshot_is_made_again(spec: GuestSpec, tmp_path: Path, victim: str) -> None:
    """test_healing.py has the other kinds of damage to the files of a stamp."""
    kept = ensure(spec, tmp_path)
    damage.cut(getattr(kept, victim))
    assert ensure(spec, tmp_path) == kept
    assert boots(tmp_path) == 2
    ensure(spec, tmp_path)
    assert boots(tmp_path) == 2


def test_the_words_of_the_boot_are_no_evidence_for_a_restored_guest(
    behave: Path, spec: GuestSpec, tmp_path: Path
) -> None:
    kept = ensure(spec, tmp_path)
    behave.write_text("console gone")
    with Guest.restore(kept, workdir=tmp_path / "w") as guest:
        verdict = guest.shutdown()
    assert "Linux version" in (tmp_path / "w" / "console.log").read_text()
    assert verdict.outcome is Outcome.NO_OUTPUT, verdict


def test_a_guest_without_random_numbers_of_its_own_is_refused(
    behave: Path, spec: GuestSpec, tmp_path: Path
) -> None:
    kept = ensure(spec, tmp_path)
    behave.write_text("no entropy")
    with pytest.raises(GuestCommandError, match="@wake"):
        Guest.restore(kept, workdir=tmp_path / "w")


def test_the_command_lines_differ_only_where_they_must(spec: GuestSpec, tmp_path: Path) -> None:
    kept = Snapshot(tmp_path / "s", spec)
    wires = qemu.Wires(3, 4, 5, 6)
    first, again = (
        " ".join(qemu.command(spec, wires, kept, restored=restored)).replace(str(tmp_path), "/t")
        for restored in (False, True)
    )
    memory = "memory-backend-file,id=memory,size=1024M,mem-path=/t/s/memory,share="
    disk = "file=/t/s/disk.qcow2,format=qcow2"
    disk += ",backing.driver=raw,backing.file.filename=/t/disk.img,if=none,id=disk"
    assert "-machine pc,memory-backend=memory" in first
    assert f"{memory}on" in first
    assert f"{disk} " in first
    expected = first.replace(f"{memory}on", f"{memory}off -incoming defer")
    expected = expected.replace(disk, f"{disk},snapshot=on")
    assert again == expected


# --- removal -------------------------------------------------------------------------------


def shelf_of(tmp_path: Path, **ages_s: float) -> Path:
    """Make directories of snapshots that were last used so many seconds ago."""
    shelf = tmp_path / "snapshots"
    now = shelf.parent.stat().st_mtime
    for name, age in ages_s.items():
        home = shelf / name.replace("_", ".")
        home.mkdir(parents=True)
        os.utime(home, (now - age, now - age))
    return shelf


def test_the_snapshots_that_were_used_last_are_kept(tmp_path: Path) -> None:
    shelf = shelf_of(tmp_path, a=9000, b=8000, c=7000, d=6000)
    (shelf / "a.lock").touch()
    snapshot.prune(shelf, keep=2)
    assert sorted(path.name for path in shelf.iterdir()) == ["a.lock", "c", "d"]


def test_one_that_may_be_about_to_be_restored_is_kept(tmp_path: Path) -> None:
    shelf = shelf_of(tmp_path, a=60, b=50, c=40)
    snapshot.prune(shelf, keep=1)
    assert sorted(path.name for path in shelf.iterdir()) == ["a", "b", "c"]


def test_what_a_killed_run_left_goes_when_nobody_can_be_at_work_in_it(tmp_path: Path) -> None:
    shelf = shelf_of(tmp_path, a=90000, _old=90000, _new=9000)
    snapshot.prune(shelf, keep=5)
    assert sorted(path.name for path in shelf.iterdir()) == [".new", "a"]
