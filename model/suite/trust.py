"""The choice of the trust in names (``vidlex.model.extensions.name_trust``) on validation videos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vidlex.model.eval.metrics import summarise
from vidlex.model.extensions.name_trust import fuse_with_names
from vidlex.model.sources.emoji_pool import TrunkAdapter
from vidlex.model.suite.context import SuiteContext
from vidlex.model.suite.evaluation import BATCH_LABELS, LabelStates, pool_features
from vidlex.model.train.loop.loop import console
from vidlex.model.train.network import OpenVocabularyNetwork

TRUSTS = (0.0, 0.25, 0.5, 0.75, 1.0)  # candidates


@torch.no_grad()
def choose_trust(
    context: SuiteContext, network: OpenVocabularyNetwork, states: LabelStates, adapter: TrunkAdapter | None
) -> dict[str, Any]:
    """Set the ``name_trust`` with the best micro AUPR on validation videos.

    Returns it ("trust"), and the micro AUPR of each candidate on validation videos and on unseen nouns ("by_trust");
    the latter do not affect the choice.
    """
    kinds = context.kinds["unseen_words"]
    nouns = [label for label in context.labels["unseen_words"] if kinds[label] == "noun"]
    is_noun = torch.tensor([kinds[label] == "noun" for label in context.labels["unseen_words"]])
    sets = {
        "validation": (context.validation, list(context.worlds["val"].labels), context.validation.targets),
        "unseen nouns": (context.test["unseen_words"], nouns, context.test["unseen_words"].targets[:, is_noun]),
    }
    sets = {name: (pool, labels, targets) for name, (pool, labels, targets) in sets.items() if targets.any()}
    texts = {name: _features_and_names(network, states, labels) for name, (_, labels, _) in sets.items()}
    _set_trust(network, 1.0)  # video features then have the dimensions that every trust above 0 needs
    videos = {name: pool_features(network, pool, adapter) for name, (pool, _, _) in sets.items()}
    result: dict[str, dict[str, float]] = {}
    for trust in TRUSTS:
        result[str(trust)] = {}
        for name, (_, _, targets) in sets.items():
            logits = network.logits(videos[name], fuse_with_names(*texts[name], trust))
            result[str(trust)][name] = summarise(logits.cpu().numpy(), targets.numpy())["micro_aupr"]
    best = max(TRUSTS, key=lambda trust: result[str(trust)]["validation"])
    console.print(f"trust {best} of {result}", highlight=False)
    _set_trust(network, best)
    return {"trust": best, "by_trust": result}


@torch.no_grad()
def _features_and_names(
    network: OpenVocabularyNetwork, states: LabelStates, labels: Sequence[str]
) -> tuple[Tensor, Tensor]:
    # [V, D] each: label features without trust, and CLIP's features of the bare names
    _set_trust(network, 0.0)
    names = [network.label.clip_text.encode(labels[i : i + BATCH_LABELS]) for i in range(0, len(labels), BATCH_LABELS)]
    return states.features(network, labels), torch.cat(names)


def _set_trust(network: OpenVocabularyNetwork, trust: float) -> None:
    network.set_label_config(replace(network.label.config, name_trust=trust))
