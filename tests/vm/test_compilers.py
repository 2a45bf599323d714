"""A remote cache with the root's own ccache: a second tree gets the objects of the first one."""

from __future__ import annotations

import dataclasses
import http.server
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kbuild.core import sandbox, suites
from kbuild.core.model import Root, Settings
from kbuild.core.sandbox import Bind
from kbuild.fetch import roots
from kbuild.kernel import ccache, helpers, remote_cache, symbol_versions
from kbuild.kernel.remote_cache import Statistics

SOURCES = 3


class _Store(http.server.BaseHTTPRequestHandler):
    """An HTTP server with PUT and GET, which is all that ccache needs."""

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


def lay_out(tree: Path) -> None:
    """Write a few files, and a configuration in the form of kbuild's and ours."""
    for name in ("source", "out", "ccache", "input"):
        (tree / name).mkdir(parents=True)
    configure(tree, version="6.1.190", options="CONFIG_A=y\n")
    for number in range(SOURCES):
        # Every file of a kernel includes something, and so do these.  Otherwise ccache 4.7 in
        # depend mode would overwrite the result on the server by the manifest.
        (tree / f"source/f{number}.h").write_text(f"int f{number}(int x);\n")
        text = f'#include "f{number}.h"\nint f{number}(int x)\n{{\n\treturn x + {number};\n}}\n'
        (tree / f"source/f{number}.c").write_text(text)


def binds(tree: Path) -> list[Bind]:
    return [
        Bind(tree / "source", "/mnt/source"),
        Bind(tree / "out", "/mnt/out", writable=True),
        Bind(tree / "ccache", "/mnt/ccache", writable=True),
        Bind(tree / "input", "/mnt/input"),
    ]


def configure(tree: Path, *, version: str, options: str) -> None:
    generated = tree / "out/include/generated"
    generated.mkdir(parents=True, exist_ok=True)
    defines = options.replace("=", " ").replace("CONFIG", "#define CONFIG")
    (generated / "autoconf.h").write_text(f"/* Linux/x86 {version} Configuration */\n{defines}")
    (tree / "input/options").write_text(options)


def compile_in(
    settings: Settings, root: Root, tree: Path, *, distro_options: bool = False
) -> tuple[dict[str, bytes], Statistics | None]:
    """Compile the files of a tree, and return objects and statistics.

    ccache gets the settings of a kernel's build, and the compiler writes a dependency file as for
    kbuild.
    """
    if not tree.exists():
        lay_out(tree)
    compiler = suites.suite(root.suite).compiler
    with helpers.ready(settings, root, tree / "home") as help:
        for number in range(SOURCES):
            sandbox.enter(
                root,
                [
                    *("ccache", compiler, f"-Wp,-MMD,.f{number}.o.d", "-O2"),
                    *("-I./include", "-include", "generated/autoconf.h"),
                    *("-c", "-o", f"f{number}.o", f"/mnt/source/f{number}.c"),
                ],
                timeout_s=60,
                binds=[*binds(tree), *help.binds],
                cwd="/mnt/out",
                env={**ccache.environment(distro_options=distro_options), **help.env},
                network=help.network,
            )
    objects = {path.name: path.read_bytes() for path in (tree / "out").glob("*.o")}
    return objects, remote_cache.read_statistics(tree / "home/statistics/ccache.log")


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
    features = sandbox.enter(root, ["ccache", "--version"], timeout_s=60).stdout
    with caplog.at_level(logging.WARNING):
        first, cold = compile_in(helped, root, tmp_path / "first", distro_options=distro_options)
        second, warm = compile_in(helped, root, tmp_path / "second", distro_options=distro_options)
    assert len(first) == SOURCES
    assert first == second
    if "http-storage" not in features:
        # bullseye's ccache logs a warning, and compiles everything.
        assert "cannot use http" in caplog.text
        return
    assert cold is not None
    assert (cold.hits, cold.misses) == (0, SOURCES)
    # ccache preprocesses each file for its key, except with the distro's options.
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
    assert "the remote cache is not used" in caplog.text


