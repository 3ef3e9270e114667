"""`pc.settings` gives back what `pc.apply` was given; saved weights and configs carry no merging."""

from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import pytest
import torch

import pitome_core as pc
import pitome_core.experiments.baselines
from pitome_core.patching import find_patch, use_merge

timm = pytest.importorskip("timm")

ARGUMENTS = {
    "nothing but the defaults": {},
    "a ratio": dict(method="tome", keep=0.75),
    "a ratio per layer": dict(keep=(0.9, 0.8, 0.7)),
    "ratios of numpy": dict(keep=np.array([0.9, 0.8, 0.7], dtype=np.float32)),
    "a count": dict(method="tome", remove=3),
    "a count per layer": dict(method="tome", remove=[3, 0, 2]),
    "fewer steps": dict(keep=0.9, every=2),
    "a count in fewer steps": dict(method="tome", remove=2, every=np.int64(3)),
    "a preset": dict(preset="released-deit", keep=0.8),
    "plain attention": dict(keep=0.8, proportional=False),
    "no choice of protected tokens": dict(keep=0.8, protect=None),
    "a margin": dict(keep=0.8, margin=0.5),
    "a margin per layer": dict(keep=0.8, margin=torch.tensor([0.5, 0.25, 0.0])),
    "another metric": dict(keep=0.8, metric="hidden-centred"),
    "another place": dict(keep=0.8, insertion="after"),
    "merged outputs": dict(keep=0.8, restore=False),
    "options": dict(keep=0.8, kernel="elu", alpha=np.float32(0.5), protection=False, edges="best", seed=np.int64(3)),
    "options of a rival": dict(method="tofu", keep=0.8, pruned=0.25),
    "a tower": dict(keep=0.8, towers="vision"),
    "compiled steps": dict(keep=0.8, compile_step=True),
    "no kernels": dict(keep=0.8, fused=False),
}


def vit(**overrides) -> torch.nn.Module:
    torch.manual_seed(0)
    small = dict(img_size=64, embed_dim=48, num_heads=3, depth=3, num_classes=7)
    return timm.create_model("vit_tiny_patch16_224", **{**small, **overrides}).eval()


def run(model, *inputs) -> torch.Tensor:
    with torch.no_grad():
        output = model(*inputs)
    return output if isinstance(output, torch.Tensor) else output.last_hidden_state


def rows(model) -> tuple:
    """What a patch does, as values that compare."""
    patch = find_patch(model)
    return patch.method.name, patch.preset, patch.keep, patch.rows, patch.restore, patch.compile_step, patch.every


def plain(value) -> bool:
    if isinstance(value, dict):
        return all(type(name) is str and plain(part) for name, part in value.items())
    if type(value) is list:
        return all(plain(part) for part in value)
    return value is None or type(value) in (bool, int, float, str)


@pytest.mark.parametrize("case", list(ARGUMENTS))
def test_settings_survive_json(case, images):
    """Through JSON and back, into another model of the same weights: the same patch and the same outputs."""
    model, other, x = vit(), vit(), images()
    given = pc.settings(pc.apply(model, **ARGUMENTS[case]))
    assert plain(given)
    stored = json.loads(json.dumps(given))
    assert stored == given
    pc.apply(other, **stored)
    assert rows(other) == rows(model) and pc.settings(other) == given
    if case != "compiled steps":
        assert torch.equal(run(other, x), run(model, x))


def test_a_schedule_is_plain_data_and_comes_back(images):
    model, other, x = vit(), vit(), images()
    schedule = pc.schedule(model, flops=0.8)
    given = json.loads(json.dumps(pc.settings(pc.apply(model, keep=schedule))))
    assert given["keep"] == {"remove": list(schedule.remove), "tokens": list(schedule.tokens), "prefix": 1,
                             "clamped": False}
    assert find_patch(pc.apply(other, **given)).keep == schedule and torch.equal(run(other, x), run(model, x))


