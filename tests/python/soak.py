#!/usr/bin/env python3
"""A soak: 64 clients do random things to one skeind under tiny budgets, and nothing may leak or mix.

  SKEIN_BUILD=build python tests/python/soak.py --seconds 600

Create, continue, go on, fork, rewind, delete, expire, wait for a busy one, cancel, hang up, come back with the same request
id, attach, read slowly, ask for nonsense and send bytes that are no message. While that goes on conversations are sampled,
and their state is compared with a fresh computation of their tokens: the log-probabilities of a fixed continuation, bit by
bit. At half time and at the end everything must be where it was: slots, queue, descriptors, threads. The resident memory under
load rises and falls by many MiB over minutes, with what is on its way; its slope is printed. It must not have grown between
the two times of rest.
"""

import argparse
import collections
import math
import pathlib
import random
import sys
import tempfile
import threading
import time
import types
import urllib.request

import grpc

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

CLIENTS = 64
POOL = 100  # conversations that the clients have in common
PROBE = [1 + b for b in b" and so on"]  # byte tokenizer: id = byte + 1
# Few slots, a short queue, room for a fraction of the states: every limit is met all the time.
SETTINGS = {
    "engine.slots": 6, "engine.max_step_tokens": 64, "engine.max_prefill_chunk": 16, "limits.queued": 40,
    "limits.queued_tokens": 4096, "limits.prompt_tokens": 1024, "limits.outbox_tokens": 8, "limits.outbox_age": "1s",
    "conversations.budget": "1MiB", "conversations.token_budget": "256KiB", "conversations.history": 2,
    "conversations.max": 200, "conversations.tombstones": 64, "requests.kept": 600, "requests.kept_bytes": "1MiB",
    "prompts": "[{name: long, text: %s}, {name: short, text: a}]" % ("be kind " * 20),
}
REFUSALS = {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.ABORTED, grpc.StatusCode.NOT_FOUND,
            grpc.StatusCode.ALREADY_EXISTS, grpc.StatusCode.FAILED_PRECONDITION}
MIB = 1 << 20
LONG = 300       # seconds of a run that has filled its caches
GIVE_BACK = 40   # skeind gives free memory back every 30 s


class Failed(AssertionError):
    pass


class Shared:
    """What all clients see: names of conversations, counts of what was done, the first failure."""

    def __init__(self):
        self.lock = threading.Lock()
        self.names = []
        self.counts = collections.Counter()
        self.failure = None
        self.stop = threading.Event()

    def count(self, what):
        with self.lock:
            self.counts[what] += 1

    def add(self, name):
        """Returns one that is too many: its user deletes it."""
        with self.lock:
            self.names.append(name)
            return self.names.pop(0) if len(self.names) > POOL else None

    def some(self, rng):
        with self.lock:
            return rng.choice(self.names) if self.names else None

    def unknown(self, names):
        with self.lock:
            return [name for name in names if name not in self.names]

    def gone(self, name):
        with self.lock:
            if name in self.names:
                self.names.remove(name)

    def fail(self, error):
        with self.lock:
            self.failure = self.failure or error
        self.stop.set()


