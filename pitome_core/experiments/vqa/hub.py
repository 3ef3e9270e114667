"""VQAv2, GQA and TextVQA with a merged LLaVA, off the shelf: the paper tier of `vqa`, in the setting of Table 3.

Models: ``llava-hf/llava-1.5-7b-hf``, or another LLaVA in the format of transformers, from the hub or a folder; its
vision tower merges, and its language model reads the merged tokens (``restore=False``). Data: the official files of a
benchmark and the folder of its pictures (`vqa.files`); others plug in (`vqa.benchmarks`). Answers are greedy.

A record that is malformed, or whose picture is missing, stops the run with its file and entry; with
``--skip-malformed`` it is left out, named and counted. The same holds for a picture that cannot be decoded, which shows
only when its turn comes: finished shards are kept.

A part holds the answers as they were given. The record has the score of every question. The folder
``<record>.answers`` has a file ``<cell>.jsonl`` with question, answer and score in words, and ``left_out.txt`` with the
records that were left out.

The vision tower and the projector stay in float32 whatever ``--dtype`` says, because small differences change plans.
Pictures are padded to a square as LLaVA-1.5 was trained; the processor on the hub crops them (``--square crop``).
Neither the system sentence of the conversation nor, for TextVQA, words that an OCR system read stand in the prompt.

Files: VQAv2 has ``v2_OpenEnded_mscoco_val2014_questions.json`` and ``v2_mscoco_val2014_annotations.json`` with COCO's
``val2014``; GQA ``testdev_balanced_questions.json`` with ``images``; TextVQA ``TextVQA_0.5.1_val.json`` with
``train_images``. VQAv2's answers for test-dev, on which LLaVA's own figure is, are not public.

On several GPUs, with the paper's and the released variant, each in our order and in that of the released code:

    accelerate launch -m pitome_core.experiments vqa --profile paper --data vqav2 \\
        --questions v2_OpenEnded_mscoco_val2014_questions.json --annotations v2_mscoco_val2014_annotations.json \\
        --images val2014 --methods pitome pitome-released-llava tome --order raster-centroid released
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pitome_core.experiments.models import llava_answers
from pitome_core.experiments.models.llava_answers import IMAGE, ORDERS
from pitome_core.experiments.records import files, results
from pitome_core.experiments.records.cells import WHOLE, Cell, checked, with_counterparts
from pitome_core.experiments.runs import decoding, sharded, shards, summary
from pitome_core.experiments.runs.sharded_task import UNREADABLE, ShardedTask, joined
from pitome_core.experiments.runs.shards import Refused, Unit
from pitome_core.experiments.vqa import benchmarks as vqa_benchmarks
from pitome_core.experiments.vqa import files as vqa_files
from pitome_core.experiments.vqa import grid as vqa_grid
from pitome_core.experiments.vqa import metrics as vqa_metrics
from pitome_core.experiments.vqa.benchmarks import Benchmark
from pitome_core.experiments.vqa.loaded_llava import MODEL, SQUARES, LoadedLlava, load_model

PROTOCOL = "vqa-paper-1"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the paper tier."""
    group = parser.add_argument_group("paper tier", f"One benchmark, {shards.SCORED_WHOLE}.")
    group.add_argument("--model", nargs="+", default=[MODEL], metavar="MODEL",
                       help=f"a LLaVA in the format of transformers: a name on the hub or a folder (default: {MODEL})")
    group.add_argument("--data", default="vqav2", metavar="BENCHMARK",
                       help=f"{', '.join(vqa_benchmarks.benchmarks())}, or what --plugin adds (default: %(default)s)")
    group.add_argument("--plugin", metavar="MODULE",
                       help="a module to import first, which registers another benchmark: see vqa.benchmarks")
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
    """Score what was asked for; the exit status, as `sharded.run` gives it."""
    def load_task(
        args: argparse.Namespace, device: torch.device, questions: BenchmarkQuestions, spec: str
    ) -> ShardedTask:
        return BenchmarkAnswers(args, device, questions, load_model(spec, args.dtype, args.square, device))

    return sharded.run(args, _load_data, load_task)


def _load_data(args: argparse.Namespace) -> BenchmarkQuestions:
    """The questions, after a check of the arguments that stand by themselves."""
    shards.check_numbers(args, "first", "max_answer")
    if args.first and args.split == "test":
        raise Refused("--first is for trials: the test set is scored as a whole")
    _cells(args)
    return load_questions(args)


