"""Many regular expressions over many short texts: only those are tried whose letters the text has at all.

A pattern can match only if certain short strings are in the text: one of "sorry" and "apolog", say, and one of
"hear" and "that". They are read off the parsed pattern once; a text then tries only the patterns all of whose
needs it meets.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from re import _constants as _code  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any

import ahocorasick

_COMMON = 0.3
"""A string that this share of the texts hold tells too little to look for it, if a pattern needs a rarer one too."""
# Letters that `re.IGNORECASE` takes for "s" and "i", and that `str.lower` leaves alone or makes two of.
_ODD_CASE = str.maketrans({"ſ": "s", "ı": "i", "İ": "i"})


class PatternIndex:
    """Named groups of patterns, case ignored: which groups have a pattern that is found in a text?

    `sample` holds texts of the kind to come; strings that are rare in it are looked for first.
    """

    def __init__(self, groups: Mapping[str, Sequence[str]], sample: Sequence[str] = ()) -> None:
        self.names = tuple(groups)
        self._patterns: list[tuple[str, re.Pattern[str], list[frozenset[str]]]] = []
        self._by_key: dict[str, list[int]] = defaultdict(list)
        self._always: list[int] = []
        rarity = _Rarity(sample)
        for name, patterns in groups.items():
            for pattern in patterns:
                needs = sorted(_needs(_parser.parse(pattern, re.IGNORECASE), rarity), key=rarity.of)
                needs = needs[:1] + [need for need in needs[1:] if rarity.of(need)[0] <= _COMMON * len(sample)]
                number = len(self._patterns)
                self._patterns.append((name, _compile(pattern), needs[1:]))
                for key in needs[0] if needs else ():
                    self._by_key[key].append(number)
                if not needs:
                    self._always.append(number)
        self._keys = ahocorasick.Automaton()
        for key in self._by_key.keys() | {key for _, _, needs in self._patterns for need in needs for key in need}:
            self._keys.add_word(key, key)
        self._keys.make_automaton()

    def found_in(self, text: str) -> tuple[str, ...]:
        """The names of the groups with a pattern that is found in the text, in the order of the groups."""
        lower = (text if text.isascii() else text.translate(_ODD_CASE)).lower()
        keys = {key for _, key in self._keys.iter(lower)}
        found: set[str] = set()
        by_key = self._by_key
        for number in {*self._always, *(number for key in keys & by_key.keys() for number in by_key[key])}:
            name, pattern, needs = self._patterns[number]
            if name not in found and not any(map(keys.isdisjoint, needs)) and pattern.search(lower):
                found.add(name)
        return tuple(name for name in self.names if name in found)


def _compile(pattern: str) -> re.Pattern[str]:
    """The pattern for texts in lower case. Case need not be ignored, which is slow, if it has no capital itself."""
    literal = re.sub(r"\\.", "", pattern)
    return re.compile(pattern, 0 if literal == literal.lower() else re.IGNORECASE)


class _Rarity:
    """How many of the sample's texts hold one of some strings."""

    def __init__(self, sample: Sequence[str]) -> None:
        self._sample = [text.lower() for text in sample]
        self._where: dict[str, set[int]] = {}

    def of(self, keys: frozenset[str]) -> tuple[int, int]:
        """Texts with one of these strings, then how short the shortest of them is: small is rare."""
        return len(set().union(*map(self._texts, keys))), -min(map(len, keys))

    def _texts(self, key: str) -> set[int]:
        if key not in self._where:
            self._where[key] = {number for number, text in enumerate(self._sample) if key in text}
        return self._where[key]


def _needs(sequence: Any, rarity: _Rarity) -> list[frozenset[str]]:
    """Sets of strings, of each of which every match holds at least one."""
    needs: list[frozenset[str]] = []
    run = ""
    for op, argument in [*sequence, (None, None)]:
        if op is _code.LITERAL:
            run += chr(argument).lower()
            continue
        if run:
            needs.append(frozenset({run}))
            run = ""
        if op is _code.SUBPATTERN:
            needs += _needs(argument[3], rarity)
        elif op is _code.BRANCH:
            parts = [_needs(branch, rarity) for branch in argument[1]]
            if all(parts):
                needs.append(frozenset().union(*(min(part, key=rarity.of) for part in parts)))
        elif op in (_code.MAX_REPEAT, _code.MIN_REPEAT) and argument[0] > 0:
            needs += _needs(argument[2], rarity)
        elif op is _code.IN and len(argument) <= 12 and all(part[0] is _code.LITERAL for part in argument):
            needs.append(frozenset(chr(code).lower() for _, code in argument))
    return needs
