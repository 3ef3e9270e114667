"""The small LLaVA: its parts are those they were made from, and weights of ours go in and out unchanged."""

from __future__ import annotations

import pytest
import torch

from pitome_core.experiments.baselines.lower_resolution import lower_resolution
from pitome_core.experiments.data import questions
from pitome_core.experiments.data.pictures import preprocess
from pitome_core.experiments.models import llava, llava_answers, vit
from pitome_core.experiments.records import files, results

pytest.importorskip("transformers", minversion="5.23")
pytestmark = pytest.mark.usefixtures("on_the_processor")


@pytest.fixture(scope="module")
def model():
    """Nothing here changes it."""
    return llava.assemble()


@pytest.fixture(scope="module")
def pictures():
    return [questions.picture(questions.scene("validation", i)) for i in (0, 7)]


@torch.no_grad()
def test_both_towers_are_one(model, pictures):
    """The Dinov2Model equals timm's tower, at its size and at a lower one: one rule for the position embedding."""
    own = vit.vit_small(llava.SIDE, "cpu")
    for side, tower in ((llava.SIDE, own), (112, lower_resolution(own, 112))):
        images = preprocess(pictures, side)
        found = model.model.vision_tower(images).last_hidden_state
        torch.testing.assert_close(found, tower.forward_features(images), rtol=0, atol=1e-5)


@torch.no_grad()
def test_it_speaks_in_float32(model):
    """Every weight is there, in float32, whatever a stored configuration says; the head is the embedding."""
    assert {p.dtype for p in [*model.parameters(), *model.buffers()] if p.is_floating_point()} == {torch.float32}
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    assert not any(p.requires_grad for p in model.parameters()) and not model.training
    words = llava.tokenizer()
    ids = words("<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n",
                return_tensors="pt")
    text = words.decode(model.generate(**ids, max_new_tokens=8)[0], skip_special_tokens=True)
    assert text.endswith("The capital of France is Paris.")


def test_the_seed_makes_the_projector(model):
    """And nobody else's generator is touched."""
    state = torch.get_rng_state()
    assert torch.equal(llava.assemble(0).model.multi_modal_projector.linear_1.weight,
                       model.model.multi_modal_projector.linear_1.weight)
    assert not torch.equal(llava._random_projector(model.config, 1)["linear_1.weight"],
                           model.model.multi_modal_projector.linear_1.weight)
    assert torch.equal(torch.get_rng_state(), state)


def test_pixels_are_normalised_as_everywhere(pictures):
    drawn = llava.draw([("validation", 0), ("validation", 7)], torch.device("cpu"))
    assert drawn.dtype == torch.uint8
    torch.testing.assert_close(llava.normalised(drawn), preprocess(pictures, llava.SIDE), rtol=0, atol=1e-6)


@torch.no_grad()
def test_updates_survive_storage(model, tmp_path):
    """An adapted model starts as the bare one; stored, loaded and added, its updates do what they did beside the maps.
    """
    bare, adapted = model, llava.assemble()
    texts = llava.tokenizer()(["Where is the owl?"], return_tensors="pt")
    updates = llava.adapt(adapted, seed=3)
    assert {p.dtype for p in updates} == {torch.float32} and all(p.requires_grad for p in updates)
    before = bare(**texts).logits
    torch.testing.assert_close(adapted(**texts).logits, before)
    draw = torch.Generator().manual_seed(0)
    for value in llava.ours(adapted).values():  # as they will be stored
        value.copy_((value + 0.02 * torch.randn(value.shape, generator=draw)).half().float())
    path = tmp_path / "weights" / "vqa.safetensors"
    llava.save(llava.ours(adapted), path)
    assert path.stat().st_size < 6e6 and len(files.digest(path)) == 12
    loaded = llava.llava(path)
    after = adapted(**texts).logits
    assert (after - before).abs().max() > 0.1
    torch.testing.assert_close(loaded(**texts).logits, after, rtol=1e-4, atol=1e-3)
    assert not any("lora" in name for name, _ in loaded.named_modules())
    for name, value in loaded.model.multi_modal_projector.named_parameters():
        assert torch.equal(value, dict(adapted.model.multi_modal_projector.named_parameters())[name])
    with pytest.raises(ValueError, match="has an update already"):
        llava.adapt(adapted, seed=3)
    stored = llava.load(path)
    del stored["layers.0.mlp.down_proj.up"]
    with pytest.raises(ValueError, match=r"239 matrices.*room for 240.*layers.0.mlp.down_proj.up"):
        llava.add(bare, stored)
    del stored["projector.linear_1.bias"]
    with pytest.raises(ValueError, match=r"projector is another one.*linear_1.bias"):
        llava.add(bare, stored)
    with pytest.raises(results.RecordError, match="make vqa-weights"):
        llava.llava(tmp_path / "none.safetensors")


@torch.no_grad()
def test_shipped_weights_are_the_bare_model_and_twice_the_products(model):
    """The shipped file is older than `low_rank`: its updates mean W + 2 up @ down, whoever adds them."""
    stored, loaded = llava.load(llava.weights_path()), llava.llava()
    names = llava.adapted_names(model)
    assert len(stored) == 4 + 2 * len(names) == 244
    for name in names:
        bare, own = (m.model.language_model.get_submodule(name).weight for m in (model, loaded))
        expected = bare + 2 * stored[f"{name}.up"] @ stored[f"{name}.down"]
        torch.testing.assert_close(own, expected, rtol=0, atol=1e-6)


def test_a_prompt_has_one_picture():
    """What stands before it is the same for all questions; its token is the one that the model replaces."""
    rows = llava_answers.encode(llava.tokenizer(), [llava.prompt(q) for q in ("Where is the owl?", "How many?")],
                              llava.IMAGE_TOKEN)
    assert rows[0][0] == rows[1][0] and rows[0][1] != rows[1][1]
    assert llava.tokenizer().decode(rows[0][1]) == "\nWhere is the owl?<|im_end|>\n<|im_start|>assistant\n"
