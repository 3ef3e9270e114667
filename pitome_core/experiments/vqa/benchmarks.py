"""Benchmarks of visual question answering: how one is read, asked and scored. A small interface that others plug into.

VQAv2, GQA and TextVQA are registered here in the way that any other is: a reader of its official files, a metric of
`vqa_metrics`, a prompt. One more of the paper's Table 3, in a module ``vizwiz.py`` that ``--plugin vizwiz`` imports:

    from pitome_core.experiments.vqa import benchmarks, files, metrics

    def read(questions, images, annotations, skip):
        return files.Items("vizwiz", tuple(...), problems)     # an Item for each good record, a line for each other

    metrics.register_metric("vizwiz", metrics.normalise_vqa, metrics.vqa_accuracy)
    benchmarks.register_benchmark(benchmarks.Benchmark("vizwiz", read, "vizwiz"))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pitome_core.experiments.models.llava_answers import IMAGE
from pitome_core.experiments.vqa import files as vqa_files
from pitome_core.experiments.vqa import metrics as vqa_metrics

# The conversation that LLaVA-1.5 was tuned on, and the request that goes with questions of short answers.
TEMPLATE = "USER: <image>\n{question}\nAnswer the question using a single word or phrase. ASSISTANT:"

Reader = Callable[[Path, Path, Path | None, bool], vqa_files.Items]


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        name: what ``--data`` calls it.
        read: ``read(questions, images, annotations, skip)`` -> `vqa_files.Items`: of the file of questions, the folder
            of pictures, the second file where the benchmark has one (else None). It raises
            `vqa_files.MalformedError`, which names file and record, or with ``skip`` lists these in ``problems``.
        metric: a name in `vqa_metrics`.
        template: the prompt, with ``{question}`` and one ``<image>``.
    """

    name: str
    read: Reader
    metric: str
    template: str = TEMPLATE

    def prompt(self, question: str) -> str:
        """What the language model reads for a question; its picture goes where ``<image>`` stands."""
        return self.template.replace("{question}", question)


_BENCHMARKS: dict[str, Benchmark] = {}


def benchmarks() -> tuple[str, ...]:
    """Names of the benchmarks there are."""
    return tuple(_BENCHMARKS)


def benchmark(name: str) -> Benchmark:
    """A benchmark by its name. Raises ``KeyError`` for one that is not registered."""
    if name not in _BENCHMARKS:
        raise KeyError(f"no benchmark {name!r}; there are {', '.join(_BENCHMARKS)}, and --plugin adds others")
    return _BENCHMARKS[name]


def register_benchmark(new: Benchmark) -> Benchmark:
    """Add a benchmark.

    Raises:
        ValueError: a name that is taken, or a template without ``{question}`` or with other than one ``<image>``.
        KeyError: a metric that is not registered.
    """
    if new.name in _BENCHMARKS:
        raise ValueError(f"there is a benchmark {new.name!r} already; choose another name")
    if "{question}" not in new.template or new.template.count(IMAGE) != 1:
        raise ValueError(f"the template {new.template!r} needs {{question}} and {IMAGE}, once")
    vqa_metrics.metric(new.metric)
    _BENCHMARKS[new.name] = new
    return new


def _official(name: str, questions: Path, images: Path, annotations: Path | None, skip: bool) -> vqa_files.Items:
    return vqa_files.load(name, questions, images, annotations, skip=skip)


for _name in ("vqav2", "gqa", "textvqa"):
    register_benchmark(Benchmark(_name, partial(_official, _name), _name))
