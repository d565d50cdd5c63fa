#!/usr/bin/env python3
"""Golden checkpoints that bitsandbytes itself quantized: tiny random models of every family, loaded by transformers
with BitsAndBytesConfig(load_in_4bit=True) on the CPU and written by save_pretrained, with the hidden states and logits
that transformers and bitsandbytes compute of the written files in float32.

Each case becomes a folder as save_pretrained leaves it, with expected.safetensors as in backbone_golden.py. Packages
and environment: there. Run from the repository root:

    venv/bin/python tests/oracle/bitsandbytes_golden.py tests/oracle/testdata/bitsandbytes

A model of any size, by hand: `--quantize FOLDER OUT nf4|fp4 double|single DTYPE` quantizes the Hugging Face folder,
with DTYPE for all that stays unquantized, and adds expected.safetensors; bitsandbytes_golden_test reads the folders
named in QST_GOLDEN_BITSANDBYTES (separated by colons) besides its own.

What is float32: a layer that bitsandbytes runs on a CPU dequantizes its weight to the compute dtype (here float32,
whatever dtype the original had) and multiplies in it. Only where the CPU has AVX512-BF16 and the model is in eval mode
does it repack the weights for a kernel that rounds inputs, constants and outputs to bfloat16; that is turned off here.
Each case is also computed by a plain transformers model of the weights that dequantize_4bit gives; both must agree.
"""
import contextlib
import copy
import functools
import pathlib
import shutil
import sys
import tempfile

import bitsandbytes
import torch
import transformers
from transformers.modeling_utils import no_init_weights

from backbone_golden import LLAMA, OPT, SEED, VOCAB, randomise, states_and_logits, write_expected

TOKENS = 16
ALLOWED = 1e-5  # between the two computations, of any token's vector
# Widths of which no block of 64 is a multiple: blocks end in the middle of rows, the last one before it is full.
LLAMA = dict(LLAMA, hidden_size=20, head_dim=6, intermediate_size=28, num_hidden_layers=2)
FAMILIES = {
    "llama": ("Llama", LLAMA),
    "mistral": ("Mistral", dict(LLAMA, sliding_window=7)),
    "qwen2": ("Qwen2", dict(LLAMA, hidden_size=24, tie_word_embeddings=True)),
    "opt": ("OPT", dict(OPT, hidden_size=20, word_embed_proj_dim=20, ffn_dim=28, num_hidden_layers=2)),
}
# Of what stays unquantized (norms, biases, embedding, head), as people choose it: one after the other.
DTYPES = ["bfloat16", "float16", "float32"]


def cases():
    """name: (config class, fields, dtype, type, double quantization, other settings)"""
    result = {}
    for name, (family, fields) in FAMILIES.items():
        for quant_type in ("nf4", "fp4"):
            for kind in ("double", "single"):
                dtype = DTYPES[len(result) % len(DTYPES)]
                layers = 2 if quant_type == "nf4" else 1  # small files
                result[f"{name}_{quant_type}_{kind}"] = (family, dict(fields, num_hidden_layers=layers), dtype,
                                                         quant_type, kind == "double", {})
    # More than 256 blocks in a weight: two nested constants.
    result["opt_nested"] = ("OPT", dict(OPT, hidden_size=34, word_embed_proj_dim=34, ffn_dim=490, num_hidden_layers=1,
                                        num_attention_heads=2), "bfloat16", "nf4", True, {})
    # Projections to and from the layers are in 4 bit, too.
    result["opt_350m"] = ("OPT", dict(FAMILIES["opt"][1], do_layer_norm_before=False, word_embed_proj_dim=12),
                          "float16", "nf4", False, {})
    # Rows of an odd number of elements: a byte holds the end of one and the start of the next.
    small = dict(LLAMA, num_hidden_layers=1)
    result["llama_odd_rows"] = ("Llama", dict(small, hidden_size=18, intermediate_size=25), "bfloat16", "nf4", True, {})
    result["llama_block_128"] = ("Llama", small, "bfloat16", "fp4", False, {"block_size": 128})
    result["mistral_sharded"] = ("Mistral", FAMILIES["mistral"][1], "bfloat16", "nf4", True, {"max_shard_size": "12KB"})
    # Codes as "numbers" of another dtype, as for training with FSDP.
    result["qwen2_storage"] = ("Qwen2", FAMILIES["qwen2"][1], "bfloat16", "nf4", True, {"storage": "bfloat16"})
    return result


