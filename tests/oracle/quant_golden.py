#!/usr/bin/env python3
"""Writes worker/checkpoint/testdata/bitsandbytes_quant.safetensors: what bitsandbytes makes of hard weights.

Tensors:
  <distribution>.weights                                     F32
  <distribution>.<type>.b<block size>.codes, .absmax         U8, F32; without double quantization
  <distribution>.b<block size>.nested.<part>                 with it: absmax (U8), absmax2 (F32), offset (F32 [1]).
                                                             The same for both types, whose constants are the same.
  nf4.quant_map, fp4.quant_map, nested_quant_map             F32

Run with the versions of requirements.txt: python3 tests/oracle/quant_golden.py
bitsandbytes runs on the CPU here. Where its CPU code is known to differ from its CUDA kernels, worker/checkpoint/quant_golden_test.cc says
so and checks that the difference is just that one.
"""

import os

import bitsandbytes
import bitsandbytes.functional as F
import numpy as np
import torch
from safetensors.torch import save_file

BLOCK_SIZES = [64, 128, 256, 512, 1024, 2048, 4096]
PATH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "worker", "checkpoint", "testdata",
                    "bitsandbytes_quant.safetensors")


def distributions():
    """Small, and no multiple of any block size where it matters: 2 * 4096 + 70 elements are 3 of the largest blocks."""
    rng = np.random.default_rng(2024)
    n = 2 * 4096 + 70
    normal = (rng.standard_normal(n) * 0.02).astype(np.float32)
    uniform = rng.uniform(-0.5, 0.5, n).astype(np.float32)
    heavy = (rng.standard_t(2, n) * 0.01).astype(np.float32)
    zero_blocks = (rng.standard_normal(n) * 0.02).astype(np.float32)
    zero_blocks[64:192] = 0.0
    zero_blocks[4096:8192] = 0.0
    constant = np.full(4096 + 64, 0.03125, np.float32)
    # Every magnitude of the denormal range; a block's largest is denormal, too.
    denormal = (rng.integers(1, 2**23, 4096) * rng.choice([-1, 1], 4096)).astype(np.float64) * 2.0**-149
    return {
        "normal": normal, "uniform": uniform, "heavy": heavy, "zero_blocks": zero_blocks, "constant": constant,
        "denormal": denormal.astype(np.float32), "odd": normal[:321].copy(), "all_zero": np.zeros(256, np.float32),
    }


def quantize(weights, quant_type, block_size, double):
    return F.quantize_4bit(torch.from_numpy(weights), blocksize=block_size, quant_type=quant_type,
                           compress_statistics=double)


def main():
    torch.set_num_threads(1)
    tensors = {}
    for name, weights in distributions().items():
        tensors[f"{name}.weights"] = torch.from_numpy(weights)
        for block_size in BLOCK_SIZES:
            nested = {}
            for quant_type in ("nf4", "fp4"):
                codes, state = quantize(weights, quant_type, block_size, False)
                tensors[f"{name}.{quant_type}.b{block_size}.codes"] = codes.flatten().contiguous()
                tensors[f"{name}.{quant_type}.b{block_size}.absmax"] = state.absmax.contiguous()
                tensors[f"{quant_type}.quant_map"] = state.code.clone()
                nested_codes, state = quantize(weights, quant_type, block_size, True)
                assert torch.equal(codes, nested_codes) and state.state2.blocksize == 256
                nested[quant_type] = {"absmax": state.absmax, "absmax2": state.state2.absmax,
                                      "offset": state.offset.reshape(1)}
                tensors["nested_quant_map"] = state.state2.code.clone()
            for part, tensor in nested["nf4"].items():
                assert torch.equal(tensor, nested["fp4"][part])
                tensors[f"{name}.b{block_size}.nested.{part}"] = tensor.contiguous()
    versions = {"generator": "tests/oracle/quant_golden.py", "bitsandbytes": bitsandbytes.__version__,
                "torch": torch.__version__, "seed": "2024"}
    save_file(tensors, PATH, metadata=versions)
    os.chmod(PATH, 0o644)
    print(PATH, os.path.getsize(PATH), "bytes")


if __name__ == "__main__":
    main()
