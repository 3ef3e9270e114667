"""Flickr30k and MS-COCO with merged models of open_clip, off the shelf: the paper tier of `retrieval`.

Models: ViT-B-32, ViT-B-16, ViT-L-14, ViT-L-14-336, any other of open_clip whose image tower merges, or a folder in
open_clip's local format. Data: the test split of Karpathy's ``dataset_flickr30k.json`` (1,000 images, five captions
each) or ``dataset_coco.json`` (5,000 images, of whose five to seven captions the first five count, as is usual), or
captions in COCO's own format. Every image and every caption is a query. A picture that is missing or cannot be read is
an error: a gallery with holes is another task.

What is kept of a shard are embeddings: ranks need the whole gallery. Text towers of CLIP are causal and do not merge,
so their embeddings are computed once; where a model has a BERT as text tower, that one and both merge as well.

BLIP and ALBEF stay outside. Their rankings are made in two steps: the contrastive towers give a short list, and a
cross-encoder that reads image and text together scores it anew. open_clip has neither the models nor the second step,
and in a cross-encoder the merged tokens are keys of the text's attention: that needs adapters, and checks, of its own.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import difflib
import hashlib
import itertools
import json
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

import pitome_core as pc
from pitome_core.experiments import settings
from pitome_core.experiments.records import provenance, results
from pitome_core.experiments.records.cells import Cell
from pitome_core.experiments.records.fingerprint import code_of
from pitome_core.experiments.retrieval import grid as retrieval_grid
from pitome_core.experiments.retrieval import recall, summary
from pitome_core.experiments.runs import grid, shards, sweep
from pitome_core.experiments.runs.shards import Refused, Unit
from pitome_core.families import find_family

PROTOCOL = "retrieval-paper-1"
MODELS = ("ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336")  # of the paper: CLIP, with the weights of OpenAI
DATA = ("flickr30k", "coco")
PER_IMAGE = 5  # captions of an image
LARGEST = 5000  # images: of more, COCO's own file has to say which
TOWERS = ("vision", "text")


@dataclass(frozen=True)
class Captions:
    """A gallery: ``files`` are the pictures, ``texts`` the captions, five after the other for each picture.

    ``left_out`` counts captions beyond the first five; ``digest`` identifies names and texts in their order.
    """

    name: str
    files: tuple[Path, ...]
    texts: tuple[str, ...]
    left_out: int
    digest: str

    @property
    def answers(self) -> list[list[int]]:
        """For every text the picture that it describes, as `recall.both_ways` takes it."""
        return [[text // PER_IMAGE] for text in range(len(self.texts))]


@dataclass(frozen=True)
class Loaded:
    """A model ready to be scored, in eval mode on its device, with what open_clip made for it."""

    slug: str
    name: str
    model: nn.Module
    preprocess: Callable
    tokenizer: Callable[[Sequence[str]], Tensor]
    digest: str
    text_merges: bool


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the paper tier."""
    group = parser.add_argument_group(
        "paper tier",
        "One gallery, scored whole; with --split test the scoring is logged and the record lies in results/paper, "
        "without it is a trial. A run that was stopped goes on where it was.",
    )
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
    """Score what was asked for in this process and those beside it; 2, with the reason on stderr, if it cannot be."""
    try:
        state, device = shards.processes()
    except Refused as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        shards.check_numbers(args)
        captions = load_captions(args.data, args.annotations, args.images, args.only)
        for spec in args.model:
            with state.main_process_first():  # one process downloads, the others find the file in the cache
                loaded = load_model(spec, args.pretrained, device)
            _score_model(args, state, device, loaded, captions)
    except (Refused, results.RecordError) as error:
        # Whoever stops says why: where there are several processes, the launcher ends the others.
        print(f"error: {error}", file=sys.stderr)
        return 2
    if state.num_processes > 1:
        state.destroy_process_group()
    return 0


# --- data


def load_captions(
    kind: str, annotations: Path | None, images: Path | None, only: Path | None = None
) -> Captions:
    """The gallery that a file of captions describes.

    Raises:
        Refused: no file or folder, no JSON, another data set, a missing picture, a wrong number of captions, an empty
            one. It names the file and the entry.
    """
    if annotations is None or images is None:
        raise Refused("no data: pass --annotations FILE and --images FOLDER")
    if not annotations.is_file():
        raise Refused(f"no file {annotations}: pass dataset_{kind}.json of Karpathy, or captions in COCO's format")
    if not images.is_dir():
        raise Refused(f"no folder {images}: pass the one that holds the pictures")
    try:
        found = json.loads(annotations.read_text(encoding="utf-8"))
    except ValueError as error:
        line = f" line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise Refused(f"{annotations.name}{line}: no JSON ({error}): fetch the file again") from None
    if not isinstance(found, dict) or not isinstance(found.get("images"), list):
        raise Refused(f"{annotations.name} has no list of images: it is neither Karpathy's format nor COCO's")
    try:
        rows = list(_coco(found, annotations.name, only) if "annotations" in found
                    else _karpathy(found, annotations.name, kind, only))
    except (KeyError, TypeError) as error:
        raise Refused(f"{annotations.name} is neither Karpathy's format nor COCO's ({error!r})") from None
    return _checked(kind, rows, annotations.name, images)


