"""Text classification with a merged BERT: its grid, its tasks, the training of classifiers, and the command."""
