"""Mirrors are those that apt itself lists, in both of its formats."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest

from kbuild.core.errors import UserError
from kbuild.fetch import mirror
from kbuild.fetch.mirror import Mirrors
from tests.unit.signed_archive import NOTHING, settings


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
        "deb http://foreign.example/flat ./",
        "deb cdrom:[Foreign]/ bookworm main",
        "deb file:/srv/foreign bookworm main",
        # apt's own rules
        "deb [arch=arm64] http://foreign.example/debian bookworm main",
        "deb-src http://foreign.example/debian bookworm main",
        "# deb http://foreign.example/debian bookworm main",
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


LONG = "a" * 64


@pytest.mark.parametrize(
    "url", ["http://[::1/debian", f"http://{LONG}.example/debian", "http:///debian"]
)
def test_a_bad_url_of_the_machine_is_left_out(
    tmp_path: Path, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    found = find(tmp_path, vendor_list=f"deb {url} bookworm main\n", main=ONE_LINE)
    assert found.main == ("http://one.example/debian",)
    assert "is ignored" in caplog.text


def test_sources_that_apt_cannot_read_are_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = f"{ONE_LINE}deb http://[::1/debian bookworm main\n"
    with pytest.raises(UserError, match="no mirror of Debian's main archive"):
        find(tmp_path, main=broken)
    assert "Malformed entry" in caplog.text
    given = "http://mine.example/debian"
    assert mirror.find(settings(tmp_path, given), apt=tmp_path / "apt").main == (given,)


@pytest.mark.parametrize(
    "url",
    [
        "http://[::1/debian",
        f"http://{LONG}.example/debian",
        "http://h:port/debian",
        "http://h:99999/debian",
        "http:///debian",
        "http://me:se%20cret@h/debian",
        "one.example/debian",
        "file:///srv/debian",
        "ftp://x.example/",
    ],
)
def test_a_bad_url_of_the_users_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(UserError, match="not the URL") as caught:
        mirror.find(settings(tmp_path, url), apt=NOTHING)
    assert "cret" not in str(caught.value)


def test_a_login_in_the_machines_sources_is_used(tmp_path: Path) -> None:
    found = find(tmp_path, main=f"deb http://me:p%40w@own.example/ bookworm main\n{ONE_LINE}")
    assert found.main[0] == "http://me:p%40w@own.example"


def test_a_refused_mirrors_password_is_not_shown(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not the URL") as caught:
        mirror.find(settings(tmp_path, "ftp://me:secret@one.example/"), apt=NOTHING)
    assert "ftp://***@one.example" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_root_is_given_proxies_and_logins_for_a_while(tmp_path: Path) -> None:
    apt = write_apt(tmp_path, main=ONE_LINE)
    (apt / "apt.conf.d").mkdir()
    (apt / "apt.conf.d/proxy").write_text('Acquire::http::Proxy::x.example "http://who:knows@p/";')
    one = settings(tmp_path, "http://me:secret@mine.example/debian")
    root = tmp_path / "root"
    with mirror.private(one, apt=apt) as private:
        assert not any(word in " ".join(private.options) for word in ("secret", "knows"))
        (hook,) = private.options
        copy, *places, target = shlex.split(hook.removeprefix("--setup-hook="))
        assert (copy, target) == ("copy-in", "/etc/apt/")
        for place in places:
            shutil.copytree(place, root / "etc/apt" / Path(place).name)
    assert not any(Path(place).exists() for place in places)
    for name in private.files:
        assert (root / name).stat().st_mode & 0o777 == 0o600
    text = "".join((root / name).read_text() for name in private.files)
    assert "machine http://mine.example/debian login me password secret" in text
    assert 'proxy::x.example "http://who:knows@p/";' in text
    private.remove(root)
    assert not [path for path in root.rglob("*") if path.is_file()]
