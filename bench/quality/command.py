"""``python -m bench quality``: score seeds, peers, SSA with its options and controls against masks or boxes.

Thresholds are chosen on every other image and the score is that of the images left, both ways round. Masks: mean
foreground IoU, beside it the average precision of a map's pixels, which takes no threshold. Boxes: mean accuracy at
IoU 30, 50 and 70 %, each with its own threshold: MaxBoxAccV2 in wsolevaluation's convention (Choe et al., CVPR 2020).
For both there is also the score at the threshold that each map gives by itself, which no truth has chosen. Intervals
are 95 % of a bootstrap over images of the differences, image by image; the thresholds stay those of the whole run.
Times are of the process's CPU clock, beyond one forward pass, medians over images.

Controls: a blob in the centre, which sees no image, alone and as SSA's seed; and as SSA's seed the map of a class that
is not in the image. What SSA gains from those it gains by figure and ground, not by knowing the class.
"""

from __future__ import annotations

import fnmatch
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bench import measure
from bench.command import parser_of
from bench.quality import examples, networks, report
from bench.quality.methods import BASELINE, METHODS, SEED, of_affinity

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from bench.quality.examples import Example
    from bench.quality.methods import Method


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command's arguments."""
    parser = parser_of("quality", __doc__)
    source = parser.add_mutually_exclusive_group(required=True).add_argument
    source("--images", type=Path, metavar="FOLDER", help="score maps of these images")
    source("--scenes", type=int, metavar="N", help="or of N generated scenes, with the masks of their classes")
    source("--show", type=Path, nargs="+", metavar="FILE", help="or print saved figures")
    truth = parser.add_mutually_exclusive_group().add_argument
    truth("--masks", type=Path, metavar="FOLDER", help="masks named as the images; object: above half of the largest")
    truth("--boxes", type=Path, metavar="FILE", help="lines name,x0,y0,x1,y1 in pixels, as wsolevaluation's")
    add = parser.add_argument
    repeated: Any = {"action": "append", "default": []}
    add("--object", type=int, metavar="N", help="masks are label maps, as VOC's: N is the object, 255 is not counted")
    add("--classes", default="predicted", help="an index, a file of lines name,index, or %(default)r")
    add("--limit", type=int, metavar="N", help="only N images, evenly spread")
    add("--title", help="what the images are, for tables (default: the folder)")
    of_network = "a name as for ssa-fast run; module:function that returns (network, preprocess); or scenes=FILE"
    add("--model", **repeated, help=f"{of_network} of python -m bench.quality.networks; may be repeated, as the next")
    add("--only", **repeated, metavar="ROW", help="only such rows; * matches anything")
    add("--without", **repeated, metavar="ROW", help="not such rows, likewise")
    add("--affinity", **repeated, metavar="TEXT", help="one more row: that of signed stages; after 'all:', of all")
    add("--baseline", default=BASELINE, metavar="ROW", help="the row to compare with (%(default)s)")
    add("--goal", metavar="SCORE", help="that the best setting should reach, or +GAIN over the seed")
    add("--stages", action="store_true", help="also what an affinity depends on, stage by stage")
    return parser


def main(given: Sequence[str]) -> int:
    """Measure and print; with ``--save`` keep the figures and the machine as JSON."""
    parser, rows = arguments(), list[report.Row]()
    options = parser.parse_args(given)
    try:
        for path in options.show or ():
            rows += json.loads(path.read_text(encoding="utf-8"))["rows"]
        if not options.show:
            chosen, methods = _examples(options), _methods(options)
            for model in options.model:
                rows += _measured(model, chosen, methods, options)
                if options.save:  # what is measured so far
                    measure.save(options.save, rows, command=measure.command_line(["quality", *given]))
            print(measure.describe(measure.machine()))
    except (ValueError, OSError, ImportError) as error:
        parser.error(str(error))
    print(report.markdown(rows), "", sep="\n")
    for row in (row for row in rows if report.BEST in row or "stage" in row):
        print(json.dumps(row, ensure_ascii=False))
    return 0


def _examples(options: argparse.Namespace) -> list[Example]:
    """Return the images that were asked for."""
    if not options.model or (options.images and not (options.masks or options.boxes)):
        raise ValueError("masks, boxes, model: expected --masks or --boxes beside --images, and --model; give them")
    if options.images is None:
        found = examples.from_scenes(options.scenes)
    else:
        truths = examples.masks(options.masks, options.object) if options.masks else examples.boxes(options.boxes)
        found = examples.from_folder(options.images, options.classes, truths)
    if options.limit is not None and options.limit < len(found):
        found = [found[at * len(found) // options.limit] for at in range(options.limit)]
    if len(found) < 2:
        raise ValueError(f"images: expected at least 2, a half to choose thresholds on, got {len(found)}")
    return found


def _methods(options: argparse.Namespace) -> dict[str, Method]:
    """Return the rows that were asked for, by name."""
    methods = METHODS | {text: of_affinity(text) for text in options.affinity}
    for pattern in [*options.only, *options.without, options.baseline]:
        if not fnmatch.filter(methods, pattern):
            raise ValueError(f"only, without, baseline: expected rows of {', '.join(methods)}, got {pattern!r}")
    kept = {name for pattern in options.only or ["*"] for name in fnmatch.filter(methods, pattern)}
    kept -= {name for pattern in options.without for name in fnmatch.filter(methods, pattern)}
    kept |= {SEED, options.baseline, *options.affinity}
    return {name: method for name, method in methods.items() if name in kept}


@torch.no_grad()
def _measured(
    model: str, chosen: Sequence[Example], methods: dict[str, Method], options: argparse.Namespace
) -> list[report.Row]:
    """Return what the figures of one network are figures of, and its rows.

    A row that was not named is left out, with the reason, if the network or the installation cannot have it.
    """
    network, images, left_out = networks.load(model), list[report.Row](), dict[str, str]()
    needed = {SEED, options.baseline, *options.only, *options.affinity}
    for example in measure.paced(chosen, f"quality {model}"):
        sample = networks.Sample(network, example.read(), example.truths)
        scorers = [truth(sample) for truth in example.truths.values()]
        times, scores = dict[str, float](), dict[str, list[examples.Scores]]()
        for name in [each for each in methods if each not in left_out]:
            try:
                maps, times[name] = methods[name].make(sample)
            except (ValueError, ModuleNotFoundError) as error:
                if images or name in needed:
                    raise
                left_out[name] = str(error)
            else:
                cams = maps[0].float().numpy()
                scores[name] = [scorer(cam) for scorer, cam in zip(scorers, cams, strict=True)]
        row: report.Row = {"forward_ms": sample.forward_ms, "right": sample.predicted in sample.classes[0]}
        row["stages"] = {name: networks.describe_stage(each) for name, each in sample.stages.items() if options.stages}
        images.append(row | {"cpu_ms": times, "scores": scores})
    head = {
        "title": options.title or str(options.images or "scenes"),
        "images": len(images),
        "maps": sum(len(each["scores"][SEED]) for each in images),
        "rows_tried": len(methods) - len(left_out),
        "class_is_predicted": sum(each["right"] for each in images),
        "metric": "box accuracy at IoU 30/50/70" if options.boxes else "foreground IoU",
        "forward_cpu_ms": np.median([each["forward_ms"] for each in images]),
        "baseline": options.baseline,
        "left_out": left_out,
    }
    methods = {name: method for name, method in methods.items() if name not in left_out}
    rows = [head, *report.summarise(images, methods, options.baseline, options.goal)]
    return [{"model": model} | report.plain(row) for row in rows]
