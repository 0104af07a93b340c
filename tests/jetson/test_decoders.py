"""Greedy decoding on the tiny bundle: the same tokens as a numpy model that runs every step from scratch."""

import numpy as np
import pytest

from edgeqlora_jetson.audio.logmel import LogMel
from edgeqlora_jetson.bundle import Bundle
from edgeqlora_jetson.decoders import Characters, CtcDecoder, Detokenizer, KeyValueDecoder, loop_start, said_before
from edgeqlora_jetson.errors import UserError


class ScriptedRuntime(object):
    """A runtime whose logits are written down: row -> list of (vocab,) per step. It keeps no keys and values."""

    name, version, precision = "script", "1", "fp32"

    def __init__(self, script):
        self.script = script
        self.fed = []

    def run(self, graph, inputs, shapes, keep=()):
        if graph == "encoder":
            return {}
        self.fed.append(inputs["tokens"].tolist())
        step = len(self.fed) - 1
        return {"logits": np.array([rows[step] for rows in self.script], dtype=np.float32)}


def greedy(runtime, mel, max_new_tokens):
    model = {"n_layers": 0, "n_heads": 1, "head_dim": 1, "vocab_size": 6}
    return KeyValueDecoder(runtime, {"model": model, "decoder": SPEC}).greedy(mel, max_new_tokens)


def one_hot(*tokens):
    """Logits that prefer the first token, then the second, ..."""
    logits = np.zeros(6)
    for rank, token in enumerate(tokens):
        logits[token] = 10.0 - rank
    return logits


SPEC = {"prompt_ids": [1, 2], "eos_ids": [5], "suppress_ids": [4], "begin_suppress_ids": [3, 5]}
MEL = np.zeros((1, 2, 10), dtype=np.float32)


def test_suppress_always_and_at_the_beginning():
    runtime = ScriptedRuntime([[one_hot(4, 3, 5, 0), one_hot(4, 3, 0), one_hot(5)]])
    result = greedy(runtime, MEL, 9)
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
    result = greedy(runtime, np.concatenate([MEL, MEL]), 9)
    assert result.tokens == [[0], [2, 1, 2]]
    assert runtime.fed[2:] == [[[5], [1]], [[5], [2]]]


def test_every_end_token_ends_a_text(monkeypatch):
    monkeypatch.setitem(SPEC, "eos_ids", [5, 2])
    runtime = ScriptedRuntime(
        [
            [one_hot(0), one_hot(2), one_hot(1), one_hot(1)],
            [one_hot(0), one_hot(1), one_hot(5), one_hot(1)],
        ]
    )
    result = greedy(runtime, np.concatenate([MEL, MEL]), 9)
    assert (result.tokens, result.is_complete, result.n_steps) == ([[0], [0, 1]], [True, True], 3)
    assert runtime.fed[2] == [[2], [1]]


def test_the_limit_counts_the_end_token():
    runtime = ScriptedRuntime([[one_hot(0), one_hot(1), one_hot(5)]])
    result = greedy(runtime, MEL, 2)
    assert (result.tokens, result.is_complete, result.n_steps) == ([[0, 1]], [False], 2)
    with pytest.raises(ValueError, match="max_new_tokens=0"):
        greedy(runtime, MEL, 0)


@pytest.mark.parametrize(
    ("tokens", "start"),
    [
        ([7] * 31, None),  # "la" 31 times may be a song
        ([7] * 32, 1),
        ([1, 2] + [7] * 32, 3),
        ([7, 8] * 15, None),
        ([1, 2] + [7, 8] * 16, 4),
        ([3, 4, 5, 6] * 7, None),  # a command of four tokens, said seven times
        ([9] + [3, 4, 5, 6] * 8, 5),
        (list(range(10)) * 5, None),
        (list(range(10)) * 6, 10),
        ([7] * 32 + [8], None),  # it went on
        ([], None),
    ],
)
def test_where_a_loop_starts(tokens, start):
    assert loop_start(tokens) == start


@pytest.mark.parametrize(
    ("tokens", "kept"),
    [
        ([7] * 40, 1),
        (list(range(40)), 40),
        ([1, 2, 3, 4] + [7, 8] * 20, 6),
        (list(range(10)) * 4, 10),
        (
            list(range(10)) + list(range(9)) + [9, 9] + list(range(10)) + list(range(4)) + [11, 5, 6, 7],
            10,
        ),  # not to the letter
        ([1, 2, 3] * 2 + list(range(10, 60)), 56),  # said twice, and then other things
        ([1, 2], 2),
        ([], 0),
    ],
)
def test_what_was_said_before_goes_from_a_text_at_the_limit(tokens, kept):
    assert said_before(tokens) == kept


def test_a_text_at_the_limit_loses_its_repeats_and_one_that_ended_does_not():
    said = [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2]
    runtime = ScriptedRuntime(
        [[one_hot(t) for t in said], [*[one_hot(t) for t in said[:9]], one_hot(5)] + [one_hot(5)] * 3]
    )
    result = greedy(runtime, np.concatenate([MEL, MEL]), 12)
    assert (result.tokens, result.is_complete) == ([[0, 1, 2], said[:9]], [False, True])


