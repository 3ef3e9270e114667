"""Spectral distance on the tokens of a real model, and what it has to do with the damage that merging does.

Every layer is taken by itself. On the keys of the whole model each method plans one merge of a tenth of the tokens, and
the distance of equation 5 is measured between the token graph and its lifted coarsening, on both Laplacians. Then the
model runs with that one merge, in that one layer, and its last class and patch tokens are compared with the whole
model's. A last run merges in all layers.

tasks:
  photographs   the natural photographs in installed packages
  collection    103 other photographs, where that optional asset is in the cache
  scenes        objects on photographs, dev split
  sentences     rated sentences of the dev split, on the keys of all-MiniLM-L6-v2; a fifth of the words go

examples:
  python -m pitome_core.experiments spectra --tasks photographs
  python -m pitome_core.experiments spectra --tasks scenes --count 12 --output /tmp/spectra
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from tqdm import tqdm

import pitome_core as pc
import pitome_core.experiments.baselines  # registers rivals and controls
from pitome_core.experiments import settings
from pitome_core.experiments.data import photos, scenes, sentences
from pitome_core.experiments.data.pictures import preprocess
from pitome_core.experiments.models import bert, vit
from pitome_core.experiments.models.layer_keys import layer_keys
from pitome_core.experiments.records import provenance, results
from pitome_core.experiments.records.cells import Cell
from pitome_core.experiments.records.fingerprint import code_of
from pitome_core.experiments.runs import grid
from pitome_core.spectral import coarsen, inside_shares, lift, spectrum, token_graph

PROTOCOL = "spectra-1"  # the grid in book/protocol.md
TEXT_MODEL = "all-MiniLM-L6-v2"
METHODS = ("pitome", "tome", "energy-sorted", "atc", "random-merge")  # arms of the grid
SEEDS = 2  # of random merging
KEEP, TEXT_KEEP = 0.9, 0.8  # of the tokens, in the one layer that merges; sentences are short
SCENES = 36
SENTENCES, FEWEST = 300, 24  # from as many tokens on, [CLS] and [SEP] included: at least four merge
TASKS = ("photographs", "collection", "scenes", "sentences")
OUTCOMES = {
    "sd": "spectral distance, normalized Laplacian, per layer",
    "sd_combinatorial": "the same, combinatorial Laplacian",
    "scatter": "sum of squared distances of unit keys to the mean of their group, per layer",
    "class_drop": "1 - cosine of the last class token to the whole model's, in thousandths, per merged layer",
    "patch_drop": "the same, mean over un-merged patch tokens",
    "class_drop_all": "as class_drop, merging in all layers",
    "patch_drop_all": "as patch_drop, merging in all layers",
}


def scatter(metric: Tensor, plan: pc.MergePlan) -> Tensor:
    """Sum of squared distances between unit tokens and the means of their groups: ``(B, N, C) -> (B,)``, float64."""
    unit = torch.nn.functional.normalize(metric.double(), dim=-1)
    return (unit - plan.unmerge(plan.merge(unit)[0])).square().sum(dim=(-1, -2))


def drops(last: Tensor, whole: Tensor) -> tuple[Tensor, Tensor]:
    """1 - cosine in thousandths, of the first token and of the others (mean): ``(B, T, C)`` both -> ``(B,)``."""
    lost = 1000 * (1 - cosine_similarity(last.double(), whole.double(), dim=-1))
    return lost[:, 0], lost[:, 1:].mean(dim=1)


def cells(keep: float = KEEP) -> Iterator[Cell]:
    """What is compared, at equal k."""
    for name in METHODS:
        for seed in range(SEEDS) if grid.ARMS[name].seeds > 1 else (None,):
            yield Cell(name, keep, proportional=True, seed=seed)


class Layers:
    """A vision model and its images; keys, spectra and last tokens of the whole model are computed once."""

    def __init__(self, model: nn.Module, images: Tensor, batch: int = 16):
        self._start(model, len(model.blocks), images.to(next(model.parameters()).device).split(batch))

    def _start(self, model: nn.Module, depth: int, batches: Sequence[Tensor]) -> None:
        self.model, self.depth, self.batches = model, depth, list(batches)
        self.metrics, self.whole, self.spectra = [], [], []
        for inputs in self.batches:
            metrics, _, last = layer_keys(self.model, inputs)
            self.metrics.append(metrics)
            self.whole.append(last)
            self.spectra.append([spectrum(token_graph(metric.cpu()), "combinatorial") for metric in metrics])

    def _last(self, images: Tensor) -> Tensor:
        return self.model.forward_features(images)

    def _partition(self, plan: pc.MergePlan) -> pc.MergePlan:
        """The model's own plan, as a partition of the tokens of the metric."""
        return pc.MergePlan(plan.assignment.cpu(), plan.num_tokens, plan.anchored.cpu())

    def score(self, cell: Cell) -> dict[str, Tensor]:
        """Outcomes of every image: ``(n, L)`` each, and ``(n,)`` for the run that merges in all layers."""
        found: dict[str, list] = {name: [] for name in OUTCOMES}
        for number in range(len(self.batches)):
            for name, value in self._score(cell, number).items():
                found[name].append(value)
        return {name: torch.cat(values) for name, values in found.items()}

    def _score(self, cell: Cell, number: int) -> dict[str, Tensor]:
        arm, options = grid.ARMS[cell.arm], cell.options
        rows: dict[str, list] = {name: [] for name in OUTCOMES if not name.endswith("_all")}
        for layer in range(self.depth):
            keep = [1.0] * self.depth
            keep[layer] = cell.keep
            last, trace = self._run(arm.method, keep, options, number)
            plan, metric = self._partition(trace.layers[layer].plan), self.metrics[number][layer].cpu()
            graph = token_graph(metric)
            lifted = lift(coarsen(graph, plan), plan)
            normalized = inside_shares(graph, plan).sum(-1)
            if number == 0:  # the closed form is exact: if not, something is wrong with graph, plan or eigenvalues
                change = (spectrum(graph[:1]) - spectrum(lifted[:1])).abs().sum(-1)
                torch.testing.assert_close(change, normalized[:1], rtol=1e-6, atol=1e-8)
            combinatorial = (self.spectra[number][layer] - spectrum(lifted, "combinatorial")).abs().sum(-1)
            values = normalized, combinatorial, scatter(metric, plan), *drops(last, self.whole[number])
            for row, value in zip(rows.values(), values, strict=True):
                row.append(value.cpu())
        last, _ = self._run(arm.method, cell.keep, options, number)
        everywhere = (value.cpu() for value in drops(last, self.whole[number]))
        by_layer = {name: torch.stack(row, dim=1) for name, row in rows.items()}
        return by_layer | dict(zip(("class_drop_all", "patch_drop_all"), everywhere, strict=True))

    def _run(self, method: str, keep: Any, options: Mapping, number: int) -> tuple[Tensor, pc.Trace]:
        """Last tokens of the merged model, every patch in its place, and what merged."""
        with pc.patched(self.model, method, keep, proportional=True, **options), pc.record(self.model) as trace:
            with torch.no_grad():
                last = self._last(self.batches[number])
        return last, trace


