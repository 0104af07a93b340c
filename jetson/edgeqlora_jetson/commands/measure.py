"""The commands that measure: bench and soak. Each takes plain values, prints and writes a report."""

import json
import sys
from typing import Any, List, Optional

from ..board.detect import detect_board
from ..bundle import Bundle, EvalClip, read_clips
from ..errors import UserError
from ..files import check_writable, write_json, write_text
from ..pyz import command_name
from ..screen import show
from .progress import Progress
from .transcribe import bundle_flag, open_bundle

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


class RowFile(object):
    """Rows added to a file as they come. A full disk is said once; the soak goes on."""

    def __init__(self, path: str) -> None:
        self._path, self._is_broken = path, False

    def add(self, row: Any) -> None:
        """Add one row as a line of JSON."""
        try:
            with open(self._path, "a") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            if not self._is_broken:
                show("{}: rows cannot be added: {}".format(self._path, error.strerror), file=sys.stderr)
            self._is_broken = True


def run_bench_command(
    folder: Optional[str],
    manifest: Optional[str],
    limit: Optional[int],
    output: str,
    settings: Any,
    verify: bool = False,
) -> int:
    """Measure, print the table, write the report. Returns 0, or NOT_VALID."""
    from ..bench.report import write_report
    from ..bench.run import run_bench
    from ..bench.table import format_table

    bundle = open_bundle(folder, verify)
    clips = choose_clips(bundle, manifest, limit)
    check_writable(output)
    progress = Progress("bench")

    def say(text: str) -> None:
        show("bench: {}".format(text), file=sys.stderr)
        sys.stderr.flush()

    try:
        report = run_bench(bundle, clips, settings, progress=progress.update, say=say)
    finally:
        progress.close()
    show(format_table(report))
    sys.stdout.flush()  # a report that cannot be written must not take the table with it
    write_report(output, report)
    show("Wrote {} (every figure with its unit, every clip with its text)".format(output))
    if not report["validity"]["is_valid"]:
        sys.stdout.flush()
        show("error: this run is not valid: {}".format("; ".join(report["validity"]["problems"])), file=sys.stderr)
        return NOT_VALID
    show("Next: {} transcribe speech.wav{}".format(command_name(), bundle_flag(folder)))
    return 0


def run_soak_command(
    folder: Optional[str],
    manifest: Optional[str],
    limit: Optional[int],
    output: str,
    settings: Any,
    verify: bool = False,
) -> int:
    """Soak, print how it went, write the report. Returns 0, NOT_VALID unless it passed, 130 when it was stopped.

    Every row is added to OUTPUT.rows.jsonl when it is done: what a power cut leaves. Not the whole report each time:
    its growing text would be growth of the memory that is being watched. OUTPUT itself says "not complete" from the
    start, so that no older verdict is taken for this one's.
    """
    from ..soak.report import SCHEMA, build_soak_report, format_soak, format_time
    from ..soak.run import run_soak

    bundle = open_bundle(folder, verify)
    clips = choose_clips(bundle, manifest, limit)
    check_writable(output)
    rows_path = output + ".rows.jsonl"
    begun = {
        "schema": SCHEMA,
        "is_complete": False,
        "verdict": "not complete",
        "bundle": {"name": bundle.name, "manifest_sha256": bundle.manifest_sha256},
        "board": dict(detect_board()._asdict()),
        "settings": dict(settings._asdict()),
    }
    write_json(output, begun)
    write_text(rows_path, json.dumps(begun) + "\n")
    rows = RowFile(rows_path)

    def show_row(elapsed_s: float, soak: Any) -> None:
        row = soak.rows[-1]
        rows.add(row._asdict())
        left_s = max(0.0, soak.settings.duration_s - elapsed_s)
        text = "soak: {} left, p99 {:.2f} ms, RSS {}".format(
            format_time(left_s), row.p99_ms, "-" if row.rss_mib is None else "{:.1f} MiB".format(row.rss_mib)
        )
        show(text, file=sys.stderr)
        sys.stderr.flush()

    soak, runtime, sensors = run_soak(bundle, clips, settings, progress=show_row)
    report = build_soak_report(bundle, soak, runtime, sensors)
    write_json(output, report)
    show(format_soak(report))
    show("Wrote {} (rows as they came: {})".format(output, rows_path))
    if not soak.is_complete:
        return 130
    return 0 if report["verdict"] == "passed" else NOT_VALID
