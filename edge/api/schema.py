"""Request bodies of the OpenAI routes, checked strictly. Null stands for "not given" in every optional field.

Source: the OpenAI API reference (chat completions, completions) and the extensions of vLLM and llama-server. Unknown
fields are accepted unless they would change the answer: `edge.api.unsupported` refuses those by name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from annotated_types import Ge, Le, MaxLen, MinLen
from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field

MAX_ANSWERS = 32
MAX_STOPS = 16
MAX_TEXTS = 2048

_ItemT = TypeVar("_ItemT")


class _FirstFault(FailFast):
    __hash__ = object.__hash__  # so that it may stand in a union


Several = Annotated[list[_ItemT], _FirstFault()]
"""A list of which the first wrong item is told: a million of them would take gigabytes, and hold up everybody's answer."""


def _first_fault(given: Any) -> Any:
    """The same for a mapping, which pydantic always reads to its end."""
    if isinstance(given, dict):
        for key, value in given.items():
            if type(value) not in (int, float) or not -100 <= value <= 100:
                return {key: value}
    return given


Bias = Annotated[float, Ge(-100), Le(100)]
Biases = Annotated[dict[str, Bias], BeforeValidator(_first_fault)]
Probability = Annotated[float, Ge(0), Le(1)]
Penalty = Annotated[float, Ge(-2), Le(2)]
Tokens = Annotated[int, Ge(1)]
TokenId = Annotated[int, Ge(0), Le(2**31 - 1)]


class RequestBody(BaseModel):
    """Base of every body and of what is nested in one."""

    model_config = ConfigDict(extra="allow", strict=True, protected_namespaces=())


class StreamOptions(RequestBody):
    """What a stream carries besides the answer."""

    include_usage: bool | None = None


class FunctionCall(RequestBody):
    """Name and arguments (JSON text) of a call that the assistant made earlier."""

    name: str
    arguments: str = ""


class ToolCall(RequestBody):
    """A call in an assistant's message."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(RequestBody):
    """One message. Content is text, or a list of text parts."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Several[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: Several[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None


class FunctionDefinition(RequestBody):
    """A function that the model may call."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.\-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(RequestBody):
    """A tool offered to the model."""

    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(RequestBody):
    """The one function that must be called."""

    name: str


class NamedTool(RequestBody):
    """tool_choice by name."""

    type: Literal["function"]
    function: NamedFunction


class JsonSchemaFormat(RequestBody):
    """A named schema."""

    name: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(RequestBody):
    """What form the answer has."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    """Beside json_object, as llama-server and others take it."""


class Generation(RequestBody):
    """Fields that chat and plain completions share."""

    model: str | None = None
    """Name or alias; None: the node's main model."""
    max_tokens: Tokens | None = None
    temperature: Annotated[float, Ge(0), Le(2)] | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Ge(-1), Le(2**31 - 1)] | None = None
    min_p: Probability | None = None
    repeat_penalty: Annotated[float, Ge(0.1), Le(10)] | None = None
    repetition_penalty: Annotated[float, Ge(0.1), Le(10)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Biases | None = None
    seed: Annotated[int, Ge(-(2**63)), Le(2**64 - 1)] | None = None
    n: Annotated[int, Ge(1), Le(MAX_ANSWERS)] | None = None
    stop: str | Annotated[Several[str], MaxLen(MAX_STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = None
    cache_prompt: bool | None = None
    user: str | None = None
    service_tier: Literal["auto", "default", "flex", "priority"] | None = None


class ChatRequest(Generation):
    """Body of POST /v1/chat/completions."""

    messages: Annotated[Several[ChatMessage], MinLen(1)]
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Ge(0), Le(20)] | None = None
    tools: Several[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    modalities: Several[str] | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    store: bool | None = None
    metadata: dict[str, Any] | None = None
    safety_identifier: str | None = None


class CompletionRequest(Generation):
    """Body of POST /v1/completions. Several prompts make several choices."""

    prompt: (
        str
        | Annotated[Several[str], MinLen(1), MaxLen(64)]
        | Annotated[Several[TokenId], MinLen(1)]
        | Annotated[Several[Annotated[Several[TokenId], MinLen(1)]], MinLen(1), MaxLen(64)]
    )
    echo: bool | None = None
    best_of: Annotated[int, Ge(1)] | None = None
    logprobs: Annotated[int, Ge(0), Le(5)] | None = None


class TokenizeRequest(RequestBody):
    """Body of POST /tokenize: plain text, or messages as the chat route takes them."""

    model: str | None = None
    prompt: str | None = None
    content: str | None = None
    messages: Annotated[Several[ChatMessage], MinLen(1)] | None = None
    tools: Several[Tool] | None = None
    add_special_tokens: bool | None = None
    add_special: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    with_pieces: bool | None = None


class DetokenizeRequest(RequestBody):
    """Body of POST /detokenize."""

    model: str | None = None
    tokens: Several[TokenId]


TextInput = (
    str
    | Annotated[Several[str], MinLen(1), MaxLen(MAX_TEXTS)]
    | Annotated[Several[TokenId], MinLen(1)]
    | Annotated[Several[Annotated[Several[TokenId], MinLen(1)]], MinLen(1), MaxLen(MAX_TEXTS)]
)
"""A text, texts, the tokens of one, or of several."""


class EmbeddingRequest(RequestBody):
    """Body of POST /v1/embeddings. `input_type` chooses the prompt that the model was trained with."""

    model: str
    input: TextInput
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Ge(1)] | None = None
    input_type: Literal["query", "document", "passage"] | None = None
    user: str | None = None


class RerankText(RequestBody):
    """A document as an object."""

    text: str


class RerankRequest(RequestBody):
    """Body of POST /v1/rerank."""

    model: str
    query: str
    documents: Annotated[Several[str | RerankText], MinLen(1), MaxLen(MAX_TEXTS)]
    top_n: Annotated[int, Ge(1)] | None = None
    return_documents: bool | None = None


class ClassifyRequest(RequestBody):
    """Body of POST /v1/classify."""

    model: str
    input: TextInput


class PictureQuestion(RequestBody):
    """What is asked about a picture that is the body itself. `threshold`: the least score of what is told of."""

    model: str
    threshold: Probability | None = None
    max_detections: Annotated[int, Ge(1), Le(1000)] | None = None


class DetectRequest(PictureQuestion):
    """Body of POST /v1/detect. `image`: base64, or a data URL."""

    image: Annotated[str, MinLen(1)]


class InferInput(RequestBody):
    """One input tensor. Without `data` its bytes follow the JSON part."""

    name: str
    shape: Annotated[Several[Annotated[int, Ge(0), Le(2**31 - 1)]], MaxLen(16)]
    datatype: str
    parameters: dict[str, Any] | None = None
    data: Any = None


class InferOutput(RequestBody):
    """One output that is wanted."""

    name: str
    parameters: dict[str, Any] | None = None


class InferRequest(RequestBody):
    """Body of POST /v2/models/MODEL/infer, or its JSON part."""

    id: str | None = None
    parameters: dict[str, Any] | None = None
    inputs: Annotated[Several[InferInput], MaxLen(256)]
    outputs: Annotated[Several[InferOutput], MaxLen(256)] | None = None


class ErrorBody(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """Every error of every route."""

    error: ErrorBody
