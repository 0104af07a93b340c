"""One run of a study, in a process of its own, so that its memory is its own: train, score, write one row."""

from __future__ import annotations

import math
import multiprocessing
import os
import shutil
from pathlib import Path
from typing import Any

from edgeqlora.errors import UserError
from edgeqlora_jetson.errors import NotFiniteError

SETS = ("dev", "test", "canary")
"""What a run is scored on."""


def run_arm(spec: dict[str, Any]) -> dict[str, Any]:
    """Train with spec["settings"], score on spec["dev"], spec["test"] and spec["canary"]; returns the row."""
    from edgeqlora.card import folder_sha256
    from edgeqlora.settings import make_settings
    from edgeqlora.train import train
    from edgeqlora_jetson.board.machine import measure_peak_rss_mib, read_machine

    settings = make_settings(spec["settings"])
    card = train(settings, overwrite=True)
    folder = Path(settings.output)
    row: dict[str, Any] = {
        "trained": {
            name: card["figures"][name]["value"]
            for name in ("trainable_parameters", "samples_per_s", "peak_rss", "peak_vram", "wall_time", "final_loss")
        }
        | {"held_mib": card["figures"]["compression_size"]["held_mib"]},  # type: ignore[typeddict-item]
        "adapter_bytes": sum(path.stat().st_size for path in folder.glob("*.safetensors")),
        "adapter_sha256": folder_sha256(folder),
    }
    try:
        learner = _load(settings, folder)
        sets = [name for name in SETS if spec.get(name) and (name == "dev" or spec["stage"] == "final")]
        for name in sets:
            row[name] = _scored(learner, spec[name], card, in_own_windows=name == "canary")
        if not all(math.isfinite(u["loss"]) for name in sets for u in row[name]):
            raise NotFiniteError("its loss is not finite")
    except UserError as error:  # weights or logits that are no numbers: a result, and not the end of the study
        row = {
            **{key: value for key, value in row.items() if key not in SETS},
            "diverged": str(error),
        }
    row["peak_rss_mib"] = round(measure_peak_rss_mib(), 1)
    row["machine"] = read_machine()
    if not spec["keep"]:
        shutil.rmtree(folder)
    return row


def _load(settings: Any, folder: Path) -> Any:
    import torch

    from edgeqlora.lora.loading import load_adapted, open_adapter
    from edgeqlora.models.family import load_learner

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if settings.method == "full":
        learner = load_learner(str(folder), device=device)
    else:
        adapter = open_adapter(folder)
        learner = load_adapted(adapter, adapter.held, adapter.base_dtype, device)
    learner.model.eval()
    return learner


def _scored(learner: Any, source: str, card: Any, in_own_windows: bool = False) -> list[dict[str, Any]]:
    """One dict an utterance: its speaker, errors and words, loss and tokens. in_own_windows: those of general speech."""
    from edgeqlora.data.agreement import read_durations
    from edgeqlora.data.manifest import load_for
    from edgeqlora.data.silence import without_silence
    from edgeqlora.evaluation.recognise import Recogniser
    from edgeqlora.evaluation.scores import normaliser
    from edgeqlora.training.general import own_windows
    from edgeqlora.training.training_data import fingerprint
    from edgeqlora_jetson.wer import align_counts, items

    rows = load_for("", source, "")
    if card["skip_silence"]:
        rows, _ = without_silence(rows)
    windows_s, tokens_per_s = card["windows_s"], card["tokens_per_s"]
    if in_own_windows:
        windows_s, tokens_per_s = own_windows(read_durations(rows), learner.processor), None
    recogniser = Recogniser(learner, windows_s, card["language"], card["task"], tokens_per_s)
    apply = normaliser("basic-unicode", learner.processor.spelling, recogniser.written_language)
    found = []
    result = recogniser.recognise(rows, with_losses=True)
    for row, text, of_row in zip(rows, result.texts, result.losses, strict=True):
        loss, n_tokens = of_row or (0.0, 0)
        *edits, n_words = align_counts(items(apply(row.text), "word"), items(apply(text), "word"))
        found.append(
            {
                "clip": fingerprint(row)[:16],
                "speaker": row.speaker or fingerprint(row)[:16],
                "errors": sum(edits),
                "words": n_words,
                "loss": round(loss, 6),
                "tokens": n_tokens,
            }
        )
    return found


def run_apart(spec: Path, log: Path) -> int:
    """Do the run that the file `spec` describes in a process of its own, which says what it says in `log`; its exit code.

    Its row is in the file that the specification names. Where there is no GPU, that process is forked from one that has
    imported everything: a process that has looked for a GPU must not be forked.
    """
    import torch

    can_fork = "forkserver" in multiprocessing.get_all_start_methods() and not torch.cuda.is_available()
    context: Any = multiprocessing.get_context("forkserver" if can_fork else "spawn")
    context.set_forkserver_preload(["edgeqlora.research.warm"])
    process = context.Process(target=_run, args=(str(spec), str(log)))
    process.start()
    process.join()
    return process.exitcode or 0


def _run(spec: str, log: str) -> None:
    with open(log, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from edgeqlora.quiet import hush
    from edgeqlora_jetson.files import read_json, write_json

    hush()
    content = read_json(spec, "specification of a run")
    write_json(content["row"], {**content["of"], **run_arm(content)})
