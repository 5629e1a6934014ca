"""`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`: Hermes 2 Pro, Qwen2.5, Qwen3.

Small Qwen2.5 models, the coders among them, often write the object in a fence, in the tags of
their prompt's list of tools, or alone.
"""

from __future__ import annotations

from server.services.tools.family import BARE, FENCES, Opening, ToolFamily

HERMES = ToolFamily(
    "hermes",
    (
        Opening("<tool_call>", "</tool_call>"),
        Opening("<tools>", "</tools>"),
        *FENCES,
        BARE,
    ),
    "<tool_call>\n",
    marks=("<tool_call>",),
)
