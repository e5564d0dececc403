"""The language model as it serves: the numbers of transformers' own, on every path, without its copies of weights."""

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
from vidlex.model.text.llm import FrozenLLM

CONFIG = LabelEncoderConfig(
    num_prefixes=3, num_attributes=2, tokens_per_attribute=3, prompting_width=16, prompting_layers=1, prompting_heads=2
)
NAMES = ["x", "golden retriever", "a man is riding a very old bicycle", "cat", "spinning"]


@pytest.fixture(scope="module")
def llm_folder(tmp_path_factory):
    return write_llm(tmp_path_factory.mktemp("llm"))


def build(folder, **changes) -> LabelEncoder:
    return LabelEncoder(FrozenLLM.load(folder), tiny_clip_text(), replace(CONFIG, **changes)).eval()


def made_fast(folder, **changes) -> LabelEncoder:
    encoder = build(folder, **changes)
    encoder.quicken()
    assert encoder.llm._fast is not None
    return encoder


@pytest.mark.parametrize("prompt_version", ["v1", "v2"])
@pytest.mark.parametrize("names", [NAMES, NAMES[:1], ["cat", "dog"]], ids=["unequal", "alone", "equal"])
def test_states_and_words_are_those_of_transformers(llm_folder, names, prompt_version):
    slow, fast = (make(llm_folder, prompt_version=prompt_version) for make in (build, made_fast))
    with torch.no_grad():
        torch.testing.assert_close(fast.soft_attributes(names), slow.soft_attributes(names), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(fast.encode_labels(names), slow.encode_labels(names), atol=1e-5, rtol=0)
    assert fast.decoded_text(names) == slow.decoded_text(names)


def test_soft_feedback_and_rereading(llm_folder):
    slow, fast = (make(llm_folder, feedback="soft") for make in (build, made_fast))
    ids, mask = slow._ids(NAMES)
    with torch.no_grad():
        torch.testing.assert_close(fast.soft_attributes(NAMES), slow.soft_attributes(NAMES), atol=1e-3, rtol=1e-3)
        tokens = slow._decode(slow._shared_prompt(), ids, mask).tokens
        read = [e.llm.reread(e._shared_prompt(), ids, mask, tokens) for e in (slow, fast)]
    torch.testing.assert_close(*read, atol=1e-5, rtol=1e-4)


def test_other_prefixes_are_read_anew(llm_folder):
    slow, fast = build(llm_folder), made_fast(llm_folder)
    before = fast.encode_labels(NAMES)
    with torch.no_grad():
        for encoder in (slow, fast):
            encoder.prefixes.mul_(-1)
    assert (fast.encode_labels(NAMES) - before).abs().max() > 1e-3
    torch.testing.assert_close(fast.encode_labels(NAMES), slow.encode_labels(NAMES), atol=1e-5, rtol=0)


def test_a_label_is_the_same_alone_and_in_company(llm_folder):
    fast = made_fast(llm_folder)
    together = fast.encode_labels(NAMES)
    alone = torch.cat([fast.encode_labels([name]) for name in NAMES])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_it_keeps_one_copy_and_gives_no_gradient(llm_folder):
    fast = made_fast(llm_folder)
    assert len(fast.llm.model.base_model.layers) == 0
    fast.quicken()  # again: nothing happens
    with pytest.raises(RuntimeError, match="no gradient"):
        fast(NAMES)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells what is mapped")
def test_the_file_of_weights_does_not_stay_mapped(tmp_path):
    folder = write_llm(tmp_path)
    file = str(next(folder.glob("*.safetensors")).resolve())
    encoder = build(folder)
    assert file in Path("/proc/self/maps").read_text()
    encoder.quicken()
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
def test_kinds_of_llama(options):
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
        cache = fast.expand(fast.share(x[:, :4]), 1, 3)
        seen = torch.ones(3, 3, dtype=torch.bool).tril().expand(2, -1, -1)
        got = fast.forward(cache, x[:, 4:], torch.arange(4, 7).expand(2, -1), 0, seen)
        torch.testing.assert_close(got, out[:, 4:], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(fast.head(got), model.get_output_embeddings()(out[:, 4:]), atol=1e-4, rtol=1e-4)


def test_other_models_stay_as_they_are():
    small = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    qwen = Qwen2ForCausalLM(Qwen2Config(**small, num_attention_heads=4, num_key_value_heads=2))
    half = LlamaForCausalLM(LlamaConfig(**small, num_attention_heads=4)).to(torch.bfloat16)
    for model in (qwen, half):
        assert not can_be_fast(model)
        with pytest.raises(ValueError, match="not a float32 Llama"):
            FastLlama(model)


@pytest.mark.parametrize("shape", [(5,), (1, 5), (3, 2, 5), (0, 5)])
def test_packed_linear(shape):
    linear = torch.nn.Linear(5, 7)
    x = torch.randn(*shape)
    for bias in (linear.bias, None):
        expected = torch.nn.functional.linear(x, linear.weight, bias)
        torch.testing.assert_close(PackedLinear(linear.weight, bias)(x), expected, atol=1e-6, rtol=1e-5)
        doubled = PackedLinear(linear.weight.double(), None if bias is None else bias.double())(x.double())
        torch.testing.assert_close(doubled.float(), expected, atol=1e-6, rtol=1e-5)
