"""The paper tier of texts: BERT and DistilBERT in their real formats, from files to a record, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from official_files import TEXTS, sst2

import pitome_core as pc
from pitome_core.experiments.__main__ import main
from pitome_core.experiments.records import results
from pitome_core.experiments.runs.shards import Refused
from pitome_core.experiments.text import hub as text_hub
from pitome_core.experiments.text.texts import load_texts

WORDS = "the a film is not good bad very long short and dull witty but , . it".split()
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def on_the_processor(monkeypatch):
    monkeypatch.setenv("PITOME_DEVICE", "cpu")


def saved(folder, kind: str, **overrides):
    """A tiny random classifier as transformers saves one, with its tokenizer."""
    torch.manual_seed(0)
    named = {"id2label": {0: "NEGATIVE", 1: "POSITIVE"}, "label2id": {"NEGATIVE": 0, "POSITIVE": 1}, "num_labels": 2}
    if kind == "bert":
        config = transformers.BertConfig(
            vocab_size=len(VOCABULARY), hidden_size=24, num_hidden_layers=4, num_attention_heads=3,
            intermediate_size=40, max_position_embeddings=48, initializer_range=0.4, **(named | overrides),
        )
        model = transformers.BertForSequenceClassification(config)
    elif kind == "distilbert":
        config = transformers.DistilBertConfig(
            vocab_size=len(VOCABULARY), dim=24, n_layers=4, n_heads=3, hidden_dim=40, max_position_embeddings=48,
            initializer_range=0.4, **(named | overrides),
        )
        model = transformers.DistilBertForSequenceClassification(config)
    else:
        config = transformers.RobertaConfig(
            vocab_size=len(VOCABULARY), hidden_size=24, num_hidden_layers=2, num_attention_heads=3,
            intermediate_size=40, **(named | overrides),
        )
        model = transformers.RobertaForSequenceClassification(config)
    model.eval().save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return model


# --- models


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_a_classifier_is_what_transformers_loads(tmp_path, kind):
    original = saved(tmp_path, kind)
    classifier = text_hub.load_classifier(str(tmp_path), CPU)
    model, tokenizer = classifier.model, classifier.tokenizer
    assert type(model) is transformers.BertForSequenceClassification and not classifier.flipped and not model.training
    batch = tokenizer(TEXTS, padding=True, truncation=True, max_length=40, return_tensors="pt")
    with torch.no_grad():
        expected = original(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        found = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        with pc.patched(model, "pitome", [0.8] * 3 + [1.0]) as merged:
            other = merged(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert (found - expected).abs().max() < 1e-5 and expected.std() > 0.05
    assert (other - expected).abs().max() > 1e-4


def test_classes_in_the_other_order_are_turned(tmp_path):
    saved(tmp_path, "bert", id2label={0: "positive", 1: "negative"}, label2id={"positive": 0, "negative": 1})
    assert text_hub.load_classifier(str(tmp_path), CPU).flipped


@pytest.mark.parametrize("kind, overrides, words", [
    ("roberta", {}, "is a roberta; merged classifiers here are bert and distilbert"),
    ("bert", {"num_labels": 3, "id2label": dict(enumerate("abc")), "label2id": {}}, "has 3 classes, the data have 2"),
    ("bert", {"id2label": {0: "cat", 1: "dog"}, "label2id": {"cat": 0, "dog": 1}}, "cat and dog, which is positive"),
])
def test_other_classifiers_are_refused(tmp_path, kind, overrides, words):
    saved(tmp_path, kind, **overrides)
    with pytest.raises(Refused, match=words):
        text_hub.load_classifier(str(tmp_path), CPU)


def test_a_model_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(Refused, match="could not be loaded .*a folder in the format of transformers"):
        text_hub.load_classifier(str(tmp_path / "nothing"), CPU)


# --- the command


@pytest.fixture
def words(tmp_path, monkeypatch):
    """words(*extra) -> the command line; a later argument wins."""
    monkeypatch.setenv("PITOME_PROFILE", "paper")
    (tmp_path / "tiny").mkdir()
    data = sst2(tmp_path / "SST-2")

    def make(*extra, output=tmp_path / "out") -> list[str]:
        return ["text", "--profile", "paper", "--model", str(tmp_path / "tiny"), "--data", str(data), "--methods",
                "pitome", "tome", "dct", "--keep", "0.8", "--shard", "3", "--output", str(output), *map(str, extra)]

    return make


def load(output, name="SST-2-dev-tiny") -> results.Record:
    return results.Record.load(output / f"text-{name}.json")


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_accuracy_is_that_of_a_plain_loop(tmp_path, words, capsys, kind):
    original = saved(tmp_path / "tiny", kind)
    assert main(words()) == 0
    record = load(tmp_path / "out")
    assert {"whole", "pitome@0.8", "pitome@0.8/all", "tome@0.8", "dct@0.8"} <= set(record.cells)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "tiny")
    expected, data = [], load_texts(str(tmp_path / "SST-2" / "dev.tsv"))
    for text, label in zip(data.texts, data.labels, strict=True):
        batch = tokenizer(text, truncation=True, max_length=48, return_tensors="pt")
        with torch.no_grad():
            expected.append(int(original(batch["input_ids"], batch["attention_mask"]).logits.argmax()) == label)
    assert (record.outcome("whole", "correct") == np.array(expected)).all()
    assert record.cells["tome@0.8"]["share"] < 1 and str(tmp_path) not in record.path.read_text()
    assert record.cells["pitome@0.8/all"]["layers"] == "all" and record.header["split"] == "dev"
    assert "pitome@0.8" in capsys.readouterr().out


def test_a_run_goes_on_in_the_middle_of_a_cell(tmp_path, words, capsys):
    saved(tmp_path / "tiny", "bert")
    assert main(words("--output", tmp_path / "whole", "--shard", 100, "--batch-size", 1)) == 0
    assert main(words("--estimate")) == 0
    assert "4 texts, 7 cells, 0 recorded already; 14 of 14 shards" in capsys.readouterr().out
    assert main(words()) == 0
    assert "13 of 14 shards" in capsys.readouterr().out
    one, other = load(tmp_path / "out"), load(tmp_path / "whole")
    assert [cell["outcomes"] for cell in one.cells.values()] == [cell["outcomes"] for cell in other.cells.values()]


def test_trials_and_bfloat16_have_records_of_their_own(tmp_path, words):
    saved(tmp_path / "tiny", "bert")
    assert main(words("--first", 2, "--dtype", "bfloat16", "--methods", "dct", "tome")) == 0
    assert len(load(tmp_path / "out", "SST-2-dev-first2-tiny-bfloat16")) == 2


@pytest.mark.parametrize("extra, message", [
    (["--data", "none.tsv"], "no none.tsv: pass a file"),
    (["--keep", "1.5"], "keep 1.5 must lie between 0.5 and 1"),
    (["--max-tokens", "0"], "--max-tokens 0 is below 1"),
    (["--first", "3", "--split", "test"], "--first is for trials"),
])
def test_a_refusal_is_an_exit_status(tmp_path, words, extra, message, capsys):
    saved(tmp_path / "tiny", "bert")
    assert main(words(*extra)) == 2
    assert f"error: {message}" in capsys.readouterr().err
