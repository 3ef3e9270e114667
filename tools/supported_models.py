"""Run the contract on every architecture in the table and write book/supported_models.md.

`python tools/supported_models.py` writes the page; tests/core/families/test_supported_models.py runs the same checks
and holds the page to them. Models are tiny: the library's own classes with random weights, LayerScale at 0.3, depth 3,
small inputs.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from model_uses import COLUMNS as USES
from model_uses import check_uses, tensors
from torch import Tensor, nn

import pitome_core as pc
from pitome_core.experiments.records.tables import markdown
from pitome_core.families import find_family

PAGE = Path(__file__).resolve().parents[1] / "book" / "supported_models.md"
KEEP = 0.7
NOT_RUN = "not run"


@dataclass(frozen=True)
class Entry:
    """One row: `build()` gives the model and the arguments of its forward call; `uses` stands in place of a run."""

    library: str
    name: str
    build: Callable[[], tuple[nn.Module, dict]]
    note: str = ""
    towers: str = "vision"
    uses: str = ""


def randomized(model: nn.Module) -> nn.Module:
    """Weights that leave nothing at its start; LayerScale 0.3."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith(("gamma", "lambda1", "gamma_1", "gamma_2", "lambda_1", "lambda_2")):
                parameter.fill_(0.3)
            elif parameter.ndim > 1 and name.endswith("weight"):
                parameter.copy_(noise * noise[0].numel() ** -0.5)
            else:
                parameter.add_(0.1 * noise)
    return model.eval()


def pictures(side: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    smooth = nn.functional.interpolate(torch.randn(2, 3, 3, 3, generator=generator), size=(side, side))
    return smooth + 0.3 * torch.randn(2, 3, side, side, generator=generator)


def timm_entry(name: str, note: str = "", **options) -> Entry:
    def build():
        import timm

        side = 56 if "patch14" in name else 64
        small = {"img_size": side, "embed_dim": 48, "num_heads": 3, "depth": 3, "num_classes": 5, **options}
        return randomized(timm.create_model(name, pretrained=False, **small)), {"x": pictures(side)}

    return Entry("timm", name, build, note)


def open_clip_entry(note: str, **vision) -> Entry:
    def build():
        from open_clip.model import CLIP

        tower = {"image_size": 64, "patch_size": 16, "width": 48, "head_width": 16, "layers": 3, **vision}
        quick = tower.pop("quick_gelu", False)
        text = {"context_length": 12, "vocab_size": 50, "width": 32, "heads": 2, "layers": 2}
        words = torch.randint(1, 50, (2, 12), generator=torch.Generator().manual_seed(2))
        return randomized(CLIP(24, tower, text, quick_gelu=quick)), {"image": pictures(64), "text": words}

    return Entry("open_clip", "CLIP", build, note)


def dual_encoder_entry(note: str, towers: str) -> Entry:
    def build():
        import timm
        import transformers
        from open_clip.model import CustomTextCLIP

        small = {"img_size": 64, "embed_dim": 48, "num_heads": 3, "depth": 3}
        with TemporaryDirectory() as folder:  # both towers are described by files
            transformers.BertConfig(**TEXT).save_pretrained(folder)
            vision = {"architecture": "vit_small_patch16_224", "num_classes": 0, "model_args": small}
            about = {"pretrained_cfg": timm.get_pretrained_cfg("vit_small_patch16_224").to_dict()}
            (Path(folder) / "image").mkdir()
            (Path(folder) / "image" / "config.json").write_text(json.dumps(vision | about))
            model = CustomTextCLIP(
                24,
                {"timm_model_name": f"local-dir:{folder}/image", "timm_pool": "token"},
                {"hf_model_name": folder, "hf_model_pretrained": False, "hf_pooler_type": "mean_pooler"},
            )
        return randomized(model), {"image": pictures(64), "text": words()["input_ids"]}

    return Entry("open_clip", "CustomTextCLIP", build, note, towers)


BARE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "num_labels": 5}
VISION = {**BARE, "intermediate_size": 48, "image_size": 32, "patch_size": 8, "projection_dim": 12}
TEXT = {**BARE, "intermediate_size": 48, "vocab_size": 50, "max_position_embeddings": 20, "projection_dim": 12}


def words() -> dict:
    ids = torch.randint(5, 50, (2, 12), generator=torch.Generator().manual_seed(3))
    mask = torch.arange(12) < torch.tensor([12, 8])[:, None]
    return {"input_ids": ids.masked_fill(~mask, 0), "attention_mask": mask.long()}


