"""Set up the lab: a kernel of ours booted once, modules built for it, and guests to try them in.

The guest's disk holds the kernel and its headers, but not our module.  An edit of kmod/ therefore
changes neither the disk nor the snapshot, and costs one compilation and one restore.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kbuild.core import fs, recipe, stamp
from kbuild.core.errors import InfrastructureError
from kbuild.core.model import Root, Settings, Target
from kbuild.core.suites import DEBIAN_FLAVOURS
from kbuild.guest import image, programs, qemu, snapshot
from kbuild.guest.guest import Guest
from kbuild.guest.outcome import MODULE_TAINT
from kbuild.guest.snapshot import Provision
from kbuild.guest.spec import GuestSpec, Snapshot, suited
from kbuild.kernel import module
from kbuild.kernel.module import BuiltModule, Headers
from kbuild.lab import readying
from kbuild.pipeline import images, stages


@dataclass(frozen=True)
class Lab:
    """A kernel that modules are built for and tried on; made by :func:`prepare`."""

    settings: Settings
    target: Target
    spec: GuestSpec
    headers: Headers
    packages: str  # digest of the kernel's packages, the headers among them
    root: Root  # in which modules are compiled
    programs: Mapping[str, Path]  # compiled programs of the quick suite
    snapshot: Snapshot | None  # to restore guests from; None: each guest is booted

    @property
    def release(self) -> str:
        """``uname -r`` of the lab's guests."""
        return self.spec.kernel.release


def prepare(
    settings: Settings,
    target: Target,
    *,
    accel: str | None = None,
    stock: bool = False,
    tools: Sequence[str] = (),
    booted: bool = True,
) -> Lab:
    """Return the lab of a target; parts that are current are not made again.

    ``stock`` selects Debian's own kernel, which has only the stock backend.  ``accel`` is kvm or
    tcg; the default is KVM if a boot under it has succeeded.  ``tools`` are Debian packages to
    install in the guest in addition to the usual ones.  Guests are restored from a snapshot that
    has the quick suite's programs, unless ``booted`` is False.  Measurements need that, because
    the memory of a restored guest is copied page by page as it is written.
    """
    done = stages.package_kernel(settings, target)
    made = images.lab_image(done, tools=tools)
    kernel = next((one for one in made.kernels if image.is_ours(one) is not stock), None)
    if kernel is None:
        raise InfrastructureError(f"{made.description} has no kernel that the lab can boot")
    choice = qemu.choose_accelerator(settings.cache, kernel, accel)
    spec = GuestSpec(
        kernel=kernel,
        disk=made.disk,
        accelerator=choice.accelerator,
        # Our small kernels have the disk's drivers built in.  A KASAN kernel needs more time to
        # unpack an initrd than for the rest of the boot.
        initrd=stock or target.flavour in DEBIAN_FLAVOURS,
    )
    if not stock:
        spec = suited(spec, target.variant)
    if stock:
        headers = stages.debian_headers(settings, done.kernel.base)
    else:
        headers = module.whole(stages.kernel_headers(done))
    compiled = programs.compile_programs(settings, done.root, readying.sources(readying.PROGRAMS))
    kept = _snapshot(settings, target, spec, compiled) if booted else None
    packages = stamp.digest({one.path.name: one.sha256 for one in done.packages})
    return Lab(settings, target, spec, headers, packages, done.root, compiled, kept)


def _snapshot(
    settings: Settings, target: Target, spec: GuestSpec, compiled: Mapping[str, Path]
) -> Snapshot:
    provision = Provision(
        {f"program {name}": fs.sha256_file(path) for name, path in compiled.items()}
        | {"preparation": recipe.digest(Path(readying.__file__))},
        lambda guest: readying.make_ready(guest, compiled),
    )
    workdir = settings.build / "logs" / "vm" / f"snapshot-{target.suite}-{target.name}"
    return snapshot.ensure(settings.cache, spec, workdir=workdir, provision=provision)


def build_module(lab: Lab, source: Path, *, out: Path, race_windows: bool = True) -> BuiltModule:
    """Compile ``source``, which is kmod/ or a changed copy of it, for the lab's kernel.

    ``out`` becomes a directory with the module; the log lies next to it.  The module has line
    numbers and, with ``race_windows``, the load parameter window_us.  Raises BuildError.
    """
    variables = {"CPG_LAB": "1"} if race_windows else {"KCFLAGS": "-g"}
    return module.build(
        lab.settings,
        lab.root,
        headers=lab.headers,
        release=lab.release,
        out=out,
        log=out.with_name(f"{out.name}.log"),
        source=source,
        variables=variables,
    )


def open_guest(lab: Lab, *, workdir: Path) -> Guest:
    """Return a running guest of the lab, without the module; a context manager.

    The guest is restored from the lab's snapshot, or booted if there is none.  ``workdir``
    receives console.log and qemu.log.
    """
    if lab.snapshot is not None:
        return Guest.restore(lab.snapshot, workdir=workdir, expected_taint=MODULE_TAINT)
    return Guest.boot(lab.spec, workdir=workdir, expected_taint=MODULE_TAINT)


def logs(lab: Lab, *names: str) -> Path:
    """Return the directory for logs of the lab's guests; each suite and variant has its own."""
    home = lab.settings.build / "logs" / "lab" / f"{lab.target.suite}-{lab.target.variant}"
    return home.joinpath(*names)
