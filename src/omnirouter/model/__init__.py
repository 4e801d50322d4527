"""The CTC Transformer with dense or mixture-of-experts feed-forward layers, in pure torch."""

from omnirouter.model.encoder import CTCEncoder, EncoderOutput
from omnirouter.model.losses import Dispatch, ctc_loss, dispatch_of, load_balance_loss
from omnirouter.model.routing import Router, Routing

__all__ = [
    "CTCEncoder",
    "Dispatch",
    "EncoderOutput",
    "Router",
    "Routing",
    "ctc_loss",
    "dispatch_of",
    "load_balance_loss",
]
