"""The paper tier of the text experiment: BERT and DistilBERT classifiers on SST-2, IMDb, Rotten Tomatoes, or your own.

A DistilBERT has the layers of a BERT under other names, no segments, and a ReLU in its pooler: its weights are put into
a ``BertForSequenceClassification`` with that pooler, which computes the same and can be merged.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from pitome_core.experiments import settings
from pitome_core.experiments.data import splits
from pitome_core.experiments.models import bert
from pitome_core.experiments.records import results
from pitome_core.experiments.runs import sweep
from pitome_core.experiments.text import grid as text_grid
from pitome_core.experiments.text import tasks as text_tasks
from pitome_core.experiments.text.grid import TextCell

if TYPE_CHECKING:
    from transformers import BertForSequenceClassification

PROTOCOL = "text-paper-1"
NEGATIVE, POSITIVE = ("negative", "neg", "label_0", "0"), ("positive", "pos", "label_1", "1")
COLUMNS = ("text", "sentence", "review")  # of texts, in tables; labels stand in `label`


class Refused(ValueError):
    """What was asked for cannot be run; the message says why, and what to do."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the paper tier."""
    group = parser.add_argument_group("paper tier", "One data set, scored whole; with --split test the scoring is "
                                      "logged and the record lies in results/paper, without it is a trial.")
    group.add_argument("--model", default="textattack/bert-base-uncased-SST-2", metavar="MODEL",
                       help="classifier of two classes: a folder in the format of transformers, or a name on the hub; "
                       "BERT or DistilBERT (default: %(default)s)")
    group.add_argument("--data", metavar="WHERE",
                       help="a .tsv, .csv or .jsonl with text and label (0 or 1; GLUE's SST-2 as it is), a folder with "
                       "pos/ and neg/ (IMDb's test), one with rt-polarity.pos and .neg, or hub:NAME[:SPLIT]")
    group.add_argument("--max-tokens", type=int, default=512, metavar="N", help="longer texts are cut (default: 512)")


def run(args: argparse.Namespace) -> int:
    """Score what was asked for; 2, with the reason on stderr, if it cannot be run."""
    try:
        columns = [column[: args.count] for column in load_texts(args.data)]
        task = HubTexts(args.model, *columns, args.data, args.max_tokens)
    except Refused as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    cells = text_grid.cells(args.methods, args.keep or text_grid.KEEPS, every_layer=True)
    path = sweep.output_folder(args) / f"text-{task.name}.json"
    record = sweep.run("text", task, cells, path, split=args.split, protocol=PROTOCOL, again=args.again,
                       estimate_only=args.estimate)
    if not args.estimate:
        from pitome_core.experiments.text.command import summary

        print(summary(record, cells))
    return 0


class HubTexts(text_tasks.Texts):
    """A classifier of transformers, as it is, on a data set as it is. Outcome per item: ``correct``."""

    clusters = ("id",)

    def __init__(
        self, model: str, texts: Sequence[str], labels: Sequence[int], names: Sequence[str], where: str, max_tokens: int
    ):
        self.classifier, self.tokenizer, self.flipped = load_classifier(model)
        self.model = self.classifier
        self.depth = len(self.classifier.bert.encoder.layer)
        longest = self.classifier.config.max_position_embeddings
        self.rows = bert.encode(texts, min(max_tokens, longest), self.tokenizer)
        self.labels = np.array(labels)
        self.name = f"{_short(where)}-{_short(model)}"
        self.items = {"id": list(names), "label": list(labels), "tokens": [len(row) for row in self.rows]}
        self._about = {"model": _short(model), "data": _short(where), "dtype": "float32", "max_tokens": max_tokens}

    @property
    def about(self) -> dict[str, Any]:
        return self._about

    def has_frozen(self, cell: TextCell) -> bool:
        return False

    def work(self, cell: TextCell) -> int:
        return len(self.rows)

    def prepare(self) -> None:
        """Nothing: the classifier is there."""

    def logits(self, running: nn.Module, rows: Sequence[Sequence[int]], *, equal: bool = False) -> Tensor:
        """``(N, 2)``: negative, positive."""
        def read(ids: Tensor, mask: Tensor) -> Tensor:
            return running(input_ids=ids, attention_mask=mask).logits

        size = 8 if self.device.type == "cpu" else 128
        found = bert.in_batches(rows, self.device, read, tokenizer=self.tokenizer, equal=equal, size=size)
        return found.flip(1) if self.flipped else found

    def run_once(self, rows: Sequence[Sequence[int]]) -> None:
        self.logits(self.model, rows)

    def score(self, running: nn.Module, cell: TextCell) -> dict[str, Any]:
        right = self.logits(running, self.rows, equal=cell.equal_lengths).argmax(1).numpy() == self.labels
        return {"correct": results.pack(right)}


