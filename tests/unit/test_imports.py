"""Imports go downwards: a room uses only the rooms below it, and no two modules use each other."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]

# A room is a folder of kbuild: by name, the rooms that it may import.
PARTS = {"core"}
STAGES = PARTS | {"fetch", "kernel", "ship", "guest"}
TRIALS = STAGES | {"archive", "pipeline"}
ROOMS: Mapping[str, set[str]] = {
    "core": set(),
    **dict.fromkeys(("fetch", "kernel", "ship", "guest"), PARTS),
    "archive": {"core", "ship"},
    "pipeline": STAGES,
    **dict.fromkeys(("lab", "report"), TRIALS),
    **dict.fromkeys(("gate", "measure"), TRIALS | {"lab"}),
    "watch": TRIALS | {"report"},
}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in (PROJECT / "kbuild").rglob("*.py")}


def imports(source: str) -> Iterator[str]:
    """Yield the modules of this project that a source names in an import, wherever that is."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [one.name for one in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            inside = [f"{node.module}.{one.name}" for one in node.names]
            names = [name if name in MODULES else str(node.module) for name in inside]
        else:
            continue
        yield from (name for name in names if name.partition(".")[0] in ("kbuild", "tests"))


def room(module: str) -> str | None:
    """Return the room of a module; None for the verbs, which may import everything."""
    words = module.split(".")
    return words[1] if len(words) > 1 and words[1] in ROOMS else None


def upward(module: str, imported: str) -> bool:
    mine, other = room(module), room(imported)
    if imported.partition(".")[0] != "kbuild":
        return True
    return mine is not None and other != mine and other not in ROOMS[mine]


ARROWS = {
    name: set(imports(path.read_text(encoding="utf-8"))) - {name} for name, path in MODULES.items()
}


def test_imports_go_downwards() -> None:
    assert sum(map(len, ARROWS.values())) > 200
    assert not [(one, other) for one in ARROWS for other in ARROWS[one] if upward(one, other)]


def test_there_is_no_circle() -> None:
    TopologicalSorter(ARROWS).prepare()


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("kbuild.core.fs", "from kbuild.fetch import roots"),
        ("kbuild.guest.guest", "def f():\n    from kbuild.kernel.module import build"),
        ("kbuild.lab.quick", "import kbuild.testing"),
        ("kbuild.testing", "from tests import flux"),
    ],
)
def test_an_import_that_goes_upwards_is_found(module: str, source: str) -> None:
    (imported,) = imports(source)
    assert upward(module, imported)


def test_a_circle_is_found() -> None:
    with pytest.raises(CycleError):
        TopologicalSorter({"a": {"b"}, "b": {"a"}}).prepare()


def test_every_module_is_used_by_the_library() -> None:
    """A module that only tests use belongs to the tests."""
    used = set().union(*ARROWS.values()) | set(imports((PROJECT / "tasks.py").read_text()))
    # Run as a program of its own: by inv, in the sandbox or a namespace, in a root or in a guest.
    used |= {"kbuild.cli", "kbuild.core.confine", "kbuild.elsewhere"}
    own = {n for n, p in MODULES.items() if p.stem != "__init__"}
    assert not {n for n in own - used if not {"in_root", "programs"} & set(n.split("."))}
