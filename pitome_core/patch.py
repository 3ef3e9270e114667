"""What runs inside a forward."""

from .patching import ForwardState, LayerStep, Patch, find_patch, merge_tokens

__all__ = ["ForwardState", "LayerStep", "Patch", "find_patch", "merge_tokens"]
