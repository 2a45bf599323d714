"""The frames of the control channel: junk, truncation, and a conversation with a fake agent."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbuild.core.errors import UserError
from kbuild.guest.channel import (
    MAGIC,
    MAX_PAYLOAD,
    MAX_STRINGS,
    Channel,
    ChannelClosed,
    ChannelGarbled,
    ChannelRefused,
    ChannelTimeout,
    Decoder,
    Frame,
    Kind,
    encode,
    start_payload,
)

frames = st.builds(
    Frame,
    kind=st.sampled_from(Kind),
    id=st.integers(0, 2**32 - 1),
    payload=st.binary(max_size=300),
)
# Junk that looks like the beginning of a frame is the hardest.
junk = st.one_of(
    st.binary(max_size=40),
    st.just(MAGIC),
    st.binary(max_size=20).map(lambda tail: MAGIC + tail),
)


def pieces(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    at = 0
    for cut in sorted(cuts):
        yield data[at:cut]
        at = max(at, cut)
    yield data[at:]


@given(st.lists(frames, max_size=6), st.lists(st.integers(0, 2000), max_size=8))
def test_frames_survive_any_cutting(sent: list[Frame], cuts: list[int]) -> None:
    decoder = Decoder()
    data = b"".join(encode(frame) for frame in sent)
    got = [frame for piece in pieces(data, cuts) for frame in decoder.feed(piece)]
    assert got == sent
    assert decoder.junk == 0


@given(st.lists(st.tuples(junk, frames), min_size=1, max_size=5), st.integers(1, 64))
def test_frames_are_found_between_junk(sent: list[tuple[bytes, Frame]], step: int) -> None:
    decoder = Decoder()
    data = b"".join(noise + encode(frame) for noise, frame in sent)
    # Enough bytes to end the wait for a frame that a piece of junk announces.
    data += b"\0" * 32
    got = [f for at in range(0, len(data), step) for f in decoder.feed(data[at : at + step])]
    assert got == [frame for _, frame in sent]


@given(frames, st.data())
def test_a_damaged_frame_is_dropped_and_the_next_one_found(
    frame: Frame, data: st.DataObject
) -> None:
    raw = bytearray(encode(frame))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    decoder = Decoder()
    after = Frame(Kind.HELLO, 1, b"after")
    # A damaged length may ask for more bytes, and the padding provides them.
    got = decoder.feed(bytes(raw) + encode(after) + b"\0" * (MAX_PAYLOAD + 64))
    assert got == [after]
    assert decoder.junk >= len(raw)


@given(frames, st.data())
def test_a_truncated_frame_is_no_frame(frame: Frame, data: st.DataObject) -> None:
    raw = encode(frame)
    assert Decoder().feed(raw[: data.draw(st.integers(0, len(raw) - 1))]) == []


def test_the_layout_is_the_one_that_the_agent_speaks() -> None:
    raw = encode(Frame(Kind.PING, 0x01020304, b"ab"))
    assert raw[:12] == b"\xa5cpgP\x00\x02\x00\x04\x03\x02\x01"
    assert len(raw) == 16 + 2 + 4


def test_a_payload_that_is_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="32769"):
        encode(Frame(Kind.INPUT, 1, b"x" * (MAX_PAYLOAD + 1)))


Answer = Callable[[Frame], list[bytes]]


@pytest.fixture
def talk() -> Iterator[Callable[[Answer], Channel]]:
    """A function that connects a channel to an agent with the given answers."""
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    threads: list[threading.Thread] = []

    def connect(answer: Answer) -> Channel:
        def serve() -> None:
            decoder = Decoder()
            while data := theirs.recv(65536):
                for frame in decoder.feed(data):
                    for raw in answer(frame):
                        theirs.sendall(raw)

        threads.append(threading.Thread(target=serve, daemon=True))
        threads[0].start()
        return channel

    yield connect
    channel.close()
    for thread in threads:
        thread.join(5)
    theirs.close()


def exit_frame(number: int, status: int, flags: int = 0) -> bytes:
    payload = status.to_bytes(4, "little", signed=True) + flags.to_bytes(4, "little")
    return encode(Frame(Kind.EXIT, number, payload))


def test_a_command_gathers_its_own_output_only(talk: Callable[[Answer], Channel]) -> None:
    def answer(frame: Frame) -> list[bytes]:
        if frame.kind is not Kind.START:
            return []
        return [
            encode(Frame(Kind.STDOUT, frame.id + 7, b"another's")),
            encode(Frame(Kind.STDOUT, frame.id, b"one ")),
            b"\xa5cpg junk",
            encode(Frame(Kind.STDERR, frame.id, b"err")),
            encode(Frame(Kind.STDOUT, frame.id, b"two")),
            exit_frame(frame.id, -15, 1),
        ]

    channel = talk(answer)
    job = channel.start(["x"], limit_s=1, env={"A": "b"}, cwd="/", pty=False, timeout_s=5)
    channel.wait(job, 5)
    assert (bytes(job.stdout), bytes(job.stderr), job.status) == (b"one two", b"err", -15)
    assert job.timed_out
    assert not job.unkillable
    assert channel.junk > 0


def test_input_goes_piece_by_piece_as_it_is_taken(talk: Callable[[Answer], Channel]) -> None:
    taken: list[int] = []

    def answer(frame: Frame) -> list[bytes]:
        if frame.kind is Kind.INPUT:
            taken.append(len(frame.payload))
            return [encode(Frame(Kind.INPUT_TAKEN, frame.id))]
        return [exit_frame(frame.id, 0)] if frame.kind is Kind.CLOSE_INPUT else []

    channel = talk(answer)
    job = channel.start(["x"], limit_s=0, env={}, cwd="/", pty=False, timeout_s=5)
    channel.write(job, b"x" * (MAX_PAYLOAD * 2 + 5), 5)
    channel.close_input(job, 5)
    channel.wait(job, 5)
    assert taken == [MAX_PAYLOAD, MAX_PAYLOAD, 5]


def test_a_lost_ping_is_sent_again(talk: Callable[[Answer], Channel]) -> None:
    pings: list[Frame] = []

    def answer(frame: Frame) -> list[bytes]:
        pings.append(frame)
        return [] if len(pings) < 3 else [encode(Frame(Kind.HELLO, 0, b"1\nid\nrelease\n"))]

    assert talk(answer).ping(10, every_s=0.05).splitlines() == ["1", "id", "release"]
    assert len(pings) >= 3


def test_silence_is_a_timeout(talk: Callable[[Answer], Channel]) -> None:
    channel = talk(lambda _: [])
    with pytest.raises(ChannelTimeout):
        channel.ping(0.1)
    with pytest.raises(ChannelTimeout):
        channel.request(Kind.MARK, b"m", 0.1)


def test_a_refusal_carries_its_reason(talk: Callable[[Answer], Channel]) -> None:
    channel = talk(lambda frame: [encode(Frame(Kind.REFUSED, frame.id, b"too many jobs"))])
    with pytest.raises(ChannelRefused, match="too many jobs"):
        channel.request(Kind.MARK, b"m", 5)
    job = channel.start(["x"], limit_s=0, env={}, cwd="/", pty=False, timeout_s=5)
    with pytest.raises(ChannelRefused, match="too many jobs"):
        channel.wait(job, 5)


def test_the_end_of_the_line_is_told_from_silence() -> None:
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    theirs.close()
    began = time.monotonic()
    with pytest.raises(ChannelClosed):
        channel.ping(30)
    assert time.monotonic() - began < 30
    channel.close()


def test_an_answer_is_taken_although_the_other_socket_is_at_its_end() -> None:
    """QEMU ends right after the farewell; a busy host finds both at once."""
    serial, serial_theirs = socket.socketpair()
    bulk, bulk_theirs = socket.socketpair()
    channel = Channel(serial, bulk)
    serial_theirs.sendall(encode(Frame(Kind.PORT_OPENED, 1, bytes(4))))
    assert channel.use_bulk("/dev/port", 5)
    bulk_theirs.sendall(encode(Frame(Kind.FAREWELL, 2, b"\1\0\0\0")))
    serial_theirs.close()
    bulk_theirs.shutdown(socket.SHUT_WR)
    assert channel.request(Kind.POWER_OFF, b"", 5).payload == b"\1\0\0\0"
    with pytest.raises(ChannelClosed):
        channel.request(Kind.MARK, b"", 5)
    channel.close()
    bulk_theirs.close()


@pytest.mark.parametrize("argv", [["x" * MAX_PAYLOAD], ["x"] * MAX_STRINGS])
def test_a_command_that_no_frame_holds_is_the_users_error(argv: list[str]) -> None:
    start_payload(["x" * (MAX_PAYLOAD - 100)], env={}, cwd="/")
    start_payload(["x"] * (MAX_STRINGS - 1), env={}, cwd="/")
    with pytest.raises(UserError, match="too long"):
        start_payload(argv, env={}, cwd="/")


@given(st.binary(max_size=12))
def test_no_content_of_an_answer_makes_anything_but_an_outcome(payload: bytes) -> None:
    for kind in Kind:
        ours, theirs = socket.socketpair()
        channel = Channel(ours)
        job = channel.start(["x"], limit_s=0, env={}, cwd="/", pty=False, timeout_s=5)
        theirs.sendall(encode(Frame(kind, job.id, payload)))
        with contextlib.suppress(ChannelGarbled):
            channel.pump(5)
            assert job.done or job.status is None
        channel.close()
        theirs.close()


@pytest.mark.parametrize("reads", [True, False])
def test_a_killed_qemu_is_heard_to_its_last_word(reads: bool) -> None:
    """Its last bytes need more than one reading, and its other socket ends first."""
    serial, serial_theirs = socket.socketpair()
    bulk, bulk_theirs = socket.socketpair()
    bulk_theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)
    channel = Channel(serial, bulk)
    serial_theirs.sendall(encode(Frame(Kind.PORT_OPENED, 1, bytes(4))))
    assert channel.use_bulk("/dev/port", 5)
    job = channel.start(["x"], limit_s=0, env={}, cwd="/", pty=False, timeout_s=5)
    bulk_theirs.settimeout(5)
    sent = 0
    with contextlib.suppress(TimeoutError, BlockingIOError):
        bulk_theirs.setblocking(False)
        while sent < 3 << 20:
            bulk_theirs.sendall(encode(Frame(Kind.STDOUT, job.id, b"x" * 1000)))
            sent += 1000
    serial_theirs.close()
    bulk_theirs.close()
    # Both reading and writing notice the end.
    with pytest.raises(ChannelClosed):
        if reads:
            channel.wait(job, 5)
        else:
            channel.close_input(job, 5)
    assert len(job.stdout) == sent
    channel.close()


@pytest.mark.parametrize("argv", [[], ["a\0b"]])
def test_a_command_that_cannot_be_sent_is_refused_here(argv: list[str]) -> None:
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    with pytest.raises(UserError, match="NUL"):
        channel.start(argv, limit_s=0, env={}, cwd="/", pty=False, timeout_s=5)
    channel.close()
    theirs.close()
