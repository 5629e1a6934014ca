"""The report page: recall, false spans, time, and every miss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from benchmarks.patterns.contexts import Text
from benchmarks.patterns.scoring import Score

_STYLE = (
    "body{font:15px system-ui;max-width:72rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;margin:1rem 0}td,th{border:1px solid #ccc;padding:.2rem .6rem;"
    "text-align:left;vertical-align:top}code{white-space:pre-wrap;word-break:break-all}"
    "mark{background:#fc9}.low{color:#b00}"
)
_MOST = 400
_WIDTH = 240


def page(title: str, scores: Mapping[str, Score]) -> str:
    """The page, as HTML."""
    names = list(scores)
    kinds = list(scores[names[0]].found)
    recall = [[kind, *(_share(scores[name].found[kind]) for name in names)] for kind in kinds]
    other = [
        ["false spans in 100 kB", *(f"{scores[n].false_per_100_kb:.2f}" for n in names)],
        ["ms for a text of 200 tokens", *(f"{scores[n].ms_per_text:.3f}" for n in names)],
    ]
    first = scores[names[0]]
    cells = [
        [kind, context, "with" if labelled else "without", _share(hits)]
        for (kind, context, labelled), hits in sorted(first.per.items())
    ]
    misses = [
        [text.kind, text.context, _marked(text), escape(str([f[2] for f in found]))]
        for text, found in first.misses[:_MOST]
    ]
    false = [
        [
            escape(corpus),
            kind,
            f"<code>{escape(value[:_WIDTH])}</code>",
            f"<code>{escape(around)}</code>",
        ]
        for corpus, kind, value, around in first.false[:_MOST]
    ]
    return (
        f"<!doctype html><meta charset=utf-8><title>{escape(title)}</title><style>{_STYLE}</style>"
        f"<h1>{escape(title)}</h1><h2>Recall of spans</h2>{_table(['kind', *names], recall)}"
        f"<h2>False spans and time</h2>{_table(['', *names], other)}"
        f"<h2>By context</h2>{_table(['kind', 'context', 'label', 'recall'], cells)}"
        f"<h2>Misses of {names[0]} ({len(first.misses)})</h2>"
        f"{_table(['kind', 'context', 'text', 'found there'], misses)}"
        f"<h2>False spans of {names[0]} ({len(first.false)})</h2>"
        f"{_table(['corpus', 'kind', 'value', 'around'], false)}"
    )


def _share(hits: Sequence[bool]) -> str:
    return f"{100 * sum(hits) / len(hits):.1f} % of {len(hits)}" if hits else "–"


def _marked(text: Text) -> str:
    before, value = text.text[: text.start], text.text[text.start : text.end]
    parts = escape(before[-80:]), escape(value[:_WIDTH]), escape(text.text[text.end :][:60])
    return "<code>{}<mark>{}</mark>{}</code>".format(*parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{name}</th>' for name in head)}</tr>{body}</table>"