def blip_entry(name: str, **further: str) -> Entry:
    def build():
        import transformers

        text = {**TEXT, "encoder_hidden_size": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
                "sep_token_id": 2}
        config = transformers.BlipConfig(vision_config=VISION, text_config=text, image_text_hidden_size=12)
        given = {"pixel_values": pictures(32), **words()}
        given |= {key: given[value] for key, value in further.items()}
        return randomized(getattr(transformers, name)(config)), given

    return Entry("transformers", name, build, "image tower", uses="see `BlipVisionModel`")


def any_shape_entry() -> Entry:
    def build():
        import transformers

        model = transformers.Siglip2VisionModel(transformers.Siglip2VisionConfig(**VISION, num_patches=16))
        mask = torch.arange(16) < torch.tensor([16, 12])[:, None]
        patches = torch.randn(2, 16, 192, generator=torch.Generator().manual_seed(5)) * mask[..., None]
        given = {"pixel_values": patches, "pixel_attention_mask": mask.long()}
        return randomized(model), {**given, "spatial_shapes": torch.tensor([[4, 4], [2, 6]])}

    return Entry("transformers", "Siglip2VisionModel", build, "NaFlex: pictures of unequal sizes", uses=NOT_RUN)


def mae_entry() -> Entry:
    def build():
        import transformers

        model = transformers.ViTMAEModel(transformers.ViTMAEConfig(**VISION, mask_ratio=0.0))
        noise = torch.rand(2, 16, generator=torch.Generator().manual_seed(4))
        return randomized(model), {"pixel_values": pictures(32), "noise": noise}

    return Entry("transformers", "ViTMAEModel", build, "mask ratio 0", uses=NOT_RUN)


def hf_entry(name: str, config: str, note: str = "", **options) -> Entry:
    def build():
        import transformers

        kind = getattr(transformers, config)
        if config in ("CLIPConfig", "SiglipConfig"):
            made = kind(vision_config=VISION, text_config={**TEXT, "eos_token_id": 49}, projection_dim=12)
            text = {key: value[:, :8] for key, value in words().items()}
            text["input_ids"][:, -1] = 49
            given = {"pixel_values": pictures(32), **text}
        elif config in ("BertConfig", "RobertaConfig", "DistilBertConfig"):
            names = {"hidden_size": "dim", "intermediate_size": "hidden_dim"} if config == "DistilBertConfig" else {}
            own = {names.get(name, name): value for name, value in TEXT.items()}
            made, given = kind(**own, pad_token_id=0), words()
        else:
            made, given = kind(**{**VISION, **options}), {"pixel_values": pictures(32)}
        return randomized(getattr(transformers, name)(made)), given

    return Entry("transformers", name, build, note)


ENTRIES = [
    timm_entry("deit_tiny_patch16_224"),
    timm_entry("deit_tiny_distilled_patch16_224", "distillation token"),
    timm_entry("deit3_small_patch16_224", "LayerScale"),
    timm_entry("vit_base_patch16_224", "MAE style: average pooling", global_pool="avg"),
    timm_entry("vit_base_patch16_clip_224", "norm before the blocks"),
    timm_entry("vit_small_patch14_dinov2", "LayerScale"),
    timm_entry("vit_small_patch14_reg4_dinov2", "registers"),
    timm_entry("vit_medium_patch16_reg4_gap_256", "registers, average pooling"),
    timm_entry("vit_base_patch16_siglip_224", "no class token, attention pooling"),
    timm_entry("vit_giant_patch14_dinov2", "gated MLP"),
    timm_entry("eva02_tiny_patch14_224", "rotary positions"),
    timm_entry("eva_giant_patch14_clip_224"),
    timm_entry("vit_small_patch16_dinov3", "rotary positions, registers"),
    timm_entry("vit_pe_core_tiny_patch16_384", "rotary positions, attention pooling", attn_pool_num_heads=4),
    timm_entry("beit_base_patch16_224", "relative position bias"),
    timm_entry("beitv2_base_patch16_224", "relative position bias"),
    open_clip_entry("image tower"),
    open_clip_entry("image tower, QuickGELU", quick_gelu=True),
    open_clip_entry("image tower, average pooling, LayerScale", pool_type="avg", ls_init_value=0.1),
    dual_encoder_entry("ViT of timm and BERT: image tower", "vision"),
    dual_encoder_entry("ViT of timm and BERT: text tower", "text"),
    dual_encoder_entry("ViT of timm and BERT: both", "both"),
    hf_entry("ViTModel", "ViTConfig"),
    hf_entry("ViTForImageClassification", "ViTConfig"),
    hf_entry("DeiTModel", "DeiTConfig", "distillation token"),
    hf_entry("DeiTForImageClassificationWithTeacher", "DeiTConfig", "distillation token"),
    hf_entry("CLIPVisionModelWithProjection", "CLIPVisionConfig"),
    hf_entry("CLIPModel", "CLIPConfig", "image tower"),
    hf_entry("SiglipVisionModel", "SiglipVisionConfig", "attention pooling"),
    hf_entry("SiglipModel", "SiglipConfig", "image tower"),
    hf_entry("Dinov2Model", "Dinov2Config", "LayerScale", mlp_ratio=2),
    hf_entry("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", "registers", mlp_ratio=2),
    hf_entry("Dinov2Backbone", "Dinov2Config", "feature maps", mlp_ratio=2, out_features=["stage1", "stage3"]),
    hf_entry("DINOv3ViTModel", "DINOv3ViTConfig", "rotary positions, registers", num_register_tokens=2),
    hf_entry("BeitForImageClassification", "BeitConfig", "relative position bias",
             use_relative_position_bias=True),
    mae_entry(),
    any_shape_entry(),
    hf_entry("BlipVisionModel", "BlipVisionConfig"),
    blip_entry("BlipForImageTextRetrieval"),
    blip_entry("BlipForQuestionAnswering", labels="input_ids"),
    hf_entry("BertModel", "BertConfig", "text of unequal lengths"),
    hf_entry("BertForSequenceClassification", "BertConfig", "text of unequal lengths"),
    hf_entry("RobertaForSequenceClassification", "RobertaConfig", "text of unequal lengths"),
    hf_entry("DistilBertForSequenceClassification", "DistilBertConfig", "text of unequal lengths"),
]


