"""`pc.apply(..., fused=...)`: whole models by kernels, in Triton's interpreter where there is no GPU."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys

import pytest
import torch

import pitome_core as pc
import pitome_core.experiments.baselines
from pitome_core.patching import find_patch

pytest.importorskip("triton")
timm = pytest.importorskip("timm")
step = pytest.importorskip("pitome_core.fused.step")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
runs = pytest.mark.skipif(DEVICE == "cpu" and not step.interpreted(), reason="needs CUDA or TRITON_INTERPRET=1")

# What a model is patched with. Released presets mix protection, edges and kernels; the first has plain attention.
CASES = {
    "pitome": {},
    "energy-sorted matching, then elu": dict(preset="released-deit"),
    "high and low half, plain means": dict(preset="released-llava", metric="concat-centred", split="high_low",
                                           protection=True, edges="all"),
    "a gate": dict(gate=1.5, kernel="gaussian", metric="hidden", alpha=0.5),
    "tome": dict(method="tome"),
    "one step for two layers": dict(every=2),
}


def run(build_vit, x: torch.Tensor, **arguments):
    """Logits and trace of a small merged ViT."""
    model = pc.apply(build_vit(depth=2).to(DEVICE), keep=0.7, **arguments)
    with torch.no_grad(), pc.record(model) as trace:
        return model, model(x.to(DEVICE)).cpu(), trace


@runs
@pytest.mark.parametrize("case", list(CASES))
def test_models_merge_as_on_the_torch_path(case, build_vit, images):
    x = images(1)
    _, expected, reference = run(build_vit, x, fused=False, **CASES[case])
    model, out, trace = run(build_vit, x, fused=True, **CASES[case])
    assert "fused=True" in repr(model)
    for layer, other in zip(trace.layers, reference.layers, strict=True):
        assert torch.equal(layer.plan.assignment, other.plan.assignment) and torch.equal(layer.size, other.size)
        assert torch.equal(layer.plan.anchor, other.plan.anchor)
        assert (layer.energy is None) == (other.energy is None)
    assert torch.equal(trace.assignment, reference.assignment)
    assert torch.allclose(out, expected, atol=1e-5)


@runs
def test_gradients_are_those_of_the_torch_path(build_vit, images):
    gradients = []
    for fused in (False, True):
        model = pc.apply(build_vit(depth=1).to(DEVICE), keep=0.6, fused=fused)
        model(images(1).to(DEVICE)).square().sum().backward()
        gradients.append([p.grad.cpu() for p in model.parameters()])
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(*gradients, strict=True))


def test_the_choice_is_kept_and_shown(build_vit):
    model = pc.apply(build_vit(), fused="auto")
    assert pc.settings(model)["fused"] == "auto" and "fused=auto" in repr(model)
    twin = pc.apply(build_vit(), **pc.settings(model))
    assert find_patch(twin).fused == "auto" and pc.settings(pc.apply(build_vit()))["fused"] is False


@pytest.mark.skipif(DEVICE == "cuda", reason="there, kernels merge")
def test_nothing_changes_on_a_cpu(build_vit):
    """`auto` patches with the very functions that `fused=False` does."""
    auto, off = find_patch(pc.apply(build_vit(), fused="auto")), find_patch(pc.apply(build_vit()))
    assert auto.merge_tokens is off.merge_tokens and auto.size_bias is off.size_bias and "fused" not in off.describe()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (dict(method="tofu"), "no kernels for method 'tofu'"),
        (dict(score="shuffled"), "score='shuffled'"),
        (dict(split="random"), "split='random'"),
    ],
)
def test_what_is_not_covered_is_refused(arguments, reason, build_vit):
    model = build_vit()
    with pytest.raises(ValueError, match=reason):
        pc.apply(model, fused=True, **arguments)
    with pytest.raises(TypeError, match="fused must be True or False"):
        pc.apply(model, fused="on")
    assert "_pitome_patch" not in vars(model)


@runs
@pytest.mark.parametrize("options", [{}, {"score": "shuffled"}], ids=str)
def test_what_is_covered_is_asked_once(options, build_vit, images, monkeypatch):
    """At `apply`, for every layer that merges; no forward asks again, and a copy of the model does not either."""
    asked, not_covered = [], step.not_covered
    monkeypatch.setattr(step, "not_covered", lambda *about: asked.append(about) or not_covered(*about))
    model, x = build_vit(depth=2), images(1)
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)  # `auto` looks for kernels then
        pc.apply(model, keep=0.8, fused="auto", **options)
    assert len(asked) == 2
    with torch.no_grad():
        outputs = [one(x) for one in (model, model, pickle.loads(pickle.dumps(model)), copy.deepcopy(model))]
    assert len(asked) == 2 and all(torch.equal(out, outputs[0]) for out in outputs)


@runs
def test_tensors_that_kernels_cannot_take_are_refused(build_vit, images):
    model = pc.apply(build_vit().double(), fused=True, keep=0.8)
    with pytest.raises(ValueError, match="no kernels for torch.float64"):
        model(images(1).double())


def test_without_interpreter_the_device_has_to_be_cuda(monkeypatch, build_vit, images):
    monkeypatch.setattr(step, "_INTERPRETED", False)
    model = pc.apply(build_vit(), fused=True, keep=0.8)
    with pytest.raises(ValueError, match="for CUDA, the tokens are on the device 'cpu'"):
        model(images(1))


def test_without_triton_the_torch_path_merges(monkeypatch, build_vit):
    monkeypatch.setattr(step, "operators", None)
    with pytest.raises(ValueError, match="fused=True cannot merge: "):
        pc.apply(build_vit(), fused=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert find_patch(pc.apply(build_vit())).merge_tokens is find_patch(pc.apply(build_vit(), fused=False)).merge_tokens


LAUNCHES = """
import collections, json
import timm, torch
from torch._dynamo.backends.common import aot_autograd
from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table
import pitome_core as pc
from pitome_core.fused import step

