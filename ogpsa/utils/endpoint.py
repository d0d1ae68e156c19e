"""Chat completions from an endpoint that speaks OpenAI's protocol: many at a time, retried, within a budget.

All decisions on waiting and trying again are made here; the ``openai`` package's own retries are off, so that every
request counts against the cap.
"""

import asyncio
import json
import os
import random
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ogpsa.utils.errors import UserError

if TYPE_CHECKING:
    from httpx2 import Response
    from openai import APIStatusError, AsyncOpenAI

    from ogpsa.config import EndpointSettings

OPENAI = "https://api.openai.com/v1"
# Seconds: the longest wait between two tries of one request, the longest that a server may ask for, the longest for a
# first answer, and the least between two notices.
LONGEST_BACKOFF = 60.0
LONGEST_PAUSE = 600.0
LONGEST_REACH = 10.0
# Codes and words of providers that turn a prompt away by its content (OpenAI, Azure, DeepSeek, DashScope, OpenRouter).
FILTERED = re.compile(
    r"content_filter|invalid_prompt|Content Exists Risk|data_inspection_failed"
    r"|requires moderation|(prompt|input) was flagged"
)
# Those of servers to which a prompt is too long (OpenAI and vLLM, llama.cpp, Anthropic, TGI).
TOO_LONG = re.compile(r"context[_ ]length|context size|prompt is too long|inputs` tokens")
NOTICE = 5.0
# Of English, in estimates of what a text takes [ours].
CHARACTERS_PER_TOKEN = 4
# What servers call a reply that met the cap on tokens.
CUT = (
    "length", "max_tokens", "max_length", "model_length", "token_limit", "max_output_tokens", "max_new_tokens",
    "model_context_window_exceeded",
)  # fmt: skip
# One that a filter kept back (Azure and Bedrock begin with content_filter; Gemini, z.ai).
WITHHELD = re.compile(r"content_filter.*|safety|recitation|prohibited_content|blocklist|spii|sensitive", re.I | re.S)
# One that ended because the server failed (OpenRouter, z.ai, DeepSeek, vLLM and SGLang).
BROKEN_OFF = ("error", "network_error", "insufficient_system_resource", "abort", "cancelled")
# The parameter that some models take instead of another; None: they take neither.
IN_PLACE_OF = {"max_tokens": "max_completion_tokens", "temperature": None}

# Names of environment variables as people write them, which no provider's keys look like.
VARIABLE = re.compile(r"[A-Z]+(_[A-Z0-9]+)*")

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Completion:
    """A reply.

    Attributes:
        text: the model's reply, which may be empty.
        finish_reason: ``stop``, ``length`` (cut at the cap on tokens), ``content_filter``, ``refusal`` (the server
            says that the model declined), ``too_long`` (the request does not fit the model), or another of the
            server's.
        in_thought: the model thought, which is not in the text, and came to no answer.
        tokens_in, tokens_out: what the server charges, thoughts included; None where it does not say.
    """

    text: str
    finish_reason: str
    in_thought: bool = False
    tokens_in: int | None = None
    tokens_out: int | None = None


def public_address(base_url: str | None) -> str:
    """An endpoint's address without the user and password that it may hold; OpenAI's own for None."""
    if not _is_address(base_url or OPENAI):
        return str(base_url).rpartition("@")[2]
    parts = urlsplit(base_url or OPENAI)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"


def address(section: str, base_url: str | None) -> str | None:
    """The address; of ``$NAME`` what that environment variable holds, so that a run does not rest on where it leads."""
    if base_url is None or not base_url.startswith("$"):
        return base_url
    if not (found := os.environ.get(base_url[1:], "").strip()):
        raise UserError(f"{section}.base_url: the environment has no variable {base_url[1:]}; set it to the address")
    if not _is_address(found):
        raise UserError(
            f"{section}.base_url: {base_url} holds '{public_address(found)}'; expected http://… or https://…"
        )
    return found


