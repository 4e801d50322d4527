"""Checkpoints: a folder with config.json, tokenizer.model and model.safetensors, replaced whole.

A new checkpoint is written and flushed beside the old one, the old one is moved aside, the new one
takes its name, and only then the old one is removed. Whenever the process dies, a whole checkpoint
is left: under its name, or (between the two renames) under `previous_path`, where `load_checkpoint`
looks too.

Weights may lie in int8: every row of a matrix as whole numbers and the one factor that scales them,
which moves a value by at most 1/254 of the largest of its row. Products are in floating point.
"""

from __future__ import annotations

import json
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from omnirouter.config import BadInput, ModelConfig
from omnirouter.files import clear_leftovers, copy_entry, flush, previous_path, write_atomically
from omnirouter.model import CTCEncoder
from omnirouter.pretrained import BUNDLED, CHECKPOINT_FILES, resolve_model
from omnirouter.text import Tokenizer

LARGEST = 127
SCALE = ":scale"  # behind a tensor's name: that of its rows' factors
SMALLEST_MATRIX = 4096  # elements; what has fewer stays as it is: biases, norms, routers


def quantize(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a model, its matrices in int8 beside their factors, all else in float32.

    Routers stay exact whatever their size: rounding would flip close decisions.

    Args:
        state: an encoder's `state_dict`.

    Returns:
        What `dequantize` reads; a row of zeros stays one.
    """
    found = {}
    for name, t in state.items():
        large = t.ndim >= 2 and t.numel() >= SMALLEST_MATRIX and t.is_floating_point()
        if not large or name.startswith("routers."):
            found[name] = t
        else:
            scale = t.float().abs().amax(dim=-1, keepdim=True) / LARGEST
            whole = t.float() / scale.clamp_min(torch.finfo(torch.float32).tiny)
            found[name], found[name + SCALE] = whole.round().to(torch.int8), scale
    return found


def dequantize(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as a checkpoint holds them, in float32 where they are int8 with factors.

    Half of such a pair is no tensor of a model: int8 values without factors that fit are left out,
    factors without values stay, and whoever looks for the tensors of a model names them.
    """
    found = {name: t for name, t in tensors.items() if t.dtype != torch.int8}
    for name, whole in tensors.items():
        if whole.dtype != torch.int8 or name + SCALE not in found:
            continue
        if found[name + SCALE].shape == (*whole.shape[:-1], 1):
            found[name] = whole.float() * found.pop(name + SCALE).float()
    return found


FORMAT = 1
CONFIG, TOKENIZER, WEIGHTS = FILES = CHECKPOINT_FILES
TRAINING_ONLY = ("dropout", "layer_drop")  # fields that matter to training alone


@dataclass(frozen=True)
class Checkpoint:
    """A trained model with all that is needed to use it.

    Attributes:
        model: in evaluation mode, float32, on the device asked for.
        tokenizer: its word pieces.
        config: what the model is.
        meta: whatever was stored with it (steps, error rates, ...).
        path: the folder it was read from.
    """

    model: CTCEncoder
    tokenizer: Tokenizer
    config: ModelConfig
    meta: dict[str, Any]
    path: Path


@dataclass(frozen=True)
class _Contents:
    """The files of a checkpoint folder, read and checked; float tensors as float32, on the CPU."""

    config: ModelConfig
    tokenizer: Tokenizer
    meta: dict[str, Any]
    tensors: dict[str, Tensor]
    path: Path


def save_checkpoint(
    folder: str | Path,
    *,
    model_state: Mapping[str, Tensor],
    config: ModelConfig,
    tokenizer: Tokenizer,
    meta: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint, in place of the one that `folder` may already hold.

    One process at a time may write to a folder. On failure an earlier checkpoint stays as it was
    and nothing is left behind. Files of others in the folder stay.

    Args:
        folder: where; made with its parents, replaced as a whole if it is a checkpoint already.
        model_state: the encoder's `state_dict`, on any device.
        config: what the model is.
        tokenizer: as large as `config.vocab_size`.
        meta: further values for config.json.

    Raises:
        BadInput: if `folder` holds something else, or tokenizer and config do not fit.
        OmnirouterError: if it cannot be written (disk full, no permission).
    """
    _require_fit(config, tokenizer, str(folder))
    target = Path(folder).resolve()
    if target.exists() and not _replaceable(target):
        raise BadInput(f"{folder}: exists and is no checkpoint; choose another folder or empty it")
    description = {"format": FORMAT, "model": config.to_dict(), "meta": dict(meta or {})}
    text = json.dumps(description, indent=2) + "\n"
    tensors = {name: t.detach().cpu().contiguous() for name, t in model_state.items()}

    def write(temporary: Path) -> None:
        temporary.mkdir()
        (temporary / CONFIG).write_text(text, encoding="utf-8")
        tokenizer.save(temporary / TOKENIZER)
        try:
            save_file(tensors, temporary / WEIGHTS)
        except SafetensorError as error:  # a full disk, in its own words
            raise OSError(" ".join(str(error).split())) from error
        # safetensors lets nobody but the owner read; others may read it if they may read the rest
        (temporary / WEIGHTS).chmod((temporary / CONFIG).stat().st_mode)
        for name in FILES:
            flush(temporary / name)
        for other in _others(target):
            copy_entry(other, temporary / other.name)

    clear_leftovers(target)
    write_atomically(target, write)


def load_checkpoint(folder: str | Path, device: str | torch.device = "cpu") -> Checkpoint:
    """Read a checkpoint; the model comes in evaluation mode.

    It is given as a folder, or by name as `resolve_model` takes it. If the program that wrote it
    died while exchanging the old checkpoint for the new one, the old one is read from where it had
    been moved to.

    Raises:
        BadInput: in one line, for a folder or file that is missing, damaged, of another format
            version, or whose tensors do not fit its config or are not numbers.
    """
    contents = _read(folder)
    with torch.device("meta"):  # no time spent on initial weights, no random numbers drawn
        model = CTCEncoder(contents.config)
    _require_tensors(model, contents)
    model.load_state_dict(contents.tensors, assign=True)
    if not all(weight.isfinite().all() for weight in model.parameters()):
        raise BadInput(f"{folder}: holds weights that are not numbers (NaN or infinite)")
    return Checkpoint(
        model=model.to(device).eval(),
        tokenizer=contents.tokenizer,
        config=contents.config,
        meta=contents.meta,
        path=contents.path,
    )


def torch_device(device: str) -> str:
    """A device by the name that users give: `cpu`, `cuda`, `cuda:N`, or `auto`.

    Raises:
        BadInput: there is no such name, or no such device here.
    """
    if device not in ("auto", "cpu", "cuda") and not device.startswith("cuda:"):
        raise BadInput(f"device: auto, cpu or cuda, not {device!r}")
    available = device != "cpu" and torch.cuda.is_available()
    if device.startswith("cuda") and not available:
        raise BadInput("device: PyTorch finds no CUDA device here; use cpu or auto")
    return device if device != "auto" else "cuda" if available else "cpu"


def average_checkpoints(folders: Sequence[str | Path], out: str | Path) -> None:
    """Write a checkpoint whose weights are the mean of others, taken in float32.

    Other than float tensors come from the last one; `meta` lists the sources.

    Raises:
        BadInput: if there is no folder, or config, vocabulary or tensors differ between them.
        OmnirouterError: if `out` cannot be written.
    """
    if not folders:
        raise BadInput("average: give at least one checkpoint folder")
    first = _read(folders[0])
    means = dict(first.tensors)
    for folder in folders[1:]:
        other = _read(folder)
        if difference := _difference(first, other):
            raise BadInput(
                f"{folder}: {difference} differs from {folders[0]}; average models of one kind"
            )
        for name, t in other.tensors.items():
            means[name] = means[name] + t if t.is_floating_point() else t
    for name, t in means.items():
        means[name] = t / len(folders) if t.is_floating_point() else t
    save_checkpoint(
        out,
        model_state=means,
        config=first.config,
        tokenizer=first.tokenizer,
        meta={"averaged": [str(folder) for folder in folders]},
    )


def _replaceable(target: Path) -> bool:
    """Tell if `target` is an empty folder or a checkpoint, not another program's model."""
    if not target.is_dir():
        return False
    names = {entry.name for entry in target.iterdir()}
    if not {CONFIG, WEIGHTS} <= names:
        return not names
    try:
        return "format" in json.loads((target / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def _others(target: Path) -> list[Path]:
    """Files that stand in a checkpoint's folder beside it."""
    entries = target.iterdir() if target.is_dir() else ()
    return [entry for entry in entries if entry.name not in FILES]


def checkpoint_folder(folder: str | Path) -> Path:
    """Folder of a whole checkpoint that is given as for `load_checkpoint`.

    Raises:
        BadInput: it is no folder, or a file is missing.
    """
    path = resolve_model(folder)
    if not path.exists() and previous_path(path).is_dir():
        path = previous_path(path)
    if not path.is_dir():
        raise BadInput(
            f"{folder}: is not a folder; give the one that holds {', '.join(FILES)}, or "
            f"{BUNDLED} for the model that comes with omnirouter"
        )
    for name in FILES:
        if not (path / name).is_file():
            best = path / "best"
            hint = f"; did you mean {best}?" if (best / name).is_file() else ""
            raise BadInput(f"{folder}: {name} is missing, this is not a whole checkpoint{hint}")
    return path


def _read(folder: str | Path) -> _Contents:
    path = checkpoint_folder(folder)
    config, meta = _read_config(path / CONFIG)
    tokenizer = Tokenizer.load(path / TOKENIZER)
    _require_fit(config, tokenizer, str(path))
    try:
        tensors = dequantize(load_file(path / WEIGHTS))
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())
        raise BadInput(f"{path / WEIGHTS}: damaged or not readable ({reason})") from error
    for name, t in tensors.items():
        # own memory: the file may change or vanish, and lies there at any alignment
        tensors[name] = t.to(torch.float32 if t.is_floating_point() else t.dtype, copy=True)
    return _Contents(config, tokenizer, meta, tensors, path)


def _read_config(path: Path) -> tuple[ModelConfig, dict[str, Any]]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: not readable as JSON ({error})") from error
    version = data.get("format") if isinstance(data, dict) else None
    if version != FORMAT:
        raise BadInput(
            f"{path}: checkpoint format {version}, but this omnirouter reads {FORMAT}; "
            "use the version it was made with, or one that reads it"
        )
    for key, kind in (("model", dict), ("meta", dict)):
        if not isinstance(data.get(key), kind):
            raise BadInput(f"{path}: {key} is missing or not an object")
    try:
        return model_config(data["model"]), data["meta"]
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from error


def model_config(data: Any) -> ModelConfig:
    """Build the `ModelConfig` that `to_dict` was called on.

    Raises:
        BadInput: a key is missing, unknown or wrong.
    """
    rebuilt: ModelConfig = _rebuild(ModelConfig, data, "model")
    return rebuilt


def _rebuild(kind: type[Any], data: Any, where: str) -> Any:
    """A (nested) config dataclass from JSON values; every key must be there and no other.

    Keys added after the first release (`added` in the field's metadata) may be missing.
    """
    if not isinstance(data, dict):
        raise BadInput(f"{where} is not an object")
    names = {field.name for field in fields(kind)}
    if unknown := sorted(data.keys() - names):
        raise BadInput(f"{where}.{unknown[0]} is not a known key")
    required = {field.name for field in fields(kind) if not field.metadata.get("added")}
    if missing := sorted(required - data.keys()):
        raise BadInput(f"{where}.{missing[0]} is missing")
    hints = get_type_hints(kind)
    return kind(**{key: _value(hints[key], value, f"{where}.{key}") for key, value in data.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type `hint`; JSON has lists where the configs have tuples."""
    if is_dataclass(hint) and isinstance(hint, type):
        return _rebuild(hint, value, where)
    if isinstance(hint, types.UnionType):  # "... | None"
        if value is None:
            return None
        hint = next(option for option in get_args(hint) if option is not types.NoneType)
    if get_origin(hint) is Literal:
        if value in get_args(hint):
            return value
    elif get_origin(hint) is tuple:
        if isinstance(value, list | tuple):
            return tuple(_value(get_args(hint)[0], item, where) for item in value)
    elif type(value) is hint or (hint is float and type(value) is int):
        return value
    raise BadInput(f"{where} cannot be {value!r}")


def _require_fit(config: ModelConfig, tokenizer: Tokenizer, where: str) -> None:
    if config.vocab_size != tokenizer.vocab_size:
        raise BadInput(
            f"{where}: the model has vocab_size {config.vocab_size}, "
            f"the tokenizer {tokenizer.vocab_size} pieces"
        )


def _require_tensors(model: CTCEncoder, contents: _Contents) -> None:
    where = contents.path / WEIGHTS
    expected = {name: list(t.shape) for name, t in model.state_dict().items()}
    found = {name: list(t.shape) for name, t in contents.tensors.items()}
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            raise BadInput(f"{where}: tensor {name} is missing")
        if name not in expected:
            raise BadInput(f"{where}: tensor {name} does not belong to the model in {CONFIG}")
        if found[name] != expected[name]:
            raise BadInput(
                f"{where}: tensor {name} has shape {found[name]}, {CONFIG} needs {expected[name]}"
            )
        kind, needed = contents.tensors[name].dtype, model.state_dict()[name].dtype
        if kind.is_floating_point != needed.is_floating_point:
            raise BadInput(f"{where}: tensor {name} holds {kind}, {CONFIG} needs {needed}")


def _difference(a: _Contents, b: _Contents) -> str:
    """Name what keeps two checkpoints from being averaged; empty if nothing does."""
    for field in fields(ModelConfig):
        if field.name in TRAINING_ONLY:
            continue
        if getattr(a.config, field.name) != getattr(b.config, field.name):
            return field.name
    if a.tokenizer != b.tokenizer:
        return "the tokenizer"
    kinds = ({n: (t.shape, t.is_floating_point()) for n, t in c.tensors.items()} for c in (a, b))
    if next(kinds) != next(kinds):
        return "the list of tensors"
    # what hash routers know is no weights
    fixed = (n for n, t in a.tensors.items() if "centre_KS" in n or not t.is_floating_point())
    same = all(torch.equal(a.tensors[name], b.tensors[name]) for name in fixed)
    return "" if same else "the codes of hash routers"
