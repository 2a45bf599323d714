"""The sandbox: a command in a root, entered with bwrap(1), with nothing of the host but binds.

Entering a root needs root privileges.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kbuild.core.errors import BuildError
from kbuild.core.model import Root
from kbuild.core.run import Arg, Completed, need, run

# The kernel undoes mounts of a namespace when the last process in it is gone, killed or not.
_OWN_MOUNTS = ("unshare", "--mount", "--propagation", "private", "--")
# The end of the first process, at the latest with ours, ends all the others.
OWN_PROCESSES = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *_OWN_MOUNTS[1:])
# Debian's own Python: the bindings of libseccomp are a package of its.
_SANDBOX = ("/usr/bin/python3", "-I", Path(__file__).with_name("confine.py"))


@dataclass(frozen=True)
class Bind:
    """A host path that a root shows at ``target``, read-only unless said otherwise."""

    source: Path
    target: str
    writable: bool = False


def enter(
    root: Root,
    argv: Sequence[Arg],
    *,
    timeout_s: float,
    binds: Sequence[Bind] = (),
    cwd: str = "/",
    env: Mapping[str, str] | None = None,
    log: Path | None = None,
    check: bool = True,
    on_line: Callable[[str], None] | None = None,
    writable: bool = False,
    network: bool = False,
    hint: str | None = None,
) -> Completed:
    """Run a command in a root: no network, own processes, nothing of the host but ``binds``.

    The root itself is read-only unless ``writable``; /tmp is fresh.  The environment is
    ``env`` on a fixed base.  Raises BuildError as :func:`kbuild.core.run.run` does.
    """
    return run(
        command(root, argv, binds=binds, cwd=cwd, env=env, writable=writable, network=network),
        timeout_s=timeout_s,
        log=log,
        check=check,
        on_line=on_line,
        error=BuildError,
        hint=hint,
    )


def command(
    root: Root,
    argv: Sequence[Arg],
    *,
    binds: Sequence[Bind] = (),
    cwd: str = "/",
    env: Mapping[str, str] | None = None,
    writable: bool = False,
    network: bool = False,
) -> list[Arg]:
    """Return the command line that :func:`enter` runs; ``network`` leaves it the host's."""
    command: list[Arg] = [*_OWN_MOUNTS, *_SANDBOX]
    command += ["--writable-root", "--"] if writable else ["--"]
    command += [need("bwrap"), "--bind" if writable else "--ro-bind", root.path, "/"]
    command += ["--dev", "/dev", "--proc", "/proc", "--remount-ro", "/proc"]
    command += ["--perms", "1777", "--tmpfs", "/tmp"]
    # Only tmpfs gives a read-only root the mount points that the binds need.
    command += [] if writable else ["--tmpfs", "/mnt"]
    for bind in binds:
        command += ["--bind" if bind.writable else "--ro-bind", bind.source, bind.target]
    # The sandbox takes no bind after this one.
    command += ["--clearenv", "--chdir", cwd]
    command += [] if network else ["--unshare-net"]
    command += ["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--die-with-parent"]
    base = {
        "HOME": "/tmp",
        "LANG": "C.UTF-8",
        "LC_ALL": "C.UTF-8",
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "TZ": "UTC",
    }
    for name, value in (base | dict(env or {})).items():
        command += ["--setenv", name, value]
    return [*command, "--", *argv]
