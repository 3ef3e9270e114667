"""Every setting of a record of the law beside ToMe in the same setting, and beside itself with shuffled energies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pitome_core.experiments.records.cells import ARMS, Cell
from pitome_core.experiments.records.results import Record
from pitome_core.experiments.records.statistics import Difference


@dataclass(frozen=True)
class Compared:
    """One cell with energy in it.

    Attributes:
        key: of the cell.
        to_tome: its outcome minus that of ToMe with the same metric, attention and tokens.
        to_shuffled: minus that of the same arm with shuffled energies, mean over seeds; None: not run.
    """

    key: str
    to_tome: Difference
    to_shuffled: Difference | None

    @property
    def beats_both(self) -> bool:
        """Whether both intervals lie above zero: what a preset of its own needs."""
        return self.to_tome.side == 1 and self.to_shuffled is not None and self.to_shuffled.side == 1


def compared(record: Record, outcome: str) -> list[Compared]:
    """All cells of a record with energy in them that have a counterpart on it, in the record's order."""
    rows = []
    for key, about in record.cells.items():
        cell = Cell.of(about)
        rival = record.rival_of(key)
        if cell.arm not in ARMS or ARMS[cell.arm].kind != "pitome" or rival is None:
            continue
        control = record.rival_of(key, "shuffled")
        shuffled = None if control is None else record.difference(key, control, outcome)
        rows.append(Compared(key, record.difference(key, rival, outcome), shuffled))
    return rows


def best(rows: Sequence[Compared]) -> Compared | None:
    """The setting that beats ToMe and itself with shuffled energies by most, or None: the rule of the protocol."""
    winners = [row for row in rows if row.beats_both]
    return max(winners, key=lambda row: row.to_tome.mean, default=None)


def largest_gain_left(rows: Sequence[Compared]) -> float:
    """The largest gain over ToMe that no interval of these settings excludes."""
    return max(row.to_tome.high for row in rows)
