"""Downloads under every fault: survived or refused, and nothing bad left in the cache."""

from __future__ import annotations

import dataclasses
import hashlib
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kbuild.core import fs
from kbuild.core.errors import InfrastructureError, TrustError, UserError
from kbuild.fetch import access, download
from kbuild.fetch.access import Access, Login
from kbuild.fetch.download import Wanted
from tests.unit.signed_archive import Fault, Server, Waits, flip, kept, serve, settings
from tests.unit.signed_archive import authority as authority_of

CONTENT = random.Random(1).randbytes(600_000)
NAME = "pool/linux-source_1_all.deb"
WANTED = Wanted(
    what=NAME,
    name="linux-source_1_all.deb",
    size=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
)


def make_server(root: Path) -> Server:
    path = root / NAME
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    return Server(root)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    one = make_server(tmp_path / "one")
    yield one
    one.close()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Server]:
    one = make_server(tmp_path / "other")
    yield one
    one.close()


def urls(*servers: Server) -> list[str]:
    return [f"{one.url}/{NAME}" for one in servers]


def put_part(home: Path, content: bytes) -> Path:
    part = settings(home).cache / "partial" / f"{WANTED.sha256}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(content)
    return part


def test_a_file_is_fetched_once_and_then_comes_from_the_cache(
    tmp_path: Path, server: Server
) -> None:
    one = settings(tmp_path)
    path = download.fetch(one, WANTED, urls(server), Waits().network)
    assert path.read_bytes() == CONTENT
    assert path == one.cache / "files" / WANTED.sha256 / WANTED.name
    assert download.fetch(one, WANTED, urls(server), Waits().network) == path
    assert len(server.requests) == 1
    assert kept(one) == [WANTED.name]


def test_a_dropped_connection_is_resumed_where_it_broke(tmp_path: Path, server: Server) -> None:
    server.fail(NAME, Fault(drop_after=300_000), Fault())
    waits = Waits()
    path = download.fetch(settings(tmp_path), WANTED, urls(server), waits.network)
    assert path.read_bytes() == CONTENT
    first, second = server.requests
    begin = int(second.range.removeprefix("bytes=").rstrip("-"))
    assert (first.status, second.status) == (200, 206)
    # Bytes in the reader's buffer when the connection broke are asked for again.
    assert 200_000 < begin <= 300_000
    assert second.sent == len(CONTENT) - begin
    assert len(waits.seconds) == 1


def test_a_later_run_goes_on_with_what_an_earlier_one_got(tmp_path: Path, server: Server) -> None:
    server.fail(NAME, Fault(drop_after=300_000), Fault(status=503))
    with pytest.raises(InfrastructureError):
        download.fetch(settings(tmp_path), WANTED, urls(server), Waits().network)
    server.fail(NAME, Fault())
    path = download.fetch(settings(tmp_path), WANTED, urls(server), Waits().network)
    assert path.read_bytes() == CONTENT
    assert server.requests[-1].status == 206


def test_more_drops_than_attempts_are_survived_while_bytes_arrive(
    tmp_path: Path, server: Server
) -> None:
    server.fail(NAME, *[Fault(drop_after=100_000)] * 7, Fault())
    waits = Waits(attempts=2)
    path = download.fetch(settings(tmp_path), WANTED, urls(server), waits.network)
    assert path.read_bytes() == CONTENT
    assert len(waits.seconds) > waits.attempts


def test_drops_without_a_byte_gained_end_after_the_attempts(tmp_path: Path, server: Server) -> None:
    server.fail(NAME, Fault(drop_after=0))
    waits = Waits(attempts=3)
    with pytest.raises(InfrastructureError, match="could not be fetched"):
        download.fetch(settings(tmp_path), WANTED, urls(server), waits.network)
    assert len(server.requests) == 3


def test_a_server_that_ignores_ranges_sends_it_all_anew(tmp_path: Path, server: Server) -> None:
    server.fail(NAME, Fault(drop_after=300_000), Fault(ignore_range=True))
    path = download.fetch(settings(tmp_path), WANTED, urls(server), Waits().network)
    assert path.read_bytes() == CONTENT
    assert [r.status for r in server.requests] == [200, 200]
    assert server.requests[1].range


