"""The suite's rows as Markdown tables, precision-recall curves and reliability diagrams."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vidlex.model.eval.plots import plot_points, plot_reliability

TITLES = {
    "seen": "seen labels",
    "unseen_words": "unseen nouns and words",
    "unseen_actions": "unseen actions and words",
    "rare_pairs": "rare pairs",
    "unseen_style": "unseen style",
}
METHODS = {
    "clip_name": "CLIP, bare class name",
    "clip_photo": "CLIP, a photo of a ...",
    "clip_ensemble": "CLIP, 28 video templates",
    "fixed_llm": "CLIP, fixed LLM prompt",
    "coop": "CoOp",
    "dualcoop": "DualCoOp",
    "vificlip": "ViFi-CLIP",
    "ours": "ours",
    "settled": "ours, labels settled",
}
OURS = ("ours", "settled")
UNSEEN_WORDS = (
    ("keywords", "unseen_words", "keyword"),
    ("new words for seen actions", "unseen_actions", "new words for actions"),
    ("words for scenes", "unseen_words", "scene"),
)
"""Words that no training text contains, for things that training shows: title, column and part."""
FIGURES = (("micro_aupr", "micro AUPR"), ("micro_peak_f1", "Peak F1"))
COMPARISONS = (
    (
        "held-out actions, against the frame mean (CLIP, a photo of a ...)",
        "unseen_actions",
        "held-out actions",
        "clip_photo",
    ),
    *(
        (f"unseen words ({title}), against CLIP's bare class name", column, part, "clip_name")
        for title, column, part in UNSEEN_WORDS
    ),
    ("unseen nouns, against frozen CLIP", "unseen_words", "noun", "clip_photo"),
)

TRUST = (
    "Behind that, labels that CLIP knows, which is those whose feature has stayed near the bare name's, are scored by "
    "frozen CLIP's frame mean beside the branch, as far as validation videos say (trust in names; not in the paper). "
)
HELD = (
    "Held to CLIP, none of it in the paper: a loss keeps the videos' scores by the bare names as frozen CLIP gives "
    "them, another the labels' scores on frozen CLIP's videos, as far as CLIP knows the label (measured on training "
    "videos), the soft tokens stand behind the name, and training names {} more pairs, none of them a rare one, "
    "in the same videos. "
)

Rows = Sequence[Mapping[str, Any]]


def write_report(rows_folder: Path, facts: Mapping[str, Any], folder: Path) -> Path:
    """``SUITE.md`` with its pictures and ``suite.json`` from all rows that are there. Returns the Markdown's path."""
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(rows_folder.glob("*.json"))]
    main = [row for row in rows if row["group"] == "main"]
    folder.mkdir(parents=True, exist_ok=True)
    parts = [
        "# The method against what it is compared with\n",
        _how(facts, main),
        "## Main table\n",
        *(f"{title}, mean and spread over seeds:\n\n{_main_table(main, figure)}" for figure, title in FIGURES),
        "Chance is the prevalence: a random score has this AUPR. Pictures: `curves_*.png`.\n",
        "## The claims, one by one\n",
        _claims(main, facts),
        "## By kind of label\n",
        _kind_table(main),
        "## One threshold for all kinds of labels\n",
        _thresholds(main),
        *_without_llm(rows, main),
        "## Ablations\n",
        _ablations(rows, facts),
        *_longer(rows, facts),
        "## What is unseen\n",
        _unseen(facts),
    ]  # fmt: skip
    _pictures(main, folder)
    path = folder / "SUITE.md"
    path.write_text("\n".join(parts), encoding="utf-8")
    slim = [{key: value for key, value in row.items() if key != "curves"} for row in rows]
    (folder / "suite.json").write_text(
        json.dumps({"facts": dict(facts), "rows": slim}, indent=1) + "\n", encoding="utf-8"
    )
    return path


