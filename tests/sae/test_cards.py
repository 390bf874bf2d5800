"""What a notebook shows of SAEs, dictionaries and codes: their numbers, names that are no HTML, no more reads."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
import torch

import saekernels as sk
from saekernels.sae.metadata import Metadata

HOSTILE = "<script>alert('&')</script>" + '" onload="x'


class Shown(HTMLParser):
    """rows: the texts of each table row's cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()
        self._open = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        assert {name for name, _ in attrs} <= {"style", "scope", "class"}
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self._open = True

    def handle_endtag(self, tag: str) -> None:
        self._open = self._open and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._open:
            self.rows[-1][-1] += data

    @property
    def facts(self) -> dict[str, str]:
        return {row[0]: row[1] for row in self.rows if len(row) == 2}


def shown(value: object) -> Shown:
    text = value._repr_html_()  # type: ignore[attr-defined]
    found = Shown(text)
    assert found.tags <= {"div", "strong", "table", "thead", "tbody", "tr", "th", "td"}
    assert "color" not in text, "the notebook's own colours, light or dark"
    return found


def test_an_sae_shows_its_sizes_and_origin() -> None:
    sae = sk.SAE(6, 1200, sk.TopK(5), d_out=4, pre_bias="none", skip=True, dtype=torch.bfloat16)
    sae.metadata = Metadata(HOSTILE, model=HOSTILE, reads="a", writes="b", dataset="x" * 10_000)
    facts = shown(sae).facts
    count = sum(one.numel() for one in sae.parameters())
    assert facts["parameters"].startswith(f"{count:,} ({2 * count / 1000:.0f} kB)")
    assert (facts["d_in"], facts["d_out"], facts["n_latents"]) == ("6", "4", "1,200")
    assert (facts["activation"], facts["dtype"], facts["device"]) == ("TopK(k=5)", "bfloat16", "cpu")
    assert facts["format"] == facts["trained on"] == HOSTILE
    assert facts["at"] == "a -> b"
    assert len(facts["text"]) == 300
    assert "normalization" not in facts
    assert shown(sae.to("meta")).facts["device"] == "meta"


def test_an_edited_sae_does_not_show_itself_as_the_unedited_one() -> None:
    edited = sk.EditedSAE(sk.SAE(4, 8, sk.TopK(2)), [sk.Edit(3, "scale", (2.0,))])
    text = edited._repr_html_()
    assert "<strong>EditedSAE</strong>" in text
    assert "latent=3" in shown(edited).facts["edits"]


def test_dictionaries_that_span_layers() -> None:
    clt = sk.CrossLayerTranscoder(4, [8, 16], 2, sk.ReLU())
    clt.sites = (HOSTILE, "b")
    assert shown(clt).facts["sites"] == f"{HOSTILE}, b"
    assert shown(clt).facts["n_latents of a layer"] == "8; 16"
    count = sum(one.numel() for one in clt.parameters())
    assert shown(clt).facts["parameters"].startswith(f"{count:,} (")
    across = shown(sk.CrossLayerTranscoder(4, 8, 2, sk.TopK(3), across_layers=True)).facts
    assert (across["across layers"], across["n_latents of a layer"]) == ("TopK(k=3)", "8")
    crosscoder = shown(sk.Crosscoder(4, 8, 3, sk.TopK(2), norms="sum")).facts
    assert (crosscoder["n_heads"], crosscoder["norms"]) == ("3", "sum")
    layers = shown(sk.TranscoderSet([sk.SAE(4, 8, sk.ReLU()), sk.SAE(4, 8, sk.ReLU())], ["x", "y"])).facts
    assert (layers["n_layers"], layers["sites"], layers["activation"]) == ("2", "x, y", "ReLU()")


def entries(row: list[str]) -> dict[int, float]:
    return {int(latent): float(value) for latent, value in (cell.split(": ") for cell in row[2:] if cell)}


@pytest.mark.parametrize("activation", [sk.TopK(12), sk.AbsTopK(12), sk.ReLU()], ids=lambda one: one.name)
@pytest.mark.parametrize("shape", [(7,), (2, 3), ()], ids=str)
def test_codes_show_the_largest_entries_of_the_first_tokens(activation: sk.ReLU, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    sae = sk.SAE(16, 40, activation)
    codes = sae.encode(torch.randn(*shape, 16, requires_grad=True))
    found = shown(codes)
    rows = [row for row in found.rows if len(row) > 2][1:]
    dense, l0 = codes.to_dense().detach().view(-1, 40), codes.l0().reshape(-1).tolist()
    assert len(rows) == min(codes.tokens, 5)
    for token, row in enumerate(rows):
        assert int(row[1]) == l0[token]
        told = entries(row)
        assert len(told) == min(l0[token], 8)
        assert all(value == pytest.approx(dense[token, latent].item(), rel=1e-3) for latent, value in told.items())
        left = dense[token].abs().sort(descending=True).values[len(told) :].max()
        assert min(map(abs, told.values())) >= 0.999 * left
    assert [row[0] for row in rows][-1] == {(7,): "4", (2, 3): "1, 1", (): ""}[shape]
    assert found.facts["tokens"] == {(7,): "7", (2, 3): "2 × 3", (): "1"}[shape]
    assert re.match(r"12 of each token" if activation.name != "standard" else rf"{sum(l0)}, ", found.facts["entries"])


def test_codes_without_tokens_without_entries_and_without_data() -> None:
    for sae in (sk.SAE(4, 8, sk.TopK(2)), sk.SAE(4, 8, sk.ReLU())):
        assert shown(sae.encode(torch.zeros(0, 4))).facts["tokens"] == "0"
        rows = [row for row in shown(sae.encode(torch.zeros(1, 4))).rows if row[0] == "0"]
        assert rows == [["0", "0"]]
    values, latents = torch.empty(3, 2, device="meta"), torch.empty(3, 2, dtype=torch.int32, device="meta")
    meta = sk.Codes(values, latents, None, torch.Size([3]), 8)
    assert shown(meta).facts["device"] == "meta"


def test_codes_are_read_no_further_than_shown() -> None:
    """Values behind the first tokens lie in memory that would take 4 TB."""
    values, latents = torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.int32)
    codes = sk.Codes(values.expand(10**12, 1), latents.expand(10**12, 1), None, torch.Size([10**12]), 4)
    assert entries(next(row for row in shown(codes).rows if row[0] == "4")) == {0: 1.0}
