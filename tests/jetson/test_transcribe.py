"""Clips to text on the tiny bundle."""

import numpy as np


def test_texts_and_windows(transcriber, clips, expected):
    transcripts = [transcriber.transcribe(clip) for clip in clips]
    assert [t.text for t in transcripts] == expected["texts"]
    assert [t.window_s for t in transcripts] == expected["window_s"]
    assert [t.audio_s for t in transcripts] == [0.15, 0.2, 0.7]
    assert [t.n_pieces for t in transcripts] == [1, 1, 1]
    assert [t.n_incomplete for t in transcripts] == [1, 0, 1]


def test_batch_over_different_windows_keeps_the_order(transcriber, clips, expected):
    order = [2, 0, 1, 2]
    transcripts = transcriber.transcribe_batch([clips[i] for i in order])
    assert [t.tokens for t in transcripts] == [expected["tokens"][i] for i in order]


def test_long_audio_is_cut_and_joined(transcriber, clips):
    """Two clips with silence between them, longer than the largest window of 1 s."""
    audio = np.concatenate([clips[2], np.zeros(4000, np.float32), clips[2]])
    whole = transcriber.transcribe(audio)
    assert whole.n_pieces == 2
    assert whole.audio_s == len(audio) / 16000
    cut = transcriber.transcribe_batch([audio, clips[0]])
    assert cut[0].tokens == whole.tokens
    # The silence is at 0.7 to 0.95 s: the cut falls into it.
    parts = [transcriber.transcribe(part) for part in (audio[:12800], audio[12800:])]
    assert whole.n_steps == sum(part.n_steps for part in parts)
    assert len(whole.tokens) > 10, "more than one window may give"


def test_times_are_of_their_parts(transcriber, clips):
    t = transcriber.transcribe(clips[1])
    assert list(t.phases_ms) == ["features", "encoder", "decoder"]
    assert 0 < t.phases_ms["features"] < t.first_token_ms < t.total_ms
    assert sum(t.phases_ms.values()) <= t.total_ms


def test_one_sample_is_enough(transcriber):
    assert transcriber.transcribe(np.zeros(1, np.float32)).n_pieces == 1
