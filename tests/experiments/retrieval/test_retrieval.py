"""Retrieval in the embedded tier: cells, counts, heads and their training, the command."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import pitome_core as pc
from pitome_core.experiments import __main__ as command
from pitome_core.experiments import assets
from pitome_core.experiments.data import pairs, photos
from pitome_core.experiments.data.pictures import preprocess
from pitome_core.experiments.models import dual_encoder
from pitome_core.experiments.records import results
from pitome_core.experiments.records.cells import Cell
from pitome_core.experiments.records.fingerprint import code_of
from pitome_core.experiments.retrieval import command as retrieval
from pitome_core.experiments.retrieval import features, recall
from pitome_core.experiments.retrieval import grid as retrieval_grid
from pitome_core.experiments.retrieval import tasks as retrieval_tasks
from pitome_core.experiments.retrieval import training as retrieval_training
from pitome_core.experiments.runs import grid, stages

pytest.importorskip("open_clip")
pytestmark = pytest.mark.usefixtures("on_the_processor")
FEW = 5  # pictures
QUICK = retrieval_training.HeadRecipe(views=retrieval_training.INSTALLED[:2], epochs=3, batch=4)


@pytest.fixture(scope="module")
def model():
    return dual_encoder.dual_encoder(dual_encoder.Heads())


@pytest.fixture(scope="module")
def sample(model):
    """Two pictures and three texts of unequal length."""
    found = pairs.pairs("dev", count=2)
    images = preprocess(list(pairs.views(found.things, "photographs", "dev")))
    texts = ["clipboard", "a much longer text with a dozen words and some more of them", found.texts[0]]
    return images, model[2](texts)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("features")


def pretend_collection(monkeypatch, state: str) -> None:
    """The asset of the collection seems to be in this state."""
    real = assets.state
    monkeypatch.setattr(assets, "state", lambda name: state if name == photos.GCOMPRIS else real(name))


@pytest.fixture
def few(monkeypatch, folder, tmp_path):
    """Five pictures in every split; features and heads in folders of the test's own; a few pairs of heads there."""
    whole = pairs.pairs
    monkeypatch.setattr(pairs, "pairs", lambda split, source="openmoji", count=None: whole(split, source, count or FEW))
    monkeypatch.setattr(features, "features_folder", lambda: folder)
    monkeypatch.setattr(retrieval_training, "heads_path", lambda seed, cell=None: tmp_path / "heads" / (
        f"{(cell or retrieval_training.WHOLE).key.replace('/', '-')}-head{seed}.safetensors"))
    pretend_collection(monkeypatch, "missing")
    retrieval_training.reference.cache_clear()
    yield tmp_path
    retrieval_training.reference.cache_clear()


def random_examples(count: int = 40, views: int = 2, seed: int = 0) -> retrieval_training.Examples:
    """Pictures that a linear map of their texts explains; every fourth text is shared with the next picture."""
    draw = torch.Generator().manual_seed(seed)
    answers = [(i, (i + 1) % count) if i % 4 == 0 else (i,) for i in range(count)]
    answers += [(i,) for i in range(0, count, 2)]
    texts = torch.randn(len(answers), 384, generator=draw)
    texts[count:] = texts[:count:2] + 0.3 * torch.randn(len(answers) - count, 384, generator=draw)
    some = pairs.Pairs(tuple(range(count)), tuple(map(str, range(len(answers)))), tuple(answers))
    means = torch.stack([texts[list(row)].mean(0) for row in some.captions])
    mixing = torch.randn(384, 768, generator=torch.Generator().manual_seed(99)) / 384**0.5
    noise = torch.randn(views, count, 768, generator=draw)
    return retrieval_training.Examples(((means @ mixing) + 0.3 * noise).unflatten(2, (2, 384)), texts, some)


