"""What the LLM is asked about a label. A version, once shipped with a checkpoint, never changes.

A prompt has a part before the label, the same for all labels, and a short part after it. The first is run once per
prefix and its keys and values are shared by all labels; only the label's own tokens and the second part are paid per
label. The parts are tokenised apart, so that the first is the same tokens whatever the label is.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Prompt:
    """``before`` + a space + the label + ``after``. The label is data: it goes in as it is."""

    version: str
    before: str
    after: str
    distinct: bool = False
    """Whether the LLM may write each word (token with ASCII letters) once only, none of the label's own, and no
    line break: a small LLM otherwise repeats the label."""

    def label_text(self, name: str) -> str:
        """The part that is paid per label."""
        return f" {name}{self.after}"

    def text(self, name: str) -> str:
        return self.before + self.label_text(name)


_PROMPTS = (
    Prompt(
        version="v1",
        before="Describe what is visible in a video that shows the label.\nLabel:",
        after="\nVisible attributes:",
    ),
    # Measured with SmolLM2-135M on 32 pairs such as car/automobile: is the partner the nearest of 32 after centring?
    # By the first state v1 finds it 84 to 88 % of the time, v2 97 %; by the mean of eight states 12 to 28 %, v2 72 to
    # 78 %, for under v1 it writes "car\n\nIn this example, the" and under v2 "vehicle, road, highway, city,".
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
