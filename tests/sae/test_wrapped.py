"""An SAE that is trained in DDP or FSDP, copied, pickled and saved: the same one, with the same gradients."""

from __future__ import annotations

import copy
import io
import json
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import ranks
import saekernels as sk
from places import SCRIPTS


def test_wrappers_train_what_one_process_trains() -> None:
    found = json.loads(ranks.check(2, str(SCRIPTS / "sae_wrapped_script.py")).splitlines()[-1])
    assert len(found) == 6
    for name, (apart, moved) in found.items():
        assert apart < 1e-6 < 1e-3 < moved, name


def test_data_parallel_without_a_gpu_is_the_module() -> None:
    sae, x = sk.SAE(8, 32, sk.TopK(4)), torch.randn(5, 8)
    assert torch.equal(nn.DataParallel(sae)(x), sae(x))


def subjects() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    sae = sk.SAE(8, 32, sk.TopK(4), skip=True)
    return {
        "SAE": sae,
        "EditedSAE": sk.EditedSAE(sae, [sk.Edit(3, "set", (2.0,))]),
        "CrossLayerTranscoder": sk.CrossLayerTranscoder(8, 32, 2, sk.TopK(4)),
    }


def outputs(module: nn.Module, x: torch.Tensor) -> Any:
    return module(x) if not isinstance(module, sk.CrossLayerTranscoder) else tuple(module.parameters())


@pytest.mark.parametrize("name", subjects())
def test_copies_pickles_and_files(name: str) -> None:
    module, x = subjects()[name], torch.randn(5, 8)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    other = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(torch.load(file, weights_only=True))
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), other):
        torch.testing.assert_close(outputs(twin, x), outputs(module, x), rtol=0, atol=0)
        assert {one.data_ptr() for one in twin.parameters()}.isdisjoint(one.data_ptr() for one in module.parameters())
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    with pytest.raises(pickle.UnpicklingError, match="saekernels"):
        torch.load(file, weights_only=True)


def test_a_copy_of_a_spliced_model_is_spliced_and_forgets_nothing_of_the_first() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    x = torch.randn(3, 8)
    with torch.no_grad():
        clean = model(x)
        with sk.splice(model, {"0": None}, replace="zero"):
            twin, spliced = copy.deepcopy(model), model(x)
        assert torch.equal(twin(x), spliced)
        assert torch.equal(model(x), clean)
        model[0].weight.zero_()
        assert torch.equal(twin(x), spliced)


def test_meta_tensors_have_shapes_and_nothing_more() -> None:
    sae = sk.SAE(8, 32, sk.TopK(4), device="meta")
    out, codes = sae.forward_with_codes(torch.empty(2, 5, 8, device="meta"))
    assert (out.shape, codes.values.shape, out.device.type) == ((2, 5, 8), (2, 5, 4), "meta")
    sae.to_empty(device="cpu").reset_parameters()
    assert sae(torch.randn(2, 8)).isfinite().all()
