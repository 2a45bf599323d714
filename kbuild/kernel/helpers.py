"""Get help for compiling from other machines: a remote compiler cache, and icecream's workers.

Both only save time.  The result does not depend on them, so no manifest mentions them.  If a
server does not answer, the build logs a warning and continues without it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from kbuild.core import fs
from kbuild.core.model import Root, Settings
from kbuild.core.sandbox import Bind
from kbuild.kernel.help import Help
from kbuild.kernel.icecream import icecream_help, parse_scheduler
from kbuild.kernel.remote_cache import (
    CONFIG,
    STATISTICS,
    cache_help,
    describe,
    parse_cache,
    read_statistics,
)

logger = logging.getLogger(__name__)

# ccache's logs: for objects, and for the symbol versions that in_root/symbol-versions makes.
OBJECTS_LOG, VERSIONS_LOG = "ccache.log", "symbol-versions.log"


def check(settings: Settings) -> None:
    """Raise UserError if an address in the settings is malformed; no server is asked."""
    if settings.remote_cache:
        parse_cache(settings.remote_cache)
    if settings.scheduler:
        parse_scheduler(settings.scheduler)


@contextlib.contextmanager
def ready(settings: Settings, root: Root, home: Path) -> Iterator[Help]:
    """Yield the available part of the help that ``settings`` ask for, for one build.

    ``home`` is the build's directory; ccache's statistics of the build are kept below it.
    Raises UserError for a malformed address.
    """
    place = home / "statistics"
    place.mkdir(parents=True, exist_ok=True)
    for left in (OBJECTS_LOG, VERSIONS_LOG, CONFIG):
        (place / left).unlink(missing_ok=True)
    counted = Help(
        {"CCACHE_STATSLOG": f"{STATISTICS}/{OBJECTS_LOG}"},
        (Bind(place, STATISTICS, writable=True),),
    )
    check(settings)
    server = parse_cache(settings.remote_cache) if settings.remote_cache else None
    parts = [counted]
    with contextlib.ExitStack() as stack:
        if settings.scheduler:
            workers = stack.enter_context(icecream_help(settings, root, home))
            parts += [workers] if workers else []
        # Do not leave the server's password in build/.
        stack.callback((place / CONFIG).unlink, missing_ok=True)
        if server and (cache := cache_help(root, server, place)):
            parts.append(cache)
        yield together(parts)
    logs = {"objects": OBJECTS_LOG, "symbol versions of files": VERSIONS_LOG}
    found = {what: read_statistics(place / log) for what, log in logs.items()}
    kept = {
        what: {"counters": dict(one.counters), "missed": list(one.missed)}
        for what, one in found.items()
        if one is not None
    }
    if kept:
        fs.write_json(place / "ccache.json", kept)
    for what, one in found.items():
        if one is not None:
            logger.info("%s", describe(one, what))


def together(parts: list[Help]) -> Help:
    """Merge several helps into one."""
    env: dict[str, str] = {}
    for one in parts:
        env |= one.env
    return Help(
        env=env,
        binds=tuple(dict.fromkeys(bind for one in parts for bind in one.binds)),
        network=any(one.network for one in parts),
    )
