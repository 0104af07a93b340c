"""Clips to text on the tiny bundle."""

import numpy as np
import pytest


@pytest.fixture
def following(bundle_copy):
    """The tiny bundle as a function of its margin, and a list of the shapes that its encoder was given."""
    pytest.importorskip("onnxruntime")
    from edgeqlora_jetson.bundle import Bundle
    from edgeqlora_jetson.runtimes import open_runtime
    from edgeqlora_jetson.transcribe import Transcriber

    def make(margin_s, least_s=0.1, takes_any_length=True):
        bundle, frames = Bundle.load(bundle_copy), []
        bundle.manifest["audio"]["margin"] = {"margin_s": margin_s, "least_s": least_s}
        runtime = open_runtime(bundle, threads=1)
        runtime.takes_any_length = takes_any_length
        run = runtime.run

        def spied(graph, inputs, *rest):
            if graph == "encoder":
                frames.append(inputs["mel"].shape[2])
            return run(graph, inputs, *rest)

        runtime.run = spied
        return Transcriber(bundle, runtime), frames

    return make


def test_the_encoder_hears_the_clip_and_its_margin(following, clips):
    """A clip of 0.2 s that ends by itself."""
    transcriber, frames = following(0.1)
    t = transcriber.transcribe(clips[1])
    assert (t.window_s, t.heard_s, t.n_incomplete, t.n_again, frames) == (0.5, 0.4, 0, 0, [40])
    assert following(0.1, least_s=0.5)[0].transcribe(clips[1]).heard_s == 0.5
    for whole in (following(None), following(0.1, takes_any_length=False)):
        t = whole[0].transcribe(clips[1])
        assert (t.heard_s, whole[1]) == (0.5, [50])


def test_a_text_without_an_end_is_heard_again_in_the_whole_window(following, transcriber, clips):
    """The first clip, of 0.15 s, runs into its limit of tokens in either; the second ends in both."""
    following_it, frames = following(0.1)
    first, second = following_it.transcribe_batch(clips[:2])
    assert frames == [40, 50]
    whole = transcriber.transcribe(clips[0])
    assert (first.tokens, first.n_incomplete, first.n_again, first.heard_s) == (whole.tokens, 1, 1, 0.9)
    assert (second.n_incomplete, second.n_again, second.heard_s) == (0, 0, 0.4)
    assert first.n_steps > whole.n_steps, "both decodings count"
    assert first.phases_ms == second.phases_ms
    assert sum(first.phases_ms.values()) <= first.total_ms


def test_a_clip_is_heard_in_a_batch_as_it_is_alone(following, clips):
    """Beside a longer one of the same window."""
    transcriber, frames = following(0.05)
    audios = [clips[2][:1600], clips[1], clips[2][:1601]]
    together = transcriber.transcribe_batch(audios)
    alone = [transcriber.transcribe(audio) for audio in audios]
    assert [t.tokens for t in together] == [t.tokens for t in alone]
    assert [t.heard_s for t in together] == [t.heard_s for t in alone]
    assert {20, 40} <= set(frames)


def test_pieces_of_a_long_clip_follow_it_too(following, clips):
    audio = np.concatenate([clips[2], np.zeros(4000, np.float32), clips[1]])
    transcriber, frames = following(0.1)
    t = transcriber.transcribe(audio)
    assert t.n_pieces == 2
    assert t.heard_s == pytest.approx(sum(frames) / 100.0)
    assert t.heard_s < 2.0 + t.n_again


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
