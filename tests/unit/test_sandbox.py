"""A command in a root reaches only its output on the host: each way out that was tried.

They run for real, with the host's /usr as the root's, and so need root privileges.
"""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kbuild.core import run, sandbox
from kbuild.core.errors import BuildError
from kbuild.core.model import Root
from kbuild.core.sandbox import Bind

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="entering a root needs root privileges")

PROJECT = Path(__file__).parents[2]
HELPERS = """\
import ctypes, errno, os, socket, stat, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *arguments)
    return "done" if result >= 0 else errno.errorcode[ctypes.get_errno()]
def attempt(what, *arguments):
    try:
        what(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"
def write(path, text="x"):
    with open(path, "w") as stream:
        stream.write(text)
"""

Inside = Callable[..., str]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A root with the host's programs, a directory to read and one to write to."""
    for name in ("dev", "etc", "mnt", "proc", "tmp", "usr"):
        (tmp_path / "root" / name).mkdir(parents=True)
    for name in ("bin", "lib", "lib64", "sbin"):
        (tmp_path / "root" / name).symlink_to(f"usr/{name}")
    (tmp_path / "given").mkdir()
    (tmp_path / "given/file").write_text("as it was")
    (tmp_path / "out").mkdir()
    return tmp_path


@pytest.fixture(params=["mapped", "unmapped"])
def inside(request: pytest.FixtureRequest, place: Path) -> Inside:
    """Run a Python program in the root, with ids of its own or where the kernel cannot map them."""

    def run_program(program: str, *, network: bool = False) -> str:
        # No kernel maps the ids of sysfs.
        unmappable = [Bind(Path("/sys/kernel"), "/mnt/sys")] if request.param == "unmapped" else []
        return sandbox.enter(
            Root("bookworm", place / "root", "digest"),
            ["python3", "-I", "-c", HELPERS + textwrap.dedent(program)],
            binds=[
                Bind(Path("/usr"), "/usr"),
                Bind(place / "given", "/mnt/given"),
                Bind(place / "out", "/mnt/out", writable=True),
                *unmappable,
            ],
            timeout_s=60,
            network=network,
        ).stdout.strip()

    return run_program


def test_it_is_nobody_on_the_host_and_its_files_are_roots(place: Path) -> None:
    (place / "out/old").write_text("old")
    done = sandbox.enter(
        Root("bookworm", place / "root", "digest"),
        ["sh", "-c", "cat /proc/self/uid_map; echo new > /mnt/out/old; mkdir /mnt/out/d; id -u"],
        binds=[Bind(Path("/usr"), "/usr"), Bind(place / "out", "/mnt/out", writable=True)],
        timeout_s=60,
    )
    first, outside, _, own = done.stdout.split()
    assert (first, own) == ("0", "0")
    assert int(outside) >= 1 << 31
    assert (place / "out/old").read_text() == "new\n"
    made = [path.stat() for path in (place / "out/old", place / "out/d")]
    assert [(one.st_uid, one.st_gid) for one in made] == [(0, 0)] * 2


