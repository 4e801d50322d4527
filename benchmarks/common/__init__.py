"""Parts that several benchmarks share: models, peers, running and reporting."""
