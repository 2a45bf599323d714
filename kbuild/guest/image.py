"""A bootable disk image, with packages installed by apt as an administrator would.

apt takes our packages from our own repository, and Debian's stock kernel from local files.  The
packages' own hooks make the initrds and let DKMS build the module for every kernel.  Only the
agent and the tests' modules are added afterwards.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kbuild.core import fs, results, run, sandbox, suites
from kbuild.core.errors import BuildError, InfrastructureError
from kbuild.core.model import Kernel, Root
from kbuild.core.progress import size
from kbuild.guest.spec import AGENT, MISBEHAVE

logger = logging.getLogger(__name__)

_FORMAT = "4"
_SLACK_BYTES = 256 << 20  # free space for tests
_APT_TIMEOUT_S = 900.0
_COPY_TIMEOUT_S = 600.0
_DESCRIPTION = "image.json"
_AGENT_SOURCE = Path(__file__).with_name("agent.c")
_MODULE_SOURCES = Path(__file__).with_name("modules")
# Modules that are built for each kernel in the image, into the directory of MISBEHAVE.
_TEST_MODULES = ("misbehave", "peek", "format_test")
# This one tests a header of kmod/, and is built only for kernels with KUnit.
_KUNIT = "format_test"

# The policy that packages start no services, because no system runs here.
_POLICY = "#!/bin/sh\nexit 101\n"
_APT_OPTIONS = (
    "--yes",
    "--no-install-recommends",
    "--option=Dpkg::Use-Pty=0",
    "--option=APT::Sandbox::User=root",
    "--option=Dir::Etc::SourceList=/dev/null",
    "--option=Dir::Etc::SourceParts=/mnt/guest/sources",
)


@dataclass(frozen=True)
class GuestImage:
    """A disk that boots each of its kernels, and the directory with these kernels next to it."""

    disk: Path  # raw ext4, sparse, root=/dev/vda
    kernels: tuple[Kernel, ...]  # ours first

    @property
    def description(self) -> Path:
        """The image's JSON file, for :func:`read`."""
        return self.disk.parent / _DESCRIPTION


def is_ours(kernel: Kernel) -> bool:
    """Return whether a kernel is one of this project, not one of Debian's."""
    return suites.is_ours(kernel.release)


