"""Upcycling: a dense checkpoint becomes the start of a model with experts.

Every expert is a copy of the dense feed-forward layer, the router is fresh, all else is taken over
(Komatsuzaki et al. 2023, arXiv 2212.05055). Copies stay alike for long under a router that hardly
decides; `start: apart` (not in that paper) makes one that does, from recordings.

Letters: L layers, T frames, D model width, N experts, C directions.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from omnirouter.audio.features import extract_features
from omnirouter.checkpoint import load_checkpoint, save_checkpoint
from omnirouter.config import BadInput, DataConfig, FeatureConfig, ModelConfig, UpcycleConfig
from omnirouter.data.dataloader import AsrDataLoader
from omnirouter.data.dataset import RejectLog
from omnirouter.data.manifest import read_manifest
from omnirouter.model import CTCEncoder, Router
from omnirouter.model.layers import EncoderBlock, Experts
from omnirouter.model.routing import RoutingContext
from omnirouter.pretrained import resolve_model

log = logging.getLogger(__name__)

EXPERT_OF = {"up.weight": "up_NFD", "up.bias": "up_bias_NF"} | {
    "down.weight": "down_NDF",
    "down.bias": "down_bias_ND",
}
FAINT = 0.01  # of a fresh router's weights: gates differ from even ones by about a percent
SPREAD = 2.0  # standard deviation between the logits of two experts that are set apart
APART_SECONDS = 600.0  # audio that directions are found in
BATCH_SECONDS = 120.0
SAME = 1e-6  # variance of frames, summed over dimensions, that is but rounding


class StackedFrames(NamedTuple):
    """Utterances as the encoder reads them: packed frames_TS, and lengths_B on the CPU."""

    frames_TS: Tensor
    lengths_B: Tensor


def upcycle(
    dense: CTCEncoder, config: UpcycleConfig, known: StackedFrames | None = None
) -> CTCEncoder:
    """A model with experts that starts from `dense`.

    Args:
        dense: the model.
        config: what it becomes.
        known: for `start: apart`, utterances to find directions in.

    Raises:
        BadInput: `dense` has experts already, its sizes or `config` do not allow any, or `known` is
            too little.
    """
    sizes = _sizes(dense.config, config, known is not None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = CTCEncoder(sizes)
    scale = config.num_experts / config.top_k if config.start == "dense" else 1.0
    state = model.state_dict()
    for name, value in dense.state_dict().items():
        block, _, part = name.partition(".ffn.")
        if part:
            state[f"{block}.ffn.{EXPERT_OF[part]}"] = _copies(value, part, config, scale)
        else:
            state[name] = value
    model.load_state_dict(state)
    if config.start == "dense":
        for router in model.routers:
            assert isinstance(router, Router)
            with torch.no_grad():
                router.weight_ND.mul_(FAINT)
    elif known is not None:
        _set_apart(model, _read_by_experts(dense, known))
    return model.eval()


def _sizes(dense: ModelConfig, config: UpcycleConfig, recorded: bool) -> ModelConfig:
    """Configuration of the model with experts; `recorded` is true if there are recordings."""
    if dense.routing != "dense":
        raise BadInput(f"has experts already (routing: {dense.routing}); give a dense model")
    if config.num_experts < 2:
        raise BadInput(f"num_experts: at least 2, not {config.num_experts}")
    if (config.start == "apart") != recorded:
        raise BadInput("data: recordings are for start: apart, which needs them")
    if config.start == "apart" and (config.num_experts % 2 or config.routing == "omni-once"):
        raise BadInput(
            "start: apart needs routing: omni or switch and an even num_experts, not "
            f"{config.routing} and {config.num_experts}"
        )
    return replace(
        dense,
        routing=config.routing,
        num_experts=config.num_experts,
        router=replace(dense.router, top_k=config.top_k),
    )


def _copies(value: Tensor, part: str, config: UpcycleConfig, scale: float) -> Tensor:
    """N copies of one of the layer's tensors; those behind the activation are scaled."""
    copies = value.expand(config.num_experts, *value.shape)
    return copies * scale if part.startswith("down") else copies.clone()


def _read_by_experts(dense: CTCEncoder, known: StackedFrames) -> list[Tensor]:
    """Inputs of every block's feed-forward layer, h_TD each."""
    inputs: list[Tensor] = []

    def keep(module: Any, given: Any, output: Tensor) -> None:
        inputs.append(output)

    norms = [m for name, m in dense.named_modules() if name.endswith(".ffn_norm")]
    hooks = [norm.register_forward_hook(keep) for norm in norms]
    try:
        with torch.no_grad():
            dense.encode(*known)
    finally:
        for hook in hooks:
            hook.remove()
    return inputs


