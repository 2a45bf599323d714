"""The lab: a kernel of ours booted once, a module built aside, and guests to try it in.

The disk holds the kernel and its headers but not our module, so that an edit of kmod/
changes neither the disk nor the snapshot: it costs a compilation and a restore.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kbuild.core import fs
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
from kbuild.lab import quick
from kbuild.pipeline import images, stages


@dataclass(frozen=True)
class Lab:
    """What a module is built against and tried in; made by :func:`prepare`."""

    settings: Settings
    target: Target
    spec: GuestSpec
    headers: Headers
    kernel_tree: Path  # the patched source, for decoding and for checkpatch
    root: Root  # that modules are compiled in
    programs: Mapping[str, Path]  # of the quick suite, compiled
    snapshot: Snapshot | None  # that guests are restored from; None: each one is booted

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
    """Return the lab of a target, each part of it made only if it is not current.

    ``stock`` boots Debian's own kernel, which has the stock backend alone.  ``accel`` is
    kvm or tcg; by default KVM where a boot under it was seen.  ``tools`` are Debian packages
    that the guest is to hold beside the usual ones.  Guests are restored from a snapshot of
    one with the quick suite's programs in it, unless ``booted`` is False: for measurements
    of which a restored guest's memory, copied page by page as it is written, is not to be part.
    """
    done = stages.package_kernel(settings, target)
    made = images.lab_image(done, tools=tools)
    kernel = next((one for one in made.kernels if image.is_ours(one) is not stock), None)
    if kernel is None:
        raise InfrastructureError(f"{made.description} holds no kernel that the lab could boot")
    choice = qemu.choose_accelerator(settings.cache, kernel, accel)
    spec = GuestSpec(
        kernel=kernel,
        disk=made.disk,
        accelerator=choice.accelerator,
        # Our own small kernels have the disk's drivers built in, and an initrd takes a
        # KASAN kernel longer than all the rest of the boot.
        initrd=stock or target.flavour in DEBIAN_FLAVOURS,
    )
    if not stock:
        spec = suited(spec, target.variant)
    if stock:
        headers = stages.debian_headers(settings, done.kernel.base)
    else:
        headers = module.whole(stages.kernel_headers(done))
    compiled = programs.compile_programs(settings, done.root, quick.sources(quick.PROGRAMS))
    kept = _snapshot(settings, target, spec, compiled) if booted else None
    return Lab(settings, target, spec, headers, done.kernel.source, done.root, compiled, kept)


def _snapshot(
    settings: Settings, target: Target, spec: GuestSpec, compiled: Mapping[str, Path]
) -> Snapshot:
    provision = Provision(
        {f"program {name}": fs.sha256_file(path) for name, path in compiled.items()}
        | {"what is done": "".join(inspect.getsource(one) for one in quick.READYING)},
        lambda guest: quick.make_ready(guest, compiled),
    )
    workdir = settings.build / "logs" / "vm" / f"snapshot-{target.suite}-{target.name}"
    return snapshot.ensure(settings.cache, spec, workdir=workdir, provision=provision)


def build_module(lab: Lab, source: Path, *, out: Path, race_windows: bool = True) -> BuiltModule:
    """Compile ``source``, which is kmod/ or a changed copy of it, for the lab's kernel.

    ``out`` becomes a directory with the module, its log beside it.  The module has line
    numbers, and with ``race_windows`` the load parameter window_us.  Raises BuildError.
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

    It is restored from the lab's snapshot if that has one.  ``workdir`` receives console.log and
    qemu.log.
    """
    if lab.snapshot is not None:
        return Guest.restore(lab.snapshot, workdir=workdir, expected_taint=MODULE_TAINT)
    return Guest.boot(lab.spec, workdir=workdir, expected_taint=MODULE_TAINT)
