"""The chain of trust: what an archive may say, and who may say it."""

from __future__ import annotations

import dataclasses
import lzma
import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kbuild import archive
from kbuild.errors import InfrastructureError, LostDependencyError, TrustError
from kbuild.model import Settings
from tests.unit import signed_archive
from tests.unit.signed_archive import Fault, Server, SignedArchive, Waits, flip, kept, settings

DIST = "bookworm"
PACKAGES = "main/binary-amd64/Packages.xz"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> SignedArchive:
    one = SignedArchive(tmp_path_factory.mktemp("template"), signed_archive.key())
    one.add(DIST, "linux-kbuild-6.1", "6.1.10-1", depends="libc6 (>= 2.34)")
    one.publish(DIST)
    return one


@pytest.fixture
def home(template: SignedArchive, tmp_path: Path) -> SignedArchive:
    return template.copy(tmp_path / "archive")


@pytest.fixture
def server(home: SignedArchive) -> Iterator[Server]:
    with signed_archive.serve(home.root) as one:
        yield one


def release(one: Settings, *bases: str) -> archive.Release:
    row = signed_archive.suite(signed_archive.key())
    return archive.release(one, row, DIST, bases, Waits().network)


def packages(one: Settings, *bases: str) -> list[archive.Listed]:
    return archive.packages(one, release(one, *bases), Waits().network, prefix="linux-")


def test_a_good_release_is_taken_with_its_signer(tmp_path: Path, server: Server) -> None:
    found = release(settings(tmp_path), server.url)
    assert found.signers == (signed_archive.key().fingerprint,)
    assert found.dist == DIST
    assert found.bases == (server.url,)
    assert not found.expired
    assert set(found.files) == {PACKAGES}


def test_the_packages_of_the_prefix_are_listed(tmp_path: Path, server: Server) -> None:
    (one,) = packages(settings(tmp_path), server.url)
    assert (one.package, one.version, one.source) == ("linux-kbuild-6.1", "6.1.10-1", "linux")
    assert one.depends == "libc6 (>= 2.34)"
    assert one.wanted.name == "linux-kbuild-6.1_6.1.10-1_amd64.deb"


def refused(home: SignedArchive, server: Server, tmp_path: Path) -> str:
    """Fetch the release, which must be refused and leave nothing; return the message."""
    one = settings(tmp_path)
    with pytest.raises(TrustError) as caught:
        release(one, server.url)
    assert kept(one) == []
    assert f"{server.url}/dists/{DIST}/InRelease" in str(caught.value)
    return str(caught.value)


def test_an_unsigned_release_is_refused(
    home: SignedArchive, server: Server, tmp_path: Path
) -> None:
    home.inrelease(DIST).write_text(home.publish(DIST))
    assert "not signed" in refused(home, server, tmp_path)


def test_a_release_signed_by_a_stranger_is_refused(
    home: SignedArchive, server: Server, tmp_path: Path
) -> None:
    home.publish(DIST, key=signed_archive.key("stranger"))
    message = refused(home, server, tmp_path)
    assert "not signed by a key of the archive's keyring" in message
    assert "No public key" in message


def test_a_release_signed_by_an_expired_key_is_refused(
    home: SignedArchive, server: Server, tmp_path: Path
) -> None:
    old = signed_archive.key("old", expired=True)
    home.publish(DIST, key=old)
    row = signed_archive.suite(old)
    with pytest.raises(TrustError, match="not signed"):
        archive.release(settings(tmp_path), row, DIST, [server.url], Waits().network)


@pytest.mark.parametrize("field", ["Codename: bookworm", "SHA256:\n "])
def test_a_changed_byte_in_a_release_is_refused(
    home: SignedArchive, server: Server, tmp_path: Path, field: str
) -> None:
    path = home.inrelease(DIST)
    flip(path, path.read_bytes().index(field.encode()) + len(field) + 1)
    assert "BAD signature" in refused(home, server, tmp_path)


