"""G8: decoding one sequence with transformers: greedy, 128 tokens in, 512 out, tokens per second.

Forms: dynamic (generate as it is), static (static cache, which makes generate compile its step).
A run of one new token is measured as well and taken off, so that the rate is that of decoding alone.
"""

import argparse

import torch

import measure
import shapes


def parse():
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--shape", choices=shapes.SHAPES, default="qwen3-0.6b")
    flags.add_argument("--form", action="append", choices=["dynamic", "static"], help="may be repeated; both when not given")
    flags.add_argument("--prompt", type=int, default=128, help="tokens in")
    flags.add_argument("--new", type=int, default=512, help="tokens out")
    flags.add_argument("--warmup", type=int, default=2)
    flags.add_argument("--runs", type=int, default=7)
    measure.add_flags(flags)
    args = flags.parse_args()
    if args.tiny:
        args.prompt, args.new = min(args.prompt, 16), min(args.new, 16)
    args.form = args.form or ["dynamic", "static"]
    measure.refuse_without_device(args)
    return args


def bytes_per_step(model):
    """Weights that one step must read: all but the embedding's rows, of which it reads one. A tied head
    is the embedding, and is read."""
    total = sum(p.numel() * p.element_size() for p in model.parameters())
    if not model.config.tie_word_embeddings:
        embedding = model.get_input_embeddings().weight
        total -= embedding.numel() * embedding.element_size()
    return total


def one_form(args, form, model, ids, budget):
    torch._dynamo.reset()

    def generate(count):
        extra = {"cache_implementation": "static"} if form == "static" else {}
        with torch.inference_mode():
            out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count,
                                 min_new_tokens=count, eos_token_id=None, pad_token_id=0, **extra)
        if out.shape[1] != ids.shape[1] + count:
            raise RuntimeError(f"{form}: {out.shape[1] - ids.shape[1]} new tokens, want {count}")

    first = measure.wall(args.device, lambda: generate(args.new))  # compiling happens here
    whole = measure.repeat(args.device, lambda: generate(args.new), args.warmup, args.runs, budget)
    prefill = measure.repeat(args.device, lambda: generate(1), 1, args.runs, budget)
    row = {"form": form, "first_run_s": first, **measure.summary(whole), "prefill": measure.summary(prefill)}
    row["tokens_per_s"] = args.new / row["median_s"]
    decoding = row["median_s"] - row["prefill"]["median_s"]
    row["decode_tokens_per_s"] = (args.new - 1) / decoding if decoding > 0 else None
    return row


def main():
    args = parse()
    budget = measure.Budget(args.seconds)
    result = {**measure.head(args), "goal": "G8", "shape": args.shape, "prompt": args.prompt, "new": args.new, "results": []}
    with measure.reporting(args, result):
        result["ceilings"] = ceiling = measure.ceilings(args.device, args.tiny)
        model, config = shapes.build(args.shape, args.device, args.tiny)
        model.eval()
        model.generation_config.eos_token_id = None
        torch.manual_seed(2)
        ids = torch.randint(0, config.vocab_size, (1, args.prompt), device=args.device)
        result["weight_bytes_per_step"] = bytes_per_step(model)
        result["limit_tokens_per_s"] = ceiling["copy_tb_per_s"] * 1e12 / result["weight_bytes_per_step"]
        for form in args.form:
            row = one_form(args, form, model, ids, budget)
            row["share_of_limit"] = (row["decode_tokens_per_s"] or 0) / result["limit_tokens_per_s"]
            result["results"].append(row)
        result["best"] = max(result["results"], key=lambda r: r["tokens_per_s"])["form"]


if __name__ == "__main__":
    main()
