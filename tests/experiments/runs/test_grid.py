"""The grid: what is in it, equal tokens for everybody, and a model that is left as it was found."""

from __future__ import annotations

import json

import pytest
import torch

import pitome_core as pc
from pitome_core.experiments.records.cells import Cell
from pitome_core.experiments.runs import grid

SIDE = 64  # of the tiny ViT: 4 x 4 patches of 16 pixels
GRID = grid.cells(img_size=SIDE, patch=16)
ISSUE = {  # what has to be compared, and what it is
    "pitome": ("pitome", {}),
    "pitome-released-deit": ("pitome", {"preset": "released-deit"}),
    "pitome-released-mae": ("pitome", {"preset": "released-mae"}),
    "energy-sorted": ("pitome", {"protection": False, "edges": "best"}),
    "tome": ("tome", {}),
    "tofu": ("tofu", {}),
    "dct": ("dct", {}),
    "crossget": ("crossget", {}),
    "mctf": ("mctf", {}),
    "diffrate": ("diffrate", {}),
    "atc": ("atc", {"linkage": "average"}),
    "topk-attention": ("topk_attention", {}),
    "random-prune": ("random_prune", {}),
    "random-merge": ("random_merge", {}),
}
OFF = ("pitome", "energy-sorted", "tome", "tofu", "crossget", "mctf", "atc", "diffrate", "evit")  # these count sizes


@pytest.fixture(scope="module")
def vit(build_vit):
    return build_vit()


def one_of_each() -> list[Cell]:
    """The strongest cell of every arm, and that with proportional attention off."""
    return list({(cell.arm, cell.proportional): cell for cell in GRID}.values())


each = pytest.mark.parametrize("cell", one_of_each(), ids=lambda cell: cell.key)


# --- what is in it


def test_keys_are_unique_and_the_whole_model_comes_first():
    keys = [cell.key for cell in GRID]
    assert len(set(keys)) == len(keys) and GRID[0] == Cell(grid.WHOLE) and keys[0] == "whole"
    assert keys.count("whole") == 1 and all(cell.key == cell.key.strip() for cell in GRID)


def test_the_protocols_arms_are_all_there():
    for name, (method, options) in ISSUE.items():
        assert (grid.ARMS[name].method, dict(grid.ARMS[name].options)) == (method, options)
    assert {cell.arm for cell in GRID} == {*grid.ARMS, grid.WHOLE, grid.GRID_POOL, grid.LOWER}
    assert all(arm.method in pc.methods() for arm in grid.ARMS.values()) and {*ISSUE} <= {*grid.ARMS}
    assert {*grid.LABELS} == {cell.arm for cell in GRID} and len({*grid.LABELS.values()}) == len(grid.LABELS)


def test_every_arm_has_every_strength():
    keys = {cell.key for cell in GRID}
    for name in grid.ARMS:
        for keep in ("0.95", "0.9", "0.85", "0.8"):
            tails = [f"/seed{i}" for i in range(5)] if name in ("random-prune", "random-merge") else [""]
            assert {f"{name}@{keep}{tail}" for tail in tails} <= keys
    off = {key for key in keys if "/off" in key}
    assert {f"{name}@0.9/off" for name in OFF} <= off
    assert all("@0.9/off" in key for key in off)
    sizes = len(grid.ARMS) * 4 + 2 * 4 * 4 + len(off) + 2  # four more seeds of two arms; whole model, pooling
    assert len(keys) == sizes + len([c for c in GRID if c.arm == grid.LOWER])


def test_who_counts_sizes_is_switched_off_at_one_strength(vit, images):
    """Where the grid has no such cell, it would be the same one, or the preset has it off."""
    x = images(2)
    for name, arm in grid.ARMS.items():
        if arm.also_off or name.endswith("-hidden") or arm.options.get("preset"):
            continue
        outs = []
        for proportional in (None, False):
            with torch.no_grad(), grid.applied(Cell(name, 0.8, proportional), vit) as running:
                outs.append(running(x))
        assert torch.equal(*outs), name


def test_part_of_the_grid_is_part_of_the_whole():
    part = grid.cells(["tome", "random-prune"], [0.9], img_size=SIDE, patch=16)
    assert {*part} <= {*GRID} and part[0].arm == grid.WHOLE
    seeds = [f"random-prune@0.9/seed{i}" for i in range(5)]
    assert [cell.key for cell in part[1:]] == ["tome@0.9", "tome@0.9/off", *seeds]
    assert [cell.key for cell in grid.cells(["tome"], [0.85])] == ["whole", "tome@0.85"]
    assert grid.cells(["tome", "whole", "tome"], [0.9, 0.9]) == grid.cells(["tome"], [0.9])
    assert grid.cells([]) == [Cell(grid.WHOLE)]


@pytest.mark.parametrize(
    "size, patch, expected",
    [(224, 14, [210, 196, 182, 168, 154, 140]), (64, 16, [48, 32]), (112, 14, None), (None, 14, [])],
)
def test_lower_resolutions_are_smaller_multiples_of_the_patch(size, patch, expected):
    found = [cell.pixels for cell in grid.cells([grid.LOWER], img_size=size, patch=patch) if cell.arm == grid.LOWER]
    assert expected is None or found == expected
    assert found == sorted(set(found), reverse=True) and all(side % patch == 0 and side < size for side in found)


@pytest.mark.parametrize(
    "arms, keeps, words",
    [
        (["tome", "best"], [0.9], "no method 'best' in this experiment; there are pitome, .*tome.*lower-resolution"),
        (None, [0.9, 1.0], "keep 1.0 must lie between 0 and 1"),
        (None, [0.0], "keep 0.0 must lie"),
        (None, [-0.5], "keep -0.5 must lie"),
    ],
)
def test_what_is_not_in_the_grid_is_refused(arms, keeps, words):
    with pytest.raises(ValueError, match=words):
        grid.cells(arms, keeps)