# --- data


@dataclass(frozen=True)
class BenchmarkQuestions:
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


def load_questions(args: argparse.Namespace) -> BenchmarkQuestions:
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
        content = benchmark.read(args.questions, args.images, args.annotations, args.skip_malformed)
    except (OSError, ValueError) as error:  # a MalformedError is a ValueError
        raise Refused(str(error).replace("skip=True", "--skip-malformed")) from error
    items = content.items[: args.first]
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
    return BenchmarkQuestions(
        benchmark, args.questions.name, items, tuple(pictures), tuple(pictures[item.image] for item in items),
        content.problems, digest.hexdigest()[:12],
    )


# --- cells

COMPACT = "raster-compact"
KEEPS = (0.9,)  # of Table 3 for the model of 7B
# The rows of Table 3, with the presets and controls that say where a difference comes from. --methods may name all of
# `vqa_grid.ARMS`.
ARMS = {name: vqa_grid.ARMS[name] for name in ("pitome", "energy-sorted", "tome", "tofu", "dct", "diffrate",
                                               "random-merge", "random-prune", vqa_grid.RELEASED)}


def cells(
    arms: Sequence[str] | None = None, keeps: Sequence[float] = KEEPS, orders: Sequence[str] = ORDERS[:1]
) -> list[Cell]:
    """The whole model, then each arm (None: all of `ARMS`) at each keep ratio in each order of `llava_answers.ORDERS`.

    Every cell has its counterpart beside it (`Cell.beside`) if that is of one of the arms. What a transform leaves lies
    nowhere on the grid, so that its tokens are read as they come, whatever the orders.
    `ValueError` for an arm that does not exist or a keep ratio that is none.
    """
    chosen = [Cell(WHOLE)]
    names = checked(ARMS if arms is None else arms, keeps, tuple(vqa_grid.ARMS))
    for name in names:
        possible = (COMPACT,) if vqa_grid.ARMS[name].kind == "transform" else orders
        chosen += [Cell(name, keep, order=order) for keep in keeps for order in possible]
    return with_counterparts(chosen, names)


def _cells(args: argparse.Namespace) -> list[Cell]:
    with shards.refusing():
        return cells(args.methods, args.keep or KEEPS, args.order)


# --- scoring


