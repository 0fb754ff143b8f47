"""`rlver profiles build`: new profiles, written by a language model and checked."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from rlver.cli.connect import AttemptsOption, CacheOption, ConcurrencyOption, Connections, RateOption, TimeoutOption
from rlver.cli.options import LanguageOption, SeedOption
from rlver.core.errors import RlverError
from rlver.core.files import read_file
from rlver.core.profile import ChatIntention, Intention


def build(
    model: Annotated[str, typer.Option("--model", help="Who writes: openai:MODEL@BASE_URL or any:PROVIDER/MODEL.")],
    out: Annotated[Path, typer.Option("--out", help="JSONL file; what is there already is kept, and the rest added.")],
    n: Annotated[int, typer.Option("--n", min=1, help="How many profiles the file is to hold.")] = 100,
    language: LanguageOption = "en",
    scenario: Annotated[
        Literal["support", "chat"], typer.Option(help="Emotional support, or a chit chat without trouble.")
    ] = "support",
    intention: Annotated[
        list[str] | None, typer.Option(help="Only these hidden intentions; default: all of the scenario, in turn.")
    ] = None,
    topic: Annotated[list[str] | None, typer.Option(help="Only these topics; default: the built-in ones.")] = None,
    sentences: Annotated[
        Path | None, typer.Option(help="Text file of sentences to start from, one a line; default: built-in titles.")
    ] = None,
    traits: Annotated[
        Path | None, typer.Option(help="Text file of traits, one a line; default: built-in ones.")
    ] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="Of the writing.")] = 1.0,
    seed: SeedOption = 0,
    concurrency: ConcurrencyOption = 8,
    per_minute: RateOption = None,
    timeout: TimeoutOption = 180.0,
    attempts: AttemptsOption = 6,
    cache: CacheOption = None,
) -> None:
    """Let a language model write new profiles from drawn ingredients, and check each: form, length, language, that the
    hidden intention is there and not given away, and that the story is not almost another one.

    Run it again to go on where it stopped; profiles that failed are tried again. Other ingredients or another model
    ask for another file.

    Example:

      rlver profiles build --model openai:gpt-4.1 --language zh --n 200 --out profiles.jsonl
    """
    from filelock import FileLock, Timeout

    from rlver.cli.progress import Steps
    from rlver.core.errors import CallFailed
    from rlver.core.profile import Profile
    from rlver.formats.profile_files import read_profiles
    from rlver.llm import Limits, parse_endpoint
    from rlver.rollout import closing, for_each, run
    from rlver.stories.build import Ingredients, Known, Recipe, draw, profile_id, prompts_hash
    from rlver.stories.build import build as write
    from rlver.stories.library import TOPICS

    ingredients = Ingredients(
        language=language,
        intentions=_intentions(scenario, intention),
        topics=tuple(topic or TOPICS),
        sentences=_lines(sentences),
        traits=_lines(traits),
        seed=seed,
    )
    limits = Limits(concurrency=concurrency, per_minute=per_minute, timeout=timeout, attempts=attempts)
    connections = Connections(limits, cache)
    llm = connections.connect(model)
    made_with = ingredients.model_dump(mode="json") | {
        "model": parse_endpoint(model).spec,
        "prompts": prompts_hash(language),
        "temperature": temperature,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(out.with_name(out.name + ".lock"))
        lock.acquire(timeout=0)
    except Timeout:
        raise RlverError(f"{out}: another process is writing there.") from None
    with lock:
        _same_ingredients(out, made_with)
        _cut_torn_line(out)
        there = read_profiles(out) if out.exists() and out.stat().st_size else []
        known, have = Known(there), {profile.id for profile in there}
        left = [recipe for i in range(n) if profile_id(ingredients, recipe := draw(ingredients, i)) not in have]
        connections.check()
        failed: list[str] = []
        with out.open("a", encoding="utf-8") as file, Steps("profiles") as steps:

            def keep(profile: Profile) -> None:
                known.add(profile)
                have.add(profile.id)
                file.write(profile.model_dump_json() + "\n")
                file.flush()

            async def work(recipe: Recipe) -> None:
                try:
                    taken = partial(known.alike, language=language)
                    keep(await write(llm, ingredients, recipe, taken=taken, temperature=temperature))
                except CallFailed as error:
                    failed.append(str(error))
                steps.update(len(have) + len(failed), n, f"{len(failed)} failed" if failed else "")

            run(closing(for_each(left, work, concurrency), llm))
    typer.echo(f"{out}: {len(have)} of {n} profiles.")
    if failed:
        first = failed[0].rstrip(".")
        raise RlverError(f"{len(failed)} profiles could not be made (the first: {first}); run the same again to retry.")


def _intentions(scenario: str, wanted: list[str] | None) -> tuple[Intention | ChatIntention, ...]:
    known: list[Intention | ChatIntention] = list(ChatIntention) if scenario == "chat" else list(Intention)
    unknown = next((name for name in wanted or () if name not in known), None)
    if unknown is not None:
        raise RlverError(f"--intention {unknown}: choose from {', '.join(known)}.")
    return tuple(item for item in known if not wanted or item in wanted)


def _lines(path: Path | None) -> tuple[str, ...]:
    if path is None:
        return ()
    found = tuple(line.strip() for line in read_file(path).splitlines() if line.strip())
    if not found:
        raise RlverError(f"{path}: no lines in this file.")
    return found


def _same_ingredients(out: Path, now: dict[str, object]) -> None:
    """Note beside the file what its profiles are made of; refuse another recipe."""
    note = out.with_name(out.name + ".config.json")
    if note.exists() and out.exists() and out.stat().st_size:
        was = json.loads(note.read_text(encoding="utf-8"))
        changed = [f"{key} was {was.get(key)!r} and is {now[key]!r}" for key in now if was.get(key) != now[key]]
        if changed:
            raise RlverError(f"{out}: was made otherwise ({'; '.join(changed)}); take another --out.")
    note.write_text(json.dumps(now, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _cut_torn_line(out: Path) -> None:
    """Drop a last line that a kill cut off."""
    if out.exists():
        whole = out.read_bytes().rfind(b"\n") + 1
        with out.open("r+b") as file:
            file.truncate(whole)
