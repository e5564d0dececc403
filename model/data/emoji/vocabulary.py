"""The words of the procedural world beside its nouns: scenes, actions and other ways of saying them.

The second list of each entry in ``SCENE_WORDS`` and ``ACTION_WORDS`` is kept out of every text that any training reads.
"""

from __future__ import annotations

from collections.abc import Mapping

SCENE_WORDS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "beach": (("sandy shore",), ("seaside", "coastline")),
    "forest": (("woodland",), ("timberland", "thicket")),
    "city": (("town",), ("skyscrapers", "metropolis")),
    "desert": (("dunes",), ("arid wasteland", "sahara")),
    "snowy landscape": (("snowfield",), ("icy wilderness", "glacier")),
    "underwater": (("under the sea",), ("deep ocean", "seabed")),
    "night sky": (("starry sky",), ("stargazing", "midnight")),
    "meadow": (("grassland",), ("pasture", "prairie")),
    "sunset": (("evening sun",), ("dusk", "twilight")),
    "road": (("street",), ("highway", "asphalt")),
    "living room": (("inside a house",), ("indoors", "interior")),
    "mountains": (("rocky peaks",), ("alps", "cliffs")),
}
SCENES = tuple(SCENE_WORDS)

ACTION_WORDS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "moving left": (("going left",), ("heading leftward",)),
    "moving right": (("going right",), ("heading rightward",)),
    "rising": (("going up",), ("ascending", "climbing")),
    "falling": (("going down",), ("descending", "dropping")),
    "spinning": (("turning around",), ("rotating", "whirling")),
    "swinging": (("tilting to and fro",), ("oscillating like a pendulum",)),
    "growing": (("getting larger",), ("expanding", "becoming bigger")),
    "shrinking": (("getting smaller",), ("contracting", "becoming tinier")),
    "bouncing": (("hopping",), ("leaping", "springing")),
    "blinking": (("flashing",), ("flickering", "strobing")),
    "shaking": (("trembling",), ("vibrating", "quivering")),
    "circling": (("going round in a circle",), ("orbiting", "revolving")),
    "fading in": (("becoming visible slowly",), ("materializing",)),
    "fading out": (("becoming invisible slowly",), ("dissolving",)),
    "zigzagging": (("moving in a zigzag",), ("weaving",)),
    "spiralling": (("moving in a spiral",), ("coiling outward",)),
    "appearing": (("showing up suddenly",), ("popping into view", "emerging")),
    "turning back": (("going there and returning",), ("reversing course",)),
    "flipping": (("turning over",), ("somersaulting",)),
    "stretching": (("getting wider",), ("elongating", "broadening")),
    "stopping": (("coming to rest",), ("halting", "braking")),
    "jumping once": (("making one hop",), ("single leap",)),
    "swaying": ((), ("drifting sideways back and forth",)),
    "bobbing": ((), ("floating on waves",)),
    "tumbling": ((), ("toppling",)),
    "rolling": ((), ("rolling along like a wheel",)),
    "pulsing": ((), ("throbbing", "beating")),
    "disappearing": ((), ("vanishing",)),
    "teleporting": ((), ("jumping from place to place",)),
}
"""Action -> (other ways of saying it in training, ways that no training text says)."""

ACTIONS = tuple(ACTION_WORDS)
"""What a sprite does over the whole video. None of them can be read from one frame."""

HELD_OUT_ACTIONS = ("swaying", "bobbing", "tumbling", "rolling", "pulsing", "disappearing", "teleporting")
"""Neither shown nor named in training. Most are made of things that are: tumbling is falling and spinning."""
