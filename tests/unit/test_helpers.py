"""Helpers of a build: addresses are checked, servers asked, and no result depends on them."""

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
from kbuild.core import places, sandbox
from kbuild.core.errors import BuildError, InfrastructureError, UserError
from kbuild.core.model import Root
from kbuild.core.sandbox import Bind
from kbuild.kernel import helpers, icecream, remote_cache
from kbuild.kernel.help import Help
from tests.unit import fake_kernel, toy

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
        "cache:6379",
        "https://cache/k",
        "redis:///socket",
        "redis://cache:port",
        "redis://cache:99999",
        "redis+unix://run/socket",
        "redis+unix:///a%00b",
        "redis://a redis://b",
        "http://cache/\udcff",
        "redis://a\u2100b",
        f"redis://{64 * 'a'}.example",
        "redis://[::1",
    ],
)
def test_an_invalid_cache_url_is_the_users_error(url: str) -> None:
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
def test_the_error_about_an_address_shows_no_password(url: str) -> None:
    for parse in (remote_cache.parse_cache, icecream.parse_scheduler):
        with pytest.raises(UserError) as caught:
            parse(url)
        assert "***@cache.example" in str(caught.value)
        assert "geheim" not in f"{caught.value} {caught.value!r}"
        assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "text",
    ["farm:", "farm:70000", "tcp://farm", "-x y", "a..example"],
)
def test_an_invalid_scheduler_is_the_users_error(text: str) -> None:
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


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put fake programs of a root first in PATH; tests write more of them to the directory."""
    directory = tmp_path / "bin"
    monkeypatch.setenv("PATH", f"{directory}:{toy.FAKE_TOOLS}:{os.environ['PATH']}")
    program(directory, "ccache", f"echo '{MODERN}'")
    program(directory, "icecc", f'echo "$@" >> {directory}/asked; touch 0123abcd.tar.gz')
    return directory


def program(directory: Path, name: str, body: str) -> None:
    fake_kernel.write(directory / name, f"#!/bin/sh\n{body}\n", mode=0o755)


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """A root whose user icecc has our own numbers, so that files can be given to it."""
    ours = f"icecc:x:{os.getuid()}:{os.getgid()}::/:/bin/false\n"
    fake_kernel.write(tmp_path / "root/etc/passwd", f"root:x:0:0::/:/bin/sh\n{ours}")
    return Root("bookworm", tmp_path / "root", "d" * 64)


def configured(tmp_path: Path, help: Help) -> str:
    """Return the server in ccache's configuration, which only its owner may read."""
    assert help.env["CCACHE_CONFIGPATH"] == "/mnt/statistics/ccache.conf"
    path = tmp_path / "home/statistics/ccache.conf"
    assert path.stat().st_mode & 0o077 == 0
    return path.read_text().removeprefix("remote_storage = ").rstrip("\n")


MODERN = "ccache version 4.7.5\nFeatures: file-storage http-storage redis+unix-storage\n"


def test_without_options_nothing_is_opened(tmp_path: Path, root: Root) -> None:
    settings = fake_kernel.settings(tmp_path)
    with helpers.ready(settings, root, tmp_path / "home") as help:
        assert not help.network
        assert help.env == {"CCACHE_STATSLOG": "/mnt/statistics/ccache.log"}
        assert help.binds == (Bind(tmp_path / "home/statistics", "/mnt/statistics", True),)


def test_a_cache_on_a_socket_needs_no_network(tmp_path: Path, root: Root, programs: Path) -> None:
    url = f"redis+unix://{tmp_path}/s"
    settings = replace(fake_kernel.settings(tmp_path), remote_cache=url)
    with (
        server(b"+PONG\r\n", path=tmp_path / "s"),
        helpers.ready(settings, root, tmp_path / "home") as help,
    ):
        assert not help.network
        assert configured(tmp_path, help) == "redis+unix:///mnt/cache-server/socket"
        assert Bind(tmp_path / "s", "/mnt/cache-server/socket", True) in help.binds


def test_a_cache_elsewhere_needs_the_network(tmp_path: Path, root: Root, programs: Path) -> None:
    with server(b"HTTP/1.1 200 OK\r\n\r\n") as address:
        url = f"http://127.0.0.1:{address[1]}/k"
        settings = replace(fake_kernel.settings(tmp_path), remote_cache=url)
        with helpers.ready(settings, root, tmp_path / "home") as help:
            assert help.network
            assert configured(tmp_path, help) == url


@pytest.mark.parametrize(
    ("said", "words"),
    [(MODERN, "No such file"), ("ccache version 4.2\n", "ccache 4.2 of bookworm cannot use")],
)
def test_a_cache_that_is_of_no_use_is_left_out_with_a_warning(
    tmp_path: Path,
    root: Root,
    programs: Path,
    caplog: pytest.LogCaptureFixture,
    said: str,
    words: str,
) -> None:
    program(programs, "ccache", f"echo '{said}'")
    url = f"redis+unix://{tmp_path}/none"
    settings = replace(fake_kernel.settings(tmp_path), remote_cache=url)
    with (
        caplog.at_level(logging.WARNING),
        helpers.ready(settings, root, tmp_path / "home") as help,
    ):
        assert "CCACHE_CONFIGPATH" not in help.env
        assert not (tmp_path / "home/statistics/ccache.conf").exists()
        assert not help.network
    assert words in caplog.text


def test_an_invalid_address_ends_the_build_before_it_begins(tmp_path: Path) -> None:
    for wrong in ({"remote_cache": "ftp://x"}, {"scheduler": "a b"}):
        settings = replace(fake_kernel.settings(tmp_path), **wrong)  # type: ignore[arg-type]
        with (
            pytest.raises(UserError),
            helpers.ready(settings, Root("bookworm", tmp_path, "d"), tmp_path / "home"),
        ):
            pass


