"""Folders of more than 12 modules, and the one subject of each: data for `test_structure.py`."""

from __future__ import annotations

LARGE_FOLDERS = {
    "model/decode": "from a video file to sampled frames: which they are, and how they are read and shown",
    "model/sources": "training data: where videos and their labels come from, and how they are read",
    "model/train": "the paper's fine-tuning: its stages, what they share, and the baselines",
    "model/suite": "the experiment: its rows, their training, their report",
    "service/bench": "one benchmark per file, and how they are run",
    "service/bulk": "from the videos that a run names to the table of its results, one step per file",
    "service/client": "the client library: one resource of the HTTP interface per file, and how requests are sent",
    "service/commands": "one command or group of commands per file, and their output",
    "service/http": "the way of a request to its route and back",
    "service/routes": "one resource of the HTTP interface per file, and the views of its answers",
    "service/schemas": "bodies and answers of the HTTP interface, one resource per file",
    "service/labels/store": "the label store: one Redis structure or operation per file",
    "tests/attacks": "one kind of attack per file, against real servers and files",
    "tests/bulk": "tests of bulk runs and of `Tagger`, one part per file",
    "tests/decode": "tests of decoding and of the decode processes, one part per file",
    "tests/fuzz": "hostile files by subject, and how they are mutated and sent",
    "tests/http": "tests of requests and their answers, one group of requests per file",
    "tests/commands": "tests of the command line, one group of commands per file",
    "tests/jobs": "tests of the queue of jobs and of what works on them, one part per file",
    "tests/labels": "tests of the store, the index and the embedded server",
    "tests/model": "tests of the encoders and their checkpoints, one part per file",
    "tests/train": "tests of training, one part per file",
    "tests/support": "one helper per file",
}
