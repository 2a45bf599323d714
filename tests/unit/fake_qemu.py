"""A QEMU that runs nothing: it speaks QMP and plays an agent, well or badly.

How it behaves is the text of the file "behaviour" beside this script's link.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import sys
import threading
import time
from pathlib import Path

from kbuild.vm.channel import Decoder, Frame, Kind, encode

BANNER = "[    0.000000] Linux version 6.1.0-fake (fake) #1\r\n"

STATE = b"processors and devices"
# Of QEMU 7.2, shortened: one processor runs, one waits.
REGISTERS = "\r\n".join(
    f"CPU#{cpu}\r\nRAX=0000000000000000 RBX=0000000000000000\r\n"
    f"RIP={address} RFL=00000046 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT={halted}\r\nES =0000\r\n"
    for cpu, address, halted in ((0, "ffffffff81c00ba0", 0), (1, "ffffffff81a04ffe", 1))
)
LEAK = b'unreferenced object 0xffff888003a5ed40 (size 64):\n  comm "sh", pid 1, jiffies 1\n'
BOOT_LEAK = LEAK.replace(b'"sh", pid 1', b'"swapper/0", pid 0')


def main() -> None:
    if "--version" in sys.argv:
        print("QEMU emulator version 7.2 (fake)")
        return
    behaviour = (Path(sys.argv[0]).parent / "behaviour").read_text().strip()
    text = " ".join(sys.argv)
    control, qmp = (socket.socket(fileno=_fd(text, name)) for name in ("control", "qmp"))
    if behaviour == "bad option":
        sys.exit("qemu: -accel banana: invalid accelerator")
    if behaviour == "mute":
        time.sleep(60)
    qmp.sendall(b'{"QMP": {}}\n')
    qmp.recv(4096)
    qmp.sendall(b'{"return": {}}\n')
    console = re.search(r"id=console,path=([^ ,]+)", text)
    assert console is not None
    restored = "-incoming" in sys.argv
    with Path(console.group(1)).open("a" if restored else "w") as stream:
        stream.write("" if restored or behaviour == "silent console" else BANNER)
        if behaviour == "oops":
            stream.write("[    1.0] BUG: kernel NULL pointer dereference, address: 0\r\n")
    if behaviour == "oops":
        sys.exit(0)
    if memory := re.search(r"mem-path=([^ ,]+),share=on", text):
        Path(memory.group(1)).write_text("the guest's memory")
    runs = threading.Event()
    threading.Thread(target=_monitor, args=(qmp, control, behaviour, runs), daemon=True).start()
    if behaviour in ("hang", "ignores SIGTERM"):
        if behaviour == "ignores SIGTERM":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(60)
    if not restored:
        runs.set()
    runs.wait()
    _serve(control, qmp, behaviour, Path(console.group(1)))


def _monitor(
    qmp: socket.socket, control: socket.socket, behaviour: str, runs: threading.Event
) -> None:
    """Answer the machine protocol: one line is one command here, and an open file comes with it."""
    files: list[int] = []
    while True:
        data, passed, _, _ = socket.recv_fds(qmp, 65536, 1)
        if not data:
            return
        files += passed
        answer: object = {}
        match json.loads(data)["execute"]:
            case "quit":
                qmp.sendall(b'{"return": {}}\n')
                os._exit(1 if behaviour == "dies at quit" else 0)
            case "migrate":
                os.write(files[-1], STATE)
            case "query-migrate":
                answer = {"status": "failed" if behaviour == "no room" else "completed"}
            case "human-monitor-command":
                answer = REGISTERS
            case "migrate-set-capabilities" if behaviour == "old QEMU":
                qmp.sendall(b'{"error": {"desc": "Parameter is unexpected"}}\n')
                continue
            case "migrate-incoming":
                if os.read(files[-1], 100) != STATE:
                    print("qemu: Not a migration stream", file=sys.stderr, flush=True)
                    os._exit(1)
                if behaviour == "sleeps on":
                    time.sleep(60)
                # What comes before the guest runs is lost.
                if select.select([control], [], [], 0)[0]:
                    print("bytes came too early", file=sys.stderr, flush=True)
                    os._exit(1)
                # As QEMU does, before its answer.
                qmp.sendall(b'{"event": "RESUME"}\n')
                runs.set()
        qmp.sendall(json.dumps({"return": answer}).encode() + b"\n")


def _fd(text: str, name: str) -> int:
    found = re.search(rf"id={name},fd=(\d+)", text)
    assert found is not None
    return int(found.group(1))


def _serve(control: socket.socket, qmp: socket.socket, behaviour: str, console: Path) -> None:
    decoder = Decoder()
    while data := control.recv(65536):
        for frame in decoder.feed(data):
            if frame.kind is Kind.PING:
                spoken = b"0" if behaviour == "old agent" else b"2"
                processors = b"1" if behaviour == "one processor" else b"2"
                hello = spoken + b"\nboot-id\n6.1.0-fake\n" + processors + b"\n"
                control.sendall(encode(Frame(Kind.HELLO, 0, hello)))
            elif frame.kind is Kind.START:
                _command(control, frame, behaviour)
            elif frame.kind is Kind.MARK:
                if behaviour != "console gone":
                    with console.open("ab") as stream:
                        stream.write(b"[    2.0] " + frame.payload + b"\r\n")
                control.sendall(encode(Frame(Kind.MARKED, frame.id)))
            elif frame.kind is Kind.INPUT:
                control.sendall(encode(Frame(Kind.INPUT_TAKEN, frame.id)))
            elif frame.kind is Kind.POWER_OFF:
                control.sendall(encode(Frame(Kind.FAREWELL, frame.id, bytes(4))))
                reason = "guest-reset" if behaviour == "reset" else "guest-shutdown"
                event = {"event": "SHUTDOWN", "data": {"guest": True, "reason": reason}}
                qmp.sendall(json.dumps(event).encode() + b"\n")
                sys.exit(0)


def _command(control: socket.socket, frame: Frame, behaviour: str) -> None:
    argv = frame.payload[7:].split(b"\0")[1:]
    if behaviour == "dies" and argv[0] == b"work":
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour == "deaf" and argv[0] == b"work":
        time.sleep(60)
    path = argv[1].decode() if len(argv) > 1 else ""
    status, output = _files(behaviour).get(path, (0, b"done\n"))
    if argv[0] == b"@wake" and behaviour == "no entropy":
        status = 1
    if argv[0] == b"sh":  # no virtio port here
        status = 0 if b"echo scan" in frame.payload and behaviour != "kmemleak off" else 1
    if argv[0] == b"test":
        status, output = (0 if "leak" in behaviour else 1), b""
    control.sendall(encode(Frame(Kind.STDOUT, frame.id, output)))
    end = status.to_bytes(4, "little") + bytes(4)
    control.sendall(encode(Frame(Kind.EXIT, frame.id, end)))


def _files(behaviour: str) -> dict[str, tuple[int, bytes]]:
    locks = {"lockdep alive": b"1", "lockdep off": b"0"}.get(behaviour)
    watched = b"\nused_watchpoints: 0\nsetup_watchpoints: 9\n"
    races = {"kcsan alive": b"enabled: 1", "kcsan off": b"enabled: 0"}.get(behaviour)
    return {
        "/proc/sys/kernel/tainted": (0, b"512\n" if behaviour == "tainted" else b"0\n"),
        "/sys/kernel/debug/kcsan": (1, b"") if races is None else (0, races + watched),
        "/proc/lockdep_stats": (1, b"") if locks is None else (0, b" debug_locks:    %s\n" % locks),
        "/sys/kernel/debug/kmemleak": (
            0,
            {"leaky": LEAK + BOOT_LEAK, "leaky at boot": BOOT_LEAK}.get(behaviour, b""),
        ),
    }


if __name__ == "__main__":
    main()
