"""Synthetic speech: voices, texts and the corpora made of them."""
