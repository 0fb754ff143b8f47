"""Matches many regular expressions against many short texts, trying only the patterns that can match.

A pattern can match only if certain short strings occur in the text: for example one of "sorry" and "apolog", and one of
"hear" and "that". These required strings are derived once from the parsed pattern. One pass over a text then finds all
strings that occur in it, and only the patterns whose requirements it meets are tried.
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
_MAX_STRINGS = 60
"""Alternatives at one place of a pattern are listed only up to this number."""
_COMMON_SHARE = 0.15
"""A requirement that more than this share of the sample texts meets is too common to check, unless it is the
pattern's rarest."""
# Letters that `re.IGNORECASE` treats as "s" and "i", but that `str.lower` keeps or turns into two characters.
_ODD_CASE = str.maketrans({"ſ": "s", "ı": "i", "İ": "i"})


class PatternIndex:
    """Finds the groups of patterns of which at least one matches a text. Case is ignored.

    Args:
        groups: patterns by the name of their group.
        sample: texts that resemble those to come. Requirements that are rare in them are checked first.
    """

    def __init__(self, groups: Mapping[str, Sequence[str]], sample: Sequence[str] = ()) -> None:
        self.names = tuple(groups)
        self._patterns: list[tuple[str, _Find, bool, list[frozenset[str]]]] = []
        self._by_key: dict[str, list[int]] = defaultdict(list)
        """Numbers of the patterns to try if a string occurs; empty for strings that only further requirements name."""
        self._always: set[int] = set()
        rarity = _Rarity(sample)
        for name, patterns in groups.items():
            for pattern in patterns:
                needs = sorted(_requirements(_parser.parse(pattern, re.IGNORECASE), rarity), key=rarity.rank)
                needs = needs[:1] + [need for need in needs[1:] if rarity.rank(need)[0] <= _COMMON_SHARE * len(sample)]
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

    def groups_in(self, text: str) -> tuple[str, ...]:
        """The names of the groups with a pattern that matches somewhere in the text, in the order of the groups."""
        lower = (text if text.isascii() else text.translate(_ODD_CASE)).lower()
        keys = {key for _, key in self._keys.iter(lower)} if self._by_key else set()
        matched: set[str] = set()
        for number in self._always.union(*map(self._by_key.__getitem__, keys)):
            name, find, lowered, needs = self._patterns[number]
            if name in matched or (needs and any(map(keys.isdisjoint, needs))):
                continue
            if find(lower if lowered else text):
                matched.add(name)
        return tuple([name for name in self.names if name in matched]) if matched else ()


def _compile(pattern: str) -> tuple[_Find, bool]:
    """The search function of a pattern, and whether it expects the text in lower case.

    Ignoring case is slow, so patterns without capitals search the lower-case text instead. Patterns that are anchored
    at the beginning are tried only there.
    """
    literal = re.sub(r"\\.", "", pattern)
    lowered = literal == literal.lower() and "(?-i" not in literal
    compiled = re.compile(pattern, 0 if lowered else re.IGNORECASE)
    anchored = _parser.parse(pattern).data[:1] == [(_code.AT, _code.AT_BEGINNING)] and not compiled.flags & re.MULTILINE
    return compiled.match if anchored else compiled.search, lowered


class _Rarity:
    """Counts how many texts of a sample hold one of several strings."""

    def __init__(self, sample: Sequence[str]) -> None:
        self._sample = [text.lower() for text in sample]
        self._all = "\n".join(self._sample)
        self.rank = cache(self._rank)
        self._texts = cache(self._texts_with)

    def _rank(self, keys: frozenset[str]) -> tuple[int, int]:
        """Sort key, small for rare: number of texts with one of these strings, then minus the shortest length."""
        return len(set().union(*map(self._texts, keys))), -min(map(len, keys))

    def _texts_with(self, key: str) -> set[int]:
        return {number for number, text in enumerate(self._sample) if key in text} if key in self._all else set()


def _requirements(sequence: Any, rarity: _Rarity) -> list[frozenset[str]]:
    """Requirements of a pattern: sets of strings. Every match holds at least one string of each set."""
    needs: list[frozenset[str]] = []
    # The possible texts since the last element whose strings cannot be listed.
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
            needs += _requirements(argument[3], rarity)
        elif op is _code.BRANCH:
            parts = [_requirements(branch, rarity) for branch in argument[1]]
            if all(parts):
                needs.append(frozenset().union(*(min(part, key=rarity.rank) for part in parts)))
        elif op in _REPEATS and argument[0] > 0:
            needs += _requirements(argument[2], rarity)
    needs.append(frozenset(here))
    return [need for need in needs if "" not in need]


def _strings(sequence: Any) -> set[str] | None:
    """All strings that match the sequence, in lower case; None if there are too many. Zero-width elements match ""."""
    strings: set[str] | None = {""}
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
        strings = strings and part and _joined(strings, part)
        if strings is None:
            return None
    return strings


def _characters(kind: Any, of: Any) -> set[str] | None:
    """The characters of a part of a character class, in lower case; None if there are too many."""
    if kind is _code.LITERAL:
        return {chr(of).lower()}
    if kind is _code.RANGE and of[1] - of[0] < _MAX_STRINGS:
        return {chr(code).lower() for code in range(of[0], of[1] + 1)}
    return _digits() if of is _code.CATEGORY_DIGIT else None


@cache
def _digits() -> set[str]:
    """All characters that `\\d` matches."""
    return set(re.findall(r"\d", "".join(map(chr, range(0x20000)))))


def _joined(prefixes: set[str], suffixes: set[str]) -> set[str] | None:
    """Every prefix followed by every suffix; None if these are too many."""
    if min(len(prefixes), len(suffixes)) > 1 and len(prefixes) * len(suffixes) > _MAX_STRINGS:
        return None
    return {prefix + suffix for prefix in prefixes for suffix in suffixes}