# -------------------------------------------------------------------------------------------------------------- cells
def test_keys_tell_cells_apart():
    """Every cell of every task has a key of its own; what needs no heads of its own is said."""
    for name, listed in retrieval_tasks.GRIDS.items():
        cells = retrieval_grid.cells(**listed)
        assert cells[0].key == grid.WHOLE and len({c.key for c in cells}) == len(cells), name
    assert Cell("tome", 0.8, towers="text").key == "tome@0.8/text"
    assert Cell("random-prune", 0.8, seed=1, towers="both").key == "random-prune@0.8/both/seed1"
    assert Cell("random-prune", 0.8, seed=1, towers="both").without_seed.key == "random-prune@0.8/both"
    assert all(retrieval_grid.has_own_heads(c) for c in retrieval_training.retrained_cells())
    with pytest.raises(ValueError, match="keep 1.5 must lie"):
        retrieval_grid.cells(text=(1.5,))
    with pytest.raises(ValueError, match="no method 'nonsense'"):
        retrieval_grid.cells(["nonsense"])


@pytest.mark.parametrize("task", [name for name in retrieval_tasks.GRIDS if name != "photographs"])
def test_every_arm_with_energy_has_its_counterpart_and_its_control(task):
    """And in a comparison both are scored with as many draws of noise. The primary cells are among them."""
    cells = retrieval_grid.cells(**retrieval_tasks.GRIDS[task])
    seeds = {(c.arm, c.keep): sum(1 for other in cells if other == replace(c, seed=other.seed)) for c in cells}
    with_energy = [c for c in cells if c.arm in retrieval_grid.WITH_ENERGY]
    assert {c.arm for c in with_energy} == set(retrieval_grid.WITH_ENERGY)
    for cell in with_energy:
        rival = cell.beside("tome")
        assert rival in cells and retrieval_grid.is_drawn(rival) == retrieval_grid.is_drawn(cell), cell.key
        if cell.towers == "vision" and cell.proportional is None:
            everywhere = task == "collection" and cell.keep == 0.9
            assert seeds[cell.shuffled.arm, cell.keep] == (5 if everywhere else 2), cell.key
    drawn = [cell.key for cell in cells if retrieval_grid.is_drawn(cell)]
    assert {"whole", "pitome@0.9", "tome@0.9", "tome@0.9/off", "pitome-released-clip@0.9", "tome-hidden@0.9/off",
            "tome-released-clip@0.9"} <= set(drawn) and len(drawn) == 13
    assert all(cell.seed is None for cell in cells if retrieval_grid.is_drawn(cell))


@pytest.mark.parametrize("task", ["collection", "photographs"])
def test_committed_records_hold_every_cell(task):
    """With as many draws as the protocol says. The whole model's agree, and each draw of a cell is in its range."""
    try:
        record = results.load(f"retrieval-2-{task}")
    except results.RecordError as error:
        pytest.skip(str(error))
    cells = retrieval_grid.cells(**retrieval_tasks.GRIDS[task])
    assert set(record.cells) == {cell.key for cell in cells} and record.header["protocol"] == "retrieval-2"
    for cell in cells:
        draws = retrieval_grid.DRAWS if retrieval_grid.is_drawn(cell) else 1
        assert record.outcome(cell.key, "rank").shape == (len(record), len(retrieval_training.SEEDS), draws), cell.key
    assert np.ptp(recall.repeats(record, "whole")) < 0.5
    images = [query for query, kind in enumerate(record.items["query"]) if kind == recall.IMAGE][:48]
    for cell in (cell for cell in cells if retrieval_grid.is_drawn(cell)):
        low, high = recall.live_range(record, cell.key, images)
        drawn = np.moveaxis(record.outcome(cell.key, "rank")[images], 2, 0)
        assert all(low <= recall.recalls(ranks) <= high for ranks in drawn), cell.key


def test_two_photographs_have_what_live_runs_compute():
    """With five draws each, because a live run is held to their scatter."""
    cells = retrieval_grid.cells(**retrieval_tasks.GRIDS["photographs"])
    assert [cell.key for cell in cells] == ["whole", "pitome@0.9", "energy-sorted@0.9", "tome@0.9"]
    assert all(map(retrieval_grid.is_drawn, cells))


