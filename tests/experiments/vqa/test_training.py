"""Training of the small LLaVA: packing changes nothing, it learns, and it goes on where it was stopped."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_models import shorten_language_model

from pitome_core.experiments.data import questions
from pitome_core.experiments.models import llava, llava_answers
from pitome_core.experiments.records import files, results
from pitome_core.experiments.runs import stages
from pitome_core.experiments.vqa import training as vqa_training
from pitome_core.experiments.vqa.training import LlavaRecipe

pytest.importorskip("transformers", minversion="5.23")
CPU = torch.device("cpu")
QUICK = LlavaRecipe(batch=2, align_steps=2, steps=2)
NUMBERS = (2, 4, 5, 11)  # of scenes in the stream `train`


@pytest.fixture(scope="module", autouse=True)
def small_language_model():
    """All parts are the real ones, but the language model has its first two layers alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PITOME_DEVICE", "cpu")
        shorten_language_model(patch)
        patch.setattr(vqa_training, "KNOWN", 90)
        yield


@pytest.fixture(scope="module")
def scenes():
    """Four scenes: every type of question but count."""
    return [vqa_training.example(number) for number in NUMBERS]


@torch.no_grad()
def test_packed_questions_equal_single_ones(scenes):
    """The loss of scenes with three questions behind one picture is the sum over questions asked alone, each a plain
    call of the LLaVA with its own labels; left-out tokens are absent, not masked."""
    state = vqa_training.begin(QUICK, CPU)
    model, batch = state.model, vqa_training.batch_of(NUMBERS)
    kept = vqa_training.kept_tokens(QUICK, 3, len(scenes), llava.PATCHES)
    features = vqa_training.tower_features(model, batch["pixels"])
    chosen = features.gather(1, kept[..., None].expand(-1, -1, features.shape[2]))
    packed = vqa_training.answer_loss(model, chosen, kept, batch)

    total, ahead = 0.0, list(vqa_training.before())
    for i, scene in enumerate(scenes):
        image = model.model.multi_modal_projector(chosen[i])
        for question, answer in scene["texts"]:
            ids = torch.tensor([[*ahead, *[llava.IMAGE_TOKEN] * kept.shape[1], *question, *answer]])
            behind = len(ahead) + llava.PATCHES + torch.arange(len(question) + len(answer))
            places = torch.cat([torch.arange(len(ahead)), len(ahead) + kept[i], behind])[None]
            logits = model(
                input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=places,
                mm_encoder_outputs={"image": SimpleNamespace(pooler_output=[image])},
            ).logits[0, -len(answer) - 1 : -1]
            total += torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="sum").item()
    assert len(batch["targets"]) == sum(len(a) for scene in scenes for _, a in scene["texts"])
    assert packed.item() == pytest.approx(total, rel=1e-5)


def test_what_is_trained_is_what_is_asked(scenes):
    """A text's tokens are those of the prompt with its answer; the tower's features are those that the LLaVA reads."""
    scene = questions.scene("train", 4)
    words = llava.tokenizer()
    for question, (behind, answer) in zip(scene.questions, scenes[1]["texts"], strict=True):
        whole = llava.prompt(question.text).replace("<image>", "<empty_output>") + question.answer + llava.END
        assert words(whole)["input_ids"] == [*vqa_training.before(), llava.IMAGE_TOKEN, *behind, *answer]
    model = llava.assemble()
    pixels = scenes[1]["pixels"][None]
    expected = llava_answers.image_tokens(model, llava.normalised(pixels)).features
    with torch.no_grad():
        found = model.model.multi_modal_projector(vqa_training.tower_features(model, pixels))
    torch.testing.assert_close(found, expected)


def test_the_mask_is_a_rule_for_pairs():
    segments = torch.tensor([[0, 0, 1, 1, 2, 3], [0, 0, 0, 1, 2, 2]])
    mask = vqa_training.block_mask(segments)
    for item, row in enumerate(segments.tolist()):
        for q, mine in enumerate(row):
            for k, other in enumerate(row):
                assert mask[item, 0, q, k] == (k <= q and other in (0, mine))


