"""Publish a model on the Hugging Face Hub with a card of its own figures.

What is published is the checkpoint and the card. Paths of the training run, which config.json keeps
for the machine it was made on, stay behind.
"""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path

from omnirouter.checkpoint import Checkpoint, save_checkpoint
from omnirouter.config import BadInput, OmnirouterError, count_parameters, missing_extra
from omnirouter.files import render
from omnirouter.pretrained import CARD, NAME, one_line

PRIVATE = ("run", "averaged", "upcycled_from", "dense")  # what meta holds of the machine


def push(
    checkpoint: Checkpoint,
    name: str,
    *,
    private: bool = True,
    token: str | None = None,
    endpoint: str | None = None,
) -> str:
    """Publish a checkpoint with its card.

    Args:
        checkpoint: the model.
        name: `org/name`; made if it is not there.
        private: of a model that is made: seen by its owners only.
        token: for writing; the one huggingface_hub knows if None.
        endpoint: address of the Hub; huggingface_hub's own (HF_ENDPOINT) if None.

    Returns:
        The address of what was published.

    Raises:
        BadInput: the name is none.
        OmnirouterError: the Hub refuses or cannot be reached.
    """
    if find_spec("huggingface_hub") is None:
        raise missing_extra("the Hub needs huggingface_hub", "hub")
    from huggingface_hub import HfApi, errors

    if not NAME.fullmatch(name):
        raise BadInput(f"{name}: a model on the Hub is called org/name")
    api = HfApi(endpoint=endpoint, token=token)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "model")
        meta = {key: value for key, value in checkpoint.meta.items() if key not in PRIVATE}
        save_checkpoint(
            folder,
            model_state=checkpoint.model.state_dict(),
            config=checkpoint.config,
            tokenizer=checkpoint.tokenizer,
            meta=meta,
        )
        (folder / CARD).write_text(card(checkpoint, name), encoding="utf-8")
        try:
            api.create_repo(name, private=private, exist_ok=True)
            done = api.upload_folder(
                repo_id=name, folder_path=folder, commit_message="Upload a model of omnirouter"
            )
        except errors.HFValidationError as error:
            raise BadInput(f"{name}: is no name of a model ({one_line(error)})") from error
        except Exception as error:  # of whichever client this version of huggingface_hub uses
            raise OmnirouterError(f"{name}: not published ({one_line(error)})") from error
    return str(done.commit_url)


def card(checkpoint: Checkpoint, name: str) -> str:
    """The model card: what the model is and the figures of its own run, nothing else."""
    config = checkpoint.config
    count = count_parameters(config)
    return render(
        "omnirouter.serve", "card.md", name=name, config=config, count=count, meta=checkpoint.meta
    )
