"""Methods: each is a function from a metric to a plan, and stands in a table that everybody can add to."""

from . import pitome, tome  # noqa: F401  (importing a method's file registers it)
from .registry import Method, find_method, make_plan, methods, plan, register_method

__all__ = ["Method", "find_method", "make_plan", "methods", "plan", "register_method"]
