"""Parts of `tools/claims.py`: links into the book, recorded evidence, counts from shapes, verdicts, and the page."""
