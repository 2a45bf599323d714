"""A small Debian archive that the tests sign themselves, and a server that misbehaves on request.

Keys and packages are made once per run: gpg and dpkg-deb take longer than what is tested.
"""

from __future__ import annotations

import base64
import dataclasses
import email.utils
import functools
import hashlib
import io
import lzma
import random
import shutil
import socketserver
import ssl
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from kbuild.core import suites
from kbuild.core.model import Settings
from kbuild.core.run import run
from kbuild.fetch.access import Access
from kbuild.fetch.download import Network

NOTHING = Path("/nonexistent-apt-configuration")  # no mirror comes from the machine

# Large enough that a connection can drop in its middle; random, so that xz keeps its size.
_FILLER = random.Random(2).randbytes(400_000)


# Directories of keys and packages, which clean_up() removes.
_HOMES: list[Path] = []


def clean_up() -> None:
    """End gpg's agents, and remove the keys and packages of this process.

    Not atexit's: pytest-xdist ends its processes without it.
    """
    for home in _HOMES:
        if home.name.startswith("kbuild-gpg-"):
            run(["gpgconf", "--homedir", home, "--kill", "all"], timeout_s=30, check=False)
        shutil.rmtree(home, ignore_errors=True)
    _HOMES.clear()
    key.cache_clear()
    deb.cache_clear()


# Keys.


@dataclass(frozen=True)
class Key:
    """An OpenPGP key pair, made for this run."""

    home: Path
    keyring: Path  # the public half, as gpgv reads it
    fingerprint: str
    clock: tuple[str, ...] = ()  # gpg's options for a key of another time

    def clearsign(self, text: str) -> bytes:
        """Sign a text as an archive signs its InRelease."""
        done = run(
            [*self._gpg(), "--local-user", self.fingerprint, "--clearsign"],
            data=text.encode(),
            timeout_s=30,
        )
        return done.stdout.encode()

    def bomb(self, size: int) -> bytes:
        """Sign zeros as a message, not as clear text: gpgv would unpack them all."""
        path = self.home / "bomb.gpg"
        run(
            [
                *(*self._gpg(), "--local-user", self.fingerprint, "--yes", "--output", path),
                *("--compress-algo", "bzip2", "--sign"),
            ],
            data=bytes(size),
            timeout_s=60,
        )
        return path.read_bytes()

    def _gpg(self) -> list[str | Path]:
        return ["gpg", "--homedir", self.home, "--batch", "--quiet", *self.clock]


@functools.cache
def key(name: str = "archive", *, expired: bool = False) -> Key:
    """Make the key ``name`` once per run."""
    # Under /tmp, because the agent's socket has a path of 107 bytes at most.
    home = Path(tempfile.mkdtemp(prefix="kbuild-gpg-", dir="/tmp"))
    _HOMES.append(home)
    clock = ("--faked-system-time", "20200101T000000!") if expired else ()
    gpg = ["gpg", "--homedir", home, "--batch", "--quiet", *clock]
    uid = f"{name} <{name}@example.org>"
    generate = ["--passphrase", "", "--quick-generate-key", uid, "ed25519", "sign"]
    run([*gpg, *generate, "1d" if expired else "never"], timeout_s=30)
    keyring = home / "public.gpg"
    run([*gpg, "--output", keyring, "--export"], timeout_s=30)
    listing = run([*gpg, "--with-colons", "--list-keys"], timeout_s=30).stdout
    fingerprint = next(
        line.split(":")[9] for line in listing.splitlines() if line.startswith("fpr:")
    )
    return Key(home, keyring, fingerprint, clock)


def sign_twice(text: str, first: Key, second: Key) -> bytes:
    """Sign a text by two keys, as an archive does while it changes from one to the other."""
    run(
        [*first._gpg(), "--import"],
        data=run([*second._gpg(), "--armor", "--export-secret-keys"], timeout_s=30).stdout.encode(),
        timeout_s=30,
    )
    users = [part for one in (first, second) for part in ("--local-user", one.fingerprint)]
    done = run([*first._gpg(), *users, "--clearsign"], data=text.encode(), timeout_s=30)
    return done.stdout.encode()


# Packages.


