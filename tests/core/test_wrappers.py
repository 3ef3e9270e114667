"""A patched model inside the wrappers that users put around models, in either order where both can work.

Adapters (peft), replicas (DataParallel), hooks that move inputs and weights (accelerate), sharding (FSDP2),
checkpointing, compilation, copies, and layers on two devices.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import pickle
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import wrapped_models
from torch import equal, nn
from wrapped_models import KINDS, build, run

import pitome_core as pc
from pitome_core.instances import own_class
from pitome_core.patch import active_patch
from pitome_core.patching import find_patch, use_merge

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
from model_uses import replicate

every_kind = pytest.mark.parametrize("kind", KINDS)
KEEP = 0.7


# ------------------------------------------------------------------------------------------------- copies and replicas
@every_kind
def test_a_replica_runs_its_own_weights(kind):
    """What DataParallel makes for each device: with zeroed weights it gives another output than the original."""
    model, inputs = build(kind)
    expected = run(pc.apply(model, keep=KEEP), inputs)
    replica = replicate(model)
    assert equal(run(replica, inputs), expected)
    for module in replica.modules():
        for name, value in module._parameters.items():
            module._parameters[name] = None if value is None else torch.zeros_like(value)
    zeroed = copy.deepcopy(pc.remove(model))
    with torch.no_grad():
        for parameter in zeroed.parameters():
            parameter.zero_()
    torch.testing.assert_close(run(replica, inputs), run(zeroed, inputs))


@every_kind
def test_a_shallow_copy_runs_and_is_not_changed(kind):
    """It shares the blocks: it merges like the original, and only the original can be changed."""
    model, inputs = build(kind)
    whole, merged = run(model, inputs), run(pc.apply(model, keep=KEEP), inputs)
    twin = copy.copy(model)
    assert equal(run(twin, inputs), merged)
    for change in (pc.remove, pc.apply, lambda m: use_merge(m, None)):
        with pytest.raises(ValueError, match="shallow copy"):
            change(twin)
    assert equal(run(model, inputs), merged) and equal(run(twin, inputs), merged)
    assert equal(run(pc.remove(model), inputs), whole)
    with pytest.raises(RuntimeError, match="apply"):
        run(twin, inputs)
    assert equal(run(pc.remove(twin), inputs), whole), "what the copy held is void now"


def test_a_part_whose_class_was_derived_is_copied():
    """Sharding and replication derive a class from the one that they find."""
    model, inputs = build("timm")
    expected = run(pc.apply(model, keep=KEEP), inputs)
    model.__class__ = type("Sharded", (type(model),), {})
    twin = copy.copy(model)
    assert type(twin) is type(model) and equal(run(twin, inputs), expected)


def test_an_attribute_of_the_copy_counts():
    """A shallow copy with another head uses that head."""
    model, inputs = build("timm")
    pc.apply(model, keep=KEEP)
    twin = copy.copy(model)
    twin._modules = {**model._modules, "head": nn.Linear(48, 3)}
    assert run(twin, inputs).shape == (2, 3) and run(model, inputs).shape == (2, 7)


@every_kind
def test_signatures_and_names_stay(kind):
    """Trainers read the signature of `forward`; printing, pickling and saving read the name of the class."""
    model, _ = build(kind)
    before, cls = inspect.signature(model.forward), type(model)
    pc.apply(model, keep=KEEP)
    assert inspect.signature(model.forward) == before
    patched = type(model)
    assert issubclass(patched, cls) and own_class(model) is cls
    for name in ("__name__", "__qualname__", "__module__"):
        assert getattr(patched, name) == getattr(cls, name)
    assert type(pc.remove(model)) is cls


# ---------------------------------------------------------------------------------------------------------- adapters
@every_kind
@pytest.mark.parametrize("order", ["apply first", "adapter first"])
def test_low_rank_updates_have_an_effect_and_a_gradient(kind, order):
    """The adapted and merged model equals the merged model with the updates in its weights, and the updates learn."""
    peft = pytest.importorskip("peft")
    model, inputs = build(kind)
    if order == "apply first":
        pc.apply(model, keep=KEEP)
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=wrapped_models.ADAPTED[kind], init_lora_weights=False)
    torch.manual_seed(0)
    adapted = peft.get_peft_model(model, config)
    if order == "adapter first":
        pc.apply(adapted.get_base_model(), keep=KEEP)
    got = wrapped_models.output(adapted(**inputs))
    got.square().sum().backward()
    updates = {name: parameter for name, parameter in adapted.named_parameters() if "lora_" in name}
    assert updates
    silent = [name for name, value in updates.items() if value.grad is None or not value.grad.abs().sum() > 0]
    assert silent == []
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(run(merged, inputs), got.detach(), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        plain = pc.apply(copy.deepcopy(pc.remove(merged)), keep=KEEP)
    torch.testing.assert_close(run(plain, inputs), got.detach(), rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------------------- hooks of accelerate
@every_kind
@pytest.mark.parametrize("order", ["apply first", "offload first"])
def test_offloaded_weights_merge_in_both_orders(kind, order):
    """accelerate keeps weights away from the device and brings them for each call; it may come and go at any time."""
    hooks = pytest.importorskip("accelerate.hooks")
    from accelerate import cpu_offload

    if kind == "open_clip":
        pytest.skip("open_clip's attention reads the weight of a part that accelerate has moved away, also unmerged")
    model, inputs = build(kind)
    whole, merged = run(model, inputs), run(pc.apply(model, keep=KEEP), inputs)
    pc.remove(model)
    if order == "apply first":
        pc.apply(model, keep=KEEP)
    cpu_offload(model, execution_device="cpu")
    assert next(model.parameters()).is_meta
    if order == "offload first":
        assert equal(run(model, inputs), whole)
        pc.apply(model, keep=KEEP)
    assert equal(run(model, inputs), merged)
    pc.remove(model)
    assert equal(run(model, inputs), whole), "taken out below the hooks"
    pc.apply(model, keep=KEEP)
    hooks.remove_hook_from_submodules(model)
    assert equal(run(model, inputs), merged), "the hooks taken off first"
    assert equal(run(pc.remove(model), inputs), whole)
    assert equal(run(pc.apply(model, keep=KEEP), inputs), merged)


@every_kind
def test_a_forward_replaced_by_hand_is_refused_or_called(kind):
    """Before `apply` on a model, block or attention: refused, nothing changed. After it, it stays in the chain."""
    model, inputs = build(kind)
    whole, merged = run(model, inputs), run(pc.apply(model, keep=KEEP), inputs)
    replaceable = [module for module, _, function in wrapped_models.family(model).entry_points(model) if function]
    pc.remove(model)
    for module in dict.fromkeys(replaceable):
        calls = []

        def around(*args, _own=module.forward, _calls=calls, **kwargs):
            _calls.append(1)
            return _own(*args, **kwargs)

        module.forward = around
        with pytest.raises(ValueError, match="replaced on the instance"):
            pc.apply(model, keep=KEEP)
        del module.forward
        assert equal(run(model, inputs), whole)
        pc.apply(model, keep=KEEP)
        own = module.forward

        def outside(*args, _own=own, _calls=calls, **kwargs):
            _calls.append(1)
            return _own(*args, **kwargs)

        module.forward = outside
        assert equal(run(model, inputs), merged) and calls
        pc.remove(model)
        assert equal(run(model, inputs), whole), "the other order: the wrapper stays, merging is out"
        del module.forward


@every_kind
def test_every_module_that_runs_unmerged_runs_merged_or_is_named(kind):
    """Hooks on any module fire, merged as unmerged. Those that the family passes by are refused with hooks."""
    model, inputs = build(kind)

    def fired(model) -> set[str]:
        names: set[str] = set()
        handles = [m.register_forward_hook(lambda *_, n=n: names.add(n)) for n, m in model.named_modules()]
        run(model, inputs)
        for handle in handles:
            handle.remove()
        return names

    before = fired(model)
    pc.apply(model, keep=KEEP)
    passed_by = {id(module) for module, _, function in wrapped_models.family(model).entry_points(model) if not function}
    silent = {name for name, module in model.named_modules() if id(module) in passed_by}
    # The projection of nn.MultiheadAttention is not called in the original either.
    assert before - fired(model) == silent & before
    pc.remove(model)
    for name in silent:
        handle = model.get_submodule(name).register_forward_hook(lambda *_: None)
        with pytest.raises(ValueError, match="does not call it"):
            pc.apply(model, keep=KEEP)
        handle.remove()


def test_hooks_on_attention_see_what_they_know():
    """A hook gets the output that the attention has without merging, and may change it."""
    for kind in KINDS:
        model, inputs = build(kind)
        seen = []
        attention = wrapped_models.attention(model)
        attention.register_forward_hook(lambda module, args, output, s=seen: s.append(type(output)))
        run(model, inputs)
        merged = run(pc.apply(model, keep=KEEP), inputs)
        assert len(seen) == 2 and seen[0] is seen[1]

        def doubled(module, args, output):
            return 2 * output if isinstance(output, torch.Tensor) else (2 * output[0], *output[1:])

        attention.register_forward_hook(doubled)
        assert not torch.allclose(run(model, inputs), merged)


# ------------------------------------------------------------------------------- sharding, checkpointing, compilation
@pytest.fixture(scope="module")
def mesh(tmp_path_factory):
    """One process that is a group of its own."""
    from torch import distributed

    store = tmp_path_factory.mktemp("group") / "store"
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


@every_kind
@pytest.mark.parametrize("order", ["apply first", "shard first"])
def test_fully_sharded_models_merge(kind, order, mesh):
    """FSDP2 changes the class of instances, as merging does. Both orders run; merging comes out under the sharding."""
    from torch.distributed.fsdp import fully_shard

    model, inputs = build(kind)
    whole, merged = run(model, inputs), run(pc.apply(model, keep=KEEP), inputs)
    if order == "shard first":
        pc.remove(model)
    for block in wrapped_models.blocks(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    pc.apply(model, keep=KEEP)
    torch.testing.assert_close(run(model, inputs), merged)
    output = wrapped_models.output(model(**inputs))
    output.square().sum().backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert gradients and all(torch.isfinite(gradient.to_local()).all() for gradient in gradients)
    torch.testing.assert_close(run(pc.remove(model), inputs), whole)
    torch.testing.assert_close(run(pc.apply(model, keep=KEEP), inputs), merged)


@every_kind
def test_blocks_are_wrapped_after_apply(kind):
    """`torch.compile` or `checkpoint_wrapper` around single blocks: after apply it runs, before it is refused."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    def compiled(block):
        return torch.compile(block, backend="eager")

    for wrap in (checkpoint_wrapper, compiled):
        model, inputs = build(kind)
        expected = run(pc.apply(model, keep=KEEP), inputs)
        holder, names = wrapped_models.holder(model)
        own = {name: getattr(holder, name) for name in names}
        for name, block in own.items():
            setattr(holder, name, wrap(block))
        torch.testing.assert_close(run(model, inputs), expected)
        for name, block in own.items():
            setattr(holder, name, block)
        pc.remove(model)
        setattr(holder, names[1], wrap(own[names[1]]))
        with pytest.raises(pc.UnsupportedModelError, match="pc.apply first, then wrap"):
            pc.apply(model, keep=KEEP)
        setattr(holder, names[1], own[names[1]])
        assert equal(run(pc.apply(model, keep=KEEP), inputs), expected)


