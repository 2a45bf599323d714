"""Keep the archive's keys, sign with them or by a command, and verify with gpgv.

GnuPG's home is ``Settings.keys``.  Only :func:`make_key`, :func:`rotate` and :func:`finish` write
to it.  gpg works in a scratch home with links to the keys, so each call has an agent of its own.
Two processes do not end each other's agent, and the path of the agent's socket is short.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shlex
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path

from kbuild.core import fs
from kbuild.core.errors import LostDependencyError, SigningError, UserError
from kbuild.core.model import Settings
from kbuild.core.run import Arg, Completed, run

logger = logging.getLogger(__name__)

# For so long after a key was made, the one before it signs too.  Servers get the new key with
# their upgrades in that time.
ROTATION = timedelta(days=60)
# A warning comes so long before the key that signs expires.
NOTICE = timedelta(days=90)
_LIFETIME = "2y"

_TIMEOUT_S = 60
# An HSM, or a signer at the other end of a network, may be slow.
_COMMAND_TIMEOUT_S = 120
_RING = "pubring.kbx"
_SHELVES = ("private-keys-v1.d", "openpgp-revocs.d")
_FINISHED = "retired"  # fingerprints of keys that a user retired, one a line
_BEGIN, _END = b"-----BEGIN PGP SIGNED MESSAGE-----\n", b"-----END PGP SIGNATURE-----\n"


class Role(StrEnum):
    """The part of a key in the signing of the archive."""

    SIGNS = "signs"
    ALSO = "also signs"  # the older one, during a rotation
    RETIRED = "retired"
    EXPIRED = "expired"


@dataclass(frozen=True)
class Key:
    """An OpenPGP key of the archive."""

    fingerprint: str  # of the primary key, 40 hex digits
    name: str
    made: datetime
    expires: datetime | None
    secret: bool  # its secret part is here
    role: Role = Role.SIGNS
    until: datetime | None = None  # end of the rotation, for a key that also signs

    def __str__(self) -> str:
        """Describe it in a line."""
        role = f"{self.role} until {self.until:%Y-%m-%d}" if self.until else self.role
        end = f"expires {self.expires:%Y-%m-%d}" if self.expires else "does not expire"
        where = "" if self.secret else ", its secret part is not here"
        return f"{self.fingerprint} {role}, made {self.made:%Y-%m-%d}, {end}{where}"


# The keys.


def keys(settings: Settings, *, now: datetime | None = None) -> tuple[Key, ...]:
    """Return the keys with the roles that they have at ``now``, the oldest first.

    Raises SigningError if other users may read the secret keys.
    """
    home = settings.keys
    if not (home / _RING).is_file():
        return ()
    if (mode := home.stat().st_mode) & 0o077:
        raise SigningError(
            f"{home} is open to other users",
            expected="mode 700, because it holds secret keys",
            found=f"mode {mode & 0o777:o}",
            hint=f"chmod 700 {shlex.quote(str(home))}, and make a new key if others have read it",
        )
    listing = _public(home, "--with-colons", "--with-keygrip", "--list-keys").stdout
    # Keys of the same second stay in the order in which they came.
    found = sorted(_parse(home, listing), key=lambda key: key.made)
    finished = home / _FINISHED
    retired = finished.read_text().split() if finished.exists() else []
    return _with_roles(found, retired, now or datetime.now(UTC))


def _parse(home: Path, listing: str) -> Iterator[Key]:
    """Yield the keys of gpg's listing (GnuPG's doc/DETAILS); revoked ones are left out."""
    for block in listing.split("\npub:")[1:] if "\npub:" in listing else []:
        pub, *rest = (line.split(":") for line in ("pub:" + block).splitlines())
        if pub[1] == "r":
            continue
        of = {kind: [line[9] for line in rest if line[0] == kind] for kind in ("fpr", "uid", "grp")}
        yield Key(
            fingerprint=of["fpr"][0],
            name=(of["uid"] or [""])[0],
            made=datetime.fromtimestamp(int(pub[5]), UTC),
            expires=datetime.fromtimestamp(int(pub[6]), UTC) if pub[6] else None,
            # A primary key may be kept elsewhere, with a subkey here that signs.
            secret=any((home / _SHELVES[0] / f"{grip}.key").exists() for grip in of["grp"]),
        )


def _with_roles(found: Sequence[Key], retired: Sequence[str], now: datetime) -> tuple[Key, ...]:
    def role(key: Key, newer: Key | None) -> Key:
        if key.expires is not None and key.expires <= now:
            return dataclasses.replace(key, role=Role.EXPIRED)
        until = newer.made + ROTATION if newer is not None else None
        if key.fingerprint in retired or (until is not None and until <= now):
            return dataclasses.replace(key, role=Role.RETIRED)
        return dataclasses.replace(key, role=Role.ALSO if until else Role.SIGNS, until=until)

    return tuple(role(*pair) for pair in zip(found, [*found[1:], None], strict=True))


def signers(settings: Settings) -> tuple[Key, ...]:
    """Return the keys that sign now, the oldest first: two during a rotation.

    Raises SigningError if there is none, if ``signing_key`` is not one of them, or if a secret
    key is missing and no command signs.
    """
    found = keys(settings)
    active = tuple(key for key in found if key.role in (Role.SIGNS, Role.ALSO))
    wanted = settings.signing_key.replace(" ", "").removeprefix("0x").upper()
    named = [key for key in found if key.fingerprint == wanted] if wanted else found[-1:]
    if not named:
        raise SigningError(
            f"the archive's key is not in {settings.keys}",
            expected=f"signing_key {wanted}" if wanted else "a key",
            found="\n".join(map(str, found)) or "no key",
            hint="set keys_dir and signing_key in the configuration, or make a key with "
            "./inv keys.make",
        )
    if named[-1] not in active:
        raise SigningError(
            f"the key {named[-1].fingerprint} is {named[-1].role}",
            expected="a key that signs",
            found="\n".join(map(str, found)),
            hint="make a new one with ./inv keys.rotate"
            if named[-1] == found[-1]
            else f"set signing_key to {found[-1].fingerprint} in the configuration",
        )
    for key in active:
        if not key.secret and not settings.sign_command:
            raise SigningError(
                f"the secret part of the key {key.fingerprint} is missing",
                expected=f"it in {settings.keys}, or sign_command in the configuration",
                found="its public part only",
                hint="restore keys_dir from its backup; or set sign_command",
            )
    last = active[-1]
    if last.expires is not None and last.expires - datetime.now(UTC) < NOTICE:
        logger.warning("the key that signs expires soon: ./inv keys.rotate; %s", last)
    return active


def expiry(settings: Settings) -> datetime | None:
    """Return when the newest key expires, or has expired; None if it never does.

    Raises SigningError without a key, and as :func:`keys` does.
    """
    found = keys(settings)
    if not found:
        raise SigningError(f"there is no key in {settings.keys}")
    active = [key for key in found if key.role in (Role.SIGNS, Role.ALSO)]
    return (active or found)[-1].expires


def keyring(settings: Settings, *, armor: bool = False, retired: bool = False) -> bytes:
    """Return the public keys that servers must know now; ``retired`` adds the former ones.

    The same keys give the same bytes.  Raises SigningError as :func:`signers` does.
    """
    return _exported(settings, keys(settings) if retired else signers(settings), armor=armor)


def _exported(settings: Settings, chosen: Iterable[Key], *, armor: bool = False) -> bytes:
    options = [*(["--armor"] if armor else []), "--export-options", "export-minimal"]
    with tempfile.TemporaryDirectory(prefix="cplayground-gpg-") as name:
        parts = []
        # One by one: the order in gpg's own keyring is the order in which keys came.
        for key in chosen:
            part = Path(name, key.fingerprint)
            _public(settings.keys, *options, "--output", part, "--export", key.fingerprint)
            parts.append(part.read_bytes())
        return b"".join(parts)


def fingerprints(keyring: bytes) -> frozenset[str]:
    """Return the fingerprints of the primary keys in a keyring; raises SigningError."""
    with tempfile.TemporaryDirectory(prefix="cplayground-gpg-") as name:
        path = Path(name, "keyring.gpg")
        path.write_bytes(keyring)
        listing = _public(Path(name), "--with-colons", "--show-keys", path).stdout
        return frozenset(key.fingerprint for key in _parse(Path(name), f"\n{listing}"))


def check_continues(settings: Settings, keyring: bytes) -> None:
    """Raise SigningError if servers that know ``keyring`` could not verify the next signatures.

    Keys that signed before, and that were retired or have expired since, may be all that servers
    know: the administrator has ended them.  Without any key this says nothing.
    """
    every, known = keys(settings), fingerprints(keyring)
    mine = {key.fingerprint for key in every}
    if every and known.isdisjoint(mine):
        raise SigningError(
            "servers do not know the key that would sign the archive",
            expected="a key of the published keyring package:\n" + "\n".join(sorted(known)),
            found="\n".join([f"in {settings.keys}", *map(str, every)]),
            hint="set keys_dir to the directory with that key, or restore it from its backup;"
            " './inv keys.rotate' replaces a key",
        )
    signing = {key.fingerprint for key in every if key.role in (Role.SIGNS, Role.ALSO)}
    if signing and known.isdisjoint(signing):
        logger.warning("servers know ended keys only: they need the keyring package by hand")


def make_key(settings: Settings, *, lifetime: str = _LIFETIME) -> Key:
    """Make the archive's first key, and return it.

    Raises UserError if there is a key, or if a command signs, which has keys of its own.
    """
    _check_own(settings)
    settings.keys.mkdir(mode=0o700, parents=True, exist_ok=True)
    with fs.lock(settings.keys / "lock"):
        if found := keys(settings):
            raise UserError(
                f"{settings.keys} already has a key",
                found="\n".join(map(str, found)),
                hint="./inv keys.rotate adds one",
            )
        return _generate(settings, lifetime)


def rotate(settings: Settings) -> Key:
    """Make a new key, which signs together with the one before for :data:`ROTATION`.

    Raises UserError if there is no key, if two already sign, or if a command signs.
    """
    _check_own(settings)
    found = keys(settings)
    if not found:
        raise UserError(f"{settings.keys} has no key to rotate", hint="./inv keys.make makes one")
    with fs.lock(settings.keys / "lock"):
        _check_single(keys(settings))
        made = _generate(settings, _LIFETIME)
    if settings.signing_key:
        logger.warning(
            "set signing_key to %s in the configuration within %d days",
            made.fingerprint,
            ROTATION.days,
        )
    return made


def finish(settings: Settings) -> tuple[Key, ...]:
    """End a rotation now: retire the older keys, and return them.  Their files stay.

    Raises UserError if no rotation is under way.
    """
    also = [key for key in keys(settings) if key.role is Role.ALSO]
    if not also:
        raise UserError("no rotation is under way", hint="./inv keys.list shows the keys")
    with fs.lock(settings.keys / "lock"):
        path = settings.keys / _FINISHED
        known = path.read_text() if path.exists() else ""
        names = "".join(f"{key.fingerprint}\n" for key in also)
        fs.write_atomic(path, known + names, mode=0o600)
    return tuple(also)


def _check_own(settings: Settings) -> None:
    if settings.sign_command:
        raise UserError(
            "the keys of sign_command are made where that command signs",
            expected="no sign_command in the configuration",
            found=_named(settings.sign_command),
            hint=f"import the public key: gpg --homedir {shlex.quote(str(settings.keys))} --import",
        )


def _check_single(found: Sequence[Key]) -> None:
    if two := [key for key in found if key.role is Role.ALSO]:
        raise UserError(
            "a rotation is under way",
            found="\n".join(map(str, [*two, found[-1]])),
            hint="wait for its end, or end it with ./inv keys.rotate --finish",
        )


def _generate(settings: Settings, lifetime: str) -> Key:
    known = {key.fingerprint for key in keys(settings)}
    for shelf in _SHELVES:
        (settings.keys / shelf).mkdir(mode=0o700, exist_ok=True)
    name = f"cplayground-kernel archive signing key ({datetime.now(UTC):%Y})"
    _secret(
        settings.keys,
        *("--pinentry-mode", "loopback", "--passphrase", "", "--yes"),
        *("--quick-generate-key", name, "ed25519", "sign", lifetime),
    )
    fs.sync(settings.keys)
    (made,) = (key for key in keys(settings) if key.fingerprint not in known)
    return made


# gpg.


def _public(home: Path, *arguments: Arg) -> Completed:
    """Run gpg where no secret key is needed: without an agent, and without writing to ``home``."""
    with tempfile.TemporaryDirectory(prefix="cplayground-gpg-") as scratch:
        return run(
            [*_gpg(Path(scratch), home), *arguments], timeout_s=_TIMEOUT_S, error=SigningError
        )


def _secret(home: Path, *arguments: Arg, data: bytes | None = None) -> Completed:
    """Run gpg with an agent of its own, which has ended when this returns.

    An agent that starts gpg also ends after it, so a killed run leaves none behind.  It would keep
    our pipes if it logged to them, as it does of keys that it cannot write, and wait for us.
    """
    # The path of a socket has at most 107 bytes (unix(7)), so TMPDIR is no place for it.
    with tempfile.TemporaryDirectory(prefix="cplayground-gpg-", dir="/tmp") as name:
        scratch = Path(name)
        for shelf in _SHELVES:
            (scratch / shelf).symlink_to(home.resolve() / shelf)
        try:
            return run(
                [
                    *("gpg-agent", "--homedir", scratch, "--log-file", scratch / "agent.log"),
                    *("--quiet", "--daemon", "--"),
                    *_gpg(scratch, home),
                    *arguments,
                ],
                data=data,
                timeout_s=_TIMEOUT_S,
                error=SigningError,
                hint=f"look at the keys: gpg --homedir {shlex.quote(str(home))} --list-secret-keys",
            )
        finally:
            # gpg has a directory for sockets in /run/user, if that exists.
            for end in (["--kill", "all"], ["--remove-socketdir"]):
                run(["gpgconf", "--homedir", scratch, *end], timeout_s=_TIMEOUT_S, check=False)


def _gpg(scratch: Path, home: Path) -> list[Arg]:
    return [
        *("gpg", "--homedir", scratch, "--no-options", "--batch", "--quiet", "--no-autostart"),
        *("--no-default-keyring", "--keyring", home.resolve() / _RING),
        *("--trust-model", "always", "--no-auto-check-trustdb", "--pinentry-mode", "error"),
    ]


# Signatures.


def sign(settings: Settings, release: bytes) -> bytes:
    """Return the InRelease for a Release: signed, and verified with the keyring that we ship.

    ``settings.sign_command`` signs, or gpg.  Raises SigningError if no key can sign, or if the
    command fails or takes too long.  Its result must be ``release``, signed by each of
    :func:`signers`; otherwise SigningError is raised too.
    """
    return _signed(settings, release, "--clearsign", detached=False)


def sign_detached(settings: Settings, data: bytes) -> bytes:
    """Return an armored signature of ``data``; otherwise like :func:`sign`.

    ``settings.sign_command`` gets the argument ``--detach-sign`` for it.
    """
    return _signed(settings, data, "--armor", "--detach-sign", detached=True)


def _signed(settings: Settings, data: bytes, *how: str, detached: bool) -> bytes:
    chosen = signers(settings)
    users = [word for key in chosen for word in ("--local-user", key.fingerprint)]
    by_hand = f"{shlex.join(['gpg', '--homedir', str(settings.keys), *users, *how])} < Release"
    if settings.sign_command:
        command = [*settings.sign_command, *(["--detach-sign"] if detached else [])]
        by_hand = f"{_named(command)} < Release"
        made = _commanded(command, data)
    else:
        made = _secret(settings.keys, *users, *how, data=data).stdout.encode()
    with tempfile.TemporaryDirectory(prefix="cplayground-gpg-") as name:
        ring = Path(name, "keyring.gpg")
        ring.write_bytes(_exported(settings, chosen))
        try:
            if detached:
                found = verify_detached(ring, data, made)
            else:
                found, text = verify(ring, made)
                if text != data:
                    raise SigningError("what was signed is another text", found=_head(text))
            if missing := {key.fingerprint for key in chosen} - set(found):
                raise SigningError(
                    "a key did not sign",
                    expected="\n".join(sorted(missing)),
                    found="\n".join(found),
                )
        except SigningError as error:
            raise SigningError(
                f"the signing gave nothing that servers would accept: {error.what}",
                expected=error.expected
                or f"{'a signature' if detached else 'an InRelease'} by "
                + " and ".join(key.fingerprint for key in chosen),
                found=error.found,
                hint=f"run it by hand: {by_hand}",
            ) from error
    return made


def _named(command: Sequence[str]) -> str:
    """Return the name of a signing command, without its arguments, which may have a secret."""
    return shlex.quote(command[0]) + (" with its arguments" if command[1:] else "")


def _commanded(argv: Sequence[str], data: bytes) -> bytes:
    hint = f"correct sign_command; to run it by hand: {_named(argv)} < Release"
    try:
        done = run(
            argv,
            data=data,
            timeout_s=_COMMAND_TIMEOUT_S,
            error=SigningError,
            hint=hint,
            secret=True,
        )
    except LostDependencyError as error:
        raise SigningError(f"sign_command: {error.what}", hint=hint) from error
    return done.stdout.encode()


def _head(text: bytes) -> str:
    return "\n".join(text.decode(errors="replace").splitlines()[:5])


def verify(keyring: Path, inrelease: bytes) -> tuple[tuple[str, ...], bytes]:
    """Return the fingerprints of the keys that signed an InRelease, sorted, and the signed text.

    Raises SigningError unless it is one signed text with a good signature by a key of
    ``keyring``.  Signatures by unknown and expired keys do not count; a bad one is an error.
    """
    whole = inrelease.startswith(_BEGIN) and inrelease.endswith(_END)
    # gpgv ignores text before, after and between signed texts; apt refuses it.
    if not whole or (inrelease.count(b"\n" + _BEGIN), inrelease.count(_END)) != (0, 1):
        raise SigningError(
            "the InRelease is not one signed text",
            expected=f"{_BEGIN.decode()}…\n{_END.decode()}",
            found=_head(inrelease) or "nothing",
        )
    with tempfile.TemporaryDirectory(prefix="cplayground-gpgv-") as name:
        path, text = Path(name, "InRelease"), Path(name, "text")
        path.write_bytes(inrelease)
        found = _gpgv(Path(name), keyring, "--output", text, path)
        return found, text.read_bytes()


def verify_detached(keyring: Path, data: bytes, signature: bytes) -> tuple[str, ...]:
    """Return the fingerprints of the keys that signed ``data``, sorted.

    A signature counts after its key has expired too, because evidence outlives keys.  Raises
    SigningError without a good signature by a key of ``keyring``, or with a bad one.
    """
    with tempfile.TemporaryDirectory(prefix="cplayground-gpgv-") as name:
        path, signed = Path(name, "signature"), Path(name, "data")
        path.write_bytes(signature)
        signed.write_bytes(data)
        return _gpgv(Path(name), keyring, path, signed, late=True)


def _gpgv(scratch: Path, keyring: Path, *arguments: Arg, late: bool = False) -> tuple[str, ...]:
    """Return the keys of the good signatures; positive evidence is GOODSIG, then VALIDSIG."""
    done = run(
        [
            *("gpgv", "--homedir", scratch, "--keyring", keyring.resolve()),
            *("--status-fd", "1", *arguments),
        ],
        timeout_s=_TIMEOUT_S,
        check=False,
        error=SigningError,
    )
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("[GNUPG:] ")]
    counting = ("GOODSIG", "EXPKEYSIG") if late else ("GOODSIG",)
    verdict, found = "", set()
    for line in lines:
        if line[1].endswith("SIG") and line[1] != "VALIDSIG":
            verdict = line[1]
        elif line[1] == "VALIDSIG" and verdict in counting:
            found.add(line[-1])  # the fingerprint of the primary key
    if not found or any(line[1] == "BADSIG" for line in lines):
        raise SigningError(
            "there is no good signature by a known key",
            expected=f"one by a key in {keyring}, and none that is bad",
            found=done.stderr.strip() or "no signature",
        )
    return tuple(sorted(found))


# A key for one build.


@contextlib.contextmanager
def throw_away(settings: Settings, into: Path) -> Iterator[Callable[[bytes], bytes]]:
    """Yield a function like :func:`sign` with a new key of its own.

    The public key is written to ``into``.  The secret key is removed when the block ends.
    """
    with tempfile.TemporaryDirectory(prefix="cplayground-keys-", dir="/tmp") as name:
        own = dataclasses.replace(settings, keys=Path(name), signing_key="", sign_command=())
        make_key(own, lifetime="never")
        fs.write_atomic(into, keyring(own))
        yield lambda release: sign(own, release)