@functools.cache
def deb(
    name: str, version: str, source: str, architecture: str, depends: str, filler: bool
) -> Path:
    """Build a package once per run; a linux-source has a tarball of a tiny tree."""
    home = Path(tempfile.mkdtemp(prefix="kbuild-deb-"))
    _HOMES.append(home)
    tree = home / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    control = {
        "Package": name,
        "Source": source,
        "Version": version,
        "Architecture": architecture,
        "Maintainer": "Nobody <nobody@example.org>",
        "Depends": depends,
        "Description": "made by a test",
    }
    (tree / "DEBIAN/control").write_text(
        "".join(f"{label}: {value}\n" for label, value in control.items() if value)
    )
    if name.startswith("linux-source-"):
        source_home = tree / "usr/src"
        source_home.mkdir(parents=True)
        with tarfile.open(source_home / f"{name}.tar.xz", "w:xz", preset=0) as tarball:
            members = {"Makefile": f"# {version}\n".encode()}
            if filler:
                members["fs/filler"] = _FILLER
            for member, content in members.items():
                info = tarfile.TarInfo(f"{name}/{member}")
                info.size, info.mtime, info.mode = len(content), 1_000_000_000, 0o644
                tarball.addfile(info, io.BytesIO(content))
    elif name.startswith(_PARTS):
        kind, release = name.removeprefix("linux-").split("-", 1)
        modules = tree / "usr/lib/modules" / release
        modules.mkdir(parents=True)
        (modules / ("vmlinuz" if kind == "binary" else kind)).write_text(f"{version}\n")
    else:
        (tree / "boot").mkdir()
        (tree / f"boot/config-{name}").write_text(f"# {version}\n")
        if name.startswith("linux-image-") and "linux-binary-" not in depends:
            release = name.removeprefix("linux-image-")
            (tree / f"boot/vmlinuz-{release}").write_text(f"{version}\n")
    path = home / f"{name}_{version}_{architecture}.deb"
    run(["dpkg-deb", "--root-owner-group", "-Znone", "--build", tree, path], timeout_s=60)
    return path


# Packages that hold the parts of an image since 7.0.
_PARTS = ("linux-base-", "linux-binary-", "linux-modules-")


# The archive.


