"""The cases, in the order in which they run. What is checked beyond an exit code stands beside the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from run import Stage

QWEN, INSTRUCT, BASE = "Qwen/Qwen3-8B", "Qwen/Qwen3-4B-Instruct-2507", "Qwen/Qwen3-8B-Base"
LLAMA, LLAMA_BASE, EXPERTS = "meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.2-1B", "Qwen/Qwen3-30B-A3B"
QUIET = ("behavior_if_log_dir_exists=delete",)


class Failed(Exception):
    """A case did not do what it should; the message says what."""


@dataclass
class Case:
    id: str
    what: str
    play: Callable[[Stage], str | None]  # may give a few words for the table
    skip: str = ""  # why it cannot be run


def log(s: Stage, name: str) -> str:
    return f"log_path={s.out / name}"


def metrics(s: Stage, name: str, key: str) -> list[float]:
    """The values of a metric that a recipe has logged, step by step."""
    lines = (s.out / name / "metrics.jsonl").read_text().splitlines()
    return [m[key] for m in map(json.loads, lines) if key in m]


def falls(values: list[float]) -> str:
    assert len(values) > 1 and values[-1] < values[0], f"wanted values that fall, got {values}"
    return f"{values[0]:.3g} → {values[-1]:.3g}"


def checkpoints(s: Stage, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (s.out / name / "checkpoints.jsonl").read_text().splitlines()]


def sdk_own_tests(s: Stage) -> str:
    found = s.run(s.python, "-c", "import tinker, pathlib; print(pathlib.Path(tinker.__file__).parent / 'lib')").split()[-1]
    said = s.run(s.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "python_files=*_test.py", "-o", "asyncio_mode=auto", "--rootdir", found, found)
    return said.strip().splitlines()[-1]


def custom_losses(s: Stage) -> str:
    checks = s.root / "cmd/tinker-local/server/sdktest/checks"
    said = s.run(s.python, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore", "--rootdir", checks, checks / "test_custom_losses.py")
    assert "skipped" not in said, "torch is here: nothing is to be skipped"
    return said.strip().splitlines()[-1]


def sl_loop(s: Stage) -> str:
    def run(steps: int) -> None:
        s.recipe(
            "recipes.sl_loop", f"base_url={s.url}", f"model_name={QWEN}", "batch_size=16", "max_length=256", f"max_steps={steps}", "save_every=2",
            "learning_rate=1e-3", log(s, "sl_loop"),
        )  # fmt: skip

    run(6)
    file = s.out / "sl_loop" / "checkpoints.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:-1]))  # the last says that the run is over
    run(8)
    steps = metrics(s, "sl_loop", "step")
    assert steps == [0, 1, 2, 3, 4, 5, 4, 5, 6, 7], steps
    nll = metrics(s, "sl_loop", "train_mean_nll")
    assert nll[4] == nll[6] and nll[5] == nll[7], f"resumed steps repeat those that were lost, got {nll}"
    return "NLL " + falls(nll) + ", resumed with the same values"


def rl_loop(s: Stage) -> None:
    s.recipe(
        "recipes.rl_loop", f"base_url={s.url}", f"model_name={QWEN}", "batch_size=4", "group_size=4", "max_tokens=16", "max_steps=2",
        "loss_fn=importance_sampling", log(s, "rl_loop"),
    )  # fmt: skip


def stable_reinforce(s: Stage) -> None:
    s.recipe(
        "recipes.rl_loop", f"base_url={s.url}", f"model_name={QWEN}", "batch_size=4", "group_size=4", "max_tokens=16", "max_steps=2", log(s, "stable"),
        fails="record_stability_info is not supported",
    )  # fmt: skip


def math_rl(name: str, *args: str, model: str = QWEN) -> Callable[[Stage], None]:
    def play(s: Stage) -> None:
        s.recipe("recipes.math_rl.train", f"base_url={s.url}", f"model_name={model}", "group_size=4", log(s, name), *QUIET, *args)
        steps, wanted = len(metrics(s, name, "optim/lr")), next(int(a.split("=")[1]) for a in args if a.startswith("max_steps="))
        assert steps == wanted, f"{steps} steps were logged, wanted {wanted}"

    return play


def on_policy(s: Stage) -> str:
    """What is drawn and trained on is of one numeric path: the two log-probabilities of a token are the same."""
    math_rl("on_policy", "env=arithmetic", "groups_per_batch=16", "max_steps=2", "loss_fn=importance_sampling", "eval_every=0", "compute_post_kl=true")(s)
    kl = [abs(v) for v in metrics(s, "on_policy", "optim/kl_sample_train_v1")]
    assert kl and max(kl) < 1e-6, kl
    return f"KL between sampler and trainer {max(kl):.1g}"


def chat_sl(s: Stage) -> str:
    """With evaluations by forward(), periodic checkpoints, and rolling ones that are deleted again."""
    s.recipe(
        "recipes.chat_sl.train", f"base_url={s.url}", f"model_name={QWEN}", "dataset=no_robots", "batch_size=32", "max_length=256", "max_steps=6",
        "eval_every=2", "save_every=4", "rolling_save_every=1", "learning_rate=1e-3", log(s, "chat_sl"), *QUIET,
    )  # fmt: skip
    listed = s.run(s.python, "-P", "-m", "tinker.cli", "-f", "json", "checkpoint", "list", "--limit", "0")
    saved = checkpoints(s, "chat_sl")
    run, names = saved[-1]["state_path"].split("/")[2], {c["name"] for c in saved}
    left = {c["tinker_path"] for c in json.loads(listed)["checkpoints"] if f"/{run}/" in c["tinker_path"]}
    kept = {c[k] for c in saved if c["name"] in ("000004", "final") for k in ("state_path", "sampler_path")}
    assert len(names) > 2 and left == kept, f"left are {left}, wanted {kept}; {names} were saved"
    return "test NLL " + falls(metrics(s, "chat_sl", "test/nll"))


def short_chat_sl(name: str, model: str) -> Callable[[Stage], str]:
    def play(s: Stage) -> str:
        s.recipe(
            "recipes.chat_sl.train", f"base_url={s.url}", f"model_name={model}", "batch_size=32", "max_length=256", "max_steps=4", "learning_rate=1e-3",
            log(s, name), *QUIET,
        )  # fmt: skip
        return "NLL " + falls(metrics(s, name, "train_mean_nll"))

    return play


def dpo(s: Stage) -> str:
    s.recipe(
        "recipes.preference.dpo.train", f"base_url={s.url}", f"model_name={QWEN}", "dataset=hhh", "batch_size=16", "max_length=512", "max_steps=4",
        "learning_rate=1e-3", log(s, "dpo"), *QUIET,
    )  # fmt: skip
    loss = metrics(s, "dpo", "dpo_loss")
    assert abs(loss[0] - 0.693147) < 1e-5, f"the first loss is {loss[0]}, wanted ln 2: policy and reference are the same"
    return "loss " + falls(loss)


def distillation(s: Stage) -> None:
    s.recipe(
        "recipes.distillation.on_policy_distillation", f"base_url={s.url}", f"model_name={BASE}", f"teacher_model={QWEN}", "dataset=deepmath",
        "groups_per_batch=4", "group_size=2", "max_tokens=16", "max_steps=2", "lora_rank=8", "eval_every=0", log(s, "distillation"), *QUIET,
    )  # fmt: skip


def off_policy(s: Stage) -> None:
    s.recipe(
        "recipes.distillation.off_policy_reasoning", f"base_url={s.url}", f"model_name={QWEN}", "renderer_name=qwen3", "batch_size=8", "buffer_size=16",
        "max_prompts=32", "lora_rank=8", "max_length=512", "max_steps=2", log(s, "off_policy"),
    )  # fmt: skip


def sdft(name: str, *args: str) -> Callable[[Stage], None]:
    """Targets of shape (N, K), made of a teacher's most probable tokens."""

    def play(s: Stage) -> None:
        s.recipe(
            "recipes.sdft.train", f"base_url={s.url}", f"model_name={QWEN}", "groups_per_batch=4", "max_tokens=16", "topk=5", "lora_rank=8", "max_steps=2",
            "eval_every=0", log(s, name), *args,
        )  # fmt: skip

    return play


