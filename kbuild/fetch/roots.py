"""Make roots: a root is a minimal Debian of one suite, made by mmdebstrap(1).

Compilers and packagers run in a root of the kernel's own suite, without network.  Source and
output lie at fixed paths, so two checkouts give the compiler cache and the kernel the same file
names.

Making a root needs root privileges.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

from kbuild.core import fs, results, stamp, suites
from kbuild.core.errors import ExpiredError, InfrastructureError, UserError
from kbuild.core.model import Root, Settings
from kbuild.core.run import Completed, need, run
from kbuild.core.sandbox import OWN_PROCESSES
from kbuild.core.secrets import redact_bytes
from kbuild.fetch import index, mirror

logger = logging.getLogger(__name__)

# Packages of a compile root on top of mmdebstrap's apt variant: the kernel's own build
# dependencies, and the tools that make Debian packages.
COMPILE_PACKAGES = (
    "bc",
    "bison",
    "build-essential",
    "ccache",
    "cpio",
    "debhelper",
    "dh-dkms",
    "fakeroot",
    "flex",
    "icecc",
    "kmod",
    "libelf-dev",
    "libssl-dev",
    "lintian",
    "lz4",
    "openssl",
    "pahole",
    "python3",
    "python3-kconfiglib",
    "rsync",
    "sparse",
    "xz-utils",
    "zstd",
)

# Packages of a guest before ours are installed.  An administrator's machine needs them to install
# a kernel and to build a module for it.
GUEST_PACKAGES = (
    "dkms",
    "gcc",
    "grub-common",
    "initramfs-tools",
    "kmod",
    "libc6-dev",
    # libraries of the programs in a headers package
    "libelf1",
    "libssl3",
    "linux-base",
    "make",
    "mount",
    "procps",
    # for the tool
    "python3",
    # a workload that we did not write
    "stress-ng",
    "udev",
    "zstd",
)

# Runtimes whose containers the tests look at, in a guest of their own.
RUNTIMES = ("bubblewrap", "crun", "podman", "systemd-container")

# The oldest Debian that the tool runs on; debian/cplayground/control.j2 has its Python's version.
_OLDEST_PYTHON = "bullseye"

_MAKE_TIMEOUT_S = 1800.0
_FORMAT = "1"
# apt's message about an InRelease past its Valid-Until.
_EXPIRED = re.compile(r"Release file for \S+ is expired[^\n]*")


def compile_root(settings: Settings, suite: str, *, refresh: str | None = None) -> Root:
    """Return the root in which kernels and packages of ``suite`` are built."""
    return make_root(settings, suite, "compile", compile_packages(suite), refresh=refresh)


def guest_root(settings: Settings, suite: str, tools: Sequence[str] = ()) -> Root:
    """Return the root that guests of ``suite`` are copied from, without our packages.

    With ``tools``, which are further Debian packages, it is a root of its own.
    """
    return make_root(settings, suite, *_of_guest(suite, tools))


def why_make_guest(settings: Settings, suite: str, tools: Sequence[str] = ()) -> str | None:
    """Return why :func:`guest_root` would make a root, or None if the cache has it."""
    return why_make(settings, suite, *_of_guest(suite, tools))


def _of_guest(suite: str, tools: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """Return the kind of a guest's root, and its packages."""
    return "guest-tools" if tools else "guest", (*guest_packages(suite), *tools)


def oldest_python_root(settings: Settings) -> Root:
    """Return the root with the oldest Python that the tool runs on, and little else."""
    return make_root(settings, _OLDEST_PYTHON, "python", ("python3",))


def compile_packages(suite: str) -> tuple[str, ...]:
    """Return the packages of a suite's compile root, by their names in that suite."""
    row = suites.suite(suite)
    return (*row.packages(COMPILE_PACKAGES), *row.compile)


def guest_packages(suite: str) -> tuple[str, ...]:
    """Return the packages of a suite's guest root, by their names in that suite."""
    row = suites.suite(suite)
    return (*row.packages(GUEST_PACKAGES), *row.guest)


def root_inputs(suite: str, kind: str, packages: Sequence[str]) -> dict[str, str]:
    """Return the inputs that identify the right root in the cache."""
    return {
        "format": _FORMAT,
        "suite": suite,
        "kind": kind,
        "packages": " ".join(sorted(packages)),
    }


def root_path(settings: Settings, suite: str, kind: str, packages: Sequence[str]) -> Path:
    """Return the path of that root in the cache, whether it exists or not."""
    key = stamp.digest(root_inputs(suite, kind, packages))[:12]
    return settings.cache / "roots" / f"{suite}-{kind}-{key}"


def why_make(settings: Settings, suite: str, kind: str, packages: Sequence[str]) -> str | None:
    """Return why :func:`make_root` would make a root, or None if the cache has it."""
    inputs = root_inputs(suite, kind, packages)
    return stamp.reason(root_path(settings, suite, kind, packages) / "stamp.json", inputs)


