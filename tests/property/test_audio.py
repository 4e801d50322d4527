"""Frame arithmetic, stacking, normalisation and augmentation for any lengths and seeds."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from omnirouter.audio.features import (
    extract_features,
    log_mel_spectrogram,
    normalize,
    num_frames,
    num_mel_frames,
    stack_frames,
)
from omnirouter.audio.spec_augment import (
    CAPE_SCALE,
    CAPE_SHIFT_S,
    cape_positions,
    spec_augment,
    warp,
)
from omnirouter.config import AugmentConfig, FeatureConfig

FEATURES = FeatureConfig()
SMALL = FeatureConfig(num_mels=5)
MARK = 1.0  # value of unmasked mel frames; masks are 0
seeds = st.integers(0, 2**32 - 1)
mel_lengths = st.lists(st.integers(0, 40), max_size=6)


def noise(seed: int, samples: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(samples).astype(np.float32) * 0.1


def mels(seed: int, lengths: list[int], features: FeatureConfig) -> tuple[Tensor, Tensor]:
    values = np.random.default_rng(seed).standard_normal((sum(lengths), features.num_mels))
    return torch.from_numpy(values).float(), torch.tensor(lengths, dtype=torch.int64)


def runs(masked: np.ndarray) -> list[int]:
    """Lengths of the stretches of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], masked.astype(int), [0]])))
    return (edges[1::2] - edges[::2]).tolist()


@given(samples=st.lists(st.integers(0, 4000), max_size=4), stack=st.integers(1, 5))
def test_frame_arithmetic_is_what_extract_does(samples: list[int], stack: int) -> None:
    """`num_mel_frames` and `num_frames` foretell the features' lengths, also of empty audio."""
    features = FeatureConfig(stack=stack)
    waves = [noise(i, n) for i, n in enumerate(samples)]
    _, mel_lengths_B = log_mel_spectrogram(waves, features)
    assert mel_lengths_B.tolist() == [num_mel_frames(n, features) for n in samples]
    frames_TS, lengths_B = extract_features(waves, features)
    assert lengths_B.tolist() == [num_frames(n, features) for n in samples]
    assert frames_TS.shape == (sum(lengths_B), 80 * stack)
    assert frames_TS.dtype == torch.float32


@given(samples=st.integers(0, 10**7))
def test_every_mel_frame_is_a_whole_window(samples: int) -> None:
    """The last window ends within the audio and one more would not; a stack holds up to four."""
    count = num_mel_frames(samples, FEATURES)
    assert count == 0 or 400 + (count - 1) * 160 <= samples
    assert 400 + count * 160 > samples
    stacked = num_frames(samples, FEATURES)
    assert 4 * (stacked - 1) < count <= 4 * stacked or count == stacked == 0


