"""Pictures of what merged, and of what it costs. numpy and matplotlib are imported where they are used."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .linear_plan import LinearPlan

COLOURS = {"pitome": "#0072B2", "tome": "#D55E00"}  # others: the next colour of matplotlib


def _pyplot() -> Any:
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError("plots are drawn with matplotlib, which is not installed: pip install matplotlib") from error
    return pyplot


def _numpy() -> Any:
    try:
        import numpy
    except ImportError as error:
        raise ImportError("pictures are numpy arrays, and numpy is not installed: pip install numpy") from error
    return numpy


def token_map(trace: Any, image: Any, layer: int = -1, item: int = 0, *, grid: tuple[int, int] | None = None) -> Any:
    """A picture of what merged: every patch in the mean colour of the token that it is in after a layer.

    White lines separate tokens. Hatched are the patches whose token the energy kept out of the merge of that layer: it
    merged with none, and its energy is below that of all tokens that merged. Methods without an energy, and layers
    that merge nothing, have none. Dropped patches are grey.

    Args:
        trace: of `pc.record`, its last forward call; or one of `trace.forwards`.
        image: the picture as the model saw it (resized and cropped): `(H, W, 3)` uint8, a Pillow image, or `(3, H, W)`
            or `(H, W, 3)` with values from 0 to 1.
        layer: after which layer; -1 = the last.
        item: which item of the batch.
        grid: rows and columns of patches; None = those that fit the shape of the picture.

    Returns:
        A numpy array `(H, W, 3)` uint8.

    Raises:
        ValueError: another picture; no such layer or item; no grid that fits; a method that is a transform.
        ImportError: numpy is not installed.

    Example:
        >>> import timm, torch, pitome_core as pc
        >>> model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2).eval()
        >>> picture = torch.rand(3, 64, 64)
        >>> with pc.record(pc.apply(model, keep=0.75)) as trace:
        ...     _ = model(picture[None])
        >>> pc.token_map(trace, picture).shape
        (64, 64, 3)
    """
    numpy, forward = _numpy(), getattr(trace, "last", trace)
    depth = len(forward.layers)
    if not -depth <= layer < depth:
        raise ValueError(f"the trace has {depth} layers, there is no layer {layer}")
    after = forward.plan(layer % depth + 1)
    if isinstance(after, LinearPlan):
        raise ValueError("a transform assigns no patch to a token, so there is no map of tokens: `trace.plot()` draws "
                         "how many are left")
    if not 0 <= item < after.shape[0]:
        raise ValueError(f"the trace has {after.shape[0]} items, there is no item {item}")
    picture = _picture(numpy, image)
    height, width = picture.shape[:2]
    rows, columns = _grid(after.shape[1], height, width) if grid is None else grid
    if rows * columns != after.shape[1]:
        raise ValueError(f"{after.shape[1]} patches are not {rows} x {columns}")
    row, column = numpy.arange(height) * rows // height, numpy.arange(width) * columns // width
    patch = row[:, None] * columns + column  # (H, W)
    token = after.assignment[item].cpu().numpy()[patch]
    entering = forward.plan(layer % depth).assignment
    kept_out = _kept_out(forward.layers[layer].plan).gather(1, entering.clamp_min(0)) & (entering >= 0)  # (B, N)
    drawn = token_colours(picture, token)
    across, stripe = numpy.add.outer(numpy.arange(height), numpy.arange(width)), max(4, height // rows // 3)
    hatched = kept_out[item].cpu().numpy()[patch] & (across % stripe < max(1, stripe // 4))
    ink = numpy.where(drawn.mean(axis=-1, keepdims=True) > 128, 0.0, 255.0)
    drawn = numpy.where(hatched[..., None], (drawn + ink) / 2, drawn)
    thick = max(1, min(height, width) // 300)
    for shift in range(1, thick + 1):
        drawn[shift:][token[shift:] != token[:-shift]] = 255
        drawn[:, shift:][token[:, shift:] != token[:, :-shift]] = 255
    return drawn.round().astype(numpy.uint8)


def token_colours(picture: Any, token: Any) -> Any:
    """`(H, W, 3)` float: the mean colour of its token at every place of `picture (H, W, 3)`, 128 for dropped ones.

    `token (H, W)` holds the number of the token of every place, -1 = dropped.
    """
    numpy, flat = _numpy(), token.ravel() + 1
    sums = numpy.stack([numpy.bincount(flat, weights=channel) for channel in picture.reshape(-1, 3).T.astype(float)], 1)
    mean = sums / numpy.maximum(numpy.bincount(flat), 1)[:, None]
    mean[0] = 128.0
    return mean[flat].reshape(picture.shape)


def _picture(numpy: Any, image: Any) -> Any:
    """`(H, W, 3)` float from 0 to 255."""
    array = numpy.asarray(image.detach().cpu() if isinstance(image, Tensor) else image)
    if array.ndim == 3 and array.shape[0] == 3 and array.shape[2] != 3:
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(f"the picture must be (H, W, 3) or (3, H, W), got {array.shape}")
    if array.dtype == numpy.uint8:
        return array.astype(float)
    if not (array.min() >= 0 and array.max() <= 1):
        raise ValueError(f"a picture that is not uint8 has values from 0 to 1, got {array.min():.2f} to "
                         f"{array.max():.2f}: undo the normalisation, `image * std + mean`")
    return array * 255.0


def _grid(patches: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns, with patches as square as they can be; ValueError if they would be far from square."""
    options = [(rows, patches // rows) for rows in range(1, patches + 1) if patches % rows == 0]
    rows, columns = min(options, key=lambda option: abs(height / option[0] - width / option[1]))
    if not 0.8 < (height / rows) / (width / columns) < 1.25:
        raise ValueError(f"{patches} patches fit no grid on a picture of {height} x {width}: give grid=(rows, columns)")
    return rows, columns


def _kept_out(plan: Any) -> Tensor:
    """`(B, N)` bool: tokens that merged with none and have less energy than all that did."""
    merged = plan.sizes.gather(1, plan.assignment.clamp_min(0)) > 1
    if plan.energy is None:
        return torch.zeros_like(merged)
    weakest = plan.energy.masked_fill(~merged, torch.inf).amin(dim=1, keepdim=True)
    return ~merged & (plan.energy < weakest) & merged.any(dim=1, keepdim=True)


def plot_trace(trace: Any, axes: Any = None) -> Any:
    """Draw how tokens became fewer, and how large the last ones are: see `Trace.plot`."""
    layers = trace.layers
    first, real = layers[0], [(layer.size > 0).sum(dim=1).float().mean().item() for layer in layers]
    entering = first.plan.shape[1] if first.plan.valid is None else first.size.sum(dim=1).mean().item()
    axes = _pyplot().subplots(1, 2, figsize=(9, 3), layout="constrained")[1] if axes is None else axes
    left, right = axes
    left.stairs([entering, *real], range(len(real) + 2), baseline=None)
    left.set(xlabel="layer", ylabel="tokens entering it", ylim=(0, None), title="tokens")
    sizes = layers[-1].size
    right.hist(sizes[sizes > 0].cpu().tolist(), bins=range(1, int(sizes.max()) + 2), align="left", log=True)
    right.set(xlabel="patches in a token", ylabel="number of tokens", title="sizes after the last layer")
    return axes


def plot_diagnosis(found: Any, axes: Any = None) -> Any:
    """Draw what stays against what it costs: see `Diagnosis.plot`."""
    axes = _pyplot().subplots(figsize=(6, 4), layout="constrained")[1] if axes is None else axes
    answers = found.settings[0].same is not None
    for place, name in enumerate(dict.fromkeys(one.method for one in found.settings)):
        rows = sorted((one for one in found.settings if one.method == name), key=lambda one: one.flops)
        rows = [one for one in rows if (one.same if answers else one.likeness) is not None]
        x = [one.flops for one in rows]
        y = [one.same / found.count if answers else one.likeness for one in rows]
        axes.plot([*x, 1], [*y, 1], marker="o", label=name, color=COLOURS.get(name))
        ends = [one.agreement if answers else one.likeness_interval for one in rows]
        axes.vlines(x, [low for low, _ in ends], [high for _, high in ends], color=axes.lines[-1].get_color(),
                    alpha=0.5, linewidth=max(1.5, 6 - 3 * place))  # two methods stand at nearly the same cost
    axes.axhline(found.target, color="0.5", linestyle="--", linewidth=1)
    if found.recommended is not None:
        chosen = found.settings[found.recommended]
        axes.plot(chosen.flops, chosen.same / found.count if answers else chosen.likeness, "o", color="none",
                  markeredgecolor="0.2", markersize=14)
    axes.set(xlabel="FLOPs, share of the whole model's", ylabel="unchanged top answers" if answers else "likeness")
    axes.legend(loc="lower right")
    return axes
