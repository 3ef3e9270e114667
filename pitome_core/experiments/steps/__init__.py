"""Fewer, larger merge steps: what merging in every second or third layer does to quality."""