def test_named_methods_come_alone_or_with_their_counterpart():
    """Both are asked for: then the counterpart has the same attention. The paper tier begins with vision's grid."""
    def keys(*arms, **arguments):
        return [cell.key for cell in retrieval_grid.cells(list(arms) or None, **arguments)]

    assert keys("pitome-released-clip", keeps=(0.8,)) == ["whole", "pitome-released-clip@0.8"]
    assert keys("pitome-released-clip", "tome-hidden", keeps=(0.8,)) == [
        "whole", "pitome-released-clip@0.8", "tome-hidden@0.8", "tome-hidden@0.8/off"]
    assert keys("lower-resolution", pixels=(168, 140)) == [
        "whole", "lower-resolution@168px", "lower-resolution@140px"]
    paper = keys(keeps=grid.KEEPS, listed=retrieval_grid.PAPER_ARMS)
    vision = [cell.key for cell in grid.cells()]
    assert paper[: len(vision)] == vision
    assert {"pitome-released-clip@0.8", "tome-hidden@0.8/off", "tome-released-clip@0.8"} <= set(paper)


def test_a_cell_of_both_is_a_cell_of_each():
    """What a cell does to a tower that it leaves alone is nothing."""
    both = Cell("random-prune", 0.8, seed=1, towers="both")
    assert retrieval_grid.side(both, "vision").key == "random-prune@0.8/seed1"
    assert retrieval_grid.side(both, "text").key == "random-prune@0.8/text/seed1"
    assert retrieval_grid.side(Cell("tome", 0.8, towers="text"), "vision") == Cell(grid.WHOLE)
    assert retrieval_grid.side(Cell("tome", 0.8), "text") == retrieval_grid.side(Cell(grid.WHOLE), "text")
    assert retrieval_grid.side(Cell(grid.WHOLE), "vision") == Cell(grid.WHOLE)
    assert retrieval_grid.side(Cell(grid.WHOLE), "text") != Cell(grid.WHOLE)
    assert retrieval_grid.side(Cell("tome", 0.9, False), "vision").key == "tome@0.9/off"


@pytest.mark.parametrize("towers_", ["text", "both"])
def test_every_arm_for_texts_runs(model, sample, towers_):
    """Each merges the texts, leaves the model as it was, and each tower does what the cell's part of it says."""
    encoder, (images, ids) = model[0], sample
    with torch.no_grad():
        whole = encoder.encode_text(ids)
        for name in retrieval_grid.TEXT_ARMS:
            cell = Cell(name, 0.6, seed=0 if grid.ARMS[name].seeds > 1 else None, towers=towers_)
            with retrieval_grid.applied(cell, encoder) as running:
                text = running.encode_text(ids)
                image = running.encode_image(images[:1]) if name == "tome" else None
            assert torch.isfinite(text).all() and not torch.allclose(text, whole, atol=1e-5), name
            if image is not None:
                with retrieval_grid.applied(retrieval_grid.side(cell, "vision"), encoder) as running:
                    torch.testing.assert_close(running.encode_image(images[:1]), image)
            with retrieval_grid.applied(retrieval_grid.side(cell, "text"), encoder) as running:
                torch.testing.assert_close(running.encode_text(ids), text)
        assert torch.equal(encoder.encode_text(ids), whole)


def test_lower_resolution_is_a_copy(model, sample):
    """The model itself stays at 224 pixels."""
    with retrieval_grid.applied(Cell(grid.LOWER, pixels=140), model[0]) as running, torch.no_grad():
        assert running is not model[0] and running.visual.trunk.patch_embed.img_size == (140, 140)
        assert running.encode_image(sample[0][:1, :, :140, :140]).shape == (1, dual_encoder.WIDTH)
    assert model[0].visual.trunk.patch_embed.img_size == (224, 224)


