"""The guard on servers made of files: each transition, and the power cut at each of its steps."""

from __future__ import annotations

import fcntl
import json
import random
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.own_apt import Apt
from tests.unit.server import FAKES, LIBRARY, PROJECT, ROOT, Server

DEBIAN = "6.1.0-57-cloud-amd64"
OLD = "6.1.0-56-cplayground-cloud-amd64"
NEW = "6.1.0-57-cplayground-cloud-amd64"
NEWER = "6.1.0-57-cplayground.2-cloud-amd64"
# A check that stops the service; the parent of a check is timeout(1).
STOP = "read -r _ _ _ guard _ </proc/$PPID/stat; kill -TERM $guard"


@pytest.fixture(scope="module")
def first_server(tmp_path_factory: pytest.TempPathFactory) -> Server:
    made = Server.new(tmp_path_factory.mktemp("first") / "server", DEBIAN)
    assert made.guard("prepare").returncode == 0
    return made


@pytest.fixture
def server(first_server: Server, tmp_path: Path) -> Server:
    """A server that runs Debian's kernel, with the guard installed."""
    return first_server.copy(tmp_path / "server")


@pytest.fixture(scope="module")
def settled_server(first_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Server:
    server = first_server.copy(tmp_path_factory.mktemp("settled") / "server")
    server.install(OLD, "1")
    # Debian's is newer by its number, so ours is armed by hand.
    if server.state[0] != "armed":
        server.guard("arm", OLD)
    server.boot()
    assert server.state == ("good", OLD, "")
    return server


@pytest.fixture
def settled(settled_server: Server, tmp_path: Path) -> Server:
    """A server on which a kernel of ours has proved itself."""
    return settled_server.copy(tmp_path / "server")


def slots(server: Server) -> dict[str, list[str]]:
    return {
        path.parent.name[12:] + "/" + path.name: json.loads(path.read_text())[1:3]
        for path in server.top.glob("boot/cplayground-*/*")
    }


# --- one kernel ---------------------------------------------------------------------------------


def test_the_running_kernel_is_the_first_good_one(server: Server) -> None:
    assert server.state == ("good", DEBIAN, "")
    assert slots(server) == {"good/vmlinuz": [DEBIAN, "1"], "good/initrd.img": [DEBIAN, "1"]}
    assert server.load().slot == "good"


def test_a_tree_that_is_being_made_begins_with_debians_kernel(tmp_path: Path) -> None:
    server = Server.new(tmp_path / "server", NEW, DEBIAN, running="6.6.0-of-the-host")
    server.guard("prepare")
    assert server.state == ("armed", DEBIAN, NEW)


def test_a_new_kernel_is_started_once_and_becomes_good(server: Server) -> None:
    said = server.install(NEW).stdout
    assert f"{NEW} is on trial at the next boot" in said
    assert "no hardware watchdog" in said
    assert server.state == ("armed", DEBIAN, NEW)
    started = server.boot()
    assert (started.slot, started.release) == ("trial", NEW)
    assert server.state == ("good", NEW, "")
    assert server.environment.keys() == {"next_entry", "guard_good"}
    assert not (server.top / "boot/cplayground-trial").exists()
    assert server.boot().slot == "good"
    assert server.state == ("good", NEW, "")


def test_a_kernel_that_crashes_is_left_and_is_not_armed_again(server: Server) -> None:
    server.install(NEW)
    server.load()
    started = server.boot()
    assert (started.slot, started.release) == ("good", DEBIAN)
    found = server.status()
    assert (found["state"], found["good"], found["bad"]) == ("bad", DEBIAN, NEW)
    assert found["reason"].startswith("crashed or hung: ")
    # The same package again, as a reinstallation does.
    assert "not put on trial again" in server.install(NEW).stdout
    assert server.state[0] == "bad"
    assert server.guard("arm", NEW).returncode == 1
    assert server.boot().release == DEBIAN
    # Another version has another chance.
    server.install(NEW, "2")
    assert server.state == ("armed", DEBIAN, NEW)
    assert server.boot().version == "2"
    assert server.state == ("good", NEW, "")


def test_retry_gives_a_bad_kernel_another_chance(server: Server) -> None:
    server.install(NEW)
    server.load()
    server.boot()
    assert server.guard("retry").returncode == 0
    assert server.state == ("armed", DEBIAN, NEW)
    server.boot()
    assert server.state == ("good", NEW, "")
    assert server.status()["bad"] == ""


@pytest.mark.parametrize(
    ("journal", "reason"),
    [
        ("Kernel panic - not syncing: Fatal exception", "crashed: Kernel panic"),
        ("Oops: 0002 [#1] SMP", "crashed: Oops: 0002"),
        ("watchdog: BUG: soft lockup - CPU#1 stuck for 26s!", "hung: watchdog: BUG: soft lockup"),
        ("all was well", "crashed or hung: "),
    ],
)
def test_the_reason_is_what_the_last_boot_left(server: Server, journal: str, reason: str) -> None:
    server.install(NEW)
    server.load()
    server.write("journal", f"Linux version {NEW} (toy)\n{journal}\n")
    server.boot()
    assert server.status()["reason"].startswith(reason)
    assert journal in server.guard("why").stdout


def test_the_journal_of_another_kernel_is_no_evidence(server: Server) -> None:
    server.install(NEW)
    server.load()
    server.write("journal", f"Linux version {DEBIAN} (toy)\nKernel panic - not syncing: old\n")
    server.boot()
    assert server.status()["reason"].startswith("crashed or hung: ")


def test_a_kernel_that_grub_cannot_load_is_unloadable(server: Server) -> None:
    server.install(NEW)
    image = server.top / "boot/cplayground-trial/vmlinuz"
    image.unlink()
    image.write_text(json.dumps("garbage"))
    assert server.boot().release == DEBIAN
    assert server.status()["reason"].startswith("unloadable: ")


def test_another_entry_of_the_menu_is_no_trial(server: Server) -> None:
    server.install(NEW)
    for _ in range(2):
        server.boot(choice="cplayground-good")
        assert server.state == ("armed", DEBIAN, NEW)
    server.boot(choice="cplayground-good")
    assert server.status()["reason"].startswith("not tried: ")
    assert server.state[0] == "bad"


def test_a_reboot_during_the_probation_returns_to_the_good_kernel(server: Server) -> None:
    server.configure(PROBATION="10min")
    server.install(NEW)
    server.boot(judge=False)
    # systemd ends the service; its sleep is over at once.
    server.check("reboot", STOP)
    server.guard("probation", FAKE_SYSTEM="stopping")
    assert server.state == ("trying", DEBIAN, NEW)
    assert server.boot().release == DEBIAN
    # Again, at most twice.
    for _ in range(2):
        assert server.state == ("armed", DEBIAN, NEW)
        assert server.boot(judge=False).release == NEW
        server.guard("probation", FAKE_SYSTEM="stopping")
        assert server.boot().release == DEBIAN
    assert server.status()["reason"].startswith("not tried to the end: ")
    assert server.state[0] == "bad"


def test_grub_that_cannot_clear_its_next_entry_never_tries(server: Server) -> None:
    server.install(NEW)
    assert server.boot(writes=False).release == DEBIAN
    # Once may be a journal that was not replayed.
    assert server.state[0] == "armed"
    assert server.boot(writes=False).release == DEBIAN
    assert server.status()["reason"].startswith("not tried: GRUB ")


# --- checks -------------------------------------------------------------------------------------


def test_a_failed_check_restarts_into_the_good_kernel(server: Server) -> None:
    server.install(NEW)
    server.check("database", "echo starting; echo no answer; exit 3")
    assert server.boot().release == NEW
    assert (server.top / "systemctl").read_text().splitlines()[-1].strip() == "reboot"
    assert server.boot().release == DEBIAN
    assert server.status()["reason"] == "refused: the check database failed: no answer"
    told = server.guard("why").stdout
    assert "Check database: status 3" in told and "  starting\n" in told


def test_a_check_that_fails_once_is_repeated(server: Server) -> None:
    server.configure(PROBATION="0", PATIENCE="3min")
    server.install(NEW)
    server.check("network", 'mkdir "$GUARD_STATE/seen" && exit 1; exit 0')
    server.boot()
    assert server.state == ("good", NEW, "")


@pytest.mark.parametrize(("minutes", "state"), [(2, "good"), (3, "bad")])
def test_a_check_may_fail_for_some_minutes_also_at_the_end_of_the_probation(
    server: Server, minutes: int, state: str
) -> None:
    server.configure(PROBATION="1min", PATIENCE="3min")
    server.install(NEW)
    # The first round passes; then a minute passes in each round.
    turn = 'turn=$(($(cat "$GUARD_STATE/turn" || echo -1) + 1)); echo $turn >"$GUARD_STATE/turn"'
    clock = 'echo "$((10 + turn * 60)).0 1.0" >"$GUARD_ROOT/proc/uptime"'
    server.check("network", f"{turn}\n{clock}\n[ $turn = 0 ] || [ $turn -gt {minutes + 1} ]")
    server.write("bin/sleep", "#!/bin/sh\n", mode=0o755)
    server.boot(judge=False)
    server.guard("probation", GUARD_PATH=f"{server.top}/bin:{FAKES}")
    server.boot()
    assert server.state[0] == state


def test_the_settings_of_a_trial_end_with_it(server: Server) -> None:
    names = ("panic", "panic_on_oops", "softlockup_panic")

    def settings(*values: str) -> list[str]:
        for name, value in zip(names, values, strict=False):
            (server.top / f"proc/sys/kernel/{name}").write_text(f"{value}\n")
        return [(server.top / f"proc/sys/kernel/{name}").read_text().strip() for name in names]

    settings("30", "0", "0")
    server.install(NEW)
    server.boot(judge=False)
    # /etc/sysctl.d has overruled the arguments.
    settings("0", "0", "1")
    server.check(
        "see", 'cat "$GUARD_ROOT"/proc/sys/kernel/*panic* | tr "\\n" " " >"$GUARD_ROOT/seen"'
    )
    server.guard("probation")
    assert (server.top / "seen").read_text().split() == ["10", "1", "1"]
    assert server.state == ("good", NEW, "")
    assert settings() == ["30", "0", "0"]


def test_a_users_check_replaces_ours_of_that_name(server: Server) -> None:
    ours = "usr/lib/cplayground/guard/check.d/30-units"
    server.write(ours, "#!/bin/sh\nexit 1\n", mode=0o755)
    server.check("30-units", "exit 0")
    server.install(NEW)
    server.boot()
    assert server.state == ("good", NEW, "")


@pytest.mark.parametrize(("failing", "state"), [("a.service", "good"), ("b.service", "bad")])
def test_a_unit_that_had_failed_before_is_no_fault(
    server: Server, failing: str, state: str
) -> None:
    units = LIBRARY / "check.d/30-units"
    server.write("usr/lib/cplayground/guard/check.d/30-units", units.read_text(), mode=0o755)
    server.write("failed-units", "a.service loaded failed failed A\n")
    server.install(NEW)
    server.write("failed-units", f"{failing} loaded failed failed it\n")
    server.boot()
    assert server.state[0] == state


@pytest.mark.parametrize(
    ("properties", "state"),
    [
        ("Transient=no\nTriggeredBy=\nWantedBy=multi-user.target\nRequiredBy=\n", "bad"),
        ("Transient=no\nTriggeredBy=x.socket\nWantedBy=\nRequiredBy=local-fs.target\n", "bad"),
        ("Transient=no\nTriggeredBy=\nWantedBy=\nRequiredBy=\n", "good"),
        ("Transient=no\nTriggeredBy=x.timer\nWantedBy=multi-user.target\n", "good"),
        ("Transient=yes\nTriggeredBy=\nWantedBy=multi-user.target\n", "good"),
    ],
    ids=["enabled", "required", "started by a person", "of a timer", "transient"],
)
def test_only_units_that_the_machine_starts_are_judged(
    server: Server, properties: str, state: str
) -> None:
    units = LIBRARY / "check.d/30-units"
    server.write("usr/lib/cplayground/guard/check.d/30-units", units.read_text(), mode=0o755)
    server.install(NEW)
    server.write("failed-units", "a.service loaded failed failed A\n")
    server.write("properties", properties)
    server.boot()
    assert server.state[0] == state


def test_the_machine_that_never_comes_up_is_restarted(server: Server) -> None:
    server.configure(BOOT_LIMIT="1", PROBATION="0")
    server.install(NEW)
    server.boot(judge=False)
    server.guard("deadline")
    assert (server.top / "systemctl").read_text().splitlines()[-1] == "--force reboot"
    assert server.boot().release == DEBIAN
    assert "did not come up" in server.status()["reason"]


def test_the_deadline_is_over_when_the_probation_began(server: Server) -> None:
    server.configure(BOOT_LIMIT="1", PROBATION="0")
    server.install(NEW)
    server.boot()
    server.guard("deadline")
    assert "reboot" not in (server.top / "systemctl").read_text()


# --- what must not harm a server ----------------------------------------------------------------


def reboots(server: Server) -> list[str]:
    """Return the restarts that the guard asked for since the last call."""
    path = server.top / "systemctl"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return [line.strip() for line in lines if line.endswith("reboot")]


def begun(server: Server) -> Server:
    """Let a trial run, until its service is stopped."""
    server.configure(PROBATION="10min", BOOT_LIMIT="1")
    server.install(NEW)
    server.boot(judge=False)
    server.check("stop", STOP)
    server.guard("probation")
    (server.top / "etc/cplayground/check.d/stop").unlink()
    server.configure(PROBATION="0", BOOT_LIMIT="1")
    assert server.state == ("trying", DEBIAN, NEW)
    return server


@pytest.mark.parametrize("command", ["probation", "good"])
def test_a_build_that_was_not_booted_is_not_made_good(server: Server, command: str) -> None:
    """The command line says "trial" as long as the machine runs, also after the trial."""
    server.install(NEW)
    server.boot()
    server.install(NEW, "2")
    assert server.state == ("armed", DEBIAN, NEW)
    server.guard("prepare")
    done = server.guard(command)
    assert (done.returncode != 0) == (command == "good")
    assert server.state == ("armed", DEBIAN, NEW)
    assert slots(server)["good/vmlinuz"] == [DEBIAN, "1"]
    assert server.boot().version == "2"
    assert server.state == ("good", NEW, "")
    assert slots(server)["good/vmlinuz"] == [NEW, "2"]


def test_a_check_does_not_restart_a_machine_whose_trial_has_ended(server: Server) -> None:
    server.install(NEW)
    server.boot()
    server.put(NEW, initrd="with microcode")
    server.guard("hook", "initrd", NEW)
    server.check("bad", "exit 1")
    reboots(server)
    server.guard("probation")
    assert server.state == ("armed", NEW, NEW) and reboots(server) == []


def _power_cut(server: Server) -> None:
    """Cut the power while the good pair is replaced, and let the trial's pair settle it."""
    server.install(NEW)
    server.boot(judge=False)
    for _, copy in server.each_cut("probation"):
        if copy.stored[0] == "settling" and copy.load().slot == "trial":
            break
    server.top = copy.top
    assert server.boot().slot == "trial"


def _good_before_the_probation(server: Server) -> None:
    server.install(NEW)
    server.boot(judge=False)
    server.guard("good")


def _kexec(server: Server) -> None:
    server.install(NEW)
    server.boot()
    server.come_up(NEW, trial=True)


def _another_one_waits(server: Server) -> None:
    _good_before_the_probation(server)
    server.install(NEWER)


ENDED = (_power_cut, _good_before_the_probation, _kexec, _another_one_waits)


@pytest.mark.parametrize("end", ENDED)
def test_the_deadline_leaves_a_machine_whose_trial_has_ended(
    server: Server, end: Callable[[Server], None]
) -> None:
    server.configure(PROBATION="0", BOOT_LIMIT="1")
    end(server)
    before = server.stored
    assert before[:2] in [("good", NEW), ("armed", NEW)]
    reboots(server)
    server.guard("deadline")
    assert server.stored == before and reboots(server) == []


def test_an_ended_trial_that_cannot_be_settled_is_not_restarted_for_ever(server: Server) -> None:
    server.configure(PROBATION="0", BOOT_LIMIT="1")
    _power_cut(server)
    state = server.top / "var/lib/cplayground-guard/state"
    state.write_text(state.read_text().replace("state=good", "state=settling"))
    (server.top / "run/cplayground-guard/began").unlink()
    _read_only(server)
    reboots(server)
    server.guard("deadline")
    assert reboots(server) == []


@pytest.mark.parametrize("pending", [False, True])
def test_good_overrules_a_check_that_is_being_repeated(server: Server, pending: bool) -> None:
    begun(server)
    server.configure(PROBATION="0", PATIENCE="1min")
    if pending:
        server.install(NEWER)
    server.check("bad", "cplayground-guard good; exit 1")
    reboots(server)
    server.guard("probation")
    assert server.stored[:2] == ("armed" if pending else "good", NEW) and reboots(server) == []
    assert server.status()["bad"] == ""


def _read_only(server: Server) -> None:
    """Let the lock be a file that cannot be opened, also by root."""
    lock = server.top / "var/lib/cplayground-guard/lock"
    lock.unlink()
    lock.mkdir()


def _full(server: Server) -> None:
    (server.top / "var/lib/cplayground-guard/state.new").mkdir()


@pytest.mark.parametrize("break_state", [_read_only, _full])
def test_a_state_that_cannot_be_written_does_not_keep_a_machine(
    server: Server, break_state: Callable[[Server], None]
) -> None:
    server.configure(PROBATION="0", BOOT_LIMIT="1")
    server.install(NEW)
    server.boot(judge=False)
    break_state(server)
    reboots(server)
    server.guard("deadline")
    assert reboots(server) == ["--force reboot"]


def test_a_check_restarts_a_machine_whose_state_cannot_be_written(server: Server) -> None:
    begun(server)
    server.check("bad", 'rm -f "$GUARD_STATE/lock"; mkdir -p "$GUARD_STATE/lock"; exit 1')
    reboots(server)
    server.guard("probation")
    assert reboots(server) == ["reboot"]
    (server.top / "var/lib/cplayground-guard/lock").rmdir()
    assert server.boot().release == DEBIAN
    assert server.state[0] == "bad"


@pytest.mark.parametrize(
    ("job", "waited"),
    [
        ("12 systemd-cryptsetup@data.service start running", True),
        ("12 systemd-fsck@dev-vdb1.service start running", True),
        ("12 systemd-fsck@dev-vdb1.service start waiting", False),
        ("12 database.service start running", False),
    ],
)
def test_the_deadline_waits_for_a_passphrase_and_for_a_check_of_a_file_system(
    server: Server, job: str, waited: bool
) -> None:
    server.configure(PROBATION="0", BOOT_LIMIT="1")
    server.install(NEW)
    server.boot(judge=False)
    server.write("jobs", f"{job}\n")
    server.write("systemctl", "")
    server.guard("deadline")
    looks = (server.top / "systemctl").read_text().count("list-jobs")
    assert looks == (2 if waited else 1) and reboots(server) == ["--force reboot"]


def in_initramfs(
    top: Path, crypttab: str, words: str = "systemd.watchdog_sec=60"
) -> subprocess.Popen[bytes]:
    """Start the script of init-top on a tree; the watchdog is a file, and a sleep is short."""
    for name, text in {
        "proc/cmdline": f"root=/dev/vda1 cplayground_guard=trial {words}\n",
        "proc/7/comm": "fsck.ext4\n",
        "conf/cplayground-watchdogs": "",
        "cryptroot/crypttab": crypttab,
        "dev/watchdog": "",
        "run/empty": "",
    }.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(text)
    text = (ROOT / "usr/share/initramfs-tools/scripts/init-top/cplayground-guard").read_text()
    text = text.replace("[ -c /dev/watchdog ]", "[ -e /dev/watchdog ]")
    for name in ("proc/", "dev/watchdog", "run/", "conf/", "cryptroot/"):
        text = text.replace(f" /{name}", f" {top}/{name}").replace(f">/{name}", f">{top}/{name}")
        text = text.replace(f"</{name}", f"<{top}/{name}")
    text = text.replace("sleep 5 ", "sleep 0.01 ").replace("sleep 3600 ", "sleep 0 ")
    (top / "script").write_text(f"{text}wait\n")
    return subprocess.Popen(["/bin/sh", top / "script"])


def test_the_watchdog_is_fed_while_the_root_is_checked(tmp_path: Path) -> None:
    script = in_initramfs(tmp_path, "")
    fed = tmp_path / "dev/watchdog"
    while fed.stat().st_size < 60:
        assert script.poll() is None, f"fed only {fed.stat().st_size} times"
        time.sleep(0.01)
    (tmp_path / "proc/7/comm").write_text("sh\n")
    before = fed.stat().st_size
    assert script.wait(timeout=60) == 0
    # Then a hang is a hang.
    assert 35 <= fed.stat().st_size - before <= 40


@pytest.mark.parametrize(
    ("words", "turns"), [("rootdelay=300", 96), ("rootdelay=5 x=1", 37), ("rootdelay=08", 36)]
)
def test_the_watchdog_is_fed_while_the_device_of_the_root_is_awaited(
    tmp_path: Path, words: str, turns: int
) -> None:
    script = in_initramfs(tmp_path, "", words=f"systemd.watchdog_sec=60 {words}")
    (tmp_path / "proc/7/comm").write_text("sh\n")
    assert script.wait(timeout=60) == 0
    # The check of the file system may have had a turn before.
    assert turns <= (tmp_path / "dev/watchdog").stat().st_size <= turns + 5


def test_no_watchdog_is_armed_where_the_root_needs_a_passphrase(tmp_path: Path) -> None:
    script = in_initramfs(tmp_path, "vda2_crypt UUID=1-2-3 none luks\n")
    assert script.wait(timeout=60) == 0
    assert (tmp_path / "dev/watchdog").read_text() == ""


def test_the_watchdog_is_left_to_a_service_that_needs_it(server: Server, tmp_path: Path) -> None:
    server.write("sys/class/watchdog/watchdog0/identity", "iTCO_wdt\n")
    assert server.status()["watchdog"] == "hardware"
    assert "systemd.watchdog_sec=60" in entries(server, "front")
    wanted = server.top / "etc/systemd/system/corosync.service.requires/sbd.service"
    wanted.parent.mkdir(parents=True)
    wanted.symlink_to("/lib/systemd/system/sbd.service")
    assert server.status()["watchdog"] == "none"
    assert "watchdog is left to sbd.service" in server.install(NEW).stdout
    assert "systemd.watchdog_sec" not in entries(server, "front")
    script = in_initramfs(tmp_path / "initramfs", "", words="")
    assert script.wait(timeout=60) == 0
    assert (tmp_path / "initramfs/dev/watchdog").read_text() == ""


def test_a_machine_that_refuses_to_restart_is_forced(server: Server) -> None:
    server.install(NEW)
    server.check("bad", "exit 1")
    server.boot(judge=False)
    server.guard("probation", FAKE_NO_BUS="1")
    assert reboots(server) == ["reboot", "--force reboot", "--force --force reboot"]


def test_what_works_is_recorded_also_after_a_trial(server: Server) -> None:
    units = LIBRARY / "check.d/30-units"
    server.write("usr/lib/cplayground/guard/check.d/30-units", units.read_text(), mode=0o755)
    server.install(NEW)
    server.boot()
    server.write("failed-units", "certbot.service loaded failed failed it\n")
    server.install(NEWER)
    server.boot()
    assert server.state == ("good", NEWER, "")


def test_nothing_is_recorded_while_a_trial_runs(server: Server) -> None:
    server.install(NEW)
    server.boot()
    server.put(NEW, initrd="with microcode")
    server.guard("hook", "initrd", NEW)
    server.boot(judge=False)
    server.write("failed-units", "b.service loaded failed failed it\n")
    # As an upgrade of the guard does, before its service runs.
    server.guard("prepare")
    assert server.state == ("trying", NEW, NEW)
    assert (server.top / "var/lib/cplayground-guard/record/failed-units").read_text() == ""


def test_a_clone_is_not_judged_by_the_machine_it_was_made_of(server: Server) -> None:
    for name in ("20-default-route", "30-units"):
        text = (LIBRARY / "check.d" / name).read_text().replace("/proc/net", "$GUARD_ROOT/proc/net")
        server.write(f"usr/lib/cplayground/guard/check.d/{name}", text, mode=0o755)
    server.write("proc/net/route", "eth0\t00000000\t1\t3\t0\t0\t0\t00000000\n")
    server.install(NEW)
    clone = server.copy(server.top.with_name("clone"))
    clone.write("etc/machine-id", "0123456789abcdef0123456789abcdef\n")
    for machine in (server, clone):
        machine.write("proc/net/route", "")
        machine.write("failed-units", "of-this-network.service loaded failed failed it\n")
        machine.boot()
    assert server.boot().release == DEBIAN
    assert clone.state == ("good", NEW, "")


@pytest.mark.parametrize("state", ["bad", "trying", "armed", "good"])
def test_a_clone_does_not_have_the_trials_of_the_machine_it_was_made_of(
    server: Server, state: str
) -> None:
    if state != "good":
        server.install(NEW)
    if state == "bad":
        server.load()
        server.boot()
    if state == "trying":
        server.boot(judge=False)
        server.check("stop", STOP)
        server.guard("probation")
        (server.top / "etc/cplayground/check.d/stop").unlink()
    assert server.state[0] == state
    # An image without an id is still the builder's.
    image = server.copy(server.top.with_name("image"))
    image.write("etc/machine-id", "uninitialized\n")
    image.guard("prepare")
    assert image.status()["bad"] == (NEW if state == "bad" else "")
    image.write("etc/machine-id", "0123456789abcdef0123456789abcdef\n")
    started = image.boot()
    assert started.release == (NEW if state == "armed" else DEBIAN)
    found = image.status()
    assert (found["bad"], found["reason"]) == ("", "")
    if state in ("bad", "trying"):
        # It is tried on this machine.
        assert image.state == ("armed", DEBIAN, NEW)
        image.boot()
    assert image.state == ("good", DEBIAN if state == "good" else NEW, "")


def test_a_machine_of_an_image_is_not_judged_by_units_that_always_fail(tmp_path: Path) -> None:
    server = Server.new(tmp_path / "server", NEW, DEBIAN, running="6.6.0-of-the-host")
    units = LIBRARY / "check.d/30-units"
    server.write("usr/lib/cplayground/guard/check.d/30-units", units.read_text(), mode=0o755)
    shutil.rmtree(server.top / "run/systemd")
    server.guard("prepare")
    (server.top / "run/systemd/system").mkdir(parents=True)
    server.write("failed-units", "always.service loaded failed failed it\n")
    settings = [server.top / f"proc/sys/kernel/{name}" for name in ("panic_on_oops", "panic")]
    for path in settings:
        path.write_text("0\n")
    server.boot()
    assert server.state == ("good", NEW, "")
    assert [path.read_text() for path in settings] == ["0\n", "0\n"]


def _without_grubs_environment(server: Server, changes: str) -> str:
    """Return a path with a grub-editenv that refuses some changes."""
    path = server.top / "bin/grub-editenv"
    fake = f'case "$*" in {changes}) exit 1 ;; esac; exec {FAKES}/grub-editenv "$@"'
    server.write("bin/grub-editenv", f"#!/bin/sh\n{fake}\n", mode=0o755)
    return f"{path.parent}:{FAKES}"


def test_a_full_environment_of_grub_arms_nothing(server: Server) -> None:
    path = _without_grubs_environment(server, "*guard_trial=*")
    server.put(NEW)
    done = server.guard("hook", "installed", NEW, GUARD_PATH=path)
    assert done.returncode == 0 and "may be full" in done.stderr
    assert server.stored == ("good", DEBIAN, "")
    assert not (server.top / "boot/cplayground-trial").exists()
    assert [p.name for p in server.top.glob("boot/grub/grubenv*")] == ["grubenv"]
    assert server.guard("arm", NEW).returncode == 0


def _fill(server: Server) -> None:
    """Let another program take all the room of GRUB's environment."""
    found = {name: value for name, value in server.environment.items() if name != "other"}
    taken = sum(len(f"{name}={value}\n") for name, value in found.items())
    rest = 1024 - len("# GRUB Environment Block\nother=\n") - taken
    server.save(found | {"other": "x" * rest})


@pytest.mark.parametrize("ends", ["good", "bad", "unloadable"])
def test_a_trial_ends_also_if_the_environment_of_grub_is_full(server: Server, ends: str) -> None:
    server.install(NEW)
    _fill(server)
    if ends == "unloadable":
        image = server.top / "boot/cplayground-trial/vmlinuz"
        image.unlink()
        image.write_text(json.dumps("garbage"))
    started = server.boot(judge=False)
    _fill(server)
    if ends == "bad":
        started = server.boot(judge=False)
        _fill(server)
    assert started.slot == ("trial" if ends == "good" else "good")
    server.guard("probation")
    found = server.status()
    if ends == "good":
        assert server.state == ("good", NEW, "")
        assert server.boot().release == NEW
    else:
        assert server.state == ("bad", DEBIAN, "")
        assert found["reason"].startswith({"bad": "crashed or hung"}.get(ends, ends))
    assert server.environment["other"]
    assert server.environment["guard_good"] == (NEW if ends == "good" else DEBIAN)


def test_a_rollback_that_does_not_disarm_fails(server: Server) -> None:
    server.install(NEW)
    path = _without_grubs_environment(server, "*unset*")
    done = server.guard("rollback", GUARD_PATH=path)
    assert done.returncode == 1 and "still tries" in done.stderr
    # So that boot is judged.
    assert server.state == ("armed", DEBIAN, NEW)
    assert server.guard("rollback").returncode == 0
    assert server.boot().release == DEBIAN


def test_the_entry_that_an_administrator_told_grub_goes_first(server: Server) -> None:
    server.save(server.environment | {"next_entry": DEBIAN})
    assert f"starts '{DEBIAN}'" in server.install(NEW).stdout
    assert server.environment["next_entry"] == DEBIAN
    assert server.boot().slot == ""
    assert server.state == ("armed", DEBIAN, NEW)
    assert server.boot().slot == "trial"
    assert server.state == ("good", NEW, "")


def test_a_hook_does_not_wait_for_ever(server: Server) -> None:
    lock = server.top / "var/lib/cplayground-guard/lock"
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = server.guard("hook", "installed", DEBIAN, GUARD_LOCK_S="0")
    assert done.returncode == 1 and "another cplayground-guard" in done.stderr


_XEN = """if [ "$XEN_OVERRIDE_GRUB_DEFAULT" = "" ]; then
	XEN_OVERRIDE_GRUB_DEFAULT=1
fi
if [ "$XEN_OVERRIDE_GRUB_DEFAULT" = "1" ]; then
	GRUB_DEFAULT="Debian GNU/Linux, with Xen hypervisor"
fi
"""


@pytest.mark.parametrize(
    ("first", "text"),
    [
        ("0", _XEN),
        ("'1>2'", 'GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX console=ttyS0"\n'),
        ("0", "exit 0\n"),
    ],
    ids=["Xen", "a pin and an unset variable", "no answer"],
)
def test_a_pin_is_seen_in_files_that_use_unset_variables(
    tmp_path: Path, first: str, text: str
) -> None:
    server = Server.new(tmp_path / "server", DEBIAN)
    _default(first)(server)
    server.write("etc/default/grub.d/of-others.cfg", text)
    server.guard("prepare")
    server.install(NEW)
    assert server.guard("menu-place").stdout == "back\n"
    assert server.state[0] == "unsupported"
    assert not server.environment.get("next_entry")


def test_a_machine_restarts_once_for_an_armed_kernel(server: Server) -> None:
    server.configure(PROBATION="0", REBOOT="11:50-12:10")
    server.install(NEW)
    reboots(server)
    server.guard("reboot-if-due")
    assert reboots(server) == ["reboot"]
    server.load()
    # The trial crashed, and the service has not run yet in the good kernel's boot.
    server.boot(judge=False)
    for _ in range(3):
        server.guard("reboot-if-due")
    assert reboots(server) == []


def test_a_kernel_whose_arming_a_power_cut_interrupted_is_armed_at_the_next_boot(
    server: Server,
) -> None:
    server.configure(PROBATION="0", REBOOT="11:50-12:10")
    server.put(NEW)
    for _, copy in server.each_cut("hook", "installed", NEW):
        if copy.top.joinpath("var/lib/cplayground-guard/state").exists() and (
            copy.stored[0] == "arming" and not copy.environment.get("next_entry")
        ):
            break
    copy.boot()
    reboots(copy)
    copy.guard("reboot-if-due")
    assert reboots(copy) == ["reboot"]
    # Again, as an upgrade of the guard does: no boot has skipped the trial.
    copy.guard("probation")
    copy.boot(writes=False)
    assert copy.state == ("armed", DEBIAN, NEW)
    assert copy.boot().slot == "trial"
    assert copy.state == ("good", NEW, "")


def test_debians_kernel_that_waits_for_a_reboot_is_tried(tmp_path: Path) -> None:
    """It has never run here, so it is no way back yet."""
    newest = "6.1.0-58-cloud-amd64"
    server = Server.new(tmp_path / "server", DEBIAN, newest)
    assert server.load().release == newest
    server.guard("prepare")
    assert server.state == ("armed", DEBIAN, newest)
    other = server.copy(tmp_path / "other")
    assert server.boot().release == newest
    assert server.state == ("good", newest, "")
    # An administrator returns, and the guard is upgraded.
    assert server.guard("rollback").returncode == 0
    server.guard("prepare")
    assert server.boot().release == DEBIAN
    # Ours is tried instead of it, and returns to the kernel that ran.
    other.install(NEW)
    assert other.state == ("armed", DEBIAN, NEW)
    other.load()
    assert other.boot().release == DEBIAN
    # From here on, Debian's is started as Debian would.
    assert other.state == ("good", newest, "") and other.status()["bad"] == NEW


def test_a_copy_of_a_kernel_is_no_kernel(tmp_path: Path) -> None:
    server = Server.new(tmp_path / "server", DEBIAN, OLD)
    for name in ("bak", "old"):
        for kind in ("vmlinuz", "initrd.img"):
            path = server.top / f"boot/{kind}-{OLD}"
            shutil.copy(path, path.with_name(f"{path.name}.{name}"))
    server.guard("prepare")
    server.guard("arm", OLD)
    assert server.state == ("armed", DEBIAN, OLD)
    server.boot()
    assert "no kernel in" in server.guard("arm").stderr
    server.remove(OLD)
    assert server.state == ("good", DEBIAN, "")


@pytest.mark.parametrize("command", ["status", "why", "arm"])
def test_another_user_is_told_that_only_root_may_ask(server: Server, command: str) -> None:
    done = server.guard(command, FAKE_USER="1000", FAKE_ABSTRACTION="error")
    assert (done.returncode, done.stdout) == (1, "")
    assert "only root" in done.stderr
    server.install(NEW)
    assert "on trial at the next boot" in server.guard("motd", FAKE_USER="1000").stdout


# --- what an administrator says -----------------------------------------------------------------


def test_good_ends_the_probation(server: Server) -> None:
    server.configure(PROBATION="10min")
    server.install(NEW)
    server.boot(judge=False)
    server.check("stop", STOP)
    server.guard("probation")
    assert server.state == ("trying", DEBIAN, NEW)
    server.guard("good")
    assert server.state == ("good", NEW, "")


def test_rollback_disarms(server: Server) -> None:
    server.install(NEW)
    assert server.guard("rollback").returncode == 0
    assert server.state == ("bad", DEBIAN, "")
    assert server.boot().release == DEBIAN


def test_rollback_returns_to_the_kernel_that_was_good_before(server: Server) -> None:
    server.install(NEW)
    server.boot()
    assert server.guard("rollback").returncode == 0
    assert server.boot().release == DEBIAN
    assert server.status()["bad"] == NEW
    server.guard("hook", "installed", NEW)
    assert server.boot().release == DEBIAN


def test_a_second_kernel_waits_until_the_first_trial_has_ended(server: Server) -> None:
    server.configure(PROBATION="10min")
    server.install(NEW)
    server.boot(judge=False)
    server.check("stop", STOP)
    server.guard("probation")
    assert f"{NEWER} waits until" in server.install(NEWER).stdout
    assert server.state == ("trying", DEBIAN, NEW)
    server.guard("good")
    assert server.state == ("armed", NEW, NEWER)


def test_the_newest_of_two_installed_kernels_is_tried(server: Server) -> None:
    server.install(NEW)
    server.install(NEWER)
    assert server.state == ("armed", DEBIAN, NEWER)


def test_the_newest_of_the_kernels_that_waited_is_tried(server: Server) -> None:
    begun(server)
    server.install(NEWER)
    server.install("6.1.0-58-cloud-amd64")
    server.boot(judge=False)
    # The trial crashed.  The way back starts the good kernel, which then arms the next one.
    server.boot()
    assert server.status()["bad"] == NEW
    assert server.state == ("armed", "6.1.0-58-cloud-amd64", NEWER)


def test_a_failed_trial_returns_to_the_good_kernel_also_if_another_one_waits(
    server: Server,
) -> None:
    begun(server)
    server.install(NEWER)
    server.check("bad", "exit 1")
    server.guard("probation")
    assert server.boot().release == DEBIAN
    assert server.state == ("armed", DEBIAN, NEWER)


def test_status_says_why_nothing_was_armed_and_the_next_boot_looks_again(server: Server) -> None:
    server.put(NEW)
    server.guard("hook", "installed", NEW, FAKE_BOOT="full")
    assert server.state == ("good", DEBIAN, "")
    reason = server.status()["reason"]
    assert reason.startswith(f"{NEW} is not put on trial: ") and "no room" in reason
    server.boot()
    assert server.state == ("armed", DEBIAN, NEW)
    assert server.status()["reason"] == ""


def test_good_takes_only_the_build_that_runs(settled: Server) -> None:
    settled.put(OLD, "2")
    assert settled.guard("good").returncode == 0
    assert slots(settled)["good/vmlinuz"] == [OLD, "1"]
    settled.put(DEBIAN, "2")
    settled.come_up(DEBIAN, trial=False)
    done = settled.guard("good")
    assert done.returncode == 1 and "not the build" in done.stderr
    settled.come_up(DEBIAN, trial=False, version="2")
    assert settled.guard("good").returncode == 0
    assert slots(settled)["good/vmlinuz"] == [DEBIAN, "2"]


# --- Debian's kernels ---------------------------------------------------------------------------


def test_debians_kernel_is_left_to_debian(server: Server) -> None:
    server.install("6.1.0-58-cloud-amd64")
    assert server.state == ("good", "6.1.0-58-cloud-amd64", "")


def test_debians_kernel_is_tried_if_the_administrator_says_so(server: Server) -> None:
    server.configure(KERNELS="all", PROBATION="0")
    server.install("6.1.0-58-cloud-amd64")
    assert server.state == ("armed", DEBIAN, "6.1.0-58-cloud-amd64")


def test_debians_kernel_does_not_take_the_place_of_ours(settled: Server) -> None:
    said = settled.install("6.1.0-58-cloud-amd64").stdout
    assert f"goes on with {OLD}" in said
    assert settled.boot().release == OLD


def test_debians_kernel_does_not_end_a_trial(server: Server) -> None:
    server.configure(PROBATION="10min")
    server.install(NEW)
    server.boot(judge=False)
    server.check("stop", STOP)
    server.guard("probation")
    server.install("6.1.0-58-cloud-amd64")
    assert server.state == ("trying", DEBIAN, NEW)
    server.guard("rollback")
    assert server.boot().release == DEBIAN
    assert server.state == ("good", "6.1.0-58-cloud-amd64", "")


def test_debians_kernel_does_not_disarm_ours(server: Server) -> None:
    server.install(NEW)
    server.install("6.1.0-58-cloud-amd64")
    assert server.state == ("armed", "6.1.0-58-cloud-amd64", NEW)


def test_a_deleted_slot_is_made_again(server: Server) -> None:
    shutil.rmtree(server.top / "boot/cplayground-good")
    server.guard("probation")
    assert slots(server)["good/vmlinuz"] == [DEBIAN, "1"]


def test_the_guard_can_be_installed_again(settled: Server) -> None:
    settled.guard("retire")
    shutil.rmtree(settled.top / "boot/cplayground-good")
    settled.guard("prepare")
    assert settled.state == ("good", OLD, "")
    assert settled.boot().slot == "good"


# --- replaced files -----------------------------------------------------------------------------


def test_the_good_kernel_stays_when_its_package_is_replaced_in_place(settled: Server) -> None:
    done = settled.install(OLD, "2")
    # Debian's kernel has been good, and its modules are whole.
    assert settled.state == ("armed", DEBIAN, OLD)
    assert f"{DEBIAN} is the kernel to return to" in done.stdout
    settled.load()
    assert settled.boot().release == DEBIAN


def test_without_another_kernel_the_old_one_is_kept_and_its_modules_are_named(
    tmp_path: Path,
) -> None:
    server = Server.new(tmp_path / "server", NEW)
    server.guard("prepare")
    done = server.install(NEW, "2")
    assert "new modules" in done.stderr
    assert server.state == ("armed", NEW, NEW)
    assert slots(server)["good/vmlinuz"] == [NEW, "1"]
    assert slots(server)["trial/vmlinuz"] == [NEW, "2"]
    assert "modules" in server.status()["reason"]
    assert server.boot().version == "2"
    assert server.state == ("good", NEW, "")
    assert slots(server)["good/vmlinuz"] == [NEW, "2"]
    assert server.status()["reason"] == ""


def test_the_same_kernel_in_another_package_is_not_tried(settled: Server) -> None:
    """The packages of a rollback have the files of the older release."""
    settled.write(f"packages/linux-image-{OLD}", "1+rollback1")
    settled.guard("hook", "installed", OLD)
    assert settled.state == ("good", OLD, "")


def test_a_new_initrd_of_the_good_kernel_is_tried(settled: Server) -> None:
    settled.put(OLD, initrd="with microcode")
    settled.guard("hook", "initrd", OLD)
    assert settled.state == ("armed", OLD, OLD)
    good = settled.top / "boot/cplayground-good/initrd.img"
    assert "microcode" not in good.read_text()
    settled.load()
    assert settled.boot().slot == "good"
    assert "microcode" not in good.read_text()
    # The kernel is not bad, and neither is its next initrd.
    assert settled.boot().slot == "good"
    settled.guard("hook", "initrd", OLD)
    assert settled.state == ("bad", OLD, "")
    settled.put(OLD, initrd="with newer microcode")
    settled.guard("hook", "initrd", OLD)
    assert settled.state == ("armed", OLD, OLD)
    settled.boot()
    assert settled.state == ("good", OLD, "")
    assert "microcode" in good.read_text()


def test_a_new_initrd_of_the_kernel_on_trial_is_part_of_the_trial(server: Server) -> None:
    server.install(NEW)
    server.put(NEW, initrd="more")
    server.guard("hook", "initrd", NEW)
    assert "more" in (server.top / "boot/cplayground-trial/initrd.img").read_text()


def test_a_kernel_without_its_initrd_is_not_tried(server: Server) -> None:
    server.put(NEW)
    (server.top / f"boot/initrd.img-{NEW}").unlink()
    done = server.guard("hook", "installed", NEW)
    assert done.returncode == 0 and "initrd" in done.stderr
    assert server.state == ("good", DEBIAN, "")


def test_a_removed_kernel_is_disarmed(server: Server) -> None:
    server.install(NEW)
    server.remove(NEW)
    assert server.state == ("good", DEBIAN, "")
    assert "next_entry" not in server.environment


def test_without_the_good_kernel_another_one_takes_its_place(settled: Server) -> None:
    settled.remove(OLD)
    assert settled.state == ("good", DEBIAN, "")
    assert settled.boot().release == DEBIAN


# --- withdrawn ----------------------------------------------------------------------------------


def test_a_withdrawn_kernel_is_disarmed_and_never_armed(server: Server) -> None:
    server.install(NEW)
    server.withdraw(NEW)
    assert server.state == ("good", DEBIAN, "")
    assert server.guard("arm", NEW).returncode == 1
    server.put(NEW)
    assert "withdrawn" in server.guard("hook", "installed", NEW).stdout
    assert server.state == ("good", DEBIAN, "")


def test_after_a_withdrawal_the_older_kernel_of_ours_is_good(settled: Server) -> None:
    settled.install(NEW)
    settled.boot()
    assert settled.state == ("good", NEW, "")
    settled.withdraw(NEW)
    assert settled.state == ("good", OLD, "")
    assert settled.boot().release == OLD


def test_an_older_kernel_that_a_rollback_installed_has_to_prove_itself(server: Server) -> None:
    server.install(NEW)
    server.boot()
    assert "is older" in server.install(OLD).stdout
    server.withdraw(NEW)
    assert server.state == ("armed", DEBIAN, OLD)
    server.boot()
    assert server.state == ("good", OLD, "")


# --- /boot --------------------------------------------------------------------------------------


def test_a_full_boot_arms_nothing_and_keeps_the_good_kernel(server: Server) -> None:
    server.put(NEW)
    before = server.environment
    done = server.guard("hook", "installed", NEW, FAKE_BOOT="full")
    assert done.returncode == 0 and "no room" in done.stderr
    assert server.state == ("good", DEBIAN, "")
    assert server.environment.get("next_entry", "") == before.get("next_entry", "")
    assert not (server.top / "boot/cplayground-trial").exists()
    assert server.boot().release == DEBIAN
    assert server.guard("arm", NEW, FAKE_BOOT="full").returncode == 1
    assert server.guard("arm", NEW).returncode == 0


def test_boot_without_hard_links_has_copies(server: Server) -> None:
    server.env = {"FAKE_BOOT": "vfat", "FAKE_FS": "fat"}
    server.install(NEW)
    for name in ("vmlinuz", "initrd.img"):
        copy = server.top / f"boot/cplayground-trial/{name}"
        assert copy.stat().st_nlink == 1
    server.boot()
    assert server.state == ("good", NEW, "")


def test_links_take_no_room(server: Server) -> None:
    server.install(NEW)
    assert (server.top / f"boot/vmlinuz-{NEW}").samefile(
        server.top / "boot/cplayground-trial/vmlinuz"
    )


_CUT = "# GRUB Environment Block\nsaved_entry=0\nnext_entry=cplayground-tr"


@pytest.mark.parametrize("text", ["", _CUT, "# GRUB Env", "garbage"])
@pytest.mark.parametrize("armed", [False, True])
def test_a_damaged_environment_is_made_again(server: Server, text: str, armed: bool) -> None:
    place = server.top / "boot/grub/grubenv"
    if armed:
        server.install(NEW)
        place.write_text(text)
        server.come_up(DEBIAN, trial=False)
        server.guard("probation")
    else:
        place.write_text(text)
        server.install(NEW)
    assert server.state == ("armed", DEBIAN, NEW)
    assert place.stat().st_size == 1024
    assert server.environment["next_entry"] == "cplayground-trial"
    # Whole words of others stay.
    assert server.environment.get("saved_entry") == ("0" if text == _CUT else None)
    assert server.boot().slot == "trial"
    assert server.state == ("good", NEW, "")


def test_a_trial_that_cannot_be_armed_again_is_not_bad(server: Server) -> None:
    server.install(NEW)
    started = server.load(choice="cplayground-good")
    server.come_up(started.release, trial=False)
    path = _without_grubs_environment(server, "*guard_trial=*")
    server.guard("probation", GUARD_PATH=path)
    found = server.status()
    assert (found["state"], found["trial"], found["bad"]) == ("good", "", "")
    assert "may be full" in found["reason"]
    server.boot()
    assert server.state == ("armed", DEBIAN, NEW)


def test_variables_of_others_stay(server: Server) -> None:
    server.save({"recordfail": "1", "next_entry": "memtest"})
    server.install(NEW)
    server.guard("rollback")
    assert server.environment["recordfail"] == "1"
    server.save(server.environment | {"next_entry": "memtest"})
    server.guard("retire")
    assert server.environment == {"recordfail": "1", "next_entry": "memtest"}


# --- machines without a way back ----------------------------------------------------------------


def _systemd_boot(server: Server) -> None:
    name = "sys/firmware/efi/efivars/LoaderInfo-4a67b082"
    path = server.top / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\6\0\0\0" + "systemd-boot 252".encode("utf-16-le"))


def _default(value: str) -> Callable[[Server], None]:
    return lambda server: server.write("etc/default/grub", f"GRUB_DEFAULT={value}\n")


def _saved(server: Server) -> None:
    _default("saved")(server)
    server.save({"saved_entry": "gnulinux-advanced-x>gnulinux-6.1.0-57-cloud-amd64-advanced-x"})


def _sysvinit(server: Server) -> None:
    (server.top / "sbin/init").unlink()
    server.write("sbin/init", "")


WITHOUT: dict[str, tuple[Callable[[Server], object], str]] = {
    "LVM": (lambda server: server.env.update(FAKE_ABSTRACTION="lvm"), "lvm"),
    "md": (lambda server: server.env.update(FAKE_ABSTRACTION="mdraid1x diskfilter"), "mdraid1x"),
    "an unknown device": (lambda server: server.env.update(FAKE_ABSTRACTION="error"), "grub-probe"),
    "btrfs": (lambda server: server.env.update(FAKE_FS="btrfs"), "btrfs"),
    "zfs": (lambda server: server.env.update(FAKE_FS="zfs"), "zfs"),
    "systemd-boot": (_systemd_boot, "systemd-boot"),
    "no GRUB": (lambda server: (server.top / "boot/grub/grub.cfg").unlink(), "grub.cfg"),
    "a pinned number": (_default("2"), "pins"),
    "a pinned title": (_default("'Debian GNU/Linux'"), "pins"),
    "a pinned path": (_default("'1>2'"), "pins"),
    "a saved entry": (_saved, "pinned"),
    "sysvinit": (_sysvinit, "not systemd"),
    "no 10_linux": (lambda server: (server.top / "etc/grub.d/10_linux").chmod(0o644), "10_linux"),
}


@pytest.mark.parametrize("name", WITHOUT)
def test_a_machine_without_a_way_back_stays_as_it_is(tmp_path: Path, name: str) -> None:
    change, reason = WITHOUT[name]
    server = Server.new(tmp_path / "server", DEBIAN)
    change(server)
    server.put(NEW)

    def boot() -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in (server.top / "boot").rglob("*") if p.is_file()}

    before = boot()
    for argv in (["prepare"], ["hook", "installed", NEW], ["hook", "initrd", NEW], ["probation"]):
        assert server.guard(*argv).returncode == 0
    said = server.guard("hook", "installed", NEW).stdout
    assert reason in said
    for command in ("arm", "good", "retry", "rollback", "status"):
        argv = [command, NEW] if command in ("arm", "retry") else [command]
        assert server.guard(*argv).returncode == 3, command
    assert server.status()["state"] == "unsupported"
    assert reason in server.status()["reason"]
    assert boot() == before
    assert not list(server.top.glob("etc/apt/apt.conf.d/*"))


