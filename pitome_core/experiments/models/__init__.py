"""The real models that experiments run: how each is loaded, and what is read from it."""
