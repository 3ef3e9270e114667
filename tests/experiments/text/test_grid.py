"""Texts: cells, padding, the cosine transform, counts, tasks, words that merged."""

from __future__ import annotations

import argparse
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

import pitome_core as pc
from pitome_core.experiments import __main__ as command
from pitome_core.experiments.models import bert
from pitome_core.experiments.records import cells as records_cells
from pitome_core.experiments.records import results
from pitome_core.experiments.records.cells import Cell
from pitome_core.experiments.runs import grid
from pitome_core.experiments.text import classifiers
from pitome_core.experiments.text import command as text
from pitome_core.experiments.text import grid as text_grid
from pitome_core.experiments.text import reading as text_reading
from pitome_core.experiments.text import tasks as text_tasks

pytestmark = pytest.mark.usefixtures("on_the_processor")
SENTENCES = [
    "A gorgeous, witty, seductive movie.",
    "It is long, loud and dull, and nobody asked for the second half of it.",
    "good",
    "",
    "Visually imaginative, thematically instructive and thoroughly delightful, it takes us on a roller coaster ride.",
    "Not bad at all, but not as good as the book that it was made from, which was very good.",
]
EVERY = [Cell(name, 0.6, seed=0 if arm.seeds > 1 else None) for name, arm in text_grid.KNOWN.items()]


@pytest.fixture(scope="module")
def encoder():
    return bert.sentence_encoder("cpu")


@pytest.fixture(scope="module")
def rows():
    return bert.encode(SENTENCES)


@pytest.fixture
def random_classifiers(monkeypatch, tmp_path):
    """Classifiers with random updates where trained ones are looked for."""
    def path(seed, cell=None):
        return tmp_path / f"{seed}-{'whole' if cell is None else cell.key.replace('/', '-')}.safetensors"

    monkeypatch.setattr(classifiers, "weights_path", path)
    encoder = bert.sentence_encoder("cpu")
    names = classifiers.linears(encoder)
    cells = [None, Cell(text_grid.RELEASED, 0.8, retrained=True)]
    for cell in cells:
        for seed in (None, *classifiers.SEEDS):
            draw = torch.Generator().manual_seed(seed or 0)
            stored = {}
            for name, linear in {} if seed is None else names.items():
                stored[f"{name}.up"] = (0.01 * torch.randn(linear.out_features, 8, generator=draw)).half()
                stored[f"{name}.down"] = (0.05 * torch.randn(8, linear.in_features, generator=draw)).half()
            classifiers.save(path(seed, cell), torch.randn(2, 384, generator=draw), torch.zeros(2), stored)
    return path


# --- the grid


def test_the_protocols_arms_and_ratios_are_there():
    keys = [cell.key for cell in text_grid.cells(**text_tasks.GRIDS["movies"])]
    assert keys[0] == "whole" and len(set(keys)) == len(keys)
    for name in ("pitome@{}", "pitome-released-bert@{}", "energy-sorted@{}", "tome@{}", "tome@{}/off"):
        assert {name.format(keep) for keep in (0.8, 0.6)} <= set(keys)
    for name in ("random-merge", "random-prune"):
        assert {key for key in keys if key.startswith(name)} == {f"{name}@0.8/seed{i}" for i in range(5)}
    retrained = {key for key in keys if key.endswith("/retrained")}
    assert retrained == {"pitome-released-bert@0.8/retrained", "tome@0.8/off/retrained"}
    assert "tome@0.8/all" in keys and "pitome-released-bert@0.8/all" not in keys
    assert {"pitome@0.8/off", "energy-sorted@0.8/off"} <= set(keys)
    assert {*text_tasks.GRIDS} == {*text_tasks.TASKS}


@pytest.mark.parametrize("name", text_tasks.GRIDS)
def test_every_cell_has_its_counterpart_and_every_energy_its_control(name):
    """At keep .8 and .6; the counterpart at every ratio, in all layers, without attention and retrained."""
    cells = text_grid.cells(**text_tasks.GRIDS[name])
    groups = {cell.without_seed.key for cell in cells}
    merging = [cell for cell in cells if cell.keep is not None]
    assert len(merging) > 10 and {cell.beside("tome").key for cell in merging} <= groups
    for cell in merging:
        if cell.shuffled is not None and cell.is_plain and cell.keep in (0.8, 0.6):
            assert cell.shuffled.key in groups, cell.key
    seeds = {cell.seed for cell in cells if cell.arm == "pitome-shuffled" and cell.keep == 0.8}
    assert seeds == set(range(5 if name == "movies" else 2))


