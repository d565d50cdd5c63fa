#!/usr/bin/env python3
"""Makes the golden files of this folder with the reference implementation of GGUF.

  pip install gguf==0.19.0 numpy safetensors
  ./make_golden.py

ggml_blocks.safetensors  for every block type: four blocks of random bytes with scales of ordinary size
                         ("<type>.blocks", U8) and their values ("<type>.values", F32)
tiny_llama.gguf          a LLaMA of random weights: 2 layers, hidden 32, 4 heads, 2 key/value heads, vocabulary 48
tiny_llama.safetensors   the same model in Hugging Face layout, F32: what reading the GGUF file must give
The comparison is exact. Seed 20240117.
"""

import os

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T
from safetensors.numpy import save_file

HERE = os.path.dirname(os.path.abspath(__file__))
rng = np.random.default_rng(20240117)

# Type, and where its half-precision scales lie in a block.
BLOCK_TYPES = [
    (T.Q8_0, [0]), (T.Q4_0, [0]), (T.Q4_1, [0, 2]), (T.Q5_0, [0]), (T.Q5_1, [0, 2]),
    (T.Q4_K, [0, 2]), (T.Q5_K, [0, 2]), (T.Q6_K, [208]),
]


def random_blocks(kind, scale_offsets, count):
    _, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (count, block_bytes), dtype=np.uint8)
    for offset in scale_offsets:
        scales = rng.normal(0, 0.02, count).astype(np.float16)
        blocks[:, offset:offset + 2] = scales.view(np.uint8).reshape(count, 2)
    return blocks


def make_blocks():
    tensors = {}
    for kind, scale_offsets in BLOCK_TYPES:
        blocks = random_blocks(kind, scale_offsets, 4)
        tensors[f"{kind.name}.blocks"] = blocks
        tensors[f"{kind.name}.values"] = gguf.quants.dequantize(blocks, kind).astype(np.float32)
    save_file(tensors, os.path.join(HERE, "ggml_blocks.safetensors"))


def interleave(rows, num_heads):
    """Hugging Face row order of a head (first half, second half) to ggml's (pairs side by side)."""
    head_dim = rows.shape[0] // num_heads
    order = [h * head_dim + half * (head_dim // 2) + j
             for h in range(num_heads) for j in range(head_dim // 2) for half in (0, 1)]
    return np.ascontiguousarray(rows[order])


def make_model():
    vocab, d, ff, layers, heads, kv_heads = 48, 32, 64, 2, 4, 2
    kv = d // heads * kv_heads
    writer = gguf.GGUFWriter(os.path.join(HERE, "tiny_llama.gguf"), "llama")
    writer.add_name("tiny")
    writer.add_block_count(layers)
    writer.add_context_length(128)
    writer.add_embedding_length(d)
    writer.add_feed_forward_length(ff)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_freq_base(50000.0)
    writer.add_rope_dimension_count(d // heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocab)
    tokens = ["<unk>", "<s>", "</s>"] + [chr(ord("!") + i) for i in range(vocab - 3)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([2, 3, 3] + [1] * (vocab - 3))
    writer.add_token_merges([])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{{ messages[0]['content'] }}")

    expected = {}

    def add(ggml_name, hf_name, shape, kind, permute_heads=0):
        weights = rng.normal(0, 0.05, shape).astype(np.float32)
        if kind == T.F32:
            stored = weights
            values = weights
        else:
            # Quantize in ggml's row order, as converters do, and take back what was stored.
            source = interleave(weights, permute_heads) if permute_heads else weights
            stored = gguf.quants.quantize(source, kind)
            values = gguf.quants.dequantize(stored, kind).reshape(shape).astype(np.float32)
            if permute_heads:
                back = np.empty_like(values)
                back[interleave(np.arange(shape[0]), permute_heads)] = values
                values = back
        if kind in (T.F32, T.F16):
            writer.add_tensor(ggml_name, stored if kind == T.F32 else stored.view(np.float16))
        else:
            writer.add_tensor(ggml_name, stored, raw_dtype=kind)
        expected[hf_name] = np.ascontiguousarray(values)

    add("token_embd.weight", "model.embed_tokens.weight", (vocab, d), T.Q8_0)
    kinds = [[T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0, T.F16, T.BF16],
             [T.BF16, T.F16, T.Q8_0, T.Q5_1, T.Q5_0, T.Q4_1, T.Q4_0]]
    for i in range(layers):
        g, h, k = f"blk.{i}.", f"model.layers.{i}.", kinds[i]
        add(g + "attn_norm.weight", h + "input_layernorm.weight", (d,), T.F32)
        add(g + "ffn_norm.weight", h + "post_attention_layernorm.weight", (d,), T.F32)
        add(g + "attn_q.weight", h + "self_attn.q_proj.weight", (d, d), k[0], heads)
        add(g + "attn_k.weight", h + "self_attn.k_proj.weight", (kv, d), k[1], kv_heads)
        add(g + "attn_v.weight", h + "self_attn.v_proj.weight", (kv, d), k[2])
        add(g + "attn_output.weight", h + "self_attn.o_proj.weight", (d, d), k[3])
        add(g + "ffn_gate.weight", h + "mlp.gate_proj.weight", (ff, d), k[4])
        add(g + "ffn_up.weight", h + "mlp.up_proj.weight", (ff, d), k[5])
        add(g + "ffn_down.weight", h + "mlp.down_proj.weight", (d, ff), k[6])
    add("output_norm.weight", "model.norm.weight", (d,), T.F32)
    add("output.weight", "lm_head.weight", (vocab, d), T.Q4_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(expected, os.path.join(HERE, "tiny_llama.safetensors"))


make_blocks()
make_model()
