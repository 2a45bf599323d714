"""Build a release again from nothing, as another machine would, and compare it bit for bit.

The second build uses a copy of the recorded commit in another directory.  Its build directory and
compiler cache are empty; its host name, user, home, time zone, umask and number of jobs are
others.  It runs later, but the clock of the machine is not changed.  The verified downloads and
the compile root are shared, because they are inputs.  So are the signatures for Secure Boot: the
second build has no key, and attaches them again.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kbuild.answer import Answer
from kbuild.archive import records
from kbuild.core import fs, places, progress, suites, variants
from kbuild.core.errors import (
    BuildError,
    DefectError,
    InfrastructureError,
    IrreproducibleError,
    KbuildError,
    LostDependencyError,
    SigningError,
    TrustError,
    UserError,
)
from kbuild.core.model import MODULE, Settings, Target
from kbuild.core.places import Place
from kbuild.core.run import Arg, need
from kbuild.core.run import run as run_program
from kbuild.fetch import roots, source
from kbuild.options import place
from kbuild.pipeline import papers
from kbuild.ship import manifest, mok, versions
from kbuild.ship.manifest import BuildRecord, KernelRecord, Manifest, Output

logger = logging.getLogger(__name__)

HOSTNAME = "another-machine"
UMASK = "0027"
TIME_ZONE = "<+14>-14"  # no place's zone is further from UTC (POSIX: west is positive)
_SHARED = ("apt", "files", "locks", "partial", "roots")  # of the cache; the rest begins empty
# The host keeps its name.
_OWN_NAME = ("unshare", "--uts", "--")
_BUILD_TIMEOUT_S = 24 * 3600.0
_UNPACK_TIMEOUT_S = 600.0
_DIFF_TIMEOUT_S = 1800.0
_NAMED = 12  # packages of the root that an error names
_SHOWN = 30  # lines of a difference that an error shows
# A hint for full builds of Debian's flavours (docs/results/reproducible.md).
_ALWAYS = (
    "a full build of Debian's flavour always differs: it signs its modules with a new key, and"
    " encodes BTF in several threads"
)
_STATUSES: Mapping[int, type[KbuildError]] = {
    one.exit_status: one for one in (UserError, TrustError, InfrastructureError, DefectError)
}


@dataclass(frozen=True)
class Compared:
    """A package of the record, and the same one of the second build."""

    file: str
    size: int  # bytes, of the recorded one
    sha256: str  # of the recorded one
    rebuilt: str  # SHA-256, or "not made"
    equal: bool

    def __str__(self) -> str:
        """Describe it in one line."""
        return (
            f"{'equal' if self.equal else 'DIFFERS':<8}{progress.size(self.size):>9}  {self.file}"
        )


@dataclass(frozen=True)
class _Job:
    """A record to reproduce, and the place for the second build."""

    settings: Settings
    path: Path  # of the record
    record: Manifest
    kernel: KernelRecord
    build: BuildRecord

    @property
    def target(self) -> Target:
        """The target that was recorded, in that version."""
        one = self.kernel
        return Target(one.suite, one.flavour, one.variant, version=one.base_version)

    @property
    def id(self) -> str:
        """The release's name in an archive."""
        version = versions.package_version(self.kernel.base_version, self.build.revision)
        return f"{self.target.suite}-{self.target.name}-{version}"

    @property
    def signs(self) -> bool:
        """Return whether the kernel was built in full with Debian's options."""
        return self.kernel.method == "rebuild" and self.kernel.flavour in suites.DEBIAN_FLAVOURS

    @property
    def home(self) -> Path:
        """The directory of the second build."""
        return self.settings.build / "reproduce" / self.id

    @property
    def signatures(self) -> Path | None:
        """The directory with the signatures for Secure Boot, if the kernel is signed."""
        if not self.build.certificate:
            return None
        if (self.path.parent / mok.CERTIFICATE).exists():
            return self.path.parent
        version = versions.directory(self.kernel.base_version, self.build.revision)
        return self.path.parent / version / mok.HOME

    @property
    def commit(self) -> str:
        """The commit of the project, which :func:`_check_commit` has checked."""
        return self.record.commit or ""


def find(settings: Settings, target: Target, *, release: str, manifest_file: str) -> Path:
    """Return the record of a release of the archive, of a file, or of the target's packages.

    Raises UserError if it does not exist, except in a dry run.
    """
    if manifest_file:
        path = place("manifest", manifest_file, Path.cwd())
    elif release:
        path = records.home(settings.archive, release) / papers.MANIFEST
    else:
        path = settings.build / target.suite / target.name / manifest.RECORD
    if not path.is_file() and not settings.dry:
        raise UserError(
            "there is no record of packages to build again",
            expected=str(path),
            hint="run ./inv package first, or name a release's manifest.json with --manifest",
        )
    return path


