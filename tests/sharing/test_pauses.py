"""The encoders pause between the steps of a long pass, and nothing that is done then changes a bit of the result."""

from __future__ import annotations

import numpy as np
import pytest

from vidlex.model.factory import load_classifier
from vidlex.model.video.pauses import at_pauses


@pytest.mark.parametrize("spec", ["emoji-small", "photo-small"])
def test_a_pass_that_is_interrupted_gives_the_same_bits(spec: str) -> None:
    classifier = load_classifier(spec, device="cpu", precision="auto")
    side = classifier.geometry.image_size
    rng = np.random.default_rng(0)
    long, short = (rng.integers(0, 256, (num, side, side, 3), np.uint8) for num in (40, 3))
    expected_long, expected_short = classifier.encode_video([long]), classifier.encode_video([short])
    between = []

    def encode_another() -> None:
        with at_pauses(None):
            between.append(classifier.encode_video([short]))

    with at_pauses(encode_another):
        np.testing.assert_array_equal(classifier.encode_video([long]), expected_long)
    assert len(between) >= 10
    for vectors in between:
        np.testing.assert_array_equal(vectors, expected_short)
    num_pauses = len(between)
    classifier.encode_video([long])
    assert len(between) == num_pauses, "not outside of the context"
