"""A Postgres whose clock a test steps while it runs, by libfaketime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from worker.stack.postgres import PostgresServer
from worker.stack.process import Process


def library() -> Path | None:
    """libfaketime, where it is installed: `apt-get install faketime`."""
    return next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)


class ShiftedPostgres(PostgresServer):
    """A Postgres that is started with a clock which is `shift` seconds ahead; 0 for none.

    Unlike one whose clock steps while it runs it may be busy for long: libfaketime reads no file in
    it, which it would also do, and allocate memory for, in Postgres's signal handlers.
    """

    shift = 0.0

    def _build(self, port: int) -> Process:
        process = super()._build(port)
        if self.shift:
            process.argv[:0] = [
                "/usr/bin/env",
                f"LD_PRELOAD={library()}",
                f"FAKETIME={self.shift:+.0f}s",
                "FAKETIME_DONT_FAKE_MONOTONIC=1",
            ]
        return process


class SteppingPostgres(PostgresServer):
    """For a short test: `PostgresServer` with a wall clock of its own. Its steady clocks do not
    step, as those of a machine do not.

    Args:
        data, port, options: as of `PostgresServer`.
    """

    def __init__(
        self, data: Path, *, port: int | None = None, options: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(data, port=port, options=options)
        # Beside the folder, which is its owner's only: Postgres may be another user.
        self._offset = self.data.with_name(f"{self.data.name}.clock")
        self.step_to(0)

    def step_to(self, seconds: float) -> None:
        """Let the clock be so many seconds ahead of the machine's, from now on."""
        draft = self._offset.with_suffix(".new")
        draft.write_text(f"{seconds:+.3f}")
        draft.chmod(0o644)
        draft.replace(self._offset)

    def _build(self, port: int) -> Process:
        process = super()._build(port)
        found = library()
        assert found is not None, "libfaketime is missing; run: apt-get install faketime"
        process.argv[:0] = [
            "/usr/bin/env",
            f"LD_PRELOAD={found}",
            f"FAKETIME_TIMESTAMP_FILE={self._offset}",
            "FAKETIME_NO_CACHE=1",
            "FAKETIME_DONT_FAKE_MONOTONIC=1",
        ]
        return process
