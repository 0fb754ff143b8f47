"""`rlver profiles build`: a language model writes new profiles, which are checked."""

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
    from rlver.stories.build import Ingredients, Recipe, StoryIndex, build_profile, draw, profile_id, prompts_hash
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
    settings = ingredients.model_dump(mode="json") | {
        "model": parse_endpoint(model).spec,
        "prompts": prompts_hash(language),
        "temperature": temperature,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(out.with_name(out.name + ".lock"))
        lock.acquire(timeout=0)
    except Timeout:
        raise RlverError(f"{out}: another process is writing to this file.") from None
    with lock:
        _require_same_settings(out, settings)
        _drop_incomplete_line(out)
        profiles = read_profiles(out) if out.exists() and out.stat().st_size else []
        stories, ids = StoryIndex(profiles), {profile.id for profile in profiles}
        missing = [recipe for i in range(n) if profile_id(ingredients, recipe := draw(ingredients, i)) not in ids]
        connections.check()
        failures: list[str] = []
        with out.open("a", encoding="utf-8") as file, Steps("profiles") as steps:

            def add(profile: Profile) -> None:
                stories.add(profile)
                ids.add(profile.id)
                file.write(profile.model_dump_json() + "\n")
                file.flush()

            async def work(recipe: Recipe) -> None:
                try:
                    duplicate_of = partial(stories.duplicate_of, language=language)
                    add(
                        await build_profile(
                            llm, ingredients, recipe, duplicate_of=duplicate_of, temperature=temperature
                        )
                    )
                except CallFailed as error:
                    failures.append(str(error))
                steps.update(len(ids) + len(failures), n, f"{len(failures)} failed" if failures else "")

            run(closing(for_each(missing, work, concurrency), llm))
    typer.echo(f"{out}: {len(ids)} of {n} profiles.")
    if failures:
        first = failures[0].rstrip(".")
        raise RlverError(
            f"{len(failures)} profiles could not be made (the first: {first}); run the same command again to retry."
        )


def _intentions(scenario: str, wanted: list[str] | None) -> tuple[Intention | ChatIntention, ...]:
    intentions: list[Intention | ChatIntention] = list(ChatIntention) if scenario == "chat" else list(Intention)
    unknown = next((name for name in wanted or () if name not in intentions), None)
    if unknown is not None:
        raise RlverError(f"--intention {unknown}: choose from {', '.join(intentions)}.")
    return tuple(intention for intention in intentions if not wanted or intention in wanted)


def _lines(path: Path | None) -> tuple[str, ...]:
    if path is None:
        return ()
    lines = tuple(line.strip() for line in read_file(path).splitlines() if line.strip())
    if not lines:
        raise RlverError(f"{path}: this file has no lines.")
    return lines


def _require_same_settings(out: Path, settings: dict[str, object]) -> None:
    """Write beside the file how its profiles are made; raise RlverError if that has changed since."""
    config = out.with_name(out.name + ".config.json")
    if config.exists() and out.exists() and out.stat().st_size:
        old = json.loads(config.read_text(encoding="utf-8"))
        changed = [f"{key} was {old.get(key)!r} and is {new!r}" for key, new in settings.items() if old.get(key) != new]
        if changed:
            raise RlverError(f"{out}: made with other settings ({'; '.join(changed)}); choose another --out.")
    config.write_text(json.dumps(settings, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _drop_incomplete_line(out: Path) -> None:
    """Drop a last line that a killed process left incomplete."""
    if out.exists():
        length = out.read_bytes().rfind(b"\n") + 1
        with out.open("r+b") as file:
            file.truncate(length)
