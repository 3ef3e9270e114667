"""Model families: one file for each, which says how the loop over its blocks runs around the merge."""

from .registry import find_family, register_family

__all__ = ["find_family", "register_family"]