def run(settings: Settings, path: Path) -> Answer:
    """Build what the record at ``path`` describes again, and compare each package.

    Nothing is left of a build with the same bytes.  The answer has an IrreproducibleError with
    the first difference if a package differs.  Raises InfrastructureError if the archive or the
    root no longer has the recorded inputs, and BuildError if the record does not say enough.
    """
    if settings.dry and not path.exists():
        return Answer(text=f"would build again what {path} records, which does not exist yet")
    record = manifest.read(path)
    kernel, build = manifest.single(record)
    _check_target(kernel)
    job = _Job(settings, path, record, kernel, build)
    data: dict[str, object] = {"release": job.id, "commit": job.record.commit}
    _check_commit(job)
    if settings.dry:
        return Answer(data=data, text=f"would build {job.id} again in {job.home}")
    for program in ("diffoscope", "git", "tar", "unshare"):
        need(program)
    if job.signs:
        logger.warning("%s", _ALWAYS)
    with fs.lock(job.home.with_name(f".{job.id}.lock")):
        _check_inputs(job)
        _check_signatures(job)
        fs.remove_tree(job.home)
        began = time.monotonic()
        _build(job)
        packages = _compare(job)
        error = _error(job, packages)
        if error is None:
            fs.remove_tree(job.home)
    took, equal = time.monotonic() - began, sum(one.equal for one in packages)
    return Answer(
        data=data | {"packages": packages, "seconds": round(took, 3)},
        text="\n".join(map(str, packages)),
        summary=f"reproduced {job.id}: {equal} of {len(packages)} packages are equal bit for bit,"
        f" built again in {progress.duration(took)}",
        status=error.exit_status if error else 0,
        error=error,
    )


def _check_target(kernel: KernelRecord) -> None:
    """Raise UserError unless this project has the target; its words become names of directories."""
    for what, value, known in (
        ("suite", kernel.suite, suites.SUITES),
        ("flavour", kernel.flavour, (*suites.DEBIAN_FLAVOURS, *suites.OWN_FLAVOURS)),
        ("variant", kernel.variant, variants.VARIANTS),
    ):
        if value not in known:
            raise UserError(
                f"the manifest is of a {what} that this project does not have",
                expected=", ".join(known),
                found=value,
            )


def _check_commit(job: _Job) -> None:
    commit, project = job.record.commit, job.settings.project
    if commit is None or not re.fullmatch(r"[0-9a-f]{40,64}", commit):
        raise BuildError(
            f"{job.id} was not built from a commit, so another build may have other sources",
            expected="the name of a commit",
            found=commit or "none",
            hint="commit the changes, and run ./inv package again",
        )
    try:
        manifest.git(project, "cat-file", "-e", f"{commit}^{{commit}}")
    except LostDependencyError:
        raise
    except KbuildError as error:
        raise UserError(
            f"the commit that {job.id} was built from is not in this repository",
            expected=commit,
            found=error.found,
            hint=f"fetch it: git -C {project} fetch --all",
        ) from error


def _check_inputs(job: _Job) -> None:
    """Raise InfrastructureError unless the archive and the compile root are as recorded."""
    base = source.fetch(job.settings, job.target)
    recorded = {f"{file.name} {file.version}": file.sha256 for file in job.kernel.files}
    there = {f"{file.name} {file.version}": file.sha256 for file in base.files}
    if differing := _differences(recorded, there):
        raise InfrastructureError(
            f"the archive no longer has the files that {job.id} was built from",
            expected="\n".join(f"{name}: {old}" for name, old, _ in differing),
            found="\n".join(f"{name}: {new}" for name, _, new in differing),
            hint="add a mirror of the archive as it was then, with --mirror",
        )
    root = roots.compile_root(job.settings, job.kernel.suite)
    if differing := _differences(job.build.root, root.versions):
        named, more = differing[:_NAMED], len(differing) - _NAMED
        lines = [f"{name}: {old} recorded, {new} here" for name, old, new in named]
        raise InfrastructureError(
            f"the compile root of {job.kernel.suite} has other packages than the one that built "
            f"{job.id}; this is no verdict on the release",
            expected=f"the {len(job.build.root)} recorded versions",
            found="\n".join([*lines, *([f"and {more} more"] if more > 0 else [])]),
            hint="the usual cause is a root that is newer than the record; to make the recorded "
            "one, use a --mirror with the archive as it was then, and an empty cache_dir",
        )


