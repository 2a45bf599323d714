"""Notifications: a command, a webhook, and what neither of them may give away."""

from __future__ import annotations

import dataclasses
import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from kbuild.core.errors import InfrastructureError
from kbuild.core.model import Policy, Settings
from kbuild.watch import telling
from kbuild.watch.state import Cause, Failure
from kbuild.watch.telling import Tell

CAUSE = Cause(
    "release bookworm-lab",
    "the guest crashed",
    "2026-11-30T12:00:00+00:00",
    error=Failure("guest", "the guest crashed", 21, log="/log"),
)
OVER = dataclasses.replace(CAUSE, over="2026-11-30T13:00:00+00:00", alarmed=("command", "webhook"))
ARCHIVE = Path("/archive")


def settings(**policy: Any) -> Settings:  # noqa: ANN401
    here = Path("/nowhere")
    return Settings(project=here, build=here, cache=here, policy=Policy(**policy))


def tell(causes: tuple[Cause, ...], ways: dict[str, Tell]) -> tuple[Cause, ...]:
    return telling.tell(causes, ways, ARCHIVE, "http://kernels.example/")


class Hook(HTTPServer):
    """A webhook that notes what it got, and answers with a status."""

    def __init__(self) -> None:
        self.got: list[tuple[str, dict[str, Any], str | None]] = []
        self.status = 204
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/services/SECRET"


class _Handler(BaseHTTPRequestHandler):
    server: Hook

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append((self.path, json.loads(raw), self.headers.get("Authorization")))
        self.send_response(self.server.status)
        self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hook() -> Iterator[Hook]:
    with Hook() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join(10)


def test_a_command_reads_the_message(tmp_path: Path) -> None:
    got = tmp_path / "got"
    (way,) = telling.channels(settings(notify_command=("dd", "status=none", f"of={got}"))).values()
    (after,) = tell((CAUSE,), {"command": way})
    assert after.told == ("command",)
    assert json.loads(got.read_text()) == {
        "format": 1,
        "event": "began",
        "text": "release bookworm-lab: the guest crashed",
        "subject": "release bookworm-lab",
        "what": "the guest crashed",
        "since": CAUSE.since,
        "over": None,
        "error": {
            "kind": "guest",
            "what": "the guest crashed",
            "status": 21,
            "expected": None,
            "found": None,
            "log": "/log",
            "do": None,
        },
        "archive": "/archive",
        "url": "http://kernels.example/",
    }


def test_a_webhook_takes_the_message(hook: Hook) -> None:
    ways = telling.channels(settings(webhook=hook.url))
    (after,) = tell((CAUSE,), ways)
    assert (after.told, after.alarmed, after.untold) == (("webhook",), ("webhook",), {})
    ((path, message, _),) = hook.got
    assert path == "/services/SECRET"
    assert message["text"] == "release bookworm-lab: the guest crashed"


def test_a_webhook_may_have_a_login(hook: Hook) -> None:
    url = hook.url.replace("://", "://u:p%40ss@")
    tell((CAUSE,), telling.channels(settings(webhook=url)))
    assert hook.got[0][2] == "Basic dTpwQHNz"


def test_the_end_is_told_and_forgotten(hook: Hook) -> None:
    assert tell((OVER,), telling.channels(settings(webhook=hook.url))) == ()
    ((_, message, _),) = hook.got
    assert (message["event"], message["over"]) == ("over", OVER.over)
    assert message["text"].startswith("over: ")


def test_who_does_not_know_of_the_beginning_is_not_told_of_the_end(hook: Hook) -> None:
    over = dataclasses.replace(OVER, alarmed=("command",))
    assert tell((over,), telling.channels(settings(webhook=hook.url))) == ()
    assert hook.got == []


def test_who_knows_already_is_not_told_again() -> None:
    def never(message: dict[str, Any]) -> None:
        raise AssertionError(message)

    known = dataclasses.replace(CAUSE, told=("command",))
    assert tell((known,), {"command": never}) == (known,)


def test_one_channel_that_fails_neither_stops_nor_repeats_the_other() -> None:
    told: list[str] = []

    def fails(message: dict[str, Any]) -> None:
        raise InfrastructureError("no answer")

    def defect(message: dict[str, Any]) -> None:
        raise KeyError("https://u:p@h.example/")

    ways: dict[str, Tell] = {
        "command": lambda message: told.append(message["subject"]),
        "webhook": fails,
    }
    after = tell((CAUSE, OVER), ways)
    # The end is kept, because one does not know of it.
    assert [one.over for one in after] == ["", OVER.over]
    assert [one.told for one in after] == [("command",)] * 2
    assert [one.untold for one in after] == [{"webhook": "no answer"}] * 2
    assert tell(after, ways) == after
    assert told == [CAUSE.subject] * 2
    (last,) = tell((CAUSE,), {"webhook": defect})
    assert last.untold == {"webhook": "KeyError"}


def test_without_a_channel_an_end_is_forgotten() -> None:
    assert tell((CAUSE, OVER), {}) == (CAUSE,)


@pytest.mark.parametrize("status", [301, 404, 500])
def test_a_webhook_that_refuses_is_told_without_its_path(
    status: int, hook: Hook, caplog: pytest.LogCaptureFixture
) -> None:
    hook.status = status
    with caplog.at_level(logging.DEBUG, logger="kbuild"):
        (after,) = tell((CAUSE,), telling.channels(settings(webhook=hook.url)))
    assert after.untold == {"webhook": f"the webhook at 127.0.0.1 answered with status {status}"}
    assert after.told == ()
    # A redirect is not followed.
    assert len(hook.got) == 1
    assert "SECRET" not in caplog.text


def test_a_webhook_that_is_not_there_is_told_without_its_path(
    hook: Hook, caplog: pytest.LogCaptureFixture
) -> None:
    url = hook.url.replace("://", "://user:PASSWORD@")
    hook.server_close()
    with caplog.at_level(logging.DEBUG, logger="kbuild"):
        (after,) = tell((CAUSE,), telling.channels(settings(webhook=url)))
    assert after.untold == {
        "webhook": "the webhook at 127.0.0.1 cannot be reached: ConnectionError"
    }
    assert not [word for word in ("SECRET", "PASSWORD") if word in caplog.text]


def test_a_command_that_fails_is_told_without_its_arguments(
    caplog: pytest.LogCaptureFixture,
) -> None:
    command = ("sh", "-c", "echo OUTPUT >&2; exit 3", "PASSWORD")
    with caplog.at_level(logging.DEBUG, logger="kbuild"):
        (after,) = tell((CAUSE,), telling.channels(settings(notify_command=command)))
    assert after.untold["command"] == "sh failed: exit status 3"
    assert "PASSWORD" not in caplog.text
    assert "OUTPUT" not in after.untold["command"]


def test_a_command_that_is_not_there_is_recorded() -> None:
    (after,) = tell((CAUSE,), telling.channels(settings(notify_command=("no-such-program",))))
    assert "no-such-program" in after.untold["command"]


def test_nothing_is_told_unless_it_is_configured() -> None:
    assert telling.channels(settings()) == {}
