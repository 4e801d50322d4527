"""Benchmarks: one module per question, run by `omnirouter bench` and by `benchmarks/*.py`.

They live in the package, so that whoever installs it can measure their own machine.
"""
