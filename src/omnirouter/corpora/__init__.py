"""Corpora: readers, download, validation."""
