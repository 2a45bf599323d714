"""The archive: a release's way to the servers and back, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from email.utils import format_datetime, parsedate_to_datetime
from pathlib import Path

import pytest

from kbuild.archive import evidence, operations, records, snapshots, verify
from kbuild.archive.release import Record, Release, State
from kbuild.archive.required import SIGNATURE
from kbuild.core import fs
from kbuild.core.errors import (
    EvidenceError,
    InfrastructureError,
    KbuildError,
    PoolError,
    SigningError,
    TrustError,
    UserError,
)
from kbuild.core.model import Package, Settings
from kbuild.ship import indexes, keyring_package, mok, signing
from tests.unit import releases, secure_boot
from tests.unit.releases import release


@pytest.fixture
def given(tmp_path: Path) -> Settings:
    return releases.settings(tmp_path)


def stage(given: Settings, one: Release, **other: object) -> Record:
    verdict = releases.verdict(one, **other)
    return operations.stage(given, one, releases.files(given.build, one, verdict))


def promoted(given: Settings, *revisions: int, percent: int = 100) -> list[Release]:
    """Stage and promote releases in turn."""
    made = [release(one) for one in revisions]
    for one in made:
        stage(given, one)
        operations.promote(given, one.id, percent)
    return made


def shown(given: Settings, dist: str) -> dict[str, set[str]]:
    """Return the versions of each package in an index, with the percentage if it is phased."""
    found: dict[str, set[str]] = {}
    index = given.archive / "dists" / dist / snapshots.INDEX
    for stanza in index.read_text().strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in stanza.splitlines() if ": " in line)
        percent = fields.get("Phased-Update-Percentage")
        version = fields["Version"] + (f" {percent} %" if percent else "")
        found.setdefault(fields["Package"], set()).add(version)
    return found


def images(given: Settings, dist: str) -> set[str]:
    """Return the versions of the kernel's metapackage in an index, without what all share."""
    versions = shown(given, dist).get("linux-image-cplayground-cloud-amd64", set())
    return {version.removeprefix("6.1.192-3+cplayground") for version in versions}


def states(given: Settings) -> dict[str, str]:
    found = {one.id: operations.describe(one) for one in operations.releases(given)}
    return {id.partition("+cplayground")[2]: state for id, state in found.items()}


