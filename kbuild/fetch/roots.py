"""Roots: a minimal Debian of one suite, made by mmdebstrap(1).

Compilers and packagers run in a root of the kernel's own suite, without network, with
the source and the output at fixed paths: two checkouts then give the compiler cache and
the kernel the same file names.

Making a root needs root privileges.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from kbuild.core import fs, stamp, suites
from kbuild.core.errors import InfrastructureError, TrustError, UserError
from kbuild.core.model import Root, Settings
from kbuild.core.run import Completed, need, run
from kbuild.core.sandbox import OWN_PROCESSES
from kbuild.core.secrets import redact_bytes
from kbuild.fetch import index, mirror

logger = logging.getLogger(__name__)

# What a compile root holds beside mmdebstrap's apt variant: the kernel's own build
# dependencies, and what turns the result into Debian packages.
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

# What a guest holds before our packages come: what an administrator's machine has that
# installs a kernel and builds a module for it.
GUEST_PACKAGES = (
    "dkms",
    "gcc",
    "grub-common",
    "initramfs-tools",
    "kmod",
    "libc6-dev",
    # what the programs in a headers package are linked with
    "libelf1",
    "libssl3",
    "linux-base",
    "make",
    "mount",
    "procps",
    # a load that we did not write
    "stress-ng",
    "udev",
    "zstd",
)

_MAKE_TIMEOUT_S = 1800.0
_FORMAT = "1"
# What apt says of an InRelease that is past its Valid-Until.
_EXPIRED = re.compile(r"Release file for \S+ is expired[^\n]*")


def compile_root(settings: Settings, suite: str, *, refresh: bool = False) -> Root:
    """Return the root that kernels and packages of ``suite`` are built in."""
    return make_root(settings, suite, "compile", compile_packages(suite), refresh=refresh)


def guest_root(settings: Settings, suite: str) -> Root:
    """Return the root that guests of ``suite`` are copied from, before our packages."""
    return make_root(settings, suite, "guest", guest_packages(suite))


def compile_packages(suite: str) -> tuple[str, ...]:
    """Return what a compile root of a suite holds, by the names that packages have there."""
    row = suites.suite(suite)
    return (*row.packages(COMPILE_PACKAGES), *row.compile)


def guest_packages(suite: str) -> tuple[str, ...]:
    """Return what a guest's root of a suite holds, by the names that packages have there."""
    row = suites.suite(suite)
    return (*row.packages(GUEST_PACKAGES), *row.guest)


def root_inputs(suite: str, kind: str, packages: Sequence[str]) -> dict[str, str]:
    """Return the manifest that decides which root of the cache is the right one."""
    return {
        "format": _FORMAT,
        "suite": suite,
        "kind": kind,
        "packages": " ".join(sorted(packages)),
    }


def root_path(settings: Settings, suite: str, kind: str, packages: Sequence[str]) -> Path:
    """Return where the cache keeps that root, whether it is there or not."""
    key = stamp.digest(root_inputs(suite, kind, packages))[:12]
    return settings.cache / "roots" / f"{suite}-{kind}-{key}"


def why_make(settings: Settings, suite: str, kind: str, packages: Sequence[str]) -> str | None:
    """Say why :func:`make_root` would make a root, or None when the cache has it."""
    inputs = root_inputs(suite, kind, packages)
    return stamp.reason(root_path(settings, suite, kind, packages) / "stamp.json", inputs)


