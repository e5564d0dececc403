"""The labels, nouns, actions and styles of training and of the five columns of the evaluation.

The columns mirror the five datasets of the paper at small scale:

seen             labels and nouns of training (YouTube-8M, Kinetics)
unseen_words     nouns that fine-tuning neither shows nor names, and words that are in no training text, for known nouns
                 and scenes (TAO)
unseen_actions   actions that training never shows, and new words for known actions (ActivityNet)
rare_pairs       labels of a noun and an action that training never shows together, with hard negatives: the noun with
                 another action, the action with another noun (RareAct)
unseen_style     labels of training in a style of art that training never shows

``pretrain`` is the training set of the small CLIP, images and names: every noun, no keyword, no action.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from vidlex.model.emoji.keywords import drop_common_keywords
from vidlex.model.emoji.nouns import Noun
from vidlex.model.emoji.vocabulary import ACTION_WORDS, ACTIONS, HELD_OUT_ACTIONS, SCENE_WORDS, SCENES

ColumnName = Literal["seen", "unseen_words", "unseen_actions", "rare_pairs", "unseen_style"]
Part = Literal["pretrain"] | ColumnName
COLUMNS: tuple[ColumnName, ...] = get_args(ColumnName)
UNSEEN_STYLES = frozenset(("openmoji",))

UNSEEN_NOUN_FRACTION = 0.12
UNSEEN_KEYWORD_FRACTION = 0.4
NUM_PAIRS = 80  # maximum of training pairs, and of rare pairs


@dataclass(frozen=True, eq=False)
class Column:
    """Nouns, actions and labels are int64 indices.

    kinds           label -> noun, hypernym, keyword, scene, action or pair
    nouns, actions  [n], [m]: those that the videos show
    pairs           [p, 2] (noun, action): oversampled
    excluded_pairs  (noun, action): never shown
    noun_labels     [nouns, V] bool: the labels of each noun; ``scene_labels`` and ``action_labels`` likewise
    pair_labels     (noun, action) -> label
    """

    labels: tuple[str, ...]
    kinds: Mapping[str, str]
    nouns: Tensor
    actions: Tensor
    unseen_styles: bool
    pairs: Tensor
    excluded_pairs: frozenset[tuple[int, int]]
    noun_labels: Tensor
    scene_labels: Tensor
    action_labels: Tensor
    pair_labels: Mapping[tuple[int, int], int]


class Protocol:
    """All labels over the given nouns, split into seen and unseen. Deterministic in the nouns."""

    def __init__(self, nouns: Sequence[Noun]) -> None:
        self.nouns = tuple(nouns)
        names = [noun.name for noun in nouns]
        self.hypernyms = tuple(sorted({h for noun in nouns for h in noun.hypernyms} - set(names)))
        taken = {*names, *self.hypernyms, *_all_phrases(SCENE_WORDS), *_all_phrases(ACTION_WORDS)}
        self.keywords_of = drop_common_keywords({n.name: [w for w in n.keywords if w not in taken] for n in nouns})
        self.unseen_nouns = tuple(
            name for name in names if len(names) > 20 and _hash_fraction(name) < UNSEEN_NOUN_FRACTION
        )
        unseen = set(self.unseen_nouns)
        self.seen_nouns = tuple(name for name in names if name not in unseen)
        self.trained_actions = tuple(action for action in ACTIONS if action not in HELD_OUT_ACTIONS)
        self.train_pairs, self.rare_pairs = self._pairs()
        words = dict.fromkeys(w for name in self.seen_nouns for w in self.keywords_of[name])
        self.train_keywords = tuple(
            sorted(w for w in words if _hash_fraction(f"keyword {w}") >= UNSEEN_KEYWORD_FRACTION)
        )
        training_stems = _stems(self.training_texts())
        others = [w for w in words if w not in set(self.train_keywords)]
        self.unseen_keywords = tuple(sorted(w for w in others if not _stems([w]) & training_stems))
        self.unseen_scene_words = tuple(w for scene in SCENES for w in SCENE_WORDS[scene][1])
        self.unseen_action_words = tuple(w for action in ACTIONS for w in ACTION_WORDS[action][1])

    def training_texts(self, num_more_pairs: int = 0) -> tuple[str, ...]:  # without prompt templates
        return (
            *(noun.name for noun in self.nouns), *self.hypernyms, *self.train_keywords, *SCENES,
            *(w for scene in SCENES for w in SCENE_WORDS[scene][0]), *self.trained_actions,
            *(w for action in self.trained_actions for w in ACTION_WORDS[action][0]),
            *(pair_name(pair) for pair in (*self.train_pairs, *self.more_pairs(num_more_pairs))),
        )  # fmt: skip

    def more_pairs(self, num: int) -> tuple[tuple[str, str], ...]:
        """Further pairs of seen nouns and trained actions, as labels of training only. No rare pair is among them.

        The result for a smaller ``num`` is a prefix of that for a larger one.
        """
        taken = {*self.train_pairs, *self.rare_pairs}
        pairs = [p for p in itertools.product(self.seen_nouns, self.trained_actions) if p not in taken]
        random.Random(1).shuffle(pairs)
        return tuple(pairs[:num])

    def unseen_texts(self) -> dict[str, tuple[str, ...]]:
        return {
            "nouns (pretraining names them, fine-tuning neither shows nor names them)": self.unseen_nouns,
            "keywords": self.unseen_keywords,
            "words for scenes": self.unseen_scene_words,
            "actions": HELD_OUT_ACTIONS,
            "words for actions": self.unseen_action_words,
            "pairs": tuple(pair_name(pair) for pair in self.rare_pairs),
        }

    def column(self, part: Part, num_more_pairs: int = 0) -> Column:
        more_pairs = self.more_pairs(num_more_pairs)
        kinds = {**self._kinds(part), **_with_kind(map(pair_name, more_pairs), "pair")}
        labels = tuple(kinds)
        label_index = {label: i for i, label in enumerate(labels)}
        noun_index = {noun.name: i for i, noun in enumerate(self.nouns)}
        has_all_nouns = part in ("pretrain", "unseen_words")
        shown = [noun.name for noun in self.nouns] if has_all_nouns else list(self.seen_nouns)
        actions = self.trained_actions
        if part == "unseen_actions":  # held-out actions count double: they are few
            actions = (*ACTIONS, *HELD_OUT_ACTIONS)
        pairs = {"seen": self.train_pairs, "rare_pairs": self.rare_pairs}.get(part, ())
        rare = frozenset((noun_index[noun], ACTIONS.index(action)) for noun, action in self.rare_pairs)
        noun_words = [(n.name, *n.hypernyms, *self.keywords_of[n.name]) for n in self.nouns]
        return Column(
            labels=labels,
            kinds=kinds,
            nouns=torch.tensor([noun_index[name] for name in shown]),
            actions=torch.tensor([ACTIONS.index(action) for action in actions]),
            unseen_styles=part == "unseen_style",
            pairs=torch.tensor([(noun_index[noun], ACTIONS.index(a)) for noun, a in pairs]).reshape(-1, 2),
            excluded_pairs=frozenset() if part == "rare_pairs" else rare,
            noun_labels=_label_matrix(noun_words, label_index),
            scene_labels=_label_matrix([(s, *SCENE_WORDS[s][0], *SCENE_WORDS[s][1]) for s in SCENES], label_index),
            action_labels=_label_matrix([(a, *ACTION_WORDS[a][0], *ACTION_WORDS[a][1]) for a in ACTIONS], label_index),
            pair_labels={
                (noun_index[noun], ACTIONS.index(a)): label_index[pair_name((noun, a))]
                for noun, a in (*self.train_pairs, *self.rare_pairs, *more_pairs)
                if pair_name((noun, a)) in label_index
            },
        )

    def _kinds(self, part: Part) -> dict[str, str]:
        if part == "pretrain":
            return {
                **_with_kind(self.hypernyms, "hypernym"),
                **_with_kind((n.name for n in self.nouns), "noun"),
                **_with_kind(SCENES, "scene"),
            }
        if part == "unseen_words":
            return {
                **_with_kind(self.unseen_nouns, "noun"), **_with_kind(self.unseen_keywords, "keyword"),
                **_with_kind(self.unseen_scene_words, "scene"),
            }  # fmt: skip
        if part == "unseen_actions":
            return _with_kind((*HELD_OUT_ACTIONS, *self.unseen_action_words), "action")
        if part == "rare_pairs":
            return _with_kind(map(pair_name, self.rare_pairs), "pair")
        return {
            **_with_kind(self.seen_nouns, "noun"),
            **_with_kind(self.hypernyms, "hypernym"),
            **_with_kind(self.train_keywords, "keyword"),
            **_with_kind((w for scene in SCENES for w in (scene, *SCENE_WORDS[scene][0])), "scene"),
            **_with_kind((w for a in self.trained_actions for w in (a, *ACTION_WORDS[a][0])), "action"),
            **_with_kind(map(pair_name, self.train_pairs), "pair"),
        }

    def _pairs(self) -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]]:
        pairs = list(itertools.product(self.seen_nouns, self.trained_actions))
        count = min(NUM_PAIRS, len(pairs) // 8)
        chosen = random.Random(0).sample(pairs, 2 * count)
        return tuple(chosen[:count]), tuple(chosen[count:])


def pair_name(pair: tuple[str, str]) -> str:
    return " ".join(pair)


def _with_kind(labels: Iterable[str], kind: str) -> dict[str, str]:
    return dict.fromkeys(labels, kind)


def _all_phrases(words: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]) -> set[str]:
    return {text for name, (seen, unseen) in words.items() for text in (name, *seen, *unseen)}


def _label_matrix(rows: Sequence[Sequence[str]], label_index: Mapping[str, int]) -> Tensor:  # [rows, V] bool
    matrix = torch.zeros(len(rows), len(label_index), dtype=torch.bool)
    for i, row in enumerate(rows):
        matrix[i, [label_index[label] for label in row if label in label_index]] = True
    return matrix


def _hash_fraction(text: str) -> float:
    """In 0..1. Adding a noun moves no other one between seen and unseen."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32


def _stems(texts: Iterable[str]) -> set[str]:  # without endings: "dogs" equals "dog", "rotating" "rotate"
    words = {word for text in texts for word in re.findall(r"[a-z]+", text.lower())}
    return {re.sub(r"(ing|ies|es|ed|er|s|y|e)$", "", word) or word for word in words}
