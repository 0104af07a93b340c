"""Greedy decoding on the tiny bundle: the same tokens as a numpy model that runs every step from scratch."""

import numpy as np
import pytest

from edgeqlora_jetson.audio.logmel import LogMel
from edgeqlora_jetson.bundle import Bundle
from edgeqlora_jetson.decoders import Detokenizer, greedy
from edgeqlora_jetson.errors import UserError


class ScriptedRuntime(object):
    """A runtime whose logits are written down: row -> list of (vocab,) per step."""

    def __init__(self, script):
        self.script = script
        self.fed = []

    def encode(self, mel):
        return None

    def start(self, cross):
        return self

    def step(self, tokens):
        self.fed.append(tokens.tolist())
        step = len(self.fed) - 1
        return np.array([rows[step] for rows in self.script], dtype=np.float32)


def one_hot(*tokens):
    """Logits that prefer the first token, then the second, ..."""
    logits = np.zeros(6)
    for rank, token in enumerate(tokens):
        logits[token] = 10.0 - rank
    return logits


SPEC = {"prompt_ids": [1, 2], "eos_id": 5, "suppress_ids": [4], "begin_suppress_ids": [3, 5]}
MEL = np.zeros((1, 2, 10), dtype=np.float32)


def test_suppress_always_and_at_the_beginning():
    runtime = ScriptedRuntime([[one_hot(4, 3, 5, 0), one_hot(4, 3, 0), one_hot(5)]])
    result = greedy(runtime, MEL, SPEC, 9)
    # First: 4 never, 3 and 5 not first, so 0; then 4 never but 3 may; then the end.
    assert result.tokens == [[0, 3]]
    assert result.is_complete == [True]
    assert runtime.fed == [[[1, 2]], [[0]], [[3]]]
    assert result.n_steps == 3


def test_finished_rows_go_on_with_the_end_token():
    runtime = ScriptedRuntime(
        [
            [one_hot(0), one_hot(5), one_hot(0), one_hot(0)],
            [one_hot(2), one_hot(1), one_hot(2), one_hot(5)],
        ]
    )
    result = greedy(runtime, np.concatenate([MEL, MEL]), SPEC, 9)
    assert result.tokens == [[0], [2, 1, 2]]
    assert runtime.fed[2:] == [[[5], [1]], [[5], [2]]]


def test_the_limit_counts_the_end_token():
    runtime = ScriptedRuntime([[one_hot(0), one_hot(1), one_hot(5)]])
    result = greedy(runtime, MEL, SPEC, 2)
    assert (result.tokens, result.is_complete, result.n_steps) == ([[0, 1]], [False], 2)
    with pytest.raises(ValueError, match="max_new_tokens=0"):
        greedy(runtime, MEL, SPEC, 0)


def test_times_add_up():
    result = greedy(ScriptedRuntime([[one_hot(0), one_hot(5)]]), MEL, SPEC, 9)
    assert 0.0 <= result.encoder_ms <= result.first_token_ms <= result.encoder_ms + result.decoder_ms


def test_detokenizer_joins_bytes_across_tokens():
    detokenizer = Detokenizer([" gr", "\xc3", "\xbc", "n", None])
    assert detokenizer([0, 1, 2, 4, 3]) == "grün"
    assert detokenizer([0, 1]) == "gr\ufffd"
    assert detokenizer([]) == ""
    with pytest.raises(UserError, match="token 5 is outside the detokenizer table, allowed 0 to 4"):
        detokenizer([5])


def mels(bundle, clips, n_frames):
    log_mel = LogMel(bundle.load_mel_filters())
    return np.stack([log_mel(clip, n_frames) for clip in clips])


def test_tokens_equal_the_numpy_model(transcriber, clips, expected):
    assert [transcriber.transcribe(clip).tokens for clip in clips] == expected["tokens"]


def test_batch_equals_single(transcriber, fixture_folder, clips):
    bundle = Bundle.load(fixture_folder)
    spec = bundle.manifest["decoding"]
    mel = mels(bundle, clips, 50)
    together = greedy(transcriber.runtime, mel, spec, 20).tokens
    alone = [greedy(transcriber.runtime, mel[i : i + 1], spec, 20).tokens[0] for i in range(3)]
    assert together == alone
    assert len({len(tokens) for tokens in alone}) > 1


def test_cached_steps_equal_running_from_scratch(transcriber, fixture_folder, clips):
    bundle = Bundle.load(fixture_folder)
    runtime = transcriber.runtime
    cross = runtime.encode(mels(bundle, clips, 50))
    tokens = np.random.RandomState(0).randint(0, 36, size=(3, 12)).astype(np.int32)
    state = runtime.start(cross)
    for n in range(1, 13):
        cached = state.step(tokens[:, n - 1 : n])
        scratch = runtime.start(cross).step(tokens[:, :n])
        assert state.n_past == n
        assert np.abs(cached - scratch).max() < 1e-4
    # Two tokens at once after a past, as well.
    pairs = runtime.start(cross)
    for n in range(0, 12, 2):
        last = pairs.step(tokens[:, n : n + 2])
    assert np.abs(last - cached).max() < 1e-4


def test_states_do_not_disturb_each_other(transcriber, fixture_folder, clips):
    bundle = Bundle.load(fixture_folder)
    runtime = transcriber.runtime
    first, second = (runtime.start(runtime.encode(mels(bundle, [clip], 50))) for clip in clips[:2])
    token = np.array([[36]], dtype=np.int32)
    alone = runtime.start(runtime.encode(mels(bundle, clips[:1], 50)))
    for _ in range(4):
        a, _, b = first.step(token), second.step(token), alone.step(token)
        assert np.array_equal(a, b)
