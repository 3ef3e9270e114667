"""ImageNet-1k with merged timm models, off the shelf: the paper's Table 5, as the paper tier of `vision` runs it.

Every image of the validation set is scored. Grey and CMYK images are converted, none is dropped.

Of the MAE models timm has the pretraining weights alone (``vit_*.mae``, no classifier: ``num_classes=0`` in timm's
table). The fine-tuned ones are three files of the MAE authors, named in `PUBLISHED`, for ``--checkpoint``.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import pitome_core as pc
from pitome_core.experiments.records import results
from pitome_core.experiments.records.cells import Cell
from pitome_core.experiments.runs import decoding, grid, sharded, shards, summary
from pitome_core.experiments.runs.sharded_task import UNREADABLE, ShardedTask, joined
from pitome_core.experiments.runs.shards import Refused, Unit
from pitome_core.experiments.vision.images import Images, load_images

PROTOCOL = "vision-1"  # the grid in book/protocol.md
TOP = 5
MISSING = "-"  # in a part's string of outcomes, in the place of an image that could not be read


@dataclass(frozen=True)
class Published:
    """A model of the paper: its name in timm, and what timm's entry does not say about the weights that were scored.

    ``checkpoint`` is the file to pass as ``--checkpoint`` where timm has no classifier; ``data`` overrides the
    preprocessing of timm's entry.
    """

    name: str
    args: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: str = ""


# Global pooling, and 224 of 256 pixels cropped: main_finetune.py --global_pool and util/datasets.py of the MAE authors.
_MAE = {"args": {"global_pool": "avg"}, "data": {"crop_pct": 224 / 256}}
PUBLISHED = {
    "deit-t": Published("deit_tiny_patch16_224.fb_in1k"),
    "deit-s": Published("deit_small_patch16_224.fb_in1k"),
    "deit-b": Published("deit_base_patch16_224.fb_in1k"),
    "augreg-b": Published("vit_base_patch16_224.augreg_in21k_ft_in1k"),
    "augreg-l": Published("vit_large_patch16_224.augreg_in21k_ft_in1k"),
    "mae-b": Published("vit_base_patch16_224.mae", **_MAE, checkpoint="mae_finetuned_vit_base.pth"),
    "mae-l": Published("vit_large_patch16_224.mae", **_MAE, checkpoint="mae_finetuned_vit_large.pth"),
    "mae-h": Published("vit_huge_patch14_224.mae", **_MAE, checkpoint="mae_finetuned_vit_huge.pth"),
}


@dataclass(frozen=True)
class ImageClassifier:
    """A model ready to be scored: in eval mode on its device, with its preprocessing and the digest of its weights."""

    slug: str
    name: str
    model: nn.Module
    data: Mapping[str, Any]
    args: Mapping[str, Any]
    digest: str


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the paper tier."""
    group = parser.add_argument_group(
        "paper tier",
        f"ImageNet's validation set is {shards.SCORED_WHOLE}, image by image the same. "
        "An image that cannot be read is named, counted and left out of the accuracy; the run goes on, and the exit "
        "status is 1 at its end (0: all is well, 2: refused). --again scores once more, say, when the file was mended.",
    )
    files = ", ".join(known.checkpoint for known in PUBLISHED.values() if known.checkpoint)
    group.add_argument("--model", nargs="+", default=["deit-s"], metavar="MODEL",
                       help=f"of {', '.join(PUBLISHED)}, or timm's name, or local-dir:FOLDER in timm's format "
                       "(default: deit-s)")
    group.add_argument("--data", metavar="WHERE",
                       help="a folder with one folder of images per class, or hub:NAME[:SPLIT], a data set of the "
                       "Hugging Face hub (SPLIT: validation)")
    group.add_argument("--class-map", type=Path, metavar="FILE",
                       help="classes in the model's order, one per line, for data that have only some of them")
    group.add_argument("--checkpoint", type=Path, metavar="FILE",
                       help=f"weights to load into --model; MAE needs its fine-tuned ones: {files}")
    group.add_argument("--model-args", nargs="+", default=[], metavar="NAME=VALUE",
                       help="passed to timm.create_model, e.g. global_pool=avg")
    shards.add_arguments(group, "images")


def run(args: argparse.Namespace) -> int:
    """Score what was asked for; the exit status, as `sharded.run` gives it."""
    def load_task(args: argparse.Namespace, device: torch.device, images: Images, spec: str) -> ShardedTask:
        classifier = load_model(spec, images.classes, args.checkpoint, _model_args(args.model_args), device)
        return ImageClassification(args, device, images, classifier)

    return sharded.run(args, _load_data, load_task)


