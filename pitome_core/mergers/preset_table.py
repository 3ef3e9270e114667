"""Presets as data: what each published variant of PiToMe chooses wherever the method leaves a choice.

Four properties of the released code are not reproduced on purpose, so that all methods meet the same tokens.

- Ties: the released sort is unstable, ours is stable.
- Prefix tokens never merge and never count in N. In the released ToMe layers of LLaVA's CLIP the class token counts in
  N and in the parity, and unmerged tokens stand before destinations; here N, parity and order are those of patches.
- A distillation token never merges.
- Padding of a text takes no part: it neither merges nor counts in N.

`book/paper_and_code` says what the second changes, measured.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class PresetRow:
    """What a preset says about one layer, before the number of layers is known.

    Attributes:
        metric: what tokens are compared by, as in `pc.apply`.
        margin: (base, slope) of the margin in layer l of L: `base - slope * l / L`.
        proportional: whether keys count by token size in attention, also where nothing merges.
        sized: whether merged values are means weighted by size; False = plain means of the tokens at hand.
        insertion: where the merge sits, as in `pc.apply`.
        options: the method's options.
        merges: whether the layer merges. Where it does not, attention still follows `proportional`.
    """

    metric: str = "keys"
    margin: tuple[float, float] = (0.9, 0.9)
    proportional: bool = True
    sized: bool = True
    insertion: str = "between"
    options: dict[str, Any] = field(default_factory=dict)
    merges: bool = True


@dataclass(frozen=True)
class Preset:
    """One published variant: a row for the early layers and a row for the late layers.

    Attributes:
        summary: one line.
        early, late: the rows.
        switch: the first late layer: a number, or None for half the depth, rounded up (`ceil(L / 2)`).
        method: the method it configures.
        protect: which tokens never merge, as in `pc.apply`, for families that have a choice; None = as they do it.
    """

    summary: str
    early: PresetRow
    late: PresetRow
    switch: int | None = None
    method: str = "pitome"
    protect: str | None = None

    def rows(self, num_layers: int) -> list[PresetRow]:
        """The row of every layer."""
        switch = (num_layers + 1) // 2 if self.switch is None else min(self.switch, num_layers)
        return [self.early] * switch + [self.late] * (num_layers - switch)


_ENERGY_SORTED_BSM = {"protection": False, "edges": "best"}
_TOME = {"protection": False, "split": "position", "edges": "best"}


def _deit(**options: Any) -> PresetRow:
    return PresetRow(margin=(0.75, 0.75), proportional=False, options={"kernel": "elu", **options})


_PAPER = PresetRow(options={"kernel": "paper"})
_CLIP = PresetRow(metric="hidden", margin=(0.95, 0.95), proportional=False, options={"kernel": "elu"})


def _llava(**options: Any) -> PresetRow:
    options = {"kernel": "elu", **options}
    return PresetRow(metric="hidden", proportional=False, sized=False, insertion="after", options=options)


_BERT = PresetRow(
    margin=(0.9, 0.25), proportional=False, sized=False, options={"kernel": "gaussian", "split": "high_low"}
)

PRESETS = {
    "paper": Preset("the method as the paper's text and equations define it", _PAPER, _PAPER),
    "released-deit": Preset(
        "released code, DeiT: energy-sorted matching without protection in the first half, then PiToMe",
        _deit(**_ENERGY_SORTED_BSM), _deit(),
    ),
    "released-mae": Preset(
        "released code, MAE: PiToMe in the first half, then energy-sorted matching without protection",
        _deit(), _deit(**_ENERGY_SORTED_BSM),
    ),
    "released-clip": Preset("released code, CLIP: hidden states, wider margins", _CLIP, _CLIP),
    "released-llava": Preset(
        "released code, LLaVA's CLIP tower: ToMe in layers 0 to 12, then PiToMe; plain means behind each block",
        _llava(**_TOME), _llava(), switch=13,
    ),
    "released-bert": Preset(
        "released code, BERT: Gaussian energy, high/low split, plain means, first three layers",
        _BERT, replace(_BERT, merges=False), switch=3, protect="cls",
    ),
}


def presets() -> dict[str, Preset]:
    """The presets by name (a copy of the table).

    Example:
        >>> import pitome_core as pc
        >>> pc.presets()["released-bert"].summary
        'released code, BERT: Gaussian energy, high/low split, plain means, first three layers'
    """
    return dict(PRESETS)
