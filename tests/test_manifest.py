"""quantkit.json: the same bytes for the same run, and no byte of it can change unnoticed."""

import json
import shutil

import pytest

from quantkit.basecard import carried, front_matter
from quantkit.errors import BadInputError
from quantkit.manifest import MANIFEST_FILE, Base, Manifest, read_manifest, seal, write_manifest
from quantkit.weights.hashes import file_hash

SHA, OID = "ab" * 32, "cd" * 20


def manifest(**changes):
    base = Base(name="org/name", repo="org/name", commit=OID, gated=True, files={"config.json": OID, "a.bin": SHA},
                card={"license": "mit", "language": ["no", "zh"]})  # fmt: skip
    fields = {"method": "gptq", "base": base, "recipe": {"bits": 4, "damp_percent": 0.05},
              "calibration": {"sha256": SHA, "samples": 2}, "versions": {"quantkit": "0.1.0"},
              "files": {"model.safetensors": SHA}}  # fmt: skip
    return Manifest(**(fields | changes))


def test_what_was_written_is_read(tmp_path):
    assert read_manifest(tmp_path) is None
    path = write_manifest(tmp_path, manifest())
    assert path.name == MANIFEST_FILE
    assert read_manifest(tmp_path) == manifest()
    first = path.read_bytes()
    write_manifest(tmp_path, manifest())
    assert path.read_bytes() == first
    assert json.loads(first)["schema_version"] == 1


def test_every_byte_counts(tmp_path):
    path = write_manifest(tmp_path, manifest())
    raw = path.read_bytes()
    for place in range(len(raw)):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
        with pytest.raises(BadInputError, match=r"quantkit\.json"):
            read_manifest(tmp_path)
    path.write_bytes(raw + b"\n")
    with pytest.raises(BadInputError, match="has changed since it was written"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"files": {"../../x": SHA}}, r"found file '../../x', expected a name inside the folder"),
        ({"files": {MANIFEST_FILE: SHA}}, "expected a name inside"),
        ({"files": {"x": "12"}}, "files.x: String should match pattern"),
        ({"method": "awq"}, "method: Input should be 'gptq' or 'gguf'"),
        ({"recipe": None}, "recipe: Input should be a valid dictionary"),
    ],
)
def test_a_manifest_that_somebody_else_wrote_is_not_trusted(tmp_path, changes, said):
    write_manifest(tmp_path, manifest().model_copy(update=changes))
    with pytest.raises(BadInputError, match=said):
        read_manifest(tmp_path)


def test_another_schema_is_refused(tmp_path):
    (tmp_path / MANIFEST_FILE).write_text('{"schema_version": 2}', encoding="utf-8")
    with pytest.raises(BadInputError, match="found schema 2, expected 1"):
        read_manifest(tmp_path)


def test_files_that_come_later_are_sealed(tmp_path):
    (tmp_path / "README.md").write_text("card", encoding="utf-8")
    assert seal(tmp_path, ["README.md"]) is None
    write_manifest(tmp_path, manifest())
    sealed = seal(tmp_path, ["README.md"])
    assert sealed == read_manifest(tmp_path)
    assert sealed.files == {"README.md": file_hash(tmp_path / "README.md"), "model.safetensors": SHA}
    assert seal(tmp_path, [], gone=["README.md", "never.json"]) == manifest() == read_manifest(tmp_path)


def test_the_base_card_is_carried_in_part():
    text = (
        "---\nlicense: other\nlicense_name: nice\nlicense_link: LICENSE\nlanguage: no\ntags: [chat, chat, {a: b}, '']\n"
        "datasets: [x]\nextra_gated_prompt: |\n  Be nice.\nextra_gated_fields:\n"
        "  Company: text\n  Age:\n    type: date\npipeline_tag: [text-generation]\nlicense_extra: 1\n---\nText"
    )
    assert carried(front_matter(text)) == {
        "license": "other", "license_name": "nice", "license_link": "LICENSE", "language": ["no"], "tags": ["chat"],
        "pipeline_tag": "text-generation", "extra_gated_prompt": "Be nice.\n",
        "extra_gated_fields": {"Company": "text", "Age": {"type": "date"}},
    }  # fmt: skip


def test_a_card_of_strangers_stays_small(tmp_path):
    levels = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))
    bomb = f"---\na0: &a0 lol\n{levels}\nextra_gated_fields: *a11\nlicense: {'x' * 300}\ntags: [*a1, ok]\n---\n"
    assert carried(front_matter(bomb)) == {"tags": ["ok"]}
    assert front_matter("---\ntags: &t [*t, ok]\n---\n") == {}
    deep = "---\nextra_gated_prompt: " + "[" * 50 + "]" * 50 + '\ntags: ["\\ud800x"]\n---\n'
    found = carried(front_matter(deep))
    assert found == {"tags": ["?x"]}
    write_manifest(tmp_path, manifest(base=Base(name="a", card=found)))
    shutil.copyfile(tmp_path / MANIFEST_FILE, tmp_path / "copy")
    assert read_manifest(tmp_path).base.card == found
