"""What helps compile: addresses are checked, servers asked, and nothing depends on them."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kbuild import cleaning
from kbuild.core import places, run, sandbox
from kbuild.core.errors import BuildError, InfrastructureError, UserError
from kbuild.core.model import Root
from kbuild.core.sandbox import Bind
from kbuild.kernel import helpers, icecream, remote_cache
from kbuild.kernel.help import Help
from tests.unit import fake_kernel

# As ccache 4.7 writes it.
LOG = """\
# /mnt/source/f0.c
cache_miss
direct_cache_miss
local_storage_miss
# /mnt/source/f1.c
direct_cache_hit
remote_storage_hit
# /mnt/source/f2.c
direct_cache_miss
preprocessed_cache_hit
# /mnt/source/f0.c
cache_miss
"""


@contextlib.contextmanager
def server(answer: bytes, *, path: Path | None = None) -> Iterator[str | tuple[str, int]]:
    """Answer each connection with the same bytes, once something was asked."""
    listener = socket.socket(socket.AF_UNIX if path else socket.AF_INET)
    listener.bind(str(path) if path else ("127.0.0.1", 0))
    listener.listen()

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(1024)
                connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield str(path) if path else listener.getsockname()
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


@pytest.mark.parametrize(
    ("url", "scheme", "address", "inside"),
    [
        ("redis://cache", "redis", ("cache", 6379), "redis://cache"),
        ("redis://u:p%40@[::1]:7000/2", "redis", ("::1", 7000), "redis://u:p%40@[::1]:7000/2"),
        ("http://cache:8080/k", "http", ("cache", 8080), "http://cache:8080/k"),
        ("http://cache", "http", ("cache", 80), "http://cache"),
        (
            "redis+unix:///run/a%20b?db=2|read-only",
            "redis+unix",
            "/run/a b",
            "redis+unix:///mnt/cache-server/socket?db=2|read-only",
        ),
    ],
)
def test_a_cache_is_read_from_its_url(url: str, scheme: str, address: object, inside: str) -> None:
    found = remote_cache.parse_cache(url)
    assert (found.scheme, found.address, found.option) == (scheme, address, inside)


@pytest.mark.parametrize(
    "url",
    [
        "cache",
        "cache:6379",
        "https://cache/k",
        "ftp://cache",
        "redis://",
        "redis:///socket",
        "redis://cache:port",
        "redis://cache:99999",
        "redis+unix://run/socket",
        "redis+unix:///",
        "redis+unix:",
        "http:///k",
        "redis://a redis://b",
        "redis://a\xa0b",
        "redis://\udcff",
        "http://cache/\udcff",
        f"redis://{64 * 'a'}.example",
        f"redis://{130 * 'a.'}example",
        "redis://a..example",
        "redis://[::1",
        "redis://a\u2100b",
        "redis://cache:0",
        "redis+unix:///a%00b",
    ],
)
def test_a_senseless_cache_is_the_users_error(url: str) -> None:
    with pytest.raises(UserError, match="is not a cache server") as caught:
        remote_cache.parse_cache(url)
    assert caught.value.found
    assert "redis+unix:///" in (caught.value.expected or "")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("farm", ("farm", 8765)),
        ("10.0.0.1:99", ("10.0.0.1", 99)),
        ("[fd00::1]:99", ("fd00::1", 99)),
    ],
)
def test_a_scheduler_is_a_host_and_a_port(text: str, address: tuple[str, int]) -> None:
    assert icecream.parse_scheduler(text) == address


@pytest.mark.parametrize(
    "url",
    [
        "redis://:geheim/w@cache.example",
        "redis://user:geheim/w@cache.example",
        "redis://user:geheim@cache.example:x",
        "redis://user:geheim w@cache.example",
        "http://user:geheim\u2100@cache.example",
        "user:geheim@cache.example",
    ],
)
def test_no_password_is_in_what_is_said_of_an_address(url: str) -> None:
    for parse in (remote_cache.parse_cache, icecream.parse_scheduler):
        with pytest.raises(UserError) as caught:
            parse(url)
        assert "***@cache.example" in str(caught.value)
        assert "geheim" not in f"{caught.value} {caught.value!r}"
        assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "text",
    ["farm:", "farm:0", "farm:70000", "tcp://farm", "a b", "-x y", 64 * "a", "a..example"],
)
def test_a_senseless_scheduler_is_the_users_error(text: str) -> None:
    with pytest.raises(UserError, match="not the address of an icecream scheduler"):
        icecream.parse_scheduler(text)


@pytest.mark.parametrize(
    ("url", "answer", "why"),
    [
        ("redis://{}", b"+PONG\r\n", None),
        ("redis://:secret@{}", b"-NOAUTH Authentication required.\r\n", None),
        ("redis://{}", b"-NOAUTH Authentication required.\r\n", "NOAUTH"),
        ("redis://{}", b"HTTP/1.0 400 Bad Request\r\n", "not a Redis"),
        ("http://{}/k", b"HTTP/1.1 404 Not Found\r\n\r\n", None),
        ("http://{}/k", b"-ERR unknown command\r\n", "does not speak HTTP"),
        ("redis://{}", b"", "not a Redis"),
    ],
)
def test_a_server_is_asked_before_the_build(url: str, answer: bytes, why: str | None) -> None:
    with server(answer) as address:
        assert isinstance(address, tuple)
        found = remote_cache.answers(
            remote_cache.parse_cache(url.format(f"127.0.0.1:{address[1]}"))
        )
    assert found is None if why is None else why in (found or "")


def test_a_server_on_a_socket_is_asked_too(tmp_path: Path) -> None:
    with server(b"+PONG\r\n", path=tmp_path / "s"):
        assert remote_cache.answers(remote_cache.parse_cache(f"redis+unix://{tmp_path}/s")) is None
    gone = remote_cache.answers(remote_cache.parse_cache(f"redis+unix://{tmp_path}/none"))
    assert gone == "No such file or directory"


def a_root(tmp_path: Path) -> Root:
    path = tmp_path / "root"
    (path / "etc").mkdir(parents=True)
    (path / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\nicecc:x:100:101::/:/bin/false\n")
    return Root("bookworm", path, "d" * 64)


def pretend_version(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    def enter(*_: object, **__: object) -> run.Completed:
        return run.Completed((), 0, said, "", 0.0)

    monkeypatch.setattr(sandbox, "enter", enter)


def configured(tmp_path: Path, help: Help) -> str:
    """Return the server that ccache is told of: in a file that nobody else can read."""
    assert help.env["CCACHE_CONFIGPATH"] == "/mnt/statistics/ccache.conf"
    path = tmp_path / "home/statistics/ccache.conf"
    assert path.stat().st_mode & 0o077 == 0
    return path.read_text().removeprefix("remote_storage = ").rstrip("\n")


MODERN = "ccache version 4.7.5\nFeatures: file-storage http-storage redis+unix-storage\n"


def test_without_options_nothing_is_opened(tmp_path: Path) -> None:
    root = a_root(tmp_path)
    settings = fake_kernel.settings(tmp_path)
    with helpers.ready(settings, root, tmp_path / "home") as help:
        assert not help.network
        assert help.env == {"CCACHE_STATSLOG": "/mnt/statistics/ccache.log"}
        assert help.binds == (Bind(tmp_path / "home/statistics", "/mnt/statistics", True),)


def test_a_cache_on_a_socket_needs_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_version(monkeypatch, MODERN)
    url = f"redis+unix://{tmp_path}/s"
    settings = replace(fake_kernel.settings(tmp_path), remote_cache=url)
    with (
        server(b"+PONG\r\n", path=tmp_path / "s"),
        helpers.ready(settings, a_root(tmp_path), tmp_path / "home") as help,
    ):
        assert not help.network
        assert configured(tmp_path, help) == "redis+unix:///mnt/cache-server/socket"
        assert Bind(tmp_path / "s", "/mnt/cache-server/socket", True) in help.binds


def test_a_cache_elsewhere_needs_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_version(monkeypatch, MODERN)
    with server(b"HTTP/1.1 200 OK\r\n\r\n") as address:
        url = f"http://127.0.0.1:{address[1]}/k"
        settings = replace(fake_kernel.settings(tmp_path), remote_cache=url)
        with helpers.ready(settings, a_root(tmp_path), tmp_path / "home") as help:
            assert help.network
            assert configured(tmp_path, help) == url


@pytest.mark.parametrize(
    ("said", "words"),
    [(MODERN, "No such file"), ("ccache version 4.2\n", "ccache 4.2 of bookworm cannot use")],
)
def test_a_cache_that_is_of_no_use_is_left_out_with_a_warning(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    said: str,
    words: str,
) -> None:
    pretend_version(monkeypatch, said)
    url = f"redis+unix://{tmp_path}/none"
    settings = replace(fake_kernel.settings(tmp_path), remote_cache=url)
    with (
        caplog.at_level(logging.WARNING),
        helpers.ready(settings, a_root(tmp_path), tmp_path / "home") as help,
    ):
        assert "CCACHE_CONFIGPATH" not in help.env
        assert not (tmp_path / "home/statistics/ccache.conf").exists()
        assert not help.network
    assert words in caplog.text


def test_a_senseless_address_ends_the_build_before_it_begins(tmp_path: Path) -> None:
    for wrong in ({"remote_cache": "ftp://x"}, {"scheduler": "a b"}):
        settings = replace(fake_kernel.settings(tmp_path), **wrong)  # type: ignore[arg-type]
        with (
            pytest.raises(UserError),
            helpers.ready(settings, Root("bookworm", tmp_path, "d"), tmp_path / "home"),
        ):
            pass


def test_the_statistics_of_a_build_are_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = tmp_path / "home/statistics/ccache.log"
    log.parent.mkdir(parents=True)
    versions = log.with_name("symbol-versions.log")
    for left in (log, versions):
        left.write_text("# old.c\ncache_miss\n")
    with (
        caplog.at_level(logging.INFO),
        helpers.ready(fake_kernel.settings(tmp_path), a_root(tmp_path), tmp_path / "home"),
    ):
        log.write_text(LOG)
        versions.write_text("# /mnt/source/f1.c\ndirect_cache_hit\n")
    kept = json.loads((log.parent / "ccache.json").read_text())
    assert kept["objects"]["missed"] == ["/mnt/source/f0.c"]
    assert kept["objects"]["counters"]["cache_miss"] == 2
    assert kept["symbol versions of files"]["missed"] == []
    assert "2 of 4 objects (50.0 %) from the cache, 1 lookups answered by the remote" in caplog.text
    assert "1 of 1 symbol versions of files (100.0 %) from the cache" in caplog.text


def test_a_password_is_on_no_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_version(monkeypatch, MODERN.replace("redis+unix", "redis"))
    with server(b"-NOAUTH Authentication required.\r\n") as address:
        url = f"redis://:secret@127.0.0.1:{address[1]}"
        settings = replace(fake_kernel.settings(tmp_path), remote_cache=url)
        root = a_root(tmp_path)
        with helpers.ready(settings, root, tmp_path / "home") as help:
            assert configured(tmp_path, help) == url
            line = sandbox.command(root, ["make"], binds=help.binds, env=help.env)
    assert "CCACHE_CONFIGPATH" in line
    assert not [word for word in line if "secret" in str(word)]
    left = [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert not [path for path in left if b"secret" in path.read_bytes()]


def test_no_statistics_are_none(tmp_path: Path) -> None:
    assert remote_cache.read_statistics(tmp_path / "none") is None
    (tmp_path / "empty").touch()
    empty = remote_cache.read_statistics(tmp_path / "empty")
    assert empty is not None
    assert remote_cache.describe(empty) == "ccache: 0 of 0 objects (none) from the cache"


def test_several_helps_are_added_up(tmp_path: Path) -> None:
    bind = Bind(tmp_path, "/mnt/x")
    found = helpers.together([Help({"A": "1"}, (bind,)), Help({"B": "2"}, (bind,), network=True)])
    assert found == Help({"A": "1", "B": "2"}, (bind,), network=True)


@contextlib.contextmanager
def pretend_daemon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str) -> Iterator[None]:
    archive = tmp_path / "0123abcd.tar.gz"
    archive.touch()
    monkeypatch.setattr(icecream, "compiler_environment", lambda *_: archive)
    monkeypatch.setattr(sandbox, "command", lambda *_, **__: ["sh", "-c", script])
    monkeypatch.setattr(icecream, "_owner", lambda *_: (None, None))
    monkeypatch.setattr(icecream.shutil, "chown", lambda *_: None)  # type: ignore[attr-defined]
    yield


def test_icecream_is_used_when_its_scheduler_has_taken_the_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(fake_kernel.settings(tmp_path), scheduler="farm")
    script = "echo Connected to scheduler '(I am known as 10.0.0.1)'; exec sleep 60"
    with (
        pretend_daemon(monkeypatch, tmp_path, script),
        helpers.ready(settings, a_root(tmp_path), tmp_path / "home") as help,
    ):
        assert help.network
        assert help.env["CCACHE_PREFIX"] == "icecc"
        # A worker knows environments by this name: it must be the archive's own.
        assert help.env["ICECC_VERSION"] == "/mnt/icecream/0123abcd.tar.gz"
        assert (tmp_path / "home/icecream/0123abcd.tar.gz").exists()


def test_without_a_scheduler_the_build_goes_on_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(icecream, "_DAEMON_TIMEOUT_S", 0.3)
    settings = replace(fake_kernel.settings(tmp_path), scheduler="farm")
    with (
        pretend_daemon(monkeypatch, tmp_path, "echo scheduler not yet found; exec sleep 60"),
        caplog.at_level(logging.WARNING),
        helpers.ready(settings, a_root(tmp_path), tmp_path / "home") as help,
    ):
        assert not help.network
        assert "CCACHE_PREFIX" not in help.env
    assert "no scheduler answers at farm" in caplog.text


def test_a_daemon_that_dies_is_told_from_a_scheduler_that_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(fake_kernel.settings(tmp_path), scheduler="farm")
    with (
        pretend_daemon(monkeypatch, tmp_path, "echo mkdir failed; exit 1"),
        pytest.raises(InfrastructureError, match="daemon does not start") as caught,
        helpers.ready(settings, a_root(tmp_path), tmp_path / "home"),
    ):
        pass
    assert caught.value.found == "mkdir failed"


def test_a_compiler_that_cannot_be_sent_is_no_reason_to_end_a_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none(*_: object) -> object:
        raise BuildError("icecc made no archive of the compiler")

    settings = replace(fake_kernel.settings(tmp_path), scheduler="farm")
    with pretend_daemon(monkeypatch, tmp_path, "exit 1"), caplog.at_level(logging.WARNING):
        monkeypatch.setattr(icecream, "compiler_environment", none)
        with helpers.ready(settings, a_root(tmp_path), tmp_path / "home") as help:
            assert "CCACHE_PREFIX" not in help.env
    assert "icecream is not used: icecc made no archive" in caplog.text


@pytest.mark.parametrize("url", ["redis://:secret@", "redis://u:secret@host:x", "ftp://u:secret@h"])
def test_a_refused_address_does_not_show_its_password(url: str) -> None:
    with pytest.raises(UserError) as caught:
        remote_cache.parse_cache(url)
    assert "secret" not in str(caught.value)


def test_the_daemons_user_is_the_roots(tmp_path: Path) -> None:
    root = a_root(tmp_path)
    assert icecream._owner(root, "icecc") == (100, 101)
    with pytest.raises(BuildError, match="no user nobody"):
        icecream._owner(root, "nobody")


def test_the_compilers_archive_keeps_the_name_that_icecc_gave_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def enter(root: Root, argv: list[str], *, binds: list[Bind], **_: object) -> None:
        calls.append(argv)
        (binds[0].source / "8b59.tar.gz").write_text("x")

    monkeypatch.setattr(sandbox, "enter", enter)
    settings, root = fake_kernel.settings(tmp_path), a_root(tmp_path)
    for place in places.both(settings):
        places.mark(place)
    for _ in range(2):
        made = icecream.compiler_environment(settings, root)
        assert made.name == "8b59.tar.gz"
        assert cleaning.clean_unused(settings, days=1) == ()
        os.utime(made.parent, (0, 0))
    assert calls == [["icecc", "--build-native", "/usr/bin/gcc-12"]]


def test_the_network_is_closed_unless_it_is_asked_for(tmp_path: Path) -> None:
    root = a_root(tmp_path)
    assert "--unshare-net" in sandbox.command(root, ["true"])
    assert "--unshare-net" not in sandbox.command(root, ["true"], network=True)
    assert sandbox.command(root, ["true"])[-2:] == ["--", "true"]
