"""The command line: it parses, calls one function and prints. Heavy imports stay inside the commands."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from edgeqlora import __version__
from edgeqlora.cli import board as cli_board
from edgeqlora.cli import data as cli_data
from edgeqlora.cli import profiles as cli_profiles
from edgeqlora.cli import research as cli_research
from edgeqlora.cli.flags import settings_flags
from edgeqlora.cli.messages import done, say, show
from edgeqlora.errors import UserError
from edgeqlora.settings import (
    NORMALISERS,
    PANELS,
    TrainSettings,
    make_settings,
    parse_windows,
    read_settings,
    write_settings,
)
from edgeqlora_jetson.screen import command_line

app = typer.Typer(
    name="edgeqlora",
    help="From a speech data set to a fine-tuned speech model on an edge board, with honest numbers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Look at data before training.", no_args_is_help=True)
cli_data.register(data_app)
profiles_app = typer.Typer(help="Hardware profiles: what each board can do.", no_args_is_help=True)
app.add_typer(data_app, name="data")
cli_profiles.register(profiles_app)
app.add_typer(profiles_app, name="profiles")

Source = Annotated[str, typer.Argument(help="Base model, adapter, merged folder or bundle.", show_default=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Use only this many clips.")]
SkipSilence = Annotated[
    bool | None,
    typer.Option("--skip-silence/--no-skip-silence", help="Cut silence away first; default: as in training."),
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder to write.", show_default=False)]


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(f"edgeqlora {__version__}")
        raise typer.Exit


@app.command()
@settings_flags(TrainSettings, PANELS)
def train(
    flags: dict[str, Any],
    config: Annotated[Path | None, typer.Option(help="TOML file of settings; flags win over it.")] = None,
    save_config: Annotated[Path | None, typer.Option(help="Write the settings as TOML and stop.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Two real steps, then what the run would cost.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an unfinished run.")] = False,
    tune: Annotated[int | None, typer.Option(help="Search for better settings in so many runs instead.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Fine-tune a speech model with QLoRA, LoRA or all weights; writes an adapter (or model) folder."""
    given = (read_settings(config) if config else {}) | flags
    if flags.get("steps") and "epochs" not in flags:
        given.pop("epochs", None)  # a flag wins over the file also where it names the other unit
    if flags.get("epochs") and "steps" not in flags:
        given.pop("steps", None)
    settings = make_settings(given)
    if save_config is not None:
        write_settings(settings, save_config)
        done(f"settings written to {save_config}", command_line("edgeqlora", "train", "--config", save_config))
        return
    if tune is not None:
        if dry_run or resume:
            raise UserError(
                "--tune with --dry-run or --resume: leave these out; the same --tune command goes on with a search"
            )
        from edgeqlora.research.tune import tune as search
        from edgeqlora.research.tune import tune_folder

        search(settings, tune, say)
        found = tune_folder(settings.output) / "best.toml"
        done(f"best settings in {found}", command_line("edgeqlora", "train", "--config", found))
        return
    if overwrite and config is not None and Path(settings.output).is_dir():
        from edgeqlora_jetson.files import verify_replaceable

        verify_replaceable(settings.output, [config])
    from edgeqlora.train import train as run

    card = run(settings, resume=resume, dry_run=dry_run, overwrite=overwrite)
    if not card:
        return  # another process of torchrun
    if dry_run:
        done("nothing written", "the same command without --dry-run")
        return
    best = ""
    if card["choose_by"]:
        rate = card["dev_loss"] if card["choose_by"] == "loss" else card[f"dev_{card['choose_by']}"]  # type: ignore[literal-required]
        best = f", best dev {card['choose_by'].upper()} {rate['value']:.2f} {rate['unit']} at step {card['best_step']}"
    speed = card["figures"]["samples_per_s"]["value"]
    say(
        f"{card['steps']} steps in {card['figures']['wall_time']['value']:.0f} s"
        + (f", {speed:.1f} clips/s" if speed else "")
        + f", peak memory {(card['figures']['peak_rss']['value'] or 0) / 1024:.2f} GiB{best}"
    )
    if settings.method == "full":
        done(f"model in {settings.output}", _export_command(settings.output))
    elif settings.method == "prefix":
        data = settings.dev or settings.train
        done(f"prefix in {settings.output}", command_line("edgeqlora", "evaluate", settings.output, "-d", data))
    else:
        done(f"adapter in {settings.output}", command_line("edgeqlora", "merge", settings.output, "-o", "merged"))


cli_research.register(app)


