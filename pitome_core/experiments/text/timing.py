"""Measured time of a merged BERT by length of the text, as ratios to the whole model within one process."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pitome_core.experiments import settings
from pitome_core.experiments.models import bert
from pitome_core.experiments.records import locking, results
from pitome_core.experiments.records.cells import Cell
from pitome_core.experiments.records.fingerprint import code_of
from pitome_core.experiments.records.statistics import quartiles
from pitome_core.experiments.runs import clock, grid
from pitome_core.experiments.runs.timings import Timings
from pitome_core.experiments.text import classifiers
from pitome_core.experiments.text import grid as text_grid

UNITS = "seconds per call of the whole batch"
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


def measure(length: int, seconds: float, batch: int = BATCH) -> dict[str, Any]:
    """One length: for every cell quartiles of seconds per batch, its speed-up, and the speed-up that the counts imply.

    The cells take turns. All texts of the batch have that length. Their words are random, which does not change the
    time.
    """
    device = settings.device()
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(1000, 20000, (batch, length), generator=generator)
    ids[:, 0], ids[:, -1] = 101, 102  # [CLS] and [SEP]
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
                for _ in range(clock.WARM_UP):
                    call()
            samples, _ = clock.alternate(calls, clock.stopwatch(device), repeats=25, seconds=seconds)
    variants = {
        key: {"seconds": quartiles(values), "speedup": clock.speedup(samples[grid.WHOLE], values),
              "implied": round(macs[grid.WHOLE] / macs[key], 5)}
        for key, values in samples.items()
    }
    return {"tokens": length, "batch": batch, "variants": variants}


def _once(model: torch.nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return classifiers.pooled(model(input_ids=ids, attention_mask=mask).last_hidden_state, mask)


def run(output: Path | None = None, lengths=LENGTHS, seconds: float | None = None, batch: int = BATCH) -> int:
    """Measure the lengths that ``text-time.json`` lacks. The file is written after every length."""
    on_gpu = settings.device().type == "cuda"
    folder = output or results.writable(committed=on_gpu) / ("gpu" if on_gpu else settings.profile())
    path = folder / "text-time.json"
    with locking.alone(path):
        record = Timings(path, "text-time", UNITS, code_of(measure))
        for length in lengths:
            key = f"{length} tokens, batch {batch}"
            if key not in record:
                record.add(key, measure(length, seconds or (1.5 if on_gpu else 10.0), batch))
            variants = record.cells[key]["variants"]
            speedups = [f"{name} {variant['speedup'][1]:.2f}" for name, variant in variants.items()]
            print(f"{length} tokens: {'  '.join(speedups)}", flush=True)
    return 0
