"""Pictures from files to batches, in processes that decode while another process scores."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

Place = tuple[int, int | None]  # number of a picture, and the pixels to a side if it is to be smaller than usual
# Numbers of the pictures that were read, their pixels (B, 3, H, W) or None, and {number: why} of those that were not.
Batch = tuple[list[int], Tensor | None, dict[int, str]]


class PictureFiles:
    """Pictures on the disk, as `batches` reads them: an open file for each number."""

    def __init__(self, paths: Sequence[Path]):
        self.paths = paths

    def __getitem__(self, number: int) -> tuple[Any]:
        return (open(self.paths[number], "rb"),)


def batches(
    pictures: Any, transforms: Mapping[int | None, Callable[[Image.Image], Tensor]], places: Iterable[list[Place]],
    args: argparse.Namespace, device: torch.device,
) -> Iterator[Batch]:
    """One `Batch` for each list of places, in order.

    ``pictures[number][0]`` is a file that PIL can open, and ``transforms[pixels]`` makes the pixels ``(3, H, W)`` of an
    RGB picture. ``args.workers`` processes decode ahead, across the bounds of shards. A picture that cannot be read is
    reported in its batch and takes no place in it, where timm's own data set would put the next picture there.
    """
    return iter(DataLoader(
        _Decoded(pictures, transforms), batch_sampler=places, num_workers=args.workers, collate_fn=_collate,
        pin_memory=device.type == "cuda",
    ))


class _Decoded(Dataset):
    """`Place` -> (number, pixels ``(3, H, W)`` or None, why the picture could not be read)."""

    def __init__(self, pictures: Any, transforms: Mapping[int | None, Callable[[Image.Image], Tensor]]):
        self.pictures, self.transforms = pictures, transforms

    def __getitem__(self, place: Place) -> tuple[int, Tensor | None, str]:
        number, pixels = place
        try:
            stream = self.pictures[number][0]
            with stream, Image.open(stream) as picture:
                picture = picture.convert("RGB")  # decodes; grey, CMYK and palettes become RGB
        except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, ...
            return number, None, f"{type(error).__name__}: {error}"
        return number, self.transforms[pixels](picture), ""


def _collate(rows: list[tuple[int, Tensor | None, str]]) -> Batch:
    readable = [(number, image) for number, image, _ in rows if image is not None]
    return (
        [number for number, _ in readable],
        torch.stack([image for _, image in readable]) if readable else None,  # (B, 3, H, W)
        {number: why for number, image, why in rows if image is None},
    )