def check(entry: Entry) -> dict[str, str | bool]:
    """Every point of the contract for one entry."""
    model, given = entry.build()

    def outputs() -> list[Tensor]:
        with torch.no_grad():
            return tensors(model(**given))

    def learning() -> set[str]:
        model.zero_grad(set_to_none=True)
        sum(part.square().mean() for part in tensors(model(**given))).backward()
        return {n for n, p in model.named_parameters() if p.grad is not None and p.grad.isfinite().all()}

    before, names, learns = outputs(), list(model.state_dict()), learning()
    row: dict[str, str | bool] = {"family": find_family(model).name}
    with pc.patched(model, "pitome", keep=1.0, towers=entry.towers):
        after = outputs()
        row["keep=1"] = all((a - b).abs().max() <= 1e-6 for a, b in zip(after, before, strict=True))
    pc.apply(model, "pitome", keep=KEEP, towers=entry.towers)
    with pc.record(model) as trace:
        merged = outputs()
    counts = [layer.plan.num_tokens for layer in trace.layers]
    row["tokens"] = f"{trace.layers[0].plan.assignment.shape[1]} to {counts[-1]}"
    same = [(a.shape, a.dtype) for a in merged] == [(b.shape, b.dtype) for b in before]
    row["outputs"] = same and any(not torch.allclose(a, b, atol=1e-4) for a, b in zip(merged, before, strict=True))
    row["gradients"] = learning() == learns
    row["names"] = list(model.state_dict()) == names
    twin = copy.deepcopy(model)
    pc.remove(model)
    row["remove"] = all(torch.equal(a, b) for a, b in zip(outputs(), before, strict=True))
    with torch.no_grad():
        row["copy"] = all(torch.allclose(a, b, atol=1e-6) for a, b in zip(tensors(twin(**given)), merged, strict=True))
    return row


