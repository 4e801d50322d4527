"""Evaluation: error rates on test sets, their significance, tables beside the paper's."""
