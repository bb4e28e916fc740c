"""A push killed at each of its requests, before and after the Hub has done what it asks, and repeated."""

import os
import shutil
import signal

import processes
import pushable
import pytest
from huggingface_hub import constants
from processes import Command
from pushable import commits, contents, held

from quantkit.pipeline import card
from quantkit.pipeline.push import PushOptions, prepare, run

gptq_made, server = pushable.gptq_made, processes.server
WISHES = {"tag": "v1", "collection": "Quantized"}


def push_there(folder, repo, url, token):
    """`quantkit push` with a tag and a collection, in a process of its own."""
    card.render = no_prompt
    constants.ENDPOINT, constants.HF_HUB_DISABLE_XET = url, True
    os.environ["HF_TOKEN"] = token
    run(prepare(folder, repo, PushOptions(**WISHES)))


def no_prompt(*_, **__):
    """To render a prompt takes another process, seconds each time."""
    return ["a prompt"]


@pytest.mark.parametrize(("moment", "methods"), [("drop", ("GET", "POST", "PUT")), ("lost_answer", ("POST", "PUT"))])
def test_killed_at_every_request(loopback, hub_client, server, gptq_made, tmp_path, monkeypatch, moment, methods):
    """`drop` strikes before the Hub looks at a request, `lost_answer` when it has done what it asks."""
    monkeypatch.setattr(card, "render", no_prompt)
    killed, number = 0, 0
    while True:
        folder, repo = tmp_path / f"model-{number}", f"tester/model-{number}"
        shutil.copytree(gptq_made, folder)
        command = Command(push_there, folder, repo, loopback.url, loopback.token)
        left = [number]

        def strikes(request, command=command, left=left):
            left[0] -= request.method in methods
            if left[0] == -1:
                left[0] = -2
                command.signal(signal.SIGKILL)
                return True
            return False

        loopback.fail(strikes, moment)
        code = command.wait()
        loopback.faults.clear()
        if code == 0:
            break
        assert code == -signal.SIGKILL, command.output
        killed += 1
        assert run(prepare(folder, repo, PushOptions(**WISHES)))["commit"] == loopback.head(repo)
        assert held(loopback, repo) == contents(folder)
        assert commits(loopback, repo) == 1
        assert loopback.repo(repo).tags == {"v1": loopback.head(repo)}
        number += 1
    assert killed >= 12
    objects = [request.path for request in loopback.requests if request.method == "PUT" and request.status == 200]
    assert len(objects) == len(set(objects)), "an object was uploaded twice"
    (collection,) = loopback.collections.values()
    assert sorted(item["id"] for item in collection.items) == sorted(f"tester/model-{n}" for n in range(number + 1))
