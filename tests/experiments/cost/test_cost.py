"""Costs: the free merge, the turns that variants take, what a cell says, and a record that survives a kill."""

from __future__ import annotations

import argparse
import json
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import pitome_core as pc
from pitome_core.experiments.cost import command as cost
from pitome_core.patching import find_patch

timm = pytest.importorskip("timm")
sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tools"))
import gpu_check  # noqa: E402


def seconds_of(durations: dict[str, float]):
    """A stopwatch that knows how long calls take and notes their order; calls are named by what they return."""
    seen = []

    def timed(call, times):
        seen.append((call(), times))
        return durations[call()]

    return timed, seen


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    cost.configure(parser)
    return parser.parse_args(words)


TINY = ("--models", "vit_tiny_patch16_224", "--size", "48", "--batch", "1", "2", "--keep", "0.8", "--dtype", "float32",
        "--seconds", "0.01", "--repeats", "5")


@pytest.fixture
def on_cpu(monkeypatch):
    monkeypatch.setenv("PITOME_DEVICE", "cpu")


# --- the free merge


def test_free_merge_is_a_slice_between_attention_and_mlp(build_vit, images):
    """Against the blocks written out: the last k tokens go, nothing else happens."""
    model, x = build_vit(), images(2)
    free = cost.free_merge(cost.twin(model), keep=0.7)
    removed = pc.schedule(model, keep=0.7).remove
    assert min(removed) > 0
    with torch.no_grad():
        tokens = model._pos_embed(model.patch_embed(x))
        for block, k in zip(model.blocks, removed, strict=True):
            tokens = tokens + block.attn(block.norm1(tokens))
            tokens = tokens[:, : tokens.shape[1] - k]
            tokens = tokens + block.mlp(block.norm2(tokens))
        expected = model.forward_head(model.norm(tokens))
        torch.testing.assert_close(free(x), expected)


def test_free_merge_has_the_tokens_of_a_method_and_no_cost(build_vit):
    model = build_vit()
    free, merged = cost.free_merge(cost.twin(model), 0.7), pc.apply(cost.twin(model), "pitome", 0.7)
    assert pc.flops(free).tokens == pc.flops(merged).tokens
    variants = cost.Workshop(torch.device("cpu")).variants(
        cost.Cell("vit_tiny_patch16_224", 1, "float32", 0.7, size=64)
    )
    macs = variants.macs
    assert macs["free"] < macs["tome"] < macs["pitome"] < macs["whole"]
    assert list(variants.calls) == ["whole", "free", "pitome", "tome"]


