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
)
PROMPTS = {prompt.version: prompt for prompt in _PROMPTS}


def get_prompt(version: str) -> Prompt:
    try:
        return PROMPTS[version]
    except KeyError:
        raise ValueError(f"unknown prompt version {version!r}; known: {', '.join(PROMPTS)}") from None
