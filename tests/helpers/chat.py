"""Tokenizers with a chat template, made here: byte-level BPE, special tokens, and templates of several kinds."""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from plait.codecs.text import PretrainedTokenizerCodec, PretrainedTokenizerOptions

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|head|>' + m.role + '<|body|>\n\n' + m.content | trim + '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|head|>assistant<|body|>\n\n' }}{% endif %}"
)
"""It begins with the <bos> that its tokenizer would put there, and trims what is said."""

THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""It writes the last answer otherwise than those before."""

SYSTEM_LAST = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' }}"
    "{% if loop.last or (loop.index == loop.length - 1 and messages[-1].role == 'assistant') %}"
    "{% if messages[0].role == 'system' %}{{ messages[0].content + '\n' }}{% endif %}{% endif %}"
    "{{ m.content + ' [/INST]' }}{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}{% endif %}"
    "{% endfor %}"
)
"""It puts the system's message before the last question, so that earlier turns change as others follow."""

ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant/...') }}{% endif %}"
    "{{ m.role + ': ' + m.content + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
"""It has no mark that ends a turn, and refuses other roles."""

MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|head|>", "<|body|>", "<|eot|>", "<s>"]

_TEXTS = ["What is the capital of France?", "Paris is the capital of France.", "user\nassistant\nsystem\n", "a fox"]


def chat_tokenizer(template: str | None = CHATML, eos: str = "<|im_end|>", **settings) -> PreTrainedTokenizerFast:
    """Return a small tokenizer that knows every byte, MARKS and a few words; LLAMA's puts <s> before a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False, special_tokens=MARKS)
    tokenizer.train_from_iterator(_TEXTS * 20, trainer)
    if template is LLAMA:
        before = [("<s>", tokenizer.token_to_id("<s>"))]
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=before)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos, bos_token="<s>", **settings)
    wrapped.chat_template = template
    return wrapped


def chat_codec(folder: Path, template: str | None = CHATML, **settings) -> PretrainedTokenizerCodec:
    """Save a tokenizer in a folder, and return the codec that loads it."""
    chat_tokenizer(template, **settings).save_pretrained(str(folder))
    return PretrainedTokenizerCodec(PretrainedTokenizerOptions(str(folder)))