def test_the_statistics_of_a_build_are_its_own(
    tmp_path: Path, root: Root, caplog: pytest.LogCaptureFixture
) -> None:
    log = tmp_path / "home/statistics/ccache.log"
    log.parent.mkdir(parents=True)
    versions = log.with_name("symbol-versions.log")
    for left in (log, versions):
        left.write_text("# old.c\ncache_miss\n")
    with (
        caplog.at_level(logging.INFO),
        helpers.ready(fake_kernel.settings(tmp_path), root, tmp_path / "home"),
    ):
        log.write_text(LOG)
        versions.write_text("# /mnt/source/f1.c\ndirect_cache_hit\n")
    kept = json.loads((log.parent / "ccache.json").read_text())
    assert kept["objects"]["missed"] == ["/mnt/source/f0.c"]
    assert kept["objects"]["counters"]["cache_miss"] == 2
    assert kept["symbol versions of files"]["missed"] == []
    assert "2 of 4 objects (50.0 %) from the cache, 1 lookups answered by the remote" in caplog.text
    assert "1 of 1 symbol versions of files (100.0 %) from the cache" in caplog.text


def test_a_password_is_on_no_command_line(tmp_path: Path, root: Root, programs: Path) -> None:
    program(programs, "ccache", f"echo '{MODERN.replace('redis+unix', 'redis')}'")
    with server(b"-NOAUTH Authentication required.\r\n") as address:
        url = f"redis://:secret@127.0.0.1:{address[1]}"
        settings = replace(fake_kernel.settings(tmp_path), remote_cache=url)
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


def test_icecream_is_used_when_its_scheduler_has_taken_the_daemon(
    tmp_path: Path, root: Root, programs: Path
) -> None:
    settings = replace(fake_kernel.settings(tmp_path), scheduler="farm")
    said = "Connected to scheduler (I am known as 10.0.0.1)"
    program(programs, "iceccd", f"echo '{said}' $0 \"$@\"; exec sleep 60")
    with helpers.ready(settings, root, tmp_path / "home") as help:
        assert help.network
        assert help.env["CCACHE_PREFIX"] == "icecc"
        # A worker knows environments by this name: it must be the archive's own.
        assert help.env["ICECC_VERSION"] == "/mnt/icecream/0123abcd.tar.gz"
        assert (tmp_path / "home/icecream/0123abcd.tar.gz").exists()
    log = (settings.build / "logs/icecream.log").read_text()
    assert "iceccd --no-remote -s farm:8765" in log


def test_without_a_scheduler_the_build_goes_on_alone(
    tmp_path: Path,
    root: Root,
    programs: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(icecream, "_DAEMON_TIMEOUT_S", 0.3)
    settings = replace(fake_kernel.settings(tmp_path), scheduler="farm")
    program(programs, "iceccd", "echo scheduler not yet found; exec sleep 60")
    with (
        caplog.at_level(logging.WARNING),
        helpers.ready(settings, root, tmp_path / "home") as help,
    ):
        assert not help.network
        assert "CCACHE_PREFIX" not in help.env
    assert "no scheduler answers at farm" in caplog.text


def test_a_daemon_that_dies_is_told_from_a_scheduler_that_is_away(
    tmp_path: Path, root: Root, programs: Path
) -> None:
    settings = replace(fake_kernel.settings(tmp_path), scheduler="farm")
    program(programs, "iceccd", "echo mkdir failed; exit 1")
    with (
        pytest.raises(InfrastructureError, match="daemon does not start") as caught,
        helpers.ready(settings, root, tmp_path / "home"),
    ):
        pass
    assert caught.value.found == "mkdir failed"


@pytest.mark.parametrize(
    ("icecc", "words"),
    [("exit 1", "icecream is not used: "), (":", "icecc made no archive")],
)
def test_a_compiler_that_cannot_be_sent_is_no_reason_to_end_a_build(
    tmp_path: Path,
    root: Root,
    programs: Path,
    caplog: pytest.LogCaptureFixture,
    icecc: str,
    words: str,
) -> None:
    settings = replace(fake_kernel.settings(tmp_path), scheduler="farm")
    program(programs, "icecc", icecc)
    with (
        caplog.at_level(logging.WARNING),
        helpers.ready(settings, root, tmp_path / "home") as help,
    ):
        assert "CCACHE_PREFIX" not in help.env
    assert words in caplog.text


def test_a_root_without_the_daemons_user_is_named(
    tmp_path: Path, root: Root, programs: Path
) -> None:
    settings = replace(fake_kernel.settings(tmp_path), scheduler="farm")
    (root.path / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\n")
    with (
        pytest.raises(BuildError, match="no user icecc"),
        helpers.ready(settings, root, tmp_path / "home"),
    ):
        pass


def test_the_compilers_archive_is_made_once_and_keeps_its_name(
    tmp_path: Path, root: Root, programs: Path
) -> None:
    settings = fake_kernel.settings(tmp_path)
    for place in places.both(settings):
        places.mark(place)
    for _ in range(2):
        made = icecream.compiler_environment(settings, root)
        assert made.name == "0123abcd.tar.gz"
        assert cleaning.clean_unused(settings, days=1) == ()
        os.utime(made.parent, (0, 0))
    assert (programs / "asked").read_text() == "--build-native /usr/bin/gcc-12\n"


def test_the_network_is_closed_unless_it_is_asked_for(root: Root) -> None:
    assert "--unshare-net" in sandbox.command(root, ["true"])
    assert "--unshare-net" not in sandbox.command(root, ["true"], network=True)
    assert sandbox.command(root, ["true"])[-2:] == ["--", "true"]
