"""Cache symbol versions: genksyms runs once for each preprocessed text.

For each C file that exports a symbol, kbuild preprocesses the file again, and genksyms computes
CRCs of the types.  This takes half as long as compiling the file.  ccache stores whatever a
compiler makes of a file, so it gets a "compiler" whose object is the text with the versions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from kbuild.core import fs

_HERE = Path(__file__).parent / "in_root"
# The program for make, and the one that ccache takes for a compiler; then their path in the root.
_PROGRAMS = ("symbol-versions", "symbol-versions-gcc")
_SHOWN = "/mnt/input"

# make's variable in scripts/Makefile.build of 5.10 to 7.3, and the only form that we replace.
_VARIABLE = "cmd_gensymtypes_c"
_COMMAND = re.compile(
    rf"^{_VARIABLE} = *(?:\\\n\s*)?(?P<preprocessor>\$\(CPP\) -D__GENKSYMS__ \$\(c_flags\) \$<) \|"
    r"(?P<genksyms>(?:.*\\\n)*.*)$",
    re.MULTILINE,
)


def arguments(source: Path, options: Mapping[str, str]) -> list[str]:
    """Return make's arguments that take a kernel's symbol versions from the compiler cache.

    ``source`` is the kernel's tree, ``options`` its final configuration.  Return nothing if its
    makefile computes the versions in an unknown way, for example from DWARF.  The kernel's own
    way is then used.
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
    """Write the programs for make into the directory that the root shows as /mnt/input."""
    for name in _PROGRAMS:
        fs.write_if_changed(given / name, (_HERE / name).read_bytes(), mode=0o755)
