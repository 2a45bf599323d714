"""A remote cache with the root's own ccache: what one tree compiled, a second one is given."""

from __future__ import annotations

import dataclasses
import http.server
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kbuild import compilers, kernel, roots, suites
from kbuild.compilers import Statistics
from kbuild.model import Root, Settings
from kbuild.roots import Bind

SOURCES = 3


class _Store(http.server.BaseHTTPRequestHandler):
    """As much of HTTP as ccache needs of a cache: what was put can be had."""

    protocol_version = "HTTP/1.1"
    kept: dict[str, bytes]  # of the server's own subclass

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        body = self.kept.get(self.path)
        self._answer(404 if body is None else 200, body or b"")

    def do_HEAD(self) -> None:
        self._answer(200 if self.path in self.kept else 404)

    def do_PUT(self) -> None:
        self.kept[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(201)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    """An empty HTTP cache on loopback."""
    handler = type("Store", (_Store,), {"kept": {}})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://localhost:{server.server_port}/cache"
        server.shutdown()
        thread.join()


@pytest.fixture
def root(settings: Settings, suite: str) -> Root:
    """The root that kernels of the suite are compiled in."""
    return roots.compile_root(settings, suite)


def compile_in(
    settings: Settings, root: Root, tree: Path, *, distro_options: bool = False
) -> tuple[dict[str, bytes], Statistics | None]:
    """Compile a few files with nothing in the local cache; returns objects and statistics.

    ccache is told what it is told when a kernel is built, and the compiler is asked for a
    dependency file as kbuild asks for one.
    """
    for name in ("source", "out", "ccache"):
        (tree / name).mkdir(parents=True)
    for number in range(SOURCES):
        # As every file of a kernel does: of one that includes nothing, ccache 4.7 in depend mode
        # stores the manifest on a server over the result, under the same key.
        (tree / f"source/f{number}.h").write_text(f"int f{number}(int x);\n")
        text = f'#include "f{number}.h"\nint f{number}(int x)\n{{\n\treturn x + {number};\n}}\n'
        (tree / f"source/f{number}.c").write_text(text)
    compiler = suites.suite(root.suite).compiler
    with compilers.ready(settings, root, tree / "home") as help:
        for number in range(SOURCES):
            roots.enter(
                help.root,
                [
                    *("ccache", compiler, f"-Wp,-MMD,/mnt/out/.f{number}.o.d", "-O2"),
                    *("-c", "-o", f"/mnt/out/f{number}.o", f"/mnt/source/f{number}.c"),
                ],
                timeout_s=60,
                binds=[
                    Bind(tree / "source", "/mnt/source"),
                    Bind(tree / "out", "/mnt/out", writable=True),
                    Bind(tree / "ccache", "/mnt/ccache", writable=True),
                    *help.binds,
                ],
                env={**kernel.cache_environment(distro_options=distro_options), **help.env},
                network=help.network,
            )
    objects = {path.name: path.read_bytes() for path in (tree / "out").glob("*.o")}
    return objects, compilers.read_statistics(tree / "home/statistics/ccache.log")


@pytest.mark.parametrize("distro_options", [True, False])
def test_a_second_tree_is_given_what_the_first_compiled(
    settings: Settings,
    root: Root,
    url: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    distro_options: bool,
) -> None:
    helped = dataclasses.replace(settings, build=tmp_path / "build", remote_cache=url)
    features = roots.enter(root, ["ccache", "--version"], timeout_s=60).stdout
    with caplog.at_level(logging.WARNING):
        first, cold = compile_in(helped, root, tmp_path / "first", distro_options=distro_options)
        second, warm = compile_in(helped, root, tmp_path / "second", distro_options=distro_options)
    assert len(first) == SOURCES
    assert first == second
    if "http-storage" not in features:
        # bullseye's: it is said, and everything was compiled all the same.
        assert "cannot use http" in caplog.text
        return
    assert cold is not None
    assert (cold.hits, cold.misses) == (0, SOURCES)
    # With the distro's options no file is preprocessed to be known, with others each is.
    preprocessed = cold.counters.get("preprocessed_cache_miss", 0)
    assert preprocessed == (0 if distro_options else SOURCES)
    assert warm is not None
    assert (warm.hits, warm.misses, warm.from_remote) == (SOURCES, 0, SOURCES)


def test_a_server_that_is_away_costs_nothing_but_its_help(
    settings: Settings, root: Root, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    away = f"redis+unix://{tmp_path}/nobody"
    helped = dataclasses.replace(settings, build=tmp_path / "build", remote_cache=away)
    with caplog.at_level(logging.WARNING):
        objects, _ = compile_in(helped, root, tmp_path / "tree")
    assert len(objects) == SOURCES
    assert "the remote cache is left out" in caplog.text


def test_compilers_have_no_network_without_need(settings: Settings, root: Root) -> None:
    devices = roots.enter(root, ["cat", "/proc/net/dev"], timeout_s=60).stdout
    assert [line.split(":")[0].strip() for line in devices.splitlines()[2:]] == ["lo"]
