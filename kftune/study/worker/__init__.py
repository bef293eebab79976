"""The worker process: trains the runs it is sent, one after another, and streams their curves back.

Started as ``python -m kftune.study.worker FD``; ``FD`` is its end of a socket pair. It reads pickled
:class:`~kftune.results.RunSpec` objects and answers with :class:`Ready`, :class:`Point`, :class:`Question` and
:class:`Done`. A run that is judged asks after every point but the first and the last whether it may go on, and waits
for the :class:`Verdict` with the training clock stopped.
It ends when the other end closes, also in the middle of a run: a runner that dies leaves no worker behind, and a worker
that ends, however it does, leaves no process behind that its runs have started.
"""

from __future__ import annotations

from kftune.study.worker._messages import Done, Point, Question, Ready, Verdict
from kftune.study.worker._serving import main
from kftune.study.worker._session import end_session

__all__ = ["Done", "Point", "Question", "Ready", "Verdict", "end_session", "main"]
