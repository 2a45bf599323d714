"""The key for Secure Boot: how it is made, what it signs, and what is refused."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
import subprocess
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from kbuild.core.errors import SigningError, UserError
from kbuild.core.model import Root, Settings
from kbuild.ship import mok
from kbuild.ship.mok import Kind
from tests.unit import fake_kernel, secure_boot
from tests.unit.command_line import Here, here

__all__ = ["here"]

SIGNATURE = "cplayground.ko.sig"


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a key, which takes its time to make."""
    home = tmp_path_factory.mktemp("known")
    secure_boot.with_key(fake_kernel.settings(home), home / "mok")
    return home / "mok"


@pytest.fixture
def settings(tmp_path: Path, known: Path) -> Settings:
    home = shutil.copytree(known, tmp_path / "mok")
    own = fake_kernel.settings(tmp_path)
    return dataclasses.replace(own, mok_key=home / "key", mok_certificate=home / "certificate")


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    return secure_boot.efi(tmp_path / "bzImage")


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    secure_boot.fake_sign_file(monkeypatch)
    return fake_kernel.write(tmp_path / "cplayground.ko", "a module\n" * 100)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def sign_module(settings: Settings, module: Path, kept: list[Path], into: Path) -> Path:
    root = Root("bookworm", Path("/nowhere"), "")
    return mok.sign_module(settings, root, module, kept, into, scripts=Path("/nowhere"))


def request(home: Path, *words: str, usage: str = "codeSigning") -> None:
    """Make another key and its certificate in ``home``."""
    config = fake_kernel.write(
        home / "config", f"[req]\ndistinguished_name=n\n[n]\n[x]\nextendedKeyUsage={usage}\n"
    )
    argv: list[str | Path] = [
        "openssl",
        "req",
        "-x509",
        "-nodes",
        "-config",
        config,
        "-extensions",
        "x",
    ]
    argv += ["-subj", "/CN=other", "-days", "30", "-keyout", home / "key"]
    argv += ["-out", home / "certificate", *words]
    subprocess.run(argv, check=True, capture_output=True)


def expire(settings: Settings) -> None:
    """Give the key a certificate with the same names, number and usages that ended yesterday."""
    assert settings.mok_key is not None and settings.mok_certificate is not None
    old = x509.load_pem_x509_certificate(settings.mok_certificate.read_bytes())
    private = load_pem_private_key(settings.mok_key.read_bytes(), None)
    assert isinstance(private, RSAPrivateKey)
    ended = datetime.now(UTC) - timedelta(days=1)
    made = x509.CertificateBuilder(
        old.issuer, old.subject, old.public_key(), old.serial_number,
        ended - timedelta(days=9), ended, [*old.extensions],
    ).sign(private, SHA256())  # fmt: skip
    settings.mok_certificate.write_bytes(made.public_bytes(Encoding.PEM))


# The key.


def test_a_key_is_for_kernels_and_modules_and_only_its_owner_reads_it(settings: Settings) -> None:
    assert settings.mok_key is not None and settings.mok_certificate is not None
    assert settings.mok_key.stat().st_mode & 0o777 == 0o600
    (certificate,) = mok.check(settings)
    made = x509.load_der_x509_certificate(certificate.der)
    usages = made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usages) == [ExtendedKeyUsageOID.CODE_SIGNING]
    assert not made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert certificate.expires - certificate.begins > timedelta(days=3600)


@pytest.mark.parametrize("lost", ["key", "certificate", ""])
def test_a_key_is_never_overwritten(settings: Settings, lost: str) -> None:
    home = settings.keys if settings.mok_key is None else settings.mok_key.parent
    if lost:
        (home / lost).unlink()
    before = {path.name: path.read_bytes() for path in home.iterdir()}
    with pytest.raises(UserError, match="there is a key for Secure Boot already"):
        mok.make(settings)
    assert {path.name: path.read_bytes() for path in home.iterdir()} == before


def test_the_task_makes_a_key_only_when_it_is_asked_to(here: Here, tmp_path: Path) -> None:
    home = tmp_path / "data/cplayground-kernel/keys"
    assert here("--dry", "keys.make", "--mok")[0] == 0
    assert not home.exists()
    status, said, _ = here("keys.make", "--mok")
    assert status == 0
    assert f"mok_key: {home}/mok.key\nmok_certificate: {home}/mok.pem\n" in said
    assert sorted(path.name for path in home.iterdir()) == ["mok.key", "mok.pem"]
    assert here("keys.make", "--mok")[0] == 2
    # It is not the archive's, which lies next to it.
    assert here("keys.make")[0] == 0
    assert sorted(path.name for path in home.glob("mok*")) == ["mok.key", "mok.pem"]


