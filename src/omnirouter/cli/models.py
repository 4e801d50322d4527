"""`omnirouter models`: the models that come with omnirouter, and their cards."""

from __future__ import annotations

from omnirouter.cli import console
from omnirouter.cli.options import DONE
from omnirouter.pretrained import BUNDLED, CARD, bundled_model, describe_bundled


def models(*, card: bool = False, json: bool = False) -> int:
    """Show the model that comes with omnirouter: what it writes and how well.

    Its name is taken wherever a checkpoint is: --model, --init, CHECKPOINT, omnirouter.load().

    Examples:
        omnirouter models
        omnirouter models --card

    Args:
        card: print the whole card: error rates on ten sets, data, licenses, limits.
        json: print a JSON list with name, description, folder and card.
    """
    folder = bundled_model()
    if card:
        print((folder / CARD).read_text(encoding="utf-8"), end="")
    elif json:
        about = {"name": BUNDLED, "description": describe_bundled()}
        console.as_json([about | {"folder": str(folder), "card": str(folder / CARD)}])
    else:
        print(f"{BUNDLED}: {describe_bundled()}")
        print("its card: omnirouter models --card")
    return DONE
