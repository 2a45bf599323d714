"""The bootstrap, in a checkout of its own, with fakes for apt, dpkg, sudo, pip and Python.

The fakes write down how they were called; files in ``state`` make them fail.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]

# dpkg-query knows the packages named in state/installed, as dpkg says it.
DPKG_QUERY = """#!/bin/sh
for package; do :; done  # the last argument
if grep -qx "$package" "$STATE/installed"; then echo installed; exit 0; fi
if [ "$package" = seen ]; then echo not-installed; exit 0; fi
echo "no packages found matching $package" >&2; exit 1
"""

# apt-get installs only what its lists have (state/lists, which an update makes).
APT_GET = """#!/bin/sh
echo "apt-get $*" >> "$STATE/calls"
[ "$DEBIAN_FRONTEND" = noninteractive ] || exit 99
case "$*" in
*update) [ ! -e "$STATE/no-network" ] || { echo "could not resolve"; exit 100; }
    touch "$STATE/lists" ;;
*install*)
    [ -e "$STATE/lists" ] || { echo "E: Unable to locate package"; exit 100; }
    case "$*" in *--simulate*) exit 0 ;; esac
    for word; do
        case "$word" in -* | install) ;; *) echo "$word" >> "$STATE/installed" ;; esac
    done ;;
esac
"""

SUDO = """#!/bin/sh
echo "sudo $*" >> "$STATE/calls"
if [ "$1" = -n ]; then [ ! -e "$STATE/password" ]; exit; fi
exec "$@"
"""

ID = """#!/bin/sh
cat "$STATE/uid"
"""

# "python -m venv DIR" makes an environment whose Python is this script again.
PYTHON = """#!/bin/sh
case "$*" in
-c*) [ ! -e "$STATE/old-python" ] ;;
"-m venv "*)
    echo venv >> "$STATE/calls"
    mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
"-m pip --version") [ -e "$(dirname "$0")/python" ] ;;
"-m pip install "*)
    echo "pip $*" >> "$STATE/calls"
    [ ! -e "$STATE/no-index" ] || { echo "no matching distribution"; exit 1; }
    touch "$STATE/in-pip"
    while [ -e "$STATE/hold" ]; do sleep 0.05; done
    touch "$(dirname "$0")/invoke"
    chmod +x "$(dirname "$0")/invoke" ;;
"-P -m kbuild.cli "*)
    shift 3
    pwd > "$STATE/cwd"
    echo "$PYTHONUTF8" > "$STATE/utf8"
    if [ "$1" = --search-root ] && [ -x "$2/inv" ]; then shift 2; else echo "in no checkout"; fi
    echo "invoke $*" ;;