def test_a_twin_shares_weights_and_is_patched_alone(build_vit, images):
    model, x = build_vit(), images(1)
    before = model(x)
    other = cost.free_merge(cost.twin(model), 0.7)
    assert all(a is b for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert find_patch(model) is None and torch.equal(model(x), before)
    assert not torch.allclose(other(x), before)
    torch.testing.assert_close(pc.remove(other)(x), before)


@pytest.mark.parametrize("name", [n for n, shape in cost.SHAPES.items() if isinstance(shape, cost.Tower)])
def test_the_shapes_are_supported(name):
    """Every tower of `make gpu` can be merged; on the meta device nothing is computed."""
    shape = cost.SHAPES[name]
    with torch.device("meta"):
        model = timm.create_model(shape.timm, pretrained=False, **shape.arguments)
    whole = pc.flops(model).total
    assert pc.flops(pc.apply(model, "pitome", 0.9, restore=shape.restore)).total < 0.8 * whole


@pytest.mark.parametrize("cells", [cost.gpu_cells(), cost.cpu_cells()], ids=["gpu", "cpu"])
def test_cells_are_named_apart(cells):
    assert len({cell.key for cell in cells}) == len(cells) == len(set(cells))


def test_every_shape_is_measured_where_it_belongs():
    assert {cell.model for cell in cost.gpu_cells()} == set(cost.SHAPES)
    assert set(cost.STEPS) <= {cell.model for cell in cost.cpu_cells()}
    assert all(cell.mode != "graph" for cell in cost.cpu_cells())


def test_what_says_most_comes_first_on_a_gpu():
    """A lent device may be gone after a minute: every shape once at the paper's ratio, then the grid."""
    cells = cost.gpu_cells()
    first = cells[:14]
    assert {cell.model for cell in first} == set(cost.SHAPES) and {cell.keep for cell in first} == {0.9}
    assert first[0] == cost.Cell("deit_s", 1, "bfloat16", 0.9)
    for part in (first, cells[14:]):
        built = [(cell.model, cell.dtype) for cell in part]
        changes = sum(a != b for a, b in zip(built, built[1:], strict=False))
        assert changes == len(set(built)) - 1, "each model is built once per dtype"


# --- rounded counts, steps alone, the share of the steps


def test_rounded_schedules_have_round_counts(build_vit):
    schedule = pc.schedule(build_vit(img_size=112), keep=0.8)
    even = cost.rounded(schedule, 8)
    assert cost.rounded(schedule, 1) is schedule
    assert even.tokens[0] == schedule.tokens[0] and even.prefix == 1 and sum(even.remove) > 0
    for tokens, wanted in zip(even.tokens[1:], schedule.tokens[1:], strict=True):
        assert wanted <= tokens < wanted + 8 and (tokens % 8 == 0 or tokens == even.tokens[0])


def test_a_rounded_cell_rounds_for_every_variant():
    cell = cost.Cell("vit_tiny_patch16_224", 1, "float32", 0.9, multiple=8)
    tokens = cost.Workshop(torch.device("cpu")).variants(cell).about["tokens"]
    assert tokens[0] == 197 and tokens[-1] < 100 and all(count % 8 == 0 for count in tokens[1:])
    assert "multiples of 8" in cell.key


def test_merging_in_one_layer_of_some_ends_with_about_as_many_tokens(on_cpu):
    workshop = cost.Workshop(torch.device("cpu"))
    tokens = {n: workshop.variants(cost.Cell("vit_tiny_patch16_224", 1, "float32", 0.9, every=n)).about["tokens"]
              for n in (1, 3)}
    assert [a != b for a, b in pairwise(tokens[3])] == [True, False, False] * 4
    assert abs(tokens[1][-1] - tokens[3][-1]) <= 12, "rounded in twelve layers and in four"
    assert "every 3 layers" in cost.Cell("vit_tiny_patch16_224", 1, "float32", 0.9, every=3).key


def test_compiled_steps_are_a_mode(on_cpu):
    cell = cost.Cell("vit_tiny_patch16_224", 1, "float32", 0.9, "step", size=64)
    variants = cost.Workshop(torch.device("cpu")).variants(cell)
    assert [find_patch(call.func).compile_step for call in variants.calls.values() if find_patch(call.func)] == [
        False, True, True], "the free merge has nothing to compile"


@pytest.mark.parametrize("field", [{"mode": "step"}, {"every": 2}, {"multiple": 8}])
def test_a_cell_says_what_it_ran(field):
    """Where nothing merges layer by layer, a cell of another name would be the plain one."""
    with pytest.raises(ValueError, match="no layers that merge"):
        cost.Workshop(torch.device("cpu")).variants(cost.Cell("step_64", 1, "float32", 0.9, **field))


def test_a_step_is_measured_alone():
    workshop = cost.Workshop(torch.device("cpu"), shapes={"step": cost.Step(16, 24, 2)})
    measured = cost.measure(cost.Cell("step", 2, "bfloat16", 0.75), workshop, repeats=5, seconds=0.01)
    assert measured["tokens"] == [17, 13] and set(measured["variants"]) == {"pitome", "tome"}
    assert measured["variants"]["pitome"]["macs"] == 16**2 * 12 + 17 * 24
    assert all("speedup" not in variant for variant in measured["variants"].values())


def test_the_share_of_the_steps_is_a_share(build_vit, images):
    model, x, merge = pc.apply(build_vit(), keep=0.7), images(1), cost.LayerStep.merge
    with torch.no_grad():
        assert 0 < cost.step_share(lambda: model(x)) < 1
        assert cost.step_share(lambda: pc.remove(model)(x)) == 0
    assert cost.LayerStep.merge is merge


def test_the_operators_of_a_step_are_told(on_cpu, tmp_path, build_vit, images):
    model, x = pc.apply(build_vit(), keep=0.7), images(1)
    with torch.no_grad():
        told = cost.step_operators(lambda: model(x), most=99)
    layers = len(model.blocks)
    assert told["bmm"][1] == told["sort"][1] == told["threshold"][1] == layers
    assert "addmm" not in told and "others" not in told, "no MLP is told, and nothing is left"
    path = tmp_path / "cost.json"
    cost.main(arguments(*TINY, "--batch", "1", "--operators", "--output", str(path)))
    (cell,) = json.loads(path.read_text())["cells"].values()
    told = cell["variants"]["pitome"]["operators"]
    assert len(told) == 17 and told["others"][0] > 0, "sixteen, and the rest in one"
    assert len(cell["variants"]["tome"]["operators"]) == 17 and "operators" not in cell["variants"]["free"]


def test_an_estimate_grows_with_the_work(on_cpu, capsys):
    cells = [cost.Cell("vit_tiny_patch16_224", batch, "float32", 0.9, mode) for batch in (1, 64)
             for mode in ("eager", "compile")]
    one, compiled, many, _ = cost.estimate(cells, torch.device("cpu"), seconds=1, repeats=5)
    assert one < many and one + 100 < compiled
    assert cost.main(arguments(*TINY, "--estimate")) == 0
    assert "minutes in all" in capsys.readouterr().out


def test_a_note_is_kept(on_cpu, tmp_path):
    path = tmp_path / "cost.json"
    cost.main(arguments(*TINY, "--batch", "1", "--note", "a noisy machine", "--output", str(path)))
    assert [run["note"] for run in json.loads(path.read_text())["runs"]] == ["a noisy machine"]


# --- prefill


def test_prefill_counts_agree_with_torch():
    """torch's counter sees the unfused attention whole; ours counts each token with those up to itself."""
    transformers = pytest.importorskip("transformers")
    from torch.utils.flop_counter import FlopCounterMode

    shape, tokens = cost.Prefill(32, 56, 2, 4, 40), 11
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
        vocab_size=40, attn_implementation="eager",
    )
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(inputs_embeds=torch.randn(1, tokens, 32), logits_to_keep=1)
    upper_triangle = 2 * tokens**2 * 32 - tokens * (tokens + 1) * 32
    assert counter.get_total_flops() == 2 * (shape.macs(tokens) + 2 * upper_triangle)