def test_no_two_methods_share_a_code_object():
    """torch.compile keeps eight versions of one: compiled blocks of one family would use up those of all models."""
    methods = set()
    for kind in KINDS:
        model, _ = build(kind)
        pc.apply(model, keep=KEEP)
        parts = (model, wrapped_models.blocks(model)[0], wrapped_models.attention(model))
        methods |= {type(part).forward for part in parts if active_patch(part) is not None}
    ours = [method.__code__ for method in methods if method.__code__.co_name == "method"]  # transformers wraps its own
    assert len(ours) >= 10 and len({id(code) for code in ours}) == len(ours)


@every_kind
def test_a_block_put_in_after_apply_is_named(kind):
    model, inputs = build(kind)
    expected = run(pc.apply(model, keep=KEEP), inputs)
    holder, names = wrapped_models.holder(model)
    old = getattr(holder, names[1])
    setattr(holder, names[1], wrapped_models.blocks(build(kind)[0])[1])
    with pytest.raises(RuntimeError, match="put in after pc.apply"):
        run(model, inputs)
    setattr(holder, names[1], old)
    assert equal(run(model, inputs), expected)


@every_kind
def test_a_block_put_behind_the_last_is_named(kind):
    model, inputs = build(kind)
    expected = run(pc.apply(model, keep=KEEP), inputs)
    holder, names = wrapped_models.holder(model)
    holder.append(wrapped_models.blocks(build(kind)[0])[1])
    with pytest.raises(RuntimeError, match="more than the 3 blocks"):
        run(model, inputs)
    del holder[len(names)]
    assert equal(run(model, inputs), expected)


