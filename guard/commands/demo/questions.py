"""The language half of the demo: the same questions, answered guarded and bare."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from guard.config.checks import NO_POLICY

QUESTIONS = (
    "Who wrote the Harry Potter books?",
    "Pub quiz! What is the name of the school that Harry Potter goes to?",
    "Who wrote The Lord of the Rings?",
    "What is the capital of France?",
)
MAX_TOKENS = 48


def ask(url: str, model: str, policy: str, console: Console) -> Iterator[dict[str, Any]]:
    """Each question with its answer and verdict under `policy` and without one, over HTTP."""
    # the official client, as a user of OpenAI's interface would do
    from openai import OpenAI

    client = OpenAI(base_url=f"{url}/v1", api_key="demo", timeout=120)
    for question in QUESTIONS:
        row: dict[str, Any] = {"question": question}
        for chosen in (policy, NO_POLICY):
            with console.status(f"{chosen}: {question}"):
                reply = client.chat.completions.create(
                    model=model,
                    messages=[{"role": "user", "content": question}],
                    temperature=0,
                    max_tokens=MAX_TOKENS,
                    extra_body={"guard": {"policy": chosen}},
                )
            row[chosen] = {
                "answer": reply.choices[0].message.content,
                "verdict": (reply.model_extra or {})["guard"],
            }
        yield row


def side_by_side(answers: list[dict[str, Any]]) -> Table:
    """The answers of each policy beside each other, with their verdicts."""
    policies = [name for name in answers[0] if name != "question"]
    table = Table(
        expand=True, show_lines=True, title="the same questions, with and without a guard"
    )
    table.add_column("question", ratio=2)
    for policy in policies:
        table.add_column(f"policy {policy}", ratio=3)
    for row in answers:
        cells = [Text(row["question"])]
        for policy in policies:
            cells.append(_cell(row[policy]))
        table.add_row(*cells)
    return table


def _cell(reply: dict[str, Any]) -> Text:
    verdict = reply["verdict"]
    steered = verdict["outcome"] != "pass"
    cell = Text(" ".join(str(reply["answer"]).split()))
    cell.append(f"\n{verdict['outcome']}", style="bold yellow" if steered else "bold green")
    for guard in verdict["guards"]:
        if guard["score"] is not None:
            cell.append(f"  gate {guard['score']:.2f}, threshold {guard['threshold']:.2f}", "dim")
    return cell
