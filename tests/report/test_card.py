"""The card of an artifact: what stands in it, what the Hub reads of it, and text of others that stays text."""

import itertools
import json
import re
import shlex
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml
from browser import find_browser
from huggingface_hub import ModelCard, ModelCardData
from markdown_it import MarkdownIt
from records import record as check_record

from quantkit.checkfile import bound_files, write_check
from quantkit.errors import BadInputError
from quantkit.formats.runtimes import GGUF_RUNTIMES
from quantkit.manifest import Base, Manifest, read_manifest, write_manifest
from quantkit.pipeline.card import write_card
from quantkit.report.card_loading import GPTQMODEL, OPTIMUM
from quantkit.report.card_text import Markdown, code, fence, link, plain
from quantkit.weights.hashes import file_hashes

ROOT = Path(__file__).parents[2]
COMMIT = "12ab" * 10
CARD = {
    "license": "apache-2.0",
    "language": ["zh", "no"],
    "tags": ["chat", "pytorch"],
    "pipeline_tag": "text-generation",
}
RECIPE = {"method": "gptq", "bits": 4, "group_size": 128, "rules": [], "calibration": {"text": ["default"]}}
CALIBRATION = {"sha256": "cd" * 32, "samples": 8, "sequence_length": 64, "tokens_by_set": {"english": 300, "zh": 212}}
TOKENIZER = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)}  # fmt: skip
HOSTILE = "x` ``` | <script>alert(1)</script> [a](javascript:b) ![i](http://e/x)\n---\n# y\u202e\nlicense: mit\n"


def gptq(folder, *, loss=0.01, card=CARD, repo="xverse/XVERSE-13B-Chat", checked=True, passed=True, bits=4, **base):
    """A folder as a GPTQ run and a check leave it, with weights of a few bytes."""
    folder.mkdir(parents=True)
    files = {
        "model.safetensors": b"weights" * bits, "config.json": b"{}", "LICENSE": b"as is",
        "tokenizer_config.json": json.dumps(TOKENIZER).encode(),
        "run.json": json.dumps({
            "status": "finished", "bits_per_weight": bits + 0.25, "first_transformers": "4.49", "notes": ["a note"],
            "rounded_to_nearest": [], "damping_raised": {},
            "runtimes": {"transformers": "loads", "vllm": "loads", "sglang": "it joins q, k, v", "llama.cpp": "loads"},
        }).encode(),
    }  # fmt: skip
    for name, raw in files.items():
        (folder / name).write_bytes(raw)
    known = Base(name=repo or "a-folder", repo=repo, commit=COMMIT if repo else None, card=card, **base)
    recipe = RECIPE | {"bits": bits}
    hashes = file_hashes(folder, files)
    versions = {"python": "3.11.7", "quantkit": "0.1.0"}
    write_manifest(folder, Manifest(method="gptq", base=known, recipe=recipe, calibration=CALIBRATION,
                                    versions=versions, files=hashes))  # fmt: skip
    if checked:
        check(folder, loss, passed)
    return folder


def check(path, loss=0.01, passed=True):
    made = check_record(2)
    entry = made["artifacts"][1] | {"passed": passed}
    home = path if path.is_dir() else path.parent
    entry["files"] = file_hashes(home, bound_files(path))
    entry["metrics"]["all"] |= {"kl_mean": loss}
    entry["gates"][0] |= {"passed": passed}
    write_check(path, made | {"artifacts": [entry], "passed": passed})


def parsed(text):
    """The card as the Hub's own client reads it, and its front matter as plain YAML."""
    card = ModelCard(text)
    assert isinstance(card.data, ModelCardData)
    front = yaml.safe_load(re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)[1])
    return card, front


