"""What experts are said to do is what they were made to do."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from torch import nn

from omnirouter.analysis import plots
from omnirouter.analysis.analyze import analyze
from omnirouter.analysis.random_experts import (
    ExpertSampler,
    RandomExpertResult,
    RandomExperts,
    random_expert_test,
    wrapped_routers,
)
from omnirouter.analysis.specialization import (
    KINDS,
    FrameRecords,
    adjacent_cosines,
    collect_specialization,
    interpret,
    kinds_of,
    letters_of,
    mean_run,
    mutual_information,
    quiet_frames,
    shared_choices,
)
from omnirouter.checkpoint import Checkpoint
from omnirouter.config import (
    AnalysisOptions,
    BadInput,
    FeatureConfig,
    ModelConfig,
    RandomExpertConfig,
    RouterConfig,
)
from omnirouter.data.manifest import read_manifest
from omnirouter.model import CTCEncoder, Router
from omnirouter.model.router_variants import TopKRouter
from omnirouter.model.routing import RoutingContext
from omnirouter.text import Tokenizer

RNG = np.random.default_rng(0)
FEATURES = FeatureConfig()
ONE = AnalysisOptions(examples=1)


# --- sounds ---


def test_letters_stand_where_their_piece_is_emitted(tokenizer: Tokenizer) -> None:
    """Each piece's frames are those nearest to it, up to 0.3 s away, its letters in order."""
    pieces = tokenizer.encode("play the next song")
    frames = 30 * len(pieces)
    log_probs = torch.full((frames, tokenizer.vocab_size), -20.0)
    log_probs[:, 0] = -0.1
    for number, piece in enumerate(pieces):
        log_probs[30 * number + 15, 0] = -20.0
        log_probs[30 * number + 15, piece] = -0.1
    letters = letters_of(log_probs, "play the next song", tokenizer, 0.04)
    spelled = "".join(chr(96 + n) for n in letters if n)
    runs = "".join(c for i, c in enumerate(spelled) if i == 0 or c != spelled[i - 1])
    assert runs == "playthenextsong"
    # 0.3 s are seven frames to either side of an emission
    assert (np.abs(np.flatnonzero(letters) % 30 - 15) <= 7).all()
    assert np.count_nonzero(letters) % 15 == 0


def test_letters_of_nothing(tokenizer: Tokenizer) -> None:
    assert not letters_of(torch.zeros(5, tokenizer.vocab_size), "", tokenizer, 0.04).any()
    with pytest.raises(ValueError, match="too few"):
        letters_of(torch.zeros(1, tokenizer.vocab_size), "turn the light off", tokenizer, 0.04)


def test_quiet_frames_are_35_db_below_the_loud_ones() -> None:
    """Whatever the level of the recording."""
    wave = RNG.standard_normal(16_000).astype(np.float32)
    wave[6400:9600] *= 10 ** (-50 / 20)
    for gain in (1.0, 0.01):
        quiet = quiet_frames(gain * wave, 25, FEATURES)
        assert np.flatnonzero(quiet).tolist() == list(range(10, 15))
    assert quiet_frames(wave, 0, FEATURES).shape == (0,)


def test_kinds() -> None:
    """Silence wins over a letter; letters without a kind of their own do not exist."""
    letters = np.array([0, 1, 2, 6, 13, 12, 1])
    quiet = np.array([False] * 6 + [True])
    names = [KINDS[number] for number in kinds_of(letters, quiet)]
    expected = ["other", "vowel", "stop", "fricative", "nasal", "approximant", "silence"]
    assert names == expected
    assert "other" not in {KINDS[n] for n in kinds_of(np.arange(1, 27), np.zeros(26, bool))}


# --- figures ---


def test_mutual_information() -> None:
    """0 for independence, the entropy for a one-to-one map, and scipy's value in between."""
    assert mutual_information(np.outer([1, 2, 3], [4, 5])) == pytest.approx(0.0, abs=1e-12)
    assert mutual_information(np.diag([1, 1, 2])) == pytest.approx(1.5)
    table = RNG.integers(0, 9, size=(4, 5))
    joint = table / table.sum()
    expected = entropy(joint.sum(0), base=2) + entropy(joint.sum(1), base=2)
    expected -= entropy(joint.ravel(), base=2)
    assert mutual_information(table) == pytest.approx(float(expected))
    assert mutual_information(np.zeros((2, 2))) == 0.0


