"""Which method, at which keep ratio, a model and its inputs stand: `pc.diagnose(model, images)`.

The whole model and a small grid of merged ones run on the user's own inputs. What merging saves is counted and timed,
what it changes is compared with the whole model, and the keys of every layer are measured. No labels are needed, and so
nothing is known about accuracy; what the records of this project say about that stands in `diagnose`.
"""

from __future__ import annotations

import html
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from . import checks
from .counting import flops
from .drawing import plot_diagnosis
from .energy import margin_schedule
from .family import Family
from .intervals import items_needed, mean_interval, share_interval
from .layer_measures import LayerMeasures, measure_layers
from .mergers import find_method
from .patching import family_of, patched, paused

TARGET = 0.9
_MIN_ROUNDS, _MAX_ROUNDS = 3, 15
_IMAGES = ""  # what images are called that are no keyword input
_UNKNOWN = (
    "Labels: nothing here is accuracy. Accuracy moves by at most the share of answers that change; by how much less, "
    "and in which direction, is not known.",
    "How likeness ranks settings: in recorded vision runs it ranked the accuracy of all settings well, of settings "
    "with high likeness unevenly, and on one task not at all.",
    "Other inputs than these, and models that are trained with merging on.",
    "The choice: each interval is for its own setting, and the best of several is a little worse than it looks.",
)


