"""The model's own answer: which continuation it prefers, clean and with SAEs spliced in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from saekernels.eval.passes.continuations import Sequences, log_probabilities, tokenized
from saekernels.eval.passes.left import SiteNorms
from saekernels.eval.passes.plan import ALL, first_of_each_site, site_of
from saekernels.eval.passes.two_passes import Advance
from saekernels.eval.studies.probe.figures import Draws, figure
from saekernels.eval.text.labelled import LabelledText
from saekernels.eval.text.windows import Tokens, model_limit
from saekernels.sae.module import SAE

RULE = (
    "log p of the whole continuation after its prompt, in nats, over the held-out texts. Logit difference: of the "
    "answer minus that of the foil; accuracy: how often it is positive; own score: of the continuation that the text "
    "has"
)


def splices_of(saes: Mapping[str, SAE]) -> dict[str, dict[str, SAE]]:
    """Name -> site -> SAE: each entry alone, and all sites together where there are several."""
    alone = {entry: {site_of(entry): sae} for entry, sae in saes.items()}
    together = first_of_each_site(saes)
    return {**alone, ALL: together} if len(together) > 1 else alone


def sequences_of(model: Any, tokens: Tokens, texts: Sequence[LabelledText], name: str) -> Sequences:
    """For each text the answer after its prompt, then the foil; none where a text has no completion."""
    completions = [text.completion for text in texts]
    pairs = [(one.prompt, continuation) for one in completions if one for continuation in (one.answer, one.foil)]
    if len(pairs) < 2 * len(texts):
        return []
    return tokenized(tokens, pairs, f"labels: {name}", model_limit(model))


def answers(
    left: SiteNorms,
    tokens: Tokens,
    saes: Mapping[str, SAE],
    sequences: Sequences,
    texts: Sequence[LabelledText],
    draws: Draws,
    *,
    batch_size: int,
    advance: Advance,
) -> list[dict[str, Any]]:
    """ "clean", then each splice: figures of the texts that `draws` is of, with their difference to clean.

    left: the model, and which positions stay as they are.
    """
    splices = splices_of(saes)
    # Prompts are short, so many of them are still few positions.
    found = log_probabilities(
        left, list(splices.values()), sequences, tokens, batch_size=8 * batch_size, advance=advance
    )
    right = np.array([text.completion is not None and text.completion.is_answer for text in texts])
    everything = np.ones(len(texts), dtype=bool)
    columns = []
    for answer, foil in zip(found[::2].T, found[1::2].T, strict=True):
        columns.append(
            {
                "logit_difference": draws.means(answer - foil),
                "accuracy": draws.means((answer > foil).astype(float)),
                "ce_answer": draws.means(-answer),
                "ce_foil": draws.means(-foil),
                "own_score_auroc": draws.aurocs(np.where(right, answer, foil), everything),
            }
        )
    made = []
    for name, column in zip(("clean", *splices), columns, strict=True):
        one: dict[str, Any] = {"splice": name}
        for key, values in column.items():
            one[key] = figure(values, {} if name == "clean" else {"minus_clean": columns[0][key]})
        made.append(one)
    return made