@app.command()
def evaluate(
    source: Source,
    data: Annotated[str, typer.Option("--data", "-d", help="Data to score on.", show_default=False)],
    split: Annotated[str, typer.Option(help="Splits to take, with commas between.")] = "",
    window_s: Annotated[str | None, typer.Option(help="Windows in s; default: those of the folder, or 30.")] = None,
    language: Annotated[str | None, typer.Option()] = None,
    task: Annotated[str | None, typer.Option()] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Clips at a time (torch).")] = 16,
    normaliser: Annotated[list[str] | None, typer.Option(help=f"{', '.join(NORMALISERS)}; may be repeated.")] = None,
    base_model: Annotated[str | None, typer.Option(help="Of an adapter that does not say.")] = None,
    method: Annotated[
        str | None, typer.Option(help="Of an adapter that does not say: lora, or qlora (NF4 base).")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads (bundle).")] = None,
    merge_frames: Annotated[
        float,
        typer.Option(metavar="KAPPA", help="Research: merge encoder frames that 4 bits cannot tell apart; 0 is off."),
    ] = 0.0,
    merge_after: Annotated[int, typer.Option(help="--merge-frames: encoder layers that still see all frames.")] = 1,
    skip_silence: SkipSilence = None,
    limit: Limit = None,
    worst: Annotated[int, typer.Option(min=0, help="Utterances to show.")] = 5,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON report to write (and .jsonl).")] = None,
) -> None:
    """WER, CER, BLEU, perplexity and real-time factor of a model, adapter, merged folder or bundle."""
    from edgeqlora.cli.progress_bar import CountBar
    from edgeqlora.evaluate import evaluate as run
    from edgeqlora.evaluation.table import format_evaluation

    windows = parse_windows(window_s) if window_s else None
    with CountBar("recognising") as progress:
        report = run(
            source,
            data,
            split=split,
            windows_s=windows,
            language=language,
            task=task,
            batch_size=batch_size,
            normalisers=normaliser or (),
            base_model=base_model,
            method=method,
            limit=limit,
            threads=threads,
            skip_silence=skip_silence,
            output=output,
            merge_frames=merge_frames,
            merge_after=merge_after,
            progress=progress,
            say=say,
        )
    show(format_evaluation(report, worst))
    following = {
        "adapter": command_line("edgeqlora", "merge", source, "-o", "merged"),
        "model": _export_command(source),
        "bundle": command_line("edgeqlora", "bench", source),
    }[report["kind"]]
    if (report["base"] or {}).get("method") == "prefix":
        following = "train with qlora, lora or ia3 for a board: a prefix cannot be merged"
    written = (
        f"report in {output}, utterances in {output.with_suffix('.jsonl')}" if output else "nothing written (pass -o)"
    )
    done(written, following)


@app.command()
def merge(
    adapter: Annotated[Path, typer.Argument(help="Adapter folder.", show_default=False)],
    output: Output,
    dev: Annotated[str, typer.Option(help="Data to choose by; default: the dev data of training.")] = "",
    dev_split: Annotated[str, typer.Option(help=cli_data.SPLIT_HELP.capitalize())] = "",
    base_model: Annotated[str | None, typer.Option(help="Default: the one it was trained on.")] = None,
    candidate: Annotated[str | None, typer.Option(help="dequantised or original: keep this one.")] = None,
    method: Annotated[
        str | None, typer.Option(help="Of an adapter that does not say: lora, or qlora (NF4 base).")
    ] = None,
    normaliser: Annotated[str, typer.Option(help=f"Of the dev texts: {', '.join(NORMALISERS)}.")] = NORMALISERS[0],
    choose_by: Annotated[
        str | None, typer.Option(help="wer, cer, loss or auto; default: what training was asked to choose by.")
    ] = None,
    skip_silence: SkipSilence = None,
    limit: Limit = None,
    keep_gates: Annotated[
        bool,
        typer.Option("--keep-gates", help="Keep gates in time beside the weights, for export; default: fold them."),
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Merge an adapter into its base in fp32, both sound ways scored on dev; writes a transformers folder."""
    from edgeqlora.merge import merge as run

    card = run(
        adapter,
        output,
        dev=dev,
        dev_split=dev_split,
        base_model=base_model,
        candidate=candidate,
        method=method,
        normaliser=normaliser,
        choose_by=choose_by,
        skip_silence=skip_silence,
        limit=limit,
        keep_gates=keep_gates,
        overwrite=overwrite,
        say=say,
    )
    done(f"merged model ({card['chosen']} base) in {output}", _export_command(output))


@app.command()
def export(
    merged: Annotated[str, typer.Argument(help="Merged or base model: a folder, or a hub name.", show_default=False)],
    output: Output,
    target: Annotated[str, typer.Option("--target", "-t", help="Hardware profile: a name, or a TOML file.")] = "cpu",
    jetpack: Annotated[str | None, typer.Option(help="The board's JetPack; default: the profile's.")] = None,
    window_s: Annotated[
        str | None, typer.Option(help="Windows in s; default: those of training, or the model's own.")
    ] = None,
    data: Annotated[str, typer.Option("--data", "-d", help="Clips for parity and for the bundle's eval set.")] = "",
    split: Annotated[str, typer.Option(help="Splits of --data to take, with commas between.")] = "",
    eval_clips: Annotated[int, typer.Option(min=0, help="Clips to ship in the bundle.")] = 32,
    language: Annotated[str | None, typer.Option()] = None,
    task: Annotated[str | None, typer.Option()] = None,
    name: Annotated[str | None, typer.Option(help="Name of the bundle; default: the folder's.")] = None,
    with_silence: Annotated[
        bool, typer.Option("--with-silence", help="Of a model trained with --skip-silence: the board cuts no silence.")
    ] = False,
    margin_s: Annotated[
        str,
        typer.Option(help="Silence after a clip that is heard, in s: auto (found on the clips), off (whole windows)."),
    ] = "auto",
    precision: Annotated[
        str,
        typer.Option(
            help="auto (int8 on a CPU, fp16 on a board, as far as --max-wer-increase allows), int8, fp16, bf16, fp32."
        ),
    ] = "auto",
    max_wer_increase: Annotated[
        float, typer.Option(help="Points of the error rate that a lower precision may cost.")
    ] = 0.5,
    compile_check: Annotated[
        bool, typer.Option("--compile-check", help="Compile with TensorRT-RTX too; no GPU needed.")
    ] = False,
    also: Annotated[
        list[str] | None,
        typer.Option(help="Also write OUTPUT-NAME for another runtime: ct2, ggml, sherpa-onnx; may be repeated."),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Export to ONNX for a board, prove parity with torch on real clips, write a self-contained bundle."""
    from edgeqlora.export import export as run

    summary = run(
        merged,
        output,
        target=target,
        jetpack=jetpack,
        window_s=window_s,
        data=data,
        split=split,
        n_eval=eval_clips,
        language=language,
        task=task,
        name=name,
        with_silence=with_silence,
        margin_s=margin_s,
        precision=precision,
        max_wer_increase=max_wer_increase,
        compile_check=compile_check,
        also=also or (),
        overwrite=overwrite,
        say=say,
    )
    say(f"{len(summary['gates'])} gates passed, {summary['bytes'] / 1e6:.1f} MB, {summary['seconds']:.0f} s")
    on_board = command_line("python3", "edgeqlora-jetson.pyz", "build") + ", in the bundle's folder on the board"
    done(f"bundle in {output}", on_board if precision == "bf16" else command_line("edgeqlora", "bench", output))


@app.command()
def plan(
    model: Annotated[
        str, typer.Argument(help="Folder with a config.json, or a hub name; weights are not read.", show_default=False)
    ],
    target: Annotated[str, typer.Option("--target", "-t", help="Hardware profile: a name, or a TOML file.")] = "cpu",
    jetpack: Annotated[str | None, typer.Option(help="The board's JetPack; default: the profile's.")] = None,
    window_s: Annotated[str | None, typer.Option(help="Windows in s; default: the model's own.")] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="fp16, bf16 or fp32 on a board, int8 or fp32 on a CPU; default: the profile's first."),
    ] = None,
    batch: Annotated[int, typer.Option(help="Clips at a time, on a board.")] = 1,
    threads: Annotated[int | None, typer.Option(help="On a CPU; default: one per core.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file to write.")] = None,
) -> None:
    """What a model takes on a machine, before training or export: memory, work, time, and whether it fits."""
    from edgeqlora.plan import format_plan
    from edgeqlora.plan import plan as run

    content = run(
        model,
        target=target,
        jetpack=jetpack,
        window_s=window_s,
        precision=precision,
        batch=batch,
        threads=threads,
        output=output,
        say=say,
    )
    show(format_plan(content))
    done(f"plan in {output}" if output else "nothing written", "edgeqlora train, or edgeqlora export")


app.command()(cli_data.cache)
cli_board.register(app)


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")] = Path("edgeqlora-demo"),
    model: Annotated[str, typer.Option("--model", "-m", help="whisper or wav2vec2 (a CTC model).")] = "whisper",
    overwrite: Overwrite = False,
) -> None:
    """The whole line on an embedded model and speech: train, merge, export, bench, WER before and after."""
    from edgeqlora.demo.run import run_demo

    run_demo(output, model, overwrite=overwrite, say=say)
    done(
        f"adapter, merged model, bundle and reports in {output}",
        f"copy {command_line(output / 'bundle')} to a board and run python3 edgeqlora-jetson.pyz bench in it",
    )


def main() -> None:
    """Entry point: errors of the user's making end with one message and exit code 2, never a traceback."""
    from edgeqlora.quiet import hush

    hush()
    try:
        app()
    except UserError as error:
        _fail(str(error), 2)
    except KeyboardInterrupt:
        _fail("stopped by Ctrl-C", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader of a pipe went away: not our error
    except Exception as error:
        from edgeqlora.cli.messages import explain

        message = explain(error)
        if message is None:
            raise  # a defect of ours: the traceback is the report
        _fail(message, 2)


def _fail(message: str, code: int) -> None:
    rank = int(os.environ.get("RANK", "0"))
    typer.secho("error: " if rank == 0 else f"error (process {rank}): ", fg="red", bold=True, nl=False, err=True)
    say(message)
    sys.exit(code)


def _export_command(model: object) -> str:
    return command_line("edgeqlora", "export", model, "--target", "cpu", "-o", "bundle")


if __name__ == "__main__":
    main()