@pytest.mark.parametrize("keep", [0.95, 0.9, 0.85])
def test_prefill_reads_what_the_tower_leaves(keep):
    shape = cost.SHAPES["llava15_tower"]
    with torch.device("meta"):
        model = timm.create_model(shape.timm, pretrained=False, **shape.arguments)
    counts = pc.flops(pc.apply(model, "pitome", keep, restore=False))
    assert counts.tokens[0] - 1 == 576
    assert cost.Prefill().image_tokens(keep) == counts.tokens[-1] - 1


def test_a_prefill_cell_has_both_prompts():
    pytest.importorskip("transformers")
    shapes = {"small": cost.Prefill(32, 56, 2, 4, 40, image=64, text=4, tower_layers=4)}
    workshop = cost.Workshop(torch.device("cpu"), shapes=shapes)
    measured = cost.measure(cost.Cell("small", 2, "float32", 0.8), workshop, repeats=5, seconds=0.01)
    assert measured["tokens"] == [68, 4 + shapes["small"].image_tokens(0.8)]
    assert set(measured["variants"]) == {"whole", "merged"}
    assert measured["variants"]["merged"]["implied"] > 1


# --- turns and numbers


def test_variants_take_turns_and_nobody_always_begins():
    durations = {"a": 1.0, "b": 2.0, "c": 3.0}
    timed, seen = seconds_of(durations)
    calls = {name: (lambda name=name: name) for name in durations}
    samples, times = cost.alternate(calls, timed, repeats=6, seconds=100, shortest=0)
    order = "".join(name for name, _ in seen)
    assert order == "abc" + "abcbcacab" * 2
    assert samples == {name: [spent] * 6 for name, spent in durations.items()} and times == dict.fromkeys("abc", 1)


def test_rounds_end_with_the_time_but_not_too_early():
    timed, _ = seconds_of({"a": 1.0})
    for seconds, rounds in ((8, 8), (1000, 20), (0, cost.FEWEST)):
        samples, _ = cost.alternate({"a": lambda: "a"}, timed, repeats=20, seconds=seconds, shortest=0)
        assert len(samples["a"]) == rounds


