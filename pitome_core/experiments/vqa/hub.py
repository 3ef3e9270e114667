"""VQAv2, GQA and TextVQA with a merged LLaVA, off the shelf: the paper tier of `vqa`, in the setting of Table 3.

Models: ``llava-hf/llava-1.5-7b-hf``, or another LLaVA in the format of transformers, from the hub or a folder; its
vision tower merges, and its language model reads the merged tokens (``restore=False``). Data: the official files of a
benchmark and the folder of its pictures (`vqa_files`); others plug in (`vqa_benchmarks`). Answers are greedy.

A record that is malformed, or whose picture is missing, stops the run with its file and entry; with
``--skip-malformed`` it is left out, named and counted. The same holds for a picture that cannot be decoded, which shows
only when its turn comes: finished shards are kept.

A unit of work is a cell on a shard of consecutive questions. What is kept of it are the answers as they were given; the
record has the score of every question, and beside it lies ``<record>.answers/<cell>.jsonl`` with question, answer and
score in words.

The vision tower and the projector stay in float32 whatever ``--dtype`` says: plans hang on small differences. Pictures
are padded to a square as LLaVA-1.5 was trained; the processor on the hub crops them (``--square crop``). Neither the
system sentence of the conversation nor, for TextVQA, words that an OCR system read stand in the prompt.

Files: VQAv2 has ``v2_OpenEnded_mscoco_val2014_questions.json`` and ``v2_mscoco_val2014_annotations.json`` with COCO's
``val2014``; GQA ``testdev_balanced_questions.json`` with ``images``; TextVQA ``TextVQA_0.5.1_val.json`` with
``train_images``. VQAv2's answers for test-dev, on which LLaVA's own figure is, are not public.

On several GPUs, with the released variant beside the paper's, in the order of the released code beside ours:

    accelerate launch -m pitome_core.experiments vqa --profile paper --data vqav2 \\
        --questions v2_OpenEnded_mscoco_val2014_questions.json --annotations v2_mscoco_val2014_annotations.json \\
        --images val2014 --methods pitome pitome-released-llava tome --order raster-centroid released
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
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
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

import pitome_core as pc
from pitome_core.experiments import settings
from pitome_core.experiments.models import llava_answers
from pitome_core.experiments.models.llava_answers import IMAGE, ORDERS
from pitome_core.experiments.records import files, provenance, results
from pitome_core.experiments.records.cells import Cell
from pitome_core.experiments.records.fingerprint import code_of
from pitome_core.experiments.records.statistics import Difference
from pitome_core.experiments.runs import grid, shards, sweep
from pitome_core.experiments.runs.shards import Refused, Unit
from pitome_core.experiments.vqa import benchmarks as vqa_benchmarks
from pitome_core.experiments.vqa import files as vqa_files
from pitome_core.experiments.vqa import grid as vqa_grid
from pitome_core.experiments.vqa import metrics as vqa_metrics
from pitome_core.experiments.vqa.benchmarks import Benchmark

PROTOCOL = "vqa-paper-1"
MODEL = "llava-hf/llava-1.5-7b-hf"
SQUARES = ("pad", "crop")
SHOWN = 5  # records left out that are named on the screen; the file has all


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the paper tier."""
    group = parser.add_argument_group(
        "paper tier",
        "One benchmark, scored whole; with --split test the scoring is logged and the record lies in results/paper, "
        "without it is a trial. A run that was stopped goes on where it was.",
    )
    group.add_argument("--model", nargs="+", default=[MODEL], metavar="MODEL",
                       help=f"a LLaVA in the format of transformers: a name on the hub or a folder (default: {MODEL})")
    group.add_argument("--data", default="vqav2", metavar="BENCHMARK",
                       help=f"{', '.join(vqa_benchmarks.benchmarks())}, or what --plugin adds (default: %(default)s)")
    group.add_argument("--plugin", metavar="MODULE",
                       help="a module to import first, which registers another benchmark: see vqa_benchmarks")
    group.add_argument("--questions", type=Path, metavar="FILE", help="the benchmark's official file of questions")
    group.add_argument("--annotations", type=Path, metavar="FILE", help="VQAv2's official file of answers")
    group.add_argument("--images", type=Path, metavar="FOLDER", help="the folder of the pictures")
    group.add_argument("--skip-malformed", action="store_true",
                       help="leave out records that cannot be used, and say which; without it they stop the run")
    group.add_argument("--first", type=int, metavar="N", help="the first N questions only, as a trial (not for test)")
    group.add_argument("--square", choices=SQUARES, default="pad",
                       help="pad pictures to a square in the mean colour, as LLaVA-1.5 was trained, or leave them to "
                       "the model's image processor, which crops (default: %(default)s)")
    group.add_argument("--max-answer", type=int, default=16, metavar="N",
                       help="tokens of an answer at most (default: %(default)s)")
    group.add_argument("--order", nargs="+", choices=ORDERS, default=list(ORDERS[:1]), metavar="ORDER",
                       help=f"in which the language model reads image tokens, of {', '.join(ORDERS)} "
                       f"(default: {ORDERS[0]})")
    shards.add_arguments(group, "questions", batch_size=16, default="bfloat16",
                         dtype="of the language model; the vision tower and its plans are float32")


