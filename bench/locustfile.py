"""Users for locust: unary, streaming and mixed calls of three functions of the test model server.

    locust -f bench/locustfile.py --headless -u 12 -t 30s --host http://127.0.0.1:4000

`bench/soak.py` deploys the functions and runs it. An answer counts only when all of it came.
"""

from locust import HttpUser, between, task

CALL = "/funccall/public/test"
TOKENS = 20
SMALL, LARGE = b"x" * 1024, b"y" * 65536


class ModelUser(HttpUser):
    """What all users do; each kind says how often."""

    abstract = True
    wait_time = between(0.0, 0.05)
    function = ""

    def unary(self, body: bytes) -> None:
        url = f"{CALL}/{self.function}/echo"
        name = f"{self.function}: {len(body) >> 10} KiB"
        with self.client.post(url, data=body, name=name, catch_response=True) as answer:
            if answer.status_code != 200:
                answer.failure(f"{answer.status_code}: {answer.text[:200]}")
            elif answer.json()["body"] != body.decode():
                answer.failure("the body is not the one that was sent")

    def stream(self, leave_after: int | None = None) -> None:
        url = f"{CALL}/{self.function}/stream?n={TOKENS}&ms=10"
        name = f"{self.function}: " + ("stream" if leave_after is None else "left stream")
        with self.client.get(url, stream=True, name=name, catch_response=True) as answer:
            if answer.status_code != 200:
                answer.failure(f"{answer.status_code}: {answer.text[:200]}")
                return
            seen = []
            for line in answer.iter_lines():
                seen += [int(line.removeprefix(b"data: "))] if line else []
                if len(seen) == leave_after:
                    answer.close()
                    return
            if seen != list(range(TOKENS)):
                answer.failure(f"tokens {seen}")


class UnaryUser(ModelUser):
    function = "unary"

    @task
    def call(self) -> None:
        self.unary(SMALL)


class StreamUser(ModelUser):
    function = "stream"

    @task
    def call(self) -> None:
        self.stream()


class MixedUser(ModelUser):
    function = "mixed"

    @task(6)
    def small(self) -> None:
        self.unary(SMALL)

    @task(2)
    def large(self) -> None:
        self.unary(LARGE)

    @task(3)
    def whole_stream(self) -> None:
        self.stream()

    @task(1)
    def left_stream(self) -> None:
        self.stream(leave_after=3)