step._INTERPRETED = True  # the graph is made and not run, so no GPU is needed

class Enough(Exception):
    pass

def stop(graph, inputs):
    nodes = [node for node in graph.graph.nodes if "triton_kernel_wrapper" in str(node.target)]
    names = [kernel_side_table.get_kernel(node.kwargs["kernel_idx"]).fn.__name__ for node in nodes]
    print(json.dumps(names))
    raise Enough

model = timm.create_model("vit_tiny_patch16_224", img_size=64, embed_dim=48, num_heads=3, depth=2).eval().bfloat16()
for method in ("pitome", "tome"):
    torch._dynamo.reset()
    pc.apply(model, method, keep=0.75, fused=True, restore=False)
    try:
        with torch.no_grad():
            torch.compile(model, backend=aot_autograd(fw_compiler=stop), fullgraph=True)(
                torch.zeros(1, 3, 64, 64, dtype=torch.bfloat16))
    except Exception as error:
        assert "Enough" in repr(error) + repr(error.__cause__), error
"""


EXPORTED = """
import json
import timm, torch
import pitome_core as pc
from pitome_core.fused import step

step._INTERPRETED = True  # the graph is made and not run, so no GPU is needed
torch.cuda.is_available = lambda: True
model = timm.create_model("vit_tiny_patch16_224", img_size=64, embed_dim=48, num_heads=3, depth=2).eval()
for method, fused in (("pitome", True), ("tome", True), ("pitome", "auto")):
    pc.apply(model, method, keep=0.75, fused=fused)
    with torch.no_grad():
        program = torch.export.export(model, (torch.zeros(2, 3, 64, 64),),
                                      dynamic_shapes=({0: torch.export.Dim("batch", max=64)},))
    print(json.dumps([str(node.target) for node in program.graph.nodes if "pitome." in str(node.target)]))
"""


def printed(script: str) -> list:
    """The lists that a script prints in a process without the interpreter."""
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]


def test_an_exported_program_keeps_the_operators():
    """With `fused=True`, so that a compiler for CUDA finds the kernels; `auto` gives a portable graph."""
    pitome, tome, auto = printed(EXPORTED)
    assert pitome == ["pitome.pairs_by_energy.default", "pitome.merge_pairs.default"] * 2
    assert tome == ["pitome.pairs_by_place.default", "pitome.merge_pairs.default"] * 2
    assert auto == []


def test_launches_of_a_layer():
    """Of the traced graph of a model with two layers. The second one makes the bias of sizes, too."""
    pitome, tome = printed(LAUNCHES)
    layer = ["metric_kernel", "energy_kernel", "rank_kernel", "match_kernel", "merge_kernel"]
    assert pitome == [*layer, "bias_kernel", *layer] and len(layer) + 1 <= 6
    layer = ["metric_kernel", "match_kernel", "choose_kernel", "merge_kernel"]
    assert tome == [*layer, "bias_kernel", *layer]
