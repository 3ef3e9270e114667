"""Model families: one file each, saying how its encoder loop runs around the merge."""

from .registry import Family, LayerShape, ModelShape, UnsupportedModelError, find_family, register_family

__all__ = ["Family", "LayerShape", "ModelShape", "UnsupportedModelError", "find_family", "register_family"]
