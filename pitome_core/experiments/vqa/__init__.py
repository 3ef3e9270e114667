"""Visual question answering with a merged LLaVA: its grid, its tasks, the training of the LLaVA, and the command."""
