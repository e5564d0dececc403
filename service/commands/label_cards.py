"""`vidlex labels card` and `vidlex labels preview`: how the model reads a label."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.markup import escape

from vidlex.service.commands.client import DEFAULT_URL, ServiceClient, UrlOption, describe
from vidlex.service.commands.output import CommandError, JsonFlag, print_json, stdout, use_json

MAX_PREVIEWS = 32
"""Of one request."""


def card(
    label: Annotated[str, typer.Argument(metavar="LABEL", help="A label's id or its exact name.")],
    url: UrlOption = DEFAULT_URL,
    as_json: JsonFlag = False,
) -> None:
    """Show how the model reads a stored label, and which labels it puts near it."""
    use_json(as_json)
    with ServiceClient(url) as client:
        found = client.call("GET", f"/labels/{client.find_label(label)['id']}/card")
    _show(found, as_json=as_json)


def preview(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="One label a word; quote names with spaces.")],
    url: UrlOption = DEFAULT_URL,
    as_json: JsonFlag = False,
) -> None:
    """Show the cards that labels would have. Nothing is stored."""
    use_json(as_json)
    failure: CommandError | None = None
    with ServiceClient(url) as client:
        for start in range(0, len(names), MAX_PREVIEWS):
            part = names[start : start + MAX_PREVIEWS]
            answer = client.call("POST", "/labels:preview", json={"labels": [{"name": name} for name in part]})
            for name, item in zip(part, answer["data"], strict=True):
                if item["error"]:
                    failure = CommandError(f"{name}: {describe(item['error'])}", problem=item["error"])
                else:
                    _show(item["card"], as_json=as_json)
    if failure is not None:
        raise failure


def _show(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    lines = [f"[bold]{escape(found['name'])}[/]" + (f" ({found['id']})" if found["id"] else "")]
    lines += [f"  prompt      {escape(repr(text))}" for text in found["prompts"]]
    for number, texts in enumerate(found["attributes"], 1):
        lines.append(f"  prefix {number}    {escape(' | '.join(text.strip() for text in texts))}")
    for near in found["neighbours"]:
        lines.append(f"  near        {near['similarity']:.3f} {escape(near['name'])} ({near['id']})")
    lines += [f"  [yellow]warning[/]     {escape(item['detail'])} ({item['code']})" for item in found["warnings"]]
    stdout().print("\n".join(lines), soft_wrap=True)
