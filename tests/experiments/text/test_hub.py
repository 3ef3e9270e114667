"""The paper tier of texts: BERT and DistilBERT in their real formats, data in theirs, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers

import pitome_core as pc
from pitome_core.experiments.__main__ import main
from pitome_core.experiments.records import results
from pitome_core.experiments.runs.shards import Refused
from pitome_core.experiments.text import hub as text_hub
from pitome_core.experiments.text.texts import load_texts

WORDS = "the a film is not good bad very long short and dull witty but , . it".split()
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
CPU = torch.device("cpu")
TEXTS = ["the film is very good .", "a long and dull film , not good", "witty", "it is bad but short . " * 6]
LABELS = [1, 0, 1, 0]


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


def table(folder, name="dev.tsv"):
    """GLUE's SST-2: a header, a sentence with unbalanced quotes, a label."""
    folder.mkdir(exist_ok=True)
    lines = ["sentence\tlabel"]
    for text, label in zip(TEXTS, LABELS, strict=True):
        lines.append(f'{"`` " if len(lines) > 1 else ""}{text.strip()} "\t{label}')
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder / name


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


# --- data


def test_glue_sst2(tmp_path):
    data = load_texts(str(table(tmp_path / "SST-2")))
    assert list(data.labels) == LABELS and len(set(data.names)) == 4 and data.name == "SST-2-dev"
    assert data.texts[0] == 'the film is very good . "' and data.texts[1].startswith("`` a long")
    two = load_texts(str(tmp_path / "SST-2" / "dev.tsv"), 2)
    assert two.texts == data.texts[:2] and two.name == "SST-2-dev-first2" and two.digest != data.digest


def test_csv_and_jsonl(tmp_path):
    (tmp_path / "a.csv").write_text('text,label\n"good, very good",1\nbad,0\n')
    items = [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    for name, texts, labels in (("a.csv", ["good, very good", "bad"], [1, 0]), ("a.jsonl", TEXTS, LABELS)):
        data = load_texts(str(tmp_path / name))
        assert (list(data.texts), list(data.labels)) == (texts, labels)


def test_imdb(tmp_path):
    reviews = {"pos/0_9": "good<br /><br />film", "neg/1_2": "bad", "pos/2_8": "witty", "neg/3_1": "dull"}
    for name, text in reviews.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.txt").write_text(text)
    data = load_texts(str(tmp_path))
    assert dict(zip(data.names, data.labels, strict=True)) == {"pos/0_9": 1, "neg/1_2": 0, "pos/2_8": 1, "neg/3_1": 0}
    assert data.texts[data.names.index("pos/0_9")] == "good  film"
    assert data == load_texts(str(tmp_path))


def test_rotten_tomatoes(tmp_path):
    (tmp_path / "rt-polarity.pos").write_bytes("good film \nclich\xe9 but witty \n".encode("latin-1"))
    (tmp_path / "rt-polarity.neg").write_bytes(b"bad \n")
    data = load_texts(str(tmp_path))
    assert dict(zip(data.texts, data.labels, strict=True)) == {"good film": 1, "clich\xe9 but witty": 1, "bad": 0}


@pytest.mark.parametrize("name, content, words", [
    ("a.tsv", "index\tsentence\n0\tgood\n", "has columns index, sentence; it needs label"),
    ("a.tsv", "sentence\tlabel\ngood\t-1\n", "1 of 1 labels are not 0 or 1, the first is '-1'; .*use dev.tsv"),
    ("a.csv", "text,label\n", "has no texts"),
    ("a.parquet", "", "is no .tsv, .csv or .jsonl"),
])
def test_data_that_cannot_be_read_are_refused(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(Refused, match=words):
        load_texts(str(tmp_path / name))


def test_no_data(tmp_path):
    for where, words in ((None, "no data: pass --data"), (str(tmp_path / "no"), "no .*no: pass a file"),
                         (str(tmp_path), "has no neg and no pos")):
        with pytest.raises(Refused, match=words):
            load_texts(where)


# --- the command


@pytest.fixture
def words(tmp_path, monkeypatch):
    """words(*extra) -> the command line; a later argument wins."""
    monkeypatch.setenv("PITOME_PROFILE", "paper")
    (tmp_path / "tiny").mkdir()
    data = table(tmp_path / "SST-2")

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
