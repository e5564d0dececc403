"""Logistic regressions on frozen features: what video features contain, independently of label texts."""

from __future__ import annotations

import json

import numpy as np
import torch
import torch.nn.functional as F
from filelock import FileLock
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.multiclass import OneVsRestClassifier

from vidlex.model.emoji.vocabulary import HELD_OUT_ACTIONS
from vidlex.model.eval.metrics import summarise
from vidlex.model.files import replace_atomically
from vidlex.model.sources.emoji_pool import TrunkAdapter
from vidlex.model.suite.context import SuiteContext
from vidlex.model.suite.evaluation import pool_features
from vidlex.model.train.network import OpenVocabularyNetwork

NUM_FOLDS = 5
NUM_TRAINING_VIDEOS = 4000
FEATURE_SCALE = 10  # scales unit features, which weakens the default penalty of the regressions


def one_frame_probe(context: SuiteContext) -> dict[str, float]:
    """Regressions on CLIP's features of the middle frame. Cached in ``out``.

    Actions should be close to chance; scenes show that the probe works.
    """
    path = context.out / f"one_frame-{context.identity}-{len(context.train)}.json"
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            with replace_atomically(path) as temporary:
                temporary.write_text(json.dumps(_probe_one_frame(context)), encoding="utf-8")
    result: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
    return result


def _probe_one_frame(context: SuiteContext) -> dict[str, float]:
    train, test = (pool.trunk.frame_features.float().cpu() for pool in (context.train, context.test["seen"]))
    middle = train.shape[1] // 2
    kinds = np.array(list(context.kinds["seen"].values()))
    result: dict[str, float] = {}
    for kind in ("action", "scene"):
        columns = kinds == kind
        y, truth = context.train.targets.numpy()[:, columns], context.test["seen"].targets.numpy()[:, columns]
        rows = slice(0, NUM_TRAINING_VIDEOS)
        probe = OneVsRestClassifier(LogisticRegression(max_iter=200)).fit(
            F.normalize(train[rows, middle], dim=-1).numpy() * FEATURE_SCALE, y[rows]
        )
        scores = probe.decision_function(F.normalize(test[:, middle], dim=-1).numpy() * FEATURE_SCALE)
        metrics = summarise(scores, truth)
        result |= {f"{kind}_aupr": metrics["micro_aupr"], f"{kind}_chance": metrics["chance"]}
    return result


@torch.no_grad()
def held_out_probe(
    context: SuiteContext, network: OpenVocabularyNetwork, adapter: TrunkAdapter | None
) -> dict[str, float]:
    """Micro AUPR of held-out actions by cross-validated regressions. Empty if no such action is in five videos."""
    pool, labels = context.test["unseen_actions"], context.labels["unseen_actions"]
    truth = pool.targets.numpy()[:, np.isin(labels, HELD_OUT_ACTIONS)]
    truth = truth[:, (truth.sum(axis=0) >= NUM_FOLDS) & ((~truth).sum(axis=0) >= NUM_FOLDS)]
    if not truth.shape[1]:
        return {}
    result = {}
    branch_features = pool_features(network, pool, adapter)
    for name, features in (("branch", branch_features), ("frame_mean", context.frame_means(pool))):
        x = features.detach().float().cpu().numpy() * FEATURE_SCALE
        scores = [
            cross_val_predict(LogisticRegression(max_iter=500), x, y, cv=NUM_FOLDS, method="decision_function")
            for y in truth.T
        ]
        result[name] = summarise(np.stack(scores, axis=1), truth)["micro_aupr"]
    return result
