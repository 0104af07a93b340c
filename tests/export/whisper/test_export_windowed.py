"""windowed(): a model that sees a shorter window, and is unaltered afterwards."""

import re

import pytest
import torch
from export_tiny import tiny_whisper
from hypothesis import assume, given
from hypothesis import strategies as st

from edgeqlora_export.whisper.windowed import model_window_s, window_frames, windowed
from edgeqlora_jetson.errors import UserError


@given(st.integers(1, 1500))
def test_every_multiple_of_20_ms_has_an_even_number_of_frames(positions):
    assert window_frames(positions / 50) == 2 * positions


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_any_other_window_is_refused_with_the_allowed_range(window_s):
    positions = round(window_s * 50) if 0.02 <= window_s <= 30 else 0
    assume(not positions or abs(positions / 50 - window_s) > 1e-6)
    with pytest.raises(UserError, match=f"^window_s={re.escape(f'{window_s:g}')} is "):
        window_frames(window_s)


def test_the_refusals_say_what_to_do():
    with pytest.raises(UserError, match=r"window_s=31 is out of range: allowed are 0.02 to 30 s"):
        window_frames(31)
    with pytest.raises(UserError, match=r"window_s=2\.01 is not a multiple of 0.02 s.*nearest allowed value is 2\.0"):
        window_frames(2.01)


@given(st.integers(1, 100))
def test_a_window_equals_a_model_made_that_short_and_leaves_no_trace(positions):
    model = tiny_whisper()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    mel = torch.randn(1, 80, 2 * positions, generator=torch.Generator().manual_seed(positions))
    short = tiny_whisper(max_source_positions=positions)
    cut = {k: v[:positions] if k == "model.encoder.embed_positions.weight" else v for k, v in before.items()}
    short.load_state_dict(cut)
    with torch.no_grad(), windowed(model, positions / 50):
        assert model_window_s(model) == positions / 50
        found = model.model.encoder(mel).last_hidden_state
        torch.testing.assert_close(found, short.model.encoder(mel).last_hidden_state)
    assert model_window_s(model) == 2.0
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_it_nests_and_restores_after_an_error():
    model = tiny_whisper()
    with windowed(model, 1.0), pytest.raises(ValueError, match="length 50, but found 100"), windowed(model, 0.5):
        model.model.encoder(torch.zeros(1, 80, 100))
    assert model.model.encoder.embed_positions.weight.shape == (100, 32)
    assert model.config.max_source_positions == 100
    with windowed(model, 1.0), pytest.raises(UserError, match=r"allowed are 0\.02 to 1 s"), windowed(model, 1.5):
        pass


def test_gradients_reach_the_weights_inside_a_window():
    model = tiny_whisper()
    with windowed(model, 0.5):
        model.model.encoder(torch.randn(2, 80, 50)).last_hidden_state.sum().backward()
    assert model.model.encoder.conv1.weight.grad is not None
    assert model.model.encoder.embed_positions.weight.grad is None  # fixed sinusoids, frozen