def test_part_of_the_grid_and_what_is_not_in_it():
    assert [cell.key for cell in text_grid.cells(["tome", "whole"], [0.7])] == ["whole", "tome@0.7"]
    with pytest.raises(ValueError, match="no method 'evit' in this experiment; there are pitome, "):
        text_grid.cells(["evit"])
    for keep in (0.4, 1.0):
        with pytest.raises(ValueError, match=f"keep {keep} must lie between 0.5 and 1"):
            text_grid.cells(["tome"], [keep])


# --- padding takes no part


@pytest.mark.parametrize("cell", [*EVERY, Cell("pitome", 0.8, every_layer=True), Cell(grid.WHOLE)],
                         ids=lambda cell: cell.key)
def test_the_rest_of_a_batch_changes_nothing(encoder, rows, cell):
    with text_grid.applied(cell, encoder) as running:
        alone = torch.cat([classifiers.features(running, [row]) for row in rows])
        together = classifiers.features(running, rows, equal=text_grid.needs_equal_lengths(cell))
        turned = classifiers.features(running, rows[::-1], equal=text_grid.needs_equal_lengths(cell)).flip(0)
    assert alone.isfinite().all()
    assert (together - alone).abs().max() < 1e-5 and (turned - alone).abs().max() < 1e-5


# --- the cosine transform


def test_without_removal_the_cosine_model_is_the_model(encoder, rows):
    ids, mask = bert.pad([rows[0]], torch.device("cpu"))
    with torch.no_grad():
        found = text_grid.cosine_forward(encoder, [1.0] * 6, input_ids=ids, attention_mask=mask).last_hidden_state
        expected = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    assert (found - expected).abs().max() < 1e-5


def test_the_cosine_model_keeps_shape_and_refuses_padding(encoder, rows):
    with text_grid.applied(Cell("dct", 0.8), encoder) as running, torch.no_grad():
        ids, mask = bert.pad([rows[1]], torch.device("cpu"))
        assert running(input_ids=ids, attention_mask=mask).last_hidden_state.shape == (1, len(rows[1]), 384)
        with pytest.raises(ValueError, match="one length"):
            running(*bert.pad(rows, torch.device("cpu")))
    assert "forward" not in vars(encoder)


# --- counts


@pytest.mark.parametrize("length", [3, 17, 64])
def test_tokens_are_those_that_run_and_equal_for_all(encoder, length):
    ids = torch.arange(1000, 1000 + length)[None]
    for cell in EVERY:
        wanted = text_grid.tokens(cell, 6, length)
        if not text_grid.needs_equal_lengths(cell):
            with text_grid.applied(cell, encoder) as running, pc.record(running) as trace, torch.no_grad():
                running(input_ids=ids)
            assert [length, *(layer.plan.num_tokens for layer in trace.layers)] == list(wanted), cell.key
        left = length - 2
        for layer in range(3):
            left -= int(left - left * cell.keep + 1e-9)
            assert wanted[layer + 1] == left + 2
        assert wanted[3:] == (left + 2,) * 4


def test_counts_by_hand(encoder):
    whole = text_grid.macs(Cell(grid.WHOLE), encoder, [32])[0]
    assert whole == 6 * (12 * 32 * 384**2 + 2 * 32**2 * 384)
    merged = text_grid.macs(Cell("tome", 0.8), encoder, [32])[0]
    released = text_grid.macs(Cell("dct", 0.8), encoder, [32])[0]
    assert merged < whole and released < whole and math.isclose(merged, released, rel_tol=0.03)


# --- tasks


def test_a_task_records_every_column(random_classifiers):
    task = text_tasks.single("movies", "dev", 5)
    task.prepare()
    for cell in (Cell("dct", 0.8), Cell(text_grid.RELEASED, 0.8, retrained=True)):
        with text_grid.applied(cell, task.model) as running:
            found = task.score(running, cell)
        right = np.array([results.unpack(found[f"seed{s}"]) for s in classifiers.SEEDS])
        assert right.shape == (3, 5) and np.allclose(right.mean(0), found["correct"])
        assert ("frozen" in found) == (not cell.retrained)
    slow = [classifiers.load(1).logits([row], Cell("tome", 0.8)).argmax() for row in task.rows]
    with text_grid.applied(Cell("tome", 0.8), task.model) as running:
        found = results.unpack(task.score(running, Cell("tome", 0.8))["seed1"])
    assert ((np.array(slow) == task.labels) == found).all()
    cost = task.cost(Cell("tome", 0.8))
    lengths = [len(row) for row in task.rows]
    slow = text_grid.macs(Cell("tome", 0.8), task.model, lengths)
    whole = text_grid.macs(Cell(grid.WHOLE), task.model, lengths)
    assert cost["share"] == pytest.approx(sum(slow) / sum(whole), abs=1e-6)
    assert cost["tokens"][0] == pytest.approx(np.mean([len(row) for row in task.rows]), abs=1e-3)
    assert set(task.about["weights"]) >= {"None-whole"} and "text" not in task.items
    shifted = text_tasks.single("news", "dev", 2)
    assert task.has_frozen(Cell("tome", 0.8)) and not shifted.has_frozen(Cell("tome", 0.8))


