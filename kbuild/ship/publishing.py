"""Publish the packages of every target in one repository, by the record that each target keeps.

A release must not lose a kernel because a file of another target is damaged.  A damaged record
is made again from the manifest, which is the sum of all records.  A damaged package is taken
from the old repository.  If that fails too, an error names the target, and the repository stays.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kbuild.core import fs, recipe, results, suites
from kbuild.core.errors import BuildError
from kbuild.core.model import Package, Settings, Target
from kbuild.core.results import Result
from kbuild.ship import indexes, manifest, repo, shared, signing, versions
from kbuild.ship.manifest import KernelRecord, Manifest, Output

logger = logging.getLogger(__name__)

_RECIPE = (Path(repo.__file__), Path(indexes.__file__), Path(signing.__file__))


@dataclass(frozen=True)
class Part:
    """A target's part of the repository; ``record`` has the current paths of its packages."""

    home: Path  # build/<suite>/<target>
    record: Manifest

    @property
    def suite(self) -> str:
        """The suite that its packages are for."""
        return self.home.parent.name


def repository(settings: Settings, home: Path, mine: Manifest) -> Result[Path]:
    """Return the repository with ``mine`` in it, as well as the packages of the other targets.

    Each target keeps a record of its own in ``home``, in the manifest's format; the manifest is
    their sum.  To make it raises BuildError, and leaves the repository as it was, if the
    packages of another target would be missing from it.
    """

    def of(parts: Sequence[Part]) -> Result[Path]:
        inputs = {one.path: one.sha256 for part in parts for one in part.record.outputs}

        def make(_: Path) -> list[Path]:
            by_suite: dict[str, list[Package]] = {}
            for part in parts:
                by_suite.setdefault(part.suite, []).extend(
                    Package(
                        one.name,
                        one.version,
                        one.architecture,
                        settings.build / one.path,
                        one.sha256,
                    )
                    for one in part.record.outputs
                )
            return [repo.publish(settings, by_suite)]

        return results.kept(
            settings.build / "repo.json",
            inputs | {"recipe": recipe.digest(*_RECIPE)},
            make,
            lambda: settings.build / "repo",
            lock=None,
            doing="making the repository",
        )

    def reason() -> str | None:
        try:
            parts = whole(dataclasses.replace(settings, dry=True), home, mine)
        except BuildError as error:
            return error.what
        return of(parts).reason()

    def ensure() -> Path:
        with fs.lock(settings.build / ".publish.lock"):
            manifest.write(home / manifest.RECORD, mine)
            parts = whole(settings, home, mine)
            made = of(parts).ensure()
            everything = dataclasses.replace(
                mine,
                kernels=tuple(one for part in parts for one in part.record.kernels),
                outputs=tuple(one for part in parts for one in part.record.outputs),
            )
            manifest.write(settings.build / "manifest.json", everything)
        return made

    return Result(reason, lambda: settings.build / "repo", ensure)


def whole(settings: Settings, home: Path, mine: Manifest) -> tuple[Part, ...]:
    """Return the parts of all targets; ``mine``, whose results lie in ``home``, comes first.

    A package that the targets of a suite share is included once, in its last version.  Raises
    BuildError that names a target whose packages would be missing.
    """
    others = [Part(other, record) for other, record in _others(settings, home)]
    suite = home.parent.name
    paths = {one.path for one in mine.outputs}
    there = {(suite, one.name) for one in mine.outputs}
    kept: list[list[Output]] = []
    for part in others:
        good = [
            one
            for one in part.record.outputs
            if one.path not in paths and _is_whole(settings.build / one.path, one)
        ]
        paths.update(one.path for one in good)
        there.update((part.suite, one.name) for one in good)
        kept.append(good)
    parts = [Part(home, mine)]
    for part, good in zip(others, kept, strict=True):
        for one in part.record.outputs:
            if (part.suite, one.name) not in there:
                good.append(_from_repository(settings, part, one))
        record = dataclasses.replace(part.record, outputs=tuple(good))
        parts.append(Part(part.home, record))
    return tuple(parts)


def _is_whole(file: Path, output: Output) -> bool:
    return (
        file.is_file()
        and file.stat().st_size == output.size
        and fs.sha256_file(file) == output.sha256
    )