def test_left_out_tokens_follow_from_seed_and_step():
    recipe = LlavaRecipe(dropped=0.4)
    rows = [vqa_training.kept_tokens(recipe, step, 3, 144) for step in range(40)]
    shares = [row.shape[1] / 144 for row in rows]
    assert min(shares) < 0.7 and max(shares) > 0.9 and all(0.59 <= share <= 1 for share in shares)
    assert all((row.diff(dim=1) > 0).all() and row.max() < 144 for row in rows)
    assert torch.equal(rows[7], vqa_training.kept_tokens(recipe, 7, 3, 144))
    assert not torch.equal(rows[7][0], rows[7][1])
    other = vqa_training.kept_tokens(replace(recipe, seed=1), 7, 3, 144)
    assert other.shape != rows[7].shape or not torch.equal(other, rows[7])
    assert vqa_training.kept_tokens(replace(recipe, dropped=0.0), 7, 2, 9).tolist() == [list(range(9))] * 2


def test_patches_are_named_after_what_they_show():
    """The middle of every object has its name; far from all of them there is background; every class has a number."""
    for number in range(12):
        scene = questions.scene("train", number)
        grid = vqa_training.things(scene).view(vqa_training.GRID, vqa_training.GRID)
        for thing in scene.placed:
            assert vqa_training.NAMES[grid[int(thing.y * 12), int(thing.x * 12)]] == thing.name
        places = [(row, column) for row in range(12) for column in range(12)]
        far = [(row, column) for row, column in places if all(
            max(abs((row + 0.5) / 12 - t.y), abs((column + 0.5) / 12 - t.x)) > t.side / 2 + 1 / 12
            for t in scene.placed)]
        assert all(grid[place] == 0 for place in far) and (grid == 0).any()
        assert set(grid.unique().tolist()) <= {vqa_training.IGNORED, 0} | {
            vqa_training.NAMES.index(t.name) for t in scene.placed}


def test_parts_of_a_batch_add_up():
    """A CPU works through a batch in parts: the loss and the step are those of the whole."""
    for start in (0, QUICK.align_steps):
        found = []
        recipe = replace(QUICK, batch=4)
        for parts in ([vqa_training.batch_of(NUMBERS)],
                      [vqa_training.batch_of(NUMBERS[:2]), vqa_training.batch_of(NUMBERS[2:])]):
            state = vqa_training.begin(recipe, CPU)
            state.step = start
            table = vqa_training.name_embeddings(state.model)
            loss = vqa_training.advance(state, parts, recipe, table)
            found.append((loss, *llava.ours(state.model).values()))
        if start == 0:  # its mean is over the patches of each part
            torch.testing.assert_close(found[0][0], found[1][0], rtol=0.2, atol=0)
        else:
            for whole, added in zip(*found, strict=True):
                torch.testing.assert_close(whole, added, rtol=1e-4, atol=1e-5)


def test_it_learns():
    """Both kinds of step bring the loss of the same scenes down; only what is ours changes, first the projector."""
    recipe = LlavaRecipe(batch=2, align_steps=8, steps=8, rate=1e-2, projector_rate=2e-3, warm_up=0.1)
    state = vqa_training.begin(recipe, CPU)
    table, parts = vqa_training.name_embeddings(state.model), [vqa_training.batch_of(NUMBERS[:2])]
    fixed = {name: value.clone() for name, value in state.model.state_dict().items()}
    losses = [vqa_training.advance(state, parts, recipe, table).item() for _ in range(recipe.align_steps)]
    assert losses[-1] < 0.7 * losses[0]
    assert all((value == 0).all() for name, value in llava.ours(state.model).items() if name.endswith(".up"))
    losses = [vqa_training.advance(state, parts, recipe, table).item() for _ in range(recipe.steps)]
    assert losses[-1] < 0.5 * losses[0]
    changed = {name for name, value in state.model.state_dict().items() if not torch.equal(value, fixed[name])}
    assert all("lora_" in name or "projector" in name for name in changed)
    assert {part for name in changed for part in ("lora_A", "lora_B", "projector") if part in name} == {
        "lora_A", "lora_B", "projector"}