@pytest.mark.parametrize("kind", ["timm", "eva", "open_clip"])
def test_scripting_is_refused_while_merging(kind):
    """`torch.jit.script` reads source code, and that of a replaced method is the unmerged one."""
    model, inputs = build(kind)
    pc.apply(model, keep=KEEP)
    for whole in (model, nn.Sequential(model), wrapped_models.blocks(model)[0]):
        with pytest.raises(TypeError, match="pc.remove"):
            torch.jit.script(whole)
    if kind == "timm":
        assert equal(run(torch.jit.script(pc.remove(model)), inputs), run(model, inputs))


# --------------------------------------------------------------------------------------------- loops that do not merge
@every_kind
def test_a_caller_that_walks_the_blocks_is_told(kind):
    """A loop of its own would leave out the merges, while `flops` counts them. One block can be run on purpose."""
    model, inputs = build(kind)
    taken = []
    block = wrapped_models.blocks(model)[0]
    handle = block.register_forward_pre_hook(lambda _, args, kwargs: taken.append((args, kwargs)), with_kwargs=True)
    run(model, inputs)
    handle.remove()
    args, kwargs = taken[0]
    with torch.no_grad():
        own = block(*args, **kwargs)
        pc.apply(model, keep=KEEP)
        with pytest.raises(RuntimeError, match=r"(?s)model\(\.\.\.\).*pc.unmerged"):
            block(*args, **kwargs)
        again = pc.unmerged(block)(*args, **kwargs)
    assert equal(wrapped_models.first(again), wrapped_models.first(own))
    with pytest.raises(ValueError, match="more than a block"):
        pc.unmerged(model)
    with pytest.raises(ValueError, match="no part of a patched model"):
        pc.unmerged(wrapped_models.blocks(pc.remove(model))[0])