class User:
    """One client: draws something to do, does it, until it is told to stop."""

    def __init__(self, number, seed, client, channel, shared):
        self.rng = random.Random(f"{seed}/{number}")
        self.number, self.client, self.channel, self.shared = number, client, channel, shared
        self.g, self.c = client.pb.gen, client.pb.conv
        self.made = 0
        self.picked = None  # the conversation that the action at hand is about
        self.actions = [(30, self.turn), (6, self.create), (6, self.fork), (6, self.rewind), (3, self.delete),
                        (6, self.cancel), (5, self.hang_up), (6, self.retry), (3, self.attach), (3, self.read_slowly),
                        (6, self.nonsense), (3, self.no_message), (4, self.look), (15, self.check_isolation)]

    def run(self):
        weights = [weight for weight, _ in self.actions]
        while not self.shared.stop.is_set():
            action = self.rng.choices(self.actions, weights)[0][1]
            name = action.__name__
            try:
                action()
                self.shared.count(name)
            except grpc.RpcError as error:
                if error.code() in REFUSALS:
                    self.shared.count(f"{name} refused: {error.code().name}")
                    self.make_room(error.code())
                else:
                    self.shared.fail(Failed(f"{name}: {error.code()} {error.details()}"))
            except Exception as error:  # pylint: disable=broad-except
                self.shared.fail(error)

    def name(self):
        self.made += 1
        name = f"soak-{self.number}-{self.made}"
        self.remove(self.shared.add(name))
        self.picked = name
        return name

    def pick(self):
        """A conversation that was there a moment ago, or None."""
        self.picked = self.shared.some(self.rng)
        return self.picked

    def remove(self, name):
        if name is None:
            return
        try:
            self.client.conv.Delete(self.c.DeleteConversationRequest(id=name))
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.ABORTED:
                self.shared.add(name)  # somebody writes to it: another time
            elif error.code() != grpc.StatusCode.NOT_FOUND:
                raise

    def make_room(self, code):
        if code == grpc.StatusCode.NOT_FOUND:
            self.shared.gone(self.picked)
        elif code == grpc.StatusCode.RESOURCE_EXHAUSTED and self.rng.random() < 0.3:
            name = self.shared.some(self.rng)
            self.shared.gone(name)
            self.remove(name)
        self.shared.stop.wait(0.01)

    def ttl(self, message):
        """Some conversations go by themselves soon."""
        if self.rng.random() < 0.3:
            message.ttl.FromMilliseconds(self.rng.randint(200, 5000))

    def text(self):
        return "".join(self.rng.choices("abcdefgh ,.\n", k=self.rng.randint(1, 60)))

    def request(self, conversation=None, **fields):
        """A random valid request; mostly on a conversation that others use too."""
        rng, g = self.rng, self.g
        if conversation is None:
            conversation = rng.choice(["", self.name(), self.shared.some(rng) or ""])
        stopping = g.Stopping(max_tokens=fields.pop("max_tokens", rng.choice([0, 1, 3, 8, 20])),
                              ignore_eos=rng.random() < 0.5)
        if rng.random() < 0.3:
            stopping.stop_strings.extend(rng.choice([["a"], ["e", "the"], ["\n\n"]]))
        if rng.random() < 0.1:
            stopping.max_time.FromMilliseconds(rng.randint(1, 50))
        sampling = g.Sampling(temperature=rng.choice([0, 0.7, 1.5]), top_p=rng.choice([0.3, 0.9, 1]),
                              presence_penalty=rng.choice([0, 0.5]))
        request = self.client.request(
            self.text(), conversation=conversation, sampling=sampling, stopping=stopping,
            create_if_missing=bool(conversation) and rng.random() < 0.9, commit=rng.choice([0, 1, 2, 3]),
            output=g.Output(token_ids=True, top_logprobs=rng.choice([0, 0, 5])), **fields)
        if conversation and rng.random() < 0.3:
            request.wait_if_busy = True
        if conversation and rng.random() < 0.2:
            self.ttl(request)
        if rng.random() < 0.15:
            request.prompt_state = rng.choice(["long", "short"])
        return request

    def generate(self, request):
        """Reads all of it. What ended while it waited has no Started."""
        events = list(self.client.gen.Generate(request, timeout=600))
        kinds = [event.WhichOneof("event") for event in events]
        if kinds.count("finished") != 1 or kinds[-1] != "finished" or kinds.count("started") > 1:
            raise Failed(f"events of a stream that ended with OK: {kinds}")
        ids = [token.id for event in events for token in event.delta.tokens]
        return types.SimpleNamespace(events=events, ids=ids, finished=events[-1].finished)

    # What a good client does.

    def turn(self):
        for _ in range(self.rng.randint(1, 3)):
            self.generate(self.request())

    def create(self):
        request = self.c.CreateConversationRequest(id=self.name())
        self.ttl(request)
        if self.rng.random() < 0.3:
            request.prompt_state = self.rng.choice(["long", "short"])
        self.client.conv.Create(request)

    def versions(self, conversation):
        versions, page = [], ""
        while True:
            got = self.client.conv.Get(self.c.GetConversationRequest(
                id=conversation, view=self.c.VIEW_HISTORY, page_token=page))
            versions.extend(got.versions)
            page = got.next_page_token
            if not page:
                return got, {v.id: v for v in versions}

    def fork(self):
        source = self.pick()
        if source is None:
            return
        count = self.rng.randint(1, 3)
        request = self.c.ForkConversationRequest(id=source, count=count, new_ids=[self.name() for _ in range(count)])
        self.ttl(request)
        self.client.conv.Fork(request)

    def rewind(self):
        conversation = self.pick()
        if conversation is None:
            return
        _, versions = self.versions(conversation)
        to = self.rng.choice([0, *versions])
        self.client.conv.Rewind(self.c.RewindConversationRequest(id=conversation, version=to))
        if self.rng.random() < 0.5:
            request = self.request(conversation)
            request.base_version = to
            self.generate(request)

    def delete(self):
        conversation = self.pick()
        if conversation is not None:
            self.client.conv.Delete(self.c.DeleteConversationRequest(id=conversation))
            self.shared.gone(conversation)

    def look(self):
        page = self.client.conv.List(self.c.ListConversationsRequest(id_prefix=f"soak-{self.rng.randrange(2 * CLIENTS)}-",
                                                                     page_size=self.rng.randint(1, 50)))
        # Those that nobody knows any more go, or in the end there would be no room for others.
        for lost in self.shared.unknown(one.id for one in page.conversations if not one.busy):
            self.remove(lost)
        conversation = self.pick()
        if conversation is not None:
            self.client.get(conversation)

    # What clients do that change their mind, lose their connection, or are slow.

    def start(self, request, events):
        stream = self.client.gen.Generate(request, timeout=600)
        for _, _ in zip(range(events), stream):
            pass
        return stream

    def cancel(self):
        request = self.request(max_tokens=2000, request_id=f"{self.name()}-r")
        stream = self.start(request, self.rng.randint(0, 5))
        self.client.gen.Cancel(self.g.CancelRequest(request_id=request.request_id))
        for _ in stream:
            pass

    def hang_up(self):
        request = self.request(max_tokens=200, request_id=f"{self.name()}-r")
        if self.rng.random() < 0.3:
            request.on_disconnect = self.g.ON_DISCONNECT_FINISH
        stream = self.start(request, self.rng.randint(0, 5))
        stream.cancel()

    def retry(self):
        request = self.request(max_tokens=10, request_id=f"{self.name()}-r")
        request.wait_if_busy = bool(request.conversation_id)
        first = self.generate(request)
        again = self.generate(request)
        counts = first.finished.reason in (self.g.FINISH_REASON_STOP, self.g.FINISH_REASON_LENGTH,
                                           self.g.FINISH_REASON_TIME)
        if counts and (first.ids != again.ids or first.finished != again.finished):
            raise Failed(f"a retry gave something else: {first.events} / {again.events}")

    def attach(self):
        request = self.request("", max_tokens=60, request_id=f"{self.name()}-r")
        request.on_disconnect = self.g.ON_DISCONNECT_FINISH
        self.start(request, 3).cancel()
        for _ in self.client.gen.Attach(self.g.AttachRequest(request_id=request.request_id), timeout=600):
            pass

    def read_slowly(self):
        request = self.request(max_tokens=4000)
        request.output.top_logprobs = 20
        stream = self.client.gen.Generate(request, timeout=600)
        for _, _ in zip(range(4), stream):
            self.shared.stop.wait(0.3)
        stream.cancel()

    # What nobody should do.

    def nonsense(self):
        g, request = self.g, self.request("")
        self.rng.choice([
            lambda: setattr(request.sampling, "top_p", 7),
            lambda: setattr(request.sampling, "temperature", math.nan),
            lambda: request.stopping.stop_strings.extend(["x"] * 1000),
            lambda: request.token_ids.ids.append(100000),
            lambda: setattr(request.text, "text", "y" * 5000),
            lambda: setattr(request, "conversation_id", "c" * 1000),
            lambda: setattr(request, "base_version", 3),
            lambda: request.sampling.logit_bias.update({-4: 1}),
            lambda: request.constraint.CopyFrom(g.Constraint(regex="a*")),
        ])()
        try:
            self.generate(request)
        except grpc.RpcError as error:
            if error.code() not in {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED}:
                raise
            return
        raise Failed(f"nonsense was taken: {request}")

    def no_message(self):
        call = self.channel.unary_stream("/skein.v1.Generation/Generate")
        try:
            list(call(self.rng.randbytes(self.rng.randint(1, 200)) + b"\xff", timeout=600))
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.INVALID_ARGUMENT:
                raise
            return
        raise Failed("bytes that are no message were taken")

    # Whether the states are what their tokens say.

    def score(self, **fields):
        g = self.g
        # Of several the prompt is taken in once.
        n = self.rng.choice([1, 1, 3])
        request = g.ScoreRequest(continuations=[g.Continuation(token_ids=g.TokenIds(ids=PROBE))] * n, **fields)
        parts = [[token.logprob for token in r.tokens] for r in self.client.gen.Score(request, timeout=600)]
        if len(parts) != n or any(part != parts[0] for part in parts):
            raise Failed(f"{n} times the same continuation: {parts}")
        return parts[0]

    def one_with_turns(self):
        for _ in range(10):
            conversation = self.pick()
            try:
                info, versions = self.versions(conversation or "")
                if versions:
                    return info, versions
            except grpc.RpcError as error:
                if error.code() not in {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT}:
                    raise
                self.shared.gone(conversation)
        return None, {}

    def check_isolation(self):
        info, versions = self.one_with_turns()
        if not versions:
            return
        conversation = info.id
        version = self.rng.choice(list(versions))
        history, at = [], version
        while at != 0:
            history.append([*versions[at].input_token_ids, *versions[at].output_token_ids])
            at = versions[at].parent
        tokens = [t for turn in reversed(history) for t in turn]
        if not 0 < len(tokens) <= 900:
            return
        kept = self.score(conversation_id=conversation, base_version=version)
        if self.client.get(conversation).created != info.created:
            self.shared.count("conversations that went and came again while they were compared")
            return
        fresh = self.score(token_ids=self.g.TokenIds(ids=tokens))
        if len(kept) != len(PROBE) or kept != fresh:
            raise Failed(f"{conversation} version {version}: its state is not that of its {len(tokens)} tokens:\n"
                         f"  {kept}\n  {fresh}")
        self.shared.count("states compared")


