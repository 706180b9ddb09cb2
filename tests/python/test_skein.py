"""The `skein` program against a real daemon: in pipes, on a pseudo-terminal, with Ctrl-C."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import time

import pytest
from daemon import BUILD

SKEIN = BUILD / "bin" / "skein"


@pytest.fixture
def skein(shared):
    def run(*arguments, text="", check=True):
        result = subprocess.run([SKEIN, *arguments], input=text, capture_output=True, text=True, timeout=60,
                                env={**os.environ, "SKEIN_SERVER": shared.address})
        if check:
            assert result.returncode == 0, result.stderr
        return result

    return run


def lines(result):
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_chat_in_a_pipe_and_continued(skein):
    first = skein("chat", "-n", "8", text="hello\nagain\n")
    conversation = re.search(r"--conversation (\S+)", first.stderr).group(1)
    assert "\033" not in first.stdout + first.stderr
    history = lines(skein("conversations", "history", conversation, "--json"))[0]
    assert [v["id"] for v in history["versions"]] == ["1", "2"]
    assert "hello" in history["versions"][0]["input"]
    assert f"{conversation}: version 2" in skein("conversations", "list").stdout

    skein("chat", "-n", "8", "--conversation", conversation, text="/rewind\nmore\n/regenerate\n/fork 1\nelsewhere\n")
    history = lines(skein("conversations", "history", conversation, "--json"))[0]
    assert [v["parent"] for v in history["versions"]] == ["0", "1", "1", "1"]
    assert history["head_version"] == "4"


def test_the_same_seed_gives_the_same_text(skein):
    texts = {skein("generate", "Once", "-n", "20", "--seed", "5", "-t", "1").stdout for _ in range(2)}
    assert len(texts) == 1
    ids = skein("tokenize", "--ids", "Once").stdout.strip()
    assert ids == "80,111,100,102"
    assert skein("tokenize", "--decode", ids).stdout == "Once"
    assert texts == {skein("generate", "--prompt-ids", ids, "-n", "20", "--seed", "5", "-t", "1").stdout}


def test_generate_json_and_score_agree(skein):
    events = lines(skein("generate", "Once", "-n", "6", "-t", "0", "--logprobs", "--ignore-eos", "--json"))
    tokens = [token for event in events for token in event.get("delta", {}).get("tokens", [])]
    assert len(tokens) == 6 and "finished" in events[-1]
    text = "".join(event.get("delta", {}).get("text", "") for event in events)
    if "\ufffd" not in text:
        scored = lines(skein("score", "--prompt", "Once", text, "--json"))
        total = sum(s["total_logprob"] for s in scored if "total_logprob" in s)
        assert total == pytest.approx(sum(t["logprob"] for t in tokens), abs=1e-3)


@pytest.mark.parametrize("arguments,code,words", [
    (["generate", "x", "--top-p", "7"], 5, ["INVALID_ARGUMENT", "sampling.top_p", "(0, 1]"]),
    (["generate", "x", "-c", "nope"], 4, ["NOT_FOUND", "nope", "conversations list"]),
    (["conversations", "rewind", "nope", "1"], 4, ["nope"]),
    (["generate", "x", "--model", "other"], 4, ["other", "skein info"]),
    (["generate", "x", "--ignore-eos", "-n", "100000000", "--deadline", "0.3"], 7, ["DEADLINE_EXCEEDED"]),
    (["info", "127.0.0.1:1"], 3, ["is skeind running on 127.0.0.1:1?", "make serve"]),
    (["info", "/no/such/file"], 4, ["/no/such/file"]),
    (["generate", "--no-such-flag"], 2, ["no-such-flag"]),
])
def test_errors_say_what_to_do(skein, arguments, code, words):
    result = skein(*arguments, check=False)
    assert result.returncode == code
    for word in words:
        assert word in result.stderr
    assert len(result.stderr.splitlines()) <= 2


def test_info_of_the_server_and_of_its_file(skein, model):
    server = skein("info").stdout
    file = skein("info", model).stdout
    assert re.search(r"RWKV-7, .* parameters", server).group(0) == re.search(r"RWKV-7, .* parameters", file).group(0)
    assert lines(skein("info", "--json"))[1]["fingerprint"] == lines(skein("info", model, "--json"))[0]["fingerprint"]


def test_ctrl_c_ends_generate(shared):
    process = subprocess.Popen([SKEIN, "generate", "x", "--ignore-eos", "-n", "100000000", "--server", shared.address],
                               stdout=subprocess.PIPE)
    assert process.stdout.read(10)
    process.send_signal(signal.SIGINT)
    process.stdout.read()
    assert process.wait(60) == 130


class OnTerminal:
    """skein on a pseudo-terminal."""

    def __init__(self, *arguments):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ["TERM"] = "xterm"
            os.execv(SKEIN, ["skein", *arguments])
        self.seen = ""

    def type(self, text):
        os.write(self.fd, text.encode())

    def wait_for(self, pattern, timeout=60):
        """Takes the output up to the pattern."""
        deadline = time.monotonic() + timeout
        while not (match := re.search(pattern, self.seen)):
            assert time.monotonic() < deadline, f"no {pattern!r} in {self.seen[-2000:]!r}"
            if select.select([self.fd], [], [], 0.1)[0]:
                self.seen += os.read(self.fd, 65536).decode(errors="replace")
        taken, self.seen = self.seen[:match.end()], self.seen[match.end():]
        return taken

    def exit_code(self):
        """Reads what is left, as a terminal would."""
        try:
            while os.read(self.fd, 65536):
                pass
        except OSError:  # the other end is closed
            pass
        os.close(self.fd)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_on_a_terminal_ctrl_c_stops_the_answer_then_the_chat(shared):
    chat = OnTerminal("chat", "--ignore-eos", "-n", "100000000", "--server", shared.address)
    chat.wait_for("> ")
    chat.type("hello\n")
    chat.wait_for("hello\r\n")
    chat.wait_for(r"[\s\S]{20}")  # it answers
    chat.type("\x03")
    chat.wait_for(r"\d+ tokens, .*first after .*cancelled")
    chat.wait_for("> ")
    chat.type("/versions\n")
    chat.wait_for(r"\*\s+1 <- 0 .* cancelled")
    chat.wait_for("> ")
    chat.type("\x03")
    chat.wait_for(r"Conversation \S+\. Continue it with: skein chat")
    assert chat.exit_code() == 0
