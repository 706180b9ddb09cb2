"""The clients of soak.py: each draws an action, carries it out, and knows what it may be told."""

import collections
import math
import random
import threading
import types

import grpc
from client import details

CLIENTS = 64
POOL = 100  # conversations that the clients have in common
PROBE = [1 + b for b in b" and so on"]  # byte tokenizer: id = byte + 1
CONTINUED = "turns of conversations that were there"
CANCELLED = "turns that Cancel ended"
COMPARED = "states compared"
C = grpc.StatusCode


def reason_of(error):
    """The reason that the server gave; empty where gRPC ended the call. When the deadline passes while another end is on
    its way, gRPC replaces the status and leaves that end's details."""
    from google.rpc import status_pb2  # made by the run, as the service's messages are

    packed = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin")
    if packed is None:
        return ""
    if error.code() is C.DEADLINE_EXCEEDED and status_pb2.Status.FromString(packed).code != C.DEADLINE_EXCEEDED.value[0]:
        return ""
    return details(error)["ErrorInfo"].reason


# What each action may be refused with. Whatever else comes is a failure.
FULL = {(C.RESOURCE_EXHAUSTED, "QUEUE_FULL"), (C.RESOURCE_EXHAUSTED, "QUEUE_TOKENS_FULL")}
GONE = {(C.NOT_FOUND, "CONVERSATION_NOT_FOUND")}
BUSY = {(C.ABORTED, "CONVERSATION_BUSY")}
NO_ROOM = {(C.RESOURCE_EXHAUSTED, "CONVERSATION_LIMIT"), (C.RESOURCE_EXHAUSTED, "CONVERSATION_MEMORY")}
TAKEN = {(C.ALREADY_EXISTS, "CONVERSATION_EXISTS")}
ANOTHER = {(C.NOT_FOUND, "VERSION_NOT_FOUND")}  # it went, and came again
# Of a request that has ended: what is kept of those is little.
FORGOTTEN = {(C.FAILED_PRECONDITION, "TOKENS_NOT_KEPT"), (C.NOT_FOUND, "REQUEST_EXPIRED"), (C.NOT_FOUND, "REQUEST_NOT_FOUND")}
TURN = {*FULL, *GONE, *BUSY, *NO_ROOM, (C.FAILED_PRECONDITION, "CONVERSATION_NOT_EMPTY"),
        (C.RESOURCE_EXHAUSTED, "SLOW_READER")}  # 64 threads of Python read slowly at times
REFUSALS = {
    "turn": TURN, "create": {*NO_ROOM, *TAKEN}, "fork": {*GONE, *NO_ROOM, *TAKEN}, "rewind": {*TURN, *ANOTHER},
    "delete": {*GONE, *BUSY}, "cancel": TURN, "hang_up": TURN,
    "hurry": {*TURN, (C.DEADLINE_EXCEEDED, "DEADLINE_UNREACHABLE"), (C.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"),
              (C.DEADLINE_EXCEEDED, "")},
    "retry": {*TURN, *FORGOTTEN}, "attach": {*TURN, *FORGOTTEN}, "read_slowly": TURN, "nonsense": FULL, "no_message": FULL,
    "look": GONE, "check_isolation": {*FULL, *GONE, *ANOTHER},
}


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

    def start_round(self):
        self.names.clear()  # all of them were deleted
        self.stop.clear()

    def count(self, what):
        with self.lock:
            self.counts[what] += 1

    def copy_of_counts(self):
        with self.lock:
            return self.counts.copy()

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
                        (6, self.cancel), (5, self.hang_up), (4, self.hurry), (6, self.retry), (3, self.attach),
                        (3, self.read_slowly), (6, self.nonsense), (3, self.no_message), (4, self.look),
                        (15, self.check_isolation)]

    def run(self):
        weights = [weight for weight, _ in self.actions]
        while not self.shared.stop.is_set():
            action = self.rng.choices(self.actions, weights)[0][1]
            name = action.__name__
            try:
                action()
                self.shared.count(name)
            except grpc.RpcError as error:
                reason = reason_of(error)
                if (error.code(), reason) not in REFUSALS[name]:
                    self.shared.fail(Failed(f"{name}: {error.code()} {reason} {error.details()}"))
                self.shared.count(f"{name} refused: {reason}")
                self.make_room(error.code())
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

    def generate(self, request, timeout=600):
        """Reads all of it. What ended while it waited has no Started."""
        events = list(self.client.gen.Generate(request, timeout=timeout))
        kinds = [event.WhichOneof("event") for event in events]
        if kinds.count("finished") != 1 or kinds[-1] != "finished" or kinds.count("started") > 1:
            raise Failed(f"events of a stream that ended with OK: {kinds}")
        ids = [token.id for event in events for token in event.delta.tokens]
        if any(event.started.version > 0 for event in events):
            self.shared.count(CONTINUED)
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
        for event in stream:
            if event.finished.reason == self.g.FINISH_REASON_CANCELLED:
                self.shared.count(CANCELLED)

    def hang_up(self):
        request = self.request(max_tokens=200, request_id=f"{self.name()}-r")
        if self.rng.random() < 0.3:
            request.on_disconnect = self.g.ON_DISCONNECT_FINISH
        stream = self.start(request, self.rng.randint(0, 5))
        stream.cancel()

    def hurry(self):
        """A deadline that is met or not."""
        self.generate(self.request(max_tokens=200), timeout=self.rng.uniform(0.002, 0.5))

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
        """It is paused meanwhile. Who reads again soon has all of it, who does not loses the request."""
        request = self.request(max_tokens=400)
        request.output.top_logprobs = 20
        stream = self.start(request, 4)
        self.shared.stop.wait(self.rng.uniform(0, 2.5))
        for _ in stream:
            pass

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
        self.shared.count(COMPARED)
