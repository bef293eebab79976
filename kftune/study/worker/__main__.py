"""``python -m kftune.study.worker FD``."""

from __future__ import annotations

from kftune.study.worker import main

main()
