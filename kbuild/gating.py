"""The ``gate`` command: judge the packages of a target, or a release of the archive again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from kbuild.answer import Answer
from kbuild.archive import operations
from kbuild.archive.release import Release, View
from kbuild.core import fs, progress
from kbuild.core.errors import UserError
from kbuild.core.model import Settings, Target
from kbuild.gate import candidate, judging, report
from kbuild.gate.report import Report


def run(
    settings: Settings, target: Target, *, release: str | None, k: str | None, accel: str | None
) -> Answer:
    """Run the gate's cases, and answer with their verdicts, also if the release is refused.

    Without ``release``, an ID of the archive, the target's last packages are judged.  With it, a
    complete verdict that passed replaces the one in the archive.  A dry run only says which cases
    would run.
    """
    wanted = judging.choose(k)
    if settings.dry:
        names = [name for one in wanted for name in one.names]
        return Answer(data={"cases": names}, text="\n".join(names))
    chosen = _known(settings, release) if release else candidate.last(settings, target)
    with judged(settings, chosen, k=k, accel=accel) as (made, path):
        recorded = bool(release) and made.passed
        if recorded:
            operations.judge_again(settings, made.id, path)
    verdict = "passed" if made.passed else "refused" if made.failed else "incomplete"
    summary = f"{verdict}: {made.id} in {progress.duration(made.seconds)}"
    if verdict == "incomplete":
        summary += "; not every case ran, so this is no evidence for a release"
    if recorded:
        summary += "; the archive has the new verdict"
    return Answer(
        data={"gate": report.to_json(made), "path": path, "recorded": recorded},
        text=report.render(made),
        summary=summary,
        error=report.error(made),
    )


@contextlib.contextmanager
def judged(
    settings: Settings, release: Release, *, k: str | None = None, accel: str | None = None
) -> Iterator[tuple[Report, Path]]:
    """Judge a release in a view of the archive, and yield the report and the path of gate.json.

    No other run changes gate.json before the end of the block.  Raises what
    :func:`operations.preview` and :func:`judging.run` raise.
    """
    path = judging.home(settings, release) / report.FILE
    with view(settings, release) as made:
        # An earlier verdict must not outlive a round that is interrupted.
        path.unlink(missing_ok=True)
        found = judging.run(settings, made, k=k, accel=accel)
        report.write(path, found)
        yield found, path


@contextlib.contextmanager
def view(settings: Settings, release: Release) -> Iterator[View]:
    """Yield the archive as servers will see it with a release, and remove it at the end.

    Raises what :func:`operations.preview` raises.
    """
    place = judging.home(settings, release) / "view"
    # Another run would remove the view while its packages are judged.
    with fs.lock(place.with_name(".view.lock")):
        fs.remove_tree(place)
        try:
            yield operations.preview(settings, release, place)
        finally:
            fs.remove_tree(place)


def _known(settings: Settings, id: str) -> Release:
    """Return a release of the archive; raises UserError if there is none of that id."""
    for record in operations.releases(settings):
        if record.id == id:
            return record.release(settings.archive)
    raise UserError(
        f"the archive has no release {id}",
        expected="an ID of './inv releases'",
        found=str(settings.archive),
    )
