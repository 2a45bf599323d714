"""Write and read manifest.json, which ties each output to its inputs, for people and programs.

It is written next to the repository, after everything else.  :func:`verify` checks that the
outputs are still the recorded ones.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kbuild.core import fs
from kbuild.core.errors import BuildError, KbuildError
from kbuild.core.model import BuiltKernel, Package, Root, Settings, VerifiedFile
from kbuild.core.run import run
from kbuild.ship import mok, versions

logger = logging.getLogger(__name__)

# Changes when the meaning of a field does.
FORMAT = 1
# Name of a target's own part of the manifest, in the directory of its results.
RECORD = "record.json"
# Directories whose files reach an output even if git does not track them.
_INPUTS = ("debian/", "dkms/", "fragments/", "guard/", "kbuild/", "kmod/", "patches/")


@dataclass(frozen=True)
class InputFile:
    """A file of the distro's archive."""

    name: str
    version: str
    sha256: str
    size: int  # bytes


@dataclass(frozen=True)
class PatchRecord:
    """A patch that was applied."""

    name: str
    description: str
    sha256: str


@dataclass(frozen=True)
class FragmentRecord:
    """Kernel options that the user added."""

    name: str
    sha256: str
    text: str


@dataclass(frozen=True)
class BuildRecord:
    """The inputs of a kernel's packages that another build needs to give the same bytes."""

    revision: int  # N of +cplaygroundN
    epoch: int  # SOURCE_DATE_EPOCH, in seconds since 1970
    fragments: tuple[FragmentRecord, ...]  # in their order
    root: Mapping[str, str]  # package -> version of everything in the compile root
    # SHA-256 of the certificate for Secure Boot, as DER; "" if kernel and module are unsigned
    certificate: str = ""


@dataclass(frozen=True)
class KernelRecord:
    """A kernel and all inputs that decided it."""

    release: str
    flavour: str
    variant: str
    suite: str
    base_release: str
    base_version: str
    signers: tuple[str, ...]  # OpenPGP fingerprints of the keys that signed the archive's index
    expired: bool  # that index was past its Valid-Until, and accepted on request
    files: tuple[InputFile, ...]
    series: str
    series_range: str
    series_sha256: str
    patches: tuple[PatchRecord, ...]
    exports: tuple[str, ...]
    config_sha256: str
    compiler: str
    method: str  # fast or rebuild
    digest: str
    seconds: float
    build: BuildRecord | None = None  # None in a record of version 0.2


@dataclass(frozen=True)
class Output:
    """A package that came out; ``path`` is relative to the manifest."""

    name: str
    version: str
    architecture: str
    path: str
    sha256: str
    size: int  # bytes


@dataclass(frozen=True)
class Manifest:
    """The outputs of one run of the pipeline, and their inputs."""

    format: int
    commit: str | None  # of the project; "-dirty" follows when files were changed
    module_version: str
    kernels: tuple[KernelRecord, ...]
    outputs: tuple[Output, ...]
    seconds: Mapping[str, float]  # wall time by stage


def describe(
    settings: Settings,
    kernels: Sequence[BuiltKernel],
    packages: Sequence[Package],
    seconds: Mapping[str, float],
    *,
    build: BuildRecord | None = None,
) -> Manifest:
    """Return the manifest of packages that were made from kernels and the project's module.

    ``build`` applies to each of the kernels.  Raises BuildError if a package lies outside the
    build directory.
    """
    return Manifest(
        format=FORMAT,
        commit=project_commit(settings.project),
        module_version=versions.module_version(settings.project),
        kernels=tuple(
            sorted((_kernel(one, build) for one in kernels), key=lambda kernel: kernel.release)
        ),
        outputs=outputs(settings, packages),
        seconds={stage: round(seconds[stage], 3) for stage in sorted(seconds)},
    )


def build_record(settings: Settings, kernel: BuiltKernel, root: Root, epoch: int) -> BuildRecord:
    """Return the inputs of a kernel's packages that its digest does not tell."""
    return BuildRecord(
        revision=settings.revision,
        epoch=epoch,
        fragments=tuple(
            FragmentRecord(path.name, fs.sha256_file(path), path.read_text(encoding="utf-8"))
            for path in kernel.target.fragments
        ),
        root=dict(sorted(root.versions.items())),
        certificate="".join(one.digest for one in mok.certificates(settings)[:1]),
    )


def single(record: Manifest) -> tuple[KernelRecord, BuildRecord]:
    """Return the kernel of a target's record, and how it was built.

    Raises BuildError if there are several, or if version 0.2 wrote the record.
    """
    if len(record.kernels) != 1:
        raise BuildError(
            "this manifest is not the record of one target",
            expected="one kernel",
            found=", ".join(kernel.release for kernel in record.kernels) or "none",
        )
    (kernel,) = record.kernels
    if kernel.build is None:
        raise BuildError(
            f"the record of {kernel.release} does not say how it was built",
            expected="the field 'build', which versions since 0.3 write",
            hint="run ./inv package again",
        )
    return kernel, kernel.build


def outputs(settings: Settings, packages: Sequence[Package]) -> tuple[Output, ...]:
    """Describe packages for a manifest; raises BuildError for one outside of build/."""
    described = (_output(settings.build, package) for package in packages)
    return tuple(sorted(described, key=lambda output: output.path))


