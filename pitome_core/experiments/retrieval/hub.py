"""Flickr30k and MS-COCO with merged models of open_clip, off the shelf: the paper tier of `retrieval`.

Models: ViT-B-32, ViT-B-16, ViT-L-14, ViT-L-14-336, any other of open_clip whose image tower merges, or a folder in
open_clip's local format. Data: the test split of Karpathy's ``dataset_flickr30k.json`` (1,000 images, five captions
each) or ``dataset_coco.json`` (5,000 images, of whose five to seven captions the first five count, as is usual), or
captions in COCO's own format. Every image and every caption is a query. A picture that is missing or cannot be read is
an error, because a gallery without it is another task.

A part holds embeddings, because ranks need the whole gallery. A cell has two pieces, its images and its texts. Text
towers of CLIP are causal and do not merge, so all cells share one piece of texts, which is computed once. Where a model
has a BERT as text tower, cells merge in that tower and in both as well.

BLIP and ALBEF are left out. Their rankings are made in two steps: the contrastive towers give a short list, and a
cross-encoder that reads image and text together scores it anew. open_clip has neither the models nor the second step,
and in a cross-encoder the merged tokens are keys of the text's attention: that needs adapters, and checks, of its own.
"""

from __future__ import annotations

import argparse
import base64
import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import pitome_core as pc
from pitome_core.experiments.records import results
from pitome_core.experiments.records.cells import Cell
from pitome_core.experiments.retrieval import grid as retrieval_grid
from pitome_core.experiments.retrieval import recall, summary
from pitome_core.experiments.retrieval.captions import Captions, load_captions
from pitome_core.experiments.runs import decoding, grid, sharded, shards
from pitome_core.experiments.runs.sharded_task import ShardedTask
from pitome_core.experiments.runs.shards import Refused, Unit
from pitome_core.families import find_family

PROTOCOL = "retrieval-paper-2"
MODELS = ("ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336")  # of the paper: CLIP, with the weights of OpenAI
DATA = ("flickr30k", "coco")
TOWERS = ("vision", "text")