def test_another_range_than_the_one_asked_for_is_not_appended(
    tmp_path: Path, server: Server
) -> None:
    put_part(tmp_path, CONTENT[:1000])
    server.fail(NAME, Fault(shift_range=500), Fault())
    path = download.fetch(settings(tmp_path), WANTED, urls(server), Waits().network)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("length", [1000, len(CONTENT), len(CONTENT) + 7])
def test_a_wrong_beginning_is_thrown_away_and_the_file_fetched_whole(
    tmp_path: Path, server: Server, length: int
) -> None:
    put_part(tmp_path, b"x" * length)
    path = download.fetch(settings(tmp_path), WANTED, urls(server), Waits().network)
    assert path.read_bytes() == CONTENT
    assert server.requests[-1].range == ""


def test_a_wrong_beginning_of_a_wrong_file_is_refused(tmp_path: Path, server: Server) -> None:
    put_part(tmp_path, b"x" * 1000)
    flip(server.root / NAME)
    one = settings(tmp_path)
    with pytest.raises(TrustError):
        download.fetch(one, WANTED, urls(server), Waits().network)
    assert [bool(r.range) for r in server.requests] == [True, False]
    assert kept(one) == []


def test_a_changed_byte_is_refused_with_both_digests(tmp_path: Path, server: Server) -> None:
    flip(server.root / NAME)
    one = settings(tmp_path)
    found = hashlib.sha256((server.root / NAME).read_bytes()).hexdigest()
    with pytest.raises(TrustError) as caught:
        download.fetch(one, WANTED, urls(server), Waits().network)
    assert NAME in str(caught.value)
    assert WANTED.sha256 in str(caught.value)
    assert found in str(caught.value)
    assert kept(one) == []


@pytest.mark.parametrize("fault", [Fault(truncate_to=5000), Fault(truncate_to=0)])
def test_a_truncated_file_is_refused_with_both_sizes(
    tmp_path: Path, server: Server, fault: Fault
) -> None:
    server.fail(NAME, fault)
    one = settings(tmp_path)
    with pytest.raises(TrustError) as caught:
        download.fetch(one, WANTED, urls(server), Waits().network)
    assert f"{WANTED.size} bytes" in str(caught.value)
    assert f"{fault.truncate_to} bytes" in str(caught.value)
    assert kept(one) == []


@pytest.mark.parametrize("no_length", [False, True])
def test_a_longer_file_is_refused(tmp_path: Path, server: Server, no_length: bool) -> None:
    (server.root / NAME).write_bytes(CONTENT + b"more")
    server.fail(NAME, Fault(no_length=no_length))
    one = settings(tmp_path)
    with pytest.raises(TrustError) as caught:
        download.fetch(one, WANTED, urls(server), Waits().network)
    # Without an announced length, reading ends as soon as there is too much.
    found = f"more than {WANTED.size} bytes" if no_length else f"{WANTED.size + 4} bytes"
    assert caught.value.found == found
    assert kept(one) == []


def test_a_short_file_without_a_length_does_not_go_on_for_ever(
    tmp_path: Path, server: Server
) -> None:
    server.fail(NAME, Fault(no_length=True, truncate_to=100_000))
    one = settings(tmp_path)
    with pytest.raises(InfrastructureError, match="could not be fetched"):
        download.fetch(one, WANTED, urls(server), Waits(attempts=3).network)
    assert len(server.requests) <= 6


def test_an_end_without_a_length_is_a_drop(tmp_path: Path, server: Server) -> None:
    server.fail(NAME, Fault(no_length=True, drop_after=100_000), Fault())
    path = download.fetch(settings(tmp_path), WANTED, urls(server), Waits().network)
    assert path.read_bytes() == CONTENT
    assert server.requests[-1].status == 206


def test_404_goes_to_the_next_mirror_at_once(tmp_path: Path, server: Server, other: Server) -> None:
    server.fail(NAME, Fault(status=404))
    waits = Waits()
    path = download.fetch(settings(tmp_path), WANTED, urls(server, other), waits.network)
    assert path.read_bytes() == CONTENT
    assert waits.seconds == []
    assert (len(server.requests), len(other.requests)) == (1, 1)


def test_404_everywhere_names_every_mirror(tmp_path: Path, server: Server, other: Server) -> None:
    for one in (server, other):
        one.fail(NAME, Fault(status=404))
    with pytest.raises(InfrastructureError) as caught:
        download.fetch(settings(tmp_path), WANTED, urls(server, other), Waits().network)
    assert all(url in str(caught.value) for url in urls(server, other))
    assert "404" in str(caught.value)