class TextLayers(Layers):
    """The same for a BERT: one sentence at a time, token ids `(1, T)`; [CLS] and [SEP] take no part in graphs."""

    def __init__(self, model: nn.Module, rows: Sequence[Tensor]):
        self._start(model, len(model.encoder.layer), rows)

    def _last(self, ids: Tensor) -> Tensor:
        return self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state

    def _partition(self, plan: pc.MergePlan) -> pc.MergePlan:
        root = plan.anchor.gather(1, plan.assignment)[:, 1:-1] - 1  # words merge with words only
        return pc.MergePlan.from_roots(root.cpu())


def load(task: str, count: int | None = None) -> tuple[dict[str, list], tuple[str, ...], Callable[[], Layers]]:
    """Items and clusters of a task, or of its first ``count`` items, and what makes its `Layers`."""
    if task == "sentences":
        tokenizer = bert.sentence_tokenizer()
        pool = sentences.sentences("movies", "dev", neutral=True)
        lengths = bert.token_counts(tokenizer, [s.text for s in pool])
        chosen = [(s, n) for s, n in zip(pool, lengths, strict=True) if n >= FEWEST][: count or SENTENCES]
        items = {"id": [s.id for s, _ in chosen], "identity": [s.identity for s, _ in chosen],
                 "tokens": [n for _, n in chosen]}

        def text() -> Layers:
            model = bert.sentence_encoder()
            rows = [tokenizer(s.text, padding=False, return_tensors="pt")["input_ids"] for s, _ in chosen]
            return TextLayers(model, [row.to(model.device) for row in rows])

        return items, ("identity",), text
    if task == "scenes":
        made = scenes.scenes(count or SCENES, split="dev")
        items = {
            "id": [f"{i:04d}" for i in range(len(made))],
            "object": [thing.identity for thing in made.objects],
            "photograph": list(made.photographs),
        }
        images, clusters = made.images, ("object", "photograph")
    else:
        natural = [p.name for p in photos.PHOTOGRAPHS.values() if p.natural]
        names = list(photos.COLLECTION) if task == "collection" else natural
        items, clusters = {"id": names[:count]}, ("id",)
        images = preprocess(list(photos.photographs(names[:count]).values()))
    return items, clusters, lambda: Layers(vit.vit_small(img_size=224), images)


