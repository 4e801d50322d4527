"""Training: the loop, its optimizer and the run folder."""

from omnirouter.train.trainer import TrainResult, train

__all__ = ["TrainResult", "train"]
