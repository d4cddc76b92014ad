"""Fields of other servers' requests that would change the answer and that this node cannot honour. Pure.

Each is refused by name, with the cure. Null, and the value that stands for "off", pass: clients send those without
meaning anything by it. Source: the API references of OpenAI, vLLM, llama-server and Ollama.
"""

from __future__ import annotations

from typing import Any

from edge.api.schema import (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    RequestBody,
    RerankRequest,
    TokenizeRequest,
)
from edge.errors import UnsupportedParameter

_OFF: tuple[Any, ...] = (None, False, 0, "", [], {})
_Refusals = dict[str, tuple[str, tuple[Any, ...]]]
"""Name: the cure, and the values that are harmless."""
_LEAVE = "leave it out"
_TEXT_ONLY = "this node makes text only"
_FORMAT = "use `response_format`"
_BEAM = "beam search is not supported"
_BIAS = "use `logit_bias`"
_LENGTH = "use `max_tokens`"
_SAMPLER = "this sampler is not supported; leave it out"
_TEMPLATE = "put it into `chat_template_kwargs`"
_CUT = "nothing is ever cut off a text here; shorten it"
_MARKED = "control tokens never reach an answer's text; leave it out"


def _unless_off(cure: str, *harmless: Any) -> tuple[str, tuple[Any, ...]]:
    return cure, (*_OFF, *harmless)


def _always(cure: str, *harmless: Any) -> tuple[str, tuple[Any, ...]]:
    """For switches that change the answer when they are off."""
    return cure, (None, *harmless)


REFUSED: _Refusals = {
    # OpenAI
    "functions": _unless_off("use `tools`"),
    "function_call": _unless_off("use `tool_choice`", "none"),
    "audio": _unless_off(_TEXT_ONLY),
    "prediction": _unless_off("predicted outputs are not supported"),
    "web_search_options": _unless_off("this node does not search the web"),
    "verbosity": _unless_off(_LEAVE, "medium"),
    "suffix": _unless_off("fill-in-the-middle is not supported"),
    # structured answers
    **{
        name: _unless_off(_FORMAT)
        for name in (
            "guided_json",
            "guided_regex",
            "guided_grammar",
            "guided_choice",
            "structured_outputs",
            "grammar",
            "json_schema",
            "format",
        )
    },
    # samplers, and the values with which each does nothing
    "typical_p": _unless_off(_SAMPLER, 1),
    "tfs_z": _unless_off(_SAMPLER, 1),
    "top_a": _unless_off(_SAMPLER),
    "mirostat": _unless_off(_SAMPLER),
    "dry_multiplier": _unless_off(_SAMPLER),
    "xtc_probability": _unless_off(_SAMPLER),
    "dynatemp_range": _unless_off(_SAMPLER),
    "top_n_sigma": _unless_off(_SAMPLER, -1),
    "adaptive_target": _unless_off(_SAMPLER, -1),
    "samplers": _unless_off("the order of the samplers is fixed; leave it out"),
    "repeat_last_n": _unless_off("the penalties count the whole answer; leave it out", -1),
    "no_repeat_ngram_size": _unless_off(_SAMPLER),
    "length_penalty": _unless_off(_BEAM, 1),
    "use_beam_search": _unless_off(_BEAM),
    "bad_words": _unless_off(_BIAS),
    "allowed_token_ids": _unless_off(_BIAS),
    "logits_processors": _unless_off(_BIAS),
    # where an answer ends
    "min_tokens": _unless_off("use `ignore_eos` with `max_tokens`"),
    "n_predict": _unless_off(_LENGTH, -1),
    "max_output_tokens": _unless_off(_LENGTH),
    "max_new_tokens": _unless_off(_LENGTH),
    "stop_token_ids": _unless_off("use `stop`"),
    "include_stop_str_in_output": _unless_off("a stop string is never part of the answer; leave it out"),
    "t_max_predict_ms": _unless_off(_LENGTH),
    # what the model is given
    "truncate_prompt_tokens": _unless_off("nothing is ever cut off a prompt here; shorten it"),
    "n_keep": _unless_off("nothing is ever cut off a prompt here; leave it out"),
    "chat_template": _unless_off("the model file's own chat template is used; leave it out"),
    "documents": _unless_off("write them into a message"),
    "enable_thinking": _always(_TEMPLATE),
    "thinking": _always(_TEMPLATE),
    "options": _unless_off("give the fields themselves, by their OpenAI names"),
    "lora": _unless_off("adapters are not supported"),
    # what an answer carries
    "prompt_logprobs": _unless_off(_LEAVE),
    "n_probs": _unless_off("use `logprobs`"),
    "return_tokens_as_token_ids": _unless_off(_LEAVE),
    "return_token_ids": _unless_off("use /tokenize"),
    "return_token_strs": _unless_off("use `with_pieces`"),
    "skip_special_tokens": _always(_MARKED, True),
    "spaces_between_special_tokens": _always(_MARKED, True),
}
"""Refused on every route."""

_CHAT_ONLY = (
    "messages",
    "tools",
    "tool_choice",
    "response_format",
    "max_completion_tokens",
    "top_logprobs",
    "reasoning_effort",
    "chat_template_kwargs",
    "continue_final_message",
)
_OTHER_ROUTES: dict[type[RequestBody], _Refusals] = {
    ChatRequest: {
        "prompt": _unless_off("this route takes `messages`"),
        "echo": _unless_off("only /v1/completions repeats the prompt"),
        "best_of": _unless_off("ask for `n` answers and choose", 1),
    },
    CompletionRequest: {
        name: _unless_off("it belongs to /v1/chat/completions", "none", "auto", {"type": "text"}) for name in _CHAT_ONLY
    },
    EmbeddingRequest: {
        "task": _unless_off("use `input_type`"),
        "prompt_name": _unless_off("use `input_type`"),
        "truncate": _unless_off(_CUT, "NONE"),
        "truncation": _unless_off(_CUT),
        "late_chunking": _unless_off(_LEAVE),
        "embedding_types": _unless_off("use `encoding_format`", ["float"]),
        "embedding_type": _unless_off("use `encoding_format`", "float"),
        "output_dtype": _unless_off("vectors are float32", "float"),
        "normalized": _always("the model's manifest says it"),
        "normalize": _always("the model's manifest says it"),
    },
    RerankRequest: {
        "truncation": _unless_off(_CUT),
        "max_chunks_per_doc": _unless_off(_CUT, 1),
        "max_tokens_per_doc": _unless_off(_CUT),
        "rank_fields": _unless_off("send the documents as texts"),
    },
    TokenizeRequest: {"parse_special": _unless_off("a text's markers are text here; leave it out")},
}
"""Fields that mean something on another route only, or that only this route's peers have."""


def refuse_unsupported(body: RequestBody) -> None:
    """Raises UnsupportedParameter for a field that would change the answer and cannot be honoured."""
    extra = body.model_extra or {}
    table = REFUSED | _OTHER_ROUTES.get(type(body), {})
    for name in extra.keys() & table.keys():
        cure, harmless = table[name]
        if extra[name] not in harmless:
            raise UnsupportedParameter(f"`{name}` is not supported: {cure}", param=name)
