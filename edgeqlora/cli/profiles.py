"""The commands about hardware profiles."""

from typing import Annotated

import typer

from edgeqlora.cli.messages import done, show
from edgeqlora.errors import UserError
from edgeqlora_jetson.screen import command_line


def register(app: typer.Typer) -> None:
    """Add the commands to the group `profiles`."""
    app.command("list")(profiles_list)
    app.command("check")(profiles_check)
    app.command("show")(profiles_show)


def profiles_list() -> None:
    """The boards that bundles can be exported for."""
    from edgeqlora.profiles.load import list_profiles, load_profile
    from edgeqlora.profiles.text import format_profiles

    show(format_profiles(load_profile(name) for name in list_profiles()))
    done("nothing written", "edgeqlora profiles show NAME")


def profiles_check(
    profiles: Annotated[list[str] | None, typer.Argument(help="Names or TOML files; default: all that ship.")] = None,
) -> None:
    """Cross-check profiles: rails, opset against TensorRT, limits against memory. Exit code 1 if one is wrong."""
    from edgeqlora.profiles.check import run_checks

    text, is_good = run_checks(profiles or [])
    show(text)
    done("nothing written", "edgeqlora profiles show NAME" if is_good else "correct what is named, then check again")
    if not is_good:
        raise typer.Exit(1)


def profiles_show(
    name: Annotated[str, typer.Argument(help="Profile name, or a TOML file.")],
    jetpack: Annotated[str | None, typer.Option(help="As it is with this JetPack.")] = None,
    toml: Annotated[bool, typer.Option("--toml", help="Print the file itself, to start one's own from.")] = False,
    new_name: Annotated[str | None, typer.Option("--name", help="--toml: under this name.")] = None,
) -> None:
    """Everything a profile says, with the source of each fact."""
    from edgeqlora.profiles.load import load_profile, profile_toml
    from edgeqlora.profiles.text import format_profile

    if toml:
        typer.echo(profile_toml(name, new_name), nl=False)
        done("nothing written", command_line("edgeqlora", "profiles", "check", f"{new_name or 'MINE'}.toml"))
        return
    if new_name is not None:
        raise UserError(f"--name {new_name} renames the file that --toml prints: add --toml")

    show(format_profile(load_profile(name, jetpack)))
    done("nothing written", command_line("edgeqlora", "export", "MERGED", "--target", name, "-o", "bundle"))
