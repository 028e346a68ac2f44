"""The load of `make benchmark`: users who send events as real clients do, and keep a ledger of what was answered.

Each request carries a traceparent made here. One line of JSON per request goes to BENCHMARK_LEDGER, so that queue latency
can be read afterwards from the database by trace id, and the sums of what was answered compared with what was stored.
Run by benchmark.ts; on its own: BENCHMARK_LEDGER=ledger.jsonl locust -f locustfile.py --host http://127.0.0.1:8080
"""

import gzip
import json
import os
import random
import secrets
from datetime import datetime, timezone

from locust import FastHttpUser, between, events, task

RUN_ID = os.environ.get("BENCHMARK_RUN_ID") or secrets.token_hex(6)
LEDGER = open(os.environ.get("BENCHMARK_LEDGER", os.devnull), "w", buffering=1 << 16)

TYPES = ["order.placed", "order.paid", "parcel.shipped", "page.viewed", "cart.updated", "invoice.sent"]
NDJSON_EVENTS = 200
# One trace in a hundred asks to be sampled, as a client under a sampling head would.
SAMPLED_SHARE = 0.01
# The API refuses all that Postgres cannot hold; what is left is a rule of the table itself. The benchmark's own database
# has one against this type, and BENCHMARK_POISON says so.
POISON_TYPE = "benchmark.poison"
POISON = os.environ.get("BENCHMARK_POISON") == "true"
# For a service that asks for keys: one with the scope ingest.
KEY = os.environ.get("MILLRACE_API_KEY")
AUTHORIZATION = {"Authorization": f"Bearer {KEY}"} if KEY else {}
# Of about a thousand requests; a short test wants more.
POISON_WEIGHT = int(os.environ.get("BENCHMARK_POISON_WEIGHT", "4"))


def payload() -> str:
    """Data of an order, of 100 to 900 bytes."""
    lines = [
        {"sku": secrets.token_hex(4), "quantity": random.randint(1, 5), "price": round(random.uniform(1, 300), 2)}
        for _ in range(random.choice([1, 1, 1, 2, 3, 5, 12]))
    ]
    order = {"orderId": secrets.token_hex(8), "customer": f"c-{random.randint(1, 50_000)}", "currency": "EUR"}
    return json.dumps({**order, "lines": lines})


# Made once: the load generator shares the machine with what it measures.
PAYLOADS = [payload() for _ in range(500)]


def event(source: str, event_id: str, event_type: str = "") -> str:
    return (
        f'{{"specversion":"1.0","id":"{event_id}","source":"{source}","type":"{event_type or random.choice(TYPES)}",'
        f'"time":"{datetime.now(timezone.utc).isoformat()}","data":{random.choice(PAYLOADS)}}}'
    )


class Client(FastHttpUser):
    wait_time = between(0.02, 0.18)
    made = 0

    def on_start(self) -> None:
        self.source = f"benchmark/{RUN_ID}/{secrets.token_hex(4)}"
        self.last_batch: list[str] = []

    def make(self, count: int) -> list[str]:
        self.made += count
        return [event(self.source, str(number)) for number in range(self.made - count, self.made)]

    def send(self, kind: str, body: "str | bytes", sent: int, *, retried=0, poison=0, bad=0, headers=None) -> bool:
        """Posts, checks that the answer is the promised one, and writes the ledger's line.

        retried, poison and bad are how many of the `sent` events were sent before, cannot be stored, are no events.
        Returns whether the answer was the promised one.
        """
        trace_id = secrets.token_hex(16)
        flag = "01" if random.random() < SAMPLED_SHARE else "00"
        headers = {
            "Content-Type": "application/json",
            "traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-{flag}",
            **AUTHORIZATION,
            **(headers or {}),
        }
        with self.client.post("/v1/events", data=body, headers=headers, name=kind, catch_response=True) as response:
            expected = 400 if bad == sent else 202
            answer = response.json() if response.status_code == expected else {}
            as_promised = answer.get("accepted") == sent - bad and answer.get("rejected") == bad
            if as_promised:
                response.success()
            else:
                response.failure(f"answered {response.status_code}, expected {expected}: {(response.text or '')[:80]}")
            meta = response.request_meta
        line = {
            "trace_id": trace_id,
            "kind": kind,
            "started_at": meta["start_time"],
            "ms": meta["response_time"],
            "as_promised": as_promised,
            "sent": sent,
            "accepted": answer.get("accepted", 0),
            "rejected": answer.get("rejected", 0),
            "retried": retried,
            "poison": poison,
        }
        LEDGER.write(json.dumps(line) + "\n")
        return as_promised

    @task(500)
    def single(self) -> None:
        self.send("single", self.make(1)[0], 1)

    @task(250)
    def batch_of_10(self) -> None:
        batch = self.make(10)
        if self.send("batch of 10", f"[{','.join(batch)}]", 10):
            self.last_batch = batch

    @task(100)
    def batch_of_100(self) -> None:
        self.send("batch of 100", f"[{','.join(self.make(100))}]", 100)

    @task(40)
    def ndjson_gzip(self) -> None:
        body = gzip.compress("\n".join(self.make(NDJSON_EVENTS)).encode(), compresslevel=1)
        headers = {"Content-Type": "application/x-ndjson", "Content-Encoding": "gzip"}
        self.send(f"NDJSON gzip of {NDJSON_EVENTS}", body, NDJSON_EVENTS, headers=headers)

    @task(40)
    def retry(self) -> None:
        """A client that did not hear the answer sends the same ten again."""
        if self.last_batch:
            self.send("retry of 10", f"[{','.join(self.last_batch)}]", 10, retried=10)

    @task(20)
    def rejected_whole(self) -> None:
        self.send("rejected", json.dumps({"source": self.source, "data": {"type": "missing"}}), 1, bad=1)

    @task(20)
    def rejected_in_part(self) -> None:
        good = self.make(8)
        self.send("partly rejected", f'[{",".join(good)},{{"type":"no.source"}},{{"source":"no.type"}}]', 10, bad=2)

    @task(POISON_WEIGHT)
    def poison(self) -> None:
        if not POISON:
            return
        good = self.make(9)
        bad = event(self.source, f"poison-{secrets.token_hex(4)}", POISON_TYPE)
        self.send("with poison", f"[{','.join([*good, bad])}]", 10, poison=1)


@events.quit.add_listener
def close_ledger(**_) -> None:
    LEDGER.close()
