"""The notebooks for Colab: Markdown that needs no Sphinx, the same code, links to the published book."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import colab  # noqa: E402

FILES = sorted((ROOT / "notebooks").glob("*.ipynb"))
# A role, the fence of a directive or its options, and a link that is relative.
RAW = re.compile(
    r"\{[\w:-]+\}`|^(?:`{3,}|:{3,})\{|^:::|^:[\w-]+:|^\([\w-]+\)=|\$\$ *\(|^% |\]\((?!https?:|#)",
    re.MULTILINE)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_nothing_of_sphinx_is_left(file):
    before, after = nbformat.read(file, as_version=4), colab.converted(file)
    for cell in after.cells:
        if cell.cell_type == "markdown":
            assert not RAW.search(cell.source), RAW.search(cell.source)
            assert cell.source.count("```") % 2 == 0
    code = [cell.source for cell in before.cells if cell.cell_type == "code"]
    assert [cell.source for cell in after.cells if cell.cell_type == "code"] == code
    captions = [cell for cell in before.cells if cell.metadata.get("mystnb", {}).get("figure")]
    assert sum(cell.source.startswith("*Figure.*") for cell in after.cells) == len(captions)


def test_links_lead_to_pages_that_the_book_has():
    found = set()
    for file in FILES:
        for cell in colab.converted(file).cells:
            found |= set(re.findall(re.escape(colab.book_url()) + r"([\w/]+)\.html", cell.source))
    assert len(found) > 15
    for page in found:
        assert any((ROOT / f"{page}{ending}").is_file() for ending in (".md", ".ipynb")), page


@pytest.mark.parametrize(("source", "expected"), [
    ("as {cite}`bolya2023tome` says", "as ([Bolya et al., 2023](URLbook/bibliography.html)) says"),
    ("{cite}`holm1979,mcnemar1947`", "([Holm, 1979; McNemar, 1947](URLbook/bibliography.html))"),
    ("{ref}`the thirds <fig-vision-cancellation>` and {prf:ref}`lem-lift`",
     "[the thirds](URLnotebooks/record_vision.html#fig-vision-cancellation) and "
     "[lemma *lift*](URLbook/coarsening.html#lem-lift)"),
    ("[a](../book/claims.md#claim-x), [b](02_energy_score.ipynb), [c](https://x.org/a.md)",
     "[a](URLbook/claims.html#claim-x), [b](URLnotebooks/02_energy_score.html), [c](https://x.org/a.md)"),
    ("```{exercise} Twins\n:label: ex-a\nWhat?\n```\n\n```{solution-start} ex-a\n:class: dropdown\n```",
     "#### Exercise: Twins\n\nWhat?\n\n#### Solution"),
    ("Yes.\n\n```{solution-end}\n```", "Yes."),
    ("```{solution} ex-a\n:class: dropdown\nYes.\n```", "#### Solution\n\nYes."),
    (":::{dropdown} Why\n:open:\nSo.\n:::", "<details><summary>Why</summary>\n\nSo.\n\n</details>"),
    ("```python\nx = {a}\n```", "```python\nx = {a}\n```"),
])  # fmt: skip
def test_what_becomes_of_it(source, expected):
    assert colab.plain(source, "notebooks/01_why_merge") == expected.replace("URL", colab.book_url())


def test_a_work_that_the_bibliography_lacks_is_an_error():
    with pytest.raises(KeyError, match="nobody2030"):
        colab.plain("{cite}`nobody2030`", "notebooks/01_why_merge")
