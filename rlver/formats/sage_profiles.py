"""Reader and writer of the official profiles (github Tencent/digitalhuman), which are Chinese prose in JSON lines.

Fields: `id`, `player` (persona), `scene` (background, which ends with the hidden theme), `main_cha` (character
type), `cha_group` (traits), `task` (hidden intention), and sometimes `topic` and `first_talk`. Only the modules of the
official formats use the words "player" and "NPC".
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, Literal

from rlver.core.errors import RlverError
from rlver.core.profile import Character, Fact, Intention, Persona, Profile, Story

# Each hidden intention is recognised by a part of its official wording that no other has.
_INTENTIONS = {
    "没有错": Intention.ABSOLVE,
    "自我反思": Intention.REFLECT,
    "辩证": Intention.WEIGH,
    "共情": Intention.EMPATHISE,
    "倾听": Intention.LISTEN,
    "其他人物": Intention.MOTIVES,
    "建议": Intention.ADVISE,
    "夸奖": Intention.PRAISE,
}
_CHARACTERS = {"负面": Character.NEGATIVE, "被动": Character.PASSIVE, "回避": Character.AVOIDANT}
TASK_WORDS = {
    Intention.ABSOLVE: "你希望对方认同你在这件事里没有错",
    Intention.REFLECT: "你希望对方引导你自我反思、有所成长",
    Intention.WEIGH: "你希望对方辩证地看这件事",
    Intention.EMPATHISE: "你希望对方和你深深共情",
    Intention.LISTEN: "你希望对方认真倾听",
    Intention.MOTIVES: "你想知道其他人物为什么这样做",
    Intention.ADVISE: "你希望得到真正有用的建议",
    Intention.PRAISE: "你希望你具体做的事得到夸奖",
}
"""The wording that we write for each hidden intention; it holds the part by which the intention is recognised."""
CHARACTER_WORDS = {value: f"{part}型" for part, value in _CHARACTERS.items()}
_REQUIRED = ("id", "player", "scene", "task")
_THEME = re.compile(r"#+\s*隐藏主题")
# After the story, a scene describes how the character reacts. The user tells none of that.
_AFTER_STORY = re.compile(
    r"\n[#\s\d.*\-]*(玩家不同状态|角色面对|NPC\S*回复|玩家\S{0,6}反应|角色\S{0,6}反应|不同状态|回复的影响)"
)
_MARKUP = re.compile(r"\*\*[^*\n]{0,40}?[：:]\s*\*\*|\*\*|^[#\s\-*]+|^\s*\d+[.、]\s*", re.MULTILINE)
# "第一阶段：重逢（1个月前）" and the like, before the sentence proper.
_LABEL = re.compile(r"^[^，。,]{0,18}(（[^）]*）)?[：:]\s*")
_META = ("玩家", "NPC", "剧本", "角色", "隐藏", "主题", "倾诉对象", "emotion")
_KINDS: tuple[tuple[str, Literal["tried", "feeling", "stake", "other"]], ...] = (
    (r"尝试|试图|努力|曾经?试", "tried"),
    (r"感到|觉得|心里|内心|情绪", "feeling"),
    (r"担心|害怕|可能会|不知道", "stake"),
)
# Two-character words that every such story uses, so that they identify no story.
_UNSPECIFIC = re.compile(
    "开始|觉得|感到|意识|问题|内心|感受|希望|理解|情绪|解决|虽然|然而|如何|因为|所以|但是|最近|已经|之间|关系|实际|无法|试图|尝试|决定|发现|态度|方式"
)
_FUNCTION_CHARACTERS = set(
    "的了在是和与也都就不还又对把被让自己一些这那有没说着地得个为到从上下中后前时要会能可以于并而且但却更很"
)


def is_official_profile(record: dict[str, Any]) -> bool:
    """Whether a JSON object has the fields of an official profile, not of one in our format."""
    return "player" in record or "scene" in record


def parse_official_profile(record: dict[str, Any], where: str) -> Profile:
    """Convert an official profile. Raises RlverError, naming `where`, if a field is missing or has an unknown value."""
    for field in _REQUIRED:
        if not isinstance(record.get(field), str) or not record[field].strip():
            raise RlverError(f"{where}: the official profile has no text in its field {field!r}.")
    intention = next((value for part, value in _INTENTIONS.items() if part in record["task"]), None)
    if intention is None:
        raise RlverError(f"{where}: unknown hidden intention in 'task': {record['task'][:60]!r}.")
    persona = _persona(record)
    scene = _THEME.split(record["scene"])[0].strip()
    return Profile(
        id=record["id"],
        language="zh",
        persona=persona,
        story=Story(
            id=f"official-{record['id']}",
            topic=str(record.get("topic") or ""),
            text=scene,
            facts=_facts(scene, persona.name) or (Fact(say="最近的事让我很难受。"),),
        ),
        intention=intention,
        opening=str(record.get("first_talk") or ""),
    )


def to_official_profile(profile: Profile) -> dict[str, Any]:
    """Convert a profile to the official format. Profiles that were read from it keep all that `Profile` holds.

    Raises:
        RlverError: the profile is a chit-chat one.
    """
    persona, task = profile.persona, TASK_WORDS[profile.need]
    gender = {"f": "女性", "m": "男性", "": ""}[persona.gender]
    head = f"* 姓名：{persona.name}\n* 年龄：{persona.age or ''}岁\n* 性别：{gender}\n* 职业：{persona.occupation}\n\n"
    record = {
        "id": profile.id,
        "player": persona.text if "姓名" in persona.text else head + persona.text,
        "scene": f"{profile.story.text}\n#### 隐藏主题:\n{task}",
        "main_cha": CHARACTER_WORDS[persona.character],
        "cha_group": list(persona.traits),
        "task": task,
        "topic": profile.story.topic,
    }
    return record | ({"first_talk": profile.opening} if profile.opening else {})


def _persona(record: dict[str, Any]) -> Persona:
    text = record["player"]

    def field(label: str) -> str:
        match = re.search(rf"{label}\**\s*[：:]\s*\**\s*(\S+)", text)
        return match[1].strip("*。；;，") if match else ""

    age = re.search(r"\d{1,3}", field("年龄"))
    gender = field("性别")
    traits = record.get("cha_group") or ()
    character = str(record.get("main_cha") or record.get("character") or "")  # profiles; transcripts
    return Persona(
        name=field("姓名") or "我",
        age=int(age[0]) if age else None,
        gender="f" if "女" in gender else "m" if "男" in gender else "",
        occupation=field("职业"),
        traits=tuple(str(trait) for trait in traits) if isinstance(traits, list) else (),
        character=next((value for part, value in _CHARACTERS.items() if part in character), Character.PASSIVE),
        text=text,
    )


def _facts(scene: str, name: str, limit: int = 12) -> tuple[Fact, ...]:
    """Facts from at most `limit` sentences, spread over the whole story, in the first person and with a handle."""
    story = _AFTER_STORY.split(scene)[0]
    sentences = []
    for line in _MARKUP.sub("", story).split("\n"):
        for sentence in re.findall(r"[^。！？]+[。！？]", line):
            sentence = _first_person(_LABEL.sub("", sentence.strip()), name)
            if 8 <= len(sentence) <= 48 and "我" in sentence and not any(word in sentence for word in _META):
                sentences.append(sentence)
    sentences = list(dict.fromkeys(sentences))
    if len(sentences) > limit:
        sentences = [sentences[i * len(sentences) // limit] for i in range(limit)]
    grams = Counter(story[i : i + n] for n in (2, 3, 4) for i in range(len(story) - n + 1))
    used: set[str] = set()
    facts = []
    for sentence in sentences:
        handle = _handle(sentence, grams, used)
        used.add(handle)
        kind = next((kind for pattern, kind in _KINDS if re.search(pattern, sentence)), None)
        facts.append(Fact(say=sentence, handle=handle, kind=kind or "event"))
    return tuple(facts)


def _first_person(sentence: str, name: str) -> str:
    given = name[1:] if len(name) > 2 else name
    sentence = sentence.replace(name, "我").replace(given, "我")
    return re.sub(r"(^|[，；。])[她他](?!们|的)", r"\1我", sentence)


def _handle(sentence: str, grams: Counter[str], used: set[str]) -> str:
    """The phrase of 2-4 characters, without function words, that the story repeats most; longer phrases weigh more."""
    best, best_rank = "", (0, 0)
    for n in (4, 3, 2):
        for i in range(len(sentence) - n + 1):
            gram = sentence[i : i + n]
            if gram in used or not re.fullmatch(r"[\u4e00-\u9fff]+", gram) or _UNSPECIFIC.search(gram):
                continue
            if "我" in gram or _FUNCTION_CHARACTERS & set(gram):
                continue
            rank = (grams[gram] * (n - 1), n)
            if grams[gram] >= 2 and rank > best_rank:
                best, best_rank = gram, rank
    return best
