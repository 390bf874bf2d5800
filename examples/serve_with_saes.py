"""transformers' own OpenAI-compatible server, with SAEs spliced into the model that it loads.

    pip install 'transformers[serving]'
    python examples/serve_with_saes.py                                       # the bundled model and its SAEs
    python examples/serve_with_saes.py --model gpt2 --sae transformer.h.6=saes/h6 --edit transformer.h.6:17:set:8
    curl localhost:8000/v1/completions -d '{"model": "MODEL", "prompt": "def main(", "max_tokens": 20}'

Every request goes through the splice: the server calls the model's `generate` in one thread, request after request.
Not with its --compile and --continuous-batching, which run graphs that a hook is no part of.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from transformers.cli.serving import model_manager

import saekernels as sk
from saekernels import example
from saekernels.cli.options.arguments import site_and_path
from saekernels.cli.options.further_saes import edit


def spliced_manager(sites: Mapping[str, Any]) -> type[model_manager.ModelManager]:
    """The server's ModelManager, whose models have the SAEs in for as long as they are loaded."""

    class SplicedManager(model_manager.ModelManager):
        def load_model_and_processor(self, *args: Any, **kwargs: Any) -> Any:
            model, processor = super().load_model_and_processor(*args, **kwargs)
            if not hasattr(model, "sae_splice"):
                tokenizer = getattr(processor, "tokenizer", processor)
                stands = {site: sae.to(model.device) for site, sae in sites.items()}
                model.sae_splice = sk.splice(model, stands, untouched=tokenizer.all_special_ids)
                model.sae_splice.__enter__()
            return model, processor

    return SplicedManager


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(example.MODEL_DIR))
    parser.add_argument("--sae", metavar="SITE=PATH", type=site_and_path, nargs="+")
    parser.add_argument("--edit", metavar="SITE:LATENT:OP", type=edit, nargs="+", default=[])
    parser.add_argument("--port", type=int, default=8000)
    args = parser.parse_args()
    sites: dict[str, Any] = {site: sk.load(str(path)) for site, path in args.sae or example.SAE_DIRS.items()}
    for site in {site for site, _ in args.edit}:
        sites[site] = sk.EditedSAE(sites[site], [one for where, one in args.edit if where == site])

    from transformers.cli.serve import Serve

    model_manager.ModelManager = spliced_manager(sites)  # type: ignore[misc]  # Serve looks it up there
    Serve(force_model=args.model, port=args.port)


if __name__ == "__main__":
    main()
