"""Vision tasks: their measures against slow ones, what the whole model must score, splits, and the command line."""

from __future__ import annotations

import argparse
import itertools
import json
import re

import numpy as np
import pytest
import torch
from torch.nn.functional import avg_pool2d, interpolate

import pitome_core as pc
from pitome_core.experiments import __main__ as command
from pitome_core.experiments import assets
from pitome_core.experiments.baselines.lower_resolution import lower_resolution
from pitome_core.experiments.data import photos, splits
from pitome_core.experiments.data.pictures import preprocess
from pitome_core.experiments.law import tasks as law_tasks
from pitome_core.experiments.models import vit
from pitome_core.experiments.records import provenance, results
from pitome_core.experiments.records.cells import Cell
from pitome_core.experiments.runs import grid, sweep
from pitome_core.experiments.runs.image_task import ImageTask
from pitome_core.experiments.vision import command as vision
from pitome_core.experiments.vision import tasks as vision_tasks

collected = pytest.mark.skipif(assets.state(photos.GCOMPRIS) != "ready", reason="the collection is optional")


@pytest.fixture(autouse=True)
def on_the_processor(monkeypatch):
    monkeypatch.setenv("PITOME_DEVICE", "cpu")


@pytest.fixture(scope="module")
def few():
    """Two scenes, ready to be scored; the model is the same object throughout."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PITOME_DEVICE", "cpu")
        task = vision_tasks.Scenes("dev", 2)
        task.prepare()
    return task


@pytest.fixture(scope="module")
def photographs():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PITOME_DEVICE", "cpu")
        task = vision_tasks.Photographs("dev", ["chelsea"])
        task.prepare()
    return task


def score(task, cell) -> dict[str, np.ndarray]:
    with task.applied(cell) as running:
        return {name: np.asarray(values, float) for name, values in task.score(running, cell).items()}


# --- measures


def pair_count(mask, scores) -> float:
    """Share of (object, background) pairs in the right order; a tie is half a pair."""
    pairs = list(itertools.product(scores[mask], scores[~mask]))
    return sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_auc_counts_pairs_and_ties_half(levels):
    generator = torch.Generator().manual_seed(levels)
    maps = torch.randint(levels, (3, 6, 6), generator=generator) / levels
    inside = torch.rand(3, 6, 6, generator=generator) > 0.6
    expected = [pair_count(m.numpy(), s.numpy()) for m, s in zip(inside, maps, strict=True)]
    assert vision_tasks.auc(maps, inside) == pytest.approx(expected)
    assert vision_tasks.auc(-maps, inside) == pytest.approx([1 - value for value in expected])


def test_a_map_that_is_the_mask_is_right_and_a_flat_one_knows_nothing():
    inside = torch.rand(2, 6, 6, generator=torch.Generator().manual_seed(0)) > 0.5
    assert vision_tasks.auc(inside.float(), inside) == [1.0, 1.0]
    assert vision_tasks.auc(torch.full((2, 6, 6), 0.3), inside) == [0.5, 0.5]


def test_nss_is_that_of_a_loop():
    generator = torch.Generator().manual_seed(1)
    maps, inside = torch.rand(3, 5, 5, generator=generator), torch.rand(3, 5, 5, generator=generator) > 0.5
    for found, m, mask in zip(vision_tasks.nss(maps, inside), maps.double().numpy(), inside.numpy(), strict=True):
        mean, deviation = m.mean(), m.std(ddof=1)
        values = [(m[i, j] - mean) / deviation for i in range(5) for j in range(5) if mask[i, j]]
        assert float(found) == pytest.approx(sum(values) / len(values), abs=1e-5)
    assert vision_tasks.nss(3 * maps + 7, inside) == pytest.approx(vision_tasks.nss(maps, inside), abs=1e-4)
    assert vision_tasks.nss(torch.ones(1, 5, 5), inside[:1]).tolist() == [0.0]


def test_correlation_is_numpys():
    a, b = torch.randn(2, 4, 7, 7, generator=torch.Generator().manual_seed(2))
    expected = [np.corrcoef(x.flatten(), y.flatten())[0, 1] for x, y in zip(a.numpy(), b.numpy(), strict=True)]
    assert vision_tasks.correlation(a, b).tolist() == pytest.approx(expected, abs=1e-6)
    assert vision_tasks.correlation(a, -2 * a + 1).tolist() == pytest.approx([-1] * 4)


def slow_mixed(assignment: list[int], cover: list[float]) -> float:
    """By sets: the patches of every token, and whether there is background among them."""
    tokens: dict[int, set[int]] = {}
    for patch, token in enumerate(assignment):
        if token >= 0:
            tokens.setdefault(token, set()).add(patch)
    thing = [patch for patch, share in enumerate(cover) if share > 0.5]
    bad = [p for members in tokens.values() if any(cover[q] < 0.05 for q in members) for p in members & {*thing}]
    return len(bad) / max(len(thing), 1)


def test_mixed_is_that_of_sets_of_patches():
    generator = torch.Generator().manual_seed(3)
    assignment = torch.randint(-1, 5, (40, 12), generator=generator)
    cover = torch.rand(40, 12, generator=generator) ** 2
    cover[torch.rand(40, 12, generator=generator) < 0.2] = 0.0
    cover[0] = 0.2  # no patch belongs to the object
    assignment[1] = -1  # nothing is left
    found = vision_tasks.mixed(assignment, cover).tolist()
    assert found == pytest.approx([slow_mixed(a, c) for a, c in zip(assignment.tolist(), cover.tolist(), strict=True)])
    assert found[:2] == [0.0, 0.0] and len(set(found)) > 5


def test_mixed_by_hand():
    """Patches: object, object, edge, background, background; token 1 holds an object patch and a background patch."""
    cover = torch.tensor([[1.0, 0.6, 0.3, 0.0, 0.04]])
    for assignment, expected in (
        ([0, 1, 2, 3, 4], 0.0), ([0, 1, 2, 1, 4], 0.5), ([0, 0, 0, 1, 1], 0.0), ([0, 0, 0, 0, 0], 1.0),
        ([0, -1, 1, 1, -1], 0.0), ([0, -1, 1, 0, -1], 0.5), ([0, 1, 2, -1, 1], 0.5),
    ):
        assert vision_tasks.mixed(torch.tensor([assignment]), cover).tolist() == [expected], assignment


# --- maps and features


@torch.no_grad()
def test_maps_of_another_resolution_are_on_the_same_grid(few):
    small = lower_resolution(few.model, 168)
    one_by_one = [
        few.over(small, image, lambda x: vision_tasks.saliency_maps(small, few.judge.head, x))[0]
        for image in few.images.split(1)
    ]
    found = torch.cat(one_by_one)
    shrunk = interpolate(few.images, size=(168, 168), mode="bilinear", antialias=True, align_corners=False)
    own = vit.SaliencyModel(small, few.judge.head)(shrunk)
    expected = avg_pool2d(interpolate(own, size=(224, 224), mode="bilinear", align_corners=False), 4)[:, 0]
    assert found.shape == (2, 56, 56) == few.whole.shape
    assert torch.allclose(found, expected, atol=1e-5) and not torch.allclose(found, few.whole, atol=1e-2)
    there, mirrored = (vision_tasks.correlation(maps, few.whole) for maps in (found, found.flip(2)))
    assert there.min() > 0.5 and (there > mirrored).all()  # the same picture, in the same place


@torch.no_grad()
def test_the_whole_map_is_the_models(few):
    full = few.judge(few.images)  # (2, 1, 224, 224)
    by_hand = full[1, 0, 4 * 20 : 4 * 21, 4 * 30 : 4 * 31].mean()
    assert few.whole[1, 20, 30] == pytest.approx(float(by_hand), abs=1e-5)
    covered = few.inside.flatten(1).float().mean(1) - few.cover.mean(1)
    assert covered.abs().max() < 0.02  # masks for maps and for patches cover the same share of the picture


class Plain(vision_tasks.LinearHeads):
    """Heads without data."""

    def __init__(self, side: int = 112):
        self.model = vit.vit_small(side)


@pytest.fixture(scope="module")
def plain():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PITOME_DEVICE", "cpu")
        return Plain()


@pytest.fixture(scope="module")
def pictures():
    return preprocess(list(photos.photographs(["chelsea", "coffee"]).values()), 112)


@torch.no_grad()
def test_features_of_the_whole_model_are_those_of_its_blocks(plain, pictures):
    seen = []
    hooks = [block.register_forward_hook(lambda m, a, out: seen.append(out)) for block in plain.model.blocks]
    plain.model.forward_features(pictures)
    for hook in hooks:
        hook.remove()
    normed = [plain.model.norm(out) for out in seen]
    expected = torch.cat([out[:, 0] for out in normed[-4:]] + [normed[-1][:, 1:].mean(1)], dim=1)
    found = plain.features(plain.model, pictures)
    assert found.shape == (2, 5 * 384) and np.abs(found - expected.numpy()).max() < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("method", ["random_prune", "topk_attention", "tome"])
def test_the_mean_is_over_the_patches_that_are_left(plain, pictures, method):
    """Of a pruned model the mean of the survivors; of a merged one every token counts as often as its patches."""
    with pc.patched(plain.model, method, 0.9), pc.record(plain.model) as trace:
        found = plain.features(plain.model, pictures)[:, -384:]
        kept = trace.assignment >= 0
    with pc.patched(plain.model, method, 0.9, restore=False), pc.record(plain.model) as trace:
        tokens = plain.model.forward_features(pictures)[:, 1:]
        size = trace.layers[-1].size[..., None]
    expected = (tokens * size).sum(1) / size.sum(1)
    assert (kept.sum(1) == (tokens.shape[1] if method != "tome" else 64)).all()
    assert np.abs(found - expected.numpy()).max() < 1e-4
    if method != "tome":  # a mean over all places would be another one
        assert np.abs(found - (tokens.sum(1) / 64).numpy()).max() > 1e-2


# --- what the whole model must score


@pytest.fixture(scope="module")
def whole(few):
    return score(few, Cell(grid.WHOLE))


def test_the_whole_model_is_like_itself(whole):
    found = whole
    assert found["likeness"] == pytest.approx(np.ones(2), abs=1e-5) and np.isnan(found["mixed"]).all()
    assert (found["auc"] > 0.5).all() and (found["nss"] > 0).all() and all(len(v) == 2 for v in found.values())


@pytest.mark.parametrize("arm", ["pitome", "random-prune"])
def test_a_model_that_keeps_everything_scores_like_the_whole_one(few, whole, arm):
    found = score(few, Cell(arm, 1.0))
    for name in ("auc", "nss", "likeness"):
        assert found[name] == pytest.approx(whole[name], abs=1e-3), name
    if pc.methods()[grid.ARMS[arm].method].partition:
        assert found["mixed"].tolist() == [0.0] * 2


def test_merging_moves_the_map_and_mixes_patches(few):
    cell = Cell("random-merge", 0.9, seed=0)
    strong = score(few, cell)
    assert (strong["likeness"] < 0.999).all() and (strong["mixed"] > 0).all() and (strong["mixed"] <= 1).all()
    with few.applied(cell) as running, pc.record(running) as trace, torch.no_grad():
        running.forward_features(few.images)
    expected = [slow_mixed(*pair) for pair in zip(trace.assignment.tolist(), few.cover.tolist(), strict=True)]
    assert strong["mixed"] == pytest.approx(expected)
    assert np.isnan(score(few, Cell("dct", 0.9))["mixed"]).all()


def test_photographs_of_the_whole_model(photographs):
    whole = score(photographs, Cell(grid.WHOLE))
    assert whole["likeness"] == pytest.approx(np.ones(1), abs=1e-5)
    for name in ("class_cosine", "patch_cosine"):
        assert whole[name].shape == (1, 12) and whole[name] == pytest.approx(np.ones((1, 12)), abs=1e-5)
    kept = score(photographs, Cell("tome", 1.0))
    assert {*kept} == {"likeness", "class_cosine", "patch_cosine"}
    assert kept["patch_cosine"] == pytest.approx(np.ones((1, 12)), abs=1e-4)
    merged = score(photographs, Cell("tome", 0.8))
    assert merged["patch_cosine"][0, 0] > merged["patch_cosine"][0, -1] and merged["patch_cosine"][0, -1] < 0.99
    lower = score(photographs, Cell(grid.LOWER, pixels=168))
    assert lower["patch_cosine"].shape == (1, 12) and (lower["patch_cosine"] > 0.3).all()


@torch.no_grad()
def test_what_merging_reads_is_that_of_loops(photographs):
    """Cosines and energies of one layer of one photograph, pair by pair."""
    found, layer = score(photographs, Cell(grid.WHOLE)), 3
    block, seen = photographs.model.blocks[layer], {}
    hooks = [
        block.attn.qkv.register_forward_hook(lambda m, a, out: seen.update(qkv=out)),
        block.norm2.register_forward_pre_hook(lambda m, a: seen.update(tokens=a[0])),
    ]
    photographs.model.forward_features(photographs.images[:1])
    for hook in hooks:
        hook.remove()
    keys = seen["qkv"][0, 1:, 384:768].unflatten(1, (6, 64)).mean(1)  # (N, 64), heads averaged
    pairs = ~torch.eye(256, dtype=torch.bool)
    for name, x in (("key_cosine", keys), ("hidden_cosine", seen["tokens"][0, 1:])):
        unit = x.double() / x.double().norm(dim=1, keepdim=True)
        cos = unit @ unit.T
        assert found[name][0, layer] == pytest.approx(float(cos[pairs].mean()), abs=1e-4)
    energy = pc.energy_score(keys[None], 0.9 - 0.9 * layer / 12)[0]
    assert found["energy_spread"][0, layer] == pytest.approx(float(energy.std()), abs=1e-4)
    assert found["energy_spread"].shape == (1, 12)


# --- splits


@pytest.fixture
def toy_digits(monkeypatch):
    """5,000 images of 28 x 28 whose first two pixels say which row they are; nothing is enlarged."""
    rows = np.arange(5000)
    pixels = np.zeros((5000, 28, 28), np.uint8)
    pixels[:, 0, 0], pixels[:, 0, 1] = rows // 250, rows % 250
    monkeypatch.setattr(vision_tasks, "mnist", lambda: (pixels, rows // 500))
    monkeypatch.setattr(vision_tasks, "_enlarged", lambda pixels, side: torch.from_numpy(pixels.astype(int)))
    monkeypatch.setattr(vit, "vit_small", lambda size: torch.nn.Identity())


def rows_of(images) -> list[int]:
    return (images[:, 0, 0] * 250 + images[:, 0, 1]).tolist()


def test_digits_are_in_one_part_only(toy_digits):
    dev, test = vision_tasks.Digits("dev"), vision_tasks.Digits("test")
    train = rows_of(dev.train_images)
    parts = [{*train}, {*rows_of(dev.images)}, {*rows_of(test.images)}]
    assert sum(map(len, parts)) == 5000 == len(set.union(*parts)) and train == rows_of(test.train_images)
    for task in (dev, test):
        assert task.items["id"] == [f"{row:04d}" for row in rows_of(task.images)]
        assert task.items["label"] == task.labels.tolist() == [row // 500 for row in rows_of(task.images)]
        assert task.train_labels.tolist() == [row // 500 for row in train]
        assert {*task.labels} == {*range(10)}
    assert all(splits.split_of(name, vision_tasks.MNIST_SALT) == "test" for name in test.items["id"])


def test_few_digits_are_the_first_of_many(toy_digits):
    few, all_of_them = vision_tasks.Digits("dev", 50, 100), vision_tasks.Digits("dev")
    assert rows_of(few.images) == rows_of(all_of_them.images)[:50] and len({*few.labels}) == 10
    assert rows_of(few.train_images) == rows_of(all_of_them.train_images)[:100] and len({*few.train_labels}) == 10


def test_the_digits_are_those_of_the_file():
    pixels, labels = vision_tasks.mnist()
    assert pixels.shape == (5000, 28, 28) and pixels.dtype == np.uint8 and pixels.max() == 255
    assert labels.tolist() == sorted(labels) and np.bincount(labels).tolist() == [500] * 10
    assert len({p.tobytes() for p in pixels}) == 5000
    assert vision_tasks._enlarged(pixels[:2], 112).shape == (2, 3, 112, 112)


def test_emoji_of_train_are_not_in_test(monkeypatch):
    made = []
    scenes = vision_tasks.scenes.scenes
    monkeypatch.setattr(vit, "vit_small", lambda size: torch.nn.Identity())
    monkeypatch.setattr(vision_tasks.scenes, "scenes", lambda *a, **k: made.append(scenes(*a, **k)) or made[-1])
    parts = {}
    for split in ("dev", "test"):
        task = vision_tasks.Groups(split, 10, 24)
        scored, train = made[-2:]
        parts[split], parts["train"] = scored, train
        assert task.items["object"] == [thing.identity for thing in scored.objects]
        assert task.items["label"] == [thing.group for thing in scored.objects]
        names = sorted({thing.group for thing in train.objects})
        assert [names[i] for i in task.labels] == task.items["label"]
        assert [names[i] for i in task.train_labels] == [thing.group for thing in train.objects]
    seen = {split: {thing.identity for thing in part.objects} for split, part in parts.items()}
    assert not seen["train"] & seen["dev"] and not seen["train"] & seen["test"] and not seen["dev"] & seen["test"]


@pytest.mark.parametrize("split", ["dev", "test"])
def test_no_photograph_is_behind_objects_of_two_splits(split):
    fitted, scored = vision_tasks.backgrounds(split)
    test = {*photos.photographs_of("test")}
    assert not {*fitted} & {*scored} and len(fitted) > 30 and len(scored) > 20
    assert {*scored} == test if split == "test" else not ({*fitted} | {*scored}) & test
    for one, other in ((fitted, scored), (scored, fitted)):
        identities = {photos.COLLECTION[name].identity for name in other}
        assert not any(photos.COLLECTION[name].identity in identities for name in one)


@collected
@pytest.mark.parametrize("split", ["dev", "test"])
def test_tasks_take_the_photographs_of_their_split(split, monkeypatch):
    """All tasks with photographs; of train and scored items where a head is fitted."""
    made, real = [], vision_tasks.scenes.scenes

    def few_scenes(count, **how):
        made.append((how.get("split"), how.get("photographs"), count))
        return real(2, **how | {"photographs": how["photographs"][:2]})

    monkeypatch.setattr(vision_tasks.scenes, "scenes", few_scenes)
    monkeypatch.setattr(vit, "vit_small", lambda size: torch.nn.Identity())
    monkeypatch.setattr(vit, "saliency_model", lambda size: argparse.Namespace(backbone=torch.nn.Identity()))
    fitted, scored = vision_tasks.backgrounds(split)
    own = photos.photographs_of(split)
    vision_tasks.ScenesApart(split, 2)
    head = vision_tasks.Groups(split, 2, 2, apart=True)
    assert [entry[:2] for entry in made] == [(split, own), (split, scored), ("train", fitted)]
    assert head.clusters == ("object", "photograph") and vision_tasks.Groups.clusters == ("object",)
    assert {*head.items["photograph"]} <= {*scored}
    assert vision_tasks.Collection(split).items["id"] == own


@collected
def test_the_scenes_are_those_of_the_law():
    ours, law = vision_tasks.ScenesApart("test", 5), law_tasks.LawScenes("test", 5)
    assert ours.name == law.name == "scenes" and ours.items == law.items and torch.equal(ours.images, law.images)
    assert {*ours.items["photograph"]} <= {*photos.photographs_of("test")} and ours.clusters == law.clusters
    assert vision_tasks.PER_PHOTOGRAPH["test"] * len(photos.photographs_of("test")) == 378


# --- heads


class Toy(vision_tasks.LinearHeads):
    """A head on features that are given: those of the merged model are shifted."""

    name, clusters, penalty = "toy", ("id",), 1.0

    def __init__(self):
        generator = np.random.default_rng(0)
        self.labels, self.train_labels = generator.integers(2, size=40), generator.integers(2, size=60)
        self.noise = {n: generator.normal(size=(n, 3)) for n in (40, 60)}
        self.images, self.train_images = torch.zeros(40, 1), torch.ones(60, 1)
        self.model, self.asked = object(), []

    def features(self, running, images):
        labels = self.labels if len(images) == 40 else self.train_labels
        self.asked.append((running is self.model, len(images)))
        shift = 0 if running is self.model else 100
        return self.noise[len(images)] * 0.1 + labels[:, None] + shift


def test_a_second_column_where_heads_are_fitted_again():
    task = Toy()
    task.prepare()
    assert task.asked == [(True, 60)]
    whole = task.score(task.model, Cell(grid.WHOLE))
    assert whole["correct"].all() and (whole["correct"] == whole["correct_refit"]).all()
    merged = object()
    again = task.score(merged, Cell("tome", 0.9))
    assert again["correct"].mean() < 0.8 and again["correct_refit"].all()  # lost off the shelf, not refitted
    once = task.score(merged, Cell("tome", 0.95))
    assert {*once} == {"correct"} and task.asked[-1] == (False, 40) and task.asked.count((True, 60)) == 1


@pytest.mark.parametrize(
    "cell, refitted",
    [
        (Cell(grid.WHOLE), True), (Cell("tome", 0.9), True), (Cell("pitome", 0.9), True), (Cell("tome", 0.8), False),
        (Cell("tome", 0.9, False), False), (Cell(grid.GRID_POOL), False), (Cell("tofu", 0.9), False),
        (Cell("pitome-shuffled", 0.9, seed=0), False), (Cell(grid.LOWER, pixels=168), False),
    ],
)
def test_which_cells_are_fitted_again(cell, refitted):
    assert Toy().refits(cell) == refitted and Toy().work(cell) == 40 + 60 * refitted


# --- the command line


@pytest.fixture
def quick_tasks(monkeypatch, few):
    """The command scores two scenes; how often is counted."""
    scored = []

    class Counted(vision_tasks.Scenes):
        def __init__(self, split):
            assert split == "dev"
            vars(self).update(vars(few))

        def seconds_per_item(self):
            return 0.1

        def score(self, running, cell):
            scored.append(cell.key)
            return super().score(running, cell)

    monkeypatch.setitem(vision_tasks.TASKS, "scenes", Counted)
    monkeypatch.setenv("PITOME_PROFILE", "smoke")
    monkeypatch.setattr(provenance, "log_test", lambda *args: pytest.fail("dev was logged"))
    return scored


def test_the_command_scores_records_prints_and_goes_on(quick_tasks, tmp_path, capsys):
    call = ["vision", "--tasks", "scenes", "--methods", "pitome", "tome", "--keep", "0.9", "--output", str(tmp_path)]
    expected = ["whole", "pitome@0.9", "pitome@0.9/off", "tome@0.9", "tome@0.9/off"]
    assert command.main([*call[:5], *call[6:], "--estimate"]) == 0
    assert quick_tasks == [] and "estimate: " in capsys.readouterr().out and list(tmp_path.iterdir()) == []
    assert command.main([*call[:5], *call[6:]]) == 0  # pitome alone
    assert quick_tasks == expected[:3]
    assert command.main(call) == 0
    assert quick_tasks == expected
    assert [path.name for path in tmp_path.iterdir()] == ["vision-2-scenes-dev.json"]
    record = results.Record.load(tmp_path / "vision-2-scenes-dev.json")
    assert [*record.cells] == expected and record.header["tier"] == "smoke" and record.clusters is not None
    assert str(tmp_path) not in json.dumps(record.runs) and len(record.runs) == 2
    table = capsys.readouterr().out.splitlines()
    line = {text.split()[0]: text for text in table if text and text.split()[0] in expected}
    assert f"{record.cells['tome@0.9']['share']:.3f}" in line["tome@0.9"]
    assert f"{np.mean(record.outcome('tome@0.9', 'auc')):.4f}" in line["tome@0.9"]
    for key, rivals in (("pitome@0.9", ["tome@0.9", "whole"]), ("pitome@0.9/off", ["tome@0.9/off", "whole"]),
                        ("tome@0.9/off", ["whole"])):
        shown = [str(record.difference(key, rival, "auc")) for rival in rivals]
        assert all(text in line[key] for text in shown) and line[key].count("[") == len(shown)
    assert "[" not in line["whole"] and line["whole"].split()[-1] == "nan"


def test_the_table_has_a_line_for_an_arm_with_seeds_and_second_columns(tmp_path):
    cells = grid.cells(["random-prune", "tome"], [0.9])
    record = results.Record.open(tmp_path / "x.json", {"clusters": ["id"]}, {"id": [0, 1, 2]})
    for number, cell in enumerate(cells):
        outcomes = {"correct": results.pack([1, 0, number % 2]), "layers": np.zeros((3, 2))}
        refit = {"correct_refit": [0, 1, 1]} if cell.seed in (None, 0) and cell.proportional is None else {}
        record.add(cell.key, cell.describe() | {"share": 0.5}, outcomes | refit, {})
    lines = vision.table(record, cells).splitlines()
    assert [line.split()[0] for line in lines] == ["cell", "whole", "random-prune@0.9", "tome@0.9", "tome@0.9/off"]
    mean = np.mean([record.outcome(f"random-prune@0.9/seed{i}", "correct") for i in range(5)])
    assert lines[2].split()[1:4] == ["0.500", f"{mean:.4f}", f"{2 / 3:.4f}"] and "layers" not in lines[0]
    assert len(lines[4].split("[")[0].split()) == 4  # no second column for the switched arm


@pytest.mark.parametrize(
    "call, words",
    [
        (["vision", "--methods", "tomme"], "--methods: invalid choice: 'tomme' .*tome"),
        (["vision", "--tasks", "scene"], "--tasks: invalid choice: 'scene' .*scenes"),
        (["visions"], "invalid choice: 'visions' .*vision"),
        ([], "EXPERIMENT"),
    ],
)
def test_what_the_command_does_not_know_it_names(call, words, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(call)
    said = " ".join(capsys.readouterr().err.split())
    assert stop.value.code == 2 and re.search(words, said), said


def test_help_shows_examples_that_can_be_read(capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(["vision", "--help"])
    said = capsys.readouterr().out
    start = "-m pitome_core.experiments vision --"
    examples = [line.split("experiments ", 1)[1] for line in said.splitlines() if start in line]
    assert stop.value.code == 0 and len(examples) >= 3 and "examples:" in said
    parser = argparse.ArgumentParser()
    vision.configure(parser)
    for example in examples:
        parser.parse_args(example.split("   ")[0].split()[1:])


def test_tasks_are_named_as_they_are_called(monkeypatch):
    assert set(vision_tasks.OPTIONAL) < set(vision_tasks.TASKS)
    with pytest.raises(KeyError, match="no task 'x'; there are scenes"):
        vision_tasks.available("x")
    assert vision_tasks.available("digits") and issubclass(vision_tasks.TASKS["scenes"], ImageTask)
    ready = {photos.GCOMPRIS}
    monkeypatch.setattr(assets, "state", lambda name: "ready" if name in ready else "missing")
    available = [name for name in vision_tasks.TASKS if vision_tasks.available(name)]
    assert available == ["scenes", "collection", "digits", "emoji"]  # stamps need two assets
    ready.clear()
    assert [name for name in vision_tasks.TASKS if vision_tasks.available(name)] == ["digits"]
    protocol = set(dir(sweep.Task)) - set(dir(object))
    assert {name for name in protocol if not name.startswith("_")} <= set(dir(vision_tasks.Scenes))
