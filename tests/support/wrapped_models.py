"""One small model of each library, and where its parts are, for tests of what is put around models."""

from __future__ import annotations

import torch
from small_models import pictures, randomize
from torch import nn

from pitome_core.families import find_family as family

__all__ = ["ADAPTED", "KINDS", "build", "family", "run"]

KINDS = ("timm", "eva", "open_clip", "transformers", "BERT")
# Maps that low-rank updates are put on, by name.
ADAPTED = {"timm": ["qkv", "proj"], "eva": ["qkv", "q_proj", "v_proj", "fc2"], "open_clip": ["attn", "c_fc"],
           "transformers": ["q_proj", "v_proj", "o_proj"], "BERT": ["query", "value", "dense"]}
_BLOCKS = {"timm": "blocks", "eva": "blocks", "open_clip": "transformer.resblocks", "transformers": "layers",
           "BERT": "encoder.layer"}


def build(kind: str) -> tuple[nn.Module, dict]:
    """A model of three layers in eval mode, and arguments for it."""
    if kind in ("timm", "eva"):
        import timm

        name = "vit_tiny_patch16_224" if kind == "timm" else "vit_small_patch16_dinov3"
        options = dict(img_size=64, depth=3, embed_dim=48, num_heads=3, num_classes=7)
        model, inputs = timm.create_model(name, **options), {"x": pictures(2, (64, 64))}
    elif kind == "open_clip":
        import open_clip

        vision = dict(layers=3, width=48, head_width=16, patch_size=8, image_size=32)
        text = dict(context_length=12, vocab_size=50, width=32, heads=2, layers=1)
        model, inputs = open_clip.CLIP(24, vision, text).visual, {"x": pictures(2, (32, 32))}
    elif kind == "transformers":
        from transformers import ViTConfig, ViTModel

        config = ViTConfig(hidden_size=48, num_hidden_layers=3, num_attention_heads=3, intermediate_size=96,
                           image_size=64, patch_size=16)
        model, inputs = ViTModel(config, add_pooling_layer=False), {"pixel_values": pictures(2, (64, 64))}
    else:
        from transformers import BertConfig, BertModel

        config = BertConfig(vocab_size=60, hidden_size=48, num_hidden_layers=3, num_attention_heads=3,
                            intermediate_size=96, max_position_embeddings=32, hidden_dropout_prob=0.0,
                            attention_probs_dropout_prob=0.0)
        ids = torch.randint(5, 60, (2, 18), generator=torch.Generator().manual_seed(0))
        mask = torch.arange(18) < torch.tensor([[18], [13]])
        model = BertModel(config, add_pooling_layer=False)
        inputs = {"input_ids": ids, "attention_mask": mask.long()}
    model.kind = kind
    return randomize(model).eval(), inputs


def output(value) -> torch.Tensor:
    """The tensor that tests compare."""
    return value if isinstance(value, torch.Tensor) else value.last_hidden_state


def first(value) -> torch.Tensor:
    """The tokens of what a block gives."""
    return value if isinstance(value, torch.Tensor) else value[0]


def run(model: nn.Module, inputs: dict) -> torch.Tensor:
    with torch.no_grad():
        return output(model(**inputs))


def holder(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """The container of the blocks and their names in it."""
    container = model.get_submodule(_BLOCKS[model.kind])
    return container, list(container._modules)


def blocks(model: nn.Module) -> list[nn.Module]:
    container, names = holder(model)
    return [getattr(container, name) for name in names]


def behind_first_block(model: nn.Module) -> list[str]:
    """Names of the parts that run after the first block."""
    prefix = _BLOCKS[model.kind]
    last = {"timm": ["norm", "fc_norm", "head"], "eva": ["norm", "fc_norm", "head"], "open_clip": ["ln_post"],
            "transformers": ["layernorm"]}[model.kind]
    return [f"{prefix}.1", f"{prefix}.2", *last]


def attention(model: nn.Module) -> nn.Module:
    """The attention of the first block, as its model calls it."""
    block = blocks(model)[0]
    return block.attn if hasattr(block, "attn") else block.attention


def checkpointing(model: nn.Module, enable: bool) -> None:
    """Switch gradient checkpointing, by the switch of the library."""
    if hasattr(model, "gradient_checkpointing_enable"):
        if enable:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            model.gradient_checkpointing_disable()
    else:
        model.set_grad_checkpointing(enable)


def parts(value) -> list[torch.Tensor]:
    """The tensors of an output, in order."""
    return [value] if isinstance(value, torch.Tensor) else [part for part in value.values() if part is not None]
