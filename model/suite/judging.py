"""How a row of ours is judged and kept: the states of the labels that the suite reads, and a pool as the branch sees
it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from torch import Tensor

from vidlex.model.emoji.vocabulary import HELD_OUT_ACTIONS
from vidlex.model.eval.metrics import summarise
from vidlex.model.suite.bench import Bench, Made, Row
from vidlex.model.suite.pool import Pool
from vidlex.model.text.label_encoder import fuse_with_names
from vidlex.model.train.export import write_checkpoint
from vidlex.model.train.loop import console
from vidlex.model.train.task import OpenVocabularyNetwork
from vidlex.model.video.encoder import Trunk, VideoEncoder

ALPHAS = (0.25, 0.5, 0.75, 1.0)
TRUSTS = (0.0, 0.25, 0.5, 0.75, 1.0)
NUM_FOLDS = 5

AtDepth = Callable[[Trunk], Trunk] | None
"""Carries a pool's tokens to where a branch begins; None where the branch has to be given the frames."""


class States:
    """LLM states of any labels that the suite reads."""

    def __init__(self, bench: Bench, network: OpenVocabularyNetwork, *, without_llm: bool = False) -> None:
        self.bench, self.encoder, self.without_llm = bench, network.label, without_llm
        self.labels = bench.column_labels()
        self.place = {label: i for i, label in enumerate(self.labels)}
        self.all = self._read("columns", self.labels)

    def _read(self, name: str, labels: Sequence[str]) -> Tensor:
        if self.without_llm:  # the same for every label: a learned prompt, and CLIP's own reading of the name
            return torch.zeros(len(labels), *self.encoder.state_mean.shape, dtype=torch.float16)
        return self.bench.states(self.encoder, name, labels)

    def of_further_pairs(self, labels: Sequence[str]) -> Tensor:
        """Of labels that training reads and no column."""
        return self._read("pairs", labels)

    def of(self, labels: Sequence[str]) -> Tensor:
        return self.all[[self.place[label] for label in labels]]

    @torch.no_grad()
    def features(self, network: OpenVocabularyNetwork, labels: Sequence[str]) -> Tensor:
        """[V, D] unit features of labels, a few at a time."""
        parts = [labels[i : i + 256] for i in range(0, len(labels), 256)]
        return torch.cat([network.label.forward_from_states(part, self.of(part)) for part in parts])


def at_depth_of(encoder: VideoEncoder, kept: int) -> AtDepth:
    """Pools keep the tokens where ``kept`` branch blocks begin; an encoder with fewer begins later: run CLIP's own
    blocks in between."""
    blocks = len(encoder.branch)
    if blocks > kept:
        return None
    between = encoder.visual.transformer.resblocks[-kept : -blocks or None] if blocks < kept else []

    @torch.no_grad()
    def change(trunk: Trunk) -> Trunk:
        if not blocks or not len(between):
            return trunk
        b, t, n, d = trunk.tokens.shape
        x = trunk.tokens.float().view(b * t, n, d)
        for block in between:
            x = block(x)
        return Trunk(trunk.frame_features, x.view(b, t, n, d))

    return change


@torch.no_grad()
def pool_features(network: OpenVocabularyNetwork, pool: Pool, at_depth: AtDepth, alpha: float | None = None) -> Tensor:
    """[n, D] unit features of a pool; without ``alpha`` at the network's own."""
    parts = []
    for chunk in pool.chunks(frames=at_depth is None):
        videos = chunk.to(network.bias.device)
        if at_depth is not None:
            assert isinstance(videos, Trunk)
            videos = at_depth(videos)
        parts.append(network.video_features(videos, alpha))
    return torch.cat(parts)


def judge_of(
    network: OpenVocabularyNetwork, states: States, at_depth: AtDepth
) -> Callable[[Pool, Sequence[str]], Tensor]:
    """Logits [n, V] of a pool against labels."""

    @torch.no_grad()
    def logits(pool: Pool, labels: Sequence[str]) -> Tensor:
        return network.logits(pool_features(network, pool, at_depth), states.features(network, labels))

    return logits