def available(task: str) -> bool:
    """Whether the data of a task are in the cache."""
    return task != "collection" or photos.collection_available()


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this experiment."""
    parser.add_argument("--profile", choices=settings.PROFILES, help="tier; default: PITOME_PROFILE, else embedded")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, metavar="TASK",
                        help=f"default: all that can run here; of {', '.join(TASKS)}")
    parser.add_argument("--count", type=int, metavar="N", help="the first N items only; needs --output")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="where records go; default: results/<tier>")
    parser.add_argument("--again", action="store_true", help="score cells that are recorded already once more")
    parser.add_argument("--estimate", action="store_true", help="print how long it would take, and stop")


def main(args: argparse.Namespace) -> int:
    """Run what was asked for, print a table per task, return the exit status."""
    if args.count and not args.output:
        print("--count makes a partial record: say where it goes with --output", file=sys.stderr)
        return 2
    settings.exact_float32()
    for task in args.tasks or [name for name in TASKS if available(name)]:
        record = run(task, args)
        if not args.estimate:
            print(summary(record))
    return 0


def run(task: str, args: argparse.Namespace) -> results.Record:
    """Score the cells that the record of a task lacks, writing it after each one."""
    items, clusters, make = load(task, args.count)
    text = task == "sentences"
    keep = TEXT_KEEP if text else KEEP
    header = {
        "experiment": "spectra", "task": task, "tier": settings.profile(),
        "split": "dev" if task in ("scenes", "sentences") else "all", "protocol": PROTOCOL,
        "clusters": list(clusters), "model": TEXT_MODEL if text else vit.MODEL, "keep": keep, "outcomes": OUTCOMES,
    }
    folder = args.output or results.writable(committed=True) / settings.profile()
    record = results.Record.open(folder / f"spectra-{task}.json", header, items)
    todo = [cell for cell in cells(keep) if args.again or cell.key not in record]
    minutes = len(record) * len(todo) * (0.003 if text else 0.05)  # measured on one core
    print(f"spectra-{task}: {len(record)} items, {len(todo)} cells to go, about {minutes:.0f} min on one core")
    if args.estimate or not todo:
        return record
    layers = make()
    for cell in tqdm(todo, unit="cell", file=sys.stdout, disable=None):
        origin = provenance.of_run(code_of(run))
        start = time.perf_counter()
        outcomes = layers.score(cell)
        about = cell.describe() | {"seconds": round(time.perf_counter() - start, 1)}
        record.add(cell.key, about, outcomes, origin)
    return record


def summary(record: results.Record) -> str:
    """A plain table: means over items and layers."""
    names = [name for name in OUTCOMES if name in next(iter(record.cells.values()))["outcomes"]]
    lines = [f"{'cell':26s} " + " ".join(f"{name[:15]:>15s}" for name in names)]
    for key in record.cells:
        lines.append(f"{key:26s} " + " ".join(f"{record.outcome(key, name).mean():15.4f}" for name in names))
    return "\n".join(lines)
