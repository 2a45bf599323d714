"""The clock of this machine against the mirrors', before a round signs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from kbuild.core.errors import ClockError, InfrastructureError
from kbuild.core.model import Settings, Target
from kbuild.fetch import mirror
from kbuild.fetch.download import Network
from kbuild.fetch.mirror import Mirrors
from kbuild.watch import clock

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
TARGETS = (Target("bookworm", "lab"), Target("trixie", "lab"))


def check(*mirrors: timedelta, right: timedelta | None = None, left: timedelta | None) -> None:
    """Check a clock: how far mirrors are ahead of it, since when it was right, what is left."""
    clock.check(
        NOW,
        [(f"http://m{number}.example", NOW + ahead) for number, ahead in enumerate(mirrors)],
        (NOW - right).isoformat() if right is not None else "",
        NOW + left if left is not None else None,
    )


def test_a_mirror_decides() -> None:
    for ahead in (-HOUR, timedelta(), HOUR):
        check(ahead, left=-DAY)
    for ahead in (-40 * DAY, -HOUR - HOUR / 60, HOUR + HOUR / 60, 2 * DAY):
        # However short a time is left, and however well the clock went until now.
        with pytest.raises(ClockError) as error:
            check(ahead, right=HOUR, left=DAY)
        assert f"{NOW + ahead:%Y-%m-%d %H:%M} UTC" in str(error.value.expected)
        assert error.value.found == "2026-11-30 12:00 UTC"


def test_one_of_two_mirrors_that_agrees_is_enough() -> None:
    check(40 * DAY, timedelta(), left=DAY)
    with pytest.raises(ClockError, match="clock is wrong"):
        check(40 * DAY, -DAY, left=DAY)


def test_without_an_answer_the_clock_must_have_been_right_lately() -> None:
    for left in (9 * DAY, -DAY, 25 * DAY):
        check(right=9 * DAY, left=left)
        for right in (11 * DAY, -HOUR, None):
            with pytest.raises(InfrastructureError, match="no mirror confirms") as error:
                check(right=right, left=left)
            assert not isinstance(error.value, ClockError)


def test_without_an_answer_indexes_that_end_soon_are_signed() -> None:
    check(right=None, left=2 * DAY)
    check(right=20 * DAY, left=HOUR)


def test_without_indexes_there_is_nothing_to_lose() -> None:
    check(left=None)


# The mirrors.


class Mirror(HTTPServer):
    """A mirror with headers of its own."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.status = 200
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/debian"


class _Handler(BaseHTTPRequestHandler):
    server: Mirror

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        # A cache would have sent its copy.
        assert self.headers["Cache-Control"] == "no-cache"
        self.send_response_only(self.server.status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    with Mirror() as made:
        found = Mirrors((made.url,), (made.url,))
        monkeypatch.setattr(mirror, "find", lambda *_, **__: found)
        thread = threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield made
        made.shutdown()
        thread.join(10)


def ask(**changes: bool) -> list[tuple[str, datetime]]:
    here = Path("/nowhere")
    settings = Settings(project=here, build=here, cache=here, **changes)  # type: ignore[arg-type]
    return [*clock.of_mirrors(settings, TARGETS, Network())]


def test_a_mirror_is_asked_once_for_its_time(server: Mirror) -> None:
    server.headers["Date"] = "Mon, 30 Nov 2026 12:00:00 GMT"
    assert ask() == [(server.url, NOW)]
    assert server.asked == ["/debian/dists/bookworm/InRelease"]


def test_the_age_of_a_cached_answer_counts(server: Mirror) -> None:
    server.headers |= {"Date": "Mon, 30 Nov 2026 09:00:00 GMT", "Age": "10800"}
    assert ask() == [(server.url, NOW)]


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (200, {}),
        (200, {"Date": "yesterday"}),
        (200, {"Date": "Mon, 30 Nov 2026 12:00:00 GMT", "Age": "old"}),
        (503, {"Date": "Mon, 30 Nov 2026 12:00:00 GMT"}),
    ],
)
def test_an_answer_without_a_time_is_none(
    status: int, headers: dict[str, str], server: Mirror
) -> None:
    server.status, server.headers = status, headers
    assert ask() == []


def test_no_mirror_is_asked_offline(server: Mirror) -> None:
    server.headers["Date"] = "Mon, 30 Nov 2026 12:00:00 GMT"
    assert ask(offline=True) == []
    assert server.asked == []
