"""The chain of trust: what an archive may say, and who may say it."""

from __future__ import annotations

import dataclasses
import hashlib
import lzma
import os
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kbuild.core import suites
from kbuild.core.errors import (
    ExpiredError,
    FullDiskError,
    InfrastructureError,
    LostDependencyError,
    TrustError,
    UserError,
)
from kbuild.core.model import Settings
from kbuild.fetch import access, index
from kbuild.fetch.access import Access
from kbuild.fetch.download import Network, Wanted
from tests.unit import signed_archive
from tests.unit.signed_archive import (
    NOTHING,
    Fault,
    Server,
    SignedArchive,
    Waits,
    flip,
    kept,
    settings,
)

DIST = "bookworm"
PREFIX = "_proc_self_cwd_mirrors_dists_bookworm_"
GOOD = [f"{PREFIX}InRelease", f"{PREFIX}main_binary-amd64_Packages"]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> SignedArchive:
    one = SignedArchive(tmp_path_factory.mktemp("template"), signed_archive.key())
    one.add(DIST, "linux-kbuild-6.1", "6.1.10-1~x+y", depends="libc6 (>= 2.34)")
    one.publish(DIST)
    return one


@pytest.fixture
def home(template: SignedArchive, tmp_path: Path) -> SignedArchive:
    return template.copy(tmp_path / "archive")


@pytest.fixture
def server(home: SignedArchive) -> Iterator[Server]:
    with signed_archive.serve(home.root) as one:
        yield one


@pytest.fixture
def other(template: SignedArchive, tmp_path: Path) -> Iterator[Server]:
    with signed_archive.serve(template.copy(tmp_path / "other").root) as one:
        yield one


def read(
    one: Settings, *bases: str, network: Network | None = None
) -> tuple[index.Release, list[index.Listed]]:
    row = signed_archive.suite(signed_archive.key())
    return index.read(one, row, DIST, bases, network or Waits().network, prefix="linux-")


def ago(**passed: float) -> datetime:
    return datetime.now(UTC) - timedelta(**passed)


def newer(home: SignedArchive) -> None:
    """Publish a release that is newer than the template's, with a package more."""
    home.add(DIST, "linux-libc-dev", "6.1.11-1")
    home.publish(DIST, date=datetime.now(UTC) + timedelta(seconds=5))


def test_a_good_release_is_taken_with_its_signer(tmp_path: Path, server: Server) -> None:
    found, (one,) = read(settings(tmp_path), server.url)
    assert found == index.Release(
        DIST, (server.url,), (signed_archive.key().fingerprint,), expired=False
    )
    assert (one.package, one.version, one.source) == ("linux-kbuild-6.1", "6.1.10-1~x+y", "linux")
    assert one.depends == "libc6 (>= 2.34)"


def test_apt_says_where_a_package_lies_and_what_it_is(tmp_path: Path, server: Server) -> None:
    one = settings(tmp_path)
    found, listed = read(one, server.url)
    row = signed_archive.suite(signed_archive.key())
    before = len(server.requests)
    files = index.locate(one, row, found, listed, Waits().network)
    assert len(server.requests) == before
    (pool,) = server.root.glob("pool/main/l/linux/*")
    content = pool.read_bytes()
    path = f"pool/main/l/linux/{pool.name}"
    sha256 = hashlib.sha256(content).hexdigest()
    assert files[listed[0]] == Wanted(path, pool.name, len(content), sha256)


def test_a_package_that_has_left_the_index_is_named(tmp_path: Path, server: Server) -> None:
    one = settings(tmp_path)
    found, (listed,) = read(one, server.url)
    row = signed_archive.suite(signed_archive.key())
    gone = dataclasses.replace(listed, version="6.1.9-1")
    with pytest.raises(InfrastructureError, match="apt-get") as caught:
        index.locate(one, row, found, [listed, gone], Waits().network)
    assert "6.1.9-1" in (caught.value.found or "")


def test_a_path_that_needs_quoting_is_no_hindrance(tmp_path: Path, server: Server) -> None:
    assert read(settings(tmp_path / "ä b~c+d"), server.url)[1]


