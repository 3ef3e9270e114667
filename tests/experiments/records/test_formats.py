"""How numbers are written: minus zero, the percent sign, signs, intervals."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from pitome_core.experiments.records.formats import interval, percent, signed, signed_percent
from pitome_core.experiments.records.statistics import paired_difference

ROOT = Path(__file__).resolve().parents[3]
KINDS = (float, np.float32, np.float64, torch.tensor)
SCRIPTS = sorted((ROOT / "notebooks").glob("*.py"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("write", "value", "text"), [
    (signed, 0.0124, "+0.012"), (signed, -0.0126, "-0.013"), (signed, -0.0004, "+0.000"), (signed, -0.0, "+0.000"),
    (partial(signed, digits=1), -0.04, "+0.0"), (percent, 0.823, "82 %"), (percent, 0.0, "0 %"),
    (percent, -0.004, "0 %"), (partial(percent, digits=1), 0.0126, "1.3 %"), (percent, -0.25, "-25 %"),
    (signed_percent, 0.05, "+5 %"), (signed_percent, -0.05, "-5 %"), (signed_percent, -0.004, "+0 %"),
])
def test_written(kind, write, value, text):
    assert write(kind(value)) == text


def test_an_interval_is_written_like_a_difference():
    found = paired_difference([0.3, 0.1, 0.4, 0.2], [0.1, 0.2, 0.1, 0.1])
    assert interval((found.mean, found.low, found.high)) == found.format()
    assert interval((found.mean, found.low, found.high), partial(signed, digits=1)) == found.format(1)
    assert interval(np.array([0.823, 0.79, 0.85]), percent) == "82 % [79 %, 85 %]"


def test_an_interval_has_three_numbers():
    with pytest.raises(ValueError, match="three numbers.*got 2"):
        interval((0.1, 0.2))


# `{share:.0%}` puts no space before the sign, and shows `-0%`; an interval by hand may have `-0.000`.
BY_HAND = re.compile(r"\{[^{}]*:[^{}:]*%\}|\[\{[^{}]*:\+\.\d+f\}, \{")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_notebooks_write_percent_and_intervals_by_these_functions(script):
    assert BY_HAND.findall(script.read_text()) == []


def test_the_package_writes_percent_with_a_space():
    files = [path for path in (ROOT / "pitome_core").rglob("*.py") if path.name != "formats.py"]
    assert files and [path.name for path in files if re.search(r"\{[^{}]*:[^{}:]*%\}", path.read_text())] == []


def test_the_search_finds_what_is_written_by_hand():
    assert BY_HAND.search('f"{one[\'a\']:.1%} of"') and BY_HAND.search('f"{m:+.3f} [{low:+.3f}, {high:+.3f}]"')
    assert not BY_HAND.search('f"{percent(share)} of {n:.2f}"')
