"""The policy of ``watch``, from the values of the configuration."""

from __future__ import annotations

from typing import Any

import pytest

from kbuild import policy
from kbuild.core.errors import UserError
from kbuild.core.model import Policy

NOTHING: dict[str, Any] = {
    "watch_targets": (),
    "watch_promote": (),
    "watch_webhook": None,
    "watch_free_gb": 20,
    "watch_unused_days": 30,
}
COMMANDS: dict[str, tuple[str, ...]] = {"watch_health_command": (), "watch_notify_command": ()}


def of(**found: object) -> Policy:
    return policy.of(NOTHING | found, COMMANDS)


def test_nothing_is_promoted_or_told_by_default() -> None:
    assert of() == Policy()


def test_targets_have_a_suite_a_flavour_and_perhaps_a_variant() -> None:
    found = of(watch_targets=("bookworm/cloud-amd64", "trixie/lab/kasan"))
    assert found.targets == (
        ("bookworm", "cloud-amd64", "release"),
        ("trixie", "lab", "kasan"),
    )


@pytest.mark.parametrize(
    "text",
    [
        *("bookworm", "bookworm/", "/lab", "sid/lab", "bookworm/huge", "bookworm/lab/fast"),
        *("bookworm/lab/release/x", "bookworm lab", "/"),
    ],
)
def test_a_target_that_does_not_exist_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="watch_targets"):
        of(watch_targets=(text,))


def test_steps_have_a_percentage_and_hours() -> None:
    assert of(watch_promote=("10:24", "100:0")).promote == ((10, 24), (100, 0))


@pytest.mark.parametrize(
    "steps",
    [
        ("10",),
        ("10:",),
        (":24",),
        ("10:-1",),
        ("10:1.5",),
        ("11:24",),
        ("50:1", "10:1"),
        ("10:1", "10:2"),
        ("all:1",),
    ],
)
def test_steps_that_make_no_sense_are_refused(steps: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="watch_promote"):
        of(watch_promote=steps)


@pytest.mark.parametrize("url", ["ftp://h.example/", "h.example/SECRET", "https://", "http://[x"])
def test_a_webhook_that_is_no_url_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(UserError, match="watch_webhook") as refused:
        of(watch_webhook=url)
    assert "SECRET" not in str(refused.value)


def test_what_may_hold_a_password_is_not_shown() -> None:
    found = policy.of(
        NOTHING | {"watch_webhook": "https://h.example/SECRET"},
        dict.fromkeys(COMMANDS, ("curl", "SECRET")),
    )
    assert "SECRET" not in repr(found)
