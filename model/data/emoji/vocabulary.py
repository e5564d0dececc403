"""The words of the procedural world: nouns (sprites), their hypernyms, scenes and actions.

A noun is drawn by one or several emoji ("cow" has a whole cow and a cow's face). Its hypernyms come from the
emoji's subcategory in the category tree of ``emoji-datasource``. Names are cleaned by hand where the official
name is not what a person would call the thing ("aubergine" stays, "HOCHO" becomes "kitchen knife").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
}
"""Subcategory of the emoji -> hypernyms of all its nouns. Only these subcategories are drawn."""

RENAMED: Mapping[str, str] = {
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
}
"""Official emoji name in lower case, without a trailing " face" -> the noun it draws."""

DROPPED = frozenset(
    word.strip()
    for word in """paw prints|pig nose|feather|wing|spider web|microbe|nest with eggs|empty nest|cooking|pot of food
    |shallow pan of food|cut of meat|canned food|bowl with spoon|flatbread|stuffed flatbread|tamale|fondue
    |railway car|light rail|station|tram car|bus stop|horizontal traffic light|construction sign|wheel
    |police cars revolving light|octagonal sign|oil drum|motorway|railway track|mountain railway|metro|tram
    |high-speed train with bullet nose|seat|suspension railway|mountain cableway|aerial tramway|phoenix|dodo
    |airplane departure|airplane arriving|bomb|compression|clamp|probing cane|hammer and wrench|gear
    |hammer and pick|nut and bolt|broken chain|baby|running shirt with sash|flag in hole|goal net|bowling|shower
    |fishing pole and fish|womans flat shoe|prayer beads|gem stone|lipstick|ring|hair pick|purse|pouch
    |elevator|window|mouse trap|bubbles|safety pin|plunger|building construction|houses|derelict house
    |japanese post office|european post office|bank|hotel|love hotel|convenience store|school|department store
    |japanese castle|wedding|tokyo tower|hut|brick|rock|wood|rosette|white flower|blossom|hyacinth
    |ear of rice|herb|shamrock|fallen leaf|leafless tree|rice ball|dango|oden|fried shrimp|moon cake|seedling
    |fish cake with swirl design|roasted sweet potato|fortune cookie|pouring liquid|ice cube|mate drink
    |sake bottle and cup|teacup without handle|clinking glasses|bottle with popping cork|shaved ice|custard
    |film frames|movie camera|film projector|diya lamp|floppy disk|trackball|low battery|minidisc|electric plug
    |petri dish|alembic|ring buoy|anchor|canoe|root vegetable|beans|ginger root|leafy green|pea pod|olive
    |spiral shell|oyster|coral|blowfish|dragon|beetle|bug|fly|trolleybus|minibus|monorail|auto rickshaw
    |motorized wheelchair|manual wheelchair|folding hand fan|helmet with white cross|shopping bags
    |field hockey stick and ball|lacrosse stick and ball|softball|rugby football|sled|stadium|hook|ladder
    |loaf of bread|falafel|green salad|butter|salt shaker|water buffalo|bison|badger|beaver|musical note
    |test tube|dna double helix|sponge|basket|lab coat|safety vest|briefs|sari|hiking boot|ballet shoes|thong
    |classical building|wood|statue of liberty|jeans shorts|lotus|bouquet|rice cracker|bento box
    |meat on bone|custard|candy|video camera|videocassette|computer mouse|abacus|vertical traffic light|fuel pump
    |satellite|beverage box|tropical drink|judo suit|flying disc|ant|mosquito|worm|cockroach|hyacinth|four leaf clover
    """.replace("\n", "").split("|")
)
"""Emoji whose noun is not one clear visible thing, or that differ little from another at 64 pixels."""

SCENES = ("beach", "forest", "city", "desert", "snowy landscape", "underwater", "night sky", "meadow")

ACTIONS = (
    "moving left",
    "moving right",
    "rising",
    "falling",
    "spinning",
    "swinging",
    "growing",
    "shrinking",
    "bouncing",
    "blinking",
    "shaking",
    "circling",
)
"""What a sprite does over the whole video. None of them can be read from one frame."""


@dataclass(frozen=True)
class Noun:
    """One thing of the world."""

    name: str
    hypernyms: tuple[str, ...]
    images: tuple[str, ...]
    """File names of the sprites, alike in every art style, such as ``1f415.png``."""


def build_nouns(emoji: Sequence[Mapping[str, Any]], styles: Sequence[str]) -> tuple[Noun, ...]:
    """Nouns from the parsed ``emoji.json``, sorted by name: only those that every style draws.

    Raises ValueError when the file has none of the expected subcategories (a changed format).
    """
    found: dict[str, tuple[tuple[str, ...], list[str]]] = {}
    for entry in sorted(emoji, key=lambda e: int(e["sort_order"])):
        hypernyms = HYPERNYMS.get(entry["subcategory"])
        official = str(entry["name"]).lower()
        name = official.removesuffix(" face")
        if hypernyms is None or name in DROPPED or official in DROPPED:
            continue
        if not all(entry.get(f"has_img_{style}") for style in styles):
            continue
        name = RENAMED.get(name, name)
        found.setdefault(name, (hypernyms, []))[1].append(str(entry["image"]))
    if not found:
        raise ValueError("no usable emoji: emoji.json has none of the expected subcategories")
    return tuple(Noun(name, hyper, tuple(images)) for name, (hyper, images) in sorted(found.items()))


def all_labels(nouns: Sequence[Noun]) -> tuple[str, ...]:
    """Every label of the world in its fixed order: nouns, hypernyms, scenes, actions. No duplicates."""
    names = [noun.name for noun in nouns]
    hypernyms = sorted({h for noun in nouns for h in noun.hypernyms} - set(names))
    return (*names, *hypernyms, *SCENES, *ACTIONS)
