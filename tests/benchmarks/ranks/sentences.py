"""Noisy read sentences in pieces of at most 4.7 s, for the studies of whisper-tiny.en: a window of 5 s instead of 30 s is what makes
dozens of runs possible on two cores.

    python tests/benchmarks/ranks/sentences.py -o runs/sentences

Recordings of ../shared are cut at their quietest gaps between words. Where words lie is told by the attention of tiny.en over the audio
while it reads the known text (Whisper's alignment heads and transformers' own dynamic time warping). A piece stays if tiny.en, in a window of 10 s,
hears its first and its last word where the text has them. Then noise is mixed in at 5 dB, once and for all.

    train   the two readers of librispeech-sample's train set; kitchen and dishes
    dev     a third reader, one chapter; kitchen and dishes (another half minute of them)
    test    17 other voices of misc-sentences, and the third reader's other chapter; bike and tap
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from transformers.models.whisper.generation_whisper import _dynamic_time_warping, _median_filter

from edgeqlora.data.audio import load_audio
from edgeqlora.data.row import Row
from edgeqlora.evaluation.recognise import Recogniser
from edgeqlora.evaluation.scores import normaliser
from edgeqlora.models.family import load_learner

SHARED = Path(__file__).resolve().parents[4] / "shared"
RATE = 16_000
SHORTEST_S, LONGEST_S = 1.2, 4.7
SNR_DB = 5.0
SETS = {
    "train": (["librispeech-sample/train.jsonl"], ("kitchen", "doing_the_dishes"), (0.0, 30.0)),
    "dev": (["librispeech-sample/dev.jsonl"], ("kitchen", "doing_the_dishes"), (30.0, 60.0)),
    "test": (["misc-sentences/manifest.jsonl", "librispeech-sample/test.jsonl"], ("exercise_bike", "running_tap"), (0.0, 60.0)),
}  # fmt: skip


def word_ends(learner: Any, audio: Any, words: list[str]) -> list[float]:
    """Seconds at which each word ends, by teacher forcing."""
    processor = learner.processor
    ids, owner = [], []
    for number, word in enumerate(words):
        piece = processor.tokenizer.encode(" " + word, add_special_tokens=False)
        ids += piece
        owner += [number] * len(piece)
    prompt = [learner.model.config.decoder_start_token_id, learner.model.generation_config.no_timestamps_token_id]
    tokens = torch.tensor([[*prompt, *ids, learner.model.config.eos_token_id]])
    features = torch.from_numpy(processor.features(audio, 30.0))[None]
    with torch.no_grad():
        attention = learner.model(features, decoder_input_ids=tokens, output_attentions=True).cross_attentions
    heads = learner.model.generation_config.alignment_heads
    n_positions = len(audio) // 320
    weights = torch.stack([attention[layer][0, head] for layer, head in heads])[:, :, :n_positions]
    deviation, mean = torch.std_mean(weights, dim=-2, keepdim=True)
    matrix = _median_filter((weights - mean) / deviation, 7).mean(0)[
        len(prompt) - 1 : -1
    ]  # a row attends to the word that follows
    rows, positions = _dynamic_time_warping(-matrix.double().numpy())
    starts = [float(positions[np.searchsorted(rows, row)]) * 0.02 for row in range(len(ids) + 1)]
    last_of = {number: row for row, number in enumerate(owner)}
    return [starts[last_of[number] + 1] for number in range(len(words))]


def cuts(audio: Any, ends: list[float]) -> list[tuple[float, int]]:
    """(seconds, words before) of the cuts: few, with little sound in them, and pieces neither too short nor too long."""
    frame = RATE // 100
    level = 10 * np.log10(np.maximum(np.mean(audio[: len(audio) // frame * frame].reshape(-1, frame) ** 2, 1), 1e-8))
    smooth = np.convolve(level, np.ones(8) / 8, "same")
    places = [(0.0, 0, 0.0)]
    for number, end in enumerate(ends[:-1]):
        low, high = max(0, int(end * 100) - 20), min(len(smooth), int(end * 100) + 20)
        if low < high:
            at = low + int(np.argmin(smooth[low:high]))
            places.append((at / 100, number + 1, float(smooth[at] - np.median(smooth))))
    places.append((len(audio) / RATE, len(ends), 0.0))
    best: list[tuple[float, int]] = [(0.0, -1)]
    for here in range(1, len(places)):
        options = [
            (best[back][0] + places[here][2] + 40.0, back)
            for back in range(here)
            if SHORTEST_S <= places[here][0] - places[back][0] <= LONGEST_S and best[back][0] < float("inf")
        ]
        best.append(min(options, default=(float("inf"), -1)))
    if best[-1][0] == float("inf"):
        return []
    path, here = [], len(places) - 1
    while here > 0:
        path.append(here)
        here = best[here][1]
    return [(0.0, 0), *((places[at][0], places[at][1]) for at in reversed(path))]


def pieces_of(learner: Any, row: dict[str, Any], folder: Path) -> list[tuple[dict[str, Any], Any]]:
    audio = load_audio(str(folder / row["audio"]))
    words = row["text"].split()
    marks = [(0.0, 0), (len(audio) / RATE, len(words))]
    if len(audio) > LONGEST_S * RATE:
        marks = cuts(audio, word_ends(learner, audio, words))
    found = []
    for (start, first), (end, last) in itertools.pairwise(marks):
        name = f"{Path(row['audio']).stem}-{int(start * 100):04d}"
        text = " ".join(words[first:last])
        found.append(
            ({"id": name, "text": text, "speaker": str(row["speaker"])}, audio[int(start * RATE) : int(end * RATE)])
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    output = parser.parse_args().output
    learner = load_learner(str(SHARED / "models" / "whisper-tiny.en"))
    learner.model.eval()
    normalise = normaliser("whisper-english")
    for name, (manifests, noises, (low, high)) in SETS.items():
        draw, found = random.Random(name), []
        learner.model.set_attn_implementation("eager")
        for manifest in manifests:
            path = SHARED / "data" / manifest
            for line in path.read_text().splitlines():
                found += pieces_of(learner, json.loads(line), path.parent)
        learner.model.set_attn_implementation("sdpa")
        (output / name).mkdir(parents=True, exist_ok=True)
        files = [output / name / f"{row['id']}.flac" for row, _ in found]
        for file, (_, audio) in zip(files, found, strict=True):
            soundfile.write(file, audio, RATE)
        said = Recogniser(learner, [10.0], tokens_per_s=8.0).recognise([Row(str(file), "") for file in files])
        rows = []
        of_noise = [load_audio(str(SHARED / "data" / "noise" / "audio" / f"{noise}.flac")) for noise in noises]
        for (row, audio), text, file in zip(found, said.texts, files, strict=True):
            file.unlink()
            truth, guess = normalise(row["text"]).split(), normalise(text).split()
            if (
                not truth
                or not guess
                or (truth[0], truth[-1]) != (guess[0], guess[-1])
                or abs(len(truth) - len(guess)) > 2
            ):
                continue
            noise = draw.choice(of_noise)
            start = draw.randrange(int(low * RATE), int(high * RATE) - len(audio))
            mixed = noise[start : start + len(audio)]
            gain = np.sqrt(np.mean(audio**2) / np.mean(mixed**2)) * 10 ** (-SNR_DB / 20)
            mixed = audio + gain * mixed
            mixed /= max(1.0, float(np.abs(mixed).max()))
            soundfile.write(file, mixed, RATE)
            rows.append({"audio": f"{name}/{file.name}", **row, "duration": round(len(audio) / RATE, 3)})
        (output / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        seconds = sum(row["duration"] for row in rows)
        voices = len({row["speaker"] for row in rows})
        print(
            f"{name}: {len(rows)} of {len(found)} pieces, {seconds:.0f} s, "
            f"{sum(len(row['text'].split()) for row in rows)} words, {voices} voices"
        )


if __name__ == "__main__":
    main()
