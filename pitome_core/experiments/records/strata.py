"""A mean difference taken apart: by photograph, or by how well the whole model does.

A mean near zero may be no effect, or a cancellation: above zero on some items and below on others. `by_cluster` shows
the values of one column, and `by_third` the items that the whole model finds hard, middling and easy.

By thirds of the whole model's outcome, regression to the mean is part of every difference: where the whole model did
badly by chance, what departs from it does better. A difference between two merged models has it too, in favour of the
one that is less like the whole model. So the difference of a control that only does damage, such as pooling, is read
beside it, and likeness to the whole model before it.
"""

from __future__ import annotations

import numpy as np

from pitome_core.experiments.records.cells import WHOLE
from pitome_core.experiments.records.results import Record
from pitome_core.experiments.records.statistics import Difference, paired_difference


def by_cluster(record: Record, first: str, second: str, name: str, column: str = "photograph") -> dict[str, Difference]:
    """Outcome of cell `first` minus that of `second` for every value of a column, from the lowest mean to the highest.

    ``Difference.items`` is the number of items behind a mean. The interval is over the record's other clusters, such as
    objects: it says how sure the mean of this photograph is. Where the record has none, items are taken as independent.
    `KeyError` names the columns that there are.
    """
    if column not in record.items:
        raise KeyError(f"no column {column!r} in {record.path.name}; there are {', '.join(record.items)}")
    labels = np.asarray(record.items[column])
    others = [other for other in record.header.get("clusters") or [] if other != column]
    found = {str(value): _among(record, first, second, name, labels == value, others) for value in np.unique(labels)}
    return dict(sorted(found.items(), key=lambda entry: entry[1].mean))


def by_third(
    record: Record, first: str, second: str, name: str, *, of: str = WHOLE, by: str | None = None
) -> tuple[Difference, Difference, Difference]:
    """Outcome of cell `first` minus that of `second` in the thirds of the items: lowest, middle, highest.

    Args:
        record: of at least three items.
        first, second: keys of cells; the mean is over seeds, as in `Record.difference`.
        name: the outcome that is compared.
        of: the cell whose outcome orders the items.
        by: that outcome; None: ``name``. Ties are in the order of the items.

    Intervals are over the record's clusters.
    """
    if len(record) < 3:
        raise ValueError(f"{record.path.name} has {len(record)} items: thirds need at least 3")
    values = record.per_item(of, by or name)
    if missing := int(np.isnan(values).sum()):
        raise ValueError(f"{missing} of {len(record)} items have no {by or name!r} in {of}: they stand in no third")
    order = np.argsort(values, kind="stable")
    clusters = record.header.get("clusters") or []
    low, middle, high = (
        _among(record, first, second, name, np.isin(np.arange(len(record)), part), clusters)
        for part in np.array_split(order, 3)
    )
    return low, middle, high


def _among(
    record: Record, first: str, second: str, name: str, among: np.ndarray, columns: list[str]
) -> Difference:
    """The difference over the items where ``among (n,)`` is true, with intervals over these columns."""
    pair = [record.per_item(key, name)[among] for key in (first, second)]
    return paired_difference(*pair, record.clusters_among(columns, among))