# --- models


def load_classifier(name: str) -> tuple[BertForSequenceClassification, Any, bool]:
    """Classifier in eval mode on `settings.device`, its tokenizer, and whether its class 0 is the positive one.

    Raises `Refused` for models that are no BERT or DistilBERT with two classes, or that cannot be loaded.
    """
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(name)
        if config.model_type not in ("bert", "distilbert"):
            raise Refused(f"{name} is a {config.model_type}; merged classifiers here are bert and distilbert")
        if config.num_labels != 2:
            raise Refused(f"{name} has {config.num_labels} classes, the data have 2: choose a classifier of sentiment")
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            name, dtype=torch.float32, attn_implementation="sdpa"
        )
    except Refused:
        raise
    except Exception as error:  # hub, network, file system: many libraries' errors
        reason = next(iter(str(error).splitlines()), "")
        raise Refused(
            f"{name} could not be loaded ({type(error).__name__}: {reason}): pass a folder in the format of "
            "transformers, or a name on the hub where there is a network"
        ) from error
    names = [str(config.id2label[i]).lower() for i in range(2)]
    if names[0] in POSITIVE and names[1] in NEGATIVE:
        flipped = True
    elif names[0] in NEGATIVE and names[1] in POSITIVE:
        flipped = False
    else:
        raise Refused(f"{name} calls its classes {' and '.join(names)}, which is positive? Set id2label in its config")
    if config.model_type == "distilbert":
        model = as_bert(model)
    return model.eval().to(settings.device()), tokenizer, flipped


def as_bert(distilled: nn.Module) -> BertForSequenceClassification:
    """A ``DistilBertForSequenceClassification`` as a BERT that computes the same logits."""
    import transformers

    old = distilled.config
    config = transformers.BertConfig(
        vocab_size=old.vocab_size, hidden_size=old.dim, num_hidden_layers=old.n_layers, num_attention_heads=old.n_heads,
        intermediate_size=old.hidden_dim, hidden_act=old.activation,
        max_position_embeddings=old.max_position_embeddings,
        hidden_dropout_prob=old.dropout, attention_probs_dropout_prob=old.attention_dropout,
        classifier_dropout=old.seq_classif_dropout, pad_token_id=old.pad_token_id, num_labels=old.num_labels,
        id2label=old.id2label, label2id=old.label2id, layer_norm_eps=1e-12, attn_implementation="sdpa",
    )
    with torch.random.fork_rng(devices=[]):
        model = transformers.BertForSequenceClassification(config)
    names = (
        (r"^distilbert\.transformer\.layer\.", "bert.encoder.layer."),
        (r"^distilbert\.embeddings\.", "bert.embeddings."),
        (r"\.attention\.([qkv])_lin\.", lambda m: f".attention.self.{dict(q='query', k='key', v='value')[m[1]]}."),
        (r"\.attention\.out_lin\.", ".attention.output.dense."), (r"\.sa_layer_norm\.", ".attention.output.LayerNorm."),
        (r"\.ffn\.lin1\.", ".intermediate.dense."), (r"\.ffn\.lin2\.", ".output.dense."),
        (r"\.output_layer_norm\.", ".output.LayerNorm."), (r"^pre_classifier\.", "bert.pooler.dense."),
    )
    weights = {}
    for name, value in distilled.state_dict().items():
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        weights[name] = value
    weights["bert.embeddings.token_type_embeddings.weight"] = torch.zeros(config.type_vocab_size, config.hidden_size)
    model.load_state_dict(weights)
    model.bert.pooler.activation = nn.ReLU()
    return model


# --- data


