"""Measured time of a merged BERT by length of the text, as ratios to the whole model within one process."""

from __future__ import annotations

import json
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch

from pitome_core.experiments import settings
from pitome_core.experiments.cost import command as cost
from pitome_core.experiments.models import bert
from pitome_core.experiments.records import results
from pitome_core.experiments.records.cells import Cell
from pitome_core.experiments.runs import grid
from pitome_core.experiments.text import classifiers
from pitome_core.experiments.text import grid as text_grid

FORMAT = 1
LENGTHS = (16, 32, 64, 128, 256)  # tokens; longer texts are cut
BATCH = 32
METHODS = ("pitome", text_grid.RELEASED, "energy-sorted", "tome", "random-merge")


def cells() -> list[Cell]:
    """The whole model, and five methods at keep .8 and .6 in the first three layers; .8 in all."""
    chosen = [Cell(grid.WHOLE)]
    for name in METHODS:
        seed = 0 if name.startswith("random") else None
        chosen += [Cell(name, keep, seed=seed) for keep in (0.8, 0.6)]
        if name != text_grid.RELEASED:
            chosen.append(Cell(name, 0.8, seed=seed, every_layer=True))
    return chosen


def measure(length: int, seconds: float, batch: int = BATCH) -> dict:
    """One length: quartiles of seconds per batch of every cell, their speed-up, and what the counts imply.

    The variants take turns. All texts of the batch have that length; the words are random, which a clock cannot see.
    """
    device = settings.device()
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(1000, 20000, (batch, length), generator=generator)
    ids[:, 0], ids[:, -1] = 101, 102
    ids, mask = ids.to(device), torch.ones_like(ids).to(device)
    calls, macs = {}, {}
    with ExitStack() as stack:
        bare = bert.sentence_encoder()
        for cell in cells():
            model = stack.enter_context(text_grid.applied(cell, bert.sentence_encoder()))
            calls[cell.key] = partial(_once, model, ids, mask)
            macs[cell.key] = text_grid.macs(cell, bare, [length])[0]
        with torch.inference_mode():
            for call in calls.values():
                for _ in range(cost.WARM_UP):
                    call()
            samples, _ = cost.alternate(calls, cost.stopwatch(device), repeats=25, seconds=seconds, shortest=0.02)
    found = {}
    whole = samples[grid.WHOLE]
    for key, values in samples.items():
        ratios = [w / v for w, v in zip(whole, values, strict=True)]
        found[key] = {"seconds": cost.quartiles(values), "speedup": cost.quartiles(ratios),
                      "implied": round(macs[grid.WHOLE] / macs[key], 5)}
    return found


def _once(model: torch.nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return classifiers.pooled(model(input_ids=ids, attention_mask=mask).last_hidden_state, mask)


def run(output: Path | None = None, lengths=LENGTHS, seconds: float | None = None, batch: int = BATCH) -> int:
    """Measure what the file lacks and write it after every length: ``text-time.json``."""
    device = settings.device()
    seconds = seconds or (1.5 if device.type == "cuda" else 10.0)
    on_gpu = device.type == "cuda"
    folder = output or results.writable(committed=on_gpu) / ("gpu" if on_gpu else settings.profile())
    path = folder / "text-time.json"
    record = {"format": FORMAT, "experiment": "text-time", "batch": batch, "run": results.provenance(0), "lengths": {}}
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        same = all(found["run"].get(n) == record["run"].get(n) for n in ("code", "device", "packages", "threads"))
        record["lengths"] = found["lengths"] if same else {}
    for length in lengths:
        if str(length) not in record["lengths"]:
            record["lengths"][str(length)] = measure(length, seconds, batch)
            results.write_atomically(path, json.dumps(record, indent=1) + "\n")
        line = "  ".join(f"{k} {v['speedup'][1]:.2f}" for k, v in record["lengths"][str(length)].items())
        print(f"{length} tokens: {line}", flush=True)
    return 0
