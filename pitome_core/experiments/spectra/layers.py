"""What one merge in one layer changes: spectral distances, scatter of keys, and drops of the last tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

import pitome_core as pc
from pitome_core.experiments.models.layer_keys import layer_keys
from pitome_core.experiments.records.cells import Cell
from pitome_core.experiments.runs import grid
from pitome_core.spectral import coarsen, inside_shares, lift, spectrum, token_graph

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
    """Sum of squared distances of unit tokens to the means of their groups: ``(B, N, C)`` to ``(B,)``, float64."""
    unit = torch.nn.functional.normalize(metric.double(), dim=-1)
    return (unit - plan.unmerge(plan.merge(unit)[0])).square().sum(dim=(-1, -2))


def drops(last: Tensor, whole: Tensor) -> tuple[Tensor, Tensor]:
    """1 - cosine between two sets of tokens ``(B, T, C)``, in thousandths.

    Returns the drop of the first token ``(B,)``, and the mean drop of the others ``(B,)``.
    """
    drop = 1000 * (1 - cosine_similarity(last.double(), whole.double(), dim=-1))  # (B, T)
    return drop[:, 0], drop[:, 1:].mean(dim=1)


@contextmanager
def resumed(blocks: Sequence[nn.Module], tokens: Tensor) -> Iterator[None]:
    """Inside the block, the given blocks of a patched ViT do nothing, and ``tokens (B, T, C)`` leave the last of them.

    They are the blocks before the one that merges, and the tokens those that enter it in the whole model: computed once
    for all cells.
    """
    for block in blocks:
        # What a patched block returns where nothing merges: tokens, sizes, no plan.
        block.forward = lambda x, size=None, **_: (tokens, size, None)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


class Layers:
    """A vision model with its images ``(n, 3, H, W)``.

    Keys, spectra, the tokens that enter each layer and those that leave the last are computed once of the whole model,
    for batches of ``batch`` images. At 224 pixels they take 7 MB for an image.
    """

    def __init__(self, model: nn.Module, images: Tensor, batch: int = 16):
        self._start(model, len(model.blocks), images.to(next(model.parameters()).device).split(batch))

    def _start(self, model: nn.Module, depth: int, batches: Sequence[Tensor]) -> None:
        self.model, self.depth, self.batches = model, depth, list(batches)
        self.metrics, self.whole, self.spectra, self.entering = [], [], [], []
        for inputs in self.batches:
            entering: list[Tensor] = []
            hooks = [
                block.register_forward_pre_hook(lambda _, args, kept=entering: kept.append(args[0]))
                for block in self._blocks()
            ]
            try:
                metrics, _, last = layer_keys(self.model, inputs)
            finally:
                for hook in hooks:
                    hook.remove()
            self.entering.append(entering)
            self.metrics.append(metrics)
            self.whole.append(last)
            self.spectra.append([spectrum(token_graph(metric.cpu()), "combinatorial") for metric in metrics])

    def _blocks(self) -> Sequence[nn.Module]:
        """The blocks that need not run again before the one that merges."""
        return list(self.model.blocks)

    def _last(self, images: Tensor) -> Tensor:
        """The last tokens of the model, ``(B, T, C)``."""
        return self.model.forward_features(images)

    def _partition(self, plan: pc.MergePlan) -> pc.MergePlan:
        """The model's plan as a partition of the tokens of the metric, on the CPU."""
        return pc.MergePlan(plan.assignment.cpu(), plan.num_tokens, plan.anchored.cpu())

    def score(self, cell: Cell) -> dict[str, Tensor]:
        """The outcomes of a cell, as `OUTCOMES` describes them.

        Each is ``(n, L)`` for n images and L layers, or ``(n,)`` for a name that ends in ``_all``.
        """
        parts: dict[str, list] = {name: [] for name in OUTCOMES}
        for number in range(len(self.batches)):
            for name, value in self._score(cell, number).items():
                parts[name].append(value)
        return {name: torch.cat(values) for name, values in parts.items()}

    def _score(self, cell: Cell, number: int) -> dict[str, Tensor]:
        """`score` for one batch."""
        arm = grid.ARMS[cell.arm]
        options = cell.options
        rows: dict[str, list] = {name: [] for name in OUTCOMES if not name.endswith("_all")}
        for layer in range(self.depth):
            keep = [1.0] * self.depth
            keep[layer] = cell.keep
            last, trace = self._run(arm.method, keep, options, number, layer)
            plan, metric = self._partition(trace.layers[layer].plan), self.metrics[number][layer].cpu()
            graph = token_graph(metric)
            lifted = lift(coarsen(graph, plan), plan)
            normalized = inside_shares(graph, plan).sum(-1)
            if number == 0:  # the closed form is exact, so that a difference means an error in the code
                change = (spectrum(graph[:1]) - spectrum(lifted[:1])).abs().sum(-1)
                torch.testing.assert_close(change, normalized[:1], rtol=1e-6, atol=1e-8)
            combinatorial = (self.spectra[number][layer] - spectrum(lifted, "combinatorial")).abs().sum(-1)
            values = normalized, combinatorial, scatter(metric, plan), *drops(last, self.whole[number])
            for row, value in zip(rows.values(), values, strict=True):
                row.append(value.cpu())
        last, _ = self._run(arm.method, cell.keep, options, number)
        in_all_layers = (value.cpu() for value in drops(last, self.whole[number]))
        by_layer = {name: torch.stack(row, dim=1) for name, row in rows.items()}  # (B, L) each
        return by_layer | dict(zip(("class_drop_all", "patch_drop_all"), in_all_layers, strict=True))

    def _run(
        self, method: str, keep: Any, options: Mapping, number: int, layer: int = 0
    ) -> tuple[Tensor, pc.Trace]:
        """Last tokens of the merged model, un-merged, and the trace of the run; nothing merges before ``layer``."""
        before = self._blocks()[:layer]
        tokens = self.entering[number][layer] if before else None
        with pc.patched(self.model, method, keep, proportional=True, **options), pc.record(self.model) as trace:
            with resumed(before, tokens), torch.no_grad():
                last = self._last(self.batches[number])
        return last, trace


class TextLayers(Layers):
    """A BERT with its sentences, one at a time, as token ids ``(1, T)``.

    [CLS] and [SEP] are left out of graphs and plans, because they never merge.
    """

    def __init__(self, model: nn.Module, rows: Sequence[Tensor]):
        self._start(model, len(model.encoder.layer), rows)

    def _blocks(self) -> Sequence[nn.Module]:
        return ()  # a patched BERT rounds otherwise where nothing merges, and it is small: all its layers run

    def _last(self, ids: Tensor) -> Tensor:
        return self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state

    def _partition(self, plan: pc.MergePlan) -> pc.MergePlan:
        root = plan.anchor.gather(1, plan.assignment)[:, 1:-1] - 1  # words merge with words only
        return pc.MergePlan.from_roots(root.cpu())
