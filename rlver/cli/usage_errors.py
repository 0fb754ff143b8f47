"""Wrong usage in one sentence: which command, what is wrong with it, and what was probably meant."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import Any

from typer.exceptions import TyperException

_PYDANTIC = re.compile(r"Input should be (?P<what>[^,]*)")
_NO_COMMAND = re.compile(r"No such command '(?P<name>.*?)'\.")


def usage_sentence(error: TyperException) -> str:
    """One sentence for an error that the parser of the command line raised. Empty if the parser printed help."""
    context: Any = getattr(error, "ctx", None)
    option: str | None = getattr(error, "option_name", None)
    if context is None:
        return f"{option} needs a value." if option else error.format_message()
    command = context.command_path
    see = f"`{command} --help` explains its use."
    if option:
        options = [
            name for parameter in context.command.params for name in (*parameter.opts, *parameter.secondary_opts)
        ]
        guess = _closest(option, [name for name in options if name.startswith("-")])
        return f"`{command}` has no option {option}; {guess or see}"
    if unknown := _NO_COMMAND.match(error.message):
        commands = list(context.command.commands)
        guess = _closest(unknown["name"], commands)
        return f"`{command}` has no command {unknown['name']!r}; {guess or 'it has ' + ', '.join(commands) + '.'}"
    parameter = getattr(error, "param", None)
    if parameter is None:
        message = error.format_message()
        return f"`{command}`: {_lower(message).rstrip('.')}; {see}" if message else ""
    name = next((name for name in parameter.opts if name.startswith("--")), parameter.metavar or parameter.name.upper())
    if type(error).__name__ == "MissingParameter":
        return f"`{command}` needs {name}; {see}"
    problem = error.message.removeprefix("Value error, ").rstrip(".")
    if must := _PYDANTIC.match(problem):
        return f"`{command}`: {name} must be {must['what']}."
    return f"`{command}`: {name}: {_lower(problem)}."


def _closest(word: str, known: list[str]) -> str:
    closest = get_close_matches(word, known, n=1)
    return f"did you mean {closest[0]}?" if closest else ""


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:] if text[1:2].islower() else text
