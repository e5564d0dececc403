"""An exported dataset in FiftyOne: its own importer reads it, and its exporter's file is read back.

FiftyOne keeps datasets in MongoDB, which no package index carries; its importers and exporters run without it.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from vidlex.service.client.client import Client
from vidlex.service.exports import fiftyone
from vidlex.service.exports.tagged import from_json

# The importer and exporter of fo.types.FiftyOneTemporalDetectionDataset.
SCRIPT = """
import json, sys
import fiftyone.utils.data as foud
source, target = sys.argv[1:]
importer = foud.FiftyOneTemporalDetectionDatasetImporter(dataset_dir=source, data_path="data.json")
exporter = foud.FiftyOneTemporalDetectionDatasetExporter(export_dir=target, export_media=False, abs_paths=True)
found = []
with importer, exporter:
    for path, metadata, labels, frames in importer:
        found.append([path, [[d.label, list(d.support), d.confidence] for d in labels.detections]])
        labels.detections = [d for d in labels.detections if d.label != "blue"]
        exporter.export_sample(path, labels, frames, metadata=metadata)
print(json.dumps(found))
"""


def try_fiftyone(python: Path, client: Client, video: Path, folder: Path) -> None:
    answer = client.classify(video, top_k=0, aggregate_by="segments", segment_ms=1000)
    tagged = from_json(answer.model_dump(mode="json"), uri=str(video))
    written, exported = folder / "fiftyone", folder / "fiftyone-exported"
    fiftyone.write_dataset(written, [tagged])
    command = [python, "-c", SCRIPT, written, exported]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={"HOME": str(folder)})
    assert done.returncode == 0, done.stderr
    ((path, detections),) = json.loads(done.stdout.splitlines()[-1])
    assert path == str(video)
    expected = [[label.name, list(tagged.frames(s)), s.score] for label in tagged.matched for s in label.stretches]
    assert detections == expected and {found[0] for found in detections} == {"red", "blue"}, detections
    (exported / fiftyone.FACTS_FILE).write_bytes((written / fiftyone.FACTS_FILE).read_bytes())
    corrections = [(found.name, found.right) for found in fiftyone.read_corrections(exported)]
    assert corrections[:2] == [("red", True), ("blue", False)], corrections
    print(f"FiftyOne: {len(detections)} temporal detections imported, exported and read as corrections")