def _from_repository(settings: Settings, part: Part, output: Output) -> Output:
    """Return the repository's copy of a package whose own file is gone or damaged."""
    for file in sorted((settings.build / "repo" / "pool").rglob(f"{output.name}_*.deb")):
        if _is_whole(file, output):
            logger.warning(
                "%s is gone or damaged; the repository keeps its own copy. To make it again: %s",
                output.path,
                _command(part.record.kernels, part.home),
            )
            return dataclasses.replace(output, path=file.relative_to(settings.build).as_posix())
    raise BuildError(
        f"the repository would lose {output.name} of another target, {_name(part.home)}",
        expected=f"sha256 {output.sha256}  {output.path}",
        found="it is gone or damaged, also in the repository",
        hint=_hint(part.record.kernels, part.home),
    )


def _others(settings: Settings, home: Path) -> Iterator[tuple[Path, Manifest]]:
    """Yield the records of the other targets; make a damaged or missing one again."""
    known = _known(settings)
    homes = {path.parent for path in settings.build.glob(f"*/*/{manifest.RECORD}")}
    homes |= {path for one in known.kernels if (path := _home(settings, one)).is_dir()}
    for other in sorted(homes - {home}):
        path = other / manifest.RECORD
        try:
            yield other, manifest.read(path)
        except BuildError as error:
            record = _again(settings, other, known)
            if record is None:
                raise BuildError(
                    f"the record of another target, {_name(other)}, cannot be read: its kernel "
                    "would be missing from the repository",
                    expected=str(path),
                    found=str(error),
                    hint=_hint((), other),
                ) from error
            logger.warning("%s: %s; it was made again from the manifest", path, error.what)
            if not settings.dry:
                manifest.write(path, record)
            yield other, record


def _known(settings: Settings) -> Manifest:
    """Return the manifest of the last run, or an empty one."""
    path = settings.build / "manifest.json"
    known = manifest.read_if_whole(path) if path.exists() else None
    return known or Manifest(manifest.FORMAT, None, "", (), (), {})


def _home(settings: Settings, kernel: KernelRecord) -> Path:
    target = Target(kernel.suite, kernel.flavour, kernel.variant)
    return settings.build / target.suite / target.name


def _again(settings: Settings, home: Path, known: Manifest) -> Manifest | None:
    """Make a target's record from the manifest; return None if a package is missing there."""
    kernels = tuple(one for one in known.kernels if _home(settings, one) == home)
    of_all = (one.results for one in shared.ALL)
    places = tuple(f"{home.parent.name}/{name}/" for name in (home.name, *of_all))
    outputs = tuple(one for one in known.outputs if one.path.startswith(places))
    needed = {name for kernel in kernels for name in _packages(kernel)}
    if not needed or needed - {one.name for one in outputs}:
        return None
    return dataclasses.replace(known, kernels=kernels, outputs=outputs, seconds={})


def _packages(kernel: KernelRecord) -> tuple[str, ...]:
    flavour, variant = kernel.flavour, kernel.variant
    return (
        versions.image_package(kernel.release),
        versions.headers_package(kernel.release),
        versions.modules_package(kernel.release),
        versions.image_meta(flavour, variant),
        versions.headers_meta(flavour, variant),
        versions.modules_meta(flavour, variant),
    )


def _name(home: Path) -> str:
    return f"{home.name} of {home.parent.name}"


def _hint(kernels: Sequence[KernelRecord], home: Path) -> str:
    return (
        f"make it again: {_command(kernels, home)}; or remove {home}, if that kernel is no longer "
        "wanted, and run this again"
    )


def _command(kernels: Sequence[KernelRecord], home: Path) -> str:
    """Return the command that makes a target's packages and record again."""
    for one in kernels:
        target, revision = (
            Target(one.suite, one.flavour, one.variant),
            suites.revision_of(one.release),
        )
        setting = f"INVOKE_REVISION={revision} " if revision > 1 else ""
        return f"{setting}./inv package {target.options('suite', 'flavour', 'variant')}"
    flavours = [*suites.DEBIAN_FLAVOURS, *suites.OWN_FLAVOURS]
    flavour = next((one for one in flavours if f"{home.name}-".startswith(f"{one}-")), home.name)
    variant = home.name.removeprefix(flavour).removeprefix("-") or "release"
    target = Target(home.parent.name, flavour, variant)
    return f"./inv package {target.options('suite', 'flavour', 'variant')}"
