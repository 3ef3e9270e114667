"""The paper tier of the text experiment: BERT and DistilBERT classifiers on SST-2, IMDb, Rotten Tomatoes, or your own.

A DistilBERT has the layers of a BERT under other names, no segments, and a ReLU in its pooler: its weights are put into
a ``BertForSequenceClassification`` with that pooler, which computes the same and can be merged.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pitome_core.experiments.models import bert
from pitome_core.experiments.records import results
from pitome_core.experiments.records.cells import Cell
from pitome_core.experiments.runs import sharded, shards
from pitome_core.experiments.runs.sharded_task import ShardedTask, joined
from pitome_core.experiments.runs.shards import Refused, Unit
from pitome_core.experiments.text import grid as text_grid
from pitome_core.experiments.text import summary
from pitome_core.experiments.text.texts import TextSet, load_texts, short_name

if TYPE_CHECKING:
    from transformers import BertForSequenceClassification

PROTOCOL = "text-paper-1"
ALL_LAYERS = tuple(name for name in text_grid.KNOWN if text_grid.RELEASED not in name)  # that preset has three layers
NEGATIVE, POSITIVE = ("negative", "neg", "label_0", "0"), ("positive", "pos", "label_1", "1")


@dataclass(frozen=True)
class TextClassifier:
    """A classifier of two classes in eval mode on its device. ``flipped``: its class 0 is the positive one."""

    name: str
    model: BertForSequenceClassification
    tokenizer: Any
    flipped: bool
    digest: str


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the paper tier."""
    group = parser.add_argument_group("paper tier", f"One data set, {shards.SCORED_WHOLE}.")
    group.add_argument("--model", nargs="+", default=["textattack/bert-base-uncased-SST-2"], metavar="MODEL",
                       help="classifiers of two classes: a folder in the format of transformers, or a name on the hub; "
                       "BERT or DistilBERT (default: textattack/bert-base-uncased-SST-2)")
    group.add_argument("--data", metavar="WHERE",
                       help="a .tsv, .csv or .jsonl with text and label (0 or 1; GLUE's SST-2 as it is), a folder with "
                       "pos/ and neg/ (IMDb's test), one with rt-polarity.pos and .neg, or hub:NAME[:SPLIT]")
    group.add_argument("--max-tokens", type=int, default=512, metavar="N", help="longer texts are cut (default: 512)")
    group.add_argument("--first", type=int, metavar="N", help="the first N texts only, as a trial (not for test)")
    shards.add_arguments(group, "texts", batch_size=32, pictures=False)


def run(args: argparse.Namespace) -> int:
    """Score what was asked for; the exit status, as `sharded.run` gives it."""
    def load_data(args: argparse.Namespace) -> TextSet:
        shards.check_numbers(args, "first", "max_tokens")
        if args.first and args.split == "test":
            raise Refused("--first is for trials: the test set is scored as a whole")
        return load_texts(args.data, args.first)

    def load_task(args: argparse.Namespace, device: torch.device, texts: TextSet, spec: str) -> ShardedTask:
        return TextClassification(args, device, texts, load_classifier(spec, device))

    return sharded.run(args, load_data, load_task)


class TextClassification(ShardedTask):
    """Whether a classifier of transformers, as it is, is right: ``correct``."""

    experiment, protocol, clusters = "text", PROTOCOL, ("id",)

    def __init__(self, args: argparse.Namespace, device: torch.device, texts: TextSet, classifier: TextClassifier):
        super().__init__(args, device)
        self.texts, self.classifier, self.model = texts, classifier, classifier.model
        longest = min(args.max_tokens, self.model.config.max_position_embeddings)
        self.rows = bert.encode(texts.texts, longest, classifier.tokenizer)
        tokens = [len(row) for row in self.rows]
        self.lengths = Counter(tokens)
        self.name, self.what = f"{texts.name}-{classifier.name}", f"{len(self.rows)} texts"
        self.split = args.split
        self.items = {"id": texts.names, "label": texts.labels, "tokens": tokens}
        self.about = {
            "model": classifier.name, "weights": classifier.digest, "data": texts.name, "list": texts.digest,
            "max_tokens": args.max_tokens,
        }
        with shards.refusing():
            self.cells = text_grid.cells(args.methods, args.keep or text_grid.KEEPS, every_layer=ALL_LAYERS)

    def applied(self, piece: Cell) -> AbstractContextManager[nn.Module]:
        return text_grid.applied(piece, self.model)

    def cost(self, cell: Cell) -> Mapping[str, Any]:
        return text_grid.cost(cell, self.model, self.lengths)

    def score(self, running: nn.Module, unit: Unit, batches: Iterator) -> dict[str, Any]:
        logits = self.logits(running, self.rows[unit.start : unit.stop], text_grid.needs_equal_lengths(unit.piece))
        guesses = logits.argmax(1).tolist()
        labels = self.texts.labels[unit.start : unit.stop]
        return {"correct": [int(guess == label) for guess, label in zip(guesses, labels, strict=True)]}

    def logits(self, running: nn.Module, rows: Sequence[Sequence[int]], equal: bool) -> Tensor:
        """``(N, 2)``: negative, positive. ``equal``: a batch holds rows of one length."""
        def read(ids: Tensor, mask: Tensor) -> Tensor:
            with self.autocast():
                return running(input_ids=ids, attention_mask=mask).logits

        tokenizer, size = self.classifier.tokenizer, self.args.batch_size
        logits = bert.in_batches(rows, self.device, read, tokenizer=tokenizer, equal=equal, size=size)
        return logits.flip(1) if self.classifier.flipped else logits

    def assemble(self, cell: Cell, parts: Sequence[Sequence[Mapping]]) -> tuple[dict[str, Any], dict[str, Any]]:
        return {}, {"correct": results.pack(joined(parts[0], "correct"))}

    def table(self, record: results.Record) -> str:
        return summary.table(record, self.cells)


# --- models


def load_classifier(name: str, device: torch.device) -> TextClassifier:
    """A classifier of transformers from a folder or the hub.

    Raises:
        Refused: it is no BERT or DistilBERT with two classes of sentiment, or it cannot be loaded.
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
    digest = shards.weights_digest(model)
    return TextClassifier(short_name(name), model.eval().to(device), tokenizer, flipped, digest)


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
