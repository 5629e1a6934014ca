"""`guard fit`: from prompts and a model to an artifact with its report."""

from __future__ import annotations

from collections.abc import Callable

import typer

from guard.commands.fit.image_screen import image_screen
from guard.commands.fit.images.cgce import cgce
from guard.commands.fit.images.closed_form import realera, rece, trce, uce
from guard.commands.fit.images.denoisers import (
    all_but_one,
    ant,
    co_erasing,
    doco,
    spm,
    trce_stage2,
)
from guard.commands.fit.images.guidance import contrastive, negative_prompt, safe_guidance
from guard.commands.fit.images.irece import irece
from guard.commands.fit.images.latents import latents
from guard.commands.fit.images.sparse_prompt import sparse_prompt
from guard.commands.fit.images.text_encoders import advunlearn, few_shot, hirm
from guard.commands.fit.images.training_free import nearest, safree
from guard.commands.fit.screen import screen
from guard.commands.fit.sparse import sparse
from guard.commands.fit.steer import steer
from guard.commands.fit.subspaces import ablation, kif
from guard.commands.option_groups import grouped

app = typer.Typer(add_completion=False, help="Fit a guard.", no_args_is_help=True)


@app.callback()
def _methods() -> None:
    pass


app.command(
    epilog="Example: guard fit steer --model smollm2 --concept character/harry-potter "
    "--forget examples/harry-potter/forget.jsonl --retain examples/harry-potter/retain.jsonl "
    "--out harry-potter.safetensors"
)(steer)
app.command(
    epilog="Example: guard fit cgce --model emoji "
    "--concept-file examples/emoji/guards/knife.json --out knife-cgce.safetensors"
)(cgce)
app.command(
    epilog="Example: guard fit latents --model emoji --steps 8 --guidance 3 "
    "--concept-file examples/emoji/guards/knife.json --out knife-latents.safetensors"
)(latents)
app.command(
    epilog="Example: guard fit irece --model emoji --steps 8 --guidance 3 "
    "--concept-file examples/emoji/guards/knife.json --out knife-irece.safetensors"
)(irece)
app.command(
    epilog="Example: guard fit screen --examples my.txt --concept text/my-topic "
    "--out my-topic.safetensors"
)(screen)
app.command(
    "image-screen",
    epilog="Example: guard fit image-screen --forget dogs --retain others --concept animal/dog "
    "--out dog.safetensors",
)(image_screen)

_GATED: dict[str, Callable[..., None]] = {"ablation": ablation, "kif": kif, "sparse": sparse}
for _name, _fit in _GATED.items():
    app.command(
        _name,
        epilog=f"Example: guard fit {_name} --model smollm2 --concept character/harry-potter "
        "--forget examples/harry-potter/forget.jsonl --retain examples/harry-potter/retain.jsonl "
        f"--gate examples/harry-potter/steer.safetensors --out harry-potter-{_name}.safetensors",
    )(grouped(_fit))
_OF_CONCEPT_FILES: dict[str, Callable[..., None]] = {
    "safree": safree,
    "nearest": nearest,
    "sparse-prompt": sparse_prompt,
    "safe-guidance": safe_guidance,
    "negative-prompt": negative_prompt,
    "contrastive": contrastive,
    "uce": uce,
    "rece": rece,
    "trce": trce,
    "realera": realera,
    "spm": spm,
    "co-erasing": co_erasing,
    "doco": doco,
    "ant": ant,
    "trce-stage2": trce_stage2,
    "all-but-one": all_but_one,
    "hirm": hirm,
    "few-shot": few_shot,
    "advunlearn": advunlearn,
}
for _name, _fit in _OF_CONCEPT_FILES.items():
    app.command(
        _name,
        epilog=f"Example: guard fit {_name} --model emoji "
        f"--concept-file examples/emoji/guards/knife.json --out knife-{_name}.safetensors",
    )(grouped(_fit))
