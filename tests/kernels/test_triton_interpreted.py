"""Every Triton kernel over its op's cases, in Triton's interpreter."""

from __future__ import annotations

from pathlib import Path

import pytest
from flashjanus.engine.ops import all_ops
from interpreted import run_interpreted

pytest.importorskip("triton")
CASES = [
    f"{op.name}-{i}-{dtype}"
    for op in all_ops().values()
    if "triton" in op.implementations
    for i in range(len(op.cases))
    for dtype in ("float32", "float16")
]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float | str | None]:
    """What run_triton_interpreted.py says, by case."""
    program = Path(__file__).with_name("run_triton_interpreted.py")
    found: dict[str, float | str | None] = run_interpreted(program, tmp_path_factory.mktemp("interpreter"))
    return found


@pytest.mark.parametrize("case", CASES)
def test_interpreted_meets_the_reference(results: dict[str, float | str | None], case: str) -> None:
    error = results[case]
    if error is None:
        pytest.skip("the kernel does not serve this case")
    assert not isinstance(error, str), error
    assert error <= 1.0


def test_every_interpreted_kernel_serves_some_case(results: dict[str, float | str | None]) -> None:
    served = {case.rsplit("-", 2)[0] for case, error in results.items() if error is not None}
    assert served == {op.name for op in all_ops().values() if "triton" in op.implementations}