def read(description: Path) -> GuestImage:
    """Read the description that :func:`make` wrote; raises InfrastructureError without one."""
    try:
        raw = json.loads(description.read_text())
        home = description.parent
        return GuestImage(
            disk=home / raw["disk"],
            kernels=tuple(
                Kernel(k, suites.flavour_of(k), home / "kernels") for k in raw["kernels"]
            ),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InfrastructureError(
            f"there is no guest image at {description}",
            found=str(error),
            hint="run './inv test', which makes it",
        ) from error


def make(
    root: Root,
    *,
    repo: Path | None,
    packages: Sequence[str],
    debs: Sequence[Path],
    tested: Path,
    home: Path,
    inputs: Mapping[str, str],
    log: Path,
) -> GuestImage:
    """Return the image of ``root`` with packages installed, and make it if an input changed.

    ``packages`` are installed by name from ``repo``, an apt repository (dists/<suite>).  ``debs``
    are package files, such as the stock kernel and its headers, for the same run of apt.
    ``tested`` is the header of kmod/ that the KUnit module tests.  ``home`` receives the result,
    and ``log`` the output of apt, dpkg and DKMS.  ``inputs`` is the caller's part of the manifest.
    Raises BuildError, with DKMS's own log, when a package does not install.
    """
    manifest = {
        "format": _FORMAT,
        "root": root.digest,
        "packages": " ".join(packages),
        "agent": fs.sha256_file(_AGENT_SOURCE),
        **{f"module {name}": fs.sha256_tree(_MODULE_SOURCES / name) for name in _TEST_MODULES},
        tested.name: fs.sha256_file(tested),
        **{f"deb {deb.name}": fs.sha256_file(deb) for deb in debs},
        **inputs,
    }

    def make(scratch: Path) -> list[Path]:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.unlink(missing_ok=True)
        _fill(scratch, root, repo, packages, debs, tested, log)
        return [scratch / name for name in ("disk.img", "kernels", _DESCRIPTION)]

    return results.kept(
        home / "stamp.json",
        manifest,
        make,
        lambda: read(home / _DESCRIPTION),
        lock=home.with_name(home.name + ".lock"),
        doing="making the guest image",
        fresh=True,
    ).ensure()


def _fill(
    scratch: Path,
    root: Root,
    repo: Path | None,
    packages: Sequence[str],
    debs: Sequence[Path],
    tested: Path,
    log: Path,
) -> None:
    with _copy_of(root, scratch / "root") as copy:
        material = scratch / "material"
        _prepare(material, copy, root.suite, repo, debs, tested)
        _install(copy, material, repo, packages, debs, log)
        releases = _releases(copy)
        _compile(copy, material, releases, log)
        sandbox.enter(
            copy,
            ["sh", "-c", "apt-get clean && rmdir /mnt/guest /mnt/repo"],
            timeout_s=60,
            writable=True,
            log=log,
        )
        kernels = scratch / "kernels" / "boot"
        kernels.mkdir(parents=True)
        for release in releases:
            for name in (f"vmlinuz-{release}", f"initrd.img-{release}"):
                # QEMU reads them as a user of its own.
                _do("install", "-m644", "--", copy.path / "boot" / name, kernels / name)
        _write_disk(copy.path, scratch / "disk.img", log)
        fs.remove_tree(material)
    fs.write_json(scratch / _DESCRIPTION, {"disk": "disk.img", "kernels": releases})


@contextlib.contextmanager
def _copy_of(root: Root, path: Path) -> Iterator[Root]:
    _do("cp", "-a", "--reflink=auto", "--", root.path, path)
    try:
        # bwrap needs the mount points.
        _do("mkdir", "-p", path / "mnt" / "guest", path / "mnt" / "repo")
        yield Root(root.suite, path, root.digest, root.versions)
    finally:
        fs.remove_tree(path)


def _prepare(
    material: Path,
    copy: Root,
    suite: str,
    repo: Path | None,
    debs: Sequence[Path],
    tested: Path,
) -> None:
    (material / "sources").mkdir(parents=True)
    (material / "debs").mkdir()
    if repo is not None:
        line = f"deb [signed-by=/mnt/repo/cplayground.gpg] file:/mnt/repo {suite} main\n"
        (material / "sources" / "cplayground.list").write_text(line)
    for deb in debs:
        shutil.copyfile(deb, material / "debs" / deb.name)
    for name in _TEST_MODULES:
        shutil.copytree(_MODULE_SOURCES / name, material / "source" / name)
    shutil.copy(tested, material / "source" / _KUNIT)
    shutil.copyfile(_AGENT_SOURCE, material / "source" / "agent.c")
    policy = material / "policy-rc.d"
    policy.write_text(_POLICY)
    policy.chmod(0o755)
    _do("cp", "--", policy, copy.path / "usr" / "sbin" / "policy-rc.d")


def _install(
    copy: Root,
    material: Path,
    repo: Path | None,
    packages: Sequence[str],
    debs: Sequence[Path],
    log: Path,
) -> None:
    binds = [sandbox.Bind(material, "/mnt/guest")]
    binds += [sandbox.Bind(repo, "/mnt/repo")] if repo is not None else []
    wanted = [*packages, *(f"/mnt/guest/debs/{deb.name}" for deb in debs)]
    for argv, hint in (
        (["apt-get", *_APT_OPTIONS, "update"], "check that the repository is complete"),
        (["apt-get", *_APT_OPTIONS, "install", *wanted], None),
    ):
        try:
            sandbox.enter(
                copy,
                argv,
                timeout_s=_APT_TIMEOUT_S,
                binds=binds,
                env={"DEBIAN_FRONTEND": "noninteractive"},
                writable=True,
                log=log,
            )
        except BuildError as error:
            raise BuildError(
                "the packages cannot be installed in a guest",
                expected=" ".join(argv) + " to succeed",
                found=_dkms_log(copy) or relevant_lines(log.read_text(errors="replace")),
                log=log,
                hint=hint,
            ) from error


_TELLING = re.compile(r"^(E|W|Err|dpkg|Error!|Bad return status)[: ]|error:|unmet dep|Depends:")


def relevant_lines(text: str, limit: int = 20) -> str:
    """Return the lines of an apt log that describe errors, or the last lines."""
    lines = text.splitlines()
    telling = [line for line in lines if _TELLING.search(line)]
    return "\n".join((telling or lines)[-limit:])


def _dkms_log(copy: Root) -> str | None:
    """Return the first error of a failed module build with its context, None without one."""
    for path in sorted((copy.path / "var" / "lib" / "dkms").glob("*/*/build/make.log")):
        lines = path.read_text(errors="replace").splitlines()
        first = next((i for i, line in enumerate(lines) if "rror" in line), None)
        if first is not None:
            inside = path.relative_to(copy.path)
            return "\n".join([f"/{inside}:", *lines[max(0, first - 2) : first + 15]])
    return None


def _releases(copy: Root) -> list[str]:
    found = [p.name.removeprefix("vmlinuz-") for p in (copy.path / "boot").glob("vmlinuz-*")]
    for release in found:
        initrd = copy.path / "boot" / f"initrd.img-{release}"
        if not initrd.exists():
            raise BuildError(
                f"the package of {release} made no initrd",
                expected=str(initrd),
                hint="its postinst must run /etc/kernel/postinst.d",
            )
    if not found:
        raise BuildError("no kernel was installed in the guest", expected="boot/vmlinuz-<release>")
    return sorted(found, key=lambda release: (not suites.is_ours(release), release))


def _compile(copy: Root, material: Path, releases: Sequence[str], log: Path) -> None:
    def inside(*argv: str) -> None:
        sandbox.enter(
            copy,
            argv,
            timeout_s=300,
            binds=[sandbox.Bind(material, "/mnt/guest", writable=True)],
            writable=True,
            log=log,
        )

    inside("mkdir", "-p", str(Path(AGENT).parent))
    inside(
        *("gcc", "-std=gnu11", "-O2", "-static", "-Wall"),
        *("-o", AGENT, "/mnt/guest/source/agent.c"),
    )
    # These commands of other packages need another init than the agent.
    for name in ("reboot", "poweroff", "halt"):
        inside("ln", "-sf", AGENT, f"/usr/sbin/{name}")
    for release in releases:
        build = copy.path / "lib" / "modules" / release / "build"
        if not build.is_symlink() and not build.exists():
            logger.info("the guest has no headers of %s, so not the tests' modules either", release)
            continue
        config = copy.path / "boot" / f"config-{release}"
        has_kunit = "CONFIG_KUNIT=y" in config.read_text().splitlines()
        for name in _TEST_MODULES:
            if name == _KUNIT and not has_kunit:
                continue
            source = f"/mnt/guest/source/{name}"
            make = ("make", "-C", f"/lib/modules/{release}/build", f"M={source}")
            inside(*make, "modules")
            target = Path(MISBEHAVE.format(release=release)).with_name(f"{name}.ko")
            inside("install", "-D", "-m644", f"{source}/{name}.ko", str(target))
            inside(*make, "clean")


def _write_disk(root: Path, disk: Path, log: Path) -> None:
    listing = _do("du", "-s", "-B1", "--apparent-size", "--", root).split()[0]
    files = _do("find", root, "-printf", ".")
    # The sum has a block per file for rounding, and room for ext4's own data.
    total = int(int(listing) * 1.1) + len(files) * 4096 + _SLACK_BYTES
    with disk.open("wb") as stream:
        stream.truncate(total >> 20 << 20)
    disk.chmod(0o644)
    run.run(
        [
            *("mke2fs", "-q", "-F", "-t", "ext4", "-L", "cplayground", "-m", "0"),
            # The image is never written, so a journal would only cost time and space.
            *("-O", "^has_journal", "-E", "lazy_itable_init=1", "-d", root, disk),
        ],
        timeout_s=_COPY_TIMEOUT_S,
        log=log,
        error=InfrastructureError,
    )
    logger.info("guest disk: %s of content", size(float(listing)))


def _do(*argv: run.Arg) -> str:
    return run.run(argv, timeout_s=_COPY_TIMEOUT_S, error=InfrastructureError).stdout
