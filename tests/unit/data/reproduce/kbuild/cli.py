"""A pipeline of one small package, which leaks what the file "leak" names into it."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

PROJECT = Path(__file__).parents[1]


def signature() -> str:
    """Return nothing in a build that has a key, or that finds the kept signatures."""
    certificate = os.environ.get("INVOKE_MOK_CERTIFICATE")
    if certificate is None:
        return ""
    assert os.environ["INVOKE_MOK_SIGN_COMMAND"] == "false"
    archive = Path(os.environ["XDG_DATA_HOME"], "cplayground-kernel/archive")
    (release,) = (archive / "releases").iterdir()
    assert Path(certificate) == release / "mok.pem"
    names = ("kernel.sig", "cplayground.ko.sig")
    return "".join((release / name).read_text().removeprefix(name) for name in names)


LEAKS: dict[str, Callable[[], str]] = {
    "nothing": lambda: "",
    "clock": lambda: str(time.time_ns()),
    "host": socket.gethostname,
    "zone": lambda: time.strftime("%z"),
    "umask": lambda: oct(os.umask(0)),
    "modes": lambda: oct(stat.S_IMODE((PROJECT / "leak").stat().st_mode)),
    "place": lambda: str(PROJECT),
    "results": lambda: os.environ["INVOKE_BUILD_DIR"],
    "signature": signature,
    "user": lambda: os.environ.get("USER", ""),
    "jobs": lambda: os.environ["INVOKE_JOBS"],
    "cache": lambda: str(Path(os.environ["INVOKE_CACHE_DIR"], "ccache").exists()),
}


def main(words: list[str]) -> None:
    if (PROJECT / "requirements.lock").read_text() != os.environ.get("TOY_LOCK", "one\n"):
        sys.exit("a package that this environment does not have")
    task, *pairs = words
    assert task == "package"
    given = list(zip(pairs[::2], pairs[1::2], strict=True))
    fragments = [Path(value).read_text() for name, value in given if name == "--fragment"]
    asked = {name: value for name, value in given if name != "--fragment"}
    asked["revision"] = os.environ["INVOKE_REVISION"]
    leak = (PROJECT / "leak").read_text().strip()
    if leak.isdigit():
        print("cannot go on")
        sys.exit(int(leak))
    leaked = LEAKS[leak]()
    os.umask(0o022)
    home = Path(os.environ["INVOKE_BUILD_DIR"], asked["--suite"], asked["--flavour"])
    outputs = []
    told = f"what leaked:\n{leaked}\nwhat was asked:\n{asked} {fragments}\n"
    for name, content in (("toy", told), ("meta", "")):
        tree = home / f"{name}.tree"
        (tree / "DEBIAN").mkdir(parents=True)
        (tree / "usr/share/toy").mkdir(parents=True)
        (tree / "usr/share/toy" / f"{name}.txt").write_text(content)
        (tree / "DEBIAN/control").write_text(
            f"Package: {name}\nVersion: 1\nArchitecture: amd64\nMaintainer: x\nDescription: x\n"
        )
        path = home / f"{name}_1_amd64.deb"
        subprocess.run(
            ["dpkg-deb", "--root-owner-group", "-b", tree, path],
            check=True,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"SOURCE_DATE_EPOCH": "0"},
        )
        raw = path.read_bytes()
        outputs.append(
            {
                "name": name,
                "version": "1",
                "architecture": "amd64",
                "path": str(path.relative_to(os.environ["INVOKE_BUILD_DIR"])),
                "sha256": hashlib.sha256(raw).hexdigest(),
                "size": len(raw),
            }
        )
    record = json.loads((PROJECT / "record.json").read_text())
    (home / "record.json").write_text(json.dumps(record | {"outputs": outputs}))


if __name__ == "__main__":
    main(sys.argv[sys.argv.index("package") :])
