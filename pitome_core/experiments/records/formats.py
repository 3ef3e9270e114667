"""How the book writes numbers: no minus zero, a space before the percent sign, intervals in brackets.

Each function takes a number of Python, numpy or a tensor with one element, because an f-string without a format shows
``np.float64(0.5)`` where such a number stands in a list. `Difference.format` writes paired differences in the same
form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import SupportsFloat


def signed(value: SupportsFloat, digits: int = 3) -> str:
    """A change: ``+0.012``, with ``digits`` decimals. What is rounded to zero is ``+0.000``.

    Example:
        >>> signed(-0.0001), signed(-1.5, 1)
        ('+0.000', '-1.5')
    """
    return f"{float(value):+z.{digits}f}"


def percent(share: SupportsFloat, digits: int = 0) -> str:
    """A share as percent: 0.823 is ``82 %``, with ``digits`` decimals. What is rounded to zero has no sign.

    Example:
        >>> percent(0.823), percent(0.0125, 1), percent(-0.001)
        ('82 %', '1.3 %', '0 %')
    """
    return f"{float(share):z.{digits}%}".replace("%", " %")


def signed_percent(share: SupportsFloat, digits: int = 0) -> str:
    """A change of a share as percent: 0.05 is ``+5 %``.

    Example:
        >>> signed_percent(0.05), signed_percent(-0.001)
        ('+5 %', '+0 %')
    """
    return f"{float(share):+z.{digits}%}".replace("%", " %")


def interval(estimate: Iterable[SupportsFloat], form: Callable[[SupportsFloat], str] = signed) -> str:
    """A value and the ends of its interval, each written by ``form``: ``+0.012 [+0.003, +0.021]``.

    Args:
        estimate: (mean, low, high), as `mean_interval` gives them.
        form: a function of this module, or one made of it by `functools.partial`.

    Raises:
        ValueError: if ``estimate`` has not three numbers.

    Example:
        >>> interval((0.823, 0.79, 0.85), percent)
        '82 % [79 %, 85 %]'
    """
    written = [form(value) for value in estimate]
    if len(written) != 3:
        raise ValueError(f"an interval has three numbers (mean, low, high), got {len(written)}")
    mean, low, high = written
    return f"{mean} [{low}, {high}]"
