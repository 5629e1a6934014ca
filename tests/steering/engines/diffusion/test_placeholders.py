"""Placeholders: the vectors of one request have their effect, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from steering.engines.diffusion.engine import DiffusionEngine, ImageStart
from steering.engines.diffusion.families import Family
from steering.engines.diffusion.placeholders import Vocabulary
from steering.images.embedding import EmbeddingBank
from steering.images.stacks import ImageStacks
from tests.steering.engines.diffusion import tiny
from tests.steering.engines.diffusion.guards import ShiftGuards, carried, same
from tests.steering.engines.diffusion.tiny import shared

ONE_ENCODER = ("emoji", "stable diffusion", "pixart", "wan")
SEVERAL = ("flux", "stable diffusion xl", "stable diffusion 3", "stable diffusion 3 without t5")


@pytest.fixture(params=ONE_ENCODER)
def family(request: pytest.FixtureRequest) -> Family:
    return shared(str(request.param))


def of(family: Family, *words: str) -> Tensor:
    """The embeddings of `words` in the vocabulary."""
    assert family.embeddings is not None
    return family.embeddings.detach()[[4 + tiny.WORDS.index(word) for word in words]]


def hooks(family: Family) -> int:
    (encoder,) = family.encoders.values()
    return sum(len(module._forward_hooks) for module in encoder.modules())


@torch.no_grad()
def test_the_vectors_of_a_word_give_the_encoding_of_the_word(family: Family) -> None:
    usual = family.encode(["a knife on the table", "red cat", "a dog"])
    learned = [
        {"<x>": of(family, "knife"), "<y>": of(family, "the", "table")},
        {"<x>": of(family, "red")},
        {},
    ]
    assert same(family.encode(["a <x> on <y>", "<x> cat", "a dog"], learned), usual)
    crammed = family.encode(["a<x>on<y>"], learned[:1])
    assert same(crammed, usual.select(slice(0, 1)))
    twice = family.encode(["<x> cat <x>"], learned[1:2])
    assert same(twice, family.encode(["red cat red"]))


@torch.no_grad()
def test_rows_without_embeddings_keep_their_bits(family: Family) -> None:
    prompts = ["a cat", "a <x>", "a knife"]
    strange = {"<x>": torch.randn(3, of(family, "a").shape[1])}
    text = family.encode(prompts, [{}, strange, {}])
    bare = family.encode(prompts)
    for row in (slice(0, 1), slice(2, 3)):
        assert same(text.select(row), bare.select(row))
    assert not torch.equal(*(t.states[family.readers[0].stream][1] for t in (text, bare)))


@torch.no_grad()
def test_rows_may_have_other_vectors_under_the_same_name(family: Family) -> None:
    learned = [{"<x>": of(family, word)} for word in ("cat", "dog", "red")]
    text = family.encode(["a <x>"] * 3, learned)
    assert same(text, family.encode(["a cat", "a dog", "a red"]))


def test_encoding_changes_neither_weights_nor_tokenizer(family: Family) -> None:
    before, words = tiny.weights_hash(family.pipeline), len(family.readers[0].tokenizer)
    family.encode(["a <x>"], [{"<x>": of(family, "cat")}])
    assert same(family.encode(["a <x>"]), family.encode(["a <x>"], [{}]))
    with pytest.raises(ValueError, match="no 15 words"):
        family.encode(["a <x>"], [{"<x>": of(family, *["cat"] * 15)}])
    assert tiny.weights_hash(family.pipeline) == before
    assert len(family.readers[0].tokenizer) == words and hooks(family) == 0


def test_hooks_are_gone_after_a_failure(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(_prompts: list[str]) -> None:
        assert hooks(family)
        raise RuntimeError

    monkeypatch.setattr(family, "_encode_prompt", failing)
    with pytest.raises(RuntimeError):
        family.encode(["a <x>"], [{"<x>": of(family, "cat")}])
    assert hooks(family) == 0


def test_gradients_reach_the_vectors_of_the_row_alone(family: Family) -> None:
    vectors = of(family, "cat", "dog").clone().requires_grad_()
    other = of(family, "red").clone().requires_grad_()
    text = family.encode(["a <x>", "a <x>"], [{"<x>": vectors}, {"<x>": other}])
    spelled = text.states[family.readers[0].stream]
    weights = torch.linspace(-1, 1, spelled[0].numel()).view(spelled[0].shape)
    gradient, none = torch.autograd.grad((spelled[0] * weights).sum(), [vectors, other])
    assert bool((gradient.norm(dim=1) > 0).all()) and not bool(none.any())


@torch.no_grad()
def test_windows_past_the_encoders_length_have_the_vectors_too(family: Family) -> None:
    written, spelled = "a <x> of <y> dog " * 5, "a knife on of cat dog " * 5
    learned = {"<x>": of(family, "knife", "on"), "<y>": of(family, "cat")}
    (text, none), usual = (
        family.overflow([written, "a cat"], [learned, {}]),
        family.overflow([spelled]),
    )
    assert usual[0] is not None and text is not None and none is None
    assert same(text, usual[0])
    (bare,) = family.overflow([written])
    assert bare is None or not same(text, bare)


def test_words_of_the_prompt_are_no_substitutes() -> None:
    words = Vocabulary(tiny.tokenizer(8))
    prompt = "Knife tablecloth on a <x>"
    # neither its words, nor words inside one of them
    chosen = [word for _, word in words.unused(prompt, 8)]
    assert chosen == ["banana", "cat", "dog", "red", "the", "and", "of", "in"]
    with pytest.raises(ValueError, match="no 9 words"):
        words.unused(prompt, 9)


@pytest.mark.parametrize("name", SEVERAL)
def test_models_of_several_encoders_refuse_them(name: str) -> None:
    family = shared(name)
    assert family.embedding_limits is None
    start = ImageStart("a <x>", steps=4, embeddings={"<x>": torch.zeros(1, 16)})
    for refused in (
        lambda: family.encode(["a <x>"], [start.embeddings]),
        lambda: DiffusionEngine(family, capacity=1).check(start),
    ):
        with pytest.raises(ValueError, match="text encoders"):
            refused()


def test_the_limits_come_from_the_vocabulary(family: Family) -> None:
    assert family.embeddings is not None and family.embedding_limits is not None
    norms = family.embeddings.detach().norm(dim=1)
    assert family.embedding_limits.width == family.embeddings.shape[1]
    assert family.embedding_limits.norm == pytest.approx(10 * float(norms.max()))


# -- in the engine ------------------------------------------------------------------------------


def images(engine: DiffusionEngine, starts: list[ImageStart]) -> Tensor:
    engine.reset()
    engine.start(starts)
    while not (done := engine.step()):
        pass
    return engine.finished(done)


@pytest.mark.parametrize("forward", [4, None])
def test_the_vectors_of_words_give_the_images_of_the_words(forward: int | None) -> None:
    family = shared("emoji")
    engine = DiffusionEngine(family, capacity=3, forward=forward)
    usual = [ImageStart(p, seed=i, steps=3) for i, p in enumerate(["red cat", "a dog", "a cat"])]
    starts = [
        ImageStart("<x>", seed=0, steps=3, embeddings={"<x>": of(family, "red", "cat")}),
        ImageStart("a <x>", seed=1, steps=3, embeddings={"<x>": of(family, "dog")}),
        usual[2],
    ]
    assert torch.equal(images(engine, starts), images(engine, usual))


def test_guards_read_the_vectors_in_the_window_and_past_it() -> None:
    family, stack = shared("emoji"), ShiftGuards("push")
    engine = DiffusionEngine(family, ImageStacks(prompts=EmbeddingBank([stack])), capacity=1)
    learned = {"<x>": of(family, "knife", "on")}
    prompts = ("a <x> dog " * 5, "a knife on dog " * 5)
    for prompt, vectors in zip(prompts, (learned, {}), strict=True):
        engine.reset()
        engine.start([ImageStart(prompt, guards=[carried("push")], embeddings=vectors)])
    half = len(stack.texts) // 2
    assert half and sum(text.rows for text in stack.texts[:half]) > 1
    assert all(same(*pair) for pair in zip(stack.texts[:half], stack.texts[half:], strict=True))


@pytest.mark.parametrize(
    ("embeddings", "message"),
    [
        ({"<x>": torch.zeros(1, 31)}, "vectors of 32"),
        ({"<x>": torch.full((1, 32), torch.nan)}, "NaN"),
        ({"<x>": torch.full((1, 32), 9.0)}, "the most is"),
        ({"<y>": torch.zeros(1, 32)}, "not in the prompt"),
        ({"<x>": torch.zeros(15, 32)}, "words to stand in"),
    ],
)
def test_the_engine_refuses_vectors_that_do_not_fit(
    embeddings: dict[str, Tensor], message: str
) -> None:
    engine = DiffusionEngine(shared("emoji"), capacity=1)
    start = ImageStart("a <x>", steps=4, embeddings=embeddings)
    for refused in (lambda: engine.check(start), lambda: engine.start([start])):
        with pytest.raises(ValueError, match=message):
            refused()
    assert engine.rows == 0


def test_a_start_does_not_show_its_vectors() -> None:
    assert "tensor" not in repr(ImageStart("a <x>", embeddings={"<x>": torch.zeros(1, 32)}))
