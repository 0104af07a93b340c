"""The commands about data: a check before training, and the cache of features."""

from pathlib import Path
from typing import Annotated

import typer

from edgeqlora.cli.messages import done, show
from edgeqlora_jetson.screen import command_line

SPLIT_HELP = "splits to take, with commas between; default: by their names."


def register(app: typer.Typer) -> None:
    """Add the commands to the group `data`."""
    app.command("check")(data_check)


def data_check(
    train_data: Annotated[str, typer.Option("--train", help="Training data.")] = "",
    dev: Annotated[str, typer.Option(help="Development data.")] = "",
    test: Annotated[str, typer.Option(help="Test data.")] = "",
    split: Annotated[str, typer.Option(help=f"--train: {SPLIT_HELP}")] = "",
    dev_split: Annotated[str, typer.Option(help=f"--dev: {SPLIT_HELP}")] = "",
    test_split: Annotated[str, typer.Option(help=f"--test: {SPLIT_HELP}")] = "",
    data: Annotated[str, typer.Argument(help="Or: one data set alone.")] = "",
    base_model: Annotated[str, typer.Option("--base-model", "-m", help="Checks labels against this model too.")] = "",
    window_s: Annotated[float | None, typer.Option(min=0.5, max=30.0)] = None,
    language: Annotated[str | None, typer.Option(help="Language of the texts, to find foreign scripts.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON report to write.")] = None,
) -> None:
    """Find what would go wrong in training: every file is decoded. Exit code 1 if there are errors."""
    from edgeqlora.cli.progress_bar import CountBar
    from edgeqlora.data.check.run import ALL, format_report, run_check
    from edgeqlora.data.label_rules import rules_of_language
    from edgeqlora.models.family import load_processor

    sources = {ALL: data, "train": train_data, "dev": dev, "test": test}
    with CountBar("decoding") as progress:
        report = run_check(
            {name: source for name, source in sources.items() if source},
            window_s,
            load_processor(base_model).label_rules(language) if base_model else rules_of_language(language),
            progress=progress,
            chosen={"train": split, "dev": dev_split, "test": test_split},
            language=language,
        )
    show(format_report(report))
    if output is not None:
        from edgeqlora_jetson.files import write_json

        write_json(output, report.to_json())
    words = ["edgeqlora", "train", "-m", base_model or "MODEL", "--train", train_data or data or "TRAIN"]
    words += [
        part
        for flag, value in (("--split", split), ("--dev", dev), ("--dev-split", dev_split))
        if value
        for part in (flag, value)
    ]
    following = command_line(*words, "-o", "adapter", "--dry-run")
    done(
        f"report in {output}" if output else "nothing written (pass -o)",
        "correct what the errors name, then check again" if report.n_errors else following,
    )
    if report.n_errors:
        raise typer.Exit(1)


def cache(
    folder: Annotated[Path | None, typer.Option("--cache", help="Folder; default: the one of the user.")] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Remove all features in it.")] = False,
) -> None:
    """The cached features of training: where, how many, how much; --clear removes them."""
    from edgeqlora.data.cache import default_cache_folder, entries_of, remove_entries

    folder = folder or default_cache_folder()
    entries = list(entries_of(folder))
    size = f"{len(entries):,} entries, {sum(entry.n_bytes for entry in entries) / 2**20:,.1f} MiB"
    show(f"folder   {folder}\nsize     {size}")
    if clear:
        remove_entries(entries)
        done(f"{size} removed from {folder}", "nothing to do, training computes features again")
    else:
        done("nothing written", command_line("edgeqlora", "cache", "--cache", folder, "--clear"))
