"""The laws of the split rule: it is the same everywhere, and independent of order, other salts and other items."""

import hashlib
from fractions import Fraction

import numpy as np
import pytest

from pitome_core.experiments.data import splits

# Fixed, because a change would move items between train and test of every data set.
GOLDEN = {
    ("emoji", "cat"): "dev",
    ("emoji", "dog"): "train",
    ("emoji", "red apple"): "train",
    ("emoji", "Å"): "dev",
    ("emoji", "1f600"): "train",
    ("mnist", "0"): "train",
    ("mnist", "1"): "train",
    ("mnist", "2"): "train",
    ("", "cat"): "train",
    ("reviews", "a\nb"): "test",
}


def test_golden_splits():
    assert {key: splits.split_of(key[1], key[0]) for key in GOLDEN} == GOLDEN


def slow_split(identity, salt, shares):
    """The rule in exact fractions, without any rounding."""
    bits = bin(int(hashlib.sha256(salt.encode() + b"\n" + identity.encode()).hexdigest(), 16))[2:].zfill(256)
    position = Fraction(int(bits[:53], 2), 2**53)
    if position < Fraction(shares[0]):
        return "train"
    return "dev" if position < Fraction(shares[0]) + Fraction(shares[1]) else "test"


def test_unit_is_the_first_53_bits_of_the_hash():
    assert splits.unit("é") * 2**53 == int(hashlib.sha256("é".encode()).hexdigest(), 16) >> 203
    numbers = [splits.unit(str(i)) for i in range(10_000)]
    assert min(numbers) < 0.001 and 0.999 < max(numbers) < 1 and abs(np.mean(numbers) - 0.5) < 0.015


@pytest.mark.parametrize("shares", [(0.6, 0.2, 0.2), (0.5, 0.25, 0.25), (0.8, 0.1, 0.1)])
def test_split_equals_the_oracle(shares):
    for i in range(500):
        assert splits.split_of(f"é{i}", "salt", shares) == slow_split(f"é{i}", "salt", shares)


def test_shares_are_met():
    identities = [str(i) for i in range(20_000)]
    parts = splits.split_indices(identities, "shares")
    assert sum(map(len, parts.values())) == 20_000
    for part, share in zip(splits.SPLITS, splits.SHARES, strict=True):
        # Five standard deviations of a binomial share.
        assert abs(len(parts[part]) / 20_000 - share) < 5 * (share * (1 - share) / 20_000) ** 0.5


def test_salts_are_independent():
    identities = [str(i) for i in range(5_000)]
    one, other = (np.array([splits.split_of(i, salt) == "train" for i in identities]) for salt in ("one", "other"))
    assert abs((one & other).mean() - 0.36) < 0.04
    # The newline keeps salt and identity apart: "a" + "bc" is not "ab" + "c".
    assert len({splits.split_of("c" * i, "ab") == splits.split_of("bc" * i, "a") for i in range(1, 30)}) == 2


def test_order_does_not_matter_and_identities_stay_together():
    identities = [f"id{i % 40}" for i in range(200)]
    order = np.random.default_rng(0).permutation(200)
    parts = splits.split_indices(identities, "x")
    shuffled = splits.split_indices([identities[i] for i in order], "x")
    for part in splits.SPLITS:
        assert parts[part].dtype == np.int64 and (np.diff(parts[part]) > 0).all()
        assert set(parts[part]) == set(order[shuffled[part]])
    owners = {part: {identities[i] for i in indices} for part, indices in parts.items()}
    assert not owners["train"] & owners["dev"] and not owners["dev"] & owners["test"]
    assert not owners["train"] & owners["test"]


def test_extreme_shares():
    names = [str(i) for i in range(300)]
    assert {splits.split_of(n, "s", (1, 0, 0)) for n in names} == {"train"}
    assert {splits.split_of(n, "s", (0, 1, 0)) for n in names} == {"dev"}
    assert {splits.split_of(n, "s", (0, 0, 1)) for n in names} == {"test"}
    assert "test" not in {splits.split_of(n, "s", (0.7, 0.3, 0)) for n in names}
    empty = splits.split_indices([], "s")
    assert [len(empty[part]) for part in splits.SPLITS] == [0, 0, 0]


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ((7, "s"), TypeError, "identity must be a string, got int 7"),
        (("a", None), TypeError, "salt must be a string"),
        (("", "s"), ValueError, "must not be empty"),
        (("a", "s\n"), ValueError, "must not contain a newline"),
        (("a", "s", (0.6, 0.2)), ValueError, "three numbers"),
        (("a", "s", (0.6, 0.2, 0.3)), ValueError, "sum 1, not 1.1"),
        (("a", "s", (1.2, -0.1, -0.1)), ValueError, ">= 0"),
    ],
)
def test_split_errors(arguments, error, words):
    with pytest.raises(error, match=words):
        splits.split_of(*arguments)


def test_split_indices_refuses_a_string():
    with pytest.raises(TypeError, match="pass a list"):
        splits.split_indices("abc", "s")