def test_the_front_matter_is_what_the_hub_reads(tmp_path):
    card, front = parsed(write_card(gptq(tmp_path / "X-Int4"), repo_id="org/X-Int4"))
    assert list(front) == [
        "base_model", "base_model_relation", "license", "language", "library_name", "pipeline_tag", "tags",
        "quantized_by", "model-index",
    ]  # fmt: skip
    assert front | {"model-index": 0} == {
        "base_model": "xverse/XVERSE-13B-Chat", "base_model_relation": "quantized", "license": "apache-2.0",
        "language": ["zh", "no"], "library_name": "transformers", "pipeline_tag": "text-generation",
        "tags": ["chat", "gptq", "4-bit", "quantkit"], "quantized_by": "org", "model-index": 0,
    }  # fmt: skip
    (result,) = card.data.eval_results
    assert (result.metric_type, result.task_type) == ("perplexity", "text-generation")
    assert result.metric_value == pytest.approx(20.4)
    assert result.dataset_args["sha256"] == {"english": "cd" * 32, "chinese": "ef" * 32}
    assert card.data.model_name == "X-Int4"


def test_the_text_says_what_was_measured_and_how_to_load_it(tmp_path):
    text = write_card(gptq(tmp_path / "X-Int4"), repo_id="org/X-Int4", branch="gptq-4bit")
    for said in (
        "# X-Int4\n",
        f"[xverse/XVERSE-13B-Chat](https://huggingface.co/xverse/XVERSE-13B-Chat) at commit [{COMMIT[:12]}]",
        "| GPTQ 4 bits, group 128 | 28\u00a0B | 4.25 |",
        "20.40\u00a0±\u00a00.50 | +2.00% | 0.0100 | 98.0% | passed |",
        "| original, 16 bits |",
        "| Chinese | 1000 |",
        "pip install 'transformers>=4.49' 'optimum>=1.24' 'gptqmodel>=1.4.3'",
        "vllm serve org/X-Int4 --revision gptq-4bit\n",
        'name = "org/X-Int4"',
        'revision="gptq-4bit"',
        "<s>[system] {system message}\n[user] {prompt}\n[assistant]\n```",
        "tokenizer.apply_chat_template",
        "8 samples of 64 tokens",
        "| english | 300 |",
        "Note: a note\n",
        "group_size: 128\n",
        "[LICENSE](LICENSE)",
        "![What was lost](quality.svg)",
    ):
        assert said in text, said
    assert "launch_server" not in text
    assert "| SGLang 0.5.23 | it joins q, k, v | its source was read |" in text
    assert ">" not in [line[:1] for line in text.splitlines()]
    assert "\n\n\n" not in text
    assert str(tmp_path) not in text


def test_every_hash_stands_in_it_and_the_same_files_give_the_same_bytes(tmp_path):
    folder = gptq(tmp_path / "a")
    text = write_card(folder, repo_id="org/a")
    manifest = read_manifest(folder)
    made = {name: (folder / name).read_bytes() for name in ("README.md", "quality.svg", "quantkit.json")}
    assert made["README.md"].decode() == text
    assert manifest.files == file_hashes(
        folder, [path.name for path in folder.iterdir() if path.name != "quantkit.json"]
    )
    for name, digest in manifest.files.items():
        assert (f"| `{name}` |" in text and digest in text) is (name not in ("README.md", "quality.svg"))
    assert write_card(folder, repo_id="org/a") == text
    assert {name: (folder / name).read_bytes() for name in made} == made


def test_nothing_is_written_when_only_shown(tmp_path):
    folder = gptq(tmp_path / "a")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert write_card(folder, write=False).startswith("---\n")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_without_a_check_no_figure_is_made_up(tmp_path):
    text = write_card(gptq(tmp_path / "a", checked=False), repo_id="org/a", forced=True)
    _, front = parsed(text)
    assert (
        "> **This model was not checked, and published nevertheless:**\n> - not checked: what it lost was not measured"
        in text
    )
    assert "| – | – | – | – | – | not checked |" in text
    assert "model-index" not in front
    assert "quality.svg" not in text
    assert not (tmp_path / "a" / "quality.svg").exists()


