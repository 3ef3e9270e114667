"""All the evidence of a claim and the verdict that follows from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ledger import counts, evidence
from ledger.evidence import Comparison

UNSEEN = "not needed"  # the split of exact counts and of synthetic tokens


@dataclass(frozen=True)
class Judged:
    """A claim's comparisons (on record or pending), counts `(row, Count, says)`, live evidence of its own, verdict."""

    comparisons: tuple[Comparison, ...]
    counted: tuple[tuple[dict, counts.Count, str], ...]
    live: tuple[dict, ...]
    verdict: str
    dev: bool

    @property
    def done(self) -> list[Comparison]:
        return [one for one in self.comparisons if one.found]

    @property
    def shown(self) -> str:
        """``✓ holds here``, with ``(dev)`` where it rests on dev alone."""
        return f"{evidence.VERDICTS[self.verdict]} {self.verdict}{' (dev)' if self.dev else ''}"


def of_its_own(claim: dict, model: str | None, data: str) -> bool:
    """Whether evidence counts for this claim: for a table claim, only from the models and data that it names."""
    scope = claim["scope"]
    return claim["kind"] == "mechanism" or ((model is None or model in scope["model"]) and data in scope["data"])


def judge(claim: dict, root: Path, uncommitted: list[str] = ()) -> Judged:
    """The evidence of a claim (with its grounds written into the live part) and its verdict.

    A table claim is "not run" as long as a model or data that it names has no evidence.
    """
    recorded = evidence.comparisons(claim.get("compares", []), uncommitted, root)
    recorded = [one for one in recorded if of_its_own(claim, evidence.model_of(one.about, root), one.about["data"])]
    rows = claim.get("counts", {"models": []})
    counted = [(row, count := counts.saved(row["timm"], row["keep"]), count.says(rows["at_least"]))
               for row in rows["models"]]
    live = [entry for entry in claim["evidence"] if of_its_own(claim, entry["model"], entry["data"])]
    heard = [(one.about.get("split", "test"), one.heard) for one in recorded if one.found]
    heard += [(entry["split"], entry["live"]["says"]) for entry in live]
    heard += [(UNSEEN, says) for _, _, says in counted]
    verdict, dev = evidence.verdict(heard)
    if claim["kind"] == "table":
        done = [one for one in recorded if one.found]
        seen = {"model": {evidence.model_of(one.about, root) for one in done} | {entry["model"] for entry in live},
                "data": {one.about["data"] for one in done} | {entry["data"] for entry in live}}
        seen["model"] |= {row["name"] for row, _, _ in counted}
        seen["data"] |= {rows["data"]} if counted else set()
        if any(set(claim["scope"][what]) - seen[what] for what in ("model", "data")):
            verdict, dev = "not run", False
    return Judged(tuple(recorded), tuple(counted), tuple(live), verdict, dev)
