"""Share the archive, Debian's server and judged boots among the cases of one round."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shlex
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kbuild.archive.release import Release, View
from kbuild.core import fs
from kbuild.core.errors import InfrastructureError
from kbuild.core.model import MODULE, PROCFILE, Base, Root, Settings
from kbuild.core.run import Arg, Completed, describe_status, failure, run
from kbuild.core.sandbox import Bind
from kbuild.gate import disk, listing, machine, server, wire
from kbuild.gate.machine import Boot, Command
from kbuild.gate.report import BootSeen
from kbuild.gate.server import Server
from kbuild.guest.outcome import MODULE_TAINT
from kbuild.guest.spec import Accelerator, Firmware, ServerSpec
from kbuild.lab import oracle, procfile
from kbuild.ship import dkms, tool_package, versions

logger = logging.getLogger(__name__)

# In a server: the programs that judge the procfile there, and the package with the archive's keys.
TOOLS = "/usr/lib/cplayground/gate"
_KEYRING = f"{TOOLS}/keyring.deb"

# Where the module's file lies, below /lib/modules/<release>.
PREBUILT, BUILT = "extra", "updates/dkms"

# Seconds of a fast machine.
_ASKED_S = 10.0
_OBSERVED_S = 60.0
_READ_TIMEOUT_S = 60

# The differences between the procfile and the kernel's view that a reason shows.
_SHOWN = 5
# An error of dpkg, apt or DKMS, and so many lines before and after it.
_ERROR = re.compile(r"^(dpkg: error|E: |Error! )|unmet dependencies")
_BEFORE, _AFTER = 6, 12
_HOLD = Path(__file__).with_name("in_root") / "hold"
_TOOL_JSON, _TOOL_LS = (tool_package.PACKAGE, "json"), (tool_package.PACKAGE, "ls")
_OF_DESCRIPTOR = ("fd", "close_on_exec", "flags")  # keys of the tool's JSON


@dataclass
class Trial:
    """Reasons, notes and boots of one case so far; without a reason it passes."""

    name: str
    reasons: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    boots: list[BootSeen] = field(default_factory=list)

    def require(self, condition: bool, reason: str) -> bool:
        """Note the reason if the condition does not hold, and return the condition."""
        if not condition:
            self.reasons.append(reason)
        return condition


@dataclass(frozen=True)
class Names:
    """The packages of a release that an administrator names, and their versions."""

    image: str
    headers: str
    modules: str
    versions: dict[str, str]

    @property
    def prebuilt(self) -> tuple[str, ...]:
        """The metapackages for the module that we compiled."""
        return (self.image, self.modules)

    @property
    def dkms(self) -> tuple[str, ...]:
        """The packages for the module that DKMS compiles, and the tool."""
        return (self.image, self.headers, dkms.PACKAGE, tool_package.PACKAGE)

    def pinned(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return the packages as apt takes them with their versions: NAME=VERSION."""
        return tuple(f"{name}={self.versions[name]}" for name in names)


def names(release: Release) -> Names:
    """Return what an administrator calls the packages of a release."""
    flavour, variant = release.target.flavour, release.target.variant
    return Names(
        versions.image_meta(flavour, variant),
        versions.headers_meta(flavour, variant),
        versions.modules_meta(flavour, variant),
        {one.name: one.version for one in release.packages},
    )


