"""Tables of the documents that are generated from the code. `make docs` writes them, a test compares them."""

from __future__ import annotations

import importlib
import inspect
import operator
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import typer.main

from support.paths import ROOT
from vidlex.model.decode.containers.formats import CODECS, CONTAINERS
from vidlex.model.video.towers.table import TOWER_ROWS
from vidlex.service.app import create_app
from vidlex.service.cli import app as command_line
from vidlex.service.http.guard import PUBLIC_PATHS, required_scope
from vidlex.service.http.openapi.errors import ERRORS
from vidlex.service.runtime.gauges import register_gauges
from vidlex.service.schemas.result_warnings import RESULT_WARNINGS
from vidlex.service.settings import ENV_PREFIX, Settings, load_settings
from vidlex.service.telemetry.metrics import CallbackGauges, Metrics

DOCUMENTS = (
    "README.md",
    "service/README.md",
    "service/client/README.md",
    "service/bulk/README.md",
    "service/bulk/local/README.md",
    "service/cluster/README.md",
    "service/jobs/README.md",
    "service/webhooks/README.md",
    "service/feedback/README.md",
    "service/videos/README.md",
    "model/README.md",
    "docker/README.md",
    "tests/README.md",
)
REGION = re.compile(r"<!-- generated: (?P<name>\w+) -->\n.*?<!-- end -->", re.DOTALL)
_METHODS = ("get", "post", "put", "patch", "delete")


def settings_table() -> str:
    return _table(("variable", "default", "meaning"), map(_setting, Settings.model_fields))


def _setting(name: str) -> tuple[str, str, str]:
    field = Settings.model_fields[name]
    assert field.description, f"{name} has no description"
    if field.default_factory is not None:
        default = {"data_dir": "`~/.local/share/vidlex`", "decode_workers": "cores, at most 8"}[name]
    else:
        default = "none" if field.default in (None, ()) else f"`{field.default}`"
    return f"`{ENV_PREFIX}{name.upper()}`", default, field.description.removesuffix("; default: cores, at most 8")


def routes_table() -> str:
    paths: dict[str, Any] = create_app(load_settings(traces="off")).openapi()["paths"]
    rows = [
        (f"`{method.upper()} {path}`", operation["summary"], _scope(method, path))
        for path, item in paths.items()
        for method, operation in item.items()
        if method in _METHODS
    ]
    return _table(("request", "what it does", "key"), rows)


def _scope(method: str, path: str) -> str:
    return "none" if path in PUBLIC_PATHS else required_scope(method.upper(), path)


def errors_table() -> str:
    errors = {error for operation in ERRORS.values() for error in operation}
    rows = sorted({(error.status, error.code, error.title) for error in errors})
    return _table(("status", "`code`", "meaning"), ((str(s), f"`{code}`", title) for s, code, title in rows))


def metrics_table() -> str:
    metrics = Metrics()
    register_gauges(metrics, lambda: None, "default")
    label_names = {metric._name: metric._labelnames for metric in vars(metrics).values() if hasattr(metric, "_name")}
    collectors = metrics.registry._collector_to_names
    label_names |= {found.name: found.label_names for found in collectors if isinstance(found, CallbackGauges)}
    rows = []
    for family in metrics.registry.collect():
        if family.name.startswith("vidlex_"):
            labels = label_names.get(family.name, ())
            name = f"{family.name}_total" if family.type == "counter" else family.name
            rows.append((f"`{name}`", family.type, ", ".join(labels), family.documentation))
    return _table(("metric", "type", "labels", "meaning"), sorted(rows))


def commands_table() -> str:
    return _table(("command", "what it does"), _commands(typer.main.get_command(command_line), "vidlex"))


def _commands(command: Any, name: str) -> Iterator[tuple[str, str]]:
    children = getattr(command, "commands", None)
    if children is None:
        yield f"`{name}`", (command.help or "").strip().partition("\n")[0]
        return
    for word, child in children.items():
        if not child.hidden:
            yield from _commands(child, f"{name} {word}")


def warnings_table() -> str:
    rows = ((f"`{code}`", found.meaning, found.remedy) for code, found in RESULT_WARNINGS.items())
    return _table(("`code`", "meaning", "what to do"), rows)


def formats_table() -> str:
    rows = (("containers", CONTAINERS), ("video codecs", CODECS))
    return _table(("", "which are read"), ((kind, ", ".join(found.values())) for kind, found in rows))