def test_without_a_key_nothing_is_signed(tmp_path: Path) -> None:
    settings = fake_kernel.settings(tmp_path)
    assert not mok.configured(settings)
    assert mok.check(settings) == mok.certificates(settings) == ()


# Files and keys that are refused.


def test_a_missing_key_or_certificate_is_told(settings: Settings) -> None:
    for change, match in (
        ({"mok_key": Path("/nowhere/key")}, "cannot be read: /nowhere/key"),
        ({"mok_certificate": Path("/nowhere/x")}, "cannot be read: /nowhere/x"),
        ({"mok_key": None}, "nothing signs"),
        ({"mok_certificate": None}, "no certificate"),
        ({"mok_certificate": settings.mok_key}, "cannot be read"),
        ({"mok_key": settings.mok_certificate}, "cannot be used"),
    ):
        with pytest.raises(SigningError, match=match):
            mok.check(dataclasses.replace(settings, **change))


def test_a_key_that_others_may_read_is_refused(settings: Settings) -> None:
    assert settings.mok_key is not None
    settings.mok_key.chmod(0o640)
    with pytest.raises(SigningError, match="open to other users"):
        mok.check(settings)


def test_a_key_that_does_not_fit_is_refused(settings: Settings, tmp_path: Path) -> None:
    request(tmp_path / "other", "-newkey", "rsa:2048")
    with pytest.raises(SigningError, match="do not fit"):
        mok.check(dataclasses.replace(settings, mok_key=tmp_path / "other/key"))


@pytest.mark.parametrize(
    ("words", "usage", "match"),
    [
        (("-newkey", "rsa:1024"), "codeSigning", "no key that firmware knows"),
        (
            ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            "codeSigning",
            "no key that firmware knows",
        ),
        (("-newkey", "rsa:2048"), "codeSigning,1.3.6.1.4.1.2312.16.1.2", "not for kernels"),
        (("-newkey", "rsa:2048"), "serverAuth", "not for kernels"),
    ],
)
def test_a_certificate_that_shim_would_refuse_is_refused(
    settings: Settings, tmp_path: Path, words: tuple[str, ...], usage: str, match: str
) -> None:
    home = tmp_path / "other"
    request(home, *words, usage=usage)
    own = dataclasses.replace(settings, mok_key=home / "key", mok_certificate=home / "certificate")
    with pytest.raises(SigningError, match=match):
        mok.check(own)


def test_an_expired_certificate_signs_nothing_new(
    settings: Settings, tmp_path: Path, kernel: Path, out: Path
) -> None:
    expire(settings)
    assert settings.mok_key is not None and settings.mok_certificate is not None
    mok._sign_kernel(settings.mok_key, settings.mok_certificate, kernel, out / mok.KERNEL)
    (certificate,) = mok.check(settings)
    with pytest.raises(SigningError, match="has expired"):
        mok.check_valid(certificate)
    with pytest.raises(SigningError, match="has expired"):
        mok.sign_kernel(settings, kernel, [], tmp_path)
    # A signature that was made in time stays good.
    mok.sign_kernel(settings, kernel, [out], tmp_path)
    assert (tmp_path / mok.KERNEL).read_bytes() == (out / mok.KERNEL).read_bytes()


def test_two_ways_to_sign_are_refused(settings: Settings) -> None:
    with pytest.raises(UserError, match="two ways"):
        mok.check(dataclasses.replace(settings, mok_sign_command=("true",)))


# Signatures.


def test_a_kernel_is_signed_and_a_kept_signature_gives_the_same_bytes(
    settings: Settings, kernel: Path, out: Path, tmp_path: Path
) -> None:
    assert settings.mok_certificate is not None
    before = kernel.read_bytes()
    signed = mok.sign_kernel(settings, kernel, [], out)
    verify = ("sbverify", "--cert", settings.mok_certificate)
    assert subprocess.run([*verify, signed], check=False, capture_output=True).returncode == 0
    assert subprocess.run([*verify, kernel], check=False, capture_output=True).returncode != 0
    assert kernel.read_bytes() == before
    time.sleep(1.1)  # sbsign writes the time, in seconds
    again, other = tmp_path / "again", tmp_path / "other"
    for place, kept in ((again, [tmp_path / "none", out]), (other, [])):
        place.mkdir()
        mok.sign_kernel(settings, kernel, kept, place)
    assert (again / "vmlinuz").read_bytes() == signed.read_bytes()
    assert (other / "vmlinuz").read_bytes() != signed.read_bytes()


