"""Training: the loop, its optimiser and the run folder."""

from omnirouter.train.loop import TrainResult, train

__all__ = ["TrainResult", "train"]
