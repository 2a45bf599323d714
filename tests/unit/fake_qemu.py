"""A fake QEMU without a guest: it speaks QMP and plays an agent, a good one or a bad one.

The file "behaviour" next to this script decides how it behaves.
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

from kbuild.guest.channel import Decoder, Frame, Kind, encode

BANNER = "[    0.000000] Linux version 6.1.0-fake (fake) #1\r\n"

# Commands that print what they read.
ECHOES: set[int] = set()
STATE = b"processors and devices"
# Shortened output of QEMU 7.2: one processor runs, and one waits.
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
    passed = re.search(r"-add-fd fd=(\d+),set=1", text)
    assert passed is not None
    console = int(passed.group(1))
    restored = "-incoming" in sys.argv
    if not restored and behaviour not in ("silent console", "waits in the boot loader"):
        os.write(console, BANNER.encode())
    if behaviour == "oops":
        os.write(console, b"[    1.0] BUG: kernel NULL pointer dereference, address: 0\r\n")
        sys.exit(0)
    if memory := re.search(r"mem-path=([^ ,]+),share=on", text):
        Path(memory.group(1)).write_text("the guest's memory")
    runs = threading.Event()
    threading.Thread(target=_monitor, args=(qmp, control, behaviour, runs), daemon=True).start()
    if behaviour in ("hang", "ignores SIGTERM", "waits in the boot loader"):
        if behaviour == "ignores SIGTERM":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(60)
    if not restored:
        runs.set()
    runs.wait()
    _serve(control, qmp, behaviour, console)


def _monitor(
    qmp: socket.socket, control: socket.socket, behaviour: str, runs: threading.Event
) -> None:
    """Answer the machine protocol: each line is one command, with an optional open file."""
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
                # Bytes that come before the guest runs are lost.
                if select.select([control], [], [], 0)[0]:
                    print("bytes came too early", file=sys.stderr, flush=True)
                    os._exit(1)
                # QEMU sends the event before its answer, too.
                qmp.sendall(b'{"event": "RESUME"}\n')
                runs.set()
        qmp.sendall(json.dumps({"return": answer}).encode() + b"\n")


def _fd(text: str, name: str) -> int:
    found = re.search(rf"id={name},fd=(\d+)", text)
    assert found is not None
    return int(found.group(1))


def _serve(control: socket.socket, qmp: socket.socket, behaviour: str, console: int) -> None:
    decoder = Decoder()
    while data := control.recv(65536):
        for frame in decoder.feed(data):
            if frame.kind is Kind.PING:
                spoken = b"0" if behaviour == "old agent" else b"2"
                processors = b"1" if behaviour == "one processor" else b"2"
                hello = spoken + b"\nboot-id\n6.1.0-fake\n" + processors + b"\n"
                if behaviour == "garbled hello":
                    hello = b"2\n"
                control.sendall(encode(Frame(Kind.HELLO, 0, hello)))
            elif frame.kind is Kind.START:
                _command(control, qmp, frame, behaviour, console)
            elif frame.kind is Kind.MARK:
                if behaviour != "console gone":
                    os.write(console, b"[    2.0] " + frame.payload + b"\r\n")
                control.sendall(encode(Frame(Kind.MARKED, frame.id)))
            elif frame.kind is Kind.INPUT:
                control.sendall(encode(Frame(Kind.STDOUT, frame.id, frame.payload)))
                control.sendall(encode(Frame(Kind.INPUT_TAKEN, frame.id)))
            elif frame.kind is Kind.CLOSE_INPUT:
                if frame.id in ECHOES:
                    control.sendall(encode(Frame(Kind.EXIT, frame.id, bytes(8))))
            elif frame.kind is Kind.SIGNAL:
                end = (-frame.payload[0]).to_bytes(4, "little", signed=True) + bytes(4)
                control.sendall(encode(Frame(Kind.EXIT, frame.id, end)))
            elif frame.kind is Kind.POWER_OFF:
                os.write(console, b"[    3.0] asked to power off\r\n")
                control.sendall(encode(Frame(Kind.FAREWELL, frame.id, bytes(4))))
                _tell(qmp, reason="guest-reset" if behaviour == "reset" else "guest-shutdown")
                sys.exit(0)


def _tell(qmp: socket.socket, event: str = "SHUTDOWN", **data: object) -> None:
    qmp.sendall(json.dumps({"event": event, "data": data}).encode() + b"\n")


def _command(
    control: socket.socket, qmp: socket.socket, frame: Frame, behaviour: str, console: int
) -> None:
    argv = frame.payload[7:].split(b"\0")[1:]
    path = argv[1].decode() if len(argv) > 1 else ""
    status, output = _files(behaviour).get(path, (0, b"done\n"))
    script = argv[2] if argv[:2] == [b"sh", b"-c"] else b""
    if behaviour == "no process" and argv[0] == b"cat":
        refusal = b"no process: Resource temporarily unavailable"
        control.sendall(encode(Frame(Kind.REFUSED, frame.id, refusal)))
        return
    if b"virtio-ports" in script or (argv[0] == b"sh" and not script):  # no virtio port here
        status = 1
    elif b"cgroup: " in script:  # of tests/vm/slots.py
        kept = Path(sys.argv[0]).with_name("state")
        output = kept.read_bytes() if kept.exists() else b""
    elif b"echo scan" in script:
        status = 1 if behaviour == "kmemleak off" else 0
    elif script == b"cat":
        ECHOES.add(frame.id)
        return
    elif argv[0] == b"systemctl":
        if behaviour == "never settles":
            _end(control, frame, -9, flags=1)
            return
        broken = behaviour == "failed unit"
        if b"is-system-running" in argv:
            status, output = (1, b"degraded\n") if broken else (0, b"running\n")
        else:
            output = b"ssh.service loaded failed failed OpenBSD Secure Shell\n" if broken else b""
    elif argv[0] == b"work" or script:
        if behaviour in ("is reset", "is reset by its watchdog"):
            if behaviour != "is reset":
                _tell(qmp, "WATCHDOG", action="reset")
            _tell(qmp, reason="guest-reset")
            sys.exit(0)
        did = _misbehave(control, frame, behaviour, console)
        if did is None:
            return
        status = int(script[5:]) if script.startswith(b"exit ") else did
    elif argv[0] == b"@wake" and behaviour == "no entropy":
        status = 1
    elif argv[0] == b"test":
        status, output = (0 if "leak" in behaviour else 1), b""
    control.sendall(encode(Frame(Kind.STDOUT, frame.id, output)))
    _end(control, frame, status)


def _end(control: socket.socket, frame: Frame, status: int, *, flags: int = 0) -> None:
    end = status.to_bytes(4, "little", signed=True) + flags.to_bytes(4, "little")
    control.sendall(encode(Frame(Kind.EXIT, frame.id, end)))


def _misbehave(control: socket.socket, frame: Frame, behaviour: str, console: int) -> int | None:
    """Let the command itself go wrong; return its status, None if that was sent already."""

    def say(kind: Kind, payload: bytes) -> None:
        control.sendall(encode(Frame(kind, frame.id, payload)))

    match behaviour:
        case "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        case "dies talking":
            say(Kind.STDOUT, b"last words\n")
            say(Kind.STDERR, b"and a complaint\n")
            os.kill(os.getpid(), signal.SIGKILL)
        case "deaf":
            time.sleep(60)
        case "garbled exit":
            say(Kind.EXIT, b"abc")
            return None
        case "garbled status":
            _end(control, frame, 256)
            return None
        case "unasked answer":
            say(Kind.FAREWELL, bytes(4))
            return None
        case "floods the console":
            os.write(console, b"[    1.0] noise\r\n" * 10_000)
            return None  # and is silent
        case "prints for ever" | "is interrupted":
            for _ in range(10):
                say(Kind.STDOUT, b"y\n" * 1000)
            if behaviour == "is interrupted":
                time.sleep(0.3)  # output is shown only after the command's start
                os.kill(os.getppid(), signal.SIGINT)
            return None  # until it is killed
        case "out of memory":
            os.write(console, b"[    1.0] Out of memory: Killed process 77 (sh) total-vm:1kB\r\n")
            return -9
    return 0


def _files(behaviour: str) -> dict[str, tuple[int, bytes]]:
    locks = {"lockdep alive": b"1", "lockdep off": b"0"}.get(behaviour)
    watched = b"\nused_watchpoints: 0\nsetup_watchpoints: 9\n"
    races = {"kcsan alive": b"enabled: 1", "kcsan off": b"enabled: 0"}.get(behaviour)
    return {
        "/proc/cmdline": (0, b"BOOT_IMAGE=/boot/vmlinuz root=UUID=1\n"),
        "/proc/sys/kernel/tainted": (
            0,
            {"tainted": b"512\n", "garbled taint": b"a lot\n"}.get(behaviour, b"0\n"),
        ),
        "/sys/kernel/debug/kcsan": (1, b"") if races is None else (0, races + watched),
        "/proc/lockdep_stats": (1, b"") if locks is None else (0, b" debug_locks:    %s\n" % locks),
        "/sys/kernel/debug/kmemleak": (
            0,
            {"leaky": LEAK + BOOT_LEAK, "leaky at boot": BOOT_LEAK}.get(behaviour, b""),
        ),
    }


if __name__ == "__main__":
    main()