@torch.no_grad()
def choose_alpha(bench: Bench, network: OpenVocabularyNetwork, states: States, at_depth: AtDepth) -> float:
    """The interpolation with the best micro AUPR on validation videos; the network is folded at it."""
    texts = states.features(network, bench.worlds["val"].labels)
    found = {}
    for alpha in ALPHAS:
        logits = network.logits(pool_features(network, bench.validation, at_depth, alpha), texts)
        found[alpha] = summarise(logits.cpu().numpy(), bench.validation.targets.numpy())["micro_aupr"]
    best = max(found, key=lambda a: found[a])
    console.print(f"alpha {best} of { ({a: round(v, 4) for a, v in found.items()}) }", highlight=False)
    network.video.fold(best)
    return best


@torch.no_grad()
def choose_trust(
    bench: Bench, network: OpenVocabularyNetwork, states: States, at_depth: AtDepth
) -> dict[str, dict[str, float]]:
    """The trust in names with the best micro AUPR on validation videos; the network has it from now on.

    Returns what each trust gives there and on the unseen nouns, which did not choose.
    """
    kinds = bench.kinds["unseen_words"]
    nouns = [label for label in bench.labels["unseen_words"] if kinds[label] == "noun"]
    own = torch.tensor([kinds[label] == "noun" for label in bench.labels["unseen_words"]])
    sets = {
        "validation": (bench.validation, list(bench.worlds["val"].labels), bench.validation.targets),
        "unseen nouns": (bench.test["unseen_words"], nouns, bench.test["unseen_words"].targets[:, own]),
    }
    sets = {name: some for name, some in sets.items() if some[2].any()}
    texts = {name: _plain_and_names(network, states, labels) for name, (_, labels, _) in sets.items()}
    network.trust_names(1.0)  # videos' features as long as any trust wants them
    videos = {name: pool_features(network, pool, at_depth) for name, (pool, _, _) in sets.items()}
    found: dict[str, dict[str, float]] = {}
    for trust in TRUSTS:
        found[str(trust)] = {}
        for name, (_, _, targets) in sets.items():
            logits = network.logits(videos[name], fuse_with_names(*texts[name], trust))
            found[str(trust)][name] = summarise(logits.cpu().numpy(), targets.numpy())["micro_aupr"]
    best = max(TRUSTS, key=lambda trust: found[str(trust)]["validation"])
    console.print(f"trust {best} of {found}", highlight=False)
    network.trust_names(best)
    return found


@torch.no_grad()
def _plain_and_names(network: OpenVocabularyNetwork, states: States, labels: Sequence[str]) -> tuple[Tensor, Tensor]:
    """[V, D] twice: features of labels without any trust in names, and CLIP's readings of their bare names."""
    network.trust_names(0.0)
    names = [network.label.clip_text.encode(labels[i : i + 256]) for i in range(0, len(labels), 256)]
    return states.features(network, labels), torch.cat(names)


@torch.no_grad()
def held_out_probe(bench: Bench, network: OpenVocabularyNetwork, at_depth: AtDepth) -> dict[str, float]:
    """What videos tell of the held-out actions, whether or not their names do: micro AUPR of logistic regressions that
    are trained on four fifths of the videos that show them and judged on the fifth, in turn; on the branch's features
    and on CLIP's frame means. Empty where no such action is seen in five videos.
    """
    pool, labels = bench.test["unseen_actions"], bench.labels["unseen_actions"]
    truth = pool.targets.numpy()[:, np.isin(labels, HELD_OUT_ACTIONS)]
    truth = truth[:, (truth.sum(axis=0) >= NUM_FOLDS) & ((~truth).sum(axis=0) >= NUM_FOLDS)]
    if not truth.shape[1]:
        return {}
    found = {}
    for name, features in (("branch", pool_features(network, pool, at_depth)), ("frame_mean", bench.frame_means(pool))):
        x = features.detach().float().cpu().numpy() * 10
        scores = [
            cross_val_predict(LogisticRegression(max_iter=500), x, y, cv=NUM_FOLDS, method="decision_function")
            for y in truth.T
        ]
        found[name] = summarise(np.stack(scores, axis=1), truth)["micro_aupr"]
    return found


def keep(bench: Bench, row: Row, made: Made, judged: Callable[[Pool, Sequence[str]], Tensor]) -> None:
    """A checkpoint of the row that can be served: ``bench.checkpoint(row)``."""
    labels = bench.worlds["train"].labels
    write_checkpoint(
        bench.checkpoint(row),
        made.network,
        made.clip,
        made.llm_folder,
        checkpoint_id=row.key,
        trained_labels=labels,
        validation=(judged(bench.validation, labels).cpu(), bench.validation.targets),
    )