def test_every_argument_of_apply_is_among_them():
    """All but the model, whatever arguments there will be; options stand beside them."""
    import inspect

    names = {name for name, p in inspect.signature(pc.apply).parameters.items() if p.kind is not p.VAR_KEYWORD}
    given = pc.settings(pc.apply(vit(), seed=4))
    assert given.keys() == names - {"model"} | {"seed"}
    covered = {name for arguments in ARGUMENTS.values() for name in arguments}
    assert names - {"model"} <= covered


def test_settings_are_those_of_the_last_apply_and_nobody_elses():
    model, keep = vit(), [0.9, 0.8, 0.7]
    pc.apply(model, "tome", keep=keep)
    keep[0] = 0.5  # the caller's list
    first = pc.settings(model)
    assert first["keep"] == [0.9, 0.8, 0.7] and first["method"] == "tome"
    first["keep"][0] = 0.5  # the list that was returned
    assert pc.settings(model)["keep"] == [0.9, 0.8, 0.7]
    with pc.patched(model, keep=0.8, kernel="elu"):
        assert pc.settings(model)["kernel"] == "elu"
    assert pc.settings(model)["method"] == "tome"
    pc.apply(model, keep=0.75)
    assert pc.settings(model)["method"] == "pitome" and pc.settings(model)["keep"] == 0.75
    with pytest.raises(ValueError):
        pc.apply(model, keep=2.0)
    assert pc.settings(model)["keep"] == 0.75
    pc.remove(model)
    with pytest.raises(ValueError, match="not patched: call pc.apply"):
        pc.settings(model)


def test_another_merge_and_copies_keep_the_settings():
    model = pc.apply(vit(), "tome", remove=2)
    given = pc.settings(model)
    assert pc.settings(use_merge(model, lambda step, x, keys, size, attention_map: (x, size, None))) == given
    assert pc.settings(copy.deepcopy(model)) == given
    assert pc.settings(pickle.loads(pickle.dumps(pc.apply(model, **given)))) == given


def test_a_part_of_a_patched_model_has_none_of_its_own():
    with pytest.raises(ValueError, match="not patched"):
        pc.settings(pc.apply(vit()).blocks[0])


def test_an_option_that_is_no_plain_data_is_refused(registry):
    def chosen(metric, remove, *, order=None):
        return pc.MergePlan.identity(*metric.shape[:2])

    pc.register_method("chosen", chosen, paper="none", summary="none")
    assert pc.settings(pc.apply(vit(), "chosen", keep=1.0, order=(1, 2)))["order"] == [1, 2]
    with pytest.raises(TypeError, match="not JSON serializable"):
        pc.settings(pc.apply(vit(), "chosen", keep=1.0, order=print))


def bert():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    small = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=50)
    return transformers.BertModel(transformers.BertConfig(**small)).eval(), (torch.arange(2, 22).view(2, 10),)


def clip():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    small = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    config = transformers.CLIPVisionConfig(**small, image_size=64, patch_size=16)
    return transformers.CLIPVisionModel(config).eval(), (torch.randn(2, 3, 64, 64),)


def open_clip_model():
    library = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    vision = library.model.CLIPVisionCfg(layers=2, width=64, head_width=32, patch_size=16, image_size=64)
    text = library.model.CLIPTextCfg(width=32, heads=2, layers=1, vocab_size=100, context_length=8)
    return library.model.CLIP(32, vision, text).visual.eval(), (torch.randn(2, 3, 64, 64),)


LIBRARIES = {"timm": lambda: (vit(), (torch.randn(2, 3, 64, 64),)), "transformers": clip, "BERT": bert,
             "open_clip": open_clip_model}


@pytest.mark.parametrize("library", list(LIBRARIES))
@pytest.mark.parametrize("arguments", [dict(keep=0.75), dict(method="tome", keep=0.75, proportional=False)], ids=str)
def test_settings_restore_models_of_every_library(library, arguments):
    model, inputs = LIBRARIES[library]()
    other, _ = LIBRARIES[library]()
    other.load_state_dict(model.state_dict())
    pc.apply(model, **arguments)
    pc.apply(other, **json.loads(json.dumps(pc.settings(model))))
    assert rows(other) == rows(model) and torch.equal(run(other, *inputs), run(model, *inputs))


