"""Which labels, things, motions and styles each part of the world has: training, and the five columns of evaluation.

They mirror the paper's five datasets at small scale:

seen             labels of training, videos of things seen in training (its YouTube-8M and Kinetics)
unseen_words     nouns that fine-tuning never showed or named, and words that no training text contains, for known
                 things and scenes (its TAO)
unseen_actions   motions never shown, and new words for known ones (its ActivityNet)
rare_pairs       a thing and what it does in one label, in pairs never shown together; beside them the same thing
                 doing something else, and another thing doing the same (its RareAct)
unseen_style     the labels of training in a style of art that no training has shown

``pretrain`` is what the small CLIP learns from, still pictures and their names: every noun (CLIP knows them all, as
web-scale CLIP would), no keyword, no action.
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

from vidlex.model.emoji.keywords import not_too_common
from vidlex.model.emoji.nouns import Noun
from vidlex.model.emoji.vocabulary import ACTION_WORDS, ACTIONS, HELD_OUT_ACTIONS, SCENE_WORDS, SCENES

ColumnName = Literal["seen", "unseen_words", "unseen_actions", "rare_pairs", "unseen_style"]
Part = Literal["pretrain"] | ColumnName
COLUMNS: tuple[ColumnName, ...] = get_args(ColumnName)
UNSEEN_STYLES = frozenset(("openmoji",))

UNSEEN_NOUN_PART = 0.12
UNSEEN_KEYWORD_PART = 0.4
NUM_PAIRS = 80
"""Of the pairs of training, and as many rare ones."""


@dataclass(frozen=True, eq=False)
class Column:
    """One part of the world."""

    labels: tuple[str, ...]
    kinds: Mapping[str, str]
    """Label -> noun, hypernym, keyword, scene, action or pair."""
    nouns: Tensor
    """[n] int64: indices of the nouns that are shown."""
    actions: Tensor
    """[m] int64: indices of the actions that are shown."""
    unseen_styles: bool
    pairs: Tensor
    """[p, 2] int64 (noun, action): shown more often than by chance."""
    forbidden: frozenset[tuple[int, int]]
    """Pairs that are never shown."""
    noun_truth: Tensor
    """[nouns, V] bool: labels that a noun makes true."""
    scene_truth: Tensor
    """[scenes, V] bool."""
    action_truth: Tensor
    """[actions, V] bool."""
    pair_truth: Mapping[tuple[int, int], int]
    """(noun, action) -> the label that the pair makes true."""


class Protocol:
    """All labels of the world over its nouns, and who may see them. The same nouns give the same protocol."""

    def __init__(self, nouns: Sequence[Noun]) -> None:
        self.nouns = tuple(nouns)
        names = [noun.name for noun in nouns]
        self.hypernyms = tuple(sorted({h for noun in nouns for h in noun.hypernyms} - set(names)))
        taken = {*names, *self.hypernyms, *_said(SCENE_WORDS), *_said(ACTION_WORDS)}
        self.keywords_of = not_too_common({n.name: [w for w in n.keywords if w not in taken] for n in nouns})
        self.unseen_nouns = tuple(name for name in names if len(names) > 20 and _share(name) < UNSEEN_NOUN_PART)
        hidden = set(self.unseen_nouns)
        self.seen_nouns = tuple(name for name in names if name not in hidden)
        self.trained_actions = tuple(action for action in ACTIONS if action not in HELD_OUT_ACTIONS)
        self.train_pairs, self.rare_pairs = self._pairs()
        words = dict.fromkeys(w for name in self.seen_nouns for w in self.keywords_of[name])
        self.train_keywords = tuple(sorted(w for w in words if _share(f"keyword {w}") >= UNSEEN_KEYWORD_PART))
        read = frozenset(_stems(self.training_texts()))
        left = [w for w in words if w not in set(self.train_keywords)]
        self.unseen_keywords = tuple(sorted(w for w in left if not _stems([w]) & read))
        self.unseen_scene_words = tuple(w for scene in SCENES for w in SCENE_WORDS[scene][1])
        self.unseen_action_words = tuple(w for action in ACTIONS for w in ACTION_WORDS[action][1])

    def training_texts(self, num_more_pairs: int = 0) -> tuple[str, ...]:
        """Every label that any training reads: pretraining and fine-tuning. Prompts add common words around them."""
        return (
            *(noun.name for noun in self.nouns), *self.hypernyms, *self.train_keywords, *SCENES,
            *(w for scene in SCENES for w in SCENE_WORDS[scene][0]), *self.trained_actions,
            *(w for action in self.trained_actions for w in ACTION_WORDS[action][0]),
            *(pair_name(pair) for pair in (*self.train_pairs, *self.more_pairs(num_more_pairs))),
        )  # fmt: skip

    def more_pairs(self, num: int) -> tuple[tuple[str, str], ...]:
        """Further pairs of seen nouns and trained actions, for training to name (no column judges them): how a thing
        and what it does become one label is learned from many of them. None is a rare pair; fewer are part of more.
        """
        taken = {*self.train_pairs, *self.rare_pairs}
        left = [p for p in itertools.product(self.seen_nouns, self.trained_actions) if p not in taken]
        random.Random(1).shuffle(left)
        return tuple(left[:num])

    def unseen_texts(self) -> dict[str, tuple[str, ...]]:
        """What is kept out, by what it is: the list that a run writes down."""
        return {
            "nouns (pretraining names them, fine-tuning neither shows nor names them)": self.unseen_nouns,
            "keywords": self.unseen_keywords,
            "words for scenes": self.unseen_scene_words,
            "actions": HELD_OUT_ACTIONS,
            "words for actions": self.unseen_action_words,
            "pairs": tuple(pair_name(pair) for pair in self.rare_pairs),
        }

    def column(self, part: Part, num_more_pairs: int = 0) -> Column:
        """The labels of a part of the world, what it shows and what that makes true.

        ``num_more_pairs``: labels behind all others, ``more_pairs``. What is shown is the same with them.
        """
        more_pairs = self.more_pairs(num_more_pairs)
        kinds = {**self._kinds(part), **_all(map(pair_name, more_pairs), "pair")}
        labels = tuple(kinds)
        place = {label: i for i, label in enumerate(labels)}
        index = {noun.name: i for i, noun in enumerate(self.nouns)}
        unseen = part == "unseen_words"
        shown = [noun.name for noun in self.nouns] if part == "pretrain" or unseen else list(self.seen_nouns)
        actions = self.trained_actions
        if part == "unseen_actions":  # a held-out one as often as two others, or there would be few of them
            actions = (*ACTIONS, *HELD_OUT_ACTIONS)
        pairs = {"seen": self.train_pairs, "rare_pairs": self.rare_pairs}.get(part, ())
        rare = frozenset((index[noun], ACTIONS.index(action)) for noun, action in self.rare_pairs)
        truth_of_noun = [(n.name, *n.hypernyms, *self.keywords_of[n.name]) for n in self.nouns]
        return Column(
            labels=labels,
            kinds=kinds,
            nouns=torch.tensor([index[name] for name in shown]),
            actions=torch.tensor([ACTIONS.index(action) for action in actions]),
            unseen_styles=part == "unseen_style",
            pairs=torch.tensor([(index[noun], ACTIONS.index(a)) for noun, a in pairs]).reshape(-1, 2),
            forbidden=frozenset() if part == "rare_pairs" else rare,
            noun_truth=_truth(truth_of_noun, place),
            scene_truth=_truth([(scene, *SCENE_WORDS[scene][0], *SCENE_WORDS[scene][1]) for scene in SCENES], place),
            action_truth=_truth([(a, *ACTION_WORDS[a][0], *ACTION_WORDS[a][1]) for a in ACTIONS], place),
            pair_truth={
                (index[noun], ACTIONS.index(a)): place[pair_name((noun, a))]
                for noun, a in (*self.train_pairs, *self.rare_pairs, *more_pairs)
                if pair_name((noun, a)) in place
            },
        )

    def _kinds(self, part: Part) -> dict[str, str]:
        if part == "pretrain":
            return {
                **_all(self.hypernyms, "hypernym"),
                **_all((n.name for n in self.nouns), "noun"),
                **_all(SCENES, "scene"),
            }
        if part == "unseen_words":
            return {
                **_all(self.unseen_nouns, "noun"), **_all(self.unseen_keywords, "keyword"),
                **_all(self.unseen_scene_words, "scene"),
            }  # fmt: skip
        if part == "unseen_actions":
            return _all((*HELD_OUT_ACTIONS, *self.unseen_action_words), "action")
        if part == "rare_pairs":
            return _all(map(pair_name, self.rare_pairs), "pair")
        return {
            **_all(self.seen_nouns, "noun"),
            **_all(self.hypernyms, "hypernym"),
            **_all(self.train_keywords, "keyword"),
            **_all((w for scene in SCENES for w in (scene, *SCENE_WORDS[scene][0])), "scene"),
            **_all((w for a in self.trained_actions for w in (a, *ACTION_WORDS[a][0])), "action"),
            **_all(map(pair_name, self.train_pairs), "pair"),
        }

    def _pairs(self) -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]]:
        """Two lists of pairs of seen nouns and trained actions, with nothing in common."""
        every = [(noun, action) for noun in self.seen_nouns for action in self.trained_actions]
        count = min(NUM_PAIRS, len(every) // 8)
        chosen = random.Random(0).sample(every, 2 * count)
        return tuple(chosen[:count]), tuple(chosen[count:])


def pair_name(pair: tuple[str, str]) -> str:
    """("dog", "spinning") -> "dog spinning"."""
    return " ".join(pair)


def _all(labels: Iterable[str], kind: str) -> dict[str, str]:
    return dict.fromkeys(labels, kind)


def _said(words: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]) -> set[str]:
    return {text for name, (seen, unseen) in words.items() for text in (name, *seen, *unseen)}


def _truth(rows: Sequence[Sequence[str]], place: Mapping[str, int]) -> Tensor:
    """[rows, V] bool: which labels each row makes true."""
    truth = torch.zeros(len(rows), len(place), dtype=torch.bool)
    for i, row in enumerate(rows):
        truth[i, [place[label] for label in row if label in place]] = True
    return truth


def _share(text: str) -> float:
    """A number in 0..1 that depends on the text alone, so that adding a noun moves no other one between the sides."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32


def _stems(texts: Iterable[str]) -> set[str]:
    """The words of texts without common endings: "dogs" and "dog" are one word, and so are "rotate" and "rotating"."""
    words = {word for text in texts for word in re.findall(r"[a-z]+", text.lower())}
    return {re.sub(r"(ing|ies|es|ed|er|s|y|e)$", "", word) or word for word in words}
