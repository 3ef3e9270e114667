"""The command: what is measured is on record at once, and is not measured again."""

from __future__ import annotations

import argparse
import json

import pytest
import torch

from pitome_core.experiments.cost import command

pytest.importorskip("timm")
pytestmark = pytest.mark.usefixtures("on_the_processor")
TINY = ("--models", "vit_tiny_patch16_224", "--size", "48", "--batch", "1", "2", "--keep", "0.8", "--dtype", "float32",
        "--seconds", "0.01", "--repeats", "5")


@pytest.fixture
def cost(tmp_path):
    """Run the command with these arguments; and the record it writes."""
    def run(*words: str) -> int:
        parser = argparse.ArgumentParser()
        command.configure(parser)
        return command.main(parser.parse_args([*TINY, "--output", str(run.path), *words]))

    run.path = tmp_path / "folder" / "cost.json"
    run.read = lambda: json.loads(run.path.read_text())
    return run


def full(*_, **__):
    raise torch.cuda.OutOfMemoryError("CUDA out of memory")


def test_a_setup_is_measured_once(cost, capsys, monkeypatch):
    assert cost("--note", "a noisy machine") == 0
    record, text = cost.read(), cost.path.read_text()
    assert len(record["cells"]) == 2 and len(record["runs"]) == 1
    cell = record["cells"]["vit_tiny_patch16_224, batch 2, float32, keep 0.8, eager, 48 px"]
    assert cell["tokens"][0] == 10 and cell["rounds"] == 5 and cell["timm"] == "vit_tiny_patch16_224"
    assert {"seconds", "speedup", "implied", "efficiency", "of_free", "over_free"} <= set(cell["variants"]["pitome"])
    run = record["runs"][0]
    assert run["threads"] == torch.get_num_threads() and run["tf32"] is False and run["code"] and run["device"]
    assert run["note"] == "a noisy machine"
    assert cost() == 0
    assert cost.path.read_text() == text and "0 setups to measure, 2 measured before" in capsys.readouterr().out

    monkeypatch.setattr(command, "code_of", lambda *_: "of tomorrow")
    assert cost("--batch", "1") == 0
    record = cost.read()
    code = [record["runs"][cell["run"]]["code"] for cell in record["cells"].values()]
    assert [one == "of tomorrow" for one in code] == [True, False]


def test_operators_are_recorded_for_the_methods(cost):
    assert cost("--batch", "1", "--operators") == 0
    (cell,) = cost.read()["cells"].values()
    operators = {name: variant["operators"] for name, variant in cell["variants"].items() if "operators" in variant}
    assert {name: len(listed) for name, listed in operators.items()} == {"pitome": 17, "tome": 17}
    assert operators["pitome"]["others"][0] > 0, "sixteen, and the rest in one"
    assert 0 < cell["variants"]["pitome"]["step_share"] < 1


def test_a_kill_loses_one_setup(cost, monkeypatch):
    measure = command.measure

    def killed(setup, workshop, **options):
        if setup.batch == 2:
            raise KeyboardInterrupt
        return measure(setup, workshop, **options)

    monkeypatch.setattr(command, "measure", killed)
    with pytest.raises(KeyboardInterrupt):
        cost()
    assert [cell["batch"] for cell in cost.read()["cells"].values()] == [1]


def test_a_setup_that_fails_is_reported_and_tried_again(cost, capsys):
    words = ("--models", "resnet18", "vit_tiny_patch16_224", "--batch", "1")
    assert cost(*words) == 1
    assert ["error" in cell for cell in cost.read()["cells"].values()] == [True, False]
    assert "resnet18, batch 1, float32, keep 0.8, eager, 48 px: failed: " in capsys.readouterr().out
    cost(*words, "--list")
    assert [line[0] for line in capsys.readouterr().out.splitlines()[-2:]] == ["-", "x"]


def test_out_of_memory_is_an_answer_but_no_number(cost, monkeypatch, capsys):
    monkeypatch.setattr(command, "measure", full)
    assert cost() == 1  # nothing at all was measured
    assert all(cell["out_of_memory"] == ["all"] for cell in cost.read()["cells"].values())
    assert "out of memory: all" in capsys.readouterr().out


def test_the_time_that_is_left_ends_a_run(cost, capsys):
    assert cost("--minutes", "0") == 1
    assert "2 setups not measured within 0 minutes" in capsys.readouterr().out


def test_an_estimate_measures_nothing(cost, capsys):
    assert cost("--estimate") == 0
    assert "minutes in all" in capsys.readouterr().out and not cost.path.exists()


def test_graphs_need_cuda(cost, capsys):
    assert cost("--mode", "graph") == 2
    assert "choose eager, step or compile" in capsys.readouterr().err
