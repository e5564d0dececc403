"""`vidlex train`, `data build` and `weights`: the command line of the room `model`.

Each heavy command hands its options to one function there; see `options.py` for how they are found.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from vidlex.service.commands.options import PASS_THROUGH, run_entry
from vidlex.service.commands.output import CommandError, JsonFlag, print_json, progress, stdout, use_json

train = typer.Typer(no_args_is_help=True, help="Train checkpoints. A run that was stopped goes on where it was.")
data = typer.Typer(no_args_is_help=True, help="Prepare data sets.")
build = typer.Typer(no_args_is_help=True, help="Build a data set from its sources.")
weights = typer.Typer(no_args_is_help=True, help="Weights that are fetched once and kept in the cache.")
data.add_typer(build, name="build")


@train.command("pretrain", context_settings=PASS_THROUGH)
def pretrain(ctx: typer.Context) -> None:
    """Train the small CLIP from nothing."""
    run_entry(
        ctx, "vidlex.model.suite.pretrain:main", defaults={"out": Path("runs/pretrain"), "art_cache": _art_cache()}
    )


@train.command("fit", context_settings=PASS_THROUGH)
def fit(ctx: typer.Context) -> None:
    """Fine-tune label encoder and temporal branch by the paper's method, and write a checkpoint."""
    run_entry(ctx, "vidlex.model.train.run_fit:main", defaults={"out": Path("runs/fit"), "art_cache": _art_cache()})


@train.command("ship", context_settings=PASS_THROUGH)
def ship(ctx: typer.Context) -> None:
    """Evaluate a trained checkpoint on held-out videos and put it into the zoo, with its card."""
    run_entry(ctx, "vidlex.model.suite.ship:main", defaults={"art_cache": _art_cache()})


def suite(ctx: typer.Context) -> None:
    """`vidlex eval suite`: train and judge our method, its ablations and what it is compared with."""
    command = " ".join(["vidlex eval suite", *ctx.args])
    defaults = {"out": Path("runs/suite"), "art_cache": _art_cache(), "command": command}
    run_entry(ctx, "vidlex.model.suite.suite:main", defaults=defaults, name="vidlex eval suite")


@build.command("emoji", context_settings=PASS_THROUGH)
def build_emoji(ctx: typer.Context) -> None:
    """The procedural world of labelled emoji videos."""
    run_entry(ctx, "vidlex.model.emoji.build:build", defaults={"out": Path("data/emoji"), "art_cache": _art_cache()})


@build.command("youtube8m", context_settings=PASS_THROUGH)
def build_youtube8m(ctx: typer.Context) -> None:
    """YouTube-8M, from vocabulary.csv and TFRecords."""
    run_entry(ctx, "vidlex.model.data.youtube8m:build")


@build.command("kinetics", context_settings=PASS_THROUGH)
def build_kinetics(ctx: typer.Context) -> None:
    """Kinetics-400, from its CSV lists of clips."""
    run_entry(ctx, "vidlex.model.data.kinetics:build")


@build.command("tao", context_settings=PASS_THROUGH)
def build_tao(ctx: typer.Context) -> None:
    """TAO, from train.json or validation.json."""
    run_entry(ctx, "vidlex.model.data.tao:build")


@build.command("activitynet", context_settings=PASS_THROUGH)
def build_activitynet(ctx: typer.Context) -> None:
    """ActivityNet 1.3, from its JSON."""
    run_entry(ctx, "vidlex.model.data.activitynet:build")


@build.command("rareact", context_settings=PASS_THROUGH)
def build_rareact(ctx: typer.Context) -> None:
    """RareAct, from rareact.csv."""
    run_entry(ctx, "vidlex.model.data.rareact:build")


@weights.command("fetch")
def fetch(
    name: Annotated[str, typer.Argument(help="An LLM: the default's name, a hub name or a local folder.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """Fetch an LLM into the cache, so that the first start needs no network."""
    use_json(as_json)
    folder = fetch_llm_with_progress(name)
    if as_json:
        print_json({"name": name or _default_llm(), "path": str(folder)})
    else:
        stdout().print(f"{escape(name or _default_llm())}: {escape(str(folder))}", soft_wrap=True)


def fetch_llm_with_progress(name: str = "") -> Path:
    """The folder of an LLM (the default for an empty name), fetched if need be. Raises CommandError."""
    from vidlex.model.weights import WeightsError, fetch_llm

    with progress("language model", total=None) as bar:
        try:
            return fetch_llm(
                name or _default_llm(), progress=lambda message: bar.update(bar.task_ids[0], description=message)
            )
        except WeightsError as error:
            raise CommandError(str(error)) from None


def _default_llm() -> str:
    from vidlex.model.weights import DEFAULT_LLM

    return DEFAULT_LLM


def _art_cache() -> Path:
    from vidlex.model.weights import cache_dir

    return cache_dir() / "art"
