"""A byte-level tokenizer of 320 tokens that speaks Harmony, for the tiny model."""

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from gptoss_rl.models.tiny_task import Sum, guessing_response, working_response
from gptoss_rl.prompts import HARMONY_MARKERS, INSTRUCTION, REASONING_EFFORTS, render_prompt, system_message

VOCABULARY_SIZE = 320
HARMONY_WORDS = ("system", "developer", "user", "assistant", "tool", "analysis", "commentary", "final")
# The constant parts of a prompt are one token each: a prompt costs 19 tokens instead of 300, and a step on
# two cores seconds instead of a minute. They are ordinary tokens, so that skip_special_tokens keeps them.
CONSTANT_PARTS = (*(system_message(effort) for effort in REASONING_EFFORTS), f"\n\n{INSTRUCTION}")


def build_tokenizer(model_max_length: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with Harmony's special tokens under their real names and every digit a token of its own.

    Any text survives encode and decode unchanged. Deterministic: it is trained on fixed text.

    Raises:
        ValueError: the vocabulary did not come out at `VOCABULARY_SIZE`.
    """
    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Split(Regex(r"[0-9]"), behavior="isolated")
    # use_regex=False lets a merge span spaces, so that "What is " is one token
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE - len(HARMONY_MARKERS) - len(CONSTANT_PARTS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_phrases(), trainer)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in CONSTANT_PARTS])
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in HARMONY_MARKERS])
    if tokenizer.get_vocab_size() != VOCABULARY_SIZE:
        raise ValueError(
            f"the tiny tokenizer has {tokenizer.get_vocab_size()} tokens instead of {VOCABULARY_SIZE}; "
            "its training phrases are too few for that many merges"
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|startoftext|>",
        eos_token="<|return|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
        model_max_length=model_max_length,
        padding_side="left",
    )


def _phrases() -> list[str]:
    """Text around the digits and markers of prompts and responses; merges are learnt from nothing else."""
    item = Sum(38, 57)
    prompt = render_prompt(item.problem)
    turns = [prompt + working_response(item), prompt + guessing_response(item)]
    texts = [
        *turns * 4,
        *HARMONY_WORDS,
        *HARMONY_WORDS,
    ]  # weighted by how often text occurs
    for marker in (*HARMONY_MARKERS, *CONSTANT_PARTS):
        texts = [piece for text in texts for piece in text.split(marker)]
    return [text for text in texts if text]
