"""Checkpoint folders: they come back whole, survive failing writes, and bad ones are named."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from omnirouter import checkpoint
from omnirouter.checkpoint import (
    FILES,
    average_checkpoints,
    dequantize,
    load_checkpoint,
    quantize,
    save_checkpoint,
)
from omnirouter.config import (
    AttentionContext,
    BadInput,
    FeatureConfig,
    ModelConfig,
    OmnirouterError,
    RouterConfig,
)
from omnirouter.files import previous_path, write_atomically
from omnirouter.model import CTCEncoder
from omnirouter.text import Tokenizer, train_tokenizer

CONFIG = ModelConfig(
    num_experts=2,
    dim=16,
    ffn_dim=32,
    num_layers=3,
    num_heads=2,
    vocab_size=20,
    dropout=0.1,
    router_of_layer=(0, 1, 0),
    features=FeatureConfig(
        num_mels=4, normalisation="global", mean=(0.0, 1.0, 2.0, 3.0), std=(1.0,) * 4
    ),
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["turn on the light", "set the timer to ten", "stop it now"], 20)


@pytest.fixture(scope="module")
def model() -> CTCEncoder:
    torch.manual_seed(0)
    return CTCEncoder(CONFIG).eval()


@pytest.fixture
def save(model: CTCEncoder, tokenizer: Tokenizer) -> Callable[..., None]:
    """Save with given meta, and weights multiplied by a factor."""

    def save(folder: Path, factor: float = 1.0, **meta: Any) -> None:
        state = {name: factor * t for name, t in model.state_dict().items()}
        save_checkpoint(folder, model_state=state, config=CONFIG, tokenizer=tokenizer, meta=meta)

    return save


def no_room(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def change_config(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data = json.loads((folder / "config.json").read_text())
    change(data)
    (folder / "config.json").write_text(json.dumps(data))


# what goes in comes out


def test_a_checkpoint_comes_back_whole(
    tmp_path: Path, model: CTCEncoder, tokenizer: Tokenizer, save: Callable[..., None]
) -> None:
    folder = tmp_path / "runs" / "best"
    save(folder, step=7, wer=0.25)
    random_state = torch.get_rng_state()
    loaded = load_checkpoint(folder)
    assert torch.equal(torch.get_rng_state(), random_state)  # loading draws no random numbers
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert [path.name for path in folder.parent.iterdir()] == ["best"]
    assert loaded.config == CONFIG
    assert loaded.tokenizer == tokenizer
    assert (loaded.meta, loaded.path) == ({"step": 7, "wer": 0.25}, folder)
    assert not any(module.training for module in loaded.model.modules())
    assert all(parameter.requires_grad for parameter in loaded.model.parameters())
    frames, lengths = torch.randn(12, CONFIG.features.width), torch.tensor([5, 7])
    with torch.no_grad():
        before, after = (m(frames, lengths).log_probs for m in (model, loaded.model))
    assert torch.equal(before, after)


def test_whoever_may_read_one_file_may_read_all(tmp_path: Path, save: Callable[..., None]) -> None:
    """The weights too: a server often runs as another user than the training did."""
    save(tmp_path / "best")
    assert len({path.stat().st_mode for path in (tmp_path / "best").iterdir()}) == 1


def test_a_loaded_model_does_not_hang_on_its_file(
    tmp_path: Path, save: Callable[..., None]
) -> None:
    save(tmp_path / "a")
    loaded = load_checkpoint(tmp_path / "a").model.state_dict()
    before = {name: t.clone() for name, t in loaded.items()}
    weights = tmp_path / "a" / "model.safetensors"
    weights.write_bytes(b"\xff" * weights.stat().st_size)
    assert all(torch.equal(t, before[name]) for name, t in loaded.items())


def test_weights_in_int8_load_as_float32(
    tmp_path: Path, model: CTCEncoder, save: Callable[..., None]
) -> None:
    """Each within half a step of its row, all that is no large matrix exactly."""
    save(tmp_path / "a")
    weights = tmp_path / "a" / "model.safetensors"
    large = {name: t.repeat(1, 64) for name, t in model.state_dict().items() if t.ndim == 2}
    large["blocks.0.zero"] = torch.zeros(64, 64)
    back = dequantize(quantize(large))
    assert back.keys() == large.keys()
    for name, t in large.items():
        step = t.abs().amax(dim=1, keepdim=True) / 127
        assert ((back[name] - t).abs() <= 0.5001 * step).all(), name
        exact = t.numel() < 4096 or name.startswith("routers.") or not t.any()
        assert torch.equal(back[name], t) == exact, name
    save_file(quantize(model.state_dict()), weights)
    loaded = load_checkpoint(tmp_path / "a")
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("lost", ["", ":scale"], ids=["matrix", "scale"])
def test_half_of_an_int8_matrix_is_refused(
    tmp_path: Path, model: CTCEncoder, save: Callable[..., None], lost: str
) -> None:
    save(tmp_path / "a")
    weights = tmp_path / "a" / "model.safetensors"
    state = model.state_dict()
    name = "head.weight"
    state[name + ":scale"] = torch.ones(len(state[name]), 1)
    state[name] = state[name].to(torch.int8)
    del state[name + lost]
    save_file(state, weights)
    with pytest.raises(BadInput, match=r"head\.weight"):
        load_checkpoint(tmp_path / "a")


def test_weights_in_half_precision_load_as_float32(
    tmp_path: Path, save: Callable[..., None]
) -> None:
    save(tmp_path / "a")
    weights = tmp_path / "a" / "model.safetensors"
    save_file({name: t.bfloat16() for name, t in load_file(weights).items()}, weights)
    loaded = load_checkpoint(tmp_path / "a")
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}


def test_a_newer_checkpoint_takes_the_place_of_the_older(
    tmp_path: Path, save: Callable[..., None]
) -> None:
    for step in range(3):
        save(tmp_path / "best", step=step)
        assert load_checkpoint(tmp_path / "best").meta == {"step": step}
    assert os.listdir(tmp_path) == ["best"]


def test_a_link_to_a_checkpoint_stays_a_link(tmp_path: Path, save: Callable[..., None]) -> None:
    save(tmp_path / "step-1", step=1)
    (tmp_path / "best").symlink_to("step-1")
    save(tmp_path / "best", step=2)
    assert (tmp_path / "best").is_symlink()
    assert load_checkpoint(tmp_path / "step-1").meta == {"step": 2}


def test_other_folders_are_not_overwritten(tmp_path: Path, save: Callable[..., None]) -> None:
    (tmp_path / "thesis").mkdir()
    save(tmp_path / "thesis")  # empty: nothing to lose
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("dear")
    (tmp_path / "file").write_text("text")
    for name in ("letters", "file"):
        with pytest.raises(BadInput, match=f"{name}: exists and is no checkpoint"):
            save(tmp_path / name)
    assert (tmp_path / "letters" / "dear.txt").read_text() == "dear"


def test_a_model_of_another_program_is_not_overwritten(
    tmp_path: Path, save: Callable[..., None]
) -> None:
    """Many keep theirs in files of these names."""
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "model.safetensors").write_text("weights")
    with pytest.raises(BadInput, match="exists and is no checkpoint"):
        save(tmp_path)
    assert (tmp_path / "model.safetensors").read_text() == "weights"


def test_what_others_put_into_a_checkpoint_stays(tmp_path: Path, save: Callable[..., None]) -> None:
    save(tmp_path / "best", step=1)
    (tmp_path / "best" / "analysis").mkdir()
    (tmp_path / "best" / "analysis" / "routing.json").write_text("{}")
    (tmp_path / "best" / "words.arpa").write_text("words")
    (tmp_path / "best" / "corpus").symlink_to(tmp_path / "gone")
    save(tmp_path / "best", step=2)
    assert (tmp_path / "best" / "corpus").readlink() == tmp_path / "gone"
    assert load_checkpoint(tmp_path / "best").meta == {"step": 2}
    assert (tmp_path / "best" / "analysis" / "routing.json").read_text() == "{}"
    assert (tmp_path / "best" / "words.arpa").read_text() == "words"


def test_tensors_of_another_kind_are_refused(tmp_path: Path, save: Callable[..., None]) -> None:
    """Whole numbers in a matrix are no weights, whoever wrote them."""
    save(tmp_path / "a")
    tensors = load_file(tmp_path / "a" / "model.safetensors")
    name = next(name for name, tensor in tensors.items() if tensor.ndim == 2)
    save_file(tensors | {name: tensors[name].long()}, tmp_path / "a" / "model.safetensors")
    with pytest.raises(BadInput, match=rf"tensor {name} holds torch\.int64, config\.json needs"):
        load_checkpoint(tmp_path / "a")


def test_a_tokenizer_of_another_size_is_refused(
    tmp_path: Path, model: CTCEncoder, tokenizer: Tokenizer
) -> None:
    with pytest.raises(BadInput, match="vocab_size 21, the tokenizer 20"):
        save_checkpoint(
            tmp_path / "a",
            model_state=model.state_dict(),
            config=replace(CONFIG, vocab_size=21),
            tokenizer=tokenizer,
        )


# nothing is lost when writing fails


@pytest.mark.parametrize(
    "failing",
    [
        (checkpoint, "save_file", no_room),
        (os, "fsync", no_room),
        (Tokenizer, "save", no_room),
        (os, "replace", no_room),
    ],
    ids=lambda failing: str(failing[1]),
)
@pytest.mark.parametrize("existing", [True, False])
def test_a_full_disk_leaves_the_earlier_checkpoint(
    tmp_path: Path,
    save: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    failing: tuple[Any, str, Any],
    existing: bool,
) -> None:
    if existing:
        save(tmp_path / "best", step=1)
        if failing[1] == "replace":
            failing = (os, "rename", no_room)  # what an existing folder is exchanged with
    monkeypatch.setattr(*failing)
    with pytest.raises(OmnirouterError, match=r"best: could not be written \(No space") as error:
        save(tmp_path / "best", step=2)
    monkeypatch.undo()
    assert not isinstance(error.value, BadInput)
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == (["best"] if existing else [])
    if existing:
        assert load_checkpoint(tmp_path / "best").meta == {"step": 1}


def test_what_safetensors_says_about_a_full_disk_is_one_line_too(
    tmp_path: Path, save: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise SafetensorError("Error while serializing:\nNo space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", fail)
    with pytest.raises(OmnirouterError, match=r"^[^\n]*serializing: No space left[^\n]*$"):
        save(tmp_path / "best")
    assert os.listdir(tmp_path) == []


def test_a_failing_exchange_is_taken_back(
    tmp_path: Path, save: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "best", step=1)
    rename = os.rename

    def fail_for_the_new(source: Path, target: Path) -> None:
        if ".tmp-" in source.name:
            no_room()
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail_for_the_new)
    with pytest.raises(OmnirouterError, match="No space"):
        save(tmp_path / "best", step=2)
    assert load_checkpoint(tmp_path / "best").meta == {"step": 1}
    assert os.listdir(tmp_path) == ["best"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("call", range(8))
def test_a_process_killed_at_any_call_leaves_a_whole_checkpoint(
    tmp_path: Path, save: Callable[..., None], call: int, before: bool
) -> None:
    # three files flushed, the folder, two renames, the parent, the old one removed
    save(tmp_path / "best", step=1)
    child = os.fork()
    if child == 0:
        calls = 0

        def dying(function: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(*args: Any, **kwargs: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == call + 1 and before:
                    os._exit(9)
                result = function(*args, **kwargs)
                if calls == call + 1:
                    os._exit(9)
                return result

            return wrapped

        os.fsync, os.rename = dying(os.fsync), dying(os.rename)
        shutil.rmtree = dying(shutil.rmtree)
        try:
            save(tmp_path / "best", step=2)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    exchanged = call > 5 or (call == 5 and not before)
    assert load_checkpoint(tmp_path / "best").meta == {"step": 2 if exchanged else 1}
    save(tmp_path / "best", step=3)  # and the next one cleans up
    assert load_checkpoint(tmp_path / "best").meta == {"step": 3}
    assert os.listdir(tmp_path) == ["best"]


def test_the_old_one_is_found_while_it_stands_aside(
    tmp_path: Path, save: Callable[..., None]
) -> None:
    save(tmp_path / "best", step=1)
    (tmp_path / "best").rename(previous_path(tmp_path / "best"))
    assert load_checkpoint(tmp_path / "best").meta == {"step": 1}


def test_write_atomically_replaces_a_file_or_leaves_it(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "routing.json"
    write_atomically(path, lambda temporary: temporary.write_text("one") and None)
    write_atomically(path, lambda temporary: temporary.write_text("two") and None)
    assert path.read_text() == "two"

    def fail(temporary: Path) -> None:
        temporary.write_text("thr")
        no_room()

    with pytest.raises(OmnirouterError, match=r"routing\.json: could not be written"):
        write_atomically(path, fail)

    def stop(temporary: Path) -> None:
        temporary.write_text("fo")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, stop)
    assert path.read_text() == "two"
    assert os.listdir(path.parent) == ["routing.json"]


# bad ones are named


def test_what_is_no_checkpoint_is_refused(tmp_path: Path, save: Callable[..., None]) -> None:
    (tmp_path / "file").write_text("")
    for name in ("nowhere", "file"):
        with pytest.raises(BadInput, match=f"{name}: is not a folder"):
            load_checkpoint(tmp_path / name)
    save(tmp_path / "run" / "best")
    with pytest.raises(BadInput, match=r"did you mean .*best"):
        load_checkpoint(tmp_path / "run")


@pytest.mark.parametrize("name", FILES)
def test_missing_and_damaged_files_are_named(
    tmp_path: Path, save: Callable[..., None], name: str
) -> None:
    save(tmp_path / "a")
    whole = (tmp_path / "a" / name).read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"\x80garbage"):
        (tmp_path / "a" / name).write_bytes(content)
        with pytest.raises(BadInput, match=f"{name}: ") as error:
            load_checkpoint(tmp_path / "a")
        assert "\n" not in str(error.value)
    (tmp_path / "a" / name).unlink()
    with pytest.raises(BadInput, match=f"{name} is missing"):
        load_checkpoint(tmp_path / "a")


def test_a_checkpoint_of_the_first_release_is_read(
    tmp_path: Path, save: Callable[..., None]
) -> None:
    """Configurations written before `router` existed have the paper's routers."""
    save(tmp_path / "a")
    change_config(tmp_path / "a", lambda d: d["model"].pop("router"))
    assert load_checkpoint(tmp_path / "a").config.router == RouterConfig()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format=2), "checkpoint format 2, but this omnirouter reads 1"),
        (lambda d: d.pop("format"), "checkpoint format None"),
        (lambda d: d.pop("model"), "model is missing"),
        (lambda d: d["model"].update(dimm=3), "model.dimm is not a known key"),
        (lambda d: d["model"].pop("dim"), "model.dim is missing"),
        (lambda d: d["model"]["features"].pop("shift_s"), "model.features.shift_s is missing"),
        (lambda d: d["model"].update(dim="16"), "model.dim cannot be '16'"),
        (lambda d: d["model"].update(routing="hashing"), "model.routing cannot be 'hashing'"),
        (lambda d: d["model"].update(router_of_layer=2), "model.router_of_layer cannot be 2"),
        (lambda d: d["model"].update(num_heads=3), "num_heads: 3 heads do not divide"),
        (lambda d: d["model"].update(vocab_size=21), "vocab_size 21, the tokenizer 20"),
        (lambda d: d["model"].update(ffn_dim=64), "tensor blocks.0.* has shape"),
        (lambda d: d["model"].update(num_layers=4, router_of_layer=None), "tensor .* missing"),
        (lambda d: d["model"].update(num_layers=2, router_of_layer=None), "does not belong"),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path,
    save: Callable[..., None],
    change: Callable[[dict[str, Any]], None],
    message: str,
) -> None:
    save(tmp_path / "a")
    change_config(tmp_path / "a", change)
    with pytest.raises(BadInput, match=message) as error:
        load_checkpoint(tmp_path / "a")
    assert str(tmp_path / "a") in str(error.value)
    assert "\n" not in str(error.value)