def _check_signatures(job: _Job) -> None:
    """Raise InfrastructureError unless the signatures for Secure Boot are at hand."""
    home = job.signatures
    if home is None:
        return
    wanted = (mok.KERNEL, f"{MODULE}.ko{mok.SUFFIX}", mok.CERTIFICATE)
    missing = [name for name in wanted if not (home / name).is_file()]
    found = f"no {', '.join(missing)}"
    if not missing:
        found = mok.read(home / mok.CERTIFICATE)[0].digest
    if found != job.build.certificate:
        raise InfrastructureError(
            f"the signatures of {job.id} for Secure Boot are not at hand",
            expected=f"{home}, with the certificate {job.build.certificate}",
            found=found,
            hint="copy them next to the manifest; a release in the archive has them",
        )


def _differences(
    recorded: Mapping[str, str], there: Mapping[str, str]
) -> list[tuple[str, str, str]]:
    names = sorted(recorded.keys() | there.keys())
    rows = [(name, recorded.get(name, "nothing"), there.get(name, "nothing")) for name in names]
    return [row for row in rows if row[1] != row[2]]


def _build(job: _Job) -> None:
    """Run ``package`` of the recorded commit, with nothing that the first build left."""
    settings, top = job.settings, job.home
    project, cache, home = top / "checkout", top / "cache", top / "home"
    for directory in (project, home, top / "tmp"):
        directory.mkdir(parents=True)
    places.mark(Place("cache_dir", cache, project))
    for shelf in _SHARED:
        (settings.cache / shelf).mkdir(exist_ok=True)
        (cache / shelf).symlink_to(settings.cache / shelf)
    tarball = top / "checkout.tar"
    # Modes as in a clone by a user with another umask.
    archive = ("-c", f"tar.umask={UMASK}", "archive", "--format=tar", f"--output={tarball}")
    manifest.git(settings.project, *archive, job.commit)
    run_program(["tar", "-x", "-f", tarball, "-C", project], timeout_s=_UNPACK_TIMEOUT_S)
    tarball.unlink()
    signing = _signing(job, home / ".local/share/cplayground-kernel/archive")
    log = top / "log"
    logger.info("building %s again from commit %s; log: %s", job.id, job.commit[:12], log)
    done = run_program(
        [
            *_OWN_NAME,
            *(sys.executable, "-P", Path(__file__).with_name("elsewhere.py"), HOSTNAME, UMASK),
            *_program(settings.project, project),
            *("package", *_options(job)),
        ],
        cwd=home,
        env={
            "PYTHONPATH": str(project),
            "PYTHONUTF8": "1",
            "TZ": TIME_ZONE,
            "HOME": str(home),
            "USER": "rebuilder",
            "LOGNAME": "rebuilder",
            "TMPDIR": str(top / "tmp"),
            "XDG_CACHE_HOME": str(home / ".cache"),
            "XDG_DATA_HOME": str(home / ".local/share"),
            "INVOKE_BUILD_DIR": str(top / "build"),
            "INVOKE_CACHE_DIR": str(cache),
            "INVOKE_REVISION": str(job.build.revision),
            "INVOKE_JOBS": str(settings.jobs + 1),
            "INVOKE_FRAGMENTS": "",
            "INVOKE_REMOTE_CACHE": "",
            "INVOKE_SCHEDULER": "",
            # Not in the arguments: a mirror's URL may hold a password.
            "INVOKE_MIRRORS": " ".join(settings.mirrors),
            "INVOKE_OFFLINE": str(settings.offline),
            "INVOKE_ACCEPT_EXPIRED": str(settings.accept_expired),
            **signing,
        },
        timeout_s=_BUILD_TIMEOUT_S,
        log=log,
        check=False,
        on_line=lambda line: logger.info("  %s", line),
    )
    if done.returncode == SigningError.exit_status and signing:
        raise IrreproducibleError(
            f"the kernel or the module of {job.id} differs from the second build",
            expected="the file that the signature for Secure Boot was made for",
            found="\n".join(done.stdout.splitlines()[-10:]),
            log=log,
            hint=f"the second build stays in {top}",
        )
    if done.returncode != 0:
        raise _STATUSES.get(done.returncode, BuildError)(
            f"the second build of {job.id} failed",
            found="\n".join(done.stdout.splitlines()[-10:]),
            log=log,
        )


def _signing(job: _Job, archive: Path) -> dict[str, str]:
    """Give the second build the kept signatures, and return the variables that let it use them.

    It finds them as it finds those of a release.  Its command makes no others.
    """
    if job.signatures is None:
        return {}
    release = archive / "releases" / job.id
    release.mkdir(parents=True)
    for path in mok.papers(job.signatures):
        fs.write_atomic(release / path.name, path.read_bytes())
    return {
        "INVOKE_MOK_CERTIFICATE": str(release / mok.CERTIFICATE),
        "INVOKE_MOK_SIGN_COMMAND": "false",
    }


