"""New profiles by a language model: random ingredients go in; a checked profile or a reason to reject it comes out."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from rlver.core.data import digest, fill_prompt, read_text, read_yaml
from rlver.core.errors import Unreadable
from rlver.core.profile import Character, ChatIntention, Fact, Frozen, Intention, Language, Persona, Profile, Story
from rlver.core.seeds import derive
from rlver.llm import LLM, ask
from rlver.stories.library import TOPICS, load_stories
from rlver.text.words import script_share, words

_PROMPTS = "rlver.stories.prompts"
_TRIES = 3
"""Largest number of versions of a profile that are written until one passes its checks."""
_DUPLICATE_SHARE = 0.35
"""Two stories that share more of their three-word sequences than this are near-duplicates."""
_SHORTEST_STORY = {"en": 400, "zh": 150}
"""Characters. The longest permitted story is ten times as long."""


class WrittenFact(BaseModel):
    """A fact as the model writes it."""

    model_config = ConfigDict(extra="ignore")

    say: str = Field(min_length=4, max_length=300)
    handle: str = Field(min_length=1, max_length=60)
    kind: Literal["event", "action", "other", "feeling", "tried", "stake"] = "event"


class Written(BaseModel):
    """A profile as the model writes it."""

    model_config = ConfigDict(extra="ignore")

    name: str = Field(min_length=1, max_length=60)
    age: Annotated[int, Field(ge=10, le=100)]
    gender: Literal["f", "m"]
    occupation: str = Field(min_length=1, max_length=80)
    hobbies: list[str] = Field(min_length=1, max_length=6)
    persona: str = Field(min_length=40, max_length=3000)
    title: str = Field(min_length=2, max_length=80)
    story: str
    facts: list[WrittenFact] = Field(min_length=6, max_length=15)
    opening: str = Field(min_length=2, max_length=400)


def _flag(value: object) -> object:
    return value.strip().lower() in ("true", "yes", "是") if isinstance(value, str) else value


class Checked(BaseModel):
    """The model's answer when it checks a written profile: whether the story fits the wish, and whether it names it."""

    model_config = ConfigDict(extra="ignore")

    fits: Annotated[bool, BeforeValidator(_flag)]
    named: Annotated[bool, BeforeValidator(_flag)]
    why: str = ""


class Ingredients(Frozen):
    """What the random ingredients of profiles are drawn from."""

    language: Language
    intentions: tuple[Intention | ChatIntention, ...] = tuple(Intention)
    topics: tuple[str, ...] = TOPICS
    sentences: tuple[str, ...] = ()
    """Sentences to start a story from; if empty, the titles of the training stories."""
    traits: tuple[str, ...] = ()
    """If empty, the traits of the built-in personas."""
    seed: int = 0


class Recipe(NamedTuple):
    """The ingredients of one profile."""

    number: int
    intention: Intention | ChatIntention
    topic: str
    sentence: str
    traits: tuple[str, ...]
    character: Character


def prompts_hash(language: Language) -> str:
    """Eight hexadecimal digits that identify the prompts and patterns."""
    names = (f"build.{language}.md", f"check.{language}.md", "words.yaml")
    return digest(*(read_text(_PROMPTS, name) for name in names))


