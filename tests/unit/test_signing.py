"""Keys, signatures by gpg or by a command, and what gpgv says of them."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kbuild.core import fs
from kbuild.core.errors import KbuildError, SigningError, UserError
from kbuild.core.model import Settings
from kbuild.ship import signing
from kbuild.ship.signing import Role
from tests.unit import fake_kernel, signed_archive
from tests.unit.mounts import UNSHARE

RELEASE = b"Origin: x\nSHA256:\n abc 12 main/x\n"
# Our own agents, as opposed to those of other tests.
AGENT = b"gpg-agent\0--homedir\0/tmp/cplayground-gpg-"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return dataclasses.replace(fake_kernel.settings(tmp_path), keys=tmp_path / "keys")


@pytest.fixture
def signed(settings: Settings) -> Settings:
    signing.make_key(settings)
    return settings


def ring(settings: Settings, at: Path) -> Path:
    at.write_bytes(signing.keyring(settings))
    return at


def gpg(
    home: Path, *arguments: str | Path, data: bytes = b"", agent: bool = False
) -> subprocess.CompletedProcess[bytes]:
    options = ["--batch", "--quiet", *([] if agent else ["--no-autostart"])]
    command = ["gpg", "--homedir", home, *options, *arguments]
    return subprocess.run(command, input=data, check=True, capture_output=True)


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Give the agents of this test a variable by which :func:`agents` knows them."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return str(tmp_path)


def agents(temporary: str) -> list[int]:
    """Return the agents that the running test has started; other tests run beside it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            mine = f"TMPDIR={temporary}".encode() in (process / "environ").read_bytes().split(b"\0")
            if mine and AGENT in (process / "cmdline").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue
    return found


def wait_for_agents(temporary: str, *, any_left: bool) -> None:
    deadline = time.monotonic() + 30
    while bool(agents(temporary)) != any_left:
        assert time.monotonic() < deadline
        time.sleep(0.1)


# Keys.


def test_a_key_signs_and_gpgv_names_it(signed: Settings, tmp_path: Path) -> None:
    (key,) = signing.keys(signed)
    keyring = ring(signed, tmp_path / "ring.gpg")
    assert signing.verify(keyring, signing.sign(signed, RELEASE)) == ((key.fingerprint,), RELEASE)
    assert key.expires is not None
    assert timedelta(days=700) < key.expires - key.made < timedelta(days=740)
    assert signed.keys.stat().st_mode & 0o777 == 0o700


def test_signing_writes_nothing_to_the_keys_and_leaves_no_agent(
    signed: Settings, temporary: str
) -> None:
    before = {p: (p.stat().st_mtime_ns, p.is_dir()) for p in signed.keys.rglob("*")}
    signing.sign(signed, RELEASE)
    signing.sign_detached(signed, RELEASE)
    assert {p: (p.stat().st_mtime_ns, p.is_dir()) for p in signed.keys.rglob("*")} == before
    assert not agents(temporary)


def test_keys_on_a_read_only_file_system_sign(signed: Settings, tmp_path: Path) -> None:
    """As in the unit of contrib/systemd: gpg-agent then logs an error when it starts."""
    script = (
        "import dataclasses, sys; from pathlib import Path\n"
        "from tests.unit import fake_kernel; from kbuild.ship import signing\n"
        "top = Path(sys.argv[1])\n"
        "one = dataclasses.replace(fake_kernel.settings(top), keys=top / 'keys')\n"
        "sys.stdout.buffer.write(signing.sign(one, b'x\\n'))\n"
    )
    mounted = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && shift && exec "$@"'
    done = subprocess.run(
        [*UNSHARE, "sh", "-c", mounted, "sh", signed.keys, sys.executable, "-c", script, tmp_path],
        env={**os.environ, "PYTHONPATH": str(signed.project), "PYTHONUTF8": "1"},
        capture_output=True,
        timeout=60,
    )
    assert b"BEGIN PGP SIGNATURE" in done.stdout, done.stderr


def test_a_home_with_a_path_too_long_for_a_socket_signs(settings: Settings) -> None:
    long = dataclasses.replace(settings, keys=settings.keys / ("x" * 150))
    signing.make_key(long)
    assert signing.sign(long, RELEASE)


def test_several_processes_sign_at_once(signed: Settings, temporary: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda _: signing.sign(signed, RELEASE), range(8)))
    assert not agents(temporary)


