"""The recall demo with a smaller budget: trained by skein-train, then asked through skeind, one turn a request."""

import json
import os
import subprocess

import pytest

from client import Client, Turn, fresh_id
from daemon import BUILD, ROOT, Daemon

TRAIN = BUILD / "bin" / "skein-train"
STEPS = int(os.environ.get("SKEIN_DEMO_STEPS", 900))
# The full demo reaches far more; this says that learning, export, template and state work together.
RECALL_AFTER_900_STEPS = 0.25

pytestmark = pytest.mark.skipif(not TRAIN.exists(), reason="built without LibTorch")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    keys = {"run.folder": folder / "run", "run.output": folder / "demo.safetensors", "train.steps": STEPS,
            "evaluate.every": 0, "save.every": 0}
    arguments = [part for key, value in keys.items() for part in ("--set", f"{key}={value}")]
    done = subprocess.run([TRAIN, "--config", ROOT / "trainer" / "configs" / "demo.yaml", *arguments],
                          capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return folder


def test_recalls_held_out_values(demo):
    lines = [json.loads(line) for line in (demo / "run" / "log.jsonl").read_text().splitlines()]
    recall = [line["recall"] for line in lines if "recall" in line]
    assert recall[-1] >= RECALL_AFTER_900_STEPS


def test_turn_by_turn_through_the_server(demo, pb):
    """Each turn carries only the new text; the answers are the demo's own sentences and come from the state."""
    daemon = Daemon(demo / "demo.safetensors", demo)
    try:
        client = Client(pb, daemon.channel)
        g = pb.gen
        conversation = fresh_id()

        def say(text):
            request = g.GenerateRequest(conversation_id=conversation, create_if_missing=True,
                                        sampling=g.Sampling(temperature=0), stopping=g.Stopping(max_tokens=24))
            request.messages.messages.add(role=g.ROLE_USER, content=text)
            return Turn(client.gen.Generate(request, timeout=60)).text

        assert say("My favourite colour is green.") == " Noted."
        assert say("I like to eat soup.") == " Noted."
        assert say("What is my favourite colour?").startswith(" Your favourite colour is ")
        assert say("What do I like to eat?").startswith(" You like to eat ")
        assert client.get(conversation).head_version == 4
    finally:
        daemon.stop()
