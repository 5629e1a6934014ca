"""A certificate as a page for people."""

from __future__ import annotations

from guard.certificate import Certificate
from guard.reporting.page import Grid, Part, Tile, render


def _listed(certificate: Certificate) -> list[tuple[str, str]]:
    """The facts of a name on a suppression list."""
    if certificate.asked.list is None:
        return []
    facts = [("Suppression list", certificate.asked.list), ("Entry", certificate.asked.entry or "")]
    if listed := certificate.listed:
        changes = {"added": listed.added, "taken off": listed.removed}
        facts += [
            (f"Digest of the list {when} it was {what}", digest)
            for what, change in changes.items()
            if change is not None
            for when, digest in (("before", change.before), ("after", change.after))
        ]
    return facts


def as_page(certificate: Certificate) -> str:
    """The page; it shows all that the JSON says."""
    asked, fired = certificate.asked, certificate.fired
    counts = {state: counted.requests for state, counted in fired.items()}
    tiles = [
        Tile("State", certificate.state),
        Tile("Guards", str(len(certificate.guards))),
        Tile("Requests that fired in shadow", str(counts.get("shadow", 0))),
        Tile("Requests that fired in force", str(counts.get("in force", 0))),
    ]
    model = certificate.model
    facts = [
        ("Name", asked.name),
        ("Other names", ", ".join(asked.aliases) or "-"),
        ("Documents", str(len(asked.documents))),
        ("Asked to start", asked.start),
        *_listed(certificate),
        ("Model", asked.model),
        ("Fingerprint of the model", model.fingerprint if model else "-"),
        ("Judgement", certificate.judgement or "-"),
        ("Reason", certificate.reason or "-"),
        ("Issued", certificate.issued),
        ("Program", f"inference-guard {certificate.program}"),
        ("Digest of this certificate", certificate.digest),
    ]
    often = [
        (guard, state, str(count))
        for state, counted in fired.items()
        for guard, count in counted.guards.items()
    ]
    parts: list[Part] = [
        Grid("Erasure", ("", ""), facts),
        Grid("States", ("state", "since"), [(s.state, s.time) for s in certificate.history]),
        Grid(
            "Policies",
            ("policy", "since", "until"),
            [(each.policy, each.since, each.until or "-") for each in certificate.policies],
        ),
        Grid("Evaluation", ("figure", "value"), [*certificate.figures.items()]),
        Grid(
            "Guards",
            ("guard", "concept", "SHA-256 of the artifact"),
            [(each.guard, each.concept, each.artifact) for each in certificate.guards],
        ),
        Grid("Fired", ("guard", "state", "times"), often),
        Grid(
            "Documents",
            ("SHA-256", "characters"),
            [(each.sha256, str(each.characters)) for each in asked.documents],
        ),
    ]
    return render(f"Erasure of {asked.name}", certificate.erasure, tiles, parts)