esac
"""


class Checkout:
    """A checkout with an ``inv`` that sees only fakes."""

    def __init__(self, path: Path) -> None:
        self.path = path / "checkout of someone"
        self.state = path / "state"
        self.bin = path / "bin"
        for directory in (self.path, self.state, self.bin):
            directory.mkdir()
        shutil.copy(PROJECT / "inv", self.path / "inv")
        (self.path / "host-packages.txt").write_text(
            "# a comment\nfirst first does things\n\nseen - was here once\nthird a,b c\n"
        )
        (self.path / "requirements.lock").write_text("one==1 --hash=sha256:00\n")
        fakes = {"dpkg-query": DPKG_QUERY, "apt-get": APT_GET, "sudo": SUDO, "id": ID}
        for name, text in {**fakes, "dpkg": "#!/bin/sh\n", "fakepython": PYTHON}.items():
            self.fake(name, text)
        for tool in ("sh", "env", "dirname", "readlink", "sha256sum", "cat", "mkdir", "tail"):
            self.real(tool)
        for tool in ("sed", "awk", "grep", "rm", "mv", "find", "flock", "touch", "cp", "chmod"):
            self.real(tool)
        for tool in ("sleep", "iconv"):
            self.real(tool)
        (self.state / "uid").write_text("0\n")
        (self.state / "installed").write_text("first\n")

    def fake(self, name: str, text: str) -> None:
        # Never through a link: what it leads to belongs to the machine.
        (self.bin / name).unlink(missing_ok=True)
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def real(self, name: str) -> None:
        found = shutil.which(name)
        assert found is not None
        (self.bin / name).symlink_to(found)

    def set(self, name: str, text: str = "") -> None:
        (self.state / name).write_text(text)

    def start(self, *argv: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(self.path / "inv"), *argv],
            cwd="/",
            env={
                "PATH": str(self.bin),
                "STATE": str(self.state),
                "PYTHON": str(self.bin / "fakepython"),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def inv(self, *argv: str) -> tuple[int, str, str]:
        process = self.start(*argv)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def wait_for(self, name: str) -> None:
        deadline = time.monotonic() + 60
        while not (self.state / name).exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def calls(self) -> list[str]:
        path = self.state / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_the_first_run_installs_what_is_missing_and_then_is_invoke(checkout: Checkout) -> None:
    status, out, err = checkout.inv("build-kernel", "--flavour", "two words")
    assert (status, out) == (0, "invoke build-kernel --flavour two words\n")
    calls = checkout.calls()
    installs = [call for call in calls if "install" in call and "apt-get" in call]
    # A package that dpkg only remembers is missing too; one that is there is left alone.
    assert all(call.endswith("--no-install-recommends seen third") for call in installs)
    assert [call.split()[-1] for call in calls if "update" in call] == ["update"]
    assert calls[-2] == "venv"
    # Nothing is installed but what the lock has the hash of, and no package's own program is run.
    assert calls[-1].startswith("pip -m pip install")
    for option in ("--require-hashes", "--only-binary :all:", "--requirement requirements.lock"):
        assert option in calls[-1]
    assert "installing Debian packages: seen third" in err
    # A log survives that the environment was made anew.
    assert "apt-get" in (checkout.path / ".venv/logs/inv-apt.log").read_text()
    # Only a run makes build/, and marks it.
    assert not (checkout.path / "build").exists()


def test_the_next_run_does_nothing_but_invoke(checkout: Checkout) -> None:
    checkout.inv()
    checkout.calls()
    assert checkout.inv("--list") == (0, "invoke --list\n", "")
    assert checkout.calls() == []


def test_help_behind_a_task_is_not_its_argument(checkout: Checkout) -> None:
    """For Invoke itself, a collection is no task, and --help the argument of an old name."""
    checkout.inv("--list")
    assert checkout.inv("bench", "--help") == (0, "invoke --help bench\n", "")
    given = ("bench", "procfile", "--help")
    assert checkout.inv(*given) == (0, f"invoke {' '.join(given)}\n", "")


def test_current_lists_are_not_fetched_again(checkout: Checkout) -> None:
    checkout.set("lists")
    checkout.inv()
    assert not [call for call in checkout.calls() if "update" in call]


@pytest.mark.parametrize("name", ["host-packages.txt", "requirements.lock"])
def test_a_changed_list_is_noticed(checkout: Checkout, name: str) -> None:
    checkout.inv()
    checkout.calls()
    with (checkout.path / name).open("a") as stream:
        stream.write("fourth - is new\n")
    assert checkout.inv()[0] == 0
    calls = checkout.calls()
    assert bool([call for call in calls if call.endswith("fourth")]) is (name[0] == "h")
    assert [call for call in calls if call.startswith("pip ")]
    assert "venv" not in calls  # the environment itself is kept


def test_a_checkout_that_was_moved_gets_a_new_environment(checkout: Checkout) -> None:
    checkout.inv()
    checkout.calls()
    checkout.path = checkout.path.rename(checkout.path.with_name("moved"))
    assert checkout.inv("--list")[:2] == (0, "invoke --list\n")
    assert "venv" in checkout.calls()


def test_a_run_that_was_killed_is_taken_up(checkout: Checkout) -> None:
    checkout.set("hold")
    process = checkout.start()
    checkout.wait_for("in-pip")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=20)
    (checkout.state / "hold").unlink()
    checkout.calls()
    assert checkout.inv("--list")[:2] == (0, "invoke --list\n")
    # Half of a package may lie in the old environment, so it is made anew.
    assert "venv" in checkout.calls()


def test_two_at_once_install_once(checkout: Checkout) -> None:
    checkout.set("hold")
    first = checkout.start("first")
    checkout.wait_for("in-pip")
    second = checkout.start("second")
    assert second.stderr is not None
    assert "waiting for another ./inv" in second.stderr.readline()
    (checkout.state / "hold").unlink()
    outputs = [process.communicate(timeout=60) for process in (first, second)]
    assert [out for out, _ in outputs] == ["invoke first\n", "invoke second\n"]
    assert len([call for call in checkout.calls() if call.startswith("pip ")]) == 1


def test_without_root_sudo_is_used(checkout: Checkout) -> None:
    checkout.set("uid", "1000")
    assert checkout.inv()[0] == 0
    installs = [call for call in checkout.calls() if call.startswith("sudo env")]
    assert installs[-1].endswith(" install --no-install-recommends seen third")


@pytest.mark.parametrize("obstacle", ["no sudo", "password"])
def test_where_it_may_not_install_it_says_what_to_do(checkout: Checkout, obstacle: str) -> None:
    checkout.set("uid", "1000")
    if obstacle == "no sudo":
        (checkout.bin / "sudo").unlink()
    else:
        checkout.set("password")
    status, out, err = checkout.inv("--list")
    assert (status, out) == (69, "")
    assert "apt-get install --no-install-recommends seen third\n" in err
    # Once somebody has done that, neither root nor sudo is needed.
    checkout.set("installed", "first\nseen\nthird\n")
    assert checkout.inv("--list")[:2] == (0, "invoke --list\n")


def test_apt_that_cannot_shows_why(checkout: Checkout) -> None:
    checkout.set("no-network")
    checkout.fake("sleep", "#!/bin/sh\n")
    status, _, err = checkout.inv()
    assert status == 69
    assert "Unable to locate package" in err
    assert "apt-get install --no-install-recommends seen third" in err
    assert len([call for call in checkout.calls() if "update" in call]) == 3


def test_no_password_of_a_mirror_or_an_index_is_shown_or_kept(checkout: Checkout) -> None:
    checkout.set("no-network")
    checkout.fake("sleep", "#!/bin/sh\n")
    said = "W: Failed to fetch http://user:p/w@mirror.example/InRelease"
    checkout.fake("apt-get", APT_GET.replace("could not resolve", said))
    status, _, err = checkout.inv()
    log = (checkout.path / ".venv/logs/inv-apt.log").read_text()
    assert status == 69
    assert "Failed to fetch http://***@mirror.example/InRelease" in log
    assert "p/w" not in err + log


def test_pip_that_cannot_shows_why_and_is_tried_again(checkout: Checkout) -> None:
    checkout.set("no-index")
    status, out, err = checkout.inv("--list")
    assert (status, out) == (69, "")
    assert "no matching distribution" in err
    assert "pip config list" in err
    (checkout.state / "no-index").unlink()
    assert checkout.inv("--list")[:2] == (0, "invoke --list\n")


def test_another_system_is_told_so(checkout: Checkout) -> None:
    (checkout.bin / "dpkg-query").unlink()
    status, _, err = checkout.inv()
    assert status == 69
    assert "use Debian 12" in err


def test_it_can_be_called_through_a_link_from_anywhere(checkout: Checkout, tmp_path: Path) -> None:
    link = checkout.bin / "inv"
    link.symlink_to(checkout.path / "inv")
    done = subprocess.run(
        [str(link), "--list"],
        cwd=tmp_path,
        env={"PATH": str(checkout.bin), "STATE": str(checkout.state), "PYTHON": "fakepython"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "invoke --list\n"
    # A relative path that is given to a task is the caller's.
    assert (checkout.state / "cwd").read_text() == f"{tmp_path}\n"


def test_the_locale_does_not_decide_how_files_are_read(checkout: Checkout) -> None:
    assert checkout.inv("--list")[0] == 0
    assert (checkout.state / "utf8").read_text() == "1\n"


def test_a_path_that_python_cannot_write_down_is_refused(checkout: Checkout) -> None:
    checkout.path = checkout.path.rename(checkout.path.with_name("caf\udce9"))
    status, out, err = checkout.inv("--list")
    assert (status, out) == (2, "")
    assert "is not UTF-8" in err
    assert checkout.calls() == []
    assert not (checkout.path / ".venv").exists()
