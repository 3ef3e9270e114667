"""A dual encoder that open_clip builds, loads and runs: ViT-S/14 and all-MiniLM-L6-v2 with projection heads.

The towers are those of `vit` and `bert`, weights untouched. The heads are trained here: an MLP on each side, in the
forms that open_clip has (`timm_proj` and `hf_proj_type` ``mlp``). `assemble` writes a folder in open_clip's own local
format. ``open_clip.create_model_and_transforms("local-dir:FOLDER")`` and ``get_tokenizer`` read it without any code of
this package.

open_clip builds an image tower of timm at timm's default size, here 518 pixels. So the folder has the tower in timm's
own local format as well, with 224 pixels among its arguments and a position embedding that `vit` resized, because timm
would resize it in another way. Paths in the configuration are absolute: a folder that was moved has to be assembled
anew.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pitome_core.experiments import assets, settings
from pitome_core.experiments.data.pictures import MEAN, STD
from pitome_core.experiments.models import bert, vit
from pitome_core.experiments.records import files

SIDE = 224  # pixels
WIDTH = 384  # of the space that images and texts share
TOWER = 384  # width of both towers
POOLS = ("token", "avg")  # what the image head can read: the class token, or the mean of the patches
CONTEXT = 64  # tokens of a text; longer ones are cut
FORMAT = 1  # of the folder; raise it when the layout changes
CONFIG = "open_clip_config.json"
PREPROCESSING = {
    "size": SIDE, "mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest",
}
_NAMES = {"image.": "visual.head.mlp.", "text.": "text.proj."}  # of `Heads`' parameters, in open_clip


class Heads(nn.Module):
    """The projection heads and the temperature of a dual encoder, as open_clip would make them.

    Attributes:
        image: features of the image tower `(B, 384)` -> `(B, width)`.
        text: features of the text tower `(B, 384)` -> `(B, width)`.
        logit_scale: logarithm of what cosines are multiplied by.
        pool: what the image head reads, one of `POOLS`.
    """

    def __init__(self, width: int = WIDTH, pool: str = "token", seed: int = 0):
        from timm.layers import Mlp

        super().__init__()
        if pool not in POOLS:
            raise ValueError(f"pool is {pool!r}; choose one of {', '.join(POOLS)}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            hidden = (TOWER + width) // 2
            self.image = Mlp(TOWER, 2 * width, width, bias=(True, False))
            self.text = nn.Sequential(
                nn.Linear(TOWER, hidden, bias=False), nn.GELU(), nn.Linear(hidden, width, bias=False)
            )
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())
        self.pool, self.width = pool, width

    def images(self, features: Tensor) -> Tensor:
        """`image_features (B, 2, 384)` -> embeddings of unit length `(B, width)`."""
        return nn.functional.normalize(self.image(features[:, POOLS.index(self.pool)]), dim=-1)

    def texts(self, features: Tensor) -> Tensor:
        """`text_features (B, 384)` -> embeddings of unit length `(B, width)`."""
        return nn.functional.normalize(self.text(features), dim=-1)

    def stored(self) -> dict[str, Tensor]:
        """The parameters under open_clip's names, float32 on the CPU."""
        return {_theirs(name): value.detach().float().cpu().clone(memory_format=torch.contiguous_format)
                for name, value in self.named_parameters()}


def _theirs(name: str) -> str:
    """open_clip's name of one of `Heads`' parameters."""
    side = next((side for side in _NAMES if name.startswith(side)), "")
    return _NAMES.get(side, "") + name.removeprefix(side)


def save(heads: Heads, path: Path) -> None:
    """Write heads as safetensors under open_clip's names, in half precision (the temperature too): all or nothing."""
    files.save_tensors(path, {name: value.half() for name, value in heads.stored().items()}, {"pool": heads.pool})


