"""What a command says on stderr: how it goes, and at the end what was written and what to run next."""

import typer


def say(message: str) -> None:
    """A line for the user; stdout is kept for results."""
    typer.echo(message, err=True)


def done(wrote: str, following: str) -> None:
    """The last line of every command."""
    say(f"Done: {wrote}. Next: {following}")
