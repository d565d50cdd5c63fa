#!/usr/bin/env python3
"""Writes worker/text/testdata/templates_golden.json: conversations as apply_chat_template of transformers renders them.

  tests/oracle/templates_golden.py TOKENIZERS

TOKENIZERS is a folder with the tokenizers of published models (smollm2/, tinyllama/), whose templates are taken from
their files. The others are given here, in a few lines each, as their models' tokenizer_config.json has them; of Llama 3.1
without what concerns tools; of Vicuna, which publishes none, after its own conversation code (FastChat, v1.1).
Versions: tests/oracle/requirements.txt.
"""

import json
import os
import sys

import transformers
from tokenizers import Tokenizer, models

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../worker/text/testdata/templates_golden.json")

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
QWEN2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}")
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim "
    "+ '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}")
LLAMA31 = (
    "{{- bos_token }}{%- set date_string = \"26 Jul 2024\" %}{%- if messages[0]['role'] == 'system' %}"
    "{%- set system_message = messages[0]['content']|trim %}{%- set messages = messages[1:] %}{%- else %}"
    "{%- set system_message = \"\" %}{%- endif %}{{- \"<|start_header_id|>system<|end_header_id|>\\n\\n\" }}"
    "{{- \"Cutting Knowledge Date: December 2023\\n\" }}{{- \"Today Date: \" + date_string + \"\\n\\n\" }}"
    "{{- system_message }}{{- \"<|eot_id|>\" }}{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}")
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}")
MISTRAL_SPACED = (
    "{%- if messages[0][\"role\"] == \"system\" %}{%- set system_message = messages[0][\"content\"] %}"
    "{%- set loop_messages = messages[1:] %}{%- else %}{%- set loop_messages = messages %}{%- endif %}"
    "{{- bos_token }}{%- for message in loop_messages %}{%- if message[\"role\"] == \"user\" %}"
    "{%- if loop.first and system_message is defined %}"
    "{{- \" [INST] \" + system_message + \"\\n\\n\" + message[\"content\"] + \" [/INST]\" }}{%- else %}"
    "{{- \" [INST] \" + message[\"content\"] + \" [/INST]\" }}{%- endif %}{%- elif message[\"role\"] == \"assistant\" %}"
    "{{- \" \" + message[\"content\"] + eos_token}}{%- endif %}{%- endfor %}")
MISTRAL_V3 = (
    "{{- bos_token }}{%- for message in messages %}{%- if message[\"role\"] == \"user\" %}"
    "{{- \"[INST] \" + message[\"content\"] + \"[/INST]\" }}{%- elif message[\"role\"] == \"assistant\" %}"
    "{{- \" \" + message[\"content\"] + eos_token}}{%- endif %}{%- endfor %}")
VICUNA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] + ' ' }}"
    "{% set loop_messages = messages[1:] %}{% else %}{{ \"A chat between a curious user and an artificial intelligence "
    "assistant. The assistant gives helpful, detailed, and polite answers to the user's questions. \" }}"
    "{% set loop_messages = messages %}{% endif %}{% for message in loop_messages %}{% if message['role'] == 'user' %}"
    "{{ 'USER: ' + message['content'] + ' ' }}{% else %}{{ 'ASSISTANT: ' + message['content'] + eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}")

SYSTEM = {"role": "system", "content": "Answer briefly."}
TURNS = [
    {"role": "user", "content": "What is 2+2?"},
    {"role": "assistant", "content": "It's 4."},
    {"role": "user", "content": "And in Japanese?\nOne word, please."},
    {"role": "assistant", "content": "四 (よん)"},
]
SPACES = [
    {"role": "user", "content": "  leading and trailing \n"},
    {"role": "assistant", "content": "\n yes \n"},
]
TOOL = TURNS[:2] + [{"role": "tool", "content": "{\"sum\": 4}"}, TURNS[3]]
ALL = [[SYSTEM] + TURNS, TURNS, TURNS[:2], SPACES, [SYSTEM] + SPACES]


def published(folder):
    """A model's own template and tokens."""
    with open(os.path.join(folder, "tokenizer_config.json"), encoding="utf-8") as f:
        config = json.load(f)
    template = config.get("chat_template")
    if template is None:
        with open(os.path.join(folder, "chat_template.jinja"), encoding="utf-8") as f:
            template = f.read()
    return template, config.get("bos_token") or "<s>", config["eos_token"]


def main():
    data = sys.argv[1]
    entries = [
        ("chatml", "generic", CHATML, "<s>", "<|im_end|>", ALL + [TOOL]),
        ("chatml", "Qwen2", QWEN2, "<s>", "<|im_end|>", ALL),
        ("chatml", "SmolLM2", *published(os.path.join(data, "smollm2")), ALL + [TOOL]),
        ("zephyr", "TinyLlama", *published(os.path.join(data, "tinyllama")), ALL),
        ("llama2", "Llama 2", LLAMA2, "<s>", "</s>", ALL),
        ("llama3", "Llama 3", LLAMA3, "<|begin_of_text|>", "<|eot_id|>", ALL + [TOOL]),
        ("llama3", "Llama 3.1", LLAMA31, "<|begin_of_text|>", "<|eot_id|>", ALL),
        ("mistral", "Mistral v0.1", MISTRAL, "<s>", "</s>", [TURNS, TURNS[:2], SPACES]),
        ("mistral", "Mistral v0.2, later edition", MISTRAL_SPACED, "<s>", "</s>", ALL),
        ("mistral", "Mistral v0.3", MISTRAL_V3, "<s>", "</s>", [TURNS, TURNS[:2], SPACES]),
        ("vicuna", "Vicuna v1.1", VICUNA, "<s>", "</s>", ALL),
    ]
    golden = {"made_by": "tests/oracle/templates_golden.py", "transformers": transformers.__version__, "templates": []}
    for name, edition, template, bos, eos, conversations in entries:
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.WordLevel({bos: 0, eos: 1}, unk_token=bos)), bos_token=bos, eos_token=eos)
        cases = []
        for messages in conversations:
            case = {"messages": messages}
            case["text"] = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
            case["prompt"] = tokenizer.apply_chat_template(
                messages[:-1], chat_template=template, tokenize=False, add_generation_prompt=True)
            cases.append(case)
        golden["templates"].append(
            {"name": name, "edition": edition, "template": template, "bos": bos, "eos": eos, "cases": cases})
    with open(OUT, "w", encoding="utf-8") as f:
        json.dump(golden, f, ensure_ascii=False, indent=1)
        f.write("\n")


if __name__ == "__main__":
    main()
