"""The kernel that is found in the indexes, and the unpacking of its packages."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kbuild import cleaning, verify
from kbuild.core import places, suites
from kbuild.core.errors import BuildError, InfrastructureError, TrustError, UserError
from kbuild.core.model import Base, Settings, Target, VerifiedFile
from kbuild.fetch import source, unpack
from kbuild.fetch.download import GoneError
from tests.unit import damage, signed_archive
from tests.unit.signed_archive import NOTHING, Fault, Server, SignedArchive, Waits, flip, settings

DISTS = ("bookworm", "bookworm-security")
TARGET = Target("bookworm", "cloud-amd64")
OLD, NEW = "6.1.9-1", "6.1.10-1"  # as strings, they sort the other way round


@pytest.fixture(autouse=True)
def _our_keyring(monkeypatch: pytest.MonkeyPatch) -> None:
    # A dist less, because apt takes its time for each.
    row = dataclasses.replace(signed_archive.suite(signed_archive.key()), pockets=())
    monkeypatch.setitem(suites.SUITES, "bookworm", row)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> SignedArchive:
    one = SignedArchive(tmp_path_factory.mktemp("template"), signed_archive.key())
    one.add_kernel("bookworm", OLD, "6.1.0-8")
    one.add_kernel("bookworm-security", NEW, "6.1.0-9")
    publish(one)
    return one


@pytest.fixture
def home(template: SignedArchive, tmp_path: Path) -> SignedArchive:
    return template.copy(tmp_path / "archive")


def publish(one: SignedArchive, *dists: str) -> None:
    for dist in dists or DISTS:
        one.publish(dist)


@pytest.fixture
def server(home: SignedArchive) -> Iterator[Server]:
    with signed_archive.serve(home.root) as one:
        yield one


@pytest.fixture(scope="module")
def first_fetch(
    template: SignedArchive, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Base]:
    """Fetch the newest kernel once for the tests of what becomes of its packages."""
    home = tmp_path_factory.mktemp("fetched")
    row = dataclasses.replace(signed_archive.suite(signed_archive.key()), pockets=())
    with pytest.MonkeyPatch.context() as patch, signed_archive.serve(template.root) as server:
        patch.setitem(suites.SUITES, "bookworm", row)
        return home, fetch(settings(home, server.url))


@pytest.fixture
def fetched(first_fetch: tuple[Path, Base], tmp_path: Path) -> tuple[Settings, Base]:
    """Return a copy of the fetched kernel, and the settings that it lies below."""
    home, base = first_fetch
    one = settings(tmp_path)
    shutil.copytree(settings(home).cache, one.cache, symlinks=True)

    def moved(file: VerifiedFile) -> VerifiedFile:
        return dataclasses.replace(file, path=tmp_path / file.path.relative_to(home))

    return one, dataclasses.replace(
        base,
        source=moved(base.source),
        image=moved(base.image),
        headers=moved(base.headers),
        support=tuple(map(moved, base.support)),
    )


def resolve(one: Settings, target: Target = TARGET) -> source.Resolved:
    return source.resolve(one, target, network=Waits().network, apt=NOTHING)


def fetch(one: Settings, target: Target = TARGET) -> Base:
    return source.fetch(one, target, network=Waits().network, apt=NOTHING)


def test_the_newest_kernel_is_that_of_the_security_pocket(tmp_path: Path, server: Server) -> None:
    base = fetch(settings(tmp_path, server.url))
    assert (base.version, base.abi, base.release) == (NEW, "6.1.0-9", "6.1.0-9-cloud-amd64")
    assert base.signers == (signed_archive.key().fingerprint,)
    assert not base.expired
    assert [f.name for f in (base.source, base.image, base.headers, *base.support)] == [
        "linux-source-6.1",
        "linux-image-6.1.0-9-cloud-amd64",
        "linux-headers-6.1.0-9-cloud-amd64",
        "linux-compiler-gcc-12-x86",
        "linux-headers-6.1.0-9-common",
        "linux-kbuild-6.1",
    ]
    for one in (base.source, base.image, base.headers, *base.support):
        assert one.version == NEW
        assert one.path.stat().st_size == one.size
        assert one.sha256 in str(one.path)


def test_the_newest_may_lie_in_the_main_archive(
    tmp_path: Path, home: SignedArchive, server: Server
) -> None:
    home.add_kernel("bookworm", "6.1.11-1", "6.1.0-10")
    publish(home, "bookworm")
    assert resolve(settings(tmp_path, server.url)).version == "6.1.11-1"


def test_the_version_asked_for_is_taken(tmp_path: Path, server: Server) -> None:
    base = fetch(settings(tmp_path, server.url), dataclasses.replace(TARGET, version=OLD))
    assert (base.version, base.abi) == (OLD, "6.1.0-8")


def test_an_unknown_version_lists_those_that_are_there(tmp_path: Path, server: Server) -> None:
    with pytest.raises(UserError) as caught:
        resolve(settings(tmp_path, server.url), dataclasses.replace(TARGET, version="6.1.7-1"))
    assert f"one of {NEW}, {OLD}" in str(caught.value)


def test_our_own_flavour_rests_on_debians(tmp_path: Path, server: Server) -> None:
    assert resolve(settings(tmp_path, server.url), Target("bookworm", "lab")).flavour == (
        "cloud-amd64"
    )


def test_a_flavour_is_not_mistaken_for_one_that_ends_like_it(
    tmp_path: Path, home: SignedArchive, server: Server
) -> None:
    home.add_kernel("bookworm", OLD, "6.1.0-8", flavour="amd64")
    home.add_kernel("bookworm", OLD, "6.1.0-8", flavour="rt-amd64")
    publish(home, "bookworm")
    found = resolve(settings(tmp_path, server.url), Target("bookworm", "amd64"))
    assert found.image.listed.package == "linux-image-6.1.0-8-amd64"
    with pytest.raises(UserError, match="has no linux"):
        resolve(settings(tmp_path, server.url), Target("bookworm", "amd64", version=NEW))


def test_abi_names_of_trixie_are_understood(
    tmp_path: Path, home: SignedArchive, server: Server
) -> None:
    home.add_kernel("bookworm", "6.12.3-1", "6.12.3+deb13")
    publish(home, "bookworm")
    found = resolve(settings(tmp_path, server.url))
    assert found.abi == "6.12.3+deb13"
    assert "linux-headers-6.12.3+deb13-common" in [o.listed.package for o in found.support]


def test_a_split_kernel_is_one_kernel(tmp_path: Path, home: SignedArchive, server: Server) -> None:
    home.add_split_kernel("bookworm", "7.3.4-1~bpo13+1", "7.3.4+deb13")
    publish(home, "bookworm")
    one = settings(tmp_path, server.url)
    for place in places.both(one):
        places.mark(place)
    base = fetch(one)
    parts = [f"linux-{part}-7.3.4+deb13-cloud-amd64" for part in ("base", "binary", "modules")]
    assert [file.name for file in base.parts] == parts
    # The image that the headers name is left out, and no package is there twice.
    assert [file.name for file in base.packages] == [
        "linux-image-7.3.4+deb13-cloud-amd64",
        *parts,
        "linux-headers-7.3.4+deb13-cloud-amd64",
        "linux-headers-7.3.4+deb13-common",
    ]
    assert all(file.path.exists() for file in base.files)
    assert {file.name for file in unpack.not_unpacked(one, base)} >= {base.image.name, *parts}
    tree = unpack.unpack_image(one, base)
    assert (tree / f"boot/vmlinuz-{base.release}").read_text() == "7.3.4-1~bpo13+1\n"
    assert (tree / "lib/modules" / base.release / "base").exists()
    os.utime(tree.parent, (0, 0))
    assert unpack.unpack_image(one, base) == tree
    assert tree.parent not in cleaning.clean_unused(one, days=1)
    assert base.image not in unpack.not_unpacked(one, base)


def test_a_split_kernel_without_its_binary_is_an_error(
    tmp_path: Path, home: SignedArchive, server: Server
) -> None:
    home.add_split_kernel("bookworm", "7.3.4-1~bpo13+1", "7.3.4+deb13")
    drop(home, "linux-binary-7.3.4+deb13-cloud-amd64", "bookworm")
    one = settings(tmp_path, server.url)
    with pytest.raises(BuildError, match="contain no kernel"):
        unpack.unpack_image(one, fetch(one))


def test_backports_bring_the_kernel_and_nothing_else_does(
    tmp_path: Path, home: SignedArchive, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = dataclasses.replace(
        suites.suite("bookworm"),
        name="bookworm-backports",
        pockets=("bookworm-updates", "bookworm-backports"),
        kernel_dists=("bookworm-backports",),
    )
    monkeypatch.setitem(suites.SUITES, row.name, row)
    home.add_kernel("bookworm-backports", OLD, "6.1.0-8")
    publish(home, "bookworm-backports")
    base = fetch(settings(tmp_path, server.url), Target(row.name, "cloud-amd64"))
    assert (base.suite, base.version) == ("bookworm-backports", OLD)


@pytest.mark.parametrize("missing", ["linux-source-6.1", "linux-headers-6.1.0-9-cloud-amd64"])
def test_an_image_without_its_source_or_headers_is_an_error(
    tmp_path: Path, home: SignedArchive, server: Server, missing: str
) -> None:
    drop(home, missing)
    with pytest.raises(InfrastructureError, match="but not its source or headers") as caught:
        resolve(settings(tmp_path, server.url))
    assert NEW in str(caught.value)


def test_packages_that_the_next_version_replaced_already_will_do(
    tmp_path: Path, home: SignedArchive, server: Server
) -> None:
    # As on each security update, from the upload of linux to that of linux-signed-amd64.
    next_one = "6.1.11-1"
    for name in ("linux-kbuild-6.1", "linux-compiler-gcc-12-x86"):
        drop(home, name)
        home.add("bookworm-security", name, next_one)
    home.add("bookworm-security", "linux-image-6.1.0-10-cloud-amd64-unsigned", next_one)
    publish(home, "bookworm-security")
    base = fetch(settings(tmp_path, server.url))
    assert (base.version, base.image.version, base.headers.version) == (NEW, NEW, NEW)
    assert {file.name: file.version for file in base.support} == {
        "linux-compiler-gcc-12-x86": next_one,
        "linux-headers-6.1.0-9-common": NEW,
        "linux-kbuild-6.1": next_one,
    }
    assert all(file.path.exists() for file in base.support)


def test_a_dependency_without_a_usable_version_is_named(
    tmp_path: Path, home: SignedArchive, server: Server
) -> None:
    # Only the main archive's is left, and it is older.
    drop(home, "linux-kbuild-6.1")
    with pytest.raises(InfrastructureError, match="a dependency of") as caught:
        resolve(settings(tmp_path, server.url))
    assert caught.value.expected == f"linux-kbuild-6.1 (>= {NEW})"
    assert caught.value.found == OLD


def test_the_first_usable_alternative_is_taken(
    tmp_path: Path, home: SignedArchive, server: Server
) -> None:
    dist, headers = "bookworm-security", "linux-headers-6.1.0-9-cloud-amd64"
    drop(home, headers)
    home.add(dist, headers, NEW, depends=f"linux-kbuild-6.1 (>> {NEW}) | linux-libc-dev (= {NEW})")
    publish(home, dist)
    found = resolve(settings(tmp_path, server.url))
    assert [offer.listed.package for offer in found.support] == ["linux-libc-dev"]


def test_a_meta_package_without_its_image_is_an_error(
    tmp_path: Path, home: SignedArchive, server: Server
) -> None:
    drop(home, "linux-image-6.1.0-9-cloud-amd64")
    with pytest.raises(InfrastructureError, match="but not its image"):
        resolve(settings(tmp_path, server.url))


def test_a_suite_without_the_flavour_is_an_error(
    tmp_path: Path, home: SignedArchive, server: Server
) -> None:
    with pytest.raises(InfrastructureError, match="no package linux-image-amd64"):
        resolve(settings(tmp_path, server.url), Target("bookworm", "amd64"))


def drop(home: SignedArchive, package: str, dist: str = "bookworm-security") -> None:
    home.stanzas[dist] = [
        stanza for stanza in home.stanzas[dist] if not stanza.startswith(f"Package: {package}\n")
    ]
    publish(home, dist)


def test_packages_of_other_sources_are_no_kernel(
    tmp_path: Path, home: SignedArchive, server: Server
) -> None:
    home.add("bookworm", "linux-image-cloud-amd64", "99", source="evil", depends="linux-image-99")
    publish(home, "bookworm")
    assert resolve(settings(tmp_path, server.url)).version == NEW


def test_a_file_listed_but_gone_is_taken_from_another_mirror(
    tmp_path: Path, home: SignedArchive, server: Server
) -> None:
    server.fail(".deb", Fault(status=404))
    with signed_archive.serve(home.root) as other:
        base = fetch(settings(tmp_path, server.url, other.url))
        assert base.image.path.exists()
        assert len(other.asked(".deb")) == 6
    with pytest.raises(InfrastructureError, match="404") as caught:
        fetch(settings(tmp_path / "again", server.url))
    assert server.url in str(caught.value)


def test_a_version_that_left_the_pool_is_named_with_those_that_are_listed(
    tmp_path: Path, server: Server
) -> None:
    server.fail(f"linux-image-6.1.0-9-cloud-amd64_{NEW}_amd64.deb", Fault(status=404))
    with pytest.raises(GoneError, match=rf"linux {NEW} .* cannot be fetched") as caught:
        fetch(settings(tmp_path, server.url))
    assert "linux-image-6.1.0-9-cloud-amd64" in caught.value.what
    assert f"(also listed: {OLD})" in (caught.value.hint or "")
    old = fetch(settings(tmp_path, server.url), dataclasses.replace(TARGET, version=OLD))
    assert old.version == OLD


def test_a_mirror_that_is_out_of_order_has_lost_no_version(tmp_path: Path, server: Server) -> None:
    server.fail(".deb", Fault(status=503))
    with pytest.raises(InfrastructureError, match="could not be fetched") as caught:
        fetch(settings(tmp_path, server.url))
    assert not isinstance(caught.value, GoneError)


def test_a_file_that_two_archives_list_can_come_from_either(
    tmp_path: Path, home: SignedArchive, server: Server
) -> None:
    main = SignedArchive(tmp_path / "main", signed_archive.key())
    main.add_kernel("bookworm", NEW, "6.1.0-9")
    main.publish("bookworm")
    main.publish("bookworm-updates")
    home.inrelease("bookworm").unlink()
    with signed_archive.serve(main.root) as other:
        found = resolve(settings(tmp_path, server.url, other.url))
        assert set(found.image.dists) == {"bookworm", "bookworm-security"}
        assert len(found.image.urls) == 2


@pytest.mark.parametrize("package", ["linux-source-6.1", "linux-image-6.1.0-9-cloud-amd64"])
def test_a_changed_byte_in_a_package_is_refused(
    tmp_path: Path, home: SignedArchive, server: Server, package: str
) -> None:
    (path,) = home.root.glob(f"pool/main/l/linux/{package}_{NEW}_*.deb")
    flip(path)
    one = settings(tmp_path, server.url)
    with pytest.raises(TrustError, match=package):
        fetch(one)
    assert f"{path.name}" not in signed_archive.kept(one)
    assert not list((one.cache / "partial").iterdir())


def test_the_second_time_only_the_releases_are_asked_for(tmp_path: Path, server: Server) -> None:
    one = settings(tmp_path, server.url)
    first = fetch(one)
    before = len(server.requests)
    assert fetch(one) == first
    again = server.requests[before:]
    assert [r.path for r in again] == [f"/dists/{dist}/InRelease" for dist in DISTS]


def test_offline_gives_the_same_without_a_request(tmp_path: Path, server: Server) -> None:
    first = fetch(settings(tmp_path, server.url))
    before = len(server.requests)
    assert fetch(settings(tmp_path, server.url, offline=True)) == first
    assert len(server.requests) == before


def test_offline_without_a_cache_says_what_to_run(tmp_path: Path, server: Server) -> None:
    with pytest.raises(InfrastructureError, match="inv fetch"):
        fetch(settings(tmp_path, server.url, offline=True))
    assert server.requests == []


def test_an_accepted_expiry_is_told(tmp_path: Path, home: SignedArchive, server: Server) -> None:
    home.publish("bookworm-security", date=datetime.now(UTC) - timedelta(days=9))
    with pytest.raises(TrustError, match="bookworm-security was refused"):
        resolve(settings(tmp_path, server.url))
    one = dataclasses.replace(settings(tmp_path, server.url), accept_expired=True)
    assert resolve(one).expired


def test_a_dry_run_fetches_no_package_and_says_which(
    tmp_path: Path, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    dry = fetch(settings(tmp_path, server.url, dry=True))
    assert server.asked(".deb") == []
    assert not dry.source.path.exists()
    assert f"would fetch linux-source-6.1_{NEW}_all.deb" in caplog.text
    assert fetch(settings(tmp_path, server.url)) == dry
    caplog.clear()
    fetch(settings(tmp_path, server.url, dry=True))
    assert f"have linux-source-6.1_{NEW}_all.deb" in caplog.text


def test_the_tree_is_unpacked_once_with_its_times(fetched: tuple[Settings, Base]) -> None:
    one, base = fetched
    tree = unpack.unpack(one, base)
    assert (tree / "Makefile").read_text() == f"# {NEW}\n"
    assert (tree / "Makefile").stat().st_mtime == 1_000_000_000
    assert sorted(p.name for p in tree.iterdir()) == ["Makefile", "fs"]
    inode = tree.stat().st_ino
    assert unpack.unpack(one, base) == tree
    assert tree.stat().st_ino == inode


def test_entries_that_a_run_used_are_not_removed_as_unused(tmp_path: Path, server: Server) -> None:
    def use(one: Settings) -> None:
        base = fetch(one)
        unpack.unpack(one, base)
        unpack.unpack_deb(one, base.headers)
        unpack.unpack_image(one, base)

    one = settings(tmp_path, server.url)
    for place in places.both(one):
        places.mark(place)
    use(one)
    idle = one.cache / "trees" / "idle"
    idle.mkdir()
    for path in one.cache.glob("*/*"):
        os.utime(path, (0, 0))
    use(one)
    doomed = cleaning.clean_unused(dataclasses.replace(one, dry=True), days=1)
    assert set(doomed) == {idle}
    cleaning.clean_unused(one, days=1)
    asked = len(server.requests)
    use(dataclasses.replace(one, offline=True))
    assert len(server.requests) == asked


def test_leftovers_of_a_killed_run_are_cleared_away(fetched: tuple[Settings, Base]) -> None:
    one, base = fetched
    half = one.cache / "trees" / f".{base.source.sha256}.killed" / "content"
    half.mkdir(parents=True)
    tree = unpack.unpack(one, base)
    assert (tree / "Makefile").exists()
    assert [p.name for p in (one.cache / "trees").iterdir()] == [base.source.sha256]


def test_a_failed_unpacking_leaves_nothing(fetched: tuple[Settings, Base]) -> None:
    one, base = fetched
    # The image is a package without a tarball.
    with pytest.raises(BuildError, match="does not contain a kernel tree"):
        unpack.unpack(one, dataclasses.replace(base, source=base.image))
    assert list((one.cache / "trees").iterdir()) == []


def test_a_package_changed_after_its_verification_is_not_unpacked(
    tmp_path: Path, server: Server
) -> None:
    one = settings(tmp_path, server.url)
    base = fetch(one)
    flip(base.source.path)
    with pytest.raises(TrustError, match="has changed"):
        unpack.unpack(one, base)
    tree = unpack.unpack(one, fetch(one))
    assert (tree / "Makefile").exists()


def test_any_package_can_be_unpacked(fetched: tuple[Settings, Base]) -> None:
    one, base = fetched
    files = unpack.unpack_deb(one, base.image)
    assert (files / f"boot/config-{base.image.name}").read_text() == f"# {NEW}\n"
    assert unpack.unpack_deb(one, base.image) == files


def test_an_image_is_unpacked_as_it_would_be_installed(fetched: tuple[Settings, Base]) -> None:
    one, base = fetched
    tree = unpack.unpack_image(one, base)
    assert (tree / f"boot/vmlinuz-{base.release}").is_file()
    assert tree == unpack.unpack_deb(one, base.image)


def test_packages_that_are_not_unpacked_yet_are_listed(fetched: tuple[Settings, Base]) -> None:
    one, base = fetched
    assert unpack.not_unpacked(one, base) == (base.source, base.image, base.headers)
    unpack.unpack(one, base)
    assert unpack.not_unpacked(one, base) == (base.image, base.headers)
    unpack.unpack_image(one, base)
    assert unpack.not_unpacked(one, base) == (base.headers,)


@pytest.mark.parametrize("harm", [damage.emptied, damage.edited, damage.lost])
def test_a_damaged_tree_is_unpacked_again_and_named(
    fetched: tuple[Settings, Base], caplog: pytest.LogCaptureFixture, harm: Callable[[Path], None]
) -> None:
    caplog.set_level(logging.INFO)
    one, base = fetched

    def pristine_files() -> dict[Path, bytes]:
        caplog.clear()
        tops = (unpack.unpack, unpack.unpack_image)
        trees = [use(one, base) for use in tops] + [unpack.unpack_deb(one, base.headers)]
        files = (min(p for p in tree.rglob("*") if p.is_file()) for tree in trees)
        return {file: file.read_bytes() for file in files}

    whole = pristine_files()
    assert len(whole) == 3
    assert pristine_files() == whole
    assert "unpacking" not in caplog.text
    assert {p.path.name: (p.checked, p.damaged) for p in verify.check(one)} == {
        "files": (6, ()),
        "trees": (1, ()),
        "debs": (2, ()),
    }
    for path in whole:
        harm(path)
    assert sum(len(place.damaged) for place in verify.check(one)) == 3
    assert len(unpack.not_unpacked(one, base)) == 3
    assert pristine_files() == whole
    assert caplog.text.count("unpacking") == 3
    assert "its output content is damaged: 1 of 3 files: Makefile (" in caplog.text
    assert unpack.not_unpacked(one, base) == ()


def test_a_directory_of_an_earlier_version_is_made_again_once(
    fetched: tuple[Settings, Base], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    one, base = fetched
    tree = unpack.unpack(one, base)
    assert unpack.kept_tree(one, base.source.sha256) == tree
    # As after a power cut: what is there now is no proof of what was there.
    (tree.parent / "stamp.json").unlink()
    damage.emptied(tree / "Makefile")
    assert unpack.kept_tree(one, base.source.sha256) is None
    unpack.unpack(one, base)
    assert (tree / "Makefile").read_text() == f"# {NEW}\n"
    unpack.unpack(one, base)
    assert caplog.text.count("an earlier version kept no record of its files") == 1


def test_a_file_that_is_no_package_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "not.deb"
    path.write_bytes(b"no package")
    sha256 = "f49d3c21da0a89e7f5ed0ea8a2a5e47cd3f4b4a4a4b6b0ab14a2ee9c4b37e2cd"
    with pytest.raises(TrustError):
        unpack.unpack_deb(settings(tmp_path), VerifiedFile("x", "1", path, sha256, 10))


def test_two_runs_at_once_do_not_harm_each_other(tmp_path: Path, server: Server) -> None:
    one = settings(tmp_path, server.url)
    gate = threading.Barrier(3)
    results: list[tuple[Base, Path]] = []

    def work() -> None:
        gate.wait(10)
        base = fetch(one)
        results.append((base, unpack.unpack(one, base)))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(results) == 3
    assert results.count(results[0]) == 3
    assert len(server.asked(".deb")) == 6
    assert (results[0][1] / "Makefile").exists()