# Ways to spoil an archive, each with a part of the error.
REFUSED: dict[str, tuple[Callable[[SignedArchive], object], str]] = {
    "unsigned": (lambda a: a.inrelease(DIST).write_text(a.publish(DIST)), "not signed"),
    "stranger": (lambda a: a.publish(DIST, key=signed_archive.key("stranger")), "NO_PUBKEY"),
    "a byte of the text": (lambda a: flip_after(a, b"Codename: b"), "BADSIG"),
    "a byte of the digest": (lambda a: flip_after(a, b"SHA256:\n "), "BADSIG"),
    "truncated": (lambda a: os.truncate(a.inrelease(DIST), 400), "signature"),
    "text before": (lambda a: around(a, b"Codename: evil\n\n", b""), "Clearsigned"),
    "text behind": (lambda a: around(a, b"", b"\nCodename: evil\n"), "Splitting up"),
    "another text before": (lambda a: before(a, signed_archive.key("stranger")), "Splitting up"),
    "bomb": (lambda a: a.inrelease(DIST).write_bytes(a.key.bomb(1 << 22)), "Clearsigned"),
    "bomb of a stranger": (
        lambda a: a.inrelease(DIST).write_bytes(signed_archive.key("stranger").bomb(1 << 22)),
        "Clearsigned",
    ),
    "expired": (lambda a: a.publish(DIST, date=ago(days=9)), "is expired"),
    "of the future": (lambda a: a.publish(DIST, date=ago(days=-3)), "not valid yet"),
    "another suite": (lambda a: a.publish(DIST, codename="trixie"), "Codename trixie"),
    "a byte of the index": (lambda a: flip(a.packages(DIST)), "Hash Sum mismatch"),
    "a truncated index": (lambda a: os.truncate(a.packages(DIST), 40), "unexpected size"),
}


def flip_after(one: SignedArchive, text: bytes) -> None:
    path = one.inrelease(DIST)
    flip(path, path.read_bytes().index(text) + len(text))


def around(one: SignedArchive, first: bytes, last: bytes) -> None:
    one.inrelease(DIST).write_bytes(first + one.inrelease(DIST).read_bytes() + last)


def before(one: SignedArchive, key: signed_archive.Key) -> None:
    around(one, key.clearsign("Codename: evil\n"), b"")


@pytest.mark.parametrize("how", REFUSED)
def test_a_bad_release_or_index_is_refused(
    tmp_path: Path, home: SignedArchive, server: Server, how: str
) -> None:
    spoil, reason = REFUSED[how]
    spoil(home)
    one = settings(tmp_path, server.url)
    with pytest.raises(TrustError) as caught:
        read(one, server.url)
    assert server.url in str(caught.value)
    assert reason in (caught.value.found or "")
    # Only this passes by itself.
    assert isinstance(caught.value, ExpiredError) is (how == "expired")
    assert kept(one) == []


def test_a_mirror_that_lies_is_not_excused_by_one_that_has_expired(
    tmp_path: Path, home: SignedArchive, server: Server, other: Server
) -> None:
    REFUSED["expired"][0](home)
    lying = tmp_path / "other" / home.inrelease(DIST).relative_to(home.root)
    os.truncate(lying, 400)
    with pytest.raises(TrustError) as caught:
        read(settings(tmp_path, server.url), server.url, other.url)
    assert not isinstance(caught.value, ExpiredError)


@pytest.mark.parametrize("how", ["stranger", "expired", "a byte of the index"])
def test_another_mirror_is_asked_after_a_bad_one(
    tmp_path: Path, home: SignedArchive, server: Server, other: Server, how: str
) -> None:
    REFUSED[how][0](home)
    found, listed = read(settings(tmp_path, server.url), server.url, other.url)
    assert found.bases == (other.url, server.url)
    assert [package.version for package in listed] == ["6.1.10-1~x+y"]


