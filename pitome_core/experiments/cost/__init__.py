"""Costs in seconds: the setups that are measured, their variants, and the command."""