def test_a_check_that_failed_or_is_void_is_said_at_the_top(tmp_path):
    failed = gptq(tmp_path / "failed", passed=False)
    assert "> **This model did not pass its check:**\n> - mean KL divergence 0.0200, allowed 0.0300" in write_card(
        failed
    )
    void = gptq(tmp_path / "void")
    (void / "config.json").write_bytes(b"{} ")
    text = write_card(void)
    assert "config.json has changed since the check; it no longer counts" in text
    assert "config.json is not the file that the run wrote" in text
    assert "| – | – | – | – | – | void |" in text
    assert "model-index" not in text


def test_without_a_licence_it_is_unknown(tmp_path):
    _, front = parsed(text := write_card(gptq(tmp_path / "a", card={})))
    assert front["license"] == "unknown"
    assert "states no licence: it is unknown" in text
    local = write_card(gptq(tmp_path / "b", repo=None))
    assert "base_model" not in parsed(local)[1]
    assert "It was made from a local folder" in local


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("LICENSE", "LICENSE"),
        ("./TERMS.md", f"https://huggingface.co/xverse/XVERSE-13B-Chat/blob/{COMMIT}/TERMS.md"),
        ("https://example.com/l", "https://example.com/l"),
    ],
)
def test_a_licence_link_leads_somewhere(tmp_path, said, expected):
    card = {"license": "other", "license_name": "nice", "license_link": said}
    _, front = parsed(text := write_card(gptq(tmp_path / "a", card=card)))
    assert (front["license"], front["license_name"], front["license_link"]) == ("other", "nice", expected)
    assert f"`other` (nice): [{plain(expected)}]({expected})" in text


def test_a_gated_base_is_said_and_its_questions_are_carried(tmp_path):
    asked = {"extra_gated_prompt": "Be nice.\n---\nlicense: mit", "extra_gated_fields": {"I agree": "checkbox"},
             "extra_gated_eu_disallowed": "true"}  # fmt: skip
    card, front = parsed(text := write_card(gptq(tmp_path / "a", card=CARD | asked, gated=True)))
    assert "The base model is gated" in text
    assert {key: front[key] for key in asked} == asked | {"extra_gated_eu_disallowed": True}
    assert card.data.license == "apache-2.0"


def test_what_others_wrote_stays_text(tmp_path):
    hostile = dict.fromkeys(("license", "license_name", "license_link", "pipeline_tag"), HOSTILE)
    hostile |= {"language": [HOSTILE], "tags": [HOSTILE], "extra_gated_fields": {HOSTILE: HOSTILE}}
    folder = gptq(tmp_path / "a", card=hostile)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "```\n# y\n</details>" + HOSTILE}))
    _, front = parsed(text := write_card(folder))
    assert front["license"] == HOSTILE.replace("\u202e", "\ufffd") == front["tags"][0]
    body = text.split("\n---\n\n# a\n", 1)[1]
    assert "\n# y" in body  # in the block of the prompt
    found = tokens_of(body)
    html = {token.content.split("\n")[0] for token in found if token.type.startswith("html")}
    assert html == {"<details>", "</details>"}
    assert {token.attrs["href"] for token in found if token.type == "link_open"} == {
        "https://huggingface.co/xverse/XVERSE-13B-Chat",
        f"https://huggingface.co/xverse/XVERSE-13B-Chat/tree/{COMMIT}",
        "LICENSE",
    }
    assert [token for token in found if token.type in ("image", "hr")] == []
    headings = [after.content for token, after in itertools.pairwise(found) if token.type == "heading_open"]
    assert "y" not in " ".join(headings).split()
    assert "\u202e" not in text


def tokens_of(text):
    """Everything that a renderer of Markdown sees in it, also on a line."""
    blocks = MarkdownIt("commonmark").enable("table").parse(text)
    return [token for block in blocks for token in (block, *(block.children or ()))]


