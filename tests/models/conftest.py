import pytest

from small_models import FAMILIES, make_student


@pytest.fixture(params=list(FAMILIES))
def family(request):
    return request.param


@pytest.fixture
def student(family):
    return make_student(family)
