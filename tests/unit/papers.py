"""A target's packages with their record, .changes and .buildinfo files, made without a build."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kbuild.core.model import Package, Settings
from kbuild.ship import manifest
from kbuild.ship.manifest import BuildRecord, FragmentRecord, Manifest
from tests.unit import fake_kernel

ROOT = {
    "bc": "1.07.1-3",
    "debhelper": "13.11.4",
    "g++": "4:12.2.0-3",
    "gcc-12": "12.2.0-14+deb12u1",
    "libc6": "2.36-9+deb12u14",
}
INSTALLED = ("debhelper", "g++", "gcc-12", "libc6")
DATE = "Mon, 16 Nov 2026 11:00:00 +0000"


def record(
    out: Path,
    source: str,
    packages: Sequence[Package],
    *,
    date: str = DATE,
    root: dict[str, str] = ROOT,
) -> Path:
    """Write the .changes and the .buildinfo file of packages; return the latter."""
    lines = [f" {one.sha256} {one.path.stat().st_size} {one.path.name}" for one in packages]
    installed = ",\n".join(f" {name} (= {root[name]})" for name in INSTALLED)
    info = out / f"{source}_1_amd64.buildinfo"
    fake_kernel.write(
        info,
        f"Format: 1.0\nSource: {source}\nArchitecture: amd64\nVersion: 1\n"
        + "Checksums-Sha256:\n"
        + "".join(f"{line}\n" for line in lines)
        + f"Build-Origin: Debian\nBuild-Date: {date}\nInstalled-Build-Depends:\n{installed}\n"
        + 'Environment:\n SOURCE_DATE_EPOCH="1"\n',
    )
    digest = hashlib.sha256(info.read_bytes()).hexdigest()
    fake_kernel.write(
        info.with_suffix(".changes"),
        f"Format: 1.8\nSource: {source}\nVersion: 1\nChecksums-Sha256:\n"
        + f" {digest} {info.stat().st_size} {info.name}\n"
        + "".join(f"{line}\n" for line in lines),
    )
    return info


def release(top: Path) -> tuple[Settings, Manifest, tuple[Package, ...], tuple[Path, ...]]:
    """Make six packages of three source packages, their record, and their .buildinfo files."""
    settings = fake_kernel.settings(top)
    kernel = fake_kernel.kernel(top / "kernel")
    infos, packages = [], []
    for source, names in (
        ("kernel", (f"linux-image-{kernel.release}", f"linux-headers-{kernel.release}")),
        ("module", (f"cplayground-modules-{kernel.release}",)),
        ("dkms", ("cplayground-dkms",)),
    ):
        out = settings.build / f"packages-{source}"
        made = [fake_kernel.package(out, name, "6.1.192-2+cplayground1", name) for name in names]
        infos.append(record(out, source, made))
        packages += made
    fragment = FragmentRecord("own.config", "f" * 64, "CONFIG_TRIM=y\n")
    build = BuildRecord(1, fake_kernel.EPOCH, (fragment,), ROOT)
    described = manifest.describe(settings, [kernel], packages, {}, build=build)
    return settings, replace(described, commit="c" * 40), tuple(packages), tuple(infos)