def test_runs_end_with_the_utterance() -> None:
    experts = np.array([0, 0, 1, 1, 1, 1])
    assert mean_run(experts, np.array([0, 6])) == 3.0
    assert mean_run(experts, np.array([0, 4, 6])) == 2.0
    assert mean_run(experts, np.array([0, 0, 4, 6, 6])) == 2.0
    assert mean_run(np.zeros(0, dtype=int), np.array([0])) == 0.0


def made_up(
    experts: np.ndarray, speakers: list[str], quiet: np.ndarray
) -> tuple[FrameRecords, np.ndarray]:
    count = experts.shape[1]
    each = count // len(speakers)
    seen = FrameRecords(
        letters=[np.where(quiet, 0, 1)],
        quiet=[quiet],
        fields=[{"speaker": name} for name in speakers],
        cosines=[np.full(len(experts) - 1, 0.5 * count)],
    )
    return seen, np.arange(0, count + 1, each)


def test_an_expert_for_silence_is_found() -> None:
    """Layer 1 follows silence under other names than layer 2; layer 3 follows chance."""
    quiet = RNG.random(4000) < 0.3
    experts = np.stack([quiet.astype(int), 1 - quiet.astype(int), RNG.integers(0, 2, 4000)])
    seen, offsets = made_up(experts, ["a", "b"] * 10, quiet)
    found = interpret(experts.astype(np.int16), offsets, seen, 2, 0.04)
    share = quiet.mean()
    whole = float(entropy([share, 1 - share], base=2))
    assert found.silence_bits[:2] == pytest.approx([whole, whole])
    assert found.kind_bits[0] == pytest.approx(whole) == pytest.approx(found.kind_entropy)
    assert found.silence_bits[2] < 0.01
    assert found.experts_of_kind[0][0] == [0.0, 1.0] == found.experts_of_kind[1][0]
    assert found.experts_of_kind[0][1] == [1.0, 0.0]
    assert found.letter_bits == pytest.approx([0, 0, 0], abs=1e-9)
    assert found.agreeing_layers == pytest.approx((1 + 2 / 3) / 2, abs=0.02)
    assert found.same_through_depth == pytest.approx(0.5, abs=0.05)
    assert found.input_cosine == pytest.approx([0.5, 0.5])
    assert found.run_s[2] == pytest.approx(found.run_s_by_chance[2], rel=0.05)
    assert found.fields["speaker"].bits[0] < 0.01


def test_an_expert_for_a_speaker_is_found() -> None:
    """Dependence stands out from chance; fields that name each utterance are no use."""
    speakers = ["a", "b", "c", "d"] * 10
    experts = np.repeat(np.array([0, 1, 2, 3] * 10), 50)[None].astype(np.int16)
    experts = np.concatenate([experts, experts])
    seen, offsets = made_up(experts, speakers, np.zeros(2000, bool))
    found = interpret(experts, offsets, seen, 4, 0.04).fields
    assert found["speaker"].values == 4
    assert found["speaker"].bits == pytest.approx([2.0, 2.0])
    assert found["speaker"].chance[0] < 0.5
    seen.fields = [{"speaker": str(number)} for number in range(40)]
    assert interpret(experts, offsets, seen, 4, 0.04).fields == {}


