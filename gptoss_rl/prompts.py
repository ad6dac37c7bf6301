"""The one prompt function: training, evaluation and the tiny model's warm-up all render prompts here.

gpt-oss speaks Harmony (https://github.com/openai/harmony). The chat template shipped with the checkpoint
writes *today's* date into the system message and takes no reasoning effort through OpenRLHF, so the same
problem would be a different prompt tomorrow. Here every part of the prompt is pinned.
"""

import hashlib
import unicodedata

# The date is part of the prompt; it is pinned so that two runs on different days see the same prompt.
CONVERSATION_DATE = "2025-08-05"
KNOWLEDGE_CUTOFF = "2024-06"
REASONING_EFFORTS = ("low", "medium", "high")
DEFAULT_REASONING_EFFORT = "medium"
INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."

# Markers that the tokenizer turns into control tokens; text from a dataset must not contain them.
HARMONY_MARKERS = (
    "<|start|>",
    "<|end|>",
    "<|message|>",
    "<|channel|>",
    "<|constrain|>",
    "<|return|>",
    "<|call|>",
    "<|startoftext|>",
    "<|endoftext|>",
)


def system_message(reasoning_effort: str = DEFAULT_REASONING_EFFORT) -> str:
    """Body of the Harmony system message, with pinned dates.

    Raises:
        ValueError: `reasoning_effort` is not one of `REASONING_EFFORTS`.
    """
    if reasoning_effort not in REASONING_EFFORTS:
        raise ValueError(f"reasoning effort {reasoning_effort!r} is not one of {', '.join(REASONING_EFFORTS)}")
    return (
        "You are ChatGPT, a large language model trained by OpenAI.\n"
        f"Knowledge cutoff: {KNOWLEDGE_CUTOFF}\n"
        f"Current date: {CONVERSATION_DATE}\n\n"
        f"Reasoning: {reasoning_effort}\n\n"
        "# Valid channels: analysis, commentary, final. Channel must be included for every message."
    )


def render_prompt(problem: str, reasoning_effort: str = DEFAULT_REASONING_EFFORT) -> str:
    """Harmony text of one problem, ready to be tokenized with `add_special_tokens=False`.

    It ends where the assistant's turn begins, so the model writes its own channel header.

    Raises:
        ValueError: the problem is blank, or contains a Harmony marker (the tokenizer would read it as a
            control token and end the user's turn there).
    """
    if not problem.strip():
        raise ValueError("cannot render a prompt for an empty problem")
    for marker in HARMONY_MARKERS:
        if marker in problem:
            raise ValueError(f"problem text contains the control marker {marker}: {problem[:80]!r}")
    return (
        f"<|start|>system<|message|>{system_message(reasoning_effort)}<|end|>"
        f"<|start|>user<|message|>{problem}\n\n{INSTRUCTION}<|end|>"
        "<|start|>assistant"
    )


def prompt_fingerprint(reasoning_effort: str = DEFAULT_REASONING_EFFORT) -> str:
    """First 16 hex digits of the SHA-256 of the rendered template: equal exactly when prompts are comparable."""
    return hashlib.sha256(render_prompt("{problem}", reasoning_effort).encode()).hexdigest()[:16]


def problem_of(prompt: str) -> str | None:
    """The problem inside a rendered prompt, or None when the text is not one of ours."""
    start, end = "<|start|>user<|message|>", f"\n\n{INSTRUCTION}<|end|><|start|>assistant"
    if start not in prompt or not prompt.endswith(end):
        return None
    return prompt[prompt.index(start) + len(start) : -len(end)]


def problem_id(problem: str) -> str:
    """Content hash of a problem: 16 hex digits, equal for texts that differ in white space or Unicode form only."""
    normalised = " ".join(unicodedata.normalize("NFKC", problem).split())
    return hashlib.sha256(normalised.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def describe_prompt(prompt: str) -> str:
    """How messages name a prompt: its id and how it begins. The id is derived, so every process agrees on it."""
    problem = problem_of(prompt)
    text = prompt if problem is None else problem
    return f"prompt {problem_id(text)} ({text[:80]!r})"
