"""VLMEvalKit's run.py, which knows JanusFlow as well: `run.py VLMEVALKIT/run.py --data MMStar --model JanusFlow-1.3B`.

Nothing in VLMEvalKit is changed.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def main() -> None:
    if len(sys.argv) < 2 or not Path(sys.argv[1]).is_file():
        raise SystemExit(f"usage: {sys.argv[0]} VLMEVALKIT/run.py [its options]; expected its run.py as first argument")
    script = Path(sys.argv.pop(1)).resolve()
    sys.path[:0] = [str(script.parent), str(Path(__file__).resolve().parent)]
    spec = importlib.util.spec_from_file_location("vlmevalkit_run", script)
    assert spec is not None
    assert spec.loader is not None
    run = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = run
    spec.loader.exec_module(run)  # says which GPUs this process sees, which must come before torch

    import janusflow
    import vlmeval.vlm

    run.supported_VLM.update(janusflow.MODELS)
    vlmeval.vlm.JanusFlow = janusflow.JanusFlow  # for files of --config, which name classes
    run.load_env()
    run.main()


if __name__ == "__main__":
    main()
