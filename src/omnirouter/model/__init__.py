"""The CTC Transformer with dense or mixture-of-experts feed-forward layers, in pure torch."""

from omnirouter.model.encoder import CTCEncoder, EncoderOutput
from omnirouter.model.losses import ExpertCounts, count_assignments, ctc_loss, load_balance_loss
from omnirouter.model.routing import Router, Routing

__all__ = [
    "CTCEncoder",
    "EncoderOutput",
    "ExpertCounts",
    "Router",
    "Routing",
    "count_assignments",
    "ctc_loss",
    "load_balance_loss",
]
