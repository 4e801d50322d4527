"""Routers wrapped for an experiment: the model itself knows nothing of it, and has them back after.

What may stand in for a router is anything that routes (`model/routing.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from omnirouter.model import CTCEncoder, Routing
from omnirouter.model.routing import RoutingContext


@contextmanager
def wrapped_routers(
    model: CTCEncoder, wrap: Callable[[nn.Module], nn.Module]
) -> Iterator[list[nn.Module]]:
    """Replace each router of `model` by `wrap(router)` for a while; yields the wrappers."""
    routers = list(model.routers)
    wrappers = [wrap(router) for router in routers]
    try:
        for number, wrapper in enumerate(wrappers):
            model.routers[number] = wrapper
        yield wrappers
    finally:
        for number, router in enumerate(routers):
            model.routers[number] = router


class Recorder(nn.Module):
    """Calls `saw` with each layer's input and index, then routes as before."""

    def __init__(self, router: nn.Module, saw: Callable[[int, Tensor], None]) -> None:
        super().__init__()
        self.router, self.saw = router, saw

    def forward(self, x_TD: Tensor, context: RoutingContext) -> Routing:
        """Route as the router itself."""
        self.saw(context.layer, x_TD)
        routing: Routing = self.router(x_TD, context)
        return routing
