"""The calibration pass against what torch says itself, and scores against covariances that are known."""

import math

import numpy as np
import pytest
import torch

from edgeqlora.lora import statistics
from edgeqlora.lora.adapters import adapted_linears
from edgeqlora.lora.scores import Scores, eigenvalues, relative, scores_of, spearman
from edgeqlora.lora.statistics import Half, LinearStatistics, Moments, collect
from edgeqlora.models.family import load_learner


def batches(learner, lengths, window_s=1.0):
    """Clips of noise that fill so many samples of the window, with labels of their own."""
    decoder = learner.decoder([window_s], "en", None)
    found = []
    for number, n_samples in enumerate(lengths):
        audio = np.random.default_rng(number).normal(0, 0.1, n_samples).astype(np.float32)
        processor = learner.processor
        sample = {
            "features": processor.features(audio, window_s),
            "n_valid": processor.n_valid_frames(n_samples, window_s),
            "target_ids": [*processor.text_ids("stop now" if number % 2 else "lights"), *processor.end_ids],
        }
        found.append({"name": str(number), "n_valid": sample["n_valid"], "batch": decoder.collate([sample])})
    return found


@pytest.fixture(scope="module")
def learner(tiny_model):
    learner = load_learner(str(tiny_model))
    learner.model.requires_grad_(False)
    return learner


def test_every_linear_is_heard_and_the_products_are_the_gradients_of_the_weights(learner):
    """On clips without padding gradient^T input is dL/dW: torch computes the same where weights need gradients."""
    groups = adapted_linears(learner)
    clips = batches(learner, [16000, 16000, 16000, 16000])
    found = {linear.name: linear for linear in collect(learner, groups, clips, 4, {})}
    assert sorted(found) == sorted(name for names in groups.values() for name in names)
    modules = dict(learner.model.named_modules())
    wanted = {name: [torch.zeros(modules[name].weight.shape) for _ in range(2)] for name in found}
    for name in found:
        modules[name].weight.requires_grad_(True)
    for number, clip in enumerate(clips):
        batch = dict(clip["batch"])
        labels = batch.pop("labels")
        with learner.window(batch):
            loss = learner.loss(learner.model(**batch), batch, labels) / (labels != -100).sum()
            gradients = torch.autograd.grad(loss, [modules[name].weight for name in found])
        for name, gradient in zip(found, gradients, strict=True):
            wanted[name][number % 2] += gradient
    learner.model.requires_grad_(False)
    for name, linear in found.items():
        # Rows of the prompt have no label, so decoder linears count fewer rows than the weight's gradient does.
        exact = name.startswith("model.encoder.") or name.endswith(("encoder_attn.k_proj", "encoder_attn.v_proj"))
        for half in (0, 1):
            close = torch.allclose(linear.halves[half].product, wanted[name][half], rtol=1e-3, atol=1e-6)
            assert close or not exact, name


def test_padding_is_counted_nowhere(learner):
    found = collect(learner, adapted_linears(learner), batches(learner, [8000, 4800]), 2, {})
    for linear in found:
        rows = [half.gradients.n for half in linear.halves]
        hears_audio = linear.group == "encoder" or linear.name.endswith(("attn.k_proj", "attn.v_proj"))
        if hears_audio and linear.group != "decoder":
            assert rows == [25, 15], linear.name
        else:
            assert max(rows) < 15, linear.name  # labels of a few tokens


def test_queries_keys_and_values_share_what_they_hear(learner):
    found = {
        linear.name: linear
        for linear in collect(learner, adapted_linears(learner), batches(learner, [16000] * 2), 2, {})
    }
    layer = "model.encoder.layers.0.self_attn."
    q, k, out = (found[layer + name].halves[0].inputs for name in ("q_proj", "k_proj", "out_proj"))
    assert q is k
    assert q is not out
    cross = [n for n in found if n.endswith(("encoder_attn.k_proj", "encoder_attn.v_proj"))]
    assert len({id(found[n].halves[0].inputs) for n in cross}) == 1  # all hear the encoder's output


def test_a_hook_that_does_not_fire_is_an_error(learner):
    groups = {"encoder": ["model.encoder.layers.0.fc1"], "other": ["proj_out"]}
    with pytest.raises(RuntimeError, match="1 of 2 linears were never heard, the first is proj_out"):
        collect(SilentHead(learner), groups, batches(learner, [16000] * 2), 2, {})


class SilentHead:
    """A learner whose output layer is bypassed: the hook on it never fires."""

    def __init__(self, learner):
        self._learner = learner

    def __getattr__(self, name):
        return getattr(self._learner, name)

    def loss(self, outputs, inputs, labels):
        return outputs.encoder_last_hidden_state.pow(2).sum()


def linear_of(rows_by_half, gradients_by_half, weight, error=None):
    halves = []
    for rows, gradients in zip(rows_by_half, gradients_by_half, strict=True):
        half = Half(Moments(rows.shape[1]), Moments(gradients.shape[1]), gradients.T @ rows)
        half.inputs.add(rows, statistics.ROWS)
        half.gradients.add(gradients, statistics.ROWS)
        halves.append(half)
    return LinearStatistics("layer", "encoder", weight, error, (halves[0], halves[1]))


