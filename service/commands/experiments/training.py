"""`vidlex train`, `vidlex data build` and `vidlex eval suite`."""

from __future__ import annotations

import typer

from vidlex.service.commands.experiments.dataclass_options import add_entry

_FUNCTIONS = "vidlex.service.commands.experiments.train_entries"
TRAINING_MODULES = ("matplotlib", "resvg_py", "scipy", "sklearn", "tensorboard")

train = typer.Typer(no_args_is_help=True, help="Train checkpoints. A repeated command resumes an interrupted run.")
data = typer.Typer(no_args_is_help=True, help="Prepare datasets.")
build = typer.Typer(no_args_is_help=True, help="Build a dataset from its official files.")
data.add_typer(build, name="build")

add_entry(
    train,
    "vidlex train pretrain",
    f"{_FUNCTIONS}:pretrain",
    help="Train a small CLIP from random weights.",
    requires=TRAINING_MODULES,
)
add_entry(
    train,
    "vidlex train fit",
    f"{_FUNCTIONS}:fit",
    help="Fine-tune label encoder and temporal branch by the paper's method, and write a checkpoint.",
    requires=TRAINING_MODULES,
)
add_entry(
    train,
    "vidlex train photo",
    f"{_FUNCTIONS}:photo",
    help="Learn labels from an image classifier's weights and photographs, and write the checkpoint photo-small.",
    requires=("scipy",),
)
add_entry(
    train,
    "vidlex train ship",
    f"{_FUNCTIONS}:ship",
    help="Evaluate a trained checkpoint on held-out videos, and copy it to the zoo with its model card.",
    requires=TRAINING_MODULES,
)
add_entry(
    build,
    "vidlex data build emoji",
    f"{_FUNCTIONS}:build_emoji",
    help="Render labelled videos from emoji.",
    requires=("resvg_py",),
)
for _name, _help, _requires in (
    ("youtube8m", "YouTube-8M, from vocabulary.csv and TFRecords.", ("google_crc32c",)),
    ("kinetics", "Kinetics-400, from its CSV lists of clips.", ()),
    ("tao", "TAO, from train.json or validation.json.", ()),
    ("activitynet", "ActivityNet 1.3, from its JSON file.", ()),
    ("rareact", "RareAct, from rareact.csv.", ()),
):
    add_entry(build, f"vidlex data build {_name}", f"vidlex.model.data.{_name}:build", help=_help, requires=_requires)


def add_suite(app: typer.Typer) -> None:
    """`vidlex eval suite`, under the name to which RootGroup dispatches it."""
    add_entry(
        app,
        "vidlex eval suite",
        f"{_FUNCTIONS}:suite",
        help="Train and evaluate our method, the baselines and the ablations, and write a report.",
        word="eval-suite",
        hidden=True,
        requires=TRAINING_MODULES,
    )
