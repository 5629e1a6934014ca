"""`guard eval`: the effect of a policy, measured on prompts that no fit has used."""

from __future__ import annotations

import typer

from guard.commands.eval.compose import compose
from guard.commands.eval.images import bare, images
from guard.commands.eval.m_erasure import m_erasure
from guard.commands.eval.mllmu import mllmu
from guard.commands.eval.unlearn import unlearn

app = typer.Typer(
    add_completion=False, help="Measure the effect of a policy.", no_args_is_help=True
)

app.command(epilog="Example: guard eval unlearn examples/harry-potter --policy harry-potter")(
    unlearn
)
app.command(epilog="Example: guard eval images examples/emoji/suite.toml --images 4")(images)
# the command's first name
app.command("pictures", hidden=True)(images)
app.command(epilog="Example: guard eval bare examples/emoji/suite.toml")(bare)
app.command("m-erasure", epilog="Example: guard eval m-erasure examples/emoji/m-erasure.toml")(
    m_erasure
)
app.command(
    epilog="Example: guard eval compose examples/emoji/erasers.toml "
    "-c examples/emoji/fitted/baselines/config.toml --concept knife "
    "--guards knife-cgce,knife-irece,knife-rece-gated"
)(compose)
app.command(
    epilog="Example: guard eval mllmu examples/portraits/benchmark "
    "-c examples/portraits/config.toml --policy forget-5"
)(mllmu)