def _load_data(args: argparse.Namespace) -> Images:
    if args.checkpoint is not None and len(args.model) > 1:
        raise Refused(f"one --checkpoint for {len(args.model)} models: run them one by one")
    return load_images(args.data, args.class_map)


# --- models


def load_model(
    spec: str, classes: int, checkpoint: Path | None, model_args: Mapping[str, Any], device: torch.device
) -> ImageClassifier:
    """A pretrained classifier of timm by the paper's short name, timm's name or ``local-dir:FOLDER``.

    Raises:
        Refused: an unknown name, weights that cannot be had, a model without classifier or with another number of
            classes than `classes`, one whose tokens this package cannot merge.
    """
    import timm

    short = next((key for key, known in PUBLISHED.items() if spec in (key, known.name)), None)
    known = PUBLISHED[short] if short else Published(spec)
    given = {**known.args, **model_args}
    _check_name(known, short or spec, checkpoint)
    if checkpoint is None:
        how = {"pretrained": True}
    else:
        how = {"pretrained": False, "checkpoint_path": str(checkpoint), "num_classes": classes}
    try:
        model = timm.create_model(known.name, **how | given)
    except Exception as error:  # hub, network, file system, names of arguments, shapes: many libraries' errors
        raise Refused(
            f"{spec} could not be loaded ({type(error).__name__}: {error}): check the name, --model-args, the network "
            "and that the weights fit; a model that lies on disk is passed as local-dir:FOLDER"
        ) from error
    trained = model.pretrained_cfg.get("num_classes")
    if checkpoint is None and model.num_classes != trained:
        # timm then leaves the classifier at random.
        raise Refused(f"{spec} was trained for {trained} classes, not {model.num_classes}: leave num_classes out")
    if model.num_classes == 0 or isinstance(model.get_classifier(), nn.Identity):
        raise Refused(_no_classifier(known, short or spec))
    if model.num_classes != classes:
        raise Refused(
            f"{spec} has {model.num_classes} classes and the data have {classes}: pass the data that it was trained "
            "for, or, if they hold only some of its classes, --class-map FILE with all of them in its order"
        )
    try:
        pc.schedule(model, keep=1.0)
    except (TypeError, ValueError) as error:
        raise Refused(f"{spec} cannot be merged: {error}") from error
    digest = shards.weights_digest(model)
    data = timm.data.resolve_model_data_config(model) | dict(known.data)
    if model.patch_embed.img_size:  # --model-args img_size=... is not in timm's description of the weights
        data["input_size"] = (data["input_size"][0], *model.patch_embed.img_size)
    slug = short or re.sub(r"[^\w.]+", "-", Path(spec.partition(":")[2] or spec).name).strip("-")
    public = f"local-dir:{slug}" if spec.startswith("local-dir:") else known.name
    return ImageClassifier(slug, public, model.eval().to(device), data, given, digest)


def _check_name(known: Published, called: str, checkpoint: Path | None) -> None:
    """Refuse, before anything is downloaded, what cannot work."""
    import timm

    if checkpoint is not None and not checkpoint.is_file():
        raise Refused(f"no checkpoint {checkpoint}")
    source, _, folder = known.name.partition(":")
    if source == "local-dir":
        if not (Path(folder) / "config.json").is_file():
            raise Refused(f"no {folder}/config.json: local-dir: needs a folder that timm.models.save_for_hf wrote")
        return
    if folder:  # hf-hub:
        return
    architecture, _, tag = known.name.partition(".")
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(called, [*PUBLISHED, *timm.list_models(), *timm.list_pretrained()], n=3)
        raise Refused(
            f"no model {called!r} in timm: pass one of {', '.join(PUBLISHED)}, a name of timm.list_pretrained() or "
            f"local-dir:FOLDER{', for example ' + ', '.join(near) if near else ''}"
        )
    if tag and known.name not in timm.list_pretrained(f"{architecture}.*"):
        tags = ", ".join(timm.list_pretrained(f"{architecture}.*")) or "none"
        raise Refused(f"timm has no weights {tag!r} for {architecture}; it has {tags}")
    config = timm.get_pretrained_cfg(known.name, allow_unregistered=True) if checkpoint is None else None
    if config is not None and config.num_classes == 0:
        raise Refused(_no_classifier(known, called))


def _no_classifier(known: Published, called: str) -> str:
    file = known.checkpoint or "FILE"
    return (
        f"{called} has no classifier (its weights, {known.name}, are of pretraining): download fine-tuned ones and "
        f"pass --checkpoint {file}" + ("" if known.args else ", with --model-args that fit, such as global_pool=avg")
    )


