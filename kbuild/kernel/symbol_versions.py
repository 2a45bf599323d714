"""Symbol versions from the compiler cache: genksyms' work is done once for each text.

For each C file that exports something kbuild preprocesses it once more and lets genksyms
compute CRCs of the types, which takes half as long as compiling it.  ccache keeps what a
compiler makes of a file, and asks nothing of it: so it is given a "compiler" whose object is
the text with the versions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from kbuild.core import fs

_HERE = Path(__file__).parent / "in_root"
# What make calls, and what ccache calls as a compiler; and where the root shows them.
_PROGRAMS = ("symbol-versions", "symbol-versions-gcc")
_SHOWN = "/mnt/input"

# make's variable, in scripts/Makefile.build of 5.10 to 7.3, and its only form that is known here.
_VARIABLE = "cmd_gensymtypes_c"
_COMMAND = re.compile(
    rf"^{_VARIABLE} = *(?:\\\n\s*)?(?P<preprocessor>\$\(CPP\) -D__GENKSYMS__ \$\(c_flags\) \$<) \|"
    r"(?P<genksyms>(?:.*\\\n)*.*)$",
    re.MULTILINE,
)


def arguments(source: Path, options: Mapping[str, str]) -> list[str]:
    """Return what make is told, so that a kernel's symbol versions come from the compiler cache.

    ``source`` is the kernel's tree, ``options`` its final configuration.  Nothing when its
    makefile makes them in another way than the one that is known, as from DWARF: then they are
    made as the kernel does it.
    """
    if options.get("MODVERSIONS") != "y" or options.get("GENDWARFKSYMS") == "y":
        return []
    makefile = source / "scripts/Makefile.build"
    found = _COMMAND.findall(makefile.read_text()) if makefile.is_file() else []
    if len(found) != 1:
        return []
    preprocessor, genksyms = (" ".join(part.replace("\\\n", " ").split()) for part in found[0])
    return [f"{_VARIABLE}={_SHOWN}/{_PROGRAMS[0]} {genksyms} -- {preprocessor}"]


def write_programs(given: Path) -> None:
    """Write the programs that make is told of into what the root shows as /mnt/input."""
    for name in _PROGRAMS:
        fs.write_if_changed(given / name, (_HERE / name).read_bytes(), mode=0o755)
