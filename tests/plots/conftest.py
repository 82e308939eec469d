import pytest
from matplotlib.figure import Figure


@pytest.fixture
def figures(monkeypatch):
    """The figures that were saved, in order."""
    saved = []

    def save(figure, path, **options):
        original(figure, path, **options)
        saved.append(figure)

    original = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", save)
    return saved