def test_a_signature_of_another_kernel_or_key_is_not_used(
    settings: Settings, kernel: Path, out: Path, tmp_path: Path
) -> None:
    mok.sign_kernel(settings, secure_boot.efi(tmp_path / "other", 2), [], out)
    (tmp_path / "foreign").mkdir()
    fake_kernel.write(tmp_path / "foreign" / mok.KERNEL, "no signature")
    stranger = secure_boot.with_key(settings, tmp_path / "stranger")
    (tmp_path / "theirs").mkdir()
    mok.sign_kernel(stranger, kernel, [], tmp_path / "theirs")
    kept = [out, tmp_path / "foreign", tmp_path / "theirs"]
    assert settings.mok_certificate is not None
    for one in kept:
        assert not mok.fits(Kind.KERNEL, kernel, one / mok.KERNEL, settings.mok_certificate)
    mok.sign_kernel(settings, kernel, kept, out)
    assert mok.fits(Kind.KERNEL, kernel, out / mok.KERNEL, settings.mok_certificate)


def test_a_kernel_without_an_efi_stub_is_refused(
    settings: Settings, tmp_path: Path, out: Path
) -> None:
    with pytest.raises(SigningError):
        mok.sign_kernel(settings, fake_kernel.write(tmp_path / "bzImage", "x" * 4096), [], out)
    assert not any(out.iterdir())


def test_a_module_ends_with_its_signature(
    settings: Settings, module: Path, out: Path, tmp_path: Path
) -> None:
    signed = sign_module(settings, module, [], out)
    signature = (out / SIGNATURE).read_bytes()
    assert signed.read_bytes().startswith(module.read_bytes() + signature)
    assert settings.mok_certificate is not None
    assert mok.fits(Kind.MODULE, module, out / SIGNATURE, settings.mok_certificate)
    other = fake_kernel.write(tmp_path / "other.ko", "another module")
    assert not mok.fits(Kind.MODULE, other, out / SIGNATURE, settings.mok_certificate)
    # The signature has no time in it.
    time.sleep(1.1)
    (tmp_path / "again").mkdir()
    assert sign_module(settings, module, [], tmp_path / "again").read_bytes() == signed.read_bytes()


def test_a_modules_signature_by_another_key_does_not_fit_with_its_certificate_in_it(
    settings: Settings, module: Path, tmp_path: Path
) -> None:
    def sign(own: Settings) -> bool:
        assert own.mok_key is not None
        assert own.mok_certificate is not None
        assert settings.mok_certificate is not None
        subprocess.run(
            [
                *("openssl", "cms", "-sign", "-binary", "-noattr", "-outform", "DER"),
                *("-signer", own.mok_certificate, "-inkey", own.mok_key),
                *("-in", module, "-out", tmp_path / SIGNATURE),
            ],
            check=True,
        )
        return mok.fits(Kind.MODULE, module, tmp_path / SIGNATURE, settings.mok_certificate)

    assert sign(settings)
    assert not sign(secure_boot.with_key(settings, tmp_path / "stranger"))


# A command.


def commanded(settings: Settings, tmp_path: Path, script: str) -> Settings:
    path = fake_kernel.write(tmp_path / "signer", f"#!/bin/sh\nset -eu\n{script}\n", mode=0o755)
    return dataclasses.replace(settings, mok_key=None, mok_sign_command=(str(path), "--token=x"))


def test_a_command_signs_both(
    settings: Settings, kernel: Path, module: Path, out: Path, tmp_path: Path
) -> None:
    key, certificate = (
        shlex.quote(str(one)) for one in (settings.mok_key, settings.mok_certificate)
    )
    script = (
        f"case $2 in\nkernel) sbsign --detached --key {key} --cert {certificate} --output $4 $3;;\n"
        f"module) openssl cms -sign -binary -noattr -nocerts -outform DER -signer {certificate}"
        f" -inkey {key} -in $3 -out $4;;\nesac"
    )
    own = commanded(settings, tmp_path, script)
    mok.sign_kernel(own, kernel, [], out)
    sign_module(own, module, [], out)
    assert settings.mok_certificate is not None
    assert mok.fits(Kind.KERNEL, kernel, out / mok.KERNEL, settings.mok_certificate)
    assert mok.fits(Kind.MODULE, module, out / SIGNATURE, settings.mok_certificate)


@pytest.mark.parametrize(
    ("script", "match"),
    [
        ("exit 3", "signer .* exit status 3"),
        (":", "does not verify"),
        ("cp $3 $4", "does not verify"),
        (": >$4", "does not verify"),
    ],
)
def test_a_command_that_does_not_sign_is_an_error(
    settings: Settings, kernel: Path, module: Path, out: Path, tmp_path: Path,
    script: str, match: str,
) -> None:  # fmt: skip
    own = commanded(settings, tmp_path, script)
    with pytest.raises(SigningError, match=match) as caught:
        mok.sign_kernel(own, kernel, [], out)
    with pytest.raises(SigningError, match=match):
        sign_module(own, module, [], out)
    assert "--token" not in str(caught.value)
    assert not any(out.iterdir())
