"""The report of `edgeqlora evaluate` as text for a terminal."""

from __future__ import annotations

from typing import Any

from edgeqlora.evaluation.frames import format_merging
from edgeqlora.evaluation.silence_gain import format_silence

_MOST_WINDOWS = 3
"""Places of an utterance that are shown where it differs."""


def format_evaluation(report: dict[str, Any], n_worst: int = 5) -> str:
    """The report as a table for a terminal, with the worst utterances under it."""
    windows = ", ".join(f"{w:g}" for w in report["windows_s"])
    data = report["data"]
    lines = [
        f"{report['source']} ({report['kind']}) on {data['source']}: {data['n_clips']} clips, "
        f"{data['audio_s']:.0f} s of audio, greedy, window {windows} s",
        "",
    ]
    if base := report.get("base"):
        lines.insert(1, f"  on the base model {base['model']}, {base['held_in']}")
    for metric in sorted(("wer", "cer"), key=lambda metric: metric != report["leading"]):
        for name, figure in report[metric].items():
            if figure["value"] is None:
                lines.append(f"  {metric.upper():<11}    --     {figure['reason']}   normaliser {name}")
                continue
            lines.append(
                f"  {metric.upper():<11}{figure['value']:6.2f} %   {figure['substitutions']} substitutions, "
                f"{figure['deletions']} deletions, {figure['insertions']} insertions in {figure['n_reference']} "
                f"{figure['counted']}   normaliser {name}"
            )
    bleu = report["bleu"]
    if bleu["value"] is None:
        lines.append(f"  {'BLEU':<11}    --     {bleu['reason']}")
    else:
        lines.append(f"  {'BLEU':<11}{bleu['value']:6.2f}     {bleu['signature']}   (raw text)")
    for metric, title in (("perplexity", "perplexity"), ("rtf", "RTF"), ("false_words", "false")):
        figure = report[metric]
        if metric == "false_words" and figure["value"] is None:
            continue
        if figure["value"] is None:
            lines.append(f"  {title:<11}    --     {figure['reason']}")
        else:
            lines.append(f"  {title:<11}{figure['value']:6.3f}     {_how(figure)}")
    if merging := report.get("merged_frames"):
        lines += format_merging(merging)
    if report["cut_clips"]:
        lines.append(f"  {report['cut_clips']} clips were longer than the window and were cut at quiet places")
    lines += format_silence(report["silence"])
    if report["n_incomplete"]:
        lines.append(
            f"  {report['n_incomplete']} texts repeated themselves or ran into the limit of tokens: their ends are missing"
        )
    lines += [f"  {remark}" for remark in report["remarks"]]
    worst = [u for u in report.get("utterances", []) if u["errors"]]
    worst.sort(key=lambda u: (-u["errors"], u["audio"]))
    if worst and n_worst:
        lines += ["", f"  worst of {len(worst)} utterances with errors:"]
        for u in worst[:n_worst]:
            lines.append(f"    {u['errors']} errors  {u['audio']}")
            for window in u["differences"][:_MOST_WINDOWS]:
                lines += [f"      said {window['said']}", f"      got  {window['got']}"]
            if (more := len(u["differences"]) - _MOST_WINDOWS) > 0:
                lines.append(f"      and {more} more places: pass -o, the texts are in the .jsonl")
    return "\n".join(lines)


def _how(figure: dict[str, Any]) -> str:
    if "batch_size" in figure:
        return f"{figure['unit']}, batches of {figure['batch_size']}"
    return f"{figure['unit']}" + (f", {figure['n_tokens']} tokens" if "n_tokens" in figure else "")
