"""Image-text pairs: texts, splits, backgrounds, and pictures that depend on nothing else."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pitome_core.experiments import assets
from pitome_core.experiments.data import pairs, photos, scenes, splits


@pytest.fixture(scope="module")
def all_pairs():
    return {split: pairs.pairs(split) for split in splits.SPLITS}


def test_counts(all_pairs):
    """The numbers of pictures, texts and identities, and two or three texts per picture."""
    counts = {split: (len(p), len(p.texts), len({t.identity for t in p.things})) for split, p in all_pairs.items()}
    assert counts == {"train": (985, 2219, 878), "dev": (302, 685, 268), "test": (342, 784, 259)}
    assert sum(len(p) for p in all_pairs.values()) == len(scenes.objects())
    for p in all_pairs.values():
        assert {len(row) for row in p.captions} == {2, 3} and len(set(p.texts)) == len(p.texts)
        assert all(text == " ".join(text.split()) and text for text in p.texts)


def test_nothing_is_on_two_sides(all_pairs):
    """No drawing, identity or background is in two splits."""
    for key in ("member", "identity"):
        sides = [{getattr(thing, key) for thing in p.things} for p in all_pairs.values()]
        assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])
    for collection, counts in ((False, (10, 2, 2)), (True, (65, 18, 20))):
        sides = [pairs.backgrounds(split, collection) for split in splits.SPLITS]
        assert tuple(map(len, sides)) == counts and len({*sides[0], *sides[1], *sides[2]}) == sum(counts)
    assert not {"motorcycle"} & {name for split in splits.SPLITS for name in pairs.backgrounds(split)}
    assert all(photos.PHOTOGRAPHS[name].natural for split in ("dev", "test") for name in pairs.backgrounds(split))


def test_texts_say_what_the_lists_say(all_pairs):
    """Names come first, then keywords without emoticons, codes or repetitions; texts may be shared."""
    texts = {thing.name: pairs.texts_of(thing) for p in all_pairs.values() for thing in p.things}
    assert texts["clipboard"] == ("clipboard", "stationery, documents")
    assert texts["top arrow"] == (
        "top arrow", "top with upwards arrow above", "words, blue square, above, up, upwards")
    row = texts["six o clock"][-1]
    assert row.startswith("time, late, early, schedule, dawn, dusk, clock6") and "6:00" not in row and "18" not in row
    assert texts["grinning face"] == ("grinning face", "face, smile, happy, joy, grin, smiley")
    shared = [(p, t) for p in all_pairs.values() for t, row in enumerate(p.answers) if len(row) > 1]
    assert len(shared) == 22
    for p, t in shared:
        assert all(p.texts[t] in pairs.texts_of(p.things[i]) for i in p.answers[t])
    for p in all_pairs.values():
        for i in range(0, len(p), 50):
            assert sorted(p.texts[t] for t in p.captions[i]) == sorted(pairs.texts_of(p.things[i]))


def test_the_first_of_many_are_the_only_ones(all_pairs):
    """``count`` takes the first pictures; a view depends on object, background, split and seed alone."""
    few = pairs.pairs("dev", count=5)
    assert few.things == all_pairs["dev"].things[:5] and all(max(row) < 5 for row in few.answers)
    for background in ("white", "photographs"):
        alone = list(pairs.views(few.things[3:4], background, "dev"))
        together = list(pairs.views(few.things, background, "dev"))
        assert all(v.shape == (224, 224, 3) and v.dtype == np.uint8 for v in together)
        assert np.array_equal(alone[0], together[3])
        other = next(pairs.views(few.things[3:4], background, "dev", seed=1))
        assert np.array_equal(other, alone[0]) == (background == "white")


def test_the_object_is_wholly_in_view(all_pairs):
    """On white the object is centred and takes 85 % of the side; on photographs its pixels are those of the drawing."""
    for thing in all_pairs["dev"].things[:6]:
        view = next(pairs.views([thing], "white")).astype(int)
        alpha = scenes.trim(scenes.render(thing, 190))[..., 3]
        dark = np.argwhere((255 - view).max(axis=2) > 40)
        extent = dark.max(0) - dark.min(0) + 1
        assert (np.abs(extent - alpha.shape) <= 3).all() and (np.abs(dark.max(0) + dark.min(0) - 223) <= 3).all()
    thing, sizes = all_pairs["dev"].things[2], set()
    for seed in range(4):
        view = next(pairs.views([thing], "photographs", "dev", seed)).astype(int)
        matching = []
        for side in range(round(0.6 * 224), round(0.95 * 224) + 1):
            drawing = scenes.trim(scenes.render(thing, side))
            u = splits.unit("\n".join((pairs.SALT, str(seed), thing.member, "object top")))
            v = splits.unit("\n".join((pairs.SALT, str(seed), thing.member, "object left")))
            h, w = drawing.shape[:2]
            top, left = int(u * (225 - h)), int(v * (225 - w))
            solid = drawing[..., 3] == 255
            if np.array_equal(view[top : top + h, left : left + w][solid], drawing[..., :3][solid]):
                matching.append(side)
        assert len(matching) == 1
        sizes.add(matching[0])
    assert len(sizes) > 1, "another seed, another size"


def test_the_photograph_behind_an_object_has_its_name(monkeypatch, all_pairs):
    """What `photograph_of` says is what `views` pastes on, in every split and for every seed; none on white."""
    pasted, part_of = [], photos.part_of
    monkeypatch.setattr(photos, "part_of", lambda name, *a, **named: pasted.append(name) or part_of(name, *a, **named))
    for split, seed in (("dev", 0), ("test", 0), ("train", 3)):
        things = all_pairs[split].things[:6]
        list(pairs.views(things, "photographs", split, seed))
        assert pasted == [pairs.photograph_of(thing, "photographs", split, seed) for thing in things]
        assert set(pasted) <= set(pairs.backgrounds(split)) and len(set(pasted)) > 1
        pasted.clear()
        assert {pairs.photograph_of(thing, "white", split, seed) for thing in things} == {""}
    on_collection = [pairs.photograph_of(thing, "collection", "test") for thing in all_pairs["test"].things]
    assert set(on_collection) == set(pairs.backgrounds("test", collection=True))


def test_stamps_share_captions(monkeypatch):
    """Two cut-outs with one caption are both right answers to it, and are in one split."""
    two = [scenes.Stamp("A red Apple", "a red apple", "food", "food/fruit", f"food/{i}.png") for i in range(2)]
    monkeypatch.setattr(scenes, "stamps", lambda: tuple(two))
    by_split = [pairs.pairs(split, "stamps") for split in splits.SPLITS]
    assert sorted(len(p) for p in by_split) == [0, 0, 2]
    full = next(p for p in by_split if len(p))
    assert full.texts == ("a red apple",) and full.answers == ((0, 1),) and full.captions == ((0,), (0,))


def test_another_artist_draws_the_same_emoji(monkeypatch, tmp_path, all_pairs):
    """Noto's drawings have the texts, the split and the canvas of OpenMoji's."""
    emoji = [*all_pairs["dev"].things[:2], all_pairs["test"].things[0]]
    square = '<path fill="#f00" d="M32 32h64v64h-64z"/>'
    (tmp_path / "icons.json").write_text(json.dumps(
        {"icons": {f"n{i}": {"body": square} for i in range(3)}, "width": 128, "height": 128}))
    # The asset writes code points in lower case and with FE0F.
    (tmp_path / "chars.json").write_text(json.dumps({e.code.lower() + "-fe0f": f"n{i}" for i, e in enumerate(emoji)}))
    fetch = assets.fetch
    monkeypatch.setattr(assets, "fetch", lambda name, **k: tmp_path if name == scenes.NOTO else fetch(name, **k))
    by_split = {split: pairs.pairs(split, "noto") for split in splits.SPLITS}
    assert [len(by_split[split]) for split in splits.SPLITS] == [0, 2, 1]
    by_code = {thing.code: thing for thing in by_split["dev"].things}
    for theirs in emoji[:2]:
        thing = by_code[theirs.code]
        assert (thing.identity, pairs.texts_of(thing)) == (theirs.identity, pairs.texts_of(theirs))
    view = next(pairs.views(by_split["test"].things, "white"))
    assert (view[112, [22, 112]] == [255, 0, 0]).all() and (view[112, 8] == 255).all()


@pytest.mark.skipif(assets.state(scenes.NOTO) != "ready", reason="Noto Emoji is optional")
def test_noto_draws_all_of_them(all_pairs):
    """Noto has a drawing of every emoji that OpenMoji draws, and no two are alike."""
    counts = {split: len(pairs.pairs(split, "noto")) for split in splits.SPLITS}
    assert counts == {"train": 985, "dev": 302, "test": 342}
    views = {view.tobytes() for view in pairs.views(pairs.pairs("dev", "noto", 20).things, "white")}
    assert len(views) == 20


def test_the_collection_is_asked_for_and_never_replaced(monkeypatch, all_pairs):
    """Without the asset, its backgrounds raise an error and are not replaced by other photographs."""
    fetch = assets.fetch

    def without(name, **options):
        if name == photos.GCOMPRIS:
            raise assets.AssetError(f"asset {name!r} cannot be had")
        return fetch(name, **options)

    monkeypatch.setattr(photos, "_small", photos._small.__wrapped__)
    monkeypatch.setattr(assets, "fetch", without)
    with pytest.raises(assets.AssetError, match="photos-gcompris"):
        next(pairs.views(all_pairs["dev"].things[:1], "collection", "dev"))


@pytest.mark.skipif(assets.state(photos.GCOMPRIS) != "ready", reason="the collection is optional")
def test_views_on_the_collection(all_pairs):
    """With the asset, its photographs are behind the same objects."""
    things = all_pairs["dev"].things[:3]
    views = [list(pairs.views(things, b, "dev")) for b in ("photographs", "collection")]
    assert all(v.shape == (224, 224, 3) for v in views[1])
    assert not any(np.array_equal(a, b) for a, b in zip(*views, strict=True))


def test_what_does_not_exist_is_refused(all_pairs):
    """The message names what exists."""
    for call in (lambda: pairs.pairs("val"), lambda: pairs.backgrounds("val")):
        with pytest.raises(ValueError, match="'val'; choose one of train, dev, test"):
            call()
    with pytest.raises(ValueError, match="'apple'; choose one of openmoji, stamps, noto"):
        pairs.pairs("dev", "apple")
    with pytest.raises(ValueError, match="'black'; choose one of white, photographs, collection"):
        next(pairs.views(all_pairs["dev"].things[:1], "black"))
