#!/usr/bin/env python3
"""Golden values of the side network: states, losses, every gradient and a short training run.

An independent PyTorch module of the equations in worker/side/*.h, in float64 with autograd, on a tiny network of each
kind. Needs Debian's python3-torch; run from the repository root:

    /usr/bin/python3 tests/oracle/side_network_golden.py worker/side/testdata/side_network_golden.json
"""
import json
import math
import sys

import torch

torch.set_default_dtype(torch.float64)

LAYERS, D, HEADS, KV_HEADS, INTERMEDIATE, VOCAB = 2, 16, 2, 1, 24, 11
REDUCTION, RANK, EPS, THETA = 4, 3, 1e-5, 10000.0
HEAD_DIM = 2 * math.ceil(D / (REDUCTION * HEADS) / 2)
DS = HEAD_DIM * HEADS
INNER = 8 * math.ceil(math.ceil(INTERMEDIATE / REDUCTION) / 8)
OFFSETS = [0, 5, 6, 10]
LABELS = ["no", "maybe", "yes"]
TRAIN = dict(learning_rate=0.01, beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.1, clip_norm=0.5, steps=5)

CASES = {
    "paper_causal_lm": dict(preset="paper", mix_init=0.7),
    "untouched_causal_lm": dict(preset="tuned", gate_lr_scale=10.0),
    "reference_classification": dict(preset="reference", task="classification"),
    "lora_classification": dict(preset="paper", task="classification", downsample="lora", mix_init=0.6),
    "linear_causal_lm": dict(preset="paper", downsample="linear", mix_init=0.5, upsample_bias=False, gate_init=-0.3),
    "maxpool_causal_lm": dict(preset="paper", downsample="maxpool", mix_init=0.8),
    "avgpool_causal_lm": dict(preset="paper", downsample="avgpool", mix_init=0.8, sigmoid_mix=True),
    "probe_classification": dict(preset="probe", task="classification"),
}


def resolve(case):
    reference = case["preset"] == "reference"
    full = dict(task="causal_lm", downsample="adapter", gate_lr_scale=1.0, gate_init=0.5 if reference else 0.0,
                gate_per_channel=reference, mix_init=1.0, sigmoid_mix=reference, downsample_norm=reference,
                share_first_downsample=reference, upsample_bias=True)
    full.update(case)
    return full


def uniform(generator, shape, bound):
    # Rounded to float32, in which the C++ side holds its parameters.
    return ((torch.rand(shape, generator=generator) * 2 - 1) * bound).float().double()


def make_parameters(config, generator):
    """name -> (tensor, group)."""
    out = {}

    def weight(name, rows, cols):
        out[name] = (uniform(generator, (rows, cols), 1.5 / math.sqrt(cols)), "weights")

    def norm(name, size, has_bias=False):
        out[name + ".weight"] = (1 + uniform(generator, (size,), 0.3), "norms_and_biases")
        if has_bias:
            out[name + ".bias"] = (uniform(generator, (size,), 0.3), "norms_and_biases")

    if config["preset"] != "probe":
        modules = LAYERS if config["share_first_downsample"] else LAYERS + 1
        for i in range(modules):
            prefix = f"model.downsample.{i}"
            if config["downsample"] in ("adapter", "lora"):
                weight(f"{prefix}.{config['downsample']}_A.weight", RANK, D)
                weight(f"{prefix}.{config['downsample']}_B.weight", DS, RANK)
            elif config["downsample"] == "linear":
                weight(f"{prefix}.weight", DS, D)
            if config["downsample_norm"]:
                norm(f"{prefix}.post_layer_norm", DS, has_bias=True)
        for i in range(LAYERS):
            size = DS if config["gate_per_channel"] else 1
            out[f"model.z.{i}"] = (config["gate_init"] + uniform(generator, (size,), 0.2), "gates")
            p = f"model.qst_layers.{i}."
            norm(p + "input_layernorm", DS)
            weight(p + "self_attn.q_proj.weight", DS, DS)
            weight(p + "self_attn.k_proj.weight", KV_HEADS * HEAD_DIM, DS)
            weight(p + "self_attn.v_proj.weight", KV_HEADS * HEAD_DIM, DS)
            weight(p + "self_attn.o_proj.weight", DS, DS)
            norm(p + "post_attention_layernorm", DS)
            weight(p + "mlp.gate_proj.weight", INNER, DS)
            weight(p + "mlp.up_proj.weight", INNER, DS)
            weight(p + "mlp.down_proj.weight", DS, INNER)
        norm("model.norm_qst", DS)
        weight("upsample.weight", D, DS)
        if config["upsample_bias"]:
            out["upsample.bias"] = (uniform(generator, (D,), 0.5), "norms_and_biases")
        mix = torch.full((D if config["sigmoid_mix"] else 1,), float(config["mix_init"]))
        out["score_z" if config["task"] == "classification" else "lm_head_z"] = (mix.float().double(), "gates")
    if config["task"] == "classification":
        weight("score.weight", len(LABELS), D)
    return {k: (v.float().double().requires_grad_(True), g) for k, (v, g) in out.items()}


