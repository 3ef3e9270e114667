"""Where the keys decide: the phase diagram of synthetic tokens, and the layers of real models in it.

`python -m pitome_core.experiments law --phase` writes ``law-phase.json``: the diagram, a row for every setting, and the
layers, a row each, with what PiToMe and ToMe do to them and what the diagram predicts.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.interpolate import LinearNDInterpolator, NearestNDInterpolator
from scipy.stats import spearmanr
from torch import Tensor, nn

import pitome_core as pc
from pitome_core.experiments.data import photos, sentences
from pitome_core.experiments.data.pictures import preprocess
from pitome_core.experiments.law import synthetic
from pitome_core.experiments.models import bert, vit
from pitome_core.experiments.models.layer_keys import layer_keys
from pitome_core.experiments.records import files, provenance, results
from pitome_core.experiments.records.fingerprint import code_of
from pitome_core.experiments.spectra.layers import drops

FORMAT = 1
NAME = "law-phase.json"
COMMON = (0.0, 0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.75, 0.85, 0.92)
SPREAD = (0.15, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0)
ISOLATED = (0.05, 0.2, 0.4)
MARGINS = (0.9, 0.45, 0.1)
ARMS = ("pitome", "gate-2", "energy-sorted", "pitome-shuffled", "pitome-centred", "tome")
TRIALS = 60
PHOTOGRAPHS, SENTENCES, FEWEST = 24, 100, 24  # of dev; the least number of tokens of a sentence
TEXT_KEEP = 0.8
PAIR = ("pitome", "tome")


def minutes() -> float:
    """About how long `run` takes on one core, from a setting of the diagram."""
    began = time.perf_counter()
    synthetic.measure(synthetic.Setting(COMMON[1], SPREAD[1]), ARMS, TRIALS)
    settings = len(COMMON) * len(SPREAD) * len(ISOLATED) * len(MARGINS)
    return 2.5 * settings * (time.perf_counter() - began) / 60  # the layers take about one and a half times as long


def diagram(trials: int = TRIALS) -> Iterator[dict[str, Any]]:
    """A row for every setting: what it is, what its tokens offer, every arm's outcomes as (mean, standard error)."""
    for common, spread, isolated, margin in itertools.product(COMMON, SPREAD, ISOLATED, MARGINS):
        setting = synthetic.Setting(common, spread, isolated, margin)
        values = synthetic.measure(setting, ARMS, trials)
        row = {"common": common, "spread": spread, "isolated": isolated, "margin": margin}
        row |= {name: round(float(values.pop(name).mean()), 4) for name in ("cosine", "tightness")}
        for name, value in values.items():
            row[name] = [float(f"{number:.4g}") for number in (value.mean(), value.std() / len(value) ** 0.5)]
        yield row


def predicted(cosine: float, tightness: float, like: synthetic.Setting, trials: int = 20) -> float:
    """The `advantage` of PiToMe over ToMe on synthetic tokens with this mean cosine and tightness.

    ``like`` gives margin, number of tokens, channels and keep ratio; the rest is interpolated between the settings
    that offer about the same, linearly, or taken from the nearest one outside them.
    """
    places, advantages = [], []
    for common, spread in itertools.product(COMMON, SPREAD):
        setting = synthetic.Setting(common, spread, like.isolated, like.margin, like.tokens, like.width, like.keep)
        values = synthetic.measure(setting, PAIR, trials)
        places.append([float(values["cosine"].mean()), float(values["tightness"].mean())])
        advantages.append(advantage(*(float(values[f"loss/{arm}"].mean()) for arm in PAIR)))
    here = [[cosine, tightness]]
    inside = float(LinearNDInterpolator(places, advantages)(here)[0])
    return inside if np.isfinite(inside) else float(NearestNDInterpolator(places, advantages)(here)[0])


def noise_of(tightness: np.ndarray, tokens: int, width: int, trials: int = 20) -> np.ndarray:
    """The spread at which synthetic tokens are as tight: where layers stand in the diagram, ``(n,)``."""
    settings = [synthetic.Setting(0.3, spread, tokens=tokens, width=width) for spread in SPREAD]
    tight = [float(synthetic.offered(synthetic.draw(setting, trials)[0])["tightness"].mean()) for setting in settings]
    return np.exp(np.interp(-np.asarray(tightness), [-value for value in tight], np.log(SPREAD)))


def advantage(first: float, second: float) -> float:
    """How much less the first loses than the second: the difference over their mean, from -2 to 2."""
    return 2 * (second - first) / (second + first)