def test_a_description_makes_the_cell_again():
    for cell in GRID:
        about = json.loads(json.dumps(cell.describe()))
        names = ("arm", "keep", "proportional", "seed", "pixels")
        assert Cell(**{name: about.get(name) for name in names}) == cell
        assert about["label"] == grid.LABELS[cell.arm]


# --- what it does to a model


def state(model) -> tuple:
    """All of a model that a patch could touch: attributes of every module, parameters and buffers bit for bit."""
    attributes = [(name, sorted(vars(module))) for name, module in model.named_modules()]
    return attributes, {name: value.clone() for name, value in model.state_dict().items()}, repr(model)


def unchanged(before: tuple, after: tuple) -> bool:
    return (
        before[0] == after[0] and before[2] == after[2] and before[1].keys() == after[1].keys()
        and all(torch.equal(value, after[1][name]) for name, value in before[1].items())
    )


def test_a_changed_model_is_seen(build_vit):
    """The comparison can fail: a patch, an attribute, a bit of a weight."""
    model = build_vit()
    before = state(model)
    assert unchanged(before, state(model))
    with pc.patched(model, "tome", 0.9):
        assert not unchanged(before, state(model))
    with torch.no_grad():
        model.blocks[1].mlp.fc1.weight[0, 0] *= 1 + 2**-20
    assert not unchanged(before, state(model))


@torch.no_grad()
@each
def test_the_model_is_left_as_it_was(vit, images, cell):
    x = images(2)
    before, output = state(vit), vit(x)
    with grid.applied(cell, vit) as running:
        side = running.patch_embed.img_size[0]
        inside = running(torch.nn.functional.interpolate(x, size=(side, side)))
    assert unchanged(before, state(vit)) and torch.equal(output, vit(x))
    assert inside.isfinite().all() and torch.equal(inside, output) == (cell.arm == grid.WHOLE)
    with pytest.raises(ZeroDivisionError), grid.applied(cell, vit):
        raise ZeroDivisionError
    assert unchanged(before, state(vit)) and torch.equal(output, vit(x))


@torch.no_grad()
@pytest.mark.parametrize("keep", [0.95, 0.8])
def test_all_arms_have_the_same_tokens_in_every_layer(build_vit, images, keep):
    """And these are the ones that really run, and those that the record will state."""
    model, x = build_vit(img_size=80), images(1, 80)
    seen = {}
    for cell in grid.cells(list(grid.ARMS), [keep]):
        if cell.arm == grid.WHOLE:
            continue
        with grid.applied(cell, model) as running, pc.record(running) as trace:
            running.forward_features(x)
        ran = [25, *(layer.plan.num_tokens for layer in trace.layers)]
        assert ran == grid.cost(cell, model)["tokens"], cell.key
        seen[cell.key] = ran
    assert len({tuple(ran) for ran in seen.values()}) == 1 and len(seen) >= len(grid.ARMS)
    left = 25
    for entering, leaving in zip(ran, ran[1:], strict=False):
        assert entering == left and leaving == entering - int(entering - entering * keep + 1e-9)
        left = leaving


@torch.no_grad()
def test_grid_pooling_leaves_a_quarter_before_the_first_block(vit, images):
    cell = Cell(grid.GRID_POOL)
    with grid.applied(cell, vit) as running, pc.record(running) as trace:
        running.forward_features(images(2))
    corners = torch.arange(16).view(4, 4)
    windows = torch.arange(4).view(2, 2).repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert torch.equal(trace.assignment[0][corners], windows)
    assert grid.cost(cell, vit)["tokens"] == [16, 4, 4, 4]


@each
def test_costs_are_those_of_the_patched_model(vit, cell):
    found, whole = grid.cost(cell, vit), pc.flops(vit).total
    if cell.arm == grid.LOWER:
        n = (cell.pixels // 16) ** 2
        tokens, total = [n] * 4, None
    elif cell.arm == grid.WHOLE:
        tokens, total = [16] * 4, whole
    elif cell.arm == grid.GRID_POOL:
        tokens, total = [16, 4, 4, 4], None
    else:
        arm = grid.ARMS[cell.arm]
        with pc.patched(vit, arm.method, cell.keep, proportional=cell.proportional, **arm.options):
            total = pc.flops(vit).total
            tokens = [n - 1 for n in pc.flops(vit).tokens]
    assert found["tokens"] == tokens
    assert found["share"] == pytest.approx(found["gmacs"] * 1e9 / whole, abs=1e-3)
    assert total is None or found["gmacs"] == pytest.approx(total / 1e9, abs=1e-6)
    assert 0 < found["share"] <= 1 and (found["share"] == 1) == (cell.arm == grid.WHOLE)
    assert pc.flops(vit).total == whole


@torch.no_grad()
@pytest.mark.parametrize("arm", ["random-merge", "random-prune"])
def test_seeds_are_other_choices_and_one_seed_is_one_choice(build_vit, images, arm):
    model, x = build_vit(img_size=112), images(2, 112)
    plans = []
    for cell in [c for c in grid.cells([arm], [0.9]) if c.seed is not None and c.proportional is None] * 2:
        with grid.applied(cell, model) as running, pc.record(running) as trace:
            running.forward_features(x)
        plans.append(tuple(trace.assignment[0].tolist()))
    assert len(plans) == 10 and len(set(plans)) == 5 and plans[:5] == plans[5:]
