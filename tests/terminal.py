"""A command on a terminal of its own: what it shows there, and what a real Ctrl-C does."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Sequence


def on_terminal(
    script: str, arguments: Sequence[object] = (), *, columns: int = 80, interrupt_at: str = "", limit_s: float = 60.0
) -> tuple[int, str]:
    """Exit code of ``python -c script arguments…``, and all that it showed; Ctrl-C is pressed once `interrupt_at` is seen."""
    pid, screen = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # what runs in a script's background has it ignored
        os.environ |= {"TERM": "xterm-256color", "COLUMNS": str(columns)}
        os.execv(sys.executable, [sys.executable, "-c", script, *map(str, arguments)])
    fcntl.ioctl(screen, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    shown, until, pressed = b"", time.monotonic() + limit_s, not interrupt_at
    while time.monotonic() < until:
        if select.select([screen], [], [], 0.1)[0]:
            try:
                data = os.read(screen, 1 << 16)
            except OSError:  # how Linux tells that nobody is there any more
                break
            if not data:
                break
            shown += data
        if not pressed and interrupt_at.encode() in shown:
            os.write(screen, b"\x03")
            pressed = True
    else:
        os.kill(pid, 9)
    status = os.waitpid(pid, 0)[1]
    os.close(screen)
    return os.waitstatus_to_exitcode(status), shown.decode(errors="replace").replace("\r\n", "\n")
