"""Options that several `guard fit` commands have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from guard.config.schema import Dtype

Model = Annotated[str, typer.Option(help="An added model, a directory or a hub name.")]
ConceptFile = Annotated[Path, typer.Option(help="The concept in words, JSON.")]
Out = Annotated[Path, typer.Option(help="Artifact to write.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")]
ModelDtype = Annotated[
    Dtype,
    typer.Option(
        "--dtype",
        help="Of a language model's weights; bfloat16 takes half of the memory, auto is the "
        "checkpoint's own.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")]

# of guards that are trained on images which the model generates
ImageCount = Annotated[
    int, typer.Option(min=50, help="Images with the concept; twice as many are without it.")
]
Guidance = Annotated[
    float | None, typer.Option(min=0, help="Guidance scale; the model's default if left out.")
]
ImageFpr = Annotated[
    float, typer.Option(min=1e-4, max=0.5, help="False-positive rate on far images.")
]
NearFpr = Annotated[
    float, typer.Option(min=1e-4, max=0.5, help="False-positive rate on hard negatives.")
]
Folds = Annotated[
    int, typer.Option(min=2, max=16, help="Classifiers, each trained without its fold.")
]
Bf16 = Annotated[
    bool,
    typer.Option(
        help="Compute the denoiser in bfloat16 while choosing prompts: far slower on a CPU "
        "without it."
    ),
]
ImageSeed = Annotated[int, typer.Option(help="Of prompts and images.")]
