"""kftune's tables. Optuna's (``studies``, ``trials``, …) stand in the same database and are Optuna's own; there
is deleted what a run that counts for nothing has reported, and what people delete, rename, drop or have made again.

A change here needs a migration in ``migrations/versions``; a test compares the two.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, MetaData, String, UniqueConstraint, false
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from kftune.storage._types import AnyText, Json, Real, UtcDateTime

__all__ = ["Base", "MicroBatch", "Point", "Run", "Session", "Study"]

_NAME_LENGTH = 512  # of Optuna's study names


class Base(DeclarativeBase):
    """Declarative base; constraints have names, so that later migrations can refer to them."""

    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        }
    )


class Study(Base):
    """See :class:`kftune.storage.records.StudyRecord`; joined to Optuna's table by name."""

    __tablename__ = "kftune_study"

    id: Mapped[int] = mapped_column(primary_key=True)
    study: Mapped[str] = mapped_column(String(_NAME_LENGTH), unique=True)
    file_name: Mapped[str] = mapped_column(String(_NAME_LENGTH), index=True)
    problem: Mapped[str] = mapped_column(String(_NAME_LENGTH))
    optimizer: Mapped[str] = mapped_column(String(_NAME_LENGTH))
    identity: Mapped[dict[str, Any]] = mapped_column(Json)
    config: Mapped[dict[str, Any]] = mapped_column(Json)
    space: Mapped[dict[str, Any]] = mapped_column(Json)
    n_trials: Mapped[int]
    n_train: Mapped[int | None]


class Session(Base):
    """See :class:`kftune.storage.records.SessionRecord`."""

    __tablename__ = "kftune_session"

    id: Mapped[int] = mapped_column(primary_key=True)
    file_name: Mapped[str] = mapped_column(String(_NAME_LENGTH), index=True)
    started_at: Mapped[datetime] = mapped_column(UtcDateTime)
    ended_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    host: Mapped[str] = mapped_column(AnyText)
    devices: Mapped[list[str]] = mapped_column(Json)
    versions: Mapped[dict[str, str]] = mapped_column(Json)
    command: Mapped[str] = mapped_column(AnyText)
    ledger: Mapped[dict[str, float]] = mapped_column(Json)


class Run(Base):
    """See :class:`kftune.storage.records.RunRecord` and :class:`kftune.results.RunResult`."""

    __tablename__ = "kftune_run"
    __table_args__ = (UniqueConstraint("study_id", "purpose", "budget_factor", "trial", "repeat", "attempt"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("kftune_study.id"))
    session_id: Mapped[int] = mapped_column(ForeignKey("kftune_session.id"), index=True)
    trial: Mapped[int]
    repeat: Mapped[int]
    attempt: Mapped[int]
    purpose: Mapped[str] = mapped_column(String(16), server_default="search")
    budget_factor: Mapped[float] = mapped_column(Real, server_default="1.0")
    superseded: Mapped[bool] = mapped_column(server_default=false())
    seed: Mapped[int] = mapped_column(BigInteger)
    params: Mapped[dict[str, Any]] = mapped_column(Json)
    device: Mapped[str] = mapped_column(AnyText)
    device_name: Mapped[str] = mapped_column(AnyText)
    started_at: Mapped[datetime] = mapped_column(UtcDateTime)
    wall_seconds: Mapped[float] = mapped_column(Real)
    outcome: Mapped[str] = mapped_column(String(32))
    message: Mapped[str] = mapped_column(AnyText)
    train_seconds: Mapped[float] = mapped_column(Real)
    overshoot_seconds: Mapped[float] = mapped_column(Real)
    evaluation_seconds: Mapped[float] = mapped_column(Real)
    setup_seconds: Mapped[float] = mapped_column(Real)
    warmup_seconds: Mapped[float] = mapped_column(Real)
    phase_seconds: Mapped[dict[str, float]] = mapped_column(Json)
    updates: Mapped[int] = mapped_column(BigInteger)
    examples: Mapped[int] = mapped_column(BigInteger)
    peak_memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    calibration: Mapped[dict[str, Any] | None] = mapped_column(Json)
    treatments: Mapped[dict[str, int] | None] = mapped_column(Json)

    points: Mapped[list[Point]] = relationship(order_by="Point.position", cascade="all, delete-orphan")


class Point(Base):
    """One evaluation on a run's curve; see :class:`kftune.results.CurvePoint`."""

    __tablename__ = "kftune_point"
    # Stored in the order of its key: a curve is read in one piece, and no second index is kept.
    __table_args__ = {"sqlite_with_rowid": False}  # noqa: RUF012 - the name is SQLAlchemy's

    run_id: Mapped[int] = mapped_column(ForeignKey("kftune_run.id"), primary_key=True, autoincrement=False)
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    train_seconds: Mapped[float] = mapped_column(Real)
    update: Mapped[int] = mapped_column(BigInteger)
    train_loss: Mapped[float] = mapped_column(Real)
    test_loss: Mapped[float] = mapped_column(Real)
    accuracy: Mapped[float | None] = mapped_column(Real)
    readings: Mapped[dict[str, float] | None] = mapped_column(Json)


class MicroBatch(Base):
    """A micro-batch size that was found by trying; see :meth:`kftune.storage.repository.Repository.micro_batch`."""

    __tablename__ = "kftune_micro_batch"

    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(AnyText, unique=True)
    size: Mapped[int]
    found_at: Mapped[datetime] = mapped_column(UtcDateTime)
