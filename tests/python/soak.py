#!/usr/bin/env python3
"""A soak: 64 clients do random things to one skeind under tiny budgets, and nothing may leak or mix.

  SKEIN_BUILD=build python tests/python/soak.py --seconds 600

Create, continue, go on, fork, rewind, delete, expire, wait for a busy one, cancel, hang up, come too late, come back with the
same request id, attach, read slowly, ask for nonsense and send bytes that are no message (soak_user.py). While that goes on
conversations are sampled, and their state is compared with a fresh computation of their tokens: the log-probabilities of a
fixed continuation, bit by bit.

It goes in rounds. After each one the clients are gone and all conversations deleted, and everything must be where it was:
slots, queue, bytes of tokens and states, descriptors, threads. It fails when a client is told anything but what its action
may be told, when a kind of action did not succeed often enough, and when the resident memory grows: under load, where it
rises and falls by many MiB with what is on its way (least of each half minute), or at rest, from round to round. Memory has
grown when the slope is above its limit with a certainty of 99 %, so that no noise fails it. What a slow machine does not get
to in its time it may do in a longer last round.
"""

import argparse
import math
import pathlib
import sys
import tempfile
import threading
import time
import urllib.request

import conftest
import grpc
from checkpoint import write_tiny_checkpoint
from client import Client
from daemon import Daemon
from soak_user import CANCELLED, CLIENTS, COMPARED, CONTINUED, REFUSALS, Failed, Shared, User

# Few slots, a short queue, room for a fraction of the states: every limit is met all the time.
SETTINGS = {
    "engine.slots": 6, "engine.max_parked": 3, "engine.max_step_tokens": 64, "engine.max_prefill_chunk": 16,
    "limits.queued": 40, "limits.queued_tokens": 4096, "limits.prompt_tokens": 1024, "limits.outbox_tokens": 8,
    "limits.outbox_age": "1s", "conversations.budget": "1MiB", "conversations.token_budget": "96KiB",
    "conversations.history": 2, "conversations.max": 80, "conversations.tombstones": 64, "requests.kept": 600,
    "requests.kept_bytes": "2MiB", "prompts": "[{name: long, text: %s}, {name: short, text: a}]" % ("be kind " * 20),
}
# The clients' side takes little for a stream that nobody reads, so that a slow reader is one to the server.
WINDOW = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 16384)]
# What the server may answer at all.
CODES = {"OK", "CANCELLED", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS", "RESOURCE_EXHAUSTED",
         "FAILED_PRECONDITION", "ABORTED", "UNIMPLEMENTED"}
MIB = 1 << 20
LONG = 300       # seconds of a run that has filled its caches
ROUNDS = 5
LONGER = 300     # seconds at most that the last round goes on until each kind of action was there often enough
GIVE_BACK = 35   # skeind gives free memory back every 30 s
BLOCK = 30       # seconds
# Free memory between what is used, in one page with it, cannot be given back, and that is still growing in the first ten
# minutes. 1 MiB a minute are some fifty bytes an action. In short runs it is the caches that grow, on a slow machine later.
GROWTH = 1         # MiB a minute
SHORT_GROWTH = 20  # MiB in all, from the first round to the last one
# One-sided 99 % of Student's t by degrees of freedom; between them the one before, which is wider.
STUDENT = {1: 31.82, 2: 6.96, 3: 4.54, 4: 3.75, 5: 3.36, 6: 3.14, 8: 2.90, 10: 2.76, 15: 2.60, 20: 2.53, 30: 2.46}


class Slope:
    """Least squares through [(minutes, MiB)]: MiB a minute, and what it may be off by, with a certainty of 99 %."""

    def __init__(self, points):
        n = len(points)
        mean_x, mean_y = sum(x for x, _ in points) / n, sum(y for _, y in points) / n
        xx = sum((x - mean_x)**2 for x, _ in points)
        self.slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / xx
        rest = sum((y - mean_y - self.slope * (x - mean_x))**2 for x, y in points)
        self.margin = STUDENT[max(df for df in STUDENT if df <= n - 2)] * math.sqrt(rest / (n - 2) / xx)

    def __str__(self):
        return f"{self.slope:+.2f} +- {self.margin:.2f} MiB a minute"

    def above(self, limit):
        return self.slope - self.margin > limit


