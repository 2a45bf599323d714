"""Mirrors are recognised by what apt's configuration says, in both of its formats."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
from pathlib import Path

import pytest

from kbuild import mirror, suites
from kbuild.errors import InfrastructureError, UserError
from kbuild.mirror import Entry, Mirrors
from tests.unit import signed_archive
from tests.unit.signed_archive import NOTHING, Fault, SignedArchive, Waits, settings


def write_apt(tmp_path: Path, **files: str) -> Path:
    """Lay out an /etc/apt; "main" is sources.list, x_list and x_sources lie in its parts."""
    apt = tmp_path / "apt"
    (apt / "sources.list.d").mkdir(parents=True)
    for name, text in files.items():
        if name == "main":
            (apt / "sources.list").write_text(text)
        else:
            (apt / "sources.list.d" / name.replace("_", ".")).write_text(text)
    return apt


def find(tmp_path: Path, *given: str, **files: str) -> Mirrors:
    return mirror.find(settings(tmp_path, *given), apt=write_apt(tmp_path, **files))


ONE_LINE = """\
# deb http://commented.example/debian bookworm main
deb http://one.example/debian/ bookworm main contrib  # with a comment
deb [arch=amd64 signed-by=/k/debian-archive-keyring.gpg] http://one.example/debian trixie main
deb-src http://source.example/debian bookworm main
deb http://security.example/debian-security bookworm-security main
"""

DEB822 = """\
Types: deb deb-src
# a comment between the fields
URIs: http://a.example/debian https://b.example/debian
Suites: trixie trixie-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.pgp

Types: deb
URIs: http://a.example/debian-security
Suites: trixie-security
Components: main

Enabled: no
Types: deb
URIs: http://disabled.example/debian
Suites: trixie
Components: main

