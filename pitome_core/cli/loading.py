"""Models by name or folder, and pictures as their models take them."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Loaded:
    """A model in evaluation mode and how it takes pictures.

    Attributes:
        model: the model.
        transform: a Pillow image in RGB -> `(3, H, W)`.
        mean, std: what the transform normalises by, three numbers each.
    """

    model: nn.Module
    transform: Callable[[Any], Tensor]
    mean: Sequence[float]
    std: Sequence[float]

    def prepare(self, paths: Sequence[Path]) -> Tensor:
        """The pictures at these paths as `(n, 3, H, W)`; OSError names one that cannot be read."""
        return torch.stack([self.transform(_opened(path)) for path in paths])

    def seen(self, images: Tensor) -> Tensor:
        """`(n, 3, H, W)` from 0 to 1: prepared pictures as the model sees them, without the normalisation."""
        mean, std = (torch.tensor(list(values)).view(3, 1, 1) for values in (self.mean, self.std))
        return (images * std + mean).clamp(0, 1)


def pillow() -> Any:
    """The module `PIL.Image`; ImportError says how to get it."""
    return _library("PIL.Image", "pillow")


def _library(name: str, package: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"this needs {package}, which is not installed here: pip install {package}") from error


def _opened(path: Path) -> Any:
    try:
        with pillow().open(path) as image:
            return image.convert("RGB")
    except OSError as error:
        raise OSError(f"{path} cannot be read as a picture: {error}") from error


def pictures_in(folder: Path, count: int) -> list[Path]:
    """At most `count` pictures of a folder and its subfolders, spread evenly over them in the order of their names."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder")
    if count < 1:
        raise ValueError(f"--count must be 1 or more, got {count}")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise FileNotFoundError(f"{folder} has no pictures ({', '.join(SUFFIXES)})")
    return [paths[i * len(paths) // count] for i in range(count)] if len(paths) > count else paths


def load(name: str, weights: str, *, pictures: bool = True) -> Loaded:
    """The model of that name, or in that folder. `weights` is `pretrained` or `random` (the same ones in every call).

    Without `pictures` it need not be known how the model takes them.

    Raises:
        ValueError: there is no such model, or the folder is of no known format.
        RuntimeError: pretrained weights cannot be had.
        ImportError: the library of the model is not installed.
    """
    folder, pretrained = Path(name), weights == "pretrained"
    if not folder.is_dir():
        if "/" in name and not name.startswith("hf-hub:"):
            raise ValueError(f"there is no folder {name}")
        load_it = _from_timm
    elif (folder / "open_clip_config.json").is_file():
        load_it, name = _from_open_clip, f"local-dir:{name}"
    elif (folder / "config.json").is_file():
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        load_it, name = (_from_timm, f"local-dir:{name}") if "architecture" in config else (_from_transformers, name)
    else:
        raise ValueError(f"{name} holds no model: neither config.json (timm, transformers) nor open_clip_config.json")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        loaded = load_it(name, pretrained, pictures)
    loaded.model.eval()
    return loaded


def _no_pictures(image: Any) -> Tensor:
    raise TypeError("this model was loaded to be counted, and takes no pictures")


def _weights(name: str, make: Callable[[], Any]) -> Any:
    """What `make` makes; RuntimeError where that fails, because weights cannot be fetched or read."""
    try:
        return make()
    except Exception as error:
        line = " ".join(str(error).split())[:200] or type(error).__name__
        raise RuntimeError(f"the weights of {name} cannot be had ({type(error).__name__}: {line}). Without a network "
                           "give a folder that has them, or --weights random for a dry run") from error


def _from_timm(name: str, pretrained: bool, pictures: bool) -> Loaded:
    timm = _library("timm", "timm")
    local = name.startswith(("local-dir:", "hf-hub:"))
    if not local and not timm.is_model(name):
        raise ValueError(f"timm has no model {name!r}, and there is no such folder")
    if pretrained and not local and not timm.models.is_model_pretrained(name):
        raise ValueError(f"timm has no weights for {name!r}: name one of its variants, such as those of "
                         f"timm.list_pretrained('{name.partition('.')[0]}*')")
    model = _weights(name, lambda: timm.create_model(name, pretrained=pretrained))
    config = timm.data.resolve_model_data_config(model)
    return Loaded(model, timm.data.create_transform(**config, is_training=False), config["mean"], config["std"])


def _from_open_clip(name: str, pretrained: bool, pictures: bool) -> Loaded:
    open_clip = _library("open_clip", "open_clip_torch")
    model, _, transform = _weights(name, lambda: open_clip.create_model_and_transforms(name, load_weights=pretrained))
    return Loaded(model, transform, model.visual.image_mean, model.visual.image_std)


def _from_transformers(name: str, pretrained: bool, pictures: bool) -> Loaded:
    transformers = _library("transformers", "transformers")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    config = transformers.AutoConfig.from_pretrained(name, local_files_only=True)
    kinds = [kind for kind in config.architectures or () if hasattr(transformers, kind)]
    if not kinds:
        raise ValueError(f"the config.json in {name} names no architecture of transformers {transformers.__version__}")
    kind = getattr(transformers, kinds[0])
    model = _weights(name, lambda: kind.from_pretrained(name, local_files_only=True)) if pretrained else kind(config)
    if not pictures:
        return Loaded(model, _no_pictures, (), ())
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(name, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{name} has no preprocessor_config.json that says how pictures are prepared; texts are "
                         "diagnosed in Python, with pc.diagnose") from error
    return Loaded(model, lambda image: processor(images=image, return_tensors="pt")["pixel_values"][0],
                  processor.image_mean, processor.image_std)
