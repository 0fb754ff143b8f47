"""`rlver import-sage`: official profiles and transcripts into our format, and back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlver.core.errors import RlverError

if TYPE_CHECKING:
    from rlver.core.profile import Profile


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("import-sage", rich_help_panel="Simulated users")(import_sage)


def import_sage(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE",
            help="JSONL files of profiles or transcripts; the fields tell which. A folder stands for all .jsonl files "
            "in it.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            help="JSONL file to write; an existing one is replaced. With several files: a folder, which gets a file "
            "of the same name for each.",
        ),
    ],
    back: Annotated[bool, typer.Option("--back", help="Convert our format to the official one.")] = False,
    profiles: Annotated[
        Path | None,
        typer.Option(
            "--profiles",
            help="JSONL file of the profiles that the transcripts belong to. Converting official transcripts writes "
            "it; --back reads it.",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", help="Name of the policy of official transcripts.  [default: the name of the file]"),
    ] = None,
) -> None:
    """Convert files of the official SAGE format to our format, or with --back from our format to it.

    Examples:

      rlver import-sage sentient_open.jsonl --out profiles.jsonl

      rlver import-sage gpt-4.1.jsonl --out transcripts.jsonl --profiles profiles.jsonl

      rlver import-sage official/*.jsonl --out transcripts/

      rlver import-sage transcripts.jsonl --back --profiles profiles.jsonl --out official.jsonl
    """
    from rlver.formats.profile_files import write_profiles

    their_profiles: dict[str, Profile] = {}
    for source, target in _targets(files, out):
        if back:
            count = _export(source, target, profiles)
        else:
            count = _import(source, target, name or source.stem, their_profiles)
        typer.echo(f"{target}: wrote {count}.")
    if profiles and their_profiles:
        typer.echo(f"{profiles}: wrote {write_profiles(profiles, their_profiles.values())} profiles.")


def _targets(files: list[Path], out: Path) -> list[tuple[Path, Path]]:
    """Each file with the file to write for it."""
    sources = [source for path in files for source in (sorted(path.glob("*.jsonl")) if path.is_dir() else [path])]
    if not sources:
        raise RlverError(f"{files[0]}: no .jsonl files in this folder.")
    if len(files) == 1 and not files[0].is_dir():
        return [(files[0], out)]
    names = [source.name for source in sources]
    if twice := next((source for source in sources if names.count(source.name) > 1), None):
        raise RlverError(f"{twice}: another file has the same name, and --out would hold only one of them.")
    return [(source, out / source.name) for source in sources]


def _import(source: Path, target: Path, policy: str, profiles: dict[str, Profile]) -> str:
    """Convert an official file, and add the profiles of its transcripts. Returns what was written, in words."""
    from rlver.core.jsonl import read_objects
    from rlver.core.transcript import write_transcripts
    from rlver.formats.profile_files import write_profiles
    from rlver.formats.sage_profiles import is_official_profile, parse_official_profile
    from rlver.formats.sage_transcripts import is_official_transcript, parse_official_transcript

    where, first = _first(source)
    if not is_official_profile(first):
        raise RlverError(f"{where}: this is not in the official format; with --back our format is converted to it.")
    if not is_official_transcript(first):
        converted = [parse_official_profile(record, line) for line, record in read_objects(source)]
        return f"{write_profiles(target, converted)} profiles"
    pairs = [parse_official_transcript(record, line, policy) for line, record in read_objects(source)]
    profiles |= {profile.id: profile for _, profile in pairs}
    return f"{write_transcripts(target, [transcript for transcript, _ in pairs])} transcripts"


def _export(source: Path, target: Path, profiles: Path | None) -> str:
    """Convert a file of our format to the official one. Returns what was written, in words."""
    from rlver.core.emotion import get_preset
    from rlver.core.jsonl import write_objects
    from rlver.core.transcript import read_transcripts
    from rlver.formats.profile_files import read_profiles
    from rlver.formats.sage_profiles import is_official_profile, to_official_profile
    from rlver.formats.sage_transcripts import to_official_transcript

    where, first = _first(source)
    if is_official_profile(first):
        raise RlverError(f"{where}: this is in the official format already.")
    if "turns" not in first and "kind" not in first:
        converted = [to_official_profile(profile) for profile in read_profiles(source)]
        return f"{write_objects(target, converted)} profiles in the official format"
    if profiles is None:
        raise RlverError(f"{source}: name the file of the profiles of these transcripts with --profiles.")
    known = {profile.id: profile for profile in read_profiles(profiles)}
    transcripts = read_transcripts(source)
    missing = next((t.profile for t in transcripts if t.profile not in known), None)
    if missing is not None:
        raise RlverError(f"{profiles}: lacks the profile {missing!r} of {source}.")
    scored = [transcript for transcript in transcripts if transcript.stop.scored]
    write_objects(target, [to_official_transcript(t, known[t.profile], get_preset(t.preset).start) for t in scored])
    skipped = len(transcripts) - len(scored)
    note = f"; left out {skipped} without a score" if skipped else ""
    return f"{len(scored)} transcripts in the official format{note}"


def _first(source: Path) -> tuple[str, dict[str, Any]]:
    """The first record of a file, and where it stands. Raises RlverError if there is none."""
    from rlver.core.jsonl import read_objects

    for where, record in read_objects(source):
        return where, record
    raise RlverError(f"{source}: this file is empty.")
