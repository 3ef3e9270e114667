"""Benchmarks of visual question answering: how each is read, asked and scored.

VQAv2, GQA and TextVQA are registered here. A benchmark is a reader of its official files, a metric of `vqa.metrics` and
a prompt. Another one, such as VizWiz in the paper's Table 3, is a module ``vizwiz.py`` that ``--plugin vizwiz``
imports:

    from pitome_core.experiments.vqa import benchmarks, files, metrics

    def read(questions, images, annotations, skip):
        return files.Items("vizwiz", items, problems)  # an Item for each good record, a line for each other record

    metrics.register_metric("vizwiz", metrics.normalise_vqa, metrics.vqa_accuracy)
    benchmarks.register_benchmark(benchmarks.Benchmark("vizwiz", read, "vizwiz"))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pitome_core.experiments.models.llava_answers import IMAGE
from pitome_core.experiments.vqa import files, metrics

# The form of conversation on which LLaVA-1.5 was tuned, with its request for short answers.
TEMPLATE = "USER: <image>\n{question}\nAnswer the question using a single word or phrase. ASSISTANT:"

Reader = Callable[[Path, Path, Path | None, bool], files.Items]


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        name: what ``--data`` calls it.
        read: a function ``read(questions, images, annotations, skip)`` that returns `files.Items`. Its arguments are
            the file of questions, the folder of pictures, and the second file or None. For records that cannot be used
            it raises `files.MalformedError`, which names file and record, or with ``skip`` it lists them in
            ``problems``.
        metric: the name of a metric in `vqa.metrics`.
        template: the prompt, with ``{question}`` once or more and ``<image>`` once.
    """

    name: str
    read: Reader
    metric: str
    template: str = TEMPLATE

    def prompt(self, question: str) -> str:
        """The text that the language model reads for a question. The picture takes the place of ``<image>``."""
        return self.template.replace("{question}", question)


_BENCHMARKS: dict[str, Benchmark] = {}


def benchmarks() -> tuple[str, ...]:
    """Names of the registered benchmarks."""
    return tuple(_BENCHMARKS)


def benchmark(name: str) -> Benchmark:
    """The benchmark with this name. Raises ``KeyError`` for a name that is not registered."""
    if name not in _BENCHMARKS:
        raise KeyError(f"no benchmark {name!r}; there are {', '.join(_BENCHMARKS)}, and --plugin adds others")
    return _BENCHMARKS[name]


def register_benchmark(new: Benchmark) -> Benchmark:
    """Add a benchmark and return it.

    Raises:
        ValueError: a name that is taken, or a template without ``{question}`` or not with exactly one ``<image>``.
        KeyError: a metric that is not registered.
    """
    if new.name in _BENCHMARKS:
        raise ValueError(f"there is a benchmark {new.name!r} already; choose another name")
    if "{question}" not in new.template or new.template.count(IMAGE) != 1:
        raise ValueError(f"the template {new.template!r} needs {{question}} and {IMAGE}, once")
    metrics.metric(new.metric)  # raises if there is none
    _BENCHMARKS[new.name] = new
    return new


for _name in files.READERS:
    register_benchmark(Benchmark(_name, partial(files.load, _name), _name))
