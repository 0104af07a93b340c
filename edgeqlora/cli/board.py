"""Commands about boards: bench (here or over SSH), soak, build, doctor. Their flags are those of the runner's parser."""

import argparse
from pathlib import Path
from typing import Annotated, Any

import typer

from edgeqlora.cli.messages import done, say, show
from edgeqlora.errors import UserError

_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command in (bench, soak, build):
        app.command(context_settings=_PASSED_ON)(command)
    app.command()(doctor)


def bench(context: typer.Context) -> None:
    """Latency, throughput, power, Joules, memory, heat and WER in one run, here or on boards over SSH."""
    ssh, arguments = _ssh_parser().parse_known_args(context.args)
    if "-h" in arguments or "--help" in arguments:
        typer.echo(_ssh_parser().format_help())
        _run("bench", ["--help"])
    if not ssh.host:
        _run("bench", context.args)
        return
    from edgeqlora_jetson.__main__ import build_parser

    parser = build_parser("edgeqlora")
    parsed = parser.parse_args(["bench", *arguments])
    if parsed.bundle is None:
        raise UserError("no bundle given: edgeqlora bench BUNDLE --host user@board")
    if parsed.manifest is not None:
        raise UserError(
            "--manifest names clips on this machine and --host measures on another: export the bundle with the clips "
            "(edgeqlora export --data ... --eval-clips N)"
        )
    from edgeqlora.remote import bench_hosts, format_comparison

    folder = Path(ssh.output or "reports")
    building = [part for flag in ("precision", "cache") if (v := getattr(parsed, flag)) for part in (f"--{flag}", v)]
    results = bench_hosts(
        Path(parsed.bundle),
        ssh.host,
        ["bench", *_without_bundle(parser, arguments, parsed)],
        folder,
        remote_dir=ssh.remote_dir,
        python=ssh.remote_python,
        identity=ssh.identity,
        known_hosts=ssh.known_hosts,
        config=ssh.ssh_config,
        before=[["build", *building]] if ssh.build else [],
        say=say,
    )
    show(format_comparison(results))
    n_good = sum(result.ok for result in results)
    done(f"{n_good} of {len(results)} reports in {folder} are good", "the same command again resumes what failed")
    if n_good < len(results):
        raise typer.Exit(3)


def soak(context: typer.Context) -> None:
    """The same work for hours: memory growth, drift of latency and energy, throttling, with a verdict."""
    _run("soak", context.args)


def build(context: typer.Context) -> None:
    """Build the bundle's TensorRT engines on this machine (engines do not run on other GPUs or versions)."""
    _run("build", context.args)


def doctor(
    bundle: Annotated[Path | None, typer.Option(help="Also say whether this bundle fits.")] = None,
) -> None:
    """What of this machine stands in the way of training or of a sound measurement, and what corrects it."""
    from edgeqlora.doctor import examine_workstation
    from edgeqlora_jetson.board.detect import detect_board
    from edgeqlora_jetson.bundle import Bundle
    from edgeqlora_jetson.doctor.run import examine, format_findings

    opened = Bundle.load(bundle) if bundle is not None else None
    findings = examine(opened) if detect_board().is_jetson else examine_workstation(opened)
    show(format_findings(findings))
    if any(finding.level == "problem" for finding in findings):
        raise typer.Exit(1)


def _ssh_parser() -> argparse.ArgumentParser:
    """The flags of bench that only the workstation has, and --output, which is a folder there."""
    parser = argparse.ArgumentParser(
        prog="edgeqlora bench",
        usage="edgeqlora bench BUNDLE --host user@board [--host ...] [options]",
        description="On boards over SSH (all other options below go to the runner on the board):",
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("--host", action="append", help="run on user@board over SSH; may be repeated")
    parser.add_argument("--output", "-o", help="folder for the reports (default reports)")
    parser.add_argument("--remote-dir", default="edgeqlora-bundles", help="folder there (default edgeqlora-bundles)")
    parser.add_argument("--remote-python", default="python3", help="Python there (default python3)")
    parser.add_argument("--identity", type=Path, help="private key")
    parser.add_argument("--known-hosts", type=Path, help="file of host keys")
    parser.add_argument("--ssh-config", type=Path, help="instead of ~/.ssh/config")
    parser.add_argument("--build", action="store_true", help="build TensorRT engines there first")
    return parser


def _without_bundle(parser: argparse.ArgumentParser, arguments: list[str], parsed: Any) -> list[str]:
    """The arguments but for the bundle folder, which has another path on the board; another value may be equal to it."""
    candidates = (arguments[:i] + arguments[i + 1 :] for i, part in enumerate(arguments) if part == parsed.bundle)
    wanted = {**vars(parsed), "bundle": None}
    return next(rest for rest in candidates if vars(parser.parse_args(["bench", *rest])) == wanted)


def _run(command: str, arguments: list[str]) -> None:
    from edgeqlora_jetson.__main__ import main as runner

    code = runner([command, *arguments], "edgeqlora")
    if code:
        raise typer.Exit(code)
