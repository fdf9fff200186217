"""A chat-completions server for tests, as a script: it prints its port.

The path begins with the server's behaviour. Its honest verdict prefers the answer with more words
"good"; its ratings are the number of them plus one.
"""

import json
import re
import sys
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "secret-key"
FAULTS = ("429", "500", "garbage", "half", "closed", "no choices")
requests: Counter[str] = Counter()


def data(text, label):
    """The JSON value after a label at the start of a line; the judge reads nothing else."""
    found = re.findall(rf"^{label}: (.*)$", text, re.MULTILINE)
    assert len(found) == 1, found
    return json.loads(found[0])


def honest(text):
    if "\nAspect: " in text:
        rating = 1 + min(data(text, "Answer").count("good"), 4)
        return {"reason": "counted", "rating": rating}
    a, b = (data(text, f"Answer {side}").count("good") for side in "AB")
    return {"reason": "counted", "verdict": "A" if a > b else "B" if b > a else "tie"}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.send(200, {"requests": requests[self.path.split("/")[1]]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        behaviour = self.path.split("/")[1]
        requests[behaviour] += 1
        number = requests[behaviour]
        text = body["messages"][0]["content"]
        assert body["temperature"] == 0
        if behaviour == "404" or not self.path.endswith("/v1/chat/completions"):
            return self.send(404, {"error": "no such path"})
        if behaviour == "key" and self.headers["authorization"] != f"Bearer {KEY}":
            return self.send(401, {"error": "invalid key"})
        if behaviour == "old" and "response_format" in body:
            time.sleep(0.5 if number == 1 else 0)  # after others
            return self.send(400, {"error": "unknown field response_format"})
        if behaviour == "narrow" and "vast" in text:
            return self.send(400, {"error": "the context is too short"})
        if behaviour == "hang":
            time.sleep(3)
        if behaviour == "down":
            return self.send(503, {"error": "overloaded"})
        if behaviour == "flaky" and number % 2:
            return self.fail(FAULTS[number // 2 % len(FAULTS)])
        if behaviour == "slow":
            time.sleep(0.05)
        reply = json.dumps(honest(text))
        if behaviour == "first":
            reply = json.dumps({"reason": "I like the first", "verdict": "A"})
        if behaviour == "never" or (behaviour == "malformed" and len(body["messages"]) == 1):
            reply = f"The verdict is {reply}"
        if behaviour == "malformed" and len(body["messages"]) == 3:
            reply = f"```json\n{reply}\n```"
        return self.answer(reply)

    def answer(self, reply):
        usage = {"prompt_tokens": 7, "completion_tokens": 3}
        self.send(200, {"choices": [{"message": {"content": reply}}], "usage": usage})

    def fail(self, fault):
        if fault == "429":
            self.send(429, {"error": "slow down"}, {"Retry-After": "0"})
        elif fault == "500":
            self.send(500, {"error": "out of memory"})
        elif fault == "garbage":
            self.send(200, "<html>")
        elif fault == "no choices":
            self.send(200, {"choices": []})
        elif fault == "half":
            self.send(200, {"choices": []}, {"Content-Length": "5000"})
            self.close_connection = True
        else:
            self.close_connection = True

    def send(self, status, body, headers=None):
        content = json.dumps(body).encode()
        headers = {"Content-Length": str(len(content))} | (headers or {})
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # a client that was killed
    print(server.server_port, flush=True)
    sys.stdout.close()
    server.serve_forever()
