"""Encoding from embeddings equals open_clip's ``encode_text``, and no text is truncated."""

from __future__ import annotations

import open_clip
import pytest
import torch
from open_clip.transformer import TextTransformer

from support.tiny import CLIP_KINDS, EMBED_DIM, tiny_clip, tiny_clip_text
from vidlex.model.baselines.class_name import ClassNameLabelEncoder
from vidlex.model.classifier import LabelTextError
from vidlex.model.text.clip_text import ClipText

NAMES = ["dog", "golden retriever", "a man is riding a bicycle"]
NUM_SOFT = 4


@pytest.fixture(params=CLIP_KINDS)
def towers(request, tmp_path):
    clip, tokenizer = tiny_clip(request.param, tmp_path)
    return request.param, clip, tokenizer, ClipText(clip, tokenizer)


@torch.no_grad()
def test_plain_names_equal_encode_text(towers):
    _, clip, tokenizer, text = towers
    torch.testing.assert_close(text.encode(NAMES), clip.encode_text(tokenizer(NAMES)), atol=1e-5, rtol=1e-5)
    assert text.dim == EMBED_DIM


@torch.no_grad()
def test_soft_tokens_that_are_words_equal_encode_text(towers):
    kind, clip, tokenizer, text = towers
    # four words "x" before the label, spelled for each tokenizer
    word, start = ("x" * NUM_SOFT, 0) if kind == "siglip" else ("x " * NUM_SOFT, 1)
    ids = tokenizer([word + name for name in NAMES])
    expected = clip.encode_text(ids)
    placeholder = text.token_embedding[ids[0, start]]
    assert (ids[:, start : start + NUM_SOFT] == ids[0, start]).all()
    soft = placeholder.expand(len(NAMES), 1, NUM_SOFT, -1)
    features = text.encode_with_soft(NAMES, soft)
    torch.testing.assert_close(features[:, 0], expected, atol=1e-5, rtol=1e-5)
    other = text.encode_with_soft(NAMES, torch.randn(len(NAMES), 1, NUM_SOFT, text.width))
    assert (other[:, 0] - expected).abs().max() > 1e-2  # the soft tokens have an effect


@torch.no_grad()
def test_soft_tokens_after_the_name_equal_encode_text(towers):
    kind, clip, tokenizer, text = towers
    word = "x" * NUM_SOFT if kind == "siglip" else " x" * NUM_SOFT
    ids = tokenizer([name + word for name in NAMES])
    start = (0 if kind == "siglip" else 1) + len(text.embed_words(NAMES[0]))
    assert (ids[0, start : start + NUM_SOFT] == ids[0, start]).all()
    soft = text.token_embedding[ids[0, start]].expand(len(NAMES), 1, NUM_SOFT, -1)
    features = text.encode_with_soft(NAMES, soft, after=True)
    torch.testing.assert_close(features[:, 0], clip.encode_text(ids), atol=1e-5, rtol=1e-5)
    assert (features - text.encode_with_soft(NAMES, soft)).abs().max() > 1e-3
    other = text.encode_with_soft(NAMES, torch.randn(len(NAMES), 2, NUM_SOFT, text.width), after=True)
    assert (other[:, 0] - other[:, 1]).abs().amax(dim=-1).min() > 1e-3


@torch.no_grad()
def test_soft_prompts_are_independent(towers):
    *_, text = towers
    soft = torch.randn(len(NAMES), 3, NUM_SOFT, text.width, generator=torch.Generator().manual_seed(1))
    batch = text.encode_with_soft(NAMES, soft)
    for i, name in enumerate(NAMES):
        for s in range(3):
            alone = text.encode_with_soft([name], soft[i : i + 1, s : s + 1])
            torch.testing.assert_close(batch[i, s], alone[0, 0], atol=1e-5, rtol=1e-5)


def test_gradient_reaches_soft_tokens_but_not_a_frozen_tower(towers):
    _, clip, _, text = towers
    text.freeze()
    soft = torch.randn(2, 1, NUM_SOFT, text.width, requires_grad=True)
    text.encode_with_soft(NAMES[:2], soft).pow(2).sum().backward()
    assert (soft.grad.abs().amax(dim=-1) > 0).all()
    assert [n for n, p in clip.named_parameters() if p.grad is not None] == []


def test_a_label_may_fill_the_context_exactly(towers):
    kind, _, tokenizer, text = towers
    # one token per letter in the SigLIP stand-in, one per word otherwise
    separator = "" if kind == "siglip" else " "
    max_tokens = tokenizer.context_length - NUM_SOFT - (1 if kind == "siglip" else 2)
    fits, too_long = separator.join(["x"] * max_tokens), separator.join(["x"] * (max_tokens + 1))
    text.check(fits, NUM_SOFT)
    assert text.ids([fits], NUM_SOFT).shape == (1, tokenizer.context_length)
    with pytest.raises(LabelTextError, match=f"at most {max_tokens}"):
        text.check(too_long, NUM_SOFT)
    with pytest.raises(LabelTextError):
        text.encode_with_soft([too_long], torch.zeros(1, 1, NUM_SOFT, text.width))


def test_reserved_tokens_and_empty_labels_are_rejected(tmp_path):
    text = tiny_clip_text()
    for name in ("dog <end_of_text> cat", "&lt;start_of_text&gt;"):
        with pytest.raises(LabelTextError, match="reserved"):
            text.check(name)
    with pytest.raises(LabelTextError, match="the label is empty"):
        text.check("   ")
    siglip = tiny_clip_text("siglip", tmp_path)
    with pytest.raises(LabelTextError, match="the label is empty"):
        siglip.check("?!")  # SigLIP's cleaning removes punctuation


def test_very_long_text_is_rejected():
    with pytest.raises(LabelTextError, match="too long"):
        tiny_clip_text().encode(["word " * 5000])


def test_unsupported_towers_are_rejected():
    clip, tokenizer = tiny_clip("mobileclip_causal")
    clip.text = TextTransformer(context_length=77, width=16, heads=2, layers=1, output_dim=12, embed_cls=True)
    with pytest.raises(ValueError, match="class token"):
        ClipText(clip, tokenizer)
    clip.text = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="Linear"):
        ClipText(clip, tokenizer)


@torch.no_grad()
def test_class_name_baseline_is_open_clips_zero_shot_classifier():
    clip, tokenizer = tiny_clip()
    templates = ("a photo of a {}.", "a video of {}.", "{}")
    encoder = ClassNameLabelEncoder(ClipText(clip, tokenizer), templates).to("cpu").eval()
    expected = open_clip.build_zero_shot_classifier(
        clip, tokenizer, NAMES, [lambda n, t=t: t.format(n) for t in templates]
    )
    features = encoder.encode_labels(NAMES)
    torch.testing.assert_close(features, expected.T, atol=1e-5, rtol=1e-5)
    assert encoder.encode_labels([]).shape == (0, EMBED_DIM)
    assert encoder.texts("{} {0}")[0] == "a photo of a {} {0}."  # braces are literal
    assert encoder.describe_labels(["cat"])[0].prompts == ("a photo of a cat.", "a video of cat.", "cat")
    with pytest.raises(LabelTextError):
        encoder.check_label("word " * 76)
    with pytest.raises(ValueError, match="exactly one"):
        ClassNameLabelEncoder(ClipText(clip, tokenizer), ("no place",))