Row = tuple[str, str, list[str], list[str]]  # entry, path of the picture, captions, where each stands


def _karpathy(found: dict, file: str, kind: str, only: Path | None) -> Iterator[Row]:
    if only is not None:
        raise Refused(f"--only is for captions in COCO's format; {file} has a test split of its own")
    if found.get("dataset", kind) != kind:
        raise Refused(f"{file} is of {found['dataset']}: pass --data {found['dataset']}")
    for i, entry in enumerate(found["images"]):
        if entry["split"] == "test":
            path = "/".join(part for part in (entry.get("filepath"), entry["filename"]) if part)
            places = [f"sentences[{j}]" for j in range(len(entry["sentences"]))]
            yield f"images[{i}]", path, [sentence["raw"] for sentence in entry["sentences"]], places


def _coco(found: dict, file: str, only: Path | None) -> Iterator[Row]:
    names = {entry["id"]: entry["file_name"] for entry in found["images"]}
    captions: dict[Any, list[tuple[int, str, str]]] = {number: [] for number in names}
    for i, entry in enumerate(found["annotations"]):
        if entry["image_id"] not in captions:
            raise Refused(f"{file}: annotations[{i}] is of image {entry['image_id']}, which images does not list")
        captions[entry["image_id"]].append((entry["id"], entry["caption"], f"annotations[{i}]"))
    chosen = set(names.values())
    if only is not None:
        chosen = set(_listed(only, chosen, file))
    elif len(names) > LARGEST:
        raise Refused(f"{file} has {len(names)} images: pass --only FILE with the names of the {LARGEST} of the test "
                      "split, one per line, or Karpathy's dataset_coco.json")
    for i, entry in enumerate(found["images"]):
        if entry["file_name"] in chosen:
            rows = sorted(captions[entry["id"]], key=lambda row: row[0])
            yield f"images[{i}]", entry["file_name"], [row[1] for row in rows], [row[2] for row in rows]


