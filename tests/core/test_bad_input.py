"""Every argument of a public function is looked at before it is used: bad values raise with a reason.

Each entry of `BAD` is a call that would compute something else than it says, or fail far from the cause. Beside it
stand values of other types that mean the same as good ones, and are taken (`GOOD`).
"""

from __future__ import annotations

import inspect
import math
from collections import deque
from fractions import Fraction

import numpy as np
import pytest
import torch

import pitome_core as pc
import pitome_core.experiments.baselines
from pitome_core.attention import attention, attention_map, size_bias
from pitome_core.spectral import coarsen, inside_shares, laplacian, lift, spectrum, token_graph

timm = pytest.importorskip("timm")
NAN, INF = math.nan, math.inf


def tokens(batch: int = 2, number: int = 8, channels: int = 4) -> torch.Tensor:
    return torch.randn(batch, number, channels, generator=torch.Generator().manual_seed(0))


def broken(value: float = NAN) -> torch.Tensor:
    """Tokens of which one has a NaN or an infinity."""
    x = tokens()
    x[1, 5, 2] = value
    return x


def vit(**overrides) -> torch.nn.Module:
    small = dict(img_size=64, embed_dim=48, num_heads=3, depth=3, num_classes=7)
    return timm.create_model("vit_tiny_patch16_224", **{**small, **overrides}).eval()


def ids(*values) -> torch.Tensor:
    return torch.tensor([values])


def some_plan() -> pc.MergePlan:
    return pc.MergePlan.from_roots(ids(0, 0, 2, 2))


def full(number: int = 8) -> torch.Tensor:
    return torch.ones(2, number, dtype=torch.bool)


def graph(**places) -> torch.Tensor:
    """Weights of a graph of four vertices, with other values at the places of `[0, 1]` and `[1, 0]`."""
    weights = token_graph(tokens(1, 4))
    for name, value in places.items():
        weights[0][{"a": (0, 1), "b": (1, 0)}[name]] = value
    return weights


def transform() -> pc.LinearPlan:
    return pc.LinearPlan(torch.eye(4)[:2], torch.eye(4)[:, :2])


def distance(weights, plan: pc.MergePlan) -> torch.Tensor:
    return pc.spectral_distance(weights=weights, plan=plan)


def nothing(metric, remove, *, strength: float = 1.0, level: int = 3, loud: bool = False):
    return pc.MergePlan.identity(*metric.shape[:2])


def register(function=nothing, name="bad", paper="none", summary="none", **fields):
    return pc.register_method(name, function, paper=paper, summary=summary, **fields)


measure = pc.spectral_distance
roots, merges = pc.MergePlan.from_roots, pc.MergePlan.from_merges
HEADS = [torch.ones(1, 1, 2, 2)] * 3  # q, k, v
TAKEN = torch.tensor([True])
PLAN = dict(assignment=ids(0, 0, 1), num_tokens=2, anchored=ids(True, False, True))
SCHEDULE = dict(remove=[4, 3, 2], tokens=[17, 13, 10, 8], prefix=1, clamped=False)
V, T, U, R = ValueError, TypeError, pc.UnsupportedModelError, RuntimeError

