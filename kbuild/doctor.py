"""Check what this machine has and lacks for the tasks, and say how to get it.

Every check gives a finding and none raises, so that all problems are listed at once.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kbuild.core import fs, places, progress, table
from kbuild.core.errors import KbuildError, UserError
from kbuild.core.model import Settings
from kbuild.core.run import which
from kbuild.core.secrets import redact
from kbuild.fetch import mirror
from kbuild.guest import qemu

# From empty caches: a cloud-amd64 build, the compile root, the guest's root and the packages.
DISK_NEEDED = 15 * 10**9  # bytes
# For compilers and a guest; linking a full build of amd64 needs about as much.
MEMORY_NEEDED = 3 * 10**9  # bytes
_PYTHON_NEEDED = (3, 11)


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    ``detail`` is a fact if ``ok``, else the reason in sentences.  ``remedy`` then says in
    sentences what to do.
    """

    name: str
    ok: bool
    detail: str
    remedy: str = ""


def _judged(name: str, ok: bool, fact: str, reason: str, remedy: str) -> Finding:
    return Finding(name, True, fact) if ok else Finding(name, False, reason, remedy)


@dataclass(frozen=True)
class HostPackage:
    """A line of host-packages.txt: a Debian package, the files it must provide, and why."""

    name: str
    needs: tuple[str, ...]  # programs, or absolute paths of files
    why: str


def host_packages(path: Path) -> tuple[HostPackage, ...]:
    """Read the list of Debian packages that ``inv`` installs.

    Raises UserError for a line without its three columns.
    """
    packages = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        columns = line.split(None, 2)
        if len(columns) != 3:
            raise UserError(
                f"{path.name} line {number} is incomplete",
                expected="three columns: package, what must be found, why",
                found=line,
            )
        name, needs, why = columns
        packages.append(
            HostPackage(name, () if needs == "-" else tuple(needs.split(",")), why.strip())
        )
    return tuple(packages)


def check(settings: Settings) -> tuple[Finding, ...]:
    """Check everything that the tasks need, and return a finding for each."""
    sections: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
        _programs,
        _python,
        _privileges,
        _places,
        _resources,
        _accelerator,
        _mirrors,
        _caches,
    )
    findings: list[Finding] = []
    for section in sections:
        try:
            findings.extend(section(settings))
        except (KbuildError, OSError, ValueError, KeyError) as error:
            name = section.__name__.strip("_").replace("_", " ")
            what, hint = f"{type(error).__name__}: {error}", ""
            if isinstance(error, KbuildError):
                what, hint = error.what, error.hint or ""
            reason = f"This could not be checked. {_sentence(what)}"
            findings.append(Finding(name, False, reason, _sentence(hint)))
    return tuple(findings)


def healthy(findings: tuple[Finding, ...]) -> bool:
    """Return whether every finding is ok."""
    return all(finding.ok for finding in findings)


def render(findings: tuple[Finding, ...], *, width: int | None = None) -> str:
    """Return the findings as a table, followed by the remedies of the bad ones."""
    rows = [("ok" if one.ok else "MISSING", one.name, one.detail) for one in findings]
    remedies = [f"{one.name}: {one.remedy}\n" for one in findings if not one.ok and one.remedy]
    return table.text(("", "", ""), rows, unbroken=2, width=width) + "".join(remedies)


def _sentence(text: str) -> str:
    """Make a sentence of an error's text, which has no capital letter and no full stop."""
    text = text.strip().rstrip(".")
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _programs(settings: Settings) -> Iterator[Finding]:
    for package in host_packages(settings.project / "host-packages.txt"):
        for need in package.needs:
            found = Path(need) if need.startswith("/") and Path(need).exists() else which(need)
            yield _judged(
                need,
                found is not None,
                str(found),
                f"It was not found. Its package is {package.name}, which {package.why}.",
                f"Run 'apt-get install --no-install-recommends {package.name}' as root,"
                " or let ./inv do it.",
            )


def _python(settings: Settings) -> Iterator[Finding]:
    running = ".".join(str(part) for part in sys.version_info[:3])
    wanted = ".".join(str(part) for part in _PYTHON_NEEDED)
    yield _judged(
        "Python",
        sys.version_info >= _PYTHON_NEEDED,
        f"{running} at {sys.executable}",
        f"{sys.executable} is Python {running}, and the tasks need {wanted} or newer.",
        "Debian 12 has one. Remove .venv and run ./inv.",
    )


