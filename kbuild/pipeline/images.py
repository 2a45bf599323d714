"""Disks that guests boot from, with the packages that the stages made installed on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from kbuild.core.model import Root, Settings, Target
from kbuild.fetch import roots, source
from kbuild.guest import image
from kbuild.guest.image import GuestImage
from kbuild.pipeline import stages
from kbuild.pipeline.stage import Made
from kbuild.ship import deb, dkms, versions


def guest_image(made: Made) -> GuestImage:
    """Return a disk with the packages of the target installed, as well as Debian's kernel."""
    names = deb.kernel_names(made.kernel)
    return _image(
        made,
        "guest",
        repo=made.repo,
        packages=[names.image_meta, names.headers_meta, dkms.PACKAGE],
        inputs={f"package {one.name}": one.sha256 for one in made.packages},
    )


def stock_image(settings: Settings, target: Target) -> GuestImage:
    """Return a disk with only Debian's own kernel, and our module built by DKMS for it.

    No kernel is compiled for it, so a suite can be judged within minutes.
    """
    base = source.fetch(settings, target)
    made = Made(settings, target, base=base, root=roots.compile_root(settings, target.suite))
    packages = stages.dkms_packages(made).ensure()
    return _image(made, "stock", debs=[one.path for one in packages])


def lab_image(made: Made, *, tools: Sequence[str] = ()) -> GuestImage:
    """Return a disk with a kernel and Debian's own, and without our module.

    An edit of the module changes neither the disk nor a snapshot of its guest.  With
    ``tools``, which are further Debian packages, it is a disk of its own.
    """
    names = deb.kernel_names(made.kernel)
    ours = [one.path for one in made.kernel_packages if one.name in (names.image, names.headers)]
    if not tools:
        return _image(made, "lab", debs=ours)
    suite = made.target.suite
    packages = (*roots.guest_packages(suite), *tools)
    root = roots.make_root(made.settings, suite, "guest-tools", packages)
    return _image(made, "lab-tools", root, debs=ours)


def prebuilt_module(made: Made) -> Path:
    """Return the package with our module built for the kernel, among the target's packages."""
    name = versions.modules_package(made.kernel.release)
    return next(one.path for one in made.module_packages if one.name == name)


def _image(
    made: Made,
    name: str,
    root: Root | None = None,
    *,
    repo: Path | None = None,
    packages: Sequence[str] = (),
    debs: Sequence[Path] = (),
    inputs: Mapping[str, str] | None = None,
) -> GuestImage:
    """Return a disk with Debian's kernel; ``debs`` are further package files."""
    return image.make(
        root or roots.guest_root(made.settings, made.target.suite),
        repo=repo,
        packages=packages,
        debs=[*debs, *(file.path for file in made.base.packages)],
        tested=made.settings.project / "kmod" / "format.h",
        home=made.where.home / name,
        inputs=inputs or {},
        log=made.where.log(name),
    )