BAD = {
    # --- energy_score
    "energy: a list of tokens": (lambda: pc.energy_score([[0.0]], 0.5), T, "metric.*tensor"),
    "energy: an array": (lambda: pc.energy_score(tokens().numpy(), 0.5), T, "metric.*tensor, got ndarray"),
    "energy: no batch": (lambda: pc.energy_score(tokens()[0], 0.5), V, r"metric.*any, any, any.*\(8, 4\)"),
    "energy: complex tokens": (lambda: pc.energy_score(tokens().cfloat(), 0.5), V, "metric.*complex64"),
    "energy: margin NaN": (lambda: pc.energy_score(tokens(), NAN), V, "margin.*finite.*nan"),
    "energy: margin infinite": (lambda: pc.energy_score(tokens(), -INF), V, "margin.*finite.*inf"),
    "energy: margin beyond float32": (lambda: pc.energy_score(tokens(), -1e39, kernel="elu"), V, "margin.*finite"),
    "energy: margin beyond float64": (lambda: pc.energy_score(tokens(), 10**400), V, "margin.*finite"),
    "energy: margin in words": (lambda: pc.energy_score(tokens(), "0.5"), T, "margin must be a number.*'0.5'"),
    "energy: margin None": (lambda: pc.energy_score(tokens(), None), T, "margin must be a number"),
    "energy: margin per token": (lambda: pc.energy_score(tokens(), torch.zeros(8)), T, r"margin.*shape \(8,\)"),
    "energy: margin true": (lambda: pc.energy_score(tokens(), True), T, "margin must be a number"),
    "energy: alpha NaN": (lambda: pc.energy_score(tokens(), 0.5, NAN), V, "alpha.*finite"),
    "energy: alpha complex": (lambda: pc.energy_score(tokens(), 0.5, 1j), T, "alpha must be a number"),
    "energy: kernel": (lambda: pc.energy_score(tokens(), 0.5, kernel="cosine"), V, "kernel 'cosine'.*gaussian"),
    "energy: kernel a list": (lambda: pc.energy_score(tokens(), 0.5, kernel=["elu"]), V, "unknown kernel"),
    "energy: margin of a Gaussian": (lambda: pc.energy_score(tokens(), 1.0, kernel="gaussian"), V, "below 1"),
    "energy: mask of floats": (lambda: pc.energy_score(tokens(), 0.5, mask=torch.ones(2, 8)), V, "mask must be bool"),
    "energy: mask a list": (lambda: pc.energy_score(tokens(), 0.5, mask=[[True]]), V, "mask must be bool.*list"),
    # --- margin_schedule
    "margins: base NaN": (lambda: pc.margin_schedule(4, NAN), V, "base.*finite"),
    "margins: base infinite": (lambda: pc.margin_schedule(4, INF), V, "base.*finite"),
    "margins: half a layer": (lambda: pc.margin_schedule(2.5), T, "num_layers must be an integer"),
    "margins: negative depth": (lambda: pc.margin_schedule(-3), V, "num_layers must be 0 or more, got -3"),
    "margins: depth true": (lambda: pc.margin_schedule(True), T, "num_layers must be an integer"),
    # --- plan
    "plan: metric a list": (lambda: pc.plan([[1.0]], 1), T, "metric.*tensor, got list"),
    "plan: integer metric": (lambda: pc.plan(tokens().long(), 1), V, "metric.*floating.*int64"),
    "plan: complex metric": (lambda: pc.plan(tokens().cdouble(), 1), V, "metric.*floating.*complex128"),
    "plan: NaN": (lambda: pc.plan(broken(), 1), V, "NaN or infinity in 1 of 16 tokens"),
    "plan: infinity": (lambda: pc.plan(broken(INF), 1), V, "NaN or infinity in 1 of 16 tokens"),
    "plan: method": (lambda: pc.plan(tokens(), 1, "pitomme"), V, "unknown method 'pitomme'.*tome"),
    "plan: method a list": (lambda: pc.plan(tokens(), 1, ["tome"]), V, "unknown method"),
    "plan: margin NaN": (lambda: pc.plan(tokens(), 1, margin=NAN), V, "margin.*finite"),
    "plan: margin infinite": (lambda: pc.plan(tokens(), 1, margin=INF), V, "margin.*finite"),
    "plan: margin in words": (lambda: pc.plan(tokens(), 1, margin="0.9"), T, "margin must be a number"),
    "plan: alpha NaN": (lambda: pc.plan(tokens(), 1, alpha=NAN), V, "alpha.*finite"),
    "plan: alpha infinite": (lambda: pc.plan(tokens(), 1, alpha=-INF), V, "alpha.*finite"),
    "plan: alpha true": (lambda: pc.plan(tokens(), 1, alpha=True), T, "alpha must be a number"),
    "plan: t_sim NaN": (lambda: pc.plan(tokens(), 1, "mctf", t_sim=NAN), V, "t_sim.*finite"),
    "plan: t_info infinite": (lambda: pc.plan(tokens(), 1, "mctf", t_info=INF), V, "t_info.*finite"),
    "plan: t_size infinite": (lambda: pc.plan(tokens(), 1, "mctf", t_size=-INF), V, "t_size.*finite"),
    "plan: t_info 0": (lambda: pc.plan(tokens(), 1, "mctf", t_info=0), V, "temperatures must be above 0.*t_info=0"),
    "plan: share NaN": (lambda: pc.plan(tokens(), 1, "tofu", pruned=NAN), V, "pruned.*finite"),
    "plan: protection in words": (lambda: pc.plan(tokens(), 1, protection="no"), T, "protection must be True or False"),
    "plan: protection 0": (lambda: pc.plan(tokens(), 1, protection=0), T, "protection must be True or False"),
    "plan: seed a fraction": (lambda: pc.plan(tokens(), 1, seed=0.5), T, "seed must be an integer"),
    "plan: seed true": (lambda: pc.plan(tokens(), 1, seed=True), T, "seed must be an integer"),
    "plan: split a number": (lambda: pc.plan(tokens(), 1, split=2), V, "unknown split 2.*alternate"),
    "plan: linkage": (lambda: pc.plan(tokens(), 1, "atc", linkage="ward"), V, "linkage.*ward"),
    "plan: r": (lambda: pc.plan(tokens(), 1, "tome", r=8), T, "no option r.*remove=8"),
    "plan: remove a fraction": (lambda: pc.plan(tokens(), 1.5), T, "remove must be an integer"),
    "plan: remove in words": (lambda: pc.plan(tokens(), "3"), T, "remove must be an integer"),
    "plan: remove true": (lambda: pc.plan(tokens(), True), T, "remove must be an integer"),
    "plan: remove negative": (lambda: pc.plan(tokens(), -1), V, "cannot remove -1 of 8"),
    "plan: too many": (lambda: pc.plan(tokens(), 5), V, "cannot remove 5 of 8 tokens: at most 4"),
    "plan: remove a bool each": (lambda: pc.plan(tokens(), torch.tensor([True, False]), mask=full()), V, "integer"),
    "plan: remove a float each": (lambda: pc.plan(tokens(), torch.tensor([1.0, 2.0]), mask=full()), V, "integer"),
    "plan: remove for three": (lambda: pc.plan(tokens(), torch.tensor([1, 2, 3]), mask=full()), V, r"\(2\).*\(3,\)"),
    "plan: remove a list": (lambda: pc.plan(tokens(), [1, 2], mask=full()), T, "remove must be an integer.*list"),
    "plan: too many in uint8": (lambda: pc.plan(tokens(), torch.tensor([200, 1], dtype=torch.uint8), mask=full()), V,
                                "cannot remove 200 of 8"),
    "plan: size NaN": (lambda: pc.plan(tokens(), 1, size=torch.full((2, 8), NAN)), V, "sizes.*finite and above 0"),
    "plan: size 0": (lambda: pc.plan(tokens(), 1, size=torch.zeros(2, 8)), V, "sizes.*finite and above 0"),
    "plan: size of another length": (lambda: pc.plan(tokens(), 1, size=torch.ones(2, 9)), V, r"size.*\(2, 8\).*9"),
    "plan: size a list": (lambda: pc.plan(tokens(), 1, size=[1] * 8), T, "size must be a tensor"),
    "plan: mask of integers": (lambda: pc.plan(tokens(), 1, mask=torch.ones(2, 8).long()), V, "mask must be bool"),
    # --- apply and patched: how many tokens
    "apply: no model": (lambda: pc.apply("vit"), U, "expected a model, got a str"),
    "apply: a class": (lambda: pc.apply(timm.models.VisionTransformer), U, "expected a model, got a type"),
    "apply: keep in words": (lambda: pc.apply(vit(), keep="0.9"), T, "keep must be a number, got str '0.9'"),
    "apply: keep in three letters": (lambda: pc.apply(vit(), keep="111"), T, "keep must be a number, got str"),
    "apply: keep true": (lambda: pc.apply(vit(), keep=True), T, "keep must be a number"),
    "apply: keep NaN": (lambda: pc.apply(vit(), keep=NAN), V, "keep must be a finite number"),
    "apply: keep 0": (lambda: pc.apply(vit(), keep=0), V, "above 0 and at most 1; got 0"),
    "apply: keep in percent": (lambda: pc.apply(vit(), keep=90), V, "above 0 and at most 1; got 90"),
    "apply: keep complex": (lambda: pc.apply(vit(), keep=0.9 + 0j), T, "keep must be a number"),
    "apply: two keeps": (lambda: pc.apply(vit(), keep=[0.9, 0.9]), V, "keep has 2 entries, the model 3 layers"),
    "apply: one keep NaN": (lambda: pc.apply(vit(), keep=[0.9, NAN, 0.9]), V, r"keep\[1\] must be a finite"),
    "apply: one keep None": (lambda: pc.apply(vit(), keep=[0.9, None, 0.9]), T, r"keep\[1\] must be a number"),
    "apply: keep a matrix": (lambda: pc.apply(vit(), keep=torch.ones(3, 1)), T, "keep must be a number.*Tensor"),
    "apply: keep a set": (lambda: pc.apply(vit(), keep={0.9}), T, "keep must be a number, got set"),
    "apply: keep and remove": (lambda: pc.apply(vit(), keep=0.9, remove=1), V, "keep or remove, not both"),
    "apply: r": (lambda: pc.apply(vit(), "tome", r=8), T, "no option r.*remove=8"),
    "apply: ratio": (lambda: pc.apply(vit(), "tome", ratio=0.9), T, "no option ratio.*keep=0.9"),
    "apply: remove a fraction": (lambda: pc.apply(vit(), "tome", remove=1.5), T, "remove must be an integer"),
    "apply: remove true": (lambda: pc.apply(vit(), "tome", remove=True), T, "remove must be an integer"),
    "apply: remove negative": (lambda: pc.apply(vit(), "tome", remove=-2), V, "remove must be 0 or more, got -2"),
    "apply: remove in words": (lambda: pc.apply(vit(), "tome", remove="8"), T, "remove must be an integer"),
    "apply: two removes": (lambda: pc.apply(vit(), remove=[1, 2]), V, "remove has 2 entries, the model 3"),
    "apply: a schedule that does not add up": (
        lambda: pc.apply(vit(), keep=pc.Schedule((4, 3, 2), (17, 12, 10, 8), 1)), V, "has the tokens.*17, 13, 10, 8"),
    "apply: an empty schedule": (lambda: pc.apply(vit(), keep=pc.Schedule((), ())), V, r"the tokens \[0\], got \[\]"),
    "apply: a schedule of fractions": (
        lambda: pc.apply(vit(), keep=pc.Schedule((4.5, 3, 2), (17, 12.5, 9.5, 7.5), 1)), T, r"remove\[0\].*integer"),
    "apply: a schedule that gives back": (
        lambda: pc.apply(vit(), keep=pc.Schedule((-4, 3, 2), (17, 21, 18, 16), 1)), V, r"remove\[0\] must be 0"),
    "apply: unknown fields": (lambda: pc.apply(vit(), keep={**SCHEDULE, "left": 3}), T, "left"),
    # --- apply and patched: the rest
    "apply: preset": (lambda: pc.apply(vit(), preset="official"), V, "unknown preset 'official'.*paper"),
    "apply: preset a list": (lambda: pc.apply(vit(), preset=["paper"]), V, "unknown preset"),
    "apply: metric": (lambda: pc.apply(vit(), metric="values"), V, "unknown metric 'values'.*hidden"),
    "apply: insertion": (lambda: pc.apply(vit(), insertion=["after"]), V, "unknown insertion.*between"),
    "apply: towers a list": (lambda: pc.apply(vit(), towers=["vision"]), V, "no such tower"),
    "apply: margin NaN": (lambda: pc.apply(vit(), margin=NAN), V, "margin must be a finite number, got nan"),
    "apply: margin infinite": (lambda: pc.apply(vit(), margin=[0.9, INF, 0.9]), V, r"margin\[1\] must be a finite"),
    "apply: margin in words": (lambda: pc.apply(vit(), margin="999"), T, "margin must be a number"),
    "apply: proportional in words": (lambda: pc.apply(vit(), proportional="no"), T, "proportional must be True or Fa"),
    "apply: restore in words": (lambda: pc.apply(vit(), restore="no"), T, "restore must be True or False.*'no'"),
    "apply: restore None": (lambda: pc.apply(vit(), restore=None), T, "restore must be True or False"),
    "apply: restore 2": (lambda: pc.apply(vit(), restore=2), T, "restore must be True or False"),
    "apply: compile_step in words": (lambda: pc.apply(vit(), compile_step="off"), T, "compile_step must be True or Fa"),
    "apply: alpha NaN": (lambda: pc.apply(vit(), alpha=NAN), V, "alpha must be a finite number"),
    "apply: t_sim NaN": (lambda: pc.apply(vit(), "mctf", t_sim=NAN), V, "t_sim must be a finite number"),
    "apply: t_info infinite": (lambda: pc.apply(vit(), "mctf", t_info=INF), V, "t_info must be a finite number"),
    "apply: t_size negative": (lambda: pc.apply(vit(), "mctf", t_size=-1), V, "temperatures must be above 0"),
    "apply: protection in words": (lambda: pc.apply(vit(), protection="no"), T, "protection must be True or False"),
    "apply: seed in words": (lambda: pc.apply(vit(), seed="1"), T, "seed must be an integer"),
    "patched: keep in words": (lambda: pc.patched(vit(), "tome", "0.9").__enter__(), T, "keep must be a number"),
    "patched: keep and remove": (lambda: pc.patched(vit(), keep=0.9, remove=1).__enter__(), V, "not both"),
    "patched: restore in words": (lambda: pc.patched(vit(), restore="no").__enter__(), T, "restore must be True"),
    "patched: no model": (lambda: pc.patched(None).__enter__(), T, "expected a model"),
    # --- schedule and flops
    "schedule: keep in words": (lambda: pc.schedule(vit(), keep="0.9"), T, "keep must be a number"),
    "schedule: keep NaN": (lambda: pc.schedule(vit(), keep=NAN), V, "keep must be a finite number"),
    "schedule: remove a fraction": (lambda: pc.schedule(vit(), remove=1.5), T, "remove must be an integer"),
    "schedule: remove true": (lambda: pc.schedule(vit(), remove=True), T, "remove must be an integer"),
    "schedule: remove negative": (lambda: pc.schedule(vit(), remove=[1, -1, 1]), V, r"remove\[1\] must be 0 or more"),
    "schedule: tokens a fraction": (lambda: pc.schedule(vit(), tokens=4.5), T, "tokens must be an integer"),
    "schedule: tokens in words": (lambda: pc.schedule(vit(), tokens="4"), T, "tokens must be an integer"),
    "schedule: no tokens": (lambda: pc.schedule(vit(), tokens=0), V, "cannot end with 0 of 16"),
    "diagnose: no setting": (lambda: pc.diagnose(vit(), torch.zeros(1, 3, 32, 32), keeps=[]), V, "0 settings"),
    "diagnose: a target of one": (lambda: pc.diagnose(vit(), torch.zeros(1, 3, 32, 32), target=1.0), V, "below 1"),
    "token_map: no trace": (lambda: pc.token_map(pc.Trace(), torch.zeros(3, 32, 32)), R, "nothing was"),
    "schedule: flops NaN": (lambda: pc.schedule(vit(), flops=NAN), V, "flops must be a finite number"),
    "schedule: flops in words": (lambda: pc.schedule(vit(), flops="half"), T, "flops must be a number"),
    "schedule: flops true": (lambda: pc.schedule(vit(), flops=True), T, "flops must be a number"),
    "schedule: no model": (lambda: pc.schedule(3, keep=0.9), T, "expected a model"),
    "flops: no model": (lambda: pc.flops("vit"), T, "expected a model"),
    "flops: size a number": (lambda: pc.flops(vit(), 64), T, "input_size must be .channels, height, width"),
    "flops: size in words": (lambda: pc.flops(vit(), "364"), T, "input_size must be"),
    "flops: half a pixel": (lambda: pc.flops(vit(), (3, 64.5, 64)), T, r"input_size\[1\] must be an integer"),
    "flops: no pixels": (lambda: pc.flops(vit(), (3, 0, 64)), V, r"input_size\[1\] must be 1 or more"),
    "flops: a length": (lambda: pc.flops(vit(), (64,)), V, "size of .channels, height, width."),
    "flops: another size": (lambda: pc.flops(vit(), (3, 96, 96)), V, "64 x 64 only, not 96 x 96"),
    "Schedule: more than there are": (lambda: pc.Schedule.from_removals(4, [3, 3]), V, "cannot remove 6 of 4"),
    "Schedule: a fraction": (lambda: pc.Schedule.from_removals(4, [0.5]), T, r"remove\[0\] must be an integer"),
    "Schedule: a negative prefix": (lambda: pc.Schedule.from_removals(4, [1], prefix=-1), V, "prefix must be 0 or"),
    # --- MergePlan.from_roots
    "roots: a list": (lambda: roots([[0, 0]]), T, "root must be a tensor"),
    "roots: floats": (lambda: roots(torch.zeros(1, 3)), V, "root must be an integer tensor, got torch.float32"),
    "roots: bools": (lambda: roots(torch.zeros(1, 3, dtype=torch.bool)), V, "root must be an integer tensor"),
    "roots: no batch": (lambda: roots(torch.tensor([0, 0])), V, r"root must have shape \(any, any\), got \(2,\)"),
    "roots: out of range": (lambda: roots(ids(0, 3, 2)), V, "a token, 0 to 2, or -1; got 3"),
    "roots: far below": (lambda: roots(ids(0, -2, 2), drops=True), V, "a token, 0 to 2, or -1; got -2"),
    "roots: a chain": (lambda: roots(ids(0, 0, 1)), V, r"root\[0, 2\] is 1, which is no anchor"),
    "roots: a cycle": (lambda: roots(ids(1, 0, 2)), V, r"root\[0, 0\] is 1, which is no anchor"),
    "roots: joining a dropped token": (lambda: roots(ids(-1, 0, 2), drops=True), V, r"root\[0, 1\] is 0, which is no"),
    "roots: drops not said": (lambda: roots(ids(0, -1, 2)), V, "-1 drops its token.*drops=True"),
    "roots: drops in words": (lambda: roots(ids(0, -1, 2), drops="no"), T, "drops must be True or False"),
    "roots: fewer anchors": (lambda: roots(ids(0, 0, 2), 3), V, "num_tokens is 3, but items have 2 to 2"),
    "roots: more anchors": (lambda: roots(ids(0, 0, 2), 1), V, "num_tokens is 1, but items have 2 to 2"),
    "roots: anchors of one item": (lambda: roots(torch.tensor([[0, 0, 2], [0, 1, 2]]), 2), V, "items have 2 to 3"),
    "roots: half a slot": (lambda: roots(ids(0, 0, 2), 2.0), T, "num_tokens must be an integer"),
    "roots: reduce": (lambda: roots(ids(0, 0, 2), reduce="sum"), V, "unknown reduce 'sum'.*mlerp"),
    "roots: weights of others": (lambda: roots(ids(0, 0, 2), weight=torch.ones(1, 2)), V, r"weight.*\(1, 3\), got"),
    "roots: weights a list": (lambda: roots(ids(0, 0, 2), weight=[1, 1, 1]), T, "weight must be a tensor"),
    "roots: energies of others": (lambda: roots(ids(0, 0, 2), energy=torch.ones(3)), V, "energy must have shape"),
    # --- MergePlan.from_merges
    "merges: a list": (lambda: merges([[0]], [[1]], 3), T, "source must be a tensor"),
    "merges: floats": (lambda: merges(ids(0.0), ids(1.0), 3), V, "source must be an integer tensor"),
    "merges: bools": (lambda: merges(ids(0), ids(True), 3), V, "target must be an integer tensor"),
    "merges: of other numbers": (lambda: merges(ids(0, 1), ids(2), 3), V, r"target must have shape \(1, 2\), got"),
    "merges: out of range": (lambda: merges(ids(0), ids(3), 3), V, "indices 0 to 2, got 0 to 3"),
    "merges: negative": (lambda: merges(ids(-1), ids(1), 3), V, "indices 0 to 2, got -1 to 1"),
    "merges: twice": (lambda: merges(ids(0, 0), ids(1, 2), 4), V, "token 0 is a source twice"),
    "merges: a chain": (lambda: merges(ids(0, 1), ids(1, 2), 4), V, "a target is a source as well"),
    "merges: into itself": (lambda: merges(ids(1), ids(1), 4), V, "a target is a source as well"),
    "merges: width a fraction": (lambda: merges(ids(0), ids(1), 3.0), T, "width must be an integer"),
    "merges: active alone": (lambda: merges(ids(0), ids(1), 3, active=TAKEN[None]), V, "active needs a mask"),
    "merges: active a number": (lambda: merges(ids(0), ids(1), 3, active=ids(1), mask=full(3)[:1]), V, "active.*bool"),
    "merges: mask of others": (lambda: merges(ids(0), ids(1), 3, mask=full(4)[:1]), V, r"mask.*\(1, 3\), got \(1, 4\)"),
    "merges: padding": (lambda: merges(ids(2), ids(1), 3, mask=ids(True, True, False)), V, "is padding"),
    # --- the rest of MergePlan
    "plan by hand: chain of slots": (lambda: pc.MergePlan(**{**PLAN, "assignment": ids(0, 2, 1)}), V, "no plan"),
    "plan by hand: anchors": (lambda: pc.MergePlan(**{**PLAN, "anchored": ids(True, True, True)}), V, "no plan"),
    "plan by hand: another M": (lambda: pc.MergePlan(**{**PLAN, "num_tokens": 3}), V, "no plan"),
    "plan by hand: -1": (lambda: pc.MergePlan(**{**PLAN, "assignment": ids(0, -1, 1)}), V, "no plan.*drops=True"),
    "plan by hand: floats": (lambda: pc.MergePlan(**{**PLAN, "assignment": torch.zeros(1, 3)}), V, "assignment.*int"),
    "plan by hand: anchors in numbers": (lambda: pc.MergePlan(**{**PLAN, "anchored": ids(1, 0, 1)}), V, "anchored.*b"),
    "plan by hand: valid": (lambda: pc.MergePlan(**PLAN, valid=full(3)[:1]), V, r"valid.*\(1, 2\), got \(1, 3\)"),
    "identity: valid as numbers": (lambda: pc.MergePlan.identity(1, 3, valid=ids(1, 1, 0)), V, "valid.*bool"),
    "identity: valid of others": (lambda: pc.MergePlan.identity(1, 3, valid=full(4)), V, r"valid.*\(1, 3\)"),
    "settled: no such field": (lambda: some_plan().settled(sizes=3), T, "no field sizes; its fields: assignment"),
    "settled: reduce": (lambda: some_plan().settled(reduce="max"), V, "unknown reduce 'max'"),
    "settled: weights": (lambda: some_plan().settled(weight=torch.ones(1, 5)), V, r"weight.*\(1, 4\), got \(1, 5\)"),
    "merge: integers": (lambda: some_plan().merge(torch.ones(1, 4, 2).long()), V, r"means of floating.*int64.*\.float"),
    "merge: bools": (lambda: some_plan().merge(full(8).view(1, 4, 4)), V, r"means of floating.*bool.*\.float"),
    "merge: complex": (lambda: some_plan().merge(torch.ones(1, 4, 2).cfloat()), V, "means of floating.*the imaginary"),
    "merge: a list": (lambda: some_plan().merge([[[1.0]] * 4]), V, "1 items of 4 tokens"),
    "merge: complex sizes": (lambda: some_plan().merge(torch.ones(1, 4, 2), torch.ones(1, 4).cfloat()), V, "size.*rea"),
    "merge: sizes a list": (lambda: some_plan().merge(torch.ones(1, 4, 2), [1, 1, 1, 1]), V, "size.*real.*got list"),
    "merge: a negative prefix": (lambda: some_plan().merge(torch.ones(1, 3, 2), prefix=-1), V, "prefix must be 0 or m"),
    "merge: half a prefix": (lambda: some_plan().merge(torch.ones(1, 5, 2), prefix=1.0), T, "prefix must be an"),
    "unmerge: a list": (lambda: some_plan().unmerge([1.0, 2.0]), V, "1 items of 2 tokens"),
    "unmerge: of others": (lambda: some_plan().unmerge(torch.ones(1, 3, 2)), V, "1 items of 2 tokens.*3"),
    "then: no plan": (lambda: some_plan().then(torch.eye(2)), T, "followed by a plan, got Tensor"),
    "then: of other items": (lambda: some_plan().then(pc.MergePlan.identity(2, 2)), V, "2 tokens of 1 items.*2 of 2"),
    "then: of other tokens": (lambda: some_plan().then(pc.MergePlan.identity(1, 4)), V, "2 tokens of 1 items.*4 of 1"),
    "with_prefix: negative": (lambda: some_plan().with_prefix(-1), V, "prefix must be 0 or more"),
    "keeping: numbers": (lambda: some_plan().keeping(ids(1, 0, 0, 0)), V, "kept must be a bool tensor"),
    # --- LinearPlan
    "linear: integers": (lambda: pc.LinearPlan(torch.eye(4).long(), torch.eye(4)), V, "forward.*floating.*int64"),
    "linear: not back": (lambda: pc.LinearPlan(torch.eye(4)[:2], torch.eye(4)), V, r"backward.*\(4, 2\), got \(4, 4\)"),
    "linear: a list": (lambda: pc.LinearPlan([[1.0]], torch.eye(1)), T, "forward must be a tensor"),
    "linear: of other items": (lambda: pc.LinearPlan(torch.ones(2, 3, 4), torch.ones(1, 4, 3)), V, r"\(2, 4, 3\), got"),
    "linear: merging integers": (lambda: transform().merge(torch.ones(1, 4, 2).long()), V, "x must be a floating"),
    "linear: unmerging integers": (lambda: transform().unmerge(torch.ones(1, 2, 2).long()), V, "x must be a floating"),
    "linear: no batch": (lambda: transform().merge(torch.ones(4, 4)), V, r"x must have shape.*\(4, 4\)"),
    "linear: of other tokens": (lambda: transform().merge(torch.ones(1, 5, 2)), V, "takes 4 tokens, got 5"),
    "linear: then no plan": (lambda: transform().then("mean"), T, "followed by a plan, got str"),
    "linear: then other tokens": (lambda: transform().then(some_plan()), V, "leaves 2 tokens, the next takes 4"),
    "linear: a negative prefix": (lambda: transform().with_prefix(-1), V, "prefix must be 0 or more"),
    # --- spectral_distance and its parts
    "distance: NaN": (lambda: measure(tokens(1, 4) * NAN, some_plan()), V, "NaN or infinity in 4 of 4"),
    "distance: infinity": (lambda: measure(tokens(1, 4) * INF, some_plan()), V, "NaN or infinity"),
    "distance: complex": (lambda: measure(tokens(1, 4).cfloat(), some_plan()), V, "metric.*complex64"),
    "distance: a list": (lambda: pc.spectral_distance([[1.0]], some_plan()), T, "metric must be a tensor"),
    "distance: NaN in weights": (lambda: distance(graph(a=NAN, b=NAN), some_plan()), V, "finite"),
    "distance: infinite weights": (lambda: distance(graph(a=INF, b=INF), some_plan()), V, "finite"),
    "distance: one way": (lambda: distance(graph(a=0.1), some_plan()), V, "symmetric"),
    "distance: negative": (lambda: distance(graph(a=-1, b=-1), some_plan()), V, "not negative"),
    "distance: weights a list": (lambda: distance([[0.0]], some_plan()), T, "weights must be a t"),
    "distance: kind": (lambda: measure(tokens(1, 4), some_plan(), laplacian="walk"), V, "laplacian 'walk'"),
    "distance: no plan": (lambda: measure(tokens(1, 4), "tome"), V, "needs a partition"),
    "distance: of other items": (lambda: measure(tokens(2, 4), some_plan()), V, r"\(1, 4, 4\), got \(2, 4"),
    "token_graph: NaN": (lambda: token_graph(broken()), V, "NaN or infinity in 1 of 16"),
    "laplacian: NaN": (lambda: laplacian(graph(a=NAN, b=NAN)), V, "finite"),
    "laplacian: not square": (lambda: laplacian(torch.ones(1, 3, 4)), V, r"square.*\(1, 3, 4\)"),
    "spectrum: one way": (lambda: spectrum(graph(a=0.5)), V, "symmetric"),
    "coarsen: NaN": (lambda: coarsen(graph(a=NAN, b=NAN), some_plan()), V, "finite"),
    "coarsen: reduce": (lambda: coarsen(graph(), some_plan(), "max"), V, "reduce 'max'.*mean"),
    "lift: of other groups": (lambda: lift(graph(), some_plan()), V, r"\(1, 2, 2\), got \(1, 4, 4\)"),
    "lift: NaN": (lambda: lift(torch.full((1, 2, 2), NAN), some_plan()), V, "finite"),
    "inside_shares: infinite": (lambda: inside_shares(graph(a=INF, b=INF), some_plan()), V, "finite"),
    # --- attention helpers
    "size_bias: a list": (lambda: size_bias([[1.0]], torch.float32), T, "size must be a tensor"),
    "size_bias: complex": (lambda: size_bias(torch.ones(1, 3).cfloat(), torch.float32), V, "size.*complex"),
    "size_bias: no batch": (lambda: size_bias(torch.ones(3), torch.float32), V, "size must have shape"),
    "attention: bias of bools": (
        lambda: attention(*HEADS, torch.ones(1, 1, 1, 2).bool()), V, "bias must be floating.*bool"),
    "attention: bias of integers": (
        lambda: attention(*HEADS, torch.ones(1, 1, 1, 2).long()), V, "bias must be floating.*int64"),
    "attention_map: bias of bools": (
        lambda: attention_map(*HEADS[:2], torch.ones(1, 1, 1, 2).bool()), V, "bias must be floating.*bool"),
    # --- registration, recording, removal, settings
    "method: no name": (lambda: register(name=3), T, "name, paper and summary must be strings"),
    "method: no function": (lambda: register("plan"), T, "must be functions, got 'plan'"),
    "method: function None": (lambda: register(None), T, "must be functions, got None"),
    "method: limit": (lambda: register(limit="most"), V, "limit must be 'half' or 'all'"),
    "method: drops in words": (lambda: register(drops="no"), T, "drops must be True or False"),
    "method: partition 1": (lambda: register(partition=1), T, "partition must be True or False"),
    "method: cost a number": (lambda: register(cost=100), T, "must be functions"),
    "method: a mask by place": (lambda: register(lambda metric, remove, mask=None: 0), T, "'mask' would never be"),
    "method: choices of nothing": (lambda: register(choices={"mode": ("a",)}), V, "choices of mode.*no such option"),
    "family: a class": (lambda: pc.register_family(pc.Family), T, "expected a Family, got a type"),
    "family: a dict": (lambda: pc.register_family({"name": "toy"}), T, "expected a Family, got a dict"),
    "record: no model": (lambda: pc.record("vit").__enter__(), T, "expected a model, got a str"),
    "record: not patched": (lambda: pc.record(vit()).__enter__(), R, "does not merge: call pc.apply"),
    "remove: no model": (lambda: pc.remove(None), T, "expected a model, got a NoneType"),
    "settings: no model": (lambda: pc.settings("vit"), T, "expected a model, got a str"),
    "unmerged: not patched": (lambda: pc.unmerged(vit().blocks[0]), V, "no part of a patched model"),
    "unmerged: no module": (lambda: pc.unmerged("block"), T, "expected a module, got a str"),
    "settings: not patched": (lambda: pc.settings(vit()), V, "not patched: call pc.apply"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_input_is_refused(case, registry):
    call, error, words = BAD[case]
    with pytest.raises(error, match=f"(?s){words}"):
        call()


def test_there_are_many_and_every_public_function_is_among_them():
    assert len(BAD) >= 100
    source = inspect.getsource(inspect.getmodule(register))
    functions = {name for name in pc.__all__ if inspect.isfunction(getattr(pc, name))}
    assert {name for name in functions if f"pc.{name}(" not in source} <= {"methods", "presets"}  # take no arguments


# ----------------------------------------------------------------------------- values that mean the same as good ones
INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]


@pytest.mark.parametrize("method", ["pitome", "tome", "crossget", "random_merge", "random_prune", "tofu", "atc", "bsm"])
@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_counts_of_every_integer_type_give_the_same_plan(method, dtype):
    """Counts per item as uint8 or int8 must not overflow where they are multiplied: 2 k, and N k without protection."""
    options = {"split": "high_low"} if method == "pitome" else {}
    if method == "bsm":
        method, options = "pitome", {"protection": False, "edges": "best"}
    number, remove = 300, torch.tensor([100, 127, 3])
    metric = torch.randn(3, number, 4, generator=torch.Generator().manual_seed(1))
    mask = torch.arange(number) < torch.tensor([300, 280, 290])[:, None]
    expected = pc.plan(metric, remove, method, mask=mask, **options)
    given = pc.plan(metric, remove.to(dtype), method, mask=mask, **options)
    assert given.num_tokens == expected.num_tokens
    assert torch.equal(given.assignment, expected.assignment)


def same(a: pc.MergePlan, b: pc.MergePlan) -> bool:
    return torch.equal(a.assignment, b.assignment) and a.num_tokens == b.num_tokens


def test_numbers_of_numpy_and_tensors_of_one_number_are_numbers():
    x = tokens()
    expected = pc.plan(x, 3, margin=0.5, alpha=0.5, seed=2)
    for count in (np.int64(3), np.uint8(3), torch.tensor(3), torch.tensor(3, dtype=torch.int16), np.array(3)):
        assert same(pc.plan(x, count, margin=0.5, alpha=0.5, seed=count - 1), expected)
    for half in (np.float32(0.5), np.float64(0.5), torch.tensor(0.5), torch.tensor(0.5).double(), np.array(0.5),
                 Fraction(1, 2)):
        assert same(pc.plan(x, 3, margin=half, alpha=half, seed=2), expected)
        assert torch.equal(pc.energy_score(x, half), pc.energy_score(x, 0.5))
        assert pc.margin_schedule(np.int32(3), half) == pc.margin_schedule(3, 0.5)
    for no in (False, np.bool_(False), torch.tensor(False)):
        assert same(pc.plan(x, 3, protection=no), pc.plan(x, 3, protection=False))
    assert same(pc.plan(x, 3, alpha=1, margin=0), pc.plan(x, 3, alpha=1.0, margin=0.0))


KEEPS = {
    "a tensor": torch.tensor(0.9), "half precision": torch.tensor(0.9, dtype=torch.float16), "float32": np.float32(0.9),
    "bfloat16": torch.tensor(0.9, dtype=torch.bfloat16), "float64": np.float64(0.9), "a fraction": Fraction(9, 10),
    "a list": [0.9, np.float32(0.9), torch.tensor(0.9)], "an array": np.full(3, 0.9, dtype=np.float32),
    "a tensor per layer": torch.full((3,), 0.9), "a tuple": (0.9,) * 3, "a deque": deque([0.9] * 3),
}


@pytest.mark.parametrize("kind", list(KEEPS))
def test_a_keep_ratio_may_be_any_number(kind):
    """In float32, 0.9 is 0.89999998: it is read as 0.9, not as the number that it was rounded to."""
    model = vit()
    expected = pc.settings(pc.apply(model, keep=0.9))
    given = pc.settings(pc.apply(model, keep=KEEPS[kind]))["keep"]
    assert given == (0.9 if not isinstance(given, list) else [0.9] * 3) and expected["keep"] == 0.9
    assert pc.flops(model) == pc.flops(pc.apply(model, keep=0.9)) == pc.flops(pc.apply(model, keep=[0.9] * 3))
    assert pc.schedule(model, keep=KEEPS[kind]) == pc.schedule(model, keep=0.9)


def test_rounded_ratios_remove_what_their_decimals_say():
    """float32 has 0.925 as 0.92500001: of 200 tokens 15 go, not 14."""
    model = vit(img_size=(160, 320))
    assert pc.schedule(model, keep=np.float32(0.925)).remove[0] == 15 == pc.schedule(model, keep=0.925).remove[0]


@pytest.mark.parametrize("remove", [4, np.int64(4), torch.tensor(4), np.uint8(4), [4, 4, 4], (4, 4, 4), range(4, 5),
                                    np.array([4, 4, 4]), torch.tensor([4, 4, 4], dtype=torch.int16)], ids=repr)
def test_remove_may_be_any_integer(remove):
    model = vit()
    if isinstance(remove, range):
        remove = [*remove] * 3
    expected = pc.flops(pc.apply(model, "tome", keep=pc.schedule(pc.apply(model, "tome"), remove=4)))
    assert expected.tokens == (17, 13, 9, 5)
    assert pc.flops(pc.apply(model, "tome", remove=remove)) == expected
    assert pc.schedule(model, remove=remove) == pc.schedule(model, remove=4)


def test_margins_may_be_tensors():
    model = vit()
    for margin in ([0.5, 0.25, 0.0], torch.tensor([0.5, 0.25, 0.0]), np.array([0.5, 0.25, 0.0])):
        assert pc.settings(pc.apply(model, margin=margin))["margin"] == [0.5, 0.25, 0.0]


def test_padding_may_hold_anything():
    """NaN and infinity behind a mask change nothing, neither in tokens nor in sizes."""
    x, mask = tokens(), full()
    mask[1, 6:] = False
    dirty = x.clone()
    dirty[1, 6:] = torch.tensor([NAN, INF])[:, None]
    size = torch.ones(2, 8)
    noise = size.masked_fill(~mask, NAN)
    for method in ("pitome", "tome"):
        clean = pc.plan(x, torch.tensor([3, 2]), method, mask=mask, size=size)
        assert same(pc.plan(dirty, torch.tensor([3, 2]), method, mask=mask, size=noise), clean)


def test_labels_are_copied_back_whatever_they_are():
    plan = some_plan()
    for y in (ids(5, 7)[..., None], ids(True, False)[..., None], torch.tensor([[[1j], [2j]]])):
        assert torch.equal(plan.unmerge(y), y[:, [0, 0, 1, 1]])


@pytest.mark.parametrize("dtype", INTEGERS[1:], ids=str)
def test_plans_from_indices_of_every_integer_type(dtype):
    expected = roots(ids(0, 0, 2, 2))
    assert same(roots(ids(0, 0, 2, 2).to(dtype)), expected)
    assert same(merges(ids(1, 3).to(dtype), ids(0, 2).to(dtype), np.int64(4)), expected)
    assert same(pc.MergePlan(expected.assignment.to(dtype), np.int64(2), expected.anchored), expected)


def test_plans_of_dropped_and_padded_tokens_are_plans():
    """What is next to a refused plan, and right."""
    dropped = roots(torch.tensor([[0, 0, -1, 3], [0, 1, 1, 1]]), drops=True)
    assert dropped.num_tokens == 2 and dropped.assignment.tolist() == [[0, 0, -1, 1], [0, 1, 1, 1]]
    padded = roots(torch.tensor([[0, 0, 2, 3], [0, 1, 2, -1]]), drops=True)
    again = pc.MergePlan(padded.assignment, 3, padded.anchored, padded.valid, drops=True)
    assert same(again, padded) and same(again.settled(), padded)
    uneven = roots(torch.tensor([[0, 0, 2], [0, 1, 2]]))
    assert same(pc.MergePlan(uneven.assignment, 3, uneven.anchored, uneven.valid), uneven)
    masked = merges(torch.tensor([[1], [3]]), torch.tensor([[0], [0]]), 4, active=torch.tensor([[True], [False]]),
                    mask=torch.tensor([[True] * 4, [True] * 3 + [False]]))
    assert masked.assignment.tolist() == [[0, 0, 1, 2], [0, 1, 2, -1]]


@pytest.mark.parametrize("seed", range(20))
def test_what_the_checks_let_through_is_a_partition(seed):
    """Random roots and pairs: either refused, or every law of a partition holds (item by item, against loops)."""
    generator = torch.Generator().manual_seed(seed)
    passed = 0
    for _ in range(60):
        root = torch.randint(-1, 5, (2, 4), generator=generator)
        good = all(r == -1 or (r < 4 and item[r] == r) for item in root.tolist() for r in item)
        try:
            plan = roots(root, drops=True)
        except ValueError:
            assert not good
            continue
        assert good
        passed += 1
        for item, slots in zip(root.tolist(), plan.assignment.tolist(), strict=True):
            anchors = [i for i, r in enumerate(item) if r == i]
            assert slots == [-1 if r == -1 else anchors.index(r) for r in item]
    source, target = (torch.randint(0, 6, (2, 2), generator=generator) for _ in range(2))
    good = all(len({*a}) == 2 and not {*a} & {*b} for a, b in zip(source.tolist(), target.tolist(), strict=True))
    if good:
        assert merges(source, target, 6).assignment.max() == 3
    else:
        with pytest.raises(ValueError):
            merges(source, target, 6)


# -------------------------------------------------------------------------------------- inside models, and with graphs
def halves(metric, remove):
    """A method of a user: it calls the public class method, with int32 roots."""
    place = torch.arange(metric.shape[1], device=metric.device, dtype=torch.int32).repeat(metric.shape[0], 1)
    return pc.MergePlan.from_roots(place.clamp_min(remove), metric.shape[1] - remove)


def test_methods_that_use_the_public_constructors_can_be_compiled(registry, images):
    """Values are not read while a graph is made; outside, a wrong plan of a method raises in the forward call."""
    pc.register_method("halves", halves, paper="none", summary="none", limit="all")
    model, x = pc.apply(vit(depth=1), "halves", keep=0.75), images()
    with torch.no_grad():
        expected = model(x)
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        traced = torch.jit.trace(model, (x,), check_trace=False)
        exported = torch.export.export(model, (x,)).module()
        for graph_of_it in (compiled, traced, exported):
            torch.testing.assert_close(graph_of_it(x), expected)

    def chained(metric, remove):
        return pc.MergePlan.from_roots(torch.arange(metric.shape[1]).sub(1).clamp_min(0).repeat(metric.shape[0], 1))

    pc.register_method("chained", chained, paper="none", summary="none", limit="all")
    with pytest.raises(ValueError, match="which is no anchor"):
        pc.apply(model, "chained", keep=0.75)


def test_values_are_not_read_on_the_device_meta():
    root = torch.zeros(2, 4, dtype=torch.long, device="meta")
    assert roots(root, 1).shape == (2, 4)
    assert merges(root[:, :1], root[:, 1:2], 4).num_tokens == 3


def test_our_methods_do_not_pay_for_checks(monkeypatch, images):
    """A forward call of every registered method reads no roots and no pairs: on a GPU that would wait for it."""
    from pitome_core import checks

    def never(*_):
        raise AssertionError("the values of a plan were looked at")

    monkeypatch.setattr(checks, "roots", never)
    monkeypatch.setattr(checks, "pairs", never)
    monkeypatch.setattr(checks, "slots", never)
    with pytest.raises(AssertionError):
        some_plan()
    model = vit()
    for method in ("pitome", "tome", *sorted(pc.methods())):
        if not method.startswith(("test", "first", "toy")):
            keep = [0.25, 1, 1] if method == "grid_pool" else 0.75
            with pc.patched(model, method, keep), torch.no_grad():
                model(images())


def test_a_traced_model_is_refused_with_the_remedy(images):
    model, proxy = pc.apply(vit(), keep=0.75), torch.fx.Proxy(torch.fx.Graph().placeholder("x"))
    for entry in (model.forward_features, model.forward):
        with pytest.raises(TypeError, match="symbolic_trace cannot trace a merging model.*torch.export"):
            entry(images(), attn_mask=proxy)
    with pytest.raises(TypeError, match="torch.export"):
        torch.fx.symbolic_trace(pc.apply(vit(), keep=0.75))


# --------------------------------------------------------------------------------------------- remove=, and no merging
@pytest.mark.parametrize("method", ["pitome", "tome", "random_prune"])
@pytest.mark.parametrize("remove", [0, 1, 5, 8, [6, 0, 3], 100])
def test_remove_is_the_schedule_of_that_method(images, method, remove):
    """Limits are those of the method that is applied: ToMe halves at most, pruning leaves one token."""
    model, x = vit(), images()
    planned = pc.schedule(pc.apply(model, method), remove=remove)
    with torch.no_grad():
        expected = pc.apply(model, method, keep=planned)(x)
        assert torch.equal(pc.apply(pc.remove(model), method, remove=remove)(x), expected)
    assert pc.flops(model).tokens == planned.tokens


def test_a_fixed_count_is_refused_where_lengths_differ():
    transformers = pytest.importorskip("transformers")
    small = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=50)
    model = transformers.BertModel(transformers.BertConfig(**small))
    with pytest.raises(ValueError, match="a schedule is made for one length.*every item has its own.*as a ratio"):
        pc.apply(model, remove=2)
    with pytest.raises(ValueError, match="not patched"):
        pc.settings(model)


@pytest.mark.parametrize(("keep", "warns"), [(0.98, True), ([1, 1, 0.98], True), (0.97, False), (1.0, False)])
def test_a_merge_of_nothing_is_said_once(keep, warns, recwarn):
    """49 tokens at 0.98: 49 - 48.02 is no whole token. One warning, at `apply`; none where nothing was asked for."""
    model = vit(img_size=112)
    pc.apply(model, keep=keep)
    said = [str(warning.message) for warning in recwarn if "nothing merges" in str(warning.message)]
    assert len(said) == warns and (not warns or "all 49 tokens" in said[0])
    assert pc.flops(model).tokens[-1] == 50 or not warns


def test_a_model_with_too_few_patches_is_said(recwarn):
    pc.apply(vit(img_size=16), keep=0.5)
    said = recwarn.pop(UserWarning)
    assert "all 1 tokens" in str(said.message) and said.filename == __file__  # the caller's line
    pc.apply(vit(img_size=16), "tome", remove=8)
    assert "all 1 tokens" in str(recwarn.pop(UserWarning).message)
    pc.apply(vit(img_size=16), "tome", remove=0)
    assert len(recwarn) == 0
