"""What plans cost as N grows: the words of `pc.methods()` are true, and CrossGET works in tiles."""

from __future__ import annotations

import math
import re

import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import gaussian_tokens
from rivals import PLANNED, context, grid, one_hot_tokens, run
from torch.utils._python_dispatch import TorchDispatchMode

import pitome_core as pc
from pitome_core.experiments.baselines import crossget


def largest_tensor(call) -> int:
    """The number of entries of the largest tensor that a call makes; views and inputs do not count."""
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            nonlocal largest
            out = function(*arguments, **(keywords or {}))
            fresh = [t for t in (out if isinstance(out, tuple) else (out,)) if isinstance(t, torch.Tensor)]
            largest = max([largest, *(t.untyped_storage().nbytes() // t.element_size() for t in fresh
                                      if not t._is_view() and t.numel())])
            return out

    with Watch():
        call()
    return largest


@given(n=st.integers(1, 40), side=st.integers(1, 45), seed=st.integers(0, 2**31), share=st.floats(0, 1),
       tied=st.booleans())
def test_crossget_in_tiles_is_crossget(n, side, seed, share, tied):
    """Tiles of any width give the loop's plan, with exact ties, with padding, and with a token that is not finite."""
    metric = one_hot_tokens(seed, n, 4, torch.float64) if tied else gaussian_tokens(1, n, 6, seed)
    metric, k = metric.expand(2, -1, -1).clone(), round(share * (n - 1))
    length = 1 + seed % n
    counts = torch.tensor([k, round(share * (length - 1))])
    mask = torch.arange(n) < torch.tensor([[n], [length]])
    broken = metric.clone()
    broken[0, seed % n] = math.nan
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crossget, "_SIDE", side)
        plan, padded = run("crossget", metric, k, {}), run("crossget", metric, counts, {}, mask=mask)
        hurt = run("crossget", broken, k, {})
    assert oracle.plan_roots(plan)[0] == oracle.crossget_roots(metric[0], k)
    for item, count in enumerate((n, length)):
        roots = oracle.crossget_roots(metric[item, :count], int(counts[item]))
        assert padded.assignment[item, :count].tolist() == oracle.assignment(roots)
    assert torch.equal(hurt.assignment, run("crossget", broken, k, {}).assignment)


def test_crossget_holds_no_matrix_of_all_tokens(monkeypatch):
    """Beyond the width of a tile no tensor has more entries than a tile, or than the tokens themselves."""
    monkeypatch.setattr(crossget, "_SIDE", 64)
    metric = torch.randn(1, 1000, 16)
    assert largest_tensor(lambda: run("crossget", metric, 300, {})) <= max(64**2, metric.numel())
    monkeypatch.setattr(crossget, "_SIDE", 1000)
    assert largest_tensor(lambda: run("crossget", metric, 300, {})) == 1000**2, "the measure sees a matrix"


# What `scaling` says first about time and memory, as a number.
def stated(what: str, method: str, n: int, k: int, c: int) -> float:
    formula = re.search(rf"{what} ((?:[NMCk0-9^*/. ]|log )+)", pc.methods()[method].scaling).group(1).strip()
    formula = re.sub(r"(?<=[NMCk\d]) (?=[NMCkl])", " * ", formula).replace("^", "**").replace("log * N", "log2(N)")
    return eval(formula.replace("log N", "log2(N)"), {"N": n, "k": k, "M": n - k, "C": c, "log2": math.log2})


@pytest.mark.parametrize("method", ["pitome", "tome", *PLANNED, "dct", "grid_pool", "random_merge", "random_prune"])
def test_the_stated_scaling_is_true(method):
    """The largest tensor grows with N as stated, and the time is what `cost` counts, up to a factor of two or three."""
    measured = []
    for n in (256, 512):
        metric, k = gaussian_tokens(1, n, 2, 0, torch.float32), n // 8
        given = {**context(1, n, 0, torch.float32, prefix=0), "layer": 3, "num_layers": 4}
        if method == "grid_pool":
            given, k = {"positions": grid(1, n, 16)}, n - n // 4
        with torch.no_grad():
            measured.append(largest_tensor(lambda k=k, metric=metric, given=given: run(method, metric, k, given)))
        assert 0.5 <= measured[-1] / stated("memory", method, n, k, 2) <= 2.5, pc.methods()[method].scaling
        count = pc.methods()[method].cost
        if count is not None and count(n, k, 64)[0]:
            assert 0.6 <= count(n, k, 64)[0] / stated("time", method, n, k, 64) <= 1.6
    growth = stated("memory", method, 512, 64, 2) / stated("memory", method, 256, 32, 2)
    assert measured[1] / measured[0] == pytest.approx(growth, rel=0.1)
