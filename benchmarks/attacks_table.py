"""The tables of benchmarks/attacks.py."""


def table(summary: dict) -> str:
    """Markdown: agreement in percent, and speed as ratios."""
    versions = summary["versions"]
    lines = [
        f"On {versions['device']}, jax {versions['jax']}, torch {summary['torch']}, "
        f"torchattacks {summary['torchattacks']}, foolbox {summary['foolbox']}.",
        "",
        "`python benchmarks/attacks.py`",
        "",
        "Accuracy left, in % of "
        f"{summary['args']['num_examples']:,} test images; of PGD and APGD-CE means "
        "over 3 seeds. The difference is ours minus theirs: below 0 our attack is the "
        "stronger.",
        "",
        "| model | clean | Linf ε | attack | library | ours | theirs | difference |",
        "| --- | ---: | ---: | --- | --- | ---: | ---: | ---: |",
    ]
    for row in summary["agreement"]:
        cells = [
            row["model"],
            f"{100 * row['clean']:.1f}",
            f"{row['epsilon']:.4f}",
            row["attack"],
            row["library"],
            f"{100 * row['ours']:.1f}",
            f"{100 * row['theirs']:.1f}",
            f"{100 * (row['ours'] - row['theirs']):+.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"Seconds for {summary['args']['num_timed']} test images, in batches of "
        f"{summary['args']['batch_size']} (the libraries: "
        f"{summary['args']['library_batch_size']}, PyTorch with "
        f"{summary['args']['threads']} threads), median of "
        f"{summary['args']['repeats']} runs taken in turn, compilation left out (the "
        "first run, with it, in brackets).",
        "",
        "| model | contest | library | ours | theirs | times faster | accuracy left |",
        "| --- | --- | --- | ---: | ---: | ---: | --- |",
    ]
    for row in summary["speed"]:
        seconds = [
            f"{after:.1f} ({first:.1f})"
            for after, first in zip(row["seconds"], row["first_seconds"], strict=True)
        ]
        cells = [
            row["model"],
            row["contest"],
            row["library"],
            *seconds,
            f"{row['ratio']:.1f}",
            f"{100 * row['ours']:.1f} and {100 * row['theirs']:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
