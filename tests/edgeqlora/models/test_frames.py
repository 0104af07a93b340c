"""Merging frames: the measure is the one of the formula, and frames that are equal weigh as much merged as apart."""

import contextlib

import numpy as np
import pytest
import torch

from edgeqlora.data.audio import load_audio
from edgeqlora.data.manifest import load_for
from edgeqlora.demo import model_dir, speech_dir
from edgeqlora.errors import UserError
from edgeqlora.models.family import load_learner
from edgeqlora.models.frames import (
    FrameMerger,
    check_merging,
    mean_of_runs,
    novelty_and_noise,
    run_starts,
)
from edgeqlora.models.quantised import nf4_round_trip


@pytest.fixture(scope="module")
def whisper():
    learner = load_learner(str(model_dir()))
    learner.model.eval()
    return learner


@pytest.fixture(scope="module")
def ctc():
    learner = load_learner(str(model_dir("wav2vec2")))
    learner.model.eval()
    return learner


@contextlib.contextmanager
def frames_given(merger, *orders):
    """The layer that merges hears its frames in this order, one order for each row: equal neighbours, where one asks for them."""

    def give(module, args, kwargs):
        hidden = args[0] if args else kwargs.pop("hidden_states")
        hidden = torch.stack([row[torch.as_tensor(order)] for row, order in zip(hidden, orders, strict=True)])
        return (hidden, *args[1:]), kwargs

    layer = merger.learner.layer_stacks()["encoder"][merger.after]
    handle = layer.register_forward_pre_hook(give, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def test_novelty_and_noise_are_those_of_the_formula():
    torch.manual_seed(0)
    x, w, e = torch.randn(2, 7, 5), torch.randn(9, 5), torch.randn(9, 5)
    novelty, noise = novelty_and_noise(x, w.T @ w, e.T @ e)
    for t in range(7):
        for c in (1, 2, 3):
            if t < c:
                assert novelty[:, t, c - 1].isinf().all()
                continue
            mean = x[:, t - c : t].mean(1)
            assert torch.allclose(novelty[:, t, c - 1], ((x[:, t] - mean) @ w.T).square().sum(-1), rtol=1e-4)
            assert torch.allclose(noise[:, t, c - 1], (mean @ e.T).square().sum(-1), rtol=1e-4)


def test_runs_end_at_four_frames_and_where_padding_begins():
    every = np.ones((3, 9, 3), bool)
    starts = run_starts(every, [9, 6, 0])
    assert [np.flatnonzero(row).tolist() for row in starts] == [[0, 4, 8], [0, 4, 6], [0, 4, 8]]
    assert run_starts(~every, [9, 6, 0]).all()
    pairs = every.copy()
    pairs[:, :, 1:] = False  # a frame may join one, and never a run of two
    assert np.flatnonzero(run_starts(pairs, [9, 9, 9])[0]).tolist() == [0, 2, 4, 6, 8]


def test_a_run_becomes_its_mean():
    hidden = torch.arange(5.0).reshape(1, 5, 1)
    first, sizes = torch.tensor([[0, 3, 4]]), torch.tensor([[3, 1, 1]])
    assert mean_of_runs(hidden, first, sizes).flatten().tolist() == [1.0, 3.0, 4.0]


def test_equal_frames_weigh_as_much_merged_as_apart(whisper):
    """Rows of other lengths in one batch, attention in the encoder and over it, a cache whose rows are dropped."""
    rows = sorted(load_for("", str(speech_dir() / "test.jsonl"), "", None), key=lambda row: len(row.text))
    audio = [load_audio(rows[i]) for i in (0, -1, 1)]
    processor, merger, n = whisper.processor, FrameMerger(whisper, kappa=1e-9), 150
    features = np.stack([processor.features(clip, 3.0) for clip in audio])
    merger.n_valid = [processor.n_valid_frames(clip.size, 3.0) for clip in audio]
    inputs = {"input_features": torch.from_numpy(features), "decoder_input_ids": torch.tensor([[1, 5, 9]] * 3)}
    decoder = whisper.decoder([3.0], None, None)
    dropped, keep_rows = [], merger._keep_rows
    merger._keep_rows = lambda keep: (dropped.append(len(keep)), keep_rows(keep))
    with torch.no_grad(), frames_given(merger, np.arange(n) // 2, np.arange(n), np.arange(n) // 4):
        with whisper.window(inputs):
            apart = whisper.model(**inputs)
        found = decoder.transcribe(features, merger.n_valid, 3.0)
        losses = decoder.losses(found, [[5, 9, 2], [7], [9]])
        with merger.merging():
            with whisper.window(inputs):
                merged = whisper.model(**inputs)
            merged_found = decoder.transcribe(features, merger.n_valid, 3.0)
            merger.take_all_rows()
            merged_losses = decoder.losses(merged_found, [[5, 9, 2], [7], [9]])
    assert merged.encoder_last_hidden_state.shape[1] == n  # the second row merged nothing
    assert torch.allclose(merged.logits, apart.logits, atol=1e-3)
    assert [one.text for one in merged_found] == [one.text for one in found]
    assert merged_losses == pytest.approx(losses, rel=1e-3)
    assert dropped, "no clip ended before the others"
    pairs, _, fours = (-(-valid // 2) for valid in merger.n_valid)  # frames of speech
    t = np.arange(n)
    joined = [(t % 2 > 0) & (t != pairs), (t % 4 > 0) & (t != fours)]
    assert merger.counts.speech_merged == joined[0][:pairs].sum() + joined[1][:fours].sum()
    assert merger.counts.padding_merged == joined[0][pairs:].sum() + joined[1][fours:].sum()


def test_merged_frames_are_fewer_in_the_layers_behind(whisper):
    merger = FrameMerger(whisper, kappa=1e9)
    merger.n_valid = [100]
    heard = []
    layers = whisper.layer_stacks()["encoder"]
    handles = [layer.register_forward_hook(lambda m, a, out: heard.append(out.shape[1])) for layer in layers]
    inputs = whisper.inputs(np.zeros((1, 80, 100), np.float32), [100])
    with torch.no_grad(), whisper.window(inputs), merger.merging():
        found = whisper.model(**inputs).encoder_last_hidden_state
    for handle in handles:
        handle.remove()
    assert heard == [50, 13, 13]
    assert found.shape[1] == 13


def test_where_nothing_merges_the_bits_are_those_of_the_plain_encoder(whisper):
    merger = FrameMerger(whisper, kappa=1e-9)
    merger.n_valid = [100, 50]
    features = torch.randn(2, 80, 100, generator=torch.Generator().manual_seed(1))
    inputs = {"input_features": features, "decoder_input_ids": torch.tensor([[1, 5]] * 2)}
    with torch.no_grad(), whisper.window(inputs):
        plain = whisper.model(**inputs).logits
        with merger.merging():
            assert torch.equal(whisper.model(**inputs).logits, plain)
            assert merger.counts.speech_merged == merger.counts.padding_merged == 0
        merger.kappa = 1e9
        with merger.merging():
            assert not torch.equal(whisper.model(**inputs).logits, plain)
            merger.is_on = False
            assert torch.equal(whisper.model(**inputs).logits, plain)
        assert torch.equal(whisper.model(**inputs).logits, plain)  # nothing stays behind


def test_ctc_gives_each_frame_its_own_output_back(ctc):
    merger = FrameMerger(ctc, kappa=1e-3)
    audio = np.random.default_rng(0).standard_normal((2, 16000)).astype(np.float32)
    merger.n_valid = [16000, 8000]
    inputs = ctc.inputs(audio, merger.n_valid)
    with torch.no_grad():
        n = ctc.model(**inputs).logits.shape[1]
        with frames_given(merger, np.arange(n) // 3, np.arange(n) // 2):
            apart = ctc.model(**inputs).logits
            with merger.merging():
                merged = ctc.model(**inputs).logits
    assert merged.shape == apart.shape
    valid = ctc.processor.n_outputs(8000)
    assert torch.allclose(merged[0], apart[0], atol=1e-4)
    assert torch.allclose(merged[1, :valid], apart[1, :valid], atol=1e-4)
    assert merger.counts.speech == n + valid
    assert merger.counts.speech_merged == n - -(-n // 3) + valid // 2


def test_the_noise_is_what_nf4_takes_off_the_weights(whisper):
    heads = whisper.layer_stacks()["encoder"][1].self_attn
    weight = torch.cat([heads.q_proj.weight, heads.k_proj.weight, heads.v_proj.weight]).detach()
    lost = weight - torch.cat(
        [nf4_round_trip(h.weight.detach(), torch.float32) for h in (heads.q_proj, heads.k_proj, heads.v_proj)]
    )
    merger = FrameMerger(whisper, 1.0)
    assert torch.allclose(merger.w_form, weight.T @ weight, atol=1e-4)
    assert torch.allclose(merger.e_form, lost.T @ lost, atol=1e-6)
    quantised = load_learner(str(model_dir()), quantise=True)
    told = FrameMerger(quantised, 1.0, originals=whisper)
    kept = weight - lost
    assert torch.allclose(told.e_form, lost.T @ lost, atol=1e-6)
    assert torch.allclose(told.w_form, kept.T @ kept, atol=1e-3)


@pytest.mark.parametrize(
    ("kappa", "after", "text"),
    [
        (-1.0, 1, r"merge_frames=-1: allowed is a number from 0 \(off\), such as 1"),
        (float("nan"), 1, "merge_frames=nan: allowed"),
        (float("inf"), 1, "merge_frames=inf: allowed"),
        (1.0, -1, "merge_after=-1: allowed is a number of encoder layers from 0, such as 1"),
    ],
)
def test_what_cannot_be_asked_for(kappa, after, text):
    with pytest.raises(UserError, match=text):
        check_merging(kappa, after)


def test_a_layer_must_be_left_that_sees_merged_frames(whisper):
    with pytest.raises(UserError, match=r"merge_after=3: the encoder has 3 layers.* allowed are 0 to 2"):
        FrameMerger(whisper, 1.0, after=3)
