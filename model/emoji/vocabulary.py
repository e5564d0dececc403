"""The words of the procedural world other than nouns: scenes, actions and their synonyms.

``SCENE_WORDS`` and ``ACTION_WORDS`` map a name to its synonyms in training and those held out of all training texts.
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
    "moving left": (("going left", "sliding to the left", "passing from right to left"), ("heading leftward",)),
    "moving right": (("going right", "sliding to the right", "passing from left to right"), ("heading rightward",)),
    "rising": (("going up", "moving upward", "lifting off", "soaring"), ("ascending", "climbing")),
    "falling": (("going down", "moving downward", "sinking", "plunging"), ("descending", "dropping")),
    "spinning": (("turning around", "twirling", "going round and round"), ("rotating", "whirling")),
    "swinging": (("tilting to and fro", "rocking", "tipping left and right"), ("oscillating like a pendulum",)),
    "growing": (("getting larger", "increasing in size", "inflating"), ("expanding", "becoming bigger")),
    "shrinking": (("getting smaller", "decreasing in size", "deflating"), ("contracting", "becoming tinier")),
    "bouncing": (("hopping", "hopping up and down", "bounding again and again"), ("leaping", "springing")),
    "blinking": (("flashing", "going on and off", "winking"), ("flickering", "strobing")),
    "shaking": (("trembling", "jittering", "shivering"), ("vibrating", "quivering")),
    "circling": (("going round in a circle", "travelling in a ring", "looping"), ("orbiting", "revolving")),
    "fading in": (("becoming visible slowly", "gradually coming into sight"), ("materializing",)),
    "fading out": (("becoming invisible slowly", "gradually going out of sight"), ("dissolving",)),
    "zigzagging": (("moving in a zigzag", "slaloming", "swerving again and again"), ("weaving",)),
    "spiralling": (("moving in a spiral", "winding round in growing circles"), ("coiling outward",)),
    "appearing": (("showing up suddenly", "coming out of nowhere"), ("popping into view", "emerging")),
    "turning back": (("going there and returning", "making a round trip"), ("reversing course",)),
    "flipping": (("turning over", "showing its other side"), ("somersaulting",)),
    "stretching": (("getting wider", "widening", "being pulled apart"), ("elongating", "broadening")),
    "stopping": (("coming to rest", "coming to a standstill"), ("halting", "braking")),
    "jumping once": (("making one hop", "going up once and landing"), ("single leap",)),
    "moving diagonally": (("going at a slant", "sliding from corner to corner"), ("traversing obliquely",)),
    "shuttling": (("moving to and fro at a slant", "going there and back again and again"), ("commuting",)),
    "arching": (("flying in an arc", "being thrown"), ("tracing a parabola",)),
    "turning a corner": (("going round a corner", "changing its way at a right angle"), ("veering",)),
    "setting off": (("starting to move", "leaving after a rest"), ("departing",)),
    "speeding up": (("moving faster and faster", "gaining speed"), ("accelerating",)),
    "going upstairs": (("moving up in steps", "rising step by step"), ("mounting a staircase",)),
    "going in jerks": (("moving by fits and starts", "advancing step by step"), ("lurching",)),
    "ducking": (("going down once and coming up again", "making one dip"), ("crouching",)),
    "hopping along": (("moving on in hops", "skipping along"), ("galloping",)),
    "waddling": (("tilting to and fro on its way", "rocking along"), ("shuffling along",)),
    "wobbling": (("rocking and sliding to and fro", "staggering"), ("teetering",)),
    "fluttering down": (("falling and tilting to and fro", "falling like a leaf"), ("parachuting",)),
    "twirling upward": (("rising and spinning", "going up in a twirl"), ("corkscrewing skyward",)),
    "twirling larger": (("growing and spinning", "getting larger in a twirl"), ("unfurling",)),
    "twirling away": (("shrinking and spinning", "getting smaller in a twirl"), ("going down the drain",)),
    "flying away": (("rising and shrinking", "getting smaller on its way up"), ("receding",)),
    "coming down on us": (("falling and growing", "getting larger on its way down"), ("looming",)),
    "turning upside down": (("ending the wrong way up", "turning by half"), ("inverting", "capsizing")),
    "twisting there and back": (("turning one way and then the other", "winding and unwinding"), ("untwisting",)),
    "narrowing": (("getting thinner", "being squeezed"), ("slimming", "tapering")),
    "being kneaded": (("getting wider and thinner again and again", "stretching to and fro"), ("undulating",)),
    "swelling once": (("growing and shrinking back", "getting larger for a moment"), ("bulging",)),
    "growing suddenly": (("getting larger all at once", "puffing up"), ("ballooning",)),
    "shrinking suddenly": (("getting smaller all at once", "caving in"), ("collapsing",)),
    "glimmering": (("fading in and out again and again", "shining now more and now less"), ("shimmering",)),
    "showing briefly": (("being visible for a moment", "flashing once"), ("peeking",)),
    "hiding briefly": (("being invisible for a moment", "going out and coming on again"), ("eclipsing",)),
    "swaying": ((), ("drifting sideways back and forth",)),
    "bobbing": ((), ("floating on waves",)),
    "tumbling": ((), ("toppling",)),
    "rolling": ((), ("rolling along like a wheel",)),
    "pulsing": ((), ("throbbing", "beating")),
    "disappearing": ((), ("vanishing",)),
    "teleporting": ((), ("jumping from place to place",)),
}

# motions over the whole video; none is recognisable from one frame
ACTIONS = tuple(ACTION_WORDS)

# neither shown nor named in training; most combine trained actions: tumbling is falling and spinning
HELD_OUT_ACTIONS = ("swaying", "bobbing", "tumbling", "rolling", "pulsing", "disappearing", "teleporting")
