#!/usr/bin/env python3
"""Golden models: tiny random models of every family and variant, with the hidden states and logits that transformers
computes of them in float32.

Each case becomes a folder as transformers saves it (config.json and weights) with expected.safetensors: tokens [T],
hidden_states [N + 1, T, d] (the residual stream, before the last norm) and logits [T, V]. Needs the packages of
requirements.txt; run from the repository root:

    python3 -m venv venv && venv/bin/pip install -r tests/oracle/requirements.txt
    venv/bin/python tests/oracle/backbone_golden.py tests/oracle/testdata/backbone

A model of any size is checked by hand: `backbone_golden.py --of FOLDER` adds expected.safetensors to a Hugging Face
folder, and the test reads the folders named in QST_GOLDEN_MODELS (separated by colons) besides its own:

    bazel test //tests/oracle:backbone_golden_test --test_env=QST_GOLDEN_MODELS=FOLDER --test_output=all
"""
import copy
import json
import pathlib
import shutil
import sys

import torch
import transformers
from safetensors.torch import save_file
from transformers.modeling_utils import no_init_weights

VOCAB, TOKENS, SEED = 60, 24, 20240116
LLAMA = dict(vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2,
             pad_token_id=None)
OPT = dict(vocab_size=VOCAB, hidden_size=16, ffn_dim=24, num_hidden_layers=3, num_attention_heads=4,
           max_position_embeddings=64, word_embed_proj_dim=16, bos_token_id=2, eos_token_id=2, pad_token_id=1)

# name: (config class, fields, dtype of the file, how it is saved)
CASES = {
    "opt": ("OPT", OPT, "float32", "safetensors"),
    "opt_350m": ("OPT", dict(OPT, do_layer_norm_before=False, word_embed_proj_dim=8), "float32", "safetensors"),
    "opt_projected": ("OPT", dict(OPT, word_embed_proj_dim=12), "bfloat16", "safetensors"),
    "opt_bare": ("OPT", dict(OPT, activation_function="gelu", enable_bias=False, layer_norm_elementwise_affine=False),
                 "float16", "safetensors"),
    "opt_untied": ("OPT", dict(OPT, tie_word_embeddings=False), "bfloat16", "safetensors"),
    # As the published files of OPT: a pickle of the model's body.
    "opt_body": ("OPT", OPT, "float16", "body"),
    "llama_gqa": ("Llama", dict(LLAMA, rope_theta=50000.0), "float32", "safetensors"),
    "llama_mha_tied": ("Llama", dict(LLAMA, num_key_value_heads=4, tie_word_embeddings=True), "float32", "safetensors"),
    "llama_bias": ("Llama", dict(LLAMA, attention_bias=True, mlp_bias=True), "bfloat16", "safetensors"),
    # Heads wider than hidden_size / heads, and all three kinds of frequencies.
    "llama_llama3_rope": ("Llama", dict(LLAMA, head_dim=8, rope_scaling=dict(
        rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=16)), "bfloat16", "safetensors"),
    "llama_linear_rope": ("Llama", dict(LLAMA, rope_scaling=dict(rope_type="linear", factor=4.0)), "bfloat16",
                          "safetensors"),
    "llama_dynamic_rope": ("Llama", dict(LLAMA, rope_scaling=dict(rope_type="dynamic", factor=2.0)), "bfloat16",
                           "safetensors"),
    "mistral_window": ("Mistral", dict(LLAMA, sliding_window=7, head_dim=8), "bfloat16", "safetensors"),
    "mistral_full": ("Mistral", dict(LLAMA, sliding_window=None), "float16", "safetensors"),
    "qwen2_tied": ("Qwen2", dict(LLAMA, tie_word_embeddings=True), "float32", "safetensors"),
    "qwen2_window": ("Qwen2", dict(LLAMA, use_sliding_window=True, sliding_window=5, max_window_layers=1), "bfloat16",
                     "safetensors"),
}


def randomise(model, generator):
    """Weights of the size that trained models have, norms around 1, biases small."""
    for name, p in model.named_parameters():
        values = torch.randn(p.shape, generator=generator)
        if "norm" in name and name.endswith("weight"):
            values = 1 + 0.2 * values
        elif p.dim() == 1 or "embed_positions" in name:
            values = 0.2 * values
        elif "embed_tokens" not in name:
            values = values / p.shape[1] ** 0.5
        p.data.copy_(values)


def states_and_logits(model, tokens):
    """The residual stream before the first and after every layer, and the logits."""
    decoder = model.model.decoder if hasattr(model.model, "decoder") else model.model
    states = []

    def before(_, args, kwargs):
        states.append(args[0] if args else kwargs["hidden_states"])

    def after(_, __, output):
        states.append(output[0] if isinstance(output, tuple) else output)

    hooks = [decoder.layers[0].register_forward_pre_hook(before, with_kwargs=True)]
    hooks += [layer.register_forward_hook(after) for layer in decoder.layers]
    with torch.no_grad():
        logits = model(input_ids=tokens[None], use_cache=False).logits[0]
    for hook in hooks:
        hook.remove()
    return torch.stack([s.reshape(len(tokens), -1) for s in states]), logits


def write_expected(model, tokens, folder, about="tests/oracle/backbone_golden.py"):
    states, logits = states_and_logits(model, tokens)
    save_file({"tokens": tokens.to(torch.int32), "hidden_states": states.contiguous(), "logits": logits.contiguous()},
              folder / "expected.safetensors",
              metadata={"about": f"{about}, seed {SEED}, torch {torch.__version__}, "
                                 f"transformers {transformers.__version__}"})
    return logits


def add_to(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    generator = torch.Generator().manual_seed(SEED)
    write_expected(model.eval(), torch.randint(0, model.config.vocab_size, (64,), generator=generator), folder)


def main():
    torch.set_num_threads(1)
    if sys.argv[1] == "--of":
        return add_to(pathlib.Path(sys.argv[2]))
    root = pathlib.Path(sys.argv[1])
    generator = torch.Generator().manual_seed(SEED)
    for name, (family, fields, dtype, how) in CASES.items():
        folder = root / name
        shutil.rmtree(folder, ignore_errors=True)
        config = getattr(transformers, family + "Config")(**fields, torch_dtype=dtype)
        config._attn_implementation = "eager"
        with no_init_weights():  # fails on norms without weights; all are set below
            model = getattr(transformers, family + "ForCausalLM")(config).eval()
        randomise(model, generator)
        model.tie_weights()
        # What is computed is what the file holds. Only parameters are rounded: the rotary frequencies, which a model moved to
        # another type would round with them, stay float32.
        for p in model.parameters():
            p.data.copy_(p.data.to(getattr(torch, dtype)))
        saved = copy.deepcopy(model).to(getattr(torch, dtype))
        saved.save_pretrained(folder)
        if how == "body":
            (folder / "model.safetensors").unlink()
            torch.save(saved.model.state_dict(), folder / "pytorch_model.bin")
        (folder / "generation_config.json").unlink(missing_ok=True)
        tokens = torch.randint(0, VOCAB, (TOKENS,), generator=generator)
        logits = write_expected(model, tokens, folder)
        print(name, "logits", json.dumps([round(x, 3) for x in logits[-1, :4].tolist()]))


if __name__ == "__main__":
    main()
