"""The rule that splits every data set: by a hash of an item's identity."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

SPLITS = ("train", "dev", "test")
SHARES = (0.6, 0.2, 0.2)


def unit(*parts: object) -> float:
    """A number in [0, 1) from the SHA-256 of ``parts``, as text, one on each line, in UTF-8.

    The numbers are uniform over different parts, and the same on every platform. ``unit("a", 1)`` is the number of
    the text ``"a\\n1"``.
    """
    digest = hashlib.sha256("\n".join(map(str, parts)).encode()).digest()
    return (int.from_bytes(digest[:7], "big") >> 3) / 2**53  # 53 bits: exact in a float, always below 1


def check_split(split: str) -> None:
    """Raise ``ValueError`` unless ``split`` is ``train``, ``dev`` or ``test``."""
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; choose one of {', '.join(SPLITS)}")


def split_of(identity: str, salt: str, shares: Sequence[float] = SHARES) -> str:
    """``train``, ``dev`` or ``test``: the split of every item with this ``identity``.

    The SHA-256 of ``salt``, a newline and ``identity`` (UTF-8), read as a number in [0, 1), falls into one of three
    intervals of lengths ``shares``. The answer depends on nothing else: not on the other items, their order, the
    platform or the Python version. New items therefore never move old ones. ``salt`` names the data set, so that two
    data sets with the same identities split independently.

    Raises ``TypeError`` if identity or salt is no string, ``ValueError`` for an empty identity, a salt with a newline,
    or shares that are not three numbers from 0 to 1 with sum 1.
    """
    for what, value in (("identity", identity), ("salt", salt)):
        if not isinstance(value, str):
            raise TypeError(f"{what} must be a string, got {type(value).__name__} {value!r}: str() it in one fixed way")
    if not identity or "\n" in salt:
        raise ValueError(f"identity {identity!r} must not be empty and salt {salt!r} must not contain a newline")
    if len(shares) != 3 or min(shares) < 0 or not abs(sum(shares) - 1) < 1e-9:
        raise ValueError(f"shares {tuple(shares)} must be three numbers >= 0 with sum 1, not {sum(shares)}")
    position = unit(salt, identity)
    if position < shares[0]:
        return "train"
    # Without the second condition a rounding error in the sum could put an item into an empty test set.
    return "dev" if position < shares[0] + shares[1] or shares[2] == 0 else "test"


def split_indices(identities: Sequence[str], salt: str, shares: Sequence[float] = SHARES) -> dict[str, np.ndarray]:
    """``{"train": ..., "dev": ..., "test": ...}``: the indices of ``identities`` in each split, ascending, int64.

    Items with the same identity are in the same split. Arguments and errors are those of `split_of`.
    """
    if isinstance(identities, str):
        raise TypeError(f"identities is the string {identities!r}; pass a list of strings")
    names = np.array([split_of(identity, salt, shares) for identity in identities], dtype=object)
    return {split: np.flatnonzero(names == split) for split in SPLITS}
