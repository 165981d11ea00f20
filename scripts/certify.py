"""Certify a trained run: python scripts/certify.py RUN_DIR.

With the name of a model that comes with the package in place of a folder, certify that
and compare it with its card: python scripts/certify.py certified_mnist.
"""

import dataclasses
import io
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jnode._files import as_path
from jnode._hosts import Hosts
from jnode._process import run
from jnode.attacks import number
from jnode.cards import check_card
from jnode.certify import Smoothing
from jnode.enclosed_runs import enclose_run, rounding_run
from jnode.models import shipped
from jnode.runs import certify_run
from jnode.sharding import all_devices, is_main_process
from jnode.smoothed_runs import smooth_run

_COMMON = ("num_examples", "seed", "quiet")


@dataclasses.dataclass(frozen=True)
class Args(Hosts):
    """Certifies the model of a run; writes its certificate.json and certificate.png."""

    run_dir: Annotated[str, tyro.conf.Positional]
    """A folder that scripts/train.py wrote, or a model that comes with the package."""

    radii: tuple[str, ...] = ("0.25", "0.5", "1.0", "1.5")
    """L2 radii in pixel units; fractions such as 36/255 too."""

    linf: tuple[str, ...] = ()
    """Linf radii, each certified by the L2 ball that holds the Linf ball."""

    norm: Literal["l2", "linf"] = "l2"
    """With linf, certify by intervals instead, at the radii of --epsilon."""

    epsilon: tuple[str, ...] = ("0.1",)
    """Linf radii in pixel units; fractions such as 8/255 too."""

    rounding: Literal["stated", "proven"] = "stated"
    """With proven, prove instead how far rounding moves each image's features."""

    num_examples: int | None = None
    """How many test images, by default all. With smoothing, 100 take minutes."""

    num_attacked: int = 500
    """How many of them to attack, certify locally and search (slow)."""

    freeze: bool = False
    """Certify an adaptive model on the steps it takes for the first training image."""

    smoothing: float | None = None
    """Instead, certify the classifier smoothed by noise of this standard deviation."""

    samples: int = 10_000
    """Smoothing: noisy samples for each image."""

    alpha: float = 0.001
    """Smoothing: the probability that the answer for an image is wrong."""

    seed: int = 0
    """The seed of attacks, searches and noise."""

    data_dir: str | None = None
    """The TFDS folder; by default TFDS_DATA_DIR."""

    quiet: bool = False
    """Show no progress."""


# What each kind of certificate reads, beside the run and its data.
OPTIONS = {
    "a model that comes with the package": (),
    "--norm linf": ("norm", "epsilon", "num_examples", "quiet"),
    "--rounding proven": ("rounding", "num_examples", "quiet"),
    "--smoothing": ("smoothing", "samples", "alpha", "radii", *_COMMON),
    "an L2 certificate": ("radii", "linf", "num_attacked", "freeze", *_COMMON),
}


def check_options(args: Args, kind: str) -> None:
    """Raises `ValueError` for an option that would be ignored."""
    read = (*OPTIONS[kind], "run_dir", "data_dir")
    shared = {x.name for x in dataclasses.fields(Hosts)}
    for option in dataclasses.fields(Args):
        if option.name in read or option.name in shared:
            continue
        if getattr(args, option.name) != option.default:
            name = option.name.replace("_", "-")
            raise ValueError(f"--{name} must be left out: it does not go with {kind}.")


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    if args.run_dir in shipped.names() and not Path(args.run_dir).exists():
        check_options(args, "a model that comes with the package")
        _check(args.run_dir, args.data_dir)
        return
    with args.joined():
        # Of several processes all certify, and the first tells.
        heard = nullcontext() if is_main_process() else redirect_stdout(io.StringIO())
        with heard:
            certify(args)


