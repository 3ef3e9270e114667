"""Files that are either whole or not there: text, JSON and tensors, and the hash by which a file is known."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor


def write_atomically(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all. Missing folders are made.

    The text goes into a new file in the same folder, which then takes the name `path` in one step.
    """
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
    """Write tensors as safetensors, whole or not at all, with ``about`` as metadata. Missing folders are made."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    save_file(dict(tensors), new, None if about is None else dict(about))
    new.replace(path)


def digest(path: Path) -> str:
    """12 hexadecimal digits of the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def one_line(value: Any) -> str:
    """A value as JSON on one line, with characters beyond ASCII as they are."""
    return json.dumps(value, ensure_ascii=False, separators=(", ", ": "))
