"""Sets of labelled texts in their real formats, and what cannot be read."""

from __future__ import annotations

import json

import pytest
from official_files import LABELS, TEXTS, sst2

from pitome_core.experiments.runs.shards import Refused
from pitome_core.experiments.text.texts import load_texts


def test_glue_sst2(tmp_path):
    data = load_texts(str(sst2(tmp_path / "SST-2")))
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
