"""A mean difference taken apart: by photograph, and by thirds of what the whole model reaches."""

from __future__ import annotations

import numpy as np
import pytest

from pitome_core.experiments.records import results, strata
from pitome_core.experiments.records.statistics import paired_difference


@pytest.fixture
def scenes(tmp_path):
    """60 scenes on six photographs; on five of them `pitome` is .02 below `tome`, on the cat .10 above: mean zero."""
    generator = np.random.default_rng(0)
    photographs = ["cat", "cup", "rocket", "flower", "china", "flag"]
    items = {
        "id": [f"{i:02d}" for i in range(60)], "photograph": [photographs[i % 6] for i in range(60)],
        "object": [f"o{i % 11}" for i in range(60)],
    }
    record = results.Record(tmp_path / "x.json", {"clusters": ["object", "photograph"]}, items, [{}], {})
    on_cat = np.array(items["photograph"]) == "cat"
    whole = np.where(on_cat, 0.5, 0.9) + 0.001 * generator.permutation(60)
    noise = 0.001 * generator.normal(size=60)
    for key, values in {
        "whole": whole, "tome@0.9": whole - 0.01, "pitome@0.9": whole - 0.01 + np.where(on_cat, 0.1, -0.02) + noise,
        "random-merge@0.9/seed0": whole - 0.2, "random-merge@0.9/seed1": whole - 0.4,
    }.items():
        arm, _, rest = key.partition("@")
        seed = {"seed": int(rest[-1])} if "seed" in rest else {}
        keep = {"keep": 0.9} if rest else {}
        record.cells[key] = {"arm": arm, "run": 0, "outcomes": {"auc": values.tolist()}} | seed | keep
    return record


def test_a_cancellation_is_seen_by_photograph(scenes):
    assert abs(scenes.difference("pitome@0.9", "tome@0.9", "auc").mean) < 0.002
    found = strata.by_cluster(scenes, "pitome@0.9", "tome@0.9", "auc")
    assert len(found) == 6 and list(found)[-1] == "cat"
    assert [difference.side for difference in found.values()] == [-1] * 5 + [1]
    means = [difference.mean for difference in found.values()]
    assert means == sorted(means) and all(difference.items == 10 for difference in found.values())
    gap = scenes.outcome("pitome@0.9", "auc") - scenes.outcome("tome@0.9", "auc")
    for name, difference in found.items():
        on = [i for i, photograph in enumerate(scenes.items["photograph"]) if photograph == name]
        assert difference.mean == pytest.approx(np.mean([gap[i] for i in on]))
        objects = [scenes.items["object"][i] for i in on]
        assert difference == paired_difference(gap[on], np.zeros(10), objects)  # over objects, on this photograph
    assert found["cat"].clusters == (len({*scenes.items["object"][::6]}),)


def test_thirds_are_those_of_the_whole_model(scenes):
    whole = scenes.outcome("whole", "auc")
    gap = scenes.outcome("pitome@0.9", "auc") - scenes.outcome("tome@0.9", "auc")
    found = strata.by_third(scenes, "pitome@0.9", "tome@0.9", "auc")
    ranked = sorted(range(60), key=lambda i: whole[i])
    for difference, part in zip(found, (ranked[:20], ranked[20:40], ranked[40:]), strict=True):
        assert difference.items == 20 and difference.mean == pytest.approx(np.mean(gap[part]))
        assert len(difference.clusters) == 2  # objects and photographs of this third
    assert found[0].mean > 0.03 and found[1].mean < -0.01  # all scenes on the cat are in the lowest third
    overall = scenes.difference("pitome@0.9", "tome@0.9", "auc").mean
    assert np.mean([difference.mean for difference in found]) == pytest.approx(overall)
    falling = strata.by_third(scenes, "pitome@0.9", "tome@0.9", "auc", of="pitome@0.9")
    assert falling != found  # another cell orders the items otherwise


def test_seeds_are_averaged_and_unequal_thirds_are_allowed(scenes):
    found = strata.by_third(scenes, "random-merge@0.9", "whole", "auc")
    assert [difference.mean for difference in found] == pytest.approx([-0.3] * 3)
    few = results.Record(scenes.path, {}, {"id": list(range(5))}, [{}], {
        key: {"arm": key, "run": 0, "outcomes": {"auc": values}}
        for key, values in (("whole", [5, 5, 5, 5, 1]), ("a", [1, 0, 0, 0, 9]))
    })
    parts = strata.by_third(few, "a", "whole", "auc")
    assert [part.items for part in parts] == [2, 2, 1]
    assert [part.mean for part in parts] == [2.0, -5.0, -5.0]  # ties in the order of the items: 4 0, 1 2, 3


def test_what_cannot_be_taken_apart_is_refused(scenes):
    with pytest.raises(KeyError, match="no column 'animal' in x.json; there are id, photograph, object"):
        strata.by_cluster(scenes, "pitome@0.9", "tome@0.9", "auc", "animal")
    two = results.Record(scenes.path, {}, {"id": [0, 1]}, [{}], {"whole": {"run": 0, "outcomes": {"auc": [0, 1]}}})
    with pytest.raises(ValueError, match="2 items: thirds need at least 3"):
        strata.by_third(two, "whole", "whole", "auc")
