"""`rlver import-sage`: official profiles and transcripts into ours, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlver.core.errors import RlverError


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("import-sage")(import_sage)


def import_sage(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSONL file of profiles or transcripts.")],
    out: Annotated[Path, typer.Option("--out", help="JSONL file to write; an existing one is replaced.")],
    back: Annotated[bool, typer.Option("--back", help="From ours into the official form.")] = False,
    profiles: Annotated[
        Path | None,
        typer.Option(help="Profiles of the transcripts: written from official ones, read to bring ours back."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the policy of transcripts; default: the file's.")] = None,
) -> None:
    """Turn official files into ours, or with --back ours into official ones. What FILE holds is seen from its fields.

    Examples:

      rlver import-sage sentient_open.jsonl --out profiles.jsonl

      rlver import-sage gpt-4.1.jsonl --out transcripts.jsonl --profiles profiles.jsonl

      rlver import-sage transcripts.jsonl --back --profiles profiles.jsonl --out official.jsonl
    """
    from rlver.core.jsonl import read_objects, write_objects
    from rlver.core.transcript import read_transcripts, write_transcripts
    from rlver.formats.profile_files import read_profiles, write_profiles
    from rlver.formats.sage_profiles import is_official_profile, parse_official_profile, to_official_profile
    from rlver.formats.sage_transcripts import (
        is_official_transcript,
        parse_official_transcript,
        to_official_transcript,
    )

    where, first = next(read_objects(file), (str(file), None))
    if first is None:
        raise RlverError(f"{file}: nothing is in this file.")
    talks = is_official_transcript(first) or "turns" in first or "kind" in first
    if back:
        if is_official_profile(first):
            raise RlverError(f"{where}: this is in the official form already.")
        if talks:
            if profiles is None:
                raise RlverError(f"{file}: say with --profiles where the profiles of these transcripts are.")
            from rlver.core.emotion import get_preset

            known = {profile.id: profile for profile in read_profiles(profiles)}
            transcripts = read_transcripts(file)
            missing = next((t.profile for t in transcripts if t.profile not in known), None)
            if missing is not None:
                raise RlverError(f"{profiles}: the profile {missing!r} of {file} is not there.")
            records = [
                to_official_transcript(t, known[t.profile], get_preset(t.preset).start)
                for t in transcripts
                if t.stop.scored
            ]
            skipped = len(transcripts) - len(records)
        else:
            records, skipped = [to_official_profile(profile) for profile in read_profiles(file)], 0
        write_objects(out, records)
        note = f" ({skipped} that have no score were left out)" if skipped else ""
        typer.echo(
            f"{out}: {len(records)} {'transcripts' if talks else 'profiles'} written in the official form{note}."
        )
        return
    if not is_official_profile(first):
        raise RlverError(f"{where}: this is not in the official form; say --back to turn ours into it.")
    if talks:
        pairs = [parse_official_transcript(r, line, name or file.stem) for line, r in read_objects(file)]
        typer.echo(f"{out}: {write_transcripts(out, [transcript for transcript, _ in pairs])} transcripts written.")
        if profiles:
            unique = {profile.id: profile for _, profile in pairs}
            typer.echo(f"{profiles}: {write_profiles(profiles, unique.values())} profiles written.")
    else:
        found = [parse_official_profile(record, line) for line, record in read_objects(file)]
        typer.echo(f"{out}: {write_profiles(out, found)} profiles written.")
