"""Run a list of stages in order, or explain for each one why it would run.

A stage's inputs depend on the results of the stages before it.  So a stage is a function
of what was made so far (:class:`Made`), which returns a
:class:`~kbuild.core.results.Result`: inputs, outputs, and how these are made.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kbuild.core import progress, stamp
from kbuild.core.model import Base, BuiltKernel, Package, Root, Settings, Target, Tree
from kbuild.core.results import Result
from kbuild.kernel.module import BuiltModule
from kbuild.kernel.planning import Plan
from kbuild.ship import mok, versions

_EARLIER = "an earlier stage runs first"
_LATER: Any = None  # the stage has not run yet
_SHORT_S = 1.0  # stages that took less are not named


@dataclass(frozen=True)
class Prepared:
    """Everything that a kernel is compiled from."""

    base: Base
    pristine: Path  # the distro's source
    distro_image: Path  # unpacked
    distro_headers: Path  # unpacked
    tree: Tree
    plan: Plan
    epoch: int  # seconds since 1970, of the distro's own build


@dataclass(frozen=True)
class Places:
    """Where the results of a target lie."""

    home: Path  # of the target, for every version
    version: Path  # of one version of its base, and from 2 on of one revision
    logs: Path
    name: str

    @property
    def signatures(self) -> Path:
        """The directory of the signatures for Secure Boot, and of what was signed."""
        return self.version / mok.HOME

    def log(self, stage: str) -> Path:
        """Return the log file of a stage."""
        return self.logs / f"{stage}-{self.name}.log"


@dataclass(frozen=True)
class Made:
    """A request, and what the stages have made for it so far, each in a field of its own."""

    settings: Settings
    target: Target
    modules: str = "auto"  # the user's wish for the distro's modules
    base: Base = _LATER
    prepared: Prepared = _LATER
    root: Root = _LATER  # the kernel and its modules are compiled in it
    kernel: BuiltKernel = _LATER
    kernel_packages: tuple[Package, ...] = ()
    module: BuiltModule = _LATER
    module_packages: tuple[Package, ...] = ()
    dkms_packages: tuple[Package, ...] = ()
    guard_packages: tuple[Package, ...] = ()
    tool_packages: tuple[Package, ...] = ()
    repo: Path = _LATER
    took: Mapping[str, float] = field(default_factory=dict)  # seconds of this run, by stage
    seconds: Mapping[str, float] = field(default_factory=dict)  # of the making, by stamp

    @property
    def packages(self) -> tuple[Package, ...]:
        """All packages so far."""
        shared = (*self.dkms_packages, *self.guard_packages, *self.tool_packages)
        return (*self.kernel_packages, *self.module_packages, *shared)

    @property
    def manifest(self) -> Path:
        """The record of every target's packages, which the last stage writes."""
        return self.settings.build / "manifest.json"

    @property
    def where(self) -> Places:
        """Where the results lie, once the base is known."""
        build, suite, name = self.settings.build, self.target.suite, self.target.name
        home = build / suite / name
        version = versions.directory(self.base.version, self.settings.revision)
        return Places(home, home / version, build / "logs", f"{suite}-{name}")


@dataclass(frozen=True)
class Stage:
    """One step from a target to the repository; ``result`` uses the results before it."""

    name: str
    field: str  # of Made, which receives the result
    result: Callable[[Made], Result[Any]]


@dataclass(frozen=True)
class Step:
    """One stage as :func:`explain` sees it; ``reason`` None means that its result is current."""

    name: str
    reason: str | None


def run(stages: Iterable[Stage], made: Made) -> Made:
    """Run the stages whose results are not current, and return the results of all."""
    for stage in stages:
        began = time.monotonic()
        result = stage.result(made)
        made = dataclasses.replace(made, **{stage.field: result.ensure()})
        took = {**made.took, stage.name: time.monotonic() - began}
        last = stamp.read(result.mark) if result.mark else None
        seconds = {result.mark.stem: last.seconds} if result.mark and last else {}
        made = dataclasses.replace(made, took=took, seconds={**made.seconds, **seconds})
    return made


def times(made: Made) -> str:
    """Return how long the run took, and which stages took most of that."""
    whole = progress.duration(sum(made.took.values()))
    long = [f"{name} {progress.duration(s)}" for name, s in made.took.items() if s >= _SHORT_S]
    return f"{whole} ({', '.join(long)})" if long else whole


def explain(stages: Iterable[Stage], made: Made) -> Iterator[Step]:
    """Yield each stage with the reason for which it would run; change nothing.

    A stage that comes after one that would run cannot be asked.
    """
    why = None
    for stage in stages:
        if why is not None:
            yield Step(stage.name, _EARLIER)
            continue
        result = stage.result(made)
        why = result.reason()
        yield Step(stage.name, why)
        if why is None:
            found: Any = result.read()
            made = dataclasses.replace(made, **{stage.field: found})
