"""Pictures as input of a model: sizes, crops, normalisation and back."""

import numpy as np
import pytest
import torch
from PIL import Image

from pitome_core.experiments.data.pictures import preprocess, to_display


@pytest.mark.parametrize("size", [230, (224, 100), 7, 0])
def test_sizes_that_do_not_fit(size):
    with pytest.raises(ValueError, match="no multiple of the patch size 14: use"):
        preprocess(np.zeros((30, 30, 3), np.uint8), size)


def test_preprocess_and_back_is_exact_at_the_own_size():
    pixels = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    images = preprocess(pixels)
    assert images.shape == (1, 3, 224, 224) and images.dtype == torch.float32
    assert np.array_equal(to_display(images)[0], pixels)
    assert np.array_equal(to_display(images[0]), pixels)
    by_hand = (pixels[5, 7, 2] / 255 - 0.406) / 0.225
    assert abs(float(images[0, 2, 5, 7]) - by_hand) < 1e-5
    assert torch.equal(images, preprocess(Image.fromarray(pixels)))
    assert torch.equal(images, preprocess(pixels, fit="pad"))


def test_crop_takes_the_centre_and_averages():
    wide = np.zeros((28, 84, 3), np.uint8)
    wide[:, 28:56] = 200  # exactly the central square
    assert (to_display(preprocess(wide, 14)) == 200).all()
    checks = np.indices((448, 448)).sum(0)[..., None].repeat(3, 2) % 2 * 255
    assert (to_display(preprocess(checks.astype(np.uint8))) == 128).all()  # 127.5, no aliasing
    tall = np.arange(448, dtype=np.uint16).astype(np.uint8).reshape(448, 1, 1).repeat(224, 1).repeat(3, 2)
    assert np.array_equal(to_display(preprocess(tall))[0], tall[112:336])


def test_pad_keeps_everything_on_black():
    wide = np.full((100, 200, 3), 90, np.uint8)
    shown = to_display(preprocess(wide, fit="pad"))[0]
    assert (shown[56:168] == 90).all() and (shown[:56] == 0).all() and (shown[168:] == 0).all()


def test_preprocess_takes_mixed_pictures_and_oblong_sizes():
    grey = Image.new("L", (50, 80), 10)
    images = preprocess([grey, np.zeros((300, 20, 3), np.uint8)], (112, 224))
    assert images.shape == (2, 3, 112, 224)
    assert (to_display(images)[0] == 10).all() and (to_display(images)[1] == 0).all()
    stacked = preprocess(np.zeros((2, 30, 30, 3), np.uint8), 28)
    assert stacked.shape == (2, 3, 28, 28)


@pytest.mark.parametrize(
    "images, options, words",
    [
        (np.zeros((30, 30, 3), np.float32), {}, "got float32 .* convert to 8-bit RGB"),
        ([np.zeros((30, 30), np.uint8)], {}, "expected uint8 \\(h, w, 3\\), got uint8 \\(30, 30\\)"),
        (np.zeros((30, 30, 4), np.uint8), {}, "\\(30, 30, 4\\)"),
        ([], {}, "no images"),
        (np.zeros((30, 30, 3), np.uint8), {"fit": "squash"}, "'squash'; choose crop or pad"),
    ],
)
def test_preprocess_errors(images, options, words):
    with pytest.raises(ValueError, match=words):
        preprocess(images, **options)