def test_costs_are_of_both_towers(model):
    """An image and a mean text, heads included; only what merges gets cheaper."""
    encoder, lengths = model[0], {5: 3, 20: 1}
    whole = retrieval_grid.cost(Cell(grid.WHOLE), encoder, lengths)
    head = sum(p.numel() for name, p in encoder.named_parameters() if name.startswith("text.proj"))
    text = [pc.flops(encoder.text.transformer, (length,)).total for length in lengths]
    assert whole["gmacs_text"] == pytest.approx(((3 * text[0] + text[1]) / 4 + head) / 1e9, abs=1e-6)
    assert whole["gmacs_image"] == pytest.approx(pc.flops(encoder).total / 1e9, abs=1e-6)
    assert whole["share"] == 1 and whole["gmacs"] == pytest.approx(whole["gmacs_image"] + whole["gmacs_text"], abs=2e-6)
    assert whole["tokens"] == [256] * 13
    found = {t: retrieval_grid.cost(Cell("tome", 0.8, towers=t), encoder, lengths)
             for t in ("vision", "text", "both")}
    assert found["text"]["gmacs_image"] == whole["gmacs_image"] == 1 * whole["gmacs_image"]
    assert found["vision"]["gmacs_text"] == whole["gmacs_text"] > found["text"]["gmacs_text"]
    assert found["both"]["gmacs_text"] == found["text"]["gmacs_text"]
    assert found["both"]["gmacs_image"] == found["vision"]["gmacs_image"] < whole["gmacs_image"]
    assert found["vision"]["tokens"] == found["both"]["tokens"] != whole["tokens"] == found["text"]["tokens"]
    lower = retrieval_grid.cost(Cell(grid.LOWER, pixels=112), encoder, lengths)
    assert lower["tokens"] == [64] * 13 and lower["share"] < 0.3


# -------------------------------------------------------------------------------------------------------------- heads
def test_text_head_begins_with_the_encoders_similarities():
    """Exactly, for texts in as many directions as it has pairs of hidden units."""
    heads = dual_encoder.Heads()
    texts = torch.randn(500, 192, generator=torch.Generator().manual_seed(0)) @ torch.randn(
        192, 384, generator=torch.Generator().manual_seed(1))
    retrieval_training.begin(heads, texts)
    with torch.no_grad():
        found = heads.texts(texts[:50])
    expected = torch.nn.functional.normalize(texts[:50], dim=1)
    torch.testing.assert_close(found @ found.T, expected @ expected.T, rtol=0, atol=1e-4)


def test_the_loss_equals_a_loop():
    """CLIP's loss written out, one view and text of each picture, shared texts neither right nor wrong."""
    examples, chosen = random_examples(), torch.tensor([0, 1, 5, 8, 9, 30])
    heads = dual_encoder.Heads().double()
    examples = replace(examples, images=examples.images.double(), texts=examples.texts.double())
    loss = retrieval_training.contrastive_loss(heads, examples, chosen, torch.Generator().manual_seed(3), drop=0.0)
    draw = torch.Generator().manual_seed(3)
    views = torch.randint(2, (6,), generator=draw)
    captions = [examples.pairs.captions[i] for i in chosen.tolist()]
    texts = [row[int(torch.randint(len(row), (), generator=draw))] for row in captions]
    with torch.no_grad():
        x = heads.images(torch.stack([examples.images[v, i] for v, i in zip(views, chosen, strict=True)]))
        y = heads.texts(examples.texts[texts])
        total, left_out = 0.0, 0
        for a in range(6):
            for flip in (False, True):
                terms = []
                for b in range(6):
                    picture, text = (b, a) if flip else (a, b)
                    if a != b and int(chosen[picture]) in examples.pairs.answers[texts[text]]:
                        left_out += 1
                        continue
                    terms.append(float(heads.logit_scale.exp() * (x[picture] @ y[text])))
                own = float(heads.logit_scale.exp() * (x[a] @ y[a]))
                total += math.log(sum(math.exp(t) for t in terms)) - own
    assert left_out > 0 and loss.item() == pytest.approx(total / 12)


def test_training_learns_and_keeps_the_best_epoch():
    """Better than where it began, the same from the same seed, and the heads are those of the best score."""
    examples, dev = random_examples(60), random_examples(30, seed=1)
    recipe = replace(QUICK, epochs=12, batch=30, rate=1e-2, drop=0.0)
    start = dual_encoder.Heads(recipe.width, recipe.pool, 5).eval()
    retrieval_training.begin(start, examples.texts)
    heads, scores = retrieval_training.train(examples, dev, 5, recipe, evaluate_every=2)
    again, repeated = retrieval_training.train(examples, dev, 5, recipe, evaluate_every=2)
    assert len(scores) == 6 and scores == repeated
    assert all(torch.equal(a, b) for a, b in zip(heads.parameters(), again.parameters(), strict=True))
    assert retrieval_training.score(heads, dev) == max(scores) > retrieval_training.score(start, dev) + 20
    frozen, _ = retrieval_training.train(examples, dev, 5, replace(recipe, text_rate=0.0, epochs=1))
    assert all(torch.equal(a, b) for a, b in zip(frozen.text.parameters(), start.text.parameters(), strict=True))


