"""A judge that reads pixels and a generator that writes them: the suite without a model.

An image is 8 x 8; the red value of pixel i of its first line says whether it shows concept i, that
of the last pixel whether its style is the second one; the seed is written into the blue ones.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from guard.evaluation.images.interface import Advance, GeneratedImage, PromptEffect
from guard.evaluation.images.row_tensors import RowTensors

CONCEPTS = ("knife", "cat", "banana", "car")
STYLES = ("noto", "twemoji")
SIDE = 8
INSTEAD = "a banana"


def judge_file(path: Path, *, blind_to: int | None = None, side: int = SIDE) -> Path:
    """Write the judge; one that is `blind_to` a concept never finds it."""
    pixels = 3 * side * side
    concepts = np.zeros((pixels, len(CONCEPTS)), np.float32)
    for i in range(len(CONCEPTS)):
        concepts[i, i] = 0.0 if i == blind_to else 1.0
    styles = np.zeros((pixels, 2), np.float32)
    styles[side - 1] = (-1.0, 1.0)
    shift = np.array((0.5, -0.5), np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["pictures"], ["flat"]),
            helper.make_node("MatMul", ["flat", "concept_weights"], ["concepts"]),
            helper.make_node("MatMul", ["flat", "style_weights"], ["raw"]),
            helper.make_node("Add", ["raw", "shift"], ["styles"]),
        ],
        "judge",
        [helper.make_tensor_value_info("pictures", TensorProto.FLOAT, ["n", 3, side, side])],
        [
            helper.make_tensor_value_info("concepts", TensorProto.FLOAT, ["n", len(CONCEPTS)]),
            helper.make_tensor_value_info("styles", TensorProto.FLOAT, ["n", 2]),
        ],
        [
            numpy_helper.from_array(concepts, "concept_weights"),
            numpy_helper.from_array(styles, "style_weights"),
            numpy_helper.from_array(shift, "shift"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    for key, value in (("concepts", CONCEPTS), ("styles", STYLES)):
        model.metadata_props.add(key=key, value=json.dumps(value))
    onnx.save(model, path)
    return path


class FakeGenerator:
    """Images of the words of a prompt that are concepts, in the style it names.

    A policy "knife-good" takes the knife out; "knife-rough" takes out everything; "knife-block"
    blocks. All three act on any prompt that has the letters "knife" in a row, whatever else it
    says. "knife-leaky" claims to leave images alone but changes them.

    "knife-seen" inspects images, and blocks those with a knife in them; "knife-redrawn" replaces
    them by images of `INSTEAD`. "knife-good-seen" is "knife-good", and "knife-seen" behind it.
    """

    def __init__(self) -> None:
        self.generated: list[tuple[str, int, str | None]] = []
        self.version = ""

    def identity(self, policy: str | None) -> str:
        return f"{policy}{self.version}"

    def inspect(
        self,
        prompts: Sequence[str],
        policies: Sequence[str | None],
        tensors: Sequence[RowTensors] = (),
    ) -> list[PromptEffect]:
        return [
            self._effect(prompt, policy) for prompt, policy in zip(prompts, policies, strict=True)
        ]

    def _effect(self, prompt: str, policy: str | None) -> PromptEffect:
        late = next(
            (suffix for suffix in ("seen", "redrawn") if policy and policy.endswith(suffix)), ""
        )
        if late and policy == f"knife-{late}":
            return PromptEffect(same=True, late=late)
        if policy is None or policy.endswith("leaky") or policy.split("-")[0] not in prompt:
            return PromptEffect(same=True, late=late, score=0.1)
        blocked = policy.endswith("block")
        return PromptEffect(False, late, fired=True, blocked=blocked, steps=3, score=0.9, after=0.2)

    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        policies: Sequence[str | None],
        advance: Advance,
        tensors: Sequence[RowTensors] = (),
    ) -> list[GeneratedImage]:
        images = np.zeros((len(prompts), SIDE, SIDE, 3), np.uint8)
        for i, (prompt, seed, policy) in enumerate(zip(prompts, seeds, policies, strict=True)):
            self.generated.append((prompt, seed, policy))
            visible = [concept in prompt.split() for concept in CONCEPTS]
            if policy and not self._effect(prompt, policy).same:
                erased = policy.split("-")[0]
                rough = policy.endswith("rough")
                visible = [
                    present and not rough and concept != erased
                    for present, concept in zip(visible, CONCEPTS, strict=True)
                ]
            images[i, 0, : len(CONCEPTS), 0] = np.array(visible) * 255
            images[i, 0, SIDE - 1, 0] = 255 * ("twemoji" in prompt)
            images[i, 0, 0, 2] = seed % 256
            images[i, 1, 0, 2] = bool(policy and policy.endswith("leaky"))
            advance(1)
        return [
            self._outcome(GeneratedImage(effect, image), policy, seed)
            for effect, image, policy, seed in zip(
                self.inspect(prompts, policies), images, policies, seeds, strict=True
            )
        ]

    def _outcome(self, outcome: GeneratedImage, policy: str | None, seed: int) -> GeneratedImage:
        """The outcome after the policy's guards of images."""
        if not outcome.effect.late or policy is None or outcome.image is None:
            return outcome
        if not outcome.image[0, CONCEPTS.index(policy.split("-")[0]), 0]:
            return outcome
        if policy.endswith("seen"):
            return GeneratedImage(PromptEffect(False, fired=True, blocked=True, score=7.0), None)
        (other,) = self.generate([INSTEAD], [seed], [None], lambda _count: None)
        return GeneratedImage(PromptEffect(False, fired=True, score=7.0), other.image)
