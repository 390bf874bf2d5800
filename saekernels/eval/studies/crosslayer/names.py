"""Which runs there are of a replaced model, what each is, and of which rank its affine maps are."""

from __future__ import annotations

from collections.abc import Sequence

from saekernels.eval.studies.crosslayer.accounting import equal_ranks
from saekernels.eval.studies.crosslayer.fits import Fits
from saekernels.eval.studies.crosslayer.subject import Subject

MEANINGS = {
    "joint": "all layers replaced; each reads what the model, replaced so far, gives it",
    "teacher_forced": "all layers replaced by what the codes of the clean model write",
    "own": "joint; at each layer only what its own codes write",
    "cross": "joint; at each layer only what the codes of earlier layers write",
    "error": "joint, and what each layer misses of its MLP in the same pass put back: the clean model, to rounding",
    "zero": "nothing is written at any layer",
    "mean": "each layer writes its mean over the fitted half",
    "skip": "each layer writes its bias and its skip connection alone",
    "permuted": "joint; every latent writes in the direction of another one of its layer, with its own norm",
    "affine": "an affine map of each layer's input, of the rank of the mean L0 of the latents that write there",
    "affine_full": "such a map of as many parameters as the replacement's, or of full rank where that is less",
    "affine_across": "an affine map of what all layers so far read, of the same rank as affine",
    "beside": "the other dictionary, all its layers replaced",
}
"""Run -> what it is, in the order in which they are shown. Beside these: "first_N": joint, only the first N layers
replaced; "without_N": joint, the codes of layer N switched off; "RUN@DOMAIN" for those of NARROW."""
FORCED = {
    "teacher_forced": MEANINGS["teacher_forced"],
    "error": "the same, and what each layer misses of the same pass put back: the clean model, to rounding",
    "zero": MEANINGS["zero"],
    "mean": MEANINGS["mean"],
    "permuted": "teacher-forced; every latent writes in the direction of another one, with its own norm",
    "affine": "an affine map of what each layer reads in the clean model, of the rank of the mean L0 there",
    "affine_full": "such a map of as many parameters as the replacement's, or of full rank where that is less",
    "affine_across": "an affine map of what all layers so far read in the clean model, of the same rank as affine",
    "affine_shared": "one affine code of that rank for all layers, of what they read in the clean model: PCA",
    "beside": "the other dictionary, all its layers replaced, each reading the model as replaced so far",
}
"""The same where codes can only be those of clean passes. Beside these: "only_N": teacher-forced, at layer N alone."""
NARROW = {
    "joint": "joint; only latents that are active somewhere in the half of {domain} that is fitted on",
    "affine": "affine, fitted on {domain} alone",
    "affine_across": "affine_across, fitted on {domain} alone",
    "affine_shared": "affine_shared, fitted on {domain} alone",
}
"""Run -> the same, fitted or selected on one domain."""


def names_of(
    subject: Subject, beside: Subject | None, affine: bool, together: bool, domains: Sequence[str], sources: bool
) -> list[str]:
    """The runs that there are: of MEANINGS, "first_N" and "without_N" where `sources` asks for them, "RUN@DOMAIN".

    Or of FORCED, "only_N", and "RUN@DOMAIN". The first is the one that others are compared with.
    affine, together: whether maps are fitted, and from moments of all layers together, without which those across
    layers are fitted on everything alone; domains: that something is fitted or selected on alone.
    """
    several = subject.across and len(subject.sites) > 1
    lacking = {
        "own": several,
        "cross": several,
        "skip": subject.has_skip,
        "affine": affine,
        # From x to x itself they are the identity, and affine once more.
        "affine_full": affine and not subject.same,
        "affine_across": affine and not subject.same,
        "affine_shared": affine and together and subject.shared,
        "beside": beside is not None,
    }
    made = [name for name in (MEANINGS if subject.causal else FORCED) if lacking.get(name, True)]
    if not subject.causal:
        made[1:1] = [f"only_{number}" for number in subject.layers if len(subject.sites) > 1]
    elif sources:
        made += [f"first_{count}" for count in subject.layers[1:]]
        made += [f"without_{number}" for number in subject.layers if subject.across]
    narrow = [run for run in NARROW if run in made and (together or run != "affine_across")]
    return [*made, *(f"{run}@{domain}" for domain in domains for run in narrow)]


def domain_of(name: str) -> tuple[str, str | None]:
    """("affine", "prose") of the run "affine@prose"; (its name, None) of one that has seen every domain."""
    run, mark, domain = name.partition("@")
    return run, domain if mark else None


def meaning(name: str, subject: Subject) -> str:
    """A run in a sentence."""
    run, domain = domain_of(name)
    if domain is not None:
        return NARROW[run].format(domain=domain)
    told = (MEANINGS if subject.causal else FORCED).get(name)
    if told is not None:
        return told
    kind, number = name.split("_")
    if kind == "first":
        return f"joint; only the first {number} of the layers replaced, up to {subject.sites[int(number) - 1]}"
    site = subject.sites[int(number)]
    if kind == "only":
        return f"teacher-forced at layer {number} alone, at {site}"
    return f"joint; the codes of layer {number}, at {site}, switched off"


def ranks_of(subject: Subject, fits: Fits, names: Sequence[str]) -> dict[str, list[int]]:
    """Affine run -> rank at each layer: the mean L0 of the layers that write there, on the first text, at least 1."""
    l0, widths = fits.l0, subject.widths()
    matched = []
    for number, (d_in, d_out) in enumerate(widths):
        writers = l0[: number + 1] if subject.across else l0[number : number + 1]
        matched.append(max(1, min(round(sum(writers) / len(writers)), d_in, d_out)))
    one = [max(1, round(sum(l0) / len(l0)))] * len(widths)
    wanted = {name: domain_of(name)[0] for name in names if name.startswith("affine")}
    special = {"affine_full": equal_ranks(subject), "affine_shared": one}
    return {name: special.get(run, matched) for name, run in wanted.items()}