def _is_address(text: str) -> bool:
    """Whether a request can be sent there; HTTP clients fail on other texts in many ways, some with a traceback."""
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
        # As the system does where it looks the name up.
        host.encode("idna")
    except ValueError:
        return False
    named = parts.scheme in ("http", "https") and re.fullmatch(r"[\w.:%-]+", host) and port != 0
    return bool(named) and text.isprintable() and " " not in text


@dataclass
class Budget:
    """A cap on calls, shared by whatever is asked under it; None: none."""

    max_calls: int | None = None
    calls: int = 0

    @property
    def left(self) -> float:
        return float("inf") if self.max_calls is None else self.max_calls - self.calls


@dataclass(frozen=True)
class Endpoint:
    """One model behind one address.

    Attributes:
        section: the settings' section, for messages to the user: ``eval.judge``.
        base_url: None: OpenAI's own.
        model: the name that the server knows it by.
        api_key_env: the environment variable that holds the key; empty: the server needs none.
        concurrency: requests at a time.
        timeout: seconds after which a request counts as lost.
        attempts: times that one request is tried. A rate-limit reply (429) does not count while other requests succeed.
        budget: cap on requests, retries included; a 429, which no one is charged for, does not count.
        backoff: seconds before the second try; doubled for each further one.
    """

    section: str
    base_url: str | None
    model: str
    api_key_env: str
    concurrency: int
    timeout: float
    attempts: int
    budget: Budget = field(default_factory=Budget)
    backoff: float = 1.0

    def check(self) -> None:
        """Refuse an endpoint that cannot be used, before the first request.

        Raises:
            UserError: the variable holds no key, or the address is none.
        """
        if not _is_address(self.base_url or OPENAI):
            # Within a line, whatever it holds.
            found = repr(public_address(self.base_url))[1:-1]
            raise UserError(
                f"{self.section}.base_url: found '{found}'; expected http://… or https://… with a host, and a port up "
                "to 65535 if any"
            )
        self._key()

    def reach(self) -> None:
        """Ask for the list of models, which costs nothing: any answer will do, except that the key is not accepted.

        Raises:
            UserError: as ``check``, the server does not answer, or does not accept the key.
        """
        self.check()
        from openai import APIConnectionError, APIStatusError, AuthenticationError, OpenAI

        seconds = min(self.timeout, LONGEST_REACH)
        with OpenAI(api_key=self._key(), base_url=self.base_url or OPENAI, max_retries=0, timeout=seconds) as client:
            try:
                client.models.with_raw_response.list()
            except AuthenticationError as error:
                raise self.not_accepted(error) from None
            # Also 403: a key may be allowed to ask the model and not to list models.
            except APIStatusError:
                return
            except APIConnectionError as error:
                raise self.problem(
                    f"does not answer ({error.__cause__ or error}); start the server, or name another "
                    f"({self.section}.base_url)"
                ) from None

    @classmethod
    def of(cls, section: str, settings: "EndpointSettings", model: str, budget: Budget | None = None) -> "Endpoint":
        """The endpoint that a section of the configuration describes.

        Raises:
            UserError: the address is ``$NAME``, and the environment has no such variable.
        """
        return cls(
            section,
            base_url=address(section, settings.base_url),
            model=model,
            api_key_env=settings.api_key_env,
            concurrency=settings.concurrency,
            timeout=settings.timeout,
            attempts=settings.attempts,
            budget=budget or Budget(),
        )

    def complete(
        self,
        requests: Sequence[Messages],
        done: Callable[[int, Completion], None],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        template_kwargs: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Ask for a reply to each of ``requests``; ``done(index, reply)`` is called as each comes in, in any order.

        A model that rejects ``max_tokens`` or ``temperature`` is asked again without the parameter or by its other
        name, without charge.

        When a request has failed for good, or ``done`` raises, no further one is sent; those under way are waited for
        and handed to ``done`` before the error is raised.

        Raises:
            UserError: as ``check``; the cap is reached, the server does not accept the key or a request, or a request
                failed in all attempts.
        """
        self.check()
        options: dict[str, Any] = {"model": self.model, "max_tokens": max_tokens, "temperature": temperature}
        if template_kwargs:
            # As vLLM, SGLang and others call what they give to a model's chat template.
            options["extra_body"] = {"chat_template_kwargs": dict(template_kwargs)}
        asyncio.run(self._complete(requests, done, options))

    async def _complete(
        self, requests: Sequence[Messages], done: Callable[[int, Completion], None], options: Mapping[str, Any]
    ) -> None:
        from openai import AsyncOpenAI

        url = self.base_url or OPENAI
        async with AsyncOpenAI(api_key=self._key(), base_url=url, max_retries=0, timeout=self.timeout) as client:
            session = _Session(self, client, options)
            pending = iter(enumerate(requests))
            workers = [session.work(pending, done) for _ in range(min(self.concurrency, len(requests)))]
            ends = await asyncio.gather(*workers)
        for end in ends:
            if end is not None:
                raise end

    def not_accepted(self, error: "APIStatusError") -> UserError:
        """The server's refusal of the key."""
        source = f"the key in {self.api_key_env}" if self.api_key_env else "a request without a key"
        return self.problem(f"{error.status_code}, {source} is not accepted: {_message_of(error)}")

    def problem(self, text: str) -> UserError:
        """The failure in one line, without the key."""
        if self.api_key_env:
            text = text.replace(self._key(), "***")
        return UserError(f"{self.section}: {public_address(self.base_url)}: {' '.join(text.split())[:300]}")

    def _key(self) -> str:
        if not self.api_key_env:
            return "none"
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            # Some type the key itself, which no log may hold.
            shown = VARIABLE.fullmatch(self.api_key_env)
            name = self.api_key_env if shown else "of that name (not shown, for it may be the key itself)"
            raise UserError(
                f"{self.section}.api_key_env: the environment variable {name} holds no key; "
                f"set it, or name none ({self.section}.api_key_env='') where the server needs no key"
            )
        if not (key.isascii() and key.isprintable()):
            raise UserError(
                f"{self.section}.api_key_env: the key in {self.api_key_env} holds a line break or a character beyond "
                "ASCII; copy the key again"
            )
        return key


class TooLongError(UserError):
    """A request that does not fit the model, where there is nothing to go on with."""


class _TryAgainError(Exception):
    """A try that failed but may be repeated.

    Attributes:
        limited: turned away for the rate of requests.
        pause: seconds that the server asks to wait, if it does.
    """

    def __init__(self, reason: str, limited: bool = False, pause: float | None = None) -> None:
        super().__init__(reason)
        self.limited, self.pause = limited, pause


class _Session:
    """State that the requests of one call share: until when all wait, and whether to stop."""

    def __init__(self, endpoint: Endpoint, client: "AsyncOpenAI", options: Mapping[str, Any]) -> None:
        self._endpoint, self._client, self._options = endpoint, client, dict(options)
        self._stopping = asyncio.Event()
        self._resume_at = self._noticed_at = 0.0
        self._replies = 0

    async def work(
        self, pending: Iterator[tuple[int, Messages]], done: Callable[[int, Completion], None]
    ) -> BaseException | None:
        """Take requests from ``pending``, which others take from too, until there are none or something failed.

        Returns:
            The failure. Raised here, an exit would end the loop with the others' requests, which are paid for.
        """
        try:
            for index, messages in pending:
                reply = await self._reply(messages)
                if reply is None:
                    break
                self._replies += 1
                done(index, reply)
        except asyncio.CancelledError:
            raise
        except BaseException as end:  # noqa: BLE001
            self._stopping.set()
            return end
        return None

    async def _reply(self, messages: Messages) -> Completion | None:
        """The reply to one request; None where another one's failure stopped the work."""
        endpoint, failures, retry_at = self._endpoint, 0, 0.0
        replies = self._replies
        while True:
            await self._wait(retry_at)
            if self._stopping.is_set():
                return None
            if endpoint.budget.left < 1:
                raise endpoint.problem(
                    f"the cap of {endpoint.budget.max_calls} calls ({endpoint.section}.max_calls) is reached; "
                    "all replies so far are kept, and a higher cap resumes from there"
                )
            endpoint.budget.calls += 1
            try:
                return await self._try(messages)
            except _TryAgainError as error:
                crowded = error.limited and self._replies > replies
                failures, replies = failures if crowded else failures + 1, self._replies
                if failures >= endpoint.attempts:
                    times = "" if failures == 1 else f" ({failures} tries)"
                    raise endpoint.problem(f"{error}{times}; all replies so far are kept") from None
                wait = min(LONGEST_BACKOFF, endpoint.backoff * 2.0 ** max(0, failures - 1)) * random.uniform(0.75, 1.25)
                if error.pause is not None:
                    # Spread, so that those who waited do not return at once.
                    wait = error.pause + random.uniform(0.0, 0.25) * endpoint.backoff
                retry_at = time.monotonic() + wait
                if error.limited:
                    endpoint.budget.calls -= 1
                    self._resume_at = max(self._resume_at, time.monotonic() + (error.pause or 0.0))
                self._notice(f"{error}; trying again in {wait:.0f} s")

    async def _wait(self, until: float) -> None:
        while (left := max(until, self._resume_at) - time.monotonic()) > 0 and not self._stopping.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), left)

    async def _try(self, messages: Messages) -> Completion:
        """One request.

        Raises:
            _TryAgainError: it may succeed later.
            UserError: it will not.
        """
        from openai import APIConnectionError, APIStatusError

        endpoint, options = self._endpoint, dict(self._options)
        try:
            async with asyncio.timeout(endpoint.timeout):
                response = await self._client.chat.completions.with_raw_response.create(
                    messages=list(messages),  # type: ignore[arg-type]
                    **options,
                )
            return _reply_in(response.http_response)
        except TimeoutError:
            raise _TryAgainError(f"no reply within {endpoint.timeout:g} s") from None
        except APIStatusError as error:
            name = _refused_parameter(error, options)
            if name is None:
                return self._turned_away(error)
            self._do_without(name)
            return await self._try(messages)
        except APIConnectionError as error:
            raise _TryAgainError(f"{error} ({type(error.__cause__ or error).__name__})") from None

    def _turned_away(self, error: "APIStatusError") -> Completion:
        """Meaning of an HTTP status other than success.

        Raises:
            _TryAgainError: it may succeed later.
            UserError: it will not.
        """
        endpoint, status = self._endpoint, error.status_code
        text = _message_of(error)
        limited = status == 429 and "insufficient_quota" not in text
        if limited or status in (408, 409) or status >= 500:
            pause = _retry_after(error.response.headers)
            if pause is not None and pause > LONGEST_PAUSE:
                raise endpoint.problem(
                    f"{status}, asks to wait {pause:.0f} s; start again then, all replies so far are kept"
                )
            raise _TryAgainError("429, too many requests" if limited else f"{status}, {text}", limited, pause)
        if status in (400, 403) and FILTERED.search(text):
            return Completion("", "content_filter")
        if status == 413 or (status in (400, 422) and TOO_LONG.search(text)):
            return Completion("", "too_long")
        if status in (401, 403):
            raise endpoint.not_accepted(error)
        raise endpoint.problem(f"{status}, {text}")

    def _do_without(self, name: str) -> None:
        """Omit or rename a parameter from now on; another request may already have done so."""
        if name in self._options:
            value, other = self._options.pop(name), IN_PLACE_OF[name]
            if other:
                self._options[other] = value
            self._notice(f"the model takes no {name}; {f'{other} in its place' if other else 'left to its default'}")

    def _notice(self, text: str) -> None:
        now = time.monotonic()
        if now - self._noticed_at >= NOTICE:
            self._noticed_at = now
            print(f"warning: {self._endpoint.problem(text)}", file=sys.stderr, flush=True)