def test_a_killed_run_leaves_no_agent(signed: Settings, tmp_path: Path, temporary: str) -> None:
    program = tmp_path / "bin/gpg"
    fake_kernel.write(
        program,
        # Only the second call needs an agent.
        f'#!/bin/sh\ncase "$*" in *clearsign*) sleep 60;; esac\nexec {shutil.which("gpg")} "$@"\n',
        mode=0o755,
    )
    script = (
        "import dataclasses, sys; from pathlib import Path\n"
        "from tests.unit import fake_kernel; from kbuild.ship import signing\n"
        "top = Path(sys.argv[1])\n"
        "one = dataclasses.replace(fake_kernel.settings(top), keys=top / 'keys')\n"
        "signing.sign(one, b'x\\n')\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, tmp_path],
        env={
            "PATH": f"{program.parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(signed.project),
            "PYTHONUTF8": "1",
            "TMPDIR": temporary,
        },
    ) as running:
        wait_for_agents(temporary, any_left=True)
        running.kill()
    wait_for_agents(temporary, any_left=False)


def test_two_keys_sign_during_a_rotation_and_either_is_enough(
    signed: Settings, tmp_path: Path
) -> None:
    """A server with the older keyring accepts what is signed, and so does one with the newer."""
    (old,) = signing.keys(signed)
    older = ring(signed, tmp_path / "older.gpg")
    new = signing.rotate(signed)
    inrelease = signing.sign(signed, RELEASE)
    newer = ring(signed, tmp_path / "newer.gpg")
    both = sorted([old.fingerprint, new.fingerprint])
    assert signing.verify(newer, inrelease) == (tuple(both), RELEASE)
    assert signing.verify(older, inrelease) == ((old.fingerprint,), RELEASE)
    assert len(signing.verify_detached(newer, b"\xff", signing.sign_detached(signed, b"\xff"))) == 2


def test_roles_follow_from_the_dates(signed: Settings) -> None:
    def roles(**later: int) -> list[Role]:
        now = datetime.now(UTC) + timedelta(**later)
        return [key.role for key in signing.keys(signed, now=now)]

    assert roles() == [Role.SIGNS]
    signing.rotate(signed)
    assert roles() == roles(days=59) == [Role.ALSO, Role.SIGNS]
    assert roles(days=61) == [Role.RETIRED, Role.SIGNS]
    assert roles(days=731) == [Role.EXPIRED, Role.EXPIRED]


def test_a_rotation_can_be_ended_early(signed: Settings, tmp_path: Path) -> None:
    (old,) = signing.keys(signed)
    before = signing.sign_detached(signed, RELEASE)
    new = signing.rotate(signed)
    assert [key.fingerprint for key in signing.finish(signed)] == [old.fingerprint]
    keyring = ring(signed, tmp_path / "ring.gpg")
    assert signing.verify(keyring, signing.sign(signed, RELEASE)) == ((new.fingerprint,), RELEASE)
    # Evidence that the retired key signed can still be verified.
    with pytest.raises(SigningError):
        signing.verify_detached(keyring, RELEASE, before)
    keyring.write_bytes(signing.keyring(signed, retired=True))
    assert signing.verify_detached(keyring, RELEASE, before) == (old.fingerprint,)


def test_keys_are_never_replaced(signed: Settings) -> None:
    before = fs.sha256_tree(signed.keys)
    for refused in (signing.make_key, signing.finish):
        with pytest.raises(UserError):
            refused(signed)
    assert fs.sha256_tree(signed.keys) == before
    signing.rotate(signed)
    with pytest.raises(UserError, match="under way"):
        signing.rotate(signed)


def test_a_rotation_needs_a_key(settings: Settings) -> None:
    with pytest.raises(UserError, match="no key"):
        signing.rotate(settings)
    assert not settings.keys.exists()


def test_the_keyring_has_the_same_bytes_in_a_restored_home(
    signed: Settings, tmp_path: Path
) -> None:
    """In whatever order the keys are imported."""
    (old,) = signing.keys(signed)
    time.sleep(1.1)  # OpenPGP's times have whole seconds
    new = signing.rotate(signed)
    again = dataclasses.replace(signed, keys=tmp_path / "again", sign_command=("true",))
    again.keys.mkdir(mode=0o700)
    for key in (new, old):
        one = gpg(signed.keys, "--export", key.fingerprint).stdout
        gpg(again.keys, "--import", data=one)
    assert signing.keyring(again) == signing.keyring(signed)


# Keys that must not sign.