def test_short_calls_are_timed_together():
    timed, seen = seconds_of({"a": 0.001, "b": 0.5})
    calls = {"a": lambda: "a", "b": lambda: "b"}
    _, times = cost.alternate(calls, timed, repeats=5, seconds=0, shortest=0.02)
    assert times == {"a": 20, "b": 1} and ("a", 20) in seen


def test_the_clock_of_the_processor_divides_by_the_calls():
    calls = []
    assert 0 <= cost.stopwatch(torch.device("cpu"))(lambda: calls.append(1), 7) < 1
    assert len(calls) == 7


def test_quartiles():
    assert cost.quartiles([4.0, 1.0, 2.0, 3.0, 5.0]) == [2.0, 3.0, 4.0]
    assert cost.quartiles([1 / 3], digits=3) == [0.333] * 3


def test_speed_ups_are_paired_within_rounds():
    """A machine that slows down by half in the middle changes no ratio."""
    slow = [1.0, 1.0, 2.0, 2.0, 2.0]
    samples = {"whole": [2 * s for s in slow], "free": slow, "pitome": [1.25 * s for s in slow]}
    told = cost.summarize(samples, {"whole": 300, "free": 100, "pitome": 120})
    assert told["free"]["speedup"] == [2.0] * 3 and told["free"]["implied"] == 3
    assert "of_free" not in told["free"] and "speedup" not in told["whole"]
    pitome = told["pitome"]
    assert pitome["speedup"] == [1.6] * 3 and pitome["implied"] == 2.5 and pitome["efficiency"] == 0.64
    assert pitome["of_free"] == 0.8 and pitome["over_free"] == 0.2


def test_without_the_whole_model_there_is_no_speed_up():
    told = cost.summarize({"free": [1.0], "tome": [2.0]}, {"whole": 4, "free": 2, "tome": 3})
    assert told == {"free": {"seconds": [1.0] * 3, "macs": 2}, "tome": {"seconds": [2.0] * 3, "macs": 3}}


def test_a_variant_out_of_memory_leaves_the_others():
    def full():
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    class Small(cost.Workshop):
        def variants(self, cell):
            return cost.Variants({"whole": full, "tome": lambda: None}, {"whole": 2, "tome": 1}, {"tokens": [5, 3]})

    cell = cost.Cell("any", 1, "float32", 0.9)
    measured = cost.measure(cell, Small(torch.device("cpu")), repeats=5, seconds=0)
    assert measured["out_of_memory"] == ["whole"] and list(measured["variants"]) == ["tome"]
    assert "out of memory: whole" in "\n".join(cost._lines(cell, measured))


# --- the command and its record


def test_a_cell_is_measured_once(on_cpu, tmp_path, capsys, monkeypatch):
    path = tmp_path / "folder" / "cost.json"
    words = (*TINY, "--output", str(path))
    assert cost.main(arguments(*words)) == 0
    text = path.read_text()
    found = json.loads(text)
    assert len(found["cells"]) == 2 and len(found["runs"]) == 1
    cell = found["cells"]["vit_tiny_patch16_224, batch 2, float32, keep 0.8, eager, 48 px"]
    assert cell["tokens"][0] == 10 and cell["rounds"] == 5 and cell["timm"] == "vit_tiny_patch16_224"
    assert {"seconds", "speedup", "implied", "efficiency", "of_free", "over_free"} <= set(cell["variants"]["pitome"])
    run = found["runs"][0]
    assert run["threads"] == torch.get_num_threads() and run["tf32"] is False and run["code"] and run["device"]
    assert cost.main(arguments(*words)) == 0
    assert path.read_text() == text and "0 cells to measure, 2 measured before" in capsys.readouterr().out

    made = cost.results.provenance
    monkeypatch.setattr(cost.results, "provenance", lambda seed: made(seed) | {"code": "of tomorrow"})
    assert cost.main(arguments(*TINY, "--batch", "1", "--output", str(path))) == 0
    found = json.loads(path.read_text())
    assert [found["runs"][cell["run"]]["code"] == "of tomorrow" for cell in found["cells"].values()] == [True, False]


def test_a_kill_loses_one_cell(on_cpu, tmp_path, monkeypatch):
    path, measure = tmp_path / "cost.json", cost.measure

    def killed(cell, workshop, **options):
        if cell.batch == 2:
            raise KeyboardInterrupt
        return measure(cell, workshop, **options)

    monkeypatch.setattr(cost, "measure", killed)
    with pytest.raises(KeyboardInterrupt):
        cost.main(arguments(*TINY, "--output", str(path)))
    assert [cell["batch"] for cell in json.loads(path.read_text())["cells"].values()] == [1]