@given(seed=seeds, lengths=mel_lengths)
def test_stacking_a_batch_is_stacking_each_utterance(seed: int, lengths: list[int]) -> None:
    """Frames of one utterance never reach another's stack; a last stack is filled with zeros."""
    mels_KM, lengths_B = mels(seed, lengths, SMALL)
    frames_TS, frames_B = stack_frames(mels_KM, lengths_B, SMALL)
    assert frames_B.tolist() == [-(-n // 4) for n in lengths]
    assert frames_TS.shape == (int(frames_B.sum()), 20)
    for own, among in zip(mels_KM.split(lengths), frames_TS.split(frames_B.tolist()), strict=True):
        flat = among.reshape(-1, SMALL.num_mels)
        assert torch.equal(flat[: len(own)], own)
        assert not flat[len(own) :].any()


@given(seed=seeds, samples=st.lists(st.integers(400, 6000), min_size=1, max_size=4))
def test_features_do_not_see_their_batch(seed: int, samples: list[int]) -> None:
    """Features of an utterance are the same alone and among others."""
    waves = [noise(seed + i, n) for i, n in enumerate(samples)]
    frames_TS, lengths_B = extract_features(waves, FEATURES)
    for wave, among in zip(waves, frames_TS.split(lengths_B.tolist()), strict=True):
        alone, _ = extract_features([wave], FEATURES)
        torch.testing.assert_close(alone, among, rtol=0, atol=1e-4)


@given(seed=seeds, lengths=st.lists(st.integers(2, 60), min_size=1, max_size=5))
def test_normalized_features_have_mean_0_and_variance_1(seed: int, lengths: list[int]) -> None:
    """Per utterance and mel bin, whatever the level and spread before; a silent bin stays even."""
    mels_KM, lengths_B = mels(seed, lengths, SMALL)
    mels_KM = mels_KM * 3 - 7
    mels_KM[:, -1] = -15.9  # a bin without any energy
    for own in normalize(mels_KM, lengths_B, SMALL).split(lengths):
        assert own[:, :-1].mean(dim=0).abs().max() < 1e-4
        torch.testing.assert_close(
            own[:, :-1].var(dim=0, unbiased=False), torch.ones(4), rtol=0, atol=1e-3
        )
        assert (own[:, -1] == own[0, -1]).all()
        assert own[:, -1].abs().max() <= 1.001


@given(seed=seeds, length=st.integers(0, 700), ratio=st.sampled_from([0.0, 0.05, 0.1, 0.5]))
def test_one_time_mask_is_capped_by_itself(seed: int, length: int, ratio: float) -> None:
    """A single time mask is one stretch of at most min(50, int(ratio * T)) frames."""
    augment = AugmentConfig(time_masks=1, frequency_masks=0, time_ratio=ratio)
    out = spec_augment(torch.full((length, 5), MARK), torch.tensor([length]), augment, [seed])
    masked = (out == 0).numpy()
    assert (masked.all(axis=1) == masked.any(axis=1)).all()
    stretches = runs(masked.any(axis=1))
    assert len(stretches) <= 1
    assert sum(stretches) <= min(50, int(ratio * length))


@given(seed=seeds, length=st.integers(1, 700), masks=st.integers(0, 10))
def test_time_masks_are_counted_not_budgeted(seed: int, length: int, masks: int) -> None:
    """With n masks there are at most n stretches, and n times the cap in all."""
    augment = AugmentConfig(time_masks=masks, frequency_masks=0)
    out = spec_augment(torch.full((length, 5), MARK), torch.tensor([length]), augment, [seed])
    stretches = runs((out == 0).all(dim=1).numpy())
    assert len(stretches) <= masks
    assert sum(stretches) <= masks * min(50, int(0.1 * length))


@given(seed=seeds, masks=st.integers(0, 3), width=st.integers(0, 30))
def test_frequency_masks_cover_whole_bins(seed: int, masks: int, width: int) -> None:
    """At most n stretches of at most `frequency_width` bins, the same in all frames."""
    augment = AugmentConfig(time_masks=0, frequency_masks=masks, frequency_width=width)
    out = spec_augment(torch.full((7, 80), MARK), torch.tensor([7]), augment, [seed])
    masked = (out == 0).numpy()
    assert (masked == masked[0]).all()
    assert len(runs(masked[0])) <= masks
    assert masked[0].sum() <= masks * width


def test_masks_reach_their_largest_width_and_every_place() -> None:
    """Over many seeds widths 0 to the cap and positions at both ends all occur, about evenly."""
    augment = AugmentConfig(time_masks=1, frequency_masks=0)
    count, length = 2000, 60  # cap 6
    out = spec_augment(
        torch.full((count * length, 1), MARK),
        torch.full((count,), length),
        augment,
        list(range(count)),
    )
    masked = (out == 0).view(count, length)
    widths = torch.bincount(masked.sum(dim=1), minlength=7)
    assert len(widths) == 7
    assert widths.min() > 0.7 * count / 7
    assert masked[:, 0].any()
    assert masked[:, -1].any()


def test_the_papers_masks_hide_what_they_should() -> None:
    """On a long utterance ten masks of 0-50 frames hide about 250 in all: ten caps, not one."""
    length = 5000
    hidden = []
    for seed in range(40):
        augment = AugmentConfig(frequency_masks=0)
        out = spec_augment(torch.full((length, 1), MARK), torch.tensor([length]), augment, [seed])
        hidden.append(int((out == 0).sum()))
    assert 200 < np.mean(hidden) < 260


@given(seed=seeds, lengths=st.lists(st.integers(0, 80), min_size=1, max_size=5))
def test_masks_depend_on_the_seed_alone(seed: int, lengths: list[int]) -> None:
    """An utterance is masked alike alone and in any batch; what is not masked stays as it was."""
    mels_KM, lengths_B = mels(seed, lengths, FEATURES)
    own_seeds = [seed + i for i in range(len(lengths))]
    out = spec_augment(mels_KM, lengths_B, AugmentConfig(), own_seeds)
    assert torch.equal(out[out != 0], mels_KM[out != 0])
    for own, among, own_seed in zip(
        mels_KM.split(lengths), out.split(lengths), own_seeds, strict=True
    ):
        alone = spec_augment(own, torch.tensor([len(own)]), AugmentConfig(), [own_seed])
        assert torch.equal(alone, among)


@given(seed=seeds)
def test_another_seed_masks_elsewhere(seed: int) -> None:
    """Seeds matter, and augmentation needs no global random state."""
    mels_KM, lengths_B = mels(0, [400], FEATURES)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    a = spec_augment(mels_KM, lengths_B, AugmentConfig(), [seed])
    b = spec_augment(mels_KM, lengths_B, AugmentConfig(), [seed + 1])
    assert not torch.equal(a, b)
    assert torch.equal(torch.get_rng_state(), before)


@given(seed=seeds, factor=st.floats(0.8, 1.25), hz=st.integers(200, 3400))
def test_a_warped_tone_is_another_tone(seed: int, factor: float, hz: int) -> None:
    """VTLP moves a tone to the bin where a tone of that many times its frequency would be."""

    def tone(hz: float) -> Tensor:
        return log_mel_spectrogram(
            [0.1 * np.sin(2 * np.pi * hz * np.arange(800) / 16_000)], FEATURES
        )[0]

    lengths_B = torch.tensor([len(tone(hz))])
    augment = AugmentConfig(vtlp=(factor,))
    warped = warp(tone(hz), lengths_B, FEATURES, augment, [seed])
    assert abs(int(warped[0].argmax()) - int(tone(factor * hz)[0].argmax())) <= 1


@given(seed=seeds, lengths=st.lists(st.integers(0, 80), max_size=5), rate=st.sampled_from([8, 16]))
def test_warps_depend_on_the_seed_alone(seed: int, lengths: list[int], rate: int) -> None:
    """Alone or in a batch, at any sample rate, one factor for all frames; 1 changes nothing."""
    features = FeatureConfig(sample_rate=rate * 1000)
    mels_KM, lengths_B = mels(seed, lengths, features)
    own_seeds = [seed + i for i in range(len(lengths))]
    augment = AugmentConfig(vtlp=(0.8, 1.2))
    out = warp(mels_KM, lengths_B, features, augment, own_seeds)
    for own, among, own_seed in zip(
        mels_KM.split(lengths), out.split(lengths), own_seeds, strict=True
    ):
        alone = warp(own, torch.tensor([len(own)]), features, augment, [own_seed])
        assert torch.equal(alone, among)
        for frame, before in zip(among, own, strict=True):
            assert before.min() - 1e-5 <= frame.min() <= frame.max() <= before.max() + 1e-5
    same = warp(mels_KM, lengths_B, features, AugmentConfig(vtlp=(1.0,)), own_seeds)
    torch.testing.assert_close(same, mels_KM, rtol=0, atol=1e-4)


@given(seed=seeds, lengths=st.lists(st.integers(0, 60), min_size=1, max_size=5))
def test_cape_positions(seed: int, lengths: list[int]) -> None:
    """Positions rise in every utterance, start within the shift, keep pace within the scale."""
    lengths_B = torch.tensor(lengths, dtype=torch.int64)
    own_seeds = [seed + i for i in range(len(lengths))]
    positions_T = cape_positions(lengths_B, own_seeds, FEATURES)
    assert positions_T.dtype == torch.float32
    assert torch.equal(positions_T, cape_positions(lengths_B, own_seeds, FEATURES))
    latest = (CAPE_SHIFT_S / FEATURES.frame_s + 0.5) * CAPE_SCALE
    for own, length, own_seed in zip(positions_T.split(lengths), lengths, own_seeds, strict=True):
        alone = cape_positions(torch.tensor([length]), [own_seed], FEATURES)
        assert torch.equal(alone, own)
        if length > 1:
            steps = own.diff()
            assert (steps > 0).all()  # jitter is below half a frame
            assert (steps < 2 * CAPE_SCALE).all()
            pace = float(own[-1] - own[0])
            assert (length - 2) / CAPE_SCALE <= pace + 1e-3
            assert pace <= length * CAPE_SCALE + 1e-3
            assert -0.5 * CAPE_SCALE <= own[0] <= latest
