"""`[TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]`, and `[TOOL_CALLS]NAME[ARGS]{...}` of the
tokenizers from version 11 on: Mistral."""

from __future__ import annotations

from server.services.tools.family import BARE, FENCES, Opening, ToolFamily

MISTRAL = ToolFamily(
    "mistral",
    (
        Opening("[TOOL_CALLS]", named=True, separators=("[CALL_ID]", "[ARGS]")),
        *FENCES,
        BARE,
    ),
    "[TOOL_CALLS][",
    marks=("[TOOL_CALLS]",),
    id_length=9,
)
