"""Makes the checkpoints of this folder with PyTorch: python3 make_golden.py (written by torch 1.13.0).

Every tensor holds the values that torch_file_test.cc computes: element i of tensor "name" is (i * 7 % 31 - 15) / 8.
"""
import collections
import os
import pickle
import struct

import torch

here = os.path.dirname(os.path.abspath(__file__))


def values(*shape, dtype=torch.float32):
    n = 1
    for s in shape:
        n *= s
    return ((torch.arange(n) * 7 % 31 - 15).float() / 8).reshape(shape).to(dtype)


base = values(6, 8)
state = collections.OrderedDict()
state["f32"] = values(3, 5)
state["f16"] = values(4, 2, dtype=torch.float16)
state["bf16"] = values(7, dtype=torch.bfloat16)
state["f64"] = values(2, 2, dtype=torch.float64)
state["ids"] = torch.arange(4)
state["scalar"] = values(1).reshape(())
state["empty"] = torch.zeros(0, 3)
state["parameter"] = torch.nn.Parameter(values(2, 3))
state["transposed"] = values(4, 3).t()           # shape [3, 4], strides [1, 3]
state["columns"] = base[1:5, 2:7:2]              # offset, strides [8, 2]
state["tied"] = state["f32"]                     # the same storage
state._metadata = collections.OrderedDict([("", {"version": 1})])

torch.save(state, os.path.join(here, "zip.bin"))
torch.save(state, os.path.join(here, "legacy.bin"), _use_new_zipfile_serialization=False)
torch.save({"epoch": 3, "note": "x", "model": state}, os.path.join(here, "nested.bin"))
torch.save([1, 2, 3], os.path.join(here, "no_tensors.bin"))


class Attack:
    def __reduce__(self):
        return (os.system, ("echo owned",))


torch.save({"w": values(2), "x": Attack()}, os.path.join(here, "os_system.bin"))
with open(os.path.join(here, "eval_legacy.bin"), "wb") as f:
    pickle.dump(0x1950A86A20F9469CFC6C, f, protocol=2)
    pickle.dump(1001, f, protocol=2)
    pickle.dump(dict(protocol_version=1001, little_endian=True), f, protocol=2)
    f.write(b"c__builtin__\neval\n(S'1+1'\ntR.")
