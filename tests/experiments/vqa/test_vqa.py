"""Visual question answering in the embedded tier: cells, costs, what records keep, the command."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_models import shorten_language_model

import pitome_core as pc
from pitome_core.experiments import __main__ as command
from pitome_core.experiments.data import questions
from pitome_core.experiments.models import llava
from pitome_core.experiments.records import files, results
from pitome_core.experiments.records.cells import Cell
from pitome_core.experiments.runs import grid
from pitome_core.experiments.vqa import command as vqa
from pitome_core.experiments.vqa import grid as vqa_grid
from pitome_core.experiments.vqa import tasks as vqa_tasks
from pitome_core.experiments.vqa import training as vqa_training
from pitome_core.families.hf_llava import image_token_count

pytest.importorskip("transformers", minversion="5.23")


@pytest.fixture(scope="module", autouse=True)
def small_language_model(tmp_path_factory):
    """The real parts with two layers of the language model, and weights that say something: random ones."""
    path = tmp_path_factory.mktemp("weights") / "vqa.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PITOME_DEVICE", "cpu")
        shorten_language_model(patch)
        patch.setattr(llava, "weights_path", lambda: path)
        patch.setattr(vqa_training, "KNOWN", 90)
        patch.setattr(vqa_training, "headline", lambda rows: ["exist", "single"])
        state = vqa_training.begin(vqa_training.LlavaRecipe(batch=1), torch.device("cpu"))
        vqa_training.finish(state, vqa_training.LlavaRecipe(batch=1), path, count=9, log=path.with_name("log"))
        yield


@pytest.fixture(scope="module")
def model():
    return llava.llava()


# -------------------------------------------------------------------------------------------------------------- cells
def test_keys_tell_cells_apart():
    """Every cell of a task has a key; seeds come last; orders are there at the primary ratio alone, if asked for."""
    for name, listed in vqa_tasks.GRIDS.items():
        cells = vqa_grid.cells(**listed)
        assert cells[0].key == grid.WHOLE and len({c.key for c in cells}) == len(cells), name
    keys = [c.key for c in vqa_grid.cells(**vqa_tasks.GRIDS["grid"])]
    assert {"tome@0.9", "random-prune@0.9/seed1", "tome-hidden@0.9/off", "tome-released-clip@0.9",
            "pitome-released-llava@0.9", "lower-resolution@98px"} <= set(keys)
    assert all(key.startswith(("whole", "lower-")) or "@0.9" in key for key in keys)
    in_orders = {cell.key for cell in vqa_grid.cells(["tome"], [0.9, 0.85], ordered=["tome"])}
    assert {"tome@0.9/released", "tome@0.9/raster-compact"} <= in_orders and "tome@0.85/released" not in in_orders
    headline = [c.key for c in vqa_grid.cells(**vqa_tasks.GRIDS["headline"])]
    assert headline == ["whole", "pitome@0.9", "tome@0.9"]
    assert set(headline) <= set(keys)
    for name in vqa_grid.PITOME:  # with its counterpart and the control for energy
        cell = Cell(name, 0.9)
        assert cell.beside("tome").key in keys
        seeds = {cell.key + f"/seed{seed}" for cell in [cell.shuffled] for seed in range(5 if name == "pitome" else 2)}
        assert seeds == {key for key in keys if key.startswith(f"{name}-shuffled@")}
    with pytest.raises(ValueError, match="keep 1 must lie"):
        vqa_grid.cells(keeps=(1,))
    with pytest.raises(ValueError, match="no method 'nonsense'"):
        vqa_grid.cells(["nonsense"])


def test_every_cell_runs_and_costs_what_it_says(model):
    """As many tokens as counted reach the language model, which is as it was afterwards."""
    pixels = llava.draw([("validation", 4)], torch.device("cpu"))
    images = llava.normalised(pixels)
    lengths = {20: 3, 30: 1}
    whole = vqa_grid.cost(Cell(grid.WHOLE), model, lengths)
    assert whole["share"] == 1 and whole["image_tokens"] == 144 and whole["prompt_tokens"] == 22.5
    assert whole["gmacs_tower"] == pytest.approx(pc.flops(model).total / 1e9, abs=1e-6)
    before = llava.ask(model, pixels, ["What is the object?"], [0])
    with torch.no_grad():
        for cell in vqa_grid.cells(**vqa_tasks.GRIDS["grid"] | {"seeds": 1}):
            cost = vqa_grid.cost(cell, model, lengths)
            with vqa_grid.applied(cell, model) as running:
                size = images.shape[1:] if cell.pixels is None else (3, cell.pixels, cell.pixels)
                shrunk = torch.nn.functional.interpolate(images, size=size[-2:], mode="bilinear", antialias=True)
                features = running.model.get_image_features(pixel_values=shrunk, return_dict=True).pooler_output
                assert features[0].shape[0] == cost["image_tokens"] == image_token_count(running, tuple(size))
            assert cell.arm == grid.WHOLE or (cost["share"] < 1 and cost["gmacs_prefill"] < whole["gmacs_prefill"])
    assert llava.ask(model, pixels, ["What is the object?"], [0]) == before


def test_prefill_is_counted_as_a_loop_counts(model):
    language = model.model.language_model
    maps = sum(p.numel() for name, p in language.layers.named_parameters() if "proj" in name)
    attention = sum(2 * (i + 1) * 9 * 64 * len(language.layers) for i in range(7))
    assert vqa_grid.prefill_macs(model, 7) == 7 * maps + attention + model.lm_head.weight.numel()


# ------------------------------------------------------------------------------------------------------------ records
@pytest.mark.parametrize("different", [1, 2, 300, 70_000])
def test_texts_are_packed(different):
    texts = [f"text {i * 7919 % different}" for i in range(2 * different)]
    packed = vqa_tasks.pack_texts(texts)
    assert vqa_tasks.unpack_texts(packed) == texts and packed["length"] == len(texts)
    assert vqa_tasks.unpack_texts(vqa_tasks.pack_texts([])) == []


def record_of(tmp_path, cells, kinds, headline=("exist", "single")):
    """A record with right-or-wrong outcomes, three questions to a scene."""
    items = {"id": list(range(len(kinds))), "scene": [i // 3 for i in range(len(kinds))], "type": list(kinds)}
    header = {"headline": list(headline), "clusters": ["scene"], "prior": {}}
    record = results.Record.open(tmp_path / "r.json", header, items)
    listed = (Cell("whole"), Cell("tome", 0.9), *(Cell("random-merge", 0.9, seed=seed) for seed in (0, 1)))
    for cell in listed:
        if cell.key in cells:
            record.cells[cell.key] = cell.describe() | {"outcomes": {"correct": results.pack(cells[cell.key])}}
    assert list(record.cells) == list(cells)
    return record


def test_accuracies_are_means_over_the_right_questions(tmp_path):
    """Micro weighs questions, macro types, all takes every type; seeds are averaged; differences are paired."""
    draw = np.random.default_rng(0)
    kinds = ["exist"] * 30 + ["single"] * 12 + ["count"] * 18
    rows = {key: draw.integers(0, 2, 60) for key in ("whole", "tome@0.9", "random-merge@0.9/seed0",
                                                      "random-merge@0.9/seed1")}
    record = record_of(tmp_path, rows, kinds)
    right = rows["tome@0.9"]
    found = vqa_tasks.accuracy(record, "tome@0.9")
    assert found["micro"] == pytest.approx(right[:42].mean()) and found["all"] == pytest.approx(right.mean())
    assert found["macro"] == pytest.approx((right[:30].mean() + right[30:42].mean()) / 2)
    assert vqa_tasks.by_type(record, "tome@0.9") == pytest.approx(
        {"exist": right[:30].mean(), "single": right[30:42].mean(), "count": right[42:].mean()})
    both = (rows["random-merge@0.9/seed0"] + rows["random-merge@0.9/seed1"]) / 2
    assert vqa_tasks.accuracy(record, "random-merge@0.9")["all"] == pytest.approx(both.mean())
    between = vqa_tasks.difference(record, "tome@0.9", "whole")
    assert between.mean == pytest.approx((right - rows["whole"])[:42].mean())
    assert between.items == 42 and between.clusters == (14,)
    assert vqa_tasks.difference(record, "tome@0.9", "whole", ["count"]).items == 18
    test = vqa_tasks.only_one_right(record, "tome@0.9", "whole")
    assert test.only_first == ((right > rows["whole"])[:42]).sum()
    nothing = vqa_tasks.accuracy(record_of(tmp_path, rows, kinds, ()), "whole")
    assert np.isnan(nothing["micro"]) and nothing["all"] == pytest.approx(rows["whole"].mean())


def test_later_questions_are_asked_about_their_own_scenes():
    """A task that begins later gives the answers of one that begins at 0, and has their numbers."""
    whole, later = vqa_tasks.Vqa("all", "dev", 9), vqa_tasks.Vqa("later", "dev", 6, start=3)
    assert later.items == {name: values[3:] for name, values in whole.items.items()}
    assert torch.equal(later.pixels, whole.pixels[1:]) and later.scenes == 2 and later.seconds_per_item() > 0
    answers = [results.unpack(task.score(task.model, Cell("whole"))["correct"]) for task in (whole, later)]
    assert answers[1].tolist() == answers[0][3:].tolist()
    for name in ("replication", "strengths"):
        assert vqa_tasks.TASKS[name]("dev", 3).items["id"] == [vqa_tasks.START + i for i in range(3)]
    assert set(vqa_tasks.TASKS) == set(vqa_tasks.PROTOCOLS) == set(vqa_tasks.GRIDS)
    assert vqa_tasks.START % questions.PER_SCENE == 0 and vqa_tasks.START // questions.PER_SCENE > (
        vqa_tasks.MANY - 1) // questions.PER_SCENE
    assert vqa_tasks.START + vqa_tasks.LATER <= questions.TEST_QUESTIONS


# ------------------------------------------------------------------------------------------------------------ command
def run(folder, *more):
    return command.main(["vqa", "--tasks", "grid", "--count", "8", "--output", str(folder), *more])


def test_the_command_records_and_resumes(tmp_path, capsys, monkeypatch):
    """What a record has is what asking gives; the second call scores nothing; --estimate neither."""
    monkeypatch.setitem(vqa_tasks.GRIDS, "grid", vqa_tasks.GRIDS["grid"] | {"sides": (112,), "ordered": ("tome",)})
    cells = ["--methods", "tome", "lower-resolution", "--keep", "0.9"]
    assert run(tmp_path, *cells, "--estimate") == 0
    assert "estimate:" in capsys.readouterr().out and not list(tmp_path.iterdir())
    assert run(tmp_path, *cells) == 0
    printed = capsys.readouterr().out
    record = results.Record.load(tmp_path / "vqa-2-grid-dev.json")
    orders = {f"tome@0.9{order}" for order in ("", "/released", "/raster-compact")}
    assert set(record.cells) == {"whole", "lower-resolution@112px"} | orders
    assert record.header["weights"] == files.digest(llava.weights_path())
    assert record.header["stream"] == "validation"
    assert record.header["protocol"] == vqa.COMMAND.protocol["grid"] == "vqa-2"
    assert record.header["headline"] == ["exist", "single"]
    assert set(record.header["prior"]) == set(record.items["type"])
    asked = list(questions.QuestionStream("validation", 8))
    said = vqa_tasks.said(record, "tome@0.9")
    assert record.outcome("tome@0.9", "correct").tolist() == [a == q.answer for a, q in zip(said, asked, strict=True)]
    model = llava.llava()
    with pc.patched(model, "tome", 0.9, restore=False):
        pixels = llava.draw([("validation", 2)], torch.device("cpu"))
        assert llava.ask(model, pixels, [q.text for q in asked[6:]], [0] * 2) == said[6:]
    assert all(word in printed for word in ("tome@0.9/raster-compact", "blind prior", "micro"))
    monkeypatch.setattr(llava, "ask", lambda *a, **k: pytest.fail("asked again"))
    assert run(tmp_path, *cells) == 0
    with pytest.raises(KeyError, match="no cell 'pitome'"):
        vqa_tasks.said(record, "pitome")


def test_what_the_command_refuses(tmp_path, capsys, monkeypatch):
    assert run(tmp_path, "--split", "test") == 2 and "--count is for dev" in capsys.readouterr().err
    monkeypatch.setattr(llava, "weights_path", lambda: tmp_path / "none.safetensors")
    assert run(tmp_path) == 2
    assert "make vqa-weights" in capsys.readouterr().err


def test_training_is_asked_for(monkeypatch):
    """The command's arguments reach the training."""
    calls = []
    monkeypatch.setattr(vqa_training, "run", lambda recipe, **more: calls.append((recipe, more)))
    assert command.main(["vqa", "--train", "--minutes", "3", "--steps", "7", "--early"]) == 0
    ((recipe, more),) = calls
    assert recipe == vqa_training.LlavaRecipe(steps=7) and more["minutes"] == 3 and more["early"] and not more["again"]