@pytest.mark.parametrize("towers", ["vision", "text", "both"])
def test_settings_know_the_towers(towers):
    library = pytest.importorskip("open_clip")
    transformers = pytest.importorskip("transformers")

    def both():
        """A small open_clip model with a BERT, without its download."""
        torch.manual_seed(0)
        config = transformers.BertConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                                         num_attention_heads=2, vocab_size=50)
        text = library.hf_model.HFTextEncoder(
            "bert", output_dim=32, config=config, proj_type="linear", pooler_type="cls_pooler", pretrained=False
        )
        vision = library.model.CLIPVisionCfg(layers=2, width=64, head_width=32, patch_size=16, image_size=64)
        model = library.model.CustomTextCLIP(32, vision, library.model.CLIPTextCfg())
        model.text = text
        return model.eval()

    model, other = both(), both()
    other.load_state_dict(model.state_dict())
    given = pc.settings(pc.apply(model, keep=0.75, towers=towers))
    assert given["towers"] == towers
    pc.apply(other, **json.loads(json.dumps(given)))
    images, texts = torch.randn(2, 3, 64, 64), torch.arange(2, 22).view(2, 10)
    with torch.no_grad():
        assert torch.equal(model.encode_image(images), other.encode_image(images))
        assert torch.equal(model.encode_text(texts), other.encode_text(texts))


@pytest.mark.parametrize("make", [clip, bert], ids=["vision", "text"])
def test_saved_models_do_not_carry_merging(make, tmp_path):
    """The folder that a patched model is saved to equals that of the unpatched one, byte for byte; what is loaded does
    not merge, and `settings` puts merging back."""
    model, inputs = make()
    plain_output = run(model, *inputs)
    model.save_pretrained(tmp_path / "plain")
    pc.apply(model, keep=0.75)
    merged, given = run(model, *inputs), json.dumps(pc.settings(model))
    model.save_pretrained(tmp_path / "patched")
    files = sorted(path.name for path in (tmp_path / "plain").iterdir())
    assert "config.json" in files and sorted(path.name for path in (tmp_path / "patched").iterdir()) == files
    for name in files:
        assert (tmp_path / "patched" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    assert "pitome" not in (tmp_path / "patched" / "config.json").read_text()

    loaded = type(make()[0]).from_pretrained(tmp_path / "patched").eval()
    assert torch.equal(run(loaded, *inputs), plain_output) and not torch.equal(merged, plain_output)
    with pytest.raises(ValueError, match="not patched"):
        pc.settings(loaded)
    assert torch.equal(run(pc.apply(loaded, **json.loads(given)), *inputs), merged)


def test_a_state_dict_does_not_carry_merging(tmp_path, images):
    model, x = vit(), images()
    before, expected = {name: value.clone() for name, value in model.state_dict().items()}, run(model, x)
    pc.apply(model, keep=0.75)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    state = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert state.keys() == before.keys() and all(torch.equal(state[name], before[name]) for name in state)
    other = timm.create_model("vit_tiny_patch16_224", img_size=64, embed_dim=48, num_heads=3, depth=3, num_classes=7)
    other.load_state_dict(state)
    assert torch.equal(run(other.eval(), x), expected)
    assert torch.equal(run(pc.apply(other, **pc.settings(model)), x), run(model, x))


def test_settings_know_the_protected_tokens():
    model, inputs = bert()
    given = json.loads(json.dumps(pc.settings(pc.apply(model, keep=0.75, protect="cls"))))
    expected = run(model, *inputs)
    assert given["protect"] == "cls" and torch.equal(run(pc.apply(model, **given), *inputs), expected)
    assert not torch.equal(run(pc.apply(model, keep=0.75), *inputs), expected)
