"""Tell somebody of a cause: by a command that reads JSON, and by a webhook that takes it."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3

from kbuild.core.errors import InfrastructureError, KbuildError
from kbuild.core.model import Settings
from kbuild.core.run import run
from kbuild.fetch import access
from kbuild.fetch.access import Access
from kbuild.watch.state import Cause

logger = logging.getLogger(__name__)

FORMAT = 1
_COMMAND_S = 60.0
_CONNECT_S, _READ_S = 10.0, 30.0

Tell = Callable[[dict[str, Any]], None]


def channels(settings: Settings) -> dict[str, Tell]:
    """Return the configured ways to tell somebody; each raises InfrastructureError."""
    policy, found = settings.policy, dict[str, Tell]()
    if policy.notify_command:
        found["command"] = lambda message: _command(policy.notify_command, message)
    if policy.webhook:
        found["webhook"] = lambda message: _webhook(policy.webhook, access.of(), message)
    return found


def message(cause: Cause, archive: Path, url: str) -> dict[str, Any]:
    """Return what a channel is given; docs/reference/watch.md describes it."""
    over = bool(cause.over)
    return {
        "format": FORMAT,
        "event": "over" if over else "began",
        # The field that chat services show.
        "text": f"{'over: ' if over else ''}{cause.subject}: {cause.what}",
        "subject": cause.subject,
        "what": cause.what,
        "since": cause.since,
        "over": cause.over or None,
        "error": dataclasses.asdict(cause.error) if cause.error else None,
        "archive": str(archive),
        "url": url or None,
    }


def tell(
    causes: tuple[Cause, ...], ways: Mapping[str, Tell], archive: Path, url: str
) -> tuple[Cause, ...]:
    """Tell each channel of each cause that it does not know, and return what is known after that.

    A failure is recorded in the cause, and stops nothing.  Ended causes that all know are dropped.
    """
    after = []
    for cause in causes:
        told, alarmed, untold = set(cause.told) & ways.keys(), set(cause.alarmed), {}
        concerned = alarmed & ways.keys() if cause.over else ways.keys()
        for name in sorted(concerned - told):
            try:
                ways[name](message(cause, archive, url))
                told.add(name)
                alarmed = alarmed - {name} if cause.over else alarmed | {name}
            except Exception as error:
                # The output of a program may hold a password, and the status page is public.
                untold[name] = (
                    error.what if isinstance(error, KbuildError) else type(error).__name__
                )
                logger.warning("%s was not told of %s: %s", name, cause.subject, untold[name])
        if not cause.over or untold:
            known = [tuple(sorted(names)) for names in (told, alarmed)]
            after.append(dataclasses.replace(cause, told=known[0], alarmed=known[1], untold=untold))
    return tuple(after)


def _command(command: tuple[str, ...], content: dict[str, Any]) -> None:
    data = f"{json.dumps(content, indent=2)}\n".encode()
    run(command, data=data, timeout_s=_COMMAND_S, error=InfrastructureError, secret=True)


def _webhook(url: str, reach: Access, content: dict[str, Any]) -> None:
    """Send one POST, which follows no redirect; neither URL nor answer gets into an error."""
    # The path of a webhook is often its password.
    host = urlsplit(url).hostname
    try:
        proxy = reach.proxy(url)
        with requests.Session() as session:
            session.trust_env = False
            answer = session.post(
                url,
                json=content,
                headers={"User-Agent": "cplayground-kernel"},
                timeout=(_CONNECT_S, _READ_S),
                verify=reach.certificates,
                proxies={"http": proxy, "https": proxy},
                allow_redirects=False,
                stream=True,
            )
            status = answer.status_code
            answer.close()
    except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
        why = type(error).__name__
        raise InfrastructureError(f"the webhook at {host} cannot be reached: {why}") from None
    if not 200 <= status < 300:
        raise InfrastructureError(f"the webhook at {host} answered with status {status}")