@torch.no_grad()
def _set_apart(model: CTCEncoder, inputs: Sequence[Tensor]) -> None:
    """Give routers the ends of directions, and scale each layer's copies by its mean gate."""
    owner, routers = model.config.router_map, []
    for number, router in enumerate(model.routers):
        assert isinstance(router, Router)
        own = [h_TD for h_TD, which in zip(inputs, owner, strict=True) if which == number]
        ends_CD = directions(own, model.config.num_experts // 2) * (SPREAD / 2)
        router.weight_ND.copy_(torch.cat([ends_CD, -ends_CD]))
        routers.append(router)
    for layer, (h_TD, block) in enumerate(zip(inputs, model.blocks, strict=True)):
        context = RoutingContext(layer=layer, lengths_B=torch.tensor([len(h_TD)]))
        gate = routers[owner[layer]](h_TD, context).gate_A.sum() / len(h_TD)
        assert isinstance(block, EncoderBlock) and isinstance(block.ffn, Experts)
        block.ffn.down_NDF.div_(gate)
        block.ffn.down_bias_ND.div_(gate)


def directions(inputs: Sequence[Tensor], count: int) -> Tensor:
    """Directions in which frames of several layers differ most, the strongest first.

    Routers have no bias, so a direction is at a right angle to every layer's mean frame: half of
    the frames of each lie on either side.

    Args:
        inputs: h_TD of each layer, which count alike.
        count: how many, C.

    Returns:
        Float32 [C, D], scaled so that a frame's coordinate has a mean deviation of 1 over layers.

    Raises:
        BadInput: frames are too few, or do not differ in so many directions.
    """
    variance = min(h_TD.var(dim=0).sum().item() for h_TD in inputs)
    if len(inputs[0]) <= inputs[0].shape[1] or variance < SAME:
        raise BadInput("data: too little speech to set experts apart by; give some minutes")
    if count > (room := inputs[0].shape[1] - len(inputs)):
        raise BadInput(f"num_experts: at most {2 * room} of this width can be set apart")
    means_LD = torch.stack([h_TD.mean(dim=0) for h_TD in inputs])
    shares = [torch.cov(h_TD.t()) / h_TD.var(dim=0).sum() for h_TD in inputs]
    spread_DD = torch.stack(shares).sum(dim=0)
    basis_DL, _ = torch.linalg.qr(means_LD.t())
    rest_DD = torch.eye(len(basis_DL)) - basis_DL @ basis_DL.t()
    found_DD = torch.linalg.eigh(rest_DD @ spread_DD @ rest_DD).eigenvectors
    found_CD = found_DD[:, -count:].flip(1).t()
    deviation_C = torch.stack([(h_TD @ found_CD.t()).std(dim=0) for h_TD in inputs]).mean(dim=0)
    scaled: Tensor = found_CD / deviation_C[:, None]
    return scaled


def recordings(manifest: str, features: FeatureConfig, seed: int) -> StackedFrames:
    """Ten minutes of recordings, or what there is, chosen at random; says how many were skipped.

    Raises:
        BadInput: the manifest is wrong, or holds no audio that can be read.
    """
    loader = AsrDataLoader(
        read_manifest(manifest),
        features=features,
        tokenizer=None,
        data=DataConfig(device_seconds=BATCH_SECONDS, min_s=0.0, max_s=math.inf),
        shuffle=True,
        seed=seed,
    )
    parts, rejected, seconds = [], RejectLog(), 0.0
    with closing(loader.iterate()) as batches:  # type: ignore[type-var]
        for batch in batches:
            if len(batch):
                parts.append(extract_features(batch.waveforms, features))
            rejected.add(batch.rejected)
            seconds += batch.seconds
            if seconds >= APART_SECONDS:
                break
    if not parts:
        raise BadInput(f"{manifest}: holds no audio that can be read; {rejected.summary()}")
    if rejected:
        log.warning("%s: %s", manifest, rejected.summary())
    return StackedFrames(*map(torch.cat, zip(*parts, strict=True)))


def upcycle_checkpoint(folder: str | Path, out: Path, config: UpcycleConfig) -> CTCEncoder:
    """Read a dense checkpoint, write the model with experts to `out`, and return it.

    Raises:
        BadInput: as `upcycle`; `folder` is no checkpoint, or `out` is the same or something else.
        OmnirouterError: `out` cannot be written.
    """
    if out.resolve() == resolve_model(folder).resolve():
        raise BadInput(f"out: {out} is the dense checkpoint itself; choose another folder")
    checkpoint = load_checkpoint(folder)
    try:
        _sizes(checkpoint.config, config, bool(config.data))  # before recordings are read
    except BadInput as error:
        raise BadInput(f"{folder}: {error}") from error
    known = None
    if config.data:
        known = recordings(config.data, checkpoint.config.features, config.seed)
    try:
        model = upcycle(checkpoint.model, config, known)
    except BadInput as error:
        raise BadInput(f"{folder}: {error}") from error
    save_checkpoint(
        out,
        model_state=model.state_dict(),
        config=model.config,
        tokenizer=checkpoint.tokenizer,
        meta={"upcycled_from": str(folder), "start": config.start, "dense": checkpoint.meta},
    )
    return model