@dataclass
class SignedArchive:
    """An archive's directory: pool/ and dists/, signed by ``key``."""

    root: Path
    key: Key
    stanzas: dict[str, list[str]] = field(default_factory=dict)  # dist -> of its packages

    def copy(self, root: Path) -> SignedArchive:
        """Return an equal archive below ``root``, which a test may change."""
        shutil.copytree(self.root, root)
        return SignedArchive(root, self.key, {k: list(v) for k, v in self.stanzas.items()})

    def add(
        self,
        dist: str,
        name: str,
        version: str,
        *,
        source: str = "linux",
        architecture: str = "amd64",
        depends: str = "",
        filler: bool = False,
    ) -> Path:
        """Put a package into the pool and a dist's index; return its path in the pool."""
        built = deb(name, version, source, architecture, depends, filler)
        return self.add_built(dist, built, source=source, depends=depends)

    def add_tree(
        self, dist: str, name: str, version: str, tree: Path, *, depends: str = ""
    ) -> Path:
        """Put a package of the files in ``tree`` into the pool and a dist's index."""
        control = f"Package: {name}\nSource: linux\nVersion: {version}\nArchitecture: amd64\n"
        control += f"Depends: {depends}\n" if depends else ""
        control += "Maintainer: Nobody <nobody@example.org>\nDescription: made by a test\n"
        with tempfile.TemporaryDirectory() as scratch:
            files = Path(shutil.copytree(tree, Path(scratch, "tree"), symlinks=True))
            (files / "DEBIAN").mkdir()
            (files / "DEBIAN/control").write_text(control)
            built = Path(scratch, f"{name}_{version}_amd64.deb")
            run(["dpkg-deb", "--root-owner-group", "-Znone", "--build", files, built], timeout_s=60)
            return self.add_built(dist, built, depends=depends)

    def add_built(
        self, dist: str, built: Path, *, source: str = "linux", depends: str = ""
    ) -> Path:
        """Put a package into the pool and a dist's index; return its path in the pool."""
        name, version, architecture = built.stem.split("_")
        path = self.root / "pool/main/l/linux" / built.name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(built, path)
        content = path.read_bytes()
        fields = {
            "Package": name,
            "Source": source if source == "linux" else f"{source} (0+1)",
            "Version": version,
            "Architecture": architecture,
            "Depends": depends,
            "Filename": path.relative_to(self.root).as_posix(),
            "Size": str(len(content)),
            "SHA256": hashlib.sha256(content).hexdigest(),
        }
        self.stanzas.setdefault(dist, []).append(
            "".join(f"{label}: {value}\n" for label, value in fields.items() if value)
        )
        return path

    def add_kernel(
        self, dist: str, version: str, abi: str, *, flavour: str = "cloud-amd64"
    ) -> None:
        """Put all packages of a kernel into a dist, named and related as Debian's are."""
        release = f"{abi}-{flavour}"
        headers = (
            f"linux-headers-{abi}-common (= {version}), linux-kbuild-6.1 (>= {version}), "
            "linux-compiler-gcc-12-x86, gcc-12"
        )
        signed = "linux-signed-amd64"
        self.add(dist, "linux-source-6.1", version, architecture="all", filler=True)
        self.add(dist, f"linux-image-{release}", version, source=signed, depends="kmod")
        self.add(dist, f"linux-image-{release}-unsigned", version)
        self.add(dist, f"linux-image-{release}-dbg", version)
        self.add(dist, f"linux-headers-{release}", version, depends=headers)
        self.add(dist, f"linux-headers-{abi}-common", version, architecture="all")
        self.add(dist, "linux-kbuild-6.1", version, depends="libc6 (>= 2.34)")
        self.add(dist, "linux-compiler-gcc-12-x86", version, depends="gcc-12")
        self.add(dist, "linux-libc-dev", version)
        meta = f"linux-image-{release} (= {version})"
        self.add(dist, f"linux-image-{flavour}", version, source=signed, depends=meta)

    def add_split_kernel(self, dist: str, version: str, abi: str) -> None:
        """Put all packages of a kernel into a dist, as Debian splits them since 7.0."""
        release = f"{abi}-cloud-amd64"
        signed = "linux-signed-amd64"
        self.add(dist, "linux-source-7.3", version, architecture="all")
        parts = [f"{part}{release}" for part in _PARTS]
        for name in parts:
            self.add(dist, name, version, depends=f"linux-base-{release} (= {version})")
        needed = ", ".join(["dracut | initramfs-tools", *(f"{p} (= {version})" for p in parts)])
        image = f"linux-image-{release}"
        self.add(dist, image, version, source=signed, depends=needed)
        self.add(dist, f"{image}-unsigned", version, depends=needed)
        headers = (
            f"gcc-14-for-host, linux-base-{release} (= {version}), linux-headers-{abi}-common, "
            # as 6.12's headers do
            f"{image} (= {version}) | {image}-unsigned (= {version})"
        )
        self.add(dist, f"linux-headers-{release}", version, depends=headers)
        self.add(dist, f"linux-headers-{abi}-common", version, architecture="all")
        meta = f"{image} (= {version}), linux-modules-cloud-amd64"
        self.add(dist, "linux-image-cloud-amd64", version, source=signed, depends=meta)

    def inrelease(self, dist: str) -> Path:
        """Return where a dist's signed index lies."""
        return self.root / "dists" / dist / "InRelease"

    def packages(self, dist: str) -> Path:
        """Return where a dist's index of packages lies, under its plain name."""
        return self.root / "dists" / dist / "main/binary-amd64/Packages.xz"

    def publish(
        self,
        dist: str,
        *,
        key: Key | None = None,
        codename: str | None = None,
        date: datetime | None = None,
        valid_for: timedelta | None = timedelta(days=7),
        by_hash: bool = False,
    ) -> str:
        """Write a dist's indexes and sign them; return the text that was signed."""
        index = self.packages(dist)
        index.parent.mkdir(parents=True, exist_ok=True)
        other = (
            "Package: zsh\nVersion: 5\nArchitecture: amd64\nFilename: pool/z\nSize: 1\n"
            f"SHA256: {'0' * 64}\n"
        )
        plain = "\n".join([other, *self.stanzas.get(dist, [])]).encode()
        content = lzma.compress(plain)
        index.write_bytes(content)
        sha256 = hashlib.sha256(content).hexdigest()
        if by_hash:
            hashed = index.parent / "by-hash/SHA256" / sha256
            hashed.parent.mkdir(parents=True, exist_ok=True)
            hashed.write_bytes(content)
        when = date or datetime.now(UTC)
        fields = {
            "Origin": "Test",
            "Suite": f"oldstable{dist.removeprefix('bookworm')}",
            "Codename": codename or dist,
            "Architectures": "amd64",
            "Components": "main",
            "Date": email.utils.format_datetime(when, usegmt=True),
            "Acquire-By-Hash": "yes" if by_hash else "no",
        }
        if codename is not None:
            fields["Suite"] = codename
        if valid_for is not None:
            fields["Valid-Until"] = email.utils.format_datetime(when + valid_for, usegmt=True)
        text = "".join(f"{label}: {value}\n" for label, value in fields.items())
        text += f"SHA256:\n {sha256} {len(content)} main/binary-amd64/Packages.xz\n"
        text += f" {hashlib.sha256(plain).hexdigest()} {len(plain)} main/binary-amd64/Packages\n"
        self.inrelease(dist).write_bytes((key or self.key).clearsign(text))
        return text


