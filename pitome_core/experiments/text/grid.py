"""What is compared on texts: cells that merge in the first three layers, as the protocol lists them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import pitome_core as pc
from pitome_core.experiments.records import cells as records_cells
from pitome_core.experiments.records.cells import WHOLE, Arm, Cell, checked, seeds_of, with_counterparts
from pitome_core.experiments.runs import grid
from pitome_core.merge_plan import LinearPlan
from pitome_core.schedules import keep_schedule

FIRST = 3  # layers that merge
KEEPS = (0.9, 0.8, 0.7, 0.6, 0.5)  # share of the mergeable tokens that each of them keeps
PRIMARY = 0.8
PROTOCOL = "text-2"
SEEDS, FEW = 5, 2  # of arms that draw at random: in the first layers at the primary ratio of `movies`; elsewhere
RELEASED = "pitome-released-bert"
ARMS: dict[str, Arm] = {name: records_cells.ARMS[name] for name in (
    "pitome", RELEASED, "energy-sorted", "tome", "tofu", "tofu-merge", "diffrate", "dct", "random-merge",
    "random-prune",
)}  # fmt: skip
SHUFFLED = tuple(f"{name}-shuffled" for name in ("pitome", RELEASED, "energy-sorted"))  # controls for energy
KNOWN: dict[str, Arm] = ARMS | {name: records_cells.ARMS[name] for name in SHUFFLED}
RETRAINED = {RELEASED: (PRIMARY,)}
LABELS = {name: records_cells.LABELS[name] for name in (WHOLE, *KNOWN)}


def keeps_of(cell: Cell, depth: int) -> list[float]:
    """The keep ratio of every layer; 1 in layers that do not merge."""
    return [cell.keep if cell.every_layer or layer < FIRST else 1.0 for layer in range(depth)]


def needs_equal_lengths(cell: Cell) -> bool:
    """Whether a batch must hold texts of one length: the cosine transform has another shape for each length."""
    return cell.arm == "dct"


@contextmanager
def applied(cell: Cell, model: nn.Module) -> Iterator[nn.Module]:
    """The BERT as this cell runs it; it is patched inside the block only."""
    if cell.arm == WHOLE:
        yield model
        return
    encoder = getattr(model, "bert", model)
    keeps = keeps_of(cell, len(encoder.encoder.layer))
    if needs_equal_lengths(cell):
        encoder.forward = partial(cosine_forward, encoder, keeps)
        try:
            yield model
        finally:
            del encoder.forward
        return
    with grid.applied(cell, model, keeps):
        yield model


def cells(
    arms: Sequence[str] | None = None,
    keeps: Sequence[float] = KEEPS,
    *,
    sparse: Mapping[str, Sequence[float]] | None = None,
    seeds: int = SEEDS,
    every_layer: Sequence[str] = (),
    switched: Sequence[str] = (),
    retrained: bool = False,
) -> list[Cell]:
    """The whole model, and the arms (None: `ARMS`) at the keep ratios in the first three layers.

    Every cell has its counterpart beside it (`Cell.beside`) if that is of one of the arms: ToMe without proportional
    attention where a preset switches it off.

    Args:
        arms: names in `KNOWN`.
        keeps: ratios of all arms.
        sparse: the ratios of single arms, in place of ``keeps``.
        seeds: of arms that draw at random, at keep .8; `FEW` elsewhere.
        every_layer: arms that merge in all layers as well, at keep .8.
        switched: arms that run without proportional attention as well, at keep .8.
        retrained: whether the cells are added whose classifiers are fine-tuned with merging on (`retrained_cells`).

    Raises:
        ValueError: an arm that does not exist, or a keep ratio that is below .5 or not below 1.
    """
    chosen = [Cell(WHOLE)]
    names = checked(list(ARMS if arms is None else arms), keeps, tuple(KNOWN), least=0.5)
    for name in names:
        for keep in (sparse or {}).get(name, keeps):
            chosen += [Cell(name, keep, seed=seed) for seed in seeds_of(name, seeds if keep == PRIMARY else FEW)]
        if PRIMARY in keeps and name in every_layer:
            chosen += [Cell(name, PRIMARY, seed=seed, every_layer=True) for seed in seeds_of(name, FEW)]
        if PRIMARY in keeps and name in switched:
            chosen.append(Cell(name, PRIMARY, proportional=False, seed=seeds_of(name)[0]))
        if retrained:
            chosen += [cell for cell in retrained_cells() if cell.arm == name and cell.keep in keeps]
    return with_counterparts(chosen, names)


def retrained_cells() -> list[Cell]:
    """The cells whose classifiers are fine-tuned with merging on: those of `RETRAINED`, and their counterparts."""
    cells = [Cell(arm, keep, retrained=True) for arm, ratios in RETRAINED.items() for keep in ratios]
    return list(dict.fromkeys(both for cell in cells for both in with_counterparts([cell], (*RETRAINED, "tome"))))


def macs(cell: Cell, model: nn.Module, lengths: Sequence[int]) -> list[int]:
    """Multiply-accumulates of one text of each length, [CLS] and [SEP] included, merging included.

    ``model`` is the bare BERT. The cosine transform is counted as a product with its matrix, as everywhere.
    """
    transform = needs_equal_lengths(cell)
    counted = Cell("tome", cell.keep, every_layer=cell.every_layer) if transform else cell
    with applied(counted, model) as running:
        counts = [pc.flops(running, (length,)) for length in lengths]
    if not transform:
        return [count.total for count in counts]
    width = getattr(model, "bert", model).config.hidden_size
    return [
        count.total - sum(layer.merge for layer in count.layers)
        + sum(a * b * width for a, b in zip(count.tokens, count.tokens[1:], strict=False) if a != b)
        for count in counts
    ]


def tokens(cell: Cell, depth: int, length: int) -> tuple[int, ...]:
    """Tokens entering each layer and leaving the last, [CLS] and [SEP] included."""
    keeps = [1.0] * depth if cell.arm == WHOLE else keeps_of(cell, depth)
    return keep_schedule(length - 2, keeps, depth, 2).tokens


def cost(cell: Cell, model: nn.Module, lengths: Mapping[int, int]) -> dict[str, Any]:
    """What one text costs, as a mean, and what else records say of the cell (`describe`).

    ``lengths`` says how many texts have each number of tokens. ``gmacs`` are 10^9 multiply-accumulates, ``share`` their
    share of the whole model's, ``tokens`` the tokens that enter each layer and leave the last. ``model`` is the bare
    BERT.
    """
    texts, sizes = sum(lengths.values()), list(lengths)

    def total(counts: Sequence[int]) -> int:
        return sum(number * count for number, count in zip(lengths.values(), counts, strict=True))

    of_cell, whole = total(macs(cell, model, sizes)), total(macs(Cell(WHOLE), model, sizes))
    depth = len(getattr(model, "bert", model).encoder.layer)
    left = sum(number * np.array(tokens(cell, depth, size)) for size, number in lengths.items())
    return describe(cell) | {
        "gmacs": round(of_cell / texts / 1e9, 6),
        "share": round(of_cell / whole, 6),
        "tokens": np.round(left / texts, 3).tolist(),
    }


def describe(cell: Cell) -> dict[str, Any]:
    """What records of texts say of a cell beside `Cell.describe`: which layers merge, and of which training."""
    if cell.arm == WHOLE:
        return {}
    return {"layers": "all" if cell.every_layer else FIRST, "retrained": cell.retrained}


def cosine_forward(
    model: nn.Module, keeps: Sequence[float], input_ids: Tensor, attention_mask: Tensor | None = None,
    token_type_ids: Tensor | None = None, **options: Any,
):
    """`BertModel.forward` with the truncated cosine transform between attention and MLP, for texts of one length.

    [CLS] and [SEP] stay; the tokens between them are transformed. The last state has all places again. Raises
    ``ValueError`` for padding.
    """
    from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions as Output

    if attention_mask is not None and not bool(attention_mask.all()):
        raise ValueError("dct takes texts of one length in a batch: group them by their number of tokens")
    x, whole = model.embeddings(input_ids=input_ids, token_type_ids=token_type_ids), None
    removed = keep_schedule(x.shape[1] - 2, keeps, len(keeps), 2).remove
    for layer, k in zip(model.encoder.layer, removed, strict=True):
        x = layer.attention(x)[0]
        if k:
            plan = pc.plan(x[:, 1:-1], k, "dct")
            x = torch.cat([x[:, :1], plan.merge(x[:, 1:-1])[0], x[:, -1:]], dim=1)
            whole = plan if whole is None else whole.then(plan)
        x = layer.feed_forward_chunk(x)
    if isinstance(whole, LinearPlan):
        x = torch.cat([x[:, :1], whole.unmerge(x[:, 1:-1]), x[:, -1:]], dim=1)
    return Output(last_hidden_state=x, pooler_output=None if model.pooler is None else model.pooler(x))
