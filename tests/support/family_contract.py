"""What every supported model has to do, as functions that raise AssertionError where it does not.

`call(model)` returns what is compared: tensors in any nesting. The models are in eval mode with random weights.
"""

from __future__ import annotations

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import oracle
import pytest
import torch
from torch import nn

import pitome_core as pc


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tiny models: several threads would wait for each other longer than they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tensors(value) -> list[torch.Tensor]:
    """All tensors inside, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [] if value is None else [part for entry in value for part in tensors(entry)]


def shapes(value):
    """Types, shapes and dtypes of a nesting."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.dtype
    if isinstance(value, dict):
        return {key: shapes(entry) for key, entry in value.items()}
    return type(value), None if value is None else [shapes(entry) for entry in value]


def outputs(model, call) -> list[torch.Tensor]:
    """What a call gives, without gradient."""
    with torch.no_grad():
        return tensors(call(model))


def snapshot(model: nn.Module) -> dict:
    """Everything an instance holds: per module its class and the identity of every attribute and entry."""
    return {
        name: (type(module), {
            key: tuple((k, id(v)) for k, v in value.items()) if isinstance(value, dict) else id(value)
            for key, value in vars(module).items()
        })
        for name, module in model.named_modules()
    }


def close(got, expected, tolerance: float = 1e-6) -> None:
    """Equal number of tensors, each equal within the tolerance."""
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def is_refused(model, words: str) -> None:
    """`apply` raises with the reason and what is supported, and leaves the model as it was."""
    before = snapshot(model)
    with pytest.raises(pc.UnsupportedModelError, match=f"(?s){words}.*Supported"):
        pc.apply(model, keep=0.9)
    assert snapshot(model) == before


def keep_one_is_the_identity(model, call) -> None:
    """keep=1 changes nothing to 1e-6, and the whole merging path with a plan that merges nothing to 1e-5."""
    expected = outputs(model, call)
    close(outputs(pc.apply(model, keep=1.0), call), expected)
    pc.register_method(
        "nothing", lambda metric, remove: pc.MergePlan.identity(*metric.shape[:2]), paper="none", summary="no merge"
    )
    close(outputs(pc.apply(model, "nothing", keep=0.7), call), expected, 1e-5)
    pc.remove(model)


def merges_as_planned(model, call, patches: int, depth: int, keep: float = 0.7) -> None:
    """Types and shapes stay, tokens go as the schedule says, and something does change."""
    with torch.no_grad():
        before = call(model)
    pc.apply(model, keep=keep)
    with torch.no_grad(), pc.record(model) as trace:
        after = call(model)
    assert shapes(after) == shapes(before)
    left, expected = patches, []
    for k in oracle.keep_removals(patches, keep, depth):
        left -= k
        expected.append(left)
    for forward in trace.forwards:
        assert [layer.plan.num_tokens for layer in forward.layers] == expected[: len(forward.layers)]
        for layer in forward.layers:
            torch.testing.assert_close(layer.size.sum(dim=1), torch.full((layer.size.shape[0],), float(patches)))
    assert pc.schedule(model, keep=keep).tokens[-1] == expected[-1] + pc.schedule(model, keep=keep).prefix
    assert any(not torch.allclose(a, b, atol=1e-4) for a, b in zip(tensors(after), tensors(before), strict=True))
    pc.remove(model)


def remove_restores(model, call) -> None:
    """After remove the instance holds what it held, and gives the same to the bit; state_dict never changes."""
    before, names, expected = snapshot(model), list(model.state_dict()), outputs(model, call)
    whole = repr(model)
    pc.apply(model, keep=0.7)
    assert list(model.state_dict()) == names and "pitome" in repr(model)
    outputs(model, call)
    pc.remove(model)
    assert snapshot(model) == before and repr(model) == whole
    assert all(torch.equal(a, b) for a, b in zip(outputs(model, call), expected, strict=True))


