"""Snapshots for the tests of the pictures, made by hand: one for each thing that is drawn."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence

from cplayground.findings import Finding
from cplayground.snapshot import (
    Container,
    Descriptor,
    Holder,
    Name,
    OpenFile,
    Process,
    Snapshot,
)

RW, WRITE, APPEND, NONBLOCK = 2, 1, 0o2000, 0o4000
Scene = tuple[Snapshot, tuple[Finding, ...]]


def hashed(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()


class Maker:
    """Collects open files and processes."""

    def __init__(self) -> None:
        self._files: list[OpenFile] = []
        self._processes: list[Process] = []

    def file(self, path: bytes, flags: int = 0, position: int = 0) -> OpenFile:
        number = len(self._files) + 1
        made = OpenFile(number, hashed(number), position, flags, Name(path))
        self._files.append(made)
        return made

    def pipe(self, number: int) -> tuple[OpenFile, OpenFile]:
        path = b"pipe:[%d]" % number
        return self.file(path), self.file(path, WRITE)

    def process(
        self,
        global_pid: int,
        pid: int,
        ppid: int,
        command: bytes,
        files: Mapping[int, OpenFile],
        *,
        exec_closes: Sequence[int] = (),
        namespace: object = "one",
    ) -> Process:
        table = tuple(
            Descriptor(fd, fd in exec_closes, f, f.position, f.flags, f.path)
            for fd, f in sorted(files.items())
        )
        made = Process(hashed(namespace), global_pid, pid, ppid, pid, Name(command), table)
        self._processes.append(made)
        return made

    def snapshot(self, *containers: Container) -> Snapshot:
        ordered = sorted(self._processes, key=lambda process: process.global_pid)
        return Snapshot(tuple(ordered), tuple(self._files), containers=containers)


def holder(process: Process, fd: int) -> Holder:
    return Holder(process, next(one for one in process.descriptors if one.fd == fd))


def story() -> Scene:
    """A parent and two children, of which one waits for the end of its own pipe."""
    make = Maker()
    terminal = make.file(b"/dev/pts/0", RW)
    read, write = make.pipe(41822)
    listed = make.file(b"/usr/share/dict/words", position=16384)
    everywhere = {0: terminal, 1: terminal, 2: terminal}
    parent = make.process(5210, 17, 1, b"story", {**everywhere, 3: read, 4: write})
    make.process(5211, 18, 17, b"cat", {0: listed, 1: write, 2: terminal})
    sort = make.process(5212, 19, 17, b"sort", {**everywhere, 0: read, 4: write})
    finding = Finding(
        "error",
        "sort:19/0 waits for the end of pipe:[41822], but holds its write end itself as sort:19/4, "
        "and story:17/4 holds it and waits for sort:19.",
        Name(b"pipe:[41822]"),
        (holder(sort, 0),),
        (holder(sort, 4), holder(parent, 4)),
        ("/proc/5212/task/5212/syscall: sleeps in pipe_read, read(0) of pipe:[41822]",),
    )
    return make.snapshot(), (finding,)


def redirect() -> Scene:
    """``sort < names.txt >> sorted.txt 2>&1``"""
    make = Maker()
    terminal = make.file(b"/dev/pts/0", RW)
    names = make.file(b"/home/student/names.txt")
    result = make.file(b"/home/student/sorted.txt", WRITE | APPEND, 812)
    shell = {0: terminal, 1: terminal, 2: terminal, 255: terminal}
    make.process(6001, 40, 1, b"bash", shell, exec_closes=[255])
    make.process(6002, 41, 40, b"sort", {0: names, 1: result, 2: result})
    return make.snapshot(), ()


def containers() -> Scene:
    """Two containers that share a log."""
    make = Maker()
    log = make.file(b"/var/log/shared/app.log", WRITE | APPEND, 88213)
    null, out = make.file(b"/dev/null", RW), make.file(b"pipe:[660]", WRITE)
    listening = make.file(b"socket:[7001]", RW | NONBLOCK)
    web = {0: null, 1: out, 2: out, 4: listening, 5: log}
    events, peer = make.file(b"anon_inode:[eventpoll]", RW), make.file(b"socket:[7002]", RW)
    make.process(3001, 1, 0, b"nginx", web, namespace="web")
    more = {**web, 6: events, 7: peer}
    make.process(3002, 7, 1, b"nginx", more, exec_closes=[6, 7], namespace="web")
    other, printed = make.file(b"/dev/null", RW), make.file(b"pipe:[661]", WRITE)
    data = make.file(b"/var/lib/db/data.mdb", RW, 40960)
    table = {0: other, 1: printed, 2: printed, 3: data, 5: log}
    make.process(3101, 1, 0, b"db", table, exec_closes=[3], namespace="db")
    return make.snapshot(
        Container("web", "f" * 64, "docker", "", (3001, 3002)),
        Container("database", "e" * 64, "podman", "shop/database-0", (3101,)),
    ), ()


def sixty() -> Scene:
    """A server with sixty descriptors, of which its worker shares four."""
    make = Maker()
    null, log = make.file(b"/dev/null", RW), make.file(b"/var/log/server.log", WRITE | APPEND, 9)
    shared = {0: null, 1: log, 2: log, 3: make.file(b"socket:[100]", RW)}
    own = {
        **{4 + n: make.file(b"socket:[%d]" % (200 + n), RW | NONBLOCK) for n in range(40)},
        **{44 + n: make.file(b"/srv/data/part-%03d.db" % n, RW, 4096 * n) for n in range(16)},
    }
    make.process(800, 1, 0, b"server", {**shared, **own}, exec_closes=range(4, 30))
    make.process(801, 2, 1, b"worker", shared)
    return make.snapshot(), ()


def forked() -> Scene:
    """A parent and its child after fork(): all sixty descriptors are shared."""
    make = Maker()
    terminal = make.file(b"/dev/pts/0", RW)
    files = {3 + n: make.file(b"/srv/data/part-%03d.db" % n, RW) for n in range(57)}
    table = {0: terminal, 1: terminal, 2: terminal, **files}
    make.process(800, 31, 1, b"parent", table)
    make.process(801, 32, 31, b"child", table)
    return make.snapshot(), ()


def pipeline() -> Scene:
    """``cat /var/log/syslog | tr A-Z a-z | sort | uniq -c | less``"""
    make = Maker()
    terminal, log = make.file(b"/dev/pts/1", RW), make.file(b"/var/log/syslog", 0, 1 << 20)
    shell = {0: terminal, 1: terminal, 2: terminal, 255: terminal}
    make.process(700, 10, 1, b"bash", shell, exec_closes=[255])
    pipes = [make.pipe(900 + n) for n in range(4)]
    for at, command in enumerate([b"cat", b"tr", b"sort", b"uniq", b"less"]):
        read = pipes[at - 1][0] if at else log
        write = pipes[at][1] if at < 4 else terminal
        table = {0: read, 1: write, 2: terminal}
        if command == b"less":
            table[3] = make.file(b"/dev/tty", NONBLOCK)
        make.process(701 + at, 11 + at, 10, command, table, exec_closes=[3])
    return make.snapshot(), ()


def thousand() -> Scene:
    """Twenty containers of fifty processes; two of them share a log, and one misses a close()."""
    make = Maker()
    log = make.file(b"/var/log/all.log", WRITE | APPEND)
    read, write = make.pipe(77)
    made = []
    for number in range(20):
        null, out = make.file(b"/dev/null", RW), make.file(b"pipe:[%d]" % (100 + number), WRITE)
        sock = make.file(b"socket:[%d]" % number, RW)
        first = 10_000 + 50 * number
        for at in range(50):
            table = {0: null, 1: out, 2: out}
            command = b"tini" if at == 0 else b"worker" if at <= 40 else b"cron"
            if at <= 40:
                table[3] = sock
            if command == b"worker":
                table[4] = make.file(b"anon_inode:[eventpoll]", RW)
            if number in (3, 4):
                table[9] = log
            if number == 5 and at == 49:
                table |= {3: read, 4: write}
            make.process(first + at, at + 1, int(at > 0), command, table, namespace=number)
        pids = tuple(range(first, first + 50))
        made.append(Container(f"app-{number}", hashed(number), "docker", "", pids))
    snapshot = make.snapshot(*made)
    stuck = next(one for one in snapshot.processes if one.global_pid == 10_299)
    finding = Finding(
        "warning",
        "In app-5, cron:50 is the only process with an end of pipe:[77]: cron:50/3 to read, "
        "cron:50/4 to write. A read of the empty pipe waits for ever.",
        read.path,
        (holder(stuck, 3),),
        (holder(stuck, 4),),
        (),
    )
    return snapshot, (finding,)


def hostile() -> Scene:
    """Names of markup, control bytes, other directions, other widths, and bytes of no text."""
    make = Maker()
    paths = [
        b'/tmp/<b onload="x">&amp;\x01\x1b[31m',
        b"/tmp/\xff\xfe\x80\xed\xa0\x80",
        ("/tmp/\u202eexe.txt" + "\u0301" * 40).encode(),
        ("/tmp/" + "\U0001f9ff漢字" * 12).encode(),
        b"/tmp/" + b"W" * 300,
        "/tmp/שלום/ملف.txt".encode(),
        b"/tmp/]]>--></style><script>alert(1)</script>",
        ("/x/" + "﷽" * 20).encode(),
        "/tmp/\ufffe\uffff\ufeff\u2028\U000e0041".encode(),
    ]
    files = {at: make.file(path, RW, 1 << 62) for at, path in enumerate(paths)}
    make.process(1, 1, 0, b"\x1b]0;\xe2\x80\xae\\", files)
    make.process(1 << 22, 1 << 22, 1, b"\x01" * 15, {1 << 20: files[0]}, exec_closes=[1 << 20])
    make.process((1 << 22) + 1, 3, 1, b"", {})
    said = 'of "</text><script>" \x1b\u202e\ud800\udcff and ' + "漢" * 90 + " in " + "W" * 200
    return make.snapshot(), (Finding("note", said, None, (), (), (said, "\0")),)


def chance(seed: int) -> Scene:
    """Anything: a few processes in up to three namespaces, with findings about any descriptors."""
    dice = random.Random(seed)
    make = Maker()
    kinds = (b"/data/%d", b"pipe:[%d]", b"socket:[%d]", b"anon_inode:[%d]", b"/a/%d (deleted)")
    files = [
        make.file(
            dice.choice(kinds) % dice.randrange(8),
            dice.choice((0, 1, 2, 3)) | dice.choice((0, APPEND, NONBLOCK, APPEND | NONBLOCK)),
            dice.choice((0, 1, -1, (1 << 63) - 1)),
        )
        for _ in range(dice.randint(1, 20))
    ]
    processes = []
    for pid in range(1, dice.randint(2, 9)):
        fds = dice.sample(range(dice.choice((6, 70, 1 << 20))), dice.randint(0, 5))
        fds += range(dice.choice((0, 3, 12)))
        table = {fd: dice.choice(files) for fd in fds}
        command = bytes(dice.choices(range(1, 256), k=dice.randint(0, 15)))
        space, parent = dice.randrange(3), dice.randrange(pid)
        closes = dice.sample(fds, len(fds) // 2)
        number = dice.choice((pid, 4_000_000 + pid))
        made = make.process(
            number, pid, parent, command, table, exec_closes=closes, namespace=space
        )
        processes.append(made)
    held = [Holder(one, descriptor) for one in processes for descriptor in one.descriptors]
    findings = tuple(
        Finding(
            dice.choice(("error", "warning", "note")),
            "It waits for an end that never comes. " * dice.randint(1, 9),
            None,
            tuple(dice.sample(held, min(len(held), 2))),
            tuple(dice.sample(held, min(len(held), 3))),
            (),
        )
        for _ in range(dice.choice((0, 1, 7)))
    )
    return make.snapshot(), findings


def empty() -> Scene:
    """No container runs."""
    return Snapshot((), ()), ()


SCENES: Mapping[str, Callable[[], Scene]] = {
    scene.__name__: scene
    for scene in (
        *(story, redirect, containers, sixty, forked, pipeline, thousand, hostile, empty),
    )
}