def test_a_truncated_release_is_refused(
    home: SignedArchive, server: Server, tmp_path: Path
) -> None:
    server.fail("InRelease", Fault(truncate_to=home.inrelease(DIST).stat().st_size - 100))
    assert "not signed" in refused(home, server, tmp_path)


def test_text_before_the_signed_text_is_refused(
    home: SignedArchive, server: Server, tmp_path: Path
) -> None:
    path = home.inrelease(DIST)
    path.write_bytes(b"Codename: evil\n\n" + path.read_bytes())
    assert "not signed" in refused(home, server, tmp_path)


@pytest.mark.parametrize("signer", ["archive", "stranger"])
def test_a_message_that_would_unpack_to_gigabytes_is_not_unpacked(
    home: SignedArchive, server: Server, tmp_path: Path, signer: str
) -> None:
    home.inrelease(DIST).write_bytes(signed_archive.key(signer).bomb(1 << 26))
    assert home.inrelease(DIST).stat().st_size < 100_000
    assert "not signed" in refused(home, server, tmp_path)


def test_a_verification_that_takes_too_long_leads_to_the_next_mirror(
    home: SignedArchive, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = SignedArchive(tmp_path / "slow", signed_archive.key())
    slow.publish(DIST, codename="slow")
    gpgv = tmp_path / "bin/gpgv"
    gpgv.parent.mkdir()
    gpgv.write_text(
        "#!/bin/sh\n"
        "for last; do :; done\n"
        'grep -q "Codename: slow" "$last" && exec sleep 600\n'
        f'exec {shutil.which("gpgv")} "$@"\n'
    )
    gpgv.chmod(0o755)
    monkeypatch.setenv("PATH", f"{gpgv.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(archive, "_GPGV_TIMEOUT_S", 0.5)
    with signed_archive.serve(slow.root) as slower:
        found = release(settings(tmp_path), slower.url, server.url)
        assert found.bases[0] == server.url
        with pytest.raises(TrustError, match="did not finish"):
            release(settings(tmp_path / "again"), slower.url)


def test_of_two_signed_texts_only_one_is_read() -> None:
    key = signed_archive.key()
    two = key.clearsign("Codename: good\n") + key.clearsign("Codename: old\n")
    assert archive.verify(key.keyring, two, "it")[0] == "Codename: good\n"


def test_of_two_signed_texts_a_strangers_does_not_borrow_trust() -> None:
    key, stranger = signed_archive.key(), signed_archive.key("stranger")
    good, evil = key.clearsign("Codename: good\n"), stranger.clearsign("Codename: evil\n")
    with pytest.raises(TrustError):
        archive.verify(key.keyring, evil + good, "it")
    assert archive.verify(key.keyring, good + evil, "it")[0] == "Codename: good\n"


def test_a_second_signature_by_an_unknown_key_does_no_harm(
    home: SignedArchive, server: Server, tmp_path: Path
) -> None:
    both = signed_archive.sign_twice(
        home.publish(DIST), signed_archive.key(), signed_archive.key("stranger")
    )
    home.inrelease(DIST).write_bytes(both)
    found = release(settings(tmp_path), server.url)
    assert found.signers == (signed_archive.key().fingerprint,)


def test_an_expired_release_is_refused_with_its_date(
    home: SignedArchive, server: Server, tmp_path: Path
) -> None:
    home.publish(DIST, date=datetime.now(UTC) - timedelta(days=9))
    assert "has expired" in refused(home, server, tmp_path)


def test_an_expired_release_is_taken_on_request_and_marked(
    home: SignedArchive, server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home.publish(DIST, date=datetime.now(UTC) - timedelta(days=9))
    one = dataclasses.replace(settings(tmp_path), accept_expired=True)
    assert release(one, server.url).expired
    assert "expired on" in caplog.text


def test_a_release_that_never_expires_is_taken(
    home: SignedArchive, server: Server, tmp_path: Path
) -> None:
    home.publish(DIST, date=datetime.now(UTC) - timedelta(days=900), valid_for=None)
    assert not release(settings(tmp_path), server.url).expired


def test_a_release_from_the_future_is_refused(
    home: SignedArchive, server: Server, tmp_path: Path
) -> None:
    home.publish(DIST, date=datetime.now(UTC) + timedelta(days=3))
    assert "clock" in refused(home, server, tmp_path)


def test_another_suite_is_refused(home: SignedArchive, server: Server, tmp_path: Path) -> None:
    home.publish(DIST, codename="trixie")
    message = refused(home, server, tmp_path)
    assert "another suite" in message
    assert "trixie" in message


def test_an_older_release_than_the_last_is_refused(
    home: SignedArchive, server: Server, tmp_path: Path
) -> None:
    one = settings(tmp_path)
    last = release(one, server.url)
    home.publish(DIST, date=datetime.now(UTC) - timedelta(days=2))
    with pytest.raises(TrustError, match="older than the one seen before"):
        release(one, server.url)
    assert release(settings(tmp_path, offline=True), server.url).date == last.date


def test_a_bad_mirror_is_survived_with_a_good_one(
    home: SignedArchive, server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = SignedArchive(tmp_path / "bad", signed_archive.key("stranger"))
    bad.publish(DIST)
    with signed_archive.serve(bad.root) as worse:
        found = release(settings(tmp_path), worse.url, server.url)
        assert found.bases == (server.url, worse.url)
        assert worse.url in caplog.text


def test_a_mirror_without_the_suite_is_passed_over(server: Server, tmp_path: Path) -> None:
    with signed_archive.serve(tmp_path / "empty") as empty:
        assert release(settings(tmp_path), empty.url, server.url).bases[0] == server.url
        with pytest.raises(InfrastructureError) as caught:
            release(settings(tmp_path / "again"), empty.url)
        assert "404" in str(caught.value)
        assert empty.url in str(caught.value)


def test_an_unchanged_release_is_not_sent_again(
    home: SignedArchive, server: Server, tmp_path: Path
) -> None:
    one = settings(tmp_path)
    first = release(one, server.url)
    assert release(one, server.url) == first
    assert [r.status for r in server.asked("InRelease")] == [200, 304]
    home.publish(DIST, date=datetime.now(UTC) + timedelta(seconds=5))
    assert release(one, server.url).date > first.date


def test_a_damaged_release_in_the_cache_is_fetched_again(server: Server, tmp_path: Path) -> None:
    one = settings(tmp_path)
    first = release(one, server.url)
    flip(one.cache / "dists" / DIST / "InRelease", 200)
    assert release(one, server.url) == first
    assert [r.status for r in server.asked("InRelease")] == [200, 200]


def test_offline_uses_the_last_release(server: Server, tmp_path: Path) -> None:
    offline = settings(tmp_path, offline=True)
    with pytest.raises(InfrastructureError, match="not in the cache"):
        release(offline, server.url)
    online = packages(settings(tmp_path), server.url)
    before = len(server.requests)
    assert packages(offline, server.url) == online
    assert len(server.requests) == before


def test_offline_says_that_the_release_has_expired(
    home: SignedArchive, server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home.publish(DIST, date=datetime.now(UTC) - timedelta(days=9))
    release(dataclasses.replace(settings(tmp_path), accept_expired=True), server.url)
    caplog.clear()
    assert release(settings(tmp_path, offline=True), server.url).expired
    assert "expired on" in caplog.text


def test_offline_still_checks_the_signature(server: Server, tmp_path: Path) -> None:
    one = settings(tmp_path)
    release(one, server.url)
    flip(one.cache / "dists" / DIST / "InRelease", 200)
    with pytest.raises(TrustError, match="not signed"):
        release(settings(tmp_path, offline=True), server.url)


@pytest.mark.parametrize("by_hash", [False, True])
def test_a_changed_byte_in_an_index_is_refused(
    home: SignedArchive, server: Server, tmp_path: Path, by_hash: bool
) -> None:
    home.publish(DIST, by_hash=by_hash)
    for path in home.packages(DIST).parent.rglob("*"):
        if path.is_file():
            flip(path)
    one = settings(tmp_path)
    with pytest.raises(TrustError) as caught:
        packages(one, server.url)
    assert "main/binary-amd64" in str(caught.value)
    assert kept(one) == ["InRelease", "InRelease.json"]


def test_a_truncated_index_is_refused(server: Server, tmp_path: Path) -> None:
    server.fail("Packages.xz", Fault(truncate_to=40))
    one = settings(tmp_path)
    with pytest.raises(TrustError, match="Packages"):
        packages(one, server.url)
    assert kept(one) == ["InRelease", "InRelease.json"]


def test_an_index_is_asked_for_by_its_hash(
    home: SignedArchive, server: Server, tmp_path: Path
) -> None:
    home.publish(DIST, by_hash=True)
    home.packages(DIST).write_bytes(lzma.compress(b"the next release's"))
    assert packages(settings(tmp_path), server.url)
    assert server.asked("Packages.xz") == []


def test_an_index_without_its_hash_is_taken_by_name(
    home: SignedArchive, server: Server, tmp_path: Path
) -> None:
    home.publish(DIST, by_hash=True)
    sha256 = release(settings(tmp_path), server.url).files[PACKAGES].sha256
    server.fail(sha256, Fault(status=404))
    assert packages(settings(tmp_path), server.url)
    assert len(server.asked("Packages.xz")) == 1


def test_an_index_is_read_once(server: Server, tmp_path: Path) -> None:
    one = settings(tmp_path)
    first = packages(one, server.url)
    for path in (one.cache / "files").rglob("Packages.xz"):
        path.unlink()
    assert packages(one, server.url) == first
    assert len(server.asked("Packages.xz")) == 1


def test_a_damaged_extract_is_made_again(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = settings(tmp_path)
    first = packages(one, server.url)
    (extract,) = (one.cache / "extracts").iterdir()
    flip(extract)
    assert packages(one, server.url) == first
    assert "damaged" in caplog.text


def test_an_archive_for_other_machines_is_named(server: Server, tmp_path: Path) -> None:
    one = settings(tmp_path)
    found = dataclasses.replace(release(one, server.url), files={})
    with pytest.raises(InfrastructureError, match="does not list main/binary-amd64"):
        archive.packages(one, found, Waits().network, prefix="linux-")


def test_a_missing_keyring_is_named(server: Server, tmp_path: Path) -> None:
    row = dataclasses.replace(
        signed_archive.suite(signed_archive.key()), keyring="/nonexistent.gpg"
    )
    with pytest.raises(LostDependencyError, match=r"/nonexistent\.gpg"):
        archive.release(settings(tmp_path), row, DIST, [server.url], Waits().network)


VALID = "VALIDSIG FPR 2026-11-18 1795040262 0 4 0 1 {digest} 01 PRIMARY"


@pytest.mark.parametrize(
    ("lines", "signers"),
    [
        (["NEWSIG", "GOODSIG K name", VALID.format(digest=8)], ("PRIMARY",)),
        (["NEWSIG", "EXPKEYSIG K name", VALID.format(digest=8)], ()),
        (["NEWSIG", "REVKEYSIG K name", VALID.format(digest=8)], ()),
        (["NEWSIG", "GOODSIG K name", VALID.format(digest=2)], ()),
        (["NEWSIG", "GOODSIG K name", "NEWSIG", VALID.format(digest=8)], ()),
        (["NEWSIG", "GOODSIG K name"], ()),
        (["NEWSIG", "GOODSIG K name", VALID.format(digest=8), "NEWSIG", "BADSIG L name"], ()),
        ([], ()),
    ],
)
def test_only_good_signatures_count(lines: list[str], signers: tuple[str, ...]) -> None:
    assert archive.good_signers([line.split() for line in lines]) == signers
