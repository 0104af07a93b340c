"""`edgeqlora evaluate`: one table for a base model, an adapter, a merged folder or a bundle."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeqlora.card import folder_sha256, library_versions, measured, missing, read_card, tuned_windows
from edgeqlora.data.agreement import read_durations, spoken_language, unread_fields
from edgeqlora.data.label_rules import rules_of_bundle
from edgeqlora.data.row import Row
from edgeqlora.data.silence import Silence, was_cut, without_silence
from edgeqlora.data.text import common_language
from edgeqlora.errors import UserError
from edgeqlora_jetson.audio.windows import SAMPLE_RATE_HZ, untuned_windows
from edgeqlora_jetson.board.machine import measure_peak_rss_mib, read_machine
from edgeqlora_jetson.files import read_json, sha256_file, write_json, write_text
from edgeqlora_jetson.schema import Figure
from edgeqlora_jetson.text import why_no_words, written_language
from edgeqlora_jetson.wer import COUNTED, align_counts, items

SCHEMA = "edgeqlora.evaluation/1"


def kind_of(source: str) -> str:
    """What `source` is: bundle, adapter, or model (base or merged transformers folder, or a hub name)."""
    folder = Path(source)
    if (folder / "manifest.json").is_file():
        return "bundle"
    if (folder / "adapter_config.json").is_file():
        return "adapter"
    from edgeqlora.models.family import check_source

    check_source(source, is_base=False)
    return "model"


def evaluate(
    source: str,
    data: str,
    *,
    split: str = "",
    windows_s: list[float] | None = None,
    language: str | None = None,
    task: str | None = None,
    batch_size: int = 16,
    normalisers: Sequence[str] = (),
    base_model: str | None = None,
    method: str | None = None,
    limit: int | None = None,
    threads: int | None = None,
    skip_silence: bool | None = None,
    output: Path | None = None,
    merge_frames: float = 0.0,
    merge_after: int = 1,
    progress: Any = None,
    say: Any = print,
) -> dict[str, Any]:
    """Recognise `data` with `source` and return the report; with `output`, also write it there.

    Writes OUTPUT (JSON report) and OUTPUT with the suffix .jsonl (one line an utterance). Greedy everywhere, with
    the same prompt and suppressed tokens. base_model, method: of an adapter that does not say (see open_adapter).
    skip_silence: cut silence away before the model hears a clip; default: as in training (bundles: no, as on the board).
    merge_frames, merge_after: kappa and number of layers of models.frames.FrameMerger; 0 is off. With it the clips are also
    recognised without, and the report has `merged_frames`.
    """
    from edgeqlora.data.manifest import load_for
    from edgeqlora.evaluation.scores import score_texts
    from edgeqlora.models.frames import check_merging
    from edgeqlora.settings import check_normaliser

    for name in normalisers:
        check_normaliser(name)
    if output is not None and output.suffix == ".jsonl":
        raise UserError(f"output={str(output)!r}: the utterances go there; name the report .json")
    check_merging(merge_frames, merge_after)
    kind = kind_of(source)
    if kind == "bundle" and merge_frames:
        raise UserError("--merge-frames changes a torch model, and a bundle holds graphs: evaluate the merged folder")
    rows = load_for("", data, split, limit)
    durations = read_durations(rows)
    if skip_silence is None:
        skip_silence = kind != "bundle" and was_cut(source)
    silence = None
    if skip_silence:
        rows, silence = without_silence(rows, progress)
    if kind == "bundle":
        fixed = {
            "--window-s": windows_s,
            "--language": language,
            "--task": task,
            "--base-model": base_model,
            "--method": method,
        }
        if given := [flag for flag, value in fixed.items() if value]:
            raise UserError(f"{', '.join(given)}: fixed in a bundle by its export; omit this, or export again")
        outcome = _with_bundle(source, rows, silence, threads, progress)
    else:
        outcome = _with_torch(
            source,
            kind,
            rows,
            silence,
            windows_s,
            language,
            task,
            batch_size,
            base_model,
            method,
            merge_frames,
            merge_after,
            progress,
            say,
        )
    references = [row.text for row in rows]
    language = outcome["language"] or common_language(rows)
    is_english = language in (None, "en") and why_no_words(references, language) is None
    names = list(normalisers) or ["basic-unicode"] + ["whisper-english"] * is_english
    scores = score_texts(references, outcome["texts"], names, outcome["spelling"], language)
    if merging := outcome.get("merging"):
        texts = merging["without"].pop("texts")
        merging["without"] |= score_texts(references, texts, names, outcome["spelling"], language)
    utterances = _utterances(rows, outcome, names[0], language, scores["leading"])
    audio_s = silence.audio_s if silence else outcome["audio_s"]
    processing_s = outcome["processing_s"] + (silence.detector_s if silence else 0.0)
    report = {
        "schema": SCHEMA,
        "created_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "source": source,
        "kind": kind,
        "base": outcome.get("base"),
        "source_sha256": outcome["sha256"],
        "data": {"source": data, "split": split or None, "n_clips": len(rows), "audio_s": round(audio_s, 3)},
        "decoding": {"method": "greedy", **outcome["decoding"]},
        "windows_s": outcome["windows_s"],
        **scores,
        "perplexity": outcome["perplexity"],
        **({"merged_frames": merging} if merging else {}),
        "false_words": _false_words(utterances, durations, scores["leading"]),
        "rtf": measured(
            round(processing_s / audio_s, 5),
            "processing s / audio s",
            batch_size=outcome["batch_size"],
        )
        if audio_s
        else missing("no audio"),
        "peak_rss": measured(round(measure_peak_rss_mib(), 1), "MiB"),
        "cut_clips": sum(n > 1 for n in outcome["n_pieces"]),
        "silence": {**silence.to_plain(), "compared": outcome["compared"]} if silence else None,
        "n_incomplete": outcome["n_incomplete"],
        "remarks": outcome["remarks"],
        "machine": read_machine(),
        "versions": library_versions(),
    }
    if output is not None:
        lines = "".join(json.dumps(u, ensure_ascii=False) + "\n" for u in utterances)
        write_text(output.with_suffix(".jsonl"), lines)
        write_json(output, report)
    return {**report, "utterances": utterances}


def _with_torch(
    source: str,
    kind: str,
    rows: Sequence[Row],
    silence: Silence | None,
    windows_s: list[float] | None,
    language: str | None,
    task: str | None,
    batch_size: int,
    base_model: str | None,
    method: str | None,
    kappa: float,
    merge_after: int,
    progress: Any,
    say: Any,
) -> dict[str, Any]:
    import torch

    from edgeqlora.evaluation.recognise import Recogniser
    from edgeqlora.models.family import load_learner

    card = (read_card(Path(source)) if Path(source).is_dir() else None) or {}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    base: dict[str, str] | None = None
    if kind == "adapter":
        from edgeqlora.lora.loading import load_adapted, open_adapter
        from edgeqlora.models.quantised import NAMES

        adapter = open_adapter(Path(source), base_model, method)
        dtype, name = adapter.base_dtype, NAMES.get(adapter.bits or 0)
        held = f"its linears in {name}, all else in {dtype}" if name else f"its own weights in {dtype}"
        base = {"model": adapter.base, "precision": name.lower() if name else dtype, "held_in": held}
        base["method"] = adapter.method
        learner = load_adapted(adapter, adapter.held, dtype, device, say)
    elif method or base_model:
        raise UserError(f"--base-model and --method are of adapters, and {source} is a whole model: omit them")
    else:
        learner = load_learner(source, device=device)
    learner.model.eval()
    merger = None
    if kappa:
        from edgeqlora.models.frames import FrameMerger

        in_nf4 = base is not None and base["precision"] == "nf4"
        own = load_adapted(adapter, "original", adapter.base_dtype, device) if in_nf4 else None
        merger, own = FrameMerger(learner, kappa, merge_after, own), None  # a second model is not kept in memory
    told, remark = spoken_language(rows, language or card.get("language"), learner.processor.label_rules())
    untuned = untuned_windows(windows_s or (), tuned_windows(card))
    remarks = [line for line in (remark, unread_fields(rows), untuned) if line]
    recogniser = Recogniser(
        learner,
        windows_s or card.get("windows_s") or [learner.processor.native_window_s],
        told,
        task or card.get("task"),
        card.get("tokens_per_s"),
        say=remarks.append,
    )
    result = recogniser.recognise(rows, batch_size, progress, with_losses=True)
    compared = None
    if silence:
        from edgeqlora.evaluation.silence_gain import Spent, compare, encoder_time

        def recognise(some: Sequence[Row]) -> Spent:
            with encoder_time(learner) as spent:
                return Spent(recogniser.recognise(some, batch_size).processing_s, sum(spent))

        compared = compare(recognise, rows, silence)
    merging = None
    if merger:
        from edgeqlora.evaluation.frames import recognise_merged

        without = {"texts": result.texts, "perplexity": _perplexity(*result.loss)}
        result, figures = recognise_merged(recogniser, merger, rows, batch_size, progress)
        merging = {**figures, "without": without}
    return {
        "merging": merging,
        "texts": result.texts,
        "processing_s": result.processing_s,
        "audio_s": result.audio_s,
        "segments": result.segments,
        "compared": compared,
        "n_pieces": result.n_pieces,
        "n_incomplete": result.n_incomplete,
        "remarks": remarks,
        "batch_size": min([batch_size, *recogniser.most_clips.values()]),
        "windows_s": recogniser.windows_s,
        "language": recogniser.written_language,
        "decoding": recogniser.decoder.rules,
        "spelling": learner.processor.spelling,
        "perplexity": _perplexity(*result.loss),
        "base": base,
        "sha256": folder_sha256(Path(source)) if Path(source).is_dir() else {},
    }


def _perplexity(loss: float, n_tokens: int) -> Figure:
    """exp(loss / n_tokens); null of a model whose loss is no number, or too large for one."""
    if not n_tokens:
        return missing("no clip fits the window whole")
    try:
        value = math.exp(loss / n_tokens)
    except OverflowError:
        return missing(f"the loss is {loss / n_tokens:.4g} nats per label: the run diverged", n_tokens=n_tokens)
    return measured(
        round(value, 4) if math.isfinite(value) else value, "per label, given the ones before it", n_tokens=n_tokens
    )


def _with_bundle(
    source: str, rows: Sequence[Row], silence: Silence | None, threads: int | None, progress: Any
) -> dict[str, Any]:
    from edgeqlora.data.audio import load_audio
    from edgeqlora.evaluation.silence_gain import Spent, compare
    from edgeqlora_jetson.bundle import Bundle
    from edgeqlora_jetson.bundle.manifest import describe_mix
    from edgeqlora_jetson.runtimes import open_runtime
    from edgeqlora_jetson.transcribe import Transcriber

    bundle = Bundle.load(source)
    spec = bundle.manifest["decoder"]
    _, remark = spoken_language(rows, None, rules_of_bundle(spec.get("language")))
    transcriber = Transcriber(bundle, open_runtime(bundle, threads=threads))
    texts, n_pieces, n_incomplete, processing_s, audio_s, heard_s, n_again = [], [], 0, 0.0, 0.0, 0.0, 0
    for i, row in enumerate(rows):
        transcript = None if row.kept == () else transcriber.transcribe(load_audio(row))
        texts.append(transcript.text if transcript else "")
        n_pieces.append(transcript.n_pieces if transcript else 0)
        if transcript:
            n_incomplete += transcript.n_incomplete
            processing_s += transcript.total_ms / 1000
            audio_s += transcript.audio_s
            heard_s += transcript.heard_s
            n_again += transcript.n_again > 0
        if progress:
            progress(i + 1, len(rows))
    untuned = untuned_windows(bundle.windows_s, bundle.manifest["audio"].get("tuned_windows_s"))
    remarks = [text for text in (remark, untuned) if text]
    margin_s = (bundle.manifest["audio"].get("margin") or {}).get("margin_s")
    if margin_s is not None:
        remarks.append(
            f"windows followed the clips and ended {margin_s:g} s after them: {heard_s:.1f} s were computed, {n_again} clips heard again"
        )
    if mix := describe_mix(bundle.manifest):
        remarks.append(f"parts of the graphs: {mix}")
    if bundle.manifest["audio"].get("cut_in_training") and not silence:
        remarks.append("the model learned from audio without silence, and the board hears it: see --skip-silence")

    def recognise(some: Sequence[Row]) -> Spent:
        heard = [transcriber.transcribe(load_audio(row)) for row in some if row.kept != ()]
        encoders = [one.phases_ms.get("encoder", one.phases_ms.get("ctc", 0.0)) for one in heard]
        return Spent(sum(one.total_ms for one in heard) / 1000, sum(encoders) / 1000)

    return {
        "texts": texts,
        "segments": [None] * len(rows),
        "compared": compare(recognise, rows, silence) if silence else None,
        "processing_s": processing_s,
        "audio_s": audio_s,
        "n_pieces": n_pieces,
        "n_incomplete": n_incomplete,
        "remarks": remarks,
        "batch_size": 1,
        "windows_s": bundle.manifest["audio"]["windows_s"],
        "language": written_language(spec.get("language"), spec.get("task")),
        "decoding": {key: value for key, value in spec.items() if key not in ("suppress_ids", "begin_suppress_ids")},
        "spelling": _spelling_of(bundle),
        "perplexity": missing("not computed from bundles: evaluate the merged folder"),
        "sha256": {"manifest.json": sha256_file(Path(source) / "manifest.json")},
    }


def _false_words(utterances: Sequence[dict[str, Any]], durations: Sequence[float], leading: str) -> Figure:
    """Words (characters where CER leads) a minute in clips whose reference is empty: nothing is said there."""
    unit = "words" if leading == "wer" else "characters"
    silent = [(u["errors"], seconds) for u, seconds in zip(utterances, durations, strict=True) if not u["n_reference"]]
    minutes = sum(seconds for _, seconds in silent) / 60
    if not minutes:
        return missing("no clip without text")
    n_false = sum(errors for errors, _ in silent)
    return measured(
        round(n_false / minutes, 3), f"{unit} a minute in clips without text", n_false=n_false, n_clips=len(silent)
    )


def _spelling_of(bundle: Any) -> dict[str, str] | None:
    """The table that the exporter put into the bundle, if the model has one."""
    name = "normalizer.json"
    return read_json(bundle.path(name), "table of spellings") if name in bundle.manifest["files"] else None


def _utterances(
    rows: Sequence[Row], outcome: dict[str, Any], name: str, language: str | None, leading: str
) -> list[dict[str, Any]]:
    """One dict an utterance, with its own errors (of words, or of characters where CER leads) under one normaliser."""
    from edgeqlora.evaluation.differences import differences
    from edgeqlora.evaluation.scores import normaliser

    apply = normaliser(name, outcome["spelling"], language)
    unit = "word" if leading == "wer" else "letter"
    found = []
    for row, text, segments in zip(rows, outcome["texts"], outcome["segments"], strict=True):
        said, got = apply(row.text), apply(text)
        substitutions, deletions, insertions, n = align_counts(items(said, unit), items(got, unit))
        found.append(
            {
                "audio": row.name,
                "reference": row.text,
                "hypothesis": text,
                "errors": substitutions + deletions + insertions,
                "n_reference": n,
                "counted": COUNTED[unit],
                "normaliser": name,
                "differences": differences(said, got, unit == "letter"),
                **({"segments": [segment._asdict() for segment in segments]} if segments is not None else {}),
                **(
                    {"kept_s": [[edge / SAMPLE_RATE_HZ for edge in one] for one in row.kept]}
                    if row.kept is not None
                    else {}
                ),
            }
        )
    return found