def certify(args: Args) -> None:
    radii, linf = (
        [number(text) for text in texts] for texts in (args.radii, args.linf)
    )
    where = {"num_examples": args.num_examples, "data_dir": args.data_dir}
    if args.norm == "linf":
        check_options(args, "--norm linf")
        _tell_linf(enclose_run(args.run_dir, [*map(number, args.epsilon)], **where))
        return
    if args.rounding == "proven":
        check_options(args, "--rounding proven")
        _tell_rounding(rounding_run(args.run_dir, **where))
        return
    common = {
        "num_examples": args.num_examples,
        "seed": args.seed,
        "data_dir": args.data_dir,
        "progress": not args.quiet,
    }
    if args.smoothing is not None:
        check_options(args, "--smoothing")
        smoothing = Smoothing(args.smoothing, n=args.samples, alpha=args.alpha)
        spread = {"mesh": all_devices(), **common}
        found = smooth_run(args.run_dir, smoothing, radii, **spread)
        print(f"smoothed {found['solver']}, sigma {args.smoothing:g}:", _rows(found))
        print(f"abstained on {100 * found['abstained']:.1f} %")
        return
    check_options(args, "an L2 certificate")
    found = certify_run(
        args.run_dir,
        radii,
        linf=linf,
        num_attacked=args.num_attacked,
        freeze=args.freeze,
        mesh=all_devices(),
        **common,
    )
    print(_adaptive(found) if found["adaptive"] else _constant(found))
    print(_rows(found))
    print(f"rounding of the features: {found['rounding']['rounding']}")
    for claim in found["assumed"]:
        print(f"assumed: {claim}")
    attacked = found["attacked"]
    print(f"of {attacked['num_examples']} images:")
    for row in attacked["rows"]:
        shares = [
            f"{100 * row[name]:5.1f} % {words}"
            for name, words in (
                ("certified_accuracy", "certified"),
                ("certified_locally", "with local certificates"),
                ("robust_accuracy", "robust under attack"),
            )
        ]
        print(f"  L2 {row['radius']:.4g}: {', '.join(shares)}")
    for flag in attacked["flags"]:
        print(f"flag: {flag}")
    _draw(as_path(args.run_dir) / "certificate.png", found)


def _constant(found) -> str:
    tightness = found["tightness"]
    return (
        f"{found['solver']}: Lipschitz constant from pixels to features at most "
        f"{tightness['certified_upper_bound']:.4f}, at least "
        f"{tightness['empirical_lower_bound']:.4f} (ratio {tightness['ratio']:.2f})"
    )


def _adaptive(found) -> str:
    """Of an adaptive model: how adaptive it is, and what its certificate costs."""
    of = found["adaptive"]
    lines = [
        f"{found['solver']}: {of['paths']} paths of steps, the commonest taken by "
        f"{100 * of['commonest_share']:.1f} % of the images; all that a ball can reach "
        f"are certified, in {of['attempts']:.1f} attempts and "
        f"{of['milliseconds']:.1f} ms an image (at most {of['attempts_largest']})"
    ]
    lines += [
        f"the commonest steps, fixed: certified at L2 {row['radius']:.4g}: "
        f"{100 * row['certified_accuracy']:.1f} %"
        for row in of["frozen"]
    ]
    return "\n".join([*lines, *([f"flag: {of['flag']}"] if of["flag"] else [])])


def _tell_linf(found) -> None:
    print(f"{found['solver']}, intervals, rounding {found['rounding']}:", _rows(found))
    widest, size = found["widest"], found["features"]
    print(
        f"intervals of the features: up to {widest:.3g} wide; features up to {size:.3g}"
    )
    if widest > 100 * size:
        print("The intervals are far wider than the features: they tell nothing here.")


def _tell_rounding(found) -> None:
    print(
        f"rounding of the features, proven on {found['num_examples']} images: at most "
        f"{found['largest_proven']:.3g}"
    )
    allowed = found["allowed"]
    if allowed is None:
        print("There is no L2 certificate whose allowance could be compared.")
        return
    print(
        f"the L2 certificate allows for at least {allowed['smallest']:.3g}: "
        f"{allowed['median_ratio']:.3g} times what is proven of an image (median; at "
        f"least {allowed['least_ratio']:.3g} times)"
    )
    if allowed["covered"] < 1:
        share = 100 * (1 - allowed["covered"])
        print(
            f"The proof does not reach the allowance on {share:.1f} % of the images: "
            "there the allowance stays stated and not proven."
        )


def _check(name: str, data_dir: str | None) -> None:
    rows = check_card(name, data_dir=data_dir)
    print(f"{name}: certified accuracy on the card, and found now")
    for row in rows:
        shares = [f"{100 * row[key]:.2f} %" for key in ("card", "found")]
        print(f"  L2 {row['radius']:.4g}:", *shares)
    # A few images may lie so near a radius that another machine's rounding decides.
    if any(abs(row["card"] - row["found"]) > 5e-4 for row in rows):
        raise RuntimeError(
            f"{name} does not have the certified accuracy on its card: its files, or "
            "those of the data set, are not the ones it was measured with."
        )


def _rows(found) -> str:
    lines = [f"clean accuracy {100 * found['clean_accuracy']:.1f} %"]
    for row in found["certified_accuracy"]:
        norm, share = row["norm"].capitalize(), 100 * row["certified_accuracy"]
        lines.append(f"certified accuracy at {norm} {row['radius']:.4g}: {share:.1f} %")
    return "\n".join(lines)


def _draw(path: Path, found) -> None:
    if not is_main_process():
        return
    try:
        from jnode.report.figures import certificate
        from jnode.report.style import to_png

        path.write_bytes(to_png(certificate(found)))
    except ImportError as error:
        print(f"No picture: {error}")
        return
    print(f"Picture: {path}")


if __name__ == "__main__":
    run(main)
