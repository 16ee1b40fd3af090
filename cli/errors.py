"""How commands end: on wrong input with one line on stderr and exit code 2, on a fault of ours with 70, on Ctrl-C with 130."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

#: EX_SOFTWARE of sysexits.h. Python's own 1 means to our callers that some utterances failed.
FAULT = 70


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn ValueError, KeyError and OSError into ``error: …`` and exit code 2; also works as a decorator.

    These are the errors that our packages raise about input. Anything else is a fault of the program and shows its
    traceback, as does a KeyError that carries a bare key and no sentence; exit code 70. On Ctrl-C, `going_on_later` and
    `starting_over` inside of it know better what to say.

    >>> @app.command()
    ... @user_errors()
    ... def command(): ...
    """
    try:
        with _interrupted("nothing was changed; the same command begins anew"):
            yield
    except BrokenPipeError:
        raise
    except Exception as error:
        bare = isinstance(error, KeyError) and " " not in str(error)
        if bare or not isinstance(error, ValueError | KeyError | OSError):
            traceback.print_exc()
            raise SystemExit(FAULT) from None
        print(f"error: {message(error)}", file=sys.stderr)
        raise SystemExit(2) from None


@contextmanager
def going_on_later(finished: str = "stays", how: str = "the same command goes on") -> Iterator[None]:
    """Of work that can be gone on with: Ctrl-C says what is kept and how; exit code 130."""
    with _interrupted(f"what was finished {finished}; {how}"):
        yield


@contextmanager
def starting_over(what: str) -> Iterator[None]:
    """Of work that leaves nothing behind, or nothing that counts, where it is interrupted: Ctrl-C says so; exit code 130."""
    with _interrupted(f"this {what} is not whole and counts for nothing; the same command makes it anew"):
        yield


@contextmanager
def _interrupted(told: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        print(f"interrupted: {told}", file=sys.stderr)
        raise SystemExit(130) from None


def warn(text: str) -> None:
    """The one way in which commands warn: a line on stderr."""
    print(f"warning: {text}", file=sys.stderr)


def message(error: BaseException) -> str:
    """One line that says what an exception says: KeyError's text without quotes, OSError's with its file name."""
    if isinstance(error, KeyError) and len(error.args) == 1:
        text = str(error.args[0])
    elif isinstance(error, OSError) and error.strerror and error.filename is not None:
        text = f"{error.filename}: {error.strerror}{_next_step(error)}"
    else:
        text = str(error) + (_next_step(error) if isinstance(error, OSError) else "")
    return " ".join(text.split()) or type(error).__name__


def _next_step(error: OSError) -> str:
    """What to do about what the system says."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        which = "df -h" if error.errno == errno.ENOSPC else "quota -s"
        return f"; make room on that disk ({which} shows it), then run the same command again: what was finished stays"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "; close other programs, or raise the number of open files: ulimit -n 4096"
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return "; a file is in the way of a folder: choose another path"
    if error.errno == errno.EISDIR:
        return "; a folder, where a file is expected: name the file"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "; ask for permission (ls -ld shows who has it), or choose another path"
    if error.errno == errno.ENOENT:
        return f"; check the path, which is seen from {os.getcwd()}"
    return ""
