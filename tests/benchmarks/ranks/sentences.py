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
PIECES = Path(__file__).with_name("pieces.jsonl")
"""Where the recordings are cut; found once, and found again where the file is not there."""
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


def recordings(manifest: str) -> dict[str, dict[str, Any]]:
    """Rows of a manifest of ../shared/data by the path of their audio in it."""
    rows = [json.loads(line) for line in (SHARED / "data" / manifest).read_text().splitlines()]
    return {str(Path(manifest).parent / row["audio"]): row for row in rows}


def pieces_of(learner: Any, manifest: str) -> list[dict[str, Any]]:
    """Cuts of all recordings of a manifest: seconds, and which of the words of its text are said there."""
    found = []
    for name, row in recordings(manifest).items():
        audio, words = load_audio(str(SHARED / "data" / name)), row["text"].split()
        marks = [(0.0, 0), (len(audio) / RATE, len(words))]
        if len(audio) > LONGEST_S * RATE:
            marks = cuts(audio, word_ends(learner, audio, words))
        for (start, first), (end, last) in itertools.pairwise(marks):
            piece = {"audio": name, "start": round(start, 2), "end": round(end, 2), "words": [first, last]}
            found.append({**piece, "text": " ".join(words[first:last])})
    return found


def write_pieces() -> None:
    """Find the pieces and write them beside this script: half an hour on one core."""
    learner = load_learner(str(SHARED / "models" / "whisper-tiny.en"))
    learner.model.eval()
    normalise = normaliser("whisper-english")
    kept: list[dict[str, Any]] = []
    for name, (manifests, _, _) in SETS.items():
        learner.model.set_attn_implementation("eager")  # the one that tells what it attends to
        found = [piece for manifest in manifests for piece in pieces_of(learner, manifest)]
        learner.model.set_attn_implementation("sdpa")
        rows = [
            Row(str(SHARED / "data" / piece["audio"]), "", start=piece["start"], end=piece["end"]) for piece in found
        ]
        said = Recogniser(learner, [10.0], tokens_per_s=8.0).recognise(rows).texts
        before = len(kept)
        for piece, text in zip(found, said, strict=True):
            truth, heard = normalise(piece["text"]).split(), normalise(text).split()
            same_ends = truth and heard and (truth[0], truth[-1]) == (heard[0], heard[-1])
            if same_ends and abs(len(truth) - len(heard)) <= 2:
                del piece["text"]
                kept.append({"set": name, **piece})
        print(f"{name}: {len(kept) - before} of {len(found)} pieces", flush=True)
    PIECES.write_text("".join(json.dumps(piece) + "\n" for piece in kept))


def mixed(piece: dict[str, Any], noises: list[Any], low_s: float, high_s: float, draw: random.Random) -> Any:
    """Samples of a piece with noise at SNR_DB, from low_s to high_s of one of the noises."""
    row = Row(str(SHARED / "data" / piece["audio"]), "", start=piece["start"], end=piece["end"])
    audio, noise = load_audio(row), draw.choice(noises)
    start = draw.randrange(int(low_s * RATE), int(high_s * RATE) - len(audio))
    part = noise[start : start + len(audio)]
    both = audio + part * np.sqrt(np.mean(audio**2) / np.mean(part**2)) * 10 ** (-SNR_DB / 20)
    return both / max(1.0, float(np.abs(both).max()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    output = parser.parse_args().output
    if not PIECES.exists():
        write_pieces()
    pieces = [json.loads(line) for line in PIECES.read_text().splitlines()]
    for name, (manifests, noises, (low_s, high_s)) in SETS.items():
        known = {key: row for manifest in manifests for key, row in recordings(manifest).items()}
        draw, rows = random.Random(name), []
        (output / name).mkdir(parents=True, exist_ok=True)
        of_noise = [load_audio(str(SHARED / "data" / "noise" / "audio" / f"{noise}.flac")) for noise in noises]
        for number, piece in enumerate(piece for piece in pieces if piece["set"] == name):
            audio = mixed(piece, of_noise, low_s, high_s, draw)
            file = f"{name}/{number:04d}.flac"
            soundfile.write(output / file, audio, RATE)
            text = " ".join(known[piece["audio"]]["text"].split()[slice(*piece["words"])])
            speaker = str(known[piece["audio"]]["speaker"])
            rows.append({"audio": file, "text": text, "speaker": speaker, "duration": len(audio) / RATE})
        (output / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        seconds, n_words = sum(row["duration"] for row in rows), sum(len(row["text"].split()) for row in rows)
        print(
            f"{name}: {len(rows)} pieces, {seconds:.0f} s, {n_words} words, {len({r['speaker'] for r in rows})} voices"
        )


if __name__ == "__main__":
    main()