ABSENT = {
    "404": Fault(status=404),
    "503": Fault(status=503),
    "304": Fault(status=304),
    "no url": Fault(location="http://[::1/x"),
    "a label too long": Fault(location=f"http://{'a' * 64}.example/"),
    "a loop": Fault(location="InRelease"),
    "endless": Fault(endless=True),
}


@pytest.mark.parametrize(
    ("path", "how"),
    [
        *(("InRelease", how) for how in ABSENT),
        *(("Packages.xz", how) for how in ("404", "304", "no url", "endless")),
    ],
)
def test_a_mirror_that_does_not_deliver_is_left_for_another(
    tmp_path: Path, server: Server, other: Server, how: str, path: str
) -> None:
    server.fail(path, ABSENT[how])
    one = settings(tmp_path)
    network = Waits(attempts=1).network
    found, _ = read(one, server.url, other.url, network=network)
    assert found.bases[0] == other.url
    assert kept(one) == GOOD


def test_an_endless_release_does_not_fill_the_disk(tmp_path: Path, server: Server) -> None:
    server.fail("InRelease", Fault(endless=True))
    with pytest.raises((InfrastructureError, TrustError), match="bookworm"):
        read(settings(tmp_path), server.url, network=Waits(attempts=1).network)
    assert server.endless < 30 << 20


@pytest.mark.parametrize("how", ["404", "503"])
def test_a_mirror_that_is_away_is_no_breach_of_trust(
    tmp_path: Path, server: Server, how: str
) -> None:
    server.fail("InRelease", ABSENT[how])
    network = Waits(attempts=1).network
    with pytest.raises(InfrastructureError, match="no mirror has bookworm") as caught:
        read(settings(tmp_path), server.url, network=network)
    assert how in str(caught.value)


@pytest.mark.parametrize("headers", [False, True])
@pytest.mark.parametrize("path", ["InRelease", "Packages.xz"])
def test_a_mirror_that_sends_byte_after_byte_is_given_up(
    tmp_path: Path, server: Server, path: str, headers: bool
) -> None:
    server.fail(path, Fault(drip_s=0.05, drip_headers=headers))
    network = Waits(attempts=1, patience_s=0.15).network
    with pytest.raises(InfrastructureError, match="no mirror has bookworm") as caught:
        read(settings(tmp_path), server.url, network=network)
    assert "did not finish in 0.6 s" in str(caught.value)


def test_a_mirror_that_recovers_is_waited_for(tmp_path: Path, server: Server) -> None:
    server.fail("InRelease", Fault(status=503), Fault())
    read(settings(tmp_path), server.url)
    assert [request.status for request in server.asked("InRelease")] == [503, 200]


def test_a_mirror_that_does_not_recover_is_asked_as_often_as_patience_lasts(
    tmp_path: Path, server: Server
) -> None:
    server.fail("InRelease", Fault(status=503))
    waits = Waits(attempts=3)
    with pytest.raises(InfrastructureError):
        read(settings(tmp_path), server.url, network=waits.network)
    assert len(server.asked("InRelease")) == 3
    assert len(waits.seconds) == 2


