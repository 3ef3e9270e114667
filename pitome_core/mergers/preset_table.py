"""Presets as data: what a published variant of PiToMe uses in each place that has a choice."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Preset:
    """One variant.

    Attributes:
        summary: one line.
        method: the method it configures.
        metric: what tokens are compared by: `keys`, `hidden` or `concat`.
        margin: (base, slope) of the margin in layer l of L: `base - slope * l / L`.
        proportional: whether keys count by token size in attention.
        options: the method's options.
    """

    summary: str
    method: str = "pitome"
    metric: str = "keys"
    margin: tuple[float, float] = (0.9, 0.9)
    proportional: bool = True
    options: dict[str, Any] = field(default_factory=dict)

    def margins(self, num_layers: int) -> list[float]:
        """The margin of every layer."""
        base, slope = self.margin
        return [base - slope * layer / num_layers for layer in range(num_layers)]


PRESETS = {
    "paper": Preset(
        summary="the method as the paper's text and equations define it",
        options={"kernel": "paper", "alpha": 1.0},
    ),
}


def presets() -> dict[str, Preset]:
    """The presets by name (a copy)."""
    return dict(PRESETS)