def test_router_inputs() -> None:
    """Cosines by hand; a shared router's choices are its argmax in every layer."""
    x = [torch.randn(7, 5) for _ in range(3)]
    expected = [
        sum(float(a @ b / a.norm() / b.norm()) for a, b in zip(p, q, strict=True))
        for p, q in pairwise(x)
    ]
    assert adjacent_cosines(x) == pytest.approx(expected, rel=1e-4)
    routers = [Router(5, 4), TopKRouter(5, 4, bias=True)]
    with torch.no_grad():
        for router in routers:
            router.weight_ND.normal_()
        routers[1].bias_N.copy_(torch.tensor([0.0, 0.3, -0.3, 0.1]))  # type: ignore[union-attr]
        chosen = shared_choices(routers, x)
        assert chosen.shape == (2, 3, 7)
        context = RoutingContext(layer=0, lengths_B=torch.tensor([7]))
        for own, router in zip(chosen, routers, strict=True):
            for found, frames in zip(own, x, strict=True):
                assert found.tolist() == router(frames, context).expert_A.tolist()
        many = Router(300, 300)
        many.weight_ND.copy_(torch.eye(300))
        (last,) = shared_choices([many], [torch.eye(300)])
    assert last[0].tolist() == list(range(300))


# --- on models ---


def test_watching_changes_nothing(checkpoints: dict[str, Checkpoint], manifest: Path) -> None:
    """Routers stand in their places again, also after an error; decisions are the model's own."""
    checkpoint = checkpoints["switch"]
    before = list(checkpoint.model.routers)
    collection, meaning = collect_specialization(checkpoint, read_manifest(manifest))
    assert list(checkpoint.model.routers) == before
    assert not any(router._forward_pre_hooks for router in before)
    assert len(meaning.kind_bits) == 3 and len(meaning.input_cosine) == 2
    assert sum(meaning.frames_of_kind) == collection.experts_LT.shape[1]
    assert meaning.fields["condition"].values == 2
    assert all(0 < value <= 1 for value in meaning.input_cosine)
    with (
        pytest.raises(KeyError),
        wrapped_routers(checkpoint.model, lambda router: nn.Sequential(router)) as wrappers,
    ):
        assert list(checkpoint.model.routers) == wrappers
        raise KeyError
    assert list(checkpoint.model.routers) == before


def test_one_router_for_all_layers_is_what_omni_does(
    checkpoints: dict[str, Checkpoint], manifest: Path
) -> None:
    """For Omni the agreement of sharing alone is its agreement; for Switch it is not."""
    from omnirouter.analysis.collect import summarize

    for routing, equal in (("omni", True), ("switch", False)):
        collection, meaning = collect_specialization(checkpoints[routing], read_manifest(manifest))
        measured = summarize(collection, routing).cramers_v
        assert np.allclose(meaning.shared_router_v, measured) == equal


class Fixed(nn.Module):
    """Routes as told."""

    def __init__(self, probs_TN: torch.Tensor) -> None:
        super().__init__()
        self.probs_TN = probs_TN

    def forward(self, x_TD: torch.Tensor, context: object) -> object:
        from omnirouter.model import Routing

        gate_T, expert_T = self.probs_TN.max(dim=-1)
        return Routing(self.probs_TN, expert_T, gate_T)


def test_random_experts() -> None:
    """A share p of frames has an even draw; gates follow the reading."""
    probs = torch.tensor([[0.7, 0.2, 0.1]]).repeat(9000, 1)
    context = RoutingContext(layer=0, lengths_B=torch.tensor([9000]))
    x = torch.zeros(9000, 2)
    for reading in ("top-gate", "own-gate", "shared-draw"):
        routing = RandomExperts(Fixed(probs), 0.3, reading, ExpertSampler(0))(x, context)  # type: ignore[arg-type]
        shares = torch.bincount(routing.expert_A, minlength=3) / 9000
        expected = torch.tensor([0.8, 0.1, 0.1])
        torch.testing.assert_close(shares, expected, rtol=0, atol=0.02)
        own = probs.gather(1, routing.expert_A[:, None])[:, 0]
        right = own if reading == "own-gate" else torch.full((9000,), 0.7)
        assert torch.equal(routing.gate_A, right)
    whole = RandomExperts(Fixed(probs), 1.0, "top-gate", ExpertSampler(1))(x, context)
    assert torch.bincount(whole.expert_A, minlength=3).min() > 2800


