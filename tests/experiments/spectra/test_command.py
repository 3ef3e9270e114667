"""The command line of the experiment on spectral distance."""

from __future__ import annotations

import argparse

from pitome_core.experiments.spectra import command


def test_a_partial_record_needs_a_place_of_its_own(capsys):
    parser = argparse.ArgumentParser()
    command.configure(parser)
    assert command.main(parser.parse_args(["--count", "3"])) == 2
    assert "--output" in capsys.readouterr().err
