#!/usr/bin/env python3
"""Golden values of the side network: states, losses, every gradient and a short training run.

An independent PyTorch module of the equations in worker/side/*.h, in float64 with autograd, on a tiny network of each
kind, for backbones of both families: side_network_golden.json (LLaMA) and opt_side_network_golden.json. Needs torch
(requirements.txt, or Debian's python3-torch); run from the repository root:

    /usr/bin/python3 tests/oracle/side_network_golden.py worker/side/testdata
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

# Of OPT: heads of an odd width, and an embedding narrower than the layers for those that are projected.
OPT_D, OPT_E, OPT_HEAD_DIM = 20, 12, 3
OPT_DS = OPT_HEAD_DIM * HEADS
OPT = dict(family="opt", activation="relu", has_bias=True, is_post_norm=False, has_norm_affine=True,
           has_final_norm=True, embedding_size=OPT_D)
OPT_350M = dict(OPT, is_post_norm=True, has_final_norm=False, embedding_size=OPT_E)
OPT_CASES = {
    "opt_paper_causal_lm": dict(preset="paper", mix_init=0.7, backbone=OPT),
    "opt_reference_causal_lm": dict(preset="reference", backbone=OPT),
    "opt_reference_classification": dict(preset="reference", task="classification", backbone=OPT),
    "opt_bare_classification": dict(preset="paper", task="classification", mix_init=0.6, downsample="lora",
                                    backbone=dict(OPT, activation="gelu", has_bias=False, has_norm_affine=False)),
    "opt_350m_causal_lm": dict(preset="paper", mix_init=0.6, backbone=OPT_350M),
    "opt_350m_reference_causal_lm": dict(preset="reference", backbone=OPT_350M),
    "opt_350m_probe_classification": dict(preset="probe", task="classification", backbone=OPT_350M),
    "opt_projected_causal_lm": dict(preset="paper", mix_init=0.4, downsample="linear",
                                    backbone=dict(OPT, embedding_size=OPT_E)),
}

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
    if "backbone" in case:
        full["frozen_mlp_norm"] = full["mix_weighs_side"] = reference
        if reference and case.get("task") == "classification":
            full["mix_init"] = 0.0
    full.update(case)
    return full


def widths(config):
    """d, e, ds and the prefix of names."""
    if "backbone" in config:
        return OPT_D, config["backbone"]["embedding_size"], OPT_DS, "model.decoder."
    return D, D, DS, "model."


def uniform(generator, shape, bound):
    # Rounded to float32, in which the C++ side holds its parameters.
    return ((torch.rand(shape, generator=generator) * 2 - 1) * bound).float().double()


def make_parameters(config, generator):
    """name -> (tensor, group)."""
    out = {}
    d, e, ds, model = widths(config)
    opt = config.get("backbone")

    def weight(name, rows, cols):
        out[name] = (uniform(generator, (rows, cols), 1.5 / math.sqrt(cols)), "weights")

    def norm(name, size, has_bias=False):
        out[name + ".weight"] = (1 + uniform(generator, (size,), 0.3), "norms_and_biases")
        if has_bias:
            out[name + ".bias"] = (uniform(generator, (size,), 0.3), "norms_and_biases")

    def opt_linear(name, rows, cols):
        weight(name + ".weight", rows, cols)
        if opt["has_bias"]:
            out[name + ".bias"] = (uniform(generator, (rows,), 0.5), "norms_and_biases")

    if config["preset"] != "probe":
        modules = LAYERS if config["share_first_downsample"] else LAYERS + 1
        for i in range(modules):
            prefix = f"{model}downsample.{i}"
            if config["downsample"] in ("adapter", "lora"):
                weight(f"{prefix}.{config['downsample']}_A.weight", RANK, d)
                weight(f"{prefix}.{config['downsample']}_B.weight", ds, RANK)
            elif config["downsample"] == "linear":
                weight(f"{prefix}.weight", ds, d)
            if config["downsample_norm"]:
                norm(f"{prefix}.post_layer_norm", ds, has_bias=True)
        for i in range(LAYERS):
            size = ds if config["gate_per_channel"] else 1
            out[f"{model}z.{i}"] = (config["gate_init"] + uniform(generator, (size,), 0.2), "gates")
            p = f"{model}qst_layers.{i}."
            if opt:
                if opt["has_norm_affine"]:
                    norm(p + "self_attn_layer_norm", ds, has_bias=True)
                for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    opt_linear(p + "self_attn." + name, ds, ds)
                if opt["has_norm_affine"] and not config["frozen_mlp_norm"]:
                    norm(p + "final_layer_norm", ds, has_bias=True)
                opt_linear(p + "fc1", INNER, ds)
                opt_linear(p + "fc2", ds, INNER)
                continue
            norm(p + "input_layernorm", ds)
            weight(p + "self_attn.q_proj.weight", ds, ds)
            weight(p + "self_attn.k_proj.weight", KV_HEADS * HEAD_DIM, ds)
            weight(p + "self_attn.v_proj.weight", KV_HEADS * HEAD_DIM, ds)
            weight(p + "self_attn.o_proj.weight", ds, ds)
            norm(p + "post_attention_layernorm", ds)
            weight(p + "mlp.gate_proj.weight", INNER, ds)
            weight(p + "mlp.up_proj.weight", INNER, ds)
            weight(p + "mlp.down_proj.weight", ds, INNER)
        if opt is None:
            norm("model.norm_qst", ds)
        elif opt["has_final_norm"] and opt["has_norm_affine"]:
            norm("model.decoder.final_layer_norm_qst", ds, has_bias=True)
        weight("upsample.weight", e, ds)
        if config["upsample_bias"]:
            out["upsample.bias"] = (uniform(generator, (e,), 0.5), "norms_and_biases")
        mix = torch.full((e if config["sigmoid_mix"] else 1,), float(config["mix_init"]))
        out["score_z" if config["task"] == "classification" else "lm_head_z"] = (mix.float().double(), "gates")
    if config["task"] == "classification":
        weight("score.weight", len(LABELS), e)
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


def layer_norm(p, name, x):
    """Without an affine part where there are no parameters."""
    return torch.nn.functional.layer_norm(x, (x.shape[-1],), p.get(name + ".weight"), p.get(name + ".bias"), EPS)


def opt_attention(p, prefix, x):
    def linear(name, rows):
        return torch.nn.functional.linear(rows, p[prefix + name + ".weight"], p.get(prefix + name + ".bias"))

    parts = []
    for begin, end in zip(OFFSETS[:-1], OFFSETS[1:]):
        length = end - begin
        q, k, v = (linear(name, x[begin:end]).view(length, HEADS, OPT_HEAD_DIM) for name in ("q_proj", "k_proj", "v_proj"))
        scores = torch.einsum("qhc,khc->hqk", q, k) / math.sqrt(OPT_HEAD_DIM)
        scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf)
        parts.append(torch.einsum("hqk,khc->qhc", scores.softmax(-1), v).reshape(length, OPT_DS))
    return linear("out_proj", torch.cat(parts))


def opt_side_layer(opt, p, prefix, x):
    def mlp(rows):
        inner = torch.nn.functional.linear(rows, p[prefix + "fc1.weight"], p.get(prefix + "fc1.bias"))
        inner = torch.relu(inner) if opt["activation"] == "relu" else torch.nn.functional.gelu(inner)
        return torch.nn.functional.linear(inner, p[prefix + "fc2.weight"], p.get(prefix + "fc2.bias"))

    attention_norm, mlp_norm = prefix + "self_attn_layer_norm", prefix + "final_layer_norm"
    if opt["is_post_norm"]:
        y = layer_norm(p, attention_norm, x + opt_attention(p, prefix + "self_attn.", x))
        return layer_norm(p, mlp_norm, y + mlp(y))
    y = x + opt_attention(p, prefix + "self_attn.", layer_norm(p, attention_norm, x))
    return y + mlp(layer_norm(p, mlp_norm, y))


def downsample(config, p, layer, h):
    ds, model = widths(config)[2:]
    module = (0 if layer == 0 else layer - 1) if config["share_first_downsample"] else layer
    prefix = f"{model}downsample.{module}"
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
        out = torch.nn.functional.layer_norm(out, (ds,), p[prefix + ".post_layer_norm.weight"],
                                             p[prefix + ".post_layer_norm.bias"], 1e-5)
    return out


def backbone_output(config, frozen, h):
    """What the backbone itself gives its head."""
    opt = config.get("backbone")
    if opt is None:
        return rms_norm(h, frozen["final_norm"])
    if opt["has_final_norm"]:
        h = layer_norm({"n.weight": frozen["final_norm"], "n.bias": frozen["final_norm_bias"]}
                       if opt["has_norm_affine"] else {}, "n", h)
    return h if opt["embedding_size"] == OPT_D else h @ frozen["projection"].T


def forward(config, p, frozen, rows, targets):
    """Side states, losses of the rows, class probabilities."""
    h = frozen["hidden_states"]
    opt = config.get("backbone")
    model = widths(config)[3]
    states = []
    out = backbone_output(config, frozen, h[LAYERS])[rows]
    if config["preset"] != "probe":
        g = downsample(config, p, 0, h[0])
        states.append(g)
        for i in range(1, LAYERS + 1):
            beta = torch.sigmoid(p[f"{model}z.{i - 1}"])
            x = (1 - beta) * downsample(config, p, i, h[i]) + beta * g
            prefix = f"{model}qst_layers.{i - 1}."
            g = opt_side_layer(opt, p, prefix, x) if opt else side_layer(p, prefix, x)
            states.append(g)
        if opt is None:
            g = rms_norm(g, p["model.norm_qst.weight"])
        elif opt["has_final_norm"]:
            g = layer_norm(p, "model.decoder.final_layer_norm_qst", g)
        up = g[rows] @ p["upsample.weight"].T
        if config["upsample_bias"]:
            up = up + p["upsample.bias"]
        alpha = p["score_z" if config["task"] == "classification" else "lm_head_z"]
        if config["sigmoid_mix"]:
            alpha = torch.sigmoid(alpha)
        out = alpha * up + (1 - alpha) * out if config.get("mix_weighs_side") else alpha * out + (1 - alpha) * up
    if config["task"] == "classification":
        head = p["score.weight"]
    else:
        head = frozen["lm_head" if opt is None or opt["embedding_size"] == OPT_D else "projected_lm_head"]
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


def make_frozen(d, generator):
    return {
        # Multiples of 1/64 in (-2, 2) are exact in bfloat16, so the same golden values hold for both wire types.
        "hidden_states": torch.randint(-127, 128, (LAYERS + 1, OFFSETS[-1], d), generator=generator) / 64.0,
        "final_norm": (1 + uniform(generator, (d,), 0.3)).float().double(),
        "lm_head": uniform(generator, (VOCAB, d), 0.5),
    }


def make_file(path, cases, backbone, side, frozen, generator):
    result = {
        "about": "made by tests/oracle/side_network_golden.py, seed 20240115, torch " + torch.__version__,
        "backbone": dict(num_layers=LAYERS, intermediate_size=INTERMEDIATE, num_heads=HEADS, vocab_size=VOCAB,
                         norm_eps=EPS, **backbone),
        "side": dict(intermediate_size=INNER, reduction=REDUCTION, rank=RANK, **side),
        "labels": LABELS,
        "offsets": OFFSETS,
        "train": TRAIN,
        "frozen": {k: numbers(v) for k, v in frozen.items()},
        "cases": {},
    }
    for name, case in cases.items():
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
    with open(path, "w") as f:
        json.dump(result, f, separators=(",", ":"))
        f.write("\n")


def main():
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(20240115)
    make_file(sys.argv[1] + "/side_network_golden.json", CASES,
              dict(hidden_size=D, num_kv_heads=KV_HEADS, rope_theta=THETA), dict(hidden_size=DS, head_dim=HEAD_DIM),
              make_frozen(D, generator), generator)
    generator = torch.Generator().manual_seed(20240115)
    frozen = make_frozen(OPT_D, generator)
    frozen["final_norm_bias"] = uniform(generator, (OPT_D,), 0.3)
    frozen["projection"] = uniform(generator, (OPT_E, OPT_D), 0.5)
    frozen["projected_lm_head"] = uniform(generator, (VOCAB, OPT_E), 0.5)
    make_file(sys.argv[1] + "/opt_side_network_golden.json", OPT_CASES, dict(hidden_size=OPT_D, num_kv_heads=HEADS),
              dict(hidden_size=OPT_DS, head_dim=OPT_HEAD_DIM), frozen, generator)


if __name__ == "__main__":
    main()
