"""Mirrors are reached as apt's configuration says, and passwords are never shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from kbuild.core.errors import InfrastructureError
from kbuild.fetch import access
from kbuild.fetch.access import Access, Login

URL = "http://deb.example/debian/x"
SECURE = "https://deb.example/debian/x"


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def configured(tmp_path: Path, text: str, **auth: str) -> Access:
    """Read a directory that stands for /etc/apt."""
    for name in ("apt.conf.d", "auth.conf.d"):
        (tmp_path / name).mkdir()
    (tmp_path / "apt.conf.d/50proxy").write_text(text)
    for name, entries in auth.items():
        place = tmp_path if name == "main" else tmp_path / "auth.conf.d"
        (place / ("auth.conf" if name == "main" else f"{name}.conf")).write_text(entries)
    return access.of(tmp_path)


@pytest.mark.parametrize(
    ("text", "plain", "secure"),
    [
        ("", "", ""),
        ('Acquire::http::Proxy "http://p.example:1";', "http://p.example:1", "http://p.example:1"),
        ('Acquire::https::Proxy "http://s.example:2";', "", "http://s.example:2"),
        ('Acquire { http { Proxy "http://p:1"; }; https { Proxy "DIRECT"; }; };', "http://p:1", ""),
        ('Acquire::http { Proxy "http://p:1"; Proxy::deb.example "DIRECT"; };', "", ""),
        (
            'Acquire::http { Proxy "http://p:1"; Proxy::other.example "DIRECT"; };',
            *["http://p:1"] * 2,
        ),
    ],
)
def test_the_proxy_is_apts(tmp_path: Path, text: str, plain: str, secure: str) -> None:
    found = configured(tmp_path, text)
    assert (found.proxy(URL), found.proxy(SECURE)) == (plain, secure)


def test_apts_proxy_goes_before_the_environments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://env.example:1")
    assert Access().proxy(URL) == "http://env.example:1"
    found = configured(tmp_path, 'Acquire::http::Proxy "http://apt.example:2";')
    assert found.proxy(URL) == "http://apt.example:2"
    monkeypatch.setenv("no_proxy", "deb.example")
    assert found.proxy(URL) == ""


@pytest.mark.parametrize(
    ("says", "proxy"),
    [
        ("http://found.example:3128/", "http://found.example:3128/"),
        ("DIRECT", ""),
        ("", "http://p"),
    ],
)
def test_a_proxy_may_be_detected_by_a_program(tmp_path: Path, says: str, proxy: str) -> None:
    program = tmp_path / "detect"
    program.write_text(f'#!/bin/sh\n[ "$1" = {URL} ] && echo "{says}"\n')
    program.chmod(0o755)
    text = f'Acquire::http {{ Proxy-Auto-Detect "{program}"; Proxy "http://p"; }};'
    assert configured(tmp_path, text).proxy(URL) == proxy
    program.write_text("#!/bin/sh\nexit 1\n")
    assert access.of(tmp_path).proxy(URL) == "http://p"


def test_a_proxys_login_is_in_auth_conf(tmp_path: Path) -> None:
    text = 'Acquire::http::Proxy "http://p.example:1";'
    found = configured(tmp_path, text, a="machine http://p.example login who password k@y\n")
    assert found.proxy(URL) == "http://who:k%40y@p.example:1"


@pytest.mark.parametrize(
    ("machine", "fits"),
    [
        ("deb.example", False),  # only HTTPS without a protocol
        ("http://deb.example", True),
        ("http://deb.example:80", False),
        ("http://deb.example/deb", True),
        ("http://deb.example/debian/", True),
        ("http://deb.example/deb/", False),
        ("http://deb.examplea", False),
        ("https://deb.example", False),
    ],
)
def test_a_login_is_for_its_machine(tmp_path: Path, machine: str, fits: bool) -> None:
    found = configured(tmp_path, "", main=f"# ours\nmachine {machine}\nlogin u\npassword pw\n")
    assert found.login(URL) == (("u", "pw") if fits else None)


def test_a_login_without_a_protocol_is_for_https(tmp_path: Path) -> None:
    found = configured(tmp_path, "", b="machine deb.example login u password pw\n")
    assert found.login(SECURE) == ("u", "pw")
    assert found.login("https://me:self@deb.example/") == ("me", "self")


def test_a_damaged_auth_conf_is_reported_without_its_content(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = configured(
        tmp_path, "", a="machine x login u secret pw\n", b="machine y login u password p\n"
    )
    assert [one.machine for one in found.logins] == ["y"]
    assert "a.conf is ignored" in caplog.text
    assert "secret" not in caplog.text


def test_only_settings_that_reach_mirrors_are_taken_over(tmp_path: Path) -> None:
    text = (
        'APT::Update::Post-Invoke { "touch /nonexistent/x"; };\n'
        'Acquire::Check-Valid-Until "false";\n'
        'Acquire::ForceIPv4 "true";\nAcquire::https::CAInfo "/ca.pem";\n'
    )
    found = configured(tmp_path, text)
    assert {name: value for name, value in found.options.items() if value} == {
        "acquire::forceipv4": "true",
        "acquire::https::cainfo": "/ca.pem",
    }


def test_the_authorities_are_the_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    assert Access().certificates == "/etc/ssl/certs/ca-certificates.crt"
    assert Access({"acquire::https::cainfo": "/ca.pem"}).certificates == "/ca.pem"
    monkeypatch.setenv("SSL_CERT_FILE", "/mine.pem")
    assert Access().certificates == "/mine.pem"


def test_a_broken_configuration_is_reported_in_apts_words(tmp_path: Path) -> None:
    with pytest.raises(InfrastructureError, match="apt-config") as caught:
        configured(tmp_path, "Acquire { http\n")
    assert "50proxy" in (caught.value.found or "")


def test_a_password_is_not_part_of_a_repr() -> None:
    login = Login("m", "u", "secret")
    assert "secret" not in repr(Access({"acquire::http::proxy": "http://u:secret@p/"}, (login,)))


@pytest.mark.parametrize(
    ("url", "without"),
    [
        ("https://u:p/w@h:1/", "https://h:1/"),
        ("http://u:p@w@h/", "http://h/"),
        ("http://token@h/", "http://h/"),
        ("nobody@example.org", "nobody@example.org"),
    ],
)
def test_logins_are_left_out(url: str, without: str) -> None:
    assert access.bare(url) == without
