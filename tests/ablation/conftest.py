import pytest

from ablation_tools import run_queue, write_ablation_file


@pytest.fixture
def ablation_file(tmp_path):
    return write_ablation_file(tmp_path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The folder of a finished ablation, which tests only read; the file lies beside it."""
    folder = tmp_path_factory.mktemp("ablation")
    run_queue(write_ablation_file(folder), folder / "out")
    return folder / "out"
