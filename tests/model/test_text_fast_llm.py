"""The fast language model equals transformers' on every path, and keeps one copy of the weights."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from support.tiny import tiny_clip_text, write_llm
from vidlex.model.config import LabelEncoderConfig
from vidlex.model.packed_linear import PackedLinear
from vidlex.model.text.fast_llm import FastLlama, can_be_fast
from vidlex.model.text.label_encoder import LabelEncoder
from vidlex.model.text.load_llm import load_llm

CONFIG = LabelEncoderConfig(
    num_prefixes=3, num_attributes=2, tokens_per_attribute=3, prompting_width=16, prompting_layers=1, prompting_heads=2
)
NAMES = ["x", "golden retriever", "a man is riding a very old bicycle", "cat", "spinning"]


@pytest.fixture(scope="module")
def llm_folder(tmp_path_factory):
    return write_llm(tmp_path_factory.mktemp("llm"))


def build(folder, **changes) -> LabelEncoder:
    return LabelEncoder(load_llm(folder), tiny_clip_text(), replace(CONFIG, **changes)).eval()


def build_fast(folder, **changes) -> LabelEncoder:
    encoder = build(folder, **changes)
    encoder.optimize_for_inference()
    assert encoder.llm._fast is not None
    return encoder


@pytest.mark.parametrize("prompt_version", ["v1", "v2"])
@pytest.mark.parametrize("names", [NAMES, NAMES[:1], ["cat", "dog"]], ids=["unequal", "alone", "equal"])
def test_states_and_texts_equal_those_of_transformers(llm_folder, names, prompt_version):
    slow, fast = (make(llm_folder, prompt_version=prompt_version) for make in (build, build_fast))
    with torch.no_grad():
        torch.testing.assert_close(fast.soft_attributes(names), slow.soft_attributes(names), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(fast.encode_labels(names), slow.encode_labels(names), atol=1e-5, rtol=0)
    assert fast.decoded_text(names) == slow.decoded_text(names)


def test_soft_feedback_and_teacher_forcing_equal_those_of_transformers(llm_folder):
    slow, fast = (make(llm_folder, feedback="soft") for make in (build, build_fast))
    ids, mask = slow._padded_ids(NAMES)
    with torch.no_grad():
        torch.testing.assert_close(fast.soft_attributes(NAMES), slow.soft_attributes(NAMES), atol=1e-3, rtol=1e-3)
        tokens = slow._decode(slow._shared_prompt(), ids, mask).tokens
        states = [e.llm.teacher_forced_states(e._shared_prompt(), ids, mask, tokens) for e in (slow, fast)]
    torch.testing.assert_close(*states, atol=1e-5, rtol=1e-4)


def test_changed_prefixes_invalidate_the_shared_prompt(llm_folder):
    slow, fast = build(llm_folder), build_fast(llm_folder)
    before = fast.encode_labels(NAMES)
    with torch.no_grad():
        for encoder in (slow, fast):
            encoder.prefixes.mul_(-1)
    assert (fast.encode_labels(NAMES) - before).abs().max() > 1e-3
    torch.testing.assert_close(fast.encode_labels(NAMES), slow.encode_labels(NAMES), atol=1e-5, rtol=0)


def test_a_label_does_not_depend_on_its_batch(llm_folder):
    fast = build_fast(llm_folder)
    batch = fast.encode_labels(NAMES)
    alone = torch.cat([fast.encode_labels([name]) for name in NAMES])
    torch.testing.assert_close(batch, alone, atol=1e-5, rtol=0)


def test_layers_are_released_and_gradients_rejected(llm_folder):
    fast = build_fast(llm_folder)
    assert len(fast.llm.model.base_model.layers) == 0
    fast.optimize_for_inference()  # has no effect
    with pytest.raises(RuntimeError, match="has no gradient"):
        fast(NAMES)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux")
def test_the_weights_file_is_unmapped(tmp_path):
    folder = write_llm(tmp_path)
    file = str(next(folder.glob("*.safetensors")).resolve())
    encoder = build(folder)
    assert file in Path("/proc/self/maps").read_text()
    encoder.optimize_for_inference()
    gc.collect()
    assert file not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize(
    "options",
    [
        {"attention_bias": True, "mlp_bias": True},
        {"num_key_value_heads": 4, "tie_word_embeddings": False},
        {"head_dim": 16, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
    ],
    ids=["biases", "no-groups", "wide-heads-long-rope"],
)
def test_variants_of_llama(options):
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        initializer_range=0.3, **{"num_key_value_heads": 2, **options},
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:
            torch.nn.init.normal_(parameter)
    x = torch.randn(2, 7, 32)
    with torch.no_grad():
        out = model.base_model(inputs_embeds=x).last_hidden_state
        fast = FastLlama(model)
        cache = fast.expand(fast.prefill(x[:, :4]), 1, 3)
        mask = torch.ones(3, 3, dtype=torch.bool).tril().expand(2, -1, -1)
        states = fast.forward(cache, x[:, 4:], torch.arange(4, 7).expand(2, -1), 0, mask)
        torch.testing.assert_close(states, out[:, 4:], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(fast.head(states), model.get_output_embeddings()(out[:, 4:]), atol=1e-4, rtol=1e-4)


def test_other_models_are_not_supported():
    small = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    qwen = Qwen2ForCausalLM(Qwen2Config(**small, num_attention_heads=4, num_key_value_heads=2))
    half = LlamaForCausalLM(LlamaConfig(**small, num_attention_heads=4)).to(torch.bfloat16)
    for model in (qwen, half):
        assert not can_be_fast(model)
        with pytest.raises(ValueError, match="not a float32 Llama"):
            FastLlama(model)


@pytest.mark.parametrize("shape", [(5,), (1, 5), (3, 2, 5), (0, 5)])
def test_packed_linear_equals_linear(shape):
    linear = torch.nn.Linear(5, 7)
    x = torch.randn(*shape)
    for bias in (linear.bias, None):
        expected = torch.nn.functional.linear(x, linear.weight, bias)
        torch.testing.assert_close(PackedLinear(linear.weight, bias)(x), expected, atol=1e-6, rtol=1e-5)
        doubled = PackedLinear(linear.weight.double(), None if bias is None else bias.double())(x.double())
        torch.testing.assert_close(doubled.float(), expected, atol=1e-6, rtol=1e-5)