def test_nothing_is_tried_if_another_entry_is_the_first_one(tmp_path: Path) -> None:
    server = Server.new(tmp_path / "server", DEBIAN)
    server.env = {"FAKE_FIRST": "of the administrator"}
    server.guard("prepare")
    assert "entry 0" in server.install(NEW).stderr
    assert server.state == ("good", DEBIAN, "")
    assert "next_entry" not in server.environment
    server.env = {}
    server.run(["grub-mkconfig", "-o", server.top / "boot/grub/grub.cfg"])
    assert server.guard("arm").returncode == 0


@pytest.mark.parametrize("value", ["0", "", "saved", "cplayground-good"])
def test_these_defaults_start_the_good_kernel(server: Server, value: str) -> None:
    _default(value)(server)
    server.install(NEW)
    assert server.state == ("armed", DEBIAN, NEW)


def test_a_watchdog_may_be_required(server: Server) -> None:
    server.configure(WATCHDOG="required", PROBATION="0")
    done = server.install(NEW)
    assert "watchdog" in done.stderr
    assert server.state == ("good", DEBIAN, "")
    server.write("sys/class/watchdog/watchdog0/identity", "iTCO_wdt\n")
    server.install(NEW)
    assert server.state == ("armed", DEBIAN, NEW)
    assert server.status()["watchdog"] == "hardware"