def _refused_parameter(error: "APIStatusError", options: Mapping[str, Any]) -> str | None:
    """The parameter that the server does not take, where there is a way without it."""
    if error.status_code != 400 or TOO_LONG.search(_message_of(error)):
        return None
    named = [name for name in IN_PLACE_OF if error.param == name or re.search(rf"\b{name}\b", _message_of(error))]
    return next((name for name in named if name in options), None)


def _message_of(error: "APIStatusError") -> str:
    """The server's code and message."""
    message = error.body.get("message") if isinstance(error.body, dict) else error.response.text
    # Some repeat the status as the code.
    code = "" if str(error.code) == str(error.status_code) else error.code or ""
    return f"{code} {message or error.message}".strip()


def _reply_in(response: "Response") -> Completion:
    """What a successful status came with.

    Raises:
        APIStatusError: an error, of the HTTP status that it names.
        _TryAgainError: an error without one, a reply that broke off, or no chat completion.
    """
    try:
        body = json.loads(response.content)
        if body.get("error"):
            raise _error_of(body["error"], response)
        return _completion(body)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        raise _TryAgainError("the reply is not a chat completion in JSON") from None


def _error_of(told: Any, response: "Response") -> Exception:
    """What the client raises under the HTTP status that an error's code names; without one, another try."""
    from openai import APIStatusError

    code = told.get("code") if isinstance(told, dict) else None
    if not re.fullmatch("[45][0-9][0-9]", str(code)):
        return _TryAgainError(f"an error in place of a reply: {_error_text(told)}")
    response.status_code = int(str(code))
    return APIStatusError(response.reason_phrase, response=response, body=told)


