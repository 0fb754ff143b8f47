"""Many regular expressions over many short texts: only those are tried whose letters the text has at all.

A pattern can match only if certain short strings are in the text: one of "sorry" and "apolog", say, and one of
"hear" and "that". They are read off the parsed pattern once; a text then tries only the patterns all of whose
needs it meets.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from re import _constants as _code  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any

import ahocorasick

_Find = Callable[[str], "re.Match[str] | None"]
_REPEATS = (_code.MAX_REPEAT, _code.MIN_REPEAT)
_MANY = 60
"""More strings than these at one place of a pattern are not listed."""
_COMMON = 0.15
"""A string that this share of the texts hold tells too little to look for it, if a pattern needs a rarer one too."""
# Letters that `re.IGNORECASE` takes for "s" and "i", and that `str.lower` leaves alone or makes two of.
_ODD_CASE = str.maketrans({"ſ": "s", "ı": "i", "İ": "i"})


class PatternIndex:
    """Named groups of patterns, case ignored: which groups have a pattern that is found in a text?

    `sample` holds texts of the kind to come; strings that are rare in it are looked for first.
    """

    def __init__(self, groups: Mapping[str, Sequence[str]], sample: Sequence[str] = ()) -> None:
        self.names = tuple(groups)
        self._patterns: list[tuple[str, _Find, bool, list[frozenset[str]]]] = []
        self._by_key: dict[str, list[int]] = defaultdict(list)
        """Patterns to try by a string that is found; none if the string is only looked for beside a rarer one."""
        self._always: set[int] = set()
        rarity = _Rarity(sample)
        for name, patterns in groups.items():
            for pattern in patterns:
                needs = sorted(_needs(_parser.parse(pattern, re.IGNORECASE), rarity), key=rarity.of)
                needs = needs[:1] + [need for need in needs[1:] if rarity.of(need)[0] <= _COMMON * len(sample)]
                number = len(self._patterns)
                self._patterns.append((name, *_compile(pattern), needs[1:]))
                for key in needs[0] if needs else ():
                    self._by_key[key].append(number)
                if not needs:
                    self._always.add(number)
        self._keys = ahocorasick.Automaton()
        for key in {key for *_, needs in self._patterns for need in needs for key in need}:
            self._by_key[key]
        for key in self._by_key:
            self._keys.add_word(key, key)
        self._keys.make_automaton()

    def found_in(self, text: str) -> tuple[str, ...]:
        """The names of the groups with a pattern that is found in the text, in the order of the groups."""
        lower = (text if text.isascii() else text.translate(_ODD_CASE)).lower()
        keys = {key for _, key in self._keys.iter(lower)} if self._by_key else set()
        found: set[str] = set()
        for number in self._always.union(*map(self._by_key.__getitem__, keys)):
            name, find, lowered, needs = self._patterns[number]
            if name in found or (needs and any(map(keys.isdisjoint, needs))):
                continue
            if find(lower if lowered else text):
                found.add(name)
        return tuple([name for name in self.names if name in found]) if found else ()


def _compile(pattern: str) -> tuple[_Find, bool]:
    """What finds the pattern, and whether in texts in lower case: then case need not be ignored, which is slow.
    One that names capitals is for texts as they are; one that begins where the text does is tried nowhere else."""
    literal = re.sub(r"\\.", "", pattern)
    lowered = literal == literal.lower() and "(?-i" not in literal
    compiled = re.compile(pattern, 0 if lowered else re.IGNORECASE)
    anchored = _parser.parse(pattern).data[:1] == [(_code.AT, _code.AT_BEGINNING)] and not compiled.flags & re.MULTILINE
    return compiled.match if anchored else compiled.search, lowered


class _Rarity:
    """How many of the sample's texts hold one of some strings."""

    def __init__(self, sample: Sequence[str]) -> None:
        self._sample = [text.lower() for text in sample]
        self._all = "\n".join(self._sample)
        self.of = cache(self._of)
        self._texts = cache(self._texts_with)

    def _of(self, keys: frozenset[str]) -> tuple[int, int]:
        """Texts with one of these strings, then how short the shortest of them is: small is rare."""
        return len(set().union(*map(self._texts, keys))), -min(map(len, keys))

    def _texts_with(self, key: str) -> set[int]:
        return {number for number, text in enumerate(self._sample) if key in text} if key in self._all else set()


def _needs(sequence: Any, rarity: _Rarity) -> list[frozenset[str]]:
    """Sets of strings, of each of which every match holds at least one."""
    needs: list[frozenset[str]] = []
    # What may stand at this place of a match, from the last element on whose strings cannot be listed.
    here = {""}
    for element in sequence:
        op, argument = element
        strings = _strings([element])
        longer = strings and _joined(here, strings)
        if longer is not None:
            here = longer
            continue
        inner = _strings(argument[2]) if op in _REPEATS and argument[0] > 0 else None
        needs.append(frozenset((inner and _joined(here, inner)) or here))
        here = strings or inner or {""}
        if strings or inner:
            continue
        if op is _code.SUBPATTERN:
            needs += _needs(argument[3], rarity)
        elif op is _code.BRANCH:
            parts = [_needs(branch, rarity) for branch in argument[1]]
            if all(parts):
                needs.append(frozenset().union(*(min(part, key=rarity.of) for part in parts)))
        elif op in _REPEATS and argument[0] > 0:
            needs += _needs(argument[2], rarity)
    needs.append(frozenset(here))
    return [need for need in needs if "" not in need]


def _strings(sequence: Any) -> set[str] | None:
    """All strings that match the sequence, in lower case, or None if they are many; what has no width matches ""."""
    found: set[str] | None = {""}
    for op, argument in sequence:
        part: set[str] | None = None
        if op is _code.LITERAL:
            part = {chr(argument).lower()}
        elif op is _code.IN:
            characters = [_characters(kind, of) for kind, of in argument]
            part = set().union(*characters) if None not in characters else None  # type: ignore[arg-type]
        elif op in (_code.AT, _code.ASSERT, _code.ASSERT_NOT):
            part = {""}
        elif op is _code.SUBPATTERN:
            part = _strings(argument[3])
        elif op is _code.BRANCH:
            branches = [_strings(branch) for branch in argument[1]]
            part = set().union(*branches) if None not in branches else None  # type: ignore[arg-type]
        elif op in _REPEATS and argument[1] == 1:
            part = _strings(argument[2])
            part = part and part | ({""} if argument[0] == 0 else set())
        found = found and part and _joined(found, part)
        if found is None:
            return None
    return found


def _characters(kind: Any, of: Any) -> set[str] | None:
    """The characters of a part of a character class, in lower case, or None if they are many."""
    if kind is _code.LITERAL:
        return {chr(of).lower()}
    if kind is _code.RANGE and of[1] - of[0] < _MANY:
        return {chr(code).lower() for code in range(of[0], of[1] + 1)}
    return _digits() if of is _code.CATEGORY_DIGIT else None


@cache
def _digits() -> set[str]:
    """All that `\\d` matches."""
    return set(re.findall(r"\d", "".join(map(chr, range(0x20000)))))


def _joined(left: set[str], right: set[str]) -> set[str] | None:
    """Every string of the one followed by every one of the other, unless these are many."""
    if min(len(left), len(right)) > 1 and len(left) * len(right) > _MANY:
        return None
    return {first + second for first in left for second in right}
