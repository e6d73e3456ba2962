"""Time what has to be fast, as ratios against a baseline timed in the same run.

    python scripts/benchmark.py objectives --out docs/benchmark-objectives-cpu.md
    python scripts/benchmark.py step --rounds 5 --out docs/benchmark-step-cpu.md
    python scripts/benchmark.py profile --threads 2 --rounds 5 --out docs/benchmark-profile-cpu.md
    python scripts/benchmark.py curves --rounds 9 --out docs/benchmark-curves-cpu.md
    python scripts/benchmark.py start --rounds 9 --out docs/benchmark-start-cpu.md
    python scripts/benchmark.py methods --out docs/benchmark-methods-cpu.md
    python scripts/benchmark.py corruptions --rounds 5 --out docs/benchmark-corruptions-cpu.md
    python scripts/benchmark.py stream --rounds 5 --root imagenet/val --out docs/benchmark-stream-cpu.md
    python scripts/benchmark.py sweep --rounds 1 --out docs/benchmark-sweep-cpu.md
    python scripts/benchmark.py compare --rounds 5 --out docs/benchmark-compare-cpu.md

Times are medians over rounds in which every candidate takes its turn, so that other work on the machine meets all of
them alike. The table says the command, versions and device.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch
from method_speed import FORWARD, Workload, peak
from timing import medians

from tta.cli import CONFIGS
from tta.corruptions import BENCHMARK, CORRUPTIONS, SCALES
from tta.utils.devices import PRECISIONS, choose_device, describe_device, tune_malloc
from tta.utils.paths import atomic_file

METHODS = sorted(path.stem for path in (CONFIGS / "method").glob("*.yaml"))
SWEEP = ("method=source,bn_adapt,tent,adadem", "seed=0,1,2,3")
SHAPES = ("64x10", "64x1000", "512x1000", "64x21841")


def main() -> None:
    """Run a benchmark and show its table."""
    options = _parser().parse_args()
    torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    if device.type == "cpu":
        tune_malloc()  # as the command does
    if options.what == "objectives":
        lines = objectives(device, options.rounds, [tuple(map(int, shape.split("x"))) for shape in options.shapes])
    elif options.what == "step":
        precisions = options.precisions or [name for name in PRECISIONS if (name, device.type) != ("tf32", "cpu")]
        lines = step(options.sizes, options.batches, precisions, options.threads, device, options.rounds)
    elif options.what == "profile":
        lines = profile(options.sizes, options.precisions, device, options.rounds)
    elif options.what == "curves":
        lines = curves(vars(options), device, options.rounds)
    elif options.what == "start":
        lines = start(device, options.rounds)
    elif options.what == "corruptions":
        how = (device, options.rounds, options.batch, options.severity)
        lines = corruptions(options.corruptions, options.scales, *how)
    elif options.what == "sweep":
        lines = sweep(options.words, options.device, options.threads, device, options.rounds)
    elif options.what == "stream":
        lines = stream(options.root, options.images, options.batch, options.workers, device, options.rounds)
    elif options.what == "compare":
        lines = compare(options.runs, device, options.rounds)
    else:
        work = Workload(options.model, options.batch, options.size, device, options.threads)
        lines = methods(work, options.rounds, options.methods)
    if getattr(options, "root", None):  # where it is says nothing to others
        sys.argv = [word.replace(str(options.root), options.root.name) for word in sys.argv]
    lines += ["", f"`{shlex.join(['python', *sys.argv])}`; {datetime.now(UTC):%Y-%m-%d}; torch {torch.__version__}; "]
    lines[-1] += (
        f"{describe_device(device)}; {'mean' if options.what == 'profile' else 'median'} of {options.rounds} rounds."
    )
    text = "\n".join(lines) + "\n"
    print(text)
    if options.out:
        with atomic_file(options.out) as file:
            file.write_text(text)


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--device", default="auto")
    common.add_argument("--threads", type=int, default=1, help="of the CPU")
    common.add_argument("--rounds", type=int, default=50)
    common.add_argument("--out", type=Path, help="a Markdown file for the table")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    command = commands.add_parser("objectives", parents=[common], help="forward and backward pass of each objective")
    command.add_argument("--shapes", nargs="+", default=SHAPES, metavar="NxC", help="of the logits")
    command = commands.add_parser("step", parents=[common], help="Tent, against a plain script and a forward pass")
    command.add_argument("--batches", type=int, default=10, help="of a run")
    command.add_argument("--precisions", nargs="+", choices=PRECISIONS, help="default: all of the device")
    command.add_argument("--sizes", nargs="+", type=int, choices=(32, 224), default=[32, 224], help="of the images")
    command = commands.add_parser("profile", parents=[common], help="what a step of Tent and a forward pass consist of")
    command.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=["fp32", "bf16"])
    command.add_argument("--sizes", nargs="+", type=int, choices=(32, 224), default=[32, 224], help="of the images")
    command = commands.add_parser("curves", parents=[common], help="steps over batch size, classes, pixels")
    command.add_argument("--batches", nargs="+", type=int, default=[2, 8, 32, 64, 128, 256], help="images")
    command.add_argument("--classes", nargs="+", type=int, default=[10, 100, 1000, 10000])
    command.add_argument("--pixels", nargs="+", type=int, default=[64, 128, 224], help="more than 32")
    commands.add_parser("start", parents=[common], help="seconds of commands that only start")
    command = commands.add_parser("methods", parents=[common], help="a batch of each method, time and memory")
    command.add_argument("--model", default="resnet18", help="of timm, with random weights")
    command.add_argument("--batch", type=int, default=64, help="images")
    command.add_argument("--size", type=int, default=64, help="of the images, in pixels")
    command.add_argument("--methods", nargs="+", default=METHODS, help="default: all")
    command = commands.add_parser("corruptions", parents=[common], help="images per second of each corruption")
    command.add_argument("--scales", nargs="+", type=int, choices=SCALES, default=list(SCALES))
    command.add_argument("--batch", type=int, default=64, help="images of 32 pixels; of larger ones as many pixels")
    command.add_argument("--severity", type=int, default=3)
    command.add_argument("--corruptions", nargs="+", choices=CORRUPTIONS, default=CORRUPTIONS, metavar="NAME")
    command = commands.add_parser("stream", parents=[common], help="images per second up to a batch on the device")
    command.add_argument("--root", type=Path, help="folder of <class>/*.JPEG, 224 pixels; default: some are made")
    command.add_argument("--images", type=int, default=4000, help="in a pass; the folder's come again and again")
    command.add_argument("--batch", type=int, default=64, help="images")
    command.add_argument("--workers", type=int, default=2, help="of the loaders")
    command = commands.add_parser("sweep", parents=[common], help="the runs of a sweep, as commands and as one sweep")
    command.add_argument("--words", nargs="+", default=SWEEP, help="of the sweep, as after tta -m")
    command = commands.add_parser("compare", parents=[common], help="seconds of tta-compare on many finished runs")
    command.add_argument("--runs", type=int, default=1000, help="that are made in a temporary folder, 0.5 MB each")
    return parser


def objectives(device: torch.device, rounds: int, shapes: Sequence[tuple[int, ...]]) -> list[str]:
    """Forward and backward pass of each objective, as multiples of that of EM."""
    from objective_speed import candidates, step_of

    columns = {}
    for shape in shapes:
        z = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
        steps = {name: step_of(make().to(device), z) for name, make in candidates().items()}
        columns[shape] = medians(steps, device, rounds)
    rows = {"EM": [f"{1e3 * column['EM']:.3f} ms" for column in columns.values()]}
    for name in list(candidates())[1:]:
        rows[name] = [f"{column[name] / column['EM']:.2f}" for column in columns.values()]
    title = "Forward and backward pass on logits N x C, as multiples of EM's."
    head = ("", *(f"{n} x {c}" for n, c in shapes))
    return [title, "", *_table(head, *((name, *cells) for name, cells in rows.items()))]


def step(
    sizes: Sequence[int], batches: int, precisions: Sequence[str], threads: int, device: torch.device, rounds: int
) -> list[str]:
    """Runs of Tent against a plain script's; a step against a forward pass, AdaDEM against EM, and the machine."""
    from step_speed import SHAPES, outside, runs, steps

    shapes = {name: shape for name, shape in SHAPES.items() if shape.size in sizes}
    columns: list[dict[str, str]] = []
    for shape in shapes.values():
        column = runs(shape, batches, precisions, threads, device, rounds)
        column["of a run, outside its steps"] = outside(shape, batches, device)
        for precision in precisions:
            column |= {f"{name}, {precision}": cell for name, cell in steps(shape, device, precision, rounds).items()}
        columns.append(column)
    title = f"Tent with EM: runs of {batches} batches, from the first to the last row written, and single steps."
    rows = [(name, *(column[name] for column in columns)) for name in columns[0]]
    return [title, "", *_table(("", *shapes), *rows)]


