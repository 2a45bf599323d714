"""Sign kernels and modules for Secure Boot with a machine owner key (MOK).

A signature is made apart from its file and kept, because sbsign's have the time in them.  The same
signature, attached again, gives the same bytes.  Each one is verified before it is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID

from kbuild.core import fs, sandbox
from kbuild.core.errors import LostDependencyError, SigningError, UserError
from kbuild.core.model import Root, Settings
from kbuild.core.run import Arg, run
from kbuild.core.sandbox import Bind

logger = logging.getLogger(__name__)

# The kernel's kept signature, and the certificate, next to packages and releases.
KERNEL, CERTIFICATE = "kernel.sig", "mok.pem"
# A module's signature has the module's name before this.
SUFFIX = ".sig"
# The directory of these among a target's results.
HOME = "signed"
# The names in ``keys_dir`` of a key that is made without a configured place.
_KEY_NAME, _CERTIFICATE_NAME = "mok.key", "mok.pem"

# A certificate is enrolled by hand on each server, so it lives long, and is warned of early.
_LIFETIME_DAYS = 3650
NOTICE = timedelta(days=180)
_LEAST_BITS = 2048  # the firmware and shim know RSA only
# A key for modules only, by this usage: shim refuses a kernel that it signed.
_MODULES_ONLY = "1.3.6.1.4.1.2312.16.1.2"

_TIMEOUT_S = 60
# An HSM, or a signer at the other end of a network, may be slow.
_COMMAND_TIMEOUT_S = 120
# The end of a signed module (scripts/sign-file.c).
_MAGIC = b"~Module signature appended~\n"

# As openssl-req(1) reads it.  The usages are those of the kernel's own keys for modules
# (certs/default_x509.genkey), and codeSigning for the kernel.
_REQUEST = """\
[req]
distinguished_name = name
x509_extensions = mok
prompt = no
string_mask = utf8only
[name]
CN = {name}
[mok]
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = codeSigning
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
"""


class Kind(StrEnum):
    """The kind of a signed file; a signing command gets the word as its first argument."""

    KERNEL = "kernel"
    MODULE = "module"


@dataclass(frozen=True)
class Certificate:
    """A certificate that servers enroll."""

    name: str  # of its subject
    pem: bytes
    der: bytes
    begins: datetime
    expires: datetime

    @property
    def digest(self) -> str:
        """Return the SHA-256 of its DER form, which identifies it."""
        return hashlib.sha256(self.der).hexdigest()

    def __str__(self) -> str:
        """Describe it in a line."""
        return f"{self.name}, expires {self.expires:%Y-%m-%d}, SHA-256 {self.digest}"


# The key and its certificate.


def configured(settings: Settings) -> bool:
    """Return whether kernels and modules are to be signed."""
    return bool(settings.mok_certificate or settings.mok_key or settings.mok_sign_command)


def certificates(settings: Settings) -> tuple[Certificate, ...]:
    """Return the certificates for the servers; the first one is of the key that signs.

    There are none if no key is configured.  Raises SigningError if the file is missing, or if the
    first certificate cannot be used for kernels.
    """
    if not configured(settings):
        return ()
    path = settings.mok_certificate
    if path is None:
        raise SigningError(
            "the key for Secure Boot has no certificate",
            expected="mok_certificate in the configuration",
            found="mok_key or mok_sign_command only",
            hint="./inv keys.make --mok makes a key with its certificate",
        )
    found = read(path)
    _check_usable(path, x509.load_der_x509_certificate(found[0].der))
    return found


def read(path: Path) -> tuple[Certificate, ...]:
    """Return the certificates in a PEM file; raises SigningError if there are none."""
    try:
        return tuple(map(_certificate, x509.load_pem_x509_certificates(path.read_bytes())))
    except (OSError, ValueError) as error:
        raise SigningError(
            f"the certificate for Secure Boot cannot be read: {path}",
            expected="a certificate as PEM",
            found=error.strerror if isinstance(error, OSError) else str(error),
            hint="correct mok_certificate, or make a key with ./inv keys.make --mok",
        ) from error


def _certificate(one: x509.Certificate) -> Certificate:
    return Certificate(
        name=one.subject.rfc4514_string(),
        pem=one.public_bytes(Encoding.PEM),
        der=one.public_bytes(Encoding.DER),
        begins=one.not_valid_before_utc,
        expires=one.not_valid_after_utc,
    )


def _check_usable(path: Path, one: x509.Certificate) -> None:
    public = one.public_key()
    bits = public.key_size if isinstance(public, RSAPublicKey) else 0
    if bits < _LEAST_BITS:
        raise SigningError(
            f"the certificate for Secure Boot has no key that firmware knows: {path}",
            expected=f"RSA with {_LEAST_BITS} bits or more",
            found=f"RSA with {bits} bits" if bits else type(public).__name__,
        )
    try:
        usages = [*one.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value]
    except x509.ExtensionNotFound:
        return  # for any use
    names = [usage.dotted_string for usage in usages]
    if ExtendedKeyUsageOID.CODE_SIGNING not in usages or _MODULES_ONLY in names:
        raise SigningError(
            f"the certificate for Secure Boot is not for kernels: {path}",
            expected=f"the extended key usage codeSigning, and not {_MODULES_ONLY} (modules only)",
            found=", ".join(names),
            hint="./inv keys.make --mok makes one for kernels and modules",
        )


def check_valid(certificate: Certificate, *, now: datetime | None = None) -> None:
    """Raise SigningError if a certificate has expired, or is not valid yet.

    Only new signatures need a valid one: a kept signature is attached after that, too.
    """
    now = now or datetime.now(UTC)
    if not certificate.begins <= now < certificate.expires:
        raise SigningError(
            "the certificate for Secure Boot has expired"
            if now >= certificate.expires
            else "the certificate for Secure Boot is not valid yet",
            expected=f"one that is valid on {now:%Y-%m-%d}",
            found=f"valid from {certificate.begins:%Y-%m-%d} to {certificate.expires:%Y-%m-%d}",
            hint="docs/howto/secure-boot.md says how to change the key",
        )
    if certificate.expires - now < NOTICE:
        logger.warning("the certificate for Secure Boot expires soon: %s", certificate)


def check(settings: Settings) -> tuple[Certificate, ...]:
    """Return :func:`certificates`, after checking that what signs is there and fits.

    Raises SigningError if not, and UserError if there are both a key and a command.
    """
    found = certificates(settings)
    if not found:
        return ()
    key = settings.mok_key
    if key is not None and settings.mok_sign_command:
        raise UserError(
            "there are two ways to sign for Secure Boot",
            expected="mok_key or mok_sign_command in the configuration",
            found="both",
        )
    if settings.mok_sign_command:
        return found
    if key is None:
        raise SigningError(
            "nothing signs for Secure Boot",
            expected="mok_key or mok_sign_command in the configuration",
            found="mok_certificate only",
            hint="./inv keys.make --mok makes a key with its certificate",
        )
    _check_key(key, found[0])
    return found


def _check_key(path: Path, certificate: Certificate) -> None:
    try:
        mode = path.stat().st_mode
        private = load_pem_private_key(path.read_bytes(), None)
    except OSError as error:
        raise SigningError(
            f"the key for Secure Boot cannot be read: {path}",
            found=error.strerror,
            hint="copy it from its backup, or give a mok_sign_command",
        ) from error
    except (ValueError, TypeError) as error:
        raise SigningError(
            f"the key for Secure Boot cannot be used: {path}",
            expected="an RSA key as PEM, without a passphrase",
            found=str(error),
        ) from error
    if mode & 0o077:
        raise SigningError(
            f"the key for Secure Boot is open to other users: {path}",
            expected="mode 600",
            found=f"mode {mode & 0o777:o}",
            hint=f"chmod 600 {shlex.quote(str(path))}, and make a new key if others have read it",
        )
    public = x509.load_der_x509_certificate(certificate.der).public_key()
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    fits = isinstance(private, RSAPrivateKey) and (
        private.public_key().public_bytes(*form) == public.public_bytes(*form)
    )
    if not fits:
        raise SigningError(
            "the key and the certificate for Secure Boot do not fit",
            expected=f"the key of {certificate}",
            found=str(path),
            hint="correct mok_key or mok_certificate",
        )


def make(settings: Settings) -> tuple[Path, Path, Certificate]:
    """Make a key and its certificate, and return their paths and the certificate.

    They are made where the configuration says, or in ``keys_dir``.  The key has no passphrase and
    the mode 600.  Raises UserError if one of the files is there already, or if a command signs.
    """
    if settings.mok_sign_command:
        raise UserError(
            "the key of mok_sign_command is made where that command signs",
            expected="no mok_sign_command in the configuration",
            found=_named(settings.mok_sign_command),
        )
    key, certificate = places(settings)
    _check_absent(key, certificate)
    name = f"cplayground-kernel Secure Boot key ({datetime.now(UTC):%Y})"
    for directory in (key.parent, certificate.parent):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        made, shown = (
            Path(stack.enter_context(tempfile.TemporaryDirectory(dir=one.parent, prefix=".mok.")))
            / one.name
            for one in (key, certificate)
        )
        request = made.with_name("request")
        request.write_text(_REQUEST.format(name=name))
        _openssl(
            *("req", "-new", "-x509", "-nodes", "-sha256", "-newkey", f"rsa:{_LEAST_BITS}"),
            *("-days", str(_LIFETIME_DAYS), "-config", request, "-keyout", made, "-out", shown),
        )
        made.chmod(0o600)
        shown.chmod(0o644)
        fs.sync(made, shown)
        try:
            # Unlike a rename, a link never replaces a file.
            for one, place in ((made, key), (shown, certificate)):
                os.link(one, place)
        except FileExistsError:
            _check_absent(key, certificate)
            raise
        fs.sync(key, certificate)
    return key, certificate, read(certificate)[0]


def places(settings: Settings) -> tuple[Path, Path]:
    """Return the paths of the key and of the certificate that :func:`make` makes."""
    return (
        settings.mok_key or settings.keys / _KEY_NAME,
        settings.mok_certificate or settings.keys / _CERTIFICATE_NAME,
    )


def _check_absent(*paths: Path) -> None:
    if there := [path for path in paths if os.path.lexists(path)]:
        raise UserError(
            "there is a key for Secure Boot already",
            found="\n".join(map(str, there)),
            hint="set mok_key and mok_certificate to other paths for a second one:"
            " docs/howto/secure-boot.md",
        )


# Signatures.


def sign_kernel(settings: Settings, image: Path, kept: Iterable[Path], into: Path) -> Path:
    """Write a kernel with its signature into the directory ``into``, and return its path.

    The signature itself is :data:`KERNEL` there.  ``kept`` are directories that may have it
    already.  The first one that fits is used; otherwise the key or the command makes one.
    Raises SigningError.
    """
    certificate, *_ = check(settings)
    signature, signed = into / KERNEL, into / "vmlinuz"
    with _written(certificate) as pem:
        _signature(settings, Kind.KERNEL, image, kept, signature, pem)
        shutil.copyfile(image, signed)
        _run("sbattach", "--attach", signature, signed)
        if not _ok("sbverify", "--cert", pem, signed):
            raise SigningError(
                f"the signed kernel does not verify: {signed}",
                expected=f"a signature by {certificate}",
            )
    return signed


def sign_module(
    settings: Settings,
    root: Root,
    module: Path,
    kept: Iterable[Path],
    into: Path,
    *,
    scripts: Path,
    name: str = "",
) -> Path:
    """Write a module with its signature into the directory ``into``, and return its path.

    ``name`` is that path below ``into``, if it is not the module's own name.  The signature
    itself lies directly in ``into``.  ``scripts`` has the kernel's sign-file, which runs in
    ``root``.  Otherwise like :func:`sign_kernel`.
    """
    certificate, *_ = check(settings)
    signature, signed = into / (module.name + SUFFIX), into / (name or module.name)
    signed.parent.mkdir(parents=True, exist_ok=True)
    with _written(certificate) as pem:
        _signature(settings, Kind.MODULE, module, kept, signature, pem)
        sandbox.enter(
            root,
            [
                *("/mnt/scripts/sign-file", "-s", f"/mnt/out/{signature.name}"),
                *("sha256", "/mnt/mok.pem", "/mnt/module.ko", f"/mnt/out/{name or module.name}"),
            ],
            binds=[
                Bind(scripts, "/mnt/scripts"),
                Bind(pem, "/mnt/mok.pem"),
                Bind(module, "/mnt/module.ko"),
                Bind(into, "/mnt/out", writable=True),
            ],
            timeout_s=_TIMEOUT_S,
            hint="the kernel's configuration needs CONFIG_MODULE_SIG",
        )
    content, whole = module.read_bytes() + signature.read_bytes(), signed.read_bytes()
    if not (whole.startswith(content) and whole.endswith(_MAGIC)):
        raise SigningError(
            f"sign-file did not append the signature: {signed}", expected="module and signature"
        )
    return signed


def papers(home: Path) -> list[Path]:
    """Return the kept signatures in a directory, and the certificate."""
    return [*sorted(home.glob(f"*{SUFFIX}")), home / CERTIFICATE]


def fits(kind: Kind, file: Path, signature: Path, certificate: Path) -> bool:
    """Return whether a detached signature of a file is by the key of a certificate (PEM)."""
    if kind is Kind.KERNEL:
        return _ok("sbverify", "--cert", certificate, "--detached", signature, file)
    # A signature may have certificates in it, and openssl would take the signer's from there.
    return _ok(
        *("openssl", "cms", "-verify", "-binary", "-noverify", "-nointern", "-inform", "DER"),
        *("-in", signature, "-content", file, "-certfile", certificate, "-out", "/dev/null"),
    )


def _signature(
    settings: Settings, kind: Kind, file: Path, kept: Iterable[Path], into: Path, pem: Path
) -> None:
    """Write the detached signature of a file: a kept one that fits, or a new one."""
    for one in (directory / into.name for directory in kept):
        if one.is_file() and fits(kind, file, one, pem):
            fs.write_atomic(into, one.read_bytes())
            return
    check_valid(certificates(settings)[0])
    with tempfile.TemporaryDirectory(prefix="cplayground-mok-") as name:
        made = Path(name, "signature")
        if settings.mok_sign_command:
            _commanded(settings.mok_sign_command, kind, file, made)
        else:
            assert settings.mok_key is not None  # check() has seen it
            _MAKERS[kind](settings.mok_key, pem, file, made)
        if not made.is_file() or not fits(kind, file, made, pem):
            raise SigningError(
                f"the signature of the {kind} does not verify",
                expected=f"one of {file} by the key of {settings.mok_certificate}",
                found="another signature" if made.is_file() else "no file",
                hint="correct mok_sign_command: docs/reference/signing.md"
                if settings.mok_sign_command
                else None,
            )
        fs.write_atomic(into, made.read_bytes())
    logger.info("signed the %s %s for Secure Boot", kind, file.name)


def _sign_kernel(key: Path, certificate: Path, file: Path, into: Path) -> None:
    _run("sbsign", "--detached", "--key", key, "--cert", certificate, "--output", into, file)


def _sign_module(key: Path, certificate: Path, file: Path, into: Path) -> None:
    # As scripts/sign-file.c does it.
    _openssl(
        *("cms", "-sign", "-binary", "-noattr", "-nocerts", "-md", "sha256", "-outform", "DER"),
        *("-signer", certificate, "-inkey", key, "-in", file, "-out", into),
    )


_MAKERS: dict[Kind, Callable[[Path, Path, Path, Path], None]] = {
    Kind.KERNEL: _sign_kernel,
    Kind.MODULE: _sign_module,
}


def _commanded(command: tuple[str, ...], kind: Kind, file: Path, into: Path) -> None:
    by_hand = f"{_named(command)} {kind} {shlex.quote(str(file))} SIGNATURE"
    hint = f"correct mok_sign_command; to run it by hand: {by_hand}"
    try:
        run(
            [*command, kind, file, into],
            timeout_s=_COMMAND_TIMEOUT_S,
            error=SigningError,
            hint=hint,
            secret=True,
        )
    except LostDependencyError as error:
        raise SigningError(f"mok_sign_command: {error.what}", hint=hint) from error


def _named(command: tuple[str, ...]) -> str:
    """Return the name of a signing command, without its arguments, which may have a secret."""
    return shlex.quote(command[0]) + (" with its arguments" if command[1:] else "")


@contextlib.contextmanager
def _written(certificate: Certificate) -> Iterator[Path]:
    """Yield a file with only this certificate, for programs that take the first one they see."""
    with tempfile.TemporaryDirectory(prefix="cplayground-mok-") as name:
        path = Path(name, CERTIFICATE)
        path.write_bytes(certificate.pem)
        yield path


def _openssl(*arguments: Arg) -> None:
    _run("openssl", *arguments)


def _run(*argv: Arg) -> None:
    run(argv, timeout_s=_TIMEOUT_S, error=SigningError)


def _ok(*argv: Arg) -> bool:
    return run(argv, timeout_s=_TIMEOUT_S, error=SigningError, check=False).returncode == 0