class RealLayers:
    """The layers of one model on its items: a batch of images, or one sentence at a time.

    Attributes:
        name: of the model.
        model: a ViT of timm or a BERT.
        inputs: batches of images ``(B, 3, s, s)``, or token ids ``(1, T)``.
        keep: share of the tokens that stays in the layer that merges.
    """

    def __init__(self, name: str, model: nn.Module, inputs: list[Tensor], keep: float):
        self.name, self.model, self.inputs, self.keep = name, model, inputs, keep
        self.read = [layer_keys(model, batch) for batch in inputs]
        self.depth = len(self.read[0].keys)

    def _last(self, batch: Tensor) -> Tensor:
        with torch.no_grad():
            if hasattr(self.model, "blocks"):
                return self.model.forward_features(batch)
            return self.model(input_ids=batch, attention_mask=torch.ones_like(batch)).last_hidden_state

    def loss(self, arm: str, layer: int) -> Tensor:
        """``(items,)``: 1 - cosine of un-merged tokens to the whole model's, mean over tokens, one layer merging."""
        keeps = [1.0] * self.depth
        keeps[layer] = self.keep
        losses = []
        with pc.patched(self.model, arm, keeps):
            for batch, read in zip(self.inputs, self.read, strict=True):
                losses.append(drops(self._last(batch), read.last)[1] / 1000)
        return torch.cat(losses)

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row for every layer: what it offers, the losses of PiToMe and ToMe, and the prediction."""
        margins = pc.margin_schedule(self.depth)
        for layer, margin in enumerate(margins):
            metrics = [read.keys[layer] for read in self.read]
            offers = [synthetic.offered(metric) for metric in metrics]
            cosine, tightness = (float(torch.cat([o[name] for o in offers]).mean()) for name in ("cosine", "tightness"))
            tokens = round(float(np.mean([metric.shape[1] for metric in metrics])))
            like = synthetic.Setting(0, 0, margin=margin, tokens=tokens, width=metrics[0].shape[2], keep=self.keep)
            losses = {arm: self.loss(arm, layer) for arm in PAIR}
            yield {
                "model": self.name, "layer": layer, "margin": round(margin, 4), "tokens": tokens, "keep": self.keep,
                "width": metrics[0].shape[2],
                "cosine": round(cosine, 4), "tightness": round(tightness, 4),
                "loss": {arm: [round(value, 7) for value in values.tolist()] for arm, values in losses.items()},
                "advantage": round(advantage(*(float(losses[arm].mean()) for arm in PAIR)), 4),
                "predicted": round(predicted(cosine, tightness, like), 4),
            }


def real_layers() -> Iterator[RealLayers]:
    """The ViT at 224 px, the tower of the LLaVA (the same weights at 168 px) and MiniLM, on photographs and sentences
    of dev."""
    pictures = list(photos.photographs(photos.photographs_of("dev")[:PHOTOGRAPHS]).values())
    for name, side in (("ViT-S/14, 224 px", 224), ("LLaVA tower, 168 px", 168)):
        images = preprocess(pictures, side)
        yield RealLayers(name, vit.vit_small(side), list(images.split(8)), 0.9)
    tokenizer = bert.sentence_tokenizer()
    pool = [sentence.text for sentence in sentences.sentences("movies", "dev", neutral=True)]
    texts = [text for text, n in zip(pool, bert.token_counts(tokenizer, pool), strict=True) if n >= FEWEST][:SENTENCES]
    ids = [tokenizer(text, padding=False, return_tensors="pt")["input_ids"] for text in texts]
    yield RealLayers("MiniLM", bert.sentence_encoder(), ids, TEXT_KEEP)


def run(folder: Path, *, committed: bool = False, allow_modified: bool = False) -> Path:
    """Compute the diagram and the layers, and write ``law-phase.json`` into the folder.

    Raises `RecordError` for a ``committed`` record if the package differs from the commit, unless ``allow_modified``.
    """
    origin = provenance.of_run(code_of(__name__), test=committed, allow_modified=allow_modified)
    rows = list(diagram())
    layers = [row for model in real_layers() for row in model.rows()]
    listed = {
        name: "[\n" + ",\n".join(f"  {files.one_line(row)}" for row in part) + "\n ]"
        for name, part in (("diagram", rows), ("layers", layers))
    }
    path = folder / NAME
    about = {"format": FORMAT, "experiment": "law", "task": "phase", "protocol": "law-1", "trials": TRIALS}
    parts = {name: files.one_line(value) for name, value in {**about, "run": files.plain(origin)}.items()} | listed
    files.write_atomically(path, "{\n" + ",\n".join(f' "{name}": {text}' for name, text in parts.items()) + "\n}\n")
    return path


def agreement(layers: list[Mapping[str, Any]]) -> float:
    """Spearman's rank correlation, over layers, of the predicted and the measured advantage of PiToMe over ToMe."""
    return float(spearmanr([row["predicted"] for row in layers], [row["advantage"] for row in layers]).statistic)


def load(tier: str = "embedded") -> dict[str, Any]:
    """The committed ``law-phase.json``. Raises `files.RecordError` where it cannot be read."""
    return files.read_json(results.folder() / tier / NAME)
