"""Failures that a person can act on; everything else imports them through `config.py`."""

from __future__ import annotations


class OmnirouterError(Exception):
    """A failure the user can act on: the message is one line that names what to change.

    The command line prints it and ends with exit status 1.
    """


class BadInput(OmnirouterError, ValueError):
    """An argument, file or recipe is wrong; the command line ends with exit status 2."""
