"""Laws of Hugging Face's models: identity at keep=1, the slow reference, what comes back, padding, LLaVA, refusals."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import oracle
import oracle_families as reference
import pytest
import torch
from small_models import randomize
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import pitome_core as pc
import pitome_core.experiments.baselines

transformers = pytest.importorskip("transformers", minversion="5.23")
from transformers.models.bert.modeling_bert import BertLayer  # noqa: E402
from transformers.models.vit.modeling_vit import ViTLayer  # noqa: E402
from transformers.utils import output_capturing  # noqa: E402

from pitome_core.families.hf_bert import protected_tokens  # noqa: E402
from pitome_core.families.hf_llava import expand_placeholders, image_token_count  # noqa: E402

BARE = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, num_labels=5)
VISION = dict(**BARE, intermediate_size=48, image_size=32, patch_size=8, projection_dim=12)
TEXT = dict(**BARE, intermediate_size=48, vocab_size=50, max_position_embeddings=20, projection_dim=12)
DINO = dict(**BARE, mlp_ratio=2, image_size=32, patch_size=8, drop_path_rate=0.3)
BEIT = dict(**VISION, use_relative_position_bias=True, use_shared_relative_position_bias=True,
            use_absolute_position_embeddings=True, drop_path_rate=0.3)
BLIP_TEXT = dict(**TEXT, encoder_hidden_size=32, pad_token_id=0, bos_token_id=1, eos_token_id=2, sep_token_id=2)

# class name, name of its config, arguments of the config
VISION_MODELS = {
    "ViT": ("ViTModel", "ViTConfig", VISION),
    "ViT without pooler": ("ViTModel", "ViTConfig", VISION),
    "ViT classifier": ("ViTForImageClassification", "ViTConfig", VISION),
    "DeiT": ("DeiTModel", "DeiTConfig", VISION),
    "DeiT classifier": ("DeiTForImageClassification", "DeiTConfig", VISION),
    "DeiT with teacher": ("DeiTForImageClassificationWithTeacher", "DeiTConfig", VISION),
    "CLIP": ("CLIPVisionModel", "CLIPVisionConfig", VISION),
    "CLIP projection": ("CLIPVisionModelWithProjection", "CLIPVisionConfig", VISION),
    "SigLIP": ("SiglipVisionModel", "SiglipVisionConfig", VISION),
    "DINOv2": ("Dinov2Model", "Dinov2Config", DINO),
    "DINOv2 gated": ("Dinov2Model", "Dinov2Config", {**DINO, "use_swiglu_ffn": True}),
    "DINOv2 classifier": ("Dinov2ForImageClassification", "Dinov2Config", DINO),
    "DINOv2 backbone": ("Dinov2Backbone", "Dinov2Config", {**DINO, "out_features": ["stage1", "stage3"]}),
    "DINOv3": ("DINOv3ViTModel", "DINOv3ViTConfig", {**VISION, "num_register_tokens": 2, "drop_path_rate": 0.3}),
    "DINOv3 gated": ("DINOv3ViTModel", "DINOv3ViTConfig", {**VISION, "use_gated_mlp": True}),
    "BEiT": ("BeitModel", "BeitConfig", BEIT),
    "BEiT classifier": ("BeitForImageClassification", "BeitConfig", {**VISION, "use_relative_position_bias": True}),
    "BLIP": ("BlipVisionModel", "BlipVisionConfig", VISION),
    "MAE": ("ViTMAEModel", "ViTMAEConfig", {**VISION, "mask_ratio": 0.0}),
    "DINOv2 registers": ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", DINO),
    "DINOv2 registers classifier": ("Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersConfig", DINO),
}
TOWERS = ["ViT", "DeiT", "CLIP", "SigLIP", "BLIP", "BEiT", "DINOv2", "DINOv2 gated", "DINOv2 registers", "DINOv3"]
BERT_HEADS = ["PreTraining", "MaskedLM", "NextSentencePrediction", "SequenceClassification", "TokenClassification",
              "QuestionAnswering"]
ROBERTA = dict(TEXT, pad_token_id=0)
DISTILBERT = dict(dim=32, n_layers=3, n_heads=2, hidden_dim=48, vocab_size=50, max_position_embeddings=20, num_labels=5)
TEXT_MODELS = {
    "BERT": ("BertModel", "BertConfig", TEXT),
    **{head: (f"BertFor{head}", "BertConfig", TEXT) for head in BERT_HEADS},
    "RoBERTa": ("RobertaModel", "RobertaConfig", ROBERTA),
    "DistilBERT": ("DistilBertModel", "DistilBertConfig", DISTILBERT),
    **{f"RoBERTa {head}": (f"RobertaFor{head}", "RobertaConfig", ROBERTA) for head in BERT_HEADS[3:] + ["MaskedLM"]},
    **{f"DistilBERT {head}": (f"DistilBertFor{head}", "DistilBertConfig", DISTILBERT)
       for head in BERT_HEADS[3:] + ["MaskedLM"]},
}
ENCODERS = ["BERT", "RoBERTa", "DistilBERT"]
EVERY = [*VISION_MODELS, "CLIP both", "SigLIP both", *TEXT_MODELS]


def finish(model, dtype=torch.float32):
    randomize(model)
    for name, parameter in model.named_parameters():
        if name.endswith(("lambda1", "lambda_1", "lambda_2")):
            parameter.data.fill_(0.3)
    return model.eval().to(dtype)


def composite(kind, dtype=torch.float32, **overrides):
    config = getattr(transformers, f"{kind}Config")
    text = {**TEXT, "eos_token_id": 49}
    return finish(
        getattr(transformers, f"{kind}Model")(config(vision_config=VISION, text_config=text, projection_dim=12)), dtype
    )


def pixels(batch=2, side=32, dtype=torch.float32):
    generator = torch.Generator().manual_seed(2)
    coarse = torch.randn(batch, 3, 3, 3, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=(side, side))
    return (smooth + 0.3 * torch.randn(batch, 3, side, side, generator=generator)).to(dtype)


LENGTHS = (12, 8, 5)


def words(seed=0):
    """Three texts of 12, 8 and 5 tokens, padded on the right."""
    ids = torch.randint(5, 50, (3, 12), generator=torch.Generator().manual_seed(seed))
    mask = torch.arange(12) < torch.tensor(LENGTHS)[:, None]
    return {"input_ids": ids.masked_fill(~mask, 0), "attention_mask": mask.long()}


def build(name="ViT", dtype=torch.float32, **overrides):
    """(model, inputs) in eval mode, from the tables."""
    if name.endswith(" both"):
        text = {key: value[:2] for key, value in words().items()}
        text["input_ids"][:, 4] = 49
        return composite({"CLIP": "CLIP", "SigLIP": "Siglip"}[name.split()[0]], dtype), {
            **text, "pixel_values": pixels(dtype=dtype)
        }
    if name in TEXT_MODELS:
        kind, config, arguments = TEXT_MODELS[name]
        labels = {"num_labels": 2} if "QuestionAnswering" in name else {}
        made = getattr(transformers, config)(**{**arguments, **labels, **overrides})
        return finish(getattr(transformers, kind)(made), dtype), words()
    kind, config, arguments = VISION_MODELS[name]
    own = {"add_pooling_layer": False} if name == "ViT without pooler" else {}
    model = getattr(transformers, kind)(getattr(transformers, config)(**{**arguments, **overrides}), **own)
    noise = {"noise": torch.rand(2, 16, generator=torch.Generator().manual_seed(4))} if name == "MAE" else {}
    return finish(model, dtype), {"pixel_values": pixels(dtype=dtype), **noise}


def run(model, inputs, **options):
    with torch.no_grad():
        return model(**inputs, **options)


def leaves(value):
    """Every tensor in an output, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    values = value.values() if isinstance(value, dict) else value
    return [leaf for entry in values if entry is not None for leaf in leaves(entry)]


INSIDE = ("vit", "deit", "beit", "vision_model", "dinov2", "dinov2_with_registers", *map(str.lower, ENCODERS))


def tower_of(model):
    inside = [getattr(model, name) for name in INSIDE if hasattr(model, name)]
    return inside[0] if inside else model


def layers_of(model):
    return next(part for name, part in tower_of(model).named_modules() if name.split(".")[-1] in ("layers", "layer"))


# ----------------------------------------------------------------------------------------------------- the contract
@pytest.mark.parametrize("name", EVERY)
def test_keep_one_is_the_unpatched_model(name):
    """keep=1.0 gives every output of the unpatched model to 1e-6, hidden states and padded places included."""
    model, inputs = build(name)
    expected = run(model, inputs, output_hidden_states=True)
    pc.apply(model, keep=1.0)
    got = run(model, inputs, output_hidden_states=True)
    assert type(got) is type(expected) and list(got) == list(expected)
    for a, b in zip(leaves(got), leaves(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", ["ViT", "CLIP", "SigLIP", "BLIP", "BEiT", "DINOv2", "DINOv2 gated", "DINOv2 registers",
                                  "DINOv3", "BERT"])
