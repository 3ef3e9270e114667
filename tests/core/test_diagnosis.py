"""What `pc.diagnose` says is what an obvious computation says, it leaves models as they were, and it promises no more
than its items and the records of this project show."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from small_models import pictures, randomize
from torch.nn.functional import cosine_similarity, normalize

import pitome_core as pc
from pitome_core.diagnosis import Measured, _recommend
from pitome_core.intervals import items_needed, mean_interval, share_interval
from pitome_core.layer_measures import mean_cosine, tightness

RESULTS = Path(__file__).resolve().parents[2] / "results" / "embedded"
GRID = {"keeps": (0.8, 0.6), "seconds": 0}


@pytest.fixture
def vit(build_vit):
    return build_vit()


def state(model):
    """Everything about a model that a diagnosis could leave behind."""
    modules = [(type(module), module.training, dict(vars(module)), module._forward_hooks) for module in model.modules()]
    return [(kind, training, sorted(held), len(hooks)) for kind, training, held, hooks in modules], [
        (p.requires_grad, p.grad is None, p.clone()) for p in model.parameters()]


def assert_same_state(first, second):
    assert first[0] == second[0]
    assert all(a[:2] == b[:2] and torch.equal(a[2], b[2]) for a, b in zip(first[1], second[1], strict=True))


# --- the numbers


def test_numbers_are_those_of_running_the_models_by_hand(vit, images):
    x = images(10)
    found = pc.diagnose(vit, x, batch_size=4, **GRID)
    assert [(one.method, one.keep) for one in found.settings] == list(itertools.product(("tome", "pitome"), (0.8, 0.6)))
    whole = pc.flops(vit).total
    with torch.no_grad():
        tokens, logits = vit.forward_features(x), vit(x)
        for one in found.settings:
            with pc.patched(vit, one.method, one.keep):
                merged = vit.forward_features(x)
                assert one.flops == pc.flops(vit).total / whole
                assert one.same == (vit(x).argmax(1) == logits.argmax(1)).sum()
            assert one.agreement == share_interval(one.same, 10)
            pooled = [vit.forward_head(t, pre_logits=True) for t in (merged, tokens)]
            cosines = cosine_similarity(*pooled)
            assert one.likeness == pytest.approx(cosines.mean().item(), abs=1e-6)
            assert one.likeness_interval == pytest.approx(mean_interval(cosines), abs=1e-6)
            patches = cosine_similarity(merged, tokens, dim=-1)[:, 1:].mean().item()
            assert one.patches == pytest.approx(patches, abs=1e-6)


def test_layers_are_those_of_the_keys(vit, images):
    """Keys are taken by hooks here, and pairs are looked at one by one."""
    x, keys = images(3), []
    hooks = [block.attn.k_norm.register_forward_hook(lambda *args: keys.append(args[2].mean(1)[:, 1:]))
             for block in vit.blocks]
    with torch.no_grad():
        vit(x)
    for hook in hooks:
        hook.remove()
    found = pc.diagnose(vit, x, **GRID)
    assert [one.margin for one in found.layers] == pc.margin_schedule(3) and len(keys) == 3
    for one, key in zip(found.layers, keys, strict=True):
        cosines, nearest, isolated = [], [], []
        unit = normalize(key, dim=-1)
        for item in unit:
            centred = normalize(item - item.mean(0), dim=-1)
            for i in range(16):
                others = [j for j in range(16) if j != i]
                cosines += [float(item[i] @ item[j]) for j in others]
                isolated.append(max(float(item[i] @ item[j]) for j in others) < one.margin)
                nearest.append(max(float(centred[i] @ centred[j]) for j in others))
        medians = torch.tensor(nearest).view(3, 16).median(1).values
        assert one.cosine == pytest.approx(sum(cosines) / len(cosines), abs=1e-5)
        assert one.tightness == pytest.approx(medians.mean().item(), abs=1e-5)
        assert one.isolated == pytest.approx(sum(isolated) / len(isolated), abs=1e-6)
        spread = pc.energy_score(key, one.margin).std(1, correction=0).mean().item()
        assert one.spread == pytest.approx(spread, abs=1e-6)
        assert one.chance == pytest.approx(math.sqrt(2 * math.log(16) / 16))


def test_padding_of_texts_changes_nothing():
    transformers = pytest.importorskip("transformers", minversion="5.23")
    config = transformers.BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
                                     vocab_size=50, max_position_embeddings=20, num_labels=4)
    model = randomize(transformers.BertForSequenceClassification(config)).eval()
    ids = torch.randint(1, 50, (4, 12), generator=torch.Generator().manual_seed(0))
    lengths = (12, 9, 7, 12)
    mask = torch.tensor([[1] * n + [0] * (12 - n) for n in lengths])
    together = pc.diagnose(model, {"input_ids": ids, "attention_mask": mask}, **GRID)
    alone = pc.diagnose(model, [{"input_ids": ids[i : i + 1, :n], "attention_mask": mask[i : i + 1, :n]}
                                for i, n in enumerate(lengths)], **GRID)
    for a, b in zip(together.settings, alone.settings, strict=True):
        assert (a.flops, a.same) == (b.flops, b.same)
        assert (a.likeness, a.patches) == pytest.approx((b.likeness, b.patches), abs=1e-5)
    for a, b in zip(together.layers, alone.layers, strict=True):
        assert (a.cosine, a.tightness, a.spread) == pytest.approx((b.cosine, b.tightness, b.spread), abs=1e-5)


def test_answers_of_transformers_and_features_of_open_clip():
    transformers = pytest.importorskip("transformers", minversion="5.23")
    x = pictures(5, (32, 32))
    config = transformers.ViTConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, num_labels=5,
                                    intermediate_size=48, image_size=32, patch_size=8)
    model = randomize(transformers.ViTForImageClassification(config)).eval()
    found = pc.diagnose(model, x, **GRID)
    assert pc.diagnose(model, {"pixel_values": x}, **GRID).settings == found.settings
    with torch.no_grad(), pc.patched(model, "tome", 0.8):
        merged = model(x).logits.argmax(1)
    with torch.no_grad():
        assert found.settings[0].same == (merged == model(x).logits.argmax(1)).sum()

    open_clip = pytest.importorskip("open_clip")
    tower = dict(image_size=32, patch_size=8, width=48, head_width=16, layers=3)
    text = dict(context_length=12, vocab_size=50, width=32, heads=2, layers=2)
    clip = randomize(open_clip.model.CLIP(24, tower, text)).eval()
    texts = torch.randn(4, 24, generator=torch.Generator().manual_seed(0))
    plain, headed = pc.diagnose(clip, x, **GRID), pc.diagnose(clip, x, head=lambda f: f @ texts.T, **GRID)
    with torch.no_grad():
        whole = clip.encode_image(x)
        with pc.patched(clip, "tome", 0.8):
            merged = clip.encode_image(x)
    assert plain.settings[0].same is None and plain.settings[0].patches is not None
    assert plain.settings[0].likeness == pytest.approx(cosine_similarity(whole, merged).mean().item(), abs=1e-6)
    assert headed.settings[0].same == ((merged @ texts.T).argmax(1) == (whole @ texts.T).argmax(1)).sum()


def test_every_method_has_its_row(vit, images):
    """Pruning and transforms too; and settings with a name of their own."""
    import pitome_core.experiments.baselines  # noqa: F401

    found = pc.diagnose(vit, images(3), methods=("tome", "dct", "random_prune"), **GRID)
    assert all(one.same is not None for one in found.settings)
    assert [one.likeness is None for one in found.settings] == [False] * 4 + [True] * 2
    centred = {"centred": {"method": "pitome", "metric": "keys-centred"}, "paper": {"method": "pitome"}}
    named = pc.diagnose(vit, images(3), methods=centred, **GRID).settings
    assert [one.method for one in named] == ["centred"] * 2 + ["paper"] * 2 and named[0].patches != named[2].patches


def test_the_same_in_every_call(vit, images):
    first, second = (pc.diagnose(vit, images(6), batch_size=size, **GRID) for size in (6, 6))
    assert first == second
    json.dumps(first.to_dict())
    timed = pc.diagnose(vit, images(6), keeps=(0.8,), seconds=0.01, batch_size=6)
    assert all(0 < one.faster[0] <= one.faster[1] <= one.faster[2] for one in timed.settings) and timed.timed >= 1


# --- the model


def test_the_model_is_left_as_it_was(vit, images):
    vit.train()
    vit.blocks[1].eval()
    vit.head.weight.requires_grad_(False)
    before = state(vit)
    pc.diagnose(vit, images(3), **GRID)
    assert_same_state(state(vit), before)
    pc.apply(vit, "pitome", keep=0.5, margin=0.3)
    before, settings = state(vit), pc.settings(vit)
    found = pc.diagnose(vit, images(3), **GRID)
    assert_same_state(state(vit), before)
    assert pc.settings(vit) == settings and found.settings[0].flops < 1  # beside the whole model, not beside keep 0.5


@pytest.mark.parametrize("call", range(1, 9))
def test_an_error_in_the_middle_leaves_nothing_behind(vit, images, call):
    """Whichever forward fails: of the whole model, of a merged one, while keys are read, while timing."""
    pc.apply(vit.train(), "tome", keep=0.5)
    before, calls = state(vit), itertools.count(1)

    def fail(*args):
        if next(calls) == call:
            raise KeyboardInterrupt

    hook = vit.norm.register_forward_hook(fail)
    try:
        with pytest.raises(KeyboardInterrupt):
            pc.diagnose(vit, images(2), keeps=(0.8,), seconds=1e-3)
    finally:
        hook.remove()
    assert_same_state(state(vit), before)


def test_an_open_recording_is_not_written_to(vit, images):
    pc.apply(vit, "tome", keep=0.5)
    with pc.record(vit) as trace, pytest.raises(RuntimeError, match="recording"):
        pc.diagnose(vit, images(2), **GRID)
    assert not trace.forwards


@pytest.mark.parametrize("arguments, error", [
    ({"keeps": (0.3,)}, "at most 8 can merge"), ({"keeps": ()}, "0 settings"), ({"target": 1.0}, "below 1"),
    ({"methods": ("tomes",)}, "unknown method"), ({"batch_size": 0}, "batch_size"),
])
def test_wrong_arguments_are_refused_before_anything_runs(vit, images, arguments, error):
    ran = []
    vit.register_forward_hook(lambda *args: ran.append(1))
    with pytest.raises(ValueError, match=error):
        pc.diagnose(vit, images(2), **{**GRID, **arguments})
    assert not ran


def test_wrong_inputs_are_refused(vit):
    with pytest.raises(ValueError, match="0 items"):
        pc.diagnose(vit, torch.zeros(0, 3, 64, 64), **GRID)
    with pytest.raises(TypeError, match="tensor"):
        pc.diagnose(vit, "pictures/", **GRID)
    with pytest.raises(pc.UnsupportedModelError):
        pc.diagnose(torch.nn.Linear(2, 2), torch.zeros(1, 2), **GRID)


def test_an_output_with_nothing_to_compare_is_refused(images):
    """A CLIP with pictures and texts returns scores of pairs: which tower shall be looked at, it does not say."""
    transformers = pytest.importorskip("transformers", minversion="5.23")
    tower = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)
    config = transformers.CLIPConfig(vision_config=dict(tower, image_size=64, patch_size=16), projection_dim=24,
                                     text_config=dict(tower, vocab_size=50, max_position_embeddings=12,
                                                      bos_token_id=1, eos_token_id=2))
    model = transformers.CLIPModel(config).eval()
    both = {"pixel_values": images(2), "input_ids": torch.arange(1, 9).view(2, 4)}
    with pytest.raises(ValueError, match="CLIPModel has no scores.*diagnose the tower inside"):
        pc.diagnose(model, both, **GRID)
    assert len(pc.diagnose(model.vision_model, both["pixel_values"], **GRID).settings) == 4  # the remedy


# --- the recommendation


def test_the_interval_is_wilsons():
    """Its ends solve `|p - share| = z sqrt(p (1 - p) / n)`."""
    for count, hits in ((64, 63), (10, 0), (200, 150), (1, 1)):
        for end in share_interval(hits, count):
            assert abs(end - hits / count) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / count), abs=1e-6)


def test_the_interval_of_likeness_is_students():
    """Its quantile is that of scipy; fewer than 4 items say nothing. Where cosines are skewed it is a little narrow."""
    student = pytest.importorskip("scipy.stats").t
    for count, error in ((4, 0.01), (8, 1e-3), (36, 1e-5), (500, 1e-5)):
        cosines = torch.rand(count, generator=torch.Generator().manual_seed(count), dtype=torch.float64) * 0.2
        reach = student.ppf(0.975, count - 1) * cosines.std().item() / math.sqrt(count)
        low, high = mean_interval(cosines)
        assert (high - low) / 2 == pytest.approx(reach, rel=error) and low + high == pytest.approx(2 * cosines.mean())
    assert mean_interval(torch.tensor([0.99, 0.99, 0.99])) == (-1, 1)
    assert mean_interval(torch.ones(40)) == (1, 1)
    holds = [mean_interval(row)[0] <= 20 / 21 for row in
             torch.rand(2000, 36, generator=torch.Generator().manual_seed(0)) ** (1 / 20)]  # their mean is 20 / 21
    assert 0.93 < sum(holds) / len(holds) < 0.97


def test_a_mean_alone_recommends_nothing():
    """Of two settings with the same likeness, the cheaper one has reached it by a few items, and so does not count."""
    sure, unsure = (Measured("tome", keep, flops, None, None, None, 0.93, (low, 0.96), None)
                    for keep, flops, low in ((0.9, 0.6, 0.91), (0.8, 0.4, 0.89)))
    best, reason = _recommend([unsure, sure], [], 64, 0.9, 0)
    assert best == 1 and "likeness 0.930 [0.910, 0.960]" in reason
    best, reason = _recommend([unsure], [], 64, 0.9, 0)
    assert best is None and "the lower end of the mean likeness is at most 0.890" in reason


@pytest.mark.parametrize("target", (0.5, 0.8, 0.9, 0.95, 0.99))
def test_no_recommendation_where_full_agreement_would_not_do(target):
    needed = items_needed(target)
    assert share_interval(needed, needed)[0] >= target > share_interval(needed - 1, needed - 1)[0]


def test_the_cheapest_that_reaches_the_target(vit, images):
    x = images(40)
    found = pc.diagnose(vit, x, target=0.5, **GRID)
    good = [i for i, one in enumerate(found.settings) if one.agreement[0] >= 0.5]
    assert found.recommended == min(good, key=lambda i: found.settings[i].flops)
    chosen = found.settings[found.recommended]
    assert f"{chosen.method} at keep {chosen.keep:g}" in found.reason and f"{chosen.same} of 40" in found.reason
    assert f": {100 * (1 - chosen.flops):.0f} % fewer FLOPs" in found.reason
    assert "margin" in found.reason  # what the phase diagram says of the keys
    few = pc.diagnose(vit, x[:34], **GRID)
    assert few.recommended is None and "at least 35" in few.reason
    strict = pc.diagnose(vit, x, target=share_interval(40, 40)[0], keeps=(0.5,), seconds=0)
    assert all(one.same < 40 for one in strict.settings)
    assert strict.recommended is None and "No setting reaches" in strict.reason


def test_without_answers_the_likeness_has_to_reach_it(build_vit, images):
    found = pc.diagnose(build_vit(num_classes=0), images(36), **GRID)
    assert all(one.same is None for one in found.settings)
    low = [one.likeness_interval[0] for one in found.settings]
    assert max(low) > 0.9 and low[found.recommended] >= 0.9
    costs = [one.flops for one in found.settings]
    assert all(end < 0.9 for end, cost in zip(low, costs, strict=True) if cost < costs[found.recommended])


def test_what_is_shown(vit, images):
    pytest.importorskip("matplotlib").use("agg")
    found = pc.diagnose(vit, images(36), target=0.2, **GRID)
    text, page = str(found), found._repr_html_()
    for part in ("tome <-" if found.recommended < 2 else "pitome <-", "mean cosine", "Not known", found.reason):
        assert part in text
    assert page.count("<table>") == 2 and page.count("<tr>") == 4 + 1 + 3 + 1 and "&lt;-" in page
    assert page.index(found.reason.split(":")[0]) < page.index("<table>")  # the recommendation first
    axes = found.plot()
    assert len(axes.lines) >= 2 and axes.get_xlabel()
    drawn = [line.get_segments() for line in axes.collections]
    assert len(drawn) == 2 and [len(lines) for lines in drawn] == [2, 2]  # the interval of each setting


def test_likeness_is_drawn_with_its_interval(build_vit, images):
    """And where a method has none, nothing of it is drawn."""
    pytest.importorskip("matplotlib").use("agg")
    found = pc.diagnose(build_vit(num_classes=0), images(5), **GRID)
    unlike = [dataclasses.replace(one, likeness=None, likeness_interval=None) for one in found.settings[2:]]
    found = dataclasses.replace(found, settings=(*found.settings[:2], *unlike))
    tome, pitome = (lines.get_segments() for lines in found.plot().collections)
    shown = [(low[0], low[1], high[1]) for low, high in tome]
    for drawn, one in zip(shown, sorted(found.settings[:2], key=lambda one: one.flops), strict=True):
        assert drawn == pytest.approx((one.flops, *one.likeness_interval))
    assert len(pitome) == 0


# --- what the records of this project say


def ranked(task: str, accuracy: str) -> tuple[float, float]:
    """Spearman's correlation of likeness and accuracy over all settings of a record, and over those above 0.8."""
    scipy = pytest.importorskip("scipy.stats")
    cells = json.loads((RESULTS / f"{task}.json").read_text())["cells"]
    whole, pairs = cells["whole"]["outcomes"], []
    for cell in cells.values():
        outcomes = cell["outcomes"]
        if cell["arm"] == "whole" or ("predicted" if accuracy == "correct" else "likeness") not in outcomes:
            continue
        if accuracy == "correct":
            same = [a == b for a, b in zip(outcomes["predicted"], whole["predicted"], strict=True)]
        else:
            same = outcomes["likeness"]
        pairs.append((sum(same) / len(same), sum(outcomes[accuracy]) / len(same)))
    near = [pair for pair in pairs if pair[0] > 0.8]
    return tuple(scipy.spearmanr(*zip(*chosen, strict=True)).statistic for chosen in (pairs, near))


