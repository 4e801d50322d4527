"""Specialization of experts: sounds, run lengths, depth, speakers (which Fig. 2 shows by eye).

Each frame has a kind of sound: silence, or a letter by forced alignment, grouped into kinds that
are coarse on purpose (English spelling is loose). Experts are compared with it by mutual
information. Also the premise of Sec. IV: how alike the inputs of neighboring layers' routers are,
and how much agreement one router applied to all layers would give.
Letters: L layers, T frames, N experts, C kinds, B utterances, R routers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lhotse import CutSet
from torch import Tensor

from omnirouter.analysis.collect import RoutingCollection, collect, require_experts
from omnirouter.audio.features import Waveform
from omnirouter.checkpoint import Checkpoint
from omnirouter.config import FeatureConfig
from omnirouter.data.dataset import Batch
from omnirouter.decoding import ctc_forced_align
from omnirouter.evaluate.score_utterances import Precision, field_of
from omnirouter.metrics.expert_load import (
    Floats,
    Ints,
    adjacent_cramers_v,
    align_layers,
    contingency,
)
from omnirouter.model import EncoderOutput, Router
from omnirouter.progress import Progress
from omnirouter.text import Tokenizer

KINDS = ("silence", "vowel", "stop", "fricative", "nasal", "approximant", "other")
LETTERS = {
    **dict.fromkeys("aeiou", "vowel"),
    **dict.fromkeys("bcdgkpqt", "stop"),
    **dict.fromkeys("fhjsvxz", "fricative"),
    **dict.fromkeys("mn", "nasal"),
    **dict.fromkeys("lrwy", "approximant"),
}
QUIET_DB = 35.0  # below an utterance's loud frames: silence
REACH_S = 0.3  # a frame farther than this from every piece's emission has no letter
FIELDS = ("speaker", "accent", "gender", "condition", "noise", "corpus", "domain")


def letters_of(log_probs_TV: Tensor, text: str, tokenizer: Tokenizer, frame_s: float) -> Ints:
    """Letter of each frame, 1 for a, 26 for z, 0 for none, int64 [T].

    A piece's emission stands in for the middle of its sound; frames belong to the nearest piece,
    and a piece's frames are dealt out evenly to its letters.

    Raises:
        ValueError: the text does not fit the frames.
    """
    pieces = tokenizer.encode(tokenizer.normalize(text))
    found = ctc_forced_align(log_probs_TV.detach().float().cpu().numpy(), pieces)
    if found is None:
        raise ValueError(f"{len(log_probs_TV)} frames are too few for {len(pieces)} tokens")
    letter_T = np.zeros(len(log_probs_TV), dtype=np.int64)
    if not pieces:
        return letter_T
    centers = (np.array(found.first) + np.array(found.last)) / 2
    reach = REACH_S / frame_s
    borders = np.concatenate([[-np.inf], (centers[1:] + centers[:-1]) / 2, [np.inf]])
    times = np.arange(len(log_probs_TV))
    for number, piece in enumerate(pieces):
        own = times[(times > borders[number]) & (times <= borders[number + 1])]
        own = own[np.abs(own - centers[number]) <= reach]
        spelled = [ord(c) - 96 for c in tokenizer.decode([piece]).lower() if "a" <= c <= "z"]
        if spelled and len(own):
            letter_T[own] = np.array(spelled)[np.arange(len(own)) * len(spelled) // len(own)]
    return letter_T


def quiet_frames(waveform: Waveform, frames: int, features: FeatureConfig) -> npt.NDArray[np.bool_]:
    """Frames `QUIET_DB` below the utterance's loud ones (95th percentile), bool [T]."""
    size = features.frame_samples
    padded = np.zeros(frames * size, dtype=np.float64)
    padded[: min(len(waveform), len(padded))] = waveform[: len(padded)]
    power_T = np.square(padded).reshape(frames, size).mean(axis=1)
    level_T = 10 * np.log10(power_T + 1e-12)
    return level_T < np.percentile(level_T, 95) - QUIET_DB if frames else np.zeros(0, dtype=bool)


