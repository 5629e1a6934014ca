"""A tiny pipeline on disk with guards at every seam, of which IRECE and the screen always fire."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from guard.config.policy_schema import PolicyConfig
from guard.config.schema import Config, load_config
from steering.engines.diffusion.families import Family
from steering.engines.diffusion.seams.attention import text_keys
from steering.fingerprint import fingerprint
from tests.classifiers.nets import random_net, tensors_of
from tests.guard.toy_images import save_drawn_latents, save_toy
from tests.server.tiny_pipeline import save_guards, save_pipeline

GUARDS = ("knife", "guide", "overlay", "irece", "seen")
POLICIES = {
    "knife-nothing": [],
    "knife-nearest": ["knife"],
    "knife-guide": ["guide"],
    "knife-overlay": ["overlay"],
    "knife-irece": ["irece"],
    "knife-all": ["knife", "overlay", "guide", "irece"],
    "knife-nearest-irece": ["knife", "irece"],
    "knife-seen": ["seen"],
}


def save(folder: Path) -> tuple[Config, Family]:
    """Write everything, `config.toml` with a policy for each of POLICIES that has guards; the
    configuration has the others too."""
    family = save_pipeline(folder / "pipeline")
    save_guards(folder, family)
    save_irece(folder / "irece.safetensors", family)
    save_drawn_latents(folder / "seen.safetensors", family, threshold=-1000.0)
    lines = ["[[models]]", 'name = "tiny"', 'engine = "diffusers"', 'source = "./pipeline"']
    for name in GUARDS:
        lines += ["[[guards]]", f'name = "{name}"', f'artifact = "{name}.safetensors"']
    for policy, guards in POLICIES.items():
        if not guards:
            continue
        lines += [f"[policies.{policy}]", f"guards = {guards!r}".replace("'", '"')]
    (folder / "config.toml").write_text("\n".join(lines), "utf-8")
    config = load_config(folder / "config.toml")
    bare = {name: PolicyConfig() for name, guards in POLICIES.items() if not guards}
    return config.model_copy(update={"policies": {**config.policies, **bare}}), family


def save_irece(path: Path, family: Family, *, threshold: float = -1000.0) -> None:
    """One whose classifiers know nothing, with one read."""
    with torch.no_grad():
        text = family.encode(["a knife"])
    # the last layer's queries depend on what is asked, the first one's do not
    layer = [*family.readable][-1]
    keys = text_keys(family, text, 500.0)[layer]
    reads = {"keys0.attention": keys[1:3, 0].numpy(), "others0.attention": keys[3:, 0].numpy()}
    save_toy(
        path,
        method="irece",
        seams=["attention", "latent"],
        fitted_on=fingerprint(nn.ModuleDict(dict(family.networks))),
        tensors=tensors_of(random_net(2, family.channels)) | reads,
        width=family.channels,
        threshold=threshold,
        level=0.99,
        looks=2,
        votes=0.1,
        mask=0.6,
        smoothing=0.05,
        replacement="background",
        reads=[[layer, 0]],
    )
