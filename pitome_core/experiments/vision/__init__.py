"""A merged Vision Transformer on saliency, features and classification: its tasks and the command."""