class BenchmarkAnswers(ShardedTask):
    """The ``score`` of a LLaVA's answer to every question, by the metric of the benchmark."""

    experiment, protocol, clusters = "vqa", PROTOCOL, ("picture",)

    def __init__(
        self, args: argparse.Namespace, device: torch.device, questions: BenchmarkQuestions, llava: LoadedLlava
    ):
        super().__init__(args, device)
        self.questions, self.llava = questions, llava
        benchmark = questions.benchmark
        self.prompts = [benchmark.prompt(item.question) for item in questions.items]
        # How many prompts have each number of tokens, the picture not counted.
        self.lengths = Counter(len(ids) - 1 for ids in llava.tokenizer(self.prompts)["input_ids"])
        self.name = f"{benchmark.name}{f'-first{args.first}' if args.first else ''}-{llava.slug}"
        self.what = f"{len(questions)} questions on {len(questions.pictures)} pictures"
        self.items = {"id": [item.id for item in questions.items], "picture": questions.picture}
        self.about = {
            "model": llava.name, "weights": llava.digest, "square": args.square, "template": benchmark.template,
            "max_answer": args.max_answer, "metric": benchmark.metric,
            "data": {"name": benchmark.name, "file": questions.file, "questions": len(questions),
                     "pictures": len(questions.pictures), "left_out": len(questions.left_out),
                     "list": questions.digest},
        }
        self.identity = {"preprocessing": llava.preprocessing}
        self.left_out, self.cells = questions.left_out, _cells(args)

    def applied(self, piece: Cell) -> AbstractContextManager[nn.Module]:
        return vqa_grid.applied(piece, self.llava.model)

    def cost(self, cell: Cell) -> Mapping[str, Any]:
        return vqa_grid.cost(cell, self.llava.model, self.lengths)

    def batches(self, units: Sequence[Unit]) -> Iterator[decoding.Batch]:
        picture = self.questions.picture
        places = (  # of pictures: two questions on one need it once
            [(number, None) for number in dict.fromkeys(picture[i] for i in batch)]
            for unit in units for batch in unit.batches(self.args.batch_size)
        )
        pictures = decoding.PictureFiles(self.questions.pictures)
        return decoding.batches(pictures, {None: self.llava.prepare}, places, self.args, self.device)

    def score(self, running: nn.Module, unit: Unit, batches: Iterator[decoding.Batch]) -> dict[str, Any]:
        """``answers``: a text for each question, None where the picture cannot be read."""
        answers, unreadable = [None] * len(unit), {}
        for batch in unit.batches(self.args.batch_size):
            numbers, pixels, reasons = next(batches)
            for i in batch:
                if (number := self.questions.picture[i]) in reasons:
                    name, line = self._unreadable(i, reasons[number])
                    unreadable[name] = line
            asked = [i for i in batch if self.questions.picture[i] not in reasons]
            for i, text in zip(asked, self._answers(running, unit.piece, asked, numbers, pixels), strict=True):
                answers[i - unit.start] = text
        return {"answers": answers, UNREADABLE: unreadable}

    def _answers(
        self, running: nn.Module, piece: Cell, asked: Sequence[int], numbers: Sequence[int], pixels: Tensor | None
    ) -> list[str]:
        """Answers to the questions ``asked``; ``pixels`` are those of the pictures ``numbers``."""
        if not asked:
            return []
        place = {number: at for at, number in enumerate(numbers)}
        return llava_answers.answer(
            running, self.llava.tokenizer, pixels, [self.prompts[i] for i in asked],
            image_of=[place[self.questions.picture[i]] for i in asked], order=vqa_grid.order_of(piece),
            max_new_tokens=self.args.max_answer,
        )

    def _unreadable(self, i: int, why: str) -> tuple[str, str]:
        """What record and screen say of a question whose picture cannot be read. `Refused` unless such are left out.
        """
        where = f"{self.questions.file}, question {self.questions.items[i].id}: cannot read "
        where += self.questions.pictures[self.questions.picture[i]].name
        if not self.args.skip_malformed:
            raise Refused(f"{where} ({why}): mend it and start again, or leave such questions out with "
                          "--skip-malformed; finished shards are kept")
        return f"{where} ({why.partition(':')[0]})", f"{where} ({why})"  # the whole reason names folders

    def assemble(self, cell: Cell, parts: Sequence[Sequence[Mapping]]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Accuracy and scores. The answers go into `answers_folder`."""
        answers = joined(parts[0], "answers")
        given = [i for i, answer in enumerate(answers) if answer is not None]
        scores = np.full(len(answers), np.nan)
        scores[given] = vqa_metrics.scores(
            self.questions.benchmark.metric, [answers[i] for i in given],
            [self.questions.items[i].answers for i in given],
        )
        self._write_answers(cell, answers, scores)
        accuracy = round(100 * float(scores[given].mean()), 3) if given else None
        return {"accuracy": accuracy, "scored": len(given)}, {"score": scores}

    def _write_answers(self, cell: Cell, answers: Sequence[str | None], scores: np.ndarray) -> None:
        """One line of JSON per question: id, question, answer, score; without answer where there was no picture."""
        lines = []
        for item, answer, score in zip(self.questions.items, answers, scores.tolist(), strict=True):
            line = {"question_id": item.id, "question": item.question, "answer": answer,
                    "score": None if answer is None else round(score, results.DIGITS)}
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
        folder = answers_folder(self.path)
        file = folder / f"{cell.key.replace('/', '+')}.jsonl"
        files.write_atomically(file, "".join(lines))
        for one in files.left_over(file):  # by a run that was killed here; this one holds the lock of the record
            one.unlink()
        if self.left_out:
            files.write_atomically(folder / "left_out.txt", "\n".join([*self.left_out, ""]))

    def table(self, record: results.Record) -> str:
        """Image tokens, cost, accuracy with its interval, and paired differences in points."""
        columns = {"tokens": lambda key: record.about(key)["image_tokens"]} | summary.share(record) | {
            "accuracy %": summary.percent(record, "score"),
        }
        return summary.table(record, self.cells, columns, summary.points(record, "score"), "accuracy")


def answers_folder(record: Path) -> Path:
    """Where the answers of a record's cells lie, in words; ``record`` is its file."""
    return record.with_suffix(".answers")