def test_wrong_content_at_one_mirror_is_survived_with_another(
    tmp_path: Path, server: Server, other: Server, caplog: pytest.LogCaptureFixture
) -> None:
    flip(server.root / NAME)
    path = download.fetch(settings(tmp_path), WANTED, urls(server, other), Waits().network)
    assert path.read_bytes() == CONTENT
    assert server.url in caplog.text


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_passing_error_is_retried_with_growing_waits(
    tmp_path: Path, server: Server, status: int
) -> None:
    server.fail(NAME, *[Fault(status=status)] * 3, Fault())
    waits = Waits()
    path = download.fetch(settings(tmp_path), WANTED, urls(server), waits.network)
    assert path.read_bytes() == CONTENT
    assert len(waits.seconds) == 3
    # 1, 2, 4 s, each with up to a second of jitter.
    for wait_s, least in zip(waits.seconds, (1, 2, 4), strict=True):
        assert least <= wait_s <= least + 1


def test_an_error_that_does_not_pass_goes_to_the_next_mirror(
    tmp_path: Path, server: Server, other: Server
) -> None:
    server.fail(NAME, Fault(status=503))
    waits = Waits(attempts=3)
    path = download.fetch(settings(tmp_path), WANTED, urls(server, other), waits.network)
    assert path.read_bytes() == CONTENT
    assert len(server.requests) == 3


def test_a_mirror_that_is_down_is_survived_with_another(tmp_path: Path, server: Server) -> None:
    with serve(tmp_path) as gone:
        dead = f"{gone.url}/{NAME}"
    path = download.fetch(settings(tmp_path), WANTED, [dead, *urls(server)], Waits().network)
    assert path.read_bytes() == CONTENT


