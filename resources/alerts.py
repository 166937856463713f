"""Messages to people and programs outside, by apprise: mail, chats, webhooks."""

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


class RulesFile(dg.ConfigurableResource):
    """The file of the alert rules."""

    path: str
    required: bool = Field(default=False, description="Whether the file must be there: somebody named it.")

    def text(self) -> str:
        """What the file says; nothing where nobody wrote it."""
        if not self.required and not Path(self.path).exists():
            return ""
        try:
            return Path(self.path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(
                f"the alert rules in {self.path} cannot be read ({error}): write them there, or let "
                "IMAGE_ASSETS_ALERT_RULES name another file"
            ) from error


if TYPE_CHECKING:
    from apprise import NotifyBase

ADDRESS_PREFIX = "IMAGE_ASSETS_ALERT_"  # and the receiver's name: the environment variable of its address
ID_HEADER = "Idempotency-Key"
WEBHOOKS = ("json", "jsons", "xml", "xmls", "form", "forms")  # whose requests get the header
RESPONSE_SECONDS = 20.0  # for an answer, unless the address says `rto=`; apprise's own 4 s leave too much unclear
EXAMPLES = "mailto://user:password@example.com, slack://token/channel or json://example.com/path"
LOGGERS = ("apprise", "urllib3", "requests_oauthlib", "oauthlib")  # what they say may hold an address
HTTP_ANSWER = re.compile(r'" (\d{3}) ')  # urllib3 logs each answer: `http://host:80 "POST /path HTTP/1.1" 500 0`
SMTP_ANSWER = re.compile(r"(?:\(|was refused: )(\d{3})\b")
FAILURE = re.compile(r"[\w .-]{0,40}Exception: ")  # apprise logs what went wrong below it: `Socket Exception: …`
NOT_REACHED = re.compile(
    "Max retries exceeded with url|Connection refused|No route to host|Network is unreachable|"
    "Name or service not known|name resolution"
)
MAIL_NOT_BEGUN = "Connection error while submitting email"

LogLines = Sequence[tuple[str, str]]  # loggers, and what they said


@dataclass(frozen=True)
class DeliveryResult:
    """What became of a message, and why in words that name no address."""

    outcome: Literal["accepted", "refused", "unclear"]
    reason: str = ""


UNANSWERED = DeliveryResult("unclear", "the receiver gave no answer: nobody knows whether the message arrived")
UNREACHED = DeliveryResult("refused", "no connection to the receiver came about")


@contextmanager
def captured_logs() -> Iterator[list[tuple[str, str]]]:
    """What the libraries that send log during the block. It names addresses, and so it goes nowhere else."""
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
            warnings.simplefilter("ignore")  # urllib3's of an unverified certificate names the host
            yield log_lines
    finally:
        for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)


def to_delivery_result(log_lines: LogLines) -> DeliveryResult:
    """What became of a message that apprise does not call accepted, by what was said while it was sent.

    Refused is only what is known not to have been taken: the receiver answered with an error, or was never reached.
    Where neither was said last, the message may have arrived.
    """
    result = UNANSWERED
    for logger, line in log_lines:
        if logger.startswith("urllib3"):
            if found := HTTP_ANSWER.search(line):
                result = DeliveryResult("refused", f"the receiver answered with HTTP status {found[1]}")
        elif line.startswith(MAIL_NOT_BEGUN):
            return UNREACHED
        elif FAILURE.match(line) or "was refused: " in line:
            mail = SMTP_ANSWER.search(line)
            if NOT_REACHED.search(line):
                result = UNREACHED
            else:
                result = DeliveryResult("refused", f"the mail server answered {mail[1]}") if mail else UNANSWERED
    return result


@dataclass(frozen=True)
class Receiver:
    """Where messages go: one service of apprise with one target."""

    name: str
    service: "NotifyBase" = field(repr=False)  # it holds the address

    @property
    def room(self) -> int:
        """How many characters a message may have."""
        return self.service.body_maxlen

    @property
    def takes_ids(self) -> bool:
        """Whether a message travels with its id in a header, so that the receiver can tell one that comes again."""
        return self.service.schema in WEBHOOKS

    def send(self, message_id: str, title: str, body: str) -> DeliveryResult:
        """Send a message, once."""
        from apprise import Apprise, NotifyFormat

        if self.takes_ids:
            self.service.headers[ID_HEADER] = message_id  # pyright: ignore[reportAttributeAccessIssue] - webhooks have it
        with captured_logs() as log_lines:
            sender = Apprise(self.service, asset=self.service.asset)
            result = sender.notify(body, title, body_format=NotifyFormat.TEXT)
            return DeliveryResult("accepted") if result else to_delivery_result(log_lines)


class AlertSender(dg.ConfigurableResource):
    """The receivers of alerts, by name. Their addresses hold passwords, and are shown nowhere."""

    addresses: dict[str, str] = Field(default={}, repr=False, description="Addresses, as apprise writes them.")

    def receiver(self, name: str) -> Receiver:
        """The receiver of this name; a ValueError says what is wrong with its address, without it."""
        from apprise import Apprise, AppriseAsset, OverflowMode

        variable = f"{ADDRESS_PREFIX}{name.upper()}"
        if not self.addresses.get(name):
            raise ValueError(f"{variable} is not set: expected the address of {name}, such as {EXAMPLES}")
        with captured_logs():
            # In this thread: what is given up in another one may still arrive. A redirect may end at a page that takes
            # everything, such as one to log in at.
            asset = AppriseAsset(app_id="image-assets", async_mode=False, service_timeout=0, http_redirects=False)
            service = Apprise.instantiate(self.addresses[name], asset=asset)
        if service is None:
            raise ValueError(f"{variable} holds no address that apprise can use: expected one such as {EXAMPLES}")
        if (targets := len(service) // (service.retry + 1)) > 1:
            raise ValueError(
                f"{variable} names {targets} targets, and no answer would tell which of them got a message: "
                "expected one; give each a receiver of its own"
            )
        # What is tried again, split or forgiven below us arrives twice, in part or not at all.
        service.retry, service.optional, service.overflow_mode = 0, False, OverflowMode.TRUNCATE
        if "socket_read_timeout" not in vars(service):
            service.socket_read_timeout = RESPONSE_SECONDS
        return Receiver(name, service)
