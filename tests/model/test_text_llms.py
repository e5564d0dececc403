"""Language models of several architectures, in both precisions: decoding equals transformers' ``generate()``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor

from support.tiny import tiny_clip_text, write_byte_tokenizer
from vidlex.model.baselines.fixed_llm import FixedLlmLabelEncoder
from vidlex.model.classifier import LabelTextError
from vidlex.model.config import LabelEncoderConfig
from vidlex.model.text.encoder_decoder import FrozenEncoderDecoder
from vidlex.model.text.label_encoder import LabelEncoder
from vidlex.model.text.llm import FrozenLLM
from vidlex.model.text.load_llm import load_llm
from vidlex.model.text.prompts import get_prompt
from vidlex.model.weights.cache import WeightsError

NAMES = ["x", "golden retriever", "a man rides a bicycle"]
PROMPT = get_prompt("v1")
NUM_TOKENS = 6
NUM_UNUSED_IDS = 5  # rows of the embedding without a token, as in Qwen's vocabularies
CONFIG = LabelEncoderConfig(
    num_prefixes=2, num_attributes=2, tokens_per_attribute=3, prompting_width=16, prompting_layers=1,
    prompting_heads=2, prompt_version="v1",
)  # fmt: skip

SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "initializer_range": 0.3, "max_position_embeddings": 288,
}  # fmt: skip
GROUPED = {**SIZES, "num_key_value_heads": 2}
UNTIED = {"tie_word_embeddings": False}
WINDOW = 160
CAUSAL: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama": (tf.LlamaConfig, GROUPED),
    "qwen2": (tf.Qwen2Config, {**GROUPED, "tie_word_embeddings": True}),
    "qwen3": (tf.Qwen3Config, {**GROUPED, "head_dim": 16}),
    "gemma": (tf.GemmaConfig, {**GROUPED, "head_dim": 8}),
    "gemma2": (tf.Gemma2Config, {**GROUPED, **UNTIED, "head_dim": 8, "sliding_window": WINDOW}),
    "gemma3": (tf.Gemma3TextConfig, {**GROUPED, **UNTIED, "head_dim": 8, "sliding_window": WINDOW}),
    "mistral": (tf.MistralConfig, {**GROUPED, "sliding_window": WINDOW}),
    "phi3": (tf.Phi3Config, GROUPED),
    "gpt2": (
        tf.GPT2Config,
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 288, "initializer_range": 0.3},
    ),
    "gpt_neox": (tf.GPTNeoXConfig, SIZES),
    "opt": (
        tf.OPTConfig,
        {**GROUPED, "word_embed_proj_dim": 32, "ffn_dim": 48, "init_std": 0.3, "dropout": 0.0},
    ),
}
T5_SIZES = {
    "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "initializer_factor": 2.0,
}  # fmt: skip
ENCODER_DECODER: dict[str, tuple[Any, dict[str, Any]]] = {
    "t5": (tf.T5Config, T5_SIZES),
    "flan_t5": (tf.T5Config, {**T5_SIZES, **UNTIED, "feed_forward_proj": "gated-gelu"}),
    "mt5": (tf.MT5Config, {**T5_SIZES, **UNTIED}),
}
ALL = {**CAUSAL, **ENCODER_DECODER}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {name: write_model(tmp_path_factory.mktemp(name), *ALL[name]) for name in ALL}


def write_model(folder: Path, config_type: Any, options: dict[str, Any]) -> Path:
    num_ids = write_byte_tokenizer(folder)
    config = config_type(
        vocab_size=num_ids + NUM_UNUSED_IDS, bos_token_id=1, eos_token_id=1, pad_token_id=1, decoder_start_token_id=0,
        **options,
    )  # fmt: skip
    kind = tf.AutoModelForSeq2SeqLM if config.is_encoder_decoder else tf.AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind.from_config(config)
        with torch.no_grad():  # an unused row would win every decoding step
            model.get_output_embeddings().weight[num_ids:] *= 3
    model.save_pretrained(folder)
    return folder


def encoder_of(folder: Path, **options: Any) -> LabelEncoder:
    return LabelEncoder(load_llm(folder, **options), tiny_clip_text(), CONFIG).eval()


def generated(encoder: LabelEncoder, name: str, prefix: int) -> tuple[list[int], Tensor, Tensor]:
    """Tokens, states [K * L, d] and scores [K * L, vocabulary] of transformers' greedy ``generate``."""
    llm = encoder.llm
    ids = llm.shared_ids(PROMPT) + llm.label_ids(PROMPT, name, NUM_TOKENS)
    with torch.no_grad():
        words = llm.embedding(torch.tensor([ids]))
        x = torch.cat((encoder.prefixes[prefix][None, None].to(words.dtype), words), dim=1)
        out = llm.model.generate(
            inputs_embeds=x, attention_mask=torch.ones(x.shape[:2], dtype=torch.long), max_new_tokens=NUM_TOKENS,
            do_sample=False, suppress_tokens=llm._special_ids.tolist(), return_dict_in_generate=True,
            output_scores=True, output_hidden_states=True,
        )  # fmt: skip
    steps = out.decoder_hidden_states if llm.model.config.is_encoder_decoder else out.hidden_states
    tokens = out.sequences[0, -NUM_TOKENS:].tolist()
    return tokens, torch.stack([step[-1][0, -1] for step in steps]).float(), torch.cat(out.scores).float()


