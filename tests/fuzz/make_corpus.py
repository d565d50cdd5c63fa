#!/usr/bin/env python3
"""Writes the seed corpus: small valid files, and broken ones of each kind. Standard library only."""

import json
import os
import struct

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "corpus")


def put(target, name, data):
    folder = os.path.join(HERE, target)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, name), "wb") as f:
        f.write(data.encode() if isinstance(data, str) else data)


def safetensors(header, data, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def make_safetensors():
    t = "safetensors_fuzz"
    f32 = struct.pack("<4f", 1, -2, 0.5, 3e38)
    put(t, "empty_model", safetensors({}, b""))
    put(t, "one_tensor", safetensors({"a": tensor("F32", [2, 2], 0, 16)}, f32))
    put(t, "all_dtypes", safetensors({
        "__metadata__": {"format": "pt"}, "f": tensor("F32", [1], 0, 4), "h": tensor("F16", [2], 4, 8),
        "b": tensor("BF16", [2, 1], 8, 12), "u": tensor("U8", [3], 12, 15), "i": tensor("I64", [1], 15, 23),
        "s": tensor("F32", [], 23, 27), "n": tensor("F32", [0, 7], 27, 27)}, bytes(range(27))))
    put(t, "padded", safetensors(json.dumps({"a": tensor("U8", [1], 0, 1)}).encode() + b" " * 20, b"x"))
    put(t, "header_cut", safetensors(b'{"a":', b"", 100))
    put(t, "huge_header", safetensors(b"{}", b"", 2**64 - 1))
    put(t, "past_end", safetensors({"a": tensor("F32", [8], 0, 32)}, f32))
    put(t, "overlap", safetensors({"a": tensor("F32", [2], 0, 8), "b": tensor("F32", [2], 4, 12)}, f32[:12]))
    put(t, "hole", safetensors({"a": tensor("F32", [1], 0, 4), "b": tensor("F32", [1], 8, 12)}, f32[:12]))
    put(t, "huge_count", safetensors({"a": tensor("F32", [2**32, 2**32], 0, 16)}, f32))
    put(t, "wrong_size", safetensors({"a": tensor("F64", [2, 2], 0, 16)}, f32))
    put(t, "doubles", safetensors({"a": tensor("F64", [2], 0, 16)}, struct.pack("<2d", 0.5, 1e300)))
    put(t, "repeated", safetensors(
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}', b"xy"))
    put(t, "deep", safetensors(b'{"a":' + b"[" * 300 + b"]" * 300 + b"}", b""))


def text(s):
    return struct.pack("<Q", len(s)) + s.encode()


def kv(key, kind, value):
    return text(key) + struct.pack("<I", kind) + value


def u32(key, v):
    return kv(key, 4, struct.pack("<I", v))


def string(key, v):
    return kv(key, 8, text(v))


def strings(key, values):
    return kv(key, 9, struct.pack("<IQ", 8, len(values)) + b"".join(text(v) for v in values))


def gguf(metadata, tensors, data, version=3, counts=None):
    n_tensors, n_kv = counts or (len(tensors), len(metadata))
    out = b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_kv) + b"".join(metadata)
    for name, dims, kind, offset in tensors:
        out += text(name) + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}Q", *dims)
        out += struct.pack("<IQ", kind, offset)
    return out + b"\0" * (-len(out) % 32) + data


