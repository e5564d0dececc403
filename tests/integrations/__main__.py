"""``make test-integrations``: exported files in the real Label Studio and FiftyOne, and Label Studio's ML backend.

Installs both programs into environments of their own (1.6 GB, some minutes the first time). Exit status 1 if a step
fails.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from integrations.environments import environment
from integrations.fiftyone_trial import try_fiftyone
from integrations.label_studio_trial import try_label_studio

from support.live import live_service
from support.paths import ROOT
from support.serving import colour_video
from vidlex.service.client.client import Client

LABEL_STUDIO, FIFTYONE = "label-studio==1.23.2", "fiftyone==1.22.1"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "integrations", help="of the environments")
    options = parser.parse_args()
    label_studio, fiftyone = environment(options.folder, LABEL_STUDIO), environment(options.folder, FIFTYONE)
    with tempfile.TemporaryDirectory(prefix="vidlex-integrations-") as name:
        folder = Path(name)
        video = colour_video(folder / "red-blue.mp4", "red", "red", "blue", "blue")
        with live_service(folder / "data") as url, Client(url) as client:
            client.create_labels(["red", "blue", "green"])
            try_fiftyone(fiftyone, client, video, folder)
            try_label_studio(label_studio, client, video, folder)
    print("all passed")


if __name__ == "__main__":
    main()
