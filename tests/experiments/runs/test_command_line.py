"""Options of a command know their tier: one of the other tier is an error, and defaults come once the tier is known."""

from __future__ import annotations

import argparse

import pytest
import toy_sharded
from filelock import FileLock

from pitome_core.experiments import __main__ as command
from pitome_core.experiments.assets import AssetError
from pitome_core.experiments.cost import command as cost
from pitome_core.experiments.records import locking
from pitome_core.experiments.records.results import RecordError
from pitome_core.experiments.runs.command_line import Options
from pitome_core.experiments.spectra import command as spectra


@pytest.mark.parametrize("words, options, tier", [
    (["vision", "--model", "deit-s"], "--model is an option of the paper tier", "paper"),
    (["vision", "--data", "x", "--dtype", "float32"], "--data, --dtype are options of the paper tier", "paper"),
    (["text", "--profile", "paper", "--tasks", "movies"], "--tasks is an option of the embedded tier", "embedded"),
    (["vqa", "--profile", "paper", "--train", "--steps", "3"], "--train, --steps are options", "embedded"),
    (["retrieval", "--annotations", "x.json", "--estimate"], "--annotations is an option of the paper tier", "paper"),
])  # fmt: skip
def test_an_option_of_the_other_tier_is_an_error(words, options, tier, capsys, monkeypatch):
    monkeypatch.setenv("PITOME_PROFILE", "embedded")
    assert command.main(words) == 2
    error = capsys.readouterr().err
    assert options in error and f"add --profile {tier}, or leave" in error


@pytest.mark.parametrize("words, reason", [
    (["text", "--count", "0", "--tasks", "movies"], "--count 0 is below 1"),
    (["vqa", "--count", "-3"], "--count -3 is below 1"),
    (["vision", "--tasks", "scenes", "--keep", "1.5"], "scenes: keep 1.5 must lie between 0 and 1"),
    (["text", "--tasks", "movies", "--keep", "0.2"], "movies: keep 0.2 must lie between 0.5 and 1"),
])  # fmt: skip
def test_numbers_out_of_range_are_refused_with_their_reason(words, reason, capsys, monkeypatch):
    monkeypatch.setenv("PITOME_PROFILE", "embedded")
    assert command.main(words) == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("words", [["vqa", "--early"], ["vqa", "--steps", "3"], ["text", "--minutes", "3"],
                                   ["retrieval", "--recipe", "decay-2"]])
def test_an_option_that_means_nothing_by_itself_is_an_error(words, capsys):
    assert command.main(words) == 2 and f"{words[1]} goes with --train" in capsys.readouterr().err


@pytest.mark.parametrize("error", [RecordError("it is held"), AssetError("no network")])
@pytest.mark.parametrize("module", [spectra, cost])
def test_what_cannot_be_run_is_one_line_and_status_2(module, error, capsys, monkeypatch, tmp_path):
    """In the commands that are none of `Command`, too."""
    def refused(*_, **__):
        raise error

    monkeypatch.setattr(module.settings, "exact_float32", refused)
    name = module.__name__.split(".")[-2]
    assert command.main([name, "--output", str(tmp_path / "x")]) == 2
    assert capsys.readouterr().err == f"error: {error}\n"


def test_a_record_that_another_run_holds_is_refused_by_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PITOME_PROFILE", "paper")
    monkeypatch.setattr(toy_sharded.COMMAND.paper, "run", lambda args: locking.alone(tmp_path / "toy.json").__enter__())
    with FileLock(tmp_path / ".toy.json.lock"):
        assert toy_sharded.main([]) == 2
    assert capsys.readouterr().err == (f"error: {tmp_path / 'toy.json'} is being written by another run: wait until it "
                                       "has ended, or stop it\n")


def test_defaults_are_those_of_argparse():
    parser = argparse.ArgumentParser()
    options = Options(parser, "paper")
    options.add_argument("--number", type=int, default=3, help="how many (default: %(default)s)")
    options.add_argument("--flag", action="store_true")
    options.add_argument("--name")
    args = parser.parse_args(["--name", "x"])
    assert options.given(args) == ["--name"]
    options.fill(args)
    assert (args.number, args.flag, args.name) == (3, False, "x")
    assert "paper tier" in parser.format_help() and "(default: 3)" in parser.format_help()


@pytest.mark.parametrize("experiment", ["vision", "text", "retrieval", "vqa", "spectra", "cost"])
def test_every_experiment_has_help(experiment, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main([experiment, "--help"])
    assert stop.value.code == 0 and "--estimate" in capsys.readouterr().out
