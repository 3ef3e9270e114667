"""What a record's cell is: an arm (a method with its options) at one strength, as fields; its key follows from them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pitome_core as pc

SEEDS = 5  # of the arms that draw at random
SETTINGS = {"metric": "keys", "insertion": "between", "proportional": True}  # what a comparison holds equal


@dataclass(frozen=True)
class Arm:
    """One way to make tokens fewer.

    Attributes:
        name: what cells and commands call it.
        label: what readers see.
        method: its name in `pc.methods`.
        kind: ``pitome`` (its presets and switches), ``merge``, ``prune``, ``transform`` or ``control``.
        options: of `pc.apply`: a preset, a metric, or options of the method.
        also_off: whether the grids run it with proportional attention switched off as well. That makes sense where
            tokens carry sizes and proportional attention is on otherwise.
        seeds: how many seeds it is run with.
    """

    name: str
    label: str
    method: str
    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)
    also_off: bool = True
    seeds: int = 1

    @property
    def switches(self) -> dict[str, Any]:
        """Its options without `settings`: two arms that differ in these alone are the same method."""
        return {name: value for name, value in self.options.items() if name not in SETTINGS}

    @property
    def settings(self) -> dict[str, set]:
        """What its layers use: the sets of their values of ``metric``, ``insertion`` and ``proportional``."""
        preset = pc.presets().get(self.options.get("preset", ""))
        rows = [] if preset is None else [preset.early, preset.late]
        given = SETTINGS | dict(self.options)
        return {name: {getattr(row, name) for row in rows} or {given[name]} for name in SETTINGS}


SORTED = {"protection": False, "edges": "best"}
# fmt: off
_LISTED = (
    Arm("pitome", "PiToMe (paper)", "pitome", "pitome"),
    Arm("pitome-released-deit", "PiToMe (released, DeiT)", "pitome", "pitome", {"preset": "released-deit"},
        also_off=False),
    Arm("pitome-released-mae", "PiToMe (released, MAE)", "pitome", "pitome", {"preset": "released-mae"},
        also_off=False),
    Arm("pitome-released-clip", "PiToMe (released, CLIP)", "pitome", "pitome", {"preset": "released-clip"},
        also_off=False),
    Arm("pitome-released-bert", "PiToMe (released, BERT)", "pitome", "pitome",
        {"preset": "released-bert", "protect": "ends"},  # [SEP] stays, as with the other arms: equal tokens
        also_off=False),
    Arm("pitome-released-llava", "PiToMe (released, LLaVA)", "pitome", "pitome", {"preset": "released-llava"},
        also_off=False),
    Arm("energy-sorted", "energy-sorted BSM", "pitome", "pitome", SORTED),
    Arm("tome", "ToMe", "tome", "merge"),
    # ToMe as the repository of the paper runs it beside PiToMe. The class token counts for the parity there. In N it
    # counts too, which would cost one patch; here tokens are equal.
    Arm("tome-released-deit", "ToMe (released beside PiToMe, DeiT)", "tome", "merge",
        {"parity": "all", "proportional": False}, also_off=False),
    Arm("tome-released-clip", "ToMe (released beside PiToMe, CLIP)", "tome", "merge",
        {"parity": "all", "proportional": False, "metric": "hidden", "insertion": "after"}, also_off=False),
    Arm("tofu", "ToFu", "tofu", "merge"),
    # ToFu as published drops tokens in the first half of the layers. On texts these are all the layers that merge.
    Arm("tofu-merge", "ToFu, merging only", "tofu", "merge", {"pruned": 0.0}),
    Arm("crossget", "CrossGET", "crossget", "merge"),
    Arm("mctf", "MCTF", "mctf", "merge"),
    Arm("atc", "ATC", "atc", "merge", {"linkage": "average"}),
    Arm("diffrate", "DiffRate", "diffrate", "merge"),
    Arm("dct", "DCT", "dct", "transform", also_off=False),
    Arm("evit", "EViT", "evit", "prune"),  # its fused token stands for many, so it has sizes
    Arm("topk-attention", "top-k attention", "topk_attention", "prune", also_off=False),
    Arm("random-merge", "random merging", "random_merge", "control", seeds=SEEDS),
    Arm("random-prune", "random pruning", "random_prune", "control", also_off=False, seeds=SEEDS),
    # Secondary arms: they compare the tokens themselves and not their keys.
    Arm("pitome-hidden", "PiToMe on hidden states", "pitome", "pitome", {"metric": "hidden"}, also_off=False),
    Arm("energy-sorted-hidden", "energy-sorted on hidden states", "pitome", "pitome", {**SORTED, "metric": "hidden"},
        also_off=False),
    Arm("tome-hidden", "ToMe on hidden states", "tome", "merge", {"metric": "hidden"}),
    # Keys less their mean over the tokens of an image: cosines then tell more where keys are nearly parallel.
    Arm("pitome-centred", "PiToMe on centred keys", "pitome", "pitome", {"metric": "keys-centred"}),
    Arm("energy-sorted-centred", "energy-sorted on centred keys", "pitome", "pitome",
        {**SORTED, "metric": "keys-centred"}),
    Arm("tome-centred", "ToMe on centred keys", "tome", "merge", {"metric": "keys-centred"}),
    # Parts of PiToMe: its gate (which tokens may merge), its split in the order of energy, and the choice of edges.
    *(Arm(f"gate-{gate:g}", f"PiToMe, gate {gate:g}", "pitome", "pitome", {"gate": gate})
      for gate in (1.25, 1.5, 2.0, 3.0, 4.0)),
    Arm("pitome-position", "PiToMe's gate, ToMe's split", "pitome", "pitome", {"split": "position"}),
    Arm("gate-2-position", "gate 2, ToMe's split", "pitome", "pitome", {"gate": 2.0, "split": "position"}),
    Arm("ungated", "no gate, tokens of highest energy merge", "pitome", "pitome", {"protection": False}),
    Arm("ungated-position", "no gate, ToMe's split, tokens of highest energy merge", "pitome", "pitome",
        {"protection": False, "split": "position"}),
)
# fmt: on


def _shuffled(arm: Arm) -> Arm:
    """The control for energy: the same arm, with the energies of an image dealt to other tokens of it."""
    options = {**arm.options, "score": "shuffled"}
    return replace(arm, name=f"{arm.name}-shuffled", label=f"{arm.label}, energies shuffled", kind="control",
                   options=options, also_off=False, seeds=SEEDS)


def _on_hidden(arm: Arm) -> Arm:
    """The same arm comparing hidden states."""
    return replace(arm, name=f"{arm.name}-hidden", label=f"{arm.label}, hidden states",
                   options={**arm.options, "metric": "hidden"})


_PARTS = [_on_hidden(arm) for arm in _LISTED if arm.name.startswith(("gate-", "ungated", "pitome-position"))]
_ARMS = [*_LISTED, *_PARTS]
ARMS: dict[str, Arm] = {
    arm.name: arm for arm in [*_ARMS, *(_shuffled(arm) for arm in _ARMS if arm.kind == "pitome")]
}
RANDOM = ("random-merge", "random-prune")  # arms that look at nothing
GRID_POOL, LOWER, WHOLE = "grid-pool", "lower-resolution", "whole"  # cells that no arm stands for
LABELS = {WHOLE: "whole model", GRID_POOL: "2 x 2 pooling", LOWER: "lower resolution"} | {
    name: arm.label for name, arm in ARMS.items()
}
FIRST_ORDER = "raster-centroid"  # of image tokens in a LLaVA, where a cell says nothing (`models.llava_answers`)


@dataclass(frozen=True)
class Cell:
    """An arm at one strength, and where and how it merges.

    Attributes:
        arm: a name in `ARMS`, or `WHOLE`, `GRID_POOL` or `LOWER`.
        keep: share of the tokens that a merging layer keeps; None where no layer merges.
        proportional: whether attention counts keys by size; None = as the arm's preset says, else yes.
        seed: of an arm that draws at random; None = the arm has no seeds, or all of its seeds are meant.
        pixels: side of the image, of the control at lower resolution.
        towers: which tower merges: ``vision``, ``text`` or ``both``.
        every_layer: whether every layer of a text model merges; otherwise its first layers do.
        retrained: whether the heads were trained with this merging on; otherwise they were trained without merging.
        order: in which a language model reads image tokens; None = `FIRST_ORDER`, or there is no language model.
        every: one of so many layers removes what all of them would, as in `pc.apply`.
    """

    arm: str
    keep: float | None = None
    proportional: bool | None = None
    seed: int | None = None
    pixels: int | None = None
    towers: str = "vision"
    every_layer: bool = False
    retrained: bool = False
    order: str | None = None
    every: int = 1

    def __post_init__(self) -> None:
        if self.order == FIRST_ORDER:  # said or not said, it is the same cell
            object.__setattr__(self, "order", None)

    @property
    def key(self) -> str:
        """How records call the cell.

        Examples: ``whole``, ``tome@0.9``, ``tome@0.9/off``, ``random-prune@0.9/seed3``, ``lower-resolution@98px``,
        ``tome@0.8/both``, ``tome@0.8/all``, ``tome@0.8/retrained``, ``tome@0.9/released``, ``tome@0.9/every3``.
        """
        name = self.arm
        if self.pixels is not None:
            name += f"@{self.pixels}px"
        elif self.keep is not None:
            name += f"@{self.keep:g}"
        parts = {
            self.towers: self.towers != "vision", "all": self.every_layer, f"every{self.every}": self.every > 1,
            "off": self.proportional is False, "retrained": self.retrained, f"seed{self.seed}": self.seed is not None,
            self.order: self.order is not None,
        }
        return "/".join([name, *(part for part, is_said in parts.items() if is_said)])

    @classmethod
    def of(cls, about: Mapping[str, Any]) -> Cell:
        """The cell that a record describes, from the entries that `describe` and the experiments write."""
        names = ("arm", "keep", "seed", "pixels", "towers", "retrained", "order", "every")
        fields = {name: about[name] for name in names if about.get(name) is not None}
        # `proportional` says what a run asked for; what a preset brings stands in the preset.
        return cls(**fields, proportional=about.get("proportional"), every_layer=about.get("layers") == "all")

    def describe(self) -> dict[str, Any]:
        """What every record says of the cell. Experiments add the fields that only they have."""
        arm = ARMS.get(self.arm)
        about = {"arm": self.arm, "label": LABELS[self.arm], "keep": self.keep, "pixels": self.pixels}
        about |= {"seed": self.seed, "method": arm.method if arm else None, "options": dict(arm.options) if arm else {}}
        about |= {"proportional": self.proportional, "every": self.every if self.every > 1 else None}
        return {name: value for name, value in about.items() if value is not None}

    @property
    def options(self) -> dict[str, Any]:
        """The options of `pc.apply` that the arm and the seed stand for."""
        return dict(ARMS[self.arm].options) | ({} if self.seed is None else {"seed": self.seed})

    @property
    def shuffled(self) -> Cell | None:
        """The control for energy beside this cell, standing for all of its seeds; None where no energy is read."""
        name = f"{self.arm}-shuffled"
        return replace(self, arm=name, seed=None) if name in ARMS else None

    @property
    def without_seed(self) -> Cell:
        """The same cell, standing for all of its seeds."""
        return replace(self, seed=None)

    @property
    def is_plain(self) -> bool:
        """Whether the cell is the arm as it is: no switch, no other tower or layers, no other order, not retrained."""
        return self.key == Cell(self.arm, self.keep, seed=self.seed, pixels=self.pixels).key

    def beside(self, rival: str) -> Cell | None:
        """The cell of another arm that this one may be compared with; None where there is none.

        Everything but the method is the same: attention (switched off where this cell's preset switches it off),
        metric, insertion point, towers, layers, steps, order, training, tokens and, if both arms have seeds, seed.

        Example:
            >>> Cell("pitome-released-bert", 0.8).beside("tome").key
            'tome@0.8/off'
            >>> Cell("pitome-hidden", 0.9).beside("tome").key
            'tome-hidden@0.9'
        """
        if self.keep is None or self.arm not in ARMS:
            return None
        own_settings = ARMS[self.arm].settings
        if self.proportional is not None:
            own_settings["proportional"] = {self.proportional}
        if any(len(values) > 1 for values in own_settings.values()):
            return None  # its layers differ from one another
        for arm in ARMS.values():
            arm_settings = arm.settings
            same_way = arm.method == ARMS[rival].method and arm.switches == ARMS[rival].switches
            if same_way and all(arm_settings[name] == own_settings[name] for name in ("metric", "insertion")):
                off = own_settings["proportional"] == {False}
                seed = self.seed if arm.seeds > 1 else None
                return replace(self, arm=arm.name, seed=seed, proportional=False if off else self.proportional)
        return None


def checked(arms: Mapping[str, Any] | list[str] | tuple[str, ...], keeps: tuple[float, ...] | list[float],
            known: tuple[str, ...] | list[str], *, least: float = 0.0) -> list[str]:
    """The arms without the whole model, which is always run.

    Raises:
        ValueError: an arm that is not ``known``, or a keep ratio that is below ``least``, not above 0 or not below 1.
    """
    chosen = [name for name in arms if name != WHOLE]
    if unknown := [name for name in chosen if name not in known]:
        raise ValueError(f"no method {unknown[0]!r} in this experiment; there are {', '.join(known)}")
    if wrong := [keep for keep in keeps if not (0 < keep < 1 and keep >= least)]:
        raise ValueError(f"keep {wrong[0]} must lie between {least:g} and 1; the whole model (keep 1) is always run")
    return chosen


def among(listed: Iterable[Cell], arms: Collection[str], keeps: Collection[float] | None) -> list[Cell]:
    """Those of the cells that are of these arms, and of these keep ratios if they have one (None: all); the whole
    model's always."""
    return [
        cell for cell in listed
        if cell.arm == WHOLE or (cell.arm in arms and (not keeps or cell.keep is None or cell.keep in keeps))
    ]


def seeds_of(name: str, most: int = SEEDS) -> list[int | None]:
    """The seeds that an arm is run with, ``most`` of them; [None] for an arm that does not draw at random."""
    arm = ARMS[name]
    return list(range(min(most, arm.seeds))) if arm.seeds > 1 else [None]


def with_counterparts(cells: Iterable[Cell], names: Collection[str], rival: str = "tome") -> list[Cell]:
    """The cells, each once, and behind them what they may be compared with (`Cell.beside`), as far as ``names`` has it.

    Example:
        >>> [cell.key for cell in with_counterparts([Cell("pitome-released-bert", 0.8)], ["tome"])]
        ['pitome-released-bert@0.8', 'tome@0.8/off']
    """
    cells = list(cells)
    others = [other for cell in cells if (other := cell.beside(rival)) is not None and other.arm in names]
    return list(dict.fromkeys([*cells, *others]))
