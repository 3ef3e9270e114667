"""Photographs that need no network, the table of those that are optional, and the split rule's promises."""

import hashlib
import io
import re
import socket
import zipfile
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from pitome_core.experiments import assets
from pitome_core.experiments.data import photos, splits

# SHA-256 of the files: recorded numbers stand on these pixels.
FILES = {
    "chelsea": "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
    "astronaut": "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
    "coffee": "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
    "rocket": "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
    "motorcycle": "db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179",
    "china": "8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29",
    "flower": "a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638",
    "camera": "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a",
    "coins": "f8d773fc9cfa6f4d8e5942dc34d0a0788fcaed2a4fefbbed0aef5398d7ef4cba",
    "brick": "7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf",
    "grass": "b6b6022426b38936c43a4ac09635cd78af074e90f42ffa8227ac8b7452d39f89",
    "gravel": "c48615b451bf1e606fbd72c0aa9f8cc0f068ab7111ef7d93bb9b0f2586440c12",
    "retina": "38a07f36f27f095e818aea7b96d34202c05176d30253c66733f2e00379e9e0e6",
    "tissue": "f8dd1aa387ddd1f49d8ad13b50921b237df8e9b262606d258770687b0ef93cef",
    "hubble": "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4",
}


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)


@pytest.mark.parametrize("name", photos.PHOTOGRAPHS)
def test_every_photograph_is_in_its_package(name, no_network):
    photo = photos.PHOTOGRAPHS[name]
    file = assets.path(photo.asset) / photo.file
    assert hashlib.sha256(file.read_bytes()).hexdigest() == FILES[name]
    image = photos.photographs([name])[name]
    assert image.dtype == np.uint8 and image.shape == (*photo.size, 3)
    assert image.flags.writeable and image.std() > 5
    assert photo.shows and photo.credit


def test_default_is_the_natural_ones_and_order_is_kept():
    natural = ["chelsea", "astronaut", "coffee", "rocket", "motorcycle", "china", "flower"]
    assert list(photos.photographs()) == natural
    assert list(photos.photographs(["flower", "chelsea"])) == ["flower", "chelsea"]
    assert not any(photos.PHOTOGRAPHS[name].natural for name in ("retina", "tissue", "hubble", "camera"))


def test_photograph_errors(monkeypatch, tmp_path):
    with pytest.raises(KeyError, match="no photograph 'unicorn'; there are chelsea.*photos.COLLECTION"):
        photos.photographs(["unicorn"])
    with pytest.raises(TypeError, match="pass a list"):
        photos.photographs("chelsea")
    monkeypatch.setattr(assets, "path", lambda name: tmp_path)
    with pytest.raises(assets.AssetError, match="scikit-learn has no china.jpg.*requirements.lock"):
        photos.photographs(["china"])


# The collection: the table as it is, the reading with a zip of our own, the real pictures where they are.


def test_the_table_of_the_collection(monkeypatch, tmp_path):
    monkeypatch.setenv("PITOME_CACHE", str(tmp_path))  # the asset is not needed for this
    table = photos.COLLECTION
    assert Counter(photo.kind for photo in table.values()) == {"animal": 57, "place": 46}
    for name, photo in table.items():
        assert name == photo.name and re.fullmatch("[a-z]+(_[a-z]+)*", name) and min(photo.size) >= 224
        assert photo.member.endswith(".webp") and re.fullmatch("[0-9a-f]{16}", photo.sha256)
        assert photo.author and photo.source.startswith("https://")
        assert re.fullmatch(r"public domain|CC0 1\.0|CC BY(-SA)? \d\.0", photo.licence)
    assert not set(table) & set(photos.PHOTOGRAPHS)
    for unique in ("member", "sha256", "source"):
        assert len({getattr(photo, unique) for photo in table.values()}) == len(table)
    resources = {stem.removesuffix(".rcc") for stem in assets.ASSETS[photos.GCOMPRIS].members}
    assert {photo.member.split("/")[0] for photo in table.values()} == resources


def test_the_split_of_the_collection_keeps_identities_together():
    shared = {i for i, n in Counter(photo.identity for photo in photos.COLLECTION.values()).items() if n > 1}
    assert shared == {"giraffe", "horse", "chameleon", "cat", "cow"}
    sides = {}
    for photo in photos.COLLECTION.values():
        assert photo.split == splits.split_of(photo.identity, "collection-1")
        sides.setdefault(photo.identity, set()).add(photo.split)
    assert all(len(found) == 1 for found in sides.values())
    assert Counter(photo.split for photo in photos.COLLECTION.values()) == {"train": 65, "dev": 18, "test": 20}


@pytest.fixture
def own_collection(monkeypatch, tmp_path):
    """A bee of three pixels in place of the real one."""
    stream = io.BytesIO()
    Image.fromarray(np.full((1, 3), 200, np.uint8)).save(stream, "webp", lossless=True)
    with zipfile.ZipFile(tmp_path / assets.FILES_ZIP, "w") as archive:
        archive.writestr("erase/bee.webp", stream.getvalue())
    fetch = assets.fetch
    monkeypatch.setattr(assets, "fetch", lambda name: tmp_path if name == photos.GCOMPRIS else fetch(name))


def test_photographs_reads_both_tables(own_collection, no_network):
    both = photos.photographs(["bee", "chelsea"])
    assert list(both) == ["bee", "chelsea"]
    assert np.array_equal(both["bee"], np.full((1, 3, 3), 200, np.uint8))


def test_a_collection_that_cannot_be_had(monkeypatch, tmp_path):
    monkeypatch.setenv("PITOME_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert assets.state(photos.GCOMPRIS) == "missing"
    with pytest.raises(assets.AssetError, match="Debian package gcompris-qt-data=3.1-2.*no apt-get here"):
        photos.photographs(["bee"])


@pytest.mark.skipif(assets.state(photos.GCOMPRIS) != "ready", reason="the optional photographs are not in the cache")
def test_the_real_collection(no_network):
    file = assets.path(photos.GCOMPRIS) / assets.FILES_ZIP
    with zipfile.ZipFile(file) as archive:
        found = {name: hashlib.sha256(archive.read(p.member)).hexdigest() for name, p in photos.COLLECTION.items()}
    assert all(digest.startswith(photos.COLLECTION[name].sha256) for name, digest in found.items())
    for name, photo in photos.COLLECTION.items():
        image = photos.photographs([name])[name]
        assert image.dtype == np.uint8 and image.shape == (*photo.size, 3) and image.std() > 5


# Written down once; a change would move items between train and test of every data set.
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
    """The rule in whole numbers: no rounding anywhere."""
    from fractions import Fraction

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
