"""Every setting, read from the environment once; no other module reads the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from worker.addresses import check_schema_name, masked, postgres_address, redis_address
from worker.errors import InvalidSettings

#: What the variable of a setting begins with, unless its field names another one.
_PREFIX: Final = "WORKER_"
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


class Settings(BaseSettings):
    """The effective configuration: typed and frozen. Field descriptions are the documentation.

    Raises (from `Settings.load`):
        InvalidSettings: with every fault in one report.
    """

    model_config = SettingsConfigDict(
        frozen=True, extra="ignore", populate_by_name=True, env_prefix=_PREFIX
    )

    database_url: SecretStr = Field(
        validation_alias="DATABASE_URL",
        description="Postgres, the ledger: postgresql://user:password@host:port/name",
    )
    redis_url: SecretStr = Field(
        validation_alias="REDIS_URL",
        description="Redis, the doorbell: redis://:password@host:port/0, rediss:// or sentinel://",
    )
    ledger_schema: Annotated[str, AfterValidator(check_schema_name)] = Field(
        default="ledger",
        validation_alias=f"{_PREFIX}SCHEMA",
        description="the Postgres schema that holds the tables; `worker migrate` makes it",
    )
    tasks: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="modules with @shared_task tasks, separated by commas",
    )
    queue: str = Field(
        default="celery",
        min_length=1,
        max_length=255,
        description="the queue of a job that names none",
    )
    pool: Literal["threads", "prefork", "solo"] = Field(
        default="threads",
        description="how a worker runs jobs; threads for I/O, prefork for CPU or hard time limits",
    )
    concurrency: int = Field(
        default=0,
        ge=0,
        le=1000,
        description="jobs that one worker runs at once; 0: 64 in threads, one a core in prefork",
    )
    lease_seconds: float = Field(
        default=15.0,
        ge=1.0,
        le=3600.0,
        description="seconds without a renewal after which a worker's jobs are rescued",
    )
    drain_seconds: float = Field(
        default=30.0,
        ge=0.0,
        le=86400.0,
        description="seconds that running jobs are given to finish at a shutdown",
    )
    lost_limit: int = Field(
        default=3,
        ge=1,
        le=100,
        description="attempts lost with their process after which a job is failed as poison",
    )
    ring_grace_seconds: float = Field(
        default=5.0,
        ge=0.1,
        le=3600.0,
        description="seconds after which a popped but unclaimed doorbell counts as lost",
    )
    payload_max_bytes: int = Field(
        default=1 << 20,
        ge=1024,
        le=1 << 28,
        description="largest serialized arguments of a job",
    )
    result_max_bytes: int = Field(
        default=1 << 20,
        ge=1024,
        le=1 << 28,
        description="largest serialized result of a job",
    )
    adopt_foreign: bool = Field(
        default=True,
        description="take jobs from producers that do not know the ledger; trusts writers to Redis",
    )
    keep_succeeded_days: float = Field(
        default=7.0, gt=0, le=36500, description="days that succeeded jobs are kept"
    )
    keep_failed_days: float = Field(
        default=30.0,
        gt=0,
        le=36500,
        description="days that failed and cancelled jobs are kept",
    )
    connect_timeout_seconds: float = Field(
        default=5.0,
        ge=1.0,
        le=60.0,
        description="seconds to wait for a connection to a store before it counts as away",
    )
    trust_postgres_storage: bool = Field(
        default=False, description="use a Postgres with fsync or full_page_writes off: it is safe"
    )
    schema_wait_seconds: float = Field(
        default=60.0,
        ge=0.0,
        le=86400.0,
        description="seconds that a worker and a keeper wait at the start for `worker migrate`",
    )
    http_allow_private: bool = Field(
        default=False,
        description="let http.request reach private, loopback and link-local addresses",
    )
    http_response_max_bytes: int = Field(
        default=1 << 16,
        ge=0,
        le=1 << 28,
        description="how much of a response body http.request keeps",
    )
    http_signing_secret: SecretStr | None = Field(
        default=None,
        description="secret that http.request signs bodies with, by HMAC-SHA256",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info",
        description="how much is logged",
    )
    health_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="port of /livez and /readyz on a worker and a keeper; 0 chooses a free one",
    )
    health_host: str | None = Field(
        default=None,
        description="address that WORKER_HEALTH_PORT listens at; all of the machine's when not set",
    )
    isolated: str | None = Field(
        default=None,
        pattern=r"^[1-9]\d*:[\w-]+(:\d+)?$",  # see `worker.runtime.tether.Origin`
        description="set by a worker for the process that it starts to run suspects alone",
    )

    @field_validator("tasks", mode="before")
    @classmethod
    def _split_tasks(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = tuple(part.strip() for part in value.split(",") if part.strip())
        for name in value:
            if not _MODULE.fullmatch(name):
                raise ValueError(f"{name!r} is no module name")
        return value

    @field_validator("health_port", "health_host", "isolated", mode="before")
    @classmethod
    def _empty_is_unset(cls, value: Any) -> Any:
        return None if value == "" else value

    @field_validator("log_level", mode="before")
    @classmethod
    def _lower(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @field_validator("database_url", "redis_url", mode="after")
    @classmethod
    def _read_address(cls, value: SecretStr, info: ValidationInfo) -> SecretStr:
        read = postgres_address if info.field_name == "database_url" else redis_address
        return SecretStr(read(value.get_secret_value()))

    @model_validator(mode="after")
    def _fits_together(self) -> Settings:
        if self.isolated and self.pool == "threads":
            object.__setattr__(self, "pool", "prefork")  # a suspect runs alone in a child process
        if not self.concurrency:
            cores = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)
            usual = {"threads": 64, "prefork": len(cores), "solo": 1}
            object.__setattr__(self, "concurrency", usual[self.pool])
        return self

    @classmethod
    def load(
        cls, *, otherwise: Mapping[str, Callable[[], Any]] | None = None, **overrides: Any
    ) -> Settings:
        """The settings of this process's environment, and of the files that its `…_FILE` name.

        Args:
            otherwise: by field name, what is asked for a value when its variable is not set.
            overrides: values by field name that win over the environment.

        Raises:
            InvalidSettings: naming every variable at fault, what was given and what is expected.
        """
        values, faults = _from_files()
        for name, value_of in (otherwise or {}).items():
            variables = {variable_of(name), f"{variable_of(name)}_FILE"}
            if not variables & {*os.environ} and (value := value_of()) is not None:
                values[name] = value
        try:
            loaded = cls(**{**values, **overrides})
        except ValidationError as exc:
            faults = _report(exc, faults)
        if faults:
            raise InvalidSettings("\n".join(faults.values())) from None
        return loaded


def environment_with(**variables: str) -> dict[str, str]:
    """This process's environment with `variables` set: for a process that it starts."""
    return {**os.environ, **variables}