@dataclass(frozen=True)
class DualEncoderModel:
    """A model in eval mode on its device, with the preprocessing and the tokenizer that open_clip has for it.

    ``text_merges`` says whether the text tower is one whose tokens can be merged.
    """

    slug: str
    name: str
    model: nn.Module
    preprocess: Callable
    tokenizer: Callable[[Sequence[str]], Tensor]
    digest: str
    text_merges: bool


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the paper tier."""
    group = parser.add_argument_group("paper tier", f"One gallery, {shards.SCORED_WHOLE}.")
    group.add_argument("--model", nargs="+", default=["ViT-B-32"], metavar="MODEL",
                       help=f"of {', '.join(MODELS)}, another name of open_clip, or local-dir:FOLDER in its format "
                       "(default: ViT-B-32)")
    group.add_argument("--pretrained", default="openai", metavar="TAG",
                       help="which of open_clip's weights, or a file (default: %(default)s)")
    group.add_argument("--data", choices=DATA, default="flickr30k", help="(default: %(default)s)")
    group.add_argument("--annotations", type=Path, metavar="FILE",
                       help="Karpathy's dataset_flickr30k.json or dataset_coco.json, or captions in COCO's format")
    group.add_argument("--images", type=Path, metavar="FOLDER", help="the folder of the pictures")
    group.add_argument("--only", type=Path, metavar="FILE",
                       help="with captions in COCO's format: names of the pictures to take, one per line")
    shards.add_arguments(group, "images or captions")


def run(args: argparse.Namespace) -> int:
    """Score what was asked for; the exit status, as `sharded.run` gives it."""
    def load_data(args: argparse.Namespace) -> Captions:
        return load_captions(args.data, args.annotations, args.images, args.only)

    def load_task(args: argparse.Namespace, device: torch.device, captions: Captions, spec: str) -> ShardedTask:
        return GalleryRetrieval(args, device, captions, load_model(spec, args.pretrained, device))

    return sharded.run(args, load_data, load_task)


# --- models


def load_model(spec: str, pretrained: str, device: torch.device) -> DualEncoderModel:
    """A pretrained model of open_clip by its name and the tag of its weights, or ``local-dir:FOLDER``.

    Raises:
        Refused: an unknown name or tag, weights that cannot be had, one whose image tower cannot be merged.
    """
    try:
        import open_clip
    except ImportError:
        raise Refused("retrieval needs open_clip: pip install 'pitome-core[open-clip]'") from None
    source, _, folder = spec.partition(":")
    how: dict[str, Any] = {}
    if source == "local-dir":
        if not (Path(folder) / "open_clip_config.json").is_file():
            raise Refused(f"no {folder}/open_clip_config.json: local-dir: needs a folder in open_clip's local format")
    elif not folder:
        if spec not in open_clip.list_models():
            near = difflib.get_close_matches(spec, open_clip.list_models(), n=3)
            raise Refused(f"no model {spec!r} in open_clip: pass one of {', '.join(MODELS)}, another name of "
                          "open_clip.list_models() or local-dir:FOLDER"
                          + (f", for example {', '.join(near)}" if near else ""))
        known = open_clip.get_pretrained_cfg(spec, pretrained)
        if not known and not Path(pretrained).is_file():
            tags = ", ".join(open_clip.list_pretrained_tags_by_model(spec)) or "none"
            raise Refused(f"open_clip has no weights {pretrained!r} for {spec}; it has {tags}")
        # OpenAI's weights were trained with another GELU than open_clip's models have by default; it would only warn.
        how = {"pretrained": pretrained, "force_quick_gelu": bool((known or {}).get("quick_gelu"))}
    try:
        with torch.random.fork_rng(devices=[]):
            model, _, preprocess = open_clip.create_model_and_transforms(spec, **how, require_pretrained=True)
        tokenizer = open_clip.get_tokenizer(spec)
    except Exception as error:  # hub, network, file system, shapes: many libraries' errors
        raise Refused(
            f"{spec} could not be loaded ({type(error).__name__}: {error}): check the network, or pass a folder as "
            "local-dir:FOLDER"
        ) from error
    try:
        pc.schedule(model, keep=1.0)
    except (TypeError, ValueError) as error:
        raise Refused(f"{spec} cannot be merged: {error}") from error
    slug = re.sub(r"[^\w.]+", "-", Path(folder or spec).name).strip("-")
    tag = re.sub(r"[^\w.]+", "-", Path(pretrained).stem) if how else ""
    public = f"local-dir:{slug}" if source == "local-dir" else f"{spec}{', ' + tag if tag else ''}"
    text_merges = find_family(model).towers(model).get("text", "none") is None
    digest = shards.weights_digest(model)
    slug = f"{slug}-{tag}" if tag else slug
    return DualEncoderModel(slug, public, model.eval().to(device), preprocess, tokenizer, digest, text_merges)


# --- scoring


class GalleryRetrieval(ShardedTask):
    """The ``rank`` of the right text for every image, and of the right image for every text."""

    experiment, protocol, clusters = "retrieval", PROTOCOL, ("image",)

    def __init__(self, args: argparse.Namespace, device: torch.device, captions: Captions, dual: DualEncoderModel):
        super().__init__(args, device)
        self.captions, self.dual, self.model = captions, dual, dual.model
        images, texts = len(captions.files), len(captions.texts)
        self.name, self.what = f"{captions.name}-{dual.slug}", f"{images} images, {texts} captions"
        self.items = {
            "id": range(images + texts),
            "query": [recall.IMAGE] * images + [recall.TEXT] * texts,
            "image": [*range(images), *(row[0] for row in captions.answers)],
        }
        self.about = {
            "model": dual.name, "weights": dual.digest,
            "data": {"name": captions.name, "images": images, "captions": texts, "left_out": captions.left_out,
                     "list": captions.digest},
        }
        self.identity = {"preprocessing": str(dual.preprocess)}
        self.cells = self._cells()
        self.lengths = self._lengths()

    def _cells(self) -> list[Cell]:
        keeps = self.args.keep or grid.KEEPS
        more = {"text": keeps, "both": keeps} if self.dual.text_merges else {}
        with shards.refusing():
            return retrieval_grid.cells(self.args.methods, keeps, listed=retrieval_grid.PAPER_ARMS, **more)

    def _lengths(self) -> dict[int, int]:
        """How many captions have each number of tokens, for the cost. A causal tower runs its whole context."""
        if not self.dual.text_merges:
            return {getattr(self.model, "text", self.model).context_length: 1}
        ids = self.dual.tokenizer(list(self.captions.texts))  # (texts, context)
        return dict(Counter((ids != self.model.text.config.pad_token_id).sum(dim=1).tolist()))

    def pieces(self, cell: Cell) -> list[Cell]:
        """The images and the texts, each as the cell merges them."""
        return [retrieval_grid.side(cell, tower) for tower in TOWERS]

    def size(self, piece: Cell) -> int:
        return len(self.captions.files if piece.towers == "vision" else self.captions.texts)

    def applied(self, piece: Cell) -> AbstractContextManager[nn.Module]:
        return retrieval_grid.applied(piece, self.model)

    def cost(self, cell: Cell) -> Mapping[str, Any]:
        return retrieval_grid.cost(cell, self.model, self.lengths)

    def work(self, piece: Cell, cost: Mapping[str, Any]) -> float:
        return cost["gmacs_image" if piece.towers == "vision" else "gmacs_text"]

    def batches(self, units: Sequence[Unit]) -> Iterator[decoding.Batch]:
        places = (
            [(number, None) for number in batch]
            for unit in units if unit.piece.towers == "vision" for batch in unit.batches(self.args.batch_size)
        )
        pictures = decoding.PictureFiles(self.captions.files)
        return decoding.batches(pictures, {None: self.dual.preprocess}, places, self.args, self.device)

    def score(self, running: nn.Module, unit: Unit, batches: Iterator[decoding.Batch]) -> dict[str, Any]:
        """Embeddings ``(items, C)`` of unit length, as text."""
        encode = self._images if unit.piece.towers == "vision" else self._texts
        with self.autocast():
            embeddings = torch.cat([encode(running, batch, batches) for batch in unit.batches(self.args.batch_size)])
        embeddings = nn.functional.normalize(embeddings.float(), dim=1).cpu()  # (items, C)
        text = base64.b64encode(embeddings.numpy().astype("<f4").tobytes()).decode("ascii")
        return {"embeddings": text, "width": embeddings.shape[1]}

    def _texts(self, running: nn.Module, batch: range, batches: Iterator[decoding.Batch]) -> Tensor:
        ids = self.dual.tokenizer([self.captions.texts[number] for number in batch])
        return running.encode_text(ids.to(self.device))  # (B, C)

    def _images(self, running: nn.Module, batch: range, batches: Iterator[decoding.Batch]) -> Tensor:
        _, pixels, reasons = next(batches)
        for number, why in reasons.items():
            raise Refused(f"cannot read {self.captions.files[number].name} ({why}): mend it and start again; finished "
                          "shards are kept")
        return running.encode_image(pixels.to(self.device, non_blocking=True))  # (B, C)

    def assemble(self, cell: Cell, parts: Sequence[Sequence[Mapping]]) -> tuple[dict[str, Any], dict[str, Any]]:
        of_images, of_texts = recall.both_ways(*map(_embeddings, parts), self.captions.answers)
        recalls = {name: round(value, 4) for name, value in recall.summary(of_images, of_texts).items()}
        # Records give the time of the images: a piece of texts may be shared by all cells.
        seconds = round(sum(part["seconds"] for part in parts[0]), 2)
        return {"recall": recalls, "seconds": seconds}, {"rank": np.concatenate([of_images, of_texts])}

    def table(self, record: results.Record) -> str:
        return summary.table(record, self.cells)


def _embeddings(parts: Sequence[Mapping[str, Any]]) -> Tensor:
    """``(items, C)`` of all parts of a piece, in order."""
    arrays = [np.frombuffer(base64.b64decode(part["embeddings"]), dtype="<f4") for part in parts]
    return torch.from_numpy(np.concatenate(arrays).reshape(-1, parts[0]["width"]))
