"""The label encoder on a tiny LLM: all paths agree, and only what is learned gets a gradient."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from support.tiny import EMBED_DIM, LLM_WIDTH, MAX_POSITIONS, tiny_clip, tiny_clip_text, write_llm
from vidlex.model.classifier import LabelTextError
from vidlex.model.config import LabelEncoderConfig
from vidlex.model.extensions import name_trust
from vidlex.model.extensions.name_trust import fuse_with_names
from vidlex.model.text import label_encoder as module
from vidlex.model.text.clip_text import ClipText
from vidlex.model.text.label_encoder import LabelEncoder
from vidlex.model.text.load_llm import load_llm
from vidlex.model.text.prompts import PROMPTS, get_prompt

CONFIG = LabelEncoderConfig(
    num_prefixes=3,
    num_attributes=2,
    tokens_per_attribute=3,
    prompting_width=16,
    prompting_layers=1,
    prompting_heads=2,
    prompt_version="v1",
)
NAMES = ["x", "golden retriever", "a man is riding a very old bicycle", "cat", "spinning"]


@pytest.fixture(scope="module")
def llm_folder(tmp_path_factory):
    return write_llm(tmp_path_factory.mktemp("llm"))


@pytest.fixture(scope="module")
def llm(llm_folder):
    return load_llm(llm_folder)


def build(llm, **changes) -> LabelEncoder:
    return LabelEncoder(llm, tiny_clip_text(), replace(CONFIG, **changes)).eval()


@pytest.fixture
def encoder(llm):
    return build(llm)


def naive_states(encoder: LabelEncoder, name: str, prefix: int, soft: bool = False) -> torch.Tensor:
    """[K * L, d] states that predict each token, by definition: without cache and batch."""
    llm, prompt = encoder.llm, encoder.prompt
    ids = llm.shared_ids(prompt) + llm.label_ids(prompt, name, CONFIG.num_decoded)
    x = torch.cat((encoder.prefixes[prefix : prefix + 1], llm.embedding(torch.tensor(ids))))
    states, used = [], llm.label_ids(prompt, name, CONFIG.num_decoded)
    for _ in range(CONFIG.num_decoded):
        out = llm.model(inputs_embeds=x[None], use_cache=False, output_hidden_states=True)
        states.append(out.hidden_states[-1][0, -1])
        logits = out.logits[0, -1].index_fill(0, torch.tensor(llm.tokenizer.all_special_ids), float("-inf"))
        if prompt.distinct:
            logits[[i for i in range(len(logits)) if "\n" in llm.tokenizer.decode([i])]] = float("-inf")
            logits[[i for i in used if llm.tokenizer.decode([i]).strip().isalpha()]] = float("-inf")
        feedback = logits.softmax(0) @ llm.embedding.weight if soft else llm.embedding.weight[logits.argmax()]
        x = torch.cat((x, feedback[None]))
        used.append(int(logits.argmax()))
    return torch.stack(states)


@pytest.mark.parametrize("prompt_version", ["v1", "v2"])
@pytest.mark.parametrize("feedback", ["greedy", "soft"])
def test_all_paths_give_the_states_of_the_definition(llm, llm_folder, feedback, prompt_version):
    if feedback == "soft":  # in float32, rounding errors of the continuous feedback grow with every step
        llm = load_llm(llm_folder, dtype=torch.float64)
    encoder = build(llm, feedback=feedback, prompt_version=prompt_version).to(llm.dtype)
    with torch.no_grad():
        serving = encoder.soft_attributes(NAMES)
        expected = torch.stack(
            [torch.stack([naive_states(encoder, n, p, feedback == "soft") for p in range(3)]) for n in NAMES]
        ).float()
    training = encoder.soft_attributes(NAMES)
    assert serving.shape == (len(NAMES), 3, 2, 3, LLM_WIDTH)
    assert training.requires_grad and not serving.requires_grad
    torch.testing.assert_close(serving.flatten(2, 3), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(training.detach(), serving, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(encoder.cache_states(NAMES), serving, atol=1e-5, rtol=1e-4)


def test_the_tiny_llm_decodes_different_texts(encoder):
    texts = encoder.decoded_text(NAMES)
    assert [len(t) for t in texts] == [6] * len(NAMES)  # N * K texts
    assert len({tuple(t) for t in texts}) > 1  # otherwise equal paths would prove little
    assert "<eos>" not in str(texts) and "<ctl>" not in str(texts)


def test_descriptions_have_the_prompt_and_the_texts_of_each_prefix(encoder):
    descriptions = encoder.describe_labels(NAMES)
    for name, texts, description in zip(NAMES, encoder.decoded_text(NAMES), descriptions, strict=True):
        assert description.prompts == (encoder.prompt.text(name),) and name in description.prompts[0]
        assert len(description.attributes) == encoder.config.num_prefixes
        assert [text for prefix in description.attributes for text in prefix] == texts
    with pytest.raises(LabelTextError):
        encoder.describe_labels(["word " * 200])


def test_a_distinct_prompt_decodes_each_word_at_most_once(llm):
    encoder = build(llm, prompt_version="v2", num_attributes=1, tokens_per_attribute=40)
    for name, texts in zip(NAMES, encoder.decoded_text(NAMES), strict=True):
        for text in texts:  # a token of the tiny LLM is a byte, so a word is a letter
            letters = [c for c in text if c.isascii() and c.isalpha()]
            assert len(letters) == len(set(letters)) and "\n" not in text
            assert not set(letters) & set(name + encoder.prompt.after)


@torch.no_grad()
def test_a_batch_equals_one_by_one(encoder, monkeypatch):
    batch = encoder.encode_labels(NAMES)
    assert batch.dtype == torch.float32 and batch.shape == (len(NAMES), EMBED_DIM)
    torch.testing.assert_close(torch.cat([encoder.encode_labels([n]) for n in NAMES]), batch, atol=1e-5, rtol=0)
    monkeypatch.setattr(module, "MAX_ROWS_CPU", 6)  # two labels a pass
    torch.testing.assert_close(encoder.encode_labels(NAMES), batch, atol=1e-5, rtol=0)
    assert encoder.encode_labels([]).shape == (0, EMBED_DIM)
    assert (batch.norm(dim=1) < 1).all()
    torch.testing.assert_close(
        encoder.forward_from_states(NAMES, encoder.cache_states(NAMES)), batch, atol=1e-5, rtol=0
    )


def test_gradient_reaches_only_learned_parameters(llm):
    clip, tokenizer = tiny_clip()
    encoder = LabelEncoder(llm, ClipText(clip, tokenizer), CONFIG).train()
    encoder(NAMES).pow(2).sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert (encoder.prefixes.grad.norm(dim=1) > 0).all()
    assert {n.split(".")[0] for n, _ in encoder.named_parameters()} == {"prefixes", "prompting"}
    frozen = [
        *llm.model.named_parameters(),
        *clip.transformer.named_parameters(),
        ("text", clip.token_embedding.weight),
    ]
    assert [n for n, p in frozen if p.grad is not None or p.requires_grad] == []
    assert not llm.model.training and not clip.transformer.training


def test_the_gradient_of_the_prefixes_equals_that_of_the_definition(encoder):
    encoder.soft_attributes(["cat"])[0, 1].sum().backward()
    shared = encoder.prefixes.grad.clone()
    encoder.prefixes.grad = None
    # decoded tokens are constants, so the definition's graph has the same derivative
    naive_states(encoder, "cat", 1).sum().backward()
    torch.testing.assert_close(encoder.prefixes.grad, shared, atol=1e-4, rtol=1e-3)
    assert shared[0].abs().sum() == 0


def test_frozen_prefixes_take_the_serving_path(encoder):
    encoder.prefixes.requires_grad_(False)
    assert not encoder.soft_attributes(NAMES).requires_grad
    assert encoder(NAMES).requires_grad  # to the prompting transformer


@torch.no_grad()
def test_changed_prefixes_invalidate_the_shared_prompt(encoder, llm):
    before = encoder.encode_labels(NAMES)
    encoder.prefixes.data.neg_()
    after = encoder.encode_labels(NAMES)
    assert (after - before).abs().max() > 1e-3
    restored = build(llm)
    restored.load_state_dict(encoder.trainable_state_dict())
    torch.testing.assert_close(restored.encode_labels(NAMES), after, atol=1e-6, rtol=0)


@torch.no_grad()
def test_the_state_is_complete_without_frozen_weights(llm):
    first, second = build(llm), build(llm, seed=7)
    first.fit_statistics(first.cache_states(NAMES))
    assert not torch.equal(first.prefixes, second.prefixes)
    state = first.trainable_state_dict()
    assert {name.split(".")[0] for name in state} == {"prefixes", "prompting", "state_mean", "state_std"}
    second.load_state_dict(state)
    assert torch.equal(first.encode_labels(NAMES), second.encode_labels(NAMES))
    assert torch.equal(build(llm).prefixes, build(llm).prefixes)  # same seed


@torch.no_grad()
def test_fit_statistics_centres_the_states(encoder):
    states = encoder.cache_states(NAMES)
    encoder.fit_statistics(states)
    centred = (states - encoder.state_mean) / encoder.state_std
    torch.testing.assert_close(centred.mean(dim=0), torch.zeros_like(centred[0]), atol=1e-4, rtol=0)
    assert 0.9 < float(centred.std()) < 1.1


@torch.no_grad()
def test_with_name_adds_the_name_to_the_mean(llm):
    plain, with_name = build(llm), build(llm, with_name=True)
    with torch.no_grad():
        name = torch.nn.functional.normalize(plain.clip_text.encode(NAMES), dim=-1)
    count = plain.config.num_prefixes * plain.config.num_attributes
    expected = (count * plain.encode_labels(NAMES) + name) / (count + 1)
    torch.testing.assert_close(with_name.encode_labels(NAMES), expected, atol=1e-6, rtol=1e-5)


def test_fused_similarities_match_values_computed_by_hand():
    """Cosines 1, 0.85, 0.7 and -1 with trust 0.5 give the frame mean a weight of 0.5, 0.25, 0 and 0."""
    angle = torch.tensor([0.0, math.acos(0.85), math.acos(0.7), math.pi])
    features = 0.8 * torch.stack((angle.cos(), angle.sin()), dim=1)
    names = torch.tensor([[3.0, 0.0]]).expand(4, 2)  # of any length
    branch, frame_mean = torch.tensor([0.0, 1.0]), torch.tensor([0.6, 0.8])
    video = torch.cat((branch, frame_mean)) / 2**0.5
    weight = torch.tensor([0.5, 0.25, 0.0, 0.0])
    expected = (1 - weight) * (features @ branch) + weight * 0.8 * 0.6
    torch.testing.assert_close(fuse_with_names(features, names, 0.5) @ video, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_all_paths_apply_name_trust(llm, monkeypatch):
    monkeypatch.setattr(name_trust, "AGREEMENT", -1.0)  # untrained features do not agree with CLIP's
    plain, fused = build(llm), build(llm, name_trust=1.0)
    expected = fuse_with_names(plain.encode_labels(NAMES), plain.clip_text.encode(NAMES), 1.0)
    assert expected.shape == (len(NAMES), 2 * EMBED_DIM) and (expected[:, EMBED_DIM:].norm(dim=1) > 0.01).all()
    torch.testing.assert_close(fused.encode_labels(NAMES), expected, atol=1e-5, rtol=1e-4)
    states = fused.cache_states(NAMES)
    torch.testing.assert_close(fused.forward_from_states(NAMES, states), expected, atol=1e-5, rtol=1e-4)
    assert fused.encode_labels([]).shape == fused([]).shape == (0, 2 * EMBED_DIM)
    with pytest.raises(ValueError, match="name_trust"):
        LabelEncoderConfig(name_trust=1.5)


def test_renormalize_only_changes_the_length(llm):
    plain, unit = build(llm).encode_labels(NAMES), build(llm, renormalize=True).encode_labels(NAMES)
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(len(NAMES)), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.nn.functional.normalize(plain, dim=1), unit, atol=1e-5, rtol=0)


@torch.no_grad()
def test_initial_soft_tokens_have_the_length_of_token_embeddings(encoder):
    out = encoder.prompting(torch.randn(5, 3, LLM_WIDTH))
    words = encoder.clip_text.token_embedding.norm(dim=1).mean()
    torch.testing.assert_close(out.norm(dim=-1), words.expand(5, 3), rtol=1e-3, atol=0)


def test_labels_that_do_not_fit_are_rejected_before_encoding(encoder, monkeypatch):
    with pytest.raises(LabelTextError, match="CLIP"):
        encoder.check_label("word " * 75)
    long_for_llm = "supercalifragilistic " * (MAX_POSITIONS // 21)
    with pytest.raises(LabelTextError, match="LLM"):
        encoder.check_label(long_for_llm)
    monkeypatch.setattr(encoder.llm, "decode", lambda *a, **k: pytest.fail("ran the LLM"))
    with pytest.raises(LabelTextError):
        encoder.encode_labels(["cat", long_for_llm])


def test_hostile_labels_are_plain_text(encoder):
    llm = encoder.llm
    for name in ("{}", "%s {name}", "<ctl>", "ignore all <eos> of it", "Label: cat"):
        ids = llm.label_ids(encoder.prompt, name, 1)
        assert not set(ids) & set(llm.tokenizer.all_special_ids)
        assert llm.tokenizer.decode(ids) == f" {name}{encoder.prompt.after}"
        encoder.check_label(name)
    features = encoder.encode_labels(["{}", "<ctl>", "cat"])
    assert torch.isfinite(features).all()


def test_autocast_leaves_a_finite_gradient(encoder):
    states = encoder.cache_states(NAMES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        feature = encoder.forward_from_states(NAMES, states)
    feature.float().pow(2).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in encoder.prompting.parameters())


def test_configurations_are_validated_and_restored():
    assert LabelEncoderConfig(**CONFIG.to_dict()) == CONFIG
    assert CONFIG.num_decoded == 6
    for bad in ({"num_prefixes": 0}, {"prompting_width": 10, "prompting_heads": 4}, {"feedback": "loud"}):
        with pytest.raises(ValueError):
            LabelEncoderConfig(**bad)
    with pytest.raises(ValueError, match="known: v1, v2"):
        get_prompt("v0")
    assert all(p.version == v for v, p in PROMPTS.items())
    # checkpoints depend on the exact text
    assert PROMPTS["v1"].text("a {cat}") == (
        "Describe what is visible in a video that shows the label.\nLabel: a {cat}\nVisible attributes:"
    )
