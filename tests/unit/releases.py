"""Small releases of real packages, with the verdict of a gate that did not run, for the archive."""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kbuild.archive import evidence
from kbuild.archive.release import Release
from kbuild.archive.required import REQUIRED
from kbuild.core import fs
from kbuild.core.model import Package, Settings, Target
from kbuild.core.run import run
from kbuild.ship import provenance, signing, versions

PROJECT = Path(__file__).resolve().parents[2]

_HOMES: list[Path] = []


def clean_up() -> None:
    """Remove the packages and keys of this process."""
    for home in _HOMES:
        shutil.rmtree(home, ignore_errors=True)
    _HOMES.clear()
    for one in (deb, keys):
        one.cache_clear()


def _home() -> Path:
    home = Path(tempfile.mkdtemp(prefix="kbuild-releases-"))
    _HOMES.append(home)
    return home


@functools.cache
def keys(name: str = "archive") -> Path:
    """Return a keys_dir with one key, made once per run."""
    home = _home() / name
    signing.make_key(settings(home.parent, home))
    return home


def settings(home: Path, keys_dir: Path | None = None) -> Settings:
    """Return settings with all directories below ``home``, and with keys of this run."""
    home.mkdir(exist_ok=True)
    return Settings(
        project=PROJECT,
        build=home / "build",
        cache=home / "cache",
        archive=home / "archive",
        keys=keys_dir or keys(),
    )


@functools.cache
def deb(name: str, version: str, source: str, depends: str = "", salt: str = "") -> Path:
    """Build a package once per run; ``salt`` gives other bytes."""
    home = _home()
    tree = home / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    control = {
        "Package": name,
        "Source": source,
        "Version": version,
        "Architecture": "amd64",
        "Maintainer": "Nobody <nobody@example.org>",
        "Depends": depends,
        "Section": "kernel",
        "Priority": "optional",
        "Description": "made by a test",
    }
    text = "".join(f"{label}: {value}\n" for label, value in control.items() if value)
    (tree / "DEBIAN/control").write_text(text)
    content = tree / "usr/share" / name / "content"
    content.parent.mkdir(parents=True)
    content.write_text(f"{version} {salt}\n")
    path = home / f"{name}_{version}_amd64.deb"
    run(
        ["dpkg-deb", "--root-owner-group", "-Znone", "--build", tree, path],
        env={"SOURCE_DATE_EPOCH": "0"},
        timeout_s=60,
    )
    return path


def release(
    revision: int = 1,
    *,
    base: str = "6.1.192-3",
    suite: str = "bookworm",
    flavour: str = "cloud-amd64",
    module: str = "0.2.0",
    salt: str = "",
    small: bool = False,
) -> Release:
    """Return a release with a package for each role, or with two packages if ``small``.

    ``salt`` gives its image other bytes.
    """
    target = Target(suite, flavour)
    version = versions.package_version(base, revision)
    kernel = versions.release(f"{base.partition('-')[0]}-57", flavour, revision=revision)
    source = versions.source_package(flavour)
    built = versions.prebuilt_version(module, version)
    modules = versions.modules_meta(flavour)
    parts = [
        (versions.image_package(kernel), version, source, "", salt),
        (versions.image_meta(flavour), version, source, versions.image_package(kernel), ""),
        (versions.headers_package(kernel), version, source, "", ""),
        (versions.headers_meta(flavour), version, source, versions.headers_package(kernel), ""),
        (versions.modules_package(kernel), built, modules, versions.image_package(kernel), ""),
        (modules, built, modules, versions.modules_package(kernel), ""),
        ("cplayground-dkms", versions.suite_version(module, "deb12"), "cplayground-dkms", "", ""),
    ]
    packages = []
    for name, number, origin, depends, mark in parts[: 2 if small else None]:
        exact = f"{depends} (= {number})" if depends and origin != modules else depends
        path = deb(name, number, origin, exact, mark)
        packages.append(Package(name, number, "amd64", path, fs.sha256_file(path)))
    return Release(target, kernel, version, tuple(packages))


def _older(release: Release) -> list[str]:
    """Return the IDs of all lower revisions."""
    name, mark, revision = release.id.rpartition("+cplayground")
    return [f"{name}{mark}{number}" for number in range(1, int(revision))]


def verdict(release: Release, **other: object) -> dict[str, Any]:
    """Return the gate.json of a release that passed, with ``other`` values in it."""
    return {
        "format": evidence.FORMAT,
        "id": release.id,
        "passed": True,
        "packages": {one.path.name: one.sha256 for one in release.packages},
        "cases": [
            {"name": name, "outcome": evidence.PASSED, "seconds": 1.0, "reasons": []}
            for name in REQUIRED
        ],
        "older": _older(release),
        "commit": "0" * 40,
        "when": "2026-11-30T12:00:00+00:00",
    } | other


def statement(one: Release) -> dict[str, Any]:
    """Return the smallest statement about the packages of a release."""
    return {
        "_type": provenance.STATEMENT,
        "predicateType": provenance.PREDICATE,
        "predicate": {"buildDefinition": {"buildType": provenance.BUILD_TYPE}},
        "subject": [
            {"name": package.path.name, "digest": {"sha256": package.sha256}}
            for package in one.packages
        ],
    }


def files(home: Path, release: Release, verdict: Mapping[str, Any] | None = None) -> list[Path]:
    """Write the evidence of a release, below ``home``, and return its files."""
    directory = home / "evidence" / release.id
    directory.mkdir(parents=True, exist_ok=True)
    gate, manifest = directory / evidence.GATE, directory / "manifest.json"
    gate.write_text(json.dumps(globals()["verdict"](release) if verdict is None else verdict))
    manifest.write_text("{}\n")
    return [gate, manifest]