def refused(settings: Settings, match: str) -> SigningError:
    for sign in (signing.sign, signing.sign_detached):
        with pytest.raises(SigningError, match=match) as caught:
            sign(settings, RELEASE)
        assert caught.value.exit_status == 42
        assert caught.value.hint
    return caught.value


def test_without_a_key_nothing_is_signed(settings: Settings) -> None:
    error = refused(settings, "not in")
    assert "keys.make" in (error.hint or "")
    assert not settings.keys.exists()


def test_the_end_is_that_of_the_newest_key(signed: Settings, settings: Settings) -> None:
    assert signing.expiry(signed) == signing.keys(signed)[0].expires
    newer = signing.rotate(signed)
    assert signing.expiry(signed) == newer.expires
    with pytest.raises(SigningError, match="no key"):
        signing.expiry(dataclasses.replace(settings, keys=settings.keys / "none"))


def test_an_expired_key_does_not_sign(settings: Settings) -> None:
    expired = signed_archive.key("expired", expired=True)
    error = refused(dataclasses.replace(settings, keys=expired.home), "is expired")
    assert "keys.rotate" in (error.hint or "")


def test_another_fingerprint_does_not_sign(signed: Settings) -> None:
    (key,) = signing.keys(signed)
    error = refused(dataclasses.replace(signed, signing_key="0" * 40), "not in")
    assert key.fingerprint in (error.found or "")
    spaced = " ".join([key.fingerprint.lower()[:20], key.fingerprint[20:]])
    assert signing.sign(dataclasses.replace(signed, signing_key=spaced), RELEASE)


def test_a_retired_key_does_not_sign(signed: Settings) -> None:
    (old,) = signing.keys(signed)
    new = signing.rotate(signed)
    named = dataclasses.replace(signed, signing_key=old.fingerprint)
    assert signing.sign(named, RELEASE)
    signing.finish(signed)
    error = refused(named, "is retired")
    assert new.fingerprint in (error.hint or "")


def test_a_public_key_does_not_sign(signed: Settings) -> None:
    fs.remove_tree(signed.keys / "private-keys-v1.d")
    refused(signed, "secret part")


def test_a_home_open_to_others_does_not_sign(signed: Settings) -> None:
    signed.keys.chmod(0o750)
    error = refused(signed, "open to other users")
    assert "chmod 700" in (error.hint or "")


# A command that signs.


@pytest.fixture
def commanded(settings: Settings, tmp_path: Path) -> Callable[[str], Settings]:
    """Return a function that makes settings whose command is a shell script."""
    key = signed_archive.key()
    settings.keys.mkdir(mode=0o700)
    gpg(settings.keys, "--import", key.keyring)

    def make(body: str) -> Settings:
        def signer(one: signed_archive.Key) -> str:
            return f"gpg --homedir {one.home} --batch --quiet -u {one.fingerprint} --armor"

        script = tmp_path / "sign it"
        own, other = signer(key), signer(signed_archive.key("other"))
        how = "how=${1:---clearsign}"
        text = f"#!/bin/sh\nown='{own}'\nother='{other}'\n{how}\n{body}\n"
        fake_kernel.write(script, text, mode=0o755)
        return dataclasses.replace(settings, sign_command=(str(script),))

    return make


def test_a_command_signs(commanded: Callable[[str], Settings], tmp_path: Path) -> None:
    settings = commanded("exec $own $how")
    keyring = ring(settings, tmp_path / "ring.gpg")
    expected = (signed_archive.key().fingerprint,)
    assert signing.verify(keyring, signing.sign(settings, RELEASE)) == (expected, RELEASE)
    detached = signing.sign_detached(settings, b"\xff\n")
    assert signing.verify_detached(keyring, b"\xff\n", detached) == expected
    with pytest.raises(UserError):
        signing.rotate(settings)


@pytest.mark.parametrize(
    ("body", "match"),
    [
        ("echo 'no card' >&2; exit 3", "exit status 3"),
        ("sleep 60", "did not finish"),
        ("true", "accept"),
        ("cat", "accept"),
        ("exec $other $how", "no good signature"),
        ("sed s/abc/xyz/ | $own $how", "accept"),
        ("$own $how; echo more", "accept"),
    ],
    ids=["fails", "hangs", "is-silent", "copies", "other-key", "other-text", "says-more"],
)
def test_a_command_that_does_not_sign_is_refused(
    commanded: Callable[[str], Settings], body: str, match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signing, "_COMMAND_TIMEOUT_S", 1)
    settings = commanded(body)
    for sign in (signing.sign, signing.sign_detached):
        if "echo more" in body and sign is signing.sign_detached:
            continue  # gpg ignores text after an armored signature
        with pytest.raises(SigningError, match=match) as caught:
            sign(settings, RELEASE)
        assert "sign it" in (caught.value.hint or "")


