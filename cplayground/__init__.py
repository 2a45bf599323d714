r"""See what /proc/cplayground shows: containers' processes and their open files.

>>> import cplayground
>>> namespace, end = b"a" * 64, b"b" * 64
>>> text = b"%s\t4243\t1\t0\t1\tcat\n0\t0\t%s\t0\t00\tpipe:[12]\n\n" % (namespace, end)
>>> seen = cplayground.parse(text)  # cplayground.read() reads the module's own file
>>> [process.command.text for process in seen.processes]
['cat']
>>> (pipe,) = seen.pipes()
>>> [(holder.process.pid, holder.descriptor.fd) for holder in pipe.readers]
[(1, 0)]
"""

from cplayground.containers import named
from cplayground.differences import Change, diff
from cplayground.errors import (
    Error,
    NoModuleError,
    NotPermittedError,
    RefusedTextError,
    UsageError,
)
from cplayground.findings import Finding, Host, check, look
from cplayground.kinds import KINDS, kind
from cplayground.parsing import parse
from cplayground.reading import read
from cplayground.selecting import Filter, select
from cplayground.snapshot import (
    Container,
    Descriptor,
    Holder,
    Name,
    OpenFile,
    Pipe,
    Process,
    Shared,
    Snapshot,
)
from cplayground.walking import walk

__all__ = [
    "KINDS",
    "Change",
    "Container",
    "Descriptor",
    "Error",
    "Filter",
    "Finding",
    "Holder",
    "Host",
    "Name",
    "NoModuleError",
    "NotPermittedError",
    "OpenFile",
    "Pipe",
    "Process",
    "RefusedTextError",
    "Shared",
    "Snapshot",
    "UsageError",
    "check",
    "diff",
    "kind",
    "look",
    "named",
    "parse",
    "read",
    "select",
    "walk",
]
