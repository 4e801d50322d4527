"""Metrics: error rates, expert load, training health."""