def towers_table() -> str:
    head = ("image tower", "library", "adapter", "in TMP's place", "blocks of the branch", "own text tower")
    return _table(head, ((f"`{r.name}`", r.library, f"`{r.adapter}`", r.tmp, r.blocks, r.text) for r in TOWER_ROWS))


# The paper's equations in the order in which a step computes them, and the function that is each of them.
EQUATIONS: tuple[tuple[str, str], ...] = (
    (
        "`h = LLM([P_i; prompt(label)])`: K x L decoded states per prefix",
        "text.label_encoder:LabelEncoder.soft_attributes",
    ),
    ("the keys and values of `[P_i; I]`, which all labels share", "text.llm:FrozenLLM.prefill"),
    ("greedy decoding, without gradient", "text.llm:FrozenLLM.decode"),
    ("the same states with gradient to `P_i`", "text.llm:FrozenLLM.teacher_forced_states"),
    ("`z = prompting transformer(h)`, in CLIP's token space", "text.prompting_transformer:PromptingTransformer"),
    ("`CLIP_text([SOS, z_1 ... z_L, label, EOT])`", "text.clip_text:ClipText.encode_with_soft"),
    ("`f_t = mean(normalize(CLIP_text(...)))` over N x K", "text.label_encoder:LabelEncoder._features"),
    ("`x + Attention_T(x)`: temporal attention, new", "video.temporal:TemporalAttention"),
    ("a branch block: temporal, then spatial attention", "video.temporal:BranchBlock"),
    ("`theta = alpha theta_ft + (1 - alpha) theta_frozen`", "video.temporal:interpolate"),
    ("`f_v = (TMP + frame mean) / 2`, over T frames", "video.encoder:VideoEncoder._run_branch"),
    ("`alpha ~ U(0, lambda)`, and the step as a whole", "train.fit:JointTask.micro_batch_loss"),
    ("`s = f_v . f_t`", "train.network:OpenVocabularyNetwork.logits"),
    ("`logit = s / tau + bias`", "scoring:similarity_to_logit"),
    ("`p = sigmoid(logit)`", "scoring:Scorer.probability"),
    ("`- sum_v [ sum_P log p + w sum_N log(1 - p) ]`", "train.losses:weighted_bce"),
)
# Read in this order, these files are the method. The rest of training loads, feeds, logs, evaluates and resumes.
CORE_PATH = (
    "scoring", "text.prompts", "text.llm", "text.prompting_transformer", "text.clip_text", "text.label_encoder",
    "video.temporal", "video.encoder", "train.losses", "train.network", "train.recipe", "train.fit",
)  # fmt: skip


def equations_table() -> str:
    return _table(("equation", "function", "lines"), map(_equation, EQUATIONS))


def _equation(row: tuple[str, str]) -> tuple[str, str, str]:
    equation, target = row
    module, _, name = target.partition(":")
    found = operator.attrgetter(name)(importlib.import_module(f"vidlex.model.{module}"))
    path = f"{module.replace('.', '/')}.py"
    return equation, f"[`{path}`]({path}): `{name}`", str(len(inspect.getsourcelines(inspect.unwrap(found))[0]))


def core_path_table() -> str:
    files = [f"{module.replace('.', '/')}.py" for module in CORE_PATH]
    lines = [len((ROOT / "model" / file).read_text(encoding="utf-8").splitlines()) for file in files]
    rows = [(f"[`{file}`]({file})", str(num)) for file, num in zip(files, lines, strict=True)]
    return _table(("file", "lines"), [*rows, ("together", str(sum(lines)))])


TABLES: dict[str, Callable[[], str]] = {
    "commands": commands_table,
    "core_path": core_path_table,
    "equations": equations_table,
    "errors": errors_table,
    "formats": formats_table,
    "metrics": metrics_table,
    "routes": routes_table,
    "settings": settings_table,
    "towers": towers_table,
    "warnings": warnings_table,
}


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def generated(text: str) -> str:
    """``text`` with its regions ``<!-- generated: NAME --> ... <!-- end -->`` filled from the code."""

    def fill(region: re.Match[str]) -> str:
        name = region["name"]
        return f"<!-- generated: {name} -->\n{TABLES[name]()}\n<!-- end -->"

    return REGION.sub(fill, text)


def write() -> None:
    from house.diagram import draw

    for name in DOCUMENTS:
        path = ROOT / name
        path.write_text(generated(path.read_text(encoding="utf-8")), encoding="utf-8")
    Path(ROOT / "service" / "pictures" / "structure.svg").write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    write()