def test_one_draw_serves_all_layers(checkpoints: dict[str, Checkpoint]) -> None:
    """With p = 1 layers agree entirely under `shared-draw`, and only then."""
    model = checkpoints["switch"].model
    frames, lengths = torch.randn(200, 320), torch.tensor([120, 80])
    for reading, equal in (("shared-draw", True), ("top-gate", False)):
        draws = ExpertSampler(0)
        with (
            torch.no_grad(),
            wrapped_routers(
                model,
                lambda router, r=reading, d=draws: RandomExperts(router, 1.0, r, d),  # type: ignore[misc,arg-type]
            ),
        ):
            first, *others = model(frames, lengths).routings
            again = model(frames, lengths).routings[0]
        assert all(torch.equal(own.expert_A, first.expert_A) for own in others) == equal
        assert not torch.equal(again.expert_A, first.expert_A)  # the next batch has its own


def test_layers_that_follow_the_first_are_disturbed_once() -> None:
    """Each layer's share of other experts is p's, also where all take the first one's decision."""
    torch.manual_seed(0)
    model = CTCEncoder(
        ModelConfig(
            routing="omni-once", num_experts=4, dim=32, ffn_dim=64, num_layers=4, num_heads=2
        )
    ).eval()
    frames, lengths = torch.randn(3000, 320), torch.tensor([1500, 1500])
    with torch.no_grad():
        expected = model(frames, lengths).routings[0].expert_A
        for reading in ("top-gate", "own-gate", "shared-draw"):
            draws = ExpertSampler(0)
            with wrapped_routers(
                model,
                lambda router, r=reading, d=draws: RandomExperts(router, 0.4, r, d),  # type: ignore[misc,arg-type]
            ):
                for _ in range(2):
                    for routing in model(frames, lengths).routings:
                        share = float((routing.expert_A != expected).float().mean())
                        assert share == pytest.approx(0.3, abs=0.04)


def test_random_experts_of_several_for_a_frame_are_refused_at_once(tmp_path: Path) -> None:
    """Before the pass over the recordings, whose figures would be lost."""
    config = ModelConfig(
        routing="omni",
        num_experts=4,
        dim=32,
        ffn_dim=64,
        num_layers=2,
        num_heads=2,
        vocab_size=11,
        router=RouterConfig(top_k=2),
    )
    checkpoint = Checkpoint(CTCEncoder(config), None, config, {}, Path("mine"))  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="random experts: mine: only for routers that send each"):
        analyze({"m": checkpoint}, None, tmp_path, ONE, random_experts=RandomExpertConfig())  # type: ignore[arg-type]


def test_disturb_measures_what_changes(checkpoints: dict[str, Checkpoint], manifest: Path) -> None:
    """Same seeds, same figures; dense models and bad ratios are refused."""
    config = RandomExpertConfig(ratios=(0.5,), seeds=2, readings=("top-gate",))
    a, b = (
        random_expert_test(checkpoints["omni"], read_manifest(manifest), config) for _ in range(2)
    )
    assert a == b and a.utterances == 6
    (setting,) = a.settings
    assert setting.change == pytest.approx(np.mean(setting.by_seed))
    assert setting.wer == pytest.approx(a.wer * (1 + setting.change))
    assert setting.ci_low <= setting.change <= setting.ci_high
    with pytest.raises(BadInput, match="a dense model has no router"):
        random_expert_test(checkpoints["dense"], read_manifest(manifest), config)
    for ratios in ((), (0.0,), (1.1,)):
        with pytest.raises(BadInput, match="ratios: probabilities above 0"):
            RandomExpertConfig(ratios=ratios)
    with pytest.raises(BadInput, match="seeds: at least 1"):
        RandomExpertConfig(seeds=0)


def test_disturb_runs_at_the_precision_asked_for(
    checkpoints: dict[str, Checkpoint], manifest: Path
) -> None:
    config = RandomExpertConfig(ratios=(0.5,), seeds=1, readings=("own-gate",))
    seen = set()
    hook = checkpoints["omni"].model.register_forward_pre_hook(
        lambda *_: seen.add(torch.is_autocast_enabled("cpu"))
    )
    with hook:
        for precision, autocast in (("fp32", False), ("bf16", True)):
            seen.clear()
            cuts = read_manifest(manifest)
            random_expert_test(checkpoints["omni"], cuts, config, precision=precision)  # type: ignore[arg-type]
            assert seen == {autocast}