def test_a_cell_that_fails_is_told_and_tried_again(on_cpu, tmp_path, capsys):
    path = tmp_path / "cost.json"
    words = (*TINY, "--models", "resnet18", "vit_tiny_patch16_224", "--batch", "1", "--output", str(path))
    assert cost.main(arguments(*words)) == 1
    cells = json.loads(path.read_text())["cells"]
    assert ["error" in cell for cell in cells.values()] == [True, False]
    capsys.readouterr()
    cost.main(arguments(*words, "--list"))
    assert [line[0] for line in capsys.readouterr().out.splitlines()[-2:]] == ["-", "x"]


def test_out_of_memory_is_an_answer_but_no_number(on_cpu, tmp_path, monkeypatch):
    def full(*_, **__):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(cost, "measure", full)
    path = tmp_path / "cost.json"
    assert cost.main(arguments(*TINY, "--output", str(path))) == 1  # nothing at all was measured
    assert all(cell["out_of_memory"] == ["all"] for cell in json.loads(path.read_text())["cells"].values())


def test_the_time_that_is_left_ends_a_run(on_cpu, tmp_path, capsys):
    path = tmp_path / "cost.json"
    assert cost.main(arguments(*TINY, "--minutes", "0", "--output", str(path))) == 1
    assert "2 cells not measured within 0 minutes" in capsys.readouterr().out


def test_another_file_is_not_overwritten(on_cpu, tmp_path):
    path = tmp_path / "other.json"
    path.write_text('{"format": 1}')
    with pytest.raises(cost.results.RecordError, match="--output"):
        cost.main(arguments(*TINY, "--output", str(path)))


def test_graphs_need_cuda(on_cpu, tmp_path):
    with pytest.raises(SystemExit, match="eager, step or compile"):
        cost.main(arguments(*TINY, "--mode", "graph", "--output", str(tmp_path / "cost.json")))


# --- `make gpu`


def test_make_gpu_finds_the_marked_tests():
    assert {"tests/core/test_gpu.py", "tests/experiments/cost/test_cost.py"} <= set(gpu_check.marked_files())


def test_make_gpu_runs_notebooks_side_by_side_where_it_can(monkeypatch):
    monkeypatch.setattr(gpu_check.os, "cpu_count", lambda: 16)
    assert gpu_check.side_by_side()[:2] == ["-n", "6"]
    monkeypatch.setattr(gpu_check.os, "cpu_count", lambda: 2)
    assert gpu_check.side_by_side() == []


@pytest.mark.parametrize(
    ("cells", "status", "expected"),
    [
        ({"a": {"rounds": 5}, "b": {"out_of_memory": ["all"]}}, 0, 0),
        ({"a": {"rounds": 5}, "b": {"error": "no"}}, 1, 1),
        ({"b": {"out_of_memory": ["all"]}}, 0, 1),
        ({}, 0, 1),
        (None, 0, 1),
    ],
)
def test_costs_without_numbers_are_no_success(cells, status, expected, tmp_path, monkeypatch):
    """Whatever the command's exit status says; None: it wrote nothing."""
    monkeypatch.setattr(gpu_check, "RECORDS", tmp_path)
    if cells is not None:
        (tmp_path / "cost.json").write_text(json.dumps({"cells": cells}))
    monkeypatch.setattr(gpu_check.subprocess, "call", lambda *_, **__: status)
    run = gpu_check.cost(1.0)
    assert run["exit"] == expected and run["cells"] == len(cells or {})
    assert f"{run['measured']} of {run['cells']}" in gpu_check.summary("cost", run)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", list(cost.DTYPES))
@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_cells_on_the_device(dtype, mode):
    """Events, captured graphs and memory: every variant has numbers."""
    cell = cost.Cell("vit_tiny_patch16_224", 2, dtype, 0.8, mode, size=64)
    measured = cost.measure(cell, cost.Workshop(torch.device("cuda")), repeats=5, seconds=0.01)
    assert set(measured["variants"]) == {"whole", "free", "pitome", "tome"}
    for variant in measured["variants"].values():
        assert variant["seconds"][1] > 0
        assert mode != "eager" or variant["bytes_peak"] > variant["bytes_before"] > 0