def fields_of(cut: Any) -> dict[str, str]:
    """The cut's fields that experts might depend on."""
    return {name: value for name in FIELDS if (value := field_of(cut, name))}


def kinds_of(letter_T: Ints, quiet_T: npt.NDArray[np.bool_]) -> Ints:
    """Number of each frame's kind in `KINDS`, int64 [T]; silence first, whatever the letter."""
    by_letter = [KINDS.index("other")] + [
        KINDS.index(LETTERS[chr(97 + number)]) for number in range(26)
    ]
    return np.where(quiet_T, 0, np.array(by_letter)[letter_T])


PERMUTATIONS = 20


@dataclass(frozen=True, kw_only=True)
class FieldDependence:
    """Dependence of experts on a field of the manifest, in bits per frame; lists over layers.

    Attributes:
        values: different values of the field.
        bits: mutual information of expert and value.
        chance: the same with the values dealt to the utterances at random, mean of 20: what short
            data gives where there is no dependence.
    """

    values: int
    bits: list[float]
    chance: list[float]


@dataclass(frozen=True, kw_only=True)
class Specialization:
    """Figures on what experts do; lists run over layers unless they say otherwise.

    Attributes:
        kinds: names of the kinds of sound.
        frames_of_kind: frames of each kind, [C].
        experts_of_kind: share of each kind's frames that go to each expert, [L][C][N], experts
            under aligned names.
        kind_bits: mutual information of expert and kind of sound, bits per frame.
        silence_bits: of expert and silence against speech.
        letter_bits: of expert and letter, over the frames that have one.
        kind_entropy: entropy of the kinds, the most that `kind_bits` could be.
        run_s: mean length of a run of frames with one expert, seconds.
        run_s_by_chance: what it would be if the frames stood in random order.
        same_through_depth: share of the frames that keep one (aligned) expert in all layers.
        agreeing_layers: mean over frames of the share of layers in the majority expert.
        input_cosine: mean cosine of the inputs of each two adjacent layers' routers.
        shared_router_v: Cramér's V of adjacent layers if each single router were applied to all
            layers, mean over the routers: agreement that weight sharing alone gives.
        fields: dependence on fields of the manifest, by name.
        unaligned: utterances without a letter, because their text did not fit their frames.
    """

    kinds: list[str]
    frames_of_kind: list[int]
    experts_of_kind: list[list[list[float]]]
    kind_bits: list[float]
    silence_bits: list[float]
    letter_bits: list[float]
    kind_entropy: float
    run_s: list[float]
    run_s_by_chance: list[float]
    same_through_depth: float
    agreeing_layers: float
    input_cosine: list[float]
    shared_router_v: list[float]
    fields: dict[str, FieldDependence]
    unaligned: int


@dataclass(kw_only=True)
class FrameRecords:
    """Annotations of the frames so far, by batch.

    Attributes:
        letters: letter of each frame as a number (0 is none), [T] each.
        quiet: whether it is silence, [T] each.
        fields: values of the utterances' fields.
        cosines: sums over frames of the cosine of adjacent layers' inputs, [L - 1] each.
        shared: expert that each router would choose in each layer, int16 [R, L, T] each.
        unaligned: utterances whose text does not fit.
    """

    letters: list[Ints] = field(default_factory=list)
    quiet: list[npt.NDArray[np.bool_]] = field(default_factory=list)
    fields: list[dict[str, str]] = field(default_factory=list)
    cosines: list[Floats] = field(default_factory=list)
    shared: list[npt.NDArray[np.int16]] = field(default_factory=list)
    unaligned: int = 0

    def add(
        self, checkpoint: Checkpoint, batch: Batch, output: EncoderOutput, inputs_LTD: list[Tensor]
    ) -> None:
        """Take up a batch that has passed the model, and the inputs of its routers by layer."""
        config, tokenizer = checkpoint.config, checkpoint.tokenizer
        self.cosines.append(adjacent_cosines(inputs_LTD))
        linear = [
            router
            for router in checkpoint.model.routers
            if isinstance(router, Router) and router.weight_ND.shape[1] == config.dim
        ]
        if linear:
            self.shared.append(shared_choices(linear, inputs_LTD))
        parts = output.log_probs.split(output.lengths.tolist())
        for text, waveform, log_probs_TV in zip(batch.texts, batch.waveforms, parts, strict=True):
            self.quiet.append(quiet_frames(waveform, len(log_probs_TV), config.features))
            try:
                letter_T = letters_of(log_probs_TV, text, tokenizer, config.features.frame_s)
            except ValueError:
                letter_T = np.zeros(len(log_probs_TV), dtype=np.int64)
                self.unaligned += 1
            self.letters.append(letter_T)


