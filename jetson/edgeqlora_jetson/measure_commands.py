"""The commands that measure: bench and soak. Each takes plain values, prints and writes a report."""

import sys
from typing import Any, List, Optional

from .bundle import Bundle, EvalClip, read_clips
from .commands import bundle_flag, command_name, open_bundle
from .errors import UserError
from .files import check_writable, write_json
from .progress import Progress

NOT_VALID = 3
"""Exit code of a measurement that was taken, and whose report was written, but must not be used."""


def choose_clips(bundle: Bundle, manifest: Optional[str], limit: Optional[int]) -> List[EvalClip]:
    """The clips of a manifest, or the bundle's own; the first `limit` of them."""
    clips = read_clips(manifest) if manifest else bundle.read_eval_clips()
    if limit is None:
        return clips
    if limit < 1:
        raise UserError("limit={}, at least 1 clip is needed (this manifest has {})".format(limit, len(clips)))
    return clips[:limit]


def run_bench_command(
    folder: Optional[str], manifest: Optional[str], limit: Optional[int], output: str, settings: Any
) -> int:
    """Measure, print the table, write the report. Returns 0, or NOT_VALID."""
    from .bench import run_bench
    from .report import write_report
    from .table import format_table

    bundle = open_bundle(folder)
    clips = choose_clips(bundle, manifest, limit)
    check_writable(output)
    progress = Progress("bench")
    try:
        report = run_bench(bundle, clips, settings, progress=progress.update)
    finally:
        progress.close()
    write_report(output, report)
    print(format_table(report))
    print("Wrote {} (every figure with its unit, every clip with its text)".format(output))
    if not report["validity"]["is_valid"]:
        sys.stdout.flush()
        print("error: this run is not valid: {}".format("; ".join(report["validity"]["problems"])), file=sys.stderr)
        return NOT_VALID
    print("Next: {} transcribe speech.wav{}".format(command_name(), bundle_flag(folder)))
    return 0


def run_soak_command(
    folder: Optional[str], manifest: Optional[str], limit: Optional[int], output: str, settings: Any
) -> int:
    """Soak, print how it went, write the report after every row. Returns 0, or NOT_VALID when a check failed."""
    from .soak import run_soak
    from .soak_report import build_soak_report, format_soak, format_time

    bundle = open_bundle(folder)
    clips = choose_clips(bundle, manifest, limit)
    check_writable(output)

    def save(soak: Any, runtime: Any, sensors: Any) -> None:
        write_json(output, build_soak_report(bundle, soak, runtime, sensors, is_complete=False))

    def show(elapsed_s: float, soak: Any) -> None:
        row = soak.rows[-1]
        left_s = max(0.0, soak.settings.duration_s - elapsed_s)
        text = "soak: {} left, p99 {:.2f} ms, RSS {}".format(
            format_time(left_s), row.p99_ms, "-" if row.rss_mib is None else "{:.1f} MiB".format(row.rss_mib)
        )
        print(text, file=sys.stderr)
        sys.stderr.flush()

    try:
        soak, runtime, sensors = run_soak(bundle, clips, settings, save=save, progress=show)
    except KeyboardInterrupt:
        print("\nstopped: {} holds the rows so far".format(output), file=sys.stderr)
        return 130
    report = build_soak_report(bundle, soak, runtime, sensors, is_complete=True)
    write_json(output, report)
    print(format_soak(report))
    print("Wrote {}".format(output))
    return 0 if report["verdict"] == "passed" else NOT_VALID