def rms_norm(x, weight):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + EPS) * weight


def rotate(x, positions):
    half = HEAD_DIM // 2
    angles = positions[:, None, None] * THETA ** (-2.0 * torch.arange(half) / HEAD_DIM)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)


def side_layer(p, prefix, x):
    n = rms_norm(x, p[prefix + "input_layernorm.weight"])
    parts = []
    for begin, end in zip(OFFSETS[:-1], OFFSETS[1:]):
        length = end - begin
        positions = torch.arange(length, dtype=torch.float64)
        rows = n[begin:end]
        q = rotate((rows @ p[prefix + "self_attn.q_proj.weight"].T).view(length, HEADS, HEAD_DIM), positions)
        k = rotate((rows @ p[prefix + "self_attn.k_proj.weight"].T).view(length, KV_HEADS, HEAD_DIM), positions)
        v = (rows @ p[prefix + "self_attn.v_proj.weight"].T).view(length, KV_HEADS, HEAD_DIM)
        k = k.repeat_interleave(HEADS // KV_HEADS, 1)
        v = v.repeat_interleave(HEADS // KV_HEADS, 1)
        scores = torch.einsum("qhc,khc->hqk", q, k) / math.sqrt(HEAD_DIM)
        scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf)
        parts.append(torch.einsum("hqk,khc->qhc", scores.softmax(-1), v).reshape(length, DS))
    y = x + torch.cat(parts) @ p[prefix + "self_attn.o_proj.weight"].T
    m = rms_norm(y, p[prefix + "post_attention_layernorm.weight"])
    gate = m @ p[prefix + "mlp.gate_proj.weight"].T
    up = m @ p[prefix + "mlp.up_proj.weight"].T
    return y + (torch.nn.functional.silu(gate) * up) @ p[prefix + "mlp.down_proj.weight"].T


def downsample(config, p, layer, h):
    module = (0 if layer == 0 else layer - 1) if config["share_first_downsample"] else layer
    prefix = f"model.downsample.{module}"
    kind = config["downsample"]
    if kind == "adapter":
        inner = torch.nn.functional.silu(h @ p[prefix + ".adapter_A.weight"].T)
        out = inner @ p[prefix + ".adapter_B.weight"].T
    elif kind == "lora":
        out = h @ p[prefix + ".lora_A.weight"].T @ p[prefix + ".lora_B.weight"].T
    elif kind == "linear":
        out = h @ p[prefix + ".weight"].T
    else:
        grouped = h.view(h.shape[0], DS, D // DS)
        out = grouped.max(-1).values if kind == "maxpool" else grouped.mean(-1)
    if config["downsample_norm"]:
        out = torch.nn.functional.layer_norm(out, (DS,), p[prefix + ".post_layer_norm.weight"],
                                             p[prefix + ".post_layer_norm.bias"], 1e-5)
    return out


def forward(config, p, frozen, rows, targets):
    """Side states, losses of the rows, class probabilities."""
    h = frozen["hidden_states"]
    states = []
    out = rms_norm(h[LAYERS], frozen["final_norm"])[rows]
    if config["preset"] != "probe":
        g = downsample(config, p, 0, h[0])
        states.append(g)
        for i in range(1, LAYERS + 1):
            beta = torch.sigmoid(p[f"model.z.{i - 1}"])
            g = side_layer(p, f"model.qst_layers.{i - 1}.",
                           (1 - beta) * downsample(config, p, i, h[i]) + beta * g)
            states.append(g)
        up = rms_norm(g, p["model.norm_qst.weight"])[rows] @ p["upsample.weight"].T
        if config["upsample_bias"]:
            up = up + p["upsample.bias"]
        alpha = p["score_z" if config["task"] == "classification" else "lm_head_z"]
        if config["sigmoid_mix"]:
            alpha = torch.sigmoid(alpha)
        out = alpha * out + (1 - alpha) * up
    head = p["score.weight"] if config["task"] == "classification" else frozen["lm_head"]
    log_p = (out @ head.T).log_softmax(-1)
    return states, -log_p[torch.arange(len(rows)), targets], log_p


def train(config, tensors, frozen, rows, targets):
    """Losses and gradient norms of a few AdamW steps with clipping."""
    losses, norms = [], []
    groups = []
    for group in ("weights", "norms_and_biases", "gates"):
        groups.append(dict(params=[t for t, g in tensors.values() if g == group],
                           lr=TRAIN["learning_rate"] * (config["gate_lr_scale"] if group == "gates" else 1.0),
                           weight_decay=TRAIN["weight_decay"] if group == "weights" else 0.0))
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], betas=(TRAIN["beta1"], TRAIN["beta2"]),
                                  eps=TRAIN["epsilon"])
    parameters = [t for t, _ in tensors.values()]
    for _ in range(TRAIN["steps"]):
        optimizer.zero_grad()
        loss = forward(config, {k: t for k, (t, _) in tensors.items()}, frozen, rows, targets)[1].mean()
        loss.backward()
        for t in parameters:
            if t.grad is None:
                t.grad = torch.zeros_like(t)
        norm = torch.sqrt(sum((t.grad ** 2).sum() for t in parameters))
        if norm > TRAIN["clip_norm"]:
            for t in parameters:
                t.grad *= TRAIN["clip_norm"] / norm
        optimizer.step()
        losses.append(loss.item())
        norms.append(norm.item())
    return losses, norms


