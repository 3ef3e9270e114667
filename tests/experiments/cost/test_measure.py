"""The cell of a setup: ratios within rounds, variants that do not fit into memory, and estimates."""

from __future__ import annotations

import pytest
import torch

from pitome_core.experiments.cost.measure import estimate, measure, summarize
from pitome_core.experiments.cost.setups import DTYPES, PrefillShape, Setup, StepShape
from pitome_core.experiments.cost.variants import Variants, Workshop

pytest.importorskip("timm")
TINY = "vit_tiny_patch16_224"


def test_ratios_are_paired_within_rounds():
    """A machine that takes twice as long in some rounds changes no ratio."""
    slow = [1.0, 1.0, 2.0, 2.0, 2.0]
    samples = {"whole": [2 * s for s in slow], "free": slow, "pitome": [1.25 * s for s in slow]}
    summary = summarize(samples, {"whole": 300, "free": 100, "pitome": 120})
    assert summary["free"]["speedup"] == [2.0] * 3 and summary["free"]["implied"] == 3
    assert "of_free" not in summary["free"] and "speedup" not in summary["whole"]
    pitome = summary["pitome"]
    assert pitome["speedup"] == [1.6] * 3 and pitome["implied"] == 2.5 and pitome["efficiency"] == 0.64
    assert pitome["of_free"] == 0.8 and pitome["over_free"] == 0.2


def test_without_the_whole_model_there_is_no_speed_up():
    summary = summarize({"free": [1.0], "tome": [2.0]}, {"whole": 4, "free": 2, "tome": 3})
    assert summary == {"free": {"seconds": [1.0] * 3, "macs": 2}, "tome": {"seconds": [2.0] * 3, "macs": 3}}


def test_a_variant_out_of_memory_leaves_the_others():
    def full():
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    class Small(Workshop):
        def variants(self, setup):
            return Variants({"whole": full, "tome": lambda: None}, {"whole": 2, "tome": 1}, {"tokens": [5, 3]})

    cell = measure(Setup("any", 1, "float32", 0.9), Small(torch.device("cpu")), repeats=5, seconds=0)
    assert cell["out_of_memory"] == ["whole"] and list(cell["variants"]) == ["tome"]


def test_a_step_is_measured_alone():
    workshop = Workshop(torch.device("cpu"), shapes={"step": StepShape(16, 24, 2)})
    cell = measure(Setup("step", 2, "bfloat16", 0.75), workshop, repeats=5, seconds=0.01)
    assert cell["tokens"] == [17, 13] and set(cell["variants"]) == {"pitome", "tome"}
    assert cell["variants"]["pitome"]["macs"] == 16**2 * 12 + 17 * 24
    assert all("speedup" not in variant for variant in cell["variants"].values())


def test_a_prefill_setup_has_both_prompts():
    pytest.importorskip("transformers")
    shape = PrefillShape(32, 56, 2, 4, 40, image=64, text=4, tower_layers=4)
    cell = measure(Setup("small", 2, "float32", 0.8), Workshop(torch.device("cpu"), shapes={"small": shape}),
                   repeats=5, seconds=0.01)
    assert cell["tokens"] == [68, 4 + shape.image_tokens(0.8)]
    assert set(cell["variants"]) == {"whole", "merged"} and cell["variants"]["merged"]["implied"] > 1


def test_an_estimate_grows_with_the_work():
    setups = [Setup(TINY, batch, "float32", 0.9, mode) for batch in (1, 64) for mode in ("eager", "compile")]
    one, compiled, many, _ = estimate(setups, torch.device("cpu"), seconds=1, repeats=5)
    assert one < many and one + 100 < compiled


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_setups_on_the_device(dtype, mode):
    """Events, captured graphs and memory: every variant has numbers."""
    setup = Setup(TINY, 2, dtype, 0.8, mode, size=64)
    cell = measure(setup, Workshop(torch.device("cuda")), repeats=5, seconds=0.01)
    assert set(cell["variants"]) == {"whole", "free", "pitome", "tome"}
    for variant in cell["variants"].values():
        assert variant["seconds"][1] > 0
        assert mode != "eager" or variant["bytes_peak"] > variant["bytes_before"] > 0