def api_server() -> tuple[str, int] | None:
    """Host and port of Kubernetes's API server, as it tells every container; `None` elsewhere."""
    host = os.environ.get("KUBERNETES_SERVICE_HOST", "")
    port = os.environ.get("KUBERNETES_SERVICE_PORT_HTTPS", "443")
    return (host, int(port)) if host and port.isdecimal() else None


def variable_of(field: str) -> str:
    """The environment variable of a setting."""
    return str(Settings.model_fields[field].validation_alias or _PREFIX + field.upper())


def variables_set() -> list[str]:
    """The names of this process's variables that begin as those of settings do."""
    return sorted(name for name in os.environ if name.startswith(_PREFIX))


def _from_files() -> tuple[dict[str, str], dict[str, str]]:
    """Secrets by field, from the files that `…_FILE` variables name; faults by variable."""
    values: dict[str, str] = {}
    faults: dict[str, str] = {}
    for field in Settings.model_fields:
        variable = variable_of(field)
        path = os.environ.get(f"{variable}_FILE") if _is_secret(variable) else None
        if not path:
            continue
        if os.environ.get(variable):
            faults[variable] = f"{variable} and {variable}_FILE are both set; set one of them."
        try:
            values[field] = Path(path).read_text().strip()
        except (OSError, UnicodeDecodeError) as exc:
            reason = getattr(exc, "strerror", "it is no text")
            faults[variable] = f"{variable}_FILE is {path!r}, which cannot be read: {reason}."
    return values, faults


def _report(error: ValidationError, faults: dict[str, str]) -> dict[str, str]:
    """A sentence for each fault, by variable; those that are known already stand."""
    told: dict[str, str] = {}
    for fault in error.errors(include_url=False, include_context=False):
        variable = str(fault["loc"][0]) if fault["loc"] else "settings"
        variable = variable_of(variable) if variable in Settings.model_fields else variable
        if fault["type"] == "missing":
            told[variable] = f"{variable} is not set; expected {_expected(variable)}."
        else:
            hidden = masked(str(fault["input"])) if variable.endswith("_URL") else "***"
            given = hidden if _is_secret(variable) and fault["input"] else repr(fault["input"])
            message = fault["msg"].removeprefix("Value error, ")
            told[variable] = f"{variable} is {given}; {message[0].lower()}{message[1:]}."
    if not faults and all(fault["type"] == "missing" for fault in error.errors()):  # a newcomer
        told[""] = 'While `worker up` runs, `eval "$(worker env)"` sets both URLs.'
    return told | faults


def _expected(variable: str) -> str:
    told = {variable_of(name): info.description for name, info in Settings.model_fields.items()}
    return told.get(variable) or "a value"


def _is_secret(variable: str) -> bool:
    return variable.endswith(("_URL", "_SECRET"))
