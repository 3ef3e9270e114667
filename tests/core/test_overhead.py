"""What a merge step costs besides its arithmetic: operators dispatched, and no wait for the device."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import pitome_core as pc
from pitome_core.patch import merge_tokens
from pitome_core.patching import use_merge

pytest.importorskip("timm")
# An accelerator has to finish before the processor knows these results.
NO_LAUNCH = {"aten::empty", "aten::empty_like", "aten::new_empty", "aten::_unsafe_view"}  # views are left out as well
WAITS = {"aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::is_nonzero", "aten::equal"}


class Dispatched(TorchDispatchMode):
    """Counts the operators dispatched inside, by name."""

    def __init__(self):
        super().__init__()
        self.count, self.launches = Counter(), Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket._qualified_op_name
        self.count[name] += 1
        self.launches[name] += not (function.is_view or name in NO_LAUNCH)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("pool", ["token", "avg"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", ["pitome", "tome"])
def test_a_forward_never_waits(build_vit, images, method, dtype, pool):
    """Without padding, no decision of a forward is read back from the device."""
    model, x = build_vit(global_pool=pool).to(dtype), images(2, dtype=dtype)
    pc.apply(model, method, keep=0.7)
    with torch.no_grad(), Dispatched() as dispatched:
        model(x)
    assert not WAITS & set(dispatched.count)


def test_waiting_is_noticed():
    """A plan that counts its anchors reads the number back, and is seen to."""
    with Dispatched() as dispatched:
        pc.MergePlan.from_roots(torch.tensor([[0, 0, 2]]))
    assert WAITS & set(dispatched.count)


def test_views_are_no_launches():
    with Dispatched() as dispatched:
        torch.ones(2, 3)[:, 1:].flatten().add_(1)  # the slice is not contiguous: flattening it copies
    assert dispatched.launches.total() == 3 < dispatched.count.total()


@pytest.mark.parametrize(("method", "launches", "most"), [("tome", 38, 53), ("pitome", 45, 66)])
def test_a_step_dispatches_few_operators(build_vit, images, method, launches, most):
    """From keys to merged tokens and sizes: kernels that an accelerator starts, and operators with views included.

    The model has 256 tokens, because a CPU fills matrices of less than 16 rows up, which an accelerator does not.
    """
    steps = []

    def counted(step, *arguments):
        with Dispatched() as dispatched:
            result = merge_tokens(step, *arguments)
        steps.append((dispatched.launches.total(), dispatched.count.total()))
        return result

    model = use_merge(pc.apply(build_vit(img_size=256), method, keep=0.7), counted)
    with torch.no_grad():
        model(images(2, 256))
    assert len(steps) == 3 and all(one <= launches and every <= most for one, every in steps), steps


def test_a_class_token_is_read_without_composing_plans(build_vit, images, monkeypatch):
    """A head that reads the class token alone needs no patch back in its place."""
    model, x = pc.apply(build_vit(), keep=0.7), images(2)
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(x))
        monkeypatch.setattr(pc.MergePlan, "then", None)
        torch.testing.assert_close(model(x), expected, rtol=0, atol=0)
