"""The kind of an open file, from paths that the kernel's readlink(2) gives."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cplayground.kinds import KINDS, kind


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"pipe:[12]", "pipe"),
        (b"/tmp/pipe:[12]", "file"),
        (b"/pipe:[12]", "file"),
        (b"socket:[34]", "socket"),
        (b"anon_inode:[eventfd]", "eventfd"),
        (b"anon_inode:[eventpoll]", "epoll"),
        (b"anon_inode:inotify", "inotify"),
        (b"anon_inode:[pidfd]", "pidfd"),
        (b"pidfd:[7]", "pidfd"),
        (b"anon_inode:bpf-prog", "bpf"),
        (b"anon_inode:[perf_event]", "perf"),
        (b"anon_inode:[made next year]", "anonymous"),
        (b"anon_inode:kvm-vcpu:0", "anonymous"),
        (b"secretmem:[8]", "anonymous"),
        (b"mnt:[4026531841]", "namespace"),
        (b"net:[4026531840]", "namespace"),
        (b"/memfd:name (deleted)", "memfd"),
        (b"/memfd:name", "file"),
        (b"/tmp/x (deleted)", "deleted"),
        (b"/dev/null", "device"),
        (b"/dev/pts/0", "terminal"),
        (b"/dev/pts/0 (deleted)", "terminal"),
        (b"/dev/tty1", "terminal"),
        (b"/dev/console", "terminal"),
        (b"/dev/shm/x", "file"),
        (b"/dev/shm/x (deleted)", "deleted"),
        (b"/dev/mqueue/x", "file"),
        (b"/device", "file"),
        (b"/", "file"),
        (b"(path too long)", "file"),
        (b"(unreachable)/x", "file"),
    ],
)
def test_each_path_has_its_kind(path: bytes, expected: str) -> None:
    assert kind(path) == expected
    assert expected in KINDS


def test_every_kind_has_a_path_above() -> None:
    (mark,) = test_each_path_has_its_kind.pytestmark  # type: ignore[attr-defined]
    named = {expected for _, expected in mark.args[1]}
    plain = {name for name in KINDS if kind(f"anon_inode:[{name}]".encode()) == name}
    assert named | plain == set(KINDS)


@given(st.binary(min_size=1))
def test_any_path_has_a_kind(path: bytes) -> None:
    assert kind(path) in KINDS


def memfd() -> int:
    return os.memfd_create("x")


def bound() -> int:
    return socket.socket().detach()


def epoll() -> int:
    with select.epoll() as one:
        return os.dup(one.fileno())


def read_end() -> int:
    first, second = os.pipe()
    os.close(second)
    return first


def own_namespace() -> int:
    return os.open("/proc/self/ns/net", os.O_RDONLY)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (memfd, "memfd"),
        (bound, "socket"),
        (epoll, "epoll"),
        (read_end, "pipe"),
        (own_namespace, "namespace"),
        (lambda: os.open(os.devnull, os.O_RDONLY), "device"),
        (lambda: os.open(__file__, os.O_RDONLY), "file"),
    ],
)
def test_the_kernel_gives_such_paths(make: Callable[[], int], expected: str) -> None:
    number = make()
    try:
        assert kind(os.fsencode(Path(f"/proc/self/fd/{number}").readlink())) == expected
    finally:
        os.close(number)
