"""QLoRA with Hugging Face PEFT and bitsandbytes on the model that cuda_model_bench trains: tokens/s and peak memory.

The weights are random and are made on the device, NF4 with nested constants, so nothing is downloaded. LoRA of rank 16 on
every linear layer of the decoder, bf16, gradient checkpointing, 8-bit paged AdamW: the settings that QLoRA's authors
publish, rank aside. Sequences have one length, so nothing is padded; the second half of each is predicted.

    python3 tests/bench/peers/qlora_peer.py [--shape llama-2-7b|tiny] [--sequences 16] [--length 512] [--micro 4]
        [--steps 4] [--forward-only]

Needs torch, transformers, peft and bitsandbytes from PyPI. Prints lines of JSON like the benchmarks' (ratio: null). --micro is the number of sequences in a forward pass.
"""

import argparse
import json
import time

import torch

SHAPES = {
    "llama-2-7b": dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
                       num_key_value_heads=32, vocab_size=32000),
    "tiny": dict(hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
                 num_key_value_heads=4, vocab_size=512),
}


def make_model(shape, device):
    import bitsandbytes as bnb
    from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(**SHAPES[shape], max_position_embeddings=4096, rms_norm_eps=1e-5, attn_implementation="sdpa")
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    for module in list(model.model.layers.modules()):
        for name, child in list(module.named_children()):
            if not isinstance(child, torch.nn.Linear):
                continue
            linear = bnb.nn.Linear4bit(child.in_features, child.out_features, bias=False,
                                       compute_dtype=torch.bfloat16, compress_statistics=True, quant_type="nf4",
                                       device="meta")
            weight = torch.randn(child.out_features, child.in_features, dtype=torch.bfloat16, device=device) * 0.02
            packed, state = bnb.functional.quantize_4bit(weight, compress_statistics=True, quant_type="nf4")
            linear.weight = bnb.nn.Params4bit.from_prequantized(
                packed, state.as_dict(packed=True), requires_grad=False, device=device)
            linear.weight.module = linear
            setattr(module, name, linear)
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta:
                value = torch.randn(parameter.shape, dtype=torch.bfloat16, device=device) * 0.02
                if parameter.dim() == 1:
                    value = torch.ones_like(value)
                setattr(module, name, torch.nn.Parameter(value, requires_grad=False))
    model.model.rotary_emb = LlamaRotaryEmbedding(config).to(device)
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                      bnb_4bit_compute_dtype=torch.bfloat16)
    model.config.quantization_config = quantization
    model.is_loaded_in_4bit = True  # what PEFT looks at to choose its 4-bit layers
    model.is_quantized = True
    return model, config


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="llama-2-7b", choices=sorted(SHAPES))
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--micro", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--forward-only", action="store_true")
    args = parser.parse_args()
    if args.sequences % args.micro:
        parser.error("--micro must divide --sequences")

    import bitsandbytes as bnb
    import peft
    import transformers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model, config = make_model(args.shape, device)
    what = (f"{args.shape}, NF4 double-quantized, {args.sequences}x{args.length} tokens a step in passes of {args.micro}; "
            f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}, "
            f"bitsandbytes {bnb.__version__}")

    def report(name, value, unit):
        print(json.dumps({"name": name, "shape": what, "value": round(value, 3), "unit": unit, "ratio": None}), flush=True)

    def synchronize():
        if device == "cuda":
            torch.cuda.synchronize()

    def batch():
        tokens = torch.randint(0, config.vocab_size, (args.micro, args.length), device=device)
        labels = tokens.clone()
        labels[:, : args.length // 2] = -100
        return dict(input_ids=tokens, labels=labels)

    def rate(step):
        step()
        synchronize()
        begin = time.perf_counter()
        for _ in range(args.steps):
            step()
        synchronize()
        return args.steps * args.sequences * args.length / (time.perf_counter() - begin)

    def forward_step():
        with torch.no_grad(), torch.autocast(device, dtype=torch.bfloat16):
            for _ in range(args.sequences // args.micro):
                model.model(input_ids=batch()["input_ids"], use_cache=False)

    model.eval()
    report("peer: backbone forward, transformers + bitsandbytes", rate(forward_step), "tokens/s")
    if args.forward_only:
        return

    model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=True,
                                                 gradient_checkpointing_kwargs={"use_reentrant": False})
    lora = peft.LoraConfig(r=16, lora_alpha=16, lora_dropout=0.05, bias="none", task_type="CAUSAL_LM",
                           target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])
    model = peft.get_peft_model(model, lora)
    layer = model.base_model.model.model.layers[0].mlp.up_proj
    assert "4bit" in type(layer).__name__, f"PEFT does not train 4-bit layers here: {type(layer)}"
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    if device == "cuda":
        optimizer = bnb.optim.PagedAdamW8bit(parameters, lr=2e-4)
    else:
        optimizer = torch.optim.AdamW(parameters, lr=2e-4)
    losses = []

    def training_step():
        for _ in range(args.sequences // args.micro):
            with torch.autocast(device, dtype=torch.bfloat16):
                loss = model(**batch(), use_cache=False).loss / (args.sequences // args.micro)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 0.3)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    report("peer: QLoRA training, peft + bitsandbytes, r = 16, gradient checkpointing", rate(training_step), "tokens/s")
    assert torch.isfinite(torch.stack(losses)).all(), f"losses {losses}"
    if device == "cuda":
        report("peer: peak memory, QLoRA training", torch.cuda.max_memory_allocated() / 1e9, "GB")
        report("peer: peak memory that PyTorch reserved", torch.cuda.max_memory_reserved() / 1e9, "GB")


if __name__ == "__main__":
    main()
