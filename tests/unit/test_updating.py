"""``check-updates``: a target against a small signed archive, and the answer about it."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from pathlib import Path

import pytest

from kbuild import updating
from kbuild.archive.release import Change, Record, State
from kbuild.core.errors import UserError
from kbuild.core.model import Policy, Settings, Target
from kbuild.watch import asking
from kbuild.watch.state import Against, Failure, Ours, Told
from tests.unit import toy
from tests.unit.command_line import Here, here
from tests.unit.signed_archive import Waits
from tests.unit.test_docs import first_column
from tests.unit.test_json import COMMON, asked
from tests.unit.test_report import Reported, distro, reported

__all__ = ["distro", "here", "reported"]

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
TARGET = Target("bookworm", "cloud-amd64")


def record(
    base: str, state: State = State.PROMOTED, percent: int = 100, target: Target = TARGET
) -> Record:
    when = "2026-11-01T00:00:00+00:00"
    return Record(
        suite=target.suite,
        flavour=target.flavour,
        variant=target.variant,
        kernel=f"{base}-cplayground",
        version=f"{base}+cplayground1",
        packages=(),
        state=state,
        percent=percent,
        history=(Change(state.value, when, "", state, percent),),
    )


def ask(
    reported: Reported, *records: Record, target: Target = TARGET, with_source: bool = False
) -> Against:
    network = Waits(attempts=1).network
    return asking.ask(
        reported.settings, target, records, NOW, with_source=with_source, network=network
    )


def debs(reported: Reported) -> list[str]:
    return [Path(one.path).name.partition("_")[0] for one in reported.server.asked(".deb")]


def test_a_target_that_is_behind_has_its_lag_and_its_cves(reported: Reported) -> None:
    reported.publish()
    found = ask(reported, record("6.1.187-1"))
    assert found.error is None
    assert (found.newest, found.abi) == ("6.1.192-2", "6.1.0-56")
    assert (found.due, found.behind) == (True, True)
    assert found.uploaded == "2026-11-16T10:17:40+00:00"
    assert found.missed == ("6.1.192-2", "6.1.192-1")
    # It is the date of the first version that servers lack, not of the newest.
    assert found.missed_since == "2026-11-15T10:17:40+00:00"
    since = datetime.fromisoformat(found.missed_since)
    assert found.lag_s == (NOW - since).total_seconds()
    assert found.cves == ("CVE-2026-89633", "CVE-2026-89634", "CVE-2026-99228")


def test_only_a_small_package_is_fetched_and_the_rest_is_unknown(reported: Reported) -> None:
    reported.publish()
    found = ask(reported)
    assert debs(reported) == [f"linux-headers-{toy.RELEASE}"]
    assert found.applies.told is found.fast.told is Told.UNKNOWN
    assert "not in the cache" in found.applies.why


def test_with_the_source_patch_and_fast_path_are_known(reported: Reported) -> None:
    reported.publish()
    found = ask(reported, with_source=True)
    assert (found.applies.told, found.fast.told) == (Told.YES, Told.YES)
    # From now on the cache has it.
    assert ask(reported).applies.told is Told.YES


def test_a_patch_that_does_not_apply_is_told_with_its_hunk(reported: Reported) -> None:
    patch = reported.settings.project / "patches/5.11/export.patch"
    patch.write_text(patch.read_text().replace("close_files(files)", "close_file(files)"))
    reported.publish()
    found = ask(reported, with_source=True)
    assert found.applies.told is Told.NO
    assert "export.patch: fs/file.c:" in found.applies.why


def test_a_series_that_changes_a_type_ends_the_fast_path(reported: Reported) -> None:
    patch = reported.settings.project / "patches/5.11/export.patch"
    patch.write_text(
        patch.read_text()
        + "--- a/include/linux/fdtable.h\n+++ b/include/linux/fdtable.h\n@@ -1,2 +1,3 @@\n"
        " struct files_struct;\n void put_files_struct(struct files_struct *fs);\n"
        "+struct changed { int a; };\n"
    )
    reported.publish()
    found = ask(reported, with_source=True)
    assert found.fast.told is Told.NO
    assert "struct changed" in found.fast.why


def test_our_own_flavour_has_no_fast_path(reported: Reported) -> None:
    reported.publish()
    found = ask(reported, target=Target("bookworm", "lab"))
    assert found.fast.told is Told.NO
    assert "lab" in found.fast.why


def test_without_a_series_the_patch_does_not_apply(reported: Reported) -> None:
    (reported.settings.project / "patches/5.11/range").write_text(">=7\n")
    reported.publish()
    assert ask(reported, with_source=True).applies.told is Told.NO


def test_a_target_that_is_current_has_no_lag(reported: Reported) -> None:
    reported.publish()
    found = ask(reported, record("6.1.192-2"))
    assert (found.due, found.behind, found.lag_s) == (False, False, 0.0)
    assert (found.missed, found.cves) == ((), ())
    assert found.uploaded


def test_a_staged_version_is_not_due_but_servers_still_lack_it(reported: Reported) -> None:
    reported.publish()
    found = ask(reported, record("6.1.187-1"), record("6.1.192-2", State.STAGED, 0))
    assert (found.due, found.behind) == (False, True)
    assert found.staged is not None
    assert found.staged.base == "6.1.192-2"


def test_a_mirror_that_is_behind_us_brings_no_update(reported: Reported) -> None:
    reported.publish()
    found = ask(reported, record("6.1.200-1"))
    assert (found.due, found.behind, found.lag_s) == (False, False, 0.0)


@pytest.mark.parametrize(
    "other",
    [
        Target("trixie", "cloud-amd64"),
        Target("bookworm", "amd64"),
        Target("bookworm", "cloud-amd64", "kasan"),
    ],
)
def test_releases_of_other_targets_do_not_count(other: Target) -> None:
    assert asking.ours(TARGET, [record("6.1.192-2", target=other)]) == (None, None)


def test_an_older_release_in_staging_is_not_shown() -> None:
    promoted, staged = asking.ours(
        TARGET, [record("6.1.9-1", State.STAGED, 0), record("6.1.10-1", State.PROMOTED, 10)]
    )
    assert promoted is not None
    assert (promoted.base, promoted.percent, staged) == ("6.1.10-1", 10, None)


def test_a_mirror_that_does_not_answer_is_an_error_in_the_result(reported: Reported) -> None:
    found = ask(reported, record("6.1.187-1"))
    assert found.error is not None
    assert found.error.status == 69
    assert found.promoted is not None
    assert not found.due


def test_a_changelog_that_is_not_there_leaves_the_rest_known(reported: Reported) -> None:
    reported.publish()
    for path in reported.archive.root.rglob("linux-headers-*.deb"):
        path.unlink()
    found = ask(reported, record("6.1.187-1"))
    assert (found.newest, found.behind) == ("6.1.192-2", True)
    assert (found.changelog.told, found.lag_s) == (Told.UNKNOWN, None)
    assert "no mirror has it" in found.changelog.why


# The answer.


def settings(*targets: tuple[str, str, str]) -> Settings:
    here = Path("/nowhere")
    return Settings(project=here, build=here, cache=here, policy=Policy(targets=targets))


def test_the_policy_chooses_the_targets_and_options_choose_others() -> None:
    known = settings(("trixie", "amd64", "release"), ("bookworm", "lab", "kasan"))
    assert [(one.suite, one.name) for one in updating.targets(known, TARGET)] == [
        ("trixie", "amd64"),
        ("bookworm", "lab-kasan"),
    ]
    assert updating.targets(settings(), TARGET) == (TARGET,)
    chosen = updating.targets(known, TARGET, suite="bullseye")
    assert [(one.suite, one.name) for one in chosen] == [
        ("bullseye", "amd64"),
        ("bullseye", "lab"),
    ]
    assert len(updating.targets(settings(), TARGET, suite="all", flavour="all")) == 8


def test_a_pinned_version_is_refused() -> None:
    with pytest.raises(UserError, match=r"6\.1\.9-1"):
        updating.targets(settings(), dataclasses.replace(TARGET, version="6.1.9-1"))


def against(*, newest: str = "6.1.192-2", error: Failure | None = None) -> Against:
    promoted = Ours("id", "6.1.192-2", "kernel", "2026-11-30T00:00:00+00:00", 100)
    return Against(
        "bookworm", "lab", "release", "now", "" if error else newest, promoted=promoted, error=error
    )


FAILED = against(error=Failure("infrastructure", "no answer", 69))


@pytest.mark.parametrize(
    ("found", "status", "summary"),
    [
        (against(), 0, "no update"),
        (against(newest="6.1.193-1"), 10, "an update for bookworm-lab"),
        (FAILED, 69, "not known for bookworm-lab"),
    ],
)
def test_the_status_tells_of_an_update(
    found: Against, status: int, summary: str, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "ask", lambda *_, **__: found)
    code, document, _ = asked(here, "check-updates")
    assert (code, document["status"], document["summary"]) == (status, status, summary)
    assert document["error"] is None
    assert sorted(set(document) - COMMON) == sorted(first_column("json.md", "check-updates"))
    (target,) = document["targets"]
    named = [one for cell in first_column("watch.md", "The comparison") for one in cell.split(", ")]
    assert sorted(target) == sorted(named)
    assert target["behind"] is (status == 10)


def test_the_text_says_what_servers_lack() -> None:
    text = updating.render(
        [
            dataclasses.replace(
                against(newest="6.1.193-1"),
                missed=("6.1.193-1",),
                missed_since="2026-11-20T00:00:00+00:00",
                lag_s=90_000.0,
                cves=("CVE-2026-1111",),
            ),
            FAILED,
        ]
    )
    for words in ("1 d 1 h", "servers lack 6.1.193-1 since 2026-11-20", "no answer", "unknown"):
        assert words in text