def test_the_command_scores_dev_and_goes_on(random_classifiers, tmp_path, capsys):
    call = ["text", "--tasks", "news", "--methods", "pitome", "--keep", "0.8", "--count", "4"]
    call += ["--output", str(tmp_path)]
    assert command.main(call) == 0
    record = results.Record.load(tmp_path / "text-2-news-dev.json")
    assert list(record.cells) == ["whole", "pitome@0.8"] and record.header["protocol"] == text_grid.PROTOCOL
    assert command.main(call) == 0 and "2 recorded already" in capsys.readouterr().out
    assert command.main([*call, "--split", "test"]) == 2 and "--count is for dev" in capsys.readouterr().err


def test_cells_without_weights_are_left_out(random_classifiers, capsys):
    cells = text.trained(text_grid.cells([text_grid.RELEASED, "tome"], [0.8], retrained=True))
    assert [cell.key for cell in cells] == ["whole", "pitome-released-bert@0.8",
                                              "pitome-released-bert@0.8/retrained", "tome@0.8", "tome@0.8/off"]
    said = capsys.readouterr().out
    assert "left out, not trained yet (`make text-weights`): tome@0.8/off/retrained\n" in said


def test_a_part_of_the_grid_is_what_was_asked_for():
    """Ratios that the protocol gives to single arms hold for the protocol's grid alone; nothing else joins."""
    args = argparse.Namespace(methods=["tofu", "pitome-released-bert-shuffled"], keep=[0.9])
    assert [cell.key for cell in text.cells(args, "movies")] == [
        "whole", "tofu@0.9", "pitome-released-bert-shuffled@0.9/seed0", "pitome-released-bert-shuffled@0.9/seed1"]


def test_weights_of_another_form_of_an_arm_are_other_files(monkeypatch):
    """So that nothing is scored with classifiers of an earlier preset, or of the other attention."""
    cells = [cell for cell in text_grid.cells(**text_tasks.GRIDS["movies"]) if cell.retrained]
    names = [classifiers.weights_path(0, cell).name for cell in cells]
    assert len(set(names)) == len(cells) == 2 and all(re.fullmatch(r"[\w.-]+", name) for name in names)
    assert [classifiers.weights_path(0, cell).name for cell in cells] == names
    cell = Cell(text_grid.RELEASED, 0.8, retrained=True)
    before, arm = classifiers.weights_path(0, cell), records_cells.ARMS[text_grid.RELEASED]
    assert before.name.startswith("pitome-released-bert-0.8-") and before.name.endswith("-seed0.safetensors")
    earlier = replace(arm, options={"preset": "released-bert"})
    monkeypatch.setitem(records_cells.ARMS, text_grid.RELEASED, earlier)
    assert classifiers.weights_path(0, cell) != before


def test_words_that_merged(encoder, rows):
    groups, dropped = text_reading.groups(encoder, rows[4], Cell("tome", 0.6))
    assert sum(map(len, groups)) == len(rows[4]) and not dropped and ["[CLS]"] in groups and ["[SEP]"] in groups
    assert max(map(len, groups)) > 1 and " + " in text_reading.in_words((groups, dropped))
    groups, dropped = text_reading.groups(encoder, rows[4], Cell("random-prune", 0.6, seed=0))
    assert dropped and sum(map(len, groups)) + len(dropped) == len(rows[4])
    assert "dropped: ~~" in text_reading.in_words((groups, dropped))


def test_words_their_pieces_and_those_with_a_rating():
    row = bert.encode(["A gorgeous, unwatchable movie"])[0]
    found, owner = text_reading.words(row)
    assert found == ["a", "gorgeous", ",", "unwatchable", "movie"] and len(owner) == len(row) - 2 > len(found)
    assert text_reading.rated(found).tolist() == [False, True, False, False, False]
    means = text_reading.by_word(np.arange(len(owner)), owner)
    slow = [np.mean([i for i, word in enumerate(owner) if word == w]) for w in range(len(found))]
    assert np.allclose(means, slow)


def test_documents_are_whole_and_of_both_labels():
    task = text_tasks.documents("dev", 128, 10)
    assert len(task.rows) == 10 and set(task.items["label"]) == {0, 1}
    assert max(task.items["tokens"]) <= 128 < 2 * min(task.items["tokens"])
    assert len(set(task.items["identity"])) == 10
