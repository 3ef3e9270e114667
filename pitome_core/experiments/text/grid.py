"""What is compared on texts: arms, and cells that merge in the first three layers, as the protocol lists them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import pitome_core as pc
from pitome_core.experiments.runs import grid
from pitome_core.merge_plan import LinearPlan
from pitome_core.schedules import keep_schedule

FIRST = 3  # layers that merge
KEEPS = (0.9, 0.8, 0.7, 0.6, 0.5)  # share of the mergeable tokens that each of them keeps
PRIMARY = 0.8
SEEDS = {PRIMARY: 5}  # of the random controls in the first layers; two elsewhere
RELEASED = grid.Arm(
    "pitome-released-bert", "PiToMe (released, BERT)", "pitome", "pitome", {"preset": "released-bert"}, also_off=False
)
# The first half of the layers is all that merge here: ToFu as published drops in each of them.
TOFU_MERGES = grid.Arm("tofu-merge", "ToFu, merging only", "tofu", "merge", {"pruned": 0.0})
ARMS: dict[str, grid.Arm] = {arm.name: arm for arm in (
    grid.ARMS["pitome"], RELEASED, grid.ARMS["energy-sorted"], grid.ARMS["tome"], grid.ARMS["tofu"], TOFU_MERGES,
    *(grid.ARMS[name] for name in ("diffrate", "dct", "random-merge", "random-prune")),
)}
RETRAINED = {arm: (PRIMARY,) for arm in ("pitome", RELEASED.name, "tome")}
LABELS = {grid.WHOLE: grid.LABELS[grid.WHOLE]} | {name: arm.label for name, arm in ARMS.items()}


@dataclass(frozen=True)
class TextCell(grid.Cell):
    """An arm at one keep ratio, in the first three layers or in all of them (``every_layer``).

    ``retrained``: the classifiers were fine-tuned with this merging on; otherwise they were not (off the shelf).
    """

    every_layer: bool = False
    retrained: bool = False

    @property
    def key(self) -> str:
        """``tome@0.8``, ``tome@0.8/all``, ``tome@0.8/off``, ``tome@0.8/retrained``, ``random-prune@0.8/seed3``."""
        if self.arm == grid.WHOLE:
            return self.arm
        tail = "/all" if self.every_layer else ""
        tail += "/off" if self.proportional is False else ""
        tail += "/retrained" if self.retrained else ""
        return f"{self.arm}@{self.keep:g}{tail}" + ("" if self.seed is None else f"/seed{self.seed}")

    def describe(self) -> dict[str, Any]:
        """What a record says about it."""
        known: dict[str, Any] = {"arm": self.arm, "label": LABELS[self.arm], "keep": self.keep, "seed": self.seed}
        if arm := ARMS.get(self.arm):
            known |= {"method": arm.method, "options": dict(arm.options), "proportional": self.proportional}
            known |= {"layers": "all" if self.every_layer else FIRST, "retrained": self.retrained}
        return {name: value for name, value in known.items() if value is not None}

    def keeps(self, depth: int) -> list[float]:
        """The keep ratio of every layer."""
        return [self.keep if self.every_layer or layer < FIRST else 1.0 for layer in range(depth)]

    @property
    def equal_lengths(self) -> bool:
        """Whether a batch must hold texts of one length: the cosine transform has another shape for each."""
        return self.arm == "dct"

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[nn.Module]:
        """The BERT as this cell runs it; patched inside the block only."""
        if self.arm == grid.WHOLE:
            yield model
            return
        arm, encoder = ARMS[self.arm], getattr(model, "bert", model)
        keeps = self.keeps(len(encoder.encoder.layer))
        if self.equal_lengths:
            encoder.forward = partial(cosine_forward, encoder, keeps)
            try:
                yield model
            finally:
                del encoder.forward
            return
        options = dict(arm.options) | ({} if self.seed is None else {"seed": self.seed})
        with pc.patched(model, arm.method, keeps, proportional=self.proportional, **options):
            yield model


def cells(
    arms: Sequence[str] | None = None,
    keeps: Sequence[float] = KEEPS,
    *,
    every_layer: bool = False,
    switched: bool = False,
    retrained: bool = False,
) -> list[TextCell]:
    """The whole model, and the arms at the keep ratios in the first three layers.

    Also, at keep .8 where that is among the ratios: all layers (``every_layer``), and proportional attention switched
    off for the arms that count sizes (``switched``). ``retrained`` adds the cells fine-tuned with merging on.
    `ValueError` for an arm that does not exist or a keep ratio that is none.
    """
    chosen = list(ARMS) if arms is None else [name for name in arms if name != grid.WHOLE]
    if unknown := [name for name in chosen if name not in ARMS]:
        raise ValueError(f"no method {unknown[0]!r} for texts; there are {', '.join(ARMS)}")
    if wrong := [keep for keep in keeps if not 0.5 <= keep < 1]:
        raise ValueError(f"keep {wrong[0]} must lie between 0.5 and 1; the whole model (keep 1) is always run")
    found = [TextCell(grid.WHOLE)]
    for name in chosen:
        arm = ARMS[name]
        for keep in keeps:
            found += [TextCell(name, keep, seed=seed) for seed in _seeds(arm, SEEDS.get(keep, 2))]
        if PRIMARY in keeps and every_layer and name != RELEASED.name:  # the preset has three layers
            found += [TextCell(name, PRIMARY, seed=seed, every_layer=True) for seed in _seeds(arm, 2)]
        if PRIMARY in keeps and switched and arm.also_off:
            found += [TextCell(name, PRIMARY, proportional=False, seed=seed) for seed in _seeds(arm, 1)]
        if retrained:
            found += [TextCell(name, keep, retrained=True) for keep in RETRAINED.get(name, ()) if keep in keeps]
    return list(dict.fromkeys(found))


def _seeds(arm: grid.Arm, count: int) -> Sequence[int | None]:
    return range(count) if arm.seeds > 1 else (None,)


def macs(cell: TextCell, model: nn.Module, lengths: Sequence[int]) -> list[int]:
    """Multiply-accumulates of one text of each length, [CLS] and [SEP] included, merging included.

    ``model`` is the bare BERT. The cosine transform is counted as a product with its matrix, as everywhere.
    """
    counted = TextCell("tome", cell.keep, every_layer=cell.every_layer) if cell.equal_lengths else cell
    with counted.applied(model) as running:
        counts = [pc.flops(running, (length,)) for length in lengths]
    if not cell.equal_lengths:
        return [one.total for one in counts]
    width = getattr(model, "bert", model).config.hidden_size
    return [
        one.total - sum(layer.merge for layer in one.layers)
        + sum(a * b * width for a, b in zip(one.tokens, one.tokens[1:], strict=False) if a != b)
        for one in counts
    ]


def tokens(cell: TextCell, depth: int, length: int) -> tuple[int, ...]:
    """Tokens entering each layer and leaving the last, [CLS] and [SEP] included."""
    keeps = [1.0] * depth if cell.arm == grid.WHOLE else cell.keeps(depth)
    return keep_schedule(length - 2, keeps, depth, 2).tokens


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