def test_the_reference_is_kernel_ridge():
    """Its prediction is the closed form with the kernel and penalty that do best on dev."""
    examples, dev = random_examples(30, views=1), random_examples(20, views=1, seed=1)
    ridge = retrieval_training.Ridge(examples, dev)
    gamma, penalty = max(ridge.scores, key=ridge.scores.__getitem__)
    assert len(ridge.scores) == 12 and len(set(ridge.scores.values())) > 1
    x, z = (e.images[0].flatten(1).double() for e in (examples, dev))
    mean, spread = x.mean(0), x.std(0, correction=0)
    x, z = (x - mean) / spread, (z - mean) / spread
    unit = torch.nn.functional.normalize(examples.texts, dim=1).double()
    target = torch.stack([unit[list(row)].mean(0) for row in examples.pairs.captions])

    def kernel(a, b):
        return torch.exp(-gamma / 768 * torch.cdist(a, b).square())

    expected = kernel(z, x) @ torch.linalg.solve(kernel(x, x) + penalty * torch.eye(30), target)
    expected = torch.nn.functional.normalize(expected, dim=1).float()
    torch.testing.assert_close(ridge.images(dev.images[0]), expected, rtol=1e-3, atol=1e-4)


# ----------------------------------------------------------------------------------------------------------- features
def test_features_are_computed_once(few, monkeypatch):
    """The second time from the cache; another cell, view or split, or other code, is another entry."""
    first = features.image_features(retrieval_training.WHOLE, "dev", ("white", 0))
    text = features.text_features(Cell("tome", 0.9), "dev")
    assert first.shape == (FEW, 2, 384) and text.shape == (len(pairs.pairs("dev").texts), 384)
    monkeypatch.setattr(features, "_model", lambda: pytest.fail("computed again"))
    again = features.image_features(Cell("tome", 0.9, towers="text"), "dev", ("white", 0))
    assert torch.equal(first, again), "merging in the text tower changes no picture"
    assert torch.equal(features.text_features(retrieval_training.WHOLE, "dev"), text)
    for arguments in ((Cell("tome", 0.9), "dev", ("white", 0)), (retrieval_training.WHOLE, "train",
                      ("white", 0)), (retrieval_training.WHOLE, "dev", ("white", 1))):
        with pytest.raises(pytest.fail.Exception, match="computed again"):
            features.image_features(*arguments)
    monkeypatch.setattr(features, "code_of", lambda *_: "other code")
    with pytest.raises(pytest.fail.Exception, match="computed again"):
        features.text_features(retrieval_training.WHOLE, "dev")


def test_a_view_is_drawn_once_for_all_cells(few, monkeypatch):
    """And what comes out is what each cell gives alone; what is in the cache is not computed again."""
    cells = [Cell("tome", 0.9), Cell("pitome", 0.8), Cell("pitome", 0.8, towers="both")]
    alone = features._encoded(cells[1:2], "dev", ("photographs", 3), 3)[cells[1]]
    drawn, views = [], pairs.views
    monkeypatch.setattr(pairs, "views", lambda *a: drawn.append(a[1]) or views(*a))
    features.compute_view(cells, "dev", ("photographs", 3), 3)
    assert drawn == ["photographs"]
    found = [features.image_features(cell, "dev", ("photographs", 3), 3) for cell in cells]
    features.compute_view(cells, "dev", ("photographs", 3), 3)
    assert drawn == ["photographs"] and not torch.allclose(found[0], found[1], atol=1e-3)
    assert torch.equal(found[1], alone) and torch.equal(found[1], found[2])


