"""Answers of a LLaVA to questions about pictures, merged or not: greedy, in batches, with every token in its place.

A language model knows where an image token lies by its position alone. A merge changes the number of image tokens, so
it must be said in which order they come and which positions they have. `ORDERS`:

- ``raster-centroid``, our default for every method: in raster order, each at the position that the full grid has where
  the middle of its patches lies; the text goes on where it would behind the full grid.
- ``raster-compact``: in raster order, at positions 0, 1, 2, ...; the text follows at once. What a LLaVA does by itself.
- ``released``: as ``raster-compact``, but in the order in which the released code leaves tokens (`released_order`).

Works for any LLaVA of transformers: ours (`llava.llava`), llava-1.5-7b. In `answer` a picture passes the tower once and
the language model once, however many questions are asked about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

import pitome_core as pc
from pitome_core.families.hf_llava import expand_placeholders, image_token_count
from pitome_core.merge_plan import LinearPlan, MergePlan
from pitome_core.patch import Patch, active_patch
from pitome_core.tracing import LayerTrace

ORDERS = ("raster-centroid", "raster-compact", "released")
IMAGE = "<image>"  # stands for the picture in a prompt


@dataclass(frozen=True)
class ImageTokens:
    """What the language model reads of S pictures.

    Attributes:
        features: `(S, M, C)`, behind the projector, in the order in which they are read.
        positions: `(S, M)` long, each token's position behind what stands before the picture.
        slots: `(S, M)` long, which of the tower's outputs, in raster order, each token is.
        length: how many positions the picture takes up: the text goes on there.
    """

    features: Tensor
    positions: Tensor
    slots: Tensor
    length: int


@torch.no_grad()
def image_tokens(model: nn.Module, pixel_values: Tensor, order: str = ORDERS[0]) -> ImageTokens:
    """The tokens of pictures `(S, 3, H, W)` that the vision tower leaves, merged as it merges now.

    Pictures smaller than the tower's own lie on its grid as if they were enlarged. Raises ``ValueError`` for an order
    that does not exist, and for a transform (DCT) unless the order is ``raster-compact``, because outputs of a
    transform have no place on the grid.
    """
    if order not in ORDERS:
        raise ValueError(f"order is {order!r}; choose one of {', '.join(ORDERS)}")
    inner = model.model
    tower = inner.vision_tower
    patch = active_patch(tower)
    merging = patch is not None and not patch.restore
    pixel_values = pixel_values.to(inner.multi_modal_projector.linear_1.weight)
    with pc.record(tower) if merging else nullcontext() as trace:
        output = inner.get_image_features(pixel_values=pixel_values, return_dict=True)
    features = torch.stack(list(output.pooler_output))  # (S, extra + M, C)
    grid = _grid(model, pixel_values.shape[-2:])
    layers = trace.last.layers[: _layers_read(model, len(trace.last.layers))] if merging else ()
    plan = _composed(layers)
    patches = grid[0] * grid[1] if plan is None else plan.num_tokens
    extra = features.shape[1] - patches  # a class token that is kept
    if order == "raster-centroid":
        full = _grid(model)
        places = _places(plan, features, grid, full)
        length = extra + full[0] * full[1]
    else:
        places = torch.arange(patches, device=features.device).expand(len(features), -1)
        length = features.shape[1]
    slots = torch.arange(patches, device=features.device).expand(len(features), -1)
    first = torch.arange(extra, device=features.device).expand(len(features), -1)
    if order == "released" and layers:
        slots = released_order(layers, patch)
    places, slots = (torch.cat([first, extra + each], dim=1) for each in (places, slots))
    return ImageTokens(features.gather(1, slots[..., None].expand_as(features)), places, slots, length)


def _grid(model: nn.Module, size: Sequence[int] | None = None) -> tuple[int, int]:
    """Rows and columns of patches in pictures of ``size`` pixels (None: of the tower's own size)."""
    config = model.config.vision_config
    own, patch = config.image_size, config.patch_size
    height, width = size or ((own, own) if isinstance(own, int) else own)
    down, across = (patch, patch) if isinstance(patch, int) else patch
    return height // down, width // across


def _layers_read(model: nn.Module, depth: int) -> int:
    """How many layers run before the features that the projector reads."""
    layer = model.config.vision_feature_layer
    return layer if layer >= 0 else depth + 1 + layer


def _composed(layers: Sequence[LayerTrace]) -> MergePlan | LinearPlan | None:
    """One plan for all layers; None for no layers."""
    plan = None
    for layer in layers:
        plan = layer.plan if plan is None else plan.then(layer.plan)
    return plan


def _places(
    plan: MergePlan | LinearPlan | None, features: Tensor, grid: tuple[int, int], full: tuple[int, int]
) -> Tensor:
    """`(S, M)` long: the patch of the full grid that is nearest to the middle of each token's patches."""
    if isinstance(plan, LinearPlan):
        raise ValueError("a transform's outputs lie nowhere on the grid: pass order='raster-compact'")
    count, device = grid[0] * grid[1], features.device
    if plan is None:
        plan = MergePlan.identity(len(features), count, device)
    if plan.assignment.shape[1] != count:
        raise ValueError(f"the tower merged {plan.assignment.shape[1]} patches, the picture has {grid[0]} x {grid[1]}")
    place = torch.arange(count, device=device)
    slot = plan.assignment % (plan.num_tokens + 1)  # -1 goes to a spare column
    sums = torch.zeros(3, len(slot), plan.num_tokens + 1, device=device)
    for total, value in zip(sums, (place // grid[1], place % grid[1], torch.ones_like(place)), strict=True):
        total.scatter_add_(1, slot, value.float().expand(slot.shape))
    rows, columns, sizes = sums[..., : plan.num_tokens]
    # The middle of a patch of this grid, in patches of the full one; whole numbers where the grids are the same.
    near = [
        (((total / sizes.clamp_min(1) + 0.5) * whole / part) - 0.5).round().clamp(0, whole - 1).long()
        for total, whole, part in zip((rows, columns), full, grid, strict=True)
    ]
    return near[0] * full[1] + near[1]


def released_order(layers: Sequence[LayerTrace], patch: Patch) -> Tensor:
    """`(S, M)` long: the slots, which a plan numbers in raster order, as the released code would leave them.

    Bipartite matching leaves the tokens of A that stayed alone and then those of B. PiToMe leaves the protected tokens,
    from high energy to low, and then B by rank. Layer after layer this moves neighbours far apart. Only the order is
    the released one: the released matching also splits into A and B by this order, ours by places in raster order.
    """
    order: Tensor | None = None  # (S, N): the tokens, by raster number, in the order of the released code
    for layer, row in zip(layers, patch.rows, strict=False):
        plan = layer.plan
        if isinstance(plan, LinearPlan):
            raise ValueError("a transform leaves no tokens to put in order: pass order='raster-compact'")
        batch, count = plan.assignment.shape
        place = torch.arange(count, device=plan.assignment.device).expand(batch, count)
        order = place if order is None else order
        removed = count - plan.num_tokens
        if removed == 0:
            continue
        if plan.energy is not None and row.options.get("split", "alternate") == "alternate":
            rank = plan.energy.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
            second = rank % 2 == 1
            if row.options.get("protection", True):
                second = second & (rank < 2 * removed)
        else:
            rank, second = order.argsort(dim=1), place % 2 == 1
        key = rank + count * second + 2 * count * ~plan.anchored
        order = plan.assignment.gather(1, key.argsort(dim=1)[:, : plan.num_tokens])
    if order is None:
        raise ValueError("no layer of the tower was recorded, so there is nothing to put in order")
    return order


@dataclass(frozen=True)
class Prefix:
    """What the language model keeps of all that stands before the questions.

    Attributes:
        cache: keys and values of P tokens, for S pictures, a ``Cache`` of transformers.
        tokens: P.
        next_position: of the token that comes next.
    """

    cache: Any
    tokens: int
    next_position: int


@torch.no_grad()
def read_prefix(model: nn.Module, before: Sequence[int], images: ImageTokens) -> Prefix:
    """Pass the token ids before the picture, the same for all, and the pictures through the language model."""
    device, (count, width) = images.features.device, images.features.shape[:2]
    image_id = model.config.image_token_id
    ids = torch.tensor([[*before, image_id]], device=device).expand(count, -1)
    ids = expand_placeholders(ids, image_id, width)  # (S, P)
    start = torch.arange(len(before), device=device).expand(count, -1)
    out = model(
        # `LlavaModel.forward` takes image features that are computed already in the form in which the tower gives them.
        input_ids=ids, mm_encoder_outputs={"image": SimpleNamespace(pooler_output=list(images.features))},
        use_cache=True, logits_to_keep=1,
        attention_mask=torch.ones_like(ids), position_ids=torch.cat([start, len(before) + images.positions], dim=1),
    )
    return Prefix(out.past_key_values, ids.shape[1], len(before) + images.length)


@torch.no_grad()
def generate(
    model: nn.Module, prefix: Prefix, of: Sequence[int], rows: Sequence[Sequence[int]],
    max_new_tokens: int, padding: int = 0,
) -> Tensor:
    """Greedy answers `(Q, at most max_new_tokens)` long, ``padding`` behind an end.

    ``rows`` are the token ids of each question, ``of`` the picture in the prefix that it is about. The prefix cannot be
    used again, because its cache grows. Questions are padded on the left, between the picture and their first token,
    and masked there.
    """
    device = model.device
    ends = torch.tensor(_ends(model), device=device)
    questions = [torch.tensor(row, device=device) for row in rows]
    on_left = dict(batch_first=True, padding_side="left")
    ids = pad_sequence(questions, padding_value=padding, **on_left)  # (Q, W)
    real = pad_sequence([torch.ones_like(row) for row in questions], **on_left)  # (Q, W)
    mask = torch.cat([real.new_ones(len(rows), prefix.tokens), real], dim=1)  # (Q, P + W)
    positions = prefix.next_position + (real.cumsum(dim=1) - 1).clamp_min(0)
    cache = prefix.cache
    if list(of) != list(range(len(of))) or len(of) != cache.layers[0].keys.shape[0]:
        cache.batch_select_indices(torch.tensor(list(of), device=device))
    answers = torch.full((len(rows), max_new_tokens), padding, device=device)
    going = torch.arange(len(rows), device=device)  # the questions whose answers go on: the others leave the batch
    for step in range(max_new_tokens):
        out = model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True,
                    logits_to_keep=1)
        token = out.logits[:, -1].argmax(dim=-1)
        answers[going, step] = token
        stay = (~torch.isin(token, ends)).nonzero()[:, 0]
        if len(stay) == 0:
            break
        ids, positions = token[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(going), 1)], dim=1)
        if len(stay) < len(going):
            cache.batch_select_indices(stay)
            going, ids, positions, mask = (rows_of[stay] for rows_of in (going, ids, positions, mask))
    return answers[:, : step + 1]