@pytest.mark.parametrize(
    "line", ["KERNELS=some", "PROBATION=soon", "REBOOT=tonight", "NAME=x", "REBOOT=25"]
)
def test_a_line_that_is_not_understood_is_named_and_has_no_effect(
    server: Server, line: str
) -> None:
    server.write("etc/cplayground/guard.conf", f"# comment\n\n{line}\n")
    done = server.guard("status")
    assert done.returncode == 0 and line in done.stderr
    assert "kernels: ours\nprobation: 10min\nreboot: never\n" in done.stdout


@pytest.mark.parametrize("value", ["08min", "009", "010min", "0000000000000000000000000000008h"])
def test_a_time_is_a_decimal_number(server: Server, value: str) -> None:
    server.write("etc/cplayground/guard.conf", f"PROBATION={value}\nBOOT_LIMIT={value}\n")
    done = server.install(NEW)
    assert done.stderr == "" and server.state == ("armed", DEBIAN, NEW)


@pytest.mark.parametrize("line", ["BOOT_LIMIT=0", "BOOT_LIMIT=00min", "PROBATION=" + "9" * 30])
def test_a_time_that_would_restart_at_once_or_never_has_no_effect(
    server: Server, line: str
) -> None:
    server.write("etc/cplayground/guard.conf", f"{line}\n")
    assert line in server.guard("status").stderr


