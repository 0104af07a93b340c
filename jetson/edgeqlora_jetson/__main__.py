"""Command line of the runner: info, transcribe, bench."""

import argparse
import io
import os
import sys
from typing import Any, List, Optional

from . import __version__
from .commands import command_name, run_bench_command, run_info, run_transcribe
from .errors import UserError

_BUNDLE_HELP = "bundle folder (default: the folder of the .pyz that is running)"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=command_name(),
        description="Run an EdgeQLoRA bundle: turn speech into text on this machine, and measure how well it does.",
    )
    parser.add_argument("--version", action="version", version="edgeqlora-jetson " + __version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.required = True

    info = commands.add_parser("info", help="say what the bundle holds and check its files")
    info.add_argument("bundle", nargs="?", help=_BUNDLE_HELP)

    transcribe = commands.add_parser("transcribe", help="print what is said in audio files")
    transcribe.add_argument("files", nargs="+", metavar="FILE", help="WAV file (FLAC, Ogg, MP3 if soundfile is here)")
    transcribe.add_argument("--bundle", help=_BUNDLE_HELP)
    transcribe.add_argument("--json", action="store_true", help="one JSON object a file, with times")
    transcribe.add_argument("--threads", type=int, help="threads (default: as the bundle's profile says)")

    bench = commands.add_parser("bench", help="measure latency, memory and error rates, write report.json")
    bench.add_argument("bundle", nargs="?", help=_BUNDLE_HELP)
    bench.add_argument(
        "--manifest", help='clips: one {"audio": file, "text": what is said} a line (default: the clips in the bundle)'
    )
    bench.add_argument("--repeats", type=int, default=3, help="how often each clip is measured (default 3)")
    bench.add_argument("--warmup", type=int, default=3, help="runs before measuring, not counted (default 3)")
    bench.add_argument("--batch", type=int, default=1, help="clips given to the model together (default 1)")
    bench.add_argument("--threads", type=int, help="threads (default: as the bundle's profile says)")
    bench.add_argument("--limit", type=int, help="only the first N clips")
    bench.add_argument("--output", default="report.json", help="where to write the report (default report.json)")
    return parser


def main(argv: Optional[List[str]] = None) -> int:
    """Run a command; returns its exit code: 0, 2 for bad input, 130 for Ctrl-C, 141 when the reader went away."""
    _use_utf8_output()
    args = build_parser().parse_args(argv)
    try:
        code = _run(args)
        sys.stdout.flush()
        return code
    except UserError as error:
        print("error: {}".format(error), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Python flushes stdout once more at exit: give it somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141


def _run(args: argparse.Namespace) -> int:
    if args.command == "info":
        return run_info(args.bundle)
    if args.command == "transcribe":
        return run_transcribe(args.files, args.bundle, args.json, args.threads)
    return run_bench_command(
        args.bundle, args.manifest, args.repeats, args.warmup, args.batch, args.threads, args.limit, args.output
    )


def _use_utf8_output() -> None:
    """Text is UTF-8 whatever the locale: Python 3.6 in a container (LANG=C) would fail at the first accent."""
    stream: Any = sys.stdout
    # Not when somebody captures the output: their stream is theirs.
    if hasattr(stream, "buffer") and id(stream) == id(sys.__stdout__):
        is_terminal = stream.isatty()
        sys.stdout = io.TextIOWrapper(
            stream.detach(), encoding="utf-8", errors="backslashreplace", line_buffering=is_terminal
        )


if __name__ == "__main__":
    sys.exit(main())