def multi_turn(s: Stage) -> None:
    s.recipe(
        "recipes.multiplayer_rl.guess_number.train", f"model_name={QWEN}", "renderer_name=qwen3", "group_size=2", "batch_size=2", "max_tokens=8",
        "max_steps=1", "eval_every=0", log(s, "guess"),
    )  # fmt: skip


def pairwise(s: Stage) -> None:
    s.recipe(
        "recipes.preference.shorter.train", f"model_name={QWEN}", "renderer_name=qwen3", "group_size=4", "batch_size=2", "max_tokens=8", "max_steps=1",
        "eval_every=0", log(s, "shorter"),
    )  # fmt: skip


def rlhf(s: Stage) -> None:
    s.recipe(
        "recipes.preference.rlhf.rlhf_pipeline", f"base_model={BASE}", "short_name=tiny", "batch_size=16", "max_length=512", "rl_max_tokens=8",
        "rl_group_size=2", "max_steps=1", "lora_rank=8",
    )  # fmt: skip


def prompt_distillation(s: Stage) -> None:
    s.recipe(
        "recipes.prompt_distillation.train", f"base_url={s.url}", f"model_name={QWEN}", "file_path=HuggingFaceH4/no_robots/train.jsonl", "batch_size=16",
        "max_length=512", "max_steps=2", "eval_every=1", log(s, "prompt"),
    )  # fmt: skip


