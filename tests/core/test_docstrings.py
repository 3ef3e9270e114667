"""The examples in the docstrings of the core run and print what they say, and every public function has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import pytest
import torch

import pitome_core as pc
from pitome_core import attention, spectral
from pitome_core.families import registry as families

pytest.importorskip("timm")
MODULES = [
    module.name
    for module in pkgutil.walk_packages(pc.__path__, "pitome_core.")
    if not module.name.startswith("pitome_core.experiments")
]
# Public names that are functions, and functions that readers of the book call.
FUNCTIONS = [getattr(pc, name) for name in pc.__all__ if inspect.isfunction(getattr(pc, name))]
FUNCTIONS += [pc.MergePlan.merge, pc.MergePlan.unmerge, pc.MergePlan.then, spectral.coarsen, spectral.lift]
FUNCTIONS += [attention.attention, attention.attention_map, attention.size_bias]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name, registry, monkeypatch):
    """Methods and families that an example registers are gone afterwards."""
    monkeypatch.setattr(families, "_REGISTERED", [])
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        pytest.skip(str(error))
    torch.manual_seed(0)
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__qualname__)
def test_public_functions_have_an_example(function):
    assert doctest.DocTestParser().get_examples(inspect.getdoc(function))


def test_a_wrong_example_is_noticed(capsys):
    test = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, None)
    assert doctest.DocTestRunner(verbose=False).run(test).failed == 1