def test_a_loop_ends_its_row_alone_and_one_round_is_kept():
    looping = [one_hot(2)] + [one_hot(0), one_hot(1)] * 30
    text = [0, 1, 0, 2, 1, 0, 0, 2, 1, 1, 2, 0, 1, 1, 0, 2, 0, 1, 2, 2] + [
        0,
        2,
        2,
        1,
        0,
        1,
        1,
        1,
        2,
        0,
        0,
        1,
        2,
        1,
        0,
        0,
    ]
    going_on = [one_hot(number) for number in text]
    runtime = ScriptedRuntime([looping, [*going_on, one_hot(5)] + [one_hot(5)] * 30])
    result = greedy(runtime, np.concatenate([MEL, MEL]), 60)
    assert result.tokens == [[2, 0, 1], text]
    assert (result.is_complete, result.n_steps) == ([False, True], 37)
    assert runtime.fed[34] == [[5], [text[33]]]


def test_times_add_up():
    result = greedy(ScriptedRuntime([[one_hot(0), one_hot(5)]]), MEL, 9)
    encoder_ms, decoder_ms = result.phases_ms["encoder"], result.phases_ms["decoder"]
    assert 0.0 <= encoder_ms <= result.first_token_ms <= encoder_ms + decoder_ms


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
    decoder = KeyValueDecoder(transcriber.runtime, bundle.manifest)
    mel = mels(bundle, clips, 50)
    together = decoder.greedy(mel, 20).tokens
    alone = [decoder.greedy(mel[i : i + 1], 20).tokens[0] for i in range(3)]
    assert together == alone
    assert len({len(tokens) for tokens in alone}) > 1


def test_cached_steps_equal_running_from_scratch(transcriber, fixture_folder, clips):
    bundle = Bundle.load(fixture_folder)
    decoder = KeyValueDecoder(transcriber.runtime, bundle.manifest)
    encoded = decoder.encode(mels(bundle, clips, 50))
    tokens = np.random.RandomState(0).randint(0, 36, size=(3, 12)).astype(np.int32)
    state = decoder.start(encoded)
    for n in range(1, 13):
        cached = state.step(tokens[:, n - 1 : n])
        scratch = decoder.start(encoded).step(tokens[:, :n])
        assert state.n_past == n
        assert np.abs(cached - scratch).max() < 1e-4
    # Two tokens at once after a past, as well.
    pairs = decoder.start(encoded)
    for n in range(0, 12, 2):
        last = pairs.step(tokens[:, n : n + 2])
    assert np.abs(last - cached).max() < 1e-4


def test_states_do_not_disturb_each_other(transcriber, fixture_folder, clips):
    bundle = Bundle.load(fixture_folder)
    decoder = KeyValueDecoder(transcriber.runtime, bundle.manifest)
    first, second = (decoder.start(decoder.encode(mels(bundle, [clip], 50))) for clip in clips[:2])
    token = np.array([[36]], dtype=np.int32)
    alone = decoder.start(decoder.encode(mels(bundle, clips[:1], 50)))
    for _ in range(4):
        a, _, b = first.step(token), second.step(token), alone.step(token)
        assert np.array_equal(a, b)


@pytest.mark.parametrize("before", [[], [one_hot(0), one_hot(1)]], ids=["at once", "after two tokens"])
def test_logits_that_are_no_numbers_are_not_believed(before):
    broken = one_hot(3)
    broken[1] = np.nan
    runtime = ScriptedRuntime([before + [broken]])
    with pytest.raises(UserError, match="the fp32 decoder in script 1 answers NaN or infinity on this audio"):
        greedy(runtime, MEL, 9)


CTC = {"kind": "ctc", "blank_id": 0, "word_delimiter": "|", "conv_kernel": [4, 2], "conv_stride": [2, 2]}


class ScriptedCtc(object):
    """A runtime that answers with the ids it was given, one a step, and remembers what it was fed."""

    name, version, precision = "script", "1", "fp32"

    def __init__(self, ids):
        self.ids = ids

    def run(self, graph, inputs, shapes, keep=()):
        assert graph == "ctc"
        self.inputs = inputs
        assert shapes == {"logits": (len(self.ids), len(self.ids[0]), 5)}
        return {"logits": np.eye(5, dtype=np.float32)[np.array(self.ids)]}


@pytest.mark.parametrize("uses_mask", [True, False])
def test_ctc_reads_the_steps_of_the_clip(uses_mask):
    # 16 samples give (16 - 4) // 2 + 1 = 7 and (7 - 2) // 2 + 1 = 3 steps, 10 samples give 4 and 2.
    runtime = ScriptedCtc([[3, 0, 3], [4, 4, 2]])
    decoder = CtcDecoder(runtime, {"model": {"vocab_size": 5}, "decoder": dict(CTC, uses_mask=uses_mask)})
    assert [decoder.n_steps(n) for n in (16, 10, 5, 3, 0)] == [3, 2, 0, 0, 0]
    result = decoder.decode(np.zeros((2, 16), dtype=np.float32), [16, 10], 1.0)
    assert result.tokens == [[3, 3], [4] if uses_mask else [4, 2]]
    if uses_mask:
        assert runtime.inputs["frame_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    else:
        assert sorted(runtime.inputs) == ["audio"]


def test_characters_to_words():
    text = Characters([None, "|", "a", "b", None], "|")
    assert text([2, 3, 1, 1, 2, 4]) == "ab a"
    assert text([1]) == ""
