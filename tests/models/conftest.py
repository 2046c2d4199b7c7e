import pytest

from small_models import FAMILIES, VARIANTS, make_student


@pytest.fixture(params=list(FAMILIES))
def family(request):
    return request.param


@pytest.fixture(params=list(VARIANTS), scope="session")
def student(request):
    """One student of each mixer, placement and family in float64; shared by all tests, which leave it as it is."""
    return make_student(**VARIANTS[request.param]).double()
