"""The commands info and transcribe. Each takes plain values and prints."""

import json
import os
import sys
from typing import Any, Dict, Mapping, Optional, Sequence

from ..audio.windows import untuned_windows
from ..board.machine import read_machine
from ..bundle import Bundle
from ..bundle.manifest import describe_mix
from ..errors import UserError
from ..pyz import command_name, find_pyz
from ..screen import command_line, show


def open_bundle(folder: Optional[str], verify: bool = False) -> Bundle:
    """The bundle given, else the one that the running .pyz lies in, checked. Raises UserError without either."""
    if folder is None:
        pyz = find_pyz()
        if pyz is None:
            raise UserError(
                "no bundle given: name the bundle folder (the one with manifest.json in it), "
                "or run the .pyz that lies in a bundle"
            )
        folder = os.path.dirname(pyz)
    return Bundle.load(folder, verify)


def run_info(folder: Optional[str], verify: bool = False) -> int:
    """Print what the bundle holds and whether this machine can run it."""
    bundle = open_bundle(folder, verify)
    from ..doctor.run import examine, format_findings

    show(format_info(bundle))
    show()
    show(format_findings(examine(bundle)))
    show("Next: {} transcribe speech.wav{}".format(command_name(), bundle_flag(folder)))
    return 0


def format_info(bundle: Bundle) -> str:
    """The facts of a bundle as text."""
    manifest = bundle.manifest
    model, decoder, profile = manifest["model"], manifest["decoder"], manifest.get("profile") or {}
    n_bytes = sum(entry["bytes"] for entry in manifest["files"].values())
    evaluation, machine = manifest.get("eval"), read_machine()
    lines = [
        "Bundle      {} in {}".format(bundle.name, bundle.folder),
        "Model       {}, base model {}, decoding {}, vocabulary {}".format(
            model.get("family"), model.get("base_model"), decoder["kind"], model["vocab_size"]
        ),
        "Language    {}, task {}".format(decoder.get("language") or "not fixed", decoder.get("task") or "transcribe"),
        "Windows     {}".format(", ".join(_window(bundle, w) for w in bundle.windows_s)),
    ]
    untuned = untuned_windows(bundle.windows_s, manifest["audio"].get("tuned_windows_s"))
    if untuned:
        lines.append("Tuning      " + untuned)
    margin_s = (manifest["audio"].get("margin") or {}).get("margin_s")
    if margin_s is not None:
        lines.append("Heard       of a window the clip and {:g} s after it (on a GPU: all of it)".format(margin_s))
    if manifest["audio"].get("cut_in_training"):
        lines.append(
            "Silence     not cut here, but was in training: error rates of training are not those of this runner"
        )
    mix = describe_mix(manifest)
    if mix is not None:
        lines.append("Precision   {}{}".format(mix, ", one clip at a time" if bundle.is_int8 else ""))
    for graph, entry in sorted(manifest["graphs"].items()):
        size = manifest["files"][entry["file"]]["bytes"]
        lines.append(
            "Graph       {}: {}, {}, opset {}, {:.1f} MiB".format(
                graph,
                entry["file"],
                entry.get("precision"),
                entry.get("opset"),
                size / 2.0**20,
            )
        )
    lines.append("Profile     {}".format(profile.get("name", "none")))
    for gate in manifest.get("gates") or []:
        lines.append(
            "Gate        {}: {}, measured {:.3g}, limit {:.3g} ({})".format(
                gate["name"], "passed" if gate["passed"] else "FAILED", gate["measured"], gate["limit"], gate["detail"]
            )
        )
    lines += [
        "Files       {}, {:.1f} MiB, {}".format(
            len(manifest["files"]),
            n_bytes / 2.0**20,
            "all hashes as in the manifest"
            if bundle.is_hashed
            else "sizes and times as when all were hashed (--verify hashes them again)",
        ),
        "Evaluation  {}".format("{} clips inside".format(evaluation["n_clips"]) if evaluation else "no clips inside"),
        "Made        {} by edgeqlora {}".format(
            manifest.get("created_utc"), (manifest.get("versions") or {}).get("edgeqlora")
        ),
        "Machine     {}, {} cores".format(
            machine["board"] or machine["cpu_model"] or machine["machine"], machine["n_cores"]
        ),
    ]
    return "\n".join(lines)


def _window(bundle: Bundle, window_s: float) -> str:
    limit = bundle.max_new_tokens(window_s)
    return "{:g} s".format(window_s) + ("" if limit is None else " (at most {} tokens)".format(limit))


def run_transcribe(
    files: Sequence[str], folder: Optional[str], as_json: bool, runtime: Mapping[str, Any], verify: bool = False
) -> int:
    """Print the text of each file, by open_runtime(bundle, **runtime); a file that cannot be read is named on stderr and the others go on (exit code 2)."""
    from ..audio.load import load_audio
    from ..runtimes import open_runtime
    from ..transcribe import Transcriber

    bundle = open_bundle(folder, verify)
    transcriber = Transcriber(bundle, open_runtime(bundle, **runtime))
    exit_code = 0
    for path in files:
        try:
            transcript = transcriber.transcribe(load_audio(path, transcriber.sample_rate_hz))
        except UserError as error:
            show("error: {}".format(error), file=sys.stderr)
            exit_code = 2
            continue
        if transcript.n_pieces > 1:
            show(
                "{}: {:.1f} s is longer than the largest window of {:g} s: cut into {} pieces at quiet places".format(
                    path, transcript.audio_s, transcript.window_s, transcript.n_pieces
                ),
                file=sys.stderr,
            )
        if transcript.n_incomplete:
            show(
                "{}: the text repeated itself, or ran into the limit of {} tokens: its end is missing".format(
                    path, bundle.max_new_tokens(transcript.window_s)
                ),
                file=sys.stderr,
            )
        if as_json:
            row: Dict[str, Any] = {"audio": path}
            row.update(transcript._asdict())
            show(json.dumps(row, ensure_ascii=False))
        elif len(files) > 1:
            show("{}: {}".format(path, transcript.text))
        else:
            show(transcript.text)
        sys.stdout.flush()
    return exit_code


def bundle_flag(folder: Optional[str]) -> str:
    """The --bundle flag for a hint, where the bundle is not the one the .pyz lies in."""
    return " " + command_line("--bundle", folder) if folder else ""
