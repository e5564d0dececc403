"""The report of the suite: Markdown tables, precision-recall curves and reliability diagrams."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vidlex.model.eval.plots import plot_points, plot_reliability
from vidlex.model.suite.report_rows import METHOD_TITLES, OURS, TITLES, Rows, cell, of_method, spread, values_of
from vidlex.model.train.loop.run_log import describe_machine

# Words that are in no training text, for things that training videos show: title, column and part.
UNSEEN_WORDS = (
    ("keywords", "unseen_words", "keyword"),
    ("new words for seen actions", "unseen_actions", "new words for actions"),
    ("words for scenes", "unseen_words", "scene"),
)
METRICS = (("micro_aupr", "micro AUPR"), ("micro_peak_f1", "Peak F1"))
MEAN = "mean ± standard deviation over seeds"
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
    "Afterwards, labels whose features are still close to those of the bare name are scored by frozen CLIP's frame "
    "mean in addition to the branch, with a weight chosen on validation videos (trust in names; not in the paper). "
)
HELD = (
    '"Held to CLIP" (not in the paper) means: one loss penalises changes of frozen CLIP\'s scores of the videos for '
    "the bare names, another penalises changes of its scores of the labels on its own video features, weighted by how "
    "well CLIP knows the label (measured on training videos); the soft tokens follow the name; and the same training "
    "videos have {} additional pair labels, none of which is a rare pair. "
)


def write_report(rows_folder: Path, facts: Mapping[str, Any], folder: Path) -> Path:
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(rows_folder.glob("*.json"))]
    folder.mkdir(parents=True, exist_ok=True)
    _pictures(_main(rows), folder)
    path = folder / "SUITE.md"
    path.write_text(markdown(rows, facts), encoding="utf-8")
    slim = [{key: value for key, value in row.items() if key != "curves"} for row in rows]
    (folder / "suite.json").write_text(
        json.dumps({"facts": dict(facts), "rows": slim}, indent=1) + "\n", encoding="utf-8"
    )
    return path


def markdown(rows: Rows, facts: Mapping[str, Any]) -> str:
    """Rows need no "curves", so ``suite.json`` is sufficient."""
    main = _main(rows)
    parts = [
        "# Our method and the baselines\n",
        _setup(facts, main, rows),
        "## Main table\n",
        *(f"{title}, {MEAN}:\n\n{_main_table(main, metric)}" for metric, title in METRICS),
        "Chance is the prevalence, which is the AUPR of random scores. Curves: `curves_*.png`.\n",
        "## Comparison by metric\n",
        comparisons(main, facts),
        "## By kind of label\n",
        _kind_table(main),
        "## One threshold for all kinds of labels\n",
        _thresholds(main),
        *_without_llm(rows, main),
        "## Ablations\n",
        _ablations(rows, facts),
        *_longer_runs(rows, facts),
        "## Unseen labels\n",
        _unseen(facts),
    ]  # fmt: skip
    return "\n".join(parts)


def _main(rows: Rows) -> Rows:
    return [row for row in rows if row["group"] == "main"]


def _setup(facts: Mapping[str, Any], main: Rows, rows: Rows) -> str:
    settings = facts["settings"]
    minutes = sum(row["minutes"] for row in main)
    seeds = {title: len(of_method(main, method)) for method, title in METHOD_TITLES.items()}
    return (
        f"Written by `{facts['command'] or 'vidlex eval suite'}` on {_machines(rows)}. "
        f"Number of seeds: {', '.join(f'{title} {num}' for title, num in seeds.items() if num)}. "
        f"All trained methods use the same pool of {settings['num_pool_videos']} rendered videos "
        f"({settings['num_frames']} frames each); every column has "
        f"{settings['num_test_videos']} held-out videos with separate seeds and backgrounds. Ours: "
        f"{settings['num_warmup_steps']} label steps, then {settings['num_joint_steps']} joint steps of "
        f"{settings['batch_size']} videos, {settings['num_branch_blocks']} branch blocks, N = "
        f"{settings['num_prefixes']}, K = {settings['num_attributes']}, L = {settings['tokens_per_attribute']}. "
        f"CoOp and DualCoOp: {settings['num_baseline_steps']} steps with the same batch size; ViFi-CLIP: as many steps "
        f"of {settings['num_tuned_videos']} videos with {settings['num_tuned_frames']} frames. {_held(facts)}"
        f"{_settled(main, settings)}"
        "Training of the main "
        f"table took {minutes:.0f} minutes. The scale is small, so compare differences rather than absolute values. A "
        "value without a standard deviation is from one run, and some methods had not converged.\n"
    )


def _machines(rows: Rows) -> str:
    """As the processes that trained the rows recorded them."""
    sessions = [row["session"] for row in rows if "session" in row]
    found = dict.fromkeys(f"{describe_machine(s)}, torch {s['versions']['torch']}" for s in sessions)
    return "; ".join(found) or "a machine that the rows do not record"


def _held(facts: Mapping[str, Any]) -> str:
    if not facts["settings"].get("held"):
        return ""
    noise = facts["settings"].get("state_noise")
    noise_note = f"Training adds noise of {noise} standard deviations to the LLM's states (not in the paper). "
    return (
        f"Ours is held to CLIP. {HELD.format(facts['num_more_pairs'])}The baselines are trained with the additional "
        f"pairs too. {noise_note if noise else ''}"
    )


def _settled(main: Rows, settings: Mapping[str, Any]) -> str:
    rows = of_method(main, "settled")
    if not rows:
        return ""
    pairs = f" and at most {settings['num_settling_pairs']} of the additional pairs" if settings.get("held") else ""
    held = "; labels that CLIP knows well stay held to CLIP, pairs do not" if settings.get("held") else ""
    return (
        f'"Labels settled" (not in the paper): {settings["num_settling_steps"]} more steps of the label encoder alone '
        f"after each run of ours, on the features of its finished branch for {settings['num_settling_videos']} of the "
        f"videos, with {settings['num_settling_labels']} labels per step from the training labels{pairs}{held}; "
        f"{sum(row['minutes'] for row in rows):.0f} minutes. {TRUST if any(row.get('trust') for row in rows) else ''}"
    )


def _main_table(main: Rows, metric: str) -> str:
    lines = ["| | " + " | ".join(TITLES.values()) + " |", "| --- |" + " --- |" * len(TITLES)]
    if metric == "micro_aupr":
        chance = (cell(values_of(main[:1], column, "chance")) for column in TITLES)
        lines.append("| chance | " + " | ".join(chance) + " |")
    for method, title in METHOD_TITLES.items():
        rows = of_method(main, method)
        if rows:
            lines.append(
                f"| {title} | " + " | ".join(cell(values_of(rows, column, metric)) for column in TITLES) + " |"
            )
    return "\n".join(lines) + "\n"


def comparisons(main: Rows, facts: Mapping[str, Any]) -> str:
    lines = []
    method = "settled" if of_method(main, "settled") else "ours"
    ours = of_method(main, method)
    for metric, title in METRICS if ours else ():
        for column, name in TITLES.items():
            values = values_of(ours, column, metric)
            others = {
                m: values_of(of_method(main, m), column, metric)
                for m in METHOD_TITLES
                if m not in OURS and of_method(main, m)
            }
            if not others:
                continue
            best = max(others, key=lambda m: float(np.mean(others[m])))
            max_spread = max(spread(values), spread(others[best]))
            lead = float(np.mean(values) - np.mean(others[best]))
            certainty = f"spread {max_spread:.3f}" if max(len(values), len(others[best])) > 1 else "one run of each"
            verdict = "ahead" if lead > max_spread else "behind" if lead < -max_spread else "within the spread"
            lines.append(
                f"- {name}, {title}: {METHOD_TITLES[method]} {cell(values)}, best baseline {METHOD_TITLES[best]} "
                f"{cell(others[best])}: {verdict} ({lead:+.3f}, {certainty})."
            )
    for title, column, part, reference in COMPARISONS:
        lines += _ratio(f"AUPR on {title}", ours, of_method(main, reference), column, part)
    probes = [row["held_out_probe"] for row in ours if row.get("held_out_probe")]
    if probes:
        branch, frame_mean = ([probe[name] for probe in probes] for name in ("branch", "frame_mean"))
        lines.append(
            "- Held-out actions by logistic regression on video features (five-fold cross-validation): AUPR "
            f"{cell(branch)} on the branch's features, {cell(frame_mean[:1])} on CLIP's frame means: "
            f"{np.mean(branch) / np.mean(frame_mean):.2f} times. The video features alone, without label texts."
        )
    trusts = [row["by_trust"] for row in ours if row.get("by_trust")]
    if trusts:
        by_trust = "; ".join(
            f"{trust}: {cell([scores[trust]['validation'] for scores in trusts])} and "
            f"{cell([scores[trust].get('unseen nouns', math.nan) for scores in trusts])}"
            for trust in trusts[0]
        )
        chosen = ", ".join(str(row["trust"]) for row in ours)
        lines.append(
            "- AUPR by trust in names, on validation videos (used for the choice) and on unseen nouns (not used): "
            f"{by_trust}. Chosen: {chosen}."
        )
    probe = facts["one_frame"]
    lines.append(
        f"- A logistic regression on CLIP's features of one frame recognises actions with AUPR "
        f"{probe['action_aupr']:.3f} (chance {probe['action_chance']:.3f}) and scenes with {probe['scene_aupr']:.3f} "
        f"(chance {probe['scene_chance']:.3f}): actions need several frames."
    )
    return "\n".join(lines) + "\n"


def _ratio(title: str, ours: Rows, others: Rows, column: str, part: str) -> list[str]:
    values, reference = (values_of(rows, column, "micro_aupr", part) for rows in (ours, others))
    if not (values and reference):
        return []
    return [f"- {title}: {cell(values)} against {cell(reference)}: {np.mean(values) / np.mean(reference):.2f} times."]


def _kind_table(main: Rows) -> str:
    cells = [
        (column, part)
        for column in TITLES
        for part in (main[0]["columns"][column]["parts"] if main else ())
        if column != "rare_pairs"
    ]
    methods = {method: title for method, title in METHOD_TITLES.items() if of_method(main, method)}
    lines = ["Micro AUPR (mean over seeds).\n", "| column | kind | chance | " + " | ".join(methods.values()) + " |"]
    lines.append("| --- | --- | --- |" + " --- |" * len(methods))
    for column, part in cells:
        chance = values_of(main[:1], column, "chance", part)
        values = [values_of(of_method(main, method), column, "micro_aupr", part) for method in methods]
        means = [f"{np.mean(v):.3f}" if v else "" for v in values]
        lines.append(f"| {TITLES[column]} | {part} | {chance[0]:.4f} | " + " | ".join(means) + " |")
    return "\n".join(lines) + "\n"


def _thresholds(main: Rows) -> str:
    lines = [
        "Micro F1 on the seen labels with the best single threshold and with the best threshold per kind of label, "
        "and the expected calibration error after Platt scaling on validation videos.\n",
        "| | one threshold | one per kind | difference | ECE |",
        "| --- | --- | --- | --- | --- |",
    ]
    for method, title in METHOD_TITLES.items():
        rows = of_method(main, method)
        if rows:
            found = [row["thresholds"] for row in rows]
            lines.append(
                f"| {title} | {cell([t['single_f1'] for t in found])} | {cell([t['per_kind_f1'] for t in found])} | "
                f"{cell([t['loss'] for t in found])} | {cell([row['expected_calibration_error'] for row in rows])} |"
            )
    return "\n".join(lines) + "\n"


def _without_llm(rows: Rows, main: Rows) -> list[str]:
    bare = [row for row in rows if row["group"] == "without the LLM"]
    if not bare:
        return []
    method = "settled" if of_method(bare, "settled") and of_method(main, "settled") else "ours"
    seeds = ", ".join(str(row["seed"]) for row in of_method(bare, method))
    both = [
        (f"{METHOD_TITLES[m]}{end}", of_method(r, m))
        for m in OURS
        for end, r in (("", main), (", without the LLM", bare))
    ]
    lines = [
        "## Without the LLM\n",
        "The same training with equal LLM states for every label (zeros without noise): CLIP reads the name after one "
        f"learned prompt. Seeds {seeds}, {sum(row['minutes'] for row in bare):.0f} minutes. "
        f"Micro AUPR, {MEAN}.\n",
        *_changes([(name, chosen) for name, chosen in both if chosen]),
        f"{METHOD_TITLES[method]}, micro AUPR on words that are in no training text, with and without the LLM:\n",
    ]
    for title, column, part in UNSEEN_WORDS:
        lines += _ratio(title, of_method(main, method), of_method(bare, method), column, part)
    return ["\n".join(lines) + "\n"]


def _ablations(rows: Rows, facts: Mapping[str, Any]) -> str:
    settings = facts["settings"]
    reference = f"{settings['num_branch_blocks']} branch blocks"
    has_reference = any(row["change"] == reference for row in rows)
    is_reference = f"the row with {reference} is the reference" if has_reference else f"the others have {reference}"
    notes = {
        "label side": "The label encoder alone, trained and evaluated on CLIP's frame means (no branch) and without "
        f"additional pairs, {settings['num_label_ablation_steps']} steps, one seed.",
        "video side": f"{settings['num_ablation_steps']} joint steps, fewer than the main table, one seed; "
        f"{is_reference}.",
    }
    lines = []
    for group, note in notes.items():
        chosen = [row for row in rows if row["group"] == group]
        if not chosen:
            lines.append(f"No ablations of the {group} were run.\n")
            continue
        lines += [f"{note} Micro AUPR.\n", *_changes([(row["change"], [row]) for row in chosen])]
    return "\n".join(lines)


def _longer_runs(rows: Rows, facts: Mapping[str, Any]) -> list[str]:
    main = [row for row in rows if row["group"] == "main"]
    long = [row for row in rows if row["group"] == "length"]
    parts = []
    for change in dict.fromkeys(row["change"] for row in long):
        chosen = [row for row in long if row["change"] == change]
        seeds = ", ".join(str(row["seed"]) for row in chosen)
        compared = [row for row in main if row["method"] not in OURS]
        parts += [
            f"## Longer training: {change}\n",
            f"Ours, seeds {seeds}, {sum(row['minutes'] for row in chosen):.0f} minutes; the baselines are those of the "
            f"main table. {_note_of(change, facts)}Micro AUPR, {MEAN}.\n",
            "\n".join(_changes([("main table", of_method(main, "ours")), (change, chosen)])),
            comparisons([*compared, *chosen], facts),
            "With one threshold instead of one per kind of label, micro F1 on the seen labels is lower by "
            f"{cell([row['thresholds']['loss'] for row in chosen])}.\n",
        ]
    return parts


def _note_of(change: str, facts: Mapping[str, Any]) -> str:
    if change.endswith(", held to CLIP"):
        return HELD.format(facts["num_more_pairs"])
    if change.endswith("the bare name in the mean"):
        return "The bare name is an additional text in a label's mean, which is not in the paper. "
    return ""


def _changes(rows: Sequence[tuple[str, Rows]]) -> list[str]:
    lines = ["| change | " + " | ".join(TITLES.values()) + " | seen actions | held-out actions | keywords |"]
    lines.append("| --- |" + " --- |" * (len(TITLES) + 3))
    parts = (("seen", "action"), ("unseen_actions", "held-out actions"), ("unseen_words", "keyword"))
    for name, seeds in rows:
        cells = [cell(values_of(seeds, column, "micro_aupr")) for column in TITLES]
        cells += [cell(values_of(seeds, column, "micro_aupr", part)) for column, part in parts]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _unseen(facts: Mapping[str, Any]) -> str:
    lines = [f"None of these is among the {facts['num_training_texts']} texts of pretraining and fine-tuning.\n"]
    lines += [f"- **{kind}** ({len(texts)}): {', '.join(texts)}" for kind, texts in facts["unseen"].items()]
    return "\n".join(lines) + "\n"


def _pictures(main: Rows, folder: Path) -> None:
    def points(method: str, column: str) -> Any:
        return of_method(main, method)[0]["curves"][column]

    for column, title in TITLES.items():
        curves = {
            f"{name}: {values_of(of_method(main, method)[:1], column, 'micro_aupr')[0]:.3f}": points(method, column)
            for method, name in METHOD_TITLES.items()
            if of_method(main, method)
        }
        if curves:
            plot_points(curves, folder / f"curves_{column}.png", title=title)
    for method in (*OURS, "clip_photo"):
        rows = of_method(main, method)
        if rows:
            plot_reliability(rows[0]["reliability"], folder / f"reliability_{method}.png", title=METHOD_TITLES[method])