@dataclass(frozen=True)
class Round:
    """One round of the gate."""

    settings: Settings
    view: View
    base: Base  # Debian's kernel of the target
    accelerator: Accelerator
    network: Path  # the namespace in which the view is served
    trees: Mapping[bool, Root]  # servers with Debian's kernel, without and with DKMS
    programs: Mapping[str, Path]  # observe and topology, compiled
    home: Path  # for trees and disks
    logs: Path
    read: listing.Read = field(default_factory=dict, repr=False)
    booted: set[machine.Running] = field(default_factory=set, repr=False)
    ended: threading.Event = field(default_factory=threading.Event, repr=False)

    @property
    def candidate(self) -> Release:
        """The release that is judged."""
        return self.view.candidate

    def end(self) -> None:
        """End all servers, and let no case go on; for a round that was interrupted."""
        self.ended.set()
        for one in list(self.booted):
            one.abandon()

    def _check_ended(self) -> None:
        if self.ended.is_set():
            raise InfrastructureError("the round was interrupted")

    # --- trees ------------------------------------------------------------------------------

    @contextlib.contextmanager
    def server(
        self, name: str, *, dkms: bool = False, tree: Root | None = None
    ) -> Iterator[Server]:
        """Yield a server with Debian's kernel, on which nothing of ours was ever installed.

        ``tree`` is another one than those of the round.
        """
        with self.copy(tree or self.trees[dkms], name) as made:
            place = made.root.path / TOOLS.lstrip("/")
            place.mkdir(parents=True)
            for program, path in self.programs.items():
                shutil.copy(path, place / program)
            shutil.copy(_HOLD, place / _HOLD.name)
            shutil.copy(self.view.keyring, made.root.path / _KEYRING.lstrip("/"))
            yield made

    @contextlib.contextmanager
    def copy(self, root: Root, name: str) -> Iterator[Server]:
        """Yield a copy of a tree; ``name`` is that of its directory and of its log."""
        self._check_ended()
        path = self.home / name
        fs.remove_tree(path)
        with server.copy(root, path, log=self.logs / f"{name}.log") as made:
            yield made

    def record(self, made: Server) -> dict[str, listing.Entry]:
        """Return all files of a tree, without those that only the gate needs."""
        found = listing.record(made.root.path, self.read)
        return {name: one for name, one in found.items() if not f"/{name}".startswith(TOOLS)}

    def run(
        self, made: Server, argv: Sequence[Arg], *, check: bool = True, binds: Sequence[Bind] = ()
    ) -> Completed:
        """Run a command in a tree, where the archive is at the same URL as in a booted server.

        Raises BuildError with the lines around the first error if it fails and ``check`` is set,
        and KilledError if it or a child was killed by SIGKILL, which says nothing of a release.
        """
        done = made.run(argv, check=False, network=self.network, binds=binds)
        if check and done.returncode != 0:
            raise failure(
                done,
                f"{shlex.join(os.fspath(one) for one in argv)}: {describe_status(done.returncode)}",
                found=around_the_error(done.stdout),
                log=made.log,
            )
        return done

    def apt(self, made: Server, *arguments: str, check: bool = True) -> Completed:
        """Run apt-get in a tree."""
        return self.run(made, ["apt-get", *arguments], check=check)

    def follow(self, made: Server, suite: str) -> None:
        """Let a tree trust the archive's keys, and follow one of its suites."""
        for argv in self.following(suite):
            self.run(made, argv)

    def following(self, suite: str) -> tuple[tuple[str, ...], ...]:
        """Return the commands by which a server trusts our keys and follows a suite."""
        path, text = self._sources(suite)
        return (
            ("dpkg", "--install", _KEYRING),
            ("sh", "-c", 'printf %s "$1" >"$2"', "sh", text, path),
            ("apt-get", "update", "--error-on=any"),
        )

    def _sources(self, suite: str) -> tuple[str, str]:
        """Return path and text of apt's source in the keyring's package, with the gate's URL."""
        with tempfile.TemporaryDirectory(prefix="cplayground-gate-") as name:
            place = Path(name)
            run(["dpkg-deb", "--extract", self.view.keyring, place], timeout_s=_READ_TIMEOUT_S)
            (found,) = place.rglob("*.sources")
            fields = {"URIs": wire.URL, "Suites": suite}
            # Without an address, the package's source is off.
            text = re.sub(r"^Enabled:.*\n", "", found.read_text(), flags=re.MULTILINE)
            for field_, value in fields.items():
                text = re.sub(rf"^{field_}:.*$", f"{field_}: {value}", text, flags=re.MULTILINE)
            return f"/{found.relative_to(place)}", text

    # --- boots ------------------------------------------------------------------------------

    @contextlib.contextmanager
    def disk(self, made: Server, *, write: Callable[..., Path] = disk.write) -> Iterator[Path]:
        """Yield a disk made of a tree by ``write``, for the time of the block."""
        path = self.home / f"{made.root.path.parent.name}.disk"
        try:
            yield write(made.root.path, path, log=made.log)
        finally:
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def running(
        self,
        trial: Trial,
        image: Path,
        what: str,
        *,
        changes: Path | None = None,
        firmware: Firmware | None = None,
        watchdog: bool = False,
        expected_taint: int = MODULE_TAINT,
        cut_at: re.Pattern[str] | None = None,
        settled: bool = True,
        patience: float = 1.0,
    ) -> Iterator[machine.Running]:
        """Boot a disk, yield the server, power it off, and note the boot in ``trial``.

        ``what`` names the server, and ``patience`` is a factor on the deadlines.
        :func:`kbuild.gate.machine.running` has the other options.
        """
        spec = ServerSpec(
            disk=image,
            accelerator=self.accelerator,
            network=self.network,
            changes=changes,
            firmware=firmware,
            watchdog=watchdog,
            slowness=patience,
        )
        workdir = self.logs / f"{trial.name}-{len(trial.boots) + 1}"
        began = time.monotonic()
        self._check_ended()
        with machine.running(
            spec, workdir, expected_taint=expected_taint, cut_at=cut_at, settled=settled
        ) as server:
            self.booted.add(server)
            try:
                yield server
                seen = server.finish()
            finally:
                self.booted.discard(server)
        trial.boots.append(
            BootSeen(
                what,
                seen.release,
                seen.verdict.outcome.label if cut_at is None else str(seen.end and seen.end.value),
                round(time.monotonic() - began, 1),
                str(seen.console),
            )
        )

    def boot(
        self,
        trial: Trial,
        image: Path,
        what: str,
        *,
        release: str,
        module: str | None,
        commands: Sequence[Command] = (),
        changes: Path | None = None,
        firmware: Firmware | None = None,
    ) -> Boot:
        """Boot a disk, judge it into ``trial``, and return what was seen.

        ``what`` names the server in reasons.  It must come up with the kernel ``release`` of
        GRUB's choice.  With ``module`` (:data:`PREBUILT`, :data:`BUILT`) the module must have been
        loaded by itself from there, and its file must agree with /proc; with BUILT, so must the
        tool with the file.  With None, this server has no module of ours.  ``commands`` come after
        that.  ``firmware`` is UEFI's, else the machine has a BIOS.
        """
        taint = 0 if module is None else MODULE_TAINT
        with self.running(
            trial, image, what, changes=changes, firmware=firmware, expected_taint=taint
        ) as server:
            return self.judge(
                trial, server, what, release=release, module=module, commands=commands
            )

    def judge(
        self,
        trial: Trial,
        server: machine.Running,
        what: str,
        *,
        release: str,
        module: str | None,
        commands: Sequence[Command] = (),
    ) -> Boot:
        """Judge a server that has come up into ``trial`` and power it off, as :meth:`boot` does."""
        found = list(_judge_module(server, module)) if module else []
        for command in commands:
            server.run(command)
        seen = server.finish()
        if seen.release != release and (seen.release or seen.verdict.passed):
            found.insert(0, f"the kernel {seen.release} runs, not {release}")
        trial.reasons += [f"{what}: {one}" for one in (*seen.verdict.reasons, *found)]
        if not seen.verdict.passed and not seen.verdict.reasons:
            trial.reasons.append(f"{what}: {seen.verdict.outcome.label}")
        return seen


