"""Flags made from a settings dataclass: name, type, default and help stand there, once."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any

import typer

from edgeqlora.errors import UserError


def settings_flags(
    settings: type, panels: dict[str, tuple[str, ...]]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command one flag for each field of `settings`; the command gets those that were given as a dict, first.

    A field's docstring is the flag's help; metadata `flags` are more names for it. Lists of numbers are given as
    0.9,1.1; lists of texts by repeating the flag. panels: fields by the panel of the help that shows them; others follow.
    """
    panel_of = {name: panel for panel, names in panels.items() for name in names}
    order = list(panel_of)

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints, docs = typing.get_type_hints(settings), field_docs(settings)
        fields = dataclasses.fields(settings)
        own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
        parameters = [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=_flag(field, hints[field.name], docs[field.name], panel_of.get(field.name, "More")),
            )
            for field in sorted(
                fields, key=lambda field: order.index(field.name) if field.name in order else len(order)
            )
        ]

        def run(**given: Any) -> None:
            flags = {field.name: given.pop(field.name) for field in fields}
            command({name: _value(name, hints[name], v) for name, v in flags.items() if v is not None}, **given)

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        everything = [*parameters, *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own)]
        run.__signature__ = inspect.Signature(everything)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in everything}
        return run

    return decorate


def field_docs(settings: type) -> dict[str, str]:
    """The docstring under each field of a dataclass, on one line."""
    (cls,) = ast.parse(inspect.cleandoc(inspect.getsource(settings))).body
    assert isinstance(cls, ast.ClassDef)
    docs: dict[str, str] = {}
    for field, doc in zip(cls.body, cls.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(doc, ast.Expr):
            docs[field.target.id] = " ".join(str(ast.literal_eval(doc.value)).split())
    return docs


def _flag(field: dataclasses.Field[Any], hint: Any, doc: str, panel: str) -> Any:
    default = field.default_factory() if callable(field.default_factory) else field.default
    if isinstance(default, bool):
        doc += f" Default: {'yes' if default else 'no'}."
    elif default not in (None, "", []):
        doc += f" Default: {','.join(map(str, default)) if isinstance(default, list) else default}."
    name = field.name.replace("_", "-")
    names = [f"--{name}/--no-{name}" if hint is bool else f"--{name}", *field.metadata.get("flags", ())]
    taken = str if hint == list[float] else hint
    option: Any = Annotated[
        taken if isinstance(taken, types.UnionType) else taken | None,
        typer.Option(*names, help=doc, rich_help_panel=panel),
    ]
    return option


def _value(name: str, hint: Any, value: Any) -> Any:
    if hint != list[float]:
        return value
    try:
        return [float(part) for part in str(value).split(",")] if value else []
    except ValueError:
        raise UserError(f"{name}={value!r}: give numbers separated by commas, e.g. 5,20") from None