def make_root(
    settings: Settings,
    suite: str,
    kind: str,
    packages: Sequence[str],
    *,
    refresh: str | None = None,
) -> Root:
    """Return a root of the cache, made from the archive if it is missing.

    ``refresh`` is a reason to make it again: the suite's compiler was updated.  Raises
    InfrastructureError if mmdebstrap fails or is needed offline, ExpiredError if an index has
    expired, and UserError without root privileges.
    """
    inputs = root_inputs(suite, kind, packages)
    home = root_path(settings, suite, kind, packages)

    def check() -> str | None:
        return refresh or _why_not_kept(home)

    def before(why: str) -> None:
        if settings.offline:
            raise InfrastructureError(
                f"the {kind} root of {suite} is missing or damaged, and this run is offline",
                expected=str(home),
                found=why,
                hint="run this once without --offline",
            )
        check_privileges()

    versions = results.kept(
        home / "stamp.json",
        inputs,
        lambda scratch: _bootstrap(settings, suite, kind, packages, scratch),
        lambda: _versions(home),
        lock=home.with_name(home.name + ".lock"),
        doing=f"making the {kind} root of {suite} with mmdebstrap (about a minute)",
        fresh=True,
        check=check,
        before=before,
    ).ensure()
    fs.mark_used(home)
    return Root(
        suite=suite,
        path=home / "root",
        digest=stamp.digest(inputs | {f"version of {k}": v for k, v in versions.items()}),
        versions=versions,
    )


def _why_not_kept(home: Path) -> str | None:
    """Let dpkg verify a root of an earlier version, which has no record of its files."""
    last = stamp.read(home / "stamp.json")
    if last is None or None not in last.outputs.values():
        return None
    said = run(["dpkg", f"--root={home / 'root'}", "--verify"], timeout_s=600, check=False).stdout
    # A "c" marks a conffile, which a root's own maintainer scripts may have changed.
    damaged = [line.split()[-1] for line in said.splitlines() if " c " not in line]
    return f"dpkg finds {len(damaged)} damaged files: {damaged[0]}" if damaged else None


def _versions(home: Path) -> dict[str, str] | None:
    return fs.read_json(home / "packages.json", dict)


def check_privileges() -> None:
    """Raise UserError without root privileges, before anything is downloaded."""
    if os.geteuid() != 0:
        raise UserError(
            "making and entering a root needs root privileges",
            found=f"uid {os.geteuid()}",
            hint="run the same command with sudo; each download is verified before it is used",
        )


def _bootstrap(
    settings: Settings, suite: str, kind: str, packages: Sequence[str], scratch: Path
) -> list[Path]:
    """Make a root in ``scratch``; the old one stays until then, because no mirror may answer."""
    log = settings.build / "logs" / f"root-{suite}-{kind}.log"
    log.unlink(missing_ok=True)
    _debootstrap(settings, suite, kind, packages, scratch / "root", log)
    _hide_passwords(scratch / "root/etc/apt")
    database = scratch / "root/var/lib/dpkg"
    query = ["dpkg-query", f"--admindir={database}", "-W", "-f", "${Package} ${Version}\\n"]
    listing = run(query, timeout_s=60).stdout
    versions = dict(line.split(" ", 1) for line in listing.splitlines())
    fs.write_json(scratch / "packages.json", versions)
    return [scratch / "root", scratch / "packages.json"]


def _hide_passwords(apt: Path) -> None:
    """Remove the passwords of mirrors and proxies from the apt configuration that a root keeps."""
    for name in ("sources.list", "sources.list.d/*", "apt.conf", "apt.conf.d/*"):
        for path in apt.glob(name):
            fs.write_if_changed(path, redact_bytes(path.read_bytes()))


def _debootstrap(
    settings: Settings,
    suite: str,
    kind: str,
    packages: Sequence[str],
    into: Path,
    log: Path,
) -> Completed:
    options = ['--aptopt=Acquire::Retries "5"']
    if settings.accept_expired:
        options.append('--aptopt=Acquire::Check-Valid-Until "false"')
    try:
        with mirror.private(settings) as private:
            completed = run(
                [
                    *OWN_PROCESSES,
                    need("mmdebstrap"),
                    "--mode=root",
                    "--variant=apt",
                    f"--include={','.join(packages)}",
                    *options,
                    *private.options,
                    suites.suite(suite).codename,
                    into,
                    "-",
                ],
                data=index.sources_list(settings, suite).encode(),
                timeout_s=_MAKE_TIMEOUT_S,
                log=log,
                error=InfrastructureError,
                hint="read the log; if a mirror cannot be reached, add another with --mirror",
            )
            private.remove(into)
        return completed
    except InfrastructureError as error:
        # The index check covers only the dists of the kernel, which may be fewer.
        said = _EXPIRED.search(log.read_text(errors="replace")) if log.exists() else None
        if said is None:
            raise
        raise ExpiredError(
            f"an index for the {kind} root of {suite} has expired",
            expected="a mirror that is kept up to date",
            found=said[0],
            log=log,
            hint="add another mirror with --mirror, or accept the old index with --accept-expired",
        ) from error