def test_the_last_line_needs_no_end(server: Server) -> None:
    (server.top / "etc/cplayground/guard.conf").write_text("PROBATION=1h\nKERNELS=all")
    assert (server.status()["kernels"], server.status()["probation"]) == ("all", "1h")


# --- reboots ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("window", "due"),
    [
        ("never", False),
        ("11:50-12:10", True),
        ("12:00-12:20", True),
        ("11:40-12:00", False),
        ("12:01-12:20", False),
        ("23:50-12:01", True),
        ("12:01-11:59", False),
        ("12:00-12:00", False),
    ],
)
def test_a_machine_restarts_by_itself_only_in_the_window(
    server: Server, window: str, due: bool
) -> None:
    server.configure(REBOOT=window, PROBATION="0")
    server.install(NEW)
    server.write("systemctl", "")
    server.guard("reboot-if-due")
    assert ("reboot" in (server.top / "systemctl").read_text()) == due


def test_machines_restart_at_different_times_of_the_window(server: Server) -> None:
    server.configure(REBOOT="22:00-04:00", PROBATION="0")
    server.install(NEW)
    # The timer comes every 15 minutes, and up to five minutes late.
    clocks = [f"{22 + n // 3 - 24 * (n // 3 > 1):02}:{n % 3 * 20:02}" for n in range(18)]
    first = set()
    for machine in range(6):
        server.write("etc/machine-id", f"{machine:032x}\n")
        due = []
        for clock in clocks:
            server.guard("reboot-if-due", FAKE_CLOCK=clock)
            due.append(bool(reboots(server)))
        # From its time to the end of the window.
        assert due[-1] and due == sorted(due), machine
        first.add(due.index(True))
    assert len(first) > 2


