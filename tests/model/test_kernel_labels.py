"""Labels by kernel regression, against transformers' own passes and the formulas in numpy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from support.kernel import kernel_config, random_tensors
from support.tiny import MAX_POSITIONS, write_llm
from vidlex.model.classifier import LabelTextError
from vidlex.model.config import KernelConfig
from vidlex.model.kernel.label_encoder import KernelLabelEncoder
from vidlex.model.kernel.prompt_states import NUM_DESCRIBED_TOKENS, PromptStates
from vidlex.model.text.encoder_decoder import FrozenEncoderDecoder
from vidlex.model.text.load_llm import load_llm
from vidlex.model.text.prompts import get_prompt
from vidlex.model.weights.cache import WeightsError
from vidlex.model.weights.llm import fetch_llm

NAMES = ["cat", "a red car", "x", "playing the violin", "snow", "été"]
Array = NDArray[np.float64]


@pytest.fixture(scope="module")
def llm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llm(tmp_path_factory.mktemp("kernel") / "llm")


def encoder_of(folder: Path, config: KernelConfig, *, is_fast: bool = True) -> KernelLabelEncoder:
    encoder = KernelLabelEncoder(load_llm(folder), config)
    tensors = random_tensors(config)
    encoder.load_state_dict({k.removeprefix("label."): v for k, v in tensors.items() if k.startswith("label.")})
    if is_fast:
        encoder.optimize_for_inference()
    return encoder


def states_by_transformers(folder: Path | str, prompts: tuple[str, ...], names: list[str]) -> torch.Tensor:
    """One pass per label and prompt over the whole text, without cache and padding."""
    llm = load_llm(Path(folder))
    out = []
    for name in names:
        for version in prompts:
            prompt = get_prompt(version)
            ids = torch.tensor([[*llm.token_ids(prompt.before), *llm.token_ids(f" {name}{prompt.after}")]])
            with torch.no_grad():
                out.append(llm.model.base_model(ids).last_hidden_state[0, -1])
    return torch.stack(out).view(len(names), len(prompts), -1)


def features_by_numpy(config: KernelConfig, tensors: dict[str, Any], states: Array) -> Array:
    t = {name.removeprefix("label."): value.double().numpy() for name, value in tensors.items()}
    rows = []
    for s in states:
        x = [(s[p] - t["state_mean"][p]) / t["state_std"][p] for p in range(len(config.prompts))]
        parts = [x[p] / np.linalg.norm(x[p]) @ t["projection"][p] for p in range(len(config.prompts))]
        a = np.concatenate(parts) / np.sqrt(len(config.prompts))
        exponent = np.array([config.state_scale / 2 * np.sum((a - b) ** 2) for b in t["landmarks"]])
        if config.kind_width:
            kind = a @ t["kinds"] / np.linalg.norm(a @ t["kinds"])
            exponent += [config.kind_scale / 2 * np.sum((kind - b) ** 2) for b in t["landmark_kinds"]]
        y = np.exp(-exponent) @ t["alpha"] + t["offset"]
        w, b, u = y[: config.num_channels], y[config.num_channels], y[config.num_channels + 1 :]
        w = config.slope * w / np.linalg.norm(w) ** config.norm_power
        b = config.bias_scale * b + config.bias_shift
        row = [*w, b / config.constant]
        if config.motion is not None:
            row += [*(u / config.motion_weight), 0]
        rows.append(np.array(row) / config.max_logit)
    return np.stack([row / max(1, np.linalg.norm(row)) for row in rows])


@pytest.mark.parametrize("is_fast", [True, False])
def test_states_are_those_of_whole_passes_alone_or_together(llm_folder: Path, is_fast: bool) -> None:
    llm = load_llm(llm_folder)
    if is_fast:
        llm.optimize_for_inference()
    prompts, seen = ("visible", "kind", "used"), []
    states = PromptStates(llm, prompts)
    together = states.states(NAMES, progress=seen.append)
    torch.testing.assert_close(together, states_by_transformers(llm_folder, prompts, NAMES), atol=1e-4, rtol=0)
    alone = torch.cat([states.states([name]) for name in NAMES])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    assert seen[-1] == len(NAMES) and states.states([]).shape == (0, 3, llm.width)


@pytest.mark.parametrize(("with_kinds", "with_motion"), [(True, True), (False, True), (True, False), (False, False)])
def test_features_are_the_formula(llm_folder: Path, with_kinds: bool, with_motion: bool) -> None:
    config = kernel_config(llm_folder, with_kinds=with_kinds, with_motion=with_motion)
    encoder = encoder_of(llm_folder, config)
    states = states_by_transformers(llm_folder, config.prompts, NAMES)
    expected = features_by_numpy(config, random_tensors(config), states.double().numpy())
    features = encoder.encode_labels(NAMES)
    assert features.shape == (len(NAMES), config.dim) == expected.shape
    np.testing.assert_allclose(features, expected, atol=2e-5)
    assert np.linalg.norm(expected, axis=1).max() < 0.999  # none was scaled down
    spread = np.abs(expected - expected.mean(axis=0)).max()
    assert spread > 0.005, "labels differ by much more than the tolerance"
    alone = np.concatenate([encoder.encode_labels([name]).numpy() for name in NAMES])
    np.testing.assert_allclose(features, alone, atol=1e-5)


def test_features_longer_than_1_are_scaled_down(llm_folder: Path) -> None:
    config = replace(kernel_config(llm_folder), max_logit=0.5)
    features = encoder_of(llm_folder, config).encode_labels(NAMES)
    states = states_by_transformers(llm_folder, config.prompts, NAMES)
    expected = features_by_numpy(config, random_tensors(config), states.double().numpy())
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(features, expected, atol=2e-5)


def test_a_landmark_is_most_similar_to_itself(llm_folder: Path) -> None:
    config = kernel_config(llm_folder)
    encoder = encoder_of(llm_folder, config)
    states = encoder.states(NAMES)
    coordinates, kinds = encoder.coordinates(states)
    assert kinds is not None and torch.allclose(kinds.norm(dim=1), torch.ones(len(NAMES)))
    encoder.landmarks.copy_(coordinates)
    encoder.landmark_kinds.copy_(kinds)
    similarities = encoder.similarities(states)
    assert torch.allclose(similarities.diagonal(), torch.ones(len(NAMES)), atol=1e-5)
    assert (similarities <= 1).all() and (similarities.argmax(dim=1) == torch.arange(len(NAMES))).all()


def test_a_label_must_fit_whole(llm_folder: Path) -> None:
    encoder = encoder_of(llm_folder, kernel_config(llm_folder))
    before = max(len(encoder.llm.shared_ids(prompt)) for prompt in encoder.prompt_states.prompts)
    after = len(b"\nVisible:")  # of the longest prompt; a token is a byte
    room = MAX_POSITIONS - 1 - before - 1 - after - NUM_DESCRIBED_TOKENS
    encoder.check_label("x" * room)
    with pytest.raises(LabelTextError, match="too long"):
        encoder.check_label("x" * (room + 1))
    with pytest.raises(LabelTextError, match="too long"):
        encoder.encode_labels(["cat", "x" * (room + 1)])
    assert encoder.encode_labels([]).shape == (0, encoder.dim)


def test_descriptions_have_the_prompts_and_what_the_model_decodes(llm_folder: Path) -> None:
    config = kernel_config(llm_folder)
    encoder = encoder_of(llm_folder, config)
    descriptions = encoder.describe_labels(NAMES)
    for name, found in zip(NAMES, descriptions, strict=True):
        assert found.prompts == tuple(get_prompt(version).text(name) for version in config.prompts)
        assert len(found.attributes) == len(config.prompts) and all(len(texts) == 1 for texts in found.attributes)
        assert encoder.describe_labels([name]) == [found]
    assert len({found.attributes for found in descriptions}) > 1 and encoder.describe_labels([]) == []


def test_an_encoder_decoder_model_is_refused() -> None:
    with pytest.raises(WeightsError, match="causal"):
        PromptStates(FrozenEncoderDecoder.__new__(FrozenEncoderDecoder), ["visible"])


@pytest.mark.parametrize(
    "changes",
    [{"rank": 0}, {"num_landmarks": 0}, {"kind_width": -1}, {"prompts": ()}, {"max_logit": 0.0}, {"slope": -1.0}],
)
def test_a_configuration_is_checked(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must|at least"):
        KernelConfig(**changes)


def test_the_default_model_knows_the_kind_of_a_thing() -> None:
    llm = load_llm(fetch_llm())
    llm.optimize_for_inference()
    states = PromptStates(llm, ("kind", "define"))
    kind, meaning = states.decoded_texts(["piano"])[0]
    assert "instrument" in kind and "instrument" in meaning
    names = ["piano", "grand piano", "hammer"]
    together = states.states(names)
    expected = states_by_transformers(fetch_llm(), ("kind", "define"), names[1:2])
    torch.testing.assert_close(together[1:2], expected, atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(together[1:2], states.states(names[1:2]), atol=1e-4, rtol=1e-4)
