"""The archive, as the suite's own apt sees it over http: it installs, and refuses each tampering.

apt and dpkg run in the suite's root, and install to a directory of their own.
"""

from __future__ import annotations

import functools
import http.server
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kbuild.archive import operations, snapshots
from kbuild.core import sandbox
from kbuild.core.model import Root, Settings
from kbuild.core.run import Completed
from kbuild.core.sandbox import Bind
from kbuild.fetch import roots
from kbuild.ship import keyring_package, signing
from tests.unit import releases
from tests.unit.releases import release

META = "linux-image-cplayground-cloud-amd64"
MODULES = "cplayground-modules-cloud-amd64"
FIRST, SECOND = "6.1.192-3+cplayground1", "6.1.192-3+cplayground2"
# Long enough for 40 updates, which the test counts.
UPDATES, SWITCH_S = 40, 0.07
# A machine may have switched these off.
CONFIGURATION = """\
Acquire::Check-Valid-Until "true";
Acquire::Check-Date "true";
Acquire::By-Hash "yes";
Acquire::Languages "none";
Acquire::Retries "0";
Acquire::http::Proxy "DIRECT";
APT::Architecture "amd64";
APT::Sandbox::User "root";
APT::Get::Assume-Yes "true";
APT::Get::Always-Include-Phased-Updates "false";
APT::Machine-ID "0123456789abcdef0123456789abcdef";
Dir::Etc "/mnt/apt/etc";
Dir::State "/mnt/apt/state";
Dir::State::status "/mnt/apt/target/var/lib/dpkg/status";
Dir::Cache "/mnt/apt/cache";
Dir::Log "/mnt/apt";
DPkg::Options { "--root=/mnt/apt/target"; "--log=/dev/null"; };
"""


class Server:
    """An http server for a directory that a test may exchange."""

    def __init__(self) -> None:
        self.root = Path("/nonexistent")
        self.asked: list[str] = []
        outer = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def translate_path(self, path: str) -> str:
                outer.asked.append(path)
                self.directory = str(outer.root)
                return super().translate_path(path)

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@dataclass
class Machine:
    """A server of the archive's: the suite's apt with a target directory."""

    root: Root
    home: Path
    server: Server
    suite: str

    def run(self, *argv: str, check: bool = True) -> Completed:
        done = sandbox.enter(
            self.root,
            argv,
            binds=[Bind(self.home, "/mnt/apt", writable=True)],
            env={"APT_CONFIG": "/mnt/apt/apt.conf", "DEBIAN_FRONTEND": "noninteractive"},
            timeout_s=300,
            check=False,
            network=True,
        )
        assert done.returncode == 0 or not check, f"{done.stdout}\n{done.stderr}"
        return done

    def update(self, *, check: bool = True) -> Completed:
        return self.run("apt-get", "update", "--error-on=any", check=check)

    def installed(self) -> dict[str, str]:
        status = (self.home / "target/var/lib/dpkg/status").read_text()
        stanzas = re.findall(r"(?m)^Package: (\S+)\n(?:.+\n)*?Version: (\S+)", status)
        return dict(stanzas)

    def candidate(self, name: str = META) -> str:
        said = self.run("apt-cache", "policy", name).stdout
        found = re.search(r"Candidate: (\S+)", said)
        assert found is not None, said
        return found[1]


@pytest.fixture(scope="module")
def own(
    tmp_path_factory: pytest.TempPathFactory, suite: str, settings: Settings
) -> Iterator[Settings]:
    """An archive with a promoted and a staged release; its first two snapshots are kept apart."""
    given = releases.settings(tmp_path_factory.mktemp("own"))
    for number in (1, 2):
        one = release(number, suite=suite)
        operations.stage(given, one, releases.files(given.build, one))
        if number == 1:
            operations.promote(given, one.id, 100)
            shutil.copytree(given.archive, given.archive.with_name("first"), symlinks=True)
            # A Release of a later second is newer.
            time.sleep(1.1)
    operations.promote(given, release(2, suite=suite).id, 100)
    yield given
    releases.clean_up()


@pytest.fixture
def archive(own: Settings, tmp_path: Path) -> Settings:
    """A copy of the archive, which a test may damage."""
    shutil.copytree(own.archive, tmp_path / "archive", symlinks=True)
    return replace(own, archive=tmp_path / "archive")


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