def _how(facts: Mapping[str, Any], main: Rows) -> str:
    settings = facts["settings"]
    minutes = sum(row["minutes"] for row in main)
    return (
        f"Written by `{facts['command'] or 'vidlex eval suite'}` on {facts['machine']}, torch {facts['torch']}. "
        f"Seeds of each method: {', '.join(f'{METHODS[m]} {len(_of(main, m))}' for m in METHODS if _of(main, m))}. "
        f"What is trained draws its steps from the same pool of "
        f"{settings['num_pool_videos']} rendered videos ({settings['num_frames']} frames each); every column has "
        f"{settings['num_test_videos']} held-out videos with seeds and backgrounds of their own. Ours: "
        f"{settings['num_warmup_steps']} label steps, then {settings['num_joint_steps']} joint steps of "
        f"{settings['batch_size']} videos, {settings['num_branch_blocks']} branch blocks, N = "
        f"{settings['num_prefixes']}, K = {settings['num_attributes']}, L = {settings['tokens_per_attribute']}. "
        f"CoOp and DualCoOp: {settings['num_baseline_steps']} steps of the same size, ViFi-CLIP as many of "
        f"{settings['num_tuned_videos']} videos and {settings['num_tuned_frames']} frames. {_held(facts)}"
        f"{_settled(main, settings)}"
        "Training of the main "
        f"table took {minutes:.0f} minutes. This is a small scale: read differences, not heights; a figure without "
        "a spread is one run, and some methods would still be learning.\n"
    )


def _held(facts: Mapping[str, Any]) -> str:
    """What holds for all rows of a suite whose rows are held to CLIP."""
    if not facts["settings"].get("held"):
        return ""
    noise = facts["settings"].get("state_noise")
    noisy = f"Noise of {noise} standard deviations is on the LLM's states in training (not in the paper). "
    return (
        f"Ours is held to CLIP. {HELD.format(facts['num_more_pairs'])}What it is compared with reads the further "
        f"pairs too. {noisy if noise else ''}"
    )


def _settled(main: Rows, settings: Mapping[str, Any]) -> str:
    """What the rows are whose labels settled; nothing where there are none."""
    rows = _of(main, "settled")
    if not rows:
        return ""
    pairs = f" and at most {settings['num_settling_pairs']} of the further pairs" if settings.get("held") else ""
    free = "; names that CLIP knows well stay held to it, pairs are free" if settings.get("held") else ""
    return (
        f"Labels settled (not in the paper): {settings['num_settling_steps']} more steps of the label encoder alone "
        f"behind each run of ours, on what its finished branch makes of {settings['num_settling_videos']} of the "
        f"videos, with {settings['num_settling_labels']} labels a step out of the training labels{pairs}{free}; "
        f"{sum(row['minutes'] for row in rows):.0f} minutes. {TRUST if any(row.get('trust') for row in rows) else ''}"
    )


def _of(main: Rows, method: str) -> list[Mapping[str, Any]]:
    return [row for row in main if row["method"] == method]


def _values(rows: Rows, column: str, figure: str, part: str | None = None) -> list[float]:
    found = []
    for row in rows:
        figures = row["columns"][column]
        chosen = figures["all"] if part is None else figures["parts"].get(part)
        if chosen is not None:
            found.append(float(chosen[figure]))
    return found


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean = f"{np.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.3f}"


def _main_table(main: Rows, figure: str) -> str:
    lines = ["| | " + " | ".join(TITLES.values()) + " |", "| --- |" + " --- |" * len(TITLES)]
    if figure == "micro_aupr":
        chance = (_cell(_values(main[:1], column, "chance")) for column in TITLES)
        lines.append("| chance | " + " | ".join(chance) + " |")
    for method, title in METHODS.items():
        rows = _of(main, method)
        if rows:
            lines.append(f"| {title} | " + " | ".join(_cell(_values(rows, column, figure)) for column in TITLES) + " |")
    return "\n".join(lines) + "\n"


