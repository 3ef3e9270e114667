"""Fine-tuning of the sentence classifiers: it learns, and every classifier is a stage."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from pitome_core.experiments.data import sentences
from pitome_core.experiments.models import bert
from pitome_core.experiments.records.cells import Cell
from pitome_core.experiments.text import classifiers
from pitome_core.experiments.text import training as text_training

pytestmark = pytest.mark.usefixtures("on_the_processor")


def test_fine_tuning_learns_and_its_file_is_what_was_learned(tmp_path):
    """Sixteen sentences, with merging on: a loss that falls, and a classifier that can be read back."""
    chosen = sentences.sentences("movies", "train")[:200]
    chosen = [s for s in chosen if s.label][:8] + [s for s in chosen if s.label == 0][:8]
    few = text_training.Labelled(bert.encode([s.text for s in chosen]), np.array([s.label for s in chosen]))
    cell = Cell("pitome", 0.8, retrained=True)
    recipe = text_training.ClassifierRecipe(epochs=4, batch=8, rate=3e-3, head_rate=1e-2)
    updates, weight, bias, scores = text_training.fine_tune(few, few, 0, cell, recipe)
    assert len(scores) == 4 and max(scores) > 0.9
    path = tmp_path / "one.safetensors"
    classifiers.save(path, weight, bias, updates)
    loaded = classifiers.load(0, path=path)
    assert abs(text_training.accuracy(loaded.logits(few.rows, cell), few.labels) - max(scores)) < 0.07


def test_everything_follows_from_the_seed_and_rank_0_has_no_updates():
    few = text_training.Labelled([[101, 2204, 102], [101, 2919, 102]], np.array([1, 0]))
    recipe = text_training.ClassifierRecipe(epochs=2, batch=1)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    (first, *_), (second, *_), (other, *_) = (
        text_training.fine_tune(few, few, seed, recipe=recipe) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, second[name]) for name, value in first.items()) and len(first) == 72
    assert not torch.equal(first["layer.0.output.dense.down"], other["layer.0.output.dense.down"])
    assert first["layer.0.output.dense.up"].abs().max() > 0
    recipe = text_training.ClassifierRecipe(rank=0, rate=1e-5, epochs=1)
    updates, *_ = text_training.fine_tune(few, few, 0, recipe=recipe)
    assert updates == {}


def test_training_batches_hold_every_item_once():
    lengths = [3 + i % 17 for i in range(100)]
    generator = torch.Generator().manual_seed(0)
    parts = list(text_training.batches(lengths, 8, generator))
    assert sorted(i for part in parts for i in part) == list(range(100)) and max(map(len, parts)) == 8
    again = list(text_training.batches(lengths, 8, torch.Generator().manual_seed(0)))
    assert again == parts and list(text_training.batches(lengths, 8, generator)) != parts


def test_every_classifier_is_a_stage(monkeypatch, tmp_path, capsys):
    """What is trained is what was asked for, each once, with a line in the log."""
    monkeypatch.setattr(classifiers, "weights_path", lambda seed, cell=None: tmp_path / f"{seed}-{cell}.safetensors")
    few = text_training.Labelled([[101, 2204, 102], [101, 2919, 102]], np.array([1, 0]))
    monkeypatch.setattr(classifiers, "SEEDS", (0, 1))
    monkeypatch.setattr(text_training.Labelled, "read", classmethod(lambda cls, split, count=None: few))
    trained = []
    tune = text_training.fine_tune
    monkeypatch.setattr(text_training, "fine_tune", lambda *a: trained.append(a[2:4]) or tune(*a))
    log = tmp_path / "log.jsonl"
    options = dict(recipe=text_training.ClassifierRecipe(epochs=1), log=log)
    assert text_training.run(["pitome-released-bert"], [0.8], minutes=0, **options) == 2 and not trained
    assert text_training.run(["pitome-released-bert"], [0.8], **options) == 0
    assert trained == [(seed, Cell("pitome-released-bert", 0.8, retrained=True)) for seed in (0, 1)]
    assert text_training.run(["pitome-released-bert"], [0.8], **options) == 0 and len(trained) == 2
    assert "text-weights: 0 of 2 to do" in capsys.readouterr().out
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(lines) == 2 and all(line["recipe"]["epochs"] == len(line["dev"]) == 1 for line in lines)
    assert text_training.run(["whole"], estimate_only=True, **options) == 3
    assert len(text_training.to_train()) == 3 + 2 * 2
    of_tome = [cell for _, cell in text_training.to_train(["tome"])]
    assert of_tome == 2 * [Cell("tome", 0.8, proportional=False, retrained=True)]