def test_every_pair_of_heads_is_a_stage(few, monkeypatch, capsys):
    """No time: nothing is trained. Then the heads without merging, then those with, each once, and a line in the log.
    """
    log = few / "log.jsonl"
    arguments = dict(methods=[grid.WHOLE, "tome"], keeps=[0.9], recipe=QUICK, log=log)
    assert retrieval_training.run(**arguments, estimate_only=True) == 9
    assert retrieval_training.run(**arguments, minutes=0) == 9 and not log.exists()
    with pytest.raises(results.RecordError, match="no heads whole-head0.safetensors, .*make retrieval-weights"):
        retrieval_training.trained_heads()
    drawn, compute = [], features.compute_view
    with monkeypatch.context() as patch:
        # The time is over when the first view is drawn; what was drawn stays, and no head is trained.
        patch.setattr(retrieval_training, "compute_view", lambda *a: drawn.append(a[1:]) or compute(*a))
        patch.setattr(stages.Budget, "over", lambda budget: bool(drawn))
        assert retrieval_training.run(**arguments) == 9 and drawn == [("train", ("white", 0))]
    assert not log.exists() and not list(few.glob("heads/*"))
    assert retrieval_training.run(**arguments) == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["heads"] for line in lines] == ["ridge"] + [
        f"{key}-head{seed}.safetensors" for key in ("whole", "tome@0.9", "tome@0.9-both") for seed in range(3)]
    for line in lines[1:]:
        assert len(line["dev"]) == 1 and line["stored"] == pytest.approx(max(line["dev"]), abs=30)
        assert line["recipe"]["epochs"] == 3 and line["code"] == code_of(retrieval_training)
    monkeypatch.setattr(retrieval_training, "train", lambda *_: pytest.fail("trained again"))
    assert retrieval_training.run(**arguments) == 0
    cells = (None, *retrieval_training.retrained_cells(["tome"], [0.9]))
    heads = [retrieval_training.trained_heads(cell) for cell in cells]
    assert len({float(one.image.fc1.weight.sum()) for three in heads for one in three}) == 9
    assert sum(path.stat().st_size for path in few.glob("heads/whole*")) < 6e6
    capsys.readouterr()
    with pytest.raises(assets.AssetError, match="photos-gcompris.*--recipe decay-2-installed"):
        retrieval_training.run([grid.WHOLE], again=True, log=log)


def test_without_the_collection_there_are_installed_photographs(monkeypatch):
    """And a recipe that asks for nothing else stays as it is."""
    plain, own = retrieval_training.HeadRecipe(), replace(QUICK, views=(("white", 3),))
    pretend_collection(monkeypatch, "missing")
    assert retrieval_training.obtainable(plain) == replace(plain, views=retrieval_training.INSTALLED)
    assert retrieval_training.obtainable(own) == own
    pretend_collection(monkeypatch, "ready")
    assert retrieval_training.obtainable(plain) == plain


def test_recipes_are_explored_on_dev(few, monkeypatch, capsys):
    """A line for every candidate; no heads are kept; views that need the asset are replaced where it is not there."""
    monkeypatch.setattr(results, "writable", lambda committed: few)
    tried = {"one": QUICK, "two": replace(QUICK, views=(("white", 0), ("collection", 0)), pool="avg")}
    monkeypatch.setattr(retrieval_training, "CANDIDATES", tried)
    monkeypatch.setattr(retrieval_training, "INSTALLED", QUICK.views)
    retrieval_training.explore(["one", "two"])
    lines = [json.loads(line) for line in (few / "retrieval-training.jsonl").read_text().splitlines()]
    assert [line["heads"] for line in lines] == ["explore-one", "explore-two"]
    assert lines[1]["recipe"]["views"] == [list(view) for view in QUICK.views] and lines[1]["recipe"]["pool"] == "avg"
    assert "one: dev " in capsys.readouterr().out and not (few / "heads").exists()


@pytest.mark.parametrize("pool", dual_encoder.POOLS)
def test_every_recipe_can_be_shipped(pool):
    """Heads of three seeds stay under 6 MB, and open_clip's own MLP has their shapes."""
    assert {recipe.pool for recipe in retrieval_training.CANDIDATES.values()} == set(dual_encoder.POOLS)
    assert retrieval_training.CHOSEN in retrieval_training.CANDIDATES
    for recipe in retrieval_training.CANDIDATES.values():
        size = sum(value.numel() for value in dual_encoder.Heads(recipe.width, pool).stored().values())
        assert 2 * size * len(retrieval_training.SEEDS) < 5.9e6


