"""Keywords of nouns, from ``emojilib`` (MIT), filtered to words for visible objects.

A keyword is a label of every noun that has it: "puppy" of the dog, "citrus" of the lemon and the orange.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

# keywords of more nouns than this ("nature", "red") are dropped: they describe none of them well
MAX_NOUNS = 12

_WORD = re.compile(r"[a-z]+(?:[ -][a-z]+){0,2}")
_ABSTRACT = frozenset(
    re.findall(
        "[a-z]+",
        """love like good bad happy sad fun funny cool nice great best awesome amazing luck lucky congratulations
        party hot cold old new big small left right up down top bottom back forward first last next open closed
        close on off yes no ok okay hello hi bye goodbye thanks please sorry help stop go come day night morning
        evening time year month week today tomorrow summer winter spring autumn fall season monday holiday
        vacation travel trip work job home away friend friends family people person human man woman boy girl
        male female gender sign symbol emoji icon mark shape color colour red blue green yellow orange purple
        brown black white pink grey gray dark light bright shiny side face faces body nature natural world earth
        life live death dead die kill pray hope dream wish peace war fight win winner loser lose money rich poor
        cheap expensive buy sell business finance science math education school learn study read write speak
        talk say listen hear look see watch eat eating drink drinking cook cooking sleep sleeping walk run jump
        play game games sports sport music art culture religion god magic fantasy fairy tale story news
        information data internet web technology tech social media website one two three zero number numbers
        letter animal animals food foods vehicle vehicles transportation transport tool tools fruit vegetable
        plant flower building buildings clothing clothes fashion device drinks insect bird mammal japanese japan
        asian chinese china american america british english german french italian mexican indian korean country
        flag national nation ancient modern classic vintage traditional cute pretty beautiful ugly sexy hip
        crazy silly weird strange creepy scary spooky evil angry mad annoyed upset tired bored sick healthy
        health diet nutrition energy power strong strength fast slow speed quick hard soft loud quiet sweet sour
        spicy salty bitter tasty delicious yum yummy snack meal breakfast lunch dinner supper dessert
        celebration birthday anniversary christmas easter halloween thanksgiving valentines wedding romance
        romantic affection safety danger dangerous warning caution important idea think thinking smart stupid
        dumb noob lol omg wow ugh meme lit af gg bruh slang vibes mood feels the a an and or of in with for to
        from by at it is ci accomodation accordian barrell random when upon single set standard length add
        insert turn test place build guy adult instrument creature accessibility sales assist absorbing
        resources localization lounge""",
    )
)


def read_keywords(tarball: Path) -> dict[str, tuple[str, ...]]:
    with tarfile.open(tarball, "r:gz") as archive:
        handle = archive.extractfile("package/dist/emoji-en-US.json")
        assert handle is not None  # the checksum is pinned
        document: Mapping[str, Sequence[str]] = json.loads(handle.read(32 << 20))
    return {emoji: tuple(word.lower().replace("_", " ") for word in words) for emoji, words in document.items()}


def emoji_characters(image: str) -> str:  # "1f468-200d-1f33e.png" -> man farmer
    return "".join(chr(int(code, 16)) for code in image.removesuffix(".png").split("-"))


def filter_keywords(words: Iterable[str], *, known: frozenset[str]) -> tuple[str, ...]:
    """The words usable as labels: plain, not abstract, and neither equal to a word in ``known`` nor its plural."""
    selected = []
    for word in dict.fromkeys(words):
        is_plain = _WORD.fullmatch(word) and 3 <= len(word) <= 24
        is_new = not {word, word.removesuffix("s"), f"{word}s"} & known
        if is_plain and is_new and not any(part in _ABSTRACT for part in re.split("[ -]", word)):
            selected.append(word)
    return tuple(selected)


def drop_common_keywords(keywords_of: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    count = Counter(word for words in keywords_of.values() for word in set(words))
    return {noun: tuple(w for w in words if count[w] <= MAX_NOUNS) for noun, words in keywords_of.items()}