@contextlib.contextmanager
def block_size(size):
    """transformers has no setting for it: bitsandbytes' modules are told."""
    init = bitsandbytes.nn.Linear4bit.__init__

    @functools.wraps(init)
    def with_size(module, *args, **kwargs):
        init(module, *args, **kwargs)
        module.weight.blocksize = size

    bitsandbytes.nn.Linear4bit.__init__ = with_size
    try:
        yield
    finally:
        bitsandbytes.nn.Linear4bit.__init__ = init


def quantize(source, folder, dtype, quant_type, double, settings):
    """The way of anybody's script: load in 4 bit, save."""
    config = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=quant_type, bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=torch.float32, bnb_4bit_quant_storage=settings.get("storage", "uint8"))
    with block_size(settings.get("block_size", 64)):
        model = transformers.AutoModelForCausalLM.from_pretrained(source, quantization_config=config,
                                                                  dtype=getattr(torch, dtype))
    model.save_pretrained(folder, max_shard_size=settings.get("max_shard_size", "5GB"))


def four_bit_layers(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, bitsandbytes.nn.Linear4bit)}


def load(folder):
    """The written files as a model that computes in float32. Loaded with dtype float32, transformers would convert the
    codes, too, where their storage type is a float; so all but these is converted afterwards."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto", attn_implementation="eager")
    for module in four_bit_layers(model).values():
        assert module.compute_dtype == torch.float32
        module.support_avx512bf16_for_cpu = False
    for p in model.parameters():
        if not isinstance(p, bitsandbytes.nn.Params4bit):
            p.data = p.data.float()
    assert all(b.dtype == torch.float32 for b in model.buffers())
    return model.eval()


def dequantized(model):
    """The plain model of the same weights: float32 products of table values and constants."""
    config = copy.deepcopy(model.config)
    del config.quantization_config
    config._attn_implementation = "eager"
    with no_init_weights():
        plain = type(model)(config).eval().float()
    plain.tie_weights()
    weights = {n: p.data for n, p in model.named_parameters()}
    for name, module in four_bit_layers(model).items():
        state = copy.copy(module.weight.quant_state)
        state.dtype = torch.float32
        weights[name + ".weight"] = bitsandbytes.functional.dequantize_4bit(module.weight.data, state)
    for name, p in plain.named_parameters():
        assert weights[name].dtype == torch.float32 and weights[name].shape == p.shape, name
        p.data.copy_(weights[name])
    return plain


def worst(expected, actual):
    return ((actual - expected).norm(dim=-1) / expected.norm(dim=-1)).max().item()


def finish(folder, tokens):
    model = load(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    write_expected(model, tokens, folder,
                   "tests/oracle/bitsandbytes_golden.py, bitsandbytes " + bitsandbytes.__version__)
    own, plain = states_and_logits(model, tokens), states_and_logits(dequantized(model), tokens)
    errors = [worst(a, b) for a, b in zip(own, plain)]
    print(f"{folder.name}: {len(four_bit_layers(model))} 4-bit layers; computed by itself and by its dequantized "
          f"weights: states within {errors[0]:.2g}, logits within {errors[1]:.2g}", flush=True)
    assert four_bit_layers(model) and max(errors) <= ALLOWED


def main():
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(SEED)
    if sys.argv[1] == "--quantize":
        source, folder, quant_type, kind, dtype = sys.argv[2:]
        quantize(source, folder, dtype, quant_type, kind == "double", {})
        transformers.AutoTokenizer.from_pretrained(source).save_pretrained(folder)
        vocab = transformers.AutoConfig.from_pretrained(source).vocab_size
        return finish(pathlib.Path(folder), torch.randint(0, vocab, (64,), generator=generator))
    root = pathlib.Path(sys.argv[1])
    for name, (family, fields, dtype, quant_type, double, settings) in cases().items():
        folder = root / name
        shutil.rmtree(folder, ignore_errors=True)
        with no_init_weights():
            model = getattr(transformers, family + "ForCausalLM")(getattr(transformers, family + "Config")(**fields))
        randomise(model, generator)
        model.tie_weights()
        with tempfile.TemporaryDirectory() as source:
            model.save_pretrained(source)
            quantize(source, folder, dtype, quant_type, double, settings)
        finish(folder, torch.randint(0, VOCAB, (TOKENS,), generator=generator))


if __name__ == "__main__":
    main()
