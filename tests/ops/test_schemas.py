"""The schemas of torch.ops.saekernels: other people's graphs are exported with them."""

from __future__ import annotations

import pytest
import torch

import saekernels  # noqa: F401 - registers the ops

SCHEMAS = {
    "encode_topk": (
        "(Tensor x, Tensor W_enc, Tensor? b_enc=None, Tensor? pre_bias=None, Tensor? prepared=None, Tensor? hint=None, "
        'Tensor? scale=None, *, SymInt k, str activation="relu", str precision="exact", bool sparse_grad=False, '
        "bool wide=False, str? backend=None) -> (Tensor, Tensor)"
    ),
    "encode_threshold": (
        "(Tensor x, Tensor W_enc, Tensor? b_enc, Tensor threshold, Tensor? pre_bias=None, Tensor? prepared=None, "
        'Tensor? scale=None, *, str precision="exact", bool sparse_grad=False, bool wide=False, str? backend=None) '
        "-> (Tensor, Tensor, Tensor)"
    ),
    "topk": "(Tensor scores, SymInt k, *, str? backend=None) -> (Tensor, Tensor)",
    "decode": (
        "(Tensor values, Tensor indices, Tensor W_dec, Tensor? b_dec=None, *, bool sparse_grad=False, "
        "bool wide=False, str? backend=None) -> Tensor"
    ),
    "decode_csr": (
        "(Tensor values, Tensor indices, Tensor offsets, Tensor W_dec, Tensor? b_dec=None, *, bool sparse_grad=False, "
        "bool wide=False, str? backend=None) -> Tensor"
    ),
    "gather_dot": (
        "(Tensor a, Tensor W, Tensor indices, Tensor offsets, *, bool wide=False, str? backend=None) -> Tensor"
    ),
    "gather_matmul": (
        "(Tensor a, Tensor W, Tensor indices, Tensor offsets, *, bool sparse_grad=False, bool wide=False, "
        "str? backend=None) -> Tensor"
    ),
    "segment_outer": (
        "(Tensor values, Tensor indices, Tensor offsets, Tensor a, SymInt n_latents, *, str? backend=None) -> Tensor"
    ),
    "segment_sum": "(Tensor values, Tensor indices, SymInt n_latents, *, str? backend=None) -> Tensor",
    "linear_ce_kl": (
        "(Tensor h_p, Tensor h_q, Tensor W_U, Tensor targets, Tensor? bias=None, *, float? softcap=None, "
        "int ignore_index=-100, str? backend=None) -> (Tensor, Tensor, Tensor, Tensor)"
    ),
    "linear_ce_kl_backward": (
        "(Tensor grad_ce_p, Tensor grad_ce_q, Tensor grad_kl, Tensor ce_p, Tensor ce_q, Tensor kl, Tensor h_p, "
        "Tensor h_q, Tensor W_U, Tensor targets, Tensor? bias, float? softcap, int ignore_index, bool need_h, "
        "bool need_W, bool need_bias) -> (Tensor, Tensor, Tensor, Tensor)"
    ),
}
DYNAMIC = {"encode_threshold"}


@pytest.mark.parametrize("name", SCHEMAS)
def test_schema(name: str) -> None:
    assert str(getattr(torch.ops.saekernels, name).default._schema) == f"saekernels::{name}{SCHEMAS[name]}"


def test_these_are_all() -> None:
    registered = {schema.name for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("saekernels::")}
    assert registered == {f"saekernels::{name}" for name in SCHEMAS}


@pytest.mark.parametrize("name", SCHEMAS)
def test_tags(name: str) -> None:
    tags = {torch.Tag.pt2_compliant_tag}
    if name != "decode":  # made of decode_csr
        tags.add(torch.Tag.flexible_layout)
    if name in DYNAMIC:
        tags.add(torch.Tag.dynamic_output_shape)
    assert set(getattr(torch.ops.saekernels, name).default.tags) == tags