# averages


def test_an_average_is_the_mean_of_the_weights(
    tmp_path: Path, model: CTCEncoder, save: Callable[..., None]
) -> None:
    folders = [tmp_path / name for name in "abc"]
    for folder, factor in zip(folders, (1.0, 2.0, 6.0), strict=True):
        save(folder, factor)
    change_config(tmp_path / "b", lambda d: d["model"].update(dropout=0.5))  # training's own
    average_checkpoints(folders, tmp_path / "mean")
    loaded = load_checkpoint(tmp_path / "mean")
    for name, t in model.state_dict().items():
        torch.testing.assert_close(loaded.model.state_dict()[name], 3 * t)
    assert loaded.meta == {"averaged": [str(folder) for folder in folders]}


def test_checkpoints_of_different_models_are_not_averaged(
    tmp_path: Path, model: CTCEncoder, tokenizer: Tokenizer, save: Callable[..., None]
) -> None:
    save(tmp_path / "a")
    save(tmp_path / "b")
    change_config(tmp_path / "b", lambda d: d["model"].update(num_heads=1))
    other = train_tokenizer(["stop it now", "turn on the lights or set a timer"], 20)
    save_checkpoint(tmp_path / "c", model_state=model.state_dict(), config=CONFIG, tokenizer=other)
    for name, difference in (("b", "num_heads"), ("c", "the tokenizer")):
        with pytest.raises(BadInput, match=f"{name}: {difference} differs from .*a;"):
            average_checkpoints([tmp_path / "a", tmp_path / name], tmp_path / "mean")
    with pytest.raises(BadInput, match="at least one"):
        average_checkpoints([], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


@pytest.mark.parametrize(
    ("kind", "required"),
    [
        (
            ModelConfig,
            "dim dropout features ffn_dim layer_drop local_width num_experts num_heads num_layers "
            "positions router_of_layer routing vocab_size",
        ),
        (
            RouterConfig,
            "accents balance_bias codes domains embedding_dim embedding_layers group_dim "
            "layers_per_router top_k",
        ),
        (
            FeatureConfig,
            "mean normalisation num_mels preemphasis sample_rate shift_s stack std window_s",
        ),
        (AttentionContext, "chunk left"),
    ],
)
def test_no_later_key_is_asked_of_older_checkpoints(kind: type, required: str) -> None:
    """A field that is new has `added` in its metadata, or no older checkpoint can be read."""
    asked = {field.name for field in fields(kind) if not field.metadata.get("added")}
    assert asked == set(required.split())