def test_a_machine_does_not_restart_for_a_new_initrd(settled: Server) -> None:
    settled.configure(REBOOT="11:50-12:10", PROBATION="0")
    settled.put(OLD, initrd="with microcode")
    settled.guard("hook", "initrd", OLD)
    assert settled.state == ("armed", OLD, OLD)
    settled.guard("reboot-if-due")
    assert reboots(settled) == []


def test_a_machine_does_not_restart_while_packages_are_installed(server: Server) -> None:
    server.configure(REBOOT="11:50-12:10", PROBATION="0")
    server.install(NEW)
    server.write("systemctl", "")
    lock = server.top / "var/lib/dpkg/lock-frontend"
    lock.touch()
    server.write("proc/locks", f"1: POSIX  ADVISORY  WRITE 1 08:01:{lock.stat().st_ino} 0 EOF\n")
    server.guard("reboot-if-due")
    assert (server.top / "systemctl").read_text() == ""


def test_a_machine_restarts_only_for_an_armed_kernel(server: Server) -> None:
    server.configure(REBOOT="11:50-12:10")
    server.guard("reboot-if-due")
    assert (
        not (server.top / "systemctl").exists()
        or "reboot" not in (server.top / "systemctl").read_text()
    )


# --- power cuts ---------------------------------------------------------------------------------