@torch.no_grad()
def collect_specialization(
    checkpoint: Checkpoint,
    cuts: CutSet,
    *,
    precision: Precision = "fp32",
    progress: Progress | None = None,
) -> tuple[RoutingCollection, Specialization]:
    """Run a model over cuts, keep its decisions, and find what they depend on.

    Arguments and errors are those of `collect`.
    """
    require_experts(checkpoint)
    fields = {cut.id: fields_of(cut) for cut in cuts}
    seen, inputs = FrameRecords(), list[Tensor]()

    def add(batch: Batch, output: EncoderOutput) -> None:
        seen.fields += [fields.get(identity, {}) for identity in batch.ids]
        seen.add(checkpoint, batch, output, inputs)
        inputs.clear()

    hooks = [
        router.register_forward_pre_hook(lambda router, given: inputs.append(given[0]))
        for router in checkpoint.model.routers
    ]
    try:
        found = collect(checkpoint, cuts, precision=precision, progress=progress, on_batch=add)
    finally:
        for hook in hooks:
            hook.remove()
    known = (found.offsets, seen, found.num_experts, found.frame_s, found.labels_LN)
    return found, interpret(found.experts_LT, *known)


def adjacent_cosines(inputs_LTD: Sequence[Tensor]) -> Floats:
    """Sum over frames of the cosine between adjacent layers' inputs, float64 [L - 1]."""
    pairs = pairwise(inputs_LTD)
    return np.array(
        [float(torch.cosine_similarity(a.float(), b.float(), dim=-1).sum()) for a, b in pairs]
    )


def shared_choices(
    routers: Sequence[Router], inputs_LTD: Sequence[Tensor]
) -> npt.NDArray[np.int16]:
    """Expert that each router would choose in each layer, int16 [R, L, T]; its bias included."""

    def choose(router: Router, x_TD: Tensor) -> Tensor:
        probs_TN = (x_TD.float() @ router.weight_ND.float().t()).softmax(-1)
        bias_N = getattr(router, "bias_N", None)
        return (probs_TN if bias_N is None else probs_TN + bias_N).argmax(-1)

    chosen = [torch.stack([choose(own, x_TD) for x_TD in inputs_LTD]) for own in routers]
    return torch.stack(chosen).to(torch.int16).cpu().numpy()


def mutual_information(table: npt.NDArray[Any]) -> float:
    """Mutual information of the rows and columns of a table of counts, in bits."""
    joint: Floats = table / max(1, table.sum())
    expected = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    some = joint > 0
    return float((joint[some] * np.log2(joint[some] / expected[some])).sum())


def mean_run(expert_T: Ints, offsets: Ints) -> float:
    """Mean number of frames that one expert keeps in a row; a run ends with its utterance."""
    if not len(expert_T):
        return 0.0
    begins = np.concatenate([[True], expert_T[1:] != expert_T[:-1]])
    begins[offsets[:-1][offsets[:-1] < len(expert_T)]] = True
    return float(len(expert_T) / begins.sum())