def numbers(tensor):
    # Nine digits pin a float32 down.
    return [float(f"{x:.9g}") for x in torch.as_tensor(tensor).detach().flatten().tolist()]


def main():
    generator = torch.Generator().manual_seed(20240115)
    # Multiples of 1/64 in (-2, 2) are exact in bfloat16, so the same golden values hold for both wire types.
    hidden = torch.randint(-127, 128, (LAYERS + 1, OFFSETS[-1], D), generator=generator) / 64.0
    frozen = {
        "hidden_states": hidden,
        "final_norm": (1 + uniform(generator, (D,), 0.3)).float().double(),
        "lm_head": uniform(generator, (VOCAB, D), 0.5),
    }
    result = {
        "about": "made by tests/oracle/side_network_golden.py, seed 20240115, torch " + torch.__version__,
        "backbone": dict(num_layers=LAYERS, hidden_size=D, intermediate_size=INTERMEDIATE, num_heads=HEADS,
                         num_kv_heads=KV_HEADS, vocab_size=VOCAB, norm_eps=EPS, rope_theta=THETA),
        "side": dict(hidden_size=DS, head_dim=HEAD_DIM, intermediate_size=INNER, reduction=REDUCTION, rank=RANK),
        "labels": LABELS,
        "offsets": OFFSETS,
        "train": TRAIN,
        "frozen": {k: numbers(v) for k, v in frozen.items()},
        "cases": {},
    }
    for name, case in CASES.items():
        config = resolve(case)
        tensors = make_parameters(config, generator)
        if config["task"] == "classification":
            rows = [end - 1 for end in OFFSETS[1:]]
            targets = [2, 0, 1]
        else:
            rows = [1, 2, 3, 6, 8]
            targets = torch.randint(0, VOCAB, (len(rows),), generator=generator).tolist()
        p = {k: t for k, (t, _) in tensors.items()}
        states, losses, log_p = forward(config, p, frozen, rows, targets)
        losses.mean().backward()
        entry = {
            "config": config,
            "rows": rows,
            "targets": targets,
            "parameters": {k: dict(shape=list(t.shape), group=g, value=numbers(t)) for k, (t, g) in tensors.items()},
            "side_states": [numbers(s) for s in states],
            "losses": numbers(losses),
            "predicted": log_p.argmax(-1).tolist(),
            "probabilities": numbers(log_p.exp()) if config["task"] == "classification" else [],
            "gradients": {k: numbers(t.grad if t.grad is not None else torch.zeros_like(t)) for k, t in p.items()},
        }
        entry["train_losses"], entry["train_grad_norms"] = map(numbers, train(config, tensors, frozen, rows, targets))
        result["cases"][name] = entry
    with open(sys.argv[1], "w") as f:
        json.dump(result, f, separators=(",", ":"))
        f.write("\n")


if __name__ == "__main__":
    main()