def _arm(server: Server) -> list[str]:
    server.put(NEW)
    return ["hook", "installed", NEW]


def _try(server: Server) -> list[str]:
    server.install(NEW)
    server.boot(judge=False)
    return ["probation"]


def _fail(server: Server) -> list[str]:
    server.install(NEW)
    server.boot(judge=False)
    server.check("bad", "exit 1")
    return ["probation"]


def _crash(server: Server) -> list[str]:
    server.install(NEW)
    server.load()
    server.boot(judge=False)
    return ["probation"]


def _withdraw(server: Server) -> list[str]:
    server.install(NEW)
    server.boot()
    server.write("usr/share/cplayground/withdrawn-lab", f"{NEW}\n")
    image = server.top / f"boot/vmlinuz-{NEW}"
    image.rename(image.with_name(f"withdrawn-{image.name}"))
    return ["hook", "removed", NEW]


def _overwrite(server: Server) -> list[str]:
    server.install(NEW)
    server.boot()
    server.put(NEW, "2")
    return ["hook", "installed", NEW]


def _retire(server: Server) -> list[str]:
    server.install(NEW)
    return ["retire"]


CUT: dict[str, Callable[[Server], list[str]]] = {
    "arm": _arm,
    "try": _try,
    "a failed check": _fail,
    "a crash": _crash,
    "withdrawn": _withdraw,
    "overwritten": _overwrite,
    "retire": _retire,
}