@dataclass(frozen=True)
class Measured:
    """One method at one keep ratio, beside the whole model.

    Attributes:
        method: the method, or the name that it was given.
        keep: share of the patch tokens that each layer keeps.
        flops: multiply-accumulates, as a share of the whole model's; exact.
        faster: (least, median, greatest) of the seconds of the whole model over those of this one, round by round; None
            if nothing was timed.
        same: how many items have the same top answer; None for a model without answers.
        agreement: (low, high), the 95 % interval of Wilson for the share of items with the same top answer, or None.
        likeness: mean cosine of the pooled output with the whole model's; where a model hands out none, of the class
            token (or mean token) of its last hidden state; None where there is neither.
        likeness_interval: (low, high), Student's 95 % interval for that mean, or None. Fewer than 4 items have -1 to 1.
        patches: mean cosine of patch tokens with the whole model's, merged ones copied back; None where there are none.
    """

    method: str
    keep: float
    flops: float
    faster: tuple[float, float, float] | None
    same: int | None
    agreement: tuple[float, float] | None
    likeness: float | None
    likeness_interval: tuple[float, float] | None
    patches: float | None

    @property
    def score(self) -> float:
        """What has to reach the target: the lower end of the interval of agreement, else of likeness; else -1."""
        return (self.agreement or self.likeness_interval or (-1.0,))[0]


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """What `diagnose` found. Printing gives two tables and the recommendation.

    Attributes:
        model: the name of its class.
        count: how many items were looked at.
        device: where they ran.
        timed: how many items one timed call has; 0 if nothing was timed.
        target: what the recommended setting has to reach.
        settings: one entry per method and keep ratio.
        layers: what each layer of the whole model offers.
        recommended: the place of the recommended setting in `settings`, or None.
        reason: why it is that one, or why there is none.
        unknown: what this cannot know.
    """

    model: str
    count: int
    device: str
    timed: int
    target: float
    settings: tuple[Measured, ...]
    layers: tuple[LayerMeasures, ...]
    recommended: int | None
    reason: str
    unknown: tuple[str, ...] = _UNKNOWN

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, for JSON."""
        return asdict(self)

    def plot(self, axes: Any = None) -> Any:
        """Draw what stays against what it costs, into `axes` or a new figure; the axes. ImportError without matplotlib.

        What stays is the share of unchanged answers or the likeness, with its interval.
        """
        return plot_diagnosis(self, axes)

    def __str__(self) -> str:
        parts = [self._title()]
        for rows in self._tables():
            widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
            parts.append("\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows))
        return "\n\n".join([*parts, self.reason, "Not known:\n" + "\n".join(f"- {line}" for line in self.unknown)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        parts = [f"<p>{html.escape(self._title())}</p><p><b>{html.escape(self.reason)}</b></p>"]
        for head, *rows in self._tables():
            lines = ["".join(f"<th>{html.escape(cell)}</th>" for cell in head)]
            lines += ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
            parts.append(f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>")
        points = "".join(f"<li>{html.escape(line)}</li>" for line in self.unknown)
        return "".join([*parts, f"<p>Not known:</p><ul>{points}</ul>"])

    def _title(self) -> str:
        timed = f"timed with {self.timed} at a time" if self.timed else "not timed"
        return f"{self.model}, {self.count} items, {self.device}, {timed}"

    def _tables(self) -> list[list[list[str]]]:
        """The settings and the layers, as rows of text with a header."""

        def text(value: float | None, digits: int = 3) -> str:
            return "-" if value is None else f"{value:.{digits}f}"

        settings = [["method", "keep", "FLOPs", "times as fast", "same answer", "likeness", "patches"]]
        for i, one in enumerate(self.settings):
            like = one.likeness_interval
            fast = "-" if one.faster is None else "{1:.2f} ({0:.2f} to {2:.2f})".format(*one.faster)
            same = "-" if one.same is None else "{} of {} [{:.3f}, {:.3f}]".format(one.same, self.count, *one.agreement)
            like = "-" if like is None else "{:.3f} [{:.3f}, {:.3f}]".format(one.likeness, *like)
            name = f"{one.method} <-" if i == self.recommended else one.method
            settings.append([name, f"{one.keep:g}", text(one.flops), fast, same, like, text(one.patches)])
        layers = [["layer", "margin", "mean cosine", "tightness (chance)", "spread of energy", "isolated", "keys are"]]
        for one in self.layers:
            about = " and ".join(name for name in ("parallel", "tight") if getattr(one, name)) or "loose"
            layers.append([str(one.layer), text(one.margin), text(one.cosine),
                           f"{one.tightness:.3f} ({one.chance:.3f})", text(one.spread), text(one.isolated), about])
        return [settings, layers]


class _Outputs(NamedTuple):
    """What a model says of a batch: scores of answers `(B, K)`, pooled output `(B, C)`, patch tokens `(B, N, C)`."""

    answers: Tensor | None
    pooled: Tensor | None
    tokens: Tensor | None


def diagnose(
    model: nn.Module,
    images: Any,
    *,
    keeps: Sequence[float] = (0.95, 0.9, 0.85, 0.8),
    methods: Sequence[str] | Mapping[str, Mapping[str, Any]] = ("tome", "pitome"),
    target: float | None = None,
    head: Callable[[Tensor], Tensor] | None = None,
    batch_size: int = 16,
    seconds: float = 30.0,
    progress: Callable[[str], None] | None = None,
) -> Diagnosis:
    """Say which method and keep ratio a model stands on inputs of yours, what it saves, and why.

    Args:
        model: a supported model. It is left as it was: merging applied before, training mode, gradients.
        images: preprocessed images `(n, 3, H, W)`; or keyword inputs, a dict of tensors with n items each (texts); or a
            list of batches of either kind.
        keeps: shares of the patch tokens that each layer keeps.
        methods: names from `pc.methods()`; or a name of your own -> arguments of `pc.apply`, such as
            `{"centred": {"method": "pitome", "metric": "keys-centred"}}`.
        target: what a setting has to reach, below 1: the lower end of the interval of the share of unchanged top
            answers, or without answers that of the mean likeness. None = 0.9: accuracy then falls by at most ten
            points, and 64 items, of which one may change, can show it. A target of 0.95 takes 73 items of which none
            changes.
        head: makes scores of answers from the pooled output, for models without: a linear probe, or
            `lambda features: features @ texts.T` of a CLIP.
        batch_size: items of one call.
        seconds: about how long timing takes, on the model's device, in rounds that time every setting and the whole
            model in turns; at least 3 rounds. Fewer items are timed at once where that would take longer. 0: nothing is
            timed.
        progress: called with a line about what is done next.

    Returns:
        A `Diagnosis`. All but the times is the same in every call.

    Raises:
        ValueError, TypeError: no items, a target that is no share, and what `pc.apply` refuses.
        UnsupportedModelError: a model that does not merge by itself. Of a LLaVA diagnose the vision tower.

    **The recommendation** is the setting of fewest FLOPs among those that reach the target, whatever its method. With
    fewer than `target z^2 / (1 - target)` items there is none, because not even full agreement would show it. (The same
    number is asked for without answers.) It is made for FLOPs; where the clock says otherwise, the reason does too.

    **What likeness is worth.** In the recorded vision runs of this project the ranking of settings by likeness to the
    whole model agrees with their ranking by accuracy: Spearman's correlation is .80 to .99 over all settings of a task,
    by unchanged answers (digits .99, emoji .88, groups of stamps .81) and by correlation of saliency maps (.80 to .89).
    Among settings with a likeness above .8, those that one would choose among, it is .96 on digits, .50 on the wide
    scenes, and .04 on the first set of scenes, where some settings of lower likeness were more accurate. So a low
    likeness is a warning, and small differences between high ones say nothing.

    Example:
        >>> import timm, torch, pitome_core as pc
        >>> model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2).eval()  # random weights
        >>> found = pc.diagnose(model, torch.randn(4, 3, 64, 64), keeps=[0.75], seconds=0)
        >>> [(one.method, round(one.flops, 2)) for one in found.settings]
        [('tome', 0.78), ('pitome', 0.78)]
        >>> print(found.reason)
        4 items are too few for a recommendation: at least 35 are needed to show a target of 0.9.
    """
    target = TARGET if target is None else checks.number(target, "target")
    if not 0 < target < 1:
        raise ValueError(f"target must be above 0 and below 1, got {target:g}: no number of items shows that all agree")
    named = methods if isinstance(methods, Mapping) else {name: {"method": name} for name in methods}
    grid = [(name, keep, dict(given)) for name, given in named.items() for keep in keeps]
    say = progress or (lambda line: None)
    with _evaluated(model), paused(model), torch.no_grad():
        family, device = family_of(model), next(model.parameters()).device
        batches = _batches(images, batch_size, device)
        count = sum(map(_length, batches))
        if not grid or not count:
            raise ValueError(f"nothing to diagnose: {len(grid)} settings and {count} items")
        sizes = Counter(size for batch in batches for size in _sizes(batch))
        whole = _cost(model, sizes)
        shares = []
        for _, keep, given in grid:  # first, so that what cannot be applied is refused before anything runs
            with patched(model, keep=keep, **given):
                shares.append(_cost(model, sizes) / whole)
        shape = family.shape(model, next(iter(sizes)))
        began = time.perf_counter()
        rows: list[list[Tensor]] = [[] for _ in grid]
        for number, batch in enumerate(batches, 1):
            say(f"batch {number} of {len(batches)}")
            reference = _read(model, batch, family, shape.prefix, head)
            if reference.answers is None and reference.pooled is None:
                raise ValueError(f"the output of a {type(model).__qualname__} has no scores, no pooled output "
                                 "and no tokens to compare: diagnose the tower inside it")
            for values, (_, keep, given) in zip(rows, grid, strict=True):
                with patched(model, keep=keep, **given):
                    drops = find_method(given.get("method", "pitome")).drops
                    values.append(_compared(_read(model, batch, family, shape.prefix, head, drops), reference, batch))
        say("keys of the layers")
        calls = [lambda batch=batch: _call(model, batch) for batch in batches]
        layers = measure_layers(model, calls, margin_schedule(len(shape.layers)))
        fast, timed = [None] * len(grid), 0
        if seconds > 0:
            each = (time.perf_counter() - began) / count  # of a round, about
            timed = max(1, min(_length(batches[0]), int(seconds / (_MIN_ROUNDS + 1) / each)))
            fast = _timed(model, {name: value[:timed] for name, value in batches[0].items()}, grid, seconds, say)
    settings = []
    for (name, keep, _), share, faster, values in zip(grid, shares, fast, rows, strict=True):
        values = torch.cat(values)  # (count, 3)
        same, likeness, patches = _means(values)
        hits = None if same is None else round(same * count)
        agreement = None if hits is None else share_interval(hits, count)
        between = None if likeness is None else mean_interval(values[:, 1])
        settings.append(Measured(name, float(keep), share, faster, hits, agreement, likeness, between, patches))
    best, reason = _recommend(settings, layers, count, target, timed)
    return Diagnosis(type(model).__qualname__, count, device.type, timed, target, tuple(settings), tuple(layers), best,
                     reason)


@contextmanager
def _evaluated(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for the length of a `with` block; afterwards every module is in the mode that it was in."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a model, got a {type(model).__qualname__}")
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _batches(images: Any, size: int, device: torch.device) -> list[dict[str, Tensor]]:
    """Batches of at most `size` items on the device, by the names of arguments; images alone are under `_IMAGES`."""
    batches = []
    for given in images if isinstance(images, (list, tuple)) else [images]:
        named = dict(given) if isinstance(given, Mapping) else {_IMAGES: given}
        if not named or not all(isinstance(value, Tensor) for value in named.values()):
            raise TypeError("images must be a tensor, a dict of tensors, or a list of these")
        parts = [value.to(device).split(checks.count(size, "batch_size", 1)) for value in named.values()]
        batches += [dict(zip(named, part, strict=True)) for part in zip(*parts, strict=True)]
    return batches


def _length(batch: dict[str, Tensor]) -> int:
    return len(next(iter(batch.values())))


def _sizes(batch: dict[str, Tensor]) -> list[tuple[int, ...]]:
    """The size of every item: (channels, height, width), or (tokens,) of a text without its padding."""
    if "attention_mask" in batch:
        return [(length,) for length in batch["attention_mask"].sum(dim=1).tolist()]
    first = batch.get("pixel_values", next(iter(batch.values())))
    return [tuple(first.shape[1:])] * len(first)


def _cost(model: nn.Module, sizes: Counter) -> int:
    return sum(number * flops(model, size).total for size, number in sizes.items())


def image_call(model: nn.Module) -> Callable[..., Any]:
    """What takes images alone: the image tower of a model with two towers (open_clip, transformers), else the model."""
    towers = [name for name in ("encode_image", "get_image_features") if hasattr(model, name)]
    return getattr(model, towers[0]) if towers else model


def _call(model: nn.Module, batch: dict[str, Tensor], **options: Any) -> Any:
    """Run the model as its users do."""
    return image_call(model)(batch[_IMAGES], **options) if _IMAGES in batch else model(**batch, **options)


def _read(
    model: nn.Module, batch: dict[str, Tensor], family: Family, prefix: int, head: Callable | None, drops: bool = False
) -> _Outputs:
    """Run the model and read what it says, by the library that it is from.

    A model that drops tokens has no head for tokens that come back as zeros, so that its own output alone is read.
    """
    library, tower = type(model).__module__.partition(".")[0], getattr(model, "visual", model)
    answers = pooled = tokens = None
    timm, step_by_step = hasattr(model, "forward_head"), not drops and _IMAGES in batch
    if timm and step_by_step:
        tokens = model.forward_features(batch[_IMAGES])
        pooled = model.forward_head(tokens, pre_logits=True)
        answers = model.forward_head(tokens) if model.num_classes > 0 else None
    elif library == "open_clip" and step_by_step:
        output = tower.forward_intermediates(batch[_IMAGES], indices=1, output_fmt="NLC")
        pooled, tokens, prefix = output["image_features"], output["image_intermediates"][-1], 0
    else:
        options = {"output_hidden_states": True} if library == "transformers" and not drops else {}
        output = _call(model, batch, **options)
        if isinstance(output, Tensor):
            answers, pooled = (output, None) if timm and model.num_classes > 0 else (None, output)
        else:
            answers, pooled = getattr(output, "logits", None), getattr(output, "pooler_output", None)
            tokens = getattr(output, "last_hidden_state", None)
            if tokens is None and getattr(output, "hidden_states", None):
                tokens = output.hidden_states[-1]
    if pooled is not None and pooled.ndim == 3:
        pooled, tokens = None, pooled
    if pooled is None and tokens is not None:
        pooled = tokens[:, 0] if prefix or family.ragged else tokens.mean(dim=1)
    if head is not None and pooled is not None:
        answers = head(pooled)
    answers = answers if answers is not None and answers.ndim == 2 and answers.shape[1] > 1 else None
    return _Outputs(answers, pooled, tokens if tokens is None or family.ragged else tokens[:, prefix:])


def _compared(here: _Outputs, whole: _Outputs, batch: dict[str, Tensor]) -> Tensor:
    """`(B, 3)`: same top answer, cosine of the pooled output, mean cosine of the tokens; NaN where there is none."""
    values = torch.full((_length(batch), 3), torch.nan, dtype=torch.float64)
    if here.answers is not None and whole.answers is not None:
        values[:, 0] = here.answers.argmax(dim=1) == whole.answers.argmax(dim=1)
    if here.pooled is not None and here.pooled.shape == whole.pooled.shape:
        values[:, 1] = cosine_similarity(here.pooled.float(), whole.pooled.float())
    if here.tokens is not None:
        cosines = cosine_similarity(here.tokens.float(), whole.tokens.float(), dim=-1)  # (B, N)
        mask = batch.get("attention_mask", torch.ones_like(cosines))
        values[:, 2] = (cosines * mask).sum(dim=1) / mask.sum(dim=1)
    return values


def _means(values: Tensor) -> list[float | None]:
    return [None if math.isnan(mean) else mean for mean in values.mean(dim=0).tolist()]


def _timed(
    model: nn.Module, batch: dict[str, Tensor], grid: list, seconds: float, say: Callable[[str], None]
) -> list[tuple[float, float, float]]:
    """Seconds of the whole model over those of each setting: least, median, greatest of the rounds.

    A machine that gets slower does so for all. The first round warms up and does not count.
    """
    device = next(model.parameters()).device
    turns: list[list[float]] = []
    began = time.perf_counter()

    def once() -> float:
        start = time.perf_counter()
        _call(model, batch)
        if device.type != "cpu":
            getattr(torch, device.type).synchronize(device)
        return time.perf_counter() - start

    while len(turns) <= _MIN_ROUNDS or (time.perf_counter() - began < seconds and len(turns) <= _MAX_ROUNDS):
        say(f"timing, round {len(turns) or 'to warm up'}")
        turn = [0.0] * (len(grid) + 1)
        for place in range(len(turn)):
            here = (place + len(turns)) % len(turn)  # each round begins with another one
            _, keep, given = grid[here - 1]
            with patched(model, keep=keep, **given) if here else nullcontext():
                turn[here] = once()
        turns.append(turn)
    ratios = [[turn[0] / turn[place] for turn in turns[1:]] for place in range(1, len(grid) + 1)]
    return [(min(values), statistics.median(values), max(values)) for values in ratios]


def _recommend(
    settings: list[Measured], layers: list[LayerMeasures], count: int, target: float, timed: int
) -> tuple[int | None, str]:
    """The place of the recommended setting and the reason; None and why not."""
    needed = items_needed(target)
    if count < needed:
        return None, (f"{count} items are too few for a recommendation: at least {needed} are needed to show a target "
                      f"of {target:g}.")
    what = "share of unchanged answers" if settings[0].same is not None else "mean likeness"
    order = sorted(range(len(settings)), key=lambda i: (settings[i].flops, -settings[i].score))
    best = next((i for i in order if settings[i].score >= target), None)
    if best is None:
        most = max(settings, key=lambda one: one.score)
        return None, (f"No setting reaches the target of {target:g}: the lower end of the {what} is at most "
                      f"{most.score:.3f} ({most.method} at keep {most.keep:g}). {_law(layers)}")
    chosen = settings[best]
    words = f"{chosen.method} at keep {chosen.keep:g}: {100 * (1 - chosen.flops):.0f} % fewer FLOPs"
    if chosen.faster is not None:
        words += f", {chosen.faster[1]:.2f} times as fast here ({timed} at a time)"
    words += f"; {_stays(chosen, count)}."
    if chosen.faster is not None and chosen.faster[0] <= 1:
        never = chosen.faster[2] <= 1
        words += f" On this device it was {'no' if never else 'not always'} faster than the whole model."
    beside = [one for one in settings if one.keep == chosen.keep and one is not chosen]
    words += "".join(f" {one.method} at the same keep: {_stays(one, count)}." for one in beside)
    return best, f"{words} {_law(layers)}"


def _stays(one: Measured, count: int) -> str:
    words = [] if one.same is None else ["{} of {} top answers unchanged [{:.3f}, {:.3f}]".format(
        one.same, count, *one.agreement)]
    if one.likeness is not None:
        words.append("likeness {:.3f} [{:.3f}, {:.3f}]".format(one.likeness, *one.likeness_interval))
    return ", ".join(words)


def _law(layers: list[LayerMeasures]) -> str:
    """What the recorded phase diagram says of keys like these."""
    parallel, loose = [one for one in layers if one.parallel], [one for one in layers if not one.tight]
    words = "Keys reach the margin in no layer"
    if parallel:
        cosine = statistics.fmean(one.cosine for one in parallel)
        words = f"Keys are parallel in layers {_spans(parallel)} (mean cosine {cosine:.2f}, at or above the margin)"
    if not loose:
        return f"{words}; they are tight in every layer, where the phase diagram holds nothing for energy to gain."
    return (f"{words}; they are no tighter than chance in layers {_spans(loose)}, where energy can gain if they are "
            "not parallel.")


def _spans(layers: list[LayerMeasures]) -> str:
    """`0-3, 6` for the layers 0, 1, 2, 3 and 6."""
    runs: list[list[int]] = []
    for one in layers:
        if runs and runs[-1][-1] == one.layer - 1:
            runs[-1][1:] = [one.layer]
        else:
            runs.append([one.layer])
    return ", ".join("-".join(map(str, run)) for run in runs)