def test_rates_rise_and_fall_twice():
    recipe = LlavaRecipe(align_steps=50, steps=200, warm_up=0.1, align_rate=3.0, rate=2.0, projector_rate=1.0)
    model = llava.assemble()
    llava.adapt(model, 0)
    for step, count, warm, peaks in ((0, 50, 5, [3.0]), (50, 200, 20, [1.0, 2.0])):
        optimizer, schedule = vqa_training.optimization(model, recipe, step)
        rates = []
        for _ in range(count):
            rates.append([group["lr"] for group in optimizer.param_groups])
            optimizer.step()
            schedule.step()
        for column, peak in zip(zip(*rates, strict=True), peaks, strict=True):
            assert column[0] == 0 and column[warm] == pytest.approx(peak) and column[-1] < 0.01 * peak
            assert np.diff(column[: warm + 1]).min() > 0 > np.diff(column[warm:]).max()


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Checkpoints in a folder of the test's own."""
    monkeypatch.setattr(vqa_training, "checkpoint_path", lambda recipe: tmp_path / f"{recipe.fingerprint}.pt")
    return tmp_path


@contextmanager
def one_step():
    """Every budget is over when one step is done: it is asked before the stage begins, then after each step."""
    asked: set[stages.Budget] = set()

    def over(budget: stages.Budget) -> bool:
        if budget in asked:
            return True
        asked.add(budget)
        return False

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages.Budget, "over", over)
        yield


def test_stages_equal_one_run(elsewhere):
    """Stopped after each step and started again, training ends with the same weights, bit for bit; then it is done."""
    once, stopped = (elsewhere / name / "vqa.safetensors" for name in ("once", "stopped"))
    log = elsewhere / "log"
    assert vqa_training.run(QUICK, weights=once, count=9, log=log) == 0
    with one_step():
        left = [vqa_training.run(QUICK, weights=stopped, count=9, log=log) for _ in range(QUICK.total)]
    assert left == [3, 2, 1, 0] and once.read_bytes() == stopped.read_bytes()
    assert list(elsewhere.glob("*.pt")) == []
    about = vqa_training.sheet(once)
    assert about["weights"] == files.digest(once) and about["scenes"] == QUICK.total * QUICK.batch
    assert about["headline"] == vqa_training.headline(about["validation"])
    assert sum(row["items"] for row in about["validation"].values()) == 9
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["kind"] for line in lines if "kind" in line] == ["align", "tune"] + ["align"] * 2 + ["tune"] * 2
    assert vqa_training.run(QUICK, weights=once) == 0  # nothing to do
    once.write_bytes(b"other")
    with pytest.raises(results.RecordError, match="about other weights"):
        vqa_training.sheet(once)


def test_early_weights_are_those_of_the_checkpoint(elsewhere):
    path = elsewhere / "early" / "vqa.safetensors"
    with one_step():
        assert vqa_training.run(QUICK, early=True, weights=path, count=9, log=elsewhere / "l") == 0
    assert vqa_training.sheet(path)["steps"] == 1 and path.is_file()
    assert vqa_training.run(QUICK, estimate_only=True, weights=elsewhere / "no", log=elsewhere / "l") == QUICK.total


@pytest.mark.gpu
def test_cuda_trains_alike(elsewhere, monkeypatch):
    """Drawn by workers, the language model in bfloat16: the same scenes, the same losses up to rounding."""
    states = {}
    for device in ("cpu", "cuda"):
        monkeypatch.setenv("PITOME_DEVICE", device)
        states[device] = vqa_training.train(QUICK, stages.Budget(), log=elsewhere / "l")
        vqa_training.checkpoint_path(QUICK).unlink()
    losses = [[loss for _, loss in state.losses] for state in states.values()]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    asked = list(questions.QuestionStream("validation", 6))
    for state in states.values():
        model = llava.assemble(device=state.model.device)
        llava.add(model, llava.ours(state.model))
        state.answers = llava.ask(model, llava.draw([("validation", 0), ("validation", 1)], model.device),
                                  [q.text for q in asked], [q.scene for q in asked])
    assert all(len(state.answers) == 6 for state in states.values())


def test_a_type_is_in_the_headline_where_it_beats_its_prior():
    rows = {"single": {"low": 0.9, "prior": 0.1}, "count": {"low": 0.30, "prior": 0.34},
            "relation": {"low": 0.5, "prior": 0.5}, "colour": {"low": float("nan"), "prior": 0.1},
            "shape": {"low": None, "prior": 0.1}}  # a single scene has no interval
    assert vqa_training.headline(rows) == ["single"]


def test_recipes_have_fingerprints():
    assert LlavaRecipe().fingerprint == LlavaRecipe().fingerprint != replace(LlavaRecipe(), steps=9).fingerprint
    with pytest.raises(ValueError, match="batch 12 is no multiple of 8"):
        next(vqa_training.batches(replace(LlavaRecipe(), batch=12), 0, CPU))