def test_a_damaged_file_in_the_cache_is_reported_and_fetched_again(
    tmp_path: Path, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    one = settings(tmp_path)
    path = download.fetch(one, WANTED, urls(server), Waits().network)
    flip(path)
    assert download.fetch(one, WANTED, urls(server), Waits().network) == path
    assert path.read_bytes() == CONTENT
    assert "damaged" in caplog.text
    assert len(server.requests) == 2


def test_offline_sends_no_request(tmp_path: Path, server: Server) -> None:
    offline = settings(tmp_path, offline=True)
    with pytest.raises(InfrastructureError, match="without --offline"):
        download.fetch(offline, WANTED, urls(server), Waits().network)
    assert server.requests == []
    download.fetch(settings(tmp_path), WANTED, urls(server), Waits().network)
    path = download.fetch(offline, WANTED, urls(server), Waits().network)
    assert path.read_bytes() == CONTENT
    assert len(server.requests) == 1


def test_offline_does_not_take_a_damaged_file(tmp_path: Path, server: Server) -> None:
    flip(download.fetch(settings(tmp_path), WANTED, urls(server), Waits().network))
    with pytest.raises(InfrastructureError, match="not in the cache"):
        download.fetch(settings(tmp_path, offline=True), WANTED, [], Waits().network)


def test_a_run_that_waited_takes_what_the_other_one_fetched(
    tmp_path: Path, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    one = settings(tmp_path)
    with fs.lock(one.cache / "locks" / f"{WANTED.sha256}.lock"):
        waiting = threading.Thread(
            target=download.fetch, args=(one, WANTED, [], Waits().network), daemon=True
        )
        waiting.start()
        while "waiting for another run" not in caplog.text:
            waiting.join(0.01)
            assert waiting.is_alive()
        path = download.place(one, WANTED)
        path.parent.mkdir(parents=True)
        path.write_bytes(CONTENT)
    waiting.join(30)
    assert not waiting.is_alive()
    assert server.requests == []
    assert "damaged" not in caplog.text


def test_two_fetches_at_once_share_one_download(tmp_path: Path, server: Server) -> None:
    one = settings(tmp_path)
    results: list[bytes] = []
    gate = threading.Barrier(4)

    def work() -> None:
        gate.wait(10)
        results.append(download.fetch(one, WANTED, urls(server), Waits().network).read_bytes())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == [CONTENT] * 4
    assert len(server.requests) == 1


def test_a_full_disk_is_not_taken_for_a_bad_network(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space") as caught:
        download.fetch(settings(tmp_path), WANTED, urls(server), Waits().network)
    assert caught.value.filename == str(tmp_path / "cache/partial" / f"{WANTED.sha256}.part")
    assert len(server.requests) == 1


def test_a_planted_file_is_neither_written_nor_taken(tmp_path: Path, server: Server) -> None:
    one, secret = settings(tmp_path), tmp_path / "secret"
    secret.write_bytes(b"precious")
    part = put_part(tmp_path, b"")
    for plant in (part.symlink_to, part.hardlink_to):
        part.unlink(missing_ok=True)
        plant(secret)
        with pytest.raises(UserError, match=f"{part} was not made by this pipeline"):
            download.fetch(one, WANTED, urls(server), Waits().network)
        assert secret.read_bytes() == b"precious"
    part.unlink()
    # The right content, which its owner can change after it was checked.
    path = download.fetch(one, WANTED, urls(server), Waits().network)
    path.rename(secret)
    path.symlink_to(secret)
    with pytest.raises(UserError, match=f"{path} was not made by this pipeline"):
        download.fetch(one, WANTED, urls(server), Waits().network)


@pytest.mark.parametrize("headers", [False, True])
def test_a_byte_now_and_then_leads_to_the_next_mirror(
    tmp_path: Path, server: Server, other: Server, headers: bool
) -> None:
    server.fail(NAME, Fault(drip_s=0.02, drip_headers=headers))
    waits = Waits(attempts=2, patience_s=0.5)
    path = download.fetch(settings(tmp_path), WANTED, urls(server, other), waits.network)
    assert path.read_bytes() == CONTENT
    assert len(other.requests) == 1


def test_a_slow_mirror_is_named_with_its_rate(tmp_path: Path, server: Server) -> None:
    server.fail(NAME, Fault(drip_s=0.02))
    with pytest.raises(InfrastructureError, match="could not be fetched") as caught:
        download.fetch(settings(tmp_path), WANTED, urls(server), Waits(patience_s=0.5).network)
    assert "1000 are needed" in (caught.value.found or "")
    assert len(server.requests) == 1


def test_bytes_that_come_drop_by_drop_have_a_deadline(
    tmp_path: Path, server: Server, other: Server
) -> None:
    # Each connection gains a little, so that no number of attempts is reached.
    server.fail(NAME, Fault(drop_after=20))
    network = dataclasses.replace(Waits().network, window_s=0.05, pace=1e9)
    path = download.fetch(settings(tmp_path), WANTED, urls(server, other), network)
    assert path.read_bytes() == CONTENT
    assert len(server.requests) > network.attempts
    assert [request.status for request in other.requests] == [206]


def test_a_chunked_file_is_whole(tmp_path: Path, server: Server) -> None:
    server.fail(NAME, Fault(chunked=True))
    path = download.fetch(settings(tmp_path), WANTED, urls(server), Waits().network)
    assert path.read_bytes() == CONTENT


def test_an_endless_file_is_refused_at_its_size(tmp_path: Path, server: Server) -> None:
    server.fail(NAME, Fault(endless=True))
    one = settings(tmp_path)
    with pytest.raises(TrustError, match="not the file"):
        download.fetch(one, WANTED, urls(server), Waits().network)
    assert kept(one) == []


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=304),
        Fault(status=204),
        Fault(status=300),
        Fault(location="http://[::1/nonsense"),
        Fault(location="http://" + "a" * 64 + ".example/"),
        Fault(location="file:///etc/passwd"),
        Fault(location="http://"),
        Fault(location=f"/{NAME}"),
        Fault(location="http://[::1/nonsense", endless=True),
    ],
    ids=str,
)
def test_a_nonsensical_answer_leads_to_the_next_mirror(
    tmp_path: Path, server: Server, other: Server, fault: Fault
) -> None:
    server.fail(NAME, fault)
    waits = Waits()
    path = download.fetch(settings(tmp_path), WANTED, urls(server, other), waits.network)
    assert path.read_bytes() == CONTENT
    assert waits.seconds == []


def test_a_redirect_is_followed(tmp_path: Path, server: Server, other: Server) -> None:
    server.fail(NAME, Fault(location=f"{other.url}/{NAME}"))
    path = download.fetch(settings(tmp_path), WANTED, urls(server), Waits().network)
    assert path.read_bytes() == CONTENT


