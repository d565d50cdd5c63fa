#!/usr/bin/env python3
"""Checks that exported models load in transformers, and in bitsandbytes, and compute what our backbone computes.

  bazel build //tests/interop:backbone_dump
  python3 tests/oracle/export_check.py bazel-bin/tests/interop/backbone_dump MODEL_FOLDER...

Each model is imported in NF4 and FP4, exported as stored and as floats, loaded with transformers (CPU, float32), and its
hidden states and logits are compared with ours. Prints the largest difference of any logit relative to the root mean square
of its row. Ends with status 1 if one is above 1e-4. Versions: requirements.txt.
"""

import subprocess
import sys
import tempfile

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

TOLERANCE = 1e-4


def worst(expected, actual):
    size = torch.maximum(expected.abs(), expected.pow(2).mean(-1, keepdim=True).sqrt())
    return ((actual - expected).abs() / size).max().item()


def main():
    torch.set_num_threads(1)
    dump, models = sys.argv[1], sys.argv[2:]
    failed = False
    for model in models:
        for quant_type, block_size in (("nf4", 64), ("fp4", 64), ("none", 0)):
            with tempfile.TemporaryDirectory() as folder:
                tokens = [1, 20, 300, 17, 401, 5, 77, 250, 3, 111]
                store, out = folder + "/store", folder + "/ours.safetensors"
                subprocess.run([dump, model, store, quant_type, str(block_size), out, *map(str, tokens)], check=True)
                ours = load_file(out)
                for form in ("bnb", "plain"):
                    theirs = AutoModelForCausalLM.from_pretrained(f"{store}.{form}", dtype=torch.float32).eval()
                    four_bit = sum("Linear4bit" in type(m).__name__ for m in theirs.modules())
                    with torch.no_grad():
                        result = theirs(torch.tensor([tokens]), output_hidden_states=True)
                    # transformers applies the last norm to the last state; all others are ours.
                    states = torch.stack([h[0] for h in result.hidden_states[:-1]])
                    errors = worst(states, ours["hidden_states"][:-1]), worst(result.logits[0], ours["logits"])
                    is_good = max(errors) <= TOLERANCE and (four_bit > 0) == (form == "bnb" and quant_type != "none")
                    failed |= not is_good
                    print(f"{model} {quant_type} {form}: {four_bit} 4-bit modules, hidden states within {errors[0]:.2g}, "
                          f"logits within {errors[1]:.2g}{'' if is_good else '  FAILED'}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