def known(n_rows, spectrum, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n_rows, len(spectrum), generator=generator) * torch.tensor(spectrum).sqrt()


SPECTRUM = [0.9**k for k in range(64)]
TRUE_DIMENSION = sum(SPECTRUM) ** 2 / sum(v * v for v in SPECTRUM)


def test_entropy_of_two_halves_has_no_bias_from_few_rows():
    estimates, plain = [], []
    for seed in range(30):
        rows = [known(100, SPECTRUM, 2 * seed + h) for h in (0, 1)]
        linear = linear_of(rows, rows, torch.eye(64))
        estimates.append(math.exp(scores_of(linear).input_entropy))
        plain.append(math.exp(scores_of(linear, 0, 0).input_entropy))
    assert np.mean(estimates) == pytest.approx(TRUE_DIMENSION, rel=0.03)
    assert np.mean(plain) < 0.9 * TRUE_DIMENSION  # what one sum alone would say


def test_a_mean_is_no_direction_of_variance():
    rows = [known(4000, SPECTRUM, h) + 5.0 for h in (0, 1)]
    linear = linear_of(rows, rows, torch.eye(64))
    assert math.exp(scores_of(linear).input_entropy) == pytest.approx(TRUE_DIMENSION, rel=0.05)


@pytest.mark.parametrize("size", [1e-8, 1e-4, 1.0, 1e6])
def test_entropy_does_not_depend_on_the_size_of_gradients(size):
    rows = [known(300, SPECTRUM, h) for h in (0, 1)]
    one = scores_of(linear_of(rows, rows, torch.eye(64)))
    other = scores_of(linear_of(rows, [size * r for r in rows], torch.eye(64)))
    assert other.gradient_entropy == pytest.approx(one.gradient_entropy, rel=1e-4)
    assert 0 <= other.gradient_entropy <= math.log(64)
    nothing = scores_of(linear_of(rows, [0 * r for r in rows], torch.eye(64)))
    assert (nothing.gradient_entropy, nothing.sensitivity) == (0.0, 0.0)


def test_rows_of_a_wide_layer_are_drawn_from_the_whole_clip():
    moments = Moments(statistics.WIDE)
    for n in (5, 63, 95):
        moments.add(torch.arange(n, dtype=torch.float32)[:, None].expand(n, statistics.WIDE), 32)
        drawn = moments.rows[-1][:, 0]
        assert len(drawn) == min(n, 32)
        assert (drawn[0], drawn[-1]) == (0, n - 1)
        assert drawn.diff().max() <= n / 32 + 1.5


def test_wide_inputs_are_sampled_and_say_the_same(monkeypatch):
    rows = [known(3000, SPECTRUM, h) for h in (0, 1)]
    error = 0.1 * torch.randn(64, 64, generator=torch.Generator().manual_seed(9))
    whole = scores_of(linear_of(rows, rows, torch.eye(64), error))
    monkeypatch.setattr(statistics, "WIDE", 64)
    sampled = linear_of(rows, rows, torch.eye(64), error)
    assert sampled.halves[0].inputs.square is None
    assert sum(map(len, sampled.halves[0].inputs.rows)) == statistics.ROWS
    for name, value in scores_of(sampled)._asdict().items():
        assert value == pytest.approx(getattr(whole, name), rel=0.1), name
    assert eigenvalues(sampled)[:4].tolist() == pytest.approx(SPECTRUM[:4], rel=0.2)


def test_the_nf4_error_is_weighted_by_what_is_heard():
    """An error in directions that no input has costs nothing."""
    rows = [torch.cat([known(500, SPECTRUM[:32], h), torch.zeros(500, 32)], dim=1) for h in (0, 1)]
    unheard, heard = torch.zeros(64, 64), torch.zeros(64, 64)
    unheard[:, 32:], heard[:, :32] = 0.1, 0.1
    weight = torch.ones(64, 64)
    assert scores_of(linear_of(rows, rows, weight, unheard)).nf4_error == pytest.approx(0, abs=1e-6)
    assert scores_of(linear_of(rows, rows, weight, heard)).nf4_error == pytest.approx(0.1, rel=1e-4)
    assert scores_of(linear_of(rows, rows, weight)).nf4_error is None


def test_sensitivity_of_gradients_that_only_noise_makes_is_small():
    rows = [known(200, SPECTRUM, h) for h in (0, 1)]
    noise = [known(200, SPECTRUM, h + 2) for h in (0, 1)]
    same = scores_of(linear_of(rows, rows, torch.eye(64))).sensitivity
    other = scores_of(linear_of(rows, noise, torch.eye(64))).sensitivity
    assert other < 0.5 * same


def test_small_tools():
    assert relative([1.0, 4.0], 0.5) == pytest.approx([0.5**0.5, 2**0.5])
    assert spearman([1, 2, 3, 4], [10, 20, 20, 90]) == pytest.approx(0.9486833)
    assert spearman([1, 1, 1], [1, 2, 3]) is None
    assert Scores(1.0, 3.0, 1.0, None).update_dimension == pytest.approx(math.exp(2))