def around_the_error(text: str) -> str:
    """Return the first error in the output of apt or dpkg, and the lines around it."""
    lines = text.splitlines()
    first = next((at for at, line in enumerate(lines) if _ERROR.search(line)), len(lines))
    return "\n".join(lines[max(0, first - _BEFORE) : first + _AFTER])


def _judge_module(running: machine.Running, place: str) -> Iterator[str]:
    """Yield what is wrong with the module in a booted server, which nothing loaded but systemd."""
    where = running.run(Command(("modinfo", "-n", MODULE), _ASKED_S))
    if where is None or where.status != 0:
        return
    if f"/{place}/{MODULE}.ko" not in where.text:
        yield f"the module is {where.text.strip()}, not the one in {place}/"
    loaded = running.run(Command(("grep", "-w", f"^{MODULE}", "/proc/modules"), _ASKED_S, None))
    if loaded is None:
        return
    if loaded.status != 0:
        yield "the module was not loaded by itself"
        return
    commands = (
        (f"{TOOLS}/{_HOLD.name}", "begin"),
        ("cat", PROCFILE),
        (f"{TOOLS}/observe",),
        # Names.dkms has the tool.
        *((_TOOL_JSON, _TOOL_LS) if place == BUILT else ()),
        (f"{TOOLS}/{_HOLD.name}", "end"),
    )
    done = [running.run(Command(argv, _OBSERVED_S)) for argv in commands]
    good = [one for one in done if one is not None and one.status == 0]
    if len(good) < len(done):
        # The boot has the fault already.
        return
    _, shown, seen, *told, _ = good
    try:
        processes = procfile.parse(shown.stdout)
        found = oracle.differences(processes, oracle.parse(seen.stdout))
    except ValueError as error:
        yield f"{PROCFILE} cannot be read: {error}"
        return
    if not processes:
        yield f"{PROCFILE} is empty while containers run"
    yield from (f"{PROCFILE}: {one}" for one in found[:_SHOWN])
    if told:
        document, table = told
        yield from tool_faults(processes, document.stdout, table.text)


def tool_faults(
    processes: Sequence[procfile.Process], document: bytes, table: str
) -> Iterator[str]:
    """Yield how the tool's JSON and its table differ from the module's file."""
    file = [
        (
            one.namespace,
            (one.pid, one.ns_pid, one.ns_ppid, one.ns_pgid),
            [(each.fd, each.cloexec, each.flags) for each in one.files],
        )
        for one in processes
    ]
    try:
        told = [
            (
                one["namespace_id"],
                tuple(one[key] for key in ("global_pid", "pid", "ppid", "pgid")),
                [tuple(each[key] for key in _OF_DESCRIPTOR) for each in one["descriptors"]],
            )
            for one in json.loads(document)["processes"]
        ]
    except (ValueError, LookupError, TypeError) as error:
        yield f"{shlex.join(_TOOL_JSON)} cannot be read: {error!r}"
        return
    if told != file:
        yield f"{shlex.join(_TOOL_JSON)} differs from {PROCFILE}"
    lines = [line.split() for line in table.splitlines()]
    # A process without an open file has a line, too.
    for one in processes:
        if not any(line[:2] == [str(one.ns_pid), str(one.pid)] for line in lines):
            yield f"{shlex.join(_TOOL_LS)} does not show the process {one.pid}"