def test_a_model_that_shares_blocks_is_told():
    """Patching one of two models with the same blocks: the other one raises, and is right again after `remove`."""
    first, inputs = build("timm")
    second, _ = build("timm")
    second.blocks = first.blocks
    expected = run(second, inputs)
    pc.apply(first, keep=KEEP)
    with pytest.raises(RuntimeError, match="called by itself"):
        run(second, inputs)
    with pytest.raises(ValueError, match="merges already"):
        pc.apply(second, keep=KEEP)
    pc.remove(first)
    assert equal(run(second, inputs), expected)


def test_a_block_used_twice():
    """It stands in two layers, and each layer removes its own tokens."""
    model, inputs = build("timm")
    model.blocks = nn.Sequential(model.blocks[0], model.blocks[0], model.blocks[1])
    whole = run(model, inputs)
    with pc.record(pc.apply(model, keep=KEEP)) as trace:
        run(model, inputs)
    assert [layer.plan.num_tokens for layer in trace.layers] == [12, 9, 7]
    assert equal(run(pc.remove(model), inputs), whole)


# ------------------------------------------------------------------------------------------------ changes in the middle
class Interrupt(BaseException):
    """Stands in for Ctrl-C."""


@every_kind
@pytest.mark.parametrize("patched_before", [False, True])
def test_an_interrupt_in_apply_changes_nothing(kind, patched_before, monkeypatch):
    """Wherever it strikes, the model is what it was before, and it can be patched and unpatched."""
    import pitome_core.patching as patching

    model, inputs = build(kind)
    if patched_before:
        pc.apply(model, "tome", keep=0.9)
    expected, give = run(model, inputs), patching.give_methods
    for strike in range(0, 9, 2):
        count = []

        def give_or_stop(*arguments, _count=count, _strike=strike):
            _count.append(1)
            if len(_count) == _strike + 1:
                raise Interrupt
            give(*arguments)

        monkeypatch.setattr(patching, "give_methods", give_or_stop)
        with contextlib.suppress(Interrupt):
            pc.apply(model, keep=KEEP)
        monkeypatch.setattr(patching, "give_methods", give)
        if len(count) > strike:
            assert equal(run(model, inputs), expected), strike
        if not patched_before:
            pc.remove(model)
            assert find_patch(model) is None and all(active_patch(part) is None for part in model.modules())
        else:
            pc.apply(model, "tome", keep=0.9)


