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
    model: Annotated[
        str,
        typer.Option(
            "--model", metavar="SPEC", help="The model that writes: openai:MODEL@BASE_URL or any:PROVIDER/MODEL."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="JSONL file to write. Profiles that it already holds are kept.")],
    n: Annotated[int, typer.Option("--n", min=1, help="Number of profiles that the file shall hold in the end.")] = 100,
    language: LanguageOption = "en",
    scenario: Annotated[
        Literal["support", "chat"], typer.Option(help="support: emotional support; chat: small talk without a problem.")
    ] = "support",
    intention: Annotated[
        list[str] | None,
        typer.Option(help="Hidden intention; repeat the option for several.  [default: all of the scenario, in turn]"),
    ] = None,
    topic: Annotated[
        list[str] | None, typer.Option(help="Topic; repeat the option for several.  [default: the built-in ones]")
    ] = None,
    sentences: Annotated[
        Path | None,
        typer.Option(help="Text file of sentences that stories start from, one per line.  [default: built-in titles]"),
    ] = None,
    traits: Annotated[
        Path | None, typer.Option(help="Text file of character traits, one per line.  [default: built-in ones]")
    ] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="Sampling temperature of the writing.")] = 1.0,
    seed: SeedOption = 0,
    concurrency: ConcurrencyOption = 8,
    per_minute: RateOption = None,
    timeout: TimeoutOption = 180.0,
    attempts: AttemptsOption = 6,
    cache: CacheOption = None,
) -> None:
    """Let a language model write new profiles, and check each of them.

    Ingredients (intention, topic, traits, a sentence) are drawn at random. The checks cover form, length and language,
    that the story shows the hidden intention without naming it, and that the story is new.

    Run the same command again to continue after a failure or an interruption. Other ingredients or another model need
    another file.

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
        raise RlverError(f"{out}: another process is writing this file.") from None
    with lock:
        _same_ingredients(out, made_with)
        _cut_torn_line(out)
        there = read_profiles(out) if out.exists() and out.stat().st_size else []
        known, have = Known(there), {profile.id for profile in there}
        left = [recipe for i in range(n) if profile_id(ingredients, recipe := draw(ingredients, i)) not in have]
        connections.check()
        failed: list[str] = []
        with out.open("a", encoding="utf-8") as file, Steps("Profiles") as steps:

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
    typer.echo(f"{out}: holds {len(have)} of {n} profiles.")
    if failed:
        first = failed[0].rstrip(".")
        raise RlverError(
            f"{len(failed)} profiles could not be written (the first: {first}); run the same command again to retry."
        )


def _intentions(scenario: str, wanted: list[str] | None) -> tuple[Intention | ChatIntention, ...]:
    known: list[Intention | ChatIntention] = list(ChatIntention) if scenario == "chat" else list(Intention)
    unknown = next((name for name in wanted or () if name not in known), None)
    if unknown is not None:
        raise RlverError(f"--intention {unknown}: choose from {', '.join(known)}.")
    return tuple(item for item in known if not wanted or item in wanted)


def _lines(path: Path | None) -> tuple[str, ...]:
    if path is None:
        return ()
    lines = tuple(line.strip() for line in read_file(path).splitlines() if line.strip())
    if not lines:
        raise RlverError(f"{path}: this file has no lines.")
    return lines


def _same_ingredients(out: Path, now: dict[str, object]) -> None:
    """Write beside the file how its profiles are made. Raises RlverError if it was started otherwise."""
    note = out.with_name(out.name + ".config.json")
    if note.exists() and out.exists() and out.stat().st_size:
        was = json.loads(note.read_text(encoding="utf-8"))
        changed = [f"{key} was {was.get(key)!r} and is {now[key]!r}" for key in now if was.get(key) != now[key]]
        if changed:
            raise RlverError(f"{out}: was started with other settings ({'; '.join(changed)}); choose another --out.")
    note.write_text(json.dumps(now, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _cut_torn_line(out: Path) -> None:
    """Drop an incomplete last line that a killed process left."""
    if out.exists():
        whole = out.read_bytes().rfind(b"\n") + 1
        with out.open("r+b") as file:
            file.truncate(whole)
