"""The nouns of the procedural world: name, hypernyms and keywords of each emoji.

A noun has one or several emoji ("cow" has a cow and a cow's face; "farmer" has three people). Its hypernyms come from
the subcategory in the category tree of ``emoji-datasource``. Official names that are not everyday words are replaced
("HOCHO" by "kitchen knife").
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# subcategory of the emoji -> hypernyms of all its nouns; emoji of other subcategories are not used
HYPERNYMS: Mapping[str, tuple[str, ...]] = {
    "animal-mammal": ("animal", "mammal"),
    "animal-bird": ("animal", "bird"),
    "animal-reptile": ("animal", "reptile"),
    "animal-amphibian": ("animal",),
    "animal-marine": ("animal", "sea creature"),
    "animal-bug": ("animal", "insect"),
    "plant-flower": ("plant", "flower"),
    "plant-other": ("plant",),
    "food-fruit": ("food", "fruit"),
    "food-vegetable": ("food", "vegetable"),
    "food-prepared": ("food",),
    "food-asian": ("food",),
    "food-sweet": ("food", "dessert"),
    "drink": ("drink",),
    "transport-ground": ("vehicle",),
    "transport-air": ("vehicle", "aircraft"),
    "transport-water": ("vehicle", "boat"),
    "tool": ("tool",),
    "musical-instrument": ("musical instrument",),
    "sport": ("sports equipment",),
    "clothing": ("clothing",),
    "place-building": ("building",),
    "light & video": ("device",),
    "computer": ("device",),
    "household": ("household item",),
    "science": ("device",),
    "face-costume": ("fantasy creature",),
    "person": ("person",),
    "person-role": ("person", "worker"),
    "person-fantasy": ("person", "fantasy creature"),
    "body-parts": ("body part",),
    "heart": ("heart",),
    "place-map": ("map",),
    "place-geographic": ("landmark",),
    "place-religious": ("building", "place of worship"),
    "place-other": ("landmark",),
    "sky & weather": ("weather",),
    "event": ("decoration",),
    "award-medal": ("award",),
    "game": ("toy",),
    "arts & crafts": ("craft supply",),
    "dishware": ("kitchenware",),
    "sound": ("device",),
    "music": ("device",),
    "phone": ("device", "telephone"),
    "book-paper": ("stationery",),
    "money": ("money",),
    "mail": ("mail",),
    "writing": ("stationery", "writing tool"),
    "office": ("stationery",),
    "lock": ("tool",),
    "medical": ("medical supply",),
    "other-object": ("household item",),
}

# official emoji name in lower case, without a trailing " face" -> noun
NAME_OVERRIDES: Mapping[str, str] = {
    "slice of pizza": "pizza",
    "automobile": "car",
    "recreational vehicle": "jeep",
    "articulated lorry": "lorry",
    "high-speed train": "bullet train",
    "steam locomotive": "locomotive",
    "front-facing baby chick": "baby chick",
    "hatching chick": "baby chick",
    "dromedary camel": "camel",
    "bactrian camel": "camel",
    "bear face": "bear",
    "spouting whale": "whale",
    "tropical fish": "fish",
    "black bird": "crow",
    "honeybee": "bee",
    "lady beetle": "ladybird",
    "electric light bulb": "light bulb",
    "electric torch": "flashlight",
    "left-pointing magnifying glass": "magnifying glass",
    "right-pointing magnifying glass": "magnifying glass",
    "camera with flash": "camera",
    "personal computer": "laptop",
    "drum with drumsticks": "drum",
    "musical keyboard": "piano",
    "house building": "house",
    "house with garden": "house",
    "european castle": "castle",
    "ear of maize": "corn",
    "brown mushroom": "mushroom",
    "red apple": "apple",
    "green apple": "apple",
    "kiwifruit": "kiwi",
    "tangerine": "orange",
    "bread": "loaf of bread",
    "baguette bread": "baguette",
    "soft ice cream": "ice cream",
    "shortcake": "cake",
    "fork and knife with plate": "plate",
    "steaming bowl": "noodle soup",
    "cooked rice": "bowl of rice",
    "curry and rice": "curry",
    "takeout box": "takeaway box",
    "hot beverage": "cup of coffee",
    "clinking beer mugs": "beer mug",
    "cup with straw": "cup with a straw",
    "tumbler glass": "glass of whisky",
    "evergreen tree": "pine tree",
    "deciduous tree": "tree",
    "leaf fluttering in wind": "leaf",
    "tennis racquet and ball": "tennis racket",
    "ski and ski boot": "ski",
    "basketball and hoop": "basketball",
    "cricket bat and ball": "cricket bat",
    "table tennis paddle and ball": "table tennis bat",
    "badminton racquet and shuttlecock": "badminton racket",
    "martial arts uniform": "judo suit",
    "flying disc": "frisbee",
    "carpentry saw": "saw",
    "dagger": "dagger",
    "link symbol": "chain",
    "chains": "chain",
    "balance scale": "weighing scales",
    "womans hat": "hat",
    "womans clothes": "blouse",
    "mans shoe": "shoe",
    "athletic shoe": "sneaker",
    "high-heeled shoe": "high heel",
    "womans sandal": "sandal",
    "womans boots": "boot",
    "flat shoe": "ballet flat",
    "one-piece swimsuit": "swimsuit",
    "thong sandal": "flip-flop",
    "billed cap": "baseball cap",
    "graduation cap": "graduation cap",
    "rescue worker’s helmet": "rescue helmet",
    "couch and lamp": "couch",
    "bar of soap": "soap",
    "roll of paper": "toilet paper",
    "passenger ship": "cruise ship",
    "small airplane": "airplane",
    "flying saucer": "ufo",
    "front-facing baby": "baby chick",
    "computer mouse": "computer mouse",
    "optical disc": "compact disc",
    "dvd": "compact disc",
    "minidisc": "minidisc",
    "desktop computer": "computer monitor",
    "clapper board": "clapperboard",
    "izakaya lantern": "paper lantern",
    "satellite antenna": "satellite dish",
    "dna double helix": "dna helix",
    "t-rex": "tyrannosaurus",
    "sauropod": "brontosaurus",
    "rice cracker": "rice cracker",
    "cherries": "cherry",
    "aubergine": "eggplant",
    "police car": "police car",
    "oncoming police car": "police car",
    "oncoming bus": "bus",
    "oncoming taxi": "taxi",
    "oncoming automobile": "car",
    "delivery truck": "truck",
    "motor boat": "motorboat",
    "goat": "goat",
    "ram": "sheep",
    "service dog": "dog",
    "guide dog": "dog",
    "wilted flower": "rose",
    "hocho": "kitchen knife",
    "black scissors": "scissors",
    "wrapped present": "gift box",
    "heavy black heart": "red heart",
    "guardsman": "royal guard",
    "bride with veil": "bride",
    "father christmas": "santa claus",
    "mother christmas": "mrs claus",
    "mx claus": "santa claus",
    "mage": "wizard",
    "merman": "mermaid",
    "merperson": "mermaid",
    "pregnant man": "pregnant person",
    "pregnant woman": "pregnant person",
    "extraterrestrial alien": "alien",
    "pile of poo": "poop",
    "direct hit": "dartboard",
    "moyai": "stone statue",
    "hundred points symbol": "hundred points",
    "black telephone": "telephone",
    "headphone": "headphones",
    "e-mail symbol": "envelope",
    "incoming envelope": "envelope",
    "envelope with downwards arrow above": "envelope",
    "closed mailbox with lowered flag": "mailbox",
    "closed mailbox with raised flag": "mailbox",
    "open mailbox with raised flag": "mailbox",
    "open mailbox with lowered flag": "mailbox",
    "speaker with cancellation stroke": "loudspeaker",
    "speaker": "loudspeaker",
    "speaker with one sound wave": "loudspeaker",
    "speaker with three sound waves": "loudspeaker",
    "bell with cancellation stroke": "bell",
    "black spade suit": "spade suit",
    "black club suit": "club suit",
    "black heart suit": "red heart",
    "black diamond suit": "diamond suit",
    "umbrella with rain drops": "umbrella",
    "closed umbrella": "umbrella",
    "umbrella on ground": "beach umbrella",
    "snowman without snow": "snowman",
    "black sun with rays": "sun",
    "sun with": "sun",
    "full moon symbol": "full moon",
    "full moon with": "full moon",
    "waxing crescent moon symbol": "crescent moon",
    "waning crescent moon symbol": "crescent moon",
    "first quarter moon with": "crescent moon",
    "last quarter moon with": "crescent moon",
    "first quarter moon symbol": "half moon",
    "last quarter moon symbol": "half moon",
    "white medium star": "star",
    "glowing star": "star",
    "high voltage sign": "lightning bolt",
    "black nib": "pen nib",
    "earth globe europe-africa": "globe",
    "earth globe americas": "globe",
    "earth globe asia-australia": "globe",
    "round pushpin": "pushpin",
    "tear-off calendar": "calendar",
    "spiral calendar": "calendar",
    "closed lock with key": "padlock",
    "lock with ink pen": "padlock",
    "lock": "padlock",
    "open lock": "padlock",
    "old key": "key",
    "open file folder": "file folder",
    "admission tickets": "ticket",
    "rolled-up newspaper": "newspaper",
    "bookmark tabs": "bookmark",
    "kissing": "kiss",
    "left speech bubble": "speech bubble",
    "playing card black joker": "joker card",
    "mahjong tile red dragon": "mahjong tile",
    "jigsaw puzzle piece": "puzzle piece",
    "public address loudspeaker": "megaphone",
    "cheering megaphone": "megaphone",
    "studio microphone": "microphone",
    "mobile phone with rightwards arrow at left": "mobile phone",
    "notebook with decorative cover": "notebook",
    "page with curl": "sheet of paper",
    "page facing up": "sheet of paper",
    "straight ruler": "ruler",
    "anatomical heart": "human heart",
    "linked paperclips": "paperclip",
}

# emoji without a single object, of a scene, or that differ from another only in a small mark
EXCLUDED_NAMES = frozenset(
    word.strip()
    for word in """desert|beach with umbrella|national park|foggy|night with stars|sunrise over mountains|sunrise
    |cityscape|cityscape at dusk|sunset over buildings|bridge at night|hot springs|milky way|new moon symbol
    |new moon with|fog|wind|waxing gibbous moon symbol|waning gibbous moon symbol|sun behind large cloud|dotted line
    |silhouette of japan|heart exclamation|heart decoration|revolving hearts|growing heart|beating heart
    |person: red hair|person: curly hair|person: bald|person: white hair|chart with upwards trend and yen sign|label
    |smoking symbol|railway track|motorway|airplane departure|airplane arriving|tokyo tower|silhouette
    |moon viewing ceremony|level slider|control knobs|person with folded hands|adult|child|older adult|anger symbol
    |musical note|multiple musical notes|person with crown|high-speed train with bullet nose|breast-feeding
    |person feeding baby|seat|biting lip|rock|wood|window|elevator
    """.replace("\n", "").split("|")
)

_GENDERED = re.compile(r"(?:wo)?m[ae]n (?:with |in )?(?=[a-z])")
_DETAIL_SUFFIX = re.compile(r" facing right$| face$")


@dataclass(frozen=True)
class Noun:
    name: str
    hypernyms: tuple[str, ...]
    images: tuple[str, ...]  # file names such as ``1f415.png``, the same in every art style
    keywords: tuple[str, ...] = ()


def build_nouns(
    emoji: Sequence[Mapping[str, Any]],
    styles: Sequence[str],
    *,
    has_image: Callable[[str], bool] = lambda image: True,
    keywords: Callable[[str], Sequence[str]] = lambda image: (),
) -> tuple[Noun, ...]:
    """Nouns from the parsed ``emoji.json``, sorted by name; those with an image in every style.

    ``has_image``: whether the styles that are not in the file have the image; ``keywords``: the keywords of an image.
    Raises ValueError if the file has none of the expected subcategories (its format changed).
    """
    images_of: dict[str, tuple[tuple[str, ...], list[str]]] = {}
    for entry in sorted(emoji, key=lambda e: int(e["sort_order"])):
        hypernyms = HYPERNYMS.get(entry["subcategory"])
        image = str(entry["image"])
        name = noun_name(str(entry["name"]))
        if hypernyms is None or name in EXCLUDED_NAMES or not has_image(image):
            continue
        if not all(entry.get(f"has_img_{style}") for style in styles):
            continue
        images_of.setdefault(name, (hypernyms, []))[1].append(image)
    if not images_of:
        raise ValueError("no usable emoji: emoji.json has none of the expected subcategories")
    return tuple(
        Noun(name, hypernyms, tuple(images), tuple(dict.fromkeys(word for image in images for word in keywords(image))))
        for name, (hypernyms, images) in sorted(images_of.items())
    )


def noun_name(emoji_name: str) -> str:  # "WOMAN FARMER" -> "farmer", "COW FACE" -> "cow"
    name = _DETAIL_SUFFIX.sub("", emoji_name.lower())
    name = NAME_OVERRIDES.get(name, name)
    bare = _GENDERED.sub("", name, count=1) if _GENDERED.match(name) else name
    return NAME_OVERRIDES.get(bare, bare)
