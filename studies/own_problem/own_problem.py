"""The same study from Python: ``python own_problem.py``."""

from pathlib import Path

import kftune

if __name__ == "__main__":
    results = kftune.run_study(Path(__file__).with_name("own_problem.yaml"))
    print(results.best())
    print(results.runs().groupby("optimizer")[["train_seconds", "updates"]].mean())
