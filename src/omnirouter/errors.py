"""Failures that a person can act on; everything else imports them through `config`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence


class OmnirouterError(Exception):
    """A failure the user can act on: the message is one line that names what to change.

    The command line prints it and ends with exit status 1.
    """


class BadInput(OmnirouterError, ValueError):
    """An argument, file or recipe is wrong; the command line ends with exit status 2."""


def missing_extra(what: str, extra: str) -> BadInput:
    """The error for a package that an extra of pyproject.toml brings.

    Args:
        what: what needs which package, such as `serve needs fastapi`.
        extra: name of the extra.
    """
    install = f"pip install -c constraints.txt '.[{extra}]'"
    return BadInput(f"{what}: {install} (in the folder of omnirouter's source)")


def require_numbers(
    values: object,
    where: str,
    least: Mapping[str, float],
    above_zero: Sequence[str] = (),
    endless: Sequence[str] = (),
) -> None:
    """Refuse numbers of a configuration that are too small, or infinite.

    Args:
        values: the configuration.
        where: what stands before its keys in messages, such as `optim.`.
        least: the smallest value of each key.
        above_zero: keys whose values are more than zero.
        endless: keys whose values may be infinite.

    Raises:
        BadInput: one is too small, infinite, or no number.
    """
    for name, smallest in least.items():
        if not getattr(values, name) >= smallest:
            raise BadInput(f"{where}{name}: at least {smallest:g}, not {getattr(values, name)}")
    for name in above_zero:
        if not getattr(values, name) > 0:
            raise BadInput(f"{where}{name}: more than 0, not {getattr(values, name)}")
    for name in (*least, *above_zero):
        if name not in endless and getattr(values, name) == math.inf:
            raise BadInput(f"{where}{name}: a finite number, not {getattr(values, name)}")