TEXT_ABOVE = f"""# Supported models

The rows below, and `LlavaForConditionalGeneration` with `restore=False` (it needs placeholders: see
`pitome_core.families.hf_llava`). The page is written by `tools/supported_models.py`, which runs the contract on each
row: the library's own classes with random weights, LayerScale at 0.3, three layers, small inputs. A test runs it again
and holds the page to the outcome. How to add a model of your own: [Your own Vision Transformer](own_model.md).

The names in the tables are classes of timm {{cite}}`wightman2019timm`, open_clip {{cite}}`ilharco2021openclip` and
transformers {{cite}}`wolf2020transformers`. The models behind them: ViT {{cite}}`dosovitskiy2021vit`, DeiT
{{cite}}`touvron2021deit`, MAE {{cite}}`he2022mae`, BEiT {{cite}}`bao2022beit`, DINOv2 {{cite}}`oquab2024dinov2` and
its registers {{cite}}`darcet2024registers`, DINOv3 {{cite}}`simeoni2025dinov3`, CLIP {{cite}}`radford2021clip`,
SigLIP {{cite}}`zhai2023siglip`, SigLIP 2 {{cite}}`tschannen2025siglip2`, BLIP {{cite}}`li2022blip`, LLaVA
{{cite}}`liu2023llava`; BERT {{cite}}`devlin2019bert`, RoBERTa {{cite}}`liu2019roberta` and DistilBERT
{{cite}}`sanh2019distilbert`. LoRA {{cite}}`hu2022lora` is put on by peft {{cite}}`mangrulkar2022peft`.

- **keep=1**: the patched model equals the unpatched one to 1e-6.
- **tokens**: entering the first block and leaving the third, at keep {KEEP}. Prefix tokens are not counted. Where both
  towers merge, they are those of the image tower.
- **outputs**: every output has the type and shape it had, and merging does change its values.
- **gradients**: every parameter that learns unpatched learns patched. **names**: `state_dict` has the same keys.
- **remove**: restores the outputs bit for bit. **copy**: `deepcopy` merges alike.

"""
TEXT_BELOW = """
## Where positions go

A merged token stands where its anchor stood: the token that received in its group. Absolute positions are in the
tokens already. Rotary angles and relative position biases are looked up at the anchors, item by item, in all later
layers. Keys are compared before rotation.

## What is refused, and why

Classes are listed by exact type; anything else raises `UnsupportedModelError` with the block that stands in the way.

| | reason |
|---|---|
| parallel blocks (attention and MLP side by side) | there is no place between attention and MLP |
| differential attention, other attention classes | their keys are not known |
| hybrid and other patch embeddings in timm's `VisionTransformer` | their grid and cost are not known |
| subclasses of a supported model | they may run their blocks in another way |
| rotary angles that differ by layer | refused rather than guessed |
| causal text towers (CLIP, SigLIP) | a plan made from all tokens lets later words change earlier outputs |
| MAE with a mask ratio, its decoder | it is for pretraining: `mask_ratio = 0.0`, or timm's `vit_huge_patch14_224.mae` |
| methods that drop tokens in a BLIP with a text tower | cross-attention would read zeros: use `restore=False` |
| LLaVA-NeXT and LLaVA-OneVision as a whole | tiles are packed by rows: `pc.apply(model.model.vision_tower)`, or LLaVA |
| timm's `NaFlexVit` | padded and masked: timm's models of one size, or `Siglip2VisionModel` of transformers |
| `DINOv3ViTBackbone` | use `DINOv3ViTModel`, or timm's DINOv3 with `forward_intermediates` |
| BERT as a decoder or with cross-attention | outputs would depend on later tokens |
| models or blocks that are wrapped already (`torch.compile`, checkpointing, FSDP1) | `apply` first, then wrap |
| a `forward` that was replaced on the instance | merging would be left out: take it out, `apply`, put it in again |
| LLaVA with `restore=True` | its language model takes the merged tokens: use `restore=False` |
"""
USES_ABOVE = """
## Where the model is put

The same rows inside what users put around a model; [How to run](how_to_run.md) has the order that always works.

- **trace**: `torch.jit.trace` of one image is right for one and for four. **export**: `torch.export` with a dynamic
  batch, for one and for four. **ONNX**: the same in onnxruntime, outputs to 1e-4 and plans equal ([Export](export.md)).
- **compile**: `torch.compile(dynamic=True)` makes one graph for batches of 2, 3 and 5 (texts: several, with breaks).
- **LoRA**: every low-rank update of peft that learns unmerged learns merged, put on before or after `apply`, with the
  same outputs.
- **replica**: what `nn.DataParallel` makes for each device runs its own weights.
- **device map**: everything behind the second block on a second device, by accelerate, hooks put on before `apply`. The
  second device was `meta`, which has shapes and no values; two GPUs were not run.

"""
COLUMNS = ("keep=1", "tokens", "outputs", "gradients", "names", "remove", "copy")


def page(rows: list[tuple[Entry, dict]]) -> str:
    """The page for these outcomes: the contract, and the uses."""
    words = {True: "yes", False: "NO"}

    def table(columns: tuple[str, ...]) -> str:
        return markdown(
            ["model", *columns],
            [(f"{entry.library} `{entry.name}` {entry.note}".strip(), *(words.get(row[n], row[n]) for n in columns))
             for entry, row in rows],
        )

    return f"{TEXT_ABOVE}{table(COLUMNS)}\n{USES_ABOVE}{table(USES)}\n{TEXT_BELOW}"


def outcome(entry: Entry) -> dict[str, str | bool]:
    """Contract and uses of one entry. The model with both towers is used by its towers, so by the rows before it."""
    row = check(entry)
    if entry.uses or entry.towers == "both":
        return row | dict.fromkeys(USES, entry.uses or "see each tower")
    return row | check_uses(*entry.build(), entry.towers)


def main() -> int:
    rows = [(entry, outcome(entry)) for entry in ENTRIES]
    PAGE.write_text(page(rows))
    failed = [entry.name for entry, row in rows if False in row.values()]
    print(f"{len(rows)} architectures, {len(failed)} failed: {', '.join(failed) or 'none'}; written to {PAGE.name}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