@pytest.mark.parametrize("name", ALL)
def test_decoding_equals_generate(folders, name):
    encoder = encoder_of(folders[name])
    encoder.optimize_for_inference()  # FastLlama, if it is one
    assert (encoder.llm._fast is not None) == (name == "llama")
    reference = encoder_of(folders[name])
    with torch.no_grad():
        decoded = encoder._decode(encoder._shared_prompt(), *encoder._padded_ids(NAMES))
    distinct = set()
    for row, label in enumerate(NAMES):
        for prefix in range(CONFIG.num_prefixes):
            tokens, states, _ = generated(reference, label, prefix)
            assert decoded.tokens[row, prefix].tolist() == tokens
            torch.testing.assert_close(decoded.states[row, prefix], states, atol=1e-4, rtol=1e-4)
            distinct.add(tuple(tokens))
    assert len(distinct) > 1  # otherwise equality would prove little


@pytest.mark.parametrize("name", ALL)
def test_decoding_in_bfloat16_equals_generate(folders, name):
    """Up to rounding: a padded batch with a shared prompt sums in another order, which may decide between two tokens
    whose scores are a rounding error apart. From there on, texts differ."""
    encoder = encoder_of(folders[name], dtype=torch.bfloat16)
    encoder.optimize_for_inference()
    assert encoder.llm.dtype == torch.bfloat16 and encoder.prefixes.dtype == torch.float32
    with torch.no_grad():
        decoded = encoder._decode(encoder._shared_prompt(), *encoder._padded_ids(NAMES))
    assert decoded.states.dtype == torch.float32
    num_equal = 0
    for row, label in enumerate(NAMES):
        for prefix in range(CONFIG.num_prefixes):
            tokens, states, scores = generated(encoder, label, prefix)
            for step, (ours, theirs) in enumerate(zip(decoded.tokens[row, prefix].tolist(), tokens, strict=True)):
                difference = (decoded.states[row, prefix, step] - states[step]).norm() / states[step].norm()
                assert difference < 0.05
                if ours != theirs:
                    assert float(scores[step, theirs] - scores[step, ours]) < 0.05 * float(states[step].norm())
                    break
                num_equal += 1
    assert num_equal > 0.6 * len(NAMES) * CONFIG.num_prefixes * NUM_TOKENS


@pytest.mark.parametrize("name", ALL)
def test_training_reaches_the_prefixes_and_gives_the_decoded_states(folders, name):
    encoder = encoder_of(folders[name])
    training = encoder.soft_attributes(NAMES)
    with torch.no_grad():
        serving = encoder.soft_attributes(NAMES)
    torch.testing.assert_close(training.detach(), serving, atol=1e-4, rtol=1e-4)
    training.pow(2).sum().backward()
    assert (encoder.prefixes.grad.norm(dim=1) > 0).all()


