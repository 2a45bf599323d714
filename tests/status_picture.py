"""Draw the picture of the status page in docs/howto: python -m tests.status_picture."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from kbuild.watch import page, state
from kbuild.watch.state import Answer, Cause, Told
from tests.browser import chromium
from tests.unit import statuses

PICTURE = Path(__file__).resolve().parents[1] / "docs/howto/status-page.png"
_WIDTH, _HEIGHT = 1180, 1270
_LOG = """\
patching file fs/file.c
Hunk #1 succeeded at 1021 (offset 8 lines).
Hunk #2 FAILED at 1188.
1 out of 2 hunks FAILED -- saving rejects to file fs/file.c.rej
Patch export-symbols.patch does not apply (enforce with -f)
"""


def main() -> None:
    """Write the picture: one kernel is blocked, the others go on."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        log = root / "patch.log"
        log.write_text(_LOG)
        whole = statuses.failed(log)
        attempt = whole.attempts[0]
        assert attempt.error is not None
        error = replace(
            attempt.error,
            found="fs/file.c: hunk 2 of 2 refused",
            log="build/logs/patch.log",
            do="refresh the patch: docs/howto/add-a-patch.md",
        )
        shown = statuses.status(
            replace(
                statuses.behind(),
                cves=statuses.behind().cves[:14],
                applies=Answer(Told.NO, "hunk 2 of fs/file.c"),
            ),
            replace(statuses.working(log).targets[1], cves=statuses.behind().cves[:14]),
            statuses.working(log).targets[2],
            attempts=(replace(attempt, error=replace(error, log=str(log))),),
            causes=(Cause(attempt.key, error.what, attempt.ended, error=None),),
        )
        page.write(shown, root)
        path = root / state.HOME / page.PAGE
        # The place of the log is that of a scratch directory.
        path.write_text(path.read_text().replace(str(log), str(error.log)))
        with chromium(root) as browser:
            tab = browser.tab()
            tab.show(path)
            tab.look(width=_WIDTH, height=_HEIGHT)
            tab.picture(PICTURE, height=_HEIGHT)


if __name__ == "__main__":
    main()