def load(path: Path) -> Heads:
    """The heads in a file, float32 on the CPU. Raises ``ValueError`` for a file that holds no heads of ours."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        about = file.metadata() or {}
        stored = {name: file.get_tensor(name).float() for name in file.keys()}
    last = stored.get("text.proj.2.weight")
    if last is None or about.get("pool") not in POOLS:
        raise ValueError(f"{path.name} holds no heads with a pool: it has {', '.join(stored) or 'nothing'}")
    heads = Heads(len(last), about["pool"])
    heads.load_state_dict({name: stored[_theirs(name)] for name in heads.state_dict()})
    return heads.eval().requires_grad_(False)


def assemble(heads: Heads) -> Path:
    """The folder of the dual encoder with these heads, made at the first call and verified at every later one.

    It holds ``open_clip_config.json``, the weights (180 MB), the tokenizer's files and, in ``image``, the image tower
    for timm. Raises as `vit.vit_small` and `bert.sentence_encoder`.
    """
    stored = heads.stored()
    digest = hashlib.sha256(f"{FORMAT} {heads.pool}".encode())
    for name in (vit.ASSET, bert.ASSET):
        digest.update(assets.ASSETS[name].sha256.encode())
    for name, value in sorted(stored.items()):
        digest.update(name.encode() + value.numpy().tobytes())
    source = digest.hexdigest()
    folder = settings.cache_dir() / "dual-encoder" / source[:12]
    return assets.cached(folder, source, lambda to: _fill(to, folder, heads, stored))


def _fill(to: Path, folder: Path, heads: Heads, stored: Mapping[str, Tensor]) -> None:
    """Write all files into ``to``, which will be moved to ``folder``."""
    from safetensors.torch import save_file

    tokenizer = assets.fetch(bert.ASSET)
    for file in tokenizer.iterdir():
        if file.name not in (assets.MANIFEST, "model.safetensors"):
            shutil.copyfile(file, to / file.name)
    (to / "image").mkdir()
    picture = {"input_size": [3, SIDE, SIDE], "mean": MEAN, "std": STD, "num_classes": 0}
    about = {"architecture": vit.ARCHITECTURE, "num_classes": 0, "model_args": {"img_size": SIDE}}
    (to / "image" / "config.json").write_text(json.dumps(about | {"pretrained_cfg": picture}, indent=1))
    (to / CONFIG).write_text(json.dumps(configuration(folder, heads.width, heads.pool), indent=1))
    image, text = vit.vit_small(SIDE, "cpu"), bert.sentence_encoder("cpu")
    weights = {f"visual.trunk.{name}": value for name, value in image.state_dict().items()}
    weights |= {f"text.transformer.{name}": value for name, value in text.state_dict().items()}
    save_file({name: value.contiguous() for name, value in (weights | dict(stored)).items()},
              to / "open_clip_model.safetensors")


def configuration(folder: Path, width: int, pool: str) -> dict[str, Any]:
    """``open_clip_config.json`` of a dual encoder in ``folder``."""
    vision = {"timm_model_name": f"local-dir:{folder / 'image'}", "timm_pool": pool, "timm_proj": "mlp",
              "image_size": SIDE}
    text = {"hf_model_name": str(folder), "hf_tokenizer_name": str(folder), "hf_pooler_type": "mean_pooler",
            "hf_proj_type": "mlp", "context_length": CONTEXT}
    return {"model_cfg": {"embed_dim": width, "vision_cfg": vision, "text_cfg": text}, "preprocess_cfg": PREPROCESSING}


def dual_encoder(
    heads: Heads, device: torch.device | str | None = None
) -> tuple[nn.Module, Callable, Callable[[Sequence[str]], Tensor]]:
    """Model (a ``CustomTextCLIP``) in eval mode, preprocessing and tokenizer, all made by open_clip.

    One folder serves all heads of a width and pool: they replace those that it holds after loading, so that the cache
    does not fill with copies of the towers. ``open_clip`` makes the same model of ``assemble(heads)``. ``device``
    defaults to `settings.device`. Raises ``ImportError`` without open_clip, else as `assemble`.
    """
    try:
        import open_clip
    except ImportError as error:
        raise ImportError("the dual encoder needs open_clip: pip install 'pitome-core[open-clip]'") from error
    name = f"local-dir:{assemble(Heads(heads.width, heads.pool))}"
    with torch.random.fork_rng(devices=[]):  # the towers are built at random before their weights are read
        model, _, preprocess = open_clip.create_model_and_transforms(name)
    stored = heads.stored()
    if unknown := model.load_state_dict(stored, strict=False).unexpected_keys:
        raise ValueError(f"open_clip's model has no {', '.join(unknown)}: its heads have other names in this version")
    model.eval().to(device if device is not None else settings.device())
    return model, preprocess, open_clip.get_tokenizer(name)


def image_features(trunk: nn.Module, images: Tensor) -> Tensor:
    """What the image head can read: images `(B, 3, 224, 224)` -> `(B, 2, 384)`, one row for each of `POOLS`.

    ``trunk`` is the ViT, merged or not. In the mean a merged patch counts as often as it stands for patches, and a
    dropped one does not count.
    """
    tokens = trunk.forward_features(images)  # (B, 1 + N, C)
    patches = tokens[:, trunk.num_prefix_tokens :]
    is_kept = (patches != 0).any(dim=2, keepdim=True)  # patches that were dropped come back as zeros
    return torch.stack([tokens[:, 0], (patches * is_kept).sum(1) / is_kept.sum(1)], dim=1)


def text_features(text: nn.Module, ids: Tensor) -> Tensor:
    """What the text head reads: token ids `(B, T)`, padded -> `(B, 384)`. ``text`` is open_clip's `HFTextEncoder`."""
    real = (ids != text.config.pad_token_id).long()
    width = int(real.sum(dim=1).max())  # open_clip pads every text to the context's length: that only costs time
    ids, real = ids[:, :width], real[:, :width]
    return text.pooler(text.transformer(input_ids=ids, attention_mask=real), real)
