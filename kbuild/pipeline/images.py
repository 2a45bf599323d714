"""Disks that guests boot from, with the packages that the stages made installed on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from kbuild.core import beside
from kbuild.core.model import Package, Settings, Target
from kbuild.fetch import roots, source
from kbuild.guest import image
from kbuild.guest.image import GuestImage
from kbuild.pipeline import stages
from kbuild.pipeline.stage import Made
from kbuild.ship import deb, dkms, tool_package, versions


def guest_image(made: Made, *, tools: Sequence[str] = ()) -> GuestImage:
    """Return a disk with the packages of the target installed, as well as Debian's kernel.

    With ``tools``, which are further Debian packages, it is a disk of its own.
    """
    names = deb.kernel_names(made.kernel)
    return _image(
        made,
        "guest",
        tools,
        repo=made.repo,
        packages=[names.image_meta, names.headers_meta, dkms.PACKAGE, tool_package.PACKAGE],
        inputs={f"package {one.name}": one.sha256 for one in made.packages},
    )


def stock_image(settings: Settings, target: Target, *, tools: Sequence[str] = ()) -> GuestImage:
    """Return a disk with only Debian's own kernel, our module built by DKMS for it, and the tool.

    No kernel is compiled for it, so a suite can be judged within minutes.  With ``tools``, which
    are further Debian packages, it is a disk of its own.
    """
    # Before the roots: both need the indexes that it fetches.
    base = source.fetch(settings, target, without_source=True)
    with _guest_root_meanwhile(settings, target.suite, tools):
        made = Made(settings, target, base=base, root=roots.compile_root(settings, target.suite))
        packages: list[Package] = []
        for result in (stages.dkms_packages(made), stages.tool_packages(made)):
            packages += result.ensure()
    return _image(made, "stock", tools, debs=[one.path for one in packages])


def _guest_root_meanwhile(
    settings: Settings, suite: str, tools: Sequence[str]
) -> AbstractContextManager[None]:
    """Make the guest's root while the block runs, if it is missing and two processors are there.

    mmdebstrap keeps one processor busy, so two roots take little longer than one.
    """
    if settings.jobs < 2 or roots.why_make_guest(settings, suite, tools) is None:
        return nullcontext()
    return beside.started(lambda: roots.guest_root(settings, suite, tools))


def lab_image(made: Made, *, tools: Sequence[str] = ()) -> GuestImage:
    """Return a disk with a kernel and Debian's own, and without our module.

    An edit of the module changes neither the disk nor a snapshot of its guest.  With
    ``tools``, which are further Debian packages, it is a disk of its own.
    """
    names = deb.kernel_names(made.kernel)
    ours = [one.path for one in made.kernel_packages if one.name in (names.image, names.headers)]
    return _image(made, "lab", tools, debs=ours)


def prebuilt_module(made: Made) -> Path:
    """Return the package with our module built for the kernel, among the target's packages."""
    name = versions.modules_package(made.kernel.release)
    return next(one.path for one in made.module_packages if one.name == name)


def _image(
    made: Made,
    name: str,
    tools: Sequence[str],
    *,
    repo: Path | None = None,
    packages: Sequence[str] = (),
    debs: Sequence[Path] = (),
    inputs: Mapping[str, str] | None = None,
) -> GuestImage:
    """Return a disk with Debian's kernel; ``debs`` are further package files."""
    if tools:
        name += "-tools"
    return image.make(
        roots.guest_root(made.settings, made.target.suite, tools),
        repo=repo,
        packages=packages,
        debs=[*debs, *(file.path for file in made.base.packages)],
        tested=made.settings.project / "kmod" / "format.h",
        home=made.where.home / name,
        inputs=inputs or {},
        log=made.where.log(name),
    )