@pytest.mark.parametrize("name", CUT)
def test_the_power_may_be_cut_at_each_step(server: Server, name: str) -> None:
    argv = CUT[name](server)
    cuts = server.each_cut(*argv)
    assert len(cuts) > 5
    for cut, copy in cuts:
        # GRUB starts a whole pair each time (Server.load asserts it), and all comes to rest.
        rests = ("good", "bad", "none")
        for _ in range(3):
            copy.boot()
            state, good, trial = copy.stored
            if state in rests:
                break
        assert state in rests and trial == "", f"step {cut}"
        # A power cut before the trial is no fault of the kernel.
        assert (name, state) != ("arm", "bad"), f"step {cut}"
        # A failure is never forgotten.
        if name in ("a failed check", "a crash"):
            assert (state, copy.status()["bad"]) == ("bad", NEW), f"step {cut}"
        assert copy.load().release == good, f"step {cut}"
        assert not copy.environment.get("guard_settle"), f"step {cut}"


def test_the_first_good_kernel_may_be_cut_short(tmp_path: Path) -> None:
    server = Server.new(tmp_path / "server", DEBIAN)
    cuts = server.each_cut("prepare")
    assert len(cuts) > 5
    for cut, copy in cuts:
        assert copy.load().release == DEBIAN, f"step {cut}"
        copy.boot()
        assert copy.stored == ("good", DEBIAN, ""), f"step {cut}"