@pytest.mark.parametrize("change", ["remove", "apply"])
@pytest.mark.parametrize("kind", KINDS)
def test_changes_between_forward_and_backward_under_checkpointing(kind, change):
    """Recomputing blocks after `remove` refuses; after another `apply` it gives the gradients of the forward."""
    model, inputs = build(kind)
    pc.apply(model, keep=KEEP).train()
    wrapped_models.checkpointing(model, True)
    wrapped_models.output(model(**inputs)).square().sum().backward()
    expected = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    loss = wrapped_models.output(model(**inputs)).square().sum()
    if change == "remove":
        pc.remove(model)
        with pytest.raises(RuntimeError, match="pc.remove was called"):
            loss.backward()
    else:
        pc.apply(model, "tome", keep=0.9)
        loss.backward()
        for parameter, gradient in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient)
        pc.remove(model)
    wrapped_models.checkpointing(model, False)
    run(model.eval(), inputs)


def test_applying_while_threads_run_never_leaves_a_merge_out():
    """Each forward is merged by one of the two patches, whole."""
    model, inputs = build("timm")
    settings = [("pitome", 0.7), ("tome", 0.9)]
    expected = [run(pc.apply(model, *which), inputs) for which in settings]
    stop, wrong = threading.Event(), []

    def work():
        while not stop.is_set():
            got = run(model, inputs)
            if not any(torch.allclose(got, one, atol=1e-6) for one in expected):
                wrong.append(got)

    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(work) for _ in range(2)]
        for turn in range(150):
            pc.apply(model, *settings[turn % 2])
        stop.set()
        for job in jobs:
            job.result()
    assert wrong == []


@every_kind
def test_two_threads_that_change_a_model_leave_none_half_patched(kind):
    """`apply` and `remove` in two threads at once: afterwards the model can be restored, and nothing is left in it."""
    model, inputs = build(kind)
    whole = run(model, inputs)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def work():
        for _ in range(60):
            pc.apply(model, keep=KEEP)
            pc.remove(model)

    try:
        with ThreadPoolExecutor(3) as pool:
            for job in [pool.submit(work) for _ in range(3)]:
                job.result()
    finally:
        sys.setswitchinterval(interval)
    assert [name for part in pc.remove(model).modules() for name in vars(part) if "pitome" in name] == []
    assert equal(run(model, inputs), whole)


