"""Open a model for use by name: bundled, checkpoint, export or Hub. Loads torch only if needed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from omnirouter.config import PRETRAINED_DIR, BadInput, BeamSearchOptions, VadOptions
from omnirouter.decoding import Scorer, decoder_for
from omnirouter.pretrained import resolve_model
from omnirouter.serve.onnx import OnnxTranscriber, is_export
from omnirouter.serve.recognizer import Recognizer


def load(
    path: str | Path | None = None,
    device: str = "auto",
    *,
    language_model: str | Path | None = None,
    hot_words: str | Sequence[str] | None = None,
    listening: VadOptions | None = None,
    n_best: int = 0,
    scorer: Scorer | None = None,
    scorer_weight: float = 0.5,
) -> Recognizer:
    """Load a model for use.

    Args:
        path: a checkpoint folder, such as the `best` of a training run; the folder of an export or
            one of its graphs; `org/name` of a model on the Hugging Face Hub; `english-small`, or
            None, for the English model that comes with this version.
        device: `cpu`, `cuda`, or `auto` for CUDA where there is a device.
        language_model: an ARPA or KenLM file, `english` for the one that comes with omnirouter, or
            `none` for greedy decoding. If not given, the bundled model uses the bundled one and
            any other model is decoded greedily.
        hot_words: words to favor, as a list or separated by commas.
        listening: how audio is split and batched.
        n_best: texts to keep as `alternatives` of each segment; needs a language model.
        scorer: gives natural log-probabilities of texts, by which the 20 best (or `n_best`) of each
            segment are ranked once more; needs a language model.
        scorer_weight: weight of the scorer's log-probabilities beside the search's score.

    Raises:
        BadInput: the folder is neither a whole checkpoint nor an export, there is no such model or
            device, or the language model cannot be used.
        OmnirouterError: the Hub cannot be reached.
    """
    search = BeamSearchOptions(
        language_model=None if language_model is None else Path(language_model),
        hot_words=hot_words if isinstance(hot_words, str) else ",".join(hot_words or ()),
    )
    return open_model(
        path,
        device,
        listening=listening,
        search=search,
        n_best=n_best,
        scorer=scorer,
        scorer_weight=scorer_weight,
    )


def open_model(
    path: str | Path | None,
    device: str = "auto",
    *,
    precision: Literal["fp32", "bf16"] = "fp32",
    threads: int | None = None,
    listening: VadOptions | None = None,
    search: BeamSearchOptions | None = None,
    note: Callable[[str], None] = warnings.warn,
    **ranking: Any,
) -> Recognizer:
    """Load with all settings of the search; `note` is told of a missing language model.

    `ranking` is `n_best`, `scorer` and `scorer_weight`.
    """
    path = resolve_model(path)
    recognizer: Recognizer
    if is_export(path):
        if device == "cuda" or precision == "bf16":
            raise BadInput(
                "device and precision: an exported model runs on the CPU as it is; remove them"
            )
        recognizer = OnnxTranscriber(path, threads=threads or 0, listening=listening)
        bundled = recognizer.bundled
    else:
        import torch

        from omnirouter.checkpoint import load_checkpoint, torch_device
        from omnirouter.serve.transcriber import Transcriber

        if threads is not None:
            torch.set_num_threads(threads)
        checkpoint = load_checkpoint(path, torch_device(device))
        recognizer = Transcriber(checkpoint, precision=precision, listening=listening)
        bundled = is_bundled(path)
    search = search or BeamSearchOptions()
    recognizer.decoder = decoder_for(
        recognizer.tokenizer, search, bundled=bundled, note=note, **ranking
    )
    return recognizer


def is_bundled(path: str | Path | None) -> bool:
    """The checkpoint is the one that comes with omnirouter."""
    return path is not None and Path(path).resolve() == PRETRAINED_DIR.resolve()
