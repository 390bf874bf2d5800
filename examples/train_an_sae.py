"""Train a TopK SAE on one layer of the bundled model, without a [tokens, latents] matrix, and say what it costs.

    pip install '.[eval]'
    python examples/train_an_sae.py                                           # some 20 seconds
    python examples/train_an_sae.py --site model.layers.1 --steps 2000 --latents 2560 --out my_sae

Prints the fraction of variance left unexplained (FVU) while it falls, saves the SAE in SAELens' format, loads it again,
and prints ΔCE of the model with it spliced in, on documents that it was not trained on.
"""

from __future__ import annotations

import argparse
import tempfile

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import saekernels as sk
from saekernels import example, training


@torch.no_grad()
def activations(model: nn.Module, site: str, texts: list[Tensor]) -> Tensor:
    """[n, d]: the site's output at every token but <bos>, of texts of ids [1, S]."""
    found: list[Tensor] = []

    def keep(module: nn.Module, args: object, output: Tensor | tuple[Tensor, ...]) -> None:
        found.append((output if isinstance(output, Tensor) else output[0])[0, 1:])

    handle = model.get_submodule(site).register_forward_hook(keep)
    for ids in texts:
        model(ids)
    handle.remove()
    return torch.cat(found)


def train(x: Tensor, args: argparse.Namespace) -> sk.SAE:
    """The SAE after so many steps on batches of x [n, d]."""
    centre = x.mean(0)
    scale = (x - centre).square().mean().item() ** -0.5  # inputs of unit variance; sk.save folds it into the weights
    sae = sk.SAE(x.shape[1], args.latents, sk.TopK(args.k), normalization=sk.Scale(scale))
    sae.b_dec.data.copy_(centre * scale)
    optimizer = torch.optim.Adam(sae.parameters(), lr=args.lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, args.steps)
    dead = training.DeadLatents(args.latents, after=20 * args.batch)
    for step in range(args.steps):
        batch = x[torch.randint(len(x), (args.batch,))]
        out, codes = sae.forward_with_codes(batch)
        fvu = training.fvu_loss(batch, out)
        dead.update(codes)
        (fvu + training.auxk_loss(sae, batch, out, dead.indices(), k=64) / 32).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        with torch.no_grad():
            sae.W_dec.div_(sae.decoder_norms()[:, None])  # otherwise codes shrink and rows grow
        if step % (args.steps // 5) == 0 or step == args.steps - 1:
            print(f"step {step:4}: FVU {fvu.item():.4f}, {len(dead.indices())} of {args.latents} latents dead")
    return sae


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--site", default="model.layers.2", help="a module whose output is explained")
    parser.add_argument("--latents", type=int, default=1280)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=1024, help="tokens per step")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--documents", type=int, default=150, help="to train on; the others are held out")
    parser.add_argument("--out", help="a folder for the SAE; by default it is thrown away")
    args = parser.parse_args()

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(example.MODEL_DIR).eval()
    tokenizer = AutoTokenizer.from_pretrained(example.MODEL_DIR)
    documents = list(sk.load_documents([str(example.EVAL_DATA)]))
    seen, held_out = documents[: args.documents], documents[args.documents :]
    cut = {"truncation": True, "max_length": 256, "return_tensors": "pt"}
    x = activations(model, args.site, [tokenizer(document.text, **cut).input_ids for document in seen])
    print(f"{len(x):,} activations of {args.site}")
    sae = train(x, args)

    with tempfile.TemporaryDirectory() as thrown_away:
        folder = args.out or thrown_away
        sk.save(sae, folder)
        saes = {args.site: sk.load(folder)}
    report = sk.evaluate(model, tokenizer, saes, held_out, tokens=4_000, baselines=["zero"], bootstrap=200)
    (row,) = report.sites
    low, high = row.delta_ce.ci95
    print(f"held out: FVU {row.fvu:.4f}, ΔCE {row.delta_ce.nats:+.4f} nats [{low:+.4f}, {high:+.4f}]")
    print(f"zeros in its place: {row.ce.zero - row.ce.clean:+.4f}")


if __name__ == "__main__":
    main()
