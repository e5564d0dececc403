"""One folder of clips for all tests of unusual files."""

from __future__ import annotations

import pytest

from support.video_cases_files import Clips


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Clips:
    return Clips(tmp_path_factory.mktemp("clips"))
