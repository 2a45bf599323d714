"""What is held against a request before anything is done for it."""

from __future__ import annotations

from kbuild import request
from kbuild.core.model import Target


def test_a_usual_request_is_let_through() -> None:
    request.check_target(Target("bookworm", "lab", "debug", version="6.1.192-2"))
    request.check_target(Target("all", "cloud-amd64"), every=True)
    request.check_choice("accel", "tcg")
    request.check_choice("accel", None)
    request.check_choice("command", "anything")
