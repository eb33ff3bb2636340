"""Providers as data: what a vendor's endpoints need that their dialect does not say.

A row holds how a vendor wants to be *asked*, and the few facts an answer leaves open. How vendors
*answer* differs in many more ways (usage under `x_groq`, cached counts under five names, no
`[DONE]`, an empty finish reason, `tool_call` for `tool_calls`, `reasoning_content` for
`reasoning`); a dialect accepts all of those from everyone, because none is ambiguous and a
provider who lists itself has no row here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_NO_RENAMES: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, eq=False)
class Preset:
    """One vendor's row. Everything here is a fact about the vendor, never about one model.

    `base_url` may hold `{name}` placeholders that the registry asks its owner to fill in.
    `env` names the environment variables that hold an API key, the usual one first.
    """

    slug: str
    name: str
    dialect: str = "openai_chat"
    base_url: str = ""
    path: str = ""  # after the base URL; empty: the dialect's own
    env: tuple[str, ...] = ()
    credential_kind: str = "bearer"
    credential_header: str = ""
    headers: Mapping[str, str] = field(default_factory=lambda: _NO_RENAMES)

    # The call.
    max_tokens_field: str = "max_tokens"
    drops: frozenset[str] = frozenset()
    renames: Mapping[str, str] = field(default_factory=lambda: _NO_RENAMES)
    accepts: frozenset[str] = frozenset()  # fields of its own that may pass
    reasoning: str = "effort"  # effort | object | thinking | none: how thinking is asked for
    efforts: tuple[str, ...] = ("none", "minimal", "low", "medium", "high", "xhigh")
    echoes: frozenset[str] = frozenset()  # fields of an assistant message that carry reasoning back
    asks_usage: bool = True  # stream_options.include_usage
    json_schema: bool = True
    keeps_names: bool = False  # messages[].name
    developer_role: bool = False
    cache_control: bool = False  # on content parts
    tool_id_length: int = 0  # 0: any

    # The answer and the bill.
    reasoning_outside_completion: bool = False
    total_holds_hidden_reasoning: bool = False  # total > prompt + completion: the rest is thinking
    cancel_stops_billing: bool = False


_EXTRAS = frozenset(
    {"top_k", "min_p", "top_a", "repetition_penalty", "cache_control", "image_config"}
)
_REASONING = frozenset({"reasoning"})
_REASONING_CONTENT = frozenset({"reasoning_content"})
_ALL_REASONING = frozenset({"reasoning", "reasoning_content", "reasoning_details"})

# What an endpoint without a preset of its own is taken for, by dialect.
PLAIN: Mapping[str, Preset] = MappingProxyType(
    {
        "openai_chat": Preset("", "", echoes=_ALL_REASONING),
        "anthropic_messages": Preset(
            "",
            "",
            "anthropic_messages",
            credential_kind="header",
            credential_header="x-api-key",
            cache_control=True,
        ),
        "gemini": Preset(
            "", "", "gemini", credential_kind="header", credential_header="x-goog-api-key"
        ),
    }
)

_OPENAI = Preset(
    "openai",
    "OpenAI",
    base_url="https://api.openai.com/v1",
    env=("OPENAI_API_KEY",),
    max_tokens_field="max_completion_tokens",
    drops=_EXTRAS,
    keeps_names=True,
    developer_role=True,
    cancel_stops_billing=True,
)
_ANTHROPIC = replace(
    PLAIN["anthropic_messages"],
    slug="anthropic",
    name="Anthropic",
    base_url="https://api.anthropic.com",
    env=("ANTHROPIC_API_KEY",),
    cancel_stops_billing=True,
)
_GEMINI = replace(
    PLAIN["gemini"],
    slug="google",
    name="Google AI Studio",
    base_url="https://generativelanguage.googleapis.com/v1beta",
    env=("GEMINI_API_KEY", "GOOGLE_API_KEY", "GOOGLE_GENERATIVE_AI_API_KEY"),
)

_ROWS = (
    _OPENAI,
    replace(
        _OPENAI,
        slug="azure-openai",
        name="Azure",
        base_url="https://{resource}.openai.azure.com/openai/v1",
        env=("AZURE_OPENAI_API_KEY", "AZURE_API_KEY"),
        credential_kind="header",
        credential_header="api-key",
    ),
    Preset(
        "groq",
        "Groq",
        base_url="https://api.groq.com/openai/v1",
        env=("GROQ_API_KEY",),
        max_tokens_field="max_completion_tokens",
        drops=_EXTRAS | {"logit_bias", "logprobs", "top_logprobs", "verbosity", "prediction"},
        accepts=frozenset({"reasoning_format", "include_reasoning", "search_settings"}),
        efforts=("none", "low", "medium", "high"),
        echoes=_REASONING,
    ),
    Preset(
        "xai",
        "xAI",
        base_url="https://api.x.ai/v1",
        env=("XAI_API_KEY",),
        max_tokens_field="max_completion_tokens",
        drops=_EXTRAS | {"logit_bias", "verbosity", "prediction"},
        accepts=frozenset({"search_parameters"}),
        efforts=("low", "high"),
        echoes=_REASONING_CONTENT,
        reasoning_outside_completion=True,
    ),
    Preset(
        "zai",
        "Z.AI",
        base_url="https://api.z.ai/api/paas/v4",
        env=("ZAI_API_KEY", "ZHIPU_API_KEY"),
        drops=_EXTRAS | {"logit_bias", "logprobs", "top_logprobs", "verbosity", "prediction"},
        accepts=frozenset({"thinking"}),
        reasoning="thinking",
        echoes=_REASONING_CONTENT,
        json_schema=False,
    ),
    Preset(
        "mistral",
        "Mistral",
        base_url="https://api.mistral.ai/v1",
        env=("MISTRAL_API_KEY",),
        drops=_EXTRAS
        | {"logit_bias", "logprobs", "top_logprobs", "user", "verbosity", "service_tier"},
        renames=MappingProxyType({"seed": "random_seed"}),
        accepts=frozenset({"random_seed", "safe_prompt", "prompt_mode"}),
        efforts=("none", "high"),
        asks_usage=False,
        tool_id_length=9,
    ),
    Preset(
        "cerebras",
        "Cerebras",
        base_url="https://api.cerebras.ai/v1",
        env=("CEREBRAS_API_KEY",),
        max_tokens_field="max_completion_tokens",
        drops=_EXTRAS | {"logit_bias", "frequency_penalty", "presence_penalty", "verbosity"},
        accepts=frozenset({"clear_thinking", "disable_reasoning"}),
        efforts=("none", "low", "medium", "high"),
        echoes=_REASONING,
    ),
    Preset(
        "openrouter",
        "OpenRouter",
        base_url="https://openrouter.ai/api/v1",
        env=("OPENROUTER_API_KEY",),
        reasoning="object",
        echoes=_ALL_REASONING,
        keeps_names=True,
        developer_role=True,
        cache_control=True,
    ),
    Preset(
        "deepseek",
        "DeepSeek",
        base_url="https://api.deepseek.com",
        env=("DEEPSEEK_API_KEY",),
        drops=_EXTRAS | {"logit_bias", "n", "seed", "verbosity", "prediction", "service_tier"},
        accepts=frozenset({"thinking"}),
        reasoning="thinking",
        echoes=_REASONING_CONTENT,
        json_schema=False,
        cancel_stops_billing=True,
    ),
    Preset(
        "together",
        "Together AI",
        base_url="https://api.together.xyz/v1",
        env=("TOGETHER_API_KEY",),
        drops=frozenset({"cache_control", "image_config", "top_a", "verbosity"}),
        efforts=("low", "medium", "high"),
        echoes=_REASONING,
        cancel_stops_billing=True,
    ),
    Preset(
        "fireworks",
        "Fireworks AI",
        base_url="https://api.fireworks.ai/inference/v1",
        env=("FIREWORKS_API_KEY",),
        drops=frozenset({"cache_control", "image_config", "top_a", "verbosity"}),
        efforts=("none", "low", "medium", "high"),
        echoes=_REASONING_CONTENT,
        cancel_stops_billing=True,
    ),
    Preset(
        "perplexity",
        "Perplexity",
        base_url="https://api.perplexity.ai",
        env=("PERPLEXITY_API_KEY",),
        drops=frozenset(
            [
                "tools",
                "tool_choice",
                "parallel_tool_calls",
                "stop",
                "seed",
                "n",
                "logit_bias",
                "logprobs",
                "top_logprobs",
                "min_p",
                "top_a",
                "repetition_penalty",
                "cache_control",
                "image_config",
                "verbosity",
                "user",
            ]
        ),
        accepts=frozenset({"search_mode", "search_domain_filter", "search_recency_filter"}),
        efforts=("minimal", "low", "medium", "high"),
    ),
    Preset(
        "snowflake",
        "Snowflake Cortex",
        base_url="https://{account}.snowflakecomputing.com/api/v2/cortex/v1",
        env=("SNOWFLAKE_PAT", "SNOWFLAKE_TOKEN"),
        max_tokens_field="max_completion_tokens",
        drops=_EXTRAS | {"logit_bias", "verbosity"},
        reasoning="object",
        echoes=frozenset({"reasoning_details"}),
        cache_control=True,
    ),
    Preset(
        "ollama",
        "Ollama",
        base_url="http://127.0.0.1:11434/v1",
        env=("OLLAMA_API_KEY",),
        drops=_EXTRAS | {"logit_bias", "n", "user", "parallel_tool_calls", "verbosity"},
        efforts=("none", "low", "medium", "high"),
        echoes=_REASONING,
    ),
    Preset(
        "huggingface",
        "Hugging Face",
        base_url="https://router.huggingface.co/v1",
        env=("HF_TOKEN",),
        echoes=_REASONING_CONTENT | _REASONING,
    ),
    Preset(
        "crusoe",
        "Crusoe",
        base_url="https://api.inference.crusoecloud.com/v1",
        env=("CRUSOE_API_KEY",),
        echoes=_REASONING,
    ),
    Preset(
        "heroku",
        "Heroku",
        base_url="https://us.inference.heroku.com/v1",
        env=("HEROKU_INFERENCE_KEY", "INFERENCE_KEY"),
        drops=_EXTRAS | {"n", "seed", "logit_bias", "logprobs", "top_logprobs"},
    ),
    Preset(
        "deepinfra",
        "DeepInfra",
        base_url="https://api.deepinfra.com/v1/openai",
        env=("DEEPINFRA_API_KEY",),
        echoes=_REASONING_CONTENT,
        cancel_stops_billing=True,
    ),
    Preset(
        "novita",
        "Novita",
        base_url="https://api.novita.ai/v3/openai",
        env=("NOVITA_API_KEY",),
        echoes=_REASONING_CONTENT,
        cancel_stops_billing=True,
    ),
    Preset(
        "nebius",
        "Nebius",
        base_url="https://api.tokenfactory.nebius.com/v1",
        env=("NEBIUS_API_KEY",),
        echoes=_REASONING_CONTENT,
    ),
    Preset(
        "moonshotai",
        "Moonshot AI",
        base_url="https://api.moonshot.ai/v1",
        env=("MOONSHOT_API_KEY",),
        drops=_EXTRAS | {"logit_bias", "logprobs", "top_logprobs", "verbosity"},
        accepts=frozenset({"thinking"}),
        reasoning="thinking",
        echoes=_REASONING_CONTENT,
    ),
    Preset(
        "alibaba",
        "Alibaba",
        base_url="https://dashscope-intl.aliyuncs.com/compatible-mode/v1",
        env=("DASHSCOPE_API_KEY",),
        reasoning="none",
        accepts=frozenset({"enable_thinking", "thinking_budget"}),
        cache_control=True,
        echoes=_REASONING_CONTENT,
    ),
    Preset(
        "sambanova",
        "SambaNova",
        base_url="https://api.sambanova.ai/v1",
        env=("SAMBANOVA_API_KEY",),
    ),
    Preset(
        "nvidia",
        "NVIDIA",
        base_url="https://integrate.api.nvidia.com/v1",
        env=("NVIDIA_API_KEY",),
        echoes=_REASONING_CONTENT,
    ),
    Preset(
        "baseten",
        "Baseten",
        base_url="https://inference.baseten.co/v1",
        env=("BASETEN_API_KEY",),
        echoes=_REASONING_CONTENT,
    ),
    Preset(
        "bedrock-mantle",
        "Amazon Bedrock (OpenAI)",
        base_url="https://bedrock-mantle.{region}.api.aws/v1",
        env=("AWS_BEARER_TOKEN_BEDROCK",),
        drops=_EXTRAS,
        echoes=_REASONING,
    ),
    Preset(
        "google-openai",
        "Google AI Studio (OpenAI)",
        base_url="https://generativelanguage.googleapis.com/v1beta/openai",
        env=_GEMINI.env,
        drops=_EXTRAS | {"logit_bias", "logprobs", "top_logprobs", "verbosity", "seed"},
        efforts=("none", "minimal", "low", "medium", "high"),
        total_holds_hidden_reasoning=True,
    ),
    Preset(
        "anthropic-openai",
        "Anthropic (OpenAI)",
        base_url="https://api.anthropic.com/v1",
        env=_ANTHROPIC.env,
        drops=_EXTRAS | {"logit_bias", "logprobs", "top_logprobs", "seed"},
        reasoning="none",
        cancel_stops_billing=True,
    ),
    _ANTHROPIC,
    replace(
        _ANTHROPIC,
        slug="azure-ai",
        name="Azure AI Foundry (Anthropic)",
        base_url="https://{resource}.services.ai.azure.com/anthropic",
        env=("AZURE_AI_API_KEY", "AZURE_API_KEY"),
    ),
    replace(
        _ANTHROPIC,
        slug="minimax",
        name="MiniMax",
        base_url="https://api.minimax.io/anthropic",
        env=("MINIMAX_API_KEY",),
        cancel_stops_billing=False,
    ),
    _GEMINI,
    replace(
        _GEMINI,
        slug="vertex",
        name="Google Vertex AI",
        base_url="https://aiplatform.googleapis.com/v1/projects/{project}/locations/{location}"
        "/publishers/google",
        env=(),
        credential_kind="bearer",
        credential_header="",
    ),
)

PRESETS: Mapping[str, Preset] = MappingProxyType({row.slug: row for row in _ROWS})

_ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "azure": "azure-openai",
        "fireworks-ai": "fireworks",
        "gemini": "google",
        "google-ai-studio": "google",
        "google-vertex": "vertex",
        "novita-ai": "novita",
        "togetherai": "together",
        "x-ai": "xai",
        "z-ai": "zai",
        "zhipuai": "zai",
    }
)


def preset_of(provider: str, dialect: str) -> Preset:
    """Return the row of a vendor for a dialect, or the dialect's plain row if there is none."""
    slug = _ALIASES.get(provider, provider)
    for name in (slug, f"{slug}-openai", slug.split(".", 1)[0]):
        row = PRESETS.get(name)
        if row is not None and row.dialect == dialect:
            return row
    return PLAIN[dialect]