def answer(
    model: nn.Module,
    tokenizer: Any,
    pixel_values: Tensor,
    prompts: Sequence[str],
    *,
    image_of: Sequence[int] | None = None,
    order: str = ORDERS[0],
    max_new_tokens: int = 16,
) -> list[str]:
    """The model's answers, greedy, without special tokens and white space around them.

    Args:
        model: a LLaVA, merged or not (``pc.apply(model, ..., restore=False)``), on any device, in any precision.
        tokenizer: its tokenizer; which side it pads on does not matter.
        pixel_values: `(S, 3, H, W)` preprocessed pictures, on any device.
        prompts: Q texts in the model's own format, each with ``<image>`` where the picture stands.
        image_of: the picture that each prompt is about; None: one prompt for each picture, in order.
        order: of the image tokens, one of `ORDERS`.
        max_new_tokens: where an answer is cut.

    Raises:
        ValueError: a prompt without a picture or with several, another number of prompts than ``image_of`` has,
            pictures that do not exist, or as `image_tokens`.
    """
    of = list(range(len(pixel_values)) if image_of is None else image_of)
    if len(of) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts and {len(of)} pictures for them: say for each which it is about")
    if missing := [i for i in of if not 0 <= i < len(pixel_values)]:
        raise ValueError(f"image_of names picture {missing[0]}, there are {len(pixel_values)}")
    split = encode(tokenizer, prompts, model.config.image_token_id)
    images = image_tokens(model, pixel_values, order)
    expected = image_token_count(model, tuple(pixel_values.shape[1:]))
    if images.features.shape[1] != expected:
        raise ValueError(f"the tower left {images.features.shape[1]} image tokens where {expected} were expected")
    answers = [""] * len(prompts)
    for before in dict.fromkeys(row[0] for row in split):  # in most formats all prompts begin alike
        members = [i for i, row in enumerate(split) if row[0] == before]
        used = sorted({of[i] for i in members})
        chosen = torch.tensor(used, device=images.features.device)
        part = ImageTokens(*(each[chosen] for each in (images.features, images.positions, images.slots)), images.length)
        ids = generate(model, read_prefix(model, before, part), [used.index(of[i]) for i in members],
                       [split[i][1] for i in members], max_new_tokens, _padding(model, tokenizer))
        for i, row in zip(members, ids.tolist(), strict=True):
            answers[i] = decode(tokenizer, row, _ends(model))
    return answers