def test_a_recording_goes_on_through_apply_and_keeps_remove_waiting():
    model, inputs = build("timm")
    pc.apply(model, keep=KEEP)
    with pc.record(model) as trace:
        run(model, inputs)
        pc.apply(model, "tome", keep=0.5)
        run(model, inputs)
        with pc.patched(model, keep=0.9):
            run(model, inputs)
        with pytest.raises(RuntimeError, match="recording"):
            pc.remove(model)
        run(model, inputs)
    assert [forward.layers[0].plan.num_tokens for forward in trace.forwards] == [12, 8, 15, 8]
    pc.remove(model)


def test_a_pickle_inside_a_recording_carries_no_forwards():
    model, inputs = build("timm")
    pc.apply(model, keep=KEEP)
    before = len(pickle.dumps(model))
    with pc.record(model) as trace:
        run(model, {"x": torch.randn(16, 3, 64, 64)})
        assert len(pickle.dumps(model)) == before
        twin = pickle.loads(pickle.dumps(model))
        run(twin, inputs)
    assert len(trace.forwards) == 1 and equal(run(twin, inputs), run(model, inputs))


# ------------------------------------------------------------------------------------------------------ two devices
@every_kind
def test_layers_on_two_devices(kind):
    """Plans, sizes and places follow the tokens. The second device is `meta`, which has shapes and no values."""
    accelerate = pytest.importorskip("accelerate.hooks")
    if kind == "BERT":
        pytest.skip("the lengths of texts are values, which the second device here has not")
    model, inputs = build(kind)
    whole = run(model, inputs)
    second = wrapped_models.behind_first_block(model)
    for order in ("apply first", "hooks first"):
        split = copy.deepcopy(model)
        if order == "apply first":
            pc.apply(split, keep=KEEP)
        for name in second:
            part = split.get_submodule(name).to("meta")
            for module in part.modules():
                accelerate.add_hook_to_module(module, accelerate.AlignDevicesHook("meta"))
        if order == "hooks first":
            pc.apply(split, keep=KEEP)
        got = run(split, inputs)
        assert got.is_meta and got.shape == whole.shape


def test_more_models_are_compiled_than_one_function_has_versions():
    """Each class has code of its own. With one code object for all, the ninth model would not be compiled."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=1), torch.no_grad():
        for kind in KINDS[:4]:
            model, inputs = build(kind)
            expected = run(pc.apply(model, keep=KEEP), inputs)
            compiled = torch.compile(model, backend="eager", fullgraph=True)
            torch.testing.assert_close(wrapped_models.output(compiled(**inputs)), expected)
    torch._dynamo.reset()


def test_a_tower_put_in_after_apply_is_named():
    """The model around it would run the new tower unmerged; a wrapper around the old one is fine."""
    import open_clip
    from transformers import ViTConfig, ViTForImageClassification

    vision = dict(layers=2, width=48, head_width=16, patch_size=8, image_size=32)
    text = dict(context_length=12, vocab_size=50, width=32, heads=2, layers=1)
    config = ViTConfig(hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=96, image_size=64,
                       patch_size=16)
    cases = [
        (lambda: open_clip.CLIP(24, vision, text).eval(), "visual", "encode_image", torch.randn(2, 3, 32, 32)),
        (lambda: ViTForImageClassification(config).eval(), "vit", "forward", torch.randn(2, 3, 64, 64)),
    ]
    for make, name, method, images in cases:
        model, other = pc.apply(make(), keep=KEEP), make()
        expected, tower = getattr(model, method)(images), getattr(model, name)
        setattr(model, name, torch.compile(tower, backend="eager"))
        again = getattr(model, method)(images)
        for a, b in zip(wrapped_models.parts(again), wrapped_models.parts(expected), strict=True):
            torch.testing.assert_close(a, b)
        setattr(model, name, getattr(other, name))
        with pytest.raises(RuntimeError, match=f"'{name}' was put in after pc.apply"):
            getattr(model, method)(images)
        setattr(model, name, tower)
        pc.remove(model)
