"""The rule that splits every data set: by a hash of an item's identity."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

SPLITS = ("train", "dev", "test")
SHARES = (0.6, 0.2, 0.2)


def unit(text: str) -> float:
    """A number in [0, 1) from the SHA-256 of ``text`` (UTF-8): uniform over texts, the same everywhere and always."""
    digest = hashlib.sha256(text.encode()).digest()
    return (int.from_bytes(digest[:7], "big") >> 3) / 2**53  # 53 bits: exact in a float, always below 1


def split_of(identity: str, salt: str, shares: Sequence[float] = SHARES) -> str:
    """``train``, ``dev`` or ``test``: where everything that belongs to ``identity`` goes.

    The SHA-256 of ``salt``, a newline and ``identity`` (UTF-8), read as a number in [0, 1), falls into
    one of three intervals of lengths ``shares``. So the answer depends on nothing else: not on the other
    items, their order, the platform or the Python version, and new items never move old ones. ``salt``
    names the data set; two data sets with the same identities then split independently.
    Raises ``TypeError`` if identity or salt is no string, ``ValueError`` for an empty identity, a salt
    with a newline, or shares that are not three numbers from 0 to 1 with sum 1.
    """
    for what, value in (("identity", identity), ("salt", salt)):
        if not isinstance(value, str):
            raise TypeError(f"{what} must be a string, got {type(value).__name__} {value!r}: str() it in one fixed way")
    if not identity or "\n" in salt:
        raise ValueError(f"identity {identity!r} must not be empty and salt {salt!r} must not contain a newline")
    if len(shares) != 3 or min(shares) < 0 or not abs(sum(shares) - 1) < 1e-9:
        raise ValueError(f"shares {tuple(shares)} must be three numbers >= 0 with sum 1, not {sum(shares)}")
    position = unit(f"{salt}\n{identity}")
    if position < shares[0]:
        return "train"
    # Without the second test a rounding error in the sum could send an item into an empty test set.
    return "dev" if position < shares[0] + shares[1] or shares[2] == 0 else "test"


def split_indices(identities: Sequence[str], salt: str, shares: Sequence[float] = SHARES) -> dict[str, np.ndarray]:
    """``{"train": ..., "dev": ..., "test": ...}``: the indices of ``identities`` in each part, ascending, int64.

    Items that share an identity stay together. Arguments and errors as for `split_of`.
    """
    if isinstance(identities, str):
        raise TypeError(f"identities is the string {identities!r}; pass a list of strings")
    parts = np.array([split_of(identity, salt, shares) for identity in identities], dtype=object)
    return {part: np.flatnonzero(parts == part) for part in SPLITS}