def test_the_merging_path_without_merges_is_the_unpatched_model(name, train, monkeypatch):
    """A method whose plan is the identity runs the whole merging path: same numbers, same random draws."""
    from pitome_core.mergers import registry

    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))

    def nothing(metric, remove, *, mask=None):
        return pc.MergePlan.identity(*metric.shape[:2], valid=mask)

    pc.register_method("nothing", nothing, paper="none", summary="no merge")
    dropout = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2}
    model, inputs = build(name, **({"attention_dropout": 0.2} if "LIP" in name else dropout))
    if name == "BERT":
        inputs["attention_mask"][:] = 1  # a slot for every token: plans give padding none
    model.train(train)
    torch.manual_seed(5)
    expected = run(model, inputs)
    pc.apply(model, "nothing", keep=0.7)
    torch.manual_seed(5)
    for a, b in zip(leaves(run(model, inputs)), leaves(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", EVERY)
def test_outputs_keep_type_and_shape(name):
    """Merged, restored: every output has the type, the keys and the shape that it had; the numbers differ."""
    model, inputs = build(name)
    whole = run(model, inputs, output_hidden_states=True)
    pc.apply(model, keep=0.6)
    got = run(model, inputs, output_hidden_states=True)
    assert type(got) is type(whole) and list(got) == list(whole)
    assert [leaf.shape for leaf in leaves(got)] == [leaf.shape for leaf in leaves(whole)]
    assert all(torch.isfinite(leaf).all() for leaf in leaves(got))
    assert not torch.allclose(leaves(got)[0], leaves(whole)[0], rtol=1e-4, atol=1e-4), "it did merge"
    bare = run(model, inputs, return_dict=False)
    assert type(bare) is tuple
    for a, b in zip(leaves(bare), leaves(run(model, inputs)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", [*VISION_MODELS, "CLIP both"])
def test_tokens_are_as_planned(name):
    """Tokens per layer follow the keep ratio, sizes sum to the patches, the prefix stands in front, untouched."""
    model, inputs = build(name)
    tower = tower_of(model)
    lengths = []
    hook = layers_of(model)[2].register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[1]))
    pc.apply(model, keep=0.7)
    with pc.record(model) as trace:
        run(model, inputs)
    hook.remove()
    known = {"SiglipVisionModel": 0, "DeiTModel": 2, "Dinov2WithRegistersModel": 5,
             "DINOv3ViTModel": 1 + getattr(tower.config, "num_register_tokens", 0)}
    prefix = known.get(type(tower).__name__, 1)
    left = [16 - sum(oracle.keep_removals(16, 0.7, 3)[: layer + 1]) for layer in range(3)]
    assert [layer.plan.num_tokens for layer in trace.layers] == left and lengths == [prefix + left[1]]
    assert all((layer.size.sum(1) == 16).all() for layer in trace.layers)
    assert trace.assignment.shape == (2, 16)


@pytest.mark.parametrize("name", [name for name in EVERY
                                  if name not in (*TOWERS, *ENCODERS, "ViT without pooler")])
def test_patching_a_model_is_patching_its_tower(name):
    """A classifier, a projection, a composite or a head gives what it gives around a patched tower."""
    model, inputs = build(name)
    twin = copy.deepcopy(model)
    pc.apply(model, keep=0.6)
    pc.apply(tower_of(twin), keep=0.6)
    for a, b in zip(leaves(run(model, inputs)), leaves(run(twin, inputs)), strict=True):
        assert torch.equal(a, b)


# ------------------------------------------------------------------------------------------------ the slow reference
def slow_attention(q, k, v, heads, size, bias=0.0):
    """(T, C) each, all heads, proportional, with a bias of the scores: (T, C)."""
    return reference.softmax_heads(*(part.view(len(part), heads, -1) for part in (q, k, v)), size.log() + bias)


def relative_bias(tables, place, side=4):
    """BEiT's bias of the tokens that stand at `place`, by the distance of every pair: (H, T, T)."""
    def row(query, key):  # -1 is the class token; the last rows are class to patch, patch to class, class to class
        if query < 0 or key < 0:
            return -1 if query == key else -3 if query < 0 else -2
        down, right = query // side - key // side, query % side - key % side
        return (down + side - 1) * (2 * side - 1) + right + side - 1

    return sum(torch.stack([torch.stack([table[row(i, j)] for j in (-1, *place)]) for i in (-1, *place)])
               for table in tables).permute(2, 0, 1)


def turned(x, heads, angles, prefix, place):
    """Queries or keys (T, C), patches turned by the angles of the places they stand at, pair by pair."""
    x = x.view(len(x), heads, -1).clone()
    for token, patch in enumerate(place):
        cos, sin = (table[patch] for table in angles)
        x[prefix + token] = reference.rotated(x[prefix + token].clone(), sin, cos, half=True)
    return x.flatten(1)


def vision_halves(layer):
    """The attention half and the MLP half of a layer, from the library's source: q, k, v; output; MLP."""
    kind = type(layer).__name__
    if hasattr(layer, "layernorm_before"):
        attn, norms = layer.attention, (layer.layernorm_before, layer.layernorm_after)
        first, second = getattr(layer, "lambda_1", 1.0), getattr(layer, "lambda_2", 1.0)
        return attn, norms, lambda y: first * attn.o_proj(y), lambda y: second * layer.mlp(y)
    if kind.startswith("Dinov2") or kind.startswith("DINOv3"):
        attn = layer.attention
        return (attn, (layer.norm1, layer.norm2), lambda y: layer.layer_scale1(attn.o_proj(y)),
                lambda y: layer.layer_scale2(layer.mlp(y)))
    attn = layer.self_attn
    out = attn.projection if kind.startswith("Blip") else attn.out_proj
    return attn, (layer.layer_norm1, layer.layer_norm2), out, layer.mlp


@torch.no_grad()
def slow_vision(model, image, keep):
    """One image through a tower by hand: states per layer (unmerged, before the last norm) and the roots."""
    x = model.embeddings(image[None])[0]
    if hasattr(model, "pre_layrnorm"):
        x = model.pre_layrnorm(x)
    prefix, place = len(x) - 16, list(range(16))
    size, total, states = torch.ones(len(x), dtype=x.dtype), list(range(16)), [x]
    removals, margins = oracle.keep_removals(16, keep, 3), oracle.margins(3)
    for layer, k, margin in zip(layers_of(model), removals, margins, strict=True):
        attn, norms, out, mlp = vision_halves(layer)
        y, bias = norms[0](x), 0.0
        query, keys, value = attn.qkv(y).chunk(3, dim=-1) if hasattr(attn, "qkv") else (
            attn.q_proj(y), attn.k_proj(y), attn.v_proj(y))
        turned_query, turned_keys = query, keys
        if hasattr(model, "rope_embeddings"):
            angles = model.rope_embeddings(image[None])
            turned_query, turned_keys = (turned(part, 2, angles, prefix, place) for part in (query, keys))
        if hasattr(model, "shared_position_bias"):
            parts = (layer.relative_position_bias, model.shared_position_bias)
            bias = relative_bias([part.relative_position_bias_table for part in parts], place)
        x = x + out(slow_attention(turned_query, turned_keys, value, 2, size, bias))
        metric = keys.view(len(x), 2, 16).mean(1)[prefix:]
        roots = oracle.pitome_roots(metric, k, margin)
        merged, sizes = oracle.merge(x[prefix:], roots, size[prefix:])
        x = torch.cat([x[:prefix], torch.from_numpy(merged)])
        size = torch.cat([size[:prefix], torch.from_numpy(sizes)])
        place = [place[anchor] for anchor in oracle.anchors(roots)]
        total = oracle.compose(total, roots)
        x = x + mlp(norms[1](x))
        states.append(torch.cat([x[:prefix], torch.from_numpy(oracle.unmerge(x[prefix:], total))]))
    return states, total


@pytest.mark.parametrize("name", TOWERS)
def test_a_merged_tower_equals_the_slow_loop(name):
    """Hidden states, last state, pooled output and plan equal the loop written out by hand, one image at a time."""
    model, inputs = build(name, torch.float64)
    reference = [slow_vision(model, image, 0.6) for image in inputs["pixel_values"]]
    norm = {"CLIP": None, "SigLIP": "post_layernorm", "BLIP": "post_layernorm", "DINOv3": "norm"}.get(name, "layernorm")
    pc.apply(model, keep=0.6)
    with pc.record(model) as trace:
        got = run(model, inputs, output_hidden_states=True)
    assert trace.assignment.tolist() == [oracle.assignment(total) for _, total in reference]
    for item, (states, _) in enumerate(reference):
        for a, b in zip(got.hidden_states, states, strict=True):
            torch.testing.assert_close(a[item], b, rtol=1e-6, atol=1e-7)
        last = states[-1] if norm is None else getattr(model, norm)(states[-1])
        torch.testing.assert_close(got.last_hidden_state[item], last.detach(), rtol=1e-6, atol=1e-7)
        pooled = {
            "ViT": lambda x: model.pooler(x[None])[0],
            "DeiT": lambda x: model.pooler(x[None])[0],
            "CLIP": lambda x: model.post_layernorm(x[0]),
            "BLIP": lambda x: model.post_layernorm(x[0]),
            "BEiT": lambda x: model.pooler.layernorm(x[1:].mean(0)),
            "SigLIP": lambda x: model.head(x[None])[0],
        }.get(name, lambda x: x[0])(last)
        torch.testing.assert_close(got.pooler_output[item], pooled.detach(), rtol=1e-6, atol=1e-7)


def text_halves(layer):
    """The attention half and the MLP half of a layer, from the library's source: q, k, v; residual and norm; MLP."""
    if hasattr(layer, "ffn"):
        attn, ffn = layer.attention, layer.ffn
        return ((attn.q_lin, attn.k_lin, attn.v_lin), lambda y, x: layer.sa_layer_norm(attn.out_lin(y) + x),
                lambda x: layer.output_layer_norm(ffn.lin2(nn.functional.gelu(ffn.lin1(x))) + x))
    attn, out = layer.attention.self, layer.attention.output
    return ((attn.query, attn.key, attn.value), lambda y, x: out.LayerNorm(out.dense(y) + x),
            lambda x: layer.output.LayerNorm(layer.output.dense(nn.functional.gelu(layer.intermediate.dense(x))) + x))


@torch.no_grad()
def slow_text(model, ids, keep, protected):
    """One text without padding through an encoder by hand: unmerged states per layer, roots over all its tokens."""
    x = model.embeddings(input_ids=ids[None])[0]
    size, total, states = torch.ones(len(x), dtype=x.dtype), list(range(len(ids))), [x]
    protected = list(protected)
    for layer, margin in zip(layers_of(model), oracle.margins(3), strict=True):
        (query, key, value), attended, fed = text_halves(layer)
        keys = key(x)
        x = attended(slow_attention(query(x), keys, value(x), 2, size), x)
        free = [i for i, is_protected in enumerate(protected) if not is_protected]
        metric = keys.view(len(x), 2, 16).mean(1)[free]
        roots = list(range(len(x)))
        for i, root in enumerate(oracle.pitome_roots(metric, oracle.tokens_removed(len(free), keep), margin)):
            roots[free[i]] = free[root]
        merged, sizes = oracle.merge(x, roots, size)
        x, size = torch.from_numpy(merged), torch.from_numpy(sizes)
        protected = [protected[anchor] for anchor in oracle.anchors(roots)]
        total = oracle.compose(total, roots)
        x = fed(x)
        states.append(torch.from_numpy(oracle.unmerge(x, total)))
    return states, total


@pytest.mark.parametrize("name", ENCODERS)
def test_a_merged_encoder_equals_the_slow_loop(name):
    """A padded batch equals the loop by hand on every text alone: states, plan, pooled output; padding is zero."""
    model, inputs = build(name, torch.float64)
    reference = copy.deepcopy(model)
    pc.apply(model, keep=0.6)
    with pc.record(model) as trace:
        got = run(model, inputs, output_hidden_states=True)
    for item, length in enumerate(LENGTHS):
        protected = [i in (0, length - 1) for i in range(length)]
        states, total = slow_text(reference, inputs["input_ids"][item, :length], 0.6, protected)
        assert trace.assignment[item].tolist() == oracle.assignment(total) + [-1] * (12 - length)
        for a, b in zip(got.hidden_states, states, strict=True):
            torch.testing.assert_close(a[item, :length], b, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(got.last_hidden_state[item, :length], states[-1], rtol=1e-6, atol=1e-7)
        assert got.last_hidden_state[item, length:].eq(0).all()
        if name != "DistilBERT":
            torch.testing.assert_close(got.pooler_output[item], model.pooler(states[-1][None])[0].detach())
        sizes = trace.layers[-1].size[item]
        assert sizes.sum() == length and (sizes > 0).sum() == len(set(oracle.assignment(total)))


# --------------------------------------------------------------------------------------------------- what comes back
@pytest.mark.parametrize("name", ["ViT", "SigLIP", "BERT"])
@pytest.mark.parametrize("chosen", [1, -1, -2, [0, 2], [-4, 7], True, 0])
def test_hidden_states_are_selected_as_before(name, chosen):
    """`output_hidden_states` takes one index or several, from the front or the back, like the unpatched model."""
    model, inputs = build(name)
    whole = run(model, inputs, output_hidden_states=chosen).hidden_states
    pc.apply(model, keep=0.6)
    got, every = (run(model, inputs, output_hidden_states=value).hidden_states for value in (chosen, True))
    assert (got is None) == (whole is None)
    for a, b, full in zip(got or (), whole or (), every, strict=whole is not None):
        assert (a is None) == (b is None) and (a is None or torch.equal(a, full))
    model.config.output_hidden_states = model.config.tie_last_hidden_states = True
    out = run(model, inputs)
    assert len(out.hidden_states) == 4 and torch.equal(out.hidden_states[-1], out.last_hidden_state)


@pytest.mark.parametrize("name", TOWERS)
def test_restore_false_hands_on_merged_tokens(name):
    """restore=False: prefix and merged tokens; copied back to their places they are the restored output."""
    model, inputs = build(name)
    restored = run(pc.apply(model, keep=0.6), inputs, output_hidden_states=True)
    pc.apply(model, keep=0.6, restore=False)
    with pc.record(model) as trace:
        merged = run(model, inputs, output_hidden_states=True)
    prefix = restored.last_hidden_state.shape[1] - 16
    for layer in range(1, 4):
        state, plan = merged.hidden_states[layer], trace.last.plan(layer).with_prefix(prefix)
        assert state.shape[1] == plan.num_tokens
        torch.testing.assert_close(plan.unmerge(state), restored.hidden_states[layer], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(plan.unmerge(merged.last_hidden_state), restored.last_hidden_state)
    torch.testing.assert_close(merged.pooler_output, restored.pooler_output, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_pooling_counts_survivors(dtype):
    """SigLIP's pooling after pruning sees the survivors only, each as often as its size; also in half precision."""
    model, inputs = build("SigLIP", dtype)
    pc.apply(model, "random_prune", keep=0.6)
    with pc.record(model) as trace:
        got = run(model, inputs)
    assert got.last_hidden_state[trace.assignment < 0].eq(0).all()
    for item in range(2):
        survivors = got.last_hidden_state[item][trace.assignment[item] >= 0]
        tolerance = 0.03 if dtype is torch.bfloat16 else 1e-5
        expected = model.head(survivors[None])[0].detach()
        torch.testing.assert_close(got.pooler_output[item], expected, rtol=tolerance, atol=tolerance)


def test_wrong_layouts_of_a_call_are_refused():
    """What a merged model could only answer wrongly raises, and says why."""
    model, inputs = build("ViT")
    pc.apply(model, keep=0.7)
    with pytest.raises(ValueError, match="output_attentions"):
        model(**inputs, output_attentions=True)
    with pytest.raises(ValueError, match="attention_mask"):
        model(**inputs, attention_mask=torch.ones(2, 17))
    with pytest.raises(ValueError, match="is_causal"):
        model(**inputs, is_causal=True)
    with pytest.raises(TypeError, match="once"):
        model(inputs["pixel_values"], pixel_values=inputs["pixel_values"])
    assert torch.equal(run(model, inputs)[0], model(inputs["pixel_values"]).last_hidden_state.detach())
    bert, text = build("BERT")
    pc.apply(bert, keep=0.7)
    for arguments, words_of_error in (
        (dict(output_attentions=True), "output_attentions"),
        (dict(encoder_hidden_states=torch.ones(3, 4, 32)), "cross-attention"),
        (dict(attention_mask=torch.ones(3, 1, 12, 12)), "mask of pairs"),
        (dict(attention_mask=torch.zeros(3, 12)), "no real token"),
        (dict(is_causal=True), "is_causal"),
    ):
        with pytest.raises(ValueError, match=words_of_error):
            bert(**{**text, **arguments})


def test_other_image_sizes():
    """A DINOv2 takes any size, a CLIP with interpolated positions; each has its own number of tokens."""
    for name, options in (("DINOv2", {}), ("CLIP", {"interpolate_pos_encoding": True})):
        model, _ = build(name)
        pc.apply(model, keep=0.7)
        with pc.record(model) as trace:
            out = run(model, {"pixel_values": pixels(1, 48)}, **options)
        assert out.last_hidden_state.shape == (1, 37, 32) and trace.assignment.shape == (1, 36)


@pytest.mark.parametrize("method", ["grid_pool", "mctf", "diffrate", "topk_attention", "tofu", "dct"])
def test_methods_get_what_they_need(method):
    """Attention maps, class attention, positions, transforms: every kind of method runs in a vision tower."""
    model, inputs = build("DINOv2 registers")
    keep = [1.0, 0.25, 1.0] if method == "grid_pool" else 0.7
    pc.apply(model, method, keep=keep)
    assert run(model, inputs).last_hidden_state.shape == (2, 21, 32)


def test_class_attention_is_the_class_tokens():
    """Pruning by class attention drops the patches that the class token attends to least, the mean over heads."""
    model, inputs = build("ViT")
    attn, k = model.layers[0].attention, 6
    with torch.no_grad():
        x = model.layers[0].layernorm_before(model.embeddings(inputs["pixel_values"]))
        q, keys = (linear(x).view(2, 17, 2, 16).transpose(1, 2) for linear in (attn.q_proj, attn.k_proj))
        class_attention = (q[:, :, :1] @ keys.transpose(-2, -1) * attn.scaling).softmax(-1).mean(1)[:, 0, 1:]
    pc.apply(model, "topk_attention", keep=[10 / 16, 1.0, 1.0])
    with pc.record(model) as trace:
        run(model, inputs)
    for item in range(2):
        dropped = (trace.assignment[item] < 0).nonzero().flatten().tolist()
        assert set(dropped) == set(class_attention[item].argsort()[:k].tolist())


def test_a_vision_tower_compiles_into_one_graph():
    """Nothing in the merge branches on data: one graph, and the same numbers."""
    model, inputs = build("ViT")
    expected = run(pc.apply(model, keep=0.6), inputs)[0]
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(run(compiled, inputs)[0], expected, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------- backbones, masked autoencoder, BLIP
def test_backbones_give_maps_of_all_patches():
    """Maps have the shape they had; dropped patches are zeros behind the norm; merged tokens are refused as maps."""
    model, inputs = build("DINOv2 backbone")
    whole = run(model, inputs)
    plain = build("DINOv2")[0]
    plain.load_state_dict(model.state_dict(), strict=False)
    for patched in (model, plain):
        pc.apply(patched, keep=0.6)
    got, states = run(model, inputs), run(plain, inputs, output_hidden_states=True).hidden_states
    assert list(got) == list(whole) == ["feature_maps"] and [m.shape for m in got[0]] == [(2, 32, 4, 4)] * 2
    for stage, feature_map in zip((1, 3), got.feature_maps, strict=True):
        expected = plain.layernorm(states[stage])[:, 1:].detach()
        torch.testing.assert_close(feature_map.flatten(2).transpose(1, 2), expected)
    assert len(run(model, inputs, output_hidden_states=True).hidden_states) == 4
    assert [state is None for state in run(model, inputs, output_hidden_states=[1, -1])["hidden_states"]] == [
        True, False, True, False]
    pc.apply(model, "random_prune", keep=0.6)
    with pc.record(model) as trace:
        last = run(model, inputs).feature_maps[-1].flatten(2).transpose(1, 2)
    assert last[trace.assignment < 0].eq(0).all() and last[trace.assignment >= 0].ne(0).any()
    with pytest.raises(pc.UnsupportedModelError, match="no grid"):
        pc.apply(model, keep=0.6, restore=False)
    assert type(pc.apply(transformers.AutoBackbone.from_config(model.config), keep=0.9)) is not None


def test_a_masked_autoencoder_merges_without_masking():
    """A mask ratio, a change of it later, places of shuffled patches, and the decoder are refused with the route."""
    model, inputs = build("MAE", mask_ratio=0.75)
    route = "mask_ratio = 0.0.*ViTForImageClassification.*vit_huge_patch14_224.mae"
    with pytest.raises(pc.UnsupportedModelError, match=route):
        pc.apply(model, keep=0.7)
    model.config.mask_ratio = 0.0
    pc.apply(model, keep=0.7)
    assert run(model, inputs).ids_restore.shape == (2, 16)
    model.config.mask_ratio = 0.5
    with pytest.raises(ValueError, match=route):
        run(model, inputs)
    with pytest.raises(pc.UnsupportedModelError, match="random order"):
        pc.apply(build("MAE")[0], "grid_pool", keep=[1.0, 0.25, 1.0])
    with pytest.raises(pc.UnsupportedModelError, match="model.vit.*vit_huge_patch14_224.mae"):
        pc.apply(transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**VISION)), keep=0.7)


def blip(kind):
    config = transformers.BlipConfig(vision_config=VISION, text_config=BLIP_TEXT, image_text_hidden_size=12)
    text = {key: value[:2, :6] for key, value in words().items()}
    return finish(getattr(transformers, f"BlipFor{kind}")(config)), {"pixel_values": pixels(), **text}


@pytest.mark.parametrize("kind", ["ImageTextRetrieval", "QuestionAnswering", "ConditionalGeneration"])
def test_blip_reads_the_merged_tower(kind):
    """keep=1 is the unpatched model; text attends to all patches, or to merged tokens where asked; answers come out."""
    model, inputs = blip(kind)
    labels = {"labels": inputs["input_ids"]} if kind == "QuestionAnswering" else {}
    whole = run(model, {**inputs, **labels}, output_hidden_states=True)
    merged = {}
    for keep, restore in ((1.0, True), (0.6, True), (0.6, False)):
        pc.apply(model, keep=keep, restore=restore)
        merged[keep, restore] = run(model, {**inputs, **labels}, output_hidden_states=True)
    for a, b in zip(leaves(merged[1.0, True]), leaves(whole), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    assert [leaf.shape for leaf in leaves(merged[0.6, True])] == [leaf.shape for leaf in leaves(whole)]
    assert merged[0.6, False].last_hidden_state.shape == (2, 1 + 16 - sum(oracle.keep_removals(16, 0.6, 3)), 32)
    if kind == "ImageTextRetrieval":
        scores = run(pc.apply(model, keep=0.6), inputs, use_itm_head=False).itm_score
        assert scores.shape == (2, 2)
    elif kind == "QuestionAnswering":
        assert model.generate(**inputs, max_new_tokens=3, min_new_tokens=3).shape[0] == 2
    with pytest.raises(pc.UnsupportedModelError, match="zeros for dropped ones.*restore=False"):
        pc.apply(model, "random_prune", keep=0.6)
    assert torch.isfinite(run(pc.apply(model, "random_prune", keep=0.6, restore=False), {**inputs, **labels})[0]).all()
    with pytest.raises(ValueError, match="attends to the image"):
        pc.apply(model, keep=0.6, towers="text")
    pc.remove(model)
    assert all(torch.equal(a, b) for a, b in zip(
        leaves(run(model, {**inputs, **labels}, output_hidden_states=True)), leaves(whole), strict=True))


def test_a_tower_that_is_put_in_later_is_noticed_when_answers_are_generated():
    model, inputs = blip("QuestionAnswering")
    pc.apply(model, keep=0.6)
    model.vision_model = blip("QuestionAnswering")[0].vision_model
    with pytest.raises(RuntimeError, match="put in after pc.apply"):
        model.generate(**inputs, max_new_tokens=2)


@pytest.mark.parametrize("name", ["BEiT", "DINOv3"])
def test_transforms_leave_no_place_for_positions(name):
    with pytest.raises(pc.UnsupportedModelError, match="place"):
        pc.apply(build(name)[0], "dct", keep=0.7)


# ------------------------------------------------------------------------------------------- SigLIP 2 of any shape
SHAPES = ((4, 4), (2, 6), (3, 3))


def any_shape(kind="VisionModel", dtype=torch.float32):
    """Three pictures of 16, 12 and 9 patches, padded to 16."""
    config = transformers.Siglip2VisionConfig(**{**VISION, "num_patches": 16})
    if kind == "Model":
        config = transformers.Siglip2Config(vision_config=config.to_dict(), text_config={**TEXT, "eos_token_id": 49})
    elif kind == "ForImageClassification":
        config = transformers.Siglip2Config(vision_config=config.to_dict(), text_config=TEXT, num_labels=5)
    model = finish(getattr(transformers, f"Siglip2{kind}")(config), dtype)
    patches = torch.randn(3, 16, 192, generator=torch.Generator().manual_seed(6), dtype=dtype)
    mask = torch.arange(16) < torch.tensor([rows * columns for rows, columns in SHAPES])[:, None]
    inputs = {"pixel_values": patches * mask[..., None], "pixel_attention_mask": mask.long(),
              "spatial_shapes": torch.tensor(SHAPES)}
    return model, {**inputs, **words()} if kind == "Model" else inputs


@pytest.mark.parametrize("kind", ["VisionModel", "Model", "ForImageClassification"])
def test_pictures_of_any_shape(kind):
    """keep=1 is the unpatched model; merged, outputs keep type and shape, copies agree, remove restores every bit."""
    model, inputs = any_shape(kind)
    before, whole = snapshot(model), run(model, inputs, output_hidden_states=True)
    before = snapshot(model)
    got = run(pc.apply(model, keep=1.0), inputs, output_hidden_states=True)
    for a, b in zip(leaves(got), leaves(whole), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    merged = run(pc.apply(model, keep=0.6), inputs, output_hidden_states=True)
    assert type(merged) is type(whole) and [a.shape for a in leaves(merged)] == [b.shape for b in leaves(whole)]
    assert any(not torch.allclose(a, b, atol=1e-3) for a, b in zip(leaves(merged), leaves(whole), strict=True))
    twin = copy.deepcopy(model)
    assert all(torch.equal(a, b) for a, b in zip(leaves(run(twin, inputs)), leaves(run(model, inputs)), strict=True))
    leaves(model(**inputs))[0].square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    pc.remove(model)
    for a, b in zip(leaves(run(model, inputs, output_hidden_states=True)), leaves(whole), strict=True):
        assert torch.equal(a, b)
    assert {name: held[0] for name, held in snapshot(model).items()} == {n: held[0] for n, held in before.items()}


@pytest.mark.parametrize("method", ["pitome", "tome", "random_prune"])
def test_pictures_of_any_shape_are_merged_alone(method):
    """Every picture gives what it gives alone, loses its share of its own patches, and padding joins nothing."""
    model, inputs = any_shape()
    pc.apply(model, method, keep=0.7)
    with pc.record(model) as trace:
        got = run(model, inputs, output_hidden_states=True)
    for item, (rows, columns) in enumerate(SHAPES):
        number = rows * columns
        one = {key: value[item : item + 1] for key, value in inputs.items()}
        one = {**one, "pixel_values": one["pixel_values"][:, :number],
               "pixel_attention_mask": one["pixel_attention_mask"][:, :number]}
        alone = run(model, one, output_hidden_states=True)
        for a, b in zip(got.hidden_states, alone.hidden_states, strict=True):
            torch.testing.assert_close(a[item, :number], b[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(got.pooler_output[item], alone.pooler_output[0], rtol=1e-4, atol=1e-5)
        left = number - sum(oracle.keep_removals(number, 0.7, 3))
        assert (trace.layers[-1].size[item] > 0).sum() == left
        assert trace.assignment[item, number:].eq(-1).all() and got.last_hidden_state[item, number:].eq(0).all()


def test_pictures_of_any_shape_handed_on_merged():
    """restore=False gives merged tokens, pooled by their sizes; what does not fit is refused."""
    model, inputs = any_shape()
    restored = run(pc.apply(model, keep=0.6), inputs)
    merged = run(pc.apply(model, keep=0.6, restore=False), inputs)
    assert merged.last_hidden_state.shape[1] == 16 - sum(oracle.keep_removals(16, 0.6, 3))
    torch.testing.assert_close(merged.pooler_output, restored.pooler_output, rtol=1e-4, atol=1e-5)
    assert pc.flops(model).tokens[0] == 16 and pc.flops(model, (9,)).tokens[0] == 9
    for arguments in (dict(keep=pc.schedule(model, keep=0.9)), dict(method="grid_pool", keep=0.9)):
        with pytest.raises(ValueError, match="ratio|unequal length"):
            pc.apply(model, **arguments)
    with pytest.raises(pc.UnsupportedModelError, match="mean"):
        pc.apply(any_shape("ForImageClassification")[0], keep=0.9, restore=False)
    with pytest.raises(ValueError, match="padding"):
        pc.apply(any_shape("Model")[0], keep=0.9, towers="text")
    with pytest.raises(ValueError, match="one entry per token"):
        model(**{**inputs, "pixel_attention_mask": torch.ones(3, 1, 16, 16)})


# --------------------------------------------------------------------------------------------------------- precision
@pytest.mark.parametrize("name", ["ViT", "SigLIP", "BEiT", "DINOv2 registers", "DINOv3", *ENCODERS])
def test_sdpa_and_eager_agree(name):
    """Both attention implementations are served, and give the same numbers; others are refused at `apply`."""
    model, inputs = build(name)
    fused = run(pc.apply(model, keep=0.6), inputs)
    model.set_attn_implementation("eager")
    for a, b in zip(leaves(run(model, inputs)), leaves(fused), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    pc.remove(model)
    for module in model.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(pc.UnsupportedModelError, match="flash_attention_2.*sdpa"):
        pc.apply(model, keep=0.6)


@pytest.mark.parametrize("name", ["ViT", "CLIP", "SigLIP", "BLIP", "BEiT", "DINOv2", "DINOv3", "BERT"])
@pytest.mark.parametrize("restore", [True, False])
def test_autocast(name, restore):
    """Under bf16 autocast plans stay in float32, outputs are finite and near."""
    model, inputs = build(name)
    pc.apply(model, keep=0.8, restore=restore)
    with torch.autocast("cpu", torch.bfloat16), pc.record(model) as trace:
        out = run(model, inputs)
    assert all(layer.size.dtype == layer.energy.dtype == torch.float32 for layer in trace.layers)
    assert all(torch.isfinite(leaf).all() for leaf in leaves(out))
    assert run(model.to(torch.bfloat16), inputs).last_hidden_state.dtype == torch.bfloat16


# ---------------------------------------------------------------------------------------------------------- training
@pytest.mark.parametrize("name", ["ViT", "CLIP", "SigLIP", "BLIP", "BEiT classifier", "DINOv2 registers", "DINOv3",
                                  *ENCODERS, "MaskedLM"])
def test_gradients_and_checkpointing(name):
    """Parameters that learn unpatched learn patched; recomputing layers in the backward pass changes nothing."""
    model, inputs = build(name, **({"pos_embed_rescale": None} if name == "DINOv3" else {}))
    leaves(model(**inputs))[0].square().sum().backward()
    learning = {key for key, parameter in model.named_parameters() if parameter.grad is not None}
    pc.apply(model, keep=0.6).train()
    for module in model.modules():  # no random numbers: runs are compared
        if type(module).__name__.endswith("DropPath"):
            module.eval()
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for dropout in ("dropout", "attention_dropout"):
            if isinstance(getattr(module, dropout, None), float):
                setattr(module, dropout, 0.0)
    results, calls = [], []
    layer = layers_of(model)[1]
    mlp = next(getattr(layer, name) for name in ("intermediate", "ffn", "mlp") if hasattr(layer, name))
    mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    for reentrant in (None, False, True):
        if reentrant is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)
                model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.zero_grad(set_to_none=True)
        calls.clear()
        out = leaves(model(**inputs))[0]
        out.square().sum().backward()
        assert len(calls) == 1 + (reentrant is not None), "checkpointing runs the layer again"
        results.append((out.detach(), {k: p.grad for k, p in model.named_parameters() if p.grad is not None}))
    assert set(results[0][1]) == learning
    assert all(torch.isfinite(gradient).all() for gradient in results[0][1].values())
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(results[2], results[0])


# ------------------------------------------------------------------------------------------------------------- state
def snapshot(model):
    return {
        name: (type(part), {k: tuple((n, id(v)) for n, v in value.items()) if isinstance(value, dict) else id(value)
                            for k, value in vars(part).items()})
        for name, part in model.named_modules()
    }


@pytest.mark.parametrize("name", [*TOWERS, "CLIP both", *ENCODERS, "MaskedLM"])
def test_remove_restores_bit_for_bit(name):
    """After remove() the instance holds what it held, no class was touched, and outputs are equal to the bit."""
    model, inputs = build(name)
    classes = {cls: dict(vars(cls)) for cls in {type(part) for part in model.modules()}}
    keys, before, expected = list(model.state_dict()), snapshot(model), run(model, inputs)
    assert pc.apply(model, keep=0.6) is model and list(model.state_dict()) == keys
    run(model, inputs)
    pc.remove(model)
    assert snapshot(model) == before
    assert all(torch.equal(a, b) for a, b in zip(leaves(run(model, inputs)), leaves(expected), strict=True))
    assert all(dict(vars(cls)) == entries for cls, entries in classes.items())


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
                         ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("name", ["DINOv2", "DINOv3", "BEiT", "CLIP both", *ENCODERS])
def test_copies_are_independent(name, duplicate):
    """A copy of a patched model merges alike with its own weights; removing one leaves the other patched."""
    model, inputs = build(name)
    expected = run(pc.apply(model, keep=0.6), inputs)
    twin = duplicate(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    pc.remove(model)
    assert all(torch.equal(a, b) for a, b in zip(leaves(run(twin, inputs)), leaves(expected), strict=True))
    assert pc.remove(twin) is twin and "merging" not in repr(twin)


@pytest.mark.parametrize("name", ["ViT", "CLIP", "DINOv2", "DINOv3", "BEiT", "BLIP", *ENCODERS])
def test_hooks_exceptions_threads_and_nesting(name):
    """Hooks on layers fire once; an exception, a call inside a call and a second thread leave no trace."""
    model, inputs = build(name)
    pc.apply(model, keep=0.6)
    expected, calls = run(model, inputs)[0], []
    handles = [layer.register_forward_hook(lambda *_: calls.append(1)) for layer in layers_of(model)]
    run(model, inputs)
    assert len(calls) == 3
    for handle in handles:
        handle.remove()

    def explode(*_):
        raise RuntimeError("in the middle")

    handle = layers_of(model)[1].register_forward_pre_hook(explode)
    with pytest.raises(RuntimeError, match="in the middle"):
        run(model, inputs)
    handle.remove()
    assert torch.equal(run(model, inputs)[0], expected)

    flipped, inner = {key: value.flip(0) for key, value in inputs.items()}, []

    def again(*_):
        handle.remove()
        inner.append(run(model, flipped)[0])

    handle = layers_of(model)[1].register_forward_pre_hook(again)
    torch.testing.assert_close(run(model, inputs)[0], expected)
    torch.testing.assert_close(inner[0].flip(0), expected, rtol=1e-5, atol=1e-6)

    both, barrier = (inputs, {key: value[:1] for key, value in inputs.items()}), threading.Barrier(2)
    alone = [run(model, entry)[0] for entry in both]

    def work(index):
        barrier.wait()
        return [run(model, both[index])[0] for _ in range(5)]

    with ThreadPoolExecutor(2) as pool:
        for index, outputs in enumerate(pool.map(work, range(2))):
            for out in outputs:
                torch.testing.assert_close(out, alone[index], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["ViT", "BERT"])
def test_a_recorder_around_the_model_sees_no_merged_tokens(name):
    """transformers records hidden states by hooks on layers: a recorder of a model around ours stays empty."""
    model, inputs = build(name)
    run(model, inputs, output_hidden_states=True)  # installs the hooks
    pc.apply(model, keep=0.6)
    collected = {"hidden_states": []}
    token = output_capturing._active_collector.set(collected)
    try:
        run(model, inputs)
        assert collected == {"hidden_states": []}
    finally:
        output_capturing._active_collector.reset(token)


@pytest.mark.parametrize("kind", [ViTLayer, BertLayer])
def test_a_layer_called_alone_refuses(kind):
    """It would leave out the merge without a word. `unmerged` is the library's own layer."""
    model, _ = build("ViT" if kind is ViTLayer else "BERT")
    x = torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(0))
    expected = run(layers_of(model)[0], {"hidden_states": x})
    layer = layers_of(pc.apply(model, keep=0.6))[0]
    with pytest.raises(RuntimeError, match="pc.unmerged"):
        layer(x)
    assert torch.equal(run(pc.unmerged(layer), {"hidden_states": x}), expected)


def test_one_patch_at_a_time():
    """A tower inside a patched model, or a model around a patched tower, is refused until that patch is out."""
    model, inputs = build("ViT classifier")
    pc.apply(model, keep=0.7)
    expected = run(model, inputs)[0]
    with pytest.raises(ValueError, match="merges already"):
        pc.apply(model.vit, keep=0.5)
    assert torch.equal(run(model, inputs)[0], expected)
    pc.apply(pc.remove(model).vit, keep=0.7)
    with pytest.raises(ValueError, match="merges already"):
        pc.apply(model, keep=0.5)
    pc.remove(model.vit)
    assert torch.equal(run(pc.apply(model, keep=0.7), inputs)[0], expected)


# -------------------------------------------------------------------------------------------------------- padding
VARIANTS = [
    dict(), dict(method="tome", proportional=True), dict(proportional=False), dict(metric="hidden"),
    dict(metric="concat-centred"), dict(metric="keys-centred", insertion="after"), dict(insertion="before"),
    dict(method="random_prune"), dict(method="diffrate"), dict(method="evit"), dict(method="crossget"),
    dict(method="tofu"), dict(method="random_merge"), dict(preset="released-bert"), dict(protect="cls"),
]


def texts(ids, places, width):
    """The same texts with their tokens at other places: `places[i]` for text i; positions count from 0 again."""
    batch = {key: torch.zeros(len(ids), width, dtype=torch.long)
             for key in ("input_ids", "attention_mask", "position_ids")}
    for row, (item, where) in enumerate(zip(ids, places, strict=True)):
        batch["input_ids"][row, where] = item
        batch["attention_mask"][row, where] = 1
        batch["position_ids"][row, where] = torch.arange(len(item))
    return batch


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(f"{k}={x}" for k, x in v.items()) or "paper")
def test_padding_and_neighbours_change_nothing(variant):
    """A text gives the same result alone, among others, and wherever its padding stands."""
    model, inputs = build("BERT")
    lengths = (*LENGTHS, 2)
    ids = [row[:length] for row, length in zip(inputs["input_ids"][[0, 1, 2, 0]], lengths, strict=True)]
    pc.apply(model, **{"method": "pitome", "keep": 0.6, **variant})
    alone = [run(model, {"input_ids": item[None]}, output_hidden_states=True) for item in ids]
    generator = torch.Generator().manual_seed(3)
    placements = {
        "right": [torch.arange(length) for length in lengths],
        "left": [torch.arange(12 - length, 12) for length in lengths],
        "anywhere": [torch.randperm(17, generator=generator)[:length].sort().values for length in lengths],
    }
    for name, places in placements.items():
        batch = texts(ids, places, 17 if name == "anywhere" else 12)
        for order in ([0, 1, 2, 3], [3, 2, 0], [1], [3]):
            chosen = {key: value[order] for key, value in batch.items()}
            with pc.record(model) as trace:
                got = run(model, chosen, output_hidden_states=True)
            for row, item in enumerate(order):
                for a, b in zip(got.hidden_states, alone[item].hidden_states, strict=True):
                    torch.testing.assert_close(a[row, places[item]], b[0], rtol=1e-4, atol=1e-5)
                padding = chosen["attention_mask"][row] == 0
                assert trace.assignment[row][padding].eq(-1).all()


@pytest.mark.parametrize("name", ["RoBERTa", "DistilBERT"])
def test_padding_changes_nothing_in_other_encoders(name):
    """The same for a RoBERTa, which takes positions from the places of its padding, and for a DistilBERT."""
    model, inputs = build(name)
    ids = [row[:length] for row, length in zip(inputs["input_ids"], LENGTHS, strict=True)]
    pc.apply(model, keep=0.6)
    alone = [run(model, {"input_ids": item[None]}, output_hidden_states=True) for item in ids]
    for places in ([torch.arange(length) for length in LENGTHS], [torch.arange(12 - n, 12) for n in LENGTHS]):
        batch = texts(ids, places, 12)
        if name == "RoBERTa":
            del batch["position_ids"]
        got = run(model, batch, output_hidden_states=True)
        for row, where in enumerate(places):
            for a, b in zip(got.hidden_states, alone[row].hidden_states, strict=True):
                torch.testing.assert_close(a[row, where], b[0], rtol=1e-4, atol=1e-5)


def test_separators_of_a_roberta_are_its_ends():
    """Every `</s>` (`eos_token_id`) keeps a slot of its own, those between two texts too."""
    model, inputs = build("RoBERTa")
    inputs["input_ids"][0, [5, 6, 11]] = model.config.eos_token_id
    pc.apply(model, keep=0.5)
    with pc.record(model) as trace:
        run(model, inputs)
    slots = trace.assignment[0]
    assert all((slots == slots[place]).sum() == 1 for place in (0, 5, 6, 11)) and slots.max() < 11
    shape = pc.flops(model)
    assert shape.tokens[0] == 19, "of 20 rows of positions, one is the padding's"


def test_padding_would_be_noticed():
    """The comparison can fail: the same batch without its mask gives other numbers."""
    model, inputs = build("BERT")
    pc.apply(model, keep=0.6)
    alone = run(model, {"input_ids": inputs["input_ids"][2:, :5]})[0]
    unmasked = run(model, {"input_ids": inputs["input_ids"]})[0]
    with pytest.raises(AssertionError):
        torch.testing.assert_close(unmasked[2:, :5], alone, rtol=1e-3, atol=1e-3)


def test_protected_tokens_never_merge():
    """[CLS], the last token, the end of the first segment and every [SEP] keep a slot of size 1 in every layer."""
    model, inputs = build("BERT")
    inputs["token_type_ids"] = (torch.arange(12) > 4).long().repeat(3, 1)
    inputs["input_ids"][0, 7] = 3
    model.config.sep_token_id = 3
    pc.apply(model, keep=0.5)
    with pc.record(model) as trace:
        run(model, inputs)
    expected = [{0, 4, 7, 11}, {0, 4, 7}, {0, 4}]
    for row, places in enumerate(expected):
        real = inputs["attention_mask"].bool()[row : row + 1]
        kinds = inputs["token_type_ids"][row : row + 1]
        protected = protected_tokens(real, inputs["input_ids"][row : row + 1], kinds, 3)
        assert set(protected[0].nonzero().flatten().tolist()) == places
        for layer in range(1, 4):
            slots = trace.last.plan(layer).assignment[row]
            assert all((slots == slots[place]).sum() == 1 for place in places)
            assert trace.layers[layer - 1].size[row][slots[list(places)]].eq(1).all()


def test_the_first_real_token_alone_is_protected_where_asked():
    """With `protect="cls"`, also behind padding; [SEP] and the ends of segments may merge, and some do."""
    model, inputs = build("BERT")
    inputs = {key: value.flip(1) for key, value in inputs.items()}  # padding on the left
    inputs["token_type_ids"] = (torch.arange(12) > 4).long().repeat(3, 1)
    real, first = inputs["attention_mask"].bool(), [12 - length for length in LENGTHS]
    protected = protected_tokens(real, inputs["input_ids"], inputs["token_type_ids"], 3, "cls")
    assert protected.nonzero().tolist() == [[row, place] for row, place in enumerate(first)]
    pc.apply(model, keep=0.5, protect="cls")
    with pc.record(model) as trace:
        run(model, inputs)
    assert "protect='cls'" in repr(model)
    for row, place in enumerate(first):
        slots = trace.assignment[row]
        assert (slots == slots[place]).sum() == 1 and trace.layers[-1].size[row][slots[place]] == 1
        left = LENGTHS[row] - 1
        for layer in trace.layers:
            left -= oracle.tokens_removed(left, 0.5)
            assert (layer.size[row] > 0).sum() == left + 1
    assert any((trace.assignment[row] == trace.assignment[row, 11]).sum() > 1 for row in range(3))


@pytest.mark.parametrize("name, protect, message", [
    ("BERT", "sep", "protect='sep' is not offered by transformers BERT: choose one of ends, cls"),
    ("ViT", "cls", "protect='cls' is not offered by .*: leave it out"),
])  # fmt: skip
def test_what_a_family_cannot_protect_is_refused(name, protect, message):
    model, _ = build(name)
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        pc.apply(model, protect=protect)
    assert snapshot(model) == before


def test_kept_tokens_get_slots_of_their_own():
    """`MergePlan.keeping` puts tokens that a plan left out in their raster places, with their own weight of 1."""
    plan = pc.MergePlan.from_roots(
        torch.tensor([[-1, 3, -1, 3, -1, 5]]), drops=True, weight=torch.tensor([[9.0, 3.0, 9.0, 1.0, 9.0, 2.0]])
    )
    kept = plan.keeping(torch.tensor([[True, False, True, False, False, False]]))
    assert kept.assignment.tolist() == [[0, 2, 1, 2, -1, 3]] and kept.anchor.tolist() == [[0, 2, 3, 5]]
    assert kept.weight.tolist() == [[1, 3, 1, 1, 9, 2]]
    merged, size = kept.merge(torch.arange(6.0).view(1, 6, 1))
    assert merged.flatten().tolist() == [0, 2, 1.5, 5] and size.tolist() == [[1, 1, 2, 1]]


def test_every_text_loses_its_own_share():
    """Each text loses floor(n - 0.7 n) of its own mergeable tokens per layer; short ones may lose none."""
    model, inputs = build("BERT")
    pc.apply(model, keep=0.7)
    with pc.record(model) as trace:
        run(model, inputs)
    for row, length in enumerate(LENGTHS):
        left = length - 2
        for layer in trace.layers:
            left -= oracle.tokens_removed(left, 0.7)
            assert (layer.size[row] > 0).sum() == left + 2 and layer.size[row].sum() == length
    with pc.record(model) as trace:
        run(model, {"input_ids": inputs["input_ids"][:, :3]})
    assert trace.assignment.tolist() == [[0, 1, 2]] * 3


def test_text_refuses_what_needs_one_length():
    """Schedules, methods without a mask, transforms and grids are refused for texts, with the reason."""
    model, _ = build("BERT")
    before = snapshot(model)
    for arguments, message in (
        (dict(keep=pc.schedule(model, keep=0.9)), "ratio"),
        (dict(method="dct"), "padding"),
        (dict(method="mctf"), "attention"),
        (dict(method="grid_pool"), "positions"),
        (dict(keep=0.3), "0.5"),
    ):
        with pytest.raises(ValueError, match=message):
            pc.apply(model, **arguments)
    assert snapshot(model) == before


def test_bert_restore_false():
    """restore=False gives merged tokens, [CLS] first; heads that read every token refuse it."""
    model, inputs = build("BERT")
    restored = run(pc.apply(model, keep=0.6), inputs)
    pc.apply(model, keep=0.6, restore=False)
    with pc.record(model) as trace:
        merged = run(model, inputs)
    assert merged[0].shape[1] == trace.layers[-1].plan.num_tokens < 12
    torch.testing.assert_close(trace.last.plan().unmerge(merged[0]), restored[0])
    torch.testing.assert_close(merged.pooler_output, restored.pooler_output)
    assert run(pc.apply(build("SequenceClassification")[0], keep=0.6, restore=False), inputs).logits.shape == (3, 5)
    for name in ("MaskedLM", "TokenClassification", "QuestionAnswering", "PreTraining"):
        with pytest.raises(pc.UnsupportedModelError, match="restore=False"):
            pc.apply(build(name)[0], keep=0.6, restore=False)


def test_heads_train_with_labels():
    """Losses of a masked language model and of a multiple choice are computed on restored tokens."""
    model, inputs = build("MaskedLM")
    pc.apply(model, keep=0.6)
    assert torch.isfinite(model(**inputs, labels=inputs["input_ids"]).loss)
    choice = finish(transformers.BertForMultipleChoice(transformers.BertConfig(**TEXT)))
    pc.apply(choice, keep=0.6)
    assert run(choice, {key: value[:, None] for key, value in inputs.items()}).logits.shape == (3, 1)


# ------------------------------------------------------------------------------------------------------------ counts
@pytest.mark.parametrize("keep", [None, 0.6])
@pytest.mark.parametrize("name", [*VISION_MODELS, "BERT", "SequenceClassification", "MaskedLM", "RoBERTa MaskedLM",
                                  "RoBERTa SequenceClassification", "DistilBERT MaskedLM",
                                  "DistilBERT SequenceClassification"])
def test_counts_equal_what_torch_counts(name, keep, monkeypatch):
    """`pc.flops` equals torch's counter on the unfused path; sums of a merge are no matrix products.

    Rows of zeros, with which a CPU fills small matrices up, are no part of the method and are left out.
    """
    monkeypatch.setattr("pitome_core.energy._ROWS", {torch.float32: (0, 1), torch.float64: (0, 1)})
    text = name not in VISION_MODELS
    model, inputs = build(name)
    torch.manual_seed(0)  # the order of patches in a MAE
    model.set_attn_implementation("eager")
    inputs = {"input_ids": inputs["input_ids"][:1]} if text else {"pixel_values": inputs["pixel_values"][:1]}
    if keep is not None:
        pc.apply(model, keep=keep)
    counts = pc.flops(model, (12,) if text else None)
    with FlopCounterMode(display=False) as counter:
        run(model, inputs)
    sums, products = 0, counter.get_total_flops() // 2
    for before, after in zip(counts.tokens, counts.tokens[1:], strict=False):
        sums += before * 32 if after < before else 0
    if text:  # cosines are taken over all 12 places, protected ones as well
        places = counts.tokens
        extra = [(t**2 - (t - 2) ** 2) * 16 for t, after in zip(places, places[1:], strict=False) if after < t]
        products -= sum(extra)
    assert counts.total - sums == products
    with pytest.raises(ValueError, match="tokens"):
        pc.flops(build("BERT")[0], (3, 32, 32))


# ---------------------------------------------------------------------------------------------------------- refusals
class OwnViT(transformers.ViTModel):
    """Somebody's subclass: it may override anything."""


class OwnLayer(ViTLayer):
    """Somebody's layer."""


def odd_layer():
    model, _ = build("ViT")
    model.layers[1] = OwnLayer(model.config)
    return model


def odd_distilbert():
    model, _ = build("DistilBERT")
    model.transformer.layer[1].ffn = nn.Linear(32, 32)
    return model


REFUSED = {
    "a subclass": (lambda: OwnViT(transformers.ViTConfig(**VISION)), "OwnViT"),
    "an odd layer": (odd_layer, "layer 1.*OwnLayer"),
    "CLIP text": (lambda: transformers.CLIPTextModel(transformers.CLIPTextConfig(**TEXT)), "causal"),
    "SigLIP text": (lambda: transformers.SiglipTextModel(transformers.SiglipTextConfig(**TEXT)), "padding"),
    "BERT decoder": (lambda: build("BERT", is_decoder=True)[0], "decoder"),
    "BERT language model": (
        lambda: transformers.BertLMHeadModel(transformers.BertConfig(**TEXT, is_decoder=True)), "BertLMHeadModel"
    ),
    "RoBERTa decoder": (
        lambda: transformers.RobertaForCausalLM(transformers.RobertaConfig(**ROBERTA, is_decoder=True)), "CausalLM"
    ),
    "DistilBERT's odd layer": (odd_distilbert, "layer.1 has a Linear"),
    "DINOv3 backbone": (
        lambda: transformers.DINOv3ViTBackbone(transformers.DINOv3ViTConfig(**VISION)), "DINOv3ViTModel.*timm's"
    ),
    "masked images": (
        lambda: transformers.ViTForMaskedImageModeling(transformers.ViTConfig(**VISION)), "inside, at 'vit'"
    ),
    "T5": (lambda: transformers.T5EncoderModel(
        transformers.T5Config(d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2, vocab_size=20)), "T5Encoder"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_is_not_supported_is_refused(case):
    """Anything that could not be merged rightly raises, says why, and stays as it was."""
    make, message = REFUSED[case]
    model = make()
    before = snapshot(model)
    with pytest.raises(pc.UnsupportedModelError, match=message):
        pc.apply(model, keep=0.9)
    assert snapshot(model) == before


@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_text_towers_are_refused_with_a_reason(kind):
    """`towers` chooses vision; text and both are refused."""
    model = composite(kind)
    for towers in ("text", "both"):
        with pytest.raises(ValueError, match="causal|padding"):
            pc.apply(model, keep=0.9, towers=towers)
    with pytest.raises(ValueError, match="no such tower"):
        pc.apply(build("ViT")[0], keep=0.9, towers="text")
    assert pc.apply(build("BERT")[0], keep=0.9, towers="text")


def test_plain_means_of_patches_refuse_missing_ones():
    """A classifier that averages all patches is refused where some are dropped, or handed on merged."""
    for arguments in (dict(method="random_prune", keep=0.9), dict(keep=0.9, restore=False)):
        with pytest.raises(pc.UnsupportedModelError, match="mean"):
            pc.apply(build("DINOv2 classifier")[0], **arguments)


# ------------------------------------------------------------------------------------------------------------- LLaVA
def llava(tower="CLIPVision", strategy="default", **overrides):
    arguments = DINO if tower.startswith("Dinov2") else VISION
    language = transformers.LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, intermediate_size=48,
        vocab_size=60, max_position_embeddings=64,
    )
    config = transformers.LlavaConfig(
        vision_config=getattr(transformers, f"{tower}Config")(**arguments), text_config=language, image_token_id=16,
        vision_feature_select_strategy=strategy, **{"vision_feature_layer": -2, **overrides},
    )
    return finish(transformers.LlavaForConditionalGeneration(config))


def prompt(model):
    ids = expand_placeholders(torch.tensor([[1, 16, 5, 7], [1, 2, 16, 9]]), 16, image_token_count(model))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels()}


@pytest.mark.parametrize(
    ("tower", "strategy"),
    [("CLIPVision", "default"), ("CLIPVision", "full"), ("SiglipVision", "full"), ("Dinov2", "default")],
)
def test_llava_reads_merged_image_tokens(tower, strategy):
    """keep=1 is the unpatched model; merged, the language model reads what the tower leaves at its feature layer."""
    model = llava(tower, strategy)
    assert image_token_count(model) == 16 + (tower == "CLIPVision" and strategy == "full")
    whole = run(model, prompt(model))
    pc.apply(model, keep=1.0, restore=False)
    torch.testing.assert_close(run(model, prompt(model)).logits, whole.logits, rtol=1e-6, atol=1e-6)
    pc.apply(model, keep=0.6, restore=False)
    count = 16 - sum(oracle.keep_removals(16, 0.6, 3)[:2]) + (tower == "CLIPVision" and strategy == "full")
    assert image_token_count(model) == count
    with pc.record(model) as trace:
        out = run(model, prompt(model))
    assert out.image_hidden_states.shape == (2 * count, 32)
    inner = model.model
    states = run(inner.vision_tower, {"pixel_values": pixels()}, output_hidden_states=True).hidden_states
    features = states[-2][:, 1:] if strategy == "default" else states[-2]
    torch.testing.assert_close(out.image_hidden_states, inner.multi_modal_projector(features).detach().flatten(0, 1))
    assert trace.last.plan(2).num_tokens == 16 - sum(oracle.keep_removals(16, 0.6, 3)[:2])
    assert pc.flops(model).head == count * 2 * 32 * 32
    assert model.generate(**prompt(model), max_new_tokens=2, do_sample=False).shape[1] >= count + 4
    pc.remove(model)
    assert torch.equal(run(model, prompt(model)).logits, whole.logits)


def test_llava_says_what_does_not_fit():
    """Another number of placeholders, restore=True, several feature layers, a lost patch: refused with the remedy."""
    model = llava()
    whole = prompt(model)
    with pytest.raises(pc.UnsupportedModelError, match="restore=False"):
        pc.apply(model, keep=0.6)
    pc.apply(model, keep=0.6, restore=False)
    with pytest.raises(ValueError, match="(?s)32 image placeholders.*12 image tokens.*expand_placeholders"):
        model(**whole)
    with pytest.raises(ValueError, match="several layers"):
        model(**prompt(model), vision_feature_layer=[-2, -1])
    with pytest.raises(pc.UnsupportedModelError, match="first token"):
        pc.apply(llava("SiglipVision", "default"), keep=0.6, restore=False)
    with pytest.raises(pc.UnsupportedModelError, match="several layers"):
        pc.apply(llava(vision_feature_layer=[-2, -1]), keep=0.6, restore=False)
    with pytest.raises(ValueError, match="causal"):
        pc.apply(model, keep=0.6, restore=False, towers="text")


@pytest.mark.parametrize("kind", ["LlavaNext", "LlavaOnevision"])
def test_llavas_of_tiles_are_refused_with_the_route(kind):
    """Tiles are packed by rows. The tower alone merges, and the language model reads tokens in all places."""
    language = transformers.LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, intermediate_size=48,
        vocab_size=60, max_position_embeddings=128,
    )
    config = getattr(transformers, f"{kind}Config")(
        vision_config=transformers.SiglipVisionConfig(**VISION), text_config=language, image_token_id=16,
        image_grid_pinpoints=[[32, 64]], vision_feature_select_strategy="full", vision_feature_layer=-1,
    )
    model = finish(getattr(transformers, f"{kind}ForConditionalGeneration")(config))
    inputs = {"pixel_values": torch.stack([pixels(3)]), "image_sizes": torch.tensor([[32, 64]])}
    whole = [leaf.shape for leaf in model.model.get_image_features(**inputs).pooler_output]
    with pytest.raises(pc.UnsupportedModelError, match="(?s)rows.*model.model.vision_tower.*LlavaForCond"):
        pc.apply(model, keep=0.7, restore=False)
    pc.apply(model.model.vision_tower, keep=0.7)
    with pc.record(model.model.vision_tower) as trace:
        assert [leaf.shape for leaf in model.model.get_image_features(**inputs).pooler_output] == whole
    assert trace.layers[-1].plan.num_tokens == 16 - sum(oracle.keep_removals(16, 0.7, 3))


def test_placeholders_are_written_in_one_place():
    """Every image gets `count` placeholders, from one or from a grid's worth; masks and labels come along."""
    ids = torch.tensor([[1, 9, 9, 4], [9, 2, 3, 9]])
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    expanded, along = expand_placeholders(ids, 9, 2, mask)
    assert expanded.tolist() == [[1, 9, 9, 9, 9, 4], [9, 9, 2, 3, 9, 9]]
    assert along.tolist() == [[0, 1, 1, 1, 1, 1], [1] * 6]
    assert expand_placeholders(expanded, 9, 1, per_image=2).tolist() == ids.tolist()
    assert expand_placeholders(torch.tensor([[1, 2]]), 9, 3).tolist() == [[1, 2]]
    for arguments, message in (
        ((ids, 9, 2), "no whole number of images of 4"),
        ((torch.tensor([[9, 1], [2, 1]]), 9, 2), r"\[2, 3\] tokens long"),
        ((ids, 9, 0), "count=0"),
        ((ids, 9, 2, mask[:, :3]), r"\(2, 4\).*\(2, 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            expand_placeholders(*arguments, per_image=4 if "of 4" in message else 1)
