"""Routing numbers mean what their names say, on made-up decisions and on random models."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from omnirouter.analysis.analyze import analyze, choose_examples, stem_of, strip_examples
from omnirouter.analysis.collect import collect, sample_cuts, summarize
from omnirouter.checkpoint import Checkpoint
from omnirouter.config import AnalysisOptions, BadInput
from omnirouter.data.manifest import read_manifest
from omnirouter.metrics.expert_load import (
    align_layers,
    best_mapping,
    contingency,
    cramers_v,
    cramers_v_matrix,
    router_entropy,
    routing_stats,
    usage,
)
from omnirouter.model import CTCEncoder, Routing

RNG = np.random.default_rng(0)
ONE = AnalysisOptions(examples=1)


def test_usage_counts_frames_and_keeps_idle_experts() -> None:
    assert usage(np.array([0, 0, 2, 0]), 4).tolist() == [0.75, 0.0, 0.25, 0.0]


def test_contingency_has_the_first_layer_in_rows() -> None:
    table = contingency(np.array([0, 0, 1], np.int8), np.array([2, 2, 0], np.int8), 3)
    assert table.tolist() == [[0, 0, 2], [1, 0, 0], [0, 0, 0]]


def test_cramers_v_is_one_for_a_permutation_and_zero_without_a_choice() -> None:
    first_T = RNG.integers(4, size=1000)
    renamed_T = np.array([2, 0, 3, 1])[first_T]
    assert cramers_v(contingency(first_T, renamed_T, 4)) == pytest.approx(1.0)
    assert cramers_v(contingency(first_T, RNG.integers(4, size=1000), 4)) < 0.1
    assert cramers_v(contingency(first_T, np.zeros_like(first_T), 4)) == 0.0
    assert cramers_v(np.zeros((4, 4), dtype=np.int64)) == 0.0


def test_renaming_experts_leaves_cramers_v_alone() -> None:
    table = RNG.integers(0, 50, size=(4, 4))
    shuffled = table[RNG.permutation(4)][:, RNG.permutation(4)]
    assert cramers_v(shuffled) == pytest.approx(cramers_v(table))


def test_best_mapping_finds_the_hidden_diagonal() -> None:
    hidden = np.array([1, 3, 0, 2])
    table = np.full((4, 4), 1)
    table[np.arange(4), hidden] = 10
    assert best_mapping(table).tolist() == hidden.tolist()
    assert np.trace(table[:, best_mapping(table)]) == 40


def test_aligned_layers_undo_a_different_renaming_in_every_layer() -> None:
    first_T = RNG.integers(4, size=500)
    experts_LT = np.stack([first_T, *(RNG.permutation(4)[first_T] for _ in range(5))])
    aligned_LT = align_layers(experts_LT.astype(np.int8), 4)
    assert (aligned_LT == first_T).all()


def chained(experts_LT: np.ndarray, num_experts: int) -> np.ndarray:
    """Each layer matched to the one below it, as figures of earlier versions were."""
    labels = [np.arange(num_experts)]
    for below_T, own_T in pairwise(experts_LT):
        table = contingency(own_T, labels[-1][below_T], num_experts)
        labels.append(best_mapping(table))
    return np.take_along_axis(np.array(labels), experts_LT, axis=1)


def shared_by_layers(aligned_LT: np.ndarray) -> float:
    """Mean share of the layers that a frame's commonest expert has."""
    counts = [(aligned_LT == n).sum(axis=0) for n in range(aligned_LT.max() + 1)]
    return float(np.max(counts, axis=0).mean() / len(aligned_LT))


def test_a_layer_that_tells_nothing_does_not_part_the_others() -> None:
    """Six layers follow the sounds under names of their own, one in their midst follows chance."""
    rng = np.random.default_rng(0)
    sound_T = rng.integers(0, 4, 4000)
    layers = []
    for layer in range(7):
        noise_T = rng.random(4000) < (1.0 if layer == 3 else 0.2)
        own_T = np.where(noise_T, rng.integers(0, 4, 4000), sound_T)
        layers.append(rng.permutation(4)[own_T])
    experts_LT = np.stack(layers)
    before = shared_by_layers(chained(experts_LT, 4))
    after = shared_by_layers(align_layers(experts_LT, 4))
    assert before < 0.58 and after > 0.74