def gradients_flow(model, loss) -> None:
    """Every parameter that learns unpatched learns patched, with finite gradients; checkpointing changes nothing."""
    loss(model).backward()
    learning = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    pc.apply(model, keep=0.7)
    gradients = []
    for enable in (False, True):
        model.train()
        model.set_grad_checkpointing(enable)
        model.zero_grad(set_to_none=True)
        loss(model).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        assert set(gradients[-1]) == learning and all(torch.isfinite(grad).all() for grad in gradients[-1].values())
    model.set_grad_checkpointing(False)
    close(list(gradients[1].values()), list(gradients[0].values()), 1e-5)
    model.eval()
    pc.remove(model)


def copies_are_independent(model, call) -> None:
    """deepcopy and pickle give a model of its own that merges alike and can be unpatched by itself."""
    whole = outputs(model, call)
    expected = outputs(pc.apply(model, keep=0.7), call)
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    held = [parameter.detach().clone() for parameter in model.parameters()]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    for twin in twins:
        close(outputs(twin, call), expected, 0)
        close(outputs(pc.remove(twin), call), whole, 0)
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), held, strict=True):
            parameter.copy_(value)
    close(outputs(model, call), expected, 0)
    pc.remove(model)


def survives_exceptions_and_threads(model, blocks, mlp: str, make) -> None:
    """An exception in any block leaves nothing behind; hooks fire; two threads get what each gets alone."""
    pc.apply(model, keep=0.7)
    inputs = [make(1), make(3)]
    expected = [outputs(model, lambda m, x=x: m(x)) for x in inputs]

    def explode(*_):
        raise RuntimeError("in the middle")

    for block in blocks:
        handle = getattr(block, mlp).register_forward_pre_hook(explode)
        try:
            model(inputs[0])
        except RuntimeError as error:
            assert "in the middle" in str(error)
        else:
            raise AssertionError("the hook inside the block did not fire")
        handle.remove()
        close(outputs(model, lambda m: m(inputs[0])), expected[0], 0)
    calls = []
    handles = [block.register_forward_hook(lambda *_: calls.append(1)) for block in blocks]
    outputs(model, lambda m: m(inputs[0]))
    assert len(calls) == len(blocks)
    for handle in handles:
        handle.remove()
    barrier = threading.Barrier(2)

    def work(index):
        barrier.wait()
        return [outputs(model, lambda m: m(inputs[index])) for _ in range(6)]

    with ThreadPoolExecutor(2) as pool:
        for index, results in enumerate(pool.map(work, range(2))):
            for result in results:
                close(result, expected[index], 1e-5)
    pc.remove(model)


def autocast_plans_in_float32(model, call) -> None:
    """Under autocast to bfloat16, sizes and energies are float32 and outputs finite, of the types without merging."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        before = call(model)
        pc.apply(model, keep=0.7)
        with pc.record(model) as trace:
            after = call(model)
    assert shapes(after) == shapes(before)
    assert all(torch.isfinite(value).all() for value in tensors(after))
    for layer in trace.layers:
        assert layer.size.dtype == torch.float32 and layer.energy.dtype == torch.float32
    pc.remove(model)


def every_kind_of_method_runs(model, call) -> None:
    """Pruning, and methods that read attention or places, give outputs of the usual shapes; transforms are refused."""
    with torch.no_grad():
        before = shapes(call(model))
        for name, method in pc.methods().items():
            if method.partition and not {"attention", "class_attention", "positions"} & set(method.needs):
                continue
            try:
                pc.apply(model, name, keep=[0.25, 1.0, 1.0] if name == "grid_pool" else 0.75)
            except pc.UnsupportedModelError:
                assert name == "dct", name
                continue
            assert shapes(call(model)) == before, name
            assert all(torch.isfinite(value).all() for value in tensors(call(model))), name
    pc.remove(model)


def compiles(model, x, method: str = "pitome") -> None:
    """`torch.compile(fullgraph=True)` gives what the eager model gives."""
    pc.apply(model, method, keep=0.7)
    with torch.no_grad():
        expected = model(x)
        got = torch.compile(model, backend="aot_eager", fullgraph=True)(x)
    close(tensors(got), tensors(expected), 1e-5)
    pc.remove(model)
