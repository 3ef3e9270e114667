"""The table of methods, and `plan`, which calls any of them with checked arguments."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .. import checks
from ..energy import check_mask
from ..merge_plan import LinearPlan, MergePlan
from ..portable import full_precision

# What a layer knows. A method is handed those of them that its signature names.
CONTEXT = ("margin", "size", "mask", "layer", "num_layers", "attention", "class_attention", "positions")


@dataclass(frozen=True)
class Method:
    """One way to make a plan, and facts about it.

    Attributes:
        name: what `pc.apply` and `pc.plan` call it.
        function: `fn(metric, remove, *, <context names>, **options) -> plan`. With a mask, real tokens come first.
        paper: where it was published.
        summary: one line.
        partition: whether every token joins exactly one slot (the laws of merging hold); False for pruning and
            transforms.
        drops: whether tokens may be removed without joining any slot (pruning).
        limit: `half` (one layer removes at most N // 2 tokens) or `all` (N - 1).
        attention_when: whether the method reads attention, given its options; None = always, if it names attention or
            class_attention. Attention maps are computed for such methods only, because they cost a second product of
            queries and keys.
        choices: allowed values of options that have a list of them.
        cost: `(tokens, removed, channels of the metric) -> (multiply-accumulates, other operations)` of making the
            plan for one image; other operations are exponentials, comparisons of a sort and the like.
        scaling: in words, how time (multiply-accumulates) and memory (numbers) of making the plan for one image grow
            with its N tokens of C channels, of which k are removed and M stay; H is the number of heads.
    """

    name: str
    function: Callable[..., MergePlan | LinearPlan]
    paper: str
    summary: str
    partition: bool = True
    drops: bool = False
    limit: str = "half"
    cost: Callable[[int, int, int], tuple[int, int]] | None = None
    attention_when: Callable[[dict[str, Any]], bool] | None = None
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    scaling: str = ""

    @cached_property
    def _keywords(self) -> dict[str, Any]:
        parameters = inspect.signature(self.function).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    @cached_property
    def needs(self) -> tuple[str, ...]:
        """The context that the function takes."""
        return tuple(name for name in self._keywords if name in CONTEXT)

    @property
    def options(self) -> dict[str, Any]:
        """The function's own options and their defaults."""
        return {name: default for name, default in self._keywords.items() if name not in CONTEXT}

    def arguments(self, context: Mapping[str, Any]) -> dict[str, Any]:
        """The part of the context that the function takes."""
        return {name: context[name] for name in self.needs if name in context}

    def reads_attention(self, options: dict[str, Any]) -> bool:
        """Whether a layer has to compute its attention map for this method."""
        if self.attention_when is not None:
            return self.attention_when({**self.options, **options})
        return "attention" in self.needs or "class_attention" in self.needs

    def max_remove(self, num_tokens: int) -> int:
        """How many of `num_tokens` tokens one layer can remove."""
        return num_tokens // 2 if self.limit == "half" else max(num_tokens - 1, 0)

    def check_options(self, options: dict[str, Any]) -> dict[str, Any]:
        """The options as plain values, of the types that their defaults have (a float has to be finite).

        Raises TypeError for an option that the method lacks or a value of another type, ValueError for other values.
        """
        unknown = sorted(set(options) - set(self.options))
        if unknown:
            allowed = ", ".join(self.options) or "none"
            hint = "" if {"r", "ratio"}.isdisjoint(unknown) else (
                ". Tokens to remove in each layer are remove=8, the share of tokens to keep is keep=0.9"
            )
            raise TypeError(f"method {self.name!r} has no option {', '.join(unknown)}; its options: {allowed}{hint}")
        typed = {bool: checks.flag, int: checks.integer, float: checks.number}
        plain = {}
        for name, value in options.items():
            if name in self.choices:
                checks.word(value, name, self.choices[name])
            check = typed.get(type(self.options[name]))
            plain[name] = value if check is None else check(value, name)
        return plain

    def check_remove(self, remove: int, num_tokens: int, remedy: str | None = None) -> None:
        """Raise ValueError when `remove` of `num_tokens` tokens is not possible in one layer; `remedy` says what to do
        (None: raise keep, to how much)."""
        most = self.max_remove(num_tokens)
        if not 0 <= remove <= most:
            share = math.ceil(100 * (1 - most / num_tokens)) / 100 if num_tokens else 1.0
            if remedy is None:
                remedy = "remove 0 or more" if remove < 0 else f"raise keep to {share:g} or more"
            verb = "merge" if self.partition else "go"
            raise ValueError(
                f"cannot remove {remove} of {num_tokens} tokens: at most {most} can {verb} in one layer; {remedy}"
            )


_METHODS: dict[str, Method] = {}


def register_method(
    name: str,
    function: Callable[..., MergePlan | LinearPlan],
    *,
    paper: str,
    summary: str,
    partition: bool = True,
    drops: bool = False,
    limit: str = "half",
    cost: Callable[[int, int, int], tuple[int, int]] | None = None,
    attention_when: Callable[[dict[str, Any]], bool] | None = None,
    choices: Mapping[str, tuple[str, ...]] | None = None,
    scaling: str = "",
) -> Method:
    """Add a method to the table, or replace the one of that name; the fields are those of `Method`.

    Raises:
        ValueError: `limit` is neither `half` nor `all`; `choices` of something that is no option.
        TypeError: what is no function of `(metric, remove, *, ...)`, because other arguments would never be given.

    Example:
        A method that merges the last tokens into the first one.

        >>> import torch, pitome_core as pc
        >>> def into_the_first(metric, remove):
        ...     batch, width, _ = metric.shape
        ...     root = torch.arange(width).repeat(batch, 1)
        ...     root[:, width - remove :] = 0
        ...     return pc.MergePlan.from_roots(root, width - remove)
        >>> method = pc.register_method("first", into_the_first, paper="none", summary="an example", limit="all")
        >>> pc.plan(torch.randn(1, 5, 8), remove=3, method="first").assignment.tolist()
        [[0, 1, 0, 0, 0]]
    """
    if limit not in ("half", "all"):
        raise ValueError(f"limit must be 'half' or 'all', got {limit!r}")
    if not all(isinstance(text, str) for text in (name, paper, summary)):
        raise TypeError(f"name, paper and summary must be strings, got {name!r}, {paper!r}, {summary!r}")
    if not all(callable(part) or (part is None and part is not function) for part in (function, cost, attention_when)):
        raise TypeError(f"function, cost and attention_when must be functions, got {function!r}, {cost!r}, "
                        f"{attention_when!r}")
    parameters = inspect.signature(function).parameters.values()
    places = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(places) > 2:
        raise TypeError(f"method {name!r} takes ({', '.join(places)}): a method takes (metric, remove, *, ...), all "
                        f"else by keyword only, because {places[2]!r} would never be given")
    partition, drops = checks.flag(partition, "partition"), checks.flag(drops, "drops")
    method = Method(
        name, function, paper, summary, partition, drops, limit, cost, attention_when, choices or {}, scaling
    )
    if unknown := method.choices.keys() - method.options.keys():
        raise ValueError(f"choices of {', '.join(unknown)}: method {name!r} has no such option")
    _METHODS[name] = method
    return method


def methods() -> dict[str, Method]:
    """The registered methods by name (a copy of the table).

    Example:
        >>> import pitome_core as pc
        >>> pc.methods()["tome"].summary
        'bipartite soft matching: the most similar pairs of an even/odd split merge'
        >>> pc.methods()["tome"].scaling
        'time N^2 C / 4; memory N^2 / 4'
    """
    return dict(_METHODS)


def find_method(name: str) -> Method:
    """The method of that name; ValueError names those that exist."""
    if not isinstance(name, str) or name not in _METHODS:
        raise ValueError(
            f"unknown method {name!r}; registered: {', '.join(_METHODS)}. "
            "Rivals and controls are registered by `import pitome_core.experiments.baselines`"
        )
    return _METHODS[name]


def make_plan(
    method: Method, metric: Tensor, remove: int | Tensor, context: dict[str, Any], options: dict[str, Any]
) -> MergePlan | LinearPlan:
    """Make a plan from arguments that were checked already.

    A method runs without gradient and outside autocast. With a mask, real tokens are moved to the front in their order,
    so that methods need not know where padding stands; afterwards the plan is translated back to the old places.
    """
    if isinstance(remove, int) and remove == 0 and context.get("mask") is None:
        return MergePlan.identity(metric.shape[0], metric.shape[1], metric.device)
    with torch.no_grad(), full_precision(metric.device):
        mask = context.get("mask")
        if mask is None:
            return method.function(metric, remove, **method.arguments(context), **options)
        order = mask.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
        context = {**context, "mask": mask.gather(1, order)}
        for name in ("size", "positions", "class_attention"):
            if context.get(name) is not None:
                context[name] = _take(context[name], order)
        if context.get("attention") is not None:
            attention, prefix = context["attention"], context["attention"].shape[1] - order.shape[1]  # (B, T, N)
            attention = torch.cat([attention[:, :prefix], _take(attention[:, prefix:], order)], dim=1)  # queries
            context["attention"] = attention.gather(2, order[:, None, :].expand_as(attention))  # keys
        plan = method.function(_take(metric, order), remove, **method.arguments(context), **options)
        return _restore_places(plan, order)


def _take(x: Tensor, order: Tensor) -> Tensor:
    """The tokens `x (B, N, ...)` in the order `(B, N)`."""
    return x.gather(1, order.view(*order.shape, *[1] * (x.ndim - 2)).expand(*order.shape, *x.shape[2:]))


def _restore_places(plan: MergePlan, order: Tensor) -> MergePlan:
    """A plan over tokens in the order `(B, N)`, translated into a plan over the tokens in their old places."""
    place = order.argsort(dim=-1)

    def back(value: Tensor | None) -> Tensor | None:
        return None if value is None else value.gather(1, place)

    return plan.settled(assignment=back(plan.assignment), anchored=back(plan.anchored), weight=back(plan.weight),
                        energy=back(plan.energy))


def plan(
    metric: Tensor,
    remove: int | Tensor,
    method: str = "pitome",
    *,
    margin: float = 0.9,
    size: Tensor | None = None,
    mask: Tensor | None = None,
    **options: Any,
) -> MergePlan | LinearPlan:
    """Decide which tokens merge.

    Args:
        metric: `(B, N, C)`, what tokens are compared by (keys averaged over heads), without prefix tokens.
        remove: how many tokens are removed: an int, or with `mask` a `(B,)` integer tensor, one number per item.
        method: a name from `pc.methods()`.
        margin: the paper's m, for methods that use one.
        size: `(B, N)` sizes, for methods that use them; above 0 for real tokens.
        mask: `(B, N)` True for real tokens. Padding may stand anywhere; it does not change the result of an item. Nor
            does the batch. Where values tie exactly (equal tokens), this holds to the last bit on x86 processors, and
            the first token wins. Elsewhere, and in recorded graphs with padding, such ties may go to another token.
        options: the method's own (`pc.methods()[name].options`).

    Returns:
        A `MergePlan` (a `LinearPlan` for transforms that are no partition). M is N - remove without a mask.

    Raises:
        ValueError: an unknown method; a count that is too large (the message names both numbers); shapes that do not
            fit; a metric with NaN or infinity (padding may have them); a margin or an option that is not finite.
        TypeError: an unknown option; an argument of another type.

    Example:
        >>> import torch, pitome_core as pc
        >>> step = pc.plan(torch.randn(1, 196, 64), remove=20)
        >>> x, size = step.merge(torch.randn(1, 196, 384))
        >>> x.shape, step.unmerge(x).shape
        (torch.Size([1, 176, 384]), torch.Size([1, 196, 384]))
    """
    chosen = find_method(method)
    options, margin = chosen.check_options(options), checks.number(margin, "margin")
    checks.tensor(metric, "metric (batch, tokens, channels)", (None, None, None), "floating")
    check_mask(mask, metric)
    if size is not None:
        positive = (checks.tensor(size, "size", tuple(metric.shape[:2])) > 0) & size.isfinite()
        if not bool((positive if mask is None else positive | ~mask).all()):
            raise ValueError("sizes count tokens: they must be finite and above 0")
    finite = metric.isfinite().all(dim=-1)
    broken = int((~finite if mask is None else ~finite & mask).sum())
    if broken:
        raise ValueError(f"the metric has NaN or infinity in {broken} of {finite.numel()} tokens; mend it or mask them")
    if mask is not None and "mask" not in chosen.needs:
        raise ValueError(f"method {method!r} takes no mask: give it items of one length, or one that names `mask`")
    if getattr(remove, "ndim", 0) == 0:
        remove = checks.integer(remove, "remove")
    else:
        remove = checks.tensor(remove, "remove", tuple(metric.shape[:1]), "integer").long()
        if mask is None:
            raise ValueError("remove as a tensor needs a mask: without padding all items have equally many tokens")
    lengths = [metric.shape[1]] if mask is None else mask.sum(dim=-1).tolist()
    counts = remove.tolist() if isinstance(remove, Tensor) else [remove] * len(lengths)
    for count, length in zip(counts, lengths, strict=True):
        chosen.check_remove(count, length)
    context = {"margin": margin, "size": size, "mask": mask, "layer": 0, "num_layers": 1}
    return make_plan(chosen, metric, remove, context, options)


def active_pairs(remove: int | Tensor) -> tuple[int, Tensor | None]:
    """k, the largest number of pairs of an item, and which of them each item uses: `(B, k)` bool, or None for all."""
    if isinstance(remove, int):
        return remove, None
    k = int(remove.max()) if remove.numel() else 0
    return k, torch.arange(k, device=remove.device) < remove[:, None]
