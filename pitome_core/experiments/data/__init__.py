"""The data of the embedded tier: pictures, photographs, splits, scenes, pairs, sentences, questions and clusters."""
