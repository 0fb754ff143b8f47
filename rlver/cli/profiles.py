"""`rlver profiles`: the simulated users that there are, and files of them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlver.cli.build_profiles import build
from rlver.cli.options import JsonOption, LanguageOption, SeedOption
from rlver.core.profile import Intention, Language, Profile
from rlver.formats.profile_files import read_profiles, write_profiles
from rlver.stories.library import Split

if TYPE_CHECKING:
    from rich.table import Table

FileOption = Annotated[Path | None, typer.Option("--file", help="JSONL file of profiles instead of the built-in ones.")]
SplitOption = Annotated[
    Split, typer.Option("--split", help="Which stories: none is in two splits, and benchmark has a topic of its own.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    group = typer.Typer(
        help="List, show, generate, build and validate the simulated users.",
        no_args_is_help=True,
        rich_markup_mode="markdown",
    )
    group.command("list")(list_profiles)
    group.command("show")(show)
    group.command("generate")(generate)
    group.command("validate")(validate)
    group.command("build")(build)
    app.add_typer(group, name="profiles")


def list_profiles(
    language: LanguageOption = "en",
    split: SplitOption = "benchmark",
    n: Annotated[int, typer.Option("--n", min=1, help="At most so many.")] = 100,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Of the generator; default: 0, or the built-in benchmark's.")
    ] = None,
    file: FileOption = None,
    as_json: JsonOption = False,
) -> None:
    """List profiles, one line each.

    Examples:

      rlver profiles list

      rlver profiles list --split train --n 20 --language zh

      rlver profiles list --file profiles.jsonl --json
    """
    chosen = read_profiles(file)[:n] if file else _built_in(language, split, n, seed)
    if as_json:
        _print_json([_line(profile) for profile in chosen])
        return
    from rich.box import SIMPLE
    from rich.table import Table
    from rich.text import Text

    from rlver.text.plain import plain

    table = Table(box=SIMPLE, show_edge=False, padding=0)
    shown = ("intention", "topic", "title", "name")
    table.add_column("id", overflow="fold")
    for column in shown:
        table.add_column(column, overflow="ellipsis", no_wrap=True)
    for profile in chosen:
        line = _line(profile)
        table.add_row(*(Text(plain(str(line[column]))) for column in ("id", *shown)))
    _print(table)


def show(
    name: Annotated[str, typer.Argument(metavar="ID", help="Id of the profile, as `list` prints it.")],
    file: FileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show everything about one profile.

    Example:

      rlver profiles show en-benchmark-2507-0000-...
    """
    from rlver.evaluation.profiles import find_profile

    profile = find_profile(name, file)
    if as_json:
        _print_json(profile.model_dump(mode="json"))
        return
    from rich.table import Table
    from rich.text import Text

    from rlver.text.plain import plain

    persona, story = profile.persona, profile.story
    facts = [f"{i}. {fact.say}  [{fact.kind}: {fact.handle or '-'}]" for i, fact in enumerate(story.facts, 1)]
    rows = {
        "id": profile.id,
        "language": profile.language,
        "wants, unsaid": f"{profile.intention.meaning} ({profile.intention})",
        "name": f"{persona.name} ({persona.gender or '-'}, {persona.age or '-'})",
        "occupation": persona.occupation,
        "hobbies": ", ".join(persona.hobbies),
        "traits": ", ".join(persona.traits),
        "character": persona.character,
        "style": persona.style,
        "persona": persona.text,
        "story": f"{story.id}  {story.topic}  {story.title}".rstrip(),
        "background": story.text,
        "facts": "\n".join(facts),
        "opening": profile.opening,
    }
    table = Table(show_header=False, box=None, padding=(0, 1))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for label, value in rows.items():
        if value:
            table.add_row(label, Text(plain(value)))
    _print(table)


def generate(
    out: Annotated[Path, typer.Option("--out", help="JSONL file to write; an existing one is replaced.")],
    language: LanguageOption = "en",
    split: SplitOption = "train",
    n: Annotated[int, typer.Option("--n", min=1, help="How many profiles.")] = 100,
    seed: SeedOption = 0,
) -> None:
    """Generate profiles from the built-in stories and write them to a file.

    Example:

      rlver profiles generate --split train --n 1000 --seed 1 --out profiles.jsonl
    """
    from rlver.stories import generate as make

    count = write_profiles(out, make(language, split, n, seed))
    typer.echo(f"{out}: {count} profiles written.")


def validate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSONL file of profiles, ours or official.")],
    as_json: JsonOption = False,
) -> None:
    """Check a file of profiles and count what is in it. The first broken line is named and the exit code is 1.

    Example:

      rlver profiles validate profiles.jsonl
    """
    profiles = read_profiles(file)
    wants = Counter(profile.intention for profile in profiles)
    counts: dict[str, Any] = {
        "file": str(file),
        "profiles": len(profiles),
        "stories": len({profile.story.id for profile in profiles}),
        "facts": sum(len(profile.story.facts) for profile in profiles),
        "with_opening": sum(bool(profile.opening) for profile in profiles),
        "by_language": dict(Counter(profile.language for profile in profiles)),
        "by_intention": {intention.value: wants[intention] for intention in Intention},
    }
    if as_json:
        _print_json(counts)
        return
    from rich.table import Table

    typer.echo(f"{file}: all lines are valid.")
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for key, value in counts.items():
        if isinstance(value, dict):
            for part, count in value.items():
                table.add_row(f"{key.removeprefix('by_')} {part}", str(count))
        elif key != "file":
            table.add_row(key.replace("_", " "), str(value))
    _print(table)


def _built_in(language: Language, split: Split, n: int, seed: int | None) -> list[Profile]:
    from rlver.stories import benchmark_profiles
    from rlver.stories import generate as make

    if split == "benchmark" and seed is None:
        return benchmark_profiles(language)[:n]
    return make(language, split, n, seed or 0)


def _line(profile: Profile) -> dict[str, Any]:
    persona, story = profile.persona, profile.story
    return {
        "id": profile.id,
        "intention": profile.intention.value,
        "topic": story.topic,
        "title": story.title,
        "name": persona.name,
        "age": persona.age,
        "occupation": persona.occupation,
        "character": persona.character.value,
    }


def _print(table: Table) -> None:
    from rich.console import Console

    Console().print(table)


def _print_json(data: Any) -> None:
    typer.echo(json.dumps(data, ensure_ascii=False, indent=2))
