"""Read the policy of ``watch`` from the configuration; each key is checked by name."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from kbuild.archive.states import PERCENTS
from kbuild.core import suites, variants
from kbuild.core.errors import UserError
from kbuild.core.model import Policy
from kbuild.options import CORRECT


def of(found: Mapping[str, object], commands: Mapping[str, tuple[str, ...]]) -> Policy:
    """Return the policy in the configuration's values; ``commands`` has the keys with words.

    Raises UserError for a value that makes no sense.
    """
    return Policy(
        targets=tuple(map(_target, _texts(found["watch_targets"]))),
        promote=_steps(_texts(found["watch_promote"])),
        health_command=commands["watch_health_command"],
        notify_command=commands["watch_notify_command"],
        webhook=_webhook(str(found["watch_webhook"] or "")),
        free_gb=int(str(found["watch_free_gb"])),
        unused_days=int(str(found["watch_unused_days"])),
    )


def _texts(value: object) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, tuple) else ()


def _target(text: str) -> tuple[str, str, str]:
    suite, flavour, variant = (*text.split("/"), "release")[:3] if "/" in text else (text, "", "")
    for key, name, known in (
        ("suite", suite, [*suites.SUITES]),
        ("flavour", flavour, [*suites.DEBIAN_FLAVOURS, *suites.OWN_FLAVOURS]),
        ("variant", variant, [*variants.VARIANTS]),
    ):
        if name not in known or text.count("/") > 2:
            raise UserError(
                f"watch_targets has {text}",
                expected=f"SUITE/FLAVOUR or SUITE/FLAVOUR/VARIANT, {key} one of {', '.join(known)}",
                found=name or "nothing",
                hint=CORRECT,
            )
    return suite, flavour, variant


def _steps(texts: tuple[str, ...]) -> tuple[tuple[int, int], ...]:
    steps = []
    for text in texts:
        percent, mark, hours = text.partition(":")
        if not (mark and percent.isdecimal() and hours.isdecimal()):
            raise _bad_steps(texts)
        steps.append((int(percent), int(hours)))
    percents = [percent for percent, _ in steps]
    if percents != sorted(set(percents)) or not set(percents) <= set(PERCENTS):
        raise _bad_steps(texts)
    return tuple(steps)


def _bad_steps(texts: tuple[str, ...]) -> UserError:
    return UserError(
        "watch_promote makes no sense",
        expected=f"PERCENT:HOURS, each percentage once and rising, of {PERCENTS}: 10:24 50:24",
        found=" ".join(texts),
        hint=CORRECT,
    )


def _webhook(url: str) -> str:
    try:
        parts = urlsplit(url)
        good = not url or (parts.scheme in ("http", "https") and bool(parts.hostname))
    except ValueError:
        good = False
    if not good:
        # Its path may be a secret.
        raise UserError("watch_webhook is not an http or https URL", hint=CORRECT)
    return url