def profile(sizes: Sequence[int], precisions: Sequence[str], device: torch.device, rounds: int) -> list[str]:
    """Milliseconds of each kind of work in a forward pass and in a step."""
    import step_profile
    from step_speed import SHAPES

    lines = ["Milliseconds of each kind of work, and by how much a step has more, in forward passes."]
    for name, shape in SHAPES.items():
        for precision in precisions if shape.size in sizes else ():
            rows = step_profile.rows(shape, device, precision, rounds)
            lines += ["", f"{name}, {precision}:", "", *_table(("", "forward pass", "step of Tent", "more"), *rows)]
    return lines


def curves(values: Mapping[str, Sequence[int]], device: torch.device, rounds: int) -> list[str]:
    """Images per second of a step, as batch, classes and images grow."""
    import curve_speed

    lines = ["Images per second of steps of Tent in fp32; ratios are of seconds."]
    for title, rows in curve_speed.curves(values, device, rounds):
        lines += ["", f"{title}:", "", *_table(rows[0], *rows[1:])]
    return lines


def start(device: torch.device, rounds: int) -> list[str]:
    """Seconds from the start to the end of commands that do nothing else."""
    from start_speed import starts

    seconds = medians(starts(), device, rounds, warm_up=1)
    rows = [(f"`{name}`", f"{value:.2f}") for name, value in seconds.items()]
    return ["Seconds of a process, with warm files.", "", *_table(("command", "seconds"), *rows)]


