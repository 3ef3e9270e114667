"""Tables: what stands in them comes out again."""

from __future__ import annotations

import doctest

from pitome_core.experiments.records import tables

HEADER, ROWS = ["cell", "", "share"], [("whole", "", 1), ("tome@0.9", "ToMe", "0.730")]


def test_markdown_has_a_line_per_row_and_a_rule_below_the_header():
    header, rule, *lines = tables.markdown(HEADER, iter(ROWS)).splitlines()
    assert (header, rule) == ("| cell | | share |", "|---|---|---|")
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in lines] == [
        ["whole", "", "1"], ["tome@0.9", "ToMe", "0.730"]]
    assert doctest.testmod(tables).failed == 0


def test_no_line_break_divides_an_interval():
    cells = ["+0.012 [+0.003, +0.021]", "[a page, with words](file.md)"]
    row = tables.markdown(["found", "page"], [cells]).splitlines()[2]
    assert row == "| +0.012 [+0.003,\u00a0+0.021] | [a page, with words](file.md) |"


def test_a_value_and_its_interval_can_stay_on_one_line():
    row = tables.markdown(["found"], [[tables.unbroken("+0.012 [+0.003, +0.021]")]]).splitlines()[2]
    assert row == "| +0.012\u00a0[+0.003,\u00a0+0.021] |"


def test_plain_columns_are_aligned():
    table = tables.plain(["cell", "share"], [("whole", "1.000"), ("tome@0.9", "0.7")], ["left", "right"])
    assert table.splitlines() == [
        "cell        share",
        "whole       1.000",
        "tome@0.9      0.7",
    ]
    left = tables.plain(["cell", "share"], [("whole", "1.000")]).splitlines()
    assert left == ["cell    share", "whole   1.000"]
