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
        before=(
            "Write what is visible in a video for each label.\n"
            "Label: wedding\nVisible: bride, groom, white dress, flowers\n"
            "Label: surfing\nVisible: wave, surfer, board, ocean\nLabel:"
        ),
        after="\nVisible:",
        distinct=True,
    ),
)
PROMPTS = {prompt.version: prompt for prompt in _PROMPTS}


def get_prompt(version: str) -> Prompt:
    try:
        return PROMPTS[version]
    except KeyError:
        raise ValueError(f"unknown prompt version {version!r}; known: {', '.join(PROMPTS)}") from None
