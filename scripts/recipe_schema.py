"""recipes/schema/*.json: JSON Schemas of recipes and release files for editors, from the models that read them.

Usage: python scripts/recipe_schema.py [FOLDER], where FOLDER defaults to recipes/schema.
"""

import json
import sys
from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from quantkit.recipe import Recipe
from quantkit.release_file import ReleaseFile
from quantkit.scheme import METHODS, GgufRecipe

DIALECT = "https://json-schema.org/draft/2020-12/schema"


class Untitled(GenerateJsonSchema):
    """Without titles that only repeat the keys."""

    def field_title_should_be_set(self, schema: object) -> bool:
        """Never."""
        return False


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent / "recipes" / "schema"
    folder.mkdir(parents=True, exist_ok=True)
    for name, schema in {"recipe": recipe_schema(), "release": release_schema()}.items():
        text = json.dumps({"$schema": DIALECT, **schema}, indent=2, ensure_ascii=False)
        (folder / f"{name}.schema.json").write_text(text + "\n", encoding="utf-8")


def recipe_schema() -> dict[str, Any]:
    """A recipe: what else it may say depends on its method."""
    _, shared = models_json_schema([(Recipe, "validation"), (GgufRecipe, "validation")], schema_generator=Untitled)
    return {
        "title": "quantkit recipe",
        "description": "What to make, without naming a model: see docs/recipes.md.",
        "type": "object",
        "properties": {"method": {"enum": list(METHODS)}},
        "if": {"properties": {"method": {"const": "gguf"}}, "required": ["method"]},
        "then": {"$ref": "#/$defs/GgufRecipe"},
        "else": {"$ref": "#/$defs/Recipe"},
        **shared,
    }


def release_schema() -> dict[str, Any]:
    """A release file."""
    return ReleaseFile.model_json_schema(schema_generator=Untitled) | {
        "title": "quantkit release file",
        "description": "What to make of one base, how to check it, where to publish it: see docs/releases.md.",
    }


if __name__ == "__main__":
    main()