def make_root(
    settings: Settings, suite: str, kind: str, packages: Sequence[str], *, refresh: bool = False
) -> Root:
    """Return a root of the cache, made from the archive if it is not there.

    ``refresh`` makes it again, for a suite whose compiler has moved on.  Raises
    InfrastructureError when mmdebstrap fails or when it is missing in offline mode, TrustError
    for an index that has expired, UserError without root privileges.
    """
    inputs = root_inputs(suite, kind, packages)
    home = root_path(settings, suite, kind, packages)
    with fs.lock(home.with_name(home.name + ".lock")):
        why = _why_not_kept(home) or stamp.due(home / "stamp.json", inputs)
        versions = None if refresh or why else _versions(home)
        if versions is None:
            if settings.offline:
                raise InfrastructureError(
                    f"the {kind} root of {suite} is not in the cache, or damaged, and this run is "
                    "offline",
                    expected=str(home),
                    found=why,
                    hint="run once without --offline",
                )
            if why and home.is_dir():
                logger.info("%s: %s", home, why)
            _bootstrap(settings, suite, kind, packages, home, inputs)
            versions = _versions(home) or {}
    fs.mark_used(home)
    return Root(
        suite=suite,
        path=home / "root",
        digest=stamp.digest(inputs | {f"version of {k}": v for k, v in versions.items()}),
        versions=versions,
    )


def _why_not_kept(home: Path) -> str | None:
    """Have dpkg read a root of an earlier version, which recorded nothing of its files."""
    last = stamp.read(home / "stamp.json")
    if last is None or None not in last.outputs.values():
        return None
    said = run(["dpkg", f"--root={home / 'root'}", "--verify"], timeout_s=600, check=False).stdout
    # A "c" is a conffile, which a root's own scripts may have changed.
    damaged = [line.split()[-1] for line in said.splitlines() if " c " not in line]
    return f"dpkg finds {len(damaged)} damaged files: {damaged[0]}" if damaged else None


def _versions(home: Path) -> dict[str, str] | None:
    return fs.read_json(home / "packages.json", dict)


def check_privileges() -> None:
    """Raise UserError without root privileges, before anything is downloaded in vain."""
    if os.geteuid() != 0:
        raise UserError(
            "making a root and entering it needs root privileges",
            found=f"uid {os.geteuid()}",
            hint="run the same command with sudo; what it downloads and runs is verified first",
        )


def _bootstrap(
    settings: Settings,
    suite: str,
    kind: str,
    packages: Sequence[str],
    home: Path,
    inputs: Mapping[str, str],
) -> None:
    check_privileges()
    logger.info("making the %s root of %s with mmdebstrap (about a minute)", kind, suite)
    # Scratch of a run that was killed; the lock says that nobody is at work in it.
    for left in home.parent.glob(f".{home.name}.*"):
        fs.remove_tree(left)
    log = settings.build / "logs" / f"root-{suite}-{kind}.log"
    log.unlink(missing_ok=True)
    # A root that is there stays until the new one is whole: a mirror may be away.
    with fs.fresh_directory(home) as scratch:
        completed = _debootstrap(settings, suite, kind, packages, scratch / "root", log)
        _hide_passwords(scratch / "root/etc/apt")
        database = scratch / "root/var/lib/dpkg"
        query = ["dpkg-query", f"--admindir={database}", "-W", "-f", "${Package} ${Version}\\n"]
        listing = run(query, timeout_s=60).stdout
        versions = dict(line.split(" ", 1) for line in listing.splitlines())
        fs.write_json(scratch / "packages.json", versions)
        outputs = [scratch / "root", scratch / "packages.json"]
        stamp.write(scratch / "stamp.json", inputs, outputs, completed.seconds, sync=False)


def _hide_passwords(apt: Path) -> None:
    """Leave no password of a mirror or a proxy in apt's configuration of a root, which stays."""
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
                hint="see the log; a mirror may be out of reach: give another with --mirror",
            )
            private.remove(into)
        return completed
    except InfrastructureError as error:
        # Not every dist of a root is one that its kernel comes from, and so checked before.
        said = _EXPIRED.search(log.read_text(errors="replace")) if log.exists() else None
        if said is None:
            raise
        raise TrustError(
            f"an index that the {kind} root of {suite} is made from has expired",
            expected="a mirror that is updated",
            found=said[0],
            log=log,
            hint="give another mirror with --mirror, or take it as it is with --accept-expired",
        ) from error