def _model_args(words: Sequence[str]) -> dict[str, Any]:
    """``["global_pool=avg", "depth=3"]`` -> ``{"global_pool": "avg", "depth": 3}``."""
    arguments = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise Refused(f"--model-args takes NAME=VALUE, got {word!r}")
        try:
            arguments[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            arguments[name] = value
    return arguments


# --- scoring


class ImageClassification(ShardedTask):
    """Whether a classifier's first guess is right (``correct``), and whether one of its first five is (``top5``)."""

    experiment, protocol, split = "vision", PROTOCOL, "validation"

    def __init__(self, args: argparse.Namespace, device: torch.device, images: Images, classifier: ImageClassifier):
        super().__init__(args, device)
        self.images, self.classifier, self.model = images, classifier, classifier.model
        self.name, self.what = f"imagenet-{classifier.slug}", f"{len(images.targets)} images"
        self.items = {"id": range(len(images.targets))}
        self.about = {
            "model": classifier.name, "model_args": dict(classifier.args), "weights": classifier.digest,
            "preprocessing": dict(classifier.data),
            "data": {"name": images.name, "images": len(images.targets), "classes": images.classes,
                     "list": images.digest},
        }
        self.cells = self._cells()

    def _cells(self) -> list[Cell]:
        _, height, width = self.classifier.data["input_size"]
        size = {"img_size": height if height == width else None, "patch": self.model.patch_embed.patch_size[0]}
        with shards.refusing():
            return grid.cells(self.args.methods, self.args.keep or grid.KEEPS, **size)

    def applied(self, piece: Cell) -> AbstractContextManager[nn.Module]:
        return grid.applied(piece, self.model)

    def cost(self, cell: Cell) -> Mapping[str, Any]:
        return grid.cost(cell, self.model)

    def batches(self, units: Sequence[Unit]) -> Iterator[decoding.Batch]:
        from timm.data import create_transform

        data, transforms = self.classifier.data, {}
        for pixels in {unit.piece.pixels for unit in units}:
            size = {} if pixels is None else {"input_size": (data["input_size"][0], pixels, pixels)}
            transforms[pixels] = create_transform(**{**data, **size}, is_training=False)
        places = (
            [(number, unit.piece.pixels) for number in batch]
            for unit in units for batch in unit.batches(self.args.batch_size)
        )
        return decoding.batches(self.images.reader, transforms, places, self.args, self.device)

    def score(self, running: nn.Module, unit: Unit, batches: Iterator[decoding.Batch]) -> dict[str, Any]:
        first, top, unreadable = [MISSING] * len(unit), [MISSING] * len(unit), {}
        for _ in unit.batches(self.args.batch_size):
            numbers, pixels, reasons = next(batches)
            for number, why in reasons.items():
                name = self.images.filename(number)
                unreadable[name] = f"cannot read {name} ({why})"
            if pixels is None:
                continue
            with self.autocast():
                logits = running(pixels.to(self.device, non_blocking=True))  # (B, classes)
            best = logits.float().topk(min(TOP, self.images.classes)).indices.cpu().numpy()  # (B, 5)
            right = best == self.images.targets[numbers][:, None]
            for number, hits in zip(numbers, right, strict=True):
                first[number - unit.start], top[number - unit.start] = str(int(hits[0])), str(int(hits.any()))
        return {"correct": "".join(first), "top5": "".join(top), UNREADABLE: unreadable}

    def assemble(self, cell: Cell, parts: Sequence[Sequence[Mapping]]) -> tuple[dict[str, Any], dict[str, Any]]:
        outcomes = {
            name: np.array([np.nan if letter == MISSING else int(letter) for letter in joined(parts[0], name)])
            for name in ("correct", "top5")
        }
        scored = int((~np.isnan(outcomes["correct"])).sum())
        top1 = round(float(np.nanmean(outcomes["correct"])), 6) if scored else None
        return {"top1": top1, "scored": scored}, {name: results.pack(values) for name, values in outcomes.items()}

    def table(self, record: results.Record) -> str:
        """Cost, top-1 with its interval, top-5, and paired differences in top-1, in points."""
        columns = {"GMACs": lambda key: f"{record.about(key)['gmacs']:.3f}"} | summary.share(record) | {
            "top-1 %": summary.percent(record, "correct"), "top-5 %": summary.percent(record, "top5"),
        }
        return summary.table(record, self.cells, columns, summary.points(record, "correct"), "top-1")
