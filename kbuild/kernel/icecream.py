"""Compile with the workers of an icecream scheduler."""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from kbuild.core import fs, results, run, sandbox, suites
from kbuild.core.errors import BuildError, InfrastructureError, KbuildError, UserError
from kbuild.core.model import Root, Settings
from kbuild.core.sandbox import Bind
from kbuild.core.secrets import redact_url
from kbuild.kernel.help import Help, is_host, resolver

logger = logging.getLogger(__name__)

_ICECREAM = "/mnt/icecream"
_DAEMON_TIMEOUT_S = 20.0
_USER = "icecc"  # Debian's package creates it for the daemon
# iceccd's message when its scheduler has accepted it.
_CONNECTED = "Connected to scheduler"
SCHEDULER_PORT = 8765
_HOST = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[\w.-]+)(?::(?P<port>\d{1,5}))?")


def parse_scheduler(text: str) -> tuple[str, int]:
    """Parse host[:port] of an icecream scheduler; raises UserError for anything else."""
    match = _HOST.fullmatch(text)
    port = int(match["port"] or SCHEDULER_PORT) if match else 0
    if match is None or not 0 < port < 65536 or not is_host(match["host"].strip("[]")):
        shown = redact_url(text)
        raise UserError(
            f"--scheduler {shown} is not the address of an icecream scheduler",
            expected=f"HOST or HOST:PORT; the usual port is {SCHEDULER_PORT}",
            found=shown,
        )
    return match["host"].strip("[]"), port


def compiler_environment(settings: Settings, root: Root) -> Path:
    """Return the root's own compiler as an archive that icecream's workers unpack.

    icecc-create-env makes it once for each root, and the cache keeps it.
    """
    home = settings.cache / "icecream" / root.digest[:16]

    def make(scratch: Path) -> list[Path]:
        sandbox.enter(
            root,
            ["icecc", "--build-native", f"/usr/bin/{suites.suite(root.suite).compiler}"],
            timeout_s=300,
            binds=[Bind(scratch, _ICECREAM, writable=True)],
            cwd=_ICECREAM,
        )
        return [*scratch.glob("*.tar.*")]

    # Workers distinguish environments by name, and the name contains a digest of the content.
    made = results.kept(
        home / "stamp.json",
        {"root": root.digest},
        make,
        lambda: [*home.glob("*.tar.*")],
        lock=settings.cache / "locks" / f"icecream-{root.digest[:16]}.lock",
        doing="packing the compiler for icecream's workers",
        fresh=True,
    ).ensure()
    fs.mark_used(home)
    if len(made) != 1:
        raise BuildError(
            "icecc made no archive of the compiler",
            expected=f"one file in {home}",
            found=", ".join(path.name for path in made) or "none",
            hint="remove that directory and run the same command again",
        )
    return made[0]


@contextlib.contextmanager
def icecream_help(settings: Settings, root: Root, home: Path) -> Iterator[Help | None]:
    """Run icecream's daemon for one build, and yield what the compilers need to find it."""
    host, port = parse_scheduler(settings.scheduler)
    try:
        archive = compiler_environment(settings, root)
    except KbuildError as error:
        # A security update must not wait for its helpers, as with a missing scheduler.
        logger.warning("icecream is not used: %s", error)
        yield None
        return
    place = home / "icecream"
    fs.remove_tree(place)
    place.mkdir(parents=True)
    shutil.copyfile(archive, place / archive.name)
    shutil.chown(place, *_owner(root, _USER))
    binds = (Bind(place, _ICECREAM, writable=True),)
    env = {"ICECC_TEST_SOCKET": f"{_ICECREAM}/socket"}
    daemon = sandbox.command(
        root,
        [
            *("iceccd", "--no-remote", "-s", f"{host}:{port}"),
            *("-b", f"{_ICECREAM}/environments", "-u", _USER, "-vv"),
        ],
        binds=[*binds, *resolver(root)],
        env=env,
        network=True,
    )
    log = settings.build / "logs" / "icecream.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as stream:
        process = run.start(daemon, stdout=stream, stderr=subprocess.STDOUT)
        try:
            # Ask through the daemon, because a silent connection blocks a scheduler for seconds.
            if not _connected(process, log):
                logger.warning(
                    "icecream is not used: no scheduler answers at %s; see %s",
                    settings.scheduler,
                    log,
                )
                yield None
                return
            yield Help(
                {
                    **env,
                    "CCACHE_PREFIX": "icecc",
                    "ICECC_VERSION": f"{_ICECREAM}/{archive.name}",
                },
                (*binds, *resolver(root)),
                network=True,
            )
        finally:
            run.stop(process)


def _owner(root: Root, user: str) -> tuple[int, int]:
    """Return the numbers of a user and its group in a root, which differ from the host's."""
    for line in (root.path / "etc/passwd").read_text().splitlines():
        name, _, uid, gid, *_ = line.split(":")
        if name == user:
            return int(uid), int(gid)
    raise BuildError(
        f"{root.path} has no user {user}", hint="'./inv clean --roots' lets it be made again"
    )


def _connected(process: subprocess.Popen[bytes], log: Path) -> bool:
    """Wait until icecream's daemon reports that its scheduler has accepted it."""
    deadline = time.monotonic() + _DAEMON_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise InfrastructureError(
                "icecream's daemon does not start",
                found=log.read_text(errors="replace").strip()[-1000:],
                log=log,
                hint="omit --scheduler",
            )
        if _CONNECTED in log.read_text(errors="replace"):
            return True
        time.sleep(0.1)
    return False