def _table(head: Sequence[str], *rows: Sequence[str]) -> list[str]:
    """Lines of a Markdown table, whose numbers are flush right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(row)} |" for row in (head, rule, *rows)]


def methods(work: Workload, rounds: int, names: Sequence[str]) -> list[str]:
    """Time and memory of a batch of each method, as multiples of those of one forward pass of the frozen backbone."""
    candidates = {name: work.step(name) for name in (FORWARD, *names)}
    seconds = medians(candidates, work.device, rounds)
    peaks = {name: peak(work, name) for name in candidates}
    forward = f"{1e3 * seconds[FORWARD]:.1f} ms", f"{peaks[FORWARD] / 2**20:.0f} MiB"
    rows = [("forward pass", *forward)]
    rows += [(n, f"{seconds[n] / seconds[FORWARD]:.2f}", f"{peaks[n] / peaks[FORWARD]:.2f}") for n in names]
    title = (
        f"A batch of {work.batch} images of {work.size} pixels through {work.model}: time, and memory beyond that of "
        "the model and the method at rest, as multiples of one forward pass."
    )
    return [title, "", *_table(("", "time", "peak memory"), *rows)]


def corruptions(
    names: Sequence[str], scales: Sequence[int], device: torch.device, rounds: int, batch: int, severity: int
) -> list[str]:
    """Images per second of each corruption, ours against the recipe in NumPy and OpenCV, image by image on one core."""
    from corruption_speed import speeds

    heads = [word for size in scales for word in (f"{size} px: images/s", "recipe", "ratio")]
    rows: dict[str, list[str]] = {}
    ratios: dict[int, list[float]] = {size: [] for size in scales}
    for name in names:
        rows[name] = []
        for size in scales:
            ours, theirs = speeds(name, severity, size, max(2, batch * 32**2 // size**2), device, rounds)
            ratios[size].append(ours / theirs)
            rows[name] += [f"{ours:.0f}", f"{theirs:.0f}", f"{ours / theirs:.1f}"]
    for kind, mean in (("geometric", statistics.geometric_mean), ("arithmetic", statistics.mean)):
        rows[f"{kind} mean"] = [cell for size in scales for cell in ("", "", f"{mean(ratios[size]):.1f}")]
    second = "second" if device.type == "cuda" else "second of a core's time"
    title = f"Images per {second} at severity {severity}; ours in batches, the recipe image by image on one core."
    return [title, "", *_table(("", *heads), *((name, *cells) for name, cells in rows.items()))]


def stream(root: Path | None, count: int, batch: int, workers: int, device: torch.device, rounds: int) -> list[str]:
    """Images per second of our streams, and of the loops that they take the place of."""
    from stream_speed import folder_of_images, passes_over_arrays, passes_over_files

    with folder_of_images(root) as folder, tempfile.TemporaryDirectory() as cache:
        floats, as_bytes = passes_over_files(folder, count, batch, workers, device, Path(cache))
        groups = [medians(ways, device, rounds, warm_up=1) for ways in (floats, as_bytes)]
    groups.append(medians(passes_over_arrays(count, batch, device), device, rounds, warm_up=1))
    title = (
        f"Images per second up to a batch of {batch} on the device: {count} images of 224 pixels in JPEG files, read "
        f"by {workers} workers, as normalised floats (CenterCrop, ToTensor and Normalize in theirs) and as bytes "
        "(CenterCrop and PILToTensor), which a GPU is given and turns into floats itself; and as many images of 32 "
        "pixels in memory, as normalised floats."
    )
    rows: list[tuple[str, ...]] = []
    for seconds in groups:
        first = next(iter(seconds.values()))
        rows += [(name, f"{count / value:.0f}", f"{first / value:.2f}") for name, value in seconds.items()]
    return [title, "", *_table(("", "images/s", "ratio"), *rows)]


def sweep(words: Sequence[str], name: str, threads: int, device: torch.device, rounds: int) -> list[str]:
    """Seconds of the runs of a sweep, and how many times as fast they are as commands of their own."""
    from sweep_speed import ways_to_run

    count, ways = ways_to_run(words, name, threads)
    next(reversed(ways.values()))()  # what is made once, as the data of the demo
    seconds = medians(ways, device, rounds, warm_up=0)
    first = next(iter(seconds.values()))
    rows = [(way, f"{value:.1f}", f"{first / value:.2f}") for way, value in seconds.items()]
    title = (
        f"The {count} runs of `tta -m {shlex.join(words)}`, from the start of the first process to the end of the last."
    )
    return [title, "", *_table((f"{count} runs as", "seconds", "ratio"), *rows)]


def compare(number: int, device: torch.device, rounds: int) -> list[str]:
    """Seconds of tta-compare on finished runs, beside those of a program that only reads them."""
    from compare_speed import BATCH, CLASSES, IMAGES, ways_to_read, write_runs

    with tempfile.TemporaryDirectory() as runs:
        write_runs(Path(runs), number)
        seconds = medians(ways_to_read(Path(runs)), device, rounds, warm_up=1)
    first = next(iter(seconds.values()))
    rows = [(name, f"{s:.2f}", f"{number / s:.0f}", f"{s / first:.2f}") for name, s in seconds.items()]
    title = (
        f"{number} finished runs of ImageNet-C ({len(BENCHMARK)} corruptions of {IMAGES} images in batches of {BATCH}, "
        f"{CLASSES} classes) compared from the shell, start of the process included; seconds as multiples of those "
        "that reading summary.json and batches.csv of each run takes."
    )
    return [title, "", *_table(("", "seconds", "runs/s", "ratio"), *rows)]


if __name__ == "__main__":
    main()