def test_a_redirect_does_not_leave_https(
    tmp_path: Path, server: Server, other: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, tls = authority_of(tmp_path / "ca")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority))
    with serve(server.root, tls=tls) as secure:
        secure.fail(NAME, Fault(location=f"{other.url}/{NAME}"))
        with pytest.raises(InfrastructureError, match="could not be fetched") as caught:
            download.fetch(settings(tmp_path), WANTED, urls(secure), Waits().network)
    assert "which is not followed" in (caught.value.found or "")
    assert other.requests == []


@pytest.mark.parametrize(
    "url", ["http://[::1/x", "http://" + "a" * 64 + ".example/x", "http://h:port/x", "http:///x"]
)
def test_a_bad_url_leads_to_the_next_mirror(tmp_path: Path, server: Server, url: str) -> None:
    path = download.fetch(settings(tmp_path), WANTED, [url, *urls(server)], Waits().network)
    assert path.read_bytes() == CONTENT


def test_a_password_is_used_and_never_shown(
    tmp_path: Path, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", logger="kbuild")
    secret = [url.replace("://", "://user:p%40ss@") for url in urls(server)]
    server.fail(NAME, Fault(drop_after=200_000), Fault(status=404))
    with pytest.raises(InfrastructureError) as caught:
        download.fetch(settings(tmp_path), WANTED, secret, Waits().network)
    flip(server.root / NAME)
    server.fail(NAME, Fault(status=503), Fault())
    with pytest.raises(TrustError) as refused:
        download.fetch(settings(tmp_path / "again"), WANTED, secret, Waits().network)
    assert {request.login for request in server.requests} == {"user:p@ss"}
    said = f"{caplog.text}{caught.value}{refused.value}"
    assert "http://***@127.0.0.1" in said
    assert "ss@" not in said
    assert "p%40" not in said


def test_a_password_does_not_follow_a_redirect_to_another_host(
    tmp_path: Path, server: Server, other: Server
) -> None:
    elsewhere = f"{other.url}/{NAME}".replace("127.0.0.1", "localhost")
    server.fail(NAME, Fault(location=elsewhere))
    reached = Access(logins=(Login("http://127.0.0.1", "user", "pw"),))
    download.fetch(settings(tmp_path), WANTED, urls(server), Waits(access=reached).network)
    assert [request.login for request in (*server.requests, *other.requests)] == ["user:pw", ""]


def test_a_proxy_that_refuses_is_named(tmp_path: Path, server: Server, other: Server) -> None:
    proxy = other.url.replace("://", "://who:knows@")
    reached = Access({"acquire::http::proxy": proxy})
    other.fail(NAME, Fault(status=407))
    with pytest.raises(InfrastructureError) as caught:
        download.fetch(settings(tmp_path), WANTED, urls(server), Waits(access=reached).network)
    masked = other.url.replace("://", "://***@")
    assert "the proxy refused: 407" in (caught.value.found or "")
    assert masked in (caught.value.found or "")
    assert "knows" not in str(caught.value)
    assert other.requests[0].proxy_login == "who:knows"
    assert server.requests == []


def test_a_proxy_that_is_down_is_named(tmp_path: Path, server: Server) -> None:
    with serve(tmp_path) as gone:
        reached = Access({"acquire::http::proxy": gone.url})
    with pytest.raises(InfrastructureError) as caught:
        download.fetch(settings(tmp_path), WANTED, urls(server), Waits(access=reached).network)
    assert f"the proxy {gone.url} failed: " in (caught.value.found or "")
    assert "refused" in (caught.value.found or "")


def test_a_companys_own_authority_is_trusted_where_the_system_trusts_it(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, tls = authority_of(tmp_path / "ca")
    with serve(server.root, tls=tls) as secure:
        with pytest.raises(InfrastructureError, match="could not be fetched") as caught:
            download.fetch(settings(tmp_path), WANTED, urls(secure), Waits(attempts=1).network)
        assert "self-signed certificate" in (caught.value.found or "")
        monkeypatch.setattr(access, "_BUNDLE", str(authority))
        monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
        monkeypatch.delenv("SSL_CERT_FILE", raising=False)
        path = download.fetch(settings(tmp_path), WANTED, urls(secure), Waits().network)
    assert path.read_bytes() == CONTENT