def draw(ingredients: Ingredients, number: int) -> Recipe:
    """The ingredients of profile `number`. Intentions and topics alternate; the rest is random."""
    rng = random.Random(f"build:{ingredients.seed}:{number}")
    language = ingredients.language
    personas = read_yaml("rlver.stories", f"data/personas.{language}.yaml")
    sentences = ingredients.sentences or tuple(story.title for story in load_stories(language, "train"))
    traits = ingredients.traits or tuple(trait["word"] for trait in personas["traits"])
    intentions, topics = ingredients.intentions, ingredients.topics
    return Recipe(
        number=number,
        intention=intentions[number % len(intentions)],
        topic=topics[(number // len(intentions) + number) % len(topics)],
        sentence=rng.choice(sentences),
        traits=tuple(rng.sample(traits, min(3, len(traits)))),
        character=rng.choice(list(Character)),
    )


async def build_profile(
    llm: LLM,
    ingredients: Ingredients,
    recipe: Recipe,
    *,
    duplicate_of: Callable[[str], str],
    temperature: float = 1.0,
    max_tokens: int | None = 4096,
) -> Profile:
    """Let the model write a profile until a version passes all checks.

    Args:
        duplicate_of: returns the id of a profile whose story is almost the given one; "" if there is none.

    Raises:
        Unreadable: no version passed; the message says what was wrong with the last one.
        CallFailed: see `LLM.complete`.
    """
    language = ingredients.language
    pieces = read_yaml(_PROMPTS, "words.yaml")[language]
    chat = isinstance(recipe.intention, ChatIntention)
    slots = {
        "sentence": recipe.sentence,
        "topic": recipe.topic,
        "traits": ", ".join(recipe.traits),
        "character": pieces["character"][recipe.character],
        "scenario": pieces["scenario"]["chat" if chat else "support"],
        "want": pieces["want"][recipe.intention],
    }
    why = ""
    for attempt in range(_TRIES):
        seed = derive(ingredients.seed, recipe.number, attempt)
        written = await ask(
            llm,
            [{"role": "user", "content": fill_prompt(_PROMPTS, f"build.{language}.md", slots)}],
            Written,
            language=language,
            temperature=temperature,
            max_tokens=max_tokens,
            seed=seed,
            check=lambda item: find_faults(item, language, pieces["leaks"][recipe.intention]),
        )
        if duplicate := duplicate_of(written.story):
            why = f"almost the story of {duplicate}"
            continue
        text = "\n".join([written.story, "", written.opening, *(fact.say for fact in written.facts)])
        quoted = text.replace("<", "(").replace(">", ")")
        prompt = fill_prompt(_PROMPTS, f"check.{language}.md", slots | {"text": quoted, "mark": f"{seed:x}"})
        checked = await ask(
            llm,
            [{"role": "user", "content": prompt}],
            Checked,
            language=language,
            temperature=0.0,
            max_tokens=max_tokens,
            seed=seed,
        )
        if checked.fits and not checked.named:
            return _profile(written, ingredients, recipe)
        why = "the wish is named" if checked.named else "the story does not fit the wish"
    raise Unreadable(f"profile {recipe.number}: {_TRIES} versions failed (the last: {why})")


def find_faults(written: Written, language: Language, leak: str) -> str:
    """What is wrong with a written profile; empty if nothing is.

    Args:
        leak: regular expression of sentences that give the hidden intention away.
    """
    shortest = _SHORTEST_STORY[language]
    if not shortest <= len(written.story) <= 10 * shortest:
        return f"story: {len(written.story)} characters, wanted are {shortest} to {10 * shortest}"
    utterances = [written.opening, *(fact.say for fact in written.facts)]
    if any(script_share(text, language) < 0.5 for text in (written.story, written.persona, *utterances)):
        return "wrong language"
    if len({fact.say for fact in written.facts}) < len(written.facts):
        return "facts: the same one twice"
    missing = next((fact.handle for fact in written.facts if fact.handle not in fact.say), None)
    if missing is not None:
        return "facts: a handle does not stand in its sentence word for word"
    if any(re.search(leak, text, re.IGNORECASE) for text in utterances):
        return "a sentence names the wish"
    return ""


class StoryIndex:
    """Finds near-duplicates among stories by the three-word sequences that they share."""

    def __init__(self, profiles: Sequence[Profile] = ()) -> None:
        self._grams: dict[str, set[tuple[str, ...]]] = {}
        for profile in profiles:
            self.add(profile)

    def add(self, profile: Profile) -> None:
        """Add the story of a profile."""
        self._grams[profile.id] = _grams(profile.story.text, profile.language)

    def duplicate_of(self, story: str, language: Language) -> str:
        """The id of a profile with almost this story; empty if there is none."""
        grams = _grams(story, language)
        for name, known in self._grams.items():
            if len(grams & known) > _DUPLICATE_SHARE * min(len(grams), len(known)):
                return name
        return ""


def _grams(text: str, language: Language) -> set[tuple[str, ...]]:
    # `words` splits Chinese text into characters, and a Chinese word has about two.
    size = 3 if language == "en" else 6
    tokens = [word for word in words(text, language) if word[0].isalnum()]
    return {tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)}


def profile_id(ingredients: Ingredients, recipe: Recipe) -> str:
    """The id of the profile that is made from a recipe."""
    return f"{ingredients.language}-built-{ingredients.seed}-{recipe.number:04d}-{recipe.intention}"


def _profile(written: Written, ingredients: Ingredients, recipe: Recipe) -> Profile:
    name = profile_id(ingredients, recipe)
    return Profile(
        id=name,
        language=ingredients.language,
        persona=Persona(
            name=written.name,
            age=written.age,
            gender=written.gender,
            occupation=written.occupation,
            hobbies=tuple(written.hobbies),
            traits=recipe.traits,
            character=recipe.character,
            text=written.persona,
        ),
        story=Story(
            id=name,
            topic=recipe.topic,
            title=written.title,
            text=written.story,
            facts=tuple(Fact(**fact.model_dump()) for fact in written.facts),
        ),
        intention=recipe.intention,
        opening=written.opening,
    )
