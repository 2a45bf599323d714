"""The provenance: its subjects are the packages, and another statement is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from kbuild.core.errors import BuildError, EvidenceError
from kbuild.core.model import Package
from kbuild.ship import provenance
from tests.unit import papers

STARTED = datetime(2026, 11, 16, 11, 30, tzinfo=timezone(timedelta(hours=1)))
FINISHED = datetime(2026, 11, 16, 11, 0, tzinfo=UTC)


def written(tmp_path: Path) -> tuple[Path, tuple[Package, ...]]:
    _, record, packages, _ = papers.release(tmp_path)
    path = tmp_path / provenance.NAME
    provenance.write(path, provenance.describe(record, started=STARTED, finished=FINISHED))
    return path, packages


def test_it_has_the_form_of_in_toto_and_slsa(tmp_path: Path) -> None:
    path, packages = written(tmp_path)
    raw = json.loads(path.read_text())
    assert raw["_type"] == "https://in-toto.io/Statement/v1"
    assert raw["predicateType"] == "https://slsa.dev/provenance/v1"
    assert {one["name"]: one["digest"]["sha256"] for one in raw["subject"]} == {
        one.path.name: one.sha256 for one in packages
    }
    assert raw["predicate"].keys() == {"buildDefinition", "runDetails"}
    details = raw["predicate"]["runDetails"]
    assert details["builder"]["cplayground_slsaBuildLevel"] == 0
    assert details["metadata"]["startedOn"] == "2026-11-16T10:30:00Z"
    assert details["metadata"]["finishedOn"] == "2026-11-16T11:00:00Z"
    assert details["metadata"]["invocationId"].startswith("urn:uuid:")


def test_it_names_every_input_with_its_digest(tmp_path: Path) -> None:
    path, _ = written(tmp_path)
    build = json.loads(path.read_text())["predicate"]["buildDefinition"]
    assert build["externalParameters"] == {
        "suite": "bookworm",
        "flavour": "cloud-amd64",
        "variant": "release",
        "version": "6.1.192-2",
        "revision": 1,
        "modules": "keep",
        "fragments": [{"name": "own.config", "sha256": "f" * 64, "text": "CONFIG_TRIM=y\n"}],
    }
    by_name = {one["name"]: one for one in build["resolvedDependencies"]}
    assert all(":" in one["uri"] for one in by_name.values())
    assert by_name["cplayground-kernel"]["digest"] == {"gitCommit": "c" * 40}
    assert by_name["linux-source-6.1"]["digest"] == {"sha256": "0" * 64}
    assert by_name["linux-source-6.1"]["annotations"]["signers"] == ["A" * 40, "B" * 40]
    assert len(by_name["patches/v5.11/0001-export.patch"]["digest"]["sha256"]) == 64
    compiler = by_name["compile root: gcc-12"]
    assert compiler["uri"] == "pkg:deb/debian/gcc-12@12.2.0-14%2Bdeb12u1?distro=bookworm"
    assert len(by_name) == 1 + 4 + 1 + len(papers.ROOT)


@pytest.mark.parametrize("commit", [None, "c" * 40 + "-dirty"])
def test_a_changed_checkout_has_no_digest_of_a_commit(tmp_path: Path, commit: str | None) -> None:
    _, record, _, _ = papers.release(tmp_path)
    found = provenance.describe(replace(record, commit=commit), started=STARTED, finished=FINISHED)
    project = found["predicate"]["buildDefinition"]["resolvedDependencies"][0]
    assert "digest" not in project and str(commit or "unknown") in project["uri"]


def test_two_builds_are_two_invocations(tmp_path: Path) -> None:
    _, record, _, _ = papers.release(tmp_path)

    def number(finished: datetime) -> str:
        found = provenance.describe(record, started=STARTED, finished=finished)
        return str(found["predicate"]["runDetails"]["metadata"]["invocationId"])

    assert number(FINISHED) == number(FINISHED) != number(FINISHED + timedelta(seconds=1))


def test_the_packages_are_its_subjects(tmp_path: Path) -> None:
    path, packages = written(tmp_path)
    assert provenance.subjects(path) == {one.path.name: one.sha256 for one in packages}


def edit(key: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda raw: raw.__setitem__(key, value)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (edit("_type", "https://in-toto.io/Statement/v0.1"), "of another kind"),
        (edit("predicateType", "https://slsa.dev/provenance/v0.2"), "of another kind"),
        (edit("predicate", {"buildDefinition": {"buildType": "x"}}), "of another kind"),
        (lambda raw: raw["subject"].append(raw["subject"][0]), "of another kind"),
        (edit("subject", [{"name": "a"}]), "not a statement"),
        (edit("subject", 1), "not a statement"),
        (lambda raw: raw.pop("predicate"), "not a statement"),
    ],
)
def test_another_statement_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], match: str
) -> None:
    path, _ = written(tmp_path)
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))
    with pytest.raises(EvidenceError, match=match):
        provenance.subjects(path)


@pytest.mark.parametrize("text", [None, "", "[]", "\xff"])
def test_a_damaged_statement_is_refused(tmp_path: Path, text: str | None) -> None:
    path, _ = written(tmp_path)
    if text is None:
        path.unlink()
    else:
        path.write_bytes(text.encode("latin-1"))
    with pytest.raises(EvidenceError, match="not a statement"):
        provenance.subjects(path)


def test_a_record_of_an_earlier_version_is_not_enough(tmp_path: Path) -> None:
    _, record, _, _ = papers.release(tmp_path)
    earlier = replace(record, kernels=(replace(record.kernels[0], build=None),))
    with pytest.raises(BuildError, match="does not say how it was built"):
        provenance.describe(earlier, started=STARTED, finished=FINISHED)