def load_texts(where: str | None) -> tuple[list[str], list[int], list[str]]:
    """Texts, labels (0 negative, 1 positive) and names of the items. `Refused` for what cannot be read.

    Items keep the order of the data, except in folders, where files are dealt by a hash of their name, so that
    ``--count`` takes both labels.
    """
    if where is None:
        raise Refused("no data: pass --data, a .tsv, .csv, .jsonl, a folder with pos/ and neg/, or hub:NAME[:SPLIT]")
    if where.startswith("hub:"):
        rows = _from_hub(where)
    else:
        path = Path(where)
        if not path.exists():
            raise Refused(f"no {path}: pass a file, a folder, or hub:NAME[:SPLIT]")
        rows = _from_folder(path) if path.is_dir() else _from_file(path)
    if not rows:
        raise Refused(f"{where} has no texts")
    texts, labels, names = (list(column) for column in zip(*rows, strict=True))
    if odd := [label for label in labels if str(label) not in ("0", "1")]:
        remedy = "the test file of GLUE has none: use dev.tsv" if str(odd[0]) == "-1" else "labels are 0 and 1"
        raise Refused(f"{where}: {len(odd)} of {len(labels)} labels are not 0 or 1, the first is {odd[0]!r}; {remedy}")
    return texts, [int(label) for label in labels], names


Row = tuple[str, Any, str]


def _from_file(path: Path) -> list[Row]:
    if path.suffix == ".jsonl":
        table = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    elif path.suffix in (".csv", ".tsv"):
        with path.open(encoding="utf-8", newline="") as stream:
            # GLUE's tables have quotes that quote nothing.
            how = dict(delimiter="\t", quoting=csv.QUOTE_NONE) if path.suffix == ".tsv" else {}
            table = list(csv.DictReader(stream, **how))
    else:
        raise Refused(f"{path.name} is no .tsv, .csv or .jsonl")
    if not table:
        return []
    column = _column(table[0], path.name)
    return [(row[column], row["label"], f"{i:05d}") for i, row in enumerate(table)]


def _column(names: Any, where: str) -> str:
    found = [name for name in COLUMNS if name in names]
    if not found or "label" not in names:
        raise Refused(f"{where} has columns {', '.join(names)}; it needs label and one of {', '.join(COLUMNS)}")
    return found[0]


def _from_folder(path: Path) -> list[Row]:
    if (path / "rt-polarity.pos").is_file():  # Pang and Lee's files; Latin-1, one excerpt a line
        rows = []
        for label, name in enumerate(("neg", "pos")):
            lines = (path / f"rt-polarity.{name}").read_bytes().decode("latin-1").split("\n")
            rows += [(line.strip(), label, f"{name}/{i:05d}") for i, line in enumerate(lines) if line.strip()]
    else:
        folders = [path / "neg", path / "pos"]
        if missing := [folder.name for folder in folders if not folder.is_dir()]:
            raise Refused(f"{path.name} has no {' and no '.join(missing)}: pass IMDb's test folder, with pos/ and neg/")
        rows = [
            (file.read_text(encoding="utf-8").replace("<br />", " "), label, f"{folder.name}/{file.stem}")
            for label, folder in enumerate(folders) for file in folder.glob("*.txt")
        ]
    return sorted(rows, key=lambda row: splits.unit(row[2]))


def _from_hub(where: str) -> list[Row]:
    try:
        import datasets
    except ImportError:
        raise Refused("data sets of the hub need the library of that name: pip install datasets") from None
    _, _, name = where.partition(":")
    name, _, split = name.partition(":")
    name, _, configuration = name.partition("@")
    try:
        table = datasets.load_dataset(name, configuration or None, split=split or "test")
    except Exception as error:
        raise Refused(
            f"{where} could not be loaded ({type(error).__name__}: {error}): check name, split and network, or pass "
            "files. SST-2 is hub:nyu-mll/glue@sst2:validation"
        ) from error
    column = _column(table.column_names, where)
    pairs = zip(table[column], table["label"], strict=True)
    return [(text, label, f"{i:05d}") for i, (text, label) in enumerate(pairs)]


def _short(where: str) -> str:
    """A name for a file: what stands at the end of a path, with nothing but letters, digits and dashes."""
    parts = [part for part in re.split(r"[/\\]", where.removeprefix("hub:")) if part]
    path = Path(where)
    if path.suffix in (".tsv", ".csv", ".jsonl") and len(parts) > 1:
        parts = [f"{parts[-2]}-{path.stem}"]
    return re.sub(r"[^A-Za-z0-9.]+", "-", parts[-1]).strip("-")