def encode(
    tokenizer: Any, prompts: Sequence[str], image_token_id: int
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Token ids before and behind the picture of every prompt, special tokens as the tokenizer adds them.

    Raises ``ValueError`` for a prompt without a picture or with several.
    """
    token, split = tokenizer.convert_ids_to_tokens(image_token_id), []
    for prompt in prompts:
        ids = tokenizer(prompt.replace(IMAGE, token))["input_ids"] if prompt.count(IMAGE) == 1 else []
        if ids.count(image_token_id) != 1:
            times = prompt.count(IMAGE)
            raise ValueError(f"a prompt needs {IMAGE} exactly once, this has it {times} times: {prompt!r}")
        place = ids.index(image_token_id)
        if place == len(ids) - 1:
            raise ValueError(f"a prompt needs text behind {IMAGE}: {prompt!r}")
        split.append((tuple(ids[:place]), tuple(ids[place + 1 :])))
    return split


def decode(tokenizer: Any, ids: Sequence[int], ends: Sequence[int]) -> str:
    """The text before the first end."""
    stop = next((i for i, token in enumerate(ids) if token in ends), len(ids))
    return tokenizer.decode(ids[:stop], skip_special_tokens=True).strip()


def _ends(model: Any) -> list[int]:
    """Ids that end an answer."""
    ends = model.generation_config.eos_token_id
    ends = model.config.text_config.eos_token_id if ends is None else ends
    return [ends] if isinstance(ends, int) else list(ends)


def _padding(model: Any, tokenizer: Any) -> int:
    """The tokenizer's padding, or an end where it has none: such tokens are masked in any case."""
    return _ends(model)[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
