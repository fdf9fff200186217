"""A judge at an OpenAI-compatible endpoint: vLLM, llama.cpp, Ollama or a hosted API.

https://platform.openai.com/docs/api-reference/chat
"""

import asyncio
import os
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from toolkit.errors import ConfigError, JudgeError
from toolkit.judging.arguments import JudgeArguments
from toolkit.judging.questions import Form, MalformedReply, Question
from toolkit.judging.replies import MALFORMED, NO_REPLY, REJECTED, Receive, Reply

if TYPE_CHECKING:
    import httpx
    from tenacity import RetryCallState

KEY = "TOOLKIT_JUDGE_KEY"
WAIT_S, MAX_WAIT_S, CONNECT_S = 1.0, 60.0, 10.0
MAX_FAILURES = 10  # questions without a reply in a row: then the endpoint is down
SHOWN = 300  # characters of a server's message


class _Transient(Exception):
    """A failure that may pass: too many requests, a server's error, a broken connection, a timeout."""

    def __init__(self, message: str, *, after: float | None = None, refused: bool = False) -> None:
        super().__init__(message)
        self.after, self.refused = after, refused


class _Rejected(Exception):
    """The server does not accept this one request, such as a text longer than its context."""


class _Completion(NamedTuple):
    text: str
    prompt_tokens: int
    completion_tokens: int