@pytest.fixture
def machine(
    archive: Settings, server: Server, settings: Settings, suite: str, tmp_path: Path
) -> Machine:
    """A machine on which the keyring's package is installed, and nothing else."""
    server.root = archive.archive
    home = tmp_path / "machine"
    for name in (
        *("etc/sources.list.d", "etc/preferences.d", "etc/trusted.gpg.d", "state/lists/partial"),
        *("cache/archives/partial", "target/var/lib/dpkg/updates", "target/var/lib/dpkg/info"),
    ):
        (home / name).mkdir(parents=True)
    (home / "etc/apt.conf.d").mkdir()
    (home / "apt.conf").write_text(CONFIGURATION)
    (home / "target/var/lib/dpkg/status").write_text("")
    made = Machine(roots.compile_root(settings, suite), home, server, suite)
    (keyring,) = (archive.archive / "pool").rglob(f"{keyring_package.NAME}_*.deb")
    shutil.copy(keyring, home / "keyring.deb")
    made.run("dpkg", "--root=/mnt/apt/target", "--log=/dev/null", "-i", "/mnt/apt/keyring.deb")
    (home / "etc/sources.list.d/cplayground.sources").write_text(
        f"Types: deb\nURIs: {server.url}\nSuites: {suite}\nComponents: main\n"
        f"Signed-By: /mnt/apt/target/{keyring_package.KEYRING}\n"
    )
    return made


def test_apt_installs_upgrades_and_goes_back(machine: Machine, archive: Settings) -> None:
    machine.update()
    assert any("/by-hash/SHA256/" in path for path in machine.server.asked)
    machine.run("apt-get", "install", f"{META}={FIRST}", f"{MODULES}=0.2.0+{FIRST}")
    assert machine.installed()[META] == FIRST
    machine.run("apt-get", "dist-upgrade")
    assert machine.installed()[META] == SECOND
    assert machine.installed()[MODULES] == f"0.2.0+{SECOND}"
    # Both kernels are there.
    kernels = {name for name in machine.installed() if name.startswith("linux-image-6")}
    assert len(kernels) == 2
    operations.rollback(archive, release(2, suite=machine.suite).id, "bad")
    machine.update()
    # Its script is for a whole machine, so it is only downloaded.
    machine.run("apt-get", "--download-only", "dist-upgrade")
    said = machine.run("apt-get", "--simulate", "dist-upgrade").stdout
    assert f"Inst {META} [{SECOND}] ({SECOND}+rollback1 " in said
    assert "\nRemv " not in said


def test_a_phase_takes_kernel_and_module_to_the_same_servers(
    machine: Machine, archive: Settings
) -> None:
    third = release(3, suite=machine.suite)
    operations.stage(archive, third, releases.files(archive.build, third))
    operations.promote(archive, third.id, 50)
    machine.update()
    machine.run("apt-get", "install", f"{META}={SECOND}", f"{MODULES}=0.2.0+{SECOND}")
    script = (
        "for n in $(seq 30); do id=$(printf %032x $n); echo $("
        " apt-get --simulate --option APT::Machine-ID=$id dist-upgrade"
        f" | sed -n 's/^Inst \\({META}\\|{MODULES}\\) .*/\\1/p'); done"
    )
    chosen = [set(line.split()) for line in machine.run("sh", "-c", script).stdout.splitlines()]
    assert len(chosen) == 30
    assert {frozenset(one) for one in chosen} == {frozenset(), frozenset({META, MODULES})}


Tamper = Callable[[Settings, Path], None]


def text_of_inrelease(archive: Settings, dist: Path) -> None:
    path = dist / "InRelease"
    path.write_text(path.read_text().replace("Label: c", "Label: C"))


def no_signature(archive: Settings, dist: Path) -> None:
    (dist / "InRelease").unlink()


def no_signature_in_inrelease(archive: Settings, dist: Path) -> None:
    shutil.copy(dist / "Release", dist / "InRelease")


def foreign_key(archive: Settings, dist: Path) -> None:
    other = replace(archive, keys=releases.keys("foreign"))
    (dist / "InRelease").write_bytes(signing.sign(other, (dist / "Release").read_bytes()))


