"""`rlver profiles`: the people that simulated users play, built in and in files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from rlver.cli.build_profiles import build
from rlver.cli.console import make_console
from rlver.cli.console import show as print_all
from rlver.cli.options import JsonOption, LanguageOption, SeedOption
from rlver.core.profile import Intention, Language, Profile
from rlver.formats.profile_files import read_profiles, write_profiles
from rlver.stories.library import Split
from rlver.text.table import Column, Table

FilesArgument = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="FILE",
        help="JSONL files of profiles, in our format or the official one.  [default: the built-in profiles]",
        show_default=False,
    ),
]
SplitOption = Annotated[
    Split,
    typer.Option("--split", help="Which stories. No story is in two splits, and benchmark has a topic of its own."),
]

_WIDEST_PROSE = 100
"""Characters of a line of prose, in a pipe and in a wide terminal."""


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    group = typer.Typer(
        help="List, show, generate, build and validate profiles: the people that simulated users play.",
        no_args_is_help=True,
        rich_markup_mode="markdown",
    )
    group.command("list")(list_profiles)
    group.command("show")(show)
    group.command("generate")(generate)
    group.command("validate")(validate)
    group.command("build")(build)
    app.add_typer(group, name="profiles", rich_help_panel="Simulated users")


def list_profiles(
    files: FilesArgument = None,
    language: LanguageOption = "en",
    split: SplitOption = "benchmark",
    n: Annotated[int, typer.Option("--n", min=1, help="List the first N profiles only.")] = 100,
    seed: Annotated[
        int | None,
        typer.Option("--seed", min=0, help="Seed of the generator.  [default: 0; for benchmark the built-in one]"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List profiles, one per line: the built-in ones of a split, or those of files.

    Examples:

      rlver profiles list

      rlver profiles list --split train --n 20 --language zh

      rlver profiles list profiles.jsonl --json
    """
    profiles = (_read(files) if files else _built_in(language, split, n, seed))[:n]
    if as_json:
        _print_json([_line(profile) for profile in profiles])
        return
    texts = ("title", "name")
    table = Table(
        Column("id", "name"), Column("intention", "name"), Column("topic", "text"), *(Column(t, "text") for t in texts)
    )
    for line in map(_line, profiles):
        table.add(*(str(line[key]) for key in ("id", "intention", "topic", *texts)))
    print_all(table)


def show(
    name: Annotated[
        str,
        typer.Argument(metavar="ID", help="Id of a profile, as `rlver profiles list` prints it.", show_default=False),
    ],
    files: FilesArgument = None,
    as_json: JsonOption = False,
) -> None:
    """Show everything about one profile.

    Examples:

      rlver profiles show en-benchmark-2507-0000-food-bank-roster-empathise

      rlver profiles show some-id profiles.jsonl
    """
    from rlver.evaluation.profiles import find_profile

    profile = find_profile(name, files or ())
    if as_json:
        _print_json(profile.model_dump(mode="json"))
        return
    from rich.table import Table as Grid
    from rich.text import Text

    from rlver.text.plain import plain

    persona, story = profile.persona, profile.story
    facts = [f"{i}. {fact.say}  [{fact.kind}: {fact.handle or '-'}]" for i, fact in enumerate(story.facts, 1)]
    rows = {
        "id": profile.id,
        "language": profile.language,
        "hidden intention": f"{profile.intention.meaning} ({profile.intention})",
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
    # Long texts wrap beside their labels, so this is not a table of lines. A pipe has no width of its own to wrap at.
    grid = Grid(show_header=False, box=None, padding=(0, 1), width=min(make_console().width, _WIDEST_PROSE))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column()
    for label, value in rows.items():
        if value:
            grid.add_row(label, Text(plain(value)))
    print_all(grid)


def generate(
    out: Annotated[Path, typer.Option("--out", help="JSONL file to write. An existing file is replaced.")],
    language: LanguageOption = "en",
    split: SplitOption = "train",
    n: Annotated[int, typer.Option("--n", min=1, help="Number of profiles.")] = 100,
    seed: SeedOption = 0,
) -> None:
    """Generate profiles from the built-in stories and write them to a file.

    Example:

      rlver profiles generate --split train --n 1000 --seed 1 --out profiles.jsonl
    """
    from rlver.stories import generate as make

    count = write_profiles(out, make(language, split, n, seed))
    typer.echo(f"{out}: wrote {count} profiles.")


def validate(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE", help="JSONL files of profiles, in our format or the official one.", show_default=False
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Check files of profiles and count what they hold. The first broken line is named, and the exit code is 1.

    Example:

      rlver profiles validate profiles.jsonl more/*.jsonl
    """
    counts = [_count(file, read_profiles(file)) for file in files]
    if as_json:
        _print_json(counts)
        return
    table = Table(Column("", "name"), *(Column(file["file"]) for file in counts))
    rows = [_flat(file) for file in counts]
    for key in rows[0]:
        table.add(key, *(str(row.get(key, 0)) for row in rows))
    print_all("All lines are valid.", table)


def _count(file: Path, profiles: Sequence[Profile]) -> dict[str, Any]:
    intentions = Counter(profile.intention for profile in profiles)
    languages = Counter(profile.language for profile in profiles)
    return {
        "file": str(file),
        "profiles": len(profiles),
        "stories": len({profile.story.id for profile in profiles}),
        "facts": sum(len(profile.story.facts) for profile in profiles),
        "with_opening": sum(bool(profile.opening) for profile in profiles),
        "by_language": {language: languages[language] for language in get_args(Language)},
        "by_intention": {intention.value: intentions[intention] for intention in Intention},
    }


def _flat(counts: dict[str, Any]) -> dict[str, int]:
    """The counts of a file, each with a name of its own."""
    flat: dict[str, int] = {}
    for key, value in counts.items():
        if isinstance(value, dict):
            flat |= {f"{key.removeprefix('by_')} {part}": count for part, count in value.items()}
        elif key != "file":
            flat[key.replace("_", " ")] = value
    return flat


def _read(files: Sequence[Path]) -> list[Profile]:
    return [profile for file in files for profile in read_profiles(file)]


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


def _print_json(data: Any) -> None:
    typer.echo(json.dumps(data, ensure_ascii=False, indent=2))