# ------------------------------------------------------------------------------------------------------------ command
def test_the_command_trains(monkeypatch):
    """With the recipe, the arms and the time that were asked for."""
    seen = []
    monkeypatch.setattr(retrieval_training, "run", lambda *a, **named: seen.append((a, named)))
    monkeypatch.setattr(retrieval_training, "explore", lambda names: seen.append(names))
    words = ["retrieval", "--train", "--recipe", "avg", "--minutes", "70", "--methods", "tome", "--keep", "0.9"]
    assert command.main(words) == 0 and command.main(["retrieval", "--explore"]) == 0
    (arguments, named), explored = seen
    assert arguments == (["tome"], [0.9]) and named["minutes"] == 70 and not named["again"]
    assert named["recipe"] == retrieval_training.CANDIDATES["avg"] and explored == [*retrieval_training.CANDIDATES]


@pytest.fixture
def with_heads(few):
    """Random heads of every seed, and such as were trained with ToMe in the image tower."""
    for seed in retrieval_training.SEEDS:
        dual_encoder.save(dual_encoder.Heads(seed=seed), retrieval_training.heads_path(seed))
        cell = Cell("tome", 0.9)
        dual_encoder.save(dual_encoder.Heads(seed=10 + seed), retrieval_training.heads_path(seed, cell))
    return few


def test_noise_is_of_the_draw_and_the_picture():
    """None in the first draw; the same whatever else is scored; of the size that the protocol says."""
    images = torch.zeros(3, 3, 224, 224)
    first = retrieval_tasks.disturbed(images, ["a", "b", "c"], 1)
    assert torch.equal(retrieval_tasks.disturbed(images, ["a", "b", "c"], 0), images)
    assert torch.equal(retrieval_tasks.disturbed(images[:1], ["c"], 1)[0], first[2])
    assert not torch.equal(retrieval_tasks.disturbed(images[:1], ["c"], 2)[0], first[2])
    assert len({float(row.sum()) for row in first}) == 3 and (images == 0).all()
    assert first.std().item() == pytest.approx(retrieval_tasks.NOISE, rel=0.01) and abs(first.mean()) < 1e-7
    two = preprocess([np.full((224, 224, 3), level, np.uint8) for level in (127, 128)])
    assert 1 / 2500 < retrieval_tasks.NOISE / (two[1] - two[0]).mean() < 1 / 1500


def test_queries_stand_on_photographs(with_heads):
    """A text stands on that of the first of its pictures. Intervals cross identities with photographs."""
    task = retrieval_tasks.Retrieval("dev", "photographs", count=FEW)
    behind = [pairs.photograph_of(thing, "photographs", "dev") for thing in task.pairs.things]
    assert task.clusters == ("identity", "photograph") and set(behind) == set(pairs.backgrounds("dev"))
    assert task.items["photograph"][:FEW] == behind
    assert task.items["photograph"][FEW:] == [behind[row[0]] for row in task.pairs.answers]
    assert [task.work(cell) for cell in (Cell("whole"), Cell("pitome", 0.9))] == [FEW, FEW]
    task.draws = 5
    assert [task.work(cell) for cell in (Cell("whole"), Cell("tome-hidden", 0.9, False), Cell("pitome", 0.8))] == [
        5 * FEW, 5 * FEW, FEW]