def _listed(only: Path, known: set[str], file: str) -> Iterator[str]:
    if not only.is_file():
        raise Refused(f"no file {only}: pass names of pictures, one per line")
    for number, line in enumerate(only.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        if line.strip() not in known:
            raise Refused(f"{only.name} line {number}: {line.strip()!r} is no file_name in {file}")
        yield line.strip()


def _checked(kind: str, rows: Sequence[Row], file: str, images: Path) -> Captions:
    if not rows:
        raise Refused(f"{file} has no image of the test split: nothing to score")
    files: dict[Path, str] = {}
    texts: list[str] = []
    left_out, digest = 0, hashlib.sha256()
    for entry, path, captions, places in rows:
        where = f"{file}: {entry} ({path})"
        exact = kind == "flickr30k"
        if len(captions) < PER_IMAGE or (exact and len(captions) > PER_IMAGE):
            raise Refused(f"{where} has {len(captions)} captions, {kind} has {PER_IMAGE} of every image"
                          f"{'' if exact else ' at least'}: mend the entry")
        left_out += len(captions) - PER_IMAGE
        for caption, place in zip(captions[:PER_IMAGE], places, strict=False):
            if not isinstance(caption, str) or not caption.strip():
                raise Refused(f"{where}: {place} is an empty caption: mend the entry")
            texts.append(" ".join(caption.split()))
        found = next((p for p in (images / path, images / Path(path).name) if p.is_file()), None)
        if found is None:
            raise Refused(f"{where}: no such picture in {images}: fetch it, or pass the folder that holds it")
        if found in files:
            raise Refused(f"{where} has the picture of {files[found]}: an image has one entry")
        files[found] = entry
        digest.update("\n".join([path, *texts[-PER_IMAGE:], ""]).encode())
    return Captions(kind, tuple(files), tuple(texts), left_out, digest.hexdigest()[:12])


# --- models


def load_model(spec: str, pretrained: str, device: torch.device) -> Loaded:
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
    return Loaded(slug, public, model.eval().to(device), preprocess, tokenizer, digest, text_merges)


# --- scoring


def _score_model(
    args: argparse.Namespace, state: Any, device: torch.device, loaded: Loaded, captions: Captions
) -> None:
    """All that is missing of one model's record."""
    from accelerate.utils import broadcast_object_list

    settings.exact_float32()  # under autocast too: plans are float32 there
    cells = _cells(args, loaded)
    record = _open(args, loaded, captions)
    run = provenance.of_run(code_of(_score_model), test=args.split == "test" and not args.estimate,
                            allow_modified=args.allow_modified)
    versions = {name: run["packages"].get(name) for name in ("torch", "timm", "open_clip_torch")}
    parts = shards.Parts(record.path, {
        "code": run["code"], **{name: record.header[name] for name in ("model", "weights", "data")},
        "dtype": args.dtype, "preprocessing": str(loaded.preprocess), "packages": versions, "device": device.type,
        "shard": args.shard,
    })
    unfinished = [cell for cell in cells if args.again or cell.key not in record]
    sides = _sides(unfinished)
    sizes = {"vision": len(captions.files), "text": len(captions.texts)}
    units = {side.key: shards.split(side, sizes[side.towers], args.shard) for side in sides}
    with contextlib.ExitStack() as stack:
        plan: list[Any] = [None]
        if state.is_main_process:
            stack.enter_context(shards.alone(parts.root))
            parts.begin()
            plan = [[(unit.cell.key, unit.shard) for row in units.values() for unit in row
                     if not parts.path(unit).is_file()]]
        # One process looks and tells the others: by the time they had looked, it might have finished a shard.
        todo = [units[key][number] for key, number in broadcast_object_list(plan)[0]]
        if state.is_main_process:
            print(f"retrieval-{record.header['task']}, {args.dtype}: {len(captions.files)} images, "
                  f"{len(captions.texts)} captions, {len(cells)} cells, {len(cells) - len(unfinished)} recorded "
                  f"already; {len(todo)} of {sum(map(len, units.values()))} shards to encode", flush=True)
            if args.split == "test" and todo and not args.estimate:
                provenance.log_test(record, [cell.key for cell in unfinished], run)
        mine = todo[state.process_index :: state.num_processes]
        _encode(args, state, device, loaded, captions, parts, mine[:1] if args.estimate else mine, len(todo))
        if args.estimate:
            return
        state.wait_for_everyone()
        if not state.is_main_process:
            return
        lengths = _lengths(loaded, captions)
        for cell in unfinished:
            _record(record, run, parts, units, cell, captions, retrieval_grid.cost(cell, loaded.model, lengths))
        for side in _sides(cells):
            shutil.rmtree(parts.cell_folder(side), ignore_errors=True)
        parts.end()
    print(summary.table(record, cells))


def _sides(cells: Sequence[Cell]) -> list[Cell]:
    """What has to be encoded for these cells: images, then texts, each kind of merging once."""
    return list(dict.fromkeys(retrieval_grid.side(cell, tower) for tower in TOWERS for cell in cells))


def _cells(args: argparse.Namespace, loaded: Loaded) -> list[Cell]:
    keeps = args.keep or grid.KEEPS
    more = {"text": keeps, "both": keeps} if loaded.text_merges else {}
    try:
        return retrieval_grid.cells(args.methods, keeps, **more)
    except ValueError as error:
        raise Refused(str(error)) from error


def _open(args: argparse.Namespace, loaded: Loaded, captions: Captions) -> results.Record:
    images, texts = len(captions.files), len(captions.texts)
    header = {
        "experiment": "retrieval", "task": f"{captions.name}-{loaded.slug}", "tier": settings.profile(),
        "split": "test", "protocol": PROTOCOL, "clusters": ["image"], "model": loaded.name, "weights": loaded.digest,
        "dtype": args.dtype, "data": {"name": captions.name, "images": images, "captions": texts,
                                      "left_out": captions.left_out, "list": captions.digest},
    }
    items = {
        "id": range(images + texts),
        "query": [recall.IMAGE] * images + [recall.TEXT] * texts,
        "image": [*range(images), *(row[0] for row in captions.answers)],
    }
    slug = loaded.slug + ("" if args.dtype == "float32" else f"-{args.dtype}")
    return results.Record.open(sweep.output_folder(args) / f"retrieval-{captions.name}-{slug}.json", header, items)


class _Files:
    """Pictures as `shards.Decoded` reads them, which also closes them."""

    def __init__(self, files: Sequence[Path]):
        self.files = files

    def __getitem__(self, index: int) -> tuple[Any]:
        return (open(self.files[index], "rb"),)


def _encode(
    args: argparse.Namespace, state: Any, device: torch.device, loaded: Loaded, captions: Captions, parts: shards.Parts,
    mine: Sequence[Unit], total: int,
) -> None:
    """Embeddings of this process's units, one part each."""
    batches = (
        [(index, None) for index in range(start, min(start + args.batch_size, unit.stop))]
        for unit in mine if unit.cell.towers == "vision"
        for start in range(unit.start, unit.stop, args.batch_size)
    )
    loader = iter(DataLoader(
        shards.Decoded(_Files(captions.files), {None: loaded.preprocess}), batch_sampler=batches,
        num_workers=args.workers, collate_fn=shards.collate, pin_memory=device.type == "cuda",
    ))
    bar = tqdm(mine, unit="shard", file=sys.stdout, disable=None if state.is_main_process else True, mininterval=1)
    with bar:
        for cell, units in itertools.groupby(mine, key=lambda unit: unit.cell):
            bar.set_description(cell.key)
            with retrieval_grid.applied(cell, loaded.model) as running:
                for unit in units:
                    start = time.perf_counter()
                    found = _encode_unit(args, device, loaded, captions, running, unit, loader)
                    seconds = round(time.perf_counter() - start, 3)
                    text = base64.b64encode(found.numpy().astype("<f4").tobytes()).decode("ascii")
                    parts.write(unit, {"embeddings": text, "width": found.shape[1], "seconds": seconds,
                                       "device": settings.device_name(device)})
                    bar.update()
                    if args.estimate and state.is_main_process:
                        bar.write(f"  estimate: {total * seconds / state.num_processes / 60:.1f} min at most; "
                                  f"the first of {total} shards took {seconds:.1f} s, with start")


@torch.inference_mode()
def _encode_unit(
    args: argparse.Namespace, device: torch.device, loaded: Loaded, captions: Captions, running: nn.Module, unit: Unit,
    loader: Iterator,
) -> Tensor:
    """``(items, C)`` float32 of unit length, on the CPU."""
    dtype, found = shards.DTYPES[args.dtype], []
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        for start in range(unit.start, unit.stop, args.batch_size):
            if unit.cell.towers == "text":
                ids = loaded.tokenizer(list(captions.texts[start : min(start + args.batch_size, unit.stop)]))
                found.append(running.encode_text(ids.to(device)))
                continue
            _, pixels, unread = next(loader)
            if unread:
                index, why = unread[0]
                raise Refused(f"cannot read {captions.files[index].name} ({why}): mend it and start again; finished "
                              "shards are kept")
            found.append(running.encode_image(pixels.to(device, non_blocking=True)))
    return nn.functional.normalize(torch.cat(found).float(), dim=1).cpu()


def _embeddings(parts: shards.Parts, units: Sequence[Unit]) -> Tensor:
    """``(items, C)`` of all shards of a side, in order."""
    found = []
    for unit in units:
        part = parts.read(unit)
        values = np.frombuffer(base64.b64decode(part["embeddings"]), dtype="<f4")
        if len(values) != (unit.stop - unit.start) * part["width"]:
            raise results.RecordError(f"{parts.path(unit)} is damaged or of another run: delete it and start again")
        found.append(torch.from_numpy(values.reshape(-1, part["width"]).copy()))
    return torch.cat(found)


def _record(
    record: results.Record, run: Mapping[str, Any], parts: shards.Parts, units: Mapping[str, Sequence[Unit]],
    cell: Cell, captions: Captions, cost: Mapping[str, Any],
) -> None:
    """Ranks of one cell, from the embeddings of its two sides."""
    images, texts = (_embeddings(parts, units[retrieval_grid.side(cell, tower).key]) for tower in TOWERS)
    of_images, of_texts = recall.both_ways(images, texts, captions.answers)
    found = {name: round(value, 4) for name, value in recall.summary(of_images, of_texts).items()}
    seconds = sum(parts.read(unit)["seconds"] for unit in units[retrieval_grid.side(cell, "vision").key])
    about = cell.describe() | dict(cost) | {"recall": found, "seconds": round(seconds, 2)}
    record.add(cell.key, about, {"rank": np.concatenate([of_images, of_texts])}, run)


def _lengths(loaded: Loaded, captions: Captions) -> dict[int, int]:
    """How many captions have each number of tokens, for the cost; a causal tower runs its whole context."""
    if not loaded.text_merges:
        return {getattr(loaded.model, "text", loaded.model).context_length: 1}
    pad = loaded.model.text.config.pad_token_id
    return dict(Counter((loaded.tokenizer(list(captions.texts)) != pad).sum(dim=1).tolist()))
