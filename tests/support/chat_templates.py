"""Chat formats in their public forms, written short, and small tokenizers that speak them.

Each has the model whose tokenizer_config.json or chat_template.jinja it follows as its source.
"""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

# Source: Qwen/Qwen2.5-7B-Instruct, without tools.
QWEN2 = (
    "{% if messages[0]['role'] == 'system' %}<|im_start|>system\n{{ messages[0]['content'] }}<|im_end|>\n"
    "{% else %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for m in messages %}{% if not (loop.first and m.role == 'system') %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Source: Qwen/Qwen3-8B, without tools: the empty thinking stands before the last answer alone.
QWEN3 = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' %}{% set think = '' %}{% set content = m.content %}"
    "{% if '</think>' in m.content %}"
    "{% set think = m.content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set content = m.content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if loop.index0 > ns.last %}{{ '<think>\n' + think + '\n</think>\n\n' }}{% endif %}{{ content }}"
    "{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}"
    "{% endif %}{% endif %}"
)
# Source: Qwen/Qwen3-4B-Thinking-2507: a prompt opens the thinking, and an answer without any closes it.
QWEN3_THINKING = QWEN3.replace(
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}",
    "{{ '<think>\n' }}",
)
# Source: meta-llama/Meta-Llama-3-8B-Instruct.
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
# Source: meta-llama/Llama-3.2-1B-Instruct, without tools: a system turn names the day.
LLAMA32 = (
    "{% if not date_string is defined %}{% if strftime_now is defined %}"
    "{% set date_string = strftime_now('%d %b %Y') %}{% else %}{% set date_string = '26 Jul 2024' %}{% endif %}"
    "{% endif %}"
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content | trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "{{ bos_token + '<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n' }}"
    "{{ 'Today Date: ' + date_string + '\n\n' + system + '<|eot_id|>' }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
# Source: microsoft/Phi-3-mini-4k-instruct: an EOS stands after the last answer alone.
PHI3 = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
# Source: mistralai/Mistral-7B-Instruct-v0.1.
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
)
# Source: mistralai/Mistral-7B-Instruct-v0.3: the system text opens the last question.
MISTRAL_SYSTEM_LAST = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set s = messages[0].content + '\n\n' %}"
    "{% set loop_messages = messages[1:] %}"
    "{% else %}{% set s = '' %}{% set loop_messages = messages %}{% endif %}"
    "{% for m in loop_messages %}{% if m.role == 'user' %}"
    "{{ '[INST] ' + (s if loop.last or loop.index0 == loop.length - 2 else '') + m.content + '[/INST]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
# Source: meta-llama/Llama-2-7b-chat-hf.
LLAMA2 = (
    "{% if messages[0].role == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set sys = messages[0].content %}"
    "{% else %}{% set loop_messages = messages %}{% set sys = false %}{% endif %}"
    "{% for m in loop_messages %}{% if loop.index0 == 0 and sys %}"
    "{% set content = '<<SYS>>\n' + sys + '\n<</SYS>>\n\n' + m.content %}"
    "{% else %}{% set content = m.content %}"
    "{% endif %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
# Source: google/gemma-2-2b-it.
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}"
    "{% for m in messages %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' "
    "+ m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# Source: OpenAI's ChatML, as in many fine-tuned models.
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NO_GENERATION_PROMPT = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
TRAILING_SPACE = (
    "{% for m in messages %}{{ m.role + ': ' + m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
NO_END = "{% for m in messages %}{{ m.role + ':' + m.content + '\n' }}{% endfor %}" + (
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
TEMPLATES = {
    "qwen2": QWEN2, "qwen3": QWEN3, "mistral": MISTRAL, "mistral_system_last": MISTRAL_SYSTEM_LAST,
    "llama2": LLAMA2, "gemma": GEMMA, "no_generation_prompt": NO_GENERATION_PROMPT,
    "trailing_space": TRAILING_SPACE, "none": None, "qwen3_thinking": QWEN3_THINKING, "llama3": LLAMA3,
    "llama3.2": LLAMA32, "phi3": PHI3, "chatml": CHATML, "no_end": NO_END,
}  # fmt: skip

SPECIALS = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>"]
SPECIALS += ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|user|>", "<|assistant|>", "<|end|>"]
TEXTS = [
    "user: system: assistant: What colour is the ball to the left? It is blue.",
    "[INST] Where is the cube? [/INST] It is behind you. USER: ASSISTANT: How many are there? Two.",
    "A chat between a curious user and an artificial intelligence assistant.",
]
TURNS = (
    ("What colour is the ball?", "It is blue."),
    ("큐브는 어디에 있나요?", "왼쪽에 있어요."),
    ("How many are there?", "a"),
)


def byte_level(template: str | None, eos: str = "<|im_end|>") -> PreTrainedTokenizerFast:
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    return _finish(model, template, eos, pre_tokenizers.ByteLevel.alphabet())


def metaspace(template: str | None, legacy: bool) -> PreTrainedTokenizerFast:
    """The two kinds of Llama tokenizers: a prefix space before each section, or before the first only."""
    model = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    model.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer = _finish(model, template, "</s>", sorted({char for text in TEXTS for char in text} | {"▁"}))
    backend = tokenizer.backend_tokenizer
    if legacy:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        backend.pre_tokenizer = None
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return tokenizer


def _finish(model: Tokenizer, template: str | None, eos: str, alphabet: list[str]) -> PreTrainedTokenizerFast:
    specials = ["<unk>", *SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    model.train_from_iterator(TEXTS * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model, bos_token="<s>", eos_token=eos, pad_token="<pad>", unk_token="<unk>"
    )
    tokenizer.chat_template = template
    return tokenizer