def test_any_order_of_events_and_power_cuts_leaves_a_machine_that_starts(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    server = Server.new(tmp_path / "server", DEBIAN)
    server.guard("prepare")
    kernels = [OLD, NEW, NEWER, "6.1.0-58-cloud-amd64"]
    for turn in range(30):
        cut = chance.choice([0, 0, chance.randrange(1, 40)])
        release = chance.choice(kernels)
        match chance.randrange(9):
            case 0 | 1:
                server.put(release, chance.choice("12"))
                server.guard("hook", "initrd", release, cut=cut)
                server.guard("hook", "installed", release, cut=cut)
            case 2:
                server.guard(chance.choice(["good", "rollback", "retry"]), cut=cut)
            case 3:
                server.guard("arm", release, cut=cut)
            case 4:
                server.check("check", chance.choice(["exit 0", "exit 1"]))
            case 5:
                server.load()
            case _:
                started = server.load()
                server.come_up(started.release, trial=started.slot == "trial")
                server.guard("probation", cut=cut)
        for slot in server.top.glob("boot/cplayground-good"):
            assert (slot / "vmlinuz").exists(), f"turn {turn}"
        server.load()
    server.check("check", "exit 0")
    for _ in range(12):
        server.boot()
        if server.stored[0] in ("good", "bad"):
            break
    state, good, _ = server.stored
    assert state in ("good", "bad") and server.boot().release == good


# --- apt ----------------------------------------------------------------------------------------


def veto(server: Server, *removed: str, options: str = "") -> int:
    lines = ["VERSION 3", "APT::Architecture=amd64", *filter(None, [options]), ""]
    lines += [f"{name} 1 amd64 none > - - none **REMOVE**" for name in removed]
    lines += ["other - - none < 1 amd64 none /var/cache/apt/archives/other.deb"]
    return server.run([LIBRARY / "veto"], text="\n".join(lines) + "\n").returncode


@pytest.mark.parametrize("name", [f"linux-image-{OLD}", f"cplayground-modules-{OLD}"])
def test_apt_does_not_remove_the_good_kernel(settled: Server, name: str) -> None:
    settled.install(NEW)
    assert veto(settled, name) == 10
    assert veto(settled, "cplayground-dkms") == 0
    assert veto(settled, f"linux-image-{NEW}") == 0


def test_apt_removes_it_if_the_administrator_insists(settled: Server) -> None:
    settled.install(NEW)
    assert veto(settled, f"linux-image-{OLD}", options="CPlayground::Guard::Veto=false") == 0


def test_apt_removes_it_with_the_guard(settled: Server) -> None:
    settled.install(NEW)
    assert veto(settled, f"linux-image-{OLD}", "cplayground-kernel-guard") == 0


def test_apt_removes_all_of_ours_if_debians_kernel_stays(settled: Server) -> None:
    settled.install(NEW)
    ours = [f"linux-image-{OLD}", f"linux-image-{NEW}", f"cplayground-modules-{OLD}"]
    assert veto(settled, *ours) == 0
    assert veto(settled, *ours, f"linux-image-{DEBIAN}") == 10


@pytest.fixture
def apt(settled: Server, tmp_path: Path) -> Apt:
    """The machine's apt, for a server with two kernels of ours; its dpkg only notes its calls."""
    settled.install(NEW)
    made = Apt(tmp_path / "apt", "")
    names = [f"{kind}-{release}" for kind in PARTS for release in (OLD, NEW)]
    stanza = "Package: {}\nStatus: install ok installed\nVersion: 1\nArchitecture: amd64\n"
    stanza += "Maintainer: x\nDescription: x\n\n"
    (made.top / "dpkg/status").write_text("".join(map(stanza.format, names)))
    # Both are there for another package, which is gone.
    auto = "Package: {}\nArchitecture: amd64\nAuto-Installed: 1\n\n"
    (made.top / "extended_states").write_text("".join(map(auto.format, names)))
    dpkg = made.top / "dpkg-fake"
    dpkg.write_text(f'#!/bin/sh\necho "$@" >>{made.top}/said\n')
    dpkg.chmod(0o755)
    hook = (ROOT / "etc/apt/apt.conf.d/50cplayground-guard").read_text()
    keep = (settled.top / "etc/apt/apt.conf.d/51cplayground-guard-keep").read_text()
    with (made.top / "apt.conf").open("a") as conf:
        conf.write(f'Dir::Bin::dpkg "{dpkg}";\n{keep}')
        conf.write(hook.replace("/usr/lib/cplayground/guard", str(LIBRARY)))
    made.env = {"GUARD_ROOT": str(settled.top), "DEBIAN_FRONTEND": "noninteractive"}
    return made


PARTS = ("linux-image", "cplayground-modules")


@pytest.mark.parametrize("part", PARTS)
def test_the_real_apt_asks_before_it_removes_anything(apt: Apt, part: str) -> None:
    said = apt("apt-get", "remove", "--yes", f"{part}-{OLD}", check=False)
    assert "last known good kernel" in said and "CPlayground::Guard::Veto=false" in said
    assert not (apt.top / "said").exists() or f"{part}-{OLD}" not in (apt.top / "said").read_text()
    apt("apt-get", "remove", "--yes", f"{part}-{NEW}", check=False)
    assert f"{part}-{NEW}" in (apt.top / "said").read_text()
    veto = "CPlayground::Guard::Veto=false"
    apt("apt-get", "remove", "--yes", "-o", veto, f"{part}-{OLD}", check=False)
    assert f"{part}-{OLD}" in (apt.top / "said").read_text()


def test_the_real_apt_does_not_find_them_unused(apt: Apt, settled: Server) -> None:
    said = apt("apt-get", "--simulate", "autoremove")
    assert "Remv" not in said
    # Without the list, all of them are.
    text = (apt.top / "apt.conf").read_text()
    (apt.top / "apt.conf").write_text(text.replace("NeverAutoRemove", "Other"))
    assert apt("apt-get", "--simulate", "autoremove").count("Remv") == 4


def test_before_the_guard_knows_a_kernel_apt_is_free(tmp_path: Path) -> None:
    server = Server.new(tmp_path / "server", DEBIAN)
    assert veto(server, f"linux-image-{DEBIAN}") == 0


def test_autoremove_leaves_the_good_kernel_and_the_one_on_trial(settled: Server) -> None:
    path = settled.top / "etc/apt/apt.conf.d/51cplayground-guard-keep"
    settled.install(NEW)
    text = path.read_text()
    for release in (OLD, NEW):
        name = release.replace(".", "\\.")
        assert f'"^linux-image-{name}$";' in text and f'"^cplayground-modules-{name}$";' in text
    assert "cloud-amd64-unsigned" in text
    settled.guard("retire")
    assert not path.exists()


# --- the menu -----------------------------------------------------------------------------------

_LINUX = """\
menuentry 'Debian' --class debian --unrestricted $menuentry_id_option 'gnulinux-simple-1' {
	savedefault
	load_video
	search --no-floppy --fs-uuid --set=root 1-2-3
	echo	'Loading Linux 6.1.0-57-cloud-amd64 ...'
	linux	/vmlinuz-6.1.0-57-cloud-amd64 root=UUID=4-5-6 ro quiet dyndbg="file a.c  +p"
	echo	'Loading initial ramdisk ...'
	initrd	/intel-ucode.img /initrd.img-6.1.0-57-cloud-amd64
}
"""


def entries(server: Server, place: str) -> str:
    server.write("etc/grub.d/10_linux", f"#!/bin/sh\ncat <<'EOF'\n{_LINUX}EOF\n", mode=0o755)
    return server.run([LIBRARY / "grub-entries", place], GRUB_DISTRIBUTOR="Debian").stdout


def test_the_entries_have_the_arguments_of_debians(server: Server) -> None:
    text = entries(server, "front")
    arguments = 'root=UUID=4-5-6 ro quiet dyndbg="file a.c  +p"'
    assert f"\tlinux\t/cplayground-good/vmlinuz {arguments}\n" in text
    assert f"if linux\t/cplayground-trial/vmlinuz {arguments} cplayground_guard=trial" in text
    assert "initrd\t/intel-ucode.img /cplayground-good/initrd.img\n" in text
    assert "--class debian --unrestricted $menuentry_id_option 'cplayground-good'" in text
    assert text.index("'cplayground-good'") < text.index("'cplayground-trial'")
    trial = text[text.index("'cplayground-trial'") :]
    # A trial is never the entry that GRUB remembers.
    assert "savedefault" not in trial and "savedefault" in text
    assert "panic=10 oops=panic softlockup_panic=1 systemd.watchdog_sec=60" in trial


def test_the_entries_go_to_the_end_if_an_entry_is_pinned(server: Server) -> None:
    assert entries(server, "back") == ""
    _default("2")(server)
    assert entries(server, "front") == ""
    assert "cplayground-good" in entries(server, "back")


def test_without_a_good_kernel_the_menu_is_as_before(tmp_path: Path) -> None:
    server = Server.new(tmp_path / "server", DEBIAN)
    assert entries(server, "front") == ""


def test_the_fakes_are_programs() -> None:
    assert all(path.stat().st_mode & 0o111 for path in FAKES.rglob("*"))


@pytest.mark.parametrize("menu_fails", [False, True])
def test_the_files_that_the_menu_needs_stay_also_after_a_purge(
    server: Server, menu_fails: bool
) -> None:
    text = (PROJECT / "debian/guard/guard.postrm").read_text()
    for place in ("/boot", "/var", "/etc"):
        text = text.replace(f" {place}/", f" {server.top}{place}/")
    server.write("postrm", text, mode=0o755)
    # Debian's scripts make no entry without the program.
    shutil.rmtree(server.top / "usr/lib/cplayground")
    for step in ("remove", "purge"):
        server.env = {"FAKE_NO_MENU": "1"} if menu_fails else {"FAKE_NO_GUARD": "1"}
        done = server.run(["sh", server.top / "postrm", step])
        assert done.returncode == 0, done.stderr
    menu = (server.top / "boot/grub/grub.cfg").read_text()
    assert ("cplayground-good" in menu) == menu_fails
    assert (server.top / "boot/cplayground-good/vmlinuz").exists() == menu_fails
    assert not (server.top / "var/lib/cplayground-guard").exists()
