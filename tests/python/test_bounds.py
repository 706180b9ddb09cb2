"""What bounds the memory of states, seen from outside: readers that do not read are paused and lend their slots, as many as
`engine.max_parked` says, then the slowest ends; and kept states stay within `conversations.budget`."""

import time

import grpc
import pytest
from client import Client, details, fresh_id
from test_control import until
from test_metrics import scrape, series

SLOTS, PARKED = 2, 2
LENGTH = 800  # tokens of an answer: more than the transport takes for somebody who does not read
# The client's side takes 64 KiB for a stream that nobody reads, and not more when more comes.
WINDOW = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65536)]


@pytest.fixture
def daemon(start, steady_model):
    # What slow readers hold is bounded although their patience is not.
    return start({"engine.slots": SLOTS, "engine.max_parked": PARKED, "limits.outbox_tokens": 16, "limits.outbox_age": "3600s",
                  "model.name": "m"}, model=steady_model)


class Lazy:
    """A client that asks and does not read. Big events, so that little is on its way."""

    def __init__(self, daemon, pb, prompt, **fields):
        self.prompt = prompt
        self.ids = []
        self.channel = daemon.new_channel(WINDOW)
        client = Client(pb, self.channel)
        self.stream = client.stream(prompt, output=pb.gen.Output(token_ids=True, top_logprobs=20), max_tokens=LENGTH,
                                    timeout=600, **fields)
        while not self.ids:  # it runs
            self.ids += [t.id for t in next(self.stream).delta.tokens]

    def read(self):
        """All ids."""
        for event in self.stream:
            self.ids += [t.id for t in event.delta.tokens]
        return self.ids


class Server:
    def __init__(self, daemon, pb):
        self.daemon = daemon
        self.client = Client(pb, daemon.channel)

    def values(self):
        return series(scrape(self.daemon))

    def running(self):
        return self.values()['skein_requests_running{model="m"}']

    def paused(self, running):
        """As many run as that, and none of them goes on."""
        def tokens():
            values = self.values()
            return values['skein_requests_running{model="m"}'], values['skein_step_batch_size_sum{model="m"}']

        before = tokens()
        time.sleep(0.5)  # on a busy machine nothing may go on for a moment
        return before[0] == running and before == tokens()


def test_readers_that_do_not_read_lend_their_slots_up_to_a_bound(daemon, pb):
    server = Server(daemon, pb)
    client = server.client
    conversation = fresh_id()
    head = client.generate("x", conversation=conversation, create_if_missing=True).finished.version
    turn = {"conversation": conversation, "commit": pb.gen.COMMIT_MODE_NEVER}
    whole = {p: client.generate(p, max_tokens=LENGTH, **fields).ids
             for p, fields in [("second", {}), ("third", {}), ("fourth", turn)]}
    good = client.generate("good").ids

    # Two take both slots and are paused: they hold them only as long as nobody wants them.
    first = Lazy(daemon, pb, "first")
    until(lambda: server.paused(running=1))
    second = Lazy(daemon, pb, "second")
    until(lambda: server.paused(running=2))
    assert client.generate("good").ids == good
    until(lambda: server.running() == 2)

    # Four: two in slots, two parked. That is all the memory that there is for them.
    third = Lazy(daemon, pb, "third")
    until(lambda: server.paused(running=3))
    fourth = Lazy(daemon, pb, "fourth", **turn)
    until(lambda: server.paused(running=4))
    assert server.values()['skein_state_cache_usage_ratio{model="m",tier="device"}'] == 1

    # The next one wants a slot: the one that has been slow for longest ends, long before its limit.
    assert client.generate("good").ids == good
    until(lambda: server.running() == 3)
    with pytest.raises(grpc.RpcError) as caught:
        first.read()
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details(caught.value)["ErrorInfo"].reason == "SLOW_READER"

    # The others lost nothing.
    for lazy in [second, third, fourth]:
        assert lazy.read() == whole[lazy.prompt]
    assert client.get(conversation).head_version == head and not client.get(conversation).busy
    until(lambda: server.running() == 0)
    values = server.values()
    assert values['skein_state_cache_usage_ratio{model="m",tier="device"}'] == 0
    # `second` and `third`, at least, came back from host memory.
    assert values['skein_state_evictions_total{from="device",model="m",to="host"}'] >= 2


def test_many_that_never_read_hold_no_more_than_the_bound(daemon, pb):
    """Each takes the place of the slowest before it, and whoever reads is served all the while."""
    server = Server(daemon, pb)
    good = server.client.generate("good").ids
    lazies, running = [], []
    for i in range(2 * (SLOTS + PARKED)):
        lazies.append(Lazy(daemon, pb, f"lazy {i}"))
        running.append(server.running())
        assert server.client.generate("good").ids == good
        running.append(server.running())
    assert max(running) <= SLOTS + PARKED
    left = SLOTS + PARKED - 1  # the last good one had the slot of one of them
    until(lambda: server.running() == left)
    for lazy in lazies[:-left]:
        with pytest.raises(grpc.RpcError) as caught:
            lazy.read()
        assert details(caught.value)["ErrorInfo"].reason == "SLOW_READER"
    for lazy in lazies:
        lazy.stream.cancel()
        lazy.channel.close()
    until(lambda: server.running() == 0)
    assert server.values()['skein_state_cache_usage_ratio{model="m",tier="device"}'] == 0


def test_kept_states_stay_within_their_budget(start, pb):
    """The least recently used ones go, and are made again of their tokens, bit by bit."""
    fit, conversations = 3, 8
    probe = start({"model.name": "m"})
    state = Client(pb, probe.channel).info.ListModels(pb.info.ListModelsRequest()).models[0].state_bytes
    budget = fit * (state + 64)
    daemon = start({"model.name": "m", "conversations.budget": budget})
    client, g = Client(pb, daemon.channel), pb.gen

    def kept():
        values = series(scrape(daemon))
        return values['skein_state_cache_bytes{tier="host"}'], values['skein_state_evictions_total{from="host",to="none"}']

    said, restored = {}, []
    for turn in range(3):
        for i in range(conversations):
            name = f"c-{i}"
            answer = client.generate(f"turn {turn}", conversation=name, create_if_missing=True)
            said.setdefault(name, []).extend([*(b + 1 for b in f"turn {turn}".encode()), *answer.ids])
            restored.append(answer.started.restored_from)
            assert 0 < kept()[0] <= budget
    # In turns nobody finds his state: it is always that of the conversation that was used longest ago.
    assert restored == ["none"] * conversations + ["tokens"] * (2 * conversations)
    assert kept()[1] == 3 * conversations - fit
    for name, ids in said.items():
        on = client.generate(conversation=name, max_tokens=5, commit=g.COMMIT_MODE_NEVER)
        assert on.ids == client.generate(ids=ids, max_tokens=5).ids
    # One that stays in use finds it.
    client.generate("again", conversation="c-0")
    assert client.generate("again", conversation="c-0").started.restored_from in ("host", "device")
    for name in said:
        client.conv.Delete(pb.conv.DeleteConversationRequest(id=name))
    assert kept()[0] == 0 and series(scrape(daemon))["skein_conversation_token_bytes"] == 0
