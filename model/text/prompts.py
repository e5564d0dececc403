"""Prompts of the LLM. A version never changes once a checkpoint with it has been released.

The part before the label is the same for all labels: it is run once per prefix, and its keys and values are shared.
The label and the part after it are run per label. Both are tokenised separately, so that the tokens of the first do
not depend on the label.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Prompt:
    version: str
    before: str
    after: str
    # decode each word (token with ASCII letters) at most once, none of the label's words and no line break: a small LLM
    # otherwise repeats the label
    distinct: bool = False

    def label_text(self, name: str) -> str:
        return f" {name}{self.after}"

    def text(self, name: str) -> str:
        return self.before + self.label_text(name)


_VISIBLE = (
    "Write what is visible in a video for each label.\n"
    "Label: wedding\nVisible: bride, groom, white dress, flowers\n"
    "Label: surfing\nVisible: wave, surfer, board, ocean\nLabel:"
)

_PROMPTS = (
    Prompt(
        version="v1",
        before="Describe what is visible in a video that shows the label.\nLabel:",
        after="\nVisible attributes:",
    ),
    # Measured with SmolLM2-135M on 32 pairs such as car/automobile: how often the partner is the nearest of 32 after
    # centring. First state: v1 84 to 88 %, v2 97 %. Mean of eight states: v1 12 to 28 %, v2 72 to 78 %: with v1 the LLM
    # decodes "car\n\nIn this example, the", with v2 "vehicle, road, highway, city,".
    Prompt(
        version="v2",
        before=_VISIBLE,
        after="\nVisible:",
        distinct=True,
    ),
    # Ten views of a label, for regression from their first states.
    Prompt("visible", _VISIBLE, "\nVisible:", distinct=True),
    Prompt(
        "kind",
        "Write what kind of thing each word means.\n"
        "Word: trout\nKind: fish, animal\n"
        "Word: screwdriver\nKind: hand tool, device\nWord:",
        "\nKind:",
        distinct=True,
    ),
    Prompt(
        "place",
        "Write where each thing is seen.\n"
        "Thing: violin\nPlace: concert hall, orchestra, music room\n"
        "Thing: seagull\nPlace: beach, harbor, sky over the sea\nThing:",
        "\nPlace:",
        distinct=True,
    ),
    Prompt(
        "looks",
        "Write how each thing looks.\n"
        "Thing: lemon\nLooks: small, round, yellow, smooth\n"
        "Thing: fire engine\nLooks: large, red, shiny, with a ladder\nThing:",
        "\nLooks:",
        distinct=True,
    ),
    Prompt(
        "parts",
        "Write the visible parts of each thing.\n"
        "Thing: bicycle\nParts: two wheels, frame, pedals, handlebars\n"
        "Thing: owl\nParts: large eyes, beak, feathers, wings\nThing:",
        "\nParts:",
        distinct=True,
    ),
    Prompt(
        "similar",
        "Write things that look similar to each thing.\n"
        "Thing: cello\nSimilar: violin, guitar, double bass\n"
        "Thing: wolf\nSimilar: dog, coyote, fox\nThing:",
        "\nSimilar:",
        distinct=True,
    ),
    Prompt(
        "define",
        "Define each word.\n"
        "Word: kayak\nMeaning: a small narrow boat moved with a double paddle\n"
        "Word: raven\nMeaning: a large black bird of the crow family\nWord:",
        "\nMeaning:",
        distinct=True,
    ),
    Prompt(
        "photo",
        "Write a caption for a photo of each thing.\n"
        "Thing: tulip\nCaption: red and yellow flowers in a garden in spring\n"
        "Thing: tram\nCaption: a long vehicle on rails in a city street\nThing:",
        "\nCaption:",
        distinct=True,
    ),
    Prompt(
        "belongs",
        "Write the group that each thing belongs to.\n"
        "Thing: poodle\nGroup: dog, mammal, animal\n"
        "Thing: armchair\nGroup: chair, furniture, artifact\nThing:",
        "\nGroup:",
        distinct=True,
    ),
    Prompt(
        "used",
        "Write what each thing does or is used for.\n"
        "Thing: kettle\nUse: boiling water for tea in the kitchen\n"
        "Thing: eagle\nUse: flying and hunting for small animals\nThing:",
        "\nUse:",
        distinct=True,
    ),
)
PROMPTS = {prompt.version: prompt for prompt in _PROMPTS}


def get_prompt(version: str) -> Prompt:
    try:
        return PROMPTS[version]
    except KeyError:
        raise ValueError(f"unknown prompt version {version!r}; known: {', '.join(PROMPTS)}") from None