def _error_text(told: Any) -> str:
    """The code and message of an error in a reply; all of it where it has another form."""
    parts = [str(told[name]) for name in ("code", "message") if told.get(name)] if isinstance(told, dict) else []
    return " ".join(parts) or str(told)


def _completion(body: Any) -> Completion:
    """The first choice of a response's body.

    Raises:
        _TryAgainError: the server failed before the model had ended.
        ValueError, TypeError, KeyError, IndexError, AttributeError: the body is not a chat completion.
    """
    choice = body["choices"][0]
    finish_reason = str(choice.get("finish_reason") or "stop")
    if choice.get("error") or finish_reason.lower() in BROKEN_OFF:
        raise _TryAgainError(f"the server broke the reply off: {_error_text(choice.get('error') or finish_reason)}")
    if finish_reason.lower() in CUT:
        finish_reason = "length"
    elif WITHHELD.fullmatch(finish_reason):
        finish_reason = "content_filter"
    # A filter's word alone may come without a message.
    message = {} if choice.get("message") is None and finish_reason == "content_filter" else choice["message"]
    usage = body.get("usage") or {}
    charged: dict[str, Any] = {"tokens_in": usage.get("prompt_tokens"), "tokens_out": usage.get("completion_tokens")}
    if message.get("refusal"):
        return Completion(_whole(str(message["refusal"])), "refusal", **charged)
    text = message.get("content") or ""
    thought = message.get("reasoning_content") or message.get("reasoning")
    if isinstance(text, list):
        # Some servers send a list of parts, thoughts among them.
        thought = [part for part in text if part["type"] != "text"]
        text = "".join(part["text"] for part in text if part["type"] == "text")
    if not isinstance(text, str):
        raise TypeError(text)
    spent = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens")
    return Completion(_whole(text), finish_reason, bool(thought or spent) and not text.strip(), **charged)


def _whole(text: str) -> str:
    """A text without lone surrogates, which JSON can hold and UTF-8 cannot encode."""
    return text.encode("utf-8", "replace").decode()


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait: in ``retry-after-ms``, or in ``retry-after`` as seconds or as a date."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        with suppress(ValueError):
            seconds = float(headers.get(name, "")) * unit
            return seconds if 0 <= seconds < float("inf") else None
    with suppress(ValueError):
        return max(0.0, parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - time.time())
    return None