def content(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): str(path.readlink())
        if path.is_symlink()
        else fs.sha256_file(path)
        for path in sorted(root.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def refused(given: Settings, kind: type[KbuildError], words: str, action: object) -> KbuildError:
    """Check that an action is refused, and that nothing in the archive has changed."""
    before = content(given.archive)
    with pytest.raises(kind, match=words) as caught:
        action()  # type: ignore[operator]
    assert content(given.archive) == before
    return caught.value


# The way forward.


def test_a_release_goes_to_staging_then_to_some_and_to_all_servers(given: Settings) -> None:
    one = release(1)
    assert stage(given, one).state is State.STAGED
    assert images(given, "bookworm-staging") == {"1"}
    assert images(given, "bookworm") == set()
    for percent, expected in ((10, "1 10 %"), (50, "1 50 %"), (100, "1")):
        record = operations.promote(given, one.id, percent)
        assert (record.state, record.percent) == (State.PROMOTED, percent)
        assert images(given, "bookworm") == {expected}
        assert images(given, "bookworm-staging") == {"1"}
    assert [change.event for change in record.history] == ["judged", "staged", *["promoted"] * 3]
    assert verify.check(given).findings == ()
    for path in (given.archive / "pool").rglob("*.deb"):
        assert path.stat().st_mode & 0o777 == 0o644


def test_three_versions_stay_installable_and_the_older_ones_go(given: Settings) -> None:
    for number in range(1, 4):
        promoted(given, number)
    assert images(given, "bookworm") == {"1", "2", "3"}
    promoted(given, 4)
    assert images(given, "bookworm") == {"2", "3", "4"}
    assert states(given) == {
        **dict.fromkeys("123", "superseded"),
        "4": "promoted to 100 %",
    }
    # Snapshots that still name the first one go with the next releases.
    for number in range(5, 8):
        promoted(given, number)
    name = "linux-image-cplayground-cloud-amd64_6.1.192-3+cplayground{}_amd64.deb"
    pool = {path.name for path in (given.archive / "pool").rglob("*.deb")}
    assert {name.format(number) for number in (5, 6, 7)} <= pool
    assert not {name.format(number) for number in (1, 2)} & pool
    assert len(operations.releases(given)) == 7
    assert verify.check(given).findings == ()


def test_doing_the_same_again_changes_nothing(given: Settings) -> None:
    one = release(1)
    stage(given, one)
    before = content(given.archive)
    stage(given, one)
    assert content(given.archive) == before
    operations.promote(given, one.id, 10)
    before = content(given.archive)
    operations.promote(given, one.id, 10)
    stage(given, one)
    assert content(given.archive) == before


def test_suites_and_flavours_do_not_disturb_each_other(given: Settings) -> None:
    promoted(given, 1)
    for one in (release(1, flavour="amd64"), release(1, suite="trixie", base="6.12.118-1")):
        stage(given, one)
        operations.promote(given, one.id, 100)
    assert images(given, "bookworm") == {"1"}
    assert "linux-image-cplayground-amd64" in shown(given, "bookworm")
    assert set(shown(given, "trixie")) & set(shown(given, "bookworm")) >= {"cplayground-dkms"}
    assert states(given)["1"] == "promoted to 100 %"
    assert verify.check(given).findings == ()


def test_packages_of_a_phased_release_have_the_kernels_source(given: Settings) -> None:
    promoted(given, 1)
    promoted(given, 2, percent=10)
    index = (given.archive / "dists/bookworm" / snapshots.INDEX).read_text()
    phased = [one for one in index.split("\n\n") if "Phased-Update-Percentage: 10" in one]
    assert len(phased) == 6
    source = "Source: linux-cplayground-cloud-amd64 (6.1.192-3+cplayground2)\n"
    assert all(source in one for one in phased)
    # The DKMS package is that of the first release.
    assert shown(given, "bookworm")["cplayground-dkms"] == {"0.2.0+deb12"}


def test_a_percentage_never_goes_down(given: Settings) -> None:
    one, *_ = promoted(given, 1, percent=50)
    for percent, words in ((10, "already promoted to 50 %"), (60, "promoted in steps")):
        refused(
            given,
            UserError,
            words,
            lambda percent=percent: operations.promote(given, one.id, percent),
        )


def test_a_release_below_what_every_server_has_is_not_promoted(given: Settings) -> None:
    old = release(1)
    stage(given, old)
    promoted(given, 2)
    assert images(given, "bookworm-staging") == {"2"}
    refused(
        given, UserError, "every server has a newer", lambda: operations.promote(given, old.id, 10)
    )


# The way back.


def test_a_withdrawn_release_goes_and_packages_above_it_lead_back(given: Settings) -> None:
    old, bad = [*promoted(given, 1), *promoted(given, 2, percent=10)]
    done = operations.rollback(given, bad.id, "it crashes")
    assert done.older is not None
    assert done.older.id == old.id
    assert images(given, "bookworm") == {"1", "2+rollback1"}
    assert images(given, "bookworm-staging") == {"1", "2+rollback1"}
    assert "linux-image-6.1.192-57-cplayground.2-cloud-amd64" not in shown(given, "bookworm")
    assert states(given) == {"1": "promoted to 100 %", "2": "withdrawn"}
    assert done.record.history[-1].reason == "it crashes"
    before = content(given.archive)
    operations.rollback(given, bad.id, "again")
    assert content(given.archive) == before
    assert verify.check(given).findings == ()
    # The next release makes them unnecessary.
    promoted(given, 3)
    assert images(given, "bookworm") == {"1", "3"}


def test_what_was_superseded_by_a_withdrawn_release_is_promoted_again(given: Settings) -> None:
    _, bad = promoted(given, 1, 2)
    assert states(given)["1"] == "superseded"
    operations.rollback(given, bad.id, "")
    assert states(given)["1"] == "promoted to 100 %"


def test_a_second_withdrawal_leads_further_back(given: Settings) -> None:
    _, second, third = promoted(given, 1, 2, 3)
    operations.rollback(given, third.id, "")
    assert images(given, "bookworm") == {"1", "2", "3+rollback1"}
    operations.rollback(given, second.id, "")
    # Servers may already have the first rollback.
    assert images(given, "bookworm") == {"1", "3+rollback2"}
    assert verify.check(given).findings == ()


def test_without_an_older_release_the_withdrawal_happens_and_says_so(given: Settings) -> None:
    (bad,) = promoted(given, 1)
    done = operations.rollback(given, bad.id, "")
    assert done.older is None
    assert "CANNOT" in done.notes[0]
    assert images(given, "bookworm") == set()
    assert verify.check(given).findings == ()


def test_with_a_newer_release_servers_go_forward(given: Settings) -> None:
    bad, _ = [*promoted(given, 1), *promoted(given, 2, percent=10)]
    done = operations.rollback(given, bad.id, "")
    assert done.older is None
    assert "promoted to 10 %: promote it further" in done.notes[0]
    assert images(given, "bookworm") == {"2 10 %"}


def test_a_release_that_was_only_staged_leads_back_in_staging_only(given: Settings) -> None:
    promoted(given, 1)
    bad = release(2)
    stage(given, bad)
    operations.rollback(given, bad.id, "")
    assert images(given, "bookworm") == {"1"}
    assert images(given, "bookworm-staging") == {"1", "2+rollback1"}


def test_a_withdrawal_of_what_was_only_staged_keeps_the_suites_way_back(given: Settings) -> None:
    _, bad = promoted(given, 1, 2)
    operations.rollback(given, bad.id, "")
    staged = release(3)
    stage(given, staged)
    operations.rollback(given, staged.id, "")
    # Servers may still have the second one.
    assert images(given, "bookworm") == {"1", "2+rollback1"}
    assert images(given, "bookworm-staging") == {"1", "3+rollback2"}
    assert verify.check(given).findings == ()


def test_a_release_whose_packages_are_gone_is_never_shown_again(given: Settings) -> None:
    made = [release(number, small=True) for number in range(1, 7)]
    for one in made:
        stage(given, one)
        for percent in (10, 50, 100) if one is not made[-1] else ():
            operations.promote(given, one.id, percent)
    operations.refresh(given)
    gone = [one.id for one in operations.releases(given) if one.pruned]
    assert gone == [made[1].id, made[0].id]
    assert not list((given.archive / "pool").rglob("*cplayground2_*"))
    # The second one would be the third newest again.
    operations.rollback(given, made[4].id, "")
    assert images(given, "bookworm") == {"3", "4", "5+rollback1"}
    assert verify.check(given).findings == ()


def test_a_staged_release_whose_packages_are_gone_waits_for_nothing(given: Settings) -> None:
    first, late = release(1, small=True), release(2, small=True)
    for one in (first, late):
        stage(given, one)
    operations.promote(given, first.id, 100)
    newer = release(3, small=True)
    stage(given, newer)
    for percent in (10, 50, 100):
        operations.promote(given, newer.id, percent)
    for number in (4, 5, 6):
        stage(given, release(number, small=True))
    operations.refresh(given)
    assert records.read(given.archive, late.id).pruned
    operations.rollback(given, newer.id, "")
    assert "2" not in images(given, "bookworm-staging")
    assert verify.check(given).findings == ()
    # A preview and the staging bring its packages.
    view = operations.preview(given, late, given.build / "view")
    seen = dataclasses.replace(given, archive=view.root)
    assert "2" in images(seen, view.staging)
    stage(given, late)
    assert "2" in images(given, "bookworm-staging")
    assert verify.check(given).findings == ()


def test_what_every_server_has_stays_below_releases_for_some(given: Settings) -> None:
    promoted(given, 1)
    for number in range(2, 8):
        promoted(given, number, percent=10)
    operations.refresh(given)
    assert images(given, "bookworm") == {"1", "5 10 %", "6 10 %", "7 10 %"}
    done = operations.rollback(given, release(7).id, "")
    assert done.older is not None
    assert done.older.id == release(1).id


def test_a_release_below_a_withdrawn_one_is_no_way_forward(given: Settings) -> None:
    late = release(2)
    stage(given, late)
    (bad,) = promoted(given, 3, percent=10)
    operations.rollback(given, bad.id, "")
    refused(
        given,
        UserError,
        "newer than .* and withdrawn",
        lambda: operations.promote(given, late.id, 10),
    )


def test_a_withdrawal_of_what_others_went_back_to_leads_them_on(given: Settings) -> None:
    (first,) = promoted(given, 1)
    some, bad = promoted(given, 2, 3, percent=10)
    assert operations.rollback(given, bad.id, "").record.leads_to == first.id
    assert images(given, "bookworm") == {"1", "2 10 %", "3+rollback1"}
    done = operations.rollback(given, first.id, "")
    assert done.record.leads_to == some.id
    assert images(given, "bookworm") == {"2 10 %", "3+rollback2"}
    assert verify.check(given).findings == ()


def test_a_withdrawal_that_failed_leaves_nothing_in_the_way(
    given: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, second, third = promoted(given, 1, 2, 3)

    def fail(*_: object) -> int:
        raise SigningError("no key")

    with monkeypatch.context() as patch:
        patch.setattr(snapshots, "write", fail)
        with pytest.raises(SigningError):
            operations.rollback(given, third.id, "")
    operations.rollback(given, second.id, "")
    # The same versions as in the first attempt now lead to another release.
    operations.rollback(given, third.id, "")
    assert images(given, "bookworm") == {"1", "3+rollback1"}
    assert verify.check(given).findings == ()


def test_the_version_of_a_withdrawn_release_is_used_up(given: Settings) -> None:
    (bad,) = promoted(given, 1)
    operations.rollback(given, bad.id, "")
    for action in (
        lambda: stage(given, bad),
        lambda: operations.promote(given, bad.id, 100),
        lambda: operations.preview(given, bad, given.build / "view"),
    ):
        assert "revision" in str(refused(given, UserError, "is withdrawn", action))


def test_the_name_of_a_withdrawn_kernel_is_used_up(given: Settings) -> None:
    """Servers keep it out of their boot menu; Debian may upload again under the same name."""
    (bad,) = promoted(given, 1)
    operations.rollback(given, bad.id, "")
    again, other = release(1, base="6.1.192-4"), release(2, base="6.1.192-4")
    assert again.kernel == bad.kernel
    for action in (
        lambda: stage(given, again),
        lambda: operations.preview(given, again, given.build / "view"),
    ):
        assert "revision" in str(refused(given, UserError, "of a withdrawn one", action))
    assert stage(given, other, older=[]).state is State.STAGED


def test_a_staged_release_with_the_name_of_a_withdrawn_one_is_not_promoted(given: Settings) -> None:
    (bad,) = promoted(given, 1)
    again = release(1, base="6.1.192-4")
    stage(given, again, older=[bad.id])
    operations.rollback(given, bad.id, "")
    action = lambda: operations.promote(given, again.id, 10)  # noqa: E731
    refused(given, UserError, "of a withdrawn one", action)


def test_a_name_that_was_withdrawn_later_does_not_stop_a_published_release(given: Settings) -> None:
    (one,) = promoted(given, 1)
    bad = release(1, base="6.1.192-4")
    stage(given, bad, older=[one.id])
    operations.rollback(given, bad.id, "")
    assert bad.kernel == one.kernel
    operations.preview(given, one, given.build / "view")
    assert stage(given, one).state is State.PROMOTED


def test_a_module_that_another_flavour_needs_stays(given: Settings) -> None:
    for flavour, module in (("cloud-amd64", "0.2.0"), ("amd64", "0.1.0")):
        for revision, version in ((1, module), (2, "0.3.0")):
            one = release(revision, flavour=flavour, module=version)
            stage(given, one)
            operations.promote(given, one.id, 100)
    cloud, amd64 = (release(2, flavour=one, module="0.3.0") for one in ("cloud-amd64", "amd64"))
    done = operations.rollback(given, cloud.id, "")
    assert "0.3.0+deb12" in shown(given, "bookworm")["cplayground-dkms"]
    assert not any("rollback" in one for one in shown(given, "bookworm")["cplayground-dkms"])
    assert "it stays; a release that changes the module needs a higher" in done.notes[1]
    # Nothing else needs it now.
    done = operations.rollback(given, amd64.id, "")
    assert "0.3.0+deb12+rollback1" in shown(given, "bookworm")["cplayground-dkms"]
    assert "it goes back too; a release that changes the module" in done.notes[1]
    assert verify.check(given).findings == ()


def test_a_shared_module_goes_back_twice_under_two_versions(given: Settings) -> None:
    for flavour, module in (("cloud-amd64", "0.2.0"), ("amd64", "0.1.0")):
        one = release(1, flavour=flavour, module=module)
        stage(given, one)
        operations.promote(given, one.id, 100)
    for number, flavour in enumerate(("cloud-amd64", "amd64"), start=1):
        bad = release(2, flavour=flavour, module="0.3.0")
        stage(given, bad)
        operations.promote(given, bad.id, 100)
        operations.rollback(given, bad.id, "")
        expected = f"0.3.0+deb12+rollback{number}"
        assert expected in shown(given, "bookworm")["cplayground-dkms"]
    assert verify.check(given).findings == ()


# A preview.


def test_a_preview_shows_what_servers_will_see_and_leaves_the_archive(given: Settings) -> None:
    promoted(given, 1)
    before = content(given.archive)
    view = operations.preview(given, release(2), given.build / "view")
    assert content(given.archive) == before
    seen = dataclasses.replace(given, archive=view.root)
    assert (images(seen, view.stable), images(seen, view.staging)) == ({"1"}, {"1", "2"})
    assert [one.version for one in view.promoted] == ["6.1.192-3+cplayground1"]
    for one in (*view.candidate.packages, *view.promoted[0].packages):
        assert fs.sha256_file(one.path) == one.sha256
        assert one.path.is_relative_to(view.root)
    assert view.keyring.is_file()
    stage(given, release(2))
    for name in (view.stable, view.staging):
        index = Path("dists", name, snapshots.INDEX)
        assert (given.archive / index).read_text() == (view.root / index).read_text()


def test_a_preview_needs_no_archive(given: Settings) -> None:
    view = operations.preview(given, release(1), given.build / "view")
    assert images(dataclasses.replace(given, archive=view.root), view.staging) == {"1"}
    assert view.promoted == ()
    assert not given.archive.exists()


# Evidence.


def cases(**other: object) -> list[dict[str, object]]:
    """Return the cases of a verdict; ``other`` are names and outcomes of some."""
    usual = releases.verdict(release(1))["cases"]
    return [one | {"outcome": other.get(str(one["name"]), one["outcome"])} for one in usual]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"id": "another"}, "the verdict is for another"),
        ({"passed": False}, "the gate did not pass"),
        ({"cases": []}, "the case install was not run"),
        ({"cases": cases(upgrade="failed")}, "the case upgrade: failed"),
        ({"cases": cases(remove="nothing older")}, "the case remove: nothing older"),
        ({"cases": [*cases(), cases()[0]]}, "the case install is there twice"),
        ({"packages": {}}, "was not judged"),
        (
            {"packages": releases.verdict(release(1, salt="x"))["packages"]},
            "was judged with sha256",
        ),
        (
            {"packages": releases.verdict(release(1))["packages"] | {"x.deb": "0" * 64}},
            "x.deb was judged, and is not in the release",
        ),
    ],
)
def test_a_verdict_that_is_not_for_this_release_keeps_it_out(
    given: Settings, other: dict[str, object], words: str
) -> None:
    with pytest.raises(EvidenceError) as caught:
        stage(given, release(1), **other)
    assert words in (caught.value.found or "")
    assert caught.value.exit_status == 40
    (record,) = operations.releases(given)
    assert (record.state, words in record.history[-1].reason) == (State.REFUSED, True)
    assert not (given.archive / "dists").exists()
    assert not (given.archive / "pool").exists()
    # The gate may judge the same packages again.
    assert stage(given, release(1)).state is State.STAGED