def copy_checkpoint(s: Stage) -> None:
    source = checkpoints(s, "sl_loop")[-1]["state_path"]
    said = s.recipe("scripts.copy_checkpoint", "--source-path", source)
    assert "/sampler_weights/" in said and source.split("/")[2] not in said.split("sampler_path:")[-1], said


def command_line(s: Stage) -> None:
    tinker = (s.python, "-P", "-m", "tinker.cli")
    s.run(*tinker, "version")
    for group in ("run", "checkpoint"):
        json.loads(s.run(*tinker, "-f", "json", group, "list"))
        s.run(*tinker, group, "list")
    path = checkpoints(s, "sl_loop")[-1]["state_path"]
    s.run(*tinker, "checkpoint", "download", path, "-o", s.out / "downloaded")
    (folder,) = (s.out / "downloaded").iterdir()
    assert (folder / "adapter_model.safetensors").stat().st_size > 1000


def numerics(s: Stage) -> None:
    s.run("go", "test", "-C", s.root, "-count=1", "-run", "Golden", "./engine/model", "./engine/local", "./plugins/losses", home=Path.home())


CASES = [
    Case("P1", "the SDK's own tests, as far as its wheel has them", sdk_own_tests),
    Case("P2", "the cookbook's unit tests", lambda s: None, skip="the wheel of tinker-cookbook 0.6.1 has none"),
    Case("P3", "tour: capabilities, tokenizer, sampling, a step, every loss", lambda s: s.script("tour", QWEN) and None),
    Case("P3-custom", "forward_backward_custom and create_custom_loss, with torch", custom_losses),
    Case("P4", "sl_loop, and resumed", sl_loop),
    Case("P5", "rl_loop", rl_loop),
    Case("P5-default", "rl_loop with its default loss, which is not served, is refused by name", stable_reinforce),
    Case("P5-math", "math_rl arithmetic, on policy", on_policy),
    Case("P6-ppo", "math_rl with ppo, clip thresholds, substeps", math_rl(
        "ppo", "env=arithmetic", "groups_per_batch=8", "max_steps=2", "loss_fn=ppo", 'loss_fn_config={"clip_low_threshold":0.9,"clip_high_threshold":1.1}',
        "num_substeps=2", "eval_every=0", model=INSTRUCT)),
    Case("P6-async", "math_rl with cispo, off policy", math_rl(
        "async", "env=arithmetic", "groups_per_batch=8", "max_steps=3", "loss_fn=cispo", "max_steps_off_policy=2", "eval_every=0")),
    Case("P6-gsm8k", "math_rl on gsm8k with evaluation, stop strings", math_rl(
        "gsm8k", "env=gsm8k", "groups_per_batch=4", "max_steps=1", "max_tokens=8", "loss_fn=importance_sampling", "eval_every=1", model=BASE)),
    Case("P6-chat", "chat_sl with rolling checkpoints", chat_sl),
    Case("P6-llama", "chat_sl, Llama 3", short_chat_sl("llama", LLAMA)),
    Case("P6-base", "chat_sl, a base model", short_chat_sl("llama_base", LLAMA_BASE)),
    Case("P6-experts", "chat_sl, a mixture of experts", short_chat_sl("experts", EXPERTS)),
    Case("P6-dpo", "preference.dpo", dpo),
    Case("P6-shorter", "preference.shorter", pairwise),
    Case("P6-rlhf", "preference.rlhf, three stages", rlhf),
    Case("P6-distill", "on-policy distillation", distillation),
    Case("P6-off", "off-policy distillation, streamed data", off_policy),
    Case("P6-sdft", "self-distillation from a teacher's top tokens", sdft("sdft")),
    Case("P6-sdft-r", "the same with reverse KL, a custom loss", sdft("sdft_reverse", "reverse=true", "teacher_sync_every=1")),
    Case("P6-turns", "multiplayer_rl.guess_number", multi_turn),
    Case("P6-prompt", "prompt distillation, training", prompt_distillation),
    Case("P6-copy", "scripts.copy_checkpoint", copy_checkpoint),
    Case("P7", "log-probabilities of sampler and trainer", lambda s: s.script("agreement", QWEN, LLAMA, EXPERTS) and None),
    Case("P8", "log-probabilities and temperature", lambda s: s.script("temperature", QWEN) and None),
    Case("P9", "what tests of other servers ask", lambda s: s.script("interface", QWEN) and None),
    Case("P10", "command line", command_line),
    Case("P11", "export: download, PEFT adapter, merged model", lambda s: s.script("export", QWEN) and None),
    Case("P11-llama", "the same, Llama 3", lambda s: s.script("export", LLAMA) and None),
    Case("P11-experts", "the same, a mixture of experts", lambda s: s.script("export", EXPERTS) and None),
    Case("P12", "numerics against stored values of torch", numerics),
]  # fmt: skip