@pytest.mark.parametrize("name", ["llama", "gemma3", "flan_t5"])
def test_labels_are_encoded_in_both_precisions(folders, name):
    full, half = encoder_of(folders[name]), encoder_of(folders[name], dtype=torch.bfloat16)
    features = full.encode_labels(NAMES)
    alone = torch.cat([full.encode_labels([label]) for label in NAMES])
    torch.testing.assert_close(features, alone, atol=1e-5, rtol=0)
    assert half.encode_labels(NAMES).dtype == torch.float32
    half(NAMES).pow(2).sum().backward()
    assert torch.isfinite(half.prefixes.grad).all() and half.prefixes.grad.abs().sum() > 0
    sizes = [sum(p.nbytes for p in encoder.llm.model.parameters()) for encoder in (full, half)]
    assert sizes[0] == 2 * sizes[1]


def test_soft_feedback_uses_the_scaled_embeddings_of_gemma(folders):
    llm = load_llm(folders["gemma3"])
    assert llm.embedding_scale == pytest.approx(32**0.5)
    ids = torch.tensor([[7]])
    sharp = torch.nn.functional.one_hot(ids, llm.embedding.weight.shape[0]).float()
    with torch.no_grad():
        torch.testing.assert_close(sharp @ llm.embedding.weight * llm.embedding_scale, llm.embedding(ids))


def test_t5_reads_the_end_token_and_pads_on_the_right(folders):
    llm = load_llm(folders["t5"])
    assert isinstance(llm, FrozenEncoderDecoder)
    rows = [llm.label_ids(PROMPT, label, NUM_TOKENS) for label in NAMES]
    assert all(row[-1] == llm.tokenizer.eos_token_id for row in rows)
    ids, mask = llm.pad(rows)
    assert mask[0].tolist() == [1] * len(rows[0]) + [0] * (ids.shape[1] - len(rows[0]))
    assert ids[0, : len(rows[0])].tolist() == rows[0]


def test_a_label_beyond_the_attention_window_is_refused(folders):
    llm = load_llm(folders["mistral"])
    room = WINDOW - 1 - len(llm.shared_ids(PROMPT)) - len(llm.label_ids(PROMPT, "", NUM_TOKENS)) - NUM_TOKENS
    llm.label_ids(PROMPT, "a" * room, NUM_TOKENS)
    with pytest.raises(LabelTextError, match=f"of the LLM's {WINDOW}"):
        llm.label_ids(PROMPT, "a" * (room + 1), NUM_TOKENS)


def small(config_type: Any, **options: Any) -> Any:
    return config_type(vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, **options)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (tf.BartConfig(vocab_size=300, d_model=16, encoder_layers=1, decoder_layers=1), "encoder-decoder model .bart."),
        (tf.CLIPTextConfig(vocab_size=300), "not a causal language model .clip_text_model."),
        (small(tf.BloomConfig, n_head=4), "BloomForCausalLM is not supported: it takes no position_ids"),
        (small(tf.MambaConfig, state_size=4), "MambaForCausalLM is not supported: it takes no past_key_values and no"),
        (
            small(tf.Lfm2Config, intermediate_size=48, layer_types=["conv", "full_attention"], num_key_value_heads=2),
            "Lfm2ForCausalLM is not supported: its cache has ",
        ),
    ],
    ids=["bart", "clip", "bloom", "mamba", "lfm2"],
)
def test_other_models_are_refused_with_the_reason(tmp_path, config, message):
    write_byte_tokenizer(tmp_path)
    config.save_pretrained(tmp_path)
    if type(config) in tf.AutoModelForCausalLM._model_mapping and not config.is_encoder_decoder:
        tf.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=message):
        LabelEncoder(load_llm(tmp_path), tiny_clip_text(), CONFIG).encode_labels(NAMES)


def test_attributes_are_not_written_by_an_encoder_decoder(folders):
    with pytest.raises(WeightsError, match="by a causal language model"):
        FixedLlmLabelEncoder(load_llm(folders["t5"]), tiny_clip_text())


def test_a_model_whose_layers_read_ids_is_refused(folders):
    model = load_llm(folders["gemma3"]).model
    model.config.hidden_size_per_layer_input = 8
    with pytest.raises(WeightsError, match="a prefix has none"):
        FrozenLLM(model, load_llm(folders["llama"]).tokenizer)