def test_a_checkout_below_mnt_is_found(place: Path) -> None:
    # The sandbox attaches its mounts there; a namespace of our own, because the host may use it.
    code = textwrap.dedent("""
        from pathlib import Path
        from kbuild.core import sandbox
        from kbuild.core.model import Root
        from kbuild.core.sandbox import Bind
        done = sandbox.enter(
            Root("bookworm", Path("/mnt/root"), "digest"),
            ["sh", "-c", "cat /mnt/given /mnt/dir/file /proc/self/uid_map"],
            binds=[
                Bind(Path("/usr"), "/usr"),
                Bind(Path("/mnt/given/file"), "/mnt/given"),
                Bind(Path("/mnt/given"), "/mnt/dir"),
            ],
            timeout_s=60,
        )
        print(done.stdout)
    """)
    script = 'mount --bind "$1" /mnt && exec "$2" -c "$3"'
    done = subprocess.run(
        [
            *("unshare", "--mount", "--propagation", "private"),
            *("sh", "-c", script, "sh", place, sys.executable, code),
        ],
        cwd=PROJECT,
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("as it wasas it was")
    assert int(done.stdout.split()[-2]) >= 1 << 31


def test_a_missing_source_of_a_mount_is_named(place: Path) -> None:
    with pytest.raises(BuildError, match="exit status 1") as caught:
        sandbox.enter(
            Root("bookworm", place / "root", "digest"),
            ["true"],
            binds=[Bind(place / "gone", "/mnt/gone")],
            timeout_s=60,
        )
    assert str(place / "gone") in (caught.value.found or "")
    assert "Traceback" not in (caught.value.found or "")


def test_without_mapped_ids_it_has_no_capabilities(place: Path) -> None:
    program = "grep -h -e CapEff -e CapPrm /proc/self/status; echo new > /mnt/out/new"
    done = sandbox.enter(
        Root("bookworm", place / "root", "digest"),
        ["sh", "-c", program],
        binds=[
            Bind(Path("/usr"), "/usr"),
            Bind(Path("/sys/kernel"), "/mnt/sys"),
            Bind(place / "out", "/mnt/out", writable=True),
        ],
        timeout_s=60,
    )
    assert [int(word, 16) for word in done.stdout.split()[1::2]] == [0, 0]
    assert "sandbox: no ids of its own" in done.stderr
    assert "/sys/kernel" in done.stderr
    assert (place / "out/new").stat().st_uid == 0


def test_nothing_of_proc_takes_a_word(inside: Inside) -> None:
    # Opening is all that is tried: on a machine where it succeeds nothing changes.
    said = inside("""
        found = []
        for top, directories, names in os.walk("/proc"):
            if top == "/proc":
                directories[:] = [one for one in directories if not one.isdigit()]
            for name in names:
                path = os.path.join(top, name)
                if not os.path.islink(path):
                    try:
                        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
                        found.append(path)
                    except OSError:
                        pass
        print(os.access("/proc/sys/kernel/core_pattern", os.F_OK), found)
    """)
    assert said == "True []"


def test_where_cores_go_stays(inside: Inside) -> None:
    before = Path("/proc/sys/kernel/core_pattern").read_text()
    said = inside(f"print(attempt(write, '/proc/sys/kernel/core_pattern', {before!r}))")
    assert said in ("EROFS", "EACCES")


def test_sysfs_is_not_there_and_no_disk_either(inside: Inside) -> None:
    said = inside("""
        disks = [one for one in os.listdir("/dev") if stat.S_ISBLK(os.lstat(f"/dev/{one}").st_mode)]
        print(os.path.exists("/sys"), disks)
        print(attempt(os.mknod, "/mnt/out/disk", 0o600 | stat.S_IFBLK, os.makedev(8, 0)))
        print(attempt(os.mknod, "/tmp/mem", 0o600 | stat.S_IFCHR, os.makedev(1, 1)))
    """)
    assert said.split("\n") == ["False []", "EPERM", "EPERM"]


def test_nothing_can_be_mounted_unmounted_or_made_writable(inside: Inside, place: Path) -> None:
    said = inside("""
        MS_RDONLY, MS_REMOUNT, MS_BIND = 1, 32, 4096
        def mount(source, target, kind, flags):
            return call(165, source, target, kind, flags, None)
        print(mount(b"tmpfs", b"/tmp", b"tmpfs", 0))
        print(mount(b"proc", b"/tmp", b"proc", 0))
        print(mount(b"/mnt/given", b"/tmp", None, MS_BIND))
        for target in (b"/", b"/mnt/given", b"/proc", b"/usr"):
            print(mount(None, target, None, MS_REMOUNT | MS_BIND))
        print(call(166, b"/proc", 2), call(166, b"/mnt/given", 2))
        print(call(155, b"/tmp", b"/tmp"))
        print(call(428, -100, b"/mnt/given", 1), call(430, b"tmpfs", 0))
        print(call(442, -100, b"/mnt/given", 0, struct.pack("QQQQ", 0, 1, 0, 0), 32))
        print(attempt(write, "/mnt/given/file"), attempt(write, "/usr/x"), attempt(write, "/x"))
    """)
    assert set(said.split()) == {"EPERM", "EROFS"}
    assert said.split()[-3:] == ["EROFS"] * 3
    assert (place / "given/file").read_text() == "as it was"


def test_no_namespace_brings_the_rights_back(inside: Inside) -> None:
    said = inside("""
        NEWUSER, NEWNS, SIGCHLD = 0x10000000, 0x20000, 17
        print(call(272, NEWUSER), call(272, NEWUSER | NEWNS))
        print(call(56, NEWUSER | SIGCHLD, 0, 0, 0, 0))
        print(call(435, struct.pack("QQQQQQQQ", NEWUSER, 0, 0, 0, SIGCHLD, 0, 0, 0), 64))
        print(call(308, os.open("/proc/self/ns/mnt", os.O_RDONLY), 0))
        os.fork() or os._exit(0)
        print("fork works", os.wait()[1])
    """)
    assert said.split("\n") == ["EPERM EPERM", "EPERM", "ENOSYS", "EPERM", "fork works 0"]


def test_no_file_of_the_output_makes_its_caller_root(inside: Inside, place: Path) -> None:
    said = inside("""
        write("/mnt/out/tool")
        fd = os.open("/mnt/out/tool", os.O_RDWR)
        print(attempt(os.chmod, "/mnt/out/tool", 0o4755))
        print(attempt(os.fchmod, fd, 0o4755))
        print(call(268, -100, b"/mnt/out/tool", 0o4755))
        print(call(452, -100, b"/mnt/out/tool", 0o4755, 0))
        print(attempt(os.open, "/mnt/out/new", os.O_CREAT | os.O_WRONLY, 0o4755))
        print(call(2, b"/mnt/out/new", os.O_CREAT | os.O_WRONLY, 0o4755))
        print(attempt(os.open, "/mnt/out", os.O_TMPFILE | os.O_WRONLY, 0o4755))
        print(call(85, b"/mnt/out/new", 0o4755))
        print(attempt(os.mknod, "/mnt/out/new", 0o4755 | stat.S_IFREG))
        print(call(437, -100, b"/mnt/out/new", struct.pack("QQQ", 0o101, 0o4755, 0), 24))
        # cap_setuid+ep
        raw = struct.pack("<IIIII", 0x02000001, 1 << 7, 0, 0, 0)
        print(attempt(os.setxattr, fd, "security.capability", raw))
        print(attempt(os.chmod, "/mnt/out/tool", 0o755))
    """)
    assert said.split("\n") == ["EPERM"] * 9 + ["ENOSYS", "EPERM", "done"]
    assert sorted(path.name for path in (place / "out").iterdir()) == ["tool"]
    assert stat.S_IMODE((place / "out/tool").stat().st_mode) == 0o755


def test_no_other_name_of_a_file_of_the_host_is_made(inside: Inside, place: Path) -> None:
    said = inside("""
        print(attempt(os.link, "/mnt/given/file", "/mnt/out/link"))
        print(attempt(os.rename, "/mnt/given/file", "/mnt/out/file"))
    """)
    assert set(said.split()) <= {"EXDEV", "EROFS", "EPERM"}
    assert not list((place / "out").iterdir())


def test_a_file_is_not_opened_by_its_number(inside: Inside) -> None:
    # As "shocker" left Docker: the root of the file system has inode 2.
    said = inside("""
        handle = struct.pack("=IiQ", 8, 1, 2)
        print(call(304, os.open("/mnt/given", os.O_RDONLY), handle, os.O_RDONLY))
    """)
    assert said == "EPERM"


def test_the_kernels_other_doors_are_shut(inside: Inside) -> None:
    calls = {
        "add_key": (248, 'b"user", b"n", b"p", 1, -5'),
        "request_key": (249, 'b"user", b"n", None, -5'),
        "keyctl": (250, "0, -4, 0"),
        "bpf": (321, "0, None, 0"),
        "perf_event_open": (298, "None, 0, -1, -1, 0"),
        "userfaultfd": (323, "1"),
        "io_uring_setup": (425, "1, None"),
        "init_module": (175, 'None, 0, b""'),
        "finit_module": (313, '-1, b"", 0'),
        "delete_module": (176, 'b"none", 0'),
        "kexec_load": (246, "0, 0, None, 0"),
        "swapon": (167, 'b"/mnt/out/swap", 0'),
        "reboot": (169, "0, 0, 0, None"),
        "acct": (163, 'b"/mnt/out/acct"'),
        "syslog": (103, "10, None, 0"),
        "settimeofday": (164, "None, None"),
        "fanotify_init": (300, "0, 0"),
    }
    program = "\n".join(
        f"print({name!r}, call({number}, {rest}))" for name, (number, rest) in calls.items()
    )
    assert inside(program).split("\n") == [f"{name} EPERM" for name in calls]


def test_a_terminal_gets_no_input_from_it(inside: Inside) -> None:
    said = inside("""
        import fcntl, pty
        master, slave = pty.openpty()
        print(attempt(fcntl.ioctl, slave, 0x5412, b"x"), attempt(fcntl.ioctl, slave, 0x541c, b"x"))
        print(attempt(open, "/dev/tty"))
    """)
    assert said.split() == ["EPERM", "EPERM", "ENXIO"]


def test_the_hosts_processes_are_neither_seen_nor_signalled(inside: Inside) -> None:
    victim = subprocess.Popen(["sleep", "60"])
    try:
        said = inside(f"""
            seen = [one for one in os.listdir("/proc") if one.isdigit()]
            print(all(int(one) < 100 for one in seen), attempt(os.kill, {victim.pid}, 9))
        """)
        assert said == "True ESRCH"
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()


def test_there_is_no_network_unless_asked_for(inside: Inside) -> None:
    names = "print(sorted(name for _, name in socket.if_nameindex()))"
    assert inside(names) == "['lo']"
    assert inside(names, network=True) == repr(sorted(name for _, name in socket.if_nameindex()))


def test_with_the_network_no_service_takes_it_for_root(place: Path) -> None:
    # A socket without a file is open to all of a network namespace; services ask for the uid.
    name = f"\0cplayground-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name)
        listener.listen()
        program = f"s = socket.socket(socket.AF_UNIX); s.connect({name!r})"
        sandbox.enter(
            Root("bookworm", place / "root", "digest"),
            ["python3", "-I", "-c", HELPERS + program],
            binds=[Bind(Path("/usr"), "/usr")],
            timeout_s=60,
            network=True,
        )
        connection, _ = listener.accept()
        with connection:
            peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    assert int.from_bytes(peer[4:8], sys.byteorder) >= 1 << 31


def test_files_of_any_owner_and_mode_can_be_read_and_given_away(place: Path) -> None:
    # As in a checkout that another user owns, made under umask 077.
    os.chown(place / "given/file", 12345, 12345)
    (place / "given/file").chmod(0o600)
    os.chown(place / "given", 12345, 12345)
    (place / "given").chmod(0o700)
    sandbox.enter(
        Root("bookworm", place / "root", "digest"),
        ["sh", "-c", "cp /mnt/given/file /mnt/out/file && chown 7:8 /mnt/out/file"],
        binds=[
            Bind(Path("/usr"), "/usr"),
            Bind(place / "given", "/mnt/given"),
            Bind(place / "out", "/mnt/out", writable=True),
        ],
        timeout_s=60,
    )
    made = (place / "out/file").stat()
    assert (made.st_uid, made.st_gid, (place / "out/file").read_text()) == (7, 8, "as it was")


@pytest.mark.parametrize("unmapped", [False, True])
def test_a_writable_root_takes_packages_but_gives_no_more(place: Path, unmapped: bool) -> None:
    (place / "root/mnt/sys").mkdir()
    program = HELPERS + textwrap.dedent("""
        write("/su")
        print(attempt(os.chown, "/su", 0, 7), attempt(os.chmod, "/su", 0o4755))
        print(attempt(write, "/proc/sys/kernel/core_pattern", "core"))
        print(call(165, b"tmpfs", b"/tmp", b"tmpfs", 0, None), call(272, 0x10000000))
        print(attempt(os.mknod, "/disk", 0o600 | stat.S_IFBLK, os.makedev(8, 0)))
    """)
    done = sandbox.enter(
        Root("bookworm", place / "root", "digest"),
        ["python3", "-I", "-c", program],
        binds=[
            Bind(Path("/usr"), "/usr"),
            *([Bind(Path("/sys/kernel"), "/mnt/sys")] if unmapped else []),
        ],
        timeout_s=60,
        writable=True,
    )
    assert done.stdout.split() == ["done", "done", "EROFS", "EPERM", "EPERM", "EPERM"]
    made = (place / "root/su").stat()
    assert (made.st_uid, made.st_gid, stat.S_IMODE(made.st_mode)) == (0, 7, 0o4755)


def test_a_killed_run_leaves_no_process_and_no_mount(place: Path) -> None:
    code = textwrap.dedent(f"""
        from pathlib import Path
        from kbuild.core import sandbox
        from kbuild.core.model import Root
        from kbuild.core.sandbox import Bind
        sandbox.enter(
            Root("bookworm", Path({str(place / "root")!r}), "digest"),
            ["sh", "-c", "while :; do echo >> /mnt/out/alive; sleep 0.02; done"],
            binds=[
                Bind(Path("/usr"), "/usr"),
                Bind(Path({str(place / "out")!r}), "/mnt/out", writable=True),
            ],
            timeout_s=60,
        )
    """)

    def mounts() -> list[str]:
        # Other tests may mount something at the same time, and this one in another run.
        mine = "/".join(place.parts[-3:])
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        return [line for line in lines if mine in line]

    killed = subprocess.Popen([sys.executable, "-c", code], cwd=PROJECT)
    wait_for((place / "out/alive").exists)
    assert mounts() == []
    killed.send_signal(signal.SIGKILL)
    killed.wait(timeout=20)

    def still() -> bool:
        size = (place / "out/alive").stat().st_size
        time.sleep(0.3)
        return (place / "out/alive").stat().st_size == size

    wait_for(still)
    assert mounts() == []


def test_a_stopped_command_writes_no_more(place: Path) -> None:
    program = "trap '' TERM; while :; do echo >> /mnt/out/alive; done"
    command = sandbox.command(
        Root("bookworm", place / "root", "digest"),
        ["sh", "-c", f"({program}) & ({program}) & wait"],
        binds=[Bind(Path("/usr"), "/usr"), Bind(place / "out", "/mnt/out", writable=True)],
    )
    process = run.start(command)
    wait_for((place / "out/alive").exists)
    run.stop(process)
    (place / "out/alive").unlink()
    time.sleep(0.3)
    assert not (place / "out/alive").exists()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
