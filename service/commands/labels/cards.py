"""`vidlex labels card` and `vidlex labels preview`: how the model encodes a label."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from vidlex.service.bounds import MAX_PREVIEWS
from vidlex.service.commands.connection import DEFAULT_URL, UrlOption, connected, describe
from vidlex.service.commands.output import CommandError, JsonFlag, print_json, print_text, raise_last, use_json

if TYPE_CHECKING:
    from vidlex.service.schemas.cards import CardView


def card(
    label: Annotated[str, typer.Argument(metavar="LABEL", help="Id, name or alias of a label.")],
    url: UrlOption = DEFAULT_URL,
    as_json: JsonFlag = False,
) -> None:
    """Show how the model encodes a stored label, and the most similar labels."""
    use_json(as_json)
    with connected(url) as client:
        found = client.label_card(client.find_label(label).id)
    _show(found, as_json=as_json)


def preview(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Names of labels; quote names with spaces.")],
    url: UrlOption = DEFAULT_URL,
    as_json: JsonFlag = False,
) -> None:
    """Show the cards of labels without storing them."""
    use_json(as_json)
    failures: list[CommandError] = []
    with connected(url) as client:
        for start in range(0, len(names), MAX_PREVIEWS):
            batch = names[start : start + MAX_PREVIEWS]
            for name, item in zip(batch, client.preview_labels(batch), strict=True):
                if item.card is None:
                    problem = item.error.model_dump(mode="json")
                    failures.append(CommandError(f"{name}: {describe(problem)}", problem=problem))
                else:
                    _show(item.card, as_json=as_json)
    raise_last(failures)


def _show(found: CardView, *, as_json: bool) -> None:
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    lines = [f"[bold]{escape(found.name)}[/]" + (f" ({found.id})" if found.id else "")]
    lines += [f"  prompt      {escape(repr(text))}" for text in found.prompts]
    for number, texts in enumerate(found.attributes, 1):
        lines.append(f"  prefix {number}    {escape(' | '.join(text.strip() for text in texts))}")
    for near in found.neighbours:
        lines.append(f"  similar     {near.similarity:.3f} {escape(near.name)} ({near.id})")
    lines += [f"  [yellow]warning[/]     {escape(item.detail)} ({item.code})" for item in found.warnings]
    print_text("\n".join(lines))
