"""The ``gate`` command: judge the packages of a target, or a release of the archive again."""

from __future__ import annotations

from pathlib import Path

from kbuild.answer import Answer
from kbuild.archive import operations
from kbuild.archive.release import Release
from kbuild.core import fs, progress
from kbuild.core.errors import UserError
from kbuild.core.model import Settings, Target
from kbuild.gate import candidate, judging, report
from kbuild.gate.report import Report


def run(
    settings: Settings, target: Target, *, release: str | None, k: str | None, accel: str | None
) -> Answer:
    """Run the gate's cases, and answer with their verdicts, also if the release is refused.

    Without ``release``, an ID of the archive, the target's last packages are judged.  A dry run
    only says which cases would run.
    """
    wanted = judging.choose(k)
    if settings.dry:
        names = [name for one in wanted for name in one.names]
        return Answer(data={"cases": names}, text="\n".join(names))
    chosen = _known(settings, release) if release else candidate.last(settings, target)
    made, path = judge(settings, chosen, k=k, accel=accel)
    verdict = "passed" if made.passed else "refused" if made.failed else "incomplete"
    summary = f"{verdict}: {made.id} in {progress.duration(made.seconds)}"
    if verdict == "incomplete":
        summary += "; not every case ran, so this is no evidence for a release"
    return Answer(
        data={"gate": report.to_json(made), "path": path},
        text=report.render(made),
        summary=summary,
        error=report.error(made),
    )


def judge(
    settings: Settings, release: Release, *, k: str | None = None, accel: str | None = None
) -> tuple[Report, Path]:
    """Judge a release in a view of the archive, and return the report and the path of gate.json.

    Raises what :func:`operations.preview` and :func:`judging.run` raise.
    """
    home = judging.home(settings, release)
    place, path = home / "view", home / report.FILE
    # An earlier verdict must not outlive a round that is interrupted.
    path.unlink(missing_ok=True)
    fs.remove_tree(place)
    try:
        made = judging.run(settings, operations.preview(settings, release, place), k=k, accel=accel)
    finally:
        fs.remove_tree(place)
    report.write(path, made)
    return made, path


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
