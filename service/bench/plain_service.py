"""The reference for `service.bench.classify`: a minimal service of FastAPI, decord and open_clip, one frame at a time.

Run as ``python -m vidlex.service.bench.plain_service FOLDER`` with a folder in open_clip's layout. It prints its
address when it listens. It has no label store, no limits and no isolation.
"""

from __future__ import annotations

import socket
import sys
import tempfile
from typing import Any

import numpy as np
import open_clip
import torch
import uvicorn
from fastapi import FastAPI, UploadFile
from PIL import Image

from vidlex.service.bench.decord_reference import load_decord
from vidlex.service.bench.load import LABELS

NUM_FRAMES = 8


def create_app(folder: str) -> FastAPI:
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model.eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    with torch.inference_mode():
        labels = model.encode_text(tokenizer([f"a video of {name}" for name in LABELS]), normalize=True)
    decord = load_decord()  # a plain `import decord` can crash torch on machines without a GPU
    app = FastAPI()

    @app.post("/classify")
    def classify(file: UploadFile) -> dict[str, Any]:
        with tempfile.NamedTemporaryFile(suffix=".mp4") as copy:
            copy.write(file.file.read())
            copy.flush()
            reader = decord.VideoReader(copy.name)
            features = []
            with torch.inference_mode():
                for index in np.linspace(0, len(reader) - 1, NUM_FRAMES).astype(int):
                    picture = Image.fromarray(reader[int(index)].asnumpy())
                    features.append(model.encode_image(preprocess(picture)[None], normalize=True))
                video = torch.cat(features).mean(0, keepdim=True)
                scores = (100 * video @ labels.T).softmax(-1)[0].tolist()
        return {"labels": [{"name": name, "score": score} for name, score in zip(LABELS, scores, strict=True)]}

    return app


def main() -> None:
    app = create_app(sys.argv[1])
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="error")).run([listener])


if __name__ == "__main__":
    main()