class Endpoint:
    """Asks several questions at once, and repeats requests that fail."""

    def __init__(self, args: JudgeArguments) -> None:
        """Raises: ConfigError without the packages of the extra `judge`."""
        try:
            import httpx
            import tenacity  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                f"judge: the package {error.name} is missing; pip install 'rlhf-toolkit[judge]'"
            ) from error
        assert args.judge_url is not None
        self.args, self.name, self.identity = args, str(args.judge_model), str(args.judge_model)
        self.url = args.judge_url.rstrip("/").removesuffix("/chat/completions")
        key = os.environ.get(KEY, "").strip()
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._timeout = httpx.Timeout(args.timeout, connect=min(CONNECT_S, args.timeout))
        self._has_schemas: bool | None = None  # unknown until the first reply
        self._answered, self._failures, self._last_failure = False, 0, ""

    def ask(self, questions: Sequence[Question], receive: Receive) -> None:
        """Pass each question with its reply to `receive`, in any order.

        Raises: ConfigError for a wrong URL, key or model; JudgeError if the endpoint does not answer.
        """
        asyncio.run(self._ask(iter(questions), receive))
        if questions and not self._answered:
            raise JudgeError(f"judge_url: {self.url} answered no question: {self._last_failure}")

    async def _ask(self, questions: Iterator[Question], receive: Receive) -> None:
        import httpx

        async with httpx.AsyncClient(timeout=self._timeout, headers=self._headers) as client:

            async def work() -> None:
                for question in questions:  # shared by all workers
                    receive(question, await self._reply(client, question))

            workers = [asyncio.create_task(work()) for _ in range(self.args.concurrency)]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

    async def _reply(self, client: "httpx.AsyncClient", question: Question) -> Reply:
        """The verdict, after a correction of each malformed reply; None after the last one."""
        messages = [{"role": "user", "content": question.text}]
        reply, began = Reply(), time.monotonic()
        for _ in range(1 + self.args.malformed_retries):
            try:
                completion = await self._complete(client, messages, question.form)
            except _Rejected as error:
                self._last_failure = str(error)
                return reply.left_out(REJECTED, str(error))
            except _Transient as error:
                self._fail(error)
                return reply.left_out(NO_REPLY, str(error))
            self._answered, self._failures = True, 0
            reply.prompt_tokens += completion.prompt_tokens
            reply.completion_tokens += completion.completion_tokens
            reply.seconds = round(time.monotonic() - began, 3)
            try:
                reply.choice, reply.reason = question.form.parse(completion.text)
                return reply
            except MalformedReply as error:
                reply.malformed += 1
                problem = f"This reply does not count: {error}. Reply with the JSON object only."
                reply.reason = completion.text
                messages = [messages[0], {"role": "assistant", "content": completion.text or " "}]
                messages.append({"role": "user", "content": problem})
        return reply.left_out(MALFORMED, reply.reason)

    def _fail(self, error: _Transient) -> None:
        """Count a question without a reply. Raises: JudgeError if the endpoint seems to be down."""
        self._failures, self._last_failure = self._failures + 1, str(error)
        if self._failures >= MAX_FAILURES or (error.refused and not self._answered):
            fix = (
                "start the server, or correct the address"
                if error.refused
                else (
                    "check the server's log; a lower `concurrency` or a higher `timeout` may help"
                )
            )
            raise JudgeError(
                f"judge_url: {self.url} does not answer ({error}): {fix}. Replies are kept: the same "
                "command continues"
            ) from error

    async def _complete(
        self, client: "httpx.AsyncClient", messages: list[dict[str, str]], form: Form
    ) -> _Completion:
        """The server's chat completion, after retries."""
        from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt

        attempts = AsyncRetrying(
            stop=stop_after_attempt(self.args.retries + 1),
            wait=_pause,
            # a server that was never there will not appear
            retry=retry_if_exception(
                lambda error: (
                    isinstance(error, _Transient) and (self._answered or not error.refused)
                )
            ),
            reraise=True,
        )
        return await attempts(self._post, client, messages, form)

    async def _post(
        self,
        client: "httpx.AsyncClient",
        messages: list[dict[str, str]],
        form: Form,
        with_schema: bool | None = None,
    ) -> _Completion:
        import httpx

        request: dict[str, Any] = {"model": self.name, "messages": messages, "temperature": 0}
        request["max_tokens"] = self.args.max_judge_tokens
        with_schema = self._has_schemas is not False if with_schema is None else with_schema
        if with_schema:
            schema = {"name": form.field, "schema": form.schema, "strict": True}
            request["response_format"] = {"type": "json_schema", "json_schema": schema}
        try:
            response = await client.post(f"{self.url}/chat/completions", json=request)
        except httpx.TimeoutException as error:
            raise _Transient(f"no reply within {self.args.timeout:g} s") from error
        except httpx.ConnectError as error:
            raise _Transient(f"connection refused: {error}", refused=True) from error
        except httpx.HTTPError as error:
            raise _Transient(f"broken reply: {error or type(error).__name__}") from error
        status, message = response.status_code, response.text[:SHOWN]
        if status == 200:
            completion = _completion(response)
            self._has_schemas = with_schema
            return completion
        if status in (408, 409, 425, 429) or status >= 500:
            raise _Transient(f"status {status}: {message}", after=_retry_after(response))
        if status in (400, 422):
            if with_schema and not self._has_schemas:  # perhaps an older server
                return await self._post(client, messages, form, with_schema=False)
            raise _Rejected(f"status {status}: {message}")
        if status in (401, 403):
            fix = "correct" if self._headers else "set"
            raise ConfigError(
                f"judge_url: {self.url} rejected the key (status {status}); {fix} the environment "
                f"variable {KEY}"
            )
        raise ConfigError(
            f"judge_url: {self.url}/chat/completions has status {status} for the model {self.name!r}, "
            f"expected 200: {message}; correct `judge_url` or `judge_model`"
        )


def _completion(response: "httpx.Response") -> _Completion:
    """The text and the tokens of a reply. Raises: _Transient for a body of another form."""
    try:
        body = response.json()
        usage = body.get("usage") or {}
        tokens = (int(usage.get(f"{side}_tokens") or 0) for side in ("prompt", "completion"))
        text = body["choices"][0]["message"]["content"] or ""
        return _Completion(text.strip(), *tokens)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise _Transient(f"not a chat completion: {response.text[:SHOWN]!r}") from error


def _retry_after(response: "httpx.Response") -> float | None:
    """The seconds that the server asks to wait, if it names them."""
    try:
        return min(max(float(response.headers["retry-after"]), 0.0), MAX_WAIT_S)
    except (KeyError, ValueError):
        return None


def _pause(state: "RetryCallState") -> float:
    """Seconds before the next attempt: what the server asks for, or a growing random time."""
    from tenacity import wait_random_exponential

    error = state.outcome.exception() if state.outcome is not None else None
    if isinstance(error, _Transient) and error.after is not None:
        return error.after
    return float(wait_random_exponential(multiplier=WAIT_S, max=MAX_WAIT_S)(state))
