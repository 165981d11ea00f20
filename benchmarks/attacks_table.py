"""The tables of benchmarks/attacks.py."""


def table(summary: dict) -> str:
    """Markdown: agreement in percent, and speed as ratios."""
    versions, args = summary["versions"], summary["args"]
    lines = [
        f"On {versions['device']}, jax {versions['jax']}, torch {summary['torch']}, "
        f"torchattacks {summary['torchattacks']}, foolbox {summary['foolbox']}.",
        "",
        "`python benchmarks/attacks.py`",
        "",
        "Robust accuracy in % of "
        f"{args['num_examples']} test images; of PGD and APGD-CE means over 3 seeds. "
        f"FAB-T takes {args['fab_steps']} steps and Square {args['queries']:,} "
        "queries, in both libraries. The difference is ours minus theirs: below 0 our "
        "attack is the stronger.",
        "",
        "| model | clean | norm | ε | attack | library | ours | theirs | difference |",
        "| --- | ---: | --- | ---: | --- | --- | ---: | ---: | ---: |",
    ]
    for row in summary["agreement"]:
        cells = [
            row["model"],
            f"{100 * row['clean']:.1f}",
            row["norm"].capitalize(),
            f"{row['epsilon']:.4g}",
            row["attack"],
            row["library"],
            f"{100 * row['ours']:.1f}",
            f"{100 * row['theirs']:.1f}",
            f"{100 * (row['ours'] - row['theirs']):+.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    if not summary["speed"]:
        return "\n".join(lines) + "\n"
    lines += [
        "",
        f"Seconds of CPU for {args['num_timed']} test images in Linf, in batches of "
        f"{args['batch_size']} (the libraries: {args['library_batch_size']}, PyTorch "
        f"with {args['threads']} threads), median of {args['repeats']} runs taken in "
        "turn, compilation left out (the first run, with it, in brackets).",
        "",
        "| model | contest | library | ours | theirs | ratio | robust accuracy |",
        "| --- | --- | --- | ---: | ---: | ---: | --- |",
    ]
    for row in summary["speed"]:
        both = zip(row["cpu_seconds"], row["first_cpu_seconds"], strict=True)
        seconds = [f"{after:.1f} ({first:.1f})" for after, first in both]
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