@pytest.mark.parametrize("task, accuracy, over_all, near", [
    ("vision-digits", "correct", 0.99, 0.96), ("vision-emoji", "correct", 0.88, None),
    ("vision-stamp-groups", "correct", 0.81, None), ("vision-scenes-wide", "auc", 0.89, 0.50),
    ("vision-scenes", "auc", 0.80, 0.04), ("vision-stamps", "auc", 0.89, None),
])
def test_likeness_ranks_accuracy_as_the_docstring_says(task, accuracy, over_all, near):
    """If a record changes, the docstring of `diagnose` has to."""
    found = ranked(task, accuracy)
    assert found[0] == pytest.approx(over_all, abs=0.0051)
    assert f"{over_all:.2f}".lstrip("0") in pc.diagnose.__doc__
    if near is not None:
        assert found[1] == pytest.approx(near, abs=0.0051) and f"{near:.2f}".lstrip("0") in pc.diagnose.__doc__


def test_where_keys_are_tight_the_diagram_has_few_wrong_merges():
    """`chance` is where ToMe's merges begin to join clusters: at other widths and numbers of tokens too."""
    rows = json.loads((RESULTS / "law-phase.json").read_text())["diagram"]
    chance = math.sqrt(2 * math.log(196) / 64)
    tight = [row["wrong/tome"][0] for row in rows if row["tightness"] >= chance]
    assert len(tight) > 100 and max(tight) < 0.03 < max(row["wrong/tome"][0] for row in rows)
    gains = [row["wrong/tome"][0] - row["wrong/pitome"][0] for row in rows if row["tightness"] >= chance]
    assert max(gains) < 0.01  # nothing for energy to gain

    from pitome_core.experiments.law import synthetic

    for width, tokens in ((32, 196), (64, 50), (128, 196)):
        for spread in (0.5, 1.0, 1.5, 2.0, 3.0):
            values = synthetic.measure(synthetic.Setting(0.3, spread, tokens=tokens, width=width), ("tome",), 10)
            if values["tightness"].mean() >= math.sqrt(2 * math.log(tokens) / width):
                assert values["wrong/tome"].mean() < 0.05, (width, tokens, spread)


def test_measures_of_keys():
    """Rotations and lengths change nothing; a common direction makes the mean cosine and no tightness."""
    x = torch.randn(2, 30, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).Q
    scaled = 3 * x @ turn
    assert torch.allclose(mean_cosine(x), mean_cosine(scaled)) and torch.allclose(tightness(x), tightness(scaled))
    shifted = normalize(x, dim=-1) + 5 * turn[0]
    assert (mean_cosine(shifted) > 0.9).all() and (tightness(shifted) - tightness(x)).abs().max() < 0.1
