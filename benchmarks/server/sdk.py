"""64 tasks of one official client that ask the server at TINKER_BASE_URL: sdk.py train|sample SECONDS. One line of JSON."""

import asyncio
import json
import logging
import resource
import sys
import time

import tinker
from tinker import types

CLIENTS = 64
MODEL = "bench/least"
IDS = [i * 7 % 64 for i in range(16)]


def processor():
    r = resource.getrusage(resource.RUSAGE_SELF)
    return r.ru_utime + r.ru_stime


async def training(service, i):
    client = await service.create_lora_training_client_async(base_model=MODEL, rank=1, seed=i, train_mlp=False, train_unembed=False)
    datum = types.Datum(model_input=types.ModelInput.from_ints(IDS), loss_fn_inputs={"target_tokens": IDS, "weights": [1.0] * len(IDS)})

    async def once():
        await (await client.forward_backward_async([datum], "cross_entropy"))

    return once


async def sampling(service):
    client = await service.create_sampling_client_async(base_model=MODEL)
    prompt, params = types.ModelInput.from_ints(IDS), types.SamplingParams(max_tokens=1)

    async def once():
        await client.sample_async(prompt=prompt, num_samples=1, sampling_params=params)

    return once


async def main(kind, seconds):
    logging.disable(logging.WARNING)
    service = tinker.ServiceClient()
    if kind == "train":
        doing = [await training(service, i) for i in range(CLIENTS)]
    else:
        doing = [await sampling(service)] * CLIENTS
    took = []

    async def repeat(once, end, keep):
        while time.perf_counter() < end:
            begin = time.perf_counter()
            await once()
            if keep:
                took.append(time.perf_counter() - begin)

    async def run(duration, keep):
        end = time.perf_counter() + duration
        await asyncio.gather(*(repeat(once, end, keep) for once in doing))

    await run(seconds / 4, False)
    before, begin = processor(), time.perf_counter()
    await run(seconds, True)
    print(json.dumps({"seconds": time.perf_counter() - begin, "processor": processor() - before, "took": took}), flush=True)


asyncio.run(main(sys.argv[1], float(sys.argv[2])))
