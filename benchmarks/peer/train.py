"""LoRA training speed of transformers + peft: forward, backward and AdamW, tokens per second.

The presets are the goals that our own trainer is measured against:
  G1  8B dense, sequences of 4096, 8192 tokens a step         G2  0.6B and 4B (--shape), the same
  G3  0.6B, one sequence of 512 tokens: the latency of a step  G4  mixture of experts, 8 layers of 30B-A3B

Each --form is measured in turn: eager (SDPA attention) and torch.compile. The best one is the peer.
"""

import argparse

import torch
from peft import LoraConfig, get_peft_model

import measure
import shapes

GOALS = {
    "G1": {"shape": "llama-8b", "sequence": 4096, "tokens": 8192},
    "G2": {"shape": "qwen3-0.6b", "sequence": 4096, "tokens": 8192},
    "G3": {"shape": "qwen3-0.6b", "sequence": 512, "tokens": 512},
    "G4": {"shape": "qwen3-30b-a3b-8-layers", "sequence": 4096, "tokens": 8192},
}
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def parse():
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--goal", choices=GOALS, default="G3")
    flags.add_argument("--shape", choices=shapes.SHAPES, help="instead of the goal's")
    flags.add_argument("--sequence", type=int, help="tokens of a sequence, instead of the goal's")
    flags.add_argument("--tokens", type=int, help="tokens of a step, instead of the goal's")
    flags.add_argument("--rank", type=int, default=32)
    flags.add_argument("--form", action="append", choices=["eager", "compile", "compile-graphs"],
                       help="may be repeated; eager and compile when not given")
    flags.add_argument("--no-unembed", action="store_true", help="no adapter on the unembedding")
    flags.add_argument("--expert-lora", action="store_true", help="adapters on the experts as well")
    flags.add_argument("--float32-adapters", action="store_true",
                       help="peft's default; bfloat16 adapters are faster and are used when not given")
    flags.add_argument("--recompute", action="store_true", help="gradient checkpointing from the start")
    flags.add_argument("--warmup", type=int, default=5)
    flags.add_argument("--steps", type=int, default=20)
    measure.add_flags(flags)
    args = flags.parse_args()
    for name, value in GOALS[args.goal].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.tiny:
        args.sequence, args.tokens = min(args.sequence, 64), min(args.tokens, 128)
    args.form = args.form or ["eager", "compile"]
    measure.refuse_without_device(args)
    return args


def adapt(model, args):
    """The model with adapters where ours has them."""
    sparse = "a3b" in args.shape
    targets = LINEARS[:4] if sparse else list(LINEARS)
    if not args.no_unembed:
        targets.append("lm_head")
    config = LoraConfig(
        r=args.rank, lora_alpha=32, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM", target_modules=targets,
        target_parameters=EXPERTS if sparse and args.expert_lora else None)
    return get_peft_model(model, config, autocast_adapter_dtype=args.float32_adapters)


def trainer(args, form, recompute):
    """A closure that does one step, and the facts about what it trains."""
    model, config = shapes.build(args.shape, args.device, args.tiny)
    model = adapt(model, args).train()
    if recompute:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.config.use_cache = False
    trained = [p for p in model.parameters() if p.requires_grad]
    fused = torch.device(args.device).type == "cuda"
    optimizer = torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.95), eps=1e-12, weight_decay=0.0, fused=fused)
    torch.manual_seed(2)
    ids = torch.randint(0, config.vocab_size, (max(1, args.tokens // args.sequence), args.sequence), device=args.device)
    forward = model
    if form != "eager":
        mode = "reduce-overhead" if form == "compile-graphs" else "default"
        forward = torch.compile(model, mode=mode, dynamic=False)
    losses = []

    def step():
        loss = forward(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach().clone())

    count = sum(p.numel() for p in trained)
    return step, {"config": config, "lora_parameters": count, "tokens": ids.numel(), "losses": losses}


def one_form(args, form, recompute, budget, ceiling):
    if torch.device(args.device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(args.device)
    torch._dynamo.reset()
    step, facts = trainer(args, form, recompute)
    first = measure.wall(args.device, step)  # compiling happens here
    times = measure.repeat(args.device, step, args.warmup, args.steps, budget)
    row = {"form": form, "recompute": recompute, "first_step_s": first, **measure.summary(times)}
    flops = shapes.train_flops_per_token(facts["config"], args.sequence, facts["lora_parameters"])
    row["tokens_per_s"] = facts["tokens"] / row["median_s"]
    row["lora_parameters"] = facts["lora_parameters"]
    row["gflop_per_token"] = flops / 1e9
    row["share_of_gemm"] = row["tokens_per_s"] * flops / 1e12 / ceiling["gemm_tflops"]
    row["peak_memory_gib"] = measure.peak_gib(args.device)
    row["first_losses"] = [round(float(x), 4) for x in facts["losses"][:3]]
    return row


def main():
    args = parse()
    budget = measure.Budget(args.seconds)
    result = {**measure.head(args), "goal": args.goal, "shape": args.shape, "sequence": args.sequence,
              "tokens": args.tokens, "rank": args.rank, "unembed": not args.no_unembed,
              "expert_lora": args.expert_lora, "float32_adapters": args.float32_adapters, "results": []}
    with measure.reporting(args, result):
        result["ceilings"] = ceiling = measure.ceilings(args.device, args.tiny)
        for form in args.form:
            try:
                row = one_form(args, form, args.recompute, budget, ceiling)
            except torch.OutOfMemoryError:
                if args.recompute:
                    raise
                row = None
            if row is None:  # outside the except clause: its traceback holds the failed step's tensors
                measure.release(args.device)
                row = one_form(args, form, True, budget, ceiling)
            result["results"].append(row)
            measure.release(args.device)
        result["best"] = max(result["results"], key=lambda r: r["tokens_per_s"])["form"]


if __name__ == "__main__":
    main()
