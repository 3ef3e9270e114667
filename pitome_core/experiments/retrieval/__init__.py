"""Image-text retrieval with a merged dual encoder: its grid, its tasks, the training of heads, and the command."""
