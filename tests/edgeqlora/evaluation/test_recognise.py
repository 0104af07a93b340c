"""Losses beside texts; a GPU whose memory does not hold a batch, stood in for: commands go on with fewer clips, and say so."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from edgeqlora.cli.main import app
from edgeqlora.data.audio import load_audio
from edgeqlora.data.manifest import load_for
from edgeqlora.demo import model_dir, speech_dir
from edgeqlora.errors import UserError
from edgeqlora.evaluation.frames import recognise_merged
from edgeqlora.evaluation.recognise import Recogniser
from edgeqlora.models.family import load_learner
from edgeqlora.models.frames import FrameMerger
from edgeqlora.models.whisper.learner import WhisperDecoder

LIMIT = "The GPU's memory does not hold 8 clips in a window of 1 s: recognising goes on with 4 at a time"


@pytest.fixture
def gpu_of(monkeypatch: pytest.MonkeyPatch):
    """Make a GPU that holds n clips at a time, and of their losses n_losses: more raise torch's own error.

    Returns the sizes of the batches whose texts it gave.
    """

    def fit(n: int, n_losses: int = 1000) -> list[int]:
        sizes: list[int] = []

        def bounded(method, limit, taken):
            def run(self, given, *args):
                if len(given) > limit:
                    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
                taken.append(len(given))
                return method(self, given, *args)

            return run

        monkeypatch.setattr(WhisperDecoder, "transcribe", bounded(WhisperDecoder.transcribe, n, sizes))
        monkeypatch.setattr(WhisperDecoder, "losses", bounded(WhisperDecoder.losses, n_losses, []))
        return sizes

    return fit


def evaluation(source: Path, clips: Path, folder: Path, *flags: str) -> tuple[dict, str]:
    output = folder / "report.json"
    result = CliRunner().invoke(
        app, ["evaluate", str(source), "-d", str(clips), "--window-s", "1", "-o", str(output), *flags]
    )
    assert result.exit_code == 0, result.exception
    return json.loads(output.read_text()), result.stdout


@pytest.mark.parametrize(
    ("limits", "expected"),
    [({"n": 3}, [2, 2, 2, 2]), ({"n": 8, "n_losses": 3}, [8, 4, 2, 2, 2, 2])],
    ids=["texts", "losses"],
)
def test_evaluate_halves_its_batch_and_gives_the_same_figures(tiny_model, clips, tmp_path, gpu_of, limits, expected):
    """8 and 4 clips are too many, for the texts or only for the losses of the texts that were there."""
    whole, _ = evaluation(tiny_model, clips, tmp_path)
    sizes = gpu_of(**limits)
    halved, said = evaluation(tiny_model, clips, tmp_path, "--batch-size", "8")
    assert sizes == expected
    assert said.count("The GPU's memory") == 1
    assert LIMIT in said
    assert halved["rtf"]["batch_size"] == 2
    for figure in ("wer", "cer"):
        assert halved[figure] == whole[figure]
    assert halved["perplexity"]["value"] == pytest.approx(whole["perplexity"]["value"], rel=1e-4)
    assert halved["perplexity"]["n_tokens"] == whole["perplexity"]["n_tokens"]
    assert halved["data"] == whole["data"]


@pytest.fixture(params=["random weights", "wav2vec2", pytest.param("tiny.en", marks=pytest.mark.real)])
def learner(request, tiny_model):
    """tiny.en for its vocabulary: sums over 50,000 tokens lose digits where they are not added in parts."""
    if request.param == "tiny.en":
        source = request.getfixturevalue("shared") / "models" / "whisper-tiny.en"
    else:
        source = tiny_model if request.param == "random weights" else model_dir("wav2vec2")
    learner = load_learner(str(source))
    learner.model.eval()
    return learner


def test_the_loss_of_a_text_is_that_of_the_model_given_it(learner, clips):
    """Of clips of several lengths in one batch, beside one that is too long and one whose text is."""
    first, second, third, wordy, _, long, *_ = load_for("", str(clips), "", None)
    window_s = 0.6
    rows = [first, second, long, third, dataclasses.replace(wordy, text="lamp " * 500)]
    recogniser = Recogniser(learner, [window_s])
    result = recogniser.recognise(rows, batch_size=4, with_losses=True)
    assert result.losses[2] is result.losses[4] is None
    assert result.n_pieces == [1, 1, 2, 1, 1]
    expected = []
    for row in (first, second, third):
        audio, processor = load_audio(row), learner.processor
        sample = {
            "features": processor.features(audio, window_s),
            "n_valid": processor.n_valid_frames(audio.size, window_s),
        }
        target = [*processor.text_ids(row.text), *processor.end_ids]
        inputs = recogniser.decoder.collate([sample | {"target_ids": target}])
        labels = inputs.pop("labels")
        with torch.no_grad(), learner.window(inputs):
            loss = learner.loss(learner.model(**inputs), inputs, labels)
        expected.append((pytest.approx(float(loss), rel=1e-5), len(target)))
    assert [loss for loss in result.losses if loss] == expected
    assert result.loss == (
        pytest.approx(sum(loss.expected for loss, _ in expected), rel=1e-5),
        sum(n for _, n in expected),
    )


def test_merging_counts_a_batch_once_whose_losses_did_not_fit(monkeypatch):
    learner = load_learner(str(model_dir()))
    learner.model.eval()
    rows = load_for("", str(speech_dir() / "dev.jsonl"), "", 8)
    expected, figures = recognise_merged(Recogniser(learner, [3.0]), FrameMerger(learner, 1.0), rows, 8)
    losses, refused = WhisperDecoder.losses, []

    def bounded(self, found, target_ids):
        if len(found) > 4:
            refused.append(len(found))
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return losses(self, found, target_ids)

    monkeypatch.setattr(WhisperDecoder, "losses", bounded)
    result, again = recognise_merged(Recogniser(learner, [3.0]), FrameMerger(learner, 1.0), rows, 8)
    assert refused == [8]
    assert (again["speech"], again["padding"]) == (figures["speech"], figures["padding"])
    assert result.texts == expected.texts
    assert result.loss == (pytest.approx(expected.loss[0], rel=1e-4), expected.loss[1])
    assert result.processing_s > 0


def test_audio_without_a_single_step_has_a_loss_of_nothing():
    """300 samples are less than the 25 ms that Wav2Vec 2.0 needs; the shortest clips of a set share its last batch."""
    learner = load_learner(str(model_dir("wav2vec2")))
    learner.model.eval()
    decoder = learner.decoder([1.0], None, None)
    features = np.stack([learner.processor.features(np.zeros(300, np.float32), 1.0)])
    assert decoder.losses(decoder.transcribe(features, [300], 1.0), [[]]) == [0.0]


def test_a_clip_that_does_not_fit_alone_is_refused(tiny_model, clips, tmp_path, gpu_of):
    gpu_of(0)
    result = CliRunner().invoke(app, ["evaluate", str(tiny_model), "-d", str(clips), "--window-s", "1"])
    assert isinstance(result.exception, UserError)
    assert "one clip in a window of 1 s does not fit into the GPU's memory" in str(result.exception)
    assert "CUDA_VISIBLE_DEVICES= before the command" in str(result.exception)


def test_train_and_merge_score_with_what_fits(tiny_model, clips, tmp_path, gpu_of):
    sizes = gpu_of(5)
    adapter, dev = tmp_path / "adapter", clips.with_name("dev.jsonl")
    train = ["train", "-m", str(tiny_model), "--train", str(clips), "--dev", str(dev), "-o", str(adapter)]
    train += ["--window-s", "1", "--steps", "2", "--eval-every", "1", "--batch-size", "4", "--cache", "none"]
    result = CliRunner().invoke(app, train)
    assert result.exit_code == 0, result.exception
    assert sizes == [4, 4] * 2  # two evaluations: the second does not try 8 again
    assert result.stderr.count(LIMIT) == 1
    merged = CliRunner().invoke(app, ["merge", str(adapter), "-o", str(tmp_path / "merged")])
    assert merged.exit_code == 0, merged.exception
    assert merged.stderr.count(LIMIT) == 2  # each of the two candidates is a model of its own


def test_training_that_fills_the_gpu_says_what_to_do():
    from edgeqlora.cli.messages import explain

    text = explain(torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has 1 GiB"))
    assert text.startswith("the GPU's memory is full (CUDA out of memory. Tried to allocate 20.00 GiB): stop what else")
    assert "--gradient-accumulation" in text