def llama(d=32, vocab=4, kinds=None):
    """One layer. kinds: type of each matrix, by name."""
    sizes = {0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 12: (256, 144),
             13: (256, 176), 14: (256, 210), 30: (1, 2)}
    kinds = kinds or {}
    metadata = [
        string("general.architecture", "llama"), u32("llama.embedding_length", d), u32("llama.block_count", 1),
        u32("llama.feed_forward_length", d), u32("llama.context_length", 64), u32("llama.attention.head_count", 4),
        u32("llama.attention.head_count_kv", 2), kv("llama.attention.layer_norm_rms_epsilon", 6, struct.pack("<f", 1e-5)),
        kv("llama.rope.freq_base", 6, struct.pack("<f", 10000)), string("tokenizer.ggml.model", "gpt2"),
        string("tokenizer.ggml.pre", "gpt-2"), strings("tokenizer.ggml.tokens", ["a", "b", "ab", "<s>"]),
        strings("tokenizer.ggml.merges", ["a b"]),
        kv("tokenizer.ggml.token_type", 9, struct.pack("<IQ4i", 5, 4, 1, 1, 1, 3)), u32("tokenizer.ggml.bos_token_id", 3)]
    shapes = [("token_embd.weight", [d, vocab]), ("output_norm.weight", [d])]
    shapes += [("blk.0." + n + ".weight", s) for n, s in [
        ("attn_norm", [d]), ("ffn_norm", [d]), ("attn_q", [d, d]), ("attn_k", [d, d // 2]), ("attn_v", [d, d // 2]),
        ("attn_output", [d, d]), ("ffn_gate", [d, d]), ("ffn_up", [d, d]), ("ffn_down", [d, d])]]
    tensors, data = [], b""
    for name, dims in shapes:
        kind = kinds.get(name.split(".")[-2], 0 if len(dims) == 1 else 2)
        elems, size = sizes[kind]
        count = dims[0] * (dims[1] if len(dims) == 2 else 1)
        tensors.append((name, dims, kind, len(data)))
        body = bytes((i * 37 + 11) % 127 for i in range(count // elems * size))
        data += body + b"\0" * (-len(body) % 32)
    return metadata, tensors, data


def make_gguf():
    t = "gguf_fuzz"
    put(t, "empty_model", gguf([], [], b""))
    m, ts, d = llama()
    put(t, "llama", gguf(m, ts, d))
    put(t, "llama_v2", gguf(m, ts, d, version=2))
    put(t, "llama_mixed", gguf(*llama(kinds={"attn_q": 8, "attn_k": 3, "attn_v": 6, "attn_output": 7, "ffn_gate": 1, "ffn_up": 30})))
    for kind in (12, 13, 14):
        put(t, f"k_blocks_{kind}", gguf([string("general.architecture", "llama")], [("token_embd.weight", [256, 2], kind, 0)],
                                      bytes(i % 251 for i in range(448))))
    put(t, "sentencepiece", gguf([
        string("tokenizer.ggml.model", "llama"), strings("tokenizer.ggml.tokens", ["<unk>", "<0x0A>"]),
        kv("tokenizer.ggml.scores", 9, struct.pack("<IQ2f", 6, 2, 0.0, -1.0)), kv("tokenizer.ggml.add_bos_token", 7, b"\1")], [], b""))
    put(t, "every_type", gguf([kv(f"k{i}", i, bytes(n)) for i, n in
                               [(0, 1), (1, 1), (2, 2), (3, 2), (4, 4), (5, 4), (6, 4), (7, 1), (8, 8), (10, 8), (11, 8), (12, 8)]], [], b""))
    put(t, "huge_tensor_count", gguf([], [], b"", counts=(2**64 - 1, 0)))
    put(t, "huge_array", gguf([kv("a", 9, struct.pack("<IQ", 8, 2**61))], [], b"\0" * 64))
    put(t, "nested_array", gguf([kv("a", 9, struct.pack("<IQ", 9, 1))], [], b"\0" * 64))
    put(t, "past_end", gguf([], [("t", [64], 0, 0)], b"\0" * 32))
    put(t, "overlap", gguf([], [("t", [16], 0, 0), ("u", [16], 0, 32)], b"\0" * 128))
    put(t, "huge_dims", gguf([], [("t", [2**32, 2**32], 0, 0)], b"\0" * 32))
    put(t, "bad_type", gguf([], [("t", [256], 11, 0)], b"\0" * 256))
    put(t, "bad_alignment", gguf([u32("general.alignment", 3)], [("t", [4], 0, 0)], b"\0" * 32))
    put(t, "version_1", gguf([], [], b"", version=1))


NF4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
       -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
       0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]
FP4 = [v / 12 for v in (0, 0.0625, 8, 12, 4, 6, 2, 3, 0, -0.0625, -8, -12, -4, -6, -2, -3)]


def dynamic_map():
    """Near enough: its last bits are not fixed."""
    values = [0.0, 1.0]
    for exponent in range(7):
        n = 2**exponent
        for i in range(n):
            mean = 0.1 + 0.9 * (i + 0.5) / n
            values += [10.0**(exponent - 6) * mean, -(10.0**(exponent - 6)) * mean]
    return sorted(values)


def bitsandbytes(kind="nf4", shape=(8, 16), double=True, state=None, table=None, absmax=0.5, blocksize=64):
    n = shape[0] * shape[1]
    blocks = -(-n // blocksize)
    text = {"quant_type": kind, "blocksize": blocksize, "dtype": "bfloat16", "shape": list(shape)}
    if double:
        text.update({"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.25})
    text = (json.dumps(text) if state is None else state).encode()
    parts = [("w", "U8", [-(-n // 2), 1], bytes((i * 37) % 256 for i in range(-(-n // 2)))),
             ("w.quant_map", "F32", [16], struct.pack("<16f", *(table or (NF4 if kind == "nf4" else FP4))))]
    if double:
        parts += [("w.absmax", "U8", [blocks], bytes(range(blocks))),
                  ("w.nested_absmax", "F32", [1], struct.pack("<f", absmax)),
                  ("w.nested_quant_map", "F32", [256], struct.pack("<256f", *dynamic_map()))]
    else:
        parts += [("w.absmax", "F32", [blocks], struct.pack("<f", absmax) * blocks)]
    parts.append((f"w.quant_state.bitsandbytes__{kind}", "U8", [len(text)], text))
    header, data = {}, b""
    for name, dtype, dims, body in parts:
        header[name] = tensor(dtype, dims, len(data), len(data) + len(body))
        data += body
    return safetensors(header, data)


def make_bitsandbytes():
    t = "bitsandbytes_fuzz"
    put(t, "nf4_double", bitsandbytes())
    put(t, "fp4_double", bitsandbytes("fp4"))
    put(t, "nf4_single", bitsandbytes(double=False))
    put(t, "odd", bitsandbytes(shape=(3, 27), blocksize=64))
    put(t, "block_4096", bitsandbytes(blocksize=4096))
    put(t, "block_32", bitsandbytes(blocksize=32))
    put(t, "other_table", bitsandbytes(table=[0.5] * 16))
    put(t, "infinite", bitsandbytes(absmax=float("inf")))
    put(t, "largest", bitsandbytes(absmax=3.4e38))
    put(t, "empty_shape", bitsandbytes(state='{"quant_type":"nf4","blocksize":64,"shape":[0,16]}'))
    put(t, "huge_shape", bitsandbytes(state='{"quant_type":"nf4","blocksize":64,"shape":[2147483648,2147483648]}'))
    put(t, "no_json", bitsandbytes(state="{{{{"))


def llama2c(dim=4, hidden=3, layers=1, heads=2, kv_heads=1, vocab=3, seq_len=2, floats=None):
    head_dim = dim // heads
    layer = 2 * dim + 2 * dim * dim + 2 * head_dim * kv_heads * dim + 3 * dim * hidden
    count = abs(vocab) * dim * (2 if vocab < 0 else 1) + layers * layer + dim + seq_len * head_dim
    header = struct.pack("<7i", dim, hidden, layers, heads, kv_heads, vocab, seq_len)
    return header + struct.pack("<f", 0.25) * (count if floats is None else floats)


def llama2c_tokenizer(tokens):
    return struct.pack("<i", 7) + b"".join(struct.pack("<fi", -i, len(t)) + t for i, t in enumerate(tokens))


def make_llama2c():
    t = "llama2c_fuzz"
    put(t, "tied", llama2c())
    put(t, "untied", llama2c(vocab=-3, layers=2))
    put(t, "cut", llama2c()[:100])
    put(t, "huge", llama2c(dim=2**17, hidden=2**20, layers=4096, heads=64, kv_heads=64, vocab=2**24, seq_len=2**31 - 1, floats=4))
    put(t, "no_heads", struct.pack("<7i", 4, 3, 1, 0, 0, 3, 2))
    put(t, "newest_number", struct.pack("<7i", 4, 3, 1, 2, 1, -2**31, 2))
    put(t, "version_2", b"24ka" + struct.pack("<i", 2) + bytes(64))
    put(t, "tokenizer_3", llama2c_tokenizer([b"<unk>", b"\n<s>\n", b"\n</s>\n"]))
    put(t, "tokenizer_5", llama2c_tokenizer([b"<unk>", b"\n<s>\n", b"\n</s>\n", b"<0x0A>", b" a"]))
    put(t, "tokenizer_huge_length", struct.pack("<ifI", 7, 0.0, 2**32 - 1))


def make_model_config():
    t = "model_config_fuzz"
    base = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 512, "hidden_size": 64,
            "intermediate_size": 172, "num_hidden_layers": 5, "num_attention_heads": 8, "num_key_value_heads": 4,
            "head_dim": 8, "max_position_embeddings": 512, "hidden_act": "silu", "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0, "rope_scaling": None, "tie_word_embeddings": True, "attention_bias": False,
            "bos_token_id": 1, "eos_token_id": [1, 2], "pad_token_id": None, "torch_dtype": "float32"}
    put(t, "llama", json.dumps(base))
    put(t, "mistral", json.dumps({**base, "architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": None}))
    put(t, "llama3", json.dumps({**base, "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}}))
    put(t, "mistral_window", json.dumps({**base, "architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 64}))
    put(t, "qwen2", json.dumps({**base, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "use_sliding_window": True,
                                "sliding_window": 64, "layer_types": ["full_attention"] * 2 + ["sliding_attention"] * 3}))
    put(t, "opt", json.dumps({"architectures": ["OPTForCausalLM"], "model_type": "opt", "vocab_size": 512, "hidden_size": 64,
                              "ffn_dim": 256, "num_hidden_layers": 5, "num_attention_heads": 8, "word_embed_proj_dim": 32,
                              "do_layer_norm_before": False, "_remove_final_layer_norm": False, "enable_bias": True,
                              "layer_norm_elementwise_affine": True, "activation_function": "relu",
                              "max_position_embeddings": 512}))
    put(t, "dynamic_rope", json.dumps({**base, "rope_scaling": {"type": "dynamic", "factor": 2.0}}))
    put(t, "rope_parameters", json.dumps({**base, "rope_parameters": {"rope_type": "linear", "factor": 2, "rope_theta": 1e5}}))
    put(t, "other_architecture", json.dumps({**base, "architectures": ["GPT2LMHeadModel"]}))
    put(t, "huge_sizes", json.dumps({**base, "hidden_size": 2**63 - 1, "num_hidden_layers": 10**18}))
    put(t, "wrong_types", json.dumps({**base, "vocab_size": "many", "eos_token_id": [[1]], "rope_theta": True}))
    put(t, "quantized", json.dumps({**base, "quantization_config": {"quant_method": "gptq"}}))
    put(t, "cut", json.dumps(base)[:200])
    put(t, "deep", '{"eos_token_id":' + "[" * 500 + "]" * 500 + "}")
    put(t, "quant_state", json.dumps({"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [64, 172],
                                      "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.0123}))
    put(t, "manifest", json.dumps({
        "format_version": 1, "name": "m", "parameters": 260032, "source": {"path": "p", "format": "gguf", "bytes": 1},
        "quantization": {"type": "nf4", "block_size": 64, "double_quant": True}, "weights": {"sha256": "00", "bytes": 5},
        "bytes": {"embedding": 1, "layers": 2, "head": 3}}))
    put(t, "manifest_layers", json.dumps({
        "format_version": 1, "name": "m", "parameters": 1, "source": {"path": "p", "format": "gguf", "bytes": 1},
        "quantization": {"type": "none"}, "weights": {"sha256": "00", "bytes": 5},
        "bytes": {"embedding": 1, "layers": 2, "head": 3}, "quantization_error": 0.09,
        "layers": [{"parameters": 1, "bytes": 2, "quantization_error": 0.1, "worst_tensor": "w", "worst_error": 0.2}]}))


def field(number, value):
    """One field of a protocol buffer message: an integer, a float or bytes."""
    if isinstance(value, float):
        return bytes([number << 3 & 0x7F | 5]) + struct.pack("<f", value)
    key = varint(number << 3 | (0 if isinstance(value, int) else 2))
    return key + (varint(value) if isinstance(value, int) else varint(len(value)) + value)


def varint(value):
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def sentence_piece(pieces, trainer=b"", normalizer=b""):
    out = b"".join(field(1, field(1, text.encode()) + field(2, float(score)) + field(3, kind)) for text, score, kind in pieces)
    return out + field(2, field(3, 2) + trainer) + field(3, field(4, 0) + normalizer)


def make_tokenizer_model():
    t = "tokenizer_model"
    with_text = lambda text, model: bytes([len(text.encode())]) + text.encode() + model
    head = [("<unk>", 0, 2), ("<s>", 0, 3), ("</s>", 0, 3)]
    pieces = [("\u2581", -1, 1), ("a", -2, 1), ("b", -3, 1), ("ab", -1, 1), ("ba", -1, 1), ("\u2581a", -2, 1)]
    put(t, "plain", with_text("ab ba abba <s> c", sentence_piece(head + pieces)))
    byte_pieces = [(f"<0x{b:02X}>", 0, 6) for b in range(256)]
    put(t, "bytes", with_text("ab \u00e9 \U0001f642\n", sentence_piece(head + byte_pieces + pieces, field(35, 1))))
    put(t, "user_defined", with_text("<u>a <u>", sentence_piece(head + pieces + [("<u>", 0, 4), ("\u2581\u2581", 0, 4)])))
    put(t, "extra_spaces", with_text("  a  b ", sentence_piece(head + pieces, normalizer=field(3, 0) + field(4, 1))))
    put(t, "unigram", with_text("a", sentence_piece(head + pieces, field(3, 1))))
    put(t, "charsmap", with_text("a", sentence_piece(head + pieces, normalizer=field(1, b"nmt_nfkc") + field(2, b"xyz"))))
    put(t, "odd_pieces", with_text("a", sentence_piece([("", 0, 1), ("a", float("nan"), 9), ("a", 0, 1)])))


def make_tokenizer_vocab():
    t = "tokenizer_vocab"
    vocab = json.dumps({"a": 0, "b": 1, "ab": 2, "\u0120": 3, "<|endoftext|>": 4, "1": 5})
    join = lambda *parts: "\0".join(parts)
    put(t, "plain", join(vocab, "#version: 0.2\na b\n", "", "", "", "ab ba<|endoftext|>1"))
    put(t, "settings", join(vocab, "a b", json.dumps({
        "tokenizer_class": "Qwen2Tokenizer", "add_bos_token": True, "bos_token": {"content": "<|endoftext|>"},
        "added_tokens_decoder": {"6": {"content": "<x>", "special": True}}}), '{"additional_special_tokens": ["<x>"]}',
        '{"<y>": 7}', "a<x><y>11"))
    put(t, "holes", join('{"a": 0, "b": 9}', ""))
    put(t, "unknown_merge", join(vocab, "a c"))
    put(t, "gap", join(vocab, "a b", "", "", '{"<y>": 70}'))


def make_frame():
    t = "frame_fuzz"
    def header(tokens, sequences, first=0, past=0, d=64, wire=1, flags=0, version=1, magic=b"QSTP"):
        head = magic + struct.pack("<HHQ5IB", version, flags, 7, tokens, sequences, first, past, d, wire)
        return head + bytes(64 - len(head))
    put(t, "pass", header(4, 2) + struct.pack("<7i", 1, 2, 3, 4, 0, 1, 4))
    for wire in (2, 3, 4):
        put(t, f"wire_{wire}", header(1, 1, wire=wire, first=24) + struct.pack("<3i", -1, 0, 1))
    put(t, "kv_cache", header(1, 1, past=2**31 - 2, flags=2) + struct.pack("<3i", 5, 0, 1))
    put(t, "kv_cache_of_two", header(2, 2, flags=2))
    put(t, "stop", header(0, 0, d=0, wire=0, flags=1))
    put(t, "offsets_fall", header(4, 3) + struct.pack("<8i", 1, 2, 3, 4, 0, 3, 2, 4))
    put(t, "offsets_short", header(4, 1) + struct.pack("<6i", 1, 2, 3, 4, 0, 3))
    put(t, "huge", header(2**32 - 1, 2**32 - 1, past=2**32 - 1, first=2**32 - 1))
    put(t, "no_tokens", header(0, 0))
    put(t, "version_2", header(1, 1, version=2))
    goodbye = lambda code, message, length=None, flag=0: b"QSTB" + struct.pack(
        "<3I", code, len(message) if length is None else length, flag) + message
    put(t, "goodbye", goodbye(0, b"memory: little"))
    put(t, "goodbye_error", goodbye(8, b"no memory"))
    put(t, "goodbye_passed_on", goodbye(13, b"stage 0: gone", flag=1))
    put(t, "goodbye_not_utf8", goodbye(13, b"\xff\xfe \xc3"))
    put(t, "goodbye_too_long", goodbye(2, b"x", length=1009))
    put(t, "goodbye_of_no_code", goodbye(17, b"x"))


def make_control_messages():
    t = "control_messages_fuzz"
    spec = field(1, b"j") + field(2, b"m") + field(6, field(1, b"data"))
    put(t, "spec", b"\0" + spec)
    put(t, "spec_classification", b"\0" + spec + field(5, field(1, 2) + field(2, b"a") + field(2, b"b")) +
        field(4, field(1, 3) + field(2, 1024) + field(3, 4)) + field(8, field(3, 1)))
    put(t, "spec_custom_template", b"\0" + spec + field(6, field(5, b"custom") + field(10, field(1, b"S"))))
    put(t, "spec_out_of_range", b"\0" + field(1, b"..") + field(4, field(2, 2**32 - 1) + field(1, 99)) +
        field(7, field(3, 2**32 - 1) + field(6, 65) + field(19, 7)) + field(10, field(1, 257) + field(2, 300) + field(3, 9)))
    put(t, "model", b"\1" + field(1, b"m") + field(7, field(1, 1) + field(2, 64) + field(3, 1)) + field(9, 24))
    put(t, "model_unquantized", b"\1" + field(1, b"m") + field(7, field(1, 3)))
    stage = lambda i, first, layers: field(3, field(1, i) + field(2, b"w") + field(3, first) + field(4, layers))
    ids, limits = field(1, b"j") + field(2, b"j/1"), field(7, 2) + field(8, 4096) + field(9, 512)
    part = lambda plan, rest: b"\2" + field(1, plan) + rest
    put(t, "stage", part(ids + stage(0, 0, 3) + stage(1, 3, 2) + limits, field(3, 1)))
    put(t, "side", part(ids + stage(0, 0, 5) + limits, field(2, 1) + field(4, field(1, spec))))
    put(t, "side_without_work", part(ids + stage(0, 0, 5) + limits, field(2, 1)))
    put(t, "no_such_stage", part(ids + stage(0, 0, 5) + limits, field(3, 1)))
    put(t, "hole", part(ids + stage(0, 0, 3) + stage(1, 4, 2) + limits, b""))
    put(t, "too_many_layers", part(ids + stage(0, 0, 2**32 - 1) + stage(1, 2**32 - 1, 1) + stage(2, 0, 5) + limits, b""))
    put(t, "unknown_types", part(ids + stage(0, 0, 5) + limits + field(6, 9) + field(12, 9), b""))
    put(t, "no_passes", part(ids + stage(0, 0, 5), b""))


make_safetensors()
make_gguf()
make_bitsandbytes()
make_llama2c()
make_model_config()
make_tokenizer_model()
make_tokenizer_vocab()
make_frame()
make_control_messages()