def suite(signed_by: Key) -> suites.Suite:
    """Return bookworm's row of the table, with a key of the tests for the archive's."""
    return dataclasses.replace(suites.suite("bookworm"), keyring=str(signed_by.keyring))


def flip(path: Path, offset: int = -20) -> None:
    """Change one byte of a file."""
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


# The server.


@dataclass(frozen=True)
class Fault:
    """A fault in the answer to one request."""

    status: int = 0  # answered instead of 200, with no content
    drop_after: int = -1  # the connection is closed after so many bytes of the content
    truncate_to: int = -1  # the file is so short, and the server believes it
    ignore_range: bool = False  # the whole file is sent, whatever was asked for
    no_length: bool = False  # the end of the content is the end of the connection
    shift_range: int = 0  # a range that begins so many bytes away is sent
    location: str = ""  # of a redirect
    drip_s: float = 0  # each byte of the content comes so long after the one before
    drip_headers: bool = False  # and so does each byte of the headers
    endless: bool = False  # the content is followed by zeros until the client has enough
    chunked: bool = False  # the content comes in chunks of 10,000 bytes


@dataclass(frozen=True)
class Request:
    """A request and its answer."""

    path: str
    range: str
    status: int
    sent: int  # bytes of content
    login: str = ""  # user:password
    proxy_login: str = ""


class Server:
    """A directory served over HTTP on a port of the loopback interface."""

    def __init__(self, root: Path, *, tls: ssl.SSLContext | None = None) -> None:
        self.root = root
        self.scheme = "https" if tls else "http"
        self.requests: list[Request] = []
        self.endless = 0  # bytes of endless content that clients took
        self.closed = threading.Event()
        self.faults: dict[str, list[Fault]] = {}  # by the path's end; the last one stays
        self._http = _Http(("127.0.0.1", 0), _Handler)
        self._http.owner = self
        if tls is not None:
            self._http.socket = tls.wrap_socket(self._http.socket, server_side=True)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """The base URL of the archive."""
        return f"{self.scheme}://127.0.0.1:{self._http.server_address[1]}"

    def fail(self, path: str, *faults: Fault) -> None:
        """Let the next requests for a path that ends so get these faults, the last one for ever.

        A last fault of Fault() means that all is well from then on.
        """
        self.faults[path] = list(faults)

    def asked(self, end: str) -> list[Request]:
        """Return the requests whose path ends so."""
        return [request for request in self.requests if request.path.endswith(end)]

    def close(self) -> None:
        """Stop serving, and end answers that are still being sent."""
        self.closed.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(10)


