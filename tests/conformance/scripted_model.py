"""A language model whose answers are known: it calls tools, gives objects, and tells a long tale.

Its script is its chat template, which writes a token for what the answer has to be: each token that
it generates follows from the one before it alone. Under a grammar it takes the shortest way.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CONTEXT = 32_768
_WORDS = ("Good", " evening", " to", " all", ".")
GREETING = "".join(_WORDS)
_END, _GREETS, _CALLS, _TELLS = "<|end|>", "<|greets|>", "<|calls|>", "<|tells|>"
_SPECIALS = ["<|turn|>", _END, _GREETS, _CALLS, _TELLS]
_CALL = (
    "<tool_call>\n",
    '{"name": "send_mail", "arguments": ',
    '{"to": "ada@example.org", ',
    '"text": "Good evening.", ',
    '"copies": 2}',
    "}\n</tool_call>",
)
_CHAINS = (
    (_GREETS, *_WORDS, _END),
    (_CALLS, *_CALL, _END),
    (_TELLS, " and", " then", " and"),
    ('"', "a", '"'),
)
"""Each token is followed by the next one of its chain."""
_SHORTEST = {_END: 100.0, '"': 80.0, "}": 60.0, "]": 50.0, ",": 40.0, "1": 20.0}
"""Logits of tokens where a grammar permits none that follows: strings have one letter."""
_UNLIKELY, _CERTAIN = -20.0, 200.0
_WIDTH = 32
_TEMPLATE = """\
{%- if tools %}<|turn|>tools, each called as <tool_call>{"name": ..., "arguments": {...}}\
</tool_call>: {% for tool in tools %}{{ tool | tojson }}{% endfor %}<|end|>{% endif %}
{%- for message in messages %}<|turn|>{{ message.role }}: {{ message.content or '' }}
{%- for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>
{%- endfor %}<|end|>{% endfor %}
{%- if add_generation_prompt %}
{%- set asked = messages[-1].content or '' %}
{%- if tools and messages[-1].role == 'user' and 'mail' in asked %}<|calls|>
{%- elif 'tale' in asked %}<|tells|>
{%- else %}<|greets|>{% endif %}
{%- endif %}"""


def save_scripted_model(folder: Path) -> None:
    """Write the model and its tokenizer."""
    encoder = _tokenizer()
    config = LlamaConfig(
        vocab_size=len(encoder),
        hidden_size=_WIDTH,
        intermediate_size=_WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=encoder.convert_tokens_to_ids(_END),
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        layer = model.model.layers[0]
        layer.self_attn.o_proj.weight.zero_()  # so that a state is its token's embedding
        layer.mlp.down_proj.weight.zero_()
        _write_script(model, encoder)
    model.save_pretrained(folder)
    encoder.save_pretrained(folder)


def _write_script(model: LlamaForCausalLM, encoder: PreTrainedTokenizerFast) -> None:
    """Embeddings `[tokens, width]` and head: feature 0 is of every token, feature 1 of those in no
    chain, one of each other."""
    embeddings, head = model.get_input_embeddings().weight, model.lm_head.weight
    size = (_WIDTH / 2) ** 0.5  # of both features of a token behind the norm
    embeddings.zero_()
    head.zero_()
    embeddings[:, :2] = 1.0
    words = {_spelled(token) for chain in _CHAINS for token in chain if len(token) > 1}
    for token in {*words, *_SPECIALS} - {_END}:
        head[encoder.convert_tokens_to_ids(token), 0] = _UNLIKELY / size
    for token, logit in _SHORTEST.items():
        head[encoder.convert_tokens_to_ids(token), 0] = logit / size
    feature = 1
    for chain in _CHAINS:
        for token, following in zip(chain, chain[1:], strict=False):
            at = encoder.convert_tokens_to_ids(_spelled(token))
            then = encoder.convert_tokens_to_ids(_spelled(following))
            if embeddings[at, 1]:
                feature += 1
                embeddings[at, 1], embeddings[at, feature] = 0.0, 1.0
            head[then, feature] = (_CERTAIN - _UNLIKELY) / size


def _tokenizer() -> PreTrainedTokenizerFast:
    """A token for each byte, and those of the chains, which no text is encoded to."""
    names = [*_SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    names += [_spelled(token) for chain in _CHAINS for token in chain]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    backend = Tokenizer(models.BPE(numbers, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=_END,
        additional_special_tokens=_SPECIALS,
        chat_template=_TEMPLATE,
    )


def _spelled(token: str) -> str:
    """The token as a byte-level vocabulary has it."""
    return token if token in _SPECIALS else token.replace(" ", "Ġ").replace("\n", "Ċ")
