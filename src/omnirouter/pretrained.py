"""Models by name: the one that comes with the package, and those of the Hugging Face Hub."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

from omnirouter.config import PRETRAINED_DIR, BadInput, OmnirouterError, missing_extra

CARD = "README.md"
CHECKPOINT_FILES = ("config.json", "tokenizer.model", "model.safetensors")
NAME = re.compile(r"[\w.-]+/[\w.-]+")
BUNDLED = PRETRAINED_DIR.name  # english-small
BUNDLED_WRITES = "English in lower case without punctuation"


def resolve_model(model: str | Path | None = None) -> Path:
    """Folder or file of a model, whichever way it is named.

    Args:
        model: a path; `english-small` for the model that comes with the package, which is also
            meant if nothing is given; or `org/name` on the Hugging Face Hub. A path that exists
            wins over a name.

    Returns:
        Where the model is; a path that does not exist is returned as it is.

    Raises:
        BadInput: this installation lacks the bundled model, or the Hub has none of that name.
        OmnirouterError: the Hub cannot be reached.
    """
    if model is None or model == "":
        return bundled_model()
    if Path(model).exists():
        return Path(model)
    if str(model) == BUNDLED:
        return bundled_model()
    return fetch(str(model)) if is_hub_name(model) else Path(model)


def bundled_model() -> Path:
    """Folder of the English model that comes with the package.

    Raises:
        BadInput: this installation lacks it.
    """
    if not PRETRAINED_DIR.is_dir():
        raise BadInput(
            "model: this installation comes without a trained model; name a checkpoint folder, "
            "such as best/ of a training run"
        )
    return PRETRAINED_DIR


def describe_bundled() -> str:
    """One line on the bundled model: what it writes, and its error rates from its card."""
    try:
        card = (PRETRAINED_DIR / CARD).read_text(encoding="utf-8")
    except OSError:
        return BUNDLED_WRITES
    head = re.search(r"^\| set \|.*", card, re.MULTILINE)
    row = re.search(r"^\| dev \|.*", card, re.MULTILINE)
    if head is None or row is None:
        return BUNDLED_WRITES
    names, figures = ([cell.strip() for cell in line[0].split("|")] for line in (head, row))
    found = {name: cell.split()[0] for name, cell in zip(names, figures, strict=False) if cell}
    rates = []
    if "with its language model" in found:
        rates.append(f"{found['with its language model']}% with its language model")
    if "greedy" in found:
        rates.append(f"{found['greedy']}% without")
    return f"{BUNDLED_WRITES}; word error rate on its development set {', '.join(rates)}"


def is_hub_name(model: str | Path) -> bool:
    """Tell if this can only be a model on the Hub: `org/name`, and no folder `org` here."""
    return (
        isinstance(model, str)
        and NAME.fullmatch(model) is not None
        and not model.startswith(".")
        and not Path(model).parent.exists()
    )


def fetch(name: str, *, endpoint: str | None = None) -> Path:
    """Download a checkpoint from the Hub, or find it in the local cache.

    Args:
        name: `org/name`.
        endpoint: address of the Hub; huggingface_hub's own (HF_ENDPOINT) if None.

    Returns:
        The folder of the checkpoint.

    Raises:
        BadInput: there is no such model, or it may not be read.
        OmnirouterError: the Hub cannot be reached.
    """
    if find_spec("huggingface_hub") is None:
        raise missing_extra(f"{name}: no such folder, and the Hub needs huggingface_hub", "hub")
    import huggingface_hub
    from huggingface_hub import errors

    try:
        folder = huggingface_hub.snapshot_download(
            name, endpoint=endpoint, allow_patterns=[*CHECKPOINT_FILES, CARD]
        )
    except errors.RepositoryNotFoundError as error:
        raise BadInput(
            f"{name}: no such folder, and no such model on the Hub, or it is private"
        ) from error
    except errors.HFValidationError as error:
        raise BadInput(f"{name}: is no name of a model ({one_line(error)})") from error
    except Exception as error:  # of whichever client this version of huggingface_hub uses
        raise OmnirouterError(
            f"{name}: no such folder, and the Hub cannot be reached ({one_line(error)})"
        ) from error
    return Path(folder)


def one_line(error: Exception) -> str:
    """The message of an error without line breaks, or its type if it has none."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