@pytest.mark.parametrize("seed", range(5))
def test_aligned_is_never_worse_than_a_chain(seed: int) -> None:
    """Summed over all pairs of layers; and what is aligned stays as it is."""
    rng = np.random.default_rng(seed)
    start_T = rng.integers(0, 5, 600)
    experts_LT = np.stack(
        [np.where(rng.random(600) < 0.5, start_T, rng.integers(0, 5, 600)) for _ in range(6)]
    )

    def agreement(aligned_LT: np.ndarray) -> int:
        return sum(int((a == b).sum()) for a, b in combinations(aligned_LT, 2))

    aligned_LT = align_layers(experts_LT, 5)
    assert agreement(aligned_LT) >= agreement(chained(experts_LT, 5))
    assert agreement(align_layers(aligned_LT, 5)) == agreement(aligned_LT)
    assert (aligned_LT[0] == experts_LT[0]).all()


def test_aligning_renames_and_nothing_else() -> None:
    experts_LT = RNG.integers(4, size=(5, 300))
    aligned_LT = align_layers(experts_LT, 4)
    assert cramers_v_matrix(aligned_LT, 4) == pytest.approx(cramers_v_matrix(experts_LT, 4))
    for raw_T, aligned_T in zip(experts_LT, aligned_LT, strict=True):
        assert sorted(usage(raw_T, 4)) == sorted(usage(aligned_T, 4))


def test_router_entropy_is_between_certain_and_uniform() -> None:
    assert float(router_entropy(torch.eye(4))) == 0.0
    assert float(router_entropy(torch.full((7, 4), 0.25))) == pytest.approx(math.log(4))


def test_stats_of_a_training_step_are_plain_numbers() -> None:
    probs_TN = torch.rand(50, 4).softmax(-1).requires_grad_()
    gate_T, expert_T = probs_TN.max(-1)
    stats = routing_stats([Routing(probs_TN, expert_T, gate_T)] * 3, 4)
    assert json.loads(json.dumps(stats)) == stats
    assert [len(shares) for shares in stats["expert_usage"]] == [4, 4, 4]
    assert len(stats["router_entropy"]) == 3
    assert stats["cramers_v"] == pytest.approx([1.0, 1.0])


def test_use_of_routers_with_several_experts_per_frame_counts_them_all() -> None:
    """Agreement of layers follows the most probable one."""
    probs_TN = torch.tensor([[0.6, 0.3, 0.1], [0.7, 0.1, 0.2]])
    both = Routing(probs_TN, torch.tensor([0, 1, 0, 2]), torch.ones(4), torch.tensor([0, 0, 1, 1]))
    assert routing_stats([both], 3)["expert_usage"] == [[0.5, 0.25, 0.25]]


def test_collected_use_counts_what_experts_take(
    checkpoints: dict[str, Checkpoint], manifest: Path
) -> None:
    """An expert-choice router is balanced by its making, whichever expert is most probable."""
    own = checkpoints["switch"]
    config = replace(own.config, routing="expert-choice")
    torch.manual_seed(0)
    model = CTCEncoder(config).eval()
    choosing = Checkpoint(model, own.tokenizer, config, {}, Path("choosing"))
    numbers = summarize(collect(choosing, read_manifest(manifest)), "expert-choice")
    for shares in numbers.usage:
        assert shares == pytest.approx([0.25] * 4, abs=0.02)


def test_dense_models_have_empty_stats() -> None:
    assert routing_stats([], 1) == {
        "expert_usage": [],
        "router_entropy": [],
        "mean_gate": [],
        "cramers_v": [],
    }


def test_collected_decisions_are_the_models(
    checkpoints: dict[str, Checkpoint], manifest: Path
) -> None:
    collection = collect(checkpoints["omni"], read_manifest(manifest))
    numbers = summarize(collection, "omni")
    assert collection.experts_LT.shape == (3, collection.offsets[-1])
    assert len(collection.offsets) == len(collection.ids) + 1 == 7
    assert sum(map(sum, numbers.usage)) == pytest.approx(3)
    assert all(1 / 4 <= gate <= 1 for gate in numbers.mean_gate)
    assert all(0 <= entropy <= numbers.largest_entropy for entropy in numbers.router_entropy)
    assert [pair.layers for pair in numbers.pairs] == [(1, 2), (2, 3)]
    for pair, value in zip(numbers.pairs, numbers.cramers_v, strict=True):
        assert cramers_v(np.array(pair.contingency)) == value
        assert 1 / 4 <= pair.agreement <= 1
        first, second = (layer - 1 for layer in pair.layers)
        assert numbers.cramers_v_matrix[first][second] == value
    labels = numbers.numbering.number_of_output
    shown = np.take_along_axis(np.array(labels), collection.experts_LT.astype(int), axis=1)
    for own_T, shares in zip(shown, numbers.usage, strict=True):
        assert usage(own_T, 4).tolist() == shares
    for pair in numbers.pairs:
        first, second = (layer - 1 for layer in pair.layers)
        assert contingency(shown[first], shown[second], 4).tolist() == pair.contingency


