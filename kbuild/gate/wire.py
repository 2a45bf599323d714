"""The only network of a server in the gate: a namespace in which nothing answers but our archive.

The namespace is one of the kernel's, with a loopback and nothing else.  QEMU and commands of the
sandbox run in it.  The HTTP server is a thread of this process, and its socket lies in the
namespace.  A booted server and a tree reach it at the same URL.  QEMU's user-mode network passes
:data:`ADDRESS` on to the loopback, which has that address, too.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import http.server
import logging
import os
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kbuild.core.errors import InfrastructureError

logger = logging.getLogger(__name__)

# QEMU's user-mode network passes connections to this address on to its own loopback.
ADDRESS = "10.0.2.2"
URL = f"http://{ADDRESS}"
_PORT = 80

_CLONE_NEWNET = 0x40000000
_IFREQ = "16s24s"
_FLAGS = "<h"
_IFF_UP = 0x1
_SIOCSIFFLAGS, _SIOCSIFADDR = 0x8914, 0x8916


@dataclass(frozen=True)
class Wire:
    """A network namespace with an HTTP server in it; it lasts as long as the block of serve()."""

    namespace: Path  # for nsenter(1)
    requests: Path  # one line for each request: time, method and path, status


@contextlib.contextmanager
def serve(directory: Path, requests: Path) -> Iterator[Wire]:
    """Serve a directory, read-only, at :data:`URL` of a new namespace while the block runs.

    Raises InfrastructureError if this process may make no network namespace.
    """
    namespace, listening = _namespace()
    requests.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, namespace)
        log = stack.enter_context(requests.open("w", buffering=1))
        handler = functools.partial(_Handler, directory=os.fspath(directory), log=log)
        server = _Server((ADDRESS, _PORT), handler, False)
        server.socket.close()
        server.socket = listening
        stack.callback(server.server_close)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="http")
        thread.start()
        stack.callback(thread.join)
        stack.callback(server.shutdown)
        yield Wire(Path(f"/proc/{os.getpid()}/fd/{namespace}"), requests)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Log what is wrong with a connection; a server that goes off may break one."""
        logger.debug("http: %s", client_address, exc_info=True)


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Files of one directory; apt keeps its connection, which takes HTTP/1.1."""

    protocol_version = "HTTP/1.1"

    def __init__(self, *args: object, log: object, directory: str) -> None:
        self._log = log
        super().__init__(*args, directory=directory)  # type: ignore[arg-type]

    def log_message(self, format: str, *args: object) -> None:
        print(self.log_date_time_string(), format % args, file=self._log)  # type: ignore[call-overload]


def _namespace() -> tuple[int, socket.socket]:
    """Return a descriptor of a new network namespace, and a socket that listens in it.

    A namespace belongs to a thread, so the thread that makes one ends here.
    """
    made: list[int | socket.socket | OSError] = []

    def make() -> None:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.unshare(_CLONE_NEWNET) != 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), "unshare")
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
                up = struct.pack(_IFREQ, b"lo", struct.pack(_FLAGS, _IFF_UP))
                fcntl.ioctl(control, _SIOCSIFFLAGS, up)
                address = struct.pack("=HH4s", socket.AF_INET, 0, socket.inet_aton(ADDRESS))
                fcntl.ioctl(control, _SIOCSIFADDR, struct.pack(_IFREQ, b"lo:0", address))
            listening = socket.create_server(("", _PORT))
            made.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
            made.append(listening)
        except OSError as error:
            made[:] = [error]

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    match made:
        case [int(namespace), socket.socket() as listening]:
            return namespace, listening
        case [OSError() as error]:
            raise InfrastructureError(
                "a network of its own cannot be made for a server",
                found=f"{error.filename or 'the loopback'}: {error.strerror}",
                hint="run the same command with sudo",
            )
    raise AssertionError(made)