def test_a_verification_that_takes_too_long_leads_to_the_next_mirror(
    home: SignedArchive,
    server: Server,
    other: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    home.publish(DIST, codename="slow")
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
    caplog.set_level("INFO", logger="kbuild")
    # Long enough for apt at the second mirror, with every core of the machine at work.
    network = Waits(patience_s=1.0).network
    assert read(settings(tmp_path), server.url, other.url, network=network)[0].bases[0] == other.url
    assert f"{server.url}: apt-get update" in caplog.text
    assert "did not finish" in caplog.text


def test_a_release_signed_by_an_expired_key_is_refused(
    home: SignedArchive, server: Server, tmp_path: Path
) -> None:
    old = signed_archive.key("old", expired=True)
    home.publish(DIST, key=old)
    row = signed_archive.suite(old)
    with pytest.raises(TrustError, match="was refused") as caught:
        index.read(settings(tmp_path), row, DIST, [server.url], Waits().network, prefix=None)
    assert "EXPKEYSIG" in (caught.value.found or "")


def test_a_second_signature_by_an_unknown_key_does_no_harm(
    home: SignedArchive, server: Server, tmp_path: Path
) -> None:
    both = signed_archive.sign_twice(
        home.publish(DIST), signed_archive.key(), signed_archive.key("stranger")
    )
    home.inrelease(DIST).write_bytes(both)
    found, _ = read(settings(tmp_path), server.url)
    assert found.signers == (signed_archive.key().fingerprint,)


# Another vendor's archive in the machine's sources.


def test_another_archive_of_the_machine_is_passed_over_quietly(
    home: SignedArchive,
    server: Server,
    other: Server,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    home.publish(DIST, key=signed_archive.key("vendor"))
    found, _ = read(settings(tmp_path), server.url, other.url)
    assert found.bases == (other.url,)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_another_archive_of_the_machine_says_nothing_about_debians(
    home: SignedArchive, server: Server, other: Server, tmp_path: Path
) -> None:
    home.publish(DIST, key=signed_archive.key("vendor"))
    other.fail("InRelease", Fault(status=503))
    with pytest.raises(InfrastructureError, match="no mirror has"):
        read(settings(tmp_path), server.url, other.url)
    # A mirror that the user named is held to its word.
    with pytest.raises(TrustError, match="was refused"):
        read(settings(tmp_path, server.url), server.url, other.url)


# Printed by apt of Debian 13, which verifies with sqv.
SQV = (
    "Warning: OpenPGP signature verification failed: http://x bookworm InRelease: "
    "Sub-process /usr/bin/sqv returned an error code (1), error message is: "
    "Missing key 0123456789ABCDEF, which is needed to verify signature."
)


def apt_says(text: str, url: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let apt-get update fail with these words at one mirror."""
    apt = home / "bin/apt-get"
    apt.parent.mkdir()
    apt.write_text(
        f'#!/bin/sh\ngrep -q {url} mirrors && {{ echo "{text}" >&2; exit 100; }}\n'
        f'exec {shutil.which("apt-get")} "$@"\n'
    )
    apt.chmod(0o755)
    monkeypatch.setenv("PATH", f"{apt.parent}:{os.environ['PATH']}")


def test_a_full_disk_is_not_taken_for_a_bad_mirror(
    server: Server, other: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "E: Write error - write (28: No space left on device)"
    apt_says(said, server.url, tmp_path, monkeypatch)
    one = settings(tmp_path)
    with pytest.raises(FullDiskError, match="apt-get found no room") as caught:
        read(one, server.url, other.url)
    assert "28: No space left on device" in (caught.value.found or "")
    assert other.requests == []


def test_the_words_of_the_next_debians_apt_are_understood(
    server: Server, other: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apt_says(SQV, server.url, tmp_path, monkeypatch)
    with pytest.raises(TrustError, match="was refused"):
        read(settings(tmp_path), server.url)
    assert read(settings(tmp_path), server.url, other.url)[0].bases == (other.url,)


# Age.


def test_an_expired_release_is_taken_on_request_and_marked(
    home: SignedArchive, server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home.publish(DIST, date=ago(days=9))
    one = dataclasses.replace(settings(tmp_path), accept_expired=True)
    assert read(one, server.url)[0].expired
    assert "expired on" in caplog.text
    with pytest.raises(TrustError):
        read(settings(tmp_path), server.url)


def test_a_machine_that_accepts_expired_releases_does_not_decide(
    home: SignedArchive, server: Server, tmp_path: Path
) -> None:
    (tmp_path / "apt.conf.d").mkdir()
    hook = tmp_path / "hook-ran"
    (tmp_path / "apt.conf.d/99").write_text(
        'Acquire::Check-Valid-Until "false";\nAcquire::Check-Date "false";\n'
        f'APT::Update::Pre-Invoke {{ "touch {hook}"; }};\n'
        'Acquire::AllowInsecureRepositories "true";\n'
    )
    network = dataclasses.replace(Waits().network, access=access.of(tmp_path))
    read(settings(tmp_path), server.url, network=network)
    assert not hook.exists()
    home.publish(DIST, date=ago(days=9))
    with pytest.raises(TrustError, match="refused"):
        read(settings(tmp_path / "again"), server.url, network=network)


def test_a_release_that_never_expires_is_taken(
    home: SignedArchive, server: Server, tmp_path: Path
) -> None:
    home.publish(DIST, date=ago(days=900), valid_for=None)
    assert not read(settings(tmp_path), server.url)[0].expired


def test_an_older_release_never_replaces_a_newer_one(
    home: SignedArchive, server: Server, other: Server, tmp_path: Path
) -> None:
    one = settings(tmp_path)
    newer(home)
    newest = read(one, server.url)[1]
    assert len(newest) == 2
    # Neither from another mirror, nor after that failed, nor once the first has gone back.
    assert read(one, other.url)[1] == newest
    other.fail("InRelease", Fault(status=503))
    with pytest.raises(InfrastructureError):
        read(one, other.url)
    home.publish(DIST, codename="trixie", date=ago(days=-1, minutes=1))
    with pytest.raises(TrustError):
        read(one, server.url)
    home.stanzas[DIST].pop()
    home.publish(DIST, date=ago(hours=5))
    assert read(one, server.url)[1] == newest
    assert read(settings(tmp_path, offline=True), server.url)[1] == newest


def test_an_older_release_does_not_keep_an_expired_one_alive(
    home: SignedArchive, server: Server, tmp_path: Path
) -> None:
    home.publish(DIST, date=ago(days=8))
    read(dataclasses.replace(settings(tmp_path), accept_expired=True), server.url)
    home.publish(DIST, date=ago(days=8, hours=5), valid_for=timedelta(days=30))
    with pytest.raises(TrustError, match="was refused"):
        read(settings(tmp_path), server.url)


def test_another_suites_release_is_not_remembered(
    home: SignedArchive, server: Server, tmp_path: Path
) -> None:
    one = settings(tmp_path)
    first = read(one, server.url)
    home.add(DIST, "linux-source-6.12", "6.12.1-1")
    home.publish(DIST, codename="trixie", date=datetime.now(UTC) + timedelta(seconds=8))
    with pytest.raises(TrustError):
        read(one, server.url)
    home.stanzas[DIST].pop()
    assert read(settings(tmp_path, offline=True), server.url) == first
    newer(home)
    assert len(read(one, server.url)[1]) == 2


# The cache.


def test_an_unchanged_index_is_not_sent_again(
    home: SignedArchive, server: Server, tmp_path: Path
) -> None:
    one = settings(tmp_path)
    first = read(one, server.url)
    assert read(one, server.url) == first
    assert len(server.asked("Packages.xz")) == 1
    newer(home)
    assert len(read(one, server.url)[1]) == 2


@pytest.mark.parametrize(
    ("name", "how"),
    [(GOOD[0], "flipped"), (GOOD[1], "flipped"), (GOOD[0], "empty"), (GOOD[1], "away")],
)
def test_a_damaged_index_in_the_cache_is_fetched_again(
    server: Server, tmp_path: Path, name: str, how: str
) -> None:
    one = settings(tmp_path)
    first = read(one, server.url)
    damage(one, name, how)
    assert read(one, server.url) == first
    assert kept(one) == GOOD


def damage(one: Settings, name: str, how: str) -> None:
    path = one.cache / "apt" / DIST / "lists" / name
    if how == "flipped":
        flip(path, 250)
    else:
        path.unlink()
    if how == "empty":
        path.touch()


def test_leftovers_of_a_killed_run_are_cleared_away(server: Server, tmp_path: Path) -> None:
    one = settings(tmp_path)
    first = read(one, server.url)
    left = one.cache / "apt" / DIST / "update.killed/lists/partial"
    left.mkdir(parents=True)
    (left / GOOD[0]).write_text("half")
    assert read(one, server.url) == first
    assert sorted(path.name for path in (one.cache / "apt" / DIST).iterdir()) == ["lists"]


def test_a_damaged_date_in_the_cache_is_not_remembered(
    home: SignedArchive, server: Server, tmp_path: Path
) -> None:
    one = settings(tmp_path)
    read(one, server.url)
    path = one.cache / "apt" / DIST / "lists" / GOOD[0]
    year = str(datetime.now(UTC).year)
    path.write_text(path.read_text().replace(f" {year} ", " 2199 "))
    newer(home)
    assert len(read(one, server.url)[1]) == 2


def test_offline_uses_the_last_release(server: Server, tmp_path: Path) -> None:
    offline = settings(tmp_path, offline=True)
    with pytest.raises(InfrastructureError, match="not in the cache"):
        read(offline, server.url)
    online = read(settings(tmp_path), server.url)
    before = len(server.requests)
    assert read(offline, server.url) == online
    assert len(server.requests) == before


def test_offline_says_that_the_release_has_expired(
    home: SignedArchive, server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home.publish(DIST, date=ago(days=9))
    read(dataclasses.replace(settings(tmp_path), accept_expired=True), server.url)
    caplog.clear()
    assert read(settings(tmp_path, offline=True), server.url)[0].expired
    assert "expired on" in caplog.text


@pytest.mark.parametrize(
    ("name", "how"), [(GOOD[0], "flipped"), (GOOD[1], "flipped"), (GOOD[0], "empty")]
)
def test_offline_still_checks_signature_and_digest(
    server: Server, tmp_path: Path, name: str, how: str
) -> None:
    one = settings(tmp_path)
    read(one, server.url)
    damage(one, name, how)
    with pytest.raises(TrustError) as caught:
        read(settings(tmp_path, offline=True), server.url)
    assert "without --offline" in (caught.value.hint or "")


def test_an_index_is_asked_for_by_its_hash(
    home: SignedArchive, server: Server, tmp_path: Path
) -> None:
    home.publish(DIST, by_hash=True)
    home.packages(DIST).write_bytes(lzma.compress(b"the next release's"))
    assert read(settings(tmp_path), server.url)[1]
    assert server.asked("Packages.xz") == []


def test_an_archive_for_other_machines_is_named(
    home: SignedArchive, server: Server, tmp_path: Path
) -> None:
    text = home.publish(DIST).replace("amd64", "arm64")
    home.inrelease(DIST).write_bytes(home.key.clearsign(text))
    with pytest.raises(InfrastructureError, match="no mirror has") as caught:
        read(settings(tmp_path), server.url)
    assert "main/binary-amd64/Packages" in (caught.value.found or "")


def test_a_missing_keyring_is_named(server: Server, tmp_path: Path) -> None:
    row = dataclasses.replace(
        signed_archive.suite(signed_archive.key()), keyring="/nonexistent.gpg"
    )
    with pytest.raises(LostDependencyError, match=r"/nonexistent\.gpg"):
        index.read(settings(tmp_path), row, DIST, [server.url], Waits().network, prefix=None)


# Proxies and passwords.


def test_apt_goes_through_the_proxy_and_names_it(
    server: Server, other: Server, tmp_path: Path
) -> None:
    proxy = other.url.replace("://", "://who:knows@")
    network = Waits(access=Access({"acquire::http::proxy": f"{proxy}/"})).network
    read(settings(tmp_path), server.url, network=network)
    assert server.requests == []
    assert {request.proxy_login for request in other.requests} == {"who:knows"}
    other.fail("InRelease", Fault(status=407))
    with pytest.raises(InfrastructureError) as caught:
        read(settings(tmp_path), server.url, network=network)
    assert f"through the proxy {other.url.replace('://', '://***@')}" in (caught.value.found or "")
    assert "407" in (caught.value.found or "")
    assert "knows" not in str(caught.value)


def test_a_password_is_used_and_neither_shown_nor_kept(
    home: SignedArchive, server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", logger="kbuild")
    one = settings(tmp_path, server.url.replace("://", "://me:s%40cret@"))
    read(one, *one.mirrors)
    assert {request.login for request in server.requests} == {"me:s@cret"}
    home.publish(DIST, key=signed_archive.key("stranger"))
    with pytest.raises(TrustError) as caught:
        read(one, *one.mirrors)
    server.fail("InRelease", Fault(status=401))
    with pytest.raises(InfrastructureError) as away:
        read(one, *one.mirrors)
    for text in (caplog.text, str(caught.value), str(away.value)):
        assert "http://***@127.0.0.1" in text
    everything = [*(path.read_bytes() for path in one.cache.rglob("*") if path.is_file())]
    said = [caplog.text.encode(), str(caught.value).encode(), str(away.value).encode()]
    assert not [one for one in (*everything, *said) if b"cret" in one]


# Sources for a root.


@pytest.fixture
def whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SignedArchive:
    monkeypatch.setitem(suites.SUITES, DIST, signed_archive.suite(signed_archive.key()))
    one = SignedArchive(tmp_path / "whole", signed_archive.key())
    for dist in (DIST, "bookworm-updates", "bookworm-security"):
        one.publish(dist)
    return one


def sources(one: Settings, apt: Path = NOTHING) -> list[str]:
    text = index.sources_list(one, DIST, apt=apt, network=Waits(attempts=1).network)
    return text.splitlines()


def test_the_sources_list_has_every_pocket(tmp_path: Path, whole: SignedArchive) -> None:
    with signed_archive.serve(whole.root) as server:
        lines = sources(settings(tmp_path, server.url.replace("://", "://me:secret@")))
    assert lines == [
        f"deb [signed-by={whole.key.keyring}] {server.url} {dist} main"
        for dist in (DIST, "bookworm-updates", "bookworm-security")
    ]


def test_each_dist_comes_from_a_mirror_that_has_it(tmp_path: Path, whole: SignedArchive) -> None:
    security = SignedArchive(tmp_path / "security", whole.key)
    security.publish("bookworm-security")
    whole.inrelease("bookworm-security").unlink()
    with (
        signed_archive.serve(whole.root) as first,
        signed_archive.serve(security.root) as second,
    ):
        lines = sources(settings(tmp_path, second.url, first.url))
    assert [line.split()[2] for line in lines] == [first.url, first.url, second.url]


def test_a_root_is_not_made_from_another_archive_of_the_machine(
    tmp_path: Path, whole: SignedArchive
) -> None:
    vendor = SignedArchive(tmp_path / "vendor", signed_archive.key("vendor"))
    with (
        signed_archive.serve(vendor.root) as theirs,
        signed_archive.serve(whole.root) as genuine,
    ):
        for dist in (DIST, "bookworm-updates", "bookworm-security"):
            vendor.publish(dist)
        apt = tmp_path / "apt"
        apt.mkdir()
        keyring = tmp_path / "debian-archive-keyring.gpg"
        (apt / "sources.list").write_text(
            "".join(
                f"deb [signed-by={keyring}] {url} {dist} main\n"
                for url in (theirs.url, genuine.url)
                for dist in (DIST, "bookworm-security")
            )
        )
        lines = sources(settings(tmp_path), apt)
    assert {line.split()[2] for line in lines} == {genuine.url}


def test_a_dist_that_no_mirror_has_is_named(tmp_path: Path, whole: SignedArchive) -> None:
    whole.inrelease("bookworm-updates").unlink()
    with signed_archive.serve(whole.root) as server:
        with pytest.raises(InfrastructureError, match="no mirror has bookworm-updates") as caught:
            sources(settings(tmp_path, server.url))
        assert server.url in str(caught.value)


def test_apt_is_told_of_an_accepted_expiry(tmp_path: Path, whole: SignedArchive) -> None:
    with signed_archive.serve(whole.root) as server:
        one = dataclasses.replace(settings(tmp_path, server.url), accept_expired=True)
        assert all("check-valid-until=no" in line for line in sources(one))


def test_offline_there_is_no_sources_list(tmp_path: Path) -> None:
    with pytest.raises(InfrastructureError, match="offline"):
        sources(settings(tmp_path, "http://127.0.0.1:9", offline=True))


def test_an_unknown_suite_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="bookwurm"):
        index.sources_list(settings(tmp_path), "bookwurm", apt=NOTHING)
