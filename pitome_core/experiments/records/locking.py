"""One writer at a time: the lock around every record, log and file of timings, which carries its holder's name."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from pitome_core.experiments.records import files
from pitome_core.experiments.records.files import RecordError


@contextlib.contextmanager
def alone(path: Path, wait: float = 0.0) -> Iterator[None]:
    """Let one process at a time write the file ``path``; a block inside a block of the same thread enters at once.

    The lock is ``.<name>.lock`` beside the file. The operating system frees it when its holder ends, killed or not; the
    file that stays behind then locks nothing. What killed writers of ``path`` left is removed.

    Args:
        path: the file to write. It need not exist; missing folders are made.
        wait: seconds to wait for another holder.

    Raises:
        RecordError: another process holds the lock, and the message names it; or the folder cannot be written.
    """
    lock_file = path.with_name(f".{path.name}.lock")
    with files.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(lock_file.absolute(), is_singleton=True)
        try:
            lock.acquire(timeout=wait)
        except Timeout:
            reason = f"{path} is being written by {_holder(lock_file)}: wait until it has ended, or stop it"
            raise RecordError(reason) from None
    outermost = lock.lock_counter == 1
    try:
        if outermost:
            with files.writing(path):
                lock_file.write_text(f"process {os.getpid()} (`{command()}`, since {now()})", encoding="utf-8")
                for one in files.left_over(path):
                    one.unlink(missing_ok=True)
        yield
    finally:
        if outermost:  # while it is held: who opens the file meanwhile sees that it has gone, and tries again
            with contextlib.suppress(OSError):
                lock_file.unlink()
        lock.release()


def _holder(lock_file: Path) -> str:
    """What the holder of a lock wrote into it."""
    try:
        return lock_file.read_text(encoding="utf-8") or "another run"
    except (OSError, ValueError):
        return "another run"


def now() -> str:
    """Date and time, to the second, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def command() -> str:
    """How this process was started, without the folders of this machine."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    words = [_without_folders(word) for word in sys.argv]
    if spec is not None and spec.name:
        words = ["-m", spec.name.removesuffix(".__main__"), *words[1:]]
    return shlex.join(["python", *(words if words and words[0] else [])])


def _without_folders(word: str) -> str:
    """``/data/imagenet/val`` -> ``.../val``, also behind ``--data=`` and ``local-dir:``."""
    before, value = re.fullmatch(r"(.*?[=:](?=[/~]))?(.*)", word, re.DOTALL).groups("")
    is_path = value.startswith("~") or Path(value).is_absolute()
    return f"{before}.../{Path(value).name}" if is_path else word