def _claims(main: Rows, facts: Mapping[str, Any]) -> str:
    lines = []
    which = "settled" if _of(main, "settled") else "ours"
    ours = _of(main, which)
    for figure, title in FIGURES if ours else ():
        for column, name in TITLES.items():
            mine = _values(ours, column, figure)
            others = {m: _values(_of(main, m), column, figure) for m in METHODS if m not in OURS and _of(main, m)}
            if not others:
                continue
            best = max(others, key=lambda m: float(np.mean(others[m])))
            spread = max(_spread(mine), _spread(others[best]))
            lead = float(np.mean(mine) - np.mean(others[best]))
            how_sure = f"spread {spread:.3f}" if max(len(mine), len(others[best])) > 1 else "one run of each"
            verdict = "ahead" if lead > spread else "behind" if lead < -spread else "within the spread"
            lines.append(
                f"- {name}, {title}: {METHODS[which]} {_cell(mine)}, best of the others {METHODS[best]} "
                f"{_cell(others[best])}: {verdict} ({lead:+.3f}, {how_sure})."
            )
    for title, column, part, reference in COMPARISONS:
        lines += _times(f"AUPR on {title}", ours, _of(main, reference), column, part)
    learned = [row["held_out_probe"] for row in ours if row.get("held_out_probe")]
    if learned:
        branch, still = ([probe[name] for probe in learned] for name in ("branch", "frame_mean"))
        lines.append(
            "- Held-out actions, learned from videos that show them (logistic regressions, five-fold): AUPR "
            f"{_cell(branch)} on the branch's features, {_cell(still[:1])} on CLIP's frame means: "
            f"{np.mean(branch) / np.mean(still):.2f} times. What the videos tell of a motion, whatever its name does."
        )
    trusts = [row["by_trust"] for row in ours if row.get("by_trust")]
    if trusts:
        by_trust = "; ".join(
            f"{trust} {_cell([found[trust]['validation'] for found in trusts])} and "
            f"{_cell([found[trust].get('unseen nouns', math.nan) for found in trusts])}"
            for trust in trusts[0]
        )
        chosen = ", ".join(str(row["trust"]) for row in ours)
        lines.append(
            "- Not forgetting, and the part of interpolation with frozen CLIP in it: AUPR on validation videos, which "
            f"choose, and on unseen nouns, which do not, by trust in names: {by_trust}. Chosen: {chosen}."
        )
    probe = facts["one_frame"]
    lines.append(
        f"- A logistic regression on one frame's CLIP features reads the actions at AUPR {probe['action_aupr']:.3f} "
        f"(chance {probe['action_chance']:.3f}), the scenes at {probe['scene_aupr']:.3f} (chance "
        f"{probe['scene_chance']:.3f}): actions need time."
    )
    return "\n".join(lines) + "\n"


def _times(title: str, ours: Rows, others: Rows, column: str, part: str) -> list[str]:
    """A line that says how many times the others' micro AUPR ours is; none where a side has no figure."""
    mine, theirs = (_values(rows, column, "micro_aupr", part) for rows in (ours, others))
    if not (mine and theirs):
        return []
    return [f"- {title}: {_cell(mine)} against {_cell(theirs)}: {np.mean(mine) / np.mean(theirs):.2f} times."]


