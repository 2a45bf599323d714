"""Run commands in a root with bwrap(1), where they see nothing of the host but binds.

Entering a root needs root privileges.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kbuild.core.errors import BuildError
from kbuild.core.model import Root
from kbuild.core.run import Arg, Completed, in_network, need, run

# The kernel undoes a namespace's mounts when its last process is gone, killed or not.
_OWN_MOUNTS = ("unshare", "--mount", "--propagation", "private", "--")
# When the first process ends, at the latest together with ours, the kernel ends all others.
OWN_PROCESSES = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *_OWN_MOUNTS[1:])
# Debian's own Python, because libseccomp's bindings are a Debian package.
_SANDBOX = ("/usr/bin/python3", "-I", Path(__file__).with_name("confine.py"))


@dataclass(frozen=True)
class Bind:
    """A host path that a root shows at ``target``, read-only unless ``writable``."""

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
    network: bool | Path = False,
    hint: str | None = None,
) -> Completed:
    """Run a command in a root: no network, its own processes, of the host only ``binds``.

    The root itself is read-only unless ``writable``; /tmp is fresh.  The environment is a fixed
    base updated with ``env``.  Raises BuildError as :func:`kbuild.core.run.run` does.
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
    network: bool | Path = False,
) -> list[Arg]:
    """Return the command line that :func:`enter` runs.

    ``network`` is the network namespace that the command sees; True keeps the host's.
    """
    other = network if isinstance(network, Path) else None
    command: list[Arg] = [*in_network(other), *_OWN_MOUNTS, *_SANDBOX]
    command += ["--writable-root", "--"] if writable else ["--"]
    command += [need("bwrap"), "--bind" if writable else "--ro-bind", root.path, "/"]
    command += ["--dev", "/dev", "--proc", "/proc", "--remount-ro", "/proc"]
    command += ["--perms", "1777", "--tmpfs", "/tmp"]
    # A read-only root needs a tmpfs for the mount points of the binds.
    command += [] if writable else ["--tmpfs", "/mnt"]
    for bind in binds:
        command += ["--bind" if bind.writable else "--ro-bind", bind.source, bind.target]
    # confine.py maps no bind after --clearenv.
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
