"""ImageNet-1k with merged timm models, off the shelf: the paper's Table 5, as the paper tier of `vision` runs it.

Every image of the validation set is scored: grey and CMYK ones are converted, none is dropped. A unit of work is a cell
of the grid on a shard of consecutive images. A finished shard is a file in ``<record>.parts``, named after all that can
change an outcome (code, weights, list of images, preprocessing, dtype, versions, kind of device), so that parts of
different runs never mix; a cell whose shards are all there moves into the record. Processes share the shards; they need
a common file system and nothing else.

Of the MAE models timm has the pretraining weights alone (``vit_*.mae``, no classifier: ``num_classes=0`` in timm's
table). The fine-tuned ones are three files of the MAE authors, named in `PUBLISHED`, for ``--checkpoint``.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import hashlib
import itertools
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

import pitome_core as pc
from pitome_core.experiments import settings
from pitome_core.experiments.records import provenance, results
from pitome_core.experiments.records.cells import Cell
from pitome_core.experiments.records.fingerprint import code_of
from pitome_core.experiments.records.statistics import Difference
from pitome_core.experiments.runs import grid, sweep
from pitome_core.experiments.runs.shards import (
    DTYPES,
    Decoded,
    Parts,
    Refused,
    Unit,
    add_arguments,
    alone,
    check_numbers,
    collate,
    processes,
    split,
    weights_digest,
)

PROTOCOL = "vision-1"  # the grid in book/protocol.md
TOP = 5
MISSING = "-"  # in a part's string of outcomes: the image could not be read


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
class Images:
    """A labelled set of images in fixed order, behind one of timm's readers.

    ``targets (images,)`` are class indices; ``classes`` is how many classes a model must have; ``digest`` identifies
    the ordered list of names and classes (12 hexadecimal digits of a SHA-256).
    """

    name: str
    reader: Any
    targets: np.ndarray
    classes: int
    digest: str

    def filename(self, index: int) -> str:
        """How messages and records call an image: its path below the folder, or its name in the hub data set."""
        try:
            found = self.reader.filename(index)
        except Exception:  # what is wrong with a row of a hub data set may be its name
            found = None
        return Path(found).as_posix() if found else f"{self.name}[{index}]"


@dataclass(frozen=True)
class Loaded:
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
        "ImageNet's validation set is scored whole; with --split test the scoring is logged and the record lies in "
        "results/paper, without it is a trial. A run that was stopped goes on where it was, image by image the same. "
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
    add_arguments(group, "images")


def run(args: argparse.Namespace) -> int:
    """Score what was asked for in this process and those beside it; the exit status.

    0: every image of every cell has an outcome. 1: some image could not be read. 2: refused, with the reason on stderr.
    """
    try:
        state, device = processes()
    except Refused as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    status = 0
    try:
        _check_numbers(args)
        images = load_images(args.data, args.class_map)
        for spec in args.model:
            with state.main_process_first():  # one process downloads, the others find the file in the cache
                loaded = load_model(spec, images.classes, args.checkpoint, _model_args(args.model_args), device)
            status = max(status, _score_model(args, state, device, loaded, images, PROTOCOL))
    except (Refused, results.RecordError) as error:
        if state.is_main_process:
            print(f"error: {error}", file=sys.stderr)
        return 2
    if state.num_processes > 1:
        state.destroy_process_group()
    return status


def load_images(where: str | None, class_map: Path | None = None) -> Images:
    """The images of a folder with one folder per class, or of ``hub:NAME[:SPLIT]``, through timm's readers.

    Classes are numbered in the order of their sorted folder names, which for the 1000 WordNet ids is ImageNet's order,
    or as in `class_map` (timm's format: a text file with one class per line).

    Raises:
        Refused: no such folder, no images in it, classes that the map lacks, a data set without labels.
    """
    if not where:
        raise Refused("no data: pass --data FOLDER (one folder of images per class) or --data hub:NAME[:SPLIT]")
    if class_map is not None and not class_map.is_file():
        raise Refused(f"no class map {class_map}: pass a text file with one class per line, in the model's order")
    kind, _, rest = where.partition(":")
    if kind == "hub":
        name, _, split = rest.partition(":")
        reader = _hub_reader(name, split or "validation", class_map)
        targets, names = list(reader.iter_targets()), itertools.repeat(f"{name}:{split or 'validation'}")
        if any(target is None or target < 0 for target in targets):
            raise Refused(f"{where} has images without a label: choose another split, e.g. hub:{name}:validation")
    else:
        name, reader = Path(where).resolve().name, _folder_reader(Path(where), class_map)
        names, targets = reader.filenames(), [target for _, target in reader.samples]
    if not targets:
        raise Refused(f"no images in {where}: nothing to score")
    digest = hashlib.sha256()
    for file, target in zip(names, targets, strict=False):
        digest.update(f"{Path(file).as_posix()}\t{target}\n".encode())
    classes = len(reader.class_to_idx or ()) or max(targets) + 1
    return Images(name, reader, np.asarray(targets, dtype=np.int64), classes, digest.hexdigest()[:12])


def _folder_reader(folder: Path, class_map: Path | None) -> Any:
    from timm.data.readers import create_reader
    from timm.data.readers.img_extensions import get_img_extensions
    from timm.data.readers.reader_image_folder import find_images_and_targets

    if not folder.is_dir():
        raise Refused(f"no folder {folder}: pass one with a folder of images per class, or hub:NAME[:SPLIT]")
    extensions = ", ".join(get_img_extensions())
    empty = Refused(
        f"0 images ({extensions}) in the folders below {folder}: --data needs one folder of images per class, as in "
        "val/n01440764/ILSVRC2012_val_00000293.JPEG"
    )
    # The reader itself leaves out, without a word, what its map does not name.
    found = find_images_and_targets(str(folder), sort=False)[1]
    if not found or "" in found:
        raise empty
    reader = create_reader("", root=str(folder), class_map=_absolute(class_map))
    if unknown := sorted(set(found) - set(reader.class_to_idx)):
        raise Refused(f"{len(unknown)} of {len(found)} folders are not in {class_map}, such as {unknown[0]}: add them")
    return reader


def _absolute(file: Path | None) -> str | None:
    return None if file is None else str(file.resolve())


def _hub_reader(name: str, split: str, class_map: Path | None) -> Any:
    from timm.data.readers import create_reader

    try:
        import datasets  # noqa: F401
    except ImportError:
        raise Refused("data sets of the hub need the library of that name: pip install datasets") from None
    try:
        return create_reader(f"hfds/{name}", split=split, class_map=_absolute(class_map))
    except Exception as error:  # whatever a network, a hub or a gated data set answers
        raise Refused(
            f"hub:{name}:{split} could not be loaded ({type(error).__name__}: {error}): check name, split, network and "
            "access rights, or pass a folder"
        ) from error


def load_model(
    spec: str, classes: int, checkpoint: Path | None, model_args: Mapping[str, Any], device: torch.device
) -> Loaded:
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
    digest = weights_digest(model)
    data = timm.data.resolve_model_data_config(model) | dict(known.data)
    if model.patch_embed.img_size:  # --model-args img_size=... is not in timm's description of the weights
        data["input_size"] = (data["input_size"][0], *model.patch_embed.img_size)
    slug = short or re.sub(r"[^\w.]+", "-", Path(spec.partition(":")[2] or spec).name).strip("-")
    public = f"local-dir:{slug}" if spec.startswith("local-dir:") else known.name
    return Loaded(slug, public, model.eval().to(device), data, given, digest)


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
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise Refused(f"--model-args takes NAME=VALUE, got {word!r}")
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name] = value
    return found


def _check_numbers(args: argparse.Namespace) -> None:
    check_numbers(args)
    if args.checkpoint is not None and len(args.model) > 1:
        raise Refused(f"one --checkpoint for {len(args.model)} models: run them one by one")


def _loader(
    args: argparse.Namespace, device: torch.device, loaded: Loaded, images: Images, units: Sequence[Unit]
) -> DataLoader:
    """All batches of the units, in order: workers go on decoding while one shard ends and the next begins."""
    from timm.data import create_transform

    transforms = {}
    for pixels in {unit.cell.pixels for unit in units}:
        size = {} if pixels is None else {"input_size": (loaded.data["input_size"][0], pixels, pixels)}
        transforms[pixels] = create_transform(**{**loaded.data, **size}, is_training=False)
    batches = (
        [(index, unit.cell.pixels) for index in range(start, min(start + args.batch_size, unit.stop))]
        for unit in units
        for start in range(unit.start, unit.stop, args.batch_size)
    )
    return DataLoader(
        Decoded(images.reader, transforms), batch_sampler=batches, num_workers=args.workers, collate_fn=collate,
        pin_memory=device.type == "cuda",
    )


def _score_model(
    args: argparse.Namespace, state: Any, device: torch.device, loaded: Loaded, images: Images, protocol: str
) -> int:
    """All that is missing of one model's record; the exit status (on all but the main process: 0)."""
    from accelerate.utils import broadcast_object_list

    settings.exact_float32()  # under autocast too: plans are float32 there
    cells = _cells(args, loaded)
    header = _header(args, loaded, images, protocol)
    slug = loaded.slug + ("" if args.dtype == "float32" else f"-{args.dtype}")
    record = results.Record.open(
        sweep.output_folder(args) / f"vision-imagenet-{slug}.json", header, {"id": range(len(images.targets))}
    )
    run = provenance.of_run(code_of(_score_model), test=args.split == "test" and not args.estimate,
                            allow_modified=args.allow_modified)
    versions = {name: run["packages"].get(name) for name in ("torch", "torchvision", "timm")}
    parts = Parts(record.path, {
        "code": run["code"], **{name: header[name] for name in ("model", "weights", "data", "dtype")},
        "preprocessing": header["preprocessing"], "model_args": header["model_args"], "packages": versions,
        "device": device.type, "shard": args.shard,
    })
    units = {cell.key: split(cell, len(images.targets), args.shard) for cell in cells}
    with contextlib.ExitStack() as stack:
        plan: list[Any] = [None]
        if state.is_main_process:
            stack.enter_context(alone(parts.root))
            plan = [_missing(record, parts, cells, units, args.again)]
        # One process looks and tells the others: by the time they had looked, it might have finished a shard.
        todo = [units[key][number] for key, number in broadcast_object_list(plan)[0]]
        unfinished = [cell for cell in cells if args.again or cell.key not in record]
        mine = todo[state.process_index :: state.num_processes]
        if state.is_main_process:
            _announce(args, record, cells, unfinished, todo, state.num_processes)
            if args.split == "test" and todo and not args.estimate:
                provenance.log_test(record, [cell.key for cell in unfinished], run)
        assembler = None
        if state.is_main_process:
            assembler = _Assembler(record, run, parts, unfinished, units, loaded.model)
        mine = mine[:1] if args.estimate else mine
        _score_units(args, state, device, loaded, images, parts, mine, todo, assembler)
        if args.estimate:
            return 0
        state.wait_for_everyone()
        if assembler is None:
            return 0
        assembler.collect(final=True)
        parts.end()
    print(summary(record, cells))
    unreadable = {name for cell in cells for name in record.cells[cell.key]["unreadable"]}
    if unreadable:
        print(f"{len(unreadable)} of {len(record)} images could not be read and are left out: "
              f"{', '.join(sorted(unreadable))}. Mend them and pass --again", file=sys.stderr)
    return 1 if unreadable else 0


def _cells(args: argparse.Namespace, loaded: Loaded) -> list[Cell]:
    _, height, width = loaded.data["input_size"]
    patch = loaded.model.patch_embed.patch_size[0]
    try:
        return grid.cells(args.methods, args.keep, img_size=height if height == width else None, patch=patch)
    except ValueError as error:
        raise Refused(str(error)) from error


def _header(args: argparse.Namespace, loaded: Loaded, images: Images, protocol: str) -> dict[str, Any]:
    """What the record says about the run as a whole. Digests stand for the list of images and for the weights."""
    return {
        "experiment": "vision", "task": f"imagenet-{loaded.slug}", "tier": settings.profile(), "split": "validation",
        "protocol": protocol, "clusters": [], "model": loaded.name, "model_args": dict(loaded.args),
        "weights": loaded.digest, "dtype": args.dtype, "preprocessing": dict(loaded.data),
        "data": {"name": images.name, "images": len(images.targets), "classes": images.classes, "list": images.digest},
    }


def _missing(
    record: results.Record, parts: Parts, cells: Sequence[Cell], units: Mapping[str, list[Unit]], again: bool
) -> list[tuple[str, int]]:
    """(cell, shard) of all that has to be scored, cell by cell. Clears what a run left that died while it assembled."""
    parts.begin()
    found = []
    for cell in cells:
        absent = [unit.shard for unit in units[cell.key] if not parts.path(unit).is_file()]
        if cell.key in record and not absent:  # the record has it, its parts were about to be removed
            shutil.rmtree(parts.cell_folder(cell))
            absent = [unit.shard for unit in units[cell.key]]
        if again or cell.key not in record:
            found += [(cell.key, shard) for shard in absent]
    return found


def _announce(
    args: argparse.Namespace, record: results.Record, cells: list, unfinished: list, todo: list[Unit], processes: int
) -> None:
    shards = -(-len(record) // args.shard)
    print(
        f"vision-{record.header['task']}, {args.dtype}: {len(record)} images, {len(cells)} cells, "
        f"{len(cells) - len(unfinished)} recorded already; {len(todo)} of {len(unfinished) * shards} shards to score "
        f"in {processes} process{'es' if processes > 1 else ''}",
        flush=True,
    )


def _score_units(
    args: argparse.Namespace, state: Any, device: torch.device, loaded: Loaded, images: Images, parts: Parts,
    mine: list[Unit], todo: list[Unit], assembler: _Assembler | None,
) -> None:
    """Score this process's units, one part each; the main process shows progress and assembles what is complete."""
    if not mine:
        return
    batches = iter(_loader(args, device, loaded, images, mine))
    bar = tqdm(mine, unit="shard", file=sys.stdout, disable=None if state.is_main_process else True, mininterval=1)
    named: set[int] = set()
    estimated = assembler is None
    with bar:
        for cell, units in itertools.groupby(mine, key=lambda unit: unit.cell):
            bar.set_description(cell.key)
            with grid.applied(cell, loaded.model) as running:
                for unit in units:
                    start = time.perf_counter()
                    part, broken = _score_unit(unit, batches, running, device, images, args)
                    seconds = time.perf_counter() - start
                    where = {"device": settings.device_name(device), "batch": args.batch_size}
                    parts.write(unit, part | {"seconds": round(seconds, 3)} | where)
                    for index, why in broken:
                        if index not in named:
                            bar.write(f"cannot read {images.filename(index)} ({why})", file=sys.stderr)
                            named.add(index)
                    bar.update()
                    if not estimated:
                        estimated = True
                        minutes = _estimate(unit, seconds, todo, assembler.costs, state.num_processes)
                        bar.write(f"  estimate: {minutes:.1f} min; the first shard took {seconds:.1f} s, with start")
            if assembler is not None and not args.estimate:
                assembler.collect()


def _estimate(unit: Unit, seconds: float, todo: Sequence[Unit], costs: Mapping[str, Any], processes: int) -> float:
    """Minutes for the units `todo` shared by processes, if time goes with multiply-accumulates as it did in `unit`."""
    def work(unit: Unit) -> float:
        return (unit.stop - unit.start) * costs[unit.cell.key]["share"]

    return seconds / work(unit) * sum(work(other) for other in todo) / processes / 60


@torch.inference_mode()
def _score_unit(
    unit: Unit, batches: Iterator, running: nn.Module, device: torch.device, images: Images, args: argparse.Namespace
) -> tuple[dict[str, Any], list[tuple[int, str]]]:
    """The part of one unit, and what could not be read: (index, why)."""
    dtype = DTYPES[args.dtype]
    first, top = [MISSING] * (unit.stop - unit.start), [MISSING] * (unit.stop - unit.start)
    broken: list[tuple[int, str]] = []
    for _ in range(unit.start, unit.stop, args.batch_size):
        indices, pixels, unread = next(batches)
        broken += unread
        if pixels is None:
            continue
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits = running(pixels.to(device, non_blocking=True))  # (B, classes)
        best = logits.float().topk(min(TOP, images.classes)).indices.cpu().numpy()  # (B, 5)
        right = best == images.targets[indices][:, None]
        for index, hits in zip(indices, right, strict=True):
            first[index - unit.start], top[index - unit.start] = str(int(hits[0])), str(int(hits.any()))
    unreadable = [[index, images.filename(index), why.partition(":")[0]] for index, why in broken]
    return {"correct": "".join(first), "top5": "".join(top), "unreadable": unreadable}, broken


class _Assembler:
    """Moves cells whose shards are all there from the parts into the record, in the order of the grid."""

    def __init__(
        self, record: results.Record, run: Mapping[str, Any], parts: Parts, cells: Sequence[Cell],
        units: Mapping[str, list[Unit]], model: nn.Module,
    ):
        self.record, self.run, self.parts, self.units, self.waiting = record, run, parts, units, list(cells)
        self.costs = {cell.key: grid.cost(cell, model) for cell in cells}

    def collect(self, final: bool = False) -> None:
        """Take what is complete. `RecordError` if, at the end, something is not."""
        while self.waiting:
            cell = self.waiting[0]
            absent = [unit for unit in self.units[cell.key] if not self.parts.path(unit).is_file()]
            if absent and final:
                raise results.RecordError(
                    f"{len(absent)} of {len(self.units[cell.key])} shards of {cell.key} are not in "
                    f"{self.parts.folder}: do all machines see this folder? Start again to score them"
                )
            if absent:
                return
            self._take(cell)
            self.waiting.pop(0)

    def _take(self, cell: Cell) -> None:
        found = [self.parts.read(unit, "correct", "top5") for unit in self.units[cell.key]]
        outcomes = {}
        for name in ("correct", "top5"):
            letters = "".join(part[name] for part in found)
            outcomes[name] = np.array([np.nan if letter == MISSING else int(letter) for letter in letters])
        scored = int((~np.isnan(outcomes["correct"])).sum())
        about = cell.describe() | self.costs[cell.key]
        about |= {
            "top1": round(float(np.nanmean(outcomes["correct"])), 6) if scored else None,
            "scored": scored,
            "unreadable": [name for part in found for _, name, _ in part["unreadable"]],
            "seconds": round(sum(part["seconds"] for part in found), 2),
            "devices": sorted({part["device"] for part in found}),
        }
        self.record.add(cell.key, about, {name: results.pack(values) for name, values in outcomes.items()}, self.run)
        shutil.rmtree(self.parts.cell_folder(cell))


def summary(record: results.Record, cells: Sequence[Cell]) -> str:
    """A plain table: cost, top-1 with its interval, top-5, paired differences to whole model and ToMe (in points)."""
    keys = record.groups(cells)
    lines = [
        f"{'cell':32s} {'GMACs':>8s} {'share':>6s} {'top-1 %':>8s} {'':14s} {'top-5 %':>8s}  "
        f"{'minus whole model':>22s}  {'minus ToMe':>22s}"
    ]
    for key in keys:
        about = record.about(key)
        if not about["scored"]:
            lines.append(f"{key:32s} {about['gmacs']:8.3f} {about['share']:6.3f}   no image could be read")
            continue
        mean, low, high = (100 * value for value in record.estimate(key, "correct", skip_missing=True))
        top = 100 * np.nanmean(record.mean_over_seeds(key, "top5"))
        rival = record.rival_of(key) or ""
        lines.append(
            f"{key:32s} {about['gmacs']:8.3f} {about['share']:6.3f} {mean:8.2f} [{low:5.2f}, {high:5.2f}] {top:8.2f}  "
            f"{_against(record, key, grid.WHOLE):>22s}  {_against(record, key, rival):>22s}".rstrip()
        )
    return "\n".join(lines)


def _against(record: results.Record, key: str, rival: str) -> str:
    if rival == key or rival not in record:
        return ""
    found = record.difference(key, rival, "correct", skip_missing=True)
    points = Difference(*(100 * v for v in (found.mean, found.low, found.high)), found.items, found.clusters, np.nan)
    return points.format(2)