def run(args: argparse.Namespace) -> int:
    """Score what was asked for in this process and those beside it.

    The exit status: 2, with the reason on stderr, if it cannot be run; 1 if questions were left out; else 0.
    """
    try:
        state, device = shards.processes()
    except Refused as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    left_out = 0
    try:
        _check(args)
        questions = load_questions(args)
        for spec in args.model:
            with state.main_process_first():  # one process downloads, the others find the files in the cache
                loaded = load_model(spec, args.dtype, args.square, device)
            left_out += _score_model(args, state, device, loaded, questions)
    except (Refused, results.RecordError) as error:
        # Whoever stops says why: where there are several processes, the launcher ends the others.
        print(f"error: {error}", file=sys.stderr)
        return 2
    if state.num_processes > 1:
        state.destroy_process_group()
    return 1 if left_out else 0


def _check(args: argparse.Namespace) -> None:
    """Raise `Refused`, before anything is loaded, for arguments that do not fit."""
    shards.check_numbers(args)
    _cells(args)
    for name in ("first", "max_answer"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise Refused(f"--{name.replace('_', '-')} {value} is below 1")
    if args.first and args.split == "test":
        raise Refused("--first is for trials: the test set is scored as a whole")


# --- data


@dataclass(frozen=True)
class Questions:
    """The questions of a benchmark, in the order of their file.

    ``pictures`` are the files of all pictures, each once, and ``picture`` says for every question which; ``left_out``
    names the records that cannot be used; ``digest`` identifies questions, answers and names of pictures.
    """

    benchmark: Benchmark
    file: str
    items: tuple[vqa_files.Item, ...]
    pictures: tuple[Path, ...]
    picture: tuple[int, ...]
    left_out: tuple[str, ...]
    digest: str

    def __len__(self) -> int:
        return len(self.items)


def load_questions(args: argparse.Namespace) -> Questions:
    """What the official files hold. `Refused` for what cannot be read; it names file and record."""
    try:
        if args.plugin:
            importlib.import_module(args.plugin)
        benchmark = vqa_benchmarks.benchmark(args.data)
    except (ImportError, KeyError, ValueError) as error:
        raise Refused(f"{args.data}: {error.args[0] if error.args else error}") from error
    if args.questions is None or args.images is None:
        raise Refused("no data: pass --questions FILE and --images FOLDER, and for vqav2 --annotations FILE")
    try:
        found = benchmark.read(args.questions, args.images, args.annotations, args.skip_malformed)
    except (OSError, ValueError) as error:  # a MalformedError is a ValueError
        raise Refused(str(error).replace("skip=True", "--skip-malformed")) from error
    items = found.items[: args.first]
    if twice := [key for key, count in Counter(item.id for item in items).items() if count > 1]:
        raise Refused(f"{args.questions.name} has question {twice[0]} more than once, and {len(twice) - 1} others")
    if not items:
        raise Refused(f"{args.questions.name} has no question that can be used")
    pictures = {path: number for number, path in enumerate(dict.fromkeys(item.image for item in items))}
    digest = hashlib.sha256()
    for item in items:
        if IMAGE in item.question:
            raise Refused(f"{args.questions.name}, question {item.id} holds {IMAGE}: mend it")
        digest.update(json.dumps([item.id, item.image.name, item.question, item.answers]).encode() + b"\n")
    return Questions(
        benchmark, args.questions.name, items, tuple(pictures), tuple(pictures[item.image] for item in items),
        found.problems, digest.hexdigest()[:12],
    )


# --- models


@dataclass(frozen=True)
class Loaded:
    """A LLaVA ready to be scored, in eval mode on its device. ``prepare`` makes a PIL picture ``(3, H, W)`` pixels."""

    slug: str
    name: str
    model: nn.Module
    tokenizer: Any
    prepare: Callable[[Image.Image], Tensor]
    preprocessing: str
    digest: str


def load_model(spec: str, dtype: str, square: str, device: torch.device) -> Loaded:
    """A `LlavaForConditionalGeneration` with tokenizer and image processor, from a folder or the hub.

    The language model gets ``dtype``, a name in `shards.DTYPES`; tower and projector are float32.
    `Refused` for another kind of model, one that cannot be had, or one whose tower cannot be merged.
    """
    try:
        import transformers
    except ImportError:
        raise Refused("LLaVA needs transformers: pip install 'pitome-core[transformers]'") from None
    try:
        kind = transformers.AutoConfig.from_pretrained(spec).model_type
        if kind != "llava":
            raise Refused(f"{spec} is a {kind}; merged here is llava, such as {MODEL}")
        model, found = transformers.LlavaForConditionalGeneration.from_pretrained(
            spec, dtype="auto", attn_implementation="sdpa", output_loading_info=True,
        )  # "auto": as the files have it, so that nothing is rounded
        if missing := sorted(found["missing_keys"]):  # transformers warns and makes them up
            raise Refused(f"{spec} has no weights for {missing[0]} and {len(missing) - 1} others: fetch it again")
        tokenizer = transformers.AutoTokenizer.from_pretrained(spec)
        processor = transformers.AutoImageProcessor.from_pretrained(spec)
    except Refused:
        raise
    except Exception as error:  # hub, network, file system, shapes: many libraries' errors
        reason = next(iter(str(error).splitlines()), "")
        raise Refused(f"{spec} could not be loaded ({type(error).__name__}: {reason}): pass a folder in the format of "
                      "transformers, or a name on the hub where there is a network") from error
    image_token = tokenizer.convert_tokens_to_ids(IMAGE)
    if image_token != model.config.image_token_id:
        raise Refused(f"{spec}: {IMAGE} is token {image_token} of the tokenizer and "
                      f"{model.config.image_token_id} of the model: they do not belong together")
    digest = shards.weights_digest(model)
    for part in (model.model.language_model, model.lm_head):
        _cast(part, shards.DTYPES[dtype])
    for part in (model.model.vision_tower, model.model.multi_modal_projector):
        _cast(part, torch.float32)
    try:
        with pc.patched(model, keep=1.0, restore=False):
            pass
    except (TypeError, ValueError) as error:
        raise Refused(f"{spec} cannot be merged: {error}") from error
    folder = Path(spec).is_dir()
    slug = re.sub(r"[^\w.]+", "-", Path(spec).name).strip("-")
    about = json.dumps({"square": square} | processor.to_dict(), sort_keys=True, default=str)
    return Loaded(slug, slug if folder else spec, model.eval().to(device), tokenizer, _Prepare(processor, square),
                  about, digest)


def _cast(module: nn.Module, dtype: torch.dtype) -> None:
    """Cast the parameters; buffers stay: frequencies of rotary positions have to be float32."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)


class _Prepare:
    """The model's image processor, after padding if asked for; a class, for processes that decode."""

    def __init__(self, processor: Any, square: str):
        self.processor = processor
        self.colour = tuple(round(255 * mean) for mean in processor.image_mean) if square == "pad" else None

    def __call__(self, picture: Image.Image) -> Tensor:
        if self.colour is not None:
            picture = padded(picture, self.colour)
        return self.processor(picture, return_tensors="pt")["pixel_values"][0]


def padded(picture: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """A picture in the middle of a square of that colour, whose side is the longer of its own."""
    side = max(picture.size)
    canvas = Image.new("RGB", (side, side), colour)
    canvas.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return canvas


# --- cells

COMPACT = "raster-compact"
KEEPS = (0.9,)  # of Table 3 for the model of 7B
# The rows of Table 3, with the presets and controls that say where a difference comes from.
ARMS = {name: vqa_grid.ARMS[name] for name in ("pitome", "energy-sorted", "tome", "tofu", "dct", "diffrate",
                                               "random-merge", "random-prune", vqa_grid.RELEASED)}


def cells(
    arms: Sequence[str] | None = None, keeps: Sequence[float] = KEEPS, orders: Sequence[str] = ORDERS[:1]
) -> list[Cell]:
    """The whole model, then each arm (None: all of `ARMS`) at each keep ratio in each order of `llava_answers.ORDERS`.

    What a transform leaves lies nowhere on the grid, so that its tokens are read as they come, whatever the orders.
    `ValueError` for an arm that does not exist or a keep ratio that is none.
    """
    chosen = vqa_grid.checked(ARMS if arms is None else arms, keeps, tuple(ARMS))
    found = [Cell(grid.WHOLE)]
    for name in chosen:
        possible = (COMPACT,) if ARMS[name].kind == "transform" else orders
        found += [Cell(name, keep, order=order) for keep in keeps for order in possible]
    return list(dict.fromkeys(found))


# --- scoring


@dataclass(frozen=True)
class _Run:
    """What every part of a run needs."""

    args: argparse.Namespace
    state: Any
    device: torch.device
    loaded: Loaded
    questions: Questions
    prompts: tuple[str, ...]
    record: results.Record
    run: Mapping[str, Any]
    parts: shards.Parts
    units: Mapping[str, Sequence[Unit]]
    costs: Mapping[str, Mapping[str, Any]]


def _score_model(
    args: argparse.Namespace, state: Any, device: torch.device, loaded: Loaded, questions: Questions
) -> int:
    """All that is missing of one model's record; how many questions were left out (on all but the main process: 0)."""
    from accelerate.utils import broadcast_object_list

    settings.exact_float32()
    cells = _cells(args)
    record = _open(args, loaded, questions)
    prompts = tuple(questions.benchmark.prompt(item.question) for item in questions.items)
    lengths = _lengths(loaded, prompts)
    run = provenance.of_run(code_of(_score_model), test=args.split == "test" and not args.estimate,
                            allow_modified=args.allow_modified)
    running = _Run(
        args, state, device, loaded, questions, prompts, record, run, _parts(args, device, loaded, record, run),
        {cell.key: shards.split(cell, len(questions), args.shard) for cell in cells},
        {cell.key: vqa_grid.cost(cell, loaded.model, lengths) for cell in cells},
    )
    with contextlib.ExitStack() as stack:
        plan: list[Any] = [None]
        if state.is_main_process:
            stack.enter_context(shards.alone(running.parts.root))
            plan = [_missing(running, cells)]
        # One process looks and tells the others: by the time they had looked, it might have finished a shard.
        todo = [running.units[key][number] for key, number in broadcast_object_list(plan)[0]]
        waiting = [cell for cell in cells if args.again or cell.key not in record]
        if state.is_main_process:
            _announce(running, cells, waiting, todo)
            if args.split == "test" and todo and not args.estimate:
                provenance.log_test(record, [cell.key for cell in waiting], run)
        mine = todo[state.process_index :: state.num_processes]
        _answer_units(running, mine[:1] if args.estimate else mine, todo, waiting)
        if args.estimate:
            return 0
        state.wait_for_everyone()
        if not state.is_main_process:
            return 0
        _collect(running, waiting, final=True)
        running.parts.end()
    print(summary(record, cells))
    return _report(running, cells)


def _lengths(loaded: Loaded, prompts: Sequence[str]) -> Counter[int]:
    """How many prompts have each number of tokens, the picture not counted."""
    return Counter(len(ids) - 1 for ids in loaded.tokenizer(list(prompts))["input_ids"])


def _cells(args: argparse.Namespace) -> list[Cell]:
    try:
        return cells(args.methods, args.keep or KEEPS, args.order)
    except ValueError as error:
        raise Refused(str(error)) from error


def _open(args: argparse.Namespace, loaded: Loaded, questions: Questions) -> results.Record:
    name = questions.benchmark.name + (f"-first{args.first}" if args.first else "")
    header = {
        "experiment": "vqa", "task": f"{name}-{loaded.slug}", "tier": settings.profile(), "split": "test",
        "protocol": PROTOCOL, "clusters": ["picture"], "model": loaded.name, "weights": loaded.digest,
        "dtype": args.dtype, "square": args.square, "template": questions.benchmark.template,
        "max_answer": args.max_answer, "metric": questions.benchmark.metric,
        "data": {"name": questions.benchmark.name, "file": questions.file, "questions": len(questions),
                 "pictures": len(questions.pictures), "left_out": len(questions.left_out), "list": questions.digest},
    }
    items = {"id": [item.id for item in questions.items], "picture": questions.picture}
    slug = loaded.slug + ("" if args.dtype == "float32" else f"-{args.dtype}")
    return results.Record.open(sweep.output_folder(args) / f"vqa-{name}-{slug}.json", header, items)


def _parts(
    args: argparse.Namespace, device: torch.device, loaded: Loaded, record: results.Record, run: Mapping[str, Any]
) -> shards.Parts:
    """The shards of this run, named after all that can change an answer."""
    return shards.Parts(record.path, {
        "code": run["code"],
        **{name: record.header[name] for name in ("model", "weights", "data", "dtype", "template", "max_answer")},
        "preprocessing": loaded.preprocessing, "device": device.type, "shard": args.shard,
        "packages": {name: run["packages"].get(name) for name in ("torch", "torchvision", "transformers")},
    })


def _missing(running: _Run, cells: Sequence[Cell]) -> list[tuple[str, int]]:
    """(cell, shard) of all that has to be answered. Clears what a run left that died while it recorded a cell."""
    parts, found = running.parts, []
    parts.begin()
    for cell in cells:
        units = running.units[cell.key]
        absent = [unit.shard for unit in units if not parts.path(unit).is_file()]
        if cell.key in running.record and not absent:
            shutil.rmtree(parts.cell_folder(cell))
            absent = [unit.shard for unit in units]
        if running.args.again or cell.key not in running.record:
            found += [(cell.key, shard) for shard in absent]
    return found


def _announce(running: _Run, cells: Sequence, waiting: Sequence, todo: Sequence[Unit]) -> None:
    questions, record = running.questions, running.record
    print(f"vqa-{record.header['task']}, {running.args.dtype}: {len(questions)} questions on "
          f"{len(questions.pictures)} pictures, {len(cells)} cells, {len(cells) - len(waiting)} recorded already; "
          f"{len(todo)} of {sum(len(running.units[cell.key]) for cell in waiting)} shards to answer", flush=True)
    if questions.left_out:
        more = len(questions.left_out) - SHOWN
        print(f"{len(questions.left_out)} records left out: {'; '.join(questions.left_out[:SHOWN])}"
              + (f"; and {more} more" if more > 0 else ""), file=sys.stderr)


class _Files:
    """Pictures as `shards.Decoded` reads them, which also closes them."""

    def __init__(self, files: Sequence[Path]):
        self.files = files

    def __getitem__(self, index: int) -> tuple[Any]:
        return (open(self.files[index], "rb"),)


def _batches(unit: Unit, size: int) -> list[range]:
    """Numbers of the questions of a shard, ``size`` at a time."""
    return [range(start, min(start + size, unit.stop)) for start in range(unit.start, unit.stop, size)]


def _answer_units(running: _Run, mine: Sequence[Unit], todo: Sequence[Unit], waiting: list[Cell]) -> None:
    """Answers of this process's units, one part each; the main process shows progress and records whole cells."""
    args, questions, main = running.args, running.questions, running.state.is_main_process
    batches = (  # of pictures: two questions on one need it once
        [(number, None) for number in dict.fromkeys(questions.picture[i] for i in batch)]
        for unit in mine for batch in _batches(unit, args.batch_size)
    )
    loader = iter(DataLoader(
        shards.Decoded(_Files(questions.pictures), {None: running.loaded.prepare}), batch_sampler=batches,
        num_workers=args.workers, collate_fn=shards.collate, pin_memory=running.device.type == "cuda",
    ))
    bar = tqdm(mine, unit="shard", file=sys.stdout, disable=None if main else True, mininterval=1)
    estimated = not main
    with bar:
        for cell, units in itertools.groupby(mine, key=lambda unit: unit.cell):
            bar.set_description(cell.key)
            with vqa_grid.applied(cell, running.loaded.model):
                for unit in units:
                    start = time.perf_counter()
                    part = _answer_unit(running, unit, loader)
                    seconds = time.perf_counter() - start
                    running.parts.write(unit, part | {"seconds": round(seconds, 3), "batch": args.batch_size,
                                                      "device": settings.device_name(running.device)})
                    bar.update()
                    if not estimated:
                        estimated = True
                        bar.write(f"  estimate: {_minutes(running, unit, seconds, todo):.1f} min; the first of "
                                  f"{len(todo)} shards took {seconds:.1f} s, with start")
            if main and not args.estimate:
                _collect(running, waiting)


def _minutes(running: _Run, unit: Unit, seconds: float, todo: Sequence[Unit]) -> float:
    """Minutes for the units ``todo``, if time goes with multiply-accumulates as it did in ``unit``. With a cell of the
    whole model first, rather more: decoding an answer is hardly cheaper where the prompt is."""
    def work(unit: Unit) -> float:
        return (unit.stop - unit.start) * running.costs[unit.cell.key]["share"]

    return seconds / work(unit) * sum(map(work, todo)) / running.state.num_processes / 60


def _answer_unit(running: _Run, unit: Unit, loader: Iterator) -> dict[str, Any]:
    """``answers``: one text per question, None where the picture cannot be read; ``unreadable``: [question, why]."""
    questions, answers = running.questions, [None] * (unit.stop - unit.start)
    unreadable = []
    for batch in _batches(unit, running.args.batch_size):
        found, pixels, unread = next(loader)
        why = dict(unread)
        for i in batch:
            if (number := questions.picture[i]) in why:
                reason = f"cannot read {questions.pictures[number].name} ({why[number]})"
                if not running.args.skip_malformed:
                    raise Refused(f"{_where(questions, i)}: {reason}: mend it and start again, or leave such questions "
                                  "out with --skip-malformed; finished shards are kept")
                unreadable.append([i, reason])
        asked = [i for i in batch if questions.picture[i] not in why]
        if asked:
            place = {number: at for at, number in enumerate(found)}
            texts = llava_answers.answer(
                running.loaded.model, running.loaded.tokenizer, pixels, [running.prompts[i] for i in asked],
                image_of=[place[questions.picture[i]] for i in asked], order=vqa_grid.order_of(unit.cell),
                max_new_tokens=running.args.max_answer,
            )
            for i, text in zip(asked, texts, strict=True):
                answers[i - unit.start] = text
    return {"answers": answers, "unreadable": unreadable}


def _where(questions: Questions, i: int) -> str:
    return f"{questions.file}, question {questions.items[i].id}"


def _collect(running: _Run, waiting: list[Cell], final: bool = False) -> None:
    """Record the cells whose shards are all there, in their order. `RecordError` if, at the end, some are not."""
    while waiting:
        units = running.units[waiting[0].key]
        absent = [unit for unit in units if not running.parts.path(unit).is_file()]
        if absent and final:
            raise results.RecordError(f"{len(absent)} of {len(units)} shards of {waiting[0].key} are not in "
                                      f"{running.parts.folder}: do all machines see this folder? Start again")
        if absent:
            return
        _take(running, waiting.pop(0))


def _take(running: _Run, cell: Cell) -> None:
    """Move a cell from its parts into the record, and its answers into the file beside it."""
    questions = running.questions
    parts = [running.parts.read(unit, "answers") for unit in running.units[cell.key]]
    answers = [answer for part in parts for answer in part["answers"]]
    given = [i for i, answer in enumerate(answers) if answer is not None]
    scores = np.full(len(questions), np.nan)
    scores[given] = vqa_metrics.scores(
        questions.benchmark.metric, [answers[i] for i in given], [questions.items[i].answers for i in given])
    _write_answers(running, cell, answers, scores)
    about = cell.describe() | dict(running.costs[cell.key]) | {
        "accuracy": round(100 * float(scores[given].mean()), 3) if given else None,
        "scored": len(given),
        "unreadable": [f"{_where(questions, i)}: {why}" for part in parts for i, why in part["unreadable"]],
        "seconds": round(sum(part["seconds"] for part in parts), 2),
        "devices": sorted({part["device"] for part in parts}),
    }
    running.record.add(cell.key, about, {"score": scores}, running.run)
    shutil.rmtree(running.parts.cell_folder(cell))


def answers_folder(record: results.Record) -> Path:
    """Where the answers of a record's cells lie, in words."""
    return record.path.with_suffix(".answers")


def _write_answers(running: _Run, cell: Cell, answers: Sequence[str | None], scores: np.ndarray) -> None:
    """One line of JSON per question: id, question, answer, score; without answer where there was no picture."""
    questions, folder = running.questions, answers_folder(running.record)
    lines = []
    for item, answer, score in zip(questions.items, answers, scores.tolist(), strict=True):
        found = {"question_id": item.id, "question": item.question, "answer": answer}
        found["score"] = None if answer is None else round(score, results.DIGITS)
        lines.append(json.dumps(found, ensure_ascii=False) + "\n")
    files.write_atomically(folder / f"{cell.key.replace('/', '+')}.jsonl", "".join(lines))
    if questions.left_out:
        files.write_atomically(folder / "left_out.txt", "\n".join([*questions.left_out, ""]))


def _report(running: _Run, cells: Sequence[Cell]) -> int:
    """Say how many questions have no answer; that number, with the records that were left out."""
    unread = list(dict.fromkeys(name for cell in cells for name in running.record.cells[cell.key]["unreadable"]))
    if unread:
        more = len(unread) - SHOWN
        print(f"{len(unread)} of {len(running.questions)} questions have no answer: {'; '.join(unread[:SHOWN])}"
              + (f"; and {more} more" if more > 0 else "") + ". Mend them and pass --again", file=sys.stderr)
    if running.questions.left_out:
        print(f"{len(running.questions.left_out)} records were left out: see "
              f"{answers_folder(running.record).name}/left_out.txt", file=sys.stderr)
    return len(unread) + len(running.questions.left_out)


def summary(record: results.Record, cells: Sequence[Cell]) -> str:
    """A plain table: image tokens, cost, accuracy with its interval, paired differences to whole model and ToMe."""
    lines = [f"{'cell':40s} {'tokens':>6s} {'share':>6s} {'accuracy %':>10s} {'':16s} {'minus whole model':>24s}  "
             f"{'minus ToMe':>24s}"]
    for cell in cells:
        about = record.about(cell.key)
        start = f"{cell.key:40s} {about['image_tokens']:6d} {about['share']:6.3f}"
        if not about["scored"]:
            lines.append(f"{start}   no question has an answer")
            continue
        mean, low, high = (100 * value for value in record.estimate(cell.key, "score", skip_missing=True))
        rival = record.rival_of(cell.key) or ""
        lines.append(f"{start} {mean:10.2f} [{low:6.2f}, {high:6.2f}] {_against(record, cell.key, grid.WHOLE):>24s}  "
                     f"{_against(record, cell.key, rival):>24s}".rstrip())
    return "\n".join(lines)


def _against(record: results.Record, key: str, rival: str) -> str:
    if rival == key or rival not in record or not record.cells[rival]["scored"]:
        return ""
    found = record.difference(key, rival, "score", skip_missing=True)
    return Difference(*(100 * v for v in (found.mean, found.low, found.high)), found.items, found.clusters,
                      found.detectable).format(2)
