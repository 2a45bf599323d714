"""Write and read the provenance of a release: an in-toto Statement with SLSA's predicate.

Form: https://in-toto.io/Statement/v1 and https://slsa.dev/spec/v1.0/provenance.  It claims no
SLSA level, because the owner of the machine can forge it.  docs/reference/provenance.md describes
our build type.
"""

from __future__ import annotations

import json
import platform
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kbuild.core import fs, suites
from kbuild.core.errors import EvidenceError
from kbuild.ship import manifest, sbom
from kbuild.ship.manifest import BuildRecord, KernelRecord, Manifest

NAME = "provenance.intoto.json"
SIGNATURE = f"{NAME}.asc"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
# RFC 2606 reserves the host name for names that do not resolve: the repository, which has the
# page, has no address of its own.
BUILD_TYPE = "https://cplayground-kernel.invalid/docs/reference/provenance/package/v1"
BUILDER = "https://cplayground-kernel.invalid/docs/reference/provenance/builder/own-machine"
PROJECT = "git+https://cplayground-kernel.invalid/cplayground-kernel"

_SPACE = uuid.uuid5(uuid.NAMESPACE_URL, BUILD_TYPE)


def describe(record: Manifest, *, started: datetime, finished: datetime) -> dict[str, Any]:
    """Return the statement about the packages of a target's record.

    ``started`` and ``finished`` are when the kernel's build began and the packaging ended.
    Raises BuildError if the record does not say how the kernel was built.
    """
    kernel, build = manifest.single(record)
    parameters = {
        "suite": kernel.suite,
        "flavour": kernel.flavour,
        "variant": kernel.variant,
        "version": kernel.base_version,
        "revision": build.revision,
        "modules": "keep" if kernel.method == "fast" else "rebuild",
        "fragments": [asdict(fragment) for fragment in build.fragments],
    }
    statement = {
        "_type": STATEMENT,
        "subject": [
            {"name": Path(one.path).name, "digest": {"sha256": one.sha256}}
            for one in record.outputs
        ],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": parameters,
                "internalParameters": {
                    "release": kernel.release,
                    "epoch": build.epoch,
                    "compiler": kernel.compiler,
                    "configSha256": kernel.config_sha256,
                },
                "resolvedDependencies": list(_dependencies(record, kernel, build)),
            },
            "runDetails": {
                "builder": {
                    "id": BUILDER,
                    "version": {
                        "cplayground-kernel": record.module_version,
                        "python": platform.python_version(),
                    },
                    "cplayground_slsaBuildLevel": 0,
                },
                "metadata": {
                    "startedOn": _time(started),
                    "finishedOn": _time(finished),
                },
            },
        },
    }
    number = uuid.uuid5(_SPACE, json.dumps(statement, sort_keys=True))
    statement["predicate"]["runDetails"]["metadata"]["invocationId"] = number.urn  # type: ignore[index]
    return statement


def _time(when: datetime) -> str:
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _dependencies(
    record: Manifest, kernel: KernelRecord, build: BuildRecord
) -> Iterator[dict[str, object]]:
    """Yield everything that the packages were made from, as resource descriptors."""
    commit = record.commit or "unknown"
    name = commit.removesuffix("-dirty")
    project: dict[str, object] = {"uri": f"{PROJECT}@{commit}", "name": "cplayground-kernel"}
    if name == commit and record.commit:
        project["digest"] = {"gitCommit": commit}
    yield project
    codename = suites.suite(kernel.suite).codename
    for file in kernel.files:
        yield {
            "uri": sbom.debian_url(file.name, file.version, codename).to_string(),
            "digest": {"sha256": file.sha256},
            "name": file.name,
            "annotations": {"size": file.size, "signers": list(kernel.signers)},
        }
    for patch in kernel.patches:
        path = f"patches/{kernel.series}/{patch.name}"
        yield {
            "uri": f"{PROJECT}@{commit}#{path}",
            "digest": {"sha256": patch.sha256},
            "name": path,
        }
    for package, version in sorted(build.root.items()):
        # The root has installed packages, whose files have no digest any more.
        yield {
            "uri": sbom.debian_url(package, version, codename).to_string(),
            "name": f"compile root: {package}",
        }


def write(path: Path, statement: Mapping[str, Any]) -> None:
    """Write a statement, by rename."""
    fs.write_json(path, statement)


def subjects(path: Path) -> dict[str, str]:
    """Return the SHA-256 of each package that a statement is about, by its file name.

    The signature is not verified.  Raises EvidenceError for anything but a statement of ours.
    """
    try:
        statement = json.loads(path.read_bytes())
        build_type = statement["predicate"]["buildDefinition"]["buildType"]
        kinds = (statement["_type"], statement["predicateType"], build_type)
        found = {str(one["name"]): str(one["digest"]["sha256"]) for one in statement["subject"]}
        whole = len(found) == len(statement["subject"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise EvidenceError(
            f"{path} is not a statement about packages",
            found=f"{type(error).__name__}: {error}",
        ) from error
    expected = (STATEMENT, PREDICATE, BUILD_TYPE)
    if kinds != expected or not whole:
        raise EvidenceError(
            f"{path} is a statement of another kind",
            expected="\n".join(expected),
            found="\n".join(map(str, kinds)) if whole else "two subjects with one name",
        )
    return found
