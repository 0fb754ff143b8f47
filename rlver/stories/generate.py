"""Profiles from the built-in stories: a seeded cross of story x persona x hidden intention, all profiles different."""

from __future__ import annotations

import random
import re
from typing import Any

from rlver.core.data import read_yaml
from rlver.core.profile import Character, Fact, Intention, Language, Persona, Profile, Story
from rlver.stories.library import Split, StorySpec, load_stories

BENCHMARK_SIZE = 100
_BENCHMARK_SEED = 2507

# The kinds of facts that a user with this hidden intention tells first. A user who hides the intention well gives no
# other hint of it.
_TELLS_FIRST: dict[Intention, tuple[str, ...]] = {
    Intention.ABSOLVE: ("action", "other"),
    Intention.REFLECT: ("tried", "feeling"),
    Intention.WEIGH: ("other", "stake"),
    Intention.EMPATHISE: ("feeling", "stake"),
    Intention.LISTEN: ("event", "feeling"),
    Intention.MOTIVES: ("other", "event"),
    Intention.ADVISE: ("tried", "stake"),
    Intention.PRAISE: ("action", "tried"),
}
_HEADINGS = {
    "en": ("Cause", "Course", "Conflict", "Tried in vain", "Now", "It went through my mind: "),
    "zh": ("起因", "经过", "冲突", "试过但没有用", "现在", "当时想："),
}


def generate(language: Language, split: Split, count: int, seed: int = 0) -> list[Profile]:
    """Generate `count` profiles of one split. The same arguments give the same profiles.

    Stories and hidden intentions are distributed evenly; persona, names and the order of the facts are random. The
    validation and benchmark splits also use names that training never sees.
    """
    rng = random.Random(f"profiles:{language}:{split}:{seed}")
    stories = load_stories(language, split)
    deck: list[tuple[StorySpec, Intention]] = []
    profiles = []
    for number in range(count):
        if not deck:
            # Each pair of story and intention comes once before any comes again, and intentions stay balanced.
            order = rng.sample(range(len(stories)), len(stories))
            intentions = rng.sample(list(Intention), len(Intention))
            for start in range(len(intentions)):
                for row, index in enumerate(order):
                    deck.append((stories[index], intentions[(row + start) % len(intentions)]))
            deck.reverse()
        story, intention = deck.pop()
        profiles.append(_profile(language, split, story, intention, seed, number, rng))
    return profiles


def benchmark_profiles(language: Language) -> list[Profile]:
    """The built-in benchmark: 100 profiles from stories, names and a topic that training never sees."""
    return generate(language, "benchmark", BENCHMARK_SIZE, _BENCHMARK_SEED)


def regenerate(name: str) -> Profile | None:
    """The generated profile with this id; None if no generated profile has it."""
    match = re.fullmatch(r"(en|zh)-(train|validation|benchmark)-(\d{1,15})-(\d{4,5})-.+", name)
    if match is None:
        return None
    language, split, seed, number = match.groups()
    profile = generate(language, split, int(number) + 1, int(seed))[-1]  # type: ignore[arg-type]
    return profile if profile.id == name else None


def _profile(
    language: Language,
    split: Split,
    spec: StorySpec,
    intention: Intention,
    seed: int,
    number: int,
    rng: random.Random,
) -> Profile:
    words = read_yaml("rlver.stories", f"data/personas.{language}.yaml")
    pool = "train" if split == "train" else "heldout"
    names: dict[str, str] = {
        str(key): rng.choice(words["names"][person.gender][pool]) for key, person in spec.people.items()
    }
    if len(set(names.values())) < len(names):
        names["b"] = next(name for name in words["names"][spec.people["b"].gender][pool] if name != names["a"])
    gender = rng.choice(("f", "m"))
    own_name = rng.choice([name for name in words["names"][gender][pool] if name not in names.values()])
    persona = _persona(language, words, own_name, gender, rng)

    first, later = spec.facts[0], list(spec.facts[1:])
    rng.shuffle(later)
    first_kinds = _TELLS_FIRST[intention]
    later.sort(key=lambda fact: first_kinds.index(fact.kind) if fact.kind in first_kinds else len(first_kinds))
    introduced: set[str] = set()
    facts = tuple(_tell(language, fact, spec, names, introduced) for fact in (first, *later))

    def fill(text: str) -> str:
        return text.format(**names)

    cause, course, conflict, tried, now, thought = _HEADINGS[language]
    steps = "\n".join(f"- {fill(step.event)} {thought}{fill(step.thought)}" for step in spec.timeline)
    attempts = "\n".join(f"- {fill(attempt)}" for attempt in spec.tried)
    text = (
        f"{cause}: {fill(spec.cause)}\n{course}:\n{steps}\n{conflict}: {fill(spec.conflict)}\n"
        f"{tried}:\n{attempts}\n{now}: {fill(spec.now)}"
    )
    return Profile(
        id=f"{language}-{split}-{seed}-{number:04d}-{spec.id}-{intention}",
        language=language,
        persona=persona,
        story=Story(id=spec.id, topic=spec.topic, title=spec.title, text=text, facts=facts),
        intention=intention,
    )


def _tell(language: Language, fact: Fact, spec: StorySpec, names: dict[str, str], introduced: set[str]) -> Fact:
    """The fact with names filled in. The first mention of a person also gives the relation, as in "my brother Tom"."""

    def name(match: re.Match[str]) -> str:
        key = match[1]
        if key in introduced:
            return names[key]
        introduced.add(key)
        relation = spec.people[key].relation  # type: ignore[index]
        if language == "zh":
            return f"我{relation}{names[key]}"
        return f"{'My' if match.start() == 0 else 'my'} {relation} {names[key]}"

    return fact.model_copy(update={"say": re.sub(r"\{([ab])\}", name, fact.say)})


def _persona(language: Language, words: dict[str, Any], name: str, gender: str, rng: random.Random) -> Persona:
    traits = rng.sample(words["traits"], 3)
    character = rng.choice(list(Character))
    style = rng.choice(["plain", "terse", "chatty", "ironic", "formal", "emotional"])
    hobbies = rng.sample(words["hobbies"], 3)
    habit = rng.choice(words["habits"])
    occupation, age = rng.choice(words["occupations"]), rng.randint(19, 64)
    lines = [habit, *(trait["says"] for trait in traits), *words["characters"][character], *words["styles"][style]]
    prose = " ".join(line.format(name=name) for line in lines)
    if language == "zh":
        prose = prose.replace(" ", "")
        head = f"{name}，{age}岁，{'女' if gender == 'f' else '男'}，{occupation}。爱好：{'、'.join(hobbies)}。"
    else:
        head = f"{name}, {age}, {'a woman' if gender == 'f' else 'a man'}, {occupation}. Likes {', '.join(hobbies)}. "
    return Persona(
        name=name,
        age=age,
        gender=gender,  # type: ignore[arg-type]
        occupation=occupation,
        hobbies=tuple(hobbies),
        traits=tuple(trait["word"] for trait in traits),
        character=character,
        style=style,  # type: ignore[arg-type]
        text=head + prose,
    )