@pytest.mark.parametrize("text", [None, "", "{}", '{"format": 2}'])
def test_no_verdict_and_no_record(
    given: Settings, text: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, manifest = releases.files(given.build, release(1))
    # A verdict that lies about does not count.
    (given.build / "gate.json").write_bytes(gate.read_bytes())
    monkeypatch.chdir(given.build)
    if text is None:
        gate.unlink()
    else:
        gate.write_text(text)
    for files in ([gate, manifest], [manifest]):
        with pytest.raises(EvidenceError, match="no verdict of the gate"):
            operations.stage(given, release(1), files)
    assert not given.archive.exists()


def test_promotion_hashes_the_pool_and_the_verdict_again(given: Settings) -> None:
    one = release(1)
    record = stage(given, one)
    path = given.archive / record.packages[0].path
    gate = records.home(given.archive, one.id) / evidence.GATE
    for damaged, words in ((path, "was judged with sha256"), (gate, "has changed since")):
        whole = damaged.read_bytes()
        damaged.write_bytes(whole + b"\n")
        action = lambda: operations.promote(given, one.id, 10)  # noqa: E731
        error = refused(given, EvidenceError, "not promoted", action)
        assert words in (error.found or "")
        damaged.write_bytes(whole)
    path.rename(path.with_suffix(".away"))
    error = refused(given, EvidenceError, "not promoted", action)
    assert "is missing" in (error.found or "")


def test_cases_from_an_older_release_must_have_run_once_there_is_one(given: Settings) -> None:
    excused = cases(upgrade="nothing older", downgrade="nothing older", rollback="nothing older")
    first, second = release(1), release(2)
    for one in (first, second):
        stage(given, one, cases=excused)
    operations.promote(given, first.id, 10)
    action = lambda: operations.promote(given, second.id, 10)  # noqa: E731
    error = refused(given, EvidenceError, "not promoted", action)
    assert "the case upgrade did not start from the older release" in (error.found or "")
    # The gate judges it again.
    stage(given, second)
    assert operations.promote(given, second.id, 10).percent == 10


def test_the_gate_must_have_started_from_each_release_that_servers_may_have(
    given: Settings,
) -> None:
    first, second, third = release(1), release(2), release(3)
    promoted(given, 1)
    for one in (second, third):
        stage(given, one, older=[first.id])
    operations.promote(given, second.id, 100)
    action = lambda: operations.promote(given, third.id, 100)  # noqa: E731
    error = refused(given, EvidenceError, "not promoted", action)
    assert error.found == f"no case started from {second.id}, which servers may have"
    assert f"'./inv gate {third.id}'" in (error.hint or "")
    stage(given, third, older=[first.id, second.id])
    assert operations.promote(given, third.id, 100).percent == 100


def test_a_preview_has_the_older_releases_only(given: Settings) -> None:
    first, second, _ = promoted(given, 1, 2, 3)
    view = operations.preview(given, second, given.build / "view")
    assert [one.id for one in view.promoted] == [first.id]


def test_a_new_verdict_replaces_the_one_in_the_archive(given: Settings, tmp_path: Path) -> None:
    first, second = release(1), release(2)
    for one in (first, second):
        stage(given, one, older=[])
    operations.promote(given, first.id, 100)
    assert operations.complaints(given, first.id) == ()
    assert len(operations.complaints(given, second.id)) == 1
    verdict = tmp_path / evidence.GATE
    verdict.write_text(json.dumps(releases.verdict(second)))
    before = records.read(given.archive, second.id)
    after = operations.judge_again(given, second.id, verdict)
    assert (after.state, after.evidence.keys()) == (before.state, before.evidence.keys())
    assert operations.complaints(given, second.id) == ()
    assert operations.promote(given, second.id, 10).percent == 10
    assert verify.check(given).findings == ()


@pytest.mark.parametrize("text", [None, "changed"])
def test_a_new_verdict_does_not_hide_other_damage(
    given: Settings, tmp_path: Path, text: str | None
) -> None:
    one = release(1)
    stage(given, one)
    verdict = tmp_path / evidence.GATE
    verdict.write_text(json.dumps(releases.verdict(one, commit="1" * 40)))
    paper = records.home(given.archive, one.id) / "manifest.json"
    paper.unlink()
    if text is not None:
        paper.write_text(text)
    action = lambda: operations.judge_again(given, one.id, verdict)  # noqa: E731
    error = refused(given, EvidenceError, r"manifest\.json has changed", action)
    assert "backup" in (error.hint or "")


def test_a_new_verdict_that_does_not_pass_changes_nothing(given: Settings, tmp_path: Path) -> None:
    one = release(1)
    stage(given, one)
    verdict = tmp_path / evidence.GATE
    verdict.write_text(json.dumps(releases.verdict(one, passed=False)))
    action = lambda: operations.judge_again(given, one.id, verdict)  # noqa: E731
    refused(given, EvidenceError, "not staged", action)


# Bad input.


def test_other_bytes_of_a_package_are_refused(given: Settings) -> None:
    promoted(given, 1)
    other = release(1, salt="other")
    for action in (
        lambda: stage(given, other),
        lambda: operations.preview(given, other, given.build / "view"),
    ):
        error = refused(given, PoolError, "other bytes", action)
        assert error.exit_status == 43
        old, new = (one.packages[0].sha256 for one in (release(1), other))
        assert old in (error.expected or "")
        assert new in (error.found or "")
        assert "revision" in (error.hint or "")
        assert not (given.build / "view").exists()


def test_other_bytes_are_refused_even_when_the_first_are_gone(given: Settings) -> None:
    (bad,) = promoted(given, 1)
    operations.rollback(given, bad.id, "")
    for number in range(2, 6):
        promoted(given, number)
    name = "linux-image-6.1.192-57-cplayground-cloud-amd64"
    assert not list((given.archive / "pool").rglob(f"{name}_*"))
    other = dataclasses.replace(release(1, salt="other"), version="6.1.192-3+cplayground9")
    refused(given, PoolError, "other bytes", lambda: stage(given, other))


def test_a_package_that_changed_after_the_verdict_is_refused(
    given: Settings, tmp_path: Path
) -> None:
    one = release(1)
    copies = []
    for package in one.packages:
        path = tmp_path / package.path.name
        path.write_bytes(package.path.read_bytes())
        copies.append(dataclasses.replace(package, path=path))
    one = dataclasses.replace(one, packages=tuple(copies))
    # In a file of the package, which is still a whole one.
    before, found, after = copies[0].path.read_bytes().rpartition(copies[0].version.encode())
    copies[0].path.write_bytes(before + found.swapcase() + after)
    with pytest.raises(EvidenceError, match="not staged"):
        stage(given, one)


def test_without_a_key_nothing_is_published(given: Settings, tmp_path: Path) -> None:
    promoted(given, 1)
    keyless = dataclasses.replace(given, keys=tmp_path / "none")
    one = release(2)
    before = {name: value for name, value in content(given.archive).items() if "/" in name}
    with pytest.raises(SigningError) as caught:
        stage(keyless, one)
    assert caught.value.exit_status == 42
    after = content(given.archive)
    assert {name: after[name] for name in before} == before
    assert records.read(given.archive, one.id).state is State.GATED
    with pytest.raises(SigningError):
        operations.resign(keyless)
    assert stage(given, one).state is State.STAGED


def test_a_key_that_servers_do_not_know_changes_nothing(given: Settings) -> None:
    one, _ = promoted(given, 1, 2)
    other = dataclasses.replace(given, keys=releases.keys("other"))
    for action in (
        lambda: stage(other, release(3)),
        lambda: operations.promote(other, one.id, 100),
        lambda: operations.rollback(other, one.id, "it hangs"),
        lambda: operations.resign(other),
        lambda: operations.refresh(other),
        lambda: operations.preview(other, release(3), given.build / "view"),
    ):
        error = refused(given, SigningError, "servers do not know the key", action)
        assert "keys_dir" in (error.hint or "")
    assert not (given.build / "view").exists()
    assert verify.check(given).findings == ()


def test_an_address_that_servers_have_is_not_taken_away(given: Settings) -> None:
    own = dataclasses.replace(given, archive_url="http://kernels.example/")
    one, _ = promoted(own, 1, 2)
    for action in (
        lambda: stage(given, release(3)),
        lambda: operations.promote(given, one.id, 100),
        lambda: operations.rollback(given, one.id, "it hangs"),
        lambda: operations.resign(given),
        lambda: operations.refresh(given),
        lambda: operations.preview(given, release(3), given.build / "view"),
    ):
        error = refused(given, UserError, "archive_url is not set", action)
        assert "http://kernels.example/" in (error.expected or "")


def test_an_address_may_come_late_and_may_change(given: Settings) -> None:
    promoted(given, 1)
    for url in ("", "http://kernels.example/", "https://other.example/kernels"):
        own = dataclasses.replace(given, archive_url=url)
        operations.refresh(own)
        (version,) = shown(own, "bookworm")["cplayground-archive-keyring"]
        (path,) = own.archive.glob(f"pool/**/cplayground-archive-keyring_{version}_all.deb")
        packed = subprocess.run(
            ["dpkg-deb", "--fsys-tarfile", path], capture_output=True, check=True
        )
        assert (url or "http://archive.invalid/").encode() in packed.stdout
    assert verify.check(own).findings == ()


def enrolled(given: Settings, name: str) -> list[str]:
    """Return the digests of the certificates in the package with keys of a name in dists/."""
    (version,) = shown(given, name)["cplayground-archive-keyring"]
    (path,) = given.archive.glob(f"pool/**/cplayground-archive-keyring_{version}_all.deb")
    package = Package("cplayground-archive-keyring", version, "all", path, "")
    return [keyring_package.digest(one) for one in keyring_package.certificates(package)]


def test_a_certificate_that_servers_have_stays_until_it_is_withdrawn(
    given: Settings, tmp_path: Path
) -> None:
    own = secure_boot.with_key(given, tmp_path / "mok")
    _, one = promoted(own, 1, 2, percent=10)
    (certificate,) = mok.certificates(own)
    for action in (
        lambda: operations.promote(given, one.id, 100),
        lambda: operations.refresh(given),
        lambda: operations.resign(given),
        lambda: stage(given, release(3)),
        lambda: operations.rollback(given, one.id, "it hangs"),
    ):
        action()
        for name in ("bookworm", "bookworm-staging"):
            assert enrolled(given, name) == [certificate.digest]
    view = operations.preview(given, release(4), given.build / "view")
    package = Package("cplayground-archive-keyring", "", "all", view.keyring, "")
    assert keyring_package.certificates(package) == (certificate.der,)

    def withdraw(settings: Settings, digest: str) -> Callable[[], object]:
        return lambda: operations.resign(settings, withdrawn=digest)

    refused(given, UserError, "no such certificate", withdraw(given, "0" * 64))
    refused(given, UserError, "the configuration has", withdraw(own, certificate.digest))
    withdraw(given, certificate.digest)()
    operations.refresh(given)
    assert enrolled(given, "bookworm") == enrolled(given, "bookworm-staging") == []
    assert verify.check(given).findings == ()


def signed(given: Settings, one: Release) -> list[Path]:
    """Return the evidence of a release that is signed for Secure Boot."""
    files = releases.files(given.build, one)
    files.append(files[0].with_name(SIGNATURE))
    files[-1].write_bytes(b"a signature")
    return files


def test_an_unsigned_release_after_a_signed_one_is_refused(given: Settings) -> None:
    one, two, three = (release(number) for number in (1, 2, 3))
    operations.stage(given, one, signed(given, one))
    # Nobody has it yet, so this may be the first time that servers get one.
    stage(given, two)
    operations.promote(given, one.id, 10)
    error = refused(
        given, EvidenceError, "not promoted", lambda: operations.promote(given, two.id, 10)
    )
    assert one.id in str(error)
    assert "not signed for Secure Boot" in operations.complaints(given, two.id)[-1]
    with pytest.raises(EvidenceError, match="not staged") as caught:
        stage(given, three)
    assert "not signed for Secure Boot" in (caught.value.found or "")
    assert images(given, "bookworm-staging") == {"1", "2"}
    # The same version, signed, goes on.
    operations.stage(given, three, signed(given, three))
    assert operations.promote(given, three.id, 100).percent == 100
    assert verify.check(given).findings == ()


def test_signed_releases_of_another_kernel_or_that_are_withdrawn_do_not_count(
    given: Settings,
) -> None:
    other, one, two = release(1, flavour="amd64"), release(1), release(2)
    for made in (other, one):
        operations.stage(given, made, signed(given, made))
        operations.promote(given, made.id, 100)
    operations.rollback(given, one.id, "the servers have no Secure Boot")
    assert operations.served_signed(given, other.target) is not None
    assert operations.served_signed(given, one.target) is None
    stage(given, two)
    assert operations.promote(given, two.id, 100).percent == 100


def test_servers_follow_a_rotation_to_its_end(given: Settings, tmp_path: Path) -> None:
    """Each index is signed by a key of the keyring package that was published before it."""
    own = dataclasses.replace(given, keys=tmp_path / "keys")
    signing.make_key(own)
    promoted(own, 1)
    known, ring = signing.keyring(own), tmp_path / "servers.gpg"
    for step in (signing.rotate, signing.finish):
        step(own)
        operations.refresh(own)
        ring.write_bytes(known)
        for name in ("bookworm", "bookworm-staging"):
            assert signing.verify(ring, (own.archive / "dists" / name / "InRelease").read_bytes())
        known = signing.keyring(own)
    promoted(own, 2)
    assert verify.check(own).findings == ()


def test_a_key_that_was_ended_before_servers_knew_the_next_may_be_replaced(
    given: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A stolen key must not sign once more, and an expired one cannot."""
    own = dataclasses.replace(given, keys=tmp_path / "keys")
    signing.make_key(own)
    promoted(own, 1)
    signing.rotate(own)
    signing.finish(own)
    operations.resign(own)
    assert "by hand" in caplog.text
    assert verify.check(own).findings == ()


@pytest.mark.parametrize("name", ["archive.json", "record"])
def test_what_a_newer_version_wrote_is_left_alone(given: Settings, name: str) -> None:
    (one,) = promoted(given, 1)
    path = given.archive / name
    if name == "record":
        path = records.home(given.archive, one.id) / records.NAME
    raw = json.loads(path.read_text())
    path.write_text(json.dumps(raw | {"format": 2, "new": 1}))
    for action in (
        lambda: stage(given, release(2)),
        lambda: operations.promote(given, one.id, 100),
        lambda: operations.rollback(given, one.id, ""),
        lambda: operations.releases(given),
        lambda: operations.preview(given, release(2), given.build / f"view{os.urandom(4).hex()}"),
    ):
        error = refused(given, UserError, "newer version", action)
        assert "update this checkout" in (error.hint or "")


def test_a_damaged_record_stops_every_change(given: Settings) -> None:
    (one,) = promoted(given, 1)
    (records.home(given.archive, one.id) / records.NAME).write_text("{")
    refused(given, EvidenceError, "is damaged", lambda: stage(given, release(2)))


def test_a_release_that_nobody_knows(given: Settings) -> None:
    promoted(given, 1)
    for id in ("no", "../x", ""):
        refused(given, UserError, "no release", lambda id=id: operations.promote(given, id, 10))


def test_a_clock_that_is_wrong_changes_nothing(given: Settings) -> None:
    (one,) = promoted(given, 1)
    file = given.archive / "dists/bookworm/Release"
    text = file.read_text()
    (line,) = (line for line in text.splitlines() if line.startswith("Date: "))
    later = parsedate_to_datetime(line[6:]) + timedelta(days=1)
    file.write_text(text.replace(line[6:], format_datetime(later, usegmt=True)))
    for action in (
        lambda: stage(given, release(2)),
        lambda: operations.promote(given, one.id, 100),
        lambda: operations.resign(given),
    ):
        error = refused(given, InfrastructureError, "clock is wrong", action)
        assert "timedatectl" in (error.hint or "")


def test_a_link_that_leads_elsewhere_stops_every_change(given: Settings) -> None:
    promoted(given, 1)
    link = given.archive / "dists/bookworm"
    link.unlink()
    link.symlink_to("/tmp")
    refused(given, TrustError, "does not lead to", lambda: stage(given, release(2)))


@pytest.mark.parametrize("text", [None, "", "Date: x\n", "Suite: bookworm\n"])
def test_a_release_without_a_date_stops_every_change(given: Settings, text: str | None) -> None:
    promoted(given, 1)
    path = given.archive / "dists/bookworm/Release"
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    refused(given, TrustError, "Release is damaged", lambda: stage(given, release(2)))


def test_half_a_snapshot_is_removed_and_never_shown(given: Settings) -> None:
    promoted(given, 1)
    half = given.archive / "snapshots/9"
    (half / "bookworm").mkdir(parents=True)
    (half / "bookworm/Release").write_text("half")
    stage(given, release(2))
    assert not half.exists()
    assert verify.check(given).findings == ()


def test_what_a_person_put_into_the_pool_stays(given: Settings) -> None:
    promoted(given, 1)
    theirs = [given.archive / "pool" / name for name in (".htaccess", "main/notes/index.html")]
    for path in theirs:
        path.parent.mkdir(exist_ok=True)
        path.write_text("not ours\n")
    for revision in range(2, 6):
        promoted(given, revision)
    assert all(path.read_text() == "not ours\n" for path in theirs)
    assert [one.path for one in verify.check(given).findings] == ["pool/main/notes/index.html"]


def test_signing_again_gives_new_dates(given: Settings) -> None:
    promoted(given, 1)
    link = given.archive / "dists/bookworm"
    first = link.readlink()
    operations.resign(given)
    assert link.readlink() != first
    assert images(given, "bookworm") == {"1"}
    for _ in range(8):
        operations.resign(given)
    assert len(list((given.archive / "snapshots").iterdir())) <= 6
    assert verify.check(given).findings == ()


def test_indexes_that_expire_soon_are_signed_again(
    given: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    operations.refresh(given)
    assert not given.archive.exists()
    promoted(given, 1)
    link = given.archive / "dists/bookworm"
    first = link.readlink()
    operations.refresh(given)
    assert link.readlink() == first
    monkeypatch.setattr(operations, "RENEWAL", indexes.VALID + timedelta(days=1))
    operations.refresh(given)
    assert link.readlink() != first


def test_two_writers_at_once_both_finish(given: Settings) -> None:
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from kbuild.archive import operations\nfrom tests.unit import releases\n"
        "given = releases.settings(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "one = releases.release(int(sys.argv[3]))\n"
        "operations.stage(given, one, releases.files(given.build, one))\n"
    )
    home = given.archive.parent
    writers = [
        subprocess.Popen([sys.executable, "-c", code, home, given.keys, str(number)])
        for number in (1, 2, 3)
    ]
    assert [one.wait(timeout=100) for one in writers] == [0, 0, 0]
    assert images(given, "bookworm-staging") == {"1", "2", "3"}
    assert verify.check(given).findings == ()
