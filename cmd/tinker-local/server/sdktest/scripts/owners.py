"""Two owners with keys of their own: what is private to one is not there for the other."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "checks"))
import pytest
import tinker
from clients import MODEL, ints, refused, settled, sync

ann, bob = (tinker.ServiceClient(api_key=key) for key in sys.argv[1:3])
run = ann.create_lora_training_client(MODEL, rank=2)
run_id = sync(run, "get_info").model_id
state, weights = settled(run.save_state("s")).path, settled(run.save_weights_for_sampler("s")).path
theirs: Any = bob.create_rest_client()
for method, *args in (
    ("get_training_run", run_id),
    ("list_checkpoints", run_id),
    ("get_session", run_id.split(":train:")[0]),
    ("get_weights_info_by_tinker_path", state),
    ("delete_checkpoint_from_tinker_path", state),
    ("publish_checkpoint_from_tinker_path", state),
    ("set_checkpoint_ttl_from_tinker_path", state, 60),
):
    with refused("", 404):
        sync(theirs, method, *args)
assert run_id not in {r.training_run_id for r in settled(theirs.list_training_runs()).training_runs}
assert settled(theirs.list_user_checkpoints()).checkpoints == []
with refused("", 404):
    settled(bob.create_training_client_from_state(state))
with refused("", 404):
    settled(settled(bob.create_sampling_client(model_path=weights)).compute_logprobs(ints("a")))
settled(ann.create_rest_client().publish_checkpoint_from_tinker_path(weights))
assert len(settled(settled(bob.create_sampling_client(model_path=weights)).compute_logprobs(ints("abc")))) == 3
with refused("", 404):
    sync(theirs, "delete_checkpoint_from_tinker_path", weights)
with pytest.raises(tinker.AuthenticationError):
    settled(tinker.ServiceClient(api_key="tml-somebody-else-0000000000").create_rest_client().list_training_runs())
borrowed = bob.create_training_client_from_state(state, weights_access_token=sys.argv[1])
assert sync(borrowed, "get_info").lora_rank == 2
print("done")
