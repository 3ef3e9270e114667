"""Photographs that need no network, and the table and the pictures of those that are optional."""

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

# SHA-256 of the files, because recorded numbers depend on these pixels.
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
    monkeypatch.setattr(assets, "fetch", lambda name: tmp_path)
    with pytest.raises(assets.AssetError, match="scikit-learn has no china.jpg.*requirements.lock"):
        photos.photographs(["china"])


# The collection: its table, reading from a zip file of the test, and the real pictures if they are in the cache.


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
    assert all(len(of_identity) == 1 for of_identity in sides.values())
    assert Counter(photo.split for photo in photos.COLLECTION.values()) == {"train": 65, "dev": 18, "test": 20}


@pytest.fixture
def own_collection(monkeypatch, tmp_path):
    """The collection has a bee of three pixels in place of the real one."""
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


def test_halves_of_the_collection_are_those_of_the_hash():
    """Records are of these photographs, so the halves are held to fixed values."""
    dev, test = photos.photographs_of("dev"), photos.photographs_of("test")
    assert [*sorted(dev + test)] == sorted(photos.COLLECTION) and (len(dev), len(test)) == (61, 42)
    assert photos.photographs_of("train") == dev
    for name in photos.COLLECTION:
        first = hashlib.sha256(f"law-1\n{photos.COLLECTION[name].identity}".encode()).digest()[0]
        assert (name in dev) == (first < 128)  # the hash as a number in [0, 1) is below one half
    with pytest.raises(ValueError, match="split is 'validation'"):
        photos.photographs_of("validation")


@pytest.mark.skipif(assets.state(photos.GCOMPRIS) != "ready", reason="the optional photographs are not in the cache")
def test_the_real_collection(no_network):
    file = assets.path(photos.GCOMPRIS) / assets.FILES_ZIP
    with zipfile.ZipFile(file) as archive:
        digests = {name: hashlib.sha256(archive.read(p.member)).hexdigest() for name, p in photos.COLLECTION.items()}
    assert all(digest.startswith(photos.COLLECTION[name].sha256) for name, digest in digests.items())
    for name, photo in photos.COLLECTION.items():
        image = photos.photographs([name])[name]
        assert image.dtype == np.uint8 and image.shape == (*photo.size, 3) and image.std() > 5