def test_a_command_that_does_not_exist_is_refused(commanded: Callable[[str], Settings]) -> None:
    settings = dataclasses.replace(commanded(""), sign_command=("/nonexistent/signer",))
    with pytest.raises(SigningError, match="/nonexistent/signer"):
        signing.sign(settings, RELEASE)


@pytest.mark.parametrize(
    "body",
    [
        "exit 3",
        "sleep 60",
        "cat",
        "exec $other --clearsign",
        "echo 'No space left on device'; exit 1",
    ],
    ids=["fails", "hangs", "copies", "other-key", "full"],
)
def test_no_message_has_an_argument_of_the_command(
    commanded: Callable[[str], Settings],
    body: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(signing, "_COMMAND_TIMEOUT_S", 1)
    settings = commanded(body)
    (program,) = settings.sign_command
    settings = dataclasses.replace(
        settings, sign_command=(program, "--magic-word", "--", "/s3cret")
    )
    said = []
    for act in (signing.sign, signing.sign_detached):
        with pytest.raises(KbuildError) as caught:
            act(settings, RELEASE)
        assert "sign it" in str(caught.value)
        said += traceback.format_exception(caught.value)
    with pytest.raises(UserError, match="sign it") as refused:
        signing.rotate(settings)
    for text in (*said, str(refused.value), caplog.text, repr(settings)):
        assert "s3cret" not in text
        assert "--magic-word" not in text
    assert "sign it" in caplog.text


def test_each_key_of_a_rotation_must_have_signed(
    commanded: Callable[[str], Settings],
) -> None:
    """A server that has only the other key would refuse the archive."""
    settings = commanded("exec $own $how")
    assert signing.sign(settings, RELEASE)
    gpg(settings.keys, "--import", signed_archive.key("other").keyring)
    error = refused(settings, "a key did not sign")
    assert signed_archive.key("other").fingerprint in (error.expected or "")


# Texts that gpgv accepts.


def test_what_is_not_signed_as_given_is_refused(signed: Settings, tmp_path: Path) -> None:
    keyring = ring(signed, tmp_path / "ring.gpg")
    good = signing.sign(signed, RELEASE)
    other = signed_archive.key("other").clearsign(RELEASE.decode())
    for bad in (
        good.replace(b"abc", b"xyz"),
        RELEASE,
        b"",
        other,
        b"Origin: y\n" + good,
        good + b"more\n",
        good + good,
        good + other,
        good[:-40],
    ):
        with pytest.raises(SigningError):
            signing.verify(keyring, bad)
    assert signing.verify(keyring, good)


def test_a_key_that_has_expired_counts_for_evidence_only(tmp_path: Path) -> None:
    expired = signed_archive.key("expired", expired=True)
    with pytest.raises(SigningError):
        signing.verify(expired.keyring, expired.clearsign(RELEASE.decode()))
    sign = [*expired.clock, "--armor", "--detach-sign"]
    detached = gpg(expired.home, *sign, agent=True, data=RELEASE).stdout
    assert signing.verify_detached(expired.keyring, RELEASE, detached) == (expired.fingerprint,)
    with pytest.raises(SigningError):
        signing.verify_detached(expired.keyring, RELEASE + b"\n", detached)


# A key for one build.


def test_a_key_for_one_build_leaves_its_public_part_only(
    settings: Settings, tmp_path: Path
) -> None:
    public = tmp_path / "public.gpg"

    def secrets() -> list[Path]:
        shown = gpg(tmp_path, "--with-colons", "--with-keygrip", "--show-keys", public).stdout
        (grip,) = re.findall(r"^grp:+(\w+):", shown.decode(), re.MULTILINE)
        return list(Path("/tmp").glob(f"cplayground-keys-*/private-keys-v1.d/{grip}.key"))

    with signing.throw_away(settings, public) as sign:
        inrelease = sign(RELEASE)
        assert secrets()
    assert not secrets()
    assert signing.verify(public, inrelease)[1] == RELEASE
    assert not settings.keys.exists()
    assert b"PRIVATE" not in public.read_bytes()