def _spread(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _kind_table(main: Rows) -> str:
    cells = [
        (column, part)
        for column in TITLES
        for part in (main[0]["columns"][column]["parts"] if main else ())
        if column != "rare_pairs"
    ]
    methods = {method: title for method, title in METHODS.items() if _of(main, method)}
    lines = ["Micro AUPR (mean over seeds).\n", "| column | kind | chance | " + " | ".join(methods.values()) + " |"]
    lines.append("| --- | --- | --- |" + " --- |" * len(methods))
    for column, part in cells:
        chance = _values(main[:1], column, "chance", part)
        values = [_values(_of(main, method), column, "micro_aupr", part) for method in methods]
        means = [f"{np.mean(v):.3f}" if v else "" for v in values]
        lines.append(f"| {TITLES[column]} | {part} | {chance[0]:.4f} | " + " | ".join(means) + " |")
    return "\n".join(lines) + "\n"


def _thresholds(main: Rows) -> str:
    lines = [
        "Micro F1 on the seen labels with the best single threshold and with the best threshold per kind of label, "
        "and the expected calibration error after Platt scaling on validation videos.\n",
        "| | one threshold | one per kind | lost | ECE |",
        "| --- | --- | --- | --- | --- |",
    ]
    for method, title in METHODS.items():
        rows = _of(main, method)
        if rows:
            lost = [row["thresholds"] for row in rows]
            lines.append(
                f"| {title} | {_cell([t['single_f1'] for t in lost])} | {_cell([t['per_kind_f1'] for t in lost])} | "
                f"{_cell([t['loss'] for t in lost])} | {_cell([row['expected_calibration_error'] for row in rows])} |"
            )
    return "\n".join(lines) + "\n"


def _without_llm(rows: Rows, main: Rows) -> list[str]:
    """Ours beside what is trained in the same way without the LLM; nothing where there is none."""
    bare = [row for row in rows if row["group"] == "without the LLM"]
    if not bare:
        return []
    which = "settled" if _of(bare, "settled") and _of(main, "settled") else "ours"
    seeds = ", ".join(str(row["seed"]) for row in _of(bare, which))
    both = [(f"{METHODS[m]}{end}", _of(r, m)) for m in OURS for end, r in (("", main), (", without the LLM", bare))]
    lines = [
        "## Without the LLM\n",
        "The same training, but that every label has the same states (zeros, and no noise on them): a learned prompt, "
        f"and CLIP's own reading of the name. Seeds {seeds}, {sum(row['minutes'] for row in bare):.0f} minutes. "
        "Micro AUPR, mean and spread over seeds.\n",
        *_changes([(name, chosen) for name, chosen in both if chosen]),
        f"{METHODS[which]}, micro AUPR on words that no training text contains, and what it is without the LLM:\n",
    ]
    for title, column, part in UNSEEN_WORDS:
        lines += _times(title, _of(main, which), _of(bare, which), column, part)
    return ["\n".join(lines) + "\n"]


def _ablations(rows: Rows, facts: Mapping[str, Any]) -> str:
    settings = facts["settings"]
    reference = f"{settings['num_branch_blocks']} branch blocks"
    has_reference = any(row["change"] == reference for row in rows)
    is_reference = f"the row with {reference} is the reference" if has_reference else f"the others have {reference}"
    notes = {
        "label side": "The label encoder alone, trained and judged on CLIP's frame means (no branch) and without "
        f"further pairs, {settings['num_label_ablation_steps']} steps, one seed.",
        "video side": f"{settings['num_ablation_steps']} joint steps, fewer than the main table, one seed; "
        f"{is_reference}.",
    }
    lines = []
    for group, note in notes.items():
        chosen = [row for row in rows if row["group"] == group]
        if not chosen:
            lines.append(f"The ablations of the {group} were not run.\n")
            continue
        lines += [f"{note} Micro AUPR.\n", *_changes([(row["change"], [row]) for row in chosen])]
    return "\n".join(lines)


def _longer(rows: Rows, facts: Mapping[str, Any]) -> list[str]:
    """Ours of the main table beside longer runs, and what these say of the claims; nothing where there is none."""
    main = [row for row in rows if row["group"] == "main"]
    long = [row for row in rows if row["group"] == "length"]
    parts = []
    for change in dict.fromkeys(row["change"] for row in long):
        chosen = [row for row in long if row["change"] == change]
        seeds = ", ".join(str(row["seed"]) for row in chosen)
        compared = [row for row in main if row["method"] not in OURS]
        parts += [
            f"## Longer training: {change}\n",
            f"Ours, seeds {seeds}, {sum(row['minutes'] for row in chosen):.0f} minutes; the others are "
            f"those of the main table. {_note_of(change, facts)}Micro AUPR, mean and spread over seeds.\n",
            "\n".join(_changes([("the main table's", _of(main, "ours")), (change, chosen)])),
            _claims([*compared, *chosen], facts),
            "One threshold instead of one per kind of label loses "
            f"{_cell([row['thresholds']['loss'] for row in chosen])} of micro F1 on the seen labels.\n",
        ]
    return parts


def _note_of(change: str, facts: Mapping[str, Any]) -> str:
    """What a change is, where its name does not say it."""
    if change.endswith(", held to CLIP"):
        return HELD.format(facts["num_more_pairs"])
    if change.endswith("the bare name in the mean"):
        return "The bare name is one more text of a label's mean, which is not in the paper. "
    return ""


def _changes(rows: Sequence[tuple[str, Rows]]) -> list[str]:
    """The lines of a table: what was changed, and what came of it."""
    lines = ["| change | " + " | ".join(TITLES.values()) + " | seen actions | held-out actions | keywords |"]
    lines.append("| --- |" + " --- |" * (len(TITLES) + 3))
    parts = (("seen", "action"), ("unseen_actions", "held-out actions"), ("unseen_words", "keyword"))
    for name, seeds in rows:
        cells = [_cell(_values(seeds, column, "micro_aupr")) for column in TITLES]
        cells += [_cell(_values(seeds, column, "micro_aupr", part)) for column, part in parts]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _unseen(facts: Mapping[str, Any]) -> str:
    lines = [f"None of these is in the {facts['num_training_texts']} texts that pretraining and fine-tuning read.\n"]
    lines += [f"- **{kind}** ({len(texts)}): {', '.join(texts)}" for kind, texts in facts["unseen"].items()]
    return "\n".join(lines) + "\n"


def _pictures(main: Rows, folder: Path) -> None:
    def points(method: str, column: str) -> Any:
        return _of(main, method)[0]["curves"][column]

    for column, title in TITLES.items():
        curves = {
            f"{name}: {_values(_of(main, method)[:1], column, 'micro_aupr')[0]:.3f}": points(method, column)
            for method, name in METHODS.items()
            if _of(main, method)
        }
        if curves:
            plot_points(curves, folder / f"curves_{column}.png", title=title)
    for method in (*OURS, "clip_photo"):
        rows = _of(main, method)
        if rows:
            plot_reliability(rows[0]["reliability"], folder / f"reliability_{method}.png", title=METHODS[method])