def dated(days: int, archive: Settings, dist: Path) -> None:
    """Write and sign the indexes again, as of another day."""
    number = snapshots.linked(archive.archive)[dist.name]
    entries = snapshots.read(archive.archive, number).plan[dist.name]
    target = dist.resolve()
    shutil.rmtree(target)
    when = datetime.now(UTC) + timedelta(days=days)
    snapshots.write_dist(archive, archive.archive, target, entries, when)


def bytes_of_packages(archive: Settings, dist: Path) -> None:
    home = dist / snapshots.INDEX.parent
    for path in (*home.glob("Packages*"), *(home / snapshots.BY_HASH).iterdir()):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.unlink()
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("tamper", "words"),
    [
        (text_of_inrelease, "BADSIG|signatures were invalid|has been manipulated"),
        (no_signature, "not signed|no longer signed|does not have a Release file"),
        (no_signature_in_inrelease, "not signed|Clearsigned|NOSPLIT|no signature"),
        (foreign_key, "NO_PUBKEY|couldn't be verified|Missing key"),
        (functools.partial(dated, -60), "expired|is not valid anymore"),
        (functools.partial(dated, 2), "not valid yet"),
        (bytes_of_packages, "Hash Sum mismatch|unexpected size|hashes"),
    ],
    ids=["text", "unsigned", "no-signature", "foreign-key", "expired", "future", "packages"],
)
def test_apt_refuses_a_tampered_index(
    machine: Machine, archive: Settings, tamper: Tamper, words: str
) -> None:
    tamper(archive, archive.archive / "dists" / machine.suite)
    done = machine.update(check=False)
    assert done.returncode != 0, done
    assert re.search(words, done.stdout + done.stderr), done
    assert machine.run("apt-cache", "policy", META).stdout == ""


def test_apt_refuses_a_tampered_package(machine: Machine, archive: Settings) -> None:
    machine.update()
    (path,) = (archive.archive / "pool").rglob(f"{META}_{SECOND}_*.deb")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    done = machine.run("apt-get", "install", META, check=False)
    assert done.returncode != 0
    assert "Hash Sum mismatch" in done.stdout + done.stderr
    assert META not in machine.installed()


def test_apt_ignores_a_replayed_older_release(machine: Machine, archive: Settings) -> None:
    machine.update()
    assert machine.candidate() == SECOND
    machine.server.root = machine.server.root.parent / "replayed"
    shutil.copytree(first_of(archive), machine.server.root, symlinks=True)
    machine.update()
    assert machine.candidate() == SECOND


def first_of(archive: Settings) -> Path:
    """Return the copy of the archive that was made before the second release."""
    return archive.build.parent / "first"


def test_every_update_succeeds_while_the_suite_is_switched(
    machine: Machine, archive: Settings
) -> None:
    """Two snapshots, each with the other's indexes by hash, take turns every 70 ms."""
    root, one = archive.archive, release(2, suite=machine.suite)
    for _ in range(2):
        operations.resign(archive)
    operations.rollback(archive, one.id, "to have other indexes")
    different = snapshots.newest(root)[:2]
    newer, older = different
    # The older one again, now with the indexes of the newer one too.
    for name in (machine.suite, f"{machine.suite}-staging"):
        for number, other in ((older, newer), (newer, older)):
            home, there = (
                snapshots.path(root, each) / name / snapshots.INDEX.parent / snapshots.BY_HASH
                for each in (number, other)
            )
            for path in there.iterdir():
                if not (home / path.name).exists():
                    shutil.copy(path, home / path.name)
    stop = threading.Event()
    switched = 0

    def switch() -> None:
        nonlocal switched
        while not stop.is_set():
            snapshots.switch(root, (older, newer)[switched % 2])
            switched += 1
            stop.wait(SWITCH_S)

    thread = threading.Thread(target=switch)
    thread.start()
    try:
        script = (
            f"good=0; for n in $(seq {UPDATES}); do rm -rf /mnt/apt/state/lists/*;"
            " apt-get update --error-on=any >>/mnt/apt/log 2>&1 && good=$((good + 1));"
            " done; echo $good"
        )
        good = int(machine.run("sh", "-c", script).stdout)
    finally:
        stop.set()
        thread.join()
    print(f"switched {switched} times")
    assert switched > UPDATES
    assert good == UPDATES, (machine.home / "log").read_text()[-2000:]