def series(daemon):
    with urllib.request.urlopen(daemon.metrics, timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return {k: float(v) for k, _, v in (line.rpartition(" ") for line in lines if line and line[0] != "#")}


def total(values, name):
    return sum(v for k, v in values.items() if k == name or k.startswith(name + "{"))


def slope(points):
    """Least squares: (slope, half the width of its 95 % interval) of [(x, y)]."""
    n = len(points)
    mean_x, mean_y = sum(x for x, _ in points) / n, sum(y for _, y in points) / n
    xx = sum((x - mean_x)**2 for x, _ in points)
    b = sum((x - mean_x) * (y - mean_y) for x, y in points) / xx
    rest = sum((y - mean_y - b * (x - mean_x))**2 for x, y in points)
    return b, 1.96 * math.sqrt(rest / (n - 2) / xx)


def run_clients(daemon, client_of, seconds, seed, half, shared, samples):
    """64 clients on 8 connections; a sample of the process's figures every half second."""
    channels = [daemon.new_channel() for _ in range(8)]
    users = [User(half * CLIENTS + i, seed, client_of(channels[i % 8]), channels[i % 8], shared) for i in range(CLIENTS)]
    threads = [threading.Thread(target=user.run, daemon=True) for user in users]
    for thread in threads:
        thread.start()
    began = time.monotonic()
    while time.monotonic() - began < seconds and not shared.stop.wait(0.5):
        values = series(daemon)
        samples.append((time.monotonic() - began, values["process_resident_memory_bytes"] / MIB, values))
        if daemon.process.poll() is not None:
            shared.fail(Failed("skeind died:\n" + daemon.log()))
    shared.stop.set()
    for thread in threads:
        thread.join(700)
        if thread.is_alive():
            shared.fail(Failed("a client is stuck"))
    for channel in channels:
        channel.close()


def settle(daemon, before, timeout=30):
    """Waits until everything is where it was before; what still is not, as text."""
    end = time.monotonic() + timeout
    while True:
        values = series(daemon)
        wrong = []
        for name in ["skein_requests_running", "skein_requests_waiting", "skein_queue_tokens",
                     "skein_conversation_lines"]:
            if total(values, name) != 0:
                wrong.append(f"{name} is {total(values, name)}")
        device = [v for k, v in values.items() if k.startswith("skein_state_cache_usage_ratio") and "device" in k]
        if sum(device) != 0:
            wrong.append(f"device slots in use: {device}")
        # gRPC keeps some threads and drops others as it likes; one a request would be thousands.
        for name, slack in [("process_open_fds", 2), ("process_threads", 12)]:
            if values[name] > before[name] + slack:
                wrong.append(f"{name}: {before[name]:.0f} before, {values[name]:.0f} after")
        started, handled = total(values, "grpc_server_started_total"), total(values, "grpc_server_handled_total")
        if started != handled:
            wrong.append(f"{started:.0f} calls started, {handled:.0f} ended")
        if not wrong or time.monotonic() > end:
            return wrong
        time.sleep(0.2)


def memory_at_rest(daemon, seconds):
    """MiB, when free memory has been given back."""
    least, end = math.inf, time.monotonic() + seconds
    while time.monotonic() < end:
        least = min(least, series(daemon)["process_resident_memory_bytes"] / MIB)
        time.sleep(0.5)
    return least


def warm_up(client):
    """Threads and pools that stay are made before the first count."""
    threads = [threading.Thread(target=client.generate, args=("warm up",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def soak(daemon, client_of, seconds, seed, out=print):
    """Runs it; raises Failed."""
    warm_up(client_of(daemon.channel))
    daemon.channel.close()
    time.sleep(0.5)
    before = series(daemon)
    shared, samples, rest = Shared(), [], []
    for half in range(2):
        shared.stop.clear()
        run_clients(daemon, client_of, seconds / 2, seed, half, shared, samples)
        if shared.failure is not None:
            break
        wrong = settle(daemon, before)
        if wrong:
            raise Failed("left behind: " + "; ".join(wrong))
        rest.append(memory_at_rest(daemon, GIVE_BACK if seconds >= LONG else 2))
    done = ", ".join(f"{what} {n}" for what, n in sorted(shared.counts.items()))
    out(f"{sum(shared.counts.values())} actions in {seconds} s (seed {seed}): {done}")
    if shared.failure is not None:
        raise shared.failure
    trend, margin = slope([(t / 60, rss) for t, rss, _ in samples[len(samples) // 2:]])
    growth = (rest[1] - rest[0]) / (seconds / 2 / 60)
    last = samples[-1][2]
    out(f"resident memory: {samples[0][1]:.1f} MiB at first, {samples[-1][1]:.1f} at the end; slope of the second half "
        f"{trend:+.3f} +- {margin:.3f} MiB a minute (95 %); at rest {rest[0]:.1f} at half time, {rest[1]:.1f} at the end, "
        f"{growth:+.3f} a minute")
    out(f"descriptors {before['process_open_fds']:.0f} before, {last['process_open_fds']:.0f} under load; threads "
        f"{before['process_threads']:.0f} before, {last['process_threads']:.0f} under load; all back at the end")
    return types.SimpleNamespace(counts=shared.counts, growth=growth)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()

    import conftest
    from checkpoint import write_tiny_checkpoint
    from client import Client
    from daemon import Daemon

    conftest.generate_protos()
    pb = conftest.load_protos()
    with tempfile.TemporaryDirectory() as folder:
        model = pathlib.Path(folder) / "tiny.safetensors"
        write_tiny_checkpoint(model)
        daemon = Daemon(model, folder, SETTINGS)
        try:
            result = soak(daemon, lambda channel: Client(pb, channel), arguments.seconds, arguments.seed)
        except AssertionError as error:
            print(f"FAILED: {error}\n{daemon.log()[-4000:]}", file=sys.stderr)
            return 1
        finally:
            daemon.stop()
    return check_memory(result, arguments.seconds)


# Free memory between what is used, in one page with it, cannot be given back: that comes to some MiB in the first ten
# minutes. 2 MiB a minute are some sixty bytes an action. Short runs still fill their caches.
def check_memory(result, seconds):
    limit = 2 if seconds >= LONG else 100  # MiB a minute
    if result.growth > limit:
        print(f"FAILED: memory grows by {result.growth:.2f} MiB a minute", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
