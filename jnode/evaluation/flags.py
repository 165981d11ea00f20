"""What in the attacks' results looks like masked gradients."""

from collections.abc import Sequence
from typing import Any

POINTS = 0.002
"""RobustBench's allowance: black-box or transferred images may break 0.2 points more
of the samples than the white-box attacks before them."""
IMAGES = 2
"""And so many images, however few are evaluated."""


def weak_beats_strong(rows: Sequence[dict[str, Any]]) -> list[str]:
    """One step, or few, beats many (Athalye et al., 2018; Carlini et al., 2019).

    Rows of attacks that ran on all samples.
    """
    flags = []
    for strong in (r for r in rows if r["name"] == "pgd" and not r["via"]):
        for weak in rows:
            same = weak["norm"] == strong["norm"] and not weak["via"]
            if not same or weak["epsilon"] > strong["epsilon"]:
                continue
            fewer = weak["name"] == "pgd" and weak["steps"] < strong["steps"]
            if weak["name"] != "fgsm" and not fewer:
                continue
            gap = strong["robust_accuracy"] - weak["robust_accuracy"]
            if gap > 0.01:
                flags.append(
                    f"masked gradients: {weak['name']}-{weak['steps']} at "
                    f"{weak['norm']} {weak['epsilon']:g} breaks {gap:.1%} more samples "
                    f"than {strong['name']}-{strong['steps']} at {strong['epsilon']:g}."
                )
    return flags


def beaten_white_box(
    rows: Sequence[dict[str, Any]], num_examples: int, *, successive: bool
) -> list[str]:
    """Black-box or transferred images break what white-box attacks could not.

    Where attacks ran one after another, what counts is what each broke of the samples
    that stood; else how far its accuracy lies below the best white-box attack's.
    """
    flags = []
    allowed = max(POINTS * num_examples, IMAGES)
    for i, row in enumerate(rows):
        if row["name"] != "square" and not row["via"]:
            continue
        white = [
            r
            for j, r in enumerate(rows)
            if (r["norm"], r["epsilon"]) == (row["norm"], row["epsilon"])
            and r["name"] not in ("square", "fgsm")
            and not r["via"]
            and (j < i or not successive)
        ]
        if not white:
            continue
        more = row["broken"]
        if not successive:
            best = min(r["robust_accuracy"] for r in white)
            more = round(num_examples * (best - row["robust_accuracy"]))
        if more > allowed:
            kind = f"transfer via {row['via']}" if row["via"] else row["name"]
            flags.append(
                f"{'transfer' if row['via'] else 'square'} beats white-box: "
                f"{kind} at {row['norm']} {row['epsilon']:g} breaks {more} of "
                f"{num_examples} images more than the attacks that follow the model's "
                "gradient."
            )
    return flags