def test_utterances_are_drawn_at_random(manifest: Path) -> None:
    """Not the first ones, which may be of one speaker; the same seed draws the same ones."""
    every = [cut.id for cut in read_manifest(manifest)]
    drawn = {
        seed: [cut.id for cut in sample_cuts(read_manifest(manifest), 3, seed)] for seed in range(6)
    }
    assert len(set(map(tuple, drawn.values()))) > 1
    for seed, ids in drawn.items():
        assert [name for name in every if name in ids] == ids and len(ids) == 3
        assert [cut.id for cut in sample_cuts(read_manifest(manifest), 3, seed)] == ids
    assert [cut.id for cut in sample_cuts(read_manifest(manifest), None)] == every


def test_many_experts_keep_their_numbers(
    checkpoints: dict[str, Checkpoint], manifest: Path
) -> None:
    own = checkpoints["omni"]
    config = replace(own.config, num_experts=130)
    model = CTCEncoder(config).eval()
    many = Checkpoint(model, own.tokenizer, config, {}, Path("many"))
    with torch.no_grad():
        model.routers[0].weight_ND[:129] = 0  # type: ignore[index]
    found = collect(many, read_manifest(manifest)).experts_LT
    assert found.min() >= 0 and found.max() == 129


def test_examples_are_the_same_for_every_model(
    checkpoints: dict[str, Checkpoint], manifest: Path
) -> None:
    cuts = choose_examples(read_manifest(manifest), 2)
    shown = {name: strip_examples(c, cuts) for name, c in checkpoints.items()}
    ids = [cut.id for cut in cuts]
    for name, examples in shown.items():
        assert [example.id for example in examples] == ids
        for example in examples:
            if name == "dense":
                assert example.experts_LT is None
            else:
                assert example.experts_LT is not None
                assert example.experts_LT.shape == (3, math.ceil(len(example.mel_KM) / 4))


def test_analyze_writes_numbers_and_figures(
    checkpoints: dict[str, Checkpoint], manifest: Path, tmp_path: Path
) -> None:
    analyze({"switch": checkpoints["switch"]}, read_manifest(manifest), tmp_path / "out", ONE)
    values = json.loads((tmp_path / "out" / "routing.json").read_text())
    assert values["routing"] == "switch"
    assert len(values["cramers_v"]) == 2
    drawn = {"expert_strips_1", "contingency", "cramers_v", "cramers_v_matrix", "usage"}
    drawn |= {"sounds", "sounds_by_layer", "run_lengths", "router_inputs"}
    written = {path.name for path in (tmp_path / "out").iterdir()} - {"routing.json"}
    assert written == {f"{name}.{kind}" for name in drawn for kind in ("png", "svg", "pdf")}
    assert written == set(values["figures"])
    assert [item["id"] for item in values["rejected"]] == ["broken"]
    (tmp_path / "out" / "mine.png").touch()
    stale = [tmp_path / "out" / f"expert_strips_2.{kind}" for kind in ("png", "svg", "pdf")]
    values["figures"] += [path.name for path in stale]
    (tmp_path / "out" / "routing.json").write_text(json.dumps(values))
    for path in stale:
        path.touch()
    analyze({"switch": checkpoints["switch"]}, read_manifest(manifest), tmp_path / "out", ONE)
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == written | {"routing.json", "mine.png"}


def test_analyze_refuses_a_dense_model(
    checkpoints: dict[str, Checkpoint], manifest: Path, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=r"dense: a dense model has no router .* switch or omni"):
        analyze({"dense": checkpoints["dense"]}, read_manifest(manifest), tmp_path, ONE)


def test_figures_of_models_whose_names_differ_in_signs_do_not_meet() -> None:
    """One is not written over the other."""
    found: dict[str, Any] = dict.fromkeys(("a b", "a_b", "a-b"))
    assert [stem_of("usage", name, found) for name in found] == [
        "usage-a_b-1",
        "usage-a_b-2",
        "usage-a-b",
    ]
    assert stem_of("usage", "a b", {"a b": found["a b"]}) == "usage"