def series(daemon):
    with urllib.request.urlopen(daemon.metrics, timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    return {k: float(v) for k, _, v in (line.rpartition(" ") for line in lines if line and line[0] != "#")}


def total(values, name, *labels):
    return sum(v for k, v in values.items()
               if (k == name or k.startswith(name + "{")) and all(label in k for label in labels))


def resident(values):
    return values["process_resident_memory_bytes"] / MIB


def run_clients(daemon, client_of, goes_on, seed, round_, shared, samples):
    """64 clients on 8 connections, while `goes_on(seconds of this round)`; a sample of the process's figures every half
    second."""
    channels = [daemon.new_channel(WINDOW) for _ in range(8)]
    users = [User(round_ * CLIENTS + i, seed, client_of(channels[i % 8]), channels[i % 8], shared) for i in range(CLIENTS)]
    threads = [threading.Thread(target=user.run, daemon=True) for user in users]
    for thread in threads:
        thread.start()
    before, began = samples[-1][0] if samples else 0, time.monotonic()
    while goes_on(time.monotonic() - began):
        samples.append((before + time.monotonic() - began, series(daemon)))
        if shared.stop.wait(0.5):
            break
        if daemon.process.poll() is not None:
            shared.fail(Failed("skeind died:\n" + daemon.log()))
    shared.stop.set()
    for thread in threads:
        thread.join(700)
        if thread.is_alive():
            shared.fail(Failed("a client is stuck"))
    for channel in channels:
        channel.close()


def delete_all(client):
    c = client.pb.conv
    while page := client.conv.List(c.ListConversationsRequest()).conversations:
        for one in page:
            try:
                client.conv.Delete(c.DeleteConversationRequest(id=one.id))
            except grpc.RpcError as error:
                if error.code() != grpc.StatusCode.NOT_FOUND:  # it has expired meanwhile
                    raise


def until_nothing(wrong, timeout=60):
    """Waits until `wrong()` is empty; fails with what it says."""
    end = time.monotonic() + timeout
    while found := wrong():
        if time.monotonic() > end:
            raise Failed("left behind: " + "; ".join(found))
        time.sleep(0.2)


def check_nothing_is_left(daemon, client_of, before):
    """All is where it was before the clients came."""
    def not_zero(*names):
        values = series(daemon)
        return [f"{name} is {total(values, name)}" for name in names if total(values, name) != 0]

    until_nothing(lambda: not_zero("skein_requests_running", "skein_requests_waiting", "skein_queue_tokens",
                                   "skein_conversation_lines"))
    channel = daemon.new_channel()
    delete_all(client_of(channel))
    channel.close()
    until_nothing(lambda: not_zero("skein_conversations", "skein_conversation_token_bytes", "skein_state_cache_bytes",
                                   "skein_state_cache_usage_ratio"))

    def not_back():
        values, wrong = series(daemon), []
        # gRPC keeps some threads and drops others as it likes; one a connection would be eight more each round.
        for name, slack in [("process_open_fds", 2), ("process_threads", 6)]:
            if values[name] > before[name] + slack:
                wrong.append(f"{name}: {before[name]:.0f} before, {values[name]:.0f} after")
        started, handled = total(values, "grpc_server_started_total"), total(values, "grpc_server_handled_total")
        if started != handled:
            wrong.append(f"{started:.0f} calls started, {handled:.0f} ended")
        return wrong

    until_nothing(not_back)


def check_answers(daemon, values):
    """Codes that no client may ever get, and what the log calls an error."""
    codes = {k.split('grpc_code="')[1].split('"')[0] for k in values if k.startswith("grpc_server_handled_total{")}
    if codes - CODES:
        raise Failed(f"the server answered {sorted(codes - CODES)}")
    errors = [line for line in daemon.lines if line is not None and line.split(" ")[2:3] == ["error"]]
    if errors:
        raise Failed("errors in the log:\n" + "\n".join(errors[:5]))


def kinds_of(counts, values):
    """How often each kind of action succeeded, and did what it is for."""
    kinds = {name: counts[name] for name in REFUSALS}
    kinds.update({name: counts[name] for name in (CONTINUED, CANCELLED, COMPARED)})
    kinds["conversations that expired"] = total(values, "skein_conversations_lost_total", "expired")
    kinds["readers that were too slow"] = sum(n for what, n in counts.items() if what.endswith("SLOW_READER"))
    kinds["deadlines that passed"] = sum(n for what, n in counts.items() if what.startswith("hurry refused: ")) - sum(
        counts[f"hurry refused: {reason}"] for _, reason in REFUSALS["turn"])
    kinds["refused for want of room"] = sum(n for what, n in counts.items()
                                            if what.endswith(("CONVERSATION_LIMIT", "CONVERSATION_MEMORY")))
    kinds["requests that lent their slot"] = total(values, "skein_state_evictions_total", 'from="device"')
    kinds["states that went for others"] = total(values, "skein_state_evictions_total", 'from="host"')
    kinds["states made again of tokens"] = total(values, "skein_state_cache_misses_total")
    return kinds


def least_of_each(seconds):
    return max(3, seconds / 20)


def too_few(kinds, seconds):
    return [f"{name}: {n:.0f}" for name, n in kinds.items() if n < least_of_each(seconds)]


def check_counts(kinds, seconds):
    """Each kind of action succeeded again and again."""
    if few := too_few(kinds, seconds):
        raise Failed(f"too few in {seconds:.0f} s, at least {least_of_each(seconds):.0f} were expected: " + ", ".join(few))


def warm_up(client):
    """Threads and pools that stay are made before the first count."""
    threads = [threading.Thread(target=client.generate, args=("warm up",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def memory_at_rest(daemon, seconds):
    """MiB, when free memory has been given back."""
    least, end = math.inf, time.monotonic() + seconds
    while time.monotonic() < end:
        least = min(least, resident(series(daemon)))
        time.sleep(0.5)
    return least


def least_of_blocks(samples, skip):
    """[(minutes, MiB)]: the least of each block after the first `skip` seconds. Free memory is given back under load, too."""
    blocks = {}
    for t, values in samples:
        if t >= skip:
            key = int(t // BLOCK)
            blocks[key] = min(blocks.get(key, math.inf), resident(values))
    return [((key + 0.5) * BLOCK / 60, least) for key, least in blocks.items()]


def check_memory(samples, rest, seconds, out):
    """`rest`: [(minutes, MiB)] after each round."""
    out(f"resident memory: {resident(samples[0][1]):.1f} MiB at first, {resident(samples[-1][1]):.1f} at the end; at rest "
        + ", ".join(f"{mib:.1f}" for _, mib in rest))
    if seconds < LONG:
        growth = rest[-1][1] - rest[0][1]
        if growth > SHORT_GROWTH:
            raise Failed(f"memory grew by {growth:.0f} MiB at rest")
        return
    under_load, at_rest = Slope(least_of_blocks(samples, skip=seconds / 4)), Slope(rest[1:])
    out(f"under load {under_load}, at rest {at_rest} (99 %)")
    for what, slope in [("under load", under_load), ("at rest", at_rest)]:
        if slope.above(GROWTH):
            raise Failed(f"memory grows {what}: {slope}, at most {GROWTH}")


def soak(daemon, client_of, seconds, seed, out=print):
    """Runs it; raises Failed."""
    warm_up(client_of(daemon.channel))
    daemon.channel.close()
    time.sleep(0.5)
    before = series(daemon)
    shared, samples, rest = Shared(), [], []
    for round_ in range(ROUNDS):
        def goes_on(elapsed, last=round_ == ROUNDS - 1):
            if elapsed < seconds / ROUNDS:
                return True
            return last and elapsed < seconds / ROUNDS + LONGER and too_few(
                kinds_of(shared.copy_of_counts(), series(daemon)), seconds)

        shared.start_round()
        run_clients(daemon, client_of, goes_on, seed, round_, shared, samples)
        if shared.failure is not None:
            break
        check_nothing_is_left(daemon, client_of, before)
        rest.append((samples[-1][0] / 60, memory_at_rest(daemon, GIVE_BACK if seconds >= LONG else 1)))
    done = ", ".join(f"{what} {n}" for what, n in sorted(shared.counts.items()))
    out(f"{sum(shared.counts.values())} actions in {samples[-1][0]:.0f} s (seed {seed}): {done}")
    if shared.failure is not None:
        raise shared.failure
    values, busy = series(daemon), samples[-1][1]
    check_answers(daemon, values)
    kinds = kinds_of(shared.counts, values)
    check_counts(kinds, seconds)
    out("of it: " + ", ".join(f"{name} {n:.0f}" for name, n in kinds.items() if name not in REFUSALS))
    check_memory(samples, rest, seconds, out)
    for name in ["process_open_fds", "process_threads"]:
        out(f"{name}: {before[name]:.0f} before, {busy[name]:.0f} under load, {values[name]:.0f} at the end")
    out("slots, queue, bytes of tokens and states: none left after any round")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()

    conftest.generate_protos()
    pb = conftest.load_protos()
    with tempfile.TemporaryDirectory() as folder:
        model = pathlib.Path(folder) / "tiny.safetensors"
        write_tiny_checkpoint(model)
        daemon = Daemon(model, folder, SETTINGS)
        try:
            soak(daemon, lambda channel: Client(pb, channel), arguments.seconds, arguments.seed)
        except AssertionError as error:
            print(f"FAILED: {error}\n{daemon.log()[-4000:]}", file=sys.stderr)
            return 1
        finally:
            daemon.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
