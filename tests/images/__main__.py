"""``make test-images``: builds the image, runs compose with it, and writes sizes and times to docker/RESULTS.md.

Docker with Compose v2 is used where it answers, also through DOCKER_HOST. Otherwise an engine is made in a folder from
Debian packages (root, Linux, about 20 GB of disk). Images that no registry serves are made from packages; the output
and docker/RESULTS.md name them. Exit status 1 if a step fails; containers and volumes are removed, images are kept.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from pathlib import Path

from images.build import build, change_one_line, copy_tree, examine
from images.engine import Engine, EngineError, find_engine
from images.results import Results
from images.standins import provide_base, provide_others, recorded
from images.trial import Trial
from support.paths import ROOT

RESULTS = ROOT / "docker" / "RESULTS.md"
STAGES = ("build", "trial")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp/vidlex-images"), help="of the engine")
    parser.add_argument("--target", choices=("cpu", "cuda"), default="", help="default: cpu, else cuda")
    parser.add_argument("--only", choices=STAGES, help="one stage; `trial` takes the images of an earlier run")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    results, began = Results(), time.monotonic()
    try:
        engine = find_engine(options.folder)
        results.engine = "made from Debian packages" if engine.is_made else "of the machine"
        if options.only != "trial":
            build_stage(engine, options.folder, options.target, results)
        results.stand_ins = recorded(engine)
        if options.only != "build":
            engine.start(can_reach_out=False)
            Trial(engine, options.folder, results).run()
    except EngineError as error:
        print(f"\nfailed: {error}", file=sys.stderr)
        return 1
    finally:
        if "engine" in locals():
            engine.stop()
    results.seconds["everything"] = time.monotonic() - began
    if options.only is None:
        RESULTS.write_text(results.document(), encoding="utf-8")
        print(f"results: {RESULTS}")
    return 0


def build_stage(engine: Engine, folder: Path, target: str, results: Results) -> None:
    source = folder / "tree"
    copy_tree(source)
    began = time.monotonic()
    engine.start(can_reach_out=True)
    provide_base(engine)
    provide_others(engine)
    results.time("engine and images of others", began)
    tries = (target,) if target else ("cpu", "cuda")
    for name in tries:
        try:
            first = build(engine, source, name, "vidlex:first", log=folder / "build.log")
            break
        except EngineError:
            if name == tries[-1]:
                raise
            (folder / "build.log").rename(folder / f"build-{name}.log")
            print(f"  the target {name} cannot be built here, see build-{name}.log; next: {tries[-1]}", flush=True)
    results.target = name
    num_cached = len(re.findall(r"^#\d+ CACHED", (folder / "build.log").read_text(), re.MULTILINE))
    results.seconds[f"image, {num_cached} steps from the build cache"] = first.seconds
    results.layers = first.layers
    results.facts = examine(engine, "vidlex:first")
    change_one_line(source)
    second = build(engine, source, name, "vidlex:second", log=folder / "build-second.log")
    results.seconds["image after a change of one line"] = second.seconds
    if second.layers[:-1] != first.layers[:-1] or second.layers[-1] == first.layers[-1]:
        raise EngineError(f"a change of one line changes more than the last layer: {first.layers}, {second.layers}")
    results.changed_bytes = second.layers[-1][1]
    copy_tree(source)
    print(
        f"  image {sum(size for _, size in first.layers) / 1e9:.2f} GB; one line: {results.changed_bytes / 1e6:.1f} MB"
    )


if __name__ == "__main__":
    sys.exit(main())
