"""Files that are either whole or not there: text, JSON and tensors, and the hash by which a file is known.

**NaN and infinity.** JSON has no word for them, and a file with one is no JSON for other programs. The rule of every
record, log, timing and manifest: what is not finite is written as ``null`` (`plain`); where a number is expected,
``null`` is read as NaN. `one_line` refuses what `plain` has not seen.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

REMEDY = "restore it from version control, or delete it"  # for a file of ours that is damaged


class RecordError(RuntimeError):
    """A record cannot be used for what was asked; the message says what to do."""


def write_atomically(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all. Missing folders are made.

    The text goes into a new file in the same folder, which then takes the name `path` in one step. A process that is
    killed before that leaves the new file behind; `left_over` finds it.

    Raises:
        RecordError: it cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                stream.write(text)
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def save_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors, whole or not at all, with ``about`` as metadata. Missing folders are made.

    Raises:
        RecordError: the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    new = path.with_name(f".{path.name}.new")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file(dict(tensors), new, None if about is None else dict(about))
            new.replace(path)
        except SafetensorError as error:  # its word for what the system refuses
            raise OSError(str(error)) from error
        finally:
            new.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system refuses inside the block, such as a full disk, into `RecordError` with a remedy."""
    try:
        yield
    except OSError as error:
        raise RecordError(
            f"{path} cannot be written ({error.strerror or error}): make room, or choose a folder that can be written"
        ) from error


def left_over(path: Path) -> list[Path]:
    """The files that killed writers of ``path`` left, no others (an editor's). Ask where no other process writes it."""
    name = re.compile(re.escape(f".{path.name}.") + "([a-z0-9_]{8}|new)")  # of `tempfile.mkstemp`, of `save_tensors`
    return [one for one in path.parent.iterdir() if name.fullmatch(one.name)]


def read_json(path: Path) -> Any:
    """The content of a JSON file; a NaN or an infinity, which older files may hold, is None.

    Raises:
        RecordError: the file cannot be read or is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda name: None)
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RecordError(f"{path} cannot be read ({reason}): {REMEDY}") from error


def plain(value: Any) -> Any:
    """A value as its JSON is read back: tuples are lists, keys are text, what is not finite is None."""
    return json.loads(json.dumps(value), parse_constant=lambda name: None)


def digest(path: Path) -> str:
    """12 hexadecimal digits of the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def one_line(value: Any) -> str:
    """A value as JSON on one line, with characters beyond ASCII as they are. ``ValueError`` for NaN and infinity."""
    return json.dumps(value, ensure_ascii=False, separators=(", ", ": "), allow_nan=False)