def test_the_command_records_ranks(with_heads, model, capsys, monkeypatch):
    """Ranks of every query, seed and draw are those of open_clip's own functions; a second run scores nothing."""
    grid_of_white = retrieval_tasks.GRIDS["white"] | dict(both=(0.9,), elsewhere=("tome", "pitome"))
    monkeypatch.setitem(retrieval_tasks.GRIDS, "white", grid_of_white)
    monkeypatch.setitem(retrieval_tasks.TASKS, "white", retrieval_tasks._task("white", draws=2))
    words = ["retrieval", "--tasks", "white", "--methods", "tome", "pitome", "--keep", "0.9", "--count", str(FEW),
             "--output", str(with_heads)]
    assert command.main(words) == 0
    printed = capsys.readouterr().out
    assert "without a column for heads that are not trained here: pitome@0.9, pitome@0.9/both" in printed.replace(
        "tome@0.9/both, ", "")
    record = results.Record.load(with_heads / "retrieval-2-white-dev.json")
    assert list(record.cells) == ["whole", "tome@0.9", "tome@0.9/off", "pitome@0.9", "pitome@0.9/off",
                                  "tome@0.9/both", "pitome@0.9/both"]
    assert record.header["protocol"] == "retrieval-2" and record.header["draws"] == 2
    assert record.header["clusters"] == ["identity"] and set(record.items["photograph"]) == {""}
    assert [name for name, cell in record.cells.items() if "rank_retrained" in cell["outcomes"]] == ["tome@0.9"]
    assert "weights" in record.cells["tome@0.9"] and len(record.header["weights"]) == 3

    found = pairs.pairs("dev")
    assert record.items["query"] == ["image"] * FEW + ["text"] * len(found.texts)
    plain = preprocess(list(pairs.views(found.things, "white")))
    encoder, _, tokenizer = model
    own = {name: encoder.state_dict()[name].clone() for name in dual_encoder.Heads().stored()}
    ids = tokenizer(list(found.texts))
    shapes = {key: record.outcome(key, "rank").shape[1:] for key in record.cells}
    assert shapes == {key: (3, 1 if key.endswith("/both") else 2) for key in record.cells}
    assert record.outcome("tome@0.9", "rank_retrained").shape == (len(record), 3, 2)
    names = [thing.member for thing in found.things]
    for key, towers_, draw in (("whole", None, 0), ("tome@0.9", "vision", 1), ("tome@0.9/both", "both", 0)):
        images = retrieval_tasks.disturbed(plain, names, draw)
        for seed in (0, 2):
            heads = dual_encoder.load(retrieval_training.heads_path(seed))
            encoder.load_state_dict(heads.stored(), strict=False)
            if towers_:
                pc.apply(encoder, "tome", 0.9, towers=towers_)
            with torch.no_grad():
                x, y = encoder.encode_image(images, True), encoder.encode_text(ids, True)
            expected = np.concatenate(recall.both_ways(x, y, found.answers))
            assert record.outcome(key, "rank")[:, seed, draw].tolist() == expected.tolist()
            pc.remove(encoder)
    encoder.load_state_dict(own, strict=False)
    assert command.main(words) == 0
    assert "7 cells, 7 recorded already" in capsys.readouterr().out


def test_the_command_refuses_what_it_cannot_score(few, with_heads, capsys):
    """The test set in part; heads that are missing altogether."""
    assert command.main(["retrieval", "--split", "test", "--count", "3"]) == 2
    assert "--count is for dev" in capsys.readouterr().err
    for path in (few / "heads").iterdir():
        path.unlink()
    assert command.main(["retrieval", "--tasks", "photographs", "--methods", "tofu", "--keep", "0.9"]) == 2
    assert "no heads whole-head0.safetensors" in capsys.readouterr().err


def test_optional_tasks_are_left_out_where_their_asset_is(monkeypatch):
    """Those that need nothing else are always there."""
    monkeypatch.setattr(assets, "state", lambda name: "missing")
    assert [name for name in retrieval_tasks.TASKS if retrieval_tasks.available(name)] == ["white", "photographs"]
    with pytest.raises(KeyError, match="no task 'nonsense'"):
        retrieval_tasks.available("nonsense")


def test_other_keep_ratios_hold_for_every_tower_that_a_task_lists(few, monkeypatch):
    listed = retrieval_tasks.GRIDS["collection"] | {"both": (0.9,)}
    monkeypatch.setitem(retrieval_tasks.GRIDS, "collection", listed)

    def towers(task):
        args = argparse.Namespace(methods=["tome"], keep=[0.7], split="dev", output=few, again=False)
        return {(cell.towers, cell.keep) for cell in retrieval.cells(args, task)}

    assert towers("collection") == {("vision", None), ("vision", 0.7), ("both", 0.7)}
    assert towers("stamps") == {("vision", None), ("vision", 0.7)}