def project_commit(project: Path) -> str | None:
    """Return the commit of a checkout, or None with a warning that says why.

    "-dirty" is appended if tracked files were changed, or if a directory of inputs has an
    untracked file.
    """
    try:
        head = git(project, "rev-parse", "--verify", "HEAD").strip()
        changes = git(project, "status", "--porcelain", "-z", "--untracked-files=normal")
    except KbuildError as error:
        logger.warning("no commit is recorded: %s", error.found or error)
        return None
    untracked = "?? "
    dirty = any(
        not line.startswith(untracked) or line.removeprefix(untracked).startswith(_INPUTS)
        for line in changes.split("\0")
        if line
    )
    return head + "-dirty" * dirty


def git(project: Path, *arguments: str) -> str:
    """Ask git about exactly this checkout, also if another user owns it.

    With an explicit repository, git neither searches the directories above nor checks the owner.
    That check exists because a repository's configuration can name programs.  It would protect
    nothing here: the owner of the checkout also wrote the Python that is running.  The programs
    that git could start for these questions are switched off nevertheless.
    """
    return run(
        [
            *("git", f"--git-dir={project / '.git'}", f"--work-tree={project}"),
            *("-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null"),
            # A refreshed index would belong to root.
            "--no-optional-locks",
            *arguments,
        ],
        timeout_s=60,
    ).stdout


def write(path: Path, manifest: Manifest) -> None:
    """Write a manifest, by rename."""
    fs.write_json(path, asdict(manifest))


def read(path: Path) -> Manifest:
    """Read a manifest; raises BuildError if it is missing, damaged, or has another format."""
    try:
        raw = json.loads(path.read_text())
        if raw["format"] != FORMAT:
            raise BuildError(
                f"{path} has another format", expected=str(FORMAT), found=str(raw["format"])
            )
        return Manifest(
            format=int(raw["format"]),
            commit=None if raw["commit"] is None else str(raw["commit"]),
            module_version=str(raw["module_version"]),
            kernels=tuple(map(_read_kernel, raw["kernels"])),
            outputs=tuple(Output(**output) for output in raw["outputs"]),
            seconds={str(stage): float(value) for stage, value in raw["seconds"].items()},
        )
    except OSError as error:
        raise BuildError(f"cannot read {path}: {error.strerror}", hint="package first") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BuildError(
            f"{path} is not a manifest: {error}", hint="run ./inv package again"
        ) from error


def read_if_whole(path: Path) -> Manifest | None:
    """Read a manifest; log the error and return None if :func:`read` fails."""
    try:
        return read(path)
    except BuildError as error:
        logger.warning("%s", error)
        return None


def verify(path: Path) -> Manifest:
    """Read a manifest and check all its outputs; raises BuildError that names each difference."""
    manifest = read(path)
    differences = []
    for output in manifest.outputs:
        file = path.parent / output.path
        found = fs.sha256_file(file) if file.is_file() else "no such file"
        if found != output.sha256:
            differences.append((f"{output.sha256}  {output.path}", f"{found}  {output.path}"))
    if differences:
        raise BuildError(
            f"{len(differences)} of {len(manifest.outputs)} outputs differ from {path}",
            expected="\n".join(expected for expected, _ in differences),
            found="\n".join(found for _, found in differences),
            hint="run ./inv package again",
        )
    return manifest


def _kernel(kernel: BuiltKernel, build: BuildRecord | None) -> KernelRecord:
    base, series = kernel.base, kernel.series
    return KernelRecord(
        release=kernel.release,
        flavour=kernel.target.flavour,
        variant=kernel.target.variant,
        suite=base.suite,
        base_release=base.release,
        base_version=base.version,
        signers=base.signers,
        expired=base.expired,
        files=tuple(map(_input, base.files)),
        series=series.name,
        series_range=series.range,
        series_sha256=series.digest,
        patches=tuple(
            PatchRecord(patch.path.name, patch.description, fs.sha256_file(patch.path))
            for patch in series.patches
        ),
        exports=series.exports,
        config_sha256=fs.sha256_file(kernel.config),
        compiler=kernel.compiler,
        method=kernel.method,
        digest=kernel.digest,
        seconds=round(kernel.seconds, 3),
        build=build,
    )


def _input(file: VerifiedFile) -> InputFile:
    return InputFile(file.name, file.version, file.sha256, file.size)


def _output(build: Path, package: Package) -> Output:
    if not package.path.is_relative_to(build):
        raise BuildError(
            f"{package.path.name} lies outside the build directory",
            expected=str(build),
            found=str(package.path),
        )
    return Output(
        name=package.name,
        version=package.version,
        architecture=package.architecture,
        path=package.path.relative_to(build).as_posix(),
        sha256=package.sha256,
        size=package.path.stat().st_size,
    )


def _read_kernel(raw: dict[str, Any]) -> KernelRecord:
    return KernelRecord(
        **raw
        | {
            "signers": tuple(raw["signers"]),
            "files": tuple(InputFile(**file) for file in raw["files"]),
            "patches": tuple(PatchRecord(**patch) for patch in raw["patches"]),
            "exports": tuple(raw["exports"]),
            "build": _read_build(raw["build"]) if raw.get("build") else None,
        }
    )


def _read_build(raw: dict[str, Any]) -> BuildRecord:
    fragments = tuple(FragmentRecord(**fragment) for fragment in raw["fragments"])
    root = {str(name): str(version) for name, version in raw["root"].items()}
    numbers = {name: int(raw[name]) for name in ("revision", "epoch")}
    return BuildRecord(**raw | numbers | {"fragments": fragments, "root": root})
