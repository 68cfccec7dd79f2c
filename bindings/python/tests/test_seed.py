"""What the SDK's documentation shows, with only the import line changed (and the model, a name and the loop's length that it leaves open)."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

import tinker_local as tinker
from tinker_local import types


@pytest.fixture
def base_model() -> str:
    return "tinker-local/tiny"


def process(example: dict[str, str], tokenizer: object) -> types.Datum:
    prompt = f"English: {example['input']}\nPig Latin:"
    prompt_tokens = tokenizer.encode(prompt, add_special_tokens=True)
    prompt_weights = [0] * len(prompt_tokens)
    completion_tokens = tokenizer.encode(f" {example['output']}\n\n", add_special_tokens=False)
    completion_weights = [1] * len(completion_tokens)
    tokens = prompt_tokens + completion_tokens
    weights = prompt_weights + completion_weights
    input_tokens = tokens[:-1]
    target_tokens = tokens[1:]
    weights = weights[1:]
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens=input_tokens),
        loss_fn_inputs=dict(weights=weights, target_tokens=target_tokens),
    )


EXAMPLES = [
    {"input": "banana split", "output": "anana-bay plit-say"},
    {"input": "quantum physics", "output": "uantum-qay ysics-phay"},
    {"input": "coding wizard", "output": "oding-cay izard-way"},
]


def test_train_and_sample(base_model: str, capsys: pytest.CaptureFixture[str]) -> None:
    service_client = tinker.ServiceClient()
    assert [m.model_name for m in service_client.get_server_capabilities().supported_models] == [base_model]
    training_client = service_client.create_lora_training_client(base_model=base_model)
    tokenizer = training_client.get_tokenizer()
    processed_examples = [process(ex, tokenizer) for ex in EXAMPLES]

    datum0 = processed_examples[0]
    for inp, tgt, wgt in zip(
        datum0.model_input.to_ints(), datum0.loss_fn_inputs["target_tokens"].tolist(), datum0.loss_fn_inputs["weights"].tolist()
    ):
        print(f"{repr(tokenizer.decode([inp])):<20} {repr(tokenizer.decode([tgt])):<20} {wgt:<10}")
    assert len(capsys.readouterr().out.splitlines()) == datum0.model_input.length

    losses = []
    for _ in range(6):
        fwdbwd_future = training_client.forward_backward(processed_examples, "cross_entropy")
        optim_future = training_client.optim_step(types.AdamParams(learning_rate=1e-3))
        fwdbwd_result = fwdbwd_future.result()
        optim_result = optim_future.result()
        assert optim_result.metrics["grad_norm"] > 0
        logprobs = np.concatenate([output["logprobs"].tolist() for output in fwdbwd_result.loss_fn_outputs])
        weights = np.concatenate([example.loss_fn_inputs["weights"].tolist() for example in processed_examples])
        losses.append(-np.dot(logprobs, weights) / weights.sum())
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0] / 2

    sampling_client = training_client.save_weights_and_get_sampling_client(name="pig-latin-model")
    prompt = types.ModelInput.from_ints(tokenizer.encode("English: coffee break\nPig Latin:"))
    params = types.SamplingParams(max_tokens=20, temperature=0.0, stop=["\n"])
    future = sampling_client.sample(prompt=prompt, sampling_params=params, num_samples=8)
    result = future.result()
    texts = [tokenizer.decode(seq.tokens) for seq in result.sequences]
    assert len(texts) == 8 and len(set(texts)) == 1 and all(0 < len(seq.tokens) <= 20 for seq in result.sequences)


def test_logprobs_of_a_prompt(base_model: str) -> None:
    sampling_client = tinker.ServiceClient().create_sampling_client(base_model=base_model)
    tokenizer = sampling_client.get_tokenizer()
    prompt = types.ModelInput.from_ints(tokenizer.encode("How many r's are in the word strawberry?"))
    sample_response = sampling_client.sample(
        prompt=prompt,
        num_samples=1,
        sampling_params=tinker.SamplingParams(max_tokens=1),
        include_prompt_logprobs=True,
        topk_prompt_logprobs=5,
    ).result()
    computed = sampling_client.compute_logprobs(prompt).result()
    assert sample_response.prompt_logprobs == computed
    assert computed[0] is None and len(computed) == prompt.length and all(v < 0 for v in computed[1:])
    assert sample_response.topk_prompt_logprobs[0] is None
    assert all(len(row) == 5 and row[0][1] == max(lp for _, lp in row) for row in sample_response.topk_prompt_logprobs[1:])


def test_losses(base_model: str) -> None:
    training_client = tinker.ServiceClient().create_lora_training_client(base_model=base_model, rank=8)
    ids = list(b"a policy")
    for loss in ("importance_sampling", "ppo", "cispo"):
        datum = tinker.Datum(
            model_input=tinker.ModelInput.from_ints(ids[:-1]),
            loss_fn_inputs={
                "target_tokens": ids[1:],
                "logprobs": np.full(len(ids) - 1, -2.0),
                "advantages": tinker.TensorData.from_numpy(np.ones(len(ids) - 1, np.float32)),
            },
        )
        result = training_client.forward_backward([datum], loss).result()
        assert np.isfinite(result.metrics["loss:sum"]) and len(result.loss_fn_outputs[0]["logprobs"].data) == len(ids) - 1


def test_flexible_loss(base_model: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: its loss functions are not tried")
    training_client = tinker.ServiceClient().create_lora_training_client(base_model=base_model, rank=8)
    data = [types.Datum(types.ModelInput.from_ints([1, 2, 3]), {"target_tokens": [2, 3, 4]}) for _ in range(2)]

    def variance_loss(data: list[types.Datum], logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        flat_logprobs = torch.cat(logprobs)
        variance = torch.var(flat_logprobs)
        return variance, {"variance_loss": variance.item()}

    result = training_client.forward_backward_custom(data, variance_loss).result()
    assert result.metrics["variance_loss"] > 0


def test_saving_loading_and_downloading(base_model: str, tmp_path: Path) -> None:
    import tarfile
    import urllib.request

    sc = tinker.ServiceClient(state=str(tmp_path / "state"))
    training_client = sc.create_lora_training_client(base_model=base_model, rank=4)
    save_path = training_client.save_weights_for_sampler(name="0000").result().path
    sampling_client = sc.create_sampling_client(model_path=save_path)
    assert sampling_client.get_base_model() == base_model
    resume_path = training_client.save_state(name="0010").result().path
    training_client.load_state(resume_path).result()
    again = sc.create_training_client_from_state(resume_path)
    assert again.get_info().lora_rank == 4

    rc = sc.create_rest_client()
    future = rc.get_checkpoint_archive_url_from_tinker_path(save_path)
    checkpoint_archive_url_response = future.result()
    urllib.request.urlretrieve(checkpoint_archive_url_response.url, tmp_path / "archive.tar")
    with tarfile.open(tmp_path / "archive.tar", "r") as archive:
        assert {"adapter_config.json", "adapter_model.safetensors"} <= set(archive.getnames())

    rc.publish_checkpoint_from_tinker_path(resume_path).result()
    info = [c for c in rc.list_checkpoints(training_client.model_id).result().checkpoints if c.tinker_path == resume_path]
    assert info[0].public
    rc.unpublish_checkpoint_from_tinker_path(resume_path).result()


def test_async(base_model: str) -> None:
    async def main() -> None:
        service_client = tinker.ServiceClient()
        client = await service_client.create_lora_training_client_async(base_model=base_model, rank=4)
        batch = [types.Datum(types.ModelInput.from_ints([1, 2, 3]), {"target_tokens": [2, 3, 4], "weights": [1.0, 1.0, 1.0]})]
        fwd_bwd_future = await client.forward_backward_async(batch, "cross_entropy")
        optim_future = await client.optim_step_async(types.AdamParams(learning_rate=1e-3))
        fwd_bwd_result = await fwd_bwd_future
        await optim_future
        again = await (await client.forward_async(batch, "cross_entropy"))
        assert again.metrics["loss:sum"] < fwd_bwd_result.metrics["loss:sum"]

    asyncio.run(main())
