"""Spectral distance on the tokens of real models: what is measured, the tasks, and the command line."""
