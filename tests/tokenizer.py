"""A byte-level BPE tokenizer of about 512 tokens, trained in milliseconds on the text below.

Byte-level, so that any text round-trips and an emoji takes several tokens (what detokenisers get wrong).
"""

from __future__ import annotations

from functools import lru_cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

VOCAB_SIZE = 512
SPECIAL_TOKENS = ("<pad>", "<|im_start|>", "<|im_end|>", "<image>", "<s>")

# Accepts plain strings and lists of parts, as the chat templates of real models do; pictures come where
# the message names them.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\n' }}"
    "{%- if message['content'] is string %}{{- message['content'] }}"
    "{%- else %}{%- for part in message['content'] %}"
    "{%- if part['type'] in ('image', 'image_url') %}{{- '<image>\n' }}"
    "{%- else %}{{- part['text'] }}{%- endif %}"
    "{%- endfor %}{%- endif %}"
    "{{- '<|im_end|>\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)

CORPUS = """
The quick brown fox jumps over the lazy dog while the picture shows a red circle and a blue square.
What is in this picture? There are three green triangles on the left and one yellow star on the right.
Describe the image in two sentences. The capital of France is Paris, and the answer to the question is four.
A server takes a request, checks it, reads the images, and streams the tokens of the answer to the client.
You are a helpful assistant. The user asks about colours, shapes, numbers, places, people and animals.
def main(): return "hello world"; print(x + y, [1, 2, 3], {"key": "value"}) # a comment
"""


@lru_cache(maxsize=1)
def _trained() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS.splitlines(), trainer)
    # As Llama's does, encoding adds BOS: who renders the template (which holds one) and then encodes with
    # special tokens gets two, and a comparison shows it.
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return tokenizer


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A fresh tokenizer with a chat template; ``<|im_end|>`` ends an answer."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained().to_str()),
        bos_token="<s>",
        eos_token="<|im_end|>",
        pad_token="<pad>",
        additional_special_tokens=["<|im_start|>", "<image>"],
        extra_special_tokens={"image_token": "<image>"},
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