def interpret(
    experts_LT: npt.NDArray[np.int16],
    offsets: Ints,
    seen: FrameRecords,
    num_experts: int,
    frame_s: float,
    labels_LN: Ints | None = None,
) -> Specialization:
    """All figures of `Specialization`, from decisions and what is known of the frames.

    Args:
        experts_LT: expert of each frame in each layer, as the routers number them.
        offsets: first frame of each utterance and the end of the last, [B + 1].
        seen: what is known of the frames.
        num_experts: N.
        frame_s: seconds of one frame.
        labels_LN: numbers to show experts under; `aligned_labels` if not given.
    """
    letter_T, quiet_T = np.concatenate(seen.letters), np.concatenate(seen.quiet)
    kind_T = kinds_of(letter_T, quiet_T)
    aligned_LT = align_layers(experts_LT, num_experts, labels_LN)
    tables = [contingency(kind_T, e_T, num_experts, len(KINDS)) for e_T in aligned_LT]
    spoken_T = (letter_T > 0) & ~quiet_T
    counts_LNT = (aligned_LT[:, None] == np.arange(num_experts)[:, None]).sum(axis=0)  # [N, T]
    kinds_C = np.bincount(kind_T, minlength=len(KINDS))
    shares_C = kinds_C[kinds_C > 0] / max(1, kinds_C.sum())
    frames = experts_LT.shape[1]
    return Specialization(
        kinds=list(KINDS),
        frames_of_kind=kinds_C.tolist(),
        experts_of_kind=[(t / np.maximum(t.sum(1, keepdims=True), 1)).tolist() for t in tables],
        kind_bits=[mutual_information(table) for table in tables],
        silence_bits=[
            mutual_information(np.stack([table[0], table[1:].sum(axis=0)])) for table in tables
        ],
        letter_bits=[
            mutual_information(contingency(letter_T[spoken_T], e_T[spoken_T], num_experts, 27))
            for e_T in aligned_LT
        ],
        kind_entropy=float(-(shares_C * np.log2(shares_C)).sum()),
        run_s=[frame_s * mean_run(e_T, offsets) for e_T in experts_LT],
        run_s_by_chance=[frame_s * _chance_run(e_T, num_experts) for e_T in experts_LT],
        same_through_depth=float((aligned_LT == aligned_LT[:1]).all(axis=0).mean()),
        agreeing_layers=float(counts_LNT.max(axis=0).mean() / len(experts_LT)),
        input_cosine=(np.sum(seen.cosines, axis=0) / frames).tolist(),
        shared_router_v=_shared_v(seen.shared, num_experts),
        fields=_fields(experts_LT, offsets, seen.fields, num_experts),
        unaligned=seen.unaligned,
    )


def _chance_run(expert_T: Ints, num_experts: int) -> float:
    """Mean run of independent draws with these shares: 1 / (1 - sum of squares)."""
    shares = np.bincount(expert_T, minlength=num_experts) / max(1, len(expert_T))
    stays = float(np.square(shares).sum())
    return 1 / (1 - stays) if stays < 1 else float(len(expert_T))


def _shared_v(shared: Sequence[npt.NDArray[np.int16]], num_experts: int) -> list[float]:
    if not shared:
        return []
    chosen_RLT = np.concatenate(shared, axis=2)
    values = [adjacent_cramers_v(chosen_LT, num_experts) for chosen_LT in chosen_RLT]
    mean: list[float] = np.mean(values, axis=0).tolist()
    return mean


def _fields(
    experts_LT: npt.NDArray[np.int16],
    offsets: Ints,
    fields: Sequence[dict[str, str]],
    num_experts: int,
) -> dict[str, FieldDependence]:
    """Dependence on each field with at least two values, one of which occurs more than once."""
    lengths_B = np.diff(offsets)
    # experts of each utterance once, [L][B, N]: permuting utterances is then cheap
    utterance_T = np.repeat(np.arange(len(lengths_B)), lengths_B)
    by_utterance = [
        contingency(utterance_T, e_T, num_experts, len(lengths_B)) for e_T in experts_LT
    ]
    rng, found = np.random.default_rng(0), {}
    for name in FIELDS:
        texts = [values.get(name, "(none)") for values in fields]
        known, value_B = np.unique(texts, return_inverse=True)
        if not 2 <= len(known) < len(texts):
            continue
        one_hot = np.eye(len(known))
        dealt = [rng.permutation(value_B) for _ in range(PERMUTATIONS)]
        found[name] = FieldDependence(
            values=len(known),
            bits=[mutual_information(one_hot[value_B].T @ table) for table in by_utterance],
            chance=[
                float(np.mean([mutual_information(one_hot[v].T @ table) for v in dealt]))
                for table in by_utterance
            ],
        )
    return found
