"""Recorded runs: cells and their keys, outcomes item by item, provenance, intervals and published tables."""
