"""Each kind of damage in an archive is found, with its place, and what was expected there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from kbuild.archive import operations, records, snapshots, verify
from kbuild.archive.verify import Finding
from kbuild.core import fs
from kbuild.core.errors import EvidenceError, TrustError, UserError
from kbuild.core.model import Settings
from kbuild.ship import indexes, signing
from tests.unit import releases
from tests.unit.releases import release

FIRST, SECOND = release(1, small=True), release(2, small=True)
DIST = Path("dists/bookworm")
IMAGE = Path(
    "pool/main/linux-cplayground-cloud-amd64",
    "linux-image-cplayground-cloud-amd64_6.1.192-3+cplayground1_amd64.deb",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """An archive with one promoted and one staged release."""
    given = releases.settings(tmp_path_factory.mktemp("whole"))
    for one in (FIRST, SECOND):
        files = releases.files(given.build, one)
        statement = files[1].with_name("provenance.intoto.json")
        statement.write_text(json.dumps(releases.statement(one)))
        signature = statement.with_name(f"{statement.name}.asc")
        signature.write_bytes(signing.sign_detached(given, statement.read_bytes()))
        operations.stage(given, one, [*files, statement, signature])
    operations.promote(given, FIRST.id, 100)
    yield given
    fs.remove_tree(given.archive)


@pytest.fixture
def given(whole: Settings, tmp_path: Path) -> Settings:
    shutil.copytree(whole.archive, tmp_path / "archive", symlinks=True)
    return releases.settings(tmp_path)


def findings(given: Settings) -> list[str]:
    return [str(one) for one in verify.check(given).findings]


def edit(path: Path, change: Callable[[Any], None]) -> None:
    """Change a JSON file."""
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))


def test_a_whole_archive_has_no_findings(given: Settings) -> None:
    found = verify.check(given)
    assert found.findings == ()
    assert (found.packages, found.releases) == (5, 2)
    assert found.dists == ("bookworm", "bookworm-staging")
    assert verify.error(found) is None


def test_a_verdict_of_a_gate_with_fewer_cases_is_no_damage(given: Settings) -> None:
    """The gate gets cases, and what servers have was judged by the gate of its time."""
    judge_with(given.archive, lambda cases: cases[:-1])
    assert findings(given) == []
    assert "was not run" in "\n".join(operations.complaints(given, FIRST.id))


def test_what_killed_writers_leave_is_no_damage(given: Settings) -> None:
    for name in (".work.x", "pool/main/x/.y", "releases/.z", "snapshots/.7.x", "dists/.bookworm"):
        (given.archive / name).parent.mkdir(exist_ok=True)
        (given.archive / name).write_text("half")
    assert findings(given) == []


def packages_bytes(root: Path) -> str:
    (root / IMAGE).write_bytes(b"x")
    return f"{IMAGE}: it is not the recorded package"


def package_missing(root: Path) -> str:
    (root / IMAGE).unlink()
    return f"{IMAGE}: it is missing; expected "


def package_link(root: Path) -> str:
    (root / IMAGE).rename(root / "moved")
    (root / IMAGE).symlink_to(root / "moved")
    return f"{IMAGE}: it does not belong here"


def package_mode(root: Path) -> str:
    (root / IMAGE).chmod(0o666)
    return f"{IMAGE}: it has another mode; expected 0644; found 0666"


def package_stray(root: Path) -> str:
    (root / IMAGE.with_name("x.deb")).write_text("x")
    return f"{IMAGE.with_name('x.deb')}: it does not belong here"


def inrelease_text(root: Path) -> str:
    path = root / DIST / "InRelease"
    path.write_text(path.read_text().replace("Label: c", "Label: C"))
    return "InRelease: there is no good signature by a known key"


def inrelease_missing(root: Path) -> str:
    (root / DIST / "InRelease").unlink()
    return "InRelease: it cannot be read; found [Errno 2]"


def inrelease_unsigned(root: Path) -> str:
    shutil.copy(root / DIST / "Release", root / DIST / "InRelease")
    return "InRelease: the InRelease is not one signed text"


def release_text(root: Path) -> str:
    path = root / DIST / "Release"
    path.write_text(path.read_text().replace("Label: c", "Label: C"))
    return "InRelease: it is another text than Release"


def foreign_key(root: Path) -> str:
    path = root / DIST / "InRelease"
    other = releases.settings(root.parent / "other", releases.keys("foreign"))
    path.write_bytes(signing.sign(other, (root / DIST / "Release").read_bytes()))
    return "InRelease: there is no good signature by a known key"


def sign_again(root: Path, change: Callable[[str], str]) -> None:
    path = root / DIST / "Release"
    text = change(path.read_text()).encode()
    path.write_bytes(text)
    own = releases.settings(root.parent)
    path.with_name("InRelease").write_bytes(signing.sign(own, text))


def date(root: Path, field: str, days: int) -> None:
    moved = f"{field}: {indexes._date(datetime.now(UTC) + timedelta(days=days))}"
    sign_again(
        root,
        lambda text: "".join(
            f"{moved}\n" if line.startswith(f"{field}: ") else line
            for line in text.splitlines(keepends=True)
        ),
    )


def expired(root: Path) -> str:
    date(root, "Valid-Until", -1)
    return "InRelease: it has expired; expected a Valid-Until after "


def future(root: Path) -> str:
    date(root, "Date", 1)
    return "InRelease: its date lies in the future"


def other_suite(root: Path) -> str:
    sign_again(root, lambda text: text.replace("Suite: bookworm", "Suite: trixie"))
    return "InRelease: it is of another suite; expected bookworm; found trixie"


def index_bytes(root: Path) -> str:
    path = root / DIST / snapshots.INDEX
    path.write_bytes(path.read_bytes().replace(b"amd64", b"arm64", 1))
    return "main/binary-amd64/Packages: it is not what the Release lists; expected "


def index_entry(root: Path) -> str:
    """Sign an index that lists another size."""
    path = root / DIST / snapshots.INDEX
    before = path.read_bytes()
    after = before.replace(b"Size: 2", b"Size: 3", 1)
    old, new = fs.sha256_file(path), ""
    path.write_bytes(after)
    new = fs.sha256_file(path)
    (path.parent / snapshots.BY_HASH / new).write_bytes(after)
    (path.parent / snapshots.BY_HASH / old).unlink()
    sign_again(root, lambda text: text.replace(old, new))
    return "differs from snapshot.json; expected "


def index_compressed_missing(root: Path) -> str:
    (root / DIST / "main/binary-amd64/Packages.xz").unlink()
    return "Packages.xz: it is not what the Release lists; expected "


def by_hash(root: Path) -> list[Path]:
    """Return the by-hash files of an earlier index."""
    listed = (root / DIST / "Release").read_text()
    home = root / DIST / "main/binary-amd64" / snapshots.BY_HASH
    return sorted(path for path in home.iterdir() if path.name not in listed)


def by_hash_earlier(root: Path) -> str:
    one = by_hash(root)[0]
    one.unlink()
    return f"{one.name}: an earlier index is damaged; expected {one.name}; found no such file"


def by_hash_own(root: Path) -> str:
    path = root / DIST / snapshots.INDEX
    one = path.parent / snapshots.BY_HASH / fs.sha256_file(path)
    one.unlink()
    one.write_text("x")
    return f"{one.name}: it is not what the Release lists; expected {one.name}; found "


def by_hash_stray(root: Path) -> str:
    by_hash(root)[0].with_name("0" * 64).write_text("x")
    return f"{'0' * 64}: it does not belong here"


def dist_stray(root: Path) -> str:
    (root / DIST / "Release.gpg").write_text("x")
    return "Release.gpg: it does not belong here"


def link_elsewhere(root: Path) -> str:
    (root / DIST).unlink()
    (root / DIST).symlink_to("/tmp")
    return f"{DIST}: it does not lead to a complete snapshot"


def link_dangling(root: Path) -> str:
    (root / DIST).unlink()
    (root / DIST).symlink_to("../snapshots/99/bookworm")
    return f"{DIST}: it does not lead to a complete snapshot"


def link_of_another_suite(root: Path) -> str:
    (root / DIST).unlink()
    (root / DIST).symlink_to(f"../snapshots/{snapshots.numbers(root)[0]}/bookworm-staging")
    return f"{DIST}: it does not lead to a complete snapshot"


def no_link_but_a_directory(root: Path) -> str:
    target = (root / DIST).resolve()
    (root / DIST).unlink()
    shutil.copytree(target, root / DIST)
    return f"{DIST}: it does not lead to a complete snapshot"


def link_missing(root: Path) -> str:
    (root / DIST).unlink()
    return f"{DIST}: it does not show {IMAGE} as the records say; expected 100 %; found no entry"


def snapshot_description(root: Path) -> str:
    path = snapshots.path(root, snapshots.numbers(root)[0]) / snapshots.NAME
    path.write_text("{")
    return "snapshot.json: it does not describe bookworm"


def snapshot_stray(root: Path) -> str:
    (root / "snapshots/x").mkdir()
    return "snapshots/x: it does not belong here"


def replayed(root: Path) -> str:
    """Let a suite lead to an earlier snapshot, in which the release was not yet promoted."""
    oldest = snapshots.numbers(root)[-1]
    (root / DIST).unlink()
    (root / DIST).symlink_to(f"../snapshots/{oldest}/bookworm")
    return f"{DIST}: it does not show {IMAGE} as the records say"


def top_stray(root: Path) -> str:
    (root / "secret.key").write_text("x")
    return "secret.key: it does not belong here"


def index_again(root: Path, text: bytes) -> str:
    (root / DIST / snapshots.INDEX).write_bytes(text)
    return "main/binary-amd64/Packages: it cannot be read"


def index_without_fields(root: Path) -> str:
    return index_again(root, b"Package: x\n")


def index_binary(root: Path) -> str:
    return index_again(root, b"Package: \xff\xfe\n")


def earlier_release(root: Path, text: bytes) -> str:
    number = snapshots.numbers(root)[-1]
    (snapshots.path(root, number) / DIST.name / "Release").write_bytes(text)
    return f"snapshots/{number}/bookworm/Release: it is damaged; expected a Release file with"


def earlier_release_empty(root: Path) -> str:
    return earlier_release(root, b"")


def earlier_release_binary(root: Path) -> str:
    return earlier_release(root, b"\xff\xfe: \x00\n")


def earlier_release_half(root: Path) -> str:
    return earlier_release(root, b"SHA256:\n 00 x\n")


def snapshots_file(root: Path) -> str:
    (root / "snapshots/README").write_text("x")
    return "snapshots/README: it does not belong here"


SERVERS = (
    *(packages_bytes, package_missing, package_link, package_mode, package_stray),
    *(inrelease_text, inrelease_missing, inrelease_unsigned, release_text, foreign_key),
    *(expired, future, other_suite, index_bytes, index_entry, index_compressed_missing),
    *(by_hash_earlier, by_hash_own, by_hash_stray, dist_stray),
    *(link_elsewhere, link_dangling, link_of_another_suite, no_link_but_a_directory),
    *(link_missing, snapshot_description, snapshot_stray, replayed, top_stray),
    *(index_without_fields, index_binary, snapshots_file),
    *(earlier_release_empty, earlier_release_binary, earlier_release_half),
)


def home(root: Path) -> Path:
    return records.home(root, FIRST.id)


def evidence_bytes(root: Path) -> str:
    (home(root) / "manifest.json").write_text("{}")
    return "manifest.json: the evidence has changed; expected "


def evidence_missing(root: Path) -> str:
    (home(root) / "manifest.json").unlink()
    return "manifest.json: the evidence has changed; expected "


def evidence_stray(root: Path) -> str:
    (home(root) / "notes").write_text("x")
    return "notes: it does not belong here"


def evidence_signature(root: Path) -> str:
    path = home(root) / "provenance.intoto.json.asc"
    other = releases.settings(root.parent / "other", releases.keys("foreign"))
    signed = path.with_suffix("").read_bytes()
    path.write_bytes(signing.sign_detached(other, signed))
    record = records.read(root, FIRST.id)
    digests = {**record.evidence, path.name: fs.sha256_file(path)}
    edit(home(root) / records.NAME, lambda raw: raw.update(evidence=digests))
    return "provenance.intoto.json.asc: the signature does not verify"


def provenance_of_other_bytes(root: Path) -> str:
    path = home(root) / "provenance.intoto.json"
    edit(path, lambda raw: raw["subject"][0]["digest"].update(sha256="0" * 64))
    name = json.loads(path.read_text())["subject"][0]["name"]
    digests = {**records.read(root, FIRST.id).evidence, path.name: fs.sha256_file(path)}
    edit(home(root) / records.NAME, lambda raw: raw.update(evidence=digests))
    return f"provenance.intoto.json: it is not about {name} of the record; expected "


def verdict_of_other_bytes(root: Path) -> str:
    path = home(root) / "gate.json"
    edit(path, lambda raw: raw["packages"].update({IMAGE.name: "0" * 64}))
    digests = {**records.read(root, FIRST.id).evidence, path.name: fs.sha256_file(path)}
    edit(home(root) / records.NAME, lambda raw: raw.update(evidence=digests))
    return f"gate.json: {IMAGE.name} was judged with sha256 {'0' * 64}"


def judge_with(root: Path, cases: Callable[[list[Any]], list[Any]]) -> None:
    path = home(root) / "gate.json"
    edit(path, lambda raw: raw.update(cases=cases(raw["cases"])))
    digests = {**records.read(root, FIRST.id).evidence, path.name: fs.sha256_file(path)}
    edit(home(root) / records.NAME, lambda raw: raw.update(evidence=digests))


def verdict_without_cases(root: Path) -> str:
    judge_with(root, lambda cases: [])
    return "gate.json: no case was run"


def no_verdict(root: Path) -> str:
    (home(root) / "gate.json").unlink()
    digests = {**records.read(root, FIRST.id).evidence}
    del digests["gate.json"]
    edit(home(root) / records.NAME, lambda raw: raw.update(evidence=digests))
    return "gate.json: the release is promoted without a verdict of the gate"


def record_stray(root: Path) -> str:
    (home(root).parent / "file").write_text("x")
    return "releases/file: it does not belong here"


def record_directory(root: Path) -> str:
    (home(root).parent / "No release").mkdir()
    return "releases/No release: it does not belong here"


RECORDS = (
    *(evidence_bytes, evidence_missing, evidence_stray, evidence_signature),
    *(provenance_of_other_bytes, verdict_of_other_bytes, verdict_without_cases, no_verdict),
    *(record_stray, record_directory),
)


def record_damaged(root: Path) -> str:
    (home(root) / records.NAME).write_text("{")
    return "release.json: it is damaged"


def record_of_another(root: Path) -> str:
    edit(home(root) / records.NAME, lambda raw: raw.update(version="7.0-1+cplayground1"))
    return "found it is the record of bookworm-cloud-amd64-7.0-1+cplayground1"


def record_that_leads_out(root: Path) -> str:
    edit(home(root) / records.NAME, lambda raw: raw["packages"][0].update(path="pool/../../x"))
    return "found pool/../../x is not in the pool"


def record_missing(root: Path) -> str:
    shutil.rmtree(home(root))
    return f"{DIST}: it does not show {IMAGE} as the records say; expected no entry; found 100 %"


def state_changed(root: Path) -> str:
    edit(home(root) / records.NAME, lambda raw: raw.update(percent=10))
    return f"{DIST}: it does not show {IMAGE} as the records say; expected 10 %; found 100 %"


BOTH = (record_damaged, record_of_another, record_that_leads_out, record_missing, state_changed)


@pytest.mark.parametrize("damage", [*SERVERS, *RECORDS, *BOTH], ids=lambda one: one.__name__)
def test_damage_is_found(given: Settings, damage: Callable[[Path], str]) -> None:
    expected = damage(given.archive)
    found = verify.check(given)
    assert any(expected in str(one) for one in found.findings), findings(given)
    error = verify.error(found)
    kind = EvidenceError if damage in RECORDS else TrustError
    assert type(error) is kind, findings(given)
    assert expected in (error.found or "")


# Damage that no index is made from.
HARMLESS = (
    *(earlier_release_empty, earlier_release_binary, earlier_release_half),
    *(snapshots_file, record_stray, record_directory),
)


@pytest.mark.parametrize("damage", HARMLESS, ids=lambda one: one.__name__)
def test_writers_go_on_beside_what_they_do_not_need(
    given: Settings, damage: Callable[[Path], str]
) -> None:
    damage(given.archive)
    assert len(operations.releases(given)) == 2
    operations.refresh(given)
    operations.resign(given)
    operations.promote(given, SECOND.id, 10)
    operations.rollback(given, SECOND.id, "")


def test_nothing_verifies_without_a_key(given: Settings, tmp_path: Path) -> None:
    other = releases.settings(tmp_path, tmp_path / "none")
    assert "dists: no signature can be verified without a key" in findings(other)


def test_there_must_be_an_archive(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no archive in"):
        verify.check(releases.settings(tmp_path))


def test_paths_are_those_in_the_archive(given: Settings) -> None:
    (given.archive / IMAGE).write_bytes(b"x")
    for one in verify.check(given).findings:
        assert isinstance(one, Finding)
        assert os.path.lexists(given.archive / one.path)
