"""The tables of benchmarks/speed.py."""

from speed_contestants import OPERATIONS


def table(result: dict) -> str:
    """Markdown: milliseconds and ratios to jnode's, then sizes, then first steps."""
    parts = {"groups": _groups, "sizes": _sizes, "starts": _starts}
    found = [part(result) for name, part in parts.items() if name in result]
    return "\n\n".join(["`python benchmarks/speed.py`", *found]) + "\n"


def _groups(result) -> str:
    peak, nfe = result["ceiling"], result["nfe"]
    where = f"{result['cores']} cores"
    if result["device"] != "cpu":
        where = f"{result['device']}, {where}"
    lines = [
        f"Batch {result['batch']}, {result['side']} x {result['side']} x "
        f"{result['channels']}, float32, {result['cores']} cores; "
        f"{', '.join(f'{k} {v}' for k, v in result['versions'].items())}. "
        f"Milliseconds, medians of up to {result['rounds']} rounds in turn; in "
        "brackets, how many times jnode's, and how many times its processor time.",
    ]
    for group, rows in result["groups"].items():
        lines += _head(group, OPERATIONS)
        ours = rows["jnode"]
        for name, row in rows.items():
            if isinstance(row, str):
                lines.append(f"| {name} | {row} | | |")
                continue
            cells = [_cell(row[o], ours[o]) for o in OPERATIONS]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    rows = result["groups"].get("Ortho, rk4x4")
    if rows:
        rate = result["work"] / rows["jnode"]["training step"]["ms"] * 1e3
        lines += [
            "",
            f"A large matrix product reaches {peak['matmul']:.0f} GFLOP/s here, a 3x3 "
            f"convolution {peak['convolution']:.0f}; jnode's Ortho training step, of "
            f"{result['work']:.1f} GFLOP, {rate:.0f} "
            f"({100 * rate / peak['matmul']:.0f} %).",
        ]
    lines += [
        "",
        f"Adaptive: NFE {nfe['mean']:.1f} in the mean of the batch, {nfe['max']} for "
        "its slowest sample, which is what the batch pays for.",
    ]
    return "\n".join(lines)


def _sizes(result) -> str:
    lines = [
        "How many times jnode's, one size changed at a time (jnode's ms in brackets)."
    ]
    lines += _head("size | field and solver | peer", OPERATIONS)
    for row in result["sizes"]:
        ours = row["times"]["jnode"]
        for name, times in row["times"].items():
            if name == "jnode":
                continue
            cells = [
                f"{_ratio(times[o], ours[o])} ({ours[o]['ms']:.1f})" for o in OPERATIONS
            ]
            where = f"{row['axis']} {row['value']} | {row['group']} | {name}"
            lines.append(f"| {where} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_ranges(result["sizes"])])


def _ranges(rows) -> list[str]:
    """Of each group and peer, the smallest and the largest ratio in training."""
    found: dict = {}
    for row in rows:
        ours = row["times"]["jnode"]["training step"]["ms"]
        for name, times in row["times"].items():
            if name != "jnode":
                ratio = times["training step"]["ms"] / ours
                where = f"{row['axis']} {row['value']}"
                found.setdefault((row["group"], name), []).append((ratio, where))
    lines = ["Over these sizes, a training step of"]
    for (group, name), ratios in found.items():
        (least, there), (most, here) = min(ratios), max(ratios)
        lines.append(
            f"- {name}, {group}, takes {least:.2f} ({there}) to {most:.2f} ({here}) "
            "times jnode's"
        )
    return [lines[0], "", *lines[1:]]


def _cell(row, ours) -> str:
    return f"{_ms(row)} ({_ratio(row, ours)}, {row['cpu'] / ours['cpu']:.2f})"


def _ms(row) -> str:
    """Milliseconds, with two digits at least."""
    return f"{row['ms']:.0f}" if row["ms"] >= 10 else f"{row['ms']:.2g}"


def _ratio(row, ours) -> str:
    return f"{row['ms'] / ours['ms']:.2f}"


def _starts(result) -> str:
    lines = [
        "The first training step of a process of its own, seconds: at first, and with "
        "the compilation cache of that run; and the memory that two steps took."
    ]
    lines += _head("field and solver | contestant", ("first", "cached", "MB"))
    for group, rows in result["starts"].items():
        for name, row in rows.items():
            cached = "" if name.startswith("torch") else f"{row['cached']:.1f}"
            cells = f"{row['first']:.1f} | {cached} | {row['megabytes']:.0f}"
            lines.append(f"| {group} | {name} | {cells} |")
    return "\n".join(lines)


def _head(first, columns) -> list[str]:
    left = ["---"] * (first.count("|") + 1)
    rule = " | ".join([*left, *["---:"] * len(columns)])
    return ["", f"| {first} | {' | '.join(columns)} |", f"| {rule} |"]