def _privileges(settings: Settings) -> Iterator[Finding]:
    uid = os.geteuid()
    yield _judged(
        "privileges",
        uid == 0,
        "root",
        f"User {uid} is not root. Only root can make and enter the roots that compilers run in.",
        "Run 'sudo ./inv ...'.",
    )


def _places(settings: Settings) -> Iterator[Finding]:
    try:
        places.check(settings)
    except KbuildError as error:
        detail = f"{error.what}: {error.found}" if error.found else error.what
        yield Finding("places", False, _sentence(detail), _sentence(error.hint or ""))


def _resources(settings: Settings) -> Iterator[Finding]:
    for what, path in (("disk for build/", settings.build), ("disk for caches", settings.cache)):
        free = shutil.disk_usage(_existing(path)).free
        fact = f"{progress.size(free)} free at {path}, about {progress.size(DISK_NEEDED)} needed"
        yield _judged(
            what,
            free >= DISK_NEEDED,
            fact,
            f"{path} has {progress.size(free)} free, and a cold build needs about"
            f" {progress.size(DISK_NEEDED)}.",
            "Free space with './inv clean --unused 30', or put XDG_CACHE_HOME on another disk.",
        )
    memory = memory_available(Path("/proc/meminfo").read_text(encoding="ascii"))
    needed = progress.size(MEMORY_NEEDED)
    yield _judged(
        "memory",
        memory >= MEMORY_NEEDED,
        f"{progress.size(memory)} available, {needed} needed",
        f"Only {progress.size(memory)} is available, and compilers and guests need {needed}.",
        "End other programs, or use fewer --jobs.",
    )
    cores = len(os.sched_getaffinity(0))
    yield Finding("cores", True, f"{cores} usable, {settings.jobs} jobs asked for")


def memory_available(meminfo: str) -> int:
    """Return the bytes that proc(5)'s meminfo calls available; raises ValueError without it."""
    for line in meminfo.splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise ValueError("/proc/meminfo has no MemAvailable line")


def _accelerator(settings: Settings) -> Iterator[Finding]:
    """Find the accelerator; never a failure, because without KVM everything works, only slower."""
    device = Path("/dev/kvm")
    if not device.exists():
        detail = "no /dev/kvm: guests run under TCG, some ten times slower"
    elif not os.access(device, os.R_OK | os.W_OK):
        detail = "/dev/kvm exists, but this user is not in group kvm: guests run under TCG"
    else:
        detail = "/dev/kvm exists; it is used after a guest has booted with it in a trial"
    yield Finding("accelerator", True, detail)
    # The trials of kbuild.guest.qemu.  It repeats them after a new kernel or QEMU.
    for path in sorted((settings.cache / "accelerator").glob("*.json")):
        tried = qemu.read_choice(path)
        detail = (
            f"{tried.accelerator.name}: {tried.evidence}"
            if tried
            else f"{path} is damaged: the next guest repeats the trial"
        )
        yield Finding("accelerator tried", True, detail)


def _mirrors(settings: Settings) -> Iterator[Finding]:
    """Name the archives that fetch would use, without connecting to them."""
    found = mirror.find(settings)
    for name, urls in (("mirror", found.main), ("mirror (security)", found.security)):
        yield _judged(
            name,
            bool(urls),
            ", ".join(map(redact, urls)),
            "Apt's configuration names no mirror for it.",
            "Name one with --mirror URL.",
        )


def _caches(settings: Settings) -> Iterator[Finding]:
    parts = sorted(settings.cache.iterdir()) if settings.cache.is_dir() else []
    sizes = [f"{part.name} {progress.size(fs.disk_usage(part))}" for part in parts if part.is_dir()]
    yield _judged(
        "caches",
        os.access(_existing(settings.cache), os.W_OK),
        f"{settings.cache}: {', '.join(sizes) or 'empty'}; safe to delete",
        f"{settings.cache} cannot be written.",
        "Correct its owner, or set XDG_CACHE_HOME.",
    )


def _existing(path: Path) -> Path:
    """Return ``path``, or the nearest directory above it that exists."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())