class _Http(ThreadingHTTPServer):
    owner: Server
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that refuses a file closes the connection while it is being sent."""

    def server_bind(self) -> None:
        # HTTPServer would look the address up by name, which may take seconds.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "localhost", self.server_address[1]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Http

    def do_GET(self) -> None:
        owner = self.server.owner
        fault = Fault()
        for end, faults in owner.faults.items():
            if self.path.endswith(end):
                fault = faults.pop(0) if len(faults) > 1 else faults[0]
        # A proxy is asked for a whole URL.
        path = owner.root / unquote(urlsplit(self.path).path).lstrip("/")
        asked = self.headers.get("Range", "")
        if fault.location:
            self._answer(fault.status or 302, asked, {"Location": fault.location}, fault=fault)
            return
        if fault.status or not path.is_file():
            self._answer(fault.status or 404, asked)
            return
        content = path.read_bytes()
        if fault.truncate_to >= 0:
            content = content[: fault.truncate_to]
        etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        if self.headers.get("If-None-Match") == etag:
            self._answer(304, asked)
            return
        headers = {"ETag": etag}
        status, begin = 200, 0
        if asked and not fault.ignore_range:
            begin = int(asked.removeprefix("bytes=").rstrip("-")) + fault.shift_range
            if begin >= len(content):
                self._answer(416, asked)
                return
            status = 206
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        body = content[begin:]
        if fault.no_length or fault.endless:
            self.close_connection = True
        elif fault.chunked:
            headers["Transfer-Encoding"] = "chunked"
        else:
            headers["Content-Length"] = str(len(body))
        if fault.drop_after >= 0:
            self.close_connection = True
            body = body[: fault.drop_after]
        self._answer(status, asked, headers, body, fault=fault)

    def _answer(
        self,
        status: int,
        asked: str,
        headers: dict[str, str] | None = None,
        body: bytes = b"",
        *,
        fault: Fault = Fault(),
    ) -> None:
        # Noted before it is sent, so that a client that has its answer finds the note.
        logins = [self._login("Authorization"), self._login("Proxy-Authorization")]
        self.server.owner.requests.append(Request(self.path, asked, status, len(body), *logins))
        if fault.drip_headers:
            self._drip(b"HTTP/1.1 200 OK\r\n" + b"X-Filler: x\r\n" * 1000, fault.drip_s)
        self.send_response(status)
        for label, value in (headers or {"Content-Length": "0"}).items():
            self.send_header(label, value)
        self.end_headers()
        if fault.chunked:
            for begin in range(0, len(body), 10_000):
                piece = body[begin : begin + 10_000]
                self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            self.wfile.write(b"0\r\n\r\n")
        elif fault.drip_s:
            self._drip(body, fault.drip_s)
        else:
            self.wfile.write(body)
        while fault.endless and not self.server.owner.closed.is_set():
            self.server.owner.endless += self.wfile.write(bytes(1 << 16))

    def _login(self, header: str) -> str:
        return base64.b64decode(self.headers.get(header, "").removeprefix("Basic ")).decode()

    def _drip(self, content: bytes, seconds: float) -> None:
        for begin in range(len(content)):
            self.wfile.write(content[begin : begin + 1])
            self.wfile.flush()
            # Not time.sleep(), which the next test may replace.
            if self.server.owner.closed.wait(seconds):
                return

    def log_message(self, format: str, *args: object) -> None:
        """Keep the tests' output free of requests; ``requests`` has them."""


def authority(home: Path) -> tuple[Path, ssl.SSLContext]:
    """Make a certificate for 127.0.0.1; return it, and what a server needs of it."""
    home.mkdir(parents=True, exist_ok=True)
    certificate, private = home / "ca.pem", home / "key.pem"
    run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-subj", "/CN=company", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", private, "-out", certificate),
        ],
        timeout_s=30,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, private)
    return certificate, context


@contextmanager
def serve(root: Path, *, tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    """Serve a directory while the block runs."""
    server = Server(root, tls=tls)
    try:
        yield server
    finally:
        server.close()


@dataclass
class Waits:
    """A network that does not wait, and notes how long it would have."""

    seconds: list[float] = field(default_factory=list)
    attempts: int = 4
    access: Access = field(default_factory=Access)
    patience_s: float = 5.0

    @property
    def network(self) -> Network:
        """A network of its own, with a connection pool of its own."""
        return Network(
            access=self.access,
            attempts=self.attempts,
            connect_timeout_s=self.patience_s / 2,
            read_timeout_s=self.patience_s,
            window_s=self.patience_s,
            index_timeout_s=4 * self.patience_s,
            sleep=self.seconds.append,
        )


def settings(home: Path, *mirrors: str, offline: bool = False, dry: bool = False) -> Settings:
    """Settings whose cache lies below ``home``."""
    return Settings(
        project=home,
        build=home / "build",
        cache=home / "cache",
        mirrors=mirrors,
        offline=offline,
        dry=dry,
    )


def kept(one: Settings) -> list[str]:
    """Return the names of all files in the cache that hold content, partial ones included."""
    places = [one.cache / "files", one.cache / "partial", *one.cache.glob("apt/*/lists")]
    return sorted(p.name for place in places for p in place.rglob("*") if p.is_file())
