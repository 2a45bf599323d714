"""Write listings as the module does, to compare them with what the parser reads."""

from __future__ import annotations

import re
from collections.abc import Iterable

from kbuild.lab.procfile import Process

# Control bytes, the backslash, and the line separators of Unicode.
_SPECIAL = re.compile(rb"[\x00-\x1f\x7f\\]|\xc2\x85|\xe2\x80[\xa8\xa9]")


def escape(name: bytes) -> bytes:
    """Escape a name: each special byte becomes three octal digits."""
    return _SPECIAL.sub(lambda special: b"".join(b"\\%03o" % byte for byte in special[0]), name)


def format_records(processes: Iterable[Process]) -> bytes:
    """Write records."""
    lines = []
    for p in processes:
        lines.append(
            b"%s\t%d\t%d\t%d\t%d\t" % (p.namespace.encode(), p.pid, p.ns_pid, p.ns_ppid, p.ns_pgid)
        )
        if p.extended is not None:
            more = p.extended
            lines.append(b"%s\t%d\t%d\t" % (more.state.encode(), more.blocked, more.pending))
        lines.append(b"%s\n" % escape(p.command))
        lines += [
            b"%d\t%d\t%s\t%d\t0%o\t%s\n"
            % (f.fd, f.cloexec, f.id.encode(), f.position, f.flags, escape(f.path))
            for f in p.files
        ]
        lines.append(b"\n")
    return b"".join(lines)