def test_analyze_writes_all_of_it(
    checkpoints: dict[str, Checkpoint], manifest: Path, tmp_path: Path
) -> None:
    """routing.json is JSON without NaN and lists the files that are there."""
    config = RandomExpertConfig(ratios=(1.0,), seeds=1)
    one = {"switch": checkpoints["switch"]}
    analyze(one, read_manifest(manifest), tmp_path, ONE, random_experts=config)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    values = json.loads((tmp_path / "routing.json").read_text(), parse_constant=refuse)
    for name in values["figures"]:
        assert (tmp_path / name).stat().st_size > 1000
    stems = {name.split(".")[0] for name in values["figures"]}
    new = {"sounds", "sounds_by_layer", "run_lengths", "router_inputs", "random_experts"}
    assert new <= stems
    assert len(values["random_experts"]["settings"]) == 3
    assert values["meaning"]["kinds"] == list(KINDS)


def test_several_models_share_figures(
    checkpoints: dict[str, Checkpoint], manifest: Path, tmp_path: Path
) -> None:
    """Figs. 2, 3 and 5 have both, on the same utterances; other figures one each."""
    models = {"Switch": checkpoints["switch"], "Omni 4": checkpoints["omni"]}
    config = RandomExpertConfig(ratios=(0.5,), seeds=1, readings=("top-gate",))
    options = AnalysisOptions(limit=4, examples=1, layers="1,3", columns=2)
    analyze(models, read_manifest(manifest), tmp_path, options, random_experts=config)
    values = json.loads((tmp_path / "routing.json").read_text())
    assert list(values["models"]) == list(models)
    assert values["sample"] == {"utterances": 4, "seed": 0}
    for own in values["models"].values():
        assert own["contingency"]["layers"] == [1, 3]
        assert own["utterances"] + len(own["rejected"]) == 4
        assert len(own["numbering"]["number_of_output"]) == 3
        assert "all pairs of layers" in own["numbering"]["method"]
    stems = {name.split(".")[0] for name in values["figures"]}
    shared = {"expert_strips_1", "cramers_v", "random_experts", "router_inputs"}
    assert shared | {"sounds_by_layer", "run_lengths"} <= stems
    for name in ("usage", "contingency", "sounds", "cramers_v_matrix"):
        assert {f"{name}-Switch", f"{name}-Omni_4"} <= stems and name not in stems
    strips = (tmp_path / "expert_strips_1.svg").read_text()
    assert "Switch" in strips and "Omni 4" in strips


@pytest.mark.parametrize("layers", ["3", "0,1", "1,9", "a,b", "1,2,3"])
def test_layers_that_a_model_lacks_are_named(
    layers: str, checkpoints: dict[str, Checkpoint], tmp_path: Path
) -> None:
    options = AnalysisOptions(layers=layers)
    with pytest.raises(BadInput, match="layers: two numbers from 1 to 3, such as 1,2, not"):
        analyze({"omni": checkpoints["omni"]}, None, tmp_path, options)  # type: ignore[arg-type]


def test_figures_take_several_models_and_missing_values(
    checkpoints: dict[str, Checkpoint], manifest: Path
) -> None:
    """Lines of two models, and a curve whose changes are not known."""
    found = {}
    for routing in ("switch", "omni"):
        found[routing] = collect_specialization(checkpoints[routing], read_manifest(manifest))[1]
    lines = {name: meaning.shared_router_v for name, meaning in found.items()}
    for figure in (
        plots.told_by_layer(found),
        plots.run_lengths(found),
        plots.router_inputs(found, lines),
        plots.kinds_of_sound(found["omni"], layer=2),
    ):
        figure.canvas.draw()
    config = RandomExpertConfig(ratios=(0.5,), seeds=1, readings=("top-gate",))
    own = random_expert_test(checkpoints["omni"], read_manifest(manifest), config)
    setting = own.settings[0].__class__(
        **{**own.settings[0].__dict__, "change": math.nan, "ci_low": math.nan, "ci_high": math.nan}
    )
    empty = RandomExpertResult(wer=0.0, utterances=1, settings=[setting])
    plots.random_experts({"Omni": own, "x": empty}).canvas.draw()
