"""A served language model that writes images: its rows run as those of text do, token by token.

Guards are those of language models: they decide on the prompt, and act on the states of the prompt
and of the image's tokens. An image goes out when its last token is there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

from guard.errors import ContextExceeded, RequestError
from guard.plans.language import LanguagePlan, LanguagePlans
from guard.verdict import Verdict
from server.errors import ImageBlocked
from server.services.following import FollowsPolicies
from server.services.image_rows import ImageBatchRow
from server.services.interface import GeneratedImage, ImageModelInfo, ImageRowRequest
from server.services.loop import EngineLoop, guard_failed
from steering.engines.transformers.engine import RowStart, TransformersEngine
from steering.engines.transformers.image_tokens import ImageTokens
from steering.engines.transformers.rewinding import step_of
from steering.engines.transformers.row_tokens import RowToken
from steering.engines.transformers.tokens import PromptTokenizer
from steering.prompt import Prompt

Record = Callable[[ImageRowRequest, Verdict], None]


class TokenImageRow(ImageBatchRow):
    """A request for one image, which is written token by token."""

    plan: LanguagePlan

    def __init__(
        self,
        request: ImageRowRequest,
        prompt: Prompt,
        plan: LanguagePlan,
        loop: asyncio.AbstractEventLoop,
        cancel: Callable[[TokenImageRow], None],
    ) -> None:
        super().__init__(request, plan, loop, cancel)
        self.prompt = prompt
        self.tokens: list[int] = []
        self.blocked: str | None = None
        """Why there is no image, where a guard has ended it."""

    @property
    def over(self) -> bool:
        return self.blocked is not None or self.pixels is not None or self.error is not None

    def finish(self, verdict: Verdict) -> None:
        """Send the image, or what ended the row without one; nothing where nobody waits."""
        if self.error is not None:
            self.send_error(self.error, verdict)
        elif self.blocked is not None:
            self.send(ImageBlocked(self.blocked, verdict=verdict))
        elif self.pixels is not None:
            self.send(GeneratedImage(self.pixels, verdict))


class TokenImageService(
    FollowsPolicies[LanguagePlans, ImageModelInfo], EngineLoop[TokenImageRow, TransformersEngine]
):
    """An ImageService over a TransformersEngine. Built on any thread, used from one event loop.

    `longest` is the most tokens of a prompt.
    """

    def __init__(
        self,
        info: ImageModelInfo,
        tokenizer: PromptTokenizer,
        images: ImageTokens,
        engine: TransformersEngine,
        plans: LanguagePlans,
        *,
        longest: int,
        queue_limit: int,
        record: Record,
    ) -> None:
        super().__init__(info.name, engine, queue_limit=queue_limit, record=record)
        self.info = info
        self._tokenizer, self._images, self._longest = tokenizer, images, longest
        self._plans = plans
        self._thread.start()

    # -- called from the event loop -------------------------------------------------------------

    def submit(self, requests: Sequence[ImageRowRequest]) -> Sequence[TokenImageRow]:
        loop = asyncio.get_running_loop()
        rows = [
            TokenImageRow(request, self._prompt(request), self._admit(request), loop, self._cancel)
            for request in requests
        ]
        self._enqueue(rows)
        return rows

    def _admit(self, request: ImageRowRequest) -> LanguagePlan:
        """The plan of the request's policy. Raises where this model cannot run it."""
        plan = self._plans.admitted(request.policy, request.config)
        plan.require_fit(self.info.name)
        return plan.without_sentences()

    def _prompt(self, request: ImageRowRequest) -> Prompt:
        """Raises RequestError for a prompt that the model cannot read."""
        try:
            prompt = self._images.prompt(self._tokenizer, request.prompt)
        except ValueError as error:
            raise RequestError(f"the prompt cannot be encoded: {error}", param="prompt") from None
        if len(prompt) > self._longest:
            raise ContextExceeded(
                f"the prompt has {len(prompt)} tokens; this model reads at most {self._longest}: "
                "shorten it",
                param="prompt",
            )
        return prompt

    # -- the engine's thread --------------------------------------------------------------------

    def _join(self, joining: list[TokenImageRow]) -> None:
        first = len(self._running)
        tokens = self._engine.prefill(
            [
                RowStart(row.prompt, row.plan.rows(), self._images.sampling(row.request.seed))
                for row in joining
            ]
        )
        self._running.extend(joining)
        self._distribute(first, tokens)

    def _advance(self) -> None:
        if self._running:
            self._distribute(0, self._engine.decode())

    def _distribute(self, first: int, tokens: Sequence[RowToken]) -> None:
        """Pass new tokens to the rows from `first` on, then remove the rows that have ended."""
        joined = self._running[first:]
        for index, (row, token) in enumerate(zip(joined, tokens, strict=True), first):
            self._deliver(index, row, token)
        whole = [row for row in joined if not row.over and len(row.tokens) == self._images.count]
        if whole:
            pixels = self._images.pixels([row.tokens for row in whole])
            for row, image in zip(whole, pixels, strict=True):
                row.pixels = image
        self._leave([index for index, row in enumerate(self._running) if row.over])

    def _deliver(self, index: int, row: TokenImageRow, token: RowToken) -> None:
        if token.flags.invalid and row.plan.on_error == "closed":
            row.error = guard_failed()
            return
        match step_of(row.plan, token, partial(self._engine.readings, index)):
            case "block":
                row.blocked = "A guard of this policy blocks the image."
            case "say":
                row.blocked = row.plan.message
            case _:
                row.tokens.append(token.token)
