"""Pseudo-labels: transcripts from a teacher model."""