@pytest.mark.parametrize("template", [None, "{{ raise_exception('no') }}"])
def test_a_template_that_does_not_render_is_said(tmp_path, template):
    folder = gptq(tmp_path / "a")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template} if template else {}))
    text = write_card(folder)
    said = "no chat template" if template is None else "does not render"
    assert said in text.split("## Prompt template")[1].split("##")[0]


def test_siblings_stand_beside_it_and_in_the_picture(tmp_path):
    own, other = gptq(tmp_path / "four", loss=0.02), gptq(tmp_path / "eight", bits=8, loss=0.001)
    elsewhere = gptq(tmp_path / "three", bits=3)
    made = json.loads((elsewhere / "check.json").read_text())
    made["evaluation"]["windows"] = "other windows"
    (elsewhere / "check.json").write_text(json.dumps(made))
    text = write_card(own, siblings={other: "https://huggingface.co/org/eight", elsewhere: ""})
    assert "| [GPTQ 8 bits, group 128](https://huggingface.co/org/eight) | 56\u00a0B |" in text
    assert re.search(r"\| GPTQ 3 bits, group 128 \|.*\| – \| – \| – \| – \| measured over other text \|", text)
    picture = ElementTree.fromstring((own / "quality.svg").read_bytes())
    labels = [element.text for element in picture.iter() if element.tag.endswith("text")]
    assert {"GPTQ 4 bits, group 128", "GPTQ 8 bits, group 128"} <= set(labels)
    assert "GPTQ 3 bits, group 128" not in labels


def test_commands_survive_the_shell(tmp_path):
    folder = gptq(tmp_path / "it's $(touch x)")
    text = write_card(folder)
    line = next(line for line in text.splitlines() if line.startswith("vllm serve"))
    assert shlex.split(line) == ["vllm", "serve", "it's $(touch x)"]


def test_what_is_no_artifact_is_refused(tmp_path):
    with pytest.raises(BadInputError, match=r"has no quantkit\.json"):
        write_card(tmp_path)
    folder = gptq(tmp_path / "a")
    (folder / "run.json").unlink()
    with pytest.raises(BadInputError, match=r"run\.json is missing"):
        write_card(folder)


def test_text_is_escaped_once():
    assert plain("a|b\n*c* <d> &") == "a\\|b \\*c\\* \\<d\\> \\&"
    assert code("a`b|") == "``a`b\\|``"
    assert code("`") == "`` ` ``"
    assert fence("a\n````\n") == "`````\na\n````\n`````"
    assert link("a]", "javascript:x y") == "a\\] (javascript:x y)"
    assert isinstance(link("a", "https://e/x"), Markdown)


def test_versions_are_those_of_the_environments_that_ran():
    peers = (ROOT / "scripts" / "make_peers.sh").read_text("utf-8")
    assert f"optimum=={OPTIMUM[1]}." in peers
    assert f"gptqmodel=={GPTQMODEL[1]}." in peers
    assert re.search(r"xllamacpp ([\d.]+\d)", GGUF_RUNTIMES["llama.cpp"].known)[1] in peers


@pytest.mark.skipif(find_browser() is None, reason="no Chromium or Chrome on this machine")
def test_the_picture_is_drawn(tmp_path):
    from browser import Browser

    write_card(gptq(tmp_path / "a"))
    browser = Browser(find_browser(), tmp_path / "profile")
    try:
        page = browser.open(tmp_path / "a" / "quality.svg", 800)
        assert page.complaints() == []
        boxes = "[...document.querySelectorAll('text')].map(t => [t.getBBox().x, t.getBBox().x + t.getBBox().width])"
        assert all(0 <= left < right <= 760 for left, right in page.evaluate(boxes))
    finally:
        browser.close()
    shutil.rmtree(tmp_path / "profile", ignore_errors=True)
