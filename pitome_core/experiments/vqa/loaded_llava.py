"""A LLaVA of transformers from a folder or the hub, ready to be merged and asked."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

import pitome_core as pc
from pitome_core.experiments.models.llava_answers import IMAGE
from pitome_core.experiments.runs import shards
from pitome_core.experiments.runs.shards import Refused

MODEL = "llava-hf/llava-1.5-7b-hf"
SQUARES = ("pad", "crop")


@dataclass(frozen=True)
class LoadedLlava:
    """A LLaVA ready to be scored, in eval mode on its device. ``prepare`` makes a PIL picture ``(3, H, W)`` pixels."""

    slug: str
    name: str
    model: nn.Module
    tokenizer: Any
    prepare: Callable[[Image.Image], Tensor]
    preprocessing: str
    digest: str


def load_model(spec: str, dtype: str, square: str, device: torch.device) -> LoadedLlava:
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
        model, loading = transformers.LlavaForConditionalGeneration.from_pretrained(
            spec, dtype="auto", attn_implementation="sdpa", output_loading_info=True,
        )  # "auto": as the files have it, so that nothing is rounded
        if missing := sorted(loading["missing_keys"]):  # transformers warns and makes them up
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
    return LoadedLlava(slug, slug if folder else spec, model.eval().to(device), tokenizer, _Prepare(processor, square),
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