def _program(project: Path, copy: Path) -> list[Arg]:
    """Return the command of the copy; another list of requirements needs an environment."""
    lock = "requirements.lock"
    if (project / lock).read_bytes() != (copy / lock).read_bytes():
        return [copy / "inv"]
    return [sys.executable, "-P", "-m", "kbuild.cli", "--search-root", copy]


def _options(job: _Job) -> Iterator[str]:
    kernel = job.kernel
    for name, value in (
        ("suite", kernel.suite),
        ("flavour", kernel.flavour),
        ("variant", kernel.variant),
        ("version", kernel.base_version),
        ("modules", "keep" if kernel.method == "fast" else "rebuild"),
    ):
        yield from (f"--{name}", value)
    for number, fragment in enumerate(job.build.fragments):
        path = job.home / "fragments" / str(number) / Path(fragment.name).name
        fs.write_atomic(path, fragment.text)
        yield from ("--fragment", str(path))


def _compare(job: _Job) -> tuple[Compared, ...]:
    made = {one.name: one for one in _rebuilt(job).outputs}
    found = []
    for output in job.record.outputs:
        file = _file(job, made[output.name]) if output.name in made else None
        rebuilt = fs.sha256_file(file) if file else "not made"
        name, equal = Path(output.path).name, rebuilt == output.sha256
        found.append(Compared(name, output.size, output.sha256, rebuilt, equal))
    return tuple(found)


def _rebuilt(job: _Job) -> Manifest:
    target = job.target
    path = job.home / "build" / target.suite / target.name / manifest.RECORD
    return manifest.read(path)


def _file(job: _Job, output: Output) -> Path:
    return job.home / "build" / output.path


def _error(job: _Job, packages: Sequence[Compared]) -> IrreproducibleError | None:
    """Return the error that shows the first difference of the smallest package that differs."""
    differing = [one for one in packages if not one.equal]
    if not differing:
        return None
    hint = f"the second build stays in {job.home}"
    lines = [f"{one.rebuilt}  {one.file}" for one in differing]
    log = None
    for one in sorted(differing, key=lambda one: one.size):
        pair = _pair(job, one)
        if pair is not None:
            log = job.home / "diffoscope.txt"
            lines += [f"in {one.file}:", *_diffoscope(*pair, log)]
            break
    else:
        lines.append("the recorded packages are not at hand, so they cannot be compared further")
    return IrreproducibleError(
        f"{len(differing)} of {len(packages)} packages of {job.id} differ from the second build",
        expected="\n".join(f"{one.sha256}  {one.file}" for one in differing),
        found="\n".join(lines),
        log=log,
        hint=f"{_ALWAYS}; {hint}" if job.signs else hint,
    )


def _pair(job: _Job, one: Compared) -> tuple[Path, Path] | None:
    """Return the recorded package, if it is still there, and the rebuilt one."""
    (output,) = (each for each in job.record.outputs if Path(each.path).name == one.file)
    known = [job.path.parent / output.path, job.path.parent / one.file]
    known += sorted((job.settings.archive / "pool").rglob(one.file))
    made = [_file(job, each) for each in _rebuilt(job).outputs if each.name == output.name]
    for file in known:
        if made and file.is_file() and fs.sha256_file(file) == one.sha256:
            return file, made[0]
    return None


def _diffoscope(recorded: Path, rebuilt: Path, log: Path) -> Sequence[str]:
    """Write everything that differs to ``log``, and return the first difference."""
    try:
        done = run_program(
            ["diffoscope", "--no-progress", "--text", "-", recorded, rebuilt],
            timeout_s=_DIFF_TIMEOUT_S,
            check=False,
        )
    except BuildError as error:
        return [error.what]
    fs.write_atomic(log, done.stdout or done.stderr)
    return first_difference(done.stdout) or done.stderr.splitlines()[-3:]


def first_difference(text: str) -> list[str]:
    """Return the first difference in a report of diffoscope: in a file of the package if any.

    A package's control part comes first, but it only repeats the digests of the files.  Their
    list comes next, and shows owners, modes and times.
    """
    lines = text.splitlines()
    data = next((n for n, line in enumerate(lines) if line.startswith("├── data.tar")), len(lines))
    files = (n for n, line in enumerate(lines[data:], data) if "├── ./" in line)
    chosen: list[str] = []
    for line in lines[next(files, data) :] or lines:
        if "├── " in line and any("@@ " in one for one in chosen):
            break
        chosen.append(line)
    return chosen[:_SHOWN]
