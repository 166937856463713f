"""Sends alerts to people and programs with apprise: email, chats, webhooks."""

import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import dagster as dg
from pydantic import Field

if TYPE_CHECKING:
    from apprise import NotifyBase

ADDRESS_PREFIX = "IMAGE_ASSETS_ALERT_"  # followed by the receiver's name: the variable with its address
ID_HEADER = "Idempotency-Key"
WEBHOOKS = ("json", "jsons", "xml", "xmls", "form", "forms")  # services that send the header
RESPONSE_SECONDS = 20.0  # unless the address sets `rto=`; apprise's 4 s would leave too many results unclear
EXAMPLES = "mailto://user:password@example.com, slack://token/channel or json://example.com/path"
LOGGERS = ("apprise", "urllib3", "requests_oauthlib", "oauthlib")  # their messages may contain an address
HTTP_STATUS = re.compile(r'" (\d{3}) ')  # urllib3 logs each response: `http://host:80 "POST /path HTTP/1.1" 500 0`
SMTP_STATUS = re.compile(r"(?:\(|was refused: )(\d{3})\b")
FAILURE = re.compile(r"[\w .-]{0,40}Exception: ")  # apprise logs the underlying errors: `Socket Exception: …`
NOT_REACHED = re.compile(
    "Max retries exceeded with url|Connection refused|No route to host|Network is unreachable|"
    "Name or service not known|name resolution"
)
MAIL_NOT_BEGUN = "Connection error while submitting email"

REJECTED = ("400", "413", "415", "422")  # HTTP statuses that are about the content of a message

LogLines = Sequence[tuple[str, str]]  # pairs of logger name and message
Outcome = Literal["accepted", "refused", "rejected", "unclear"]


@dataclass(frozen=True)
class DeliveryResult:
    """The result of sending a message, with a reason that does not contain an address."""

    outcome: Outcome
    reason: str = ""


UNANSWERED = DeliveryResult("unclear", "the receiver did not respond, so the message may or may not have arrived")
UNREACHED = DeliveryResult("refused", "no connection to the receiver")


@contextmanager
def captured_logs() -> Iterator[list[tuple[str, str]]]:
    """Captures the log of the sending libraries during the block. It contains addresses and must not be passed on."""
    log_lines: list[tuple[str, str]] = []
    handler = logging.Handler()
    handler.emit = lambda record: log_lines.append((record.name, record.getMessage()))
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(logger.handlers, logger.propagate, logger.level) for logger in loggers]
    try:
        for logger in loggers:
            logger.handlers, logger.propagate = [handler], False
            logger.setLevel(logging.DEBUG)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # urllib3's warning about unverified certificates contains the host
            yield log_lines
    finally:
        for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)


def to_delivery_result(log_lines: LogLines) -> DeliveryResult:
    """The result of a message that apprise does not report as accepted, from the log of sending it.

    It is `refused` if the receiver was never reached or returned an error, including a gateway's (502, 504): services
    usually fail that way when they are down. It is `rejected` if the error is about this message. Otherwise it is
    `unclear`, because it may have arrived.
    """
    result = UNANSWERED
    for logger, line in log_lines:
        if logger.startswith("urllib3"):
            if found := HTTP_STATUS.search(line):
                outcome = "rejected" if found[1] in REJECTED else "refused"
                result = DeliveryResult(outcome, f"the receiver returned HTTP status {found[1]}")
        elif line.startswith(MAIL_NOT_BEGUN):
            return UNREACHED
        elif FAILURE.match(line) or "was refused: " in line:
            mail = SMTP_STATUS.search(line)
            if NOT_REACHED.search(line):
                result = UNREACHED
            else:
                result = DeliveryResult("refused", f"the mail server returned {mail[1]}") if mail else UNANSWERED
    return result


@dataclass(frozen=True)
class Receiver:
    """A receiver of messages: one apprise service with one target."""

    name: str
    service: "NotifyBase" = field(repr=False)  # contains the address

    @property
    def room(self) -> int:
        """The maximum length of a message, in characters."""
        return self.service.body_maxlen

    @property
    def takes_ids(self) -> bool:
        """Whether messages have their id in a header, so that the receiver can recognize duplicates."""
        return self.service.schema in WEBHOOKS

    def send(self, message_id: str, title: str, body: str) -> DeliveryResult:
        """Sends a message once, without retries."""
        from apprise import Apprise, NotifyFormat

        if self.takes_ids:
            self.service.headers[ID_HEADER] = message_id  # pyright: ignore[reportAttributeAccessIssue] - webhooks have headers
        with captured_logs() as log_lines:
            sender = Apprise(self.service, asset=self.service.asset)
            result = sender.notify(body, title, body_format=NotifyFormat.TEXT)
            return DeliveryResult("accepted") if result else to_delivery_result(log_lines)


class AlertSender(dg.ConfigurableResource):
    """The alert receivers by name. Their addresses contain passwords and are never shown."""

    addresses: dict[str, str] = Field(
        default={}, repr=False, description="The receivers' addresses, in apprise's notation."
    )

    def receiver(self, name: str) -> Receiver:
        """The receiver with this name; a ValueError, without the address, if the address is missing or invalid."""
        from apprise import Apprise, AppriseAsset, OverflowMode

        variable = f"{ADDRESS_PREFIX}{name.upper()}"
        if not self.addresses.get(name):
            raise ValueError(f"{variable} is not set: expected the address of {name}, such as {EXAMPLES}")
        with captured_logs():
            # Synchronous: a message that another thread gave up may still arrive. No redirects: they may lead to a page
            # that accepts everything, such as a login page.
            asset = AppriseAsset(app_id="image-assets", async_mode=False, service_timeout=0, http_redirects=False)
            service = Apprise.instantiate(self.addresses[name], asset=asset)
        if service is None:
            raise ValueError(f"{variable} is not an address that apprise supports: expected one such as {EXAMPLES}")
        if (targets := len(service) // (service.retry + 1)) > 1:
            raise ValueError(
                f"{variable} has {targets} targets: expected one, because the result would not say which of them got a "
                "message; use one receiver per target"
            )
        # Retries, splitting and ignored errors inside apprise would deliver messages twice, in part or not at all.
        service.retry, service.optional, service.overflow_mode = 0, False, OverflowMode.TRUNCATE
        if "socket_read_timeout" not in vars(service):
            service.socket_read_timeout = RESPONSE_SECONDS
        return Receiver(name, service)


class RulesFile(dg.ConfigurableResource):
    """The file with the alert rules."""

    path: str
    required: bool = Field(default=False, description="Whether the file must exist, because a setting names it.")

    def text(self) -> str:
        """The file's text; empty if the file is optional and does not exist."""
        if not self.required and not Path(self.path).exists():
            return ""
        try:
            return Path(self.path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(
                f"The alert rules in {self.path} cannot be read ({error}). Create the file, or set "
                "IMAGE_ASSETS_ALERT_RULES to another one."
            ) from error
