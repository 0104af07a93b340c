"""The commands that ask questions: which ranks, and whether something was gained."""

from pathlib import Path
from typing import Annotated

import typer

from edgeqlora.cli.messages import done, say, show
from edgeqlora.errors import UserError
from edgeqlora_jetson.screen import command_line


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command()(ranks)
    app.command()(ablate)


def ranks(
    base_model: Annotated[str, typer.Option("--base-model", "-m", help="Folder or hub name.", show_default=False)],
    train: Annotated[
        str, typer.Option("--train", help="Training data, some clips of which are heard.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write, pictures beside it.")] = Path(
        "ranks.json"
    ),
    mode: Annotated[
        str, typer.Option(help="ear, ear-full, entropy, uniform, eva, depth-u; controls: anti, permuted.")
    ] = "ear",
    mean_rank: Annotated[int, typer.Option(help="The budget: as many parameters as this rank everywhere.")] = 8,
    share: Annotated[
        list[str] | None, typer.Option(help="Factor of a group's part of it, such as encoder=1.5; may be repeated.")
    ] = None,
    least: Annotated[int, typer.Option(help="Lowest rank.")] = 2,
    by_size: Annotated[
        bool, typer.Option("--by-size", help="Parts of their own for attention and feed-forward linears.")
    ] = False,
    init: Annotated[str, typer.Option(help="Where adapters start: random, eva, qera.")] = "random",
    clips: Annotated[int, typer.Option(help="Clips to hear.")] = 64,
    method: Annotated[str, typer.Option(help="qlora (the base quantised) or lora.")] = "qlora",
    bits: Annotated[int | None, typer.Option(help="As in train: 4 or 8.")] = None,
    adapt: Annotated[str, typer.Option(help="As in train: the linears that get ranks.")] = "all",
    split: Annotated[str, typer.Option(help="Splits to take, with commas between.")] = "",
    window_s: Annotated[str, typer.Option(help="As in train.")] = "auto",
    language: Annotated[str | None, typer.Option(help="As in train.")] = None,
    seed: Annotated[int, typer.Option(help="Of the mode permuted.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")] = False,
) -> None:
    """Measure each linear on some clips and give it a rank within a budget; writes ranks.json for train --ranks."""
    from edgeqlora.cli.progress_bar import CountBar
    from edgeqlora.research.ranks import Plan, calibrate_ranks, format_ranks

    if method not in ("qlora", "lora"):
        raise UserError(f"method={method!r}: allowed are qlora, lora")
    with CountBar("listening") as progress:
        content = calibrate_ranks(
            base_model,
            train,
            output,
            Plan(mode, mean_rank, least, parse_shares(share or []), by_size, seed, init, adapt),
            n_clips=clips,
            method=method,
            bits=bits,
            split=split,
            window_s=window_s,
            language=language,
            overwrite=overwrite,
            progress=progress,
            say=say,
        )
    show(format_ranks(content))
    held = (*(("--method", method) if method != "qlora" else ()), *(("--bits", bits) if bits else ()))
    following = ("edgeqlora", "train", "-m", base_model, "--train", train, *held, "--ranks", output, "-o", "adapter")
    done(f"ranks in {output}, pictures {', '.join(content['pictures'])}", command_line(*following))


def parse_shares(texts: list[str]) -> dict[str, float]:
    """`encoder=1.5` -> {"encoder": 1.5}. UserError for anything else."""
    shares = {}
    for text in texts:
        group, sign, number = text.partition("=")
        try:
            shares[group.strip()] = float(number)
        except ValueError:
            sign = ""
        if not sign:
            raise UserError(f"share={text!r}: give a group and a factor, such as encoder=1.5")
    return shares


def ablate(
    study: Annotated[Path, typer.Argument(help="TOML file: data, arms, seeds.", show_default=False)],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="Folder of the runs; given again, they go on. For --only-report also a results.jsonl.",
        ),
    ] = Path("study"),
    keep: Annotated[bool, typer.Option("--keep", help="Keep what each run trained.")] = False,
    only_report: Annotated[
        bool, typer.Option("--only-report", help="No runs: say what the finished ones show.")
    ] = False,
) -> None:
    """Train the arms of a study under equal conditions and say what differs, or that nothing does. Resumable."""
    from edgeqlora.lora.pictures import draw_differences
    from edgeqlora.research.ablate import read_results, rows_of, run_study, write_results
    from edgeqlora.research.study import read_study
    from edgeqlora.research.verdict import compared, conclude, format_conclusion
    from edgeqlora_jetson.files import write_json, write_text

    asked = read_study(study)
    if only_report and output.is_file():
        rows = read_results(asked, output)
        show(format_conclusion(asked, conclude(asked, rows), compared(asked, rows)))
        return
    if only_report and not (output / "rows").is_dir():
        raise UserError(f"{output} has no runs: leave --only-report out")
    rows = rows_of(output) if only_report else run_study(asked, output, keep, say)
    entries, comparisons = conclude(asked, rows), compared(asked, rows)
    text = format_conclusion(asked, entries, comparisons)
    show(text)
    results = write_results(rows, output)
    content = {"schema": "edgeqlora.conclusion/1", "arms": entries, "comparisons": comparisons}
    write_json(output / "conclusion.json", content)
    write_text(output / "table.md", text + "\n")
    pictures = draw_differences([*entries, *comparisons], asked.reference, output)
    drawn = f", picture {pictures[0]}" if pictures else ""
    done(f"rows in {results}, table in {output / 'table.md'}{drawn}", "read the verdicts above")