Types: deb-src
URIs: http://source.example/debian
Suites: trixie
Components: main
"""


def test_one_line_sources_are_read(tmp_path: Path) -> None:
    assert find(tmp_path, main=ONE_LINE) == Mirrors(
        main=("http://one.example/debian",),
        security=("http://security.example/debian-security",),
    )


def test_deb822_sources_of_another_suite_are_read(tmp_path: Path) -> None:
    assert find(tmp_path, debian_sources=DEB822) == Mirrors(
        main=("http://a.example/debian", "https://b.example/debian"),
        security=("http://a.example/debian-security",),
    )


def test_an_entry_keeps_its_fields(tmp_path: Path) -> None:
    apt = write_apt(
        tmp_path, main="deb [ arch=amd64 signed-by=/k.gpg ] http://one.example/ sid main contrib\n"
    )
    assert list(mirror.entries(apt)) == [
        Entry("http://one.example/", "sid", ("main", "contrib"), "/k.gpg")
    ]


def test_the_users_mirrors_come_first_and_for_both_archives(tmp_path: Path) -> None:
    found = find(tmp_path, "http://mine.example/debian/", main=ONE_LINE)
    assert found.main == ("http://mine.example/debian", "http://one.example/debian")
    assert found.security[0] == "http://mine.example/debian"


@pytest.mark.parametrize(
    "foreign",
    [
        "deb http://foreign.example/node nodistro main",
        "deb http://foreign.example/apt cloud-sdk-bookworm main",
        "deb http://foreign.example/linux/debian bookworm stable",
        "deb http://foreign.example/apt bookworm-pgdg main",
        "deb http://foreign.example/ubuntu noble main",
        "deb [signed-by=/usr/share/keyrings/vendor.gpg] http://foreign.example/php bookworm main",
        "deb http://foreign.example/flat ./",
        "deb cdrom:[Foreign]/ bookworm main",
        "deb file:/srv/foreign bookworm main",
    ],
)
def test_a_foreign_archive_is_no_mirror(tmp_path: Path, foreign: str) -> None:
    found = find(tmp_path, main=f"{foreign}\n{ONE_LINE}", vendor_list=f"{foreign}\n")
    assert found.main == ("http://one.example/debian",)
    assert found.security == ("http://security.example/debian-security",)


@pytest.mark.parametrize(
    ("dist", "security"),
    [
        ("bookworm", False),
        ("stable", False),
        ("bookworm-backports", False),
        ("trixie-updates", False),
        ("oldstable-security", True),
        ("trixie-security", True),
        ("buster/updates", True),
    ],
)
def test_the_dist_tells_which_archive_it_is(tmp_path: Path, dist: str, security: bool) -> None:
    found = find(tmp_path, main=f"{ONE_LINE}deb http://x.example/x {dist} main\n")
    assert ("http://x.example/x" in found.security) == security
    assert ("http://x.example/x" in found.main) != security


def test_the_list_of_a_cloud_image_is_followed(tmp_path: Path) -> None:
    listing = tmp_path / "mirrors.list"
    listing.write_text("# by the image\nhttps://cloud.example/debian\tpriority:1\n")
    found = find(tmp_path, main=f"{ONE_LINE}deb mirror+file:{listing} bookworm main\n")
    assert "https://cloud.example/debian" in found.main


def test_files_that_apt_does_not_read_are_not_read(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        find(tmp_path, old_save=ONE_LINE)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "main"),
        ("deb http://one.example/debian bookworm main\n", "security"),
        ("deb http://one.example/debian bookworm-security main\n", "main"),
    ],
)
def test_no_mirror_says_what_to_do(tmp_path: Path, text: str, kind: str) -> None:
    with pytest.raises(UserError, match=f"Debian's {kind} archive") as caught:
        find(tmp_path, main=text)
    assert "--mirror" in str(caught.value)


@pytest.mark.parametrize("url", ["one.example/debian", "file:///srv/debian", "ftp://x.example/"])
def test_a_mirror_that_is_no_url_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(UserError, match="not a URL"):
        mirror.find(settings(tmp_path, url), apt=NOTHING)


LONG = "a" * 64


@pytest.mark.parametrize(
    "url",
    [
        "http://[::1/debian",
        f"http://{LONG}.example/debian",
        "http://h:port/debian",
        "http:///debian",
    ],
)
def test_a_bad_url_is_left_out_where_it_is_the_machines_and_refused_where_it_is_the_users(
    tmp_path: Path, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    found = find(tmp_path, main=f"deb {url} bookworm main\n{ONE_LINE}")
    assert found.main == ("http://one.example/debian",)
    assert f"the mirror {url} is left out" in caplog.text
    with pytest.raises(UserError, match="not a URL"):
        mirror.find(settings(tmp_path, url), apt=NOTHING)


def test_a_refused_mirrors_password_is_not_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a URL") as caught:
        mirror.find(settings(tmp_path, "ftp://me:secret@one.example/"), apt=NOTHING)
    assert "ftp://***@one.example" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_root_never_sees_a_login(tmp_path: Path, home: SignedArchive) -> None:
    apt = write_apt(tmp_path, main=ONE_LINE)
    (apt / "apt.conf.d").mkdir()
    (apt / "apt.conf.d/proxy").write_text('Acquire::http::Proxy::x.example "http://who:knows@p/";')
    with signed_archive.serve(home.root) as server:
        one = settings(tmp_path, server.url.replace("://", "://me:secret@"))
        text = mirror.sources_list(one, "bookworm", apt=apt, network=Waits().network)
        assert {request.login for request in server.requests} == {"me:secret"}
    assert "secret" not in text
    assert server.url in text
    root = tmp_path / "root"
    with mirror.private(one, apt=apt) as private:
        assert not any(word in " ".join(private.options) for word in ("secret", "knows"))
        (hook,) = private.options
        copy, *places, target = shlex.split(hook.removeprefix("--setup-hook="))
        assert (copy, target) == ("copy-in", "/etc/apt/")
        for place in places:
            shutil.copytree(place, root / "etc/apt" / Path(place).name)
    assert not any(Path(place).exists() for place in places)
    texts = {}
    for name in private.files:
        texts[name] = (root / name).read_text()
        assert (root / name).stat().st_mode & 0o777 == 0o600
    assert f"machine {server.url} login me password secret" in "".join(texts.values())
    assert 'proxy::x.example "http://who:knows@p/";' in "".join(texts.values())
    private.remove(root)
    assert not [path for path in root.rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> SignedArchive:
    one = SignedArchive(tmp_path_factory.mktemp("template"), signed_archive.key())
    for dist in ("bookworm", "bookworm-updates", "bookworm-security"):
        one.publish(dist)
    return one


@pytest.fixture
def home(template: SignedArchive, tmp_path: Path) -> SignedArchive:
    return template.copy(tmp_path / "archive")


def test_the_sources_list_has_every_pocket(tmp_path: Path, home: SignedArchive) -> None:
    with signed_archive.serve(home.root) as server:
        text = mirror.sources_list(
            settings(tmp_path, server.url), "bookworm", apt=NOTHING, network=Waits().network
        )
    keyring = suites.suite("bookworm").keyring
    assert text.splitlines() == [
        f"deb [signed-by={keyring}] {server.url} {dist} main"
        for dist in ("bookworm", "bookworm-updates", "bookworm-security")
    ]


def test_each_dist_comes_from_a_mirror_that_has_it(tmp_path: Path, home: SignedArchive) -> None:
    security = SignedArchive(tmp_path / "security", signed_archive.key())
    security.publish("bookworm-security")
    home.inrelease("bookworm-security").unlink()
    with (
        signed_archive.serve(home.root) as first,
        signed_archive.serve(security.root) as second,
    ):
        one = settings(tmp_path, second.url, first.url)
        text = mirror.sources_list(one, "bookworm", apt=NOTHING, network=Waits().network)
    assert [line.split()[2] for line in text.splitlines()] == [first.url, first.url, second.url]


def test_a_mirror_that_recovers_is_waited_for(tmp_path: Path, home: SignedArchive) -> None:
    waits = Waits()
    with signed_archive.serve(home.root) as server:
        server.fail("bookworm/InRelease", Fault(status=503), Fault())
        mirror.sources_list(
            settings(tmp_path, server.url), "bookworm", apt=NOTHING, network=waits.network
        )
    assert len(waits.seconds) == 1


def test_a_dist_that_no_mirror_has_is_named(tmp_path: Path, home: SignedArchive) -> None:
    home.inrelease("bookworm-updates").unlink()
    with signed_archive.serve(home.root) as server:
        with pytest.raises(InfrastructureError, match="no mirror has bookworm-updates") as caught:
            mirror.sources_list(
                settings(tmp_path, server.url), "bookworm", apt=NOTHING, network=Waits().network
            )
        assert server.url in str(caught.value)


def test_apt_is_told_of_an_accepted_expiry(tmp_path: Path, home: SignedArchive) -> None:
    with signed_archive.serve(home.root) as server:
        one = dataclasses.replace(settings(tmp_path, server.url), accept_expired=True)
        text = mirror.sources_list(one, "bookworm", apt=NOTHING, network=Waits().network)
    assert text.count("check-valid-until=no") == 3


def test_offline_there_is_no_sources_list(tmp_path: Path) -> None:
    one = settings(tmp_path, "http://127.0.0.1:9", offline=True)
    with pytest.raises(InfrastructureError, match="offline"):
        mirror.sources_list(one, "bookworm", apt=NOTHING)


def test_an_unknown_suite_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="bookwurm"):
        mirror.sources_list(settings(tmp_path), "bookwurm", apt=NOTHING)