# A version is the text's number of lines, so different texts have different ones.
GENKSYMS = '#!/bin/sh\necho >>/mnt/out/calls\necho "#SYMVER f $(grep -c .) $*"\n'
COMPILER = '#!/bin/sh\necho >>/mnt/out/calls\nexec {} "$@"\n'
VERSIONS = "cmd_gensymtypes_c = $(CPP) -D__GENKSYMS__ $(c_flags) $< | $(genksyms)"
MAKEFILE = f"""\
genksyms = ./genksyms -r /dev/null
c_flags = -Wp,-MMD,.$*.o.d -I./include -include generated/autoconf.h -DNAME='"a  b"'
{VERSIONS}
%.symver: /mnt/source/%.c
\t$(cmd_gensymtypes_c) > $@
%.o: /mnt/source/%.c
\tccache ./counting-gcc $(c_flags) -c -o $@ $<
"""


@dataclasses.dataclass(frozen=True)
class Kbuild:
    """The part of a kernel's build that matters for ccache, with the distro's options."""

    root: Root
    tree: Path

    def make(self, goal: str, *told: str, genksyms: str = GENKSYMS) -> tuple[bytes, int]:
        """Make a goal; return its content, and the number of runs of compiler and genksyms."""
        out, compiler = self.tree / "out", suites.suite(self.root.suite).compiler
        for name, text in (
            ("genksyms", genksyms),
            ("counting-gcc", COMPILER.format(compiler)),
        ):
            (out / name).write_text(text)
            (out / name).chmod(0o755)
        for left in (goal, "calls"):
            (out / left).unlink(missing_ok=True)
        # ccache 4.2 caches nothing that depends on a file from the second of the call.
        newest = max(path.stat().st_ctime for path in self.tree.rglob("*.h"))
        time.sleep(max(0.0, newest + 1.1 - time.time()))
        sandbox.enter(
            self.root,
            ["make", "-s", f"CPP={compiler} -E", *told, goal],
            timeout_s=60,
            binds=binds(self.tree),
            cwd="/mnt/out",
            env=ccache.environment(distro_options=True),
        )
        calls = len((out / "calls").read_text().splitlines()) if (out / "calls").exists() else 0
        return (out / goal).read_bytes(), calls


@pytest.fixture
def kbuild(root: Root, tmp_path: Path) -> Kbuild:
    tree = tmp_path / "tree"
    lay_out(tree)
    symbol_versions.write_programs(tree / "input")
    (tree / "source/scripts").mkdir()
    (tree / "source/scripts/Makefile.build").write_text(VERSIONS)
    (tree / "out/Makefile").write_text(MAKEFILE)
    return Kbuild(root, tree)


def test_a_point_release_is_no_reason_to_compile_and_an_option_is(kbuild: Kbuild) -> None:
    first, calls = kbuild.make("f1.o")
    assert calls == 1
    configure(kbuild.tree, version="6.1.192", options="CONFIG_A=y\n")
    assert kbuild.make("f1.o") == (first, 0)
    configure(kbuild.tree, version="6.1.192", options="CONFIG_A=y\nCONFIG_B=y\n")
    assert kbuild.make("f1.o") == (first, 1)


def test_symbol_versions_are_made_once_for_each_text(kbuild: Kbuild) -> None:
    told = symbol_versions.arguments(kbuild.tree / "source", {"MODVERSIONS": "y"})
    assert told
    as_the_kernel_does, _ = kbuild.make("f1.symver")
    assert kbuild.make("f1.symver", *told) == (as_the_kernel_does, 1)
    assert kbuild.make("f1.symver", *told) == (as_the_kernel_does, 0)
    configure(kbuild.tree, version="6.1.192", options="CONFIG_A=y\n")
    assert kbuild.make("f1.symver", *told) == (as_the_kernel_does, 0)
    (kbuild.tree / "source/f1.h").write_text("int more;\nint f1(int x);\n")
    changed, calls = kbuild.make("f1.symver", *told)
    assert (changed != as_the_kernel_does, calls) == (True, 1)
    assert kbuild.make("f1.symver") == (changed, 1)
    other = GENKSYMS.replace("SYMVER", "OTHER")
    said = kbuild.make("f1.symver", *told, genksyms=other)
    assert said == (changed.replace(b"SYMVER", b"OTHER"), 1)


def test_compilers_have_no_network_without_need(settings: Settings, root: Root) -> None:
    devices = sandbox.enter(root, ["cat", "/proc/net/dev"], timeout_s=60).stdout
    assert [line.split(":")[0].strip() for line in devices.splitlines()[2:]] == ["lo"]
